"""What the training loop needs besides itself: checkpoints, compilation, averaging, the adversary."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import importlib.util
import io
import math
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from mri_parts.basics import BadInput, choose, read_call, replace_file, write_call
from mri_parts.dataset import Sample, SliceDataset
from mri_parts.fourier import fft2c
from mri_parts.methods import Machine, Method, reconstruct, zero_filled
from mri_parts.metrics import LOSSES
from mri_parts.networks import as_channels, build_model, model_arguments
from mri_parts.processes import add_up, rank_and_size


def compressed_kspace(image: Tensor) -> Tensor:
    """The k-space of images of magnitude about 1, its range made small enough for a network.

    Args:
        image: (batch, h, w) magnitudes.
    Returns:
        (batch, 2, h, w): real and imaginary part; a sample of magnitude r has log(1 + 100 r) instead, and its phase.
    """
    kspace = as_channels(fft2c(image))
    size = kspace.square().sum(1, keepdim=True).clamp(min=1e-12).sqrt()  # the root has no slope at 0
    return kspace * (torch.log1p(100 * size) / size)


# What a discriminator looks at: from magnitudes (batch, h, w) to channels, and how many.
DOMAINS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "image": (lambda image: image[:, None], 1),
    "kspace": (compressed_kspace, 2),
}


class PatchDiscriminator(nn.Module):
    """Judges patches: is this magnitude image a reference, given the zero-filled one?

    Isola et al. 2017 (CVPR); spectral norm (Miyato et al. 2018, ICLR) keeps its slope bounded, which
    serves the least-squares and the Wasserstein form alike, with no gradient penalty.

    Args:
        features: channels after the first convolution.
        domain: one of DOMAINS: what it looks at, patches of the images or of their k-space.
    """

    def __init__(self, features: int = 32, domain: str = "image") -> None:
        super().__init__()
        self.view, channels = choose(DOMAINS, domain, "domain of an adversary")
        widths, strides = [2 * channels, features, 2 * features, 4 * features, 1], [2, 2, 2, 1]
        layers: list[nn.Module] = []
        for a, b, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            convolution = nn.Conv2d(a, b, 4, stride, padding=1)
            layers += [nn.utils.parametrizations.spectral_norm(convolution), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, image: Tensor, given: Tensor) -> Tensor:
        """image, given (batch, h, w) magnitudes -> a score per patch (batch, 1, h', w'), higher is more real."""
        return self.layers(torch.cat([self.view(given), self.view(image)], 1))

    def features(self, image: Tensor, given: Tensor) -> list[Tensor]:
        """What the layers make of an image on the way to the score, each (batch, channels, .., ..)."""
        x, found = torch.cat([self.view(given), self.view(image)], 1), []
        for layer in list(self.layers)[:-1]:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                found.append(x)
        return found


# What the discriminator minimises, given its scores of references and of reconstructions; what the
# generator minimises, given the scores of its reconstructions.
ADVERSARIAL: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # Mao et al. 2017, ICCV
    "least_squares": (
        lambda real, fake: ((real - 1).square() + fake.square()).mean() / 2,
        lambda s: (s - 1).square().mean(),
    ),
    # Arjovsky et al. 2017, ICML
    "wasserstein": (lambda real, fake: (fake - real).mean(), lambda s: -s.mean()),
}


def compile_convolutions(network: nn.Module, train_set: SliceDataset, machine: Machine) -> None:
    """Let torch.compile make the convolutions of a network of MODELS faster, where it can; else say why not.

    The convolutions only: the compiler does not gain with complex numbers and transforms. For the sizes of whole
    batches only: code for any size was wrong at some (PyTorch 2.13), the rest goes without.

    Args:
        network: on its device.
        train_set: on slices of its most frequent sizes the compiler is tried.
        machine: with the number of slices that the network gets at a time in training.
    """
    sizes = [train_set.size(i) for i in range(len(train_set))]
    try:
        for inner in getattr(network, "networks", None) or [network.network]:
            inner.compile(dynamic=False)
        with torch.random.fork_rng():
            for size, _ in Counter(sizes).most_common(3):
                batch = Sample.stack([train_set[sizes.index(size)]] * machine.batch_size).to(machine.device)
                reconstruct(network.train(), batch, machine.precision).sum().backward()
                with torch.inference_mode():
                    reconstruct(network.eval(), batch, machine.precision)
        torch.compiler.set_stance("eager_on_recompile")
    except Exception as error:  # the compiler raises whatever the tools below it lead it to
        torch.compiler.set_stance("force_eager")
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"torch.compile failed ({reason[:120]}): going on without it")
    network.zero_grad()


def step_hooks(optimizer: torch.optim.Optimizer, network: nn.Module, clip: float, ema: float) -> nn.Module:
    """Clip the gradients before every step, and follow the weights with a moving average after it.

    Args:
        clip: largest norm of the gradient; 0 leaves it.
        ema: share of the old average in the new one; 0 for none. It begins smaller, so that the first weights
            are soon forgotten.
    Returns:
        the network to use: a copy with the averaged weights, or `network` itself.
    """
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    if clip:

        def limit(*_: Any) -> None:
            nn.utils.clip_grad_norm_(weights, clip)

        optimizer.register_step_pre_hook(limit)
    if not ema:
        return network
    averaged = copy.deepcopy(network).requires_grad_(False)
    steps = 0

    @torch.no_grad()
    def follow(*_: Any) -> None:
        nonlocal steps
        # A resumed optimizer knows how many steps there were. It is asked once: on a GPU, asking means waiting.
        steps = steps + 1 if steps else int(optimizer.state[weights[0]]["step"])
        keep = min(ema, (1 + steps) / (10 + steps))
        for average, new in zip(averaged.parameters(), network.parameters()):
            average.lerp_(new, 1 - keep)

    optimizer.register_step_post_hook(follow)
    return averaged


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint of tensors and plain Python values in one step; see replace_file."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    replace_file(path, lambda partial: partial.write_bytes(buffer.getbuffer()))


def export_weights(checkpoint: str | Path, path: str | Path) -> None:
    """A small copy of a checkpoint for readers: weights as float16, parameters, history; no optimizer."""
    content = read_checkpoint(checkpoint)
    if lacking := {"epoch", "history", "seconds"} - set(content):
        raise BadInput(f"{checkpoint}: has no {', '.join(sorted(lacking))}: give the checkpoint.pt of a run")
    weights = {name: w.half() if w.is_floating_point() else w for name, w in content["model_state"].items()}
    kept = {name: content[name] for name in ("parameters", "epoch", "history", "seconds")}
    save_checkpoint(path, {"model_state": weights} | kept)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What save_checkpoint wrote, on the CPU. Only tensors and plain values: no code is executed.

    Raises:
        BadInput: missing, not a checkpoint, or one of another program.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise BadInput(f"{path}: no such checkpoint: check the path, or train first")
    try:
        with open(path, "rb") as file:  # torch's older format, and compressed parts, can ask for any memory
            zipped = file.read(4) == b"PK\3\4" and zipfile.ZipFile(file).infolist()
            if not zipped or any(part.compress_type != zipfile.ZIP_STORED for part in zipped):
                raise ValueError("not as torch.save writes it")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the broken bytes lead it to
        raise BadInput(f"{path}: not a checkpoint of train.py, or a damaged one: train again") from error
    if not isinstance(content, dict) or not {"model_state", "parameters"} <= set(content):
        raise BadInput(f"{path}: a checkpoint, but not one of train.py: choose another file")
    weights, parameters, history = content["model_state"], content["parameters"], content.get("history", [])
    if isinstance(weights, dict) and weights and all(str(name).startswith("module.") for name in weights):
        # as DataParallel and its like save a network
        weights = {str(name).removeprefix("module."): weight for name, weight in weights.items()}
        content = {**content, "model_state": weights}
    sound = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
    sound = sound and all(isinstance(w, Tensor) and w.is_contiguous() for w in weights.values())
    sound = sound and sum(w.nbytes for w in weights.values()) <= path.stat().st_size  # each is really in the file
    sound = sound and isinstance(parameters, dict) and isinstance(history, list)
    sound = sound and all(isinstance(value, bool | int | float | str) for value in parameters.values())
    needed = {"epoch", "train_loss", "val_ssim", "val_psnr"}
    if not sound or not all(isinstance(row, dict) and needed <= set(row) for row in history):
        raise BadInput(f"{path}: holds what train.py cannot have written: train again")
    try:
        return content | {"parameters": as_written_today(parameters)}
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


def as_written_today(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a run from before models and adversaries were written as calls, in today's form."""
    if "inner" not in parameters:
        return dict(parameters)
    values = {"upscale_factor": 0, **parameters}
    names = ("cascades", "consistency", "shared", "features", "levels", "stages", "dropout", "start", "frames")
    given = {name: values.pop(name) for name in ("inner", *names, "sensitivities") if name in values}
    given["upscale_factor"], values["upscale_factor"] = values["upscale_factor"], values["upscale_factor"] or 1
    model, inner = str(values["model"]), given.pop("inner")
    options = {"inner": inner} if inner and inner != model_arguments(model).get("inner") else {}
    own = model_arguments(write_call(model, options))
    options |= {name: value for name, value in given.items() if value and own.get(name, value) != value}
    form, weight, features = (values.pop(f"{n}", 0) for n in ("adversarial", "adversarial_weight", "perceptual_weight"))
    game = {"weight": weight} | ({"perceptual_weight": features} if features else {})
    return values | {"model": write_call(model, options), "adversary": write_call(form, game) if weight else ""}


def load_model(checkpoint: str | Path) -> nn.Module:
    """A ready network from what train.py saved.

    Args:
        checkpoint: checkpoint.pt or best.pt of a run folder, or a file of checkpoints/.
    Returns:
        the network in evaluation mode on the CPU. read_checkpoint tells with which parameters it was trained.
    Raises:
        BadInput: see read_checkpoint; or weights that do not fit the model that the file names.
    """
    content = read_checkpoint(checkpoint)
    model, weights = str(content["parameters"].get("model")), content["model_state"]
    # a broken file may ask for any size; some layers are made twice, so twice the weights and some are still right
    most = 2 * sum(w.numel() for w in weights.values()) + 1_000_000
    try:
        network = build_model(model, most=most)
        network.load_state_dict(weights)
    except BadInput as error:
        raise BadInput(f"{checkpoint}: {error}") from error
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        unfit = f"its weights do not fit model {model[:80]!r}"
        raise BadInput(f"{checkpoint}: {unfit}: it was written by another version, train again") from error
    return network.eval()


def copy_weights(checkpoint: str | Path, network: nn.Module) -> None:
    """Start `network` from the weights of a checkpoint of the same model.

    Raises:
        BadInput: see read_checkpoint; or the weights are of another model.
    """
    try:
        network.load_state_dict(read_checkpoint(checkpoint)["model_state"])
    except RuntimeError as error:
        raise BadInput(f"{checkpoint}: its weights are of another model: give its own parameters") from error


def vgg_features() -> nn.Module | None:
    """The convolutions of VGG-19 up to its last pooling; None unless torchvision and the weights are on this computer.

    Nothing is downloaded: the weights are looked for where torch.hub keeps them.
    """
    files = sorted(Path(torch.hub.get_dir(), "checkpoints").glob("vgg19-*.pth"))
    if not files or importlib.util.find_spec("torchvision") is None:
        return None
    import torchvision

    network: Any = torchvision.models.vgg19()
    network.load_state_dict(torch.load(files[0], map_location="cpu", weights_only=True))
    return network.features[:-1].eval().requires_grad_(False)


def roughness(image: Tensor) -> Tensor:
    """Anisotropic total variation per pixel of (batch, h, w) magnitudes: what tv_weight weighs."""
    return (image.diff(dim=-2).abs().sum() + image.diff(dim=-1).abs().sum()) / image.numel()


class Adversary:
    """The discriminator of adversarial training, with its optimizer.

    Args:
        form: one of ADVERSARIAL.
        weight: of its opinion beside the loss.
        perceptual_weight: of the distance in features, VGG's or the discriminator's; 0: none.
        lr: learning rate of the network that it judges.
        device: where it runs.
        domain: one of DOMAINS: where it compares, in images or in their k-space.
    """

    def __init__(
        self,
        form: str = "least_squares",
        weight: float = 0.005,
        perceptual_weight: float = 0.0,
        lr: float = 0.002,
        device: str = "cpu",
        domain: str = "image",
    ) -> None:
        self.own_loss, self.others_loss = choose(ADVERSARIAL, form, "adversarial form")
        self.weights = weight, perceptual_weight
        self.vgg = vgg_features() if perceptual_weight else None
        if self.vgg:
            self.vgg.to(device)
            # Mean and standard deviation of the pictures that it was trained on, by colour.
            colours = torch.tensor([(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)], device=device)
            self.colours = colours[..., None, None]
        self.discriminator = PatchDiscriminator(domain=domain).to(device)
        # Little momentum, as usual here: the other player moves.
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=lr / 4, betas=(0.5, 0.9))

    def doubt(self, image: Tensor, target: Tensor, given: Tensor) -> Tensor:
        """What the generator minimises besides its loss: low where its image passes for a reference.

        The opinion of the discriminator, and the distance of reconstruction and reference in a network's features:
        those of VGG where its weights are on this computer (Johnson et al. 2016, ECCV), else the discriminator's own
        (feature matching: Salimans et al. 2016, NeurIPS), which need no download and have seen MR images.

        Args:
            image, target, given: (batch, h, w) magnitudes of reconstruction, reference and zero-filled image.
        """
        adversarial, perceptual = self.weights
        loss = adversarial * self.others_loss(self.discriminator(image, given))
        if not perceptual:
            return loss
        if self.vgg:
            ours, theirs = ([self.vgg((x[:, None] - self.colours[0]) / self.colours[1])] for x in (image, target))
        else:
            ours, theirs = (self.discriminator.features(x, given) for x in (image, target))
        distances = [(a - b.detach()).abs().mean() for a, b in zip(ours, theirs)]
        return loss + perceptual * sum(distances) / len(distances)

    def learn(self, image: Tensor, target: Tensor, given: Tensor, share: float = 1.0) -> dict[str, Tensor]:
        """One step of the discriminator on a batch of magnitudes; returns how it did before the step.

        Args:
            image, target, given: (batch, h, w) reconstruction, reference and zero-filled image.
            share: see SameSizeBatches.plan.
        Returns:
            discriminator_loss, and discriminator_accuracy: the share of patches where the reference
            scores higher than the reconstruction (0.5 is guessing).
        """
        real, fake = self.discriminator(target, given), self.discriminator(image.detach(), given)
        loss = self.own_loss(real, fake)
        self.optimizer.zero_grad()
        (share * loss).backward()
        if rank_and_size()[1] > 1:
            for weights in self.discriminator.parameters():
                gradient: Any = weights.grad
                distributed.all_reduce(gradient)
                gradient /= rank_and_size()[1]
        self.optimizer.step()
        # Tensors: a number would make the GPU wait in every step.
        return {"discriminator_loss": loss.detach().double(), "discriminator_accuracy": (real > fake).double().mean()}

    def state_dict(self) -> dict[str, Any]:
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])


def count_parameters(network: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def read_adversary(call: str) -> dict[str, Any]:
    """What an adversary is called with, "least_squares(weight=0.005)" -> {"form": .., "weight": ..}; "" -> {}.

    Raises:
        BadInput: an unknown form, or an argument that it does not have.
    """
    if not call:
        return {}
    form, options = read_call(call, "adversary")
    choose(ADVERSARIAL, form, "adversarial form")
    for name in options:
        choose({"weight": None, "perceptual_weight": None, "domain": None}, name, f"argument of adversary {form}")
    choose(DOMAINS, str(options.get("domain", "image")), "domain of an adversary")
    for name, value in options.items():
        if name == "domain":
            continue
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise BadInput(f"adversary {call!r}: {name} {value!r}: use 0 or a positive number")
    return {"form": form} | options


def build_adversary(call: str, lr: float, device: str) -> Adversary | None:
    """An adversary as it is called, see read_adversary; None for ""."""
    options = read_adversary(call)
    return Adversary(**options, lr=lr, device=device) if options else None


class Loss:
    """What training minimises: the distance of magnitudes, and what else was asked for. It keeps an epoch's figures.

    Args:
        distance: one of LOSSES, by name or as it is called.
        tv_weight: of the roughness of the image; 0: none.
        adversary: that judges the image, or None.
        start: a method that fills nothing in, whose image the adversary sees too.
    """

    def __init__(
        self,
        distance: str = "ssim",
        tv_weight: float = 0.0,
        adversary: Adversary | None = None,
        start: Method = zero_filled,
    ) -> None:
        name, options = read_call(distance, "loss")
        self.distance = functools.partial(choose(LOSSES, name, "loss"), **options)
        self.tv_weight, self.adversary, self.start = tv_weight, adversary, start
        self.sums: Counter = Counter()

    def __call__(self, image: Tensor, batch: Sample) -> Tensor:
        """The loss of magnitudes (batch, [frames,] h, w): a scalar, times the batch's share of the step."""
        image, target = image / batch.peak, batch.target / batch.peak
        loss = self.distance(image, target)
        self._note({"train_loss": loss.detach().double(), "slices": 1}, batch)
        if self.tv_weight:
            loss = loss + self.tv_weight * roughness(image)
        if self.adversary:
            given = reconstruct(self.start, batch) / batch.peak
            loss = loss + self.adversary.doubt(image, target, given)
            self.seen = image.detach(), target, given, batch
        return batch.share * loss

    def after_step(self) -> None:
        """Let the adversary learn from the images that the network has just been judged by."""
        if self.adversary:
            image, target, given, batch = self.seen
            self._note(self.adversary.learn(image, target, given, batch.share), batch)

    def _note(self, figures: Mapping[str, Any], batch: Sample) -> None:
        slices = len(batch.target) if batch.share else 0
        self.sums.update({name: value * slices for name, value in figures.items()})

    def figures(self) -> dict[str, float]:
        """The means per slice since the last call, over all processes: train_loss, and the adversary's figures."""
        total, self.sums = add_up(self.sums), Counter()
        return {name: value / total["slices"] for name, value in total.items() if name != "slices"}


def training_warnings(history: Sequence[Mapping[str, float]]) -> list[str]:
    """What in the history of a run a reader of its figures should know: one line each."""
    found = []
    best = max(history, key=lambda row: row["val_ssim"])
    last = history[-1]
    if last["val_ssim"] < best["val_ssim"] - 0.05:
        found.append(
            f"training collapsed: validation SSIM {best['val_ssim']:.3f} after epoch {best['epoch']}, "
            f"{last['val_ssim']:.3f} after the last; best.pt holds the better weights"
        )
    if last.get("discriminator_accuracy", 0) > 0.98:
        found.append(
            f"the discriminator tells {100 * last['discriminator_accuracy']:.0f} % of the patches apart: "
            "the adversarial term has little to teach"
        )
    return found
