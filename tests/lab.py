"""JupyterLab in a real browser: what test_browser.py checks and latency.py measures.

The server listens on this computer only, with a token of its own; the notebooks are copies with small parameters,
so that nothing in the repository changes. The browser is the chromium of the system, driven by playwright.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat

import mri_utils as mri

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
NOTEBOOKS = sorted((mri.ROOT / "notebooks").glob("[0-9]*.ipynb"))
# values that make a notebook quick, where its parameters cell has them
SMALL = {"epochs": 1, "features": 4, "levels": 2, "train_slices": 4, "volume_number": 1, "slice_number": 1}
SMALL |= {"slices_per_acceleration": 3, "val_slices": 4, "matrix": 48, "members": 2, "heads": 1, "head_matrix": 64}
SMALL |= {"repeats": 20, "pair_count": 3, "second": "zero_filled", "val_hearts": 2}

# Runs in the page. A widget's controls and picture share an output area.
SCRIPT = """() => {
const canvas = document.createElement("canvas"), pen = canvas.getContext("2d", {willReadFrequently: true});
window.book = {
  notebook: () => window.jupyterapp?.shell?.currentWidget,
  status: () => book.notebook()?.sessionContext?.session?.kernel?.status,
  cells: () => book.notebook().content.model.toJSON().cells.filter(c => c.cell_type == "code" && c.source.length),
  done: () => book.status() == "idle" && (book.cells().every(c => c.execution_count) || book.failed()),
  failed: () => book.cells().some(c => c.outputs.some(o => o.output_type == "error")),
  areas: () => [...document.querySelectorAll(".jp-OutputArea-output")].filter(book.image),
  image: area => area.querySelector("img.widget-image"),
  pixels: area => {  // the picture, small, as text; empty while it loads
    const image = book.image(area);
    if (!image.complete || !image.naturalWidth) return "";
    canvas.width = 256; canvas.height = 128;
    pen.drawImage(image, 0, 0, 256, 128);
    return pen.getImageData(0, 0, 256, 128).data.join("");
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
    environment |= {"PYTHONPATH": str(mri.ROOT), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
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
            for _ in range(120):
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
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
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
        if (!box.width || style.visibility == "hidden") continue;
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
