"""Sections 8 to 11 and train.py: a run's folder, resuming, reproducibility, faults that change nothing."""

import ast
import importlib
import itertools
import json
import os
import pickle
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from conftest import as_given

import mri_utils as mri
from mri_parts import processes

# more threads are slower here, and on a busy machine by far
pytestmark = pytest.mark.usefixtures("one_thread", "quick_baselines")
SMALL = {"epochs": 2, "features": 4, "levels": 2, "train_slices": 4}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "COLUMNS": "1000"}


def flags(changes):
    """{"center_fraction": 0.1} -> ["--center-fraction", "0.1"]; True -> the bare flag."""
    words = []
    for name, value in changes.items():
        words += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
    return words


def command(changes):
    return [sys.executable, str(mri.ROOT / "train.py"), *flags(as_given(SMALL | changes))]


def start(**changes):
    return subprocess.run(command(changes), cwd=mri.ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def train(**changes):
    done = start(**changes)
    assert done.returncode == 0, done.stderr
    return done


def only_train(**changes):
    """The training of train.py in this process, without the evaluation at its end."""
    module = importlib.import_module("train")
    changes = {name: str(value) if name in ("data", "out") else value for name, value in changes.items()}
    settings = module.settled(**as_given(SMALL | changes))
    return module.train(settings, *module.load_data(settings))


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_weights(one, other):
    pairs = zip(mri.load_model(one).state_dict().items(), mri.load_model(other).state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A complete run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = train(data=tiny, out=folder)
    return SimpleNamespace(folder=folder, output=done.stdout, metrics=json.loads((folder / "metrics.json").read_text()))


# --- what a run leaves ------------------------------------------------------------------------------


def test_files_of_the_run_folder(run, tiny):
    names = {path.name for path in (tiny / "val").iterdir()}
    assert {path.name for path in run.folder.iterdir()} - {"tensorboard"} == {
        *("checkpoint.pt", "best.pt", "log.csv", "metrics.json", "figures", "reconstructions")
    }
    assert {path.name for path in (run.folder / "reconstructions").iterdir()} == names and len(names) == 2
    pictures = {path.name: path.read_bytes() for path in (run.folder / "figures").iterdir()}
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    assert len(pictures.pop("progress.png")) > 1000  # test_progress_picture looks into it
    assert set(pictures) == {"worst.png", "median.png", "best.png", "curves.png"}
    assert all(len(content) > 5000 for content in pictures.values())
    assert pictures["worst.png"] != pictures["best.png"]


def test_log_has_a_row_per_epoch(run):
    head, *rows = (run.folder / "log.csv").read_text().splitlines()
    assert head.split(",") == ["epoch", "train_loss", "val_ssim", "val_psnr", "val_nmse"]
    assert [row.split(",")[0] for row in rows] == ["1", "2"]
    assert np.isfinite([[float(x) for x in row.split(",")] for row in rows]).all()
    assert run.output.count("epoch   ") == 2 and "simulated" in run.output.splitlines()[0]


def test_figures_of_several_seeds(run, tmp_path):
    """tools/seeds.py says of a checkpoint at 4x what its own run said; of one that was trained at 8x too, both."""
    content = mri.read_checkpoint(run.folder / "checkpoint.pt")
    content["parameters"]["train_accelerations"] = "4,8"
    mri.save_checkpoint(tmp_path / "both.pt", content)
    result = tmp_path / "seeds.json"
    program = [sys.executable, mri.ROOT / "tools" / "seeds.py", result, run.folder / "checkpoint.pt"]
    program.append(tmp_path / "both.pt")
    done = subprocess.run(program, cwd=mri.ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("seed 0") == 3, done.stderr
    alone, fourfold, eightfold = json.loads(result.read_text())
    assert alone | {"file": "both.pt"} == fourfold and (fourfold["acceleration"], eightfold["acceleration"]) == (4, 8)
    own = {
        metric: [row["unet"][metric] for row in run.metrics["per_volume"].values()] for metric in ("psnr", "ssim_head")
    }
    for metric, values in own.items():
        assert fourfold[metric] == pytest.approx(values, abs=0.01 if metric == "psnr" else 0.001)
    assert mri.mean(eightfold["psnr"]) < mri.mean(fourfold["psnr"])


def test_progress_picture(run, tiny):
    """Zero-filled, network, reference of the middle slice of the first validation volume, after the last epoch."""
    from PIL import Image

    shown = np.asarray(Image.open(run.folder / "figures" / "progress.png"), dtype=float) / 255
    val_set = validation(tiny)
    assert val_set.slices[1][0] == 0
    batch = mri.Sample.stack([val_set[1]])
    with torch.inference_mode():
        network = mri.reconstruct(mri.load_model(run.folder / "checkpoint.pt"), batch)
    parts = [image[0] / batch.maximum for image in (mri.reconstruct(mri.zero_filled, batch), network, batch.target)]
    expected = torch.cat(parts, dim=1).clamp(0, 1).numpy()
    assert shown.shape == expected.shape and np.abs(shown - expected).max() < 0.005


def test_progress_picture_changes_no_number(tiny, tmp_path, monkeypatch):
    changes = {"data": tiny, "epochs": 3, "dropout": 0.1}
    _, one = only_train(**changes, out=tmp_path / "one")
    monkeypatch.setattr(mri, "save_progress", lambda *_: None)
    _, other = only_train(**changes, out=tmp_path / "other")
    assert one.history == other.history and same_weights(*(tmp_path / n / "checkpoint.pt" for n in ("one", "other")))
    assert (tmp_path / "one" / "figures").exists() and not (tmp_path / "other" / "figures").exists()


def test_a_line_says_when_training_ends(tmp_path):
    state = mri.RunState({"out": str(tmp_path / "run"), "epochs": 4, "resume": False}, {})
    row = {"train_loss": 0.5, "val_ssim": 0.5, "val_psnr": 20.0}
    told = []
    for epoch, seconds in enumerate((100, 60, 20, 20)):
        state.save({"epoch": epoch + 1, **row}, seconds)
        told.append(state.line())
    lead = "epoch   1/4  loss 0.5000  validation SSIM 0.5000  PSNR 20.00 dB  100 s"
    assert told[0] == f"{lead}, about 5 min left"
    assert told[1].endswith("160 s, about 3 min left")  # 2 x 80 s: the last epoch weighs as much as all before
    assert told[2].endswith("180 s, about 50 s left") and told[3].endswith("  200 s")


@pytest.mark.parametrize("given", [
    {},
    {"lr": 0.001, "out": "runs/it's mine", "augment": True, "model": "unet(features=8)"},
    {"task": "cine", "epochs": 24, "acceleration": 4.0},
    {"task": "super_resolution", "upscale_factor": 4, "train_accelerations": ""},
    {"model": "resnet", "lr": 0.002, "resume": True},
    {"task": "multi_coil", "mask": "random"},
    {"evaluate": str(mri.ROOT / "checkpoints" / "unet.pt"), "acceleration": 8.0},
], ids=str)  # fmt: skip
def test_the_command_of_a_notebook_makes_the_same_run(given, monkeypatch):
    """A kernel's own command line is none that a person can type."""
    module, main = importlib.import_module("train"), sys.modules["__main__"]
    settings = vars(module.settled(**given))
    monkeypatch.setattr(main, "get_ipython", None, raising=False)
    python, script, *words = shlex.split(mri.typed_command(settings))
    assert (python, script) == ("python", "train.py") and len(words) <= 2 * len(given) + 2
    source = (mri.ROOT / script).read_text(encoding="utf-8")
    asked = vars(mri.flag_parser("", source, given_only=True).parse_args(words))
    assert vars(module.settled(**asked)) == settings
    assert mri.provenance()["command"] == "cells of a notebook"


def test_the_command_of_a_program(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(mri.ROOT / "tools" / "sweep.py"), "--model", "unet(features=8)"])
    assert mri.provenance()["command"] == "python tools/sweep.py --model 'unet(features=8)'"
    monkeypatch.setattr(sys, "argv", [str(mri.ROOT.parent / "mine.py")])
    assert mri.provenance()["command"] == "python mine.py"


@pytest.mark.parametrize("asked, used", [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_waiting_threads_sleep(asked, used):
    """The threads of torch, unless somebody asks for something else; only some builds of OpenMP tell."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "true"} | ({"OMP_WAIT_POLICY": asked} if asked else {})
    code = "import train, os; print(os.environ['OMP_WAIT_POLICY'])"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=mri.ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == used.lower()
    if "OMP_WAIT_POLICY" in done.stderr:
        assert f"OMP_WAIT_POLICY = '{used}'" in done.stderr


def test_structure_of_metrics_json(run, tiny):
    metrics = run.metrics
    assert {"parameters", "provenance", "methods", "per_acquisition", "train_seconds", "parameters_count"} <= set(
        metrics
    )
    assert list(metrics["methods"]) == ["zero_filled", "tv", "phase_tv", "attainable", "unet"]
    kinds = {v.acquisition for v in mri.read_folder(tiny / "val")}
    assert set(metrics["per_acquisition"]) == kinds
    for methods in (metrics["methods"], *metrics["per_acquisition"].values()):
        for figures in methods.values():
            whole, head = {"ssim", "psnr", "nmse", "mae"}, {"ssim_head", "psnr_head", "nmse_head"}
            assert set(figures) == whole | head | {"psnr_truth", "nmse_truth"}  # truth: the noise-free image
            for figure in figures.values():
                low, high = figure["ci95"]
                assert low <= figure["mean"] <= high
    expected = importlib.import_module("train").defaults | as_given(SMALL) | {"data": str(tiny), "out": str(run.folder)}
    found = dict(metrics["parameters"])
    machine = {name: (found.pop(name), expected.pop(name)) for name in ("device", "precision", "workers")}
    assert found == expected and all(own != asked for own, asked in machine.values())
    assert {"commit", "torch", "python", "command"} <= set(metrics["provenance"])
    assert metrics["train_seconds"] > 0 and metrics["data"]["simulated"] is True
    assert metrics["parameters_count"] == mri.count_parameters(mri.load_model(run.folder / "checkpoint.pt"))
    sampled = [float(s.acceleration) for s in (validation(tiny)[0], validation(tiny)[2])]  # one mask per volume
    assert metrics["data"]["effective_acceleration"] == pytest.approx(np.mean(sampled))


def validation(tiny):
    return mri.SliceDataset(mri.read_folder(tiny / "val"), "random", 4.0, 0.08)


def test_reconstructions_are_those_of_the_saved_model(run, tiny):
    network, data, quality = mri.load_model(run.folder / "checkpoint.pt"), validation(tiny), []
    assert not network.training and network.networks[0].down[0][0].out_channels == 4
    for i, volume in enumerate(data.volumes):
        with h5py.File(run.folder / "reconstructions" / volume.path.name) as file:
            stored = torch.from_numpy(file["reconstruction"][()])
        image, target, _ = mri.reconstruct_volume(network, data, i)
        assert stored.shape == (2, 48, 48) and stored.dtype == torch.float32
        assert torch.allclose(stored, image, rtol=1e-5, atol=1e-6 * float(image.max()))
        assert torch.equal(target, torch.stack([volume.target(s) for s in range(2)]))
        quality.append(mri.ssim(target, stored))
        assert run.metrics["per_volume"][volume.path.name]["unet"]["ssim"] == pytest.approx(quality[-1], rel=1e-9)
    assert run.metrics["methods"]["unet"]["ssim"]["mean"] == pytest.approx(np.mean(quality), rel=1e-9)


def test_fastmris_evaluation_agrees(run, tiny):
    evaluate = pytest.importorskip("fastmri.evaluate", reason="pip install --no-deps fastmri==0.3.0")
    places = {"target_path": tiny / "val", "predictions_path": run.folder / "reconstructions"}
    means = evaluate.evaluate(
        SimpleNamespace(**places, challenge="singlecoil", acquisition=None, acceleration=None), "reconstruction_esc"
    ).means()
    for metric in ("ssim", "psnr", "nmse"):
        ours = run.metrics["methods"]["unet"][metric]["mean"]
        assert ours == pytest.approx(float(np.squeeze(means[metric.upper()])), rel=1e-5)


def test_checkpoint_holds_everything(run):
    content = mri.read_checkpoint(run.folder / "checkpoint.pt")
    assert {"model_state", "optimizer_state", "scheduler_state", "cpu_random_state", "gpu_random_state"} <= set(content)
    assert content["epoch"] == 2 and content["parameters"]["model"] == "unet(features=4, levels=2)"
    assert content["best_ssim"] == max(row["val_ssim"] for row in content["history"])
    best = mri.read_checkpoint(run.folder / "best.pt")
    assert best["history"][-1]["val_ssim"] == content["best_ssim"]


def test_a_second_run_keeps_the_first(run, tiny, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(run.folder, out)
    before = snapshot(out)
    for n in (1, 2):
        only_train(data=tiny, out=out, epochs=1, seed=n)
        assert f"kept as {out}.{n}" in capsys.readouterr().out
    assert snapshot(tmp_path / "run.1") == before
    seeds = [
        mri.read_checkpoint(tmp_path / f"run{end}" / "checkpoint.pt")["parameters"]["seed"] for end in ("", ".1", ".2")
    ]
    assert seeds == [2, 0, 1]


# --- the same numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        {"model": "kspace_unet", "augment": True, "train_accelerations": "4 6", "dropout": 0.1},
        {"adversary": "wasserstein(weight=0.1)", "loss": "l1_ssim"},
    ],
    ids=["kspace", "adversarial"],  # test_distributed.py kills a U-Net
)
def test_killed_and_resumed_is_undisturbed(kind, tiny, tmp_path, capsys):
    changes = {"data": tiny, "epochs": 8, "seed": 3} | kind
    only_train(**changes, out=tmp_path / "whole")
    killed = subprocess.Popen(command(changes | {"out": tmp_path / "killed"}), cwd=mri.ROOT, env=ENVIRONMENT)
    log = tmp_path / "killed" / "log.csv"
    while not log.exists() and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert 2 <= len(log.read_text().splitlines()) < 9
    only_train(**changes, out=tmp_path / "killed", resume=True)
    assert "going on after epoch" in capsys.readouterr().out
    assert log.read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()
    assert same_weights(tmp_path / "whole" / "checkpoint.pt", tmp_path / "killed" / "checkpoint.pt")


@pytest.mark.parametrize("left", ["best.pt", "best.pt.0a1b2c3d.partial", "checkpoint.pt.0a1b2c3d.partial"])
@pytest.mark.parametrize("resume", [False, True])
def test_killed_while_the_first_checkpoint_was_written(tiny, tmp_path, left, resume):
    """What a kill in the middle of the first save leaves is no reason to refuse the folder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).write_bytes(b"half a file")
    only_train(data=tiny, out=tmp_path / "run", epochs=1, resume=resume)
    assert mri.read_checkpoint(tmp_path / "run" / "checkpoint.pt")["epoch"] == 1
    assert not resume or not list((tmp_path / "run").glob("*.partial"))


def test_resuming_a_complete_run_trains_no_more(run, tiny, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    done = train(data=tiny, out=tmp_path / "run", resume=True)
    assert "going on after epoch 2" in done.stdout and "epoch   " not in done.stdout
    assert (tmp_path / "run" / "log.csv").read_bytes() == (run.folder / "log.csv").read_bytes()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["methods"] == run.metrics["methods"]


def test_workers_change_nothing_and_seeds_do(run, tiny, tmp_path):
    only_train(data=tiny, out=tmp_path / "workers", workers=2)
    assert (tmp_path / "workers" / "log.csv").read_bytes() == (run.folder / "log.csv").read_bytes()
    only_train(data=tiny, out=tmp_path / "seed", seed=1)
    assert (tmp_path / "seed" / "log.csv").read_bytes() != (run.folder / "log.csv").read_bytes()


def test_workers_and_resuming_change_no_dropout(tiny, tmp_path):
    changes = {"data": tiny, "dropout": 0.3, "schedule": "constant"}
    only_train(**changes, out=tmp_path / "alone", workers=0)
    only_train(**changes, out=tmp_path / "workers", workers=1)
    for resume in (False, True):
        only_train(**changes, out=tmp_path / "resumed", workers=1, epochs=1 + resume, resume=resume)
    logs = {(tmp_path / name / "log.csv").read_bytes() for name in ("alone", "workers", "resumed")}
    assert len(logs) == 1


# --- other parameters -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "magnitude_unet", "loss": "l1", "optimizer": "adamw", "schedule": "step"},
        {"cascades": 2, "consistency": "none", "loss": "l2", "optimizer": "rmsprop", "schedule": "constant"},
        {"mask": "poisson_disc", "acceleration": 6.0, "center_fraction": 0.02, "precision": "bfloat16"},
        {"mask": "equispaced", "train_slices": 3, "batch_size": 1},
        {"model": "resnet", "levels": 0, "stages": "2x2 1x3", "loss": "l1"},
        {"model": "recon_resnet", "levels": 0, "stages": "2x2", "dropout": 0.2, "augment": True},
        {"model": "kspace_unet", "train_accelerations": "4 8", "loss": "l1_ssim"},
        {"model": "unrolled", "inner": "resnet", "levels": 0, "stages": "1x2", "consistency": "soft", "shared": True},
    ],
)
def test_every_choice_trains(changes, tiny, tmp_path):
    only_train(**{"epochs": 1} | changes, data=tiny, out=tmp_path / "run")
    network = mri.load_model(tmp_path / "run" / "checkpoint.pt")
    trained = mri.read_checkpoint(tmp_path / "run" / "checkpoint.pt")["parameters"]
    assert trained["lr"] == (0.0003 if changes.get("model") == "resnet" else 0.002)
    assert isinstance(network, mri.MODELS[changes.get("model", "unet")].func)
    fresh = mri.build_model(trained["model"])
    torch.manual_seed(0)
    assert any(not torch.equal(a, b) for a, b in zip(network.parameters(), fresh.parameters()))


def test_a_cpu_trains_in_bfloat16_and_scores_in_float32(tiny, tmp_path):
    logs = []
    for precision in ("float32", "bfloat16"):
        only_train(data=tiny, out=tmp_path / precision, precision=precision)
        logs.append((tmp_path / precision / "log.csv").read_text())
    assert logs[0] != logs[1]
    network = mri.load_model(tmp_path / "bfloat16" / "checkpoint.pt")
    val_set = mri.SliceDataset(mri.read_folder(tiny / "val"), "random", 4.0, 0.08)
    images = [mri.reconstruct_volume(network, val_set, 0, mri.Machine(precision=p))[0] for p in ("float32", "bfloat16")]
    assert torch.equal(*images)


@pytest.mark.parametrize("form", mri.ADVERSARIAL)
def test_adversarial_training_is_logged_and_saved(form, tiny, tmp_path):
    out = tmp_path / "run"
    only_train(data=tiny, out=out, adversary=f"{form}(weight=0.1)")
    rows = (out / "log.csv").read_text().splitlines()
    assert rows[0].split(",")[:4] == ["epoch", "train_loss", "discriminator_loss", "discriminator_accuracy"]
    content = mri.read_checkpoint(out / "checkpoint.pt")
    weights = content["adversary_state"]["discriminator"]
    torch.manual_seed(0)
    assert any(not torch.equal(w, weights[name]) for name, w in mri.PatchDiscriminator().state_dict().items())
    only_train(data=tiny, out=tmp_path / "plain")
    assert not same_weights(out / "checkpoint.pt", tmp_path / "plain" / "checkpoint.pt")  # it has its say


def test_adversary_learns_and_the_generator_feels_it(random):
    """Told apart with ease, images earn a gradient that makes them harder to tell apart."""
    torch.manual_seed(0)
    for form, domain in itertools.product(mri.ADVERSARIAL, mri.DOMAINS):
        adversary = mri.Adversary(form, weight=1.0, lr=0.02, domain=domain)
        target, given = (random(4, 32, 32, dtype=torch.float32).abs() for _ in range(2))
        image = (given * 0.2).requires_grad_()
        figures = [adversary.learn(image, target, given) for _ in range(30)]
        assert figures[-1]["discriminator_accuracy"] > 0.9
        assert figures[-1]["discriminator_loss"] < figures[0]["discriminator_loss"]
        doubt = adversary.doubt(image, target, given)
        (gradient,) = torch.autograd.grad(doubt, image)
        assert adversary.doubt(image - 0.1 * gradient / gradient.abs().max(), target, given) < doubt


def test_an_adversary_in_kspace_sees_every_sample(random):
    """Compressed: phases as they are, magnitudes through one rising curve; a change of one far sample is seen."""
    image = random(2, 32, 32, dtype=torch.float32).abs()
    seen, kspace = mri.compressed_kspace(image), mri.fft2c(image)
    expected = torch.log1p(100 * kspace.abs()) * torch.polar(torch.ones(kspace.shape), kspace.angle())
    torch.testing.assert_close(torch.complex(*seen.unbind(1)), expected, atol=1e-4, rtol=1e-4)
    black = torch.zeros(1, 32, 32, requires_grad=True)
    assert torch.isfinite(torch.autograd.grad(mri.compressed_kspace(black).sum(), black)[0]).all()


def test_collapse_is_reported():
    def row(epoch, ssim, **more):
        return {"epoch": epoch, "val_ssim": ssim} | more

    assert mri.training_warnings([row(1, 0.5), row(2, 0.6), row(3, 0.58, discriminator_accuracy=0.9)]) == []
    (line,) = mri.training_warnings([row(1, 0.7), row(2, 0.6)])
    assert line.startswith("training collapsed: validation SSIM 0.700 after epoch 1, 0.600 after the last")
    (line,) = mri.training_warnings([row(1, 0.7, discriminator_accuracy=0.999)])
    assert "100 % of the patches" in line


def test_divergence_stops_the_run_and_keeps_what_was(tiny, tmp_path):
    done = start(data=tiny, out=tmp_path / "run", lr=1e30, optimizer="rmsprop", schedule="constant", loss="l2")
    assert done.returncode != 0 and done.stderr.count("\n") == 1 and "training diverged, lower lr" in done.stderr


def test_what_is_left_open_is_the_tasks_then_the_models_own():
    module = importlib.import_module("train")
    settings = module.settled()
    sampling = settings.mask, settings.acceleration, settings.center_fraction
    assert (settings.model, *sampling) == ("unet", "random", 4, 0.08)
    assert (settings.data, settings.out, settings.lr) == ("data/demo", "runs/unet", 0.002)
    settings = module.settled(acceleration=8.0, model="resnet")
    assert (settings.acceleration, settings.center_fraction, settings.lr) == (8, 0.08, 0.0003)
    assert settings.out == "runs/resnet"
    settings = module.settled(task="cine", lr=0.002)
    assert settings.model == "cine_unrolled(start='temporal_tv')"
    assert (settings.lr, settings.acceleration, settings.ema) == (0.002, 5, 0.99)
    assert module.settled(task="cine", acceleration=4.0).acceleration == 4  # given, though it is the cell's own value


def test_a_checkpoint_is_evaluated_as_it_was_trained(run):
    module = importlib.import_module("train")
    trained = run.metrics["parameters"]
    checkpoint = str(run.folder / "checkpoint.pt")
    settings = module.settled(evaluate=checkpoint)
    same = ("task", "model", "mask", "acceleration", "center_fraction")
    assert all(getattr(settings, name) == trained[name] for name in same)
    assert module.settled(evaluate=checkpoint, acceleration=2.0).acceleration == 2
    module.settled(evaluate=checkpoint, out=str(run.folder))  # notebooks 05, 08 and 09 do so after make demo
    for model in ("unet(features=99)", "unrolled"):
        with pytest.raises(mri.BadInput, match=rf"checkpoint.pt: has model .*, not {re.escape(repr(model))}: leave it"):
            module.settled(evaluate=checkpoint, model=model)


def test_sigterm_is_heard_while_a_baseline_is_tuned(tiny, monkeypatch):
    train_set = mri.SliceDataset(mri.read_folder(tiny / "train"), "random", 4, 0.08, seed=0)
    monkeypatch.setattr(processes, "STOP_SIGNALS", [15])
    with pytest.raises(mri.Stopped):
        mri.tune("tv", train_set, slices=1)


def test_fine_tuning_starts_from_the_weights(run, tiny, tmp_path):
    _, state = only_train(data=tiny, out=tmp_path / "tuned", epochs=1, lr=1e-12, start_from=str(run.folder / "best.pt"))
    before, after = mri.load_model(run.folder / "best.pt"), state.parts["model"]
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    with pytest.raises(mri.BadInput, match=r"best.pt: its weights are of another model"):
        only_train(data=tiny, out=tmp_path / "other", features=8, start_from=str(run.folder / "best.pt"))


def test_training_lowers_the_loss(tiny, tmp_path):
    _, state = only_train(data=tiny, out=tmp_path / "run", epochs=40, loss="l1", lr=0.005, train_slices=0)
    losses = [row["train_loss"] for row in state.history]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


@pytest.fixture(scope="module")
def without_references(tiny, tmp_path_factory):
    """The tiny data with training files as a scanner leaves them that skips lines: a mask, and no reference."""
    folder = tmp_path_factory.mktemp("without_references")
    shutil.copytree(tiny / "val", folder / "val")
    for number, volume in enumerate(mri.read_folder(tiny / "train")):
        kspace = torch.stack([volume.kspace(i) for i in range(len(volume))])
        mask = mri.sampling_mask("random", kspace.shape[-2:], 3, 0.12, seed=number)
        about = {"acquisition": volume.acquisition, "patient_id": volume.patient_id, "mask": mask}
        mri.write_volume(folder / "train" / volume.path.name, kspace * mask, target_size=volume.target_size, **about)
    return folder


def test_hidden_lines_are_lines_of_the_scan(without_references):
    """What is seen and what is asked for make up the scan, each measured line once; another epoch splits otherwise."""
    volumes = mri.read_folder(without_references / "train")
    whole, split = (mri.SliceDataset(volumes, "random", 4, 0.1, seed=0, hide=share) for share in (0, 0.5))
    first = [split[i] for i in range(len(split))]
    for i, (scan, sample) in enumerate(zip(whole, first)):
        hidden = (sample.target != 0).any(-2, keepdim=True)
        assert hidden.any() and not (hidden & sample.mask).any() and sample.kspace.any()
        assert torch.equal(sample.kspace + sample.target, scan.kspace)
        assert torch.equal(sample.mask | hidden, scan.mask) and not (sample.target * sample.mask).any()
        assert float(sample.maximum) == pytest.approx(float(mri.ifft2c(scan.kspace).abs().max()))
        assert torch.equal(split[i].kspace, sample.kspace)
    split.epoch = 1
    assert any(not torch.equal(split[i].mask, sample.mask) for i, sample in enumerate(first))


def test_training_without_references(without_references, tmp_path, capsys):
    """Scans with missing lines teach a network to guess lines; it is scored where there are references."""
    changes = {"data": without_references, "loss": "ssdu(share=0.4)", "train_slices": 0, "lr": 0.005}
    _, state = only_train(**changes, out=tmp_path / "long", epochs=60)
    losses = [row["train_loss"] for row in state.history]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    importlib.import_module("train").run(**as_given(SMALL | changes | {"data": str(without_references), "epochs": 1,
                                                                        "out": str(tmp_path / "run")}))  # fmt: skip
    assert "tuned on validation slices: tv_weight" in capsys.readouterr().out
    assert "unet" in mri.read_run(tmp_path / "run").metrics["methods"]


def test_training_without_references_is_refused_where_it_cannot_be(without_references, tmp_path):
    for changes, message in {
        ("loss", "ssim"): "a test file without reference: take it out of train/ and val/, or train with --loss ssdu",
        ("loss", "ssdu(share=1)"): "use a share between 0 and 1",
        ("tv_weight", 0.1): "leave out tv_weight",
        ("task", "multi_coil"): "leave out tv_weight, adversary, other tasks",
        ("model", "magnitude_unet"): "this network returns magnitudes",
    }.items():
        given = {"data": without_references, "loss": "ssdu", "out": tmp_path / "run"} | dict([changes])
        if changes[0] == "task":
            given |= {"model": "varnet", "features": 0, "levels": 0}
        with pytest.raises(mri.BadInput, match=re.escape(message)):
            only_train(**given)


def test_real_scans(real, tmp_path):
    module = importlib.import_module("train")
    changes = {"data": str(real / "brain_ulf_singlecoil"), "epochs": 1, "out": str(tmp_path / "run")}
    settings = module.settled(**as_given(SMALL | changes))
    train_set, val_set = module.load_data(settings)
    network, _ = module.train(settings, train_set, val_set)
    methods = {"zero_filled": mri.zero_filled, "unet": network.eval()}
    scores = {name: mri.score(method, val_set, module.machine_of(settings)) for name, method in methods.items()}
    metrics = mri.summarize_run(scores, val_set, vars(settings))
    assert metrics["data"] | {"effective_acceleration": 0} == {
        **{"volumes": 3, "subjects": 1, "slices": 12, "simulated": False, "effective_acceleration": 0}
    }
    assert "simulated" not in mri.describe(settings.data, train_set, val_set, module.machine_of(settings))
    assert 3 < metrics["data"]["effective_acceleration"] < 5
    assert metrics["methods"]["unet"]["ssim"]["mean"] > 0.3


# --- train.py as a module and a program -------------------------------------------------------------


def test_importing_train_does_nothing(tmp_path):
    code = "import sys; sys.argv += ['--nonsense']; import train; print(train.defaults['epochs'], callable(train.run))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0 and re.fullmatch(r"\d+ True\n", done.stdout) and done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_run_refuses_unknown_names(tmp_path):
    module = importlib.import_module("train")
    with pytest.raises(mri.BadInput, match="unknown parameter 'epoch', did you mean 'epochs'"):
        module.run(epoch=1, out=str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_help_shows_every_parameter_with_its_comment():
    done = subprocess.run(
        [sys.executable, "train.py", "--help"], cwd=mri.ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Train a U-Net" in done.stdout
    source, shown = (mri.ROOT / "train.py").read_text(), " ".join(done.stdout.split())
    lines, groups = [], []
    for tag in ("rare", "parameters"):
        cell = source.split(f'# %% tags=["{tag}"]\n')[1].split("\n\n")[0]
        lines += (own := re.findall(r"^(\w+): (\w+) = (.*?)  # (.*)$", cell, re.MULTILINE))
        groups += (heads := re.findall(r"^# (.*)$", cell, re.MULTILINE))
        assert len(own) + len(heads) == len(cell.splitlines())
    assert len(own) <= 16 and len(lines) >= 30 and all(f"{group}: --" in shown for group in groups)
    for name, kind, default, comment in lines:
        option = "--" + name.replace("_", "-")
        typed = f"{option}, --no-{option[2:]}" if kind == "bool" else f"{option} {kind.upper()}"
        typed += f" [{kind.upper()} ...]" if re.search(r'"\w+ \w+"', comment) else ""  # several words, without quotes
        default = repr(ast.literal_eval(default))
        assert f"{typed} {comment} (default: {default})" in shown


def test_help_shows_the_numbers_that_will_be_used():
    words = ["--task", "cine", "--help"]
    done = subprocess.run(
        [sys.executable, "train.py", *words], cwd=mri.ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    shown = " ".join(done.stdout.split())
    for default in ("5.0", "'kt'", "0.005", "'runs/cine_unrolled'", "'l1_ssim_motion(weight=2)'", "0.99"):
        assert f"(default: {default})" in shown, default
    assert "(default: \"cine_unrolled(start='temporal_tv')\")" in shown
    done = subprocess.run(
        [sys.executable, "train.py", "--task", "knee", "--help"], cwd=mri.ROOT, capture_output=True, text=True
    )
    assert (
        done.returncode == 1
        and done.stderr.startswith("train.py: unknown task 'knee'")
        and done.stderr.count("\n") == 1
    )


# --- faults -----------------------------------------------------------------------------------------


def nan_in(split):
    def damage(data, out):
        path = sorted((data / split).glob("*.h5"))[-1]
        with h5py.File(path, "r+") as file:
            file["kspace"][1, 5, 5] = np.nan
        return path.name

    return damage


def subject_twice(data, out):
    train, val = (next((data / split).glob("*.h5")) for split in ("train", "val"))
    with h5py.File(train) as one, h5py.File(val, "r+") as other:
        other.attrs["patient_id"] = one.attrs["patient_id"]


def coils_in_training(data, out):
    path = next((data / "train").glob("*.h5"))
    with h5py.File(path, "r+") as file:
        kspace = file["kspace"][()]
        del file["kspace"]
        file["kspace"] = np.stack([kspace] * 2, 1)
    return path.name


def garbage_checkpoint(data, out):
    (out / "checkpoint.pt").write_bytes(b"garbage")


def weights_only(data, out):
    mri.export_weights(out / "checkpoint.pt", out / "checkpoint.pt")


def out_is_a_file(data, out):
    shutil.rmtree(out)
    out.write_text("mine")


def out_holds_other_files(data, out):
    (out / "checkpoint.pt").rename(out / "thesis.doc")


NO_ARGUMENTS = {"features": 0, "levels": 0}  # instead of SMALL's
FAULTS = {  # name -> (flags, what is done to data and run folder, what the line names)
    "data": ({"data": "/no/such/folder"}, None, "/no/such/folder: no such folder"),
    "mask": ({"mask": "randon"}, None, "'randon', did you mean 'random'"),
    "model": ({"model": "resmet"}, None, "model 'resmet', did you mean 'resnet'"),
    "no such setting": ({"model": "resnet"}, None, "unknown argument of model resnet 'levels'"),
    "no call": (
        {"model": "unet(", "features": 0, "levels": 0},
        None,
        "model 'unet(': write a name, or name(keyword=value",
    ),
    "no code": (
        {"model": "unet(features=print(1))", "features": 0, "levels": 0},
        None,
        "write a name, or name(keyword",
    ),
    "value": ({"features": "wide"}, None, "cannot be built"),
    "inner network": ({"inner": "cnn"}, None, "inner network 'cnn'"),
    "network of films": ({"inner": "dual_unet"}, None, "inner network 'dual_unet' takes (frames, H, W), not (H, W)"),
    "consistency": ({"consistency": "strict"}, None, "consistency 'strict'"),
    "levels": ({"levels": 6}, None, "levels 6: images of 48x"),
    "stages": ({"model": "resnet", "levels": 0, "stages": "12"}, None, "stages '12'"),
    "adversarial": ({"adversary": "hinge"}, None, "adversarial form 'hinge'"),
    "adversarial argument": ({"adversary": "wasserstein(wight=1)"}, None, "'wight', did you mean 'weight'"),
    "adversarial domain": ({"adversary": "wasserstein(domain='space')"}, None, "unknown domain of an adversary"),
    "adversarial weight": ({"adversary": "wasserstein(weight=-1)"}, None, "weight -1: use 0 or a positive number"),
    "factors": ({"train_accelerations": "4x"}, None, "train_accelerations '4x'"),
    "factor": ({"train_accelerations": "4 0.5"}, None, "acceleration 0.5"),
    "start": ({"start_from": "no.pt"}, None, "no.pt: no such checkpoint"),
    "loss": ({"loss": "sim"}, None, "loss 'sim', did you mean 'ssim'"),
    "optimizer": ({"optimizer": "sgd"}, None, "optimizer 'sgd'"),
    "schedule": ({"schedule": "linear"}, None, "schedule 'linear'"),
    "task": ({"task": "multi"}, None, "task 'multi'"),
    "device": ({"device": "tpu"}, None, "device 'tpu'"),
    "precision": ({"precision": "float16"}, None, "precision 'float16'"),
    "accumulate": ({"accumulate": 0}, None, "accumulate 0"),
    "pieces of a game": ({"accumulate": 2, "adversary": "wasserstein"}, None, "set accumulate to 1"),
    "ema": ({"ema": 1}, None, "ema 1"),
    "clip": ({"clip": -1}, None, "clip -1"),
    "weight without end": ({"tv_weight": float("inf")}, None, "tv_weight inf"),
    "seed": ({"seed": 2**32}, None, "seed 4294967296"),
    "evaluate": ({"evaluate": "no.pt", "out": "/no/such"}, None, "no.pt: no such checkpoint"),
    "flag": ({"epoch": 3}, None, "--epoch"),
    "word": ({"epochs": "three"}, None, "three"),
    "epochs": ({"epochs": -1}, None, "epochs -1"),
    "lr": ({"lr": -1}, None, "lr -1"),
    "dropout": ({"dropout": 2}, None, "dropout"),
    "no centre": ({"center_fraction": -1}, None, "center_fraction -1"),
    "centre": ({"center_fraction": 1.5}, None, "center_fraction 1.5"),
    "acceleration": ({"acceleration": 0.5}, None, "acceleration 0.5"),
    "no acceleration": ({"acceleration": 0}, None, "acceleration 0"),
    "weight decay": ({"weight_decay": -1}, None, "weight_decay -1"),
    "both": ({"acceleration": 8, "center_fraction": 0.2}, None, "acceleration 8"),
    "NaN in training": ({}, nan_in("train"), "NaN"),
    "NaN in validation": ({}, nan_in("val"), "NaN"),
    "subject twice": ({}, subject_twice, "subject"),
    "coils": ({}, coils_in_training, "this task takes (slices, H, W)"),
    "resume other model": ({"resume": True, "model": "magnitude_unet"}, None, "model"),
    "resume other size": ({"resume": True, "features": 8}, None, "features=8"),
    "resume garbage": ({"resume": True}, garbage_checkpoint, "checkpoint.pt"),
    "resume weights": ({"resume": True}, weights_only, "holds weights only"),
    "out a file": ({}, out_is_a_file, "is a file"),
    "out taken": ({}, out_holds_other_files, "holds files that are no run"),
}


BY_COMMAND = ("flag", "word", "loss", "NaN in training", "out a file")  # the others in this process: no start of Python


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_in_one_line_and_change_nothing(fault, run, tiny, tmp_path):
    changes, damage, named = FAULTS[fault]
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny, data)
    shutil.copytree(run.folder, out)
    extra = damage(data, out) if damage else None
    before = snapshot(tmp_path)
    changes = {"data": str(data), "out": str(out)} | changes
    if fault in BY_COMMAND:
        done = start(**changes)
        assert done.returncode != 0 and done.stderr.startswith("train.py: ")
        told = done.stderr
    else:
        with pytest.raises(mri.BadInput) as error:
            importlib.import_module("train").run(**as_given(SMALL | changes))
        told = f"{error.value}\n"
    assert told.count("\n") == 1 and named in told and (extra or "") in told, told
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_full_disk_loses_no_run(resume, run, tiny, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run.folder, out)
    before = snapshot(out)
    words = command({"data": tiny, "out": out, "epochs": 3}) + ["--resume"] * resume
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731  bytes per file
    done = subprocess.run(words, cwd=mri.ROOT, env=ENVIRONMENT, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode != 0 and done.stderr.count("\n") == 1 and "cannot be written" in done.stderr, done.stderr
    assert snapshot(out if resume else tmp_path / "run.1") == before
    only_train(data=tiny, out=out, epochs=3, resume=resume)  # with space again it goes on
    assert mri.read_checkpoint(out / "checkpoint.pt")["epoch"] == 3


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_load_model_refuses_what_is_no_checkpoint(run, tmp_path):
    path, trap = tmp_path / "checkpoint.pt", tmp_path / "executed"

    def refused(text):
        with pytest.raises(mri.BadInput, match=text) as error:
            mri.load_model(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    refused("no such checkpoint")
    for content in (b"", b"garbage", (run.folder / "checkpoint.pt").read_bytes()[:5000]):
        path.write_bytes(content)
        refused("not a checkpoint|damaged")
    pickle.loads(pickle.dumps(Trap(tmp_path / "works"))).close()
    assert (tmp_path / "works").exists()  # the trap would work
    for save in (lambda: path.write_bytes(pickle.dumps(Trap(trap))), lambda: torch.save({"x": Trap(trap)}, path)):
        save()
        refused("not a checkpoint|damaged")
        assert not trap.exists()
    torch.save({"weights": torch.ones(1)}, path)
    refused("not one of train.py")
    content = torch.load(run.folder / "checkpoint.pt", weights_only=True)
    content["parameters"]["model"] = "unet(features=8, levels=2)"
    mri.save_checkpoint(path, content)
    refused(r"do not fit model 'unet\(features=8, levels=2\)'")


# --- batches ----------------------------------------------------------------------------------------


def test_training_masks_change_and_validation_masks_do_not(tiny):
    volumes = mri.read_folder(tiny / "train")
    train, val = (mri.SliceDataset(volumes, "random", 4, 0.1, seed=seed) for seed in (0, None))
    first = [train[i].mask for i in range(len(train))]
    assert all(torch.equal(train[i].mask, mask) for i, mask in enumerate(first))
    train.epoch = 1
    assert any(not torch.equal(train[i].mask, mask) for i, mask in enumerate(first))
    assert torch.equal(val[0].mask, val[1].mask) and val.slices[:2] == [(0, 0), (0, 1)]  # one mask per volume
    expected = mri.sampling_mask("random", val[0].kspace.shape, 4, 0.1, volumes[0].path.name)
    assert torch.equal(val[0].mask[0], expected | ~volumes[0].acquired(volumes[0].kspace(0)))


def test_batches_are_of_one_size_and_complete(tiny):
    data = mri.SliceDataset(mri.read_folder(tiny / "train"), "random", 4, 0.1, seed=5)
    sampler = mri.SameSizeBatches(data, 3, shuffle=True)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 4 and max(map(len, batches)) == 3
    assert sorted(i for batch in batches for i in batch) == list(range(8))
    assert all(len({data.size(i) for i in batch}) == 1 for batch in batches)
    assert len({data.size(i) for i in range(8)}) == 2
    assert list(sampler) == batches
    data.epoch = 1
    assert list(sampler) != batches
    assert [i for batch in mri.SameSizeBatches(data, 3, shuffle=False) for i in batch][:2] != [batches[0][0]]


def test_limit_spreads_evenly(tiny):
    volumes = mri.read_folder(tiny / "train")
    chosen = mri.SliceDataset(volumes, "random", 4, 0.1, limit=3).slices
    assert chosen[0] == (0, 0) and chosen[-1] == (3, 1) and len(chosen) == 3
    assert len(mri.SliceDataset(volumes, "random", 4, 0.1, limit=99)) == 8


def test_several_accelerations_keep_their_centre(tiny):
    volumes = mri.read_folder(tiny / "train")
    data = mri.SliceDataset(volumes, "random", [4, 8], 0.16, seed=0)
    assert data.sampling == [(4, 0.16), (8, 0.08)]
    found = [float(sample.acceleration) for sample in data]
    assert min(found) < 6 < max(found)  # both occur; one mask is 4x or 8x only on average
    assert [float(sample.acceleration) for sample in data] == found


def test_augmented_slices_are_scans(tiny):
    """Whatever was varied, target and k-space belong together, and slices of one size make a batch."""
    volumes = mri.read_folder(tiny / "train")
    data = mri.SliceDataset(volumes, "random", 1, 0.1, seed=0, augment=True)  # all samples are kept
    shapes = set()
    for data.epoch in range(6):
        batches = list(mri.make_loader(data, 3, shuffle=True))
        assert sum(len(b.kspace) for b in batches) == len(data)
        for batch in batches:
            image = mri.zero_filled(batch.kspace, batch.mask, batch.target.shape[-2:]).abs()
            assert torch.allclose(image, batch.target, atol=1e-5 * float(image.max()))
            shapes.add(tuple(batch.kspace.shape[1:]))
    assert len(shapes) > 6 and max(max(shape) for shape in shapes) <= 52
    again = mri.SliceDataset(volumes, "random", 1, 0.1, seed=0, augment=True)
    again.epoch = data.epoch
    assert torch.equal(again[3].kspace, data[3].kspace)
    plain = mri.SliceDataset(volumes, "random", 1, 0.1, augment=True)  # validation data stay as they are
    assert torch.equal(plain[0].target, volumes[0].target(0))


@pytest.mark.parametrize("width", [48, 49])
def test_augmented_slices_hold_nothing_where_nothing_was_acquired(width, random, tmp_path):
    """Columns on one side that were never acquired: target and k-space still belong together."""
    kspace = random(4, 48, width)
    kspace[..., :14] = 0
    mri.write_volume(tmp_path / "a.h5", kspace, target_size=(48, width), acquisition="x", patient_id="x")
    data = mri.SliceDataset(mri.read_folder(tmp_path), "random", 1, 0.1, seed=0, augment=True)  # all samples are kept
    first = set()
    for data.epoch in range(3):
        for sample in data:
            image = mri.zero_filled(sample.kspace, sample.mask, sample.target.shape).abs()
            assert torch.allclose(image, sample.target, atol=1e-5 * float(image.max()))
            lost = (sample.kspace == 0).all(0)
            first.add(int(lost.int().argmin()) / len(lost))
    assert max(first) > 0.1 and min(first) < 0.05  # some are mirrored


@pytest.mark.parametrize("swap", [False, True])
def test_vary_scan_keeps_the_image(swap, random):
    """With nothing drawn but the swap the image is the same, transposed; a coarser one is the same, smaller."""

    class Fixed:
        def __init__(self, *numbers):
            self.numbers = list(numbers)

        def rand(self):
            return self.numbers.pop(0)

        def uniform(self, low, high):
            return self.numbers.pop(0) if self.numbers else low

        def standard_normal(self, shape):
            return np.zeros(shape)

    y, x = torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 32)
    image = torch.exp(-8 * ((y[:, None] - 0.2) ** 2 + (x - 0.1) ** 2)) + 0j
    acquired = torch.ones(32, dtype=torch.bool)
    for share in (1.0, 0.75):
        common, own = Fixed(0.0 if swap else 0.9, share), Fixed(0.9, 0.9)
        kspace, kept, size = mri.vary_scan(mri.fft2c(image), acquired, (24, 28), 1.0, common, own)
        expected = mri.ifft2c(mri.center_crop(mri.fft2c(image), (round(24 * share), round(32 * share)))) * share
        expected = mri.center_crop(expected, (round(24 * share), round(28 * share)))
        expected = expected.mT if swap else expected
        assert size == tuple(expected.shape) and kept.all() and len(kept) == kspace.shape[-1]
        assert torch.allclose(mri.center_crop(mri.ifft2c(kspace), size), expected, atol=1e-5)
        assert float(expected.abs().max()) == pytest.approx(1, abs=0.03)


def test_varied_phase_leaves_the_magnitudes(tiny):
    """The image turns by another phase in every epoch; nothing else changes."""
    volumes = mri.read_folder(tiny / "train")
    data = mri.SliceDataset(volumes, "random", 1, 0.1, seed=0, vary_phase=True)  # all samples are kept
    plain, phases = mri.SliceDataset(volumes, "random", 1, 0.1, seed=0)[2], []
    for data.epoch in (0, 1):
        sample = data[2]
        assert torch.allclose(sample.target, plain.target, atol=1e-5 * float(plain.target.max()))
        assert torch.equal(sample.kspace, data[2].kspace)
        images = [mri.zero_filled(s.kspace, s.mask, s.target.shape) for s in (plain, sample)]
        assert torch.allclose(images[1].abs(), sample.target, atol=1e-5 * float(plain.target.max()))
        phases.append((images[1] * images[0].conj()).angle()[plain.target > 0.2 * plain.target.max()])
    assert all(phase.std() > 0.02 for phase in phases) and (phases[0] - phases[1]).abs().max() > 0.1
    unvaried = mri.SliceDataset(volumes, "random", 1, 0.1, vary_phase=True)  # validation data stay as they are
    assert torch.equal(mri.ifft2c(unvaried[2].kspace).angle(), mri.ifft2c(plain.kspace).angle())


@pytest.mark.parametrize("direction", [(0, 0, 1), (1, 0, 0), (1, 2, 2)])
def test_susceptibility_phase_is_the_field_of_a_ball(direction):
    """Against the dipole kernel in k-space, 1/3 - cos^2, on a grid around a ball (its periodic images disturb)."""

    class Fixed:
        def __init__(self):
            self.numbers = [0.12, 0.0, 0.0, 1.25, 1.0]  # radius, place, height in radii, steepest turn

        def uniform(self, low, high):
            return self.numbers.pop(0)

        def randint(self, low, high):
            return low

        def standard_normal(self, count):
            return np.array(direction, float)

    n, wide = 64, 128
    phase = mri.susceptibility_phase((n, n), Fixed()).numpy()
    assert max(np.abs(np.diff(phase, axis=axis)).max() for axis in (0, 1)) == pytest.approx(1, abs=1e-6)
    y, x, z = np.ogrid[-n:n, -n:n, -n:n]
    ball = (y**2 + x**2 + z**2 < (0.12 * n) ** 2).astype(float)
    ky, kx, kz = np.meshgrid(*[np.fft.fftfreq(wide)] * 3, indexing="ij", sparse=True)
    square = ky**2 + kx**2 + kz**2
    square[0, 0, 0] = 1
    along = (direction[0] * ky + direction[1] * kx + direction[2] * kz) / np.linalg.norm(direction)
    field = np.fft.fftshift(np.fft.ifftn(np.fft.fftn(np.fft.ifftshift(ball)) * (1 / 3 - along**2 / square)).real)
    middle = slice(n - n // 2, n + n // 2)
    oracle = field[middle, middle, n + round(1.25 * 0.12 * n)]
    assert abs(np.corrcoef(oracle.ravel(), phase.ravel())[0, 1]) > 0.99
