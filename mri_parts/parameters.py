"""One cell of a notebook as flags of a script and parameters of papermill; faults told in one line."""

from __future__ import annotations

import argparse
import ast
import functools
import itertools
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from mri_parts.basics import ROOT, BadInput, choose
from mri_parts.processes import EXIT_RESTART, STOP_SIGNALS, Stopped


def run_or_explain(run: Callable[[], Any]) -> Any:
    """run(); outside a kernel a fault that the user can mend ends the program with one line.

    Exit status: 1 after a fault, EXIT_RESTART (75) after SIGTERM: the same command with --resume goes on
    after the last full epoch.
    """
    if "get_ipython" in sys.modules["__main__"].__dict__:
        return run()
    signal.signal(signal.SIGTERM, lambda number, _: STOP_SIGNALS.append(number))
    program = Path(sys.argv[0]).name
    try:
        return run()
    except BadInput as error:
        sys.exit(f"{program}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{program}: interrupted; --resume goes on after the last full epoch")
    except (Stopped, RuntimeError, MemoryError) as error:
        text = str(error)
        # Also where another process that was stopped broke off the connection, and where SIGTERM came to a process that
        # reads slices first.
        if STOP_SIGNALS or "killed by signal: Terminated" in text:
            if hasattr(signal, "SIGCHLD"):
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else the end of each of these raises once more
            print(f"{program}: stopped by SIGTERM; --resume goes on after the last full epoch", file=sys.stderr)
            sys.exit(EXIT_RESTART)
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
            sys.exit(f"{program}: out of memory: raise accumulate, lower batch_size or features, or use bfloat16")
        if "DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text):
            sys.exit(f"{program}: a process that reads slices died (out of memory?): lower workers; --resume goes on")
        raise


def read_parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a notebook's parameters, whichever way the notebook is run.

    The annotated assignments of its cells, `epochs: int = 10  # passes over the data`, are the one
    list of parameters. In a kernel (by hand, or by papermill, which assigns anew) the values are
    taken as they stand; in the script made from the notebook they come from the command line, with
    the comment as help; in an imported module they are the defaults.

    Args:
        namespace: globals() of the notebook or script.
    Raises:
        BadInput: papermill set a name that the cells do not have, or a value of the wrong type.
    """
    kinds = {name: kind.__name__ for name, kind in namespace["__annotations__"].items()}
    # A function further down may have a parameter's name: then a cell that is run once more finds it there.
    values = {name: script_defaults()[name] if callable(namespace[name]) else namespace[name] for name in kinds}
    if "get_ipython" in namespace:
        # papermill only warns of unknown parameters. In a fresh kernel nothing but papermill can
        # have put a plain value beside the parameters.
        plain = (bool, int, float, str, list, dict)
        for name, value in namespace.items():
            known = name in values or name.startswith("_") or "parameters" in namespace
            if not known and type(value) in plain and name not in ("In", "Out"):
                choose(values, name, "parameter")
    elif namespace["__name__"] == "__main__":
        source = Path(namespace["__file__"]).read_text(encoding="utf-8")
        values |= vars(flag_parser(namespace["__doc__"], source).parse_args())
    return {name: _as_type(name, value, kinds[name]) for name, value in values.items()}


@functools.cache
def script_defaults() -> dict[str, Any]:
    """The parameters of train.py, name -> default."""
    source = (ROOT / "train.py").read_text(encoding="utf-8")
    return {name: value for _, name, _, value, _ in parameter_lines(source)}


def read_given(namespace: Mapping[str, Any], settle: Callable[..., Any]) -> tuple[dict, dict]:
    """The parameters of train.py: their defaults, and those that were given, whichever way it is run.

    Given are the flags of the command line; in a kernel, the values that papermill injected and those that differ
    from the script's own cells. The others may be moved by the task and the model.

    Args:
        namespace: globals() of the notebook or script.
        settle: (defaults, given) -> the parameters as they will be used, which --help prints.
    Returns:
        (defaults, given): name -> value.
    Raises:
        BadInput: see read_parameters.
    """
    defaults = dict(script_defaults())
    if "get_ipython" in namespace:
        values, injected = read_parameters(namespace), set[str]()
        for cell in namespace.get("In", ()):  # a cell of plain assignments is papermill's
            if cell.startswith("# Parameters"):
                injected |= {line.partition(" = ")[0] for line in cell.splitlines()}
        return defaults, {name: v for name, v in values.items() if v != defaults.get(name) or name in injected}
    if namespace["__name__"] != "__main__":
        return defaults, {}
    source = Path(namespace["__file__"]).read_text(encoding="utf-8")
    if {"-h", "--help"} & set(sys.argv):
        words = [word for word in sys.argv[1:] if word not in ("-h", "--help")]
        early, _ = flag_parser("", source, given_only=True).parse_known_args(words)
        shown = vars(run_or_explain(lambda: settle(defaults, vars(early))))
        flag_parser(namespace["__doc__"], source, shown).parse_args()  # which ends the program
    return defaults, vars(flag_parser("", source, given_only=True).parse_args())


def _as_type(name: str, value: Any, kind: str) -> Any:
    """A parameter's value as the type of its annotation; "1e-4" counts as a float."""
    convert = {"int": int, "float": float, "str": str, "bool": bool}[kind]
    try:
        if kind == "bool" and not isinstance(value, bool):
            raise ValueError("not true or false")
        if kind == "int" and isinstance(value, float) and value != int(value):
            raise ValueError("not a whole number")
        return convert(value)
    except (OverflowError, TypeError, ValueError) as error:
        raise BadInput(f"parameter {name}: {value!r} is no {kind}: {error}") from error


class _OneLineParser(argparse.ArgumentParser):
    """argparse without the page of usage in front of the fault."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the flags)\n")


def parameter_lines(source: str) -> Iterator[tuple[str, str, str, Any, str]]:
    """(group, name, type, default, meaning) of each line `epochs: int = 10  # passes over the data` of a text.

    The group is the last comment that stood on a line of its own right above parameters.
    """
    pattern = re.compile(r"(\w+): (int|float|str|bool) = (.*?)(?:  # (.*))?$")
    group, lines = "", source.splitlines()
    for line, following in itertools.pairwise([*lines, ""]):
        if line.startswith("# ") and pattern.match(following):
            group = line.removeprefix("# ")
        elif found := pattern.match(line):
            name, kind, value, meaning = found.groups()
            yield group, name, kind, ast.literal_eval(value), meaning or ""


def flag_parser(
    description: str,
    source: str,
    defaults: Mapping[str, Any] | None = None,
    several: bool = False,
    given_only: bool = False,
) -> argparse.ArgumentParser:
    """A command line whose flags are the parameters of a notebook or script, faults told in one line.

    Args:
        description: what --help begins with; lines of badges are left out.
        source: text with a line for each parameter, see parameter_lines.
        defaults: the values of flags that are not given, where they are others than those of the source.
        several: a flag takes one or more values, booleans as true or false, and has no default.
        given_only: a flag that is not given has no value in what parse_args returns.
    """
    parser = _OneLineParser(
        description=re.sub(r"^\[!\[.*\n+", "", description, flags=re.MULTILINE),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s [--flag value ...]",
    )
    add_flags(parser, source, defaults, several, given_only)
    return parser


def add_flags(
    parser: argparse.ArgumentParser,
    source: str,
    defaults: Mapping[str, Any] | None = None,
    several: bool = False,
    given_only: bool = False,
) -> None:
    """Add more flags to a flag_parser, whose arguments these are.

    A text whose meaning shows several words, such as "nifti dicom", may be given without quotation marks.
    """
    groups: dict[str, Any] = {"": parser}
    for group, name, kind, value, meaning in parameter_lines(source):
        value = (defaults or {}).get(name, value)
        options: dict[str, Any] = {"help": f"{meaning} (default: {value!r})".replace("%", "%%"), "default": value}
        if several or given_only:
            options["default"] = argparse.SUPPRESS
        if kind == "bool" and not several:
            options["action"] = argparse.BooleanOptionalAction
        else:
            kinds = {"int": int, "float": float, "str": str, "bool": _true_or_false}
            options |= {"type": kinds[kind], "metavar": kind.upper()} | ({"nargs": "+"} if several else {})
            if kind == "str" and not several and re.search(r'"\w+( \w+)+"', meaning):
                options |= {"nargs": "+", "action": _Words}
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        groups[group].add_argument("--" + name.replace("_", "-"), **options)


class _Words(argparse.Action):
    """Words of a flag as one text."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, " ".join(values))


def _true_or_false(word: str) -> bool:
    """A flag's word as a bool; argparse tells the fault."""
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return word.lower() == "true"
