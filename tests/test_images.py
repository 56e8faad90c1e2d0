"""Images in place of k-space: DICOM series, PNG and TIFF folders, and what becomes of them."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image

import mri_utils as mri

pydicom = pytest.importorskip("pydicom")
NAME, NUMBER = "Curie^Marie", "MRN-1867-1107"  # of an invented patient


def picture(seed=0, h=64, w=48):
    """A smooth blob with some texture, whole numbers from 0 to 1000."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    blob = np.exp(-3 * (x**2 + y**2)) * (1 + 0.2 * np.cos(9 * x + seed) * np.cos(7 * y))
    return np.round(800 * blob + 20 * random.random((h, w))).astype(np.uint16)


def write_dicom(path, pixels, position=0.0, series=1, study=1, person=(NAME, NUMBER), **changes):
    """A minimal MR image; changes are DICOM keywords, None removes one."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = changes.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.MRImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.PatientName, data.PatientID, data.PatientBirthDate = *person, "18671107"
    data.SeriesDescription = f"t1 of {NAME}"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.SeriesNumber = f"1.2.{study}", f"1.2.{study}.{series}", series
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, position]
    data.ScanningSequence, data.EchoTime, data.InstanceNumber = ["GR", "IR"], 3.1, 1
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelData = np.ascontiguousarray(pixels).tobytes()
    for keyword, value in changes.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def test_series_are_told_apart_and_sorted_by_position(tmp_path):
    order = [3, 0, 2, 1]
    for number, position in enumerate(order):
        write_dicom(tmp_path / f"IM{number}", picture(position), float(position), series=1)
    for position in range(2):
        write_dicom(tmp_path / "deeper" / f"{position}.dcm", picture(9 + position, 32, 32), float(position), series=2)
    first, second = mri.read_images(tmp_path)
    assert first.shape == (4, 64, 48) and second.shape == (2, 32, 32) and first.patient_id == second.patient_id
    assert [path.name for path in first.files] == ["IM1", "IM3", "IM2", "IM0"]
    for position in range(4):
        expected = torch.from_numpy(picture(position).astype(np.float32))
        torch.testing.assert_close(first.target(position), expected, rtol=0, atol=0.01)  # the crop took nothing away
        assert not mri.looks_magnitude_only(first.kspace(position))
        assert first.kspace(position).equal(mri.read_images(tmp_path)[0].kspace(position))
    plain = mri.read_images(tmp_path, phase=False)[0]
    assert mri.looks_magnitude_only(plain.kspace(0))
    noisy = mri.read_images(tmp_path, phase=False, noise=0.05)[0].kspace(0) - plain.kspace(0)
    assert float(noisy.real.std()) == pytest.approx(0.05 * float(plain.target(0).max()), rel=0.05)
    assert len(set(first.fingerprints())) == 4


def test_a_cropped_matrix_without_phase_stays_real(tmp_path):
    """An even crop leaves the outermost row and column without mirror images; the image is real all the same."""
    texture = np.random.default_rng(0).integers(0, 1000, (64, 64)).astype(np.uint16)
    tags = {"AcquisitionMatrix": [32, 0, 0, 32], "InPlanePhaseEncodingDirection": "ROW"}
    write_dicom(tmp_path / "IM1", texture, **tags)
    (volume,) = mri.read_images(tmp_path, phase=False)
    assert volume.shape == (1, 32, 32) and mri.looks_magnitude_only(volume.kspace(0))


def test_files_of_one_name_share_neither_phase_nor_noise(tmp_path):
    """Every series has its IM0001: a network that knew its noise from training would be praised for it."""
    for folder in ("a", "b"):
        write_dicom(tmp_path / folder / "IM1", picture(ord(folder)))
    drawn = []
    for folder in ("a", "b"):
        noisy, plain = (mri.read_images(tmp_path / folder, phase=False, noise=n)[0].kspace(0) for n in (0.05, 0.0))
        phased = mri.ifft2c(mri.read_images(tmp_path / folder)[0].kspace(0))
        drawn.append((noisy - plain, phased / phased.abs()))
    (noise, phase), (other_noise, other_phase) = drawn
    assert abs(torch.vdot(noise.flatten(), other_noise.flatten())) < 0.1 * noise.norm() * other_noise.norm()
    assert (phase - other_phase).abs().max() > 0.1


def test_echoes_of_one_series_are_two_volumes(tmp_path):
    for echo in (2.0, 4.0):
        for position in range(2):
            write_dicom(tmp_path / f"{echo}_{position}.dcm", picture(), float(position), EchoTime=echo)
    assert [(v.acquisition, len(v)) for v in mri.read_images(tmp_path)] == [("GR_IR_TE2", 2), ("GR_IR_TE4", 2)]


def test_stored_numbers_become_image_values(tmp_path):
    pixels = picture()
    write_dicom(tmp_path / "a" / "1", pixels, RescaleSlope=0.5, RescaleIntercept=-3)
    write_dicom(tmp_path / "b" / "1", pixels, PhotometricInterpretation="MONOCHROME1")
    signed = pixels.astype(np.int16) - 100
    write_dicom(tmp_path / "c" / "1", signed, PixelRepresentation=1, syntax=pydicom.uid.ImplicitVRLittleEndian)
    write_dicom(tmp_path / "d" / "1", pixels, WindowCenter=[200, 300], WindowWidth=400)  # display only
    expected = {"a": pixels * 0.5 - 3, "b": pixels.max() - pixels.astype(float), "c": signed, "d": pixels}
    for name, values in expected.items():
        np.testing.assert_allclose(mri.read_images(tmp_path / name)[0].image(0).numpy(), values, atol=1e-3)


def enlarged(pixels, h, w):
    """Zero filling in k-space, as scanners interpolate."""
    spectrum = np.fft.fftshift(np.fft.fft2(pixels.astype(float)))
    rows, columns = (h - pixels.shape[0]) // 2, (w - pixels.shape[1]) // 2
    full = np.pad(spectrum, ((rows, rows), (columns, columns)))
    return np.abs(np.fft.ifft2(np.fft.ifftshift(full))) * h * w / pixels.size


@pytest.mark.parametrize(("direction", "matrix"), [("ROW", [0, 64, 48, 0]), ("COL", [0, 48, 64, 0])])
def test_interpolated_images_shrink_to_the_acquired_matrix(direction, matrix, tmp_path, capsys):
    """The header says frequency and phase encodes, and which of them runs along the rows."""
    for position in range(3):
        pixels = np.round(enlarged(picture(position), 128, 96)).astype(np.uint16)
        tags = {"AcquisitionMatrix": matrix, "InPlanePhaseEncodingDirection": direction}
        write_dicom(tmp_path / f"{position}", pixels, float(position), **tags)
    volume = mri.read_images(tmp_path)[0]
    assert volume.shape == (3, 64, 48)
    said = capsys.readouterr().out
    assert "128x96 were interpolated from 64x48 (AcquisitionMatrix)" in said and "; ".join(volume.notes[1:]) in said
    for position in range(3):  # rounding to whole numbers is all that was lost
        assert mri.psnr(torch.from_numpy(picture(position)[None].astype(float)), volume.target(position)[None]) > 50
    assert any("interpolated from 64x48" in text for text in mri.volume_warnings(volume))


def test_pictures_without_a_header_are_judged_by_their_spectrum(tmp_path, capsys):
    for name, pixels in {"full": picture().astype(float), "enlarged": enlarged(picture() + 500, 128, 96)}.items():
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.fromarray(pixels.astype(np.float32)).save(tmp_path / name / f"{number}.tif")
    volumes = {volume.path.stem.rpartition("_")[2]: volume for volume in mri.read_images(tmp_path)}
    assert volumes["full"].shape == volumes["enlarged"].shape == (2, 64, 48)
    simulated = "k-space made from images: phase simulated"
    assert volumes["full"].notes == (simulated,) and "cropped" in capsys.readouterr().out
    assert "(its spectrum)" in volumes["enlarged"].notes[1]
    assert volumes["full"].patient_id != volumes["enlarged"].patient_id  # a folder is a subject
    target = torch.from_numpy(picture() + 500.0)[None]
    assert mri.psnr(target, volumes["enlarged"].target(0)[None]) > 60


def test_sizes_become_multiples_of_8_and_say_so(tmp_path, capsys):
    Image.fromarray(picture(0, 70, 45).astype(np.uint8)).save(tmp_path / "a.png")
    assert mri.read_images(tmp_path)[0].shape == (1, 64, 40)
    assert "70x45 cropped to 64x40, multiples of 8" in capsys.readouterr().out


def refuse(folder, *parts):
    with pytest.raises(mri.BadInput) as error:
        for volume in mri.read_images(folder):
            for index in range(len(volume)):
                volume.kspace(index)
    text = str(error.value)
    assert "\n" not in text and text.startswith(str(folder))
    assert all(part in text for part in parts), text


def test_what_an_export_holds_beside_images_is_passed_over(tmp_path):
    for number in range(2):
        write_dicom(tmp_path / f"IM{number}", picture(number), float(number))
    for name, kind in (("DICOMDIR", "MediaStorageDirectory"), ("PR", "GrayscaleSoftcopyPresentationState")):
        data = pydicom.dcmread(tmp_path / "IM0")
        del data.PixelData, data.Rows, data.Columns
        data.file_meta.MediaStorageSOPClassUID = getattr(pydicom.uid, f"{kind}Storage")
        data.save_as(tmp_path / name)
    (volume,) = mri.read_images(tmp_path)
    assert [path.name for path in volume.files] == ["IM0", "IM1"]
    (tmp_path / "report").mkdir()
    data.file_meta.MediaStorageSOPClassUID = pydicom.uid.BasicTextSRStorage
    data.save_as(tmp_path / "report" / "SR")
    refuse(tmp_path / "report", "no DICOM, PNG or TIFF image in it")


def test_faults_are_told_in_one_line(tmp_path, monkeypatch):
    good = picture()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    refuse(tmp_path / "empty", "no DICOM, PNG or TIFF image in it")
    refuse(tmp_path / "nowhere", "no such folder")
    write_dicom(tmp_path / "mixed" / "1", good, 1.0)
    write_dicom(tmp_path / "mixed" / "2", picture(0, 32, 32), 2.0)
    refuse(tmp_path / "mixed", "1: 64x48 pixels", "32x32")
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    write_dicom(tmp_path / "colour" / "1", np.stack([good] * 3, -1), **colour)
    refuse(tmp_path / "colour", "a colour image (RGB)")
    write_dicom(tmp_path / "bare" / "1", good, PixelData=None)
    refuse(tmp_path / "bare", "no pixel data")
    write_dicom(tmp_path / "bare_too" / "1", good, PixelData=None, Rows=None, Columns=None)
    refuse(tmp_path / "bare_too", "no pixel data")
    write_dicom(tmp_path / "frames" / "1", np.stack([good] * 2), NumberOfFrames=2, Rows=64, Columns=48)
    refuse(tmp_path / "frames", "many frames")
    write_dicom(tmp_path / "black" / "1", good * 0)
    refuse(tmp_path / "black", "the image is empty")
    write_dicom(tmp_path / "small" / "1", good[:6, :6])
    refuse(tmp_path / "small", "too small")
    path = write_dicom(tmp_path / "packed" / "1", good)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    data["PixelData"].VR = "OB"
    data.save_as(path)
    refuse(tmp_path / "packed", "compressed (JPEG 2000", "pip install")
    for name, pixels in {"red": np.dstack([good, good * 0, good]), "pages": np.stack([good] * 2)}.items():
        (tmp_path / name).mkdir()
        pictures = [Image.fromarray(p.astype(np.uint8)) for p in (pixels if name == "pages" else [pixels])]
        pictures[0].save(tmp_path / name / "1.tif", save_all=True, append_images=pictures[1:])
        refuse(tmp_path / name, "a colour image or several in one")
    (tmp_path / "no_read").mkdir()
    (tmp_path / "no_read" / "1").symlink_to("/proc/self/mem")
    refuse(tmp_path / "no_read", "damaged file (OSError)")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    refuse(tmp_path / "torn", "damaged image")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refuse(tmp_path / "mixed", "reading DICOM needs pydicom: pip install pydicom")


def test_grey_stored_as_three_equal_colours_is_grey(tmp_path):
    Image.fromarray(np.dstack([picture().astype(np.uint8)] * 3)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(mri.read_images(tmp_path)[0].image(0).numpy(), picture().astype(np.uint8))


def test_a_subject_is_known_on_both_sides_without_its_name(tmp_path):
    """Numbers of patients decide who is who; those made anonymous are told apart by their study."""
    people = {"train/a": ((NAME, NUMBER), 1), "train/b": (("***", "***"), 2), "val/c": (("***", "***"), 3)}
    for name, (person, study) in people.items():
        write_dicom(tmp_path / name / "1", picture(study), person=person, study=study)
    mri.check_split(mri.read_images(tmp_path / "train"), mri.read_images(tmp_path / "val"))
    write_dicom(tmp_path / "val" / "d" / "1", picture(7), person=(NAME, NUMBER), study=9)
    with pytest.raises(mri.BadInput, match=r"subject 'subject_[0-9a-f]{8}' is in the training data too"):
        mri.check_split(mri.read_images(tmp_path / "train"), mri.read_images(tmp_path / "val"))


def test_the_real_series_is_cropped_to_what_was_acquired(real):
    volume = mri.read_images(real / "brain_t1_dicom")[0]
    assert volume.shape == (42, 256, 224) and "interpolated from 256x230" in volume.notes[1]
    spectrum = mri.fft2c(volume.image(20)).abs().square()
    assert mri.center_crop(spectrum, (256, 224)).sum() > 0.998 * spectrum.sum()
    assert json.loads(json.dumps(volume.attributes))["window"][1] > 100
