"""The set-up: the lists of dependencies, style, types, nothing of one machine."""

import ast
import json
import re
import subprocess
import sys
import tomllib

import pytest

import mri_utils as mri


def test_environment_reads_the_list_of_the_book():
    yaml = pytest.importorskip("yaml")
    environment = yaml.safe_load((mri.ROOT / "environment.yml").read_text())
    python, pip, lists = environment["dependencies"]
    assert pip == "pip" and lists == {"pip": ["-r requirements.txt", "-c constraints.txt"]}
    assert environment["name"] and environment["channels"] == ["conda-forge"]
    project = tomllib.loads((mri.ROOT / "pyproject.toml").read_text())["project"]
    version, lowest = (re.findall(r"\d+", text) for text in (python, project["requires-python"]))
    assert python.startswith("python=3.") and [int(n) for n in version] >= [int(n) for n in lowest]
    assert ".".join(version) in (mri.ROOT / "README.md").read_text()  # the versions that are promised


def imports(*patterns):
    """Module -> a file that imports it, over the Python files and notebooks of these patterns."""
    found = {}
    for path in (path for pattern in patterns for path in mri.ROOT.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        for node in ast.walk(ast.parse(text)):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            found |= {str(module).split(".")[0]: path.name for module in modules}
    return found


def packages(name):
    """The packages that a list of requirements names."""
    lines = (mri.ROOT / name).read_text().splitlines()
    return [re.split(r"[=<>~ ]", line)[0] for line in lines if line and not line.startswith(("#", "-"))]


BOOK = ("*.py", "mri_parts/*.py", "notebooks/**/*.ipynb", "tools/*.py", "data/*.py")


@pytest.mark.parametrize("patterns, lists", [
    (BOOK, ["requirements.txt"]), (["tests/*.py"], ["requirements.txt", "requirements-test.txt"])
])  # fmt: skip
def test_requirements(patterns, lists):
    """The book runs on the first list alone, its tests on both."""
    names = [package for name in lists for package in packages(name)]
    lines = (mri.ROOT / "requirements.txt").read_text().splitlines()
    assert "torch==2.13.0" in lines and lines[-1] == "-e ." and len(set(names)) == len(names)
    assert "dependencies" not in (mri.ROOT / "pyproject.toml").read_text()  # no further list
    known = {
        "skimage": "scikit-image",
        "yaml": "pyyaml",
        "xdist": "pytest-xdist",
        "PIL": "matplotlib",
        "cycler": "matplotlib",
        "IPython": "ipywidgets",
    }
    known |= {"nbformat": "nbconvert", "nbclient": "nbconvert"}  # on the right: what brings them along
    known |= {"markdown_it": "jupytext", "mdit_py_plugins": "jupytext"}
    # for those who have them: a log, weights for a perceptual loss, NIfTI, Siemens, photographs
    optional = {"tensorboard", "torchvision", "nibabel", "mapvbvd", "playwright"}
    optional |= {"fastmri"} if "pytest" in names else set()  # an oracle that make test installs
    own = {path.stem for path in [*mri.ROOT.glob("*.py"), *mri.ROOT.glob("*/*.py")]} | {"mri_parts"}
    for module, file in imports(*patterns).items():
        if module not in {*sys.stdlib_module_names, *own, *optional}:
            assert known.get(module, module) in names, f"{file} imports {module}: {' and '.join(lists)} lack it"


def test_the_widgets_are_of_a_version_that_vs_code_draws():
    """8.1.9 shows nothing there: github.com/microsoft/vscode-jupyter/issues/17504."""
    assert "ipywidgets<8.1.9" in (mri.ROOT / "requirements.txt").read_text().splitlines()
    (pinned,) = re.findall(r"^ipywidgets==([\d.]+)$", (mri.ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert tuple(map(int, pinned.split("."))) < (8, 1, 9)


@pytest.mark.parametrize("words", [["check"], ["format", "--check"]], ids=" ".join)
def test_style(words):
    pytest.importorskip("ruff")
    command = [sys.executable, "-m", "ruff", *words, "--no-cache", "."]
    done = subprocess.run(command, cwd=mri.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_types():
    """mypy as pyproject.toml configures it, on mri_utils.py and train.py."""
    pytest.importorskip("mypy")
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=mri.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_paths_of_one_machine():
    tracked = subprocess.run(["git", "-C", str(mri.ROOT), "ls-files"], capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    names = [mri.ROOT / name for name in tracked.stdout.splitlines()]
    assert len(names) > 5
    machine = re.compile(r"(?<![\w.])/(?:" + "|".join(["home", "root", "Users", "wo" + "rk"]) + r")/\w")
    for path in names:
        if path.suffix in (".py", ".md", ".ipynb", ".toml", ".txt", ".yml", "") and path.is_file():
            found = machine.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.name}: {found}"


def test_modules_are_importable_from_anywhere(tmp_path):
    code = "import mri_utils, train; print(mri_utils.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == str(mri.ROOT / "mri_utils.py"), done.stderr


def test_no_compiler_is_loaded_to_build_a_network():
    """On the meta device some operations make torch load sympy and a compiler: seconds, at every start of a program."""
    code = "import sys, mri_utils as mri; [mri.build_model(name) for name in mri.MODELS]; print('sympy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=mri.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
