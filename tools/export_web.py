"""Write what the browser edition of the playground needs of the book: heads, and networks as ONNX.

usage: pip install onnx && python tools/export_web.py

web/playground/heads.json names simulated validation heads with square k-space; beside it stands one file for each,
slice after slice, rows of complex64 as SliceDataset gives them. NAME-1.onnx, NAME-2.onnx ... are the cascades of a
shipped network without what surrounds them (the smooth phase, data consistency), which numerics.js does. The files are
committed, so that the site is built without torch; they change only with the simulated data and the shipped weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import mri_utils as mri

FOLDER = mri.ROOT / "web" / "playground"
SLICES = (1, 2, 3)
SIZE = 160
NETWORKS = ("unet", "unrolled")  # of checkpoints/, with hard data consistency


def write_heads() -> None:
    """The first validation head of each contrast whose k-space is SIZE x SIZE after the crop of the readout."""
    found: dict[str, dict] = {}
    for volume in mri.read_folder(mri.demo_data() / "val"):
        contrast = volume.path.stem.split("_")[-1].removeprefix("AX")
        slices = mri.SliceDataset([volume], "random", 1.0, 1.0)
        if contrast in found or slices[0].kspace.shape != (SIZE, SIZE):
            continue
        samples = torch.stack([slices[number].kspace for number in SLICES])
        samples.numpy().astype("<c8").tofile(FOLDER / f"{contrast}.c8")
        found[contrast] = {"name": volume.path.stem, "maximum": float(volume.maximum), "slices": list(SLICES)}
    (FOLDER / "heads.json").write_text(json.dumps({"size": SIZE, "heads": found}, indent=1) + "\n")


class Single(nn.Module):
    """A weight that is stored in half precision, as in the shipped checkpoint, and used in single precision."""

    def forward(self, stored: Tensor) -> Tensor:
        """float16 -> float32."""
        return stored.float()


def write_network(name: str) -> float:
    """checkpoints/NAME.pt as ONNX, a file per cascade; returns the largest change of a weight by half precision."""
    networks = mri.load_model(f"checkpoints/{name}.pt").networks
    lost = max(float((p - p.half().float()).abs().max()) for p in networks.parameters())
    for number, network in enumerate(networks, 1):
        for layer in list(network.half().modules()):
            for weight, _ in list(layer.named_parameters(recurse=False)):
                parametrize.register_parametrization(layer, weight, Single(), unsafe=True)
        torch.onnx.export(
            network.eval(),
            (torch.zeros(1, 2, SIZE, SIZE),),
            FOLDER / f"{name}-{number}.onnx",
            dynamo=False,
            do_constant_folding=False,
            input_names=["image"],
            output_names=["change"],
            opset_version=17,
        )
    return lost


if __name__ == "__main__":
    np.seterr(all="raise")
    write_heads()
    for name in NETWORKS:
        print(f"{name}: half precision changes a weight by {write_network(name):.1e} at most")
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
