"""The auxiliary prior: an exact density, draws from it, what it learns, and the bound with it."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from vaelib import VAE
from vaelib.distributions import AR1
from vaelib.encoders import AntiCausalEncoder
from vaelib.learning import auxiliary_prior_step
from vaelib.pixelcnn import PixelCNN
from vaelib.posteriors import SequentialPosterior
from vaelib.priors import AR1Prior, AuxiliaryPrior

ALPHA = torch.tensor([0.5, 0.9])


def random_prior(latents=2, length=4, hidden=5, seed=0, std=0.5):
    torch.manual_seed(seed)
    prior = AuxiliaryPrior(latents, length, hidden).double()
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=std)
    return prior


def small_vae(seed=0):
    torch.manual_seed(seed)
    posterior = SequentialPosterior(ALPHA, 2)
    encoder = AntiCausalEncoder(2, (1, 2, 2), posterior, channels=4, layers=1, kernel=3)
    decoder = PixelCNN((2, 2), (1, 2, 2), channels=4, layers=1, kernel=3, first_kernel=3)
    vae = VAE(encoder, AR1Prior(ALPHA, 2), decoder).double()
    for parameter in vae.parameters():
        nn.init.normal_(parameter, std=0.5)
    return vae


def all_images():
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).double().view(16, 1, 2, 2)


class Process(nn.Module):
    """Stands for an encoder: whatever the image, the code is a draw from AR(1)."""

    def forward(self, x):
        return AR1(ALPHA, 14).expand(x.shape[:1])


def test_log_prob_is_the_chain_rule_step_by_step():
    prior, z = random_prior(), torch.randn(6, 4, 2).double()
    cell = nn.LSTMCell(2, 5).double()
    cell.load_state_dict({name[:-3]: value for name, value in prior.lstm.state_dict().items()})
    previous, total = torch.zeros(6, 2).double(), 0
    state = torch.zeros(6, 5).double(), torch.zeros(6, 5).double()
    for t in range(4):
        state = cell(previous, state)
        loc, log_variance = prior.out(state[0]).chunk(2, -1)
        total = total + Normal(loc, (0.5 * log_variance).exp()).log_prob(z[:, t]).sum(-1)
        previous = z[:, t]
    torch.testing.assert_close(prior().log_prob(z), total)


def test_density_integrates_to_one():
    prior = random_prior(latents=1, length=2)
    grid = torch.linspace(-12, 12, 401, dtype=torch.float64)
    z = torch.cartesian_prod(grid, grid).unsqueeze(-1)  # (points, 2, 1)
    cell = (grid[1] - grid[0]).square()
    assert (prior().log_prob(z).exp().sum() * cell).item() == pytest.approx(1, abs=1e-6)


def test_each_row_depends_on_the_rows_before_it_and_no_other():
    prior, z = random_prior(), torch.randn(1, 4, 2).double().requires_grad_()
    given_past, _ = prior.step(torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1))
    rows = [torch.autograd.grad(one, z, retain_graph=True)[0] for one in given_past.loc[0].sum(-1)]
    seen = torch.stack(rows).abs().sum((1, 3)) > 0  # (t, s)
    assert torch.equal(seen, torch.ones(4, 4).tril(-1).bool())


def test_draws_have_the_moments_of_the_conditionals():
    """(z_t − μ_t) / σ_t of draws are independent standard normals, whatever the LSTM says."""
    prior, n = random_prior(std=1.0), 100_000
    torch.manual_seed(1)
    z = prior().sample((n,))
    with torch.no_grad():
        given_past, _ = prior.step(torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1))
        noise = ((z - given_past.loc) / given_past.scale).flatten(1)  # (n, 8)
    assert noise.mean(0).abs().max() < 4.5 / n**0.5
    # Standard error of an entry of the covariance: 1/√n off the diagonal, √2/√n on it.
    error = torch.cov(noise.T) - torch.eye(8).double()
    assert error.abs().max() < 4.5 * (2 / n) ** 0.5
    spread = torch.cov(z.flatten(1).T) - torch.eye(8).double()
    assert spread.abs().max() > 0.1  # and the rows themselves are not


def test_it_learns_an_ar1_process():
    torch.manual_seed(0)
    truth, prior = AR1(ALPHA, 14), AuxiliaryPrior(2, 14, 32)
    vae = VAE(Process(), nn.Identity(), nn.Identity())
    updates = 600
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, updates)
    for _ in range(updates):
        rate = auxiliary_prior_step(vae, prior, torch.zeros(200, 1), optimizer)
        schedule.step()
    assert rate.shape == (200,) and not rate.requires_grad
    z = truth.sample((20_000,))
    with torch.no_grad():
        gap = truth.log_prob(z) - prior().log_prob(z)  # its mean is KL(truth ‖ learned)
    error = gap.std() / len(z) ** 0.5
    assert -4 * error < gap.mean() < 0.05
    # Long draws keep the correlation of the process.
    drawn = prior().sample((20_000,))
    along = (drawn[:, 1:] * drawn[:, :-1]).mean((0, 1))
    torch.testing.assert_close(along, ALPHA, rtol=0, atol=0.05)


def test_a_step_moves_the_prior_only_and_goes_down_the_mean():
    vae, prior = small_vae(), random_prior(length=2)
    frozen, by_hand = copy.deepcopy(vae), copy.deepcopy(prior)
    torch.manual_seed(1)
    rate = auxiliary_prior_step(vae, prior, all_images(), torch.optim.SGD(prior.parameters(), 0.1))
    torch.manual_seed(1)
    q = frozen.encoder(all_images())
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
        auxiliary_prior_step(vae, prior, all_images(), torch.optim.SGD(prior.parameters(), 0.1))
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())


def test_the_bound_with_it_is_a_bound():
    """For all 16 images, against p(x) by many draws of z from the prior."""
    vae = small_vae()
    model, images = VAE(vae.encoder, random_prior(length=2), vae.decoder), all_images()
    torch.manual_seed(0)
    with torch.no_grad():
        bound = model.elbo(images, samples=2000).value
        z = model.prior().sample((5000, 1)).expand(-1, 16, -1, -1)
        px = model.decoder(z).log_prob(images).exp()  # (draws, 16)
    error = px.std(0) / len(px) ** 0.5
    assert (bound.exp() < px.mean(0) - 4 * error).all()
    assert px.mean(0).sum().item() == pytest.approx(1, abs=1e-9)


def test_the_bound_takes_the_rate_from_the_same_draws():
    vae, prior = small_vae(), random_prior(length=2)
    model, x = VAE(vae.encoder, prior, vae.decoder), all_images()
    torch.manual_seed(0)
    found = model.elbo(x, samples=3)
    torch.manual_seed(0)
    q = vae.encoder(x)
    z = q.rsample((3,))
    torch.testing.assert_close(found.rate, (q.log_prob(z) - prior().log_prob(z)).mean(0))
    torch.testing.assert_close(found.distortion, -vae.decoder(z).log_prob(x).mean(0))
    with pytest.raises(NotImplementedError):
        model.elbo(x, estimator="B")
    found.value.sum().backward()  # encoder and prior can learn together, too
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_training_lowers_the_rate_and_not_below_the_information():
    """The aggregate posterior is not AR(1): the LSTM closes part of that gap."""
    torch.manual_seed(0)
    vae, prior = small_vae(), AuxiliaryPrior(2, 2, 16).double()
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.01)
    images = all_images().repeat(16, 1, 1, 1)
    for _ in range(400):
        auxiliary_prior_step(vae, prior, images, optimizer)
    with torch.no_grad():
        q = vae.encoder(all_images())
        z = q.sample((20_000,))  # (draws, 16, 2, 2)
        inside = q.log_prob(z)
        learned = (inside - prior().log_prob(z)).mean()
        # log q(z) of the aggregate posterior over the 16 images, exactly.
        each = torch.stack([vae.encoder(one[None]).log_prob(z) for one in all_images()])
        information = (inside - each.logsumexp(0) + torch.tensor(16.0).log()).mean()
        fixed = kl_divergence(q, vae.prior()).mean()
    assert information - 0.01 < learned < fixed - 0.05


def test_shapes_types_and_seeds():
    prior = AuxiliaryPrior(3, 5, 4)
    p = prior()
    assert p.batch_shape == () and p.event_shape == (5, 3)
    assert p.sample().shape == (5, 3) and p.sample((2, 7)).shape == (2, 7, 5, 3)
    assert p.log_prob(torch.zeros(2, 7, 5, 3)).shape == (2, 7)
    wide = p.expand((7,))
    assert type(wide) is type(p) and wide.batch_shape == (7,)
    assert wide.sample((2,)).shape == (2, 7, 5, 3)
    assert wide.log_prob(torch.zeros(5, 3)).shape == (7,)
    assert wide.log_prob(torch.zeros(2, 1, 5, 3)).shape == (2, 7)
    double = copy.deepcopy(prior).double()
    assert double().sample().dtype == torch.float64
    torch.manual_seed(3)
    first = p.sample((4,))
    torch.manual_seed(3)
    assert torch.equal(first, p.sample((4,))) and not first.requires_grad
    assert not p.has_rsample


def test_bad_arguments():
    with pytest.raises(ValueError, match="hidden >= 1, got 2, 0 and 64"):
        AuxiliaryPrior(2, 0)
    p = AuxiliaryPrior(2, 4)()
    with pytest.raises(ValueError, match="expected a value of shape"):
        p.log_prob(torch.zeros(3, 4, 1))
    with pytest.raises(ValueError, match="expected finite values"):
        p.log_prob(torch.full((4, 2), float("nan")))


def test_an_auxiliary_prior_can_be_differentiated_in_evaluation_mode():
    """A GPU's LSTM keeps what its gradient needs in training mode only; HMC asks for it anyway."""
    prior = AuxiliaryPrior(2, 5, hidden=8).eval()
    assert prior.lstm.training and not prior.training and not prior.out.training
    z = torch.zeros(3, 5, 2, requires_grad=True)
    prior().log_prob(z).sum().backward()
    assert z.grad.isfinite().all()
