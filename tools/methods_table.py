"""Score networks beside every tuned classical method on the validation volumes, at 4x and at 8x.

    python tools/methods_table.py RESULT.json CHECKPOINT.pt [CHECKPOINT.pt ...] [NETWORK+METHOD ...]

All checkpoints are of one task. modl+tv_sense is the mean of that network's image and that classical method's. The
classical methods are tuned on training slices, at each acceleration for itself. Masks, metrics and intervals are those
of train.py. Each network is compared with all methods before it, volume by volume; p values are corrected after Holm
for the number of these comparisons. docs/results.md and notebook 15 show the results.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[:0] = [".", ".."]  # where mri_utils.py may be, seen from here

import mri_utils as mri  # noqa: E402
import train  # noqa: E402


def table(task_name, networks, means, acceleration, center_fraction, **chosen):
    """What summarize_run says of all methods; the paired differences are those of each network in its turn."""
    sampling = {"acceleration": acceleration, "center_fraction": center_fraction}
    settings = train.settled(task=task_name, device="cpu", **sampling, **chosen)
    train_set, val_set = train.load_data(settings)
    task = mri.TASKS[task_name]
    if task_name == "single_coil":  # train.py's own table has only those that take seconds
        baselines, tuned = mri.tuned_classical(train_set, mri.Machine(), list(mri.CLASSICAL), slices=8)
    else:
        baselines, tuned = task.baselines(train_set, mri.Machine())
    pairs = {pair: pair.split("+") for pair in means}
    networks = networks | {pair: mri.average(networks[a], baselines[b]) for pair, (a, b) in pairs.items()}
    methods = dict([task.start]) | baselines | networks
    scores = {name: scored._replace(images=[]) for name, scored in mri.score_each(methods, val_set).items()}
    best = {name: scores.pop(name) for name in ["attainable"] if name in scores}
    learned = [name for name in scores if name in networks]
    scores = {name: scores[name] for name in scores if name not in networks} | best | {n: scores[n] for n in learned}
    paired = {}
    for last in range(len(scores) - len(networks), len(scores)):
        metrics = mri.summarize_run(dict(list(scores.items())[: last + 1]), val_set, vars(settings))
        paired |= metrics["paired"]
        print(*mri.lead_lines(metrics | {"paired": paired}), sep="\n")
    for metric in ("ssim", "psnr", "ssim_head", "psnr_head"):
        corrected = mri.holm([found[metric]["wilcoxon_p"] for found in paired.values()])
        for found, p in zip(paired.values(), corrected):
            found[metric]["holm_p"] = p
    print(mri.metrics_table(metrics), flush=True)
    kept = {name: metrics[name] for name in ("data", "methods", "attained", "seconds_per_slice")}
    return kept | {"paired": paired, "tuned": tuned, "sampling": sampling}


def main(args):
    checkpoints, means = ([name for name in args.methods if ("+" in Path(name).name) == mean] for mean in (False, True))
    trained = [mri.read_checkpoint(path)["parameters"] for path in checkpoints]
    called = [mri.read_call(parameters["model"], "model")[0] for parameters in trained]
    names = [call if called.count(call) == 1 else Path(path).stem for call, path in zip(called, checkpoints)]
    networks = {name: mri.load_model(path) for name, path in zip(names, checkpoints)}
    if args.keep_measured:
        ended = {name: mri.ending_measured(network) for name, network in networks.items()}
        networks = {f"{name}_learned_step": network for name, network in networks.items()} | ended
    task = trained[0].get("task", "single_coil")
    chosen = {"data": args.data} if args.data else {}
    tables = {}
    for factor in (4, 8):
        tables[f"{factor}x"] = table(task, networks, means, float(factor), 0.32 / factor, **chosen)
        mri.replace_file(Path(args.result), lambda path: path.write_text(json.dumps(tables, indent=1) + "\n"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", metavar="RESULT.json", help="to write")
    parser.add_argument("methods", nargs="+", metavar="METHOD", help="CHECKPOINT.pt, or NETWORK+METHOD")
    parser.add_argument("--data", default="", metavar="FOLDER", help="instead of the task's own data")
    what = "all networks for coils end with the measured samples as they are, as the classical methods do; as it was "
    what += "trained, each stands beside them as NETWORK_learned_step"
    parser.add_argument("--keep-measured", action="store_true", help=what)
    args = parser.parse_args()
    mri.run_or_explain(lambda: main(args))
