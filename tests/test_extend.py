"""What a reader adds from a notebook: each new thing is one definition and one registration, used by train.py at once.

Nothing here touches the package: a 1-D and a 2-D mask, a loss, a metric, a network with an argument of its own, a
reader, and a whole task, T2 mapping from multi-echo scans, scored in milliseconds.
"""

import json

import numpy as np
import pytest
import torch
from torch import nn

import mri_utils as mri
import train

pytestmark = pytest.mark.usefixtures("quick_baselines")
TINY = {"epochs": 1, "train_slices": 4, "device": "cpu", "center_fraction": 0.1}
UNET = "unet(features=4, levels=2)"


@pytest.mark.parametrize("axes", [("W",), ("H", "W")], ids=["lines", "points"])
def test_a_mask(axes, tiny, tmp_path, monkeypatch):
    def every_third(sizes, acceleration, center_fraction, generator):
        mask = np.zeros(sizes, bool)
        mask[..., generator.randint(3) :: 3] = True
        mask[..., sizes[-1] // 2] = True
        return mask

    monkeypatch.setitem(mri.MASKS, "every_third", mri.MaskKind(every_third, axes))
    metrics = train.run(data=str(tiny), mask="every_third", acceleration=3.0, model=UNET, out=str(tmp_path), **TINY)
    assert 2.5 < metrics["data"]["effective_acceleration"] < 3 and metrics["parameters"]["mask"] == "every_third"


def test_a_loss_with_an_argument(tiny, tmp_path, monkeypatch):
    def charbonnier(prediction, target, width=0.1):
        return ((prediction - target).square() + width**2).sqrt().mean()

    monkeypatch.setitem(mri.LOSSES, "charbonnier", charbonnier)
    train.run(data=str(tiny), loss="charbonnier(width=0.5)", model=UNET, out=str(tmp_path), **TINY)
    row = mri.read_run(tmp_path).history[0]
    assert 0.5 <= row["train_loss"] < 0.6  # never below its width


def test_a_network_with_an_argument_of_its_own(tiny, tmp_path, monkeypatch):
    class Smooth(nn.Module):
        """The zero-filled image, some layers that mix neighbours, and what was measured put back."""

        def __init__(self, depth=2):
            super().__init__()
            self.layers = nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(depth)))

        def forward(self, kspace, mask, size):
            image = mri.ifft2c(kspace)
            scale = image.abs().amax((-2, -1), keepdim=True)
            image = image + scale * mri.as_complex(self.layers(mri.as_channels(image / scale)))
            return mri.center_crop(mri.keep_measured(image, kspace, mask), size)

    monkeypatch.setitem(mri.MODELS, "smooth", Smooth)
    metrics = train.run(data=str(tiny), model="smooth(depth=3)", out=str(tmp_path / "run"), **TINY)
    assert "smooth" in metrics["methods"] and metrics["parameters_count"] == 3 * (2 * 2 * 9 + 2)
    assert len(mri.load_model(tmp_path / "run" / "checkpoint.pt").layers) == 3
    with pytest.raises(mri.BadInput, match="argument of model smooth 'dept', did you mean 'depth'"):
        train.run(data=str(tiny), model="smooth(dept=3)", out=str(tmp_path / "other"), **TINY)


# --- a whole task: T2 maps from undersampled multi-echo scans -----------------------------------------------

ECHO_TIMES = torch.tensor([15.0, 30.0, 60.0, 90.0])  # ms
AXES = ("slices", "echoes", "H", "W")


def scan_of(seed, side=32):
    """Four echoes of two slices of discs with different T2, as complex k-space (slices, echoes, H, W)."""
    random = np.random.default_rng(seed)
    y, x = (torch.linspace(-1, 1, side)[:, None], torch.linspace(-1, 1, side))
    image = torch.zeros(2, 4, side, side)
    for number in range(2):
        for _ in range(5):
            cy, cx, radius, t2 = *random.uniform(-0.5, 0.5, 2), random.uniform(0.2, 0.4), random.uniform(30, 150)
            inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
            image[number] = torch.where(inside, torch.exp(-ECHO_TIMES / t2)[:, None, None], image[number])
    noise = torch.from_numpy(random.standard_normal((2, *image.shape))).float()
    return mri.fft2c(torch.polar(image, 0.5 * x + y) + 0.003 * torch.complex(*noise))


def write_scans(folder):
    for number, split in enumerate(["train"] * 3 + ["val"] * 2):
        about = {"target_size": (32, 32), "acquisition": "MESE", "patient_id": f"phantom {number}", "axes": AXES}
        mri.write_volume(folder / split / f"{number}.h5", scan_of(number), **about)
    return folder


class EchoNetwork(nn.Module):
    """All echoes as channels of one U-Net; each echo's measured samples are put back."""

    axes = AXES[1:]

    def __init__(self, features=8):
        super().__init__()
        self.network = mri.inner_network("unet(levels=2)", 8, 8, features=features)

    def forward(self, kspace, mask, size):
        image = mri.ifft2c(kspace)
        scale = image.abs().amax((-3, -2, -1), keepdim=True)
        change = self.network(mri.as_channels(image / scale).flatten(1, 2)).unflatten(1, (2, -1))
        return mri.center_crop(mri.keep_measured(image + scale * mri.as_complex(change), kspace, mask), size)


def t2_map(echoes):
    """(slices, 4, h, w) magnitudes -> T2 in ms, by a straight line through their logarithms."""
    away = (ECHO_TIMES - ECHO_TIMES.mean())[:, None, None]
    slope = (away * echoes.clamp(min=1e-6).log()).sum(1) / away.square().sum()
    return (-1 / slope.clamp(max=-1e-3)).clamp(max=300)


def t2_error(target, image):
    """Median error of T2 in ms where the first echo has signal; every echo comes as a slice."""
    target, image = (x.unflatten(0, (-1, 4)) for x in (target, image))
    signal = target[:, 0] > 0.3 * target.max()
    return float((t2_map(target) - t2_map(image)).abs()[signal].median())


def test_a_whole_task(tmp_path, monkeypatch, capsys):
    folder = write_scans(tmp_path / "scans")
    task = mri.Task(
        settings={
            "data": "data/demo_t2",
            "model": "t2_unet",
            "acceleration": 4.0,
            "center_fraction": 0.1,
            "loss": "l1",
        },
        demo=lambda: folder,
        axes=AXES,
        start=("zero_filled", mri.zero_filled),
        baselines=lambda train_set, machine: ({}, {}),
        metrics={"t2_error_ms": t2_error},
    )
    monkeypatch.setitem(mri.MODELS, "t2_unet", EchoNetwork)
    monkeypatch.setitem(mri.TASKS, "t2_mapping", task)
    own = {
        "task": "t2_mapping",
        "model": "t2_unet(features=16)",
        "lr": 0.01,
        "epochs": 20,
        "batch_size": 2,
        "device": "cpu",
    }
    metrics = train.run(**own, cache=str(tmp_path / "cache"), out=str(tmp_path / "run"))
    zero, network = (metrics["methods"][name]["t2_error_ms"]["mean"] for name in ("zero_filled", "t2_unet"))
    assert 1 < zero < 60 and 1 < network < 60
    assert metrics["methods"]["t2_unet"]["ssim"]["mean"] > metrics["methods"]["zero_filled"]["ssim"]["mean"]
    printed = capsys.readouterr().out
    assert "T2_ERROR_MS" in printed and f"{network:.3g}" in printed
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["paired"]["t2_unet - zero_filled"]["t2_error_ms"]
    rows = mri.compare_runs([mri.read_run(tmp_path / "run")])
    assert any("T2_ERROR_MS" in row for row in rows) and rows[-1]["method"].startswith("t2_unet")
    again = train.run(**own | {"epochs": 20, "resume": True}, cache=str(tmp_path / "cache"), out=str(tmp_path / "run"))
    assert again["methods"] == metrics["methods"]
    with pytest.raises(mri.BadInput, match="model 'cine_unrolled' is not for task 't2_mapping': use t2_unet"):
        train.run(task="t2_mapping", model="cine_unrolled", out=str(tmp_path / "other"))


def test_a_reader(tmp_path, monkeypatch):
    """Scans in a format of one's own: numpy files; train.py finds them in a folder by their content."""

    def read(folder):
        for path in sorted(folder.glob("*.npy")):
            about = {"target_size": (32, 32), "acquisition": "own", "patient_id": path.stem}
            mri.write_volume(path.with_suffix(".h5"), np.load(path), **about)
        return [mri.read_volume(path) for path in sorted(folder.glob("*.h5"))]

    monkeypatch.setitem(mri.READERS, "numpy files", mri.Reader(lambda folder: any(folder.glob("*.npy")), read))
    for number, split in enumerate(["train", "train", "val"]):
        (tmp_path / "mine" / split).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "mine" / split / f"head{number}.npy", scan_of(number)[:, 0])
    metrics = train.run(
        data=str(tmp_path / "mine"), model=UNET, out=str(tmp_path / "run"), **TINY | {"center_fraction": 0.2}
    )
    assert metrics["data"]["volumes"] == 1 and metrics["provenance"]["training_data"]["volumes"] == 2
