"""Broken and hostile files: each is refused in one line, quickly, in little memory, and does no harm.

A builder in FAMILIES makes files and says for each which reader opens it and whether it must be
refused ("bad"), must open ("good": odd names, odd but sound content) or may do either ("any": bytes changed at
random). A new reader (DICOM, cine) needs a function in WORKER and a builder.

The files are opened in a worker process whose memory is limited; a watchdog ends it where a file makes it hang,
and a crash of the worker counts against the file. Run with -s to see the summary.
"""

import hashlib
import io
import json
import os
import pickle
import selectors
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import mri_utils as mri

SECONDS, MEGABYTES, WATCHDOG = 2, 500, 20  # processor time and memory per file; seconds until it counts as hung
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux has it")

WORKER = """
import json, resource, sys, time, warnings
import torch
import mri_utils as mri
torch.set_num_threads(1)
warnings.simplefilter("ignore")

def volume(path):
    opened = mri.read_volume(path)
    for i in range(min(len(opened), 4)):
        assert opened.kspace(i).shape == opened.shape[1:]
        if opened.mask is None:
            assert opened.target(i).shape == opened.target_size
    assert opened.mask is not None or opened.maximum > 0
    sample = mri.SliceDataset([opened], "random", 2, 0.2)[0]
    assert mri.zero_filled(sample.kspace, sample.mask, sample.target.shape).shape == sample.target.shape

def images(path):
    for opened in mri.read_images(path):
        for i in range(min(len(opened), 4)):
            assert opened.kspace(i).shape == opened.shape[1:] and opened.target(i).shape == opened.target_size

def checkpoint(path):
    network = mri.load_model(path)
    with torch.inference_mode():
        mask = torch.ones(1, 1, 16, dtype=torch.bool)
        network(torch.ones(1, 16, 16, dtype=torch.complex64), mask, (16, 16))

def peak():
    text = open("/proc/self/status").read()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024

def cine(path):
    for opened in mri.read_cine(path)[:4]:
        assert opened.kspace(0).shape == opened.shape[1:] and opened.target(0).shape == opened.shape[1:]
        assert opened.target_size == opened.shape[2:] and opened.maximum > 0 and all(opened.fingerprints())

def scan(path):
    opened = mri.read_scan(path, ("slices", "coils", "H", "W") if path.endswith((".npy", ".npz", ".mat")) else ())
    assert opened.kspace.ndim == len(opened.axes) and opened.kspace.dtype == torch.complex64
    whole = mri.as_measured(opened, path)
    assert whole.kspace.ndim == len(opened.axes) and whole.kspace.shape[-2:] == whole.kspace[0].shape[-2:]

readers = {"volume": volume, "images": images, "checkpoint": checkpoint, "cine": cine, "scan": scan}
kinds = {"h5": "volume", "pt": "checkpoint", "npz": "cine"}
kinds |= dict.fromkeys(("mat", "npy", "nii", "cfl", "mrd", "dat"), "scan")
for good in sys.argv[2:]:  # what is loaded on first use is no fault of a file
    readers[kinds.get(good.rpartition(".")[2], "images")](good)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = size + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    open("/proc/self/clear_refs", "w").write("5")
    before, start = peak(), time.process_time()
    try:
        readers[job["reader"]](job["path"])
        kind, message = "opened", ""
    except mri.BadInput as error:
        kind, message = "refused", str(error)
    except BaseException as error:
        kind, message = type(error).__name__, str(error)[:300]
    report = {"kind": kind, "message": message, "seconds": time.process_time() - start, "megabytes": peak() - before}
    print(json.dumps(report), flush=True)
"""


class Worker:
    """A process that opens files one by one; replaced when it dies or hangs."""

    def __init__(self, good):
        self.good, self.process = good, None

    def start(self):
        words = [sys.executable, "-c", WORKER, str(MEGABYTES), *map(str, self.good)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(mri.ROOT), "MALLOC_ARENA_MAX": "2"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(words, text=True, env=environment, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def open(self, path, reader):
        """The worker's report on one file. Slow is what is slow twice: on a busy machine processor time grows too."""
        report = self.open_once(path, reader)
        if report["kind"] in ("opened", "refused") and report["seconds"] > SECONDS:
            again = self.open_once(path, reader)
            report = again | {"seconds": min(again["seconds"], report["seconds"])}
        return report

    def open_once(self, path, reader):
        if self.process is None:
            self.start()
        self.process.stdin.write(json.dumps({"path": os.fspath(path), "reader": reader}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline() if self.has_answered() else None
        if answer:
            return json.loads(answer)
        kind = "hung" if answer is None else f"died with status {self.process.wait()}"
        self.stop()
        return {"kind": kind, "message": "", "seconds": WATCHDOG, "megabytes": 0}

    def has_answered(self):
        """Whether an answer comes before the worker has computed for too long, or has done nothing for as long.

        Measured in its processor time: beside other programs the clock says little.
        """
        begun = seen = self.processor_time()
        still = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not selector.select(1):
                now = self.processor_time()
                if now > seen:
                    seen, still = now, time.monotonic()
                if now - begun > WATCHDOG or time.monotonic() - still > WATCHDOG:
                    return False
        return True

    def processor_time(self):
        """Seconds that the worker has computed."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


# --- the corpus -------------------------------------------------------------------------------------


def good_file(path, shape=(3, 16, 10), **changes):
    draw = torch.Generator().manual_seed(0)
    kspace = torch.randn(shape, dtype=torch.complex64, generator=draw)
    arguments = {"target_size": (8, 6), "acquisition": "AXT1", "patient_id": "A"} | changes
    mri.write_volume(path, kspace, **arguments)
    return path


def compressed_file(path):
    good_file(path)
    with h5py.File(path, "r+") as file:
        kspace = np.concatenate([file["kspace"][()]] * 4)
        for key in ("kspace", "reconstruction_esc", "reconstruction_rss"):
            del file[key]
        options = {"compression": "gzip", "shuffle": True, "fletcher32": True}
        file.create_dataset("kspace", data=kspace, chunks=(1, 16, 10), **options)
    return path


def truncated(folder):
    for make in (good_file, compressed_file):
        content = make(folder / "whole.h5").read_bytes()
        (folder / "whole.h5").unlink()
        places = {*range(12), *np.linspace(12, len(content) - 1, 40).astype(int).tolist(), len(content) - 1}
        for place in sorted(places):
            path = folder / f"{make.__name__}_{place}.h5"
            path.write_bytes(content[:place])
            yield path, "volume", "bad"


def changed_bytes(folder):
    random = np.random.default_rng(0)
    for make in (good_file, compressed_file):
        content = make(folder / "whole.h5").read_bytes()
        (folder / "whole.h5").unlink()
        for number in range(60):
            broken = np.frombuffer(content, np.uint8).copy()
            # half of them in the first kilobytes, where HDF5 keeps its tables
            places = random.integers(0, len(content) if number % 2 else 3000, size=2 ** (number % 6))
            broken[places] = random.choice([0, 255, *random.integers(0, 256, 6)], size=len(places))
            path = folder / f"{make.__name__}_{number}.h5"
            path.write_bytes(broken.tobytes())
            yield path, "volume", "any"


def with_data(folder, name, key, *, expected="bad", keep_target=False, **arguments):
    """A good file in which the data set `key` is another one."""
    path = good_file(folder / f"{name}.h5")
    with h5py.File(path, "r+") as file:
        if key in file:
            del file[key]
        if key == "kspace" and not keep_target:
            del file["reconstruction_esc"], file["reconstruction_rss"]
        file.create_dataset(key, **arguments)
    return path, "volume", expected


def odd_types(folder):
    compound = np.zeros((3, 16, 10), [("real", "f4"), ("imag", "f4"), ("more", "f4")])
    kinds = {
        "int": np.int32, "float": np.float64, "bool": bool, "bytes": "S8", "half": np.float16,
        "void": "V16", "enum": h5py.enum_dtype({"a": 0, "b": 1}, "i1"), "text": h5py.string_dtype(),
        "lists": h5py.vlen_dtype(np.complex64), "reference": h5py.ref_dtype, "region": h5py.regionref_dtype,
        "array": np.dtype((np.complex64, (2,))),
    }  # fmt: skip
    for name, kind in kinds.items():
        yield with_data(folder, f"kspace_{name}", "kspace", shape=(3, 16, 10), dtype=kind)
        if name not in ("int", "float", "half", "enum", "bool"):
            yield with_data(folder, f"esc_{name}", "reconstruction_esc", shape=(3, 8, 6), dtype=kind)
            yield with_data(folder, f"mask_{name}", "mask", shape=(10,), dtype=kind)
        yield with_data(folder, f"header_{name}", "ismrmrd_header", shape=(3,), dtype=kind)
    yield with_data(folder, "kspace_compound", "kspace", data=compound)
    yield with_data(folder, "esc_complex", "reconstruction_esc", data=np.ones((3, 8, 6), np.complex64))
    for key in ("kspace", "reconstruction_esc", "mask", "ismrmrd_header"):
        yield with_data(folder, f"{key}_null", key, data=h5py.Empty("c8"))
    double = np.ones((3, 16, 10), ">c16")
    yield with_data(folder, "kspace_big_endian", "kspace", data=double, keep_target=True, expected="good")
    yield with_data(folder, "kspace_too_large", "kspace", data=double * 1e200)  # infinite as complex64
    yield with_data(folder, "esc_too_large", "reconstruction_esc", data=np.full((3, 8, 6), 1e200))
    yield with_data(folder, "long_double", "kspace", data=np.ones((3, 16, 10), np.clongdouble), expected="any")


def odd_shapes(folder):
    for number, shape in enumerate(
        [(), (1,), (16, 10), (0, 16, 10), (3, 0, 10), (3, 16, 0), (3, 1, 16, 0), (1,) * 5, (1,) * 30]
    ):
        yield with_data(folder, f"shape_{number}", "kspace", shape=shape, dtype=np.complex64)
    for number, shape in enumerate([(), (3,), (3, 8), (2, 8, 6), (3, 17, 6), (3, 8, 11), (3, 0, 6), (3, 1, 8, 6)]):
        yield with_data(folder, f"esc_{number}", "reconstruction_esc", data=np.ones(shape, np.float32))
    for number, shape in enumerate([(), (9,), (11,), (3, 10), (0,)]):
        yield with_data(folder, f"mask_{number}", "mask", data=np.ones(shape, bool))
    yield with_data(folder, "mask_empty", "mask", data=np.zeros(10, bool))
    huge = {
        "slices": (10**12, 16, 10), "rows": (3, 10**9, 10), "columns": (1, 16, 2**33), "image": (1, 2**20, 2**20),
        "coils": (1, 10**6, 640, 368), "all": (2**30, 2**30, 2**30), "just": (1, 4097, 4097),
        "files": (1, 60_000, 6000),
    }  # fmt: skip
    for name, shape in huge.items():
        small = tuple(min(n, 64) for n in shape)
        yield with_data(folder, f"huge_{name}_chunks", "kspace", shape=shape, dtype=np.complex64, chunks=small)
        if np.prod([float(n) for n in shape]) < 2**60:
            yield with_data(folder, f"huge_{name}", "kspace", shape=shape, dtype=np.complex64)
    yield with_data(folder, "huge_esc", "reconstruction_esc", shape=(3, 2**20, 2**20), dtype=np.float32)
    yield with_data(folder, "huge_mask", "mask", shape=(2**36,), dtype=bool)
    yield with_data(folder, "huge_mask_square", "mask", shape=(2**20, 2**20), dtype=bool)
    yield with_data(folder, "huge_header", "ismrmrd_header", shape=(), dtype="S2000000000")
    yield with_data(folder, "huge_headers", "ismrmrd_header", shape=(2**30,), dtype="S100")
    yield with_data(folder, "huge_vlen_headers", "ismrmrd_header", shape=(2**33,), dtype=h5py.string_dtype())
    for side in (4096, 20_000):  # really compressed zeros: a small file, a large image; the first is allowed
        path, reader, _ = with_data(
            folder, f"bomb_{side}", "kspace", shape=(1, side, side), dtype="c8", chunks=(1, side, side), compression=1
        )
        with h5py.File(path, "r+") as file:
            squeeze = zlib.compressobj(1)
            zeros = (squeeze.compress(bytes(2**20)) for _ in range(side * side * 8 // 2**20))
            file["kspace"].id.write_direct_chunk((0, 0, 0), b"".join(zeros) + squeeze.flush())
        yield path, reader, "bad"


def links(folder):
    secret = good_file(folder / "other.h5")
    yield secret, "volume", "good"
    os.mkfifo(folder / "pipe")
    targets = {
        "external": h5py.ExternalLink("other.h5", "/kspace"),
        "absolute": h5py.ExternalLink(str(secret), "/kspace"),
        "missing": h5py.ExternalLink("nowhere.h5", "/kspace"),
        "pipe": h5py.ExternalLink(str(folder / "pipe"), "/kspace"),
        "device": h5py.ExternalLink("/dev/zero", "/kspace"),
        "text": h5py.ExternalLink("/etc/passwd", "/kspace"),
        "dangling": h5py.SoftLink("/nowhere"),
        "loop": h5py.SoftLink("/kspace"),
        "inside": h5py.SoftLink("/hidden/kspace"),
    }
    for name, link in targets.items():
        for key in ("kspace", "reconstruction_esc", "ismrmrd_header", "mask"):
            path = good_file(folder / f"{key}_{name}.h5")
            with h5py.File(path, "r+") as file:
                file["hidden"] = h5py.ExternalLink("other.h5", "/")
                if key in file:
                    del file[key]
                file[key] = link
            yield path, "volume", "bad"
    path = good_file(folder / "group.h5")
    with h5py.File(path, "r+") as file:
        del file["kspace"]
        file["kspace/kspace"] = 1
    yield path, "volume", "bad"
    path = good_file(folder / "named_type.h5")
    with h5py.File(path, "r+") as file:
        del file["kspace"]
        file["kspace"] = np.dtype("c8")
    yield path, "volume", "bad"
    (folder / "raw").write_bytes(bytes(3 * 16 * 10 * 8))
    outside = [(str(folder / "raw"), 0, 3 * 16 * 10 * 8)]
    yield with_data(folder, "external_storage", "kspace", shape=(3, 16, 10), dtype="c8", external=outside)
    outside = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    yield with_data(folder, "external_text", "reconstruction_esc", shape=(3, 8, 6), dtype="f4", external=outside)
    layout = h5py.VirtualLayout((3, 16, 10), "c8")
    layout[:] = h5py.VirtualSource("other.h5", "kspace", (3, 16, 10), "c8")
    path = good_file(folder / "virtual.h5")
    with h5py.File(path, "r+") as file:
        del file["kspace"]
        file.create_virtual_dataset("kspace", layout)
    yield path, "volume", "bad"
    for name, target in {"loop": "link_loop.h5", "dangling": "nowhere", "zero": "/dev/zero", "pipe": "pipe"}.items():
        (folder / f"link_{name}.h5").symlink_to(target)
        yield folder / f"link_{name}.h5", "volume", "bad"
    yield folder / "pipe", "checkpoint", "bad"


def filters(folder):
    def with_filter(name, code, chunk, options=(), optional=True):
        path = good_file(folder / f"{name}.h5")
        with h5py.File(path, "r+") as file:
            del file["kspace"], file["reconstruction_esc"]
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_chunk((1, 16, 10))
            plist.set_filter(code, h5py.h5z.FLAG_OPTIONAL if optional else 0, options)
            kind, space = h5py.h5t.py_create(np.dtype("c8")), h5py.h5s.create_simple((3, 16, 10))
            data = h5py.h5d.create(file.id, b"kspace", kind, space, plist)
            for i in range(3):
                data.write_direct_chunk((i, 0, 0), chunk, 0)
        return path, "volume", "bad"

    raw = np.ones((16, 10), np.complex64).tobytes()
    for code in (307, 32001, 32004, 32008, 32013, 32015, 32026, 511, 65535):
        yield with_filter(f"filter_{code}", code, raw)
    damaged = {
        "not_compressed": raw, "one_byte": b"x", "cut": zlib.compress(raw)[:-9],
        "longer": zlib.compress(raw * 5), "shorter": zlib.compress(raw[:-8]), "noise": bytes(range(256)) * 4,
    }  # fmt: skip
    for name, chunk in damaged.items():
        # HDF5 itself takes a chunk that unpacks to more bytes than it needs
        path, reader, expected = with_filter(f"gzip_{name}", h5py.h5z.FILTER_DEFLATE, chunk, (4,))
        yield path, reader, "any" if name in ("longer", "shorter") else expected
        path, reader, expected = with_filter(f"lzf_{name}", h5py.h5z.FILTER_LZF, chunk, (4, 261, 1280))
        yield path, reader, "any" if name in ("not_compressed", "longer") else expected
    yield with_filter("checksum", h5py.h5z.FILTER_FLETCHER32, raw + b"1234", optional=False)


def headers(folder):
    fields = {"height": 16, "width": 10, "h": 8, "w": 6, "last": 9, "center": 5}
    plain = mri.HEADER.format(**fields)
    bomb = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "ha" * 50}">' for i in range(12))
    declare = plain.replace('<?xml version="1.0"?>', '<?xml version="1.0"?><!DOCTYPE x [{}]>')
    use = declare.replace("<trajectory>cartesian", "<trajectory>{}")
    texts = {
        "empty": "", "no_xml": "<ismrmrdHeader><enc", "words": "a header", "other_root": "<a/>",
        "two_roots": "<a/><b/>",
        "laughs": use.format(bomb, "&e11;"),
        "laughs_in_attribute": declare.format(bomb).replace("<encoding>", '<encoding a="&e11;">'),
        "quadratic": use.format(f'<!ENTITY e "{"x" * 50_000}">', "&e;" * 10_000),
        "file": use.format('<!ENTITY e SYSTEM "file:///etc/passwd">', "&e;"),
        "web": use.format('<!ENTITY e SYSTEM "http://127.0.0.1:9/">', "&e;"),
        "parameter": declare.format('<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;'),
        "external_dtd": plain.replace("<ismrmrdHeader", '<!DOCTYPE x SYSTEM "file:///dev/zero"><ismrmrdHeader'),
        "recursive": use.format('<!ENTITY a "&b;"><!ENTITY b "&a;">', "&a;"),
        "deep": "<a>" * 200_000, "deep_closed": "<a>" * 100_000 + "</a>" * 100_000, "long": plain + " " * 2**20,
        "attributes": "<a " + " ".join(f'a{i}="1"' for i in range(50_000)) + "/>",
        "latin": plain.encode().replace(b"cartesian", b"cart\xe9sian"), "zeros": b"\0" * 100 + b"<a/>",
        "utf16": plain.encode("utf-16"),
        "utf16_bomb": use.format(bomb, "&e11;").replace('"1.0"?>', '"1.0" encoding="utf-16"?>').encode("utf-16"),
        "utf7": plain.replace('"1.0"?>', '"1.0" encoding="utf-7"?>').encode("utf-7").replace(b"<enc", b"+ADw-enc"),
    }  # fmt: skip
    values = ["", "five", "1e400", "nan", "9" * 5000, "-" + "9" * 4000, "0x10", "5.0", "10 10", "\u0665\u0662", "&#0;"]
    for field in fields:
        for number, value in enumerate(values):
            # a whole number may be written 5.0; limits and the matrix of the image may be missing
            good = number == 7 or (number == 0 and field in ("h", "w", "last", "center"))
            expected = "any" if field == "height" or number in (5, 9) else "good" if good else "bad"
            texts[f"{field}_{number}"] = (mri.HEADER.format(**fields | {field: value}), expected)
    for name in ("matrixSize", "encodedSpace", "reconSpace", "encodingLimits", "center", "maximum", "y"):
        without = plain.replace(f"<{name}>", f"<{name}x>").replace(f"</{name}>", f"</{name}x>")
        optional = name in ("reconSpace", "encodingLimits", "center", "maximum")
        texts[f"without_{name}"] = (without, "good" if optional else "bad")
    texts["good_utf8"] = (plain.replace("cartesian", "kärtésian"), "good")
    texts["no_namespace"] = (plain.replace(' xmlns="http://www.ismrm.org/ISMRMRD"', ""), "good")
    for name, text in texts.items():
        text, expected = text if isinstance(text, tuple) else (text, "bad")
        data = np.bytes_(text) if isinstance(text, bytes) else text
        yield with_data(folder, name, "ismrmrd_header", data=data, expected=expected)


def other_formats(folder):
    array = io.BytesIO()
    np.savez(array, dataset=np.array([Exploit(folder / "executed")], dtype=object))
    zipped, picture = io.BytesIO(), b"\x89PNG\r\n\x1a\n" + bytes(100)
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("kspace", bytes(10**7))
    contents = {
        "empty": b"", "zeros": bytes(5000), "text": b"kspace", "npz": array.getvalue(), "zip": zipped.getvalue(),
        "pickle": pickle.dumps(Exploit(folder / "executed")), "picture": picture, "elf": b"\x7fELF" + bytes(99),
        "signature": b"\x89HDF\r\n\x1a\n", "signatures": b"\x89HDF\r\n\x1a\n" * 900, "noise": bytes(range(256)) * 40,
        "shifted": bytes(512) + b"\x89HDF\r\n\x1a\n" + bytes(3000), "shell": b"#!/bin/sh\ntouch executed\n",
        "matlab": b"MATLAB 5.0 MAT-file".ljust(128) + bytes(99), "dicom": bytes(128) + b"DICM" + bytes(99),
    }  # fmt: skip
    for name, content in contents.items():
        for suffix, reader in ((".h5", "volume"), (".pt", "checkpoint")):
            (folder / (name + suffix)).write_bytes(content)
            yield folder / (name + suffix), reader, "bad"
    yield folder, "volume", "bad"
    yield folder, "checkpoint", "bad"
    yield folder / "nowhere.h5", "volume", "bad"
    yield folder / ("long" * 100 + ".h5"), "volume", "bad"
    yield folder / ("long" * 100 + ".pt"), "checkpoint", "bad"
    yield Path(str(folder) + "\0.h5"), "volume", "bad"
    yield good_file(folder / "a_good_scan.h5").rename(folder / "scan.pt"), "checkpoint", "bad"


def odd_content(folder):
    for number, value in enumerate([np.nan, np.inf, -np.inf, 1j * np.nan, 0]):
        for key in ("kspace", "reconstruction_esc"):
            path = good_file(folder / f"{key}_{number}.h5")
            with h5py.File(path, "r+") as file:
                file[key][2] = value if key == "kspace" else np.real(value + 0 * 1j if number == 3 else value)
            yield path, "volume", "any" if key != "kspace" and number in (3, 4) else "bad"
    odd = {
        "nan": np.nan, "negative": -1.0, "text": "many", "list": [1.0, 2.0], "bytes": b"\xff", "zero": 0,
        "void": np.void(b"x"), "null": h5py.Empty("f"), "complex": 1j, "reference": h5py.Reference(),
    }  # fmt: skip
    for name, value in odd.items():
        path = good_file(folder / f"attributes_{name}.h5")
        with h5py.File(path, "r+") as file:
            for key in ("max", "patient_id", "acquisition", "norm", "simulated"):
                if name == "reference":
                    file.attrs.create(key, file["kspace"].ref, dtype=h5py.ref_dtype)
                else:
                    file.attrs[key] = value
        yield path, "volume", "good"


def odd_names(folder):
    names = [
        "with space", " leading", "trailing ", "-rf", "--help", "new\nline", "carriage\rreturn", "tab\t", "quote'\"",
        "per%cent %s %d", "{brace}", "$HOME", "`touch executed`", "; touch executed", "naïve", "Kopf–Scan", "脑部",
        "עברית",
        "\u202egnp", "😀", "e\u0301", "\x1b[31mred", "\x07", "*", "?", "[a]", "~", "#1", "a" * 240, "back\\slash",
        os.fsdecode(b"not utf8 \xff"),
    ]  # fmt: skip
    for name in names:
        (folder / f"{name}.h5").write_bytes(b"no scan")
        yield folder / f"{name}.h5", "volume", "bad"
        inside = folder / f"{name} folder"
        inside.mkdir()
        yield good_file(folder / "plain.h5").rename(inside / f"{name}.h5"), "volume", "good"
        (folder / f"{name}.pt").write_bytes(b"no checkpoint")
        yield folder / f"{name}.pt", "checkpoint", "bad"


# as they were written before models were calls; below also today's form
SETTINGS = {
    "model": "unet",
    "inner": "unet",
    "features": 4,
    "levels": 2,
    "dropout": 0.0,
    "cascades": 1,
    "lr": 0.1,
    "data": "data/demo",
}


def good_checkpoint(path, **changes):
    torch.manual_seed(0)
    network = mri.build_model("unet(features=4, levels=2)")
    content = {"model_state": network.state_dict(), "parameters": SETTINGS, "epoch": 1, "history": [], "seconds": 1.0}
    mri.save_checkpoint(path, content | changes)
    return path


class Exploit:
    """Unpickled without care, it makes a file."""

    def __init__(self, marker, how=os.system):
        self.marker, self.how = marker, how

    def __reduce__(self):
        command = f"touch '{self.marker}'" if self.how is os.system else f"open({str(self.marker)!r}, 'w')"
        return self.how, (command,)


def checkpoints(folder):
    whole = good_checkpoint(folder / "whole.pt")
    yield whole, "checkpoint", "good"
    content = whole.read_bytes()
    for place in np.linspace(0, len(content) - 1, 30).astype(int):
        (folder / f"cut_{place}.pt").write_bytes(content[:place])
        yield folder / f"cut_{place}.pt", "checkpoint", "bad"
    random = np.random.default_rng(1)
    for number in range(30):
        broken = np.frombuffer(content, np.uint8).copy()
        broken[random.integers(0, len(content) if number % 2 else 2000, size=2 ** (number % 6))] = number
        (folder / f"changed_{number}.pt").write_bytes(broken.tobytes())
        yield folder / f"changed_{number}.pt", "checkpoint", "any"

    weights = mri.build_model("unet(features=4, levels=2)").state_dict()
    first, loop = next(iter(weights)), []
    loop.append(loop)
    many = [0]
    for _ in range(60):
        many = [many, many]  # 2^60 elements when printed
    parameters = {
        "none": None, "a_list": [1], "empty": {}, "no_model": {"features": 4}, "unknown": SETTINGS | {"model": "gpt"},
        "model_list": SETTINGS | {"model": ["unet"]}, "loop": SETTINGS | {"model": loop},
        "many": SETTINGS | {"model": many},
        "tensor": SETTINGS | {"levels": torch.ones(3)}, "text": SETTINGS | {"features": "4"},
        "float": SETTINGS | {"features": 4.5},
        "nan": SETTINGS | {"levels": float("nan")}, "zero": SETTINGS | {"features": 0},
        "negative": SETTINGS | {"levels": -3},
        "many_levels": SETTINGS | {"levels": 10**9}, "levels_63": SETTINGS | {"levels": 63},
        "levels_20": SETTINGS | {"levels": 20},
        "many_features": SETTINGS | {"features": 10**12}, "wide": SETTINGS | {"features": 4096, "levels": 8},
        "many_cascades": SETTINGS | {"cascades": 10**9}, "cascades_64": SETTINGS | {"cascades": 64},
        "dropout": SETTINGS | {"dropout": 7.0},
        "long_name": SETTINGS | {"model": "unet\n" * 10**5}, "other_model": SETTINGS | {"model": "magnitude_unet"},
    }  # fmt: skip
    calls = (
        "unet(",
        "unet(features=4, levels=2",
        "unet(features=print(1))",
        "unet()()",
        "unet(*[4])",
        "gpt()",
        "1",
        "",
    )
    calls += ("unet(levels=10**9)", "unet(levels=999999999)", "unet(levels=63)", "unet(features=4096, levels=8)")
    calls += (
        "unet(inner='unet(levels=99)')",
        "unet(" * 500 + ")" * 500,
        "unet(features=[4])",
        "varnet(cascades=1, features=4)",
    )
    parameters |= {f"call_{number}": {"model": call} for number, call in enumerate(calls)}
    for name, value in parameters.items():
        yield good_checkpoint(folder / f"parameters_{name}.pt", parameters=value), "checkpoint", "bad"
    shape, shared = weights[first].shape, torch.zeros(10**6)
    states = {
        "none": None, "a_list": list(weights.values()), "empty": {}, "numbers": dict.fromkeys(weights, 1.0),
        "wrong_shape": weights | {first: torch.ones(3)}, "missing": dict(list(weights.items())[1:]),
        "more": weights | {"more": torch.ones(3)}, "sparse": weights | {first: torch.zeros(shape).to_sparse()},
        "complex": weights | {first: torch.ones(shape, dtype=torch.complex64)},
        "nested": weights | {first: [torch.ones(shape)]},
        "expanded": weights | {first: torch.ones(1).expand(2**30, 2**20)}, "names": {3: torch.ones(3)},
        "expanded_to_fit": {name: torch.zeros(1).expand(w.shape) for name, w in weights.items()},
        "shared": {f"{i}": shared for i in range(5000)},
        "meta": {name: torch.empty(w.shape, device="meta") for name, w in weights.items()},
        "quantized": weights | {first: torch.quantize_per_tensor(torch.zeros(shape), 1.0, 0, torch.qint8)},
    }  # fmt: skip
    for name, value in states.items():
        expected = "any" if name == "complex" else "bad"  # torch takes the real part
        yield good_checkpoint(folder / f"weights_{name}.pt", model_state=value), "checkpoint", expected
    for name, exploit in {"system": Exploit(folder / "executed"), "eval": Exploit(folder / "executed", eval)}.items():
        for where in ("model_state", "parameters", "history"):
            path = good_checkpoint(folder / f"{name}_{where}.pt", **{where: exploit})
            yield path, "checkpoint", "bad"
        torch.save(exploit, folder / f"{name}_alone.pt")
        torch.save(exploit, folder / f"{name}_old.pt", _use_new_zipfile_serialization=False)
        (folder / f"{name}_first.pt").write_bytes(pickle.dumps(exploit) + content)
        for kind in ("alone", "old", "first"):
            yield folder / f"{name}_{kind}.pt", "checkpoint", "bad"
    torch.save(
        {"model_state": weights, "parameters": SETTINGS}, folder / "old.pt", _use_new_zipfile_serialization=False
    )
    yield folder / "old.pt", "checkpoint", "bad"
    torch.save(mri.build_model("unet(features=4, levels=2)"), folder / "whole_network.pt")
    yield folder / "whole_network.pt", "checkpoint", "bad"
    torch.jit.save(torch.jit.script(torch.nn.Conv2d(1, 1, 1)), folder / "script.pt")
    yield folder / "script.pt", "checkpoint", "bad"
    for name, kind in {"deflated": zipfile.ZIP_DEFLATED, "bzip": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}.items():
        with zipfile.ZipFile(whole) as old, zipfile.ZipFile(folder / f"{name}.pt", "w", kind) as new:
            for part in old.namelist():
                new.writestr(part, old.read(part) if "data/0" not in part else bytes(10**8))
        yield folder / f"{name}.pt", "checkpoint", "bad"


def good_dicom(path, undefined=b"", **changes):
    """A small DICOM image in a folder of its own; changes are keywords, `undefined` raw bytes before the pixels."""
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = changes.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.MRImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3.4"
    data.SeriesInstanceUID, data.Rows, data.Columns = "1.2.3", 16, 24
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelData = np.arange(16 * 24, dtype=np.uint16).tobytes()
    for keyword, value in changes.items():
        setattr(data, keyword, value)
    path.mkdir(parents=True)
    data.save_as(path / "1.dcm", enforce_file_format=True)
    if undefined:  # Rows, group 0028, is the first element behind what is inserted
        content = (path / "1.dcm").read_bytes()
        place = content.index(b"\x28\x00\x02\x00")
        (path / "1.dcm").write_bytes(content[:place] + undefined + content[place:])
    return path


def dicoms(folder):
    yield good_dicom(folder / "good"), "images", "good"
    content = (folder / "good" / "1.dcm").read_bytes()
    for place in np.linspace(140, len(content) - 2, 14).astype(int):
        (folder / f"cut_{place}").mkdir()
        (folder / f"cut_{place}" / "1.dcm").write_bytes(content[:place])
        yield folder / f"cut_{place}", "images", "bad"
    random = np.random.default_rng(2)
    for number in range(14):
        broken = np.frombuffer(content, np.uint8).copy()
        broken[random.integers(132, len(content) if number % 2 else 500, size=2 ** (number % 5))] = number * 19
        (folder / f"changed_{number}").mkdir()
        (folder / f"changed_{number}" / "1.dcm").write_bytes(broken.tobytes())
        yield folder / f"changed_{number}", "images", "any"
    odd = {
        "huge": {"Rows": 65535, "Columns": 65535}, "larger": {"Rows": 4000, "Columns": 4000}, "none": {"Rows": 0},
        "short_pixels": {"PixelData": b"12"}, "frames": {"NumberOfFrames": 2**31 - 1}, "bits": {"BitsAllocated": 12},
        "negative_frames": {"NumberOfFrames": -1}, "colours": {"SamplesPerPixel": 3},
        "palette": {"PhotometricInterpretation": "PALETTE COLOR"},
        "slope_0": {"RescaleSlope": 0, "RescaleIntercept": 0},
        "packed": {"syntax": "1.2.840.10008.1.2.4.90"}, "unknown_syntax": {"syntax": "1.2.3.4.5"},
        "deflated": {"syntax": "1.2.840.10008.1.2.1.99"}, "big_endian": {"syntax": "1.2.840.10008.1.2.2"},
    }  # fmt: skip
    for name, changes in odd.items():
        expected = "any" if name in ("slope_0", "packed", "unknown_syntax", "big_endian", "negative_frames") else "bad"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield good_dicom(folder / name, **changes), "images", expected
            except (ValueError, AttributeError):  # pydicom does not write this one; bytes that claim it do as well
                path = good_dicom(folder / f"{name}_claimed")
                claimed = content.replace(b"1.2.840.10008.1.2.1\0", changes["syntax"].encode()[:19].ljust(20, b"\0"))
                (path / "1.dcm").write_bytes(claimed)
                yield path, "images", "any"
    for name, values in {"window": "many", "matrix": "x"}.items():
        text = {"window": {"WindowCenter": [1, 2]}, "matrix": {"AcquisitionMatrix": [0, 60000, 60000, 0]}}[name]
        yield good_dicom(folder / f"{name}_{values}", **text), "images", "good"
    sequence = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    nested = {"deep": sequence * 20_000, "open": sequence, "long_text": b"\x08\x00\x90\x00PN\xff\xff"}
    nested["huge_length"] = b"\x08\x00\x41\x11OB\0\0\xf0\xff\xff\xff"
    for name, inserted in nested.items():
        yield good_dicom(folder / f"nested_{name}", undefined=inserted), "images", "bad"
    for name, tail in {"empty": b"", "noise": bytes(range(256)) * 9, "only_group_2": content[128:150]}.items():
        (folder / f"claims_{name}").mkdir()
        (folder / f"claims_{name}" / "IM0").write_bytes(bytes(128) + b"DICM" + tail)
        yield folder / f"claims_{name}", "images", "bad"


def black_png(side):
    """A picture of side x side black pixels, of one bit each: a small file, a large image."""
    squeeze, row = zlib.compressobj(1), bytes(1 + -(-side // 8))  # each row begins with its filter
    pixels = b"".join([*(squeeze.compress(row * 100) for _ in range(side // 100)), squeeze.flush()])
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    chunks = b""
    for name, content in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
        chunks += len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunks


def pictures(folder):
    png, tif = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.arange(384, dtype=np.uint8).reshape(16, 24)).save(png, "png")
    Image.fromarray(np.arange(384, dtype=np.float32).reshape(16, 24)).save(tif, "tiff")
    contents = {"good.png": png, "good.tif": tif}
    files = {name: buffer.getvalue() for name, buffer in contents.items()}
    files["bomb.png"] = black_png(60_000)
    for name in ("good.png", "good.tif"):
        for place in (0, 4, 20, 40, len(files[name]) // 2):
            files[f"cut_{place}.{name[-3:]}"] = files[name][:place]
    files |= {"text.png": b"no picture", "vector.png": b"<svg/>", "dicom.tif": bytes(128) + b"DICM" + bytes(99)}
    files["nan.tif"] = files["good.tif"].replace(np.float32(9).tobytes(), np.float32(np.nan).tobytes())
    for name, content in files.items():
        (folder / name.replace(".", "_")).mkdir()
        (folder / name.replace(".", "_") / name).write_bytes(content)
        yield folder / name.replace(".", "_"), "images", "good" if name.startswith("good") else "bad"
    (folder / "loop").mkdir()
    (folder / "loop" / "again").symlink_to(folder / "loop")
    yield folder / "loop", "images", "bad"
    yield folder / "nowhere", "images", "bad"


def good_cine(path, save=np.savez, **changes):
    """Three sequences of two frames; changes are arrays by key, None leaves one out."""
    random = np.random.default_rng(0)
    film = (random.normal(size=(3, 2, 16, 10)) + 1j * random.normal(size=(3, 2, 16, 10))).astype(np.complex64)
    arrays = {"dataset": film, "simulated": np.array(True)} | changes
    with open(path, "wb") as file:
        save(file, **{key: value for key, value in arrays.items() if value is not None})
    return path


def cines(folder):
    rows = np.arange(3 * 2 * 16 * 10).reshape(3, 2, 16, 10) + 1.0
    film, packed = good_cine(folder / "film.npz"), good_cine(folder / "packed.npz", save=np.savez_compressed)
    (folder / "a folder").mkdir()
    good_cine(folder / "a folder" / "cine.npz")
    for path in (film, packed, folder / "a folder"):
        yield path, "cine", "good"
    for kind in (np.float16, np.float64, ">f4", ">c16", np.uint16, np.int64, np.clongdouble):
        yield good_cine(folder / f"{np.dtype(kind).name}.npz", dataset=rows.astype(kind)), "cine", "good"
    yield good_cine(folder / "fortran.npz", dataset=np.asfortranarray(rows)), "cine", "good"
    for whole in (film, packed):
        content, random = whole.read_bytes(), np.random.default_rng(3)
        for place in np.linspace(0, len(content) - 1, 20).astype(int):
            (folder / f"{whole.stem}_cut_{place}.npz").write_bytes(content[:place])
            yield folder / f"{whole.stem}_cut_{place}.npz", "cine", "bad"
        for number in range(30):
            broken = np.frombuffer(content, np.uint8).copy()
            # two thirds of them where the names, sizes and the array's header are
            places = random.integers(-400 if number % 3 else 0, 200 if number % 3 else len(content), 2 ** (number % 6))
            broken[places] = random.integers(0, 256, len(places))
            (folder / f"{whole.stem}_changed_{number}.npz").write_bytes(broken.tobytes())
            yield folder / f"{whole.stem}_changed_{number}.npz", "cine", "any"
    exploit = np.array([[[[Exploit(folder / "executed")]]]], dtype=object)
    wrong = {
        "objects": exploit, "text": rows.astype("S8"), "unicode": rows.astype("U8"), "bool": rows > 9,
        "void": rows.astype("V8"), "dates": rows.astype("i8").astype("M8[s]"),
        "fields": rows.astype([("real", "f4"), ("imag", "f4")]), "scalar": np.array(1.0),
        "image": rows[0, 0], "sequence": rows[0], "five": rows[None], "none": rows[:0], "no_rows": rows[:, :, :0],
        "nan": rows * np.nan, "inf": np.where(rows == 5, np.inf, rows), "zeros": rows * 0, "overflow": rows * 1e200,
        "zero_later": rows * np.array([1, 1, 0])[:, None, None, None], "missing": None,
    }  # fmt: skip
    for name, array in wrong.items():
        yield good_cine(folder / f"wrong_{name}.npz", dataset=array), "cine", "bad"
    yield good_cine(folder / "object_beside.npz", simulated=exploit), "cine", "good"  # its name is all that counts
    names = ("array.npy", "matlab.mat", "hdf5.h5", "pickle.npz", "empty.npz", "text.npz")
    others = {name: io.BytesIO() for name in names}
    scan = good_file(folder / "scan.h5").read_bytes()
    np.save(others["array.npy"], rows)
    others["matlab.mat"].write(b"MATLAB 7.3 MAT-file".ljust(512) + scan)
    others["hdf5.h5"].write(scan)
    others["pickle.npz"].write(pickle.dumps(Exploit(folder / "executed")))
    others["text.npz"].write(b"PK\x03\x04 no archive")
    for name, buffer in others.items():
        (folder / name).write_bytes(buffer.getvalue())
        yield folder / name, "cine", "bad"
    os.mkfifo(folder / "pipe.npz")
    (folder / "loop.npz").symlink_to("loop.npz")
    (folder / "zero.npz").symlink_to("/dev/zero")
    for name in ("pipe.npz", "loop.npz", "zero.npz", "nowhere.npz", "long" * 100 + ".npz", "nul\0.npz"):
        yield Path(f"{folder}/{name}"), "cine", "bad"
    for name in ("new\nline", "\x1b[31mred", "脑部", "-rf", "$HOME"):
        yield good_cine(folder / f"{name}.npz"), "cine", "good"
        (folder / f"{name} broken.npz").write_bytes(b"")
        yield folder / f"{name} broken.npz", "cine", "bad"


def archive(path, members, kind=zipfile.ZIP_DEFLATED):
    """A zip file of (name, bytes or pieces of bytes), whatever the names are."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", kind, compresslevel=1) as file:
        warnings.simplefilter("ignore")  # of two members with one name
        for name, content in members:
            with file.open(name, "w", force_zip64=True) as member:
                for piece in [content] if isinstance(content, bytes) else content:
                    member.write(piece)
    return path


def many_members(content):
    """An uncompressed zip file of 60,000 empty members, which zipfile takes seconds to write, and dataset.npy."""
    parts, directory, place = [], [], 0
    for name, data in [*((b"%d.npy" % i, b"") for i in range(60_000)), (b"dataset.npy", content)]:
        about = struct.pack("<5H3I2H", 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0)
        parts.append(b"PK\3\4" + about + name + data)
        directory.append(b"PK\1\2\x14\0" + about + struct.pack("<3H2I", 0, 0, 0, 0, place) + name)
        place += len(parts[-1])
    length = sum(map(len, directory))
    end = struct.pack("<4H2IH", 0, 0, len(directory), len(directory), length, place, 0)
    return b"".join([*parts, *directory, b"PK\5\6", end])


def npy(header, body=bytes(64), version=1):
    """An array as numpy stores it, under any header."""
    text = header if isinstance(header, bytes) else header.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + body


def described(shape, kind="<f4", order=False):
    return f"{{'descr': {kind!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def grown(path, size):
    """Give the only member of an uncompressed archive `size` zeros more, as a hole in the file."""
    content = path.read_bytes()
    place = content.index(b"PK\1\2")
    directory, end = bytearray(content[place:]), content.index(b"PK\5\6") - place
    total = int.from_bytes(directory[20:24], "little") + size
    directory[20:28] = total.to_bytes(4, "little") * 2
    directory[end + 16 : end + 20] = (place + size).to_bytes(4, "little")
    with open(path, "wb") as file:
        file.write(content[:place])
        file.seek(place + size)
        file.write(directory)
    return path


def cine_headers(folder):
    """What numpy itself would never write: headers that lie or do not parse, bombs, odd archives."""
    body, small = np.ones(16, "<f4").tobytes(), (1, 1, 4, 4)
    plain = npy(described(small), body)
    for version in range(6):
        expected = "good" if version in (1, 2, 3) else "bad"
        path = archive(folder / f"version_{version}.npz", [("dataset.npy", npy(described(small), body, version))])
        yield path, "cine", expected
    headers = {
        "empty": "", "words": "an array", "open": "{'descr': '<f4', 'shape': (1,", "brackets": "(" * 9000,
        "signs": "-" * 9000, "signed": "-" * 9000 + "1", "quotes": "'''", "list": "[1, 2]", "latin": b"\xff\xfe{}",
        "call": "__import__('os').system('touch executed')", "keys": "{'descr': '<f4'}", "zeros": bytes(100),
        "no_shape": described("'many'"), "float_shape": described((1.0, 1, 4, 4)), "order": described(small, order="1"),
        "number": described(small, 4), "kind": described(small, "<f5"), "object": described(small, "|O"),
        "fields": described(small, "f4," * 3000), "long_text": described(small, "S2000000000"),
        "long": described(small) + " " * 60_000, "years": described(small, "M8[99999999999Y]"),
        "tabs": "if 1:\n\t1\n        2", "unclosed": "{'descr': \"\"\"", "nul": "{'descr': '\0'}",
        "deep": "{'descr': " + "[" * 150 + "]" * 150 + ", 'fortran_order': False, 'shape': (1, 1, 4, 4)}",
        "added": "1" + "+1" * 4000, "digits": described("9" * 5000), "blank": " " * 9000,
    }  # fmt: skip
    for name, header in headers.items():
        yield archive(folder / f"header_{name}.npz", [("dataset.npy", npy(header))]), "cine", "bad"
    lies = {
        "huge": npy(" " * 2**24, version=2),
        "declared": b"\x93NUMPY\2\0\xff\xff\xff\xff{",
        "none": b"",
        "cut": plain[:8],
    }
    shapes = [(-1, -1, 4, 4), (10**12, 1, 4, 4), (2**31,) * 4, (1, 1, 4, 5), (1, 1, 4, 3), (10**30, 1, 1, 1)]
    for number, shape in enumerate(shapes):
        lies |= {f"{number}_{order}": npy(described(shape, order=order)) for order in (False, True)}
    for name, content in lies.items():
        for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
            yield archive(folder / f"lie_{name}_{kind}.npz", [("dataset.npy", content)], kind), "cine", "bad"
    zeros = bytes(2**20)
    bombs = {"bomb": (2**29, 8), "bzip_bomb": (2**24, 12), "lzma_bomb": (2**24, 14)}
    bombs |= {"just_read": (2**28 - 2**20, 8)}  # and found empty
    for name, (size, kind) in bombs.items():
        pieces = [npy(described((size // 2**18, 1, 256, 256)), b""), *[zeros] * (size // 2**20)]
        yield archive(folder / f"{name}.npz", [("dataset.npy", pieces)], kind), "cine", "bad"
    # all that is declared is there, as a hole that takes no room on the disk
    for name, shape in {"many": (2**25, 1, 1, 1), "large": (1, 1, 2**13, 2**13), "film": (1, 2**25, 1, 1)}.items():
        path = archive(folder / f"sparse_{name}.npz", [("dataset.npy", npy(described(shape, "|i1"), b""))], 0)
        yield grown(path, int(np.prod(shape))), "cine", "bad"
    for number, name in enumerate(
        ["../dataset.npy", "/dataset.npy", "dataset", "DATASET.npy", "x/dataset.npy", "dataset.npy/"]
    ):
        members = [(name, plain), ("../executed", b"x"), ("/executed", b"x")]
        yield archive(folder / f"escape_{number}.npz", members), "cine", "bad"
    beside = [("../executed", b"x"), ("dataset.npy", plain)]
    yield archive(folder / "escape_beside.npz", beside), "cine", "good"  # nothing is unpacked into files
    yield archive(folder / "twice.npz", [("dataset.npy", plain), ("dataset.npy", b"junk")]), "cine", "bad"
    (folder / "many_members.npz").write_bytes(many_members(plain))
    yield folder / "many_members.npz", "cine", "any"
    inner = archive(folder / "inner.npz", [("dataset.npy", plain)]).read_bytes()
    yield archive(folder / "nested.npz", [("dataset.npy", inner)]), "cine", "bad"
    flags = {"encrypted": (8, 6, 1), **{f"method_{number}": (10, 8, number) for number in (1, 9, 93, 99)}}
    for name, (central, local, value) in flags.items():
        changed = bytearray(inner)
        changed[inner.index(b"PK\1\2") + central] = changed[inner.index(b"PK\3\4") + local] = value
        (folder / f"{name}.npz").write_bytes(changed)
        yield folder / f"{name}.npz", "cine", "bad"
    (folder / "behind.npz").write_bytes(b"#!/bin/sh\ntouch executed\n" + inner)  # zip files are read from their end
    yield folder / "behind.npz", "cine", "any"


FAMILIES = (
    truncated, changed_bytes, odd_types, odd_shapes, links, filters, headers, other_formats, odd_content, odd_names,
    checkpoints, dicoms, pictures, cines, cine_headers,
)  # fmt: skip


# --- the test ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    good = [good_file(folder / "good.h5"), good_checkpoint(folder / "good.pt"), good_dicom(folder / "images")]
    good += [good_cine(folder / "good.npz"), good_cine(folder / "packed.npz", save=np.savez_compressed)]
    Image.new("L", (16, 16), 3).save(folder / "images" / "flat.png")
    worker = Worker(good)
    yield worker
    worker.stop()


@pytest.fixture(scope="module")
def reports():
    """Family -> the worker's reports; the last test sums them up."""
    return {}


def fingerprint(folder):
    """Every name below a folder, with what it holds."""
    found = {}
    for path in sorted(folder.rglob("*"), key=os.fsencode):
        regular = path.is_file() and not path.is_symlink()
        found[os.fsencode(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if regular else path.lstat().st_mode
    return found


def verdict(report, expected):
    """What is wrong with the way a file was taken; empty if nothing is."""
    if report["kind"] not in ("opened", "refused"):
        return f"{report['kind']}: {report['message']}"
    if report["seconds"] > SECONDS or report["megabytes"] > MEGABYTES:
        return f"{report['seconds']:.1f} s, {report['megabytes']:.0f} MB"
    if (report["kind"], expected) in (("opened", "bad"), ("refused", "good")):
        return f"{report['kind']}, expected {expected}: {report['message']}"
    if report["kind"] == "refused" and not (report["message"].isprintable() and len(report["message"]) < 3000):
        return f"not one line to print: {report['message']!r}"
    return ""


@pytest.mark.parametrize("build", FAMILIES, ids=lambda build: build.__name__)
def test_hostile_files(build, worker, reports, tmp_path):
    files = list(build(tmp_path))
    before, found, wrong = fingerprint(tmp_path), [], []
    for path, reader, expected in files:
        start = time.perf_counter()
        report = worker.open(path, reader)
        found.append(report | {"wall": time.perf_counter() - start})
        fault = verdict(report, expected)
        if not fault and report["kind"] == "refused" and not report["message"].startswith(str(mri.BadInput(str(path)))):
            fault = f"does not begin with the path: {report['message']}"
        if fault:
            wrong.append(f"{path.name!r}: {fault[:300]}")
    reports[build.__name__] = found
    assert not wrong, "\n".join(["", *wrong])
    assert fingerprint(tmp_path) == before, "files were written, changed or lost"
    assert not list(tmp_path.rglob("executed")) and not Path("executed").exists(), "code was executed"


JUNK = (None, {}, [1])


def test_a_run_is_not_resumed_from_a_hostile_checkpoint(tiny, tmp_path):
    """Whatever part of a run's checkpoint is wrong: one line, and the run's folder stays as it is."""
    import train

    small = {"data": str(tiny), "epochs": 1, "model": "unet(features=4, levels=2)", "out": str(tmp_path / "run")}
    settings = train.settled(**small)
    data = train.load_data(settings)
    train.train(settings, *data)
    settings.resume = True
    path = tmp_path / "run" / "checkpoint.pt"
    whole = torch.load(path, weights_only=True)
    for key in ("model_state", "optimizer_state", "parameters", "history", "seconds", "cpu_random_state"):
        for junk in JUNK:
            if (key, junk) == ("parameters", {}):
                continue  # what is not in the file counts as unchanged
            mri.save_checkpoint(path, whole | {key: junk})
            before = fingerprint(tmp_path)
            with pytest.raises(mri.BadInput) as error:
                train.train(settings, *data)
            assert str(error.value).startswith(str(path)) and str(error.value).isprintable(), (key, junk)
            assert fingerprint(tmp_path) == before
        mri.save_checkpoint(path, {name: value for name, value in whole.items() if name != key})
        with pytest.raises(mri.BadInput):
            train.train(settings, *data)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_found_by_a_worker_process_is_one_line_too(workers, tiny):
    volume = mri.read_folder(tiny / "train")[0]
    dataset = mri.SliceDataset([volume], "random", 2, 0.2, seed=0)
    dataset.slices = [(0, 99)]
    with pytest.raises(mri.BadInput) as error:
        list(mri.make_loader(dataset, 1, False, workers))
    assert str(error.value) == f"{volume.path}: no slice 99: choose one from 0 to {len(volume) - 1}"


def test_summary(reports, capsys):
    found = [report for family in reports.values() for report in family]
    kinds = Counter(
        r["kind"] if r["kind"] in ("refused", "opened", "hung", "MemoryError") else "crashed" for r in found
    )
    over = kinds["MemoryError"] + sum(r["megabytes"] > MEGABYTES for r in found)
    with capsys.disabled():
        print(
            f"\nhostile files: {len(found)} tried, {kinds['refused']} refused in one line, {kinds['opened']} opened, "
            f"crashed {kinds['crashed']}, hung {kinds['hung']}, over memory {over}; at most "
            f"{max(r['seconds'] for r in found):.2f} s and {max(r['megabytes'] for r in found):.0f} MB each"
        )
    assert kinds["crashed"] == kinds["hung"] == over == 0
    assert len(reports) < len(FAMILIES) or len(found) >= 200
