"""The notebooks: they run from anywhere, train.py is notebook 04, what is committed reads well."""

import json
import re
import shutil
import statistics
import subprocess
import sys

import nbformat
import pytest

import mri_utils as mri

papermill = pytest.importorskip("papermill")

FOLDER = mri.ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
ALL_NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TRAINING = FOLDER / "04_train_unet.ipynb"
# values that make a notebook's parameters small, where its parameters cell has them
SMALL = {"epochs": 1, "features": 4, "levels": 2, "train_slices": 4}
PLACES = {"volume_number": 1, "slice_number": 1, "slices_per_acceleration": 4, "val_slices": 4, "matrix": 48}
PLACES |= {"members": 2, "heads": 1, "head_matrix": 64, "repeats": 20, "pair_count": 3, "second": "zero_filled"}
PLACES |= {"val_hearts": 2}


def execute(path, folder, **parameters):
    """Run a notebook with `folder` as its working directory; returns the executed notebook."""
    return papermill.execute_notebook(
        *(str(path), str(folder / "executed.ipynb"), parameters),
        **{"cwd": str(folder), "progress_bar": False, "execution_timeout": 300},
    )


def everything_here():
    """All files of the repository but those of tools."""
    passing = {".git", ".venv", "__pycache__", ".hypothesis", "data"}
    return {path for path in mri.ROOT.rglob("*") if not passing & set(path.parts)}


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


def printed(notebook):
    """All text outputs of an executed notebook."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(o.get("text", "") or str(o.get("data", {}).get("text/plain", "")) for o in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_a_foreign_directory(path, tiny, tmp_path):
    known = papermill.inspect_notebook(str(path))
    own = {
        "data": str(tiny),
        "out": str(tmp_path / "run"),
        "answers": str(tmp_path / "answers.json"),
        "hearts": str(tmp_path / "hearts"),
    }
    parameters = {name: value for name, value in (SMALL | PLACES | own).items() if name in known}
    before = everything_here()
    notebook = execute(path, tmp_path, **parameters)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip())
    after = everything_here()
    assert {p for p in after - before if "cache" not in str(p)} == set()  # it leaves nothing in the repository


def test_blinded_reading_is_kept_and_goes_on(tiny, tmp_path):
    """Two answers, an interruption, the third one: in the file, under the pairs drawn at first."""
    answer = "preferred.value = 'left'; points['left']['sharpness'].value = 5; button.click()"
    unwilling = "button.click(); assert 'Which one' in said.value"
    answers = tmp_path / "run" / "reading.json"
    drawn = []
    for clicks in ([unwilling, answer, answer], [answer, "assert button.disabled and 'Unblind' in said.value"]):
        notebook = nbformat.read(FOLDER / "11_blinded_reading.ipynb", as_version=4)
        notebook.cells += [nbformat.v4.new_code_cell(source) for source in clicks]
        nbformat.write(notebook, tmp_path / "reading.ipynb")
        execute(
            tmp_path / "reading.ipynb",
            tmp_path,
            data=str(tiny),
            second="zero_filled",
            pair_count=3,
            out=str(tmp_path / "run"),
        )
        drawn.append([pair["volume"] for pair in json.loads(answers.read_text())["pairs"]])
        if clicks[0] == unwilling:
            assert mri.summarize_reading(answers)["pairs"] == 2
    found = mri.summarize_reading(answers)
    assert found["pairs"] == 3 and drawn[0] == drawn[1] and len(drawn[0]) == 3
    pairs = json.loads(answers.read_text())["pairs"]
    assert [pair["preferred"] for pair in pairs] == ["left"] * 3
    assert [pair["scores"]["left"]["sharpness"] for pair in pairs] == [5] * 3


def test_training_notebook_and_script_write_the_same_numbers(tiny, tmp_path):
    small = {**SMALL, "data": str(tiny), "epochs": 2, "lr": 0.003, "seed": 4}
    execute(TRAINING, tmp_path, **small, out=str(tmp_path / "notebook"))
    words = [word for name, value in small.items() for word in ("--" + name.replace("_", "-"), str(value))]
    script = [sys.executable, str(mri.ROOT / "train.py"), *words, "--out", str(tmp_path / "script")]
    subprocess.run(script, cwd=tmp_path, check=True, capture_output=True)
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("notebook", "script"))
    assert one["methods"] == other["methods"] and one["per_volume"] == other["per_volume"]
    assert one["parameters"] | {"out": 0} == other["parameters"] | {"out": 0}
    assert (tmp_path / "notebook" / "log.csv").read_bytes() == (tmp_path / "script" / "log.csv").read_bytes()


def test_unknown_parameter_is_refused(tiny, tmp_path):
    with pytest.raises(Exception, match="unknown parameter 'epoch', did you mean 'epochs'"):
        execute(TRAINING, tmp_path, data=str(tiny), epoch=3, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_values_arrive_with_their_type(tiny, tmp_path):
    """`papermill -y "{lr: 1e-3}"` injects a string."""
    execute(TRAINING, tmp_path, **SMALL, data=str(tiny), lr="1e-3", out=str(tmp_path / "run"))
    assert mri.load_model(tmp_path / "run" / "checkpoint.pt").settings["lr"] == 0.001
    with pytest.raises(Exception, match=r"parameter lr: 'fast' is no float"):
        execute(TRAINING, tmp_path, data=str(tiny), lr="fast", out=str(tmp_path / "other"))


def test_train_py_is_notebook_04(tmp_path):
    pytest.importorskip("jupytext")
    for name in ("jupytext.toml", "notebooks/04_train_unet.ipynb"):  # the settings count below their folder
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(mri.ROOT / name, tmp_path / name)
    words = ["-m", "jupytext", "--quiet", "--to", "py:percent", "--output", "train.py", "notebooks/04_train_unet.ipynb"]
    subprocess.run([sys.executable, *words], cwd=tmp_path, check=True)
    assert (tmp_path / "train.py").read_bytes() == (mri.ROOT / "train.py").read_bytes(), "run: make notebooks"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata and notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"], "a warning is committed"
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert pictures and all(o.metadata["image/png"]["alt"] for o in pictures), "a picture that nothing describes"
    table = [line for line in (mri.ROOT / "README.md").read_text().splitlines() if f"(notebooks/{path.name})" in line]
    assert (FOLDER / "thumbnails" / f"{path.stem}.png").is_file() and f"thumbnails/{path.stem}.png" in table[0]
    counts = [cell.execution_count for cell in code if cell.source.strip()]
    assert counts == list(range(1, len(counts) + 1)), "not run top to bottom"
    text = "\n".join(cell.source for cell in notebook.cells) + printed(notebook)
    assert str(mri.ROOT) not in text and "/root/" not in text and "/home/" not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_text_of_a_notebook(path):
    cells = nbformat.read(path, as_version=4).cells
    first = cells[0].source
    assert cells[0].cell_type == "markdown" and first.startswith("# ") and "You will" in first
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert any("Exercises" in text for text in texts)
    for text in texts:  # links lead somewhere
        for target in [part.split(")")[0].split("#")[0] for part in text.split("](")[1:]]:
            assert target.startswith("http") or (FOLDER / target).exists(), target


# What a notebook must not contain, and why
FORBIDDEN = {
    "interact(": "its Output widget can hang a headless run: use mri.explore",
    "interactive(": "its Output widget can hang a headless run: use mri.explore",
    "interactive_output(": "its Output widget can hang a headless run: use mri.explore",
    "widgets.Output(": "it can hang a headless run: use widgets.Image or widgets.HTML",
    "%matplotlib": "it changes the figures of cells that have run",
    "!pip": "requirements.txt is the one list of dependencies",
    "%pip": "requirements.txt is the one list of dependencies",
    "C:\\": "a path of one machine",
}


@pytest.mark.parametrize("path", ALL_NOTEBOOKS, ids=lambda path: path.stem)
def test_readable_on_a_code_host(path):
    """Small cells, a file that a code host draws, a still picture for every interactive one."""
    assert path.stat().st_size < 1_000_000, "code hosts draw no notebook beyond about a megabyte"
    code = [
        cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code" and cell.source.strip()
    ]
    code = [cell for cell in code if "parameters" not in cell.metadata.get("tags", [])]  # a list, as long as it must be
    lines = [len(cell.source.strip().splitlines()) for cell in code if "google.colab" not in cell.source]
    # 04 is train.py as well, whole functions to a cell; 07 and the scoreboard compute tables
    most = {"04_train_unet": 10, "07_sampling_strategies": 11, "scoreboard": 9}.get(path.stem, 8)
    assert statistics.median(lines) <= most and max(lines) <= 30, "one idea per cell"
    for cell in code:
        for word, why in FORBIDDEN.items():
            assert word not in cell.source, f"{word} {why}"
    # the widgets themselves are outputs, but a code host shows their text only
    shown = [
        any("image/" in kind for o in cell.outputs for kind in o.get("data", {})) if cell.outputs else None
        for cell in code
    ]
    for number, cell in enumerate(code):
        if re.search(r"^mri\.explore\(", cell.source, re.MULTILINE):
            below = [picture for picture in shown[number + 1 :] if picture is not None]
            assert below and below[0], (
                f"the first output below the sliders of code cell {number + 1} is no still picture"
            )
        if re.search(r"^mri\.show_controls\(", cell.source, re.MULTILINE):
            above = [picture for picture in shown[:number] if picture is not None]
            assert above[-1], (
                f"the last output above the form of code cell {number + 1} is not the picture it asks about"
            )
