"""Centred orthonormal Fourier transforms, on the grid and off it; crop; coil combination."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mri_parts.basics import BadInput


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


def rss_of_kspace(kspace: Tensor, size: Sequence[int], dim: int | None = None) -> Tensor:
    """What rss(center_crop(ifft2c(kspace), size), dim) returns, but for rounding, in three quarters of the time.

    A magnitude does not show where the origin of k-space is, so that k-space need not be shifted; and of the image
    only what stays is.

    Args:
        kspace: (..., H, W) complex.
        size: (h, w), at most (H, W).
        dim: the axis of the coils, or None without coils.
    Returns:
        (..., h, w) real, without the axis of the coils.
    Raises:
        BadInput: as center_crop.
    """
    center_crop(kspace, size)  # refuses a size that is too large
    image = torch.fft.ifft2(kspace, norm="ortho")
    power = image.real.square().addcmul_(image.imag, image.imag)
    power = power if dim is None else power.squeeze(dim) if power.shape[dim] == 1 else power.sum(dim)
    for axis in (-1, -2):
        kept, full = size[axis], power.shape[axis]
        before = full // 2 - (full - kept) // 2  # pixels that the centre has before it; they are the last ones here
        power = torch.cat((power.narrow(axis, full - before, before), power.narrow(axis, 0, kept - before)), axis)
    return power.sqrt()


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


def squared_frequency(kspace: Tensor) -> Tensor:
    """Squared distance of each sample from the centre of k-space, an edge being 1/2 away: (H, W)."""
    rows, columns = (torch.arange(n, device=kspace.device) / n - (n // 2) / n for n in kspace.shape[-2:])
    return rows[:, None] ** 2 + columns**2


def smooth_phase(kspace: Tensor, width: float = 0.02) -> Tensor:
    """The slowly varying phase of the image, from the centre of k-space: (..., H, W) -> unit complex.

    The centre is sampled under every mask, so the phase of the low-resolution image is known (the
    first step of homodyne reconstruction: Noll, Nishimura and Macovski 1991, IEEE TMI 10(2)). With it
    removed, the image is almost real: a network need not learn the same anatomy at every phase, and a penalty on the
    imaginary part costs next to nothing.

    Args:
        kspace: (..., H, W) complex.
        width: standard deviation of the Gaussian window, as a share of either axis. Where more than the centre is
            known, a wider one follows the quick phase near the air of the sinuses.
    """
    window = torch.exp(-0.5 * squared_frequency(kspace) / width**2)
    low = ifft2c(kspace * window)
    return torch.polar(torch.ones_like(low.real), low.angle())  # 1 where low is 0


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
