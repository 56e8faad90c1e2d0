"""Volumes with named axes, and files of any kind: what a folder holds decides its reader."""

import json

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import mri_utils as mri
import train

ECHOES = ("slices", "echoes", "H", "W")
SEQUENCE = ("slices", "frames", "H", "W")
MULTI_COIL = ("slices", "coils", "H", "W")
pytestmark = pytest.mark.usefixtures("quick_baselines")
SMALL = dict(epochs=1, device="cpu")


@pytest.fixture
def echoes(tmp_path, random):
    """A T2 map's files: 3 slices of 4 echoes that fade."""
    kspace = mri.fft2c(random(3, 4, 24, 16) * torch.tensor([1, 0.6, 0.4, 0.2])[:, None, None])
    (tmp_path / "echoes").mkdir()
    about = {"target_size": (16, 16), "acquisition": "T2", "patient_id": "one"}
    mri.write_volume(tmp_path / "echoes" / "a.h5", kspace, axes=ECHOES, **about)
    return tmp_path / "echoes", kspace


def test_echoes_are_no_coils(echoes):
    folder, kspace = echoes
    (volume,) = mri.read_folder(folder, ECHOES)
    image = mri.center_crop(mri.ifft2c(kspace), (16, 16)).abs()
    assert volume.axes == ECHOES and volume.image_shape == (4, 16, 16)
    assert torch.equal(volume.target(1), image[1]) and volume.maximum == pytest.approx(float(image.max()))
    with h5py.File(folder / "a.h5", "r+") as file:
        assert file.attrs["axes"] == "slices, echoes, H, W" and file["reconstruction_esc"].shape == (3, 4, 16, 16)
        del file["reconstruction_esc"], file.attrs["max"]
    (computed,) = mri.read_folder(folder)
    assert computed.target_key is None and computed.target_size == (16, 16)
    torch.testing.assert_close(computed.target(1), image[1])
    assert computed.maximum == pytest.approx(float(image.max()))


def test_echoes_are_cached_masked_and_batched(echoes, tmp_path):
    folder, _ = echoes
    raw = mri.read_folder(folder)
    sets = [mri.SliceDataset(v, "random", 2, 0.2, seed=0) for v in (raw, mri.cache_volumes(raw, tmp_path / "cache"))]
    for one, other in zip(*sets, strict=True):
        assert all(torch.equal(getattr(one, field), getattr(other, field)) for field in mri.SAMPLE_FIELDS)
        assert one.axes == other.axes == ECHOES[1:] and one.kspace.shape == (4, 16, 16)
        assert one.mask.shape == (1, 1, 16) and not one.kspace[~one.mask.expand(4, 16, 16)].any()
    batch = next(iter(mri.make_loader(sets[1], 3, True, workers=1))).to("cpu")
    assert batch.axes == ECHOES[1:] and batch.target.shape == mri.reconstruct(mri.zero_filled, batch).shape
    image, target, _ = mri.reconstruct_volume(mri.zero_filled, sets[0], 0)
    assert image.shape == target.shape == (12, 16, 16)  # every echo counts as a slice


def test_a_damaged_cache_is_told_in_one_line(echoes, tmp_path):
    (volume,) = mri.cache_volumes(mri.read_folder(echoes[0]), tmp_path / "cache")
    whole = volume.store.read_bytes()
    for bytes_there in (whole[:-1], b"", b"\x93NUMPY", b"other" * 99, whole.replace(b"kspace", b"kspade")):
        volume.store.write_bytes(bytes_there)
        with pytest.raises(mri.BadInput, match=f"{volume.store.name}: slice 2 of the cache is unreadable") as error:
            volume.target(2)
        assert "\n" not in str(error.value)
        mri.cache_volumes(mri.read_folder(echoes[0]), tmp_path / "cache")
        assert volume.store.read_bytes() == whole


@pytest.mark.parametrize("shape", [(2, 16, 8), (2, 3, 16, 8), (2, 3, 4, 16, 8)])
def test_what_is_written_is_read(shape, tmp_path, random):
    for axes in (("slices", *names, "H", "W") for names in ((), ("coils",), ("frames",), ("echoes", "coils"))):
        about = {"target_size": (8, 8), "acquisition": "x", "patient_id": "x", "axes": axes}
        if len(axes) != len(shape):
            with pytest.raises(mri.BadInput, match=r"a.h5: kspace has shape .*, axes 'slices, .*H, W': expected"):
                mri.write_volume(tmp_path / "a.h5", random(*shape), **about)
            continue
        mri.write_volume(tmp_path / "a.h5", random(*shape), **about)
        volume = mri.read_volume(tmp_path / "a.h5")
        assert volume.axes == axes and ("axes" in volume.attributes) == (axes != mri.DEFAULT_AXES.get(len(axes)))
        image = mri.center_crop(mri.ifft2c(volume.kspace(1)), (8, 8))
        expected = mri.rss(image, axes.index("coils") - 1) if "coils" in axes else image.abs()
        assert torch.equal(volume.target(1), expected)


@pytest.mark.parametrize(
    "axes", ["coils, slices, H, W", "slices, H, W", "slices, H, H, W", "slices coils W H", "x" * 500]
)
def test_impossible_names_are_refused(axes, echoes):
    with h5py.File(echoes[0] / "a.h5", "r+") as file:
        file.attrs["axes"] = axes
    with pytest.raises(mri.BadInput, match=r"a.h5: kspace has shape \(3, 4, 24, 16\), axes '") as error:
        mri.read_folder(echoes[0])
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "model, own",
    [
        *((model, ()) for model in ("unet", "magnitude_unet", "kspace_unet", "kspace_sr")),
        *(("cine_unrolled", ("frames",)), ("varnet", ("coils",)), ("rss_unet", ("coils",))),
    ],
)
def test_a_network_refuses_other_axes(model, own, random, tmp_path):
    """Of the same number, too: eight coils are no eight frames."""
    network = mri.build_model(f"{model}(features=2)").eval()
    assert network.axes == (*own, "H", "W")
    about = {"target_size": (32, 32), "acquisition": "x", "patient_id": "x"}
    for name in ("coils", "frames", "echoes"):
        path = tmp_path / f"{name}.h5"
        mri.write_volume(path, mri.fft2c(random(1, 8, 32, 32)), axes=("slices", name, "H", "W"), **about)
        batch = mri.Sample.stack([mri.SliceDataset([mri.read_volume(path)], "random", 2, 0.3)[0]])
        if own == (name,):
            assert mri.reconstruct(network, batch).shape == batch.target.shape
            continue
        words = rf"k-space is \({name}, H, W\), this network takes \({', '.join(network.axes)}\): choose another"
        with pytest.raises(mri.BadInput, match=words):
            mri.reconstruct(network, batch)


def pictures(folder, seed, count=2):
    """Smooth blobs with texture, as 8-bit PNG files."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    y, x = np.mgrid[-1:1:48j, -1:1:40j]
    for number in range(count):
        blob = np.exp(-3 * (x**2 + y**2)) * (1 + 0.2 * np.cos(9 * x + seed + number)) + 0.1 * random.random((48, 40))
        Image.fromarray((180 * blob).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def test_a_folder_of_pictures_trains(tmp_path, capsys):
    for place, count in (("train", 2), ("val", 2)):
        for number in range(count):
            pictures(tmp_path / "data" / place / f"person_{place}_{number}", 10 * len(place) + number, 1)
    settings = {"data": str(tmp_path / "data"), "cache": str(tmp_path / "cache"), "mask": "gaussian_2d"}
    metrics = train.run(**SMALL, **settings, model="unet(features=2, levels=2)", out=str(tmp_path / "run"))
    assert metrics["data"]["volumes"] == 2 and metrics["provenance"]["training_data"]["slices"] == 2
    simulated = "k-space made from images: phase simulated"
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (
        f"2 of 2 volumes: {simulated}" in stored["warnings"]
        and f"warning: 2 of 2 volumes: {simulated}" in capsys.readouterr().out
    )


def test_images_are_cached_bit_for_bit(tmp_path):
    raw = mri.read_images(pictures(tmp_path / "a", 1), noise=0.01)
    cached = mri.cache_volumes(raw, tmp_path / "cache")
    assert cached[0].maximum == raw[0].maximum and cached[0].fingerprints() == raw[0].fingerprints()
    for index in range(2):
        assert all(torch.equal(a, b) for a, b in zip(raw[0].cropped(index), cached[0].cropped(index)))
        assert torch.equal(raw[0].target(index), cached[0].target(index))
    other = mri.cache_volumes(mri.read_images(tmp_path / "a", noise=0.02), tmp_path / "cache")
    assert not torch.equal(other[0].target(0), cached[0].target(0))  # another noise is another file


def test_what_a_folder_holds_decides_its_reader(tiny, tmp_path, random):
    (tmp_path / "heart").mkdir()
    np.savez(tmp_path / "heart" / "cine.npz", dataset=random(5, 4, 16, 16).numpy())
    assert mri.read_folder(tmp_path / "heart", SEQUENCE)[0].axes == SEQUENCE
    assert [len(part) for part in mri.read_train_and_val(tmp_path / "heart", SEQUENCE)] == [4, 1]
    with pytest.raises(mri.BadInput, match=r"\(slices, frames, H, W\), this task takes \(slices, H, W\)"):
        mri.read_folder(tmp_path / "heart", ("slices", "H", "W"))
    pictures(tmp_path / "mixed", 3)
    assert len(mri.read_folder(tmp_path / "mixed")[0]) == 2
    (tmp_path / "mixed" / "a.h5").write_bytes(next((tiny / "val").glob("*.h5")).read_bytes())
    assert [v.path.name for v in mri.read_folder(tmp_path / "mixed")] == ["a.h5"]  # k-space beside pictures of it
    Image.new("L", (16, 16), 9).save(tmp_path / "heart" / "preview.png")
    assert mri.read_folder(tmp_path / "heart")[0].axes == SEQUENCE
    (tmp_path / "empty").mkdir()
    with pytest.raises(mri.BadInput, match=r"empty: no \.h5 file, no .* in it: data/README\.md"):
        mri.read_folder(tmp_path / "empty")


def test_one_registration_makes_another_kind_of_file_known(tmp_path, monkeypatch, random):
    """As somebody's own code does it, from a notebook: raw arrays of coils, a file per subject."""

    class Raw(mri.Volume):
        def kspace(self, index):
            return torch.from_numpy(np.load(self.path)[index])

        def fingerprints(self):
            return [mri.hash_of(k.tobytes()) for k in np.load(self.path)]

    def read(folder):
        volumes = []
        for path in sorted(folder.glob("*.raw.npy")):
            shape = np.load(path, mmap_mode="r").shape
            about = {"target_size": shape[-2:], "columns": (0, shape[-1]), "acquisition": "mine", "axes": MULTI_COIL}
            volumes.append(Raw(path=path, shape=shape, patient_id=path.stem, **about))
        return volumes

    monkeypatch.setitem(mri.READERS, "raw array", mri.Reader(lambda folder: any(folder.glob("*.raw.npy")), read))
    for number in range(3):
        np.save(tmp_path / f"{number}.raw.npy", mri.fft2c(random(1, 3, 32, 24)).numpy())
    pictures(tmp_path / "preview", 0)
    settings = {"task": "multi_coil", "model": "rss_unet(features=2, levels=2)", "data": str(tmp_path)}
    metrics = train.run(**SMALL, **settings, center_fraction=0.3, cache=str(tmp_path / "c"), out=str(tmp_path / "run"))
    assert metrics["data"]["volumes"] == 1 and metrics["provenance"]["training_data"]["volumes"] == 2
    assert {row["acquisition"] for row in metrics["per_volume"].values()} == {"mine"}


def test_a_subject_has_one_label_everywhere(tmp_path):
    for seed, name in enumerate("ab"):
        pictures(tmp_path / name, seed)
    first, second, again = (mri.read_images(tmp_path / name)[0].patient_id for name in "aba")
    assert first == again != second
