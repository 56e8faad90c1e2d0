"""Run the notebooks, keep their outputs, and write train.py: what `make notebooks` does.

usage: python notebooks/refresh.py [NAME.ipynb ...]      (default: all of them)

Outputs are committed so that the book reads on a code host. What changes from run to run (execution
times, widget state, versions) and what a static page cannot show (widget views) is taken out, so
that a second run changes nothing but measured seconds. Notebook 04 trains the default network.
"""

import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def clean(notebook: nbformat.NotebookNode) -> None:
    """Drop what changes from run to run, in place."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)
            output.get("metadata", {}).clear()


def refresh(path: Path) -> None:
    """Execute one notebook in its folder and write it back."""
    print(path.name, flush=True)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(FOLDER)}}).execute()
    clean(notebook)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for path in [FOLDER / name for name in sys.argv[1:]] or sorted(FOLDER.glob("[0-9]*.ipynb")):
        refresh(path)
    source, script = FOLDER / "04_train_unet.ipynb", FOLDER.parent / "train.py"
    subprocess.run(["jupytext", "--quiet", "--to", "py:percent", "--output", script, source], check=True)
