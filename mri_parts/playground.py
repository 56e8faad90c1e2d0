"""Chapter 00: every choice of an accelerated scan at once, as one interactive picture."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_parts.basics import ROOT, BadInput
from mri_parts.checks import look_at_all
from mri_parts.classical import guessed_share, lost_and_invented, unmeasured
from mri_parts.dataset import Sample, SliceDataset
from mri_parts.figures import compare, explore, log_magnitude, method_name, psf_image
from mri_parts.fourier import center_crop, ifft2c
from mri_parts.masks import mask_kinds
from mri_parts.methods import Method, reconstruct, tv_method, whole_image, zero_filled
from mri_parts.metrics import nmse, psnr, ssim
from mri_parts.scanner import demo_data
from mri_parts.training import load_model, read_checkpoint
from mri_parts.volumes import Volume, read_folder

CLASSICAL_CHOICES = ("zero-filled", "total variation")


def single_coil_networks() -> list[str]:
    """Names of the files in checkpoints/ whose networks reconstruct single images of one coil."""
    trained = {path.stem: read_checkpoint(path)["parameters"] for path in sorted((ROOT / "checkpoints").glob("*.pt"))}
    return [name for name, own in trained.items() if own.get("task", "single_coil") == "single_coil"]


@functools.cache
def chosen_method(name: str) -> Method:
    """A reconstruction by its name in the menu; a network is loaded when it is first chosen."""
    if name == "zero-filled":
        return zero_filled
    if name == "total variation":
        return tv_method(0.002, iterations=60)  # few, so that the picture answers at once
    return load_model(ROOT / "checkpoints" / f"{name}.pt")


def open_folder(data: str | Path) -> list[Volume]:
    """The volumes of a folder, or of its val/, after a look at each; data/demo is simulated when missing."""
    place = Path(data) if str(data) != "data/demo" else demo_data()
    volumes = read_folder(place / "val" if (place / "val").is_dir() else place)
    return look_at_all([volumes], 1.0).volumes[0]


def measure(
    volume: Volume, number: int, mask: str, acceleration: float, center_fraction: float, noise: float = 0
) -> Sample:
    """One slice as a scan with these settings would measure it: a batch of one.

    Args:
        volume: fully sampled, single-coil.
        number: of the slice.
        mask: a kind of MASKS.
        acceleration, center_fraction: as in sampling_mask.
        noise: added to the real and to the imaginary part of each measured sample: its standard deviation in
            percent of the volume's maximum. The transform is orthonormal, so a fully sampled image has as much.
    Raises:
        BadInput: the volume is undersampled already, or has coils or frames.
    """
    if volume.mask is not None:
        raise BadInput(f"{volume.path}: an undersampled test file has no reference to compare with")
    if volume.axes[1:] != ("H", "W"):
        raise BadInput(
            f"{volume.path}: has {volume.axes[1]}, the playground shows single images: see notebooks 14 and 15"
        )
    sample = Sample.stack([SliceDataset([volume], mask, acceleration, center_fraction)[number]])
    random = torch.randn(sample.kspace.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    # torch's complex normal numbers have a variance of 1 in both parts together
    sample.kspace += math.sqrt(2) * noise / 100 * volume.maximum * random * sample.mask
    return sample


def panels_of(sample: Sample, image: Tensor, truth: Tensor, name: str, maximum: float) -> dict[str, Tensor]:
    """What the playground shows of a slice and its reconstruction: {title: (H, W), 0 to 1}.

    Args:
        sample: a batch of one.
        image: its reconstruction over the whole field of view, (H, W) complex.
        truth: the fully sampled image, likewise.
        name: of the method, as in its menu.
        maximum: white.
    """
    mask, size = sample.mask[0], sample.kspace.shape[1:]
    # lines spread a point within its row, which is drawn over the whole height
    spread = psf_image(mask, mask.shape).expand(tuple(size))

    def shown(x: Tensor) -> Tensor:
        return center_crop(x, sample.target.shape[-2:]).abs() / maximum

    lost, invented = lost_and_invented(image, truth, mask)
    return {
        method_name(name): shown(image),
        "reference": sample.target[0] / maximum,
        "|error| x 3": 3 * (shown(image) - sample.target[0] / maximum).abs(),
        "no sample supports this, x 2": 2 * shown(unmeasured(image, mask)),
        "measured k-space (log)": torch.where(mask, 0.2 + 0.8 * log_magnitude(sample.kspace[0]), 0.0),
        "point-spread function (log)": spread,
        "lost x 3": 3 * shown(lost),
        "invented x 3": 3 * shown(invented),
    }


def playground(
    data: str | Path = "data/demo", volume_number: int = 5, slice_number: int = 2, method: str = "unet"
) -> None:
    """Show sliders for folder, volume, slice, mask, acceleration, centre fraction, noise and method.

    Args:
        data: folder of single-coil volumes in a format that read_folder knows, itself or in its val/.
        volume_number: which file to begin with, in the order of their names; the last one if there are fewer.
        slice_number: which slice to begin with; the last one if there are fewer.
        method: to begin with; "zero-filled" where checkpoints/ has no such network.
    """
    import ipywidgets as widgets

    folders = sorted({str(path.parent.parent) for path in Path("data").glob("*/val/*.h5")})
    names = [*CLASSICAL_CHOICES, *single_coil_networks()]
    folder = widgets.Combobox(value=str(data), options=folders, continuous_update=False, description="data folder")
    volume = widgets.Dropdown()
    slice_ = widgets.IntSlider(slice_number, 0, slice_number)
    opened: list[Volume] = []
    fault = ""

    def open_chosen(_change: Any = None) -> None:
        nonlocal opened, fault
        try:
            opened, fault = open_folder(folder.value), ""
        except BadInput as error:
            opened, fault = [], str(error)
        volume.options = [(v.path.stem, number) for number, v in enumerate(opened)]

    def end_slices(_change: Any = None) -> None:
        if volume.value is not None:
            slice_.max = len(opened[volume.value]) - 1

    @torch.inference_mode()
    def show(
        folder: str,
        volume: int | None,
        slice_: int,
        mask: str,
        acceleration: float,
        center_fraction: float,
        noise: float,
        method: str,
    ) -> tuple[Mapping[str, Tensor], str]:
        if fault or volume is None:
            raise BadInput(fault or "no volume is chosen: choose a folder with .h5 files")
        source = opened[volume]
        number = min(slice_, len(source) - 1)
        sample = measure(source, number, mask, acceleration, center_fraction, noise)
        whole, truth = whole_image(chosen_method(method), sample), ifft2c(source.cropped(number)[0])
        target, peak = sample.target[0], source.maximum
        image = center_crop(whole, target.shape).abs()
        figures = f"SSIM {ssim(target, image, peak):.3f}, PSNR {psnr(target, image, peak):.1f} dB"
        text = f"<b>effective acceleration {float(sample.acceleration[0]):.2f}x; {figures}</b>"
        text += f", NMSE {nmse(target, image):.4f}; guessed {guessed_share(whole, sample.mask[0]):.1%}"
        return panels_of(sample, whole, truth, method, peak), text

    volume.observe(end_slices, "value")
    folder.observe(open_chosen, "value")
    open_chosen()
    volume.value = min(volume_number, len(opened) - 1) if opened else None
    end_slices()
    explore(
        show,
        height=205,
        beside=True,
        folder=folder,
        volume=volume,
        slice_=slice_,
        mask=widgets.Dropdown(options=mask_kinds("H", "W"), value="random"),
        acceleration=widgets.IntSlider(4, 1, 16),
        center_fraction=widgets.FloatSlider(value=0.08, min=0.02, max=0.3, step=0.02),
        noise=widgets.FloatSlider(value=0, min=0, max=10, step=0.5, description="noise (%)"),
        method=widgets.Dropdown(options=names, value=method if method in names else names[0]),
    )


@torch.inference_mode()
def show_methods(
    names: Sequence[str],
    data: str | Path = "data/demo",
    volume_number: int = 5,
    slice_number: int = 2,
    acceleration: float = 4,
    center_fraction: float = 0.08,
) -> Any:
    """One slice, random lines, reconstructed by several methods of the playground's menu; returns the figure."""
    volumes = open_folder(data)
    volume = volumes[min(volume_number, len(volumes) - 1)]
    sample = measure(volume, min(slice_number, len(volume) - 1), "random", acceleration, center_fraction)
    images = {name: reconstruct(chosen_method(name), sample)[0] for name in names}
    return compare(sample.target[0], images, volume.maximum, width=9)
