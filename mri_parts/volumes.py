"""Files of k-space: reading, writing and splitting them, and what looks suspicious in them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from mri_parts.basics import BadInput, replace_file
from mri_parts.fourier import center_crop, crop_readout, ifft2c, rss
from mri_parts.hdf5 import LARGEST_SLICE as LARGEST_SLICE
from mri_parts.hdf5 import _dataset, _join, _reading, foreign_files, parse_header, why_unopened

# Columns at the edge of k-space whose largest sample is this much smaller than the largest sample of
# the slice were never acquired (some converters leave 1e-16 there instead of zero).
EMPTY_COLUMN = 1e-12


MOST_SLICES = 10_000


CONVERT = "python data/convert.py {}/*.h5 --out data/mine"


# Names of M4Raw's files: volunteer, contrast, repetition.
M4RAW = re.compile(r"(?P<subject>\d{8,})_(?P<contrast>T1|T2|FLAIR)\d+$")


# The axes of k-space by their number, in files that do not name them.
DEFAULT_AXES = {3: ("slices", "H", "W"), 4: ("slices", "coils", "H", "W")}


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One file of k-space; slices are read when asked for, one at a time.

    Attributes:
        path: the HDF5 file.
        shape: of the k-space.
        axes: what each axis is: "slices" first, "H" and "W" last, any others between them. Only "coils" mean
            something to what is in common: the image that is compared is their root-sum-of-squares.
        target_size: (h, w) of the reconstruction.
        acquisition: name of the sequence, for example CORPD_FBK or AXT2.
        patient_id: the subject. Splits go by it.
        columns: (first, last + 1) phase-encode columns that the header says were acquired.
        mask: bool (W,) or (H, W) in files that are undersampled already; else None.
        target_key: the data set that holds the reference image; None where it is computed.
        attributes: all attributes of the file.
        notes: what was done to the data to make k-space of them, and why; metrics.json warns of it.
        header_size: (readout, phase encodes) that the header names; (0, 0) without one.
        kept: the slices of the file that are those of the volume, where some were left out; see without.
        spacing: mm from row to row, column to column, slice to slice of the target, 0 where no header tells.
    """

    path: Path
    shape: tuple[int, ...]
    axes: tuple[str, ...] = DEFAULT_AXES[3]
    target_size: tuple[int, int]
    acquisition: str
    patient_id: str
    columns: tuple[int, int]
    mask: Tensor | None = field(default=None, repr=False)
    target_key: str | None = None
    attributes: dict = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    header_size: tuple[int, int] = (0, 0)
    kept: tuple[int, ...] = ()
    spacing: tuple[float, ...] = (0.0, 0.0, 0.0)

    def __len__(self) -> int:
        return self.shape[0]

    def kspace(self, index: int) -> Tensor:
        """k-space of slice `index`: complex64, its axes without "slices", in the file's own units.

        Raises:
            BadInput: unreadable, NaN or infinite samples, or nothing but zeros.
        """
        kspace = torch.from_numpy(self._read("kspace", index, np.complex64))
        where = f"{self.path}: slice {index} of kspace"
        low, high = torch.view_as_real(kspace).aminmax()  # one pass; NaN comes through
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise BadInput(f"{where} holds NaN or infinite samples: repair or remove the file")
        if low == high == 0:
            raise BadInput(f"{where} is all zero: remove the slice or the file")
        return kspace

    def cropped(self, index: int) -> tuple[Tensor, Tensor]:
        """Slice `index` as training wants it: k-space without readout oversampling, and the columns acquired.

        Returns:
            complex64 (.., h, W), see crop_readout; bool (W,), see acquired.
        """
        kspace = self.kspace(index)
        return crop_readout(kspace, self.rows), self.acquired(kspace)

    @property
    def rows(self) -> int:
        """Of the k-space that `cropped` returns: all where single points are left out, which no crop can be made of."""
        return self.shape[-2] if self.mask is not None and self.mask.ndim == 2 else self.target_size[0]

    @property
    def has_reference(self) -> bool:
        """Whether there is an image to compare with: one in the file, or one of k-space that is fully sampled."""
        return self.mask is None or self.target_key is not None

    def without(self, slices: Sequence[int]) -> Volume:
        """The volume less some of its slices."""
        kept = tuple(number for number in range(len(self)) if number not in set(slices))
        numbers = tuple(self.kept[number] for number in kept) if self.kept else kept
        return dataclasses.replace(self, shape=(len(kept), *self.shape[1:]), kept=numbers)

    def target(self, index: int) -> Tensor:
        """The reference magnitude of slice `index`: float32 image_shape, in the units of the k-space.

        reconstruction_esc for single-coil files, reconstruction_rss for multi-coil ones (single-coil
        files carry an rss image too, but that came from all the coils and is not their target).
        """
        if self.target_key:
            target = torch.from_numpy(self._read(self.target_key, index, np.float32))
            low, high = target.aminmax()
            if not (torch.isfinite(low) and torch.isfinite(high)):
                where = f"{self.path}: slice {index} of {self.target_key}"
                raise BadInput(f"{where} holds NaN or infinite values: repair or remove the file")
            return target
        if self.mask is not None:
            raise BadInput(f"{self.path}: an undersampled test file has no target: score other files")
        return self.magnitude(center_crop(ifft2c(self.kspace(index)), self.target_size))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(.., h, w) of the target of one slice: the axes of the k-space without slices and coils."""
        return *_without_coils(self.shape, self.axes)[1:-2], *self.target_size

    def magnitude(self, image: Tensor) -> Tensor:
        """What is compared: the root-sum-of-squares of complex images (.., h, w) over coils, where there are any."""
        return _magnitude(image, self.axes)

    def sources(self) -> Sequence[Path]:
        """The files that hold the data; a cache is made anew when they change."""
        return [self.path]

    @property
    def affine(self) -> np.ndarray | None:
        """Where the target lies: float64 (4, 4), from its (column, row, slice, 1) to mm right, front and up, and 1.

        From the attribute `affine` of the file, 16 numbers; None without one. As in NIfTI (RAS+).
        """
        with contextlib.suppress(TypeError, ValueError):  # text, another number of numbers
            affine = np.asarray(self.attributes.get("affine"), np.float64).reshape(4, 4)
            return affine if np.isfinite(affine).all() and np.linalg.det(affine) else None
        return None

    def part(self, first: int, end: int) -> Volume:
        """Slices first .. end - 1 as a volume of their own, for kinds of files that can give it."""
        n = len(self)
        raise BadInput(f"{self.path}: one subject with {n} slices cannot be split: give train/ and val/")

    @functools.cached_property
    def maximum(self) -> float:
        """Largest value of the target volume, the unit of the losses; read from the attribute `max`."""
        with contextlib.suppress(TypeError, ValueError):  # text, a list
            stated = float(self.attributes.get("max", math.nan))
            if 0 < stated < math.inf:
                return stated
        return max(float(self.target(i).max()) for i in range(len(self)))

    def acquired(self, kspace: Tensor) -> Tensor:
        """Which phase-encode columns the scanner recorded: bool (W,).

        The header's limits, less empty columns at the edge of `kspace` ([coils,] H, W) unless the file is an
        undersampled one. Columns outside are zero in the file and in the reference; no mask counts them as sampled.
        """
        samples, (first, end) = torch.view_as_real(kspace), self.columns
        low, high = samples.aminmax()
        # An empty column of an undersampled file may just have been left out: none is trimmed.
        least = EMPTY_COLUMN * max(-low, high) if self.mask is None else -1
        while first < end and samples[..., first, :].abs().max() <= least:
            first += 1
        while first < end and samples[..., end - 1, :].abs().max() <= least:
            end -= 1
        column = torch.arange(self.shape[-1])
        return (column >= first) & (column < end)

    def noise(self) -> Tensor | None:
        """The noise scan of a multi-coil file: complex64 (coils, samples), recorded without a signal; None without one.

        Raises:
            BadInput: it does not fit the coils, or is unreadable.
        """
        with _reading(self.path, "noise"), h5py.File(self.path, "r") as file:
            data = _dataset(file, self.path, "noise", "c", "complex")
            coils = [n for n, axis in zip(self.shape, self.axes) if axis == "coils"]
            if data is not None and (data.ndim != 2 or [*data.shape[:1]] != coils):
                raise BadInput(f"{self.path}: noise has shape {data.shape} beside kspace {self.shape}: repair it")
            return None if data is None else torch.from_numpy(data[()].astype(np.complex64))

    def fingerprints(self) -> list[str]:
        """A hash of each slice's central readout line: equal for copies under whatever name; "" for an empty one.

        Only one line per slice is read, so that a folder of many gigabytes takes seconds.
        """
        return self._central_lines[0]

    def measured_columns(self) -> np.ndarray:
        """Bool (slices, W): where the same central lines hold data, in some coil and in every frame, echo .."""
        return self._central_lines[1]

    @functools.cached_property
    def _central_lines(self) -> tuple[list[str], np.ndarray]:
        lines = self._read("kspace", (..., self.shape[-2] // 2, slice(None)), np.complex64)
        lines = np.ascontiguousarray(lines) + np.float32(0)  # + 0: a negative zero is a zero
        lines = lines[list(self.kept)] if self.kept else lines
        marks = [hashlib.sha1(line.tobytes()).hexdigest() if line.any() else "" for line in lines]
        size = np.abs(lines)
        for place, axis in reversed([*enumerate(self.axes[:-2])][1:]):
            size = size.max(place) if axis == "coils" else size.min(place)
        return marks, size > EMPTY_COLUMN * size.max(-1, keepdims=True)

    def _read(self, key: str, index: Any, kind: type) -> np.ndarray:
        if isinstance(index, int) and not 0 <= index < len(self):
            raise BadInput(f"{self.path}: no slice {index}: choose one from 0 to {len(self) - 1}")
        if isinstance(index, int) and self.kept:
            index = self.kept[index]
        place = f"slice {index} of {key}" if isinstance(index, int) else key
        with _reading(self.path, place), np.errstate(over="ignore"):  # what is too large becomes infinite, and is told
            state = self.path.stat()
            plain = _plain_layout(self.path, key, state.st_size, state.st_mtime_ns, state.st_ino)
            if plain and isinstance(index, int):
                start, stored = plain
                record = np.fromfile(self.path, stored, 1, offset=start + index * stored.itemsize)[0]
                return record.astype(kind, copy=False)
            with h5py.File(self.path, "r") as file:
                values = file[key][index]
                if values.dtype.names:
                    real, imaginary = values.dtype.names
                    values = values[real].astype(np.float64) + 1j * values[imaginary]
                return values.astype(kind, copy=False)


def _magnitude(image: Tensor, axes: tuple[str, ...]) -> Tensor:
    return rss(image, axes.index("coils") - len(axes)) if "coils" in axes else image.abs()


def _without_coils(shape: Sequence[int], axes: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(n for n, axis in zip(shape, axes) if axis != "coils")


def _named_axes(path: str | Path, shape: Sequence[int], stated: str) -> tuple[str, ...]:
    """The axes that "slices, echoes, H, W" states, or DEFAULT_AXES. Raises BadInput where they do not fit the shape."""
    axes = tuple(stated.replace(",", " ").split()) if stated else DEFAULT_AXES.get(len(shape), ())
    fit = len(axes) == len(set(axes)) == len(shape) and axes[:1] + axes[-2:] == DEFAULT_AXES[3]
    if fit and shape[0] > MOST_SLICES:
        raise BadInput(f"{path}: {shape[0]} slices, at most {MOST_SLICES} are read: split the file")
    if not fit or 0 in shape:
        found = f"{tuple(shape)}{f', axes {stated[:80]!r}' if stated else ''}"
        raise BadInput(f"{path}: kspace has shape {found}: expected (slices, H, W) or (slices, coils, H, W)")
    return axes


@functools.lru_cache(4096)
def _plain_layout(path: Path, key: str, *_state: int) -> tuple[int, np.dtype] | None:
    """Where the slices of a data set begin in the file, and the type of one; None if they lie in chunks.

    Read from there they take a fifth of the time that HDF5 takes. A file in a new state is looked into again.
    """
    with h5py.File(path, "r") as file:
        data = file[key]
        start, stored = data.id.get_offset(), data.dtype
        plain = start is not None and stored.kind in "cfiu" and data.id.get_type() == h5py.h5t.py_create(stored)
        return (start, np.dtype((stored, data.shape[1:]))) if plain else None


def read_volume(path: str | Path) -> Volume:
    """Open an HDF5 file in fastMRI's layout: single-coil, multi-coil, or test file with a mask.

    Only headers are read here; slices come from Volume.kspace and Volume.target.

    Args:
        path: the file. Data set `kspace` (slices, H, W) or (slices, coils, H, W), complex (a compound of two numbers,
            (real, imag), is, too), or with other axes, named in the attribute `axes`: "slices, echoes, H, W"; optional
            `reconstruction_esc` or `reconstruction_rss`, `ismrmrd_header`, `mask` (W,) or (H, W); attributes
            `acquisition` and `patient_id`. Layout: Zbontar et al. 2018, arXiv 1811.08839.
    Raises:
        BadInput: missing, not HDF5, truncated, no k-space, wrong axes or type, a target or mask that
            does not fit.
    """
    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        raise BadInput(f"{path}: no such file: check the path")
    try:
        file = h5py.File(path, "r")
    except (OSError, UnicodeError) as error:
        raise why_unopened(path, error) from error
    with file, _reading(path, "the file"):
        data = _dataset(file, path, "kspace", "c", "complex")
        if data is None:
            found = ", ".join(list(file)[:9]) or "nothing"
            if any(isinstance(group, h5py.Group) and {"data", "xml"} <= set(group) for group in file.values()):
                raise BadInput(f"{path}: an ISMRMRD file: {CONVERT.format(path.parent)}")
            raise BadInput(f"{path}: no data set 'kspace' (found: {found}): data/README.md shows the layout")
        shape = data.shape
        if len(shape) == 5 and "maps" in file:
            raise BadInput(f"{path}: a file of SKM-TEA, in its own order of axes: {CONVERT.format(path.parent)}")
        attributes = {key: file.attrs[key] for key in file.attrs}
        axes = _named_axes(path, shape, _text(attributes.get("axes", "")))
        key: str | None = "reconstruction_rss" if "coils" in axes else "reconstruction_esc"
        target = _dataset(file, path, str(key), "fiu", "real")
        key = key if target is not None else None
        columns, recon, notes, stated = (0, shape[-1]), None, [], (0, 0)
        spacing: tuple[float, ...] = (0.0, 0.0, 0.0)
        header = _dataset(file, path, "ismrmrd_header", "SO", "text")
        if header is not None:
            content = header[()]
            if isinstance(content, np.ndarray) and content.size == 1:  # as ISMRMRD stores its own
                content = content.reshape(-1)[0]
            if not isinstance(content, bytes):
                raise BadInput(f"{path}: ismrmrd_header is no text: delete the data set or repair it")
            limits, stated, recon, told = parse_header(path, content)
            spacing = told if stated == shape[-2:] else spacing
            if stated[1] != shape[-1]:
                # Limits count columns of the matrix that the header means: here they would cut columns that hold data.
                notes.append(f"ismrmrd_header says {stated[1]} columns, the array has {shape[-1]}: the array counts")
            elif limits:
                columns = max(limits[0], 0), min(limits[1], shape[-1])
        if columns[0] >= columns[1]:
            raise BadInput(f"{path}: ismrmrd_header leaves no acquired columns: repair the header")
        if target is not None and target.shape[:-2] != _without_coils(shape, axes)[:-2]:
            raise BadInput(f"{path}: {key} is {target.shape} beside kspace {shape}: expected an image per slice")
        if recon and recon[1] > shape[-1]:  # an interpolated matrix (fastMRI's AXFLAIR_203): their references are W x W
            recon = (shape[-1], shape[-1])
        size = target.shape[-2:] if target is not None else (recon or shape[-2:])
        size = (min(size[0], shape[-2]), min(size[1], shape[-1]))
        if min(size) < 1:
            raise BadInput(f"{path}: ismrmrd_header or {key} asks for an image of {size[0]}x{size[1]}: repair it")
        if target is not None and size != target.shape[-2:]:
            raise BadInput(f"{path}: {key} {target.shape} is larger than kspace {shape}: repair it")
        mask, lines = None, _dataset(file, path, "mask", "biuf", "true or false")
        if lines is not None:
            mask = torch.from_numpy(np.asarray(lines[()]).astype(bool))
            if mask.numel() == shape[-1]:
                mask = mask.reshape(-1)
            elif mask.numel() == shape[-2] * shape[-1] and mask.squeeze().shape == torch.Size(shape[-2:]):
                mask = mask.squeeze()
            else:
                found = f"{len(mask)} columns" if mask.ndim == 1 else f"shape {tuple(mask.shape)}"
                raise BadInput(f"{path}: mask has {found}, kspace {shape[-1]}: repair it, as (W,) or (H, W)")
            if not mask.any():
                raise BadInput(f"{path}: mask keeps nothing: repair it")
    return Volume(
        path=path,
        shape=tuple(shape),
        axes=axes,
        target_size=size,
        acquisition=_text(attributes.get("acquisition", "unknown")),
        patient_id=_text(attributes.get("patient_id", subject_in_name(path))),
        columns=columns,
        mask=mask,
        target_key=key,
        attributes=attributes,
        notes=(*notes, *(_text(attributes["notes"])[:300].splitlines() if "notes" in attributes else ())),
        header_size=stated,
        spacing=spacing,
    )


def subject_in_name(path: Path) -> str:
    """Whose scan a file without the attribute `patient_id` is: M4Raw's names begin with it, others stand for it."""
    named = M4RAW.match(path.stem)
    return named["subject"] if named else path.stem


def _text(value: Any) -> str:
    """An attribute as text; HDF5 has text of fixed length as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>{height}</x><y>{width}</y><z>1</z></matrixSize></encodedSpace>
<reconSpace><matrixSize><x>{h}</x><y>{w}</y><z>1</z></matrixSize></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum>
<center>{center}</center></kspace_encoding_step_1></encodingLimits>
<trajectory>cartesian</trajectory></encoding></ismrmrdHeader>
"""


def write_volume(
    path: str | Path,
    kspace: Tensor | np.ndarray,
    *,
    target_size: Sequence[int],
    acquisition: str,
    patient_id: str,
    axes: Sequence[str] = (),
    mask: Tensor | np.ndarray | None = None,
    noise: Tensor | np.ndarray | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write k-space as a fastMRI file that read_volume and fastMRI's own readers open.

    Args:
        path: the file to write; replaced in one step.
        kspace: (slices, H, W) or (slices, coils, H, W) complex, or as `axes` says; fully sampled.
        target_size: (h, w) of the reference image, which is computed here: the magnitude (or the
            root-sum-of-squares) of the centre crop of the inverse transform.
        acquisition, patient_id: fastMRI's attributes of that name.
        axes: of the k-space where they are others, such as ("slices", "echoes", "H", "W"); see Volume.
        mask: bool (W,) or (H, W); given, a test file is written: masked k-space, the mask, no reference.
        noise: (coils, samples) complex, a noise scan that goes with multi-coil files; see Volume.noise.
        attributes: further attributes (numbers, strings).
    Raises:
        BadInput: k-space that is not complex, or not finite; axes, a mask or noise that does not fit it; what
            read_volume would not read; see replace_file.
    """
    if not (kspace.is_complex() if isinstance(kspace, Tensor) else np.asarray(kspace).dtype.kind == "c"):
        names = getattr(kspace.dtype, "names", None)
        mend = f"join its fields, kspace[{names[0]!r}] + 1j * kspace[{names[1]!r}]" if names else _join(kspace.shape)
        raise BadInput(f"{path}: k-space of {'a compound' if names else kspace.dtype} is not complex: {mend}")
    kspace = torch.as_tensor(kspace).to(torch.complex64)
    if mask is not None and tuple(mask.shape) not in (tuple(kspace.shape[-1:]), tuple(kspace.shape[-2:])):
        raise BadInput(f"{path}: mask has shape {tuple(mask.shape)}, kspace {tuple(kspace.shape)}: give (W,) or (H, W)")
    if mask is not None and not torch.as_tensor(mask).any():
        raise BadInput(f"{path}: mask keeps nothing: give one that is true where k-space was measured")
    axes = _named_axes(path, kspace.shape, ", ".join(axes))
    if math.prod(kspace.shape[1:]) > LARGEST_SLICE:
        raise BadInput(f"{path}: kspace {tuple(kspace.shape)}: a slice has more than {LARGEST_SLICE} samples, split it")
    if not torch.isfinite(torch.view_as_real(kspace).sum()) and not torch.isfinite(torch.view_as_real(kspace)).all():
        raise BadInput(f"{path}: k-space holds NaN or infinite samples: leave them out")
    if noise is not None and "coils" in axes:
        kind, coils = np.asarray(noise).dtype.kind, kspace.shape[axes.index("coils")]
        if kind != "c" or noise.ndim != 2 or len(noise) != coils:
            raise BadInput(f"{path}: noise {tuple(noise.shape)} beside {coils} coils: give complex (coils, samples)")
    target = _magnitude(center_crop(ifft2c(kspace), target_size), axes).numpy()
    (height, width), (h, w) = kspace.shape[-2:], target_size
    header = HEADER.format(height=height, width=width, h=h, w=w, last=width - 1, center=width // 2)

    def write(partial: Path) -> None:
        with h5py.File(partial, "w") as file:
            file["ismrmrd_header"] = header
            if mask is None:
                file["kspace"] = kspace.numpy()
                file["reconstruction_rss"] = target
                if "coils" not in axes:
                    file["reconstruction_esc"] = target
            else:
                file["kspace"] = (kspace * torch.as_tensor(mask) + 0.0).numpy()
                file["mask"] = np.asarray(mask)
            if noise is not None:
                file["noise"] = np.asarray(noise)
            if axes != DEFAULT_AXES.get(len(axes)):
                file.attrs["axes"] = ", ".join(axes)
            file.attrs["acquisition"] = acquisition
            file.attrs["patient_id"] = patient_id
            file.attrs["max"] = float(target.max())
            file.attrs["norm"] = float(np.linalg.norm(target))
            file.attrs.update(attributes or {})

    replace_file(path, write)


class Reader(NamedTuple):
    """One kind of file, an entry of READERS.

    Attributes:
        holds: whether the content of a folder is of this kind.
        read: all volumes of such a folder, sorted by name. Raises BadInput.
    """

    holds: Callable[[Path], bool]
    read: Callable[[Path], list[Volume]]


class BrokenFiles(BadInput):
    """Files of a folder that cannot be read, all of them in one line.

    Attributes:
        volumes: the others.
        reasons: a line for each broken one.
    """

    volumes: list[Volume]
    reasons: list[str]


def all_faults(reasons: Sequence[str]) -> BadInput:
    """Faults of several files as one fault that names them all."""
    if len(reasons) == 1:
        return BadInput(reasons[0])
    told = "; ".join(reasons[:5])
    others = [reason.partition(": ")[0].rpartition("/")[2] for reason in reasons[5:]]
    return BadInput(f"{len(reasons)} files: {told}" + (f"; and {', '.join(others)[:2000]}" if others else ""))


def hdf5_files(folder: Path) -> list[Path]:
    """The .h5 and .hdf5 files of a folder, or else of the folders in it, sorted; none that begin with a dot."""

    def inside(place: Path) -> list[Path]:
        found = (path for path in place.iterdir() if path.suffix.lower() in (".h5", ".hdf5"))
        return sorted(path for path in found if not path.name.startswith("."))

    if not folder.is_dir():
        return []
    below = (place for place in sorted(folder.iterdir()) if place.is_dir() and not place.name.startswith("."))
    return inside(folder) or [path for place in below for path in inside(place)]


def _read_hdf5(folder: Path) -> list[Volume]:
    files, volumes, reasons = hdf5_files(folder), list[Volume](), list[str]()
    for path in files:
        twin = next((other for other in files if other.name == path.name and other != path), None)
        if twin:
            raise BadInput(f"{path}: {twin} has the same name: rename one, or their reconstructions would collide")
        try:
            volumes.append(read_volume(path))
        except BadInput as error:
            reasons.append(str(error))
    if reasons:
        broken = BrokenFiles(str(all_faults(reasons)))
        broken.volumes, broken.reasons = volumes, reasons
        raise broken
    return volumes


# What a folder may hold, and who reads it; the reader that was added last is asked first.
READERS: dict[str, Reader] = {".h5 file": Reader(lambda folder: bool(hdf5_files(folder)), _read_hdf5)}


def read_folder(folder: str | Path, axes: Sequence[str] = (), broken: list[str] | None = None) -> list[Volume]:
    """All volumes of a folder, by the reader whose files it holds; see READERS.

    Args:
        folder: of files of one kind; .h5 files may lie one folder deeper.
        axes: that all volumes must have, such as ("slices", "H", "W"); (): any.
        broken: a list to which the reasons are added why files cannot be read, instead of raising.
    Raises:
        BadInput: the folder is missing or holds nothing that can be read; a file is bad, or its k-space has other axes.
    """
    folder = Path(folder)
    if not folder.exists():
        raise BadInput(f"{folder}: no such folder: data/README.md tells where each data set goes")
    if not folder.is_dir():
        raise BadInput(f"{folder}: a file: give the folder that holds it, {folder.parent}")
    reader = next((reader for reader in reversed(READERS.values()) if reader.holds(folder)), None)
    if reader is None:
        found = foreign_files(folder) or "data/README.md tells where each data set goes"
        raise BadInput(f"{folder}: no {', no '.join(READERS)} in it: {found}")
    try:
        volumes = reader.read(folder)
    except BrokenFiles as error:
        if broken is None:
            raise
        volumes, reasons = error.volumes, error.reasons
        broken += reasons
    for volume in volumes:
        if axes and volume.axes != tuple(axes):
            found = f"kspace is {volume.shape}, ({', '.join(volume.axes)})"
            mend = "choose other files"
            if set(volume.axes) - set(axes) == {"coils"}:
                command = f"python data/convert.py {folder}/*.h5 --single-coil --out data/mine"
                mend = f"combine the coils, {command}, or take --task multi_coil (notebook 15)"
            raise BadInput(f"{volume.path}: {found}, this task takes ({', '.join(axes)}): {mend}")
    return volumes


def read_train_and_val(
    folder: str | Path, axes: Sequence[str] | Callable[[Path], list[Volume]] = (), broken: list[str] | None = None
) -> tuple[list[Volume], list[Volume]]:
    """folder/train and folder/val; where there are none, a fifth of the folder's subjects, or of one subject's slices.

    One subject's slices are split in two blocks, a quarter of them for validation, and a gap between them is left
    out: neighbours are nearly copies. What is done is printed.

    Args:
        folder, axes, broken: see read_folder; or, in place of axes, a function that reads a folder.
    Returns:
        Training and validation volumes.
    Raises:
        BadInput: see read_folder; one subject whose slices cannot be split.
    """
    folder, read = Path(folder), axes if callable(axes) else functools.partial(read_folder, axes=axes, broken=broken)
    if (folder / "train").is_dir():
        return read(folder / "train"), read(folder / "val")
    volumes = read(folder)
    train, val = split_by_subject(volumes, 0.2)
    if train:
        print(f"{folder}: no train/ and val/ in it: {len({v.patient_id for v in val})} of its subjects validate")
        return train, val
    val = []
    for volume in volumes:
        n = len(volume)
        gap, held = max(3, n // 10), n // 4
        train.append(volume.part(0, n - gap - held))
        val.append(volume.part(n - held, n))
        print(
            f"{folder}: one subject: slices 0 to {n - gap - held - 1} train, {n - held} to {n - 1} validate, {gap} "
            "between them are left out: the figures hold for this head, not for others"
        )
    return train, val


def split_by_subject(volumes: Sequence[Volume], val_share: float, seed: int = 0) -> tuple[list, list]:
    """Split volumes into (train, val) so that no subject is in both; val_share of the subjects."""
    subjects = sorted({v.patient_id for v in volumes})
    order = np.random.RandomState(seed).permutation(len(subjects))
    chosen = {subjects[i] for i in order[: max(1, round(val_share * len(subjects)))]}
    train = [v for v in volumes if v.patient_id not in chosen]
    return train, [v for v in volumes if v.patient_id in chosen]
