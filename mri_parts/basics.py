"""What every part needs: faults told in one line, a lookup that guesses, files replaced in one step."""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]  # of the repository
DEMO_FOLDER = ROOT / "data" / "demo"


class BadInput(ValueError):
    """A fault of the input, told in one line: the file or parameter, what is wrong, the mend."""

    def __init__(self, message: str) -> None:
        # A DataLoader's worker hands on its whole traceback; the message is what follows its own name.
        message = message.rpartition(f"{type(self).__name__}: ")[2].rstrip("\n")
        # A file's name may hold newlines and control characters: a terminal must not obey them.
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


def choose(table: Mapping[str, Any], name: str, what: str) -> Any:
    """table[name], or a BadInput that lists the names and guesses which one was meant."""
    if name in table:
        return table[name]
    name = str(name)[:80]  # what a file holds may be of any length
    guess = difflib.get_close_matches(name, table, n=1, cutoff=0.4)
    hint = f", did you mean {guess[0]!r}?" if guess else ""
    raise BadInput(f"unknown {what} {name!r}{hint} (choose from: {', '.join(table)})")


Shape = tuple[int, ...]
Rng = np.random.RandomState  # numpy's older generator: its stream is the one fastMRI's published masks come from


def read_call(text: str, what: str) -> tuple[str, dict[str, Any]]:
    """What is written as a call of Python: "unet(features=8)" -> ("unet", {"features": 8}), "unet" -> ("unet", {}).

    Args:
        text: a name, or a call of a name with keywords whose values are numbers, strings, True, False or None.
        what: is called so, for the message.
    Raises:
        BadInput: anything else; no code is executed.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        called = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        if not isinstance(called.func, ast.Name) or called.args or len(text) > 1000:
            raise ValueError("no name with keywords")
        return called.func.id, {str(word.arg): ast.literal_eval(word.value) for word in called.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        example = "write a name, or name(keyword=value, ...), such as 'unet(features=32)'"
        raise BadInput(f"{what} {text[:80]!r}: {example}") from error


def write_call(name: str, options: Mapping[str, Any]) -> str:
    """The reverse of read_call: ("unet", {"features": 8}) -> "unet(features=8)", without options the bare name."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})" if options else name


def replace_file(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside `path` and rename it: readers see the old file or the new one, never half.

    Args:
        path: the file to write or replace; its folder is made if missing.
        write: called with the path to write to.
    Raises:
        BadInput: disk full or no permission; the file that was there before stays as it was.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.urandom(4).hex()}.partial")  # others may be writing the same file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]  # HDF5 tells pages
        raise BadInput(f"{path}: cannot be written ({reason}): free disk space or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A place to build a folder in, beside it, which is renamed when it is complete: it appears whole or not at all.

    Raises:
        BadInput: there is something at `folder` already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder}: is there already: remove it or choose another folder")
    place = folder.resolve()  # it may be ".", or a link to another disk
    building = place.with_name(f".{place.name}.partial")
    shutil.rmtree(building, ignore_errors=True)  # of an earlier program that was killed
    try:
        yield building
        building.replace(place)
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextlib.contextmanager
def explaining(program: str) -> Iterator[None]:
    """A fault of the input ends the program with one line and exit status 1."""
    try:
        yield
    except BadInput as error:
        sys.exit(f"{program}: {error}")


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean of one or more numbers."""
    return float(np.mean(list(values)))


def read_numbers(text: str, name: str) -> list[float]:
    """ "4 8" -> [4.0, 8.0]; "" -> []. Raises BadInput for anything else."""
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise BadInput(f"{name} {text!r}: write numbers with spaces between them, such as '4 8'") from error


def hash_of(*parts: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all parts: equal for equal content."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]
