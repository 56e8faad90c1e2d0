"""How fast is it? Prints, side by side: this book, PyPI's fastmri 0.3.0 and sigpy, and the machine's limits.

usage: python tests/benchmark.py [--repeats 5] [--slices 8] [--batch 2] [--workers 0] [--folder FOLDER]

Medians of alternated repeats, so that a busy moment hits all alike. One core (or one GPU where there is one; that
part has not been run on a GPU yet). Random k-space in files of 640x368, the size of fastMRI's knee data: the time
does not depend on what the image shows. Never a test: a figure depends on the machine. At most five minutes.
"""

import argparse
import functools
import math
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from skimage.metrics import structural_similarity

import mri_utils as mri

try:
    from fastmri.data.mri_data import SliceDataset
    from fastmri.data.subsample import create_mask_for_mask_type
    from fastmri.data.transforms import UnetDataTransform
    from fastmri.models import Unet
except ImportError:
    sys.exit("benchmark.py: needs the package it compares with: pip install --no-deps fastmri==0.3.0")

SIZE = (640, 368)
CROP = (320, 320)
SAMPLING = {"mask": "random", "acceleration": 4.0, "center_fraction": 0.08}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# precision and whether compiled; not every CPU computes in bfloat16, or any faster
WAYS = [("float32", False), ("bfloat16", False)] + [("bfloat16", True)] * (DEVICE == "cuda")


def seconds(work, clock=time.perf_counter if DEVICE == "cuda" else time.process_time):
    """Time of one call: of the core, so that neighbours count little; with a GPU, of the clock on the wall."""
    start = clock()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def alternate(candidates, repeats):
    """Name -> median seconds; each is run once for warming up, then all in turn."""
    times = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, work in candidates.items():
            spent = seconds(work)
            if repeat:
                times[name].append(spent)
    return {name: statistics.median(spent) for name, spent in times.items()}


def show(title, unit, figures, work, reference):
    """A table of `work` units per second, and how many times the reference each is."""
    print(f"\n{title}")
    for name, spent in figures.items():
        print(f"  {name:58s}{work / spent:10.1f} {unit}/s{figures[reference] / spent:8.2f} x")


def write_files(folder, slices):
    """Two files of random k-space that looks like k-space: strong in the centre."""
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        kspace = torch.randn((slices, *SIZE), dtype=torch.complex64, generator=generator)
        rows, columns = (torch.linspace(-1, 1, n) for n in SIZE)
        kspace = kspace / (0.01 + rows[:, None] ** 2 + columns**2) * 1e-6
        mri.write_volume(
            folder / "files" / f"{name}.h5", kspace, target_size=CROP, acquisition="CORPD_FBK", patient_id=name
        )


def fastmri_transform():
    """From a slice to what fastmri's U-Net takes."""
    masks = create_mask_for_mask_type("random", [SAMPLING["center_fraction"]], [int(SAMPLING["acceleration"])])
    return UnetDataTransform("singlecoil", masks)


def data_path(folder, repeats):
    """Slices per second from file to masked k-space, all that a worker does here, and on to what fastMRI's ends at."""
    files = folder / "files"
    raw = mri.read_folder(files)
    cached = mri.cache_volumes(raw, folder / "cache")
    sets = {
        "this book, raw files": mri.SliceDataset(raw, *SAMPLING.values(), seed=0),
        "this book, cache": mri.SliceDataset(cached, *SAMPLING.values(), seed=0),
    }
    reference = "fastmri: its SliceDataset and UnetDataTransform"
    theirs = SliceDataset(files, challenge="singlecoil", transform=fastmri_transform())
    count = len(theirs)

    def read(dataset):
        return lambda: [dataset[i] for i in range(count)]

    def to_image(dataset):
        def work():
            for i in range(count):
                sample = dataset[i]
                mri.normalize(mri.zero_filled_rss(sample.kspace[None, None], sample.mask, CROP), 6)

        return work

    candidates = {reference: read(theirs)}
    candidates |= {f"{name}, masked k-space": read(dataset) for name, dataset in sets.items()}
    candidates |= {f"{name}, normalised zero-filled image": to_image(dataset) for name, dataset in sets.items()}
    figures = alternate(candidates, repeats)
    show("Data path, 640x368, one core; fastmri ends at the image", "slices", figures, count, reference)
    return count / figures["this book, raw files, masked k-space"], count / figures["this book, cache, masked k-space"]


def trainer(model, precision, compiled=False):
    """A network of this book at 32 features: a training step on a Sample, and its inference."""
    mri.choose_machine(DEVICE, precision=precision)
    network = mri.build_model(f"{model}(features=32)").to(DEVICE)
    for inner in (getattr(network, "networks", None) or [network.network]) if compiled else []:
        inner.compile(dynamic=False)
    optimizer = torch.optim.RMSprop(network.parameters(), 0.001)

    def step(sample):
        torch.backends.cudnn.allow_tf32 = precision != "float32"
        optimizer.zero_grad()
        torch.nn.functional.l1_loss(mri.reconstruct(network, sample, precision), sample.target).backward()
        optimizer.step()

    return step, torch.inference_mode()(lambda sample: mri.reconstruct(network, sample, precision))


def fastmri_trainer():
    """The same for fastmri's U-Net on (images, targets), in float32 as in its default loop.

    On a GPU that is float32 with convolutions in TF32, as PyTorch has them by default.
    """
    network = Unet(1, 1, chans=32, num_pool_layers=4).to(DEVICE)
    optimizer = torch.optim.RMSprop(network.parameters(), 0.001)

    def step(images, targets):
        torch.backends.cudnn.allow_tf32 = True
        optimizer.zero_grad()
        torch.nn.functional.l1_loss(network(images[:, None])[:, 0], targets).backward()
        optimizer.step()

    return step, torch.inference_mode()(lambda images: network(images[:, None]))


def training(batch, repeats):
    """Images per second of a training step and of inference at 320x320, U-Nets of 32 features, data at hand."""
    kspace = torch.randn(batch, *CROP, dtype=torch.complex64, device=DEVICE)
    mask = mri.sampling_mask("random", CROP, 4, 0.08, 0).to(DEVICE)
    kspace, target = kspace * mask, kspace.abs()
    known = mask.expand(batch, 1, CROP[1])
    sample = mri.Sample(kspace, known, target, *(torch.ones(batch, device=DEVICE) for _ in range(4)))
    reference = "fastmri: its Unet, 7.8 million weights, float32"
    step, infer = fastmri_trainer()
    steps, images = {reference: lambda: step(target, target)}, {reference: lambda: infer(target)}
    kinds = {"magnitude_unet (levels 4)": "magnitude_unet", "unet (complex, data consistency)": "unet"}
    for kind, model in kinds.items():
        for precision, compiled in WAYS:
            own_step, own_infer = trainer(model, precision, compiled)
            name = f"this book, {kind}, {precision}{', compiled' * compiled}"
            steps[name] = functools.partial(own_step, sample)
            images[name] = functools.partial(own_infer, sample)
    figures = alternate(steps, repeats)
    weights = mri.count_parameters(mri.build_model("magnitude_unet(features=32)"))
    title = f"Training, 320x320, batch {batch}, data at hand (magnitude_unet: {weights} weights)"
    show(title, "images", figures, batch, reference)
    show("Inference, the same", "images", alternate(images, repeats), batch, reference)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        steps[reference]()
    return counter.get_total_flops() / batch, figures, batch


def end_to_end(folder, batch, workers, figures):
    """One epoch over the files on disk, as train.py and fastmri's loop take it, after one step for warming up."""
    dataset = mri.SliceDataset(mri.read_folder(folder / "files"), *SAMPLING.values(), seed=0)
    loader = mri.make_loader(dataset, batch, True, workers)
    precision, compiled = WAYS[-1] if DEVICE == "cuda" else WAYS[0]
    own_step, _ = trainer("magnitude_unet", precision, compiled)
    their_step, _ = fastmri_trainer()
    their_set = SliceDataset(folder / "files", challenge="singlecoil", transform=fastmri_transform())
    kept = {"num_workers": workers, "persistent_workers": workers > 0}  # as ours: they start before the epoch
    their_loader = torch.utils.data.DataLoader(their_set, batch, shuffle=True, **kept)

    def own_epoch():
        for sample in mri.training_batches(loader, DEVICE):
            own_step(sample)

    def their_epoch():
        for sample in their_loader:
            their_step(sample.image.to(DEVICE), sample.target.to(DEVICE))

    own, reference = f"this book, magnitude_unet, {precision}{', compiled' * compiled}", "fastmri: its Unet, float32"
    own_step(next(mri.training_batches(loader, DEVICE)))
    next(iter(their_loader))
    their_step(*(torch.rand(batch, *CROP, device=DEVICE) for _ in range(2)))
    spent = {reference: seconds(their_epoch, time.perf_counter), own: seconds(own_epoch, time.perf_counter)}
    show(f"End to end, one epoch from disk, batch {batch}, {workers} workers", "images", spent, len(dataset), reference)
    alone = next(t for name, t in figures.items() if "magnitude" in name and name.endswith(own.split(", ", 2)[2]))
    print(f"  the steps alone would take {100 * alone / batch * len(dataset) / spent[own]:.0f} % of this book's epoch")


def limits(flops, figures, batch, repeats):
    """What the machine could do: matrix products, convolutions and copies, and how near the training comes."""
    n = 4096 if DEVICE == "cuda" else 1024
    a, b = (torch.randn(n, n, device=DEVICE) for _ in range(2))
    block = torch.empty(2**26, device=DEVICE)
    channels, side = 128, 80  # of the U-Net's third level, where no step is short of work
    maps = torch.randn(batch, channels, side, side, device=DEVICE)
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(DEVICE)
    work = {"product": lambda: a @ b, "copy": lambda: block.clone()}
    work |= {"convolution": torch.inference_mode()(lambda: layer(maps))}
    spent = alternate(work, repeats)
    rates = {"product": 2 * n**3, "convolution": 2 * batch * (3 * channels * side) ** 2}
    rates = {name: count / spent[name] for name, count in rates.items()}
    print(
        f"\nThe machine in float32: matrix products {rates['product'] / 1e9:.1f} Gflop/s ({n}x{n}), "
        f"3x3 convolutions {rates['convolution'] / 1e9:.1f} Gflop/s ({channels} channels of {side}x{side}), "
        f"copies {2 * block.numel() * 4 / spent['copy'] / 1e9:.1f} GB/s (read and written)"
    )
    for name, step in figures.items():
        if "magnitude" in name or "fastmri" in name:
            share = flops * batch / step / max(rates.values())
            print(f"  {name:58s}{flops / 1e9:7.1f} Gflop per training image: {100 * share:5.1f} % of the higher rate")


def plan(raw_rate, cached_rate, figures, batch, total=100e12, processes=64, slices_per_step=16):
    """What a data set of 100 TB asks of disks and network, from the figures above."""
    file, record = 8 * math.prod(SIZE) + 4 * math.prod(CROP), 8 * CROP[0] * SIZE[1] + SIZE[1] + 4 * math.prod(CROP)
    slices = total / file
    step = min(spent for name, spent in figures.items() if "magnitude" in name)
    rate = batch / step  # images per second of one process
    weights = 4 * mri.count_parameters(mri.build_model("magnitude_unet(features=32)"))
    steps = rate / slices_per_step
    traffic = 2 * weights * steps / 1e6
    print(
        f"\nA plan for {total / 1e12:.0f} TB of 640x368, {processes} processes as fast as this ({rate:.2f} images/s):"
    )
    lines = [
        f"{slices / 1e6:.1f} million slices of {file / 1e6:.2f} MB",
        f"the cache: {slices * record / 1e12:.1f} TB, {slices * record / 1e12 / processes:.2f} TB a process",
        f"to fill it: {slices / raw_rate / processes / 3600:.1f} hours, one core a process",
        f"meanwhile the shared disks deliver {raw_rate * file * processes / 1e9:.2f} GB/s",
        f"to train: {rate * record / 1e6:.1f} MB/s a process from its own disk",
        f"one core reads the cache {cached_rate / rate:.1f} times as fast as the process trains",
        f"one epoch: {slices / rate / processes / 86400:.1f} days",
        f"gradients: {weights / 1e6:.0f} MB a step, {traffic:.1f} MB/s a process at {slices_per_step} slices a step",
    ]
    print("\n".join("  " + line for line in lines))


def looking(folder, repeats):
    """The look at a file before training: its middle slice, read and judged, and a line of every other."""
    volume = mri.read_folder(folder)[0]
    candidates = {
        "reading the slice": lambda: volume.kspace(len(volume) // 2),
        "the look at a slice, with reading": lambda: mri.look(volume),
        f"opening a file of {len(volume)} slices, and their central lines": lambda: mri.read_volume(
            volume.path
        ).fingerprints(),
        "for comparison: ifft2c": lambda: mri.ifft2c(volume.kspace(len(volume) // 2)),
    }
    print(f"\nOne look at a file of {SIZE[0]}x{SIZE[1]}, median (least)")
    times = {name: [] for name in candidates}
    for _ in range(4 * repeats):
        for name, work in candidates.items():
            times[name].append(1000 * seconds(work))
    for name, spent in times.items():
        print(f"  {name:58s}{statistics.median(spent):10.1f} ms ({min(spent):.1f})")


def quality(slices, repeats):
    """SSIM of a volume: ours on the device against scikit-image's."""
    target, noise = (torch.rand(slices, *CROP, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    prediction = target + 0.1 * noise
    there = target.to(DEVICE), prediction.to(DEVICE)

    def theirs():
        return (
            sum(
                structural_similarity(t, p, data_range=float(target.max()))
                for t, p in zip(target.numpy(), prediction.numpy())
            )
            / slices
        )

    candidates = {"scikit-image": theirs, f"this book, {DEVICE}": lambda: mri.ssim(*there)}
    show(
        f"SSIM of 320x320 slices (difference {abs(theirs() - mri.ssim(*there)):.1e})",
        "slices",
        alternate(candidates, repeats),
        slices,
        "scikit-image",
    )


def classical(slices, repeats):
    """Total variation of a volume and coil maps of a slice beside sigpy's, where sigpy is installed."""
    try:
        from sigpy.mri import app
    except ImportError:
        print("\nClassical methods: left out, they are compared with sigpy: pip install sigpy")
        return
    random, rows = torch.Generator().manual_seed(0), torch.linspace(-1, 1, CROP[0])
    envelope = 1 / (0.01 + rows[:, None] ** 2 + rows**2)
    kspace = torch.randn(slices, *CROP, dtype=torch.complex64, generator=random) * envelope
    mask = mri.sampling_mask(*("random", CROP), 4, 0.08, seed=0)
    measured, whole, iterations = kspace * mask, torch.ones(1, *CROP).numpy(), 100

    def their_tv():
        lines = mask.expand(CROP).float().numpy()[None]
        for y in measured.numpy():
            options = {"weights": lines, "max_iter": iterations, "show_pbar": False}
            app.TotalVariationRecon(y[None], whole, 0.01, **options).run()

    candidates = {"sigpy": their_tv}
    ours = mri.tv_method(0.01, iterations)
    candidates["this book"] = lambda: ours(measured, mask[None], CROP)
    title = f"Total variation of 320x320 slices, {iterations} steps of the primal-dual method each"
    show(title, "slices", alternate(candidates, repeats), slices, "sigpy")

    coils, lines = kspace[:8], torch.zeros(CROP[1], dtype=torch.bool)
    lines[CROP[1] // 2 - 12 : CROP[1] // 2 + 12] = True
    given = {"calib_width": 24, "thresh": 0.02, "kernel_width": 6, "crop": 0, "show_pbar": False}
    candidates = {"sigpy": lambda: app.EspiritCalib(coils.numpy(), **given).run()}
    candidates["this book"] = lambda: mri.espirit_maps(coils, lines, threshold=0.02, crop=0)
    show(f"ESPIRiT maps of {len(coils)} coils, 320x320", "slices", alternate(candidates, repeats), 1, "sigpy")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of everything, after one for warming up")
    parser.add_argument("--slices", type=int, default=8, help="in each of two files")
    parser.add_argument("--batch", type=int, default=2, help="images per training step")
    parser.add_argument(
        "--workers", type=int, default=8 if DEVICE == "cuda" else 0, help="processes that read, end to end"
    )
    parser.add_argument("--folder", help="for the files, 5 MB a slice (default: a temporary one)")
    parser.add_argument("--look", action="store_true", help="only the look at a file before training: seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "one CPU core"
    print(f"{name}, PyTorch {torch.__version__}, {arguments.repeats} alternated repeats, medians")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_files(Path(folder), arguments.slices)
        if arguments.look:
            return looking(Path(folder) / "files", arguments.repeats)
        rates = data_path(Path(folder), arguments.repeats)
        looking(Path(folder) / "files", arguments.repeats)
        quality(arguments.slices, arguments.repeats)
        classical(arguments.slices, min(arguments.repeats, 3))
        flops, figures, batch = training(arguments.batch, arguments.repeats)
        end_to_end(Path(folder), batch, arguments.workers, figures)
    limits(flops, figures, batch, arguments.repeats)
    plan(*rates, figures, batch)
    print(
        f"\nPeak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB"
        + (f", of the GPU {torch.cuda.max_memory_allocated() / 2**30:.2f} GB" if DEVICE == "cuda" else "")
        + f"; all of it took {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
