"""A file that several processes share: made once, never read half, replaced when it is bad."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from zipfile import ZipFile

import torch
from filelock import FileLock, Timeout

from vaelib.files import save_atomically

T = TypeVar("T")


def kept(
    path: Path,
    make: Callable[[Path | None], dict],
    use: Callable[[dict], T],
    label: str = "",
    progress: bool = True,
) -> T:
    """``use(state)`` of the state in a file; where there is none, ``make`` it and keep it.

    Processes that ask for one file at the same time take turns: the first makes the state, the
    others wait and read it. The file is written under another name and renamed, so that none is
    ever read half. The system frees the lock of a process that was killed. A file that cannot be
    read or used is named in a warning, renamed to ``*.bad``, and made again.

    Args:
        path: the file, ``*.pt``.
        make: makes the state, tensors and plain numbers in dictionaries and lists. It gets the
            name of a file in which it may keep what is half done, or ``None`` where the folder
            cannot be written; then nothing is kept, and a warning says so.
        use: turns the state into what is wanted, and raises any error if it cannot.
        label: what is made, for the notice that another process is at it.
        progress: whether to print that notice, on stderr.
    """
    if not _is_writable(path.parent):
        warnings.warn(f"{path.parent} cannot be written: nothing is kept there", stacklevel=3)
        return use(make(None))
    with _locked(path.with_suffix(".lock"), label if progress else ""):
        if path.exists():
            try:
                return use(_load(path))
            except Exception as error:  # zip, pickle, torch and users each raise their own
                set_aside(path, f"{type(error).__name__}: {error}")
        part = path.with_suffix(".part")
        state = make(part)
        save_atomically(state, path)
        part.unlink(missing_ok=True)
        return use(state)


def _load(path: Path) -> dict:
    with ZipFile(path) as file:  # torch writes an archive with checksums, and does not read them
        if file.testzip() is not None:
            raise ValueError("expected the data that were written, got others")
    return torch.load(path, map_location="cpu", weights_only=True)


def set_aside(path: Path, reason: str) -> None:
    """Rename a bad file to ``*.bad`` and say so in a warning."""
    os.replace(path, f"{path}.bad")
    reason = reason.splitlines()[0][:200]
    message = f"{path} cannot be used ({reason}): renamed to *.bad and made again"
    warnings.warn(message, stacklevel=3)


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


@contextmanager
def _locked(path: Path, label: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if label:
            print(f"waiting for another process: {label}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
