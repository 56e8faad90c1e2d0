"""Section 6: the networks, against fastMRI's U-Net and against what they promise."""

import contextlib
import math
import re
import time

import pytest
import torch

import mri_utils as mri

# test_cine.py and test_coils.py have the others
IMAGE_MODELS = ("unet", "magnitude_unet", "resnet", "alexnet", "recon_resnet", "kspace_unet", "unrolled")

SMALL = {"features": 4, "levels": 2, "stages": "1x2 1x3"}
CONSISTENT = ["unet", "recon_resnet", "kspace_unet", "unrolled", "kspace_sr"]  # they put the measured samples back
SIZES = [(48, 126), (33, 47), (64, 196), (16, 16), (21, 16)]


@pytest.fixture
def measured(random):
    """k-space (2, 33, 47) with zeros where the mask (47,) is false, and the mask."""
    mask = mri.sampling_mask("random", (47,), 3, 0.15, seed=0)
    return random(2, 33, 47) * mask, mask


def small(kind, **changes):
    """The call of a small network of a kind."""
    inner = {"inner": changes["inner"]} if "inner" in changes else {}
    has = mri.model_arguments(mri.write_call(kind, inner))
    return mri.write_call(kind, {name: value for name, value in SMALL.items() if name in has} | changes)


def network(kind="unet", **changes):
    """A small network of a kind, off the zero start, as after training."""
    torch.manual_seed(0)
    built = mri.build_model(small(kind, **changes))
    for weight in built.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
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
@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_any_size(kind, size, random):
    kspace = random(2, *size)
    crop = (size[0] - 3, min(size[1], 40))
    with torch.no_grad():
        result = network(kind)(kspace, torch.ones(size[1], dtype=torch.bool), crop)
        assert mri.UNet(3, 5, 4, 3)(torch.randn(1, 3, *size)).shape == (1, 5, *size)
    assert result.shape == (2, *crop) and torch.isfinite(result.abs()).all()
    assert result.is_complex() == (kind in CONSISTENT)


def test_too_many_levels_are_told():
    assert mri.UNet(1, 1, 2, 3)(torch.ones(1, 1, 7, 9)).shape == (1, 1, 7, 9)
    with pytest.raises(mri.BadInput, match="levels 4: images of 13x16 cannot be halved so often: use fewer"):
        mri.UNet(1, 1, 2, 4)(torch.ones(1, 1, 13, 16))


def test_dropout_only_in_training():
    torch.manual_seed(0)
    unet, x = mri.UNet(1, 1, 4, 2, dropout=0.5), torch.randn(1, 1, 16, 16)
    assert not torch.equal(unet(x), unet(x))
    unet.eval()
    assert torch.equal(unet(x), unet(x))


@pytest.mark.parametrize("kind", ["unet", "recon_resnet", "kspace_unet", "unrolled", "resnet"])
def test_training_starts_from_the_zero_filled_image(measured, kind):
    kspace, mask = measured
    fresh = mri.build_model(small(kind)).eval()
    image, start = fresh(kspace, mask, (33, 40)), mri.zero_filled(kspace, mask, (33, 40))
    if kind == "resnet":  # which sees magnitudes, clamped to six standard deviations
        start = start.abs()
    assert torch.allclose(image, start, atol=1e-5)


@pytest.mark.parametrize("cascades", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_cascades(measured, cascades, shared):
    """Each cascade takes what the one before made; shared weights are one network applied again."""
    kspace, mask = measured
    unrolled = network("unrolled", cascades=cascades, shared=shared)
    assert len(unrolled.networks) == (1 if shared else cascades)
    image = mri.ifft2c(kspace)
    scale = image.abs().amax((-2, -1), keepdim=True) * mri.smooth_phase(kspace)
    with torch.no_grad():
        for i in range(cascades):
            step = unrolled.networks[0 if shared else i](mri.as_channels(image / scale))
            image = mri.ifft2c(torch.where(mask, kspace, mri.fft2c(image + scale * mri.as_complex(step))))
        result = unrolled(kspace, mask, kspace.shape[-2:])
    assert torch.allclose(result, image, atol=1e-5)
    assert not torch.allclose(image, mri.ifft2c(kspace), atol=1e-2)


def test_memory_is_handed_from_cascade_to_cascade(measured):
    """Beside the image, whose channels come first; the first cascade remembers nothing."""
    kspace, mask = measured
    unrolled = network("unrolled", cascades=2, memory=3)
    image = mri.ifft2c(kspace)
    scale = image.abs().amax((-2, -1), keepdim=True) * mri.smooth_phase(kspace)
    kept = torch.zeros(2, 3, *kspace.shape[-2:])
    with torch.no_grad():
        for inner in unrolled.networks:
            answer = inner(torch.cat([mri.as_channels(image / scale), kept], 1))
            step, kept = mri.as_complex(answer[:, :2]), answer[:, 2:]
            image = mri.ifft2c(torch.where(mask, kspace, mri.fft2c(image + scale * step)))
        assert kept.shape[1] == 3 and kept.any()
        assert torch.allclose(unrolled(kspace, mask, kspace.shape[-2:]), image, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_shuffled_pixels_are_channels(size, random):
    """A ResNet on squares of pixels is the same ResNet on the four images of which the squares consist."""
    shuffled = mri.inner_network("resnet(features=4, stages='1x2', shuffle=2)", 2, 2)
    for weight in shuffled.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    x = random(1, 2, *size).real
    padded = torch.nn.functional.pad(x, (0, size[1] % 2, 0, size[0] % 2), mode="replicate")
    corners = [padded[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
    stacked = torch.stack(corners, 2).flatten(1, 2)
    with torch.no_grad():
        y = shuffled.last(shuffled.blocks(shuffled.first(stacked))).unflatten(1, (2, 4))
        expected = torch.zeros(1, 2, *padded.shape[-2:])
        for corner, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            expected[..., i::2, j::2] = y[:, :, corner]
        assert torch.allclose(shuffled(x), expected[..., : size[0], : size[1]], atol=1e-6)


@pytest.mark.parametrize("kind", CONSISTENT)
@pytest.mark.parametrize("inner", ["unet", "resnet", "recon_resnet", "alexnet", "srresnet"])  # those for single images
def test_hard_consistency_returns_the_measured_samples(measured, kind, inner):
    kspace, mask = measured
    with torch.no_grad():
        result = mri.fft2c(network(kind, inner=inner)(kspace, mask, kspace.shape[-2:]))
    peak = float(kspace.abs().max())
    assert float((result - kspace)[..., mask].abs().max()) < 1e-6 * peak
    assert float(result[..., ~mask].abs().max()) > 1e-2 * peak  # what was not measured is filled


def test_soft_consistency_is_a_learned_step(measured):
    kspace, mask = measured
    soft, free, hard = (network(consistency=c) for c in ("soft", "none", "hard"))
    for other in (free, hard):
        other.load_state_dict(soft.state_dict(), strict=False)
    with torch.no_grad():
        soft.step.fill_(math.log(3))  # sigmoid: 3/4, a noise weight of 3
        k_soft, k_free, k_hard = (mri.fft2c(n(kspace, mask, kspace.shape[-2:])) for n in (soft, free, hard))
    peak = float(kspace.abs().max())
    assert torch.allclose(k_soft[..., mask], (k_free + 3 * kspace)[..., mask] / 4, atol=1e-5 * peak)
    assert torch.allclose(k_soft[..., ~mask], k_hard[..., ~mask], atol=1e-5 * peak)
    assert float((k_free - kspace)[..., mask].abs().max()) > 1e-2 * peak
    soft(kspace, mask, kspace.shape[-2:]).abs().sum().backward()
    assert soft.step.grad.abs().min() > 0


def test_the_two_readings_of_the_resnet():
    """8 blocks of 2 and 4 of 3 convolutions, or 12 of 2, which has the 1.78 million weights of the source."""
    one, other = (mri.build_model(f"resnet(stages={stages!r})") for stages in ("8x2 4x3", "12x2"))
    convolutions = [sum(isinstance(m, torch.nn.Conv2d) for m in n.network.blocks.modules()) for n in (one, other)]
    assert convolutions == [28, 24]
    assert mri.count_parameters(other) == pytest.approx(1.78e6, rel=0.01)
    assert one.network.first[0].out_channels == 64 and len(one.network.blocks) == len(other.network.blocks) == 12
    with pytest.raises(mri.BadInput, match=r"stages '8x': write blocks x layers, such as '8x2 4x3'"):
        mri.build_model("resnet(stages='8x')")


def test_recon_resnet_has_the_published_shape():
    wide = mri.ReconResNet(2, 2, 64, "34x2", dropout=0.2)
    blocks = [m for m in wide.layers if isinstance(m, mri.ResidualBlock)]
    assert len(blocks) == 34 and all(b.body[0].in_channels == 256 for b in blocks)
    assert [m.p for m in blocks[0].body if isinstance(m, torch.nn.Dropout2d)] == [0.2]
    assert wide.layers[0].kernel_size == wide.last.kernel_size == (7, 7)
    strides = [m.stride for m in wide.layers if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    assert strides == [(1, 1), (2, 2), (2, 2), (2, 2), (2, 2)]


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (7, 8)])
def test_kspace_network_sees_conjugate_partners(size, random):
    """For a real image the mirrored channels are the conjugates: equal to the k-space itself."""
    seen = {}

    class Spy(torch.nn.Module):
        def forward(self, x):
            seen["x"] = x
            return x[:, :2] * 0

    model = network("kspace_unet")
    model.network = Spy()
    y, x = (torch.linspace(-1, 1, n) for n in size)
    kspace = mri.fft2c(torch.exp(-4 * (y[:, None] ** 2 + x**2))[None] + 0j)
    mask = torch.rand(size[1], generator=torch.Generator().manual_seed(1)) < 0.5
    mask[0], mask[-1] = True, size[1] % 2 == 0
    model(kspace, torch.ones(size[1], dtype=torch.bool), size)
    assert torch.allclose(seen["x"][:, :2], seen["x"][:, 3:5], atol=1e-4)
    model(kspace * mask, mask, size)
    columns = torch.arange(size[1])
    partner = (2 * (size[1] // 2) - columns) % size[1]
    assert torch.equal(seen["x"][0, 2, 0].bool(), mask) and torch.equal(seen["x"][0, 5, 0].bool(), mask[partner])


def test_discriminator_scores_patches(random):
    torch.manual_seed(0)
    discriminator = mri.PatchDiscriminator()
    image, given = (random(2, 64, 64, dtype=torch.float32) for _ in range(2))
    scores = discriminator(image, given)
    assert scores.shape == (2, 1, 7, 7)
    moved = image.clone()
    moved[:, :4, :4] += 1  # far from the last patch, near the first
    change = (discriminator.eval()(moved, given) - discriminator(image, given)).abs()[0, 0]
    assert change[0, 0] > 0 and change[-1, -1] == 0


def test_alexnet_has_the_weights_of_its_five_convolutions():
    widths, sides = [1, 96, 256, 384, 384, 256], [11, 5, 3, 3, 3]
    expected = sum(b * (a * side**2 + 1) for a, b, side in zip(widths[:-1], widths[1:], sides)) + 16 * (256 + 1)
    assert mri.count_parameters(mri.build_model("alexnet")) == expected


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_units_do_not_matter(measured, kind):
    kspace, mask = measured
    with torch.no_grad():
        one, small = (network(kind)(k, mask, (32, 40)) for k in (kspace, kspace * 2**-14))
    assert torch.allclose(small * 2**14, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


@pytest.mark.parametrize("kind", IMAGE_MODELS)
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
    assert isinstance(network("magnitude_unet"), mri.MagnitudeNetwork)
    unet = network(cascades=3, dropout=0.25)
    assert len(unet.networks) == 3 and unet.networks[0].down[0][3].p == 0.25
    with pytest.raises(mri.BadInput, match=r"^unknown model 'unett', did you mean 'unet'\? .*magnitude_unet"):
        mri.build_model("unett")
    with pytest.raises(mri.BadInput, match="unknown argument of model unet 'frames'"):
        mri.build_model("unet(frames=5)")
    with pytest.raises(mri.BadInput, match=r"unknown start 'view_sharing' .*zero_filled, phase_tv"):
        mri.build_model("unet(start='view_sharing')")
    with pytest.raises(mri.BadInput, match="unknown argument of start phase_tv 'wieght', did you mean 'weight'"):
        mri.build_model("unet(start='phase_tv(wieght=1)')")
    with pytest.raises(mri.BadInput, match="unknown consistency 'sense'"):
        mri.build_model("unet(consistency='sense')")
    with pytest.raises(mri.BadInput, match=r"unknown argument of model resnet 'levels'"):
        mri.build_model("resnet(levels=3)")
    with pytest.raises(mri.BadInput, match=r"unknown argument of model magnitude_unet 'consistency'"):
        mri.build_model("magnitude_unet(consistency='hard')")
    with pytest.raises(mri.BadInput, match=r"unknown inner network 'vit'"):
        mri.build_model("unrolled(inner='vit')")
    with pytest.raises(mri.BadInput, match=r"unknown consistency 'firm'"):
        mri.build_model("unrolled(consistency='firm')")
    with pytest.raises(mri.BadInput, match=r"unknown colour 'x' .*red") as error:
        mri.choose({"red": 1}, "x", "colour")
    assert "mean" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("unet(levels=999999999)", "levels 999999999: use a number from 0 to 10000"),
        ("unet(inner='unet(levels=999999999)')", "levels 999999999: use a number from 0 to 10000"),
        ("unet(levels=10000)", "more than the 1,000,000,000 weights"),
        ("unet(features=10000)", "more than the 1,000,000,000 weights"),
        ("unrolled(cascades=10000, features=1, levels=1)", "more than 5,000 layers"),
        ("unet(levels=-3)", "levels -3: use a number from 0"),
        ("unet(features=1e12)", "cannot be built"),
        ("unet(cascades=0)", "a network without weights"),
        ("unet(features=0)", "a network without weights, or with empty ones"),
    ],
)
def test_networks_that_are_too_large_are_refused_at_once(call, told):
    start = time.perf_counter()
    with pytest.raises(mri.BadInput, match=told) as error:
        mri.build_model(call)
    assert time.perf_counter() - start < 20  # some seconds
    assert "\n" not in str(error.value)


def test_the_bound_on_networks_holds_for_any_class_and_ends_with_the_building(monkeypatch):
    class Wide(torch.nn.Module):
        def __init__(self, times=10_000, look=False):
            super().__init__()
            assert not look or torch.ones(1).item() == 1.0  # impossible without memory
            self.weight = torch.nn.Parameter(torch.empty(times, 1_000_000, device="meta"))

    monkeypatch.setitem(mri.MODELS, "wide", Wide)
    for call in ("wide", "wide(look=True)"):
        with pytest.raises(mri.BadInput, match="^model '" + re.escape(call) + "': more than the 1,000,000,000 weights"):
            mri.build_model(call)
        with pytest.raises(mri.BadInput, match="more than the 999,999 weights"):
            mri.build_model("wide(times=1)", most=999_999)
    assert mri.build_model("wide(times=1, look=True)", most=1_000_000).weight.numel() == 1_000_000
    assert Wide(1_100).weight.numel() > 10**9  # outside of build_model nothing is counted


def test_building_draws_each_random_number_once():
    torch.manual_seed(0)
    built = mri.build_model("unet(features=2, levels=1)")
    torch.manual_seed(0)
    direct = mri.MODELS["unet"](features=2, levels=1)
    assert all(torch.equal(a, b) for a, b in zip(built.state_dict().values(), direct.state_dict().values()))


def test_a_misspelled_setting_is_refused():
    for model in ("unrolled", "magnitude_unet", "kspace_unet"):
        with pytest.raises(
            mri.BadInput, match=rf"unknown argument of model {model} 'featurs', did you mean 'features'"
        ):
            mri.build_model(f"{model}(featurs=8)")


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


@pytest.mark.parametrize("name", [name for name in mri.MODELS if name != "modl"])  # ESPIRiT asks for values
def test_a_training_step_stays_on_its_device_and_never_waits(name, monkeypatch):
    """Tensors without content stand in for a GPU: one made elsewhere raises, and so does asking for a value."""
    task = next(task for task in mri.TASKS if mri.TASKS[task].axes[1:] == mri.model_axes(name))
    stack = {"cine": (5,), "multi_coil": (3,)}.get(task, ())
    with torch.device("meta"):
        kspace, mask = torch.zeros(2, *stack, 32, 24, dtype=torch.complex64), torch.ones(2, *stack, 1, 24).bool()
        target = torch.zeros(2, *stack * (task == "cine"), 32, 24)
        batch = mri.Sample(kspace, mask, target, *(torch.ones(2) for _ in range(4)), axes=mri.TASKS[task].axes[1:])
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it does not know the device
    # it does ask, once: how many central lines
    monkeypatch.setattr("mri_parts.coils.low_resolution", lambda kspace, mask: kspace)
    network = mri.build_model(small(name)).to("meta")
    image = mri.reconstruct(network, batch)
    assert image.device.type == "meta" and image.shape == target.shape
    optimizer = torch.optim.Adam(network.parameters())
    mri.step_hooks(optimizer, network, clip=1.0, ema=0.0)
    losses = [
        loss(image / batch.peak, target / batch.peak)
        for name, loss in mri.LOSSES.items()
        if task == "cine" or "motion" not in name
    ]
    (sum(losses) + mri.roughness(image)).backward()
    optimizer.step()
    assert mri.reconstruct(mri.TASKS[task].start[1], batch).shape == target.shape


@pytest.mark.parametrize(
    "call, start",
    [
        ("unet", lambda kspace, mask: mri.ifft2c(kspace)),
        ("unet(start='phase_tv')", lambda kspace, mask: mri.total_variation(kspace, mask, 0.004, 60, imaginary=3.0)),
        ("unrolled(start='phase_tv(weight=0.02, iterations=5)')",
         lambda kspace, mask: mri.total_variation(kspace, mask, 0.02, 5, imaginary=3.0)),
    ],
)  # fmt: skip
def test_a_network_that_changes_nothing_returns_its_start(call, start, measured):
    kspace, mask = measured
    network = mri.build_model(call).eval()
    for weights in network.parameters():
        torch.nn.init.zeros_(weights)
    with torch.inference_mode():
        image = network(kspace, mask, (33, 40))
    expected = mri.center_crop(mri.keep_measured(start(kspace, mask), kspace, mask), (33, 40))
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("domain", mri.DOMAINS)
@pytest.mark.parametrize("form", mri.ADVERSARIAL)
def test_an_adversarial_step_stays_on_its_device_and_never_waits(form, domain):
    adversary = mri.Adversary(form, weight=0.01, perceptual_weight=0.1, device="meta", domain=domain)
    image, target, given = (torch.zeros(2, 48, 48, device="meta", requires_grad=i == 0) for i in range(3))
    adversary.doubt(image, target, given).backward()
    assert {figure.device.type for figure in adversary.learn(image, target, given).values()} == {"meta"}


SHIPPED = {  # checkpoints from before models were written as calls -> the call that they mean
    "unet": "unet",
    "unet_4x_8x": "unet",
    "unet_challenge": "unet",
    "unet_adversarial": "unet",
    "unrolled": "unrolled",
    "unrolled_cnn": "unrolled(inner='resnet', cascades=5, features=32, stages='2x2')",
    "kspace_unet": "kspace_unet",
    "recon_resnet": "recon_resnet(dropout=0.2)",
    "denoiser": "plug_and_play",
    "denoiser_1": "plug_and_play",
    "denoiser_2": "plug_and_play",
    "resnet_12x2": "resnet(stages='12x2')",
    "resnet_8x2_4x3": "resnet",
    "kspace_sr_x2": "kspace_sr",
    "kspace_sr_x4": "kspace_sr",
    "srresnet_x2": "srresnet",
    "srresnet_x4": "srresnet(upscale_factor=4)",
    "srgan_x4": "srgan(upscale_factor=4)",
    "cine_unet": "cine_unet(features=16)",
    "cine_dual_unet": "cine_dual_unet(features=16, levels=3)",
    "cine_unrolled": "cine_unrolled(start='temporal_tv')",
    "cine_view_sharing": "cine_unrolled",
    "cine_breathing": "cine_unrolled(start='temporal_tv')",
    "varnet": "varnet",
    "unrolled_varied": "unrolled(inner='resnet', shuffle=2, features=32, stages='2x2', cascades=6, memory=8)",
    "unrolled_tv": (
        "unrolled(inner='resnet', shuffle=2, features=32, stages='2x2', cascades=6, memory=8, start='phase_tv')"
    ),
    "modl": "modl(phase_width=0.08)",
}
SHIPPED["unrolled_hours"] = SHIPPED["unrolled_tv"]


def test_every_shipped_checkpoint_is_known():
    assert {path.stem for path in (mri.ROOT / "checkpoints").glob("*.pt")} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_checkpoint_loads(name):
    """Its parameters in today's form, weights that fit to the last one, an image that is finite."""
    path = mri.ROOT / "checkpoints" / f"{name}.pt"
    parameters = mri.read_checkpoint(path)["parameters"]
    assert parameters["model"] == SHIPPED[name] and "inner" not in parameters
    assert bool(parameters["adversary"]) == (name in ("unet_adversarial", "srgan_x4"))
    axes = mri.model_axes(mri.read_call(parameters["model"], "model")[0])
    kspace = torch.randn(1, *(12,) * (len(axes) - 2), 32, 32, dtype=torch.complex64)
    with torch.inference_mode():
        image = mri.load_model(path)(kspace, torch.ones(1, *(1,) * (len(axes) - 1), 32, dtype=torch.bool), (32, 32))
    assert image.shape[-2:] == (32, 32) and torch.isfinite(image.abs()).all()
