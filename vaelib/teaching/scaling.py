"""One switch between the size of a classroom and the size of the papers.

The environment variable ``VAELIB_SCALE`` is read at every call, so a notebook may set it in its
first cell. Unset or empty means ``classroom``; any word but the two is a ``ValueError``.
"""

import os
from typing import TypeVar

T = TypeVar("T")


def current() -> str:
    """The scale in force: ``"classroom"`` or ``"paper"``."""
    name = os.environ.get("VAELIB_SCALE") or "classroom"
    if name not in ("classroom", "paper"):
        raise ValueError(f"expected VAELIB_SCALE to be 'classroom' or 'paper', got {name!r}")
    return name


def scale(*, classroom: T, paper: T) -> T:
    """The value that belongs to the scale in force: ``scale(classroom=20, paper=2_000)``."""
    return classroom if current() == "classroom" else paper


def describe() -> str:
    """One sentence for the top of a notebook: which scale it runs at, and how to change it."""
    other = scale(classroom="paper", paper="classroom")
    return f"Running at {current()} scale (VAELIB_SCALE={other} selects the other)."
