"""The rows of the papers' tables: their recipes, the command line, and the page they end on."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch

from vaelib import paper, train
from vaelib.distributions import committed_rate
from vaelib.paper import FOLDER, made_up, page, results, tiny
from vaelib.recipes import build
from vaelib.rows import RECIPES, prior_name, published, target
from vaelib.settings import Recipe
from vaelib.train import Options, run

CPU = Options(accelerator="cpu", precision="32", progress=False)


@pytest.fixture
def miniature(tmp_path, monkeypatch):
    """The folder of ``make paper`` in miniature."""
    monkeypatch.setenv("VAELIB_PAPER_TINY", "1")
    monkeypatch.setenv("VAELIB_CACHE", str(tmp_path))
    return tmp_path / "paper-tiny"


def no_training(*args, **kwargs):
    raise AssertionError("trained once more")


def test_there_is_a_recipe_for_every_row_of_ours():
    ours = [
        tuple(row["ours"]) for table in published().tables for row in table["rows"] if "ours" in row
    ]
    assert len(set(ours)) == len(ours)
    expected = {(name, prior_name(recipe)) for name, recipe in RECIPES.items()}
    expected |= {(name, "auxiliary prior") for name, one in RECIPES.items() if one.auxiliary_epochs}
    assert set(ours) == expected


def test_every_published_number_has_a_source():
    tables, sources = published()
    for row in (row for table in tables for row in table["rows"]):
        for entry in [*([row["paper"]] if "paper" in row else []), *row.get("others", [])]:
            assert entry["source"] in sources and float(entry["value"].strip("≤≈ ")) > 0


@pytest.mark.parametrize(
    ("name", "prior", "value", "unit"),
    [  # Razavi et al. (2019), table 1
        ("cifar10-delta-vae", "AR(1) prior", "≤ 2.85", "bits/dim"),
        ("cifar10-delta-vae", "auxiliary prior", "≤ 2.83", "bits/dim"),
        ("cifar10-pixelsnail", "no latents", "2.83", "bits/dim"),
        ("imagenet32-delta-vae", "AR(1) prior", "≤ 3.78", "bits/dim"),
        ("imagenet32-delta-vae", "auxiliary prior", "≤ 3.77", "bits/dim"),
        ("imagenet32-pixelsnail", "no latents", "3.77", "bits/dim"),
        ("mnist-pixelsnail", "no latents", "78.61", "nats"),  # nothing in that paper: another's
    ],
)
def test_targets(name, prior, value, unit):
    found = target(name, prior)
    assert (found["value"], found["unit"]) == (value, unit) and found["source"]


def test_a_row_that_nobody_has_published_has_no_target():
    assert target("mnist-collapse", "N(0, I) prior") is None
    assert target("cats", "AR(1) prior") is None


def test_the_colour_rows_commit_the_papers_rate():
    for name in ("cifar10-delta-vae", "imagenet32-delta-vae"):
        alpha = torch.tensor(RECIPES[name].alpha, dtype=torch.float64)
        rate = committed_rate(alpha, RECIPES[name].latents[0]).item() / math.log(2)
        assert rate == pytest.approx(79.447, abs=5e-4)


def test_the_control_differs_in_alpha_alone():
    control, model = RECIPES["mnist-collapse"], RECIPES["mnist-delta-vae"]
    assert replace(control, alpha=model.alpha, auxiliary_epochs=20) == model


@pytest.mark.parametrize("name", RECIPES)
def test_every_row_has_the_shape_of_its_data(name):
    recipe = RECIPES[name]
    assert recipe.image_shape == {"m": (1, 28, 28), "c": (3, 32, 32), "i": (3, 32, 32)}[name[0]]
    small = build(tiny(recipe))
    x = made_up(recipe).test[:2]
    assert small.elbo(x).value.isfinite().all()


def test_a_result_holds_what_a_reader_needs(tmp_path, capsys):
    name = "mnist-delta-vae"
    recipe = tiny(RECIPES[name])
    result = run(name, recipe, CPU, made_up(recipe))
    assert capsys.readouterr().err == ""
    assert json.loads(json.dumps(result, allow_nan=False))["name"] == name
    assert set(result["numbers"]) == {"AR(1) prior", "auxiliary prior"}
    for numbers in result["numbers"].values():
        nats, bits = numbers["nats"], numbers["bits_per_dim"]
        assert nats["negative_bound"] == pytest.approx(nats["distortion"] + nats["rate"], rel=1e-5)
        assert bits["rate"] * 784 * math.log(2) == pytest.approx(nats["rate"])
        assert numbers["target"]["value"] == "78.53"
        assert numbers["curve"][-1]["negative_bound"] == nats["negative_bound"]
    first, second = (one["nats"] for one in result["numbers"].values())
    assert first["distortion"] == pytest.approx(second["distortion"], rel=1e-5)  # same decoder
    assert first["rate"] != second["rate"]
    assert result["changed"]["epochs"] == 2 and "latents" not in result["changed"]
    assert result["data"] == {"source": "made up", "train": 10, "test": 4}
    assert result["parameters"] == sum(p.numel() for p in build(recipe).parameters())
    assert result["seconds"] > 0 and result["device"] and result["versions"]["torch"]


def test_a_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    name = "mnist-delta-vae"
    recipe = replace(tiny(RECIPES[name]), dropout=0.0)
    kept = replace(CPU, checkpoint=tmp_path / "run.pt")
    straight = run(name, recipe, CPU, made_up(recipe))["numbers"]
    run(name, replace(recipe, epochs=2, auxiliary_epochs=0), kept, made_up(recipe))
    monkeypatch.setattr(train, "aevb_step", no_training)  # all that is left is the prior
    resumed = run(name, recipe, kept, made_up(recipe))["numbers"]
    for prior, numbers in straight.items():
        assert resumed[prior]["nats"] == numbers["nats"]


def test_the_estimate_grows_with_the_epochs():
    recipe = tiny(RECIPES["mnist-gated"])
    fabric, images = CPU.engine(), made_up(recipe)
    few, many = (
        train.estimate(replace(recipe, epochs=epochs), images, fabric, CPU) for epochs in (1, 1000)
    )
    assert 0 < few < many


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 28, 28\), got \(3, 32, 32\)"):
        run("mnist-gated", RECIPES["mnist-gated"], CPU, made_up(RECIPES["cifar10-pixelsnail"]))


def test_the_command_line_knows_every_row_and_field(capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert all(name in shown.replace("\n", "").replace(" ", "") for name in RECIPES)
    assert all(f"--{field.name.replace('_', '-')}" in shown for field in fields(Recipe))


def test_the_command_line_changes_fields_and_writes_a_result(tmp_path, monkeypatch, capsys):
    seen = {}

    def fake(name, recipe, options):
        seen.update(name=name, recipe=recipe, options=options)
        return {"numbers": {"bound": 1.5}}

    monkeypatch.setattr(train, "run", fake)
    words = "mnist-delta-vae --epochs 3 --latents [28,4] --alpha [0.1,0.2,0.3,0.4] --encoder causal"
    words += " --delta=0 --ema 0 --precision bf16 --compile reduce-overhead --accumulate 2"
    assert train.main([*words.split(), "--result", str(tmp_path / "deep" / "a.json")]) == 0
    expected = {"epochs": 3, "latents": (28, 4), "alpha": (0.1, 0.2, 0.3, 0.4)}
    expected |= {"encoder": "causal", "delta": 0}
    assert seen["recipe"] == replace(RECIPES["mnist-delta-vae"], **expected)
    options = seen["options"]
    assert (options.ema, options.precision, options.compile) == (None, "bf16", "reduce-overhead")
    assert options.accumulate == 2
    assert json.loads((tmp_path / "deep" / "a.json").read_text())["numbers"] == {"bound": 1.5}
    assert json.loads(capsys.readouterr().out) == {"bound": 1.5}


def test_without_latents_by_the_command_line(monkeypatch):
    seen = []
    monkeypatch.setattr(
        train, "run", lambda name, recipe, options: seen.append(recipe) or {"numbers": 0}
    )
    line = "mnist-delta-vae --latents null --alpha [] --auxiliary-epochs 0"
    assert train.main(line.split()) == 0
    assert seen[0].latents is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mnist-cats", "invalid choice"),
        ("mnist-gated --epochs 0", "epochs > 0, got 0"),
        ("mnist-gated --decoder rnn", "decoder in"),
        ("mnist-gated --precision 8", "invalid choice"),
        ("mnist-gated --epoch 3", "unrecognized arguments"),
        ("mnist-gated --epochs many", "not supported"),
    ],
)
def test_bad_lines_are_named(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        train.main(words.split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_data_that_cannot_be_had_are_named(monkeypatch, capsys):
    monkeypatch.delenv("VAELIB_DATA", raising=False)
    assert train.main(["imagenet32-delta-vae"]) == 1
    assert "VAELIB_DATA" in capsys.readouterr().err


def test_make_paper_in_miniature_trains_every_row_once(miniature, monkeypatch, capsys):
    assert paper.main(["run"]) == 0
    shown = capsys.readouterr().err
    found = results(miniature)
    assert list(found) == list(RECIPES)
    for name, result in found.items():
        assert result["scale"] == "tiny" and result["device"]
        compared = result["numbers"][prior_name(RECIPES[name])]["target"]
        assert compared is None or f"target {compared['value']} {compared['unit']}" in shown
        assert f"{name}: " in shown and f"{name} done in" in shown
    assert shown.count("in all, without evaluations") == len(RECIPES)
    monkeypatch.setattr(paper, "run", no_training)
    assert paper.main(["run"]) == 0
    assert paper.main(["table"]) == 0
    text = (miniature / "README.md").read_text()
    assert text == page(found, miniature) and "waits (" not in text
    numbers = found["cifar10-delta-vae"]["numbers"]["AR(1) prior"]["bits_per_dim"]
    assert f"**≤ {numbers['negative_bound']:.3f}** ({numbers['rate']:.3f}) *" in text


def test_a_row_that_fails_does_not_stop_the_others(miniature, monkeypatch, capsys):
    def fails(name, *rest):
        if name == "mnist-gated":
            raise RuntimeError("out of memory")
        return run(name, *rest)

    monkeypatch.setattr(paper, "run", fails)
    assert paper.main(["run", "mnist-gated", "mnist-pixelsnail"]) == 1
    assert "mnist-gated FAILED: RuntimeError: out of memory" in capsys.readouterr().err
    assert set(results(miniature)) == {"mnist-pixelsnail"}


def test_two_processes_train_a_row_as_one_does(tmp_path):
    """float32: sums in another order, through a few updates, agree to about 1e-5."""
    environment = os.environ | {"VAELIB_PAPER_TINY": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    name = "imagenet32-delta-vae"
    command += ["-m", "vaelib.paper", "run", name, "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result = results(tmp_path)[name]
    assert result["processes"] == 2
    recipe = tiny(RECIPES[name])
    expected = run(name, recipe, CPU, made_up(recipe))["numbers"]
    for prior, numbers in expected.items():
        assert result["numbers"][prior]["nats"] == pytest.approx(numbers["nats"], rel=1e-4)


def test_without_a_gpu_nothing_is_begun(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("VAELIB_PAPER_TINY", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(paper, "run", no_training)
    assert paper.main(["run", "--folder", str(tmp_path)]) == 1
    assert "VAELIB_SCALE=paper make paper" in capsys.readouterr().err
    monkeypatch.setenv("VAELIB_SCALE", "paper")
    assert paper.main(["run", "--folder", str(tmp_path)]) == 1
    assert "No GPU here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_figures_are_made_by_their_notebooks(tmp_path, monkeypatch, capsys):
    commands = []

    def fake(command, env):
        assert "HERE" in env and not {"RANK", "WORLD_SIZE"} & set(env)  # one process, alone
        commands.append(command)
        name = Path(command[-3]).stem
        if name.startswith("04"):
            (tmp_path / f"{name}.png").touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(paper.subprocess, "run", fake)
    for name in ("RANK", "WORLD_SIZE", "HERE"):
        monkeypatch.setenv(name, "0")
    (tmp_path / "there.png").touch()
    assert paper.draw_missing(tmp_path) == 1
    shown = capsys.readouterr().err
    assert (
        "target Kingma & Welling (2013), figure 2" in shown and "04_race_wake_sleep done" in shown
    )
    assert "05_estimate_the_marginal_likelihood FAILED" in shown  # it left no figure
    assert len(commands) == 2
    assert all(Path(command[-3]).exists() for command in commands)  # the notebooks are there
    assert paper.draw_missing(tmp_path, ["04_race_wake_sleep"]) == 0 and len(commands) == 2
    assert "`04_race" not in page({}, tmp_path) and "`05_estimate" in page({}, tmp_path)


def test_the_page_marks_what_is_not_the_row_of_today():
    """A result of the recipe as it stands has no mark; one of another recipe names the fields."""
    name, numbers = "mnist-gated", {"negative_bound": 80.123, "rate": 0.0}
    result = {
        "name": name,
        "scale": "paper",
        "recipe": json.loads(json.dumps(asdict(RECIPES[name]))),
    }
    result |= {"numbers": {"no latents": {"nats": numbers}}, "seconds": 600.0, "parameters": 9}
    result |= {"data": {"train": 60_000, "test": 10_000}, "device": "a GPU", "processes": 1}
    result |= {"precision": "bf16-mixed", "changed": {}}
    text = page({name: result})
    assert (
        "| **80.12** |" in text
        and "| 60,000 | 10,000 | 9 | 1 × a GPU | bf16-mixed | 10 min | paper |" in text
    )
    result["recipe"]["epochs"] = 5
    text = page({name: result})
    assert "| **80.12** * |" in text and "| paper, epochs 5 |" in text
    result["recipe"]["epochs"] = RECIPES[name].epochs
    result["scale"] = "classroom"
    assert "| **80.12** * |" in page({name: result})


def test_the_page_lists_what_waits(tmp_path):
    text = page({}, tmp_path)
    assert all(f"| `{name}` |" in text for name in [*paper.FIGURES, *RECIPES])
    assert text.count("waits (`") == sum(
        "ours" in row for t in published().tables for row in t["rows"]
    )


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "mnist-gated.json").write_text("{")
    with pytest.raises(ValueError, match=r"mnist-gated\.json: expected a result"):
        results(tmp_path)


def test_the_page_in_the_repository_is_the_one_that_make_writes():
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == page(results(FOLDER))
