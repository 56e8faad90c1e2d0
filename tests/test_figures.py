"""Section 12: figures in one window, sliders without a front end."""

import base64
import io
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

import mri_utils as mri
from mri_parts import figures, playground
from mri_parts.networks import model_axes

matplotlib.use("agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def pictures(figure):
    return [image for axis in figure.axes for image in axis.get_images()]


def titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_all_panels_share_one_window(random):
    images = [torch.eye(8), 5 * torch.eye(8), random(8, 8)]
    figure = mri.show_images(images, ["a", "b", "c"])
    assert [p.get_clim() for p in pictures(figure)] == [(0, 1)] * 3 and titles(figure) == ["a", "b", "c"]
    magnitude = images[2].abs().numpy()
    np.testing.assert_allclose(pictures(figure)[2].get_array(), magnitude, rtol=1e-6)
    figure = mri.show_images(images, ["a", "b", "c"], window=(-2, 3), columns=2)
    assert [p.get_clim() for p in pictures(figure)] == [(-2, 3)] * 3
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 2)
    figure = mri.show_images([torch.eye(8) - 2, None], ["a", ""])
    assert [p.get_clim() for p in pictures(figure)] == [(-2, -1)]  # black is 0, or below
    assert len(mri.show_images(images, ["a", "b", "c"], scale_bar=True).axes) == 4


def test_compare_prints_figures_and_the_error_factor(random):
    target = torch.rand(24, 24, generator=torch.Generator().manual_seed(0))
    noisy = target + 0.05 * random(24, 24)
    figure = mri.compare(target, {"noisy": noisy, "same": target}, data_range=2.0, error_factor=7)
    shown = titles(figure)
    ssim, psnr = mri.ssim(target, noisy.abs(), 2.0), mri.psnr(target, noisy.abs(), 2.0)
    assert shown[0] == "reference" and f"noisy\nSSIM {ssim:.3f}, {psnr:.1f} dB" in shown
    assert any(t.startswith("same\nSSIM 1.000") for t in shown) and shown.count("|error| x 7") == 2
    assert {p.get_clim() for p in pictures(figure)} == {(0, 2.0)} and len(pictures(figure)) == 5
    np.testing.assert_allclose(pictures(figure)[3].get_array(), 7 * (noisy.abs() - target).abs().numpy(), rtol=1e-5)
    assert mri.compare(target, {"noisy": noisy}).axes[0].get_images()[0].get_clim()[1] == pytest.approx(
        float(target.max())
    )


def test_compare_puts_at_most_four_images_in_a_row(random):
    """Each error stands right below its image, also where the images need a second row."""
    target = torch.rand(24, 24, generator=torch.Generator().manual_seed(0))
    for number, columns, rows in ((3, 4, 2), (4, 3, 4), (5, 3, 4), (6, 4, 4), (8, 3, 6)):
        figure = mri.compare(target, {str(i): target + 0.01 * i * random(24, 24) for i in range(number)})
        assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (rows, columns)
        filled = {axis.get_subplotspec().num1: axis for axis in figure.axes if axis.get_images()}
        assert len(filled) == 2 * number + 1
        for place, axis in filled.items():
            if axis.get_title().startswith("|error|"):
                image = filled[place - columns].get_images()[0].get_array()
                np.testing.assert_allclose(axis.get_images()[0].get_array(), 3 * abs(image - target.numpy()), atol=1e-6)


def test_sample_and_curves(tiny):
    data = mri.SliceDataset(mri.read_folder(tiny / "val"), "random", 4, 0.1)
    shown = titles(mri.show_sample(data[0]))
    assert len(shown) == 3 and f"{float(data[0].acceleration):.2f}x" in shown[0]
    history = [{"epoch": i, "train_loss": 1 / i, "val_ssim": i / 9, "val_psnr": 20.0 + i} for i in (1, 2, 3)]
    figure = mri.show_curves(history)
    lines = [axis.get_lines()[0].get_ydata().tolist() for axis in figure.axes]
    assert lines == [[row[key] for row in history] for key in ("train_loss", "val_ssim", "val_psnr")]
    for axis in mri.show_curves(history[:1]).axes:  # a single epoch: its own tick alone
        low, high = axis.get_xlim()
        assert [tick for tick in axis.get_xticks() if low <= tick <= high] == [1]


def test_mask_figures():
    mask = torch.arange(8) % 2 == 0
    assert mri.mask_title("random", mask) == "random, effective 2.00x"
    assert torch.equal(mri.mask_image(mask, (3, 8)), mask.float().repeat(3, 1))
    decades = mri.log_magnitude(torch.tensor([[1.0, 0.0], [0.02j, 2.0]]))
    assert not mri.log_magnitude(torch.zeros(2, 2, dtype=torch.complex64)).any()
    assert torch.allclose(decades, torch.tensor([[1 + np.log10(0.5) / 4, 0.0], [0.5, 1.0]]).float())


def test_save_figure(tmp_path):
    figure = plt.figure()
    mri.save_figure(figure, tmp_path / "new" / "figure.png")
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert not plt.fignum_exists(figure.number)


def test_panel_png():
    pillow = pytest.importorskip("PIL.Image")
    panels = {"one": np.linspace(0, 1, 32).reshape(4, 8), "two": np.full((10, 10), 9.0)}
    image = pillow.open(io.BytesIO(figures._panel_png(panels, height=100)))
    assert image.format == "PNG" and image.size == (200 + 8 + 102, 100 + 24)
    pixels = np.asarray(image)
    assert pixels[30, 1] == 0 and pixels[-2, 200] == 255
    assert (pixels[23:-1, 209:-1] == 255).all()  # clipped, not wrapped
    assert (pixels[:22] < 128).any()  # titles
    frame = [pixels[22, :202], pixels[-1, 208:], pixels[22:, 0], pixels[22:, -1]]
    assert all((line == 170).all() for line in frame)


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, and the widgets that were made."""
    display, widgets = pytest.importorskip("IPython.display"), pytest.importorskip("ipywidgets")
    seen = {"display": [], "Image": [], "HTML": []}
    monkeypatch.setattr(display, "display", lambda *a, **k: seen["display"].append((a, k)))
    for name in ("Image", "HTML"):
        original = getattr(widgets, name)

        def make(*args, original=original, name=name, **kwargs):
            seen[name].append(original(*args, **kwargs))
            return seen[name][-1]

        monkeypatch.setattr(widgets, name, make)
    return seen


def test_explore_redraws_without_a_front_end(shown):
    import ipywidgets as widgets

    level = widgets.IntSlider(value=2, min=0, max=10)
    kind = widgets.Dropdown(options=["random", "radial"])

    def update(noise_level, kind):
        if noise_level == 10:
            raise mri.BadInput("noise level 10 is too much")
        return {"grey": torch.full((8, 8), noise_level / 10), kind: np.eye(8)}, f"<i>level {noise_level}</i>"

    mri.explore(update, height=64, noise_level=level, kind=kind)
    (picture,), (text,) = shown["Image"], shown["HTML"]
    assert picture.value == figures._panel_png({"grey": np.full((8, 8), 0.2), "random": np.eye(8)}, 64)
    assert text.value == "<i>level 2</i>" and level.description == "noise level"
    first = picture.value
    level.value = 7
    assert picture.value != first and text.value == "<i>level 7</i>"
    second = picture.value
    kind.value = "radial"
    assert picture.value not in (first, second)
    third = picture.value
    level.value = 10
    assert text.value == "<b>noise level 10 is too much</b>" and picture.value == third
    level.value = 7
    assert picture.value == third and text.value == "<i>level 7</i>"
    ((bundle,), options) = shown["display"][0]
    assert options == {"raw": True} and "noise level, kind" in bundle["text/plain"]
    assert len(shown["display"]) == 1 and len(shown["Image"]) == 1  # one picture, replaced
    assert base64.b64decode(bundle["image/png"]) == first  # what a page without a kernel shows


def test_explore_beside_has_a_picture_of_each_panel(shown):
    import ipywidgets as widgets

    level = widgets.IntSlider(value=2, min=0, max=10)

    def update(level):
        return {"grey": torch.full((8, 8), level / 10), "eye": np.eye(8)}, f"level {level}"

    mri.explore(update, height=64, beside=True, level=level)
    grey, eye = (picture.value for picture in shown["Image"])
    assert grey == figures._panel_png({"grey": np.full((8, 8), 0.2)}, 64)
    level.value = 3
    assert shown["Image"][0].value != grey and shown["Image"][1].value == eye
    ((bundle,), _) = shown["display"][0]
    both = figures._panel_png({"grey": np.full((8, 8), 0.2), "eye": np.eye(8)}, 64)
    assert base64.b64decode(bundle["image/png"]) == both


def test_a_folder_that_the_playground_cannot_read_is_told_in_its_text(shown, tiny, tmp_path):
    mri.playground(tmp_path)
    assert "no .h5" in shown["HTML"][0].value and not shown["Image"]
    mri.playground(tiny, volume_number=9, slice_number=9)  # fewer of both: the last one
    assert "effective acceleration" in shown["HTML"][1].value and len(shown["Image"]) == 8


def test_panels_of_the_playground(tiny):
    """Zero filling guesses nothing and loses all that was not measured; a perfect guess loses and invents nothing."""
    volume = mri.read_folder(tiny / "val")[0]
    sample = playground.measure(volume, 0, "random", 3, 0.1)
    truth, peak = mri.ifft2c(volume.cropped(0)[0]), volume.maximum
    whole = mri.whole_image(mri.zero_filled, sample)
    panels = playground.panels_of(sample, whole, truth, "zero-filled", peak)
    assert panels["no sample supports this, x 2"].max() < 1e-5 and panels["invented x 3"].max() < 1e-5
    torch.testing.assert_close(panels["zero-filled"], mri.reconstruct(mri.zero_filled, sample)[0] / peak)
    lost = mri.center_crop(truth - whole, sample.target.shape[-2:]).abs() / peak
    torch.testing.assert_close(panels["lost x 3"], 3 * lost, rtol=1e-3, atol=1e-4)
    perfect = playground.panels_of(sample, truth, truth, "mine", peak)
    assert max(float(perfect[name].max()) for name in ("lost x 3", "invented x 3", "|error| x 3")) < 1e-4
    assert perfect["no sample supports this, x 2"].max() > 0.01
    black = panels["measured k-space (log)"] == 0
    assert torch.equal(~black, sample.mask[0].expand_as(black))


def test_a_magnitude_gets_the_measured_phase(tiny):
    sample = playground.measure(mri.read_folder(tiny / "val")[0], 0, "random", 3, 0.1)
    whole = mri.whole_image(lambda *scan: mri.zero_filled(*scan).abs(), sample)
    torch.testing.assert_close(whole, mri.ifft2c(sample.kspace[0]), rtol=1e-4, atol=1e-6)


def test_noise_of_the_playground(tiny):
    """Each part of a fully sampled image has the standard deviation that the slider says."""
    volume = mri.read_folder(tiny / "val")[0]
    clean, noisy = (playground.measure(volume, 0, "random", 1, 0.08, noise).kspace for noise in (0, 5))
    added = mri.ifft2c(noisy - clean) / volume.maximum
    assert added.real.std() == pytest.approx(0.05, rel=0.05) and added.imag.std() == pytest.approx(0.05, rel=0.05)


def finished(seed, features, ssim, data="data/demo"):
    """A run as read_run opens it, with a zero-filled image and a network."""
    figure = {"mean": ssim, "ci95": [ssim - 0.1, ssim + 0.1]}
    alone = {"mean": 20.0, "ci95": [20.0, 20.0]}  # one subject
    figures = {"ssim": figure, "psnr": alone, "nmse": figure}
    parameters = {"model": f"unet(features={features})", "mask": "random", "acceleration": 4.0, "center_fraction": 0.08}
    parameters |= {"seed": seed, "data": data}
    metrics = {"parameters": parameters, "data": {"effective_acceleration": 3.914}}
    return mri.Run(Path(f"run{seed}"), metrics | {"methods": {"zero_filled": figures, "unet": figures}}, [])


def test_runs_are_compared_in_one_table():
    rows = mri.compare_runs([finished(1, 8, 0.6), finished(0, 4, 0.5)])
    assert [(row["method"], row["seed"], row["features"]) for row in rows] == [
        ("zero_filled", "", ""), ("unet", "0", "4"), ("unet", "1", "8")
    ]  # fmt: skip
    assert rows[1]["SSIM"] == "0.500 [0.400, 0.600]" and rows[2]["SSIM"] == "0.600 [0.500, 0.700]"
    assert rows[0]["PSNR (dB)"] == "20.00 (one subject)" and rows[0]["acceleration"] == "4x (3.91)"


def test_runs_on_two_data_sets_have_their_own_baselines():
    rows = mri.compare_runs([finished(0, 4, 0.6, "data/b"), finished(0, 4, 0.5, "data/a")])
    assert [(row["data"], row["method"], row["SSIM"][:5]) for row in rows] == [
        ("data/a", "zero_filled", "0.500"), ("data/a", "unet", "0.500"),
        ("data/b", "zero_filled", "0.600"), ("data/b", "unet", "0.600"),
    ]  # fmt: skip


def test_a_metric_of_some_runs_leaves_the_others_cells_empty():
    first, second = finished(0, 4, 0.5), finished(1, 4, 0.6)
    second.metrics["methods"]["unet"] = second.metrics["methods"]["unet"] | {
        "mae": {"mean": 1.23456e-5, "ci95": [1e-5, 2.5e-5]}, "hfen": {"mean": 0.25, "ci95": [0.25, 0.25]}
    }  # fmt: skip
    rows = mri.compare_runs([first, second])
    assert rows[-1]["MAE"] == "1.23e-05 [1e-05, 2.5e-05]" and rows[-1]["HFEN"] == "0.25 (one subject)"
    head, *lines = mri.format_table(rows).splitlines()
    assert head.split()[-3:] == ["NMSE", "MAE", "HFEN"] and lines[-1][head.index("HFEN") :] == "0.25 (one subject)"
    assert all(len(line) < head.index("MAE") for line in lines[:-1])


def test_columns_of_text_stand_left_and_those_of_numbers_right():
    rows = [{"name": "a - b", "n": -3, "mask": "4x", "mean": "-0.1 [-1e-05, 2]"}, {"name": "c", "n": 12.5}, {}]
    rows += [{"name": "  d", "mean": "1 (one subject)"}]
    assert mri.format_table(rows).splitlines() == [
        "name      n  mask  mean",
        "a - b    -3  4x    -0.1 [-1e-05, 2]",
        "c      12.5",
        "",
        "  d                   1 (one subject)",
    ]


def test_tables_are_text_and_html(monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: seen.append(data))
    mri.show_table([{"flag": "--seed 1", "figure": "0.5 [0.4, 0.6]"}, {"flag": "<b>", "figure": 1}], "Two & two")
    mri.show_table([])
    mri.show_table([{"": "a", "b": "1e-05 [0, 1]"}])
    page, text = seen[0]["text/html"], seen[0]["text/plain"]
    assert "<caption>Two &amp; two</caption>" in page and "&lt;b&gt;" in page and "<b>" not in page
    assert "0.5&nbsp;[0.4,&nbsp;0.6]" in page and '<span style="white-space: nowrap">--seed</span> 1' in page
    assert text.splitlines() == [
        "Two & two", "flag      figure", "--seed 1  0.5 [0.4, 0.6]", "<b>         1"
    ]  # fmt: skip
    assert seen[1]["text/plain"] == ""
    assert '<span style="white-space: nowrap">1e-05&nbsp;[0,&nbsp;1]</span>' in seen[2]["text/html"]


# Maps from dark to light in even steps; one that does not, or that rests on red against green, hides what it shows.
COLOUR_MAPS = {"gray", "viridis", "cividis", "magma", "inferno", "plasma"}
CYCLIC = {"twilight"}  # of phases, whose two ends are one: even steps there and back


def sources():
    """(name, code) of everything that draws."""
    yield from ((path.name, path.read_text(encoding="utf-8")) for path in mri.ROOT.glob("*.py"))
    for path in sorted((mri.ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path.name, "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_colour_maps_and_literal_colours():
    """Only maps of the list; the only colours named are black, white, greys and places in the cycle of curves."""
    maps, colours = set(), set()
    for name, code in sources():
        maps |= {(name, found) for found in re.findall(r"""cmap(?::\s*str)?\s*=\s*["'](\w+)""", code)}
        pattern = r"""["']?\b(?:color|colour|c|facecolor|edgecolor)["']?\s*[=:]\s*["']([^"']+)"""
        colours |= {(name, found) for found in re.findall(pattern, code)}
        assert not re.search(r"set_cmap|get_cmap|plt\.cm\b|colormaps\b|\bcm\.", code), f"{name}: a map by another way"
        assert not re.search(r"""["'][bgrcmy][-.:os^]+["']""", code), f"{name}: a colour in a format of plot"
    assert {found for _, found in maps} <= COLOUR_MAPS | CYCLIC and len(maps) > 2, maps
    assert matplotlib.rcParams["image.cmap"] in COLOUR_MAPS
    for name, found in colours - {(name, f"C{i}") for name, _ in colours for i in range(len(mri.COLOURS))}:
        red, green, blue = matplotlib.colors.to_rgb(found)
        assert red == green == blue, f"{name}: {found}"


# What a reader without one kind of cone sees, in linear RGB: Machado et al. 2009, doi 10.1109/TVCG.2009.113, severity 1
VISION = {
    "all three cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def seen(colour, matrix):
    """CIE Lab of a colour seen through a VISION matrix (D65)."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = to_xyz @ np.clip(np.array(matrix) @ linear, 0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colours, matrix):
    """The smallest distance between two of the colours, in Lab (two just tell apart at 2.3)."""
    places = [seen(colour, matrix) for colour in colours]
    return min(np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2))


def test_import_leaves_matplotlib_alone_and_notebooks_ask_for_the_colours():
    code = "import matplotlib as m; before = dict(m.rcParams); import mri_utils; print(dict(m.rcParams) == before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=mri.ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
    plotting = [name for name, code in sources() if name.endswith(".ipynb") and "import matplotlib" in code]
    styled = [name for name, code in sources() if "mri.use_book_style()" in code]
    assert plotting == styled and len(styled) > 10
    with matplotlib.rc_context():
        mri.use_book_style()
        assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(mri.COLOURS)


def test_a_method_has_one_name_and_one_colour():
    assert mri.method_name("zero_filled") == "zero-filled" and mri.method_name("varnet") == "variational network"
    assert mri.method_name("my_net") == "my_net" and mri.method_colour("my_net") == mri.COLOURS[0]
    for name, task in mri.TASKS.items():
        models = [model for model in mri.MODELS if model_axes(model) == task.axes[1:]]
        assert models and {task.start[0], *models} <= set(mri.METHOD_STYLES), f"{name}: a method without a name"
        assert mri.method_colour(task.start[0]) not in map(mri.method_colour, models)
    figure = mri.compare(torch.rand(8, 8), {"tv": torch.rand(8, 8)})
    assert titles(figure)[1].startswith("total variation\n")


@pytest.mark.parametrize("vision", VISION)
def test_curves_differ_for_colour_blind_readers(vision):
    assert nearest(mri.COLOURS, VISION[vision]) > 20
    assert nearest([*mri.COLOURS, "white"], VISION[vision]) > 20  # the page
    if vision == "protanopia":  # why the cycle is not matplotlib's own
        assert nearest(["tab:orange", "tab:green"], VISION[vision]) < 5


def test_diagrams_are_drawn_alike_each_time(tmp_path, monkeypatch):
    """What tools/diagrams.py draws has letters, and is committed for every name."""
    monkeypatch.syspath_prepend(str(mri.ROOT / "tools"))
    diagrams = __import__("diagrams")
    for name, draw in diagrams.DIAGRAMS.items():
        for path in (tmp_path / "one.svg", tmp_path / "other.svg"):
            with matplotlib.rc_context({"svg.hashsalt": "book"}):
                diagrams.save(draw(), path)
        assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()
        assert (diagrams.FOLDER / f"diagram_{name}.svg").is_file()
