"""The one equation, and what solves it without learning: consistency, total variation, low rank, homodyne, SENSE .."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any

import torch
from torch import Tensor

from mri_parts.basics import BadInput, choose
from mri_parts.fourier import fft2c, ifft2c, nufft, nufft_adjoint, smooth_phase


def _off_grid(transform: Callable[..., Tensor], values: Tensor, trajectory: Tensor, *size: Sequence[int]) -> Tensor:
    """nufft or nufft_adjoint of each (a, b) along its (spokes, points, 2); the leading axes broadcast."""
    lead = torch.broadcast_shapes(values.shape[:-2], trajectory.shape[:-3])
    values = values.expand(*lead, -1, -1).reshape(-1, *values.shape[-2:])
    trajectory = trajectory.expand(*lead, -1, -1, -1).reshape(-1, *trajectory.shape[-3:])
    parts = [transform(*each, *size) for each in zip(values, trajectory)]
    return torch.stack(parts).reshape(*lead, *parts[0].shape)


@dataclass(eq=False)
class Acquisition:
    """The one equation, y = M F S x: A(x) is what a scan measures of an image, A.H(y) the adjoint.

    What is written with these serves one coil and many, frames, and samples off the grid. Leading axes broadcast.

    Args:
        mask: M, bool, broadcastable to the samples; None: everything is measured.
        maps: S, (..., coils, H, W) complex, see sensitivity_maps; None: one coil.
        trajectory: (..., spokes, points, 2) float: where the samples lie, as in nufft, instead of on the grid. With
            maps, the same for all coils: (spokes, points, 2) or (..., 1, spokes, points, 2).
        size: (H, W) of the image, which a trajectory does not tell; maps do.
    Raises:
        BadInput: a trajectory with fewer axes, or without a size.
    """

    mask: Tensor | None = None
    maps: Tensor | None = None
    trajectory: Tensor | None = None
    size: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.maps is not None:
            self.size = self.maps.shape[-2:]
        if self.trajectory is not None and (self.trajectory.ndim < 3 or not self.size):
            shape = tuple(self.trajectory.shape)
            raise BadInput(f"trajectory {shape}: give (..., spokes, points, 2), and size=(H, W) or maps")

    @classmethod
    def of(cls, acquisition: Acquisition | Tensor | None) -> Acquisition:
        """An acquisition itself; of a mask, that of one coil on the grid."""
        return acquisition if isinstance(acquisition, Acquisition) else cls(acquisition)

    def __call__(self, image: Tensor) -> Tensor:
        """M F S x: (..., H, W) complex -> (..., [coils,] H, W), off the grid (..., [coils,] spokes, points)."""
        images = self.spread(image)
        samples = fft2c(images) if self.trajectory is None else _off_grid(nufft, images, self.trajectory)
        return samples if self.mask is None else self.mask * samples

    def H(self, samples: Tensor) -> Tensor:
        """S^H F^H M y, the adjoint: samples as A(x) has them -> (..., H, W) complex."""
        return self._back(samples if self.mask is None else self.mask * samples)

    def normal(self, image: Tensor) -> Tensor:
        """A^H A x: (..., H, W) complex -> the same shape."""
        if self.trajectory is not None:
            return self._back(self(image))  # which is masked already
        images = self.spread(image)
        if self.mask is not None:
            axes, mask = self._turned_mask
            images = torch.fft.ifftn(mask * torch.fft.fftn(images, dim=axes), dim=axes)
        return self.combine(images)

    @cached_property
    def _turned_mask(self) -> tuple[tuple[int, ...], Tensor]:
        """For there and back: the axes along which the mask leaves out something, and the mask with its origin first.

        Moving an image multiplies its k-space by phases, which commute with the mask: from image to image nothing need
        be shifted. And a mask of lines does not mix rows: their transform would be undone as it was done.
        """
        assert self.mask is not None
        axes = tuple(axis for axis in (-2, -1) if self.mask.ndim >= -axis and self.mask.shape[axis] > 1) or (-1,)
        return axes, torch.fft.ifftshift(self.mask, dim=[axis for axis in axes if self.mask.ndim >= -axis])

    def _back(self, samples: Tensor) -> Tensor:
        if self.trajectory is None:
            return self.combine(ifft2c(samples))
        return self.combine(_off_grid(nufft_adjoint, samples, self.trajectory, self.size))

    def spread(self, image: Tensor) -> Tensor:
        """S x: an image (..., H, W) as the coils see it, (..., coils, H, W); without maps the image itself."""
        return image if self.maps is None else self.maps * image.unsqueeze(-3)

    def combine(self, images: Tensor) -> Tensor:
        """S^H: the coils' images, each weighted by its map, as one (..., H, W); the adjoint of spread."""
        return images if self.maps is None else (self.maps.conj() * images).sum(-3)

    @property
    def diagonal(self) -> bool:
        """One coil on the grid: each sample of k-space is an equation of its own, which needs no iterations."""
        return self.maps is None and self.trajectory is None

    @cached_property
    def gain(self) -> float:
        """|A|^2, the largest eigenvalue of A^H A; on the grid 1, for maps with root-sum-of-squares 1."""
        if self.trajectory is None:
            return 1.0
        image, gain = torch.zeros(*self.size, dtype=torch.complex64), 1.0
        image[self.size[0] // 2, self.size[1] // 2] = 1  # a bright pixel holds all frequencies
        for _ in range(30):
            image = self.normal(image / gain)
            gain = float(image.norm())
        return gain

    def put(self, samples: Tensor, spectrum: Tensor) -> Tensor:
        """The samples where the mask is true, elsewhere another k-space."""
        return samples if self.mask is None else torch.where(self.mask, samples, spectrum)

    def proximal(self, samples: Tensor, step: float, iterations: int = 3) -> Callable[[Tensor, Tensor], Tensor]:
        """The data term's proximal step: (x, guess) -> argmin_z step / 2 |A z - samples|^2 + 1/2 |z - x|^2.

        Exact where A is diagonal; elsewhere a few steps of conjugate gradients from the guess stand in for it.
        """
        back = self.H(samples)

        def towards_data(image: Tensor, guess: Tensor) -> Tensor:
            if self.diagonal:  # the inverse of 1 + step * normal, since normal is a projection
                return image + step / (1 + step) * (back - self.normal(image))
            return _conjugate_gradients(lambda x: x + step * self.normal(x), image + step * back, guess, iterations)

        return towards_data


def keep_measured(
    image: Tensor, kspace: Tensor, mask: Acquisition | Tensor | None, weight: Tensor | float = 1.0
) -> Tensor:
    """Data consistency: put the measured samples back into the k-space of `image`.

    Args:
        image: (..., H, W) complex, an estimate.
        kspace: (..., H, W) complex, measured where mask is true; of an acquisition, its samples.
        mask: an Acquisition, or the mask of one coil: bool, broadcastable to kspace.
        weight: 1 is hard consistency; below 1 the soft one, a step towards the measured samples. With
            noise weight v it is v / (1 + v).
    Returns:
        (..., H, W) complex image with k-space F image + weight M (kspace - F image). With coil maps or off the grid,
        what minimises the same energy, v |A x - kspace|^2 + |x - image|^2, see sense.
        Schlemper et al. 2018, IEEE TMI 37(2).
    """
    A = Acquisition.of(mask)
    if not A.diagonal:
        return sense(kspace, A, 1 / weight - 1, prior=image)
    spectrum = fft2c(image)
    measured = kspace if isinstance(weight, float) and weight == 1 else torch.lerp(spectrum, kspace, weight + 0j)
    return ifft2c(A.put(measured, spectrum))


def unmeasured(image: Tensor, mask: Tensor) -> Tensor:
    """The part of an image that no sample supports: F^-1 (1 - M) F x, the null space of a scan with one coil.

    Args:
        image: (..., H, W) complex, or real.
        mask: bool, broadcastable to image: what of k-space the scan has measured.
    Returns:
        (..., H, W) complex. The rest of the image, image - unmeasured, is what the scan has measured of it.
    """
    return ifft2c(torch.where(mask, 0, fft2c(image)))


def guessed_share(image: Tensor, mask: Tensor) -> float:
    """How much of the energy of a complex image (H, W) no sample supports, 0 to 1; see unmeasured."""
    return float((unmeasured(image, mask).norm() / image.norm().clamp(min=1e-30)) ** 2)


def lost_and_invented(image: Tensor, truth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The unmeasured part of an image's error in two: image - truth = invented - lost there.

    Each column of k-space is laid beside that of the truth, as far as neither was measured. A share of the true one was
    found (least squares); the rest of it is lost, and what of the image has nothing to do with it is invented. The two
    are orthogonal, column by column.

    Args:
        image, truth: (..., H, W) complex, with their phases.
        mask: as in unmeasured.
    Returns:
        lost and invented, each (..., H, W) complex.
    """
    guess, true = (torch.where(mask, 0, fft2c(x)) for x in (image, truth))
    power = true.abs().square().sum(-2, keepdim=True).clamp(min=torch.finfo(true.real.dtype).tiny)
    found = (true.conj() * guess).real.sum(-2, keepdim=True) / power * true
    return ifft2c(true - found), ifft2c(guess - found)


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


def _unit_scale(
    A: Acquisition, kspace: Tensor, weight: float, method: str, axes: tuple[int, ...] = (-2, -1)
) -> tuple[Tensor, Tensor]:
    """The k-space divided by the largest magnitude of the zero-filled image, over `axes`, and that magnitude.

    Raises:
        BadInput: the weight is negative or not a number.
    """
    if not 0 <= weight < math.inf:
        raise BadInput(f"{method} weight {weight}: give a number of at least 0")
    scale = A.H(kspace).abs().amax(axes, keepdim=True) / A.gain
    scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)  # an empty slice stays empty
    return kspace / (scale if A.maps is None else scale.unsqueeze(-3)), scale


def _known_phase(A: Acquisition, samples: Tensor, imaginary: float | None) -> Tensor | None:
    """The smooth phase of the image, unit complex (..., H, W); None where the imaginary part has no own weight."""
    if imaginary is None:
        return None
    return smooth_phase(samples if A.diagonal else fft2c(A.H(samples)))


def _length(p: Tensor) -> Tensor:
    """Euclidean length of a vector field (axes, ..., H, W), complex or real: (..., H, W) real."""
    squares = torch.view_as_real(p).square().sum(-1) if p.is_complex() else p.square()
    return squares.sum(0).sqrt()


def _limit(p: Tensor, weight: float, imaginary: float | None, size: Callable[[Tensor], Tensor] = torch.abs) -> Tensor:
    """Scale down what is larger than the weight; with `imaginary` the real part and the imaginary part each by itself.

    What it takes away, p - _limit(p), is the soft threshold.
    """
    if imaginary is not None:
        return torch.complex(_limit(p.real, weight, None, size), _limit(p.imag, imaginary * weight, None, size))
    return p * (max(weight, 1e-12) / size(p)).clamp(max=1)  # a size of zero gives infinity, and 1


def total_variation(
    kspace: Tensor,
    mask: Acquisition | Tensor | None,
    weight: float = 0.01,
    iterations: int = 300,
    axes: Sequence[int] = (-2, -1),
    periodic: bool = False,
    imaginary: float | None = None,
) -> Tensor:
    """Total-variation reconstruction: argmin_x 1/2 |A x - y|^2 / |A|^2 + weight * s * TV(x).

    TV is the isotropic total variation of the complex image, s the largest magnitude of the
    zero-filled image, so that `weight` has no unit; |A| is 1 on the grid. Solved by the primal-dual method of
    Chambolle and Pock (2011, J. Math. Imaging Vis. 40) with Acquisition.proximal. For MRI: Lustig et al. 2007, MRM
    58(6); with coils and on spokes: Block et al. 2007, MRM 57(6).

    Args:
        kspace: (..., [coils,] H, W) complex, zero where not measured; the samples of the acquisition.
        mask: an Acquisition, or the mask of one coil: bool, broadcastable to kspace.
        weight: of the total variation; larger is smoother. Tune it on training data.
        iterations: primal-dual steps, each one pair of FFTs, or four per coil.
        axes: along which neighbours are compared; -3 is the time of a sequence.
        periodic: the last is compared with the first, along all axes; by default it has no neighbour.
        imaginary: None compares complex pixels. A number divides by the smooth phase first, as the networks do, and
            compares real and imaginary parts by themselves, these with so many times the weight: an image whose
            phase is smooth has next to no imaginary part then (after Noll, Nishimura and Macovski 1991, IEEE TMI
            10(2)). Phase: smooth_phase.
    Returns:
        (..., H, W) complex image.
    """
    A = Acquisition.of(mask)
    measured, scale = _unit_scale(A, kspace, weight, "total variation", tuple({-2, -1, *axes}))
    phase = _known_phase(A, kspace, imaginary)

    def gradient(image: Tensor) -> Tensor:
        return _gradient(image if phase is None else image * phase.conj(), axes, periodic)

    def gradient_adjoint(p: Tensor) -> Tensor:
        back = _gradient_adjoint(p, axes, periodic)
        return back if phase is None else back * phase

    # Step sizes whose product is below 1 / |gradient|^2, which is at most 4 for each axis. The dual variable is never
    # larger than the weight while the image is about 1, so that the primal step may be the larger by far.
    norm = math.sqrt(max(8, 4 * len(axes)))
    primal, dual_step = 30 / norm, 1 / 30 / norm
    data = A.proximal(measured, primal / A.gain)
    image = ahead = A.H(measured) / A.gain
    dual = torch.zeros_like(gradient(image))
    for _ in range(iterations):
        dual = dual + dual_step * gradient(ahead)
        dual = _limit(dual, weight, imaginary, _length)
        previous, image = image, data(image - primal * gradient_adjoint(dual), image)
        ahead = 2 * image - previous
    return image * scale


def slice_by_slice(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function of (kspace, mask, ...), faster for several slices on a CPU: one at a time stays in its cache.

    It is for slices of one coil, (batch, H, W), that the function treats each by itself; all else, and what is on a
    GPU, is passed on as it is.
    """

    @wraps(function)
    def work(kspace: Tensor, mask: Acquisition | Tensor, *values: Any, **named: Any) -> Tensor:
        if kspace.ndim != 3 or len(kspace) < 2 or kspace.device.type != "cpu" or not isinstance(mask, Tensor):
            return function(kspace, mask, *values, **named)
        own = mask.ndim == 3 and len(mask) == len(kspace)
        masks = mask.split(1) if own else [mask] * len(kspace)
        return torch.cat([function(k, m, *values, **named) for k, m in zip(kspace.split(1), masks)])

    return work


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
    low = torch.tensor(choose(WAVELETS, wavelet, "wavelet"), dtype=torch.float64)
    high = low.flip(0).clone()
    high[1::2] *= -1
    taps = torch.stack([low, high]).unflatten(-1, (-1, 2)).transpose(0, 1).tolist()  # of pair j: [[.., ..], [.., ..]]

    def along_rows(x: Tensor) -> Tensor:
        # neighbouring pairs of pixels become (average, detail), by one 2x2 matrix for each pair that the filters reach
        first, second = x.chunk(2, -1) if inverse else (x[..., ::2], x[..., 1::2])
        done: list[Tensor] = []
        for j, ((a, b), (c, d)) in enumerate(taps):
            if inverse:
                part = torch.stack([a * first + c * second, b * first + d * second], -1)
                done.append(part.roll(j, -2).flatten(-2))
            else:
                one, other = (first.roll(-j, -1), second.roll(-j, -1)) if j else (first, second)
                done.append(torch.cat([a * one + b * other, c * one + d * other], -1))
        return sum(done[1:], done[0])

    x = x.clone()
    for level in sorted(range(levels), reverse=inverse):
        h, w = ((n >> level) // 2 * 2 for n in x.shape[-2:])
        if h and w:
            rows = along_rows(x[..., :h, :w])
            x[..., :h, :w] = along_rows(rows.transpose(-2, -1)).transpose(-2, -1)
    return x


def wavelet(
    kspace: Tensor,
    mask: Acquisition | Tensor | None,
    weight: float = 0.001,
    iterations: int = 200,
    wavelet: str = "haar",
    levels: int = 3,
    shifts: bool = True,
    imaginary: float | None = None,
) -> Tensor:
    """Wavelet-sparse reconstruction: argmin_x 1/2 |A x - y|^2 / |A|^2 + weight * s * |W x|_1.

    W is wavelet_transform, s and |A| as in total_variation. Solved by FISTA (Beck and
    Teboulle 2009, SIAM J. Imaging Sci. 2(1)): a step towards the data, then soft-thresholding of the
    coefficients. For MRI: Lustig et al. 2007, MRM 58(6).

    Args:
        kspace, mask: as in total_variation.
        weight: of the coefficients' magnitudes; larger is smoother. Tune it on training data.
        iterations: FISTA steps, each one pair of FFTs and of wavelet transforms.
        wavelet, levels: of wavelet_transform.
        shifts: shift the grid of the wavelets at random in every step (cycle spinning: Coifman and Donoho
            1995). The objective is then followed on average only, but the blocks of a fixed grid vanish.
        imaginary: None thresholds complex coefficients; a number those of the real part and the imaginary part by
            themselves, as in total_variation.
    Returns:
        (..., H, W) complex image.
    """
    A = Acquisition.of(mask)
    measured, scale = _unit_scale(A, kspace, weight, "wavelet")
    phase = _known_phase(A, kspace, imaginary)
    random = torch.Generator().manual_seed(0)  # the same input gives the same image
    back = A.H(measured) / A.gain
    image = ahead = back
    momentum = 1.0
    for _ in range(iterations):
        shift = torch.randint(2**levels, (2,), generator=random).tolist() if shifts else [0, 0]
        step = ahead + back - A.normal(ahead) / A.gain
        step = step if phase is None else step * phase.conj()
        coefficients = wavelet_transform(step.roll(shift, (-2, -1)), wavelet, levels)
        coefficients = coefficients - _limit(coefficients, weight, imaginary)
        x = wavelet_transform(coefficients, wavelet, levels, inverse=True).roll([-s for s in shift], (-2, -1))
        x = x if phase is None else x * phase
        momentum, last = (1 + math.sqrt(1 + 4 * momentum**2)) / 2, momentum
        ahead, image = x + (last - 1) / momentum * (x - image), x
    return image * scale


def _parts(image: Tensor) -> Tensor:
    """The gradient's real and imaginary part: (..., H, W) complex -> (2, 2, ..., H, W) real."""
    return torch.view_as_real(_gradient(image)).movedim(-1, 0)


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
    kspace: Tensor,
    mask: Acquisition | Tensor | None,
    weight: float = 0.001,
    iterations: int = 8,
    window: int = 15,
    floor: float = 0.002,
) -> Tensor:
    """Structured low-rank completion of k-space: argmin_x 1/2 |A x - y / s|^2 / |A|^2 + weight / 2 * log det(G + e).

    Take every window of the k-space of the image's gradient as one row of a matrix T, its real part's and
    its imaginary part's side by side. T has low rank: edges are few, so that filters exist which
    annihilate the gradient's k-space, and the phase is smooth, so that the two parts tell each other.
    G = T^H T is small. Each iteration weights its eigenvectors by 1 / (eigenvalue + e), which is a weight
    for every pixel's gradient, and solves the least squares that remain by conjugate gradients.
    Edges: Ongie and Jacob 2017, IEEE TCI 3(4). Phase: Haldar 2014, IEEE TMI 33(3). Log-determinant by
    reweighting: Mohan and Fazel 2012, JMLR 13. The objective never rises.

    Args:
        kspace, mask: as in total_variation.
        weight: of the rank; larger trusts the measured samples less. Tune it on training data.
        iterations: reweightings, of 50 conjugate-gradient steps each.
        window: k-space samples per side.
        floor: e, as a part of the largest eigenvalue for the zero-filled image.
    Returns:
        (..., H, W) complex image, in the units of the k-space.
    """
    A = Acquisition.of(mask)
    measured, scale = _unit_scale(A, kspace, weight, "low rank")
    right = A.H(measured)
    image = right / A.gain
    # G depends on the distance of two samples of the window only: it is read off Fourier transforms.
    height, width = sizes = image.shape[-2:]
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
        pixels = weight * A.gain * torch.fft.ifft2(filters, norm="forward").real[:, :, None]

        def normal(x: Tensor, pixels: Tensor = pixels) -> Tensor:
            return A.normal(x) + _gradient_adjoint(torch.complex(*(pixels * _parts(x)).sum(1)))

        image = _conjugate_gradients(normal, right, image, steps=50)
    return image * scale


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


def _sides(mask: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of partial Fourier columns: frequencies (W,), half the width of the band measured on both sides, the longer side.

    Raises:
        BadInput: masks of points; lines left out between the measured ones; nothing of the centre.
    """
    if mask.ndim > 1 and mask.shape[-2] > 1:
        raise BadInput(f"mask {tuple(mask.shape)}: partial Fourier leaves out columns: give a mask (.., 1, W)")
    frequency = torch.arange(width, device=mask.device) - width // 2
    first = torch.where(mask, frequency, width).amin(-1, keepdim=True)
    last = torch.where(mask, frequency, -width).amax(-1, keepdim=True)
    both = torch.minimum(-first, last)
    if not torch.equal(mask, (frequency >= first) & (frequency <= last)) or int(both.min()) < 1:
        raise BadInput(
            "partial Fourier: the measured columns must follow one another, and reach beyond both sides of DC"
        )
    return frequency, both, torch.where(last < -first, -1, 1)


def _low_phase(kspace: Tensor, frequency: Tensor, both: Tensor) -> Tensor:
    """Phase of the image of the columns that were measured on both sides, tapered: unit complex (..., H, W)."""
    rest = (frequency.abs() / (both + 1)).clamp(max=1)
    return torch.sgn(ifft2c(kspace * (0.5 + 0.5 * torch.cos(math.pi * rest))))


def homodyne(kspace: Tensor, mask: Tensor) -> Tensor:
    """Homodyne reconstruction of partial Fourier columns (Noll, Nishimura and Macovski 1991, IEEE TMI 10(2)).

    An image without phase has a k-space in which one half tells the other. So columns whose mirror image was not
    measured count twice (with a ramp across the band that was measured on both sides), the slow phase, known from
    that band, is taken off, and what is left in the imaginary part is thrown away. Where the phase is not slow, that
    is signal: then this errs.

    Args:
        kspace: (..., H, W) complex, zero where not measured.
        mask: bool, broadcastable to kspace, the same for all rows: columns that follow one another, DC among them.
    Returns:
        (..., H, W) complex image, the real part with the slow phase put back.
    Raises:
        BadInput: another mask.
    """
    frequency, both, side = _sides(mask, kspace.shape[-1])
    weight = (1 + side * frequency / both).clamp(0, 2)
    weight = torch.where(frequency == -kspace.shape[-1] / 2, 1, weight)  # of an even width: its own mirror image
    phase = _low_phase(kspace, frequency, both)
    return (ifft2c(weight * kspace) * phase.conj()).real * phase


def pocs(kspace: Tensor, mask: Tensor, iterations: int = 20) -> Tensor:
    """Projection onto convex sets, for partial Fourier columns (Haacke, Lindskog and Lin 1991, J. Magn. Reson. 92(1)).

    In turn: give the image the slow phase, known from the columns that were measured on both sides; put the measured
    samples back. Unlike homodyne's, its image agrees with all that was measured, so it errs less where the phase
    is not slow.

    Args:
        kspace, mask: see homodyne.
        iterations: how often.
    Returns:
        (..., H, W) complex image.
    Raises:
        BadInput: see homodyne.
    """
    phase = _low_phase(kspace, *_sides(mask, kspace.shape[-1])[:2])
    image = ifft2c(kspace)
    for _ in range(iterations):
        image = keep_measured(image.abs() * phase, kspace, mask)
    return image


def sense(
    kspace: Tensor,
    mask: Acquisition | Tensor | None,
    weight: float | Tensor = 0.001,
    iterations: int = 30,
    prior: Tensor | None = None,
) -> Tensor:
    """SENSE by conjugate gradients: argmin_x |A x - y|^2 + weight |x - z|^2 (Pruessmann et al. 2001, MRM 46(4)).

    Args:
        kspace: (..., [coils,] H, W) complex, zero where not measured; the samples of the acquisition.
        mask: an Acquisition, its maps with root-sum-of-squares 1; or the mask of one coil.
        weight: of the image's energy; has no unit. Larger means less noise and more aliasing.
        iterations: conjugate-gradient steps, each one pair of FFTs per coil.
        prior: z, (..., H, W) complex, near which the image is looked for; 0 without one.
    Returns:
        (..., H, W) complex.
    """
    A = Acquisition.of(mask)
    right = A.H(kspace)
    start = torch.zeros_like(right)
    if prior is not None:
        right, start = right + weight * prior, prior
    return _conjugate_gradients(lambda x: A.normal(x) + weight * x, right, start, iterations)
