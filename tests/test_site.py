"""The book without a kernel: frames of the sliders, links of the pages, and the site in a browser without a network.

The pages themselves are tested where "make site" has installed Sphinx before; screenshots are kept in runs/browser.
"""

import base64
import contextlib
import html
import io
import json
import math
import re
import shutil
import sys
import time
from pathlib import Path

import ipywidgets as widgets
import nbformat
import numpy as np
import pytest
from PIL import Image

import mri_utils as mri

sys.path.insert(0, str(mri.ROOT / "tools"))
import build_site
import frames
import lab
import slides

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.mark.parametrize("name", frames.MOVES)
def test_frames_fit_their_notebook(name):
    """Every setting has its text and picture, the controls are the notebook's, and all is small."""
    folder = frames.FRAMES / name
    about = stored(name)
    source = (frames.FOLDER / f"{name.partition('-')[0]}.ipynb").read_text(encoding="utf-8")
    named = [part.split(". Run the notebook")[0].split(", ") for part in source.split("[sliders: ")[1:]]
    labels = {control["label"] for control in about["controls"]}
    assert sum(labels <= set(names) for names in named) == 1  # these controls tell which cell it is
    assert 1 <= len(about["controls"]) <= 2
    assert len(about["frames"]) == math.prod(len(control["values"]) for control in about["controls"])
    assert len(about["frames"]) <= frames.MOST
    if any(frames.MOVES[name].values()):  # not all that the cell has
        assert len(about["frames"]) >= 20
    for number, frame in enumerate(about["frames"]):
        assert frame["text"]
        assert (folder / f"{number}.webp").exists() == bool(frame["titles"])
        if frame["titles"]:
            sizes = frame.get("panels", about["panels"])
            width, height = (f([size[axis] for size in sizes]) for axis, f in enumerate((sum, max)))
            assert len(frame["titles"]) == len(sizes) == len(about["panels"])
            assert Image.open(folder / f"{number}.webp").size == (width, height)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1e6


def test_no_frames_without_a_notebook():
    assert {path.name for path in frames.FRAMES.iterdir()} == set(frames.MOVES)


def test_recorder_draws_what_the_update_returns(tmp_path):
    """The stored pictures are the panels, side by side; an impossible setting keeps its text only."""
    ramp = np.linspace(0, 1, 24)[None].repeat(16, 0)

    def update(level, kind, other):
        assert other == 7  # what does not move stays as the notebook sets it
        if level == 3 and kind == "b":
            raise mri.BadInput("3 < b")
        return {"ramp": ramp, kind: np.full((16, 16), level / 4)}, f"level {level}"

    record = frames.recorder({"level": [1, 3], "kind": None}, tmp_path / "frames")
    record(
        update,
        level=widgets.IntSlider(2, 0, 4),
        kind=widgets.Dropdown(options=[("first", "a"), ("second", "b")], value="b"),
        other=widgets.IntSlider(7, 0, 9),
    )
    about = json.loads((tmp_path / "frames" / "frames.json").read_text())
    assert about["controls"] == [
        {"label": "level", "kind": "slider", "values": ["1", "2", "3"], "start": 1},
        {"label": "kind", "kind": "menu", "values": ["first", "second"], "start": 1},
    ]
    assert about["panels"] == [[24, 16], [16, 16]]
    assert [frame["text"] for frame in about["frames"][2:]] == ["level 2", "level 2", "level 3", "<b>3 &lt; b</b>"]
    assert [frame["titles"] for frame in about["frames"][4:]] == [["ramp", "a"], []]
    drawn = np.asarray(Image.open(tmp_path / "frames" / "3.webp").convert("L"), float) / 255
    assert np.abs(drawn[:, :24] - ramp).max() < 0.04  # the compression is not exact
    assert np.abs(drawn[:, 24:] - 0.5).max() < 0.04


def test_recorder_refuses_what_a_page_cannot_hold(tmp_path):
    def update(level):
        return {"abc"[number]: np.zeros((8, 8)) for number in range(1 + level % 2)}, "text"

    def tried(moves, **slider):
        frames.recorder(moves, tmp_path / "frames")(update, level=widgets.IntSlider(**slider))

    with pytest.raises(mri.BadInput, match="101 frames, but at most 80"):
        tried({"level": None}, min=0, max=100)
    with pytest.raises(mri.BadInput, match="not all of"):
        tried({"level": [2, 500]}, min=0, max=100)
    with pytest.raises(mri.BadInput, match="2 panels beside others of 1"):
        tried({"level": [2, 3]}, min=0, max=100)
    assert not (tmp_path / "frames").exists()


def test_scans_of_another_size_keep_it(tmp_path):
    """A frame whose panels differ in size says so, in frames.json and in its picture."""
    sizes = {"small": (8, 12), "large": (16, 20)}

    def update(scan):
        return {"a": np.zeros(sizes[scan]), "b": np.ones(sizes[scan])}, scan

    frames.recorder(None, tmp_path / "f")(update, scan=widgets.Dropdown(options=list(sizes), value="large"))
    about = json.loads((tmp_path / "f" / "frames.json").read_text())
    assert about["panels"] == [[12, 8], [12, 8]]
    assert [frame.get("panels") for frame in about["frames"]] == [None, [[20, 16], [20, 16]]]
    assert [Image.open(tmp_path / "f" / f"{number}.webp").size for number in (0, 1)] == [(24, 8), (40, 16)]
    assert 'width="40" height="16"' in build_site.moving(tmp_path / "f", "{}.webp".format)  # the notebook's own


def test_values_of_controls():
    assert frames.values_of(widgets.FloatSlider(value=0.1, min=0.1, max=0.4, step=0.1)) == {
        "0.10": 0.1,
        "0.20": 0.2,
        "0.30": 0.3,
        "0.40": 0.4,
    }
    assert frames.values_of(widgets.SelectionSlider(options=[4, 8], value=8)) == {"4": 4, "8": 8}


def test_slider_cell_gets_the_pictures_of_its_own_controls(tmp_path, monkeypatch):
    monkeypatch.setattr(build_site, "FRAMES", tmp_path)
    for name, labels in {"05_a": ["volume", "method"], "05_a-more": ["factor", "volume"], "05_ab": ["slice"]}.items():
        controls = {"a": widgets.IntSlider(1, 0, 1), "b": widgets.IntSlider(0, 0, 1)}
        for control, label in zip(controls.values(), labels):
            control.description = label
        record = frames.recorder(dict.fromkeys(list(controls)[: len(labels)]), tmp_path / name)
        record(lambda a, b: ({"x": np.zeros((8, 8))}, f"{a}, {b}"), **controls)
    found = [
        build_site.slider_cell("05_a", f"[sliders: {names}. Run the notebook to move them.]")
        for names in ("volume, slice, method", "factor, volume", "slice", "volume")
    ]
    assert [re.findall('data-cell="(.*?)"', figure) for figure in found] == [["05_a"], ["05_a-more"], [], []]
    assert 'src="../frames/05_a-more/2.webp"' in found[1]  # 1 of the first control, 0 of the second


def test_links_fit_the_site():
    linked = set()
    chapter = mri.ROOT / "notebooks" / "00_playground.ipynb"
    text = (
        "[a](../README.md#results) [b](01_load_kspace.ipynb) [c](https://arxiv.org/README.md) [d](../train.py) [e](#x)"
    )
    expected = text.replace("../README.md#", "../index.md#")
    assert build_site.relinked(text, chapter, linked) == expected
    badge = "[![Open in Colab](https://colab.example/badge.svg)](https://colab.example/book)"
    assert build_site.relinked(badge, chapter, linked) == "[Open in Colab](https://colab.example/book)"
    same = '[own page](README.md) <img src="pictures/x.png">'  # data/README.md is no front page
    assert build_site.relinked(same, mri.ROOT / "data" / "README.md", linked) == same
    assert linked == {mri.ROOT / "train.py", mri.ROOT / "data" / "pictures" / "x.png"}


def test_tables_break_where_they_may():
    """A value above its interval, which stays whole; sentences are marked, figures and short words are not."""
    figures = "<tr><th>U-Net</th><td>-0.047&nbsp;[-0.067,&nbsp;-0.030]</td><td>0.5 [0.4, 0.6]</td></tr>"
    broken = "<tr><th>U-Net</th><td>-0.047 [-0.067,&nbsp;-0.030]</td><td>0.5 [0.4,&nbsp;0.6]</td></tr>"
    assert build_site.wrapped(figures) == broken
    words = "Random points that keep a distance, larger outwards"
    cells = f'<td style="text-align: left">{words}</td><td>4.00x</td>'
    marked = f'<td class="sentence" style="text-align: left">{words}</td><td>4.00x</td>'
    assert build_site.wrapped(cells) == marked


def test_no_line_ends_inside_of_figures():
    text = "5 % of 368 lines, [55 %, 95 %], above 50 %? `x[0, 1] % 3`, 5 %d, 0.5 [-0.4, 0.6], $[0, 1]$, [a, b](c.md)"
    kept = "5_% of 368 lines, [55_%,_95_%], above 50_%? `x[0, 1] % 3`, 5 %d, 0.5 [-0.4,_0.6], $[0, 1]$, [a, b](c.md)"
    assert build_site.unbroken(text).replace("\u00a0", "_") == kept
    code = "```python\nx = [0, 1]\n```"
    assert build_site.unbroken(code) == code


def test_faults_of_pages_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="b.html#here"></a><a href="b.html#gone"></a><a href="c.html"></a>'
        '<a href="https://arxiv.org"></a><img src="p.png" alt="a picture"><img src="p.png" alt=" ">'
        '<img src="q.png" alt="q">'
        '<script src="//cdn.example/x.js"></script><link rel="stylesheet" href="https://fonts.example/f.css">'
        '<link rel="canonical" href="https://book.example">'
    )
    (tmp_path / "b.html").write_text('<p id="here"></p><a href="a.html#top"></a><a href="#here"></a>')
    (tmp_path / "p.png").touch()
    (tmp_path / "s.css").write_text("@import 'https://fonts.example/g.css'; a {background: url(p.png)}")
    assert list(build_site.faults(tmp_path)) == [
        "a.html: no description of p.png",
        "a.html: fetches //cdn.example/x.js",
        "a.html: fetches https://fonts.example/f.css",
        "a.html: no such place in that page: b.html#gone",
        "a.html: nothing at c.html",
        "a.html: nothing at q.png",
        "s.css: fetches https://fonts.example/g.css",
    ]


def test_staged_sources(tmp_path):
    """All pages are in the sidebar; pictures keep their descriptions, folded cells stay folded, sliders get frames."""
    build_site.stage(tmp_path)
    front = (tmp_path / "index.md").read_text(encoding="utf-8")
    listed = {line for block in front.split("```{toctree}")[1:] for line in block.split("```")[0].splitlines()}
    for path in [*frames.FOLDER.glob("*.ipynb"), *(mri.ROOT / "docs").glob("*.md")]:
        assert path.relative_to(mri.ROOT).with_suffix("").as_posix() in listed
    for path in sorted(frames.FOLDER.glob("[0-9]*.ipynb")):
        before = nbformat.read(path, as_version=4)
        after = nbformat.read(tmp_path / "notebooks" / path.name, as_version=4)
        assert len(before.cells) == len(after.cells)
        for old, new in zip(before.cells, after.cells):
            folded = old.metadata.get("jupyter", {}).get("source_hidden", False)
            assert ("hide-input" in new.metadata.get("tags", [])) == folded
            for output in old.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    assert new.metadata["mystnb"]["image"]["alt"] == output.metadata["image/png"]["alt"]
        moving = [
            o for cell in after.cells for o in cell.get("outputs", []) if "figure class" in str(o.get("data", {}))
        ]
        assert len(moving) == len(frames.cells_of(path.stem))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The finished site."""
    if not build_site.PYTHON.exists():
        pytest.skip("no .venv-site: make site installs what the pages need")
    build_site.install()
    return build_site.build()


def test_pages_are_whole_and_small(pages):
    assert list(build_site.faults(pages)) == []
    files = [path for path in pages.rglob("*") if path.is_file() and "ort" not in path.relative_to(pages).parts]
    assert sum(path.stat().st_size for path in files) < 40e6  # beside ONNX Runtime, 14 MB
    for path in [*frames.FOLDER.glob("*.ipynb"), *(mri.ROOT / "docs").glob("*.md")]:
        assert (pages / path.relative_to(mri.ROOT).with_suffix(".html")).exists()


@pytest.fixture(scope="module")
def browser():
    if not shutil.which("chromium"):
        pytest.skip("no chromium: apt-get install chromium")
    pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with lab.browser() as started:
        yield started


@pytest.fixture
def visit(browser, pages):
    with lab.static(pages) as address, lab.offline(browser, address) as visit:
        yield visit


def pixels(figure):
    """All panels of a slider cell, as one text."""
    return figure.evaluate("f => [...f.querySelectorAll('canvas')].map(c => c.toDataURL()).join(' ')")


def settled(figure):
    """The picture and the text of a slider cell once they are those of its setting."""
    for _ in range(300):
        if figure.evaluate("f => f.dataset.shown !== undefined && f.dataset.shown === f.dataset.asked"):
            return pixels(figure), figure.query_selector(".frames-text").inner_text()
        time.sleep(0.02)
    raise AssertionError("the picture does not come to rest")


def words_of(markup):
    """The letters of some HTML, without its spaces."""
    return "".join(html.unescape(re.sub("<[^>]*>", " ", markup)).split())


@contextlib.contextmanager
def changes(figure, about, what):
    """What is done inside moves a slider cell to another setting: its own picture, its own text."""
    before = settled(figure), figure.get_attribute("data-shown")
    yield
    deadline = time.monotonic() + 10
    while figure.get_attribute("data-asked") == before[1] and time.monotonic() < deadline:
        time.sleep(0.02)
    (picture, text), number = settled(figure), figure.get_attribute("data-shown")
    assert number != before[1], f"{what} moves nothing"
    frame = about["frames"][int(number)]
    assert "".join(text.split()) == words_of(frame["text"]), what
    if frame["titles"]:  # an impossible setting has no picture
        kept = [Path(frames.FRAMES, figure.get_attribute("data-cell"), f"{n}.webp") for n in (before[1], number)]
        same = all(path.exists() for path in kept) and kept[0].read_bytes() == kept[1].read_bytes()  # of 1x, for one
        assert picture != before[0][0] or same, f"{what}: the same picture"


def is_menu(control):
    return control.evaluate("c => c.tagName === 'SELECT'")


def place_of(control):
    """The number of a control's value, and the last one."""
    return control.evaluate("c => [+c.value, c.max ? +c.max : c.options.length - 1]")


def by_key(page, control):
    control.focus()
    at, last = place_of(control)
    back, forth = ("ArrowUp", "ArrowDown") if is_menu(control) else ("ArrowLeft", "ArrowRight")
    control.press(back if at == last else forth)


def choose(page, control):
    """Another value of a menu that is open, or that has the focus at least."""
    at, last = place_of(control)
    page.keyboard.press("ArrowUp" if at == last else "ArrowDown")
    page.keyboard.press("Enter")


def way(control):
    """Points of a slider, from its middle to the half where its handle is not."""
    box, (at, last) = control.bounding_box(), place_of(control)
    end = 0.95 if at / last < 0.5 else 0.05
    shares = [0.5 + (end - 0.5) * step / 4 for step in range(5)]
    return [(box["x"] + share * box["width"], box["y"] + box["height"] / 2) for share in shares]


def by_mouse(page, control):
    if is_menu(control):
        control.click()
        return choose(page, control)
    points = way(control)
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points:
        page.mouse.move(*point)
    page.mouse.up()


def by_touch(page, control):
    """A finger: it taps a menu, and draws a slider."""
    if is_menu(control):
        control.tap()
        return choose(page, control)
    finger = page.context.new_cdp_session(page)
    points = [[{"x": x, "y": y}] for x, y in way(control)]
    for kind, point in [("touchStart", points[0]), *(("touchMove", p) for p in points), ("touchEnd", [])]:
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": point})
    finger.detach()


def sliders(page, name, inside=""):
    """A slider cell of a page, and its controls."""
    figure = page.wait_for_selector(f"{inside} figure.frames[data-cell='{name}']:has(canvas)")
    figure.scroll_into_view_if_needed()
    return figure, figure.query_selector_all("input, select")


def stored(name):
    """What tools/frames.py has stored of a slider cell."""
    return json.loads((frames.FRAMES / name / "frames.json").read_text(encoding="utf-8"))


def test_every_slider_cell_of_a_chapter_moves():
    """Each has frames: none stands on the site as a mere picture."""
    for path in frames.FOLDER.glob("[0-9]*.ipynb"):
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        plain = [o.data.get("text/plain", "") for cell in cells for o in cell.outputs if "data" in o]
        names = [text for text in plain if text.startswith("[sliders: ")]
        figures = [build_site.slider_cell(path.stem, text) for text in names]
        found = [match for figure in figures for match in re.findall('data-cell="(.*?)"', figure)]
        assert sorted(found) == sorted(frames.cells_of(path.stem)), f"{path.stem}: {names}"
        every = len(frames.cells_of(path.stem))
        assert every == len(names) == sum(bool(lab.SLIDERS.search(cell.source)) for cell in cells)


@pytest.mark.parametrize("stem", dict.fromkeys(name.partition("-")[0] for name in frames.MOVES))
def test_sliders_move(visit, stem):
    """All slider cells of a chapter, each control by key, mouse and touch: the stored picture and text of the setting.

    Meanwhile no other host is asked for anything, and the page has nothing to complain of: `visit` counts both.
    """
    page = visit(f"notebooks/{stem}.html", has_touch=True)
    assert page.locator("figure.frames").count() == len(frames.cells_of(stem))
    lab.SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for name in frames.cells_of(stem):
        about = stored(name)
        figure, controls = sliders(page, name)
        assert len(controls) == len(about["controls"])
        for control, kept in zip(controls, about["controls"]):
            assert figure.query_selector(f"label[for={control.get_attribute('id')}]").is_visible()
            control.scroll_into_view_if_needed()
            for move in (by_key, by_mouse, by_touch):
                with changes(figure, about, f"{name}, {kept['label']} {move.__name__}"):
                    move(page, control)
        number = 0
        for control, kept in zip(controls, about["controls"]):
            number = number * len(kept["values"]) + place_of(control)[0]
        assert figure.get_attribute("data-shown") == str(number)
        for width in (1280, 768, 390):
            page.set_viewport_size({"width": width, "height": 900})
            figure.scroll_into_view_if_needed()
            page.screenshot(path=lab.SCREENSHOTS / f"site_{name}_{width}.png")
        page.set_viewport_size({"width": 1280, "height": 900})


def test_scans_of_another_size_are_drawn(browser, tmp_path):
    """A setting whose panels have another size gets canvases of that size, and back."""
    sizes = {"small": (8, 12), "large": (16, 20)}
    frames.recorder(None, tmp_path / "f")(
        lambda scan: ({"a": np.zeros(sizes[scan]), "b": np.ones(sizes[scan])}, scan),
        scan=widgets.Dropdown(options=list(sizes), value="large"),
    )
    shutil.copy(mri.ROOT / "web" / "static" / "sliders.js", tmp_path)
    figure = build_site.moving(tmp_path / "f", "f/{}.webp".format)
    (tmp_path / "p.html").write_text(f"<!DOCTYPE html><title>p</title>{figure}<script src='sliders.js'></script>")
    (tmp_path / "favicon.ico").touch()
    with lab.static(tmp_path) as address, lab.offline(browser, address) as visit:
        page = visit("p.html")
        figure, (menu,) = sliders(page, "f")
        for place, (height, width) in ((1, sizes["large"]), (0, sizes["small"]), (1, sizes["large"])):
            menu.select_option(str(place))
            page.wait_for_function("([f, n]) => f.dataset.shown === n", arg=[figure, str(place)])
            drawn = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) for url in pixels(figure).split()]
            assert [picture.size for picture in drawn] == [(width, height)] * 2
            assert [np.asarray(picture.convert("L")).mean() for picture in drawn] == pytest.approx([0, 255], abs=3)


def test_panel_is_the_stored_picture(visit):
    """A panel's pixels are those of the stored picture, read by another decoder."""
    name = "03_aliasing"
    page = visit(f"notebooks/{name}.html")
    figure, _ = sliders(page, name)
    settled(figure)
    number, about = figure.get_attribute("data-shown"), stored(name)
    picture = np.asarray(Image.open(frames.FRAMES / name / f"{number}.webp").convert("L"), float)
    left = 0
    for (width, height), url in zip(about["panels"], pixels(figure).split()):
        drawn = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("L")
        assert np.abs(np.asarray(drawn, float) - picture[:height, left : left + width]).max() <= 2
        left += width


def test_still_without_scripts(visit):
    page = visit("notebooks/03_aliasing.html", java_script_enabled=False)
    still = page.wait_for_selector("figure.frames img")
    assert still.is_visible()
    assert "zero-filled" in still.get_attribute("alt") and "effective" in still.get_attribute("alt")
    assert "effective" in page.inner_text(".frames-text")


def test_slides_of_a_chapter(tmp_path):
    """A heading begins a slide, a second picture another one; tags add source and leave cells out."""
    picture = nbformat.v4.new_output("display_data", {"image/png": "aGk="}, metadata={"image/png": {"alt": "a <b>"}})
    printed = nbformat.v4.new_output("stream", text="1 < 2\n")
    text, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    cells = [
        text(
            "# Title\n\nA question?\n\nBack: [00](00.ipynb) | [contents](../README.md#the-book)\n\n![p](pictures/p.png)"
        ),
        text("## One\n\nFirst, $x_0$ of [02](02.ipynb).\n\nSecond."),
        code("draw()", outputs=[picture, picture, printed]),
        code("x = 1", metadata={"tags": ["slide"]}),
        text("Left out.", metadata={"tags": ["no-slide"]}),
        text("As follows:\n\n- a list\n\nMore.\n\n## Two\n\nThe sizes:"),
        code("print()", outputs=[printed]),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "07_x.ipynb")
    title, one, two, three, four, five = slides.deck(tmp_path / "07_x.ipynb")
    assert (title.heading, title.text.strip()) == ("Title", "A question?") and 'src="pictures/p.png"' in title.shown
    assert re.match(r"<section>\n<h2>One</h2>\n<p>First, <span[^>]*>\\\(x_0\\\)</span> of 02.</p>", one.html(2))
    assert one.shown == two.shown and 'alt="a &lt;b&gt;"' in one.shown and "Second." in one.html(2).split("<aside")[1]
    assert (two.heading, two.text, three.shown) == ("One", "", "<pre><code>x = 1</code></pre>")
    assert four.text == "As follows:\n\n- a list" and four.notes.strip() == "More."
    assert five.shown == "<pre>1 &lt; 2\n</pre>"


def test_slides_move(visit, pages):
    """Every chapter has its deck with all its pictures; keys turn the slides."""
    if not build_site.REVEAL.is_dir():
        pytest.skip("no reveal.js: make site brings it from npm")
    for path in sorted(frames.FOLDER.glob("[0-9]*.ipynb")):
        deck = (pages / "slides" / f"{path.stem}.html").read_text(encoding="utf-8")
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        drawn = [o.data["text/plain"] for c in cells for o in c.outputs if "image/png" in o.get("data", {})]
        moving = [text for text in drawn if text.startswith("[sliders: ") and build_site.slider_cell(path.stem, text)]
        assert deck.count('<img src="../_images/') == len(drawn) - len(moving)
    page = visit("slides/03_aliasing.html")
    page.wait_for_selector("section.present h1")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("section.present h2")
    page.wait_for_function("location.hash == '#/1'", timeout=30_000)  # written a moment after the slide has turned
    assert page.query_selector("section.present img").is_visible()


def test_sliders_move_on_slides(visit, pages):
    """Every slider cell of every deck moves by key, mouse and touch."""
    if not build_site.REVEAL.is_dir():
        pytest.skip("no reveal.js: make site brings it from npm")
    found = set()
    for path in sorted((pages / "slides").glob("*.html")):
        deck = path.read_text(encoding="utf-8")
        names = re.findall('data-cell="(.*?)"', deck)
        for name in names:
            place = deck.partition(f'data-cell="{name}"')[0].count("<section>") - 1
            page = visit(f"slides/{path.name}#/{place}", has_touch=True)
            figure, controls = sliders(page, name, "section.present")
            about = stored(name)
            for control, kept in zip(controls, about["controls"]):
                for move in (by_key, by_mouse, by_touch):
                    with changes(figure, about, f"slides, {name}, {kept['label']} {move.__name__}"):
                        move(page, control)
            page.close()
        found |= set(names)
    assert found == set(frames.MOVES)


def test_search_finds(visit):
    page = visit("search.html?q=ESPIRiT")
    page.wait_for_selector("#search-results li a")
    found = [link.get_attribute("href") for link in page.query_selector_all("#search-results li a")]
    assert any("15_multicoil" in address for address in found)


# the slides of a deck's print view that are larger than they may be, in words
CUT = """() => [...document.querySelectorAll(".pdf-page")].flatMap((page, number) => {
  const box = page.getBoundingClientRect(), seen = {visibilityProperty: true, opacityProperty: true};
  const parts = [...page.querySelectorAll("section > :not(aside, script)")].filter(e => e.checkVisibility(seen));
  const all = parts.flatMap(e => [e, ...e.querySelectorAll("table, svg, canvas")]);
  const boxes = all.map(e => e.getBoundingClientRect());
  const right = Math.max(...boxes.map(b => b.right - box.left)), low = Math.max(...boxes.map(b => b.bottom - box.top));
  const said = `slide ${number + 1} is ${Math.round(right)} x ${Math.round(low)} in ${box.width} x ${box.height}`;
  return right > box.width + 1 || low > box.height + 1 ? [said] : [];
})"""


def test_every_page_opens(visit, pages):
    """No page asks another host or complains, all readers can use it, in light and in dark, and it fits a phone.

    Of slides, the print view has all on one page. Figures wider than a phone are moved sideways in their cells.
    """
    page, found = visit("index.html", has_touch=True), []
    address = page.url.removesuffix("index.html")

    def look(name, *words):
        found.extend(", ".join([name, *words, obstacle]) for obstacle in lab.obstacles(page))

    for path in sorted(pages.rglob("*.html")):
        name = path.relative_to(pages).as_posix()
        if "_static" in path.parts:  # themes keep templates there
            continue
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(address + name)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function("s => (document.documentElement.dataset.theme ?? s) === s", arg=scheme)
            look(name, scheme)
        page.set_viewport_size({"width": 390, "height": 844})
        look(name, "on a phone")
        found += [f"{name}: {misfit}" for misfit in lab.misfits(page) if not misfit.startswith("wide picture")]
        if name.startswith("slides/"):
            page.goto(f"{address}{name}?view=print")
            page.wait_for_function("() => document.querySelectorAll('.pdf-page').length > 2")
            look(name, "all slides")
            found += [f"{name}: {slide}" for slide in page.evaluate(CUT)]
    assert not found


def test_front_page_on_a_phone(visit):
    assert not lab.obstacles(visit("index.html", **PHONE))


def test_obstacles_are_found(browser):
    """What lab.obstacles asks of a page: each fault of a bad one, and none of its mended parts."""
    page = browser.new_page()
    page.set_content("""<title></title><h1>A</h1><h3>skipped</h3><h4>right</h4>
      <input id="bare"><label>named <input></label><select id="menu"><option>a</option></select>
      <a href="#" id="empty"><img src="data:," alt=""></a><a href="#">named</a><canvas id="blank"></canvas>
      <canvas aria-label="named"></canvas><img src="data:,pixels"><img src="data:," alt="named">
      <p id="grey" style="color: #777">4.48</p><p style="color: #767676">4.54</p>
      <p id="thin" style="opacity: 0.5">faint</p><p style="color: #949494; font-size: 24px">large, 3.03</p>
      <div style="background: #000"><p id="dark" style="color: rgb(0 0 0 / 80%)">on black</p></div>
      <p style="display: none; color: white">not seen</p>
      <p><button id="still" style="outline: 0">plain</button></p><button>right</button>
      <button style="outline: 0" disabled>off</button>""")
    found = lab.obstacles(page)
    assert found[:3] == ["no language", "no title", 'level 3 follows no 2: h3. "skipped"']
    named = [re.search(r"#(\w+)", fault) for fault in found[3:]]
    assert sorted(match[1] if match else "img" for match in named) == [
        "bare", "blank", "dark", "empty", "grey", "img", "menu", "still", "thin",
    ]  # fmt: skip
    page.close()
