"""Detectors: each trap passes unnoticed without its detector, is seen with it, and is mended."""

import json
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

import mri_utils as mri


@pytest.fixture(scope="module")
def head():
    """k-space of two slices of a simulated head, (2, 96, 106), readout oversampling removed."""
    kspace, _ = mri.simulate_head(7, "T2w", slices=2, matrix=96, lesions=3)
    return mri.crop_readout(kspace, 96)


def write(path, kspace, **attributes):
    """A file of that k-space; returns the volume."""
    size = (min(kspace.shape[-2:]),) * 2
    mri.write_volume(path, kspace, target_size=size, **{"acquisition": "AXT2", "patient_id": path.stem} | attributes)
    return mri.read_volume(path)


# --- leaks ------------------------------------------------------------------------------------------


def test_leaks(tmp_path, head):
    train = write(tmp_path / "train" / "a.h5", head, patient_id="A")
    fresh = mri.simulate_head(8, "T2w", slices=2, matrix=96)[0]
    clean = write(tmp_path / "val" / "clean.h5", mri.crop_readout(fresh, 96))
    mri.check_split([train], [clean])
    assert mri.find_leaks([train], [clean]) == []
    shared = write(tmp_path / "val" / "b.h5", mri.crop_readout(fresh, 96), patient_id="A")
    renamed = write(tmp_path / "val" / "c.h5", head, patient_id="C")
    part = write(tmp_path / "val" / "d.h5", torch.cat([mri.crop_readout(fresh, 96)[:1], head[1:]]), patient_id="D")
    for leak, words in [
        (shared, ("'A'", "a.h5")),
        (renamed, ("slice 0", "a.h5", "2 such")),
        (part, ("slice 1", "1 such")),
    ]:
        found = mri.find_leaks([train], [clean, leak])
        assert len(found) == 1 and found[0].startswith(str(leak.path)) and all(word in found[0] for word in words)
        with pytest.raises(mri.BadInput) as error:
            mri.check_split([train], [clean, leak])
        assert str(error.value) == found[0] and "\n" not in found[0]
    with pytest.raises(mri.BadInput, match="and 2 more"):
        mri.check_split([train], [shared, renamed, part])


def test_copies_in_another_layout(tmp_path, head):
    """Double precision, compression and negative zeros hide no copy; empty slices are no copies of each other."""
    padded = torch.cat([head, torch.zeros_like(head[:1])])
    train = write(tmp_path / "train.h5", padded)
    copy = write(tmp_path / "copy.h5", padded)
    with h5py.File(copy.path, "r+") as file:
        data = file["kspace"][()].astype(np.complex128)
        data[data == 0] = complex(-0.0, -0.0)
        del file["kspace"]
        file.create_dataset("kspace", data=data, compression="gzip")
    assert mri.read_volume(copy.path).fingerprints() == train.fingerprints()
    assert train.fingerprints()[2] == "" and len(set(train.fingerprints())) == 3
    other = write(tmp_path / "other.h5", torch.cat([head[:1] * 2, torch.zeros_like(head[:1])]))
    assert mri.find_leaks([train], [other]) == []
    coils = write(tmp_path / "coils.h5", torch.stack([head, head * 1j], 1))
    assert len(coils.fingerprints()) == 2 and not set(coils.fingerprints()) & set(train.fingerprints())


def test_truncated_file_in_one_line(tmp_path, head):
    volume = write(tmp_path / "short.h5", head)
    with h5py.File(volume.path, "r+") as file:
        del file["kspace"]
    with pytest.raises(mri.BadInput, match=r"short.h5: cannot read kspace .*damaged"):
        volume.fingerprints()


# --- k-space ----------------------------------------------------------------------------------------


def test_data_crimes(head):
    k = head[0]
    image = mri.ifft2c(k)
    enlarged = torch.zeros(192, 212, dtype=torch.complex64)
    enlarged[48:144, 53:159] = k
    magnitude = mri.fft2c(image.abs())
    turned = magnitude * torch.exp(torch.tensor(0.7j))  # one constant phase is none
    cases = {"scan": k, "magnitude": magnitude, "turned": turned, "enlarged": enlarged}
    seen = {name: (mri.looks_interpolated(x), mri.looks_magnitude_only(x)) for name, x in cases.items()}
    assert seen == {
        "scan": (False, False),
        "magnitude": (False, True),
        "turned": (False, True),
        "enlarged": (True, False),
    }
    assert mri.looks_magnitude_only(mri.fft2c(mri.ifft2c(enlarged).abs()))
    assert mri.looks_magnitude_only(turned.to(torch.complex128))
    assert mri.spectrum_extent(enlarged) == k.shape
    assert mri.spectrum_extent(enlarged[:, 102:110]) == (96, 8)  # eight columns are too few to tell
    # the crime pays: half of k-space follows from the other half, or need not be measured at all
    half = torch.arange(106) >= 53
    mirrored = [torch.where(half, x, x.flip(-2, -1).roll((1, 1), (-2, -1)).conj()) for x in (k, magnitude)]
    honest, crime = (mri.psnr(mri.ifft2c(x).abs(), mri.ifft2c(y).abs()) for x, y in zip((k, magnitude), mirrored))
    assert crime > 100 > 30 > honest


def test_inverse_crime_has_empty_air():
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 64)] * 2, indexing="ij")
    disc = ((x**2 + y**2) < 0.5).to(torch.complex64)
    assert mri.looks_noiseless(mri.fft2c(disc))
    noise = torch.randn(64, 64, 2, generator=torch.Generator().manual_seed(0))
    assert not mri.looks_noiseless(mri.fft2c(disc + 0.01 * torch.view_as_complex(noise)))


def test_centre(head):
    assert all(abs(n) <= 2 for n in mri.find_centre(head))
    forgotten = torch.fft.ifftshift(head)  # of all axes, as it happens
    assert all(abs(n) > 40 for n in mri.find_centre(forgotten))
    shifted = head.roll((5, -3), (-2, -1))
    assert np.subtract(mri.find_centre(shifted), mri.find_centre(head)).tolist() == [5, -3]


@pytest.mark.parametrize("folder", ["brain_ulf_singlecoil/train", "brain_ulf_singlecoil/val", "brain_3t_multicoil"])
def test_real_scans_raise_no_alarm(real, folder):
    for volume in mri.read_folder(real / folder):
        assert mri.volume_warnings(volume) == [], volume.path


def test_real_magnitudes_do(real, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    picture = pydicom.dcmread(sorted((real / "brain_t1_dicom").glob("*.dcm"))[5]).pixel_array.astype(np.float32)
    volume = write(tmp_path / "dicom.h5", mri.fft2c(torch.from_numpy(picture))[None, :, :])
    assert any("Hermitian" in text for text in mri.volume_warnings(volume))


# --- images and runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -1), (-3, 2)])
def test_shift(head, shift):
    target = mri.ifft2c(head).abs()
    noisy = target + 0.05 * target.max() * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    assert mri.find_shift(target, noisy.roll(shift, (-2, -1))) == shift


def test_the_wrong_fftshift_is_a_shift(head):
    image = mri.center_crop(mri.ifft2c(head), (95, 95)).abs()  # odd: fftshift and ifftshift differ
    spectrum = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image, dim=(-2, -1))), dim=(-2, -1))
    back = {
        "right": torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))), dim=(-2, -1)).abs(),
        "wrong": torch.fft.fftshift(torch.fft.ifft2(torch.fft.fftshift(spectrum, dim=(-2, -1))), dim=(-2, -1)).abs(),
        "image": torch.fft.ifftshift(torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))), dim=(-2, -1)).abs(),
    }
    assert mri.find_shift(image, back["right"]) == (0, 0) and mri.psnr(image, back["right"]) > 80
    assert mri.psnr(image, back["image"]) < 30 and max(map(abs, mri.find_shift(image, back["image"]))) == 1
    torch.testing.assert_close(back["wrong"], back["right"])  # in k-space it turns the phase only: no magnitude tells


@pytest.fixture
def run(tmp_path):
    """A validation set of four volumes, its targets, and scores(images) in the form of train.score."""
    for i in range(4):
        kspace, _ = mri.simulate_head(20 + i, "T1w", slices=2, matrix=48)
        write(tmp_path / f"{i}.h5", mri.crop_readout(kspace, 48))
    val_set = mri.SliceDataset(mri.read_folder(tmp_path), "random", 4, 0.08)
    targets = [torch.stack([v.target(s) for s in range(2)]) for v in val_set.volumes]
    almost = [x + 1e-3 * x.max() * torch.cos(torch.arange(48.0)) for x in targets]

    def scores(images):
        rows = [{name: metric(x, y) for name, metric in mri.METRICS.items()} for x, y in zip(targets, images)]
        return rows, images, 0.0

    zero = [mri.reconstruct_volume(mri.zero_filled, val_set, i)[0] for i in range(4)]
    return SimpleNamespace(val_set=val_set, targets=targets, zero=zero, almost=almost, scores=scores)


def test_a_clean_run_has_no_warning(run):
    scores = {"zero_filled": run.scores(run.zero), "net": run.scores(run.almost)}
    assert mri.quality_warnings(scores, run.val_set) == []


def test_swapped_labels(run):
    scores = {"zero_filled": run.scores(run.almost), "net": run.scores(run.zero)}
    found = mri.quality_warnings(scores, run.val_set)
    assert len(found) == 2 and all(text.startswith("net: ") and "below zero-filled" in text for text in found)


def test_shifted_reconstruction(run):
    moved = [x.roll(1, -1) for x in run.targets]
    scores = {"zero_filled": run.scores(run.zero), "net": run.scores(moved)}
    assert any("net: 4 of 4 volumes shifted by (0, 1)" in text for text in mri.quality_warnings(scores, run.val_set))


def test_an_eighth_that_is_none(run):
    val_set = mri.SliceDataset(run.val_set.volumes, "equispaced", 8, 0.1)
    found = mri.quality_warnings({"zero_filled": run.scores(run.zero)}, val_set)
    assert len(found) == 1 and found[0].startswith("asked for 8x, the masks keep ")
    reached = mri.mean(float(val_set[i].acceleration) for i in range(0, 8, 2))
    assert f"{reached:.2f}x" in found[0] and reached < 7.2


def test_one_mask_for_all(run, monkeypatch):
    line = "one mask for all volumes"
    scores = {"zero_filled": run.scores(run.zero)}
    assert not any(line in text for text in mri.quality_warnings(scores, run.val_set))
    fixed = mri.sampling_mask("random", (run.val_set.volumes[0].shape[-1],), 4, 0.08, seed=3)
    draw = mri.sampling_mask
    monkeypatch.setattr(
        "mri_parts.dataset.sampling_mask",
        lambda k, s, r, c, seed=None: fixed if isinstance(seed, str) else draw(k, s, r, c, seed),
    )
    assert any(line in text for text in mri.quality_warnings(scores, run.val_set))


def test_warnings_reach_metrics_and_table(run):
    scores = {"zero_filled": run.scores(run.almost), "net": run.scores(run.zero)}
    metrics = json.loads(json.dumps(mri.summarize_run(scores, run.val_set, {})))
    assert metrics["warnings"] == mri.quality_warnings(scores, run.val_set)
    assert f"warning: {metrics['warnings'][0]}" in mri.metrics_table(metrics)
    paired = metrics["paired"]["net - zero_filled"]["ssim"]
    assert paired["n"] == 4 and paired["effect_size"] < 0
    figures = metrics["methods"]["net"]["ssim"]
    figures["ci95"] = [figures["mean"]] * 2  # as of one subject
    assert f"{figures['mean']:.3f} (one subject)" in mri.metrics_table(metrics)


def test_network_in_training_mode_is_refused(run):
    network = mri.build_model("unet(features=4, levels=2, dropout=0.5)")
    with pytest.raises(mri.BadInput, match=r"training mode.*eval"):
        mri.reconstruct_volume(network, run.val_set, 0)
    mri.reconstruct_volume(network.eval(), run.val_set, 0)


def test_changed_parameters():
    a = {"loss": "l1", "model": "unet(features=8)", "out": "runs/a", "device": "cpu"}
    assert mri.changed_parameters(a, a | {"out": "runs/b", "device": "cuda"}) == {}
    changed = mri.changed_parameters(a, a | {"loss": "ssim", "model": "unet(features=16)"})
    assert changed == {"loss": ("l1", "ssim"), "features": (8, 16)}
    unet, resnet = {"model": "unet", "lr": 0.002}, {"model": "resnet", "lr": 0.0003}
    assert set(mri.changed_parameters(unet, resnet)) == {"model"}  # the rate follows from it
    assert set(mri.changed_parameters(unet, resnet | {"lr": 0.01})) == {"model", "lr"}
    assert set(mri.changed_parameters(unet | {"lr": 0.01}, resnet)) == {"model", "lr"}
    assert mri.changed_parameters({}, {"augment": True}) == {"augment": (None, True)}


# --- blinded readings -------------------------------------------------------------------------------


def test_summarize_reading(tmp_path):
    sides = [("unet", "tv", "left"), ("tv", "unet", "right"), ("unet", "tv", "right"), ("tv", "unet", "none")]
    pairs = [
        {"volume": f"{i}.h5", "slice": 0, "left": left, "right": right, "preferred": preferred}
        | {"scores": {"left": {"sharpness": 2}, "right": {"sharpness": 4}}}
        for i, (left, right, preferred) in enumerate(sides)
    ]
    path = tmp_path / "reading.json"
    path.write_text(json.dumps({"reader": "A", "pairs": [*pairs, {"volume": "4.h5", "left": "tv", "right": "unet"}]}))
    found = mri.summarize_reading(path)
    assert found["reader"] == "A" and found["pairs"] == 4
    preference = found["preference"]["tv over unet"]
    assert preference["n"] == 3 and preference["undecided"] == 1 and preference["mean"] == pytest.approx(1 / 3)
    z, p, n = 1.959964, 1 / 3, 3  # Wilson 1927
    centre, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n),
    )
    assert preference["ci95"] == pytest.approx([centre - half, centre + half], abs=1e-5)
    assert found["scores"] == {"unet": {"sharpness": 3.0}, "tv": {"sharpness": 3.0}}
    path.write_text(json.dumps({"reader": "A", "pairs": []}))
    assert mri.summarize_reading(path)["preference"] == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"reader": "A", "pairs": [{"preferred": "left"}]}', '{"pairs": 3}'])
def test_what_is_no_reading(tmp_path, text):
    (tmp_path / "reading.json").write_text(text)
    for path in (tmp_path / "reading.json", tmp_path / "none.json"):
        with pytest.raises(mri.BadInput) as error:
            mri.summarize_reading(path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
