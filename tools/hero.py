"""Draw the moving picture of README: notebooks/pictures/hero.gif.

usage: python tools/hero.py

A full scan fills k-space line by line, and the image appears; a scan of fewer lines is over sooner, and the image
folds; the unrolled network of checkpoints/unrolled.pt unfolds it, cascade by cascade. Data: one slice of data/demo,
simulated, random lines at 4x.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this copy

import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import mri_utils as mri

PLACE = mri.ROOT / "notebooks" / "pictures" / "hero.gif"
VOLUME, SLICE = 5, 2  # of data/demo/val
TR = 0.5  # seconds a line
SIDE, HEAD, FOOT = 224, 30, 26  # pixels: of a panel, above it, below it
GREYS = 32  # a file of half the size, and no eye sees it
LONG, SHORT = 1800, 110  # milliseconds a frame stands


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(get_data_path(), f"fonts/ttf/DejaVuSans{'-Bold' * bold}.ttf")), size)


def panel(image: Tensor) -> Image.Image:
    """Values 0 to 1 as a square grey picture in GREYS steps."""
    steps = (image.clamp(0, 1) * (GREYS - 1)).round() * (255 / (GREYS - 1))
    return Image.fromarray(steps.byte().numpy()).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def frame(kspace: Tensor, image: Tensor, seconds: float, title: str, text: str) -> Image.Image:
    """k-space, image and scan clock, with a title over all and a line below."""
    sheet = Image.new("L", (2 * SIDE + 24, HEAD + SIDE + FOOT), 255)
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 7), title, 0, font(14, bold=True))
    draw.text((sheet.width - 8, 7), f"{seconds:4.1f} s", 0, font(14, bold=True), anchor="ra")
    for number, picture in enumerate((panel(kspace), panel(image))):
        sheet.paste(picture, (8 + number * (SIDE + 8), HEAD))
    draw.text((8, HEAD + SIDE + 6), text, 0, font(12))
    steps = [value * (GREYS - 1) // 255 * 255 // (GREYS - 1) for value in range(256)]  # letters as few greys too
    return sheet.point(steps)


def story() -> list[tuple[Image.Image, int]]:
    """All frames, each with the milliseconds that it stands."""
    volume = mri.read_folder(mri.demo_data() / "val")[VOLUME]
    sample = mri.Sample.stack([mri.SliceDataset([volume], "random", 4, 0.08)[SLICE]])
    full, mask, peak = volume.kspace(SLICE), sample.mask[0, 0], volume.maximum
    size, width = sample.target.shape[1:], full.shape[-1]
    scale = full.abs().amax()

    def shown(kspace: Tensor) -> Tensor:
        """Four decades of k-space; what is not measured is black."""
        return 1 + torch.log10((kspace.abs() / scale).clamp(min=1e-4)) / 4

    def scan(order: list[int], title: str, number: int) -> list[tuple[Image.Image, int]]:
        """`number` frames of a scan that measures the lines of `order`."""
        frames = []
        for step in range(number + 1):
            taken = order[: len(order) * step // number]
            kspace = torch.zeros_like(full)
            kspace[:, taken] = full[:, taken]
            image = mri.center_crop(mri.ifft2c(kspace), size).abs() / peak
            text = f"{len(taken)} of {width} lines measured"
            frames.append(
                (frame(shown(kspace), image, TR * len(taken), title, text), LONG if step == number else SHORT)
            )
        return frames

    every = list(range(width))
    frames = scan(every, "every line", 16)
    kept = [line for line in every if mask[line]]
    frames += scan(kept, f"{len(kept) / width:.0%} of the lines", 8)
    network = mri.load_model(mri.ROOT / "checkpoints" / "unrolled.pt")
    cascades = network.cascades
    for number in range(1, cascades + 1):
        network.cascades = number
        image = mri.reconstruct(network, sample)[0]
        found = mri.fft2c(image.to(torch.complex64))
        figures = f"SSIM {mri.ssim(sample.target[0], image, peak):.2f}"
        text = f"cascade {number} of {cascades}: {figures}, {len(kept)} of {width} lines measured"
        pictures = shown(found * scale / found.abs().amax()), image / peak
        stands = 2 * LONG if number == cascades else LONG // 2
        frames.append((frame(*pictures, TR * len(kept), "a network unfolds", text), stands))
    return frames


def main() -> None:
    frames, times = zip(*story())
    palette = [frame.convert("P", palette=Image.Palette.ADAPTIVE, colors=GREYS) for frame in frames]
    palette[0].save(PLACE, save_all=True, append_images=palette[1:], duration=times, loop=0, optimize=True)
    print(f"{PLACE.relative_to(mri.ROOT)}: {len(frames)} frames, {PLACE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
