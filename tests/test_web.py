"""The browser edition of the playground: its JavaScript against mri_utils, and its page, all without a network.

The page's network runs only where "make site" has brought ONNX Runtime from npm.
"""

import base64
import json
import shutil
import sys

import numpy as np
import pytest
import torch

import mri_utils as mri

if not shutil.which("chromium"):
    pytest.skip("no chromium: apt-get install chromium", allow_module_level=True)
pytest.importorskip("playwright.sync_api", reason="pip install playwright")
import lab

sys.path.insert(0, str(mri.ROOT / "tools"))
import build_site

HEADS = json.loads((mri.ROOT / "web" / "playground" / "heads.json").read_text())["heads"]
SIZE = 160
# Runs in the page: numbers travel as base64 of float64
SCRIPT = """async () => {
  window.js = await import("./numerics.js");
  const numbers = text => new Float64Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
  const bytes = values => Array.from(new Uint8Array(Float64Array.from(values).buffer));
  const text = values => btoa(bytes(values).map(c => String.fromCharCode(c)).join(""));
  window.take = ({height, width, re, im}) => ({height, width, re: numbers(re), im: numbers(im)});
  window.give = x => ({...x, re: text(x.re), im: text(x.im)});
  window.numbers = numbers;
}"""


def packed(values):
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f8")).decode()


def sent(image):
    """A complex image for the page."""
    height, width = image.shape
    return {"height": height, "width": width, "re": packed(image.real), "im": packed(image.imag)}


def received(image):
    parts = [np.frombuffer(base64.b64decode(image[part])) for part in ("re", "im")]
    return torch.from_numpy((parts[0] + 1j * parts[1]).reshape(image["height"], image["width"]))


@pytest.fixture(scope="module")
def browser():
    with lab.browser() as started:
        yield started


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    pages = tmp_path_factory.mktemp("pages")
    build_site.add_playground(pages)
    (pages / "_static").mkdir()
    shutil.copy(mri.ROOT / "web" / "static" / "icon.svg", pages / "_static")
    with lab.static(pages) as address:
        yield address


@pytest.fixture(scope="module")
def page(browser, address):
    """The playground, with its numerics as window.js; nothing outside is asked for, and nothing is amiss."""
    with lab.offline(browser, address) as visit:
        page = visit("playground/index.html", has_touch=True, viewport={"width": 1280, "height": 800})
        page.evaluate(SCRIPT)
        yield page


@pytest.fixture(scope="module")
def head():
    """The k-space of one slice as the page has it, and its volume's maximum."""
    kspace = np.fromfile(mri.ROOT / "web" / "playground" / "T2.c8", "<c8").reshape(-1, SIZE, SIZE)
    return torch.from_numpy(kspace[1]), HEADS["T2"]["maximum"]


@pytest.mark.parametrize("shape", [(160, 160), (10, 176), (7, 9), (1, 13), (32, 21)])
def test_fourier_transform(page, shape):
    image = torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    forward = received(page.evaluate("x => give(js.fft2c(take(x)))", sent(image.numpy())))
    assert torch.allclose(forward, mri.fft2c(image), atol=1e-12)
    back = received(page.evaluate("x => give(js.ifft2c(take(x)))", sent(image.numpy())))
    assert torch.allclose(back, mri.ifft2c(image), atol=1e-12)


def test_random_numbers_are_numpys(page):
    """MT19937 begun with a number and with a file name; whole numbers, uniform ones, waiting times."""
    script = """seed => { const r = new js.RandomState(seed); return [
      ...Array.from({length: 700}, () => r.randint(11)), ...Array.from({length: 700}, () => r.uniform()),
      ...Array.from({length: 9}, () => r.exponential()), r.randint(1), r.randint(64)] }"""
    for seed in (0, 1, 2**32 - 1, "demo_val_001_AXT2.h5", "x" * 700):
        random = np.random.RandomState(tuple(map(ord, seed)) if isinstance(seed, str) else seed)
        expected = [random.randint(11) for _ in range(700)] + [random.uniform() for _ in range(700)]
        expected += [random.exponential() for _ in range(9)] + [random.randint(1), random.randint(64)]
        assert page.evaluate(script, seed) == pytest.approx(expected, rel=1e-15)


def test_same_samples_as_the_book(page):
    """Every kind, many settings and seeds: the very lines or samples of mri.sampling_mask, or refused by both."""
    lines, samples = page.evaluate("[js.MASKS.lines, js.MASKS.samples]")
    assert lines + samples == page.evaluate("[...document.querySelectorAll('#kind option')].map(o => o.value)")
    assert set(lines + samples) == set(mri.mask_kinds("H", "W"))
    every = [(lines, (w, w), R, c, s) for w in (160, 161, 176) for R in (1, 2, 4, 5, 8, 16)
             for c in (0.02, 0.08, 0.1, 0.3) for s in (0, 7, "demo_val_004_AXT1.h5")]  # fmt: skip
    every += [(samples, size, R, c, s) for size in ((160, 160), (33, 40)) for R in (1, 4, 7)
              for c in (0.02, 0.08) for s in (0, "demo_val_004_AXT1.h5")]  # fmt: skip
    cases = [(kind, *case) for kinds, *case in every for kind in kinds]
    script = """cases => cases.map(c => {
      try { return [...js.samplingMask(...c)].join("") }
      catch (e) { if (e instanceof RangeError) return ""; throw e } })"""
    refused = 0
    for case, found in zip(cases, page.evaluate(script, cases)):
        try:
            expected = mri.sampling_mask(*case)
        except mri.BadInput:
            assert found == "", case
            refused += 1
        else:
            assert found == "".join(str(int(taken)) for taken in expected.flatten()), case
    assert 0 < refused < len(cases) / 2


@pytest.mark.parametrize("kind", ["random", "poisson_disc"])
def test_reconstructions_and_metrics(page, head, kind):
    """Zero-filled, total variation, data consistency, phase; SSIM, PSNR and NMSE: 1e-4 of the maximum or less apart."""
    full, peak = head
    mask = mri.sampling_mask(kind, full.shape, 4, 0.08, 3)
    kspace = full * mask
    target = mri.ifft2c(full).abs()
    scale = float(mri.ifft2c(kspace).abs().max())
    images = {
        "zero_filled": (mri.ifft2c(kspace), "js.zeroFilled(y)"),
        "masked": (kspace, "js.masked(take(x.full), x.mask)"),
        "tv": (
            mri.total_variation(kspace.to(torch.complex128), mask, 0.002, 60),
            "js.totalVariation(y, x.mask, 0.002, 60)",
        ),
        "kept": (mri.keep_measured(torch.ones_like(full), kspace, mask), "js.keepMeasured(ones, y, x.mask)"),
        "unmeasured": (mri.unmeasured(mri.ifft2c(full), mask), "js.unmeasured(js.ifft2c(take(x.full)), x.mask)"),
    }
    for part, expected in zip(("lost", "invented"), mri.lost_and_invented(full, mri.ifft2c(full), mask)):
        images[part] = expected, f"js.lostAndInvented(take(x.full), js.ifft2c(take(x.full)), x.mask).{part}"
    given = {
        "y": sent(kspace.numpy()),
        "full": sent(full.numpy()),
        "ones": sent(np.ones(full.shape, complex)),
        "mask": mask.int().flatten().tolist(),
    }
    for name, (expected, call) in images.items():
        result = received(
            page.evaluate(f"x => {{ const y = take(x.y), ones = take(x.ones); return give({call}) }}", given)
        )
        assert (result - expected).abs().max() < 1e-4 * scale, name
    # where the blurred image is dark, its phase hangs on the last digit: weighed by the magnitude
    phase, row = mri.smooth_phase(kspace), (torch.arange(SIZE) / SIZE - 0.5) ** 2
    blurred = mri.ifft2c(kspace * torch.exp(-0.5 * (row[:, None] + row) / 0.02**2)).abs()
    result = received(page.evaluate("x => give(js.smoothPhase(take(x.y)))", given))
    assert ((result - phase).abs() * blurred).max() < 1e-5 * scale
    image = images["tv"][0].abs().float()
    call = "x => { const [t, i] = x.map(numbers); return [js.ssim(t, i, 160, %r), js.psnr(t, i, %r), js.nmse(t, i)] }"
    expected = [mri.ssim(target, image, peak), mri.psnr(target, image, peak), mri.nmse(target, image)]
    got = page.evaluate(call % (peak, peak), [packed(target.double()), packed(image.double())])
    assert got == pytest.approx(expected, rel=1e-6)


def shown(page, action=lambda: None):
    """Do something, wait for its result, and return the line of figures."""
    before = int(page.evaluate("document.body.dataset.results ?? 0"))
    action()
    page.wait_for_function("n => +document.body.dataset.results > n", arg=before, timeout=120_000)
    return page.inner_text("#figures")


def figures(method, contrast="T2", place=1, acceleration=4, kind="random"):
    """The line that the page should show, from mri_utils; the centre is 8 %."""
    about = HEADS[contrast]
    kspace = np.fromfile(mri.ROOT / "web" / "playground" / f"{contrast}.c8", "<c8").reshape(-1, SIZE, SIZE)[place]
    full = torch.from_numpy(kspace)
    mask = mri.sampling_mask(kind, full.shape, acceleration, 0.08, about["name"] + ".h5")
    with torch.inference_mode():
        found = method((full * mask)[None], mask, (SIZE, SIZE))[0]
    image, guessed = found.abs(), mri.guessed_share(found, mask)
    target, peak = mri.ifft2c(full).abs(), about["maximum"]
    noun = "lines" if mask.ndim == 1 else "samples"
    return (
        f"effective acceleration {mri.effective_acceleration(mask):.2f}x ({int(mask.sum())} of {mask.numel()} {noun}); "
        f"SSIM {mri.ssim(target, image, peak):.3f}, PSNR {mri.psnr(target, image, peak):.1f} dB, "
        f"NMSE {mri.nmse(target, image):.4f}; guessed {100 * guessed:.1f}%"
    )


def test_page_shows_the_figures_of_the_book(page):
    """Same head, mask and seed as mri_utils: the same digits; a key moves a slider, an impossible setting says why."""
    page.wait_for_function("+document.body.dataset.results > 0", timeout=120_000)
    assert page.inner_text("#figures") == figures(mri.zero_filled)
    assert shown(page, lambda: page.press("#acceleration", "ArrowRight")) == figures(mri.zero_filled, acceleration=5)
    assert shown(page, lambda: page.press("#slice", "ArrowRight")) == figures(mri.zero_filled, place=2, acceleration=5)
    assert shown(page, lambda: page.select_option("#head", "PD")) == figures(mri.zero_filled, "PD", 2, 5)
    tv = mri.tv_method(0.002, iterations=60)
    assert shown(page, lambda: page.select_option("#method", "tv")) == figures(tv, "PD", 2, 5)
    assert shown(page, lambda: page.select_option("#kind", "radial")) == figures(tv, "PD", 2, 5, "radial")
    page.select_option("#kind", "random")
    page.select_option("#method", "zero_filled")
    page.press("#center", "End")
    page.wait_for_function("document.querySelector('#figures').innerText.includes('impossible')")
    for id, key in (("center", "Home"), ("center", "ArrowRight"), ("center", "ArrowRight"), ("center", "ArrowRight")):
        page.press(f"#{id}", key)
    page.wait_for_function(
        "words => document.querySelector('#figures').innerText === words", arg=figures(mri.zero_filled, "PD", 2, 5)
    )


def test_lines_are_dragged(page):
    """Mouse, finger and keys take lines and drop them; the lesion is where the reference was touched."""

    def taken():
        return int(page.inner_text("#figures").split("(")[1].split(" of")[0])

    def point(line):
        return box["x"] + (line + 0.5) / SIZE * box["width"], box["y"] + box["height"] / 2

    def reference():
        return page.evaluate("document.getElementById('target').toDataURL()")

    shown(page, lambda: page.press("#acceleration", "Home"))
    assert taken() == SIZE
    box = page.query_selector("#kspace").bounding_box()
    page.mouse.move(*point(10))
    page.mouse.down()
    page.mouse.move(*point(20), steps=3)
    page.mouse.up()
    page.wait_for_function("document.querySelector('#figures').innerText.includes('(149 of 160')")
    page.touchscreen.tap(*point(15))
    page.wait_for_function("document.querySelector('#figures').innerText.includes('(150 of 160')")
    page.focus("#kspace")
    page.press("#kspace", "ArrowRight")
    shown(page, lambda: page.press("#kspace", " "))
    assert taken() == 151
    assert page.get_attribute("#kspace", "aria-valuetext") == "line 16, measured"
    shown(page, lambda: page.select_option("#kind", "gaussian_2d"))  # of 1x: all samples
    shown(page, lambda: page.press("#kspace", " "))
    assert taken() == SIZE**2 - SIZE
    shown(page, lambda: page.select_option("#kind", "random"))
    before = reference()
    shown(page, lambda: page.click("#target", position={"x": 100, "y": 150}))
    assert reference() != before and page.input_value("#lesion") == "40"
    shown(page, lambda: page.fill("#lesion", "0"))
    assert reference() == before


@pytest.mark.parametrize("name", ["unet", "unrolled"])
def test_networks_in_the_browser(page, name):
    """The same digits as the shipped network gives here."""
    if not build_site.RUNTIME.is_dir():
        assert page.query_selector(f"#method [value={name}]") is None
        pytest.skip("no ONNX Runtime: make site brings it from npm")
    page.reload()
    page.wait_for_function("+document.body.dataset.results > 0", timeout=120_000)
    words = shown(page, lambda: page.select_option("#method", name))
    assert words == figures(mri.load_model(f"checkpoints/{name}.pt"))
    page.evaluate(SCRIPT)


def test_everything_fits(page):
    """All panels on one screen at 1280x800, a phone does not scroll sideways; screenshots to look at."""
    lab.SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for width, height in ((1280, 800), (768, 1024), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.screenshot(path=lab.SCREENSHOTS / f"web_{width}.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 1280, "height": 800})
    assert page.evaluate("document.documentElement.scrollHeight") <= 800
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert not lab.obstacles(page)
