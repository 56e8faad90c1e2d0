"""Section 5 (total variation, wavelets, low rank) against independent solvers; hard data consistency; tuning."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch._subclasses.fake_tensor import FakeTensorMode

import mri_utils as mri
from mri_parts import classical
from mri_parts.coils import _dominant


def objective(image, kspace, mask, weight):
    """What total_variation says it minimises: 1/2 |M F x - y|^2 + weight * s * TV(x), in double precision."""
    x = image.to(torch.complex128).numpy()
    y = kspace.to(torch.complex128).numpy() * mask.numpy()
    misfit = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x), norm="ortho")) * mask.numpy() - y
    down = np.diff(x, axis=0, append=x[-1:])
    right = np.diff(x, axis=1, append=x[:, -1:])
    scale = np.abs(np.fft.ifft2(np.fft.ifftshift(y), norm="ortho")).max()
    tv = np.sqrt(np.abs(down) ** 2 + np.abs(right) ** 2).sum()
    return 0.5 * (np.abs(misfit) ** 2).sum() + weight * scale * tv


@pytest.fixture(scope="module")
def scan(tiny):
    """A simulated slice: k-space with zeros where the mask (random, 3x) is false, the mask, the truth."""
    volume = mri.read_folder(tiny / "val")[0]
    kspace = mri.crop_readout(volume.kspace(0), 48)
    mask = mri.sampling_mask("random", kspace.shape, 3, 0.12, seed=1).expand(kspace.shape)
    return kspace * mask, mask, mri.ifft2c(kspace)


# --- the one equation -------------------------------------------------------------------------------

LEADS = {"one image": (), "a batch": (2,), "frames": (2, 3)}


def spokes(count, points, turn=0.0):
    """A radial trajectory within 8 x 8 cycles per field of view: (count, points, 2)."""
    angle = turn + torch.arange(count) * math.radians(111.246)
    radius = torch.linspace(-4, 4, points)
    return radius[:, None] * torch.stack([angle.sin(), angle.cos()], -1)[:, None]


def acquisition(random, lead, mask, coils, off_grid):
    """(Acquisition, image, samples) of random numbers; per-frame masks and spokes where there are frames."""
    frames, coil = lead[1:], (3,) if coils else ()
    kind = torch.complex64 if off_grid else torch.complex128
    size = (5, 9) if off_grid else (8, 10)
    ones = (1,) * len(coil)
    drawn = {"lines": size[1:], "points": size, "frames": (*frames, *ones, 1, size[1])}
    where = None if mask == "all" else torch.rand(drawn[mask], generator=torch.Generator().manual_seed(1)) < 0.5
    paths = torch.stack([spokes(5, 9, turn) for turn in range(3)]) if frames else spokes(5, 9)
    paths = paths[:, None] if frames and coils else paths
    maps = random(*lead[:1], *(1,) * len(frames), 3, 8, 10, dtype=kind) if coils else None
    A = mri.Acquisition(where, maps, paths if off_grid else None, () if coils else (8, 10))
    return A, random(*lead, 8, 10, dtype=kind), random(*lead, *coil, *size, dtype=kind)


@pytest.mark.parametrize("off_grid", [False, True], ids=["grid", "spokes"])
@pytest.mark.parametrize("coils", [False, True], ids=["one coil", "coils"])
@pytest.mark.parametrize("mask", ["all", "lines", "points", "frames"])
@pytest.mark.parametrize("lead", LEADS.values(), ids=LEADS)
def test_forward_and_adjoint(random, lead, mask, coils, off_grid):
    """<A x, y> = <x, A^H y>, and A^H A is one after the other."""
    A, x, y = acquisition(random, lead, mask, coils, off_grid)
    assert A(x).shape == y.shape and A.H(y).shape == A.normal(x).shape == x.shape
    left, right = torch.vdot(A(x).flatten(), y.flatten()), torch.vdot(x.flatten(), A.H(y).flatten())
    precision = 1e-5 if off_grid else 1e-12
    assert abs(complex(left - right)) < precision * float(A(x).norm() * y.norm())
    assert (A.normal(x) - A.H(A(x))).norm() < precision * x.norm()
    if A.mask is not None:
        assert not A(x)[~A.mask.expand(y.shape)].any()


def test_one_coil_on_the_grid_is_the_masked_fourier_transform(random):
    image, mask = random(3, 8, 10), torch.arange(10) % 3 == 0
    A = mri.Acquisition.of(mask)
    assert mri.Acquisition.of(A) is A and mri.Acquisition.of(None).mask is None
    assert torch.equal(A(image), mask * mri.fft2c(image)) and torch.equal(A.H(image), mri.ifft2c(mask * image))
    assert torch.equal(mri.Acquisition()(image), mri.fft2c(image))


@pytest.mark.parametrize("coils", [False, True])
def test_a_trajectory_through_grid_points_is_the_grid(random, coils):
    rows, columns = torch.meshgrid(torch.arange(8) - 4, torch.arange(10) - 5, indexing="ij")
    trajectory, mask = torch.stack([rows, columns], -1).float(), torch.arange(10) % 3 == 0
    image, maps = random(2, 8, 10), random(2, 3, 8, 10) if coils else None
    off, on = mri.Acquisition(mask, maps, trajectory, (8, 10)), mri.Acquisition(mask, maps)
    assert torch.allclose(off(image), on(image), atol=1e-5)
    assert torch.allclose(off.H(on(image)), on.normal(image), atol=1e-4)
    plain = mri.Acquisition(trajectory=trajectory, size=(8, 10))
    assert plain.gain == pytest.approx(1, rel=1e-5) and on.gain == 1


def test_a_trajectory_needs_a_size_and_three_axes():
    for path, size in ((spokes(5, 9), ()), (spokes(5, 9)[0], (8, 10))):
        with pytest.raises(mri.BadInput, match=r"trajectory \(.*spokes, points, 2\), and size"):
            mri.Acquisition(trajectory=path, size=size)


def test_the_gain_is_the_largest_eigenvalue(random):
    path = mri.Acquisition(trajectory=spokes(20, 33), size=(8, 10))
    dense = torch.stack([path.normal(e).flatten() for e in torch.eye(80).unflatten(1, (8, 10)) + 0j])
    assert path.gain == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=0.01)


@pytest.fixture(scope="module")
def measured(scan, heart):
    """Name -> (Acquisition, samples, true image): what each method must take."""
    truth = scan[2]
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in truth.shape), indexing="ij")
    maps = torch.stack([torch.exp(-((y - a) ** 2 + (x - b) ** 2) + 1j * b * y) for a in (-1, 1) for b in (-1, 1)])
    maps = maps / mri.rss(maps)
    radius = torch.arange(-24, 24, 0.5)
    angle = torch.arange(24) * math.radians(111.246)
    path = radius[:, None] * torch.stack([angle.sin(), angle.cos()], -1)[:, None]
    lines = mri.sampling_mask("equispaced", truth.shape, 4, 0.12, seed=1)
    cine_lines = mri.sampling_mask("kt", heart.shape, 2.5, 0.2, seed=1)
    scans = {
        "one coil": (mri.Acquisition(scan[1]), truth),
        "coils": (mri.Acquisition(lines, maps), truth),
        "frames": (mri.Acquisition(cine_lines), heart),
        "spokes": (mri.Acquisition(trajectory=path, size=truth.shape), truth),
        "coils, spokes, some left out": (mri.Acquisition(torch.arange(24)[:, None] % 3 > 0, maps, path), truth),
    }
    return {name: (A, A(image), image) for name, (A, image) in scans.items()}


@pytest.fixture(scope="module")
def heart():
    return mri.simulate_cine(3, 4, 48)[0]


def gridded(A, samples):
    """The adjoint of density-compensated samples: the ramp, scaled to fit the samples best."""
    weighted = samples if A.trajectory is None else samples * A.trajectory.norm(dim=-1).clamp(min=0.125)
    image = A.H(weighted)
    again = A(image)
    return image * (torch.vdot(again.flatten(), samples.flatten()) / again.norm() ** 2)


METHODS = {
    "tv": lambda y, A: mri.total_variation(y, A, 0.001, 80),
    "wavelet": lambda y, A: mri.wavelet(y, A, 0.001, 60),
    "low_rank": lambda y, A: mri.low_rank(y, A, 0.0001, 2, 9),
    "sense": lambda y, A: mri.sense(y, A, 0.01),
}
KINDS = ("one coil", "coils", "frames", "spokes", "coils, spokes, some left out")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_every_acquisition(method, kind, measured):
    """And is nearer to the truth than the adjoint, gridded off the grid; SENSE of one coil is the adjoint."""
    A, samples, truth = measured[kind]
    error = float((METHODS[method](samples, A) - truth).norm() / truth.norm())
    before = float((gridded(A, samples) - truth).norm() / truth.norm())
    assert error < (1.02 if method == "sense" and kind in ("one coil", "frames") else 0.9) * before


@pytest.mark.parametrize("kind", KINDS)
def test_the_consistency_step_takes_every_acquisition(kind, measured, random):
    A, samples, truth = measured[kind]
    start = truth + 0.05 * truth.abs().max() * random(*truth.shape)
    misfit = [
        float((A(x) - samples).norm()) for x in (start, *(mri.keep_measured(start, samples, A, w) for w in (0.5, 1.0)))
    ]
    assert misfit[2] < 0.1 * misfit[0] and misfit[2] < misfit[1] < 0.8 * misfit[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_proximal_step_minimises(kind, measured, random):
    A, samples, truth = measured[kind]
    x, step = truth + 0.1 * truth.abs().max() * random(*truth.shape), 2.0 / A.gain
    found = A.proximal(samples, step, iterations=60)(x, x)
    gradient = step * (A.normal(found) - A.H(samples)) + found - x
    assert gradient.norm() < 1e-3 * x.norm()


def test_keep_measured(random):
    image, kspace, mask = random(2, 9, 12), random(2, 9, 12), torch.arange(12) % 3 == 0
    result = mri.fft2c(mri.keep_measured(image, kspace, mask))
    assert torch.allclose(result[..., mask], kspace[..., mask], atol=1e-6)
    assert torch.allclose(result[..., ~mask], mri.fft2c(image)[..., ~mask], atol=1e-6)
    assert torch.allclose(mri.keep_measured(image, kspace, mask & False), image, atol=1e-6)
    assert torch.allclose(mri.keep_measured(image, kspace, mask | True), mri.ifft2c(kspace), atol=1e-6)


@pytest.mark.parametrize("shape", [(6,), (5, 6)])
def test_the_part_that_no_sample_supports(random, shape):
    """Against projections by explicit matrices; the scan sees none of it, and all of the rest."""
    image, mask = random(2, 5, 6), torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.4
    found = mri.unmeasured(image, mask)
    assert mri.fft2c(found)[mask.expand(2, 5, 6)].abs().max() < 1e-6
    rows, columns = (mri.fft2c(torch.eye(n, dtype=torch.complex128)[:, None]).squeeze(1) for n in (5, 6))  # x -> F x
    spectrum = rows.T @ image.to(torch.complex128) @ columns
    expected = rows.conj() @ (spectrum * ~mask) @ columns.conj().T
    torch.testing.assert_close(found.to(torch.complex128), expected, rtol=1e-5, atol=1e-5)
    share = float(expected[0].abs().square().sum() / image[0].abs().square().sum())
    assert mri.guessed_share(image[0], mask) == pytest.approx(share, rel=1e-5)
    assert mri.guessed_share(torch.zeros(5, 6, dtype=torch.complex64), mask) == 0
    assert mri.guessed_share(image[0], torch.ones(6, dtype=torch.bool)) == 0


def test_lost_and_invented(random):
    """Their difference is the error where nothing was measured; of answers whose two parts are known, just these."""
    truth, image, mask = random(2, 5, 6), random(2, 5, 6), torch.tensor([0, 1, 0, 1, 0, 0]).bool()
    lost, invented = mri.lost_and_invented(image, truth, mask)
    torch.testing.assert_close(invented - lost, mri.unmeasured(image - truth, mask), rtol=1e-4, atol=1e-5)
    products = (mri.fft2c(lost).conj() * mri.fft2c(invented)).real.sum(-2)
    assert products.abs().max() < 1e-4  # orthogonal, column by column
    for share in (0.0, 0.3, 1.0):  # a share of the truth and nothing else
        lost, invented = mri.lost_and_invented(share * truth, truth, mask)
        torch.testing.assert_close(lost, (1 - share) * mri.unmeasured(truth, mask), rtol=1e-4, atol=1e-5)
        assert invented.abs().max() < 1e-5
    lost, invented = mri.lost_and_invented(truth * 1j, truth, mask)  # a quarter turn away: all lost, all invented
    assert lost.norm() == pytest.approx(float(invented.norm()), rel=1e-5)
    empty = torch.zeros_like(truth)
    assert torch.equal(mri.lost_and_invented(image, empty, mask)[0], empty)


def test_gradient_and_its_adjoint(random):
    x, p = random(3, 7, 8, dtype=torch.complex128), random(2, 3, 7, 8, dtype=torch.complex128)
    gradient = classical._gradient(x)
    assert torch.equal(gradient[0, :, :-1], x.diff(dim=1)) and torch.equal(gradient[1, :, :, :-1], x.diff(dim=2))
    assert not gradient[0, :, -1].any() and not gradient[1, :, :, -1].any()
    left = torch.vdot(gradient.flatten(), p.flatten())
    right = torch.vdot(x.flatten(), classical._gradient_adjoint(p).flatten())
    assert complex(left) == pytest.approx(complex(right), rel=1e-12)


@pytest.mark.parametrize("weight", [0.002, 0.016])
def test_fully_sampled_it_is_the_denoising_of_scikit_image(weight, scan):
    """denoise_tv_chambolle solves |x - y|^2 / 2 + weight * TV(x): the same weight where the maximum is 1.

    Its documentation leaves out the 1/2, but its dual variable is bounded by the weight itself.
    """
    restoration = pytest.importorskip("skimage.restoration")
    picture = scan[2].abs().double()
    picture /= picture.max()
    kspace, mask = mri.fft2c(picture).to(torch.complex64), torch.ones(picture.shape, dtype=torch.bool)

    def value(image):
        return objective(torch.as_tensor(image), kspace, mask, weight)

    usual = restoration.denoise_tv_chambolle(picture.numpy(), weight)
    exact = torch.from_numpy(restoration.denoise_tv_chambolle(picture.numpy(), weight, eps=0, max_num_iter=4000))
    assert float((exact - picture).abs().max()) > weight  # it does something
    ours = mri.total_variation(kspace, mask, weight)
    assert value(exact) < value(ours) < value(usual) and value(ours) < 1.002 * value(exact)
    ours = mri.total_variation(kspace, mask, weight, iterations=5000)
    assert value(ours) < 1.0001 * value(exact)
    assert float((ours - exact).abs().max()) < 1e-3


@pytest.mark.parametrize("weight", [0.002, 0.016])
def test_the_default_iterations_converge(scan, weight):
    """200 iterations end within 0.1 % of the value that 2000 reach."""
    kspace, mask, _ = scan
    values = [objective(mri.total_variation(kspace, mask, weight, n), kspace, mask, weight) for n in (2, 20, 200, 2000)]
    start = objective(mri.ifft2c(kspace), kspace, mask, weight)
    assert start > values[0] > values[1] > values[2] > values[3] * (1 - 1e-6)
    assert values[2] < 1.001 * values[3]


def test_it_minimises(scan):
    """No step in a random direction lowers the objective."""
    kspace, mask, _ = scan
    best = mri.total_variation(kspace, mask, 0.01, 2000).to(torch.complex128)
    value = objective(best, kspace, mask, 0.01)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-2, 1e-1):
        for _ in range(5):
            step = torch.randn(best.shape, dtype=best.dtype, generator=generator) * size * best.abs().max()
            assert objective(best + step, kspace, mask, 0.01) > value
    for other in (best * 0.99, best * 1.01, best.roll(1, 0), mri.ifft2c(kspace)):
        assert objective(other, kspace, mask, 0.01) > value


def test_it_is_closer_to_the_truth_than_zero_filling(scan):
    kspace, mask, truth = scan
    error = [float((x - truth).abs().square().sum()) for x in (mri.ifft2c(kspace), mri.total_variation(kspace, mask))]
    assert error[1] < 0.8 * error[0]


def test_weight_zero_is_zero_filling(scan):
    kspace, mask, _ = scan
    result = mri.total_variation(kspace, mask, 0.0, 50)
    assert torch.allclose(mri.fft2c(result) * mask, kspace, atol=1e-5 * float(kspace.abs().max()))
    for weight in (-0.1, float("nan")):
        with pytest.raises(mri.BadInput, match="weight"):
            mri.total_variation(kspace, mask, weight)


def test_the_weight_has_no_unit(scan):
    kspace, mask, _ = scan
    one, large = mri.total_variation(kspace, mask, 0.01, 100), mri.total_variation(kspace * 1e6j, mask, 0.01, 100)
    assert torch.allclose(large, one * 1e6j, rtol=1e-3, atol=1e-4 * 1e6 * float(one.abs().max()))


def test_slices_of_a_batch_do_not_mix(scan):
    kspace, mask, _ = scan
    batch = torch.stack([kspace, 3 * kspace.flip(0)])
    result = mri.total_variation(batch, mask, 0.01, 50)
    for one, alone in zip(result, batch):
        expected = mri.total_variation(alone, mask, 0.01, 50)
        assert torch.allclose(one, expected, atol=1e-5 * float(expected.abs().max()))


# --- wavelets ----------------------------------------------------------------------------------


def pywt_transform(x, wavelet, levels=3, inverse=False):
    """wavelet_transform by PyWavelets: level by level, on the even part of the averages."""
    pywt = pytest.importorskip("pywt")
    # PyWavelets pairs pixels 1-2, 3-4 for db4 and 0-1, 2-3 for haar: we always do the latter.
    odd = -1 if wavelet == "db4" else 0
    x = np.asarray(x).copy()
    for level in sorted(range(levels), reverse=inverse):
        h, w = ((n >> level) // 2 * 2 for n in x.shape)
        block = x[:h, :w]
        if inverse:
            block = np.roll(block.reshape(2, h // 2, 2, w // 2), (-odd, -odd), (1, 3))
            (a, b), (c, d) = block.swapaxes(1, 2)
            x[:h, :w] = np.roll(pywt.idwt2((a, (c, b, d)), wavelet, "periodization"), (-odd, -odd), (0, 1))
        else:
            a, (c, b, d) = pywt.dwt2(np.roll(block, (odd, odd), (0, 1)), wavelet, "periodization")
            block = np.array([[a, b], [c, d]])
            x[:h, :w] = np.roll(block, (odd, odd), (2, 3)).swapaxes(1, 2).reshape(h, w)
    return x


SIZES = [(1, 1), (1, 8), (2, 2), (3, 5), (4, 6), (7, 7), (16, 16), (24, 40), (30, 33), (64, 51)]


@pytest.mark.parametrize("wavelet", mri.WAVELETS)
@pytest.mark.parametrize("size", SIZES)
def test_the_wavelet_transform_is_orthonormal_for_every_size(wavelet, size):
    """The matrix of the transform, column by column, times its transpose is the identity."""
    count = size[0] * size[1]
    if count > 300:
        x = torch.randn(2, *size, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
        y = torch.randn(2, *size, dtype=torch.complex128, generator=torch.Generator().manual_seed(2))
        left = torch.vdot(mri.wavelet_transform(x, wavelet).flatten(), y.flatten())
        right = torch.vdot(x.flatten(), mri.wavelet_transform(y, wavelet, inverse=True).flatten())
        assert complex(left) == pytest.approx(complex(right), rel=1e-10)
        back = mri.wavelet_transform(mri.wavelet_transform(x, wavelet), wavelet, inverse=True)
        assert torch.allclose(back, x, atol=1e-12)
        assert not torch.allclose(mri.wavelet_transform(x, wavelet), x, atol=0.1)
        return
    identity = torch.eye(count, dtype=torch.float64)
    matrix = mri.wavelet_transform(identity.reshape(count, *size), wavelet).reshape(count, count)
    inverse = mri.wavelet_transform(identity.reshape(count, *size), wavelet, inverse=True).reshape(count, count)
    assert torch.allclose(matrix @ matrix.T, identity, atol=1e-12)
    assert torch.allclose(inverse, matrix.T, atol=1e-12)


@pytest.mark.parametrize("wavelet", mri.WAVELETS)
@pytest.mark.parametrize("size", [(16, 16), (24, 40), (30, 33)])
def test_the_coefficients_are_those_of_pywavelets(wavelet, size, random):
    x = random(*size, dtype=torch.complex128)
    ours = mri.wavelet_transform(x, wavelet)
    assert np.allclose(ours, pywt_transform(x, wavelet), atol=1e-12)
    assert np.allclose(pywt_transform(ours, wavelet, inverse=True), x, atol=1e-12)
    single = mri.wavelet_transform(x.to(torch.complex64)[None], wavelet)[0]
    assert single.dtype == torch.complex64 and np.allclose(single, ours, atol=1e-5)


@pytest.mark.parametrize("weight", [0.002, 0.02])
@pytest.mark.parametrize("wavelet", mri.WAVELETS)
def test_wavelet_reaches_the_objective_value_of_sigpy(wavelet, weight, scan):
    """sigpy's least squares with an l1 penalty, on PyWavelets' transform: the same value within 0.1 %."""
    sp = pytest.importorskip("sigpy")
    kspace, mask, _ = scan
    y, m = kspace.numpy().astype(complex), mask.numpy()
    scale = np.abs(sp.ifft(y)).max()

    def value(x):
        misfit = sp.fft(x, axes=(0, 1)) * m - y
        return 0.5 * (np.abs(misfit) ** 2).sum() + weight * scale * np.abs(pywt_transform(x, wavelet)).sum()

    class Wavelet(sp.linop.Linop):
        def __init__(self, inverse=False):
            super().__init__(y.shape, y.shape)
            self.inverse = inverse

        def _apply(self, x):
            return pywt_transform(x, wavelet, inverse=self.inverse)

        def _adjoint_linop(self):
            return Wavelet(not self.inverse)

    model = sp.linop.Multiply(y.shape, m) * sp.linop.FFT(y.shape, axes=(0, 1))
    prox = sp.prox.UnitaryTransform(sp.prox.L1Reg(y.shape, weight * scale), Wavelet())
    oracle = sp.app.LinearLeastSquares(model, y, proxg=prox, alpha=1, max_iter=500, show_pbar=False).run()
    ours = mri.wavelet(kspace, mask, weight, wavelet=wavelet, shifts=False)
    assert value(ours.numpy()) == pytest.approx(value(oracle), rel=1e-3)
    assert value(ours.numpy()) < 0.98 * value(mri.ifft2c(kspace).numpy())  # there was something to gain


def test_total_variation_reaches_the_objective_value_of_sigpy(scan):
    """The same objective by sigpy's primal-dual solver, with its own gradient and threshold."""
    sp = pytest.importorskip("sigpy")
    kspace, mask, _ = scan
    y, m, weight = kspace.numpy().astype(complex), mask.numpy(), 0.01
    scale = np.abs(sp.ifft(y)).max()
    inside = np.ones((2, *y.shape))  # differences across the edges do not count
    inside[0, 0], inside[1, :, 0] = 0, 0

    class Isotropic(sp.prox.Prox):
        def _prox(self, alpha, p):
            length = np.maximum(np.sqrt((np.abs(p) ** 2).sum(0)), 1e-300)
            return p * np.maximum(1 - alpha * weight * scale / length, 0)

    gradient = sp.linop.Multiply(inside.shape, inside) * sp.linop.FiniteDifference(y.shape)
    # sigpy differences look back, ours look ahead: turn the picture by 180 degrees, which swaps the two
    turn = sp.linop.Flip(y.shape)
    model = sp.linop.Multiply(y.shape, m) * sp.linop.FFT(y.shape, axes=(0, 1))
    oracle = sp.app.LinearLeastSquares(
        model, y, proxg=Isotropic(inside.shape), G=gradient * turn, tau=10, max_iter=2000, show_pbar=False
    ).run()
    oracle = objective(torch.from_numpy(oracle), kspace, mask, weight)
    assert objective(mri.total_variation(kspace, mask, weight), kspace, mask, weight) == pytest.approx(oracle, rel=2e-3)


@pytest.mark.parametrize("name", mri.CLASSICAL)
def test_a_stack_of_slices_is_done_slice_by_slice(name, random):
    """Each with its own mask, or all with one; what a method makes of a stack at once is the same."""
    masks = torch.stack([mri.sampling_mask("random", (32, 40), 3, 0.1, seed=seed) for seed in range(3)])[:, None]
    kspace, weight = random(3, 32, 40) * masks, 0.002
    method, function = mri.classical_method(name, weight), mri.CLASSICAL[name][0]
    for given, mask in ((kspace, masks), (kspace * masks[0], masks[:1]), (kspace * masks[0], masks[0])):
        expected = function(given, mask, weight)
        torch.testing.assert_close(method(given, mask, (32, 40)), expected, atol=1e-4, rtol=1e-4)


def test_shifts_beat_the_fixed_grid(scan):
    kspace, mask, truth = scan
    for wavelet in mri.WAVELETS:
        fixed, shifted = (mri.wavelet(kspace, mask, 0.002, wavelet=wavelet, shifts=s) for s in (False, True))
        error = [float((x - truth).abs().square().sum()) for x in (fixed, shifted)]
        assert error[1] < 0.8 * error[0]
        assert torch.equal(shifted, mri.wavelet(kspace, mask, 0.002, wavelet=wavelet))  # the same shifts each time


def test_unknown_wavelet(scan):
    with pytest.raises(mri.BadInput, match="unknown wavelet 'db5'"):
        mri.wavelet(*scan[:2], 0.01, wavelet="db5")


# --- low rank ----------------------------------------------------------------------------------


def low_rank_objective(image, kspace, mask, weight, window, floor):
    """Literally: the windows of the gradient's k-space as rows of a matrix, in double precision."""
    y = kspace.numpy().astype(complex)
    scale = np.abs(np.fft.ifft2(np.fft.ifftshift(y), norm="ortho")).max()

    def gram(image):
        x = image.numpy().astype(complex) / scale
        down, right = np.diff(x, axis=0, append=x[-1:]), np.diff(x, axis=1, append=x[:, -1:])
        total = 0
        for part in (down, right):
            columns = []
            for spectrum in (np.fft.fft2(part.real), np.fft.fft2(part.imag)):
                for i in range(window):
                    columns += [np.roll(spectrum, (i, j), (0, 1)).ravel() for j in range(window)]
            matrix = np.stack(columns, axis=1) / np.sqrt(part.size)
            total = total + matrix.conj().T @ matrix
        return total

    least = floor * np.linalg.eigvalsh(gram(mri.ifft2c(kspace)))[-1]
    misfit = (mri.fft2c(image) * mask - kspace).numpy() / scale
    eigenvalues = np.linalg.eigvalsh(gram(image))
    return 0.5 * (np.abs(misfit) ** 2).sum() + weight / 2 * np.log(eigenvalues + least).sum()


@pytest.mark.parametrize("weight", [0.001, 0.1])
def test_low_rank_never_raises_its_objective(scan, weight):
    """log det written out with explicit matrices: every reweighting lowers it, and at the end it stands still."""
    kspace, mask, _ = scan
    values = [
        low_rank_objective(mri.low_rank(kspace, mask, weight, n, 7, 0.01), kspace, mask, weight, 7, 0.01)
        for n in (0, 1, 2, 4, 8, 16, 32)
    ]
    steps = -np.diff(values)
    assert (steps > -1e-4 * steps[0]).all() and steps[0] > 0
    assert steps[-1] < 0.02 * steps[0]


def test_low_rank_completes_what_is_of_low_rank():
    """A disc of constant value and phase has edges of low rank: it comes back from every third line."""
    rows, columns = torch.meshgrid(torch.arange(48) - 24, torch.arange(48) - 24, indexing="ij")
    disc = torch.sigmoid(12 - (rows**2 + columns**2).sqrt()) * torch.polar(torch.ones(48, 48), columns * 0.02)
    mask = mri.sampling_mask("random", (48, 48), 3, 0.16, seed=0)
    kspace = mri.fft2c(disc) * mask
    error = [mri.nmse(disc.abs()[None], x.abs()[None]) for x in (mri.ifft2c(kspace), mri.low_rank(kspace, mask, 1e-5))]
    assert error[1] < 0.05 * error[0]


# --- told of the phase -------------------------------------------------------------------------


def test_wavelets_told_of_the_phase_fulfil_their_conditions(scan):
    """Where the solution's coefficient is not 0, the data's pull equals the weight; elsewhere it is below it.

    Real and imaginary part by themselves, after division by the smooth phase, the latter with three times the weight.
    """
    kspace, mask, _ = scan
    weight, scale = 0.01, float(mri.ifft2c(kspace).abs().max())
    image = mri.wavelet(kspace, mask, weight, 2000, shifts=False, imaginary=3.0) / scale
    low = mri.ifft2c(kspace * torch.exp(-0.5 * distance_from_centre(kspace.shape) / 0.02**2))
    turn = (low / low.abs()).conj()
    pull = mri.ifft2c(mask * (kspace / scale - mri.fft2c(image)))
    pulls, found = (mri.wavelet_transform(x * turn, "haar", 3) for x in (pull, image))
    for pull, x, limit in ((pulls.real, found.real, weight), (pulls.imag, found.imag, 3 * weight)):
        assert pull.abs().max() < limit * 1.02
        at = x.abs() > 1e-3
        assert torch.allclose(pull[at], limit * x[at].sign(), atol=0.02 * limit)
    assert (found.real.abs() > 1e-3).sum() > 50 and (found.imag.abs() > 1e-3).sum() > 5


def distance_from_centre(size):
    """Squared, an edge of k-space being 1/2 away."""
    rows, columns = (torch.from_numpy(np.fft.fftshift(np.fft.fftfreq(n))) for n in size)
    return (rows[:, None] ** 2 + columns**2).float()


def test_total_variation_told_of_the_phase_minimises_its_objective(scan):
    """Written out with numpy: no step in any direction tried lowers it, and without the phase it is higher."""
    kspace, mask, _ = scan
    weight, scale = 0.01, float(mri.ifft2c(kspace).abs().max())
    turn = mri.smooth_phase(kspace).numpy().conj()

    def objective(image):
        residual = (mask * (mri.fft2c(image) - kspace / scale)).abs().square().sum() / 2
        z, tv = image.numpy() * turn, 0.0
        for part, times in ((z.real, 1), (z.imag, 3)):
            rows, columns = np.zeros_like(part), np.zeros_like(part)
            rows[:-1], columns[:, :-1] = np.diff(part, axis=0), np.diff(part, axis=1)
            tv += times * np.hypot(rows, columns).sum(dtype=float)
        return float(residual) + weight * tv

    image = mri.total_variation(kspace, mask, weight, 3000, imaginary=3.0) / scale
    least = objective(image)
    assert least < objective(mri.total_variation(kspace, mask, weight, 3000) / scale) * 0.999
    assert objective(mri.total_variation(kspace, mask, weight, 300, imaginary=3.0) / scale) < 1.01 * least
    random = np.random.RandomState(0)
    for step in (1e-3, 1e-2):
        for _ in range(5):
            direction = torch.from_numpy(random.standard_normal((2, *kspace.shape)).astype(np.float32))
            assert objective(image + step * torch.complex(*direction)) > least
        assert objective((1 + step) * image) > least and objective((1 - step) * image) > least


def test_the_phase_helps_where_it_is_smooth():
    """A textured disc with a smooth phase from half of its lines: a third of the error less, or better."""
    y, x = np.mgrid[:64, :64]
    texture = ndimage.gaussian_filter(np.random.RandomState(0).standard_normal((64, 64)), 1.5)
    magnitude = ((y - 30) ** 2 + (x - 34) ** 2 < 24**2) * (1 + 0.4 * texture / texture.std())
    phase = 0.02 * (x - 32) + 0.01 * (y - 32) + 0.0008 * (x - 32) ** 2
    image = torch.from_numpy(magnitude * np.exp(1j * phase)).to(torch.complex64)
    mask = mri.sampling_mask("random", image.shape, 2, 0.15, seed=4)
    kspace = mri.fft2c(image) * mask
    for name in ("tv", "wavelet"):
        errors = [
            float((mri.CLASSICAL[kind][0](kspace, mask, 0.001) - image).norm() / image.norm())
            for kind in (name, f"phase_{name}")
        ]
        assert errors[1] < 0.67 * errors[0]


# --- what all classical methods share ----------------------------------------------------------

FUNCTIONS = [function for function, _ in mri.CLASSICAL.values()]
everywhere = pytest.mark.parametrize("function", FUNCTIONS, ids=list(mri.CLASSICAL))


@everywhere
def test_weights(function, scan):
    kspace, mask, _ = scan
    tolerance = 1e-4 * float(kspace.abs().max())
    assert torch.allclose(mri.fft2c(function(kspace, mask, 0.0)) * mask, kspace, atol=tolerance)
    # A huge weight leaves nothing of the edges (total variation would need more iterations for the last).
    edges = [
        float(classical._gradient(x).abs().square().sum()) for x in (mri.ifft2c(kspace), function(kspace, mask, 1e6))
    ]
    assert edges[1] < 0.15 * edges[0]
    for weight in (-0.1, float("nan"), float("inf")):
        with pytest.raises(mri.BadInput, match="weight"):
            function(kspace, mask, weight)


@everywhere
def test_units_batches_and_axes(function, scan):
    kspace, mask, _ = scan
    few = 3  # iterations
    alone = function(kspace, mask, 0.01, few)
    tolerance = 1e-3 * float(alone.abs().max())
    assert alone.dtype == torch.complex64 and alone.shape == kspace.shape
    assert torch.allclose(function(kspace * 1e6, mask, 0.01, few) / 1e6, alone, atol=tolerance)
    batch = torch.stack([kspace, 3 * kspace, kspace * 0])[:, None]
    result = function(batch, mask, 0.01, few)
    assert result.shape == batch.shape and not result[2].any()
    assert torch.allclose(result[0, 0], alone, atol=tolerance)
    assert torch.allclose(result[1, 0] / 3, alone, atol=tolerance)
    masks = mask.expand(3, 1, *mask.shape)
    assert torch.allclose(function(batch, masks, 0.01, few)[:2], result[:2], atol=tolerance)


@everywhere
def test_each_beats_zero_filling(function, scan):
    kspace, mask, truth = scan
    error = [float((x - truth).abs().square().sum()) for x in (mri.ifft2c(kspace), function(kspace, mask, 0.001))]
    assert error[1] < 0.8 * error[0]


@everywhere
def test_mixed_precision_changes_nothing(function, scan):
    kspace, mask, _ = scan
    with torch.autocast("cpu", torch.bfloat16):
        mixed = function(kspace, mask, 0.001, 2)
    assert torch.equal(mixed, function(kspace, mask, 0.001, 2))


def test_tune(tiny):
    train = mri.SliceDataset(mri.read_folder(tiny / "train"), "random", 3, 0.12, seed=0)
    weights = (0.0, 0.001, 10.0)
    best = mri.tune("tv", train, weights, slices=3)
    samples = [mri.Sample.stack([train[i]]) for i in (0, 3, 7)]  # 8 slices: the first, a middle one, the last

    def quality(weight):
        images = [mri.reconstruct(mri.tv_method(weight), s) for s in samples]
        return np.mean([mri.ssim(s.target, i, float(s.maximum)) for s, i in zip(samples, images)])

    assert best == max(weights, key=quality) == 0.001
    assert mri.tune(mri.tv_method, train, weights, slices=3) == best
    assert mri.tune("tv", train, weights, slices=3, metric=mri.psnr) == 0.001
    with pytest.raises(mri.BadInput, match="classical method 'wavelt', did you mean 'wavelet'"):
        mri.tune("wavelt", train)
    with pytest.raises(mri.BadInput, match="0 weights"):
        mri.tune(mri.tv_method, train)


@pytest.mark.parametrize(
    ("best", "tried"),
    [(0.5, [0.5, 1, 2]), (2, [0.5, 1, 2, 4]), (0.1, [0.5, 1, 2, 0.25, 0.125, 0.0625]), (4.1, [0.5, 1, 2, 4, 8])],
)
def test_tuning_goes_on_beyond_the_ends_of_its_list(best, tried, tiny):
    train, asked = mri.SliceDataset(mri.read_folder(tiny / "train"), "random", 3, 0.12, seed=0), []

    def make_method(weight):
        asked.append(weight)
        return lambda kspace, mask, size: mri.center_crop(mri.ifft2c(kspace), size) / (1 + abs(math.log(weight / best)))

    chosen = mri.tune(make_method, train, (2, 0.5, 1), slices=1, metric=lambda target, image, peak: float(image.sum()))
    expected = tried if best != 0.5 else [*tried, 0.25]
    assert asked == expected and chosen == min(asked, key=lambda weight: abs(math.log(weight / best)))
    asked.clear()
    end = mri.tune(make_method, train, (2, 0.5, 1), 1, metric=lambda target, image, peak: float(image.sum()), further=0)
    assert asked == [0.5, 1, 2] and end == min(asked, key=lambda weight: abs(math.log(weight / best)))


@pytest.mark.parametrize("name", mri.CLASSICAL)
def test_tune_by_name_tries_the_weights_of_the_table(name, tiny, monkeypatch):
    tried, (_, weights) = [], mri.CLASSICAL[name]

    def only_the_third_is_good(kspace, mask, weight):
        tried.append(weight)
        return mri.ifft2c(kspace) * (weight == weights[2])

    monkeypatch.setitem(mri.CLASSICAL, name, (only_the_third_is_good, weights))
    train = mri.SliceDataset(mri.read_folder(tiny / "train"), "random", 3, 0.12, seed=0)
    assert mri.tune(name, train, slices=1) == weights[2]
    assert tuple(tried) == weights


@everywhere
def test_they_stay_on_the_device_of_the_data(function, scan, monkeypatch):
    """Tensors without content stand in for a GPU: a step through another device raises."""
    monkeypatch.setattr(classical, "_eigh", torch.linalg.eigh)  # see below
    kspace, mask, _ = (x.to("meta") for x in scan)
    assert function(kspace[None], mask, 0.01, 2).device.type == "meta"


@pytest.mark.parametrize(
    "method",
    [
        lambda coils, mask: mri.low_rank(coils, mask),
        lambda coils, mask: mri.compress_coils(coils, 2),
        lambda coils, mask: _dominant(coils[:, None] * coils.conj(), coils)[0],  # of walsh_maps and espirit_maps
    ],
)
def test_eigenvectors_are_looked_for_on_the_cpu(method, monkeypatch):
    solve, asked = torch.linalg.eigh, set()
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: asked.add(x.device.type) or solve(x))
    with FakeTensorMode():
        coils = torch.zeros(3, 16, 12, dtype=torch.complex64, device="meta")
        assert method(coils, torch.ones(12, dtype=torch.bool, device="meta")).device.type == "meta"
    assert asked == {"cpu"}


# --- partial Fourier ---


def half_scan(phase, kept, width=48, height=40):
    """A head-like positive image with a phase, its k-space with `kept` columns, and their mask."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    image = 1.0 * (torch.hypot(y / 0.8, x / 0.7) < 1) + 0.5 * (torch.hypot(y - 0.2, x + 0.3) < 0.2)
    image = torch.polar(image, phase(y, x))
    mask = torch.zeros(width, dtype=torch.bool)
    mask[kept] = True
    return image, mri.fft2c(image) * mask, mask


@pytest.mark.parametrize("width", [48, 47])
@pytest.mark.parametrize("side", ["first", "last"])
def test_half_of_kspace_tells_the_other_where_there_is_no_phase(side, width):
    """Exact for a constant phase: each pair k(f), k(-f) has the weight 2, its own mirror image the weight 1."""
    kept = slice(0, 30) if side == "first" else slice(width - 30, width)
    image, kspace, mask = half_scan(lambda y, x: 0 * y + 0.7, kept, width)
    full = mri.fft2c(image)
    if width % 2 == 0 and side == "last":
        full[:, 0] = 0  # the highest frequency has no mirror image, so what is lost of it stays lost
    expected, found, inside = mri.ifft2c(full), mri.homodyne(kspace, mask), image.abs() > 0
    assert torch.allclose(found[inside], expected[inside], atol=1e-5)
    # in air the phase is that of rounding errors
    assert (found.abs() - expected.abs())[~inside].abs().max() < 1e-3
    errors = [float((mri.pocs(kspace, mask, n) - expected).norm() / image.norm()) for n in (0, 1, 5, 50)]
    assert errors[0] > errors[1] > errors[2] > errors[3] and errors[3] < 0.02


def test_homodyne_is_its_formula():
    """Written in numpy, sample by sample: Noll et al. 1991, with a linear ramp across the band known on both sides."""
    _, kspace, mask = half_scan(lambda y, x: 0.8 * x - y * y, slice(0, 31))
    weighted, low = np.zeros(kspace.shape, complex), np.zeros(kspace.shape, complex)
    for column in range(31):
        f = column - 24  # from -24 to 6: both sides are known up to 6
        weight = 1.0 if f == -24 else min(1 - f / 6, 2.0)
        weighted[:, column] = weight * kspace[:, column].numpy()
        low[:, column] = (0.5 + 0.5 * np.cos(np.pi * min(abs(f) / 7, 1))) * kspace[:, column].numpy()

    def inverse(k):
        return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(k), norm="ortho"))

    unit = inverse(low) / np.abs(inverse(low))
    expected = (inverse(weighted) * unit.conj()).real * unit
    assert np.allclose(mri.homodyne(kspace, mask).numpy(), expected, atol=1e-5)


def test_partial_fourier_methods_beat_zero_filling_unless_the_phase_is_steep():
    lead = {}
    for name, phase in {
        "slow": lambda y, x: 0.6 * x + 0.3 * y * y,
        "steep": lambda y, x: 3 * torch.sin(9 * x + 7 * y),
    }.items():
        image, kspace, mask = half_scan(phase, slice(0, 29))
        base = mri.psnr(image.abs(), mri.ifft2c(kspace).abs())
        methods = {"homodyne": mri.homodyne, "pocs": mri.pocs}
        lead[name] = {n: mri.psnr(image.abs(), m(kspace, mask).abs()) - base for n, m in methods.items()}
    assert min(lead["slow"].values()) > 5 and lead["slow"]["pocs"] > lead["slow"]["homodyne"]
    assert max(lead["steep"].values()) < -0.5 and lead["steep"]["pocs"] > lead["steep"]["homodyne"]


def test_partial_fourier_takes_batches_and_keeps_what_was_measured():
    image, kspace, mask = half_scan(lambda y, x: x, slice(0, 30))
    other = mask.flip(-1)
    batch, masks = torch.stack([kspace, mri.fft2c(image) * other]), torch.stack([mask, other])[:, None]
    for method in (mri.homodyne, mri.pocs):
        together = method(batch, masks)
        assert torch.allclose(together[0], method(kspace, mask), atol=1e-6)
        assert torch.allclose(together[1], method(batch[1], other), atol=1e-6)
    assert torch.allclose(mri.fft2c(mri.pocs(kspace, mask)) * mask, kspace, atol=1e-5)


@pytest.mark.parametrize(
    "columns",
    [[0, 1, 2, 4, 5, 6], list(range(8, 16)), list(range(9)), []],
    ids=["with a gap", "nothing before DC", "nothing beyond DC", "nothing"],
)
def test_other_masks_than_partial_fourier_are_refused(columns):
    mask = torch.zeros(16, dtype=torch.bool)
    mask[columns] = True
    for method in (mri.homodyne, mri.pocs):
        with pytest.raises(mri.BadInput, match="must follow one another, and reach beyond both sides of DC"):
            method(torch.ones(8, 16, dtype=torch.complex64), mask)
        with pytest.raises(mri.BadInput, match=r"give a mask \(.., 1, W\)"):
            method(torch.ones(8, 16, dtype=torch.complex64), torch.ones(8, 16, dtype=torch.bool))


def test_the_mean_of_methods(random):
    """Complex where all are; of magnitudes else, since a phase would be lost in one of them only."""
    kspace, mask = random(1, 6, 8), torch.ones(1, 1, 8, dtype=torch.bool)
    half, magnitude = (lambda k, m, size: mri.zero_filled(k, m, size) / 2), (lambda k, m, size: mri.ifft2c(k).abs())
    image = mri.ifft2c(kspace)
    assert torch.allclose(mri.average(mri.zero_filled, half)(kspace, mask, (6, 8)), 0.75 * image)
    mixed = mri.average(half, magnitude)(kspace, mask, (6, 8))
    assert not mixed.is_complex() and torch.allclose(mixed, 0.75 * image.abs())


@pytest.mark.parametrize("size", [(8, 10), (7, 9), (8, 9)])
def test_mirrored_takes_no_side(random, size):
    """A method that does the same to mirrored scans is left as it is; of another the mean of all ways does so."""
    kspace, mask = random(2, *size), torch.rand(2, 1, size[1], generator=torch.Generator().manual_seed(1)) < 0.5
    crop = tuple(n - 2 for n in size)
    assert torch.allclose(
        mri.mirrored(mri.zero_filled)(kspace * mask, mask, crop), mri.zero_filled(kspace * mask, mask, crop)
    )
    ramp = torch.arange(size[0] * size[1]).reshape(size)
    crooked = mri.mirrored(lambda k, m, wanted: mri.ifft2c(k * m) * ramp)

    def mirror(x):  # an image turned about its centre, by the Fourier transform of its conjugate
        return mri.ifft2c(mri.fft2c(x.conj()).conj())

    image = crooked(kspace, mask, size)
    turned, lines = mri.fft2c(mirror(mri.ifft2c(kspace))), mri.fft2c(mirror(mri.ifft2c(mask + 0j))).real > 0.5
    assert torch.allclose(crooked(turned, lines, size), mirror(image), atol=1e-3)
