"""Files that are never seen half-written: write under another name, flush to disk, rename."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name to write to; when the block ends well, it becomes ``path`` at once.

    An error leaves the old file as it was, and so does the end of the process at any moment.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_atomically(state: dict, path: str | os.PathLike) -> None:
    """``torch.save`` that never leaves half a file."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def write_text(text: str, path: str | os.PathLike) -> None:
    """Write a whole text, UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(content: object, path: str | os.PathLike) -> None:
    """Write ``content`` as JSON that people can read; nan and infinity are errors."""
    write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", path)


def remove_leftovers(path: str | os.PathLike) -> None:
    """Delete what processes that were killed while they wrote ``path`` left behind."""
    path = Path(path)
    written = re.compile(rf"\.{re.escape(path.name)}\.\d+\.tmp")
    for leftover in path.parent.glob(".*.tmp"):
        if written.fullmatch(leftover.name):
            leftover.unlink(missing_ok=True)
