"""data/convert_ulf.py: MATLAB files in the layout of the ultra-low-field repository -> fastMRI files."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import save_v73
from scipy.io import savemat

import mri_utils as mri

SHAPES = {"FSE": (16, 14, 4), "FLAIR": (16, 14, 4), "GRE": (16, 20, 3)}  # readout, phase encode, slice
REAL = Path(os.environ.get("MRI_REAL_DATA", mri.ROOT.parent / "shared" / "real")) / "brain_ulf_singlecoil"


def noise(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def mat_path(root, head, sequence):
    """Where the repository keeps the k-space of one scan; heads are told apart by the folder alone."""
    path = root / f"Figure {head}" / "0.055T" / f"0.055T_{sequence}_kspace_postEMI.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


SCRIPT = mri.ROOT / "data" / "convert_ulf.py"
spec = importlib.util.spec_from_file_location("convert_ulf", SCRIPT)
converter = importlib.util.module_from_spec(spec)
spec.loader.exec_module(converter)


def convert(*arguments):
    """In this process, which is faster; an error is raised as SystemExit."""
    converter.main([str(a) for a in arguments])


def run_script(*arguments):
    """As a user does, in the root of the repository also where mri_utils is not installed."""
    command = [sys.executable, "data/convert_ulf.py", *map(str, arguments)]
    return subprocess.run(command, cwd=mri.ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture
def source(tmp_path):
    """One scan of one head, and a head for validation, so that a fault elsewhere is the only fault."""
    for head in ("6A", "7B"):
        savemat(mat_path(tmp_path / "mat", head, "FSE"), {"ksp": noise(SHAPES["FSE"])})
    return tmp_path / "mat"


def refused(source, *arguments):
    """The one line that a failed conversion prints; nothing may be written."""
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(SystemExit) as error:
        convert(source, source.parent / "out", *arguments)
    assert sorted(source.parent.rglob("*")) == before
    line = error.value.code  # a text, which Python prints before it exits with status 1
    assert isinstance(line, str) and line.startswith("convert_ulf.py: ") and "\n" not in line
    return line


def test_values_split_and_labels(tmp_path):
    arrays = {}
    for i, head in enumerate(("6A", "6B", "7A", "7B")):
        for j, (sequence, shape) in enumerate(SHAPES.items()):
            arrays[head, sequence] = noise(shape, 10 * i + j)
            path = mat_path(tmp_path / "mat", head, sequence)
            content = {"kspace_post": arrays[head, sequence]}
            if head == "7A":  # one head in the newer format
                save_v73(path, **content)
            else:
                savemat(path, {**content, "comment": "text", "magnitude": np.ones(shape)})
        savemat(path.with_name("0.055T_FSE.mat"), {"img": np.ones((4, 4, 4))})  # images lie beside the k-space
    result = run_script(tmp_path / "mat", tmp_path / "ulf", "--val", "7B")
    assert result.returncode == 0, result.stderr
    assert f"python train.py --data {tmp_path / 'ulf'}" in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mat", "ulf"]

    train, val = mri.read_folder(tmp_path / "ulf" / "train"), mri.read_folder(tmp_path / "ulf" / "val")
    assert {v.patient_id for v in train} == {"ulf_6A", "ulf_6B", "ulf_7A"} and len(train) == 9
    assert [v.path.name for v in val] == ["head_7B_FLAIR.h5", "head_7B_FSE.h5", "head_7B_GRE.h5"]
    mri.check_split(train, val)
    for volume in train + val:
        _, head, sequence = volume.path.stem.split("_")
        expected = arrays[head, sequence].astype(np.complex64)
        assert (volume.acquisition, volume.patient_id) == (f"ULF_{sequence}", f"ulf_{head}")
        assert volume.shape == expected.transpose(2, 0, 1).shape
        assert volume.target_size == volume.shape[1:]
        for i in range(len(volume)):
            np.testing.assert_array_equal(volume.kspace(i).numpy(), expected[:, :, i])


def test_heads_in_file_names_and_default_validation(tmp_path):
    for head in ("1", "2", "3"):
        savemat(tmp_path / f"head_{head}_gre.mat", {"k": noise(SHAPES["GRE"])})
    convert(tmp_path, tmp_path / "out", "--pattern", "*.mat")
    assert [v.patient_id for v in mri.read_folder(tmp_path / "out" / "train")] == ["ulf_1", "ulf_2"]
    assert [v.patient_id for v in mri.read_folder(tmp_path / "out" / "val")] == ["ulf_3"]


def test_3d_kspace_is_noticed_and_transformed(source):
    slices = np.ones(8)[:, None, None] * noise((16, 14), 5)  # the same in every slice: all energy in one partition
    partitions = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(slices, axes=0), axis=0, norm="ortho"), axes=0)
    savemat(mat_path(source, "6A", "FLAIR"), {"ksp": np.moveaxis(partitions, 0, -1)})
    assert "--slice-axis kspace" in refused(source)
    convert(source, source.parent / "out", "--slice-axis", "kspace")
    volume = mri.read_volume(source.parent / "out" / "train" / "head_6A_FLAIR.h5")
    np.testing.assert_allclose(volume.kspace(3).numpy(), slices[3], atol=1e-5)


def test_agrees_with_the_real_conversion(tmp_path):
    """A real scan, put back into MATLAB's order of axes, converts to the very same volume."""
    if not REAL.is_dir():
        pytest.skip(f"no real scans in {REAL}")
    for split, name in (("train", "head_6A_GRE"), ("val", "head_7B_GRE")):
        volume = mri.read_volume(REAL / split / f"{name}.h5")
        kspace = np.stack([volume.kspace(i).numpy() for i in range(len(volume))], axis=-1)
        savemat(mat_path(tmp_path / "mat", name[5:7], "GRE"), {"ksp": kspace})
    convert(tmp_path / "mat", tmp_path / "out", "--val", "7B")
    for split, name in (("train", "head_6A_GRE"), ("val", "head_7B_GRE")):
        old, new = (mri.read_volume(root / split / f"{name}.h5") for root in (REAL, tmp_path / "out"))
        assert (old.shape, old.acquisition, old.patient_id, old.target_size, old.columns) == (
            (new.shape, new.acquisition, new.patient_id, new.target_size, new.columns)
        )
        np.testing.assert_array_equal(old.kspace(2), new.kspace(2))
        np.testing.assert_allclose(old.target(2), new.target(2), atol=1e-5)


def test_bad_files_are_refused(source):
    bad = mat_path(source, "7B", "GRE")

    bad.write_bytes(b"no MATLAB file, just some text\n" * 20)
    assert "not a MATLAB file" in refused(source)
    bad.write_bytes(b"")
    assert "not a MATLAB file" in refused(source)

    savemat(bad, {"img": np.ones((16, 20, 3)), "flat": noise((16, 20))})
    line = refused(source)
    assert "no complex 3-D array in it" in line and "img float64 (16, 20, 3)" in line and "flat complex128" in line

    savemat(bad, {"before": noise(SHAPES["GRE"]), "after": noise(SHAPES["GRE"], 1)})
    line = refused(source)
    assert "before, after" in line and "--variable" in line
    assert "no complex 3-D array in it (wanted: nothing; found: " in refused(source, "--variable", "nothing")
    savemat(bad, {"ksp": noise(SHAPES["GRE"]), "raw": noise(SHAPES["GRE"], 1)})
    convert(source, source.parent / "out", "--variable", "ksp")
    assert "is there already" in refused(source, "--variable", "ksp")


def test_an_error_is_one_line_and_a_status(tmp_path):
    result = run_script(tmp_path, tmp_path / "out")
    assert result.returncode == 1 and result.stdout == "" and not (tmp_path / "out").exists()
    assert result.stderr.startswith(f"convert_ulf.py: {tmp_path}: no *kspace_postEMI.mat in it or below: ")
    assert result.stderr.count("\n") == 1


def test_the_folder_may_be_a_link_or_the_current_one(source, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder, place in ((tmp_path / "link", "disk"), (".", "here")):
        convert(source, folder)
        assert len(mri.read_folder(tmp_path / place / "train")) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"mat", "disk", "link", "here"}


def test_a_failed_write_leaves_nothing(source, monkeypatch):
    written = []

    def write_one_then_fail(path, *args, **kwargs):
        if written:
            raise mri.BadInput(f"{path}: cannot be written (No space left on device): free disk space")
        written.append(path)
        original(path, *args, **kwargs)

    original = mri.write_volume
    monkeypatch.setattr(mri, "write_volume", write_one_then_fail)
    assert "No space left" in refused(source)
    assert written


def test_bad_names_and_numbers_are_refused(source):
    assert "name some, not all, of the heads found: 6A, 7B" in refused(source, "--val", "9Z")
    assert "name some, not all" in refused(source, "--val", "6A", "7B")
    assert "no *.nothing in it or below" in refused(source, "--pattern", "*.nothing")
    assert "no *kspace_postEMI.mat" in refused(source / "missing")

    extra = source / "Figure 7B" / "copy of FSE_kspace_postEMI.mat"
    savemat(extra, {"ksp": noise(SHAPES["FSE"])})
    assert "FSE of head 7B is in" in refused(source)
    extra.rename(extra.with_name("T1_kspace_postEMI.mat"))
    assert "FLAIR|FSE|GRE" in refused(source)
    extra.with_name("T1_kspace_postEMI.mat").unlink()

    kspace = noise(SHAPES["GRE"])
    kspace[0, 0, 0] = np.nan
    savemat(mat_path(source, "7B", "GRE"), {"ksp": kspace})
    assert "holds NaN" in refused(source)
