"""Everything that two notebooks of this book share, in reading order.

    1 Fourier                    centred orthonormal transforms, on the grid and off it, crop, coil combination
    2 Masks                      which k-space samples were measured
    3 Volumes                    reading, writing and splitting files: HDF5, DICOM and pictures, cine.npz
    4 Demo scanner               simulated heads, coils and beating hearts
    5 Classical reconstruction   total variation, wavelets, low rank; view sharing; SENSE, GRAPPA
    6 Networks                   U-Nets, residual, k-space and unrolled networks, for images, films and coils
    7 Losses and metrics         fastMRI's definitions, confidence intervals
    8 Data set                   slices and batches
    9 Training                   processes, checkpoints, the adversary
    10 Methods and tasks         what is called like a network; what one kind of experiment changes
    11 Runs                      parameters, run folders, tables
    12 Figures and sliders

One equation holds it together: y = M F S x + n. The image x (complex) is seen by the coils S (1 for
a single coil), Fourier transformed (F), sampled where the mask M is true, with noise n. Images and
k-space are complex64 tensors with the spatial axes last, (..., H, W); W is the phase-encode axis,
along which Cartesian masks leave out lines.

Sections build on those above them; the exceptions are calls of the process helpers of 9 in 8, of the methods and tasks
of 10 in 9, and of the figures of 12 in 11.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import csv
import dataclasses
import difflib
import functools
import hashlib
import html
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import json
import math
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import tokenize
import warnings
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import h5py
import matplotlib
import numpy as np
import torch
from cycler import cycler
from torch import Tensor, distributed, nn
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent  # of the repository
DEMO_FOLDER = ROOT / "data" / "demo"


class BadInput(ValueError):
    """A fault of the input, told in one line: the file or parameter, what is wrong, the mend."""

    def __init__(self, message: str) -> None:
        # A DataLoader's worker hands on its whole traceback; the message is what follows its own name.
        message = message.rpartition(f"{type(self).__name__}: ")[2].rstrip("\n")
        # A file's name may hold newlines and control characters: a terminal must not obey them.
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


def choose(table: Mapping[str, Any], name: str, what: str) -> Any:
    """table[name], or a BadInput that lists the names and guesses which one was meant."""
    if name in table:
        return table[name]
    name = str(name)[:80]  # what a file holds may be of any length
    guess = difflib.get_close_matches(name, table, n=1, cutoff=0.4)
    hint = f", did you mean {guess[0]!r}?" if guess else ""
    raise BadInput(f"unknown {what} {name!r}{hint} (choose from: {', '.join(table)})")


# --------------------------------------------------------------------------------------------------
# 1 Fourier
# --------------------------------------------------------------------------------------------------


def _centred(transform: Callable, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Apply a torch.fft transform with the origin in the middle of the array, on both sides."""
    # The FFT wants the origin at index 0; MRI stores it at N//2. ifftshift brings it to 0, fftshift
    # brings it back. For odd N the two differ by one pixel, and swapping them shifts the image.
    x = torch.fft.ifftshift(torch.as_tensor(x), dim=axes)
    return torch.fft.fftshift(transform(x, dim=axes, norm="ortho"), dim=axes)


def fft2c(image: Tensor) -> Tensor:
    """Image to k-space: centred, orthonormal 2-D Fourier transform over the last two axes.

    Args:
        image: (..., H, W), complex (or real).
    Returns:
        k-space, complex, same shape; zero frequency at [..., H // 2, W // 2]. Orthonormal: the
        energy is the same on both sides (Parseval), and ifft2c is both inverse and adjoint.
    """
    return _centred(torch.fft.fftn, image, (-2, -1))


def ifft2c(kspace: Tensor) -> Tensor:
    """k-space to image: the inverse (and adjoint) of fft2c, (..., H, W) complex -> same shape."""
    return _centred(torch.fft.ifftn, kspace, (-2, -1))


def center_crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The central (h, w) of the last two axes.

    Args:
        x: (..., H, W).
        size: (h, w), at most (H, W).
    Returns:
        (..., h, w), a view of x.
    Raises:
        BadInput: the crop is larger than the image, or not positive.
    """
    h, w = size
    height, width = x.shape[-2:]
    if not (0 < h <= height and 0 < w <= width):
        raise BadInput(f"cannot crop an image of {height}x{width} to {h}x{w}: choose a smaller size")
    top, left = (height - h) // 2, (width - w) // 2
    return x[..., top : top + h, left : left + w]


def rss(coil_images: Tensor, dim: int = 0) -> Tensor:
    """Root-sum-of-squares coil combination over axis `dim`: complex or real in, real out."""
    if not coil_images.is_complex():
        return coil_images.square().sum(dim).sqrt()
    # abs() guards against overflow, for which it takes three times as long
    return (coil_images.real.square() + coil_images.imag.square()).sum(dim).sqrt()


def crop_readout(kspace: Tensor, height: int) -> Tensor:
    """Remove readout oversampling: the k-space of the image cropped to `height` rows.

    Scanners sample the readout (H) twice as densely as needed, which costs no time, and throw the
    outer half of the field of view away. The readout is never undersampled, so this crop is exact
    and may come before the mask: crop_readout(M k) = M crop_readout(k) for masks along W.

    Args:
        kspace: (..., H, W) complex.
        height: rows to keep, at most H.
    Returns:
        (..., height, W) complex; ifft2c of it is ifft2c(kspace) cropped along H.
    """
    full = kspace.shape[-2]
    if not 0 < height <= full:
        raise BadInput(f"cannot crop a readout of {full} samples to {height}: choose a smaller height")
    if full == height:
        return kspace
    if full % 2 or height % 2:
        image = _centred(torch.fft.ifftn, kspace, (-2,))
        return _centred(torch.fft.fftn, center_crop(image, (height, kspace.shape[-1])), (-2,))
    # Of even sizes the origin may stay at N//2 in k-space: that changes the image's sign from row to row, and
    # the way back changes it again. So nothing is moved but the rows that stay, which takes half the time.
    image = torch.fft.ifft(kspace, dim=-2, norm="ortho")
    kept = torch.cat([image[..., : height // 2, :], image[..., -height // 2 :, :]], dim=-2)
    return torch.fft.fft(kept, dim=-2, norm="ortho")


def nufft(image: Tensor, trajectory: Tensor) -> Tensor:
    """k-space of an image at any points, on the grid or off it: a non-uniform Fourier transform.

    By finufft where it is installed (`pip install finufft`), else by the sum itself: the same numbers,
    but some ten times slower. Barnett, Magland and af Klinteberg 2019, SIAM J. Sci. Comput. 41(5).

    Args:
        image: (H, W) complex, on the CPU.
        trajectory: (..., 2) float, row and column of each point in cycles per field of view, DC at 0:
            at whole numbers fft2c has the same samples. |row| <= H / 2, |column| <= W / 2.
    Returns:
        samples (...) complex64, in the scale of fft2c.
    """
    return _nufft(image, trajectory, image.shape, adjoint=False).reshape(trajectory.shape[:-1])


def nufft_adjoint(samples: Tensor, trajectory: Tensor, size: Sequence[int]) -> Tensor:
    """The adjoint of nufft: samples (...) at trajectory (..., 2) -> image `size` = (H, W), complex64.

    No inverse: points that lie close together count double. Weigh the samples by the area of k-space that
    each stands for (density compensation) before, or solve for the image.
    """
    return _nufft(samples, trajectory, size, adjoint=True)


def _nufft(values: Tensor, trajectory: Tensor, size: Sequence[int], adjoint: bool) -> Tensor:
    """nufft and nufft_adjoint; the phases in float64, because their rounding would limit the accuracy."""
    points = trajectory.reshape(-1, 2) * (2 * math.pi / torch.tensor(size, dtype=torch.float64))  # radians per pixel
    scale = math.sqrt(size[0] * size[1])
    if importlib.util.find_spec("finufft"):
        import finufft

        y, x = points.T.contiguous().numpy()
        options = {"eps": 1e-7, "isign": 1 if adjoint else -1, "nthreads": torch.get_num_threads()}
        data = values.to(torch.complex128).numpy()
        if adjoint:
            result = finufft.nufft2d1(y, x, data.ravel(), tuple(size), **options)
        else:
            result = finufft.nufft2d2(y, x, np.ascontiguousarray(data), **options)
        return torch.from_numpy(result / scale).to(torch.complex64)
    pixels = [torch.arange(n) - n // 2 for n in size]
    rows, columns = (torch.exp(-1j * points[:, i, None] * pixels[i]).to(torch.complex64) for i in (0, 1))
    values = values.to(torch.complex64)
    if adjoint:
        return (rows.conj() * values.reshape(-1, 1)).mT @ columns.conj() / scale
    return ((rows @ values) * columns).sum(-1) / scale


# --------------------------------------------------------------------------------------------------
# 2 Masks: which k-space samples are measured
# --------------------------------------------------------------------------------------------------
# A mask is a bool tensor, True = measured. The zero frequency (DC) of an axis
# with n samples has index n // 2, as fft2c puts it. Lines lie along H, so a 1-D
# mask has shape (W,) and broadcasts over (..., H, W) by itself.
#
# Sources, named in the docstrings by author and year:
#   Cook, Stochastic sampling in computer graphics, ACM Trans Graph 5, 1986 (dart throwing)
#   Tsai and Nishimura, variable-density k-space trajectories, Magn Reson Med 43, 2000
#   Griswold et al., GRAPPA, Magn Reson Med 47, 2002
#   Lustig, Donoho and Pauly, Sparse MRI, Magn Reson Med 58, 2007
#   Winkelmann et al., golden-ratio radial profile order, IEEE Trans Med Imaging 26, 2007
#   Vasanawala et al., Practical parallel imaging compressed sensing MRI, IEEE ISBI 2011
#   Zbontar et al., fastMRI, arXiv:1811.08839, 2018
#   Defazio, Offset sampling, arXiv:1912.01101, 2019
#   Jung et al., k-t FOCUSS, Magn Reson Med 61, 2009

Shape = tuple[int, ...]
Rng = np.random.RandomState  # numpy's older generator: its stream is the one fastMRI's published masks come from


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
    """Draw a sampling mask of any kind in the tables MASKS and SEQUENCE_MASKS, whose docstrings name the sources.

    The kinds that exist in fastMRI return the same lines as fastMRI for the same seed (Zbontar 2018).
    A file name as seed gives that file the same mask in every run, which is how fastMRI
    fixes its validation masks; None gives a new mask at every call, as in training.

    Args:
        kind: a key of MASKS, or of SEQUENCE_MASKS for a sequence (..., frames, H, W).
        shape: shape of the k-space, (..., H, W); 1-D kinds read only W.
        acceleration: R, at least 1. All samples / kept samples, centre included, except for
            equispaced, magic and grappa: there it is the step of the grid, a whole number,
            and the centre comes on top.
        center_fraction: share of the samples, in (0, 1], that is kept without gaps around DC:
            lines for a 1-D kind, area (a block with the matrix's aspect) for a 2-D kind.
            radial, spiral and low_pass have a dense centre by their geometry and ignore it.
        seed: None, a whole number, a file name (without its folder) or a tuple of whole numbers.
    Returns:
        torch.bool, shape (W,) for a 1-D kind, (H, W) for a 2-D kind, (frames, 1, W) for a
        kind of SEQUENCE_MASKS: broadcasts to `shape`.
    Raises:
        BadInput: unknown kind, a number outside its range, or numbers that contradict
            each other; the message names the value and the mend.
    """
    draw = choose(MASKS | SEQUENCE_MASKS, kind, "mask kind")
    shape = tuple(int(n) for n in shape)
    axes = 3 if kind in SEQUENCE_MASKS else 2 if kind in _KINDS_2D else 1
    if len(shape) < axes or min(shape) < 1:
        names = ", ".join(("frames", "H", "W")[-axes:])
        raise BadInput(f"shape {shape} does not fit the {axes}-D kind {kind!r}: give (..., {names}), each at least 1")
    _check_numbers(acceleration, center_fraction)
    try:
        rng = np.random.RandomState(tuple(map(ord, seed)) if isinstance(seed, str) else seed)
    except (TypeError, ValueError):
        raise BadInput(f"seed {seed!r}: give None, whole numbers from 0 to 2**32 - 1, or a file name") from None
    rng.randint(1)  # fastMRI first picks one of its (fraction, acceleration) pairs; here there is one
    mask = torch.from_numpy(draw(shape[-axes:], acceleration, center_fraction, rng))
    reached = effective_acceleration(mask)
    if kind in _KINDS_OWN_CENTER and not 0.75 < reached / acceleration < 1.33:
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
            f"centre alone is {kept} of {mask.size} samples; use at most {largest:g} or lower that"
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


# --- 1-D kinds: lines along H ----------------------------------------------
# Every kind takes (sizes, R, center_fraction, generator) and returns a bool array of those sizes.


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
    if n_low == n or n_low * acceleration >= n:  # the centre is all there is to keep
        return mask
    step = acceleration * (n_low - n) / (n_low * acceleration - n)  # not whole: single steps are rounded below
    first = rng.randint(0, round(step))
    # fastMRI stops at n - 1, so R = 1 keeps all lines but the last. Its masks are the standard: keep that.
    mask[np.around(np.arange(first, n - 1, step)).astype(int)] = True
    return mask


def _magic(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """Every R-th line, the halves shifted against each other; centre extra, true factor below R (Defazio 2019)."""
    return _center(shape, center_fraction) | _half_grids(shape[0], _whole_step(acceleration), rng)


def _magic_fraction(shape: Shape, acceleration: float, center_fraction: float, rng: Rng) -> np.ndarray:
    """As magic, with a wider whole step, so that the lines make roughly R, centre included (Defazio 2019)."""
    center = _center(shape, max(center_fraction, 1 / shape[0]), acceleration)  # one line at least
    outside = round(center.size / acceleration) - int(center.sum())
    if outside == 0:
        return center
    return center | _half_grids(center.size, round(center.size / outside), rng)


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


# --- ky-t kinds: other lines in every frame of a sequence -------------------


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


MASKS: dict[str, Callable] = {
    "random": _random,
    "equispaced": _equispaced,
    "equispaced_fraction": _equispaced_fraction,
    "magic": _magic,
    "magic_fraction": _magic_fraction,
    "grappa": _grappa,
    "variable_density": _variable_density,
    "gaussian_2d": _gaussian_2d,
    "poisson_disc": _poisson_disc,
    "radial": _radial,
    "spiral": _spiral,
    "low_pass": _low_pass,
}
SEQUENCE_MASKS: dict[str, Callable] = {"kt": _kt, "kt_gaussian": _kt_gaussian}
_KINDS_OWN_CENTER = ("radial", "spiral", "low_pass")  # a dense centre by geometry: they ignore center_fraction
_KINDS_2D = ("gaussian_2d", "poisson_disc", *_KINDS_OWN_CENTER)
_KINDS_WHOLE_STEP = ("equispaced", "magic", "magic_fraction", "grappa")  # a grid of every n-th line, n whole


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
    choose(MASKS, kind, "mask kind")
    _check_numbers(effective, center_fraction)
    if center_fraction * effective > 1:
        raise BadInput(
            f"acceleration {effective} is impossible with center_fraction {center_fraction}: "
            f"use at most {math.floor(100 / center_fraction) / 100:g} or lower that"
        )
    if kind not in _KINDS_WHOLE_STEP:
        return float(effective), center_fraction

    def center(step: int) -> float:
        return (1 / effective - 1 / step) / (1 - 1 / step)

    first = math.floor(effective) + 1  # smaller steps alone keep too many lines
    step = min(range(first, 8 * first), key=lambda s: abs(center(s) - center_fraction))
    # magic_fraction takes the share of centre and grid together and finds the step itself
    reached = max(1.0, 1 / (center(step) + 1 / step))
    return reached if kind == "magic_fraction" else float(step), center(step)


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


# --------------------------------------------------------------------------------------------------
# 3 Volumes: reading, writing, splitting
# --------------------------------------------------------------------------------------------------

# Columns at the edge of k-space whose largest sample is this much smaller than the largest sample of
# the slice were never acquired (some converters leave 1e-16 there instead of zero).
EMPTY_COLUMN = 1e-12
# Samples of a slice, all coils together: 32 coils of 640 x 512 are ten million. A file of a few bytes can
# declare any shape, and reading it would fill the memory.
LARGEST_SLICE = 2**24
LONGEST_HEADER = 2**20  # bytes


@dataclass(frozen=True)
class Volume:
    """One file of k-space; slices are read when asked for, one at a time.

    Attributes:
        path: the HDF5 file.
        shape: of the k-space, (slices, H, W) for one coil, (slices, coils, H, W) for many.
        target_size: (h, w) of the reconstruction.
        acquisition: name of the sequence, for example CORPD_FBK or AXT2.
        patient_id: the subject. Splits go by it.
        columns: (first, last + 1) phase-encode columns that the header says were acquired.
        mask: bool (W,) in test files, which are undersampled already; else None.
        target_key: the data set that holds the reference image; None where it is computed.
        attributes: all attributes of the file.
    """

    path: Path
    shape: tuple[int, ...]
    target_size: tuple[int, int]
    acquisition: str
    patient_id: str
    columns: tuple[int, int]
    mask: Tensor | None = field(repr=False)
    target_key: str | None
    attributes: dict = field(repr=False)

    def __len__(self) -> int:
        return self.shape[0]

    def kspace(self, index: int) -> Tensor:
        """k-space of slice `index`: complex64 ([coils,] H, W), in the file's own units.

        Raises:
            BadInput: unreadable, NaN or infinite samples, or nothing but zeros.
        """
        kspace = torch.from_numpy(self._read("kspace", index, np.complex64))
        where = f"{self.path}: slice {index} of kspace"
        low, high = torch.view_as_real(kspace).aminmax()  # one pass; NaN comes through
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise BadInput(f"{where} holds NaN or infinite samples: repair or remove the file")
        if low == high == 0:
            raise BadInput(f"{where} is all zero: remove the slice or the file")
        return kspace

    def cropped(self, index: int) -> tuple[Tensor, Tensor]:
        """Slice `index` as training wants it: k-space without readout oversampling, and the columns acquired.

        Returns:
            complex64 (h, W), see crop_readout; bool (W,), see acquired.
        """
        kspace = self.kspace(index)
        return crop_readout(kspace, self.target_size[0]), self.acquired(kspace)

    def target(self, index: int) -> Tensor:
        """The reference magnitude of slice `index`: float32 (h, w), in the units of the k-space.

        reconstruction_esc for single-coil files, reconstruction_rss for multi-coil ones (single-coil
        files carry an rss image too, but that came from all the coils and is not their target).
        """
        if self.target_key:
            target = torch.from_numpy(self._read(self.target_key, index, np.float32))
            low, high = target.aminmax()
            if not (torch.isfinite(low) and torch.isfinite(high)):
                where = f"{self.path}: slice {index} of {self.target_key}"
                raise BadInput(f"{where} holds NaN or infinite values: repair or remove the file")
            return target
        if self.mask is not None:
            raise BadInput(f"{self.path}: an undersampled test file has no target: score other files")
        return self.magnitude(center_crop(ifft2c(self.kspace(index)), self.target_size))

    @staticmethod
    def magnitude(image: Tensor) -> Tensor:
        """What is compared: the root-sum-of-squares of ([coils,] h, w) complex images."""
        return rss(image, 0) if image.ndim == 3 else image.abs()

    @functools.cached_property
    def maximum(self) -> float:
        """Largest value of the target volume, the unit of the losses; read from the attribute `max`."""
        with contextlib.suppress(TypeError, ValueError):  # text, a list
            stated = float(self.attributes.get("max", math.nan))
            if 0 < stated < math.inf:
                return stated
        return max(float(self.target(i).max()) for i in range(len(self)))

    def acquired(self, kspace: Tensor) -> Tensor:
        """Which phase-encode columns the scanner recorded: bool (W,).

        The header's limits, less empty columns at the edge of `kspace` ([coils,] H, W) unless the file is an
        undersampled one. Columns outside are zero in the file and in the reference; no mask counts them as sampled.
        """
        samples, (first, end) = torch.view_as_real(kspace), self.columns
        low, high = samples.aminmax()
        # An empty column of an undersampled file may just have been left out: none is trimmed.
        least = EMPTY_COLUMN * max(-low, high) if self.mask is None else -1
        while first < end and samples[..., first, :].abs().max() <= least:
            first += 1
        while first < end and samples[..., end - 1, :].abs().max() <= least:
            end -= 1
        column = torch.arange(self.shape[-1])
        return (column >= first) & (column < end)

    def noise(self) -> Tensor | None:
        """The noise scan of a multi-coil file: complex64 (coils, samples), recorded without a signal; None without one.

        Raises:
            BadInput: it does not fit the coils, or is unreadable.
        """
        with _reading(self.path, "noise"), h5py.File(self.path, "r") as file:
            data = _dataset(file, self.path, "noise", "c", "complex")
            if data is not None and (data.ndim != 2 or data.shape[:1] != self.shape[1:-2]):
                raise BadInput(f"{self.path}: noise has shape {data.shape} beside kspace {self.shape}: repair it")
            return None if data is None else torch.from_numpy(data[()].astype(np.complex64))

    def fingerprints(self) -> list[str]:
        """A hash of each slice's central readout line: equal for copies under whatever name; "" for an empty one.

        Only one line per slice is read, so that a folder of many gigabytes takes seconds.
        """
        lines = self._read("kspace", (..., self.shape[-2] // 2, slice(None)), np.complex64)
        lines = np.ascontiguousarray(lines) + np.float32(0)  # + 0: a negative zero is a zero
        return [hashlib.sha1(line.tobytes()).hexdigest() if line.any() else "" for line in lines]

    def _read(self, key: str, index: Any, kind: type) -> np.ndarray:
        if isinstance(index, int) and not 0 <= index < len(self):
            raise BadInput(f"{self.path}: no slice {index}: choose one from 0 to {len(self) - 1}")
        place = f"slice {index} of {key}" if isinstance(index, int) else key
        with _reading(self.path, place), np.errstate(over="ignore"):  # what is too large becomes infinite, and is told
            state = self.path.stat()
            plain = _plain_layout(self.path, key, state.st_size, state.st_mtime_ns, state.st_ino)
            if plain and isinstance(index, int):
                start, stored = plain
                record = np.fromfile(self.path, stored, 1, offset=start + index * stored.itemsize)[0]
                return record.astype(kind, copy=False)
            with h5py.File(self.path, "r") as file:
                return file[key][index].astype(kind, copy=False)


@functools.lru_cache(4096)
def _plain_layout(path: Path, key: str, *_state: int) -> tuple[int, np.dtype] | None:
    """Where the slices of a data set begin in the file, and the type of one; None if they lie in chunks.

    Read from there they take a fifth of the time that HDF5 takes. A file in a new state is looked into again.
    """
    with h5py.File(path, "r") as file:
        data = file[key]
        start, stored = data.id.get_offset(), data.dtype
        plain = start is not None and stored.kind in "cfiu" and data.id.get_type() == h5py.h5t.py_create(stored)
        return (start, np.dtype((stored, data.shape[1:]))) if plain else None


@contextlib.contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Tell whatever HDF5 finds in damaged bytes in one line."""
    try:
        yield
    except BadInput:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, OverflowError, NotImplementedError) as error:
        reason = f"{error}".splitlines()[0][:300] if f"{error}" else type(error).__name__
        raise BadInput(f"{path}: cannot read {what} ({reason}): the file is damaged, copy it again") from error


def _dataset(file: h5py.File, path: Path, key: str, kinds: str, expected: str) -> h5py.Dataset | None:
    """A data set of the file itself that can be read within the memory; None if there is none.

    `kinds` are numpy's letters of the kinds of numbers that it may hold, `expected` says the same in words.
    """
    link = file.get(key, getlink=True)
    if link is None:
        return None
    data = file.get(key) if isinstance(link, h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset):
        found = "a link to somewhere else" if data is None else f"a {type(data).__name__.lower()}"
        raise BadInput(f"{path}: no data set {key!r} but {found}: store the data in the file itself")
    if data.external or data.is_virtual:
        raise BadInput(f"{path}: {key} lies in other files: store the data in the file itself")
    if data.dtype.kind not in kinds or data.shape is None:
        raise BadInput(f"{path}: {key} is {data.dtype}, not {expected}: repair or convert the file")
    shapes = [data.shape[1:] if data.ndim > 2 else data.shape, data.chunks or (1,)]
    if max(math.prod(shape) for shape in shapes) > LARGEST_SLICE or data.dtype.itemsize > LONGEST_HEADER:
        size = f"shape {data.shape} of {data.dtype}, in chunks {data.chunks}"
        raise BadInput(f"{path}: {key} has {size}: more than {LARGEST_SLICE} samples at a time are not read, split it")
    plist = data.id.get_create_plist()
    for code, _, _, name in (plist.get_filter(i) for i in range(plist.get_nfilters())):
        if not h5py.h5z.filter_avail(code):
            lacking = f"{code} {name.decode(errors='replace')!r}, which is not installed"
            raise BadInput(f"{path}: {key} is compressed with filter {lacking}: store it with gzip or uncompressed")
    return data


def _parse_header(path: Path, header: bytes, width: int) -> tuple[tuple[int, int], tuple | None]:
    """Acquired columns and reconstruction matrix from the ISMRMRD header of a fastMRI file."""
    try:
        text = header.decode()
        if "<!DOCTYPE" in text or len(text) > LONGEST_HEADER:  # entities can grow without bounds, or name other files
            raise ValueError("it is too long or declares entities")
        root = ElementTree.fromstring(text)

        def number(place: str) -> int:
            found = root.find("/".join("{*}" + step for step in place.split("/")))  # in any name space
            if found is None or found.text is None:
                raise ValueError(f"no {place}")
            return int(found.text)

        limits = "encoding/encodingLimits/kspace_encoding_step_1/"
        first = number("encoding/encodedSpace/matrixSize/y") // 2 - number(limits + "center")
        end = first + number(limits + "maximum") + 1
        recon = (number("encoding/reconSpace/matrixSize/x"), number("encoding/reconSpace/matrixSize/y"))
    except (ElementTree.ParseError, ValueError) as error:
        raise BadInput(f"{path}: ismrmrd_header is unreadable ({error}): delete the data set or repair it") from error
    return (max(first, 0), min(end, width)), recon


def read_volume(path: str | Path) -> Volume:
    """Open an HDF5 file in fastMRI's layout: single-coil, multi-coil, or test file with a mask.

    Only headers are read here; slices come from Volume.kspace and Volume.target.

    Args:
        path: the file. Data set `kspace` (slices, H, W) or (slices, coils, H, W), complex; optional
            `reconstruction_esc` or `reconstruction_rss`, `ismrmrd_header`, `mask` (W,); attributes
            `acquisition` and `patient_id`. Layout: Zbontar et al. 2018, arXiv 1811.08839.
    Raises:
        BadInput: missing, not HDF5, truncated, no k-space, wrong axes or type, a target or mask that
            does not fit.
    """
    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        raise BadInput(f"{path}: no such file: check the path")
    try:
        file = h5py.File(path, "r")
    except (OSError, UnicodeError) as error:
        raise BadInput(f"{path}: not an HDF5 file, or a truncated one: copy or download it again") from error
    with file, _reading(path, "the file"):
        data = _dataset(file, path, "kspace", "c", "complex")
        if data is None:
            found = ", ".join(list(file)[:9]) or "nothing"
            raise BadInput(f"{path}: no data set 'kspace' (found: {found}): data/README.md shows the layout")
        shape = data.shape
        if len(shape) not in (3, 4) or 0 in shape or len(data) > 10_000:
            raise BadInput(f"{path}: kspace has shape {shape}: expected (slices, H, W) or (slices, coils, H, W)")
        attributes = {key: file.attrs[key] for key in file.attrs}
        key: str | None = "reconstruction_esc" if len(shape) == 3 else "reconstruction_rss"
        target = _dataset(file, path, str(key), "fiu", "real")
        key = key if target is not None else None
        columns, recon = (0, shape[-1]), None
        header = _dataset(file, path, "ismrmrd_header", "SO", "text")
        if header is not None:
            content = header[()]
            if not isinstance(content, bytes):
                raise BadInput(f"{path}: ismrmrd_header is no text: delete the data set or repair it")
            columns, recon = _parse_header(path, content, shape[-1])
        if columns[0] >= columns[1]:
            raise BadInput(f"{path}: ismrmrd_header leaves no acquired columns: repair the header")
        if target is not None and (target.ndim != 3 or len(target) != shape[0]):
            raise BadInput(f"{path}: {key} is {target.shape} beside kspace {shape}: expected an image per slice")
        if recon and recon[1] > shape[-1]:  # an interpolated matrix (fastMRI's AXFLAIR_203): their references are W x W
            recon = (shape[-1], shape[-1])
        size = target.shape[-2:] if target is not None else (recon or shape[-2:])
        size = (min(size[0], shape[-2]), min(size[1], shape[-1]))
        if min(size) < 1:
            raise BadInput(f"{path}: ismrmrd_header or {key} asks for an image of {size[0]}x{size[1]}: repair it")
        if target is not None and size != target.shape[-2:]:
            raise BadInput(f"{path}: {key} {target.shape} is larger than kspace {shape}: repair it")
        mask, lines = None, _dataset(file, path, "mask", "biuf", "true or false")
        if lines is not None:
            mask = torch.from_numpy(np.asarray(lines[()]).astype(bool).reshape(-1))
            if len(mask) != shape[-1]:
                raise BadInput(f"{path}: mask has {len(mask)} columns, kspace {shape[-1]}: repair it")
            if not mask.any():
                raise BadInput(f"{path}: mask keeps no column: repair it")
    return Volume(
        path=path,
        shape=tuple(shape),
        target_size=size,
        acquisition=_text(attributes.get("acquisition", "unknown")),
        patient_id=_text(attributes.get("patient_id", path.stem)),
        columns=columns,
        mask=mask,
        target_key=key,
        attributes=attributes,
    )


def _text(value: Any) -> str:
    """An attribute as text; HDF5 has text of fixed length as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>{height}</x><y>{width}</y><z>1</z></matrixSize></encodedSpace>
<reconSpace><matrixSize><x>{h}</x><y>{w}</y><z>1</z></matrixSize></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum>
<center>{center}</center></kspace_encoding_step_1></encodingLimits>
<trajectory>cartesian</trajectory></encoding></ismrmrdHeader>
"""


def replace_file(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside `path` and rename it: readers see the old file or the new one, never half.

    Args:
        path: the file to write or replace; its folder is made if missing.
        write: called with the path to write to.
    Raises:
        BadInput: disk full or no permission; the file that was there before stays as it was.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.urandom(4).hex()}.partial")  # others may be writing the same file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]  # HDF5 tells pages
        raise BadInput(f"{path}: cannot be written ({reason}): free disk space or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_volume(
    path: str | Path,
    kspace: Tensor | np.ndarray,
    *,
    target_size: Sequence[int],
    acquisition: str,
    patient_id: str,
    mask: Tensor | np.ndarray | None = None,
    noise: Tensor | np.ndarray | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write k-space as a fastMRI file that read_volume and fastMRI's own readers open.

    Args:
        path: the file to write; replaced in one step.
        kspace: (slices, H, W) or (slices, coils, H, W) complex, fully sampled.
        target_size: (h, w) of the reference image, which is computed here: the magnitude (or the
            root-sum-of-squares) of the centre crop of the inverse transform.
        acquisition, patient_id: fastMRI's attributes of that name.
        mask: bool (W,); given, a test file is written: masked k-space, the mask, no reference.
        noise: (coils, samples) complex, a noise scan that goes with multi-coil files; see Volume.noise.
        attributes: further attributes (numbers, strings).
    """
    kspace = torch.as_tensor(kspace).to(torch.complex64)
    image = center_crop(ifft2c(kspace), target_size)
    target = (rss(image, 1) if kspace.ndim == 4 else image.abs()).numpy()
    (height, width), (h, w) = kspace.shape[-2:], target_size
    header = HEADER.format(height=height, width=width, h=h, w=w, last=width - 1, center=width // 2)

    def write(partial: Path) -> None:
        with h5py.File(partial, "w") as file:
            file["ismrmrd_header"] = header
            if mask is None:
                file["kspace"] = kspace.numpy()
                file["reconstruction_rss"] = target
                if kspace.ndim == 3:
                    file["reconstruction_esc"] = target
            else:
                file["kspace"] = (kspace * torch.as_tensor(mask) + 0.0).numpy()
                file["mask"] = np.asarray(mask)
            if noise is not None:
                file["noise"] = np.asarray(noise)
            file.attrs["acquisition"] = acquisition
            file.attrs["patient_id"] = patient_id
            file.attrs["max"] = float(target.max())
            file.attrs["norm"] = float(np.linalg.norm(target))
            file.attrs.update(attributes or {})

    replace_file(path, write)


def read_folder(folder: str | Path, axes: str = "") -> list[Volume]:
    """All volumes of a folder, sorted by name.

    Args:
        folder: that holds .h5 files.
        axes: of their k-space, "slices, H, W" or "slices, coils, H, W"; "": any.
    Raises:
        BadInput: the folder is missing or holds no .h5 file; a file is bad, or its k-space has other axes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder: data/README.md tells where each data set goes")
    volumes = [read_volume(path) for path in sorted(folder.glob("*.h5"))]
    if not volumes:
        raise BadInput(f"{folder}: no .h5 file in it: data/README.md tells where each data set goes")
    for volume in volumes:
        if axes and len(volume.shape) != axes.count(",") + 1:
            raise BadInput(f"{volume.path}: kspace is {volume.shape}, this task takes ({axes}): choose other files")
    return volumes


def read_train_and_val(folder: Path, read: Callable[[Path], list[Volume]]) -> tuple[list[Volume], list[Volume]]:
    """The volumes of folder/train and of folder/val."""
    return read(folder / "train"), read(folder / "val")


def find_leaks(train: Sequence[Volume], val: Sequence[Volume]) -> list[str]:
    """Validation volumes that are in the training data too, one line each, whatever they are called.

    Found by file name, by subject, and by the data themselves (Volume.fingerprints).
    """
    files = {volume.path.name for volume in train}
    subjects = {volume.patient_id: volume.path for volume in train}
    copies = {mark: (volume.path, s) for volume in train for s, mark in enumerate(volume.fingerprints()) if mark}
    leaks = []
    for volume in val:
        same = [(s, *copies[mark]) for s, mark in enumerate(volume.fingerprints()) if mark in copies]
        if volume.path.name in files:
            leaks.append(f"{volume.path}: a file of this name is in the training data too: keep it on one side")
        elif volume.patient_id in subjects:
            leaks.append(
                f"{volume.path}: subject {volume.patient_id!r} is in the training data too "
                f"({subjects[volume.patient_id].name}): split by subject, or the score measures memory"
            )
        elif same:
            leaks.append(
                f"{volume.path}: slice {same[0][0]} is also slice {same[0][2]} of {same[0][1].name} in the training "
                f"data ({len(same)} such slices): the same scan under another name, keep it on one side"
            )
    return leaks


def check_split(train: Sequence[Volume], val: Sequence[Volume]) -> None:
    """Raise BadInput if a subject, a file name or a slice is on both sides, or if a file has no reference."""
    for volume in [*train, *val]:
        if volume.mask is not None:
            raise BadInput(f"{volume.path}: a test file without reference: take it out of train/ and val/")
    leaks = find_leaks(train, val)
    if leaks:
        raise BadInput(leaks[0] + (f" (and {len(leaks) - 1} more files)" if leaks[1:] else ""))


def split_by_subject(volumes: Sequence[Volume], val_share: float, seed: int = 0) -> tuple[list, list]:
    """Split volumes into (train, val) so that no subject is in both; val_share of the subjects."""
    subjects = sorted({v.patient_id for v in volumes})
    order = np.random.RandomState(seed).permutation(len(subjects))
    chosen = {subjects[i] for i in order[: max(1, round(val_share * len(subjects)))]}
    train = [v for v in volumes if v.patient_id not in chosen]
    return train, [v for v in volumes if v.patient_id in chosen]


def find_centre(kspace: Tensor) -> tuple[int, int]:
    """How many samples the largest of k-space (..., H, W) lies from where fft2c expects it: (rows, columns).

    A few samples are normal (the echo is rarely exact). Half the matrix means that an fftshift is missing or ran
    over the wrong axes. Leading axes (coils) are summed.
    """
    height, width = kspace.shape[-2:]
    peak = int(kspace.abs().reshape(-1, height, width).sum(0).argmax())
    return peak // width - height // 2, peak % width - width // 2


def looks_interpolated(kspace: Tensor) -> bool:
    """Whether the outer part of k-space ([coils,] H, W) is empty: an enlarged image (zero filling, interpolation).

    Such data are less than they seem: of "4x" a part is the interpolation undone. Compares the outermost tenth of
    either axis with the band at a third of it; noise alone fills both alike. Taking the magnitude afterwards fills
    the outer k-space a little, and may hide it: but then looks_magnitude_only sees that. Give it only the columns
    that were acquired.
    """
    # scans: above 0.02; enlarged images: 0
    return any(profile[distance > 0.9].mean() < 1e-3 for profile, distance in _spectrum(kspace))


def spectrum_extent(kspace: Tensor) -> tuple[int, int]:
    """The matrix (rows, columns) beyond which k-space ([coils,] H, W) is empty, by looks_interpolated's threshold."""
    # not <=: NaN, where there is nothing to compare with, counts as filled
    ends = [(len(profile), float(distance[~(profile <= 1e-3)].max())) for profile, distance in _spectrum(kspace)]
    rows, columns = (min(size, round(size * end)) for size, end in ends)
    return rows, columns


def _spectrum(kspace: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Along the rows, then the columns: the power, relative to that at a third of the way, and the way from 0 to 1."""
    power = kspace.abs().square().reshape(-1, *kspace.shape[-2:]).sum(0)
    for profile in (power.sum(1), power.sum(0)):
        size = len(profile)
        distance = (torch.arange(size) - size // 2).abs() / (size / 2)
        yield profile / profile[(distance > 0.25) & (distance < 0.4)].mean(), distance


def looks_magnitude_only(kspace: Tensor) -> bool:
    """Whether k-space ([coils,] H, W) is Hermitian, k(-f) = conj k(f): it was computed from magnitude images.

    Then half of it is redundant, and noise and phase are not those of a scan: scores come out too good
    ("data crimes", Shimron et al. 2022, PNAS 119(13)).
    """
    image = ifft2c(kspace)
    phase = image.square().sum().angle() / 2  # one constant phase makes no scan
    return bool((image * torch.exp(-1j * phase)).imag.norm() < 1e-3 * image.norm())


def looks_noiseless(kspace: Tensor) -> bool:
    """Whether the air in the image of k-space ([coils,] H, W) is empty: simulated without noise, or masked."""
    image = ifft2c(kspace).abs()
    h, w = (max(n // 16, 1) for n in image.shape[-2:])
    corners = torch.stack([image[..., i, j] for i in (slice(h), slice(-h, None)) for j in (slice(w), slice(-w, None))])
    return bool(corners.mean() < 1e-5 * image.max())


def volume_warnings(volume: Volume) -> list[str]:
    """What is suspicious about a file's k-space, a line each, judged by its middle slice."""
    kspace = volume.kspace(len(volume) // 2)
    rows, columns = find_centre(kspace)
    found = {
        f"the largest sample lies {rows} rows and {columns} columns off the centre: fftshift over the last two axes": (
            abs(rows) > kspace.shape[-2] / 8 or abs(columns) > kspace.shape[-1] / 8
        ),
        "the outer k-space is empty: interpolated images, the true matrix is smaller": (
            looks_interpolated(kspace[..., volume.acquired(kspace)])
        ),
        "the k-space is Hermitian: made from magnitude images, not measured": looks_magnitude_only(kspace),
        "the air is empty: simulated without noise, or masked": looks_noiseless(kspace),
    }
    note = getattr(volume, "note", "")  # an ImageVolume's
    return [text for text, true in found.items() if true] + [note] * bool(note)


# Images instead of k-space: DICOM series and folders of pictures.


IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class ImageVolume(Volume):
    """Magnitude images, of which k-space is computed; a slice is read and transformed when asked for.

    Networks look better on such data than on scans (see looks_interpolated, looks_magnitude_only). So k-space is
    cropped to the acquired matrix, and a smooth phase, and noise if wanted, are simulated; both are the same at every
    reading, because the image is their seed (names are not: every series has its IM0001).

    Attributes:
        files: the image of each slice.
        phase: simulate a smooth phase; without it k-space is Hermitian.
        noise_level: standard deviation, in the real part, of simulated noise, as a fraction of the slice's maximum.
        note: what was done to the images, and why; "" if nothing.
    """

    files: tuple[Path, ...]
    phase: bool = True
    noise_level: float = 0.0
    note: str = ""

    def image(self, index: int) -> Tensor:
        """Slice `index` as it is stored, rescaled as its header says: float32, before any crop."""
        if not 0 <= index < len(self):
            raise BadInput(f"{self.path}: no slice {index}: choose one from 0 to {len(self) - 1}")
        image = torch.from_numpy(_read_picture(self.files[index]))
        if not torch.isfinite(image).all() or not image.any():
            raise BadInput(f"{self.files[index]}: the image is empty, or holds NaN or infinite values: remove the file")
        return image

    def kspace(self, index: int) -> Tensor:
        """See Volume.kspace; the image values keep their size."""
        image = self.image(index)
        random = np.random.RandomState(np.frombuffer(hashlib.sha1(image.numpy().tobytes()).digest(), np.uint32))
        kspace = center_crop(fft2c(image), self.shape[1:])
        # real again: of an even matrix the outermost row and column have lost their mirror images
        image = ifft2c(kspace).real * math.sqrt(kspace.numel() / image.numel())
        if self.phase:
            y, x = (torch.linspace(-1, 1, n) for n in image.shape)
            terms = torch.stack(torch.broadcast_tensors(torch.ones(()), y[:, None], x, y[:, None] ** 2, x**2))
            weights = torch.from_numpy(random.normal(0, 1.2, 5).astype(np.float32))
            image = torch.polar(image, torch.tensordot(weights, terms, 1))  # a negative value gets another pi
        if self.noise_level:
            drawn = torch.from_numpy(random.standard_normal((*image.shape, 2)).astype(np.float32))
            image = image + self.noise_level * image.abs().max() * torch.view_as_complex(drawn)
        return fft2c(image)

    def fingerprints(self) -> list[str]:
        """See Volume.fingerprints: of the stored images' central rows."""
        images = (self.image(i).numpy() for i in range(len(self)))
        rows = (image[len(image) // 2] for image in images)
        return [hashlib.sha1(row.tobytes()).hexdigest() if row.any() else "" for row in rows]

    def part(self, first: int, end: int) -> ImageVolume:
        """Slices first .. end - 1 as a volume of their own, which counts as a subject of its own."""
        which = f"slices_{first}_{end - 1}"
        return dataclasses.replace(
            self,
            path=self.path.with_name(f"{self.path.stem}_{which}.h5"),
            shape=(end - first, *self.shape[1:]),
            patient_id=f"{self.patient_id}_{which}",
            files=self.files[first:end],
        )


@contextlib.contextmanager
def _judging(path: Path, what: str) -> Iterator[None]:
    """Tell whatever a reader of images finds in damaged bytes in one line; its warnings are not for the user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadInput:
        raise
    except Exception as error:  # these readers raise whatever the bytes lead them to
        raise BadInput(f"{path}: damaged {what} ({type(error).__name__}): copy or export it again") from error


def _is_dicom(path: Path) -> bool:
    """Whether a file says of itself that it is DICOM; the name needs no suffix."""
    with _judging(path, "file"), open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


# What is read of a DICOM header; the rest stays in the file.
DICOM_TAGS = [
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "PhotometricInterpretation", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "PatientID", "PatientName"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "ImagePositionPatient"),
    *("ImageOrientationPatient", "SliceLocation", "AcquisitionMatrix", "InPlanePhaseEncodingDirection"),
    *("ScanningSequence", "EchoTime", "ImageType", "WindowCenter", "WindowWidth"),
]


# DICOM's kinds of files that accompany images: directories, presentation states, reports.
NO_IMAGES = ("1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.1.1.11.", "1.2.840.10008.5.1.4.1.1.88.")


def _dicom(path: Path, pixels: bool = False) -> Any:
    """The header of a DICOM file, or its image as float32 (H, W); None for a kind of file that has no image.

    Raises:
        BadInput: no pydicom; the file is damaged, compressed without a decoder, in colour, too large ..
    """
    if importlib.util.find_spec("pydicom") is None:
        raise BadInput(f"{path}: reading DICOM needs pydicom: pip install pydicom")
    import pydicom

    with _judging(path, "DICOM file"):
        syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
        if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:  # a small file may unpack to any size
            raise BadInput(f"{path}: the whole file is deflated: convert it (dcmconv +te)")
        tags: list[Any] = [*DICOM_TAGS, "PixelData"] if pixels else [*DICOM_TAGS]
        data = pydicom.dcmread(path, specific_tags=tags, stop_before_pixels=not pixels)
        if str(data.file_meta.get("MediaStorageSOPClassUID")).startswith(NO_IMAGES):
            return None
        rows, columns = int(data.get("Rows") or 0), int(data.get("Columns") or 0)
        if rows < 1 or columns < 1 or (pixels and "PixelData" not in data):
            raise BadInput(f"{path}: no pixel data in it, so no image: remove the file")
        if rows * columns > LARGEST_SLICE:
            raise BadInput(f"{path}: {rows}x{columns} pixels, more than {LARGEST_SLICE} are not read")
        colours = str(data.get("PhotometricInterpretation"))
        if int(data.get("SamplesPerPixel") or 1) != 1 or colours not in ("MONOCHROME1", "MONOCHROME2"):
            raise BadInput(f"{path}: a colour image ({colours[:20]}): give grey ones")
        if int(data.get("NumberOfFrames") or 1) != 1:
            raise BadInput(f"{path}: many frames in one file: convert it to single frames")
        if not pixels:
            return data
        try:
            stored = data.pixel_array
        except (RuntimeError, NotImplementedError) as error:
            if not syntax.is_compressed:
                raise
            raise BadInput(
                f"{path}: compressed ({syntax.name}), and no decoder reads it: pip install pylibjpeg "
                "pylibjpeg-libjpeg pylibjpeg-openjpeg, or decompress it (gdcmconv --raw)"
            ) from error
        slope, intercept = float(data.get("RescaleSlope") or 1), float(data.get("RescaleIntercept") or 0)
        image = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        return image.max() - image if colours == "MONOCHROME1" else image


@contextlib.contextmanager
def _picture(path: Path) -> Iterator[Any]:
    """A PNG, TIFF .. file as Pillow opens it, which reads the header only."""
    from PIL import Image

    with _judging(path, "image"), Image.open(path) as opened:
        if opened.width * opened.height * getattr(opened, "n_frames", 1) > LARGEST_SLICE:
            raise BadInput(f"{path}: {opened.height}x{opened.width} pixels are too many for a slice: crop the image")
        yield opened


def _picture_size(path: Path) -> tuple[int, int]:
    """(H, W) of an image file, from its header."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        data = _dicom(path)
        return data.Rows, data.Columns
    with _picture(path) as opened:
        return opened.height, opened.width


def _read_picture(path: Path) -> np.ndarray:
    """One grey image, DICOM or a common image format, as float32 (H, W)."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        image: np.ndarray = _dicom(path, pixels=True)
        return image
    from skimage import io as images

    with _picture(path):
        image = images.imread(path)
        if image.ndim == 3 and image.shape[-1] in (3, 4) and not np.ptp(image[..., :3], axis=-1).any():
            image = image[..., 0]  # grey, stored as three equal colours
        if image.ndim != 2 or image.dtype.kind not in "fiub":
            raise BadInput(f"{path}: a colour image or several in one, of shape {image.shape}: give single grey images")
        return image.astype(np.float32)


# Person -> "subject_1", .. in the order of reading: names and numbers of patients stay inside this dictionary.
_SUBJECTS: dict[Any, str] = {}


def _series(files: Sequence[Path]) -> Iterator[tuple[str, dict, list[Path]]]:
    """DICOM files as (acquisition, what is known, files in the order of their position), a series at a time."""
    series: dict[Any, list[tuple[float, Path, Any]]] = {}
    for path in files:
        data = _dicom(path)
        if data is None:
            continue
        try:
            kind = "/".join(map(str, data.get("ImageType") or ()))
            turn = [float(v) for v in data.get("ImageOrientationPatient") or ()]
            place = [float(v) for v in data.get("ImagePositionPatient") or ()]
            if len(turn) == 6 and len(place) == 3:
                position = float(np.dot(np.cross(turn[:3], turn[3:]), place))
            else:
                position = float(data.get("SliceLocation") or data.get("InstanceNumber") or 0)
            key = str(data.get("SeriesInstanceUID")), kind, float(data.get("EchoTime") or 0)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{path}: damaged DICOM header ({error}): copy or export it again") from error
        series.setdefault(key, []).append((position, path, data))
    for (_, _, echo), found in series.items():
        found.sort(key=lambda item: item[:2])
        data = found[0][2]
        person = [str(data.get("PatientID", "")), str(data.get("PatientName", ""))]
        if not any(c.isalnum() for text in person for c in text):  # "***" or nothing: made anonymous
            person = [str(data.get("StudyInstanceUID", ""))]
        # Free text of the header (descriptions, protocols) may name a person: only codes and numbers are taken.
        codes = [c for c in np.atleast_1d(data.get("ScanningSequence") or []) if c in ("SE", "IR", "GR", "EP", "RM")]
        name = f"series_{data.get('SeriesNumber') or 0}"
        known: dict[str, Any] = {"person": tuple(person), "matrix": (0, 0), "name": name}
        matrix = [int(n) for n in data.get("AcquisitionMatrix") or () if n]
        if len(matrix) == 2:
            known["matrix"] = matrix[::-1] if data.get("InPlanePhaseEncodingDirection") == "COL" else matrix
        with contextlib.suppress(TypeError, ValueError):  # for display only; some headers give several
            known["window"] = float(data.get("WindowCenter")), float(data.get("WindowWidth"))
        yield "_".join([*codes, f"TE{echo:g}"]), known, [path for _, path, _ in found]


def read_images(folder: str | Path, phase: bool = True, noise: float = 0.0) -> list[Volume]:
    """Volumes of a folder of images: DICOM series, told apart by their headers, or grey PNG, TIFF .. files.

    Subfolders are searched. A DICOM series is one volume, sorted by position; so are the plain images of one
    folder, sorted by name, which count as one subject. Names and numbers of patients appear nowhere: subjects are
    numbered. DICOM files without images, such as the directory of an export, are passed over. Images that the scanner
    interpolated are cropped in k-space to the acquired matrix, known from the header (AcquisitionMatrix) or from
    where the spectrum of the middle slice ends, and every matrix to multiples of 8, so that half and a quarter of it
    are whole and even.

    Args:
        folder: of the files.
        phase, noise: see ImageVolume.
    Raises:
        BadInput: no such folder, no image in it; a file that cannot be read, sizes that differ within a volume.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder: data/README.md tells where each data set goes")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    pictures: dict[Path, list[Path]] = {}
    for path in files:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            pictures.setdefault(path.parent, []).append(path)
    found: list[tuple[str, dict, list[Path]]] = list(_series([path for path in files if _is_dicom(path)]))
    for parent, inside in pictures.items():
        found.append(("images", {"person": (str(parent.resolve()),), "matrix": (0, 0), "name": parent.name}, inside))
    if not found:
        raise BadInput(f"{folder}: no DICOM, PNG or TIFF image in it: is this the folder of the images?")
    names, volumes = Counter[str](), list[Volume]()
    for acquisition, known, inside in found:
        name = f"{folder.name}_{known['name']}"
        names[name] += 1
        name += f"_{names[name]}" if names[name] > 1 else ""
        volume = ImageVolume(
            path=folder / f"{name}.h5",
            shape=(len(inside), 0, 0),
            target_size=(0, 0),
            acquisition=acquisition,
            patient_id=_SUBJECTS.setdefault(known["person"], f"subject_{len(_SUBJECTS) + 1}"),
            columns=(0, 0),
            mask=None,
            target_key=None,
            attributes={"window": known["window"]} if "window" in known else {},
            files=tuple(inside),
            phase=phase,
            noise_level=noise,
        )
        stored = volume.image(len(inside) // 2)
        pixels = f"{stored.shape[0]}x{stored.shape[1]}"
        for path in inside:
            h, w = _picture_size(path)
            if (h, w) != stored.shape:
                raise BadInput(f"{path}: {h}x{w} pixels beside images of {pixels}: put one size into each folder")
        spectrum, note = fft2c(stored), ""
        matrix, source = [min(n, m) for n, m in zip(known["matrix"], stored.shape)], "AcquisitionMatrix"
        if not all(matrix):
            matrix, source = list(stored.shape), "its spectrum"
            if looks_interpolated(spectrum):
                matrix = list(spectrum_extent(spectrum))
        if matrix != list(stored.shape):
            origin = f"{matrix[0]}x{matrix[1]} ({source})"
            note = f"images of {pixels} were interpolated from {origin}: k-space cropped to that"
        h, w = (n // 8 * 8 for n in matrix)
        if [h, w] != matrix:
            note += f"{'; ' if note else ''}{matrix[0]}x{matrix[1]} cropped to {h}x{w}, multiples of 8"
        if min(h, w) < 8:
            raise BadInput(f"{inside[0]}: an image of {pixels} is too small: use larger ones")
        if note:
            print(f"{volume.path.stem}: {note}")
        shape = len(inside), h, w
        volumes.append(dataclasses.replace(volume, shape=shape, target_size=(h, w), columns=(0, w), note=note))
    return volumes


@dataclass(frozen=True)
class CineVolume(Volume):
    """One sequence of a cine.npz file, whose k-space is computed from its images; shape (1, frames, H, W).

    Attributes:
        path: a name of its own for each sequence, beside the file; there is no such file.
        store: the file.
        number: of the sequence in the file.
    """

    store: Path
    number: int

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
            images = torch.from_numpy(_cine_samples(self.store)[self.number].astype(np.complex64))
        if not torch.isfinite(images.abs()).all():
            raise BadInput(f"{self.store}: sequence {self.number} holds NaN or infinite values: repair or remove it")
        if not images.any():
            raise BadInput(f"{self.store}: sequence {self.number} is all zero: remove it")
        return images


LARGEST_UNPACKED = 2**28  # bytes of a compressed cine.npz, which is unpacked in memory; others are read piece by piece


@functools.lru_cache(maxsize=4)
def _cine_samples(path: Path) -> np.ndarray:
    """The array `dataset` of an .npz file, (samples, frames, rows, columns): mapped from the disk if it can be.

    Nothing is allocated before the header's declared shape was held against the size of what is there.
    """
    try:
        with zipfile.ZipFile(path) as zipped:
            names = zipped.namelist()
            if "dataset.npy" not in names:
                keys = ", ".join(name.removesuffix(".npy") for name in names[:9])
                raise BadInput(f"{path}: no key 'dataset' (found: {keys or 'nothing'}): save the sequences under it")
            info = zipped.getinfo("dataset.npy")
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
            return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
        if size > LARGEST_UNPACKED:
            raise BadInput(f"{path}: {size / 2**20:.0f} MiB compressed: save it with numpy.savez, uncompressed")
        with np.load(path, allow_pickle=False) as file:
            return file["dataset"]
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
        samples = _cine_samples(file)
        with zipfile.ZipFile(file) as zipped:
            simulated = "simulated.npy" in zipped.namelist()
    names = [f"{file.parent.name}_{number:03d}" for number in range(len(samples))]
    return [
        CineVolume(
            path=file.with_name(name + ".h5"),  # what its reconstruction is called
            shape=(1, *samples.shape[1:]),
            target_size=samples.shape[2:],
            acquisition="CINE" if samples.dtype.kind == "c" else "CINE, k-space simulated from magnitudes",
            patient_id=name,
            columns=(0, samples.shape[-1]),
            mask=None,
            target_key=None,
            attributes={"simulated": True} if simulated else {},
            store=file,
            number=number,
        )
        for number, name in enumerate(names)
    ]


# --------------------------------------------------------------------------------------------------
# 4 Demo scanner (simulated data)
# --------------------------------------------------------------------------------------------------
# Real raw data need a registration and many gigabytes. So that every chapter runs at once, this section
# simulates brain scans: an anatomy, a pulse sequence, a receiver and its noise, in fastMRI's file layout.

# T1 (ms), T2 (ms) and proton density: typical textbook values at 1.5 T. Fat has the long T2 that a turbo
# spin echo sees. A vessel stands for a flow void: its blood leaves the slice between excitation and echo.
TISSUES = {
    "grey": (950, 95, 0.82),
    "white": (530, 75, 0.71),
    "csf": (4000, 1200, 1.00),
    "lesion": (950, 160, 0.84),
    "bone": (800, 20, 0.06),
    "marrow": (380, 60, 0.45),
    "muscle": (900, 47, 0.80),
    "fat": (300, 100, 0.80),
    "skin": (800, 40, 0.70),
    "vessel": (1200, 50, 0.02),
}
# Repetition, echo and inversion time in ms. FLAIR inverts first and waits until CSF passes through zero.
SEQUENCES: dict[str, dict[str, Any]] = {
    "T1w": dict(tr=500, te=12, ti=None),
    "T2w": dict(tr=5000, te=100, ti=None),
    "PD": dict(tr=3500, te=15, ti=None),
    "FLAIR": dict(tr=9000, te=110, ti=2420),
}
ACQUISITIONS = {"T1w": "AXT1", "T2w": "AXT2", "PD": "AXPD", "FLAIR": "AXFLAIR"}  # the names in the files


def spin_echo_signal(t1: float, t2: float, pd: float, tr: float, te: float, ti: float | None = None) -> float:
    """Signal of a (turbo) spin echo, or of inversion recovery when `ti` is given.

    Args:
        t1, t2: relaxation times in ms.  pd: proton density, water = 1.
        tr, te, ti: repetition, echo and inversion time in ms.
    Returns:
        Magnitude of the transverse magnetisation at the echo, 0..pd.
    """
    recovery = 1 - np.exp(-tr / t1) if ti is None else 1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)
    return float(pd * abs(recovery) * np.exp(-te / t2))


@functools.lru_cache(maxsize=1)
def _atlas() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The average anatomy that every simulated head is warped from (2 s once per process).

    The ICBM-152 average of 152 adult heads (Fonov et al., NeuroImage 2011) ships inside nilearn: no download. Returns
    cubic-spline coefficients of the maps grey, white (fractions 0..1), t1 (intensity 0..1) and depth (mm outside the
    brain's hull, as it has no skull), each (x, y, z) at 1 mm; and the index of the origin, the anterior commissure.
    """
    from nilearn import datasets
    from scipy import ndimage

    bottom = 40  # nothing below the orbits is ever scanned here
    images = {
        "grey": datasets.load_mni152_gm_template(resolution=1),
        "white": datasets.load_mni152_wm_template(resolution=1),
        "t1": datasets.load_mni152_template(resolution=1),
    }
    origin = -images["t1"].affine[:3, 3] - [0, 0, bottom]
    maps = {name: image.get_fdata(dtype=np.float32)[:, :, bottom:] for name, image in images.items()}
    # Closing by 16 mm (grow, then shrink) bridges the sulci and the gap between the hemispheres, as the skull
    # does. Done at 2 mm, which is eight times faster and smooth enough for a skull.
    brain = (maps["grey"] + maps["white"] > 0.5)[::2, ::2, ::2]
    edt = ndimage.distance_transform_edt
    grown = edt(~brain) * 2 < 16
    depth = ndimage.gaussian_filter(16 + 2 * (edt(~grown) - edt(grown)), 2.5)
    maps["depth"] = ndimage.zoom(depth, np.array(maps["t1"].shape) / depth.shape, order=1)
    return {name: ndimage.spline_filter(a, order=3, output=np.float32) for name, a in maps.items()}, origin


def _smooth_field(rng: np.random.Generator, length: float, *axes: np.ndarray) -> np.ndarray:
    """Gaussian random field of unit variance: random cosines up to a cut-off, one axis at a time; float32.

    `length` is its smoothness in mm, the standard deviation of an equal Gaussian kernel; `axes` are the coordinates in
    mm along each axis of the result, within +-200. It is a function of these, not of the grid: a finer grid shows the
    same field.
    """
    box = 400.0
    k = np.arange(int(2.5 * box / (np.pi * length)) + 2)
    weight = np.exp(-0.5 * (np.pi * k * length / box) ** 2)
    weight /= np.sqrt((weight**2 * np.where(k == 0, 1, 0.5)).sum())
    field = rng.standard_normal((len(k),) * len(axes), dtype=np.float32)
    for u in axes:  # contracts the first axis and appends the new one, so the order comes out right
        basis = weight * np.cos(np.pi * k * (u[:, None] / box + 0.5))
        field = np.tensordot(field, basis.astype(np.float32), (0, 1))
    return field


def _step(x: np.ndarray) -> np.ndarray:
    """Soft step from 0 to 1 at x = 0, about one millimetre wide."""
    return 0.5 + 0.5 * np.tanh(x / 0.7)


def _random_places(rng: np.random.Generator, allowed: np.ndarray, count: int) -> np.ndarray:
    """`count` random voxels (slice, row, column) out of those allowed: (count, 3) int.

    Drawn blindly and then sieved, not picked from a list of the allowed ones: that list would change
    with the last digit of the arithmetic, hence from computer to computer.
    """
    places = rng.integers(0, allowed.shape, size=(4000 * len(allowed), 3))
    return places[allowed[tuple(places.T)]][:count]


def _tissue_fractions(
    stream: Callable[[str], np.random.Generator],
    z: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    scale: np.ndarray,
) -> dict[str, np.ndarray]:
    """One individual head: the share of every tissue at every point.

    stream(name) is the random generator of one purpose; z, rows (anterior first) and columns are coordinates in mm;
    scale (3,) is the size of this head relative to the average, along x, y, z. Returns tissue name -> float32
    (slices, rows, columns); see TISSUES. They sum to 0 in air, to at most one elsewhere; at the rim of the flow voids
    under the skull, a 300th of the head, to 1.25 at most. No lesions yet.
    """
    from scipy import ndimage
    from scipy.spatial.transform import Rotation

    maps, origin = _atlas()
    rng = stream("anatomy")
    field = lambda length: _smooth_field(rng, length, z, rows, columns)  # noqa: E731
    column = lambda values: np.reshape(values, (3, 1, 1, 1)).astype(np.float32)  # noqa: E731

    # Where does each point of the scan lie in the average head? First pose and size about the middle of the
    # head, then two warps: the wide one shapes head and brain, the narrow one only the brain, so that no two
    # cortices fold alike. Rows run from anterior (+y) to posterior; half of the heads are mirrored.
    mirror = rng.choice([-1, 1])
    scan = np.stack(np.meshgrid(z, -rows, columns * mirror, indexing="ij"))[[2, 1, 0]]  # x, y, z
    turn = Rotation.from_euler("xyz", rng.normal(0, [3, 2, 3]), degrees=True).as_matrix() / scale[:, None]
    moved = scan.astype(np.float32) - column([*rng.uniform(-3, 3, 2), 20])
    head = np.tensordot(turn.astype(np.float32), moved, 1) + column([0, -18, 20])
    head += 3.0 * np.stack([field(35) for _ in range(3)])
    brain = head + column([1.4, 1.4, 2.0]) * np.stack([field(8) for _ in range(3)])

    def sample(name: str, where: np.ndarray) -> np.ndarray:
        index = where + origin.reshape(3, *[1] * (where.ndim - 1))
        return ndimage.map_coordinates(maps[name], index, np.float32, mode="nearest", prefilter=False)

    depth = sample("depth", head)
    x, y, height = head
    # Layers from inside out; each boundary is a depth in mm. Temporal muscle fills the hollow of the temple.
    temple = np.exp(-(((y - 10) / 36) ** 2) - ((height + 5) / 32) ** 2) * _step((np.abs(x) - 35) / 5)
    skull = np.clip(rng.uniform(5.5, 7.5) + 1.0 * field(40), 3.5, None) * (1 - 0.45 * temple)
    table = 1.5 + 0.25 * field(15)  # compact bone on either side of the spongy diploe
    fat = np.clip(rng.uniform(2.5, 4.5) + 0.9 * field(45), 1.5, None)
    edges = np.cumsum(
        [
            rng.uniform(0.5, 2.0) + 0.4 * field(30),
            table,
            np.clip(skull - 2 * table, 0.1, None),
            table,
            0.3 + 6 * temple,
            fat,
            1.6 + 0.2 * field(40),
        ],
        axis=0,
    )
    passed = [_step(depth - edge) for edge in edges]
    layers = ("bone", "marrow", "bone", "muscle", "fat", "skin")
    parts = {name: np.zeros_like(depth) for name in TISSUES}
    for name, inner, outer in zip(layers, passed, passed[1:]):
        parts[name] += inner - outer

    # Brain tissue, only where there is brain. The average of 152 brains is blurred: powers of the fractions
    # make boundaries crisp again. The weight of CSF stands for age: wider sulci and ventricles.
    inside = depth < edges[0] + 2
    where = brain[:, inside]
    grey, white = (np.clip(sample(name, where), 0, 1) for name in ("grey", "white"))
    t1 = sample("t1", where)
    csf = np.clip(1 - grey - white, 0, 1) * rng.uniform(1.6, 2.8)
    total = grey**3 + white**3 + csf**3 + 1e-6
    fluid, sharp = csf**3 / total, white**3 / (grey**3 + white**3 + 1e-6)
    # Deep nuclei are neither pure grey nor pure white: there the template's own T1 contrast decides.
    contrast = np.clip((t1 - 0.60) / 0.22, 0, 1)
    myelin = 0.75 * sharp + 0.25 * contrast
    room = (1 - passed[0])[inside]
    parts["csf"][inside] = fluid * room
    parts["white"][inside] = (1 - fluid) * myelin * room
    parts["grey"][inside] = (1 - fluid) * (1 - myelin) * room

    # Flow voids: the sagittal sinus under the skull, the falx in the midline, arteries in the sulci.
    below = depth - edges[0]
    sinus = np.maximum(_step((-y - 30) / 4), _step((height - 45) / 4))  # it runs along the back and the top
    void = sinus * _step(3.0 + 0.5 * below - np.abs(x)) * _step(below + 6)
    void = np.maximum(void, 0.5 * _step(0.4 - np.abs(x)) * parts["csf"])
    rng = stream("vessels")
    sulci = (parts["csf"] > 0.7) & (depth > -25)  # the ventricles lie deeper
    for s, i, j in _random_places(rng, sulci, 12 * len(z)):
        near = np.hypot(rows[:, None] - rows[i], columns - columns[j])
        void[s] = np.maximum(void[s], _step(rng.uniform(0.3, 1.1) - near))
    void *= 1 - passed[0]
    for name in ("csf", "grey", "white"):
        parts[name] *= 1 - void
    parts["vessel"] = void
    return parts


def coil_sensitivities(
    coils: int, z: np.ndarray, rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator | None = None
) -> Tensor:
    """What an array of receive loops around the head sees: Bx - i By of a unit current in each loop.

    By reciprocity a coil receives from where its own field would reach (Hoult and Richards 1976, J. Magn.
    Reson. 24); the field is Biot and Savart's. The loops look inwards from an ellipse about the head, every
    second one lower; the more there are, the smaller they are.

    Args:
        coils: number of loops.
        z, rows, columns: coordinates in mm, as in simulate_head.
        rng: moves and turns the loops a little; None leaves them in their places.
    Returns:
        complex64 (slices, coils, rows, columns); the root-sum-of-squares is 1 on average in the head.
    """
    # The field is smooth: every eighth point is computed, the others lie on a cubic surface between them.
    y, x = (np.linspace(-axis[0], -axis[-1], max(len(axis) // 8, 16)) for axis in (rows, -columns))
    points = np.stack(np.broadcast_arrays(x, y[:, None], z[:, None, None]), -1)  # (slices, rows, columns, 3)
    turn = np.linspace(0, 2 * np.pi, 33)
    fields = []
    for i in range(coils):
        wobble = rng.uniform(-1, 1, 3) if rng else np.zeros(3)
        angle = 2 * np.pi * (i + 0.5 + 0.15 * wobble[0]) / coils
        out, along = (np.array([np.cos(a), np.sin(a), 0]) for a in (angle, angle + np.pi / 2))
        up = np.array([0, 0, 1])
        centre = out * [112, 128, 0] + up * (32 + 12 * (-1) ** i + 8 * wobble[1]) + 4 * wobble[2] * out
        radius = np.clip(450 / coils, 30, 65)
        wire = centre + radius * (np.cos(turn)[:, None] * along + np.sin(turn)[:, None] * up)
        field = np.zeros_like(points)
        for start, end in itertools.pairwise(wire):
            away = points - (start + end) / 2
            # 12 mm: a wire of finite thickness, so that the air beside it does not outshine the head
            field += np.cross(end - start, away) / ((away**2).sum(-1, keepdims=True) + 12**2) ** 1.5
        fields.append(field[..., :2])
    coarse = torch.from_numpy(np.stack(fields, 1)).movedim(-1, 1).flatten(1, 2).float()  # (slices, 2 * coils, ..)
    size = (len(rows), len(columns))
    fine = nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=True).unflatten(1, (2, coils))
    return torch.complex(fine[:, 0], -fine[:, 1]) / fine.square().sum((1, 2)).sqrt()[:, _inside(rows, columns)].mean()


def _inside(rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """Points, by their coordinates in mm, that lie inside every head: bool (rows, columns)."""
    return torch.from_numpy((columns / 75) ** 2 + (rows[:, None] / 95) ** 2 < 1)


def simulate_head(
    seed: int,
    sequence: str = "T2w",
    slices: int = 6,
    matrix: int = 160,
    width: int | None = None,
    noise: float | None = None,
    lesions: int | None = None,
    coils: int = 0,
) -> tuple[Tensor, dict]:
    """Scan a simulated head: k-space of axial slices, and the truth about it.

    The object is drawn on a grid with half the voxel and its k-space is then cropped to what the scan
    covers, so that Gibbs ringing and partial volume are those of a real scan, and no reconstruction can
    profit from sharing the simulation's grid. The readout (rows) is oversampled twofold, as scanners do.
    Simplified: thin slices, no motion, no eddy currents, no chemical shift between fat and water.

    Args:
        seed: everything random follows from it: the head, the scan and the noise.
        sequence: one of SEQUENCES.
        slices: number of axial slices, evenly spaced from above the orbits to below the vertex.
        matrix: side of the target image in pixels, even; the field of view, about 230 mm, does not depend on it.
        width: number of phase-encode lines, even; more lines than `matrix` widen the field of view, the pixel
            stays. None is 1.1 * matrix (176 for 160).
        noise: standard deviation of the noise in the real part of the image, as a fraction of the mean
            white-matter signal; 0 for none, None draws 1/60 .. 1/25.
        lesions: number of white-matter lesions; None draws: none in half of the heads, else 2..8.
        coils: loops of a receive array (see coil_sensitivities), whose noise is correlated; 0 is one ideal coil.
    Returns:
        k-space, complex64 (slices, [coils,] 2 * matrix, width), centred (DC at [matrix, width // 2]); and a dict
        of what was simulated: sequence, seed, field_of_view_mm and voxel_mm, slice_positions_mm,
        noise_std (absolute, real part), snr, lesions (list of slice, row, column, radius_mm; rows and
        columns count in the target image), signals (tissue -> signal before the receiver's gain). With coils also
        noise_scan, complex64 (coils, 4096): what the array receives without a signal.
    Raises:
        BadInput: an unknown sequence, an odd matrix or width, a width below matrix, nothing to scan.
    """
    timing = choose(SEQUENCES, sequence, "sequence")
    width = width or 2 * round(0.55 * matrix)
    if matrix % 2 or width % 2 or not 0 < matrix <= width or slices < 1:
        raise BadInput(
            f"matrix and width must be even, width >= matrix, and slices positive, got {matrix}, {width} and {slices}"
        )
    # One random stream per purpose: asking for lesions changes neither the anatomy nor the noise.
    purposes = ["scan", "anatomy", "vessels", "lesions", "tissue", "texture", "receiver", "noise", "coils"]
    stream = lambda name: np.random.default_rng([seed, purposes.index(name)])  # noqa: E731

    rng = stream("scan")
    scale = rng.normal(1, [0.03, 0.03, 0.03]).clip(0.94, 1.06)
    voxel = 228 * max(scale[1], 1) * rng.uniform(1.0, 1.05) / matrix  # the operator fits the view to the head
    z = np.linspace(rng.uniform(2, 10), rng.uniform(54, 62), slices) if slices > 1 else rng.uniform(10, 50, 1)
    rows = (np.arange(2 * matrix) - matrix) * voxel / 2  # half the voxel; the empty outer rows follow below
    columns = (np.arange(2 * width) - width) * voxel / 2
    parts = _tissue_fractions(stream, z, rows, columns, scale)
    white = parts["white"] > 0.9

    rng, found = stream("lesions"), []
    drawn = int(rng.integers(2, 9) * rng.integers(2))
    for s, i, j in _random_places(rng, white, drawn if lesions is None else lesions):
        radius, stretch, angle = rng.uniform(1.5, 4.5), rng.uniform(0.7, 1.0), rng.uniform(0, np.pi)
        dy, dx = rows[:, None] - rows[i], columns - columns[j]
        along, across = (dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle))
        blob = _step((radius - np.hypot(along, across / stretch)) / 1.2) * parts["white"][s]
        parts["lesion"][s] += blob
        parts["white"][s] -= blob
        place = {"slice": int(s), "row": float(i / 2), "column": float((j - width + matrix) / 2)}
        found.append(place | {"radius_mm": round(float(radius), 2)})

    # Contrast: every subject's tissues differ a little; so does every spot within a tissue.
    rng = stream("tissue")
    vary = lambda values: np.array(values) * rng.normal(1, [0.02, 0.02, 0.01])  # noqa: E731
    signals = {name: spin_echo_signal(*vary(values), **timing) for name, values in TISSUES.items()}
    image = sum(signals[name] * part for name, part in parts.items())
    rng = stream("texture")
    image = image * (1 + 0.02 * _smooth_field(rng, 5, z, rows, columns))
    image *= 1 + np.stack([0.03 * _smooth_field(rng, 0.8, rows, columns) for _ in z])

    # Receiver: gain, slowly varying sensitivity, and a phase that turns by a few radians over the head.
    rng = stream("receiver")
    y, x = rows[:, None] / 100, columns / 100
    a = rng.normal(0, [0.8, 0.8, 1.2, 1.2, 0.8])
    phase = rng.uniform(-np.pi, np.pi) + a[0] * y + a[1] * x + a[2] * y * y + a[3] * x * x + a[4] * x * y
    phase = phase + 0.6 * _smooth_field(rng, 25, z, rows, columns)
    gain = np.exp(rng.uniform(-0.5, 0.5) + 0.15 * _smooth_field(rng, 50, z, rows, columns))
    seen = torch.from_numpy((gain * image * np.exp(1j * phase)).astype(np.complex64))
    if coils:
        array = coil_sensitivities(coils, z, rows, columns, stream("coils"))
        seen = seen[:, None] * array

    # Scan: k-space of the fine object, cropped; the factor keeps the image's values under the orthonormal FFT.
    full = nn.functional.pad(seen, (0, 0, matrix, matrix))
    kspace = fft2c(full)[..., matrix : 3 * matrix, width // 2 : width // 2 * 3] / 2
    rng = stream("noise")
    relative = 1 / rng.uniform(25, 60) if noise is None else noise
    noise_std = float(relative * signals["white"] * gain[white].mean())
    real_imag = torch.from_numpy(rng.standard_normal((*kspace.shape, 2), np.float32))
    white_noise = noise_std * torch.view_as_complex(real_imag)
    scan = {}
    if coils:
        # The head is the source of most noise. Loops that see the same part of it receive the same noise; each
        # preamplifier adds its own.
        inside = array[..., _inside(rows, columns)].movedim(1, 0).flatten(1)
        shared = inside @ inside.mH
        loudness = torch.from_numpy(stream("coils").uniform(0.7, 1.3, coils).astype(np.float32))
        level = loudness / shared.diagonal().real.sqrt()
        covariance = level[:, None] * level * (0.7 * shared) + 0.3 * torch.diag(loudness**2)
        colour = torch.linalg.cholesky(covariance)
        white_noise = torch.einsum("ij,sj...->si...", colour, white_noise)
        still = torch.from_numpy(rng.standard_normal((coils, 4096, 2), np.float32))
        scan["noise_scan"] = noise_std * colour @ torch.view_as_complex(still)
    kspace = kspace + white_noise
    info = scan | {
        "sequence": sequence,
        "seed": seed,
        "voxel_mm": round(float(voxel), 4),
        "field_of_view_mm": round(float(voxel) * matrix, 2),
        "slice_positions_mm": [round(float(v), 1) for v in z],
        "noise_std": noise_std,
        "snr": round(1 / relative, 2) if relative else float("inf"),
        "lesions": found,
        "signals": signals,
    }
    return kspace, info


def demo_data(
    folder: str | Path = DEMO_FOLDER,
    train: int = 40,
    val: int = 12,
    slices: int = 6,
    matrix: int = 160,
    seed: int = 0,
    wide: bool = True,
    noise: float | None = None,
    coils: int = 0,
) -> Path:
    """The demo data set, simulated on first use: one volume per simulated subject, in fastMRI's layout.

    Args:
        folder: where `train/` and `val/` are or will be; by default data/demo beside this file.
        train, val: number of subjects in each folder, at least one; no subject is in both.
        slices, matrix, noise: as in simulate_head.
        seed: another seed makes another set of subjects.
        wide: every other subject has a wider phase field of view.
        coils: as in simulate_head. Multi-coil files have no readout oversampling, and a noise scan.
    Returns:
        The folder. Data that are already there are returned untouched, whatever the other arguments say.
    Raises:
        BadInput: the folder holds something else, or cannot be made.
    """
    folder = Path(folder)
    complete = lambda: all(any((folder / split).glob("*.h5")) for split in ("train", "val"))  # noqa: E731
    if complete():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder}: holds something that is no complete demo data set: move it away first")
    if min(train, val) < 1:
        raise BadInput("train and val must be at least 1")
    print(f"Simulating {train + val} brain scans into {os.path.relpath(folder)} (once; simulated, no patients).")
    # Built beside and renamed when complete: an interrupted run leaves no half data set.
    place = folder.resolve()  # folder may be a link to another disk
    building = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        jobs = [("train", i, i) for i in range(train)] + [("val", i, train + i) for i in range(val)]
        for split, i, subject in tqdm(jobs, desc="simulating", unit="volume"):
            (building / split).mkdir(parents=True, exist_ok=True)
            sequence = list(SEQUENCES)[i % 4]
            width = None if wide and (i + i // 4) % 2 == 0 else matrix  # each sequence comes with both fields of view
            kspace, info = simulate_head(100_000 * seed + subject, sequence, slices, matrix, width, noise, coils=coils)
            scan = info.pop("noise_scan", None)
            if coils:  # for half the size
                kspace = crop_readout(kspace, matrix)
            attributes = {k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in info.items()}
            name = f"demo_{split}_{i:03d}_{ACQUISITIONS[sequence]}.h5"
            write_volume(
                building / split / name,
                kspace,
                target_size=(matrix, matrix),
                acquisition=ACQUISITIONS[sequence],
                patient_id=f"demo_{subject:03d}",
                noise=scan,
                attributes={"simulated": True, **attributes},
            )
        if place.exists():
            place.rmdir()  # empty, see above
        building.rename(place)
    except OSError as error:
        if not complete():  # else another program has finished the same data in the meantime
            raise BadInput(f"{folder}: cannot be made ({error.strerror}): choose another folder") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


# T1 (ms), T2 (ms) and proton density around the heart at 1.5 T; the gas of the stomach makes what is in it dim.
CINE_TISSUES = {
    "blood": (1550, 250, 0.95),
    "myocardium": (1000, 48, 0.85),
    "fat": (260, 85, 0.70),
    "muscle": (1000, 40, 0.80),
    "liver": (580, 46, 0.80),
    "spleen": (1050, 79, 0.80),
    "stomach": (800, 60, 0.55),
    "marrow": (550, 50, 0.40),
    "bone": (900, 20, 0.10),
    "lung": (1200, 40, 0.10),
    "csf": (4000, 1200, 1.00),
}


def bssfp_signal(t1: float, t2: float, pd: float, flip: float = 55.0, te: float = 1.5) -> float:
    """Signal of balanced steady-state free precession on resonance, for a short repetition time (Scheffler 2003).

    t1, t2 and te, the echo time, are in ms, the flip angle in degrees; pd is the proton density.
    """
    cosine, sine = math.cos(math.radians(flip)), math.sin(math.radians(flip))
    return pd * sine / (t1 / t2 + 1 - cosine * (t1 / t2 - 1)) * math.exp(-te / t2)


def simulate_cine(
    seed: int, frames: int = 20, matrix: int = 192, noise: float | None = None, ejection_fraction: float | None = None
) -> tuple[Tensor, dict]:
    """Scan a simulated beating heart: one heartbeat of a short-axis slice, balanced steady-state free precession.

    Fat, ribs, lungs, liver, spleen, spine and aorta stand still, as in a breath-hold; both ventricles contract, the
    muscle keeps its volume and thickens, papillary muscles move along. Drawn with half the voxel, its k-space
    cropped, as in simulate_head. Simplified: one coil, no breathing, the same beat every time, no through-plane motion.

    Args:
        seed: everything random follows from it: anatomy, beat, phase of the beat at the first frame, noise.
        frames: of one heartbeat, evenly spaced; the frame after the last would be the first again.
        matrix: side of the image in pixels, even; the field of view, about 290 mm, does not depend on it.
        noise: standard deviation of its real part, relative to the signal of blood; None draws 1/90 .. 1/40.
        ejection_fraction: share of the left ventricle's blood that a beat ejects; None draws 0.5 .. 0.72.
    Returns:
        complex64 images (frames, matrix, matrix), largest magnitude 1; and a dict of what was simulated: seed,
        voxel_mm, ejection_fraction, noise_std, heart (row and column of the left ventricle), contraction (frames):
        0 for a full heart, 1 at its emptiest.
    Raises:
        BadInput: an odd matrix, no frame.
    """
    from scipy.interpolate import PchipInterpolator

    if matrix % 2 or min(matrix, frames) < 1:
        raise BadInput(f"matrix must be even, and both it and frames positive, got {matrix} and {frames}")
    rng = np.random.default_rng([seed, 0, 77])
    voxel = rng.uniform(275, 300) / matrix
    mm = (np.arange(2 * matrix) - matrix) * voxel / 2
    field = lambda length: _smooth_field(rng, length, mm, mm)  # noqa: E731
    turn = math.radians(rng.normal(0, 6))
    x = mm * math.cos(turn) + mm[:, None] * math.sin(turn) + 3 * field(30)
    y = mm[:, None] * math.cos(turn) - mm * math.sin(turn) + 3 * field(30)
    signal = {name: bssfp_signal(*np.array(v) * rng.normal(1, 0.03, 3)) for name, v in CINE_TISSUES.items()}

    def ellipse(cx: float, cy: float, a: float, b: float, angle: float = 0.0, power: float = 2.0) -> np.ndarray:
        """How deep, in mm, a point lies inside an ellipse, or a shape between ellipse and rectangle; roughly."""
        u = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
        v = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
        return (1 - ((np.abs(u) / a) ** power + (np.abs(v) / b) ** power) ** (1 / power)) * min(a, b)

    def paint(image: np.ndarray, value: Any, depth: np.ndarray, within: Any = 1.0) -> np.ndarray:
        return image + _step(depth) * within * (value - image)

    # What stands still, from outside in. Every later tissue covers the earlier ones.
    a, b, wall = rng.uniform(122, 130), rng.uniform(100, 112), rng.uniform(14, 19)
    fat = np.clip(rng.uniform(4, 13) + 2 * field(40), 2.5, None)
    body = ellipse(0, 0, a, b, power=2.5)
    still = paint(np.zeros_like(body), signal["fat"], body)
    still = paint(still, signal["muscle"] * (1 + 0.12 * field(3)), body - fat)
    still = paint(still, 0.7 * signal["fat"], 1.2 * field(5) - 1.2, _step(body - fat))  # between the muscles
    still = paint(still, signal["lung"] * (1 + 0.3 * field(4)), body - fat - wall - 2 * field(30))
    chest = _step(body - fat - wall)
    for angle in np.arange(13) * 2 * math.pi / 13 + rng.uniform(0, 0.4):
        c, s, place = math.cos(angle), math.sin(angle), 1 - (fat.mean() + 0.62 * wall) / b
        long, short = rng.uniform(9, 13), rng.uniform(4, 5.5)
        rib = ellipse(a * place * c, b * place * s, long, short, math.atan2(b * c, -a * s))
        still = paint(paint(still, signal["bone"], rib), signal["marrow"], rib - 1.5)
    liver_at, middle = (rng.uniform(-62, -50), rng.uniform(42, 54)), (rng.normal(-6, 4), b - fat.mean() - 45)
    liver = ellipse(*liver_at, rng.uniform(74, 88), rng.uniform(46, 58), rng.uniform(-0.25, 0.1), 2.3)
    spleen = ellipse(
        rng.uniform(62, 74), rng.uniform(44, 58), rng.uniform(30, 42), rng.uniform(22, 32), rng.uniform(-0.8, 0)
    )
    still = paint(still, signal["liver"], liver, chest)
    for number in range(116):  # vessels of the lungs, then of the liver
        cx, cy = (rng.uniform(-a, a), rng.uniform(-b, b)) if number < 90 else rng.normal(liver_at, (34, 22))
        width, stretch = rng.gamma(2.0, 0.7) + 0.6, rng.uniform(1, 3)
        where = chest * (_step(-liver) if number < 90 else _step(liver - 3))
        vessel = ellipse(cx, cy, stretch * width, width, rng.uniform(0, 3))
        still = paint(still, signal["blood"] * rng.uniform(0.5, 0.9), vessel, where)
    still = paint(still, signal[str(rng.choice(["spleen", "stomach"]))], spleen, chest)
    still = paint(still, 0.8 * signal["muscle"], ellipse(middle[0], middle[1] + 6, 44, 27), chest)
    canal = (middle[0], middle[1] + 22)
    for name, depth in (
        ("bone", ellipse(*middle, 20, 16)),
        ("marrow", ellipse(*middle, 18, 14)),
        ("fat", ellipse(*canal, 11, 9)),
        ("csf", ellipse(*canal, 8.5, 7)),
        ("spleen", ellipse(*canal, 5, 4)),  # the cord
    ):
        still = paint(still, signal[name], depth)

    # The beat: fast ejection, fast filling, rest, and the atrium's contribution just before the next.
    ejected = rng.uniform(0.5, 0.72) if ejection_fraction is None else ejection_fraction
    end, start, long_axis = rng.uniform(0.33, 0.42), rng.uniform(), 0.1  # of systole; first frame; shortening
    times = [0, 0.25 * end, 0.6 * end, end, end + 0.06, end + 0.2, end + 0.32, 0.88, 0.96, 1]
    beat = PchipInterpolator(times, [0, 0.2, 0.75, 1, 0.97, 0.42, 0.25, 0.2, 0.04, 0])
    contraction = beat((np.arange(frames) / frames + start) % 1)
    heart, shift = rng.uniform((16, -24), (28, -12)), rng.uniform((-4.5, 0), (-0.5, 4))
    inner, thick, septum = rng.uniform(21, 26), rng.uniform(7.5, 11), math.pi + rng.normal(0.15, 0.2)
    waves = lambda orders, size: [  # noqa: E731
        (k, size * rng.normal() / len(orders) ** 0.5, rng.uniform(0, 2 * math.pi)) for k in orders
    ]
    bulges, ridges = waves((2, 3), 0.9), waves(range(7, 17), 0.9)
    papillary = [(septum + side * rng.uniform(1.65, 2.3), rng.uniform(4.2, 5.8)) for side in (1, -1)]
    right, right_wall = (rng.uniform(26, 32), rng.uniform(38, 44)), rng.uniform(3, 4)
    trabeculae = [(rng.uniform(-1.2, 1.2), rng.uniform(0.85, 1), rng.uniform(1, 3)) for _ in range(8)]
    aorta, twist = (middle[0] + rng.uniform(20, 26), middle[1] - rng.uniform(6, 12)), rng.uniform(0.1, 0.2)
    muscle, swirl, pad = signal["myocardium"] * (1 + 0.05 * field(4)), field(7), 2.5 + 2.5 * field(9)

    def draw(s: float, cycle: float) -> np.ndarray:
        """The chest at contraction s (0..1)."""
        cx, cy = heart + s * shift
        r, theta = np.hypot(x - cx, y - cy), np.arctan2(y - cy, x - cx) - twist * s
        endo = inner * math.sqrt(1 - s * (1 - (1 - ejected) / (1 - long_axis)))
        epi = math.sqrt(endo**2 + ((inner + thick) ** 2 - inner**2) / (1 - long_axis * s))  # muscle keeps its volume
        bulge, ridge = (sum(h * np.cos(k * theta + p) for k, h, p in some) for some in (bulges, ridges))
        blood = signal["blood"] * (1 + 0.04 * swirl * math.cos(2 * math.pi * cycle) - 0.06 * s)
        outside, cavity = epi + bulge - r, endo * (1 + bulge / inner) + (1 + 0.4 * s) * ridge - r
        c, d, away, small = math.cos(septum), math.sin(septum), epi - 6 + 0.1 * right[0], (1 - 0.33 * s, 1 - 0.12 * s)
        centre, axes = (cx + away * c, cy + away * d), (right[0] * small[0], right[1] * small[1])
        ventricle = ellipse(*centre, *axes, septum, 2.3)
        image = paint(
            still,
            0.75 * signal["fat"],
            np.maximum(outside, ventricle + right_wall) + pad,
            _step(body - fat - 0.6 * wall),
        )
        image = paint(image, 0.9 * muscle, ventricle + right_wall * (1 + 0.3 * s))
        for angle, place, size in trabeculae:
            u, v = axes[0] * place * math.cos(angle), axes[1] * place * math.sin(angle)
            spot = np.hypot(x - centre[0] - u * c + v * d, y - centre[1] - u * d - v * c)
            ventricle = np.minimum(ventricle, spot - size)
        image = paint(paint(image, 0.95 * blood, ventricle), muscle, outside)
        for angle, size in papillary:
            at, place = angle + twist * s, endo - 0.8 * size * (1 - 0.3 * s)
            spot = np.hypot(x - cx - place * math.cos(at), y - cy - place * math.sin(at))
            cavity = np.minimum(cavity, spot - size * (1 + 0.06 * s))
        image = paint(image, blood, cavity)
        vessel = 11 + 0.8 * s - np.hypot(x - aorta[0], y - aorta[1])
        return paint(paint(image, 0.7 * signal["muscle"], vessel + 2), blood, vessel)

    image = np.stack([draw(s, number / frames) for number, s in enumerate(contraction)])
    image *= 1 + 0.025 * field(1.2) + 0.02 * field(6)
    v, u, slope = mm[:, None] / 100, mm / 100, rng.normal(0, 0.8, 5)  # the receiver: sensitivity and phase
    image *= np.exp(0.15 * field(50) - rng.uniform(0.05, 0.3) * v + rng.normal(0, 0.08) * u)
    phase = rng.uniform(-np.pi, np.pi) + sum(k * term for k, term in zip(slope, (v, u, v**2, u**2, u * v)))
    full = torch.from_numpy((image * np.exp(1j * (phase + 0.4 * field(25)))).astype(np.complex64))
    kspace = center_crop(fft2c(full), (matrix, matrix)) / 2
    deviation = signal["blood"] * (1 / rng.uniform(40, 90) if noise is None else noise)
    real_imag = torch.from_numpy(rng.standard_normal((*kspace.shape, 2), np.float32))
    scan = ifft2c(kspace + deviation * torch.view_as_complex(real_imag))
    peak = float(scan.abs().max())
    middle_of_heart = np.unravel_index(np.hypot(x - heart[0], y - heart[1]).argmin(), x.shape)
    info: dict[str, Any] = {"seed": seed, "voxel_mm": round(voxel, 4), "ejection_fraction": float(ejected)}
    info["heart"] = [int(place) // 2 for place in middle_of_heart]
    return scan / peak, info | {"noise_std": deviation / peak, "contraction": contraction.tolist()}


def demo_cine(
    folder: str | Path = ROOT / "data" / "demo_cine",
    train: int = 24,
    val: int = 8,
    frames: int = 12,
    matrix: int = 128,
    seed: int = 0,
) -> Path:
    """The demo data set of the cine chapter, simulated on first use: FOLDER/train/cine.npz and FOLDER/val/cine.npz.

    Args:
        folder: where the data are or will be; a file that is there stays as it is, whatever the other arguments say.
        train, val: number of subjects, a sequence each; 0 leaves that file out.
        frames, matrix: as in simulate_cine, whose defaults are the full size. These suit a CPU.
        seed: another seed makes another set of subjects.
    Returns:
        The folder. The files hold `dataset` (subjects, frames, rows, columns) complex64, and `simulated`.
    """
    folder = Path(folder)
    for split, first, count in (("train", 0, train), ("val", 10_000, val)):
        path = folder / split / "cine.npz"
        if path.exists() or not count:
            continue
        print(f"Simulating {count} beating hearts into {os.path.relpath(path)} (once; simulated, no patients).")
        subjects = tqdm(range(100_000 * seed + first, 100_000 * seed + first + count), desc="simulating", unit="heart")
        data = np.stack([simulate_cine(subject, frames, matrix)[0].numpy() for subject in subjects])

        def write(partial: Path, data: np.ndarray = data) -> None:
            with open(partial, "wb") as file:  # given a name, numpy would append .npz to it
                np.savez(file, dataset=data, simulated=np.array(True))

        replace_file(path, write)
    return folder


# --------------------------------------------------------------------------------------------------
# 5 Classical reconstruction
# --------------------------------------------------------------------------------------------------


def keep_measured(image: Tensor, kspace: Tensor, mask: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Data consistency: put the measured samples back into the k-space of `image`.

    Args:
        image: (..., H, W) complex, an estimate.
        kspace: (..., H, W) complex, measured where mask is true.
        mask: bool, broadcastable to kspace.
        weight: 1 is hard consistency; below 1 the soft one, a step towards the measured samples. With
            noise weight v it is v / (1 + v).
    Returns:
        (..., H, W) complex image with k-space F image + weight M (kspace - F image).
        Schlemper et al. 2018, IEEE TMI 37(2).
    """
    spectrum = fft2c(image)
    measured = kspace if isinstance(weight, float) and weight == 1 else torch.lerp(spectrum, kspace, weight + 0j)
    return ifft2c(torch.where(mask, measured, spectrum))


def _gradient(x: Tensor, axes: Sequence[int] = (-2, -1), periodic: bool = False) -> Tensor:
    """Forward differences along each axis, at the far edge zero, or periodic: (..., H, W) -> (len(axes), ..., H, W)."""
    if periodic:
        return torch.stack([x.roll(-1, axis) - x for axis in axes])
    gradient = x.new_zeros((len(axes), *x.shape))
    for part, axis in zip(gradient, axes):
        part.narrow(axis, 0, x.shape[axis] - 1).copy_(x.diff(dim=axis))
    return gradient


def _gradient_adjoint(p: Tensor, axes: Sequence[int] = (-2, -1), periodic: bool = False) -> Tensor:
    """The adjoint of _gradient (minus the divergence): (len(axes), ..., H, W) -> (..., H, W)."""
    x = torch.zeros_like(p[0])
    if periodic:
        return sum((part.roll(1, axis) - part for part, axis in zip(p, axes)), x)
    for part, axis in zip(p, axes):
        inner = part.narrow(axis, 0, x.shape[axis] - 1)
        x.narrow(axis, 1, x.shape[axis] - 1).add_(inner)
        x.narrow(axis, 0, x.shape[axis] - 1).sub_(inner)
    return x


def combine_coils(images: Tensor, maps: Tensor) -> Tensor:
    """S^H: coil images and maps (..., coils, H, W) -> one complex image (..., H, W), each coil weighted by its map."""
    return (maps.conj() * images).sum(-3)


def spread_coils(image: Tensor, maps: Tensor) -> Tensor:
    """S: an image (..., H, W) as the coils with maps (..., coils, H, W) see it, the adjoint of combine_coils."""
    return maps * image.unsqueeze(-3)


def _normal(image: Tensor, mask: Tensor, maps: Tensor) -> Tensor:
    """S^H F^H M F S: (..., H, W) -> (..., H, W)."""
    return combine_coils(ifft2c(mask * fft2c(spread_coils(image, maps))), maps)


def _unit_scale(kspace: Tensor, weight: float, method: str, axes: tuple[int, ...] = (-2, -1)) -> tuple[Tensor, Tensor]:
    """The k-space divided by the largest magnitude of the zero-filled image, over `axes`, and that magnitude.

    Raises:
        BadInput: the weight is negative or not a number.
    """
    if not 0 <= weight < math.inf:
        raise BadInput(f"{method} weight {weight}: give a number of at least 0")
    scale = ifft2c(kspace).abs().amax(axes, keepdim=True)
    scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)  # an empty slice stays empty
    return kspace / scale, scale


def total_variation(
    kspace: Tensor,
    mask: Tensor,
    weight: float = 0.01,
    iterations: int = 300,
    axes: Sequence[int] = (-2, -1),
    maps: Tensor | None = None,
    periodic: bool = False,
) -> Tensor:
    """Total-variation reconstruction: argmin_x 1/2 |M F S x - y|^2 + weight * s * TV(x).

    TV is the isotropic total variation of the complex image, s the largest magnitude of the
    zero-filled image, so that `weight` has no unit. Solved by the primal-dual method of Chambolle
    and Pock (2011, J. Math. Imaging Vis. 40); the data term's proximal step is exact, because M F is
    diagonal in k-space. With coils it is not: three steps of conjugate gradients stand in for it (Block et al.
    2007, MRM 57(6), for TV with coils). For MRI: Lustig et al. 2007, MRM 58(6).

    Args:
        kspace: (..., [coils,] H, W) complex, zero where not measured.
        mask: bool, broadcastable to kspace.
        weight: of the total variation; larger is smoother. Tune it on training data.
        iterations: primal-dual steps, each one pair of FFTs, or four per coil.
        axes: along which neighbours are compared; -3 is the time of a sequence.
        maps: S, (..., coils, H, W) complex, see sensitivity_maps; None for a single coil.
        periodic: the last is compared with the first, along all axes; by default it has no neighbour.
    Returns:
        (..., H, W) complex image.
    """
    folded = kspace if maps is None else fft2c(combine_coils(ifft2c(kspace), maps))
    measured, scale = _unit_scale(folded, weight, "total variation", tuple({-2, -1, *axes}))
    # Step sizes whose product is below 1 / |gradient|^2, which is at most 4 for each axis. The dual variable is never
    # larger than the weight while the image is about 1, so that the primal step may be the larger by far.
    norm = math.sqrt(max(8, 4 * len(axes)))
    primal, dual_step = 30 / norm, 1 / 30 / norm
    start = image = ifft2c(measured)
    ahead, dual = image, torch.zeros_like(_gradient(image, axes, periodic))
    for _ in range(iterations):
        dual = dual + dual_step * _gradient(ahead, axes, periodic)
        dual = dual / (dual.abs().square().sum(0).sqrt() / max(weight, 1e-12)).clamp(min=1)
        previous, image = image, image - primal * _gradient_adjoint(dual, axes, periodic)
        if maps is None:
            spectrum = fft2c(image)
            image = ifft2c(torch.where(mask, (spectrum + primal * measured) / (1 + primal), spectrum))
        else:
            normal = lambda x: x + primal * _normal(x, mask, maps)  # noqa: E731
            image = _conjugate_gradients(normal, image + primal * start, previous, steps=3)
        ahead = 2 * image - previous
    return image * scale


# Low-pass filters of orthonormal wavelets: Haar's, and Daubechies' with four vanishing moments, which is
# smoother (Daubechies 1988, Comm. Pure Appl. Math. 41).
WAVELETS: dict[str, tuple[float, ...]] = {
    "haar": (0.5**0.5, 0.5**0.5),
    "db4": (
        *(0.2303778133088965, 0.7148465705529157, 0.6308807679298589, -0.0279837694168599),
        *(-0.1870348117190931, 0.0308413818355608, 0.0328830116668852, -0.0105974017850690),
    ),
}


def wavelet_transform(x: Tensor, wavelet: str = "db4", levels: int = 3, inverse: bool = False) -> Tensor:
    """Orthonormal periodic wavelet transform over the last two axes, or its inverse.

    Each level turns a block into averages (top left) and three kinds of details, a quarter of its size
    each; the next level goes on with the averages. An odd last row or column is left as it is, so that
    the transform is orthonormal (the inverse is the adjoint) for every size. Mallat 1989, IEEE TPAMI 11(7).

    Args:
        x: (..., H, W), real or complex: the image, or the coefficients if inverse.
        wavelet: a key of WAVELETS.
        levels: how often the block is halved.
    Returns:
        the coefficients (or the image), same shape and dtype.
    """
    low = torch.tensor(choose(WAVELETS, wavelet, "wavelet"), dtype=x.dtype, device=x.device)
    high = low.flip(0).clone()
    high[1::2] *= -1
    # A level maps neighbouring pairs of pixels to (average, detail), by one 2x2 matrix for each pair that
    # the filters reach.
    matrices = torch.stack([low, high], dim=1).unflatten(0, (-1, 2))

    def along_rows(x: Tensor) -> Tensor:
        if inverse:
            pairs = x.unflatten(-1, (2, -1)).transpose(-2, -1)
            return sum((pairs @ m.T).roll(j, -2) for j, m in enumerate(matrices)).flatten(-2)
        pairs = x.unflatten(-1, (-1, 2))
        return sum(pairs.roll(-j, -2) @ m for j, m in enumerate(matrices)).transpose(-2, -1).flatten(-2)

    x = x.clone()
    for level in sorted(range(levels), reverse=inverse):
        h, w = ((n >> level) // 2 * 2 for n in x.shape[-2:])
        if h and w:
            rows = along_rows(x[..., :h, :w])
            x[..., :h, :w] = along_rows(rows.transpose(-2, -1)).transpose(-2, -1)
    return x


def wavelet(
    kspace: Tensor,
    mask: Tensor,
    weight: float = 0.001,
    iterations: int = 200,
    wavelet: str = "haar",
    levels: int = 3,
    shifts: bool = True,
) -> Tensor:
    """Wavelet-sparse reconstruction: argmin_x 1/2 |M F x - y|^2 + weight * s * |W x|_1.

    W is wavelet_transform, s the largest magnitude of the zero-filled image. Solved by FISTA (Beck and
    Teboulle 2009, SIAM J. Imaging Sci. 2(1)): a step towards the data, then soft-thresholding of the
    coefficients. For MRI: Lustig et al. 2007, MRM 58(6).

    Args:
        kspace: (..., H, W) complex, zero where not measured.
        mask: bool, broadcastable to kspace.
        weight: of the coefficients' magnitudes; larger is smoother. Tune it on training data.
        iterations: FISTA steps, each one pair of FFTs and of wavelet transforms.
        wavelet, levels: of wavelet_transform.
        shifts: shift the grid of the wavelets at random in every step (cycle spinning: Coifman and Donoho
            1995). The objective is then followed on average only, but the blocks of a fixed grid vanish.
    Returns:
        (..., H, W) complex image.
    """
    measured, scale = _unit_scale(kspace, weight, "wavelet")
    random = torch.Generator().manual_seed(0)  # the same input gives the same image
    image = ahead = ifft2c(measured)
    momentum = 1.0
    for _ in range(iterations):
        shift = torch.randint(2**levels, (2,), generator=random).tolist() if shifts else [0, 0]
        x = ifft2c(torch.where(mask, measured, fft2c(ahead))).roll(shift, (-2, -1))
        coefficients = wavelet_transform(x, wavelet, levels)
        coefficients = coefficients * (1 - weight / coefficients.abs().clamp(min=max(weight, 1e-12)))
        x = wavelet_transform(coefficients, wavelet, levels, inverse=True).roll([-s for s in shift], (-2, -1))
        momentum, last = (1 + math.sqrt(1 + 4 * momentum**2)) / 2, momentum
        ahead, image = x + (last - 1) / momentum * (x - image), x
    return image * scale


def _parts(image: Tensor) -> Tensor:
    """The gradient's real and imaginary part: (..., H, W) complex -> (2, 2, ..., H, W) real."""
    return torch.view_as_real(_gradient(image)).movedim(-1, 0)


def _conjugate_gradients(normal: Callable[[Tensor], Tensor], right: Tensor, x: Tensor, steps: int) -> Tensor:
    """Solve normal(x) = right from a first guess, for each (H, W) by itself. Hestenes and Stiefel 1952."""

    def energy(a: Tensor, b: Tensor) -> Tensor:
        return (a.conj() * b).real.sum((-2, -1), keepdim=True)

    residual = direction = right - normal(x)
    now, tiny = energy(residual, residual), torch.finfo(x.real.dtype).tiny
    enough = 1e-12 * energy(right, right)  # beyond single precision, further steps would blow rounding errors up
    for _ in range(steps):
        change = normal(direction)
        step = (now > enough) * now / energy(direction, change).clamp(min=tiny)
        x, residual = x + step * direction, residual - step * change
        before, now = now, energy(residual, residual)
        direction = residual + now / before.clamp(min=tiny) * direction
    return x


def _distances(window: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """From each to each of a window's n samples, as an index into a flattened, periodic array of `sizes`: (n, n)."""
    samples = torch.cartesian_prod(*map(torch.arange, window))
    rows, columns = (samples[:, None] - samples).unbind(-1)
    return rows % sizes[0] * sizes[1] + columns % sizes[1]


def _eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """torch.linalg.eigh on the CPU: eigenvalues, ascending, and eigenvectors of Hermitian matrices (..., n, n).

    A GPU's cuSOLVER has refused one small matrix per pixel of an image (mjlab, pull request 732), and has returned
    vectors of complex64 that are no eigenvectors (PyTorch, issue 192483).
    """
    values, vectors = torch.linalg.eigh(matrices.cpu())
    return values.to(matrices.device), vectors.to(matrices.device)


def low_rank(
    kspace: Tensor, mask: Tensor, weight: float = 0.001, iterations: int = 8, window: int = 15, floor: float = 0.002
) -> Tensor:
    """Structured low-rank completion of k-space: argmin_x 1/2 |M F x - y / s|^2 + weight / 2 * log det(G + e).

    Take every window of the k-space of the image's gradient as one row of a matrix T, its real part's and
    its imaginary part's side by side. T has low rank: edges are few, so that filters exist which
    annihilate the gradient's k-space, and the phase is smooth, so that the two parts tell each other.
    G = T^H T is small. Each iteration weights its eigenvectors by 1 / (eigenvalue + e), which is a weight
    for every pixel's gradient, and solves the least squares that remain by conjugate gradients.
    Edges: Ongie and Jacob 2017, IEEE TCI 3(4). Phase: Haldar 2014, IEEE TMI 33(3). Log-determinant by
    reweighting: Mohan and Fazel 2012, JMLR 13. The objective never rises.

    Args:
        kspace: (..., H, W) complex, zero where not measured.
        mask: bool, broadcastable to kspace.
        weight: of the rank; larger trusts the measured samples less. Tune it on training data.
        iterations: reweightings, of 50 conjugate-gradient steps each.
        window: k-space samples per side.
        floor: e, as a part of the largest eigenvalue for the zero-filled image.
    Returns:
        (..., H, W) complex image, in the units of the k-space.
    """
    measured, scale = _unit_scale(kspace, weight, "low rank")
    image = ifft2c(measured)
    # G depends on the distance of two samples of the window only: it is read off Fourier transforms.
    height, width = sizes = kspace.shape[-2:]
    distance, least = _distances([min(window, n) for n in sizes], sizes).to(kspace.device), None
    for _ in range(iterations):
        products = _parts(image)[:, None] * _parts(image)  # real and imaginary part, times either
        gram = torch.fft.fft2(products.sum(2)).flatten(-2)[..., distance].movedim((0, 1), (-4, -2))
        values, vectors = _eigh(gram.flatten(-2).flatten(-3, -2))
        least = (floor * values[..., -1:]).clamp(min=1e-12) if least is None else least  # 1e-12: an empty slice
        inverse = vectors / (values.clamp(min=0) + least)[..., None, :] @ vectors.mH
        inverse = inverse.unflatten(-2, (2, -1)).unflatten(-1, (2, -1)).movedim((-4, -2), (0, 1)).flatten(-2)
        filters = inverse.new_zeros((*inverse.shape[:-1], height * width))
        filters = filters.index_add_(-1, distance.flatten(), inverse).unflatten(-1, sizes)
        pixels = weight * torch.fft.ifft2(filters, norm="forward").real[:, :, None]

        def normal(x: Tensor, pixels: Tensor = pixels) -> Tensor:
            return ifft2c(mask * fft2c(x)) + _gradient_adjoint(torch.complex(*(pixels * _parts(x)).sum(1)))

        image = _conjugate_gradients(normal, ifft2c(measured), image, steps=50)
    return image * scale


def bicubic(kspace: Tensor, size: Sequence[int], factor: int) -> Tensor:
    """Bicubic interpolation of the low-resolution magnitude image: what a viewer does when it enlarges.

    Every factor-th pixel of the zero-filled image is the image of the central block. Scikit-image interpolates
    between them, with the grids laid so that nothing shifts. Keys 1981, IEEE TASSP 29(6).

    Args:
        kspace: (batch, H, W) complex, measured in the central 1 / factor of either axis.
        size: (h, w) of the result.
        factor: 2 or 4.
    Returns:
        (batch, h, w) float32 magnitude.
    """
    from skimage import transform

    coarse = center_crop(ifft2c(kspace), size).abs()[..., ::factor, ::factor].cpu().numpy()
    grid = transform.AffineTransform(scale=1 / factor)
    fine = [transform.warp(image, grid, output_shape=tuple(size), order=3, mode="edge", clip=False) for image in coarse]
    return torch.from_numpy(np.stack(fine).astype(np.float32)).to(kspace.device)


def temporal_tv(kspace: Tensor, mask: Tensor, weight: float = 0.01, iterations: int = 200) -> Tensor:
    """total_variation along time, (..., frames, H, W) -> same shape: what rests is pieced together from all frames.

    The frame after the last is the first, as in view_sharing. Feng et al. 2014, MRM 72(3), who used it for radial
    sampling. Arguments as total_variation. At small weights 200 iterations stop short of the minimum, so that the
    weight belongs to their number.
    """
    return total_variation(kspace, mask, weight, iterations, axes=(-3,), periodic=True)


def view_sharing(kspace: Tensor, mask: Tensor) -> Tensor:
    """Sliding window: what a frame has not measured is taken from the frames nearest in time that have.

    Sharp where nothing moves; what moves is smeared over time. The frame after the last is the first, as one
    heartbeat follows another; two frames equally near are averaged. Riederer et al. 1988, MRM 8(1).

    Args:
        kspace: (..., frames, H, W) complex, zero where not measured.
        mask: bool (..., frames, 1, W).
    Returns:
        (..., frames, H, W) complex images. What no frame has measured stays zero.
    """
    filled, known = kspace, mask
    for distance in range(1, kspace.shape[-3] // 2 + 1):
        count = mask.roll(distance, -3).float() + mask.roll(-distance, -3)
        near = (kspace.roll(distance, -3) + kspace.roll(-distance, -3)) / count.clamp(min=1)
        filled = torch.where(known, filled, near)
        known = known | (count > 0)
    return ifft2c(filled)


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


def sense(
    kspace: Tensor,
    mask: Tensor,
    maps: Tensor,
    weight: float | Tensor = 0.001,
    iterations: int = 30,
    prior: Tensor | None = None,
) -> Tensor:
    """SENSE by conjugate gradients: argmin_x |M F S x - y|^2 + weight |x - z|^2 (Pruessmann et al. 2001, MRM 46(4)).

    Args:
        kspace: (..., coils, H, W) complex, zero where not measured.
        mask: bool, broadcastable to kspace.
        maps: S, (..., coils, H, W) complex with root-sum-of-squares 1.
        weight: of the image's energy; has no unit. Larger means less noise and more aliasing.
        iterations: conjugate-gradient steps, each one pair of FFTs per coil.
        prior: z, (..., H, W) complex, near which the image is looked for; 0 without one.
    Returns:
        (..., H, W) complex.
    """
    right = combine_coils(ifft2c(mask * kspace), maps)
    start = torch.zeros_like(right)
    if prior is not None:
        right, start = right + weight * prior, prior
    return _conjugate_gradients(lambda x: _normal(x, mask, maps) + weight * x, right, start, iterations)


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
    maps = sensitivity_maps(kspace, mask)
    return spread_coils(sense(kspace, mask, maps, weight), maps)


def _tv_sense_images(kspace: Tensor, mask: Tensor, weight: float) -> Tensor:
    maps = sensitivity_maps(kspace, mask)
    return spread_coils(total_variation(kspace, mask, weight, 60, maps=maps), maps)


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
    """A method of PARALLEL with a fixed weight, called like a network; see RssUNet and VariationalNetwork.

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


# --------------------------------------------------------------------------------------------------
# 6 Networks
# --------------------------------------------------------------------------------------------------


# Networks from channels to channels, any image size. The last layer of each is called `last`.


def _pad(x: Tensor, multiple: int) -> Tensor:
    """Pad to a multiple, so that every halving comes out even; the network crops at its end."""
    return nn.functional.pad(x, (0, -x.shape[-1] % multiple, 0, -x.shape[-2] % multiple), mode="replicate")


def _convolutions(inputs: int, outputs: int, dropout: float, slope: float = 0.2) -> nn.Sequential:
    """Twice: 3x3 convolution, instance norm, leaky ReLU, dropout."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.InstanceNorm2d(outputs),
            nn.LeakyReLU(slope),
            nn.Dropout2d(dropout),
        ]
    return nn.Sequential(*layers)


class Attention(nn.Module):
    """Weights between 0 and 1 for each channel, then for each place (Woo et al. 2018, ECCV).

    A channel's weight comes from its mean and its maximum, a place's from the mean and maximum over the channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 8, 4)
        self.channels = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.places = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, H, W) -> the same shape."""
        weights = self.channels(x.mean((-2, -1))) + self.channels(x.amax((-2, -1)))
        x = x * weights.sigmoid()[..., None, None]
        return x * self.places(torch.stack([x.mean(1), x.amax(1)], 1)).sigmoid()


class UNet(nn.Module):
    """The U-Net of fastMRI: image to image, any size.

    Ronneberger et al. 2015 (MICCAI), in the form of Zbontar et al. 2018 (arXiv 1811.08839): instance
    norm, leaky ReLU, average pooling down, transposed convolutions up. UNet(1, 1, 32, 4) has the
    7,756,097 parameters of the published baseline.

    Args:
        in_channels, out_channels: of the images.
        features: channels after the first convolution; doubled at each level.
        levels: how often the image is halved.
        dropout: probability that a feature map is dropped in training.
        slope: of the leaky ReLU below zero.
        attention: weigh channels and places at the coarsest level, see Attention.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: int = 16,
        levels: int = 4,
        dropout: float = 0.0,
        slope: float = 0.2,
        attention: bool = False,
    ) -> None:
        super().__init__()
        widths = [features * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(
            _convolutions(a, b, dropout, slope) for a, b in zip([in_channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(2 * width, width, 2, stride=2, bias=False),
                nn.InstanceNorm2d(width),
                nn.LeakyReLU(slope),
            )
            for width in reversed(widths[:-1])
        )
        self.merge = nn.ModuleList(_convolutions(2 * width, width, dropout, slope) for width in reversed(widths[:-1]))
        self.attention = Attention(widths[-1]) if attention else nn.Identity()
        self.last = nn.Conv2d(features, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) float -> (batch, out_channels, H, W)."""
        height, width = x.shape[-2:]
        if max(height, width) <= 2 ** len(self.up):  # the norm needs two pixels
            raise BadInput(f"levels {len(self.up)}: images of {height}x{width} cannot be halved so often: use fewer")
        x = _pad(x, 2 ** len(self.up))
        skipped = []
        for block in self.down[:-1]:
            x = block(x)
            skipped.append(x)
            x = nn.functional.avg_pool2d(x, 2)
        x = self.attention(self.down[-1](x))
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skipped.pop()], dim=1))
        return self.last(x)[..., :height, :width]


class ResidualBlock(nn.Module):
    """x + convolutions(x): 3x3 convolutions with PReLU between them (He et al. 2016, CVPR).

    Args:
        features: channels in and out.
        layers: convolutions.
        hidden: channels between them.
        norm: instance norm after each convolution. Off is better at full resolution (Lim et al. 2017, CVPR
            workshops): a norm throws away the scale that the image must keep.
        dropout: probability that a feature map is dropped in training, after the first convolution.
        convolution: nn.Conv2d, or SpaceTimeConv for sequences.
    """

    def __init__(
        self,
        features: int,
        layers: int = 2,
        hidden: int = 0,
        norm: bool = False,
        dropout: float = 0.0,
        convolution: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        hidden = hidden or features
        widths = [features, *[hidden] * (layers - 1), features]
        body: list[nn.Module] = []
        for number, (a, b) in enumerate(itertools.pairwise(widths)):
            last = convolution(a, b, 3, padding=1)
            body += [last, nn.InstanceNorm2d(b) if norm else nn.Identity()]
            if number < layers - 1:
                body += [nn.PReLU(), nn.Dropout2d(dropout) if dropout and number == 0 else nn.Identity()]
        self.body = nn.Sequential(*body)
        if not norm:  # a block starts as the identity, so that many can follow one another
            for weights in (last.weight, last.bias):
                nn.init.zeros_(weights)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(batch, features, H, W) -> the same shape."""
        return x + self.body(x)


def _stages(text: str) -> list[int]:
    """ "8x2 4x3" -> the layers of 8 blocks of 2 layers and 4 blocks of 3."""
    if not re.fullmatch(r"\s*([1-9]\d?x[1-9](\s+|$))+", text):
        raise BadInput(f"stages {text!r}: write blocks x layers, such as '8x2 4x3' or '12x2'")
    counts = [part.split("x") for part in text.split()]
    return [int(layers) for blocks, layers in counts for _ in range(int(blocks))]


class ResNet(nn.Module):
    """Residual network at full resolution: first convolution, residual blocks, last convolution.

    Args:
        in_channels, out_channels: of the images.
        features: channels of the first convolution; twice as many inside the blocks.
        stages: blocks x layers: "12x2" with 64 features has 1.77 million weights.
        dropout, convolution: see ResidualBlock.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: int = 64,
        stages: str = "8x2 4x3",
        dropout: float = 0.0,
        convolution: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(convolution(in_channels, features, 3, padding=1), nn.PReLU())
        options: Any = {"dropout": dropout, "convolution": convolution}
        self.blocks = nn.Sequential(*(ResidualBlock(features, n, 2 * features, **options) for n in _stages(stages)))
        self.last = convolution(features, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) float -> (batch, out_channels, H, W)."""
        return self.last(self.blocks(self.first(x)))


class ReconResNet(nn.Module):
    """Residual network at a quarter of the resolution: 7x7 convolution, two strided convolutions down,
    residual blocks, two transposed convolutions up, 7x7 convolution; instance norm and PReLU throughout.

    After Chatterjee et al. 2022 (arXiv 2103.09203), who use 64 features, 14 or 34 blocks and spatial
    dropout of 0.2.

    Args:
        in_channels, out_channels: of the images.
        features: channels after the first convolution; doubled twice on the way down.
        stages: residual blocks x layers.
        dropout: probability that a feature map is dropped in training, inside the blocks.
    """

    def __init__(
        self, in_channels: int, out_channels: int, features: int = 24, stages: str = "14x2", dropout: float = 0.0
    ) -> None:
        super().__init__()

        def block(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
            return [convolution, nn.InstanceNorm2d(convolution.out_channels), nn.PReLU()]

        layers = block(nn.Conv2d(in_channels, features, 7, padding=3))
        for width in (features, 2 * features):
            layers += block(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1))
        layers += [ResidualBlock(4 * features, n, norm=True, dropout=dropout) for n in _stages(stages)]
        for width in (4 * features, 2 * features):
            layers += block(nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1))
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(features, out_channels, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) float -> (batch, out_channels, H, W)."""
        height, width = x.shape[-2:]
        return self.last(self.layers(_pad(x, 4)))[..., :height, :width]


class SRResNet(ResNet):
    """ResNet on the coarse grid of a low-resolution image, then pixel shuffle to the fine grid.

    The generator of Ledig et al. 2017 (CVPR): first and last convolution 9x9, residual blocks, one pixel
    shuffle per factor of two (Shi et al. 2016, CVPR); without batch norm, which does harm (Lim et al. 2017,
    CVPR workshops).

    Args:
        in_channels, out_channels, features, stages, dropout: as in ResNet.
        upscale_factor: 2 or 4: every second or fourth pixel of the input is looked at. Of a zero-filled image whose
            k-space was measured in the central block only, these pixels hold everything.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: int = 32,
        stages: str = "6x2",
        dropout: float = 0.0,
        upscale_factor: int = 2,
    ) -> None:
        super().__init__(in_channels, out_channels, features, stages, dropout)
        self.factor = int(choose({"2": 2, "4": 4}, str(upscale_factor), "upscale_factor"))
        self.first = nn.Sequential(nn.Conv2d(in_channels, features, 9, padding=4), nn.PReLU())
        larger: list[nn.Module] = []
        for _ in range(self.factor // 2):
            larger += [nn.Conv2d(features, 4 * features, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()]
        self.blocks.append(nn.Sequential(*larger))
        self.last = nn.Conv2d(features, out_channels, 9, padding=4)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) float -> (batch, out_channels, H, W)."""
        height, width = x.shape[-2:]
        return super().forward(_pad(x, self.factor)[..., :: self.factor, :: self.factor])[..., :height, :width]


# Inner networks for sequences: (batch, 2, frames, H, W) real and imaginary part -> the same shape. They take the
# sequence for periodic, as the heart is: the frame after the last is the first.


class SpaceTimeConv(nn.Conv2d):
    """2-D + t convolution: each frame is convolved, then each channel is mixed with the frames before and after.

    Begins without mixing. The idea of separating space and time: Tran et al. 2018, CVPR; three weights per channel
    for the time cost next to nothing, unlike a full 3x3x3 convolution.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.time = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]).repeat(self.out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, channels, H, W) -> the same with out_channels."""
        y = super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        before, now, after = self.time.to(y.dtype)[..., None, None].unbind(1)  # bfloat16 stays bfloat16
        return before * y.roll(1, 1) + now * y + after * y.roll(-1, 1)


class SpaceTimeResNet(ResNet):
    """ResNet of SpaceTimeConv: works on any number of frames from three. Arguments as ResNet."""

    min_frames = 3

    def __init__(self, in_channels: int, out_channels: int, features: int = 16, stages: str = "2x2") -> None:
        super().__init__(in_channels, out_channels, features, stages, convolution=SpaceTimeConv)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, frames, H, W) -> (batch, out_channels, frames, H, W)."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class FrameUNet(nn.Module):
    """A 2-D U-Net that takes real and imaginary part of `frames` frames as its channels; other arguments as UNet."""

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
            _inner("unet", frames, frames, features=features, levels=levels, **settings) for _ in range(in_channels)
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


class PatchDiscriminator(nn.Module):
    """Judges patches: is this magnitude image a reference, given the zero-filled one?

    Isola et al. 2017 (CVPR); spectral norm (Miyato et al. 2018, ICLR) keeps its slope bounded, which
    serves the least-squares and the Wasserstein form alike, with no gradient penalty.
    """

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        widths, strides = [2, features, 2 * features, 4 * features, 1], [2, 2, 2, 1]
        layers: list[nn.Module] = []
        for a, b, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            convolution = nn.Conv2d(a, b, 4, stride, padding=1)
            layers += [nn.utils.parametrizations.spectral_norm(convolution), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, image: Tensor, given: Tensor) -> Tensor:
        """image, given (batch, h, w) magnitudes -> a score per patch (batch, 1, h', w'), higher is more real."""
        return self.layers(torch.stack([given, image], 1))

    def features(self, image: Tensor, given: Tensor) -> list[Tensor]:
        """What the layers make of an image on the way to the score, each (batch, channels, .., ..)."""
        x, found = torch.stack([given, image], 1), []
        for layer in list(self.layers)[:-1]:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                found.append(x)
        return found


INNER_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "resnet": ResNet,
    "recon_resnet": ReconResNet,
    "srresnet": SRResNet,
    "space_time_resnet": SpaceTimeResNet,
    "frame_unet": FrameUNet,
    "dual_unet": DualUNet,
    "dual_unet_no_attention": partial(DualUNet, attention=False),
    "dual_unet_no_3d": partial(DualUNet, light=False),
}
SEQUENCE_NETWORKS = ("space_time_resnet", "frame_unet", "dual_unet", "dual_unet_no_attention", "dual_unet_no_3d")


def _inner(name: str, in_channels: int, out_channels: int, **settings: Any) -> nn.Module:
    """One of INNER_NETWORKS with those settings that it takes; its last layer starts at zero."""
    known = {name for network in INNER_NETWORKS.values() for name in inspect.signature(network).parameters}
    for setting in settings:
        choose(dict.fromkeys(sorted(known)), setting, "setting of a network")
    network = choose(INNER_NETWORKS, name, "inner network")
    takes = inspect.signature(network).parameters
    made = network(in_channels, out_channels, **{k: v for k, v in settings.items() if k in takes and v})
    # Every network of this book predicts a correction: training starts from the zero-filled image.
    nn.init.zeros_(made.last.weight)
    nn.init.zeros_(made.last.bias)
    return made


# Networks from measured k-space to an image: forward(kspace, mask, size). Each wraps an inner network.


def normalize(x: Tensor, clamp: float = math.inf) -> tuple[Tensor, Tensor, Tensor]:
    """Instance normalisation of fastMRI: (x - mean) / (std + 1e-11) over the last two axes.

    Args:
        x: (..., H, W) real.
        clamp: bound of the result's magnitude; fastMRI uses 6 for the network's input.
    Returns:
        normalised x, mean (..., 1, 1), std (..., 1, 1).
    """
    mean, std = x.mean((-2, -1), keepdim=True), x.std((-2, -1), keepdim=True)
    return ((x - mean) / (std + 1e-11)).clamp(-clamp, clamp), mean, std


def as_channels(image: Tensor) -> Tensor:
    """(batch, ...) complex -> (batch, 2, ...) real and imaginary part; networks see only these."""
    return torch.view_as_real(image).movedim(-1, 1)


def as_complex(channels: Tensor) -> Tensor:
    """(batch, 2, ...) -> (batch, ...) complex64, the inverse of as_channels."""
    return torch.view_as_complex(channels.float().movedim(1, -1).contiguous())


def _squared_frequency(kspace: Tensor) -> Tensor:
    """Squared distance of each sample from the centre of k-space, an edge being 1/2 away: (H, W)."""
    rows, columns = (torch.arange(n, device=kspace.device) / n - (n // 2) / n for n in kspace.shape[-2:])
    return rows[:, None] ** 2 + columns**2


def smooth_phase(kspace: Tensor) -> Tensor:
    """The slowly varying phase of the image, from the centre of k-space: (..., H, W) -> unit complex.

    The centre is sampled under every mask, so the phase of the low-resolution image is known (the
    first step of homodyne reconstruction: Noll, Nishimura and Macovski 1991, IEEE TMI 10(2)). With it
    removed, the image is almost real, and a network need not learn the same anatomy at every phase.
    """
    window = torch.exp(-0.5 * _squared_frequency(kspace) / 0.02**2)  # 2 % of either axis
    low = ifft2c(kspace * window)
    return torch.polar(torch.ones_like(low.real), low.angle())  # 1 where low is 0


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


class Unrolled(nn.Module):
    """Inner network and data consistency in turn: x <- DC(x + network(x)), `cascades` times.

    One cascade of a U-Net is the book's default network; several are an unrolled optimisation, the
    single-coil form of the end-to-end variational network (Schlemper et al. 2018, IEEE TMI 37(2); Sriram et
    al. 2020, MICCAI). The image goes in as two channels (real, imaginary), divided by the largest
    magnitude of the zero-filled image and by its smooth phase, which come back at the end.

    Args:
        inner: one of INNER_NETWORKS.
        cascades: how often inner network and data consistency follow one another.
        consistency: hard puts the measured samples back; soft moves towards them by a learned step, one
            per cascade; none leaves them to the network. For coils also sense, see VariationalNetwork.
        shared: all cascades have the same weights.
        start: of a sequence, zero_filled or view_sharing: what the first change is added to. The first network sees
            the zero-filled frames in either case.
        frames: of a sequence that are reconstructed together; longer and shorter ones go through in_windows. 0: all.
        settings: features, levels, stages, dropout of the inner network, those that it has; 0 or "" for its own.
    """

    CONSISTENCIES: tuple[str, ...] = ("hard", "soft", "none")
    sense_weight: Tensor

    def __init__(
        self,
        inner: str = "unet",
        cascades: int = 1,
        consistency: str = "hard",
        shared: bool = False,
        start: str = "zero_filled",
        frames: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        choose(dict.fromkeys(self.CONSISTENCIES), consistency, "consistency")
        choose({"zero_filled": None, "view_sharing": None}, start, "start")
        self.cascades, self.consistency, self.start, self.frames = cascades, consistency, start, frames
        self.networks = nn.ModuleList(
            _inner(inner, 2, 2, frames=frames, **settings) for _ in range(1 if shared else cascades)
        )
        if consistency == "soft":
            self.step = nn.Parameter(torch.full((cascades,), 2.0))  # sigmoid(2) = 0.88

    def forward(self, kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        """Reconstruct a batch.

        Args:
            kspace: (batch, H, W) or, of sequences, (batch, frames, H, W) complex, zero where not measured.
            mask: bool, broadcastable to kspace.
            size: (h, w) of the result.
        Returns:
            (batch, [frames,] h, w) complex, in the units of the k-space.
        """
        if kspace.ndim == 4:
            least = max(getattr(network, "min_frames", 1) for network in self.networks)
            if kspace.shape[1] < least:
                raise BadInput(f"{kspace.shape[1]} frames, but the network looks at {least} at a time: give more")
            if self.frames and kspace.shape[1] != self.frames:
                return in_windows(lambda k, m: self(k, m, size), self.frames, kspace, mask.expand(kspace.shape))
        return center_crop(self.unroll(ifft2c(kspace), kspace, mask), size)

    def unroll(self, seen: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        """All cascades, from a first image (batch, [frames,] H, W) to the last one.

        With maps, k-space and the result are (batch, coils, H, W): the network sees and changes what the coils see
        together, and consistency holds for each coil.
        """
        image = seen if maps is None else spread_coils(seen, maps)
        phase = smooth_phase(kspace if maps is None else fft2c(seen))
        scale = seen.abs().flatten(1).amax(1).reshape(-1, *[1] * (seen.ndim - 1)) * phase
        if self.start == "view_sharing":
            if kspace.ndim < 4:
                raise BadInput("start view_sharing is for sequences: leave start out")
            image = view_sharing(kspace, mask)  # what the first network corrects; it sees the aliased frames
        for cascade in range(self.cascades):
            network = self.networks[cascade % len(self.networks)]
            change = scale * as_complex(network(as_channels(seen / scale)))
            if maps is not None and self.consistency == "sense":
                seen = sense(kspace, mask, maps, self.sense_weight.exp(), 6, prior=seen + change)
                image = spread_coils(seen, maps)
                continue
            image = image + (change if maps is None else spread_coils(change, maps))
            if self.consistency == "hard":
                image = keep_measured(image, kspace, mask)
            elif self.consistency == "soft":
                image = keep_measured(image, kspace, mask, self.step[cascade].sigmoid())
            seen = image if maps is None else combine_coils(image, maps)
        return image


class VariationalNetwork(Unrolled):
    """The end-to-end variational network: an unrolled network for coils that finds their sensitivities itself.

    Sriram et al. 2020 (MICCAI). The maps are low_resolution images divided by their root-sum-of-squares, which a
    small U-Net, the same for all coils, refines. The image is the root-sum-of-squares of the coils at the end.
    Unlike there, the first image is not the zero-filled one but eight steps of sense with a learned weight, which
    saves cascades. With sensitivities="espirit" the maps are those of espirit_maps, which nothing in the object
    disturbs: where its phase turns quickly, the low-resolution images lose signal and their ratios are wrong. Their
    eigenvectors are found on the CPU, for which a GPU waits.

    With consistency="sense" it is MoDL instead (Aggarwal, Mani and Jacob 2019, IEEE TMI 38(2)): after each network,
    sense looks for the image that explains the measured samples of all coils together and is near what the network
    returned, with a learned weight. What the coils determine, the network cannot spoil.

    Args:
        consistency: of Unrolled, or sense.
        sensitivities: learned or espirit.
        others: see Unrolled.
    """

    CONSISTENCIES = (*Unrolled.CONSISTENCIES, "sense")

    def __init__(
        self,
        inner: str = "unet",
        cascades: int = 4,
        consistency: str = "soft",
        shared: bool = False,
        sensitivities: str = "learned",
        **settings: Any,
    ) -> None:
        super().__init__(inner, cascades, consistency, shared, **settings)
        choose({"learned": None, "espirit": None}, sensitivities, "sensitivities")
        self.start_weight = nn.Parameter(torch.tensor(0.01).log())
        if consistency == "sense":
            self.sense_weight = nn.Parameter(torch.tensor(0.1).log())
            self.step = nn.Parameter(torch.tensor(2.0))
        if sensitivities == "learned":
            self.map_network = _inner("unet", 2, 2, features=4, levels=3)

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
        maps = self.maps(kspace, mask)
        first = sense(kspace, mask, maps, self.start_weight.exp(), iterations=8)
        images = self.unroll(first, kspace, mask, maps)
        if self.consistency == "sense":  # the air, where there are no sensitivities, is as noisy as in the reference
            images = keep_measured(images, kspace, mask, self.step.sigmoid())
        images = center_crop(images, size)
        # The tiny summand keeps the gradient finite where all coils are 0.
        return (images.abs().square().sum(1) + torch.finfo(torch.float32).tiny).sqrt()


class KSpaceNetwork(nn.Module):
    """Fills the gaps of k-space in k-space, and keeps the measured samples.

    k-space falls off steeply from its centre, so it is divided by a template that falls off alike; the
    smooth phase is removed, after which k(-f) is nearly the conjugate of k(f). Convolutions cannot look
    across the centre, so the mirrored k-space comes along as channels (the idea of virtual conjugate
    coils: Blaimer et al. 2009, MRM 61(1)): real, imaginary and mask, once as they are and once mirrored.

    Args: see Unrolled.
    """

    def __init__(self, inner: str = "unet", **settings: Any) -> None:
        super().__init__()
        self.network = _inner(inner, 6, 2, **settings)

    def forward(self, kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        """(batch, H, W) complex k-space -> (batch, h, w) complex image; see Unrolled.forward."""
        phase = smooth_phase(kspace)
        spectrum = fft2c(ifft2c(kspace) * phase.conj())
        template = 1 / (1 + _squared_frequency(kspace) / 0.02**2)
        template = template * (spectrum / template).abs().square().mean((-2, -1), keepdim=True).sqrt()
        known = mask.expand(kspace.shape)

        def mirrored(x: Tensor) -> Tensor:
            """x(-f): flipped about the centre of k-space, which is at n // 2."""
            shifts = [1 - n % 2 for n in x.shape[-2:]]
            return x.flip((-2, -1)).roll(shifts, (-2, -1))

        flat, there = as_channels(spectrum / template), known[:, None].float()
        twin = as_channels(mirrored((spectrum / template).conj()))
        filled = as_complex(self.network(torch.cat([flat, there, twin, mirrored(there)], 1)))
        image = ifft2c(spectrum + filled * template) * phase
        return center_crop(keep_measured(image, kspace, mask), size)


class MagnitudeNetwork(nn.Module):
    """From the magnitude of the zero-filled crop to the magnitude, as the U-Net baseline of fastMRI does.

    Zbontar et al. 2018, arXiv 1811.08839. The phase is thrown away, hence no data consistency is
    possible; input normalised per slice and clamped to +-6 standard deviations.

    Args:
        inner: one of INNER_NETWORKS.
        residual: the network predicts what to add to its input.
        upscale_factor, settings: of the inner network; see Unrolled.
    """

    def __init__(self, inner: str = "unet", residual: bool = False, upscale_factor: int = 0, **settings: Any) -> None:
        super().__init__()
        self.residual = residual
        self.network = _inner(inner, 1, 1, upscale_factor=upscale_factor, **settings)

    def forward(self, kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        """(batch, [coils,] H, W) complex k-space -> (batch, h, w) real magnitude; the mask is not used."""
        coils = kspace if kspace.ndim == 4 else kspace[:, None]
        x, mean, std = normalize(rss(center_crop(ifft2c(coils), size), 1), clamp=6)
        y = self.network(x[:, None])[:, 0].float()
        return (x + y if self.residual else y) * std + mean


class KSpaceSR(nn.Module):
    """Extends k-space beyond its measured central block, and keeps that block: super-resolution from k-space.

    The measured k-space comes in twice: as it is, and divided by the mean magnitude of fully sampled k-space at the
    same distance from the centre, a template taken from the training set, so that no frequency outweighs the others.
    Convolutions over k-space are products in the image: they cannot reach beyond the block. So the network works on
    the inverse transforms of both, an image and its edges, and the transform of what it returns is the new k-space
    (times the template it would learn fine detail more slowly). Scale and smooth phase come and go as in Unrolled;
    the measured samples are put back.

    Args: see Unrolled; upscale_factor is for an inner "srresnet", which is made for one factor.
    """

    BINS = 32  # of the template from the centre to the middle of an edge; it goes on to the corners

    def __init__(self, inner: str = "unet", upscale_factor: int = 0, **settings: Any) -> None:
        super().__init__()
        self.network = _inner(inner, 4, 2, upscale_factor=upscale_factor, **settings)
        self.template: Tensor
        self.register_buffer("template", torch.zeros(3 * self.BINS // 2 + 1))  # logarithms

    def _bins(self, kspace: Tensor) -> Tensor:
        """Where each sample of a k-space lies in the template: (H, W) float."""
        return 2 * self.BINS * _squared_frequency(kspace).sqrt()

    def learn_template(self, dataset: Any, slices: int = 32) -> None:
        """Take the mean magnitude of fully sampled k-space, by distance from the centre, from a SliceDataset."""
        total, count = torch.zeros_like(self.template), torch.zeros_like(self.template)
        for index in np.linspace(0, len(dataset) - 1, min(slices, len(dataset))).astype(int):
            sample = dataset[index]  # another one where this cannot be read, if the data set skips such files
            kspace, _ = dataset.volumes[sample.volume].cropped(int(sample.slice))
            size, bins = kspace / ifft2c(kspace).abs().max(), self._bins(kspace).round().long().flatten()
            total.index_add_(0, bins, size.abs().flatten())
            count.index_add_(0, bins, torch.ones(len(bins)))
        filled = count > 0
        self.template[filled] = (total / count)[filled].clamp(min=1e-6).log()
        self.template[~filled] = self.template[filled].min()  # the last ones, and all gaps of a small matrix

    def forward(self, kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        """(batch, H, W) complex k-space -> (batch, h, w) complex image; see Unrolled.forward."""
        image = ifft2c(kspace)
        scale = image.abs().amax((-2, -1), keepdim=True) * smooth_phase(kspace)
        bins = self._bins(kspace)
        below = bins.long().clamp(max=len(self.template) - 2)
        template = torch.lerp(self.template[below], self.template[below + 1], bins - below).exp()
        edges = as_channels(ifft2c(fft2c(image / scale) / template))
        edges = edges / edges.square().mean((-3, -2, -1), keepdim=True).sqrt()
        new = self.network(torch.cat([as_channels(image / scale), edges], 1))
        return center_crop(keep_measured(image + scale * as_complex(new), kspace, mask), size)


SRRESNET = partial(MagnitudeNetwork, inner="srresnet", residual=True, features=32, stages="6x2", upscale_factor=2)
# What --model accepts: a network with the settings that are its own where train.py's are 0 or empty.
MODELS: dict[str, partial] = {
    "unet": partial(Unrolled, inner="unet", features=16, levels=4),
    "magnitude_unet": partial(MagnitudeNetwork, inner="unet", features=16, levels=4),
    "resnet": partial(MagnitudeNetwork, inner="resnet", residual=True, features=64, stages="8x2 4x3"),
    "recon_resnet": partial(Unrolled, inner="recon_resnet", features=24, stages="14x2"),
    "kspace_unet": partial(KSpaceNetwork, inner="unet", features=16, levels=4),
    "unrolled": partial(Unrolled, inner="unet", cascades=4, features=16, levels=3),
    "srresnet": SRRESNET,
    "srgan": SRRESNET,  # the same, trained with an adversary; see the task super_resolution
    "kspace_sr": partial(KSpaceSR, inner="unet", features=12, levels=3),
    "cine_unet": partial(Unrolled, inner="frame_unet", consistency="none", features=32, levels=3, frames=12),
    "cine_dual_unet": partial(
        Unrolled, inner="dual_unet", consistency="none", features=64, levels=4, dropout=0.3, frames=12
    ),
    "cine_unrolled": partial(
        Unrolled, inner="space_time_resnet", cascades=3, features=16, stages="2x2", start="view_sharing"
    ),
    "rss_unet": partial(MagnitudeNetwork, inner="unet", residual=True, features=16, levels=4),
    "varnet": partial(VariationalNetwork, inner="unet", cascades=6, features=8, levels=3),
    "modl": partial(
        VariationalNetwork,
        inner="unet",
        cascades=4,
        consistency="sense",
        sensitivities="espirit",
        features=12,
        levels=3,
    ),
}
# Of models that diverge at DEFAULT_RATE, which suits most, or are slow at it.
LEARNING_RATES = {"resnet": 0.0003, "cine_unrolled": 0.005}
DEFAULT_RATE = 0.002
MODEL_SETTINGS = (
    *("inner", "cascades", "consistency", "shared", "features", "levels", "stages", "dropout"),
    *("upscale_factor", "start", "frames", "sensitivities"),
)


def model_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What MODEL_SETTINGS mean for a model: its own value where the setting is 0, false or empty.

    Raises:
        BadInput: an unknown model; a setting that the model or its inner network does not have; an inner network of
            sequences for a model of images, or the other way round.
    """
    name = settings["model"]
    model = choose(MODELS, name, "model")
    takes = _defaults(model)
    chosen = settings.get("inner") or takes["inner"]
    inner = _defaults(choose(INNER_NETWORKS, chosen, "inner network"))
    if (chosen in SEQUENCE_NETWORKS) != (takes["inner"] in SEQUENCE_NETWORKS):
        raise BadInput(f"inner network {chosen!r} is not for model {name!r}: leave inner out, or choose another model")
    of_sequences = settings.get("frames") or settings.get("start") not in (None, "", "zero_filled")
    if chosen not in SEQUENCE_NETWORKS and of_sequences:
        raise BadInput(f"model {name!r} is not for sequences: leave frames and start out")
    own = takes | model.keywords
    result = {}
    for key in MODEL_SETTINGS:
        if key in takes or (key in inner and key not in ("upscale_factor", "frames")):  # which only some pass on
            result[key] = settings.get(key) or own.get(key) or inner.get(key, own.get(key))
        elif settings.get(key) and key != "upscale_factor":  # that is the task's too
            raise BadInput(f"model {name!r} has no {key}: leave {key} out, or choose another model")
    return result


def _defaults(function: Callable) -> dict[str, Any]:
    """Name -> default of the arguments of a function or class."""
    return {name: argument.default for name, argument in inspect.signature(function).parameters.items()}


def build_model(settings: Mapping[str, Any]) -> nn.Module:
    """A fresh network: MODELS[settings["model"]] with model_settings(settings)."""
    own = model_settings(settings)  # which refuses an unknown model
    return MODELS[settings["model"]](**own)


# --------------------------------------------------------------------------------------------------
# 7 Losses and metrics
# --------------------------------------------------------------------------------------------------
# fastMRI's conventions: one figure per volume, data range = the largest value of the target volume.


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


def nmse(target: Tensor, prediction: Tensor) -> float:
    """Normalised mean squared error |target - prediction|^2 / |target|^2 of a volume (slices, H, W)."""
    x, y = _volumes(target, prediction)
    return float((x - y).square().sum() / x.square().sum())


def psnr(target: Tensor, prediction: Tensor, data_range: float | None = None) -> float:
    """Peak signal-to-noise ratio of a volume (slices, H, W) in dB.

    data_range: the largest value of the target volume unless given.
    """
    x, y = _volumes(target, prediction)
    peak = float(x.max()) if data_range is None else data_range
    return float(10 * torch.log10(peak**2 / (x - y).square().mean()))


def ssim(target: Tensor, prediction: Tensor, data_range: float | None = None) -> float:
    """Structural similarity of a volume (slices, H, W): the mean over slices of each slice's mean.

    data_range: the largest value of the target volume unless given.
    """
    x, y = _volumes(target, prediction, None)
    peak = float(x.max()) if data_range is None else data_range
    x, y = (v.reshape(-1, *v.shape[-2:]) for v in (x, y))
    step = len(x) if x.device.type == "cuda" else 1  # one slice at a time stays in a CPU's cache
    pairs = zip(x.split(step), y.split(step))
    return mean(float(ssim_map(a.double(), b.double(), peak).mean()) for a, b in pairs)


def mae(target: Tensor, prediction: Tensor) -> float:
    """Mean absolute error of a volume (slices, H, W), in the units of the images."""
    x, y = _volumes(target, prediction)
    return float((x - y).abs().mean())


METRICS: dict[str, Callable[..., float]] = {"ssim": ssim, "psnr": psnr, "nmse": nmse, "mae": mae}


# Losses compare magnitudes (batch, h, w) that are divided by the maximum of their target volume.


def ssim_loss(prediction: Tensor, target: Tensor, data_range: Tensor | float = 1.0) -> Tensor:
    """1 - SSIM; the data range is 1 for images divided by their volume's maximum."""
    return 1 - ssim_map(target, prediction, data_range).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": nn.functional.l1_loss,
    "l2": nn.functional.mse_loss,
    "ssim": ssim_loss,
    "l1_ssim": lambda prediction, target: nn.functional.l1_loss(prediction, target) + ssim_loss(prediction, target),
}

# What the discriminator minimises, given its scores of references and of reconstructions; what the
# generator minimises, given the scores of its reconstructions.
ADVERSARIAL: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # Mao et al. 2017, ICCV
    "least_squares": (
        lambda real, fake: ((real - 1).square() + fake.square()).mean() / 2,
        lambda s: (s - 1).square().mean(),
    ),
    # Arjovsky et al. 2017, ICML
    "wasserstein": (lambda real, fake: (fake - real).mean(), lambda s: -s.mean()),
}


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean of one or more numbers."""
    return float(np.mean(list(values)))


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


def interval(summary: Mapping[str, Any], digits: int = 3) -> str:
    """What summarize returned, as "mean [low, high]"; one subject has no interval."""
    low, high = summary["ci95"]
    return f"{summary['mean']:.{digits}f} " + (
        f"[{low:.{digits}f}, {high:.{digits}f}]" if low < high else "(one subject)"
    )


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


# --------------------------------------------------------------------------------------------------
# 8 Data set: slices and batches
# --------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """One slice ready for a network, or a batch of slices of one size.

    Attributes:
        kspace: ([batch,] [coils or frames,] h, W) complex64, readout oversampling removed, zero where not measured.
        mask: bool, as many axes as kspace and broadcastable to it, true where the k-space is known: sampled,
            or never acquired and therefore zero in the reference as well.
        target: ([batch,] [frames,] h, w) float32 reference magnitude (zeros for test files).
        maximum: ([batch]) float32, the largest value of the target volume.
        acceleration: ([batch]) effective acceleration: acquired samples / samples kept.
        volume, slice: ([batch]) int, where the slice comes from.
    """

    kspace: Tensor
    mask: Tensor
    target: Tensor
    maximum: Tensor
    acceleration: Tensor
    volume: Tensor
    slice: Tensor

    @property
    def peak(self) -> Tensor:
        """`maximum` of a batch, with axes added so that it broadcasts against `target`."""
        return self.maximum.reshape(-1, *[1] * (self.target.ndim - 1))

    def to(self, device: torch.device | str) -> Sample:
        """The same on another device."""
        return Sample(*(getattr(self, f).to(device, non_blocking=True) for f in SAMPLE_FIELDS))

    def pin_memory(self) -> Sample:
        """The same in memory from which a GPU copies while it computes; the DataLoader calls it."""
        return Sample(*(getattr(self, f).pin_memory() for f in SAMPLE_FIELDS))

    @staticmethod
    def stack(samples: Sequence[Sample]) -> Sample:
        """Many samples of one size -> one batch; the collate_fn of a DataLoader."""
        return Sample(*(torch.stack([getattr(s, f) for s in samples]) for f in SAMPLE_FIELDS))


SAMPLE_FIELDS = tuple(Sample.__dataclass_fields__)


@dataclass(frozen=True)
class CachedVolume(Volume):
    """A volume whose slices were prepared for training once: `store` holds a record of `layout` per slice.

    The crop along the readout is exact and the same for every mask, so it need not be made again in
    every epoch; what is left per slice is one read of a record and the mask. Where there is no such file, because
    the volume is in the share of a process on another machine, the volume itself is read.
    """

    store: Path

    @property
    def layout(self) -> np.dtype:
        """Of one record: k-space after crop_readout, acquired columns, target."""
        size, width = self.target_size, self.shape[-1]
        kspace = (*self.shape[1:-2], size[0], width)
        fields = [("kspace", "<c8", kspace), ("acquired", "?", (width,)), ("target", "<f4", size)]
        return np.dtype(fields)

    def cropped(self, index: int) -> tuple[Tensor, Tensor]:
        """As Volume.cropped, bit for bit."""
        if not self.store.exists():
            return super().cropped(index)
        return self._field("kspace", index), self._field("acquired", index)

    def target(self, index: int) -> Tensor:
        """As Volume.target, bit for bit."""
        return self._field("target", index) if self.store.exists() else super().target(index)

    def _field(self, name: str, index: int) -> Tensor:
        fields: Any = self.layout.fields
        kind, start = fields[name][:2]
        try:
            values = np.fromfile(
                self.store, kind.base, math.prod(kind.shape), offset=index * self.layout.itemsize + start
            )
            return torch.from_numpy(values.reshape(kind.shape))
        except (OSError, ValueError) as error:
            raise BadInput(f"{self.store}: slice {index} of the cache is unreadable: delete the file") from error


def cache_volumes(volumes: Sequence[Volume], folder: str | Path) -> list[Volume]:
    """The same volumes, read from a cache that is made where it is missing.

    Args:
        volumes: of k-space files with reference. A file that changed is cached anew.
        folder: on a fast local disk, or in memory (/dev/shm/NAME). It takes 8 h W (for each coil) + 4 h w bytes per
            slice: 1.35 MB at 320 x 368, of 2.3 MB in the file. Delete it when training is over.
    """
    cached: list[CachedVolume] = []
    for volume in volumes:
        if isinstance(volume, ImageVolume):
            raise BadInput(f"{volume.path}: computed from images, and not cached: leave cache out")
        state = volume.path.stat()
        key = f"{volume.path.resolve()} {state.st_size} {state.st_mtime_ns} {volume.target_size} 1"
        store = Path(folder, f"{volume.path.stem}_{hashlib.sha1(key.encode()).hexdigest()[:12]}.slices")
        fields = {name: getattr(volume, name) for name in Volume.__dataclass_fields__}
        cached.append(CachedVolume(**fields, store=store))
    for volume, ready in progress(own_share(list(zip(volumes, cached))), "filling the cache"):
        if not ready.store.exists() or ready.store.stat().st_size != len(ready) * ready.layout.itemsize:
            replace_file(ready.store, functools.partial(_write_records, volume, ready.layout))
    wait_for_all()
    return list[Volume](cached)


def _write_records(volume: Volume, layout: np.dtype, path: Path) -> None:
    with open(path, "wb") as file:
        for index in range(len(volume)):
            record = np.zeros((), layout)
            kspace, acquired = volume.cropped(index)
            record["kspace"], record["acquired"], record["target"] = kspace, acquired, volume.target(index)
            record.tofile(file)


class SliceDataset(torch.utils.data.Dataset):
    """Slices of volumes, undersampled on the fly.

    Args:
        volumes: what read_folder returned.
        mask, acceleration, center_fraction: of sampling_mask. Files that carry a mask keep theirs.
            Several accelerations are drawn at random, slice by slice; center_fraction then belongs to the
            first, and the others have as many centre lines less as they are faster (8 % at 4x, 4 % at 8x).
        seed: None gives every volume the mask that fastMRI's validation gives it (seeded by the file
            name, so that results compare across programs); a number draws a new mask for every slice
            and epoch, reproducibly, which is what training wants.
        limit: use only the first `limit` slices of an even spread; 0 uses all.
        augment: vary orientation, matrix size and noise (see vary_scan), reproducibly; needs a seed.
        vary_phase: give each slice another phase of a gradient echo (see susceptibility_phase); needs a seed.
        skip: a file that turns out to be unreadable is named once; from then on the next readable slice of
            the same size stands in for each of its slices. Otherwise it raises BadInput.
    Attributes:
        unreadable: numbers of the volumes left out so.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        mask: str,
        acceleration: float | Sequence[float],
        center_fraction: float,
        seed: int | None = None,
        limit: int = 0,
        augment: bool = False,
        skip: bool = False,
        vary_phase: bool = False,
    ) -> None:
        self.volumes, self.seed = list(volumes), seed
        self._epoch = torch.zeros((), dtype=torch.long)
        self.skip, self.unreadable = skip, set[int]()
        self.mask, self.augment, self.vary_phase = mask, augment and seed is not None, vary_phase and seed is not None
        factors = acceleration if isinstance(acceleration, Sequence) else [acceleration]
        self.sampling = [(factor, center_fraction * factors[0] / factor) for factor in factors]
        self.slices = [(v, s) for v, volume in enumerate(self.volumes) for s in range(len(volume))]
        if 0 < limit < len(self.slices):
            spread = np.linspace(0, len(self.slices) - 1, limit).round().astype(int)
            self.slices = [self.slices[i] for i in spread]
        # Faults of the parameters show now rather than in the first batch.
        for size in {self.size(i) for i in range(len(self))}:
            for sampling in self.sampling:
                sampling_mask(mask, size, *sampling, seed=0)

    @property
    def epoch(self) -> int:
        """Number of the epoch, with which training masks change; processes that read for this one see it as well."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, number: int) -> None:
        self._epoch.fill_(number)

    def __len__(self) -> int:
        return len(self.slices)

    def size(self, index: int) -> tuple[int, ...]:
        """([coils or frames,] h, W) of the k-space of slice `index`; only slices of one size can share a batch."""
        volume = self.volumes[self.slices[index][0]]
        return *volume.shape[1:-2], volume.target_size[0], volume.shape[-1]

    def __getitem__(self, index: int) -> Sample:
        reason: BadInput | None = None
        for i in ((index + k) % len(self) for k in range(len(self) if self.skip else 1)):
            v = self.slices[i][0]
            if v not in self.unreadable and self.size(i) == self.size(index):
                try:
                    return self.sample(i)
                except BadInput as error:
                    if not self.skip:
                        raise
                    reason = error
                    self.leave_out(v, str(error))
        path = self.volumes[self.slices[index][0]].path
        raise BadInput(f"{path}: no other training file of its size can stand in for it: mend the files") from reason

    def leave_out(self, volume: int, reason: str) -> None:
        """Read a volume no more, and say so once; processes that read for this one are silent."""
        if volume not in self.unreadable and torch.utils.data.get_worker_info() is None:
            print(f"{reason}; left out from now on", file=sys.stderr, flush=True)
        self.unreadable.add(volume)

    def without_unreadable(self) -> list[str]:
        """Forget the volumes that were left out, in all processes; returns one line on them, if there are any."""
        gone = set().union(*gather([self.unreadable]))
        if not gone:
            return []
        names = ", ".join(self.volumes[v].path.name for v in sorted(gone))
        new = {v: i for i, v in enumerate(v for v in range(len(self.volumes)) if v not in gone)}
        self.volumes, self.unreadable = [self.volumes[v] for v in new], set()
        self.slices = [(new[v], s) for v, s in self.slices if v in new]
        return [f"{len(gone)} training volumes turned unreadable and were left out: {names}"]

    def sample(self, index: int) -> Sample:
        """Slice `index` itself, read and undersampled."""
        v, s = self.slices[index]
        volume = self.volumes[v]
        kspace, acquired = volume.cropped(s)
        peak = volume.maximum if volume.mask is None else 1.0
        size, sampling = volume.target_size, self.sampling[0]
        mask_seed: str | tuple[int, ...] = volume.path.name
        if self.seed is not None:  # training
            mask_seed = (self.seed, self.epoch, index)
            if self.augment or self.vary_phase or len(self.sampling) > 1:
                random = np.random.RandomState((*mask_seed, 1))  # not the stream of the mask
                sampling = self.sampling[random.randint(len(self.sampling))]
        if self.augment:
            # One choice per size and epoch, so that slices of one size still make a batch.
            common = np.random.RandomState((self.seed or 0, self.epoch, *self.size(index)))
            kspace, acquired, size = vary_scan(kspace, acquired, size, peak, common, random)
        if self.vary_phase:
            phase = susceptibility_phase(kspace.shape[-2:], random)
            turned = fft2c(ifft2c(kspace) * torch.polar(torch.ones_like(phase), phase))
            kspace = torch.where(acquired, turned, 0)
        if self.augment or self.vary_phase:
            target = volume.magnitude(center_crop(ifft2c(kspace), size))
        else:
            target = volume.target(s) if volume.mask is None else torch.zeros(size)
        mask = volume.mask if volume.mask is not None else sampling_mask(self.mask, kspace.shape, *sampling, mask_seed)
        sampled = mask & acquired
        sampled = sampled.reshape(*[1] * (kspace.ndim - sampled.ndim), *sampled.shape)
        possible = acquired.sum() * (sampled.numel() // sampled.shape[-1])
        return Sample(
            kspace=torch.where(sampled, kspace, 0),
            mask=sampled | ~acquired,
            target=target,
            maximum=torch.tensor(peak),
            acceleration=possible / sampled.sum(),
            volume=torch.tensor(v),
            slice=torch.tensor(s),
        )


def vary_scan(
    kspace: Tensor, acquired: Tensor, size: tuple[int, int], peak: float, common: Any, random: Any
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """The scan that another protocol would have made of the same slice: what transfer to real scans needs.

    The phase-encode direction is swapped and the matrix made coarser as `common` draws; the image
    is mirrored and noise added as `random` draws.

    Args:
        kspace: ([coils,] h, W) complex, fully sampled.
        acquired: bool (W,), columns that hold data.
        size: of the target image.
        peak: largest value of the volume, to which the noise is scaled.
        common, random: numpy.random.RandomState; slices that share `common` keep one size.
    Returns:
        k-space, acquired and size of the new scan. The image values stay in their range.
    """
    swap, share = common.rand() < 0.5, common.uniform(0.6, 1.0)
    height, width = kspace.shape[-2:]
    coarse = [2 * round(share * n / 2) for n in (height, width)]
    size = (round(size[0] * coarse[0] / height), round(size[1] * coarse[1] / width))
    ratio = math.sqrt(coarse[0] * coarse[1] / (height * width))
    kspace, acquired = center_crop(kspace, coarse) * ratio, center_crop(acquired[None], (1, coarse[1]))[0]
    if swap and acquired.all():
        # The rows become the lines; the readout has lost its oversampling, so the field of view is the target's.
        kspace, size = crop_readout(kspace.mT.contiguous(), size[1]), size[::-1]
        acquired = acquired.new_ones(kspace.shape[-1])
    image = ifft2c(kspace)
    mirrored = [axis for axis in (-2, -1) if random.rand() < 0.5]
    if -1 in mirrored:  # f is where -f was
        acquired = acquired.flip(0).roll(1 - len(acquired) % 2)
    deviation = peak * math.exp(random.uniform(math.log(0.003), math.log(0.06)))
    noise = torch.from_numpy(random.standard_normal((*kspace.shape, 2)).astype(np.float32))
    kspace = fft2c(image.flip(mirrored)) + deviation * torch.view_as_complex(noise)
    return torch.where(acquired, kspace, 0), acquired, size


def susceptibility_phase(size: Sequence[int], random: Any) -> Tensor:
    """Phase that a gradient echo collects near air, which disturbs the magnetic field: sinuses, ears, the mouth.

    One to three balls of air above or below the slice, anywhere, in a main field of any direction. Outside a ball of
    radius a the field changes in proportion to (a / r)^3 (3 cos^2 - 1), with the angle to the main field (Haacke et
    al. 1999, Magnetic Resonance Imaging, chapter 25). How much phase that makes depends on field strength and
    echo time: what is drawn is the steepest turn, up to 1.5 radians from pixel to pixel, since where it is much
    steeper there is no signal left; of either sign, as vendors have it.

    Args:
        size: (H, W) of the image.
        random: numpy.random.RandomState.
    Returns:
        float32 (H, W), radians.
    """
    side = max(size)
    rows, columns = ((np.arange(n) - n // 2) / side for n in size)
    direction = random.standard_normal(3)
    direction /= np.linalg.norm(direction)
    field = np.zeros(tuple(size))
    for _ in range(random.randint(1, 4)):
        radius = random.uniform(0.05, 0.25)
        y, x = rows[:, None] - random.uniform(-0.45, 0.45), columns - random.uniform(-0.45, 0.45)
        z = radius * random.uniform(0.5, 1.5)
        distance = np.sqrt(x**2 + y**2 + z**2)
        cosine = (direction[0] * y + direction[1] * x + direction[2] * z) / distance
        field += (radius / distance.clip(radius)) ** 3 * (3 * cosine**2 - 1)
    steepest = max(np.abs(np.diff(field, axis=axis)).max() for axis in (0, 1))
    return torch.from_numpy((random.uniform(-1.5, 1.5) / steepest * field).astype(np.float32))


class SameSizeBatches(torch.utils.data.Sampler):
    """Batches of slices of one size, in an order that depends on (seed, epoch) alone.

    Several processes, and one that takes a batch in several pieces to save memory, share the batches
    of the same plan: together they take the steps that one process would take. Files are dealt out to
    `shards` groups, each of which belongs to one process; every batch takes evenly from all groups.

    Args:
        dataset: a SliceDataset.
        batch_size: slices per batch; the last batch of each size may be smaller.
        shuffle: draw a new order for each epoch; else the order of the files.
        shards: groups of files, a multiple of the number of processes; 0 for just as many. The plan depends on it.
        pieces: how many parts, one after the other, this process takes its share of a batch in.
    """

    def __init__(self, dataset: SliceDataset, batch_size: int, shuffle: bool, shards: int = 0, pieces: int = 1) -> None:
        self.dataset, self.batch_size, self.shuffle = dataset, batch_size, shuffle
        self.rank, self.processes = rank_and_size()
        self.shards, self.pieces = shards or self.processes, pieces
        if self.shards % self.processes:
            raise BadInput(f"shards {shards} on {self.processes} processes: use a multiple of {self.processes}, or 0")
        self.sizes = [dataset.size(i) for i in range(len(dataset))]
        self.own = [i for i in range(len(dataset)) if self.shard(i) % self.processes == self.rank]
        if not self.own:
            raise BadInput(f"{self.processes} processes, but process {self.rank} has no training file: use fewer")

    def __len__(self) -> int:
        return self.pieces * sum(math.ceil(n / self.batch_size) for n in Counter(self.sizes).values())

    def shard(self, index: int) -> int:
        """The group of files that slice `index` belongs to."""
        return self.dataset.slices[index][0] % self.shards

    def batches(self) -> list[list[int]]:
        """The whole batches of the epoch, the same for every number of processes and pieces."""
        random = np.random.RandomState((self.dataset.seed or 0, self.dataset.epoch))
        order = random.permutation(len(self.sizes)) if self.shuffle else np.arange(len(self.sizes))
        by_size: dict[tuple[int, ...], list[int]] = {size: [] for size in sorted(set(self.sizes))}
        for i in order:
            by_size[self.sizes[i]].append(int(i))
        batches = []
        for same in by_size.values():
            if self.shards > 1:  # each group's slices at even distances among those of the others
                count, seen, place = Counter(map(self.shard, same)), Counter[int](), {}
                for i in same:
                    place[i] = (seen[self.shard(i)] + 0.5) / count[self.shard(i)]
                    seen[self.shard(i)] += 1
                same.sort(key=lambda i: place[i])
            batches += [same[i : i + self.batch_size] for i in range(0, len(same), self.batch_size)]
        if self.shuffle:
            random.shuffle(batches)
        return batches

    def plan(self) -> list[tuple[list[int], float]]:
        """What this process takes: slices, and the share that their mean loss has in the batch's.

        The mean of share x gradient over the processes, summed over the pieces, is the gradient of the
        whole batch. A process without a slice in a batch takes part with another one and a share of 0.
        """
        parts, mine = [], set(self.own)
        for batch in self.batches():
            own = [i for i in batch if i in mine]
            for piece in (own[k :: self.pieces] for k in range(self.pieces)):
                parts.append((piece or self.own[:1], self.processes * len(piece) / len(batch)))
        return parts

    def __iter__(self) -> Iterator[list[int]]:
        return iter([part for part, _ in self.plan()])


def make_loader(
    dataset: SliceDataset, batch_size: int, shuffle: bool, workers: int = 0, shards: int = 0, pieces: int = 1
) -> torch.utils.data.DataLoader:
    """A DataLoader that yields Samples batched by size; see SameSizeBatches.

    Workers hand on what they read through shared memory, for which PyTorch would wait for ever where it is full (a
    container has 64 MB): no more of them are started than there is room for.
    """
    sampler = SameSizeBatches(dataset, batch_size, shuffle, shards, pieces)
    if workers and os.path.isdir("/dev/shm"):
        slices = math.ceil(min(batch_size, len(dataset)) / (sampler.processes * pieces))
        ahead = 2 * slices * 13 * max(map(math.prod, sampler.sizes))  # bytes of k-space, mask and target in two parts
        room = shutil.disk_usage("/dev/shm").free / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        fit = max(int(room / ahead) - 1, 0)  # each worker reads two ahead, and two are in use
        if fit < workers:
            print(f"workers: {fit}, not {workers}: /dev/shm has room for no more ({room / 1e6:.0f} MB a process)")
            workers = fit
    if workers:
        dataset._epoch.share_memory_()
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=Sample.stack,
        num_workers=workers,
        persistent_workers=workers > 0,  # starting them anew would cost as much as a short epoch
        pin_memory=torch.cuda.is_initialized(),  # by the network, if it is on a GPU
        generator=torch.Generator(),  # its own, see training_batches
    )


def training_batches(loader: torch.utils.data.DataLoader, device: str) -> Iterator[tuple[Sample, float]]:
    """One epoch: this process's part of every batch, on the device, and the part's share (see SameSizeBatches.plan)."""
    sampler: Any = loader.batch_sampler
    if sampler.processes > 1:  # dropout must differ between the processes; one process goes on as it was seeded
        seeds = sampler.dataset.seed or 0, sampler.dataset.epoch, sampler.rank, 2
        torch.manual_seed(np.random.RandomState(seeds).randint(2**31))
    # The number that a DataLoader draws when it starts its workers, once or in every epoch. Drawn here in every epoch,
    # dropout is the same with workers and without, and in a run that was resumed.
    torch.empty((), dtype=torch.long).random_()
    dataset = sampler.dataset
    for batch, (part, share) in zip(progress(loader, "training"), sampler.plan()):
        for planned, found in zip((dataset.slices[i][0] for i in part), batch.volume.tolist()):
            if planned != found:  # a process that reads for this one came upon it
                dataset.leave_out(planned, f"{dataset.volumes[planned].path}: cannot be read")
        yield batch.to(device), share


# --------------------------------------------------------------------------------------------------
# 9 Training: processes, checkpoints, the adversary
# --------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """The scheduler asked the program to end (SIGTERM); told between two steps, see progress."""


STOP_SIGNALS: list[int] = []  # those received; run_or_explain listens
EXIT_RESTART = 75  # of a run that was asked to stop: start it again with --resume (EX_TEMPFAIL of sysexits.h)


def progress(items: Any, what: str) -> Any:
    """A progress bar on a terminal; nothing in log files and notebooks, which print a line instead.

    Raises:
        Stopped: after an item that was being worked on when SIGTERM came.
    """
    for item in tqdm(items, desc=what, leave=False, disable=None if rank_and_size()[0] == 0 else True):
        yield item
        if STOP_SIGNALS:
            raise Stopped


# Several processes (torchrun sets RANK, WORLD_SIZE, LOCAL_RANK): each holds the whole network and takes
# its share of every batch. In one process all of these do nothing.


def join_processes(device: str) -> None:
    """Meet the other processes that torchrun started, and take this one's GPU.

    Raises:
        BadInput: more processes on this machine than GPUs.
    """
    size, rank, local = (
        int(os.environ.get(name, n)) for name, n in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
    )
    if size == 1 or distributed.is_initialized():
        return
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise BadInput(f"process {local}, but {torch.cuda.device_count()} GPUs here: start fewer processes")
        torch.cuda.set_device(local)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the first process speaks for all


def leave_processes() -> None:
    """Part from the other processes at the end of a run."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def own_share(items: Sequence[Any]) -> Sequence[Any]:
    """Those of the items that this process works on: every n-th."""
    rank, size = rank_and_size()
    return items[rank::size]


def gather(results: Sequence[Any], by_all: bool = True) -> list[Any]:
    """What every process made of its own_share, together and in the order of the items.

    All processes get it; or, where it is too large for that, the first one alone (by_all=False), and the others [].
    """
    rank, size = rank_and_size()
    if size == 1:
        return list(results)
    parts: list[Any] = [None] * size
    if by_all:
        distributed.all_gather_object(parts, list(results))
    else:
        distributed.gather_object(list(results), parts if rank == 0 else None)
        if rank > 0:
            return []
    together: list[Any] = [None] * sum(map(len, parts))
    for number, part in enumerate(parts):
        together[number::size] = part
    return together


def add_up(sums: Mapping[str, Any]) -> dict[str, float]:
    """The sums of all processes, each as a float64."""
    values = torch.tensor([float(value) for value in sums.values()], dtype=torch.float64)
    if rank_and_size()[1] > 1:
        distributed.all_reduce(values)
    return dict(zip(sums, values.tolist()))


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if rank_and_size()[1] > 1:
        distributed.barrier()


def place(network: nn.Module, settings: Any, train_set: SliceDataset) -> nn.Module:
    """The network on its device, compiled if the parameters ask for it.

    Args:
        network: of MODELS.
        settings: train.py's parameters, of which device, precision, start_from and compile count, and for that the
            batches'.
        train_set: what it will see: a KSpaceSR learns its template from it, the compiler is tried on its slices.
    """
    learn = getattr(network, "learn_template", None)
    if learn and not settings.start_from:
        learn(train_set)
    network = network.to(settings.device)
    if settings.compile:
        # The convolutions only: the compiler does not gain with complex numbers and transforms. For the sizes of
        # whole batches only: code for any size was wrong at some (PyTorch 2.13), the rest goes without.
        parts = getattr(network, "networks", None) or [network.network]
        sizes = [train_set.size(i) for i in range(len(train_set))]
        slices = max(settings.batch_size // (settings.accumulate * rank_and_size()[1]), 1)
        try:
            for inner in parts:
                inner.compile(dynamic=False)
            with torch.random.fork_rng():
                for size, _ in Counter(sizes).most_common(3):
                    batch = Sample.stack([train_set[sizes.index(size)]] * slices).to(settings.device)
                    reconstruct(network.train(), batch, settings.precision).sum().backward()
                    with torch.inference_mode():
                        reconstruct(network.eval(), batch, settings.precision)
            torch.compiler.set_stance("eager_on_recompile")
        except Exception as error:  # the compiler raises whatever the tools below it lead it to
            torch.compiler.set_stance("force_eager")
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"torch.compile failed ({reason[:120]}): going on without it")
        network.zero_grad()
    return network


def step_hooks(optimizer: torch.optim.Optimizer, network: nn.Module, clip: float, ema: float) -> nn.Module:
    """Clip the gradients before every step, and follow the weights with a moving average after it.

    Args:
        clip: largest norm of the gradient; 0 leaves it.
        ema: share of the old average in the new one; 0 for none. It begins smaller, so that the first weights
            are soon forgotten.
    Returns:
        the network to use: a copy with the averaged weights, or `network` itself.
    """
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    if clip:

        def limit(*_: Any) -> None:
            nn.utils.clip_grad_norm_(weights, clip)

        optimizer.register_step_pre_hook(limit)
    if not ema:
        return network
    averaged = copy.deepcopy(network).requires_grad_(False)
    steps = 0

    @torch.no_grad()
    def follow(*_: Any) -> None:
        nonlocal steps
        # A resumed optimizer knows how many steps there were. It is asked once: on a GPU, asking means waiting.
        steps = steps + 1 if steps else int(optimizer.state[weights[0]]["step"])
        keep = min(ema, (1 + steps) / (10 + steps))
        for average, new in zip(averaged.parameters(), network.parameters()):
            average.lerp_(new, 1 - keep)

    optimizer.register_step_post_hook(follow)
    return averaged


def parallelize(network: nn.Module, device: str) -> nn.Module:
    """The network whose backward pass averages the gradients over the processes."""
    if rank_and_size()[1] == 1:
        return network
    gpus = [torch.cuda.current_device()] if device == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=gpus)


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint of tensors and plain Python values in one step; see replace_file."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    replace_file(path, lambda partial: partial.write_bytes(buffer.getbuffer()))


def export_weights(checkpoint: str | Path, path: str | Path) -> None:
    """A small copy of a checkpoint for readers: weights as float16, parameters, history; no optimizer."""
    content = read_checkpoint(checkpoint)
    if lacking := {"epoch", "history", "seconds"} - set(content):
        raise BadInput(f"{checkpoint}: has no {', '.join(sorted(lacking))}: give the checkpoint.pt of a run")
    weights = {name: w.half() if w.is_floating_point() else w for name, w in content["model_state"].items()}
    kept = {name: content[name] for name in ("parameters", "epoch", "history", "seconds")}
    save_checkpoint(path, {"model_state": weights} | kept)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What save_checkpoint wrote, on the CPU. Only tensors and plain values: no code is executed.

    Raises:
        BadInput: missing, not a checkpoint, or one of another program.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise BadInput(f"{path}: no such checkpoint: check the path, or train first")
    try:
        with open(path, "rb") as file:  # torch's older format, and compressed parts, can ask for any memory
            zipped = file.read(4) == b"PK\3\4" and zipfile.ZipFile(file).infolist()
            if not zipped or any(part.compress_type != zipfile.ZIP_STORED for part in zipped):
                raise ValueError("not as torch.save writes it")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the broken bytes lead it to
        raise BadInput(f"{path}: not a checkpoint of train.py, or a damaged one: train again") from error
    if not isinstance(content, dict) or not {"model_state", "parameters"} <= set(content):
        raise BadInput(f"{path}: a checkpoint, but not one of train.py: choose another file")
    weights, parameters, history = content["model_state"], content["parameters"], content.get("history", [])
    sound = isinstance(weights, dict) and all(isinstance(w, Tensor) and w.is_contiguous() for w in weights.values())
    sound = sound and sum(w.nbytes for w in weights.values()) <= path.stat().st_size  # each is really in the file
    sound = sound and isinstance(parameters, dict) and isinstance(history, list)
    sound = sound and all(isinstance(value, bool | int | float | str) for value in parameters.values())
    needed = {"epoch", "train_loss", "val_ssim", "val_psnr"}
    if not sound or not all(isinstance(row, dict) and needed <= set(row) for row in history):
        raise BadInput(f"{path}: holds what train.py cannot have written: train again")
    return content


def load_model(checkpoint: str | Path) -> nn.Module:
    """A ready network from what train.py saved.

    Args:
        checkpoint: checkpoint.pt or best.pt of a run folder, or a file of checkpoints/.
    Returns:
        the network in evaluation mode on the CPU; its attribute `settings` holds all parameters that
        it was trained with, `history` a row per epoch, `seconds` the time of the training.
    Raises:
        BadInput: see read_checkpoint; or weights that do not fit the model that the file names.
    """
    content = read_checkpoint(checkpoint)
    parameters, weights = content["parameters"], content["model_state"]
    try:
        _refuse_endless(parameters)
        with torch.device("meta"):  # a network without memory: a broken file may ask for any size
            planned = build_model(parameters).state_dict()
        if {name: w.shape for name, w in planned.items()} != {name: w.shape for name, w in weights.items()}:
            raise ValueError("other names or shapes")
        network = build_model(parameters)
        network.load_state_dict(weights)
    except BadInput as error:
        raise BadInput(f"{checkpoint}: {error}") from error
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        unfit = f"its weights do not fit model {parameters.get('model')!r}"
        raise BadInput(f"{checkpoint}: {unfit}: it was written by another version, train again") from error
    network.settings, network.history = parameters, content.get("history", [])
    network.seconds = content.get("seconds", 0.0)
    return network.eval()


def _refuse_endless(parameters: Mapping[str, Any]) -> None:
    """Raise ValueError if parameters of a network ask for more layers than any that was ever trained here."""
    for name in ("features", "levels", "cascades", "stages"):
        value = str(parameters.get(name, ""))
        most = 4096 if name == "features" else 64
        if len(value) > 64 or any(int(number) > most for number in re.findall(r"\d+", value)):
            raise ValueError(f"{name} {value[:64]}")


def load_trained(settings: Any) -> tuple[Any, list[Volume]]:
    """What train.py --evaluate needs: the network on its device, and the files of the folder `data` or its val/.

    Args:
        settings: train.py's parameters, filled in.
    Raises:
        BadInput: see load_model and read_folder; or `out` holds a training run.
    """
    if Path(settings.out, "checkpoint.pt").exists():
        raise BadInput(f"{settings.out}: holds a training run: choose another --out for the reconstructions")
    network = load_model(settings.evaluate)
    trained: Any = network.settings
    sampling = ("mask", "acceleration", "center_fraction")
    other = [f"{n} {trained[n]}" for n in sampling if trained.get(n, getattr(settings, n)) != getattr(settings, n)]
    if other:
        print(f"{settings.evaluate}: trained with another {', '.join(other)}")
    folder = data_folder(settings)
    inside = folder / "val"
    return network.to(settings.device), TASKS[settings.task].read(inside if inside.is_dir() else folder)


def copy_weights(checkpoint: str | Path, network: nn.Module) -> None:
    """Start `network` from the weights of a checkpoint of the same model.

    Raises:
        BadInput: see read_checkpoint; or the weights are of another model.
    """
    try:
        network.load_state_dict(read_checkpoint(checkpoint)["model_state"])
    except RuntimeError as error:
        raise BadInput(f"{checkpoint}: its weights are of another model: give its own parameters") from error


def vgg_features() -> nn.Module | None:
    """The convolutions of VGG-19 up to its last pooling; None unless torchvision and the weights are on this computer.

    Nothing is downloaded: the weights are looked for where torch.hub keeps them.
    """
    files = sorted(Path(torch.hub.get_dir(), "checkpoints").glob("vgg19-*.pth"))
    if not files or importlib.util.find_spec("torchvision") is None:
        return None
    import torchvision

    network: Any = torchvision.models.vgg19()
    network.load_state_dict(torch.load(files[0], map_location="cpu", weights_only=True))
    return network.features[:-1].eval().requires_grad_(False)


def roughness(image: Tensor) -> Tensor:
    """Anisotropic total variation per pixel of (batch, h, w) magnitudes: what tv_weight weighs."""
    return (image.diff(dim=-2).abs().sum() + image.diff(dim=-1).abs().sum()) / image.numel()


class Adversary:
    """The discriminator of adversarial training, with its optimizer.

    Args:
        settings: train.py's parameters, of which adversarial (one of ADVERSARIAL), lr, device, adversarial_weight and
            perceptual_weight count.
    """

    def __init__(self, settings: Any) -> None:
        self.weights = settings.adversarial_weight, settings.perceptual_weight
        self.vgg = vgg_features() if settings.perceptual_weight else None
        if self.vgg:
            self.vgg.to(settings.device)
            # Mean and standard deviation of the pictures that it was trained on, by colour.
            colours = torch.tensor([(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)], device=settings.device)
            self.colours = colours[..., None, None]
        self.discriminator = PatchDiscriminator().to(settings.device)
        # Little momentum, as usual here: the other player moves.
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=settings.lr / 4, betas=(0.5, 0.9))
        self.own_loss, self.others_loss = choose(ADVERSARIAL, settings.adversarial, "adversarial form")

    def doubt(self, image: Tensor, target: Tensor, given: Tensor) -> Tensor:
        """What the generator minimises besides its loss: low where its image passes for a reference.

        The opinion of the discriminator, and the distance of reconstruction and reference in a network's features:
        those of VGG where its weights are on this computer (Johnson et al. 2016, ECCV), else the discriminator's own
        (feature matching: Salimans et al. 2016, NeurIPS), which need no download and have seen MR images.

        Args:
            image, target, given: (batch, h, w) magnitudes of reconstruction, reference and zero-filled image.
        """
        adversarial, perceptual = self.weights
        loss = adversarial * self.others_loss(self.discriminator(image, given))
        if not perceptual:
            return loss
        if self.vgg:
            ours, theirs = ([self.vgg((x[:, None] - self.colours[0]) / self.colours[1])] for x in (image, target))
        else:
            ours, theirs = (self.discriminator.features(x, given) for x in (image, target))
        distances = [(a - b.detach()).abs().mean() for a, b in zip(ours, theirs)]
        return loss + perceptual * sum(distances) / len(distances)

    def learn(self, image: Tensor, target: Tensor, given: Tensor, share: float = 1.0) -> dict[str, Tensor]:
        """One step of the discriminator on a batch of magnitudes; returns how it did before the step.

        Args:
            image, target, given: (batch, h, w) reconstruction, reference and zero-filled image.
            share: see SameSizeBatches.plan.
        Returns:
            discriminator_loss, and discriminator_accuracy: the share of patches where the reference
            scores higher than the reconstruction (0.5 is guessing).
        """
        real, fake = self.discriminator(target, given), self.discriminator(image.detach(), given)
        loss = self.own_loss(real, fake)
        self.optimizer.zero_grad()
        (share * loss).backward()
        if rank_and_size()[1] > 1:
            for weights in self.discriminator.parameters():
                gradient: Any = weights.grad
                distributed.all_reduce(gradient)
                gradient /= rank_and_size()[1]
        self.optimizer.step()
        # Tensors: a number would make the GPU wait in every step.
        return {"discriminator_loss": loss.detach().double(), "discriminator_accuracy": (real > fake).double().mean()}

    def state_dict(self) -> dict[str, Any]:
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])


# --------------------------------------------------------------------------------------------------
# 10 Methods and tasks
# --------------------------------------------------------------------------------------------------


# What turns measured k-space into an image: the forward of every network, zero_filled, classical_method(name, weight).
Method = Callable[[Tensor, Tensor, Sequence[int]], Tensor]


def zero_filled(kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
    """The baseline of baselines: unmeasured samples stay zero; the mask is not used."""
    return center_crop(ifft2c(kspace), size)


def zero_filled_rss(kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
    """zero_filled with coils: the root-sum-of-squares of their images."""
    return rss(zero_filled(kspace, mask, size), 1)


# The classical methods, and the weights that tune tries for each: wide enough for 4x and 8x, clean and noisy.
CLASSICAL: dict[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "tv": (total_variation, (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)),
    "wavelet": (wavelet, (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008)),
    "low_rank": (low_rank, (0.00001, 0.0001, 0.001, 0.01, 0.1)),
}
TEMPORAL_TV_WEIGHTS = (0.00025, 0.0005, 0.001, 0.002)


def classical_method(name: str, weight: float, **options: Any) -> Method:
    """A method of CLASSICAL with a fixed weight (and options of its function), called like a network."""
    function, _ = choose(CLASSICAL, name, "classical method")
    return lambda kspace, mask, size: center_crop(function(kspace, mask, weight, **options), size)


def tv_method(weight: float, iterations: int = 300) -> Method:
    """total_variation with a fixed weight, called like a network."""
    return classical_method("tv", weight, iterations=iterations)


@torch.inference_mode()
def tune(
    make_method: str | Callable[[float], Method],
    train_set: SliceDataset,
    weights: Sequence[float] = (),
    slices: int = 16,
    device: str = "cpu",
    metric: Callable[..., float] = ssim,
) -> float:
    """The weight with the highest mean SSIM, or other metric, on a few training slices.

    Args:
        make_method: a name of CLASSICAL, or a function that makes a method of a weight.
        train_set: slices that the method is not scored on later.
        weights: to choose from; by default those of CLASSICAL. Where the best is the first or the last of them, the
            search goes on beyond it, for as long as that is better.
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
    samples = [Sample.stack([train_set[i]]).to(device) for i in picks]

    def quality(weight: float) -> float:
        images = [reconstruct(make_method(weight), sample) for sample in samples]
        return mean(metric(s.target, image, float(s.maximum)) for s, image in zip(samples, images))

    found = {weight: quality(weight) for weight in progress(sorted(weights), "tuning")}
    for _ in range(8):
        low, *middle, high = sorted(found) if len(found) > 1 else (0.0, 0.0)
        best = max(found, key=lambda weight: found[weight])
        next_to = {low: (middle or [high])[0], high: (middle or [low])[-1]}.get(best, 0.0)
        if best * next_to == 0:  # between two others, or alone, or no weight at all
            break
        further = float(f"{best**2 / next_to:.6g}")
        found[further] = quality(further)
    return max(found, key=lambda weight: found[weight])


def reconstruct(method: Method, batch: Sample, precision: str = "float32") -> Tensor:
    """Magnitude images (batch, [frames,] h, w) float32 of a batch; precision as train.py's parameter."""
    device = batch.kspace.device.type
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        return method(batch.kspace, batch.mask, batch.target.shape[-2:]).abs().float()


@torch.inference_mode()
def reconstruct_volume(
    method: Method, dataset: SliceDataset, volume: int, settings: Any = None
) -> tuple[Tensor, Tensor, float]:
    """Reconstruct those slices of one volume that a data set holds.

    Args:
        method: a network or a classical method.
        dataset: where the slices come from.
        volume: index into dataset.volumes.
        settings: train.py's parameters, of which device, batch_size, accumulate, precision and workers (threads
            here, which read the next slices meanwhile) count.
    Returns:
        reconstruction and target, float32 (slices, h, w) on the CPU, and the seconds that the method
        took, without the reading. Frames of a sequence count as slices.
    """
    device, size, precision, workers = "cpu", 8, "float32", 0
    if settings is not None:
        device, size, precision = settings.device, settings.batch_size, settings.precision
        size = math.ceil(size / getattr(settings, "accumulate", 1))  # what the memory was enough for in training
        workers = getattr(settings, "workers", 0)
    if isinstance(method, nn.Module) and method.training:
        raise BadInput("the network is in training mode, where dropout and batch statistics change it: call .eval()")
    chosen = [i for i, (v, _) in enumerate(dataset.slices) if v == volume]
    images, targets, seconds = [], [], 0.0
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        samples = (pool.map if workers else map)(dataset.__getitem__, chosen)
        while group := list(itertools.islice(samples, size)):
            batch = Sample.stack(group).to(device)
            start = time.perf_counter()
            images.append(reconstruct(method, batch, precision).cpu())  # .cpu() waits for a GPU to finish
            seconds += time.perf_counter() - start
            targets.append(batch.target.cpu())
    return torch.cat(images).flatten(0, -3), torch.cat(targets).flatten(0, -3), seconds


@dataclass(frozen=True)
class Task:
    """What one kind of experiment changes in train.py: the files, the baselines, the networks; never the loop.

    Attributes:
        settings: the values of parameters that are left at 0, "" or false; `data` is the demo folder.
        demo: simulates the demo data where they are missing and returns their folder.
        models: those of MODELS that suit it.
        start: name and method that fill nothing in, with which all others are compared.
        baselines: (training slices, settings) -> the methods that the network is scored beside, and what was
            tuned for them on these slices, for metrics.json.
        read: the volumes of a folder. Raises BadInput.
        split: (folder, read) -> training and validation volumes.
        prepare: checks or derives parameters, before anything is read.
        export: (folder, network, slices) -> nothing: what a run folder holds besides.
    """

    settings: Mapping[str, Any]
    demo: Callable[[], Path]
    models: Sequence[str]
    start: tuple[str, Method]
    baselines: Callable[[SliceDataset, Any], tuple[dict[str, Method], dict[str, float]]]
    read: Callable[[Path], list[Volume]]
    split: Callable[[Path, Callable[[Path], list[Volume]]], tuple[list[Volume], list[Volume]]] = read_train_and_val
    prepare: Callable[[Any], None] = lambda settings: None
    export: Callable[[Path, Method, SliceDataset], None] = lambda folder, network, dataset: None


def tuned_tv(train_set: SliceDataset, settings: Any) -> tuple[dict[str, Method], dict[str, float]]:
    """The baselines of single_coil: total variation with the weight that suits the training slices best."""
    weight = tune("tv", train_set, device=settings.device)
    return {"tv": tv_method(weight)}, {"tv_weight": weight}


def demo_sr() -> Path:
    """The demo data of super_resolution: 36 simulated heads with pixels of 0.9 mm and little noise."""
    return demo_data(DEMO_FOLDER.with_name("demo_sr"), 24, 12, slices=4, matrix=256, seed=4, wide=False, noise=0.004)


def read_any(folder: Path) -> list[Volume]:
    """k-space files (.h5) of a folder, or the images in it; see read_folder and read_images."""
    return read_folder(folder, "slices, H, W") if any(folder.glob("*.h5")) else read_images(folder)


def split_images(folder: Path, read: Callable[[Path], list[Volume]]) -> tuple[list[Volume], list[Volume]]:
    """folder/train and folder/val; where there are none, a quarter of the subjects, or of one subject's slices.

    The slices of one subject's series are split in two blocks, and a gap between them is left out: neighbours are
    nearly copies. What is done is printed.
    """
    if (folder / "train").is_dir():
        return read_train_and_val(folder, read)
    volumes, parts = read(folder), list[Volume]()
    train, val = split_by_subject(volumes, 0.25)
    if train:
        print(f"{folder}: no train/ and val/ in it: {len({v.patient_id for v in val})} of its subjects validate")
        return train, val
    for volume in volumes:
        n = len(volume)
        gap, held = max(3, n // 10), n // 4
        if held < 1 or not isinstance(volume, ImageVolume) or n - gap - held < 1:
            raise BadInput(f"{volume.path}: one subject with {n} slices cannot be split: give train/ and val/")
        train.append(volume.part(0, n - gap - held))
        parts.append(volume.part(n - held, n))
        print(
            f"{folder}: one subject: slices 0 to {n - gap - held - 1} train, {n - held} to {n - 1} validate, {gap} "
            "between them are left out: the figures hold for this head, not for others"
        )
    return train, parts


def prepare_super_resolution(settings: Any) -> None:
    """The mask that an upscale factor means, and what makes srresnet srgan."""
    factor = settings.upscale_factor
    choose({"2": None, "4": None}, str(factor), "upscale_factor")
    own = (0, factor**2), (0, 1 / factor**2)
    if settings.mask != "low_pass" or settings.acceleration not in own[0] or settings.center_fraction not in own[1]:
        raise BadInput(
            "mask, acceleration and center_fraction: super_resolution has its own: give upscale_factor instead"
        )
    settings.acceleration, settings.center_fraction = float(factor**2), 1 / factor**2  # the block is all there is
    if settings.model == "srgan":
        settings.adversarial_weight = settings.adversarial_weight or 0.005
        settings.perceptual_weight = settings.perceptual_weight or 0.05


def sliding_window(kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
    """view_sharing, called like a network."""
    return center_crop(view_sharing(kspace, mask), size)


def cine_baselines(train_set: SliceDataset, settings: Any) -> tuple[dict[str, Method], dict[str, float]]:
    """The baselines of cine: the sliding window, and total variation along time, its weight tuned."""

    def method(weight: float) -> Method:
        return lambda kspace, mask, size: center_crop(temporal_tv(kspace, mask, weight), size)

    weight = tune(method, train_set, TEMPORAL_TV_WEIGHTS, slices=3, device=settings.device)
    return {"sliding_window": sliding_window, "temporal_tv": method(weight)}, {"temporal_tv_weight": weight}


def split_cine(folder: Path, read: Callable[[Path], list[Volume]]) -> tuple[list[Volume], list[Volume]]:
    """folder/train and folder/val; or, of a folder with one cine.npz, a fifth of its sequences for validation."""
    if not (folder / "cine.npz").exists():
        return read_train_and_val(folder, read)
    sequences = read(folder)
    if len(sequences) < 2:
        raise BadInput(f"{folder / 'cine.npz'}: one sequence cannot be split: score it with --evaluate CHECKPOINT")
    return split_by_subject(sequences, 0.2)


def check_cine(settings: Any) -> None:
    """Refuse what sequences cannot have."""
    for name in ("augment", "vary_phase", "cache", "adversarial_weight"):
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


def check_multi_coil(settings: Any) -> None:
    """Refuse masks without whole lines around the centre, from which the coils are calibrated."""
    choose({kind: None for kind in MASKS if kind not in _KINDS_2D}, settings.mask, "mask kind of lines")


def tuned_parallel(train_set: SliceDataset, settings: Any) -> tuple[dict[str, Method], dict[str, float]]:
    """The baselines of multi_coil: each method of PARALLEL with the weight of highest PSNR on a few training slices.

    The weight of highest SSIM smooths more, and costs them decibels; the loss of the networks is L1.
    """
    weights = {
        name: tune(partial(parallel_method, name), train_set, choices, 8, settings.device, psnr)
        for name, (_, choices) in PARALLEL.items()
    }
    methods = {name: parallel_method(name, weight) for name, weight in weights.items()}
    return methods, {f"{name}_weight": weight for name, weight in weights.items()}


TASKS: dict[str, Task] = {
    "single_coil": Task(
        settings=dict(
            data="data/demo", model="unet", mask="random", acceleration=4.0, center_fraction=0.08, loss="ssim"
        ),
        demo=demo_data,
        models=("unet", "magnitude_unet", "resnet", "recon_resnet", "kspace_unet", "unrolled"),
        start=("zero_filled", zero_filled),
        baselines=tuned_tv,
        read=partial(read_folder, axes="slices, H, W"),
    ),
    "super_resolution": Task(
        settings=dict(data="data/demo_sr", model="kspace_sr", mask="low_pass", upscale_factor=2, loss="l1_ssim"),
        demo=demo_sr,
        models=("kspace_sr", "srresnet", "srgan", "unet", "kspace_unet"),
        start=("sinc", zero_filled),
        baselines=lambda train_set, settings: (
            {"bicubic": lambda kspace, mask, size: bicubic(kspace, size, settings.upscale_factor)},
            {},
        ),
        read=read_any,
        split=split_images,
        prepare=prepare_super_resolution,
    ),
    "cine": Task(
        settings=dict(
            data="data/demo_cine",
            model="cine_unrolled",
            mask="kt",
            acceleration=5.0,
            center_fraction=11 / 192,
            loss="l1_ssim",
            batch_size=1,
        ),
        demo=demo_cine,
        models=("cine_unet", "cine_dual_unet", "cine_unrolled"),
        start=("zero_filled", zero_filled),
        baselines=cine_baselines,
        read=read_cine,
        split=split_cine,
        prepare=check_cine,
        export=export_cine,
    ),
    "multi_coil": Task(
        settings=dict(
            data="data/demo_multi_coil",
            model="varnet",
            mask="equispaced",
            acceleration=4.0,
            center_fraction=0.08,
            loss="l1",
        ),
        demo=partial(
            demo_data, ROOT / "data" / "demo_multi_coil", train=36, val=12, slices=5, matrix=128, seed=1, coils=8
        ),
        models=("varnet", "modl", "rss_unet"),
        start=("zero_filled", zero_filled_rss),
        baselines=tuned_parallel,
        read=partial(read_folder, axes="slices, coils, H, W"),
        prepare=check_multi_coil,
    ),
}
COMMON = {"epochs": 24, "batch_size": 4}  # of tasks that do not say otherwise


def fill_in(settings: Any) -> Any:
    """Give train.py's parameters that are 0, "" or false the task's and the model's own values, in place.

    With `evaluate`, the checkpoint's own: it is scored as it was trained, unless a parameter says otherwise.

    Raises:
        BadInput: an unknown task or model, one that does not suit the other, one that the checkpoint does not have, or
            see model_settings.
    """
    values = vars(settings)
    if settings.evaluate:
        trained = read_checkpoint(settings.evaluate)["parameters"]
        for name in ("model", *MODEL_SETTINGS):
            if values[name] and values[name] != trained.get(name, values[name]):
                raise BadInput(f"{settings.evaluate}: has {name} {trained[name]!r}, not {values[name]!r}: leave it out")
        values.update({name: trained[name] for name in ("task", "model", *MODEL_SETTINGS) if name in trained})
        own = choose(TASKS, settings.task, "task").settings
        values.update({name: values[name] or trained.get(name, own[name]) for name in own if name != "data"})
    task = choose(TASKS, settings.task, "task")
    values.update({name: values[name] or own for name, own in {**COMMON, **task.settings}.items()})
    if settings.upscale_factor and "upscale_factor" not in task.settings:
        raise BadInput(f"task {settings.task!r} has no upscale_factor: leave it out, or choose task super_resolution")
    choose(MODELS, settings.model, "model")
    if settings.model not in task.models:
        raise BadInput(f"model {settings.model!r} is not for task {settings.task!r}: use {', '.join(task.models)}")
    values.update(model_settings(values))
    settings.lr = settings.lr or LEARNING_RATES.get(settings.model, DEFAULT_RATE)
    settings.out = settings.out or f"runs/{settings.model}"
    task.prepare(settings)
    return settings


def data_folder(settings: Any) -> Path:
    """The folder `data`; the demo data are simulated where they are missing."""
    task = TASKS[settings.task]
    return task.demo() if settings.data == task.settings["data"] else Path(settings.data)


def read_data(settings: Any) -> tuple[list[Volume], list[Volume]]:
    """Training and validation volumes of train.py's parameters, cached where `cache` says so.

    Raises:
        BadInput: see Task.read and check_split.
    """
    task = TASKS[settings.task]
    train, val = task.split(data_folder(settings), task.read)
    check_split(train, val)
    if settings.cache:
        train, val = cache_volumes(train, settings.cache), cache_volumes(val, settings.cache)
    return train, val


# --------------------------------------------------------------------------------------------------
# 11 Runs: parameters, run folders, tables
# --------------------------------------------------------------------------------------------------


def count_parameters(network: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def choose_device(settings: Any) -> None:
    """Settle train.py's device, in place, and its precision and workers where they are left to the device.

    On a GPU, PyTorch then multiplies as precisely as that says.

    Raises:
        BadInput: an unknown device or precision, or a GPU where PyTorch finds none.
    """
    choose({"auto": None, "cpu": None, "cuda": None}, settings.device, "device")
    found = torch.cuda.is_available()
    if settings.device == "cuda" and not found:
        raise BadInput("device 'cuda': PyTorch finds no GPU: choose cpu or auto")
    settings.device = "cuda" if settings.device != "cpu" and found else "cpu"
    gpu = settings.device == "cuda"
    if not settings.precision:  # GPUs before 2020 only emulate bfloat16, slowly
        halves = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        settings.precision = "bfloat16" if halves else "float32"
    choose({"float32": None, "tf32": None, "bfloat16": None}, settings.precision, "precision")
    if settings.workers == -1:
        settings.workers = 4 if gpu else 0
    if gpu:
        # TF32 rounds factors to 10 bits: enough for convolutions, if asked for, but not for GRAPPA's equations.
        torch.backends.cudnn.allow_tf32 = settings.precision != "float32"
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True  # batches of one size: the fastest convolution is looked for once


def read_numbers(text: str, name: str) -> list[float]:
    """ "4 8" -> [4.0, 8.0]; "" -> []. Raises BadInput for anything else."""
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise BadInput(f"{name} {text!r}: write numbers with spaces between them, such as '4 8'") from error


def check_numbers(settings: Any) -> None:
    """Refuse train.py's numbers that cannot work. Masks check theirs when a data set is made."""
    for name in ("epochs", "batch_size", "accumulate"):
        if getattr(settings, name) < 1:
            raise BadInput(f"{name} {getattr(settings, name)}: use a whole number of at least 1")
    at_least_0 = (
        "workers shards train_slices seed features levels frames cascades adversarial_weight perceptual_weight "
        "tv_weight clip"
    )
    for name in at_least_0.split():
        if not 0 <= getattr(settings, name) < math.inf:
            raise BadInput(f"{name} {getattr(settings, name)}: use 0 or a positive number")
    if settings.seed >= 2**32:
        raise BadInput(f"seed {settings.seed}: use a number below 2**32")
    if not 0 < settings.lr < math.inf:
        raise BadInput(f"lr {settings.lr}: use a positive number, such as 0.001")
    for name in ("dropout", "ema"):
        if not 0 <= getattr(settings, name) < 1:
            raise BadInput(f"{name} {getattr(settings, name)}: use a number from 0 to below 1")
    if settings.perceptual_weight and not settings.adversarial_weight:
        raise BadInput("perceptual_weight: its features come with the adversary: set adversarial_weight too, or 0")
    if settings.accumulate > 1 and settings.adversarial_weight:
        raise BadInput("accumulate: adversarial training takes whole batches: set accumulate to 1, or lower batch_size")


def training_warnings(history: Sequence[Mapping[str, float]]) -> list[str]:
    """What in the history of a run a reader of its figures should know: one line each."""
    found = []
    best = max(history, key=lambda row: row["val_ssim"])
    last = history[-1]
    if last["val_ssim"] < best["val_ssim"] - 0.05:
        found.append(
            f"training collapsed: validation SSIM {best['val_ssim']:.3f} after epoch {best['epoch']}, "
            f"{last['val_ssim']:.3f} after the last; best.pt holds the better weights"
        )
    if last.get("discriminator_accuracy", 0) > 0.98:
        found.append(
            f"the discriminator tells {100 * last['discriminator_accuracy']:.0f} % of the patches apart: "
            "the adversarial term has little to teach"
        )
    return found


class RunState:
    """The run folder while training: checkpoints, history, and where to go on.

    A run folder holds checkpoint.pt (last epoch: weights, optimizer, schedule, random states, all
    parameters, history), best.pt (epoch of the highest validation SSIM) and log.csv (the history). An
    earlier run in the folder is renamed to NAME.1, NAME.2 .. when the first epoch is complete, not
    before: a fault of the input leaves everything as it was.

    Args:
        settings: all parameters; with settings.resume the state is read from settings.out.
        parts: what the checkpoint holds under NAME_state: the model, optimizer, scheduler .., all with a state_dict.
    Attributes:
        epoch: epochs done.  history: a dict per epoch.  seconds: spent in all, resumed runs included.
    Raises:
        BadInput: the folder holds something else; the checkpoint is damaged or of other parameters.
    """

    FIRST = ("best.pt", "checkpoint.pt")  # all that a run killed in its first save can leave, whole or .partial
    # between a run and its resumption, besides SAME_EXPERIMENT; shards because it follows the number of processes
    MAY_CHANGE = ("data", "epochs", "skip_unreadable", "shards")

    def __init__(self, settings: Any, parts: Mapping[str, Any]) -> None:
        self.settings, self.parts = settings, parts
        self.folder, self.seconds = Path(settings.out), 0.0
        self.history: list[dict[str, float]] = []
        self.tensorboard: Any = None
        last = self.folder / "checkpoint.pt"
        if settings.resume and rank_and_size()[0] == 0:
            for left in self.folder.glob("*.partial"):  # by a run that was killed while it wrote
                left.unlink()
        if settings.resume and last.exists():
            self._load(read_checkpoint(last), last)
        elif self.folder.exists() and not self.folder.is_dir():
            raise BadInput(f"{self.folder}: is a file, but a run needs a folder: choose another --out")
        elif not last.exists() and any(not f.name.startswith(self.FIRST) for f in self.folder.glob("*")):
            raise BadInput(f"{self.folder}: holds files that are no run: choose another --out or empty it")

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    def _load(self, content: Mapping[str, Any], path: Path) -> None:
        for name, value in vars(self.settings).items():
            before = content["parameters"].get(name, value)
            if name not in (*SAME_EXPERIMENT, *self.MAY_CHANGE) and before != value:
                trained = f"trained with {name} {before!r}, not {value!r}"
                raise BadInput(f"{path}: {trained}: resume with the same parameters, or choose another --out")
        if not {f"{name}_state" for name in self.parts} <= set(content):
            raise BadInput(f"{path}: holds weights only, no run to go on with: resume from a run's own checkpoint.pt")
        try:
            for name, part in self.parts.items():
                part.load_state_dict(content[f"{name}_state"])
            torch.set_rng_state(content["cpu_random_state"])
            if torch.cuda.is_initialized() and len(content["gpu_random_state"]):
                torch.cuda.set_rng_state(content["gpu_random_state"])
            self.history, self.seconds = content["history"], float(content["seconds"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise BadInput(f"{path}: its state is not of this network and optimizer: choose another --out") from error
        print(f"{path}: going on after epoch {self.epoch}", flush=True)

    def save(self, row: Mapping[str, float], seconds: float) -> None:
        """Add an epoch to the history and write checkpoint and log.

        Raises:
            BadInput: the loss is not finite; the checkpoint of the epoch before stays.
        """
        if not math.isfinite(row["train_loss"]):
            raise BadInput(f"epoch {row['epoch']}: the loss is {row['train_loss']}: training diverged, lower lr")
        first = rank_and_size()[0] == 0  # the one process that writes
        if first and not self.history and not self.settings.resume:
            self._keep_earlier_run()
        self.history.append(dict(row))
        self.seconds += seconds
        if not first:
            return
        gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else torch.empty(0, dtype=torch.uint8)
        content = {f"{name}_state": part.state_dict() for name, part in self.parts.items()} | {
            "parameters": vars(self.settings),
            "epoch": self.epoch,
            "best_ssim": max(r["val_ssim"] for r in self.history),
            "history": self.history,
            "seconds": self.seconds,
            "cpu_random_state": torch.get_rng_state(),
            "gpu_random_state": gpu,
        }
        if row["val_ssim"] == content["best_ssim"]:
            save_checkpoint(self.folder / "best.pt", content)
        save_checkpoint(self.folder / "checkpoint.pt", content)
        lines = [",".join(row), *(",".join(repr(value) for value in r.values()) for r in self.history)]
        replace_file(self.folder / "log.csv", lambda partial: partial.write_text("\n".join(lines) + "\n"))
        self._log_to_tensorboard(row)

    def _log_to_tensorboard(self, row: Mapping[str, float]) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        epoch = int(row["epoch"])
        if self.tensorboard is None:  # what an earlier, broken-off run wrote of this and later epochs is forgotten
            self.tensorboard = SummaryWriter(str(self.folder / "tensorboard"), purge_step=epoch)
        for name, value in row.items():
            if name != "epoch":
                self.tensorboard.add_scalar(name, value, epoch)
        self.tensorboard.flush()

    def _keep_earlier_run(self) -> None:
        if (self.folder / "checkpoint.pt").exists():
            numbers = (n for n in range(1, 10**6) if not Path(f"{self.folder}.{n}").exists())
            kept = self.folder.rename(f"{self.folder}.{next(numbers)}")
            print(f"{self.folder} held a run: kept as {kept}")

    def line(self) -> str:
        """One line on the last epoch."""
        row = self.history[-1]
        return (
            f"epoch {row['epoch']:3d}/{self.settings.epochs}  loss {row['train_loss']:.4f}  "
            f"validation SSIM {row['val_ssim']:.4f}  PSNR {row['val_psnr']:.2f} dB  {self.seconds:.0f} s"
        )


def describe(settings: Any, train_set: SliceDataset, val_set: SliceDataset) -> str:
    """What a run is about to do, in one line."""
    simulated = ", simulated" if all(v.attributes.get("simulated") for v in val_set.volumes) else ""
    return (
        f"{settings.data}{simulated}: {len(train_set)} training slices of {len(train_set.volumes)} volumes, "
        f"{len(val_set)} validation slices of {len(val_set.volumes)}; mask {settings.mask} "
        f"{settings.acceleration:g}x, centre {100 * settings.center_fraction:g} %; {settings.device}"
        + (f", {settings.precision}" if settings.precision != "float32" else "")
        + (f", {rank_and_size()[1]} processes" if rank_and_size()[1] > 1 else "")
    )


# Parameters that say where and how a run computes, not what.
SAME_EXPERIMENT = ("device", "workers", "cache", "compile", "accumulate", "resume", "out")


def changed_parameters(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """name -> (in a, in b) of the parameters that make two runs different experiments.

    An ablation that changes more than one of them shows nothing about either. What each run has because it is its
    model's own, and differs because the models do, is no change besides.
    """
    names = [name for name in {**a, **b} if name not in SAME_EXPERIMENT]
    changed = {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}
    models: list[str] = [model for model in changed.get("model", ()) if model in MODELS]
    if len(models) < 2:
        return changed
    own = [model_settings({"model": m}) | {"lr": LEARNING_RATES.get(m, DEFAULT_RATE)} for m in models]
    follows = {
        name
        for name in (*MODEL_SETTINGS, "lr")
        if name in changed and all(not value or value == o.get(name) for value, o in zip(changed[name], own))
    }
    return {name: values for name, values in changed.items() if name not in follows}


def quality_warnings(scores: Mapping[str, tuple], val_set: SliceDataset, settings: Any) -> list[str]:
    """What is suspicious about a run, one line each: the files, the masks, the scores, the images.

    Args:
        scores: as in summarize_run; the network, its last, is held against the first, which fills nothing in.
        val_set: what was scored.
        settings: all parameters; the mask's kind, acceleration and center_fraction count.
    """
    volumes, lines = val_set.volumes, []
    found = [text for volume in volumes for text in volume_warnings(volume)]
    lines += [f"{found.count(text)} of {len(volumes)} volumes: {text}" for text in dict.fromkeys(found)]
    first = {v: i for i, (v, _) in reversed(list(enumerate(val_set.slices)))}  # of each volume
    samples = [val_set[first[v]] for v in range(len(volumes))]
    reached = mean(float(sample.acceleration) for sample in samples)
    if not 0.9 < reached / settings.acceleration < 1.1:
        lines.append(f"asked for {settings.acceleration:g}x, the masks keep {reached:.2f}x: state that number")
    sampling = settings.mask, val_set.size(0), settings.acceleration, settings.center_fraction
    drawn = {sampling_mask(*sampling, seed=s).numpy().tobytes() for s in range(8)}
    used = {tuple(sample.mask.shape): sample.mask for sample in samples}
    if len(samples) > 2 and len(drawn) > 4 and all(s.mask.equal(used[tuple(s.mask.shape)]) for s in samples):
        lines.append("one mask for all volumes: the figures hold for this mask only, draw one per volume")
    start, network = next(iter(scores)), list(scores)[-1]
    for name, (rows, images, _) in scores.items():
        for metric in ("ssim", "psnr") if name == network else ():
            ours, before = (mean(row[metric] for row in r) for r in (rows, scores[start][0]))
            if ours < before:
                against = f"below {start.replace('_', '-')} ({ours:.4g} < {before:.4g})"
                lines.append(f"{name}: {metric.upper()} {against}: labels swapped?")
        targets = [sample.target.reshape(-1, *sample.target.shape[-2:])[0] for sample in samples]
        shifts = [find_shift(target, image[0]) for target, image in zip(targets, images)]
        moved = [shift for shift in shifts if shift != (0, 0)]
        if moved:
            lines.append(f"{name}: {len(moved)} of {len(shifts)} volumes shifted by {moved[0]} pixels: check fftshift")
    return lines


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


def summarize_run(
    scores: Mapping[str, tuple], val_set: SliceDataset, settings: Any, train_set: SliceDataset | None = None
) -> dict[str, Any]:
    """The content of metrics.json: means with intervals, in all and by acquisition, and every volume.

    Args:
        scores: method -> (a {metric: value} per volume, images, seconds per slice), the network last.
        val_set: what was scored.
        settings: all parameters.
        train_set: what the network learned from, to be recorded in the provenance.
    """
    volumes = val_set.volumes
    subjects = [volume.patient_id for volume in volumes]
    rows = {name: rows for name, (rows, _, _) in scores.items()}

    def table(chosen: Sequence[int]) -> dict[str, Any]:
        return {
            name: {m: summarize([rows[name][i][m] for i in chosen], [subjects[i] for i in chosen]) for m in METRICS}
            for name in rows
        }

    *others, network = rows
    everything = range(len(volumes))
    kinds = sorted({v.acquisition for v in volumes})
    first = {v: i for i, (v, _) in reversed(list(enumerate(val_set.slices)))}  # of each volume
    samples = [val_set[i] for i in first.values()]
    return {
        "parameters": dict(vars(settings)),
        "provenance": provenance()
        | {"validation_masks": hash_of(*(sample.mask.numpy().tobytes() for sample in samples))}
        | {"validation_data": describe_data(val_set)}
        | ({"training_data": describe_data(train_set)} if train_set else {}),
        "data": {
            "volumes": len(volumes),
            "subjects": len(set(subjects)),
            "slices": len(val_set),
            "simulated": all(bool(v.attributes.get("simulated")) for v in volumes),
            "effective_acceleration": mean(float(sample.acceleration) for sample in samples),
        },
        "methods": table(everything),
        "per_acquisition": {kind: table([i for i in everything if volumes[i].acquisition == kind]) for kind in kinds},
        "paired": {
            f"{network} - {other}": {
                m: compare_paired([row[m] for row in rows[network]], [row[m] for row in rows[other]], subjects)
                for m in METRICS
            }
            for other in others
        },
        "per_volume": {
            volumes[i].path.name: {"acquisition": volumes[i].acquisition, "subject": volumes[i].patient_id}
            | {name: rows[name][i] for name in rows}
            for i in everything
        },
        "warnings": quality_warnings(scores, val_set, settings),
        "seconds_per_slice": {name: seconds for name, (_, _, seconds) in scores.items()},
    }


def metrics_table(metrics: Mapping[str, Any], by_acquisition: bool = False) -> str:
    """metrics.json as a table of text: mean [95 % interval] of each method, and the paired differences."""
    data, digits = metrics["data"], {"ssim": 3, "psnr": 2, "nmse": 4, "mae": 5}

    def row(name: str, figures: Mapping[str, Any], note: str = "") -> str:
        cells = []
        for metric, d in digits.items():
            if metric in figures and metric != "mae":
                cells.append(interval(figures[metric], d).ljust(23) + " ")
        return f"{name:24s}" + "".join(cells) + note

    speed = metrics["seconds_per_slice"]
    lines = [
        f"{data['volumes']} {'simulated ' if data['simulated'] else ''}validation volumes of {data['subjects']} "
        f"subjects, effective acceleration {data['effective_acceleration']:.2f}; per volume, data range = "
        "maximum of the volume; mean [95 % bootstrap interval over subjects]",
        f"{'':24s}{'SSIM':24s}{'PSNR (dB)':24s}{'NMSE':24s}ms per slice",
    ]
    lines += [row(name, f, f"{1000 * speed[name]:.0f}") for name, f in metrics["methods"].items()]
    lines += [row(name, f) for name, f in metrics["paired"].items()]
    if data["subjects"] < data["volumes"]:
        lines.append("Several volumes are of one subject: the intervals come from resampling whole subjects.")
    if by_acquisition:
        for kind, methods in metrics["per_acquisition"].items():
            lines += ["", kind, *(row("  " + name, f) for name, f in methods.items())]
    lines += [f"warning: {text}" for text in metrics.get("warnings", ())]
    return "\n".join(line.rstrip() for line in lines)


def write_reconstruction(folder: str | Path, volume: Volume, image: Tensor) -> None:
    """Write (slices, h, w) to folder/reconstructions under the volume's name, as fastMRI's evaluation reads it."""

    def write(partial: Path) -> None:
        with h5py.File(partial, "w") as file:
            file["reconstruction"] = image.numpy()

    replace_file(Path(folder) / "reconstructions" / volume.path.name, write)


def save_run(
    folder: str | Path,
    metrics: Mapping[str, Any],
    images: Mapping[str, Sequence[Tensor]],
    val_set: SliceDataset,
    history: Sequence[Mapping[str, float]],
) -> None:
    """Write figures/*.png, reconstructions/*.h5 (in the format of fastMRI's evaluation) and metrics.json.

    Args:
        folder: of the run.
        metrics: what summarize_run returned; written last, so that it marks a complete run.
        images: method -> a reconstruction (slices, h, w) per volume, the network last.
        val_set: the volumes that were reconstructed.
        history: a row per epoch, for the learning curves.
    """
    if rank_and_size()[0] > 0:
        return  # the first process writes
    folder, network = Path(folder), list(images)[-1]
    for volume, image in zip(val_set.volumes, images[network]):
        write_reconstruction(folder, volume, image)
    quality = [metrics["per_volume"][v.path.name][network]["ssim"] for v in val_set.volumes]
    order = np.argsort(quality)
    picks = {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}
    figures = {name: _compare_volume(val_set, int(i), images) for name, i in picks.items()}
    figures["curves"] = show_curves(history)
    for name, figure in figures.items():
        save_figure(figure, folder / "figures" / f"{name}.png")
    text = json.dumps(metrics, indent=1)
    replace_file(folder / "metrics.json", lambda partial: partial.write_text(text))


@dataclass(frozen=True)
class Run:
    """A finished run folder, as read_run opens it.

    Attributes:
        folder: the run folder.
        metrics: metrics.json.
        history: a row per epoch, from log.csv; empty where there is none.
    """

    folder: Path
    metrics: dict
    history: list[dict[str, float]]

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the run."""
        return self.metrics["parameters"]

    @property
    def network(self) -> str:
        """The name of the network among the methods: the last one."""
        return list(self.metrics["methods"])[-1]


def read_run(folder: str | Path) -> Run:
    """Open a run folder that train.py has finished.

    Raises:
        BadInput: no such folder, the run is not finished, or its metrics.json is not train.py's.
    """
    folder = Path(folder)
    path, log = folder / "metrics.json", folder / "log.csv"
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such run folder: train first (python train.py --out {folder})")
    if not path.is_file():
        raise BadInput(f"{folder}: no metrics.json in it: finish the run (python train.py --resume --out {folder})")
    try:
        metrics = json.loads(path.read_text())
        missing = {"parameters", "provenance", "data", "methods", "per_volume"} - set(metrics)
        if missing or not metrics["methods"]:
            raise ValueError(f"no {', '.join(sorted(missing)) or 'method'} in it")
        lines = csv.DictReader(log.read_text().splitlines()) if log.is_file() else []
        history = [{name: float(value) for name, value in line.items()} for line in lines]
    except (ValueError, TypeError) as error:
        raise BadInput(f"{folder}: its metrics.json or log.csv is not train.py's ({error}): train again") from error
    return Run(folder, metrics, history)


def _compare_volume(val_set: SliceDataset, index: int, images: Mapping[str, Sequence[Tensor]]) -> Any:
    """The middle slice of a volume by every method, titled with the volume's name."""
    volume = val_set.volumes[index]
    targets = [volume.target(s) for v, s in val_set.slices if v == index]
    labels = [f"slice {s}" for v, s in val_set.slices if v == index]
    if targets[0].ndim > 2:  # the frames of a sequence
        labels = [f"{label}, frame {f}" for label, frames in zip(labels, targets) for f in range(len(frames))]
    target = torch.cat([t.reshape(-1, *t.shape[-2:]) for t in targets])
    middle = len(target) // 2
    figure = compare(target[middle], {name: stack[index][middle] for name, stack in images.items()}, volume.maximum)
    figure.suptitle(f"{volume.path.stem}, {labels[middle]}", fontsize=9)
    return figure


def run_or_explain(run: Callable[[], Any]) -> Any:
    """run(); outside a kernel a fault that the user can mend ends the program with one line.

    Exit status: 1 after a fault, EXIT_RESTART (75) after SIGTERM: the same command with --resume goes on
    after the last full epoch.
    """
    if "get_ipython" in sys.modules["__main__"].__dict__:
        return run()
    signal.signal(signal.SIGTERM, lambda number, _: STOP_SIGNALS.append(number))
    program = Path(sys.argv[0]).name
    try:
        return run()
    except BadInput as error:
        sys.exit(f"{program}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{program}: interrupted; --resume goes on after the last full epoch")
    except (Stopped, RuntimeError, MemoryError) as error:
        text = str(error)
        # Also where another process that was stopped broke off the connection, and where SIGTERM came to a process that
        # reads slices first.
        if STOP_SIGNALS or "killed by signal: Terminated" in text:
            if hasattr(signal, "SIGCHLD"):
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else the end of each of these raises once more
            print(f"{program}: stopped by SIGTERM; --resume goes on after the last full epoch", file=sys.stderr)
            sys.exit(EXIT_RESTART)
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
            sys.exit(f"{program}: out of memory: raise accumulate, lower batch_size or features, or use bfloat16")
        if "DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text):
            sys.exit(f"{program}: a process that reads slices died (out of memory?): lower workers; --resume goes on")
        raise


def read_parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a notebook's parameters cell, whichever way the notebook is run.

    The annotated assignments of that cell, `epochs: int = 10  # passes over the data`, are the one
    list of parameters. In a kernel (by hand, or by papermill, which assigns anew) the values are
    taken as they stand; in the script made from the notebook they come from the command line, with
    the comment as help; in an imported module they are the defaults.

    Args:
        namespace: globals() of the notebook or script.
    Raises:
        BadInput: papermill set a name that the cell does not have, or a value of the wrong type.
    """
    kinds = {name: kind.__name__ for name, kind in namespace["__annotations__"].items()}
    values = {name: namespace[name] for name in kinds}
    if "get_ipython" in namespace:
        # papermill only warns of unknown parameters. In a fresh kernel nothing but papermill can
        # have put a plain value beside the parameters.
        plain = (bool, int, float, str, list, dict)
        for name, value in namespace.items():
            known = name in values or name.startswith("_") or "parameters" in namespace
            if not known and type(value) in plain and name not in ("In", "Out"):
                choose(values, name, "parameter")
    elif namespace["__name__"] == "__main__":
        source = Path(namespace["__file__"]).read_text(encoding="utf-8")
        values = vars(flag_parser(namespace["__doc__"], source).parse_args())
    return {name: _as_type(name, value, kinds[name]) for name, value in values.items()}


def _as_type(name: str, value: Any, kind: str) -> Any:
    """A parameter's value as the type of its annotation; "1e-4" counts as a float."""
    convert = {"int": int, "float": float, "str": str, "bool": bool}[kind]
    try:
        if kind == "bool" and not isinstance(value, bool):
            raise ValueError("not true or false")
        if kind == "int" and isinstance(value, float) and value != int(value):
            raise ValueError("not a whole number")
        return convert(value)
    except (OverflowError, TypeError, ValueError) as error:
        raise BadInput(f"parameter {name}: {value!r} is no {kind}: {error}") from error


class _OneLineParser(argparse.ArgumentParser):
    """argparse without the page of usage in front of the fault."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the flags)\n")


def flag_parser(description: str, source: str, several: bool = False) -> argparse.ArgumentParser:
    """A command line whose flags are the parameters of a notebook or script, faults told in one line.

    Args:
        description: what --help begins with; lines of badges are left out.
        source: text in which each parameter is a line such as `epochs: int = 10  # passes over the data`.
        several: a flag takes one or more values, booleans as true or false, and has no default.
    """
    parser = _OneLineParser(
        description=re.sub(r"^\[!\[.*\n+", "", description, flags=re.MULTILINE),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s [--flag value ...]",
    )
    add_flags(parser, source, several)
    return parser


def add_flags(parser: argparse.ArgumentParser, source: str, several: bool = False) -> None:
    """Add more flags to a flag_parser, whose arguments these are."""
    pattern = r"^(\w+): (int|float|str|bool) = (.*?)(?:  # (.*))?$"
    for name, kind, value, text in re.findall(pattern, source, re.MULTILINE):
        default = ast.literal_eval(value)
        options: dict[str, Any] = {"help": text.replace("%", "%%") + f" (default: {value})", "default": default}
        if kind == "bool" and not several:
            options["action"] = argparse.BooleanOptionalAction
        else:
            kinds = {"int": int, "float": float, "str": str, "bool": _true_or_false}
            options |= {"type": kinds[kind], "metavar": kind.upper()}
        if several:
            options |= {"nargs": "+", "default": argparse.SUPPRESS}
        parser.add_argument("--" + name.replace("_", "-"), **options)


def _true_or_false(word: str) -> bool:
    """A flag's word as a bool; argparse tells the fault."""
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return word.lower() == "true"


def hash_of(*parts: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all parts: equal for equal content."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def describe_data(dataset: SliceDataset) -> dict[str, Any]:
    """What a data set holds: counts, and a hash of the file names and of Volume.fingerprints."""
    volumes = dataset.volumes
    parts = (text.encode() for volume in volumes for text in (volume.path.name, *volume.fingerprints()))
    return {
        "volumes": len(volumes),
        "subjects": len({v.patient_id for v in volumes}),
        "slices": len(dataset),
        "hash": hash_of(*parts),
    }


def peak_memory() -> dict[str, int]:
    """The most memory that this process has held so far, in MiB: main memory, and the GPU's if it used one."""
    memory = {}
    if sys.platform != "win32":  # which has no such counter
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on a Mac, else KiB
        memory["main"] = peak // 2**20 if sys.platform == "darwin" else peak // 2**10
    if torch.cuda.is_initialized():
        memory["gpu"] = torch.cuda.max_memory_allocated() // 2**20
    return memory


def provenance() -> dict[str, Any]:
    """Where a result comes from: commit, versions, machine, the most memory used."""

    def git(*arguments: str) -> str:
        if not shutil.which("git"):
            return ""
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    packages = ("h5py", "matplotlib", "scikit-image", "scipy")
    commit = git("rev-parse", "HEAD")
    return {
        "finished": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "commit": commit or "unknown",
        "clean": bool(commit) and git("status", "--porcelain") == "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_initialized() else platform.machine(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "peak_memory_mib": peak_memory(),
        "command": " ".join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv)),
    }


# --------------------------------------------------------------------------------------------------
# 12 Figures and sliders
# --------------------------------------------------------------------------------------------------

# Curves: matplotlib's own orange and green are one colour to a reader with protanopia; these six stay apart for
# everyone (Petroff 2021, arXiv 2107.02270). The grey comes last, because grey lines mark references.
COLOURS = ("#5790fc", "#f89c20", "#e42536", "#964a8b", "#7a21dd", "#9c9ca1")
matplotlib.rcParams["axes.prop_cycle"] = cycler(color=COLOURS)


def to_array(x: Tensor | np.ndarray) -> np.ndarray:
    """A displayable float array: the magnitude of complex input, float of everything else."""
    x = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    return np.abs(x) if np.iscomplexobj(x) else x.astype(float)


def log_magnitude(kspace: Tensor) -> Tensor:
    """Four decades of |k| as a picture: 1 at the largest sample, 0 at a ten-thousandth of it and below.

    k-space spans decades, so that its pictures are logarithmic. (..., H, W) complex -> real.
    """
    size = kspace.abs()
    relative = size / size.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)  # a coil may be dead
    return 1 + torch.log10(relative.clamp(min=1e-4)) / 4


def mask_image(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask as a picture of k-space (H, W); 1-D masks become vertical lines."""
    return mask.expand(tuple(size)).float()


def psf_image(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask's point-spread function as a picture (H, W): 1 at the peak, 0 at 50 dB below it and less."""
    return 1 + (20 * torch.log10(point_spread(mask, size) + 1e-6) / 50).clamp(min=-1)


def mask_title(kind: str, mask: Tensor) -> str:
    """The name of a mask and the number that every mask figure must print."""
    return f"{kind}, effective {effective_acceleration(mask):.2f}x"


def show_images(
    images: Sequence[Tensor | np.ndarray | None],
    titles: Sequence[str],
    window: tuple[float, float] | None = None,
    columns: int | None = None,
    cmap: str = "gray",
    width: float = 8.0,
    scale_bar: bool = False,
) -> Any:
    """A row or grid of images in one grey window; complex images are shown as magnitude.

    Args:
        images: each (H, W); None leaves its place empty. The first one sets size and window.
        titles: one each.
        window: (black, white); the default runs from 0 or the smallest value to the largest of the
            first image, the same for all.
        columns: images per row; all in one row by default.
        cmap: matplotlib's name of the colour map.
        width: of the figure in inches.
        scale_bar: draw a colour bar, for pictures whose values matter.
    Returns:
        the matplotlib figure.
    """
    import matplotlib.pyplot as plt

    if images[0] is None:
        raise BadInput("show_images: the first image sets size and window, so it cannot be None")
    arrays, first = [None if image is None else to_array(image) for image in images], to_array(images[0])
    columns = columns or len(arrays)
    rows = math.ceil(len(arrays) / columns)
    low, high = window or (min(0.0, float(first.min())), float(first.max()))
    aspect = first.shape[0] / first.shape[1]
    size = (width, rows * (width / columns * aspect + 0.35))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    shrunk = first.shape[1] > 0.95 * width / columns * figure.dpi  # averaged, or lines of a mask would be lost
    for axis in axes.flat:
        axis.axis("off")
    for axis, array, title in zip(axes.flat, arrays, titles):
        if array is not None:
            way = "antialiased" if shrunk else "nearest"
            picture = axis.imshow(array, cmap=cmap, vmin=low, vmax=high, interpolation=way)
            axis.set_title(title, fontsize=9)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(color="0.6", linewidth=0.6)  # white parts of a mask end somewhere
            axis.axis("on")
    if scale_bar:
        figure.colorbar(picture, ax=axes, shrink=0.8)
    return figure


def compare(
    target: Tensor,
    reconstructions: Mapping[str, Tensor],
    data_range: float | None = None,
    error_factor: float = 3.0,
    width: float = 7.0,
) -> Any:
    """Reconstructions of one slice beside the reference, their errors below, all in one window.

    Args:
        target: (h, w) real reference.
        reconstructions: name -> (h, w), real or complex.
        data_range: white of the window and range of SSIM and PSNR; the maximum of the target unless
            given (give the volume's maximum to match a table of per-volume figures).
        error_factor: brightness of the error maps, printed in their titles.
    Returns:
        the matplotlib figure.
    """
    peak = float(target.max()) if data_range is None else data_range
    above: list[Tensor | None] = [target]
    below: list[Tensor | None] = [None]
    titles, error_titles = ["reference"], [""]
    for name, image in reconstructions.items():
        image = image.abs()
        above.append(image)
        below.append((image - target).abs() * error_factor)
        titles.append(f"{name}\nSSIM {ssim(target, image, peak):.3f}, {psnr(target, image, peak):.1f} dB")
        error_titles.append(f"|error| x {error_factor:g}")
    return show_images(above + below, titles + error_titles, (0, peak), columns=len(above), width=width)


def show_sample(sample: Sample) -> Any:
    """One training sample, its first coil or frame: measured k-space, its zero-filled image, the reference."""
    kspace, target = (x.reshape(-1, *x.shape[-2:])[0] for x in (sample.kspace, sample.target / sample.maximum))
    size = target.shape
    zero = zero_filled(kspace, sample.mask, size).abs() / sample.maximum
    images = [center_crop(log_magnitude(kspace), size), zero, target]
    titles = [f"measured k-space (log), {float(sample.acceleration):.2f}x", "zero-filled image", "reference"]
    return show_images(images, titles, (0, 1))


def show_curves(history: Sequence[Mapping[str, float]]) -> Any:
    """Learning curves: training loss, validation SSIM and PSNR over the epochs."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
    names = {"train_loss": "training loss", "val_ssim": "validation SSIM", "val_psnr": "validation PSNR (dB)"}
    for axis, (key, name) in zip(axes, names.items()):
        axis.plot([row["epoch"] for row in history], [row[key] for row in history], ".-")
        axis.set(xlabel="epoch", title=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    return figure


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a matplotlib figure as PNG in one step and close it."""
    import matplotlib.pyplot as plt

    replace_file(path, lambda partial: figure.savefig(partial, format="png", dpi=100))
    plt.close(figure)


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a table of text, the keys as its head."""
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)


def compare_runs(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Rows of the table that compares runs: under each mask the methods that learn nothing, then the networks.

    Args:
        runs: finished runs; parameters that differ between them, beyond model, mask and seed, get a column.
    """
    exam = ("data", "mask", "acceleration", "center_fraction")  # what all methods share
    named = (*exam[1:], "model", "seed")
    changed = [name for run in runs for name in changed_parameters(runs[0].parameters, run.parameters)]
    varied = [name for name in dict.fromkeys(changed) if name not in named]
    shared = lambda run: {name: run.parameters[name] for name in exam}  # noqa: E731
    order = sorted(runs, key=lambda run: (*shared(run).values(), run.network, run.parameters["seed"], run.folder.name))
    rows, digits_of = [], (("ssim", 3), ("psnr", 2), ("nmse", 4))
    for number, run in enumerate(order):
        fresh = number == 0 or shared(run) != shared(order[number - 1])
        for method in run.metrics["methods"] if fresh else [run.network]:
            _, mask, factor, fraction = shared(run).values()
            own = run.parameters if method == run.network else {"data": run.parameters["data"]}
            rows.append(
                {"mask": mask, "acceleration": f"{factor:g}x ({run.metrics['data']['effective_acceleration']:.2f})"}
                | {"centre": f"{fraction:g}", "method": method, "seed": str(own.get("seed", ""))}
                | {name: str(own.get(name, "")) for name in varied}
                | {name.upper(): interval(run.metrics["methods"][method][name], digits) for name, digits in digits_of}
            )
    return rows


def show_table(rows: Sequence[Mapping[str, Any]], caption: str = "") -> None:
    """Display rows with the same keys as an HTML table; where no HTML is drawn, as text.

    Args:
        rows: a mapping per row; the keys of the first are the head. Values are shown by str and escaped.
        caption: a line above the table.
    """
    from IPython.display import display

    def text(cell: Any) -> str:
        words = html.escape(str(cell))
        if re.fullmatch(r"[-+.,\[\]\d ]+", words):
            return words.replace(" ", "&nbsp;")  # figures stay in one line, and so do flags
        return re.sub(r"(--\S+)", r'<span style="white-space: nowrap">\1</span>', words)

    def line(tag: str, cells: Iterable[Any]) -> str:
        first, *others = (text(cell) for cell in cells)
        return f"<tr><th>{first}</th>{''.join(f'<{tag}>{cell}</{tag}>' for cell in others)}</tr>"

    body = "".join(line("td", row.values()) for row in rows)
    head = line("th", rows[0]) if rows else ""
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    table = f"<table>{title}<thead>{head}</thead><tbody>{body}</tbody></table>"
    display({"text/html": table, "text/plain": f"{caption}\n{format_table(rows)}".strip()}, raw=True)


def show_file(path: str | Path) -> None:
    """Display a PNG file in a notebook."""
    from IPython.display import Image, display

    display(Image(filename=str(path)))


def _panel_png(panels: Mapping[str, np.ndarray], height: int = 320) -> bytes:
    """Titled grey panels side by side, five and more in two rows, as one PNG; values 0 to 1, `height` rows each.

    Drawn with Pillow, which takes a tenth of matplotlib's time: sliders must answer at once.
    """
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 12)
    pictures = []
    for array in panels.values():
        grey = Image.fromarray((np.clip(array, 0, 1) * 255).astype(np.uint8))
        width = round(grey.width * height / grey.height)
        pictures.append(grey.resize((width, height), Image.Resampling.NEAREST))
    rows, columns = (1, len(pictures)) if len(pictures) < 5 else (2, math.ceil(len(pictures) / 2))
    widths = [max(p.width for p in pictures[c::columns]) + 6 for c in range(columns)]
    sheet = Image.new("L", (sum(widths) - 6, rows * (height + 22)), 255)
    draw = ImageDraw.Draw(sheet)
    for number, (title, picture) in enumerate(zip(panels, pictures, strict=True)):
        left, top = sum(widths[: number % columns]), number // columns * (height + 22)
        draw.text((left + 2, top + 3), title, fill=0, font=font)
        sheet.paste(picture, (left, top + 22))
    buffer = io.BytesIO()
    sheet.save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def show_controls(box: Any, static_text: str) -> None:
    """Display widgets; where none are drawn (a code host), `static_text` stands in their place."""
    from IPython.display import display

    # what widgets display of themselves, spelled out: ipywidgets 7, which Colab has, does it by another method than 8
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    display({"application/vnd.jupyter.widget-view+json": view, "text/plain": static_text}, raw=True)


def explore(update: Callable[..., tuple[Mapping[str, Any], str]], height: int = 320, **controls: Any) -> None:
    """Show sliders that redraw one picture.

    One persistent widgets.Image is replaced at each change: no Output widget, which hangs headless
    runs. Where no widgets are drawn (a code host), a line of text stands in their place.

    Args:
        update: called with the controls' values as keywords; returns ({title: panel}, text), each
            panel an (H, W) array or tensor with values 0 (black) to 1 (white), the text HTML.
            A BadInput that it raises (an impossible pair of settings) is shown as the text.
        height: of the panels in pixels.
        controls: name -> an ipywidgets control.
    """
    import ipywidgets as widgets

    # unstretched; on a phone as wide as the page, less the margins that every widget has
    layout = widgets.Layout(align_self="flex-start", max_width="calc(100% - 4px)")
    picture = widgets.Image(format="png", layout=layout)
    text = widgets.HTML()

    def draw(_change: Any = None) -> None:
        try:
            panels, caption = update(**{name: control.value for name, control in controls.items()})
        except BadInput as error:
            text.value = f"<b>{error}</b>"
            return
        picture.value = _panel_png({k: to_array(p) for k, p in panels.items()}, height)
        text.value = caption

    for name, control in controls.items():
        control.description = control.description or name.replace("_", " ").strip()
        control.style = {"description_width": "8em"}
        control.observe(draw, "value")
    draw()
    names = ", ".join(control.description for control in controls.values())
    show_controls(
        widgets.VBox([*controls.values(), text, picture]),
        f"[sliders: {names}. Run the notebook to move them; stills below.]",
    )
