"""Chapter 13: more of k-space than was measured, from its centre."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mri_parts.basics import DEMO_FOLDER, BadInput, choose, read_call, write_call
from mri_parts.classical import keep_measured
from mri_parts.dataset import SliceDataset
from mri_parts.fourier import center_crop, fft2c, ifft2c, smooth_phase, squared_frequency
from mri_parts.methods import Machine, Method, zero_filled
from mri_parts.networks import (
    INNER_NETWORKS,
    MODEL_DEFAULTS,
    MODELS,
    MagnitudeNetwork,
    ResNet,
    _pad,
    as_channels,
    as_complex,
    inner_network,
    model_arguments,
)
from mri_parts.scanner import demo_data
from mri_parts.tasks import TASKS, Task
from mri_parts.volumes import DEFAULT_AXES


def bicubic(kspace: Tensor, size: Sequence[int], factor: int) -> Tensor:
    """Bicubic interpolation of the low-resolution magnitude image: what a viewer does when it enlarges.

    Every factor-th pixel of the zero-filled image is the image of the central block. Scikit-image interpolates
    between them, with the grids laid so that nothing shifts. Keys 1981, IEEE TASSP 29(6).

    Args:
        kspace: (batch, H, W) complex, measured in the central 1 / factor of either axis.
        size: (h, w) of the result.
        factor: 2 or 4.
    Returns:
        (batch, h, w) float32 magnitude.
    """
    from skimage import transform

    coarse = center_crop(ifft2c(kspace), size).abs()[..., ::factor, ::factor].cpu().numpy()
    grid = transform.AffineTransform(scale=1 / factor)
    fine = [transform.warp(image, grid, output_shape=tuple(size), order=3, mode="edge", clip=False) for image in coarse]
    return torch.from_numpy(np.stack(fine).astype(np.float32)).to(kspace.device)


class SRResNet(ResNet):
    """ResNet on the coarse grid of a low-resolution image, then pixel shuffle to the fine grid.

    The generator of Ledig et al. 2017 (CVPR): first and last convolution 9x9, residual blocks, one pixel
    shuffle per factor of two (Shi et al. 2016, CVPR); without batch norm, which does harm (Lim et al. 2017,
    CVPR workshops).

    Args:
        in_channels, out_channels, features, stages, dropout: as in ResNet.
        upscale_factor: 2 or 4: every second or fourth pixel of the input is looked at. Of a zero-filled image whose
            k-space was measured in the central block only, these pixels hold everything.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: int = 32,
        stages: str = "6x2",
        dropout: float = 0.0,
        upscale_factor: int = 2,
    ) -> None:
        super().__init__(in_channels, out_channels, features, stages, dropout)
        self.factor = int(choose({"2": 2, "4": 4}, str(upscale_factor), "upscale_factor"))
        self.first = nn.Sequential(nn.Conv2d(in_channels, features, 9, padding=4), nn.PReLU())
        larger: list[nn.Module] = []
        for _ in range(self.factor // 2):
            larger += [nn.Conv2d(features, 4 * features, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()]
        self.blocks.append(nn.Sequential(*larger))
        self.last = nn.Conv2d(features, out_channels, 9, padding=4)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) float -> (batch, out_channels, H, W)."""
        height, width = x.shape[-2:]
        return super().forward(_pad(x, self.factor)[..., :: self.factor, :: self.factor])[..., :height, :width]


class KSpaceSR(nn.Module):
    """Extends k-space beyond its measured central block, and keeps that block: super-resolution from k-space.

    The measured k-space comes in twice: as it is, and divided by the mean magnitude of fully sampled k-space at the
    same distance from the centre, a template taken from the training set, so that no frequency outweighs the others.
    Convolutions over k-space are products in the image: they cannot reach beyond the block. So the network works on
    the inverse transforms of both, an image and its edges, and the transform of what it returns is the new k-space
    (times the template it would learn fine detail more slowly). Scale and smooth phase come and go as in Unrolled;
    the measured samples are put back.

    Args: see Unrolled.
    """

    axes = ("H", "W")
    BINS = 32  # of the template from the centre to the middle of an edge; it goes on to the corners

    def __init__(self, inner: str = "unet", **settings: Any) -> None:
        super().__init__()
        self.network = inner_network(inner, 4, 2, **settings)
        self.template: Tensor
        self.register_buffer("template", torch.zeros(3 * self.BINS // 2 + 1))  # logarithms

    def _bins(self, kspace: Tensor) -> Tensor:
        """Where each sample of a k-space lies in the template: (H, W) float."""
        return 2 * self.BINS * squared_frequency(kspace).sqrt()

    def learn_from(self, dataset: Any, slices: int = 32) -> None:
        """Take the mean magnitude of fully sampled k-space, by distance from the centre, from a SliceDataset."""
        total, count = torch.zeros_like(self.template), torch.zeros_like(self.template)
        for index in np.linspace(0, len(dataset) - 1, min(slices, len(dataset))).astype(int):
            sample = dataset[index]  # another one where this cannot be read, if the data set skips such files
            kspace, _ = dataset.volumes[sample.volume].cropped(int(sample.slice))
            size, bins = kspace / ifft2c(kspace).abs().max(), self._bins(kspace).round().long().flatten()
            total.index_add_(0, bins, size.abs().flatten())
            count.index_add_(0, bins, torch.ones(len(bins)))
        filled = count > 0
        self.template[filled] = (total / count)[filled].clamp(min=1e-6).log()
        self.template[~filled] = self.template[filled].min()  # the last ones, and all gaps of a small matrix

    def forward(self, kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        """(batch, H, W) complex k-space -> (batch, h, w) complex image; see Unrolled.forward."""
        image = ifft2c(kspace)
        scale = image.abs().amax((-2, -1), keepdim=True) * smooth_phase(kspace)
        bins = self._bins(kspace)
        below = bins.long().clamp(max=len(self.template) - 2)
        template = torch.lerp(self.template[below], self.template[below + 1], bins - below).exp()
        edges = as_channels(ifft2c(fft2c(image / scale) / template))
        edges = edges / edges.square().mean((-3, -2, -1), keepdim=True).sqrt()
        new = self.network(torch.cat([as_channels(image / scale), edges], 1))
        return center_crop(keep_measured(image + scale * as_complex(new), kspace, mask), size)


def demo_sr() -> Path:
    """The demo data of super_resolution: 36 simulated heads with pixels of 0.9 mm and little noise."""
    return demo_data(DEMO_FOLDER.with_name("demo_sr"), 24, 12, slices=4, matrix=256, seed=4, wide=False, noise=0.004)


def own_mask(settings: SimpleNamespace, given: Mapping[str, Any]) -> None:
    """The mask that an upscale factor means; a network that is made for one factor gets that one."""
    factor = settings.upscale_factor
    choose({"2": None, "4": None}, str(factor), "upscale_factor")
    own = {"mask": "low_pass", "acceleration": float(factor**2), "center_fraction": 1 / factor**2}
    if any(given[name] != value for name, value in own.items() if name in given):
        raise BadInput(
            "mask, acceleration and center_fraction: super_resolution has its own: give upscale_factor instead"
        )
    vars(settings).update(own)  # the block is all there is
    name, options = read_call(settings.model, "model")
    if "upscale_factor" in model_arguments(settings.model):
        settings.model = write_call(name, options | {"upscale_factor": factor})


def bicubic_baseline(train_set: SliceDataset, machine: Machine) -> tuple[dict[str, Method], dict[str, float]]:
    """The baseline of super_resolution, for the factor of the slices' mask; nothing is tuned."""
    factor = round(math.sqrt(train_set.sampling[0][0]))
    return {"bicubic": lambda kspace, mask, size: bicubic(kspace, size, factor)}, {}


INNER_NETWORKS["srresnet"] = SRResNet
MODELS["srresnet"] = MODELS["srgan"] = partial(MagnitudeNetwork, inner="srresnet", residual=True)
MODEL_DEFAULTS["srgan"] = {"adversary": "least_squares(weight=0.005, perceptual_weight=0.05)"}
MODELS["kspace_sr"] = partial(KSpaceSR, inner="unet(features=12, levels=3)")
TASKS["super_resolution"] = Task(
    settings=dict(
        data="data/demo_sr",
        model="kspace_sr",
        mask="low_pass",
        acceleration=4.0,
        center_fraction=0.25,
        upscale_factor=2,
        loss="l1_ssim",
    ),
    demo=demo_sr,
    axes=DEFAULT_AXES[3],
    start=("sinc", zero_filled),
    baselines=bicubic_baseline,
    check=own_mask,
)
