"""Score networks that differ in their seed only, on the validation volumes, at each acceleration they were trained for.

usage: python tools/seeds.py RESULT.json CHECKPOINT.pt [CHECKPOINT.pt ...]

Masks and metrics are those of train.py. RESULT.json gets a line for each checkpoint and acceleration: its model, its
seed and the figures of every volume. Notebooks 05, 06, 13, 14 and 15 read what it wrote to checkpoints/.
"""

import json
import sys
from pathlib import Path

sys.path[:0] = [".", ".."]  # where mri_utils.py may be, seen from here

import mri_utils as mri  # noqa: E402
import train  # noqa: E402

METRICS = "ssim", "psnr", "ssim_head", "psnr_head"


def figures(path):
    """Lines of one checkpoint, one for each acceleration; with several, center_fraction is 8 % at 4x and so on."""
    trained = mri.read_checkpoint(path)["parameters"]
    several = [float(a) for a in trained.get("train_accelerations", "").replace(",", " ").split()]
    samplings = [{"acceleration": a, "center_fraction": 0.32 / a} for a in several]
    kept = {name: trained[name] for name in ("task", "data", "mask", "upscale_factor") if name in trained}
    samplings = samplings or [{name: trained[name] for name in ("acceleration", "center_fraction")}]
    for sampling in samplings:
        val_set = train.load_data(train.settled(**kept | sampling, device="cpu"))[1]
        rows = mri.score(mri.load_model(path), val_set, mri.Machine(batch_size=6)).rows
        found = {"model": trained["model"], "seed": trained["seed"], "acceleration": sampling["acceleration"]}
        yield found | {metric: [round(row[metric], 5) for row in rows] for metric in METRICS if metric in rows[0]}


def main(result, *paths):
    lines = [line for path in paths for line in figures(path)]
    text = "[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n"
    mri.replace_file(Path(result), lambda path: path.write_text(text))
    for line in lines:
        means = ", ".join(f"{metric} {mri.mean(line[metric]):.3f}" for metric in METRICS if metric in line)
        print(f"{line['model']}, seed {line['seed']}, {line['acceleration']:g}x: {means}")


if __name__ == "__main__":
    mri.run_or_explain(lambda: main(*sys.argv[1:])) if len(sys.argv) > 2 else sys.exit(__doc__)
