"""Run a notebook with parameters and write it as one HTML file without code.

usage: python tools/publish.py NOTEBOOK [--flag value ...]

NOTEBOOK is one of those without a number:

    report        one run folder: numbers, figures, provenance       (make report RUN=runs/NAME)
    comparison    all the runs of a folder side by side              (make sweep ends with it)
    scoreboard    what other systems claim, and what we measure      (make scoreboard)

`python tools/publish.py report --help` lists the flags: they are the parameters of the notebook, and an
unknown one is refused. The file holds its figures and styles, and of scripts only the one that moves sliders, with the
pictures of all their settings: it opens offline, and a browser prints it to a PDF with whole figures and tables. It is
written into the folder that the first parameter names.
"""

import base64
import html
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbconvert import HTMLExporter

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
STATIC = FOLDER.parent / "web" / "static"
PATHS = [str(FOLDER.parent), str(Path(__file__).resolve().parent)]  # this copy of mri_utils.py, whatever is installed
sys.path[:0] = PATHS

import build_site  # noqa: E402

import mri_utils as mri  # noqa: E402

NOTEBOOKS = {path.stem: path for path in sorted(FOLDER.glob("[a-z]*.ipynb"))}
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #222; background: #fff;
       max-width: 60em; margin: 2em auto; padding: 0 1em; }}
h1 {{ font-size: 1.8em; line-height: 1.2; }}
h2 {{ font-size: 1.3em; margin: 2em 0 .5em; border-bottom: 1px solid #ccc; }}
h3 {{ font-size: 1.1em; margin: 1.5em 0 .5em; }}
table {{ border-collapse: collapse; margin: .8em 0; font-variant-numeric: tabular-nums; font-size: .9em; }}
caption {{ text-align: left; padding: .2em 0; color: #555; }}
th, td {{ padding: .25em .9em .25em .2em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }}
thead th {{ border-bottom: 1.5px solid #555; }}
tbody th {{ font-weight: normal; }}
.output_html {{ overflow-x: auto; }}
img {{ max-width: 100%; height: auto; }}
pre, code {{ font: .88em/1.4 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; }}
@page {{ size: A4; margin: 16mm 14mm; }}
@media print {{
  body {{ font-size: 10pt; max-width: none; margin: 0; padding: 0; }}
  h1, h2, h3, caption, .text_cell, .output_markdown p:last-child {{ break-after: avoid; }}
  img, tr, pre, p {{ break-inside: avoid; }}
  img {{ max-height: 88mm; }}
  table {{ break-inside: avoid; width: 100%; font-size: .82em; }}
  th, td {{ padding-right: .6em; }}
  .output_html {{ overflow-x: visible; }}
  thead {{ display: table-header-group; }}
}}
{style}</style>
</head>
<body>
{body}
{script}</body>
</html>
"""
# Runs before the notebook: a slider cell stores the frames of all its settings, then shows itself as ever
RECORD = """import sys; sys.path[:0] = {paths!r}
import frames, pathlib, mri_utils as mri
def explore(*words, _record=frames.recorder(None, pathlib.Path({folder!r})), _show=mri.explore, **controls):
    _record(*words, **controls)
    _show(*words, **controls)
mri.explore = explore"""


def publish(name: str, target: Path, **parameters: Any) -> Path:
    """Execute notebooks/NAME.ipynb with parameters and write it as one HTML file without code.

    Args:
        name: a key of NOTEBOOKS.
        target: the HTML file, replaced in one step.
        parameters: of the notebook; the others keep their defaults.
    Returns:
        target.
    Raises:
        BadInput: the notebook refused its input; nothing is written then.
    """
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # a stricter one would hide the figures
    source = nbformat.read(NOTEBOOKS[name], as_version=4)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "frames")
        source.cells.insert(1, nbformat.v4.new_code_cell(RECORD.format(paths=PATHS, folder=str(folder))))
        try:
            notebook = papermill.execute_notebook(
                *(source, None, parameters),
                **{"cwd": str(FOLDER), "progress_bar": False, "execution_timeout": 1800},
                extra_arguments=["--log-level=CRITICAL"],  # else the kernel tells that it talks over TCP and is stopped
            )
        except papermill.PapermillExecutionError as error:
            if error.ename != "BadInput":
                raise
            raise mri.BadInput(error.evalue) from None
        page = as_page(notebook, folder)
    mri.replace_file(target, lambda partial: partial.write_text(page, encoding="utf-8"))
    return target


def as_page(notebook: nbformat.NotebookNode, frames: Path) -> str:
    """An executed notebook as one HTML page: text and outputs, no code, nothing from a network.

    Args:
        notebook: with its outputs.
        frames: where its slider cell has stored its frames; no such folder where there is none.
    """
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
    exporter.exclude_anchor_links = True
    notebook.metadata.pop("widgets", None)  # a page without a kernel draws none
    # What shows nothing would part a heading from its figure on a printed page.
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "markdown" or cell.get("outputs")]
    heading = title = notebook.cells[0].source.splitlines()[0].strip("# ")
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            heading = cell.source.splitlines()[0].strip("# ")
        cell.metadata["alt"] = heading  # what a screen reader says of the cell's pictures
        for output in cell.get("outputs", []):
            if output.get("data", {}).get("text/plain", "").startswith("[sliders: "):
                output["data"] = {"text/html": build_site.moving(frames, lambda number: picture(frames, number))}
    body, _ = exporter.from_notebook_node(notebook)
    style = script = ""
    if frames.is_dir():
        style = (STATIC / "sliders.css").read_text(encoding="utf-8")
        script = f"<script>\n{(STATIC / 'sliders.js').read_text(encoding='utf-8')}</script>\n"
    return PAGE.format(title=html.escape(title), body=body, style=style, script=script)


def picture(frames: Path, number: int) -> str:
    """A stored frame as an address that holds the picture itself."""
    return "data:image/webp;base64," + base64.b64encode((frames / f"{number}.webp").read_bytes()).decode()


def main(words: list[str]) -> Path:
    """Publish what the command line asks for; see the text at the top of this file."""
    if not words or words[0] in ("-h", "--help"):
        sys.exit(__doc__)
    path = mri.choose(NOTEBOOKS, words[0], "notebook")
    cells = nbformat.read(path, as_version=4).cells
    source = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    parser = mri.flag_parser(cells[0].source, source)
    parser.prog = f"publish.py {path.stem}"
    parameters = vars(parser.parse_args(words[1:]))
    folder = Path(next(iter(parameters.values())))
    if not folder.is_dir():
        raise mri.BadInput(f"{folder}: no such folder: name one of those that train.py has written, such as runs/unet")
    parameters[next(iter(parameters))] = os.path.relpath(folder, mri.ROOT)  # notebooks count paths from there
    return publish(path.stem, folder / f"{path.stem}.html", **parameters)


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except mri.BadInput as error:
        sys.exit(f"publish.py: {error}")
