"""Chapter 20: the denoiser, plug and play, posterior samples, and the task that trains them."""

import pytest
import torch

import mri_utils as mri
import train


@pytest.fixture(scope="module")
def shipped():
    return mri.load_model(mri.ROOT / "checkpoints" / "denoiser.pt").network


@pytest.fixture(scope="module")
def head(tiny):
    """A whole slice of 48 x 48 pixels without its smooth phase, with a peak of 1; and another head's."""
    volumes = mri.read_folder(tiny / "val")
    images = [mri.ifft2c(v.cropped(0)[0]) * mri.smooth_phase(v.cropped(0)[0]).conj() for v in volumes]
    return [mri.center_crop(image / image.abs().max(), (48, 48)) for image in images]


def no_change(image, level):
    return image


def lines(image, acceleration=3):
    """K-space (1, H, W) of random lines, and their mask."""
    mask = mri.sampling_mask("random", image.shape, acceleration, 0.15, seed=1)
    return (mri.fft2c(image) * mask)[None], mask


def noise_like(image, level, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return level * torch.view_as_complex(torch.randn(*image.shape, 2, generator=generator))


@pytest.mark.parametrize("level", [0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
@torch.inference_mode()
def test_the_denoiser_lowers_the_error_at_each_level(level, shipped):
    """Heads of the size that it learned from; not all of the noise is left, and less of a stronger one."""
    kspace, _ = mri.simulate_head(91_000, "T2w", slices=1, matrix=160, width=160, noise=0)
    image = mri.ifft2c(mri.crop_readout(kspace[0], 160))
    image = image * mri.smooth_phase(mri.fft2c(image)).conj() / image.abs().max()
    left = (shipped((image + noise_like(image, level))[None], level)[0] - image).abs().square().mean().sqrt() / 2**0.5
    assert left < (0.8 if level < 0.05 else 0.55) * level


@pytest.mark.parametrize("size", [(48, 48), (37, 50), (16, 9)])
@torch.inference_mode()
def test_a_denoiser_has_no_biases_and_takes_any_size(size, random):
    torch.manual_seed(0)
    network = mri.Denoiser(features=8, blocks=1)
    image = random(2, *size)
    torch.testing.assert_close(network(image, 0.3), image)  # untrained, it changes nothing
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.1)
    out = network(image, 0.3)
    assert out.shape == image.shape and not torch.allclose(out, image)
    torch.testing.assert_close(network(5 * image, 1.5), 5 * out, rtol=1e-4, atol=1e-4)
    levels = torch.tensor([0.3, 0.1])
    alone = torch.cat([network(image[i : i + 1], float(levels[i])) for i in range(2)])
    torch.testing.assert_close(network(image, levels), alone, rtol=1e-4, atol=1e-4)
    assert not any("bias" in name for name, _ in network.named_parameters())


def test_levels_fall_by_one_factor():
    assert mri.noise_levels(0.8, 0.1, 4) == pytest.approx([0.8, 0.4, 0.2, 0.1])
    assert mri.noise_levels(0.8, 0.1, 1) == [0.8]


def test_without_a_change_plug_and_play_is_zero_filling(head):
    kspace, mask = lines(head[0])
    found = mri.plug_and_play(kspace, mask, no_change, iterations=3)
    torch.testing.assert_close(found, mri.ifft2c(kspace), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_mirrored_iterations(head):
    """A denoiser that adds a ramp along x sees four orientations in turn, and its answers are turned back."""
    kspace, mask = lines(head[0])
    ramp, changes, seen = torch.linspace(0, 1, head[0].shape[-1]), [], []

    def add_ramp(image, level):
        seen.append(image)
        return image + ramp

    def watch(clean, image, level):
        changes.append(clean)

    mri.plug_and_play(kspace, mask, add_ramp, iterations=4, mirror=True, watch=watch)
    turned = [(), (-1,), (-2,), (-2, -1)]
    for axes, before, after in zip(turned, seen, changes):
        added = after - before.flip(axes)
        expected = ramp.expand(head[0].shape).flip(axes) + 0j
        torch.testing.assert_close(added[0], expected, rtol=1e-3, atol=1e-4)
    one, other = (mri.plug_and_play(kspace, mask, no_change, iterations=5, mirror=m) for m in (False, True))
    torch.testing.assert_close(one, other)


@torch.inference_mode()
def test_plug_and_play_keeps_what_was_measured(head, shipped):
    kspace, mask = lines(head[0])
    seen = []
    found = mri.plug_and_play(kspace, mask, shipped, 4, watch=lambda *step: seen.append(step))
    torch.testing.assert_close(mri.fft2c(found) * mask, kspace, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, mri.ifft2c(kspace), atol=0.01)
    assert [level for *_, level in seen] == mri.noise_levels(0.4, 0.003, 4)
    scaled = mri.plug_and_play(7 * kspace, mask, shipped, 4)
    torch.testing.assert_close(scaled, 7 * found, rtol=1e-3, atol=1e-3)
    soft = mri.plug_and_play(kspace, mask, shipped, 4, noise=0.1)
    assert not torch.allclose(mri.fft2c(soft) * mask, kspace, atol=0.01)
    assert mri.plug_and_play(0 * kspace, mask, shipped, 2).abs().max() < 1e-30  # an empty slice stays empty


@torch.inference_mode()
def test_a_whole_scan_is_returned(head, shipped):
    kspace = mri.fft2c(head[0])[None]
    for mask in (None, torch.ones(48, dtype=bool)):
        found = mri.plug_and_play(kspace, mask, shipped, 3)
        torch.testing.assert_close(found[0], head[0], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_coils_come_as_an_acquisition(head, shipped, random):
    maps = random(3, 48, 48) + 2
    maps = maps / mri.rss(maps)
    A = mri.Acquisition(mri.sampling_mask("random", (48, 48), 3, 0.15, seed=1), maps)
    kspace = A(head[0])[None]
    found = mri.plug_and_play(kspace, A, shipped, 3)
    assert found.shape == (1, 48, 48)
    assert (A(found) - kspace).abs().max() < 0.02 * kspace.abs().max()
    still = mri.plug_and_play(kspace, A, lambda image, level: torch.zeros_like(image), 1)
    torch.testing.assert_close(still, mri.sense(kspace, A, 0.0), rtol=1e-2, atol=1e-2)


@torch.inference_mode()
def test_samples_agree_with_the_measurement_and_differ_elsewhere(head, shipped):
    kspace, mask = lines(head[0])
    samples = mri.posterior_samples(kspace[0], mask, shipped, count=3, steps=5)
    assert samples.shape == (3, 48, 48)
    spectra = mri.fft2c(samples)
    torch.testing.assert_close(spectra * mask, kspace.expand(3, -1, -1), rtol=1e-3, atol=1e-4)
    assert (spectra.std(0) * ~mask).norm() > 0.01 * kspace.norm()
    torch.testing.assert_close(mri.posterior_samples(kspace[0], mask, shipped, 3, 5), samples)
    assert not torch.allclose(mri.posterior_samples(kspace[0], mask, shipped, 3, 5, seed=1), samples)


def test_samples_of_a_normal_prior_have_its_posterior():
    """Of independent normal pixels the exact denoiser is a factor: unmeasured samples are then as wide as the prior."""
    spread, mask = 0.5, torch.arange(32) % 2 == 0
    kspace = mri.fft2c(spread * noise_like(torch.zeros(32, 32), 1.0)) * mask
    peak = float(mri.ifft2c(kspace).abs().max())  # the denoiser works in units of it
    exact = lambda image, level: image * spread**2 / (spread**2 + (peak * level) ** 2)  # noqa: E731
    samples = mri.posterior_samples(kspace, mask, exact, count=100, steps=100, first=4.0, last=0.001)
    free = torch.view_as_real(mri.fft2c(samples)[:, :, ~mask])
    assert float(free.std()) == pytest.approx(spread, rel=0.05) and abs(float(free.mean())) < 0.02


def test_the_exam_of_training_is_the_error_of_the_complex_image(head, monkeypatch):
    """What the loop's squared difference of magnitudes sees is the denoiser's error, weighed by its level."""
    network, seen = mri.PlugAndPlay(features=8, blocks=1).train(), []

    def halve(image, level):
        seen.append((image, level))
        return image / 2

    monkeypatch.setattr(network.network, "forward", halve)
    kspace = mri.fft2c(torch.stack(head))
    target = torch.stack(head).abs()
    torch.manual_seed(3)
    out = network(kspace, None, (48, 48))
    (noisy, level), clean = seen[0], mri.ifft2c(kspace) * mri.smooth_phase(kspace).conj()
    assert len(level) == 2 and (level >= 0.003).all() and (level <= 1).all()
    energies = (out - target).square().mean((1, 2)) * level / 0.1
    flips = [(), (-2,), (-1,), (-2, -1)]
    peak = clean.abs().amax((-2, -1), keepdim=True)
    possible = [(peak * (noisy / 2 - (clean / peak).flip(f))).abs().square().mean((1, 2)) for f in flips]
    assert any(torch.allclose(energies, p, rtol=1e-3) for p in possible)


def test_registration():
    assert mri.TASKS["denoising"].settings["model"] == "plug_and_play" and mri.model_axes("plug_and_play") == ("H", "W")
    assert mri.method_name("plug_and_play") == "plug and play"
    settings = mri.settle(train.defaults, {"task": "denoising"})
    assert settings.loss == "l2" and settings.train_accelerations == "1"
    for fault in ({"train_accelerations": "4"}, {"loss": "ssim"}):
        with pytest.raises(mri.BadInput, match=next(iter(fault))):
            mri.settle(train.defaults, {"task": "denoising"} | fault)


def test_the_shipped_denoiser_says_how_it_was_trained():
    path = mri.ROOT / "checkpoints" / "denoiser.pt"
    assert path.stat().st_size < 2_500_000
    content = mri.read_checkpoint(path)
    assert content["parameters"]["task"] == "denoising"
    assert sum(w.numel() for w in content["model_state"].values()) < 500_000


def test_a_tiny_training(tiny, tmp_path, quick_baselines):
    model = "plug_and_play(features=8, blocks=1, iterations=2)"
    settings = {"task": "denoising", "data": str(tiny), "model": model, "epochs": 3, "device": "cpu"}
    metrics = train.run(**settings, out=str(tmp_path / "run"))
    assert {"zero_filled", "tv", "phase_tv", "attainable", "plug_and_play"} == set(metrics["methods"])
    history = mri.read_checkpoint(tmp_path / "run" / "checkpoint.pt")["history"]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    network = mri.load_model(tmp_path / "run" / "checkpoint.pt")
    volumes = mri.read_folder(tiny / "val")
    scored = mri.score(network, mri.SliceDataset(volumes, "radial", 3.0, 0.1))
    assert len(scored.rows) == 2 and all(row["ssim"] > 0 for row in scored.rows)
