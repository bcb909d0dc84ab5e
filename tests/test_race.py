"""The race of figure 2: fair, repeatable, resumable, and made of the library's own steps."""

import json
import math

import pytest
import torch

from vaelib.data import Images
from vaelib.experiments import race
from vaelib.experiments.race import Setting
from vaelib.training.learning import aevb_step, wake_sleep_step

SHAPE = (1, 4, 3)


def images() -> Images:
    """Two kinds of stripes with a little noise: 200 to train on, 60 to test."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.randint(2, (260, 1, 1, 1), generator=generator)
    stripes = (torch.arange(4).reshape(1, 1, 4, 1) % 2 == kind).float().expand(260, *SHAPE)
    x = (0.8 * stripes + 0.2 * torch.rand(260, *SHAPE, generator=generator)).contiguous()
    return Images(x[:200], None, x[200:], None, "embedded")


SETS = {"mnist": images(), "frey": images()}
DIGITS = SETS["mnist"]


def setting(method="aevb", **changes) -> Setting:
    return Setting(**{"images": "mnist", "latents": 2, "method": method, "hidden": 6, **changes})


def run(settings, samples, stretch, *rest, sets=SETS, **options):
    """The race with the same numbers of samples for both data sets."""
    counts = (dict.fromkeys(sets, count) for count in (samples, stretch))
    return race.race(settings, sets, *counts, *rest, **options)


def test_bad_settings_are_named(monkeypatch):
    sizes = [{"step_sizes": sizes} for sizes in ((), (0.1, -1), (math.nan,))]
    for changes in ({"images": "cifar"}, {"method": "em"}, *sizes):
        with pytest.raises(ValueError, match=r"expected .*got"):
            setting(**changes)
    for samples, stretch in ((1000, 2000), (1500, 1000), (2000, 500)):
        with pytest.raises(ValueError, match="expected multiples of 1000"):
            run([setting()], samples, stretch)
    for wrong in ({"train": DIGITS.train + 1}, {"test": torch.rand(60, 1, 5, 3)}):
        with pytest.raises(ValueError, match="expected"):  # wrong data are no divergence
            run([setting()], 1000, 1000, sets={"mnist": DIGITS._replace(**wrong)})
    monkeypatch.setenv("VAELIB_RACE_SAMPLES", "2.5e3")
    assert race.budget(60_000) == 2000
    for word in ("few", "999", "nan", "inf"):
        monkeypatch.setenv("VAELIB_RACE_SAMPLES", word)
        with pytest.raises(ValueError, match=f"samples >= 1000, got '{word}'"):
            race.budget(60_000)


@pytest.mark.parametrize("samples", [1000, 2000, 60_000, 10**8])
def test_bounds_are_evaluated_evenly_in_the_logarithm(samples):
    marks = sorted(race.schedule(samples, 1000))
    assert marks[0] == 1000 and marks[-1] == samples and not any(m % 1000 for m in marks)
    # Six a decade are a factor of 1.5 apart; rounding to thousands stretches the first few to 2.
    assert all(b / a <= 2 for a, b in zip(marks, marks[1:], strict=False))


@pytest.mark.parametrize("method", race.METHODS)
@pytest.mark.parametrize("name", race.LATENTS)
def test_an_update_is_the_library_s(method, name):
    """Weights from N(0, 0.01), a variance; weight decay 1/N; batches with replacement."""
    runner = setting(method, images=name, hidden=500)
    ours, theirs = (race.Lane(runner, 0.02, SETS[name], torch.device("cpu")) for _ in range(2))
    weights = torch.cat([p.detach().flatten() for p in ours.vae.parameters()])
    assert abs(weights.std() - 0.1) < 5 * 0.1 / math.sqrt(2 * len(weights))  # standard errors
    assert all(o.param_groups[0]["weight_decay"] == 1 / 200 for o in ours.optimizers)
    ours.advance()
    torch.set_rng_state(theirs.random_state)
    for _ in range(race.UPDATES):
        x = theirs.train[torch.randint(200, (race.BATCH,))]
        if method == "aevb":
            aevb_step(theirs.vae, x, theirs.optimizers[0])
        else:
            wake_sleep_step(theirs.vae, x, theirs.optimizers)
    for a, b in zip(ours.vae.parameters(), theirs.vae.parameters(), strict=True):
        assert torch.equal(a, b)


# More than the best model without latents: knowing the kind of stripe is worth 3.8 (Bernoulli) or
# 23 nats (Gaussian) after its rate of ln 2. On Gaussian pixels wake-sleep needs longer than this.
@pytest.mark.parametrize(
    ("method", "name", "margin"),
    [("aevb", "mnist", 2.5), ("wake-sleep", "mnist", 2.5), ("aevb", "frey", 15)],
)
def test_the_bound_rises(method, name, margin):
    (result,) = run([setting(method, images=name, step_sizes=(0.1,))], 30_000, 1000)
    assert result.rows[-1]["samples"] == 30_000 and not result.diverged
    for which, x in (("train", DIGITS.train), ("test", DIGITS.test)):
        mean, variance = x.mean(0), x.var(0, correction=0)
        best = (torch.xlogy(mean, mean) + torch.xlogy(1 - mean, 1 - mean)).sum()
        if name == "frey":
            best = -0.5 * (2 * math.pi * math.e * variance).log().sum()
        assert result.rows[-1][f"{which}_bound"] > best + margin


def test_the_step_size_is_the_best_on_the_training_set():
    (result,) = run([setting("wake-sleep")], 4000, 2000)
    ends = {size: rows[-1]["train_bound"] for size, rows in result.trials.items()}
    assert set(ends) == set(race.STEP_SIZES) and result.step_size == max(ends, key=ends.get)
    (alone,) = run([setting("wake-sleep", step_sizes=(result.step_size,))], 4000, 2000)
    assert result.rows == alone.rows  # the choice does not disturb the run
    other = {"mnist": DIGITS._replace(test=1 - DIGITS.test)}  # and the test images have no say
    (two,) = run([setting("wake-sleep")], 4000, 2000, sets=other)
    assert [r["train_bound"] for r in two.rows] == [r["train_bound"] for r in result.rows]
    assert two.rows[-1]["test_bound"] != result.rows[-1]["test_bound"]


def test_runs_are_repeatable_also_in_other_processes():
    runs, before = [setting("aevb"), setting("wake-sleep", images="frey")], torch.get_rng_state()
    alone = run(runs, 1000, 1000)
    assert torch.equal(torch.get_rng_state(), before)
    shared = run(runs, 1000, 1000, workers=2)
    assert [(r.setting, r.rows) for r in alone] == [(r.setting, r.rows) for r in shared]
    assert run([setting(seed=1)], 1000, 1000)[0].rows != alone[0].rows


@pytest.mark.parametrize("method", race.METHODS)
def test_a_run_that_diverges_is_dropped(method, tmp_path):
    """A step size of 1e30 throws every weight out of float32's reach."""
    found = run([setting(method, step_sizes=(1e30, 0.02))], 2000, 1000)
    assert found[0].step_size == 0.02 and list(found[0].diverged) == [1e30]
    (lost,) = run([setting(method, step_sizes=(1e30,))], 2000, 1000)
    assert lost.diverged == {1e30: 1000} and lost.rows == []
    race.save(found, tmp_path / "deep" / "race.json", scale="paper")
    assert race.load(tmp_path / "deep" / "race.json") == found


def test_finished_runs_are_kept(tmp_path):
    runs = [setting("aevb"), setting("wake-sleep")]
    first = run(runs[:1], 1000, 1000, tmp_path)
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    kept["runs"][0]["rows"][0]["test_bound"] = -12.5  # to see where the answer comes from
    file.write_text(json.dumps(kept))
    again = run(runs, 1000, 1000, tmp_path)
    assert again[0].rows[0] == first[0].rows[0] | {"test_bound": -12.5}
    run(runs[:1], 2000, 1000, tmp_path)  # another budget and other data are other runs
    run(runs[:1], 1000, 1000, tmp_path, sets={"mnist": DIGITS._replace(train=1 - DIGITS.train)})
    assert len(list(tmp_path.iterdir())) == 4
    file.write_text('{"runs": [{}]}')
    with pytest.raises(ValueError, match=r"json: expected the results of a race"):
        run(runs, 1000, 1000, tmp_path)


def test_the_18_runs_and_their_time():
    runs = race.settings({"mnist": 500, "frey": 200}, seed=4)
    sizes = {(r.images, r.hidden) for r in runs}
    assert len(set(runs)) == 18 and sizes == {("mnist", 500), ("frey", 200)}
    rest = {"mnist": 1000}
    short, long = (race.estimate([setting()], SETS, {"mnist": n}, rest) for n in (1000, 10**6))
    assert 0 < 30 * short < long < math.inf  # a thousand times the updates, on a busy machine
