"""Networks from k-space to image, and the networks inside them. MODELS is what train.py's --model accepts."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mri_parts.basics import BadInput, choose, read_call
from mri_parts.classical import Acquisition, keep_measured, sense, slice_by_slice, total_variation
from mri_parts.fourier import center_crop, fft2c, ifft2c, rss_of_kspace, smooth_phase, squared_frequency

# Networks from channels to channels, any image size. The last layer of each is called `last`.


def _pad(x: Tensor, multiple: int) -> Tensor:
    """Pad to a multiple, so that every halving comes out even; the network crops at its end."""
    return nn.functional.pad(x, (0, -x.shape[-1] % multiple, 0, -x.shape[-2] % multiple), mode="replicate")


def _convolutions(inputs: int, outputs: int, dropout: float, slope: float = 0.2) -> nn.Sequential:
    """Twice: 3x3 convolution, instance norm, leaky ReLU, dropout."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.InstanceNorm2d(outputs),
            nn.LeakyReLU(slope),
            nn.Dropout2d(dropout),
        ]
    return nn.Sequential(*layers)


class Attention(nn.Module):
    """Weights between 0 and 1 for each channel, then for each place (Woo et al. 2018, ECCV).

    A channel's weight comes from its mean and its maximum, a place's from the mean and maximum over the channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 8, 4)
        self.channels = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.places = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, H, W) -> the same shape."""
        weights = self.channels(x.mean((-2, -1))) + self.channels(x.amax((-2, -1)))
        x = x * weights.sigmoid()[..., None, None]
        return x * self.places(torch.stack([x.mean(1), x.amax(1)], 1)).sigmoid()


class UNet(nn.Module):
    """The U-Net of fastMRI: image to image, any size.

    Ronneberger et al. 2015 (MICCAI), in the form of Zbontar et al. 2018 (arXiv 1811.08839): instance
    norm, leaky ReLU, average pooling down, transposed convolutions up. UNet(1, 1, 32, 4) has the
    7,756,097 parameters of the published baseline.

    Args:
        in_channels, out_channels: of the images.
        features: channels after the first convolution; doubled at each level.
        levels: how often the image is halved.
        dropout: probability that a feature map is dropped in training.
        slope: of the leaky ReLU below zero.
        attention: weigh channels and places at the coarsest level, see Attention.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: int = 16,
        levels: int = 4,
        dropout: float = 0.0,
        slope: float = 0.2,
        attention: bool = False,
    ) -> None:
        super().__init__()
        widths = [features * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(
            _convolutions(a, b, dropout, slope) for a, b in zip([in_channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(2 * width, width, 2, stride=2, bias=False),
                nn.InstanceNorm2d(width),
                nn.LeakyReLU(slope),
            )
            for width in reversed(widths[:-1])
        )
        self.merge = nn.ModuleList(_convolutions(2 * width, width, dropout, slope) for width in reversed(widths[:-1]))
        self.attention = Attention(widths[-1]) if attention else nn.Identity()
        self.last = nn.Conv2d(features, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) float -> (batch, out_channels, H, W)."""
        height, width = x.shape[-2:]
        if max(height, width) <= 2 ** len(self.up):  # the norm needs two pixels
            raise BadInput(f"levels {len(self.up)}: images of {height}x{width} cannot be halved so often: use fewer")
        x = _pad(x, 2 ** len(self.up))
        skipped = []
        for block in self.down[:-1]:
            x = block(x)
            skipped.append(x)
            x = nn.functional.avg_pool2d(x, 2)
        x = self.attention(self.down[-1](x))
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skipped.pop()], dim=1))
        return self.last(x)[..., :height, :width]


class ResidualBlock(nn.Module):
    """x + convolutions(x): 3x3 convolutions with PReLU between them (He et al. 2016, CVPR).

    Args:
        features: channels in and out.
        layers: convolutions.
        hidden: channels between them.
        norm: instance norm after each convolution. Off is better at full resolution (Lim et al. 2017, CVPR
            workshops): a norm throws away the scale that the image must keep.
        dropout: probability that a feature map is dropped in training, after the first convolution.
        convolution: nn.Conv2d, or SpaceTimeConv for sequences.
    """

    def __init__(
        self,
        features: int,
        layers: int = 2,
        hidden: int = 0,
        norm: bool = False,
        dropout: float = 0.0,
        convolution: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        hidden = hidden or features
        widths = [features, *[hidden] * (layers - 1), features]
        body: list[nn.Module] = []
        for number, (a, b) in enumerate(itertools.pairwise(widths)):
            last = convolution(a, b, 3, padding=1)
            body += [last, nn.InstanceNorm2d(b) if norm else nn.Identity()]
            if number < layers - 1:
                body += [nn.PReLU(), nn.Dropout2d(dropout) if dropout and number == 0 else nn.Identity()]
        self.body = nn.Sequential(*body)
        if not norm:  # a block starts as the identity, so that many can follow one another
            for weights in (last.weight, last.bias):
                nn.init.zeros_(weights)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(batch, features, H, W) -> the same shape."""
        return x + self.body(x)


def _stages(text: str) -> list[int]:
    """ "8x2 4x3" -> the layers of 8 blocks of 2 layers and 4 blocks of 3."""
    if not re.fullmatch(r"\s*([1-9]\d?x[1-9](\s+|$))+", text):
        raise BadInput(f"stages {text!r}: write blocks x layers, such as '8x2 4x3' or '12x2'")
    counts = [part.split("x") for part in text.split()]
    return [int(layers) for blocks, layers in counts for _ in range(int(blocks))]


class ResNet(nn.Module):
    """Residual network at full resolution: first convolution, residual blocks, last convolution.

    Args:
        in_channels, out_channels: of the images.
        features: channels of the first convolution; twice as many inside the blocks.
        stages: blocks x layers: "12x2" with 64 features has 1.77 million weights.
        dropout, convolution: see ResidualBlock.
        shuffle: side of the squares of pixels that become channels on the way in and pixels again on the way out
            (Shi et al. 2016, CVPR). 2 sees twice as far for a quarter of the work. Images, not sequences.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: int = 64,
        stages: str = "8x2 4x3",
        dropout: float = 0.0,
        convolution: type[nn.Conv2d] = nn.Conv2d,
        shuffle: int = 1,
    ) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.first = nn.Sequential(convolution(in_channels * shuffle**2, features, 3, padding=1), nn.PReLU())
        options: Any = {"dropout": dropout, "convolution": convolution}
        self.blocks = nn.Sequential(*(ResidualBlock(features, n, 2 * features, **options) for n in _stages(stages)))
        self.last = convolution(features, out_channels * shuffle**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) float -> (batch, out_channels, H, W)."""
        if self.shuffle == 1:
            return self.last(self.blocks(self.first(x)))
        height, width = x.shape[-2:]
        x = nn.functional.pixel_unshuffle(_pad(x, self.shuffle), self.shuffle)
        x = nn.functional.pixel_shuffle(self.last(self.blocks(self.first(x))), self.shuffle)
        return x[..., :height, :width]


class ReconResNet(nn.Module):
    """Residual network at a quarter of the resolution: 7x7 convolution, two strided convolutions down,
    residual blocks, two transposed convolutions up, 7x7 convolution; instance norm and PReLU throughout.

    After Chatterjee et al. 2022 (arXiv 2103.09203), who use 64 features, 14 or 34 blocks and spatial
    dropout of 0.2.

    Args:
        in_channels, out_channels: of the images.
        features: channels after the first convolution; doubled twice on the way down.
        stages: residual blocks x layers.
        dropout: probability that a feature map is dropped in training, inside the blocks.
    """

    def __init__(
        self, in_channels: int, out_channels: int, features: int = 24, stages: str = "14x2", dropout: float = 0.0
    ) -> None:
        super().__init__()

        def block(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
            return [convolution, nn.InstanceNorm2d(convolution.out_channels), nn.PReLU()]

        layers = block(nn.Conv2d(in_channels, features, 7, padding=3))
        for width in (features, 2 * features):
            layers += block(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1))
        layers += [ResidualBlock(4 * features, n, norm=True, dropout=dropout) for n in _stages(stages)]
        for width in (4 * features, 2 * features):
            layers += block(nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1))
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(features, out_channels, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) float -> (batch, out_channels, H, W)."""
        height, width = x.shape[-2:]
        return self.last(self.layers(_pad(x, 4)))[..., :height, :width]


class AlexNet(nn.Module):
    """Five convolutions at a quarter of the resolution, then pixel shuffle back; no way around them.

    The first layers of Krizhevsky et al. 2012 (NeurIPS), which were made to tell what is in a picture: 11x11 with a
    stride of 4, 5x5, and three times 3x3, with ReLU. Their pooling is left out, as an image has to come back.

    Args:
        in_channels, out_channels: of the images.
        features: channels after the first convolution, 96 there; the others keep their ratio to it.
        dropout: probability that a feature map is dropped in training, before the last layer.
    """

    def __init__(self, in_channels: int, out_channels: int, features: int = 96, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [features, 8 * features // 3, 4 * features, 4 * features, 8 * features // 3]
        layers: list[nn.Module] = []
        for a, b, side in zip([in_channels, *widths], widths, (11, 5, 3, 3, 3)):
            layers += [nn.Conv2d(a, b, side, padding=side // 2), nn.ReLU()]
        layers[0] = nn.Conv2d(in_channels, features, 11, stride=4, padding=4)
        self.layers = nn.Sequential(*layers, nn.Dropout2d(dropout))
        self.last = nn.Conv2d(widths[-1], 16 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) float -> (batch, out_channels, H, W)."""
        height, width = x.shape[-2:]
        return nn.functional.pixel_shuffle(self.last(self.layers(_pad(x, 4))), 4)[..., :height, :width]


INNER_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "resnet": ResNet,
    "recon_resnet": ReconResNet,
    "alexnet": AlexNet,
}

Axes = tuple[str, ...]
IMAGES: Axes = ("H", "W")  # of networks that name no others


def inner_network(call: str, in_channels: int, out_channels: int, axes: Axes = IMAGES, **settings: Any) -> nn.Module:
    """One of INNER_NETWORKS; its last layer starts at zero.

    Every network of this book predicts a correction: training starts from the zero-filled image.

    Args:
        call: as it is called, "unet(levels=3)"; see read_call.
        axes: of what goes through it: ("H", "W"), or ("frames", "H", "W") for networks that say so.
        settings: further arguments of the inner network, which win over those of the call.
    Raises:
        BadInput: an unknown name, or a network for other axes.
    """
    name, own = read_call(call, "inner network")
    network = choose(INNER_NETWORKS, name, "inner network")(in_channels, out_channels, **own | settings)
    if (takes := getattr(network, "axes", IMAGES)) != axes:
        raise BadInput(f"inner network {name!r} takes ({', '.join(takes)}), not ({', '.join(axes)}): choose another")
    nn.init.zeros_(network.last.weight)
    nn.init.zeros_(network.last.bias)
    return network


# Networks from measured k-space to an image: forward(kspace, mask, size). Each wraps an inner network.


def normalize(x: Tensor, clamp: float = math.inf) -> tuple[Tensor, Tensor, Tensor]:
    """Instance normalisation of fastMRI: (x - mean) / (std + 1e-11) over the last two axes.

    Args:
        x: (..., H, W) real.
        clamp: bound of the result's magnitude; fastMRI uses 6 for the network's input.
    Returns:
        normalised x, mean (..., 1, 1), std (..., 1, 1).
    """
    mean = x.mean((-2, -1), keepdim=True)
    centred = x - mean
    # by its definition: twice as fast as x.std
    std = (centred.square().sum((-2, -1), keepdim=True) / (math.prod(x.shape[-2:]) - 1)).sqrt()
    return (centred / (std + 1e-11)).clamp(-clamp, clamp), mean, std


def as_channels(image: Tensor) -> Tensor:
    """(batch, ...) complex -> (batch, 2, ...) real and imaginary part; networks see only these."""
    return torch.view_as_real(image).movedim(-1, 1)


def as_complex(channels: Tensor) -> Tensor:
    """(batch, 2, ...) -> (batch, ...) complex64, the inverse of as_channels."""
    return torch.view_as_complex(channels.float().movedim(1, -1).contiguous())


def zero_filling(kspace: Tensor, mask: Tensor) -> Tensor:
    """The inverse transform of what was measured; one of STARTS."""
    return ifft2c(kspace)


# What unrolled networks correct: (kspace, mask) -> image, both (batch, H, W). On simulated heads at 4x total variation
# that knows the phase is as good after 60 iterations of this weight as after 150 of the best one.
STARTS: dict[str, Callable[..., Tensor]] = {
    "zero_filled": zero_filling,
    "phase_tv": slice_by_slice(partial(total_variation, weight=0.004, iterations=60, imaginary=3.0)),
}


class Unrolled(nn.Module):
    """Inner network and data consistency in turn: x <- DC(x + network(x)), `cascades` times.

    One cascade of a U-Net is the book's default network; several are an unrolled optimisation, the
    single-coil form of the end-to-end variational network (Schlemper et al. 2018, IEEE TMI 37(2); Sriram et
    al. 2020, MICCAI). The image goes in as two channels (real, imaginary), divided by the largest
    magnitude of the zero-filled image and by its smooth phase, which come back at the end.

    Args:
        inner: one of INNER_NETWORKS, by name or as it is called.
        cascades: how often inner network and data consistency follow one another.
        consistency: hard puts the measured samples back; soft moves towards them by a learned step, one
            per cascade; none leaves them to the network. For coils also sense, see VariationalNetwork.
        shared: all cascades have the same weights.
        memory: channels that each cascade hands to the next beside the image, as recurrent inference machines do
            (Putzky and Welling 2017, arXiv 1706.04008).
        start: one of STARTS, as it is called: the first image. What a classical method has found already need not be
            learned, and away from the training data it is what remains.
        phase_width: of smooth_phase, which is taken out before the networks.
        settings: arguments of the inner network.
    """

    axes: tuple[str, ...] = ("H", "W")  # of the k-space of one slice that it takes
    inner_axes: tuple[str, ...] = ("H", "W")  # of what goes through the inner network
    CONSISTENCIES: tuple[str, ...] = ("hard", "soft", "none")
    STARTS = STARTS
    sense_weight: Tensor

    def __init__(
        self,
        inner: str = "unet",
        cascades: int = 1,
        consistency: str = "hard",
        shared: bool = False,
        memory: int = 0,
        start: str = "zero_filled",
        phase_width: float = 0.02,
        **settings: Any,
    ) -> None:
        super().__init__()
        choose(dict.fromkeys(self.CONSISTENCIES), consistency, "consistency")
        name, options = read_call(start, "start")
        function = choose(self.STARTS, name, "start")
        for argument in options:
            choose(_defaults(function), argument, f"argument of start {name}")
        self.start = partial(function, **options)
        if not 0 < phase_width <= 1:
            raise BadInput(f"phase_width {phase_width}: give a share of k-space, above 0 and up to 1")
        self.cascades, self.consistency, self.memory, self.phase_width = cascades, consistency, memory, phase_width
        channels = 2 + memory
        self.networks = nn.ModuleList(
            inner_network(inner, channels, channels, self.inner_axes, **settings)
            for _ in range(1 if shared else cascades)
        )
        if consistency == "soft":
            self.step = nn.Parameter(torch.full((cascades,), 2.0))  # sigmoid(2) = 0.88

    def forward(self, kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        """Reconstruct a batch.

        Args:
            kspace: (batch, H, W) complex, zero where not measured.
            mask: bool, broadcastable to kspace.
            size: (h, w) of the result.
        Returns:
            (batch, h, w) complex, in the units of the k-space.
        """
        return center_crop(self.unroll(self.start(kspace, mask), kspace, Acquisition(mask)), size)

    def unroll(self, seen: Tensor, kspace: Tensor, A: Acquisition, start: Tensor | None = None) -> Tensor:
        """All cascades, from a first image (batch, .., H, W) to the last one.

        The first network sees `seen`, and what it changes is `start`, by default the same. With maps in A, k-space and
        the result are (batch, coils, H, W): the network sees and changes what the coils see together, and consistency
        holds for each coil.
        """
        image = A.spread(seen) if start is None else start
        phase = smooth_phase(kspace if A.maps is None else fft2c(seen), self.phase_width)
        scale = seen.abs().flatten(1).amax(1).reshape(-1, *[1] * (seen.ndim - 1)) * phase
        kept = as_channels(seen).new_zeros(len(seen), self.memory, *seen.shape[1:])
        for cascade in range(self.cascades):
            network = self.networks[cascade % len(self.networks)]
            channels = as_channels(seen / scale)
            answer = network(torch.cat([channels, kept], 1) if self.memory else channels)
            change, kept = scale * as_complex(answer[:, :2]), answer[:, 2:]
            if self.consistency == "sense":
                seen = sense(kspace, A, self.sense_weight.exp(), 6, prior=seen + change)
                image = A.spread(seen)
                continue
            image = image + A.spread(change)
            if self.consistency == "hard":
                image = keep_measured(image, kspace, A.mask)
            elif self.consistency == "soft":
                image = keep_measured(image, kspace, A.mask, self.step[cascade].sigmoid())
            seen = A.combine(image)
        return image


class KSpaceNetwork(nn.Module):
    """Fills the gaps of k-space in k-space, and keeps the measured samples.

    k-space falls off steeply from its centre, so it is divided by a template that falls off alike; the
    smooth phase is removed, after which k(-f) is nearly the conjugate of k(f). Convolutions cannot look
    across the centre, so the mirrored k-space comes along as channels (the idea of virtual conjugate
    coils: Blaimer et al. 2009, MRM 61(1)): real, imaginary and mask, once as they are and once mirrored.

    Args: see Unrolled.
    """

    axes = ("H", "W")

    def __init__(self, inner: str = "unet", **settings: Any) -> None:
        super().__init__()
        self.network = inner_network(inner, 6, 2, **settings)

    def forward(self, kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        """(batch, H, W) complex k-space -> (batch, h, w) complex image; see Unrolled.forward."""
        phase = smooth_phase(kspace)
        spectrum = fft2c(ifft2c(kspace) * phase.conj())
        template = 1 / (1 + squared_frequency(kspace) / 0.02**2)
        template = template * (spectrum / template).abs().square().mean((-2, -1), keepdim=True).sqrt()
        known = mask.expand(kspace.shape)

        def mirrored(x: Tensor) -> Tensor:
            """x(-f): flipped about the centre of k-space, which is at n // 2."""
            shifts = [1 - n % 2 for n in x.shape[-2:]]
            return x.flip((-2, -1)).roll(shifts, (-2, -1))

        flat, there = as_channels(spectrum / template), known[:, None].float()
        twin = as_channels(mirrored((spectrum / template).conj()))
        filled = as_complex(self.network(torch.cat([flat, there, twin, mirrored(there)], 1)))
        image = ifft2c(spectrum + filled * template) * phase
        return center_crop(keep_measured(image, kspace, mask), size)


class MagnitudeNetwork(nn.Module):
    """From the magnitude of the zero-filled crop to the magnitude, as the U-Net baseline of fastMRI does.

    Zbontar et al. 2018, arXiv 1811.08839. The phase is thrown away, hence no data consistency is
    possible; input normalised per slice and clamped to +-6 standard deviations.

    Args:
        inner: one of INNER_NETWORKS.
        residual: the network predicts what to add to its input.
        settings: of the inner network; see Unrolled.
    """

    axes: tuple[str, ...] = ("H", "W")
    coil_axis: int | None = None

    def __init__(self, inner: str = "unet", residual: bool = False, **settings: Any) -> None:
        super().__init__()
        self.residual = residual
        self.network = inner_network(inner, 1, 1, **settings)

    def forward(self, kspace: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        """(batch, H, W) complex k-space -> (batch, h, w) real magnitude; the mask is not used."""
        x, mean, std = normalize(rss_of_kspace(kspace, size, self.coil_axis), clamp=6)
        y = self.network(x[:, None])[:, 0].float()
        return (x + y if self.residual else y) * std + mean


# What --model accepts: a network, and the values of its arguments where they differ from its class's.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "unet": partial(Unrolled, inner="unet"),
    "magnitude_unet": partial(MagnitudeNetwork, inner="unet"),
    "resnet": partial(MagnitudeNetwork, inner="resnet", residual=True),
    "alexnet": partial(MagnitudeNetwork, inner="alexnet", residual=True),
    "recon_resnet": partial(Unrolled, inner="recon_resnet"),
    "kspace_unet": partial(KSpaceNetwork, inner="unet"),
    "unrolled": partial(Unrolled, inner="unet(levels=3)", cascades=4),
}
# Parameters of train.py that a model moves: this one diverges at the rate that suits most.
MODEL_DEFAULTS: dict[str, dict[str, Any]] = {"resnet": {"lr": 0.0003}}


def model_axes(name: str) -> Axes:
    """The axes of one sample that a model of MODELS takes: ("H", "W"), ("coils", "H", "W") or ("frames", "H", "W")."""
    model = choose(MODELS, name, "model")
    axes: Axes = getattr(getattr(model, "func", model), "axes", IMAGES)
    return axes


def model_arguments(call: str) -> dict[str, Any]:
    """All arguments of a model and of the network inside it, with the values that they have in a call.

    Args:
        call: "unrolled(cascades=6, features=8)".
    Raises:
        BadInput: an unknown model or inner network; an argument that neither has.
    """
    name, given = read_call(call, "model")
    values = _defaults(choose(MODELS, name, "model"))
    if "inner" in values:
        inner, own = read_call(str(given.get("inner", values["inner"])), "inner network")
        values = _defaults(choose(INNER_NETWORKS, inner, "inner network")) | own | values | {"inner": inner}
        given = given | {"inner": inner}
    for argument in given:
        choose(dict.fromkeys(sorted(values)), argument, f"argument of model {name}")
    return values | given


def _defaults(function: Callable) -> dict[str, Any]:
    """Name -> default of those arguments of a function or class that have one."""
    found = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in found if one.default is not one.empty}


LARGEST_MODEL = 10**9  # weights
MOST_MODULES = 5_000
LARGEST_ARGUMENT = 10_000


@contextlib.contextmanager
def _bounded(call: str, most: int) -> Iterator[None]:
    """Stop the building of a network, of whatever class, where it gets more weights than `most`, or too many parts."""
    counts = Counter[str]()

    def count_weights(module: nn.Module, name: str, weights: Tensor | None) -> None:
        counts["weights"] += 0 if weights is None else weights.numel()
        if counts["weights"] > most:
            raise BadInput(f"model {call[:200]!r}: more than the {most:,} weights that it may have: make it smaller")

    def count_modules(module: nn.Module, name: str, inside: nn.Module | None) -> None:
        counts["modules"] += 1
        if counts["modules"] > MOST_MODULES:
            raise BadInput(f"model {call[:200]!r}: more than {MOST_MODULES:,} layers and blocks: make it smaller")

    hooks = (
        nn.modules.module.register_module_parameter_registration_hook(count_weights),
        nn.modules.module.register_module_module_registration_hook(count_modules),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def build_model(call: str, most: int = LARGEST_MODEL) -> nn.Module:
    """A fresh network, written as it is called: "unet", "unrolled(cascades=6, inner='resnet', stages='2x2')".

    Args:
        call: see model_arguments.
        most: weights that it may have; building stops there.
    Raises:
        BadInput: see model_arguments; values that the network cannot have, or too large a network.
    """
    for argument, value in model_arguments(call).items():
        if isinstance(value, int) and not 0 <= value <= LARGEST_ARGUMENT:
            raise BadInput(f"model {call[:200]!r}: {argument} {value}: use a number from 0 to {LARGEST_ARGUMENT}")
    name, given = read_call(call, "model")
    try:
        # First without memory. What cannot be done there, such as Tensor.item(), may work below, or fails there again.
        with _bounded(call, most), contextlib.suppress(RuntimeError), torch.device("meta"):
            MODELS[name](**given)
        with _bounded(call, most):
            network = MODELS[name](**given)
    except BadInput:
        raise
    except (IndexError, TypeError, RuntimeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise BadInput(f"model {call[:200]!r} cannot be built: {str(error).splitlines()[0]}") from error
    if not min((weights.numel() for weights in network.parameters()), default=0):
        raise BadInput(f"model {call[:200]!r}: a network without weights, or with empty ones: raise its numbers")
    return network
