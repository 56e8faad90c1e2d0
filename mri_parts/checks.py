"""What is suspicious about files: one look at each, before anything is trained on them or scored with them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mri_parts.basics import BadInput, choose
from mri_parts.fourier import center_crop, ifft2c, rss
from mri_parts.masks import MASKS
from mri_parts.processes import gather, own_share
from mri_parts.volumes import EMPTY_COLUMN, Volume, all_faults


def find_leaks(train: Sequence[Volume], val: Sequence[Volume]) -> list[str]:
    """Validation volumes that are in the training data too, one line each, whatever they are called.

    Found by file name, by subject, and by the data themselves (Volume.fingerprints).
    """
    files = {volume.path.name for volume in train}
    subjects = {volume.patient_id: volume.path for volume in train}
    copies = {mark: (volume.path, s) for volume in train for s, mark in enumerate(volume.fingerprints()) if mark}
    leaks = []
    for volume in val:
        same = [(s, *copies[mark]) for s, mark in enumerate(volume.fingerprints()) if mark in copies]
        if volume.path.name in files:
            leaks.append(f"{volume.path}: a file of this name is in the training data too: keep it on one side")
        elif volume.patient_id in subjects:
            leaks.append(
                f"{volume.path}: subject {volume.patient_id!r} is in the training data too "
                f"({subjects[volume.patient_id].name}): split by subject, or the score measures memory"
            )
        elif same:
            leaks.append(
                f"{volume.path}: slice {same[0][0]} is also slice {same[0][2]} of {same[0][1].name} in the training "
                f"data ({len(same)} such slices): the same scan under another name, keep it on one side"
            )
    return leaks


def check_split(train: Sequence[Volume], val: Sequence[Volume], references: bool = True) -> None:
    """Raise BadInput if a subject, a file name or a slice is on both sides, or if a file has no reference.

    references: whether the training files too need one.
    """
    for volumes, mend in ((train if references else [], ", or train with --loss ssdu"), (val, "")):
        for volume in volumes:
            if not volume.has_reference:
                raise BadInput(f"{volume.path}: a test file without reference: take it out of train/ and val/{mend}")
    leaks = find_leaks(train, val)
    if leaks:
        raise BadInput(leaks[0] + (f" (and {len(leaks) - 1} more files)" if leaks[1:] else ""))


def find_centre(kspace: Tensor) -> tuple[int, int]:
    """How many samples the largest of k-space (..., H, W) lies from where fft2c expects it: (rows, columns).

    A few samples are normal (the echo is rarely exact). Half the matrix means that an fftshift is missing or ran
    over the wrong axes. Leading axes (coils) are summed.
    """
    height, width = kspace.shape[-2:]
    peak = int(kspace.abs().reshape(-1, height, width).sum(0).argmax())
    return peak // width - height // 2, peak % width - width // 2


def looks_interpolated(kspace: Tensor) -> bool:
    """Whether the outer part of k-space ([coils,] H, W) is empty: an enlarged image (zero filling, interpolation).

    Such data are less than they seem: of "4x" a part is the interpolation undone. Compares the outermost tenth of
    either axis with the band at a third of it; noise alone fills both alike. Taking the magnitude afterwards fills
    the outer k-space a little, and may hide it: but then looks_magnitude_only sees that. Give it only the columns
    that were acquired.
    """
    # scans: above 0.02; enlarged images: 0
    return _outside_is_empty(_power(kspace))


def spectrum_extent(kspace: Tensor) -> tuple[int, int]:
    """The matrix (rows, columns) beyond which k-space ([coils,] H, W) is empty, by looks_interpolated's threshold."""
    # not <=: NaN, where there is nothing to compare with, counts as filled
    ends = [
        (len(profile), float(distance[~(profile <= 1e-3)].max())) for profile, distance in _spectrum(_power(kspace))
    ]
    rows, columns = (min(size, round(size * end)) for size, end in ends)
    return rows, columns


def _squares(kspace: Tensor) -> Tensor:
    """Squared magnitude of each sample, in half the time that .abs() takes, which guards against overflow."""
    squares = torch.view_as_real(kspace.contiguous()).square()
    return squares[..., 0] + squares[..., 1]


def _power(kspace: Tensor) -> Tensor:
    """Squared magnitude of k-space (.., H, W), leading axes summed: (H, W)."""
    return _squares(kspace).reshape(-1, *kspace.shape[-2:]).sum(0)


def _outside_is_empty(power: Tensor) -> bool:
    return any(profile[distance > 0.9].mean() < 1e-3 for profile, distance in _spectrum(power))


def _spectrum(power: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Along rows, then columns of (H, W): power, relative to that at a third of the way, and the way from 0 to 1."""
    for profile in (power.sum(1), power.sum(0)):
        size = len(profile)
        distance = (torch.arange(size) - size // 2).abs() / (size / 2)
        yield profile / profile[(distance > 0.25) & (distance < 0.4)].mean(), distance


def looks_magnitude_only(kspace: Tensor) -> bool:
    """Whether k-space ([coils,] H, W) is Hermitian, k(-f) = conj k(f): it was computed from magnitude images.

    Then half of it is redundant, and noise and phase are not those of a scan: scores come out too good
    ("data crimes", Shimron et al. 2022, PNAS 119(13)).
    """
    image = ifft2c(kspace)
    phase = image.square().sum().angle() / 2  # one constant phase makes no scan
    return bool((image * torch.exp(-1j * phase)).imag.norm() < 1e-3 * image.norm())


def looks_noiseless(kspace: Tensor) -> bool:
    """Whether the air in the image of k-space ([coils,] H, W) is empty: simulated without noise, or masked."""
    image = ifft2c(kspace).abs()
    h, w = (max(n // 16, 1) for n in image.shape[-2:])
    corners = torch.stack([image[..., i, j] for i in (slice(h), slice(-h, None)) for j in (slice(w), slice(-w, None))])
    return bool(corners.mean() < 1e-5 * image.max())


# --- one look at a file ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What a look at a file found.

    Attributes:
        what: the diagnosis.
        advice: the mend; "" where nothing need be done.
        alarm: whether figures made with the file would mislead until it is mended; else it is good to know.
        refused: whether the file can be no reference, so that nothing is trained on it or scored with it.
    """

    what: str
    advice: str = ""
    alarm: bool = False
    refused: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.advice}" if self.advice else self.what


def centre_share(mask: str, center_fraction: float) -> float:
    """The share of the columns that a kind of mask keeps without gaps around DC; 1 where its geometry decides that."""
    kind = choose(MASKS, mask, "mask kind")
    usual = 0 < center_fraction <= 1  # what is not, sampling_mask refuses
    return 1.0 if kind.own_centre or not usual else center_fraction ** (1 / len({"H", "W"} & set(kind.axes)))


def look(volume: Volume, centre: float = 0.08, kspace: Tensor | None = None) -> list[Finding]:
    """What a file's k-space looks like, judged by its middle slice: everything that a user should hear before training.

    Of the other slices the central lines tell whether columns were left out there; one that seems so is read.

    Args:
        volume: of any axes; those in front of H and W are taken together.
        centre: share of the columns that the mask will keep without gaps around DC; see centre_share.
        kspace: of the middle slice, where it has been read already.
    Returns:
        the findings: samples that were never measured, an echo outside the mask's centre, a missing fftshift, what
        no scanner measured, and the volume's own notes.
    Raises:
        BadInput: the slice cannot be read.
    """
    kspace, power, measured = _powers(volume, volume.kspace(len(volume) // 2) if kspace is None else kspace)
    highest = power.amax(1), power.amax(0)  # of each row, of each column
    least = EMPTY_COLUMN**2 * float(highest[0].max())
    filled = highest if measured is power else (measured.amax(1), measured.amax(0))
    rows, columns = (_filled(profile > least) for profile in filled)
    found = [*_empty_edges(volume, rows, columns)]
    if volume.mask is None:
        found += _gaps(measured, rows, columns, least) or _gaps_elsewhere(volume)
    if not any(finding.refused for finding in found):
        peaks = int(highest[0].argmax()), int(highest[1].argmax())
        found += [*_off_centre(volume, kspace, power, peaks, centre), *_no_scan(kspace, power, columns)]
    return found + [Finding(note) for note in volume.notes]


def _powers(volume: Volume, kspace: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K-space of a slice, scaled if need be; its power; and the least that a sample has in any frame, both (H, W).

    A sample counts as measured where it is in every frame: sampling may change from one to the next.
    """
    coils = [number for number, axis in enumerate(volume.axes[1:]) if axis == "coils"]
    each = _squares(kspace)
    most = each.reshape(-1, kspace.shape[-1]).amax(0)  # along W
    if not 1e-18 < most.max() < 1e18:  # squares of float32 must stay in its range
        kspace = kspace / torch.view_as_real(kspace).abs().max()
        each = _squares(kspace)
    each = each.sum(coils[0]) if coils else each
    each = each.reshape(-1, *kspace.shape[-2:])  # one (H, W) for each frame, echo ..
    return (kspace, each.sum(0), each.amin(0)) if len(each) > 1 else (kspace, each[0], each[0])


def _gaps_elsewhere(volume: Volume) -> list[Finding]:
    """What _gaps says of the slice that lacks most columns inside, if one seems to."""
    if type(volume) is not Volume:  # others make k-space of something else
        return []
    lines = torch.from_numpy(volume.measured_columns())
    inside = lines.cumsum(1).gt(0) & lines.flip(1).cumsum(1).flip(1).gt(0)
    lost = (inside & ~lines).sum(1)
    number = int(lost.argmax())
    if not lost[number] or number == len(volume) // 2:
        return []
    _, _, measured = _powers(volume, volume.kspace(number))
    least = EMPTY_COLUMN**2 * float(measured.max())
    rows, columns = (_filled(measured.amax(axis) > least) for axis in (1, 0))
    found = _gaps(measured, rows, columns, least)
    return [dataclasses.replace(one, what=f"slice {number}: {one.what}") for one in found if one.refused]


def _filled(filled: Tensor) -> tuple[int, int]:
    """(first, last + 1) of what is true; (0, 0) where nothing is."""
    places = filled.nonzero()
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)


def _empty_edges(volume: Volume, rows: tuple[int, int], columns: tuple[int, int]) -> Iterator[Finding]:
    """Rows and columns at the edges that hold nothing: never acquired, and known to be zero."""
    for (first, end), size, name in ((rows, volume.shape[-2], "rows"), (columns, volume.shape[-1], "columns")):
        before, after = first, size - end
        if before + after == 0 or end == 0 or volume.mask is not None:
            continue
        if abs(before - after) > size / 10:
            side = "first" if before > after else "last"
            yield Finding(
                f"the {side} {max(before, after)} of {size} {name} are empty: one side of k-space was not measured "
                f"({'partial Fourier' if name == 'columns' else 'an asymmetric echo'})",
                "nothing is to be done, the reference is the zero-filled image; filled in (notebook 07), it is sharper",
            )
        else:
            yield Finding(f"{before} + {after} of {size} {name} at the edges are empty: never acquired")
    first, end = volume.columns
    if volume.mask is None and (columns[0] < first or columns[1] > end):
        lost = max(first - columns[0], 0) + max(columns[1] - end, 0)
        yield Finding(
            f"the limits in ismrmrd_header leave out {lost} columns that hold data",
            "repair or delete the header",
            alarm=True,
        )


def _gaps(measured: Tensor, rows: tuple[int, int], columns: tuple[int, int], least: float) -> list[Finding]:
    """Samples inside of k-space that are exactly zero: nobody measured them."""
    inside = measured[slice(*rows), slice(*columns)]
    if inside.numel() and inside.min() > least:
        return []
    empty = inside <= least
    height, width = empty.shape
    advice = (
        "a reference needs all of k-space: take files that are fully sampled, or store which samples were measured "
        "as data set 'mask', as data/convert.py does, to have them reconstructed only (--evaluate)"
    )
    lost_columns, lost_rows = int(empty.all(0).sum()), int(empty.all(1).sum())
    if not inside.numel():
        what = "a frame, echo .. of the middle slice is empty"
    elif lost_columns:
        what = f"undersampled already: {lost_columns} of {width} columns inside k-space are empty"
    elif lost_rows:
        what = f"undersampled already along H: {lost_rows} of {height} rows inside k-space are empty"
        advice = f"{advice}; columns, the last axis, should be the phase encodes"
    else:
        share = float(empty.float().mean())
        smallest = inside[~empty].min()
        # A few dead samples; or whole numbers of a converter, of which many are zero and many are one.
        if share < 1e-3 or int((inside == smallest).sum()) > 10:
            return [Finding(f"{int(empty.sum())} single samples inside k-space are exactly zero")]
        if lacks_corners(empty):
            what = f"the corners of k-space were never measured (an ellipse, {1 - share:.0%} of the samples)"
            advice = f"{advice}; or crop k-space to a rectangle inside the ellipse, as data/convert.py does"
        else:
            what = f"undersampled already: {share:.0%} of the samples inside k-space are exactly zero (2-D sampling)"
    return [Finding(what, advice, alarm=True, refused=True)]


def lacks_corners(empty: Tensor) -> bool:
    """Whether samples without a measurement, bool (H, W), lie outside of an ellipse only."""
    y, x = ((torch.arange(n) - n // 2).abs() / (n / 2) for n in empty.shape)
    return not empty[torch.hypot(y[:, None], x) < 0.9].any()


def _off_centre(
    volume: Volume, kspace: Tensor, power: Tensor, peaks: tuple[int, int], centre: float
) -> Iterator[Finding]:
    """Whether the echo, (row, column) of the peaks, and the image lie where fft2c expects them."""
    height, width = power.shape
    off = [peak - size // 2 for peak, size in zip(peaks, (height, width))]
    # Half the matrix, give or take what an echo may be off.
    swapped = [size >= 8 and abs(n) >= 0.4 * size for n, size in zip(off, (height, width))]
    where = f"the largest sample lies {off[0]} rows and {off[1]} columns off the centre"
    low = round(width * centre)
    first = (width - low + 1) // 2  # as the masks have it
    if any(swapped):
        axes = tuple(axis for axis, true in zip((-2, -1), swapped) if true)
        yield Finding(
            f"{where}: k-space is in the order of the FFT, its zero frequency in the corner",
            f"store numpy.fft.fftshift(kspace, axes={axes})",
            alarm=True,
        )
    elif not first <= peaks[1] < first + low and volume.mask is None:
        yield _moved_or_cut(power, off[1], where, low)
    elif abs(off[0]) > height / 8:
        yield Finding(where, "move the echo to the middle row, or add the short side as zeros (numpy.pad)", True)
    # Neighbouring samples are alike where the image lies in the middle, of opposite signs where it lies at the edges.
    band = kspace[..., max(peaks[0] - 32, 0) : peaks[0] + 32, :]  # which holds nearly all of the energy
    values = torch.view_as_real(band.contiguous()).reshape(-1)
    energy = float(values @ values)
    far_out = [float(values[2 * n :] @ values[: -2 * n]) < -0.2 * energy for n in (width, 1)]
    turned = [far and _at_both_edges(kspace, axis) for far, axis in zip(far_out, (-2, -1))]
    if any(turned):
        axes = tuple(axis for axis, true in zip((-2, -1), turned) if true)
        yield Finding(
            "the image is cut in parts that lie at the edges: it was not shifted before the Fourier transform",
            f"store fft2c(numpy.fft.fftshift(image, axes={axes})) of image = ifft2c(kspace)",
            alarm=True,
        )
    if width != height and volume.header_size == (width, height):
        yield Finding(
            f"the header says {width} x {height} (readout x phase encode), the array is {height} x {width}",
            "swap the last two axes: H is the readout",
            alarm=True,
        )


def _at_both_edges(kspace: Tensor, axis: int) -> bool:
    """Whether the image is bright at both of its edges along an axis; a neck or a shoulder is at one of them."""
    profile = ifft2c(kspace).abs().square().movedim(axis, -1).flatten(0, -2).sum(0)
    eighth = max(len(profile) // 8, 1)
    ends = sorted([float(profile[:eighth].sum()), float(profile[-eighth:].sum())])
    return ends[0] > 0.25 * ends[1]


def _moved_or_cut(power: Tensor, off: int, where: str, low: int) -> Finding:
    """The echo outside the mask's full centre: k-space that was moved, or one side of it that is not stored."""
    width = power.shape[1]
    profile = power.sum(0).flip(0) if off < 0 else power.sum(0)  # the longer side first
    ends = max(width // 24, 1)
    near, far = profile[-ends:].mean(), profile[:ends].mean()
    # Beyond the highest frequency, what was moved goes on with the other side, which gets stronger again, and ends as
    # it begins. What was cut goes on getting weaker.
    beyond = profile[: 2 * abs(off)]
    inner, outer = beyond[abs(off) :].mean(), beyond[: abs(off)].mean()
    missing = 2 * abs(off)
    place = f"({missing}, 0)" if off < 0 else f"(0, {missing})"
    pad = f"add the {missing} missing columns as zeros, numpy.pad {place} along W, {width + missing} columns then"
    move = f"move the echo to column {width // 2}, numpy.roll(kspace, {-off}, axis=-1), or raise center_fraction"
    told = f"{where}, outside the {low} columns that the mask keeps around it, which costs decibels"
    if inner < 1.1 * outer and near < 2.2 * far:
        return Finding(told, move, alarm=True)
    short = f"{told}; one side of k-space is shorter (partial Fourier, only its acquired lines stored)"
    return Finding(short, pad if near > 2.2 * far else f"{pad}; if no line is missing, {move}", alarm=True)


def _no_scan(kspace: Tensor, power: Tensor, columns: tuple[int, int]) -> Iterator[Finding]:
    """What no scanner measures: interpolated, Hermitian, noiseless data."""
    if _outside_is_empty(power[:, slice(*columns)]):
        yield Finding("the outer k-space is empty", "interpolated images, the true matrix is smaller", alarm=True)
    # A look at a small part first: the whole takes Fourier transforms.
    size = [min(n, 33) - (min(n, 33) + 1) % 2 for n in power.shape]  # odd, so that each frequency has its mirror image
    first = [n // 2 - m // 2 for n, m in zip(power.shape, size)]
    middle = kspace[..., first[0] : first[0] + size[0], first[1] : first[1] + size[1]]
    mirrored = (middle * middle.flip(-2, -1)).sum().abs()
    if mirrored > 0.999 * middle.abs().square().sum() and looks_magnitude_only(kspace):
        yield Finding("the k-space is Hermitian", "made from magnitude images, not measured", alarm=True)
    if _corner_may_be_empty(kspace) and looks_noiseless(kspace):
        yield Finding("the air is empty", "simulated without noise, or masked", alarm=True)


def _corner_may_be_empty(kspace: Tensor) -> bool:
    """Whether the first row of the image begins with nothing, up to ten times what looks_noiseless calls so."""
    height, width = kspace.shape[-2:]
    frequency = torch.arange(height) - height // 2
    turn = torch.polar(torch.ones(()), 2 * math.pi * frequency * (-(height // 2)) / height) / math.sqrt(height)
    row = (turn.to(kspace.dtype) @ kspace).reshape(-1, 1, width)  # of the image, still along frequencies in W
    corner = ifft2c(row)[..., : max(width // 16, 1)].abs().mean()
    small = center_crop(kspace, (min(height, 64), min(width, 64)))
    peak = ifft2c(small).abs().max() * math.sqrt(small.shape[-2] * small.shape[-1] / (height * width))
    return bool(corner < 1e-4 * peak)


def volume_warnings(volume: Volume, centre: float = 0.08) -> list[str]:
    """What of look() belongs beside every figure made with a file: alarms and notes, a line each."""
    return warning_lines(volume, look(volume, centre))


def warning_lines(volume: Volume, findings: Sequence[Finding]) -> list[str]:
    """The alarms among the findings and the volume's notes, a line each."""
    return [str(finding) for finding in findings if finding.alarm or finding.what in volume.notes]


class Looked(NamedTuple):
    """Files after a look at all of them.

    Attributes:
        volumes: those to go on with.
        warnings: what to say of them before the first epoch and in metrics.json, a line each.
    """

    volumes: list[list[Volume]]
    warnings: list[str]


def look_at_all(
    groups: Sequence[Sequence[Volume]], centre: float = 0.08, skip: bool = False, broken: Sequence[str] = ()
) -> Looked:
    """Look at every file before anything is done with it; processes share the work.

    Args:
        groups: training and validation volumes, or files to score.
        centre: see look.
        skip: leave out files that cannot be read, and empty slices, instead of stopping.
        broken: reasons why further files were not read.
    Returns:
        the groups, and the warnings.
    Raises:
        BadInput: files that cannot be read, all of them named; or files that are undersampled and carry no mask.
    """
    volumes = [volume for group in groups for volume in group]
    seen = gather([_look_safely(volume, centre, skip) for volume in own_share(volumes)])
    faults = [*broken, *(fault for _, _, fault, _ in seen if fault)]
    if faults and not skip:
        raise all_faults(faults)
    kept = [[s for s in seen[sum(map(len, groups[:i])) :][: len(group)] if not s[2]] for i, group in enumerate(groups)]
    if faults and not all(kept):
        raise all_faults(faults)  # nothing is left on one side
    good = [s for group in kept for s in group]
    refused = [
        f"{volume.path}: {finding}" for volume, findings, _, _ in good for finding in findings if finding.refused
    ]
    if refused:
        raise all_faults(refused)
    lines: list[str] = []
    for group, kind in zip(kept, ["training volumes", "volumes"][-len(groups) :]):
        said: dict[str, list[str]] = {}
        for volume, findings, _, _ in group:
            for text in warning_lines(volume, findings):
                said.setdefault(text, []).append(volume.path.name)
        for text, names in said.items():
            which = f" ({_some(names)})" if len(names) < len(group) else ""
            lines.append(f"{len(names)} of {len(group)} {kind}{which}: {text}")
    if len(lines) > 12:
        lines = [*lines[:12], f"and {len(lines) - 12} more such lines: python train.py --check FOLDER shows them"]
    if faults:
        names = [fault.partition(": ")[0].rpartition("/")[2] for fault in faults]
        lines.append(f"{len(faults)} files cannot be read and were left out: {_some(names)}")
    empty = {volume.path.name: lost for volume, _, _, lost in good if lost}
    if empty:
        lines.append(f"{sum(empty.values())} empty slices were left out, of {_some([*empty])}")
    if len(groups) > 1 and good and all(_unnamed(volume) for volume, _, _, _ in good):
        unknown = "no file names its subject: whether one is on both sides cannot be checked"
        lines.append(f"{unknown}, give each file the attribute patient_id")
    return Looked([[s[0] for s in group] for group in kept], lines)


def _look_safely(volume: Volume, centre: float, skip: bool) -> tuple[Volume, list[Finding], str, int]:
    """(the volume, perhaps without its empty slices; findings; why it cannot be read or ""; empty slices left out)."""
    try:
        empty = _refuse_empty(volume, skip)
        if empty:
            volume = volume.without(empty)
        return volume, look(volume, centre), "", len(empty)
    except BadInput as error:
        return volume, [], str(error), 0


def _refuse_empty(volume: Volume, skip: bool = False) -> list[int]:
    """The empty slices, which can be left out where `skip` allows it; else they raise BadInput."""
    marks = enumerate(volume.fingerprints())
    empty = [number for number, mark in marks if not mark and _is_empty(volume, number)]
    if empty and (not skip or type(volume) is not Volume or len(empty) == len(volume)):
        more = f" ({len(empty)} such slices)" if empty[1:] else ""
        raise BadInput(
            f"{volume.path}: slice {empty[0]} of kspace is all zero{more}: remove the slice or the file, or leave "
            "empty slices out with --skip-unreadable"
        )
    return empty


def _is_empty(volume: Volume, number: int) -> bool:
    """Whether a slice whose central line is empty is empty altogether."""
    try:
        volume.kspace(number)
    except BadInput as error:
        if "is all zero" not in str(error):
            raise
        return True
    return False


def _unnamed(volume: Volume) -> bool:
    """Whether a file does not say whose it is, so that its own name stands for the subject."""
    return "patient_id" not in volume.attributes and volume.patient_id == volume.path.stem and volume.path.is_file()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Seen(NamedTuple):
    """A file after a look at it, as figures.show_seen draws it.

    Attributes:
        name: of the file.
        findings: see look.
        kspace, image: magnitudes of the middle slice, coils and frames taken together: float32 (H, W).
    """

    name: str
    findings: list[Finding]
    kspace: Tensor
    image: Tensor


def see(volume: Volume, centre: float = 0.08) -> Seen:
    """Look at a file, and keep what its middle slice looks like. Args and Raises: see look."""
    kspace = volume.kspace(len(volume) // 2)
    images = ifft2c(kspace)
    size, image = (rss(x.reshape(-1, *x.shape[-2:])) for x in (kspace, images))
    return Seen(volume.path.name, look(volume, centre, kspace), size, image)


def check_table(
    volumes: Sequence[Volume], broken: Sequence[str], centre: float = 0.08, drawn: int = 8
) -> tuple[list[dict], bool, list[Seen]]:
    """What `train.py --check FOLDER` shows: a row for each file and finding, whether one is an alarm, what is drawn.

    Args:
        volumes: those that could be opened.
        broken: reasons why others were not.
        centre: see look.
        drawn: the most files that are to be drawn; those with an alarm come first.
    """
    rows: list[dict] = []
    seen: dict[bool, list[Seen]] = {True: [], False: []}
    alarm = bool(broken)
    for volume in volumes:
        try:
            _refuse_empty(volume)
            one = see(volume, centre)
            found = one.findings or [Finding("good")]
            group = seen[any(finding.alarm for finding in found)]
            group += [one] if len(group) < drawn else []
        except BadInput as error:
            found = [Finding(str(error).removeprefix(f"{volume.path}: "), "", True)]
        about = {"file": volume.path.name, "shape": f"{volume.shape}".strip("()"), "axes": " ".join(volume.axes)}
        for finding in found:
            rows.append(
                about | {"": "ALARM" if finding.alarm else "", "finding": finding.what, "advice": finding.advice}
            )
            about = dict.fromkeys(about, "")
            alarm |= finding.alarm
    for reason in broken:
        name, _, what = reason.partition(": ")
        rows.append(
            {"file": name.rpartition("/")[2], "shape": "", "axes": "", "": "ALARM", "finding": what, "advice": ""}
        )
    return rows, alarm, [*seen[True], *seen[False]][:drawn]
