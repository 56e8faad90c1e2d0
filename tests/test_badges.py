"""The command that writes badges, and the first cell that it gives to the notebooks, tried as Colab would."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

import mri_utils as mri


def badges(folder, *words):
    command = [sys.executable, "tools/badges.py", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def git(folder, *words):
    identity = ("-c", "user.name=test", "-c", "user.email=test@test")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in str(path)}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A copy of the repository, small checkpoints left out, for which the command has run."""
    folder = tmp_path_factory.mktemp("copy") / "book"
    for pattern in ("*.py", "*.md", "*.txt", "*.toml", "mri_parts/*.py", "tools/*.py", "notebooks/*.ipynb"):
        for path in mri.ROOT.glob(pattern):
            (folder / path.relative_to(mri.ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.relative_to(mri.ROOT))
    done = badges(folder, "some-one/some.book")
    assert done.returncode == 0 and not done.stderr, done.stderr
    return folder


def test_written_once_and_replaced(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "again")
    before = content(folder)
    badges(folder, "some-one/some.book")
    assert content(folder) == before, "a second run changes something"
    badges(folder, "another/name")
    assert not [path for path, text in content(folder).items() if b"some-one" in text or b"some.book" in text]
    badges(folder, "some-one/some.book")
    assert content(folder) == before
    for name, badge in {"README.md": "00_playground", "train.py": "04_train_unet"}.items():
        text = (folder / name).read_text()
        assert text.count("[![Open in") == 2 and f"some-one/some.book/blob/main/notebooks/{badge}.ipynb)" in text
    for path in (folder / "notebooks").glob("[0-9]*.ipynb"):
        old, new = (nbformat.read(place, as_version=4).cells for place in (mri.ROOT / "notebooks" / path.name, path))
        nbformat.validate(nbformat.read(path, as_version=4))
        assert f"some.book/blob/main/notebooks/{path.name})" in new[0].source
        first = next(number for number, cell in enumerate(old) if cell.cell_type == "code")
        assert new[first].source.count("https://github.com/some-one/some.book") == 1
        assert new[first].source.startswith("import sys; sys.path[:0]") and new[first].metadata == old[first].metadata
        assert new[1:first] + new[first + 1 :] == old[1:first] + old[first + 1 :]


@pytest.mark.parametrize("words", [[], ["book"], ["a/b", "c"], ["https://x.org/a/b"], ["a/.."], ["a/b\n"]], ids=str)
def test_a_malformed_name_is_one_line(published, words):
    before = content(published)
    done = badges(published, *words)
    assert done.returncode == 1 and done.stderr.startswith("badges.py: ") and done.stderr.count("\n") == 1
    assert "owner/name" in done.stderr and content(published) == before


def test_style(published):
    pytest.importorskip("ruff")
    words = [sys.executable, "-m", "ruff", "check", "--no-cache", "."]
    done = subprocess.run(words, cwd=published, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_train_py_with_badges(published, tmp_path):
    """The first cell is inert in the script, and --help shows no badge."""
    words = [sys.executable, str(published / "train.py"), "--help"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "# 04 Train a U-Net\n\nHow far" in done.stdout and "badge" not in done.stdout
    active = re.sub(r'"""\n.*?"""\n', "", (published / "train.py").read_text(), flags=re.DOTALL)
    assert "colab" not in active and "import mri_utils" in active


def test_alone_on_colab(published, tmp_path, monkeypatch):
    """A notebook alone in a folder, without the repository: its first cell fetches the rest, a second run nothing."""
    folder = shutil.copytree(published, tmp_path / "origin")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "book")
    stub = tmp_path / "stub"
    (stub / "google" / "colab").mkdir(parents=True)
    (stub / "google" / "colab" / "__init__.py").touch()
    (stub / "sitecustomize.py").write_text("import google.colab\n")  # as Colab's kernel does
    there = tmp_path / "there"
    there.mkdir()
    notebook = nbformat.read(folder / "notebooks" / "04_train_unet.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    last = next(number for number, cell in enumerate(code) if "read_given" in cell.source)
    tell = nbformat.v4.new_code_cell("import train; print(mri.__file__, train.__file__, os.getcwd())")
    notebook.cells = [*code[: last + 1], code[0], tell]
    monkeypatch.setenv("PYTHONPATH", str(stub))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # what requirements.txt names is here
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{folder.as_uri()}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/some-one/some.book")
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(there)}}).execute()
    clone = there / "book"
    assert tell.outputs[0].text.split() == [str(clone / "mri_utils.py"), str(clone / "train.py"), str(clone)]
    assert os.listdir(there) == ["book"]
