"""Slices, undersampled on the fly, in batches of one size; a cache of them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import shutil
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_parts.basics import BadInput, replace_file
from mri_parts.fourier import center_crop, crop_readout, fft2c, ifft2c
from mri_parts.masks import sampling_mask, split_lines
from mri_parts.processes import gather, own_share, progress, rank_and_size, wait_for_all
from mri_parts.volumes import DEFAULT_AXES, Volume


@dataclass
class Sample:
    """One slice ready for a network, or a batch of slices of one size.

    Attributes:
        kspace: ([batch,] *axes) complex64, readout oversampling removed, zero where not measured.
        mask: bool, as many axes as kspace and broadcastable to it, true where the k-space is known: sampled,
            or never acquired and therefore zero in the reference as well.
        target: ([batch,] [frames ..,] h, w) float32 reference magnitude (zeros for test files), without coils.
        maximum: ([batch]) float32, the largest value of the target volume.
        acceleration: ([batch]) effective acceleration: acquired samples / samples kept.
        volume, slice: ([batch]) int, where the slice comes from.
        axes: of the k-space of one slice, such as ("coils", "H", "W").
        share: of a batch in training_batches: the part that its mean loss has in the step's; else 1.
        ends_step: whether it is the last piece of a step.
    """

    kspace: Tensor
    mask: Tensor
    target: Tensor
    maximum: Tensor
    acceleration: Tensor
    volume: Tensor
    slice: Tensor
    axes: tuple[str, ...] = DEFAULT_AXES[3][1:]
    share: float = 1.0
    ends_step: bool = True

    @property
    def peak(self) -> Tensor:
        """`maximum` of a batch, with axes added so that it broadcasts against `target`."""
        return self.maximum.reshape(-1, *[1] * (self.target.ndim - 1))

    def to(self, device: torch.device | str) -> Sample:
        """The same on another device."""
        return self._with(lambda field: getattr(self, field).to(device, non_blocking=True))

    def pin_memory(self) -> Sample:
        """The same in memory from which a GPU copies while it computes; the DataLoader calls it."""
        return self._with(lambda field: getattr(self, field).pin_memory())

    @staticmethod
    def stack(samples: Sequence[Sample]) -> Sample:
        """Many samples of one size -> one batch; the collate_fn of a DataLoader."""
        return samples[0]._with(lambda field: torch.stack([getattr(sample, field) for sample in samples]))

    def _with(self, tensor: Callable[[str], Tensor]) -> Sample:
        fields: dict[str, Any] = {field: tensor(field) for field in SAMPLE_FIELDS}
        return dataclasses.replace(self, **fields)


SAMPLE_FIELDS = ("kspace", "mask", "target", "maximum", "acceleration", "volume", "slice")


@dataclass(frozen=True, kw_only=True)
class CachedVolume(Volume):
    """A volume whose slices were prepared for training once: `store`, a .npy file, holds a record per slice.

    The crop along the readout is exact and the same for every mask, so it need not be made again in
    every epoch; what is left per slice is one read of a record and the mask. Where there is no such file, because
    the volume is in the share of a process on another machine, the volume itself is read.
    """

    source: Volume
    store: Path

    @property
    def layout(self) -> np.dtype:
        """Of one record: k-space after crop_readout, acquired columns, target."""
        width = self.shape[-1]
        kspace = (*self.shape[1:-2], self.rows, width)
        return np.dtype([("kspace", "<c8", kspace), ("acquired", "?", (width,)), ("target", "<f4", self.image_shape)])

    def kspace(self, index: int) -> Tensor:
        """See Volume.kspace: it is not in the cache."""
        return self.source.kspace(index)

    def fingerprints(self) -> list[str]:
        """See Volume.fingerprints."""
        return self.source.fingerprints()

    def cropped(self, index: int) -> tuple[Tensor, Tensor]:
        """As Volume.cropped, bit for bit."""
        if not self.store.exists():
            return self.source.cropped(index)
        return self.stored("kspace", index), self.stored("acquired", index)

    def target(self, index: int) -> Tensor:
        """As Volume.target, bit for bit."""
        return self.stored("target", index) if self.store.exists() else self.source.target(index)

    def stored(self, name: str, index: int) -> Tensor:
        """One field of a slice's record. Raises BadInput: the file is damaged."""
        try:
            state = self.store.stat()
            records = _records(self.store, state.st_size, state.st_mtime_ns, state.st_ino)
            if (records.dtype, records.shape) != (self.layout, (len(self),)):
                raise ValueError("another layout")
            return torch.from_numpy(np.array(records[name][index]))
        except (OSError, ValueError, IndexError, SyntaxError, tokenize.TokenError) as error:
            raise BadInput(f"{self.store}: slice {index} of the cache is unreadable: delete the file") from error


@functools.lru_cache(4096)
def _records(path: Path, *_state: int) -> np.ndarray:
    """A .npy file mapped into the memory: once in each process, because a volume would take a copy of it along.

    A file in a new state is mapped anew: reading beyond the end of one that was cut off would end the program.
    """
    return np.lib.format.open_memmap(path, mode="r")


def cache_volumes(volumes: Sequence[Volume], folder: str | Path) -> list[Volume]:
    """The same volumes, read from a cache that is made where it is missing.

    Args:
        volumes: of files with reference. A file that changed is cached anew.
        folder: on a fast local disk, or in memory (/dev/shm/NAME). It takes 8 h W (for each coil) + 4 h w bytes per
            slice: 1.35 MB at 320 x 368, of 2.3 MB in the file. Delete it when training is over.
    """
    cached: list[CachedVolume] = []
    for volume in volumes:
        states = [(path.resolve(), path.stat().st_size, path.stat().st_mtime_ns) for path in volume.sources()]
        key = hashlib.sha1(f"{volume!r} {states}".encode()).hexdigest()[:12]
        fields = {name: getattr(volume, name) for name in Volume.__dataclass_fields__}
        cached.append(CachedVolume(**fields, source=volume, store=Path(folder, f"{volume.path.stem}_{key}.npy")))
    for volume in progress(own_share(cached), "filling the cache"):
        try:
            volume.stored("target", 0)
        except BadInput:
            replace_file(volume.store, functools.partial(_write_records, volume))
    wait_for_all()
    return list[Volume](cached)


def _write_records(volume: CachedVolume, path: Path) -> None:
    # Written as a plain file, not through a map, which would end the program where the disk is full.
    about = {"descr": np.lib.format.dtype_to_descr(volume.layout), "fortran_order": False, "shape": (len(volume),)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, about)
        for index in range(len(volume)):
            record, source = np.zeros((), volume.layout), volume.source
            record["kspace"], record["acquired"] = source.cropped(index)
            record["target"] = source.target(index)
            record.tofile(file)


class SliceDataset(torch.utils.data.Dataset):
    """Slices of volumes, undersampled on the fly.

    Args:
        volumes: what read_folder returned.
        mask, acceleration, center_fraction: of sampling_mask. Files that carry a mask keep theirs.
            Several accelerations are drawn at random, slice by slice; center_fraction then belongs to the
            first, and the others have as many centre lines less as they are faster (8 % at 4x, 4 % at 8x).
        seed: None gives every volume the mask that fastMRI's validation gives it (seeded by the file
            name, so that results compare across programs); a number draws a new mask for every slice
            and epoch, reproducibly, which is what training wants.
        limit: use only the first `limit` slices of an even spread; 0 uses all.
        augment: vary orientation, matrix size and noise (see vary_scan), reproducibly; needs a seed.
        vary_phase: give each slice another phase of a gradient echo (see susceptibility_phase); needs a seed.
        skip: a file that turns out to be unreadable is named once; from then on the next readable slice of
            the same size stands in for each of its slices. Otherwise it raises BadInput.
        hide: share of the measured lines that a network is not shown, but judged by (SSDU: notebook 17); 0: none.
            `target` is then k-space, complex64 ([batch,] H, W), of these lines only. Needs a seed, and no reference.
    Attributes:
        unreadable: numbers of the volumes left out so.
        warnings: what a look at the files found, for metrics.json; None where nobody looked yet.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        mask: str,
        acceleration: float | Sequence[float],
        center_fraction: float,
        seed: int | None = None,
        limit: int = 0,
        augment: bool = False,
        skip: bool = False,
        vary_phase: bool = False,
        hide: float = 0.0,
    ) -> None:
        self.volumes, self.seed, self.hide = list(volumes), seed, hide
        self._epoch = torch.zeros((), dtype=torch.long)
        self.skip, self.unreadable = skip, set[int]()
        self.warnings: list[str] | None = None
        self.mask, self.augment, self.vary_phase = mask, augment and seed is not None, vary_phase and seed is not None
        factors = acceleration if isinstance(acceleration, Sequence) else [acceleration]
        # an acceleration of 0 is refused below, with the other faults
        self.sampling = [(factor, center_fraction * (factors[0] / factor if factor else 1)) for factor in factors]
        self.slices = [(v, s) for v, volume in enumerate(self.volumes) for s in range(len(volume))]
        if 0 < limit < len(self.slices):
            spread = np.linspace(0, len(self.slices) - 1, limit).round().astype(int)
            self.slices = [self.slices[i] for i in spread]
        # Faults of the parameters show now rather than in the first batch.
        for size in {self.size(i) for i in range(len(self))}:
            for sampling in self.sampling:
                sampling_mask(mask, size, *sampling, seed=0)

    @property
    def epoch(self) -> int:
        """Number of the epoch, with which training masks change; processes that read for this one see it as well."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, number: int) -> None:
        self._epoch.fill_(number)

    def __len__(self) -> int:
        return len(self.slices)

    def size(self, index: int) -> tuple[int, ...]:
        """([coils, frames ..,] h, W) of the k-space of slice `index`; only slices of one size can share a batch."""
        volume = self.volumes[self.slices[index][0]]
        return *volume.shape[1:-2], volume.rows, volume.shape[-1]

    def __getitem__(self, index: int) -> Sample:
        reason: BadInput | None = None
        for i in ((index + k) % len(self) for k in range(len(self) if self.skip else 1)):
            v = self.slices[i][0]
            if v not in self.unreadable and self.size(i) == self.size(index):
                try:
                    return self.sample(i)
                except BadInput as error:
                    if not self.skip:
                        raise
                    reason = error
                    self.leave_out(v, str(error))
        path = self.volumes[self.slices[index][0]].path
        raise BadInput(f"{path}: no other training file of its size can stand in for it: mend the files") from reason

    def leave_out(self, volume: int, reason: str) -> None:
        """Read a volume no more, and say so once; processes that read for this one are silent."""
        if volume not in self.unreadable and torch.utils.data.get_worker_info() is None:
            print(f"{reason}; left out from now on", file=sys.stderr, flush=True)
        self.unreadable.add(volume)

    def without_unreadable(self) -> list[str]:
        """Forget the volumes that were left out, in all processes; returns one line on them, if there are any."""
        gone = set().union(*gather([self.unreadable]))
        if not gone:
            return []
        names = ", ".join(self.volumes[v].path.name for v in sorted(gone))
        new = {v: i for i, v in enumerate(v for v in range(len(self.volumes)) if v not in gone)}
        self.volumes, self.unreadable = [self.volumes[v] for v in new], set()
        self.slices = [(new[v], s) for v, s in self.slices if v in new]
        return [f"{len(gone)} training volumes turned unreadable and were left out: {names}"]

    def sample(self, index: int) -> Sample:
        """Slice `index` itself, read and undersampled."""
        v, s = self.slices[index]
        volume = self.volumes[v]
        kspace, acquired = volume.cropped(s)
        peak = volume.maximum if volume.has_reference else 1.0
        size, sampling = volume.target_size, self.sampling[0]
        mask_seed: str | tuple[int, ...] = volume.path.name
        if self.seed is not None:  # training
            mask_seed = (self.seed, self.epoch, index)
            if self.augment or self.vary_phase or len(self.sampling) > 1:
                random = np.random.RandomState((*mask_seed, 1))  # not the stream of the mask
                sampling = self.sampling[random.randint(len(self.sampling))]
        varied = volume.mask is None  # of what was left out no other scan can be made
        if self.augment and varied:
            # One choice per size and epoch, so that slices of one size still make a batch.
            common = np.random.RandomState((self.seed or 0, self.epoch, *self.size(index)))
            kspace, acquired, size = vary_scan(kspace, acquired, size, peak, common, random)
        if self.vary_phase and varied:
            phase = susceptibility_phase(kspace.shape[-2:], random)
            turned = fft2c(ifft2c(kspace) * torch.polar(torch.ones_like(phase), phase))
            kspace = torch.where(acquired, turned, 0)
        if (self.augment or self.vary_phase) and varied:
            target = volume.magnitude(center_crop(ifft2c(kspace), size))
        else:
            target = volume.target(s) if volume.has_reference else torch.zeros(volume.image_shape)
        mask = volume.mask if volume.mask is not None else sampling_mask(self.mask, kspace.shape, *sampling, mask_seed)
        sampled = mask & acquired
        sampled = sampled.reshape(*[1] * (kspace.ndim - sampled.ndim), *sampled.shape)
        acceleration = acquired.sum() * (sampled.numel() // sampled.shape[-1]) / sampled.sum()
        kspace = kspace * sampled.to(kspace.dtype)  # a quarter of the time of torch.where
        if self.hide:
            drawn = int(np.random.RandomState((*mask_seed, 2)).randint(2**31))  # not the stream of the mask
            sampled, hidden = split_lines(sampled, self.hide, torch.Generator().manual_seed(drawn))
            peak = float(ifft2c(kspace).abs().max())  # the reference has no say
            kspace, target = kspace * sampled.to(kspace.dtype), kspace * hidden.to(kspace.dtype)
        return Sample(
            kspace=kspace,
            mask=sampled | ~acquired,
            target=target,
            maximum=torch.tensor(peak),
            acceleration=acceleration,
            volume=torch.tensor(v),
            slice=torch.tensor(s),
            axes=volume.axes[1:],
        )


def vary_scan(
    kspace: Tensor, acquired: Tensor, size: tuple[int, int], peak: float, common: Any, random: Any
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """The scan that another protocol would have made of the same slice: what transfer to real scans needs.

    The phase-encode direction is swapped and the matrix made coarser as `common` draws; the image
    is mirrored and noise added as `random` draws.

    Args:
        kspace: ([coils,] h, W) complex, fully sampled.
        acquired: bool (W,), columns that hold data.
        size: of the target image.
        peak: largest value of the volume, to which the noise is scaled.
        common, random: numpy.random.RandomState; slices that share `common` keep one size.
    Returns:
        k-space, acquired and size of the new scan. The image values stay in their range.
    """
    swap, share = common.rand() < 0.5, common.uniform(0.6, 1.0)
    height, width = kspace.shape[-2:]
    coarse = [2 * round(share * n / 2) for n in (height, width)]
    size = (round(size[0] * coarse[0] / height), round(size[1] * coarse[1] / width))
    ratio = math.sqrt(coarse[0] * coarse[1] / (height * width))
    kspace, acquired = center_crop(kspace, coarse) * ratio, center_crop(acquired[None], (1, coarse[1]))[0]
    if swap and acquired.all():
        # The rows become the lines; the readout has lost its oversampling, so the field of view is the target's.
        kspace, size = crop_readout(kspace.mT.contiguous(), size[1]), size[::-1]
        acquired = acquired.new_ones(kspace.shape[-1])
    image = ifft2c(kspace)
    mirrored = [axis for axis in (-2, -1) if random.rand() < 0.5]
    if -1 in mirrored:  # f is where -f was
        acquired = acquired.flip(0).roll(1 - len(acquired) % 2)
    deviation = peak * math.exp(random.uniform(math.log(0.003), math.log(0.06)))
    noise = torch.from_numpy(random.standard_normal((*kspace.shape, 2)).astype(np.float32))
    kspace = fft2c(image.flip(mirrored)) + deviation * torch.view_as_complex(noise)
    return torch.where(acquired, kspace, 0), acquired, size


def susceptibility_phase(size: Sequence[int], random: Any) -> Tensor:
    """Phase that a gradient echo collects near air, which disturbs the magnetic field: sinuses, ears, the mouth.

    One to three balls of air above or below the slice, anywhere, in a main field of any direction. Outside a ball of
    radius a the field changes in proportion to (a / r)^3 (3 cos^2 - 1), with the angle to the main field (Haacke et
    al. 1999, Magnetic Resonance Imaging, chapter 25). How much phase that makes depends on field strength and
    echo time: what is drawn is the steepest turn, up to 1.5 radians from pixel to pixel, since where it is much
    steeper there is no signal left; of either sign, as vendors have it.

    Args:
        size: (H, W) of the image.
        random: numpy.random.RandomState.
    Returns:
        float32 (H, W), radians.
    """
    side = max(size)
    rows, columns = ((np.arange(n) - n // 2) / side for n in size)
    direction = random.standard_normal(3)
    direction /= np.linalg.norm(direction)
    field = np.zeros(tuple(size))
    for _ in range(random.randint(1, 4)):
        radius = random.uniform(0.05, 0.25)
        y, x = rows[:, None] - random.uniform(-0.45, 0.45), columns - random.uniform(-0.45, 0.45)
        z = radius * random.uniform(0.5, 1.5)
        distance = np.sqrt(x**2 + y**2 + z**2)
        cosine = (direction[0] * y + direction[1] * x + direction[2] * z) / distance
        field += (radius / distance.clip(radius)) ** 3 * (3 * cosine**2 - 1)
    steepest = max(np.abs(np.diff(field, axis=axis)).max() for axis in (0, 1))
    return torch.from_numpy((random.uniform(-1.5, 1.5) / steepest * field).astype(np.float32))


class SameSizeBatches(torch.utils.data.Sampler):
    """Batches of slices of one size, in an order that depends on (seed, epoch) alone.

    Several processes, and one that takes a batch in several pieces to save memory, share the batches
    of the same plan: together they take the steps that one process would take. Files are dealt out to
    `shards` groups, each of which belongs to one process; every batch takes evenly from all groups.

    Args:
        dataset: a SliceDataset.
        batch_size: slices per batch; the last batch of each size may be smaller.
        shuffle: draw a new order for each epoch; else the order of the files.
        shards: groups of files, a multiple of the number of processes; 0 for just as many. The plan depends on it.
        pieces: how many parts, one after the other, this process takes its share of a batch in.
    """

    def __init__(self, dataset: SliceDataset, batch_size: int, shuffle: bool, shards: int = 0, pieces: int = 1) -> None:
        self.dataset, self.batch_size, self.shuffle = dataset, batch_size, shuffle
        self.rank, self.processes = rank_and_size()
        self.shards, self.pieces = shards or self.processes, pieces
        if self.shards % self.processes:
            raise BadInput(f"shards {shards} on {self.processes} processes: use a multiple of {self.processes}, or 0")
        self.sizes = [dataset.size(i) for i in range(len(dataset))]
        self.own = [i for i in range(len(dataset)) if self.shard(i) % self.processes == self.rank]
        if not self.own:
            raise BadInput(f"{self.processes} processes, but process {self.rank} has no training file: use fewer")

    def __len__(self) -> int:
        return self.pieces * sum(math.ceil(n / self.batch_size) for n in Counter(self.sizes).values())

    def shard(self, index: int) -> int:
        """The group of files that slice `index` belongs to."""
        return self.dataset.slices[index][0] % self.shards

    def batches(self) -> list[list[int]]:
        """The whole batches of the epoch, the same for every number of processes and pieces."""
        random = np.random.RandomState((self.dataset.seed or 0, self.dataset.epoch))
        order = random.permutation(len(self.sizes)) if self.shuffle else np.arange(len(self.sizes))
        by_size: dict[tuple[int, ...], list[int]] = {size: [] for size in sorted(set(self.sizes))}
        for i in order:
            by_size[self.sizes[i]].append(int(i))
        batches = []
        for same in by_size.values():
            if self.shards > 1:  # each group's slices at even distances among those of the others
                count, seen, place = Counter(map(self.shard, same)), Counter[int](), {}
                for i in same:
                    place[i] = (seen[self.shard(i)] + 0.5) / count[self.shard(i)]
                    seen[self.shard(i)] += 1
                same.sort(key=lambda i: place[i])
            batches += [same[i : i + self.batch_size] for i in range(0, len(same), self.batch_size)]
        if self.shuffle:
            random.shuffle(batches)
        return batches

    def plan(self) -> list[tuple[list[int], float]]:
        """What this process takes: slices, and the share that their mean loss has in the batch's.

        The mean of share x gradient over the processes, summed over the pieces, is the gradient of the
        whole batch. A process without a slice in a batch takes part with another one and a share of 0.
        """
        parts, mine = [], set(self.own)
        for batch in self.batches():
            own = [i for i in batch if i in mine]
            for piece in (own[k :: self.pieces] for k in range(self.pieces)):
                parts.append((piece or self.own[:1], self.processes * len(piece) / len(batch)))
        return parts

    def __iter__(self) -> Iterator[list[int]]:
        return iter([part for part, _ in self.plan()])


def make_loader(
    dataset: SliceDataset, batch_size: int, shuffle: bool, workers: int = 0, shards: int = 0, pieces: int = 1
) -> torch.utils.data.DataLoader:
    """A DataLoader that yields Samples batched by size; see SameSizeBatches.

    Workers hand on what they read through shared memory, for which PyTorch would wait for ever where it is full (a
    container has 64 MB): no more of them are started than there is room for.
    """
    sampler = SameSizeBatches(dataset, batch_size, shuffle, shards, pieces)
    if workers and os.path.isdir("/dev/shm"):
        slices = math.ceil(min(batch_size, len(dataset)) / (sampler.processes * pieces))
        ahead = 2 * slices * 13 * max(map(math.prod, sampler.sizes))  # bytes of k-space, mask and target in two parts
        room = shutil.disk_usage("/dev/shm").free / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        fit = max(int(room / ahead) - 1, 0)  # each worker reads two ahead, and two are in use
        if fit < workers:
            print(f"workers: {fit}, not {workers}: /dev/shm has room for no more ({room / 1e6:.0f} MB a process)")
            workers = fit
    if workers:
        dataset._epoch.share_memory_()
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=Sample.stack,
        num_workers=workers,
        persistent_workers=workers > 0,  # starting them anew would cost as much as a short epoch
        pin_memory=torch.cuda.is_initialized(),  # by the network, if it is on a GPU
        generator=torch.Generator(),  # its own, see training_batches
    )


def training_batches(loader: torch.utils.data.DataLoader, device: str) -> Iterator[Sample]:
    """One epoch: this process's part of every batch, piece by piece, on the device; see SameSizeBatches.plan."""
    sampler: Any = loader.batch_sampler
    if sampler.processes > 1:  # dropout must differ between the processes; one process goes on as it was seeded
        seeds = sampler.dataset.seed or 0, sampler.dataset.epoch, sampler.rank, 2
        torch.manual_seed(np.random.RandomState(seeds).randint(2**31))
    # The number that a DataLoader draws when it starts its workers, once or in every epoch. Drawn here in every epoch,
    # dropout is the same with workers and without, and in a run that was resumed.
    torch.empty((), dtype=torch.long).random_()
    dataset = sampler.dataset
    for number, (batch, (part, share)) in enumerate(zip(progress(loader, "training"), sampler.plan()), 1):
        for planned, found in zip((dataset.slices[i][0] for i in part), batch.volume.tolist()):
            if planned != found:  # a process that reads for this one came upon it
                dataset.leave_out(planned, f"{dataset.volumes[planned].path}: cannot be read")
        batch = batch.to(device)
        batch.share, batch.ends_step = share, number % sampler.pieces == 0
        yield batch
