"""Section 2 of mri_utils: masks. What each kind promises, and that fastMRI's kinds are fastMRI's to the line."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import mri_utils as mri
import train
from mri_parts import masks

FASTMRI_KINDS = ("random", "equispaced", "equispaced_fraction", "magic", "magic_fraction")
KINDS_1D = (*FASTMRI_KINDS, "grappa", "variable_density")
KINDS_2D = ("gaussian_2d", "poisson_disc", "radial", "spiral", "low_pass")
ALL_KINDS = KINDS_1D + KINDS_2D
EXACT = ("variable_density", "gaussian_2d")  # exactly round(N / R) samples
CENTER_EXTRA = ("equispaced", "magic", "grappa")  # R is the step; the centre is not counted in it
OWN_CENTER = ("radial", "spiral", "low_pass")  # ignore center_fraction
SEEDLESS = ("grappa", "low_pass")  # nothing random about them
SHAPES = [(160, 176), (101, 128), (64, 99), (81, 75)]  # even and odd in both places


def center_bounds(n, share):
    """First and one-past-last index of the kept centre of n samples, from the definition."""
    n_low = round(n * share)
    pad = (n - n_low + 1) // 2
    return pad, pad + n_low


# --- equal to fastMRI --------------------------------------------------------

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "reference_values.npz"


def test_stored_reference_masks():
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN} is not here; test_same_lines_as_the_fastmri_package covers the same ground")
    compared = 0
    with np.load(GOLDEN) as stored:
        for key in stored.files:
            if not key.startswith("mask/") or key.endswith("/low"):
                continue
            _, kind, n, acceleration, fraction, seed = key.split("/")
            n, fraction = int(n), float(fraction)
            seed = int(seed) if seed.isdigit() else seed
            expected = np.unpackbits(stored[key])[:n].astype(bool)
            mask = mri.sampling_mask(kind, (640, n), int(acceleration), fraction, seed).numpy()
            assert np.array_equal(mask, expected), key
            first, last = center_bounds(n, fraction)
            assert last - first == stored[key + "/low"], key
            compared += 1
    assert compared >= 100


# What fastMRI returned for 372 lines, seed "file1000000.h5", 4x with 8 %: written down, needs nothing else.
HARD_CODED = {
    "random": "0862018c90401008005040a00008000040488240085fffffff88cc025040021808610400008c00210a120064890000",
    "equispaced": "4444444444444444444444444444444444444444445fffffffc4444444444444444444444444444444444444444440",
    "equispaced_fraction": "4208410821082104208420841082108210420842085fffff"
    "ffa1042084208410821082104208420841082108210420",
    "magic": "4444444444444444444444444444444444444444445fffffffc4444444444444444444444444444444444444444440",
    "magic_fraction": "0410410410410410410410410410410410410410411fffffffc1041041041041041041041041041041041041041040",
}


@pytest.mark.parametrize("kind", FASTMRI_KINDS)
def test_hard_coded_fastmri_lines(kind):
    mask = mri.sampling_mask(kind, (640, 372), 4, 0.08, "file1000000.h5").numpy()
    assert np.packbits(mask).tobytes().hex() == HARD_CODED[kind]


@pytest.mark.parametrize("kind", FASTMRI_KINDS)
def test_same_lines_as_the_fastmri_package(kind):
    subsample = pytest.importorskip("fastmri.data.subsample", reason="the fastmri package is not installed")
    pairs = [(4, 0.08), (8, 0.04), (8, 0.05), (2, 0.16), (3, 0.1), (5, 0.01), (1, 0.08), (10, 0.06)]
    if kind in ("random", "equispaced_fraction", "magic_fraction"):
        pairs.append((3.5, 0.07))
    for n in [*range(126, 401, 7), 320, 368, 372]:
        for acceleration, fraction in pairs:
            reference = subsample.create_mask_for_mask_type(kind, [fraction], [acceleration])
            for seed in (n, 7, f"file{n:07d}.h5"):
                theirs, n_low = reference((1, 1, n, 2), seed=tuple(map(ord, seed)) if isinstance(seed, str) else seed)
                mine = mri.sampling_mask(kind, (4, n), acceleration, fraction, seed)
                if kind == "equispaced_fraction" and acceleration == 1:
                    assert mine.all() and theirs.flatten().bool()[:-1].all()  # theirs lacks the last line
                    continue
                assert torch.equal(mine, theirs.flatten().bool()), (n, acceleration, fraction, seed)
                first, last = center_bounds(n, fraction)
                assert last - first == n_low


def test_seed_alone_decides():
    """Numpy's global random state is neither used nor changed."""
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    first = mri.sampling_mask("random", (368,), 4, 0.08, 3)
    assert np.array_equal(before, np.random.get_state()[1])
    np.random.seed(6)
    assert torch.equal(first, mri.sampling_mask("random", (368,), 4, 0.08, 3))


# --- the two-parameter mask, and the numbers that the book quotes -------------


def test_five_percent_and_every_eighth_line_is_a_factor_near_six():
    factors = []
    for offset in range(8):
        mask = mri.grappa_mask(368, 0.05, 8, offset)
        expected = np.arange(368) % 8 == offset
        expected[175:193] = True  # 18 lines around line 184
        assert np.array_equal(mask.numpy(), expected)
        factors.append(mri.effective_acceleration(mask))
    assert {round(368 / factor) for factor in factors} == {61, 62}  # lines: 18 + 46 - those in both
    assert min(factors) == pytest.approx(368 / 62) and max(factors) == pytest.approx(368 / 61)
    assert np.mean(factors) == pytest.approx(5.96, abs=0.01)


@pytest.mark.parametrize(
    "n, acceleration, fraction, n_low, mean_factor",
    [(368, 4, 0.08, 29, 3.235), (368, 8, 0.04, 15, 6.224), (368, 8, 0.05, 18, 5.960), (372, 4, 0.08, 30, 3.221)],
)
def test_effective_factor_of_equispaced_masks(n, acceleration, fraction, n_low, mean_factor):
    """4x with 8 % is really 3.2x: the lines are n_low + (n - n_low) / R on the mean over all offsets."""
    masks = [mri.grappa_mask(n, fraction, acceleration, offset) for offset in range(acceleration)]
    kept = np.mean([int(mask.sum()) for mask in masks])
    assert kept == pytest.approx(n_low + (n - n_low) / acceleration)
    assert n / kept == pytest.approx(mean_factor, abs=6e-4)


def test_grappa_is_equispaced_with_offset_zero():
    for width in (368, 101):
        assert torch.equal(mri.sampling_mask("grappa", (9, width), 4, 0.08), mri.grappa_mask(width, 0.08, 4))
        drawn = {tuple(mri.sampling_mask("equispaced", (width,), 4, 0.08, seed).tolist()) for seed in range(40)}
        assert drawn == {tuple(mri.grappa_mask(width, 0.08, 4, offset).tolist()) for offset in range(4)}


def test_grappa_full_at_one():
    assert mri.grappa_mask(33, 0.1, 1).all()


# --- what all kinds have in common -------------------------------------------


def test_table_has_exactly_the_kinds_and_a_line_about_each():
    assert set(mri.mask_kinds("H", "W")) == set(ALL_KINDS) and set(mri.mask_kinds("W")) == set(KINDS_1D)
    assert list(mri.MASKS) == mri.mask_kinds("frames", "H", "W") == [*mri.mask_kinds("H", "W"), "kt", "kt_gaussian"]
    lines = [kind.draw.__doc__.splitlines()[0] for kind in mri.MASKS.values()]
    assert len(set(lines)) == len(lines)
    assert all(30 < len(line) <= 120 for line in lines)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shape_type_and_determinism(kind, shape):
    mask = mri.sampling_mask(kind, (3, *shape), 4, 0.06, 11)
    assert mask.dtype == torch.bool
    assert mask.shape == (shape if kind in KINDS_2D else shape[-1:])
    assert torch.broadcast_shapes(mask.shape, (3, *shape)) == (3, *shape)
    assert torch.equal(mask, mri.sampling_mask(kind, torch.Size(shape), 4, 0.06, 11))
    assert mri.effective_acceleration(mask) == pytest.approx(mask.numpy().size / mask.numpy().sum())


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_seeds(kind):
    def draw(seed):
        return mri.sampling_mask(kind, (64, 176), 4, 0.06, seed)

    assert torch.equal(draw("file1.h5"), draw(tuple(map(ord, "file1.h5"))))
    assert torch.equal(draw(np.int64(3)), draw(3))
    different = len({tuple(draw(seed).flatten().tolist()) for seed in range(12)})
    unseeded = len({tuple(draw(None).flatten().tolist()) for _ in range(12)})
    if kind in SEEDLESS:
        assert different == unseeded == 1
    else:  # an equispaced mask has only R different offsets
        expected = {"equispaced": 2, "equispaced_fraction": 2, "magic": 2, "magic_fraction": 2}.get(kind, 12)
        assert different >= expected and unseeded >= expected


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fraction", [0.02, 0.04, 0.08])
def test_center_is_full_and_holds_dc(kind, shape, fraction):
    mask = mri.sampling_mask(kind, shape, 4, fraction, 2)
    unshifted = torch.fft.ifftshift(mask)  # over all axes of the mask: DC comes first
    assert unshifted.flatten()[0]
    if kind in OWN_CENTER:  # a plus of 3 x 3 samples around DC is the least that a dense centre means
        row, column = shape[0] // 2, shape[1] // 2
        assert mask[row - 1 : row + 2, column - 1 : column + 2].all()
        return
    share = fraction ** (1 / mask.ndim)
    for axis, n in enumerate(mask.shape):
        first, last = center_bounds(n, share)
        assert first <= n // 2 < last and abs((n // 2 - first) - (last - 1 - n // 2)) <= 1  # centred on DC
        mask = mask.narrow(axis, first, last - first)
    assert mask.all()


def test_center_share_means_the_same_in_one_and_two_dimensions():
    line = mri.sampling_mask("variable_density", (320, 320), 10, 0.1, 0)
    point = mri.sampling_mask("gaussian_2d", (320, 320), 10, 0.1, 0)  # the centre takes all the samples
    assert line.sum() == 32 and line[144:176].all()
    assert point.sum() == 10240 and point[110:211, 110:211].all()  # 101 x 101 = 10 201 = 10 %
    assert abs(101 * 101 / point.numel() - 32 / 320) < 0.001


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("acceleration", [2, 4, 8])
def test_counts(kind, shape, acceleration):
    masks = [mri.sampling_mask(kind, shape, acceleration, 0.06, seed) for seed in range(2 if kind in KINDS_2D else 30)]
    total, wanted = masks[0].numel(), masks[0].numel() / acceleration
    counts = np.array([int(mask.sum()) for mask in masks])
    low = round(0.06 * total)
    if kind in EXACT:
        assert (counts == round(wanted)).all()
    elif kind in CENTER_EXTRA:  # a grid of N/R lines (magic leaves out some near DC) and the centre
        assert (counts >= wanted - 4 + low * (1 - 1 / acceleration) - 3).all()
        assert (counts <= math.ceil(wanted) + low).all()
    elif kind == "random":  # the mean of 30 binomial draws
        p = (wanted - low) / (total - low)
        assert abs(counts.mean() - wanted) < 4 * math.sqrt((total - low) * p * (1 - p) / len(masks))
    elif kind in ("equispaced_fraction", "magic_fraction"):
        allowed = 0.1 * wanted + 2 if kind == "equispaced_fraction" else 0.2 * wanted + 2
        assert (np.abs(counts - wanted) <= allowed).all()
    elif kind in ("poisson_disc", "spiral"):
        assert (np.abs(counts - wanted) <= 0.02 * wanted + 1).all()
    elif kind == "radial":
        assert (np.abs(counts - wanted) <= max(shape) / 2).all()
    else:
        side = 1 / math.sqrt(acceleration)
        assert (counts == round(shape[0] * side) * round(shape[1] * side)).all()


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("shape", [*SHAPES, (320, 320), (12, 31)])
def test_acceleration_one_keeps_everything(kind, shape):
    mask = mri.sampling_mask(kind, shape, 1, 0.08, 0)
    assert mask.all()  # of the fraction and magic kinds, too, where fastMRI leaves out a line or three
    assert mri.sampling_mask(kind, shape, 1, 1.0, 0).all()


def test_center_alone_when_it_is_all_that_r_allows():
    """25 of 100 lines are the centre and R = 4 asks for 25."""
    for kind in ("random", "equispaced_fraction", "magic_fraction", "variable_density"):
        mask = mri.sampling_mask(kind, (100,), 4, 0.25, 1)
        assert mask.sum() == 25 and mask[38:63].all()
    for kind in ("gaussian_2d", "poisson_disc"):
        mask = mri.sampling_mask(kind, (100, 100), 4, 0.25, 1)
        assert mask.sum() == 2500 and mask[25:75, 25:75].all()


def test_no_two_kinds_are_the_same_mask():
    """Seed 1 gives equispaced an offset other than 0; with offset 0 it is grappa by definition."""
    full = {kind: mri.sampling_mask(kind, (160, 176), 4, 0.08, 1).expand(160, 176) for kind in ALL_KINDS}
    names = list(full)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert not torch.equal(full[first], full[second]), (first, second)


# --- what single kinds promise -----------------------------------------------


def test_variable_density_and_gaussian_thin_out():
    lines = torch.stack([mri.sampling_mask("variable_density", (320,), 4, 0.04, s) for s in range(300)]).float().mean(0)
    inner, middle, outer = (lines[160 + a : 160 + b].mean() for a, b in ((10, 50), (60, 100), (110, 150)))
    assert inner > 1.5 * middle > 3 * outer > 0
    points = mri.sampling_mask("gaussian_2d", (320, 320), 8, 0.01, 0).float()
    inner, middle, outer = (points[160 - b : 160 + b, 160 - b : 160 + b].mean() for b in (30, 70, 150))
    assert inner > 1.3 * middle > 1.5 * outer


def test_magic_lines_do_not_mirror_each_other():
    """Outside the centre line -k is not measured where line k is; an equispaced mask fails this for some offset."""

    def mirrored(mask):
        outer = mask.clone()
        outer[slice(*center_bounds(368, 0.04))] = False
        return int((outer[1:] & outer[1:].flip(0)).sum())  # line 0 has no mirror image

    assert all(mirrored(mri.sampling_mask("magic", (368,), 8, 0.04, seed)) == 0 for seed in range(20))
    assert any(mirrored(mri.sampling_mask("equispaced", (368,), 8, 0.04, seed)) > 0 for seed in range(20))


@pytest.mark.parametrize("shape, acceleration", [((80, 88), 4), ((80, 88), 8), ((75, 61), 6)])
def test_poisson_disc_keeps_distances_and_leaves_no_hole(shape, acceleration):
    """One scale s must exist such that points keep s * radius and every point left out is within it of a kept one.

    The radius is 1 + 3 * distance from DC, as the docstring says; s itself is not known here. Kept
    pairs allow any s up to s_max; the point left out that is hardest to explain needs more than s_min.
    """
    mask = mri.sampling_mask("poisson_disc", shape, acceleration, 0.04, 0).numpy()

    def bounds(mask):
        grid = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij"), -1)
        radius = 1 + 3 * np.sqrt(sum((grid[..., a] / (shape[a] // 2 + 1)) ** 2 for a in (0, 1)))
        outside = np.ones(shape, bool)
        outside[tuple(slice(*center_bounds(n, 0.2)) for n in shape)] = False
        kept, left = grid[mask & outside], grid[~mask]
        r_kept = radius[mask & outside]
        between = np.sqrt(((kept[:, None] - kept[None]) ** 2).sum(-1)) + np.diag(np.full(len(kept), np.inf))
        s_max = (between / np.minimum(r_kept[:, None], r_kept[None])).min()
        s_min = (np.sqrt(((left[:, None] - kept[None]) ** 2).sum(-1)) / r_kept).min(1).max()
        return s_min, s_max

    s_min, s_max = bounds(mask)
    assert s_min < s_max
    random_points = mri.sampling_mask("gaussian_2d", shape, acceleration, 0.04, 0).numpy()
    s_min, s_max = bounds(random_points)
    assert s_min > s_max  # the test can tell


def test_poisson_disc_is_denser_in_the_middle():
    mask = mri.sampling_mask("poisson_disc", (160, 160), 8, 0.01, 0).float()
    assert mask[50:65, 50:110].mean() > 2 * mask[:15].mean() > 0
    edge = mask[:15].bool()
    assert not (edge[:, 1:] & edge[:, :-1]).any() and not (edge[1:] & edge[:-1]).any()  # no neighbours out there


@pytest.mark.parametrize("shape", [(160, 176), (101, 128), (81, 75)])
def test_radial_is_point_symmetric_and_golden(shape):
    mask = mri.sampling_mask("radial", shape, 12, 0.04, 5).numpy()
    height, width = shape
    half = min(height, width) // 2 - 1
    block = mask[height // 2 - half : height // 2 + half + 1, width // 2 - half : width // 2 + half + 1]
    assert np.array_equal(block, block[::-1, ::-1])  # a spoke goes through DC to the other side
    y, x = np.nonzero(mask)
    far = np.hypot(y - height // 2, x - width // 2) > half - 3
    measured = np.degrees(np.arctan2(y - height // 2, x - width // 2))[far] % 180
    first = math.degrees(np.random.RandomState(5).uniform(0, math.pi))
    predicted = (first + 111.246 * np.arange(200)) % 180
    gap = np.abs((measured[:, None] - predicted[None] + 90) % 180 - 90)
    spokes = int(np.argmax(gap.min(0) > 2)) or 200  # spokes drawn before the first that is missing
    assert 5 <= spokes <= 40
    assert (gap[:, :spokes].min(1) < 2).all()  # and nothing far out lies off these spokes


def test_spiral_arms_are_connected():
    """No gaps along an arm: all samples hang together through their 8 neighbours, up to the rim."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")
    for acceleration in (4, 8):
        mask = mri.sampling_mask("spiral", (160, 176), acceleration, 0.04, 1).numpy()
        y, x = np.mgrid[:160, :176]
        radius = np.hypot((y - 80) / 80, (x - 88) / 88)
        labels, _ = ndimage.label(mask & (radius < 0.97), np.ones((3, 3)))
        assert (labels[mask & (radius < 0.9)] == labels[80, 88]).all()
        assert mask[77:84, 85:92].mean() > 0.9  # dense in the centre
        assert mask[:20].mean() < 1.2 / acceleration


def test_low_pass_is_the_central_block():
    mask = mri.sampling_mask("low_pass", (320, 320), 4, 0.08)
    expected = torch.zeros(320, 320, dtype=torch.bool)
    expected[80:240, 80:240] = True
    assert torch.equal(mask, expected)
    assert mri.sampling_mask("low_pass", (320, 320), 16, 0.08)[120:200, 120:200].all()


def test_center_fraction_is_ignored_where_the_docstring_says_so():
    for kind in OWN_CENTER:
        assert "ignores center_fraction" in mri.MASKS[kind].draw.__doc__
        assert torch.equal(mri.sampling_mask(kind, (64, 60), 4, 0.01, 0), mri.sampling_mask(kind, (64, 60), 4, 0.2, 0))


# --- a kind of one's own ------------------------------------------------------


def few_lines(sizes, acceleration, center_fraction, rng):
    """Every fourth line from a random one."""
    return np.arange(sizes[0]) % 4 == rng.randint(4)


def dots(sizes, acceleration, center_fraction, rng):
    """A coin toss for every sample."""
    return rng.uniform(size=sizes) < 1 / acceleration


@pytest.mark.usefixtures("quick_baselines")
@pytest.mark.parametrize("draw, axes", [(few_lines, ("W",)), (dots, ("H", "W"))])
def test_a_kind_of_ones_own_works_everywhere(draw, axes, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(mri.MASKS, "own", mri.MaskKind(draw, axes=axes))
    assert mri.mask_kinds("H", "W")[-1] == "own" and ("own" in mri.mask_kinds("W")) == (axes == ("W",))
    mask = mri.sampling_mask("own", (3, 40, 48), *mri.matched_sampling("own", 4, 0.1), seed=5)
    assert mask.dtype == torch.bool and mask.shape == (40, 48)[-len(axes) :]
    assert mri.effective_acceleration(mask) == pytest.approx(4, rel=0.1)
    sample = mri.SliceDataset(mri.read_folder(tiny / "val"), "own", 4, 0.1)[0]
    assert not sample.kspace[~sample.mask.expand(sample.kspace.shape)].any()
    assert float(sample.acceleration) == pytest.approx(4, rel=0.1)
    small = {"model": "unet(features=4, levels=2)", "epochs": 1, "loss": "l1", "workers": 0}
    metrics = train.run(data=str(tiny), out=str(tmp_path / "run"), mask="own", **small)
    assert metrics["parameters"]["mask"] == "own" and "unet" in metrics["methods"]


def test_a_kind_whose_acceleration_leaves_out_the_centre_is_matched(monkeypatch):
    def coins(sizes, acceleration, center_fraction, rng):
        return masks._center(sizes, center_fraction) | (rng.uniform(size=sizes) < 1 / acceleration)

    monkeypatch.setitem(mri.MASKS, "own", mri.MaskKind(coins, ("H", "W"), counts_centre=False))
    sampling = mri.matched_sampling("own", 4, 0.08)
    assert sampling == (pytest.approx(0.92 / (1 / 4 - 0.08)), 0.08)
    assert mri.effective_acceleration(mri.sampling_mask("own", (200, 200), *sampling, 1)) == pytest.approx(4, rel=0.03)


# --- effective acceleration and errors ----------------------------------------


def test_effective_acceleration():
    assert mri.effective_acceleration(torch.tensor([True, False, False, False])) == 4.0
    assert mri.effective_acceleration(torch.ones(3, 5)) == 1.0
    line = mri.grappa_mask(368, 0.08, 4)
    assert mri.effective_acceleration(line) == pytest.approx(mri.effective_acceleration(line.expand(640, 368)))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("posson_disc", (64, 64), 4, 0.08), ["'posson_disc'", "did you mean 'poisson_disc'", *ALL_KINDS]),
        (("qqq", (64, 64), 4, 0.08), ["'qqq'", *ALL_KINDS]),
        (("random", (64, 64), 4, 0), ["center_fraction 0 ", "(0, 1]"]),
        (("radial", (64, 64), 4, -0.1), ["center_fraction -0.1", "(0, 1]"]),
        (("random", (64, 64), 4, 8), ["center_fraction 8 ", "(0, 1]", "8 %"]),
        (("random", (64, 64), 4, math.nan), ["center_fraction nan"]),
        (("random", (64, 64), 4, 0.001), ["center_fraction 0.001", "64", "0.016"]),
        (("gaussian_2d", (64, 64), 4, 0.00001), ["center_fraction 1e-05", "64 x 64", "0.001"]),
        (("random", (64, 64), 0.5, 0.08), ["acceleration 0.5", "at least 1"]),
        (("spiral", (64, 64), math.nan, 0.08), ["acceleration nan", "at least 1"]),
        (("random", (64, 64), math.inf, 0.08), ["acceleration inf", "at least 1"]),
        (("random", (640, 368), 20, 0.08), ["acceleration 20", "0.08", "29 of 368", "at most 12.68"]),
        (("equispaced_fraction", (368,), 20, 0.08), ["acceleration 20", "at most 12.68"]),
        (("magic_fraction", (368,), 20, 0.08), ["acceleration 20", "at most 12.68"]),
        (("variable_density", (368,), 20, 0.08), ["acceleration 20", "at most 12.68"]),
        (("gaussian_2d", (100, 100), 30, 0.04), ["acceleration 30", "400 of 10000", "at most 25"]),
        (("poisson_disc", (100, 100), 30, 0.04), ["acceleration 30", "400 of 10000", "at most 25"]),
        (("radial", (64, 64), 900, 0.04), ["acceleration 900", "'radial'", "64 x 64", "nearest"]),
        (("spiral", (64, 64), 900, 0.04), ["acceleration 900", "'spiral'", "64 x 64", "nearest"]),
        (("low_pass", (64, 64), 9000, 0.04), ["acceleration 9000", "'low_pass'", "64 x 64", "4096"]),
        (("equispaced", (64, 64), 4.5, 0.08), ["acceleration 4.5", "use 4 or 5"]),
        (("magic", (64, 64), 4.5, 0.08), ["acceleration 4.5", "use 4 or 5"]),
        (("grappa", (64, 64), 4.5, 0.08), ["acceleration 4.5", "use 4 or 5"]),
        (("poisson_disc", (64,), 4, 0.08), ["shape (64,)", "2-D", "'poisson_disc'", "(..., H, W)"]),
        (("random", (), 4, 0.08), ["shape ()", "1-D", "(..., W)"]),
        (("random", (64, 0), 4, 0.08), ["shape (64, 0)"]),
        (("random", (64,), 4, 0.08, -1), ["seed -1", "2**32 - 1"]),
        (("random", (64,), 4, 0.08, ""), ["seed ''", "file name"]),
        (("random", (64,), 4, 0.08, 1.5), ["seed 1.5", "whole number"]),
    ],
)
def test_messages_name_the_value_and_the_mend(arguments, words):
    with pytest.raises(ValueError) as error:
        mri.sampling_mask(*arguments)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((368, 0, 8), ["center_fraction 0 "]),
        ((368, 1.1, 8), ["center_fraction 1.1"]),
        ((368, 0.05, 0), ["acceleration 0 "]),
        ((368, 0.05, 8.5), ["acceleration 8.5", "use 8 or 9"]),
        ((368, 0.05, 8, 8), ["offset 8", "0..7"]),
        ((368, 0.05, 8, -1), ["offset -1", "0..7"]),
        ((0, 0.05, 8), ["width 0", "at least 1"]),
    ],
)
def test_grappa_messages(arguments, words):
    with pytest.raises(ValueError) as error:
        mri.grappa_mask(*arguments)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value), error.value


def test_the_advice_in_the_messages_works():
    assert mri.sampling_mask("random", (368,), 12.68, 0.08, 0).sum() >= 29
    assert mri.sampling_mask("random", (64,), 4, 0.016, 0)[32]
    assert mri.sampling_mask("gaussian_2d", (64, 64), 4, 0.001, 0)[32, 32]
    assert mri.sampling_mask("low_pass", (64, 64), 4096, 0.001, 0).sum() == 1


def test_empty_mask_has_no_acceleration():
    with pytest.raises(ValueError, match=r"shape \(3, 4\) keeps 0 samples") as error:
        mri.effective_acceleration(torch.zeros(3, 4, dtype=torch.bool))
    assert "\n" not in str(error.value)
