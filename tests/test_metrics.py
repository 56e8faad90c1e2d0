"""Section 7: losses and metrics, against fastMRI and scikit-image."""

import math

import numpy as np
import pytest
import torch

import mri_utils as mri
from mri_parts import metrics

IMAGE_LOSSES = ["l1", "l2", "ssim", "l1_ssim"]  # l1_ssim_motion needs frames, ssdu k-space


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
    assert list(mri.LOSSES) == ["l1", "l2", "ssim", "l1_ssim", "ssdu", "l1_ssim_motion"]


def test_identical_images(pair):
    target = pair[0]
    assert mri.nmse(target, target) == 0 and mri.mae(target, target) == 0
    assert mri.ssim(target, target) == pytest.approx(1, abs=1e-12) and mri.psnr(target, target) == math.inf
    for loss in map(mri.LOSSES.get, IMAGE_LOSSES):
        assert float(loss(target, target)) == pytest.approx(0, abs=1e-6)


def test_figures_of_some_pixels(pair):
    """With numpy, and with scikit-image's map of the SSIM."""
    metrics = pytest.importorskip("skimage.metrics")
    where = torch.zeros(3, 20, 23, dtype=torch.bool)
    where[0, 5:12, 6:9] = where[2, 1:19, 15:22] = True  # no pixel of the second slice
    x, y, chosen = (z.double().numpy() if z is not where else z.numpy() for z in (*pair, where))
    errors = (x - y)[chosen] ** 2
    assert mri.nmse(*pair, where=where) == pytest.approx(errors.sum() / (x[chosen] ** 2).sum(), rel=1e-12)
    assert mri.psnr(*pair, where=where) == pytest.approx(10 * np.log10(x.max() ** 2 / errors.mean()), rel=1e-12)
    options = {"data_range": x.max(), "full": True}
    maps = [metrics.structural_similarity(a, b, **options)[1][3:-3, 3:-3] for a, b in zip(x, y)]
    expected = np.mean([maps[s][chosen[s, 3:-3, 3:-3]].mean() for s in (0, 2)])
    assert mri.ssim(*pair, where=where) == pytest.approx(expected, rel=1e-9)
    for metric in (mri.ssim, mri.psnr, mri.nmse):
        assert metric(*pair, where=torch.ones_like(where)) == pytest.approx(metric(*pair), rel=1e-12)
    assert mri.ssim(*pair, where=torch.zeros_like(where)) == pytest.approx(mri.ssim(*pair), rel=1e-12)


def disc(rows, columns, radius, size=(96, 128)):
    y, x = np.mgrid[: size[0], : size[1]]
    return torch.from_numpy((y - rows) ** 2 + (x - columns) ** 2 <= radius**2)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.15])
def test_head_mask_finds_the_head(noise):
    """A head with dark ventricles, a bright spot in it, a bright coil beside it, at three noise levels."""
    head, ventricle, spot, coil = disc(50, 60, 32), disc(50, 60, 8), disc(40, 45, 4), disc(8, 118, 5)
    image = (0.5 * head + 0.5 * spot - 0.5 * ventricle + 1.0 * coil).numpy()
    random = np.random.RandomState(0).standard_normal((2, 3, *head.shape))
    scan = torch.from_numpy(np.hypot(image + noise * random[0], noise * random[1])).float()
    for found in mri.head_mask(scan):
        assert found.dtype == torch.bool and found[ventricle].all() and not found[coil].any()
        dice = 2 * (found & head).sum() / (found.sum() + head.sum())
        assert dice > 0.97
    assert mri.head_mask(7 * scan).equal(mri.head_mask(scan))


def test_head_mask_of_simulated_heads(tiny):
    """Nearly all tissue, hardly any air, of four contrasts under noise; the truth is the noise-free scan."""
    for volume in mri.read_folder(tiny / "train"):
        noisy = torch.stack([volume.target(s) for s in range(len(volume))])
        clean = torch.stack([mri.ifft2c(mri.noise_free(volume, s)) for s in range(len(volume))])
        clean = mri.center_crop(clean, volume.target_size).abs()
        found, loud, silent = mri.head_mask(noisy), clean > 0.2 * clean.amax(), clean < 0.002 * clean.amax()
        assert found[loud].float().mean() > 0.97 and silent[found].float().mean() < 0.03
        assert 0.15 < found.float().mean() < 0.6


def test_head_mask_of_real_heads(real):
    """At 0.055 T and at 3 T: one piece that touches no edge and holds nearly all of the energy above the air's."""
    files = [*(real / "brain_ulf_singlecoil" / "val").glob("*.h5"), *(real / "brain_3t_multicoil").glob("*.h5")]
    assert len(files) == 4
    for path in files:
        volume = mri.read_volume(path)
        target = torch.stack([volume.target(s) for s in range(len(volume))])
        found = mri.head_mask(target)
        assert 0.25 < found.float().mean() < 0.5
        air = target[~found].square().mean()
        share = (target.square() - air)[found].sum() / (target.square() - air).clamp(min=0).sum()
        assert share > 0.9 and target[found].median() > 4 * target[~found].median()


def test_head_mask_of_images_without_a_head():
    assert mri.head_mask(torch.ones(2, 16, 16)).all()
    assert mri.head_mask(torch.zeros(16, 16)).shape == (16, 16)
    black = torch.stack([torch.zeros(96, 128), 1.0 * disc(50, 60, 30)])
    assert not mri.head_mask(black)[0].any() and mri.head_mask(black)[1].any()


def test_measure(pair):
    target, prediction = pair
    row = mri.measure(target, prediction)
    assert list(row) == [*mri.METRICS, "ssim_head", "psnr_head", "nmse_head"]
    assert all(row[name] == metric(target, prediction) for name, metric in mri.METRICS.items())
    assert row["psnr_head"] == mri.psnr(target, prediction, where=mri.head_mask(target))
    truth = 0.9 * target
    more = mri.measure(target, prediction, truth=truth)
    assert more == row | {"psnr_truth": more["psnr_truth"], "nmse_truth": mri.nmse(truth, prediction)}
    assert more["psnr_truth"] == pytest.approx(mri.psnr(truth, prediction, float(target.max())), rel=1e-12)


def test_cells_and_shares_of_the_attainable():
    """Figures in the head are printed under the headings of the whole image; a metric of one's own keeps its name."""
    summary = {"mean": 0.5, "ci95": [0.25, 0.75]}
    found = {"ssim": summary, "nmse_truth": summary, "ssim_head": summary, "my_own": summary}
    assert mri.metric_cells(found) == {"SSIM": "0.500 [0.250, 0.750]", "MY_OWN": "0.5 [0.25, 0.75]"}
    assert mri.metric_cells(found, "head") == {"SSIM": "0.500 [0.250, 0.750]"}
    assert mri.metric_cells(found, "truth") == {"NMSE": "0.5000 [0.2500, 0.7500]"}
    assert mri.metric_cells({"ssim": summary}, "head") == {}
    methods = {
        name: {m: {"mean": value} for m in ("ssim", "nmse", "psnr_head", "psnr_truth")}
        for name, value in {"zero_filled": 0.5, "tv": 0.6, "attainable": 0.9, "unet": 0.8}.items()
    }
    shares = mri.attained(methods)
    assert shares["unet"] == {"ssim": pytest.approx(0.75), "psnr_head": pytest.approx(0.75)}
    assert shares["zero_filled"]["ssim"] == 0 and shares["attainable"]["ssim"] == 1
    del methods["attainable"]
    assert mri.attained(methods) == {}


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
    torch.testing.assert_close(metrics._WindowSums.apply(x, window), plain, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: metrics._WindowSums.apply(x, window), x)


@pytest.mark.parametrize("loss", IMAGE_LOSSES)
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
