"""Chapter 15: many coils. Noise, compression, sensitivities, SENSE, GRAPPA, the variational network."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from mri_parts.basics import ROOT, BadInput, choose, new_folder
from mri_parts.classical import Acquisition, _distances, _eigh, keep_measured, sense, total_variation
from mri_parts.dataset import SliceDataset
from mri_parts.fourier import center_crop, ifft2c, rss, rss_of_kspace
from mri_parts.masks import effective_acceleration, mask_kinds
from mri_parts.methods import Machine, Method, tune
from mri_parts.metrics import psnr
from mri_parts.networks import MODELS, MagnitudeNetwork, Unrolled, as_channels, as_complex, inner_network
from mri_parts.processes import progress
from mri_parts.scanner import demo_data
from mri_parts.tasks import TASKS, Task
from mri_parts.volumes import DEFAULT_AXES, Volume, read_folder

# Several coils. Each sees the image through its own sensitivity, so that unmeasured samples can be told from
# measured ones (Pruessmann et al. 1999, MRM 42(5)). What a coil's sensitivity is has to be measured too: here
# from the centre of k-space, which is sampled without gaps (calibration).


def noise_covariance(noise: Tensor) -> Tensor:
    """Covariance of the coils' noise: samples without signal (coils, n) complex -> (coils, coils) complex."""
    if len(noise) > noise.shape[-1]:
        raise BadInput(f"{noise.shape[-1]} noise samples of {len(noise)} coils: measure at least as many as coils")
    return noise @ noise.mH / noise.shape[-1]


def prewhiten(kspace: Tensor, covariance: Tensor) -> Tensor:
    """Virtual coils whose noise is independent and of variance 1, so that no coil counts more than it knows.

    Args:
        kspace: (..., coils, H, W) complex.
        covariance: of noise_covariance. With its Cholesky factor L the result is L^-1 k (Roemer 1990, MRM 16).
    Returns:
        (..., coils, H, W) complex, in units of the noise.
    Raises:
        BadInput: a coil without noise of its own.
    """
    inverse = torch.linalg.inv(_noise_factor(covariance).to(kspace.dtype))
    return torch.einsum("ij,...jhw->...ihw", inverse, kspace)


def whitened_copy(folder: str | Path, out: str | Path) -> Path:
    """A copy of a multi-coil data set whose coils are whitened, each file by its noise scan; see prewhiten.

    So all methods get the same virtual coils, whose root-sum-of-squares is the reference. They have the noise of the
    old coils on average (rms), not of variance 1: numbers keep their size, and coils whose noise was independent and
    equally loud stay as they were. Simulated files also get the attribute `mixing`, (coils, coils) complex, the
    virtual coils made of the old ones, for noise_free. Left out are `sensitivities`, which are those of the old
    coils, and references of undersampled files, which cannot be made anew. The rest of a file is copied.

    Args:
        folder: of files in fastMRI's layout, or of folders with such files, such as train/ and val/.
        out: a new folder.
    Returns:
        out.
    Raises:
        BadInput: a file without a noise scan, or with a coil without noise of its own; out is there already.
    """
    out = Path(out)
    with new_folder(out) as building:
        for volume in progress(read_folder(folder), "whitening"):
            path = building / volume.path.relative_to(folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whitened(volume, path)
    return out


def _write_whitened(volume: Volume, path: Path) -> None:
    """One file of whitened_copy."""
    noise = volume.noise()
    if noise is None:
        raise BadInput(f"{volume.path}: no noise scan to whiten by: leave the file out, or add it as data set `noise`")
    covariance = noise_covariance(noise)
    level = covariance.diagonal().real.mean().sqrt()
    mixing = level * prewhiten(torch.eye(len(noise)).to(noise.dtype)[..., None], covariance)[..., 0]
    axis = volume.axes.index("coils") - 1  # of one slice
    slices = [torch.tensordot(mixing, volume.kspace(i), ([1], [axis])).movedim(0, axis) for i in range(len(volume))]
    replaced = {"kspace": torch.stack(slices), "noise": mixing @ noise}
    about: dict[str, Any] = {}
    if volume.has_reference and volume.mask is None:
        images = (center_crop(ifft2c(kspace), volume.target_size) for kspace in slices)
        replaced[volume.target_key or "reconstruction_rss"] = target = torch.stack([*map(volume.magnitude, images)])
        about = {"max": float(target.max()), "norm": float(target.norm())}
    if "simulated" in volume.attributes:
        about["mixing"] = mixing.numpy() @ volume.attributes.get("mixing", np.eye(len(noise), dtype=np.complex64))
    shutil.copyfile(volume.path, path)
    with h5py.File(path, "r+") as file:
        for name in {*replaced, volume.target_key, "sensitivities"} & {*file}:
            del file[name]  # HDF5 writes what comes next into its place
        for name, values in replaced.items():
            file[name] = values.numpy()
        file.attrs.update(about)


def _noise_factor(covariance: Tensor) -> Tensor:
    """The Cholesky factor L of a covariance (coils, coils) = L L^H.

    Raises:
        BadInput: it has none.
    """
    factor, info = torch.linalg.cholesky_ex(covariance)
    if info:
        raise BadInput(f"noise of coil {int(info) - 1} is 0, or a mixture of other coils': leave the coil out")
    return factor


def compress_coils(kspace: Tensor, coils: int) -> Tensor:
    """Fewer, virtual coils that hold most of the signal: the first singular vectors over the coils.

    Buehrer et al. 2007, MRM 57(6). Prewhiten first, or loud noise passes for signal.

    Args:
        kspace: (..., coils, H, W) complex; all slices share one compression.
        coils: how many to keep.
    Returns:
        (..., coils kept, H, W) complex, the strongest first.
    Raises:
        BadInput: no coil axis, or fewer coils than asked for.
    """
    _check_coils(kspace)
    if not 0 < coils <= kspace.shape[-3]:
        raise BadInput(f"{coils} coils asked for, of {kspace.shape[-3]}: choose a number from 1 to that")
    flat = kspace.movedim(-3, 0).flatten(1)
    vectors = _eigh(flat @ flat.mH)[1].flip(-1)[:, :coils]
    return torch.einsum("ji,...jhw->...ihw", vectors.conj(), kspace)


def _check_coils(kspace: Tensor) -> None:
    if kspace.ndim < 3:
        raise BadInput(f"k-space of shape {tuple(kspace.shape)} has no coil axis: expected (..., coils, H, W)")


def calibration_columns(mask: Tensor) -> Tensor:
    """The columns around DC that are measured without a gap: bool, shape of the mask (..., W).

    Raises:
        BadInput: fewer than two.
    """
    middle = mask.shape[-1] // 2
    left, right = mask[..., :middle].flip(-1), mask[..., middle:]
    run = [half.int().cumprod(-1).bool() for half in (left, right)]
    columns = torch.cat([run[0].flip(-1) & right[..., :1], run[1]], -1)
    lines = int(columns.sum(-1).min())
    if lines < 2:
        raise BadInput(f"{lines} calibration lines around the centre, at least 2 are needed: raise center_fraction")
    return columns


def calibration(kspace: Tensor, mask: Tensor, rows: int = 40) -> Tensor:
    """The fully sampled centre of one slice.

    Args:
        kspace: (coils, H, W) complex.
        mask: bool (..., W): the columns that were measured.
        rows: of the readout, at most; all of its samples are measured, but the outer ones are noise.
    Returns:
        (coils, rows, calibration lines) complex.
    Raises:
        BadInput: no coil axis; fewer than two calibration lines.
    """
    _check_coils(kspace)
    columns = calibration_columns(mask.reshape(-1, mask.shape[-1])[0])
    return center_crop(kspace, (min(rows, kspace.shape[-2]), kspace.shape[-1]))[..., columns]


def low_resolution(kspace: Tensor, mask: Tensor, rows: int = 24) -> Tensor:
    """Coil images of the calibration lines alone, through a Hann window against ringing.

    Args:
        kspace: (..., coils, H, W) complex.  mask: bool, broadcastable to it.
        rows: of the readout that count.
    Returns:
        (..., coils, H, W) complex.
    """
    _check_coils(kspace)
    columns = calibration_columns(mask)
    place = columns.cumsum(-1) / (columns.sum(-1, keepdim=True) + 1)  # 0 .. 1 over the calibration lines
    distance = torch.arange(kspace.shape[-2], device=kspace.device) - kspace.shape[-2] // 2
    along = torch.where(distance.abs() < rows / 2, torch.cos(math.pi * distance / rows) ** 2, 0)
    return ifft2c(kspace * (columns * torch.sin(math.pi * place) ** 2) * along[:, None])


def _dominant(matrices: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (coils, H, W): eigenvectors of the largest eigenvalues (H, W) of Hermitian matrices (coils, coils, H, W).

    The phase of an eigenvector is free: the strongest virtual coil of the low-resolution images (coils, H, W) is real.
    """
    values, vectors = _eigh(matrices.movedim((0, 1), (-2, -1)))
    maps = vectors[..., -1].movedim(-1, 0)
    flat = images.flatten(1)
    strongest = _eigh(flat @ flat.mH)[1][:, -1]
    phase = torch.einsum("c,chw->hw", strongest.conj(), maps).angle()
    return maps * torch.polar(torch.ones_like(phase), -phase), values[..., -1]


def ratio_maps(kspace: Tensor, mask: Tensor) -> Tensor:
    """Low-resolution coil images divided by their root-sum-of-squares; see sensitivity_maps."""
    images = low_resolution(kspace, mask)
    return images / rss(images, -3).unsqueeze(-3).clamp(min=torch.finfo(torch.float32).tiny)


def walsh_maps(kspace: Tensor, mask: Tensor, window: int = 7) -> Tensor:
    """The matched filter of each neighbourhood: Walsh, Gmitro and Marcellin 2000, MRM 43(5); see sensitivity_maps.

    Args:
        window: side in pixels, odd, of the neighbourhood over which the coils' covariance is averaged.
    """
    images = low_resolution(kspace, mask)
    products = images[:, None] * images.conj()
    planes = torch.view_as_real(products).movedim(-1, 0).flatten(0, 2)[:, None]
    mean = nn.functional.avg_pool2d(planes, window, 1, window // 2, count_include_pad=False)
    return _dominant(torch.complex(*mean[:, 0].reshape(2, *products.shape)), images)[0]


def espirit_maps(
    kspace: Tensor, mask: Tensor, kernel: int = 6, threshold: float = 0.01, crop: float = 0.9, grid: int = 0
) -> Tensor:
    """ESPIRiT (Uecker et al. 2014, MRM 71(3)), one set of maps; see sensitivity_maps.

    Every window of the calibration lies in the row space of their matrix. The projection onto it, applied at all
    places of k-space, is at each pixel a small matrix over the coils; where there is signal, its eigenvector of
    eigenvalue 1 is the sensitivity.

    Args:
        kernel: side of the windows in samples, at most half of the calibration lines.
        threshold: singular values below this part of the largest are noise.
        crop: maps are 0 where the eigenvalue is smaller, hence outside the object; 0 keeps all.
        grid: even side of a coarser grid of pixels on which the eigenvectors are found; the others lie between
            them. Sensitivities are smooth: 48 serves SENSE as well as every pixel, at 128 x 128 in a quarter of
            the time.
    """
    if 0 < grid < max(kspace.shape[-2:]):
        few = [min(grid, n) for n in kspace.shape[-2:]]
        columns = mask.reshape(-1, mask.shape[-1])[:1]
        maps = espirit_maps(center_crop(kspace, few), center_crop(columns, (1, few[1])), kernel, threshold, crop)
        maps = _refine(maps, kspace.shape[-2:])
        norm = rss(maps)
        return torch.where(norm > 0.5, maps / norm, 0)  # half of the pixels around have a sensitivity
    block = calibration(kspace, mask)
    coils, sizes = len(block), kspace.shape[-2:]
    height, width = (min(kernel, (n + 1) // 2) for n in block.shape[-2:])
    windows = block.unfold(1, height, 1).unfold(2, width, 1)
    matrix = windows.permute(1, 2, 0, 3, 4).reshape(-1, coils * height * width)
    _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    vectors = vectors[values > threshold * values[0]]
    projection = (vectors.mT @ vectors.conj()).unflatten(0, (coils, -1)).unflatten(-1, (coils, -1))
    # The projection depends on the distance of two samples only: as in low_rank.
    distance = _distances((height, width), sizes).to(kspace.device)
    filters = kspace.new_zeros((coils, coils, sizes[0] * sizes[1]))
    filters.index_add_(-1, distance.flatten(), projection.movedim(2, 1).flatten(-2))
    images = torch.fft.ifft2(filters.unflatten(-1, sizes), norm="forward") / (height * width)
    maps, values = _dominant(torch.fft.fftshift(images, dim=(-2, -1)), low_resolution(kspace, mask))
    return maps * (values > crop)


def _refine(images: Tensor, size: Sequence[int]) -> Tensor:
    """Complex (n, h, w) on a finer grid (H, W) over the same field of view, bilinear; the centre stays in its place."""
    rows, columns = (
        ((torch.arange(fine, device=images.device) - fine // 2) * (n / fine) + n // 2) * 2 / (n - 1) - 1
        for fine, n in zip(size, images.shape[-2:])
    )
    points = torch.stack(torch.broadcast_tensors(columns, rows[:, None]), -1)[None]
    parts = torch.cat([images.real, images.imag])[None]
    found = nn.functional.grid_sample(parts, points, padding_mode="border", align_corners=True)[0]
    return torch.complex(*found.unflatten(0, (2, -1)))


SENSITIVITIES: dict[str, Callable[..., Tensor]] = {"ratio": ratio_maps, "walsh": walsh_maps, "espirit": espirit_maps}


def sensitivity_maps(kspace: Tensor, mask: Tensor, method: str = "espirit", **options: Any) -> Tensor:
    """Coil sensitivities of one slice from its calibration lines.

    Args:
        kspace: (coils, H, W) complex, zero where not measured.
        mask: bool, broadcastable to kspace, the same for all rows.
        method: a key of SENSITIVITIES.
        options: of that function.
    Returns:
        (coils, H, W) complex; root-sum-of-squares 1, so that the image is in the units of the coils'
        root-sum-of-squares; 0 where espirit_maps crops.
    Raises:
        BadInput: no coil axis; fewer than two calibration lines.
    """
    return choose(SENSITIVITIES, method, "kind of sensitivity maps")(kspace, mask, **options)


def grappa_kernels(
    kspace: Tensor, mask: Tensor, weight: float = 0.001, lines: int = 4, rows: int = 5
) -> list[tuple[Tensor, tuple[int, ...], Tensor]]:
    """The kernels of GRAPPA: how a missing line follows from the measured lines next to it, in all coils.

    One kernel for each pattern of neighbours, so that grids with uneven steps and random lines work too: a
    regular grid has a pattern per missing line of a step, and some more at the edges and beside the centre.
    A kernel must fit into the calibration lines, often enough for twice as many equations as weights; where its
    lines reach too far, the farthest are left out.

    Args:
        kspace: (coils, H, W) complex, zero where not measured.
        mask: bool (..., W): the columns that were measured.
        weight: of the kernel's energy, as a part of the calibration's.
        lines: measured neighbours, the nearest ones, that a missing line is made of.
        rows: samples of each of them, odd.
    Returns:
        for each pattern: the missing columns (n,); their neighbours' offsets; weights, complex
        (coils, coils * rows * neighbours), from neighbours to the missing line's coils.
    Raises:
        BadInput: no coil axis; fewer than two calibration lines.
    """
    block = calibration(kspace, mask, rows=kspace.shape[-2])
    span = block.shape[-1]
    measured = mask.reshape(-1, mask.shape[-1])[0]
    # Columns that were never acquired are known to be 0 and tell nothing of their neighbours.
    known = (measured & kspace.any(-2).any(0)).nonzero().flatten().tolist()
    coils, samples = len(block), block.shape[-2] - rows + 1

    def fits(near: list[int]) -> bool:
        places = span - max(0, *near) + min(0, *near)
        return places > 0 and (len(near) == 1 or places * samples >= 2 * coils * rows * len(near))

    patterns: dict[tuple[int, ...], list[int]] = {}
    for column in (~measured).nonzero().flatten().tolist():
        near = sorted((k - column for k in known), key=lambda d: (abs(d), d))[:lines]
        while near and not fits(near):
            near.pop()
        patterns.setdefault(tuple(sorted(near)), []).append(column)
    kernels = []
    for offsets, columns in patterns.items():
        if not offsets:
            continue  # farther from any line than the calibration is wide: stays empty
        first, last = max(0, -min(offsets)), span - max(0, *offsets)
        sources = _neighbours(block, torch.arange(first, last), offsets, rows)[:, rows // 2 : -(rows // 2) or None]
        targets = block[:, rows // 2 : -(rows // 2) or None, first:last]
        sources, targets = sources.flatten(1), targets.flatten(1)
        gram = sources @ sources.mH
        ridge = weight * gram.diagonal().real.mean() * torch.eye(len(gram), device=gram.device)
        weights = torch.linalg.solve(gram + ridge, sources @ targets.mH).mH
        kernels.append((torch.tensor(columns), offsets, weights))
    return kernels


def _neighbours(kspace: Tensor, columns: Tensor, offsets: Sequence[int], rows: int) -> Tensor:
    """What lies around the samples of `columns`: (coils, H, W) -> (coils * rows * len(offsets), H, n)."""
    lines = torch.stack([kspace[:, :, columns + offset] for offset in offsets], 1)  # (coils, offsets, H, n)
    shifted = [lines.roll(rows // 2 - row, -2) for row in range(rows)]
    return torch.stack(shifted, 1).flatten(0, 2)


def grappa(kspace: Tensor, mask: Tensor, weight: float = 0.001, lines: int = 4, rows: int = 5) -> Tensor:
    """GRAPPA: fill every missing line of every coil from its measured neighbours (Griswold et al. 2002, MRM 47(6)).

    Args and Raises: as grappa_kernels.
    Returns:
        (coils, H, W) complex k-space; the measured lines are as they were. rss of its images is the image.
    """
    filled = kspace.clone()
    for columns, offsets, weights in grappa_kernels(kspace, mask, weight, lines, rows):
        sources = _neighbours(kspace, columns, offsets, rows)
        filled[:, :, columns] = torch.einsum("cs,shn->chn", weights, sources)
    return filled


def _sense_images(kspace: Tensor, mask: Tensor, weight: float) -> Tensor:
    A = Acquisition(mask, sensitivity_maps(kspace, mask))
    return A.spread(sense(kspace, A, weight))


def _tv_sense_images(kspace: Tensor, mask: Tensor, weight: float) -> Tensor:
    A = Acquisition(mask, sensitivity_maps(kspace, mask))
    return A.spread(total_variation(kspace, A, weight, 60))


# Slice by slice: (k-space (coils, H, W), mask, weight) -> coil images; and the weights that tune tries.
PARALLEL: dict[str, tuple[Callable[[Tensor, Tensor, float], Tensor], tuple[float, ...]]] = {
    "sense": (_sense_images, (0.001, 0.003, 0.01, 0.03, 0.1)),
    "grappa": (
        lambda kspace, mask, weight: ifft2c(grappa(kspace, mask, weight)),
        (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.1),
    ),
    "tv_sense": (_tv_sense_images, (0.0003, 0.0006, 0.001, 0.002, 0.004)),
}


def parallel_method(name: str, weight: float) -> Callable[[Tensor, Tensor, Sequence[int]], Tensor]:
    """A method of PARALLEL with a fixed weight, called like a network; see RssNetwork and VariationalNetwork.

    The result is what the reference is, a root-sum-of-squares of coil images: those that the method finds, with
    the measured samples put back. So it has the noise of the coils in the air, as the reference has.
    """
    function, _ = choose(PARALLEL, name, "parallel method")

    def method(kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        masks = mask.expand(len(kspace), 1, *mask.shape[-2:])
        images = [keep_measured(function(k, m, weight), k, m) for k, m in zip(kspace, masks)]
        return rss(center_crop(torch.stack(images), size), 1)

    return method


def g_factor(
    reconstruct: Callable[[Tensor, Tensor], Tensor],
    covariance: Tensor,
    mask: Tensor,
    size: Sequence[int],
    replicas: int = 64,
) -> Tensor:
    """By how much parallel imaging amplifies noise at each pixel, beyond the sqrt of the acceleration.

    Noise alone is reconstructed again and again, fully sampled and undersampled: this serves every linear method
    (pseudo multiple replicas: Robson et al. 2008, MRM 60(4)). The definition is Pruessmann's (1999).

    Args:
        reconstruct: linear, (k-space (coils, H, W), mask) -> complex image (H, W), with fixed maps or kernels.
        covariance: (coils, coils) of the noise.
        mask: bool, broadcastable to (H, W).
        size: (H, W).
        replicas: of the noise; the error of the result is about 1 / sqrt(replicas).
    Returns:
        (H, W) float, about 1 where nothing is lost.
    """
    random = torch.Generator().manual_seed(0)
    colour = _noise_factor(covariance).to(torch.complex64)
    energy = torch.zeros(2, *size)
    for _ in range(replicas):
        noise = torch.randn((len(colour), *size), dtype=torch.complex64, generator=random)
        noise = torch.einsum("ij,jhw->ihw", colour, noise)
        for i, lines in enumerate((torch.ones_like(mask), mask)):
            energy[i] += reconstruct(noise * lines, lines).abs().square()
    return (energy[1] / energy[0].clamp(min=1e-30) / effective_acceleration(mask)).sqrt()


# What networks for coils correct: (k-space, acquisition) -> image. On simulated heads 15 iterations of total variation
# are as good as 60.
STARTS: dict[str, Callable[..., Tensor]] = {
    "sense": partial(sense, iterations=8),
    "tv": partial(total_variation, weight=0.002, iterations=15),
}


class VariationalNetwork(Unrolled):
    """The end-to-end variational network: an unrolled network for coils that finds their sensitivities itself.

    Sriram et al. 2020 (MICCAI). The maps are low_resolution images divided by their root-sum-of-squares, which a
    small U-Net, the same for all coils, refines. The image is the root-sum-of-squares of the coils at the end.
    Unlike there, the first image is not the zero-filled one but eight steps of sense with a learned weight, which
    saves cascades; or, with start="tv", total variation with coils, which needs no more steps.
    With sensitivities="espirit" the maps are those of espirit_maps, which nothing in the object disturbs: where its
    phase turns quickly, the low-resolution images lose signal and their ratios are wrong. Their eigenvectors are found
    on the CPU, for which a GPU waits.

    With consistency="sense" it is MoDL instead (Aggarwal, Mani and Jacob 2019, IEEE TMI 38(2)): after each network,
    sense looks for the image that explains the measured samples of all coils together and is near what the network
    returned, with a learned weight. What the coils determine, the network cannot spoil.

    Args:
        consistency: of Unrolled, or sense.
        sensitivities: learned or espirit.
        start: one of STARTS, as it is called.
        phase_width: of the window that smooths the first image's phase, which is taken out before the networks. That
            image is nearly complete, so that its phase is known beyond the centre of k-space.
        others: see Unrolled.
    """

    axes = ("coils", "H", "W")
    STARTS = STARTS
    CONSISTENCIES = (*Unrolled.CONSISTENCIES, "sense")

    def __init__(
        self,
        inner: str = "unet",
        cascades: int = 4,
        consistency: str = "soft",
        shared: bool = False,
        sensitivities: str = "learned",
        start: str = "sense",
        phase_width: float = 0.02,
        **settings: Any,
    ) -> None:
        super().__init__(inner, cascades, consistency, shared, start=start, phase_width=phase_width, **settings)
        choose({"learned": None, "espirit": None}, sensitivities, "sensitivities")
        if start == "sense":
            self.start_weight = nn.Parameter(torch.tensor(math.log(0.01)))
        if consistency == "sense":
            self.sense_weight = nn.Parameter(torch.tensor(math.log(0.1)))
            self.step = nn.Parameter(torch.tensor(2.0))
        if sensitivities == "learned":
            self.map_network = inner_network("unet", 2, 2, features=4, levels=3)

    def maps(self, kspace: Tensor, mask: Tensor) -> Tensor:
        """Sensitivities (batch, coils, H, W) complex, with root-sum-of-squares 1, from the calibration lines."""
        if not hasattr(self, "map_network"):
            masks = mask.expand(len(kspace), *mask.shape[1:])
            with torch.no_grad():
                return torch.stack([espirit_maps(k, m, grid=48) for k, m in zip(kspace, masks)])
        low = low_resolution(kspace, mask)
        low = low / rss(low, 1).amax((-2, -1), keepdim=True)[:, None]
        refined = low + as_complex(self.map_network(as_channels(low.flatten(0, 1)))).unflatten(0, low.shape[:2])
        return refined / rss(refined, 1)[:, None].clamp(min=1e-12)

    def forward(self, kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        """(batch, coils, H, W) complex k-space -> (batch, h, w) real magnitude; see Unrolled.forward.

        Raises:
            BadInput: no coil axis; fewer than two calibration lines.
        """
        if kspace.ndim != 4:
            raise BadInput(f"k-space of shape {tuple(kspace.shape)} has no coil axis: expected (batch, coils, H, W)")
        A = Acquisition(mask, self.maps(kspace, mask))
        learned = {"weight": self.start_weight.exp()} if hasattr(self, "start_weight") else {}
        images = self.unroll(self.start(kspace, A, **learned), kspace, A)
        if self.consistency == "sense":  # the air, where there are no sensitivities, is as noisy as in the reference
            images = keep_measured(images, kspace, mask, self.step.sigmoid())
        images = center_crop(images, size)
        # The tiny summand keeps the gradient finite where all coils are 0.
        return (images.abs().square().sum(1) + torch.finfo(torch.float32).tiny).sqrt()


def ending_measured(network: nn.Module) -> nn.Module:
    """A copy of a network for coils whose last step puts the measured samples back as they are.

    The methods of PARALLEL end like this. By itself such a network (`consistency` soft or sense) goes a learned part
    of the way.

    Raises:
        BadInput: another network. One that returns a magnitude of magnitudes has no samples to put back.
    """
    if not hasattr(network, "step"):
        raise BadInput(f"{type(network).__name__} has no last step towards the measured samples: take varnet or modl")
    ended = copy.deepcopy(network)
    ended.get_parameter("step").data.view(-1)[-1] = math.inf  # of which the sigmoid, the part of the way, is 1
    return ended


class RssNetwork(MagnitudeNetwork):
    """MagnitudeNetwork on the root-sum-of-squares of the zero-filled coil images; arguments as there."""

    axes = ("coils", "H", "W")
    coil_axis = 1


def zero_filled_rss(kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
    """zero_filled with coils: the root-sum-of-squares of their images."""
    return rss_of_kspace(kspace, size, 1)


def check_multi_coil(settings: SimpleNamespace, given: Mapping[str, Any]) -> None:
    """Refuse masks without whole lines around the centre, from which the coils are calibrated."""
    choose(dict.fromkeys(mask_kinds("W")), settings.mask, "mask kind of lines")


def tuned_parallel(train_set: SliceDataset, machine: Machine) -> tuple[dict[str, Method], dict[str, float]]:
    """The baselines of multi_coil: each method of PARALLEL with the weight of highest PSNR on a few training slices.

    The weight of highest SSIM smooths more, and costs them decibels; the loss of the networks is L1.
    """
    weights = {
        name: tune(partial(parallel_method, name), train_set, choices, 8, machine.device, psnr)
        for name, (_, choices) in PARALLEL.items()
    }
    methods = {name: parallel_method(name, weight) for name, weight in weights.items()}
    return methods, {f"{name}_weight": weight for name, weight in weights.items()}


MODELS["varnet"] = partial(VariationalNetwork, inner="unet(features=8, levels=3)", cascades=6)
MODELS["modl"] = partial(
    VariationalNetwork, inner="unet(features=12, levels=3)", consistency="sense", sensitivities="espirit"
)
MODELS["rss_unet"] = partial(RssNetwork, inner="unet", residual=True)
TASKS["multi_coil"] = Task(
    settings=dict(
        data="data/demo_multi_coil",
        model="varnet",
        mask="equispaced",
        acceleration=4.0,
        center_fraction=0.08,
        loss="l1",
    ),
    demo=partial(demo_data, ROOT / "data" / "demo_multi_coil", train=36, val=12, slices=5, matrix=128, seed=1, coils=8),
    axes=DEFAULT_AXES[4],
    start=("zero_filled", zero_filled_rss),
    baselines=tuned_parallel,
    check=check_multi_coil,
)
