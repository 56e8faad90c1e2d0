"""Section 4: the demo scanner. Each test states one property of the simulated data."""

import dataclasses
import json
import os
import pathlib

import h5py
import numpy as np
import pytest
import torch

import mri_utils as mri
from mri_parts import scanner

MATRIX = 64


@pytest.fixture(scope="module")
def heads():
    """The same head (seed 3) in every sequence, without noise and lesions: name -> (k-space, info)."""
    return {q: mri.simulate_head(3, q, slices=3, matrix=MATRIX, noise=0, lesions=0) for q in mri.SEQUENCES}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demo"
    return mri.demo_data(folder, train=8, val=4, slices=2, matrix=48)


def target(kspace: torch.Tensor, matrix: int = MATRIX) -> np.ndarray:
    return mri.center_crop(mri.ifft2c(kspace), (matrix, matrix)).abs().numpy()


def tissue_masks(monkeypatch, **kwargs) -> dict[str, np.ndarray]:
    """Pixels of the target image that are nearly pure grey matter, white matter, CSF, ..."""
    seen = {}
    original = scanner._tissue_fractions
    monkeypatch.setattr(scanner, "_tissue_fractions", lambda *args: seen.setdefault("parts", original(*args)))
    mri.simulate_head(**kwargs)
    parts = {name: torch.from_numpy(part[:, ::2, ::2]) for name, part in seen["parts"].items()}
    return {name: (mri.center_crop(part, (MATRIX, MATRIX)) > 0.9).numpy() for name, part in parts.items()}


# --- the scan -------------------------------------------------------------------------------------


def test_layout_and_description():
    kspace, info = mri.simulate_head(0, "T1w", slices=2, matrix=48)
    assert kspace.shape == (2, 96, 52) and kspace.dtype == torch.complex64
    assert mri.simulate_head(0, slices=1, matrix=48, width=48)[0].shape == (1, 96, 48)
    assert info["sequence"] == "T1w" and info["seed"] == 0 and len(info["slice_positions_mm"]) == 2
    assert 215 < info["field_of_view_mm"] < 260 and 25 <= info["snr"] <= 60
    json.dumps(info)  # plain numbers and strings only


def test_seed_decides_everything():
    first, info = mri.simulate_head(5, slices=1, matrix=48)
    again, info_again = mri.simulate_head(5, slices=1, matrix=48)
    other, info_other = mri.simulate_head(6, slices=1, matrix=48)
    assert torch.equal(first, again) and info == info_again
    a, b = target(first, 48).ravel(), target(other, 48).ravel()
    assert np.corrcoef(a, b)[0, 1] < 0.95 and info["snr"] != info_other["snr"]


@pytest.mark.parametrize(
    "arguments", [dict(sequence="EPI"), dict(matrix=47), dict(matrix=48, width=40), dict(matrix=0), dict(slices=0)]
)
def test_refuses_what_it_cannot_scan(arguments):
    with pytest.raises(mri.BadInput):
        mri.simulate_head(0, **dict(slices=1) | arguments)


def test_head_fits_the_field_of_view():
    """No tissue in the outer two per cent of the target image, none outside it, for any of 12 heads."""
    for seed in range(12):
        image = mri.ifft2c(mri.simulate_head(seed, "PD", slices=3, matrix=MATRIX, noise=0)[0]).abs()
        h, w = image.shape[-2:]
        inside = torch.zeros(h, w, dtype=torch.bool)
        inside[h // 4 + 1 : -h // 4 - 1, (w - MATRIX) // 2 + 1 : w - (w - MATRIX) // 2 - 1] = True
        assert image[:, ~inside].max() < 0.06 * image.max()  # Gibbs ringing only


def test_readout_oversampling_leaves_outer_quarters_noise_only():
    kspace, info = mri.simulate_head(1, slices=3, matrix=MATRIX, noise=0.04)
    image = mri.ifft2c(kspace)
    quarter = MATRIX // 2
    outer = torch.cat([image[:, : quarter - 4], image[:, -quarter + 4 :]], dim=1)
    assert outer.real.std().item() == pytest.approx(info["noise_std"], rel=0.03)
    assert image[:, quarter:-quarter].abs().mean() > 5 * outer.abs().mean()


def test_noise_is_what_was_recorded():
    """Complex Gaussian of the recorded strength: in the background, and as the difference to no noise."""
    noisy, info = mri.simulate_head(2, slices=4, matrix=MATRIX)
    clean, _ = mri.simulate_head(2, slices=4, matrix=MATRIX, noise=0)
    corner = mri.ifft2c(noisy)[:, :20]
    for part in (corner.real, corner.imag, (noisy - clean).real, (noisy - clean).imag):
        assert part.std().item() == pytest.approx(info["noise_std"], rel=0.04)
    assert abs(corner.mean()) < 0.1 * info["noise_std"]


def test_snr_refers_to_white_matter(monkeypatch):
    kwargs = dict(seed=3, sequence="T1w", slices=3, matrix=MATRIX, noise=0.02, lesions=0)
    kspace, info = mri.simulate_head(**kwargs)
    white = tissue_masks(monkeypatch, **kwargs)["white"]
    assert info["snr"] == pytest.approx(50)
    assert target(kspace)[white].mean() / info["noise_std"] == pytest.approx(50, rel=0.05)


def test_dc_is_in_the_centre():
    """k-space off by one line gives the image a phase ramp of one turn; the heads' own ramps average out."""
    offsets = []
    for seed in range(8):
        image = mri.ifft2c(mri.simulate_head(seed, "PD", slices=3, matrix=48, noise=0)[0])
        turns = [(image.roll(-1, axis) * image.conj()).sum().angle() * image.shape[axis] for axis in (-2, -1)]
        offsets.append(torch.stack(turns) / (2 * np.pi))
    assert torch.stack(offsets).mean(0).abs().max() < 0.5


def test_energy_decays_towards_the_edge_of_kspace(heads):
    magnitude = heads["PD"][0].abs().mean(0)
    edge = torch.cat(
        [magnitude[:2].ravel(), magnitude[-2:].ravel(), magnitude[:, :2].ravel(), magnitude[:, -2:].ravel()]
    )
    assert edge.mean() < 0.01 * magnitude.max()


def test_phase_is_smooth_and_not_constant(heads):
    image = mri.center_crop(mri.ifft2c(heads["PD"][0]), (MATRIX, MATRIX))
    head = image.abs() > 0.5 * image.abs().max()
    turn = (image[:, 1:] * image[:, :-1].conj()).angle().abs()[head[:, 1:] & head[:, :-1]]
    assert turn.median() < 0.2  # radians from one pixel to the next
    unit = image[head] / image[head].abs()
    assert unit.mean().abs() < 0.97  # a constant phase gives 1


def test_anatomy_does_not_depend_on_the_grid(heads):
    """A scan of twice the matrix, k-space cropped, is nearly the same scan."""
    fine, _ = mri.simulate_head(3, "PD", slices=3, matrix=2 * MATRIX, width=2 * 70, noise=0, lesions=0)
    coarse = heads["PD"][0]
    cropped = target(mri.center_crop(fine, coarse.shape[-2:]) / 2)
    assert np.corrcoef(cropped.ravel(), target(coarse).ravel())[0, 1] > 0.99


# --- the contrast ---------------------------------------------------------------------------------


def test_contrast_of_every_sequence(heads, monkeypatch):
    masks = tissue_masks(monkeypatch, seed=3, slices=3, matrix=MATRIX, noise=0, lesions=0)
    mean = {q: {t: target(k)[masks[t]].mean() for t in ("grey", "white", "csf", "fat")} for q, (k, _) in heads.items()}
    t1, t2, pd, flair = (mean[q] for q in ("T1w", "T2w", "PD", "FLAIR"))
    assert t1["fat"] > t1["white"] > 1.1 * t1["grey"] > 2 * t1["csf"]
    assert t2["csf"] > 1.5 * t2["grey"] and t2["grey"] > 1.15 * t2["white"]
    assert 1.3 * pd["white"] > pd["grey"] > 1.02 * pd["white"]
    assert flair["grey"] > 1.05 * flair["white"] and flair["csf"] < 0.35 * flair["white"]


def test_signal_equation():
    assert mri.spin_echo_signal(1000, 100, 0.8, tr=1e9, te=0) == pytest.approx(0.8)
    assert mri.spin_echo_signal(1000, 100, 1, tr=1e9, te=100) == pytest.approx(np.exp(-1))
    assert mri.spin_echo_signal(1000, 100, 1, tr=1000, te=0) == pytest.approx(1 - np.exp(-1))
    null = 1000 * np.log(2)  # an inversion passes through zero at T1 ln 2
    assert mri.spin_echo_signal(1000, 100, 1, tr=1e9, te=0, ti=null) == pytest.approx(0, abs=1e-9)


def test_lesions_are_where_the_record_says():
    kwargs = dict(seed=4, sequence="FLAIR", slices=3, matrix=MATRIX, noise=0)
    healthy, none = mri.simulate_head(**kwargs, lesions=0)
    sick, info = mri.simulate_head(**kwargs, lesions=3)
    assert none["lesions"] == [] and len(info["lesions"]) == 3
    change = target(sick) - target(healthy)
    explained = np.zeros(change.shape, bool)
    row, column = np.mgrid[:MATRIX, :MATRIX]
    for lesion in info["lesions"]:
        reach = lesion["radius_mm"] / info["voxel_mm"] + 2
        disc = np.hypot(row - lesion["row"], column - lesion["column"]) <= reach
        assert change[lesion["slice"]][disc].max() > 0.1 * target(healthy).max()  # bright in FLAIR
        explained[lesion["slice"]] |= disc
    assert (change[explained] ** 2).sum() > 0.9 * (change**2).sum()  # and nothing else changed


def test_lesions_do_not_change_the_noise():
    noisy = [mri.simulate_head(4, "FLAIR", slices=1, matrix=48, lesions=n)[0] for n in (0, 2)]
    clean = [mri.simulate_head(4, "FLAIR", slices=1, matrix=48, lesions=n, noise=0)[0] for n in (0, 2)]
    torch.testing.assert_close(noisy[0] - clean[0], noisy[1] - clean[1], atol=1e-5, rtol=0)


def test_some_heads_have_lesions_and_some_have_none():
    counts = [len(mri.simulate_head(seed, slices=2, matrix=32)[1]["lesions"]) for seed in range(12)]
    assert 0 in counts and max(counts) >= 2


# --- the data set ---------------------------------------------------------------------------------


def attributes(folder: pathlib.Path) -> list[dict]:
    rows = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as f:
            rows.append(dict(f.attrs) | {"shape": f["kspace"].shape, "file": path.name})
    return rows


def test_files_have_fastmri_layout(demo):
    for path in [*demo.glob("train/*.h5"), *demo.glob("val/*.h5")]:
        with h5py.File(path) as f:
            kspace, esc = f["kspace"][()], f["reconstruction_esc"][()]
            assert {"reconstruction_rss", "ismrmrd_header"} <= set(f) and "mask" not in f
            assert kspace.dtype == np.complex64 and kspace.shape[:2] == (2, 96)
            assert esc.dtype == np.float32 and esc.shape == f["reconstruction_rss"].shape == (2, 48, 48)
            np.testing.assert_allclose(esc, target(torch.from_numpy(kspace), 48), rtol=1e-4, atol=1e-6)
            assert f.attrs["max"] == pytest.approx(esc.max(), rel=1e-5)
            assert f.attrs["norm"] == pytest.approx(np.linalg.norm(esc), rel=1e-4)
            assert f.attrs["simulated"] and f.attrs["noise_std"] > 0 and f.attrs["field_of_view_mm"] > 200
            assert f.attrs["acquisition"] == mri.ACQUISITIONS[f.attrs["sequence"]]
            assert all({"slice", "row", "column", "radius_mm"} <= set(x) for x in json.loads(f.attrs["lesions"]))


def test_subjects_are_not_shared(demo):
    rows = [attributes(demo / split) for split in ("train", "val")]
    assert [len(r) for r in rows] == [8, 4]
    for key in ("patient_id", "seed", "file"):
        train, val = ({row[key] for row in r} for r in rows)
        assert len(train) == 8 and len(val) == 4 and not train & val


def test_sequences_and_widths_are_balanced(demo):
    train, val = (attributes(demo / split) for split in ("train", "val"))
    for rows in (train, val):
        assert {row["acquisition"] for row in rows} == {"AXT1", "AXT2", "AXPD", "AXFLAIR"}
        assert {row["shape"][-1] for row in rows} == {48, 52}
    assert len({(row["sequence"], row["shape"][-1]) for row in train}) == 8  # no sequence has a width of its own


def test_another_seed_makes_other_subjects(demo, tmp_path):
    other = mri.demo_data(tmp_path / "demo", train=1, val=1, slices=2, matrix=48, seed=1)
    same = mri.demo_data(tmp_path / "again", train=1, val=1, slices=2, matrix=48, seed=0)
    name = "train/demo_train_000_AXT1.h5"
    read = lambda folder: h5py.File(folder / name)["kspace"][()]  # noqa: E731
    assert np.array_equal(read(same), read(demo)) and not np.array_equal(read(other), read(demo))


def test_existing_data_are_left_alone(demo, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    monkeypatch.setattr(scanner, "simulate_head", lambda *a, **k: pytest.fail("simulated again"))
    assert mri.demo_data(demo, train=99, seed=7) == demo
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before


def test_first_use_is_announced_as_simulated(tmp_path, capsys):
    mri.demo_data(tmp_path / "demo", train=1, val=1, slices=1, matrix=32)
    shown = capsys.readouterr()
    assert "simulated" in shown.out and shown.out.count("\n") == 1 and "2/2" in shown.err
    mri.demo_data(tmp_path / "demo")
    assert capsys.readouterr().out == ""


def test_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    calls, write = [], mri.write_volume

    def interrupt(path, *args, **kwargs):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(path, *args, **kwargs)

    monkeypatch.setattr(scanner, "write_volume", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mri.demo_data(tmp_path / "demo", train=2, val=2, slices=1, matrix=32)
    assert list(tmp_path.iterdir()) == []
    assert len(list(mri.demo_data(tmp_path / "demo", train=2, val=2, slices=1, matrix=32).glob("*/*.h5"))) == 4


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="one process on this system")
def test_a_large_set_is_shared_by_two_processes(tmp_path, monkeypatch, capsys):
    """The files are the same whoever makes them; a process that fails says why, and nothing is left."""
    made = {}
    for cores in (1, 2):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        folder = mri.demo_data(tmp_path / f"{cores}", train=22, val=2, slices=1, matrix=32)
        made[cores] = {p.relative_to(folder): h5py.File(p)["kspace"][()] for p in sorted(folder.glob("*/*.h5"))}
        assert "24/24" in capsys.readouterr().err
    assert len(made[1]) == 24 and made[1].keys() == made[2].keys()
    assert all(np.array_equal(made[1][name], made[2][name]) for name in made[1])
    monkeypatch.setattr(scanner, "ROOT", tmp_path)  # the other process finds no such package, or one of another place
    (tmp_path / "mri_parts").mkdir()
    (tmp_path / "mri_parts" / "__init__.py").write_text("raise OSError('no such part')")
    with pytest.raises(mri.BadInput, match="the process that simulates a part of it: OSError: no such part"):
        mri.demo_data(tmp_path / "demo", train=22, val=2, slices=1, matrix=32)
    assert not any("demo" in path.name for path in tmp_path.iterdir())


def test_foreign_files_are_not_touched(tmp_path):
    note = tmp_path / "demo" / "train" / "note.txt"
    note.parent.mkdir(parents=True)
    note.write_text("mine")
    with pytest.raises(mri.BadInput, match="move it away"):
        mri.demo_data(tmp_path / "demo", train=1, val=1, slices=1, matrix=32)
    assert note.read_text() == "mine"


def test_demo_data_on_another_disk_or_where_they_cannot_be(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "demo").symlink_to(tmp_path / "disk")
    assert len(list(mri.demo_data(tmp_path / "demo", train=1, val=1, slices=1, matrix=32).glob("*/*.h5"))) == 2
    assert (tmp_path / "demo").is_symlink() and {path.name for path in tmp_path.iterdir()} == {"disk", "demo"}
    (tmp_path / "note").write_text("mine")
    for folder, words in ((tmp_path / "note", "move it away"), (tmp_path / "note" / "demo", "Not a directory")):
        with pytest.raises(mri.BadInput, match=words) as error:
            mri.demo_data(folder, train=1, val=1, slices=1, matrix=32)
        assert str(folder) in str(error.value) and "\n" not in str(error.value)


# --- without its noise -------------------------------------------------------------------------


@pytest.mark.parametrize(("coils", "noise"), [(0, None), (0, 0.05), (3, None)])
def test_noise_free_is_what_a_scan_without_noise_would_be(coils, noise, tmp_path):
    folder = mri.demo_data(tmp_path / "demo", 1, 1, slices=2, matrix=32, noise=noise, coils=coils)
    volume = mri.read_folder(folder / "val")[0]
    seed, width = int(volume.attributes["seed"]), volume.shape[-1]
    exact, _ = mri.simulate_head(seed, "T1w", 2, 32, width, noise=0, coils=coils)
    exact = mri.crop_readout(exact, 32)
    for index in (1, 0):
        found, kspace = mri.noise_free(volume, index), volume.cropped(index)[0]
        assert (found - exact[index]).norm() < 1e-5 * exact[index].norm() < 0.01 * (kspace - exact[index]).norm()
    assert mri.noise_free(volume.without([0]), 0).equal(mri.noise_free(volume, 1))


def test_noise_free_is_not_known_of_other_files(tiny):
    volume = mri.read_folder(tiny / "val")[0]
    others = {"seed": int(volume.attributes["seed"]) + 1}, {"seed": None}
    for change in others:
        about = {name: value for name, value in (volume.attributes | change).items() if value is not None}
        assert mri.noise_free(dataclasses.replace(volume, attributes=about), 0) is None


def test_a_perfect_guess_keeps_what_was_measured(tiny):
    """By hand: the measured samples as they are, the others those of the scan without noise."""
    dataset = mri.SliceDataset(mri.read_folder(tiny / "val"), "random", 3, 0.12)
    filled = mri.PerfectGuess(dataset)
    for index, (v, s) in enumerate(dataset.slices):
        sample, perfect = dataset[index], filled[index]
        measured = sample.mask.expand_as(sample.kspace)
        assert perfect.kspace[measured].equal(sample.kspace[measured]) and perfect.mask.equal(sample.mask)
        guess = mri.noise_free(dataset.volumes[v], s)
        assert perfect.kspace[~measured].equal(guess[~measured]) and guess[~measured].abs().max() > 0


def test_what_is_attainable(tiny, monkeypatch):
    """Better than any method that does not know the truth, worse than the reference; absent where no truth is known."""
    volumes = mri.read_folder(tiny / "val")
    dataset = mri.SliceDataset(volumes, "random", 3, 0.12)
    methods = {"zero_filled": mri.zero_filled, "tv": mri.tv_method(0.001, 50), "low_rank": mri.zero_filled}
    scores = mri.score_each(methods, dataset)
    assert list(scores) == ["zero_filled", "tv", "attainable", "low_rank"]  # the last one is the network
    ssim = {name: mri.mean(row["ssim"] for row in scored.rows) for name, scored in scores.items()}
    assert ssim["zero_filled"] < ssim["tv"] < ssim["attainable"] < 1
    metrics = mri.summarize_run(scores, dataset, {})
    gain = (ssim["tv"] - ssim["zero_filled"]) / (ssim["attainable"] - ssim["zero_filled"])
    assert metrics["attained"]["tv"]["ssim"] == pytest.approx(gain)
    assert mri.share_cell(metrics, "attainable", "head") == {"of the attainable gain": "100% SSIM, 100% PSNR"}
    # The error against the truth, by hand.
    kspace = torch.stack([mri.noise_free(volumes[0], s) for s in range(2)])
    truth = mri.center_crop(mri.ifft2c(kspace), volumes[0].target_size).abs()
    assert scores["tv"].rows[0]["nmse_truth"] == pytest.approx(mri.nmse(truth, scores["tv"].images[0]), rel=1e-6)
    # One volume whose noise is not known: neither row nor figures.
    dataset.volumes[1].attributes.pop("seed")
    found = mri.score_each(methods, dataset)
    assert list(found) == list(methods) and not any(name.endswith("_truth") for name in found["tv"].rows[0])
    assert list(mri.score(mri.zero_filled, dataset, quick=True).rows[0]) == list(mri.METRICS)


def test_a_lead_is_a_lead_over_the_best_rival():
    rows = {"ssim": 0.8, "psnr": 30.0, "ssim_head": 0.9}
    best = {"tv": {"ssim": 0.7, "psnr": 28.0, "ssim_head": 0.92}, "low_rank": {"ssim": 0.6, "psnr": 29.0}}
    methods = {
        "zero_filled": {"ssim": 0.5, "psnr": 20.0},
        **best,
        "attainable": {"ssim": 0.99, "psnr": 40.0},
        "unet_4x_8x": {"ssim": 0.95, "psnr": 35.0, "ssim_head": 0.95},  # another network is no rival
        "unet": rows,
    }
    summary = {
        "methods": {n: {m: {"mean": x} for m, x in ({"ssim_head": 0.1} | r).items()} for n, r in methods.items()},
        "paired": {
            "unet - tv": {
                m: {"mean": x, "ci95": [x - 0.05, x + 0.05]} for m, x in (("ssim", 0.1), ("ssim_head", -0.02))
            },
            "unet - low_rank": {"psnr": {"mean": -1.0, "ci95": [-1.5, -0.5]}},
        },
    }
    assert mri.best_rivals(summary, ("ssim", "psnr", "psnr_head")) == {"ssim": "tv", "psnr": "low_rank"}
    assert mri.lead_lines(summary) == [
        "SSIM of the whole image: ahead of the best that learns nothing, total variation, 0.100 [0.050, 0.150]",
        "PSNR of the whole image: behind the best that learns nothing, low-rank k-space, -1.00 [-1.50, -0.50]",
        "SSIM in the head: not told apart from the best that learns nothing, total variation, -0.020 [-0.070, 0.030]",
        "Do not use U-Net on data like these: low-rank k-space is ahead.",
    ]


def test_varied_heads_stray_from_the_usual():
    """Contrast, orientation, size and noise differ from head to head; the seed decides everything."""
    (scan, about), (again, _) = (mri.simulate_head(3, slices=1, matrix=48, varied=True) for _ in range(2))
    usual, other = mri.simulate_head(3, slices=1, matrix=48)
    assert torch.equal(scan, again) and not torch.equal(scan, usual)
    assert about["varied"] and "varied" not in other and 8 <= about["snr"] <= 80
    drawn = [scanner.draw_variety(np.random.default_rng(seed)) for seed in range(40)]
    ratios = [variety.signals["grey"] / variety.signals["white"] for variety in drawn]
    assert min(ratios) < 0.6 and max(ratios) > 1.6  # either is the brighter one
    assert all(max(v.signals[t] for t in ("grey", "white", "csf")) == pytest.approx(1) for v in drawn)
    turns = [variety.turn for variety in drawn]
    assert all(np.allclose(turn @ turn.T, np.eye(3)) and np.linalg.det(turn) > 0 for turn in turns)
    axial = [turn[2, 2] > 0.7 for turn in turns]  # slices across the long axis of the body
    assert 10 < sum(axial) < 30


def test_varied_data_share_no_subject_with_the_usual(tmp_path, capsys):
    folder = mri.demo_data(tmp_path / "varied", train=2, val=1, slices=1, matrix=48, varied=True)
    volumes = mri.read_folder(folder / "train") + mri.read_folder(folder / "val")
    assert {v.patient_id for v in volumes} == {"varied_000", "varied_001", "varied_002"}
    assert not {int(v.attributes["seed"]) for v in volumes} & set(range(10_000))
    assert mri.noise_free(volumes[0], 0) is None
