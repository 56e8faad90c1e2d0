"""The notebooks in a reader's browser: JupyterLab in Chromium, every slider moved by keyboard and by mouse.

Screenshots are kept in runs/browser, to be looked at.
"""

import shutil

import lab
import pytest

import mri_utils as mri

if not lab.has_browser():
    pytest.skip("apt-get install chromium; pip install playwright jupyterlab", allow_module_level=True)

# moving one of these changes how many samples are kept, which a text beside the picture must say
FORMS = ("11_blinded_reading",)  # pictures beside questions, not under sliders: see test_notebooks.py
MASK_CONTROLS = ("acceleration", "undersampling", "center fraction")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """JupyterLab on copies of all notebooks, which leave nothing in the repository."""
    folder = tmp_path_factory.mktemp("lab")
    own = {name: str(folder / name) for name in ("hearts", "breathing_hearts")}
    own["answers"] = str(folder / "answers.json")
    own |= dict.fromkeys(("data", "simulated"), str(lab.data(folder, 96)))
    notebooks = folder / "root" / "notebooks"
    notebooks.mkdir(parents=True)
    for path in lab.NOTEBOOKS:
        lab.prepare(path, notebooks, lab.SMALL | own | {"out": str(folder / path.stem)})
    before = lab.everything_here()
    with lab.served(notebooks.parent) as address:
        yield address
    assert lab.everything_here() - before == set()


@pytest.fixture(scope="module")
def browser():
    with lab.browser() as started:
        yield started


def move_by_key(page, area, label, handle):
    """An arrow key changes the picture, and the text where it tells the acceleration."""
    before, text, value = page.settle(area), page.text(area), handle.get_attribute("aria-valuenow")
    handle.focus()
    handle.press("ArrowLeft" if value == handle.get_attribute("aria-valuemax") else "ArrowRight")
    # a table beside the picture may tell of a change too small to be seen in it
    told = None if label in MASK_CONTROLS else text
    if not page.reacts(area, before, told):
        state = "[document.activeElement.className, book.status(), book.notebook()?.content.activeCellIndex]"
        now = f"from {value} to {handle.get_attribute('aria-valuenow')}, text {page.text(area)!r}"
        raise AssertionError(f"{label}: an arrow key changes no picture: {now}; {page.page.evaluate(state)}")
    page.settle(area)
    if label in MASK_CONTROLS:
        assert page.text(area) != text, f"{label}: the text stays {text!r}"


def move_by_mouse(page, area, label, handle):
    """Dragging the handle to the other half of its slider changes the picture."""
    before = page.settle(area)
    low, now, high = (float(handle.get_attribute(f"aria-value{name}")) for name in ("min", "now", "max"))
    track = handle.query_selector("xpath=ancestor::*[contains(@class, 'noUi-base')]").bounding_box()
    knob = handle.bounding_box()
    page.page.mouse.move(knob["x"] + knob["width"] / 2, knob["y"] + knob["height"] / 2)
    page.page.mouse.down()
    share = 0.25 if now > (low + high) / 2 else 0.75
    page.page.mouse.move(track["x"] + share * track["width"], knob["y"] + knob["height"] / 2, steps=5)
    page.page.mouse.up()
    assert float(handle.get_attribute("aria-valuenow")) != now, f"{label}: the mouse does not move it"
    assert page.reacts(area, before), f"{label}: the mouse changes no picture"


def move_fast(page, area, label, handle):
    """Many quick moves end on the picture of the last value."""
    handle.focus()
    for key in ["ArrowLeft"] * 6 + ["ArrowRight"] * 9 + ["ArrowLeft"] * 2:
        page.page.keyboard.press(key)
    fast, text, value = page.settle(area), page.text(area), handle.get_attribute("aria-valuenow")
    keys = (
        ("ArrowLeft", "ArrowRight") if value == handle.get_attribute("aria-valuemax") else ("ArrowRight", "ArrowLeft")
    )
    for key in keys:  # away and back, slowly: that is the picture of this value
        handle.press(key)
        slow = page.settle(area)
    assert handle.get_attribute("aria-valuenow") == value
    # where settings contradict each other the last possible picture stays, and which one that is depends on the way
    impossible = "impossible" in text
    assert page.text(area) == text and (slow == fast or impossible), f"{label}: quick moves end on another picture"


def put_back(handle, value):
    """Return to a value by arrow keys, so that the next slider starts from a setting that works."""
    for _ in range(100):
        now = float(handle.get_attribute("aria-valuenow"))
        if now == float(value):
            return
        handle.press("ArrowRight" if now < float(value) else "ArrowLeft")
    raise AssertionError(f"arrow keys do not lead back to {value}")


def choose_others(page, area):
    """Menus and buttons: another choice gives another picture, or says why it cannot."""
    for menu in area.query_selector_all("select"):
        options, chosen = len(menu.query_selector_all("option")), menu.evaluate("m => m.selectedIndex")
        if options > 1:
            before = page.settle(area), page.text(area)
            menu.select_option(index=(chosen + 1) % options)
            assert page.reacts(area, *before), f"{lab.label_of(menu)}: another choice changes nothing"
            menu.select_option(index=chosen)
            page.settle(area)
    for button in area.query_selector_all("button.widget-toggle-button:not(.mod-active)")[:1]:
        before = page.settle(area), page.text(area)
        button.focus()
        page.page.keyboard.press("Enter")
        assert page.reacts(area, *before), "another button changes nothing"


def use_by_keyboard(page, panel):
    """From its cell the Tab key leads to every control in turn, and a key works each of them."""
    # all that a reader would see change: the picture, texts, where a slider stands, what is chosen or typed
    state = "p => p.innerHTML + [...p.querySelectorAll('select, input, textarea')].map(c => c.value)"
    controls = panel.query_selector_all(".noUi-handle, select, button, input, textarea")
    assert controls
    panel.evaluate("p => p.closest('.jp-Cell').focus()")
    for control in controls:
        name = lab.label_of(control) or control.inner_text()
        for _ in range(4):  # past a button of the cell, or the figure beside a slider
            page.page.keyboard.press("Tab")
            if control.evaluate("c => c === document.activeElement"):
                break
        else:
            raise AssertionError(f"{name}: Tab does not lead there")
        kind = control.evaluate("c => c.tagName")
        if kind == "DIV":  # a slider's handle
            at_end = control.get_attribute("aria-valuenow") == control.get_attribute("aria-valuemax")
            keys = ["ArrowLeft" if at_end else "ArrowRight"]
        elif kind == "SELECT":
            if control.evaluate("c => c.options.length") == 1:
                continue
            at_end = control.evaluate("c => c.selectedIndex == c.options.length - 1")
            # while the list is closed JupyterLab takes the arrows for itself (jupyter-widgets/ipywidgets issue 3912)
            keys = ["Space", "ArrowUp" if at_end else "ArrowDown", "Enter"]
        elif kind == "BUTTON":
            if "mod-active" in control.get_attribute("class"):
                continue  # chosen already; the others of its row are not
            keys = ["Enter"]
        else:
            keys = ["End", "x"]  # the Tab key has selected all of the text
        before = panel.evaluate(state)
        for key in keys:
            page.page.keyboard.press(key)
            page.page.wait_for_timeout(200)  # a list takes a moment to open
        for _ in range(150):
            if panel.evaluate(state) != before:
                break
            page.page.wait_for_timeout(200)
        else:
            raise AssertionError(f"{name}: {keys} change nothing")
        if keys[-1] == "x":
            page.page.keyboard.press("Backspace")
            page.page.wait_for_timeout(500)  # what was typed may fill the next list, which closes it
        page.page.wait_for_function("() => book.status() == 'idle'", timeout=60_000)


@pytest.mark.parametrize("path", lab.NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_in_the_browser(path, address, browser):
    page = lab.Page(browser, address(f"lab/tree/notebooks/{path.name}?reset"))
    try:
        page.run_all()
        assert not page.errors()
        areas = [] if path.stem in FORMS else list(page.areas())
        expected = len(lab.SLIDERS.findall(path.read_text(encoding="utf-8")))
        assert len(areas) == expected, f"{len(areas)} interactive pictures for {expected} calls that show sliders"
        for number, area in enumerate(areas):
            area.scroll_into_view_if_needed()
            page.page.evaluate("area => book.watch(area)", area)
            for label, handle in lab.sliders(area):
                handle.scroll_into_view_if_needed()
                value = handle.get_attribute("aria-valuenow")
                move_by_key(page, area, label, handle)
                move_by_mouse(page, area, label, handle)
                move_fast(page, area, label, handle)
                put_back(handle, value)
            choose_others(page, area)
            heights = page.page.evaluate("() => book.heights_seen()")
            assert len(heights) == 1, f"the page jumps: the output's height is {heights}"
            lab.SCREENSHOTS.mkdir(parents=True, exist_ok=True)
            area.scroll_into_view_if_needed()
            page.page.screenshot(path=lab.SCREENSHOTS / f"{path.stem}_{number}.png")
        assert not page.errors()
        panels = page.panels()
        assert len(panels) == expected + path.read_text(encoding="utf-8").count("mri.show_controls(")
        for panel in panels:
            use_by_keyboard(page, panel)
        assert not page.errors()
    finally:
        page.page.close()


def test_the_playground_as_a_web_page(address, browser):
    """Voila shows the playground without code; its sliders move the picture, its menus have every checkpoint."""
    pytest.importorskip("voila")
    page = lab.Page(browser, address("voila/render/notebooks/00_playground.ipynb"), "() => book.areas().length == 1")
    try:
        (area,) = page.areas()
        assert "import mri_utils" not in page.page.content()
        assert "effective acceleration" in page.text(area) and "guessed" in page.text(area)
        page.page.set_viewport_size({"width": 1280, "height": 800})  # one screen holds controls and all panels
        assert len(area.query_selector_all("img.widget-image")) == 8
        assert area.evaluate("a => a.getBoundingClientRect().height") < 700
        shown = [option.inner_text() for option in area.query_selector_all("option")]
        trained = {p.stem: mri.read_checkpoint(p)["parameters"] for p in (mri.ROOT / "checkpoints").glob("*.pt")}
        fitting = {name for name, own in trained.items() if own.get("task", "single_coil") == "single_coil"}
        assert len(fitting) >= 9 and fitting | set(mri.mask_kinds("H", "W")) <= set(shown)
        assert not (set(trained) - fitting) & set(shown), "a network of another task"
        for label, handle in lab.sliders(area):
            move_by_key(page, area, label, handle)
        lab.SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.page.screenshot(path=lab.SCREENSHOTS / "playground_voila.png")
        assert not page.faults
    finally:
        page.page.close()


def test_the_playground_on_a_phone(address, browser):
    """Everything within the width, and a finger on a slider's rail changes the picture."""
    pytest.importorskip("voila")
    drawn = (
        "() => document.querySelector('img.widget-image')?.naturalWidth && document.querySelectorAll('img').length > 1"
    )
    with lab.phone(browser, address("voila/render/notebooks/00_playground.ipynb"), drawn) as page:
        assert not lab.misfits(page)
        page.evaluate(lab.SCRIPT)
        (area,) = page.evaluate_handle("() => book.areas()").get_properties().values()
        before = page.evaluate("area => book.pixels(area)", area)
        rail = area.query_selector_all(".noUi-base")[1]  # the acceleration, after the slice
        rail.scroll_into_view_if_needed()
        box = rail.bounding_box()
        page.touchscreen.tap(box["x"] + 0.5 * box["width"], box["y"] + box["height"] / 2)
        page.wait_for_function("([area, old]) => book.pixels(area) != old", arg=[area, before], timeout=30_000)
        lab.SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.evaluate("() => document.querySelector('img.widget-image').scrollIntoView({block: 'end'})")
        page.screenshot(path=lab.SCREENSHOTS / "playground_phone.png")


def test_a_static_notebook_on_a_phone(browser, tmp_path):
    """What `jupyter nbconvert --to html`, and hosts that work like it, make of a committed notebook."""
    body, _ = pytest.importorskip("nbconvert").HTMLExporter().from_filename(str(lab.NOTEBOOKS[5]))
    (tmp_path / "page.html").write_text(body, encoding="utf-8")
    shutil.copytree(lab.NOTEBOOKS[5].parent / "pictures", tmp_path / "pictures")
    with lab.phone(browser, (tmp_path / "page.html").as_uri()) as page:
        assert not lab.misfits(page)
        natural = page.evaluate(
            "() => [...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width])"
        )
        assert natural and all(width > 390 and 300 < shown < 390 for width, shown in natural), natural
