"""Section 5: total variation against an independent solver, hard data consistency."""

import numpy as np
import pytest
import torch

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
