"""Pictures, tables and sliders."""

from __future__ import annotations

import base64
import html
import inspect
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from cycler import cycler
from torch import Tensor

from mri_parts.basics import BadInput, replace_file
from mri_parts.checks import Seen
from mri_parts.dataset import Sample
from mri_parts.fourier import center_crop
from mri_parts.masks import effective_acceleration, point_spread
from mri_parts.methods import zero_filled
from mri_parts.metrics import psnr, ssim

# Curves: matplotlib's own orange and green are one colour to a reader with protanopia; these six stay apart for
# everyone (Petroff 2021, arXiv 2107.02270). The grey comes last, because grey lines mark references.
COLOURS = ("#5790fc", "#f89c20", "#e42536", "#964a8b", "#7a21dd", "#9c9ca1")

# A method has one name for readers and one colour, a place in COLOURS, everywhere. Where nothing is filled in: grey.
METHOD_STYLES: dict[str, tuple[str, int]] = {
    "zero_filled": ("zero-filled", 5),
    "attainable": ("attainable", 5),
    "sinc": ("sinc", 5),
    "bicubic": ("bicubic", 1),
    "tv": ("total variation", 1),
    "wavelet": ("wavelets", 3),
    "phase_tv": ("total variation, phase known", 3),
    "phase_wavelet": ("wavelets, phase known", 4),
    "low_rank": ("low-rank k-space", 4),
    "sliding_window": ("sliding window", 3),
    "temporal_tv": ("temporal TV", 1),
    "sense": ("SENSE", 3),
    "grappa": ("GRAPPA", 4),
    "tv_sense": ("TV-SENSE", 1),
    "unet": ("U-Net", 0),
    "magnitude_unet": ("magnitude U-Net", 2),
    "resnet": ("residual network", 2),
    "alexnet": ("AlexNet", 3),
    "recon_resnet": ("ReconResNet", 2),
    "kspace_unet": ("k-space U-Net", 2),
    "unrolled": ("unrolled network", 2),
    # files of checkpoints/
    "unet_4x_8x": ("U-Net", 0),
    "unet_adversarial": ("U-Net with an adversary", 0),
    "resnet_12x2": ("residual network, 12x2", 2),
    "resnet_8x2_4x3": ("residual network, 8x2 and 4x3", 2),
    "unrolled_cnn": ("small unrolled network", 3),
    "unrolled_varied": ("unrolled, varied heads", 1),
    "unrolled_tv": ("unrolled, from total variation", 4),
    "unrolled_hours": ("unrolled, trained for hours", 0),
    "srresnet": ("SRResNet", 0),
    "srgan": ("SRGAN", 3),
    "kspace_sr": ("k-space network", 2),
    "cine_unet": ("cine U-Net", 0),
    "cine_dual_unet": ("dual U-Net", 4),
    "cine_unrolled": ("unrolled network", 2),
    "cine_view_sharing": ("unrolled, from the sliding window", 5),
    "cine_breathing": ("unrolled, breathing hearts", 0),
    "varnet": ("variational network", 0),
    "modl": ("MoDL", 2),
    "rss_unet": ("U-Net on coil images", 0),
    "varnet_learned_step": ("variational network, learned last step", 0),
    "modl_learned_step": ("MoDL, learned last step", 2),
    # means of two images, or of mirrored ones
    "unrolled_tv_mirrored": ("unrolled, from total variation, mirrored", 4),
    "modl+tv_sense": ("mean of MoDL and TV-SENSE", 5),
}


def method_name(name: str) -> str:
    """What readers call a method of METHOD_STYLES; another name is returned as it is."""
    return METHOD_STYLES.get(name, (name, 0))[0]


def method_colour(name: str) -> str:
    """The colour of a method's curve; a method that METHOD_STYLES does not have gets the first of COLOURS."""
    return COLOURS[METHOD_STYLES.get(name, (name, 0))[1]]


def use_book_style() -> None:
    """Draw curves in COLOURS from here on; a notebook says so once, in the cell of its imports."""
    matplotlib.rcParams["axes.prop_cycle"] = cycler(color=COLOURS)


def to_array(x: Tensor | np.ndarray) -> np.ndarray:
    """A displayable float array: the magnitude of complex input, float of everything else."""
    x = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    return np.abs(x) if np.iscomplexobj(x) else x.astype(float)


def log_magnitude(kspace: Tensor) -> Tensor:
    """Four decades of |k| as a picture: 1 at the largest sample, 0 at a ten-thousandth of it and below.

    k-space spans decades, so that its pictures are logarithmic. (..., H, W) complex -> real.
    """
    size = kspace.abs()
    relative = size / size.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)  # a coil may be dead
    return 1 + torch.log10(relative.clamp(min=1e-4)) / 4


def mask_image(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask as a picture of k-space (H, W); 1-D masks become vertical lines."""
    return mask.expand(tuple(size)).float()


def psf_image(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask's point-spread function as a picture (H, W): 1 at the peak, 0 at 50 dB below it and less."""
    return 1 + (20 * torch.log10(point_spread(mask, size) + 1e-6) / 50).clamp(min=-1)


def mask_title(kind: str, mask: Tensor) -> str:
    """The name of a mask and the number that every mask figure must print."""
    return f"{kind}, effective {effective_acceleration(mask):.2f}x"


def show_images(
    images: Sequence[Tensor | np.ndarray | None],
    titles: Sequence[str],
    window: tuple[float, float] | None = None,
    columns: int | None = None,
    cmap: str = "gray",
    width: float = 8.0,
    scale_bar: bool = False,
) -> Any:
    """A row or grid of images in one grey window; complex images are shown as magnitude.

    Args:
        images: each (H, W); None leaves its place empty. The first one sets size and window.
        titles: one each.
        window: (black, white); the default runs from 0 or the smallest value to the largest of the
            first image, the same for all.
        columns: images per row; all in one row by default.
        cmap: matplotlib's name of the colour map.
        width: of the figure in inches.
        scale_bar: draw a colour bar, for pictures whose values matter.
    Returns:
        the matplotlib figure.
    """
    import matplotlib.pyplot as plt

    if images[0] is None:
        raise BadInput("show_images: the first image sets size and window, so it cannot be None")
    arrays, first = [None if image is None else to_array(image) for image in images], to_array(images[0])
    columns = columns or len(arrays)
    rows = math.ceil(len(arrays) / columns)
    low, high = window or (min(0.0, float(first.min())), float(first.max()))
    aspect = first.shape[0] / first.shape[1]
    size = (width, rows * (width / columns * aspect + 0.35))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    shrunk = first.shape[1] > 0.95 * width / columns * figure.dpi  # averaged, or lines of a mask would be lost
    for axis in axes.flat:
        axis.axis("off")
    for axis, array, title in zip(axes.flat, arrays, titles):
        if array is not None:
            way = "antialiased" if shrunk else "nearest"
            picture = axis.imshow(array, cmap=cmap, vmin=low, vmax=high, interpolation=way)
            axis.set_title(title, fontsize=9)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(color="0.6", linewidth=0.6)  # white parts of a mask end somewhere
            axis.axis("on")
    if scale_bar:
        figure.colorbar(picture, ax=axes, shrink=0.8)
    return figure


def compare(
    target: Tensor,
    reconstructions: Mapping[str, Tensor],
    data_range: float | None = None,
    error_factor: float = 3.0,
    width: float = 7.0,
) -> Any:
    """Reconstructions of one slice beside the reference, their errors below, all in one window.

    Args:
        target: (h, w) real reference.
        reconstructions: name -> (h, w), real or complex; a name is printed as method_name has it.
        data_range: white of the window and range of SSIM and PSNR; the maximum of the target unless
            given (give the volume's maximum to match a table of per-volume figures).
        error_factor: brightness of the error maps, printed in their titles.
        width: of the figure in inches, where there are up to four images. More of them stand in several rows,
            each image as wide as one of four.
    Returns:
        the matplotlib figure.
    """
    peak = float(target.max()) if data_range is None else data_range
    above: list[Tensor | None] = [target]
    below: list[Tensor | None] = [None]
    titles, error_titles = ["reference"], [""]
    count = 1 + len(reconstructions)
    bands = math.ceil(count / 4)  # rows of images, each with its errors below: at most four stand in a row
    columns = math.ceil(count / bands)
    room = int(11.5 * width / (columns if bands == 1 else 4))  # letters over an image: titles must not touch
    for name, image in reconstructions.items():
        image = image.abs()
        above.append(image)
        below.append((image - target).abs() * error_factor)
        heading = textwrap.fill(method_name(name), min(room, 20))
        between = ", " if room > 18 else ",\n"
        titles.append(f"{heading}\nSSIM {ssim(target, image, peak):.3f}{between}{psnr(target, image, peak):.1f} dB")
        error_titles.append(f"|error| x {error_factor:g}")
    images: list[Tensor | None] = []
    captions: list[str] = []
    for start in range(0, len(above), columns):
        for row, words in ((above, titles), (below, error_titles)):
            part = row[start : start + columns]
            images += part + [None] * (columns - len(part))
            captions += words[start : start + columns] + [""] * (columns - len(part))
    return show_images(images, captions, (0, peak), columns, width=width if bands == 1 else width * columns / 4)


def show_sample(sample: Sample) -> Any:
    """One training sample, its first coil or frame: measured k-space, its zero-filled image, the reference."""
    kspace, target = (x.reshape(-1, *x.shape[-2:])[0] for x in (sample.kspace, sample.target / sample.maximum))
    size = target.shape
    zero = zero_filled(kspace, sample.mask, size).abs() / sample.maximum
    images = [center_crop(log_magnitude(kspace), size), zero, target]
    titles = [f"measured k-space (log), {float(sample.acceleration):.2f}x", "zero-filled image", "reference"]
    return show_images(images, titles, (0, 1))


def show_seen(seen: Sequence[Seen]) -> Any:
    """Files after a look at them, two in a row: k-space, and the image with the first finding.

    Each has the window of its own: k-space as in log_magnitude, the image up to its maximum.
    """
    images, titles = list[Tensor](), list[str]()
    for one in seen:
        told = next((f for f in one.findings if f.alarm), one.findings[0] if one.findings else None)
        words = f"ALARM: {told.what}" if told and told.alarm else told.what if told else "good"
        images += [log_magnitude(one.kspace), one.image / one.image.max()]
        titles += ["\n".join(textwrap.wrap(text, 28, max_lines=3, placeholder=" ..")) for text in (one.name, words)]
    return show_images(images, titles, (0, 1), columns=min(len(images), 4), width=2.1 * min(len(images), 4))


def show_curves(history: Sequence[Mapping[str, float]]) -> Any:
    """Learning curves: training loss, validation SSIM and PSNR over the epochs."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
    names = {"train_loss": "training loss", "val_ssim": "validation SSIM", "val_psnr": "validation PSNR (dB)"}
    for axis, (key, name) in zip(axes, names.items()):
        axis.plot([row["epoch"] for row in history], [row[key] for row in history], ".-", color=COLOURS[0])
        axis.set(xlabel="epoch", title=name)
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # of one epoch: 1
        axis.grid(alpha=0.3)
    return figure


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a matplotlib figure as PNG in one step and close it."""
    import matplotlib.pyplot as plt

    replace_file(path, lambda partial: figure.savefig(partial, format="png", dpi=100))
    plt.close(figure)


_NUMBERS = re.compile(r"([-+.,\[\]\d ]|\de[-+])+(\(one subject\))?")  # what stays in one line, and stands right


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A table as lines of cells: the head, which holds the keys of all rows, then the rows; what a row lacks is ""."""
    head = list(dict.fromkeys(key for row in rows for key in row))
    return [head, *([str(row.get(key, "")) for key in head] for row in rows)] if rows else []


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of text, the rows' keys as its head; text stands left, numbers right, their intervals behind them.

    Args:
        rows: a mapping per row; a key that a row lacks is an empty cell there.
    """
    columns = []
    for head, *cells in zip(*_lines(rows)):
        first = [cell.split(" ")[0] for cell in cells]
        numbers = all(_NUMBERS.fullmatch(cell) for cell in cells if cell)
        place = str.rjust if numbers and cells == first else str.ljust
        if numbers:  # those before their intervals stand right of each other
            front = max(map(len, first))
            cells = [" " * (front - len(number)) + cell for number, cell in zip(first, cells)]
        width = max(map(len, (head, *cells)))
        columns.append([place(cell, width) for cell in (head, *cells)])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns))


def show_table(rows: Sequence[Mapping[str, Any]], caption: str = "") -> None:
    """Display rows as an HTML table; where no HTML is drawn, as text.

    Args:
        rows: as in format_table. Values are shown by str and escaped.
        caption: a line above the table.
    """
    from IPython.display import display

    def text(cell: str) -> str:
        words = html.escape(cell)
        if _NUMBERS.fullmatch(words):
            words = words.replace(" ", "&nbsp;")  # figures stay in one line, and so do flags
        return re.sub(r"(--\S+|\S*\de-\S+)", r'<span style="white-space: nowrap">\1</span>', words)

    lines = _lines(rows)
    numbers = [all(re.match(r"[-+]?\.?\d", cell) for cell in cells if cell) for _, *cells in zip(*lines)]

    def line(tag: str, cells: Iterable[str]) -> str:
        tags = ["th", *[tag] * (len(numbers) - 1)]  # JupyterLab sets all to the right
        styles = ["" if number else ' style="text-align: left"' for number in numbers]
        return "".join(f"<{t}{style}>{text(cell)}</{t}>" for t, style, cell in zip(tags, styles, cells))

    head, *body = [f"<tr>{line('td' if row else 'th', cells)}</tr>" for row, cells in enumerate(lines)] or [""]
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    table = f"<table>{title}<thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"
    display({"text/html": table, "text/plain": f"{caption}\n{format_table(rows)}".strip()}, raw=True)


def show_source(*definitions: Any) -> None:
    """Display the very code of functions and classes, highlighted; it reads on a code host too and cannot drift."""
    from IPython.display import display

    source = "\n\n".join(inspect.getsource(definition).rstrip() for definition in definitions)
    display({"text/markdown": f"```python\n{source}\n```", "text/plain": source}, raw=True)


def check_answer(answer: Any, right: Any, mistakes: Iterable[tuple[Any, str]] = (), tolerance: float = 1e-3) -> str:
    """Judge the answer to an exercise, in words.

    Args:
        answer: of the reader: a number, a text, or numbers of any shape (list, array, tensor).
        right: the solution, of the same kind.
        mistakes: usual wrong answers, each with what led to it.
        tolerance: how far a right answer may be off, relative to the solution's largest magnitude; up to fifty times
            as far is nearly right.
    Returns:
        "right", "nearly right: ...", what led to the mistake, or "not yet: ...".
    """

    def distance(solution: Any) -> float:
        if isinstance(answer, str) or isinstance(solution, str):
            return 0.0 if answer == solution else math.inf
        x, y = (torch.as_tensor(value).to(torch.complex128) for value in (answer, solution))
        return math.inf if x.shape != y.shape else float((x - y).abs().max() / y.abs().max().clamp(min=1e-12))

    if (off := distance(right)) <= tolerance:
        return "right"
    for wrong, reason in mistakes:
        if distance(wrong) <= tolerance:
            return f"no: {reason}"
    if off <= 50 * tolerance:
        return f"nearly right: off by {100 * off:.2g} %, more than rounding explains"
    return "not yet: of another size or kind" if math.isinf(off) else f"not yet: off by {100 * off:.2g} %"


def show_file(path: str | Path) -> None:
    """Display a PNG file in a notebook."""
    from IPython.display import Image, display

    display(Image(filename=str(path)))


def _panel_png(panels: Mapping[str, np.ndarray], height: int = 320) -> bytes:
    """Titled grey panels side by side, five and more in two rows, as one PNG; values 0 to 1, `height` rows each.

    Drawn with Pillow, which takes a tenth of matplotlib's time: sliders must answer at once.
    """
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 12)
    pictures = []
    for array in panels.values():
        grey = Image.fromarray((np.clip(array, 0, 1) * 255).astype(np.uint8))
        width = round(grey.width * height / grey.height)
        pictures.append(grey.resize((width, height), Image.Resampling.NEAREST))
    rows, columns = (1, len(pictures)) if len(pictures) < 5 else (2, math.ceil(len(pictures) / 2))
    widths = [max(p.width for p in pictures[c::columns]) + 8 for c in range(columns)]
    sheet = Image.new("L", (sum(widths) - 6, rows * (height + 24)), 255)
    draw = ImageDraw.Draw(sheet)
    for number, (title, picture) in enumerate(zip(panels, pictures, strict=True)):
        left, top = sum(widths[: number % columns]), number // columns * (height + 24) + 22
        draw.text((left + 3, top - 19), title, fill=0, font=font)
        # a frame around it: white parts of a mask end somewhere
        draw.rectangle((left, top, left + picture.width + 1, top + height + 1), outline=170)
        sheet.paste(picture, (left + 1, top + 1))
    buffer = io.BytesIO()
    sheet.save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def show_controls(box: Any, static_text: str, still: bytes = b"") -> None:
    """Display widgets; where none are drawn (a code host, a notebook opened again), their first picture stands there.

    Args:
        box: the widgets.
        static_text: stands in their place where no picture is drawn either.
        still: the picture as PNG; none by default.
    """
    from IPython.display import display

    # what widgets display of themselves, spelled out: ipywidgets 7, which Colab has, does it by another method than 8
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    shown = {"application/vnd.jupyter.widget-view+json": view, "text/plain": static_text}
    display(shown | ({"image/png": base64.b64encode(still).decode()} if still else {}), raw=True)


def explore(
    update: Callable[..., tuple[Mapping[str, Any], str]], height: int = 320, beside: bool = False, **controls: Any
) -> None:
    """Show sliders that redraw a picture.

    Persistent widgets.Image are replaced at each change: no Output widget, which hangs headless
    runs. Where no widgets are drawn (a code host), the first picture stands in their place.

    Args:
        update: called with the controls' values as keywords; returns ({title: panel}, text), each
            panel an (H, W) array or tensor with values 0 (black) to 1 (white), the text HTML.
            A BadInput that it raises (an impossible pair of settings) is shown as the text.
        height: of the panels in pixels.
        beside: the controls stand left of the panels, where there is room, and each panel is a picture of its
            own: they fill the page, and stand large below each other on a phone. Always as many panels.
        controls: name -> an ipywidgets control.
    """
    import ipywidgets as widgets

    text = widgets.HTML()
    box = widgets.GridBox() if beside else widgets.Box()
    last: dict[str, np.ndarray] = {}

    def picture() -> Any:
        # as wide as its cell, or unstretched and at most as wide as the page; less the margins that every widget has
        width = "calc(100% - 4px)"
        layout = {"width": width} if beside else {"align_self": "flex-start", "max_width": width}
        return widgets.Image(format="png", layout=widgets.Layout(**layout))

    def draw(_change: Any = None) -> None:
        try:
            panels, caption = update(**{name: control.value for name, control in controls.items()})
        except BadInput as error:
            text.value = f"<b>{error}</b>"
            return
        except Exception as error:  # raised in a widget's callback it would be shown nowhere
            text.value = f"<b>{type(error).__name__}: {error}</b>"
            raise
        last.clear()
        last.update((title, to_array(panel)) for title, panel in panels.items())
        parts = [{title: panel} for title, panel in last.items()] if beside else [last]
        if not box.children:
            box.children = [picture() for _ in parts]
        for shown, part in zip(box.children, parts, strict=True):
            shown.value = _panel_png(part, height)
        text.value = caption

    for name, control in controls.items():
        control.description = control.description or name.replace("_", " ").strip()
        control.style = {"description_width": "8em"}
        control.observe(draw, "value")
    draw()
    layout: Any = widgets.VBox([*controls.values(), text, box])
    if beside:
        columns = len(last) if len(last) < 5 else math.ceil(len(last) / 2)
        box.layout = widgets.Layout(
            grid_template_columns=f"repeat(auto-fit, minmax({0.87 * height:.0f}px, 1fr))",  # titles stay legible
            max_width=f"{1.2 * height * columns:.0f}px",
        )
        left = widgets.VBox([*controls.values()], layout=widgets.Layout(flex="0 1 310px"))
        text.layout.min_height = "56px"  # two lines: the panels below stay where they are when the text gets longer
        right = widgets.VBox([text, box], layout=widgets.Layout(flex="1 1 320px"))
        layout = widgets.Box([left, right], layout=widgets.Layout(flex_flow="row wrap"))
    names = ", ".join(control.description for control in controls.values())
    still = _panel_png(last, height) if last else b""
    show_controls(layout, f"[sliders: {names}. Run the notebook to move them.]", still)
