"""Objectives other than the bound: exact formulas, their limits, and their gradients."""

from functools import partial

import pytest
import torch
from conftest import refusals
from torch import nn
from torch.distributions import Independent, Laplace

from vaelib import VAE, evaluate, fit
from vaelib.decoders import BernoulliMLP
from vaelib.encoders import MLPEncoder
from vaelib.inference.linear_vae import linear_slots
from vaelib.priors import AR1Prior, StandardNormal
from vaelib.training.learning import aevb_step
from vaelib.training.objectives import Annealing, Beta, FreeBits
from vaelib.vae import SplitELBO

SHAPE = (1, 4, 3)


def parts(terms=None):
    """Up to three images; distortion 80, 90, 100; rates that are the sums of ``terms``."""
    terms = torch.tensor([[1.0, 3.0], [0.0, 5.0], [2.0, 1.0]]) if terms is None else terms
    distortion = torch.tensor([80.0, 90.0, 100.0])[: len(terms)]
    return SplitELBO(distortion, terms.flatten(1).sum(1), terms)


def rows_vae(prior=None):
    torch.manual_seed(0)
    slots = MLPEncoder((4, 2), SHAPE, 6), prior or StandardNormal((4, 2))
    return VAE(*slots, BernoulliMLP((4, 2), SHAPE, 6))


def test_beta_is_the_weight_of_the_rate_and_annealing_rises_in_a_straight_line():
    assert Beta(0.5)(parts()).tolist() == [82.0, 92.5, 101.5]
    assert torch.equal(Beta(1.0)(parts()), -parts().value)
    assert torch.equal(Beta(0.0)(parts()), parts().distortion)
    objective = Annealing(10, start=0.2)
    assert [objective.beta(u) for u in (0, 5, 10, 999)] == pytest.approx([0.2, 0.6, 1, 1])
    assert torch.equal(objective(parts(), 0), Beta(0.2)(parts()))
    assert torch.equal(objective(parts(), 10), -parts().value)
    assert [Annealing(7).beta(u) for u in range(8)] == pytest.approx([u / 7 for u in range(8)])
    assert Annealing(7).beta(0) == 0 and Annealing(7).beta(7) == Annealing(7).beta(8) == 1


ROWS = torch.tensor([[[1.0, 1.0], [0.0, 0.5]], [[3.0, 1.0], [0.0, 0.5]]])  # rows: 3 and 0.5
CHARGED = [
    ("total", 3.0, False, 4.0),  # the mean rate is 4: above λ, charged in full
    ("total", 6.0, False, 6.0),
    ("latent", 2.0, False, 2.0 + 3.0),  # means 1 and 3: the first is charged λ
    ("latent", 4.0, False, 8.0),
    ("latent", 0.0, False, 4.0),
    ("row", 2.0, False, 5.0),  # rows of a vector are its entries
    ("total", 3.5, True, [4.0, 5.0, 3.5]),  # rates 4, 5, 3, the maximum taken image by image
    ("latent", 2.0, True, [2.0 + 3.0, 2.0 + 5.0, 2.0 + 2.0]),
    ("latent", 0.0, True, [4.0, 5.0, 3.0]),
]


def test_free_bits_charge_lambda_or_the_rate():
    for group, nats, per_image, charged in CHARGED:
        loss = FreeBits(nats, group, per_image=per_image)(parts())
        torch.testing.assert_close(loss, parts().distortion + torch.tensor(charged))
    for group, charged in {"row": 3.0 + 1.0, "latent": 2.0 + 1.0 + 1.0 + 1.0, "total": 3.5}.items():
        assert (FreeBits(1.0, group)(parts(ROWS)) - parts(ROWS).distortion == charged).all()
    for nats, slope in {5.0: 0.0, 3.0: 1 / 3}.items():  # below λ the rate has no gradient
        rate = torch.tensor([4.0, 5.0, 3.0], requires_grad=True)
        FreeBits(nats)(SplitELBO(torch.zeros(3), rate)).mean().backward()
        assert rate.grad.tolist() == pytest.approx([slope] * 3)


@pytest.mark.parametrize("objective", [Beta(1.0), Annealing(1, 1.0), FreeBits(0.0, "latent")])
def test_each_has_the_bound_as_a_limit_and_its_gradient(objective):
    vae, x = rows_vae(), torch.rand(5, *SHAPE)
    gradients = []
    for loss in (lambda bound: -bound.value, lambda bound: objective(bound, 1)):
        torch.manual_seed(1)
        vae.zero_grad()
        loss(vae(x, split=True)).mean().backward()
        gradients.append([parameter.grad.clone() for parameter in vae.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("prior", ["normal", "ar1"])
def test_terms_sum_to_the_rate_and_none_is_negative(prior):
    vae = rows_vae(AR1Prior(torch.tensor([0.5, 0.9]), 4) if prior == "ar1" else None)
    bound = vae.elbo(torch.rand(5, *SHAPE), split=True)
    assert bound.terms.shape == (5, 4, 2) and bound.terms.min() >= 0
    torch.testing.assert_close(bound.terms.sum((1, 2)), bound.rate)


def test_the_step_descends_the_objective_and_reports_the_bound():
    x = torch.rand(5, *SHAPE)
    losses = []
    for objective in (Beta(0.1), FreeBits(30.0, "row")):
        vae = rows_vae()
        before = {name: value.clone() for name, value in vae.state_dict().items()}
        torch.manual_seed(1)
        expected = vae(x, 2, split=True)
        objective(expected, 0).mean().backward()
        stepped = {n: before[n] - 0.1 * p.grad for n, p in vae.named_parameters()}
        torch.manual_seed(1)
        sgd = torch.optim.SGD(vae.parameters(), lr=0.1)
        bound = aevb_step(vae, x, sgd, 0, samples=2, objective=objective)
        torch.testing.assert_close({n: p.data for n, p in vae.named_parameters()}, stepped)
        torch.testing.assert_close(bound.value, expected.value)
        losses.append(stepped)
    assert any(not torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


def test_fit_tells_the_objective_its_update():
    seen, x = [], torch.rand(25, *SHAPE)
    step = partial(aevb_step, objective=lambda bound, update: seen.append(update) or -bound.value)
    fit(rows_vae(), x, epochs=2, batch_size=10, step=step, progress=False)
    assert seen == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("beta", [0.25, 1.0, 4.0])
def test_beta_finds_the_optimum_of_a_linear_vae_with_other_noise(beta):
    """With noise σ² fixed, distortion + β · rate has the optimum of pPCA with noise β σ².

    The posterior variance there is β σ²/λ in directions where the covariance of the data has an
    eigenvalue λ > β σ², and 1 beyond; so the best rate is Σ ½ ln(λ / β σ²) over these directions.
    """
    torch.manual_seed(0)
    scales = torch.tensor([3.0, 1.5, 0.8])
    x = torch.randn(2000, 3)
    white = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    x, noise = white * scales, 0.5
    exact = 0.5 * (scales.square() / (beta * noise)).log().clamp(min=0).sum().item()
    vae = VAE(*linear_slots(3, 3, noise_variance=noise))
    adam = partial(torch.optim.Adam, lr=0.02)
    step = partial(aevb_step, objective=Beta(beta))
    fit(vae, x, epochs=30, batch_size=50, optimizer=adam, step=step, progress=False)
    # What the last updates of Adam, which go on at full step size, leave open.
    assert evaluate(vae, x).rate.item() == pytest.approx(exact, abs=0.06)


def test_free_bits_keep_the_rate_of_a_model_that_would_collapse():
    """Noise above all eigenvalues: the best rate is 0, and free bits keep it at λ."""
    torch.manual_seed(0)
    x = torch.randn(500, 3)
    rates = {}
    for nats in (0.0, 2.0):
        torch.manual_seed(1)
        vae = VAE(*linear_slots(3, 2, noise_variance=2.0))
        step = partial(aevb_step, objective=FreeBits(nats))
        adam = partial(torch.optim.Adam, lr=0.02)
        fit(vae, x, epochs=400, batch_size=500, optimizer=adam, step=step, progress=False)
        rates[nats] = evaluate(vae, x).rate.item()
    assert rates[0.0] < 0.02
    # The whole data are one batch, so that its mean is the mean; Adam steps to and fro over λ.
    assert rates[2.0] == pytest.approx(2.0, abs=0.1)


test_bad_settings_are_named = refusals(
    [
        (lambda: Beta(-0.1), r"beta in \[0, 1e30\], got -0.1"),
        (lambda: Beta(float("nan")), "beta"),
        (lambda: FreeBits(float("inf")), "nats"),
        (lambda: FreeBits(-1.0), "nats in .*, got -1.0"),
        (lambda: FreeBits(1.0, "column"), "'latent', got 'column'"),
        (lambda: Annealing(0), "updates >= 1"),
        (lambda: Annealing(2.5), "whole number, got 2.5"),
        (lambda: Annealing(True), "updates >= 1"),
        (lambda: Annealing(3, start=1.5), r"start in \[0, 1\], got 1.5"),
        (lambda: Annealing(3)(parts()), "number of the update, 0 or more, got None"),
        (lambda: Annealing(3)(parts(), -1), "got -1"),
    ]
)


def test_groups_without_a_rule_are_refused():
    class LaplaceEncoder(nn.Module):
        def forward(self, x):
            return Independent(Laplace(x, 1 + 0 * x), 1)

    bound = VAE(LaplaceEncoder(), *linear_slots(3, 3)[1:]).elbo(torch.rand(5, 3), split=True)
    assert bound.terms is None
    with pytest.raises(ValueError, match=r"group 'row'.*use 'total'"):
        FreeBits(1.0, "row")(bound)
    assert FreeBits(1.0)(bound).shape == (5,)
