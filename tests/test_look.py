"""One look at a file before anything else: every finding has its own diagnosis, every refusal its own sentence."""

import os
import re
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import mri_utils as mri
import train
from mri_parts import checks, hdf5, processes

pytestmark = pytest.mark.usefixtures("quick_baselines")
SMALL = {"model": "unet(features=2, levels=2)", "epochs": 1, "workers": 0, "device": "cpu"}


def scan(seed=0, slices=2, matrix=96):
    """k-space of a simulated head, (slices, 96, 106), in the demo's own noise."""
    return mri.crop_readout(mri.simulate_head(seed, "T2w", slices=slices, matrix=matrix)[0], matrix)


@pytest.fixture(scope="module")
def head():
    return scan(3)


def put(path, **content):
    """An HDF5 file of these data sets; `attrs` are its attributes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs.update(content.pop("attrs", {}))
        for name, values in content.items():
            file[name] = values.numpy() if isinstance(values, torch.Tensor) else values
    return path


@pytest.fixture
def found(tmp_path):
    """found(kspace) -> what a look at a file of it finds."""

    def look(kspace, **content):
        volume = mri.read_volume(put(tmp_path / "x.h5", kspace=kspace, attrs={"patient_id": "a"}, **content))
        return mri.look(volume)

    return look


def refused(error, *named):
    text = str(error.value)
    assert "\n" not in text and all(str(name) in text for name in named), text
    return text


# --- what was never measured ------------------------------------------------------------------------


def test_a_good_scan_has_no_finding(head, found):
    assert found(head) == [] and found(head * 1e-30) == [] and found(head * 1e25) == []


def test_undersampled_k_space_without_a_mask_is_refused(head, found):
    lines = torch.arange(106) % 2 == 0
    lines[48:58] = True
    points = torch.rand(96, 106, generator=torch.Generator().manual_seed(0)) < 0.25
    points[40:56, 45:61] = True
    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 106), indexing="ij")
    cases = [
        (lines, "47 of 105 columns inside"),
        (lines[5:101, None], "rows inside"),
        (points, "2-D sampling"),
        (torch.hypot(y, x) < 1, "corners"),
    ]
    for measured, words in cases:
        for nothing in (0, 1e-16):
            seen = found(torch.where(measured, head, nothing * head.abs().max()))
            alarms = [finding for finding in seen if finding.alarm]
            assert len(alarms) == 1 and alarms[0].refused and words in alarms[0].what, seen
            assert "mask" in alarms[0].advice
    with_mask = found(torch.where(lines, head, 0), mask=lines)
    assert not any(finding.refused for finding in with_mask)


def test_every_slice_is_looked_at(tmp_path, head):
    """A slice that lacks lines is found wherever it is; only the middle one and that one are read."""
    lines = torch.arange(106) % 2 == 0
    for number in (0, 2, 4):
        kspace = torch.cat([head, head, head])[:5].clone()
        kspace[number] = torch.where(lines, kspace[number], 0)
        found = mri.look(mri.read_volume(put(tmp_path / f"{number}.h5", kspace=kspace)))
        (finding,) = [finding for finding in found if finding.alarm]
        what = "undersampled already: 52 of 105 columns inside k-space are empty"
        assert finding.refused and finding.what == (what if number == 2 else f"slice {number}: {what}")
    coils = torch.stack([head, head], 1)
    coils[0, 0] = torch.where(lines, head[0], 0)  # another coil has them
    assert mri.look(mri.read_volume(put(tmp_path / "coils.h5", kspace=coils))) == []
    edges = torch.cat([head, head])
    edges[0, :, :9] = 0
    edges[0, 48, 30] = 0  # a dead sample
    assert mri.look(mri.read_volume(put(tmp_path / "edges.h5", kspace=edges))) == []


def test_few_zeros_and_whole_numbers_are_no_sampling(head, found):
    dead = head.clone()
    dead[:, 3, 4] = 0
    (finding,) = found(dead)
    assert "1 single samples" in finding.what and not finding.alarm
    step = float(head.abs().median()) / 2
    whole = torch.complex((head.real / step).round(), (head.imag / step).round())
    assert (whole == 0).float().mean() > 0.02
    assert not any(finding.refused for finding in found(whole))


def test_frames_that_are_sampled_in_turn(tmp_path, head):
    """Together the frames fill k-space; each of them is undersampled."""
    kspace = torch.stack([torch.where(torch.arange(106) % 2 == n, head, 0) for n in (0, 1)], 1)
    path = put(tmp_path / "x.h5", kspace=kspace, attrs={"axes": "slices, frames, H, W"})
    assert any(finding.refused for finding in mri.look(mri.read_volume(path)))


def test_empty_edges_are_no_alarm_and_partial_fourier_has_its_own_sentence(head, found):
    edges = head.clone()
    edges[..., :4] = 0
    edges[..., 104:] = 1e-17
    (finding,) = found(edges)
    assert "4 + 2 of 106 columns at the edges" in finding.what and not finding.alarm
    half = head.clone()
    half[..., :26] = 0
    (finding,) = found(half)
    assert "partial Fourier" in finding.what and "first 26 of 106" in finding.what and not finding.alarm
    assert "shift" not in str(finding)


# --- where the echo and the image are ---------------------------------------------------------------


@pytest.mark.parametrize("off", [-15, -7, 7, 12, 20])
def test_an_echo_outside_the_masks_centre(head, found, off):
    (finding,) = found(head.roll(off, -1))
    assert finding.alarm and "outside the 8 columns" in finding.what and "partial Fourier" not in finding.what
    assert "numpy.roll" in finding.advice and "fftshift" not in str(finding)


def test_the_centre_is_that_of_the_mask(tmp_path, head):
    volume = mri.read_volume(put(tmp_path / "x.h5", kspace=head.roll(6, -1)))
    assert mri.look(volume, 0.08) and mri.look(volume, 0.2) == [] == mri.look(volume, 1.0)
    assert checks.centre_share("random", 0.04) == 0.04 and checks.centre_share("radial", 0.04) == 1
    assert checks.centre_share("gaussian_2d", 0.04) == pytest.approx(0.2)


@pytest.mark.parametrize("share", [0.25, 0.375])
@pytest.mark.parametrize("side", [1, -1])
def test_partial_fourier_stored_as_its_acquired_lines(head, found, share, side):
    cut = round(106 * share)
    kspace = head[..., cut:] if side > 0 else head[..., :-cut]
    (finding,) = found(kspace)
    assert finding.alarm and "partial Fourier" in finding.what and "numpy.pad" in finding.advice
    assert "fftshift" not in str(finding)


@pytest.mark.parametrize("axes", [(-2, -1), (-2,), (-1,)])
def test_missing_shifts_are_told_apart(head, found, axes):
    image = mri.ifft2c(head)
    (outer,) = found(torch.fft.ifftshift(head, dim=axes))
    assert outer.alarm and "order of the FFT" in outer.what and f"fftshift(kspace, axes={axes})" in outer.advice
    (inner,) = found(mri.fft2c(torch.fft.fftshift(image, dim=axes)))
    assert inner.alarm and "cut in parts" in inner.what and f"axes={axes}" in inner.advice
    both = found(torch.fft.fft2(image))
    assert len(both) == 2 and "order of the FFT" in both[0].what and "cut in parts" in both[1].what


@pytest.mark.parametrize("axis", [-2, -1])
def test_a_neck_at_one_edge_is_no_missing_shift(head, found, axis):
    image = mri.ifft2c(head)
    neck = torch.zeros_like(image).movedim(axis, 0)
    third = len(neck) // 3
    neck[:third] = image.movedim(axis, 0)[third : 2 * third]  # all of the signal leaves the image at one side
    assert not [one for one in found(mri.fft2c(neck.movedim(0, axis))) if "cut in parts" in one.what]


def test_the_advice_mends(head, found):
    assert found(np.fft.fftshift(torch.fft.ifftshift(head, dim=(-2, -1)).numpy(), axes=(-2, -1))) == []
    cut = head[..., 26:]
    assert not any(finding.alarm for finding in found(np.pad(cut.numpy(), ((0, 0), (0, 0), (26, 0)))))


# --- the header -------------------------------------------------------------------------------------


def header(height=96, width=106, last=None, center=None):
    last, center = width - 1 if last is None else last, width // 2 if center is None else center
    return mri.HEADER.format(height=height, width=width, h=96, w=min(width, 96), last=last, center=center)


def test_a_header_of_another_matrix_cuts_nothing(tmp_path, head):
    for kspace, text in [
        (head[..., 8:98], header(last=89, center=45)),
        (torch.nn.functional.pad(head, (11, 11)), header()),
    ]:
        volume = mri.read_volume(put(tmp_path / "x.h5", kspace=kspace, ismrmrd_header=text))
        measured = (kspace[0] != 0).any(0)
        assert torch.equal(volume.acquired(volume.kspace(0)), measured)
        (line,) = mri.volume_warnings(volume)
        assert "ismrmrd_header says 106 columns" in line and "the array counts" in line


def test_limits_that_cut_what_was_measured_are_told(found, head):
    (finding,) = found(head, ismrmrd_header=header(last=79, center=53))
    assert finding.alarm and "leave out 26 columns that hold data" in finding.what


def test_readout_along_the_wrong_axis(found, head):
    seen = found(head.mT.contiguous(), ismrmrd_header=header())
    assert any("swap the last two axes" in finding.advice for finding in seen)


def test_headers_as_other_programs_write_them(tmp_path, head):
    text = header(last=99, center=50)
    expected = mri.read_volume(put(tmp_path / "a.h5", kspace=head, ismrmrd_header=text))
    assert expected.columns == (3, 103)
    for other in (text.replace("<x>96</x>", "<x>96.0</x>"), np.array([text], dtype=h5py.string_dtype())):
        volume = mri.read_volume(put(tmp_path / "b.h5", kspace=head, ismrmrd_header=other))
        assert (volume.columns, volume.target_size) == (expected.columns, expected.target_size)
    start, end = text.index("<encodingLimits>"), text.index("</encodingLimits>")
    volume = mri.read_volume(put(tmp_path / "b.h5", kspace=head, ismrmrd_header=text[:start] + text[end + 17 :]))
    assert volume.columns == (0, 106) and volume.target_size == expected.target_size
    with pytest.raises(mri.BadInput) as error:
        mri.read_volume(put(tmp_path / "b.h5", kspace=head, ismrmrd_header=text.replace("<x>96</x>", "<x>96.5</x>")))
    refused(error, "b.h5", "ismrmrd_header")


# --- refusals ---------------------------------------------------------------------------------------


def test_each_format_is_named(tmp_path):
    contents = {
        "a.cfl": (b"", "BART"),
        "a.nii.gz": (b"\x1f\x8b", "NIfTI"),
        "a.mat": (b"MATLAB 5.0 MAT-file", "MATLAB"),
        "meas.dat": (b"\1" * 9, "twix"),
        "a.npy": (b"\x93NUMPY", "numpy"),
        "a.zip": (b"PK\3\4", "zip"),
        "a.mrd": (b"\x89HDF\r\n\x1a\n", "ISMRMRD"),
    }
    for name, (content, words) in contents.items():
        path = tmp_path / name.replace(".", "_") / name
        path.parent.mkdir()
        path.write_bytes(content)
        with pytest.raises(mri.BadInput) as error:
            mri.read_folder(path.parent)
        refused(error, path.parent, words, name if words == "zip" else "python data/convert.py")
    for name, (content, words) in {
        "a.h5": (b"\0" * 344 + b"n+1\0", "NIfTI"),
        "b.h5": (b"\0" * 128 + b"DICM", "DICOM"),
        "c.h5": (b"<!DOCTYPE html>", "web page"),
        "d.h5": (b"", "empty"),
        "e.h5": (b"\x89HDF\r\n\x1a\n" + b"\1" * 99, "damaged or truncated"),
        "f.h5": (b"\x93NUMPY", "numpy"),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(mri.BadInput) as error:
            mri.read_volume(tmp_path / name)
        refused(error, name, words)
    with pytest.raises(mri.BadInput) as error:
        mri.read_volume(put(tmp_path / "raw.h5", **{"dataset/data": np.zeros(3), "dataset/xml": "<x/>"}))
    refused(error, "raw.h5", "ISMRMRD")


def test_locked_and_forbidden_files(tmp_path, head, monkeypatch):
    path = put(tmp_path / "x.h5", kspace=head)
    program = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    environment = {name: value for name, value in os.environ.items() if name != "HDF5_USE_FILE_LOCKING"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, "-c", program, path], **pipes) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(mri.BadInput) as error:
            mri.read_volume(path)
        other.stdin.close()
    refused(error, path, "another program")
    told = hdf5.why_unopened(path, PermissionError(13, "Permission denied"))
    assert "no permission" in str(told) and "damaged" not in str(told)


def test_which_files_of_a_folder_are_read(tmp_path, head):
    put(tmp_path / "data" / "a.h5", kspace=head)
    put(tmp_path / "data" / "b.hdf5", kspace=head)
    put(tmp_path / "data" / "C.H5", kspace=head)
    (tmp_path / "data" / "._a.h5").write_bytes(b"\0\5\x16\7")
    put(tmp_path / "data" / "deeper" / "d.h5", kspace=head)
    assert [v.path.name for v in mri.read_folder(tmp_path / "data")] == ["C.H5", "a.h5", "b.hdf5"]
    put(tmp_path / "deep" / "batch_0" / "x.h5", kspace=head)
    put(tmp_path / "deep" / "batch_1" / "y.h5", kspace=head)
    assert [v.path.name for v in mri.read_folder(tmp_path / "deep")] == ["x.h5", "y.h5"]
    put(tmp_path / "deep" / "batch_1" / "x.h5", kspace=head)
    with pytest.raises(mri.BadInput) as error:
        mri.read_folder(tmp_path / "deep")
    refused(error, "batch_0", "same name")
    for read in (mri.read_folder, mri.read_train_and_val):
        with pytest.raises(mri.BadInput) as error:
            read(tmp_path / "data" / "a.h5")
        refused(error, "a.h5", "give the folder")


def test_names_with_a_dot_are_passed_over_by_every_reader(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16), dtype=np.uint8)
    (tmp_path / "pictures" / ".cache").mkdir(parents=True)
    for name in ("a.png", ".cache/c.png"):
        Image.fromarray(pixels).save(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "._a.png").write_bytes(b"\0\5\x16\7")
    (volume,) = mri.read_folder(tmp_path / "pictures")
    assert len(volume) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "._scan.npy").write_bytes(b"\0\5\x16\7")
    with pytest.raises(mri.BadInput) as error:
        mri.read_folder(tmp_path / "other")
    assert "python data/convert.py" not in refused(error, "no .h5 file")


def test_pairs_of_real_numbers(tmp_path, head):
    for kind, names in (("f8", "real,imag"), ("f2", "r,i"), ("f4", "r,i"), ("f2", "real,imag")):
        pairs = np.rec.fromarrays([head.real.numpy().astype(kind), head.imag.numpy().astype(kind)], names=names)
        volume = mri.read_volume(put(tmp_path / "x.h5", kspace=pairs))
        assert volume.shape == head.shape and len(set(volume.fingerprints())) == 2
        torch.testing.assert_close(volume.kspace(1), head[1], rtol=2e-3, atol=1e-4)
    last = torch.view_as_real(head).numpy()
    coils = np.moveaxis(np.stack([head, head, head], 1), 1, -1).copy().view("f4")
    for values, words in (
        (last, "axis 3"),
        (last.astype("f2"), "kspace[:, :, :, 0] + 1j * kspace[:, :, :, 1]"),
        (np.moveaxis(last, -1, 1), "axis 1"),
        (coils, "3 coils in turn"),
    ):
        with pytest.raises(mri.BadInput) as error:
            mri.read_volume(put(tmp_path / "x.h5", kspace=values))
        refused(error, "x.h5", "not complex", words)
    how = {"target_size": (96, 96), "acquisition": "T2", "patient_id": "a"}
    for values in (head.abs(), last, np.rec.fromarrays([head.real.numpy()] * 2, names="real,imag")):
        with pytest.raises(mri.BadInput) as error:
            mri.write_volume(tmp_path / "y.h5", values, **how)
        refused(error, "y.h5", "not complex")


def test_the_limit_of_slices_is_named(tmp_path):
    with pytest.raises(mri.BadInput) as error:
        mri.read_volume(put(tmp_path / "x.h5", kspace=np.ones((10_001, 2, 4), np.complex64)))
    refused(error, "10001 slices", "10000")


# --- masks in files ---------------------------------------------------------------------------------


def test_a_mask_of_points(tmp_path, head):
    mask = mri.sampling_mask("gaussian_2d", (96, 106), 4, 0.1, seed=1)
    path = tmp_path / "x.h5"
    mri.write_volume(path, head, target_size=(80, 96), acquisition="T2", patient_id="a", mask=mask)
    volume = mri.read_volume(path)
    assert torch.equal(volume.mask, mask) and not volume.has_reference
    sample = mri.SliceDataset([volume], "random", 4, 0.08)[0]
    assert torch.equal(sample.mask, mask) and sample.kspace.shape == (96, 106) and sample.target.shape == (80, 96)
    assert torch.equal(sample.kspace, torch.where(mask, head[0], 0))
    assert float(sample.acceleration) == pytest.approx(mri.effective_acceleration(mask))
    network = mri.build_model("unet(features=2, levels=2)").eval()
    image, _, _ = mri.reconstruct_volume(network, mri.SliceDataset([volume], "random", 4, 0.08), 0)
    assert image.shape == (2, 80, 96)
    with pytest.raises(mri.BadInput) as error:
        mri.write_volume(path, head, target_size=(80, 96), acquisition="T2", patient_id="a", mask=mask[:9])
    refused(error, path, "mask")


@pytest.mark.parametrize("kind", ["gaussian_2d", "random", "partial Fourier"])
def test_undersampled_scans_are_reconstructed_as_they_come(tmp_path, head, kind):
    """By classical methods and by a network: better than zero filling, whatever was left out."""
    lines = torch.arange(106) >= 30
    mask = lines if kind == "partial Fourier" else mri.sampling_mask(kind, (96, 106), 4, 0.08, seed=1)
    about = {"target_size": (96, 96), "acquisition": "T2", "patient_id": "a"}
    mri.write_volume(tmp_path / "x.h5", head[1:], **about, mask=mask)
    dataset = mri.SliceDataset([mri.read_volume(tmp_path / "x.h5")], "random", 4, 0.08)
    reference = mri.center_crop(mri.ifft2c(head[1:]), (96, 96)).abs()

    def quality(method):
        return mri.psnr(reference, mri.reconstruct_volume(method, dataset, 0)[0].abs())

    zero = quality(mri.zero_filled)
    gain = {name: quality(mri.classical_method(name, 0.002)) - zero for name in ("tv", "phase_tv", "phase_wavelet")}
    gain["network"] = quality(mri.load_model(mri.ROOT / "checkpoints" / "unrolled_cnn.pt")) - zero
    if kind == "partial Fourier":
        sample = dataset[0]
        image = mri.center_crop(mri.pocs(sample.kspace, sample.mask), (96, 96)).abs()[None]
        gain = {"pocs": mri.psnr(reference, image) - zero, "phase_tv": gain["phase_tv"]}
    assert all(found > 0.5 for found in gain.values()), gain


@pytest.mark.parametrize("kind", ["random", "gaussian_2d"])
def test_a_mask_beside_a_reference_is_the_one_that_is_used(tmp_path, head, kind):
    mask, target = mri.sampling_mask(kind, (96, 106), 4, 0.1, seed=1), mri.center_crop(mri.ifft2c(head), (96, 96)).abs()
    content = {"kspace": torch.where(mask, head, 0), "mask": mask, "reconstruction_esc": target}
    volume = mri.read_volume(put(tmp_path / "x.h5", **content, attrs={"patient_id": "a"}))
    mri.check_split([volume], [])
    for options in ({}, {"seed": 0, "augment": True, "vary_phase": True}):
        sample = mri.SliceDataset([volume], "random", 8, 0.04, **options)[1]
        assert torch.equal(sample.mask.expand(96, 106), mask.expand(96, 106))
        assert torch.equal(sample.target, target[1]) and float(sample.maximum) == pytest.approx(float(target.max()))
    (cached,) = mri.cache_volumes([volume], tmp_path / "cache")
    assert all(torch.equal(a, b) for a, b in zip(cached.cropped(1), volume.cropped(1)))


# --- before the first epoch -------------------------------------------------------------------------


def files(folder, **changes):
    """Two training files and one to validate, of three subjects; changes[name](kspace) -> other data sets."""
    for seed, name in enumerate(("t0", "t1", "v")):
        kspace = scan(seed, matrix=48)
        content = changes[name](kspace) if name in changes else {"kspace": kspace}
        place = folder / ("val" if name == "v" else "train")
        put(place / f"{name}.h5", **{"attrs": {"patient_id": name}} | content)
    return folder


def run(folder, **options):
    return train.run(data=str(folder), out=str(folder / "run"), **SMALL | options)


def test_warnings_stand_before_the_first_epoch_and_in_metrics(tmp_path, capsys):
    metrics = run(files(tmp_path / "d", t1=lambda k: {"kspace": torch.fft.ifftshift(k, dim=(-2, -1))}))
    lines = capsys.readouterr().out.splitlines()
    epoch = next(i for i, line in enumerate(lines) if line.startswith("epoch"))
    (said,) = [line for line in lines[:epoch] if line.startswith("warning: ")]
    assert "1 of 2 training volumes (t1.h5): " in said and "off the centre" in said
    assert said.removeprefix("warning: ") in metrics["warnings"]
    unet = [line for line in metrics["warnings"] if line.startswith("unet:")]
    assert all("labels swapped" in line or "makes the images worse" in line for line in unet)


def test_undersampled_files_are_not_trained_on(tmp_path):
    half = lambda k: {"kspace": torch.where(torch.arange(k.shape[-1]) % 2 == 0, k, 0)}  # noqa: E731
    with pytest.raises(mri.BadInput) as error:
        run(files(tmp_path / "d", t0=half, v=half))
    refused(error, "2 files", "t0.h5", "v.h5", "undersampled")
    assert not (tmp_path / "d" / "run").exists()


def test_all_broken_files_are_named_at_once(tmp_path):
    folder = files(tmp_path / "d", t1=lambda k: {"kspace": torch.full_like(k, torch.nan)})
    path = folder / "train" / "t0.h5"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(mri.BadInput) as error:
        run(folder)
    refused(error, "t0.h5", "truncated", "t1.h5", "NaN")
    with pytest.raises(mri.BadInput) as error:
        run(folder, skip_unreadable=True)  # nothing is left to train on
    refused(error, "t0.h5", "t1.h5")


def test_broken_files_and_empty_slices_are_left_out(tmp_path):
    def empty(kspace):
        return {"kspace": torch.cat([kspace[:1], 0 * kspace[:1], kspace[1:]])}

    folder = files(tmp_path / "d", t1=empty, v=empty)
    path = folder / "train" / "t0.h5"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(mri.BadInput) as error:
        run(folder)
    refused(error, "t0.h5", "t1.h5: slice 1 of kspace is all zero", "--skip-unreadable")
    metrics = run(folder, skip_unreadable=True)
    assert "1 files cannot be read and were left out: t0.h5" in metrics["warnings"]
    assert "2 empty slices were left out, of t1.h5, v.h5" in metrics["warnings"]
    assert metrics["data"]["slices"] == 2
    whole = mri.read_volume(folder / "val" / "v.h5")
    part = whole.without([1])
    assert (
        len(part) == 2 and torch.equal(part.kspace(1), whole.kspace(2)) and torch.equal(part.target(1), whole.target(2))
    )
    assert part.fingerprints() == [whole.fingerprints()[i] for i in (0, 2)] and len(part.without([0])) == 1
    assert torch.equal(part.without([0]).kspace(0), whole.kspace(2))


def test_files_that_name_no_subject(tmp_path):
    unnamed = {name: lambda k: {"kspace": k, "attrs": {}} for name in ("t0", "t1", "v")}
    groups = mri.read_train_and_val(files(tmp_path / "a", **unnamed))
    assert any("names its subject" in line for line in checks.look_at_all(groups).warnings)
    assert checks.look_at_all(mri.read_train_and_val(files(tmp_path / "b"))).warnings == []


def test_names_of_m4raw_tell_the_subject(tmp_path, head):
    """One volunteer's two contrasts, which name no subject: a leak that is found; a folder's reader may be given."""
    for side, name in (("train", "2022061003_T101"), ("val", "2022061003_T201")):
        put(tmp_path / side / f"{name}.h5", kspace=head if side == "train" else head.flip(0))
    for reader in ((), mri.read_folder):
        (leak,) = mri.find_leaks(*mri.read_train_and_val(tmp_path, reader))
        assert "subject '2022061003' is in the training data too" in leak


def test_many_lines_are_cut(tmp_path, head):
    found = [mri.read_volume(put(tmp_path / f"{i}.h5", kspace=head.roll(5 + i, -1))) for i in range(15)]
    lines = checks.look_at_all([found]).warnings
    assert len(lines) == 13 and "--check" in lines[-1]


# --- train.py --check -------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory in which runs/ may be made."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_check_prints_a_table_and_ends_with_1_after_an_alarm(tmp_path, capsys, elsewhere):
    folder = files(tmp_path / "d")
    assert train.run(check=str(folder)) == {"alarm": False}
    table = capsys.readouterr().out
    assert "picture of 3 of 3 files: runs/check/d.png" in table
    (elsewhere / "runs" / "check" / "d.png").unlink()
    assert all(words in table for words in ("t0.h5", "v.h5", "2, 48, 52", "slices H W", "good")), table
    put(folder / "train" / "t1.h5", kspace=scan(1, matrix=48).roll(9, -1))
    mask = torch.arange(52) % 3 == 1
    put(folder / "test" / "undersampled.h5", kspace=torch.where(mask, scan(5, matrix=48), 0), mask=mask)
    (folder / "val" / "broken.h5").write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        train.run(check=str(folder))
    table = capsys.readouterr().out
    assert ended.value.code == 1 and table.count("ALARM") == 2 and "numpy.roll" in table and "empty" in table
    assert "undersampled.h5" in table
    assert not (tmp_path / "d" / "run").exists()
    with Image.open(elsewhere / "runs" / "check" / "d.png") as picture:
        assert np.ptp(np.asarray(picture.convert("L"))) > 200


def test_what_is_drawn_is_read_once_and_alarms_come_first(tmp_path, head, monkeypatch):
    put(tmp_path / "z.h5", kspace=head.roll(9, -1))
    volumes = [mri.read_volume(put(tmp_path / f"{i}.h5", kspace=head)) for i in range(9)]
    volumes.append(mri.read_volume(tmp_path / "z.h5"))
    read, kspace = [], mri.Volume.kspace
    monkeypatch.setattr(mri.Volume, "kspace", lambda self, index: read.append(self.path) or kspace(self, index))
    rows, alarm, seen = checks.check_table(volumes, [])
    assert len(rows) == 10 and alarm and len(read) == len(set(read)) == 10
    assert [one.name for one in seen] == ["z.h5", *(f"{i}.h5" for i in range(7))]
    torch.testing.assert_close(seen[1].image, mri.ifft2c(head[1]).abs())
    torch.testing.assert_close(seen[1].kspace, head[1].abs())
    axes = mri.show_seen(seen[:2]).axes
    assert "ALARM" in axes[1].get_title() and axes[3].get_title() == "good"


def test_check_as_a_command(tmp_path):
    folder = files(tmp_path / "d", v=lambda k: {"kspace": torch.fft.ifftshift(k, dim=(-2, -1))})
    command = [sys.executable, str(mri.ROOT / "train.py"), "--check", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "ALARM" in done.stdout and done.stderr == "", done.stderr


@pytest.mark.parametrize("folder", ["brain_ulf_singlecoil", "brain_3t_multicoil", "brain_t1_dicom"])
def test_real_scans_pass(real, folder, capsys, elsewhere):
    assert train.run(check=str(real / folder)) == {"alarm": False}
    assert "ALARM" not in capsys.readouterr().out


@pytest.mark.parametrize("task", mri.TASKS)
def test_the_demo_data_of_every_task_raise_no_refusal(task):
    folder = mri.ROOT / mri.TASKS[task].settings["data"]
    if not folder.is_dir():
        pytest.skip(f"{folder}: not simulated yet")
    for volume in mri.read_train_and_val(folder)[1][:2]:
        assert not any(finding.refused for finding in mri.look(volume))


def test_a_look_takes_little_time(tmp_path, one_thread):
    """For a slice of 640 x 368, reading included, about 1.5 ms on a quiet machine: less than two Fourier transforms.

    In time of the processor, the least of many: beside other programs the clock says little.
    """
    kspace = torch.randn(1, 640, 368, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    kspace[:, 320, 184] += 500
    volume = mri.read_volume(put(tmp_path / "x.h5", kspace=kspace))
    took = {}
    for _ in range(60):
        for name, work in {"look": lambda: mri.look(volume), "transform": lambda: mri.ifft2c(kspace)}.items():
            start = time.process_time()
            work()
            took[name] = min(took.get(name, 1), time.process_time() - start)
    assert took["look"] < 2 * took["transform"], took


# --- small ones -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [name for name in mri.mask_kinds("H", "W")])
@pytest.mark.parametrize("shape", [(128, 37), (160, 176)])
def test_acceleration_one_leaves_nothing_out(kind, shape):
    assert mri.effective_acceleration(mri.sampling_mask(kind, shape, 1, 0.08, seed=1)) == 1


def test_variables_of_another_programs_processes(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for value, words in (("2", "MASTER_ADDR"), ("two", "no number")):
        monkeypatch.setenv("WORLD_SIZE", value)
        with pytest.raises(mri.BadInput) as error:
            processes.join_processes("cpu")
        refused(error, "WORLD_SIZE", words)


def test_a_checkpoint_with_the_prefix_of_dataparallel(tmp_path):
    stored = torch.load(mri.ROOT / "checkpoints" / "unet.pt", weights_only=True)
    weights = {f"module.{name}": weight for name, weight in stored["model_state"].items()}
    torch.save({**stored, "model_state": weights}, tmp_path / "x.pt")
    plain, prefixed = (mri.load_model(path) for path in (mri.ROOT / "checkpoints" / "unet.pt", tmp_path / "x.pt"))
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), prefixed.state_dict().values()))


def test_the_tests_that_the_table_of_situations_names_are_there():
    named = set(re.findall(r"`(test_\w+)`", (mri.ROOT / "docs" / "files.md").read_text(encoding="utf-8")))
    files = (mri.ROOT / "tests").glob("test_*.py")
    found = {name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)}
    assert len(named) > 20 and named <= found, named - found
