"""What is called like a network, tuned, run on volumes and scored."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mri_parts.basics import BadInput, choose, mean
from mri_parts.classical import low_rank, slice_by_slice, total_variation, wavelet
from mri_parts.dataset import Sample, SliceDataset
from mri_parts.fourier import center_crop, fft2c, ifft2c
from mri_parts.masks import split_lines
from mri_parts.metrics import METRICS, measure, ssdu_loss, ssim
from mri_parts.processes import gather, own_share, progress
from mri_parts.scanner import noise_free

# What turns measured k-space into an image: the forward of every network, zero_filled, classical_method(name, weight).
Method = Callable[[Tensor, Tensor, Sequence[int]], Tensor]


def zero_filled(kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
    """The baseline of baselines: unmeasured samples stay zero; the mask is not used."""
    return center_crop(ifft2c(kspace), size)


# The classical methods, and the weights that tune tries for each: wide enough for 4x and 8x, clean and noisy.
CLASSICAL: dict[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "tv": (total_variation, (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)),
    "wavelet": (wavelet, (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008)),
    # told of the smooth phase, as the networks are
    "phase_tv": (functools.partial(total_variation, imaginary=3.0), (0.0005, 0.001, 0.002, 0.004, 0.008)),
    "phase_wavelet": (functools.partial(wavelet, imaginary=3.0), (0.0005, 0.001, 0.002, 0.004, 0.008)),
    "low_rank": (low_rank, (0.00001, 0.0001, 0.001, 0.01, 0.1)),
}


def classical_method(name: str, weight: float, **options: Any) -> Method:
    """A method of CLASSICAL with a fixed weight (and options of its function), called like a network."""
    function, _ = choose(CLASSICAL, name, "classical method")
    one_by_one = slice_by_slice(function)
    return lambda kspace, mask, size: center_crop(one_by_one(kspace, mask, weight, **options), size)


def tv_method(weight: float, iterations: int = 300) -> Method:
    """total_variation with a fixed weight, called like a network."""
    return classical_method("tv", weight, iterations=iterations)


def average(*methods: Method) -> Method:
    """The mean of several methods' images, called like a network: errors that are not alike cancel in part.

    Complex images where all methods return such, else magnitudes.
    """

    def combined(kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        images = [method(kspace, mask, size) for method in methods]
        if not all(image.is_complex() for image in images):
            images = [image.abs() for image in images]
        return torch.stack(images).mean(0)

    return combined


def mirrored(method: Method) -> Method:
    """The mean over a scan and its mirror images along rows, columns and both, each mirrored back.

    A network has seen few heads and makes other errors in a mirrored one, at four times the cost. Known as geometric
    self-ensemble: Lim et al. 2017, CVPR workshops, arXiv 1707.02921.
    """

    def mirror(x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Flipped about the centre at n // 2, which k-space and its image have in common."""
        return x.flip(axes).roll([1 - x.shape[axis] % 2 for axis in axes], axes) if axes else x

    def combined(kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        ways: list[tuple[int, ...]] = [(), (-1,), (-2,), (-2, -1)]
        whole = kspace.shape[-2:]
        images = [mirror(method(mirror(kspace, way), mirror(mask, way), whole), way) for way in ways]
        return center_crop(torch.stack(images).mean(0), size)

    return combined


def adapted(
    network: nn.Module, steps: int = 30, rate: float = 0.0003, then: Callable[[Method], Method] | None = None
) -> Method:
    """A trained network that goes on learning from the scans that it is given, without references, for these alone.

    Half of the measured lines are guessed from the other half, drawn anew at each step. A seventh of all lines takes no
    part; the network that guesses those best reconstructs the scans. Zero-shot self-supervised learning: Yaman et al.
    2022, ICLR, arXiv 2102.07737. Notebook 17 has it by hand.

    Args:
        network: for one coil and masks of lines, (kspace, mask, size) -> complex image; it stays as it is.
        steps: of learning, with all scans of a call together.
        rate: learning rate of Adam. The brightest pixel of the zero-filled images is 1 while it learns.
        then: what is made of the network that has learned, `mirrored` for example.
    Raises:
        BadInput: the mask leaves out single points, so that there are no lines to guess.
    """

    def learn(kspace: Tensor, mask: Tensor) -> nn.Module:
        def distance(seen: Tensor, judged: Tensor) -> Tensor:
            return ssdu_loss(fft2c(student(kspace * seen, seen, kspace.shape[-2:])), kspace * judged)

        random = torch.Generator().manual_seed(1)
        student, (rest, kept_out) = copy.deepcopy(network), split_lines(mask, 0.15, random)
        optimizer, least = torch.optim.Adam(student.parameters(), rate), math.inf
        for _ in range(steps + 1):
            with torch.no_grad():
                left = float(distance(rest, kept_out))
            if left < least:
                least, best = left, copy.deepcopy(student.state_dict())
            optimizer.zero_grad()
            distance(*split_lines(rest, 0.5, random)).backward()
            optimizer.step()
        student.load_state_dict(best)
        return student

    def method(kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        if mask.shape[-2] != 1:
            raise BadInput(
                f"adaptation guesses lines, and this mask {tuple(mask.shape)} leaves out points: take another"
            )
        with torch.inference_mode(False), torch.enable_grad():
            learned = learn(kspace / ifft2c(kspace).abs().max(), mask.clone())
        return (then(learned) if then else learned)(kspace, mask, size)

    return method


@torch.inference_mode()
def tune(
    make_method: str | Callable[[float], Method],
    train_set: SliceDataset,
    weights: Sequence[float] = (),
    slices: int = 16,
    device: str = "cpu",
    metric: Callable[..., float] = ssim,
    further: int = 8,
) -> float:
    """The weight with the highest mean SSIM, or other metric, on a few training slices.

    Args:
        make_method: a name of CLASSICAL, or a function that makes a method of a weight.
        train_set: slices that the method is not scored on later.
        weights: to choose from; by default those of CLASSICAL. Where the best is the first or the last of them, the
            search goes on beyond it, for as long as that is better, and for at most `further` steps.
        slices: how many, spread evenly over the set.
        device: where to reconstruct.
        metric: ssim or psnr.
    """
    if isinstance(make_method, str):
        weights = weights or choose(CLASSICAL, make_method, "classical method")[1]
        make_method = functools.partial(classical_method, make_method)
    if not weights or min(slices, len(train_set)) < 1:
        raise BadInput(f"tuning with {len(weights)} weights on {min(slices, len(train_set))} slices: give some of both")
    picks = torch.linspace(0, len(train_set) - 1, min(slices, len(train_set))).long().tolist()
    groups: dict[tuple[int, ...], list[Sample]] = {}
    for i in picks:
        groups.setdefault(train_set.size(i), []).append(train_set[i])
    # Four at a time: small images take half as long, large ones as long as one by one.
    parts = [group[k : k + 4] for group in groups.values() for k in range(0, len(group), 4)]
    batches = [Sample.stack(part).to(device) for part in parts]

    def quality(weight: float) -> float:
        images = [reconstruct(make_method(weight), batch) for batch in batches]
        slices = (s for batch, image in zip(batches, images) for s in zip(batch.target, image, batch.maximum))
        return mean(metric(target[None], image[None], float(peak)) for target, image, peak in slices)

    found = {weight: quality(weight) for weight in progress(sorted(weights), "tuning")}
    for _ in range(further):
        low, *middle, high = sorted(found) if len(found) > 1 else (0.0, 0.0)
        best = max(found, key=lambda weight: found[weight])
        next_to = {low: (middle or [high])[0], high: (middle or [low])[-1]}.get(best, 0.0)
        if best * next_to == 0:  # between two others, or alone, or no weight at all
            break
        beyond = float(f"{best**2 / next_to:.6g}")
        found[beyond] = quality(beyond)
    return max(found, key=lambda weight: found[weight])


def reconstruct(method: Method, batch: Sample, precision: str = "float32") -> Tensor:
    """Magnitude images (batch, [frames ..,] h, w) float32 of a batch; precision as train.py's parameter.

    Where the batch's target is k-space, because lines are hidden (see SliceDataset), k-space (batch, H, W) complex64.

    Raises:
        BadInput: the method says which axes it takes (a network does: `axes`), and the batch has others; or k-space
            is asked for, and the method returns magnitudes.
    """
    axes = getattr(method, "axes", batch.axes)
    if axes != batch.axes:
        raise BadInput(f"k-space is ({', '.join(batch.axes)}), this network takes ({', '.join(axes)}): choose another")
    device = batch.kspace.device.type
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        image = method(batch.kspace, batch.mask, batch.target.shape[-2:])
    if not batch.target.is_complex():
        return image.abs().float()
    if not image.is_complex():
        raise BadInput("loss ssdu compares k-space, and this network returns magnitudes: take another model, or loss")
    return fft2c(image)


@torch.inference_mode()
def whole_image(method: Method, batch: Sample) -> Tensor:
    """The complex image of a batch of one slice and one coil, over its whole field of view: (H, W).

    So the samples of its k-space are those of the scan. A method that returns magnitudes gets the zero-filled phase.
    """
    image = method(batch.kspace, batch.mask, batch.kspace.shape[-2:])[0]
    return image if image.is_complex() else torch.polar(image, ifft2c(batch.kspace[0]).angle())


@dataclass(frozen=True)
class Machine:
    """Where and in which pieces a network runs.

    Attributes:
        device: cpu or cuda.
        batch_size: slices at a time.
        precision: of the convolutions: float32, tf32 or bfloat16. A CPU trains with it, and scores in float32.
        workers: threads that read the next slices meanwhile; 0 reads in between.
    """

    device: str = "cpu"
    batch_size: int = 8
    precision: str = "float32"
    workers: int = 0


def bfloat16_is_fast() -> bool:
    """Whether this computer's processor multiplies bfloat16 itself, so that a training step takes about half the time.

    Linux tells, on x86; elsewhere nobody does, and the answer is no.
    """
    told = Path("/proc/cpuinfo")
    return told.is_file() and re.search(r"\b(avx512_bf16|amx_bf16)\b", told.read_text(errors="replace")) is not None


def choose_machine(device: str = "auto", batch_size: int = 8, precision: str = "auto", workers: int = -1) -> Machine:
    """The machine that is there: a GPU if PyTorch finds one, with bfloat16 where it is fast, and four readers.

    On a GPU, PyTorch then multiplies as precisely as that says.

    Args:
        device: auto, cpu or cuda.  precision: auto, float32, tf32 or bfloat16.  workers: -1 leaves it to the device.
    Raises:
        BadInput: an unknown device or precision, or a GPU where PyTorch finds none.
    """
    choose({"auto": None, "cpu": None, "cuda": None}, device, "device")
    choose({"auto": None, "float32": None, "tf32": None, "bfloat16": None}, precision, "precision")
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise BadInput("device 'cuda': PyTorch finds no GPU: choose cpu or auto")
    gpu = device != "cpu" and found
    if precision == "auto":  # GPUs before 2020 and most CPUs only emulate bfloat16, slowly
        halves = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else bfloat16_is_fast()
        precision = "bfloat16" if halves else "float32"
    if gpu:
        # TF32 rounds factors to 10 bits: enough for convolutions, if asked for, but not for GRAPPA's equations.
        torch.backends.cudnn.allow_tf32 = precision != "float32"
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True  # batches of one size: the fastest convolution is looked for once
    return Machine("cuda" if gpu else "cpu", batch_size, precision, (4 if gpu else 0) if workers == -1 else workers)


@torch.inference_mode()
def reconstruct_volume(
    method: Method, dataset: SliceDataset, volume: int, machine: Machine = Machine()
) -> tuple[Tensor, Tensor, float]:
    """Reconstruct those slices of one volume that a data set holds.

    Args:
        method: a network or a classical method.
        dataset: where the slices come from.
        volume: index into dataset.volumes.
        machine: where to reconstruct.
    Returns:
        reconstruction and target, float32 (slices, h, w) on the CPU, and the seconds that the method
        took, without the reading. Frames of a sequence count as slices.
    Raises:
        BadInput: the network is in training mode.
    """
    if isinstance(method, nn.Module) and method.training:
        raise BadInput("the network is in training mode, where dropout and batch statistics change it: call .eval()")
    chosen = [i for i, (v, _) in enumerate(dataset.slices) if v == volume]
    precision = "float32" if machine.device == "cpu" else machine.precision
    images, targets, seconds = [], [], 0.0
    with ThreadPoolExecutor(max(machine.workers, 1)) as pool:
        samples = (pool.map if machine.workers else map)(dataset.__getitem__, chosen)
        while group := list(itertools.islice(samples, machine.batch_size)):
            batch = Sample.stack(group).to(machine.device)
            start = time.perf_counter()
            images.append(reconstruct(method, batch, precision).cpu())  # .cpu() waits for a GPU to finish
            seconds += time.perf_counter() - start
            targets.append(batch.target.cpu())
    return torch.cat(images).flatten(0, -3), torch.cat(targets).flatten(0, -3), seconds


class Scored(NamedTuple):
    """How a method did: {metric: value} and reconstruction (slices, h, w) of each volume, seconds per slice."""

    rows: list[dict[str, float]]
    images: list[Tensor]
    seconds: float


def score(
    method: Method,
    dataset: SliceDataset,
    machine: Machine = Machine(),
    keep: bool = True,
    metrics: Mapping[str, Callable[..., float]] = METRICS,
    quick: bool = False,
) -> Scored:
    """Every metric of every volume of a data set, shared among the processes if there are several.

    Args:
        method: a network or a classical method.
        dataset: validation slices, whose masks do not change.
        machine: where to reconstruct.
        keep: the reconstructions too; the first process alone gets them.
        metrics: name -> function of (target, reconstruction), each (slices, h, w).
        quick: only these metrics, nothing in the head and nothing against the noise-free image; see measure.
    """
    found, images = [], []
    for index in progress(own_share(range(len(dataset.volumes))), "validation"):
        image, target, spent = reconstruct_volume(method, dataset, index, machine)
        if quick:
            row = {name: metric(target, image) for name, metric in metrics.items()}
        else:
            row = measure(target, image, metrics, _noise_free_target(dataset, index))
        found.append((row, spent, len(image)))
        images += [image] if keep else []
    every, seconds, slices = zip(*gather(found))
    shared = [name for name in every[0] if all(name in row for row in every)]  # some files may be simulated, others not
    rows = [{name: row[name] for name in shared} for row in every]
    return Scored(rows, gather(images, by_all=False), sum(seconds) / sum(slices))


def _noise_free_target(dataset: SliceDataset, index: int) -> Tensor | None:
    """The reference of the slices of one volume without its noise, where that is known."""
    volume = dataset.volumes[index]
    slices = [noise_free(volume, s) for v, s in dataset.slices if v == index]
    images = [volume.magnitude(zero_filled(k, k, volume.target_size)) for k in slices if k is not None]
    return torch.stack(images) if len(images) == len(slices) else None


class PerfectGuess(SliceDataset):
    """A data set whose unmeasured samples are filled in with those of the noise-free scan, for simulated files.

    Zero filling of these slices keeps the measured samples as they are and guesses the others perfectly, though without
    their noise, which nobody knows. In the head nobody can surpass it but by luck. In the whole image a method can that
    is as bright in the air as noise makes it on average (notebook 09).
    """

    def __init__(self, dataset: SliceDataset) -> None:
        vars(self).update(vars(dataset))

    def sample(self, index: int) -> Sample:
        """As SliceDataset.sample; what is not known to be simulated is left as it is."""
        sample, (v, s) = super().sample(index), self.slices[index]
        guess = noise_free(self.volumes[v], s)
        kspace = sample.kspace if guess is None else torch.where(sample.mask, sample.kspace, guess)
        return dataclasses.replace(sample, kspace=kspace)


def score_each(
    methods: Mapping[str, Method],
    dataset: SliceDataset,
    machine: Machine = Machine(),
    metrics: Mapping[str, Callable[..., float]] = METRICS,
) -> dict[str, Scored]:
    """What score returns, of several methods; for simulated files also of what is attainable, see PerfectGuess.

    Args:
        methods: the first one fills nothing in, the last one is the network. "attainable" comes before the network.
        dataset, machine, metrics: as in score.
    """
    scores = {name: score(method, dataset, machine, metrics=metrics) for name, method in methods.items()}
    start, network = next(iter(scores)), list(scores)[-1]
    if "psnr_truth" in scores[start].rows[0] and start != network:
        last = scores.pop(network)
        scores["attainable"] = score(methods[start], PerfectGuess(dataset), machine, metrics=metrics)
        scores[network] = last
    return scores
