"""Priors: exact densities, draws from them, and what the auxiliary prior learns."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from vaelib import VAE
from vaelib.decoders import BernoulliMLP
from vaelib.distributions import AR1
from vaelib.encoders import AntiCausalEncoder, MLPEncoder
from vaelib.pixelcnn import PixelCNN
from vaelib.posteriors import SequentialPosterior
from vaelib.priors import AR1Prior, AuxiliaryPrior, StandardNormal
from vaelib.training.learning import auxiliary_prior_step

ALPHA = torch.tensor([0.5, 0.9])


def random_prior(latents=2, length=4, hidden=5, std=0.5):
    prior = AuxiliaryPrior(latents, length, hidden).double()
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=std)
    return prior


def given_past(prior, z):
    """p(z_t | z_1 … z_{t−1}) of every row at once."""
    return prior.step(torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1))[0]


def small_vae():
    encoder = AntiCausalEncoder(2, (1, 2, 2), SequentialPosterior(ALPHA, 2), 4, 1, kernel=3)
    decoder = PixelCNN((2, 2), (1, 2, 2), channels=4, layers=1, kernel=3, first_kernel=3)
    vae = VAE(encoder, AR1Prior(ALPHA, 2), decoder).double()
    for parameter in vae.parameters():
        nn.init.normal_(parameter, std=0.5)
    return vae


IMAGES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).double().view(16, 1, 2, 2)


# Fixed priors


@pytest.mark.parametrize(("shape", "event"), [(np.int64(20), (20,)), ((4, 3), (4, 3))])
def test_standard_normal(shape, event):
    prior = StandardNormal(shape)
    p = prior()
    assert p.batch_shape == () and p.event_shape == event
    z = torch.randn(9, *event)
    torch.testing.assert_close(p.log_prob(z), Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1))
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


@pytest.mark.parametrize("alpha", [[0.5, 0.9], np.linspace(0.5, 0.9, 2)], ids=["list", "numpy"])
def test_alpha_of_numpy_works_in_a_float32_model(alpha):
    posterior = SequentialPosterior(alpha, 6)
    vae = VAE(
        MLPEncoder((6, 2), (1, 6, 4), 8, posterior),
        AR1Prior(alpha, 6),
        BernoulliMLP((6, 2), (1, 6, 4)),
    )
    bound = vae.elbo(torch.rand(3, 1, 6, 4))
    assert bound.rate.dtype == bound.distortion.dtype == vae.sample(2).dtype == torch.float32


# The auxiliary prior


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
    torch.testing.assert_close(prior().log_prob(z), total)


def test_its_density_integrates_to_one():
    grid = torch.linspace(-12, 12, 401, dtype=torch.float64)
    z = torch.cartesian_prod(grid, grid).unsqueeze(-1)  # (points, 2, 1)
    density = random_prior(latents=1, length=2)().log_prob(z).exp()
    assert (density.sum() * (grid[1] - grid[0]).square()).item() == pytest.approx(1, abs=1e-6)


def test_each_row_depends_on_the_rows_before_it_and_no_other():
    z = torch.randn(1, 4, 2).double().requires_grad_()
    loc = given_past(random_prior(), z).loc[0].sum(-1)
    rows = [torch.autograd.grad(one, z, retain_graph=True)[0] for one in loc]
    seen = torch.stack(rows).abs().sum((1, 3)) > 0  # (t, s)
    assert torch.equal(seen, torch.ones(4, 4).tril(-1).bool())


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


class Process(nn.Module):
    """Stands for an encoder: whatever the image, the code is a draw from AR(1)."""

    def forward(self, x):
        return AR1(ALPHA, 14).expand(x.shape[:1])


def test_it_learns_an_ar1_process():
    prior, updates = AuxiliaryPrior(2, 14, 32), 600
    vae = VAE(Process(), nn.Identity(), nn.Identity())
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, updates)
    for _ in range(updates):
        rate = auxiliary_prior_step(vae, prior, torch.zeros(200, 1), optimizer)
        schedule.step()
    assert rate.shape == (200,) and not rate.requires_grad
    truth = AR1(ALPHA, 14)
    z = truth.sample((20_000,))
    with torch.no_grad():
        gap = truth.log_prob(z) - prior().log_prob(z)  # its mean is KL(truth ‖ learned)
    assert -4 * gap.std() / len(z) ** 0.5 < gap.mean() < 0.05
    # Long draws keep the correlation of the process.
    drawn = prior().sample((20_000,))
    along = (drawn[:, 1:] * drawn[:, :-1]).mean((0, 1))
    torch.testing.assert_close(along, ALPHA, rtol=0, atol=0.05)


def test_a_step_moves_the_prior_only_and_goes_down_the_mean():
    vae, prior = small_vae(), random_prior(length=2)
    frozen, by_hand = copy.deepcopy(vae), copy.deepcopy(prior)
    torch.manual_seed(1)
    rate = auxiliary_prior_step(vae, prior, IMAGES, torch.optim.SGD(prior.parameters(), 0.1))
    torch.manual_seed(1)
    q = frozen.encoder(IMAGES)
    z = q.sample()
    (-by_hand().log_prob(z).mean()).backward()
    for ours, theirs in zip(prior.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.1 * theirs.grad)
    torch.testing.assert_close(rate, (q.log_prob(z) - by_hand().log_prob(z)).detach())
    for ours, theirs in zip(vae.parameters(), frozen.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.grad is None


def test_a_loss_that_is_not_finite_changes_nothing():
    vae, prior = small_vae(), random_prior(length=2)
    with torch.no_grad():
        prior.out.bias[2:] = -1400.0  # variances so small that the density overflows
    before = copy.deepcopy(prior.state_dict())
    with pytest.raises((FloatingPointError, ValueError)):
        auxiliary_prior_step(vae, prior, IMAGES, torch.optim.SGD(prior.parameters(), 0.1))
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())


def test_the_bound_with_it_is_a_bound():
    """For all 16 images, against p(x) by many draws of z from the prior."""
    vae = small_vae()
    model = VAE(vae.encoder, random_prior(length=2), vae.decoder)
    with torch.no_grad():
        bound = model.elbo(IMAGES, samples=2000).value
        z = model.prior().sample((5000, 1)).expand(-1, 16, -1, -1)
        px = model.decoder(z).log_prob(IMAGES).exp()  # (draws, 16)
    assert (bound.exp() < px.mean(0) - 4 * px.std(0) / len(px) ** 0.5).all()
    assert px.mean(0).sum().item() == pytest.approx(1, abs=1e-9)


def test_the_bound_takes_the_rate_from_the_same_draws():
    vae, prior = small_vae(), random_prior(length=2)
    model = VAE(vae.encoder, prior, vae.decoder)
    torch.manual_seed(0)
    found = model.elbo(IMAGES, samples=3)
    torch.manual_seed(0)
    q = vae.encoder(IMAGES)
    z = q.rsample((3,))
    torch.testing.assert_close(found.rate, (q.log_prob(z) - prior().log_prob(z)).mean(0))
    torch.testing.assert_close(found.distortion, -vae.decoder(z).log_prob(IMAGES).mean(0))
    with pytest.raises(NotImplementedError):
        model.elbo(IMAGES, estimator="B")
    found.value.sum().backward()  # encoder and prior can learn together, too
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_training_lowers_the_rate_and_not_below_the_information():
    """The aggregate posterior is not AR(1): the LSTM closes part of that gap."""
    vae, prior = small_vae(), AuxiliaryPrior(2, 2, 16).double()
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.01)
    for _ in range(400):
        auxiliary_prior_step(vae, prior, IMAGES.repeat(16, 1, 1, 1), optimizer)
    with torch.no_grad():
        q = vae.encoder(IMAGES)
        z = q.sample((20_000,))  # (draws, 16, 2, 2)
        inside = q.log_prob(z)
        learned = (inside - prior().log_prob(z)).mean()
        # log q(z) of the aggregate posterior over the 16 images, exactly.
        each = torch.stack([vae.encoder(one[None]).log_prob(z) for one in IMAGES])
        information = (inside - each.logsumexp(0) + torch.tensor(16.0).log()).mean()
        fixed = kl_divergence(q, vae.prior()).mean()
    assert information - 0.01 < learned < fixed - 0.05


def test_shapes_types_and_seeds():
    prior = AuxiliaryPrior(np.int64(3), np.int64(5), np.int64(4))
    p, z = prior(), torch.randn(5, 3)
    assert p.batch_shape == () and p.event_shape == (5, 3) and not p.has_rsample
    assert p.sample().shape == (5, 3) and p.sample((2, 7)).shape == (2, 7, 5, 3)
    assert p.log_prob(torch.zeros(2, 7, 5, 3)).shape == (2, 7)
    wide = p.expand((7,))
    assert type(wide) is type(p) and wide.batch_shape == (7,)
    assert wide.sample((2,)).shape == (2, 7, 5, 3)
    torch.testing.assert_close(wide.log_prob(z), p.log_prob(z).expand(7))
    assert wide.log_prob(torch.zeros(2, 1, 5, 3)).shape == (2, 7)
    assert copy.deepcopy(prior).double()().sample().dtype == torch.float64
    assert torch.equal(pickle.loads(pickle.dumps(p)).log_prob(z), p.log_prob(z))
    torch.manual_seed(3)
    first = p.sample((4,))
    torch.manual_seed(3)
    assert torch.equal(first, p.sample((4,))) and not first.requires_grad


def test_it_can_be_differentiated_in_evaluation_mode():
    """A GPU's LSTM keeps what its gradient needs in training mode only; HMC asks for it anyway."""
    prior = AuxiliaryPrior(2, 5, hidden=8).eval()
    assert prior.lstm.training and not prior.training and not prior.out.training
    z = torch.zeros(3, 5, 2, requires_grad=True)
    prior().log_prob(z).sum().backward()
    assert z.grad.isfinite().all()


def test_autocast_leaves_its_density_in_full_precision():
    prior, z = AuxiliaryPrior(2, 14, 8), torch.randn(50, 14, 2)
    with torch.autocast("cpu", torch.bfloat16):
        half = prior().log_prob(z.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, prior().log_prob(z.bfloat16().float()))


P = AuxiliaryPrior(2, 4)()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StandardNormal((3, 0)), r"positive sizes, got \(3, 0\)"),
        (lambda: StandardNormal(()), r"positive sizes, got \(\)"),
        (lambda: AR1Prior([1.0], 4), r"alpha in \[0, 1\), got \[1.0\]"),
        (lambda: AR1Prior([0.5], 0), "length of at least 1, got 0"),
        (lambda: AuxiliaryPrior(2, 0), "hidden >= 1, got 2, 0 and 64"),
        (lambda: P.log_prob(torch.zeros(3, 4, 1)), r"a value of shape .* got \(3, 4, 1\)"),
        (lambda: P.log_prob(torch.full((4, 2), float("nan"))), "expected finite values"),
        (lambda: P.log_prob(torch.full((4, 2), float("inf"))), "expected finite values"),
        (lambda: P.expand((3,)).expand((7,)), r"got \(7,\) and \(3,\)"),
        (lambda: P.expand((3,)).log_prob(torch.zeros(2, 4, 2)), r"got \(2,\) and \(3,\)"),
    ],
)
def test_bad_settings_and_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
