"""Descriptions of runs, and models that are kept: what was saved is what is loaded."""

import copy
from operator import attrgetter

import pytest
import torch
from torch import nn

import vaelib
from vaelib import VAE, WithoutLatents
from vaelib.decoders import BernoulliMLP, GaussianMLP, VariationalWeights
from vaelib.encoders import AntiCausalEncoder, MLPEncoder
from vaelib.inference.linear_vae import linear_slots
from vaelib.pixelcnn import GatedPixelCNN, PixelCNN, PixelSNAIL
from vaelib.posteriors import IndependentPosterior, SequentialPosterior
from vaelib.priors import AR1Prior, AuxiliaryPrior, StandardNormal
from vaelib.training import checkpoint
from vaelib.training.learning import aevb_step
from vaelib.training.objectives import Beta

ALPHA = torch.tensor([0.5, 0.9])
SHAPE = (1, 6, 6)
SMALL = {"image_shape": SHAPE, "channels": 4}
POSITIVE, COMMITTED = IndependentPosterior(0.1, 3, "positive"), SequentialPosterior(ALPHA, 6)
SLOTS = {
    "mlp": (MLPEncoder(3, SHAPE), StandardNormal(3), BernoulliMLP(3, SHAPE)),
    "δ": (MLPEncoder(3, SHAPE, 9, POSITIVE), StandardNormal(3), GaussianMLP(3, SHAPE, 9, 0.2)),
    "δ-VAE": (
        AntiCausalEncoder(2, SHAPE, COMMITTED, 4),
        AR1Prior(ALPHA, 6),
        GatedPixelCNN((6, 2), **SMALL),
    ),
    "auxiliary prior": (
        AntiCausalEncoder(2, SHAPE, channels=4, order="causal"),
        AuxiliaryPrior(2, 6),
        PixelSNAIL((6, 2), dropout=0.5, **SMALL),
    ),
    "weights": (MLPEncoder(3, SHAPE), StandardNormal(3), VariationalWeights(GaussianMLP(3, SHAPE))),
    "linear": linear_slots(5, 2),
    "alone": (PixelCNN(**SMALL),),
    "colour": (GatedPixelCNN(None, (3, 4, 4), 4, likelihood="logistic_mixture", levels=16),),
}


def made(name):
    slots = copy.deepcopy(SLOTS[name])
    return VAE(*slots) if len(slots) > 1 else WithoutLatents(*slots)


def answers(model):
    torch.manual_seed(1)
    with torch.no_grad():
        x = model.sample(3)
        return [x, *model.elbo(x)]


@pytest.mark.parametrize("name", SLOTS)
def test_a_model_that_was_kept_gives_the_same_answers(tmp_path, name):
    torch.manual_seed(0)
    model = made(name)
    path = vaelib.save(model, tmp_path / "new folder" / "model.pt")
    loaded = vaelib.load(path)
    assert not loaded.training and model.training
    for one, other in zip(answers(model.eval()), answers(loaded), strict=True):
        assert torch.equal(one, other)
    assert checkpoint.describe(model) == checkpoint.describe(loaded)
    assert [file.name for file in path.parent.iterdir()] == ["model.pt"]


class Mine(nn.Module):
    """Code that a file cannot bring along."""


def test_what_cannot_be_kept_or_is_no_model_is_refused(tmp_path):
    vae = made("mlp")
    vae.encoder = Mine()
    with pytest.raises(TypeError, match=r"got test_checkpoint\.Mine as encoder"):
        vaelib.save(vae, tmp_path / "model.pt")
    torch.save(Mine(), tmp_path / "foreign.pt")
    torch.save({"a": 1}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no model")
    for name in ("foreign", "other", "text"):
        with pytest.raises(ValueError, match=rf"{name}\.pt: expected a"):
            vaelib.load(tmp_path / f"{name}.pt")
    with pytest.raises(FileNotFoundError):
        vaelib.load(tmp_path / "missing.pt")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    checkpoint.write({"value": 1}, path)

    def half(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.write({"value": 2}, path)
    assert checkpoint.read(path) == {"value": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def rate_with(beta):
    return lambda bound, update: bound.distortion + beta * bound.rate


def changed(path, value):
    model, (way, _, name) = made("δ-VAE"), path.rpartition(".")
    setattr(attrgetter(way)(model), name, value)
    return model


# Pairs that differ in one thing which no shape of a parameter shows.
PAIRS = {
    "β": (Beta(0.5), Beta(0.1)),
    "closures": (rate_with(0.5), rate_with(0.1)),
    "lambdas": (lambda x: x + 1, lambda x: x + 2),
    "functions": (torch.sin, torch.cos),
    "order": (made("δ-VAE"), changed("encoder.order", "causal")),
    "reach": (made("δ-VAE"), changed("encoder.posterior.reach", 2.0)),
    "α": (made("δ-VAE"), changed("prior.alpha", torch.tensor([0.5, 0.8]))),
    "sign": (IndependentPosterior(0.1, 3), IndependentPosterior(0.1, 3, "negative")),
    "δ": (IndependentPosterior(0.1, 3), IndependentPosterior(0.2, 3)),
    "min_scale": (GaussianMLP(3, SHAPE), GaussianMLP(3, SHAPE, min_scale=0.1)),
    "dropout": (PixelSNAIL(None, SHAPE, 4), PixelSNAIL(None, SHAPE, 4, dropout=0.1)),
    "data": (torch.zeros(3, 2), torch.zeros(3, 2).index_fill(0, torch.tensor(1), 1e-9)),
    "slots": (aevb_step, print),
}


@pytest.mark.parametrize("name", PAIRS)
def test_descriptions_tell_apart(name):
    one, other = map(checkpoint.describe, PAIRS[name])
    assert one == checkpoint.describe(PAIRS[name][0])
    assert list(checkpoint.differences(one, other)), f"{one} and {other}"
    assert not list(checkpoint.differences(one, one))
