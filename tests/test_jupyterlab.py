"""JupyterLab, as a newcomer meets it: the first notebook opened in a browser and run.

A real ``jupyter lab`` serves a copy of the notebooks, a real Chromium without a window opens the
first one and uses the menus *Run* and *File*. Skipped where there is no browser.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time

import nbformat
import pairs
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

FIRST = "00_start_here.ipynb"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = """--disable-background-networking --disable-component-update --disable-dev-shm-usage
    --disable-gpu --disable-quic --disable-sync --no-first-run --no-sandbox""".split()
SERVER = """-m jupyterlab --no-browser --ip=127.0.0.1 --allow-root --ServerApp.port_retries=0
    --LabApp.extension_manager=readonly
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


def wait_for(what, seconds: float) -> None:
    """Ask ``what()`` until it is true; an error of it counts as false."""
    end = time.monotonic() + seconds
    while True:
        try:
            assert what()
            return
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


def own_settings(home) -> dict[str, str]:
    """An environment whose every personal folder is new and empty."""
    (home / TRACKER).parent.mkdir(parents=True)
    # Every cell is in the page, also those that are not in view: they are counted there.
    (home / TRACKER).write_text('{"windowingMode": "none"}', encoding="utf-8")
    own = {"HOME": str(home), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    personal = ("JUPYTER", "IPYTHON", "XDG_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(personal)}
    return {**kept, **own, "JUPYTER_PREFER_ENV_PATH": "1"}


def test_first_notebook_runs_in_jupyterlab(tmp_path):
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not executable:
        pytest.skip(f"no browser is installed: looked for {', '.join(BROWSERS)}")
    course, log, environment = tmp_path / "course", tmp_path / "log", own_settings(tmp_path / "h")
    first = course / "notebooks" / FIRST
    shutil.copytree(pairs.NOTEBOOKS, first.parent)
    # pyproject.toml says how notebooks and texts are paired.
    shutil.copy(pairs.NOTEBOOKS.parent / "pyproject.toml", course)
    first.unlink()
    pairs.sync(first)  # written from its text, without outputs
    text = pairs.text_path(first).read_text(encoding="utf-8")

    def code() -> list:
        return [cell for cell in nbformat.read(first, 4).cells if cell.cell_type == "code"]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, token = free.getsockname()[1], secrets.token_hex()
    own = [f"--port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={course}"]
    settings = {"executable_path": executable, "args": FLAGS, "env": environment}
    with log.open("wb") as output, playwright.sync_playwright() as play:
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        command = [sys.executable, *SERVER, *own]
        server = subprocess.Popen(command, cwd=course, env=environment, **streams)
        try:
            browser = play.chromium.launch_persistent_context(tmp_path / "browser", **settings)
            page = browser.pages[0]
            page.set_default_timeout(60_000)

            def choose(menu: str, entry: str) -> None:
                # "Idle": the kernel is connected and has nothing to do.
                page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()
                page.locator(".lm-MenuBar-itemLabel", has_text=menu).first.click()
                page.locator(".lm-Menu-itemLabel").get_by_text(entry, exact=True).click()

            url = f"http://127.0.0.1:{port}/lab/tree/notebooks/{FIRST}?token={token}"
            wait_for(lambda: page.goto(url), START_SECONDS)
            last = page.locator(CODE_CELLS).nth(len(code()) - 1)
            dialog = page.locator(".jp-Dialog-content")
            last.or_(dialog).first.wait_for(state="attached")
            assert dialog.all_inner_texts() == []  # it cannot open the notebook, and says so
            choose("Run", "Run All Cells")
            page.wait_for_function(ENDED, arg=CODE_CELLS, timeout=RUN_SECONDS * 1000)
            choose("File", "Save Notebook")
            # JupyterLab shows errors as it shows stderr.
            assert page.locator(OUTPUTS, has_text="Traceback (most recent").all_inner_texts() == []
            assert page.locator(f"{OUTPUTS} img").count() > 0, "expected pictures in the page"
            wait_for(lambda: all(cell.execution_count for cell in code()), SAVE_SECONDS)
            browser.close()
        finally:
            server.terminate()
            server.wait(30)
            print(log.read_text())  # pytest shows it if the test fails

    assert [cell.execution_count for cell in code()] == list(range(1, len(code()) + 1))
    kinds = {output.output_type for cell in code() for output in cell.outputs}
    assert "error" not in kinds and kinds & {"stream", "display_data", "execute_result"}
    # Saving in JupyterLab keeps the pair as it was: the text is rewritten, and comes out the same.
    assert pairs.text_path(first).read_text(encoding="utf-8") == text
