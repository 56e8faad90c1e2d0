"""Make a slide deck of every chapter: the part of `make site` that tools/build_site.py calls in .venv-site.

usage: .venv-site/bin/python tools/slides.py PAGES      (the folder of the finished pages)

What a chapter shows is on its slides: a heading begins one, with the first paragraph below it; a picture, a table or
the sliders of a code cell stand below that text, a further one on a slide of its own; what a cell prints, where the
text announces it with a colon. The other paragraphs are the
speaker's notes (the key S shows them). Cell tags change that: `slide` puts the source of a code cell on a slide too,
`no-slide` leaves a cell out. reveal.js and MathJax are files beside the slides: they need no network.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import sys
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from build_site import ROOT, slider_cell
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

LINES = 12  # of source, or of what is printed, that fit on a slide
LETTERS = 450  # of text that leave room for a picture
WHOLE = ("Remember",)  # sections whose text stands on the slide in full
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - slides</title>
<link rel="icon" href="../_static/icon.svg">
<link rel="stylesheet" href="reveal/reveal.css">
<link rel="stylesheet" href="../_static/sliders.css">
<link rel="stylesheet" href="../_static/slides.css">
<script defer src="../_static/tex-svg.js"></script>
<script defer src="../_static/sliders.js"></script>
</head>
<body>
<main class="reveal"><div class="slides">
{slides}
</div></main>
<script type="module">
import Reveal from "./reveal/reveal.mjs";
import Notes from "./reveal/plugin/notes.mjs";
new Reveal({{hash: true, center: false, slideNumber: true, width: 1280, height: 720, plugins: [Notes]}}).initialize();
</script>
</body>
</html>
"""


def formula(text: str, options: dict[str, bool]) -> str:
    """A formula as MathJax finds it."""
    left, right = (r"\[", r"\]") if options["display_mode"] else (r"\(", r"\)")
    return left + html.escape(text) + right


MARKDOWN = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin, renderer=formula)


@dataclass
class Slide:
    """One slide: its heading, the text on it, the HTML that it shows, and what the speaker may say."""

    heading: str
    text: str = ""
    shown: str = ""
    notes: str = ""

    def html(self, level: int) -> str:
        """The slide as reveal.js takes it; level 1 for the deck's first."""
        notes = f'\n<aside class="notes">{MARKDOWN.render(self.notes)}</aside>' if self.notes else ""
        heading = MARKDOWN.renderInline(self.heading)
        text = MARKDOWN.render(self.text)
        return f"<section>\n<h{level}>{heading}</h{level}>\n{text}{self.shown}{notes}\n</section>"


def shown(output: dict, stem: str) -> str:
    """What a code cell displays, as HTML for a slide; "" for what is no picture, table or slider."""
    data = {kind: "".join(value) for kind, value in output.get("data", {}).items() if kind != "application/json"}
    plain = data.get("text/plain", "")
    if plain.startswith("[sliders: ") and (figure := slider_cell(stem, plain)):
        return figure
    if "image/png" in data:
        name = hashlib.sha256(b64decode(data["image/png"])).hexdigest() + ".png"  # as the pages name it
        alt = html.escape(output["metadata"]["image/png"]["alt"], quote=True)
        return f'<img src="../_images/{name}" alt="{alt}" loading="lazy">'
    return data.get("text/html", "")


def blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """(heading or "", paragraphs) for each part of a text cell, without links within the book."""
    text = re.sub(r"^Back: .*$|^.*\[contents\]\(.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"(?<!!)\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", text)
    for part in re.split(r"^(?=#+ )", text, flags=re.MULTILINE):
        heading, rest = part.split("\n", 1) if part.startswith("#") and "\n" in part else ("", part)
        paragraphs = [p for p in re.split(r"\n{2,}", rest.strip()) if p.strip()]
        if part.startswith("#") and not heading:
            heading = part
        if heading or paragraphs:
            yield heading.strip("# \n"), paragraphs


def deck(path: Path) -> list[Slide]:
    """The slides of one chapter."""
    found: list[Slide] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        tags, source = cell["metadata"].get("tags", []), "".join(cell["source"])
        if "no-slide" in tags:
            continue
        if cell["cell_type"] == "markdown":
            for heading, paragraphs in blocks(source):
                if heading or found[-1].shown:  # below a picture, text begins a new slide
                    found.append(Slide(heading or found[-1].heading))
                last = found[-1]
                for picture in [p for p in paragraphs if p.startswith("![")]:
                    paragraphs.remove(picture)
                    last.shown = MARKDOWN.render(picture)
                # "... as follows:" takes the list or the formula that follows along
                first = len(paragraphs) if heading in WHOLE else 1 + "".join(paragraphs[:1]).endswith(":")
                here = [] if last.text else paragraphs[:first]
                last.text += "\n\n".join(here)
                last.notes += "\n\n".join(["", *paragraphs[len(here) :]])
            continue
        code = html.escape(source) if "slide" in tags and source.count("\n") < LINES else ""
        displayed = [f"<pre><code>{code}</code></pre>"] if code else []
        for output in cell.get("outputs", []):
            printed = "".join(output.get("text", ""))
            if found[-1].text.endswith(":") and not found[-1].shown and printed.count("\n") <= LINES:
                displayed.append(f"<pre>{html.escape(printed)}</pre>" if printed else "")
            displayed.append(shown(output, path.stem))
        for part in filter(None, displayed):
            if found[-1].shown or len(found[-1].text) > LETTERS:
                found.append(Slide(found[-1].heading))
            found[-1].shown += part
    return [slide for slide in found if slide.text or slide.shown]


if __name__ == "__main__":
    pages = Path(sys.argv[1])
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        slides = deck(path)
        text = "\n".join(slide.html(min(number, 2)) for number, slide in enumerate(slides, 1))
        title = html.escape(slides[0].heading)
        (pages / "slides" / f"{path.stem}.html").write_text(PAGE.format(title=title, slides=text), encoding="utf-8")
