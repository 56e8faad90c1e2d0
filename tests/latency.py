"""How long a reader waits: from a key press on a slider to the changed picture, in a real browser.

usage: python tests/latency.py [NAME.ipynb ...]      (default: every notebook with sliders but 04)
       python tests/latency.py browser               (the playground in the browser, after make site)

The data are simulated heads of 320x320 (the size of fastMRI's knees). Ten key presses per slider; the time
is that between the key event in the page and the first frame that shows other pixels, kernel and drawing
included. In the playground in the browser, at 160x160, it is that from a move of the mouse that takes or drops a line
of k-space. It prints, it does not judge: the numbers depend on the computer and on what else it does.
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path

import lab

PRESSES = 10
NETWORK = "unet"  # of the playground's menu of methods


def measure(page, area, handle):
    """Milliseconds of each key press that changed the picture."""
    times = []
    for number in range(PRESSES):
        now, low, high = (float(handle.get_attribute(f"aria-value{name}")) for name in ("now", "min", "max"))
        keys = (
            ("ArrowRight", "ArrowLeft")
            if now < high and (number % 2 == 0 or now <= low)
            else ("ArrowLeft", "ArrowRight")
        )
        page.settle(area)
        handle.focus()
        page.page.evaluate("area => book.time(area)", area)
        page.page.keyboard.press(keys[0])
        try:
            page.page.wait_for_function("() => book.latency", timeout=5000, polling=20)
        except Exception as error:
            if "Timeout" not in type(error).__name__:
                raise
            continue  # a value that shows the same picture
        times.append(page.page.evaluate("() => book.latency"))
    return times


def report(page, area, name, method=""):
    """Print a line for each slider of an interactive picture."""
    for label, handle in lab.sliders(area):
        handle.scroll_into_view_if_needed()
        times = measure(page, area, handle)
        shown = f"{statistics.median(times):6.0f} ({max(times):.0f})" if times else "   no change"
        print(f"{name:24s}{label + method:28s}{shown}", flush=True)


WATCH = """() => {
  let begun = null;
  const results = () => {
    const start = begun;
    begun = null;
    if (start) requestAnimationFrame(() => { window.waited = performance.now() - start; });
  };
  window.waited = null;
  document.getElementById("kspace").addEventListener("pointermove", event => { begun ??= event.timeStamp; }, true);
  new MutationObserver(results).observe(document.body, {attributeFilter: ["data-results"]});
}"""


def browser_edition():
    """Print how long the playground in the browser takes from drag to picture, and what it fetches at first."""
    fetched = []
    with lab.browser() as browser, lab.static(lab.mri.ROOT / "site" / "pages") as address:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.on("response", lambda response: fetched.append(int(response.headers.get("content-length", 0))))
        page.goto(address + "playground/index.html")
        page.wait_for_function("+document.body.dataset.results > 0")
        print(f"first load: {sum(fetched) / 1e6:.2f} MB", flush=True)
        page.evaluate(WATCH)
        box = page.query_selector("#kspace").bounding_box()
        for method in page.evaluate("[...document.querySelectorAll('#method option')].map(o => o.value)"):
            before = page.evaluate("document.body.dataset.results")
            page.select_option("#method", method)
            page.wait_for_function("n => document.body.dataset.results !== n", arg=before, timeout=120_000)
            times = []
            page.mouse.move(box["x"] + 1, box["y"] + 50)
            page.mouse.down()
            for number in range(2 * PRESSES):
                page.wait_for_timeout(200)
                page.evaluate("window.waited = null")
                page.mouse.move(box["x"] + (number + 2.5) / 160 * box["width"], box["y"] + 50)
                page.wait_for_function("window.waited", timeout=60_000, polling=20)
                times.append(page.evaluate("window.waited"))
            page.mouse.up()
            print(f"{method:24s}{statistics.median(times):6.0f} ({max(times):.0f})", flush=True)


def main():
    if sys.argv[1:] == ["browser"]:
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; median (slowest) of {2 * PRESSES} drags, in ms")
        return browser_edition()
    wanted = sys.argv[1:] or [p.name for p in lab.NOTEBOOKS if lab.SLIDERS.search(p.read_text()) and p.name[:2] != "04"]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; median (slowest) of {PRESSES} key presses, in ms")
    with tempfile.TemporaryDirectory() as folder, lab.browser() as browser:
        folder = Path(folder)
        notebooks = folder / "root" / "notebooks"
        notebooks.mkdir(parents=True)
        for path in lab.NOTEBOOKS:
            own = {"data": str(lab.data(folder, 320))}
            own |= {name: str(folder / name) for name in ("hearts", "breathing_hearts")}
            lab.prepare(path, notebooks, lab.SMALL | own)
        with lab.served(notebooks.parent) as address:
            for name in wanted:
                page = lab.Page(browser, address(f"lab/tree/notebooks/{name}?reset"))
                page.run_all(1800)
                for area in page.areas():
                    report(page, area, Path(name).stem)
                    for menu in area.query_selector_all("select"):  # once more with a network, where one can be chosen
                        if NETWORK in [option.inner_text() for option in menu.query_selector_all("option")]:
                            menu.select_option(label=NETWORK)
                            report(page, area, Path(name).stem, f", {NETWORK}")
                page.page.close()


if __name__ == "__main__":
    main()
