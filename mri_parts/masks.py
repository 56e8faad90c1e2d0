"""Which k-space samples are measured.

A mask is a bool tensor, True = measured. The zero frequency (DC) of an axis with n samples has index n // 2, as fft2c
puts it. Lines lie along H, so a 1-D mask has shape (W,) and broadcasts over (..., H, W) by itself.

Sources, named in the docstrings by author and year:
  Cook, Stochastic sampling in computer graphics, ACM Trans Graph 5, 1986 (dart throwing)
  Tsai and Nishimura, variable-density k-space trajectories, Magn Reson Med 43, 2000
  Griswold et al., GRAPPA, Magn Reson Med 47, 2002
  Lustig, Donoho and Pauly, Sparse MRI, Magn Reson Med 58, 2007
  Winkelmann et al., golden-ratio radial profile order, IEEE Trans Med Imaging 26, 2007
  Vasanawala et al., Practical parallel imaging compressed sensing MRI, IEEE ISBI 2011
  Zbontar et al., fastMRI, arXiv:1811.08839, 2018
  Defazio, Offset sampling, arXiv:1912.01101, 2019"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mri_parts.basics import BadInput, Rng, Shape, choose
from mri_parts.fourier import ifft2c


@dataclass(frozen=True)
class MaskKind:
    """A kind of mask. Registered in MASKS, from a notebook too, sampling_mask, data sets and train.py know it by name.

    Attributes:
        draw: (sizes of the axes, R, center_fraction, generator) -> bool array that broadcasts to these sizes.
        axes: over which it chooses: ("W",) lines, ("H", "W") points, ("frames", "H", "W") anew in every frame.
        counts_centre: R is all samples / kept samples; otherwise the centre comes on top of every R-th line.
        whole_step: a grid of every n-th line, n whole.
        own_centre: its geometry is dense around DC: it ignores center_fraction.
    """

    draw: Callable[[Shape, float, float, Rng], np.ndarray]
    axes: tuple[str, ...] = ("W",)
    counts_centre: bool = True
    whole_step: bool = False
    own_centre: bool = False


MASKS: dict[str, MaskKind] = {}  # filled below, and by chapters
# Generators at rest: to seed one takes microseconds, to make one takes longer than to draw a mask with it.
_GENERATORS: list[Rng] = []


def mask_kinds(*axes: str) -> list[str]:
    """The keys of MASKS that choose over no other axes than these: ("W") for lines, ("H", "W") for all of images."""
    return [name for name, kind in MASKS.items() if set(kind.axes) <= set(axes)]


def grappa_mask(width: int, center_fraction: float, undersampling: int, offset: int = 0) -> Tensor:
    """Keep the centre of k-space and every `undersampling`-th line of the whole width.

    The lines of the regular grid that fall into the centre are not moved elsewhere, so
    the true acceleration is smaller than `undersampling`: print effective_acceleration. Griswold 2002.

    Args:
        width: number of phase-encode lines, W.
        center_fraction: share of the lines, in (0, 1], that is kept without gaps around DC.
        undersampling: step of the regular grid, a whole number of at least 1.
        offset: index of the first line of the grid, from 0 to undersampling - 1.
    Returns:
        torch.bool, shape (W,).
    Raises:
        BadInput: a number is outside its range, or the centre would have no line at all.
    """
    _check_numbers(undersampling, center_fraction)
    if width < 1:
        raise BadInput(f"width {width} is no number of lines: use at least 1")
    step = _whole_step(undersampling)
    if not 0 <= offset < step:
        raise BadInput(f"offset {offset} is outside 0..{step - 1}: take it modulo the undersampling, {step}")
    mask = _center((width,), center_fraction)
    mask[offset::step] = True
    return torch.from_numpy(mask)


def effective_acceleration(mask: Tensor) -> float:
    """How many times fewer samples a mask keeps than there are: the number a figure must print.

    Args:
        mask: bool (or 0/1) tensor of any shape; a (W,) mask counts lines, which is the same ratio.
    Returns:
        number of samples / number of kept samples, at least 1.
    Raises:
        BadInput: the mask keeps nothing.
    """
    mask = torch.as_tensor(mask)
    kept = int(torch.count_nonzero(mask))
    if kept == 0:
        raise BadInput(f"mask of shape {tuple(mask.shape)} keeps 0 samples: it needs at least one True")
    return mask.numel() / kept


def sampling_mask(
    kind: str,
    shape: Sequence[int],
    acceleration: float,
    center_fraction: float,
    seed: int | str | tuple[int, ...] | None = None,
) -> Tensor:
    """Draw a sampling mask of any kind in the table MASKS, whose functions' docstrings name the sources.

    The kinds that exist in fastMRI return the same lines as fastMRI for the same seed (Zbontar 2018).
    A file name as seed gives that file the same mask in every run, which is how fastMRI
    fixes its validation masks; None gives a new mask at every call, as in training.

    Args:
        kind: a key of MASKS.
        shape: shape of the k-space, (..., H, W), of a sequence (..., frames, H, W); only the kind's axes are read.
        acceleration: R, at least 1. All samples / kept samples, centre included, except for
            equispaced, magic and grappa: there it is the step of the grid, a whole number,
            and the centre comes on top.
        center_fraction: share of the samples, in (0, 1], that is kept without gaps around DC:
            lines for a 1-D kind, area (a block with the matrix's aspect) for a 2-D kind.
            radial, spiral and low_pass have a dense centre by their geometry and ignore it.
        seed: None, a whole number, a file name (without its folder) or a tuple of whole numbers.
    Returns:
        torch.bool, shape (W,) for a 1-D kind, (H, W) for a 2-D kind, (frames, 1, W) for kt and kt_gaussian:
        broadcasts to `shape`.
    Raises:
        BadInput: unknown kind, a number outside its range, or numbers that contradict
            each other; the message names the value and the mend.
    """
    record: MaskKind = choose(MASKS, kind, "mask kind")
    shape, axes = tuple(int(n) for n in shape), len(record.axes)
    if len(shape) < axes or min(shape) < 1:
        names = ", ".join(record.axes)
        raise BadInput(f"shape {shape} does not fit the {axes}-D kind {kind!r}: give (..., {names}), each at least 1")
    _check_numbers(acceleration, center_fraction)
    rng = _GENERATORS.pop() if _GENERATORS else Rng(0)
    try:
        rng.seed(tuple(map(ord, seed)) if isinstance(seed, str) else seed)
    except (TypeError, ValueError):
        raise BadInput(f"seed {seed!r}: give None, whole numbers from 0 to 2**32 - 1, or a file name") from None
    rng.randint(1)  # fastMRI first picks one of its (fraction, acceleration) pairs; here there is one
    mask = torch.from_numpy(np.asarray(record.draw(shape[-axes:], acceleration, center_fraction, rng), dtype=bool))
    _GENERATORS.append(rng)
    reached = effective_acceleration(mask)
    if record.own_centre and not 0.75 < reached / acceleration < 1.33:
        size = f"{shape[-2]} x {shape[-1]} samples"
        advice = f"the nearest is {reached:.2f}; use that or a larger matrix"
        raise BadInput(f"acceleration {acceleration} is impossible for {kind!r} on {size}: {advice}")
    return mask


# --- what the kinds share --------------------------------------------------


def _check_numbers(acceleration: float, center_fraction: float) -> None:
    """Refuse, in one line, an acceleration or a centre that no mask can have."""
    if not 0 < center_fraction <= 1:
        raise BadInput(f"center_fraction {center_fraction} is outside (0, 1]: it is a share, 0.08 means 8 %")
    if not 1 <= acceleration < math.inf:
        raise BadInput(f"acceleration {acceleration} is impossible: use a number of at least 1 (1 = keep all)")


def _whole_step(acceleration: float) -> int:
    """The acceleration as a step between lines; raises where it is not a whole number."""
    if acceleration != int(acceleration):
        nearest = f"{int(acceleration)} or {int(acceleration) + 1}"
        raise BadInput(f"acceleration {acceleration} is no whole step: use {nearest}, or kind 'equispaced_fraction'")
    return int(acceleration)


def _center(sizes: Shape, center_fraction: float, acceleration: float = 1) -> np.ndarray:
    """The fully kept centre, bool of shape `sizes`; raises if it is empty or above 1/acceleration of all samples."""
    mask = np.zeros(sizes, dtype=bool)
    share = center_fraction ** (1 / len(sizes))  # of each axis, so that the product is center_fraction
    low = [round(n * share) for n in sizes]
    pads = [(n - n_low + 1) // 2 for n, n_low in zip(sizes, low)]  # this rounding always takes in n // 2
    mask[tuple(slice(pad, pad + n_low) for pad, n_low in zip(pads, low))] = True
    kept = int(mask.sum())
    if kept == 0:
        size, least = " x ".join(map(str, sizes)), math.ceil(1000 * min(sizes) ** -len(sizes)) / 1000
        raise BadInput(f"center_fraction {center_fraction} keeps no sample of {size}: use {least:g} or more")
    if kept * acceleration > mask.size * (1 + 1e-9):
        largest = math.floor(100 * mask.size / kept) / 100  # rounded down, so that the advice works
        raise BadInput(
            f"acceleration {acceleration} is impossible with center_fraction {center_fraction}: the "
            f"centre alone is {kept} of {mask.size} samples; use at most {largest:g}, or a smaller center_fraction"
        )
    return mask


def _distance(sizes: Shape) -> np.ndarray:
    """Distance of every sample from DC, of shape `sizes`: 0 at DC, just below 1 at the middle of an edge."""
    axes = [(np.arange(n) - n // 2) / (n // 2 + 1) for n in sizes]
    return np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))


def _draw(density: np.ndarray, count: int, rng: Rng) -> np.ndarray:
    """Draw `count` different samples, each with a chance in proportion to `density` (inf: certain)."""
    # A race: a sample arrives after an exponential waiting time with its density as rate. The first to
    # arrive are a weighted draw without replacement, and an infinite rate arrives at time 0.
    arrival = rng.exponential(size=density.size) / density.ravel()
    mask = np.zeros(density.size, dtype=bool)
    mask[np.argsort(arrival, kind="stable")[:count]] = True
    return mask.reshape(density.shape)


def _bisect(draw: Callable[[float], np.ndarray], low: float, high: float, target: int) -> np.ndarray:
    """Find the setting between low (too few samples) and high (too many) whose mask has about `target` samples."""
    best = draw(high)  # a full mask, when all samples are wanted
    for _ in range(16):
        if abs(int(best.sum()) - target) <= 0.005 * target:
            break
        middle = (low + high) / 2
        mask = draw(middle)
        if abs(int(mask.sum()) - target) < abs(int(best.sum()) - target):
            best = mask
        low, high = (middle, high) if mask.sum() < target else (low, middle)
    return best


def split_lines(mask: Tensor, share: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Measured lines in two parts: those to see, the central six among them, and those to be judged by, one at least.

    Args:
        mask: bool (..., W).
        share: of the lines outside the centre that are to judge, on average.
        random: what the draw comes from.
    Returns:
        two masks like `mask`.
    """
    place = torch.arange(mask.shape[-1], device=mask.device) - mask.shape[-1] // 2
    score = torch.rand(mask.shape, generator=random).to(mask.device)
    score = score.masked_fill(~mask | ((place >= -3) & (place < 3)), 2)
    hidden = (score <= score.amin(-1, keepdim=True).clamp(min=share)) & (score < 2)
    return mask & ~hidden, hidden


# --- 1-D kinds: lines along H ----------------------------------------------


def _random(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """A coin toss for every line outside the centre; R holds on average, centre included (Zbontar 2018)."""
    center = _center(shape, center_fraction, acceleration)
    n, n_low = center.size, int(center.sum())
    if n_low == n:
        return center
    probability = (n / acceleration - n_low) / (n - n_low)
    return center | (rng.uniform(size=n) < probability)


def _equispaced(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """Every R-th line from a random first one; the centre is extra, the true factor below R (Zbontar 2018)."""
    step = _whole_step(acceleration)
    return grappa_mask(shape[0], center_fraction, step, offset=rng.randint(0, step)).numpy()


def _equispaced_fraction(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """Every n-th line, n widened so that the lines make about R, centre included (Zbontar 2018)."""
    mask = _center(shape, center_fraction, acceleration)
    n, n_low = mask.size, int(mask.sum())
    if acceleration == 1:  # where fastMRI's rounding leaves the last line out
        return np.ones_like(mask)
    if n_low == n or n_low * acceleration >= n:  # the centre is all there is to keep
        return mask
    step = acceleration * (n_low - n) / (n_low * acceleration - n)  # not whole: single steps are rounded below
    first = rng.randint(0, round(step))
    # fastMRI stops at n - 1, so that the last line is never taken. Its masks are the standard: keep that.
    mask[np.around(np.arange(first, n - 1, step)).astype(int)] = True
    return mask


def _magic(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """Every R-th line, the halves shifted against each other; centre extra, true factor below R (Defazio 2019)."""
    center = _center(shape, center_fraction)
    return center | (acceleration == 1) | _half_grids(shape[0], _whole_step(acceleration), rng)


def _magic_fraction(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """As magic, with a wider whole step, so that the lines make roughly R, centre included (Defazio 2019)."""
    center = _center(shape, max(center_fraction, 1 / shape[0]), acceleration)  # one line at least
    outside = round(center.size / acceleration) - int(center.sum())
    if outside == 0:
        return center
    return center | (acceleration == 1) | _half_grids(center.size, round(center.size / outside), rng)


def _half_grids(n: int, step: int, rng: Rng) -> np.ndarray:
    """Every step-th line, counted from DC outwards, from different first lines on the two sides; bool (n,)."""
    # Without phase, line -k of k-space mirrors line k. Unequal starts avoid measuring such a pair (if step > 2).
    offset = rng.randint(0, step)
    first_right, first_left = (offset + 1, offset + 3) if offset % 2 == 0 else (offset + 2, offset)
    frequency = np.arange(n) - n // 2
    beyond_first = np.where(frequency >= 0, frequency - first_right, -frequency - first_left)
    return (beyond_first >= 0) & (beyond_first % step == 0)


def _grappa(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """Every R-th line from line 0 (grappa_mask); the centre is extra, the true factor below R (Griswold 2002)."""
    return grappa_mask(shape[0], center_fraction, _whole_step(acceleration)).numpy()


def _variable_density(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """Random lines with density (1 - distance)^2 outside the centre; exactly R, centre included (Lustig 2007)."""
    center = _center(shape, center_fraction, acceleration)
    density = np.where(center, np.inf, (1 - _distance(shape)) ** 2)
    return _draw(density, round(center.size / acceleration), rng)


# --- 2-D kinds: single points of the (H, W) grid ---------------------------


def _gaussian_2d(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """Random points with Gaussian density around a full block; exactly R, centre included (Lustig 2007)."""
    center = _center(shape, center_fraction, acceleration)
    density = np.where(center, np.inf, np.exp(-0.5 * (_distance(shape) / 0.4) ** 2))
    return _draw(density, round(center.size / acceleration), rng)


def _poisson_disc(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """Random points that keep a distance, larger outwards; R within about 2 %, centre included (Vasanawala 2011).

    The radius of a point grows as 1 + 3 * distance from DC. Outside the centre two points are never nearer
    than the smaller of their radii, and no further point fits in: aliasing looks like noise, without clumps
    and holes. The rings are where the radius passes 1, sqrt(2), 2: distances on a grid. Source: Cook 1986.
    """
    width = shape[1]
    center = _center(shape, center_fraction, acceleration)
    target = round(center.size / acceleration)
    if target == center.sum():
        return center
    relative_radius = 1 + 3 * _distance(shape)
    darts = rng.permutation(np.flatnonzero(~center))  # the same darts at every scale: a smooth search

    def throw(inverse_scale: float) -> np.ndarray:
        """Throw all darts at radius relative_radius / inverse_scale: a small inverse_scale leaves few points."""
        # Squared distances are whole numbers, so all radii up to the next one block the same disc.
        level = np.ceil((relative_radius / inverse_scale) ** 2).astype(int).ravel()
        margin = min(math.isqrt(level.max()) + 1, max(shape))  # lets a disc stick out of the grid without a test
        stride = width + 2 * margin
        dy, dx = np.mgrid[-margin : margin + 1, -margin : margin + 1]
        discs = {}
        rows, columns = np.divmod(darts, width)
        places = (rows + margin) * stride + columns + margin
        blocked = bytearray((shape[0] + 2 * margin) * stride)  # reading one item is faster than from an array
        blocked_array = np.frombuffer(blocked, dtype=np.uint8)  # the same memory, to mark a disc at once
        kept = []
        for dart, place, n in zip(darts.tolist(), places.tolist(), level[darts].tolist()):
            if not blocked[place]:
                kept.append(dart)
                if n not in discs:
                    discs[n] = (dy * stride + dx)[dy**2 + dx**2 < n]
                blocked_array[place + discs[n]] = 1
        mask = center.ravel().copy()
        mask[kept] = True
        return mask.reshape(shape)

    low = 1.0
    while throw(low).sum() > target:
        low /= 2
    high = 2 * low if low < 1 else float(relative_radius.max())  # at radius 1 everywhere all points fit
    return _bisect(throw, low, high, target)


def _radial(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """Golden-angle spokes through DC on the grid; R to half a spoke, ignores center_fraction (Winkelmann 2007)."""
    height, width = shape
    target = height * width / acceleration
    angle = rng.uniform(0, math.pi)
    steps = np.arange(-max(shape), max(shape) + 1)  # from DC to beyond any corner, on both sides
    mask = np.zeros(shape, dtype=bool)
    while mask.sum() < target:
        previous = mask.copy()
        dy, dx = math.sin(angle), math.cos(angle)
        stretch = max(abs(dy), abs(dx))  # one step = one sample along the longer axis: a line without gaps
        _mark(mask, steps * dy / stretch, steps * dx / stretch)
        angle += math.radians(111.246)
    return previous if previous.any() and target - previous.sum() < mask.sum() - target else mask


def _spiral(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """Four spiral arms, wider apart outwards; R within about 2 %, ignores center_fraction (Tsai 2000)."""
    height, width = shape
    arms = rng.uniform(0, 2 * math.pi) + np.arange(4)[:, None] * math.pi / 2

    def wind(turns: float) -> np.ndarray:
        """Arms from DC to the corners; while a time runs from 0 to 1, angle = turns * time, radius = time^5."""
        length = math.hypot(height, width) / 2 * (1 + 2 * math.pi * turns / 6)  # of an arm, from above
        time = np.linspace(0, 1, math.ceil(2 * length)) ** (1 / 6)  # half a sample per step all along the arm
        angle = arms + 2 * math.pi * turns * time
        mask = np.zeros(shape, dtype=bool)
        _mark(mask, height / math.sqrt(2) * time**5 * np.sin(angle), width / math.sqrt(2) * time**5 * np.cos(angle))
        return mask

    target = round(height * width / acceleration)
    turns = 1.0
    while wind(turns).sum() < target:
        turns *= 2
    return _bisect(wind, 0.0, turns, target)


def _mark(mask: np.ndarray, dy: np.ndarray, dx: np.ndarray) -> None:
    """Set the samples nearest to the points DC + (dy, dx), in place; points outside the grid are left out."""
    y = mask.shape[0] // 2 + np.rint(dy).astype(int)
    x = mask.shape[1] // 2 + np.rint(dx).astype(int)
    inside = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
    mask[y[inside], x[inside]] = True


def _low_pass(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """Only the central block, 1/sqrt(R) of either axis: low resolution; R to rounding, ignores center_fraction."""
    return _center(shape, max(1 / acceleration, 1 / min(shape) ** 2))  # one sample at least


MASKS |= {
    "random": MaskKind(_random),
    "equispaced": MaskKind(_equispaced, counts_centre=False, whole_step=True),
    "equispaced_fraction": MaskKind(_equispaced_fraction),
    "magic": MaskKind(_magic, counts_centre=False, whole_step=True),
    "magic_fraction": MaskKind(_magic_fraction, whole_step=True),
    "grappa": MaskKind(_grappa, counts_centre=False, whole_step=True),
    "variable_density": MaskKind(_variable_density),
    "gaussian_2d": MaskKind(_gaussian_2d, ("H", "W")),
    "poisson_disc": MaskKind(_poisson_disc, ("H", "W")),
    "radial": MaskKind(_radial, ("H", "W"), own_centre=True),
    "spiral": MaskKind(_spiral, ("H", "W"), own_centre=True),
    "low_pass": MaskKind(_low_pass, ("H", "W"), own_centre=True),
}


def matched_sampling(kind: str, effective: float, center_fraction: float) -> tuple[float, float]:
    """The acceleration and centre with which a kind keeps one in `effective` samples, centre included.

    Most kinds count the centre, so their acceleration is `effective` itself. Grids of a whole step s
    do not come in any size, but their centre does: a centre c and every s-th line outside it keep
    c + (1 - c) / s of the lines. Solved for c; the step whose c is nearest to the one asked for is taken.

    Args:
        kind: a key of MASKS.
        effective: effective acceleration that is wanted, at least 1.
        center_fraction: share of k-space that is wanted as centre, below 1 / effective.
    Returns:
        (acceleration, center_fraction), to be passed to sampling_mask or train.py.
    Raises:
        BadInput: unknown kind, or numbers that no mask can have.
    """
    record: MaskKind = choose(MASKS, kind, "mask kind")
    _check_numbers(effective, center_fraction)
    if center_fraction * effective > 1:
        raise BadInput(
            f"acceleration {effective} is impossible with center_fraction {center_fraction}: "
            f"use at most {math.floor(100 / center_fraction) / 100:g}, or a smaller center_fraction"
        )
    if not record.whole_step:
        outside = 1.0 if record.counts_centre else (1 - center_fraction) / max(1 - center_fraction * effective, 1e-9)
        return effective * outside, center_fraction

    def center(step: int) -> float:
        return (1 / effective - 1 / step) / (1 - 1 / step)

    first = math.floor(effective) + 1  # smaller steps alone keep too many lines
    step = min(range(first, 8 * first), key=lambda s: abs(center(s) - center_fraction))
    # a kind that counts the centre takes the share of centre and grid together and finds the step itself
    reached = max(1.0, 1 / (center(step) + 1 / step))
    return reached if record.counts_centre else float(step), center(step)


def point_spread(mask: Tensor, size: Sequence[int]) -> Tensor:
    """|Point-spread function| of a mask: what zero filling makes of one bright pixel in the middle (Lustig 2007).

    Args:
        mask: bool, broadcastable to size.
        size: (H, W) of the k-space.
    Returns:
        (H, W) float32, 1 at the peak [H // 2, W // 2].
    """
    spread = ifft2c(mask.expand(tuple(size)).to(torch.complex64)).abs()
    return spread / spread.max()
