"""The project's files: what may import what, requirements that agree, a wheel that works."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import vaelib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LARGEST = 1_500_000  # bytes of a file
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|tmp|home|Users)/")
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "vaelib").rglob("*.py")
}
# Slots and pixel models know nothing of training; the library knows nothing of experiments; only
# teaching.plotting knows matplotlib. No module that matches the first imports one of the second.
FORBIDDEN = {
    r"(?!vaelib\.teaching\.plotting)": r"matplotlib|seaborn",
    r"(?!vaelib\.experiments)": r"vaelib\.experiments",
    r"vaelib\.(?!training|experiments)": r"vaelib\.training",
    r"vaelib\.(?!training|experiments|inference)": r"vaelib\.inference",
    r"vaelib\.(training|inference)": r"vaelib\.teaching",
}


def imports(source: str) -> set[str]:
    """The modules that a source imports, inside functions too (and the names it takes of them)."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def wrong_imports(module: str, source: str) -> list[str]:
    rules = [what for who, what in FORBIDDEN.items() if re.match(who, module)]
    return [name for name in imports(source) for what in rules if re.match(what, name)]


def test_imports_go_one_way():
    sources = {module: path.read_text(encoding="utf-8") for module, path in MODULES.items()}
    wrong = {module: wrong_imports(module, source) for module, source in sources.items()}
    assert {module: names for module, names in wrong.items() if names} == {}
    ours = set(MODULES) - {"vaelib"}  # which only collects names
    graph = {module: imports(source) & ours for module, source in sources.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
    for source in ("from vaelib.training import a", "import vaelib.experiments", "import seaborn"):
        assert wrong_imports("vaelib.vae", source) and wrong_imports("vaelib.pixelcnn.a", source)


def requirements() -> dict[str, Requirement]:
    """What pyproject asks for, with the extras that `make` installs."""
    extras = (PROJECT["optional-dependencies"][name] for name in ("lab", "test", "browser"))
    return {one.name: one for one in map(Requirement, sum(extras, PROJECT["dependencies"]))}


def pins(name: str) -> dict[str, str]:
    """A constraints file, every line of which is a pin -> {name: version}."""
    lines = (ROOT / name).read_text(encoding="utf-8").lower().splitlines()
    found = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {key.replace("_", "-"): version for key, version in found.items()}


def test_conda_and_pip_ask_for_the_same():
    lines = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    lines += lines.pop()["pip"]
    lines.remove("-e .")
    found = {one.name: one.specifier for one in map(Requirement, lines)}
    assert found.pop("python") == PROJECT["requires-python"] and found.pop("pip") == ""
    wanted = {name: one.specifier for name, one in requirements().items()}
    assert {CONDA_NAMES.get(name, name): one for name, one in found.items()} == wanted


def test_constraints_fit_the_ranges():
    known, oldest = pins("constraints.txt"), pins("constraints-oldest.txt")
    for name, item in requirements().items():
        assert known[name] in item.specifier, f"{item} against {known[name]}"
        (lowest,) = (part.version for part in item.specifier if part.operator == ">=")
        first = SpecifierSet(f"=={lowest}.*")  # 2.11 stands for its first release, 2.11.0
        assert oldest[name] in item.specifier & first, f"{item} against {oldest[name]}"


def test_files_are_small_and_name_no_machine():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if shown.returncode:
        pytest.skip("not a clone of the repository")
    paths = [path for name in shown.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    assert [str(path) for path in paths if path.stat().st_size > LARGEST] == []
    # Any letters can meet in a picture; the text of a notebook is tested in test_notebooks_form.
    texts = [path for path in paths if path.suffix not in (".ipynb", ".png")]
    assert [p.name for p in texts if MACHINE_PATH.search(p.read_text(encoding="utf-8"))] == []


def test_ci_calls_the_same_command():
    assert re.search(r"^\s*make test", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert "run: bash .ci/run" in (ROOT / ".github/workflows/ci.yml").read_text()


# Every module is imported, a model trained, the data file read.
USE = """
import importlib.resources, json, pkgutil, torch, vaelib
for module in pkgutil.walk_packages(vaelib.__path__, "vaelib."):
    importlib.import_module(module.name)
slots = vaelib.encoders.MLPEncoder(2), vaelib.priors.StandardNormal(2)
vae = vaelib.VAE(*slots, vaelib.decoders.BernoulliMLP(2))
optimizer = torch.optim.SGD(vae.parameters(), lr=1e-3)
vaelib.training.learning.aevb_step(vae, torch.rand(4, 1, 28, 28), optimizer)
assert json.load(importlib.resources.files("vaelib.experiments").joinpath("published.json").open())
print(vaelib.__file__)
"""


def test_wheel_is_whole_and_works(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "vaelib", tmp_path / "vaelib", ignore=skip)
    settings = {"capture_output": True, "text": True}
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, **settings)
    (wheel,), unpacked = (tmp_path / "dist").iterdir(), tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    files = {path.relative_to(tmp_path) for path in (tmp_path / "vaelib").rglob("*.*")}
    assert files == {path.relative_to(unpacked) for path in (unpacked / "vaelib").rglob("*.*")}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert wheel.name.split("-")[1] == vaelib.__version__ == citation["version"]
    settings |= {"cwd": wheel.parent, "env": {**os.environ, "PYTHONPATH": str(unpacked)}}
    done = subprocess.run([sys.executable, "-c", USE], **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(unpacked)), "not the wheel, but another installation"
