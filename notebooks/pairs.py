"""Bring each notebook in step with its text: ``make sync``, or ``python notebooks/pairs.py``.

A notebook exists twice: ``notebooks/NN_name.ipynb``, executed, and ``notebooks/py/NN_name.py``,
the same without outputs, which is easy to read, compare and lint. The text is the source. Cells
whose source did not change keep their outputs; the others must be run again (``make notebooks``).

A notebook newer than a text that differs is left alone, as it may hold an edit: ``--from-notebook``
takes it over into the text, ``--force`` undoes it. The text of what was undone is kept in
``.cache/replaced``.
"""

import argparse
import sys
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parent
# All that a notebook says about itself: nothing in it depends on the machine that ran it.
METADATA = {
    "jupytext": {
        "cell_metadata_filter": "tags,-all",
        "notebook_metadata_filter": "kernelspec,-all",
    },
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebooks() -> list[Path]:
    """Every numbered notebook, in the order of the course."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def text_path(notebook: Path) -> Path:
    """Where the text of a notebook lies: ``py/NN_name.py`` beside it."""
    return notebook.parent / "py" / f"{notebook.stem}.py"


def text_of(notebook: NotebookNode) -> str:
    """The notebook as py:percent text, with the course's metadata."""
    return jupytext.writes(nbformat.from_dict({**notebook, "metadata": METADATA}), "py:percent")


def write(path: Path, text: str) -> None:
    """Write under a temporary name and rename: a file is never seen half-written."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_notebook(path: Path, notebook: NotebookNode) -> None:
    """Write a notebook with the course's metadata."""
    plain = nbformat.from_dict({**notebook, "metadata": METADATA})
    nbformat.validate(plain)
    write(path, nbformat.writes(plain) + "\n")


def with_outputs(source: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """The cells of ``source``; those that ``executed`` also has keep identity and outputs."""
    known: dict[tuple[str, str], list[NotebookNode]] = {}
    for cell in executed.cells:
        known.setdefault((cell.cell_type, cell.source), []).append(cell)
    for cell in source.cells:
        if same := known.get((cell.cell_type, cell.source)):
            old = same.pop(0)
            cell |= {key: old[key] for key in ("id", "outputs", "execution_count") if key in old}
    return source


def sync(path: Path, from_notebook: bool = False, force: bool = False) -> str:
    """Bring one notebook in step with its text -> what was done; "NOT ..." if nothing was."""
    text, done = text_path(path), "in step"
    if from_notebook or not text.exists():
        write(text, text_of(nbformat.read(path, 4)))
        return "text written"
    source = jupytext.read(text, fmt="py:percent")
    plain = text_of(source)
    if not path.exists():
        write_notebook(path, source)
        done = "notebook written: run it"
    elif plain != text_of(old := nbformat.read(path, 4)):
        if not force and path.stat().st_mtime > text.stat().st_mtime:
            return "NOT in step, and the notebook is newer: --from-notebook or --force"
        kept = path.parent.parent / ".cache" / "replaced"
        kept.mkdir(parents=True, exist_ok=True)
        write(kept / f"{path.stem}.{path.stat().st_mtime:.0f}.py", text_of(old))
        write_notebook(path, with_outputs(source, old))
        done = "notebook brought in step: run it"
    if text.read_text(encoding="utf-8") != plain:
        write(text, plain)
        done += ", text put in form"
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description="Bring notebooks in step with their texts.")
    parser.add_argument("notebook", nargs="*", type=Path, help="default: every notebook")
    parser.add_argument("--from-notebook", action="store_true", help="the notebook is right")
    parser.add_argument("--force", action="store_true", help="the text is right")
    given = parser.parse_args()
    texts = (NOTEBOOKS / "py").glob("[0-9][0-9]_*.py")
    every = {*notebooks(), *(NOTEBOOKS / f"{path.stem}.ipynb" for path in texts)}
    failed = 0
    for path in given.notebook or sorted(every):
        done = sync(path, given.from_notebook, given.force)
        print(f"{path.stem:<40} {done}")
        failed |= done.startswith("NOT")
    return failed


if __name__ == "__main__":
    sys.exit(main())
