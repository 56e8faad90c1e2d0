"""One program in several processes (torchrun), progress, and an orderly stop.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK: each process holds the whole network and takes its share of every batch. In
one process all of these do nothing."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import distributed, nn
from tqdm import tqdm

from mri_parts.basics import BadInput


class Stopped(Exception):
    """The scheduler asked the program to end (SIGTERM); told between two steps, see progress."""


STOP_SIGNALS: list[int] = []  # those received; run_or_explain listens


EXIT_RESTART = 75  # of a run that was asked to stop: start it again with --resume (EX_TEMPFAIL of sysexits.h)


def progress(items: Any, what: str) -> Any:
    """A progress bar on a terminal; nothing in log files and notebooks, which print a line instead.

    Raises:
        Stopped: after an item that was being worked on when SIGTERM came.
    """
    for item in tqdm(items, desc=what, leave=False, disable=None if rank_and_size()[0] == 0 else True):
        yield item
        if STOP_SIGNALS:
            raise Stopped


def join_processes(device: str) -> None:
    """Meet the other processes that torchrun started, and take this one's GPU.

    Raises:
        BadInput: more processes on this machine than GPUs; variables of another program's processes.
    """
    try:
        size, rank, local = (
            int(os.environ.get(name, n)) for name, n in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
        )
    except ValueError as error:
        raise BadInput(f"WORLD_SIZE, RANK or LOCAL_RANK is no number ({error}): unset them, or use torchrun") from error
    if size == 1 or distributed.is_initialized():
        return
    lacking = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if lacking:
        left = f"WORLD_SIZE is {size} in the environment, {' and '.join(lacking)} not set"
        raise BadInput(f"{left}: unset WORLD_SIZE for one process, or start several with torchrun")
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise BadInput(f"process {local}, but {torch.cuda.device_count()} GPUs here: start fewer processes")
        torch.cuda.set_device(local)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the first process speaks for all


def leave_processes() -> None:
    """Part from the other processes at the end of a run."""
    if distributed.is_initialized():
        # What parallelize made lives on in cycles of references, with threads of its own. Found at the end of the
        # program only, it sometimes brings it down: "terminate called without an active exception", exit status -6.
        gc.collect()
        distributed.barrier()
        distributed.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def own_share(items: Sequence[Any]) -> Sequence[Any]:
    """Those of the items that this process works on: every n-th."""
    rank, size = rank_and_size()
    return items[rank::size]


def gather(results: Sequence[Any], by_all: bool = True) -> list[Any]:
    """What every process made of its own_share, together and in the order of the items.

    All processes get it; or, where it is too large for that, the first one alone (by_all=False), and the others [].
    """
    rank, size = rank_and_size()
    if size == 1:
        return list(results)
    parts: list[Any] = [None] * size
    if by_all:
        distributed.all_gather_object(parts, list(results))
    else:
        distributed.gather_object(list(results), parts if rank == 0 else None)
        if rank > 0:
            return []
    together: list[Any] = [None] * sum(map(len, parts))
    for number, part in enumerate(parts):
        together[number::size] = part
    return together


def add_up(sums: Mapping[str, Any]) -> dict[str, float]:
    """The sums of all processes, each as a float64."""
    values = torch.tensor([float(value) for value in sums.values()], dtype=torch.float64)
    if rank_and_size()[1] > 1:
        distributed.all_reduce(values)
    return dict(zip(sums, values.tolist()))


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if rank_and_size()[1] > 1:
        distributed.barrier()


def parallelize(network: nn.Module, device: str) -> nn.Module:
    """The network whose backward pass averages the gradients over the processes."""
    if rank_and_size()[1] == 1:
        return network
    gpus = [torch.cuda.current_device()] if device == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=gpus)
