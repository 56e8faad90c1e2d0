"""Readers of other scanners' files, and data/convert.py: round trips, orientation, assumptions, faults in one line."""

import gzip
import importlib.util
import struct
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from conftest import save_v73
from scipy.io import savemat

import mri_utils as mri
from mri_parts import formats

F = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
R = np.array([[1, 1, 1, 0], [1, 0, 0, 1], [1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1]])
H, W = 32, 40
LETTERS = {"F": (F, 2, 3), "R": (R, 20, 26)}  # what, its first row and column; neither mirrored nor turned alike

SCRIPT = mri.ROOT / "data" / "convert.py"
spec = importlib.util.spec_from_file_location("convert", SCRIPT)
converter = importlib.util.module_from_spec(spec)
spec.loader.exec_module(converter)


def phantom(slices=3, coils=1):
    """Complex images (slices, coils, H, W) with letters that are brighter from slice to slice, and other coils."""
    y, x = np.mgrid[-1 : 1 : H * 1j, -1 : 1 : W * 1j]
    image = np.exp(-((y / 0.7) ** 4) - (x / 0.8) ** 4)
    for letter, row, column in LETTERS.values():
        block = np.kron(letter, np.ones((2, 2)))
        image[row : row + 10, column : column + 8] += 2 * block
    images = np.stack([image * (s + 1) for s in range(slices)])[:, None] * np.exp(1j * (y + 2 * x))
    weights = [1, *(np.exp(-((y - np.sin(c)) ** 2) + 1j * c * x) for c in range(1, coils))]
    return np.concatenate([images * weight for weight in weights], axis=1)


def to_kspace(images):
    return mri.fft2c(torch.from_numpy(images).to(torch.complex64)).numpy()


def decibels(found, expected):
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert found.shape == expected.shape
    return float(20 * torch.log10(expected.norm() / (found - expected).norm().clamp_min(1e-30)))


def letter_places(image):
    """Where each letter fits a magnitude image best: [row, column]."""
    image, places = np.asarray(image), {}
    for name, (letter, _, _) in LETTERS.items():
        block = np.kron(letter, np.ones((2, 2))) - 0.5
        windows = np.lib.stride_tricks.sliding_window_view(image, block.shape)
        fit = (windows * (block - block.mean())).sum((-2, -1)) / windows.std((-2, -1))
        places[name] = [int(n) for n in np.unravel_index(fit.argmax(), fit.shape)]
    return places


def assert_upright(image):
    assert letter_places(image) == {name: place for name, (_, *place) in LETTERS.items()}


def convert(*arguments):
    converter.main([str(a) for a in arguments])


def converted(path, *options):
    """The volume that one file becomes."""
    out = path.parent / "out"
    convert(path, "--out", out, "--val", 0, *options)
    (written,) = out.rglob("*.h5")
    return mri.read_volume(written)


def refused(path, *options):
    """The one line of a refusal, after which nothing is written."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(SystemExit) as error:
        convert(path, "--out", path.parent / "out", *options)
    assert sorted(path.parent.rglob("*")) == before
    line = error.value.code
    assert isinstance(line, str) and line.startswith("convert.py: ") and line.isprintable() and len(line) < 500
    return line


# --- files of each format, written by the format's own package where there is one ---


def write_mat5(folder, kspace):
    savemat(folder / "scan.mat", {"data": kspace.transpose(2, 3, 1, 0), "name": "text"})
    return folder / "scan.mat", "H, W, coils, slices"


def write_mat73(folder, kspace):
    return save_v73(folder / "scan.mat", ksp=kspace.transpose(2, 3, 1, 0)), "H, W, coils, slices"


def write_cmrxrecon(folder, kspace):
    (folder / "P007").mkdir()
    frames = kspace.transpose(2, 3, 1, 0)[..., None] * np.array([1, 0.5])
    return save_v73(folder / "P007" / "cine_sax.mat", kspace_full=frames), ""


def write_npy(folder, kspace):
    np.save(folder / "scan.npy", kspace.transpose(1, 0, 3, 2))
    return folder / "scan.npy", "coils, slices, W, H"


def write_npz(folder, kspace):
    parts = np.stack([kspace.real, kspace.imag], -1)
    np.savez_compressed(folder / "scan.npz", kspace=parts, other=np.ones(3))
    return folder / "scan.npz", "slices coils H W real_imag"


def write_bart(folder, kspace):
    """BART's own layout: Fortran order, sixteen axes. Slices are axis 13."""
    shape = [1] * 16
    shape[0], shape[1], shape[3], shape[13] = *kspace.shape[2:], kspace.shape[1], kspace.shape[0]
    (folder / "scan.hdr").write_text("# Dimensions\n" + " ".join(map(str, shape)) + "\n# Command\necho\n")
    kspace.transpose(2, 3, 1, 0).astype(np.complex64).ravel(order="F").tofile(folder / "scan.cfl")
    return folder / "scan.cfl", ""


def write_calgary(folder, kspace):
    images = mri.ifft2c(torch.from_numpy(kspace)).numpy()
    corner = np.moveaxis(np.fft.fft2(images, norm="ortho"), 1, -1)  # DC in the corner, coils last
    stored = np.stack([corner.real, corner.imag], -1).reshape(*corner.shape[:-1], -1).astype(np.float32)
    with h5py.File(folder / "e14089s3.h5", "w") as file:
        file["kspace"] = stored
    return folder / "e14089s3.h5", ""


def write_skm_tea(folder, kspace, measured=1):
    """(x, ky, kz, echoes, coils), compressed, beside maps, targets and masks."""
    echoes = np.stack([kspace, 0.5 * kspace], 1) * measured
    with h5py.File(folder / "MTR_005.h5", "w") as file:
        stored = echoes.transpose(0, 3, 4, 1, 2).astype(np.complex64)
        file.create_dataset("kspace", data=stored, compression="lzf")
        file["maps"] = np.ones((*stored.shape[:3], stored.shape[4], 1), np.complex64)
        file["target"] = np.ones((*stored.shape[:4], 1), np.complex64)
        file["masks/poisson_6.0x"] = np.ones(stored.shape[1:3], bool)
    return folder / "MTR_005.h5", ""


def write_m4raw(folder, kspace):
    about = {"target_size": (H, W), "acquisition": "T1", "patient_id": "a1b2c3"}
    mri.write_volume(folder / "2022061003_T101.h5", kspace, **about)
    return folder / "2022061003_T101.h5", ""


def write_mrd(folder, kspace, name="scan.h5", **options):
    return mrd(folder / name, kspace[:, None, None], **options), ""


def mrd(path, kspace, averages=1, oversampling=2, first=0, center=None, skip=1, extra=True, patient="Ann", change=None):
    """An ISMRMRD file of k-space (slices, contrasts, repetitions, coils, H, W), by the format's own package.

    Lines come in random order, each average with an error of its own that the mean removes; `first` columns are
    missing at the edge (partial Fourier), every `skip`-th is measured; `center` is the number of the line through DC.
    """
    ismrmrd = pytest.importorskip("ismrmrd")
    random = np.random.default_rng(0)
    slices, contrasts, repetitions, coils, h, w = kspace.shape
    images = mri.ifft2c(torch.from_numpy(kspace)).numpy()
    height = h * oversampling
    padded = np.zeros((*kspace.shape[:-2], height, w), complex)
    margin = (height - h) // 2
    padded[..., margin : margin + h, :] = images
    wide = to_kspace(padded)
    xsd = ismrmrd.xsd

    def space(x, fov):
        size, view = xsd.matrixSizeType(x=x, y=w, z=1), xsd.fieldOfViewMm(x=fov, y=200, z=5)
        return xsd.encodingSpaceType(matrixSize=size, fieldOfView_mm=view)

    center = w // 2 - first if center is None else center
    limits = xsd.encodingLimitsType(
        kspace_encoding_step_1=xsd.limitType(minimum=0, maximum=w - 1 - first, center=center)
    )
    encoding = xsd.encodingType(
        encodedSpace=space(height, 200.0 * oversampling),
        reconSpace=space(h, 200.0),
        encodingLimits=limits,
        trajectory=xsd.trajectoryType.CARTESIAN,
    )
    header = xsd.ismrmrdHeader(
        subjectInformation=xsd.subjectInformationType(patientID=patient),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=128000000),
        encoding=[encoding],
    )
    acquisitions = []
    for _ in range(2):
        data = random.normal(size=(coils, height)) + 1j * random.normal(size=(coils, height))
        acquisitions.append(ismrmrd.Acquisition.from_array(data.astype(np.complex64)))
        acquisitions[-1].set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    lines = [(s, c, r, a, y) for s in range(slices) for c in range(contrasts) for r in range(repetitions)
             for a in range(averages) for y in range(first, w, skip)]  # fmt: skip
    for s, c, r, a, y in (lines[i] for i in random.permutation(len(lines))):
        error = 0.3 * (a - (averages - 1) / 2)
        line = (wide[s, c, r, :, :, y] * (1 + error)).astype(np.complex64)
        acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(line))
        acquisition.center_sample = height // 2
        if extra and (y + a) % 3 == 0:  # measured from the other end; two samples before the echo thrown away
            acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(line[:, ::-1]))
            acquisition.center_sample = height - 1 - height // 2
            acquisition.set_flag(ismrmrd.ACQ_IS_REVERSE)
        elif extra and y % 3 == 1:
            wider = np.concatenate([np.full((coils, 2), 1e3, np.complex64), line], axis=1)
            acquisition = ismrmrd.Acquisition.from_array(wider)
            acquisition.center_sample, acquisition.discard_pre = height // 2 + 2, 2
        acquisition.idx.kspace_encode_step_1 = y - first + (center - (w // 2 - first))
        acquisition.idx.slice, acquisition.idx.contrast, acquisition.idx.repetition, acquisition.idx.average = (
            s,
            c,
            r,
            a,
        )
        acquisitions.append(acquisition)
    if extra:
        acquisitions.append(ismrmrd.Acquisition.from_array(np.full((coils, height), 1e6, np.complex64)))
        acquisitions[-1].set_flag(ismrmrd.ACQ_IS_NAVIGATION_DATA)
    with ismrmrd.Dataset(str(path), "dataset") as dataset:
        text = ismrmrd.xsd.ToXML(header)
        dataset.write_xml_header(change(text) if change else text)
        for acquisition in acquisitions:
            dataset.append_acquisition(acquisition)
    return path


def write_nifti(folder, images):
    """Magnitudes (slices, H, W) seen from the feet, the nose on top, stored in an odd order of axes."""
    nibabel = pytest.importorskip("nibabel")
    data = images[:, ::-1, ::-1].transpose(2, 1, 0)  # to the right, to the front, upwards
    odd = data.transpose(2, 0, 1)[:, ::-1]  # upwards, to the left, to the front
    affine = np.array([[0, -2, 0, 60], [0, 0, 2, -30], [5, 0, 0, -10], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(odd.astype(np.float32), affine), folder / "sub-03_T1w.nii.gz")
    return folder / "sub-03_T1w.nii.gz"


WRITERS = (
    write_mat5, write_mat73, write_cmrxrecon, write_npy, write_npz, write_bart, write_calgary, write_skm_tea,
    write_m4raw, write_mrd,
)  # fmt: skip


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_"))
def test_round_trip_and_orientation(write, coils, tmp_path, capsys):
    images = phantom(coils=coils)
    path, axes = write(tmp_path, to_kspace(images))
    volume = converted(path, *(["--axes", axes] if axes else []))
    expected = torch.from_numpy(images).to(torch.complex64)
    inner = {write_cmrxrecon: ("frames",), write_skm_tea: ("echoes",)}.get(write, ())
    if inner:
        expected = torch.stack([expected, expected * 0.5], 1)
        about = {"frames": ("P007", "cine_sax"), "echoes": ("MTR_005", "qDESS")}[inner[0]]
        assert (volume.patient_id, volume.acquisition) == about
    if coils == 1 and write is not write_m4raw:  # there the axis is in the file
        expected = expected.squeeze(-3)
        assert volume.axes == ("slices", *inner, "H", "W")
    else:
        assert volume.axes == ("slices", *inner, "coils", "H", "W")
    found = torch.stack([mri.ifft2c(volume.kspace(i)) for i in range(len(volume))])
    quality = decibels(found, expected)
    with capsys.disabled():
        print(f"\n{write.__name__.removeprefix('write_')}, {coils} coils: {quality:.0f} dB", end=" ")
    assert quality > 40 and volume.target_size == (H, W)
    target = volume.target(1)
    assert_upright(target if target.ndim == 2 else target[0])
    if write is write_m4raw:
        assert volume.patient_id == "2022061003"


def test_sensitivity_maps_are_written(tmp_path):
    images = phantom(slices=2, coils=3)
    path, axes = write_npy(tmp_path, to_kspace(images))
    volume = converted(path, "--axes", axes, "--maps")
    with h5py.File(volume.path) as file:
        maps = file["sensitivities"][()]
    assert maps.shape == (2, 3, H, W)
    size = np.abs(maps).astype(float)
    assert np.allclose(np.sqrt((size**2).sum(1))[size.any(1)], 1, atol=1e-3)
    combined = (maps.conj() * images).sum(1, keepdims=True)  # one image, of which each coil sees its part
    bright = np.sqrt((np.abs(images) ** 2).sum(1, keepdims=True)) > 1
    error = np.where(bright, maps * combined - images, 0)
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(images)
    path.parent.joinpath("out").rename(tmp_path / "before")
    assert "--maps: the axes are slices, H, W" in refused(path, "--axes", axes, "--maps", "--single-coil")


def test_nifti_is_turned_upright(tmp_path, capsys):
    images = np.abs(phantom()[:, 0])
    volume = converted(write_nifti(tmp_path, images))
    target = torch.stack([volume.target(i) for i in range(3)])
    quality = decibels(target, torch.from_numpy(images).float())
    with capsys.disabled():
        print(f"\nnifti: {quality:.0f} dB", end=" ")
    assert quality > 40 and volume.patient_id == "sub-03"
    assert_upright(target[1])
    assert volume.notes == ("k-space made from images: phase simulated",)  # a run warns of it
    assert not mri.looks_magnitude_only(volume.kspace(1))


def series(repetitions=2, contrasts=2, coils=2):
    """K-space (slices, contrasts, repetitions, coils, H, W), every image different."""
    images = phantom(2, coils)[:, None, None]
    return to_kspace(images * np.linspace(1, 0.3, contrasts)[:, None, None, None, None]
                     * np.linspace(1, 0.8, repetitions)[:, None, None, None])  # fmt: skip


def test_mrd_counters_become_axes_and_averages_are_averaged(tmp_path, capsys):
    kspace = series()
    volume = converted(mrd(tmp_path / "a.h5", kspace, averages=2))
    assert volume.axes == ("slices", "echoes", "repetitions", "coils", "H", "W") and volume.shape == kspace.shape
    assert decibels(torch.stack([volume.kspace(i) for i in range(2)]), torch.from_numpy(kspace)) > 40
    printed = capsys.readouterr().out
    assert "2 averages averaged" in printed and "64 -> 32 rows" in printed and "1 navigator lines left out" in printed
    assert "Ann" not in printed + str(volume.attributes) and volume.patient_id.startswith("subject_")
    noise = volume.noise()
    assert noise.shape == (2, 2 * 64) and 0.7 < float(noise.abs().square().mean()) / 2 < 1.3  # and no line of the scan


def test_mrd_partial_fourier_lies_where_it_was_measured(tmp_path, capsys):
    kspace = series(1, 1)
    volume = converted(mrd(tmp_path / "a.h5", kspace, first=10))
    kspace[..., :10] = 0
    assert decibels(torch.stack([volume.kspace(i) for i in range(2)]), torch.from_numpy(kspace[:, 0, 0])) > 40
    assert "partial Fourier: columns 10 to 39 of 40 measured" in capsys.readouterr().out
    assert not volume.acquired(volume.kspace(0))[:10].any() and volume.acquired(volume.kspace(0))[10:].all()
    assert_upright(volume.target(1))


@pytest.mark.parametrize("center", [17, 30])
def test_mrd_the_line_through_dc_may_have_any_number(center, tmp_path):
    kspace = series(1, 1)
    volume = converted(mrd(tmp_path / "a.h5", kspace, first=4, center=center, oversampling=1))
    kspace[..., :4] = 0
    assert decibels(volume.kspace(1), torch.from_numpy(kspace[1, 0, 0])) > 40


def test_mrd_undersampled_scans_become_test_files(tmp_path, capsys):
    kspace = series(1, 1)
    path = mrd(tmp_path / "a.h5", kspace, skip=2)
    volume = converted(path)
    assert volume.path.parent.name == "test" and volume.mask.tolist() == [i % 2 == 0 for i in range(W)]
    assert decibels(volume.kspace(0), torch.from_numpy(kspace[0, 0, 0]) * volume.mask) > 40
    assert "undersampled (50% of the columns), so without a reference" in capsys.readouterr().out


def test_mrd_three_dimensions(tmp_path):
    """Partitions are transformed: a scan whose slices all lie in one slab."""
    ismrmrd = pytest.importorskip("ismrmrd")
    slices = to_kspace(phantom(6, 2)).transpose(1, 0, 2, 3)  # coils, z, H, W
    partitions = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(slices, axes=1), axis=1, norm="ortho"), axes=1)
    mrd(tmp_path / "flat.h5", slices.transpose(1, 0, 2, 3)[:1, None, None], oversampling=1, extra=False)
    with ismrmrd.Dataset(str(tmp_path / "flat.h5")) as flat, ismrmrd.Dataset(str(tmp_path / "a.h5")) as dataset:
        text = flat.read_xml_header().decode()
        dataset.write_xml_header(text.replace("<z>1</z>", "<z>6</z>"))
        for z in range(6):
            for y in range(W):
                line = np.ascontiguousarray(partitions[:, z, :, y].astype(np.complex64))
                acquisition = ismrmrd.Acquisition.from_array(line)
                acquisition.center_sample = H // 2
                acquisition.idx.kspace_encode_step_1, acquisition.idx.kspace_encode_step_2 = y, z
                dataset.append_acquisition(acquisition)
    (tmp_path / "flat.h5").unlink()
    volume = converted(tmp_path / "a.h5")
    assert volume.axes == ("slices", "coils", "H", "W") and len(volume) == 6
    assert decibels(volume.kspace(4), slices[:, 4].astype(np.complex64)) > 40


@pytest.mark.parametrize("kind", ["points", "corners"])
def test_mrd_three_dimensions_with_lines_left_out(kind, tmp_path, capsys):
    """Points in z and y become a test file, slices across the readout; where only corners lack, nothing changes."""
    ismrmrd = pytest.importorskip("ismrmrd")
    depth, oversampling = 16, 2
    volume = np.stack([phantom(1, 2)[0, :, ::2] * (1 + np.sin(x / 9)) for x in range(24)], 2)  # coils, z, x, y
    wide = np.pad(volume, ((0, 0), (0, 0), (12, 12), (0, 0)))
    kspace = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(wide, (1, 2, 3)), axes=(1, 2, 3), norm="ortho"), (1, 2, 3))
    y, x = np.mgrid[-1 : 1 : depth * 1j, -1 : 1 : W * 1j]
    kept = np.hypot(y, x) < 1.05
    if kind == "points":
        kept &= (np.random.default_rng(0).random(kept.shape) < 0.4) | (np.hypot(y, x) < 0.3)
    sides = "<x>{}</x><y>40</y><z>16</z></matrixSize><fieldOfView_mm><x>{}</x><y>80</y><z>48</z></fieldOfView_mm>"
    header = f"""<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><trajectory>cartesian</trajectory>
    <encodedSpace><matrixSize>{sides.format(24 * oversampling, 96)}</encodedSpace>
    <reconSpace><matrixSize>{sides.format(24, 48)}</reconSpace><encodingLimits/></encoding></ismrmrdHeader>"""
    with ismrmrd.Dataset(str(tmp_path / "a.h5")) as dataset:
        dataset.write_xml_header(header)
        for row, column in np.argwhere(kept):
            line = np.ascontiguousarray(kspace[:, row, :, column].astype(np.complex64))
            acquisition = ismrmrd.Acquisition.from_array(line)
            acquisition.center_sample = 24
            acquisition.idx.kspace_encode_step_1, acquisition.idx.kspace_encode_step_2 = column, row
            acquisition.position[:], acquisition.read_dir[:] = (4, 5, 6), (1, 0, 0)
            acquisition.phase_dir[:], acquisition.slice_dir[:] = (0, 1, 0), (0, 0, 1)
            dataset.append_acquisition(acquisition)
    found = converted(tmp_path / "a.h5")
    printed = capsys.readouterr().out
    if kind == "corners":
        assert found.has_reference and found.shape == (depth, 2, 24, W) and "the others are zero" in printed
        return
    assert found.path.parent.name == "test" and found.mask.numpy().tolist() == kept.tolist()
    assert found.shape == (24, 2, depth, W) and "samples along the readout transformed to slices, 24 kept" in printed
    expected = torch.from_numpy(volume[:, :, 10]).to(torch.complex64)
    assert decibels(found.kspace(10), torch.where(found.mask, mri.fft2c(expected), 0)) > 40
    place = mri.read_scan(tmp_path / "a.h5").affine @ [20, 8, 12, 1]  # column (y), row (z), slice (x) of the middle
    assert np.allclose(place, [-4, -5, 6, 1])
    assert np.allclose(mri.read_scan(tmp_path / "a.h5").affine[:3, :3], [[0, 0, -2], [-2, 0, 0], [0, 3, 0]])


def test_mrd_what_cannot_be_placed_is_refused(tmp_path):
    def line(**options):
        path = mrd(tmp_path / "a.h5", series(1, 1), **options)
        try:
            assert not mri.read_folder(tmp_path), "an error"
        except mri.BadInput as error:  # train.py tells what to do with such a folder
            assert str(error) == f"{path}: an ISMRMRD file: python data/convert.py {tmp_path}/*.h5 --out data/mine"
        told = refused(path)
        path.unlink()
        return told

    assert "only Cartesian" in line(change=lambda text: text.replace("cartesian", "radial"))
    assert "outside the matrix of 40" in line(center=5)
    assert "of 30 samples: the header is wrong" in line(change=lambda text: text.replace("<x>64</x>", "<x>30</x>"))
    assert "the header is wrong, export again" in line(change=lambda text: text.replace("<x>64</x>", "<x>65000</x>"))
    assert "declares entities" in line(change=lambda text: "<!DOCTYPE a>" + text)
    assert "is unreadable" in line(change=lambda text: text[:300])
    assert "matrixSize/x = 'nan'" in line(change=lambda text: text.replace("<x>64</x>", "<x>nan</x>"))


# --- the converter ---


def subjects(folder, *names, coils=3):
    paths = []
    for number, name in enumerate(names):
        images = phantom(2, coils) * 3**number
        mri.write_volume(
            folder / f"{name}.h5", to_kspace(images), target_size=(H, W), acquisition="AXT1", patient_id=name
        )
        paths.append(folder / f"{name}.h5")
    return paths


def test_split_by_subject(tmp_path):
    paths = subjects(tmp_path, *(f"20220610{i:02d}_T1{k:02d}" for i in range(5) for k in (1, 2)))
    convert(*paths, "--out", tmp_path / "out")
    train, val = (mri.read_folder(tmp_path / "out" / side) for side in ("train", "val"))
    assert len({v.patient_id for v in val}) == 1 and len(val) == 2 and len(train) == 8
    mri.check_split(train, val)
    convert(*paths, "--out", tmp_path / "named", "--val", "2022061001", "2022061003")
    val = mri.read_folder(tmp_path / "named" / "val")
    assert {v.patient_id for v in val} == {"2022061001", "2022061003"} and len(val) == 4


def test_the_subject_may_be_named(tmp_path):
    for name in ("anna", "ben"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "T1.npy", to_kspace(phantom(2))[:, 0])
    paths = [tmp_path / name / "T1.npy" for name in ("anna", "ben")]
    options = ["--axes", "slices, H, W", "--acquisition", "T1"]
    assert "would be T1.h5" in refused_all(paths, *options)
    assert "is not found in the path" in refused_all(paths, *options, "--subject", "(carla)")
    assert "no regular expression" in refused_all(paths, *options, "--subject", "(")
    assert "all files are of one subject (both)" in refused_all(paths[:1], *options, "--subject", "both")
    assert "name some, not all, of: anna, ben" in refused_all(
        paths, *options, "--subject", "/([a-z]+)/T1", "--val", "x"
    )
    convert(*paths, "--out", tmp_path / "out", *options, "--subject", "/([a-z]+)/T1")
    (train,), (val,) = (mri.read_folder(tmp_path / "out" / side) for side in ("train", "val"))
    assert {train.patient_id, val.patient_id} == {"anna", "ben"} and train.acquisition == "T1"
    assert "is there already" in refused_all(paths, *options)


def refused_all(paths, *options):
    out = paths[0].parents[1] / "out"
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(SystemExit) as error:
        convert(*paths, "--out", out, *options)
    assert sorted(out.parent.rglob("*")) == before
    return error.value.code


def test_single_coil_is_near_the_root_sum_of_squares(tmp_path, capsys):
    (path,) = subjects(tmp_path, "a")
    volume = converted(path, "--single-coil")
    assert volume.axes == ("slices", "H", "W") and "single coil emulated from 3" in capsys.readouterr().out
    wanted = torch.stack([mri.read_volume(path).target(i) for i in range(2)])
    found = torch.stack([volume.target(i) for i in range(2)])
    strongest = max(decibels(torch.from_numpy(np.abs(phantom(2, 3)[:, c])).float(), wanted) for c in range(3))
    assert decibels(found, wanted) > max(strongest, 12)
    assert_upright(volume.target(1))


def test_the_emulated_coil_is_a_combination_that_cannot_be_improved_much():
    images = phantom(1, 4)
    axes = ("slices", "coils", "H", "W")
    one = mri.ifft2c(mri.emulate_single_coil(torch.from_numpy(to_kspace(images)), axes))[0]
    coils, wanted = images[0].reshape(4, -1).T, np.linalg.norm(images[0], axis=0)
    weights = np.linalg.lstsq(coils, one.numpy().ravel(), rcond=None)[0]
    assert decibels(coils @ weights, one.numpy().ravel()) > 60  # nothing but a combination
    error = np.linalg.norm(np.abs(coils @ weights) - wanted.ravel())
    random = np.random.default_rng(0)
    for size in (1e-3, 1e-2, 1e-1):
        for _ in range(20):
            other = weights * (1 + size * (random.normal(size=4) + 1j * random.normal(size=4)))
            assert np.linalg.norm(np.abs(coils @ other) - wanted.ravel()) > 0.998 * error
    with pytest.raises(mri.BadInput, match="no coils to combine"):
        mri.emulate_single_coil(torch.ones(1, 8, 8, dtype=torch.complex64), ("slices", "H", "W"))


def test_coils_are_compressed_after_prewhitening(tmp_path, capsys):
    path = mrd(tmp_path / "a.h5", series(1, 1, coils=4))
    volume = converted(path, "--coils", "2")
    assert volume.shape == (2, 2, H, W) and volume.noise() is None
    assert "4 coils compressed to 2, prewhitened" in capsys.readouterr().out
    assert_upright(volume.target(1))
    assert converted(subjects(tmp_path / "more", "b")[0], "--coils", "8").shape == (2, 3, H, W)


def test_dc_in_the_corner_is_told_and_mended(tmp_path, capsys):
    images = phantom(2)[:, 0]
    np.save(tmp_path / "a.npy", np.fft.fft2(images, norm="ortho"))
    options = ["--axes", "slices, H, W"]
    converted(tmp_path / "a.npy", *options)
    assert "--uncentred if np.fft.fft2 made the k-space" in capsys.readouterr().out
    (tmp_path / "out" / "a.h5").unlink()
    volume = converted(tmp_path / "a.npy", *options, "--uncentred")
    assert "off the centre" not in capsys.readouterr().out
    assert_upright(volume.target(1))
    assert decibels(mri.ifft2c(volume.kspace(1)), torch.from_numpy(images[1]).to(torch.complex64)) > 40


def test_scans_that_leave_samples_out_become_test_files(tmp_path, capsys):
    """As ISMRMRD's: whatever the format, what was measured is told by the zeros."""
    kspace = to_kspace(phantom(2, 2))
    points = np.random.default_rng(0).random((H, W)) < 0.4
    points[12:20, 15:25] = True
    lines = (np.arange(W) % 2 == 0) | (np.abs(np.arange(W) - 20) < 4)
    options = ["--axes", "slices, coils, H, W"]
    for name, kept, what in (("points", points, "samples"), ("lines", lines, "columns")):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", kspace * kept)
        volume = converted(tmp_path / name / "a.npy", *options)
        assert volume.path.parent.name == "test" and volume.mask.tolist() == kept.tolist() and not volume.has_reference
        path = tmp_path / name / "a.npy"
        path.with_name("out").rename(path.with_name("before"))
        if name == "points":
            assert "--maps: 0 whole columns were measured" in refused(path, *options, "--maps")
        else:
            assert not converted(path, *options, "--maps").has_reference
        assert f"undersampled ({kept.mean():.0%} of the {what}), so without a reference" in capsys.readouterr().out
    other = kspace * lines
    other[1] = kspace[1] * ~(lines ^ (np.arange(W) < 10))
    np.save(tmp_path / "a.npy", other)
    assert "with other samples in each image: give a full scan" in refused(tmp_path / "a.npy", *options)
    partial = kspace * (np.arange(W) >= 10)  # known to be zero: a reference all the same
    np.save(tmp_path / "a.npy", partial)
    assert converted(tmp_path / "a.npy", *options).has_reference


def test_k_space_without_its_corners_is_cropped(tmp_path, capsys):
    y, x = ((np.arange(n) - n // 2) / (n // 2) for n in (H, W))
    kept = np.hypot(y[:, None], x) <= 1
    kspace = to_kspace(phantom(3, 2))
    path, _ = write_skm_tea(tmp_path, kspace, kept)
    with pytest.raises(mri.BadInput, match=r"SKM-TEA.*python data/convert.py .*/\*.h5 --out data/mine"):
        mri.read_folder(tmp_path)
    volume = converted(path)
    h, w = volume.shape[-2:]
    assert f"cropped from {H}x{W} to {h}x{w}" in capsys.readouterr().out
    assert 0.6 * H < h < 0.8 * H and 0.6 * W < w < 0.8 * W and volume.target_size == (h, w) and volume.mask is None
    top, left = H // 2 - h // 2, W // 2 - w // 2
    assert kept[top : top + h, left : left + w].all()
    assert not kept[top - 2 : top + h + 2, left - 2 : left + w + 2].all()
    inside = torch.from_numpy(kspace[1]).to(torch.complex64)[:, top : top + h, left : left + w]
    assert decibels(volume.kspace(1)[0], inside) > 40
    assert not any(finding.refused for finding in mri.look(volume))


@pytest.mark.parametrize("shape", [(7, 9), (8, 8), (5, 12), (6, 7)])
def test_the_largest_rectangle_is_the_largest(shape):
    """Against all rectangles there are."""
    random = torch.Generator().manual_seed(0)
    for share in (0.5, 0.9, 0.97, 1.0):
        measured = torch.rand(shape, generator=random) <= share
        every = [(h, w) for h in range(2, shape[0] + 1, 2) for w in range(2, shape[1] + 1, 2)]
        full = [h * w for h, w in every if mri.center_crop(measured, (h, w)).all()]
        h, w = formats._full_rectangle(measured)
        assert h * w == max([0, *full]) and (not h * w or mri.center_crop(measured, (h, w)).all())


def test_axes_are_taken_apart(tmp_path):
    path = mrd(tmp_path / "a.h5", series(2, 2))
    out = tmp_path / "apart"
    convert(path, "--out", out, "--val", 0, "--apart", "echoes, repetitions", "--single-coil")
    found = mri.read_folder(out, ("slices", "H", "W"))
    ends = [v.path.stem.partition("_a_")[2] for v in found]
    assert ends == [f"echoes_{e}_repetitions_{r}" for e in (0, 1) for r in (0, 1)]
    assert len({v.patient_id for v in found}) == 1
    strength = [float(v.target(1).max()) for v in found]
    assert np.allclose(np.array(strength) / strength[0], [1, 0.8, 0.3, 0.24], rtol=1e-3)
    assert "axes to take apart: echoes, repetitions" in refused(path, "--apart", "frames")


def test_named_axes(tmp_path):
    kspace = to_kspace(phantom(4, 2))  # slices, coils, H, W
    partitions = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(kspace, axes=0), axis=0, norm="ortho"), axes=0)
    (tmp_path / "a").write_bytes(bytes(10_000))
    arrange = lambda array, names: mri.arrange(tmp_path / "a", array, names.split())  # noqa: E731
    found, axes = arrange(partitions.transpose(2, 3, 1, 0), "H W coils partitions")
    assert axes == ("slices", "coils", "H", "W") and decibels(found, kspace.astype(np.complex64)) > 40
    found, axes = arrange(np.stack([kspace, 3 * kspace])[:, :, None], "averages slices segment coils H W")
    assert axes == ("slices", "coils", "H", "W") and decibels(found, 2 * kspace.astype(np.complex64)) > 40
    found, axes = arrange(kspace.transpose(1, 3, 2, 0), "echoes W H slices")
    assert axes == ("slices", "echoes", "H", "W") and found.shape == (4, 2, H, W)
    for names, told in [
        ("H W coils", "name every axis once"),
        ("H H coils slices", "name every axis once"),
        ("a b coils slices", "name every axis once"),
        ("real_imag H W slices", "axis of 2 real numbers"),
    ]:
        with pytest.raises(mri.BadInput, match=told):
            arrange(kspace, names)
    with pytest.raises(mri.BadInput, match="is no complex k-space"):
        arrange(np.abs(kspace), "slices coils H W")


def test_what_cannot_be_known_is_asked_for(tmp_path):
    kspace = to_kspace(phantom(3, 2))
    np.save(tmp_path / "a.npy", kspace)
    assert '(3, 2, 32, 40) of complex64, and nothing says which axis is which: add for example --axes "' in refused(
        tmp_path / "a.npy"
    )
    np.savez(tmp_path / "a.npz", one=kspace, two=kspace)
    assert "which array is the k-space (found: one, two)? add --variable NAME" in refused(tmp_path / "a.npz")
    assert "no array 'three' in it" in refused(tmp_path / "a.npz", "--variable", "three")
    savemat(tmp_path / "a.mat", {"one": kspace, "two": kspace})
    assert "which array is the k-space (found: one, two)?" in refused(tmp_path / "a.mat")
    (tmp_path / "a.txt").write_text("text")
    assert "none of the formats that are read (fastMRI" in refused(tmp_path / "a.txt")
    assert "no such file" in refused(tmp_path / "b.npy")
    kspace[1] = 0
    np.save(tmp_path / "a.npy", kspace)
    assert "slice 1 is all zero" in refused(tmp_path / "a.npy", "--axes", "slices coils H W")
    kspace[1, 0, 0, 0] = np.nan
    np.save(tmp_path / "a.npy", kspace)
    assert "NaN" in refused(tmp_path / "a.npy", "--axes", "slices coils H W")
    if importlib.util.find_spec("mapvbvd") is None:
        (tmp_path / "meas.dat").write_bytes(bytes(99))
        assert "pip install pymapvbvd" in refused(tmp_path / "meas.dat")


@pytest.mark.parametrize("write", WRITERS[:6], ids=lambda write: write.__name__.removeprefix("write_"))
def test_a_folder_of_such_files_names_the_command(write, tmp_path):
    path, _ = write(tmp_path, to_kspace(phantom()))
    with pytest.raises(mri.BadInput, match=r"files: python data/convert.py .* --out data/mine") as error:
        mri.read_folder(path.parent)
    assert f"{path.parent}/*{path.suffix} --out" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("across", [0, 1, 2])
def test_nifti_in_every_plane_and_with_frames(across, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    images = phantom(3)[:, 0]
    frames = np.stack([images, 2 * images], 1).astype(np.complex64)  # slices, frames, H, W
    data = np.moveaxis(frames[:, :, ::-1, ::-1], (0, 1, 2, 3), (across, 3, *[a for a in (2, 1, 0) if a != across]))
    affine = np.diag([*(6.0 if axis == across else 2.0 for axis in range(3)), 1.0])
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "a.nii")
    volume = converted(tmp_path / "a.nii")
    assert volume.axes == ("slices", "frames", "H", "W") and volume.notes == ()  # complex: nothing is simulated
    assert decibels(torch.stack([mri.ifft2c(volume.kspace(i)) for i in range(3)]), torch.from_numpy(frames)) > 40
    assert_upright(volume.target(2)[1])


def twix(version, lines):
    """A Siemens raw file: "vb" or "vd" (also VE, XA), of (samples (coils, n), counters, flags) for each line.

    The layout is that of the scanner's MDH structures, written from their description: a header of named texts, then
    each line behind a record of its counters; in VD files a table of measurements comes first, and each coil's samples
    have a small record of their own.
    """
    text = b'<ParamLong."iNoOfFourierColumns"> { 64 }'.ljust(12_000) + b"\0"  # a VB file is known by its long header
    named = b"Meas\0" + struct.pack("<I", len(text)) + text
    header = struct.pack("<II", -(-(8 + len(named)) // 32) * 32, 1) + named
    parts = [header.ljust(-(-len(header) // 32) * 32, b"\0")]
    for number, (samples, counters, flags) in enumerate([*lines, (np.zeros((1, 0)), {}, 1)]):  # bit 0: the end
        coils, n = samples.shape
        names = ("line", "average", "slice", "partition", "echo", "phase", "repetition", "set", "segment")
        loop = [counters.get(name, 0) for name in names] + [0] * 5
        size = 192 + coils * (32 + 8 * n) if version == "vd" else coils * (128 + 8 * n)
        first = struct.pack("<IiIII", size, 1, number + 1, 0, 0)
        middle = struct.pack("<IIHH14H2H", flags, 0, n, coils, *loop, 0, 0)
        middle += struct.pack("<HHfIHH", n // 2, 0, 0, 0, W // 2, 0)
        if version == "vd":
            parts.append((first + bytes(20) + middle + bytes(28 + 2 * 24 + 2 * 4)).ljust(192, b"\0"))
        for coil, row in enumerate(samples.astype("<c8")):
            channel = first + middle + bytes(2 * 4 + 2 * 4 + 28) + struct.pack("<HH", coil, 0)
            parts += [bytes(32) if version == "vd" else channel, row.tobytes()]
    measurement = b"".join(parts)
    if version == "vb":
        return measurement
    table = struct.pack("<II", 0, 1) + struct.pack("<IIQQ64s64s", 7, 8, 10240, len(measurement), b"A^Name", b"tse")
    return table.ljust(10240, b"\0") + measurement


@pytest.mark.parametrize("version", ["vb", "vd"])
def test_siemens_twix(version, tmp_path):
    """Slices, coils, averages, oversampling, lines read in reverse, partial Fourier, a noise scan."""
    pytest.importorskip("mapvbvd", reason="pip install pymapvbvd")
    kspace, lines = to_kspace(phantom(3, 2)), [(np.ones((2, 2 * H)), {}, 1 << 25)]
    wide = torch.nn.functional.pad(mri.ifft2c(torch.from_numpy(kspace)), (0, 0, H // 2, H // 2))
    oversampled = mri.fft2c(wide).numpy()
    for s, line, average in np.ndindex(3, W, 2):
        if line >= 8:
            samples = oversampled[s, :, :, line] * (0.5 + average)
            turned = average == 1
            counters = {"slice": s, "line": line, "average": average}
            lines.append((samples[:, ::-1] if turned else samples, counters, turned << 24))
    (tmp_path / "meas.dat").write_bytes(twix(version, lines))
    volume = converted(tmp_path / "meas.dat")
    assert volume.axes == ("slices", "coils", "H", "W") and volume.shape == (3, 2, H, W)
    for s in range(3):
        found, expected = volume.kspace(s), torch.from_numpy(kspace[s])
        assert not found[..., :8].any()
        assert decibels(2**0.5 * found[..., 8:], expected[..., 8:]) > 100  # the package keeps sums, half as long now
    assert_upright(mri.rss(mri.ifft2c(volume.kspace(1)), 0))
    assert b"Name" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*.h5"))


def test_siemens_twix_with_every_second_line_is_a_test_file(tmp_path):
    pytest.importorskip("mapvbvd", reason="pip install pymapvbvd")
    kept = [line for line in range(W) if line % 2 == 0 or 16 <= line < 24]
    kspace = to_kspace(phantom(1, 2))[0]
    lines = [(kspace[:, :, line], {"line": line}, 0) for line in kept]
    (tmp_path / "meas.dat").write_bytes(twix("vd", lines))
    volume = converted(tmp_path / "meas.dat")
    assert not volume.has_reference and volume.mask.nonzero().flatten().tolist() == kept


def test_siemens_twix_with_points_of_a_3d_scan_is_a_test_file(tmp_path):
    pytest.importorskip("mapvbvd", reason="pip install pymapvbvd")
    kept = np.random.default_rng(0).random((H, W)) < 0.4  # partitions, lines
    kept[12:20, 15:25] = True
    kept[-1, -1] = True  # the package takes the last line for the end
    images = np.stack([phantom(1, 2)[0] * (1 + x) for x in range(16)], 1)  # coils, x, partitions, lines
    kspace = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(images, (1, 2, 3)), axes=(1, 2, 3), norm="ortho"), (1, 2, 3))
    wide = np.zeros((2, 32, H, W), complex)  # oversampled
    wide[:, 8:24] = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, 1), axis=1, norm="ortho"), 1)
    wide = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(wide, 1), axis=1, norm="ortho"), 1)
    lines = [(wide[:, :, z, y], {"line": y, "partition": z}, 0) for z, y in np.argwhere(kept)]
    (tmp_path / "meas.dat").write_bytes(twix("vd", lines))
    volume = converted(tmp_path / "meas.dat")
    assert volume.mask.tolist() == kept.tolist() and volume.shape == (16, 2, H, W)
    expected = torch.where(volume.mask, mri.fft2c(torch.from_numpy(images[:, 5])), 0).to(torch.complex64)
    assert decibels(2**0.5 * volume.kspace(5), expected) > 40  # the package keeps sums, half as long now


def test_bart_files_come_in_pairs(tmp_path):
    path, _ = write_bart(tmp_path, to_kspace(phantom(2, 2)))
    assert "give the .cfl file that belongs to it" in refused(path.with_suffix(".hdr"))
    assert "begins with a dot is no scan" in refused(tmp_path / "._scan.cfl")
    convert(path, path.with_suffix(".hdr"), "--out", tmp_path / "out", "--val", 0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scan.h5"]
    (tmp_path / "._scan.cfl").write_bytes(b"\0\5\x16\7")
    convert(tmp_path / "._scan.cfl", path, "--out", tmp_path / "again", "--val", 0)
    path.with_suffix(".hdr").unlink()
    (tmp_path / "out" / "scan.h5").unlink()
    assert "no scan.hdr beside it" in refused(path)


def test_another_format_is_one_definition_and_one_registration(tmp_path, monkeypatch):
    def read(path, axes, variable):
        kspace = torch.from_numpy(np.fromfile(path, np.complex64).reshape(2, H, W))
        return mri.Scan(kspace=kspace, axes=("slices", "H", "W"), target_size=(H, W), patient_id=path.stem)

    to_kspace(phantom(2))[:, 0].astype(np.complex64).tofile(tmp_path / "a.mine")
    monkeypatch.setitem(mri.FORMATS, "mine", mri.Format(lambda path: path.suffix == ".mine", read))
    assert_upright(converted(tmp_path / "a.mine").target(1))
    assert mri.FORMATS["ISMRMRD"].read is mri.read_mrd


def test_a_later_failure_leaves_nothing_and_is_one_line(tmp_path):
    paths = subjects(tmp_path / "in", "a", "b")
    (tmp_path / "in" / "c.npy").write_bytes(b"nothing")
    command = [
        sys.executable,
        str(SCRIPT),
        *map(str, paths),
        str(tmp_path / "in" / "c.npy"),
        "--out",
        str(tmp_path / "out"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and result.stderr.startswith("convert.py: ") and result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert subprocess.run([*command[:4], *command[5:]], capture_output=True, timeout=120).returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train", "val"]


def test_a_compressed_nifti_that_declares_more_than_it_holds(tmp_path):
    path = write_nifti(tmp_path, np.abs(phantom()[:, 0]))
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = np.array([30000, 30000, 300], "<i2").tobytes()
    path.write_bytes(gzip.compress(content))
    assert "more than 1073741824 samples" in refused(path)
