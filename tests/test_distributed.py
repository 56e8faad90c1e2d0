"""train.py on several processes, from a cache, in pieces; stopped and killed; on a folder of other files."""

import copy
import importlib
import json
import multiprocessing
import os
import platform
import random as chance
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from conftest import QUICK, as_given

import mri_utils as mri
from mri_parts import dataset as dataset_part

pytestmark = pytest.mark.usefixtures("one_thread", "quick_baselines")
SMALL = {"epochs": 3, "features": 4, "levels": 2, "batch_size": 3, "loss": "l1"}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONPATH": f"{QUICK}{os.pathsep}{mri.ROOT}"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
# train.py without the evaluation at its end, which the other tests have; notes which process reads which file
SCRIPT = """
import sys, json
import mri_utils as mri, train
settings = train.settled(**json.loads(sys.argv[1]))
mri.join_processes(settings.device)
train_set, val_set = train.load_data(settings)
read, kspace = set(), mri.Volume.kspace
mri.Volume.kspace = lambda self, i: (read.add(str(self.path)), kspace(self, i))[1]
def work():
    network, state = train.train(settings, train_set, val_set)
    rows, images, _ = mri.score(network.eval(), val_set, train.machine_of(settings))
    everybody = mri.gather([sorted(read)])
    if mri.rank_and_size()[0] == 0:
        figures = {"read": everybody, "rows": rows, "images": [float(x.sum()) for x in images]}
        print(json.dumps(figures))
    mri.leave_processes()
mri.run_or_explain(work)
"""


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory):
    """The tiny data with a third validation file, so that two processes have unequal shares."""
    folder = tmp_path_factory.mktemp("data") / "demo"
    shutil.copytree(tiny, folder)
    path = shutil.copy(sorted((folder / "val").iterdir())[0], folder / "val" / "third.h5")
    with h5py.File(path, "r+") as file:
        file["kspace"][...] = file["kspace"][...][:, ::-1]
        del file["reconstruction_esc"]
        file.attrs["patient_id"] = "third"
    return folder


def words(data, out, **changes):
    return ["-c", SCRIPT, json.dumps(as_given(SMALL | {"data": str(data), "out": str(out)} | changes))]


def train(data, out, processes=1, **changes):
    """Train in a new process, or in two; returns what SCRIPT prints."""
    start = [sys.executable]
    command = words(data, out, **changes)
    if processes > 1:  # torchrun wants a file
        start, script = TORCHRUN, out.parent / "script.py"
        script.write_text(SCRIPT)
        command = [str(script), command[2]]
    done = subprocess.run([*start, *command], cwd=out.parent, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def log(out):
    return np.array([line.split(",") for line in (out / "log.csv").read_text().splitlines()[1:]], float)


def only_train(data, out, **changes):
    """The training of train.py in this process."""
    module = importlib.import_module("train")
    settings = module.settled(**as_given(SMALL | {"data": str(data), "out": str(out)} | changes))
    return module.train(settings, *module.load_data(settings))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An undisturbed run in one process, its plan that of two."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return SimpleNamespace(out=out, figures=train(data, out, shards=2))


# --- several processes ------------------------------------------------------------------------------


def test_two_processes_take_the_same_steps(whole, data, tmp_path):
    figures = train(data, tmp_path / "run", processes=2)
    assert np.allclose(log(tmp_path / "run"), log(whole.out), rtol=1e-5)
    for one, other in zip(whole.figures["rows"], figures["rows"], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert figures["images"] == pytest.approx(whole.figures["images"], rel=1e-5) and len(figures["images"]) == 3
    ours, theirs = figures["read"]
    assert not set(ours) & set(theirs)  # no file was read by both
    assert set(ours) | set(theirs) == set(whole.figures["read"][0]) and len(ours) > 1 < len(theirs)


def test_adversarial_training_in_two_processes(data, tmp_path):
    kind = {"adversary": "least_squares(weight=0.1)", "epochs": 2}
    train(data, tmp_path / "one", shards=2, **kind)
    train(data, tmp_path / "two", processes=2, **kind)
    assert np.allclose(log(tmp_path / "one"), log(tmp_path / "two"), rtol=1e-4)
    assert log(tmp_path / "one").shape == (2, 7)


def test_a_run_goes_on_with_another_number_of_processes(whole, data, tmp_path):
    """What elastic restarts need: the last checkpoint, and no more."""
    shutil.copytree(whole.out, tmp_path / "run")
    train(data, tmp_path / "run", processes=2, epochs=4, resume=True)
    train(data, tmp_path / "run", epochs=5, resume=True)
    assert len(log(tmp_path / "run")) == 5
    assert np.array_equal(log(tmp_path / "run")[:3], log(whole.out))


def plans(dataset, processes, monkeypatch, **options):
    for rank in range(processes):
        monkeypatch.setattr(dataset_part, "rank_and_size", lambda rank=rank: (rank, processes))
        sampler = mri.SameSizeBatches(dataset, 3, True, **options)
        assert [part for part, _ in sampler.plan()] == list(sampler) and len(sampler) == len(sampler.plan())
        yield sampler.batches(), sampler.plan()


@pytest.mark.parametrize("processes,shards,pieces", [(1, 0, 1), (1, 4, 2), (2, 0, 1), (2, 4, 3), (4, 4, 1)])
def test_every_slice_counts_once(tiny, monkeypatch, processes, shards, pieces):
    dataset = mri.SliceDataset(mri.read_folder(tiny / "train"), "random", 4, 0.1, seed=0)
    found = list(plans(dataset, processes, monkeypatch, shards=shards, pieces=pieces))
    (reference, _), *_ = plans(dataset, 1, monkeypatch, shards=shards or processes)
    steps = [[] for _ in reference]
    shares = np.zeros(len(reference))
    for batches, plan in found:
        assert batches == reference  # the number of processes changes no batch
        for number, (part, share) in enumerate(plan):
            steps[number // pieces] += part if share else []
            shares[number // pieces] += share / processes
            assert len({dataset.size(i) for i in part}) == 1 and len(part) >= 1
    assert [sorted(step) for step in steps] == [sorted(batch) for batch in reference]
    assert np.allclose(shares, 1)
    files = [{dataset.slices[i][0] for part, _ in plan for i in part} for _, plan in found]
    assert sum(map(len, files)) == len(set.union(*files)) == 4


def test_shards_keep_batches_even(tiny, monkeypatch):
    """Files of one size, two groups: every batch of 4 takes 2 from each."""
    dataset = mri.SliceDataset(mri.read_folder(tiny / "train") * 2, "random", 4, 0.1, seed=0)
    dataset.size = lambda index: (48, 48)
    sampler = mri.SameSizeBatches(dataset, 4, True, shards=2)
    assert all(sum(sampler.shard(i) for i in batch) == 2 for batch in sampler)
    plain = mri.SameSizeBatches(dataset, 4, True).batches()
    assert plain != sampler.batches() and sorted(map(len, plain)) == sorted(map(len, sampler))


def test_what_cannot_be_shared_is_refused(tiny, monkeypatch):
    dataset = mri.SliceDataset(mri.read_folder(tiny / "train"), "random", 4, 0.1, seed=0)
    monkeypatch.setattr(dataset_part, "rank_and_size", lambda: (1, 2))
    with pytest.raises(mri.BadInput, match="shards 3 on 2 processes: use a multiple of 2"):
        mri.SameSizeBatches(dataset, 2, True, shards=3)
    dataset.slices = dataset.slices[:2]  # of the first file
    with pytest.raises(mri.BadInput, match="process 1 has no training file"):
        mri.SameSizeBatches(dataset, 2, True)


# --- the same steps with less memory, less reading --------------------------------------------------


def test_pieces_take_the_same_steps(data, tmp_path, monkeypatch):
    """With gradient descent: Adam makes a step of any gradient, also of one that is all rounding, and that differs."""
    monkeypatch.setitem(importlib.import_module("train").OPTIMIZERS, "adam", torch.optim.SGD)
    for name, accumulate in (("whole", 1), ("pieces", 2)):
        only_train(data, tmp_path / name, shards=2, accumulate=accumulate, lr=0.5)
    whole, pieces = log(tmp_path / "whole"), log(tmp_path / "pieces")
    assert np.allclose(pieces, whole, rtol=1e-5) and whole[-1, 1] < 0.98 * whole[0, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_changes_nothing(whole, data, tmp_path, workers, monkeypatch):
    cache = tmp_path / "cache"
    options = {"shards": 2, "cache": str(cache), "workers": workers}
    only_train(data, tmp_path / "filled", epochs=1, **options)
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(files) == 7
    read, looked_at = mri.Volume._read, []

    def one_slice_of_each_file(volume, key, index, kind):
        if isinstance(index, int):
            assert volume.path not in looked_at and index == len(volume) // 2, "a slice is read again"
            looked_at.append(volume.path)
        return read(volume, key, index, kind)

    with monkeypatch.context() as patched:  # from now on files are opened for the look at their middle slice, no more
        patched.setattr(mri.Volume, "_read", one_slice_of_each_file)
        only_train(data, tmp_path / "run", **options)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files
    assert (tmp_path / "run" / "log.csv").read_bytes() == (whole.out / "log.csv").read_bytes()


@pytest.mark.parametrize("augment", [False, True])
def test_cached_slices_are_bit_for_bit_the_same(data, tmp_path, augment):
    volumes = mri.read_folder(data / "train") + mri.read_folder(data / "val")
    sets = [
        mri.SliceDataset(v, "gaussian_2d", 4, 0.1, seed=0, augment=augment)
        for v in (volumes, mri.cache_volumes(volumes, tmp_path))
    ]
    for raw, cached in zip(*sets, strict=True):
        for field in mri.SAMPLE_FIELDS:
            assert torch.equal(getattr(raw, field), getattr(cached, field)), field
    assert raw.kspace.shape[-2] < volumes[0].shape[-2] or augment  # the crop along the readout was made
    size = sum(np.load(path, mmap_mode="r").nbytes for path in tmp_path.iterdir())
    assert size < sum(path.stat().st_size for path in tmp_path.iterdir()) < size + 512 * len(volumes)  # the headers
    assert size == sum(len(v) * (8 * v.target_size[0] * v.shape[-1] + v.shape[-1] + 4 * 48 * 48) for v in volumes)


def test_a_changed_file_is_cached_anew_and_a_damaged_cache_is_named(data, tmp_path):
    path = shutil.copy(sorted((data / "train").iterdir())[0], tmp_path / "a.h5")
    (before,) = mri.cache_volumes(mri.read_folder(tmp_path), tmp_path / "cache")
    with h5py.File(path, "r+") as file:
        file["kspace"][...] = file["kspace"][...] * 2
    (after,) = mri.cache_volumes(mri.read_folder(tmp_path), tmp_path / "cache")
    assert torch.equal(after.cropped(1)[0], 2 * before.cropped(1)[0])
    os.truncate(after.store, 1000)
    with pytest.raises(mri.BadInput, match=f"{after.store.name}: slice 1 of the cache is unreadable: delete the file"):
        after.cropped(1)
    (mended,) = mri.cache_volumes(mri.read_folder(tmp_path), tmp_path / "cache")
    assert torch.equal(mended.target(1), mri.read_volume(path).target(1))


def test_a_file_in_the_cache_of_another_machine_is_read_itself(data, tmp_path):
    volumes = mri.read_folder(data / "val")
    cached = mri.cache_volumes(volumes, tmp_path)
    cached[1].store.unlink()
    for raw, ours in zip(volumes, cached, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(raw.cropped(1), ours.cropped(1)))
        assert torch.equal(raw.target(1), ours.target(1))


def test_two_programs_write_one_file(tmp_path):
    """As two runs that fill one cache: each finds what it wrote, or what the other wrote, whole."""
    path = tmp_path / "file"

    def write(partial):
        partial.write_text("ou")
        other = multiprocessing.get_context("fork").Process(
            target=mri.replace_file, args=(path, lambda theirs: theirs.write_text("theirs"))
        )
        other.start()
        other.join()
        assert other.exitcode == 0 and path.read_text() == "theirs"
        with open(partial, "a") as file:
            file.write("rs")

    mri.replace_file(path, write)
    assert path.read_text() == "ours" and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def files(tiny, tmp_path):
    """Four training files, three of them of one size, and the second of these, to be damaged."""
    folder = tmp_path / "files"
    shutil.copytree(tiny / "train", folder)
    one = sorted(folder.iterdir())[0]
    for name in ("x.h5", "y.h5"):
        shutil.copy(one, folder / name)
    return folder, folder / "x.h5"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_turns_unreadable_stops_the_run_or_is_left_out(files, workers, capfd):
    folder, damaged = files
    sets = [mri.SliceDataset(mri.read_folder(folder), "random", 4, 0.1, seed=0, skip=skip) for skip in (False, True)]
    strict, patient = [mri.make_loader(dataset, 3, True, workers) for dataset in sets]
    gone = [v.path for v in sets[1].volumes].index(damaged)
    os.truncate(damaged, 3000)
    with pytest.raises(mri.BadInput, match=r"x\.h5: cannot read"):
        list(mri.training_batches(strict, "cpu"))
    capfd.readouterr()
    for sets[1].epoch in range(3):
        plan = patient.batch_sampler.plan()
        for (part, _), batch in zip(plan, mri.training_batches(patient, "cpu"), strict=True):
            assert len(batch.volume) == len(part)
            for i, v in zip(part, batch.volume.tolist()):
                planned = sets[1].slices[i][0]
                assert v == planned if planned != gone else v != gone
                assert sets[1].volumes[v].shape == sets[1].volumes[planned].shape  # a stand-in of the same size
    assert capfd.readouterr().err.count("x.h5") == 1 and sets[1].unreadable == {gone}  # named once, in three epochs
    count = len(sets[1])
    (line,) = sets[1].without_unreadable()
    assert line == "1 training volumes turned unreadable and were left out: x.h5" and len(sets[1]) == count - 2
    assert all(v.path != damaged for v in sets[1].volumes) and sets[1].without_unreadable() == []
    assert {int(sample.volume) for sample in sets[1]} == set(range(len(sets[1].volumes)))


def test_the_template_of_kspace_sr_skips_what_cannot_be_read(files):
    folder, damaged = files
    networks = [mri.build_model("kspace_sr(levels=2)") for _ in range(2)]
    networks[0].learn_from(mri.SliceDataset(mri.read_folder(folder), "random", 4, 0.1, seed=0))
    sets = [mri.SliceDataset(mri.read_folder(folder), "random", 4, 0.1, seed=0, skip=skip) for skip in (False, True)]
    os.truncate(damaged, 3000)
    with pytest.raises(mri.BadInput, match=r"x\.h5: cannot read"):
        networks[1].learn_from(sets[0])
    networks[1].learn_from(sets[1])
    assert len(sets[1].unreadable) == 1
    torch.testing.assert_close(networks[1].template, networks[0].template, atol=0.5, rtol=0)


def test_no_file_can_stand_in(files):
    folder, _ = files
    (folder / "only").mkdir()
    path = shutil.copy(folder / "x.h5", folder / "only" / "x.h5")
    dataset = mri.SliceDataset(mri.read_folder(folder / "only"), "random", 4, 0.1, seed=0, skip=True)
    os.truncate(path, 3000)
    with pytest.raises(mri.BadInput, match=r"x\.h5: no other training file of its size can stand in"):
        dataset[0]


def test_a_run_tells_what_it_left_out(data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "data")
    victim = sorted((tmp_path / "data" / "train").iterdir())[0]
    shutil.copy(victim, victim.with_name("copy.h5"))
    save = mri.RunState.save

    def save_and_damage(state, *arguments):
        save(state, *arguments)
        victim.write_bytes(b"")

    monkeypatch.setattr(mri.RunState, "save", save_and_damage)
    settings = as_given(SMALL | {"data": str(tmp_path / "data"), "out": str(tmp_path / "run")})
    module = importlib.import_module("train")
    metrics = module.run(**settings, skip_unreadable=True)
    assert f"1 training volumes turned unreadable and were left out: {victim.name}" in metrics["warnings"]
    assert metrics["provenance"]["training_data"]["volumes"] == 4
    assert len(log(tmp_path / "run")) == 3


def test_threads_read_the_same_validation_volume(tiny):
    dataset = mri.SliceDataset(mri.read_folder(tiny / "val"), "random", 4, 0.1)
    machine = mri.Machine(batch_size=2, workers=3)
    for volume in range(2):
        plain = mri.reconstruct_volume(mri.zero_filled, dataset, volume)
        threads = mri.reconstruct_volume(mri.zero_filled, dataset, volume, machine)
        assert all(torch.equal(a, b) for a, b in zip(plain[:2], threads[:2])) and len(plain[0]) == 2


@pytest.mark.parametrize(
    "room, workers, processes", [(10**9, 4, 1), (200_000, 2, 1), (60_000, 0, 1), (1_100_000, 1, 8)]
)
def test_no_more_workers_than_shared_memory_has_room_for(room, workers, processes, tiny, monkeypatch, capsys):
    """A worker that finds none never answers."""
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=room))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    dataset = mri.SliceDataset(mri.read_folder(tiny / "train"), "random", 4, 0.1, seed=0)
    assert max(dataset.size(i) for i in range(len(dataset))) == (48, 52)
    assert mri.make_loader(dataset, 1, True, 4).num_workers == workers
    told = "" if workers == 4 else f"workers: {workers}, not 4: /dev/shm has room for no more"
    assert capsys.readouterr().out.startswith(told)


def test_validation_takes_no_more_slices_at_once_than_a_piece_of_training(tiny):
    dataset, taken = mri.SliceDataset(mri.read_folder(tiny / "val"), "random", 4, 0.1), []

    def method(kspace, mask, size):
        taken.append(len(kspace))
        return mri.zero_filled(kspace, mask, size)

    train = importlib.import_module("train")
    for accumulate in (1, 2):
        machine = train.machine_of(train.settled(device="cpu", batch_size=2, accumulate=accumulate))
        mri.reconstruct_volume(method, dataset, 0, machine)
    assert taken == [2, 1, 1]


def test_memory_and_open_files_stay_as_they_are(data, tmp_path):
    code = f"""
import os, mri_utils as mri, torch
torch.set_num_threads(1)
raw = mri.read_folder({str(data / "train")!r})
loaders = [mri.make_loader(mri.SliceDataset(v, "random", 4, .1, seed=0), 3, True)
           for v in (raw, mri.cache_volumes(raw, {str(tmp_path)!r}))]
def state():
    return int(open("/proc/self/statm").read().split()[1]) * 4096, len(os.listdir("/proc/self/fd"))
for epoch in range(50):
    for loader in loaders:
        loader.dataset.epoch = epoch
        for batch in mri.training_batches(loader, "cpu"):
            pass
    if epoch == 1:
        early = state()
print(*early, *state())
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    early, files, late, files_late = map(int, done.stdout.split())
    assert late < 1.05 * early and files == files_late


# --- compute options --------------------------------------------------------------------------------


def steps_with(**options):
    """Weights of a linear unit after 0, 1, 2 .. steps, what the hook returned after each, and the gradients' norms."""
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.5)
    model = mri.step_hooks(optimizer, network, **options)
    history, averages, norms = [network.weight.detach().clone()], [], []
    for step in range(4):
        optimizer.zero_grad()
        (network(torch.ones(3)) * (step + 5)).sum().backward()
        optimizer.step()
        history.append(network.weight.detach().clone())
        averages.append(model.weight.detach().clone())
        norms.append(float(torch.cat([w.grad.flatten() for w in network.parameters()]).norm()))
    return history, averages, norms


def test_moving_average_of_the_weights():
    history, averages, _ = steps_with(clip=0.0, ema=0.3)
    expected = history[0]
    for step, weight in enumerate(history[1:], 1):
        keep = min(0.3, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * weight
        assert torch.allclose(averages[step - 1], expected, atol=1e-6)
    history, averages, _ = steps_with(clip=0.0, ema=0.0)
    assert all(torch.equal(a, b) for a, b in zip(history[1:], averages))


def test_gradients_are_clipped():
    assert min(steps_with(clip=0.0, ema=0.0)[2]) > 10
    assert max(steps_with(clip=2.0, ema=0.0)[2]) == pytest.approx(2, rel=1e-4)
    assert min(steps_with(clip=1e6, ema=0.0)[2]) > 10


def test_average_is_saved_scored_and_resumed(data, tmp_path):
    model, _ = only_train(data, tmp_path / "whole", ema=0.9, clip=0.5)
    content = mri.read_checkpoint(tmp_path / "whole" / "checkpoint.pt")
    loaded = mri.load_model(tmp_path / "whole" / "checkpoint.pt").state_dict()
    assert all(torch.equal(loaded[name], w) for name, w in model.state_dict().items())
    assert any(not torch.equal(loaded[name], w) for name, w in content["network_state"].items())
    options = {
        "ema": 0.9,
        "clip": 0.5,
        "schedule": "constant",
    }  # for a shorter training to be the beginning of a longer
    only_train(data, tmp_path / "undisturbed", **options)
    only_train(data, tmp_path / "resumed", **options, epochs=1)
    only_train(data, tmp_path / "resumed", **options, resume=True)
    assert (tmp_path / "resumed" / "log.csv").read_bytes() == (tmp_path / "undisturbed" / "log.csv").read_bytes()


def test_compiled_for_whole_batches_only(tiny, capsys):
    """Other sizes, of an odd one among them, go without: they are as right, and nothing is compiled for them."""
    plain = mri.build_model("magnitude_unet(features=2, levels=1)")
    dataset = mri.SliceDataset(mri.read_folder(tiny / "val"), "random", 4, 0.1)
    torch.nn.init.normal_(plain.network.last.weight)
    try:
        network = copy.deepcopy(plain)
        mri.compile_convolutions(network, dataset, mri.Machine(batch_size=2))
        assert capsys.readouterr().out == ""  # it did not fall back
        sizes = Counter(torch._dynamo.utils.counters["stats"])
        for slices, odd in ((2, 0), (3, 0), (2, 1)):
            batch = mri.Sample.stack([dataset[0]] * slices)
            batch.target = batch.target[..., odd:, odd:]
            for training in (True, False):
                with torch.inference_mode(not training):
                    found, expected = (mri.reconstruct(n.train(training), batch) for n in (network, plain))
                assert found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert Counter(torch._dynamo.utils.counters["stats"]) == sizes and sizes["unique_graphs"] >= 2
    finally:
        torch.compiler.set_stance("default")
        torch.compiler.reset()


def test_compiling_falls_back_with_a_line(tiny, monkeypatch, capsys):
    network = mri.build_model("unet(features=4, levels=2)")

    def fail(*_, **__):
        raise RuntimeError("no compiler here\nwith details")

    def compile_to_a_fault(module, **_):
        module.register_forward_pre_hook(lambda *_: fail() if not stances else None)

    stances = []
    monkeypatch.setattr(torch.nn.Module, "compile", compile_to_a_fault)
    monkeypatch.setattr(torch.compiler, "set_stance", stances.append)
    before = torch.get_rng_state()
    dataset = mri.SliceDataset(mri.read_folder(tiny / "train"), "random", 4, 0.1, seed=0)
    mri.compile_convolutions(network, dataset, mri.Machine(batch_size=2))
    assert capsys.readouterr().out == "torch.compile failed (no compiler here): going on without it\n"
    assert stances == ["force_eager"] and torch.equal(torch.get_rng_state(), before)
    assert all(w.grad is None for w in network.parameters())


@pytest.mark.parametrize("model", ["unet", "cine_dual_unet"])  # with convolutions of 2 and of 3 axes
def test_what_was_trained_on_a_gpu_can_be_read(model, tmp_path):
    call = f"{model}(features=4, levels=2{', frames=4' if model != 'unet' else ''})"
    settings = {"model": call, "device": "cuda", "precision": "bfloat16", "compile": True}
    network = mri.build_model(call)
    mri.save_checkpoint(tmp_path / "x.pt", {"model_state": network.state_dict(), "parameters": settings})
    assert mri.read_checkpoint(tmp_path / "x.pt")["parameters"] == settings
    assert mri.count_parameters(mri.load_model(tmp_path / "x.pt")) == mri.count_parameters(network)


def test_a_gpu_that_a_run_does_not_use_is_left_alone(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # whoever asks it for more fails
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)  # an optimizer asks, harmlessly
    only_train(tiny, tmp_path / "run", epochs=1, device="cpu")
    only_train(tiny, tmp_path / "run", epochs=2, device="cpu", resume=True)
    assert mri.provenance()["device"] == platform.machine() and set(mri.peak_memory()) == {"main"}


def test_a_machine_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert mri.provenance()["commit"] == "unknown" and not mri.provenance()["clean"]


# --- stopped and killed -----------------------------------------------------------------------------


def wait_for_epochs(out, count, process):
    while process.poll() is None and not ((out / "log.csv").exists() and len(log(out)) >= count):
        time.sleep(0.005)


def test_sigterm_ends_with_a_restartable_status(data, tmp_path):
    changes = {"epochs": 12, "batch_size": 1}
    train(data, tmp_path / "whole", **changes)
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, *words(data, out, **changes)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    wait_for_epochs(out, 1, process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == mri.EXIT_RESTART == 75
    assert told.count("\n") == 1 and "stopped by SIGTERM; --resume goes on" in told
    assert 1 <= len(log(out)) < 12
    train(data, out, resume=True, **changes)
    assert (out / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()


def test_kills_at_random_moments_lose_nothing(data, tmp_path):
    """MRI_KILLS=20 for the long form: as many kills in a row, at any moment from the start of the program on."""
    kills = int(os.environ.get("MRI_KILLS", "3"))
    changes = {"epochs": 4 * kills, "batch_size": 2, "dropout": 0.1, "cache": str(tmp_path / "cache")}
    start = time.perf_counter()
    figures = train(data, tmp_path / "whole", **changes)
    seconds, out, random = time.perf_counter() - start, tmp_path / "run", chance.Random(0)
    done = 0
    for _ in range(kills):
        command = [sys.executable, *words(data, out, resume=True, **changes)]
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.3, 0.9) * min(seconds, 6))
        process.kill()
        process.wait()
        if (out / "checkpoint.pt").exists():
            epoch = mri.read_checkpoint(out / "checkpoint.pt")["epoch"]
            assert epoch >= done  # what was done stays done
            done = epoch
    assert train(data, out, resume=True, **changes)["rows"] == figures["rows"]
    assert (out / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()


@pytest.fixture
def own_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCHLD)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    mri.STOP_SIGNALS.clear()


def explained(run):
    with pytest.raises(SystemExit) as end:
        mri.run_or_explain(run)
    return end.value.code


def test_out_of_memory_and_dead_workers_are_explained(tiny, own_signals, monkeypatch):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    assert "out of memory: raise accumulate, lower batch_size" in explained(full)
    assert "out of memory" in explained(lambda: torch.empty(2**50))  # the CPU's own words

    class Deadly(mri.SliceDataset):
        def __getitem__(self, index):
            os.kill(os.getpid(), signal.SIGKILL)

    loader = mri.make_loader(Deadly(mri.read_folder(tiny / "train"), "random", 4, 0.1, seed=0), 2, True, workers=1)
    assert "a process that reads slices died" in explained(lambda: list(loader))

    def stopped():  # SIGTERM to the whole group: first one worker ends, then, while the end is told, another
        def fail(*_):
            raise RuntimeError("DataLoader worker (pid 2) is killed by signal: Terminated. ")

        signal.signal(signal.SIGCHLD, fail)
        stream = SimpleNamespace(write=lambda text: os.kill(os.getpid(), signal.SIGCHLD))
        monkeypatch.setattr(sys, "stderr", stream)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated. ")

    assert explained(stopped) == mri.EXIT_RESTART

    def wrong():
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault of the program"):  # is not hidden
        mri.run_or_explain(wrong)


# --- a trained network on other files ---------------------------------------------------------------


def test_evaluate_reconstructs_files_with_and_without_reference(whole, data, tmp_path, capsys):
    folder = tmp_path / "files"
    shutil.copytree(data / "val", folder)
    (volume, *_) = mri.read_folder(folder)
    kspace = torch.stack([volume.kspace(i) for i in range(len(volume))])
    mask = mri.sampling_mask("random", kspace.shape, 4, 0.08, seed=1)
    about = {"target_size": volume.target_size, "acquisition": "test", "patient_id": "x"}
    mri.write_volume(folder / "test.h5", kspace, mask=mask, **about)
    module, out = importlib.import_module("train"), tmp_path / "out"
    checkpoint = str(whole.out / "checkpoint.pt")
    metrics = module.run(evaluate=checkpoint, data=str(folder), out=str(out), acceleration=5.0)
    printed = capsys.readouterr().out
    assert f"{checkpoint}: trained with another acceleration 4.0" in printed
    assert "8 slices, " in printed and "per second" in printed
    assert json.loads((out / "metrics.json").read_text())["per_volume"] == metrics["per_volume"]
    assert len(metrics["per_volume"]) == 3 and metrics["parameters"]["model"] == "unet(features=4, levels=2)"
    network = mri.load_model(checkpoint)
    for v in mri.read_folder(folder):
        with h5py.File(out / "reconstructions" / v.path.name) as file:
            stored = torch.from_numpy(file["reconstruction"][()])
        expected, target, _ = mri.reconstruct_volume(network, mri.SliceDataset([v], "random", 5, 0.08), 0)
        assert stored.shape == (2, 48, 48) and torch.allclose(stored, expected, rtol=1e-4, atol=1e-6)
        if v.path.name != "test.h5":
            assert metrics["per_volume"][v.path.name]["unet"]["ssim"] == pytest.approx(
                mri.ssim(target, stored), rel=1e-5
            )
    (folder / "only").mkdir()
    (folder / "test.h5").rename(folder / "only" / "test.h5")
    assert module.run(evaluate=checkpoint, data=str(folder / "only"), out=str(tmp_path / "only")) == {}
    assert [path.name for path in (tmp_path / "only").rglob("*.h5")] == ["test.h5"]
    with pytest.raises(mri.BadInput, match="holds a training run: choose another --out"):
        module.run(evaluate=checkpoint, data=str(folder), out=str(whole.out))


def test_tensorboard_gets_every_epoch(data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    only_train(data, tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    values = [event.value for event in events.Scalars("val_ssim")]
    assert values == pytest.approx(log(tmp_path / "run")[:, 2].tolist(), rel=1e-6)
