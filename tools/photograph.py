"""Photograph the chapters as pages, wide and narrow, and print how each shows its ideas.

usage: python tools/photograph.py [NAME.ipynb ...]      (default: the numbered ones)

Writes runs/photographs/NAME_1200.png and NAME_390.png (pixels of width) as `jupyter nbconvert --to html` makes the
pages of the stored outputs, and prints a table: pixels from the top to the first picture, code cells that write an idea
out by hand, typeset formulas, diagrams, exercises and solved ones, words. Needs Debian's chromium and playwright.
"""

import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
PHOTOGRAPHS = FOLDER.parent / "runs" / "photographs"
FIRST_PICTURE = "() => Math.round(Math.min(...[...document.images].map(i => i.getBoundingClientRect().top)))"


def counts(path: Path) -> dict[str, int]:
    """By-hand cells, formulas, diagrams, exercises, solutions and words of a notebook."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    by_hand, section, said = 0, False, False
    for cell in cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ .*", cell.source, re.MULTILINE)
            section = "by hand" in headings[-1].lower() if headings else section
            said = "by hand" in cell.source.split("\n\n")[-1].lower()
        by_hand += cell.cell_type == "code" and (section or said or "def my_" in cell.source)
    return {
        "by hand": by_hand,
        "formulas": text.count("$$") // 2,
        "diagrams": len(re.findall(r"\(pictures/diagram_\w+\.svg\)", text)),
        "exercises": len(re.findall(r"^\d+\. ", text.partition("## Exercises")[2], re.MULTILINE)),
        "solved": (FOLDER / "solutions" / path.name).read_text(encoding="utf-8").count("## Exercise "),
        "words": len(re.sub(r"!?\[([^]]*)\]\([^)]*\)|\$\$.*?\$\$|</?\w[^>]*>", r"\1", text, flags=re.DOTALL).split()),
    }


if __name__ == "__main__":
    PHOTOGRAPHS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for path in [FOLDER / name for name in sys.argv[1:]] or sorted(FOLDER.glob("[0-9]*.ipynb")):
            body, _ = HTMLExporter(template_name="lab").from_filename(str(path))
            body = body.replace("<head>", f'<head><base href="{FOLDER.as_uri()}/">', 1)  # where the pictures are
            (page_file := PHOTOGRAPHS / f"{path.stem}.html").write_text(body, encoding="utf-8")
            for width in (390, 1200):
                page = browser.new_page(viewport={"width": width, "height": 900})
                page.goto(page_file.as_uri())
                page.screenshot(path=PHOTOGRAPHS / f"{path.stem}_{width}.png", full_page=True)
                row = {"first picture": page.evaluate(FIRST_PICTURE)} | counts(path)  # the last is of the wide page
                page.close()
            print(path.stem, *(f"{name} {number}" for name, number in row.items()), sep=" | ", flush=True)
