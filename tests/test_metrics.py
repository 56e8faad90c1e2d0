"""Section 7: losses and metrics, against fastMRI and scikit-image."""

import math

import numpy as np
import pytest
import torch

import mri_utils as mri


@pytest.fixture
def pair(random):
    """A target volume with values up to about 2 and a noisy prediction, float32 (3, 20, 23)."""
    target = random(3, 20, 23, dtype=torch.float32).abs() / 2
    return target, target + 0.1 * random(3, 20, 23, dtype=torch.float32)


def test_complex_images_are_refused(pair):
    """Only their real part would count."""
    for metric in (*mri.METRICS.values(), mri.metric_conventions, mri.find_shift):
        for images in ((pair[0], pair[1] * 1j), (pair[0].numpy() * 1j, pair[1])):
            with pytest.raises(mri.BadInput, match=r"this image is complex: take its abs\(\) first"):
                metric(*images)


def test_stored_reference_values(golden):
    target, prediction = torch.from_numpy(golden["target"]), torch.from_numpy(golden["prediction"])
    for metric in (mri.nmse, mri.psnr, mri.ssim):
        assert metric(target, prediction) == pytest.approx(float(golden[metric.__name__].squeeze()), rel=1e-6)
    assert float(mri.LOSSES["l2"](prediction, target)) == pytest.approx(float(golden["mse"]), rel=1e-6)
    loss = float(mri.ssim_loss(prediction, target, target.max()))
    assert loss == pytest.approx(float(golden["ssim_loss"]), rel=1e-5)


def test_scikit_image(pair):
    metrics = pytest.importorskip("skimage.metrics")
    target, prediction = (x.double().numpy() for x in pair)
    peak = target.max()
    expected = np.mean([metrics.structural_similarity(t, p, data_range=peak) for t, p in zip(target, prediction)])
    assert mri.ssim(*pair) == pytest.approx(expected, rel=1e-6)
    expected = metrics.peak_signal_noise_ratio(target, prediction, data_range=peak)
    assert mri.psnr(*pair) == pytest.approx(expected, rel=1e-6)
    full = metrics.structural_similarity(target[0], prediction[0], data_range=peak, full=True)[1]
    ours = mri.ssim_map(pair[0][0].double(), pair[1][0].double(), peak)
    assert ours.shape == (14, 17)
    np.testing.assert_allclose(ours.numpy(), full[3:-3, 3:-3], rtol=1e-6)


def test_fastmri(pair):
    evaluate = pytest.importorskip("fastmri.evaluate", reason="pip install --no-deps fastmri==0.3.0")
    target, prediction = (x.numpy().astype(float) for x in pair)
    for metric in (mri.nmse, mri.psnr, mri.ssim):
        expected = float(np.squeeze(getattr(evaluate, metric.__name__)(target, prediction)))
        assert metric(*pair) == pytest.approx(expected, rel=1e-6)
    losses = pytest.importorskip("fastmri.losses")
    peaks = torch.tensor([1.0, 2.0, 3.0])
    expected = losses.SSIMLoss()(pair[0][:, None], pair[1][:, None], peaks)
    assert float(mri.ssim_loss(pair[1], pair[0], peaks[:, None, None])) == pytest.approx(float(expected), rel=1e-5)


def test_definitions(pair):
    target, prediction = (x.double() for x in pair)
    error = (target - prediction).abs()
    assert mri.mae(*pair) == pytest.approx(float(error.sum() / error.numel()), rel=1e-12)
    assert mri.nmse(*pair) == pytest.approx(float((error**2).sum() / (target**2).sum()), rel=1e-12)
    assert float(mri.LOSSES["l1"](prediction, target)) == pytest.approx(mri.mae(*pair), rel=1e-12)
    both = mri.mae(*pair) + float(mri.ssim_loss(prediction, target))
    assert float(mri.LOSSES["l1_ssim"](prediction, target)) == pytest.approx(both, rel=1e-12)
    assert list(mri.METRICS) == ["ssim", "psnr", "nmse", "mae"]
    assert list(mri.LOSSES) == ["l1", "l2", "ssim", "l1_ssim"]


def test_identical_images(pair):
    target = pair[0]
    assert mri.nmse(target, target) == 0 and mri.mae(target, target) == 0
    assert mri.ssim(target, target) == pytest.approx(1, abs=1e-12) and mri.psnr(target, target) == math.inf
    for loss in mri.LOSSES.values():
        assert float(loss(target, target)) == pytest.approx(0, abs=1e-6)


def test_data_range(pair):
    target, prediction = pair
    peak = float(target.max())
    assert mri.psnr(*pair, peak) == pytest.approx(mri.psnr(*pair), rel=1e-12)
    assert mri.psnr(*pair, 10 * peak) == pytest.approx(mri.psnr(*pair) + 20, rel=1e-12)
    assert mri.ssim(*pair, peak) == pytest.approx(mri.ssim(*pair), rel=1e-12)
    assert mri.ssim(*pair, 10 * peak) > mri.ssim(*pair)
    # the range is the volume's: a dark slice is judged in the units of the brightest
    dark = torch.cat([target[:1] / 100, target[1:]]), torch.cat([prediction[:1] / 100, prediction[1:]])
    assert mri.ssim(dark[0][:1], dark[1][:1]) < mri.ssim(dark[0][:1], dark[1][:1], peak) <= 1


@pytest.mark.parametrize("metric", mri.METRICS.values())
def test_shapes_must_agree(metric):
    with pytest.raises(mri.BadInput, match=r"\(2, 8, 8\).*\(2, 8, 9\)"):
        metric(torch.ones(2, 8, 8), torch.ones(2, 8, 9))
    with pytest.raises(mri.BadInput):
        metric(torch.ones(2, 8, 8), torch.ones(8, 8))  # would broadcast


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(mri.BadInput, match=r"7x7.*6x9"):
        mri.ssim(torch.ones(1, 6, 9), torch.ones(1, 6, 9))


@pytest.mark.parametrize("window", [1, 2, 3, 7, 8])
def test_window_sums_and_their_gradient(window, random):
    x = random(2, 9, 11, dtype=torch.float64).requires_grad_()
    plain = torch.nn.functional.avg_pool2d(x[:, None], window, 1)[:, 0] * window**2
    torch.testing.assert_close(mri._WindowSums.apply(x, window), plain, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: mri._WindowSums.apply(x, window), x)


@pytest.mark.parametrize("loss", mri.LOSSES)
def test_losses_lead_to_the_target(loss, pair):
    target, prediction = (x / 2 for x in pair)
    prediction.requires_grad_()
    before = mri.LOSSES[loss](prediction, target)
    before.backward()
    step = 0.01 * prediction.grad / prediction.grad.norm()
    assert mri.LOSSES[loss](prediction.detach() - step, target) < before.detach()


def test_bootstrap_and_summary():
    values = [0.7, 0.8, 0.9, 0.6]
    low, high = mri.bootstrap_interval(values)
    assert 0.5 < low < 0.75 < high < 1.0
    assert mri.bootstrap_interval(values) == (low, high)
    many = np.random.RandomState(1).standard_normal(50)
    assert mri.bootstrap_interval(many) == mri.bootstrap_interval(many) != mri.bootstrap_interval(many, seed=1)
    assert mri.bootstrap_interval([0.5]) == (0.5, 0.5)
    assert mri.summarize(values) == {"mean": pytest.approx(0.75), "ci95": [low, high]}
    assert mri.mean(iter(values)) == pytest.approx(0.75)
    wide = mri.bootstrap_interval(np.random.RandomState(0).standard_normal(10))
    narrow = mri.bootstrap_interval(np.random.RandomState(0).standard_normal(1000))
    assert narrow[1] - narrow[0] < 0.3 * (wide[1] - wide[0])
    for bad in ([], [[1.0, 2.0]]):
        with pytest.raises(mri.BadInput):
            mri.bootstrap_interval(bad)
