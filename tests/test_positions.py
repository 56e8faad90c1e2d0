"""Reconstructions as NIfTI and DICOM: in the place of the input, without the patient's name."""

import importlib.util

import h5py
import numpy as np
import pytest
import torch
from test_formats import assert_upright, phantom

import mri_utils as mri
import train
from mri_parts.images import write_dicom, write_nifti
from mri_parts.runs import write_reconstruction

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

SLICES, H, W = 5, 48, 40
TURN = np.diag([-1.0, -1.0, 1.0, 1.0])  # between DICOM's axes and NIfTI's


def oblique(right, down, step, start=(-31.0, 12.0, 55.0)):
    """A matrix of a slice that is turned about two axes: (column, row, slice, 1) to mm."""
    a, b = 0.3, -0.5
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([right, down, step])
    affine[:3, 3] = start
    return affine


def blob(affine, place, shape=(SLICES, H, W)):
    """Images (slices, H, W) that are bright around a place in mm, and dim around the middle."""
    s, y, x = np.indices(shape)
    where = np.stack([x, y, s, np.ones(shape)], -1) @ affine.T
    distance = np.square(where[..., :3] - place).sum(-1)
    return 1000 * np.exp(-distance / (2 * 5.0**2)) + 1e-3


def middle_of(image, affine):
    """The centre of mass of the squares of (slices, h, w), in mm."""
    weights = np.square(np.asarray(image, float))
    s, y, x = (np.average(n, weights=weights) for n in np.indices(weights.shape))
    return (affine @ [x, y, s, 1])[:3]


def read_nifti(path):
    """Images (slices, h, w) and their matrix, as nibabel reads them."""
    opened = nibabel.load(path)
    return np.moveaxis(opened.get_fdata(), (0, 1, 2), (2, 1, 0)), opened.affine


def read_series(folder):
    """The same of a DICOM series, by the formula of the standard (PS3.3 C.7.6.2.1.1)."""
    files = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    images = np.stack([f.pixel_array * float(f.RescaleSlope) + float(f.RescaleIntercept) for f in files])
    turn = np.array(files[0].ImageOrientationPatient, float).reshape(2, 3)
    starts = np.array([f.ImagePositionPatient for f in files], float)
    down, right = map(float, files[0].PixelSpacing)
    affine = np.eye(4)
    step = (starts[-1] - starts[0]) / (len(files) - 1)
    affine[:3] = np.column_stack([turn[0] * right, turn[1] * down, step, starts[0]])
    return images, TURN @ affine, files


def written(folder, volume):
    """The reconstruction of a volume in all formats: its own reference."""
    image = torch.stack([volume.target(i) for i in range(len(volume))])
    write_reconstruction(folder, volume, image, "h5 nifti dicom")
    return folder / "reconstructions", image


def save_series(folder, images, affine, name="Secret^Person"):
    """A DICOM series of (slices, H, W), its files in no order."""
    folder.mkdir(parents=True)
    right, down, step, start = (TURN @ affine)[:3].T
    sides = np.linalg.norm([right, down, step], axis=1)
    for s in np.random.default_rng(0).permutation(len(images)):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.MRImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
        data.SeriesInstanceUID, data.StudyInstanceUID = "1.2.3", "1.2.4"
        data.PatientName, data.PatientID, data.InstitutionName = name, "4711-0815", "Secret Hospital"
        data.Rows, data.Columns = images.shape[1:]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelSpacing = [f"{sides[1]:.8f}", f"{sides[0]:.8f}"]
        data.SliceThickness = "3"
        data.ImageOrientationPatient = [f"{v:.9f}" for v in (*right / sides[0], *down / sides[1])]
        data.ImagePositionPatient = [f"{v:.8f}" for v in start + s * step]
        data.PixelData = images[s].round().astype("<u2").tobytes()
        data.save_as(folder / f"x{s}.dcm", enforce_file_format=True)


@pytest.mark.parametrize("shape", [(H, W), (44, 41)])
def test_a_dicom_series_keeps_its_place_and_loses_its_names(shape, tmp_path):
    affine = oblique(1.5, 1.25, 4)
    place = (affine @ [22, 20, 2.4, 1])[:3]
    images = blob(affine, place, (SLICES, *shape))  # 44 x 41 is cropped to 40 x 40, in k-space
    save_series(tmp_path / "in", images, affine)
    expected = middle_of(images, affine)
    (volume,) = mri.read_images(tmp_path / "in", phase=False)
    folder, image = written(tmp_path / "out", volume)
    stem = volume.path.stem
    for found, matrix, *_ in (read_nifti(folder / f"{stem}.nii.gz"), read_series(folder / stem)):
        assert np.allclose(found, image, atol=2e-5 * float(image.max()))
        assert np.abs(middle_of(found, matrix) - expected).max() < 0.05  # mm
    scale = np.array(shape) / image.shape[1:]
    _, _, files = read_series(folder / stem)
    assert np.allclose(np.array(files[0].PixelSpacing, float), np.array([1.25, 1.5]) * scale)
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for secret in (b"Secret", b"4711-0815", b"Hospital"):
            assert secret not in content and secret.decode() not in str(path)
    assert files[0].PatientID == volume.patient_id and files[0].PatientName == ""


def test_a_dicom_series_is_upright(tmp_path):
    images = np.abs(phantom()[:, 0])
    save_series(tmp_path / "in", 1000 * images / images.max(), oblique(1, 1, 3))
    assert_upright(mri.read_images(tmp_path / "in")[0].target(1))


def test_a_part_of_a_series_keeps_its_place(tmp_path):
    affine = oblique(1.5, 1.25, 4)
    save_series(tmp_path / "in", blob(affine, [0, 0, 60]), affine)
    part = mri.read_images(tmp_path / "in")[0].part(2, 5)
    assert np.allclose(part.affine @ [0, 0, 0, 1], affine @ [0, 0, 2, 1], atol=1e-4)


def converted(path):
    """The volume that read_scan and write_volume make of a file, as data/convert.py does."""
    scan = mri.read_scan(path)
    out = path.with_name("converted.h5")
    about = {"acquisition": scan.acquisition, "patient_id": "a name", "target_size": scan.target_size}
    mri.write_volume(out, scan.kspace, axes=scan.axes, attributes={"affine": scan.affine.ravel()}, **about)
    return mri.read_volume(out)


def test_a_nifti_image_keeps_its_place(tmp_path):
    affine, shape = oblique(1.5, 1.25, 4) @ np.diag([-1, 1, -1, 1]), (SLICES, 45, 43)
    images = blob(affine, (affine @ [24, 20, 2.4, 1])[:3], shape)
    images[0] = 0  # an empty slice is left out
    stored = nibabel.Nifti1Image(images.transpose(2, 1, 0).astype(np.float32), affine)
    nibabel.save(stored, tmp_path / "sub-1.nii.gz")
    volume = converted(tmp_path / "sub-1.nii.gz")
    folder, _ = written(tmp_path / "out", volume)
    for found, matrix, *_ in (read_nifti(folder / "converted.nii.gz"), read_series(folder / "converted")):
        assert np.abs(middle_of(found, matrix) - middle_of(images, affine)).max() < 0.05
    assert b"a name" not in (folder / "converted" / "0001.dcm").read_bytes()


@pytest.mark.parametrize("depth", [1, 6])
def test_an_ismrmrd_file_keeps_its_place(depth, tmp_path):
    """A point at (row, column, slice) of the images lies where the directions of the header put it."""
    ismrmrd = pytest.importorskip("ismrmrd")
    read, phase = np.array([0.6, 0.8, 0.0]), np.array([0.0, 0.0, 1.0])
    across, middle = np.cross(read, phase), np.array([7.0, -3.0, 21.0])
    h, w, slices = 16, 12, 4 if depth == 1 else 1
    header = f"""<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><trajectory>cartesian</trajectory>
    <encodedSpace><matrixSize><x>{h}</x><y>{w}</y><z>{depth}</z></matrixSize>
    <fieldOfView_mm><x>160</x><y>96</y><z>{5 * depth}</z></fieldOfView_mm></encodedSpace>
    <reconSpace><matrixSize><x>{h}</x><y>{w}</y><z>{depth}</z></matrixSize>
    <fieldOfView_mm><x>160</x><y>96</y><z>{5 * depth}</z></fieldOfView_mm></reconSpace>
    <encodingLimits/></encoding></ismrmrdHeader>"""
    with ismrmrd.Dataset(str(tmp_path / "a.h5"), "dataset") as dataset:
        dataset.write_xml_header(header)
        for s, z, y in np.ndindex(slices, depth, w):
            line = ismrmrd.Acquisition.from_array(np.full((1, h), 1 + y + z * z, np.complex64))
            line.center_sample = h // 2
            line.idx.slice, line.idx.kspace_encode_step_1, line.idx.kspace_encode_step_2 = s, y, z
            line.position[:] = middle + 7 * s * across
            line.read_dir[:], line.phase_dir[:], line.slice_dir[:] = read, phase, across
            dataset.append_acquisition(line)
    affine = TURN @ mri.read_scan(tmp_path / "a.h5").affine
    step = 7 * across if depth == 1 else 5 * across
    first = middle if depth == 1 else middle - 3 * step  # the middle of a slab is its partition 6 // 2
    for row, column, s in ((h // 2, w // 2, 0), (3, 5, 2)):
        expected = first + (row - h // 2) * 10 * read + (column - w // 2) * 8 * phase + s * step
        assert np.allclose(affine @ [column, row, s, 1], [*expected, 1], atol=1e-3)


def test_without_a_place_the_images_are_written_all_the_same(tmp_path):
    about = {"acquisition": "T1", "patient_id": "p", "axes": ("slices", "frames", "H", "W"), "target_size": (16, 12)}
    mri.write_volume(tmp_path / "a.h5", torch.randn(3, 2, 16, 12, dtype=torch.complex64), **about)
    volume = mri.read_volume(tmp_path / "a.h5").without([1])
    image = torch.stack([volume.target(i) for i in range(2)])
    write_nifti(tmp_path / "a.nii.gz", volume, image)
    write_dicom(tmp_path / "a", volume, image)
    opened = nibabel.load(tmp_path / "a.nii.gz")
    assert opened.shape == (12, 16, 3, 2) and opened.header["sform_code"] == 0
    assert not opened.get_fdata()[..., 1, :].any()  # the slice that was left out
    assert np.allclose(opened.get_fdata()[..., 2, 1].T, image[1, 1])
    files = [pydicom.dcmread(path) for path in sorted((tmp_path / "a").glob("*.dcm"))]
    assert [f.TemporalPositionIdentifier for f in files] == [1, 2, 1, 2] and "PixelSpacing" not in files[0]


@pytest.mark.usefixtures("quick_baselines")
def test_train_py_writes_all_formats(tmp_path):
    """From a folder to the files: one scan with its place, one with the field of view that fastMRI's headers tell."""
    affine, random = oblique(1.5, 1.25, 4), np.random.default_rng(0)
    for name, folder in (("t", "train"), ("placed", "val"), ("spaced", "val")):
        (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        image = blob(affine, (affine @ [24, 20, 1, 1])[:3], (2, 48, 40)) + random.normal(size=(2, 48, 40))
        path, own = tmp_path / "data" / folder / f"{name}.h5", {"affine": affine.ravel()} if name == "placed" else {}
        about = {"target_size": (40, 40), "acquisition": "T1", "patient_id": f"Jane Doe {name}", "attributes": own}
        mri.write_volume(path, mri.fft2c(torch.from_numpy(image) + 0j), **about)
        with h5py.File(path, "r+") as file:
            text = file["ismrmrd_header"][()].decode()
            view = "</matrixSize><fieldOfView_mm><x>96</x><y>60</y><z>4.5</z></fieldOfView_mm></encodedSpace>"
            del file["ismrmrd_header"]
            file["ismrmrd_header"] = text.replace("</matrixSize></encodedSpace>", view)
    small = {"epochs": 1, "model": "unet(features=2, levels=2)", "center_fraction": 0.2, "workers": 0, "device": "cpu"}
    train.run(data=str(tmp_path / "data"), out=str(tmp_path / "run"), format="nifti dicom", **small)
    folder = tmp_path / "run" / "reconstructions"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("placed", "placed.h5", "placed.nii.gz", "spaced", "spaced.h5", "spaced.nii.gz")
    ]
    for name in ("placed", "spaced"):
        found, matrix = read_nifti(folder / f"{name}.nii.gz")
        with h5py.File(folder / f"{name}.h5") as file:
            assert np.allclose(found, file["reconstruction"])
        files = [pydicom.dcmread(path) for path in sorted((folder / name).glob("*.dcm"))]
        assert len(files) == 2 and files[0].pixel_array.shape == (40, 40)
        if name == "placed":
            assert np.allclose(matrix, affine) and np.allclose(read_series(folder / name)[1], affine, atol=1e-6)
        else:
            assert np.allclose(nibabel.load(folder / "spaced.nii.gz").header.get_zooms(), (1.5, 2, 4.5))
            assert [float(side) for side in files[0].PixelSpacing] == [2, 1.5] and float(files[0].SliceThickness) == 4.5
            assert "ImagePositionPatient" not in files[0]
    for path in folder.rglob("*"):
        assert path.is_dir() or not any(word in path.read_bytes() for word in (b"Jane", b"Doe")), path


@pytest.mark.parametrize("value", [np.nan, "text", 3.0, np.zeros(16)])
def test_a_damaged_place_is_none(value, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"] = np.ones((1, 8, 8), np.complex64)
        file.attrs["affine"] = value
    assert mri.read_volume(tmp_path / "a.h5").affine is None


def test_formats_are_given_with_quotation_marks_or_without():
    source = 'format: str = "h5"  # of the images, for example "nifti dicom"\nout: str = "runs"  # a folder'
    for words in (["h5 nifti dicom"], ["h5", "nifti", "dicom"]):
        parsed = mri.flag_parser("", source).parse_args(["--format", *words, "--out", "a"])
        assert mri.output_formats(parsed.format) == ["nifti", "dicom"] and parsed.out == "a"
    with pytest.raises(SystemExit):
        mri.flag_parser("", source).parse_args(["--out", "a", "b"])


def test_formats_are_refused_before_the_training(monkeypatch):
    with pytest.raises(mri.BadInput, match=r"unknown format 'nifty', did you mean 'nifti'\?"):
        train.settled(format="h5 nifty")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nibabel" else found(name))
    with pytest.raises(mri.BadInput, match="format nifti: writing it needs nibabel: pip install nibabel"):
        train.settled(format="nifti dicom")
    assert mri.output_formats("h5, dicom") == ["dicom"]
