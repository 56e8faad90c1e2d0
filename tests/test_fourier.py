"""Section 1: centred transforms, cropping, coil combination."""

import numpy as np
import pytest
import torch

import mri_utils as mri
from mri_parts.fourier import rss_of_kspace

SHAPES = [(8, 8), (7, 7), (8, 7), (7, 8), (33, 48), (1, 5)]


def numpy_centred(transform, x):
    """The definition, written once more with numpy in double precision."""
    axes = (-2, -1)
    return np.fft.fftshift(transform(np.fft.ifftshift(x, axes), norm="ortho"), axes)


def test_stored_reference_values(golden):
    image = torch.from_numpy(golden["image"])
    for result, name in [
        (mri.fft2c(image), "fft2c"),
        (mri.ifft2c(image), "ifft2c"),
        (mri.center_crop(image, (20, 20)), "center_crop_20x20"),
        (mri.rss(image, 0), "rss_over_axis0"),
    ]:
        expected = golden[name]
        assert result.numpy().dtype == expected.dtype and result.shape == expected.shape
        np.testing.assert_allclose(
            result.numpy(), expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max(), err_msg=name
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_transforms_equal_numpy(shape, random):
    x = random(3, *shape, dtype=torch.complex128)
    np.testing.assert_allclose(mri.fft2c(x).numpy(), numpy_centred(np.fft.fft2, x.numpy()), atol=1e-12)
    np.testing.assert_allclose(mri.ifft2c(x).numpy(), numpy_centred(np.fft.ifft2, x.numpy()), atol=1e-12)
    for slice_ in range(3):  # every leading axis by itself
        assert torch.allclose(mri.fft2c(x)[slice_], mri.fft2c(x[slice_]))


@pytest.mark.parametrize("shape", SHAPES)
def test_transform_from_its_sum(shape, random):
    """Straight from the definition: sum over pixels of x exp(-2 pi i (k r)), both counted from n // 2."""
    x = random(*shape, dtype=torch.complex128).numpy()
    matrices = []
    for n in shape:
        index = np.arange(n) - n // 2
        matrices.append(np.exp(-2j * np.pi * np.outer(index, index) / n) / np.sqrt(n))
    expected = matrices[0] @ x @ matrices[1].T
    np.testing.assert_allclose(mri.fft2c(torch.from_numpy(x)).numpy(), expected, atol=1e-12)
    back = matrices[0].conj() @ expected @ matrices[1].conj().T
    np.testing.assert_allclose(mri.ifft2c(torch.from_numpy(expected)).numpy(), back, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_energy_and_adjoint(shape, random):
    x, y = random(2, *shape, dtype=torch.complex128), random(2, *shape, dtype=torch.complex128)
    assert torch.allclose(mri.ifft2c(mri.fft2c(x)), x, atol=1e-12)
    assert torch.allclose(mri.fft2c(mri.ifft2c(x)), x, atol=1e-12)
    assert float(mri.fft2c(x).abs().square().sum()) == pytest.approx(float(x.abs().square().sum()), rel=1e-12)
    left, right = torch.vdot(mri.fft2c(x).flatten(), y.flatten()), torch.vdot(x.flatten(), mri.ifft2c(y).flatten())
    assert complex(left) == pytest.approx(complex(right), rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_origin_is_in_the_middle(shape):
    point = torch.zeros(shape)
    point[shape[0] // 2, shape[1] // 2] = 1
    flat = mri.fft2c(point)
    assert torch.allclose(flat, torch.full_like(flat, 1 / np.sqrt(point.numel())), atol=1e-6)  # no phase ramp
    assert mri.fft2c(torch.ones(shape)).abs().argmax() == point.argmax()


def test_single_precision_stays_single(random):
    assert mri.fft2c(random(4, 6)).dtype == torch.complex64
    assert mri.fft2c(torch.ones(4, 6)).dtype == torch.complex64


@pytest.mark.parametrize(("shape", "size"), [((8, 9), (4, 4)), ((9, 8), (4, 5)), ((5, 5), (5, 5)), ((2, 6, 7), (3, 3))])
def test_center_crop(shape, size):
    x = torch.arange(float(np.prod(shape))).reshape(shape)
    crop = mri.center_crop(x, size)
    top, left = (shape[-2] - size[0]) // 2, (shape[-1] - size[1]) // 2
    assert crop.shape == (*shape[:-2], *size)
    assert torch.equal(crop[..., 0, 0], x[..., top, left]) and crop.data_ptr() == x[..., top:, left:].data_ptr()


@pytest.mark.parametrize("size", [(9, 8), (8, 10), (0, 4), (4, -1)])
def test_center_crop_refuses(size):
    with pytest.raises(mri.BadInput, match=rf"8x9.*{size[0]}x{size[1]}"):
        mri.center_crop(torch.zeros(8, 9), size)


def test_rss(random):
    x = random(4, 5, 6)
    expected = np.sqrt((np.abs(x.numpy()) ** 2).sum(1))
    np.testing.assert_allclose(mri.rss(x, 1).numpy(), expected, rtol=1e-5)
    assert mri.rss(x).shape == (5, 6) and not mri.rss(x).is_complex()


@pytest.mark.parametrize(
    ("full", "size"), [((16, 12), (8, 12)), ((15, 12), (8, 7)), ((16, 11), (9, 6)), ((9, 9), (9, 5))]
)
def test_magnitude_straight_from_kspace(full, size, random):
    """rss_of_kspace is the longer way, in even and odd sizes; both are held against numpy."""
    kspace = random(2, 3, *full, dtype=torch.complex128)
    image = mri.center_crop(torch.from_numpy(numpy_centred(np.fft.ifft2, kspace.numpy())), size)
    torch.testing.assert_close(rss_of_kspace(kspace, size), image.abs())
    torch.testing.assert_close(rss_of_kspace(kspace, size, 1), image.abs().square().sum(1).sqrt())
    torch.testing.assert_close(mri.zero_filled_rss(kspace, None, size), mri.rss(image, 1))
    with pytest.raises(mri.BadInput, match="choose a smaller size"):
        rss_of_kspace(kspace, (size[0], full[1] + 1))


@pytest.mark.parametrize(("height", "kept"), [(16, 8), (16, 7), (15, 8), (15, 9), (8, 8)])
def test_crop_readout_is_the_crop_of_the_image(height, kept, random):
    kspace = random(2, height, 9, dtype=torch.complex128)
    cropped = mri.crop_readout(kspace, kept)
    assert cropped.shape == (2, kept, 9)
    assert torch.allclose(mri.ifft2c(cropped), mri.center_crop(mri.ifft2c(kspace), (kept, 9)), atol=1e-12)


def test_crop_readout_commutes_with_a_line_mask(random):
    kspace, mask = random(16, 9, dtype=torch.complex128), torch.arange(9) % 2 == 0
    first, last = mri.crop_readout(kspace * mask, 8), mri.crop_readout(kspace, 8) * mask
    assert torch.allclose(first, last, atol=1e-12) and not torch.allclose(last, mri.crop_readout(kspace, 8))
    with pytest.raises(mri.BadInput, match="16 samples to 17"):
        mri.crop_readout(kspace, 17)
