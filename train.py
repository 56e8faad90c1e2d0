# %% [markdown]
"""
# 04 Train a U-Net

How far does a network that trains for a few minutes undo the aliasing of notebook 03?

You will

- train a U-Net that keeps every measured sample,
- score it beside the zero-filled image and a tuned total-variation reconstruction,
- find everything about the run in one folder.

Data: the simulated brains of data/demo, made on first use; any folder with train/ and val/ in
fastMRI's layout will do. Time: about eight minutes on two
CPU cores, one more if the data must be simulated first; the run that is stored here shared its core and took fifteen.

train.py is this notebook without its pictures:

    python train.py --acceleration 8 --center-fraction 0.04 --out runs/unet_8x
    python train.py --task cine --help     # the parameters of another task, with its own defaults
"""

# %%
import math
import time
from pathlib import Path

import mri_utils as mri  # before torch: how its threads wait is settled there
import torch

# %% [markdown]
"""
## Parameters

Name, type, default, meaning. Each line is also a flag of train.py (`--center-fraction 0.04`) and a
parameter of papermill (`-p center_fraction 0.04`). At the first reading leave them all as they are: a U-Net for
random lines at 4x, trained for 24 epochs. A task or a model moves some of these defaults (`--help` shows them as
they will be used); what you give wins. Rarer parameters are in the folded cell.
"""

# %% tags=["rare"]
# More about the data
train_accelerations: str = ""  # several for training, "4 8", drawn slice by slice; `acceleration` alone is scored
train_slices: int = 0  # train on this many slices only, spread evenly (0: on all)
upscale_factor: int = 1  # of task super_resolution: 2 or 4
augment: bool = False  # vary orientation, matrix size and noise of the training slices
vary_phase: bool = False  # give them the phases of gradient echoes
check: str = ""  # a folder: look at all its files and say what is wrong with them, instead of training
skip_unreadable: bool = False  # go on without files that are broken, or training files that turn so
cache: str = ""  # folder on a fast disk or in memory for slices ready to train with ("": none)
workers: int = -1  # processes that read slices (0: the main process does; -1: 4 with a GPU, else 0)
# More about learning
weight_decay: float = 0.0  # pull of the optimizer towards small weights
clip: float = 0.0  # largest norm of the gradient of a step (0: any)
ema: float = 0.0  # share of the old in a moving average of the weights, which is then the model (0: none)
tv_weight: float = 0.0  # of the total variation of the image, beside the loss
adversary: str = ""  # "least_squares(weight=0.005)" or "wasserstein(weight=0.005, perceptual_weight=0.05)" ("": none)
start_from: str = ""  # checkpoint whose weights training starts from (fine-tuning)
accumulate: int = 1  # pieces that a batch is taken in, one after the other: less memory, same steps
# More about computing
precision: str = "auto"  # of the network: float32, tf32 (on GPUs), bfloat16, or auto: bfloat16 where it is fast
compile: bool = False  # let torch.compile make the convolutions faster, where it can
shards: int = 0  # groups of files, each for one process of torchrun (0: as many as processes)
format: str = "h5"  # of the reconstructions, for example "nifti dicom"; .h5 is always written
evaluate: str = ""  # a checkpoint: reconstruct the files of `data` with it instead of training

# %% tags=["parameters"]
# The experiment
data: str = "data/demo"  # folder with train/ and val/; a task's own demo data are simulated when missing
task: str = "single_coil"  # single_coil, super_resolution, cine, multi_coil; or denoising, see notebook 20
model: str = "unet"  # name of a network, with its arguments in brackets where they differ; see notebook 06
mask: str = "random"  # kind of sampling mask, see notebook 02
acceleration: float = 4.0  # samples asked for / samples taken
center_fraction: float = 0.08  # share of k-space that is fully sampled around its centre
# The training
loss: str = "ssim"  # of the magnitude images: l1, l2, ssim or l1_ssim; or ssdu, without references
epochs: int = 24  # passes over the training slices
batch_size: int = 4  # slices per step
lr: float = 0.002  # learning rate at its highest
optimizer: str = "adam"  # adam, adamw or rmsprop
schedule: str = "cosine"  # learning rate over the steps: constant, step or cosine (with 5 % warm-up)
seed: int = 0  # of the weights, the order of the slices and the training masks
# The run
device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one
resume: bool = False  # go on with the run in the folder `out`, or start it if there is none
out: str = "runs/unet"  # folder for checkpoints, log, metrics, figures and reconstructions

# %%
defaults, asked = mri.read_given(globals(), mri.settle)

# %% [markdown]
r"""
## The network

A **U-Net** halves the image four times, with two 3x3 convolutions at each size, of 16, 32, 64, 128
and 256 channels, and doubles it back. Skip connections pass each encoder map to the decoder of the same size,
so that detail survives while the coarse sizes see far. Two channels go
in and two come out, real and imaginary part. Around it, with $F$ the Fourier transform, $M$ the mask and
$k$ the measured samples:

$$ x_0 = F^{-1} k, \qquad x = x_0 + \mathrm{UNet}(x_0), \qquad \hat{x} = F^{-1} \left( M k + (1 - M)\, F x \right) $$

First the zero-filled image; then the network's update, which adds to it; then **data consistency**: what was measured
is put back, and the network keeps its say only where nothing was.

In mri_utils.py these are `UNet`, `Unrolled` with one cascade, and `keep_measured`. Why these choices?

- **Complex in, complex out.** k-space is complex; a network that sees only magnitudes can neither use
  the phase nor be checked against the measurement. The slowly varying phase of each image, known from
  the centre of k-space, is removed first, so that the network need not learn every anatomy at every
  phase.
- **Residual, with data consistency.** The U-Net predicts what to add to the zero-filled image. Then
  the measured samples are put back, so it can only fill what was not measured.
- **SSIM loss.** The table reports SSIM first. Training for it has a price, which notebook 05 shows.
- **Adam, cosine schedule with warm-up.** The usual choice, not a tuned one: the learning rate falls to
  zero by itself, however long the training is.
- **The last epoch is scored, not the best.** Choosing the epoch on the volumes that we report would
  flatter us. `best.pt` is kept all the same.
"""


# %%
def load_data(settings):
    """The training slices (new masks every epoch) and the validation slices (one mask per volume)."""
    centre = mri.centre_share(settings.mask, settings.center_fraction)
    files = settings.task, settings.data, centre, settings.skip_unreadable, settings.cache
    hide = mri.hidden_share(settings.loss)  # of lines, where hidden lines stand in for references
    train, val, warnings = mri.read_data(*files, references=not hide)
    several = mri.read_numbers(settings.train_accelerations, "train_accelerations") or settings.acceleration
    train_set = mri.SliceDataset(
        train,
        *(settings.mask, several, settings.center_fraction),
        seed=settings.seed,
        limit=settings.train_slices,
        augment=settings.augment,
        vary_phase=settings.vary_phase,
        skip=settings.skip_unreadable,
        hide=hide,
    )
    val_set = mri.SliceDataset(val, settings.mask, settings.acceleration, settings.center_fraction)
    val_set.warnings = warnings
    return train_set, val_set


# %% [markdown]
r"""
## One epoch

Training is three steps over and over: reconstruct a batch, compare, step. The loss compares the magnitudes of the
reconstruction $\hat{x}$ and the reference $x$, divided by the largest value $L$ of their volume so that all volumes
weigh alike,

$$ \mathcal{L} = 1 - \mathrm{SSIM}\left( \frac{|\hat{x}|}{L}, \frac{|x|}{L} \right) $$

or, by `--loss`, their mean absolute (l1) or squared difference (l2), or l1 and SSIM together. An adversary, if there is
one, sits inside the loss.

With `--accumulate 2` a batch comes in two pieces, with `torchrun --nproc-per-node=2 train.py` each of two
processes takes its part: each piece knows its share of the step, so that the step is that of the whole batch.
"""


# %%
def train_epoch(network, loss, loader, optimizer, scheduler, machine):
    """One pass over the training slices; returns the mean loss per slice, and the adversary's figures."""
    network.train()
    for batch in mri.training_batches(loader, machine.device):
        image = mri.reconstruct(network, batch, machine.precision)
        loss(image, batch).backward()
        if batch.ends_step:
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            loss.after_step()
    return loss.figures()


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
def machine_of(settings):
    """Where training and scoring run, and how many slices go through the network at a time."""
    slices = math.ceil(settings.batch_size / settings.accumulate)
    return mri.Machine(settings.device, slices, settings.precision, settings.workers)


# %%
def prepare(settings, train_set):
    """The network, its loss, optimizer and schedule, and the slices in batches."""
    torch.manual_seed(settings.seed)
    network = mri.build_model(settings.model)
    learn = getattr(network, "learn_from", None)  # some take something from the training slices before the first step
    if settings.start_from:
        mri.copy_weights(settings.start_from, network)
    elif learn:
        learn(train_set)
    network = network.to(settings.device)
    if settings.compile:
        mri.compile_convolutions(network, train_set, machine_of(settings))
    options = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    options |= {"fused": True} if settings.device == "cuda" and settings.optimizer != "rmsprop" else {}
    optimizer = OPTIMIZERS[settings.optimizer](network.parameters(), **options)
    sharing = settings.workers, settings.shards, settings.accumulate
    loader = mri.make_loader(train_set, settings.batch_size, True, *sharing)
    factor, steps = SCHEDULES[settings.schedule], settings.epochs * len(loader) // settings.accumulate
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: factor(k / steps))
    adversary = mri.build_adversary(settings.adversary, settings.lr, settings.device)
    loss = mri.Loss(settings.loss, settings.tv_weight, adversary, mri.TASKS[settings.task].start[1])
    return network, loss, loader, optimizer, scheduler


# %%
def train(settings, train_set, val_set):
    """Train for settings.epochs epochs; returns the network and its history."""
    network, loss, loader, optimizer, scheduler = prepare(settings, train_set)
    model = mri.step_hooks(optimizer, network, settings.clip, settings.ema)  # its average, if asked for
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    parts |= {"network": network} if settings.ema else {}
    parts |= {"adversary": loss.adversary} if loss.adversary else {}
    state, parallel = mri.RunState(vars(settings), parts), mri.parallelize(network, settings.device)
    machine = machine_of(settings)
    for epoch in range(state.epoch, settings.epochs):
        start, train_set.epoch = time.time(), epoch
        figures = train_epoch(parallel, loss, loader, optimizer, scheduler, machine)
        rows = mri.score(model.eval(), val_set, machine, keep=False, quick=True).rows
        figures |= {f"val_{m}": mri.mean(row[m] for row in rows) for m in ("ssim", "psnr", "nmse")}
        state.save({"epoch": epoch + 1, **figures}, time.time() - start)
        print(state.line(), flush=True)
        mri.save_progress(state.folder, model, mri.TASKS[settings.task].start[1], val_set, machine)
    return model, state


# %% [markdown]
"""
## Rivals that learn nothing

The network is scored beside methods that learn nothing: zero filling, and total variation with its weight tuned on
training slices only, without and with the smooth phase that the network is told. Of simulated slices we also know what
is attainable: the measured samples as they are, the others guessed perfectly, but without their noise. Every figure
comes three times: of the whole image, as fastMRI has it, inside the head, without the air, and against the noise-free
image. Notebook 09 shows why.
"""


# %%
def score_methods(settings, methods, val_set, train_set=None):
    """Score methods on the validation volumes; returns the content of metrics.json, and their images."""
    metrics = mri.METRICS | mri.TASKS[settings.task].metrics
    scores = mri.score_each(methods, val_set, machine_of(settings), metrics)
    images = {name: scores[name].images for name in methods}
    return mri.summarize_run(scores, val_set, vars(settings), train_set), images


# %%
def score_all(settings, network, train_set, val_set):
    """Score the task's baselines, tuned on training slices, and the network."""
    sampling = settings.mask, settings.acceleration, settings.center_fraction
    known = [volume for volume in train_set.volumes if volume.has_reference]
    tuning_set = mri.SliceDataset(known or val_set.volumes, *sampling, seed=settings.seed)
    task, name = mri.TASKS[settings.task], mri.read_call(settings.model, "model")[0]
    baselines, tuned = task.baselines(tuning_set, machine_of(settings))
    listed = ", ".join(f"{name} {value:g}" for name, value in tuned.items()) or "nothing"
    print(f"tuned on {'training' if known else 'validation'} slices: {listed}")
    methods = dict([task.start]) | baselines | {name: network.eval()}
    metrics, images = score_methods(settings, methods, val_set, train_set)
    return metrics | tuned, images


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
    if Path(settings.out, "checkpoint.pt").exists():
        raise mri.BadInput(f"{settings.out}: holds a training run: choose another --out for the reconstructions")
    task, machine = mri.TASKS[settings.task], machine_of(settings)
    trained, network = mri.read_checkpoint(settings.evaluate), mri.load_model(settings.evaluate).to(machine.device)
    mri.tell_other_sampling(settings.evaluate, trained["parameters"], vars(settings))
    centre = mri.centre_share(settings.mask, settings.center_fraction)
    volumes, warnings = mri.read_files(settings.task, settings.data, centre, settings.skip_unreadable)
    sampling = settings.mask, settings.acceleration, settings.center_fraction
    test_files = mri.SliceDataset([v for v in volumes if not v.has_reference], *sampling)
    others = mri.SliceDataset([v for v in volumes if v.has_reference], *sampling)
    others.warnings = warnings
    start, metrics = time.perf_counter(), {}
    for index in mri.progress(mri.own_share(range(len(test_files.volumes))), "test files"):
        image, _, _ = mri.reconstruct_volume(network, test_files, index, machine)
        mri.write_reconstruction(settings.out, test_files.volumes[index], image, settings.format)
    if others.volumes:
        methods = dict([task.start]) | {mri.read_call(settings.model, "model")[0]: network}
        metrics, images = score_methods(settings, methods, others)
        mri.save_run(settings.out, metrics, images, others, trained["history"])
        task.export(Path(settings.out), network, others)
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
def settled(**given):
    """The parameters as they will be used; what cannot work is refused before anything is read or written."""
    settings = mri.settle(defaults, given)
    mri.choose(OPTIMIZERS, settings.optimizer, "optimizer")
    mri.choose(SCHEDULES, settings.schedule, "schedule")
    mri.Loss(settings.loss)  # refuses a loss that there is not
    mri.read_adversary(settings.adversary)
    mri.output_formats(settings.format)  # and a format that cannot be written
    chosen = mri.choose_machine(settings.device, settings.batch_size, settings.precision, settings.workers)
    settings.device, settings.precision, settings.workers = chosen.device, chosen.precision, chosen.workers
    return settings


# %%
def train_and_score(settings):
    """Train a network, score it beside the other methods, write the run folder; returns metrics.json."""
    train_set, val_set = load_data(settings)
    print(mri.describe(settings.data, train_set, val_set, machine_of(settings)))
    for line in val_set.warnings:
        print(f"warning: {line}", flush=True)
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
def run(**given):
    """Do what the parameters above ask for, some of them changed; returns metrics.json."""
    settings = settled(**asked | given)
    if settings.check:
        return mri.show_check(settings.check, settings.mask, settings.center_fraction)
    mri.join_processes(settings.device)
    metrics = reconstruct_folder(settings) if settings.evaluate else train_and_score(settings)
    mri.leave_processes()
    return metrics


# %%
if __name__ == "__main__":
    metrics = mri.run_or_explain(run)
