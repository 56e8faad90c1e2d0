"""The rooms: floors, a contents page that is complete and holds nothing unused, one place for each new thing."""

import ast
import json
import re

import pytest

import mri_utils as mri

FLOORS = [
    ["basics"],
    ["fourier", "hdf5", "metrics", "processes"],
    ["masks", "classical", "effects", "volumes", "parameters"],
    ["networks", "scanner", "checks"],
    ["images", "heart", "dataset"],
    ["methods", "formats"],
    ["training", "figures", "raw"],
    ["tables", "tasks"],
    ["runs", "playground", "super_resolution", "cine", "coils", "priors"],
]
PARTS = mri.ROOT / "mri_parts"
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_part_has_a_floor():
    assert {path.stem for path in PARTS.glob("*.py")} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("part", FLOOR)
def test_a_part_imports_from_lower_floors_only(part):
    for node in ast.walk(tree(PARTS / f"{part}.py")):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            assert module.split(".")[0] not in ("mri_utils", "train")
            if module.startswith("mri_parts."):
                assert FLOOR[module.removeprefix("mri_parts.")] < FLOOR[part], f"{part} imports {module}"


def test_the_contents_page_has_every_name_that_is_used_and_no_other():
    exported = [
        name.asname or name.name
        for n in ast.walk(tree(mri.ROOT / "mri_utils.py"))
        if isinstance(n, ast.ImportFrom)
        for name in n.names
    ]
    files = [p for folder in ("notebooks", "tests", "tools", "data", ".") for p in (mri.ROOT / folder).glob("*.*")]
    files += (mri.ROOT / "notebooks" / "solutions").glob("*.ipynb")
    used = set()
    for path in files:
        if path.suffix == ".ipynb":
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        else:
            text = path.read_text(encoding="utf-8") if path.suffix == ".py" else ""
        used |= set(re.findall(r"\bmri\.([A-Za-z]\w*)", text))
    assert len(exported) == len(set(exported))
    named = set(re.findall(r"\w+", mri.__doc__))  # on the page itself
    assert set(exported) - used - named == set(), "exported, but nobody uses it"
    assert {name for name in used if not hasattr(mri, name)} - {"app"} == set()  # an attribute of another thing


def test_the_twenty_definitions_to_read_first_are_there():
    lines = re.findall(r"^    ([\w, ]+?)  +\w.*\(\w+\)$", mri.__doc__.split("read first", 1)[1], re.MULTILINE)
    names = [name.strip() for line in lines for name in line.split(",")]
    assert 18 <= len(names) <= 24 and all(hasattr(mri, name) for name in names)


def test_every_notebook_and_script_of_the_book_imports_it_before_torch():
    """How torch's threads wait is settled in mri_parts/__init__.py, and counts from when torch is loaded."""
    for path in [mri.ROOT / "train.py", *(mri.ROOT / "notebooks").glob("**/*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code")
        found = re.findall(r"^(?:import|from) (torch|mri_utils|train)\b", text, re.MULTILINE)
        assert found[0] != "torch", path.name
