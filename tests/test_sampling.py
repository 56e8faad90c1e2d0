"""Sampling compared fairly: equal numbers of samples, point-spread functions, and k-space off the grid."""

import importlib.util
import math

import numpy as np
import pytest
import torch

import mri_utils as mri

needs_finufft = pytest.mark.skipif(not importlib.util.find_spec("finufft"), reason="pip install finufft")
WIDTHS = (160, 176, 368, 372)


@pytest.fixture(params=["finufft", "sum"])
def engine(request, monkeypatch):
    """Both ways in which nufft may be computed."""
    find = importlib.util.find_spec
    if request.param == "sum":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "finufft" else find(name))
    elif not find("finufft"):
        pytest.skip("pip install finufft")
    return request.param


def points(count, size, seed=1):
    """Random places in k-space, (count, 2), in cycles per field of view."""
    return (torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) - 0.5) * torch.tensor(size)


def explicit_sum(image, trajectory):
    """The definition, one pixel at a time."""
    height, width = image.shape
    samples = torch.zeros(len(trajectory), dtype=torch.complex128)
    for row in range(height):
        for column in range(width):
            turns = trajectory[:, 0] * (row - height // 2) / height + trajectory[:, 1] * (column - width // 2) / width
            samples += image[row, column] * torch.exp(-2j * math.pi * turns.double())
    return samples / math.sqrt(height * width)


# --- equal numbers of samples ----------------------------------------------------------------------


@pytest.mark.parametrize("effective, fraction", [(4, 0.08), (3, 0.1), (8, 0.04), (5.5, 0.06)])
@pytest.mark.parametrize("kind", mri.mask_kinds("H", "W"))
def test_as_many_samples_as_asked_for(kind, effective, fraction):
    sampling = mri.matched_sampling(kind, effective, fraction)
    for width in WIDTHS:
        shape, seeds = ((width, width), 1) if "H" in mri.MASKS[kind].axes else ((width,), 300)
        masks = [mri.sampling_mask(kind, shape, *sampling, seed) for seed in range(seeds)]
        kept = mri.mean(float(mask.float().mean()) for mask in masks)
        # the centre and magic_fraction's step are rounded to lines; spokes and arms come whole
        allowed = max(1.1 / width * (1 + (kind == "magic_fraction")), 0.02 / effective)
        assert abs(kept - 1 / effective) < allowed, (width, 1 / kept)


def test_the_centre_stays_near_the_one_asked_for():
    for kind in ("equispaced", "magic", "magic_fraction", "grappa"):
        acceleration, center = mri.matched_sampling(kind, 4, 0.08)
        assert center == pytest.approx(1 / 16)  # 1/16 and every 5th of the other 15/16: 1/16 + 3/16 = 1/4
        assert acceleration == (pytest.approx(1 / (1 / 16 + 1 / 5)) if kind == "magic_fraction" else 5)
    assert mri.matched_sampling("grappa", 4, 0.11)[1] == pytest.approx(0.1)  # 1/10 + 9/10/6 = 1/4
    assert mri.matched_sampling("random", 4, 0.08) == (4, 0.08)
    for kind in mri.mask_kinds("W"):  # nothing left out
        sampling = mri.matched_sampling(kind, 1, 0.5)
        assert mri.sampling_mask(kind, (64,), *sampling, seed=0).sum() >= 63  # fastMRI's grid stops one early


def test_impossible_numbers_are_one_clear_line():
    with pytest.raises(mri.BadInput, match="unknown mask kind"):
        mri.matched_sampling("spokes", 4, 0.08)
    with pytest.raises(mri.BadInput, match=r"impossible with center_fraction 0\.3: use at most 3\.33"):
        mri.matched_sampling("grappa", 4, 0.3)
    with pytest.raises(mri.BadInput, match=r"acceleration 0\.5"):
        mri.matched_sampling("random", 0.5, 0.08)


def test_point_spread_is_what_zero_filling_makes_of_a_point():
    mask = mri.sampling_mask("radial", (40, 60), 3, 0.08, seed=2)
    image = torch.zeros(40, 60, dtype=torch.complex64)
    image[20, 30] = 5
    blurred = mri.ifft2c(mri.fft2c(image) * mask).abs()
    assert torch.allclose(mri.point_spread(mask, (40, 60)), blurred / blurred[20, 30], atol=1e-6)


def test_point_spread_of_a_grid_has_equal_copies():
    """Every fourth line: four copies as strong as the point, a quarter of the width apart (from the definition)."""
    spread = mri.point_spread(torch.arange(64) % 4 == 0, (48, 64))
    assert torch.nonzero(spread > 1e-4).tolist() == [[24, column] for column in (0, 16, 32, 48)]
    assert torch.allclose(spread[24, ::16], torch.ones(4), atol=1e-5)


# --- off the grid ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (9, 5)])
def test_nufft_is_the_sum_that_defines_it(engine, random, size):
    image, trajectory = random(*size), points(50, size)
    expected = explicit_sum(image.to(torch.complex128), trajectory)
    samples = mri.nufft(image, trajectory)
    assert samples.dtype == torch.complex64
    assert (samples - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_adjoint_is_the_sum_that_defines_it(engine, random, size):
    samples, trajectory = random(30), points(30, size)
    # column by column: the adjoint's matrix is the conjugate transpose of the forward matrix
    unit = torch.eye(size[0] * size[1], dtype=torch.complex128).reshape(-1, *size)
    matrix = torch.stack([explicit_sum(pixel, trajectory) for pixel in unit], dim=1)
    expected = (matrix.mH @ samples.to(torch.complex128)).reshape(size)
    image = mri.nufft_adjoint(samples, trajectory, size)
    assert image.dtype == torch.complex64 and image.shape == size
    assert (image - expected).abs().max() < 1e-5 * expected.abs().max()


def test_forward_and_adjoint_belong_together(engine, random):
    size, trajectory = (64, 48), points(6 * 100, (64, 48)).reshape(6, 100, 2)
    image, samples = random(*size), random(6, 100)
    forward, adjoint = mri.nufft(image, trajectory), mri.nufft_adjoint(samples, trajectory, size)
    assert forward.shape == (6, 100)
    left, right = (forward.conj() * samples).sum(), (image.conj() * adjoint).sum()
    assert abs(left - right) < 1e-5 * forward.norm() * samples.norm()


@pytest.mark.parametrize("size", [(32, 48), (31, 45)])
def test_on_the_grid_it_is_the_fourier_transform(engine, random, size):
    image = random(*size)
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) - n // 2 for n in size), indexing="ij"), dim=-1)
    assert torch.allclose(mri.nufft(image, grid), mri.fft2c(image), atol=1e-5)
    assert torch.allclose(mri.nufft_adjoint(mri.fft2c(image), grid, size), image, atol=1e-5)


def test_far_out_it_is_as_exact_as_in_the_middle(engine, random):
    """At the corners a phase is hundreds of radians: rounded to float32 it would cost three digits."""
    image = random(300, 372)
    corners = torch.tensor([[-150.0, -186], [149, 185], [-150, 185], [149, -186]])
    expected = mri.fft2c(image.to(torch.complex128))[[0, -1, 0, -1], [0, -1, -1, 0]]
    assert (mri.nufft(image, corners) - expected).abs().max() < 1e-6 * expected.abs().max()


def test_against_sigpy(engine, random):
    sigpy = pytest.importorskip("sigpy")
    size = (64, 64)
    image, trajectory = random(*size), points(2000, size)
    theirs = sigpy.nufft(image.numpy(), trajectory.numpy(), oversamp=2, width=6)
    ours = mri.nufft(image, trajectory).numpy()
    assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)
    theirs = sigpy.nufft_adjoint(ours, trajectory.numpy(), size, oversamp=2, width=6)
    ours = mri.nufft_adjoint(torch.from_numpy(ours), trajectory, size).numpy()
    assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)


@needs_finufft
def test_both_engines_agree_on_a_scan(monkeypatch, random):
    """At the size of the notebook, where the sum is in single precision and long."""
    image, trajectory = random(160, 160), points(5000, (160, 160))
    fast = mri.nufft(image, trajectory)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "finufft" else find(name))
    assert (mri.nufft(image, trajectory) - fast).norm() < 1e-5 * fast.norm()
