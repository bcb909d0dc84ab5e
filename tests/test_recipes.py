"""Recipes and the cache of trained models: every model once, and none ever half."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refusals
from torch.distributions import kl_divergence

import vaelib
from vaelib import WithoutLatents, data, evaluate
from vaelib.data import Images
from vaelib.distributions import committed_rate
from vaelib.experiments import recipes
from vaelib.experiments.recipes import Recipe, build, objective, trained
from vaelib.priors import AuxiliaryPrior
from vaelib.training.objectives import Annealing, Beta, FreeBits

SIZES = {"encoder_size": 4, "channels": 4, "layers": 1, "kernel": 3, "first_kernel": 3}
SIZES |= {"context": 3, "epochs": 2, "batch_size": 10}
TINY = Recipe(image_shape=(1, 4, 4), latents=(4, 2), encoder="mlp", **SIZES)
ALONE = replace(TINY, latents=None)
DELTA = replace(TINY, alpha=(0.5, 0.9))
AUXILIARY = replace(DELTA, auxiliary_epochs=3)


def images():
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)).round()
    return Images(x[:30], None, x[30:], None, "synthetic")


def get(recipe, folder, some=None):
    return trained(recipe, some or images(), folder, progress=False)


def assert_same(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


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
    assert (recipe.latents is None) == isinstance(model, WithoutLatents)
    if recipe.alpha or recipe.delta:  # rounding: a few parts in a million of a nat
        least = committed_rate(torch.tensor([0.5, 0.9]), 4) if recipe.alpha else 8 * 0.1
        assert (kl_divergence(model.encoder(x), model.prior()) >= least - 1e-5).all()


def test_all_alpha_zero_is_the_standard_normal():
    z, zero = torch.randn(5, 4, 2), build(replace(TINY, alpha=(0.0, 0.0))).prior()
    torch.testing.assert_close(zero.log_prob(z), build(TINY).prior().log_prob(z))


def test_weights_depend_on_the_seed_alone():
    before = torch.get_rng_state()
    one = build(TINY)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert_same(one, build(TINY))
    other = build(replace(TINY, seed=1))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_objectives():
    assert objective(TINY, 30) is None and objective(replace(TINY, beta=0.3), 30) == Beta(0.3)
    bits = replace(TINY, free_bits=2.0, free_bits_group="row")
    assert objective(bits, 30) == FreeBits(2.0, "row")
    assert objective(replace(TINY, annealing_epochs=2), 31) == Annealing(8)  # 4 batches an epoch


@pytest.mark.parametrize("alpha", [[0.5, 0.9], np.array([0.5, 0.9]), (*np.linspace(0.5, 0.9, 2),)])
def test_arrays_and_lists_make_the_same_recipe(alpha):
    one = replace(TINY, latents=[np.int64(4), 2], image_shape=[1, 4, 4], alpha=alpha)
    assert one == DELTA and hash(one) == hash(DELTA) and type(one.alpha[0]) is float
    assert build(one).elbo(images().test).value.isfinite().all()


BAD = [
    ({"decoder": "rnn"}, "decoder in .*got 'rnn'"),
    ({"data": "cats"}, "data in .*got 'cats'"),
    ({"likelihood": "poisson"}, "likelihood in .*got 'poisson'"),
    ({"position": "False"}, "True or False, position .*got 'False'"),
    ({"channels": 2.5}, "a whole number channels .*got 2.5"),
    ({"epochs": 0}, "epochs > 0, got 0"),
    ({"lr": 0.0}, "lr > 0, got 0.0"),
    ({"beta": float("nan")}, "a finite beta >= 0, got nan"),
    ({"annealing_epochs": 3}, "annealing_epochs <= 2, got 3"),
    ({"beta": 0.5, "free_bits": 1.0}, "at most one of beta"),
    ({"image_shape": (4, 4)}, r"image_shape \(C, H, W\), got \(4, 4\)"),
    ({"latents": (4,)}, r"latents None, d or \(H, d\), got \(4,\)"),
    ({"latents": (5, 2)}, r"4 rows, got \(5, 2\)"),
    ({"latents": 3, "alpha": (0.5, 0.9)}, r"latents \(H, d\) for .*got 3"),
    ({"latents": 3, "encoder": "causal"}, r"latents \(H, d\) for .*got 3"),
    ({"alpha": (0.5,)}, r"one alpha for each of d channels, got \(0.5,\)"),
    ({"latents": None, "alpha": (0.5, 0.9)}, "one alpha for each"),
    ({"alpha": (0.5, 0.9), "delta": 0.1}, "alpha or delta"),
    ({"latents": None, "decoder": "mlp"}, "latents for an MLP"),
    ({"latents": None, "auxiliary_epochs": 1}, "latents for .* auxiliary prior"),
    ({"decoder": "mlp", "likelihood": "categorical"}, "Bernoulli pixels"),
]
test_bad_recipes_are_named = refusals(
    [(partial(replace, TINY, **changes), f"expected .*{message}") for changes, message in BAD]
)


def test_data_and_their_shape(tmp_path, monkeypatch):
    digits = recipes.load(Recipe())
    assert digits.train.shape == (4000, 1, 14, 14) and digits.test.shape == (1000, 1, 14, 14)
    assert set(digits.train.unique().tolist()) == {0.0, 1.0} and digits.train.mean() < 0.3
    with pytest.raises(ValueError, match=r"shape \(1, 4, 4\), got \(1, 14, 14\)"):
        get(TINY, tmp_path, digits)
    monkeypatch.delenv("VAELIB_DATA", raising=False)
    with pytest.raises(data.DataError, match="VAELIB_DATA"):
        recipes.load(replace(TINY, data="imagenet32"))


@pytest.mark.parametrize("recipe", [ALONE, DELTA, AUXILIARY], ids=["alone", "delta", "auxiliary"])
def test_a_model_comes_back_from_the_cache_as_it_was(recipe, tmp_path, monkeypatch):
    before = torch.get_rng_state()
    one, history = get(recipe, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(one, get(recipe, tmp_path / "other")[0])
    monkeypatch.setattr(recipes, "fit", None)  # nothing is trained again
    again, kept = get(recipe, tmp_path)
    assert_same(one, again)
    assert history.rows == kept.rows and not one.training and not again.training
    assert len(history.rows) == (recipe.auxiliary_epochs or recipe.epochs)
    assert history["test_bound"][-1] == evaluate(again, images().test).value.item()


def test_an_auxiliary_prior_is_trained_after_the_model_which_stays_as_it_is(tmp_path):
    base, before = get(DELTA, tmp_path)
    model, history = get(AUXILIARY, tmp_path)
    assert isinstance(model.prior, AuxiliaryPrior)
    assert_same(model.encoder, base.encoder)
    assert_same(model.decoder, base.decoder)
    assert history["train_rate"][-1] < history["train_rate"][0]
    assert history["test_distortion"][-1] == before["test_distortion"][-1]  # the same draws of z


def test_another_recipe_or_other_data_are_another_model(tmp_path):
    other = images()
    other.test[0, 0, 0, 0] = 1 - other.test[0, 0, 0, 0]
    changes = {"lr": 1e-3, "beta": 0.5, "alpha": (0.5, 0.9), "encoder": "causal", "delta": 0.1}
    models = [get(TINY, tmp_path)[0], get(TINY, tmp_path, other)[0]]
    models += [get(replace(TINY, **{name: value}), tmp_path)[0] for name, value in changes.items()]
    assert len(list(tmp_path.glob("*.pt"))) == len(models)
    weights = [next(model.decoder.parameters()).sum().item() for model in models]
    assert len(set(weights)) == len(models) - 1  # test images have no say


def damage(path, how):
    whole = path.read_bytes()
    if how == "flipped":
        weights = max(vaelib.load(path).parameters(), key=torch.numel).detach()
        place = whole.index(weights.numpy().tobytes())
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif how in ("cut", "text"):
        path.write_bytes(whole[: len(whole) // 2] if how == "cut" else b"hello")
    elif how == "another recipe":
        vaelib.save(vaelib.load(path), path, recipe={"alpha": (0.1, 0.2)}, rows=[])
    else:
        torch.save({"recipe": "the same"}, path)


@pytest.mark.parametrize("how", ["cut", "text", "flipped", "another recipe", "no model"])
def test_a_bad_file_is_named_and_replaced(how, tmp_path):
    one, _ = get(DELTA, tmp_path)
    (path,) = tmp_path.glob("*.pt")
    damage(path, how)
    with pytest.warns(UserWarning, match=rf"{path.name}: expected .* trained again"):
        assert_same(one, get(DELTA, tmp_path)[0])
    assert_same(one, vaelib.load(path))


def test_of_two_processes_one_trains(tmp_path):
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_recipes as t\n"
        f"t.trained(t.replace(t.DELTA, epochs=100), t.images(), {str(tmp_path)!r})"
    )
    options = {"stderr": subprocess.PIPE, "text": True}
    options |= {"env": os.environ | {"OMP_NUM_THREADS": "1"}}
    both = [subprocess.Popen([sys.executable, "-c", program], **options) for _ in range(2)]
    shown = [one.communicate(timeout=120)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], shown
    assert sorted("training gated" in text for text in shown) == [False, True]


def test_the_cache_is_the_projects_and_says_what_it_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VAELIB_CACHE", str(tmp_path))
    for _ in range(2):
        trained(DELTA, images())
    shown = capsys.readouterr()
    assert shown.out == "" and len(list((tmp_path / "models").glob("gated-*.pt"))) == 1
    assert shown.err.count("training gated, z 4×2, mlp, α 0.5…0.9, 2 epochs") == 1


def test_what_cannot_be_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be written, nothing is kept"):
        model, history = get(ALONE, tmp_path / "file" / "models")
    assert len(history.rows) == 2 and not model.training
    monkeypatch.setattr(recipes, "fit", lambda *a, **k: recipes.History([{}], interrupted=True))
    with pytest.raises(KeyboardInterrupt, match="after 1 epochs"):
        get(DELTA, tmp_path)
    assert not list(tmp_path.glob("*.pt"))
