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
import train

pytest.importorskip("papermill")
pytestmark = pytest.mark.usefixtures("quick_baselines")

FOLDER, TOOLS = mri.ROOT / "notebooks", mri.ROOT / "tools"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "COLUMNS": "1000"}
SMALL = ["--epochs", "2", "--model", "unet(features=4, levels=2)", "--train-slices", "4", "--center-fraction", "0.1"]


def start(script, *words, folder=mri.ROOT):
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def publish(*words, folder=mri.ROOT):
    return start(TOOLS / "publish.py", *words, folder=folder)


def sweep(data, out, *words):
    return start(TOOLS / "sweep.py", "--data", data, *SMALL, *words, "--out", out)


def refusal(script, words, capsys, monkeypatch):
    """What publish.py or sweep.py says when it refuses, without the start of another Python: one line."""
    monkeypatch.syspath_prepend(str(TOOLS))
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
    for table in (*tables(metrics), *(row[m] for row in metrics["per_volume"].values() for m in metrics["methods"])):
        table["hfen"] = table["mae"]  # as a metric of the reader's own leaves it
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


def tables(metrics):
    """metric -> summary, of every method and difference that metrics.json holds."""
    found = [metrics["methods"], metrics["paired"], *metrics["per_acquisition"].values()]
    return [summaries for table in found for summaries in table.values()]


def assert_opens_offline(page):
    """Nothing that a browser would fetch: every source is a data URI, and of scripts there is only that of sliders."""
    known = [(mri.ROOT / "web" / "static" / "sliders.js").read_text().strip()]
    assert all(text.strip() in known for text in re.findall(r"(?s)<script>(.*?)</script>", page))
    page = re.sub(r'(?s)<script( type="application/json")?>.*?</script>', "", page)
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
        assert page.evaluate("() => document.images.length") == 9 and not lab.misfits(page)
        page.add_style_tag(content=".output_html { overflow: visible } img { max-width: none } th { font-size: 9px }")
        found = "; ".join(lab.misfits(page))
        for fault in ("the page is", "cut table", "wide picture", "text of 9px"):
            assert fault in found, f"{fault}: this would go unnoticed"


def test_slider_of_a_report(run):
    """Opened as a file: keys and the mouse move it, picture and figures change; the still where scripts are off."""
    if not shutil.which("chromium"):
        pytest.skip("no chromium: apt-get install chromium")
    pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    import lab

    place = (run.folder / "report.html").as_uri()
    with lab.browser() as browser, browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(place)
        assert page.query_selector("figure.frames img").is_visible() and not page.query_selector("figure.frames input")
        assert re.fullmatch(r"demo_val_.*, effective \d\.\d\dx", page.inner_text(".frames-text"))
    seen = """() => document.querySelector("figure.frames").innerText +
        [...document.querySelectorAll("canvas")].map(c => c.toDataURL()).join()"""
    with lab.browser() as browser, browser.new_context() as context:
        page, faults = context.new_page(), []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(place)
        page.wait_for_selector("figure.frames canvas")
        assert [label.inner_text() for label in page.query_selector_all("figure label")] == ["slice", "acceleration"]
        for slider in page.query_selector_all("figure input"):
            before = page.evaluate(seen)
            slider.press("ArrowLeft" if slider.evaluate("s => s.value === s.max") else "ArrowRight")
            page.wait_for_function(f"before => ({seen})() !== before", arg=before)
        assert not faults and not lab.obstacles(page)


def test_report_is_one_file(run):
    assert_opens_offline(run.page)
    assert len(run.page) < 5e6
    assert run.page.count("data:image/png;base64,") == 9
    assert "show_table" not in run.page and "import " not in run.page  # no code


def test_report_holds_the_numbers_of_metrics_json(run):
    text = text_of(run.page)
    shown = run.metrics | {"paired": {k: v for k, v in run.metrics["paired"].items() if "attainable" not in k}}
    figures = [(summaries[name], form) for summaries in tables(shown) for name, form in FORMS.items()]
    assert len(figures) == 5 * (5 + 3 + 2 * 5)
    assert "SSIM PSNR (dB) NMSE MAE HFEN of the attainable gain ms per slice" in text
    figures += [
        (row[f"{m}_head"], FORMS[m]) for row in run.metrics["methods"].values() for m in ("ssim", "psnr", "nmse")
    ]
    figures += [(row[f"{m}_truth"], FORMS[m]) for row in run.metrics["methods"].values() for m in ("psnr", "nmse")]
    assert all(line in text for line in mri.lead_lines(run.metrics))
    for summary, form in figures:
        low, high = summary["ci95"]
        interval = f"[{low:{form}}, {high:{form}}]" if low < high else "(one subject)"
        assert f"{summary['mean']:{form}} {interval}" in text
    assert "AXT1 1 (1) 1 (2)" in text  # of two slices per volume one is trained on: train_slices
    source = run.metrics["provenance"]
    for name in ("commit", "finished", "torch", "numpy", "command", "validation_masks"):
        assert source[name] in text
    for value in (source["validation_data"]["hash"], run.metrics["data"]["effective_acceleration"]):
        assert (value if isinstance(value, str) else f"{value:.2f}x") in text
    assert f"{run.metrics['parameters_count']:,}" in text
    assert "are those of the run" in text


FORMS = {"ssim": ".3f", "psnr": ".2f", "nmse": ".4f", "mae": ".3g", "hfen": ".3g"}


def test_a_reader_s_metric_reaches_every_table(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(mri.METRICS, "hfen", lambda target, image: float((target - image).abs().amax()))
    small = {
        "epochs": 1,
        "model": "unet(features=4, levels=2)",
        "train_slices": 4,
        "center_fraction": 0.1,
        "device": "cpu",
    }
    metrics = train.run(data=str(tiny), out=str(tmp_path / "run"), **small)
    stored = mri.read_run(tmp_path / "run")
    parts = ["ssim_head", "psnr_head", "nmse_head", "psnr_truth", "nmse_truth"]  # the files are simulated
    assert all(list(found) == ["ssim", "psnr", "nmse", "mae", "hfen", *parts] for found in tables(stored.metrics))
    monkeypatch.delitem(mri.METRICS, "hfen")  # a finished run is read without it
    head = mri.metrics_table(metrics).splitlines()[1]
    assert " ".join(head.split()) == "SSIM PSNR (dB) NMSE MAE HFEN of the attainable gain ms per slice"
    assert head in capsys.readouterr().out  # what train.py printed
    columns = ["SSIM", "PSNR (dB)", "NMSE", "MAE", "HFEN", "of the attainable gain"]
    assert list(mri.compare_runs([stored])[0])[-6:] == columns
    assert list(mri.compare_runs([stored], "head")[0])[-4:] == [*columns[:3], columns[-1]]
    for name, heading in (("mae", "MAE"), ("hfen", "HFEN")):
        mean = stored.metrics["methods"]["unet"][name]["mean"]
        assert mri.compare_runs([stored])[-1][heading].startswith(f"{mean:.3g} [")


def test_a_long_name_does_not_run_into_its_numbers(run):
    paired = run.metrics["paired"]
    metrics = run.metrics | {"paired": paired | {"cine_unrolled - sliding_window": paired["unet - tv"]}}
    line = next(line for line in mri.metrics_table(metrics).splitlines() if line.startswith("cine_unrolled - "))
    assert re.match(r"cine_unrolled - sliding_window +-?0\.\d{3} \[", line)


@pytest.mark.parametrize("task, words, name", [
    ("cine", {"model": "cine_unrolled(features=4)", "center_fraction": 0.1}, "unrolled network"),
    ("multi_coil", {"model": "rss_unet(features=4, levels=2)"}, "U-Net on coil images"),
    ("super_resolution", {"model": "kspace_sr(features=4, levels=2)"}, ""),
])  # fmt: skip
def test_robustness_for_every_task(task, words, name, tiny, tmp_path, monkeypatch):
    data = {"super_resolution": tiny}.get(task, tmp_path / "demo")
    if task == "cine":
        mri.demo_cine(data, train=2, val=1, frames=6, matrix=32)
    if task == "multi_coil":
        mri.demo_data(data, train=2, val=1, slices=1, matrix=48, coils=3)
        monkeypatch.setattr("mri_parts.coils.PARALLEL", {"sense": (mri.PARALLEL["sense"][0], (0.01,))})
    train.run(task=task, data=str(data), out=str(tmp_path / "run"), epochs=1, device="cpu", **words)
    done = publish("report", "--run", tmp_path / "run", "--robustness-slices", 1)
    assert done.returncode == 0, done.stderr
    text = text_of((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "for 1 epoch " in text
    if not name:
        assert "Left out: the mask of task super_resolution has no other acceleration." in text
    else:
        _, _, found = text.partition(f"effective acceleration centre fraction SSIM, zero-filled SSIM, {name} ")
        assert len(re.findall(r"\d\.\d\d 0\.\d+ [01]\.\d{3} [01]\.\d{3} ", found)) >= 8


def test_report_tells_what_fits_the_measurement(run, tiny):
    """The energies of the middle slice of the median volume, computed here from the checkpoint."""
    network = mri.load_model(run.folder / "checkpoint.pt")
    _, val_set = train.load_data(train.settled(**dict(run.metrics["parameters"]) | {"device": "cpu"}))
    ssim = {name: row["unet"]["ssim"] for name, row in run.metrics["per_volume"].items()}
    volume = sorted(val_set.volumes, key=lambda v: ssim[v.path.name])[len(ssim) // 2]
    place = len(volume) // 2
    sample = mri.Sample.stack([mri.SliceDataset([volume], val_set.mask, 4.0, 0.1)[place]])
    truth = mri.ifft2c(volume.cropped(place)[0])
    rest = ~sample.mask[0] * mri.fft2c(network(sample.kspace, sample.mask, truth.shape)[0].detach())
    share = float(rest.norm() ** 2 / truth.norm() ** 2)
    missing = float((~sample.mask[0] * mri.fft2c(truth)).norm() ** 2 / truth.norm() ** 2)
    text = text_of(run.page)
    assert f"zero-filled 0.00% {missing:.2%} 0.00% {missing:.2%} U-Net {share:.2%} " in text


def test_report_tells_warnings_and_readings(run):
    text = text_of(run.page)
    assert "1 the first <warning> 2 the second" in text
    assert "R. Eader; 3 pairs" in text and "total variation over U-Net 0.000 [0.000, " in text and "U-Net 4.0" in text


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
        "The data are not here: /no/such/folder: no such folder",
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
    command = [sys.executable, TOOLS / "sweep.py", "--data", tiny, *SMALL, *words, "--out", out]
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
    assert table(done.stdout) == table(whole.stdout) and len(table(done.stdout)) == 7
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
    assert len(table(done.stdout)) == 6 and table(done.stdout)[-1].split()[4:6] == ["unet", "1"]
    text = text_of((tmp_path / "comparison.html").read_text(encoding="utf-8"))
    assert f"Not finished: {taken.name}" in text and (taken / "thesis.doc").read_text() == "mine"


@pytest.mark.parametrize("words, named", [
    (["--epoch", "3"], "--epoch"), (["--model", "unet", "umet"], "'umet', did you mean 'unet'"),
    (["--mask", "randon"], "'randon'"), (["--seed", "zero"], "zero"), (["--jobs", "0"], "jobs 0"),
    (["--acceleration", "4", "8", "16", "--center-fraction", "0.08", "0.04"], "2 centre fractions for 3"),
    (["--acceleration", "4", "20", "--center-fraction", "0.1"], "acceleration 20"),
    (["--data", "/no/such/data"], "/no/such/data: no such folder"), (["--resume", "true"], "--resume"),
])  # fmt: skip
def test_sweep_refuses_before_it_trains(words, named, tiny, tmp_path, capsys, monkeypatch):
    words = ["--data", tiny, *SMALL, *words, "--out", tmp_path / "sweep"]
    told = refusal("sweep", words, capsys, monkeypatch)
    assert told.count("\n") == 1 and named in told, told
    assert not (tmp_path / "sweep").exists()


def test_combinations_of_a_sweep(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    module = __import__("sweep")
    values = {"model": ["unet", "magnitude_unet"], "acceleration": [4.0, 8.0], "center_fraction": [0.08, 0.04]}
    runs = module.combinations(values | {"seed": [1, 2, 1], "ema": [0.0, 0.1]}, tmp_path)
    assert len(runs) == 2 * 2 * 2 * 2
    pairs = {(p["acceleration"], p["center_fraction"]) for p in runs.values()}
    assert pairs == {(4.0, 0.08), (8.0, 0.04)}
    assert tmp_path / "magnitude_unet_random_8x_seed2_ema0.1" in runs
    assert all(p["out"] == str(folder) and p["resume"] for folder, p in runs.items())
    with pytest.raises(mri.BadInput, match="unknown parameter of a sweep 'epoch', did you mean 'epochs'"):
        module.combinations({"epoch": [1]}, tmp_path)


# --- scoreboard -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scoreboard(tiny, tmp_path_factory):
    """The scoreboard of a folder with runs for two of its rows, and one that is the wrong run for its row."""
    folder = tmp_path_factory.mktemp("scoreboard")
    resnet = ["--model", "resnet(features=4, stages='1x2')", "--center-fraction", "0.08"]
    resnet += ["--epochs", "3", "--batch-size", "2", "--precision", "bfloat16"]  # as the scoreboard's row says
    challenge = [*SMALL, "--mask", "grappa", "--acceleration", "8", "--center-fraction", "0.05"]
    for name, words in {"challenge": challenge, "resnet_4x": resnet}.items():
        done = start(mri.ROOT / "train.py", "--data", tiny, *words, "--out", folder / name)
        assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "challenge", folder / "resnet_8x")
    shutil.copytree(folder / "resnet_4x", folder / "super_resolution_x2")
    own = {"challenge": ["epochs", "model", "train_slices"], "resnet_4x": ["model"]}
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
