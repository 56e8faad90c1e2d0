"""What a real scan adds to y = M F S x + n: motion between the shots, off-resonance, decay over an echo train.

Each function takes the k-space of a head that lies still, on resonance, without decay, and returns what the scanner
would have recorded. Noise is the receiver's and knows nothing of these: add it afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mri_parts.basics import BadInput, choose
from mri_parts.fourier import fft2c, ifft2c, nufft

# In which order a scan takes its lines, and what follows from it.
ORDERS = {
    "sequential": "a shot takes neighbouring lines",
    "interleaved": "a shot takes every n-th line",
    "centre_out": "a shot begins near the centre and goes outwards",
}


def order_lines(mask: Tensor, order: str, shots: int) -> tuple[Tensor, Tensor]:
    """In which shot, and as which echo of it, a scan of several shots takes each line.

    A turbo spin echo excites once per shot and then takes one line with every echo. The head moves from shot to shot,
    the signal decays from echo to echo: the order decides where in k-space either is seen.

    Args:
        mask: bool (W,), the lines that are measured.
        order: a key of ORDERS.
        shots: how many; as long as each other, but for one line.
    Returns:
        shot and echo of each line, int64 (W,) both, counted from 0; -1 where nothing is measured.
    Raises:
        BadInput: an unknown order; a mask of points; no shot, or more shots than lines.
    """
    choose(ORDERS, order, "order")
    if mask.ndim != 1:
        raise BadInput(f"mask {tuple(mask.shape)}: an order is one of lines: give a mask (W,)")
    lines = mask.nonzero()[:, 0]
    if not 1 <= shots <= len(lines):
        raise BadInput(f"{shots} shots of {len(lines)} lines: use 1 to {len(lines)}")
    place = torch.arange(len(lines), device=mask.device)
    if order == "centre_out":
        lines = lines[(lines - len(mask) // 2).abs().argsort(stable=True)]
    if order == "sequential":
        shot_of = place * shots // len(lines)
        echo_of = place - torch.searchsorted(shot_of, shot_of)  # counted from the shot's first line
    else:
        shot_of, echo_of = place % shots, place // shots
    shot, echo = (torch.full(mask.shape, -1, device=mask.device) for _ in range(2))
    shot[lines], echo[lines] = shot_of, echo_of
    return shot, echo


def move_shots(kspace: Tensor, shot: Tensor, shifts: Tensor, angles: Sequence[float] | Tensor | None = None) -> Tensor:
    """k-space of a head that lies somewhere else in every shot; within a shot it lies still.

    A shift by d multiplies k-space by exp(-2 pi i k d / N); a turned head has a turned k-space, which is read off the
    grid by nufft. The head turns about the middle of the image, then it is shifted. Every pixel moves as a point, so
    that what turns in from beyond the corners of k-space is not the head's. Zaitsev, Maclaren and Herbst 2015, JMRI
    42(4).

    Args:
        kspace: (..., H, W) complex; pixels as wide as high.
        shot: int (W,), see order_lines; a shot for each line is motion from line to line.
        shifts: (shots, 2) float, rows downwards and columns to the right, in pixels.
        angles: (shots,) degrees, counter-clockwise in the picture; None: it does not turn.
    Returns:
        (..., H, W) complex; 0 in lines that no shot takes.
    Raises:
        BadInput: fewer positions than shots; other than one shot for each line.
    """
    height, width = kspace.shape[-2:]
    turns = torch.zeros(len(shifts)) if angles is None else torch.as_tensor(angles)
    if shot.shape != (width,) or len(turns) != len(shifts) or int(shot.max()) >= len(shifts):
        raise BadInput(
            f"{len(shifts)} shifts, {len(turns)} angles and shots of {tuple(shot.shape)} lines: "
            f"give each of the shots a shift and an angle, and each of {width} lines a shot"
        )
    rows, columns = ((torch.arange(n) - n // 2).to(torch.float64) / n for n in (height, width))  # cycles per pixel
    found = torch.zeros_like(kspace)
    for number, (down, right) in enumerate(torch.as_tensor(shifts).tolist()):
        lines = (shot == number).nonzero()[:, 0]
        angle = math.radians(float(turns[number]))
        taken = kspace[..., lines] if angle == 0 else _turned(kspace, rows, columns[lines], angle)
        phase = -2 * math.pi * (rows[:, None] * down + columns[lines] * right)
        found[..., lines] = taken * torch.polar(torch.ones_like(phase), phase).to(kspace)
    return found


def _turned(kspace: Tensor, rows: Tensor, columns: Tensor, angle: float) -> Tensor:
    """Some columns of the k-space of an image turned by an angle in radians: (..., H, len(columns))."""
    (height, width), cosine, sine = kspace.shape[-2:], math.cos(angle), math.sin(angle)
    # the turned image's sample at k is the image's own at k turned back
    y = (cosine * rows[:, None] + sine * columns) * height
    x = (cosine * columns - sine * rows[:, None]) * width
    images, points = ifft2c(kspace).reshape(-1, height, width), torch.stack([y, x], -1)
    samples = torch.stack([nufft(image.cpu(), points) for image in images]).to(kspace)
    return samples.reshape(*kspace.shape[:-1], len(columns))


def off_resonance(kspace: Tensor, field: Tensor, bandwidth: float, axis: int = -2) -> Tensor:
    """k-space of an image whose spins precess at other frequencies than the scanner believes.

    The position along the readout is encoded as a frequency, one pixel as `bandwidth`. So a spin that is off by f is
    found f / bandwidth pixels away: y(k) = sum_r x(r) exp(-2 pi i k (r + f(r) / bandwidth) / N). Where neighbours
    land in one place, the signal piles up. Echo-planar imaging, which takes all lines after one excitation, has the
    same along the phase encode, with a bandwidth of 1 / (W * echo spacing). Jezzard and Balaban 1995, MRM 34(1).

    Args:
        kspace: (..., H, W) complex, all lines of the undisturbed image.
        field: (H, W) float, Hz; positive moves down, or to the right.
        bandwidth: Hz per pixel; negative where the gradient is played the other way.
        axis: -2, the readout; -1, the phase encode of echo-planar imaging.
    Returns:
        (..., H, W) complex.
    Raises:
        BadInput: a bandwidth of 0, another axis, a field of another size.
    """
    if bandwidth == 0 or axis not in (-2, -1) or field.shape != kspace.shape[-2:]:
        raise BadInput(
            f"bandwidth {bandwidth:g} Hz, axis {axis} and a field of {tuple(field.shape)}: give a bandwidth other "
            f"than 0, axis -2 or -1, and a field of {tuple(kspace.shape[-2:])}"
        )
    if axis == -1:
        return off_resonance(kspace.mT, field.mT, bandwidth).mT
    height = kspace.shape[-2]
    centred = torch.arange(height, dtype=torch.float64, device=kspace.device) - height // 2
    places = centred[:, None] + field.to(torch.float64) / bandwidth  # where each row of each column is found
    images = ifft2c(kspace)
    # a transform of its own for every column; along the other axis all is as before
    waves = torch.exp((-2j * math.pi / height) * centred[:, None, None] * places).to(kspace.dtype)
    columns = torch.einsum("khw,...hw->...kw", waves, images) / math.sqrt(height)
    shifted = torch.fft.ifftshift(columns, dim=-1)
    return torch.fft.fftshift(torch.fft.fft(shifted, dim=-1, norm="ortho"), dim=-1)


def echo_decay(kspace: Tensor, echo: Tensor, spacing: float, t2: float | Tensor) -> Tensor:
    """k-space of a turbo spin echo, whose lines are taken while the signal decays.

    Each line is weighted by exp(-(its time - the effective echo time) / T2). The effective echo time is that of the
    line next to the centre, which decides the contrast, so that this line keeps its weight. A turbo spin echo was
    called RARE at first: Hennig, Nauerth and Friedburg 1986, MRM 3(6).

    Args:
        kspace: (..., H, W) complex, all lines of the image at the effective echo time.
        echo: int (W,), see order_lines.
        spacing: from echo to echo, ms.
        t2: ms; one for all, or a map (H, W).
    Returns:
        (..., H, W) complex; 0 in lines that are no echo.
    Raises:
        BadInput: a T2 that is not positive; other than one echo for each line.
    """
    width = kspace.shape[-1]
    decay = torch.as_tensor(t2, dtype=torch.float32, device=kspace.device)
    if not bool((decay > 0).all()) or echo.shape != (width,) or int(echo.max()) < 0:
        raise BadInput(
            f"T2 from {float(decay.min()):g} ms and echoes of {tuple(echo.shape)} lines: give a T2 above 0, and each "
            f"of {width} lines an echo"
        )
    lines = (echo >= 0).nonzero()[:, 0]
    centre = lines[(lines - width // 2).abs().argmin()]
    found = torch.zeros_like(kspace)
    images = ifft2c(kspace) if decay.ndim else None
    for number in echo[lines].unique().tolist():
        now, weight = echo == number, torch.exp(-spacing * (number - int(echo[centre])) / decay)
        found[..., now] = weight * kspace[..., now] if images is None else fft2c(weight * images)[..., now]
    return found


# Air beside the brain: row and column from the middle of the head, depth below the slice and radius, all in mm.
AIR = ((-78.0, 0.0, 26.0, 14.0), (5.0, -58.0, 30.0, 12.0), (5.0, 58.0, 30.0, 12.0))  # frontal sinus, ears


def air_field(size: Sequence[int], pixel: float, tesla: float = 3.0, air: Sequence[Sequence[float]] = AIR) -> Tensor:
    """How much the air below an axial slice changes the frequency in it, with the main field along the slice's normal.

    Outside a ball of radius a the field changes by dchi / 3 * B0 * (a / r)^3 * (3 cos^2 - 1), with dchi = 9.4 ppm
    between air and tissue (Haacke et al. 1999, Magnetic Resonance Imaging, chapter 25), of which a shim would take
    off the slow part.

    Args:
        size: (H, W) of the image, its front in the first rows.
        pixel: mm.
        tesla: main field.
        air: balls, (row, column, depth, radius) each, in mm; see AIR.
    Returns:
        float32 (H, W), Hz.
    Raises:
        BadInput: a ball that reaches into the slice.
    """
    y, x = ((torch.arange(n, dtype=torch.float64) - n // 2) * pixel for n in size)
    field = torch.zeros(*size, dtype=torch.float64)
    for row, column, depth, radius in air:
        if not 0 <= radius < abs(depth):
            raise BadInput(f"a ball of {radius:g} mm, {depth:g} mm below the slice, reaches into it: move it down")
        distance = ((y[:, None] - row) ** 2 + (x - column) ** 2 + depth**2).sqrt()
        field += (radius / distance) ** 3 * (3 * (depth / distance) ** 2 - 1)
    return (42.577e6 * tesla * 9.4e-6 / 3 * field).float()
