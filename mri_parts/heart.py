"""The demo scanner of chapter 14: simulated beating hearts."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mri_parts.basics import ROOT, BadInput, replace_file
from mri_parts.classical import Acquisition
from mri_parts.fourier import center_crop, ifft2c
from mri_parts.scanner import _smooth_field, _step

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


# Largest arguments of simulate_cine: at so many mm the lung in front of a heart is squeezed to a third of its width, at
# so large a spread the shortest beat is hardly longer than systole.
LARGEST_BREATHING, LARGEST_SPREAD = 12.0, 0.25


def _beat_phase(times: np.ndarray, start: float, systole: float, spread: float, rng: np.random.Generator) -> np.ndarray:
    """Where in its beat the heart is, 0..1, at `times` (>= 0, in mean beats) when no two beats are equally long.

    `start` is the phase at time 0, `spread` the standard deviation of a beat's length. Systole ends at the same time
    after its beginning in every beat and filling takes up the difference, much as in life (Weissler et al. 1968,
    Circulation 37(2)).
    """
    lengths = 1 + spread * rng.standard_normal(int(2 * times.max()) + 3).clip(-2, 2)  # half a beat or more
    begins = np.concatenate([[0], lengths.cumsum()])
    moments = np.stack([begins[:-1], begins[:-1] + systole], 1).ravel()
    phases = (np.arange(len(lengths))[:, None] + [0, systole]).ravel()
    return np.interp(times + np.interp(start, phases, moments), moments, phases) % 1


def simulate_cine(
    seed: int,
    frames: int = 20,
    matrix: int = 192,
    noise: float | None = None,
    ejection_fraction: float | None = None,
    breathing: float = 0.0,
    irregular: float = 0.0,
    beats: float = 1.0,
) -> tuple[Tensor, dict]:
    """Scan a simulated beating heart: a short-axis slice, one beat long or more, balanced steady-state free precession.

    Fat, ribs, lungs, liver, spleen, spine and aorta stand still, as in a breath-hold; both ventricles contract, the
    muscle keeps its volume and thickens, papillary muscles move along. Drawn with half the voxel, its k-space
    cropped, as in simulate_head.

    With `breathing` or `irregular` it is a real-time film: each frame is measured at its own moment and nothing is
    sorted by heartbeat, as when a fifth of 128 lines takes 70 ms. The frame after the last is then not the first. A
    breath lasts 3.5 to 5.5 beats, so that a film of one beat sees a part of it: next to nothing where it was breathed
    out, or most of the way. The way follows cos^4, which rests after breathing out (Lujan et al. 1999, Med. Phys.
    26(5)). Breathing in moves heart, liver and spleen down in the picture, towards the feet, and lifts the front of the
    chest by 0.3 times as much; spine, back and receiver stand still, and between them the shift changes smoothly. A
    resting person's heart moves 2.4 to 8 mm towards the feet (Shechter et al. 2004, IEEE TMI 23(8)), of which an
    oblique slice sees a part.

    Simplified: one coil; breathing along the rows alone, every breath alike; a heart that fills and empties as much in
    a short beat as in a long one; no extra beats; no motion through the plane, which breathing causes too.

    Args:
        seed: everything random follows from it: anatomy, beat, phase of the beat at the first frame, noise.
        frames: evenly spaced over the film; of one beat at rest, the frame after the last would be the first again.
        matrix: side of the image in pixels, even; the field of view, about 290 mm, does not depend on it.
        noise: standard deviation of its real part, relative to the signal of blood; None draws 1/90 .. 1/40.
        ejection_fraction: share of the left ventricle's blood that a beat ejects; None draws 0.5 .. 0.72.
        breathing: way of heart and liver between breathing out and in, in mm, 0 .. 12; 0 holds the breath.
        irregular: standard deviation of a beat's length, relative to the mean, 0 .. 0.25; 0: all are the same.
        beats: mean beats that the film lasts.
    Returns:
        complex64 images (frames, matrix, matrix), largest magnitude 1; and a dict of what was simulated: seed,
        voxel_mm, ejection_fraction, noise_std, heart (row and column of the left ventricle), contraction (frames):
        0 for a full heart, 1 at its emptiest, and breath (frames): 0 breathed out, 1 in; times `breathing` it is
        the shift in mm. Whatever these are, a seed has the same anatomy, beat and noise.
    Raises:
        BadInput: an odd matrix, no frame, a film of no length, breathing or irregular out of bounds.
    """
    from scipy.interpolate import PchipInterpolator
    from scipy.ndimage import map_coordinates

    if matrix % 2 or min(matrix, frames) < 1:
        raise BadInput(f"matrix must be even, and both it and frames positive, got {matrix} and {frames}")
    for name, value, least, most in (
        ("breathing", breathing, 0, LARGEST_BREATHING),
        ("irregular", irregular, 0, LARGEST_SPREAD),
        ("beats", beats, 0.1, 1000),
    ):
        if not least <= value <= most:  # nor is nan
            raise BadInput(f"{name} must be {least:g} to {most:g}, got {value:g}: see simulate_cine for its unit")
    rng = np.random.default_rng([seed, 0, 77])
    free = np.random.default_rng([seed, 0, 78])  # breath and beats' lengths: not from rng, which draws the rest as ever
    breath_length, breath_start = free.uniform(3.5, 5.5), free.uniform()
    voxel = rng.uniform(275, 300) / matrix
    mm = (np.arange(2 * matrix) - matrix) * voxel / 2

    def field(length: float) -> np.ndarray:
        return _smooth_field(rng, length, mm, mm)

    turn = math.radians(rng.normal(0, 6))
    x = mm * math.cos(turn) + mm[:, None] * math.sin(turn) + 3 * field(30)
    y = mm[:, None] * math.cos(turn) - mm * math.sin(turn) + 3 * field(30)
    signal = {name: bssfp_signal(*np.array(v) * rng.normal(1, 0.03, 3)) for name, v in CINE_TISSUES.items()}

    def ramp(u: np.ndarray, low: float, high: float) -> np.ndarray:
        """0 below `low`, 1 above `high`, smooth between."""
        u = ((u - low) / (high - low)).clip(0, 1)
        return u * u * (3 - 2 * u)

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
    now = np.arange(frames) / frames * beats
    contraction = beat(_beat_phase(now, start, end, irregular, free) if irregular else (now + start) % 1)
    heart, shift = rng.uniform((16, -24), (28, -12)), rng.uniform((-4.5, 0), (-0.5, 4))
    inner, thick, septum = rng.uniform(21, 26), rng.uniform(7.5, 11), math.pi + rng.normal(0.15, 0.2)

    def waves(orders: Sequence[int], size: float) -> list[tuple[int, float, float]]:
        return [(k, size * rng.normal() / len(orders) ** 0.5, rng.uniform(0, 2 * math.pi)) for k in orders]

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

    image = np.stack([draw(s, cycle) for s, cycle in zip(contraction, now)])
    image *= 1 + 0.025 * field(1.2) + 0.02 * field(6)
    breath = np.zeros(frames)
    if breathing:
        breath = np.cos(np.pi * (now / breath_length + breath_start)) ** 4
        inside, front = ramp(body, 15, 55), ramp(-y, 0, 60)
        away = ramp(np.hypot((x - middle[0]) / 1.6, y - middle[1] - 6), 20, 45)  # of the spine
        shift_of_breath = inside * away - 0.3 * (1 - inside) * front  # rows downwards, 1 at heart and liver
        rows, columns = np.indices(x.shape)
        for frame, size in zip(image, 2 * breathing * breath / voxel):
            frame[:] = map_coordinates(frame, (rows - size * shift_of_breath, columns), order=3, mode="nearest")
    v, u, slope = mm[:, None] / 100, mm / 100, rng.normal(0, 0.8, 5)  # the receiver: sensitivity and phase
    image *= np.exp(0.15 * field(50) - rng.uniform(0.05, 0.3) * v + rng.normal(0, 0.08) * u)
    phase = rng.uniform(-np.pi, np.pi) + sum(k * term for k, term in zip(slope, (v, u, v**2, u**2, u * v)))
    full = torch.from_numpy((image * np.exp(1j * (phase + 0.4 * field(25)))).astype(np.complex64))
    kspace = center_crop(Acquisition()(full), (matrix, matrix)) / 2
    deviation = signal["blood"] * (1 / rng.uniform(40, 90) if noise is None else noise)
    real_imag = torch.from_numpy(rng.standard_normal((*kspace.shape, 2), np.float32))
    scan = ifft2c(kspace + deviation * torch.view_as_complex(real_imag))
    peak = float(scan.abs().max())
    middle_of_heart = np.unravel_index(np.hypot(x - heart[0], y - heart[1]).argmin(), x.shape)
    info: dict[str, Any] = {"seed": seed, "voxel_mm": round(voxel, 4), "ejection_fraction": float(ejected)}
    info["heart"] = [int(place) // 2 for place in middle_of_heart]
    info |= {"noise_std": deviation / peak, "contraction": contraction.tolist(), "breath": breath.tolist()}
    return scan / peak, info


def demo_cine(
    folder: str | Path = ROOT / "data" / "demo_cine",
    train: int = 24,
    val: int = 8,
    frames: int = 12,
    matrix: int = 128,
    seed: int = 0,
    breathing: float = 0.0,
    irregular: float = 0.0,
) -> Path:
    """The demo data set of the cine chapter, simulated on first use: FOLDER/train/cine.npz and FOLDER/val/cine.npz.

    Args:
        folder: where the data are or will be; a file that is there stays as it is, whatever the other arguments say.
        train, val: number of subjects, a sequence each; 0 leaves that file out.
        frames, matrix: as in simulate_cine, whose defaults are the full size. These suit a CPU.
        seed: another seed makes another set of subjects.
        breathing, irregular: as in simulate_cine; the same subjects, who breathe or whose beats are of unequal length.
    Returns:
        The folder. The files hold `dataset` (subjects, frames, rows, columns) complex64, and `simulated`.
    Raises:
        BadInput: breathing or irregular hearts for the usual folder, which holds quiet ones; see simulate_cine.
    """
    folder = Path(folder)
    if (breathing or irregular) and folder.resolve() == (ROOT / "data" / "demo_cine").resolve():
        raise BadInput(f"{folder} holds quiet hearts: give demo_cine another folder, such as 'data/breathing_cine'")
    for split, first, count in (("train", 0, train), ("val", 10_000, val)):
        path = folder / split / "cine.npz"
        if path.exists() or not count:
            continue
        print(f"Simulating {count} beating hearts into {os.path.relpath(path)} (once; simulated, no patients).")
        subjects = tqdm(range(100_000 * seed + first, 100_000 * seed + first + count), desc="simulating", unit="heart")
        drawn = (simulate_cine(s, frames, matrix, breathing=breathing, irregular=irregular)[0] for s in subjects)
        data = np.stack([film.numpy() for film in drawn])

        def write(partial: Path, data: np.ndarray = data) -> None:
            with open(partial, "wb") as file:  # given a name, numpy would append .npz to it
                np.savez(file, dataset=data, simulated=np.array(True))

        replace_file(path, write)
    return folder
