"""Any scanner's files: k-space of ISMRMRD, BART, MATLAB, numpy, NIfTI, Siemens and of well-known data sets."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from mri_parts.basics import BadInput
from mri_parts.checks import find_centre, lacks_corners
from mri_parts.fourier import _centred, center_crop, fft2c, ifft2c, rss
from mri_parts.hdf5 import LONGEST_HEADER, _dataset
from mri_parts.images import IMAGE_SUFFIXES, _is_dicom, _judging, image_kspace, resampled
from mri_parts.volumes import EMPTY_COLUMN, M4RAW, READERS, Reader, Volume, read_volume

LARGEST_SCAN = 2**30  # samples of a file, all axes together: 8 GiB


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a file of any format holds, in the book's order of axes.

    Attributes:
        kspace: complex64, its axes as `axes` says, DC at [H // 2, W // 2].
        axes: "slices" first, then others such as "echoes" or "frames", "coils" where there are several, "H", "W".
        target_size: (h, w) of the image that is kept.
        acquisition, patient_id: see Volume.
        notes: what was assumed or done, to be printed.
        simulated: what was not measured; kept in the file, and metrics.json warns of it.
        noise: complex64 (coils, samples), a noise scan; None without one.
        mask: bool (W,) or (H, W), the columns or points that were measured, where some were left out; else None.
        affine: where the images lie, see Volume.affine; None where the file does not tell.
    """

    kspace: Tensor
    axes: tuple[str, ...]
    target_size: tuple[int, int]
    acquisition: str = "unknown"
    patient_id: str
    notes: tuple[str, ...] = ()
    simulated: tuple[str, ...] = ()
    noise: Tensor | None = None
    mask: Tensor | None = None
    affine: np.ndarray | None = None


class Format(NamedTuple):
    """A kind of file, an entry of FORMATS.

    Attributes:
        fits: whether a file is of this kind.
        read: (path, names of its axes or (), name of the array or "") -> Scan. What it raises counts as damage.
    """

    fits: Callable[[Path], bool]
    read: Callable[[Path, Sequence[str], str], Scan]


def read_scan(path: str | Path, axes: Sequence[str] = (), variable: str = "") -> Scan:
    """A file of one of FORMATS, read as a whole.

    Args:
        path: the file.
        axes: of its array where the file does not tell, in the order in which it is stored; see arrange.
        variable: which array of the file, where there are several.
    Raises:
        BadInput: no such file, no format that fits, a damaged file, axes that are not known or do not fit; NaN,
            infinite samples, an empty slice.
    """
    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        raise BadInput(f"{path}: no such file: check the path")
    with _judging(path, "file"):
        try:
            name = next((name for name, kind in FORMATS.items() if kind.fits(path)), None)
            if name is None:
                raise BadInput(f"{path}: none of the formats that are read ({', '.join(FORMATS)}): see data/README.md")
            scan = FORMATS[name].read(path, axes, variable)
            values = torch.view_as_real(scan.kspace).flatten(1)
            low, high = values.aminmax(dim=1)
        except MemoryError:
            raise BadInput(f"{path}: needs more memory than there is: split it, or use a larger machine") from None
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise BadInput(f"{path}: holds NaN or infinite samples: repair or remove the file")
    if (empty := (low == 0) & (high == 0)).any():
        raise BadInput(f"{path}: slice {int(empty.int().argmax())} is all zero: remove it, or check the axes")
    return scan


def arrange(path: Path, array: np.ndarray, axes: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """An array whose axes have names, in the book's order.

    Args:
        path: for messages.
        array: k-space, complex, or real with an axis real_imag.
        axes: a name for each axis, or for each that is longer than 1. "H" is the readout, "W" the phase encode. Four
            names do something: "averages" are averaged, "partitions" are the second phase encode of 3-D k-space and
            become slices by an inverse transform, "real_imag" holds the two parts of complex numbers, and "coils" go
            in front of H and W. Any other name ("echoes", "frames") is kept.
    Returns:
        complex64 (slices, .., [coils,] H, W), and the names of its axes; those of length 1 are dropped.
    Raises:
        BadInput: names that do not fit, real numbers.
    """
    names, shape = list(axes), array.shape
    if len(names) != len(shape):
        array = array.squeeze()
    told = f"{path}: an array {tuple(shape)} and axes '{', '.join(names)[:80]}'"
    if len(names) != array.ndim or len(set(names)) != len(names) or not {"H", "W"} <= set(names):
        raise BadInput(f"{told}: name every axis once, H and W among them")
    _check_size(path, shape)
    if 0 in shape:
        raise BadInput(f"{told}: nothing in it: save the k-space again")
    if "real_imag" in names:
        place = names.index("real_imag")
        if array.shape[place] != 2 or array.dtype.kind not in "fiu":
            raise BadInput(f"{told}: real_imag must be an axis of 2 real numbers")
        array = array.take(0, place).astype(np.complex64) + 1j * array.take(1, place)
        names.remove("real_imag")
    if array.dtype.kind != "c":
        raise BadInput(f"{told}: {array.dtype} is no complex k-space: give the complex data, or name an axis real_imag")
    with np.errstate(over="ignore"):  # becomes infinite, and is told
        kspace = torch.from_numpy(np.ascontiguousarray(array, dtype=np.complex64))
    if "averages" in names:
        kspace = kspace.mean(names.index("averages"))
        names.remove("averages")
    if "slices" not in names:
        kspace, names = kspace[None], ["slices", *names]
    if "partitions" in names:
        kspace = _centred(torch.fft.ifftn, kspace, (names.index("partitions"),))
        kspace = kspace.movedim((names.index("slices"), names.index("partitions")), (0, 1)).flatten(0, 1)
        names = ["slices", *(name for name in names if name not in ("slices", "partitions"))]
    inner = [name for name in names if name not in ("slices", "coils", "H", "W")]
    order = ["slices", *inner, *(["coils"] if "coils" in names else []), "H", "W"]
    kspace = kspace.permute([names.index(name) for name in order])
    kept = [i for i, name in enumerate(order) if name in ("slices", "H", "W") or kspace.shape[i] > 1]
    shape = tuple(kspace.shape[i] for i in kept)
    return kspace.reshape(shape).contiguous(), tuple(order[i] for i in kept)


def centred(kspace: Tensor) -> Tensor:
    """K-space (.., H, W) of np.fft.fft2, whose DC is in the corner, as fft2c would have made it of the same image."""
    return fft2c(torch.fft.ifft2(kspace, norm="ortho"))


def emulate_single_coil(kspace: Tensor, axes: Sequence[str], steps: int = 100) -> Tensor:
    """What one coil would have measured: the combination of the coils whose magnitude is nearest to their rss.

    One complex weight for each coil and slice, fitted by least squares, as in the emulated single coil of fastMRI
    (Tygert and Zbontar 2020, Comm. App. Math. and Comp. Sci. 15(2)). The phase of the combination is free, so the
    fit alternates: the phase, then the weights. It starts at the strongest virtual coil.

    Args:
        kspace: complex, axes as `axes` says, with "coils" before H and W.
        axes: of the k-space, "slices" first.
        steps: of the fit.
    Returns:
        complex k-space without the axis of coils.
    Raises:
        BadInput: no coils.
    """
    if "coils" not in axes:
        raise BadInput(f"k-space ({', '.join(axes)}) has no coils to combine: leave --single-coil out")
    combined = []
    for one in kspace:  # slice by slice: coils that are far from one slice are near to another
        images = ifft2c(one).movedim(-3, -1).reshape(-1, one.shape[-3])  # pixels, coils
        gram = images.mH @ images
        gram += 1e-6 * gram.diagonal().real.mean() * torch.eye(len(gram))
        wanted = rss(images, -1)
        weights = torch.linalg.eigh(gram)[1][:, -1]
        for _ in range(steps):
            weights = torch.linalg.solve(gram, images.mH @ (wanted * torch.sgn(images @ weights)))
        combined.append(torch.einsum("c,...chw->...hw", weights, one))
    return torch.stack(combined)


def as_measured(scan: Scan, path: Path) -> Scan:
    """A scan that look() refuses because samples were left out, made usable.

    Args:
        scan: as read. Rows and columns at the edges may be empty (partial Fourier, an asymmetric echo).
        path: for messages.
    Returns:
        the scan, its k-space cropped to the largest rectangle around DC without a gap, where only corners are
        missing (an ellipse); else with the mask of what was measured, which makes a test file of it.
    Raises:
        BadInput: each image lacks other samples.
    """
    coils = [axis for axis, name in enumerate(scan.axes[1:]) if name == "coils"]
    measured: list[Tensor] = []
    for one in scan.kspace:
        size = torch.view_as_real(one).abs().amax(-1)
        size = (size.amax(coils[0]) if coils else size).reshape(-1, *size.shape[-2:])
        measured += (size > EMPTY_COLUMN * size.amax()).unbind()
    always = torch.stack(measured).all(0)
    height, width = always.shape
    rows, columns = (always.any(axis).nonzero().flatten().tolist() or [0] for axis in (1, 0))
    inside = always[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    h, w = _full_rectangle(always) if lacks_corners(~inside) else (0, 0)
    if h * w:
        kept = tuple(round(n * new / old) for n, new, old in zip(scan.target_size, (h, w), (height, width)))
        note = f"the corners of k-space were never measured: cropped from {height}x{width} to {h}x{w}"
        affine = None if scan.affine is None else resampled(scan.affine, scan.target_size, kept)
        cropped = center_crop(scan.kspace, (h, w)).contiguous()
        fields: dict[str, Any] = dict(kspace=cropped, target_size=kept, affine=affine)
    else:
        if not all(torch.equal(one, always) for one in measured):
            raise BadInput(f"{path}: undersampled, with other samples in each image: give a full scan")
        line = always[rows[0]]
        mask = line if ((always == line).all(1) | ~always.any(1)).all() else always
        share = float(mask.float().mean())
        what = "columns" if mask.ndim == 1 else "samples"
        note = f"undersampled ({share:.0%} of the {what}), so without a reference: a test file"
        fields = dict(mask=mask)
    return dataclasses.replace(scan, notes=(*scan.notes, note), **fields)


def _full_rectangle(measured: Tensor) -> tuple[int, int]:
    """The even (h, w) of the largest rectangle around DC in which all of bool (H, W) is true; (0, 0) without one."""
    (row, column), best = (n // 2 for n in measured.shape), (0, 0)
    full = torch.ones(measured.shape[1], dtype=torch.bool)
    for half in range(1, row + 1):
        full &= measured[row - half] & measured[row + half - 1]
        sides = full[:column].flip(0), full[column : 2 * column]
        reach = min(int(side.long().cumprod(0).sum()) for side in sides)
        best = max(best, (2 * half, 2 * reach), key=math.prod)
    return best


def _check_size(path: Path, shape: Sequence[int], file: Path | None = None, itemsize: int = 8) -> None:
    """Refuse shapes that would fill the memory, and those that a file of this size cannot hold, however compressed."""
    if math.prod(shape) > LARGEST_SCAN:
        raise BadInput(f"{path}: {tuple(shape)} is more than {LARGEST_SCAN} samples: split the file")
    held = 1100 * (file or path).stat().st_size  # no common compression reaches that
    if math.prod(shape) * itemsize > held:
        raise BadInput(f"{path}: declares {tuple(shape)}, which is not in it: the file is damaged, copy it again")


def _suffix(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.name.lower().endswith(suffixes)


def _array_scan(path: Path, array: np.ndarray, axes: Sequence[str], known: str = "", **about: Any) -> Scan:
    """An array of a file as a Scan; `known` names its axes where the format does, and `axes` come before that."""
    if not axes and not known:
        if array.squeeze().ndim != 2:
            example = {3: "H, W, slices", 4: "H, W, coils, slices"}.get(array.ndim, "H, W, coils, slices, ..")
            found = f"an array {array.shape} of {array.dtype}, and nothing says which axis is which"
            raise BadInput(f'{path}: {found}: add for example --axes "{example}" (H is the readout)')
        known = "H, W"
    names = list(axes) or known.split(", ")
    kspace, order = arrange(path, array, names)
    notes = (f"axes {', '.join(names)}{'' if axes else ' (assumed)'}", *about.pop("notes", ()))
    about = {"patient_id": path.name.partition(".")[0], "target_size": tuple(kspace.shape[-2:])} | about
    return Scan(kspace=kspace, axes=order, notes=notes, **about)


def _pick(path: Path, names: Sequence[str], variable: str) -> str:
    """Which array of a file: the one asked for, `kspace`, or the only one."""
    found = ", ".join(names)[:200] or "nothing"
    if variable and variable not in names:
        raise BadInput(f"{path}: no array {variable[:80]!r} in it (found: {found}): check --variable")
    chosen = variable or ("kspace" if "kspace" in names else names[0] if len(names) == 1 else "")
    if not chosen:
        raise BadInput(f"{path}: which array is the k-space (found: {found})? add --variable NAME")
    return chosen


# numpy


def _read_npy(path: Path, axes: Sequence[str], variable: str) -> Scan:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "pickle" not in f"{error}" and "Python objects" not in f"{error}":
            raise
        raise BadInput(f"{path}: no array of numbers: objects are never unpickled, save the numbers alone") from error
    _check_size(path, array.shape)
    return _array_scan(path, np.asarray(array), axes)


def _read_npz(path: Path, axes: Sequence[str], variable: str) -> Scan:
    with zipfile.ZipFile(path) as zipped:
        members = [member for member in zipped.infolist() if member.filename.endswith(".npy")]
        name = _pick(path, [member.filename.removesuffix(".npy") for member in members], variable)
        member = zipped.getinfo(f"{name}.npy")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a limit
            raise BadInput(f"{path}: compressed by method {member.compress_type}: save it with numpy.savez")
        _check_size(path, (member.file_size,), itemsize=1)
        with zipped.open(member) as opened:
            version = np.lib.format.read_magic(opened)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(opened)
            if dtype.hasobject:
                raise BadInput(f"{path}: {name[:80]} is no array of numbers: objects are never unpickled")
            if math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError("the header declares more than follows")
        with zipped.open(member) as opened:
            array = np.lib.format.read_array(opened, allow_pickle=False)
    return _array_scan(path, array, axes)


# MATLAB


def _read_matlab(path: Path, axes: Sequence[str], variable: str) -> Scan:
    """v4 to v7 by scipy; v7.3 is HDF5, with the axes in reverse and complex numbers as pairs."""
    if not h5py.is_hdf5(path):
        from scipy.io import loadmat, whosmat

        classes = ("double", "single", *(f"{sign}int{n}" for sign in ("", "u") for n in (8, 16, 32, 64)))
        shapes = {name: shape for name, shape, kind in whosmat(path) if kind in classes and math.prod(shape) > 1}
        name = _pick(path, list(shapes), variable)
        _check_size(path, shapes[name])
        return _array_scan(path, loadmat(path, variable_names=[name])[name], axes)
    with h5py.File(path, "r") as file:
        names = [n for n in file if isinstance(file.get(n, getlink=True), h5py.HardLink)]
        names = [
            n for n in names if isinstance(file[n], h5py.Dataset) and file[n].ndim > 1 and file[n].dtype.kind in "Vf"
        ]
        known = next((n for n in CMRXRECON if n in names and variable in ("", n)), "")
        name = known or _pick(path, names, variable)
        data: Any = _dataset(file, path, name, "Vfc", "numbers", LARGEST_SCAN)
        _check_size(path, data.shape)
        array = _complex(path, name, data[()]).T
    if not known:
        return _array_scan(path, array, axes)
    subject = re.findall(r"P\d+", path.parent.name)
    about = {"patient_id": subject[-1]} if subject else {}
    note = "CMRxRecon's order of axes" + ("" if subject else ", no folder P001 above it: the file counts as a subject")
    return _array_scan(path, array, axes, CMRXRECON[known][array.ndim], acquisition=path.stem, notes=(note,), **about)


# As MATLAB shows them, by the number of axes: mapping and cine files have frames, single images have none.
CMRXRECON = {
    "kspace_full": {3: "H, W, coils", 4: "H, W, coils, slices", 5: "H, W, coils, slices, frames"},
    "kspace_single_full": {2: "H, W", 3: "H, W, slices", 4: "H, W, slices, frames"},
}


def _complex(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.names is None:
        return array
    if set(array.dtype.names) != {"real", "imag"}:
        raise BadInput(f"{path}: {name[:80]} is a table of {', '.join(array.dtype.names)[:80]}: expected real and imag")
    joined: np.ndarray = array["real"].astype(np.complex64) + 1j * array["imag"].astype(np.float32)
    return joined


# BART


# What BART's axes are by their number; the others must be of length 1. Its transform is the book's.
BART_AXES = {0: "H", 1: "W", 2: "partitions", 3: "coils", 5: "echoes", 10: "frames", 13: "slices", 14: "averages"}


def _read_bart(path: Path, axes: Sequence[str], variable: str) -> Scan:
    header, data = path.with_suffix(".hdr"), path.with_suffix(".cfl")
    for part in (header, data):
        if not part.is_file():
            raise BadInput(f"{path}: no {part.name} beside it: BART's files come in pairs, copy both")
    with open(header, encoding="ascii") as file:
        text = file.read(LONGEST_HEADER)
    found = re.search(r"# Dimensions\s*\n([\d ]+)", text)
    shape = tuple(int(word) for word in found[1].split()[:33]) if found else ()
    size = data.stat().st_size
    if not shape or 0 in shape or math.prod(shape) * 8 != size:
        raise BadInput(f"{path}: {header.name} says {shape}, {data.name} has {size} bytes: copy both files again")
    _check_size(path, shape, data)
    array = np.fromfile(data, np.complex64).reshape(shape, order="F")
    if axes:
        return _array_scan(path, array, axes)
    longer = [i for i, n in enumerate(shape) if n > 1 or i < 2]
    if shape[0] == 1 or not set(longer) <= set(BART_AXES):
        raise BadInput(f"{path}: BART array {shape}: no Cartesian k-space with axes that are known: add --axes")
    return _array_scan(path, array.reshape([shape[i] for i in longer]), (), ", ".join(BART_AXES[i] for i in longer))


# HDF5 of data sets that are well known


def _holds_hdf5(path: Path, key: str, kinds: str) -> bool:
    if not _suffix(".h5", ".hdf5", ".mrd")(path):
        return False
    with h5py.File(path, "r") as file:
        data = file[key] if isinstance(file.get(key, getlink=True), h5py.HardLink) else None
        return (
            isinstance(data, h5py.Group) if kinds == "" else isinstance(data, h5py.Dataset) and data.dtype.kind in kinds
        )


def _read_fastmri(path: Path, axes: Sequence[str], variable: str) -> Scan:
    """fastMRI's layout, and M4Raw's: there the first digits of the name are the volunteer."""
    volume: Volume = read_volume(path)
    _check_size(path, volume.shape)
    subject = M4RAW.match(path.stem)
    notes = ("M4Raw: the first digits of the name are the subject, repetitions are files of their own",)
    return Scan(
        kspace=torch.stack([volume.kspace(i) for i in range(len(volume))]),
        axes=volume.axes,
        target_size=volume.target_size,
        acquisition=volume.acquisition if volume.acquisition != "unknown" or not subject else subject["contrast"],
        patient_id=subject["subject"] if subject else volume.patient_id,
        notes=notes if subject else ("fastMRI's layout",),
        noise=volume.noise() if "coils" in volume.axes else None,
        mask=volume.mask,
        affine=volume.affine,
    )


def _read_calgary(path: Path, axes: Sequence[str], variable: str) -> Scan:
    """Calgary-Campinas: (slices, H, W, 2 x coils) real, already transformed along the readout, which are the slices."""
    with h5py.File(path, "r") as file:
        data: Any = _dataset(file, path, "kspace", "f", "real")
        if data.ndim != 4 or data.shape[-1] % 2:
            raise BadInput(f"{path}: kspace {data.shape} is real: expected Calgary-Campinas' (slices, H, W, 2 x coils)")
        _check_size(path, data.shape, itemsize=4)
        stored = data[()]
    scan = _array_scan(path, stored[..., ::2] + 1j * stored[..., 1::2], axes, "slices, H, W, coils")
    corner = find_centre(scan.kspace[len(scan.kspace) // 2])
    notes = ["Calgary-Campinas: slices are transformed already, both axes of k-space are phase encodes"]
    if abs(corner[0]) > scan.kspace.shape[-2] // 4 or abs(corner[1]) > scan.kspace.shape[-1] // 4:
        notes.append("DC was in the corner, now it is in the middle")
        scan = dataclasses.replace(scan, kspace=centred(scan.kspace))
    return dataclasses.replace(scan, acquisition="T1", notes=(*scan.notes, *notes))


def _is_skm_tea(path: Path) -> bool:
    """K-space with five axes, beside the coils' maps."""
    if not _holds_hdf5(path, "kspace", "c"):
        return False
    with h5py.File(path, "r") as file:
        return file["kspace"].ndim == 5 and "maps" in file


def _read_skm_tea(path: Path, axes: Sequence[str], variable: str) -> Scan:
    """SKM-TEA: (x, ky, kz, echoes, coils), already transformed along the readout x, which are the slices."""
    with h5py.File(path, "r") as file:
        data: Any = _dataset(file, path, "kspace", "c", "complex", LARGEST_SCAN)
        _check_size(path, data.shape)
        stored = data[()]
    notes = ("SKM-TEA: slices are transformed already, both axes of k-space are phase encodes",)
    return _array_scan(path, stored, axes, "slices, H, W, echoes, coils", acquisition="qDESS", notes=notes)


# NIfTI


def _read_nifti(path: Path, axes: Sequence[str], variable: str) -> Scan:
    """Images: slices across the largest voxel side, patients face up (or look left), k-space computed."""
    if importlib.util.find_spec("nibabel") is None:
        raise BadInput(f"{path}: reading NIfTI needs nibabel: pip install nibabel")
    import nibabel

    opened: Any = nibabel.load(path)
    shape, kind = opened.shape, opened.get_data_dtype()
    if len(shape) not in (3, 4) or min(shape) < 1 or kind.kind not in "fiuc":
        raise BadInput(f"{path}: NIfTI of {shape}, {kind}: expected grey images with three axes, or four")
    _check_size(path, shape, itemsize=kind.itemsize)
    turned = nibabel.as_closest_canonical(opened)  # to the right, to the front, upwards
    sides = [float(side) for side in turned.header.get_zooms()[:3]]
    across = int(np.argmax(sides)) if max(sides) > 1.2 * min(sides) else 2
    with np.errstate(all="ignore"):  # what is too large becomes infinite, and is told
        stored = torch.from_numpy(np.asarray(turned.dataobj).astype(np.complex64 if kind.kind == "c" else np.float32))
    rows, columns = [axis for axis in (2, 1, 0) if axis != across]
    images = stored.movedim((across, rows, columns), (0, -2, -1)).flip(-2, -1)
    h, w = (n // 8 * 8 for n in images.shape[-2:])
    if min(h, w) < 8:
        raise BadInput(f"{path}: images of {tuple(images.shape[-2:])} are too small: use larger ones")
    if not torch.isfinite(images.abs()).all():
        raise BadInput(f"{path}: holds NaN or infinite values: repair or remove the file")
    filled = images.abs().flatten(1).any(1)
    images = images[filled]  # the first and last slices of a masked head are often empty
    if not len(images):
        raise BadInput(f"{path}: all images are empty: remove the file")
    if images.is_complex():
        kspace = center_crop(fft2c(images), (h, w))
    else:
        flat = [image_kspace(image, (h, w)) for image in images.reshape(-1, *images.shape[-2:])]
        kspace = torch.stack(flat).reshape(*images.shape[:-2], h, w)
    names = ("slices", "frames", "H", "W")[-kspace.ndim :] if kspace.ndim == 4 else ("slices", "H", "W")
    subject = re.search(r"sub-([A-Za-z0-9]+)", path.name)
    plane = ("sagittal", "coronal", "axial")[across]
    made = () if images.is_complex() else ("k-space made from images: phase simulated",)
    empty = int((~filled).sum())
    notes = [
        f"{plane} slices, matrix cropped to {h}x{w}",
        *made,
        *([f"{empty} empty slices left out"] if empty else []),
    ]
    return Scan(
        kspace=kspace,
        axes=names,
        target_size=(h, w),
        acquisition="images",
        patient_id=subject[0] if subject else path.name.partition(".")[0],
        notes=tuple(notes),
        simulated=made,
        affine=_turned_affine(turned, (across, rows, columns), filled, (h, w)),
    )


def _turned_affine(turned: Any, order: Sequence[int], filled: Tensor, size: Sequence[int]) -> np.ndarray | None:
    """The affine of the images that _read_nifti makes of a NIfTI image; None where slices inside were left out.

    Args:
        turned: to the right, to the front, upwards.
        order: its axes that became slices, rows and columns, the last two reversed.
        filled: bool, the slices that were kept.
        size: (h, w) that k-space was cropped to.
    """
    kept = filled.nonzero()[:, 0]
    if len(kept) <= int(kept[-1] - kept[0]):
        return None
    tall, wide = (turned.shape[axis] for axis in order[1:])
    place = np.zeros((4, 4))
    place[order[2], [0, 3]] = -1, wide - 1
    place[order[1], [1, 3]] = -1, tall - 1
    place[order[0], [2, 3]] = 1, int(kept[0])
    place[3, 3] = 1
    return resampled(turned.affine @ place, (tall, wide), size)


FORMATS: dict[str, Format] = {
    "fastMRI or M4Raw HDF5": Format(
        lambda path: _holds_hdf5(path, "kspace", "c") and not _is_skm_tea(path), _read_fastmri
    ),
    "SKM-TEA HDF5": Format(_is_skm_tea, _read_skm_tea),
    "Calgary-Campinas HDF5": Format(lambda path: _holds_hdf5(path, "kspace", "f"), _read_calgary),
    "MATLAB": Format(_suffix(".mat"), _read_matlab),
    "BART": Format(_suffix(".cfl", ".hdr"), _read_bart),
    "numpy .npy": Format(_suffix(".npy"), _read_npy),
    "numpy .npz": Format(_suffix(".npz"), _read_npz),
    "NIfTI": Format(_suffix(".nii", ".nii.gz"), _read_nifti),
}


# What is to be converted before training, by the ends of the names.
CONVERTED: Mapping[str, str] = {
    ".mat": "MATLAB", ".cfl": "BART", ".npy": "numpy", ".npz": "numpy", ".nii": "NIfTI", ".nii.gz": "NIfTI",
    ".mrd": "ISMRMRD", ".dat": "Siemens twix",
}  # fmt: skip


def _to_convert(folder: Path) -> str:
    """The end of the names of the files in a folder that data/convert.py reads, where there is nothing else; or ""."""
    files = [path for path in sorted(folder.glob("*")) if path.is_file() and not path.name.startswith(".")]
    if any(path.suffix.lower() in (".h5", *IMAGE_SUFFIXES) or path.name == "cine.npz" for path in files):
        return ""
    end = next((end for path in files for end in CONVERTED if path.name.lower().endswith(end)), "")
    return "" if end and any(_is_dicom(path) for path in files) else end


def _tell_converter(folder: Path) -> list[Volume]:
    end = _to_convert(folder)
    command = f"python data/convert.py {folder}/*{end} --out data/mine"
    raise BadInput(f"{folder}: holds {CONVERTED[end]} files: {command}")


READERS["file for data/convert.py"] = Reader(lambda folder: bool(_to_convert(folder)), _tell_converter)
