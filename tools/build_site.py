"""Build the book as static pages in site/pages: what `make site` does.

usage: python tools/build_site.py

The chapters are shown with the outputs that are stored in them: no notebook is executed, and neither torch nor data
are needed. Sphinx and what else the pages take (requirements-site.txt) is installed into .venv-site by the first call.
Slider cells get the pictures of notebooks/frames (tools/frames.py), with a few lines of JavaScript that change them.

The finished pages fetch nothing from another host. The build fails on a broken link, a picture without a description,
and an address elsewhere that a browser would fetch; docs/site.md says how to put the pages on a host.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "site"
VENV = ROOT / ".venv-site"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
NEEDS = ROOT / "requirements-site.txt"
FRAMES = ROOT / "notebooks" / "frames"
# Scripts that npm brings: name -> version, and the files of theirs that the pages take
PACKAGES = {
    "onnxruntime-web": (
        "1.30.0",
        ("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
    ),
    "reveal.js": ("6.0.2", ("dist/reveal.css", "dist/reveal.mjs", "dist/plugin/notes.mjs")),
}
RUNTIME = VENV / "onnxruntime-web"  # what runs a network in a browser
REVEAL = VENV / "reveal.js"  # what moves slides
SLIDES = '<p><a href="../slides/{}.html">The chapter as slides</a></p>'
# where the browser edition of the playground is named: on the front page, and below the sliders of chapter 00
PLAYGROUND = (
    '<p>Here the sliders move as they stand. The <a href="{}playground/index.html">playground in your browser</a> has '
    "all its controls, and lines of k-space to take and to drop.</p>"
)

# The sidebar: caption -> patterns of pages, in this order; a page is listed where it is met first.
CHAPTERS = {
    "The heart of the book": ("notebooks/0[0-5]*.ipynb",),
    "Better networks, other masks": ("notebooks/0[67]*.ipynb",),
    "Honest figures": ("notebooks/0[89]*.ipynb", "notebooks/1[01]*.ipynb"),
    "Other scans": ("notebooks/1[2-9]*.ipynb", "notebooks/2*.ipynb"),
    "Results": ("docs/results.md", "docs/challenge.md", "notebooks/[a-z]*.ipynb"),
    "To look up": ("docs/glossary.md", "docs/papers.md", "data/README.md", "checkpoints/README.md", "docs/*.md"),
    "Exercises, solved": ("notebooks/solutions/*.ipynb",),
}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
CODE = re.compile(r"(```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$)", re.DOTALL)  # and formulas
PERCENT = re.compile(r"(?<=\d)[ \n](?=%(?:$|[\s.,:;?!)\]]))", re.MULTILINE)
FIGURES = re.compile(r"(?<=\[)([-+]?[\d.]+(?:\s%)?,)[ \n](?=[-+]?[\d.]+(?:\s%)?\])")  # an interval in a text
INTERVAL = re.compile(r"(?<=\[)([^][,<]*,) ([^][,<]*)(?=\])")  # of a table's cell
BADGE = re.compile(r"\[!\[(Open in \w+)\]\([^)]*\)\]")  # pictures of other hosts, see tools/badges.py


def sidebar() -> dict[str, list[Path]]:
    """Caption -> its pages, for those captions that have any."""
    left = {path for patterns in CHAPTERS.values() for pattern in patterns for path in ROOT.glob(pattern)}
    found: dict[str, list[Path]] = {}
    for caption, patterns in CHAPTERS.items():
        for pattern in patterns:
            pages = sorted(left & set(ROOT.glob(pattern)))
            found.setdefault(caption, []).extend(pages)
            left -= set(pages)
    return {caption: pages for caption, pages in found.items() if pages}


def relinked(text: str, place: Path, linked: set[Path]) -> str:
    """A text whose links fit the site: the front page is index there, badges are words.

    Args:
        text: Markdown.
        place: the file that it is from.
        linked: gets the files that it links to, apart from pages.
    """

    def target(match: re.Match[str]) -> str:
        address, mark, anchor = match[2].partition("#")
        if not address or urlsplit(address).scheme:
            return match[0]
        path = Path(os.path.normpath(place.parent / unquote(address)))
        if path == ROOT / "README.md":
            return f"{match[1]}{os.path.relpath(ROOT / 'index.md', place.parent)}{mark}{anchor}{match[3]}"
        if path.suffix not in (".md", ".ipynb") and path.is_file():
            linked.add(path)
        return match[0]

    for picture in re.findall(r'<img [^>]*src="([^":]+)"', text):
        linked.add(place.parent / picture)
    return LINK.sub(target, BADGE.sub(r"[\1]", text))


def unbroken(text: str) -> str:
    """Markdown in which no line ends inside of an interval or before a percent sign; code stays as it is."""
    parts = CODE.split(text)
    for number in range(0, len(parts), 2):  # between pieces of code
        parts[number] = FIGURES.sub("\\1\u00a0", PERCENT.sub("\u00a0", parts[number]))
    return "".join(parts)


def wrapped(table: str) -> str:
    """A stored table as HTML that breaks where it may: before an interval; a cell of many words is marked."""
    table = INTERVAL.sub(r"\1&nbsp;\2", table).replace("&nbsp;[", " [")
    return re.sub(r"<td([^>]*)>(?=[^<[]{40,}</td>)", r'<td class="sentence"\1>', table)


def moving(folder: Path, address: Callable[[int], str]) -> str:
    """A slider cell as HTML: the text and the picture of its first setting, and all that sliders.js needs.

    Args:
        folder: what tools/frames.py has written.
        address: number of a frame -> where the page finds its picture.
    """
    about = json.loads((folder / "frames.json").read_text(encoding="utf-8"))
    for number, frame in enumerate(about["frames"]):
        if frame["titles"]:  # an impossible setting has no picture
            frame["picture"] = address(number)
    number = 0
    for control in about["controls"]:
        number = number * len(control["values"]) + control["start"]
    frame, text = about["frames"][number], json.dumps(about, ensure_ascii=False).replace("</", "<\\/")
    words = re.sub("<[^>]*>", " ", frame["text"])
    alt = html.escape(f"{', '.join(frame['titles'])}: {' '.join(words.split())}", quote=True)
    sizes = frame.get("panels", about["panels"])
    width, height = sum(size[0] for size in sizes), max(size[1] for size in sizes)
    return (
        f'<figure class="frames" data-cell="{folder.name}"><script type="application/json">{text}</script>\n'
        f'<div class="frames-text">{frame["text"]}</div>\n'
        f'<img src="{frame["picture"]}" width="{width}" height="{height}" alt="{alt}"></figure>'
    )


def slider_cell(stem: str, still: str) -> str:
    """A chapter's slider cell as HTML; "" if tools/frames.py has stored no pictures of it.

    Args:
        stem: of the notebook.
        still: what stands in the cell's place without widgets: it names all of its controls.
    """
    named = set(still.removeprefix("[sliders: ").partition(". Run the notebook")[0].split(", "))
    for path in sorted([*FRAMES.glob(f"{stem}/frames.json"), *FRAMES.glob(f"{stem}-*/frames.json")]):
        controls = json.loads(path.read_text(encoding="utf-8"))["controls"]
        if {control["label"] for control in controls} <= named:
            address = f"../frames/{path.parent.name}/{{}}.webp"
            return moving(path.parent, address.format)
    return ""


def add_playground(pages: Path) -> None:
    """Copy the browser edition of the playground into the pages, with networks where npm has brought what runs them."""
    folder = pages / "playground"
    shutil.copytree(ROOT / "web" / "playground", folder)
    cascades: dict[str, int] = {}  # name of a network -> its files, NAME-1.onnx and so on
    for path in sorted(folder.glob("*.onnx")):
        if RUNTIME.is_dir():
            name = path.stem.rsplit("-", 1)[0]
            cascades[name] = cascades.get(name, 0) + 1
        else:
            path.unlink()
    if RUNTIME.is_dir():
        shutil.copytree(RUNTIME, folder / "ort")
    (folder / "networks.json").write_text(json.dumps(cascades))


def add_slides(pages: Path) -> None:
    """Make the slides of all chapters, where npm has brought what moves them."""
    if REVEAL.is_dir():
        shutil.copytree(REVEAL, pages / "slides" / "reveal")
        shutil.copytree(FRAMES.parent / "pictures", pages / "slides" / "pictures")
        if subprocess.run([str(PYTHON), str(ROOT / "tools" / "slides.py"), str(pages)]).returncode:
            sys.exit("build_site.py: the slides stopped, for the reason above")


def stage_notebook(path: Path, notebook: dict[str, Any], linked: set[Path]) -> None:
    """Make a stored notebook fit for the site, in place: links, folded code, descriptions of pictures, sliders."""
    if path.parent == FRAMES.parent and path.stem[0].isdigit() and REVEAL.is_dir():
        cells = notebook["cells"]
        cells[0]["source"] = "".join(cells[0]["source"]) + f"\n\n{SLIDES.format(path.stem)}"
    notebook["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = unbroken(relinked("".join(cell["source"]), path, linked))
        if cell["metadata"].get("jupyter", {}).get("source_hidden"):
            cell["metadata"].setdefault("tags", []).append("hide-input")
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
            if "<table" in (stored := "".join(output.get("data", {}).get("text/html", ""))):
                output["data"]["text/html"] = wrapped(stored)
            plain = "".join(output.get("data", {}).get("text/plain", ""))
            if plain.startswith("[sliders: ") and (figure := slider_cell(path.stem, plain)):
                more = PLAYGROUND.format("../") if path.stem == "00_playground" else ""
                output["data"] = {"text/html": figure + more}


def stage(folder: Path) -> None:
    """Write the sources of the site, from what is committed, into an empty folder."""
    linked: set[Path] = set()
    front = unbroken(relinked((ROOT / "README.md").read_text(encoding="utf-8"), ROOT / "README.md", linked))
    front = front.replace("\n## ", f"\n{PLAYGROUND.format('')}\n\n## ", 1)
    for caption, pages in sidebar().items():
        names = "\n".join(page.relative_to(ROOT).with_suffix("").as_posix() for page in pages)
        front += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{names}\n```\n"
        for page in pages:
            text = page.read_text(encoding="utf-8")
            if page.suffix == ".ipynb":
                notebook = json.loads(text)
                stage_notebook(page, notebook, linked)
                text = json.dumps(notebook)
            else:
                text = unbroken(relinked(text, page, linked))
            place = folder / page.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
    (folder / "index.md").write_text(front, encoding="utf-8")
    for path in linked:
        place = folder / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)


class Page(HTMLParser):
    """What a page names: ids, addresses that it links to or that a browser opens itself, pictures without a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.undescribed: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        have = {name: value or "" for name, value in attributes}
        self.ids |= {have[name] for name in ("id", "name") if name in have}
        if tag == "a" and have.get("href"):
            self.links.append(have["href"])
        elif tag == "link" and have.get("rel") not in ("canonical", "next", "prev", "index", "search", "author"):
            self.fetched.append(have.get("href", ""))
        elif have.get("src"):
            self.fetched.append(have["src"])
        if tag == "img" and not have.get("alt", "").strip():
            self.undescribed.append(have.get("src", ""))


def faults(pages: Path) -> Iterator[str]:
    """What is wrong with finished pages, a line each: broken links, fetches from elsewhere, pictures not described."""
    own = (path for path in sorted(pages.rglob("*.html")) if "_static" not in path.parts)  # themes keep templates there
    read = {path: Page(path.read_text(encoding="utf-8")) for path in own}
    for path, page in read.items():
        name = path.relative_to(pages)
        yield from (f"{name}: no description of {picture}" for picture in page.undescribed)
        for address in page.fetched:
            if urlsplit(address).netloc:
                yield f"{name}: fetches {address}"
        for address in page.links + page.fetched:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                yield f"{name}: nothing at {address}"
            elif parts.fragment and target in read and unquote(parts.fragment) not in read[target].ids:
                yield f"{name}: no such place in that page: {address}"
    for path in sorted(pages.rglob("*.css")):
        for address in re.findall(r"""(?:url\(|@import )\s*["']?((?:https?:)?//[^"')\s]+)""", path.read_text("utf-8")):
            yield f"{path.relative_to(pages)}: fetches {address}"


def install() -> None:
    """Make .venv-site, once for each content of requirements-site.txt and of PACKAGES."""
    stamp, wanted = VENV / "installed", hashlib.sha256(NEEDS.read_bytes() + repr(PACKAGES).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing {NEEDS.name} into {VENV.name}", flush=True)
    venv.create(VENV, with_pip=True, clear=True)
    words = ["install", "--quiet", "--disable-pip-version-check", "--no-compile", "-r", str(NEEDS)]
    if subprocess.run([str(PYTHON), "-m", "pip", *words]).returncode:
        sys.exit("build_site.py: pip stopped, for the reason above")
    fetch_packages()
    stamp.write_text(wanted)


def fetch_packages() -> None:
    """Bring PACKAGES from npm; without npm there are no slides, and the playground says nothing of networks."""
    npm = shutil.which("npm")
    if npm is None:
        print("npm is missing: there will be no slides, and no network in the playground in the browser")
        return
    for package, (version, names) in PACKAGES.items():
        with tempfile.TemporaryDirectory() as place:
            words = [npm, "pack", "--silent", f"{package}@{version}"]
            if subprocess.run(words, cwd=place, stdout=subprocess.DEVNULL).returncode:
                sys.exit("build_site.py: npm stopped, for the reason above")
            with tarfile.open(next(Path(place).glob("*.tgz"))) as packed:
                for name in names:
                    target = VENV / package / name.removeprefix("dist/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(packed.extractfile(f"package/{name}").read())


def build() -> Path:
    """Stage the sources and let Sphinx make the pages; returns their folder."""
    source, pages = SITE / "source", SITE / "pages"
    shutil.rmtree(SITE, ignore_errors=True)
    source.mkdir(parents=True)
    stage(source)
    folders = [str(path) for path in (ROOT / "web", "-d", SITE / "doctrees", source, pages)]
    words = ["-b", "html", "-W", "--keep-going", "-q", "-c", *folders]
    if subprocess.run([str(PYTHON), "-m", "sphinx", *words]).returncode:
        sys.exit("build_site.py: Sphinx stopped, for the reasons above")
    shutil.copytree(FRAMES, pages / "frames", ignore=shutil.ignore_patterns("*.json"))
    add_playground(pages)
    add_slides(pages)
    for path in (pages / "_static").rglob("*.map"):  # of the theme's scripts: for its authors, and a third of all
        path.unlink()
    shutil.rmtree(pages / "_static" / "locales", ignore_errors=True)  # the theme's words in other languages
    return pages


if __name__ == "__main__":
    install()
    start = time.monotonic()
    made = build()
    found = list(faults(made))
    if found:
        sys.exit("\n".join(["build_site.py: the pages have faults", *found]))
    files = [path for path in made.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    print(f"{made / 'index.html'}: {len(files)} files, {size:.1f} MB, {time.monotonic() - start:.0f} s")
