"""The set-up: one list of dependencies, style, nothing of one machine."""

import re
import subprocess
import sys

import pytest

import mri_utils as mri


def test_environment_reads_the_one_list():
    yaml = pytest.importorskip("yaml")
    environment = yaml.safe_load((mri.ROOT / "environment.yml").read_text())
    python, pip, lists = environment["dependencies"]
    assert python.startswith("python=3.") and pip == "pip" and lists == {"pip": ["-r requirements.txt"]}
    assert environment["name"] and environment["channels"]


def test_requirements():
    lines = (mri.ROOT / "requirements.txt").read_text().splitlines()
    names = [re.split(r"[=<>~ ]", line)[0] for line in lines if line and not line.startswith(("#", "-"))]
    assert "torch==2.13.0" in lines and "-e ." in lines and len(set(names)) == len(names)
    assert "dependencies" not in (mri.ROOT / "pyproject.toml").read_text()  # no second list
    known = {"skimage": "scikit-image", "PIL": None, "IPython": None, "tqdm": "tqdm", "yaml": "pyyaml"}
    source = (mri.ROOT / "mri_utils.py").read_text()
    for module in set(re.findall(r"^\s*(?:import|from) (\w+)", source, re.MULTILINE)) - set(sys.stdlib_module_names):
        package = known.get(module, module)
        assert package is None or package in names, f"{module} is imported but not in requirements.txt"


@pytest.mark.parametrize("words", [["check"], ["format", "--check"]], ids=" ".join)
def test_style(words):
    pytest.importorskip("ruff")
    places = ["mri_utils.py", "notebooks/refresh.py", "tests"]
    command = [sys.executable, "-m", "ruff", *words, "--no-cache", *places]
    done = subprocess.run(command, cwd=mri.ROOT, capture_output=True, text=True)
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
