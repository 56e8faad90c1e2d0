"""The numbers of the prose, of chapters and solutions, are those of their outputs.

Usage after a change of text: python tests/test_prose.py    (writes prose_numbers.json; look at what git says of it)

Two entries for every number, as in bookkeeping. First, a decimal, a percentage or a whole number from 10 on in a text
cell must stand in what the chapter's cells printed or in their code, there with as many digits or more. What comes
from elsewhere has its origin in prose_numbers.json: an expression of printed numbers, a file of the repository that
holds the number, or a sentence. Second, prose_numbers.json holds all these numbers in their order. Of single digits
that are changed the first entry finds two of three, because a chapter prints hundreds of numbers and some are near;
the second finds all of them.
"""

import difflib
import html
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

import mri_utils as mri

FOLDER = mri.ROOT / "notebooks"
CHAPTERS = sorted(FOLDER.glob("[0-9]*.ipynb")) + sorted(FOLDER.glob("solutions/*.ipynb"))
RECORD = Path(__file__).with_name("prose_numbers.json")
DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?"
TOLD = re.compile(rf"(?<![\w.,/-])-?({DIGITS})(?= ?(%)?)")
# of Markdown: formulas, code, pictures and tags; then links, indented code and the number of the chapter
NO_PROSE = re.compile(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|!\[.*?\]\([^)]*\)|</?[a-z][^>]*>", re.DOTALL)
LINK = re.compile(r"\[[^]]*\]\([^)]*\)|^    .*$|^# \d+ ", re.MULTILINE)


class Told(NamedTuple):
    """A number of the prose, and where it stands."""

    number: str
    cell: int
    sentence: str


def name_of(path):
    return str(path.relative_to(FOLDER).with_suffix(""))


def value(number):
    return Decimal(number.replace(",", ""))


def told(notebook):
    """The numbers of a chapter's text in their order, up to its exercises; no years, no single digits, no "01"."""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            prose = LINK.sub(" ", NO_PROSE.sub(" ", cell.source.split("## Exercises")[0]))
            for sentence in re.split(r"(?<=[.:;?!])\s+(?=\S)", " ".join(prose.split())):
                for number, percent in TOLD.findall(sentence):
                    year = re.fullmatch(r"(19|20)\d\d", number)
                    if (
                        percent
                        or "." in number
                        or "e" in number
                        or (value(number) >= 10 and number[0] != "0" and not year)
                    ):
                        yield Told(number, index, sentence)


def printed(notebook):
    """The numbers of the code cells and their outputs."""
    texts = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts.append(cell.source)
            for output in cell.outputs:
                data = output.get("data", {})
                table = re.sub(r"<style.*?</style>|<[^>]+>", " ", data.get("text/html", ""), flags=re.DOTALL)
                shown = "" if "image/png" in data else data.get("text/plain", "")
                texts += [output.get("text", ""), html.unescape(table), shown]
    return numbers_of("\n".join(texts))


def numbers_of(text):
    return {value(number) for number in re.findall(DIGITS, text)}


def holds(numbers, number):
    """Whether a number is among others, some of which may have more digits."""
    places = number.as_tuple().exponent
    finer = (n for n in numbers if n.as_tuple().exponent < places)
    return number in numbers or any(abs(n - number) * 2 <= Decimal(10) ** places for n in finer)


def from_elsewhere(number, origin, numbers):
    """Whether the origin of a number that the chapter does not print is right; words are believed."""
    place = mri.ROOT / origin
    if re.fullmatch(r"[\d.\s()*/+-]+", origin):
        known = all(holds(numbers, value(part)) for part in re.findall(DIGITS, origin))
        exact = Decimal(repr(round(eval(origin), 12)))  # digits and operators only
        return known and holds({exact}, value(number))
    if place.is_file():
        return holds(numbers_of(place.read_text(encoding="utf-8")), value(number))
    return len(origin.split()) > 1


def faults(notebook, here, numbers, origins):
    """What is wrong with the numbers of a chapter that prints `here`: a line for each, with cell and sentence."""
    found, lines, known = list(told(notebook)), [], here | {value(number) for number in origins}
    for number, cell, sentence in found:
        if not holds(here, value(number)) and not from_elsewhere(number, origins.get(number, ""), known):
            lines.append(f"cell {cell}: no output and no origin holds {number}: {sentence}")
    changes = difflib.SequenceMatcher(a=numbers, b=[each.number for each in found], autojunk=False).get_opcodes()
    for change, before, after, start, end in changes:
        was = ", ".join(numbers[before:after])
        for number, cell, sentence in found[start:end] if change in ("replace", "insert") else []:
            lines.append(f"cell {cell}: {number}, recorded is {was or 'nothing'}: {sentence}")
        if change == "delete":
            lines.append(f"recorded, but in no text: {was}")
    return lines


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", CHAPTERS, ids=name_of)
def test_numbers_of_the_prose(path, record):
    notebook = nbformat.read(path, as_version=4)
    found = faults(notebook, printed(notebook), **record.get(name_of(path), {"numbers": [], "origins": {}}))
    assert not found, "\n".join([*found, "once the text is right: python tests/test_prose.py"])


@pytest.mark.parametrize("name", ["03_aliasing", "05_evaluate", "15_multicoil"])
def test_any_changed_digit_is_found(name, record):
    """Each digit of each number under "Remember" by itself; and outputs that no longer print the numbers."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    here = printed(notebook)
    number, cell = next((i, cell) for i, cell in enumerate(notebook.cells) if "## Remember" in cell.source)
    text, start = cell.source, cell.source.index("## Remember")
    digits = [
        match.start()
        for match in re.finditer(r"(?<=\d\.\d)\d|(?<=\d\.)\d", text[: text.index("## Recall")])
        if match.start() > start
    ]
    assert len(digits) > 20
    for place in digits:
        cell.source = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
        assert any(line.startswith(f"cell {number}: ") for line in faults(notebook, here, **record[name])), cell.source
    cell.source = text
    other = {value + 1 for value in here}  # as if all cells had been executed again, with other results
    assert any("no output and no origin holds" in line for line in faults(notebook, other, **record[name]))


def write_record():
    """Record the numbers of all chapters; those that nothing explains are told, and need an origin by hand."""
    before = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    after = {}
    for path in CHAPTERS:
        notebook = nbformat.read(path, as_version=4)
        numbers, origins = [each.number for each in told(notebook)], before.get(name_of(path), {}).get("origins", {})
        used = {number: origin for number, origin in origins.items() if number in numbers}
        for line in faults(notebook, printed(notebook), numbers, used):
            print(f"{name_of(path)}, {line}")
        after[name_of(path)] = {"numbers": numbers, "origins": used}
    RECORD.write_text(json.dumps(after, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_record()
