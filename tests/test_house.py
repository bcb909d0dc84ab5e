"""The house itself: its floors, its files, and that its papers say the same everywhere."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import vaelib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ROOMS = sorted(path for path in (ROOT / "vaelib").glob("*.py") if path.stem != "__init__")

# A room imports only from the floors below its own.
FLOOR = {
    # The cellar: pieces of rooms above that are ideas of their own.
    **dict.fromkeys(["faces", "noise", "precision"], -1),
    **dict.fromkeys("data scaling networks pixels graphs hmc plotting files exercises".split(), 0),
    **dict.fromkeys(["distributions", "autoregressive"], 1),
    "posteriors": 1.5,  # a landing: the families that encoders end in
    **dict.fromkeys(["encoders", "priors", "decoders", "pixelcnn"], 2),
    **dict.fromkeys(["vae", "objectives", "likelihood", "diagnostics", "linear_vae"], 3),
    "settings": 3,
    **dict.fromkeys(["learning", "engine"], 4),
    **dict.fromkeys(["runs", "race"], 5),
    **dict.fromkeys(["training", "checkpoints"], 6),
    "recipes": 7,
    "rows": 8,
    "train": 9,
    "paper": 10,
}
# Packages that one room alone may know.
KEEPER = {"matplotlib": "plotting", "seaborn": "plotting", "lightning_fabric": "engine"}
MOST_LINES = 450  # a longer room probably holds two ideas
LARGEST = 1_500_000  # bytes of a file in the repository
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|tmp|home|Users)/")
NOT_OURS = {".git", ".venv", ".cache", "__pycache__", ".pytest_cache", ".ruff_cache", "build"}
# What conda calls the packages that pip knows by another name.
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


def imports(source: str) -> set[str]:
    """The modules that a room imports, inside functions too -> {"vaelib.data", "torch.nn"}."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["vaelib" if node.level else "", node.module]))
            if module == "vaelib":
                found |= {f"vaelib.{name.name}" for name in node.names}
            else:
                found.add(module)
    return found


def breaches(room: str, source: str) -> list[str]:
    """Which imports of a room go up, sideways, or past the keeper of a package."""
    wrong = []
    for module in sorted(imports(source)):
        package, _, rest = module.partition(".")
        below = rest.split(".")[0]
        if package == "vaelib" and FLOOR.get(below, 99) >= FLOOR[room]:
            wrong.append(f"{room} (floor {FLOOR[room]}) imports {module}")
        if package in KEEPER and KEEPER[package] != room:
            wrong.append(f"{room} imports {package}: only {KEEPER[package]} may")
    return wrong


def files() -> list[Path]:
    """The repository's files: what git tracks or would add; without git, all but what we make."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found = [ROOT / name for name in shown.stdout.split("\0") if name]
    except (FileNotFoundError, subprocess.CalledProcessError):
        found = [path for path in ROOT.rglob("*") if not NOT_OURS & set(path.parts)]
    return [path for path in found if path.is_file()]


def text(path: Path) -> str:
    """A file as text; a picture is empty."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def requirements(*extras: str) -> dict[str, Requirement]:
    """What pyproject asks for -> {name: requirement}, with the given extras."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return {Requirement(line).name: Requirement(line) for line in lines}


def pins(name: str) -> dict[str, str]:
    """A constraints file -> {name: exact version}."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*", line), f"not a pin: {line!r}"
    found = dict(line.split("==") for line in lines)
    return {re.sub(r"[-_.]+", "-", key).lower(): version for key, version in found.items()}


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.stem)
def test_room_keeps_its_floor(room):
    assert room.stem in FLOOR, f"{room.stem} has no floor: add it to the table in this file"
    assert breaches(room.stem, room.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.stem)
def test_room_holds_one_idea(room):
    lines = len(room.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"expected at most {MOST_LINES} lines, got {lines}"


@pytest.mark.parametrize(
    "source",
    [
        "from vaelib.training import fit",
        "from vaelib import vae",
        "from . import likelihood",
        "from .encoders import MLPEncoder",
        "import vaelib.priors",
        "import vaelib",
        "def late():\n    import matplotlib.pyplot as plt",
    ],
)
def test_a_breach_is_seen(source):
    """The floors' test can fail: each line is forbidden to a room of floor 2."""
    assert breaches("decoders", source)


def test_the_floors_below_are_open():
    assert breaches("decoders", "from vaelib.networks import MLP\nfrom torch import nn") == []


def test_files_are_small():
    large = {str(path): path.stat().st_size for path in files() if path.stat().st_size > LARGEST}
    assert not large, f"expected at most {LARGEST:,} bytes, got {large}"


def test_no_file_names_a_path_of_a_machine():
    # Pictures in a notebook are base64, in which any letters can meet: their text has a test of
    # its own, in test_notebooks_form.
    hits = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in files()
        if path.suffix != ".ipynb"
        for match in MACHINE_PATH.finditer(text(path))
    ]
    assert hits == []


def test_no_stray_file_at_the_top():
    """Each name at the top level is one that a reader expects there."""
    expected = {
        *("README.md", "LICENSE", "CITATION.cff", "CONTRIBUTING.md", "CHANGELOG.md"),
        *("pyproject.toml", "environment.yml", "constraints.txt", "constraints-oldest.txt"),
        *("Makefile", ".gitignore", ".gitattributes", ".pre-commit-config.yaml"),
        *(".ci", ".github", "notebooks", "vaelib", "figures", "tests", "benchmarks"),
    }
    found = {path.relative_to(ROOT).parts[0] for path in files()}
    assert found <= expected, f"unexpected: {sorted(found - expected)}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_documented_commands_exist(name):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    page = (ROOT / name).read_text(encoding="utf-8")
    marked = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", page, re.DOTALL))
    used = set(re.findall(r"\bmake ([a-z]+)", marked))
    assert used, f"{name} names no command"
    assert used <= targets, f"no such target: {sorted(used - targets)}"


def test_readme_has_both_commands():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make lab" in page and "make test" in page


def test_documented_files_exist():
    for name in ["README.md", "CONTRIBUTING.md"]:
        page = (ROOT / name).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", page):
            if not re.match(r"[a-z]+:", link):
                assert (ROOT / link).exists(), f"{name} links to {link}"


def test_conda_and_pip_ask_for_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    lines = [line for line in environment["dependencies"] if isinstance(line, str)]
    (with_pip,) = (line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    assert "-e ." in with_pip, "the environment must hold vaelib itself"
    asked = [Requirement(line) for line in lines + [line for line in with_pip if line != "-e ."]]
    found = {CONDA_NAMES.get(item.name, item.name): item.specifier for item in asked}
    assert found.pop("python") == SpecifierSet(PROJECT["requires-python"])
    assert found.pop("pip") == SpecifierSet("")
    wanted = requirements("lab", "test", "browser")
    assert found == {name: item.specifier for name, item in wanted.items()}


def test_known_versions_fit_the_ranges():
    known = pins("constraints.txt")
    for name, item in requirements("lab", "test", "browser").items():
        assert item.specifier.contains(known[name]), f"{item} against {known[name]}"


def test_oldest_versions_are_the_lower_bounds():
    oldest = pins("constraints-oldest.txt")
    for name, item in requirements("lab", "test", "browser").items():
        (lowest,) = (part.version for part in item.specifier if part.operator == ">=")
        bound = SpecifierSet(f"=={lowest}.*")  # 2.11 stands for its first release, 2.11.0
        assert oldest[name] in bound, f"{name}: oldest {oldest[name]}, lower bound {lowest}"
        assert oldest[name] in item.specifier


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["version"] == vaelib.__version__ == citation["version"]


def test_ci_calls_the_same_command():
    assert re.search(r"^\s*make test", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert any("bash .ci/run" in step for step in steps)
