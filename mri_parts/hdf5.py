"""HDF5 without surprises; what a file is that cannot be read as k-space, and why; what the header of a scan says."""

from __future__ import annotations

import contextlib
import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py

from mri_parts.basics import BadInput

# Samples of a slice, all coils together: 32 coils of 640 x 512 are ten million. A file of a few bytes can
# declare any shape, and reading it would fill the memory.
LARGEST_SLICE = 2**24


LONGEST_HEADER = 2**20  # bytes


# Names of the parts of a complex number that is stored as a compound; h5py knows (r, i) of single precision itself.
PAIRS = (("real", "imag"), ("r", "i"), ("re", "im"), ("Re", "Im"), ("real", "imaginary"))


IMAGES = "images without the phase of a scan: give raw k-space, or export DICOM, which is read as images"
WRITE = "write it with mri.write_volume as .h5"

# What the first bytes of a file say, and its suffix where they say nothing: name, and how it becomes .h5.
SIGNATURES: list[tuple[int, bytes, str, str]] = [
    (0, b"MATLAB 5.0", "a MATLAB file", f"open it with scipy.io.loadmat, {WRITE}"),
    (0, b"\x93NUMPY", "a numpy array", f"open it with numpy.load, {WRITE}"),
    (128, b"DICM", "a DICOM image", "give a folder of such images only"),
    (344, b"n+1\0", "NIfTI", IMAGES),
    (344, b"ni1\0", "NIfTI", IMAGES),
    (0, b"PK\3\4", "a zip archive (or .npz)", f"unpack it; numpy.load opens an .npz: {WRITE}"),
    (0, b"\x1f\x8b", "compressed by gzip", "unpack it first"),
    (0, b"\x89PNG", "a PNG image", "give a folder of such images only"),
    (0, b"\xff\xd8\xff", "a JPEG image", "give a folder of such images only"),
    (0, b"%PDF", "a PDF document", "remove it"),
    (0, b"\0\5\x16\7", "what macOS keeps beside a file on foreign disks", "remove it"),
    (0, b"CDF", "NetCDF", f"open it with xarray, {WRITE}"),
    (0, b"<!DOCTYPE", "a web page, perhaps an error that was downloaded", "download the file again"),
    (0, b"<html", "a web page, perhaps an error that was downloaded", "download the file again"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "git lfs pull"),
]
SUFFIXES: dict[str, tuple[str, str]] = {
    ".cfl": ("BART", f"bart.cfl.readcfl opens it: {WRITE}"),
    ".nii": ("NIfTI", IMAGES),
    ".nii.gz": ("NIfTI", IMAGES),
    ".mat": ("MATLAB", f"open it with scipy.io.loadmat (h5py from version 7.3 on), {WRITE}"),
    ".dat": ("Siemens raw data (twix)", f"open it with mapVBVD or twixtools, {WRITE}"),
    ".mrd": ("ISMRMRD", f"sort its lines into k-space (package ismrmrd), {WRITE}"),
    ".npy": ("a numpy array", f"open it with numpy.load, {WRITE}"),
    ".npz": ("numpy arrays", f"open it with numpy.load, {WRITE}"),
    ".data": ("Philips raw data", f"convert it with philips_to_ismrmrd, {WRITE}"),
    ".raw": ("raw data", f"convert it with the vendor's program, {WRITE}"),
    ".7": ("GE raw data (P-file)", f"convert it with ge_to_ismrmrd, {WRITE}"),
    ".mha": ("MetaImage", IMAGES),
    ".nrrd": ("NRRD", IMAGES),
    ".dcm": ("DICOM", "give a folder of such images only"),
    ".ima": ("DICOM", "give a folder of such images only"),
    ".zip": ("a zip archive", "unpack it first"),
    ".tar": ("an archive", "unpack it first"),
    ".gz": ("compressed by gzip", "unpack it first"),
    ".xz": ("compressed by xz", "unpack it first"),
    ".partial": ("a file that was not written to its end", "copy or download it again"),
}


def what_is(path: Path) -> tuple[str, str]:
    """(name, how it becomes .h5) of the format of a file, by its first bytes, else its name; ("", "") if unknown."""
    try:
        with open(path, "rb") as file:
            first = file.read(2048)
    except OSError:
        first = b""
    names = [suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)]
    named = SUFFIXES[max(names, key=len)] if names else ("", "")
    # Of what is compressed the name says more.
    found = [(name, mend) for start, mark, name, mend in SIGNATURES if first[start : start + len(mark)] == mark]
    return named if named[0] and (not found or first[:2] == b"\x1f\x8b") else (found[0] if found else named)


def why_unopened(path: Path, error: Exception) -> BadInput:
    """Why HDF5 could not open an existing file, in one line with the mend: each cause has its own sentence."""
    reason = f"{error}".splitlines()[0][:200] if f"{error}" else type(error).__name__
    if isinstance(error, BlockingIOError) or "unable to lock file" in reason:
        return BadInput(
            f"{path}: locked, another program has it open for writing: wait until that has ended "
            "(or set HDF5_USE_FILE_LOCKING=FALSE where the disk knows no locks)"
        )
    if isinstance(error, PermissionError) or not os.access(path, os.R_OK):
        return BadInput(f"{path}: no permission to read it: chmod u+r, or ask its owner")
    try:
        with open(path, "rb") as file:
            first = file.read(2048)
    except OSError as failed:
        return BadInput(f"{path}: cannot be read ({os.strerror(failed.errno or 0)}): is the disk still there?")
    if not first:
        return BadInput(f"{path}: not an HDF5 file, it is empty (0 bytes): copy or download it again")
    if b"\x89HDF\r\n\x1a\n" in (first[:8], first[512:520], first[1024:1032]):
        return BadInput(f"{path}: a damaged or truncated HDF5 file: copy or download it again")
    name, mend = what_is(path)
    if name:
        return BadInput(f"{path}: not an HDF5 file but {name}: {mend}")
    return BadInput(f"{path}: not an HDF5 file, or one whose beginning is lost: copy or download it again")


def foreign_files(folder: Path) -> str:
    """What a folder without readable files holds, and how that becomes .h5; "" where nothing in it is known."""
    kinds: dict[tuple[str, str], str] = {}
    for path in sorted(folder.iterdir())[:1000]:
        if path.is_file() and not path.name.startswith(".") and (found := what_is(path))[0]:
            kinds.setdefault(found, path.name)
    return "; ".join(f"{name} is {kind}: {mend}" for (kind, mend), name in list(kinds.items())[:3])


class Header(NamedTuple):
    """What the ISMRMRD header of a fastMRI file says.

    Attributes:
        columns: (first, last + 1) phase-encode columns that were acquired; None where it has no limits.
        encoded: (readout, phase encodes) of k-space.
        recon: (h, w) of the image; None where it says nothing.
        spacing: mm from row to row, column to column, slice to slice; 0 where it says nothing.
    """

    columns: tuple[int, int] | None
    encoded: tuple[int, int]
    recon: tuple[int, int] | None
    spacing: tuple[float, ...]


def parse_header(path: Path, header: bytes) -> Header:
    """Read an ISMRMRD header. Limits and the matrix of the image are optional; whole numbers may be written 128.0.

    Raises:
        BadInput: no XML, no encoded matrix, numbers that are none.
    """
    try:
        text = header.decode()
        if "<!DOCTYPE" in text or len(text) > LONGEST_HEADER:  # entities can grow without bounds, or name other files
            raise ValueError("it is too long or declares entities")
        root = ElementTree.fromstring(text)

        def number(place: str) -> int | None:
            found = root.find("/".join("{*}" + step for step in place.split("/")))  # in any name space
            if found is None or not (found.text or "").strip():
                return None
            value = float(found.text or "")
            if value != int(value):
                raise ValueError(f"{place} is {value}")
            return int(value)

        def matrix(space: str) -> tuple[int, int] | None:
            x, y = (number(f"encoding/{space}/matrixSize/{axis}") for axis in "xy")
            return None if x is None or y is None else (x, y)

        def spacing(axis: str) -> float:
            space = "{*}encoding/{*}encodedSpace/{*}"
            side, samples = (root.findtext(f"{space}{what}/{{*}}{axis}") for what in ("fieldOfView_mm", "matrixSize"))
            with contextlib.suppress(ValueError, ZeroDivisionError):  # a place that nobody relies on refuses no file
                mm = float(side or 0) / float(samples or 0)
                return mm if 0 < mm < 1000 else 0.0
            return 0.0

        encoded = matrix("encodedSpace")
        if encoded is None:
            raise ValueError("no encoding/encodedSpace/matrixSize")
        limits = "encoding/encodingLimits/kspace_encoding_step_1/"
        center, last = number(limits + "center"), number(limits + "maximum")
        columns = None
        if center is not None and last is not None:
            first = encoded[1] // 2 - center
            columns = (first, first + last + 1)
        return Header(columns, encoded, matrix("reconSpace"), tuple(map(spacing, "xyz")))
    except (ElementTree.ParseError, OverflowError, ValueError) as error:
        raise BadInput(f"{path}: ismrmrd_header is unreadable ({error}): delete the data set or repair it") from error


@contextlib.contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Tell whatever HDF5 finds in damaged bytes in one line."""
    try:
        yield
    except BadInput:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, OverflowError, NotImplementedError) as error:
        if isinstance(error, (BlockingIOError, PermissionError)):
            raise why_unopened(path, error) from error
        reason = f"{error}".splitlines()[0][:300] if f"{error}" else type(error).__name__
        raise BadInput(f"{path}: cannot read {what} ({reason}): the file is damaged, copy it again") from error


def _dataset(
    file: h5py.File, path: Path, key: str, kinds: str, expected: str, largest: int = LARGEST_SLICE
) -> h5py.Dataset | None:
    """A data set of the file itself that can be read within the memory; None if there is none.

    `kinds` are numpy's letters of the kinds of numbers that it may hold, `expected` says the same in words; `largest`
    counts the samples of a slice, or of a chunk.
    """
    link = file.get(key, getlink=True)
    if link is None:
        return None
    data = file.get(key) if isinstance(link, h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset):
        found = "a link to somewhere else" if data is None else f"a {type(data).__name__.lower()}"
        raise BadInput(f"{path}: no data set {key!r} but {found}: store the data in the file itself")
    if data.external or data.is_virtual:
        raise BadInput(f"{path}: {key} lies in other files: store the data in the file itself")
    pairs = data.dtype.names in PAIRS and all(data.dtype[n].kind in "fiu" and not data.dtype[n].shape for n in (0, 1))
    if (data.dtype.kind not in kinds and not (pairs and "c" in kinds)) or data.shape is None:
        if data.shape is not None and "c" in kinds and data.dtype.kind in "fiu":
            reads = ", or let data/convert.py read it" if data.ndim == 4 and data.shape[-1] % 2 == 0 else ""
            raise BadInput(f"{path}: {key} is {data.dtype} {data.shape}, not {expected}: {_join(data.shape)}{reads}")
        raise BadInput(f"{path}: {key} is {data.dtype}, not {expected}: repair or convert the file")
    shapes = [data.shape[1:] if data.ndim > 2 else data.shape, data.chunks or (1,)]
    if max(math.prod(shape) for shape in shapes) > largest or data.dtype.itemsize > LONGEST_HEADER:
        size = f"shape {data.shape} of {data.dtype}, in chunks {data.chunks}"
        raise BadInput(f"{path}: {key} has {size}: more than {largest} samples at a time are not read, split it")
    plist = data.id.get_create_plist()
    for code, _, _, name in (plist.get_filter(i) for i in range(plist.get_nfilters())):
        if not h5py.h5z.filter_avail(code):
            lacking = f"{code} {name.decode(errors='replace')!r}, which is not installed"
            raise BadInput(f"{path}: {key} is compressed with filter {lacking}: store it with gzip or uncompressed")
    return data


def _join(shape: Sequence[int]) -> str:
    """How real numbers of this shape become complex, if an axis may hold the real and the imaginary part."""
    pairs = [axis for axis, n in enumerate(shape) if n == 2 and axis > 0]
    if len(shape) > 3 and pairs:
        axis = pairs[-1]
        parts = [", ".join([*":" * axis, part, *":" * (len(shape) - axis - 1)]) for part in "01"]
        return f"axis {axis} may hold real and imaginary parts, store kspace[{parts[0]}] + 1j * kspace[{parts[1]}]"
    if len(shape) == 4 and shape[-1] % 2 == 0:
        return (
            f"the last axis may hold real and imaginary parts of {shape[-1] // 2} coils in turn, "
            "store numpy.moveaxis(kspace[..., 0::2] + 1j * kspace[..., 1::2], -1, 1)"
        )
    return "repair or convert it: of magnitudes alone k-space cannot be made"
