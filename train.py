# %% [markdown]
"""
# 04 Train a U-Net

How far does a network that trains for a few minutes undo the aliasing of notebook 03?

You will

- train a U-Net that keeps every measured sample,
- score it beside the zero-filled image and a tuned total-variation reconstruction,
- find everything about the run in one folder.

Data: the simulated brains of data/demo, made on first use; any folder with train/ and val/ in
fastMRI's layout will do. Time: about three minutes on four
CPU cores, half a minute more if the data must be simulated first.

train.py is this notebook without its pictures:

    python train.py --acceleration 8 --center-fraction 0.04 --out runs/unet_8x
"""

# %% tags=["active-ipynb"]
"""
import sys; sys.path[:0] = [".", ".."]  # where mri_utils.py may be, seen from here
"""

# %%
import math
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import torch

import mri_utils as mri

# %% tags=["active-ipynb"]
"""
import os; os.chdir(mri.ROOT)  # relative paths count from the repository, as in `python train.py`
"""

# %% [markdown]
"""
## Parameters

Name, type, default, meaning. Each line is also a flag of train.py (`--center-fraction 0.04`) and a
parameter of papermill (`-p center_fraction 0.04`). At the first reading leave them all as they are: a U-Net for
random lines at 4x, trained for 24 epochs.
"""

# %% tags=["parameters"]
data: str = ""  # folder with train/ and val/ ("": the task's demo data, simulated when missing)
task: str = "single_coil"  # what is reconstructed: single_coil, super_resolution, cine or multi_coil
model: str = ""  # unet, unrolled and others, see notebook 06 and 13 to 15 ("": the task's own, unet)
mask: str = ""  # kind of sampling mask, see notebook 02 ("": the task's own, random)
acceleration: float = 0.0  # samples asked for / samples taken (0: the task's own, 4)
center_fraction: float = 0.0  # share of k-space that is fully sampled around its centre (0: the task's own, 0.08)
train_accelerations: str = ""  # several for training, "4 8", drawn slice by slice; the one above is scored
upscale_factor: int = 0  # of super_resolution: 2 or 4 (0: the task's own, 2)
augment: bool = False  # vary orientation, matrix size and noise of the training slices
vary_phase: bool = False  # give them the phases of gradient echoes
inner: str = ""  # network inside the model: unet, resnet or recon_resnet ("": the model's own)
features: int = 0  # channels of its first convolution (0: the model's own)
levels: int = 0  # how often a U-Net halves the image (0: the model's own)
stages: str = ""  # blocks x layers of a residual network, "8x2 4x3" ("": the model's own)
cascades: int = 0  # how often network and data consistency follow one another (0: the model's own)
shared: bool = False  # all cascades share their weights
consistency: str = ""  # with the measured samples: hard, soft, none; of coils also sense ("": the model's own)
dropout: float = 0.0  # probability that a feature map is dropped in training (0: the model's own, 0 for most)
start: str = ""  # of a sequence's network: zero_filled or view_sharing ("": the model's own)
sensitivities: str = ""  # of the coils: learned or espirit ("": the model's own)
frames: int = 0  # of a sequence reconstructed together (0: the model's own, or all)
epochs: int = 0  # passes over the training slices (0: the task's own, 24)
batch_size: int = 0  # slices per step (0: the task's own, 4)
lr: float = 0.0  # learning rate at its highest (0: the model's own, 0.002 for most)
optimizer: str = "adam"  # adam, adamw or rmsprop
schedule: str = "cosine"  # learning rate over the steps: constant, step or cosine (with 5 % warm-up)
loss: str = ""  # of the magnitude images: l1, l2, ssim or l1_ssim ("": the task's own, ssim)
adversarial_weight: float = 0.0  # of a discriminator's opinion beside the loss; 0: none
adversarial: str = "least_squares"  # its form: least_squares or wasserstein
perceptual_weight: float = 0.0  # of the distance in features, VGG's or the discriminator's; 0: none
tv_weight: float = 0.0  # of the total variation of the image; 0: none
start_from: str = ""  # checkpoint whose weights training starts from (fine-tuning)
train_slices: int = 0  # train on this many slices only, spread evenly (0: all)
seed: int = 0  # of the weights, the order of the slices and the training masks
device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one
precision: str = ""  # of the network: float32, tf32 (on GPUs) or bfloat16 ("": bfloat16 on a GPU, else float32)
workers: int = -1  # processes that read slices (0: the main process does; -1: 4 with a GPU, else 0)
cache: str = ""  # folder on a fast disk or in memory for slices ready to train with ("": none)
skip_unreadable: bool = False  # go on without training files that turn unreadable, instead of stopping
accumulate: int = 1  # pieces that a batch is taken in, one after the other: less memory, same steps
clip: float = 0.0  # largest norm of the gradient of a step (0: any)
ema: float = 0.0  # share of the old in a moving average of the weights, which is then the model (0: none)
compile: bool = False  # let torch.compile make the convolutions faster, where it can
shards: int = 0  # groups of files, each for one process of torchrun (0: as many as processes)
evaluate: str = ""  # a checkpoint: reconstruct the files of `data` with it instead of training
resume: bool = False  # go on with the run in the folder `out`, or start it if there is none
out: str = ""  # folder for checkpoints, log, metrics, figures and reconstructions ("": runs/MODEL)

# %%
parameters = mri.read_parameters(globals())

# %% [markdown]
"""
## The network

A **U-Net** halves the image four times, with two 3x3 convolutions at each size, of 16, 32, 64, 128
and 256 channels, and doubles it back. At each size, what was there on the way down is joined to what
comes up (skip connections), so that detail survives while the coarse sizes see far. Two channels go
in and two come out, real and imaginary part. Around it, with F the Fourier transform, M the mask and
k the measured samples:

    x0     = F^-1 k                      zero-filled image
    x      = x0 + UNet(x0)               what the network adds
    result = F^-1 (M k + (1 - M) F x)    data consistency: what was measured is put back

In mri_utils.py these are `UNet`, `Unrolled` with one cascade, and `keep_measured`. Why these choices?

- **Complex in, complex out.** k-space is complex; a network that sees only magnitudes can neither use
  the phase nor be checked against the measurement. The slowly varying phase of each image, known from
  the centre of k-space, is removed first, so that the network need not learn every anatomy at every
  phase.
- **Residual, with data consistency.** The U-Net predicts what to add to the zero-filled image. Then
  the measured samples are put back, so it can only fill what was not measured.
- **SSIM loss.** It is what the table reports first. It has a price, which notebook 05 shows.
- **Adam, cosine schedule with warm-up.** The usual choice, not a tuned one: the learning rate falls to
  zero by itself, however long the training is.
- **The last epoch is scored, not the best.** Choosing the epoch on the volumes that we report would
  flatter us. `best.pt` is kept all the same.
"""


# %%
def load_data(settings):
    """The training slices (new masks every epoch) and the validation slices (one mask per volume)."""
    train, val = mri.read_data(settings)
    sampling = settings.mask, settings.acceleration, settings.center_fraction
    val_set = mri.SliceDataset(val, *sampling)
    several = mri.read_numbers(settings.train_accelerations, "train_accelerations")
    sampling = settings.mask, several or settings.acceleration, settings.center_fraction
    options = {"seed": settings.seed, "limit": settings.train_slices, "augment": settings.augment}
    options |= {"skip": settings.skip_unreadable, "vary_phase": settings.vary_phase}
    return mri.SliceDataset(train, *sampling, **options), val_set


# %% [markdown]
"""
One training slice: what was measured, what the network sees, what it should return.
"""

# %% tags=["active-ipynb"]
"""
mri.show_sample(load_data(mri.fill_in(SimpleNamespace(**parameters)))[0][0]);
"""

# %% [markdown]
"""
## One epoch

The whole of training: reconstruct a batch, compare magnitudes, step. Images are divided by the
largest value of their volume, so that all volumes weigh alike.

`torchrun --nproc-per-node=2 train.py` does the same in two processes, `--accumulate 2` in two pieces:
then `share` weighs each part of a batch so that the step is that of the whole batch. Otherwise it is 1.
"""


# %%
def train_epoch(network, adversary, loader, optimizer, scheduler, settings):
    """One pass over the training slices; returns the mean loss per slice, and the adversary's figures."""
    network.train()
    sums: Counter = Counter()
    for number, (batch, share) in enumerate(mri.training_batches(loader, settings.device), 1):
        peak = batch.peak
        image, target = mri.reconstruct(network, batch, settings.precision) / peak, batch.target / peak
        loss = mri.LOSSES[settings.loss](image, target)
        logged = {"train_loss": loss.detach().double()}
        if settings.tv_weight:
            loss = loss + settings.tv_weight * mri.roughness(image)
        if adversary:
            given = mri.reconstruct(mri.TASKS[settings.task].start[1], batch) / peak
            loss = loss + adversary.doubt(image, target, given)
        (share * loss).backward()
        if number % settings.accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        if adversary:
            logged |= adversary.learn(image, target, given, share)
        slices = len(peak) if share else 0
        sums.update({name: value * slices for name, value in logged.items()} | {"slices": slices})
    total = mri.add_up(sums)
    return {name: value / total["slices"] for name, value in total.items() if name != "slices"}


# %%
def score(method, val_set, settings, keep=True):
    """Every metric of every validation volume, the reconstructions (first process only), the seconds per slice."""
    found, images = [], []
    for index in mri.progress(mri.own_share(range(len(val_set.volumes))), "validation"):
        image, target, spent = mri.reconstruct_volume(method, val_set, index, settings)
        row = {name: metric(target, image) for name, metric in mri.METRICS.items()}
        found.append((row, spent, len(image)))
        images += [image] if keep else []
    rows, seconds, slices = zip(*mri.gather(found))
    return list(rows), mri.gather(images, by_all=False), sum(seconds) / sum(slices)


# %% [markdown]
"""
## The loop

After each epoch the checkpoint is written beside the old one and renamed: a run that is killed goes
on with `--resume` from its last full epoch. All randomness follows from the seed, the epoch and the
slice, so it goes on exactly as it would have. SIGTERM, with which a scheduler takes a machine back, ends
the run after the step at hand with exit status 75: start it again with `--resume`.
"""

# %%
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
SCHEDULES = {  # factor on the learning rate after the share t of all steps
    "constant": lambda t: 1.0,
    "step": lambda t: 1.0 if t < 0.8 else 0.1,
    "cosine": lambda t: t / 0.05 if t < 0.05 else 0.5 + 0.5 * math.cos(math.pi * (t - 0.05) / 0.95),
}


# %%
def prepare(settings, train_set):
    """The network, its optimizer and schedule, the discriminator if any, and the slices in batches."""
    torch.manual_seed(settings.seed)
    network = mri.build_model(vars(settings))
    if settings.start_from:
        mri.copy_weights(settings.start_from, network)
    network = mri.place(network, settings, train_set)
    fused = {"fused": True} if settings.device == "cuda" and settings.optimizer != "rmsprop" else {}
    optimizer = OPTIMIZERS[settings.optimizer](network.parameters(), lr=settings.lr, **fused)
    sharing = settings.workers, settings.shards, settings.accumulate
    loader = mri.make_loader(train_set, settings.batch_size, True, *sharing)
    factor, steps = SCHEDULES[settings.schedule], settings.epochs * len(loader) // settings.accumulate
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: factor(k / steps))
    adversary = mri.Adversary(settings) if settings.adversarial_weight else None
    return network, adversary, loader, optimizer, scheduler


# %%
def train(settings, train_set, val_set):
    """Train for settings.epochs epochs; returns the network and its history."""
    network, adversary, loader, optimizer, scheduler = prepare(settings, train_set)
    model = mri.step_hooks(optimizer, network, settings.clip, settings.ema)  # its average, if asked for
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    parts |= {"network": network} if settings.ema else {}
    parts |= {"adversary": adversary} if adversary else {}
    state, parallel = mri.RunState(settings, parts), mri.parallelize(network, settings.device)
    for epoch in range(state.epoch, settings.epochs):
        start, train_set.epoch = time.time(), epoch
        logged = train_epoch(parallel, adversary, loader, optimizer, scheduler, settings)
        rows, _, _ = score(model.eval(), val_set, settings, keep=False)
        figures = {f"val_{m}": mri.mean(row[m] for row in rows) for m in ("ssim", "psnr", "nmse")}
        state.save({"epoch": epoch + 1, **logged, **figures}, time.time() - start)
        print(state.line(), flush=True)
    return model, state


# %% [markdown]
"""
## Honest company

The network is scored beside two methods that learn nothing: zero filling, and total variation with
its weight tuned on training slices only.
"""


# %%
def score_all(settings, network, train_set, val_set):
    """Score the task's baselines and the network on the validation volumes; also their images."""
    sampling = settings.mask, settings.acceleration, settings.center_fraction
    tuning_set = mri.SliceDataset(train_set.volumes, *sampling, seed=settings.seed)
    task = mri.TASKS[settings.task]
    baselines, tuned = task.baselines(tuning_set, settings)
    print("tuned on training slices:", ", ".join(f"{name} {value:g}" for name, value in tuned.items()) or "nothing")
    methods = dict([task.start]) | baselines | {settings.model: network.eval()}
    scores = {name: score(method, val_set, settings) for name, method in methods.items()}
    metrics = mri.summarize_run(scores, val_set, settings, train_set)
    return metrics | tuned, {name: images for name, (_, images, _) in scores.items()}


# %% [markdown]
"""
## A trained network on other files

`python train.py --evaluate runs/unet/checkpoint.pt --data FOLDER --out runs/other` reconstructs every
file of a folder. Those with a reference are undersampled and scored; test files, which are
undersampled already and carry their mask, are reconstructed only.
"""


# %%
def reconstruct_folder(settings):
    """Write the reconstruction of every file; score those that have a reference. Returns the metrics, if any."""
    network, volumes = mri.load_trained(settings)
    sampling = settings.mask, settings.acceleration, settings.center_fraction
    test_files = mri.SliceDataset([v for v in volumes if v.mask is not None], *sampling)
    others = mri.SliceDataset([v for v in volumes if v.mask is None], *sampling)
    start, metrics = time.perf_counter(), {}
    for index in mri.progress(mri.own_share(range(len(test_files.volumes))), "test files"):
        image, _, _ = mri.reconstruct_volume(network, test_files, index, settings)
        mri.write_reconstruction(settings.out, test_files.volumes[index], image)
    if others.volumes:
        methods = dict([mri.TASKS[settings.task].start]) | {settings.model: network}
        scores = {name: score(method, others, settings) for name, method in methods.items()}
        metrics = mri.summarize_run(scores, others, settings)
        images = {name: stacks for name, (_, stacks, _) in scores.items()}
        mri.save_run(settings.out, metrics, images, others, network.history)
        mri.TASKS[settings.task].export(Path(settings.out), network, others)
        print(mri.metrics_table(metrics))
    seconds, slices = time.perf_counter() - start, len(test_files) + len(others)
    print(f"{settings.out}: {slices} slices, {slices / seconds:.1f} per second, from file to file")
    return metrics


# %% [markdown]
"""
## All together

Other chapters train by `import train; train.run(model=..., out=...)`: they change parameters, never
the loop.
"""


# %%
def check(settings):
    """Fill in what was left open, and refuse what cannot work, before anything is read or written."""
    mri.fill_in(settings)
    mri.choose(OPTIMIZERS, settings.optimizer, "optimizer")
    mri.choose(SCHEDULES, settings.schedule, "schedule")
    mri.choose(mri.LOSSES, settings.loss, "loss")
    mri.choose(mri.ADVERSARIAL, settings.adversarial, "adversarial form")
    mri.choose_device(settings)
    mri.check_numbers(settings)
    return settings


# %%
def train_and_score(settings):
    """Train a network, score it beside the other methods, write the run folder; returns metrics.json."""
    train_set, val_set = load_data(settings)
    print(mri.describe(settings, train_set, val_set))
    network, state = train(settings, train_set, val_set)
    left_out = train_set.without_unreadable()
    metrics, images = score_all(settings, network, train_set, val_set)
    metrics |= {"train_seconds": state.seconds, "parameters_count": mri.count_parameters(network)}
    metrics["warnings"] += left_out + mri.training_warnings(state.history)
    mri.save_run(settings.out, metrics, images, val_set, state.history)
    mri.TASKS[settings.task].export(Path(settings.out), network, val_set)
    print(mri.metrics_table(metrics), f"All of it, with figures: {settings.out}", sep="\n")
    return metrics


# %%
def run(**changes):
    """Do what the parameters above ask for, some of them changed; returns metrics.json."""
    for name in changes:
        mri.choose(parameters, name, "parameter")
    settings = check(SimpleNamespace(**{**parameters, **changes}))
    mri.join_processes(settings.device)
    metrics = reconstruct_folder(settings) if settings.evaluate else train_and_score(settings)
    mri.leave_processes()
    return metrics


# %%
if __name__ == "__main__":
    metrics = mri.run_or_explain(run)

# %% [markdown]
"""
The table's convention is fastMRI's: figures per volume, data range the largest value of the target
volume, then the mean over volumes with a 95 % bootstrap interval. The lines with a minus sign are differences, volume
by volume: the U-Net is ahead of total variation by 0.132 SSIM and 4.98 dB, and neither interval includes zero.

The learning curves, epoch by epoch:
"""

# %% tags=["active-ipynb"]
"""
mri.show_file(Path(metrics["parameters"]["out"], "figures", "curves.png"))
"""

# %% [markdown]
"""
One slice each of the volume on which the network did worst, of the one in the middle, and of the best one. Below: the
errors, three times as bright.
"""

# %% tags=["active-ipynb"]
"""
mri.show_file(Path(metrics["parameters"]["out"], "figures", "worst.png"))
"""

# %% tags=["active-ipynb"]
"""
mri.show_file(Path(metrics["parameters"]["out"], "figures", "median.png"))
"""

# %% tags=["active-ipynb"]
"""
mri.show_file(Path(metrics["parameters"]["out"], "figures", "best.png"))
"""

# %% [markdown]
"""
## What you did

- trained a U-Net that keeps every measured sample,
- scored it beside the zero-filled image and a tuned total-variation reconstruction,
- found everything about the run in one folder.

## Exercises

1. Set `consistency` to "none". Which error maps change, and where in k-space is the difference?
2. Train `magnitude_unet` with the same parameters and compare it with the network of exercise 1, which puts
   nothing back either. What does throwing the phase away cost?
3. Set `cascades` to 2 and `epochs` to half: the same time, better spent?

Before: [03 Aliasing](03_aliasing.ipynb). Next: [05 Evaluate](05_evaluate.ipynb).
"""
