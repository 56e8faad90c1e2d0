"""How good an image is: SSIM, PSNR, NMSE, MAE in fastMRI's conventions and in others; losses; intervals and tests.

fastMRI's conventions: one figure per volume, data range = the largest value of the target volume."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mri_parts.basics import BadInput, mean, read_call


class _WindowSums(torch.autograd.Function):
    """Sums over every n x n window of (..., H, W); the gradient is the same sum over the zero-padded gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int) -> Tensor:
        ctx.n = n
        for dim in (-1, -2):

            def neighbours(count: int, x: Tensor = x, dim: int = dim) -> Tensor:  # by doubling: four additions for 7
                if count == 1:
                    return x
                half, size = neighbours(count // 2), x.shape[dim] - count + 1
                total = half.narrow(dim, 0, size) + half.narrow(dim, count // 2, size)
                return total + x.narrow(dim, count - 1, size) if count % 2 else total

            x = neighbours(n)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _WindowSums.apply(nn.functional.pad(gradients[0], [ctx.n - 1] * 4), ctx.n), None


def ssim_map(target: Tensor, prediction: Tensor, data_range: Tensor | float, window: int = 7) -> Tensor:
    """Structural similarity of each window: uniform window, sample covariance, K = .01 and .03.

    Wang et al. 2004, IEEE TIP 13(4). The values are those of scikit-image and of fastMRI's loss.

    Args:
        target, prediction: (..., H, W) real.
        data_range: number, or tensor that broadcasts against (..., 1, 1).
        window: side of the square window.
    Returns:
        (..., H - window + 1, W - window + 1).
    """
    height, width = target.shape[-2:]
    if min(height, width) < window:
        raise BadInput(f"SSIM needs images of at least {window}x{window}, not {height}x{width}")
    x, y, n = target, prediction.to(target.dtype), window**2
    sum_x, sum_y, sum_squares, sum_xy = (_WindowSums.apply(z, window) for z in (x, y, x * x + y * y, x * y))
    # The usual formula, numerator and denominator multiplied by n^2 and, in the second factor, by n (n - 1).
    c1, c2 = (0.01 * n * data_range) ** 2, 0.03**2 * n * (n - 1) * data_range**2
    both, power = sum_x * sum_y, sum_x * sum_x + sum_y * sum_y
    return (2 * both + c1) * (2 * (n * sum_xy - both) + c2) / ((power + c1) * (n * sum_squares - power + c2))


def _volumes(target: Tensor, prediction: Tensor, kind: Any = torch.float64) -> tuple[Tensor, Tensor]:
    """Both as tensors of one shape, as a rule float64: float32 sums cost the sixth digit."""
    x, y = (torch.as_tensor(image) for image in (target, prediction))
    if x.shape != y.shape:
        raise BadInput(f"target {tuple(x.shape)} and prediction {tuple(y.shape)} differ in shape")
    if x.is_complex() or y.is_complex():
        raise BadInput("metrics compare magnitudes, and this image is complex: take its abs() first")
    return x.to(kind or x.dtype), y.to(kind or y.dtype)


def nmse(target: Tensor, prediction: Tensor, where: Tensor | None = None) -> float:
    """Normalised mean squared error |target - prediction|^2 / |target|^2 of a volume (slices, H, W).

    where: bool, of the same shape: only these pixels count; see head_mask.
    """
    x, y = _volumes(target, prediction)
    x, y = (x, y) if where is None else (x[where], y[where])
    return float((x - y).square().sum() / x.square().sum())


def psnr(target: Tensor, prediction: Tensor, data_range: float | None = None, where: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio of a volume (slices, H, W) in dB.

    data_range: the largest value of the target volume unless given.
    where: bool, of the same shape: only the errors of these pixels count; see head_mask.
    """
    x, y = _volumes(target, prediction)
    peak = float(x.max()) if data_range is None else data_range
    errors = (x - y).square()
    return float(10 * torch.log10(peak**2 / (errors if where is None else errors[where]).mean()))


def ssim(target: Tensor, prediction: Tensor, data_range: float | None = None, where: Tensor | None = None) -> float:
    """Structural similarity of a volume (slices, H, W): the mean over slices of each slice's mean.

    data_range: the largest value of the target volume unless given.
    where: bool, of the same shape: only the windows about these pixels count, in the slices that have some (all
        windows where no slice has); see head_mask.
    """
    x, y = _volumes(target, prediction, None)
    peak = float(x.max()) if data_range is None else data_range
    x, y = (v.reshape(-1, *v.shape[-2:]) for v in (x, y))
    if where is not None:
        return _ssim_inside(x, y, peak, where.reshape(x.shape))
    step = len(x) if x.device.type == "cuda" else 1  # one slice at a time stays in a CPU's cache
    pairs = zip(x.split(step), y.split(step))
    return mean(float(ssim_map(a.double(), b.double(), peak).mean()) for a, b in pairs)


def _ssim_inside(x: Tensor, y: Tensor, peak: float, where: Tensor, window: int = 7) -> float:
    """The mean over slices of the mean over the windows whose middle pixel is chosen; where none is, over all."""
    edge, found = window // 2, []
    middles = where[:, edge : where.shape[1] - edge, edge : where.shape[2] - edge]
    for target, image, chosen in zip(x.double(), y.double(), middles if middles.any() else torch.ones_like(middles)):
        if not chosen.any():
            continue
        # Only the box around the chosen pixels is computed: half of an image of a head.
        rows, columns = (chosen.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        box = slice(rows[0], rows[-1] + window), slice(columns[0], columns[-1] + window)
        inner = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        found.append(float(ssim_map(target[box], image[box], peak, window)[chosen[inner]].mean()))
    return mean(found)


def mae(target: Tensor, prediction: Tensor) -> float:
    """Mean absolute error of a volume (slices, H, W), in the units of the images."""
    x, y = _volumes(target, prediction)
    return float((x - y).abs().mean())


def head_mask(target: Tensor) -> Tensor:
    """Where the scanned object is, without the air around it: a head, or whatever else was scanned.

    The magnitude is smoothed by a hundredth of the field of view. What is brighter than half the way from the
    mean of the air to the threshold that separates air and object best (Otsu 1979, IEEE Trans. SMC 9(1)), in the whole
    volume alike, is object; so is what it encloses, such as dark ventricles and sinuses. Of each slice the largest
    connected piece counts.

    Args:
        target: (..., H, W) real, the reference of one volume.
    Returns:
        bool of the same shape. All true where nothing stands out, as in an even image.
    """
    from scipy import ndimage

    images = target.detach().cpu().reshape(-1, *target.shape[-2:]).double().numpy()
    width = max(target.shape[-2:]) / 100
    smooth = ndimage.gaussian_filter(images, (0, width, width))
    if not smooth.min() < smooth.max():
        return torch.ones_like(target, dtype=torch.bool)
    counts, edges = np.histogram(smooth, 256)
    below, energy = counts.cumsum(), (counts * (edges[1:] + edges[:-1]) / 2).cumsum()
    above = below[-1] - below[:-1]  # how many are brighter than each bin, the last one left out
    between = (energy[-1] * below[:-1] / below[-1] - energy[:-1]) ** 2 / (below[:-1] * above)
    best = int(between.argmax())
    threshold = (energy[best] / below[best] + edges[best + 1]) / 2

    def slice_mask(bright: np.ndarray) -> np.ndarray:
        pieces, count = ndimage.label(~bright)
        open_air = np.zeros(count + 1, bool)
        for edge in (pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]):
            open_air[edge] = True
        open_air[0] = False  # what is bright
        pieces, count = ndimage.label(~open_air[pieces])
        return pieces == np.bincount(pieces.flat)[1:].argmax() + 1 if count else bright

    mask = torch.from_numpy(np.stack([slice_mask(image > threshold) for image in smooth]))
    return mask.reshape(target.shape).to(target.device)


# What every run is scored by: one entry more is one metric more, in metrics.json and in every table.
METRICS: dict[str, Callable[..., float]] = {"ssim": ssim, "psnr": psnr, "nmse": nmse, "mae": mae}

# How a metric is printed, (heading, digits behind the point); one without an entry: its name, three digits that count.
METRIC_STYLES: dict[str, tuple[str, int]] = {"ssim": ("SSIM", 3), "psnr": ("PSNR (dB)", 2), "nmse": ("NMSE", 4)}

# What figures are about besides the whole image against the reference: "ssim_head" is the SSIM in the head.
PARTS: dict[str, str] = {"head": "in the head", "truth": "against the noise-free image"}


def measure(
    target: Tensor,
    prediction: Tensor,
    metrics: Mapping[str, Callable[..., float]] = METRICS,
    truth: Tensor | None = None,
) -> dict[str, float]:
    """Every figure of one volume: of the whole image, in the head, and against the noise-free image where it is known.

    Air is half of most images, and its noise counts like anatomy. And a reference with noise is itself in error:
    who guesses its noise wrong loses points for nothing.

    Args:
        target, prediction: (slices, H, W) real, the reference and what is measured.
        metrics: name -> function of both, for the whole image; fastMRI's figures among them.
        truth: the reference without its noise.
    Returns:
        metric -> value; those in the head and against the truth end in _head and _truth, see PARTS.
    """
    row = {name: metric(target, prediction) for name, metric in metrics.items()}
    head = head_mask(target)
    row |= {f"{name}_head": metric(target, prediction, where=head) for name, metric in _INSIDE.items()}
    if truth is not None:
        peak = float(target.max())
        row |= {"psnr_truth": psnr(truth, prediction, peak), "nmse_truth": nmse(truth, prediction)}
    return row


_INSIDE: dict[str, Callable[..., float]] = {"ssim": ssim, "psnr": psnr, "nmse": nmse}


# Losses compare magnitudes (batch, h, w) that are divided by the maximum of their target volume.


def ssim_loss(prediction: Tensor, target: Tensor, data_range: Tensor | float = 1.0) -> Tensor:
    """1 - SSIM; the data range is 1 for images divided by their volume's maximum."""
    return 1 - ssim_map(target, prediction, data_range).mean()


def ssdu_loss(prediction: Tensor, target: Tensor, share: float = 0.5) -> Tensor:
    """Mean distance of the samples of k-space that were hidden from the network: all that are not zero in `target`.

    Self-supervision via data undersampling: Yaman et al. 2020, MRM 84(6); notebook 17. `share` is what SliceDataset
    hides, see hidden_share.
    """
    hidden = target != 0
    return ((prediction - target) * hidden).abs().sum() / hidden.sum().clamp(min=1)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "l1": nn.functional.l1_loss,
    "l2": nn.functional.mse_loss,
    "ssim": ssim_loss,
    "l1_ssim": lambda prediction, target: nn.functional.l1_loss(prediction, target) + ssim_loss(prediction, target),
    "ssdu": ssdu_loss,  # of k-space, and without references
}


def hidden_share(loss: str) -> float:
    """The share of the measured lines that a loss such as "ssdu(share=0.4)" wants hidden in training; 0 for the others.

    Raises:
        BadInput: a share that leaves nothing to see, or nothing to guess.
    """
    name, options = read_call(loss, "loss")
    share = options.get("share", 0.5) if name == "ssdu" else 0.0
    if name == "ssdu" and not (isinstance(share, (int, float)) and 0 < share < 1):
        raise BadInput(f"loss {loss!r}: use a share between 0 and 1, such as ssdu(share=0.5)")
    return float(share)


def bootstrap_interval(
    values: Sequence[float], repeats: int = 10_000, seed: int = 0, subjects: Sequence[Any] | None = None
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, right for small samples as well.

    The percentile interval (Efron 1979) of n values is too short: of 12 it holds the true mean 90 times of 100.
    So it is stretched about the mean by sqrt(n / (n - 1)) t / z, which turns a normal interval into Student's
    (after Hesterberg 2015, The American Statistician 69(4)). Very skewed values still get a little less.

    Args:
        values: one figure per volume. For two methods on the same volumes pass the differences: that is
            the paired interval.
        repeats: resamples.
        seed: of the resampling.
        subjects: to whom each value belongs, where that is not one value each: whole subjects are
            resampled then, because two scans of one head are not two heads.
    Returns:
        (low, high); both are the mean itself where there is only one subject.
    """
    from scipy import stats

    figures = np.asarray(values, float)
    if figures.ndim != 1 or len(figures) == 0:
        raise BadInput("a bootstrap interval needs at least one value")
    _, unit = np.unique(np.arange(len(figures)) if subjects is None else np.asarray(subjects), return_inverse=True)
    sums, counts = np.bincount(unit, figures), np.bincount(unit)
    centre, n = float(figures.mean()), len(sums)
    if n == 1:
        return centre, centre
    rows = np.random.RandomState(seed).randint(n, size=(repeats, n))
    tails = np.percentile(sums[rows].sum(1) / counts[rows].sum(1), [2.5, 97.5]) - centre
    low, high = centre + tails * math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975)
    return float(low), float(high)


def summarize(values: Sequence[float], subjects: Sequence[Any] | None = None) -> dict[str, Any]:
    """{"mean": .., "ci95": [low, high]} of one figure per volume; subjects as in bootstrap_interval."""
    return {"mean": float(np.mean(values)), "ci95": list(bootstrap_interval(values, subjects=subjects))}


def interval(summary: Mapping[str, Any], digits: int | None = 3) -> str:
    """What summarize returned, as "mean [low, high]"; one subject has no interval.

    digits: behind the point; None prints the first three that count, whatever the size.
    """
    form = ".3g" if digits is None else f".{digits}f"
    low, high = summary["ci95"]
    return f"{summary['mean']:{form}} " + (f"[{low:{form}}, {high:{form}}]" if low < high else "(one subject)")


def metric_cells(summaries: Mapping[str, Mapping[str, Any]], part: str = "") -> dict[str, str]:
    """The cells of a method's row in a table, one for each metric that it was scored by.

    Args:
        summaries: metric -> what summarize returned, as metrics.json holds it for each method.
        part: of PARTS, whose figures are wanted; "" for those of the whole image.
    Returns:
        heading -> "mean [low, high]", printed as METRIC_STYLES says; nothing where the run has no such figures.
    """
    cells: dict[str, str] = {}
    for full_name, summary in summaries.items():
        name, _, ending = full_name.rpartition("_")
        name, ending = (name, ending) if ending in PARTS else (full_name, "")
        heading, digits = METRIC_STYLES.get(name, (name.upper(), None))
        cells |= {heading: interval(summary, digits)} if ending == part else {}
    return cells


def attained(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Which share of the attainable gain each method reached: 0 is the first one, that fills nothing in; 1 is all.

    The row "attainable" keeps the measured samples and guesses the others perfectly, but without their noise, which
    nobody can guess. So its SSIM is below 1.

    Args:
        methods: as metrics.json holds them: method -> metric -> {"mean": ..}.
    Returns:
        method -> metric -> share, for SSIM and PSNR, of the whole image and in the head; {} without such a row.
    """
    start, best = next(iter(methods.values())), methods.get("attainable", {})
    names = [name for name in best if name.split("_")[0] in ("ssim", "psnr") and not name.endswith("_truth")]

    def share(found: Mapping[str, Any], name: str) -> float:
        low, high = start[name]["mean"], best[name]["mean"]
        return (found[name]["mean"] - low) / (high - low)

    return {method: {name: share(found, name) for name in names} for method, found in methods.items()} if best else {}


def compare_paired(a: Sequence[float], b: Sequence[float], subjects: Sequence[Any] | None = None) -> dict[str, Any]:
    """Is method a better than b? Both scored on the same volumes, in the same order.

    Args:
        a, b: a figure per volume.
        subjects: as in bootstrap_interval.
    Returns:
        mean and ci95 of a - b; effect_size, Cohen's d_z = mean / standard deviation of the differences (None
        where they do not vary); wilcoxon_p of the signed-rank test (Wilcoxon 1945), a cross-check that assumes
        no distribution, with one mean difference per subject; n, the subjects.
    """
    from scipy import stats

    ours, others = np.asarray(a, float), np.asarray(b, float)
    if ours.shape != others.shape or ours.ndim != 1:
        raise BadInput(f"paired figures differ in number, {ours.shape} and {others.shape}: score the same volumes")
    summary = summarize((ours - others).tolist(), subjects)
    _, unit = np.unique(np.arange(len(ours)) if subjects is None else np.asarray(subjects), return_inverse=True)
    difference = np.bincount(unit, ours - others) / np.bincount(unit)
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    return summary | {
        "effect_size": float(difference.mean() / spread) if spread else None,
        "wilcoxon_p": float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0,
        "n": len(difference),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979, Scandinavian Journal of Statistics 6(2)), in the same order."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1)
    return corrected.tolist()


def _gaussian_ssim(x: Tensor, y: Tensor) -> float | None:
    """scikit-image's SSIM of a whole sequence: 3-D Gaussian window (11 wide, sigma 1.5); needs 11 frames."""
    from skimage.metrics import structural_similarity

    if min(x.shape) < 11:
        return None
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    return float(structural_similarity((x / float(x.max())).numpy(), (y / float(x.max())).numpy(), **options))


def _per_slice(score: Callable[[Tensor, Tensor], float]) -> Callable[[Tensor, Tensor], float]:
    """The mean over slices, each slice taken for a volume of its own."""
    return lambda x, y: mean(score(s[None], p[None]) for s, p in zip(x, y, strict=True))


def _with_range(metric: Callable[..., float], span: Callable[[np.ndarray], float]) -> Callable[[Tensor, Tensor], float]:
    """The metric with another data range than the largest value of the target."""
    return lambda x, y: metric(x, y, float(span(x.numpy())))


def _one_slice_psnr(x: Tensor, y: Tensor) -> float:
    """PSNR slice by slice with the volume's maximum, then the mean of the decibels."""
    return mean(psnr(s, p, float(x.max())) for s, p in zip(x, y, strict=True))


# (metric, convention, who uses it, how: float64 volumes (slices, H, W) -> number)
CONVENTIONS: list[tuple[str, str, str, Callable[[Tensor, Tensor], float | None]]] = [
    ("ssim", "range: volume's maximum", "fastMRI", ssim),
    ("ssim", "range: volume's max - min", "fastmri-reproducible-benchmark", _with_range(ssim, np.ptp)),
    ("ssim", "range: each slice's maximum", "ResNet system", _per_slice(ssim)),
    ("ssim", "range 2.0, images in 0..1", "super-resolution system", _with_range(ssim, lambda x: 2 * x.max())),
    ("ssim", "3-D Gaussian window, range 1, sequence in 0..1", "cine system", _gaussian_ssim),
    ("psnr", "range: volume's maximum", "fastMRI", psnr),
    ("psnr", "range: volume's max - min", "fastmri-reproducible-benchmark", _with_range(psnr, np.ptp)),
    ("psnr", "range: each slice's maximum, mean over slices", "fastMRI pull request 130, per slice", _per_slice(psnr)),
    ("psnr", "range 1, images in 0..1, mean over slices", "scikit-image's default for floats", _one_slice_psnr),
    ("psnr", "range 1, sequence in 0..1", "cine system", psnr),
    ("nmse", "whole volume", "fastMRI", nmse),
    ("nmse", "mean over slices", "fastMRI pull request 130, per slice", _per_slice(nmse)),
]  # fmt: skip


def metric_conventions(target: Tensor, prediction: Tensor) -> list[dict[str, Any]]:
    """One reconstruction scored under every convention that this book met.

    Args:
        target, prediction: (slices, H, W) real, in the same units.
    Returns:
        a row per convention: {"metric", "convention", "who", "value"}; the first of each metric is fastMRI's. The
        3-D window needs 11 slices or frames: with fewer its value is None.
    """
    x, y = _volumes(target, prediction)
    if x.ndim != 3:
        raise BadInput(f"conventions are about volumes (slices, H, W), not {tuple(x.shape)}: add the axis of slices")
    return [
        {"metric": metric, "convention": convention, "who": who, "value": score(x, y)}
        for metric, convention, who, score in CONVENTIONS
    ]


def find_shift(target: Tensor, image: Tensor) -> tuple[int, int]:
    """By how many pixels (rows, columns) `image` is shifted against `target`: the peak of their correlation.

    Args:
        target, image: (..., H, W) real; leading axes (slices) are shifted alike.
    """
    x, y = _volumes(target, image)
    spectrum = torch.fft.fft2(x - x.mean((-2, -1), keepdim=True)).conj() * torch.fft.fft2(y)
    correlation = torch.fft.ifft2(spectrum).real.reshape(-1, *x.shape[-2:]).sum(0)
    (height, width), (row, column) = x.shape[-2:], divmod(int(correlation.argmax()), x.shape[-1])
    return row - height * (row > height // 2), column - width * (column > width // 2)


def summarize_reading(path: str | Path) -> dict[str, Any]:
    """What a blinded reader preferred, from the file that the blinded-reading notebook saves.

    Args:
        path: JSON {"reader": .., "pairs": [{"volume", "slice", "left", "right": names of methods, "preferred":
            "left", "right" or "none", "scores": {"left": {question: 1..5}, "right": {..}}}, ..]}; a pair
            without "preferred" was not read yet.
    Returns:
        {"reader", "pairs": number read, "preference": {"A over B": {"mean": share of the decided pairs, "ci95":
        Wilson's interval, "n": decided, "undecided"}}, "scores": {method: {question: mean}}}.
    Raises:
        BadInput: no such file, or not of this form.
    """
    from scipy import stats

    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        pairs = [pair for pair in content["pairs"] if pair.get("preferred")]
        preference: dict[str, Any] = {}
        scores: dict[str, Any] = {}
        for a, b in dict.fromkeys(tuple(sorted((pair["left"], pair["right"]))) for pair in pairs):
            chosen = [pair.get(pair["preferred"]) for pair in pairs if {pair["left"], pair["right"]} == {a, b}]
            wins, n = chosen.count(a), chosen.count(a) + chosen.count(b)
            interval = stats.binomtest(wins, n).proportion_ci(method="wilson") if n else (0.0, 1.0)
            preference[f"{a} over {b}"] = {
                "mean": wins / n if n else None,
                "ci95": [float(limit) for limit in interval],
                "n": n,
                "undecided": len(chosen) - n,
            }
        for pair in pairs:
            for side, answers in pair.get("scores", {}).items():
                for question, score in answers.items():
                    scores.setdefault(pair[side], {}).setdefault(question, []).append(float(score))
        means = {method: {q: mean(values) for q, values in asked.items()} for method, asked in scores.items()}
        return {"reader": content["reader"], "pairs": len(pairs), "preference": preference, "scores": means}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: no file of blinded readings ({error!r}): notebook 11 writes one") from error
