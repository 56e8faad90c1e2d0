"""The demo scanner: simulated heads, pulse sequences and receive coils.

Real raw data need a registration and many gigabytes. So that every chapter runs at once, this part simulates brain
scans: an anatomy, a pulse sequence, a receiver and its noise, in fastMRI's file layout."""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mri_parts.basics import DEMO_FOLDER, ROOT, BadInput, choose
from mri_parts.classical import Acquisition
from mri_parts.fourier import crop_readout
from mri_parts.volumes import Volume, write_volume

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


DRAWN_SNR = (25, 60)  # of white matter, where simulate_head is not told of the noise


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
    variety: Variety,
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
    smooth = lambda length: _smooth_field(rng, length, z, rows, columns)  # noqa: E731
    column = lambda values: np.reshape(values, (3, 1, 1, 1)).astype(np.float32)  # noqa: E731

    # Where does each point of the scan lie in the average head? First pose and size about the middle of the
    # head, then two warps: the wide one shapes head and brain, the narrow one only the brain, so that no two
    # cortices fold alike. Rows run from anterior (+y) to posterior; half of the heads are mirrored.
    mirror = rng.choice([-1, 1])
    scan = np.stack(np.meshgrid(z, -rows, columns * mirror, indexing="ij"))[[2, 1, 0]]  # x, y, z
    turn = Rotation.from_euler("xyz", rng.normal(0, [3, 2, 3]), degrees=True).as_matrix() / scale[:, None]
    turn = turn @ variety.turn
    moved = scan.astype(np.float32) - column([*rng.uniform(-3, 3, 2), 20])
    head = np.tensordot(turn.astype(np.float32), moved, 1) + column([0, -18, 20])
    head += 3.0 * variety.warp * np.stack([smooth(35) for _ in range(3)])
    brain = head + variety.fold * column([1.4, 1.4, 2.0]) * np.stack([smooth(8) for _ in range(3)])

    def sample(name: str, where: np.ndarray) -> np.ndarray:
        index = where + origin.reshape(3, *[1] * (where.ndim - 1))
        return ndimage.map_coordinates(maps[name], index, np.float32, mode="nearest", prefilter=False)

    depth = sample("depth", head)
    x, y, height = head
    # Layers from inside out; each boundary is a depth in mm. Temporal muscle fills the hollow of the temple.
    temple = np.exp(-(((y - 10) / 36) ** 2) - ((height + 5) / 32) ** 2) * _step((np.abs(x) - 35) / 5)
    skull = np.clip(rng.uniform(5.5, 7.5) + 1.0 * smooth(40), 3.5, None) * (1 - 0.45 * temple)
    table = 1.5 + 0.25 * smooth(15)  # compact bone on either side of the spongy diploe
    fat = np.clip(rng.uniform(2.5, 4.5) + 0.9 * smooth(45), 1.5, None)
    edges = np.cumsum(
        [
            rng.uniform(0.5, 2.0) + 0.4 * smooth(30),
            table,
            np.clip(skull - 2 * table, 0.1, None),
            table,
            0.3 + 6 * temple,
            fat,
            1.6 + 0.2 * smooth(40),
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


def _streams(seed: int) -> Callable[[str], np.random.Generator]:
    """One random stream per purpose: asking for lesions changes neither the anatomy nor the noise."""
    purposes = ["scan", "anatomy", "vessels", "lesions", "tissue", "texture", "receiver", "noise", "coils", "variety"]
    return lambda name: np.random.default_rng([seed, purposes.index(name)])


def _field_of_view(
    stream: Callable[[str], np.random.Generator], slices: int, matrix: int, width: int
) -> tuple[np.ndarray, float, np.ndarray, np.ndarray, np.ndarray]:
    """Size of the head relative to the average (3,); voxel in mm; coordinates in mm of slices, rows and columns."""
    rng = stream("scan")
    scale = rng.normal(1, [0.03, 0.03, 0.03]).clip(0.94, 1.06)
    voxel = 228 * max(scale[1], 1) * rng.uniform(1.0, 1.05) / matrix  # the operator fits the view to the head
    z = np.linspace(rng.uniform(2, 10), rng.uniform(54, 62), slices) if slices > 1 else rng.uniform(10, 50, 1)
    rows = (np.arange(2 * matrix) - matrix) * voxel / 2  # half the voxel; the empty outer rows are added later
    columns = (np.arange(2 * width) - width) * voxel / 2
    return scale, voxel, z, rows, columns


def _receiver_noise(
    stream: Callable[[str], np.random.Generator],
    rng: np.random.Generator,
    noise_std: float,
    shape: Sequence[int],
    array: Tensor | None,
    rows: np.ndarray,
    columns: np.ndarray,
) -> tuple[Tensor, Tensor | None]:
    """The noise of k-space of a shape (slices, [coils,] H, W), and with coils a scan without a signal, (coils, 4096).

    rng is the stream of the noise, from which its level may have been drawn before; noise_std is as in simulate_head.
    """
    noise = noise_std * torch.view_as_complex(torch.from_numpy(rng.standard_normal((*shape, 2), np.float32)))
    if array is None:
        return noise, None
    # The head is the source of most noise. Loops that see the same part of it receive the same noise; each
    # preamplifier adds its own.
    coils = array.shape[1]
    inside = array[..., _inside(rows, columns)].movedim(1, 0).flatten(1)
    shared = inside @ inside.mH
    loudness = torch.from_numpy(stream("coils").uniform(0.7, 1.3, coils).astype(np.float32))
    level = loudness / shared.diagonal().real.sqrt()
    covariance = level[:, None] * level * (0.7 * shared) + 0.3 * torch.diag(loudness**2)
    colour = torch.linalg.cholesky(covariance)
    noise = torch.einsum("ij,sj...->si...", colour, noise)
    still = torch.from_numpy(rng.standard_normal((coils, 4096, 2), np.float32))
    return noise, noise_std * colour @ torch.view_as_complex(still)


@dataclass(frozen=True)
class Variety:
    """How far one head and its scan stray from the usual; these values are the usual ones.

    Attributes:
        turn: (3, 3) rotation of the head before its own pose: slices of any orientation.
        warp, fold: factors on the two warps of the anatomy, of the head and of the cortex.
        zoom: factors on the pixel along rows and columns: smaller heads, pixels that are not square.
        signals: tissue -> signal, where no sequence decides it.
        texture, phase, shading, lesion: factors on the variation within a tissue, on the phase, on the receiver's
            smooth profile, on the size of lesions.
    """

    turn: np.ndarray = field(default_factory=lambda: np.eye(3))
    warp: float = 1.0
    fold: float = 1.0
    zoom: tuple[float, float] = (1.0, 1.0)
    signals: dict[str, float] | None = None
    texture: float = 1.0
    phase: float = 1.0
    shading: float = 1.0
    lesion: float = 1.0


def draw_variety(rng: np.random.Generator) -> Variety:
    """A head and a scan as unlike the usual ones as anything that a network may meet.

    Training on contrasts and shapes beyond the real ones teaches a network to rely on neither (domain randomisation:
    Tobin et al. 2017, IROS; for brain images Billot et al. 2023, Medical Image Analysis 86).
    """
    from scipy.spatial.transform import Rotation

    plane = [(0, 0, 0), (0, 0, 0), (0, 90, 0), (90, 0, 0)][rng.integers(4)]  # axial twice, sagittal, coronal
    turn = Rotation.from_euler("xyz", rng.normal(0, 12, 3), degrees=True)
    turn *= Rotation.from_euler("xyz", plane, degrees=True)
    size, ratio = rng.uniform(0.85, 1.3), rng.uniform(0.85, 1.18)
    return Variety(
        turn=turn.as_matrix(),
        warp=rng.uniform(1, 3),
        fold=rng.uniform(0.7, 1.8),
        zoom=(size * ratio, size / ratio),
        signals=_drawn_signals(rng),
        texture=np.exp(rng.uniform(0, np.log(4))),
        phase=rng.uniform(0, 2),
        shading=rng.uniform(0.5, 3),
        lesion=rng.uniform(1, 3),
    )


def _drawn_signals(rng: np.random.Generator) -> dict[str, float]:
    """Signals of all tissues, the largest 1: of a random spin or gradient echo at 0.055 to 7 T, or of no sequence."""
    if rng.random() < 0.5:
        signals = {name: rng.uniform(0.05, 1.0) for name in TISSUES}
        signals |= {name: signals[name] * 0.15 for name in ("bone", "vessel")}
    else:
        # T1 grows about with the cube root of the field (Bottomley et al. 1984, Medical Physics 11(4))
        longer = (np.exp(rng.uniform(np.log(0.055), np.log(7))) / 1.5) ** 0.33
        tr, te = np.exp(rng.uniform(np.log([20, 3]), np.log([9000, 130])))
        ti = rng.uniform(100, min(tr, 2500)) if rng.random() < 0.3 and tr > 1500 else None
        decay, angle = rng.uniform(0.3, 1.0), np.deg2rad(rng.uniform(5, 50))  # T2* / T2, and of a gradient echo
        signals = {}
        for name, (usual, t2, pd) in TISSUES.items():
            t1 = usual * (rng.normal(longer, 0.05) if name != "csf" else 1.0)
            if tr < 300:  # a spoiled gradient echo
                e1 = np.exp(-tr / t1)
                signals[name] = pd * np.sin(angle) * (1 - e1) / (1 - e1 * np.cos(angle)) * np.exp(-te / t2 / decay)
            else:
                signals[name] = spin_echo_signal(t1, t2, pd, tr, te, ti)
    if rng.random() < 0.3:  # fat suppressed
        signals |= {name: 0.1 * signals[name] for name in ("fat", "marrow")}
    if rng.random() < 0.15:  # nothing but the brain, as tools that strip the skull leave it
        signals |= dict.fromkeys(("bone", "marrow", "muscle", "fat", "skin"), 0.0)
    largest = max(signals[name] for name in ("grey", "white", "csf"))
    return {name: min(signal / largest, 2.0) for name, signal in signals.items()}


def simulate_head(
    seed: int,
    sequence: str = "T2w",
    slices: int = 6,
    matrix: int = 160,
    width: int | None = None,
    noise: float | None = None,
    lesions: int | None = None,
    coils: int = 0,
    varied: bool = False,
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
        varied: a head and a scan far from the usual (see draw_variety): `sequence` is then a name only; noise None
            draws 1/80 .. 1/8 of the brightest tissue of the brain.
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
    stream = _streams(seed)
    variety = draw_variety(stream("variety")) if varied else Variety()
    scale, voxel, z, rows, columns = _field_of_view(stream, slices, matrix, width)
    rows, columns = rows * variety.zoom[0], columns * variety.zoom[1]
    parts = _tissue_fractions(stream, z, rows, columns, scale, variety)
    white = parts["white"] > 0.9

    rng, found = stream("lesions"), []
    drawn = int(rng.integers(2, 9) * rng.integers(2))
    for s, i, j in _random_places(rng, white, drawn if lesions is None else lesions):
        radius, stretch, angle = variety.lesion * rng.uniform(1.5, 4.5), rng.uniform(0.7, 1.0), rng.uniform(0, np.pi)
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
    signals = variety.signals or signals
    image = sum(signals[name] * part for name, part in parts.items())
    rng = stream("texture")
    image = image * (1 + 0.02 * variety.texture * _smooth_field(rng, 5, z, rows, columns))
    image *= 1 + np.stack([0.03 * variety.texture * _smooth_field(rng, 0.8, rows, columns) for _ in z])

    # Receiver: gain, slowly varying sensitivity, and a phase that turns by a few radians over the head.
    rng = stream("receiver")
    y, x = rows[:, None] / 100, columns / 100
    a = rng.normal(0, [0.8, 0.8, 1.2, 1.2, 0.8])
    phase = rng.uniform(-np.pi, np.pi) + a[0] * y + a[1] * x + a[2] * y * y + a[3] * x * x + a[4] * x * y
    phase = variety.phase * (phase + 0.6 * _smooth_field(rng, 25, z, rows, columns))
    gain = np.exp(rng.uniform(-0.5, 0.5) + 0.15 * variety.shading * _smooth_field(rng, 50, z, rows, columns))
    seen = torch.from_numpy((gain * image * np.exp(1j * phase)).astype(np.complex64))
    array = coil_sensitivities(coils, z, rows, columns, stream("coils")) if coils else None

    # Scan: k-space of the fine object, cropped; the factor keeps the image's values under the orthonormal FFT.
    pad = lambda x: nn.functional.pad(x, (0, 0, matrix, matrix))  # noqa: E731
    A = Acquisition(maps=None if array is None else pad(array))
    kspace = A(pad(seen))[..., matrix : 3 * matrix, width // 2 : width // 2 * 3] / 2
    rng = stream("noise")
    if noise is None:
        noise = 1 / (np.exp(rng.uniform(np.log(8), np.log(80))) if varied else rng.uniform(*DRAWN_SNR))
    # of varied heads the brightest tissue has a signal of 1
    bright = gain.mean() if varied else signals["white"] * gain[white].mean()
    noise_std = float(noise * bright)
    added, still = _receiver_noise(stream, rng, noise_std, kspace.shape, array, rows, columns)
    kspace = kspace + added
    scan = {} if still is None else {"noise_scan": still}
    info = scan | {
        "sequence": sequence,
        "seed": seed,
        "voxel_mm": round(float(voxel), 4),
        "field_of_view_mm": round(float(voxel) * matrix, 2),
        "slice_positions_mm": [round(float(v), 1) for v in z],
        "noise_std": noise_std,
        "snr": round(float(1 / noise), 2) if noise else float("inf"),
        "lesions": found,
        "signals": signals,
    }
    return kspace, info | ({"varied": True} if varied else {})


@functools.lru_cache(maxsize=4)
def _noise_again(
    seed: int, slices: int, matrix: int, width: int, coils: int, noise_std: float, snr: float, rows_kept: int
) -> Tensor:
    """The noise that simulate_head added, of a file that holds so many rows: (slices, [coils,] rows, width)."""
    stream = _streams(seed)
    _, _, z, rows, columns = _field_of_view(stream, slices, matrix, width)
    array = coil_sensitivities(coils, z, rows, columns, stream("coils")) if coils else None
    rng = stream("noise")
    if round(rng.uniform(*DRAWN_SNR), 2) != snr:  # the level was given: nothing was drawn before the noise
        rng = stream("noise")
    shape = (slices, *[coils] * (coils > 0), 2 * matrix, width)
    return crop_readout(_receiver_noise(stream, rng, noise_std, shape, array, rows, columns)[0], rows_kept)


def noise_free(volume: Volume, index: int) -> Tensor | None:
    """Slice `index` of a simulated scan without its noise, which is drawn again from the seed and taken away.

    Args:
        volume: of a file that demo_data wrote, or whitened_copy made of it.
    Returns:
        k-space as Volume.cropped has it, complex64 ([coils,] h, W); None if the file is no such one, or was changed,
        or is of a varied head.
    """
    about = volume.attributes
    if not {"simulated", "seed", "noise_std", "snr", "slice_positions_mm"} <= set(about) or "varied" in about:
        return None
    coils = volume.shape[volume.axes.index("coils")] if "coils" in volume.axes else 0
    slices, matrix = len(json.loads(about["slice_positions_mm"])), volume.target_size[0]
    size = int(about["seed"]), slices, matrix, volume.shape[-1], coils
    noise = _noise_again(*size, float(about["noise_std"]), float(about["snr"]), volume.shape[-2])
    noise, kspace = noise[volume.kept[index] if volume.kept else index], volume.kspace(index)
    if "mixing" in about:  # the coils are virtual ones
        if np.shape(about["mixing"]) != (coils, coils):
            return None
        noise = torch.einsum("ij,jhw->ihw", torch.as_tensor(about["mixing"]).to(noise.dtype), noise)
    # Another scan's noise would add to the energy instead of taking from it.
    if about["noise_std"] and (noise.shape != kspace.shape or not (kspace - noise).norm() < kspace.norm()):
        return None
    return crop_readout(kspace - noise, volume.rows)


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
    varied: bool = False,
) -> Path:
    """The demo data set, simulated on first use: one volume per simulated subject, in fastMRI's layout.

    Args:
        folder: where `train/` and `val/` are or will be; by default data/demo beside this file.
        train, val: number of subjects in each folder, at least one; no subject is in both.
        slices, matrix, noise: as in simulate_head.
        seed: another seed makes another set of subjects.
        wide: every other subject has a wider phase field of view.
        coils: as in simulate_head. Multi-coil files have no readout oversampling, and a noise scan.
        varied: heads and scans far from the usual, to train on: see draw_variety.
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
    plan = [("train", i, i) for i in range(train)] + [("val", i, train + i) for i in range(val)]
    settings = (slices, matrix, seed, wide, noise, coils, varied)
    others: list[subprocess.Popen[str]] = []
    try:
        for split in ("train", "val"):
            (building / split).mkdir(parents=True, exist_ok=True)
        # A second core takes half of a large set; a process of its own takes six seconds to get ready.
        count = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, 4, 1 + len(plan) // 24)
        for part in range(1, count):
            job = json.dumps([str(building), plan[part::count], *settings])
            code = f"import sys, json; sys.path.insert(0, {str(ROOT)!r}); from mri_parts import scanner; "
            command = [sys.executable, "-c", code + "scanner._simulate_files(*json.loads(sys.argv[1]))", job]
            others.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        with tqdm(total=len(plan), desc="simulating", unit="volume") as bar:
            done = lambda: bar.update(sum(1 for _ in building.glob("*/*.h5")) - bar.n)  # noqa: E731
            _simulate_files(str(building), plan[::count], *settings, after_each=done)
            for process in others:
                if (told := process.communicate()[1]) and process.returncode:
                    raise OSError(0, f"the process that simulates a part of it: {told.strip().splitlines()[-1]}")
            done()
        if place.exists():
            place.rmdir()  # empty, see above
        building.rename(place)
    except OSError as error:
        if not complete():  # else another program has finished the same data in the meantime
            raise BadInput(f"{folder}: cannot be made ({error.strerror}): choose another folder") from error
    finally:
        for process in others:
            process.kill()
            process.wait()
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _simulate_files(
    folder: str,
    plan: Sequence[Sequence[Any]],
    slices: int,
    matrix: int,
    seed: int,
    wide: bool,
    noise: float | None,
    coils: int,
    varied: bool,
    after_each: Callable[[], Any] = lambda: None,
) -> None:
    """Simulate and write some files of demo_data: plan holds (split, number in it, number of the subject)."""
    kind = "varied" if varied else "demo"
    for split, i, subject in plan:
        sequence = list(SEQUENCES)[i % 4]
        width = None if wide and (i + i // 4) % 2 == 0 else matrix  # each sequence comes with both fields of view
        # varied heads have seeds of their own, so that none shares its anatomy with a usual one
        own = 100_000 * seed + 50_000 * varied + subject
        kspace, info = simulate_head(own, sequence, slices, matrix, width, noise, coils=coils, varied=varied)
        scan = info.pop("noise_scan", None)
        if coils:  # for half the size
            kspace = crop_readout(kspace, matrix)
        attributes = {k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in info.items()}
        acquisition = "any contrast" if varied else ACQUISITIONS[sequence]
        write_volume(
            Path(folder, split, f"{kind}_{split}_{i:03d}{'' if varied else '_' + acquisition}.h5"),
            kspace,
            target_size=(matrix, matrix),
            acquisition=acquisition,
            patient_id=f"{kind}_{f'{seed}_' * bool(seed)}{subject:03d}",  # sets of other seeds are other people
            noise=scan,
            attributes={"simulated": True, **attributes},
        )
        after_each()
