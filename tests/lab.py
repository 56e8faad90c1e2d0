"""JupyterLab, and static pages, in a real browser: what the browser tests check and latency.py measures.

The server listens on this computer only, with a token of its own; the notebooks are copies with small parameters,
so that nothing in the repository changes. The browser is the chromium of the system, driven by playwright.
"""

import contextlib
import functools
import http.server
import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import nbformat

import mri_utils as mri

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
SLIDERS = re.compile(r"mri\.(explore|playground)\(")  # calls that show sliders above a picture
NOTEBOOKS = sorted((mri.ROOT / "notebooks").glob("[0-9]*.ipynb"))
SCREENSHOTS = mri.ROOT / "runs" / "browser"  # where the tests leave what they saw, to be looked at
# values that make a notebook quick, where its parameters cell has them
SMALL = {"epochs": 1, "features": 4, "levels": 2, "train_slices": 4, "volume_number": 1, "slice_number": 1}
SMALL |= {"slices_per_acceleration": 3, "val_slices": 4, "matrix": 48, "members": 2, "heads": 1, "head_matrix": 64}
SMALL |= {"model": "unet(features=4, levels=2)", "repeats": 20, "pair_count": 3, "second": "zero_filled"}
SMALL |= {"val_hearts": 2, "calibration_heads": 12, "test_heads": 3, "steps": 3, "real_scans": 1, "real_steps": 2}

# Runs in the page. A widget's controls and picture share an output area.
SCRIPT = """() => {
const canvas = document.createElement("canvas"), pen = canvas.getContext("2d", {willReadFrequently: true});
window.book = {
  notebook: () => window.jupyterapp?.shell?.currentWidget,
  status: () => book.notebook()?.sessionContext?.session?.kernel?.status,
  cells: () => book.notebook().content.model.toJSON().cells.filter(c => c.cell_type == "code" && c.source.length),
  run: async () => {  // all cells; when it ends JupyterLab is done too, which moves the focus
    book.ran = false;
    try { await window.jupyterapp.commands.execute("notebook:run-all-cells"); } finally { book.ran = true; }
  },
  done: () => book.ran && book.status() == "idle" && (book.cells().every(c => c.execution_count) || book.failed()),
  failed: () => book.cells().some(c => c.outputs.some(o => o.output_type == "error")),
  areas: () => [...document.querySelectorAll(".jp-OutputArea-output")].filter(book.image),
  image: area => area.querySelector("img.widget-image"),
  pixels: area => {  // a number for the picture, made small, as text; empty while it loads
    const image = book.image(area);
    if (!image.complete || !image.naturalWidth) return "";
    canvas.width = 256; canvas.height = 128;
    pen.drawImage(image, 0, 0, 256, 128);
    let one = 1, other = 0;  // together 64 bits: each step can be undone, so one changed pixel changes them
    for (const pixel of new Uint32Array(pen.getImageData(0, 0, 256, 128).data.buffer)) {
      one = Math.imul(one ^ pixel, 0x01000193);
      other = (Math.imul(other, 31) + pixel) | 0;
    }
    return `${one} ${other}`;
  },
  text: area => [...area.querySelectorAll(".widget-html-content")].map(t => t.innerText).join(" "),
  watch: area => {  // every height that the area has from now on
    const seen = new Set(), look = () => {
      seen.add(Math.round(area.getBoundingClientRect().height));
      if (book.watching) requestAnimationFrame(look);
    };
    book.watching = true; book.heights = seen; look();
  },
  heights_seen: () => { book.watching = false; return [...book.heights]; },
  time: area => {  // milliseconds from the next key press to the first changed picture
    book.latency = null;
    const before = book.pixels(area);
    document.addEventListener("keydown", event => {
      const look = () => {
        const now = book.pixels(area);
        if (now && now !== before) book.latency = performance.now() - event.timeStamp;
        else requestAnimationFrame(look);
      };
      requestAnimationFrame(look);
    }, {once: true, capture: true});
  },
};
}"""


def has_browser():
    """Whether test_browser.py can run: Chromium, playwright and JupyterLab are installed."""
    packages = ("playwright", "jupyterlab")
    return bool(shutil.which("chromium")) and all(map(importlib.util.find_spec, packages))


def everything_here():
    """All files of the repository but those of tools, and of other tests, which may run at the same time."""
    passing = {".git", ".venv", "__pycache__", ".hypothesis", "data", ".pytest_cache", ".mypy_cache", ".ruff_cache"}
    here = {path for path in mri.ROOT.rglob("*") if not passing & set(path.parts)}
    others = {*SCREENSHOTS.parents, SCREENSHOTS}  # runs/ too: it is there once a test has left a picture
    return {p for p in here - others if SCREENSHOTS not in p.parents and not p.name.startswith(".coverage")}


def prepare(path, folder, parameters):
    """A copy of a notebook in `folder` with those of `parameters` that it has; no outputs."""
    import papermill
    from papermill.parameterize import parameterize_notebook

    known = papermill.inspect_notebook(str(path))
    notebook = papermill.iorw.load_notebook_node(str(path))
    notebook = parameterize_notebook(notebook, {k: v for k, v in parameters.items() if k in known})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("papermill", None)
    nbformat.write(notebook, folder / path.name)


@contextlib.contextmanager
def served(folder):
    """Start a Jupyter server on `folder`; yields a function from a path on the server to its address."""
    home = folder.parent / "home"
    settings = home / "labconfig"
    settings.mkdir(parents=True)
    quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (settings / "page_config.json").write_text(json.dumps(quiet))
    tracker = home / "settings" / "@jupyterlab" / "notebook-extension"
    tracker.mkdir(parents=True)
    (tracker / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')  # all cells are in the page
    places = {"JUPYTER_CONFIG_DIR": "", "JUPYTER_RUNTIME_DIR": "run", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    places |= {"JUPYTERLAB_SETTINGS_DIR": "settings"}
    environment = os.environ | {name: str(home / place) for name, place in places.items()}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(mri.ROOT), os.environ.get("PYTHONPATH")]))}
    environment |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(8)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}"]
    command += ["--LabApp.expose_app_in_browser=True"]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(600):  # five minutes, beside other programs
                if server.poll() is not None:
                    raise RuntimeError((home / "log").read_text()[-2000:])
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}")
                    break
                time.sleep(0.5)
            else:
                raise RuntimeError((home / "log").read_text()[-2000:])
            yield lambda path: f"http://127.0.0.1:{port}/{path}{'&' if '?' in path else '?'}token={token}"
        finally:
            server.terminate()
            server.wait(30)


@contextlib.contextmanager
def browser():
    """Chromium, or an exception that says what is missing."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield started
        started.close()


LAB_IS_READY = "() => book.notebook()?.content?.model && book.status() == 'idle'"


class Page:
    """One notebook, in JupyterLab or as a web page of Voila. `faults` collects what the page itself reports."""

    def __init__(self, browser, url, ready=LAB_IS_READY):
        self.faults = []
        self.page = browser.new_page(viewport={"width": 1400, "height": 1000})
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.goto(url, timeout=180_000)
        self.page.evaluate(SCRIPT)
        self.page.wait_for_function(ready, timeout=180_000)

    def run_all(self, seconds=600):
        """Run all cells; returns the seconds it took. An error in a cell stops the run, as for a reader."""
        start = time.monotonic()
        self.page.evaluate("() => { book.run(); }")
        self.page.wait_for_function("() => book.done()", timeout=1000 * seconds, polling=300)
        return time.monotonic() - start

    def errors(self):
        """Every error output of the notebook, and what the page reported."""
        outputs = [o for cell in self.page.evaluate("() => book.cells()") for o in cell["outputs"]]
        return [f"{o['ename']}: {o['evalue']}" for o in outputs if o["output_type"] == "error"] + self.faults

    def areas(self):
        """The interactive cells: handles on their output areas."""
        self.page.wait_for_timeout(1000)  # the last widgets are drawn
        return self.page.evaluate_handle("() => book.areas()").get_properties().values()

    def panels(self):
        """Handles on all output areas with controls, with a picture or without."""
        question = "() => [...document.querySelectorAll('.jp-OutputArea-output:has(.jupyter-widgets)')]"
        return list(self.page.evaluate_handle(question).get_properties().values())

    def pixels(self, area):
        self.page.wait_for_function("area => book.pixels(area)", arg=area, timeout=60_000)
        return self.page.evaluate("area => book.pixels(area)", area)

    def text(self, area):
        return self.page.evaluate("area => book.text(area)", area)

    def reacts(self, area, picture, text=None, seconds=30):
        """Whether the picture comes to differ from `picture`, or the text from `text` where that is given."""
        from playwright.sync_api import TimeoutError

        question = """([area, picture, text]) => { const now = book.pixels(area);
            return (now && now !== picture) || (text !== null && book.text(area) !== text) }"""
        try:
            self.page.wait_for_function(question, arg=[area, picture, text], timeout=1000 * seconds, polling=30)
        except TimeoutError:
            return False
        return True

    def settle(self, area):
        """Wait until the kernel is idle and the picture stays as it is; returns it."""
        for _ in range(100):
            before = self.pixels(area)
            self.page.wait_for_timeout(150)
            if self.page.evaluate("() => book.status() ?? 'idle'") == "idle" and self.pixels(area) == before:
                return before
        raise AssertionError("the picture does not come to rest")


def sliders(area):
    """(label, handle) of every slider of an output area."""
    return [(label_of(handle), handle) for handle in area.query_selector_all(".noUi-handle")]


def label_of(control):
    """The description beside a control."""
    return control.evaluate("c => c.closest('.widget-inline-hbox')?.querySelector('.widget-label')?.innerText")


def data(folder: Path, matrix: int) -> Path:
    """A small simulated data set."""
    return mri.demo_data(folder / "data", train=2, val=2, slices=3, matrix=matrix)


@contextlib.contextmanager
def phone(browser, url, ready="() => true"):
    """A page on a phone: 390 x 844 points, touched rather than pointed at."""
    held = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    context = browser.new_context(**held)
    try:
        page = context.new_page()
        page.goto(url, timeout=180_000)
        page.wait_for_function(ready, timeout=180_000)
        yield page
    finally:
        context.close()


def misfits(page):
    """What does not fit a narrow page, in words: one that scrolls sideways, wide pictures, small print, cut tables."""
    return page.evaluate("""() => {
      const wide = screen.width;  // innerWidth grows where a phone zooms out to show all of a page
      const found = [], name = e => `${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 40)}`;
      const scrolls = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
      const root = document.documentElement;
      if (root.scrollWidth > wide) found.push(`the page is ${root.scrollWidth} wide, the screen ${wide}`);
      for (const e of document.querySelectorAll("body *")) {
        const box = e.getBoundingClientRect(), style = getComputedStyle(e);
        if (!box.width || style.visibility == "hidden" || e.closest("mjx-assistive-mml")) continue;  // for ears only
        if (e.tagName == "IMG" && (box.left < 0 || box.right > wide)) found.push("wide picture: " + name(e));
        const own = [...e.childNodes].some(n => n.nodeType == Node.TEXT_NODE && n.textContent.trim());
        if (own && parseFloat(style.fontSize) < 12) found.push(`text of ${style.fontSize}: ` + name(e));
        if (e.matches(".jupyter-widgets") && scrolls(e) && e.scrollWidth > e.clientWidth + 1)
          found.push("controls wider than the screen: " + name(e));
        if (e.tagName == "TABLE" && box.right > wide) {
          let outer = e.parentElement;
          while (outer && !scrolls(outer)) outer = outer.parentElement;
          if (!outer || outer.getBoundingClientRect().right > wide) found.push("cut table: " + name(e));
        }
      }
      return found;
    }""")


def obstacles(page):
    """What keeps some readers from using a page, in words, after WCAG 2 at level AA.

    The page's language and its one title, the order of headings, names of controls and links, descriptions of
    pictures, contrast of all text that is seen, and whether the keyboard's focus is. The page keeps no focus.
    """
    page.keyboard.press("Tab")  # from a key on, a browser shows the focus, as it does not after a click
    return page.evaluate("""() => {
      const found = new Set(), all = selector => [...document.querySelectorAll(selector)];
      const name = e =>
        `${e.localName}${e.id && "#" + e.id}.${e.getAttribute("class") ?? ""} "${e.textContent.trim().slice(0, 40)}"`;
      const seen = e => e.checkVisibility({opacityProperty: true, visibilityProperty: true}) &&
        e.getClientRects().length && !e.closest("[aria-hidden=true], mjx-assistive-mml");
      for (const change of document.getAnimations()) {  // colours on their way from light to dark
        if (change instanceof CSSTransition) change.finish();
      }
      if (!document.documentElement.lang) found.add("no language");
      if (!document.title.trim()) found.add("no title");

      const levels = all("h1, h2, h3, h4, h5, h6").filter(seen).map(e => [+e.tagName[1], e]);
      if (levels.filter(([level]) => level === 1).length !== 1) found.add("not one heading of level 1");
      levels.forEach(([level, e], at) => {
        if (level > (at ? levels[at - 1][0] + 1 : 1)) found.add(`level ${level} follows no ${level - 1}: ${name(e)}`);
      });

      const named = e => e.getAttribute("aria-label")?.trim()
        || e.getAttribute("aria-labelledby")?.split(" ").some(id => document.getElementById(id)?.textContent.trim())
        || [...e.labels ?? []].some(label => label.textContent.trim())
        || e.innerText?.trim() && !e.matches("select, [role=slider]")
        || e.matches("a, button") && (e.title.trim() || [...e.querySelectorAll("img")].some(i => i.alt.trim()));
      const controls = all("a[href], button, input, select, textarea, summary, [tabindex]").filter(seen);
      for (const e of controls) if (!named(e) && e.tabIndex >= 0) found.add(`nameless: ${name(e)}`);
      for (const e of all("canvas, [role=img]").filter(seen)) {  // an icon in a button may leave it to that
        if (!named(e) && !named(e.closest("a, button") ?? e)) found.add(`nameless: ${name(e)}`);
      }
      for (const e of all("img")) if (!e.hasAttribute("alt")) found.add(`no alt: ${e.src}`);

      const pixel = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
      const pen = pixel.getContext("2d", {willReadFrequently: true});
      const known = new Map();
      const rgba = colour => {  // every way that CSS has of writing one, as [r, g, b, alpha]
        if (!known.has(colour)) {
          pen.clearRect(0, 0, 1, 1);
          pen.fillStyle = colour;
          pen.fillRect(0, 0, 1, 1);
          const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
          known.set(colour, [r, g, b, a / 255]);
        }
        return known.get(colour);
      };
      const over = ([r, g, b, a], ground) => [r, g, b].map((c, k) => c * a + ground[k] * (1 - a));
      const around = new Map();  // element -> the colour behind its text, and how much of that text is clear
      const place = e => {
        if (!e) {
          const dark = getComputedStyle(document.body).colorScheme.includes("dark");
          return {behind: rgba(dark ? "#121212" : "white"), clear: 1};
        }
        if (!around.has(e)) {
          const outer = place(e.parentElement), style = getComputedStyle(e), own = rgba(style.backgroundColor);
          around.set(e, {behind: over(own, outer.behind), clear: outer.clear * style.opacity});
        }
        return around.get(e);
      };
      const light = colour => colour.slice(0, 3).reduce((sum, c, k) => {
        const s = c / 255;
        return sum + [0.2126, 0.7152, 0.0722][k] * (s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4);
      }, 0);
      const contrast = (a, b) => {
        const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
        return (high + 0.05) / (low + 0.05);
      };
      const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      for (let text; text = walk.nextNode();) {
        const e = text.parentElement;
        if (!text.data.trim() || e.closest("script, style, noscript, option, svg, :disabled") || !seen(e)) continue;
        const style = getComputedStyle(e), size = parseFloat(style.fontSize), {behind, clear} = place(e);
        const [r, g, b, a] = rgba(style.color);
        const reached = contrast(over([r, g, b, a * clear], behind), behind);
        const least = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
        if (reached < least) found.add(`contrast ${reached.toFixed(2)}: ${name(e)}, ${style.color} on ${behind}`);
      }

      const look = e => ["outline", "boxShadow", "border", "background", "color", "textDecoration"]
        .map(part => getComputedStyle(e)[part]).join();
      const kinds = new Map();  // one of each kind is enough
      for (const e of controls.filter(e => e.tabIndex >= 0 && !e.disabled)) {
        kinds.set([e, e.parentElement, e.parentElement.parentElement].map(x => x.localName + x.className).join(), e);
      }
      for (const e of kinds.values()) {
        e.blur();
        const before = look(e);
        e.focus({preventScroll: true});
        if (document.activeElement === e && look(e) === before) found.add(`focus is not seen: ${name(e)}`);
        e.blur();
      }
      return [...found];
    }""")


@contextlib.contextmanager
def static(folder):
    """Serve a folder of files on this computer; yields its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    serve = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextlib.contextmanager
def offline(browser, address):
    """Yields a function that opens a page of a static site, in a browser that reaches nothing but that.

    At the end: no other address was asked for, and no page has complained.
    """
    faults, contexts = [], []

    def visit(path, **settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | settings)
        contexts.append(context)

        def answer(route):
            if route.request.url.startswith(address):
                route.continue_()
            else:
                faults.append(f"{page.url} asks for {route.request.url}")
                route.abort()

        context.route("**/*", answer)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))
        page.on("console", lambda m: faults.append(f"{page.url}: {m.text}") if m.type in ("error", "warning") else None)
        page.goto(address + path, timeout=180_000)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not faults
