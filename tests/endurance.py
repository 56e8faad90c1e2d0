"""Does training survive what happens to long runs? Prints; never a test: it takes minutes.

usage: python tests/endurance.py [--kills 20] [--epochs 50] [--seed 0] [--folder FOLDER]

1. train.py is killed (SIGKILL) at random moments, many times in a row, each time resumed with --resume, with 0, 1 and
   2 workers in turn. Every checkpoint must be readable, no finished epoch may be lost, and log.csv and metrics of the
   end must be those of an undisturbed run, digit for digit.
2. The memory that training holds after many epochs over the same files is compared with that after two.
"""

import argparse
import json
import os
import random as chance
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mri_utils as mri

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONPATH": str(mri.ROOT)}
SMALL = ["--model", "unet(features=4, levels=2, dropout=0.1)", "--batch-size", "2", "--ema", "0.9"]
MEMORY = """
import sys, mri_utils as mri, train
held, line = [], mri.RunState.line
def measure(state):
    held.append(int(open("/proc/self/statm").read().split()[1]) * 4096)
    return line(state)
mri.RunState.line = measure
data, out, epochs, workers, cache = sys.argv[1:]
settings = train.settled(data=data, out=out, epochs=int(epochs), workers=int(workers), cache=cache,
    model="unet(features=4, levels=2)", batch_size=2)
train.train(settings, *train.load_data(settings))
print(held[1], held[-1])
"""


def command(data, out, epochs, *more):
    script = str(mri.ROOT / "train.py")
    words = ["--data", str(data), "--out", str(out), "--epochs", str(epochs)]
    return [sys.executable, script, *words, *SMALL, *more]


def start(words):
    return subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, told = process.communicate()
    if process.returncode:
        sys.exit(f"endurance.py: a run failed:\n{told}")


def wait_for_epoch(process, out):
    """Until log.csv is written once more."""
    log = out / "log.csv"
    before = log.stat().st_mtime_ns if log.exists() else 0
    while process.poll() is None and (log.stat().st_mtime_ns if log.exists() else 0) == before:
        time.sleep(0.002)


def epochs_in(out):
    """How many epochs the log and the checkpoint hold; a checkpoint that cannot be read raises BadInput."""
    log = out / "log.csv"
    rows = len(log.read_text().splitlines()) - 1 if log.exists() else 0
    saved = mri.read_checkpoint(out / "checkpoint.pt")["epoch"] if (out / "checkpoint.pt").exists() else 0
    if (out / "best.pt").exists():
        mri.read_checkpoint(out / "best.pt")
    return rows, saved


def results(out):
    metrics = json.loads((out / "metrics.json").read_text())
    return {name: metrics[name] for name in ("methods", "paired", "per_acquisition", "per_volume", "data", "warnings")}


def kill(data, folder, kills, epochs, seed):
    """Kill and resume; returns whether all was as it should be."""
    whole, out, random, begin = folder / "whole", folder / "killed", chance.Random(seed), time.perf_counter()
    process = start(command(data, whole, epochs))
    wait_for_epoch(process, whole)
    first = time.perf_counter() - begin
    finish(process)
    epoch = mri.read_checkpoint(whole / "checkpoint.pt")["seconds"] / epochs
    print(f"undisturbed: the first epoch after {first:.1f} s, each of {epochs} takes {epoch:.2f} s", flush=True)
    done, between, lost = 0, 0, 0
    for number in range(1, kills + 1):
        process = start(command(data, out, epochs, "--resume", "--workers", str(number % 3)))
        if random.random() < 0.7:  # so often within the epochs, else while the program starts
            wait_for_epoch(process, out)
            time.sleep(random.uniform(0, 1.5) * epoch)
        else:
            time.sleep(random.uniform(0.1, 1) * first)
        if process.poll() is not None:
            sys.exit(f"endurance.py: the run ended before kill {number}: give more epochs")
        process.kill()
        process.communicate()
        rows, saved = epochs_in(out)
        between += rows != saved  # killed between the writing of the checkpoint and that of the log
        lost += saved < done
        done = saved
        print(f"kill {number:2d}: {done} epochs done", flush=True)
    finish(start(command(data, out, epochs, "--resume")))
    log = (out / "log.csv").read_bytes() == (whole / "log.csv").read_bytes()
    metrics = results(out) == results(whole)
    print(
        f"{kills} kills: every checkpoint readable, finished epochs lost {lost}, kills between two writes {between}; "
        f"log.csv {'equal' if log else 'DIFFERENT'}, metrics {'equal' if metrics else 'DIFFERENT'}",
        flush=True,
    )
    return log and metrics and not lost


def remember(data, folder, epochs):
    """Memory after two epochs and after many; returns whether it stayed within 5 %."""
    good = True
    for workers, cache in (("0", ""), ("2", ""), ("0", str(folder / "cache"))):
        words = [sys.executable, "-c", MEMORY, str(data), str(folder / f"memory{workers}{bool(cache)}"), str(epochs)]
        done = subprocess.run([*words, workers, cache], env=ENVIRONMENT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"endurance.py: a run failed:\n{done.stderr}")
        early, late = (int(word) / 2**20 for word in done.stdout.splitlines()[-1].split())
        kind = f"{workers} workers, {'a' if cache else 'no'} cache"
        print(
            f"{kind}: {early:.1f} MiB after 2 epochs, {late:.1f} MiB after {epochs}: {100 * (late / early - 1):+.1f} %"
        )
        good &= late < 1.05 * early
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="in a row (default: 20)")
    parser.add_argument("--epochs", type=int, default=50, help="of every run, at least 2 (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--folder", help="for data and runs (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        data = mri.demo_data(folder / "data", train=4, val=2, slices=2, matrix=48)
        survived = kill(data, folder, arguments.kills, arguments.epochs, arguments.seed)
        sys.exit(0 if remember(data, folder, arguments.epochs) and survived else 1)


if __name__ == "__main__":
    main()
