"""Training on each device: the same on the CPU as on a GPU, where there is one.

The other tests see no GPU (conftest.py), because they ask for the same digits twice. Here each training is a program of
its own that does. How fast a GPU is: `python tests/benchmark.py`.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

import mri_utils as mri

# Two epochs in one go, then one and a resumption; prints the history of both.
SCRIPT = """
import json, sys
import torch, mri_utils as mri, train
torch.set_num_threads(1)
changes = json.loads(sys.argv[1])
def run(name, **more):
    settings = train.settled(**changes | more | {"out": changes["out"] + "/" + name})
    return train.train(settings, *train.load_data(settings))[1].history
whole = run("whole", epochs=2)
run("resumed", epochs=1)
print(json.dumps([whole, run("resumed", epochs=2, resume=True)]))
"""
SETTINGS = {"model": "unet(features=8, levels=2)", "batch_size": 2, "schedule": "constant", "loss": "l1_ssim"}
gpu = pytest.mark.skipif(not shutil.which("nvidia-smi"), reason="no GPU")


def history(device, precision, data, out, **more):
    """Of an undisturbed training and of one that was resumed; the checkpoint is in out/whole."""
    changes = SETTINGS | {"device": device, "precision": precision, "data": str(data), "out": str(out)} | more
    environment = os.environ | {"PYTHONPATH": str(mri.ROOT)}
    if device == "cuda":
        environment.pop("CUDA_VISIBLE_DEVICES")
    words = [sys.executable, "-c", SCRIPT, json.dumps(changes)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def expected(tiny, tmp_path_factory):
    """The history of a training in float32 on the CPU."""
    return history("cpu", "float32", tiny, tmp_path_factory.mktemp("cpu"))[0]


@pytest.mark.parametrize(
    "device, precision, more",
    [
        ("cpu", "bfloat16", {"workers": 1}),
        pytest.param("cuda", "float32", {}, marks=gpu),
        pytest.param("cuda", "tf32", {"workers": 2}, marks=gpu),
        pytest.param("cuda", "bfloat16", {"workers": 2, "optimizer": "adamw", "ema": 0.5, "clip": 1.0}, marks=gpu),
        pytest.param("cuda", "bfloat16", {"compile": True}, marks=gpu),
    ],
)
def test_a_device_trains_resumes_and_is_read_on_the_cpu(device, precision, more, expected, tiny, tmp_path):
    whole, resumed = history(device, precision, tiny, tmp_path, **more)
    tolerance = 0.0 if device == "cpu" else 0.01  # a GPU adds up in another order each time
    for row, again, on_cpu in zip(whole, resumed, expected, strict=True):
        for name in ("train_loss", "val_ssim"):
            assert again[name] == pytest.approx(row[name], abs=tolerance)
            if not {"optimizer", "ema"} & set(more):
                assert row[name] == pytest.approx(on_cpu[name], abs=0.02)
    network = mri.load_model(tmp_path / "whole" / "checkpoint.pt")
    val_set = mri.SliceDataset(mri.read_folder(tiny / "val"), "random", 4.0, 0.08)
    machine = mri.Machine(batch_size=2)
    images = [mri.reconstruct_volume(network, val_set, v, machine)[:2] for v in range(len(val_set.volumes))]
    found = mri.mean(mri.ssim(target, image) for image, target in images)
    assert found == pytest.approx(whole[-1]["val_ssim"], abs=0.01)
    assert all(w.device.type == "cpu" and torch.isfinite(w).all() for w in network.parameters())
