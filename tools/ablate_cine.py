"""Change one thing at a time about the cine networks: what notebook 14's table of ablations is made of.

usage: python tools/ablate_cine.py [--jobs N] [--epochs N] [--train N] [--val N] [--matrix N] [--out FOLDER]

Small networks, small simulated hearts, three seeds each; every run differs from its base in one parameter. Finished
runs are skipped: after a crash give the same command again. Writes checkpoints/cine_ablations.csv, or FOLDER's own
ablations.csv if FOLDER is another one than runs/cine_ablations: a row per run and validation subject.
"""

import csv
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]  # this copy

import h5py  # noqa: E402
import torch  # noqa: E402
from sweep import sweep  # noqa: E402

import mri_utils as mri  # noqa: E402

OWN = """
jobs: int = 3  # runs at a time, each with its share of the cores
epochs: int = 20  # of each run
train: int = 12  # simulated hearts to train on
val: int = 8  # and to score on
matrix: int = 48  # their size
out: str = "runs/cine_ablations"  # folder for data and runs
"""
DUAL = ("cine_dual_unet", {"features": 8, "levels": 2})
UNROLLED = ("cine_unrolled", {"features": 8, "stages": "1x2"})
UNET = ("cine_unet", {"features": 4, "levels": 2})
EXPERIMENTS: dict[
    str, tuple[tuple[str, dict], dict, dict]
] = {  # name -> base, changes of its arguments, of the training
    "dual U-Net": (DUAL, {}, {}),
    "dual U-Net, no dropout": (DUAL, {"dropout": 0.0}, {}),
    "dual U-Net, constant learning rate": (DUAL, {}, {"schedule": "constant"}),
    "dual U-Net, L1": (DUAL, {}, {"loss": "l1"}),
    "dual U-Net, no attention": (DUAL, {"attention": False}, {}),
    "dual U-Net, no 3-D part": (DUAL, {"light": False}, {}),
    "unrolled, 3 cascades": (UNROLLED, {}, {}),
    "unrolled, 2 cascades": (UNROLLED, {"cascades": 2}, {}),
    "unrolled, 1 cascade": (UNROLLED, {"cascades": 1}, {}),
    "unrolled, no data consistency": (UNROLLED, {"consistency": "none"}, {}),
    "unrolled, from zero filling": (UNROLLED, {"start": "zero_filled"}, {}),
    "unrolled, from temporal TV": (UNROLLED, {"start": "temporal_tv"}, {}),
    "unrolled, loss of motion": (UNROLLED, {}, {"loss": "l1_ssim_motion(weight=2)"}),
    "one U-Net of as many weights": (UNET, {}, {}),
    "one U-Net, from view sharing": (UNET, {"start": "view_sharing"}, {}),
}


def rows_of(name: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """A row per validation subject of a finished run, in fastMRI's convention and in the cine system's."""
    run, rows = mri.read_run(folder), []
    for volume, scores in run.metrics["per_volume"].items():
        with h5py.File(folder / "reconstructions" / volume) as file:
            full, image = torch.from_numpy(file["full"][0]).abs(), torch.from_numpy(file["reconstruction"][()])
            zero = torch.from_numpy(file["undersampled"][0])
        methods = {name: (image, run.network, run.metrics["parameters_count"])}
        if name == "unrolled, 3 cascades" and seed == 0:  # what learns nothing, once
            kspace = mri.fft2c(zero)
            mask = kspace.abs().amax(-2, keepdim=True) > 1e-5 * kspace.abs().max()
            methods["zero-filled"] = zero.abs(), "zero_filled", 0
            methods["0 cascades: view sharing"] = mri.view_sharing(kspace, mask).abs(), "sliding_window", 0
        for method, (picture, key, weights) in methods.items():
            own = {c["metric"]: c["value"] for c in mri.metric_conventions(full, picture) if c["who"] == "cine system"}
            figures = {"psnr": scores[key]["psnr"], "ssim": scores[key]["ssim"], "ssim_cine_system": own["ssim"]}
            start = {"experiment": method, "seed": seed, "weights": weights, "subject": Path(volume).stem}
            rows.append(start | {metric: f"{value:.6g}" for metric, value in figures.items()})
    return rows


def main(words: list[str]) -> int:
    """Simulate, train, write the table; returns the exit status."""
    settings = mri.flag_parser(__doc__.split("\n\n", 2)[2], OWN).parse_args(words)
    out = Path(settings.out)
    data = mri.demo_cine(out / "data", settings.train, settings.val, frames=12, matrix=settings.matrix, seed=7)
    common = {"task": "cine", "data": str(data), "epochs": settings.epochs, "loss": "l2"}
    common |= {"ema": 0.0, "device": "cpu", "precision": "float32"}
    runs, names = {}, {}
    for name, ((model, arguments), other, change) in EXPERIMENTS.items():
        for seed in range(3):
            folder = out / f"{name}_{seed}".replace(", ", "_").replace(" ", "_")
            own = {"model": mri.write_call(model, arguments | other), "seed": seed, "out": str(folder)}
            runs[folder] = common | own | change | {"resume": True}
            names[folder] = (name, seed)
    failed = sweep(runs, settings.jobs)
    for line in failed:
        print(f"ablate_cine.py: failed: {line}", file=sys.stderr)
    if failed:
        return 1
    rows = [row for folder, (name, seed) in names.items() for row in rows_of(name, seed, folder)]
    whole = out == Path("runs/cine_ablations")
    path = mri.ROOT / "checkpoints" / "cine_ablations.csv" if whole else out / "ablations.csv"

    def write(partial: Path) -> None:
        with open(partial, "w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)

    mri.replace_file(path, write)
    print(f"{path}: {len(rows)} rows")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except mri.BadInput as error:
        sys.exit(f"ablate_cine.py: {error}")
