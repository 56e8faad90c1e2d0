"""Convert raw data or images of any scanner for this book: fastMRI-layout files in OUT/train and OUT/val.

    python data/convert.py scans/*.h5 --out data/mine
    python data/convert.py scans/*.mat --out data/mine --axes "H, W, coils, slices" --single-coil

ISMRMRD, BART, MATLAB, .npy, .npz, NIfTI, Siemens twix, and the files of fastMRI, M4Raw, Calgary-Campinas, CMRxRecon,
SKM-TEA and OCMR; data/README.md tells what is assumed for each. Subjects are split, never slices. Nothing is written
until all files are converted.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # mri_utils.py is in the folder above
import torch

import mri_utils as mri


def subject_of(path: Path, pattern: str, known: str) -> str:
    """The subject of a file: what the pattern finds in its path, a pattern without brackets itself, or `known`."""
    if "(" not in pattern:
        return pattern or known
    try:
        found = re.findall(pattern, path.absolute().as_posix())
    except re.error as error:
        raise mri.BadInput(f"--subject {pattern!r}: no regular expression ({error})") from error
    if not found:
        raise mri.BadInput(f"{path}: --subject {pattern!r} is not found in the path")
    return found[-1] if isinstance(found[-1], str) else found[-1][0]


def coils_wanted(scan: mri.Scan, args: argparse.Namespace) -> tuple[mri.Scan, list[str]]:
    """The scan with fewer coils, or one, as the command line asks; and what was done."""
    fields, notes = {}, []
    if (args.single_coil or args.coils) and "coils" not in scan.axes:
        notes.append("one coil already")
    elif args.single_coil:
        axes = tuple(name for name in scan.axes if name != "coils")
        fields = dict(kspace=mri.emulate_single_coil(scan.kspace, scan.axes), axes=axes, noise=None)
        notes.append(f"single coil emulated from {scan.kspace.shape[-3]}")
    elif args.coils and args.coils < scan.kspace.shape[-3]:
        kspace = scan.kspace
        if scan.noise is not None:
            kspace = mri.prewhiten(kspace, mri.noise_covariance(scan.noise))
        fields = dict(kspace=mri.compress_coils(kspace, args.coils), noise=None)
        white = "prewhitened" if scan.noise is not None else "not prewhitened, there is no noise scan"
        notes.append(f"{scan.kspace.shape[-3]} coils compressed to {args.coils}, {white}")
    return dataclasses.replace(scan, **fields), notes


def write_maps(path: Path, scan: mri.Scan) -> None:
    """Add `sensitivities` (slices, coils, H, W) to a file: by ESPIRiT from its central columns."""
    if scan.axes != mri.DEFAULT_AXES[4]:
        found = f"the axes are {', '.join(scan.axes)}"
        raise mri.BadInput(f"--maps: {found}, maps are made of {', '.join(mri.DEFAULT_AXES[4])}: leave it out")
    width = scan.kspace.shape[-1]
    central = (torch.arange(width) - width // 2).abs() <= 12
    mask = central if scan.mask is None else central & (scan.mask if scan.mask.ndim == 1 else scan.mask.all(0))
    if int(mask.sum()) < 2:
        raise mri.BadInput(
            f"--maps: {int(mask.sum())} whole columns were measured around DC, 2 are needed: leave it out"
        )
    maps = torch.stack([mri.sensitivity_maps(one, mask) for one in scan.kspace])
    with h5py.File(path, "a") as file:
        file["sensitivities"] = maps.numpy()


def validating(subjects: Sequence[str], wanted: Sequence[str]) -> set[str]:
    """The subjects that validate: those named, or a share of all, drawn as split_by_subject draws them."""
    share = re.fullmatch(r"0?\.\d+|0", wanted[0]) if len(wanted) == 1 and wanted[0] not in subjects else None
    if share and float(wanted[0]) == 0:
        return set()
    if len(subjects) < 2:
        mend = "give files of several, or --val 0 to put them into one folder without train/ and val/"
        raise mri.BadInput(f"all files are of one subject ({subjects[0]}), which cannot be split: {mend}")
    if share:
        order = np.random.RandomState(0).permutation(len(subjects))
        return {subjects[i] for i in order[: min(max(1, round(float(wanted[0]) * len(subjects))), len(subjects) - 1)]}
    if not set(wanted) < set(subjects):
        raise mri.BadInput(f"--val {' '.join(wanted)}: name some, not all, of: {', '.join(subjects)}; or give a share")
    return set(wanted)


def pieces_of(scan: mri.Scan, apart: Sequence[str]) -> list[tuple[str, mri.Scan]]:
    """The scan as (end of the name, scan) for each echo, frame .. of the axes named."""
    pieces = [("", scan)]
    for name in apart:
        inner = [axis for axis in scan.axes if axis not in ("slices", "coils", "H", "W")]
        if name not in inner:
            raise mri.BadInput(f"--apart {name}: axes to take apart: {', '.join(inner) or 'none, leave it out'}")
        place, axes = scan.axes.index(name), tuple(axis for axis in scan.axes if axis != name)
        pieces = [
            (f"{end}_{name}_{number}", dataclasses.replace(piece, kspace=kspace.contiguous(), axes=axes))
            for end, piece in pieces
            for number, kspace in enumerate(piece.kspace.unbind(place))
        ]
        scan = pieces[0][1]
    return pieces


def write(path: Path, scan: mri.Scan, subject: str, acquisition: str) -> list[mri.Finding]:
    """Write a scan in the layout of the book; returns what a look at the file finds."""
    attributes: dict[str, Any] = {"notes": "\n".join(scan.simulated)} if scan.simulated else {}
    attributes |= {} if scan.affine is None else {"affine": scan.affine.ravel()}
    mri.write_volume(
        path,
        scan.kspace,
        target_size=scan.target_size,
        acquisition=acquisition,
        patient_id=subject,
        axes=scan.axes,
        mask=scan.mask,
        noise=scan.noise,
        attributes=attributes,
    )
    return mri.look(mri.read_volume(path))


def convert(args: argparse.Namespace, building: Path) -> None:
    """Convert file by file into a folder that becomes args.out when it is complete."""
    visible = [path for path in dict.fromkeys(args.files) if not path.name.startswith(".")]  # macOS leaves ._NAME
    files = [path for path in visible if path.suffix != ".hdr"]  # BART's headers belong to .cfl files
    if not files:
        told = "give the .cfl file that belongs to it" if visible else "a name that begins with a dot is no scan"
        raise mri.BadInput(f"{args.files[0]}: {told}")
    axes, apart = (text.replace(",", " ").split() for text in (args.axes, args.apart))
    written: dict[str, tuple[Path, str, bool]] = {}  # name: source, subject, whether it has a reference
    for path in files:
        scan = mri.read_scan(path, axes, args.variable)
        subject = subject_of(path, args.subject, scan.patient_id)
        if args.uncentred:
            scan = dataclasses.replace(scan, kspace=mri.centred(scan.kspace))
        scan, notes = coils_wanted(scan, args)
        stem = path.name.partition(".")[0]
        named = subject in stem or args.subject == subject
        acquisition = args.acquisition or scan.acquisition
        told: set[str] = set()
        for end, piece in pieces_of(scan, apart):
            name = re.sub(r"[^\w.-]", "_", stem if named else f"{subject}_{stem}") + f"{end}.h5"
            if name in written:
                raise mri.BadInput(f"{path}: would be {name}, as {written[name][0]} is: rename one of them")
            found = write(building / name, piece, subject, acquisition)
            if any(finding.refused for finding in found):
                piece = mri.as_measured(piece, path)
                found = write(building / name, piece, subject, acquisition)
            if args.maps:
                write_maps(building / name, piece)
            written[name] = path, subject, piece.mask is None
            shape = ", ".join(f"{axis} {n}" for axis, n in zip(piece.axes, piece.kspace.shape))
            print(f"{path} -> {name}  ({shape}), subject {subject}, {acquisition}")
            suspicious = [str(finding) for finding in found if finding.alarm]
            for note in [*piece.notes, *notes, *suspicious]:
                if note not in told:  # of the file's other pieces
                    print(f"    {note}")
                told.add(note)
            if any("order of the FFT" in note for note in suspicious) and not args.uncentred:
                print("    add --uncentred if np.fft.fft2 made the k-space")
    whole = {name: subject for name, (_, subject, reference) in written.items() if reference}
    val = validating(sorted(set(whole.values())), args.val) if whole else set()
    for name in written:
        side = "test" if name not in whole else "val" if whole[name] in val else "train" if val else "."
        (building / side).mkdir(exist_ok=True)
        (building / name).rename(building / side / name)
    print(f"{len(written)} volumes in {args.out}; validation: {', '.join(sorted(val)) or 'none'}")
    if val:
        print(f"next: python train.py --data {args.out} --out runs/{args.out.resolve().name}")


def main(argv: list[str] | None = None) -> None:
    """The command line; a fault of the input ends it with one line and exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="of one format or several")
    parser.add_argument("--out", type=Path, required=True, help="new folder, for example data/mine")
    what = "share of the subjects that validate, or their names; 0: no train/ and val/ (default: 0.2)"
    parser.add_argument("--val", nargs="+", default=["0.2"], metavar="SHARE_OR_NAME", help=what)
    what = 'name of every axis as stored, where the file does not tell: "H, W, coils, slices"; H is the readout, W the '
    what += "phase encode; averages, partitions (of 3-D k-space) and real_imag are understood, others are kept"
    parser.add_argument("--axes", default="", metavar="NAMES", help=what)
    parser.add_argument("--variable", default="", metavar="NAME", help="which array of a .mat or .npz file")
    what = "axes, such as echoes, of which each entry becomes a file of its own"
    parser.add_argument("--apart", default="", metavar="NAMES", help=what)
    parser.add_argument("--uncentred", action="store_true", help="np.fft.fft2 made the k-space: DC is in the corner")
    what = "name of the one subject, or a regular expression with (brackets) around what names it in the path"
    parser.add_argument("--subject", default="", metavar="NAME", help=what)
    parser.add_argument("--acquisition", default="", metavar="NAME", help="of all files; tables are split by it")
    coils = parser.add_mutually_exclusive_group()
    coils.add_argument("--single-coil", action="store_true", help="emulate one coil (Tygert and Zbontar 2020)")
    coils.add_argument("--coils", type=int, default=0, metavar="N", help="compress to N virtual coils")
    parser.add_argument("--maps", action="store_true", help="write the coils' sensitivities, too (ESPIRiT)")
    args = parser.parse_args(argv)
    with mri.explaining("convert.py"), mri.new_folder(args.out) as building:
        convert(args, building)


if __name__ == "__main__":
    main()
