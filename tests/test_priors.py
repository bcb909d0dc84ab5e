"""Priors: exact densities, draws from them, and what the auxiliary prior learns."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from conftest import refusals
from torch import nn
from torch.distributions import Normal, kl_divergence

from vaelib import VAE
from vaelib.distributions import AR1
from vaelib.encoders import AntiCausalEncoder
from vaelib.pixelcnn import PixelCNN
from vaelib.posteriors import SequentialPosterior
from vaelib.priors import AR1Prior, AuxiliaryPrior, StandardNormal
from vaelib.training.learning import CodePrior, auxiliary_prior_step

ALPHA, close, sgd = torch.tensor([0.5, 0.9]), torch.testing.assert_close, torch.optim.SGD


def random(module, std=0.5):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.double()


def random_prior(latents=2, length=4, std=0.5):
    return random(AuxiliaryPrior(latents, length, hidden=5), std)


def given_past(prior, z):
    """p(z_t | z_1 … z_{t−1}) of every row at once."""
    return prior.step(torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1))[0]


def small_vae(prior):
    encoder = AntiCausalEncoder(2, (1, 2, 2), SequentialPosterior(ALPHA, 2), 4, 1, kernel=3)
    decoder = PixelCNN((2, 2), (1, 2, 2), channels=4, layers=1, kernel=3, first_kernel=3)
    return random(VAE(encoder, prior, decoder))


IMAGES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).double().view(16, 1, 2, 2)


@pytest.mark.parametrize(("shape", "event"), [(np.int64(20), (20,)), ((4, 3), (4, 3))])
def test_standard_normal(shape, event):
    prior = StandardNormal(shape)
    p = prior()
    assert p.batch_shape == () and p.event_shape == event
    z = torch.randn(9, *event)
    close(p.log_prob(z), Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1))
    assert not list(prior.parameters()) and not prior.state_dict()
    assert copy.deepcopy(prior).double()().loc.dtype == torch.float64


def test_ar1_prior_follows_the_module_and_owns_its_alpha():
    alpha = ALPHA.clone()
    prior, other = AR1Prior(alpha, np.int64(6)), AR1Prior(alpha, 6)
    assert prior().event_shape == (6, 2) and prior().batch_shape == ()
    assert copy.deepcopy(prior).double()().rsample().dtype == torch.float64
    other.load_state_dict({"alpha": torch.tensor([0.1, 0.2])})
    assert other().alpha.tolist() == pytest.approx([0.1, 0.2])
    assert torch.equal(prior().alpha, ALPHA) and torch.equal(alpha, ALPHA)


def test_its_log_prob_is_the_chain_rule_step_by_step():
    prior, z = random_prior(), torch.randn(6, 4, 2).double()
    cell = nn.LSTMCell(2, 5).double()
    cell.load_state_dict({name[:-3]: value for name, value in prior.lstm.state_dict().items()})
    previous, total, state = torch.zeros(6, 2).double(), 0, None
    for t in range(4):
        state = cell(previous, state)
        loc, log_variance = prior.out(state[0]).chunk(2, -1)
        total = total + Normal(loc, (0.5 * log_variance).exp()).log_prob(z[:, t]).sum(-1)
        previous = z[:, t]
    close(prior().log_prob(z), total)


def test_draws_have_the_moments_of_the_conditionals():
    """(z_t − μ_t) / σ_t of draws are independent standard normals, whatever the LSTM says."""
    prior, n = random_prior(std=1.0), 100_000
    with torch.no_grad():
        z = prior().sample((n,))
        q = given_past(prior, z)
        noise = ((z - q.loc) / q.scale).flatten(1)  # (n, 8)
    assert noise.mean(0).abs().max() < 4.5 / n**0.5
    # Standard error of an entry of the covariance: 1/√n off the diagonal, √2/√n on it.
    identity = torch.eye(8).double()
    assert (torch.cov(noise.T) - identity).abs().max() < 4.5 * (2 / n) ** 0.5
    assert (torch.cov(z.flatten(1).T) - identity).abs().max() > 0.1  # z itself is not


def test_it_learns_an_ar1_process():
    truth, prior, updates = AR1(ALPHA, 14), AuxiliaryPrior(2, 14, 32), 600
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, updates)
    for _ in range(updates):
        optimizer.zero_grad()
        (-prior().log_prob(truth.sample((200,))).mean()).backward()
        optimizer.step()
        schedule.step()
    z, drawn = truth.sample((20_000,)), prior().sample((20_000,))
    with torch.no_grad():
        gap = truth.log_prob(z) - prior().log_prob(z)  # its mean is KL(truth ‖ learned)
    assert -4 * gap.std() / len(z) ** 0.5 < gap.mean() < 0.05
    along = (drawn[:, 1:] * drawn[:, :-1]).mean((0, 1))  # long draws keep the correlation
    close(along, ALPHA, rtol=0, atol=0.05)


def test_a_step_moves_the_prior_only_and_goes_down_the_mean():
    vae, prior = small_vae(AR1Prior(ALPHA, 2)), random_prior(length=2)
    (frozen, by_hand), optimizer = copy.deepcopy((vae, prior)), sgd(prior.parameters(), lr=0.1)
    torch.manual_seed(1)
    rate = auxiliary_prior_step(vae, prior, IMAGES, optimizer)
    torch.manual_seed(1)
    q = frozen.encoder(IMAGES)
    z = q.sample()
    (-by_hand().log_prob(z).mean()).backward()
    expected = [one - 0.1 * one.grad for one in by_hand.parameters()]
    close([one.data for one in prior.parameters()], expected)
    close(rate, (q.log_prob(z) - by_hand().log_prob(z)).detach())
    torch.manual_seed(1)
    close(CodePrior(frozen.encoder, by_hand).elbo(IMAGES).rate, rate)
    assert all(map(torch.equal, vae.parameters(), frozen.parameters()))
    assert all(parameter.grad is None for parameter in vae.parameters())
    prior.out.bias.data[2:] = -1400.0  # variances so small that the density overflows
    before = copy.deepcopy([*prior.parameters()])
    with pytest.raises((FloatingPointError, ValueError)):
        auxiliary_prior_step(vae, prior, IMAGES, optimizer)
    assert all(map(torch.equal, prior.parameters(), before))


def test_the_bound_with_it_is_a_bound():
    """For all 16 images, against p(x) by many draws of z from the prior."""
    model = small_vae(AuxiliaryPrior(2, 2, 5))
    with torch.no_grad():
        bound = model.elbo(IMAGES, samples=2000).value
        z = model.prior().sample((5000, 1)).expand(-1, 16, -1, -1)
        px = model.decoder(z).log_prob(IMAGES).exp()  # (draws, 16)
    assert (bound.exp() < px.mean(0) - 4 * px.std(0) / len(px) ** 0.5).all()
    assert px.mean(0).sum().item() == pytest.approx(1, abs=1e-9)


def test_training_lowers_the_rate_and_not_below_the_information():
    """The aggregate posterior is not AR(1): the LSTM closes part of that gap."""
    vae, prior = small_vae(AR1Prior(ALPHA, 2)), AuxiliaryPrior(2, 2, 16).double()
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.01)
    for _ in range(400):
        auxiliary_prior_step(vae, prior, IMAGES.repeat(16, 1, 1, 1), optimizer)
    with torch.no_grad():
        q = vae.encoder(IMAGES)
        z = q.sample((20_000,))  # (draws, 16, 2, 2)
        learned = (q.log_prob(z) - prior().log_prob(z)).mean()
        # The aggregate posterior over the 16 images, exactly: log Σ q(z|x) / 16.
        each = torch.stack([vae.encoder(one[None]).log_prob(z) for one in IMAGES])
        information = (q.log_prob(z) - each.logsumexp(0)).mean() + math.log(16)
        fixed = kl_divergence(q, vae.prior()).mean()
    assert information - 0.01 < learned < fixed - 0.05


def test_shapes_types_and_seeds():
    prior = AuxiliaryPrior(np.int64(3), np.int64(5), np.int64(4))
    p, z = prior(), torch.randn(5, 3)
    wide = p.expand((7,))
    assert p.batch_shape == () and p.event_shape == wide.event_shape == p.sample().shape == (5, 3)
    assert wide.sample((2,)).shape == (2, 7, 5, 3) and type(wide) is type(p)
    for one, batch in ((p, (2, 7)), (wide, (2, 1))):
        assert one.log_prob(torch.zeros(*batch, 5, 3)).shape == (2, 7)
    close(wide.log_prob(z), p.log_prob(z).expand(7))
    assert torch.equal(pickle.loads(pickle.dumps(p)).log_prob(z), p.log_prob(z))
    assert copy.deepcopy(prior).double()().sample().dtype == torch.float64
    draws = [p.sample((4,)) for seed in (3, 3) if torch.manual_seed(seed)]
    assert torch.equal(*draws) and not draws[0].requires_grad and not p.has_rsample


@pytest.mark.parametrize("autocast", [False, True])
def test_it_can_be_differentiated_in_evaluation_mode_and_under_autocast(autocast):
    """A GPU's LSTM keeps what its gradient needs in training mode only; HMC asks for it anyway."""
    prior, z = AuxiliaryPrior(2, 5, 8).eval(), torch.randn(3, 5, 2, requires_grad=True)
    assert prior.lstm.training and not prior.training and not prior.out.training
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        log_prob = prior().log_prob(z)
    assert torch.equal(log_prob, prior().log_prob(z)) and log_prob.dtype == torch.float32
    assert torch.autograd.grad(log_prob.sum(), z)[0].isfinite().all()


P = AuxiliaryPrior(2, 4)()
REFUSED = [
    (StandardNormal, [(3, 0), ()], r"expected a shape of positive sizes, got \("),
    (lambda x: AR1Prior(x, 4), [[1.0]], r"expected alpha in \[0, 1\), got \[1.0\]"),
    (lambda x: AR1Prior([0.5], x), [0], "a length of at least 1, got 0"),
    (lambda x: AuxiliaryPrior(2, x), (0, 2.5), r"length and hidden >= 1, got \(2, "),
    (P.log_prob, [torch.zeros(3, 4, 1)], r"a value of shape .* got \(3, 4, 1\)"),
    (P.log_prob, [torch.full((4, 2), x) for x in (math.nan, math.inf)], "expected finite values"),
    (P.expand((3,)).expand, [(7,), (3, 7)], "expected batch shapes that broadcast, got"),
    (P.expand((3,)).log_prob, [torch.zeros(2, 4, 2)], r"got \(2,\) and \(3,\)"),
]
test_bad_settings_and_values_are_refused = refusals(REFUSED)
