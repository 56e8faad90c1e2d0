"""Raw data as the scanner recorded them, line by line: ISMRMRD (MRD) files and Siemens twix files."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from mri_parts.basics import BadInput
from mri_parts.checks import lacks_corners
from mri_parts.formats import FORMATS, Format, Scan, _array_scan, _check_size, _holds_hdf5, _suffix
from mri_parts.fourier import _centred, crop_readout
from mri_parts.hdf5 import LONGEST_HEADER, _dataset
from mri_parts.images import TURN, _subject

# Bits of an acquisition's flags (numbered from 1) that tell what is no part of the image.
NOISE, REVERSED = 19, 22
OTHERS = {"calibration": 20, "navigator": 23, "phase correction": 24, "feedback": 26, "dummy": 27, "real-time": 28}
OTHERS |= {"surface coil": 29, "phase reference": 30, "phase stabilisation": 31}

BLOCK = 256  # lines that are read at a time


# The counters of a line, and the axes that they become.
COUNTERS = {"slice": "slices", "contrast": "echoes", "phase": "frames", "repetition": "repetitions", "set": "sets"}


class _Header:
    """The XML text of an ISMRMRD file."""

    def __init__(self, path: Path, content: Any) -> None:
        text = content.decode() if isinstance(content, bytes) else str(content)
        if "<!DOCTYPE" in text or len(text) > LONGEST_HEADER:  # entities can grow without bounds, or name other files
            raise BadInput(f"{path}: the ISMRMRD header is too long or declares entities: export the file again")
        try:
            self.path, self.root = path, ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise BadInput(f"{path}: the ISMRMRD header is unreadable ({error}): export the file again") from error

    def text(self, place: str) -> str:
        """What stands at a place such as "encoding/trajectory", in any name space; "" if there is none."""
        return (self.root.findtext("/".join("{*}" + step for step in place.split("/"))) or "").strip()

    def number(self, place: str, otherwise: float = math.nan) -> float:
        """The number at a place, which may be left out only where there is an `otherwise`."""
        text = self.text(place)
        value = float(text) if text else otherwise
        if not math.isfinite(value) or not 0 <= value < 2**16:
            raise BadInput(f"{self.path}: the ISMRMRD header has {place} = {text[:40]!r}: export the file again")
        return value

    def field_of_view(self, axis: str, samples: int) -> int:
        """Samples along x, y or z that are kept where more than the wanted field of view was encoded."""
        encoded, wanted = (self.number(f"encoding/{s}Space/fieldOfView_mm/{axis}", 0) for s in ("encoded", "recon"))
        if encoded and wanted:
            kept = round(samples * wanted / encoded)
        else:
            kept = int(self.number(f"encoding/reconSpace/matrixSize/{axis}", samples))
        return min(max(kept, 1), samples)


def read_mrd(path: Path, axes: Sequence[str] = (), variable: str = "") -> Scan:
    """An ISMRMRD file (Inati et al. 2017, MRM 77(1)) of a Cartesian scan; h5py reads it, no other package is needed.

    Noise scans go to Scan.noise, lines of other purposes are left out, each line goes where its centre sample and the
    limits of the header put it, averages are averaged, what was encoded beyond the wanted field of view is cut off
    (along the readout and the partitions here, along the phase encode by target_size). The patient becomes a label.

    Args:
        path: the file.
        axes, variable: not needed, the file tells.
    Returns:
        the scan, with axes "slices", "echoes", "frames", "repetitions", "sets", "coils", those that are longer than 1.
    Raises:
        BadInput: no Cartesian sampling; lines outside the matrix; coils that change; lines left out in no regular way.
    """
    with h5py.File(path, "r") as file:
        group = file["dataset"]
        xml, data = _dataset(group, path, "xml", "SO", "text"), _dataset(group, path, "data", "V", "a table of lines")
        if xml is None or data is None:
            raise BadInput(f"{path}: no header or no lines in its group 'dataset': export it from the scanner again")
        header = _Header(path, xml[()] if xml.ndim == 0 else xml[0])
        trajectory = header.text("encoding/trajectory").lower()
        if trajectory != "cartesian":
            raise BadInput(f"{path}: trajectory {trajectory[:40]!r}: only Cartesian scans are read, grid it first")
        _check_size(path, data.shape, itemsize=data.dtype.itemsize)
        if h5py.check_vlen_dtype(data.dtype["data"]) != np.float32:
            raise BadInput(f"{path}: its lines are no float32 numbers: export it again")
        heads = data.fields("head")[()]
        flags = heads["flags"]
        is_noise = _flag(flags, NOISE)
        left_out = {name: int(_flag(flags, bit).sum()) for name, bit in OTHERS.items()}
        other = np.any([_flag(flags, bit) for bit in OTHERS.values()], axis=0) | (heads["encoding_space_ref"] != 0)
        imaging = np.flatnonzero(~is_noise & ~other)
        coils = np.unique(heads["active_channels"][imaging])
        if len(coils) != 1 or not coils[0]:
            raise BadInput(
                f"{path}: {len(imaging)} imaging lines of {coils.tolist()[:9]} coils: expected a fixed number"
            )
        samples = heads["number_of_samples"].astype(int)
        _check_size(path, (int((samples * heads["active_channels"].astype(int)).sum()),))
        kspace, lines = _place(path, header, data, heads, imaging, int(coils[0]))
        noise = None
        if coils[0] > 1 and (scans := np.flatnonzero(is_noise & (heads["active_channels"] == coils[0]))).size:
            noise = torch.from_numpy(np.concatenate([*_lines(data, heads, scans)], axis=1))
    notes = [f"{n} {name} lines left out" for name, n in left_out.items() if n]
    if other_space := int((~is_noise & (heads["encoding_space_ref"] != 0)).sum()):
        notes.append(f"{other_space} lines of another encoding space left out")
    notes += [f"{len(scans)} noise scans kept for prewhitening"] if noise is not None else []
    if heads["idx"]["average"][imaging].any():
        notes.append(f"{int(heads['idx']['average'][imaging].max()) + 1} averages averaged")
    measured = torch.from_numpy(lines > 0)
    mask = _sampled(path, measured, notes)
    # (slices, echoes, frames, repetitions, sets, coils, z, x, y)
    points = mask is not None and mask.ndim == 2
    across, down = ("x", "z") if points else ("z", "x")  # of points in z and y images can be made for each x only
    kspace = kspace.transpose(-3, -2) if points else kspace
    if kspace.shape[-3] > 1:
        kspace = _centred(torch.fft.ifftn, kspace, (-3,))
        depth = header.field_of_view(across, kspace.shape[-3])
        what = "samples along the readout" if points else "partitions"
        notes.append(f"3-D: {kspace.shape[-3]} {what} transformed to slices, {depth} kept")
        first = (kspace.shape[-3] - depth) // 2
        kspace = kspace[..., first : first + depth, :, :]
    kspace = kspace.movedim(-3, 1).flatten(0, 1)
    height, width = kspace.shape[-2:]
    h, w = (height if points else header.field_of_view(down, height)), header.field_of_view("y", width)
    if h < height:
        notes.append(f"readout oversampling removed: {height} -> {h} rows")
        kspace = crop_readout(kspace, h)
    names = [*COUNTERS.values(), "coils", "H", "W"]
    kept = [i for i, name in enumerate(names) if name in ("slices", "H", "W") or kspace.shape[i] > 1]
    order = tuple(names[i] for i in kept)
    person = header.text("subjectInformation/patientID"), header.text("subjectInformation/patientName")
    known = any(c.isalnum() for text in person for c in text)
    if not known:
        notes.append("no patient in the header: the file counts as a subject")
    echo = header.text("sequenceParameters/TE")[:9]
    return Scan(
        kspace=kspace.reshape([kspace.shape[i] for i in kept]).contiguous(),
        axes=order,
        target_size=(h, w),
        acquisition=f"TE{float(echo):g}" if echo.replace(".", "", 1).isdecimal() else "unknown",
        patient_id=_subject(person) if known else path.name.partition(".")[0],
        notes=tuple(notes),
        noise=noise if "coils" in order else None,
        mask=mask,
        affine=_position(header, heads[imaging], kspace.shape[0], (h, w), points),
    )


def _position(
    header: _Header, heads: np.ndarray, slices: int, size: tuple[int, int], points: bool = False
) -> np.ndarray | None:
    """The affine of the images (see Volume.affine), from the first line of each slice; None where it is not told.

    The position is that of the middle of the slice or slab; indices grow along the directions of the header. With
    `points`, rows are partitions and slices lie across the readout.
    """
    if not {"position", "read_dir", "phase_dir", "slice_dir"} <= set(heads.dtype.names or ()):
        return None
    encoded = [header.number(f"encoding/encodedSpace/fieldOfView_mm/{axis}", 0) for axis in "xyz"]
    matrix = [header.number(f"encoding/encodedSpace/matrixSize/{axis}", 1) for axis in "xyz"]
    dx, dy, dz = (fov / n for fov, n in zip(encoded, matrix))
    _, first = np.unique(heads["idx"]["slice"], return_index=True)
    read, phase, across = (heads[f"{name}_dir"][first[0]].astype(float) for name in ("read", "phase", "slice"))
    if points:
        read, across, dx, dz = across, read, dz, dx
    centres = heads["position"][first].astype(float)
    if matrix[2] > 1:
        if len(first) > 1:  # several slabs
            return None
        step = across * dz
        centre = centres[0] - step * (slices // 2)
    else:
        step = (centres[-1] - centres[0]) / (len(first) - 1) if len(first) > 1 else across * dz
        centre = centres[0]
    (h, w), affine = size, np.eye(4)
    start = centre - phase * dy * (w // 2) - read * dx * (h // 2)
    affine[:3] = np.column_stack([phase * dy, read * dx, step, start])
    return TURN @ affine if np.isfinite(affine).all() and abs(np.linalg.det(affine)) > 0 else None


def _flag(flags: np.ndarray, bit: int) -> np.ndarray:
    is_set: np.ndarray = (flags >> np.uint64(bit - 1)) & np.uint64(1) > 0
    return is_set


def _lines(data: Any, heads: np.ndarray, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """The samples of the wanted lines, complex64 (coils, samples), in the order of the file.

    Read in blocks, which takes a thirtieth of the time that line by line takes.
    """
    stored = data.fields("data")
    for first in range(0, len(heads), BLOCK):
        here = wanted[(wanted >= first) & (wanted < first + BLOCK)]
        block = stored[first : first + BLOCK] if here.size else ()
        for number in here:
            shape = int(heads["active_channels"][number]), int(heads["number_of_samples"][number])
            yield block[number - first].view(np.complex64).reshape(shape)


def _place(
    path: Path, header: _Header, data: Any, heads: np.ndarray, imaging: np.ndarray, coils: int
) -> tuple[Tensor, np.ndarray]:
    """The lines in the encoded matrix: the centre of each at N // 2; how often each was measured.

    Returns:
        complex64 (slices, echoes, frames, repetitions, sets, coils, z, x, y), and counts without coils and x.
    """
    nx, ny, nz = (int(header.number(f"encoding/encodedSpace/matrixSize/{axis}")) for axis in "xyz")
    limits = "encoding/encodingLimits/kspace_encoding_step_"
    centre = [int(header.number(f"{limits}{i}/center", n // 2)) for i, n in ((1, ny), (2, nz))]
    idx = heads["idx"][imaging]
    ky = idx["kspace_encode_step_1"].astype(int) - centre[0] + ny // 2
    kz = idx["kspace_encode_step_2"].astype(int) - centre[1] + nz // 2 if nz > 1 else np.zeros(len(idx), int)
    for name, k, n in (("1", ky, ny), ("2", kz, nz)):
        if (outside := (k < 0) | (k >= n)).any():
            number = int(idx[f"kspace_encode_step_{name}"][outside][0])
            raise BadInput(f"{path}: line {number} of step {name} lies outside the matrix of {n}: the header is wrong")
    counters = [np.unique(idx[name], return_inverse=True) for name in COUNTERS]
    places = [place for _, place in counters]
    shape = [len(values) for values, _ in counters]
    measured = int(heads["number_of_samples"][imaging].astype(int).sum()) * coils
    whole = math.prod(shape) * coils * nx * ny * nz
    if not whole or whole > 64 * measured:  # partial Fourier and undersampling leave out less
        raise BadInput(f"{path}: a matrix of {nx}x{ny}x{nz} for {measured} samples: the header is wrong, export again")
    _check_size(path, (whole,), itemsize=0)
    kspace = np.zeros((*shape, coils, nz, nx, ny), np.complex64)
    lines = np.zeros((*shape, nz, ny), int)
    turned = _flag(heads["flags"][imaging], REVERSED)
    for i, (number, line) in enumerate(zip(imaging, _lines(data, heads, imaging))):
        head: Any = heads[number]
        start = int(head["center_sample"])
        pre, post = int(head["discard_pre"]), int(head["discard_post"])
        if turned[i]:
            line, start, pre, post = line[:, ::-1], line.shape[1] - 1 - start, post, pre
        first, end = nx // 2 - start + pre, nx // 2 - start + line.shape[1] - post
        if first < 0 or end > nx or first >= end:
            raise BadInput(f"{path}: line {int(number)} covers {first} to {end} of {nx} samples: the header is wrong")
        where = tuple(int(place[i]) for place in places)
        kspace[(*where, slice(None), kz[i], slice(first, end), ky[i])] += line[:, pre : line.shape[1] - post]
        lines[(*where, kz[i], ky[i])] += 1
    kspace /= np.maximum(lines, 1)[:, :, :, :, :, None, :, None, :]
    return torch.from_numpy(kspace), lines


def _sampled(path: Path, measured: Tensor, notes: list[str]) -> Tensor | None:
    """The columns, or the points of a 3-D scan, that were measured of an undersampled one; None for a full one.

    A full one may lack columns at the edges, and the corners of its 3-D k-space.

    Args:
        measured: bool (.., z, y).
        notes: gets a line about what is missing.
    Returns:
        bool (y,) or (z, y), or None.
    Raises:
        BadInput: other columns or points in each image.
    """
    width, share = measured.shape[-1], float(measured.float().mean())
    if measured.shape[-2] > 1:
        images = measured.flatten(0, -3)
        always = images.all(0)
        rows, columns = (always.any(axis).nonzero().flatten().tolist() or [0] for axis in (1, 0))
        if lacks_corners(~always[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]):
            notes.extend([f"{share:.0%} of the lines measured, the others are zero"] if share < 1 else [])
            return None
        if (images != always).any():
            raise BadInput(f"{path}: undersampled ({share:.0%}), with other lines in each image: give a full scan")
        notes.append(f"undersampled ({share:.0%} of the lines), so without a reference: a test file")
        return always
    flat = measured.reshape(-1, width)
    filled = torch.nonzero(flat.any(0))[:, 0]
    first, end = int(filled[0]), int(filled[-1]) + 1
    if flat[:, first:end].all():
        if end - first < width:
            notes.append(f"partial Fourier: columns {first} to {end - 1} of {width} measured, the others are zero")
        return None
    if (flat != flat[0]).any():
        raise BadInput(f"{path}: undersampled ({share:.0%}), with other lines in each image: give a full scan")
    notes.append(f"undersampled ({share:.0%} of the columns), so without a reference: a test file")
    return flat[0]


FORMATS["ISMRMRD"] = Format(lambda path: _holds_hdf5(path, "dataset", ""), read_mrd)


def _read_twix(path: Path, axes: Sequence[str], variable: str) -> Scan:
    """A Siemens file (VB, VD and later) by pymapvbvd: oversampling removed, averages averaged, lines where they belong.

    Tried on files that were written from the description of the format; no scanner's own file may be shared.
    """
    if importlib.util.find_spec("mapvbvd") is None:
        raise BadInput(f"{path}: reading Siemens twix needs pymapvbvd: pip install pymapvbvd")
    import mapvbvd

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # it shows progress
        warnings.simplefilter("error", UserWarning)  # of a file that ends too early, of which it would take the rest
        read: Any = mapvbvd.mapVBVD(str(path), quiet=True)
        image = (read[-1] if isinstance(read, list) else read).image  # the scan comes after its adjustments
        whole, measured = math.prod(int(n) for n in image.fullSize), int(image.NAcq * image.NCol * image.NCha)
        if not measured or whole > 64 * measured:  # partial Fourier and undersampling leave out less
            raise BadInput(f"{path}: a matrix of {whole} for {measured} samples: a line is damaged, export again")
        _check_size(path, (measured,))
        image.flagRemoveOS, image.flagDoAverage, image.flagIgnoreSeg, image.squeeze = True, True, True, False
        array = image[""]  # columns, coils, lines, partitions, slices, averages, phases, echoes, repetitions, sets, ..
    centre, lines = int(image.centerLin[0]), array.shape[2]
    width = 2 * max(centre, lines - centre)
    array = np.pad(array, [(width // 2 - centre if i == 2 else 0, 0) for i in range(array.ndim)])
    array = np.pad(array, [(0, width - array.shape[2] if i == 2 else 0) for i in range(array.ndim)])
    names = "H, coils, W, partitions, slices, averages, frames, echoes, repetitions, sets"
    array = array.reshape(*array.shape[:10], -1)[..., 0]
    notes = ["Siemens twix: tried on files made up for that, look at the images"]
    filled = torch.from_numpy(array.any(axis=(0, 1)))  # lines, partitions, ..
    mask = _sampled(path, filled.movedim((1, 0), (-2, -1)), notes)
    if mask is not None and mask.ndim == 2:  # of points in two directions images can be made across the readout only
        names = names.replace("H", "across").replace("partitions", "H").replace("across", "partitions")
    return _array_scan(path, array, axes, names, notes=tuple(notes), mask=mask)


FORMATS["Siemens twix"] = Format(_suffix(".dat"), _read_twix)
