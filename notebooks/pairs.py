"""Bring each notebook in step with its text: ``make sync``, or ``python notebooks/pairs.py``.

A notebook exists twice: ``notebooks/NN_name.ipynb``, executed, and ``notebooks/py/NN_name.py``,
its text without outputs, which is easy to read, compare and lint. The text is the source. Cells
whose source did not change keep their outputs; the others must be run again (``make notebooks``).

A notebook that was edited itself, so that the text would undo the edit, is reported and left
alone: ``--from-notebook`` takes its edits over into the text, ``--force`` undoes them.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parent
FORMAT = {"extension": ".py", "format_name": "percent"}
# All that a notebook says about itself: nothing in it depends on the machine that ran it.
METADATA = {
    "jupytext": {
        "cell_metadata_filter": "tags,-all",
        "notebook_metadata_filter": "kernelspec,-all",
    },
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}


def notebooks() -> list[Path]:
    """Every numbered notebook, in the order of the course."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def text_path(notebook: Path) -> Path:
    """Where the text of a notebook lies: ``py/NN_name.py`` beside it."""
    return notebook.parent / "py" / f"{notebook.stem}.py"


def text_of(notebook: NotebookNode) -> str:
    """The notebook as py:percent text, with the house's metadata."""
    plain = nbformat.from_dict({**notebook, "metadata": METADATA})
    return jupytext.writes(plain, FORMAT)


def write(path: Path, text: str) -> None:
    """Write under a temporary name and rename: a file is never seen half-written."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_notebook(path: Path, notebook: NotebookNode) -> None:
    """Write a notebook with the house's metadata."""
    plain = nbformat.from_dict({**notebook, "metadata": METADATA})
    nbformat.validate(plain)
    write(path, nbformat.writes(plain) + "\n")


def with_outputs(source: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """The cells of ``source``; those that ``executed`` also has keep identity and outputs."""
    known: dict[tuple[str, str], list[NotebookNode]] = {}
    for cell in executed.cells:
        known.setdefault((cell.cell_type, cell.source), []).append(cell)
    for cell in source.cells:
        same = known.get((cell.cell_type, cell.source))
        if not same:
            continue
        old = same.pop(0)
        cell.id = old.id
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = old.outputs, old.execution_count
    return source


def edited(notebook: Path) -> bool:
    """Whether the notebook's source may hold an edit that its text lacks.

    It does not if it is as committed. Where nothing is committed, the newer file is the edited one.
    """
    command = ["git", "show", f"HEAD:./{notebook.name}"]
    try:
        shown = subprocess.run(command, cwd=notebook.parent, capture_output=True, text=True)
        committed = shown.stdout if shown.returncode == 0 else None
    except FileNotFoundError:  # no git on this machine
        committed = None
    if committed and text_of(nbformat.reads(committed, 4)) == text_of(nbformat.read(notebook, 4)):
        return False
    return notebook.stat().st_mtime > text_path(notebook).stat().st_mtime


def sync(notebook: Path, force: bool = False) -> tuple[bool, str]:
    """Bring one notebook in step with its text -> (in step now, what was done)."""
    text = text_path(notebook)
    if not text.exists():
        write(text, text_of(nbformat.read(notebook, 4)))
        return True, "text written"
    source = jupytext.read(text, fmt=FORMAT)
    if not notebook.exists():
        write_notebook(notebook, source)
        done = "notebook written: run it"
    elif text_of(source) == text_of(nbformat.read(notebook, 4)):
        done = "in step"
    elif edited(notebook) and not force:
        return False, "NOT in step, and the notebook was edited: --from-notebook or --force"
    else:
        write_notebook(notebook, with_outputs(source, nbformat.read(notebook, 4)))
        done = "notebook brought in step: run it"
    if text.read_text(encoding="utf-8") != text_of(source):
        write(text, text_of(source))
        done += ", text put in the house's form"
    return True, done


def sync_from(notebook: Path) -> tuple[bool, str]:
    """Take the notebook's source over into its text."""
    write(text_path(notebook), text_of(nbformat.read(notebook, 4)))
    return True, "text written from the notebook"


def main() -> int:
    parser = argparse.ArgumentParser(description="Bring notebooks in step with their texts.")
    parser.add_argument("notebook", nargs="*", type=Path, help="default: every notebook")
    parser.add_argument("--from-notebook", action="store_true", help="the notebook is right")
    parser.add_argument("--force", action="store_true", help="the text is right")
    options = parser.parse_args()
    names = {path.stem for path in notebooks()}
    names |= {path.stem for path in (NOTEBOOKS / "py").glob("[0-9][0-9]_*.py")}
    chosen = options.notebook or [NOTEBOOKS / f"{name}.ipynb" for name in sorted(names)]
    in_step = True
    for path in chosen:
        ok, done = sync_from(path) if options.from_notebook else sync(path, options.force)
        print(f"{path.stem:<40} {done}")
        in_step = in_step and ok
    return 0 if in_step else 1


if __name__ == "__main__":
    sys.exit(main())
