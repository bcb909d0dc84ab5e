"""The race: fair, repeatable, resumable, and the same mathematics on a CPU and in a graph."""

import json
import math

import pytest
import torch
from torch.distributions import Distribution

from vaelib import plotting, race
from vaelib.data import Images
from vaelib.decoders import BernoulliMLP, GaussianMLP
from vaelib.encoders import MLPEncoder
from vaelib.graphs import FlatAdagrad, Graph, unchecked
from vaelib.learning import aevb_step, wake_sleep_step
from vaelib.networks import MLP
from vaelib.priors import StandardNormal
from vaelib.race import Setting
from vaelib.vae import VAE

SHAPE = (1, 4, 3)
CPU = torch.device("cpu")


def run(settings, sets, samples, stretch, *rest, **options):
    """The race with the same numbers of samples for both data sets."""
    counts = (dict.fromkeys(sets, count) for count in (samples, stretch))
    return race.race(settings, sets, *counts, *rest, **options)


def images(seed: int = 0) -> Images:
    """Two kinds of stripes with a little noise: 200 to train on, 60 to test."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(2, (260, 1, 1, 1), generator=generator)
    stripes = (torch.arange(4).reshape(1, 1, 4, 1) % 2 == kind).float().expand(260, *SHAPE)
    x = (0.8 * stripes + 0.2 * torch.rand(260, *SHAPE, generator=generator)).contiguous()
    return Images(x[:200], None, x[200:], None, "embedded")


SETS = {"mnist": images(), "frey": images()}


def setting(method: str = "aevb", **changes) -> Setting:
    return Setting(**{"images": "mnist", "latents": 2, "method": method, "hidden": 6, **changes})


def vae(decoder=BernoulliMLP) -> VAE:
    torch.manual_seed(3)
    return VAE(MLPEncoder(2, SHAPE, 6), StandardNormal(2), decoder(2, SHAPE, 6))


def adagrad(module):
    return torch.optim.Adagrad(module.parameters(), lr=0.05, weight_decay=0.01)


def flat(module):
    return FlatAdagrad(module, 0.05, 0.01)


def test_figure_2_has_18_runs():
    runs = race.settings({"mnist": 500, "frey": 200}, seed=4)
    assert len(set(runs)) == 18
    for method in race.METHODS:
        sizes = [(r.images, r.latents) for r in runs if r.method == method]
        digits = [("mnist", n) for n in (3, 5, 10, 20, 200)]
        assert sizes == digits + [("frey", n) for n in (2, 5, 10, 20)]
    assert {(r.images, r.hidden, r.seed) for r in runs} == {("mnist", 500, 4), ("frey", 200, 4)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": "cifar"}, "expected images in .*'cifar'"),
        ({"method": "em"}, "expected method in .*'em'"),
        ({"step_sizes": ()}, "expected positive finite step sizes"),
        ({"step_sizes": (0.1, -1.0)}, "expected positive finite step sizes"),
        ({"step_sizes": (math.nan,)}, "expected positive finite step sizes"),
    ],
)
def test_setting_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        setting(**changes)


@pytest.mark.parametrize("samples", [1000, 2000, 60_000, 10**8])
def test_schedule_is_even_in_the_logarithm(samples):
    marks = race.schedule(samples)
    assert marks == sorted(set(marks)) and marks[0] == 1000 and marks[-1] == samples
    assert all(mark % race.UNIT == 0 for mark in marks)
    # Six a decade are a factor of 1.5 apart; rounding to thousands stretches the first few to 2.
    assert all(b / a <= 2 for a, b in zip(marks, marks[1:], strict=False))


def test_schedule_refuses_too_few():
    with pytest.raises(ValueError, match="expected samples >= 1000"):
        race.schedule(999)


def test_budget(monkeypatch):
    monkeypatch.delenv("VAELIB_RACE_SAMPLES", raising=False)
    assert race.budget(60_000) == 60_000
    monkeypatch.setenv("VAELIB_RACE_SAMPLES", "2.5e3")
    assert race.budget(60_000) == 2000
    for word in ("few", "999", "-1", "nan", "inf"):
        monkeypatch.setenv("VAELIB_RACE_SAMPLES", word)
        with pytest.raises(ValueError, match=f"expected a number of samples >= 1000, got '{word}'"):
            race.budget(60_000)


def test_lane_starts_as_the_paper_says():
    """Weights from N(0, 0.01), a variance; weight decay 1/N."""
    lane = race.Lane(setting(hidden=1000), 0.02, SETS["mnist"], CPU)
    weights = torch.cat([p.detach().flatten() for p in lane.vae.parameters()])
    # 30,000 draws: the standard error of their deviation is 0.1/√60,000 = 0.0004
    assert len(weights) > 30_000 and abs(weights.std() - 0.1) < 5 * 0.0004
    ((group,),) = (optimizer.param_groups for optimizer in lane.optimizers)
    assert group["lr"] == 0.02 and group["weight_decay"] == 1 / 200


def best_without_latents(x: torch.Tensor, name: str) -> float:
    """The highest mean log-likelihood of independent pixels, exact: no z could add to it."""
    if name == "frey":  # Gaussian pixels, the data's own means and variances
        return float(-0.5 * (2 * math.pi * math.e * x.var(0, correction=0)).log().sum())
    mean = x.mean(0)  # grey levels read as probabilities
    return float((torch.xlogy(mean, mean) + torch.xlogy(1 - mean, 1 - mean)).sum())


def assert_learned(result: race.Result, margin: float) -> None:
    """Both bounds are above the best model without latents by a margin, in nats."""
    assert result.rows[-1]["samples"] == 30_000 and not result.diverged
    sets = SETS[result.setting.images]
    for which, x in (("train", sets.train), ("test", sets.test)):
        without = best_without_latents(x, result.setting.images)
        assert result.rows[-1][f"{which}_bound"] > without + margin


# Knowing the kind of stripe is worth 3.8 (Bernoulli) or 23 nats (Gaussian) after its rate of ln 2.
# Not a rise above the first row: AEVB is nearly there after ten updates, and wake-sleep stays on
# the plateau for 10,000 samples or, on Gaussian pixels, for longer than this.
MARGINS = {("aevb", "mnist"): 2.5, ("wake-sleep", "mnist"): 2.5, ("aevb", "frey"): 15}


@pytest.mark.parametrize(("method", "name"), MARGINS)
def test_both_methods_learn(method, name):
    (result,) = run([setting(method, images=name, step_sizes=(0.1,))], SETS, 30_000, 1000)
    assert_learned(result, MARGINS[method, name])


def test_the_step_size_is_the_best_on_the_training_set():
    (result,) = run([setting("wake-sleep")], SETS, 4000, 2000)
    ends = {size: rows[-1]["train_bound"] for size, rows in result.trials.items()}
    assert set(ends) == set(race.STEP_SIZES)
    assert result.step_size == max(ends, key=ends.get)
    # The winner goes on from where its trial ended.
    assert result.rows[: len(result.trials[result.step_size])] == result.trials[result.step_size]


def test_the_test_set_has_no_say():
    """With other test images the same step size is chosen and the same weights are learned."""
    train = SETS["mnist"]
    other = {"mnist": train._replace(test=1 - train.test)}
    (one,), (two,) = (run([setting()], sets, 3000, 1000) for sets in (SETS, other))
    assert one.step_size == two.step_size
    assert [r["train_bound"] for r in one.rows] == [r["train_bound"] for r in two.rows]
    assert one.rows[-1]["test_bound"] != two.rows[-1]["test_bound"]


def test_a_choice_does_not_disturb_the_run():
    """The winner's rows are those of a run that had no choice."""
    (chosen,) = run([setting("wake-sleep")], SETS, 3000, 1000)
    (alone,) = run([setting("wake-sleep", step_sizes=(chosen.step_size,))], SETS, 3000, 1000)
    assert chosen.rows == alone.rows


def test_runs_are_repeatable_and_leave_the_random_state_alone():
    before = torch.get_rng_state()
    (one,) = run([setting()], SETS, 2000, 1000)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    (two,) = run([setting()], SETS, 2000, 1000)
    (other,) = run([setting(seed=1)], SETS, 2000, 1000)
    assert one.rows == two.rows != other.rows


def test_processes_change_nothing():
    runs = [setting("aevb"), setting("wake-sleep")]
    alone = run(runs, SETS, 1000, 1000)
    shared = run(runs, SETS, 1000, 1000, workers=2)
    assert [r.setting for r in shared] == runs
    assert [r.rows for r in alone] == [r.rows for r in shared]


@pytest.mark.parametrize("method", race.METHODS)
def test_divergence_is_recorded(method):
    """A step size of 1e30 throws every weight out of float32's reach."""
    (result,) = run([setting(method, step_sizes=(1e30, 0.02))], SETS, 2000, 1000)
    assert result.step_size == 0.02 and list(result.diverged) == [1e30]
    (lost,) = run([setting(method, step_sizes=(1e30,))], SETS, 2000, 1000)
    assert lost.diverged == {1e30: 1000} and lost.rows == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"train": SETS["mnist"].train + 1},
        {"train": SETS["mnist"].train * math.nan},
        {"test": torch.rand(60, 1, 5, 3)},
    ],
)
def test_wrong_data_are_no_divergence(wrong):
    with pytest.raises(ValueError, match="expected"):
        run([setting()], {"mnist": SETS["mnist"]._replace(**wrong)}, 1000, 1000)


def test_finished_runs_are_kept(tmp_path):
    runs = [setting("aevb"), setting("wake-sleep")]
    first = run(runs[:1], SETS, 1000, 1000, tmp_path)
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    kept["runs"][0]["rows"][0]["test_bound"] = -12.5  # to see where the answer comes from
    file.write_text(json.dumps(kept))
    again = run(runs, SETS, 1000, 1000, tmp_path)
    assert again[0].rows[0]["test_bound"] == -12.5
    assert again[0].rows[0]["train_bound"] == first[0].rows[0]["train_bound"]
    assert len(list(tmp_path.iterdir())) == 2
    run(runs[:1], SETS, 2000, 1000, tmp_path)  # another budget is another run
    assert len(list(tmp_path.iterdir())) == 3


def test_results_come_back_from_json(tmp_path):
    results = run([setting("wake-sleep", step_sizes=(1e30, 0.1))], SETS, 1000, 1000)
    race.save(results, tmp_path / "deep" / "race.json", scale="paper")
    assert race.load(tmp_path / "deep" / "race.json") == results
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["race.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"runs": [{}]}', '{"runs": 3}'])
def test_load_refuses(tmp_path, text):
    (tmp_path / "race.json").write_text(text)
    with pytest.raises(ValueError, match="expected the results of a race"):
        race.load(tmp_path / "race.json")


@pytest.mark.parametrize(("samples", "stretch"), [(1000, 2000), (1500, 1000), (2000, 500)])
def test_race_refuses(samples, stretch):
    with pytest.raises(ValueError, match="expected multiples of 1000"):
        run([setting()], SETS, samples, stretch)


def test_estimate_grows_with_the_work():
    runs = [setting()]
    seconds = race.estimate(runs, SETS, {"mnist": 10**6}, {"mnist": 1000})
    assert 0 < seconds < math.inf
    # 999,000 samples more and nothing else: a thousand times the time, within a busy machine's
    # factor of ten
    assert seconds > 100 * race.estimate(runs, SETS, {"mnist": 1000}, {"mnist": 1000}) / 3


def test_estimate_counts_updates_and_looks(monkeypatch):
    seconds = iter([8.0, 0.5])  # of a thousand samples in both lanes, of a look in both
    monkeypatch.setattr(race, "_seconds", lambda device, work: next(seconds))
    runs = [setting(step_sizes=(0.1, 0.01)), setting(step_sizes=(0.02,))]
    found = race.estimate(runs, SETS, {"mnist": 10_000}, {"mnist": 2000}, workers=2)
    marks = {*race.schedule(10_000), 2000}
    early = len([mark for mark in marks if mark <= 2000])
    updates = 4.0 * (10 + 10 + 2)  # in thousands: two lanes to the end, one for the first stretch
    looks = 0.25 * (2 * len(marks) + early)
    assert found == pytest.approx((updates + looks) / 2)


def test_data_sets_may_run_for_unlike_times():
    runs = [setting(), setting(images="frey")]
    results = race.race(runs, SETS, {"mnist": 3000, "frey": 2000}, {"mnist": 1000, "frey": 2000})
    assert [result.rows[-1]["samples"] for result in results] == [3000, 2000]
    ends = [{rows[-1]["samples"] for rows in result.trials.values()} for result in results]
    assert ends == [{1000}, {2000}]


def test_rows_can_be_drawn():
    (result,) = run([setting()], SETS, 2000, 1000)
    ax = plotting.learning_curves({"aevb": result.rows})
    assert [list(line.get_xdata()) for line in ax.lines] == [[1000, 2000]] * 2


def test_flat_adagrad_is_torch_s():
    """Fifty steps with weight decay; float64, so that only the order of sums can differ."""
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        ours, theirs = MLP(3, 5, 2), MLP(3, 5, 2)
        theirs.load_state_dict(ours.state_dict())
        first, second = flat(ours), adagrad(theirs)
        for _ in range(50):
            x = torch.randn(7, 3)
            first.step(ours(x).square().mean())
            second.zero_grad()
            theirs(x).square().mean().backward()
            second.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    finally:
        torch.set_default_dtype(torch.float32)


def test_flat_adagrad_stands_still_on_a_bad_gradient():
    module = MLP(3, 5, 2)
    optimizer = flat(module)
    before = [tensor.clone() for tensor in optimizer.state[:2]]
    optimizer.step(module(torch.randn(4, 3)).sum() * math.nan)
    assert bool(optimizer.failed)
    assert all(torch.equal(a, b) for a, b in zip(before, optimizer.state, strict=False))


@pytest.mark.parametrize(("step_size", "decay"), [(0.0, 0.0), (0.1, -1.0), (math.nan, 0.0)])
def test_flat_adagrad_refuses(step_size, decay):
    with pytest.raises(ValueError, match="expected step_size > 0"):
        FlatAdagrad(MLP(3, 5, 2), step_size, decay)


@pytest.mark.parametrize("decoder", [BernoulliMLP, GaussianMLP])
def test_recorded_aevb_is_learning_s(decoder):
    """Three updates from the same noise; float32, summed in another order."""
    ours, theirs, x = vae(decoder), vae(decoder), SETS["mnist"].train[:50]
    first, second = flat(ours), adagrad(theirs)
    for seed in range(3):
        torch.manual_seed(seed)
        (loss,) = race.losses(ours, x, "aevb")
        first.step(loss)
        torch.manual_seed(seed)
        aevb_step(theirs, x, second)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decoder", [BernoulliMLP, GaussianMLP])
def test_recorded_wake_sleep_is_learning_s(decoder):
    """The same, after the noise that wake_sleep_step spends on reporting the bound."""
    ours, theirs, x = vae(decoder), vae(decoder), SETS["mnist"].train[:50]
    first = [flat(ours.decoder), flat(ours.encoder)]
    second = (adagrad(theirs.decoder), adagrad(theirs.encoder))
    for seed in range(3):
        torch.manual_seed(seed)
        ours.elbo(x)
        for loss, optimizer in zip(race.losses(ours, x, "wake-sleep"), first, strict=True):
            optimizer.step(loss)
        torch.manual_seed(seed)
        wake_sleep_step(theirs, x, second)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_sleep_loss_leaves_the_decoder_alone():
    model = vae()
    _, sleep = race.losses(model, SETS["mnist"].train[:50], "wake-sleep")
    gradients = torch.autograd.grad(sleep, list(model.decoder.parameters()), allow_unused=True)
    assert gradients == (None,) * len(gradients)


def test_unchecked_is_undone():
    before = Distribution._validate_args
    with pytest.raises(KeyError), unchecked():
        assert Distribution._validate_args is False
        raise KeyError
    assert Distribution._validate_args == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_graph_needs_cuda():
    with pytest.raises(RuntimeError, match="expected a CUDA device"):
        Graph(lambda: None, [], 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_lanes_learn_side_by_side_on_a_gpu():
    runs = [setting(method, images=name, step_sizes=(0.1,)) for method, name in MARGINS]
    for result, margin in zip(
        run(runs, SETS, 30_000, 1000, device="cuda"), MARGINS.values(), strict=True
    ):
        assert_learned(result, margin)
