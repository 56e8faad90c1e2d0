"""Score networks that differ in little, their seed for example, on the validation volumes.

usage: python tools/seeds.py RESULT.json CHECKPOINT.pt [CHECKPOINT.pt ...] [--data FOLDER] [--mirrored]

Each at the accelerations it was trained for, on its own data or those of FOLDER. --mirrored: the mean over the mirror
images of a scan, see mri.mirrored.

Masks and metrics are those of train.py. RESULT.json gets a line for each checkpoint and acceleration: its model, its
seed and the figures of every volume. Notebooks 05 and 06 read what it wrote to checkpoints/.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[:0] = [".", ".."]  # where mri_utils.py may be, seen from here

import mri_utils as mri  # noqa: E402
import train  # noqa: E402

METRICS = "ssim", "psnr", "ssim_head", "psnr_head"


def figures(path, data="", mirrored=False):
    """Lines of one checkpoint, one for each acceleration; with several, center_fraction is 8 % at 4x and so on."""
    trained, network = mri.read_checkpoint(path)["parameters"], mri.load_model(path)
    several = [float(a) for a in trained.get("train_accelerations", "").replace(",", " ").split()]
    samplings = [{"acceleration": a, "center_fraction": 0.32 / a} for a in several]
    kept = {name: trained[name] for name in ("task", "data", "mask", "upscale_factor") if name in trained}
    kept |= {"data": data} if data else {}
    samplings = samplings or [{name: trained[name] for name in ("acceleration", "center_fraction")}]
    for sampling in samplings:
        val_set = train.load_data(train.settled(**kept | sampling, device="cpu"))[1]
        rows = mri.score(mri.mirrored(network) if mirrored else network, val_set, mri.Machine(batch_size=6)).rows
        found = {"file": Path(path).name, "model": trained["model"], "seed": trained["seed"]}
        found |= {"acceleration": sampling["acceleration"], "mirrored": mirrored}
        yield found | {metric: [round(row[metric], 5) for row in rows] for metric in METRICS if metric in rows[0]}


def main(result, checkpoints, **options):
    lines = [line for path in checkpoints for line in figures(path, **options)]
    text = "[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n"
    mri.replace_file(Path(result), lambda path: path.write_text(text))
    for line in lines:
        means = ", ".join(f"{metric} {mri.mean(line[metric]):.3f}" for metric in METRICS if metric in line)
        print(f"{line['model']}, seed {line['seed']}, {line['acceleration']:g}x: {means}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("result")
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--data", default="")
    parser.add_argument("--mirrored", action="store_true")
    mri.run_or_explain(lambda: main(**vars(parser.parse_args())))
