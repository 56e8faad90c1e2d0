"""The first ten minutes: a set-up that fails says why in one sentence, and the next attempt succeeds.

tools/setup.py runs as `make setup` runs it, but for the Python that makes .venv and installs: that is a stub.
"""

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

import mri_utils as mri

STUB = """#!/bin/sh
echo "$@" >> "FOLDER/log"
case "$*" in
    "tools/setup.py"*) shift; exec "PYTHON" "FOLDER/pretend.py" "$@" ;;
    "-c "*) exit 0 ;;
    "-m venv --clear "*)
        [ ! -e "FOLDER/fail" ] || { echo "no room"; exit 1; }
        rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    "-m pip "*) case "$*" in *"$(cat "FOLDER/cut" 2>/dev/null || echo nothing)"*)
        rm "FOLDER/cut"; echo "network cut"; exit 1 ;; esac ;;
esac
"""
PRETEND = """
import importlib.util, platform, runpy, shutil, sys, types, urllib.request
def no_network(*_, **__): raise OSError("no network")
urllib.request.urlopen = no_network
shutil.which = lambda name: None
shutil.disk_usage = lambda path: types.SimpleNamespace(free=50e9)
platform.machine, sys.platform, sys.executable = lambda: "x86_64", "linux", "FOLDER/python"
"""
SMALL_INDEX = "--index-url https://download.pytorch.org/whl/cpu torch==2.13.0"


@pytest.fixture
def book(tmp_path):
    """A copy of what a set-up reads; .make(words, pretend=code) runs make there with the stub for Python."""
    if not shutil.which("make"):
        pytest.skip("no make")
    folder = tmp_path / "the book"  # folders have spaces
    (folder / "tools").mkdir(parents=True)
    names = ("requirements.txt", "requirements-test.txt", "constraints.txt", "pyproject.toml", "Makefile")
    for name in (*names, "tools/setup.py"):
        shutil.copy(mri.ROOT / name, folder / name)
    stub = tmp_path / "python"
    stub.write_text(STUB.replace("FOLDER", str(tmp_path)).replace("PYTHON", sys.executable))
    stub.chmod(0o755)

    def make(*words, pretend=""):
        start = f'sys.argv[0] = "tools/setup.py"\nrunpy.run_path("{folder}/tools/setup.py", run_name="__main__")\n'
        (tmp_path / "pretend.py").write_text(PRETEND.replace("FOLDER", str(tmp_path)) + pretend + "\n" + start)
        (tmp_path / "log").write_text("")
        command = ["make", "-C", str(folder), *words, f"PYTHON={stub}"]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = (tmp_path / "log").read_text().splitlines()
        pips = [line.removeprefix("-m pip install --disable-pip-version-check ") for line in lines if "pip i" in line]
        venv = sum(line.startswith("-m venv") for line in lines)
        return SimpleNamespace(
            code=done.returncode, out=done.stdout, fault=done.stderr, pips=pips, venv=venv, log=lines
        )

    return SimpleNamespace(make=make, folder=folder, venv=folder / ".venv", stamp=folder / ".venv" / "installed")


FAULTS = {
    "python": ("sys.version_info = (3, 9, 2)", r"this is Python 3\.9\.2, but the book needs 3\.11 or newer: "),
    "venv": (
        "importlib.util.find_spec = lambda name: None if name == 'ensurepip' else 1",
        r"no module ensurepip \(on Debian and Ubuntu: apt install python3-venv\)",
    ),
    "disk": (
        "shutil.disk_usage = lambda path: types.SimpleNamespace(free=1.26e9)",
        r"1\.3 GB are free .* needs 3\.0 GB",
    ),
}


@pytest.mark.parametrize("pretend, sentence", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told_before_anything_is_made(book, pretend, sentence):
    first = book.make("demo", pretend=pretend)
    told = first.fault.splitlines()[0]
    assert first.code and re.match("setup.py: .*" + sentence, told) and not book.venv.exists() and not first.pips
    assert "Traceback" not in first.fault
    second = book.make("demo")
    assert second.code == 0 and book.stamp.exists() and second.log[-1] == "train.py --resume"


def test_what_is_installed_already_needs_no_room_again(book):
    (book.venv / "lib").mkdir(parents=True)
    with open(book.venv / "lib" / "large", "wb") as file:
        file.truncate(2 * 10**9)
    done = book.make("setup", pretend=FAULTS["disk"][0])
    assert done.code == 0, done.fault


@pytest.mark.parametrize("cut", ["-r requirements.txt", SMALL_INDEX])
def test_pip_that_was_cut_off_goes_on(book, cut, tmp_path):
    (tmp_path / "cut").write_text(cut)
    network = "import contextlib; urllib.request.urlopen = lambda *_, **__: contextlib.nullcontext()"
    first = book.make("demo", pretend=network)
    told = [line for line in first.fault.splitlines() if line.startswith("setup.py: ")]
    assert first.code and len(told) == 1 and "run the same command again" in told[0] and "network cut" in first.out
    assert not book.stamp.exists() and "train.py --resume" not in first.log
    second = book.make("demo", pretend=network)
    assert second.code == 0 and second.venv == 0 and book.stamp.exists()  # the same .venv
    assert second.pips == [f"--no-deps {SMALL_INDEX}", "-r requirements.txt -c constraints.txt"]
    third = book.make("demo")
    assert third.code == 0 and not third.pips and third.log[-1] == "train.py --resume"


def test_venv_that_could_not_be_made(book, tmp_path):
    (tmp_path / "fail").touch()
    first = book.make("demo")
    assert first.code and "setup.py: could not make" in first.fault and "no room" in first.out
    (tmp_path / "fail").unlink()
    assert book.make("demo").code == 0 and book.stamp.exists()


@pytest.mark.parametrize("left", ["nothing", "no pip", "dangling", "old"])
def test_an_incomplete_venv_is_made_anew(book, left):
    python = book.venv / "bin" / "python"
    python.parent.mkdir(parents=True)
    if left == "dangling":
        python.symlink_to(book.folder / "gone")
    elif left != "nothing":
        python.write_text("#!/bin/sh\nexit 1\n")  # what an import of pip, or the comparison of versions, ends with
        python.chmod(0o755)
    book.stamp.write_text("" if left == "old" else json.dumps({"torch": "cpu"}))
    done = book.make("demo")
    assert done.code == 0 and done.venv == 1 and "making .venv anew" in done.out and done.log[-1] == "train.py --resume"


def test_without_network_to_the_small_index_one_line_says_so(book):
    done = book.make("setup")
    assert done.pips == ["-r requirements.txt -c constraints.txt"] and done.fault == ""
    assert len([line for line in done.out.splitlines() if "PyTorch's CPU index does not answer" in line]) == 1


@pytest.mark.parametrize("words, pretend", [
    (["TORCH=cuda"], ""),
    ([], "shutil.which = lambda name: '/bin/' + name"),
    ([], "sys.platform = 'darwin'"),
    ([], "platform.machine = lambda: 'aarch64'"),
])  # fmt: skip
def test_where_the_small_build_is_not_looked_for(book, words, pretend):
    done = book.make("setup", *words, pretend=pretend)
    assert done.code == 0 and done.pips == ["-r requirements.txt -c constraints.txt"] and "CPU index" not in done.out


def test_another_build_of_torch(book):
    book.make("setup", "TORCH=cuda")
    assert not book.make("setup").pips  # no wish: what is there stays
    other = book.make("setup", "TORCH=cpu")
    assert other.code == 0 and other.venv == 1 and json.loads(book.stamp.read_text())["torch"] == "cpu"


def test_lists_that_change_are_installed_and_tests_come_on_top(book):
    assert book.make("setup").code == 0
    assert [line.split()[-1] for line in book.make("setup-test").pips] == ["constraints.txt", "fastmri"]
    assert not book.make("setup-test").pips and not book.make("setup").pips
    (book.folder / "requirements.txt").touch()  # as a checkout does
    assert not book.make("setup").pips
    with open(book.folder / "constraints.txt", "a") as file:
        file.write("# other\n")
    assert len(book.make("setup").pips) == 1 and len(book.make("setup-test").pips) == 2


def test_interrupted(book):
    done = book.make("setup", pretend="def stop(*_): raise KeyboardInterrupt\nshutil.disk_usage = stop")
    assert done.code and done.fault.startswith("setup.py: interrupted; run the same command again")


def test_every_package_of_the_lists_has_a_tested_version():
    """constraints.txt has one version of each package, and torch's is in requirements.txt."""
    lines = [line for line in (mri.ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines) and lines == sorted(set(lines))
    pinned = {line.split("==")[0] for line in lines}
    for name in ("requirements.txt", "requirements-test.txt"):
        wanted = {re.split("[=<>~ ]", line)[0] for line in (mri.ROOT / name).read_text().splitlines()} - {"", "#", "-e"}
        assert wanted - {"torch"} <= pinned


def test_an_old_python_can_read_it():
    import ast

    ast.parse((mri.ROOT / "tools" / "setup.py").read_text(encoding="utf-8"), feature_version=(3, 7))
