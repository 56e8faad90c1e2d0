"""The report of a run, the comparison of a sweep, the scoreboard: what they say, and what they refuse."""

import html
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import h5py
import nbformat
import numpy as np
import pytest

import mri_utils as mri

pytest.importorskip("papermill")

FOLDER = mri.ROOT / "notebooks"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "COLUMNS": "1000"}
SMALL = ["--epochs", "2", "--features", "4", "--levels", "2", "--train-slices", "4", "--center-fraction", "0.1"]


def start(script, *words, folder=mri.ROOT):
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def publish(*words, folder=mri.ROOT):
    return start(FOLDER / "publish.py", *words, folder=folder)


def sweep(data, out, *words):
    return start(FOLDER / "sweep.py", "--data", data, *SMALL, *words, "--out", out)


def refusal(script, words, capsys, monkeypatch):
    """What publish.py or sweep.py says when it refuses, without the start of another Python: one line."""
    monkeypatch.syspath_prepend(str(FOLDER))
    with pytest.raises((mri.BadInput, SystemExit)) as end:
        importlib.import_module(script).main([str(word) for word in words])
    return str(end.value) + "\n" if end.type is mri.BadInput else capsys.readouterr().err


def text_of(page):
    """What a reader reads: the page without styles, tags and pictures."""
    body = re.sub(r"(?s)<style>.*?</style>|<[^>]*>", " ", page)
    return " ".join(html.unescape(body).split())


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A finished run with two warnings and a reading, and its report."""
    folder = tmp_path_factory.mktemp("report") / "run"
    done = start(mri.ROOT / "train.py", "--data", tiny, *SMALL, "--out", folder)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["warnings"] = ["the first <warning>", "the second"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    shutil.copytree(folder, folder.with_name("unread"))
    pair = {"volume": "a", "slice": 1, "left": "unet", "right": "tv", "preferred": "left"}
    scores = {"left": {"sharpness": 4}, "right": {"sharpness": 2}}
    reading = {"reader": "R. Eader", "pairs": [pair | {"scores": scores}] * 3}
    (folder / "reading.json").write_text(json.dumps(reading))
    done = publish("report", "--run", folder, "--robustness-slices", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "report.html") and done.stderr == ""
    return SimpleNamespace(folder=folder, metrics=metrics, page=(folder / "report.html").read_text(encoding="utf-8"))


def assert_opens_offline(page):
    """No script, and nothing that a browser would fetch: every source is a data URI."""
    assert "<script" not in page and "@import" not in page and "url(" not in page and "<link" not in page
    assert all(source.startswith("data:") for source in re.findall(r"""\bsrc\s*=\s*["']?([^"'\s>]+)""", page))
    assert not re.search(r"https?:", re.sub(r"base64,[^\"]*", "", page))


def test_report_on_a_phone(run):
    """Pictures shrink to the width, tables scroll in their own box, no small print."""
    if not shutil.which("chromium"):
        pytest.skip("no chromium: apt-get install chromium")
    pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    import lab

    with lab.browser() as browser, lab.phone(browser, (run.folder / "report.html").as_uri()) as page:
        assert page.evaluate("() => document.images.length") == 8 and not lab.misfits(page)
        page.add_style_tag(content=".output_html { overflow: visible } img { max-width: none } th { font-size: 9px }")
        found = "; ".join(lab.misfits(page))
        for fault in ("the page is", "cut table", "wide picture", "text of 9px"):
            assert fault in found, f"{fault}: this would go unnoticed"


def test_report_is_one_file(run):
    assert_opens_offline(run.page)
    assert len(run.page) < 5e6
    assert run.page.count("data:image/png;base64,") == 8
    assert "show_table" not in run.page and "import " not in run.page  # no code


def test_report_holds_the_numbers_of_metrics_json(run):
    text = text_of(run.page)
    tables = [run.metrics["methods"], run.metrics["paired"], *run.metrics["per_acquisition"].values()]
    figures = [(summary[name], digits) for table in tables for summary in table.values() for name, digits in DIGITS]
    assert len(figures) == 3 * (3 + 2 + 2 * 3)
    for summary, digits in figures:
        low, high = summary["ci95"]
        interval = f"[{low:.{digits}f}, {high:.{digits}f}]" if low < high else "(one subject)"
        assert f"{summary['mean']:.{digits}f} {interval}" in text
    source = run.metrics["provenance"]
    for name in ("commit", "finished", "torch", "numpy", "command", "validation_masks"):
        assert source[name] in text
    for value in (source["validation_data"]["hash"], run.metrics["data"]["effective_acceleration"]):
        assert (value if isinstance(value, str) else f"{value:.2f}x") in text
    assert f"{run.metrics['parameters_count']:,}" in text
    assert "are those of the run" in text


DIGITS = (("ssim", 3), ("psnr", 2), ("nmse", 4))


def test_report_tells_warnings_and_readings(run):
    text = text_of(run.page)
    assert "1 the first <warning> 2 the second" in text
    assert "R. Eader; 3 pairs" in text and "tv over unet 0.000 [0.000, " in text and "unet 4.0" in text


def test_report_of_an_evaluation(run, tiny, tmp_path):
    """A network scored on other files has no training of its own to report."""
    words = ["--evaluate", run.folder / "checkpoint.pt", "--data", tiny / "val", "--out", tmp_path / "run"]
    done = start(mri.ROOT / "train.py", *words)
    assert done.returncode == 0, done.stderr
    done = publish("report", "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    text = text_of((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert f"training time none: {run.folder / 'checkpoint.pt'} on other files" in text


def test_report_without_data_checkpoint_reading_and_pictures(run, tmp_path):
    """A run folder that was copied elsewhere still makes a report, which says what it lacks."""
    folder = tmp_path / "run"
    shutil.copytree(run.folder.with_name("unread"), folder)
    (folder / "checkpoint.pt").unlink()
    (folder / "log.csv").unlink()
    shutil.rmtree(folder / "figures")
    metrics = run.metrics | {"parameters": run.metrics["parameters"] | {"data": "/no/such/folder"}}
    for name in ("warnings", "seconds_per_slice"):
        metrics = {key: value for key, value in metrics.items() if key != name}
    for name in ("finished", "packages", "peak_memory_mib", "validation_data", "validation_masks"):
        metrics["provenance"] = {key: value for key, value in metrics["provenance"].items() if key != name}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    done = publish("report", "--run", folder)
    assert done.returncode == 0, done.stderr
    text = text_of((folder / "report.html").read_text(encoding="utf-8"))
    for line in (
        "The data are not here: /no/such/folder/train: no such folder",
        "holds no log.csv",
        "best.png: not in the run folder",
        "Left out: it needs the data",
        "No blinded reading is stored",
        "before there were detectors",
        "not recorded",
    ):
        assert line in text


def test_provenance_of_data_and_masks(run, tiny, tmp_path):
    """The hashes follow the content: equal for equal data, different for another mask or another sample."""
    volumes = mri.read_folder(tiny / "val")
    one, other = (mri.SliceDataset(volumes, "random", 4.0, 0.1) for _ in range(2))
    assert mri.describe_data(one) == mri.describe_data(other) == run.metrics["provenance"]["validation_data"]
    assert mri.describe_data(one) | {"hash": ""} == {"volumes": 2, "subjects": 2, "slices": 4, "hash": ""}
    fewer = mri.SliceDataset(volumes[:1], "random", 4.0, 0.1)
    assert mri.describe_data(fewer)["hash"] != mri.describe_data(one)["hash"]
    assert mri.hash_of(b"ab", b"c") != mri.hash_of(b"a", b"bc")
    assert 50 < run.metrics["provenance"]["peak_memory_mib"]["main"] < 20_000


# --- what is refused --------------------------------------------------------------------------------


def unfinished(folder):
    (folder / "metrics.json").unlink()


def garbage(folder):
    (folder / "metrics.json").write_text("{")


def other_file(folder):
    (folder / "metrics.json").write_text('{"parameters": {}}')


def log_of_words(folder):
    (folder / "log.csv").write_text("epoch,train_loss\none,two\n")


@pytest.mark.parametrize("damage, named", [
    (unfinished, "no metrics.json in it: finish the run"), (garbage, "not train.py's"),
    (other_file, "no data, methods, per_volume, provenance in it"), (log_of_words, "metrics.json or log.csv"),
])  # fmt: skip
def test_bad_run_folder_is_told_in_one_line(damage, named, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder.with_name("unread"), folder)
    assert mri.read_run(folder).network == "unet" and len(mri.read_run(folder).history) == 2
    damage(folder)
    with pytest.raises(mri.BadInput) as error:
        mri.read_run(folder)
    assert named in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)


def test_fault_found_by_the_notebook_is_told_in_one_line(tmp_path):
    done = publish("report", "--run", tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "no metrics.json in it: finish the run" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("words, named", [
    (["report", "--run", "/no/such/run"], "/no/such/run: no such folder"),
    (["report", "--rum", "runs/unet"], "--rum"), (["report", "--robustness-slices", "few"], "few"),
    (["raport"], "'raport', did you mean 'report'"), (["comparison", "--folder", "/no/such"], "/no/such"),
])  # fmt: skip
def test_publish_refuses_before_it_runs(words, named, capsys, monkeypatch):
    told = refusal("publish", words, capsys, monkeypatch)
    assert told.count("\n") == 1 and named in told, told


def test_notebook_itself_refuses_a_misspelled_parameter(run):
    papermill = pytest.importorskip("papermill")
    with pytest.raises(Exception, match="unknown parameter 'rum', did you mean 'run'"):
        papermill.execute_notebook(
            str(FOLDER / "report.ipynb"), None, {"rum": str(run.folder)}, cwd=str(FOLDER), progress_bar=False
        )


def test_make_report(tmp_path):
    """The rule of the Makefile reaches publish.py, with this interpreter in the place of .venv's."""
    if not shutil.which("make"):
        pytest.skip("no make here")
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (binaries / "python").chmod(0o755)

    def make(place):
        words = ["make", "-o", "setup", "report", f"BIN={binaries}", f"RUN={place}"]
        return subprocess.run(words, cwd=mri.ROOT, env=ENVIRONMENT, capture_output=True, text=True)

    done = make("/no/such/run")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode != 0 and len(lines) == 1 and "/no/such/run: no such folder" in lines[0]


# --- sweep ------------------------------------------------------------------------------------------


def table(output):
    """The table that a sweep prints."""
    lines = output.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("mask "))
    return lines[head:-1]


def test_interrupted_sweep_gives_the_same_table(tiny, tmp_path, capsys, monkeypatch):
    words = ["--epochs", "8", "--seed", "0", "1"]
    whole = sweep(tiny, tmp_path / "whole", *words, "--jobs", "2")
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "killed"
    command = [sys.executable, FOLDER / "sweep.py", "--data", tiny, *SMALL, *words, "--out", out]
    killed = subprocess.Popen(list(map(str, command)), env=ENVIRONMENT, cwd=mri.ROOT, stdout=subprocess.DEVNULL)
    first, second = out / "unet_random_4x_seed0", out / "unet_random_4x_seed1"
    while not (second / "log.csv").exists() and killed.poll() is None:
        time.sleep(0.005)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    while time.time() - (second / "log.csv").stat().st_mtime < 3:  # the killed sweep leaves no run behind
        time.sleep(0.1)
    epochs = len((second / "log.csv").read_text().splitlines()) - 1
    assert 1 <= epochs < 8 and (first / "metrics.json").exists() and not (second / "metrics.json").exists()
    done = sweep(tiny, out, *words)
    assert done.returncode == 0, done.stderr
    assert "2 runs, 1 of them finished before" in done.stdout
    assert "going on after epoch" in (out / f"{second.name}.txt").read_text()
    assert table(done.stdout) == table(whole.stdout) and len(table(done.stdout)) == 5
    page = (out / "comparison.html").read_text(encoding="utf-8")
    assert_opens_offline(page)
    for folder in (first, second):
        summary = json.loads((folder / "metrics.json").read_text())["methods"]["unet"]["ssim"]
        assert f"{summary['mean']:.3f} [{summary['ci95'][0]:.3f}, {summary['ci95'][1]:.3f}]" in text_of(page)
    words = ["--data", tiny, *SMALL, *words, "--lr", "0.001", "--out", out]
    assert "holds a run with lr 0.002, not 0.001" in refusal("sweep", words, capsys, monkeypatch)


def test_a_failed_run_stops_no_other(tiny, tmp_path):
    taken = tmp_path / "unet_random_4x_seed0"
    taken.mkdir()
    (taken / "thesis.doc").write_text("mine")
    done = sweep(tiny, tmp_path, "--seed", "0", "1")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert taken.name in done.stderr and "holds files that are no run" in done.stderr
    assert len(table(done.stdout)) == 4 and table(done.stdout)[-1].split()[4:6] == ["unet", "1"]
    text = text_of((tmp_path / "comparison.html").read_text(encoding="utf-8"))
    assert f"Not finished: {taken.name}" in text and (taken / "thesis.doc").read_text() == "mine"


@pytest.mark.parametrize("words, named", [
    (["--epoch", "3"], "--epoch"), (["--model", "unet", "umet"], "'umet', did you mean 'unet'"),
    (["--mask", "randon"], "'randon'"), (["--seed", "zero"], "zero"), (["--jobs", "0"], "jobs 0"),
    (["--acceleration", "4", "8", "16", "--center-fraction", "0.08", "0.04"], "2 centre fractions for 3"),
    (["--acceleration", "4", "20", "--center-fraction", "0.1"], "acceleration 20"),
    (["--data", "/no/such/data"], "/no/such/data/train"), (["--resume", "true"], "--resume"),
])  # fmt: skip
def test_sweep_refuses_before_it_trains(words, named, tiny, tmp_path, capsys, monkeypatch):
    words = ["--data", tiny, *SMALL, *words, "--out", tmp_path / "sweep"]
    told = refusal("sweep", words, capsys, monkeypatch)
    assert told.count("\n") == 1 and named in told, told
    assert not (tmp_path / "sweep").exists()


def test_combinations_of_a_sweep(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    module = __import__("sweep")
    values = {"model": ["unet", "magnitude_unet"], "acceleration": [4.0, 8.0], "center_fraction": [0.08, 0.04]}
    runs = module.combinations(values | {"seed": [1, 2, 1], "dropout": [0.0, 0.1]}, tmp_path)
    assert len(runs) == 2 * 2 * 2 * 2
    pairs = {(p["acceleration"], p["center_fraction"]) for p in runs.values()}
    assert pairs == {(4.0, 0.08), (8.0, 0.04)}
    assert tmp_path / "magnitude_unet_random_8x_seed2_dropout0.1" in runs
    assert all(p["out"] == str(folder) and p["resume"] for folder, p in runs.items())
    with pytest.raises(mri.BadInput, match="unknown parameter of a sweep 'epoch', did you mean 'epochs'"):
        module.combinations({"epoch": [1]}, tmp_path)


# --- scoreboard -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scoreboard(tiny, tmp_path_factory):
    """The scoreboard of a folder with runs for two of its rows, and one that is the wrong run for its row."""
    folder = tmp_path_factory.mktemp("scoreboard")
    resnet = ["--model", "resnet", "--center-fraction", "0.08", "--features", "4", "--stages", "1x2"]
    resnet += ["--epochs", "3", "--batch-size", "2", "--precision", "bfloat16"]  # as the scoreboard's row says
    challenge = [*SMALL, "--mask", "grappa", "--acceleration", "8", "--center-fraction", "0.05"]
    for name, words in {"challenge": challenge, "resnet_4x": resnet}.items():
        done = start(mri.ROOT / "train.py", "--data", tiny, *words, "--out", folder / name)
        assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "challenge", folder / "resnet_8x")
    shutil.copytree(folder / "resnet_4x", folder / "super_resolution_x2")
    own = {"challenge": ["epochs", "features", "levels", "train_slices"], "resnet_4x": ["features", "stages"]}
    for name, small in own.items():
        path = folder / name / "metrics.json"
        content = json.loads(path.read_text())
        for parameter in small:  # which the row does not name: as in a run from before there was the parameter
            del content["parameters"][parameter]
        path.write_text(json.dumps(content))
    done = publish("scoreboard", "--runs", folder)
    assert done.returncode == 0, done.stderr
    page = (folder / "scoreboard.html").read_text(encoding="utf-8")
    return SimpleNamespace(folder=folder, page=page, text=text_of(page))


def test_scoreboard_has_every_system_and_fills_a_row_from_its_run(scoreboard):
    assert_opens_offline(scoreboard.page)
    text = scoreboard.text
    for system in ("fastMRI challenge", "ResNet", "CNN + GAN", "super-resolution", "dynamic cine"):
        assert system in text
    assert "python train.py --mask grappa --acceleration 8 --center-fraction 0.05 --out" in text
    methods = json.loads((scoreboard.folder / "challenge" / "metrics.json").read_text())["methods"]
    ssim = [methods[name]["ssim"]["mean"] for name in ("zero_filled", "unet")]
    assert text.count(f"SSIM {ssim[0]:.3f} to {ssim[1]:.3f}") == 2  # this row's convention is fastMRI's
    assert "resnet_8x is another run: " in text and "super_resolution_x2 is another run: " in text
    assert "not run yet" in text


def test_scoreboard_in_another_convention(scoreboard, tiny):
    """SSIM with each slice's maximum as its range, by scikit-image on the stored reconstructions."""
    metrics = pytest.importorskip("skimage.metrics")
    values = []
    for volume in mri.read_folder(tiny / "val"):
        with h5py.File(scoreboard.folder / "resnet_4x" / "reconstructions" / volume.path.name) as file:
            images = file["reconstruction"][()].astype(float)
        targets = [volume.target(s).double().numpy() for s in range(len(volume))]
        pairs = zip(targets, images)
        values.append(np.mean([metrics.structural_similarity(t, x, data_range=t.max()) for t, x in pairs]))
    assert f" to {np.mean(values):.3f} " in scoreboard.text


@pytest.mark.parametrize("name", ["report", "comparison", "scoreboard"])
def test_committed_notebook(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs and not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    text = json.dumps(notebook)
    assert str(mri.ROOT) not in text and "/root/" not in text and len(text) < 500_000
