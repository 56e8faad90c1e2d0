"""Images instead of k-space: DICOM series and folders of pictures, as volumes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import importlib.metadata
import importlib.util
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_parts.basics import BadInput, choose, replace_file
from mri_parts.checks import looks_interpolated, spectrum_extent
from mri_parts.fourier import center_crop, fft2c, ifft2c
from mri_parts.volumes import LARGEST_SLICE, READERS, Reader, Volume

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")


def image_kspace(image: Tensor, size: Sequence[int], phase: bool = True, noise: float = 0.0) -> Tensor:
    """K-space of a magnitude image, cropped, with a simulated phase and noise that are the same for the same image.

    Args:
        image: (H, W) float32.
        size: (h, w) of the k-space that is kept; the image values keep their size.
        phase, noise: see ImageVolume.
    Returns:
        complex64 (h, w).
    """
    random = np.random.RandomState(np.frombuffer(hashlib.sha1(image.numpy().tobytes()).digest(), np.uint32))
    kspace = center_crop(fft2c(image), size)
    # real again: of an even matrix the outermost row and column have lost their mirror images
    cropped = ifft2c(kspace).real * math.sqrt(kspace.numel() / image.numel())
    if phase:
        y, x = (torch.linspace(-1, 1, n) for n in cropped.shape)
        terms = torch.stack(torch.broadcast_tensors(torch.ones(()), y[:, None], x, y[:, None] ** 2, x**2))
        weights = torch.from_numpy(random.normal(0, 1.2, 5).astype(np.float32))
        cropped = torch.polar(cropped, torch.tensordot(weights, terms, 1))  # a negative value gets another pi
    if noise:
        drawn = torch.from_numpy(random.standard_normal((*cropped.shape, 2)).astype(np.float32))
        cropped = cropped + noise * cropped.abs().max() * torch.view_as_complex(drawn)
    return fft2c(cropped)


@dataclass(frozen=True, kw_only=True)
class ImageVolume(Volume):
    """Magnitude images, of which k-space is computed; a slice is read and transformed when asked for.

    Networks look better on such data than on scans (see looks_interpolated, looks_magnitude_only). So k-space is
    cropped to the acquired matrix, and a smooth phase, and noise if wanted, are simulated; both are the same at every
    reading, because the image is their seed (names are not: every series has its IM0001).

    Attributes:
        files: the image of each slice.
        phase: simulate a smooth phase; without it k-space is Hermitian.
        noise_level: standard deviation, in the real part, of simulated noise, as a fraction of the slice's maximum.
    """

    files: tuple[Path, ...]
    phase: bool = True
    noise_level: float = 0.0

    def image(self, index: int) -> Tensor:
        """Slice `index` as it is stored, rescaled as its header says: float32, before any crop."""
        if not 0 <= index < len(self):
            raise BadInput(f"{self.path}: no slice {index}: choose one from 0 to {len(self) - 1}")
        image = torch.from_numpy(_read_picture(self.files[index]))
        if not torch.isfinite(image).all() or not image.any():
            raise BadInput(f"{self.files[index]}: the image is empty, or holds NaN or infinite values: remove the file")
        return image

    def kspace(self, index: int) -> Tensor:
        """See Volume.kspace; the image values keep their size."""
        return image_kspace(self.image(index), self.shape[1:], self.phase, self.noise_level)

    def fingerprints(self) -> list[str]:
        """See Volume.fingerprints: of the stored images' central rows."""
        images = (self.image(i).numpy() for i in range(len(self)))
        rows = (image[len(image) // 2] for image in images)
        return [hashlib.sha1(row.tobytes()).hexdigest() if row.any() else "" for row in rows]

    def sources(self) -> Sequence[Path]:
        """See Volume.sources."""
        return self.files

    def part(self, first: int, end: int) -> Volume:
        """Slices first .. end - 1 as a volume of their own, which counts as a subject of its own."""
        if first >= end:
            return super().part(first, end)
        which = f"slices_{first}_{end - 1}"
        place = self.affine
        moved = {} if place is None else {"affine": (place @ shift_and_scale((0, 0, first), (1, 1, 1))).tolist()}
        return dataclasses.replace(
            self,
            path=self.path.with_name(f"{self.path.stem}_{which}.h5"),
            shape=(end - first, *self.shape[1:]),
            patient_id=f"{self.patient_id}_{which}",
            files=self.files[first:end],
            attributes={**self.attributes, **moved},
        )


@contextlib.contextmanager
def _judging(path: Path, what: str) -> Iterator[None]:
    """Tell whatever a reader of images finds in damaged bytes in one line; its warnings are not for the user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadInput:
        raise
    except Exception as error:  # these readers raise whatever the bytes lead them to
        raise BadInput(f"{path}: damaged {what} ({type(error).__name__}): copy or export it again") from error


def _is_dicom(path: Path) -> bool:
    """Whether a file says of itself that it is DICOM; the name needs no suffix."""
    with _judging(path, "file"), open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


# What is read of a DICOM header; the rest stays in the file.
DICOM_TAGS = [
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "PhotometricInterpretation", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "PatientID", "PatientName"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "ImagePositionPatient"),
    *("ImageOrientationPatient", "SliceLocation", "AcquisitionMatrix", "InPlanePhaseEncodingDirection"),
    *("ScanningSequence", "EchoTime", "ImageType", "WindowCenter", "WindowWidth"),
    *("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
]


# DICOM's kinds of files that accompany images: directories, presentation states, reports.
NO_IMAGES = ("1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.1.1.11.", "1.2.840.10008.5.1.4.1.1.88.")


def _dicom(path: Path, pixels: bool = False) -> Any:
    """The header of a DICOM file, or its image as float32 (H, W); None for a kind of file that has no image.

    Raises:
        BadInput: no pydicom; the file is damaged, compressed without a decoder, in colour, too large ..
    """
    if importlib.util.find_spec("pydicom") is None:
        raise BadInput(f"{path}: reading DICOM needs pydicom: pip install pydicom")
    import pydicom

    with _judging(path, "DICOM file"):
        syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
        if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:  # a small file may unpack to any size
            raise BadInput(f"{path}: the whole file is deflated: convert it (dcmconv +te)")
        tags: list[Any] = [*DICOM_TAGS, "PixelData"] if pixels else [*DICOM_TAGS]
        data = pydicom.dcmread(path, specific_tags=tags, stop_before_pixels=not pixels)
        if str(data.file_meta.get("MediaStorageSOPClassUID")).startswith(NO_IMAGES):
            return None
        rows, columns = int(data.get("Rows") or 0), int(data.get("Columns") or 0)
        if rows < 1 or columns < 1 or (pixels and "PixelData" not in data):
            raise BadInput(f"{path}: no pixel data in it, so no image: remove the file")
        if rows * columns > LARGEST_SLICE:
            raise BadInput(f"{path}: {rows}x{columns} pixels, more than {LARGEST_SLICE} are not read")
        colours = str(data.get("PhotometricInterpretation"))
        if int(data.get("SamplesPerPixel") or 1) != 1 or colours not in ("MONOCHROME1", "MONOCHROME2"):
            raise BadInput(f"{path}: a colour image ({colours[:20]}): give grey ones")
        if int(data.get("NumberOfFrames") or 1) != 1:
            raise BadInput(f"{path}: many frames in one file: convert it to single frames")
        if not pixels:
            return data
        try:
            stored = data.pixel_array
        except (RuntimeError, NotImplementedError) as error:
            if not syntax.is_compressed:
                raise
            raise BadInput(
                f"{path}: compressed ({syntax.name}), and no decoder reads it: pip install pylibjpeg "
                "pylibjpeg-libjpeg pylibjpeg-openjpeg, or decompress it (gdcmconv --raw)"
            ) from error
        slope, intercept = float(data.get("RescaleSlope") or 1), float(data.get("RescaleIntercept") or 0)
        image = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        return image.max() - image if colours == "MONOCHROME1" else image


@contextlib.contextmanager
def _picture(path: Path) -> Iterator[Any]:
    """A PNG, TIFF .. file as Pillow opens it, which reads the header only."""
    from PIL import Image

    with _judging(path, "image"), Image.open(path) as opened:
        if opened.width * opened.height * getattr(opened, "n_frames", 1) > LARGEST_SLICE:
            raise BadInput(f"{path}: {opened.height}x{opened.width} pixels are too many for a slice: crop the image")
        yield opened


def _picture_size(path: Path) -> tuple[int, int]:
    """(H, W) of an image file, from its header."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        data = _dicom(path)
        return data.Rows, data.Columns
    with _picture(path) as opened:
        return opened.height, opened.width


def _read_picture(path: Path) -> np.ndarray:
    """One grey image, DICOM or a common image format, as float32 (H, W)."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        image: np.ndarray = _dicom(path, pixels=True)
        return image
    from skimage import io as images

    with _picture(path):
        image = images.imread(path)
        if image.ndim == 3 and image.shape[-1] in (3, 4) and not np.ptp(image[..., :3], axis=-1).any():
            image = image[..., 0]  # grey, stored as three equal colours
        if image.ndim != 2 or image.dtype.kind not in "fiub":
            raise BadInput(f"{path}: a colour image or several in one, of shape {image.shape}: give single grey images")
        return image.astype(np.float32)


@functools.lru_cache(None)
def _subject(person: tuple[str, ...]) -> str:
    """A label that is always the same for a person, and tells neither name nor number.

    Patients' numbers are few enough to try them all: a hash that takes a while (scrypt) makes that tedious.
    """
    return "subject_" + hashlib.scrypt(repr(person).encode(), salt=b"subject", n=2**14, r=8, p=1, dklen=4).hex()


def _series(files: Sequence[Path]) -> Iterator[tuple[str, dict, list[Path]]]:
    """DICOM files as (acquisition, what is known, files in the order of their position), a series at a time."""
    series: dict[Any, list[tuple[float, Path, Any]]] = {}
    for path in files:
        data = _dicom(path)
        if data is None:
            continue
        try:
            kind = "/".join(map(str, data.get("ImageType") or ()))
            turn = [float(v) for v in data.get("ImageOrientationPatient") or ()]
            place = [float(v) for v in data.get("ImagePositionPatient") or ()]
            if len(turn) == 6 and len(place) == 3:
                position = float(np.dot(np.cross(turn[:3], turn[3:]), place))
            else:
                position = float(data.get("SliceLocation") or data.get("InstanceNumber") or 0)
            key = str(data.get("SeriesInstanceUID")), kind, float(data.get("EchoTime") or 0)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{path}: damaged DICOM header ({error}): copy or export it again") from error
        series.setdefault(key, []).append((position, path, data))
    for (_, _, echo), found in series.items():
        found.sort(key=lambda item: item[:2])
        data = found[0][2]
        person = [str(data.get("PatientID", "")), str(data.get("PatientName", ""))]
        if not any(c.isalnum() for text in person for c in text):  # "***" or nothing: made anonymous
            person = [str(data.get("StudyInstanceUID", ""))]
        # Free text of the header (descriptions, protocols) may name a person: only codes and numbers are taken.
        codes = [c for c in np.atleast_1d(data.get("ScanningSequence") or []) if c in ("SE", "IR", "GR", "EP", "RM")]
        name = f"series_{data.get('SeriesNumber') or 0}"
        known: dict[str, Any] = {"person": tuple(person), "matrix": (0, 0), "name": name}
        with contextlib.suppress(TypeError, ValueError, IndexError, KeyError):  # where the header tells it
            known["affine"] = _dicom_affine([item[2] for item in found])
        matrix = [int(n) for n in data.get("AcquisitionMatrix") or () if n]
        if len(matrix) == 2:
            known["matrix"] = matrix[::-1] if data.get("InPlanePhaseEncodingDirection") == "COL" else matrix
        with contextlib.suppress(TypeError, ValueError):  # for display only; some headers give several
            known["window"] = float(data.get("WindowCenter")), float(data.get("WindowWidth"))
        yield "_".join([*codes, f"TE{echo:g}"]), known, [path for _, path, _ in found]


def _dicom_affine(headers: Sequence[Any]) -> np.ndarray:
    """See Volume.affine: from the headers of a series, by position. Raises KeyError or the like where they lack it."""
    first, last = headers[0], headers[-1]
    turn = np.reshape([float(v) for v in first["ImageOrientationPatient"].value], (2, 3))
    down, right = (float(v) for v in first["PixelSpacing"].value)
    starts = [np.array([float(v) for v in header["ImagePositionPatient"].value]) for header in (first, last)]
    thickness = float(first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1)
    step = (starts[1] - starts[0]) / (len(headers) - 1) if headers[1:] else thickness * np.cross(*turn)
    affine = np.eye(4)
    affine[:3] = np.column_stack([right * turn[0], down * turn[1], step, starts[0]])
    if not np.isfinite(affine).all() or not np.linalg.det(affine):
        raise ValueError("no positions in space")
    return TURN @ affine


def _visible(folder: Path) -> list[Path]:
    """The files of a folder and those below it, sorted; none that begins with a dot, or lies in a folder that does."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def read_images(folder: str | Path, phase: bool = True, noise: float = 0.0) -> list[Volume]:
    """Volumes of a folder of images: DICOM series, told apart by their headers, or grey PNG, TIFF .. files.

    Subfolders are searched. A DICOM series is one volume, sorted by position; so are the plain images of one
    folder, sorted by name, which count as one subject. Names and numbers of patients appear nowhere: subjects have
    labels that do not tell them. DICOM files without images, such as the directory of an export, are passed over, and
    so are names that begin with a dot.
    Images that the scanner interpolated are cropped in k-space to the acquired matrix, known from the header
    (AcquisitionMatrix) or from where the spectrum of the middle slice ends, and every matrix to multiples of 8, so
    that half and a quarter of it are whole and even. What is cropped is printed; that and
    what is simulated is in Volume.notes.

    Args:
        folder: of the files.
        phase, noise: see ImageVolume.
    Raises:
        BadInput: no such folder, no image in it; a file that cannot be read, sizes that differ within a volume.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder: data/README.md tells where each data set goes")
    files = _visible(folder)
    pictures: dict[Path, list[Path]] = {}
    for path in files:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            pictures.setdefault(path.parent, []).append(path)
    found: list[tuple[str, dict, list[Path]]] = list(_series([path for path in files if _is_dicom(path)]))
    for parent, inside in pictures.items():
        found.append(("images", {"person": (str(parent.resolve()),), "matrix": (0, 0), "name": parent.name}, inside))
    if not found:
        raise BadInput(f"{folder}: no DICOM, PNG or TIFF image in it: is this the folder of the images?")
    names, volumes = Counter[str](), list[Volume]()
    parts = " and ".join(["phase"] * phase + ["noise"] * bool(noise))
    simulated = (f"k-space made from images: {parts} simulated",) if parts else ()
    for acquisition, known, inside in found:
        name = f"{folder.name}_{known['name']}"
        names[name] += 1
        name += f"_{names[name]}" if names[name] > 1 else ""
        volume = ImageVolume(
            path=folder / f"{name}.h5",
            shape=(len(inside), 0, 0),
            target_size=(0, 0),
            acquisition=acquisition,
            patient_id=_subject(known["person"]),
            columns=(0, 0),
            attributes={"window": known["window"]} if "window" in known else {},
            files=tuple(inside),
            phase=phase,
            noise_level=noise,
        )
        stored = volume.image(len(inside) // 2)
        pixels = f"{stored.shape[0]}x{stored.shape[1]}"
        for path in inside:
            h, w = _picture_size(path)
            if (h, w) != stored.shape:
                raise BadInput(f"{path}: {h}x{w} pixels beside images of {pixels}: put one size into each folder")
        spectrum, done = fft2c(stored), []
        matrix, source = [min(n, m) for n, m in zip(known["matrix"], stored.shape)], "AcquisitionMatrix"
        if not all(matrix):
            matrix, source = list(stored.shape), "its spectrum"
            if looks_interpolated(spectrum):
                matrix = list(spectrum_extent(spectrum))
        if matrix != list(stored.shape):
            origin = f"{matrix[0]}x{matrix[1]} ({source})"
            done.append(f"images of {pixels} were interpolated from {origin}: k-space cropped to that")
        h, w = (n // 8 * 8 for n in matrix)
        if [h, w] != matrix:
            done.append(f"{matrix[0]}x{matrix[1]} cropped to {h}x{w}, multiples of 8")
        if min(h, w) < 8:
            raise BadInput(f"{inside[0]}: an image of {pixels} is too small: use larger ones")
        if done:
            print(f"{volume.path.stem}: {'; '.join(done)}")
        notes = (*simulated, *done)
        about: dict[str, Any] = dict(shape=(len(inside), h, w), target_size=(h, w), columns=(0, w), notes=notes)
        if "affine" in known:
            place = resampled(known["affine"], stored.shape, (h, w)).tolist()  # attributes are written as JSON too
            about["attributes"] = volume.attributes | {"affine": place}
        volumes.append(dataclasses.replace(volume, **about))
    return volumes


def _holds_images(folder: Path) -> bool:
    """Whether there are images in a folder, and nothing for other readers: pictures beside k-space are no data."""
    others = (reader for reader in READERS.values() if reader.read is not read_images)
    if any(reader.holds(folder) for reader in others):
        return False
    return any(path.suffix.lower() in IMAGE_SUFFIXES or _is_dicom(path) for path in _visible(folder))


READERS["DICOM, PNG or TIFF image"] = Reader(_holds_images, read_images)


# --- images out of reconstructions ----------------------------------------------------------------

TURN = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM counts to the left and to the back, NIfTI to the right and to the front


def shift_and_scale(shift: Sequence[float], scale: Sequence[float]) -> np.ndarray:
    """(4, 4): from places (column, row, slice) to scale * place + shift; goes to the right of an affine."""
    matrix = np.diag([*scale, 1.0])
    matrix[:3, 3] = shift
    return matrix


def resampled(affine: np.ndarray, stored: Sequence[int], kept: Sequence[int]) -> np.ndarray:
    """The affine of images of `stored` (H, W) pixels whose k-space is cropped to `kept`: the same field of view.

    The middle pixel, n // 2, stays where it is.
    """
    (tall, wide), (h, w) = stored, kept
    scale = wide / w, tall / h, 1.0
    return affine @ shift_and_scale((wide // 2 - w // 2 * scale[0], tall // 2 - h // 2 * scale[1], 0), scale)


def output_formats(text: str) -> list[str]:
    """ "h5 nifti dicom" -> the formats besides .h5, which is always written.

    Raises:
        BadInput: an unknown format, or one whose package is not installed.
    """
    packages = {"h5": "h5py", "nifti": "nibabel", "dicom": "pydicom"}
    names = text.replace(",", " ").split()
    for name in names:
        package = choose(packages, name, "format")
        if importlib.util.find_spec(package) is None:
            raise BadInput(f"format {name}: writing it needs {package}: pip install {package}")
    return [name for name in names if name != "h5"]


def write_nifti(path: str | Path, volume: Volume, image: Tensor) -> None:
    """Write the reconstruction of a volume as NIfTI, in its place in space, or with its spacing, where that is known.

    Args:
        path: ends with .nii.gz.
        volume: what was reconstructed; see Volume.affine and Volume.spacing.
        image: float32 (slices, [frames,] h, w); slices that were left out are empty.
    """
    import nibabel

    numbers = [*(volume.kept or range(len(image)))]
    stack = image.new_zeros(numbers[-1] + 1, *image.shape[1:])
    stack[numbers] = image
    columns_first = stack.movedim((-1, -2, 0), (0, 1, 2)).numpy()
    affine = volume.affine
    down, right, step = (side or 1.0 for side in volume.spacing)
    made: Any = nibabel.Nifti1Image(columns_first, np.diag([-right, -down, step, 1.0]) if affine is None else affine)
    code = "unknown" if affine is None else "scanner"
    made.set_sform(made.affine, code=code)
    made.set_qform(made.affine, code=code)
    made.header.set_xyzt_units("mm")
    replace_file(path, lambda partial: partial.write_bytes(gzip.compress(made.to_bytes(), mtime=0)))


def write_dicom(folder: str | Path, volume: Volume, image: Tensor) -> None:
    """Write the reconstruction of a volume as a DICOM series, a file for each slice, in its place where that is known.

    The patient is a label, see read_images; nothing but the position is taken over from a header.

    Args:
        folder: of the files 0001.dcm ..
        volume: what was reconstructed; see Volume.affine.
        image: float32 (slices, [frames,] h, w), not negative.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    is_label = re.fullmatch(r"subject_[0-9a-f]{8}", volume.patient_id)
    label = volume.patient_id if is_label else _subject((volume.patient_id,))
    series, study = generate_uid(), generate_uid(entropy_srcs=[label])
    affine, peak = volume.affine, float(image.max()) or 1.0
    numbers = [*(volume.kept or range(len(image)))]
    frames = image.flatten(1, -3) if image.ndim > 3 else image[:, None]
    for count, (s, f) in enumerate(np.ndindex(*frames.shape[:2]), 1):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = MRImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, study
        data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = "", label, "", ""
        data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "", "", "", ""
        data.ReferringPhysicianName, data.Manufacturer, data.PositionReferenceIndicator = "", "", ""
        data.Modality, data.ImageType = "MR", ["DERIVED", "SECONDARY", "OTHER"]
        data.SeriesDescription, data.SeriesNumber, data.InstanceNumber = "reconstruction", 1, count
        data.ScanningSequence, data.SequenceVariant, data.ScanOptions, data.EchoTime = "RM", "NONE", "", None
        data.MRAcquisitionType, data.RepetitionTime, data.EchoTrainLength = "", None, None
        if frames.shape[1] > 1:
            data.TemporalPositionIdentifier, data.NumberOfTemporalPositions = f + 1, frames.shape[1]
        if affine is not None:
            right, down, step, start = (TURN @ affine @ shift_and_scale((0, 0, numbers[s]), (1, 1, 1)))[:3].T
            sides = [float(np.linalg.norm(v)) for v in (down, right, step)]
            data.PixelSpacing, data.SliceThickness = [f"{side:.9g}" for side in sides[:2]], f"{sides[2]:.9g}"
            turn = [*(right / sides[1]), *(down / sides[0])]
            data.ImageOrientationPatient = [f"{v:.9f}" for v in turn]
            data.ImagePositionPatient = [f"{v:.9g}" for v in start]
        elif all(volume.spacing[:2]):
            data.PixelSpacing = [f"{side:.9g}" for side in volume.spacing[:2]]
            data.SliceThickness = f"{volume.spacing[2]:.9g}" if volume.spacing[2] else None
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.Rows, data.Columns = image.shape[-2:]
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.RescaleSlope, data.RescaleIntercept, data.RescaleType = f"{peak / 65535:.9g}", "0", "US"
        data.PixelData = (frames[s, f] * (65535 / peak)).round().clamp(0, 65535).numpy().astype("<u2").tobytes()
        name = Path(folder) / f"{count:04d}.dcm"
        replace_file(name, functools.partial(data.save_as, enforce_file_format=True))
