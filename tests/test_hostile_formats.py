"""Broken and hostile files of other scanners: as in test_hostile.py, one line each, quickly, in little memory."""

import gzip
import importlib.util
import pickle
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import test_formats as formats
from scipy.io import savemat
from test_hostile import MEGABYTES, Exploit, Worker, archive, described, fingerprint, npy, pytestmark, verdict

import mri_utils as mri

__all__ = ["pytestmark"]
KSPACE = formats.to_kspace(formats.phantom(2, 2))  # slices, coils, H, W


def write_npy(folder):
    np.save(folder / "scan.npy", KSPACE)
    return folder / "scan.npy"


def write_npz(folder):
    np.savez_compressed(folder / "scan.npz", kspace=KSPACE)
    return folder / "scan.npz"


def write_mat5(folder):
    savemat(folder / "scan.mat", {"kspace": KSPACE}, do_compression=True)
    return folder / "scan.mat"


def write_mat73(folder):
    return formats.save_v73(folder / "scan.mat", kspace=KSPACE)


def write_bart(folder):
    return formats.write_bart(folder, KSPACE)[0]


def write_calgary(folder):
    return formats.write_calgary(folder, KSPACE)[0]


def write_skm_tea(folder):
    return formats.write_skm_tea(folder, KSPACE)[0]


def write_mrd(folder):
    return formats.mrd(folder / "scan.mrd", KSPACE[:1, None, None, :, 8:24, 8:24], extra=False)


def write_nifti(folder):
    path = formats.write_nifti(folder, np.abs(formats.phantom(2)[:, 0]))
    (folder / "scan.nii").write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()
    return folder / "scan.nii"


def write_twix(folder):
    lines = [(KSPACE[0, :, :, w], {"line": w}, 0) for w in range(formats.W)]
    (folder / "meas.dat").write_bytes(formats.twix("vd", lines))
    return folder / "meas.dat"


WRITERS = (
    write_npy,
    write_npz,
    write_mat5,
    write_mat73,
    write_bart,
    write_calgary,
    write_skm_tea,
    write_mrd,
    write_nifti,
)
if importlib.util.find_spec("mapvbvd"):  # optional
    WRITERS += (write_twix,)


def damaged(folder, write):
    """Every format cut off, and with bytes changed at random."""
    whole = write(folder)
    content, random = whole.read_bytes(), np.random.default_rng(1)
    changed = [whole.with_suffix(".hdr"), whole] if write is write_bart else [whole]
    yield whole, "good"
    for place in sorted({0, 1, 7, *np.linspace(8, len(content) - 1, 20).astype(int).tolist()}):
        whole.write_bytes(content[:place])
        # a Siemens file ends with padding: without its last byte nothing is lost
        yield whole, "any" if whole.suffix == ".dat" and place == len(content) - 1 else "bad"
    whole.write_bytes(content)
    for path in changed:
        content = path.read_bytes()
        for number in range(45):
            broken = np.frombuffer(content, np.uint8).copy()
            # two thirds of them where the headers are
            places = random.integers(0, min(len(content), 1500) if number % 3 else len(content), 2 ** (number % 6))
            broken[places] = random.choice([0, 255, *random.integers(0, 256, 6)], size=len(places))
            path.write_bytes(broken.tobytes())
            yield whole, "any"
        path.write_bytes(content)


def arrays(folder, _):
    """Objects, lies about the shape, bombs, wrong kinds and shapes, in numpy's and MATLAB's files."""
    exploit = np.array([[Exploit(folder / "executed")]], dtype=object)
    rows = np.arange(2.0 * 3 * 16 * 10).reshape(2, 3, 16, 10) + 1j
    wrong = {
        "objects": exploit, "text": rows.real.astype("S8"), "bool": rows.real > 9, "real": rows.real,
        "nan": rows * np.nan,
        "inf": np.where(rows.real == 5, np.inf, rows), "zeros": rows * 0, "overflow": rows * 1e200, "flat": rows[0, 0],
        "five": np.stack([rows, rows]), "none": rows[:0], "scalar": np.array(1j), "dates": rows.real.astype("M8[s]"),
        "fields": rows.real.astype([("real", "f4"), ("imag", "f4")]),
    }  # fmt: skip
    for name, array in wrong.items():
        np.save(folder / f"{name}.npy", array)
        np.savez(folder / f"{name}.npz", kspace=array)
        yield folder / f"{name}.npy", "bad"
        yield folder / f"{name}.npz", "bad"
        if name not in ("dates", "none"):
            savemat(folder / f"{name}.mat", {"kspace": np.array([["cell"]], object) if name == "objects" else array})
            yield folder / f"{name}.mat", "bad"
    (folder / "pickled.npy").write_bytes(pickle.dumps(Exploit(folder / "executed")))
    yield folder / "pickled.npy", "bad"
    shapes = [(10**12, 1, 4, 4), (2**31,) * 4, (1, 1, 2**15, 2**15), (-1, 1, 4, 4), (1, 1, 4, 5), (10**30, 1, 1, 1)]
    lies = [npy(described(shape, "<c8")) for shape in shapes] + [
        npy(described((1, 1, 4, 4), "|O")),
        npy(" " * 2**22, version=2),
    ]
    lies += [
        npy("__import__('os').system('touch executed')"),
        npy("(" * 9000),
        npy("{" * 9000),
        npy(described(("1" * 5000,))),
    ]
    for number, content in enumerate(lies):
        (folder / f"lie_{number}.npy").write_bytes(content)
        yield folder / f"lie_{number}.npy", "bad"
        for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
            yield archive(folder / f"lie_{number}_{kind}.npz", [("kspace.npy", content)], kind), "bad"
    for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        pieces = [npy(described((2**6, 1, 2**9, 2**9), "<c8"), b""), *[bytes(2**20)] * 2**7]
        yield archive(folder / f"bomb_{kind}.npz", [("kspace.npy", pieces)], kind), "bad"
    savemat(folder / "good.mat", {"kspace": np.zeros((2, 3, 16, 10), complex)}, do_compression=False)
    content = (folder / "good.mat").read_bytes()
    sizes = np.array([2, 3, 16, 10], "<i4").tobytes()
    assert content.count(sizes) == 1
    for number, shape in enumerate([(2**30, 3, 16, 10), (2**20, 2**10, 16, 10), (-1, 3, 16, 10), (2, 3, 16, 9)]):
        (folder / f"declared_{number}.mat").write_bytes(content.replace(sizes, np.array(shape, "<i4").tobytes()))
        yield folder / f"declared_{number}.mat", "bad"
    element = zlib.compress(content[128:136] + bytes(2**28), 1)
    bomb = content[:128] + np.array([15, len(element)], "<u4").tobytes() + element
    (folder / "bomb.mat").write_bytes(bomb)
    yield folder / "bomb.mat", "bad"
    (folder / "pair").mkdir()
    texts = ["", "# Dimensions\n", "# Dimensions\n0 1\n", "# Dimensions\n" + "9 " * 400_000, "\xff"]
    texts += ["# Dimensions\n" + "9" * 5000, "# Dimensions\n-3 4\n", "# Dimensions\n1.5 2\n", "# Dimensions\n2 2\n"]
    for number, text in enumerate(texts):
        (folder / "pair" / f"{number}.hdr").write_text(text, encoding="latin-1")
        np.ones(16, np.complex64).tofile(folder / "pair" / f"{number}.cfl")
        yield folder / "pair" / f"{number}.cfl", "bad"
    np.ones(16, np.complex64).tofile(folder / "alone.cfl")
    yield folder / "alone.cfl", "bad"
    for name in ("nowhere.npy", "nul\0.npy", "long" * 100 + ".npy"):
        yield f"{folder}/{name}", "bad"


def hdf5(folder, _):
    """HDF5 whose names, types, links and sizes are not what they should be."""

    def file(name, build):
        with h5py.File(folder / name, "w") as opened:
            build(opened)
        return folder / name, "bad"

    pairs = [("real", "f4"), ("imag", "f4")]
    huge = {"shape": (2**20, 2, 2**10, 2**10), "chunks": (1, 1, 64, 64), "compression": "gzip"}
    bomb = {"shape": (2**8, 1, 2**9, 2**9), "chunks": (1, 1, 2**9, 2**9), "compression": "gzip", "compression_opts": 9}
    yield file("huge.h5", lambda f: f.create_dataset("kspace", dtype="f4", **huge))
    yield file("huge.mat", lambda f: f.create_dataset("kspace", dtype=pairs, **huge))
    yield file("bomb.mat", lambda f: f.create_dataset("kspace", data=np.zeros(bomb["shape"], "f4"), **bomb))
    yield file("odd.h5", lambda f: f.create_dataset("kspace", data=np.ones((2, 16, 10, 3), "f4")))
    yield file("three.h5", lambda f: f.create_dataset("kspace", data=np.ones((2, 16, 10), "f4")))
    yield file("more.mat", lambda f: f.create_dataset("kspace", (2, 3, 4, 4), [*pairs, ("more", "f4")]))
    yield file("text.mat", lambda f: f.create_dataset("kspace", (2, 3, 4, 4), h5py.string_dtype()))
    yield file("empty.mat", lambda f: None)
    for end in (".h5", ".mat"):
        for number, link in enumerate([h5py.ExternalLink("/etc/passwd", "x"), h5py.SoftLink("/kspace")]):
            yield file(f"link_{number}{end}", lambda f, link=link: f.__setitem__("kspace", link))
    yield file("group.h5", lambda f: f.create_group("kspace"))
    five = {"shape": (2**10, 2**9, 2**7, 2, 16), "chunks": (1, 64, 64, 1, 1), "compression": "lzf", "dtype": "c8"}
    for name, about in {"five": five, "none": {"data": np.ones((2, 0, 4, 2, 2), "c8")}}.items():
        yield file(
            f"skm_{name}.h5", lambda f, about=about: (f.create_dataset("kspace", **about), f.create_group("maps"))
        )

    plain = write_mrd(folder)
    with h5py.File(plain) as opened:
        xml, lines = opened["dataset/xml"][0], opened["dataset/data"][()]
    kind = lines.dtype

    def scan(name, text=xml, table=lines, **options):
        def build(f):
            if text is not None:
                f.create_dataset("dataset/xml", data=[text], dtype=h5py.string_dtype())
            if table is not None:
                f.create_dataset("dataset/data", data=table, dtype=getattr(table, "dtype", None), **options)

        return file(name + ".mrd", build)

    yield scan("no_header", text=None)
    yield scan("no_lines", table=None)
    yield scan("no_line", table=lines[:0])
    yield scan("numbers", table=np.ones(4))
    yield scan("fields", table=lines["head"])
    for name, text in {
        "no_xml": b"text", "entities": b"<!DOCTYPE a [<!ENTITY b 'b'>]>" + xml, "long": xml + b" " * 2**21,
        "deep": b"<a>" * 50_000, "infinite": xml.replace(b"<x>32</x>", b"<x>inf</x>"), "open": xml[:-20],
        "minus": xml.replace(b"<x>32</x>", b"<x>-32</x>"), "words": xml.replace(b"<x>32</x>", b"<x>many</x>"),
        "giant": xml.replace(b"<y>16</y>", b"<y>65535</y>").replace(b"<x>32</x>", b"<x>65535</x>"), "none": b"",
        "deeper": xml.replace(b"<z>1</z>", b"<z>60000</z>"), "nothing": xml.replace(b"<x>32</x>", b"<x>0</x>"),
    }.items():  # fmt: skip
        assert text != xml
        yield scan(f"header_{name}", text=text)
    for name, field, value in [
        ("samples", "number_of_samples", 65535), ("none", "number_of_samples", 0), ("coils", "active_channels", 65535),
        ("no_coils", "active_channels", 0), ("pre", "discard_pre", 65535), ("centre", "center_sample", 65535),
        ("noise", "flags", 2**18), ("all_flags", "flags", 2**64 - 1), ("space", "encoding_space_ref", 9),
    ]:  # fmt: skip
        table = lines.copy()
        table["head"][field] = value
        yield scan(f"head_{name}", table=table.astype(kind))
    for counter in ("kspace_encode_step_1", "slice", "repetition", "set", "contrast", "phase"):
        table = lines.copy()
        table["head"]["idx"][counter] = np.random.default_rng(0).integers(0, 65536, len(table))
        yield (
            *scan(f"counter_{counter}", table=table.astype(kind))[:1],
            "any" if counter != "kspace_encode_step_1" else "bad",
        )
    with h5py.File(folder / "declared.mrd", "w") as f:
        f.create_dataset("dataset/xml", data=[xml], dtype=h5py.string_dtype())
        f.create_dataset("dataset/data", (2**23,), kind, chunks=(1,))
    yield folder / "declared.mrd", "bad"


def nifti(folder, _):
    """Headers that lie, bombs, and kinds of numbers that are no grey image."""
    content = write_nifti(folder).read_bytes()
    dimensions = {
        "huge": [3, 30000, 30000, 30000], "large": [3, 1000, 1000, 900], "minus": [3, -2, 32, 40], "none": [3, 0, 0, 0],
        "seven": [7, 2, 2, 2, 2, 2, 2, 2], "many": [30000], "flat": [2, 40, 32], "tiny": [3, 2, 2, 2],
    }  # fmt: skip
    for name, numbers in dimensions.items():
        broken = bytearray(content)
        broken[40:56] = np.array([*numbers, *[1] * (8 - len(numbers))], "<i2").tobytes()
        for end, packed in ((".nii", bytes(broken)), (".nii.gz", gzip.compress(bytes(broken)))):
            (folder / (name + end)).write_bytes(packed)
            yield folder / (name + end), "bad"
    for code in (0, 1, 128, 2304, 255, 9999, 1536):
        broken = bytearray(content)
        broken[70:72] = np.array([code], "<i2").tobytes()
        (folder / f"type_{code}.nii").write_bytes(broken)
        yield folder / f"type_{code}.nii", "bad"
    bomb = bytearray(content[:352])
    bomb[40:56] = np.array([3, 512, 512, 512, 1, 1, 1, 1], "<i2").tobytes()
    (folder / "bomb.nii.gz").write_bytes(gzip.compress(bytes(bomb) + bytes(2**29), 1))
    yield folder / "bomb.nii.gz", "bad"
    for name, value in {"nan": np.nan, "zero": 0, "inf": np.inf}.items():
        values = np.full((len(content) - 352) // 4, value, "<f4").tobytes()
        (folder / f"{name}.nii").write_bytes(content[:352] + values)
        yield folder / f"{name}.nii", "bad"
    for name, place in {"affine": slice(280, 328), "offset": slice(108, 112), "scale": slice(112, 120)}.items():
        for value in (np.nan, np.inf, 1e30, -1e30):
            broken = bytearray(content)
            broken[place] = np.full((place.stop - place.start) // 4, value, "<f4").tobytes()
            (folder / f"{name}_{value}.nii").write_bytes(broken)
            yield folder / f"{name}_{value}.nii", "any"


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    warm = (
        write for write in WRITERS if write not in (write_calgary, write_skm_tea, write_npz)
    )  # their ends mean other readers
    worker = Worker([write(tmp_path_factory.mktemp(write.__name__)) for write in warm])
    yield worker
    worker.stop()


@pytest.fixture(scope="module")
def reports():
    return []


CASES = [*((damaged, write) for write in WRITERS), (arrays, None), (hdf5, None), (nifti, None)]


@pytest.mark.parametrize("build, write", CASES, ids=lambda value: value.__name__ if value else "")
def test_hostile_scans(build, write, worker, reports, tmp_path):
    wrong = []
    for path, expected in build(tmp_path, write):
        before = fingerprint(tmp_path)
        report = worker.open(path, "scan")
        reports.append(report)
        fault = verdict(report, expected)
        if not fault and report["kind"] == "refused" and not report["message"].startswith(str(mri.BadInput(str(path)))):
            fault = f"does not begin with the path: {report['message']}"
        if fault:
            wrong.append(f"{path}: {fault[:300]}")
        assert fingerprint(tmp_path) == before, "files were written, changed or lost"
    assert not wrong, "\n".join(["", *wrong])
    assert not list(tmp_path.rglob("executed"))


def test_summary(reports, capsys):
    kinds = [report["kind"] for report in reports]
    refused, opened, hung = (kinds.count(kind) for kind in ("refused", "opened", "hung"))
    over = sum(report["megabytes"] > MEGABYTES for report in reports) + kinds.count("MemoryError")
    crashed = len(kinds) - refused - opened - hung - kinds.count("MemoryError")
    with capsys.disabled():
        print(
            f"\nhostile scans: {len(kinds)} tried, {refused} refused in one line, {opened} opened, crashed {crashed}, "
            f"hung {hung}, over memory {over}; at most {max(r['seconds'] for r in reports):.2f} s and "
            f"{max(r['megabytes'] for r in reports):.0f} MB each"
        )
    assert crashed == hung == over == 0
