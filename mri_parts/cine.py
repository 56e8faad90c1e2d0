"""Chapter 14: beating hearts. Simulation, cine.npz, space-time networks, total variation along time."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from mri_parts.basics import BadInput, Rng, Shape, read_call, replace_file
from mri_parts.classical import Acquisition, total_variation, view_sharing
from mri_parts.dataset import Sample, SliceDataset
from mri_parts.fourier import center_crop, fft2c, ifft2c
from mri_parts.heart import demo_cine
from mri_parts.masks import MASKS, MaskKind, _center, _distance, _draw
from mri_parts.methods import Machine, Method, tune, zero_filled
from mri_parts.metrics import LOSSES, psnr, ssim
from mri_parts.networks import (
    INNER_NETWORKS,
    MODEL_DEFAULTS,
    MODELS,
    ResNet,
    UNet,
    Unrolled,
    inner_network,
    zero_filling,
)
from mri_parts.processes import rank_and_size
from mri_parts.tasks import TASKS, Task
from mri_parts.volumes import LARGEST_SLICE, READERS, Reader, Volume, _reading

AXES = ("slices", "frames", "H", "W")


@dataclass(frozen=True, kw_only=True)
class CineVolume(Volume):
    """One sequence of a cine.npz file, whose k-space is computed from its images; shape (1, frames, H, W).

    Attributes:
        path: a name of its own for each sequence, beside the file; there is no such file.
        store: the file.
        number: of the sequence in the file.
    """

    axes: tuple[str, ...] = AXES
    store: Path
    number: int

    def sources(self) -> Sequence[Path]:
        """See Volume.sources."""
        return [self.store]

    def kspace(self, index: int) -> Tensor:
        """k-space of the sequence (its only "slice" is 0): complex64 (frames, H, W)."""
        return fft2c(self._images(index))

    def target(self, index: int) -> Tensor:
        """The magnitude of the fully sampled sequence: float32 (frames, H, W)."""
        return self._images(index).abs()

    def fingerprints(self) -> list[str]:
        """A hash of the middle row of all frames, see Volume.fingerprints."""
        rows = self._images(0)[:, self.shape[-2] // 2].contiguous() + 0
        return [hashlib.sha1(rows.numpy().tobytes()).hexdigest()]

    def _images(self, index: int) -> Tensor:
        if index != 0:
            raise BadInput(f"{self.path}: no slice {index}: a sequence is one, number 0")
        with _reading(self.store, f"sequence {self.number}"), np.errstate(over="ignore"):
            images = torch.from_numpy(_cine_samples(self.store)[0][self.number].astype(np.complex64))
        if not torch.isfinite(images.abs()).all():
            raise BadInput(f"{self.store}: sequence {self.number} holds NaN or infinite values: repair or remove it")
        if not images.any():
            raise BadInput(f"{self.store}: sequence {self.number} is all zero: remove it")
        return images


LARGEST_UNPACKED = 2**28  # bytes of a compressed cine.npz, which is unpacked in memory; others are read piece by piece


@functools.lru_cache(maxsize=4)
def _cine_samples(path: Path) -> tuple[np.ndarray, bool]:
    """The array `dataset` of an .npz file, (samples, frames, rows, columns), and whether the file calls it simulated.

    The array is mapped from the disk if it can be.

    Nothing is allocated before the header's declared shape was held against the size of what is there.
    """
    try:
        with zipfile.ZipFile(path) as zipped:
            names = zipped.namelist()
            if "dataset.npy" not in names:
                keys = ", ".join(name.removesuffix(".npy") for name in names[:9])
                raise BadInput(f"{path}: no key 'dataset' (found: {keys or 'nothing'}): save the sequences under it")
            info, simulated = zipped.getinfo("dataset.npy"), "simulated.npy" in names
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a limit
                raise BadInput(f"{path}: compressed by method {info.compress_type}: save it with numpy.savez")
            with zipped.open(info) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                try:
                    shape, fortran, dtype = read(member)
                except (SyntaxError, tokenize.TokenError, MemoryError) as error:  # numpy parses it as Python
                    raise ValueError("the array's header is damaged") from error
                start = member.tell()
        if dtype.kind not in "fciu":
            kind = f"{dtype}"[:80]
            raise BadInput(f"{path}: dataset is {kind}, not numbers: objects are never unpickled, save an array")
        if len(shape) != 4 or 0 in shape:
            raise BadInput(f"{path}: dataset has shape {shape}: expected (samples, frames, rows, columns)")
        if shape[0] > 10_000:
            raise BadInput(f"{path}: dataset has shape {shape}: more than 10000 samples are not read, split the file")
        size = math.prod(shape) * dtype.itemsize
        if size + start != info.file_size:
            raise ValueError(f"the header declares {shape}, which is not what follows")
        if math.prod(shape[1:]) > LARGEST_SLICE:
            raise BadInput(f"{path}: sequences of {shape[1:]}: more than {LARGEST_SLICE} samples each are not read")
        if info.compress_type == zipfile.ZIP_STORED:
            with open(path, "rb") as file:
                file.seek(info.header_offset + 26)
                lengths = np.frombuffer(file.read(4), "<u2")  # of the file's name and of the extra field
            offset = info.header_offset + 30 + int(lengths.sum()) + start
            return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C"), simulated
        if size > LARGEST_UNPACKED:
            raise BadInput(f"{path}: {size / 2**20:.0f} MiB compressed: save it with numpy.savez, uncompressed")
        with np.load(path, allow_pickle=False) as file:
            return file["dataset"], simulated
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error) as error:
        raise OSError(f"not an .npz file, or a truncated one: {error}") from error


def read_cine(path: str | Path) -> list[Volume]:
    """The sequences of a cine.npz file, each a volume and a subject of its own.

    Args:
        path: the file or its folder. Key `dataset`: (samples, frames, rows, columns), real or complex images of one
            heartbeat (or more), any units. Complex ones give the k-space of a scan; from real ones it is simulated,
            which train.py says, and scores come out too good (looks_magnitude_only). Columns are the phase encodes.
    Raises:
        BadInput: no file, no such key, wrong axes, objects, a header that does not fit what follows.
    """
    path = Path(path)
    file = path / "cine.npz" if os.path.isdir(path) else path  # Path.is_dir raises for names that are too long
    if not os.path.isfile(file):
        raise BadInput(f"{file}: no such file: data/README.md tells what a cine.npz holds")
    with _reading(file, "the file"):
        _cine_samples.cache_clear()  # the file may have been written anew
        samples, simulated = _cine_samples(file)
    names = [f"{file.parent.name}_{number:03d}" for number in range(len(samples))]
    return [
        CineVolume(
            path=file.with_name(name + ".h5"),  # what its reconstruction is called
            shape=(1, *samples.shape[1:]),
            target_size=samples.shape[2:],
            acquisition="CINE" if samples.dtype.kind == "c" else "CINE, k-space simulated from magnitudes",
            patient_id=name,
            columns=(0, samples.shape[-1]),
            attributes={"simulated": True} if simulated else {},
            store=file,
            number=number,
        )
        for number, name in enumerate(names)
    ]


READERS["cine.npz"] = Reader(lambda folder: (folder / "cine.npz").is_file(), read_cine)


# Masks with other lines in every frame, of density as in k-t FOCUSS: Jung et al. 2009, MRM 61(1).


def _kt(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """int(W / R) lines, new in every frame, centre included, density (1 - distance)^2 outside it (Jung 2009)."""
    return _new_lines(shape, acceleration, center_fraction, rng, (1 - _distance(shape[-1:])) ** 2)


def _kt_gaussian(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """int(W / R) lines, new in every frame, centre included, Gaussian density plus 1 / 2R outside it (Jung 2009)."""
    frequency = np.arange(shape[-1]) - shape[-1] / 2
    density = np.exp(-0.5 * (frequency / (shape[-1] / 10)) ** 2) + 1 / (2 * acceleration)
    return _new_lines(shape, acceleration, center_fraction, rng, density)


def _new_lines(shape: Shape, acceleration: float, center_fraction: float, rng: Rng, density: np.ndarray) -> np.ndarray:
    """Lines by density around the centre: (frames, H, W) -> bool (frames, 1, W), no two frames alike."""
    frames, _, n = shape
    center, lines = _center((n,), center_fraction, acceleration), int(n / acceleration + 1e-9)  # 9 / (9 / 7) is 6.99..
    if lines == n:  # nothing is left out
        return np.ones((frames, 1, n), dtype=bool)
    free, extra = n - int(center.sum()), lines - int(center.sum())
    if extra < 0 or (frames > 1 and math.comb(free, extra) < 2 * frames):  # twice: the last new ones take many draws
        raise BadInput(
            f"acceleration {acceleration:g} leaves {lines} of {n} lines a frame, {n - free} are the centre: too few "
            f"for {frames} different frames, lower center_fraction or acceleration"
        )
    drawn: dict[bytes, np.ndarray] = {}
    while len(drawn) < frames:
        mask = _draw(np.where(center, np.inf, density), lines, rng)
        drawn[mask.tobytes()] = mask  # lines that a frame has already are drawn again
    return np.stack(list(drawn.values()))[:, None]


def temporal_tv(kspace: Tensor, mask: Acquisition | Tensor, weight: float = 0.01, iterations: int = 200) -> Tensor:
    """total_variation along time, (..., frames, H, W) -> same shape: what rests is pieced together from all frames.

    The frame after the last is the first, as in view_sharing. Feng et al. 2014, MRM 72(3), who used it for radial
    sampling. Arguments as total_variation. At small weights 200 iterations stop short of the minimum, so that the
    weight belongs to their number.
    """
    return total_variation(kspace, mask, weight, iterations, axes=(-3,), periodic=True)


# Inner networks for sequences: (batch, 2, frames, H, W) real and imaginary part -> the same shape. They take the
# sequence for periodic, as the heart is: the frame after the last is the first.


class SpaceTimeConv(nn.Conv2d):
    """2-D + t convolution: each frame is convolved, then each channel is mixed with the frames before and after.

    Begins without mixing. The idea of separating space and time: Tran et al. 2018, CVPR; three weights per channel
    for the time cost next to nothing, unlike a full 3x3x3 convolution.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.time = nn.Parameter(torch.tensor([[0.0, 1.0, 0.0]] * self.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, channels, H, W) -> the same with out_channels."""
        y = super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        before, now, after = self.time.to(y.dtype)[..., None, None].unbind(1)  # bfloat16 stays bfloat16
        return before * y.roll(1, 1) + now * y + after * y.roll(-1, 1)


class SpaceTimeResNet(ResNet):
    """ResNet of SpaceTimeConv: works on any number of frames from three, whatever `frames`. Arguments as ResNet."""

    axes = AXES[1:]
    min_frames = 3

    def __init__(
        self, in_channels: int, out_channels: int, features: int = 16, stages: str = "2x2", frames: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, features, stages, convolution=SpaceTimeConv)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, frames, H, W) -> (batch, out_channels, frames, H, W)."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class FrameUNet(nn.Module):
    """A 2-D U-Net that takes real and imaginary part of `frames` frames as its channels; other arguments as UNet."""

    axes = AXES[1:]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: int = 32,
        levels: int = 3,
        dropout: float = 0.0,
        frames: int = 12,
    ) -> None:
        super().__init__()
        self.network = UNet(in_channels * frames, out_channels * frames, features, levels, dropout)

    @property
    def last(self) -> nn.Conv2d:
        """The last layer."""
        return self.network.last

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, frames, H, W) -> (batch, out_channels, frames, H, W)."""
        return self.network(x.flatten(1, 2)).unflatten(1, (-1, x.shape[2]))


class PeriodicConv3d(nn.Conv3d):
    """3-D convolution with the frames before the first and after the last taken from the other end."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, frames, H, W) -> the same with out_channels."""
        around = self.kernel_size[0] // 2
        return super().forward(torch.cat([x[:, :, x.shape[2] - around :], x, x[:, :, :around]], 2))


class DualUNet(nn.Module):
    """One U-Net for the real part, one for the imaginary part, frames as channels, attention at their coarsest level;
    then a light 3-D residual network over both: 3x7x7, one block of features / 2, 1x1x1.

    Args:
        in_channels, out_channels: 2, real and imaginary part.
        features, levels, dropout: of the U-Nets.
        frames: of a sequence.
        attention, light: off leaves that part out, for comparisons.
    """

    axes = AXES[1:]
    min_frames = 3

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: int = 64,
        levels: int = 4,
        dropout: float = 0.0,
        frames: int = 12,
        attention: bool = True,
        light: bool = True,
    ) -> None:
        super().__init__()
        settings: dict[str, Any] = {"dropout": dropout, "slope": 0.1, "attention": attention}
        self.parts = nn.ModuleList(
            inner_network("unet", frames, frames, features=features, levels=levels, **settings)
            for _ in range(in_channels)
        )
        if light:
            width = max(features // 2, 1)
            self.first = PeriodicConv3d(in_channels, width, (3, 7, 7), padding=(0, 3, 3))
            block = [nn.PReLU(), PeriodicConv3d(width, width, 3, padding=(0, 1, 1))]
            self.block = nn.Sequential(*block, nn.PReLU(), PeriodicConv3d(width, width, 3, padding=(0, 1, 1)))
            self.final = nn.Conv3d(width, out_channels, 1)

    @property
    def last(self) -> nn.Module:
        """The last layer."""
        return self.final if hasattr(self, "final") else self.parts.get_submodule("1.last")

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 2, frames, H, W) -> the same shape."""
        change = torch.stack([part(x[:, i]) for i, part in enumerate(self.parts)], 1)
        if not hasattr(self, "final"):
            return change
        y = self.first(x + change)
        return change + self.final(y + self.block(y))


def in_windows(method: Callable[..., Tensor], frames: int, *sequences: Tensor) -> Tensor:
    """A method that takes `frames` frames, on sequences of any length: in windows that overlap by half.

    The windows go round from the last frame to the first, as heartbeats do, and repeat a sequence that is shorter.
    Their results are averaged with weights that fall towards a window's ends, so that no seam shows.

    Args:
        method: called with a window of each sequence, (batch, frames, ...).
        sequences: (batch, any number of frames, ...).
    Returns:
        what the method returns, (batch, frames of the sequences, ...).
    """
    total = sequences[0].shape[1]
    place = torch.arange(frames, device=sequences[0].device)
    weight = 1 - (2 * place + 1 - frames).abs() / (frames + 1)
    sums: list[Tensor] = []
    weights = sequences[0].new_zeros(total, dtype=weight.dtype)
    for first in range(0, total, max(frames // 2, 1)):
        chosen = (first + place) % total
        part = method(*(sequence[:, chosen] for sequence in sequences))
        part = part * weight.reshape(-1, *[1] * (part.ndim - 2))
        sums = sums or [part.new_zeros(part.shape[0], total, *part.shape[2:])]
        sums[0], weights = sums[0].index_add(1, chosen, part), weights.index_add(0, chosen, weight)
    return sums[0] / weights.reshape(-1, *[1] * (sums[0].ndim - 2))


# (kspace, mask) -> a first film, all (batch, frames, H, W). Temporal TV is nearly as good after 60 iterations of this
# weight as after 200 of the tuned one.
STARTS: dict[str, Callable[..., Tensor]] = {
    "zero_filled": zero_filling,
    "view_sharing": view_sharing,
    "temporal_tv": partial(temporal_tv, weight=0.001, iterations=60),
}


def l1_ssim_motion(prediction: Tensor, target: Tensor, weight: float = 1.0) -> Tensor:
    """l1_ssim, and the mean absolute error of the difference between neighbouring frames, `weight` times.

    A film that flickers where nothing moves looks right frame by frame; only the difference tells.

    Args:
        prediction, target: magnitudes (batch, frames, h, w), see LOSSES. The last frame is followed by the first.
    Raises:
        BadInput: no frames.
    """
    if prediction.ndim != 4:
        raise BadInput("loss l1_ssim_motion compares neighbouring frames, and there are none: choose another loss")
    wrong = prediction - target
    return LOSSES["l1_ssim"](prediction, target) + weight * (wrong.roll(-1, 1) - wrong).abs().mean()


class UnrolledSequence(Unrolled):
    """Unrolled for sequences, with an inner network for sequences.

    Args:
        inner, cascades, consistency, shared, settings: see Unrolled.
        start: one of the STARTS above, as it is called: what the first change is added to. The first network sees the
            zero-filled frames, after temporal_tv its film.
        frames: that are reconstructed together; longer and shorter sequences go through in_windows. 0: all.
    """

    axes = inner_axes = AXES[1:]
    STARTS = STARTS

    def __init__(
        self,
        inner: str = "space_time_resnet",
        cascades: int = 1,
        consistency: str = "hard",
        shared: bool = False,
        start: str = "zero_filled",
        frames: int = 0,
        **settings: Any,
    ) -> None:
        if frames:
            settings["frames"] = frames
        super().__init__(inner, cascades, consistency, shared, start=start, **settings)
        self.looks_at_start, self.frames = read_call(start, "start")[0] == "temporal_tv", frames

    def forward(self, kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        """(batch, frames, H, W) complex k-space -> (batch, frames, h, w) complex images; see Unrolled.forward.

        Raises:
            BadInput: fewer frames than the inner network looks at.
        """
        least = max(getattr(network, "min_frames", 1) for network in self.networks)
        if kspace.shape[1] < least:
            raise BadInput(f"{kspace.shape[1]} frames, but the network looks at {least} at a time: give more")
        if self.frames and kspace.shape[1] != self.frames:
            return in_windows(lambda k, m: self(k, m, size), self.frames, kspace, mask.expand(kspace.shape))
        start = self.start(kspace, mask)
        seen = start if self.looks_at_start else ifft2c(kspace)
        return center_crop(self.unroll(seen, kspace, Acquisition(mask), start), size)


TEMPORAL_TV_WEIGHTS = (0.00025, 0.0005, 0.001, 0.002)


def sliding_window(kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
    """view_sharing, called like a network."""
    return center_crop(view_sharing(kspace, mask), size)


def cine_baselines(train_set: SliceDataset, machine: Machine) -> tuple[dict[str, Method], dict[str, float]]:
    """The baselines of cine: the sliding window, and total variation along time, its weight tuned."""

    def method(weight: float) -> Method:
        return lambda kspace, mask, size: center_crop(temporal_tv(kspace, mask, weight), size)

    weight = tune(method, train_set, TEMPORAL_TV_WEIGHTS, slices=3, device=machine.device)
    return {"sliding_window": sliding_window, "temporal_tv": method(weight)}, {"temporal_tv_weight": weight}


def check_cine(settings: SimpleNamespace, given: Mapping[str, Any]) -> None:
    """Refuse what sequences cannot have."""
    for name in ("augment", "vary_phase", "cache", "adversary"):
        if getattr(settings, name):
            raise BadInput(f"{name} is not for task 'cine': leave it out")


@torch.inference_mode()
def export_cine(folder: Path, network: Method, dataset: SliceDataset) -> None:
    """Complex images beside each reconstruction, and PSNR and SSIM as text.

    FOLDER/reconstructions/NAME.h5 gets the complex data sets `undersampled`, `reconstructed` and `full`, (1, frames,
    h, w), HDF5 fields r and i: real and imaginary part. FOLDER/results.txt: a line per sequence.
    """
    if rank_and_size()[0] > 0:
        return
    device = next(network.parameters()).device if isinstance(network, nn.Module) else "cpu"
    lines = []
    for number in range(len(dataset)):
        batch, volume = Sample.stack([dataset[number]]).to(device), dataset.volumes[dataset.slices[number][0]]
        images = {
            "undersampled": zero_filled(batch.kspace, batch.mask, volume.target_size),
            "reconstructed": network(batch.kspace, batch.mask, volume.target_size),
            "full": ifft2c(volume.kspace(0))[None],
        }
        with h5py.File(folder / "reconstructions" / volume.path.name, "a") as file:
            for name, image in images.items():
                file[name] = image.cpu().numpy()
        full, words = images["full"].abs()[0], []
        for name in ("undersampled", "reconstructed"):
            image = images[name].abs()[0].cpu()
            words.append(f"{name} PSNR {psnr(full, image):.2f} dB SSIM {ssim(full, image):.4f}")
        lines.append(f"{volume.path.stem}: {', '.join(words)}")
    replace_file(folder / "results.txt", lambda partial: partial.write_text("\n".join(lines) + "\n"))


MASKS["kt"] = MaskKind(_kt, AXES[1:])
MASKS["kt_gaussian"] = MaskKind(_kt_gaussian, AXES[1:])
LOSSES["l1_ssim_motion"] = l1_ssim_motion
INNER_NETWORKS |= {"space_time_resnet": SpaceTimeResNet, "frame_unet": FrameUNet, "dual_unet": DualUNet}
MODELS["cine_unet"] = partial(UnrolledSequence, inner="frame_unet", consistency="none", frames=12)
MODELS["cine_dual_unet"] = partial(UnrolledSequence, inner="dual_unet(dropout=0.3)", consistency="none", frames=12)
MODELS["cine_unrolled"] = partial(UnrolledSequence, inner="space_time_resnet", cascades=3, start="view_sharing")
MODEL_DEFAULTS["cine_unrolled"] = {"lr": 0.005}  # at 0.002 it is slow
TASKS["cine"] = Task(
    settings=dict(
        data="data/demo_cine",
        model="cine_unrolled(start='temporal_tv')",
        mask="kt",
        acceleration=5.0,
        center_fraction=11 / 192,
        loss="l1_ssim_motion(weight=2)",
        ema=0.99,
        batch_size=1,
    ),
    demo=demo_cine,
    axes=AXES,
    start=("zero_filled", zero_filled),
    baselines=cine_baselines,
    check=check_cine,
    export=export_cine,
)
