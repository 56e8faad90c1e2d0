"""What holds for any input: hypothesis looks for counterexamples to the promises of mri_utils.

Each test either gets what was promised, or one line that says why not (BadInput); nothing else.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from conftest import BFLOAT16_IS_FAST

import mri_utils as mri
from mri_parts.tasks import _check_numbers

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

# The same examples in every run: a test that fails here fails for everybody.
quickly = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
sizes = st.integers(1, 40)
anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.text()))


def one_line(error):
    text = str(error.value if hasattr(error, "value") else error)
    assert text and "\n" not in text, repr(text)
    return text


# --- Fourier and masks ------------------------------------------------------------------------------


@quickly
@given(st.lists(st.integers(1, 3), max_size=2), sizes, sizes, st.integers(0, 2**31))
def test_transforms_keep_energy_and_are_each_others_inverse(leading, height, width, seed):
    draw = torch.Generator().manual_seed(seed)
    image = torch.randn((*leading, height, width), dtype=torch.complex128, generator=draw)
    kspace = mri.fft2c(image)
    assert torch.allclose(mri.ifft2c(kspace), image)
    assert float(kspace.norm()) == pytest.approx(float(image.norm()))
    # the zero frequency is the sum of the image, and lies at N // 2
    assert torch.allclose(kspace[..., height // 2, width // 2], image.sum((-2, -1)) / (height * width) ** 0.5)


@quickly
@given(
    st.sampled_from(sorted(mri.mask_kinds("H", "W"))),
    st.tuples(st.integers(1, 64), st.integers(1, 64)),
    st.one_of(st.integers(-1, 12), st.floats(-1, 12), st.sampled_from([float("nan"), float("inf")])),
    st.one_of(st.floats(-0.1, 1.1), st.sampled_from([0.0, 1.0, float("nan")])),
    st.integers(0, 2**32 - 1),
)
@example("random", (1, 1), 1, 1.0, 0)
@example("poisson_disc", (64, 64), 1.1, 0.01, 0)  # almost everything is kept: discs smaller than a sample
def test_a_mask_or_one_line(kind, shape, acceleration, center_fraction, seed):
    try:
        mask = mri.sampling_mask(kind, shape, acceleration, center_fraction, seed)
    except mri.BadInput as error:
        one_line(error)
        return
    assert mask.dtype == torch.bool and mask.shape in (shape, shape[1:])
    assert mask[tuple(n // 2 for n in mask.shape)], "the zero frequency is always measured"
    assert 1 <= mri.effective_acceleration(mask) <= mask.numel()
    assert torch.equal(mask, mri.sampling_mask(kind, shape, acceleration, center_fraction, seed))


@quickly
@given(anything, st.text(max_size=12))
def test_any_seed_gives_a_mask_or_one_line(seed, kind):
    with pytest.raises(mri.BadInput, match="unknown mask kind") as error:
        mri.sampling_mask(kind + "?", (8, 8), 2, 0.25, seed)
    assert "\\n" not in kind or one_line(error)
    try:
        mask = mri.sampling_mask("random", (8, 32), 2, 0.25, seed)
    except mri.BadInput as error:
        assert "seed" in one_line(error)
    else:
        assert mask.shape == (32,)


@quickly
@given(st.integers(1, 400), st.floats(0.001, 1), st.integers(1, 20), st.data())
def test_grappa_mask_keeps_the_grid_and_the_centre(width, center_fraction, step, data):
    offset = data.draw(st.integers(0, step - 1))
    lines = round(width * center_fraction)
    assume(lines > 0)
    mask = mri.grappa_mask(width, center_fraction, step, offset)
    first = (width - lines + 1) // 2
    expected = {*range(offset, width, step), *range(first, first + lines)}
    assert set(mask.nonzero().flatten().tolist()) == expected


# --- files ------------------------------------------------------------------------------------------


@quickly
@given(
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 24),
    st.integers(1, 24),
    st.text(max_size=20).filter(lambda t: "\0" not in t),
    st.data(),
)
def test_what_is_written_is_read(tmp_path_factory, slices, coils, height, width, subject, data):
    size = data.draw(st.tuples(st.integers(1, height), st.integers(1, width)))
    shape = (slices, *([coils] if coils else []), height, width)
    draw = torch.Generator().manual_seed(height * width)
    kspace = torch.randn(shape, dtype=torch.complex64, generator=draw) + 0.1
    path = tmp_path_factory.getbasetemp() / "any.h5"
    try:
        mri.write_volume(path, kspace, target_size=size, acquisition="AXT1", patient_id=subject)
    except mri.BadInput as error:  # HDF5 stores no text with lone surrogates
        one_line(error)
        return
    volume = mri.read_volume(path)
    assert volume.shape == shape and volume.target_size == size and volume.patient_id == subject
    for i in range(slices):
        assert torch.equal(volume.kspace(i), kspace[i]) and volume.target(i).shape == size
        assert float(volume.target(i).max()) <= volume.maximum * (1 + 1e-6)


@quickly
@given(st.dictionaries(st.text(min_size=1, max_size=8), anything, max_size=4))
def test_any_attributes(tmp_path_factory, attributes):
    """A file whose attributes are of any kind opens; `max` counts only if it is a positive number."""
    path = tmp_path_factory.getbasetemp() / "attributes.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = np.ones((1, 4, 4), np.complex64)
        for name, value in {**attributes, "max": attributes.get("max", b"many")}.items():
            try:
                file.attrs[name] = value
            except (TypeError, ValueError, OSError, UnicodeError):
                assume(False)  # HDF5 cannot hold it
    try:
        assert mri.read_volume(path).maximum > 0
    except mri.BadInput as error:
        one_line(error)


# --- parameters -------------------------------------------------------------------------------------

SCRIPT = """
epochs: int = 3  # passes over 100 % of the data
lr: float = 0.1  # learning rate
name: str = "unet"  # of the network
resume: bool = False  # go on
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The namespace of a script with four parameters, as read_parameters sees it."""
    path = tmp_path_factory.mktemp("script") / "script.py"
    path.write_text(SCRIPT)
    kinds = {"epochs": int, "lr": float, "name": str, "resume": bool}
    values = {"epochs": 3, "lr": 0.1, "name": "unet", "resume": False}
    return {"__annotations__": kinds, "__name__": "__main__", "__file__": str(path), "__doc__": "A script.", **values}


def read_with(namespace, *words):
    old, sys.argv = sys.argv, ["script.py", *words]
    try:
        return mri.read_parameters(namespace)
    finally:
        sys.argv = old


@quickly
@given(st.integers(), st.floats(allow_nan=False), st.text().filter(lambda t: "\0" not in t), st.booleans())
def test_every_value_survives_the_command_line(script, epochs, lr, name, resume):
    words = [f"--epochs={epochs}", f"--lr={lr!r}", f"--name={name}", "--resume" if resume else "--no-resume"]
    assert read_with(script, *words) == {"epochs": epochs, "lr": lr, "name": name, "resume": resume}
    assert read_with(script) == {"epochs": 3, "lr": 0.1, "name": "unet", "resume": False}


@quickly
@given(st.sampled_from(["epochs", "lr", "resume", "name"]), anything)
def test_a_notebook_gets_a_parameter_of_its_type_or_one_line(script, name, value):
    kernel = {**script, "get_ipython": None, name: value}
    try:
        found = mri.read_parameters(kernel)
    except mri.BadInput as error:
        assert one_line(error).startswith(f"parameter {name}: ")
        return
    assert type(found[name]) is script["__annotations__"][name]
    if isinstance(value, int | float) and name in ("epochs", "lr"):
        assert found[name] == value  # nothing is rounded


@quickly
@given(st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1))
def test_unknown_words_are_refused(script, words):
    known = ("--epochs", "--lr", "--name", "--resume", "--no-resume")
    assume(not any(w.startswith(known) or w in ("-h", "--help") for w in words))
    with pytest.raises(SystemExit) as stop:
        read_with(script, *words)
    assert stop.value.code == 2


def test_the_command_line_explains_itself(script, capsys):
    with pytest.raises(SystemExit) as stop:
        read_with(script, "--help")
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and "A script." in shown
    assert "passes over 100 % of the data (default: 3)" in shown and "--no-resume" in shown
    with pytest.raises(SystemExit):
        read_with(script, "--epochs", "many")
    assert (
        capsys.readouterr().err == "script.py: argument --epochs: invalid int value: 'many' (--help lists the flags)\n"
    )


def test_an_unknown_name_in_a_kernel_is_refused(script):
    kernel = {**script, "get_ipython": None}
    with pytest.raises(mri.BadInput, match="unknown parameter 'epoch', did you mean 'epochs'"):
        mri.read_parameters({**kernel, "epoch": 3})
    assert mri.read_parameters({**kernel, "_private": 3, "torch": torch, "In": []})["epochs"] == 3
    assert mri.read_parameters({**kernel, "parameters": {}, "mine": 3})["epochs"] == 3  # run again, by hand
    imported = {**script, "__name__": "script"}
    assert read_with(imported, "--epochs", "9")["epochs"] == 3  # a module takes nobody's flags


@pytest.mark.parametrize("fault", [mri.BadInput("data/x.h5: no such file: check the path"), KeyboardInterrupt()])
def test_a_program_ends_with_one_line_and_a_notebook_with_the_exception(fault, monkeypatch):
    def run():
        raise fault

    monkeypatch.setattr(sys, "argv", ["/some/where/train.py"])
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace())
    assert mri.run_or_explain(lambda: 5) == 5
    with pytest.raises(SystemExit) as stop:
        mri.run_or_explain(run)
    assert stop.value.code.startswith("train.py: ") and "\n" not in stop.value.code
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(get_ipython=None))
    assert mri.run_or_explain(lambda: 5) == 5
    with pytest.raises(type(fault)):
        mri.run_or_explain(run)


FRACTIONS = ("ema",)  # from 0 to below 1
AT_LEAST_0 = ("workers", "shards", "train_slices", "seed", "weight_decay", "tv_weight", "clip")
GOOD = dict.fromkeys(("epochs", "batch_size", "accumulate"), 1) | dict.fromkeys(AT_LEAST_0 + FRACTIONS, 0)
FREE = {"adversary": ""}


@quickly
@given(st.sampled_from(sorted(GOOD)), st.integers(-3, 3))
def test_numbers_of_a_run(name, value):
    good = SimpleNamespace(**GOOD | FREE, lr=0.1)
    _check_numbers(good)
    lowest = GOOD[name]
    allowed = value == 0 if name in FRACTIONS else value >= lowest - (name == "workers")  # -1: as the device needs
    setattr(good, name, value)
    if allowed:
        _check_numbers(good)
    else:
        with pytest.raises(mri.BadInput, match=f"^{name} ") as error:
            _check_numbers(good)
        one_line(error)


@pytest.mark.parametrize("lr", [0, -1, float("inf"), float("nan")])
def test_learning_rates_that_cannot_work(lr):
    with pytest.raises(mri.BadInput, match=r"^lr "):
        _check_numbers(SimpleNamespace(**GOOD | FREE, lr=lr))


@pytest.mark.parametrize(
    "gpu, asked, settled",
    [
        (None, {}, ("cpu", "float32", 0)),
        (None, {"device": "cpu", "precision": "bfloat16", "workers": 3}, ("cpu", "bfloat16", 3)),
        ("new", {}, ("cuda", "bfloat16", 4)),
        ("old", {"device": "cuda"}, ("cuda", "float32", 4)),
        ("new", {"precision": "tf32", "workers": 0}, ("cuda", "tf32", 0)),
        ("new", {"device": "cpu"}, ("cpu", "float32", 0)),
        ("fast processor", {}, ("cpu", "bfloat16", 0)),
        ("fast processor", {"precision": "float32"}, ("cpu", "float32", 0)),
    ],
)
def test_each_device_has_its_defaults(gpu, asked, settled, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu in ("new", "old"))
    monkeypatch.setattr("mri_parts.methods.bfloat16_is_fast", lambda: gpu == "fast processor")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or gpu == "new"
    )
    for module, name in ((torch.backends.cudnn, "allow_tf32"), (torch.backends.cudnn, "benchmark")):
        monkeypatch.setattr(module, name, getattr(module, name))  # to be set back
    machine = mri.choose_machine(**asked)
    assert (machine.device, machine.precision, machine.workers) == settled
    if machine.device == "cuda":
        assert torch.backends.cudnn.allow_tf32 == (machine.precision != "float32")


@pytest.mark.parametrize(
    "told, fast",
    [
        (None, False),  # no Linux
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("flags\t\t: fpu avx512f avx512_bf16 wbnoinvd\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
    ],
)
def test_a_processor_says_whether_it_multiplies_bfloat16(told, fast, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda path: told is not None)
    monkeypatch.setattr(Path, "read_text", lambda path, **options: told)
    assert BFLOAT16_IS_FAST() == fast


@pytest.mark.parametrize(
    "asked, line",
    [
        ({"device": "cuda"}, "no GPU"),
        ({"device": "cudo"}, "did you mean 'cuda'"),
        ({"precision": "float16"}, "did you mean 'bfloat16'"),
    ],
)
def test_devices_and_precisions_that_there_are_not(asked, line, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(mri.BadInput, match=line):
        mri.choose_machine(**asked)
