"""Section 6: the networks, against fastMRI's U-Net and against what they promise."""

import pytest
import torch

import mri_utils as mri

SIZES = [(48, 126), (33, 47), (64, 196), (16, 16), (21, 16)]


@pytest.fixture
def measured(random):
    """k-space (2, 33, 47) with zeros where the mask (47,) is false, and the mask."""
    mask = mri.sampling_mask("random", (47,), 3, 0.15, seed=0)
    return random(2, 33, 47) * mask, mask


def network(kind="unet", **changes):
    torch.manual_seed(0)
    built = mri.build_model({"model": kind, "features": 4, "levels": 2, "unknown": 1} | changes)
    for unet in getattr(built, "networks", []):
        torch.nn.init.normal_(unet.last.weight)  # off the zero start, as after training
    return built.eval()


def test_unet_is_fastmris_to_the_last_digit():
    models = pytest.importorskip("fastmri.models", reason="pip install --no-deps fastmri==0.3.0")
    torch.manual_seed(0)
    theirs, ours = models.Unet(1, 1, 32, 4).eval(), mri.UNet(1, 1, 32, 4).eval()
    parts = [*theirs.down_sample_layers, theirs.conv, *theirs.up_transpose_conv]
    parts += [up[0] if isinstance(up, torch.nn.Sequential) else up for up in theirs.up_conv] + [theirs.up_conv[-1][1]]
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), (p for part in parts for p in part.parameters()), strict=True):
            mine.copy_(other)  # refuses another shape
        x = torch.randn(2, 1, 64, 64)
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
        assert float(ours(x).abs().mean()) > 1e-3


def test_number_of_parameters():
    assert mri.count_parameters(mri.UNet(1, 1, 32, 4)) == 7_756_097
    frozen = mri.UNet(1, 1, 4, 2)
    before = mri.count_parameters(frozen)
    frozen.last.bias.requires_grad = False
    assert mri.count_parameters(frozen) == before - 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", mri.MODELS)
def test_any_size(kind, size, random):
    kspace = random(2, *size)
    crop = (size[0] - 3, min(size[1], 40))
    with torch.no_grad():
        result = network(kind)(kspace, torch.ones(size[1], dtype=torch.bool), crop)
        assert mri.UNet(3, 5, 4, 3)(torch.randn(1, 3, *size)).shape == (1, 5, *size)
    assert result.shape == (2, *crop) and torch.isfinite(result.abs()).all()
    assert result.is_complex() == (kind == "unet")


def test_dropout_only_in_training():
    torch.manual_seed(0)
    unet, x = mri.UNet(1, 1, 4, 2, dropout=0.5), torch.randn(1, 1, 16, 16)
    assert not torch.equal(unet(x), unet(x))
    unet.eval()
    assert torch.equal(unet(x), unet(x))


@pytest.mark.parametrize("cascades", [1, 2])
def test_training_starts_from_the_zero_filled_image(measured, cascades):
    kspace, mask = measured
    fresh = mri.build_model({"model": "unet", "features": 4, "levels": 2, "cascades": cascades})
    assert len(fresh.networks) == cascades
    zero_filled = mri.zero_filled(kspace, mask, (33, 40))
    assert torch.allclose(fresh(kspace, mask, (33, 40)), zero_filled, atol=1e-5)


@pytest.mark.parametrize("cascades", [1, 2])
def test_data_consistency(measured, cascades):
    kspace, mask = measured
    with torch.no_grad():
        result = mri.fft2c(network(cascades=cascades)(kspace, mask, kspace.shape[-2:]))
        free = mri.fft2c(network(cascades=cascades, data_consistency=False)(kspace, mask, kspace.shape[-2:]))
    peak = float(kspace.abs().max())
    assert float((result - kspace)[..., mask].abs().max()) < 1e-6 * peak
    assert float((free - kspace)[..., mask].abs().max()) > 1e-2 * peak
    assert float(result[..., ~mask].abs().max()) > 1e-2 * peak  # what was not measured is filled
    if cascades == 1:
        assert torch.allclose(result[..., ~mask], free[..., ~mask], atol=1e-5 * peak)


@pytest.mark.parametrize("kind", mri.MODELS)
def test_units_do_not_matter(measured, kind):
    kspace, mask = measured
    with torch.no_grad():
        one, small = (network(kind)(k, mask, (32, 40)) for k in (kspace, kspace * 2**-20))
    assert torch.allclose(small * 2**20, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


@pytest.mark.parametrize("kind", mri.MODELS)
def test_slices_of_a_batch_do_not_mix(measured, kind):
    kspace, mask = measured
    with torch.no_grad():
        both, alone = network(kind)(kspace, mask, (32, 40)), network(kind)(kspace[1:], mask, (32, 40))
    assert torch.allclose(both[1:], alone, atol=1e-5)


def test_kspace_without_a_centre(measured):
    """Where the centre of k-space holds nothing there is no phase to remove, and nothing becomes NaN."""
    kspace, mask = torch.zeros_like(measured[0]), measured[1] | True
    kspace[:, 0, 0] = 1
    assert torch.allclose(mri.smooth_phase(kspace).abs(), torch.ones(kspace.shape))
    with torch.no_grad():
        assert torch.isfinite(network()(kspace, mask, (32, 40)).abs()).all()


def test_normalize_is_fastmris(golden):
    target = torch.from_numpy(golden["target"])[0]
    result, mean, std = mri.normalize(target)
    assert mean.shape == std.shape == (1, 1)
    assert float(mean) == pytest.approx(float(golden["mean"]), rel=1e-6)
    assert float(std) == pytest.approx(float(golden["std"]), rel=1e-6)
    assert torch.allclose(result, torch.from_numpy(golden["normalized"]), rtol=1e-5, atol=1e-6)
    assert torch.allclose(result * std + mean, target, atol=1e-5)
    clamped = mri.normalize(target, 0.5)[0]
    assert torch.equal(clamped, result.clamp(-0.5, 0.5)) and float(clamped.max()) == 0.5


def test_magnitude_unet_sees_fastmris_input(golden):
    """The normalised crop of the zero-filled magnitude goes in; mean and deviation are put back."""
    target = torch.from_numpy(golden["target"])
    seen = {}

    class Echo(torch.nn.Module):
        def forward(self, x):
            seen["x"] = x
            return x

    echo = network("magnitude_unet")
    echo.network = Echo()
    kspace = mri.fft2c(torch.nn.functional.pad(target, (3, 3, 8, 8)) * (0.6 + 0.8j))
    result = echo(kspace, torch.ones(70, dtype=torch.bool), (64, 64))
    assert seen["x"].shape == (4, 1, 64, 64)
    assert torch.allclose(seen["x"][0, 0], torch.from_numpy(golden["normalized"]), atol=1e-4)
    assert torch.allclose(result, target, atol=1e-4)


def test_magnitude_unet_clamps(random):
    seen, kspace = [], mri.fft2c(torch.zeros(1, 32, 32) + torch.eye(32)[5] * torch.eye(32)[5][:, None])
    model = network("magnitude_unet")
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(kspace, torch.ones(32, dtype=torch.bool), (32, 32))
    assert float(seen[0].max()) == 6


def test_channels_are_real_and_imaginary(random):
    image = random(2, 5, 6)
    channels = mri.as_channels(image)
    assert channels.shape == (2, 2, 5, 6)
    assert torch.equal(channels[:, 0], image.real) and torch.equal(channels[:, 1], image.imag)
    assert torch.equal(mri.as_complex(channels), image)
    assert mri.as_complex(channels.bfloat16()).dtype == torch.complex64


def test_build_model_takes_what_it_knows():
    assert isinstance(network("magnitude_unet"), mri.MagnitudeUNet)
    unet = network(cascades=3, dropout=0.25)
    assert len(unet.networks) == 3 and unet.networks[0].down[0][3].p == 0.25
    with pytest.raises(mri.BadInput, match=r"^unknown model 'unett', did you mean 'unet'\? .*magnitude_unet"):
        mri.build_model({"model": "unett"})
    with pytest.raises(mri.BadInput, match=r"unknown colour 'x' .*red") as error:
        mri.choose({"red": 1}, "x", "colour")
    assert "mean" not in str(error.value) and "\n" not in str(error.value)


def test_smooth_phase_follows_the_image():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 320), torch.linspace(-1, 1, 256), indexing="ij")
    magnitude = torch.exp(-4 * (x**2 + y**2))
    phase = torch.exp(1j * (0.7 + 0.4 * x - 0.3 * y))
    found = mri.smooth_phase(mri.fft2c(magnitude * phase))
    inside = magnitude > 0.1
    assert found.abs()[inside].sub(1).abs().max() < 1e-5
    assert torch.angle(found * phase.conj())[inside].abs().max() < 0.05
    # the phase of the whole image turns along
    turned = mri.smooth_phase(mri.fft2c(1j * magnitude * phase))
    assert torch.allclose(turned[inside], 1j * found[inside], atol=1e-5)
