"""Score every multi-coil method on the validation volumes, at 4x and at 8x; notebook 15 shows the result.

usage: python notebooks/multicoil_table.py RSS_UNET.pt VARNET.pt RESULT.json

The classical methods are tuned on training slices, at each acceleration for itself. Masks, metrics and intervals are
those of train.py.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [".", ".."]  # where mri_utils.py may be, seen from here

import mri_utils as mri  # noqa: E402
import train  # noqa: E402

KEPT = ("data", "methods", "paired", "seconds_per_slice")


def table(networks, acceleration, center_fraction):
    """What summarize_run says of all methods; the last network is the one that the others are compared with."""
    sampling = {"acceleration": acceleration, "center_fraction": center_fraction}
    settings = train.check(SimpleNamespace(**train.parameters | {"task": "multi_coil", "device": "cpu", **sampling}))
    train_set, val_set = train.load_data(settings)
    task = mri.TASKS["multi_coil"]
    baselines, tuned = task.baselines(train_set, settings)
    methods = dict([task.start]) | baselines | networks
    scores = {name: train.score(method, val_set, settings, keep=False) for name, method in methods.items()}
    paired = [score for score in scores.items() if score[0] != "varnet"] + [("varnet", scores["varnet"])]
    metrics = mri.summarize_run({name: (rows, [], seconds) for name, (rows, _, seconds) in paired}, val_set, settings)
    print(mri.metrics_table(metrics), flush=True)
    return {name: metrics[name] for name in KEPT} | {"tuned": tuned, "sampling": sampling}


def main(rss_unet, varnet, result):
    networks = {"rss_unet": mri.load_model(rss_unet), "varnet": mri.load_model(varnet)}
    tables = {f"{factor}x": table(networks, float(factor), 0.32 / factor) for factor in (4, 8)}
    mri.replace_file(Path(result), lambda path: path.write_text(json.dumps(tables, indent=1) + "\n"))


if __name__ == "__main__":
    mri.run_or_explain(lambda: main(*sys.argv[1:])) if len(sys.argv) == 4 else sys.exit(__doc__)
