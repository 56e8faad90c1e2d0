"""Section 3: reading, writing and splitting files; every fault of a file is told in one line."""

import errno
import subprocess
import sys
import tracemalloc

import h5py
import numpy as np
import pytest
import torch

import mri_utils as mri


def write(path, kspace, **changes):
    """A file with 8x6 images of subject 'A' unless told otherwise."""
    size = (min(8, kspace.shape[-2]), min(6, kspace.shape[-1]))
    settings = {"target_size": size, "acquisition": "AXT1", "patient_id": "A"} | changes
    mri.write_volume(path, kspace, **settings)
    return path


@pytest.fixture
def path(tmp_path, random):
    """A good file of 3 slices, 16x10; the tests break it."""
    return write(tmp_path / "scan.h5", random(3, 16, 10))


def replace(path, key, content):
    with h5py.File(path, "r+") as file:
        if key in file:
            del file[key]
        if content is not None:
            file[key] = content


def reason(error, *named):
    """The message of a BadInput: one line that names the file and more."""
    text = str(error.value)
    assert "\n" not in text and text.strip() == text
    for name in named:
        assert str(name) in text
    return text


# --- reading and writing ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 16, 10), (2, 5, 16, 11), (1, 9, 7)])
def test_round_trip(tmp_path, random, shape):
    kspace = random(*shape)
    path = write(tmp_path / "new" / "scan.h5", kspace, attributes={"snr": 12.5, "simulated": True})
    volume = mri.read_volume(path)
    assert volume.shape == shape and len(volume) == shape[0] and volume.path == path
    assert volume.target_size == (8, 6) and volume.mask is None
    assert (volume.acquisition, volume.patient_id) == ("AXT1", "A")
    assert volume.attributes["snr"] == 12.5 and volume.attributes["simulated"]
    image = mri.center_crop(mri.ifft2c(kspace), (8, 6))
    target = image.abs() if kspace.ndim == 3 else image.abs().square().sum(1).sqrt()
    for i in range(len(volume)):
        assert torch.equal(volume.kspace(i), kspace[i]) and volume.kspace(i).dtype == torch.complex64
        assert torch.allclose(volume.target(i), target[i], rtol=1e-5) and volume.target(i).dtype == torch.float32
    assert volume.maximum == pytest.approx(float(target.max()), rel=1e-6)
    assert volume.columns == (0, shape[-1]) and volume.acquired(volume.kspace(0)).all()
    assert list(path.parent.iterdir()) == [path]  # no partial file is left


def test_single_coil_takes_esc_and_multi_coil_rss(tmp_path, random):
    for shape, key in [((2, 16, 10), "reconstruction_esc"), ((2, 4, 16, 10), "reconstruction_rss")]:
        path = write(tmp_path / f"{key}.h5", random(*shape))
        replace(path, "reconstruction_esc", np.full((2, 8, 6), 1.0, np.float32))
        replace(path, "reconstruction_rss", np.full((2, 8, 6), 2.0, np.float32))
        volume = mri.read_volume(path)
        assert volume.target_key == key
        assert volume.target(1).unique().tolist() == [1.0 if key.endswith("esc") else 2.0]


def test_a_missing_target_is_computed(path, random):
    expected = mri.read_volume(path).target(2)
    for key in ("reconstruction_esc", "reconstruction_rss"):
        replace(path, key, None)
    with h5py.File(path, "r+") as file:
        del file.attrs["max"]
    volume = mri.read_volume(path)
    assert volume.target_key is None and volume.target_size == (8, 6)  # size from the header
    assert torch.allclose(volume.target(2), expected, rtol=1e-5)
    assert volume.maximum == pytest.approx(max(float(volume.target(i).max()) for i in range(3)), rel=1e-6)
    replace(path, "ismrmrd_header", None)
    assert mri.read_volume(path).target(0).shape == (16, 10)  # nothing says what to crop to


def test_a_file_with_an_rss_image_only_does_not_take_it_for_single_coil(path):
    replace(path, "reconstruction_esc", None)
    replace(path, "reconstruction_rss", np.full((3, 8, 6), 7.0, np.float32))
    assert 7.0 not in mri.read_volume(path).target(0)


def test_test_files_keep_their_mask(tmp_path, random):
    kspace, mask = random(2, 16, 10), torch.arange(10) % 3 == 0
    volume = mri.read_volume(write(tmp_path / "test.h5", kspace, mask=mask))
    assert torch.equal(volume.mask, mask) and volume.target_key is None
    assert torch.equal(volume.kspace(1), kspace[1] * mask + 0.0)
    with pytest.raises(mri.BadInput) as error:
        volume.target(0)
    reason(error, volume.path)
    sample = mri.SliceDataset([volume], "random", 4, 0.2)[0]  # the data set uses the file's mask, not its own
    assert torch.equal(sample.mask[0] & (sample.kspace != 0).any(0), mask)
    assert float(sample.acceleration) == pytest.approx(10 / 4)


def test_columns_left_out_at_the_edge_are_unknown(tmp_path, random):
    """They are as empty as columns that the scanner never records, but not known to be zero."""
    mask = torch.arange(10) % 4 == 2
    volume = mri.read_volume(write(tmp_path / "test.h5", random(2, 16, 10), mask=mask.numpy()))
    assert volume.acquired(volume.kspace(0)).all()
    sample = mri.SliceDataset([volume], "random", 4, 0.2)[0]
    assert torch.equal(sample.mask[0], mask) and float(sample.acceleration) == pytest.approx(5)


def test_an_interpolated_matrix_in_the_header(tmp_path):
    """fastMRI's AXFLAIR_203: k-space 512 x 213, a header that says 512 x 512, references of 213 x 213."""
    path = tmp_path / "file_brain_AXFLAIR_203_1.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = np.ones((1, 2, 64, 27), np.complex64)
        file["ismrmrd_header"] = mri.HEADER.format(height=64, width=27, h=64, w=64, last=26, center=13)
    assert mri.read_volume(path).target(0).shape == (27, 27)


@pytest.mark.parametrize(
    ("center", "last", "columns"), [(5, 9, (0, 10)), (3, 5, (2, 8)), (4, 7, (1, 9)), (5, 6, (0, 7))]
)
def test_header_tells_the_acquired_columns(path, center, last, columns):
    """padding_left = enc_y // 2 - center, padding_right = padding_left + maximum + 1."""
    header = mri.HEADER.format(height=16, width=10, h=8, w=6, last=last, center=center)
    replace(path, "ismrmrd_header", header)
    volume = mri.read_volume(path)
    assert volume.columns == columns
    acquired = volume.acquired(volume.kspace(0))
    assert acquired.nonzero().flatten().tolist() == list(range(*columns))
    # columns outside are known, but never count as sampled
    sample = mri.SliceDataset([volume], "equispaced", 2, 0.2)[0]
    assert sample.mask[:, ~acquired].all() and not sample.kspace[:, ~acquired].any()
    sampled = (sample.kspace != 0).any(0)
    assert float(sample.acceleration) == pytest.approx(float(acquired.sum() / sampled.sum()))


def test_acquired_finds_empty_edges_but_no_inner_gap(path, random):
    kspace = random(16, 10)
    kspace[:, 0] = 0
    kspace[:, 8:] = 1e-16
    kspace[:, 4] = 0
    volume = mri.read_volume(path)
    assert volume.acquired(kspace).nonzero().flatten().tolist() == list(range(1, 8))
    assert torch.equal(volume.acquired(kspace.expand(3, 16, 10)), volume.acquired(kspace))  # coils


def test_real_scans_have_empty_edge_columns(real):
    volumes = mri.read_folder(real / "brain_ulf_singlecoil" / "train")
    assert len(volumes) == 9 and len({v.patient_id for v in volumes}) == 3
    for volume in volumes:
        acquired = volume.acquired(volume.kspace(0))
        assert int((~acquired).sum()) == (9 if "FLAIR" in volume.path.name else 1), volume.path
        assert volume.shape in ((4, 128, 126), (4, 128, 196)) and volume.target(3).max() <= volume.maximum * (1 + 1e-6)
    mri.check_split(volumes, mri.read_folder(real / "brain_ulf_singlecoil" / "val"))


def test_real_multi_coil_scan(real):
    volume = mri.read_volume(real / "brain_3t_multicoil" / "head_flash_16coil.h5")
    assert volume.shape == (1, 16, 128, 128) and volume.kspace(0).shape == (16, 128, 128)
    image = mri.center_crop(mri.rss(mri.ifft2c(volume.kspace(0))), volume.target_size)
    assert torch.allclose(volume.target(0), image, rtol=1e-3, atol=1e-4 * float(image.max()))
    with pytest.raises(mri.BadInput) as error:
        mri.read_folder(volume.path.parent, axes=("slices", "H", "W"))
    reason(error, volume.path, "(1, 16, 128, 128), (slices, coils, H, W), this task takes (slices, H, W)")


def test_a_slice_is_read_without_the_rest(tmp_path):
    slices, size = 40, (128, 128)
    path = tmp_path / "large.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = np.ones((slices, *size), np.complex64)
    one_slice = 8 * size[0] * size[1]
    tracemalloc.start()
    try:
        volume = mri.read_volume(path)
        volume.kspace(slices - 1)
        volume.target(0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert one_slice < peak < slices / 4 * one_slice


@pytest.mark.parametrize(
    "layout",
    [{}, {"dtype": "complex128"}, {"dtype": ">c8"}, {"chunks": (1, 8, 10)}, {"compression": "gzip"}],
    ids=["plain", "double", "big-endian", "chunks", "gzip"],
)
def test_every_layout_gives_the_same_slices_also_after_a_change(path, random, layout):
    """Slices of a contiguous data set are read past HDF5; the file may change between two reads."""
    first, second = random(3, 16, 10), random(3, 16, 10)
    volume = mri.read_volume(path)
    before = volume.kspace(1)
    with h5py.File(path, "r+") as file:
        del file["kspace"]
        file["other"] = np.zeros(1000)  # so that k-space lies elsewhere now
        file.create_dataset("kspace", data=first.numpy(), **layout)
    assert torch.equal(volume.kspace(1), first[1]) and not torch.equal(before, first[1])
    with h5py.File(path, "r+") as file:
        file["kspace"][...] = second.numpy()
    assert torch.equal(volume.kspace(2), second[2])


def test_numbers_that_lie_in_the_file_in_another_order(path):
    """HDF5 allows the imaginary part to be stored first: such slices are read by HDF5."""
    with h5py.File(path, "r+") as file:
        kspace = file["kspace"][()]
        del file["kspace"]
        pair = h5py.h5t.create(h5py.h5t.COMPOUND, 8)
        pair.insert(b"r", 4, h5py.h5t.IEEE_F32LE)
        pair.insert(b"i", 0, h5py.h5t.IEEE_F32LE)
        h5py.h5d.create(file.id, b"kspace", pair, h5py.h5s.create_simple(kspace.shape))
        file["kspace"][...] = kspace
    assert np.array_equal(mri.read_volume(path).kspace(1), kspace[1])


def test_fastmri_reads_our_files(tiny):
    data = pytest.importorskip("fastmri.data.mri_data", reason="pip install --no-deps fastmri==0.3.0")
    theirs = data.SliceDataset(tiny / "train", "singlecoil")
    ours = [(v, i) for v in mri.read_folder(tiny / "train") for i in range(len(v))]
    assert len(theirs) == len(ours) == 8
    for (kspace, mask, target, attributes, name, index), (volume, i) in zip(theirs, ours):
        assert (name, index, mask) == (volume.path.name, i, None)
        assert torch.equal(torch.from_numpy(kspace), volume.kspace(i))
        assert torch.equal(torch.from_numpy(target), volume.target(i))
        assert (attributes["padding_left"], attributes["padding_right"]) == volume.columns
        assert attributes["recon_size"][:2] == volume.target_size and attributes["max"] == volume.maximum


# --- faults -----------------------------------------------------------------------------------------


def without_kspace(path):
    replace(path, "kspace", None)


def kspace_is_a_group(path):
    with h5py.File(path, "r+") as file:
        del file["kspace"]
        file.create_group("kspace")


def set_kspace(shape, dtype=np.complex64):
    return lambda path: replace(path, "kspace", np.ones(shape, dtype))


def set_header(text):
    return lambda path: replace(path, "ismrmrd_header", text)


def header(**changes):
    return mri.HEADER.format(**({"height": 16, "width": 10, "h": 8, "w": 6, "last": 9, "center": 5} | changes))


FAULTS = {  # what is done to a good file -> what the message says
    "deleted": (lambda path: path.unlink(), "no such file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "no such file"),
    "text": (lambda path: path.write_text("not a scan"), "not an HDF5 file"),
    "empty": (lambda path: path.write_bytes(b""), "not an HDF5 file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:3000]), "truncated"),
    "no kspace": (without_kspace, "no data set 'kspace'"),
    "kspace a group": (kspace_is_a_group, "no data set 'kspace'"),
    "two axes": (set_kspace((16, 10)), "(16, 10)"),
    "five axes": (set_kspace((1, 1, 1, 16, 10)), "(1, 1, 1, 16, 10)"),
    "no slices": (set_kspace((0, 16, 10)), "(0, 16, 10)"),
    "real": (set_kspace((3, 16, 10), np.float32), "not complex"),
    "text in kspace": (lambda path: replace(path, "kspace", "abc"), "kspace"),
    "other number of images": (set_kspace((4, 16, 10)), "reconstruction_esc"),
    "image larger than kspace": (set_kspace((3, 7, 10)), "larger"),
    "mask too short": (lambda path: replace(path, "mask", np.ones(9, bool)), "mask has 9 columns"),
    "header no XML": (set_header("<ismrmrdHeader><enc"), "ismrmrd_header"),
    "header empty": (set_header(""), "ismrmrd_header"),
    "header a number": (set_header(5.0), "ismrmrd_header"),
    "header without limits": (set_header("<ismrmrdHeader/>"), "ismrmrd_header"),
    "header with words": (set_header(header(center="five")), "ismrmrd_header"),
    "header without columns": (set_header(header(center=20)), "no acquired columns"),
    "header crops to nothing": (
        lambda path: (set_header(header(h=0))(path), replace(path, "reconstruction_esc", None)),
        "ismrmrd_header",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_files_are_refused(path, fault):
    damage, expected = FAULTS[fault]
    damage(path)
    with pytest.raises(mri.BadInput) as error:
        mri.read_volume(path)
    reason(error, path, expected)


@pytest.mark.parametrize(("value", "expected"), [(np.nan, "NaN"), (np.inf, "infinite"), (1j * np.nan, "NaN")])
def test_samples_that_are_no_numbers(path, value, expected):
    with h5py.File(path, "r+") as file:
        file["kspace"][1, 3, 4] = value
    volume = mri.read_volume(path)
    assert torch.isfinite(torch.view_as_real(volume.kspace(0))).all()
    with pytest.raises(mri.BadInput) as error:
        volume.kspace(1)
    reason(error, path, "slice 1", expected)


def test_an_empty_slice(path):
    with h5py.File(path, "r+") as file:
        file["kspace"][2] = 0
    with pytest.raises(mri.BadInput) as error:
        mri.read_volume(path).kspace(2)
    reason(error, path, "slice 2", "zero")


def test_a_target_that_is_no_number(path):
    with h5py.File(path, "r+") as file:
        file["reconstruction_esc"][0, 0, 0] = np.nan
    with pytest.raises(mri.BadInput) as error:
        mri.read_volume(path).target(0)
    reason(error, path, "reconstruction_esc", "NaN")


def test_damage_inside_a_compressed_file(path):
    with h5py.File(path, "r+") as file:
        kspace = file["kspace"][()]
        del file["kspace"]
        data = file.create_dataset("kspace", data=kspace, chunks=(1, 16, 10), compression="gzip")
        place = data.id.get_chunk_info(1).byte_offset
    with open(path, "rb+") as file:
        file.seek(place)
        file.write(b"\0" * 100)
    volume = mri.read_volume(path)
    volume.kspace(0)
    with pytest.raises(mri.BadInput) as error:
        volume.kspace(1)
    reason(error, path, "slice 1", "damaged")


def test_bad_folders(tmp_path):
    for folder, text in [(tmp_path / "missing", "no such folder"), (tmp_path, "no .h5 file")]:
        with pytest.raises(mri.BadInput) as error:
            mri.read_folder(folder)
        reason(error, folder, text)


# --- splits -----------------------------------------------------------------------------------------


def test_check_split(tmp_path, random):
    a = mri.read_volume(write(tmp_path / "train" / "a.h5", random(1, 16, 10), patient_id="A"))
    b = mri.read_volume(write(tmp_path / "val" / "b.h5", random(1, 16, 10), patient_id="B"))
    mri.check_split([a], [b])
    again = mri.read_volume(write(tmp_path / "val" / "again.h5", random(1, 16, 10), patient_id="A"))
    copy = mri.read_volume(write(tmp_path / "val" / "a.h5", random(1, 16, 10), patient_id="C"))
    test_file = mri.read_volume(write(tmp_path / "test.h5", random(1, 16, 10), patient_id="D", mask=torch.ones(10) > 0))
    for train, val, named in [
        ([a], [b, again], (again.path, "'A'", "a.h5")),
        ([a], [b, copy], (copy.path,)),
        ([a, test_file], [b], (test_file.path, "test file")),
        ([a], [test_file], (test_file.path, "test file")),
    ]:
        with pytest.raises(mri.BadInput) as error:
            mri.check_split(train, val)
        reason(error, *named)


def test_split_by_subject(tmp_path, random):
    for i in range(10):
        write(tmp_path / f"{i}.h5", random(1, 16, 10), patient_id=f"subject {i // 2}")
    volumes = mri.read_folder(tmp_path)
    train, val = mri.split_by_subject(volumes, 0.4, seed=1)
    mri.check_split(train, val)
    assert len(train) == 6 and len(val) == 4
    assert sorted(v.path for v in [*train, *val]) == [v.path for v in volumes]
    assert mri.split_by_subject(volumes[::-1], 0.4, seed=1)[1] == val[::-1]  # whatever the order of the files
    assert {tuple(v.path for v in mri.split_by_subject(volumes, 0.4, seed=s)[1]) for s in range(9)} != {val[0].path}
    assert len({v.patient_id for v in mri.split_by_subject(volumes, 0.01)[1]}) == 1


# --- writing in one step ----------------------------------------------------------------------------


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "new" / "note.txt"
    mri.replace_file(path, lambda partial: partial.write_text("old"))

    def disk_full(partial):
        partial.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(mri.BadInput) as error:
        mri.replace_file(path, disk_full)
    reason(error, path, "No space left on device")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    with pytest.raises(KeyError):
        mri.replace_file(path, lambda partial: (partial.write_text("ne"), {}["x"]))
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    with open(path) as reader:  # who has the old file open reads on in it
        mri.replace_file(path, lambda partial: partial.write_text("new"))
        assert reader.read() == "old" and path.read_text() == "new"


def test_two_programs_write_the_same_file(tmp_path):
    """As two runs of a sweep that fill one cache: each writes its own partial file, the last one is kept."""
    path = tmp_path / "cache.slices"

    def write_while_another_does(partial):
        partial.write_text("first")
        mri.replace_file(path, lambda other: other.write_text("second"))
        assert path.read_text() == "second"

    mri.replace_file(path, write_while_another_does)
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


LIMITED = """
import resource, sys, numpy as np, torch
import mri_utils as mri
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # bytes per file: a full disk, to a writer
kind, path = sys.argv[1:]
try:
    if kind == "volume":
        mri.write_volume(path, torch.ones(4, 128, 128, dtype=torch.complex64), target_size=(128, 128),
                         acquisition="AXT1", patient_id="A")
    elif kind == "checkpoint":
        mri.save_checkpoint(path, {"model_state": {"w": torch.ones(10**6)}, "parameters": {}})
    else:
        import matplotlib; matplotlib.use("agg")
        import matplotlib.pyplot as plt
        figure = plt.figure(figsize=(8, 8))
        plt.imshow(np.random.rand(800, 800))
        mri.save_figure(figure, path)
except mri.BadInput as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("kind", ["volume", "checkpoint", "figure"])
def test_a_full_disk_keeps_the_old_file(tmp_path, kind):
    path = tmp_path / "file"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", LIMITED, kind, path], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and str(path) in done.stderr, done.stderr
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_could_not_be_read_is_not_written(tmp_path, random):
    kspace, coils = random(2, 16, 12), random(2, 3, 16, 12)
    spoiled = kspace.clone()
    spoiled[1, 3, 4] = torch.nan
    for told, values, more in [
        ("mask keeps nothing", kspace, {"mask": torch.zeros(12, dtype=torch.bool)}),
        ("NaN", spoiled, {}),
        ("infinite", kspace.to(torch.complex128) * 1e300, {}),
        ("more than 16777216 samples", random(1, 2**12 + 1, 2**12), {}),
        ("noise (2, 5) beside 3 coils", coils, {"noise": random(2, 5)}),
        ("noise (3, 5) beside 3 coils", coils, {"noise": random(3, 5).real}),
        ("10001 slices", random(10_001, 2, 4), {}),
    ]:
        about = {"target_size": (2, 4), "acquisition": "T1", "patient_id": "a"}
        with pytest.raises(mri.BadInput) as error:
            mri.write_volume(tmp_path / "x.h5", values, **about, **more)
        assert told in reason(error, "x.h5") and not (tmp_path / "x.h5").exists()
