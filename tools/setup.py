"""Set up .venv with what the book needs: what `make` does first, and `py tools/setup.py` where there is no make.

usage: python tools/setup.py [--tests] [--torch cpu|cuda]

It asks first for what would fail later: the version of Python, the module venv, room on the disk. .venv is made anew
where it has no working Python or pip. .venv/installed is written when all is there, so that an attempt that was cut
off, by the network or by Ctrl-C, is taken up by the same command; nothing has to be removed by hand.

On Linux, PyPI's torch brings gigabytes for NVIDIA's GPUs. Where there is none (no nvidia-smi), the small build comes
from PyTorch's own CPU index, or from PyPI after all where that does not answer. `--torch cuda` takes PyPI's in any
case, `--torch cpu` the small one; another build than the one that is there makes .venv anew.
"""

# The standard library only, and nothing that Python 3.7 cannot read: an old Python is told by this that it is too old.
import argparse
import hashlib
import http.client
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "installed"
LISTS = ("requirements.txt", "requirements-test.txt", "constraints.txt", "pyproject.toml")
LOWEST = (3, 11)
GIGABYTES = {"cpu": 3, "cuda": 8}  # .venv, and what pip keeps of the downloads
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
AGAIN = "run the same command again: what was downloaded is kept"


def works(python: Path) -> bool:
    """Whether a .venv is whole: its Python starts, is new enough, and has pip."""
    code = f"import sys, pip; sys.exit(sys.version_info < {LOWEST})"
    try:
        return subprocess.run([str(python), "-c", code], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def size(folder: Path) -> int:
    """Bytes of all files below a folder; 0 if there is none."""
    return sum(os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names)


def find_fault(build: str) -> str:
    """What would make the set-up fail, in one sentence; "" if nothing would.

    Args:
        build: of torch, cpu or cuda.
    """
    if sys.version_info[:2] < LOWEST:
        there, lowest = (".".join(map(str, version)) for version in (sys.version_info[:3], LOWEST))
        return f"this is Python {there}, but the book needs {lowest} or newer: make demo PYTHON=python{lowest}"
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            return f"this Python has no module {module} (on Debian and Ubuntu: apt install python3-venv)"
    needed, free = GIGABYTES[build] - size(VENV) / 1e9, shutil.disk_usage(str(ROOT)).free / 1e9
    if free < needed:
        return f"{free:.1f} GB are free on the disk of {ROOT}, but the installation needs {needed:.1f} GB: make room"
    return ""


def run(words: list, fault: str) -> None:
    """Run a command; if it fails, end with one sentence below what it has printed."""
    if subprocess.run([str(word) for word in words], cwd=str(ROOT)).returncode:
        sys.exit(f"setup.py: {fault}")


def pip(*words: str, fault: str = f"pip stopped, for the reason above; {AGAIN}") -> None:
    """pip install in .venv, with its progress."""
    run([PYTHON, "-m", "pip", "install", "--disable-pip-version-check", *words], fault)


def answers(address: str) -> bool:
    """Whether a page can be opened at all."""
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (OSError, ValueError, http.client.HTTPException):
        return False


def install_torch(build: str) -> None:
    """The small build of torch, where there is one besides PyPI's; else nothing: it comes with the other packages."""
    if build != "cpu" or sys.platform != "linux" or platform.machine() != "x86_64":
        return
    if not answers(f"{CPU_INDEX}/torch/"):
        print("PyTorch's CPU index does not answer: PyPI's torch it is, which may be some gigabytes larger", flush=True)
        return
    pin = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch=="))
    fault = f"pip stopped at {pin}; {AGAIN}, or take PyPI's build: make demo TORCH=cuda"
    pip("--no-deps", "--index-url", CPU_INDEX, pin, fault=fault)  # nothing else comes from there


def read_stamp() -> dict:
    """What .venv/installed says of the last complete set-up."""
    try:
        return dict(json.loads(STAMP.read_text()))
    except (OSError, TypeError, ValueError):
        return {}


def main(words: list) -> None:
    """Set up what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", action="store_true", help="also what the tests need")
    parser.add_argument("--torch", choices=("cpu", "cuda"), help="its build (default: cuda where there is nvidia-smi)")
    asked = parser.parse_args(words)
    done, whole = read_stamp(), works(PYTHON)
    build = asked.torch or done.get("torch") or ("cuda" if shutil.which("nvidia-smi") else "cpu")
    content = b"".join((ROOT / name).read_bytes() for name in LISTS)  # not their times: a checkout changes those
    wanted = {"lists": hashlib.sha256(content).hexdigest(), "torch": build}
    other_build = done.get("torch", build) != build
    have_book = whole and all(done.get(name) == value for name, value in wanted.items())
    if have_book and done.get("tests", False) >= asked.tests:
        return
    fault = find_fault(build)
    if fault:
        sys.exit(f"setup.py: {fault}")
    if not whole or other_build:
        print(f"making {VENV.name}{' anew' if VENV.exists() else ''}", flush=True)
        run([sys.executable, "-m", "venv", "--clear", VENV], f"could not make {VENV}, for the reason above")
    if not have_book:
        if STAMP.exists():
            STAMP.unlink()
        install_torch(build)
        pip("-r", "requirements.txt", "-c", "constraints.txt")
        STAMP.write_text(json.dumps(wanted))
    if asked.tests:
        pip("-r", "requirements-test.txt", "-c", "constraints.txt")
        pip("--no-deps", "-c", "constraints.txt", "fastmri")  # the field's reference, an oracle for the tests only
        STAMP.write_text(json.dumps({**wanted, "tests": True}))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(f"setup.py: interrupted; {AGAIN}")
