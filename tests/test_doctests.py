"""The examples of the docstrings: each runs and prints what it shows."""

import doctest
import math
import pkgutil
from importlib import import_module

import pytest
import torch

import vaelib

FOUND = [module.name for module in pkgutil.walk_packages(vaelib.__path__, "vaelib.")]
MODULES = [import_module(name) for name in FOUND if not name.endswith("__main__")]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_print_what_they_show(module):
    names = {"torch": torch, "math": math, "kl_divergence": torch.distributions.kl_divergence}
    for other in (*MODULES, module):  # all that the library defines: examples need no imports
        names |= {name: x for name, x in vars(other).items() if hasattr(x, "__module__")}
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(module, globs=names):
        runner.run(test)
    assert not runner.failures
