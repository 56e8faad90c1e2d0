"""Dynamic cine: ky-t masks, the simulated heart, cine.npz, temporal methods, networks for sequences, the task."""

import io
import json
import math
import warnings
import zipfile

import h5py
import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

import mri_utils as mri
import train
from mri_parts import cine, classical

KINDS = ("kt", "kt_gaussian")


@pytest.fixture(scope="module")
def hearts(tmp_path_factory):
    """A demo data set of 4 and 2 hearts of 6 frames."""
    return mri.demo_cine(tmp_path_factory.mktemp("hearts") / "demo", train=4, val=2, frames=6, matrix=32)


def save(folder, data, compressed=False, key="dataset"):
    (np.savez_compressed if compressed else np.savez)(folder / "cine.npz", **{key: data})
    return folder


# --- masks -------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n, factor, low", [(192, 5, 11), (101, 4, 8), (64, 8, 3)])
def test_lines_of_a_frame(kind, n, factor, low):
    mask = mri.sampling_mask(kind, (3, 20, 50, n), factor, low / n, "heart")
    assert mask.shape == (20, 1, n) and mask.dtype == torch.bool
    assert set(mask.sum(-1).flatten().tolist()) == {int(n / factor)}
    first = (n - low + 1) // 2
    assert mask[..., first : first + low].all() and first <= n // 2 < first + low
    assert len({frame.numpy().tobytes() for frame in mask}) == 20
    again, other = (mri.sampling_mask(kind, (20, 50, n), factor, low / n, seed) for seed in ("heart", "another"))
    assert torch.equal(mask, again) and not torch.equal(mask, other)


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_lines(kind):
    """Also where n / (n / lines) comes out just below `lines`, and where nothing is left out."""
    for n in (18, 25, 40):
        for lines in range(1, n + 1):
            assert mri.sampling_mask(kind, (1, 9, n), n / lines, 1 / n, 0).sum() == lines
    assert mri.sampling_mask(kind, (6, 9, 40), 1, 0.1, 0).expand(6, 1, 40).all()


@pytest.mark.parametrize("kind", KINDS)
def test_density(kind):
    """One line outside the centre of five: it falls where the density says."""
    n, factor, draws = 40, 40 / 6, 3000
    x = np.arange(n)
    if kind == "kt":
        density = (1 - np.abs((x - 20) / 21)) ** 2
    else:
        density = np.exp(-0.5 * ((x - 20) / 4) ** 2) + 1 / (2 * factor)
    density[18:23] = 0
    expected = draws * density / density.sum()
    found = sum(mri.sampling_mask(kind, (1, 9, n), factor, 5 / n, seed)[0, 0].numpy() for seed in range(draws))
    free = density > 0
    chi_square = ((found - expected)[free] ** 2 / expected[free]).sum()
    assert found[18:23].tolist() == [draws] * 5 and chi_square < 34 + 5 * math.sqrt(2 * 34)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape, factor, share, words",
    [
        ((20, 192, 192), 5, 0.25, ["acceleration 5", "48 of 192", "at most 4"]),
        ((20, 192, 192), 5, 38 / 192, ["38 of 192 lines", "38 are the centre", "20 different"]),
        ((30, 16, 16), 3, 4 / 16, ["5 of 16 lines", "30 different"]),
        ((16, 16), 3, 0.2, ["shape (16, 16)", "frames, H, W"]),
    ],
)
def test_impossible_masks(kind, shape, factor, share, words):
    with pytest.raises(mri.BadInput) as error:
        mri.sampling_mask(kind, shape, factor, share, 0)
    assert all(word in str(error.value) for word in words), error.value


# --- the simulated heart -----------------------------------------------------


def test_heart_beats_and_the_chest_rests():
    image, info = mri.simulate_cine(3, frames=10, matrix=64, noise=0.01)
    assert image.shape == (10, 64, 64) and image.dtype == torch.complex64
    assert float(image.abs().max()) == pytest.approx(1)
    s = np.array(info["contraction"])
    assert s.min() < 0.1 and s.max() > 0.8
    change = (image[int(s.argmax())] - image[int(s.argmin())]).abs()
    rest = torch.cat([change[:, :8].flatten(), change[:, -8:].flatten(), change[-12:].flatten()])
    # the difference of two noises: Rayleigh, root mean square 2 sigma
    assert float(rest.square().mean().sqrt()) == pytest.approx(2 * info["noise_std"], rel=0.1)
    assert float(change.max()) > 20 * info["noise_std"]
    assert torch.equal(image, mri.simulate_cine(3, frames=10, matrix=64, noise=0.01)[0])
    assert not torch.allclose(image, mri.simulate_cine(4, frames=10, matrix=64, noise=0.01)[0], atol=0.1)


def test_ejection_fraction_is_that_of_the_picture():
    """The left ventricle, as a reader would measure it: bright pixels connected to its middle."""
    from scipy import ndimage

    for wanted in (0.3, 0.7):
        image, info = mri.simulate_cine(1, frames=12, matrix=128, noise=0, ejection_fraction=wanted)
        image, s = image.abs().numpy(), np.array(info["contraction"])
        areas = {}
        for name, frame in (("full", int(s.argmin())), ("empty", int(s.argmax()))):
            row, column = info["heart"]
            labels, _ = ndimage.label(image[frame] > 0.6 * image[frame, row, column])
            areas[name] = (labels == labels[row, column]).sum()
        # some area is lost to the papillary muscles; a tenth of the ejection is the shortening of the long axis
        assert areas["empty"] / areas["full"] == pytest.approx((1 - wanted) / 0.9, abs=0.17)


def test_matrix_changes_the_resolution_only():
    small, large = (mri.simulate_cine(5, frames=2, matrix=m, noise=0)[0] for m in (48, 96))
    same = mri.ifft2c(mri.center_crop(mri.fft2c(large), (48, 48)))
    ratio = (small.conj() * same).sum() / (small.norm() * same.norm())
    assert float(ratio.abs()) > 0.999


BAD = [
    (dict(matrix=33), "matrix"),
    (dict(matrix=0), "matrix"),
    (dict(frames=0), "frames"),
    (dict(breathing=-1), "breathing must be 0 to 12, got -1"),
    (dict(breathing=13), "breathing must be 0 to 12, got 13"),
    (dict(irregular=math.nan), "irregular must be 0 to 0.25, got nan"),
    (dict(irregular=0.3), "irregular must be 0 to 0.25, got 0.3"),
    (dict(beats=0), "beats must be 0.1 to 1000, got 0"),
]


@pytest.mark.parametrize("arguments, words", BAD)
def test_hearts_that_cannot_be_scanned(arguments, words):
    with pytest.raises(mri.BadInput) as error:
        mri.simulate_cine(0, **dict(frames=1, matrix=16) | arguments)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_quiet_hearts_are_those_of_old():
    """What was simulated before hearts could breathe; and what the breath draws moves nothing else."""
    film, info = mri.simulate_cine(3, frames=4, matrix=32)
    old = [0.6088 - 0.0850j, 0.4310 - 0.0637j, 0.3870 - 0.0530j, 0.3784 - 0.0768j]
    assert film[:, 12, 16].numpy() == pytest.approx(np.array(old), abs=1e-4)
    nearly, more = mri.simulate_cine(3, frames=4, matrix=32, breathing=1e-9, irregular=1e-9)
    assert torch.allclose(film, nearly, atol=1e-5)  # the same anatomy and noise
    assert info["contraction"] == pytest.approx(more["contraction"]) and info["breath"] == [0] * 4


def edge(film, rows, columns):
    """Where the brightness of a stack of columns crosses half of its way, as rows with fractions; one per frame."""
    line = film[:, rows, columns].mean(-1)
    half = (line[:, :1] + line[:, -1:]) / 2
    above = (line - half) * (line[:, -1:] - line[:, :1]) > 0
    after = np.argmax(above, 1)
    low, high = (np.take_along_axis(line - half, k[:, None], 1)[:, 0] for k in (after - 1, after))
    return rows.start + after - 1 + low / (low - high)


def test_breath_moves_the_liver_and_not_the_spine():
    film, info = mri.simulate_cine(10_000, frames=15, matrix=128, noise=0, breathing=8, beats=5)
    film, breath = film.abs().numpy(), np.array(info["breath"])
    assert breath.min() < 0.02 and breath.max() > 0.9  # the film holds a whole breath
    dome = edge(film, slice(52, 78), slice(38, 42)) * info["voxel_mm"]
    shift = dome - dome[breath.argmin()]
    assert shift == pytest.approx(8 * breath, abs=0.8)
    chest = edge(film, slice(10, 26), slice(62, 66)) * info["voxel_mm"]
    assert chest - chest[breath.argmin()] == pytest.approx(-0.3 * 8 * breath, abs=0.8)
    resting = np.ptp(film[:, 84:125, 56:76], 0)  # canal of the spine and what is behind it
    assert resting.max() < 0.1 * np.ptp(film, 0).max() and np.ptp(film[:, 50:80], 0).max() > 0.5
    still, _ = mri.simulate_cine(10_000, frames=15, matrix=128, noise=0, beats=5)
    assert np.ptp(edge(still.abs().numpy(), slice(52, 78), slice(38, 42))) < 0.05


def test_irregular_beats():
    """Their lengths spread as asked, about one; systole lasts as long as ever; a film of one beat differs."""
    given = dict(frames=4000, matrix=2, beats=50, noise=0)
    (_, same), (_, other) = (mri.simulate_cine(7, irregular=x, **given) for x in (0, 0.1))
    lengths, systoles = {}, {}
    for name, info in (("same", same), ("other", other)):
        s = np.array(info["contraction"])
        begins = np.flatnonzero((s[1:] >= 0.1) & (s[:-1] < 0.1)) / 80
        ends = np.flatnonzero((s[1:] <= 0.95) & (s[:-1] > 0.95)) / 80
        lengths[name] = np.diff(begins)
        systoles[name] = [ends[ends > b][0] - b for b in begins[:-1]]
    assert lengths["same"] == pytest.approx(np.ones(len(lengths["same"])), abs=0.013)
    assert lengths["other"].std() == pytest.approx(0.1, abs=0.02)
    assert lengths["other"].mean() == pytest.approx(1, abs=0.03)
    assert np.std(systoles["other"]) < 0.015
    (_, quiet), (_, uneven) = (mri.simulate_cine(7, frames=12, matrix=2, irregular=x) for x in (0, 0.1))
    assert quiet["contraction"][0] == pytest.approx(uneven["contraction"][0])
    assert np.abs(np.subtract(quiet["contraction"], uneven["contraction"])).max() > 0.05


def test_demo_data_are_made_once(hearts, capsys):
    before = (hearts / "val" / "cine.npz").stat().st_mtime_ns
    mri.demo_cine(hearts, train=1, val=1, frames=3, matrix=16)
    assert (hearts / "val" / "cine.npz").stat().st_mtime_ns == before and capsys.readouterr().out == ""
    mri.check_split(mri.read_cine(hearts / "train"), mri.read_cine(hearts / "val"))


def test_demo_data_that_breathe(hearts, tmp_path):
    moving = mri.demo_cine(tmp_path / "breathing", train=0, val=2, frames=6, matrix=32, breathing=8, irregular=0.1)
    given = dict(frames=6, matrix=32, breathing=8, irregular=0.1)
    expected = mri.simulate_cine(10_001, **given)[0].abs()
    assert torch.allclose(mri.read_cine(moving / "val")[1].target(0), expected, atol=1e-5)
    assert not torch.allclose(mri.read_cine(hearts / "val")[1].target(0), expected, atol=0.1)
    with pytest.raises(mri.BadInput, match="holds quiet hearts"):
        mri.demo_cine(breathing=8)
    with pytest.raises(mri.BadInput, match="holds quiet hearts"):
        mri.demo_cine(mri.ROOT / "data" / ".." / "data" / "demo_cine", irregular=0.1)


# --- cine.npz ----------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["complex64", "float32", "float64", "uint8"])
def test_reads_what_numpy_wrote(tmp_path, compressed, dtype):
    rng = np.random.default_rng(0)
    data = (rng.uniform(1, 200, (3, 4, 6, 8)) * (1 + 1j if dtype == "complex64" else 1)).astype(dtype)
    volumes = mri.read_cine(save(tmp_path, np.asfortranarray(data) if dtype == "float64" else data, compressed))
    assert [v.shape for v in volumes] == [(1, 4, 6, 8)] * 3 and len({v.patient_id for v in volumes}) == 3
    for volume, expected in zip(volumes, data):
        np.testing.assert_allclose(volume.target(0).numpy(), np.abs(expected), rtol=1e-6)
        kspace, acquired = volume.cropped(0)
        np.testing.assert_allclose(mri.ifft2c(kspace).numpy(), expected, atol=1e-4)
        assert acquired.all() and kspace.shape == (4, 6, 8)
        assert volume.maximum == pytest.approx(np.abs(expected).max())
    assert ("simulated from magnitudes" in volumes[0].acquisition) == (dtype != "complex64")
    assert len({volume.fingerprints()[0] for volume in volumes}) == 3


def bad_header(shape, dtype="<f4"):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    return header.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "content, words",
    [
        (np.zeros((3, 4, 5), "f4"), ["shape (3, 4, 5)", "samples, frames, rows, columns"]),
        (np.zeros((2, 0, 5, 6), "f4"), ["shape (2, 0, 5, 6)"]),
        (np.full((1, 1, 1, 1), None, object), ["object", "never unpickled"]),
        (np.full((1, 1, 1, 1), "text"), ["U4", "not numbers"]),
        (bad_header((10**4, 100, 500, 500)), ["declares", "not what follows"]),
        (bad_header((10**6, 100, 500, 500)), ["more than 10000 samples"]),
        (bad_header((1, 2**20, 2**10, 2**10)), ["declares"]),
        (b"\x93NUMPY nonsense", ["cannot read"]),
        (b"", ["cannot read"]),
    ],
)
def test_bad_files(tmp_path, compressed, content, words):
    path = tmp_path / "cine.npz"
    if isinstance(content, bytes):
        method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", method) as file:
            file.writestr("dataset.npy", content)
    else:
        save(tmp_path, content, compressed)
    with pytest.raises(mri.BadInput) as error:
        mri.read_cine(path)
    assert str(path) in str(error.value) and all(word in str(error.value) for word in words), error.value


def test_more_bad_files(tmp_path):
    with pytest.raises(mri.BadInput, match=r"no such file.*data/README"):
        mri.read_cine(tmp_path)
    with pytest.raises(mri.BadInput, match=r"no key 'dataset' .found: images"):
        mri.read_cine(save(tmp_path, np.ones((1, 2, 3, 4)), key="images"))
    (tmp_path / "cine.npz").write_bytes(b"no archive")
    with pytest.raises(mri.BadInput, match=r"not an \.npz file"):
        mri.read_cine(tmp_path)
    whole = (save(tmp_path, np.ones((2, 3, 8, 8)), True) / "cine.npz").read_bytes()
    (tmp_path / "cine.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(mri.BadInput, match="truncated"):
        mri.read_cine(tmp_path)
    data = np.ones((3, 2, 8, 8), "c8")
    data[0, 1, 2, 3], data[1] = np.nan, 0
    volumes = mri.read_cine(save(tmp_path, data))
    for volume, words in zip(volumes, ("sequence 0 holds NaN", "sequence 1 is all zero")):
        with pytest.raises(mri.BadInput, match=words):
            volume.kspace(0)
    with pytest.raises(mri.BadInput, match="no slice 1"):
        volumes[2].kspace(1)


def test_large_files(tmp_path, monkeypatch):
    monkeypatch.setattr(cine, "LARGEST_UNPACKED", 1000)
    with pytest.raises(mri.BadInput, match=r"numpy\.savez, uncompressed"):
        mri.read_cine(save(tmp_path, np.ones((2, 3, 8, 8)), True))
    assert len(mri.read_cine(save(tmp_path, np.ones((2, 3, 8, 8))))) == 2  # mapped, not loaded
    monkeypatch.setattr(cine, "LARGEST_SLICE", 100)
    with pytest.raises(mri.BadInput, match="more than 100 samples"):
        mri.read_cine(tmp_path)


def test_real_heart(real):
    (volume,) = mri.read_cine(real / "heart_cine")
    assert volume.shape == (1, 8, 192, 192) and "magnitudes" in volume.acquisition
    assert any("Hermitian" in line for line in mri.volume_warnings(volume))


# --- temporal methods --------------------------------------------------------


def test_view_sharing_takes_the_nearest_frames(random):
    kspace = random(7, 5, 24)
    mask = mri.sampling_mask("kt", kspace.shape, 4, 2 / 24, 1)
    shared = mri.fft2c(mri.view_sharing(kspace * mask, mask))
    for t in range(7):
        for line in range(24):
            distance = [min((t - u) % 7, (u - t) % 7) if mask[u, 0, line] else 99 for u in range(7)]
            near = [kspace[u, :, line] for u in range(7) if distance[u] == min(distance) < 99]
            expected = torch.stack(near).mean(0) if near else torch.zeros(5)
            torch.testing.assert_close(shared[t, :, line], expected + 0j, atol=1e-5, rtol=0)


def test_what_rests_comes_back(random):
    mask = mri.sampling_mask("kt_gaussian", (8, 8, 32), 4, 0.1, 2)
    still = (random(1, 8, 32) * mask.any(0)).expand(8, 8, 32)
    for images in (mri.view_sharing(still * mask, mask), mri.temporal_tv(still * mask, mask, 0.001, 1500)):
        assert mri.nmse(mri.ifft2c(still).abs(), images.abs()) < 1e-3


@pytest.mark.parametrize("periodic", [False, True])
def test_gradient_along_time_has_its_adjoint(random, periodic):
    x, p = random(4, 5, 6), random(2, 4, 5, 6)
    for axes in ((-3, -1), (-2, -1)):
        left = (classical._gradient(x, axes, periodic) * p.conj()).sum()
        right = (x * classical._gradient_adjoint(p, axes, periodic).conj()).sum()
        torch.testing.assert_close(left, right)
    gradient = classical._gradient(x, (-3,), periodic)[0]
    assert torch.equal(gradient[:3], x[1:] - x[:-1])
    assert torch.equal(gradient[3], x[0] - x[3] if periodic else torch.zeros_like(x[0]))


@pytest.mark.parametrize("periodic", [False, True])
def test_variation_along_time_against_least_squares_with_bounds(random, periodic):
    """Fully sampled, every pixel is a problem of its own: with differences D, the image is y - D^T p, where p is the
    least-squares solution of D^T p = y with |p| <= weight * s (the dual problem), which scipy solves exactly."""
    picture = random(6, 4, 5, dtype=torch.float32).abs() + 1
    kspace, mask = mri.fft2c(picture + 0j), torch.ones(6, 1, 5, dtype=torch.bool)
    image = mri.total_variation(kspace, mask, 0.1, 3000, axes=(-3,), periodic=periodic)
    differences = np.roll(np.eye(6), -1, 0) - np.eye(6)
    differences[-1] *= periodic
    bound, series = 0.1 * float(picture.max()), picture.double().flatten(1).numpy()
    duals = [lsq_linear(differences.T, y, (-bound, bound), method="bvls", tol=1e-12).x for y in series.T]
    expected = series - differences.T @ np.stack(duals, 1)
    assert np.abs(expected - series).max() > bound  # it does something
    np.testing.assert_allclose(image.real.flatten(1), expected, atol=2e-3)
    assert float(image.imag.abs().max()) < 1e-3


def test_temporal_variation_goes_round_with_the_heart(random):
    """Where in the beat the film begins makes no difference."""
    mask = mri.sampling_mask("kt", (7, 6, 24), 4, 2 / 24, 1)
    kspace = random(7, 6, 24) * mask
    image = mri.temporal_tv(kspace, mask, 0.05, 100)
    turned = mri.temporal_tv(kspace.roll(3, 0), mask.roll(3, 0), 0.05, 100)
    torch.testing.assert_close(turned, image.roll(3, 0), atol=1e-5, rtol=1e-4)
    cut = mri.total_variation(kspace, mask, 0.05, 100, axes=(-3,))
    assert float((cut - image).abs().max()) > 0.05 * float(image.abs().max())


def test_temporal_variation_minimises_what_it_says(hearts, random):
    """In numpy, with the frame after the last the first: 200 steps come close, and no change lowers the value."""
    kspace = mri.read_cine(hearts / "val")[0].kspace(0)
    mask = mri.sampling_mask("kt", kspace.shape, 4, 0.1, 1)
    y, measured = (kspace * mask).to(torch.complex128).numpy(), mask.numpy()

    def value(image):
        x = np.asarray(image.to(torch.complex128))
        misfit = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x, (1, 2)), norm="ortho"), (1, 2)) * measured - y
        scale = np.abs(np.fft.ifft2(np.fft.ifftshift(y, (1, 2)), norm="ortho")).max()
        return (np.abs(misfit) ** 2).sum() / 2 + 0.003 * scale * np.abs(np.roll(x, -1, 0) - x).sum()

    usual, best = (mri.temporal_tv(kspace * mask, mask, 0.003, n) for n in (200, 1500))
    assert value(best) <= value(usual) < 1.01 * value(best)
    cut = mri.total_variation(kspace * mask, mask, 0.003, 1500, axes=(-3,))
    for other in (cut, best * 0.99, best * 1.01, best.roll(1, 0), mri.ifft2c(kspace * mask)):
        assert value(other) > value(best)
    for size in (1e-3, 1e-2):
        assert value(best + size * best.abs().max() * random(*best.shape)) > value(best)


def test_total_variation_along_space_and_time_converges(random):
    axes, mask = (-3, -2, -1), torch.arange(16) % 3 == 0
    kspace = random(6, 16, 16) * mask
    scale = mri.ifft2c(kspace).abs().max()

    def objective(image):
        misfit, gradient = mri.fft2c(image) * mask - kspace, classical._gradient(image, axes)
        variation = gradient.abs().square().sum(0).sqrt().sum()
        return float(misfit.abs().square().sum() / 2 + 0.3 * scale * variation)

    values = [objective(mri.total_variation(kspace, mask, 0.3, n, axes)) for n in (0, 10, 100, 300)]
    assert values == sorted(values, reverse=True) and values[-1] < 0.5 * values[0]


# --- networks ----------------------------------------------------------------


def test_space_time_convolution_stays_in_bfloat16(random):
    layer, x = mri.SpaceTimeConv(3, 4, 3, padding=1), random(1, 5, 3, 8, 9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_space_time_convolution_is_a_3d_convolution(random):
    layer, x = mri.SpaceTimeConv(3, 4, 3, padding=1), random(2, 5, 3, 8, 9, dtype=torch.float32)
    assert torch.allclose(layer(x)[1, 2], torch.nn.Conv2d.forward(layer, x[1])[2], atol=1e-6)  # no mixing at first
    with torch.no_grad():
        layer.time.copy_(random(4, 3, dtype=torch.float32))
        weight = layer.weight[:, :, None] * layer.time[:, None, :, None, None]
        around = torch.cat([x[:, -1:], x, x[:, :1]], 1).transpose(1, 2)
        bias = layer.bias * layer.time.sum(1)
        expected = torch.nn.functional.conv3d(around, weight, bias, padding=(0, 1, 1)).transpose(1, 2)
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def fresh(model, **settings):
    """A network whose weights are all random: a fresh one changes nothing."""
    torch.manual_seed(0)
    network = mri.build_model(mri.write_call(model, {"features": 4, **settings})).eval()
    with torch.no_grad():
        for weights in network.parameters():
            weights += 0.05 * torch.randn_like(weights)
    return network


SMALL = {"cine_unet": {"levels": 2, "frames": 6}, "cine_dual_unet": {"levels": 2, "frames": 6}, "cine_unrolled": {}}


@pytest.mark.parametrize("model", SMALL)
def test_networks_for_sequences(model, random):
    network, kspace = fresh(model, **SMALL[model]), random(2, 6, 16, 24)
    mask = torch.stack([mri.sampling_mask("kt", kspace.shape, 4, 0.1, seed) for seed in range(2)])
    assert [name for name in mri.MODELS if mri.model_axes(name) == ("frames", "H", "W")] == list(SMALL)
    with torch.inference_mode():
        image = network(kspace * mask, mask, (16, 24))
        assert image.shape == (2, 6, 16, 24) and image.dtype == torch.complex64
        assert not torch.allclose(image, mri.ifft2c(kspace * mask), atol=1e-3)
        torch.testing.assert_close(network(3 * kspace * mask, mask, (16, 24)), 3 * image, atol=1e-4, rtol=1e-4)
        one = network((kspace * mask)[1:], mask[1:], (16, 24))  # whatever else is in the batch
        torch.testing.assert_close(one, image[1:], atol=1e-5, rtol=1e-4)
        measured = (mri.fft2c(image) - kspace) * mask
        assert (float(measured.abs().max()) < 1e-4) == (model == "cine_unrolled")
        for frames in (4, 11):
            longer = random(1, frames, 16, 24)
            assert network(longer, mask[:1, :1].expand(1, frames, 1, 24), (16, 24)).shape == longer.shape
    if model != "cine_unet":
        with pytest.raises(mri.BadInput, match="2 frames, but the network looks at 3"):
            network(kspace[:, :2], mask[:, :2], (16, 24))


@pytest.mark.parametrize("start", cine.STARTS)
def test_beginning_at_another_phase_of_the_beat_changes_nothing(start, random):
    """The heartbeat is periodic, and so is the unrolled network."""
    network, kspace = fresh("cine_unrolled", start=start), random(1, 7, 16, 16)
    mask = mri.sampling_mask("kt", kspace.shape, 4, 0.1, 0)[None]
    with torch.inference_mode():
        first = network(kspace * mask, mask, (16, 16)).roll(3, 1)
        later = network((kspace * mask).roll(3, 1), mask.roll(3, 1), (16, 16))
    torch.testing.assert_close(later, first, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "start, first",
    [
        ("zero_filled", lambda kspace, mask: mri.ifft2c(kspace)),
        ("view_sharing", mri.view_sharing),
        ("temporal_tv", lambda kspace, mask: mri.temporal_tv(kspace, mask, 0.001, 60)),
        ("temporal_tv(weight=0.01, iterations=5)", lambda kspace, mask: mri.temporal_tv(kspace, mask, 0.01, 5)),
    ],
)
def test_a_network_that_changes_nothing_returns_its_start(start, first, random):
    network, kspace = mri.build_model(f'cine_unrolled(start="{start}")').eval(), random(1, 4, 16, 16)
    for weights in network.parameters():
        torch.nn.init.zeros_(weights)
    mask = mri.sampling_mask("kt", kspace.shape, 4, 0.1, 0)[None]
    with torch.inference_mode():
        film = network(kspace * mask, mask, (16, 16))
    expected = mri.keep_measured(first(kspace * mask, mask), kspace * mask, mask)
    torch.testing.assert_close(film, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "start, words",
    [
        ("temporaltv", "did you mean 'temporal_tv'"),
        ("temporal_tv(wieght=1)", "unknown argument of start temporal_tv 'wieght', did you mean 'weight'"),
    ],
)
def test_starts_that_there_are_not(start, words):
    with pytest.raises(mri.BadInput, match=words):
        mri.build_model(f"cine_unrolled(start='{start}')")


def test_the_loss_of_motion_compares_steps(random):
    target, flicker = random(2, 5, 16, 16).abs(), 0.1 * random(2, 5, 16, 16).real
    steps = np.stack([np.roll(film.numpy(), -1, 1) - film.numpy() for film in (target + flicker, target)])
    expected = float(mri.LOSSES["l1_ssim"](target + flicker, target)) + 3 * np.abs(steps[0] - steps[1]).mean()
    assert float(mri.LOSSES["l1_ssim_motion"](target + flicker, target, 3)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(mri.BadInput, match="compares neighbouring frames, and there are none"):
        mri.LOSSES["l1_ssim_motion"](target[0], target[0])


def test_parts_of_the_dual_network(random):
    x = random(1, 2, 6, 16, 16, dtype=torch.float32)
    count = {}
    for name, without in {"all": {}, "no attention": {"attention": False}, "no 3-D": {"light": False}}.items():
        inner = fresh("cine_dual_unet", **without, levels=2, frames=6).networks[0]
        with torch.inference_mode():
            change = (inner(x + torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1, 1)) - inner(x)).abs().amax((0, 2, 3, 4))
        assert change[0] > 1e-4 and (change[1] > 1e-4) == (name != "no 3-D")  # only the 3-D part sees both
        count[name] = mri.count_parameters(inner)
        slopes = {m.negative_slope for m in inner.modules() if isinstance(m, torch.nn.LeakyReLU)}
        dropped = {m.p for m in inner.modules() if isinstance(m, torch.nn.Dropout2d)}
        assert slopes == {0.1} and dropped == {0.3}
    assert count["no attention"] < count["all"] > count["no 3-D"]
    attention = mri.Attention(8)
    features = random(2, 8, 5, 5, dtype=torch.float32)
    weight = attention(features) / features
    assert ((weight > 0) & (weight < 1)).all()
    channels, places = weight[:, :, :1, :1], weight[:, :1] / weight[:, :1, :1, :1]  # one factor each
    torch.testing.assert_close(weight, channels * places)
    assert min(float(factor.detach().std()) for factor in (channels, places)) > 1e-3


# --- sequences longer than memory --------------------------------------------


@pytest.mark.parametrize("total", [3, 8, 12, 13, 40])
def test_windows_put_a_sequence_together(total, random):
    sequence, lengths = random(2, total, 3, 4), []

    def method(window):
        lengths.append(window.shape[1])
        return 2 * window

    torch.testing.assert_close(mri.in_windows(method, 8, sequence), 2 * sequence)
    assert set(lengths) == {8}  # never more in memory


def test_no_seam_where_windows_join():
    """In windows of 12 frames the network sees less than in one piece, but from frame to frame nothing jumps."""
    beat = mri.fft2c(mri.simulate_cine(2, frames=36, matrix=32, noise=0)[0])
    mask = mri.sampling_mask("kt", beat.shape, 4, 0.1, 0)
    whole, pieces = fresh("cine_unrolled"), fresh("cine_unrolled", frames=12)
    with torch.inference_mode():
        one, other = (network((beat * mask)[None], mask[None], (32, 32))[0] for network in (whole, pieces))
    assert mri.nmse(one.abs(), other.abs()) < 0.03
    jump = (other - other.roll(1, 0) - one + one.roll(1, 0)).abs().square().mean((1, 2)).sqrt()
    joins = torch.arange(36) % 6 == 0  # where a window begins
    assert float(jump[joins].mean()) < 1.5 * float(jump[~joins].mean())


# --- the task ----------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(hearts, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "cine"
    own = {"center_fraction": 0.1, "model": "cine_unrolled(features=4)", "epochs": 2, "device": "cpu"}
    return out, train.run(task="cine", data=str(hearts), out=str(out), **own)


def test_run_folder(trained, hearts):
    out, metrics = trained
    own = metrics["parameters"]
    assert own["model"] == "cine_unrolled(features=4)"
    assert (own["mask"], own["acceleration"], own["batch_size"]) == ("kt", 5, 1)
    assert list(metrics["methods"]) == ["zero_filled", "sliding_window", "temporal_tv", "cine_unrolled"]
    weight = metrics["temporal_tv_weight"]  # of the list, or beyond its ends by further steps of 2
    assert math.log2(weight / 0.00025) == pytest.approx(round(math.log2(weight / 0.00025)))
    assert metrics["data"]["effective_acceleration"] == pytest.approx(32 / 6)
    lines = (out / "results.txt").read_text().splitlines()
    network = mri.load_model(out / "checkpoint.pt")
    for line, volume in zip(lines, mri.read_cine(hearts / "val"), strict=True):
        mask = mri.sampling_mask("kt", (6, 32, 32), 5, 0.1, volume.path.name)
        kspace = (volume.kspace(0) * mask)[None]
        with h5py.File(out / "reconstructions" / volume.path.name) as file:
            np.testing.assert_allclose(file["undersampled"], mri.ifft2c(kspace), atol=1e-6)
            np.testing.assert_allclose(file["full"][0], mri.ifft2c(volume.kspace(0)), atol=1e-6)
            with torch.inference_mode():
                image = network(kspace, mask[None], (32, 32))
            np.testing.assert_allclose(file["reconstructed"], image, atol=1e-5)
            np.testing.assert_allclose(file["reconstruction"][()], np.abs(file["reconstructed"][0]), atol=1e-6)
        scores = metrics["per_volume"][volume.path.name]
        for name in ("zero_filled", "cine_unrolled"):
            assert f"PSNR {scores[name]['psnr']:.2f} dB SSIM {scores[name]['ssim']:.4f}" in line
        best = mri.psnr(volume.target(0), mri.temporal_tv(kspace, mask[None], weight)[0].abs())
        assert scores["temporal_tv"]["psnr"] == pytest.approx(best, abs=0.01)
        assert line.startswith(volume.path.stem)


def test_masks_differ_between_samples_and_epochs(hearts):
    volumes = mri.read_cine(hearts / "train")
    dataset = mri.SliceDataset(volumes, "kt", 5, 0.1, seed=0)
    masks = [dataset[i].mask for i in range(4)]
    dataset.epoch = 1
    masks += [dataset[i].mask for i in range(4)]
    assert {tuple(m.shape) for m in masks} == {(6, 1, 32)} and len({m.numpy().tobytes() for m in masks}) == 8


def test_evaluates_a_folder_with_one_file(trained, tmp_path):
    data = np.abs(mri.simulate_cine(9, frames=9, matrix=32)[0].numpy())[None]
    metrics = train.run(evaluate=str(trained[0] / "checkpoint.pt"), data=str(save(tmp_path, data)), out=f"{tmp_path}/x")
    assert metrics["parameters"]["task"] == "cine" and not metrics["data"]["simulated"]
    assert any("Hermitian" in line for line in metrics["warnings"])
    assert json.loads((tmp_path / "x" / "metrics.json").read_text())["methods"].keys() == {
        "zero_filled",
        "cine_unrolled",
    }


def test_splits_one_file_by_subject(tmp_path, random):
    folder = save(tmp_path, random(10, 4, 8, 8).numpy())
    train_part, val_part = mri.read_train_and_val(folder, ("slices", "frames", "H", "W"))
    mri.check_split(train_part, val_part)
    assert (len(train_part), len(val_part)) == (8, 2)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"center_fraction": 0.3}, "acceleration 5.0 is impossible"),
        ({"augment": True}, "augment is not for task 'cine'"),
        ({"vary_phase": True}, "vary_phase is not for task 'cine'"),
        ({"cache": "x"}, "cache is not for task 'cine'"),
        ({"model": "unet"}, "use cine_unet, cine_dual_unet, cine_unrolled"),
        ({"model": "cine_unet(stages='2x2')"}, "unknown argument of model cine_unet 'stages'"),
        ({"model": "cine_unrolled(dropout=0.2)"}, "unknown argument of model cine_unrolled 'dropout'"),
        ({"data": "one"}, "one subject with 1 slices cannot be split"),
        ({"data": "short"}, "2 frames, but the network looks at 3"),
    ],
)
def test_faults_of_a_run_in_one_line(hearts, tmp_path, random, changes, words):
    for name, shape in (("one", (1, 4, 8, 8)), ("short", (5, 2, 16, 40))):
        (tmp_path / name).mkdir()
        save(tmp_path / name, random(*shape).numpy())
    changes = {"data": str(hearts)} | changes
    if changes["data"] in ("one", "short"):
        changes["data"] = str(tmp_path / changes["data"])
    with pytest.raises(mri.BadInput, match=words) as error, warnings.catch_warnings():
        train.run(task="cine", out=str(tmp_path / "run"), epochs=1, **({"center_fraction": 0.1} | changes))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
