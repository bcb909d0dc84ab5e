"""What every test shares: a fixed seed, no window, no setting from the outside."""

import random
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "notebooks"))  # pairs.py, run.py
matplotlib.use("Agg")
# The same examples on every run, and nothing written; a deadline would measure the machine.
settings.register_profile("course", derandomize=True, database=None, deadline=None)
settings.load_profile("course")


@pytest.fixture(autouse=True)
def same_start(monkeypatch):
    """Each test starts from one seed and the classroom scale, whatever ran before it."""
    monkeypatch.delenv("VAELIB_SCALE", raising=False)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries that still use numpy's global generator
    torch.manual_seed(0)


def refusals(cases, errors=(TypeError, ValueError)):
    """A test that ``call(x)``, for each x of each (call, xs, message), or ``call()`` is refused."""
    flat = [(call, [x], message) for call, *xs, message in cases for x in (xs[0] if xs else [])]
    flat += [(call, [], message) for call, *xs, message in cases if not xs]

    @pytest.mark.parametrize(("call", "arguments", "message"), flat)
    def test(call, arguments, message):
        with pytest.raises(errors, match=message):
            call(*arguments)

    return test
