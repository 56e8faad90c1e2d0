"""Run the notebooks, keep their outputs, and write train.py: what `make notebooks` does.

usage: python tools/refresh.py [NAME.ipynb ...]      (default: the numbered ones, then solutions/*.ipynb)

report, comparison and scoreboard are refreshed by name, after the runs that they show: runs/unet of notebook 04, the
default of `make sweep`, and the commands that the scoreboard lists.

Outputs are committed so that the book reads on a code host. What changes from run to run (execution
times, widget state, versions) and what a static page cannot show (widget views) is taken out, so
that a second run changes nothing but measured seconds. Notebook 04 trains the default network.
The picture of the cell tagged `thumbnail`, else the notebook's first one, stands under the chapter's question
(notebooks/pictures/NAME.png) and in README's table (notebooks/thumbnails/NAME.png). Above that picture and at the end
every chapter gets its links: back, contents, next.
"""

import base64
import io
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert.preprocessors import TagRemovePreprocessor
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
CONTENTS = "[contents](../README.md#the-book)"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def compress(png: str) -> str:
    """A base64 PNG with 52 greys, or 64 colours if it has any: six tenths of the size, and no eye sees it."""
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    if getattr(picture, "n_frames", 1) > 1:
        return png  # it moves
    picture = picture.convert("RGB")
    grey = picture.convert("L")
    if grey.convert("RGB").tobytes() == picture.tobytes():
        # Even steps, white kept: an adapted palette would merge bright values, which are rare in these pictures.
        picture = grey.point([value // 5 * 5 for value in range(256)])
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


def best_picture(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write the picture that stands for the notebook: for its first screen, and 160 pixels wide for README."""
    tagged = sorted(notebook.cells, key=lambda cell: "thumbnail" not in cell.metadata.get("tags", []))
    found = (output.get("data", {}).get("image/png") for cell in tagged for output in cell.get("outputs", []))
    if first := next(filter(None, found), None):
        for folder, width in (("pictures", 800), ("thumbnails", 160)):
            picture = Image.open(io.BytesIO(base64.b64decode(first)))
            place = path.parent / folder / f"{path.stem}.png"
            place.parent.mkdir(exist_ok=True)
            if folder == "pictures" and getattr(picture, "n_frames", 1) > 1:
                place.write_bytes(base64.b64decode(first))  # it moves
                continue
            picture = picture.convert("RGB")
            picture.thumbnail((width, width), Image.Resampling.LANCZOS)
            picture.quantize(64, dither=Image.Dither.NONE).save(place, optimize=True)


def refresh(path: Path) -> None:
    """Execute one notebook in its folder and write it back."""
    print(path.name, flush=True)
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=3600, resources=where, coalesce_streams=True).execute()
    clean(notebook)
    nbformat.write(notebook, path)
    if path.stem[:2].isdigit() and path.parent == FOLDER:  # a chapter
        best_picture(notebook, path)


def link_chapters() -> None:
    """Write back, contents and next into every chapter: on its first screen, and as its last line."""
    chapters = sorted(FOLDER.glob("[0-9]*.ipynb"))
    notebooks = [nbformat.read(path, as_version=4) for path in chapters]
    links = [f"[{book.cells[0].source.splitlines()[0][2:]}]({path.name})" for book, path in zip(notebooks, chapters)]
    for number, (path, notebook) in enumerate(zip(chapters, notebooks)):
        back = [f"Back: {links[number - 1]}"] if number else []
        onward = [f"next: {links[number + 1]}"] if number + 1 < len(links) else []
        line = " | ".join([*back, CONTENTS, *onward])
        texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
        first = next((cell for cell in texts if f"(pictures/{path.stem}.png)" in cell.source), texts[0])
        before = [cell.source for cell in texts]
        for cell in (first, texts[-1]):
            cell.source = re.sub(rf"^.*{re.escape(CONTENTS)}.*\n*", "", cell.source, flags=re.MULTILINE).rstrip()
        first.source = re.sub(r"^(?=!\[|You will)", f"{line}\n\n", first.source, count=1, flags=re.MULTILINE)
        texts[-1].source += f"\n\n{line}"
        if [cell.source for cell in texts] != before:
            nbformat.write(notebook, path)


def write_script() -> None:
    """Write train.py from notebook 04, without the cells tagged notebook-only."""
    source, script = FOLDER / "04_train_unet.ipynb", FOLDER.parent / "train.py"
    notebook = nbformat.read(source, as_version=4)
    notebook, _ = TagRemovePreprocessor(remove_cell_tags=["notebook-only"]).preprocess(notebook, {})
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(FOLDER.parent / "jupytext.toml", folder)  # its settings count below its folder
        nbformat.write(notebook, Path(folder, source.name))
        words = ["--quiet", "--to", "py:percent", "--output", script.name, source.name]
        subprocess.run([sys.executable, "-m", "jupytext", *words], cwd=folder, check=True)
        shutil.copy(Path(folder, script.name), script)


if __name__ == "__main__":
    chapters, solutions = (sorted(FOLDER.glob(pattern)) for pattern in ("[0-9]*.ipynb", "solutions/*.ipynb"))
    for path in [FOLDER / name for name in sys.argv[1:]] or chapters + solutions:
        refresh(path)
    link_chapters()
    write_script()
