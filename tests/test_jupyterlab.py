"""JupyterLab, as a newcomer meets it: the first notebook opened in a browser and run.

A real ``jupyter lab`` serves a copy of the notebooks, a real Chromium without a window opens the
first one and uses the menus *Run* and *File*. Skipped where there is no browser.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pairs
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

FIRST = "00_start_here.ipynb"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = """--disable-background-networking --disable-component-update --disable-dev-shm-usage
    --disable-gpu --disable-quic --disable-sync --no-first-run --no-sandbox""".split()
SERVER = """--no-browser --port=0 --ip=127.0.0.1 --allow-root --LabApp.extension_manager=readonly
    --LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate""".split()
START_SECONDS, RUN_SECONDS, SAVE_SECONDS = 90, 300, 30  # on a busy machine
TRACKER = "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
CODE_CELLS = ".jp-NotebookPanel .jp-CodeCell"
OUTPUTS = ".jp-NotebookPanel .jp-OutputArea-output"
# A cell that runs or waits shows [*]:, one that has run [3]:, one that an error kept back [ ]:.
ENDED = """cells => {
    const prompts = [...document.querySelectorAll(cells + ' .jp-InputPrompt')];
    const shown = prompts.map(prompt => prompt.textContent);
    return shown.some(text => /\\d/.test(text)) && !shown.some(text => text.includes('*'));
}"""


def wait_for(what, seconds: float, failure):
    """Ask ``what()`` until it has an answer."""
    end = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < end, failure()
        time.sleep(0.3)
    return answer


def code(path: Path) -> list:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def own_settings(home: Path) -> dict[str, str]:
    """An environment whose every personal folder is new and empty."""
    (home / TRACKER).parent.mkdir(parents=True)
    # Every cell is in the page, also those that are not in view: they are counted there.
    (home / TRACKER).write_text(json.dumps({"windowingMode": "none"}), encoding="utf-8")
    own = {"HOME": str(home), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    own |= {"JUPYTER_RUNTIME_DIR": str(home / "runtime"), "JUPYTER_PREFER_ENV_PATH": "1"}
    personal = ("JUPYTER", "IPYTHON", "XDG_")
    return {key: value for key, value in os.environ.items() if not key.startswith(personal)} | own


@contextmanager
def jupyter_lab(root: Path, environment: dict[str, str], log: Path):
    """A running JupyterLab -> (its address, its token); stopped at the end, with its kernels."""
    command = [sys.executable, "-m", "jupyterlab", *SERVER, f"--ServerApp.root_dir={root}"]
    with log.open("wb") as output:
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        server = subprocess.Popen(command, cwd=root, env=environment, **streams)
    note = Path(environment["JUPYTER_RUNTIME_DIR"]) / f"jpserver-{server.pid}.json"

    def said() -> dict | None:
        assert server.poll() is None, f"the server ended:\n{log.read_text()}"
        try:
            return json.loads(note.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):  # not there yet, or half of it
            return None

    try:
        found = wait_for(said, START_SECONDS, log.read_text)
        yield found["url"], found["token"]
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def test_first_notebook_runs_in_jupyterlab(tmp_path):
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not executable:
        pytest.skip(f"no browser is installed: looked for {', '.join(BROWSERS)}")
    course, environment = tmp_path / "course", own_settings(tmp_path / "home")
    first = course / "notebooks" / FIRST
    shutil.copytree(pairs.NOTEBOOKS, first.parent)
    # pyproject.toml says how notebooks and texts are paired.
    shutil.copy(pairs.NOTEBOOKS.parent / "pyproject.toml", course)
    first.unlink()
    pairs.sync(first)  # written from its text, without outputs
    text, cells = pairs.text_path(first).read_text(encoding="utf-8"), len(code(first))

    def counts() -> list:
        try:
            return [cell.execution_count for cell in code(first)]
        except nbformat.reader.NotJSONError:  # half of it is written
            return [None]

    with (
        jupyter_lab(course, environment, tmp_path / "log") as (url, token),
        playwright.sync_playwright() as play,
    ):
        settings = {"executable_path": executable, "args": FLAGS, "env": environment}
        context = play.chromium.launch_persistent_context(tmp_path / "browser", **settings)
        page = context.pages[0]
        page.set_default_timeout(60_000)

        def choose(menu: str, entry: str) -> None:
            # "Idle": the kernel is connected and has nothing to do.
            page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()
            page.locator(".lm-MenuBar-itemLabel", has_text=menu).first.click()
            page.locator(".lm-Menu-itemLabel").get_by_text(entry, exact=True).click()

        page.goto(f"{url}lab/tree/notebooks/{FIRST}?token={token}")
        last, dialog = page.locator(CODE_CELLS).nth(cells - 1), page.locator(".jp-Dialog-content")
        last.or_(dialog).first.wait_for(state="attached")
        assert dialog.all_inner_texts() == []  # JupyterLab says so if it cannot open the notebook
        choose("Run", "Run All Cells")
        page.wait_for_function(ENDED, arg=CODE_CELLS, timeout=RUN_SECONDS * 1000)
        choose("File", "Save Notebook")
        # JupyterLab shows errors as it shows stderr.
        assert page.locator(OUTPUTS, has_text="Traceback (most recent").all_inner_texts() == []
        assert page.locator(f"{OUTPUTS} img").count() > 0, "expected pictures in the page"
        wait_for(lambda: all(counts()), SAVE_SECONDS, lambda: f"not saved: {counts()}")
        context.close()

    assert counts() == list(range(1, cells + 1))
    kinds = {output.output_type for cell in code(first) for output in cell.outputs}
    assert "error" not in kinds and kinds & {"stream", "display_data", "execute_result"}
    # Saving in JupyterLab keeps the pair as it was: the text is rewritten, and comes out the same.
    assert pairs.text_path(first).read_text(encoding="utf-8") == text
