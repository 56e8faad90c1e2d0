"""Train with several settings, several at a time, and compare the runs: what `make sweep` does.

usage: python tools/sweep.py [--flag value ...] [--jobs N] [--out FOLDER]

The flags are those of train.py, and each takes one or more values; every combination is one run:

    python tools/sweep.py --model unet magnitude_unet --mask random equispaced --seed 0 1 --jobs 2
    python tools/sweep.py --acceleration 4 8 --center-fraction 0.08 0.04

As in fastMRI several centre fractions belong to the accelerations one by one: 4x with 8 %, 8x with 4 %.

A run's folder, FOLDER/unet_random_4x_seed0, is named by its settings, and what it prints stands beside it
in a .txt file. Finished runs are skipped and interrupted ones continue: after a crash give the same
command again. All settings are checked before the first run starts. At the end the table is printed, and
FOLDER/comparison.html holds it with intervals and figures.
"""

import contextlib
import itertools
import multiprocessing
import os
import re
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]  # this copy

import torch  # noqa: E402
from publish import publish  # noqa: E402
from tqdm import tqdm  # noqa: E402

import mri_utils as mri  # noqa: E402
import train  # noqa: E402

OWN = """
jobs: int = 1  # runs at a time, each with its share of the cores
out: str = "runs/sweep"  # folder for the run folders and the comparison
"""
NAMED = ("model", "mask", "acceleration", "seed")  # always in a folder's name; others where they vary


def combinations(values: dict[str, list], out: Path) -> dict[Path, dict[str, Any]]:
    """Every combination of the values: run folder -> the parameters given to train.py.

    Args:
        values: parameter -> the values to try; the others keep train.py's defaults, the task's and the model's.
        out: folder of the run folders.
    Raises:
        BadInput: an unknown parameter, centre fractions that do not pair with the accelerations.
    """
    for name in values:
        mri.choose({n: None for n in train.defaults if n not in ("resume", "out")}, name, "parameter of a sweep")
    fractions = list(values.get("center_fraction", []))
    values = {name: list(dict.fromkeys(some)) for name, some in values.items() if name != "center_fraction"}
    rates = values.get("acceleration", [None])
    if len(fractions) not in (0, 1, len(rates)):
        raise mri.BadInput(
            f"{len(fractions)} centre fractions for {len(rates)} accelerations: give one for all or one for each"
        )
    fraction_of = dict(zip(rates, fractions * len(rates) if len(fractions) == 1 else fractions))  # empty: the task's
    varied = [name for name, some in values.items() if len(some) > 1 and name not in NAMED]
    names = [mri.read_call(call, "model")[0] for call in values.get("model", [])]
    several_calls, found = len(set(names)) < len(names), {}
    for chosen in itertools.product(*values.values()):
        given = dict(zip(values, chosen)) | {"resume": True}
        if fraction_of:
            given["center_fraction"] = fraction_of[given.get("acceleration")]
        model, mask, rate, seed = (vars(train.settled(**given))[name] for name in NAMED)
        model = model if several_calls else mri.read_call(model, "model")[0]
        words = [model, mask, f"{rate:g}x", f"seed{seed}", *(f"{name}{given[name]}" for name in varied)]
        folder = out / re.sub(r"[^\w.=+-]+", "-", "_".join(words)).replace("-_", "_")  # no brackets, no quotes
        found[folder] = given | {"out": str(folder)}
    return found


def is_finished(folder: Path, parameters: dict[str, Any]) -> bool:
    """Whether a run folder holds the finished run of these parameters.

    Raises:
        BadInput: it holds a run, finished or not, of other parameters.
    """
    stored = None
    if (folder / "metrics.json").is_file():
        stored = mri.read_run(folder).parameters
    elif (folder / "checkpoint.pt").is_file():
        stored = mri.read_checkpoint(folder / "checkpoint.pt")["parameters"]
    wanted = train.settled(**parameters)
    for name, (before, value) in mri.changed_parameters(stored, vars(wanted)).items() if stored else ():
        raise mri.BadInput(f"{folder}: holds a run with {name} {before!r}, not {value!r}: choose another --out")
    return (folder / "metrics.json").is_file()


def check_all(runs: dict[Path, dict[str, Any]]) -> None:
    """Refuse now what would stop a run later: values, data, masks that are impossible."""
    seen = set()
    for parameters in runs.values():
        settings = train.settled(**parameters)
        key = str([getattr(settings, name) for name in ("data", "task", "mask", "acceleration", "center_fraction")])
        if key not in seen:
            train.load_data(settings)
        seen.add(key)


def begin(jobs: int) -> None:
    """At the start of each process: a fair share of the cores, and an end when the sweep ends."""
    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // jobs)))
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore, which a run that is stopped would leave behind
    parent = multiprocessing.parent_process()

    def leave() -> None:
        parent.join()  # a sweep that is killed leaves no run behind that would write beside its successor
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def train_one(parameters: dict[str, Any]) -> None:
    """One run, in a process of its own; what it prints goes to a file beside the folder."""
    with open(parameters["out"] + ".txt", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        train.run(**parameters)


def sweep(runs: dict[Path, dict[str, Any]], jobs: int) -> list[str]:
    """Train those runs that are not finished, `jobs` at a time; returns a line for each that failed."""
    waiting = {folder: parameters for folder, parameters in runs.items() if not is_finished(folder, parameters)}
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished before; {jobs} at a time", flush=True)
    failed, done = [], len(runs) - len(waiting)
    # A fresh process per run: its peak memory is its own, and nothing leaks from run to run.
    options = {"max_tasks_per_child": 1, "mp_context": multiprocessing.get_context("spawn")}
    pool = ProcessPoolExecutor(jobs, initializer=begin, initargs=(jobs,), **options)
    tasks = {pool.submit(train_one, parameters): folder for folder, parameters in waiting.items()}
    try:
        for task in as_completed(tasks):
            done += 1
            error = task.exception()
            if error:
                failed.append(f"{tasks[task].name}: {error or type(error).__name__}")
            print(f"{done}/{len(runs)} {tasks[task].name}{': failed' if error else ''}", flush=True)
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return failed


def main(words: list[str]) -> int:
    """Check, train, compare; returns the exit status."""
    lines = Path(train.__file__).read_text(encoding="utf-8").splitlines()
    swept = "\n".join(line for line in lines if not line.startswith(("out:", "resume:")))
    parser = mri.flag_parser(__doc__.split("\n\n", 2)[2], swept, several=True)
    mri.add_flags(parser, OWN)
    values = vars(parser.parse_args(words))
    jobs, out = values.pop("jobs"), Path(values.pop("out"))
    if jobs < 1:
        raise mri.BadInput(f"jobs {jobs}: use a whole number of at least 1")
    runs = combinations(values, out)
    check_all(runs)
    out.mkdir(parents=True, exist_ok=True)
    failed = sweep(runs, jobs)
    finished = [mri.read_run(folder) for folder, parameters in runs.items() if is_finished(folder, parameters)]
    if finished:
        print(mri.format_table(mri.compare_runs(finished)))
        print(publish("comparison", out / "comparison.html", folder=os.path.relpath(out, mri.ROOT)))
    for line in failed:
        print(f"sweep.py: failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except mri.BadInput as error:
        sys.exit(f"sweep.py: {error}")
    except KeyboardInterrupt:
        sys.exit("sweep.py: interrupted; the same command goes on after the last full epoch of each run")
