"""How nbval compares a notebook with its committed outputs: all of them but stderr.

Warnings and progress bars differ from machine to machine; what a cell prints does not.
"""


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):  # only nbval's collector has it
        collector.skip_compare += ("stderr",)
