"""All benchmarks, one after the other: ``python benchmarks [--device cuda] [--folder FOLDER]``

Prints their ratios and writes ``results-cpu.json`` (or ``results-cuda.json``) and a picture of how
costs grow to the folder, by default this one. A benchmark that fails ends the run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import write_json

HERE = Path(__file__).resolve().parent
SCRIPTS = ("training_step", "likelihood", "sampling", "growth")


def run(name: str, device: str, folder: Path) -> dict:
    """The report of one benchmark, in a process of its own."""
    print(f"\n== {name}.py", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "report.json"
        command = [sys.executable, str(HERE / f"{name}.py"), "--device", device, "--json", path]
        if name == "growth":
            command += ["--picture", folder / f"growth-{device}.png"]
        subprocess.run(command, check=True)
        return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks", description="Run all benchmarks.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--folder", type=Path, default=HERE, help="where the results go")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    reports = {name: run(name, options.device, options.folder) for name in SCRIPTS}
    machines = [report.pop("machine") for report in reports.values()]
    path = options.folder / f"results-{options.device}.json"
    write_json({"machine": machines[0], **reports}, path)


if __name__ == "__main__":
    main()
