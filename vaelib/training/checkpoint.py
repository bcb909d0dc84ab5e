"""Files of runs and models: written whole, described in full, refused where they do not fit."""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipFile

import numpy as np
import torch
import torch.distributed as dist
from filelock import FileLock
from torch import Tensor, nn
from torch.optim import Optimizer

WHOLE = 2**30  # bytes: of larger data the fingerprint takes evenly spaced rows


def fingerprint(x: Tensor) -> str:
    """Type, shape and hash of a tensor's values."""
    rows = x[:: max(1, x.numel() * x.element_size() // WHOLE)] if x.dim() else x
    content = rows.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)} {digest}"


def describe(x: object) -> object:
    """What ``x`` is, as numbers, words, lists and dictionaries that a file can hold.

    Of a module: class, settings, shapes of parameters, values of buffers. Of an optimiser: class
    and settings. Of a function: its name, its arguments where it is a partial one, and its code
    where a notebook may change it.
    """
    if x is None or isinstance(x, (bool, int, float, str, np.generic)):
        return _plain(x)
    if isinstance(x, (list, tuple)):
        return [describe(one) for one in x]
    if isinstance(x, dict):
        return {str(key): describe(value) for key, value in x.items()}
    if isinstance(x, Tensor):
        return fingerprint(x)
    if isinstance(x, np.ndarray):
        return fingerprint(torch.from_numpy(x))
    if isinstance(x, functools.partial):
        return {"function": describe(x.func), "with": describe([list(x.args), x.keywords])}
    if inspect.isroutine(x) or isinstance(x, type):
        return _describe_function(x)
    content: dict = {"class": _name(type(x))}
    if isinstance(x, Optimizer):
        groups = [{k: v for k, v in group.items() if k != "params"} for group in x.param_groups]
        return content | {"groups": describe(groups)}
    if isinstance(x, nn.Module):
        parameters = {name: list(p.shape) for name, p in x._parameters.items() if p is not None}
        plain = {k: v for k, v in vars(x).items() if k[0] != "_" and k != "training"}
        return content | describe(plain | parameters | x._buffers | x._modules)
    if dataclasses.is_dataclass(x):
        return content | {f.name: describe(getattr(x, f.name)) for f in dataclasses.fields(x)}
    return content


def _name(x) -> str:
    return f"{x.__module__}.{x.__qualname__}"


def _describe_function(x) -> object:
    name, code = _name(x), getattr(x, "__code__", None)
    if code is None or not (x.__module__ == "__main__" or "<" in x.__qualname__):
        return name
    digest = hashlib.blake2b(code.co_code + repr(code.co_names).encode(), digest_size=8)
    inner = [const for const in code.co_consts if isinstance(const, (int, float, str))]
    cells = [cell.cell_contents for cell in x.__closure__ or ()]
    return [name, digest.hexdigest(), describe(inner), describe([c for c in cells if c is not x])]


def differences(found: object, expected: object, path: str = "") -> Iterator[str]:
    """Where two descriptions differ: ``model.prior.alpha: found …, expected …``."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted({*found, *expected}):
            place = f"{path}.{key}".lstrip(".")
            yield from differences(found.get(key, "none"), expected.get(key, "none"), place)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from differences(one, other, f"{path}[{i}]")
    elif found != expected:
        yield f"{path}: {_short(found)} (here {_short(expected)})"


def _short(x: object) -> str:
    text = x["class"].split(".")[-1] if isinstance(x, dict) and "class" in x else str(x)
    return text if len(text) <= 80 else f"{text[:77]}..."


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file under another name that is renamed in the end: half of one is never seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write(state: dict, path: Path) -> None:
    """``torch.save``, the whole file or none."""
    with _replacing(path) as file:
        torch.save(_plain(state), file)


def write_text(text: str, path: Path) -> None:
    """A text in UTF-8, the whole file or none."""
    with _replacing(path) as file:
        file.write(text.encode())


def read(path: Path, device: torch.device | str = "cpu") -> dict:
    """What :func:`write` wrote; ``ValueError`` for other contents or damaged ones."""
    try:
        with ZipFile(path) as file:  # torch writes checksums and does not read them
            if (bad := file.testzip()) is not None:
                raise ValueError(f"damaged data in {bad}")
        return torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # zip, pickle and torch each raise their own
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(f"{path}: expected a file of vaelib, got {reason}") from error


def _plain(x: object) -> object:
    """numpy's numbers as Python's: a file with the former cannot be read back safely."""
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, dict):
        return type(x)((key, _plain(value)) for key, value in x.items())
    return type(x)(map(_plain, x)) if type(x) in (list, tuple) else x


def save(model: nn.Module, path: str | os.PathLike, **facts) -> Path:
    """Keep a whole model, such as a VAE with its auxiliary prior, in one file; returns its path.

    :func:`load` gives it back with its settings, weights and buffers, on the CPU. ``facts``,
    numbers and words, are kept beside it. All modules must be of this library or of torch.nn.
    """
    path = Path(path).expanduser()
    for name, module in model.named_modules():
        if type(module) not in _classes():
            raise TypeError(
                f"expected modules of vaelib and torch.nn, got {_name(type(module))} as "
                f"{name or 'the model'}: keep its state_dict(), and the code that builds it"
            )
    model = copy.deepcopy(model).cpu()
    write({"vaelib model": model, "facts": facts, "versions": versions()}, path)
    return path


def load(path: str | os.PathLike) -> nn.Module:
    """The model that :func:`save` kept, in evaluation mode. No code of the file is run."""
    return load_with_facts(path)[0]


def load_with_facts(path: str | os.PathLike) -> tuple[nn.Module, dict]:
    """The model and the facts that :func:`save` kept."""
    with torch.serialization.safe_globals(list(_classes())):
        state = read(Path(path).expanduser())
    if "vaelib model" not in state:
        raise ValueError(f"{path}: expected a model that vaelib.save kept, got {sorted(state)}")
    return state["vaelib model"].eval(), state["facts"]


@functools.cache
def _classes() -> set[type]:
    """The modules of this library and of torch.nn: all that a file of a model may name."""
    import vaelib

    found = {kind for kind in vars(nn).values() if isinstance(kind, type)}
    for info in pkgutil.walk_packages(vaelib.__path__, "vaelib."):
        if info.name.split(".")[1] not in ("teaching", "experiments"):
            content = vars(importlib.import_module(info.name)).values()
            found |= {kind for kind in content if isinstance(kind, type)}
    return {kind for kind in found if issubclass(kind, nn.Module)}


class Checkpoint:
    """The file of one run: its description, weights, optimisers, history and random state.

    ``run`` is what the run depends on, by name; ``parts`` the modules and optimisers to keep. The
    first of several processes reads and writes. Without a path nothing is kept.
    """

    def __init__(self, path, run: dict, parts: dict, device: torch.device, rank=0, world=1):
        self.path = None if path is None else Path(path).expanduser()
        self.device, self.rank, self.world = device, rank, world
        self.run = None if path is None else describe(run)
        self.parts = {name: part for name, part in parts.items() if part is not None}

    def lock(self) -> AbstractContextManager:
        """Of several processes with one file, each waits for the one before."""
        if self.path is None or self.rank > 0:
            return contextlib.nullcontext()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self.path}.lock")

    def write(self, rows: list[dict]) -> None:
        """Keep the state at the end of an epoch."""
        if self.path is None or self.rank > 0:
            return
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"run": self.run, "rows": rows, "random": [torch.get_rng_state(), *cuda]}
        write(state | {"versions": versions()}, self.path)

    def resume(self, rows: list[dict], epochs: int, progress: bool) -> bool:
        """Load the file of this run, where there is one, and fill ``rows`` -> whether there was."""
        found: list = [None]
        if self.path is not None and self.rank == 0 and self.path.exists():
            found = [self._read(epochs)]
        if self.path is not None and self.world > 1:
            dist.broadcast_object_list(found, 0)
        if isinstance(found[0], ValueError):
            raise found[0]
        if found[0] is None:
            return False
        for name, part in self.parts.items():
            part.load_state_dict(found[0][name])
        rows += found[0]["rows"]
        if self.world > 1:  # each process has its own noise, and that of one is kept
            torch.manual_seed(torch.initial_seed() + self.world * len(rows))
        else:
            cpu, *cuda = found[0]["random"]
            torch.set_rng_state(cpu.cpu())
            if cuda and self.device.type == "cuda":
                torch.cuda.set_rng_state(cuda[0].cpu(), self.device)
        if len(rows) == epochs and progress and self.rank == 0:
            print(f"{self.path}: complete, nothing to train", file=sys.stderr, flush=True)
        return True

    def _read(self, epochs: int) -> dict | ValueError:
        try:
            state = read(self.path, "cpu" if self.world > 1 else self.device)
        except ValueError as error:
            return error
        if missing := {"run", "rows", "random"} - set(state):
            return ValueError(f"{self.path}: expected a checkpoint of fit, got none of {missing}")
        if differing := list(differences(state["run"], self.run)):
            shown = "; ".join(differing[:5]) + ("; …" if len(differing) > 5 else "")
            return ValueError(f"{self.path} is of a run with other settings: {shown}")
        if (done := len(state["rows"])) > epochs:
            return ValueError(f"{self.path} holds {done} epochs, expected at most {epochs}")
        return state


def versions() -> dict[str, str]:
    """What computes: Python, torch and this library."""
    from vaelib import __version__

    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, "torch": str(torch.__version__), "vaelib": __version__}
