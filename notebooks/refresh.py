"""Run the notebooks, keep their outputs, and write train.py: what `make notebooks` does.

usage: python notebooks/refresh.py [NAME.ipynb ...]      (default: the numbered ones)

report, comparison and scoreboard are refreshed by name, after the runs that they show: runs/unet of notebook 04, the
default of `make sweep`, and the commands that the scoreboard lists.

Outputs are committed so that the book reads on a code host. What changes from run to run (execution
times, widget state, versions) and what a static page cannot show (widget views) is taken out, so
that a second run changes nothing but measured seconds. Notebook 04 trains the default network.
README's table of contents shows notebooks/thumbnails/NAME.png: the picture of the cell tagged `thumbnail`,
else the notebook's first one.
"""

import base64
import io
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parent
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def compress(png: str) -> str:
    """A base64 PNG with 64 greys, or 64 colours if it has any: two thirds of the size, and no eye sees it."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    grey = picture.convert("L")
    if grey.convert("RGB").tobytes() == picture.tobytes():
        # Even steps, white kept: an adapted palette would merge bright values, which are rare in these pictures.
        picture = grey.point([value // 4 * 4 if value < 252 else 255 for value in range(256)])
    else:
        # The palette of widest coverage, or a colour bar would lose its rare colours.
        picture = picture.quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def describe(text: str) -> str:
    """The last sentence or heading of a text cell without its markup: what a screen reader says of the figure below."""
    lines = re.sub(r"\[([^]]*)\]\([^)]*\)|[*`#$]", r"\1", text).strip().split("\n\n")
    return textwrap.shorten(lines[-1], 240, placeholder=" ...")


def clean(notebook: nbformat.NotebookNode) -> None:
    """Drop what changes from run to run and describe the pictures, in place."""
    alt = ""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {name: cell.metadata[name] for name in ("jupyter", "tags") if cell.metadata.get(name)}
        alt = describe(cell.source) if cell.cell_type == "markdown" else alt
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)
            output.get("metadata", {}).clear()
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = compress(output["data"]["image/png"])
                output["metadata"]["image/png"] = {"alt": alt}


def thumbnail(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write the picture that stands for the notebook, 160 pixels wide."""
    tagged = sorted(notebook.cells, key=lambda cell: "thumbnail" not in cell.metadata.get("tags", []))
    found = (output.get("data", {}).get("image/png") for cell in tagged for output in cell.get("outputs", []))
    if first := next(filter(None, found), None):
        picture = Image.open(io.BytesIO(base64.b64decode(first))).convert("RGB")
        path.parent.mkdir(exist_ok=True)
        picture.thumbnail((160, 160), Image.Resampling.LANCZOS)
        picture.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def refresh(path: Path) -> None:
    """Execute one notebook in its folder and write it back."""
    print(path.name, flush=True)
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=3600, resources=where, coalesce_streams=True).execute()
    clean(notebook)
    nbformat.write(notebook, path)
    if path.stem[:2].isdigit():  # a chapter
        thumbnail(notebook, FOLDER / "thumbnails" / f"{path.stem}.png")


def write_script() -> None:
    """Write train.py from notebook 04."""
    source, script = FOLDER / "04_train_unet.ipynb", FOLDER.parent / "train.py"
    subprocess.run(
        [sys.executable, "-m", "jupytext", "--quiet", "--to", "py:percent", "--output", script, source], check=True
    )


if __name__ == "__main__":
    for path in [FOLDER / name for name in sys.argv[1:]] or sorted(FOLDER.glob("[0-9]*.ipynb")):
        refresh(path)
    write_script()
