"""All benchmarks, one after the other: ``python benchmarks [--device cuda] [--folder FOLDER]``

Prints their ratios and writes ``results-cpu.json`` (or ``results-cuda.json``) to the folder, by
default this one. A benchmark that fails ends the run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = ("training_step", "likelihood", "sampling")


def run(name: str, device: str) -> dict:
    """The report of one benchmark, in a process of its own."""
    print(f"\n== {name}.py", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "report.json"
        command = [sys.executable, str(HERE / f"{name}.py"), "--device", device, "--json", path]
        subprocess.run(command, check=True)
        return json.loads(path.read_text(encoding="utf-8"))


parser = argparse.ArgumentParser(prog="python benchmarks", description="Run all benchmarks.")
parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
parser.add_argument("--folder", type=Path, default=HERE, help="where the results go")
given = parser.parse_args()
given.folder.mkdir(parents=True, exist_ok=True)
reports = {name: run(name, given.device) for name in SCRIPTS}
machines = [report.pop("machine") for report in reports.values()]  # all the same
path = given.folder / f"results-{given.device}.json"
path.write_text(json.dumps({"machine": machines[0], **reports}, indent=2) + "\n", encoding="utf-8")
