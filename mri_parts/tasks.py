"""What one kind of experiment changes: its files, its baselines, its networks. Never the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mri_parts.basics import BadInput, choose, read_call
from mri_parts.checks import centre_share, check_split, check_table, look_at_all
from mri_parts.dataset import SliceDataset, cache_volumes
from mri_parts.figures import format_table, save_figure, show_seen
from mri_parts.methods import Machine, Method, classical_method, tune, zero_filled
from mri_parts.metrics import hidden_share
from mri_parts.networks import MODEL_DEFAULTS, MODELS, model_arguments, model_axes
from mri_parts.scanner import demo_data
from mri_parts.training import read_checkpoint
from mri_parts.volumes import DEFAULT_AXES, Volume, all_faults, read_folder, read_train_and_val


def _nothing(*_: Any) -> None:
    """What a task does that has nothing to check and nothing to export."""


@dataclass(frozen=True)
class Task:
    """What one kind of experiment changes in train.py: the files, the baselines, the networks; never the loop.

    Attributes:
        settings: parameters of train.py whose defaults it moves; `data` is the demo folder.
        demo: simulates the demo data where they are missing and returns their folder.
        axes: of its volumes, ("slices", "H", "W") for one coil, whatever kind of file they are in. Models for the same
            axes of a sample suit it.
        start: name and method that fill nothing in, with which all others are compared.
        baselines: (training slices, machine) -> the methods that the network is scored beside, and what was
            tuned for them on these slices, for metrics.json.
        check: (all parameters, those that were given) -> nothing: refuses or derives, before anything is read.
        export: (folder, network, slices) -> nothing: what a run folder holds besides.
        metrics: name -> function of (target, reconstruction), each (slices, h, w), beside METRICS.
    """

    settings: Mapping[str, Any]
    demo: Callable[[], Path]
    start: tuple[str, Method]
    baselines: Callable[[SliceDataset, Machine], tuple[dict[str, Method], dict[str, float]]]
    axes: tuple[str, ...] = DEFAULT_AXES[3]
    check: Callable[[SimpleNamespace, Mapping[str, Any]], None] = _nothing
    export: Callable[[Path, Method, SliceDataset], None] = _nothing
    metrics: dict[str, Callable[..., float]] = field(default_factory=dict)


def tuned_classical(
    train_set: SliceDataset, machine: Machine, names: Sequence[str] = ("tv", "phase_tv"), slices: int = 16
) -> tuple[dict[str, Method], dict[str, float]]:
    """Classical methods with the weights that suit the training slices best.

    Args:
        train_set, machine: as in tune.
        names: of CLASSICAL. Those of single_coil's baselines take seconds; low_rank would take minutes.
        slices: to tune on.
    """
    weights = {name: tune(name, train_set, slices=slices, device=machine.device) for name in names}
    methods = {name: classical_method(name, weight) for name, weight in weights.items()}
    return methods, {f"{name}_weight": weight for name, weight in weights.items()}


TASKS: dict[str, Task] = {
    "single_coil": Task(
        settings=dict(data="data/demo", model="unet", mask="random", acceleration=4.0, center_fraction=0.08),
        demo=demo_data,
        start=("zero_filled", zero_filled),
        baselines=tuned_classical,
    )
}


def settle(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> SimpleNamespace:
    """The parameters of train.py as they will be used.

    The defaults, moved by the task, then by the model, then, with `evaluate`, by the checkpoint, which is scored as
    it was trained; then what was given.

    Args:
        defaults: name -> value of all parameters.
        given: those that somebody asked for.
    Raises:
        BadInput: an unknown parameter, task or model; a model for other axes; another model than the checkpoint's;
            numbers that cannot work.
    """
    for name in given:
        choose(defaults, name, "parameter")
    checkpoint = given.get("evaluate", defaults["evaluate"])
    trained = read_checkpoint(checkpoint)["parameters"] if checkpoint else {}
    task_name = given.get("task", trained.get("task", defaults["task"]))
    task = choose(TASKS, task_name, "task")
    asked = {**defaults, **task.settings, **trained, **given}["model"]
    if trained and asked != trained["model"]:
        raise BadInput(f"{checkpoint}: has model {trained['model']!r}, not {asked!r}: leave it out")
    name, _ = read_call(asked, "model")
    model_arguments(asked)
    own = {"task": task_name, "model": asked, "out": f"runs/{name}", **MODEL_DEFAULTS.get(name, {})}
    as_trained = {key: trained[key] for key in task.settings if key != "data" and key in trained}
    settings = SimpleNamespace(**{**defaults, **task.settings, **own, **as_trained, **given})
    if model_axes(name) != task.axes[1:]:
        fitting = ", ".join(model for model in MODELS if model_axes(model) == task.axes[1:])
        raise BadInput(f"model {name!r} is not for task {task_name!r}: use {fitting}")
    if settings.upscale_factor != 1 and "upscale_factor" not in task.settings:
        raise BadInput(f"task {task_name!r} has no upscale_factor: leave it out, or choose task super_resolution")
    _check_numbers(settings)
    if hidden_share(settings.loss) and (task_name != "single_coil" or settings.tv_weight or settings.adversary):
        raise BadInput("loss ssdu judges the k-space of task single_coil: leave out tv_weight, adversary, other tasks")
    task.check(settings, given)
    return settings


def _check_numbers(settings: SimpleNamespace) -> None:
    """Refuse numbers that cannot work. Masks check theirs when a data set is made."""
    for name in ("epochs", "batch_size", "accumulate"):
        if getattr(settings, name) < 1:
            raise BadInput(f"{name} {getattr(settings, name)}: use a whole number of at least 1")
    for name in ("shards", "train_slices", "seed", "tv_weight", "weight_decay", "clip"):
        if not 0 <= getattr(settings, name) < math.inf:
            raise BadInput(f"{name} {getattr(settings, name)}: use 0 or a positive number")
    if settings.workers < -1:
        raise BadInput(f"workers {settings.workers}: use 0 or a positive number, or -1")
    if settings.seed >= 2**32:
        raise BadInput(f"seed {settings.seed}: use a number below 2**32")
    if not 0 < settings.lr < math.inf:
        raise BadInput(f"lr {settings.lr}: use a positive number, such as 0.001")
    if not 0 <= settings.ema < 1:
        raise BadInput(f"ema {settings.ema}: use a number from 0 to below 1")
    if settings.accumulate > 1 and settings.adversary:
        raise BadInput("accumulate: adversarial training takes whole batches: set accumulate to 1, or lower batch_size")


def data_folder(task: str, data: str) -> Path:
    """The folder `data`; if it is the task's own, the demo data are simulated where they are missing."""
    return TASKS[task].demo() if data == TASKS[task].settings["data"] else Path(data)


def read_data(
    task: str, data: str, centre: float = 0.08, skip: bool = False, cache: str = "", references: bool = True
) -> tuple[list[Volume], list[Volume], list[str]]:
    """Training and validation volumes after a look at all of them, read from a cache where `cache` names a folder.

    Args:
        task, data: whose files, and their folder.
        centre: share of the columns that the masks will keep around DC, see centre_share.
        skip: leave broken files and empty slices out, instead of refusing.
        cache: folder for slices ready to train with; "": none.
        references: whether the training files must have them; without, files that were undersampled may teach too.
    Returns:
        both, and the warnings that the files give rise to, a line each.
    Raises:
        BadInput: see read_train_and_val, look_at_all and check_split.
    """
    broken: list[str] = []
    folder, axes = data_folder(task, data), TASKS[task].axes
    try:
        groups = read_train_and_val(folder, axes, broken)
    except BadInput as error:
        raise all_faults([*broken, str(error)]) from error
    (train, val), warnings = look_at_all(groups, centre, skip, broken)
    check_split(train, val, references)
    if cache:
        train, val = cache_volumes(train, cache), cache_volumes(val, cache)
    return train, val, warnings


def read_files(task: str, data: str, centre: float = 0.08, skip: bool = False) -> tuple[list[Volume], list[str]]:
    """The files to score in a folder, its val/ where there is one, after a look at all of them; and the warnings.

    Args:
        task, data, centre, skip: as in read_data.
    Raises:
        BadInput: see read_folder and look_at_all.
    """
    broken: list[str] = []
    folder = data_folder(task, data)
    folder = folder / "val" if (folder / "val").is_dir() else folder
    volumes = read_folder(folder, TASKS[task].axes, broken)
    (volumes,), warnings = look_at_all([volumes], centre, skip, broken)
    return volumes, warnings


def show_check(folder: str, mask: str, center_fraction: float) -> dict[str, Any]:
    """Print what a look at all files of a folder finds, of whatever axes, and draw it: `train.py --check FOLDER`.

    The picture, k-space and image of eight files at most, is runs/check/NAME.png.

    Args:
        folder: with train/, val/ and test/, as far as they are there, or of files.
        mask, center_fraction: of the sampling that is meant; the echo should lie in its centre.
    Returns:
        {"alarm": False}.
    Raises:
        BadInput: see read_folder.
        SystemExit: status 1, after an alarm or a file that cannot be read.
    """
    place, broken = Path(folder), list[str]()
    parts = [place / name for name in ("train", "val", "test") if (place / name).is_dir()] or [place]
    volumes = [volume for part in parts for volume in read_folder(part, (), broken)]
    rows, alarm, seen = check_table(volumes, broken, centre_share(mask, center_fraction))
    print(format_table(rows), flush=True)
    if seen:
        picture = Path("runs", "check", f"{place.resolve().name}.png")
        save_figure(show_seen(seen), picture)
        print(f"picture of {len(seen)} of {len(volumes)} files: {picture}")
    if alarm:
        raise SystemExit(1)
    return {"alarm": alarm}


def tell_other_sampling(checkpoint: str, trained: Mapping[str, Any], used: Mapping[str, Any]) -> None:
    """Say if a network meets another mask than in its training."""
    names = ("mask", "acceleration", "center_fraction")
    other = [f"{name} {trained[name]}" for name in names if trained.get(name, used[name]) != used[name]]
    if other:
        print(f"{checkpoint}: trained with another {', '.join(other)}")
