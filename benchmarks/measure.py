"""What every benchmark shares: interleaved timing, the machine in words, the report as JSON."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was asked; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def stopwatch(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``work()`` takes."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def interleaved(
    contestants: Mapping[str, Callable[[], float]], repeats: int
) -> dict[str, list[float]]:
    """Let each contestant measure itself ``repeats`` times, taking turns.

    Taking turns spreads whatever else the machine does evenly, and the order is reversed every
    other time. The first turn of each warms up and is not counted.

    Returns:
        The seconds of each contestant, one number a repeat.
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


def compare(one: list[float], other: list[float]) -> dict[str, float]:
    """Ratio of the times ``one / other`` within each repeat: its median and quartiles."""
    ratios = [first / second for first, second in zip(one, other, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
    return {"median": median, "quartile_1": low, "quartile_3": high}


def machine(device: torch.device) -> dict[str, str | int]:
    """The hardware in words and the versions of what was measured; no name, no path."""
    on_gpu = device.type == "cuda"
    affinity = getattr(os, "sched_getaffinity", None)
    packages = {name: _version(name) for name in ("torch", "vaelib", "pythae")}
    return {
        "processor": _processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_gpu else "CPU",
        "python": platform.python_version(),
        **{name: number for name, number in packages.items() if number},
    }


def write_json(report: dict, path: Path) -> None:
    """Write under a temporary name and rename: a report is never seen half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
