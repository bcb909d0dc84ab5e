"""One switch between the size of a classroom and the size of the papers.

The environment variable ``VAELIB_SCALE`` is read whenever it is asked for, so a notebook may
set it in its first cell. Unset or empty means ``classroom``.
"""

import os
from typing import TypeVar

SCALES = ("classroom", "paper")
T = TypeVar("T")


def current() -> str:
    """The scale in force: ``"classroom"`` or ``"paper"``.

    Raises:
        ValueError: ``VAELIB_SCALE`` holds any other word.
    """
    name = os.environ.get("VAELIB_SCALE") or SCALES[0]
    if name not in SCALES:
        raise ValueError(f"expected VAELIB_SCALE to be 'classroom' or 'paper', got {name!r}")
    return name


def scale(*, classroom: T, paper: T) -> T:
    """Pick the value that belongs to the scale in force.

    >>> epochs = scale(classroom=20, paper=2_000)

    Raises:
        ValueError: ``VAELIB_SCALE`` holds any other word.
    """
    return {"classroom": classroom, "paper": paper}[current()]


def describe() -> str:
    """One sentence for the top of a notebook: which scale it runs at, and how to change it."""
    other = scale(classroom="paper", paper="classroom")
    return f"Running at {current()} scale (VAELIB_SCALE={other} selects the other)."
