"""Draw the book's diagrams: notebooks/pictures/diagram_NAME.svg.

usage: python tools/diagrams.py

Eight drawings in the book's colours, with letters that a phone shows: how a scan fills k-space, the U-Net, the unrolled
network, how SENSE unfolds, a GRAPPA kernel, the network of super-resolution, the dual network of cine, and the map of
the book. Nothing is computed from data.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this copy

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Ellipse, FancyBboxPatch

import mri_utils as mri

FOLDER = mri.ROOT / "notebooks" / "pictures"
BLUE, ORANGE, RED, PURPLE, VIOLET, GREY = mri.COLOURS
INK = "#222222"


def canvas(width: float, height: float, right: float, top: float) -> tuple[Any, Any]:
    """A figure without axes whose coordinates run from 0 to right and to top."""
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    axis.set(xlim=(0, right), ylim=(0, top))
    axis.axis("off")
    return figure, axis


def box(axis: Any, x: float, y: float, w: float, h: float, text: str, colour: str, size: int = 11) -> None:
    """A rounded box with its lower left corner at (x, y), and words in it."""
    shape = FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=0.12", fc=colour + "33", ec=colour, lw=1.6)
    axis.add_patch(shape)
    axis.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size, color=INK)


def arrow(axis: Any, start: tuple, end: tuple, text: str = "", colour: str = INK, **style: Any) -> None:
    """An arrow with words beside its middle."""
    properties = {"arrowstyle": "-|>", "color": colour, "lw": 1.4, "shrinkA": 0, "shrinkB": 0} | style
    axis.annotate("", end, start, arrowprops=properties)
    if text:
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        axis.text(middle[0], middle[1] + 0.12, text, ha="center", va="bottom", fontsize=10, color=colour)


def trajectory() -> Any:
    """How a Cartesian scan fills k-space: one line per repetition; an accelerated one leaves lines out."""
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.4), layout="constrained", sharey=True)
    lines = np.arange(17) - 8
    kept = (lines % 4 == 0) | (abs(lines) <= 1)
    for axis, chosen, title in zip(
        axes, (lines > -99, kept), ("every line: 17 repetitions", "some lines: 7 repetitions")
    ):
        for k, measured in zip(lines, chosen):
            style = {"color": BLUE, "lw": 2} if measured else {"color": GREY, "lw": 1, "ls": ":"}
            axis.plot([k, k], [-8, 8], **style)
        axis.plot(0, 0, "o", color=RED, ms=6)
        axis.set(xlabel="phase encode: one repetition per line", title=title, xticks=[], yticks=[], ylim=(-9, 9))
        axis.spines[:].set_color("0.7")
    axes[0].set_ylabel("readout (milliseconds)")
    return figure


def unet() -> Any:
    """The U-Net: halved four times, doubled four times, with skip connections."""
    figure, axis = canvas(7.2, 3.6, 20, 10)
    for level, channels in enumerate((16, 32, 64, 128, 256)):
        y, height = 8.2 - 1.75 * level, 1.15
        if level < 4:
            box(axis, 0.4 + 1.7 * level, y, 2.1, height, f"{channels}", BLUE)
            box(axis, 17.5 - 1.7 * level, y, 2.1, height, f"{channels}", ORANGE)
            arrow(axis, (2.6 + 1.7 * level, y + height / 2), (17.4 - 1.7 * level, y + height / 2), "", GREY, ls="--")
            arrow(axis, (1.9 + 1.7 * level, y), (2.7 + 1.7 * level, y - 0.58), colour=BLUE)
            arrow(axis, (17.3 - 1.7 * level, y - 0.58), (18.1 - 1.7 * level, y), colour=ORANGE)
        else:
            box(axis, 7.2, y, 5.6, height, "256 channels", PURPLE)
    axis.text(10, 9.15, "skip connections", ha="center", fontsize=11, color="0.4")
    axis.text(
        0.4, 0.2, "down: two 3x3 convolutions,\nthen the mean of 2x2 pixels", fontsize=10, color=BLUE, va="bottom"
    )
    axis.text(
        19.6,
        0.2,
        "up: doubled, joined with its\npartner, two convolutions",
        fontsize=10,
        color=ORANGE,
        ha="right",
        va="bottom",
    )
    return figure


def cascade() -> Any:
    """One cascade of an unrolled network: a change by the network, then what was measured is put back."""
    figure, axis = canvas(7.2, 2.7, 20, 7.0)
    box(axis, 0.2, 3.1, 3.2, 1.8, "zero-filled\nimage", GREY)
    box(axis, 5.0, 3.1, 3.4, 1.8, "network:\na change", ORANGE)
    axis.text(9.75, 4.0, "+", fontsize=20, ha="center", va="center", color=INK)
    box(axis, 11.1, 3.1, 4.9, 1.8, "consistency:\nmeasured samples\nput back", BLUE)
    box(axis, 17.3, 3.1, 2.5, 1.8, "image", PURPLE)
    for start, end in ((3.4, 5.0), (8.4, 9.3), (10.2, 11.1), (16.0, 17.3)):
        arrow(axis, (start, 4.0), (end, 4.0))
    for x, end, level, tip, colour in ((4.0, 9.75, 2.3, 3.5, GREY), (16.5, 4.0, 5.9, 4.1, PURPLE)):  # around the boxes
        axis.plot([x, x, end], [4.0, level, level], color=colour, lw=1.4)
        arrow(axis, (end, level), (end, tip), colour=colour)
    axis.text(10.2, 6.1, "again, as often as there are cascades", ha="center", va="bottom", fontsize=11, color=PURPLE)
    axis.text(13.55, 1.6, "k-space of the scan", ha="center", fontsize=11, color=BLUE)
    arrow(axis, (13.55, 2.2), (13.55, 3.1), colour=BLUE)
    return figure


def sense() -> Any:
    """How SENSE unfolds: two pixels on top of each other, two coils that weigh them differently."""
    figure, axis = canvas(7.2, 3.2, 20, 9)
    for y, name, colour, weights in ((5.2, "coil 1", BLUE, ("0.9", "0.2")), (0.9, "coil 2", ORANGE, ("0.3", "0.8"))):
        axis.add_patch(Ellipse((3.0, y + 1.4), 4.4, 2.8, fc="0.93", ec=colour, lw=2))
        axis.text(1.9, y + 1.4, f"{weights[0]} a", fontsize=12, ha="center", va="center")
        axis.text(4.1, y + 1.4, f"{weights[1]} b", fontsize=12, ha="center", va="center")
        axis.text(0.2, y + 2.9, name, fontsize=11, color=colour, va="center")
        arrow(axis, (5.6, y + 1.4), (8.0, y + 1.4), "folds", colour)
        box(axis, 8.2, y + 0.6, 4.0, 1.6, f"{weights[0]} a + {weights[1]} b", colour, 12)
        arrow(axis, (12.4, y + 1.4), (14.6, 4.6 if y > 3 else 4.2), colour=INK)
    box(axis, 14.8, 3.3, 5.0, 2.2, "two equations,\ntwo unknowns:\na and b", PURPLE)
    return figure


def grappa() -> Any:
    """A GRAPPA kernel: a missing sample as a weighted sum of measured neighbours, in all coils."""
    figure, axis = canvas(7.2, 3.4, 20, 9.4)
    middle = (8.0, 4.4)
    for column in range(13):
        measured, kernel = column % 3 == 0, column in (3, 6, 9)
        for row in range(5):
            place = (1.0 + column, 1.6 + 1.4 * row)
            edge = {"mec": RED, "mew": 1.8} if kernel else {"mec": "none"}
            axis.plot(*place, "o", ms=12 if kernel else 8, color=BLUE if measured else "0.85", **edge)
            if kernel:
                line = {"arrowstyle": "-", "color": RED, "lw": 0.5, "alpha": 0.6}
                axis.annotate("", middle, place, arrowprops=line)
    axis.plot(*middle, "s", ms=12, color=ORANGE)
    axis.text(7, 9.0, "k-space of each coil", ha="center", va="top", fontsize=11)
    axis.text(14.4, 7.3, "measured lines", color=BLUE, fontsize=11)
    axis.text(14.4, 5.9, "neighbours, all coils", color=RED, fontsize=11)
    axis.text(14.4, 4.5, "the missing sample", color=ORANGE, fontsize=11)
    axis.text(14.4, 2.2, "weights: learned where\nall lines are measured,\naround the centre", fontsize=11, va="center")
    return figure


def super_resolution() -> Any:
    """The k-space super-resolution network: the block as an image and as its edges, a U-Net, the block put back."""
    figure, axis = canvas(7.2, 3.4, 20, 9.2)
    box(axis, 0.2, 3.4, 3.3, 2.4, "k-space:\nthe central\nblock", BLUE)
    box(axis, 5.2, 5.5, 4.0, 1.8, "image", GREY)
    box(axis, 5.2, 1.9, 4.0, 1.8, "divided by the\ntemplate: edges", GREY)
    box(axis, 10.8, 3.7, 2.8, 1.8, "U-Net:\na change", ORANGE)
    box(axis, 15.2, 3.4, 4.6, 2.4, "whole k-space,\nmeasured block\nput back", PURPLE)
    for start, end in (((3.5, 5.2), (5.2, 6.2)), ((3.5, 4.0), (5.2, 3.0)), ((9.2, 6.2), (10.8, 5.2))):
        arrow(axis, start, end)
    arrow(axis, (9.2, 3.0), (10.8, 4.0))
    arrow(axis, (13.6, 4.6), (15.2, 4.6))
    for x, y, colour, level in ((7.2, 7.3, GREY, 8.0), (1.8, 3.4, BLUE, 0.8)):  # around the U-Net
        axis.plot([x, x, 17.5], [y, level, level], color=colour, lw=1.4)
        arrow(axis, (17.5, level), (17.5, 5.8 if level > 4 else 3.4), colour=colour)
    axis.text(12.4, 8.2, "the change is added to the image", ha="center", va="bottom", fontsize=11, color="0.4")
    axis.text(9.6, 0.6, "measured samples", ha="center", va="top", fontsize=11, color=BLUE)
    return figure


def dual_unet() -> Any:
    """The dual cine network: a U-Net for the real part, one for the imaginary, a 3-D residual network over both."""
    figure, axis = canvas(7.2, 3.4, 20, 9.2)
    for y, part, colour in ((5.6, "real part", BLUE), (1.4, "imaginary part", VIOLET)):
        box(axis, 0.2, y, 4.2, 2.0, f"{part},\n12 frames", colour)
        box(axis, 5.8, y, 4.6, 2.0, "U-Net with\nattention", ORANGE)
        arrow(axis, (4.4, y + 1.0), (5.8, y + 1.0))
        arrow(axis, (10.4, y + 1.0), (12.0, 5.2 if y > 3 else 3.8))
    box(axis, 12.0, 3.3, 3.4, 2.4, "3-D\nresidual\nnetwork", RED)
    box(axis, 17.0, 3.3, 2.8, 2.4, "change\nof the\nfilm", PURPLE)
    arrow(axis, (15.4, 4.5), (17.0, 4.5))
    axis.text(8.1, 0.9, "frames are channels", ha="center", va="top", fontsize=11, color="0.4")
    axis.text(13.7, 2.8, "frames are\nan axis", ha="center", va="top", fontsize=11, color="0.4")
    return figure


def book() -> Any:
    """The map of the book: what builds on what."""
    figure, axis = canvas(7.2, 5.0, 20, 13.6)
    heart = ("01 k-space", "02 masks", "03 aliasing", "04 train", "05 evaluate")
    for number, name in enumerate(heart):
        box(axis, 0.2 + 4.0 * number, 10.8, 3.4, 1.7, name, BLUE)
        if number:
            arrow(axis, (4.0 * number - 0.4, 11.65), (4.0 * number + 0.2, 11.65))
    honest = ("08 pitfalls", "09 metrics", "10 uncertainty", "11 blinded reading", "16 what fits", "18 guarantees")
    groups = [
        (
            0.2,
            ORANGE,
            "better networks\nand sampling",
            (
                *("06 beyond the U-Net", "07 sampling", "17 no references"),
                *("20 priors", "22 time machine", "23 learned masks"),
            ),
        ),
        (7.0, RED, "honest figures", honest),
        (
            13.8,
            PURPLE,
            "other scans",
            ("12 real scans", "13 super-resolution", "14 cine", "15 many coils", "19 outside", "21 real effects"),
        ),
    ]
    for x, colour, title, chapters in groups:
        axis.text(x + 3.0, 8.2, title, ha="center", va="center", fontsize=12, color=colour)
        for number, name in enumerate(chapters):
            box(axis, x, 6.4 - 1.25 * number, 6.0, 1.1, name, colour)
        arrow(axis, (10, 10.7), (x + 3.0, 9.0), colour=colour)
    axis.text(10, 13.4, "the heart of the book", ha="center", va="top", fontsize=12, color=BLUE)
    return figure


DIAGRAMS: dict[str, Callable[[], Any]] = {
    "trajectory": trajectory,
    "unet": unet,
    "cascade": cascade,
    "sense": sense,
    "grappa": grappa,
    "super_resolution": super_resolution,
    "dual_unet": dual_unet,
    "book": book,
}


def save(figure: Any, path: Path) -> None:
    """Write a figure as SVG, the same bytes each time."""
    mri.replace_file(path, lambda partial: figure.savefig(partial, format="svg", metadata={"Date": None}))
    plt.close(figure)


if __name__ == "__main__":
    plt.rcParams.update({"svg.hashsalt": "book", "svg.fonttype": "none", "font.family": "sans-serif"})
    for name, draw in DIAGRAMS.items():
        save(draw(), FOLDER / f"diagram_{name}.svg")
