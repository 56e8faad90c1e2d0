"""Chapter 20: what images look like, learned once as a denoiser, and used for any scan."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mri_parts.basics import BadInput, read_numbers
from mri_parts.classical import Acquisition, _unit_scale, keep_measured
from mri_parts.figures import METHOD_STYLES
from mri_parts.fourier import center_crop, fft2c, ifft2c, smooth_phase
from mri_parts.methods import zero_filled
from mri_parts.networks import MODELS, _pad, as_channels, as_complex
from mri_parts.scanner import demo_data
from mri_parts.tasks import TASKS, Task, tuned_classical

# Image (batch, H, W) complex and the standard deviation of its noise -> image.
Denoise = Callable[[Tensor, float], Tensor]


class _Block(nn.Module):
    """x + convolution(ReLU(convolution(x))), without biases: twice the input gives twice the output."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.last = nn.Conv2d(features, features, 3, padding=1, bias=False)
        nn.init.zeros_(self.last.weight)  # starts as the identity, as ResidualBlock does

    def forward(self, x: Tensor) -> Tensor:
        """(batch, features, H, W) -> the same shape."""
        return x + self.last(self.first(x).relu())


class Denoiser(nn.Module):
    """Takes noise of a known level off a complex image: a residual U-Net on squares of 2 x 2 pixels.

    The image is almost real (its smooth phase is gone) and goes in as real and imaginary part, beside a map of the
    noise level; what comes out is added to it. The form is that of DRUNet (Zhang et al. 2021, arXiv 2008.13751), a
    hundred times smaller. No layer has a bias: so D(a x, a noise) = a D(x, noise), and a network without biases
    carries over to levels that it has not seen (Mohan et al. 2020, arXiv 1906.05478).

    Args:
        features: channels at half the resolution; one and a half times as many a level below, and twice as many below
            that.
        blocks: residual blocks of two convolutions at each level, on the way down and on the way up.
    """

    def __init__(self, features: int = 32, blocks: int = 2) -> None:
        super().__init__()
        widths = [features, features * 3 // 2, 2 * features]

        def level(width: int) -> nn.Sequential:
            return nn.Sequential(*(_Block(width) for _ in range(blocks)))

        self.first = nn.Conv2d(9, features, 3, padding=1, bias=False)
        self.down = nn.ModuleList(level(width) for width in widths)
        steps = [*itertools.pairwise(widths)]
        self.coarser = nn.ModuleList(nn.Conv2d(a, b, 2, 2, bias=False) for a, b in steps)
        self.finer = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2, bias=False) for a, b in steps)
        self.up = nn.ModuleList(level(width) for width in widths[:-1])
        self.last = nn.Conv2d(features, 8, 3, padding=1, bias=False)
        nn.init.zeros_(self.last.weight)  # training starts from the noisy image

    def forward(self, image: Tensor, noise: float | Tensor) -> Tensor:
        """Denoise a batch.

        Args:
            image: (batch, H, W) complex, any size.
            noise: standard deviation of the noise in the real and in the imaginary part, in the units of the image: a
                number, or one for each image (batch,).
        Returns:
            (batch, H, W) complex.
        """
        height, width = image.shape[-2:]
        x = nn.functional.pixel_unshuffle(_pad(as_channels(image), 8), 2)
        level = torch.as_tensor(noise, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
        x = self.first(torch.cat([x, level.expand(len(x), 1, *x.shape[-2:])], 1))
        skipped = []
        for number, blocks in enumerate(self.down):
            x = blocks(x)
            if number < len(self.coarser):
                skipped.append(x)
                x = self.coarser[number](x)
        for number in reversed(range(len(self.up))):
            x = self.up[number](self.finer[number](x) + skipped[number])
        change = nn.functional.pixel_shuffle(self.last(x), 2)[..., :height, :width]
        return image + as_complex(change)


def noise_levels(first: float, last: float, count: int) -> list[float]:
    """Noise levels that fall from the first to the last by the same factor in each step."""
    return [first * (last / first) ** (k / max(count - 1, 1)) for k in range(count)]


def _start(kspace: Tensor, mask: Acquisition | Tensor | None) -> tuple[Acquisition, Tensor, Tensor, Tensor]:
    """The acquisition, its samples in units of the zero-filled image's peak, that peak, and the smooth phase."""
    A = Acquisition.of(mask)
    measured, scale = _unit_scale(A, kspace, 0.0, "plug and play")
    return A, measured, scale, smooth_phase(measured if A.diagonal else fft2c(A.H(measured)))


def plug_and_play(
    kspace: Tensor,
    mask: Acquisition | Tensor | None,
    denoise: Denoise,
    iterations: int = 40,
    first: float = 0.4,
    last: float = 0.003,
    noise: float = 0.0,
    relaxation: float = 1.6,
    mirror: bool = False,
    watch: Callable[[Tensor, Tensor, float], None] | None = None,
) -> Tensor:
    """Splitting into prior and measurement (ADMM), with a denoiser in the place of the prior.

    In turn: take noise off the image, of a level that falls from iteration to iteration; put the measured samples back
    or, with `noise`, move towards them; remember how far the two disagreed. Plug and play: Venkatakrishnan et al. 2013
    (IEEE GlobalSIP); with a falling level: Zhang et al. 2021 (IEEE TPAMI 44(10), arXiv 2008.13751), who remember
    nothing; relaxation: Boyd et al. 2011 (Found. Trends Mach. Learn. 3(1)).

    Args:
        kspace: (batch, [coils,] H, W) complex, zero where not measured; the samples of the acquisition.
        mask: an Acquisition, or the mask of one coil: bool, broadcastable to kspace.
        denoise: (image (batch, H, W) complex, level) -> image, such as a Denoiser. Its images have a peak near 1 and
            no smooth phase.
        iterations: each one pass through the denoiser and one pair of FFTs; with coil maps some thirty pairs per coil.
        first, last: standard deviation that the denoiser is told of, in parts of the zero-filled image's peak.
        noise: of the measured samples, in the same unit; 0 keeps them exactly.
        relaxation: 1 takes the denoised image as it is, up to 2 goes beyond it.
        mirror: show the denoiser the image as it is, mirrored along either axis and along both, in turn, as it was
            trained: what it makes of one of them alone averages out (Terris et al. 2024, CVPR, arXiv 2312.01831).
        watch: called after every iteration with what the denoiser returned and this with the measured samples (both
            without scale and phase), and the level.
    Returns:
        (batch, H, W) complex image, in the units of the k-space.
    """
    A, measured, scale, phase = _start(kspace, mask)
    image = answer = A.H(measured) / A.gain
    disagreement = torch.zeros_like(image)
    levels = noise_levels(first, last, iterations)
    for number, (level, following) in enumerate(zip(levels, [*levels[1:], last])):
        axes = ((), (-1,), (-2,), (-2, -1))[number % 4 if mirror else 0]
        weight = level**2 / (level**2 + noise**2)
        clean = denoise(((image + disagreement) * phase.conj()).flip(axes), level).flip(axes) * phase
        beyond = torch.lerp(image, clean, relaxation)
        image = keep_measured(beyond - disagreement, measured, A, weight)
        disagreement = (following / level) ** 2 * (disagreement + image - beyond)
        if watch or level == levels[-1]:
            answer = keep_measured(clean, measured, A, weight)
        if watch:
            watch(clean * phase.conj(), answer * phase.conj(), level)
    return answer * scale


def posterior_samples(
    kspace: Tensor,
    mask: Acquisition | Tensor | None,
    denoise: Denoise,
    count: int = 8,
    steps: int = 20,
    first: float = 0.4,
    last: float = 0.01,
    seed: int = 0,
) -> Tensor:
    """Images that agree with a measurement and look like the images that the denoiser learned from, drawn at random.

    A diffusion model run backwards, from a good guess: the result of plug_and_play gets noise, and loses it again in
    small steps (Chung, Sim and Ye 2022, CVPR, arXiv 2112.05146). Each step asks the denoiser for the mean of all clean
    images behind the noisy one, puts the measured samples into that (Wang et al. 2023, arXiv 2212.00490), and draws the
    image of the next lower level around it (the ancestral sampling of Ho et al. 2020, arXiv 2006.11239, for noise that
    is only added). For MRI: Jalal et al. 2021 (arXiv 2108.01368), Chung and Ye 2022 (arXiv 2110.05243). The samples are
    those of the posterior as far as the first level makes the guess forgotten, the denoiser is the mean, and the
    steps are many; none of it holds exactly.

    Args:
        kspace: (H, W) complex, zero where not measured; the samples of the acquisition of one slice.
        mask: an Acquisition, or the mask of one coil: bool, broadcastable to kspace.
        denoise: as in plug_and_play; all samples go through it at once.
        count: images.
        steps: passes through the denoiser.
        first, last: noise levels, in parts of the zero-filled image's peak. A low first level stays near the guess.
        seed: of the noise.
    Returns:
        (count, H, W) complex images, in the units of the k-space. All of them hold the measured samples.
    """
    A, measured, scale, phase = _start(kspace, mask)
    random = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.view_as_complex(torch.randn(count, *phase.shape, 2, generator=random)).to(phase.device)

    image = plug_and_play(kspace[None], mask, denoise) / scale + first * draw()
    levels = noise_levels(first, last, steps)
    for level, following in zip(levels, [*levels[1:], 0.0]):
        guess = denoise(image * phase.conj(), level) * phase
        guess = keep_measured(guess, measured.expand(count, *measured.shape), A)
        kept = (following / level) ** 2  # of the noise that is there; the rest is drawn anew
        image = guess + kept * (image - guess) + following * math.sqrt(1 - kept) * draw()
    return image * scale


class PlugAndPlay(nn.Module):
    """A denoiser that the book's loop can train, and that reconstructs as plug_and_play when it is trained.

    In training it gets whole scans, adds noise of a random level, and is judged by what is left: it returns
    |x| + w |D(x + noise) - x|, whose squared distance to a reference |x| is w^2 times the squared error of the complex
    image. The weight w = (0.1 / level)^(1/2) keeps high levels from outweighing the low ones; at each level the best
    answer stays the mean of all clean images behind the noisy one. Half of the batches are mirrored along either axis.

    Args:
        features, blocks: of Denoiser.
        iterations, first, last: of plug_and_play.
    """

    axes = ("H", "W")
    LEVELS = (0.003, 1.0)  # lowest and highest noise of training, in parts of the image's peak

    def __init__(
        self, features: int = 32, blocks: int = 2, iterations: int = 40, first: float = 0.4, last: float = 0.003
    ) -> None:
        super().__init__()
        self.network = Denoiser(features, blocks)
        self.iterations, self.first, self.last = iterations, first, last

    def forward(self, kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        """(batch, H, W) complex k-space -> (batch, h, w): an image; in training the sum that is told above."""
        if self.training:
            return self.exam(kspace, size)
        image = plug_and_play(kspace, mask, self.network, self.iterations, self.first, self.last)
        return center_crop(image, size)

    def exam(self, kspace: Tensor, size: Sequence[int]) -> Tensor:
        """Of whole scans (batch, H, W): magnitude + weighted error of the denoised image, real (batch, h, w)."""
        image = ifft2c(kspace) * smooth_phase(kspace).conj()
        peak = image.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        mirrored = [axis for axis in (-2, -1) if torch.rand(()) < 0.5]
        low, high = map(math.log, self.LEVELS)
        level = torch.exp(low + (high - low) * torch.rand(len(image), device=image.device))
        clean = (image / peak).flip(mirrored)
        noise = level[:, None, None] * torch.view_as_complex(torch.randn(*clean.shape, 2, device=clean.device))
        error = (self.network(clean + noise, level) - clean).abs().flip(mirrored)
        return center_crop(image.abs() + peak * (0.1 / level[:, None, None]).sqrt() * error, size)


def whole_scans(settings: SimpleNamespace, given: Mapping[str, Any]) -> None:
    """Refuse what a denoiser cannot learn from: undersampled scans, or a loss of magnitudes that is no mean error."""
    if list(read_numbers(settings.train_accelerations, "train_accelerations")) != [1]:
        raise BadInput("train_accelerations: a denoiser learns from whole scans: leave it at 1")
    if settings.loss not in ("l1", "l2"):
        raise BadInput(f"loss {settings.loss!r}: a denoiser learns by its mean error: use l2 or l1")


METHOD_STYLES["plug_and_play"] = ("plug and play", 1)
MODELS["plug_and_play"] = PlugAndPlay
TASKS["denoising"] = Task(
    settings=dict(
        data="data/demo",
        model="plug_and_play",
        mask="random",
        acceleration=4.0,
        center_fraction=0.08,
        train_accelerations="1",
        loss="l2",
        epochs=36,
        batch_size=2,
        lr=0.001,
        ema=0.995,
    ),
    demo=demo_data,
    start=("zero_filled", zero_filled),
    baselines=tuned_classical,
    check=whole_scans,
)
