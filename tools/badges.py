"""Say where this repository is published: badges that open the book in Colab and Binder.

usage: python tools/badges.py OWNER/NAME       (make badges REPOSITORY=OWNER/NAME)

README and every numbered notebook get their badges under the title. Colab opens a notebook alone, so the first cell of
each then also fetches the rest of the repository there and installs what is missing; elsewhere it does nothing
new. Another name replaces all that. No cell is run; train.py is written anew from notebook 04.
"""

import re
import sys

import nbformat
import refresh

README = refresh.FOLDER.parent / "README.md"
BRANCH = "main"
COLAB = "https://colab.research.google.com"
BINDER = "https://mybinder.org"
# Below the first line of a notebook. Colab has its own builds of torch and numpy, and is a front end itself. No plain
# variable: read_parameters would take it for a parameter that the notebook does not know.
CELL = """
if "google.colab" in sys.modules:  # it opens a notebook alone: fetch the rest of the book, install what is missing
    import os
    import subprocess
    from pathlib import Path
    if not Path("mri_utils.py").exists():
        if not Path("book").exists():
            subprocess.run(
                ["git", "clone", "--depth=1", "https://github.com/REPOSITORY", "book"], check=True)
        os.chdir("book")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet"]
        + [line for line in Path("requirements.txt").read_text().splitlines()
           if not line.startswith(("#", "-", "torch", "numpy", "jupyterlab", "voila"))],
        check=True)
"""


def badges(repository: str, notebook: str) -> str:
    """Two pictures that lead to a notebook, as a paragraph of Markdown."""
    place = f"notebooks/{notebook}"
    return (
        f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{repository}/blob/{BRANCH}/{place})\n"
        f"[![Open in Binder]({BINDER}/badge_logo.svg)]({BINDER}/v2/gh/{repository}/HEAD?urlpath=lab/tree/{place})\n\n"
    )


def with_badges(text: str, repository: str, notebook: str) -> str:
    """A text with badges below its title, whatever badges it had."""
    title, _, rest = re.sub(r"^\[!\[Open in .*\n+", "", text, flags=re.MULTILINE).partition("\n\n")
    return f"{title}\n\n{badges(repository, notebook)}{rest}"


def publish_at(repository: str) -> None:
    """Write the badges of a repository, "owner/name" on GitHub, into README, the numbered notebooks and train.py."""
    notebooks = sorted(refresh.FOLDER.glob("[0-9]*.ipynb"))
    README.write_text(with_badges(README.read_text(encoding="utf-8"), repository, notebooks[0].name), encoding="utf-8")
    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        title, first = notebook.cells[0], next(cell for cell in notebook.cells if cell.cell_type == "code")
        title.source = with_badges(title.source, repository, path.name)
        first.source = first.source.splitlines()[0] + CELL.replace("REPOSITORY", repository).rstrip()
        nbformat.write(notebook, path)
    refresh.write_script()


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    # GitHub's rules: letters, digits and inner hyphens; in the second part dots and underscores too
    if not re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*/(?!\.{1,2}$)[\w.-]+", name, re.ASCII) or name.endswith(".git"):
        sys.exit(
            f"badges.py: {name!r} is no repository on GitHub: give its owner and name, as in REPOSITORY=owner/name"
        )
    publish_at(name)
