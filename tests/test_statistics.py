"""Section 7: intervals, paired comparisons, corrections, and the conventions of metrics."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import mri_utils as mri

# figures per subject: symmetric; skewed to the left as SSIM is; four kinds of scan, each at its own level
KINDS = {
    "normal": (0.8, lambda rng, n: 0.8 + 0.05 * rng.standard_normal(n)),
    "skewed": (0.8, lambda rng, n: rng.beta(8, 2, n)),
    "four levels": (0.755, lambda rng, n: rng.choice([0.65, 0.72, 0.80, 0.85], n) + 0.02 * rng.standard_normal(n)),
}


@pytest.mark.parametrize("n", [12, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_intervals_hold_the_mean_95_times_of_100(kind, n):
    truth, draw = KINDS[kind]
    rng = np.random.RandomState(n)
    intervals = [mri.bootstrap_interval(draw(rng, n), repeats=1000, seed=i) for i in range(1000)]
    assert 0.93 <= np.mean([low < truth < high for low, high in intervals]) <= 0.97


def test_interval_of_very_few():
    """Normal figures of three subjects, as in a table by acquisition."""
    rng = np.random.RandomState(1)
    intervals = [mri.bootstrap_interval(rng.standard_normal(3), repeats=500, seed=i) for i in range(1000)]
    assert 0.93 <= np.mean([low < 0 < high for low, high in intervals]) <= 0.97


def test_paired_interval_over_subjects():
    """Three scans of each of 10 subjects: resampling scans alone would claim too much, by far."""
    rng = np.random.RandomState(0)
    subjects, hits, naive = np.repeat(np.arange(10), 3), 0, 0
    for _ in range(1000):
        person = 0.1 * rng.standard_normal(10)  # how much this person's scans gain; the truth is 0
        a, b = (rng.standard_normal(30) * 0.01 + level for level in (person[subjects], 0))
        low, high = mri.compare_paired(a, b, subjects)["ci95"]
        hits += low < 0 < high
        low, high = mri.bootstrap_interval(a - b, repeats=500)
        naive += low < 0 < high
    assert 0.93 <= hits / 1000 <= 0.97 and naive < 850


def test_subjects_of_one_scan_each_change_nothing():
    values = np.random.RandomState(0).standard_normal(9)
    assert mri.bootstrap_interval(values, subjects=np.arange(9)) == mri.bootstrap_interval(values)
    assert mri.bootstrap_interval([1.0, 3.0], subjects=["A", "A"]) == (2.0, 2.0)


def test_compare_paired():
    rng = np.random.RandomState(0)
    a, b = rng.standard_normal((2, 12)) + np.array([[0.5], [0]])
    found = mri.compare_paired(a, b)
    assert list(found) == ["mean", "ci95", "effect_size", "wilcoxon_p", "n"] and found["n"] == 12
    assert found["mean"] == pytest.approx(a.mean() - b.mean())
    assert tuple(found["ci95"]) == mri.bootstrap_interval(a - b)
    t = stats.ttest_rel(a, b).statistic  # = d_z sqrt(n)
    assert found["effect_size"] == pytest.approx(t / math.sqrt(12))
    assert found["wilcoxon_p"] == pytest.approx(stats.wilcoxon(a, b).pvalue)
    assert mri.compare_paired(b, a)["effect_size"] == pytest.approx(-found["effect_size"])
    same = mri.compare_paired([1, 2], [1, 2])
    assert same["effect_size"] is None and same["wilcoxon_p"] == 1 and same["ci95"] == [0, 0]
    assert mri.compare_paired([2.0], [1.0])["n"] == 1
    with pytest.raises(mri.BadInput, match="same volumes"):
        mri.compare_paired([1, 2], [1, 2, 3])


def test_holm():
    assert mri.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 x .01; 2 x .03; 1 x .04 < .06
    assert mri.holm([0.9, 0.5]) == [1, 1] and mri.holm([0.2]) == [0.2] and mri.holm([]) == []
    false = control = 0
    rng = np.random.RandomState(0)
    for _ in range(2000):  # ten methods that are all equal to the baseline
        p = rng.uniform(size=10)
        false, control = false + (p.min() < 0.05), control + (min(mri.holm(p)) < 0.05)
    assert false / 2000 > 0.35 and control / 2000 < 0.065


# --- conventions ------------------------------------------------------------------------------------


@pytest.fixture
def pair(random):
    """Twelve slices of different brightness, as volumes have, and a noisy reconstruction."""
    target = random(12, 24, 26, dtype=torch.float32).abs() * torch.linspace(0.2, 2, 12)[:, None, None]
    return target, target + 0.1 * random(12, 24, 26, dtype=torch.float32)


def by_name(rows):
    """(metric, who) -> value."""
    return {(row["metric"], row["who"]): row["value"] for row in rows}


def test_conventions_against_scikit_image(pair):
    metrics = pytest.importorskip("skimage.metrics")
    similarity, noise_ratio = metrics.structural_similarity, metrics.peak_signal_noise_ratio
    found = by_name(mri.metric_conventions(*pair))
    x, y = (z.double().numpy() for z in pair)
    peak, span = x.max(), x.max() - x.min()
    slices = list(zip(x, y))
    expected = {
        ("ssim", "fastMRI"): np.mean([similarity(s, p, data_range=peak) for s, p in slices]),
        ("ssim", "fastmri-reproducible-benchmark"): similarity(
            x.transpose(1, 2, 0), y.transpose(1, 2, 0), channel_axis=2, data_range=span
        ),
        ("ssim", "ResNet system"): np.mean([similarity(s, p, data_range=s.max()) for s, p in slices]),
        ("ssim", "super-resolution system"): np.mean([similarity(s / peak, p / peak, data_range=2) for s, p in slices]),
        ("ssim", "cine system"): similarity(
            x / peak, y / peak, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1
        ),
        ("psnr", "fastMRI"): noise_ratio(x, y, data_range=peak),
        ("psnr", "fastmri-reproducible-benchmark"): noise_ratio(x, y, data_range=span),
        ("psnr", "fastMRI pull request 130, per slice"): np.mean(
            [noise_ratio(s, p, data_range=s.max()) for s, p in slices]
        ),
        ("psnr", "scikit-image's default for floats"): np.mean([noise_ratio(s / peak, p / peak) for s, p in slices]),
        ("psnr", "cine system"): noise_ratio(x / peak, y / peak, data_range=1),
        ("nmse", "fastMRI"): metrics.normalized_root_mse(x, y) ** 2,
        ("nmse", "fastMRI pull request 130, per slice"): np.mean(
            [metrics.normalized_root_mse(s, p) ** 2 for s, p in slices]
        ),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name
    assert len({round(v, 6) for (metric, _), v in found.items() if metric == "ssim"}) == 5  # no two conventions agree


def test_conventions_against_fastmri(pair):
    evaluate = pytest.importorskip("fastmri.evaluate", reason="pip install --no-deps fastmri==0.3.0")
    found = by_name(mri.metric_conventions(*pair))
    x, y = (z.numpy().astype(float) for z in pair)
    for metric in ("ssim", "psnr", "nmse"):
        expected = float(np.squeeze(getattr(evaluate, metric)(x, y)))
        assert found[metric, "fastMRI"] == pytest.approx(expected, rel=1e-6)
    for metric in ("psnr", "nmse"):  # its functions, given one slice at a time
        expected = np.mean([getattr(evaluate, metric)(s[None], p[None]) for s, p in zip(x, y)])
        assert found[metric, "fastMRI pull request 130, per slice"] == pytest.approx(expected, rel=1e-6)


def test_conventions_need_volumes(pair):
    few = mri.metric_conventions(pair[0][:4], pair[1][:4])
    assert by_name(few)["ssim", "cine system"] is None and sum(row["value"] is None for row in few) == 1
    with pytest.raises(mri.BadInput, match="slices"):
        mri.metric_conventions(pair[0][0], pair[1][0])
