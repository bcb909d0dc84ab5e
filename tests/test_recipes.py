"""Recipes and the cache of trained models: every model once, and none ever half."""

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence

from vaelib import VAE, WithoutLatents, data, evaluate
from vaelib.data import Images
from vaelib.distributions import committed_rate
from vaelib.experiments import recipes
from vaelib.experiments.recipes import Recipe, build, load_trained, objective, trained
from vaelib.priors import AuxiliaryPrior
from vaelib.training.objectives import Annealing, Beta, FreeBits

TINY = Recipe(
    image_shape=(1, 4, 4),
    latents=(4, 2),
    encoder="mlp",
    encoder_size=4,
    channels=4,
    layers=1,
    kernel=3,
    first_kernel=3,
    context=3,
    epochs=2,
    batch_size=10,
)
ALONE = replace(TINY, latents=None)
DELTA = replace(TINY, alpha=(0.5, 0.9))
AUXILIARY = replace(DELTA, auxiliary_epochs=3)


def images(n=30, seed=0, source="synthetic"):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n + 10, 1, 4, 4, generator=generator).round()
    return Images(x[:n], None, x[n:], None, source)


def get(recipe, folder, some=None):
    return trained(recipe, some or images(), folder, progress=False)


def assert_same(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.fixture
def no_training(monkeypatch):
    """Call it, and training is an error from then on."""

    def refuse(*args, **kwargs):
        raise AssertionError("trained once more")

    return lambda: monkeypatch.setattr(recipes, "fit", refuse)


MODELS = [replace(TINY, decoder=d) for d in ("mlp", "pixelcnn", "gated", "pixelsnail")]
MODELS += [replace(one, latents=3) for one in MODELS] + [ALONE, replace(TINY, delta=0.1)]
MODELS += [replace(DELTA, encoder=e) for e in ("anti-causal", "causal", "unrestricted")]
COLOUR = {"image_shape": (3, 4, 4), "likelihood": "logistic_mixture", "levels": 8, "mixtures": 2}
MODELS += [replace(one, **COLOUR) for one in (ALONE, TINY)]


@pytest.mark.parametrize("recipe", MODELS, ids=lambda one: f"{one.label}, {one.likelihood}")
def test_what_is_built_scores_and_draws_its_images(recipe):
    model, top = build(recipe), 1 if recipe.likelihood == "bernoulli" else 7
    x = torch.randint(top + 1, (5, *recipe.image_shape)) / top
    assert model.elbo(x).value.isfinite().all() and model.sample(2).shape == x[:2].shape
    if recipe.latents is None:
        assert isinstance(model, WithoutLatents)
        torch.testing.assert_close(model.elbo(x).value, model.decoder().log_prob(x))
    if recipe.alpha or recipe.delta:  # rounding: a few parts in a million of a nat
        least = committed_rate(torch.tensor([0.5, 0.9]), 4) if recipe.alpha else 8 * 0.1
        assert (kl_divergence(model.encoder(x), model.prior()) >= least - 1e-5).all()


def test_all_alpha_zero_is_the_standard_normal():
    z = torch.randn(5, 4, 2)
    expected = build(TINY).prior().log_prob(z)
    torch.testing.assert_close(build(replace(TINY, alpha=(0.0, 0.0))).prior().log_prob(z), expected)


def test_weights_depend_on_the_seed_alone():
    before = torch.get_rng_state()
    one = build(TINY)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert_same(one, build(TINY))
    other = build(replace(TINY, seed=1))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


@pytest.mark.parametrize(
    ("changes", "count", "expected"),
    [
        ({}, 30, None),
        ({"beta": 0.3}, 30, Beta(0.3)),
        ({"free_bits": 2.0, "free_bits_group": "row"}, 30, FreeBits(2.0, "row")),
        ({"annealing_epochs": 2}, 31, Annealing(8)),  # 4 batches an epoch
    ],
)
def test_objectives(changes, count, expected):
    assert objective(replace(TINY, **changes), count) == expected


def test_arrays_and_lists_make_the_same_recipe():
    for alpha in ([0.5, 0.9], np.array([0.5, 0.9]), tuple(np.linspace(0.5, 0.9, 2))):
        one = replace(TINY, latents=[np.int64(4), 2], image_shape=[1, 4, 4], alpha=alpha)
        assert one == DELTA and hash(one) == hash(DELTA)
        assert {type(a) for a in one.alpha} == {float}
        assert build(one).elbo(images().test).value.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": "rnn"}, "decoder in .*got 'rnn'"),
        ({"encoder": "rnn"}, "encoder in .*got 'rnn'"),
        ({"data": "cats"}, "data in .*got 'cats'"),
        ({"likelihood": "poisson"}, "likelihood in .*got 'poisson'"),
        ({"free_bits_group": "rows"}, "free_bits_group in .*got 'rows'"),
        ({"inject": "add"}, "inject in .*got 'add'"),
        ({"position": "False"}, "True or False, position .*got 'False'"),
        ({"channels": 2.5}, "a whole number channels .*got 2.5"),
        ({"epochs": 0}, "epochs > 0, got 0"),
        ({"lr": 0.0}, "lr > 0, got 0.0"),
        ({"beta": float("nan")}, "a finite beta >= 0, got nan"),
        ({"beta": -1.0}, "beta >= 0, got -1.0"),
        ({"annealing_epochs": 3}, "annealing_epochs <= 2, got 3"),
        ({"beta": 0.5, "free_bits": 1.0}, "at most one of beta"),
        ({"image_shape": (4, 4)}, r"image_shape \(C, H, W\), got \(4, 4\)"),
        ({"latents": (4,)}, r"latents None, d or \(H, d\), got \(4,\)"),
        ({"latents": (5, 2)}, r"4 rows, got \(5, 2\)"),
        ({"latents": 3, "alpha": (0.5, 0.9)}, r"latents \(H, d\) for .*got 3"),
        ({"latents": 3, "encoder": "causal"}, r"latents \(H, d\) for .*got 3"),
        ({"alpha": (0.5,)}, r"one alpha for each of d channels, got \(0.5,\)"),
        ({"alpha": (0.5, 0.9), "delta": 0.1}, "alpha or delta"),
        ({"latents": None, "decoder": "mlp"}, "latents for an MLP"),
        ({"latents": None, "alpha": (0.5, 0.9)}, "one alpha"),
        ({"latents": None, "auxiliary_epochs": 1}, "latents for .* auxiliary prior"),
        ({"decoder": "mlp", "likelihood": "categorical"}, "Bernoulli pixels"),
    ],
)
def test_bad_recipes_are_named(changes, message):
    with pytest.raises(ValueError, match=f"expected .*{message}"):
        replace(TINY, **changes)


def test_the_data_sets(tmp_path, monkeypatch):
    digits = recipes.load(Recipe())
    assert digits.train.shape == (4000, 1, 14, 14) and digits.test.shape == (1000, 1, 14, 14)
    assert set(digits.train.unique().tolist()) == {0.0, 1.0}
    assert 0.05 < digits.train.mean() < 0.3
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    for name, count in (("train10k", 10_000), ("test1k", 1_000)):
        pixels = np.arange(count * 3072).astype(np.uint8).reshape(count, 3072)
        np.savez(tmp_path / f"cifar10_{name}.npz", data=pixels, labels=np.arange(count) % 10)
    colour = recipes.load(replace(ALONE, data="cifar10", image_shape=(3, 32, 32)))
    assert colour.train.shape == (10_000, 3, 32, 32) and colour.test.shape == (1_000, 3, 32, 32)
    monkeypatch.delenv("VAELIB_DATA")
    with pytest.raises(data.DataError, match="VAELIB_DATA"):
        recipes.load(replace(ALONE, data="imagenet32"))


@pytest.mark.parametrize("recipe", [ALONE, DELTA, AUXILIARY], ids=["alone", "delta", "auxiliary"])
def test_a_model_comes_back_from_the_cache_as_it_was(recipe, tmp_path, no_training):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one, history = get(recipe, tmp_path)
    assert torch.equal(torch.rand(4), expected)  # the caller's random state
    other, _ = get(recipe, tmp_path / "other")
    assert_same(one, other)
    no_training()
    again, kept = get(recipe, tmp_path)
    assert_same(one, again)
    assert history.rows == kept.rows and not one.training and not again.training
    assert len(history.rows) == recipe.auxiliary_epochs or recipe.epochs
    assert history["test_bound"][-1] == evaluate(again, images().test).value.item()


def test_an_auxiliary_prior_is_trained_after_the_model_which_stays_as_it_is(tmp_path):
    base, before = get(DELTA, tmp_path)
    model, history = get(AUXILIARY, tmp_path)
    assert isinstance(model.prior, AuxiliaryPrior)
    assert_same(model.encoder, base.encoder)
    assert_same(model.decoder, base.decoder)
    assert all(p.requires_grad for p in model.parameters())
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]
    assert history["train_rate"][-1] < history["train_rate"][0]
    assert history["test_distortion"][-1] == before["test_distortion"][-1]  # the same draws of z


def test_another_recipe_or_other_data_are_another_model(tmp_path):
    get(TINY, tmp_path)
    changes = {"lr": 1e-3, "beta": 0.5, "seed": 1, "alpha": (0.5, 0.9), "encoder": "causal"}
    changes |= {"delta": 0.1, "free_bits": 1.0, "inject": "map", "position": False}
    for name, value in changes.items():
        get(replace(TINY, **{name: value}), tmp_path)
    more = images()
    more.test[0, 0, 0, 0] = 1 - more.test[0, 0, 0, 0]
    get(TINY, tmp_path, more)
    assert len(list(tmp_path.glob("*.pt"))) == len(changes) + 2
    assert {field.name for field in fields(Recipe)} >= set(changes)


def damage(path, how):
    whole = path.read_bytes()
    state = torch.load(path, weights_only=True)
    if how == "flipped":
        place = whole.index(max(state["model"].values(), key=len).numpy().tobytes())
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif how in ("cut", "empty", "text"):
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[how])
    else:
        other = {"another recipe": {"recipe": {}}, "other weights": {"model": {}}, "no history": {}}
        kept = {k: v for k, v in state.items() if k != "rows" or how != "no history"}
        torch.save(kept | other[how], path)


@pytest.mark.parametrize(
    "how", ["cut", "empty", "text", "flipped", "another recipe", "other weights", "no history"]
)
def test_a_bad_file_is_named_and_replaced(how, tmp_path):
    one, _ = get(DELTA, tmp_path)
    (path,) = tmp_path.glob("*.pt")
    damage(path, how)
    if how != "another recipe":
        with pytest.raises(ValueError, match=path.name):
            load_trained(path)
    with pytest.warns(UserWarning, match=rf"{path.name}: expected .* trained again"):
        assert_same(one, get(DELTA, tmp_path)[0])
    assert_same(one, load_trained(path))


def test_of_two_processes_one_trains(tmp_path):
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_recipes as t\n"
        f"t.trained(t.replace(t.DELTA, epochs=100), t.images(), {str(tmp_path)!r})"
    )
    command, environment = [sys.executable, "-c", program], os.environ | {"OMP_NUM_THREADS": "1"}
    options = {"stderr": subprocess.PIPE, "text": True, "env": environment}
    both = [subprocess.Popen(command, **options) for _ in range(2)]
    shown = [one.communicate(timeout=120)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], shown
    assert sorted("training gated" in text for text in shown) == [False, True]


def test_the_cache_is_the_projects_and_says_what_it_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VAELIB_CACHE", str(tmp_path / "here"))
    for _ in range(2):
        trained(DELTA, images())
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("training gated, z 4×2, mlp, α 0.5…0.9, 2 epochs") == 1
    assert len(list((tmp_path / "here" / "models").glob("gated-*.pt"))) == 1


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be written, nothing is kept"):
        model, history = get(ALONE, tmp_path / "file" / "models")
    assert len(history.rows) == 2 and not model.training


def test_ctrl_c_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "fit", lambda *a, **k: recipes.History([{}], interrupted=True))
    with pytest.raises(KeyboardInterrupt, match="after 1 epochs"):
        get(DELTA, tmp_path)
    assert not list(tmp_path.glob("*.pt"))


def test_images_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(1, 14, 14\), got \(1, 4, 4\)"):
        get(Recipe(), tmp_path)
    assert isinstance(build(Recipe(latents=(14, 2))), VAE)
