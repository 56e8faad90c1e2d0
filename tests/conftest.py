"""What several test files share: small simulated data, the real scans, stored reference values."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import mri_utils as mri

torch.set_num_threads(2)  # on a busy machine more threads are slower
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests ask for the same digits twice; test_gpu.py has the GPU to itself
SHARED = mri.ROOT.parent / "shared"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A demo data set that trains in a second: 4 and 2 simulated heads of 2 slices."""
    return mri.demo_data(tmp_path_factory.mktemp("tiny") / "demo", train=4, val=2, slices=2, matrix=48)


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
