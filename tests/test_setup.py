"""The set-up: one list of dependencies, style, types, nothing of one machine."""

import json
import re
import subprocess
import sys
import tomllib

import pytest

import mri_utils as mri


def test_environment_reads_the_one_list():
    yaml = pytest.importorskip("yaml")
    environment = yaml.safe_load((mri.ROOT / "environment.yml").read_text())
    python, pip, lists = environment["dependencies"]
    assert pip == "pip" and lists == {"pip": ["-r requirements.txt"]}
    assert environment["name"] and environment["channels"] == ["conda-forge"]
    project = tomllib.loads((mri.ROOT / "pyproject.toml").read_text())["project"]
    version, lowest = (re.findall(r"\d+", text) for text in (python, project["requires-python"]))
    assert python.startswith("python=3.") and [int(n) for n in version] >= [int(n) for n in lowest]
    assert ".".join(version) in (mri.ROOT / "README.md").read_text()  # the versions that are promised


def imports():
    """Module -> a file that imports it, over all Python files and notebooks."""
    found = {}
    for path in [
        *mri.ROOT.glob("*.py"),
        *(p for f in ("notebooks", "tests", "data") for p in (mri.ROOT / f).glob("*")),
    ]:
        text = path.read_text(encoding="utf-8") if path.suffix in (".py", ".ipynb") else ""
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        found |= {module: path.name for module in re.findall(r"^\s*(?:import|from) (\w+)", text, re.MULTILINE)}
    return found


def test_requirements():
    lines = (mri.ROOT / "requirements.txt").read_text().splitlines()
    names = [re.split(r"[=<>~ ]", line)[0] for line in lines if line and not line.startswith(("#", "-"))]
    assert "torch==2.13.0" in lines and "-e ." in lines and len(set(names)) == len(names)
    assert "dependencies" not in (mri.ROOT / "pyproject.toml").read_text()  # no second list
    known = {
        "skimage": "scikit-image",
        "yaml": "pyyaml",
        "PIL": "matplotlib",
        "cycler": "matplotlib",
        "IPython": "ipywidgets",
    }
    known |= {"nbformat": "nbconvert", "nbclient": "nbconvert"}  # on the right: what brings them along
    # an oracle that make test installs; a log, and weights for a perceptual loss, for those who have them
    optional = ("fastmri", "tensorboard", "torchvision")
    own = {path.stem for path in [*mri.ROOT.glob("*.py"), *mri.ROOT.glob("*/*.py")]}
    for module, file in imports().items():
        if module not in {*sys.stdlib_module_names, *own, *optional}:
            assert known.get(module, module) in names, f"{file} imports {module}: requirements.txt does not have it"


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
