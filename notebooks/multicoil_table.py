"""Score every multi-coil method on the validation volumes, at 4x and at 8x; notebook 15 shows the result.

usage: python notebooks/multicoil_table.py RESULT.json CHECKPOINT.pt [CHECKPOINT.pt ...]

The classical methods are tuned on training slices, at each acceleration for itself. Masks, metrics and intervals are
those of train.py. Each network is compared with all methods before it, volume by volume.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [".", ".."]  # where mri_utils.py may be, seen from here

import mri_utils as mri  # noqa: E402
import train  # noqa: E402


def table(networks, acceleration, center_fraction):
    """What summarize_run says of all methods; the paired differences are those of each network in its turn."""
    sampling = {"acceleration": acceleration, "center_fraction": center_fraction}
    settings = train.check(SimpleNamespace(**train.parameters | {"task": "multi_coil", "device": "cpu", **sampling}))
    train_set, val_set = train.load_data(settings)
    task = mri.TASKS["multi_coil"]
    baselines, tuned = task.baselines(train_set, settings)
    methods = dict([task.start]) | baselines | networks
    scored = {name: train.score(method, val_set, settings, keep=False) for name, method in methods.items()}
    scores = {name: (rows, [], seconds) for name, (rows, _, seconds) in scored.items()}
    paired = {}
    for last in range(len(scores) - len(networks), len(scores)):
        metrics = mri.summarize_run(dict(list(scores.items())[: last + 1]), val_set, settings)
        paired |= metrics["paired"]
    print(mri.metrics_table(metrics), flush=True)
    kept = {name: metrics[name] for name in ("data", "methods", "seconds_per_slice")}
    return kept | {"paired": paired, "tuned": tuned, "sampling": sampling}


def main(result, *checkpoints):
    loaded = [mri.load_model(path) for path in checkpoints]
    networks = {network.settings["model"]: network for network in loaded}
    tables = {f"{factor}x": table(networks, float(factor), 0.32 / factor) for factor in (4, 8)}
    mri.replace_file(Path(result), lambda path: path.write_text(json.dumps(tables, indent=1) + "\n"))


if __name__ == "__main__":
    mri.run_or_explain(lambda: main(*sys.argv[1:])) if len(sys.argv) > 2 else sys.exit(__doc__)
