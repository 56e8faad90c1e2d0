"""The notebooks: they run from anywhere, train.py is notebook 04, what is committed reads well."""

import ast
import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys

import lab
import nbformat
import pytest
import torch

import mri_utils as mri

papermill = pytest.importorskip("papermill")

FOLDER = mri.ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
SOLUTIONS = sorted(FOLDER.glob("solutions/*.ipynb"))
ALL_NOTEBOOKS = [*sorted(FOLDER.glob("*.ipynb")), *SOLUTIONS]
TRAINING = FOLDER / "04_train_unet.ipynb"
# test_browser.py runs all of them where there is a browser
RUN_HERE = [path for path in NOTEBOOKS if path.stem == "01_load_kspace" or not lab.has_browser()]
TRAINED = {"epochs": 1, "model": "unet(features=4, levels=2)", "train_slices": 4}


def execute(path, folder, **parameters):
    """Run a notebook with `folder` as its working directory; returns the executed notebook."""
    return papermill.execute_notebook(
        *(str(path), str(folder / "executed.ipynb"), parameters),
        **{"cwd": str(folder), "progress_bar": False, "execution_timeout": 300},
    )


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


def printed(notebook):
    """All text outputs of an executed notebook."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(o.get("text", "") or str(o.get("data", {}).get("text/plain", "")) for o in outputs)


@pytest.mark.parametrize("path", RUN_HERE, ids=lambda path: path.stem)
def test_runs_from_a_foreign_directory(path, tiny, tmp_path):
    known = papermill.inspect_notebook(str(path))
    own = {
        "data": str(tiny),
        "out": str(tmp_path / "run"),
        "answers": str(tmp_path / "answers.json"),
        "hearts": str(tmp_path / "hearts"),
        "breathing_hearts": str(tmp_path / "breathing_hearts"),
    }
    parameters = {name: value for name, value in (lab.SMALL | own).items() if name in known}
    before = lab.everything_here()
    notebook = execute(path, tmp_path, **parameters)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip())
    assert lab.everything_here() - before == set()  # it leaves nothing in the repository


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
    small = {**TRAINED, "data": str(tiny), "epochs": 2, "lr": 0.003, "seed": 4}
    execute(TRAINING, tmp_path, **small, out=str(tmp_path / "notebook"))
    words = [word for name, value in small.items() for word in ("--" + name.replace("_", "-"), str(value))]
    script = [sys.executable, str(mri.ROOT / "train.py"), *words, "--out", str(tmp_path / "script")]
    subprocess.run(script, cwd=tmp_path, check=True, capture_output=True)
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("notebook", "script"))
    assert one["methods"] == other["methods"] and one["per_volume"] == other["per_volume"]
    assert one["parameters"] | {"out": 0} == other["parameters"] | {"out": 0}
    typed = [set(shlex.split(run["provenance"]["command"])[2:]) for run in (one, other)]
    assert typed[0] ^ typed[1] == {str(tmp_path / "notebook"), str(tmp_path / "script")}  # the kernel's own is none
    assert (tmp_path / "notebook" / "log.csv").read_bytes() == (tmp_path / "script" / "log.csv").read_bytes()


def own_folder(folder, coils=()):
    """Somebody's own scans: one file to train on and one to validate, two slices of another matrix."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 96), indexing="ij")
    for side in ("train", "val"):
        image = 1.0 * (torch.hypot(y, x / 0.8) < 0.8) + 0.5 * (torch.hypot(y - 0.2, x) < 0.3)
        noise = torch.randn(2, *coils, 128, 96, dtype=torch.complex64, generator=generator)
        about = {"target_size": (128, 96), "acquisition": "own", "patient_id": side}
        mri.write_volume(folder / side / f"{side}.h5", mri.fft2c(image + 0.05 * noise), **about)
    return folder


OF_TWO_SIDES = ["03_aliasing", "05_evaluate", "12_real_scans"]  # chapters that tune or train as well


@pytest.mark.parametrize("name", ["01_load_kspace", "02_sampling_masks", *OF_TWO_SIDES])
def test_a_chapter_runs_on_one_file_of_another_matrix(name, tiny, tmp_path):
    small = {"05_evaluate": {"slices_per_acceleration": 1}, "12_real_scans": {"epochs": 1}}.get(name, {})
    known = papermill.inspect_notebook(str(FOLDER / f"{name}.ipynb"))
    places = {"answers": str(tmp_path / "answers.json"), "out": str(tmp_path / "run"), "simulated": str(tiny)}
    small |= {key: place for key, place in places.items() if key in known}
    execute(FOLDER / f"{name}.ipynb", tmp_path, data=str(own_folder(tmp_path / "own")), **small)


@pytest.mark.parametrize("name", ["00_playground", *OF_TWO_SIDES])
def test_a_folder_with_one_file_alone(name, tmp_path):
    """It suits a chapter that shows one slice; the others say that they need files to learn from."""
    alone = str(own_folder(tmp_path / "own") / "val")
    if name == "00_playground":
        execute(FOLDER / f"{name}.ipynb", tmp_path, data=alone)
    else:
        with pytest.raises(Exception, match=r"BadInput: .*one subject with 2 slices cannot be split: give train/ and"):
            execute(FOLDER / f"{name}.ipynb", tmp_path, data=alone)


@pytest.mark.parametrize("name", ["00_playground", "01_load_kspace", "02_sampling_masks", *OF_TWO_SIDES])
def test_a_chapter_about_one_coil_says_how_coils_are_combined(name, tmp_path):
    told = r"combine the coils, python data/convert.py .* --single-coil"
    told = r"has coils, the playground shows single images: see notebooks 14 and 15" if name[:2] == "00" else told
    with pytest.raises(Exception, match=rf"BadInput: .*{told}"):
        execute(FOLDER / f"{name}.ipynb", tmp_path, data=str(own_folder(tmp_path / "own", (2,))))


def test_unknown_parameter_is_refused(tiny, tmp_path):
    with pytest.raises(Exception, match="unknown parameter 'epoch', did you mean 'epochs'"):
        execute(TRAINING, tmp_path, data=str(tiny), epoch=3, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_values_arrive_with_their_type(tiny, tmp_path):
    """`papermill -y "{lr: 1e-3}"` injects a string."""
    execute(TRAINING, tmp_path, **TRAINED, data=str(tiny), lr="1e-3", out=str(tmp_path / "run"))
    assert mri.read_checkpoint(tmp_path / "run" / "checkpoint.pt")["parameters"]["lr"] == 0.001
    with pytest.raises(Exception, match=r"parameter lr: 'fast' is no float"):
        execute(TRAINING, tmp_path, data=str(tiny), lr="fast", out=str(tmp_path / "other"))


def test_train_py_is_notebook_04(tmp_path):
    pytest.importorskip("jupytext")
    for name in ("jupytext.toml", "notebooks/04_train_unet.ipynb"):  # the settings count below their folder
        shutil.copy(mri.ROOT / name, tmp_path)
    without = ["--TagRemovePreprocessor.enabled=True", "--TagRemovePreprocessor.remove_cell_tags", "notebook-only"]
    words = ["nbconvert", "--to", "notebook", "--inplace", *without, "04_train_unet.ipynb"]
    subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, check=True, capture_output=True)
    words = ["jupytext", "--quiet", "--to", "py:percent", "--output", "train.py", "04_train_unet.ipynb"]
    subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, check=True)
    assert (tmp_path / "train.py").read_bytes() == (mri.ROOT / "train.py").read_bytes(), "run: make notebooks"


def name_of(path):
    return str(path.relative_to(FOLDER).with_suffix(""))


@pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=name_of)
def test_committed_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata and notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"], "a warning is committed"
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert pictures or path in SOLUTIONS, "a chapter without a picture"
    assert all(o.metadata["image/png"]["alt"] for o in pictures), "a picture that nothing describes"
    if path in NOTEBOOKS:
        readme = (mri.ROOT / "README.md").read_text().splitlines()
        table = [line for line in readme if f"(notebooks/{path.name})" in line]
        assert (FOLDER / "thumbnails" / f"{path.stem}.png").is_file() and f"thumbnails/{path.stem}.png" in table[0]
    counts = [cell.execution_count for cell in code if cell.source.strip()]
    assert counts == list(range(1, len(counts) + 1)), "not run top to bottom"
    text = "\n".join(cell.source for cell in notebook.cells) + printed(notebook)
    assert str(mri.ROOT) not in text and "/root/" not in text and "/home/" not in text


@pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=name_of)
def test_text_of_a_notebook(path):
    cells = nbformat.read(path, as_version=4).cells
    first = cells[0].source
    assert cells[0].cell_type == "markdown" and first.startswith("# ")
    assert ("You will" if path in NOTEBOOKS else ": solutions\n") in first and "Time: " in first
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    for text in texts:  # links lead somewhere
        for target in [part.split(")")[0].split("#")[0] for part in text.split("](")[1:]]:
            assert target.startswith("http") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_close_of_a_chapter(path):
    """Remember, five questions, exercises, each of which has its solution; and the links at both ends."""
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    remember, recall, exercises = (texts[-1].split(f"## {name}\n")[1] for name in ("Remember", "Recall", "Exercises"))
    assert re.findall(r"^(\d)\. \*\*", remember.split("##")[0], re.MULTILINE) == ["1", "2", "3"]
    assert recall.count("<details><summary>") == recall.count("</details>") == 5
    assert f"](solutions/{path.name})" in exercises
    asked = len(re.findall(r"^\d\. ", exercises, re.MULTILINE))
    solutions = nbformat.read(FOLDER / "solutions" / path.name, as_version=4).cells
    solved = re.findall(r"^## Exercise (\d)\n\n\*\S", "\n".join(cell.source for cell in solutions), re.MULTILINE)
    assert asked and solved == [str(number + 1) for number in range(asked)]
    assert f"](../{path.name})" in solutions[0].source
    number = NOTEBOOKS.index(path)
    for text in ("\n".join(texts[:2]), texts[-1]):
        line = next(line for line in text.splitlines() if "[contents](../README.md#the-book)" in line)
        for neighbour in (NOTEBOOKS[max(number - 1, 0)], NOTEBOOKS[min(number + 1, len(NOTEBOOKS) - 1)]):
            assert neighbour == path or f"]({neighbour.name})" in line, "run: python tools/refresh.py"


@pytest.mark.parametrize("name, own", [("01_load_kspace", ()), ("11_blinded_reading", ("out",))])
def test_solutions_run_from_a_foreign_directory(name, own, tiny, tmp_path):
    places = {parameter: str(tmp_path / parameter) for parameter in own}
    notebook = execute(FOLDER / "solutions" / f"{name}.ipynb", tmp_path, data=str(tiny), **places)
    assert re.search(r"\bright\n", printed(notebook)) and re.search(r"\bno: \w", printed(notebook))


def test_answers_are_judged():
    """Right, nearly right, a known mistake, something else; numbers, texts and arrays."""
    mistakes = [(6.0, "the variance"), ("edge", "only there")]
    assert mri.check_answer(2.45, 6**0.5, mistakes) == "right"
    assert mri.check_answer(2.5, 6**0.5, mistakes).startswith("nearly right: off by 2.1 %")
    assert mri.check_answer(6, 6**0.5, mistakes) == "no: the variance"
    assert mri.check_answer(4.0, 6**0.5, mistakes).startswith("not yet: off by 63 %")
    assert mri.check_answer("edge", "centre", mistakes) == "no: only there"
    assert mri.check_answer("centre", "centre") == "right" and mri.check_answer("x", 1).startswith("not yet")
    image = torch.arange(6.0).reshape(2, 3)
    assert mri.check_answer(image + 0j, image) == "right"
    assert mri.check_answer(image.T, image).startswith("not yet: of another size")
    assert mri.check_answer(image * 1.01, image).startswith("nearly right")


def stored(tree):
    """Names that a cell sets outside of its functions and comprehensions."""
    inner = (ast.FunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    found, left = set(), [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        left += [] if isinstance(node, inner) else ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_slider_uses_is_not_set_again_below_it(path):
    """When all cells have run, the slider's function would meet another value of the same name."""
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    trees = [ast.parse(source) for source in cells]
    functions = {f.name: f for tree in trees for f in tree.body if isinstance(f, ast.FunctionDef)}
    for number, source in enumerate(cells):
        for name in re.findall(r"mri\.explore\(\s*(\w+)", source):
            used, called, left = set(), set(), [name]
            while left:  # with the functions that it calls
                called.add(left[-1])
                nodes = list(ast.walk(functions[left.pop()]))
                own = {n.arg for n in nodes if isinstance(n, ast.arg)}
                own |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
                found = {n.id for n in nodes if isinstance(n, ast.Name)} - own
                left += (found & functions.keys()) - called
                used |= found
            again = used & set().union(set(), *map(stored, trees[number + 1 :]))
            assert not again, f"{name}: {again} is set again below its sliders"


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


@pytest.mark.parametrize("path", ALL_NOTEBOOKS, ids=name_of)
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
    most = 12 if path in SOLUTIONS else most  # an answer is often a whole function
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
            below = [picture for picture in shown[number:] if picture is not None]
            assert any(below[:2]), f"the sliders of code cell {number + 1} have no still picture, nor the output below"
        if re.search(r"^mri\.show_controls\(", cell.source, re.MULTILINE):
            above = [picture for picture in shown[:number] if picture is not None]
            assert above[-1], (
                f"the last output above the form of code cell {number + 1} is not the picture it asks about"
            )
