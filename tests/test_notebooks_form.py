"""The form of every notebook: paired, executed, short, in the shape that CONTRIBUTING.md gives."""

import ast
import base64
import io
import os
import re
import subprocess
import sys
from itertools import pairwise
from urllib.parse import unquote

import nbformat
import numpy as np
import pairs
import pytest
import run
from PIL import Image

NOTEBOOKS = pairs.notebooks()
SOLUTIONS = sorted((pairs.NOTEBOOKS / "solutions").glob("[0-9][0-9]_*.py"))
LARGEST = 1_000_000  # bytes: what a notebook page still shows quickly
OPENING = ("What you will do", "What you will learn", "What you need")
CLOSING = ["Claims", "Exercises", "Further reading"]
MARKERS = {"nbval-ignore-output", "nbval-check-output"}  # nbval silently ignores a misspelt one
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|tmp|home|Users)/.*")
SOLUTION_SECONDS = 60  # 30 s by itself; here it shares the processor with other tests


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, 4)


def only(kind: str, cells: list) -> list:
    return [cell for cell in cells if cell.cell_type == kind]


def headings(cell) -> list[tuple[int, str]]:
    """The headings of a text cell -> [(level, title)]; a code cell has none."""
    text = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
    found = re.findall(r"^(#+) +(.+?)\s*#*$", text, re.MULTILINE)
    return [(len(marks), title) for marks, title in found if cell.cell_type == "markdown"]


def test_every_notebook_has_a_number_a_text_and_a_solution():
    names = [path.stem for path in NOTEBOOKS]
    assert names and len({name[:2] for name in names}) == len(names)
    assert [path.stem for path in sorted((pairs.NOTEBOOKS / "py").glob("*.py"))] == names
    assert [path.stem for path in SOLUTIONS] == names


def test_pair_is_in_step(path, notebook):
    text = pairs.text_path(path).read_text(encoding="utf-8")
    assert pairs.text_of(notebook) == text, "the notebook and its text differ: run make sync"
    notebook.cells[-1].source += "\nOne more line."  # the comparison can fail
    assert pairs.text_of(notebook) != text


def test_no_edit_is_lost(tmp_path):
    path, text = tmp_path / "notebooks/00_a.ipynb", tmp_path / "notebooks/py/00_a.py"
    text.parent.mkdir(parents=True)
    new = nbformat.v4.new_code_cell
    first = nbformat.v4.new_notebook(cells=[new("a = 1", execution_count=1), new("b = 2")])
    pairs.write_notebook(path, first)
    assert pairs.sync(path) == "text written" and pairs.sync(path) == "in step"
    text.write_text("# %%\na = 1\n\n# %%\nb = 3\n")
    os.utime(path, (0, 0))
    assert "brought in step" in pairs.sync(path)  # an unchanged cell keeps its outputs
    cells = [(cell.source, cell.execution_count) for cell in nbformat.read(path, 4).cells]
    assert cells == [("a = 1", 1), ("b = 3", None)]
    (kept,) = (tmp_path / ".cache/replaced").iterdir()
    assert "b = 2" in kept.read_text()
    pairs.write_notebook(path, first)
    os.utime(text, (0, 0))  # a newer notebook is left alone until somebody says which is right
    assert pairs.sync(path).startswith("NOT") and "b = 3" in text.read_text()
    assert pairs.sync(path, from_notebook=True) == "text written" and "b = 2" in text.read_text()


def test_is_executed_from_top_to_bottom_without_error_or_warning(notebook):
    assert notebook.metadata == pairs.METADATA, "run the notebook with notebooks/run.py"
    kinds = {kind for cell in notebook.cells for kind in cell.metadata}
    assert kinds <= {"tags", "lines_to_next_cell"}
    cells = only("code", notebook.cells)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not any(output.output_type == "error" for output in cell.outputs), cell.source
        names = [output.get("name") for output in cell.outputs]
        assert "stderr" not in names, f"stored warning: {cell.outputs}"
        # Otherwise the file depends on how lines arrived.
        assert ("stdout", "stdout") not in pairwise(names), "run it with notebooks/run.py"


def test_is_short_and_explains(path, notebook):
    assert path.stat().st_size <= LARGEST, f"{path.stat().st_size:,} bytes"
    prose, count = only("markdown", notebook.cells), len(notebook.cells)
    assert 30 <= count <= 60 and len(prose) >= 0.4 * count, f"{len(prose)} of {count} are text"
    assert sum(len(cell.source.split()) for cell in prose) >= 500
    code = only("code", notebook.cells)
    # Imports are no lines to be read.
    imports = re.compile(r"^(from|import) [^(\n]*(\((.|\n)*?^\))?", re.MULTILINE)
    sources = [imports.sub("", cell.source) for cell in code]
    lengths = [len(re.findall(r"^.*\S", source, re.MULTILINE)) for source in sources]
    assert max(lengths) <= 25 and sum(length > 15 for length in lengths) <= 3, f"{lengths} lines"


def test_opens_and_closes_as_every_notebook_does(notebook):
    found = [heading for cell in notebook.cells for heading in headings(cell)]
    assert [level for level, _ in headings(notebook.cells[0])][:1] == [1]
    assert sum(level == 1 for level, _ in found) == 1, "expected one title"
    text = "\n".join(cell.source for cell in only("markdown", notebook.cells))
    for name in OPENING:
        assert re.search(rf"^(#+ |\*\*){name}\b", text, re.MULTILINE), f"no {name!r}"
    assert [title for _, title in found if title in CLOSING] == CLOSING


def test_claims_are_asserted_and_compared(notebook):
    titles = [{title for _, title in headings(cell)} for cell in notebook.cells]
    first, last = (next(i for i, own in enumerate(titles) if name in own) for name in CLOSING[:2])
    claims = only("code", notebook.cells[first:last])
    assert claims, "expected code cells below Claims, got none"
    for cell in claims:
        asserts = [node for node in ast.walk(ast.parse(cell.source)) if type(node) is ast.Assert]
        assert asserts, f"a claim without assert:\n{cell.source}"
        assert not any(isinstance(one.test, ast.Constant) for one in asserts), "it cannot fail"
        assert "nbval" not in f"{cell.metadata.get('tags')}{cell.source}".lower(), "not compared"
        assert any(output.get("name") == "stdout" for output in cell.outputs), "nothing printed"


def test_outputs_are_compared_where_they_can_be(notebook):
    for cell in only("code", notebook.cells):
        marks = re.findall(r"^\s*# *(NBVAL_\w+)", cell.source, re.MULTILINE)
        marks += cell.metadata.get("tags", [])
        marks = {mark.lower().replace("_", "-") for mark in marks}
        unknown = {mark for mark in marks if mark.startswith("nbval")} - MARKERS
        assert not unknown, f"nbval would skip the cell, or ignore {unknown}"
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        # nbval compares SVG and PDF as text, and no two machines draw alike.
        assert not [kind for kind in kinds - {"image/png"} if re.search("image|pdf", kind)]
        widget = any("widget-view" in kind for kind in kinds)
        assert not widget or "nbval-ignore-output" in marks, f"untagged widget:\n{cell.source}"


def test_links_lead_somewhere_and_no_path_is_of_a_machine(path, notebook):
    text = "\n".join(cell.source for cell in only("markdown", notebook.cells))
    links = [link for link in re.findall(r"\]\(([^)\s]+)", text) if not re.match(r"[a-z]+:", link)]
    targets = [path.parent / unquote(link.split("#")[0]) for link in links]
    assert [target for target in targets if not target.exists()] == []
    shown = [cell.source for cell in notebook.cells]
    for output in [output for cell in notebook.cells for output in cell.get("outputs", [])]:
        data = output.get("data", {"text/plain": output.get("text")})
        shown += [str(value) for kind, value in data.items() if "image" not in kind]
    assert MACHINE_PATH.findall("\n".join(shown)) == []


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_solution_is_right(solution):
    assert re.search(r"^\s*assert ", solution.read_text(encoding="utf-8"), re.MULTILINE)
    settings = {"cwd": pairs.NOTEBOOKS, "env": {**os.environ, "MPLBACKEND": "Agg"}}
    settings |= {"capture_output": True, "text": True, "timeout": SOLUTION_SECONDS}
    done = subprocess.run([sys.executable, str(solution)], **settings)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_lines_are_joined_between_pictures_and_warnings_taken_out():
    new = nbformat.v4.new_output
    texts = {"one\n": "stdout", "careful\n 10%|#| 1/9\n": "stderr", "two\n": "stdout"}
    printed = [new("stream", name=name, text=text) for text, name in texts.items()]
    last = [new("display_data", {"text/plain": ""}), new("stream", name="stdout", text="three\n")]
    cell = nbformat.v4.new_code_cell(outputs=[*printed, *last])
    assert run.tidy(nbformat.v4.new_notebook(cells=[cell])) == ["careful"]
    assert [output.get("text") for output in cell.outputs] == ["one\ntwo\n", None, "three\n"]


def test_stored_pictures_lose_size_and_nothing_that_an_eye_sees():
    def stored(pixels) -> tuple[float, float]:
        """(share of bytes saved, largest change of 255) of a picture in [0, 1]."""
        png = io.BytesIO()
        Image.fromarray((255 * pixels).astype(np.uint8)).save(png, "PNG")
        before = base64.b64encode(png.getvalue()).decode()
        after = run.few_colours(before)
        assert run.few_colours(after) == after
        old, new = (Image.open(io.BytesIO(base64.b64decode(one))) for one in (before, after))
        change = np.asarray(new.convert("RGB"), float) - np.asarray(old, float)
        return 1 - len(after) / len(before), np.abs(change).max()

    rng = np.random.default_rng(0)
    drawing = np.ones((200, 300, 3)) * rng.random((200, 300, 1))  # all shades of grey
    drawing[:, 100:180] = rng.random((200, 80, 1)) * [1, 0.6, 0.2] + [0, 0.2, 0.4]  # a colour map
    drawing[40, 20:60], drawing[50, 20:60] = (0.84, 0.37, 0.0), (0.0, 0.45, 0.7)  # two thin lines
    saved, change = stored(drawing)
    assert saved > 0.2 and change < 24
    assert stored(rng.random((200, 300, 3))) == (0, 0)  # a photograph stays as it is
