"""Store what the sliders of the notebooks show, so that they move on pages without a kernel.

usage: python tools/frames.py [NAME.ipynb ...]      (default: all those of MOVES)

Each notebook is executed as far as its last slider cell of MOVES, but not written; where it calls mri.explore, the
pictures of all settings that MOVES names are drawn and stored in notebooks/frames/NAME: frames.json, and one small
picture per setting. tools/build_site.py puts
them into the pages of the site. A notebook whose slider cell or data has changed needs its frames anew.
"""

from __future__ import annotations

import html
import io
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
FRAMES = FOLDER / "frames"
MOST = 80  # frames of a slider cell: they are files, and a reader's browser loads them all
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
    "14_dynamic_cine-acceleration": {"acceleration": None, "moment": [0, 2, 4, 6, 8, 10]},
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


def store(path: Path) -> str:
    """Execute one notebook as far as its last slider cell and store their frames; returns a line about them."""
    notebook = nbformat.read(path, as_version=4)
    first = f"""import sys; sys.path[:0] = [{str(FOLDER.parent)!r}, {str(Path(__file__).parent)!r}]
import frames; frames.watch({path.stem!r})"""
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    folders = [FRAMES / name for name in cells_of(path.stem)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    client = NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(FOLDER)}})
    with client.setup_kernel():
        for number, cell in enumerate(notebook.cells):
            if not all(folder.exists() for folder in folders):
                client.execute_cell(cell, number)
    sizes = [[file.stat().st_size for file in folder.iterdir()] for folder in folders]  # frames.json and the pictures
    return f"{path.stem}: " + ", ".join(f"{len(s) - 1} pictures of {sum(s) / 1e3:.0f} kB" for s in sizes)


if __name__ == "__main__":
    for stem in [name.removesuffix(".ipynb") for name in sys.argv[1:]] or {name.partition("-")[0]: 0 for name in MOVES}:
        print(store(FOLDER / f"{stem}.ipynb"), flush=True)
