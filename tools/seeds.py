"""Score networks that differ in their seed only, on the validation volumes at 4x and at 8x.

usage: python tools/seeds.py RESULT.json CHECKPOINT.pt [CHECKPOINT.pt ...]

Masks and metrics are those of train.py. RESULT.json gets a line for each checkpoint and acceleration: its model, its
seed and the figures of every volume. Notebook 06 reads checkpoints/seeds.json, made so.
"""

import json
import sys
from pathlib import Path

sys.path[:0] = [".", ".."]  # where mri_utils.py may be, seen from here

import mri_utils as mri  # noqa: E402
import train  # noqa: E402

METRICS = "ssim", "psnr", "ssim_head", "psnr_head"


def figures(path, acceleration):
    """Line of one checkpoint at one acceleration; its center_fraction is 8 % at 4x, less where it is faster."""
    parameters = mri.read_checkpoint(path)["parameters"]
    sampling = {"acceleration": acceleration, "center_fraction": 0.32 / acceleration}
    val_set = train.load_data(train.settled(data=parameters["data"], device="cpu", **sampling))[1]
    rows = mri.score(mri.load_model(path), val_set, mri.Machine(batch_size=6)).rows
    found = {"model": parameters["model"], "seed": parameters["seed"], "acceleration": acceleration}
    return found | {metric: [round(row[metric], 5) for row in rows] for metric in METRICS}


def main(result, *paths):
    lines = [figures(path, float(acceleration)) for path in paths for acceleration in (4, 8)]
    text = "[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n"
    mri.replace_file(Path(result), lambda path: path.write_text(text))
    for line in lines:
        means = ", ".join(f"{metric} {mri.mean(line[metric]):.3f}" for metric in METRICS)
        print(f"{line['model']}, seed {line['seed']}, {line['acceleration']:g}x: {means}")


if __name__ == "__main__":
    mri.run_or_explain(lambda: main(*sys.argv[1:])) if len(sys.argv) > 2 else sys.exit(__doc__)
