"""Super-resolution: the mask is the central block; its methods, its networks, its task."""

import importlib.util
import json
import sys
import types

import numpy as np
import pytest
import torch
from test_images import NAME, NUMBER, picture, write_dicom

import mri_utils as mri
import train

SMALL = {"epochs": 1, "task": "super_resolution", "model": "kspace_sr(features=4, levels=2)"}


def low_pass(image, factor):
    """A complex image (H, W) as measured: a batch of k-space and its mask."""
    kspace = mri.fft2c(image)
    mask = mri.sampling_mask("low_pass", image.shape, factor**2, 0.1)
    return (kspace * mask)[None], mask[None]


@pytest.mark.parametrize("factor", [2, 4])
def test_every_second_or_fourth_pixel_is_the_low_resolution_image(factor, random):
    """What SRResNet and bicubic look at: the image whose k-space is the measured block alone."""
    kspace, mask = low_pass(random(32, 48), factor)
    block = kspace[mask].reshape(1, 32 // factor, 48 // factor)
    coarse = mri.ifft2c(kspace)[..., ::factor, ::factor] * factor
    torch.testing.assert_close(coarse, mri.ifft2c(block), rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
def test_bicubic_is_keys_kernel_and_shifts_nothing(factor):
    """Samples stay, halves come from four neighbours, a smooth image comes back in its place."""
    y, x = torch.meshgrid(torch.arange(64) / 64, torch.arange(48) / 48, indexing="ij")
    smooth = 3 + torch.cos(2 * torch.pi * (y + 0.2)) + torch.sin(2 * torch.pi * (x + 2 * y))
    kspace, _ = low_pass(smooth + 0j, factor)
    found = mri.bicubic(kspace, (64, 48), factor)[0]
    inside = (slice(8, -8), slice(8, -8))  # at the edges there is nothing to interpolate towards
    assert float((found - smooth)[inside].abs().max()) < 0.04
    exact = smooth[::factor, ::factor]
    torch.testing.assert_close(found[::factor, ::factor], exact, rtol=0, atol=1e-4)
    # halfway between two samples: (-1, 9, 9, -1) / 16
    half = (9 * (exact[:, 1:-2] + exact[:, 2:-1]) - exact[:, :-3] - exact[:, 3:]) / 16
    between = found[::factor, factor // 2 :: factor][:, 1 : 1 + half.shape[1]]
    torch.testing.assert_close(between, half, rtol=0, atol=1e-4)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("size", [(32, 48), (30, 42)])
def test_srresnet_has_ledigs_shape(factor, size):
    """9x9 at both ends, one pixel shuffle per factor of two; any size."""
    network = mri.SRResNet(1, 1, features=8, stages="2x2", upscale_factor=factor)
    assert network(torch.randn(2, 1, *size)).shape == (2, 1, *size)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions[0].kernel_size == convolutions[-1].kernel_size == (9, 9)
    assert sum(isinstance(m, torch.nn.PixelShuffle) for m in network.modules()) == factor // 2
    with torch.no_grad():  # only every factor-th pixel is looked at
        image = torch.randn(1, 1, 32, 48)
        other = torch.randn(1, 1, 32, 48)
        other[..., ::factor, ::factor] = image[..., ::factor, ::factor]
        assert network(image).equal(network(other))


def test_the_kspace_network_keeps_what_was_measured(random):
    network = mri.build_model("kspace_sr(features=4, levels=2)")
    torch.nn.init.normal_(network.network.last.weight)
    network.template.copy_(torch.linspace(0, -4, len(network.template)))
    kspace, mask = low_pass(random(32, 48), 2)
    spectrum = mri.fft2c(network(kspace, mask, (32, 48)))
    torch.testing.assert_close(spectrum[mask], kspace[mask], rtol=0, atol=1e-4)
    assert spectrum[~mask].abs().max() > 0.01  # and adds something
    turned = network(kspace * 5j, mask, (32, 48))  # neither scale nor a constant phase matters
    torch.testing.assert_close(turned, 5j * network(kspace, mask, (32, 48)), rtol=1e-3, atol=1e-3)


def test_the_kspace_network_sees_edges_too(random):
    """What its k-space is divided by is the template, and its mean square is 1."""
    network, seen = mri.build_model("kspace_sr(features=4, levels=2)"), []
    network.template.copy_(torch.linspace(0, -4, len(network.template)))
    network.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    kspace, mask = low_pass(random(32, 48), 2)
    network(kspace, mask, (32, 48))
    image, edges = (mri.fft2c(mri.as_complex(channels)) for channels in seen[0].split(2, 1))
    place = network._bins(kspace)  # distance from the centre; the template falls from 0 to -4 along its 49 entries
    known = image.abs() > 1e-3 * image.abs().max()
    ratio = ((edges / image).abs().log() - 4 * place / 48)[known]
    torch.testing.assert_close(ratio, ratio.mean().expand(ratio.shape), rtol=0, atol=1e-2)
    assert float(seen[0][:, 2:].square().mean()) == pytest.approx(1, rel=1e-4)


def test_template_is_the_mean_magnitude_of_the_training_set(tiny):
    dataset = mri.SliceDataset(mri.read_folder(tiny / "train"), "low_pass", 4, 0.25, seed=0)
    network = mri.build_model("kspace_sr(features=4, levels=2)")
    network.learn_from(dataset)
    sums, counts = np.zeros(49), np.zeros(49)
    for volume in dataset.volumes:
        for index in range(len(volume)):
            kspace = volume.cropped(index)[0].numpy()
            peak = np.abs(np.fft.ifft2(kspace, norm="ortho")).max()
            h, w = kspace.shape
            for i in range(h):
                for j in range(w):
                    place = round(32 * np.hypot((i - h // 2) / (h / 2), (j - w // 2) / (w / 2)))
                    sums[place] += abs(kspace[i, j]) / peak
                    counts[place] += 1
    filled = counts > 50  # rounding may put single samples into the next bin
    np.testing.assert_allclose(network.template.exp().numpy()[filled], sums[filled] / counts[filled], rtol=0.02)


def test_trains_and_is_scored_beside_sinc_and_bicubic(tiny, tmp_path):
    metrics = train.run(**SMALL, data=str(tiny), upscale_factor=4, tv_weight=0.01, out=str(tmp_path / "run"))
    assert list(metrics["methods"]) == ["sinc", "bicubic", "attainable", "kspace_sr"]
    assert metrics["parameters"]["acceleration"] == 16 and metrics["parameters"]["center_fraction"] == 1 / 16
    assert metrics["data"]["effective_acceleration"] == pytest.approx(16, rel=0.1)
    network = mri.load_model(tmp_path / "run" / "checkpoint.pt")
    assert network.template.any() and metrics["parameters"]["upscale_factor"] == 4
    evaluated = train.run(evaluate=str(tmp_path / "run" / "checkpoint.pt"), data=str(tiny), out=str(tmp_path / "other"))
    assert evaluated["methods"]["kspace_sr"] == metrics["methods"]["kspace_sr"]
    start = str(tmp_path / "run" / "checkpoint.pt")
    same = {"data": str(tiny), "upscale_factor": 4, "start_from": start, "lr": 1e-9}
    train.run(**SMALL, **same, out=str(tmp_path / "tuned"))
    assert mri.load_model(tmp_path / "tuned" / "checkpoint.pt").template.equal(network.template)  # fine-tuning keeps it


@pytest.mark.parametrize("vgg", [False, True])
def test_srgan_is_srresnet_with_an_adversary_and_features(vgg, tiny, tmp_path, monkeypatch):
    if vgg:  # a stand-in for torchvision with its weights on disk
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
        whole = torch.nn.Module()
        whole.features = layers
        fake = types.ModuleType("torchvision")
        fake.models = types.SimpleNamespace(vgg19=lambda: whole)
        monkeypatch.setitem(sys.modules, "torchvision", fake)
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda n: True if n == "torchvision" else found(n))
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        (tmp_path / "checkpoints").mkdir()
        torch.save(whole.state_dict(), tmp_path / "checkpoints" / "vgg19-stand-in.pth")
        assert len(mri.vgg_features()) == 2
        image, target = torch.rand(2, 3, 16, 16)  # a picture's range, which VGG wants shifted and stretched
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        seen = [torch.stack([(x - m) / d for m, d in zip(mean, deviation)], 1) for x in (image, target)]
        distance = (mri.vgg_features()(seen[0]) - mri.vgg_features()(seen[1])).abs().mean()
        assert mri.Adversary(weight=0.0, perceptual_weight=2.0).doubt(image, target, target).item() == pytest.approx(
            2 * float(distance)
        )
    own = {"model": "srgan(features=4, stages='1x2')", "upscale_factor": 4}
    metrics = train.run(**SMALL | own, data=str(tiny), out=str(tmp_path / "run"))
    assert list(metrics["methods"])[-1] == "srgan" and "perceptual_weight=0.05" in metrics["parameters"]["adversary"]
    assert metrics["parameters"]["model"] == "srgan(features=4, stages='1x2', upscale_factor=4)"
    assert "discriminator_loss" in (tmp_path / "run" / "log.csv").read_text()


def test_what_the_adversary_asks_for():
    """The terms add up with their weights; the distance of an image from itself is nothing."""
    torch.manual_seed(0)
    image, target, given = torch.rand(3, 2, 32, 32)
    adversaries = []
    for weights in ((1.0, 0.0), (0.0, 1.0), (2.0, 3.0)):
        torch.manual_seed(1)
        both = dict(zip(("weight", "perceptual_weight"), weights))
        adversary = mri.Adversary(**both)
        adversary.discriminator.eval()
        adversaries.append(adversary)
    opinion, distance, sum_ = (a.doubt(image, target, given).item() for a in adversaries)
    assert sum_ == pytest.approx(2 * opinion + 3 * distance, rel=1e-5) and distance > 0
    assert float(adversaries[1].doubt(target, target, given)) == 0
    assert float(mri.roughness(torch.tensor([[[0.0, 1.0], [0.0, 3.0]]]))) == pytest.approx((1 + 3 + 2) / 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upscale_factor": 3}, "unknown upscale_factor '3'"),
        ({"acceleration": 8.0}, "give upscale_factor instead"),
        ({"mask": "random"}, "give upscale_factor instead"),
        ({"model": "varnet"}, "is not for task 'super_resolution'"),
        ({"task": "single_coil", "upscale_factor": 2}, "task 'single_coil' has no upscale_factor"),
        ({"adversary": "least_squares(perceptual=1)"}, "did you mean 'perceptual_weight'"),
        ({"tv_weight": -1.0}, "tv_weight -1.0"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(changes, message, tiny, tmp_path):
    with pytest.raises(mri.BadInput, match=message):
        train.run(**{**SMALL, "data": str(tiny), "out": str(tmp_path / "run"), **changes})


def test_one_subject_is_split_by_blocks_of_slices_and_nothing_of_its_header_leaks(tmp_path, capfd):
    """A series whose header carries a name: trained on, scored, reported; the name is nowhere."""
    for position in range(12):
        write_dicom(tmp_path / "scan" / f"IM{position:02d}", picture(position), float(position))
    metrics = train.run(**SMALL, data=str(tmp_path / "scan"), out=str(tmp_path / "run"))
    said = "".join(capfd.readouterr())
    assert "one subject: slices 0 to 5 train, 9 to 11 validate, 3 between them are left out" in said
    assert metrics["provenance"]["training_data"]["slices"] == 6 and metrics["data"]["slices"] == 3
    everything = b"".join(p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()) + said.encode()
    everything += b"".join(str(p).encode() for p in (tmp_path / "run").rglob("*"))
    everything += repr(mri.read_images(tmp_path / "scan")).encode() + json.dumps(metrics).encode()
    for word in (*NAME.split("^"), NUMBER, "18671107"):
        assert word.encode() not in everything, word


def test_subjects_are_split_where_there_are_several(tmp_path, capsys):
    for study in range(1, 5):
        write_dicom(tmp_path / f"{study}" / "IM0", picture(study), study=study, person=("***", "***"))
    train_volumes, val = mri.read_train_and_val(tmp_path, ("slices", "H", "W"))
    assert len(train_volumes) == 3 and len(val) == 1 and "1 of its subjects validate" in capsys.readouterr().out
    mri.check_split(train_volumes, val)


def test_too_few_slices_of_one_subject_are_refused(tmp_path, tiny):
    for position in range(4):
        write_dicom(tmp_path / f"IM{position}", picture(position), float(position))
    with pytest.raises(mri.BadInput, match="one subject with 4 slices cannot be split: give train/ and val/"):
        mri.read_train_and_val(tmp_path, ("slices", "H", "W"))
    assert mri.read_folder(tiny / "train")[0].path.suffix == ".h5"


def test_demo_data_are_fine_and_of_one_size(tmp_path, monkeypatch):
    asked = {}
    simulate = lambda folder, *sizes, **more: asked.update(more, folder=folder) or folder  # noqa: E731
    monkeypatch.setattr("mri_parts.super_resolution.demo_data", simulate)
    assert mri.demo_sr().name == "demo_sr" and asked["matrix"] == 256
    monkeypatch.undo()
    few = mri.demo_data(tmp_path / "demo", 2, 1, slices=1, matrix=48, wide=False, noise=0.004)
    assert {v.shape for v in mri.read_folder(few / "train")} == {(1, 96, 48)}
    assert mri.read_folder(few / "val")[0].attributes["snr"] == pytest.approx(250)
