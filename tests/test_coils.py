"""Several coils: the simulated array, sensitivity maps, SENSE, GRAPPA, the variational network, the task multi_coil."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

import mri_utils as mri
import train

MATRIX, COILS = 64, 8


@pytest.fixture(scope="module")
def head():
    """The middle slice of a head without noise: k-space (8, 64, 64), and what lies inside the head."""
    kspace, _ = mri.simulate_head(2, "PD", slices=1, matrix=MATRIX, width=MATRIX, noise=0, coils=COILS)
    kspace = mri.crop_readout(kspace[0], MATRIX)
    image = mri.rss(mri.ifft2c(kspace))
    return kspace, image > 0.1 * image.max()


@pytest.fixture(scope="module")
def true_maps():
    """Smooth sensitivities with root-sum-of-squares 1 on the grid of `head`, without the simulation's wobble."""
    mm = (np.arange(MATRIX) - MATRIX // 2) * 230 / MATRIX
    maps = mri.coil_sensitivities(COILS, np.array([30.0]), mm, mm)[0]
    return maps / mri.rss(maps)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Multi-coil demo data that train in seconds."""
    folder = tmp_path_factory.mktemp("coils") / "demo"
    return mri.demo_data(folder, train=3, val=2, slices=2, matrix=48, coils=4)


def grid(step, centre, width=MATRIX):
    """A regular grid that has a line at DC, and `centre` lines around it."""
    mask = (torch.arange(width) - width // 2) % step == 0
    mask[width // 2 - centre // 2 : width // 2 + centre // 2] = True
    return mask


def overlap(a, b):
    """|<a, b>| per pixel of maps with root-sum-of-squares 1: 1 where they agree up to a phase."""
    return (a.conj() * b).sum(0).abs()


# --- the array --------------------------------------------------------------------------------------


def test_loops_have_the_field_of_a_loop_on_its_axis():
    """One loop of radius 65 mm, 112 mm off the middle: ~ 1 / (R^2 + d^2)^1.5, the wire's thickness in R^2 + d^2."""
    columns, rows = np.arange(-120.0, 120.0, 2.0), np.arange(-120.0, 120.0, 2.0)
    field = mri.coil_sensitivities(1, np.array([44.0]), rows, columns)[0, 0]  # the loop looks along x at z = 44
    axis = field[60, 40:100]  # from -40 to 78 mm at y = 0
    d = columns[40:100] + 112
    expected = 1 / (65**2 + d**2 + 12**2) ** 1.5
    ratio = axis.real.numpy() / expected
    assert np.abs(ratio / ratio.mean() - 1).max() < 0.03  # 32 segments, and a cubic between points 16 mm apart
    assert axis.imag.abs().max() < 0.01 * axis.abs().max()  # no field across the axis


def test_coils_see_one_head_and_change_nothing_else():
    single, about = mri.simulate_head(5, slices=2, matrix=48)
    many, info = mri.simulate_head(5, slices=2, matrix=48, coils=4)
    assert single.shape == (2, 96, 52) and many.shape == (2, 4, 96, 52) and many.dtype == torch.complex64
    assert {k: v for k, v in info.items() if k != "noise_scan"} == about
    a, b = mri.ifft2c(single).abs(), mri.rss(mri.ifft2c(many), 1)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9  # the same anatomy, shaded


def test_noise_scan_tells_the_covariance_of_the_noise():
    """The noise itself: the same scan with and without it. The covariance from the noise scan whitens it."""
    arguments = dict(slices=4, matrix=48, coils=COILS)
    loud, info = mri.simulate_head(7, noise=0.05, **arguments)
    noise = (loud - mri.simulate_head(7, noise=0, **arguments)[0]).movedim(1, 0)
    covariance = mri.noise_covariance(info["noise_scan"])
    measured = noise.flatten(1) @ noise.flatten(1).mH / noise[0].numel()
    scale = measured.diagonal().abs().sqrt()
    correlation = (measured / scale / scale[:, None]).abs()
    assert ((covariance - measured).abs() / scale / scale[:, None]).max() < 0.07
    assert correlation.fill_diagonal_(0).max() > 0.2  # correlated, so that there is something to undo
    white = mri.prewhiten(noise.movedim(0, 1), covariance).movedim(1, 0).flatten(1)
    assert torch.allclose(white @ white.mH / white.shape[1], torch.eye(COILS) + 0j, atol=0.07)


def test_compression_keeps_what_it_can():
    """Of coils that are mixtures of three, three virtual ones hold everything; all of them hold it anyway."""
    torch.manual_seed(0)
    kspace = torch.einsum("ij,sjhw->sihw", torch.randn(6, 3) + 0j, torch.randn(2, 3, 9, 8, dtype=torch.complex64))
    for coils in (3, 6):
        assert torch.allclose(mri.rss(mri.compress_coils(kspace, coils), 1), mri.rss(kspace, 1), rtol=1e-3)
    one, two = (mri.compress_coils(kspace, n) for n in (1, 2))
    assert torch.allclose(one, two[:, :1]) and one.norm() < two.norm() < kspace.norm()
    largest = np.linalg.svd(kspace.movedim(1, 0).flatten(1).numpy(), compute_uv=False)[0]
    assert float(one.norm()) == pytest.approx(largest, rel=1e-4)


def test_files_in_fastmri_layout(files):
    volume = mri.read_folder(files / "val")[0]
    assert volume.shape[1:3] == (4, 48) and volume.target_key == "reconstruction_rss"
    expected = mri.rss(mri.center_crop(mri.ifft2c(volume.kspace(1)), (48, 48)))
    assert torch.allclose(volume.target(1), expected, atol=1e-6)
    noise = volume.noise()
    assert noise.shape == (4, 4096) and noise.dtype == torch.complex64
    air = mri.ifft2c(volume.kspace(0))[:, :, :2].reshape(4, -1)  # the first columns lie outside the head
    assert (
        mri.noise_covariance(noise).diagonal().abs() / mri.noise_covariance(air).diagonal().abs()
    ).log().abs().max() < 1


def noise_of(path, **changed):
    """A copy's file without some data sets, or with others."""
    with h5py.File(path, "r+") as file:
        for name, values in changed.items():
            if name in file:
                del file[name]
            if values is not None:
                file[name] = values


def test_a_whitened_copy(files, tmp_path):
    """Independent, equally loud noise, in the noise scan and in the scan; a new reference; the rest is as it was."""
    out = mri.whitened_copy(files, tmp_path / "white")
    old, new = (mri.read_folder(folder) for folder in (files, out))
    assert [v.path.relative_to(files) for v in old] == [v.path.relative_to(out) for v in new] and len(new) == 5
    for before, after in zip(old, new):
        covariance, was = (mri.noise_covariance(volume.noise()) for volume in (after, before))
        level = was.diagonal().real.mean()  # the noise is as loud as before
        assert (was / level - torch.eye(4)).abs().max() > 0.3
        assert torch.allclose(covariance, level * torch.eye(4) + 0j, atol=1e-5 * float(level))
        expected = mri.prewhiten(before.kspace(1), was) * level.sqrt()
        assert torch.allclose(after.kspace(1), expected, atol=1e-6 * float(expected.abs().max()))
        image = mri.rss(mri.center_crop(mri.ifft2c(after.kspace(1)), (48, 48)))
        assert torch.allclose(after.target(1), image) and after.target_key == "reconstruction_rss"
        assert after.maximum == pytest.approx(max(float(after.target(i).max()) for i in range(2)))
        about = {name: value for name, value in before.attributes.items() if name not in ("max", "norm")}
        assert about.items() <= {k: v for k, v in after.attributes.items() if k != "mixing"}.items()
        assert (after.shape, after.target_size, after.columns) == (before.shape, before.target_size, before.columns)
        # The noise that is drawn again goes through the same mixing: what is left is the old truth, mixed.
        truth = torch.einsum("ij,jhw->ihw", torch.from_numpy(after.attributes["mixing"]), mri.noise_free(before, 0))
        assert torch.allclose(mri.noise_free(after, 0), truth, atol=1e-5 * float(truth.abs().max()))
    again = mri.read_folder(mri.whitened_copy(out, tmp_path / "again"))[0]  # nothing left to do
    assert torch.allclose(again.kspace(0), new[0].kspace(0), atol=1e-5)
    assert torch.allclose(mri.noise_free(again, 0), mri.noise_free(new[0], 0), atol=1e-5)
    about = new[0].attributes | {"mixing": np.eye(3)}  # of other coils
    assert mri.noise_free(dataclasses.replace(new[0], attributes=about), 0) is None


def test_equal_coils_stay_as_they_are(tmp_path, random):
    """Noise that is independent and equally loud already; a file with a mask, and so without a reference."""
    noise = torch.linalg.qr(random(50, 3))[0].mT  # of covariance 1 / 50
    about = {"target_size": (12, 12), "acquisition": "own", "patient_id": "a", "noise": 0.3 * noise}
    kspace, mask = random(2, 3, 16, 12), torch.arange(12) % 2 == 0
    mri.write_volume(tmp_path / "in" / "full.h5", kspace, **about, attributes={"field": 3.0})
    mri.write_volume(tmp_path / "in" / "test.h5", kspace, **about, mask=mask)
    noise_of(tmp_path / "in" / "full.h5", sensitivities=np.ones((2, 3, 16, 12), np.complex64))
    full, masked = mri.read_folder(mri.whitened_copy(tmp_path / "in", tmp_path / "out"))
    old = mri.read_volume(tmp_path / "in" / "full.h5")
    for index in (0, 1):
        assert torch.allclose(full.kspace(index), kspace[index], atol=1e-5)
        assert torch.allclose(full.target(index), old.target(index), atol=1e-5)
        assert torch.allclose(masked.kspace(index), kspace[index] * mask, atol=1e-5)
    assert masked.mask.equal(mask) and not masked.has_reference and full.has_reference
    assert full.attributes["field"] == 3 and "mixing" not in full.attributes
    with h5py.File(full.path) as file:
        assert set(file) == {"ismrmrd_header", "kspace", "noise", "reconstruction_rss"}  # no old coils' sensitivities
        assert file["kspace"].dtype == np.complex64 and full.path.stat().st_size < 1.2 * old.path.stat().st_size


def test_coils_that_cannot_be_whitened_are_told(files, tiny, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(files, folder)
    broken = sorted(folder.glob("val/*.h5"))[1]
    noise_of(broken, noise=np.ones((4, 9), np.complex64))
    with pytest.raises(mri.BadInput, match="noise of coil 1 is 0, or a mixture of other coils'"):
        mri.whitened_copy(folder, tmp_path / "out")
    noise_of(broken, noise=None)
    with pytest.raises(mri.BadInput, match=f"{broken.name}: no noise scan to whiten by: leave the file out, or add it"):
        mri.whitened_copy(folder, tmp_path / "out")
    with pytest.raises(mri.BadInput, match="no noise scan"):
        mri.whitened_copy(tiny, tmp_path / "out")  # one coil
    assert [path.name for path in tmp_path.iterdir()] == ["in"]  # nothing half done
    with pytest.raises(mri.BadInput, match="is there already"):
        mri.whitened_copy(files, folder)


# --- the operator and SENSE -------------------------------------------------------------------------


def test_forward_and_adjoint_with_coils(random):
    """<M F S x, y> = <x, S^H F^H M y>, in double precision."""
    x, y = random(2, 9, 12, dtype=torch.complex128), random(2, 3, 9, 12, dtype=torch.complex128)
    maps, mask = random(2, 3, 9, 12, dtype=torch.complex128), torch.arange(12) % 3 != 1
    A = mri.Acquisition(mask, maps)
    assert torch.equal(A(x), mask * mri.fft2c(maps * x[:, None]))
    left, right = torch.vdot(A(x).flatten(), y.flatten()), torch.vdot(x.flatten(), A.H(y).flatten())
    assert complex(left) == pytest.approx(complex(right), rel=1e-12)


@pytest.mark.parametrize("step", [2, 3])
def test_sense_recovers_a_noiseless_image(head, true_maps, step):
    kspace, inside = head
    image = mri.ifft2c(kspace).sum(0) * inside
    A = mri.Acquisition(grid(step, 6), true_maps)
    found = mri.sense(A(image), A, weight=0, iterations=150)
    assert (found - image).norm() < 1e-4 * image.norm()


def test_sense_near_a_prior_solves_its_equations(random):
    """Against the dense matrix: every column of A is the k-space of one pixel."""
    maps, prior, kspace, mask = random(3, 6, 8), random(6, 8), random(3, 6, 8), grid(2, 2, 8)
    pixels = torch.eye(48, dtype=torch.complex64).unflatten(1, (6, 8))
    matrix = torch.stack([(mask * mri.fft2c(maps * pixel)).flatten() for pixel in pixels], 1).to(torch.complex128)
    measured = (mask * kspace).flatten().to(torch.complex128)
    left = matrix.mH @ matrix + 0.3 * torch.eye(48)
    right = matrix.mH @ measured + 0.3 * prior.flatten().to(torch.complex128)
    expected = torch.linalg.solve(left, right).unflatten(0, (6, 8))
    found = mri.sense(kspace, mri.Acquisition(mask, maps), 0.3, 60, prior)
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_total_variation_with_one_uniform_coil_is_total_variation(head):
    kspace = head[0][:1]
    mask = mri.sampling_mask("random", kspace.shape, 3, 0.12, seed=1)
    plain = mri.total_variation(kspace[0] * mask, mask, 0.003, 400)
    coil = mri.total_variation(kspace * mask, mri.Acquisition(mask, torch.ones_like(kspace)), 0.003, 400)
    assert (coil - plain).norm() < 2e-3 * plain.norm()


# --- sensitivity maps -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list(mri.SENSITIVITIES))
def test_maps_are_those_of_the_fully_sampled_head(head, method):
    kspace, inside = head
    maps = mri.sensitivity_maps(kspace * grid(3, 16), grid(3, 16), method)
    smooth = mri.ifft2c(kspace)
    smooth = smooth / mri.rss(smooth)  # without noise, any pixel inside tells the sensitivities
    assert overlap(maps, smooth)[inside].mean() > 0.98
    assert torch.allclose(mri.rss(maps)[inside], torch.tensor(1.0), atol=1e-4)


def test_espirit_is_that_of_sigpy(head):
    app = pytest.importorskip("sigpy.mri.app")
    kspace, inside = head
    theirs = app.EspiritCalib(
        kspace.numpy(), calib_width=24, thresh=0.02, kernel_width=6, crop=0, show_pbar=False
    ).run()
    ours = mri.espirit_maps(kspace, grid(4, 24), threshold=0.02, crop=0)
    agreement = overlap(ours, torch.from_numpy(theirs))[inside]
    assert agreement.mean() > 0.98 and agreement.quantile(0.05) > 0.95
    # the phase belongs to no one, but from pixel to pixel it must not jump where there is signal
    jumps = (ours[:, 1:] * ours[:, :-1].conj()).sum(0).angle()[inside[1:] & inside[:-1]]
    assert jumps.abs().quantile(0.95) < 0.5


@pytest.mark.parametrize("size", [(64, 64), (64, 72), (61, 64)])
def test_espirit_maps_on_a_coarser_grid_are_the_same(size):
    """Sensitivities are smooth: those of a third of the rows and columns tell the others."""
    kspace, _ = mri.simulate_head(4, slices=1, matrix=72, width=72, noise=0.01, coils=4)
    kspace = mri.center_crop(mri.crop_readout(kspace[0], 72), size)
    mask = grid(4, 24, size[1])
    fine, coarse = (mri.espirit_maps(kspace, mask, threshold=0.02, grid=n) for n in (0, 24))
    both = (mri.rss(fine) > 0) & (mri.rss(coarse) > 0)
    assert both.sum() > 0.9 * (mri.rss(fine) > 0).sum()
    assert torch.allclose(mri.rss(coarse)[both], torch.ones(1), atol=1e-5)
    likeness = (fine.conj() * coarse).sum(0)[both]  # of unit vectors, their free phase included
    assert likeness.real.median() > 0.999 and likeness.real.quantile(0.02) > 0.97


def test_espirit_crops_the_air():
    """Noise has no sensitivity: outside the head the eigenvalue falls below 1, and the maps are 0."""
    kspace, _ = mri.simulate_head(2, "PD", slices=1, matrix=MATRIX, width=MATRIX, noise=0.03, coils=COILS)
    kspace = mri.crop_readout(kspace[0], MATRIX)
    image = mri.rss(mri.ifft2c(kspace))
    cropped = mri.rss(mri.espirit_maps(kspace, grid(4, 24), threshold=0.05))
    assert cropped[image > 0.2 * image.max()].mean() > 0.9 and cropped[:4].mean() < 0.3
    assert set(cropped.round().unique().tolist()) == {0, 1}


# --- GRAPPA -----------------------------------------------------------------------------------------


def test_grappa_is_exact_where_its_assumption_holds(random):
    """Coils that are shifted copies in k-space: each missing line is a neighbour's line of another coil."""
    plane = random(40, 60)
    kspace = torch.stack([plane.roll(shift, -1) for shift in (0, 1, 2)])
    mask = grid(3, 20, 60)
    filled = mri.grappa(kspace * mask, mask, weight=1e-7)
    assert (filled - kspace)[:, :, 6:-6].norm() < 1e-3 * kspace.norm()
    assert torch.equal(filled[..., mask], kspace[..., mask])


def test_grappa_kernels_of_a_regular_grid(head):
    kspace, _ = head
    kernels = mri.grappa_kernels(kspace * grid(4, 20), grid(4, 20))
    found = {offsets: len(columns) for columns, offsets, _ in kernels}
    inner = {(-5, -1, 3, 7), (-6, -2, 2, 6), (-7, -3, 1, 5)}
    assert inner <= set(found) and all(found[offsets] >= 4 for offsets in inner)
    assert sum(found.values()) == int((~grid(4, 20)).sum())  # every missing line has a kernel
    assert all(w.shape == (COILS, COILS * 5 * len(offsets)) for _, offsets, w in kernels)


def test_grappa_asks_no_column_that_was_never_acquired(head):
    """They count as known, and are 0: the lines beside them follow from those on the other side."""
    kspace, _ = head
    acquired = (torch.arange(MATRIX) - MATRIX // 2).abs() < 24
    sampled = grid(3, 12) & acquired
    kernels = mri.grappa_kernels(kspace * sampled, sampled | ~acquired)
    asked = {int(column) + offset for columns, offsets, _ in kernels for column in columns for offset in offsets}
    assert asked <= set(sampled.nonzero().flatten().tolist())
    assert sum(len(columns) for columns, _, _ in kernels) == int((acquired & ~sampled).sum())
    empty = torch.zeros_like(kspace)
    assert torch.equal(mri.grappa(empty, sampled), empty)


@pytest.mark.parametrize("kind", ["equispaced", "equispaced_fraction"])
def test_sense_and_grappa_beat_zero_filling(kind):
    kspace, _ = mri.simulate_head(4, slices=1, matrix=MATRIX, width=MATRIX, noise=0.02, coils=COILS)
    kspace = mri.crop_readout(kspace[0], MATRIX)
    target = mri.rss(mri.ifft2c(kspace))[None]
    mask = mri.sampling_mask(kind, kspace.shape, 3, 0.16, seed=3)
    batch = (kspace * mask)[None], mask.expand(1, 1, 1, MATRIX), (MATRIX, MATRIX)
    start = mri.psnr(target, mri.zero_filled_rss(*batch))
    for name in mri.PARALLEL:
        image = mri.parallel_method(name, 0.003)(*batch)
        assert mri.psnr(target, image) > start + 3, name
        assert torch.equal(image, mri.parallel_method(name, 0.003)(batch[0], mask, batch[2]))  # as networks take it


def test_g_factor_is_pruessmanns(true_maps):
    """Sampled at every second line, pixels half a field of view apart fold: a 2x2 problem with a known g."""
    torch.manual_seed(0)
    root = torch.randn(COILS, COILS, dtype=torch.complex64) / 8 + torch.eye(COILS)
    covariance = root @ root.mH
    maps = mri.prewhiten(true_maps[None], covariance)[0]  # SENSE weighs the coils by the noise after whitening
    white, size = torch.eye(COILS) + 0j, (8, MATRIX)
    maps = maps[:, ::8]
    mask = torch.arange(MATRIX) % 2 == 0
    g = mri.g_factor(lambda k, m: mri.sense(k, mri.Acquisition(m, maps), 0, 15), white, mask, size, replicas=150)
    folded = torch.stack([maps, maps.roll(MATRIX // 2, -1)], -1).movedim(0, -2)  # (H, W, coils, 2)
    gram = folded.mH @ folded
    expected = (torch.linalg.inv(gram).diagonal(dim1=-2, dim2=-1) * gram.diagonal(dim1=-2, dim2=-1))[..., 0].real.sqrt()
    assert (g / expected).log().abs().mean() < 0.1 and float(expected.max()) > 1.05
    assert float((g / expected).mean()) == pytest.approx(1, abs=0.02)


def test_g_factor_of_a_covariance_of_any_kind(true_maps):
    mask, size = torch.arange(MATRIX) % 2 == 0, (MATRIX, MATRIX)
    linear = lambda k, m: mri.sense(k, mri.Acquisition(m, true_maps), 0, 3)  # noqa: E731
    found = [
        mri.g_factor(linear, torch.eye(COILS, dtype=kind), mask, size, 2) for kind in (torch.complex64, torch.float64)
    ]
    assert torch.equal(*found)


# --- faults -----------------------------------------------------------------------------------------


def test_faults_are_told(random, files, tmp_path):
    flat, coils, lines = random(16, 32), random(4, 16, 32), grid(4, 8, 32)
    with pytest.raises(mri.BadInput, match="no coil axis"):
        mri.sensitivity_maps(flat, lines)
    with pytest.raises(mri.BadInput, match="no coil axis"):
        mri.grappa(flat, lines)
    for function in (mri.sensitivity_maps, mri.grappa):
        with pytest.raises(mri.BadInput, match=r"1 calibration lines.*raise center_fraction"):
            function(coils, torch.arange(32) % 4 == 0)
    with pytest.raises(mri.BadInput, match="3 noise samples of 4 coils: measure at least as many"):
        mri.noise_covariance(random(4, 3))
    noise = random(4, 100)
    noise[2] = noise[0] - 2 * noise[1]
    for function in (mri.prewhiten, lambda k, c: mri.g_factor(mri.ifft2c, c, lines, (16, 32))):
        with pytest.raises(
            mri.BadInput, match="noise of coil 2 is 0, or a mixture of other coils': leave the coil out"
        ):
            function(coils, torch.diag(torch.tensor([1.0, 2.0, 0.0, 1.0])))
    with pytest.raises(mri.BadInput, match="noise of coil 2"):
        mri.prewhiten(coils, mri.noise_covariance(noise))
    with pytest.raises(mri.BadInput, match="5 coils asked for, of 4"):
        mri.compress_coils(coils, 5)
    with pytest.raises(mri.BadInput, match="sensitivity maps 'espirt', did you mean 'espirit'"):
        mri.sensitivity_maps(coils, lines, "espirt")
    with pytest.raises(mri.BadInput, match="no coil axis"):
        mri.build_model("varnet(features=4)")(flat[None], lines, (16, 16))


@pytest.mark.parametrize("mask", ["poisson_disc", "radial", "kt", "randon"])
def test_masks_without_calibration_lines_are_refused_at_once(mask, tmp_path):
    with pytest.raises(mri.BadInput, match=f"unknown mask kind of lines '{mask}'.*choose from: random, equispaced"):
        train.run(task="multi_coil", model="rss_unet", mask=mask, data=str(tmp_path), out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_wrong_files_are_told(files, tiny, tmp_path):
    with pytest.raises(mri.BadInput, match=r"this task takes \(slices, coils, H, W\)"):
        train.run(task="multi_coil", data=str(tiny), out=str(tmp_path / "run"))
    with pytest.raises(mri.BadInput, match=r"this task takes \(slices, H, W\)"):
        train.run(data=str(files), out=str(tmp_path / "run"))
    broken = tmp_path / "noise.h5"
    broken.write_bytes(next((files / "val").glob("*.h5")).read_bytes())
    with h5py.File(broken, "r+") as file:
        del file["noise"]
        file["noise"] = np.zeros((3, 10), np.complex64)
    with pytest.raises(mri.BadInput, match=r"noise has shape \(3, 10\) beside kspace"):
        mri.read_volume(broken).noise()
    with h5py.File(broken, "r+") as file:
        del file["noise"]
    assert mri.read_volume(broken).noise() is None


# --- networks ---------------------------------------------------------------------------------------


def test_calibration_columns_of_a_batch():
    masks = torch.stack([grid(4, 8, 32), grid(4, 4, 32)])[:, None, None]
    found = mri.calibration_columns(masks)
    assert found.shape == masks.shape
    assert found[0, 0, 0].nonzero().flatten().tolist() == list(range(12, 21))  # line 20 of the grid follows 19
    assert found[1, 0, 0].nonzero().flatten().tolist() == list(range(14, 18))


@pytest.fixture(scope="module")
def varnet():
    """A small variational network that does something: its last layers start at zero otherwise."""
    torch.manual_seed(0)
    network = mri.build_model("varnet(features=4, levels=2, cascades=2)")
    for module in (*network.networks, network.map_network):
        torch.nn.init.normal_(module.last.weight, std=0.3)
    return network


def test_variational_network_before_training_is_sense(random):
    """Networks that add nothing: SENSE with the low-resolution maps, then six soft steps towards what was measured."""
    kspace, mask = random(1, 3, 24, 20), grid(3, 6, 20)
    measured = kspace * mask
    maps = mri.ratio_maps(measured[0], mask)
    images = maps * mri.sense(measured[0], mri.Acquisition(mask, maps), 0.01, 8)
    for _ in range(6):
        images = mri.keep_measured(images, measured[0], mask, 1 / (1 + math.exp(-2)))
    network = mri.build_model("varnet(features=4, levels=2)")
    found = network(measured, mask.expand(1, 1, 1, 20), (16, 18))[0]
    assert torch.allclose(found, mri.center_crop(mri.rss(images), (16, 18)), atol=1e-4)


@pytest.fixture(scope="module")
def modl():
    torch.manual_seed(0)
    network = mri.build_model("modl(features=4, cascades=2)")
    torch.nn.init.normal_(network.networks[0].last.weight, std=0.3)
    return network


def test_modl_changes_only_what_the_coils_leave_open():
    """The wilder the network, the worse; but the less its weight, the nearer the image is to SENSE's."""
    kspace, _ = mri.simulate_head(4, slices=1, matrix=64, width=64, noise=0.01, coils=6)
    kspace, mask = mri.crop_readout(kspace[0], 64), grid(2, 16, 64)
    batch = (kspace * mask)[None], mask.expand(1, 1, 1, 64), (64, 64)
    maps = mri.espirit_maps(kspace * mask, mask, grid=48)
    image = mri.sense(kspace * mask, mri.Acquisition(mask, maps), 1e-4, 60)
    target = mri.rss(mri.keep_measured(maps * image, kspace * mask, mask))
    torch.manual_seed(0)
    network = mri.build_model("modl(features=4, cascades=2)")
    torch.nn.init.normal_(network.networks[0].last.weight, std=0.3)
    errors = []
    with torch.no_grad():
        for weight in (1.0, 0.01, 0.0001):
            network.sense_weight.fill_(math.log(weight))
            errors.append(float((network(*batch)[0] - target).norm() / target.norm()))
    assert errors[0] > 0.05 and errors[2] < 0.02 and errors == sorted(errors, reverse=True)


def test_modl_goes_on_from_total_variation():
    """Before training: total variation with the same maps, then SENSE that stays near it; no weight of a start."""
    kspace = mri.crop_readout(mri.simulate_head(4, slices=1, matrix=64, width=64, coils=6)[0][0], 64)
    mask = grid(4, 16, 64)
    A = mri.Acquisition(mask, mri.espirit_maps(kspace * mask, mask, grid=48))
    few, many = (mri.total_variation(kspace * mask, A, 0.002, steps) for steps in (15, 120))
    assert mri.psnr(many.abs()[None], few.abs()[None]) > 50, "fifteen iterations are not enough"
    network = mri.build_model("modl(features=4, cascades=1, start='tv')")
    image = mri.sense(kspace * mask, A, network.sense_weight.exp(), 6, prior=few)
    expected = mri.keep_measured(A.spread(image), kspace * mask, mask, network.step.sigmoid())
    with torch.no_grad():
        result = network((kspace * mask)[None], mask.expand(1, 1, 1, 64), (64, 64))
    torch.testing.assert_close(result[0], mri.rss(expected), atol=1e-5 * float(result.max()), rtol=0)
    assert not hasattr(network, "start_weight")
    with pytest.raises(mri.BadInput, match=r"unknown start 'phase_tv'.*sense, tv"):
        mri.build_model("modl(start='phase_tv')")


def test_a_wider_window_follows_a_quick_phase():
    """What the networks of MoDL are shown is real where the window holds the phase, and has the phase itself else."""
    kspace = mri.crop_readout(mri.simulate_head(4, slices=1, matrix=64, width=64, coils=6, noise=0)[0][0], 64)
    waves = torch.exp(2j * math.pi * torch.sin(2 * math.pi * 4 * torch.arange(64) / 64))  # up to 25 cycles
    kspace, mask = mri.fft2c(mri.ifft2c(kspace) * waves), torch.ones(1, 1, 1, 64, dtype=torch.bool)
    for width, low, high in ((0.02, 0.0, 0.8), (0.3, 0.95, 1.0)):
        network = mri.build_model(f"modl(features=4, cascades=1, phase_width={width})")
        shown = []
        network.networks[0].register_forward_pre_hook(lambda module, given, shown=shown: shown.append(given[0]))
        with torch.no_grad():
            network(kspace[None], mask, (64, 64))
        energy = shown[0].square().sum((0, 2, 3))
        assert low < float(energy[0] / energy.sum()) <= high
    with pytest.raises(mri.BadInput, match="phase_width 0: give a share"):
        mri.build_model("modl(phase_width=0)")


@pytest.mark.parametrize("name", ["varnet", "modl"])
def test_variational_network_symmetries(name, request, random):
    """The coils have no order, the units no meaning; the slices of a batch do not mix."""
    network = request.getfixturevalue(name)
    kspace = mri.simulate_head(4, slices=2, matrix=48, width=48, coils=3)[0]  # ESPIRiT finds no maps in noise
    kspace = mri.crop_readout(kspace, 48) / kspace.abs().max() * 100
    mask = torch.stack([grid(3, 12, 48), grid(2, 16, 48)])[:, None, None]
    with torch.no_grad():
        result = network(kspace * mask, mask, (32, 36))
        assert result.shape == (2, 32, 36)
        zero = mri.zero_filled_rss(kspace * mask, mask, (32, 36))
        assert (result - zero).norm() > 0.1 * zero.norm()
        assert torch.allclose(network((kspace * mask)[:, [2, 0, 1]], mask, (32, 36)), result, rtol=1e-3, atol=1e-3)
        assert torch.allclose(network(1e-5 * kspace * mask, mask, (32, 36)), 1e-5 * result, rtol=1e-3, atol=1e-8)
        assert torch.allclose(network((kspace * mask)[:1], mask[:1], (32, 36)), result[:1], rtol=1e-3, atol=1e-3)


def test_gradients_are_finite_with_a_dead_coil(varnet, random):
    kspace, mask = random(1, 3, 24, 20), grid(3, 6, 20).expand(1, 1, 1, 20)
    kspace[:, 1] = 0
    varnet(kspace * mask, mask, (24, 20)).sum().backward()
    assert all(torch.isfinite(w.grad).all() for w in varnet.parameters())
    assert all(w.grad.any() for w in (varnet.step, varnet.map_network.last.weight))
    varnet.zero_grad()


def test_modl_learns_its_weight(modl, random):
    kspace, mask = random(1, 3, 24, 20), grid(3, 6, 20).expand(1, 1, 1, 20)
    modl(kspace * mask, mask, (24, 20)).sum().backward()
    assert all(torch.isfinite(w.grad).all() for w in modl.parameters())
    assert all(w.grad.any() for w in (modl.sense_weight, modl.start_weight, modl.networks[0].last.weight))
    modl.zero_grad()


def test_unet_on_the_root_sum_of_squares(random):
    """It sees the root-sum-of-squares alone: a coil more or less with the same energy makes no difference."""
    torch.manual_seed(0)
    network = mri.build_model("rss_unet(features=4, levels=2)")
    torch.nn.init.normal_(network.network.last.weight)
    kspace, mask = random(1, 1, 24, 20), grid(3, 6, 20)
    twice = torch.cat([0.6 * kspace, 0.8j * kspace], 1)
    with torch.no_grad():
        one, two = (network(k * mask, mask, (16, 18)) for k in (kspace, twice))
    assert one.shape == (1, 16, 18) and torch.allclose(one, two, rtol=1e-3, atol=1e-4)
    assert (one - mri.zero_filled_rss(kspace * mask, mask, (16, 18))).norm() > 0.1 * one.norm()


@pytest.mark.parametrize(
    "model", ["varnet(features=4, levels=2, cascades=2)", "modl(features=4, levels=2, cascades=1)"]
)
def test_a_network_that_ends_with_the_measured_samples(head, model, monkeypatch):
    """Putting the samples back once more changes nothing then, and did before; the network itself stays as it was."""
    kspace, mask = head[0][None], grid(3, 10)
    network = mri.build_model(model).eval()
    ended, before = mri.ending_measured(network), network.step.detach().clone()
    seen, final, crop = [], [], mri.center_crop
    monkeypatch.setattr("mri_parts.coils.center_crop", lambda images, size: seen.append(images) or crop(images, size))
    for one in (network, ended):
        with torch.no_grad():
            one(kspace * mask, mask[None], kspace.shape[-2:])
        final.append(seen[-1])  # the coils' images
    own, kept = (((mri.fft2c(images) - kspace) * mask).norm() / (kspace * mask).norm() for images in final)
    assert kept < 1e-5 < 1e-3 < own and network.step.equal(before)
    assert not torch.allclose(*final) and ended(kspace * mask, mask[None], (20, 24)).shape == (1, 20, 24)
    with pytest.raises(mri.BadInput, match="RssNetwork has no last step towards the measured samples: take varnet or"):
        mri.ending_measured(mri.build_model("rss_unet(features=4, levels=2)"))


def test_training_run(files, tmp_path, monkeypatch):
    """The loop of notebook 04 on coils: baselines, metrics, a checkpoint that loads and scores the same."""
    monkeypatch.setattr(
        "mri_parts.coils.PARALLEL", {name: (f, (0.001, 0.004)) for name, (f, _) in mri.PARALLEL.items()}
    )
    small = {"model": "varnet(features=4, levels=2, cascades=2)", "epochs": 1, "center_fraction": 0.16, "batch_size": 2}
    small |= {"task": "multi_coil", "data": str(files), "train_accelerations": "4 8"}
    metrics = train.run(**small, out=str(tmp_path / "run"))
    assert list(metrics["methods"]) == ["zero_filled", "sense", "grappa", "tv_sense", "attainable", "varnet"]
    for name in ("sense", "grappa", "tv_sense"):  # from the list, or in steps of its ratio beyond it
        assert math.log(metrics[f"{name}_weight"] / 0.001, 4) % 1 == pytest.approx(0, abs=1e-5)
    for name in ("sense", "grappa", "tv_sense"):
        assert metrics["methods"][name]["psnr"]["mean"] > metrics["methods"]["zero_filled"]["psnr"]["mean"]
    assert metrics["parameters"]["mask"] == "equispaced" and json.loads((tmp_path / "run/metrics.json").read_text())
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    assert mri.read_checkpoint(checkpoint)["parameters"]["task"] == "multi_coil"
    scored = train.run(evaluate=str(checkpoint), data=str(files), out=str(tmp_path / "again"))
    expected = metrics["methods"]["varnet"]["ssim"]["mean"]
    assert scored["methods"]["varnet"]["ssim"]["mean"] == pytest.approx(expected, abs=1e-6)


def test_cache_holds_coils(files, tmp_path):
    volumes = mri.read_folder(files / "val")
    for volume, cached in zip(volumes, mri.cache_volumes(volumes, tmp_path / "cache")):
        assert all(torch.equal(a, b) for a, b in zip(volume.cropped(1), cached.cropped(1)))
        assert torch.equal(volume.target(1), cached.target(1))


MEMORY = """
import sys
from pathlib import Path
import torch
import mri_utils as mri, train
torch.set_num_threads(2)
folder = Path(sys.argv[1])
for person, split in enumerate(("train", "val")):
    kspace = torch.randn(1, 15, 640, 368, dtype=torch.complex64)
    path = folder / split / f"{split}.h5"
    mri.write_volume(path, kspace, target_size=(320, 320), acquisition="AXT2", patient_id=str(person))
changes = {"task": "multi_coil", "data": str(folder), "batch_size": 1}
settings = train.settled(**changes)
train_set, val_set = train.load_data(settings)
parts = train.prepare(settings, train_set)
print(train.train_epoch(*parts, train.machine_of(settings)))
print("peak MiB:", mri.peak_memory()["main"])
"""


def test_files_of_fastmri_size_train_within_stated_memory(tmp_path):
    """One step of the default network on 15 coils of 640 x 368, batch size 1: see data/README.md."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, cwd=mri.ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.rpartition("peak MiB:")[2])
    print(done.stdout)
    assert math.isfinite(peak) and 500 < peak < 6000


def test_augmented_slices_are_scans(files):
    """Whatever was varied, the coils' root-sum-of-squares is the target."""
    data = mri.SliceDataset(mri.read_folder(files / "train"), "equispaced", 1, 0.2, seed=0, augment=True)  # keeps all
    shapes = set()
    for data.epoch in range(3):
        sample = data[0]
        image = mri.rss(mri.center_crop(mri.ifft2c(sample.kspace), sample.target.shape))
        assert torch.allclose(image, sample.target, atol=1e-5 * float(image.max()))
        shapes.add(tuple(sample.kspace.shape))
    assert len(shapes) == 3 and all(len(shape) == 3 for shape in shapes)
