"""Section 5 (total variation, wavelets, low rank) against independent solvers; hard data consistency; tuning."""

import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mri_utils as mri


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


def test_keep_measured(random):
    image, kspace, mask = random(2, 9, 12), random(2, 9, 12), torch.arange(12) % 3 == 0
    result = mri.fft2c(mri.keep_measured(image, kspace, mask))
    assert torch.allclose(result[..., mask], kspace[..., mask], atol=1e-6)
    assert torch.allclose(result[..., ~mask], mri.fft2c(image)[..., ~mask], atol=1e-6)
    assert torch.allclose(mri.keep_measured(image, kspace, mask & False), image, atol=1e-6)
    assert torch.allclose(mri.keep_measured(image, kspace, mask | True), mri.ifft2c(kspace), atol=1e-6)


def test_gradient_and_its_adjoint(random):
    x, p = random(3, 7, 8, dtype=torch.complex128), random(2, 3, 7, 8, dtype=torch.complex128)
    gradient = mri._gradient(x)
    assert torch.equal(gradient[0, :, :-1], x.diff(dim=1)) and torch.equal(gradient[1, :, :, :-1], x.diff(dim=2))
    assert not gradient[0, :, -1].any() and not gradient[1, :, :, -1].any()
    left = torch.vdot(gradient.flatten(), p.flatten())
    right = torch.vdot(x.flatten(), mri._gradient_adjoint(p).flatten())
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


# --- what all classical methods share ----------------------------------------------------------

FUNCTIONS = [function for function, _ in mri.CLASSICAL.values()]
everywhere = pytest.mark.parametrize("function", FUNCTIONS, ids=list(mri.CLASSICAL))


@everywhere
def test_weights(function, scan):
    kspace, mask, _ = scan
    tolerance = 1e-4 * float(kspace.abs().max())
    assert torch.allclose(mri.fft2c(function(kspace, mask, 0.0)) * mask, kspace, atol=tolerance)
    # A huge weight leaves nothing of the edges (total variation would need more iterations for the last).
    edges = [float(mri._gradient(x).abs().square().sum()) for x in (mri.ifft2c(kspace), function(kspace, mask, 1e6))]
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
    monkeypatch.setattr(mri, "_eigh", torch.linalg.eigh)  # see below
    kspace, mask, _ = (x.to("meta") for x in scan)
    assert function(kspace[None], mask, 0.01, 2).device.type == "meta"


@pytest.mark.parametrize(
    "method",
    [
        lambda coils, mask: mri.low_rank(coils, mask),
        lambda coils, mask: mri.compress_coils(coils, 2),
        lambda coils, mask: mri._dominant(coils[:, None] * coils.conj(), coils)[0],  # of walsh_maps and espirit_maps
    ],
)
def test_eigenvectors_are_looked_for_on_the_cpu(method, monkeypatch):
    solve, asked = torch.linalg.eigh, set()
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: asked.add(x.device.type) or solve(x))
    with FakeTensorMode():
        coils = torch.zeros(3, 16, 12, dtype=torch.complex64, device="meta")
        assert method(coils, torch.ones(12, dtype=torch.bool, device="meta")).device.type == "meta"
    assert asked == {"cpu"}
