"""What several test files share: small simulated data, the real scans, stored reference values."""

import importlib
import os
import re
import runpy
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import mri_utils as mri

# on a busy machine more threads are slower; beside other processes of pytest-xdist one is enough
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests ask for the same digits twice; test_gpu.py has the GPU to itself
methods = importlib.import_module("mri_parts.methods")
BFLOAT16_IS_FAST = methods.bfloat16_is_fast
methods.bfloat16_is_fast = lambda: False  # the same digits on every processor; QUICK does so in programs
SHARED = mri.ROOT.parent / "shared"
QUICK = Path(__file__).parent / "quick"


def pytest_configure(config):
    """Programs and kernels that tests start tune their baselines quickly: see QUICK."""
    if not getattr(config.option, "numprocesses", None):  # not in the process that only starts pytest-xdist's workers
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(QUICK), os.environ.get("PYTHONPATH")]))


def pytest_xdist_auto_num_workers():
    """For `-n auto`, one more than cores: tests in the browser and of programs wait half of their time."""
    return min((os.cpu_count() or 1) + 1, 4)


NETWORK_ARGUMENTS = (
    *("inner", "cascades", "consistency", "shared", "features", "levels", "stages", "dropout"),
    *("start", "frames", "sensitivities"),
)


def pytest_xdist_make_scheduler(config, log):
    """`--dist loadfile`, but the notebooks in the browser, more than any other file takes, go to two processes."""
    from xdist.scheduler import LoadFileScheduling

    class InFilesAndHalves(LoadFileScheduling):
        def _split_scope(self, nodeid):
            odd = re.search(r"test_browser.py::.*\[\d[13579]_", nodeid)
            return super()._split_scope(nodeid) + (" odd" if odd else "")

    return InFilesAndHalves(config, log) if config.getvalue("dist") == "loadfile" else None


def as_given(changes, model="unet"):
    """Parameters of train.py, with those that are a network's arguments written into the call of the model.

    A value of 0 or "" leaves an argument out: {"model": "resnet", "levels": 0} -> {"model": "resnet"}.
    """
    values = dict(changes)
    options = {name: values.pop(name) for name in NETWORK_ARGUMENTS if name in values}
    options = {name: value for name, value in options.items() if value}
    return values | {"model": mri.write_call(values.get("model", model), options)}


def save_v73(path, **arrays):
    """MATLAB's v7.3: HDF5 behind 512 bytes of text, axes in reverse, complex numbers as (real, imag)."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            pairs = np.zeros(array.T.shape, [("real", "f8"), ("imag", "f8")])
            pairs["real"], pairs["imag"] = array.T.real, array.T.imag
            file[name] = pairs
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return path


# The files that take longest begin, so that no process is left alone with one at the end.
LONGEST = ("test_browser", "test_notebooks", "test_training", "test_report", "test_distributed", "test_hostile")
LONGEST += ("test_masks", "test_classical", "test_cine", "test_coils", "test_scanner", "test_hostile_formats")


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A demo data set that trains in a second: 4 and 2 simulated heads of 2 slices."""
    return mri.demo_data(tmp_path_factory.mktemp("tiny") / "demo", train=4, val=2, slices=2, matrix=48)


@pytest.fixture(scope="module")
def quick_baselines():
    """Baselines are tuned in this process as in the programs that tests start: see QUICK."""
    shorten = runpy.run_path(str(QUICK / "sitecustomize.py"))["shorten"]
    with pytest.MonkeyPatch.context() as patch:
        for name, variable in {"methods": "CLASSICAL", "coils": "PARALLEL", "cine": "TEMPORAL_TV_WEIGHTS"}.items():
            part = importlib.import_module(f"mri_parts.{name}")
            before = getattr(part, variable)
            if isinstance(before, dict):
                for key, value in before.items():
                    patch.setitem(before, key, value)
            patch.setattr(part, variable, before)
            shorten(name, vars(part))
        yield


@pytest.fixture
def one_thread():
    """As in the programs that a test starts: sums of more threads round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real():
    """The folder with real scans."""
    folder = Path(os.environ.get("MRI_REAL_DATA", SHARED / "real"))
    if not folder.is_dir():
        pytest.skip(f"no real scans in {folder}; MRI_REAL_DATA names another folder")
    return folder


@pytest.fixture(scope="session")
def golden():
    """Inputs and what the fastMRI package returned for them."""
    path = SHARED / "golden" / "reference_values.npz"
    if not path.is_file():
        pytest.skip(f"no stored reference values in {path}")
    with np.load(path) as stored:
        return {key: stored[key] for key in stored.files if not key.startswith("mask/")}


@pytest.fixture
def random():
    """Normal random numbers of a shape, always the same sequence: real or complex torch tensors."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, dtype=torch.complex64):
        return torch.randn(shape, dtype=dtype, generator=generator)

    return draw
