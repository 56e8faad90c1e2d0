"""What metrics.json says, in words and as tables: how far a network is ahead, of which rival, of what is attainable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mri_parts.figures import format_table, method_name, show_table
from mri_parts.metrics import METRIC_STYLES, PARTS, interval, metric_cells
from mri_parts.networks import MODELS


def best_rivals(metrics: Mapping[str, Any], names: Sequence[str] = ("ssim", "psnr")) -> dict[str, str]:
    """Of each metric the best that learns nothing, against which a network's lead counts.

    Args:
        metrics: what metrics.json holds.
        names: of metrics of which more is better.
    Returns:
        metric -> method; without metrics that the run has not.
    """
    *others, network = metrics["methods"]
    # a network's name may go on: unet_4x_8x, modl+tv_sense
    rivals = [name for name in others if name != "attainable" and not name.startswith(tuple(MODELS))]
    known = [name for name in names if name in metrics["methods"][network]]
    return {m: max(rivals, key=lambda name: metrics["methods"][name][m]["mean"]) for m in known} if rivals else {}


def lead_lines(metrics: Mapping[str, Any]) -> list[str]:
    """How far the network is ahead of the best that learns nothing, or behind it, by each figure: a line each.

    Args:
        metrics: what metrics.json holds; runs before there were figures in the head have two lines.
    Returns:
        the lines; where the network is behind by any figure, a last one that says not to use it.
    """
    network, lines, better = list(metrics["methods"])[-1], [], dict[str, None]()
    for name, rival in best_rivals(metrics, ("ssim", "psnr", "ssim_head", "psnr_head")).items():
        found = metrics["paired"][f"{network} - {rival}"][name]
        low, high = found["ci95"]
        verdict = "ahead of" if low > 0 else "behind" if high < 0 else "not told apart from"
        metric, _, part = name.partition("_")
        title = f"{metric.upper()} {PARTS.get(part, 'of the whole image')}"
        lead = interval(found, METRIC_STYLES[metric][1])
        lines.append(f"{title}: {verdict} the best that learns nothing, {method_name(rival)}, {lead}")
        better |= {method_name(rival): None} if high < 0 else {}
    if better:
        lines.append(f"Do not use {method_name(network)} on data like these: {', '.join(better)} is ahead.")
    return lines


def share_cell(metrics: Mapping[str, Any], method: str, part: str = "") -> dict[str, str]:
    """A cell of a method's row: which share of the attainable gain it reached; nothing where that is not known."""
    ending = f"_{part}" if part else ""
    found = metrics.get("attained", {}).get(method, {})
    shares = [f"{found[m + ending]:.0%} {m.upper()}" for m in ("ssim", "psnr") if m + ending in found]
    return {"of the attainable gain": ", ".join(shares)} if shares else {}


def _metrics_blocks(metrics: Mapping[str, Any], by_acquisition: bool) -> list[tuple[str, list[dict[str, str]]]]:
    """The tables of metrics.json, each with its heading: the whole image, the head, the truth, each acquisition."""
    speed, blocks = metrics["seconds_per_slice"], []
    for part in ("", *PARTS):
        block = [
            {"": name} | metric_cells(found, part) | share_cell(metrics, name, part)
            for name, found in metrics["methods"].items()
        ]
        block += [{"": name} | metric_cells(found, part) for name, found in metrics["paired"].items()]
        if not part:
            for row in block[: len(metrics["methods"])]:
                row["ms per slice"] = f"{1000 * speed[row['']]:.0f}"
        if len(block[0]) > 1:  # older runs have the whole image only
            blocks.append((PARTS.get(part, "the whole image"), block))
    for kind, methods in metrics["per_acquisition"].items() if by_acquisition else ():
        blocks.append((kind, [{"": name} | metric_cells(found) for name, found in methods.items()]))
    return blocks


def _metrics_lines(metrics: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What stands above the figures of metrics.json, and the lines below them."""
    data = metrics["data"]
    above = (
        f"{data['volumes']} {'simulated ' if data['simulated'] else ''}validation volumes of {data['subjects']} "
        f"subjects, effective acceleration {data['effective_acceleration']:.2f}; per volume, data range = "
        "maximum of the volume; mean [95 % bootstrap interval over subjects]"
    )
    below = lead_lines(metrics)
    if data["subjects"] < data["volumes"]:
        below.append("Several volumes are of one subject: the intervals come from resampling whole subjects.")
    return above, below + [f"warning: {text}" for text in metrics.get("warnings", ())]


def metrics_table(metrics: Mapping[str, Any], by_acquisition: bool = False) -> str:
    """metrics.json as a table of text: mean [95 % interval] of each method, and the paired differences.

    Below the whole image come the head and the noise-free image, see PARTS, then how far the network is ahead.
    """
    (_, rows), *others = _metrics_blocks(metrics, by_acquisition)
    for heading, block in others:
        rows += [{}, {"": f"{heading}:"}, *block]
    above, below = _metrics_lines(metrics)
    return "\n".join([above, format_table(rows), *below])


def show_metrics(metrics: Mapping[str, Any], by_acquisition: bool = False) -> None:
    """Display metrics.json as HTML tables, the methods under the names that readers call them: see metrics_table."""
    above, below = _metrics_lines(metrics)
    print(above)
    for heading, block in _metrics_blocks(metrics, by_acquisition):
        rows = [{"method": " - ".join(map(method_name, row[""].split(" - ")))} | row for row in block]
        show_table([{key: cell for key, cell in row.items() if key} for row in rows], heading)
    print(*below, sep="\n")
