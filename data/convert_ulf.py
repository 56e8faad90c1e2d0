"""Convert the k-space of bispmri/Ultra-low-field-MRI-Scanner (0.055 T, MATLAB files) for this book.

    python data/convert_ulf.py "Ultra-low-field-MRI-Scanner/Data for Figures in the Manuscript" data/ulf --val 7B

The path names the head (.../Figure 7B/... or head_7B_FSE.mat), the file name the sequence (FSE, FLAIR or GRE).
"""

import argparse
import re
import sys
from pathlib import Path

import h5py
import numpy as np
from scipy.io import loadmat

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # mri_utils.py is in the folder above
import mri_utils as mri

SUBJECT = r"(?:Figure |head_)([0-9A-Za-z]+)"  # the last match in the path counts
SEQUENCE = r"FLAIR|FSE|GRE"


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All numeric arrays of a MATLAB file (v4 to v7.3), with MATLAB's order of axes."""
    try:
        if not h5py.is_hdf5(path):
            return {k: v for k, v in loadmat(path).items() if isinstance(v, np.ndarray)}
        with h5py.File(path) as file:  # v7.3 is HDF5: axes in reverse, complex as pairs (real, imag)
            stored = {k: v[()].T for k, v in file.items() if isinstance(v, h5py.Dataset) and v.ndim}
        return {k: v["real"] + 1j * v["imag"] if v.dtype.names == ("real", "imag") else v for k, v in stored.items()}
    except Exception as error:  # a damaged file makes scipy raise nearly anything
        raise mri.BadInput(f"{path}: not a MATLAB file, or a damaged one: download it again") from error


def read_kspace(path: Path, variable: str | None, slice_axis: str) -> np.ndarray:
    """The complex 3-D array (readout, phase encode, slice) of a file as (slices, H, W) complex64."""
    arrays = read_arrays(path)
    names = [k for k, v in arrays.items() if v.ndim == 3 and v.size and np.iscomplexobj(v) and variable in (None, k)]
    if not names:
        found = ", ".join(f"{k} {v.dtype} {v.shape}" for k, v in arrays.items()) or "nothing"
        raise mri.BadInput(f"{path}: no complex 3-D array in it (wanted: {variable or 'any'}; found: {found})")
    if len(names) > 1:
        raise mri.BadInput(f"{path}: more than one complex 3-D array ({', '.join(names)}): add --variable NAME")
    kspace = np.moveaxis(arrays[names[0]], -1, 0)
    energy = (np.abs(kspace) ** 2).sum(axis=(1, 2))
    if slice_axis == "auto" and energy.max() > 10 * np.median(energy):
        raise mri.BadInput(f"{path}: one slice outshines the rest, like 3-D k-space: give --slice-axis kspace or image")
    if slice_axis == "kspace":
        kspace = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, axes=0), axis=0, norm="ortho"), axes=0)
    if not np.isfinite(kspace).all() or not kspace.any(axis=(1, 2)).all():
        raise mri.BadInput(f"{path}: {names[0]} holds NaN, infinite values or an empty slice: repair or remove it")
    return np.ascontiguousarray(kspace, dtype=np.complex64)


def convert(args: argparse.Namespace, building: Path) -> None:
    """Read and check every file, then write them all into a folder that becomes args.out when it is complete."""
    paths = sorted(p for p in args.source.rglob(args.pattern) if p.is_file() and not p.name.startswith("."))
    if not paths:
        raise mri.BadInput(f"{args.source}: no {args.pattern} in it or below: check the path, or see --pattern")
    scans: dict[tuple[str, str], Path] = {}
    for path in paths:
        subject = re.findall(SUBJECT, path.absolute().as_posix())
        sequence = re.findall(SEQUENCE, path.name.upper())
        if not subject or not sequence:
            raise mri.BadInput(f"{path}: need 'Figure HEAD' or 'head_HEAD' in the path and {SEQUENCE} in the file name")
        key = subject[-1], sequence[0]
        if scans.setdefault(key, path) != path:
            raise mri.BadInput(f"{path}: {key[1]} of head {key[0]} is in {scans[key]} too: remove one of them")
    subjects = sorted({subject for subject, _ in scans})
    val = args.val or subjects[-1:]
    if not set(val) < set(subjects):
        raise mri.BadInput(f"--val {' '.join(val)}: name some, not all, of the heads found: {', '.join(subjects)}")
    volumes = {key: read_kspace(path, args.variable, args.slice_axis) for key, path in scans.items()}
    for (subject, sequence), kspace in volumes.items():
        path = Path("val" if subject in val else "train") / f"head_{subject}_{sequence}.h5"
        names = dict(acquisition=f"ULF_{sequence}", patient_id=f"ulf_{subject}")
        mri.write_volume(building / path, kspace, target_size=kspace.shape[1:], **names)
        print(f"{scans[subject, sequence]} -> {args.out / path}  {kspace.shape}")
    print(f"{len(volumes)} volumes; next: python train.py --data {args.out} --out runs/{args.out.resolve().name}")


def main(argv: list[str] | None = None) -> None:
    """The command line; a fault of the input ends it with one line and exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with the .mat files; the folders inside are searched too")
    parser.add_argument("out", type=Path, help="new folder, for example data/ulf; gets train/ and val/")
    parser.add_argument("--val", nargs="+", metavar="HEAD", help="heads for validation (default: the last one)")
    parser.add_argument("--pattern", default="*kspace_postEMI.mat", help="which files (default: %(default)s)")
    parser.add_argument("--variable", metavar="NAME", help="which array of the file, if several are complex and 3-D")
    what = "the third axis: slices, or partitions of 3-D k-space (default: slices, refused if unlikely)"
    parser.add_argument("--slice-axis", choices=("auto", "image", "kspace"), default="auto", help=what)
    args = parser.parse_args(argv)
    with mri.explaining("convert_ulf.py"), mri.new_folder(args.out) as building:
        convert(args, building)


if __name__ == "__main__":
    main()
