"""Store what the sliders of the notebooks show, so that they move on pages without a kernel.

usage: python tools/frames.py [NAME.ipynb ...]      (default: all those of MOVES)

Of each notebook the slider cells of MOVES are executed, and what they need of the cells before them, but nothing is
written into it; where it calls mri.explore, the pictures of all settings that MOVES names are drawn and stored in
notebooks/frames/NAME: frames.json, and one small picture per setting. tools/build_site.py puts them into the pages of
the site. A notebook whose slider cell or data has changed needs its frames anew.
"""

from __future__ import annotations

import ast
import dis
import html
import io
import itertools
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
FRAMES = FOLDER / "frames"
MOST = 80  # frames of a slider cell: they are files, and a reader's browser loads them all
SLIDERS = re.compile(r"mri\.(explore|playground)\(")  # calls that show sliders
SLIDERS = re.compile(r"mri\.(explore|playground)\(")  # calls that show sliders
QUALITY = 60  # of the WebP pictures; the lines of a mask stay sharp

# slider cell -> the controls, one or two, that move on its page, each with its values (None: all that the control has).
# The other controls stay as the notebook sets them. A slider cell is called as its notebook; a second one has a word of
# its own behind a hyphen. Of a notebook's cells it is the one that has these controls.
MOVES: dict[str, dict[str, list[Any] | None]] = {
    "00_playground": {
        "acceleration": [1, 2, 3, 4, 5, 6, 8, 10, 12, 16],
        "method": ["zero-filled", "total variation", "unet", "unrolled"],
    },
    "01_load_kspace": {
        "central_share": [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0],
        "slice": None,
    },
    "02_sampling_masks": {"undersampling": [2, 3, 4, 6, 8, 12], "kind": None},
    "03_aliasing": {"undersampling": None, "center_fraction": [0.02, 0.05, 0.08, 0.16]},
    "05_evaluate": {"volume": None, "method": None},
    "05_evaluate-acceleration": {"acceleration": None, "volume": None},
    "06_beyond_unet": {"method": None, "acceleration": None},
    "07_sampling_strategies": {"kind": None, "acceleration": [2, 4, 6, 8]},
    "09_metrics": {"acceleration": None, "blur": [0, 1, 2, 3]},
    "10_uncertainty": {"volume": None, "slice_number": None},
    "12_real_scans": {"acceleration": None, "method": None},
    "12_real_scans-scans": {"scan": None, "method": None},
    "13_super_resolution": {"method": None, "slice_index": None},
    "14_dynamic_cine": {"frame": None},
    "15_multicoil": {"acceleration": None, "coils": [1, 2, 4, 8]},
    "16_what_fits": {"towards": None, "amount": [0, 0.5, 1, 1.5, 2]},
    "16_what_fits-lesion": {"amount": None, "mask": None},
    "17_without_references": {"slice_number": None, "level": None},
    "18_guarantees": {"number": [0, 1, 2, 3, 4, 5, 6, 7], "promise": None},
    "19_outside_the_simulator": {"place": None, "method": None},
    "20_priors": {"iteration": None, "acceleration": None},
    "21_real_effects": {"distance": [0, 1, 2, 3, 4, 5, 6], "order": None},
    "21_real_effects-decay": {"milliseconds": [2, 5, 8, 10, 12, 15, 20], "order": None},
    "22_time_machine": {"method": None},
    "23_learned_sampling": {"slice_number": None},
}


def cells_of(stem: str) -> list[str]:
    """The slider cells of a notebook, of its name without .ipynb, in MOVES."""
    return [name for name in MOVES if name.partition("-")[0] == stem]


def values_of(control: Any) -> dict[str, Any]:
    """All values of an ipywidgets control, by what a reader sees of them."""
    if hasattr(control, "_options_full"):  # a menu, buttons, a slider of given values
        return {str(label): value for label, value in control._options_full}
    count = round((control.max - control.min) / control.step) + 1
    values = [control.min + number * control.step for number in range(count)]
    if isinstance(control.value, int):
        return {str(value): value for value in values}
    return {format(value, control.readout_format): round(value, 10) for value in values}


def strip(panels: Mapping[str, Any]) -> tuple[bytes, list[list[int]]]:
    """Panels side by side, pixel by pixel, as one grey WebP picture, and the [width, height] of each.

    Args:
        panels: title -> (H, W) array or tensor, 0 is black and 1 is white.
    """
    import mri_utils as mri

    greys = [(np.clip(mri.to_array(panel), 0, 1) * 255).astype(np.uint8) for panel in panels.values()]
    height = max(grey.shape[0] for grey in greys)
    sheet = np.concatenate([np.pad(grey, ((0, height - grey.shape[0]), (0, 0))) for grey in greys], axis=1)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "webp", quality=QUALITY, method=6)
    return buffer.getvalue(), [[grey.shape[1], grey.shape[0]] for grey in greys]


def recorder(moves: Mapping[str, list[Any] | None] | None, folder: Path) -> Callable[..., None]:
    """A stand-in for mri.explore that stores the frames of a slider cell instead of showing it.

    Args:
        moves: control -> its values, as in MOVES; None for all values of all controls.
        folder: for frames.json and the pictures; what is there is replaced.
    """
    import mri_utils as mri

    def record(update: Callable[..., Any], height: int = 320, beside: bool = False, **controls: Any) -> None:
        pictures: dict[int, bytes] = {}
        about: dict[str, Any] = {"controls": [], "panels": [], "frames": []}
        chosen: list[list[Any]] = []
        moving = dict.fromkeys(controls) if moves is None else moves
        before = {name: controls[name].value for name in moving}
        for name, wanted in moving.items():
            control = controls[name]
            known = values_of(control)
            start = next(label for label, value in known.items() if value == control.value or label == control.value)
            kept = {label: value for label, value in known.items() if wanted is None or value in wanted}
            if wanted is not None and len(kept) < len(wanted):
                raise mri.BadInput(f"{folder.name}: {name} has the values {', '.join(known)}, not all of {wanted}")
            kept.setdefault(start, control.value)
            chosen.append([known[label] for label in known if label in kept])
            labels = [label for label in known if label in kept]
            kind = "menu" if isinstance(control.value, str) else "slider"
            label = control.description or name.replace("_", " ").strip()
            about["controls"].append({"label": label, "kind": kind, "values": labels, "start": labels.index(start)})
        settings = list(itertools.product(*chosen))
        if len(settings) > MOST:
            raise mri.BadInput(f"{folder.name}: {len(settings)} frames, but at most {MOST}: choose fewer values")
        for number, values in enumerate(settings):
            for name, value in zip(moving, values):
                controls[name].value = value
            try:
                panels, text = update(**{name: control.value for name, control in controls.items()})
            except mri.BadInput as error:  # an impossible pair: the page says so too, and keeps its picture
                about["frames"].append({"titles": [], "text": f"<b>{html.escape(str(error))}</b>"})
                continue
            pictures[number], sizes = strip(panels)
            about["panels"] = about["panels"] or sizes
            if len(sizes) != len(about["panels"]):
                raise mri.BadInput(f"{folder.name}: {len(sizes)} panels beside others of {len(about['panels'])}")
            own = {} if sizes == about["panels"] else {"panels": sizes}  # scans of another size
            about["frames"].append({"titles": list(panels), "text": text} | own)
        for name, value in before.items():
            controls[name].value = value
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for number, picture in pictures.items():
            Path(folder, f"{number}.webp").write_bytes(picture)
        parts = []  # a line for each control and frame, so that git shows which one has changed
        for key, rows in about.items():
            parts.append(
                f"{json.dumps(key)}: [\n" + ",\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n]"
            )
        Path(folder, "frames.json").write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")

    return record


def watch(stem: str) -> None:
    """From here on mri.explore stores the frames of a notebook's slider cells and shows nothing."""
    import mri_parts.playground
    import mri_utils as mri

    def watched(update: Callable[..., Any], *words: Any, **controls: Any) -> None:
        for name in cells_of(stem):
            if set(MOVES[name]) <= set(controls):
                recorder(MOVES[name], FRAMES / name)(update, *words, **controls)

    mri.explore = mri_parts.playground.explore = watched


def _reads(code: CodeType, functions: bool) -> set[str]:
    """The global names that compiled code reads when it runs, or those that its functions read when they are called."""
    found = set()
    if not functions:
        found = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_NAME", "LOAD_GLOBAL")}
    for part in (constant for constant in code.co_consts if isinstance(constant, CodeType)):
        if part.co_name in ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"):
            found |= _reads(part, functions)
        elif functions:
            found |= _reads(part, False) | _reads(part, True)
    return found


def _names(*targets: ast.AST) -> set[str]:
    """The names that targets of an assignment bind: x, or x and y of (x, y), but not those of x[0]."""
    parts = [part for t in targets for part in (t.elts if isinstance(t, ast.Tuple | ast.List) else [t])]
    flat = {part.id for part in parts if isinstance(part, ast.Name)}
    return flat.union(*(_names(part) for part in parts if isinstance(part, ast.Tuple | ast.List)))


def _changes(node: ast.AST) -> Iterator[str]:
    """The names that a piece of a cell binds or whose contents it changes: x = 1, x[0] = 1, x.a = 1, x.append(1)."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        target: Any = node if isinstance(getattr(node, "ctx", None), ast.Store | ast.Del) else None
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            target = node.value.func if isinstance(node.value.func, ast.Attribute) else None
        while isinstance(target, ast.Attribute | ast.Subscript):
            target = target.value
        if isinstance(target, ast.Name):
            yield target.id
        for child in ast.iter_child_nodes(node):
            yield from _changes(child)


class Names:
    """What a code cell does to names.

    Attributes:
        imports: modules, and what is taken from them.
        reads: as earlier cells have left them, by its functions as well.
        later: read by its functions, perhaps as later cells have left them.
        changes: bound, or changed in their contents.
        effects: function -> the global names whose contents it changes.
        binds: those of `changes` that it sets anew, whatever they were.
    """

    def __init__(self, source: str) -> None:
        self.imports, self.reads, self.later, self.changes = (set[str]() for _ in range(4))
        self.effects: dict[str, set[str]] = {}
        self.binds = self._follow(ast.parse(source).body, set())

    def _follow(self, statements: Sequence[ast.stmt], bound: set[str]) -> set[str]:
        """Note what statements do after some names were bound in the cell; returns all names that are bound then."""
        bound = set(bound)
        for statement in statements:
            whole: ast.AST = statement
            if isinstance(statement, ast.For):  # the body one by one: it may bind what it reads
                whole = ast.fix_missing_locations(ast.Expr(ast.Tuple([statement.iter], ast.Load())))
                self.changes |= set(_changes(statement.target))
                self._follow(statement.body + statement.orelse, bound | _names(statement.target))
            code = compile(ast.Module([whole], []), "cell", "exec")
            self.later |= _reads(code, True)
            self.reads |= (_reads(code, False) | _reads(code, True)) - bound
            self.changes |= set(_changes(whole))
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self.imports |= set(_changes(statement))
            elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
                bound.add(statement.name)
                inside = {name for part in statement.body for name in _changes(part)}
                self.effects[statement.name] = inside & _reads(code, True)  # its own names are no globals
                self.changes |= self.effects[statement.name]  # it may be called here
            elif isinstance(statement, ast.Assign | ast.AnnAssign):
                bound |= _names(*(statement.targets if isinstance(statement, ast.Assign) else [statement.target]))
        return bound


def needed(sources: Sequence[str], wanted: Sequence[int]) -> list[int]:
    """The numbers of those cells whose work some cells show, and of these, in order.

    A cell is needed where it imports, where a later needed cell reads what it leaves in a name, and where a function
    of a needed cell reads a name that it changes; that its functions change, too. What a function does to its
    arguments is not seen: chapters that have such functions need a look at their frames.

    Args:
        sources: of all code cells.
        wanted: numbers of cells.
    """
    cells = [Names(source) for source in sources]
    modules = set[str]().union(*(cell.imports for cell in cells))
    effects = {function: names for cell in cells for function, names in cell.effects.items()}
    for cell in cells:
        cell.changes |= set[str]().union(*(effects.get(name, ()) for name in cell.reads))
    found = {number for number in range(max(wanted)) if cells[number].imports}
    waiting = [*wanted, *found]
    while waiting:
        user = waiting.pop()
        found.add(user)
        later = cells[user].later - modules
        more = {number for number in range(user, max(wanted)) if cells[number].changes & later}
        for name in cells[user].reads - modules:
            for number in reversed(range(user)):
                if name in cells[number].changes:
                    more.add(number)
                if name in cells[number].binds:
                    break
        waiting += more - found
    return sorted(found)


def store(path: Path) -> str:
    """Execute what the slider cells of one notebook need and store their frames; returns a line about them."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    sources = [cell.source for cell in notebook.cells]
    chosen = needed(sources, [number for number, source in enumerate(sources) if SLIDERS.search(source)])
    first = f"""import sys; sys.path[:0] = [{str(FOLDER.parent)!r}, {str(Path(__file__).parent)!r}]
import frames; frames.watch({path.stem!r})"""
    notebook.cells = [nbformat.v4.new_code_cell(first), *(notebook.cells[number] for number in chosen)]
    folders = [FRAMES / name for name in cells_of(path.stem)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    client = NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(FOLDER)}})
    client.execute()
    sizes = [[file.stat().st_size for file in folder.iterdir()] for folder in folders]  # frames.json and the pictures
    return f"{path.stem}: " + ", ".join(f"{len(s) - 1} pictures of {sum(s) / 1e3:.0f} kB" for s in sizes)


if __name__ == "__main__":
    for stem in [name.removesuffix(".ipynb") for name in sys.argv[1:]] or {name.partition("-")[0]: 0 for name in MOVES}:
        print(store(FOLDER / f"{stem}.ipynb"), flush=True)
