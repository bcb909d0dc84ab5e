"""Run notebooks in place, each from a fresh kernel: ``python notebooks/run.py [NOTEBOOK ...]``.

Without a name, every notebook is run, in the order of the course. Each prints its name, seconds,
and ``ok`` or ``FAILED`` with the cell and its error. The file of a notebook that failed is left as
it was. The exit status is 1 if any failed.

The same run gives the same file: warnings are shown here and not stored, as they differ between
machines, progress bars are dropped, and printed lines are stored in one piece.
"""

import argparse
import base64
import io
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from pairs import notebooks, write_notebook
from PIL import Image

CELL_SECONDS = 1800  # a cell that takes longer hangs
MOST_COLOURS = 4096  # of a drawing, with all the shades of its edges; a photograph has more
PROGRESS_BAR = re.compile(r"\d+%\||\d+(it|s|batch)?/s\b|\bit/s|\bs/it")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def tidy(notebook: NotebookNode) -> list[str]:
    """Leave in each cell what the next run gives too -> the warnings that were removed."""
    warnings: list[str] = []
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        outputs: list[NotebookNode] = []
        for output in cell.get("outputs", []):
            name, picture = output.get("name"), output.get("data", {}).get("image/png")
            if name == "stderr":
                warnings += re.split(r"[\r\n]+", COLOUR.sub("", output.text))
            elif outputs and name == "stdout" == outputs[-1].get("name"):
                outputs[-1].text += output.text
            else:
                outputs.append(output)
            if picture:
                output.data["image/png"] = min(picture, few_colours(picture), key=len)
        if cell.cell_type == "code":
            cell.outputs = outputs
    return [line for line in warnings if line.strip() and not PROGRESS_BAR.search(line)]


def few_colours(picture: str) -> str:
    """A PNG in base64 -> the same with a palette of 256 colours, a third of the size.

    A photograph, which has more colours than a drawing, stays as it is, and so does what has a
    palette.
    """
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    palette, image = image.mode == "P", image.convert("RGB")
    if palette or image.getcolors(MOST_COLOURS) is None:
        return picture
    small = io.BytesIO()
    # The widest cover of colours: the usual method gives rare hues, such as thin lines, away.
    cover, plain = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    image.quantize(256, method=cover, dither=plain).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def what_failed(notebook: NotebookNode, error: Exception) -> str:
    """Name the cell in which a run ended, and the error."""
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                trace = COLOUR.sub("", "\n".join(output.traceback))
                return f"cell {number} of {len(notebook.cells)}:\n{trace}"
    return COLOUR.sub("", str(error))


def run(path: Path) -> bool:
    """Run one notebook, print its line, store its outputs if it passed -> whether it passed."""
    print(f"{path.stem:<40} ", end="", flush=True)
    start = time.perf_counter()
    notebook = nbformat.read(path, 4)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,  # no time stamps: the same run gives the same file
        store_widget_state=True,
        extra_arguments=["--log-level=ERROR"],  # the kernel's own remarks on its connection
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        print(f"{time.perf_counter() - start:6.1f} s  FAILED", flush=True)
        print(what_failed(notebook, error), flush=True)
        return False
    warnings = tidy(notebook)
    write_notebook(path, notebook)
    print(f"{time.perf_counter() - start:6.1f} s  ok", flush=True)
    for line in warnings:
        print(f"    {line}", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Run notebooks in place.")
    parser.add_argument("notebook", nargs="*", type=Path, help="default: every notebook")
    chosen = [path.resolve() for path in parser.parse_args().notebook] or notebooks()
    missing = [str(path) for path in chosen if not path.is_file()]
    if missing or not chosen:
        print(f"expected notebooks, got no such file: {', '.join(missing) or 'none at all'}")
        return 1
    # No settings from the outside may change a figure.
    os.environ.pop("MPLBACKEND", None)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    failed = [path.stem for path in chosen if not run(path)]
    print(f"{len(chosen) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
