"""Motion, off-resonance and decay, each held against another way to compute it, and against nothing at all."""

import math

import numpy as np
import pytest
import torch

import mri_utils as mri

SIZES = [(16, 16), (15, 17), (12, 18)]


def positions(n):
    return np.arange(n) - n // 2


def steady(width, shots=1):
    """Every line in its shot, shots one after the other."""
    return torch.arange(width) * shots // width


# --- orders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", mri.ORDERS)
@pytest.mark.parametrize("shots", [1, 3, 8, 13])
def test_every_measured_line_is_taken_once(order, shots):
    mask = mri.sampling_mask("random", (64,), 3, 0.1, seed=1)
    shot, echo = mri.order_lines(mask, order, shots)
    assert torch.equal(shot >= 0, mask) and torch.equal(echo >= 0, mask)
    pairs = [*zip(shot[mask].tolist(), echo[mask].tolist())]
    assert len(set(pairs)) == int(mask.sum())
    counts = torch.bincount(shot[mask], minlength=shots)
    assert len(counts) == shots and counts.max() - counts.min() <= 1
    for number in range(shots):  # its echoes follow one another from 0
        assert sorted(echo[shot == number].tolist()) == [*range(int(counts[number]))]


def test_orders_are_what_they_are_called():
    mask = torch.ones(16, dtype=torch.bool)
    shot, echo = mri.order_lines(mask, "sequential", 4)
    assert shot.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 and echo.tolist() == [0, 1, 2, 3] * 4
    shot, echo = mri.order_lines(mask, "interleaved", 4)
    assert shot.tolist() == [0, 1, 2, 3] * 4 and echo.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    shot, echo = mri.order_lines(mask, "centre_out", 4)
    assert echo[8] == 0 and shot[8] == 0 and all(echo[8 - d] <= echo[8 - d - 1] for d in range(8))
    assert sorted(shot[6:10].tolist()) == [0, 1, 2, 3]  # the innermost lines are the shots' first


def test_impossible_orders_are_refused():
    mask = torch.ones(16, dtype=torch.bool)
    with pytest.raises(mri.BadInput, match="sequential"):
        mri.order_lines(mask, "sequentiel", 2)
    for shots in (0, 17):
        with pytest.raises(mri.BadInput, match="use 1 to 16"):
            mri.order_lines(mask, "sequential", shots)
    with pytest.raises(mri.BadInput, match="give a mask"):
        mri.order_lines(mask[None], "sequential", 2)


# --- motion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_shift_of_the_whole_scan_is_a_pure_phase(size, random):
    kspace = random(2, *size)
    found = mri.move_shots(kspace, steady(size[1]), torch.tensor([[0.7, -1.3]]))
    assert torch.allclose(found.abs(), kspace.abs(), atol=1e-5)
    phase = np.exp(-2j * np.pi * (positions(size[0])[:, None] * 0.7 / size[0] - positions(size[1]) * 1.3 / size[1]))
    assert np.allclose(found.numpy(), kspace.numpy() * phase, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_whole_pixels_roll_the_image(size, random):
    image = random(*size)
    found = mri.move_shots(mri.fft2c(image), steady(size[1]), torch.tensor([[2.0, -3.0]]))
    assert torch.allclose(mri.ifft2c(found), image.roll((2, -3), (0, 1)), atol=1e-5)


def test_no_motion_is_nothing(random):
    kspace, shot = random(3, 16, 12), steady(12, 4)
    assert torch.equal(mri.move_shots(kspace, shot, torch.zeros(4, 2)), kspace)
    assert torch.allclose(mri.move_shots(kspace, shot, torch.zeros(4, 2), torch.full((4,), 1e-6)), kspace, atol=1e-4)


@pytest.mark.parametrize("angle, turns", [(90.0, 1), (180.0, 2), (-90.0, -1)])
def test_a_quarter_turn_is_rot90(angle, turns, random):
    image = random(15, 15)  # of odd size, so that the middle is a pixel
    found = mri.move_shots(mri.fft2c(image), steady(15), torch.zeros(1, 2), [angle])
    assert torch.allclose(mri.ifft2c(found), image.rot90(turns), atol=1e-4)


def test_a_turn_is_that_of_a_smooth_object():
    """An off-centre Gaussian, whose turned self is known; pixels are square though the image is not."""
    y, x = np.meshgrid(positions(48), positions(40), indexing="ij")

    def blob(row, column):
        return torch.from_numpy(np.exp(-((y - row) ** 2 / 18 + (x - column) ** 2 / 18))).to(torch.complex64)

    angle = math.radians(25)
    place = math.cos(angle) * 8 - math.sin(angle) * 3, math.sin(angle) * 8 + math.cos(angle) * 3
    found = mri.move_shots(mri.fft2c(blob(8, 3)), steady(40), torch.tensor([[1.5, -2.0]]), [25.0])
    assert torch.allclose(mri.ifft2c(found), blob(place[0] + 1.5, place[1] - 2.0), atol=2e-3)
    # counter-clockwise in a picture: what lies below moves to the right
    assert place[1] > 3


def test_each_line_is_that_of_its_shot(random):
    kspace, shot = random(16, 12), torch.tensor([0, 1, 2, -1] * 3)
    shifts = torch.tensor([[0.0, 0.0], [1.5, 0.5], [-0.3, 2.0]])
    found = mri.move_shots(kspace, shot, shifts, [0.0, 4.0, 0.0])
    for number, angle in enumerate((0.0, 4.0, 0.0)):
        whole = mri.move_shots(kspace, steady(12), shifts[number : number + 1], [angle])
        assert torch.allclose(found[:, shot == number], whole[:, shot == number], atol=1e-5)
    assert float(found[:, shot == -1].abs().max()) == 0 and torch.equal(found[:, shot == 0], kspace[:, shot == 0])


def test_motion_is_the_sum_over_moved_pixels(random):
    image, shot = random(10, 12), torch.tensor([0, 1, 1, 0, 2, 2] * 2)
    shifts, angles = torch.tensor([[0.4, -1.2], [0.0, 0.0], [2.0, 0.3]]), [3.0, -20.0, 0.0]
    found = mri.move_shots(mri.fft2c(image), shot, shifts, angles)
    y, x = np.meshgrid(positions(10), positions(12), indexing="ij")
    for line in range(12):
        number = int(shot[line])
        turn, (down, right) = math.radians(angles[number]), shifts[number].tolist()
        rows = math.cos(turn) * y - math.sin(turn) * x + down
        columns = math.sin(turn) * y + math.cos(turn) * x + right
        for row, k in enumerate(positions(10)):
            wave = np.exp(-2j * np.pi * (k * rows / 10 + (line - 6) * columns / 12))
            assert abs((wave * image.numpy()).sum() / math.sqrt(120) - complex(found[row, line])) < 1e-4


def test_impossible_motion_is_refused(random):
    kspace = random(16, 12)
    for shot, shifts, angles in (
        (steady(12, 3), torch.zeros(2, 2), None),
        (steady(11), torch.zeros(1, 2), None),
        (steady(12), torch.zeros(1, 2), [0.0, 1.0]),
    ):
        with pytest.raises(mri.BadInput, match="give each"):
            mri.move_shots(kspace, shot, shifts, angles)


# --- off-resonance --------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("size", SIZES)
def test_an_even_field_shifts_the_image(axis, size, random):
    image = random(2, *size)
    found = mri.ifft2c(mri.off_resonance(mri.fft2c(image), torch.full(size, 120.0), 40.0, axis))
    assert torch.allclose(found, image.roll(3, axis), atol=1e-4)


def test_no_field_is_nothing_and_a_wide_band_next_to_nothing(random):
    kspace = random(16, 12)
    assert torch.allclose(mri.off_resonance(kspace, torch.zeros(16, 12), 40.0), kspace, atol=1e-4)
    field = 50 * torch.rand(16, 12)
    assert torch.allclose(mri.off_resonance(kspace, field, 1e8), kspace, atol=1e-4)


@pytest.mark.parametrize("axis", [-2, -1])
def test_off_resonance_is_the_sum_over_all_spins(axis, random):
    image, field, size = random(9, 8), 60 * torch.rand(9, 8, generator=torch.Generator().manual_seed(0)), (9, 8)
    found = mri.off_resonance(mri.fft2c(image), field, 25.0, axis)
    y, x = (positions(n) for n in size)
    rows, columns = (np.broadcast_to(a, size).astype(float) for a in (y[:, None], x))
    moved = field.numpy() / 25.0
    rows, columns = (rows + moved, columns) if axis == -2 else (rows, columns + moved)
    sums = [
        [(image.numpy() * np.exp(-2j * np.pi * (k * rows / 9 + j * columns / 8))).sum() / math.sqrt(72) for j in x]
        for k in y
    ]
    assert np.allclose(found.numpy(), np.array(sums), atol=1e-4)


def test_impossible_off_resonance_is_refused(random):
    for bandwidth, axis, size in ((0.0, -2, (16, 12)), (40.0, 0, (16, 12)), (40.0, -2, (12, 16))):
        with pytest.raises(mri.BadInput, match="bandwidth"):
            mri.off_resonance(random(16, 12), torch.zeros(size), bandwidth, axis)


def test_the_field_of_air():
    """Largest above a ball, zero at the magic angle; nothing without a main field; falls off as 1 / r^3."""
    one = mri.air_field((65, 65), 2.0, 3.0, [(0, 0, 20, 10)])
    assert one.dtype == torch.float32 and torch.allclose(one, one.flip(0)) and torch.allclose(one, one.T, atol=1e-4)
    assert float(one[32, 32]) == pytest.approx(2 * 42.577e6 * 3 * 9.4e-6 / 3 * (10 / 20) ** 3, rel=1e-5)
    magic = 20 * math.sqrt(2) / 2  # pixels of 2 mm: where 3 cos^2 = 1
    zero = np.interp(magic, np.arange(33), one[32, 32:].numpy())
    assert abs(zero) < 0.02 * float(one.max())
    far = mri.air_field((65, 65), 2.0, 3.0, [(0, 0, 40, 10)])
    assert float(far[32, 32]) == pytest.approx(float(one[32, 32]) / 8, rel=1e-5)
    assert torch.allclose(mri.air_field((65, 65), 2.0, 1.5, [(0, 0, 20, 10)]), one / 2)
    assert float(mri.air_field((65, 65), 2.0, 0.0).abs().max()) == 0
    assert 50 < float(mri.air_field((160, 160), 1.44).max()) < 300 and len(mri.AIR) == 3
    with pytest.raises(mri.BadInput, match="reaches into it"):
        mri.air_field((8, 8), 1.0, 3.0, [(0, 0, 5, 6)])


# --- decay ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", mri.ORDERS)
def test_without_decay_nothing_changes(order, random):
    kspace, mask = random(2, 16, 20), mri.sampling_mask("random", (20,), 2, 0.2, seed=0)
    echo = mri.order_lines(mask, order, 2)[1]
    for spacing, t2 in ((10.0, 1e9), (0.0, 50.0), (10.0, torch.full((16, 20), 1e9))):
        assert torch.allclose(mri.echo_decay(kspace, echo, spacing, t2), kspace * mask, atol=1e-4)


def test_lines_decay_as_they_are_taken(random):
    kspace, mask = random(16, 20), torch.ones(20, dtype=torch.bool)
    echo = mri.order_lines(mask, "centre_out", 4)[1]
    found = mri.echo_decay(kspace, echo, 10.0, 80.0).numpy()
    assert np.allclose(found, kspace.numpy() * np.exp(-10.0 * echo.numpy() / 80.0), atol=1e-5)  # DC is the first echo
    assert np.linalg.norm(found) < np.linalg.norm(kspace.numpy())
    echo = mri.order_lines(mask, "interleaved", 4)[1]
    found = mri.echo_decay(kspace, echo, 10.0, 80.0).numpy()
    middle = int(echo[10])
    assert 0 < middle < int(echo.max())
    assert np.allclose(found[:, 10], kspace[:, 10], atol=1e-6)  # the line of the effective echo time
    assert np.allclose(found, kspace.numpy() * np.exp(-10.0 * (echo.numpy() - middle) / 80.0), atol=1e-4)


def test_a_map_of_t2_is_the_sum_of_its_tissues(random):
    """Two tissues with a T2 each, scanned together and one by one."""
    image, echo = random(16, 20), mri.order_lines(torch.ones(20, dtype=torch.bool), "interleaved", 4)[1]
    one = torch.zeros(16, 20, dtype=torch.bool)
    one[:, :9] = True
    together = mri.echo_decay(mri.fft2c(image), echo, 10.0, torch.where(one, 50.0, 200.0))
    parts = [mri.echo_decay(mri.fft2c(image * part), echo, 10.0, t2) for part, t2 in ((one, 50.0), (~one, 200.0))]
    assert torch.allclose(together, sum(parts), atol=1e-4)


def test_impossible_decay_is_refused(random):
    kspace, echo = random(16, 20), torch.zeros(20, dtype=torch.long)
    for echoes, t2 in ((echo, 0.0), (echo, -5.0), (echo[:9], 50.0), (echo - 1, 50.0)):
        with pytest.raises(mri.BadInput, match="give a T2 above 0"):
            mri.echo_decay(kspace, echoes, 10.0, t2)
