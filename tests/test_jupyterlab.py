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

ROOT = Path(__file__).resolve().parent.parent
FIRST = "00_start_here.ipynb"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",
]
START_SECONDS = 90  # of the server, on a busy machine
RUN_SECONDS = 300  # of the notebook: 30 s on two free cores
# JupyterLab asks the network for news of itself unless told not to.
QUIET = "jupyterlab.handlers.announcements.NeverCheckForUpdate"
# Every cell in the page, also those that are not in view: they are counted there.
SETTINGS = {"@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"}}
CODE_CELLS = ".jp-NotebookPanel .jp-CodeCell"
OUTPUTS = ".jp-NotebookPanel .jp-OutputArea-output"
TRACEBACK = "Traceback (most recent call last)"  # JupyterLab shows errors as it shows stderr
# Says "Idle" once the kernel is connected and has nothing to do.
STATUS_BAR = "#jp-main-statusbar"
# A cell that runs or waits shows [*]:, one that has run [3]:, one that an error kept back [ ]:.
ENDED = """cells => {
    const prompts = [...document.querySelectorAll(cells + ' .jp-InputPrompt')];
    const shown = prompts.map(prompt => prompt.textContent);
    return shown.some(text => /\\d/.test(text)) && !shown.some(text => text.includes('*'));
}"""


def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip(f"no browser is installed: looked for {', '.join(BROWSERS)}")
    return found


def copy_of_the_course(folder: Path) -> Path:
    """The notebooks in a folder of their own, the first one without its outputs -> its path."""
    shutil.copytree(pairs.NOTEBOOKS, folder / "notebooks")
    shutil.copy(ROOT / "pyproject.toml", folder)  # says how notebooks and texts are paired
    first = folder / "notebooks" / FIRST
    notebook = nbformat.read(first, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    pairs.write_notebook(first, notebook)
    return first


def own_settings(folder: Path) -> dict[str, str]:
    """An environment whose every personal folder is new and empty."""
    for name, settings in SETTINGS.items():
        path = folder / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(settings), encoding="utf-8")
    own = {
        "HOME": "home",
        "IPYTHONDIR": "ipython",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "XDG_CACHE_HOME": "cache",
        "XDG_CONFIG_HOME": "xdg",
    }
    for name in own.values():
        (folder / name).mkdir(exist_ok=True)
    paths = {name: str(folder / place) for name, place in own.items()}
    return {**os.environ, **paths, "JUPYTER_PREFER_ENV_PATH": "1"}


@contextmanager
def jupyter_lab(root: Path, environment: dict[str, str], log: Path):
    """A running JupyterLab -> (its address, its token); stopped at the end, with its kernels."""
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--port=0", "--ip=127.0.0.1"]
    command += [f"--ServerApp.root_dir={root}", "--LabApp.extension_manager=readonly"]
    command += [f"--LabApp.check_for_updates_class={QUIET}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        said = wait_for_server(server, Path(environment["JUPYTER_RUNTIME_DIR"]), log)
        yield said["url"], said["token"]
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_for_server(server: subprocess.Popen, runtime: Path, log: Path) -> dict:
    """What a started server writes about itself: its address and token."""
    note = runtime / f"jpserver-{server.pid}.json"
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, f"the server ended:\n{log.read_text()}"
        try:
            return json.loads(note.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):  # not there yet, or half of it
            time.sleep(0.2)
    raise AssertionError(f"no server after {START_SECONDS} s:\n{log.read_text()}")


def choose(page, menu: str, entry: str) -> None:
    """Use the menu bar."""
    page.locator(".lm-MenuBar-itemLabel", has_text=menu).first.click()
    page.locator(".lm-Menu-itemLabel").get_by_text(entry, exact=True).click()


def saved_with_counts(path: Path, seconds: float = 30) -> nbformat.NotebookNode:
    """The saved notebook, as soon as its last code cell is there with its count."""
    end = time.monotonic() + seconds
    while True:
        notebook = nbformat.read(path, 4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        if all(cell.execution_count for cell in code):
            return notebook
        assert time.monotonic() < end, f"not saved: {[cell.execution_count for cell in code]}"
        time.sleep(0.5)


def test_first_notebook_runs_in_jupyterlab(tmp_path):
    executable = browser()
    if not (pairs.NOTEBOOKS / FIRST).exists():
        pytest.fail(f"expected notebooks/{FIRST}, got no such file")
    course, own = tmp_path / "course", tmp_path / "own"
    course.mkdir()
    first = copy_of_the_course(course)
    text = pairs.text_path(first).read_text(encoding="utf-8")
    cells = sum(cell.cell_type == "code" for cell in nbformat.read(first, 4).cells)
    environment = own_settings(own)

    with (
        jupyter_lab(course, environment, tmp_path / "server.log") as (url, token),
        playwright.sync_playwright() as play,
    ):
        context = play.chromium.launch_persistent_context(
            own / "browser", executable_path=executable, args=FLAGS, env=environment
        )
        page = context.pages[0]
        page.set_default_timeout(60_000)
        page.goto(f"{url}lab/tree/notebooks/{FIRST}?token={token}")
        last, dialog = page.locator(CODE_CELLS).nth(cells - 1), page.locator(".jp-Dialog-content")
        last.or_(dialog).first.wait_for(state="attached")
        assert dialog.all_inner_texts() == []  # JupyterLab says so if it cannot open the notebook
        page.locator(STATUS_BAR).get_by_text("| Idle").wait_for()

        choose(page, "Run", "Run All Cells")
        page.wait_for_function(ENDED, arg=CODE_CELLS, timeout=RUN_SECONDS * 1000)
        page.locator(STATUS_BAR).get_by_text("| Idle").wait_for()
        errors = page.locator(OUTPUTS, has_text=TRACEBACK).all_inner_texts()
        assert errors == []
        pictures = page.locator(f"{OUTPUTS} img").count()
        choose(page, "File", "Save Notebook")
        saved = saved_with_counts(first)
        context.close()

    assert pictures > 0, "expected pictures in the page, got none"
    code = [cell for cell in saved.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, cells + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert "error" not in kinds and kinds & {"stream", "display_data", "execute_result"}
    # Saving in JupyterLab keeps the pair as it was: the text is rewritten, and comes out the same.
    assert pairs.text_path(first).read_text(encoding="utf-8") == text
