"""Run folders: what a run is about to do, what it did, and where that comes from."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
import math
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from mri_parts.basics import ROOT, BadInput, hash_of, mean, read_call, replace_file
from mri_parts.checks import look_at_all
from mri_parts.dataset import Sample, SliceDataset
from mri_parts.figures import compare, save_figure, show_curves
from mri_parts.images import output_formats, write_dicom, write_nifti
from mri_parts.masks import sampling_mask
from mri_parts.methods import Machine, Method, reconstruct, zero_filled
from mri_parts.metrics import attained, compare_paired, find_shift, metric_cells, summarize
from mri_parts.networks import MODEL_DEFAULTS, MODELS, model_arguments
from mri_parts.parameters import script_defaults
from mri_parts.processes import rank_and_size
from mri_parts.tables import share_cell
from mri_parts.tasks import settle
from mri_parts.training import as_written_today, read_checkpoint, save_checkpoint
from mri_parts.volumes import Volume


class RunState:
    """The run folder while training: checkpoints, history, and where to go on.

    A run folder holds checkpoint.pt (last epoch: weights, optimizer, schedule, random states, all
    parameters, history), best.pt (epoch of the highest validation SSIM) and log.csv (the history). An
    earlier run in the folder is renamed to NAME.1, NAME.2 .. when the first epoch is complete, not
    before: a fault of the input leaves everything as it was.

    Args:
        parameters: all of train.py's; with `resume` the state is read from the folder `out`.
        parts: what the checkpoint holds under NAME_state: the model, optimizer, scheduler .., all with a state_dict.
    Attributes:
        epoch: epochs done.  history: a dict per epoch.  seconds: spent in all, resumed runs included.
        pace: seconds per epoch of late.
    Raises:
        BadInput: the folder holds something else; the checkpoint is damaged or of other parameters.
    """

    FIRST = ("best.pt", "checkpoint.pt")  # all that a run killed in its first save can leave, whole or .partial
    # between a run and its resumption, besides SAME_EXPERIMENT; shards because it follows the number of processes
    MAY_CHANGE = ("data", "epochs", "skip_unreadable", "shards")

    def __init__(self, parameters: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
        self.parameters, self.parts = parameters, parts
        self.folder, self.seconds, self.pace = Path(parameters["out"]), 0.0, 0.0
        self.history: list[dict[str, float]] = []
        self.tensorboard: Any = None
        last = self.folder / "checkpoint.pt"
        if parameters["resume"] and rank_and_size()[0] == 0:
            for left in self.folder.glob("*.partial"):  # by a run that was killed while it wrote
                left.unlink()
        if parameters["resume"] and last.exists():
            self._load(read_checkpoint(last), last)
        elif self.folder.exists() and not self.folder.is_dir():
            raise BadInput(f"{self.folder}: is a file, but a run needs a folder: choose another --out")
        elif not last.exists() and any(not f.name.startswith(self.FIRST) for f in self.folder.glob("*")):
            raise BadInput(f"{self.folder}: holds files that are no run: choose another --out or empty it")

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    def _load(self, content: Mapping[str, Any], path: Path) -> None:
        for name, value in self.parameters.items():
            before = content["parameters"].get(name, value)
            if name not in (*SAME_EXPERIMENT, *self.MAY_CHANGE) and before != value:
                trained = f"trained with {name} {before!r}, not {value!r}"
                raise BadInput(f"{path}: {trained}: resume with the same parameters, or choose another --out")
        if not {f"{name}_state" for name in self.parts} <= set(content):
            raise BadInput(f"{path}: holds weights only, no run to go on with: resume from a run's own checkpoint.pt")
        try:
            for name, part in self.parts.items():
                part.load_state_dict(content[f"{name}_state"])
            torch.set_rng_state(content["cpu_random_state"])
            if torch.cuda.is_initialized() and len(content["gpu_random_state"]):
                torch.cuda.set_rng_state(content["gpu_random_state"])
            self.history, self.seconds = content["history"], float(content["seconds"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise BadInput(f"{path}: its state is not of this network and optimizer: choose another --out") from error
        print(f"{path}: going on after epoch {self.epoch}", flush=True)

    def save(self, row: Mapping[str, float], seconds: float) -> None:
        """Add an epoch to the history and write checkpoint and log.

        Raises:
            BadInput: the loss is not finite; the checkpoint of the epoch before stays.
        """
        if not math.isfinite(row["train_loss"]):
            raise BadInput(f"epoch {row['epoch']}: the loss is {row['train_loss']}: training diverged, lower lr")
        first = rank_and_size()[0] == 0  # the one process that writes
        if first and not self.history and not self.parameters["resume"]:
            self._keep_earlier_run()
        self.history.append(dict(row))
        self.seconds += seconds
        self.pace = (self.pace + seconds) / 2 if self.pace else seconds  # a mean in which the last epochs weigh most
        if not first:
            return
        gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else torch.empty(0, dtype=torch.uint8)
        content = {f"{name}_state": part.state_dict() for name, part in self.parts.items()} | {
            "parameters": dict(self.parameters),
            "epoch": self.epoch,
            "best_ssim": max(r["val_ssim"] for r in self.history),
            "history": self.history,
            "seconds": self.seconds,
            "cpu_random_state": torch.get_rng_state(),
            "gpu_random_state": gpu,
        }
        if row["val_ssim"] == content["best_ssim"]:
            save_checkpoint(self.folder / "best.pt", content)
        save_checkpoint(self.folder / "checkpoint.pt", content)
        lines = [",".join(row), *(",".join(repr(value) for value in r.values()) for r in self.history)]
        replace_file(self.folder / "log.csv", lambda partial: partial.write_text("\n".join(lines) + "\n"))
        self._log_to_tensorboard(row)

    def _log_to_tensorboard(self, row: Mapping[str, float]) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        epoch = int(row["epoch"])
        if self.tensorboard is None:  # what an earlier, broken-off run wrote of this and later epochs is forgotten
            self.tensorboard = SummaryWriter(str(self.folder / "tensorboard"), purge_step=epoch)
        for name, value in row.items():
            if name != "epoch":
                self.tensorboard.add_scalar(name, value, epoch)
        self.tensorboard.flush()

    def _keep_earlier_run(self) -> None:
        if (self.folder / "checkpoint.pt").exists():
            numbers = (n for n in range(1, 10**6) if not Path(f"{self.folder}.{n}").exists())
            kept = self.folder.rename(f"{self.folder}.{next(numbers)}")
            print(f"{self.folder} held a run: kept as {kept}")

    def line(self) -> str:
        """One line on the last epoch, and how long the others will take."""
        row, left = self.history[-1], self.pace * (self.parameters["epochs"] - self.epoch)
        rest = f"about {left / 60:.0f} min left" if left >= 90 else f"about {math.ceil(left / 10) * 10} s left"
        return (
            f"epoch {row['epoch']:3d}/{self.parameters['epochs']}  loss {row['train_loss']:.4f}  "
            f"validation SSIM {row['val_ssim']:.4f}  PSNR {row['val_psnr']:.2f} dB  {self.seconds:.0f} s"
            + (f", {rest}" if left > 0 else "")
        )


@torch.inference_mode()
def save_progress(folder: str | Path, network: Method, start: Method, val_set: SliceDataset, machine: Machine) -> None:
    """Write figures/progress.png: always the same validation slice, as it looks now.

    From left to right: the method that fills nothing in, the network, the reference, in one window from 0 to the
    volume's maximum. The slice is the middle one of the first volume, of a sequence the middle frame.

    Args:
        folder: of the run.
        network: in evaluation mode, else its dropout would draw random numbers.
        start: the task's zero_filled.
        val_set: validation slices.
        machine: where to reconstruct.
    """
    if rank_and_size()[0] > 0:
        return  # the first process writes
    from PIL import Image

    chosen = [i for i, (volume, _) in enumerate(val_set.slices) if volume == 0]
    batch = Sample.stack([val_set[chosen[len(chosen) // 2]]]).to(machine.device)
    images = [reconstruct(start, batch), reconstruct(network, batch, machine.precision), batch.target]
    frames = [(image / batch.peak).cpu().flatten(0, -3) for image in images]
    shown = torch.cat([stack[len(stack) // 2] for stack in frames], dim=-1)
    picture = Image.fromarray((255 * shown.clamp(0, 1)).to(torch.uint8).numpy())
    picture.thumbnail((960, 320))  # a small file, however large the images
    replace_file(Path(folder) / "figures" / "progress.png", lambda partial: picture.save(partial, "png"))


def describe(data: str, train_set: SliceDataset, val_set: SliceDataset, machine: Machine) -> str:
    """What a run is about to do with the folder `data`, in one line."""
    acceleration, center_fraction = val_set.sampling[0]
    simulated = ", simulated" if all(v.attributes.get("simulated") for v in val_set.volumes) else ""
    return (
        f"{data}{simulated}: {len(train_set)} training slices of {len(train_set.volumes)} volumes, "
        f"{len(val_set)} validation slices of {len(val_set.volumes)}; mask {val_set.mask} "
        f"{acceleration:g}x, centre {100 * center_fraction:g} %; {machine.device}"
        + (f", {machine.precision}" if machine.precision != "float32" else "")
        + (f", {rank_and_size()[1]} processes" if rank_and_size()[1] > 1 else "")
    )


# Parameters that say where and how a run computes, not what.
SAME_EXPERIMENT = ("device", "workers", "cache", "compile", "accumulate", "resume", "out", "format")


def _with_arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with the bare name of the model, and the arguments of its call beside it."""
    name = read_call(parameters["model"], "model")[0] if parameters.get("model") else ""
    if name not in MODELS:
        return dict(parameters)
    return {**parameters, **model_arguments(parameters["model"]), "model": name}


def changed_parameters(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """name -> (in a, in b) of the parameters that make two runs different experiments.

    An ablation that changes more than one of them shows nothing about either. What each run has because it is its
    model's own, and differs because the models do, is no change besides.
    """
    one, other = _with_arguments(a), _with_arguments(b)
    models = [one.get("model", ""), other.get("model", "")]
    if models[0] != models[1]:  # the arguments differ because the models do
        one, other = dict(a), dict(b)
    names = [name for name in {**one, **other} if name not in SAME_EXPERIMENT]
    changed = {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}
    if "model" not in changed:
        return changed
    moved = [MODEL_DEFAULTS.get(model, {}) for model in models]
    usual = script_defaults()
    follows = [
        name
        for name in {**moved[0], **moved[1]}
        if all(p.get(name) == own.get(name, usual.get(name)) for p, own in zip((a, b), moved))
    ]
    return {name: values for name, values in changed.items() if name not in follows}


def quality_warnings(scores: Mapping[str, tuple], val_set: SliceDataset) -> list[str]:
    """What is suspicious about a run, one line each: the files, the masks, the scores, the images.

    Args:
        scores: as in summarize_run; the network, its last, is held against the first, which fills nothing in.
        val_set: what was scored.
    """
    volumes, lines = val_set.volumes, []
    acceleration, center_fraction = val_set.sampling[0]
    lines += val_set.warnings if val_set.warnings is not None else look_at_all([volumes]).warnings
    first = {v: i for i, (v, _) in reversed(list(enumerate(val_set.slices)))}  # of each volume
    samples = [val_set[first[v]] for v in range(len(volumes))]
    reached = mean(float(sample.acceleration) for sample in samples)
    if not 0.9 < reached / acceleration < 1.1:
        lines.append(f"asked for {acceleration:g}x, the masks keep {reached:.2f}x: state that number")
    sampling = val_set.mask, val_set.size(0), acceleration, center_fraction
    drawn = {sampling_mask(*sampling, seed=s).numpy().tobytes() for s in range(8)}
    used = {tuple(sample.mask.shape): sample.mask for sample in samples}
    if len(samples) > 2 and len(drawn) > 4 and all(s.mask.equal(used[tuple(s.mask.shape)]) for s in samples):
        lines.append("one mask for all volumes: the figures hold for this mask only, draw one per volume")
    start, network = next(iter(scores)), list(scores)[-1]
    for name, (rows, images, _) in scores.items():
        for metric in ("ssim", "psnr") if name == network else ():
            ours, before = (mean(row[metric] for row in r) for r in (rows, scores[start][0]))
            if ours < before:
                against = f"below {start.replace('_', '-')} ({ours:.4g} < {before:.4g})"
                # A network that fills nothing in gives zero filling's image; one that learned badly gives another.
                filled = zero_filled(samples[0].kspace, samples[0].mask, samples[0].target.shape[-2:])
                filled = volumes[0].magnitude(filled).reshape(-1, *filled.shape[-2:])[0]
                same = bool((images[0][0] - filled).norm() < 1e-2 * filled.norm())
                meaning = (
                    "its images are the zero-filled ones: labels swapped, or nothing learned?"
                    if same
                    else "it makes the images worse"
                )
                lines.append(f"{name}: {metric.upper()} {against}: {meaning}")
        targets = [sample.target.reshape(-1, *sample.target.shape[-2:])[0] for sample in samples]
        shifts = [find_shift(target, image[0]) for target, image in zip(targets, images)]
        moved = [shift for shift in shifts if shift != (0, 0)]
        if moved:
            lines.append(f"{name}: {len(moved)} of {len(shifts)} volumes shifted by {moved[0]} pixels: check fftshift")
    return lines


def summarize_run(
    scores: Mapping[str, tuple],
    val_set: SliceDataset,
    parameters: Mapping[str, Any],
    train_set: SliceDataset | None = None,
) -> dict[str, Any]:
    """The content of metrics.json: means with intervals, in all and by acquisition, and every volume.

    Args:
        scores: method -> (a {metric: value} per volume, images, seconds per slice), what fills nothing in first, the
            network last; see score_each.
        val_set: what was scored.
        parameters: all of train.py's, to be recorded.
        train_set: what the network learned from, to be recorded in the provenance.
    """
    volumes = val_set.volumes
    subjects = [volume.patient_id for volume in volumes]
    rows = {name: rows for name, (rows, _, _) in scores.items()}

    def table(chosen: Sequence[int]) -> dict[str, Any]:
        return {
            name: {m: summarize([rows[name][i][m] for i in chosen], [subjects[i] for i in chosen]) for m in measured}
            for name in rows
        }

    *others, network = rows
    measured = list(rows[network][0])
    everything = range(len(volumes))
    kinds = sorted({v.acquisition for v in volumes})
    first = {v: i for i, (v, _) in reversed(list(enumerate(val_set.slices)))}  # of each volume
    samples = [val_set[i] for i in first.values()]
    return {
        "parameters": dict(parameters),
        "provenance": provenance(parameters)
        | {"validation_masks": hash_of(*(sample.mask.numpy().tobytes() for sample in samples))}
        | {"validation_data": describe_data(val_set)}
        | ({"training_data": describe_data(train_set)} if train_set else {}),
        "data": {
            "volumes": len(volumes),
            "subjects": len(set(subjects)),
            "slices": len(val_set),
            "simulated": all(bool(v.attributes.get("simulated")) for v in volumes),
            "effective_acceleration": mean(float(sample.acceleration) for sample in samples),
        },
        "methods": (methods := table(everything)),
        "attained": attained(methods),
        "per_acquisition": {kind: table([i for i in everything if volumes[i].acquisition == kind]) for kind in kinds},
        "paired": {
            f"{network} - {other}": {
                m: compare_paired([row[m] for row in rows[network]], [row[m] for row in rows[other]], subjects)
                for m in measured
            }
            for other in others
        },
        "per_volume": {
            volumes[i].path.name: {"acquisition": volumes[i].acquisition, "subject": volumes[i].patient_id}
            | {name: rows[name][i] for name in rows}
            for i in everything
        },
        "warnings": quality_warnings(scores, val_set),
        "seconds_per_slice": {name: seconds for name, (_, _, seconds) in scores.items()},
    }


def write_reconstruction(folder: str | Path, volume: Volume, image: Tensor, formats: str = "h5") -> None:
    """Write (slices, h, w) to folder/reconstructions under the volume's name, as fastMRI's evaluation reads it.

    With "h5 nifti dicom" also as NAME.nii.gz, and as files in the folder NAME.
    """

    def write(partial: Path) -> None:
        with h5py.File(partial, "w") as file:
            file["reconstruction"] = image.numpy()

    place = Path(folder) / "reconstructions" / volume.path.name
    replace_file(place, write)
    for name in output_formats(formats):
        if name == "nifti":
            write_nifti(place.with_name(f"{place.stem}.nii.gz"), volume, image)
        else:
            write_dicom(place.with_suffix(""), volume, image)


def save_run(
    folder: str | Path,
    metrics: Mapping[str, Any],
    images: Mapping[str, Sequence[Tensor]],
    val_set: SliceDataset,
    history: Sequence[Mapping[str, float]],
) -> None:
    """Write figures/*.png, reconstructions/*.h5 (in the format of fastMRI's evaluation) and metrics.json.

    The figures of a volume show the reference, the first method, the best of the others by SSIM, and the network.

    Args:
        folder: of the run.
        metrics: what summarize_run returned; written last, so that it marks a complete run.
        images: method -> a reconstruction (slices, h, w) per volume, the network last.
        val_set: the volumes that were reconstructed.
        history: a row per epoch, for the learning curves.
    """
    if rank_and_size()[0] > 0:
        return  # the first process writes
    folder, network = Path(folder), list(images)[-1]
    for volume, image in zip(val_set.volumes, images[network]):
        write_reconstruction(folder, volume, image, metrics["parameters"].get("format", "h5"))
    quality = [metrics["per_volume"][v.path.name][network]["ssim"] for v in val_set.volumes]
    order = np.argsort(quality)
    picks = {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}
    start, *between = list(images)[:-1]
    # four pictures stand in one row: of the methods between, the best
    rivals = sorted(between, key=lambda name: metrics["methods"][name]["ssim"]["mean"])[-1:]
    shown = {name: images[name] for name in (start, *rivals, network)}
    figures = {name: _compare_volume(val_set, int(i), shown) for name, i in picks.items()}
    figures["curves"] = show_curves(history)
    for name, figure in figures.items():
        save_figure(figure, folder / "figures" / f"{name}.png")
    text = json.dumps(metrics, indent=1)
    replace_file(folder / "metrics.json", lambda partial: partial.write_text(text))


@dataclass(frozen=True)
class Run:
    """A finished run folder, as read_run opens it.

    Attributes:
        folder: the run folder.
        metrics: metrics.json.
        history: a row per epoch, from log.csv; empty where there is none.
    """

    folder: Path
    metrics: dict
    history: list[dict[str, float]]

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the run."""
        return self.metrics["parameters"]

    @property
    def network(self) -> str:
        """The name of the network among the methods: the last one."""
        return list(self.metrics["methods"])[-1]


def read_run(folder: str | Path) -> Run:
    """Open a run folder that train.py has finished.

    Raises:
        BadInput: no such folder, the run is not finished, or its metrics.json is not train.py's.
    """
    folder = Path(folder)
    path, log = folder / "metrics.json", folder / "log.csv"
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such run folder: train first (python train.py --out {folder})")
    if not path.is_file():
        raise BadInput(f"{folder}: no metrics.json in it: finish the run (python train.py --resume --out {folder})")
    try:
        metrics = json.loads(path.read_text())
        missing = {"parameters", "provenance", "data", "methods", "per_volume"} - set(metrics)
        if missing or not metrics["methods"]:
            raise ValueError(f"no {', '.join(sorted(missing)) or 'method'} in it")
        metrics["parameters"] = as_written_today(metrics["parameters"])
        lines = csv.DictReader(log.read_text().splitlines()) if log.is_file() else []
        history = [{name: float(value) for name, value in line.items()} for line in lines]
    except (ValueError, TypeError) as error:
        raise BadInput(f"{folder}: its metrics.json or log.csv is not train.py's ({error}): train again") from error
    return Run(folder, metrics, history)


def _compare_volume(val_set: SliceDataset, index: int, images: Mapping[str, Sequence[Tensor]]) -> Any:
    """The middle slice of a volume by every method, titled with the volume's name."""
    volume = val_set.volumes[index]
    targets = [volume.target(s) for v, s in val_set.slices if v == index]
    labels = [f"slice {s}" for v, s in val_set.slices if v == index]
    if targets[0].ndim > 2:  # the frames of a sequence
        labels = [f"{label}, frame {f}" for label, frames in zip(labels, targets) for f in range(len(frames))]
    target = torch.cat([t.reshape(-1, *t.shape[-2:]) for t in targets])
    middle = len(target) // 2
    shown = {name: stack[index][middle] for name, stack in images.items()}
    figure = compare(target[middle], shown, volume.maximum, width=6.4)
    figure.suptitle(f"{volume.path.stem}, {labels[middle]}", fontsize=9)
    return figure


def describe_data(dataset: SliceDataset) -> dict[str, Any]:
    """What a data set holds: counts, and a hash of the file names and of Volume.fingerprints."""
    volumes = dataset.volumes
    parts = (text.encode() for volume in volumes for text in (volume.path.name, *volume.fingerprints()))
    return {
        "volumes": len(volumes),
        "subjects": len({v.patient_id for v in volumes}),
        "slices": len(dataset),
        "hash": hash_of(*parts),
    }


def peak_memory() -> dict[str, int]:
    """The most memory that this process has held so far, in MiB: main memory, and the GPU's if it used one."""
    memory = {}
    if sys.platform != "win32":  # which has no such counter
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on a Mac, else KiB
        memory["main"] = peak // 2**20 if sys.platform == "darwin" else peak // 2**10
    if torch.cuda.is_initialized():
        memory["gpu"] = torch.cuda.max_memory_allocated() // 2**20
    return memory


def typed_command(parameters: Mapping[str, Any]) -> str:
    """The command that makes a run again, as a person types it in the book's folder.

    A program's own; in a notebook, whose kernel was started by another program, train.py with those flags that differ
    from the defaults of the task and the model.

    Args:
        parameters: all of train.py's, as they were used; {} if the results are not of train.py.
    """
    if "get_ipython" not in sys.modules["__main__"].__dict__:
        program = Path(sys.argv[0])
        inside = program.resolve().is_relative_to(ROOT)
        own = program.resolve().relative_to(ROOT).as_posix() if inside else program.name
        return shlex.join(["python", own, *sys.argv[1:]])
    if not parameters:
        return "cells of a notebook"
    named = {name: parameters[name] for name in ("task", "model", "evaluate", "upscale_factor")}
    usual, words = vars(settle(script_defaults(), named)), ["python", "train.py"]
    usual |= {name: script_defaults()[name] for name in named}
    for name, value in parameters.items():
        flag = name.replace("_", "-")
        if value == usual[name] or name in ("device", "precision", "workers"):  # these the machine chooses
            continue
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return shlex.join(words)


def provenance(parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Where a result comes from: commit and whether it holds all Python code here, versions, machine, memory used.

    Args:
        parameters: all of train.py's, if it made the result.
    """

    def git(*arguments: str) -> str:
        if not shutil.which("git"):
            return ""
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    packages = ("h5py", "matplotlib", "scikit-image", "scipy")
    commit = git("rev-parse", "HEAD")
    return {
        "finished": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "commit": commit or "unknown",
        "clean": bool(commit) and git("status", "--porcelain", "--untracked-files=all", "--", "*.py") == "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_initialized() else platform.machine(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "peak_memory_mib": peak_memory(),
        "command": typed_command(parameters or {}),
    }


def compare_runs(runs: Sequence[Run], part: str = "") -> list[dict[str, str]]:
    """Rows of the table that compares runs: under each mask the methods that learn nothing, then the networks.

    Args:
        runs: finished runs; parameters that differ between them, beyond model, mask and seed, get a column.
        part: of PARTS, whose figures are wanted; "" for those of the whole image.
    Returns:
        what format_table and show_table take; a row has the metrics that its run has.
    """
    exam = ("data", "mask", "acceleration", "center_fraction")  # what all methods share
    named = (*exam[1:], "model", "seed")
    changed = [name for run in runs for name in changed_parameters(runs[0].parameters, run.parameters)]
    varied = [name for name in dict.fromkeys(changed) if name not in named]

    def shared(run: Run) -> tuple[Any, ...]:
        return tuple(run.parameters[name] for name in exam)

    order = sorted(runs, key=lambda run: (*shared(run), run.network, run.parameters["seed"], run.folder.name))
    rows = []
    for number, run in enumerate(order):
        fresh = number == 0 or shared(run) != shared(order[number - 1])
        for method in run.metrics["methods"] if fresh else [run.network]:
            _, mask, factor, fraction = shared(run)
            own = _with_arguments(run.parameters) if method == run.network else {"data": run.parameters["data"]}
            rows.append(
                {"mask": mask, "acceleration": f"{factor:g}x ({run.metrics['data']['effective_acceleration']:.2f})"}
                | {"centre": f"{fraction:g}", "method": method, "seed": str(own.get("seed", ""))}
                | {name: str(own.get(name, "")) for name in varied}
                | metric_cells(run.metrics["methods"][method], part)
                | share_cell(run.metrics, method, part)
            )
    return rows
