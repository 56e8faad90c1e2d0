"""Chapters 16 to 23: functions that they write by hand, taken from the notebooks and held against other ways."""

import ast
import bisect
import copy
import dataclasses
import math
import pathlib

import nbformat
import numpy as np
import pytest
import torch
from scipy import stats

import mri_utils as mri

SIZE = (16, 16)


def functions(chapter, **known):
    """The functions of a notebook, by name, with what they find in it besides each other."""
    (path,) = (mri.ROOT / "notebooks").glob(f"{chapter}_*.ipynb")
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    defined = [n for source in code for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)]
    for one in defined:  # the chapter's own sizes are defaults of some arguments
        one.args.defaults = [d for d in one.args.defaults if not isinstance(d, ast.Name) or d.id in known]
    names = {"mri": mri, "np": np, "torch": torch, "math": math, "bisect": bisect} | known
    exec(compile(ast.Module(defined, []), str(path), "exec"), names)
    return names


@pytest.fixture
def scan(random):
    """A mask of half of the lines, and an acquisition with three coils."""
    mask = torch.arange(16) % 2 == 0
    maps = random(3, *SIZE)
    return mask, maps / mri.rss(maps)


def test_lost_and_invented_are_the_unmeasured_error(scan, random):
    mask, _ = scan
    truth, image = random(2, *SIZE)
    known = functions(16, mask=mask, full=None, head_seed=0, ripple_weight=0.1, truth=truth)
    lost, invented = known["lost_and_invented"](image)
    error = mri.ifft2c(~mask * mri.fft2c(image - truth))
    assert torch.allclose(invented - lost, error, atol=1e-5)
    energies = [float(x.abs().square().sum()) for x in (lost, invented, error)]
    assert energies[0] + energies[1] == pytest.approx(energies[2], rel=1e-5)  # line by line orthogonal
    assert (
        float(known["lost_and_invented"](torch.zeros_like(truth))[1].abs().max()) == 0
    )  # zero filling invents nothing
    assert float(known["lost_and_invented"](truth)[0].abs().max()) < 1e-5


def test_row_matrices_are_the_acquisition(scan, random):
    mask, maps = scan
    image = random(*SIZE)
    known = functions(16, mask=mask, full=None, head_seed=0, ripple_weight=0.1)
    found = known["row_matrices"](mask, maps.to(torch.complex128)) @ image[..., None].to(torch.complex128)
    assert torch.allclose(found[..., 0].to(torch.complex64), mri.Acquisition(mask, maps).normal(image), atol=1e-5)


@pytest.mark.parametrize("coils", [1, 3])
def test_the_hidden_lesion_solves_its_equations(scan, random, coils):
    """Conjugate gradients against a direct solution of the whole image's linear system."""
    mask, maps = scan
    A = mri.Acquisition(mask, maps if coils > 1 else None)
    disc = torch.zeros(SIZE, dtype=bool)
    disc[6:9, 7:10] = True
    names = {"size": SIZE, "disc": disc, "lesion": random(*SIZE), "phase": torch.ones(SIZE) + 0j, "sigma": 1.0}
    known = functions(16, mask=mask, full=None, head_seed=0, ripple_weight=0.1, **names)
    found = known["hide"](A)
    units = torch.eye(256, dtype=torch.complex64).reshape(256, *SIZE)
    normal = A.normal(units).reshape(256, 256).T + torch.diag(torch.where(disc, 1, 0.1).flatten() + 0j)
    exact = torch.linalg.solve(normal, (disc * names["lesion"]).flatten()).reshape(SIZE)
    exact *= known["contrast"](names["lesion"]) / known["contrast"](exact)
    assert torch.allclose(found, exact, atol=1e-3 * float(exact.abs().max()))
    assert known["contrast"](found) == pytest.approx(known["contrast"](names["lesion"]), rel=1e-4)


def test_the_best_observer(random):
    """How often he is right, against a simulation of him."""
    change = random(*SIZE)
    known = functions(16, mask=None, full=None, head_seed=0, ripple_weight=0.1, sigma=1.0)
    A = mri.Acquisition(torch.ones(16, dtype=bool))
    change = change * 1.5 / A(change).norm()
    samples, noise = A(change), torch.randn(20_000, *SIZE, dtype=torch.complex64) * math.sqrt(2)  # 1 in either part
    log_ratio = (samples.conj() * (samples + noise)).real.sum((1, 2)) - samples.abs().square().sum() / 2
    assert known["evidence"](change, A) == pytest.approx(1.5, rel=1e-4)
    assert known["right"](1.5) == pytest.approx(float((log_ratio > 0).float().mean()), abs=0.015)


def test_lines_are_split_in_two():
    torch.manual_seed(0)
    known = functions(17, matrix=64)
    mask = torch.stack([mri.sampling_mask("random", (64, 64), 4, 0.08, seed=i)[None] for i in range(50)])
    seen, hidden = known["split_lines"](mask)
    assert not (seen & hidden).any() and torch.equal(seen | hidden, mask)
    assert seen[..., 29:35].equal(mask[..., 29:35]) and hidden.any(-1).all()
    assert 0.3 < float(hidden.sum() / mask.sum()) < 0.4  # half of all but the central lines
    assert known["split_lines"](mask, 0.0)[1].sum(-1).eq(1).all()  # one at least
    kspace = mask + 0j
    (_, one, ((asked, _),)), (_, other, ((asked_then, _),)) = known["lessons"]("SSDU", kspace, mask, 0.0)
    middle = torch.arange(64).sub(32).abs().le(3) & (torch.arange(64) < 35)  # only these are seen in both
    assert torch.equal(one & other, mask & middle) and torch.equal(one | other, mask)
    assert torch.equal(asked, other & ~middle) and torch.equal(asked_then, one & ~middle)


def test_mirrored_scans_are_scans_of_mirrored_heads(random):
    kspace, mask = random(2, 64, 64), torch.rand(2, 1, 64) < 0.3
    image = mri.ifft2c(kspace)
    turns = ((-2,), (-1,), (-2, -1))
    wanted = [image, *(image.flip(axes).roll([1] * len(axes), axes) for axes in turns)]
    known, met = functions(17, matrix=64), set()
    for seed in range(20):
        torch.manual_seed(seed)
        turned, lines = known["mirrored"](kspace, mask)
        met.add(next(i for i, x in enumerate(wanted) if torch.allclose(mri.ifft2c(turned), x, atol=1e-4)))
        assert torch.equal(lines, mask) or torch.equal(lines, mask.flip(-1).roll(1, -1))
        sampled = known["mirrored"](kspace * mask, mask)
        assert not (sampled[0] * ~sampled[1]).any()
    assert met == {0, 1, 2, 3}


def test_two_scans_out_of_one_teach_as_two_scans_do():
    """On lines that are seen, least squares towards y - n' is that towards the truth, and towards y is not."""
    torch.manual_seed(0)
    known = functions(17, matrix=64)
    signal, noise = (known["noise"](torch.empty(1, 400_000)) for _ in range(2))
    signal, noisy = 2 * signal, 2 * signal + noise
    first, _ = known["lessons"]("robust SSDU", noisy, torch.ones(1, 64) > 0, 1.0)
    seen, one, ((lines, target), (hidden, other)) = first

    def factor(y):
        return float((seen.conj() * y).real.sum() / seen.abs().square().sum())

    assert not (lines & hidden).any() and torch.equal(other, noisy) and torch.equal(lines, one)
    assert factor(target) == pytest.approx(factor(signal), abs=0.01) and factor(noisy) > factor(signal) + 0.1


def test_gains_of_rings_are_least_squares(random):
    rings = torch.arange(16).minimum(torch.tensor(8)).expand(16, 16)
    known = functions(17, matrix=16, rings=rings)
    scans, targets = random(5, 16, 16), random(5, 16, 16)
    gains = known["learn_gains"](scans, targets)
    one = [torch.view_as_real(x[:, rings == 3]).flatten() for x in (scans, targets)]
    expected = torch.linalg.lstsq(one[0][:, None], one[1][:, None]).solution
    assert float(gains[3]) == pytest.approx(float(expected), rel=1e-4)


def test_the_bound_of_ranks_keeps_its_promise():
    bound = functions(18, matrix=16)["conformal_bound"]
    random = np.random.default_rng(1)
    for n, alpha in ((9, 0.1), (30, 0.2), (50, 0.05)):
        studies = random.exponential(size=(4000, n + 1))
        covered = np.mean([study[-1] <= bound(study[:-1], alpha) for study in studies])
        assert 1 - alpha - 0.015 <= covered <= 1 - alpha + 1 / (n + 1) + 0.015
    assert bound(np.arange(8.0), 0.1) == math.inf and bound(np.arange(9.0), 0.1) == 8


def test_heads_count_once_and_the_promise_holds():
    """Heads that differ much, with many pixels each: the mean coverage of new heads is what was promised."""
    calibrate = functions(18, matrix=16)["calibrate"]
    random = np.random.default_rng(2)
    covered = []
    for _ in range(200):
        levels = random.lognormal(0, 0.5, 31)
        scores = [level * np.abs(random.standard_normal(60)) for level in levels]
        factor = calibrate(scores[:-1], 0.1)
        covered.append(np.mean(scores[-1] <= factor))
    assert 0.89 <= np.mean(covered) <= 0.97
    few = [np.ones(3)] * 5
    assert calibrate(few, 0.1) == math.inf  # five heads cannot promise that


def test_scored_slices_are_of_the_middle_and_others_tune(tiny, tmp_path, monkeypatch):
    """As many as asked for in all, from the middle; of a single head none is in both."""
    volume = mri.read_folder(tiny / "val")[0]
    long = dataclasses.replace(volume, shape=(42, *volume.shape[1:]))
    known = functions(19, sets={}, val_slices=6, Path=pathlib.Path)
    monkeypatch.setattr(mri, "read_folder", lambda folder: [long])
    (tuning,), (exam,) = known["load"](tmp_path)
    assert len(exam) == 6 and len(tuning) == 4 and not set(exam.kept) & set(tuning.kept)
    assert min(exam.kept) == 12 and max(exam.kept) < 28 and min(tuning.kept) > 8 and max(tuning.kept) < 30
    middle = known["middle"]
    assert [len(v) for v in middle([long] * 3, 7)] == [2, 2, 2] and len(middle([long] * 9, 4)) == 4


def test_coarser_pixels_show_the_same_image():
    """A smooth object keeps its values where the pixels grow; all of k-space is the image itself."""
    coarser = functions(19, sets={}, val_slices=4)["coarser"]
    y, x = (torch.linspace(-1, 1, n + 1)[:-1] for n in (48, 64))
    image = torch.exp(-8 * (y[:, None] ** 2 + x**2)) + 0j
    kspace = mri.fft2c(image)
    assert torch.equal(coarser(kspace, 1.0), kspace)
    half = mri.ifft2c(coarser(kspace, 0.5))
    assert half.shape == (24, 32) and torch.allclose(half, image[::2, ::2], atol=1e-3)


REAL = {"shots": 8, "millimetres": 3.0, "degrees": 2.0}


def test_the_shift_of_a_few_lines_is_found(random):
    """Against a shift that is known; ten lines of noise-free k-space are enough."""
    known, kspace, columns = functions(21, **REAL), random(24, 32), torch.arange(11, 21)
    kspace *= torch.exp(-((torch.arange(24) - 12.0)[:, None] ** 2 + (torch.arange(32) - 16.0) ** 2) / 50)
    moved = mri.move_shots(kspace, torch.zeros(32, dtype=torch.long), torch.tensor([[0.8, -1.1]]))
    found = known["shift_of"](moved[:, columns], kspace[:, columns], columns, 32, steps=8)
    assert found.tolist() == pytest.approx([0.8, -1.1], abs=1e-3)
    assert known["shift_of"](kspace[:, columns], kspace[:, columns], columns, 32).abs().max() < 1e-5


def test_a_nod_leaves_the_central_shot_at_rest():
    known = functions(21, **REAL)
    for seed in range(20):
        mask = mri.sampling_mask("random", (96,), 3, 0.1, seed=seed)
        shot, _ = mri.order_lines(mask, "interleaved", 8)
        shifts, angles = known["nod"](seed, shot, 3.0, 2.0, pixel=1.5)
        centre = known["nearest_centre"](shot)
        assert mask[centre] and abs(int(centre) - 48) <= 1
        away = shifts.norm(dim=1)
        assert int((away > 0).sum()) == 3 and float(away[shot[centre]]) == 0 and angles[shot[centre]] == 0
        assert away[away > 0].tolist() == pytest.approx([2.0] * 3) and set(np.abs(angles)) == {0.0, 2.0}


def test_the_point_spread_between_pixels():
    """At whole pixels it is the discrete transform; without decay it is a sinc."""
    spread = functions(21, **REAL)["point_spread"]
    weights = torch.rand(40, generator=torch.Generator().manual_seed(0))
    pixels, values = spread(weights, reach=10)
    whole = np.fft.fftshift(np.abs(np.fft.ifft(np.fft.ifftshift(weights.numpy()))))
    at = [int((pixels - place).abs().argmin()) for place in range(-9, 10)]
    assert np.allclose(values[at].numpy(), whole[20 - 9 : 20 + 10] / float(values.max() * whole.max()), atol=2e-2)
    pixels, values = spread(torch.ones(400), reach=10)
    assert np.allclose(values.numpy(), np.abs(np.sinc(pixels.numpy())), atol=2e-3)


@pytest.mark.parametrize("cascades", [1, 3])
def test_unrolling_by_hand_is_the_network(cascades, random):
    torch.manual_seed(0)
    network = mri.build_model(f"unrolled(cascades={cascades}, inner='unet', features=2, levels=2, memory=1)").eval()
    for inner in network.networks:  # which begins as the identity
        torch.nn.init.normal_(inner.last.weight, std=0.1)
    unroll, mask = functions(21, **REAL)["unroll"], torch.arange(16) % 2 == 0
    kspace = random(*SIZE) * mask
    with torch.inference_mode():
        expected = network(kspace[None], mask[None, None], SIZE)[0]
        assert torch.allclose(unroll(network, kspace, mask), expected, atol=1e-5)
        trust = torch.where(torch.arange(16) < 8, 0.3, 1.0)
        kept = mri.fft2c(unroll(network, kspace, mask, trust))
        hard = mask & (trust == 1)
        assert torch.allclose(kept[:, hard], kspace[:, hard], atol=1e-5)
        assert not torch.allclose(kept[:, mask & (trust < 1)], kspace[:, mask & (trust < 1)], atol=1e-3)
        network.consistency = "none"
        if cascades == 1:
            free = network(kspace[None], mask[None, None], SIZE)[0]
            assert torch.allclose(unroll(network, kspace, mask, last=False), free, atol=1e-5)


def test_residuals_are_relative():
    """A scan whose shots are all as bad as usual, only twice, has nothing that stands out."""
    against = functions(21, **REAL)["against"]
    still = np.random.default_rng(0).uniform(0.1, 1, (5, 8))
    assert np.allclose(against(2 * np.median(still, 0), still), 1)
    odd = np.median(still, 0) * np.where(np.arange(8) == 3, 4, 1)
    assert against(odd, still).argmax() == 3 and against(odd, still).max() == pytest.approx(4)


def test_plug_and_play_and_samples_by_hand_are_the_books(random):
    """With a denoiser that is no network: it darkens all but the middle, the more so the more noise it is told of."""
    outside = torch.ones(SIZE)
    outside[4:12, 4:12] = 0

    def darken(image, level):
        return image * (1 - outside * level / (level + 0.1))

    known, mask = functions(20, denoiser=darken), mri.sampling_mask("random", SIZE, 2, 0.2, seed=0)
    kspace = (mri.fft2c(random(*SIZE)) * mask)[None]
    for mirror in (False, True):
        mine = known["my_plug_and_play"](kspace, mask, 7, 0.5, 0.01, mirror)
        assert torch.allclose(mine, mri.plug_and_play(kspace, mask, darken, 7, 0.5, 0.01, mirror=mirror), atol=1e-4)
        assert not torch.allclose(mine, mri.ifft2c(kspace), atol=0.01)
    samples = known["my_samples"](kspace[0], mask, 3, 5)
    assert torch.allclose(samples, mri.posterior_samples(kspace[0], mask, darken, 3, 5), atol=1e-4)


def test_the_coverage_of_samples_is_that_of_one_more_draw():
    """Where the truth is one more draw, intervals hold nine of ten pixels; where samples are too alike, fewer."""
    torch.manual_seed(0)
    truth = 5 + torch.randn(100, 100)
    names = {"truth": truth, "inside": torch.ones(100, 100, dtype=bool), "draws": 8, "stats": stats}
    samples = 5 + torch.randn(8, 100, 100) + 0j
    found = functions(20, samples={4: samples, 8: 5 + (samples - 5) / 3}, **names)["calibration"]
    covered = [float(found(a)["covered, of 90 %"].rstrip("%")) for a in (4, 8)]
    assert covered[0] == pytest.approx(90, abs=1.5) and covered[1] < 60
    assert float(found(4)["spread, rms"]) == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("lines", [4, 8, 12])
def test_learned_probabilities_keep_to_their_budget(lines):
    """Between 0 and 1, in the order of the weights, and of the mean that was asked for; masks by them have it too."""
    known = functions(23, share=lines / 16, matrix=16, lines=lines)
    for weights in (torch.linspace(-1, 1, 16), torch.linspace(-3, -1, 16), torch.linspace(0.5, 2, 16)):
        p = known["probabilities"](weights)
        assert p.min() >= 0 and p.max() <= 1 and float(p.mean()) == pytest.approx(lines / 16, rel=1e-5)
        assert (p.diff() >= 0).all()
        drawn = known["draw"](p, 4000)
        assert set(drawn.unique().tolist()) <= {0.0, 1.0}
        assert torch.allclose(drawn.mean((0, 1)), p, atol=0.04)
        exact = known["exactly"](p, 500)
        assert (exact.sum(-1) == lines).all() and torch.equal(
            known["always"](p), (torch.arange(16) >= 16 - lines) * 1.0
        )


def test_the_gradient_of_a_drawn_mask_is_that_of_its_soft_form():
    known = functions(23, share=0.25, matrix=16, lines=4)
    p = torch.full((16,), 0.25, requires_grad=True)
    weights = torch.arange(16.0)
    torch.manual_seed(1)
    (known["draw"](p, 1).flatten() @ weights).backward()
    torch.manual_seed(1)
    soft = torch.sigmoid(12 * (p.detach() - torch.rand(1, 16)))[0]
    assert torch.allclose(p.grad, weights * 12 * soft * (1 - soft), atol=1e-5)


def test_two_ffts_are_the_weighted_normal_operator(random):
    """Against the sum that defines the transform, for points anywhere and weights of any size."""
    trajectory = (torch.rand(3, 20, 2, generator=torch.Generator().manual_seed(2)) - 0.5) * 8
    weights, image = torch.rand(3, 20, generator=torch.Generator().manual_seed(3)) + 0.1, random(2, 8, 8)
    known = functions(23, matrix=8)
    found = known["convolve"](image, known["kernel_of"](trajectory, weights))
    pixels = torch.stack(torch.meshgrid(torch.arange(8) - 4, torch.arange(8) - 4, indexing="ij"), -1).reshape(-1, 2)
    A = torch.exp(-2j * math.pi * (trajectory.reshape(-1, 2).double() @ pixels.double().T) / 8) / 8
    expected = A.conj().T @ (weights.reshape(-1, 1) * (A @ image.reshape(2, -1).T.to(torch.complex128)))
    assert torch.allclose(found.reshape(2, -1).T.to(torch.complex128), expected, atol=1e-4)


def test_adaptation_by_hand_is_the_books():
    """The network that has learned from its scans is that of chapter 17, and the one it came from stays as it was."""
    torch.manual_seed(0)
    network = mri.build_model("unrolled(cascades=1, inner='unet(levels=2)', features=4)").eval()
    before = [weight.clone() for weight in network.parameters()]
    mask = torch.stack([mri.sampling_mask("random", (64, 64), 3, 0.1, seed=i)[None] for i in range(2)])
    kspace = mri.crop_readout(mri.simulate_head(3, "T2w", 2, 64, width=64, noise=0)[0], 64) * mask
    kspace = kspace / mri.ifft2c(kspace).abs().max()
    by_hand, curve = functions(17, matrix=64, copy=copy)["adapt"](network, kspace, mask, 8, rate=0.01)
    with torch.inference_mode():
        image = mri.adapted(network, 8, 0.01)(3 * kspace, mask, (32, 32))
        wanted = mri.center_crop(by_hand(3 * kspace, mask, (64, 64)), (32, 32))
        untaught = network(3 * kspace, mask, (32, 32))
        mean = mri.adapted(network, 8, 0.01, then=mri.mirrored)(3 * kspace, mask, (32, 32))
    assert min(curve) < curve[0]  # there was something to learn
    torch.testing.assert_close(image, wanted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(image, untaught, atol=1e-2) and not torch.allclose(mean, image, atol=1e-2)
    assert all(torch.equal(one, other) for one, other in zip(before, network.parameters()))
    with pytest.raises(mri.BadInput, match="points"):
        mri.adapted(network)(kspace, torch.ones(2, 32, 64) > 0, (32, 32))
