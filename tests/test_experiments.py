"""The rows of the papers' tables: their recipes, the command line, and the page they end on."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, fields, replace

import pytest
import torch

import vaelib
from vaelib import evaluate
from vaelib.distributions import committed_rate
from vaelib.experiments import __main__ as command
from vaelib.experiments import tables
from vaelib.experiments.__main__ import Options, main, run, tiny
from vaelib.experiments.recipes import Recipe, build
from vaelib.experiments.rows import RECIPES, prior_name
from vaelib.priors import AuxiliaryPrior

CPU = Options(device="cpu", progress=False)
NAME = "mnist-delta-vae"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VAELIB_CACHE", str(tmp_path))
    monkeypatch.delenv("VAELIB_DATA", raising=False)
    return tmp_path


def said(capsys, stream="err"):
    return " ".join(getattr(capsys.readouterr(), stream).replace("│", " ").split())


def test_every_row_of_ours_has_a_recipe_and_every_number_a_source():
    known, ours = tables.published(), []
    for row in (row for table in known["tables"] for row in table["rows"]):
        ours += [tuple(row["ours"])] if "ours" in row else []
        for entry in [*([row["paper"]] if "paper" in row else []), *row.get("others", [])]:
            assert entry["source"] in known["sources"] and float(entry["value"].strip("≤≈ ")) > 0
    expected = [(name, prior_name(recipe)) for name, recipe in RECIPES.items()]
    expected += [(name, "auxiliary prior") for name, one in RECIPES.items() if one.auxiliary_epochs]
    assert sorted(ours) == sorted(expected)
    shown = tables.listing()
    assert all(f"| `{name}`" in shown for name in RECIPES)


def test_targets_and_rates_are_the_papers():
    """Razavi et al. (2019), table 1; where it has nothing, another's number."""
    targets = {("cifar10-delta-vae", "AR(1) prior"): "≤ 2.85 bits/dim"}
    targets[("imagenet32-delta-vae", "auxiliary prior")] = "≤ 3.77 bits/dim"
    targets[("cifar10-pixelsnail", "no latents")] = "2.83 bits/dim"
    targets[("mnist-pixelsnail", "no latents")] = "78.61 nats"
    assert {row: "{value} {unit}".format(**tables.target(*row)) for row in targets} == targets
    assert tables.target("mnist-collapse", "N(0, I) prior") is None
    for name in ("cifar10-delta-vae", "imagenet32-delta-vae"):
        alpha = torch.tensor(RECIPES[name].alpha, dtype=torch.float64)
        rate = committed_rate(alpha, RECIPES[name].latents[0]).item() / math.log(2)
        assert rate == pytest.approx(79.447, abs=5e-4)  # bits an image
    control = replace(RECIPES["mnist-collapse"], alpha=(0.5, 0.9), auxiliary_epochs=20)
    assert control == RECIPES[NAME]


def test_a_run_keeps_its_model_and_what_a_reader_needs(cache, capsys):
    recipe, images = tiny(RECIPES[NAME])
    result = run(NAME, recipe, CPU, images)
    assert capsys.readouterr().err == ""
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["numbers"]) == ["AR(1) prior", "auxiliary prior"]
    for numbers in result["numbers"].values():
        nats, bits = numbers["nats"], numbers["bits_per_dim"]
        assert nats["negative_bound"] == pytest.approx(nats["distortion"] + nats["rate"], rel=1e-5)
        assert bits["rate"] * 784 * math.log(2) == pytest.approx(nats["rate"])
        assert numbers["curve"][-1]["test_bound"] == -nats["negative_bound"]
    assert result["changed"]["epochs"] == 2 and "latents" not in result["changed"]
    assert result["data"] == {"source": "synthetic", "train": 10, "test": 4}
    assert result["parameters"] == sum(p.numel() for p in build(recipe).parameters())
    assert result["options"]["precision"] == "32" and result["versions"]["torch"]
    (path,) = (cache / "runs").glob(f"{NAME}-*.model.pt")
    model = vaelib.load(path)
    assert isinstance(model.prior, AuxiliaryPrior)
    assert -evaluate(model, images.test).value.item() == nats["negative_bound"]
    assert run(NAME, recipe, replace(CPU, progress=True), images)["numbers"] == result["numbers"]
    shown = said(capsys)
    assert shown.count("complete, nothing to train") == 2 and str(path) in shown


def test_another_run_does_not_go_on_from_a_checkpoint(cache):
    recipe, images = tiny(RECIPES[NAME])
    options = replace(CPU, checkpoint=cache / "beta0.5")
    run(NAME, recipe, options, images)
    for changes in ({"beta": 0.5}, {"alpha": (0.1, 0.2)}, {"encoder": "causal"}):
        with pytest.raises(ValueError, match=r"beta0\.5\.pt is of a run with other settings"):
            run(NAME, replace(recipe, **changes), options, images)
    with pytest.raises(ValueError, match=r"other settings: .*ema"):
        run(NAME, recipe, replace(options, ema=0.5), images)
    (cache / "beta0.5.pt").unlink()  # the prior that is left is for the codes of another model
    with pytest.raises(ValueError, match=r"beta0\.5\.prior\.pt is of a run with .*encoder_weights"):
        run(NAME, replace(recipe, beta=0.5), options, images)


FIELDS = {
    "--latents 28 3 --alpha .1 .2 .3": {"latents": (28, 3), "alpha": (0.1, 0.2, 0.3)},
    "--position False --data cifar10-full": {"position": False, "data": "cifar10-full"},
    "--latents None --alpha --auxiliary-epochs=0": dict(latents=None, alpha=(), auxiliary_epochs=0),
    "--ema 0 --precision bf16 --compile --evaluations 3": {},
}


@pytest.mark.parametrize("words", FIELDS)
def test_the_command_line_changes_fields_and_writes_a_result(words, cache, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(command, "run", lambda *given: seen.append(given) or {"numbers": {"a": 1}})
    path = cache / "deep" / "a.json"
    assert main([NAME, *words.split(), "--result", str(path)]) == 0
    changed = {"ema": 0.0, "precision": "bf16", "compile": True, "evaluations": 3}
    options = Options(result=path, **changed if "--ema" in words else {})
    assert seen == [(NAME, replace(RECIPES[NAME], **FIELDS[words]), options)]
    assert json.loads(path.read_text()) == {"numbers": {"a": 1}}
    assert json.loads(capsys.readouterr().out) == {"a": 1}


BAD = [
    ("mnist-cats", "got mnist-cats"),
    ("table --folder x", "got table --folder x"),
    ("imagenet32-delta-vae", "expected VAELIB_DATA"),
    ("--epochs abc", "--epochs: invalid literal for int"),
    ("--epochs 0", "epochs > 0, got 0"),
    ("--epoch 3", "--epoch"),
    ("--channels 2.5", "--channels: invalid literal"),
    ("--latents [14]", "--latents"),
    ("--alpha 0.5", "expected one alpha for each of d channels"),
    ("--position maybe", "--position"),
    ("--decoder rnn", "--decoder"),
    ("--precision 8", "--precision"),
    ("--ema 2", "expected ema in [0, 1), got 2.0"),
    ("--evaluations 0", "evaluations >= 1, got 0"),
    ("--heads 3", "expected heads that divide"),
    ("--data digits14", "expected images of shape (1, 28, 28)"),
    ("--result /dev/null/a.json", "/dev/null"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_lines_end_in_a_sentence(words, message, capsys):
    try:
        status = main([*([NAME] if words[0] == "-" else []), *words.split()])
    except SystemExit as end:
        status = end.code
    assert status == 2 and message in said(capsys)


def test_help_documents_every_field(capsys):
    assert main([]) == 0 and NAME in said(capsys, "out")
    with pytest.raises(SystemExit, match="0"):
        main([NAME, "--help"])
    shown = said(capsys, "out").replace(",", " ")
    for field in fields(Recipe) + fields(Options):
        text = shown.split(f"--{field.name.replace('_', '-')} ", 1)[1].split("(default", 1)[0]
        assert len(text.split()) > 3, field.name  # more than the types


@pytest.mark.parametrize(("data", "count"), [("cifar10-full", 2), ("imagenet32", 0)])
def test_a_target_is_for_the_data_of_its_row(data, count, capsys):
    recipe, images = tiny(RECIPES["cifar10-pixelsnail"])
    recipe, images = replace(recipe, data=data), images._replace(source="local")
    run("cifar10-pixelsnail", recipe, replace(CPU, progress=True), images)
    shown = said(capsys)
    assert shown.count("target 2.83 bits/dim") == count
    assert "in all, without evaluations" in shown


def test_every_row_in_miniature(cache, monkeypatch, capsys):
    def fails(name, *rest):
        if name == "mnist-gated":
            raise RuntimeError("out of memory")
        return run(name, *rest)

    monkeypatch.setenv("VAELIB_PAPER_TINY", "1")
    monkeypatch.setattr(command, "Options", lambda: CPU)
    monkeypatch.setattr(command, "run", fails)
    assert main(["missing"]) == 1  # the others are trained all the same
    assert "mnist-gated FAILED: RuntimeError: out of memory" in said(capsys)
    monkeypatch.setattr(command, "run", run)
    assert main(["missing"]) == 0
    monkeypatch.setattr(command, "run", fails)
    assert main(["missing"]) == 0  # nothing is missing
    found = tables.results(cache / "paper-tiny")
    assert list(found) == list(RECIPES)
    text = tables.page(found, cache / "paper-tiny")
    numbers = found["cifar10-delta-vae"]["numbers"]["AR(1) prior"]["bits_per_dim"]
    assert f"**≤ {numbers['negative_bound']:.3f}** ({numbers['rate']:.3f}) *" in text
    assert "waits (" not in text and "tiny, " in text


def test_two_processes_train_a_row(cache):
    environment = os.environ | {"VAELIB_PAPER_TINY": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    (cache / "program.py").write_text(
        "from vaelib.experiments import __main__ as command\n"
        f"command.RECIPES = {{{NAME!r}: command.RECIPES[{NAME!r}]}}\n"
        "raise SystemExit(command.main(['missing']))"
    )
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line += ["--local-addr", "127.0.0.1", str(cache / "program.py")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result = tables.results(cache / "paper-tiny")[NAME]
    assert result["processes"] == 2 and len(result["numbers"]) == 2


def test_without_a_gpu_nothing_is_begun(monkeypatch, capsys):
    monkeypatch.delenv("VAELIB_PAPER_TINY", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for scale in ("classroom", "paper"):
        monkeypatch.setenv("VAELIB_SCALE", scale)
        assert main(["missing"]) == 1 and "VAELIB_SCALE=paper" in said(capsys)


def test_figures_are_made_by_their_notebooks(cache, monkeypatch, capsys):
    def fake(line):
        (notebook,) = (word for word in line if word.endswith(".ipynb"))
        assert os.path.exists(notebook)
        if "04" in notebook:
            (cache / "04_race_wake_sleep.png").touch()

    monkeypatch.setattr(command.subprocess, "run", fake)
    assert command.draw_missing(cache) == ["05_estimate_the_marginal_likelihood"]
    assert "target Kingma & Welling (2013), figure 2" in said(capsys)
    assert "`04_race" not in tables.page({}, cache) and "`05_estimate" in tables.page({}, cache)


def test_the_page_marks_what_is_not_the_row_of_today(cache):
    name, numbers = "mnist-gated", {"negative_bound": 80.123, "rate": 0.0}
    result = {"name": name, "scale": "paper", "recipe": asdict(RECIPES[name])}
    result |= {"numbers": {"no latents": {"nats": numbers}}, "seconds": 600.0, "parameters": 9}
    result |= {"data": {"train": 60_000, "test": 10_000}, "hardware": "a GPU", "processes": 1}
    result |= {"options": {"precision": "bf16"}}

    def page(**changes):
        (cache / f"{name}.json").write_text(json.dumps(result | changes))
        return " ".join(tables.page(tables.results(cache), cache).split())

    run = "| 60,000 | 10,000 | 9 | 1 × a GPU | bf16 | 10 min | paper"
    assert "| **80.12** |" in page() and f"{run} |" in page()
    assert all(f"| `{one}` |" in page() for one in [*tables.FIGURES, *RECIPES])
    text = page(recipe=result["recipe"] | {"epochs": 5})
    assert "| **80.12** * |" in text and f"{run}, epochs 5 |" in text
    assert "| **80.12** * |" in page(scale="classroom")
    (cache / f"{name}.json").write_text("{")
    with pytest.raises(ValueError, match=r"mnist-gated\.json: expected a result"):
        tables.results(cache)


def test_the_page_in_the_repository_is_the_one_that_the_command_writes():
    expected = tables.page(tables.results())
    assert (tables.FOLDER / "README.md").read_text(encoding="utf-8") == expected
