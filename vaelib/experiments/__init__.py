"""Experiments: models described by recipes, the papers' tables, and the race of figure 2."""

from vaelib.experiments.recipes import Recipe, build, load, trained

__all__ = ["Recipe", "build", "load", "trained"]
