"""What every benchmark shares: its command line, interleaved timing, ratios, the machine."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def main(title: str, measure: Callable[[torch.device, int], dict], repeats: int) -> None:
    """Command line of a benchmark; ``measure(device, repeats)`` returns what it found."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--repeats", type=int, default=repeats, help="turns of each contestant")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    given = parser.parse_args()
    device = torch.device(given.device)
    report = {"machine": machine(device)}
    print(
        title, ", ".join(f"{name} {value}" for name, value in report["machine"].items()), sep="\n"
    )
    report |= measure(device, given.repeats)
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def stopwatch(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``work()`` takes, until the device has done all it was asked."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def interleaved(
    contestants: Mapping[str, Callable[[], float]], repeats: int
) -> dict[str, list[float]]:
    """Let each contestant measure itself ``repeats`` times -> the seconds of each.

    Taking turns spreads whatever else the machine does evenly, and the order is reversed every
    other time. The first turn of each warms up and is not counted.
    """
    if repeats < 1:
        raise ValueError(f"expected repeats >= 1, got {repeats}")
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        contestants[name]()
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else reversed(names):
            seconds[name].append(contestants[name]())
    return seconds


def show(title: str, unit: str, scale: float, seconds: Mapping[str, list[float]]) -> None:
    """Print the median time of each contestant."""
    print(f"\n{title}, median")
    for name, values in seconds.items():
        print(f"  {name:<30} {scale * statistics.median(values):9.3f} {unit}")


def judge(
    seconds: Mapping[str, list[float]],
    one: str,
    other: str,
    at_most: float | None = None,
    device: torch.device | None = None,
) -> dict:
    """The ratio of two times within each repeat: median, quartiles, and whether it is in bounds.

    A requirement is one of a processor: on a GPU so small a model waits for Python only.
    """
    ratios = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
    at_most = None if device is not None and device.type != "cpu" else at_most
    met = None if at_most is None else median <= at_most
    verdict = "" if met is None else f", required <= {at_most:.3g}: {'met' if met else 'NOT MET'}"
    print(f"  {one} / {other}: {median:.3g} (quartiles {low:.3g}, {high:.3g}){verdict}")
    quartiles = {"quartile_1": low, "quartile_3": high}
    return {
        "one": one,
        "other": other,
        "median": median,
        **quartiles,
        "at_most": at_most,
        "met": met,
    }


def machine(device: torch.device) -> dict[str, str | int]:
    """The hardware in words and the versions of what was measured; no name, no path."""
    on_gpu = device.type == "cuda"
    affinity = getattr(os, "sched_getaffinity", None)
    packages = {}
    for name in ("torch", "vaelib", "pythae"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_gpu else "CPU",
        "python": platform.python_version(),
        **packages,
    }
