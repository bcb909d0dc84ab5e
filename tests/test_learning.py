"""One update each."""

import copy

import pytest
import torch

from vaelib import VAE
from vaelib.decoders import BernoulliMLP, VariationalWeights
from vaelib.distributions import DiagNormal
from vaelib.encoders import MLPEncoder
from vaelib.inference import hmc
from vaelib.inference.likelihood import log_joint
from vaelib.inference.linear_vae import PPCA, linear_slots
from vaelib.priors import StandardNormal
from vaelib.training.learning import (
    aevb_step,
    iwae_step,
    mcem_step,
    variational_bayes_step,
    wake_sleep_step,
)

SHAPE = (1, 4, 3)


def small_vae():
    torch.manual_seed(0)
    return VAE(MLPEncoder(2, SHAPE, 6), StandardNormal(2), BernoulliMLP(2, SHAPE, 6))


def sgd(module, lr=0.1):
    return torch.optim.SGD(module.parameters(), lr=lr)


def assert_stepped(module, by_hand, sign=1):
    """Along the gradients of ``by_hand``, or against them."""
    for ours, theirs in zip(module.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs + sign * 0.1 * theirs.grad)


def test_aevb_step_is_one_step_along_the_gradient_of_the_mean_bound():
    vae, x = small_vae(), torch.rand(5, *SHAPE)
    by_hand = copy.deepcopy(vae)
    torch.manual_seed(1)
    bound = aevb_step(vae, x, sgd(vae), samples=3)
    torch.manual_seed(1)
    expected = by_hand.elbo(x, samples=3)
    expected.value.mean().backward()
    assert_stepped(vae, by_hand)
    torch.testing.assert_close(bound.value, expected.value.detach())
    assert not bound.value.requires_grad


def test_iwae_step_goes_up_the_importance_weighted_bound():
    """One SGD step by hand; and at an exact posterior every weight is p(x): the bound is log p."""
    vae, x = small_vae(), torch.rand(5, *SHAPE)
    by_hand = copy.deepcopy(vae)
    torch.manual_seed(1)
    bound = iwae_step(vae, x, sgd(vae), samples=4)
    torch.manual_seed(1)
    q, p = by_hand.encoder(x), by_hand.prior()
    z = q.rsample((4,))
    log_weights = by_hand.decoder(z).log_prob(x) + p.log_prob(z) - q.log_prob(z)
    log_weights.exp().mean(0).log().mean().backward()
    assert_stepped(vae, by_hand)
    torch.testing.assert_close(bound.value, log_weights.mean(0).detach())


def test_iwae_loss_rises_from_the_elbo_to_log_p(monkeypatch):
    x, _ = ppca_data(200)
    model = PPCA.fit(x.double(), 2)
    vae = VAE(*model.slots())
    with torch.no_grad():
        vae.encoder.log_scale += 0.7  # twice too wide: a gap between bound and log p(x)
    losses, seen = [], []
    monkeypatch.setattr("vaelib.training.learning._descend", lambda loss, _: seen.append(-loss))
    for samples in (1, 5, 50, 500):
        torch.manual_seed(0)
        for _ in range(20):
            iwae_step(vae, x.double(), sgd(vae), samples=samples)
        losses.append(torch.stack(seen[-20:]).mean().item())
    exact, elbo = model.log_prob(x.double()).mean(), vae.elbo(x.double(), 500).value.mean()
    assert losses == sorted(losses) and losses[0] == pytest.approx(elbo.item(), abs=0.1)
    assert losses[-1] == pytest.approx(exact.item(), abs=0.02) and elbo < exact - 0.5


def test_wake_goes_up_the_likelihood_and_sleep_up_the_log_posterior_of_dreams():
    vae, x = small_vae(), torch.rand(5, *SHAPE)
    by_hand = copy.deepcopy(vae)
    torch.manual_seed(1)
    bound = wake_sleep_step(vae, x, (sgd(vae.decoder), sgd(vae.encoder)))
    torch.manual_seed(1)
    expected = by_hand.elbo(x)
    torch.manual_seed(1)
    with torch.no_grad():
        z = by_hand.encoder(x).sample()
        dream_z = by_hand.prior().sample((5,))
        dream_x = by_hand.decoder(dream_z).sample()
    by_hand.decoder(z).log_prob(x).mean().backward()  # before and after the wake phase: the
    by_hand.encoder(dream_x).log_prob(dream_z).mean().backward()  # dreams come from before it
    assert_stepped(vae, by_hand)
    torch.testing.assert_close(bound.value, expected.value.detach())


def ppca_data(n=500):
    torch.manual_seed(0)
    x = torch.randn(n, 2) @ torch.randn(2, 5) + 0.5 * torch.randn(n, 5)
    return x, PPCA.fit(x.double(), 2).log_prob(x.double()).mean().item()


@pytest.mark.parametrize("step", [aevb_step, wake_sleep_step])
def test_the_optimum_of_ppca_is_found(step):
    """Where the encoder can be exact, both divergences of wake-sleep are zero at one point."""
    x, exact = ppca_data()
    vae = VAE(*linear_slots(5, 2))
    parts = (vae,) if step is aevb_step else (vae.decoder, vae.encoder)
    optimizers = [torch.optim.Adam(part.parameters(), lr=0.02) for part in parts]
    for _ in range(1500):
        step(vae, x, optimizers[0] if step is aevb_step else optimizers)
    bound = vae.elbo(x, samples=100).value.mean().item()
    assert bound <= exact + 0.02  # sampling noise of the bound: 0.005 nats
    assert bound == pytest.approx(exact, abs=0.05 if step is aevb_step else 0.1)


def test_mcem_finds_the_optimum_of_ppca_without_an_encoder():
    x, exact = ppca_data()
    vae = VAE(*linear_slots(5, 2))
    before = copy.deepcopy(vae.encoder.state_dict())
    optimizer = torch.optim.Adam(vae.decoder.parameters(), lr=0.01)
    z, step_size = torch.randn(500, 2), torch.tensor(0.1)
    accepted = []
    for _ in range(400):
        z, step_size, info, _ = mcem_step(vae, x, z, step_size, optimizer)
        accepted.append(info.acceptance_rate.mean().item())
    weight, noise = vae.decoder.loc.weight, vae.decoder.log_scale.exp().square()
    fitted = PPCA(weight.detach(), vae.decoder.loc.bias.detach(), noise.item())
    assert fitted.log_prob(x).mean().item() == pytest.approx(exact, abs=0.05)
    assert sum(accepted[-100:]) / 100 == pytest.approx(0.9, abs=0.04)
    assert all(map(torch.equal, vae.encoder.state_dict().values(), before.values()))


def test_weights_rate_is_the_sum_of_closed_forms():
    torch.manual_seed(0)
    decoder = VariationalWeights(BernoulliMLP(2, SHAPE, 6), scale=0.1, prior_scale=0.5)
    means, ratio = [*decoder.decoder.parameters()], torch.tensor(0.1 / 0.5).square()
    flat = torch.cat([mean.flatten() for mean in means])
    expected = 0.5 * ((flat / 0.5).square() + ratio - 1 - ratio.log()).sum()
    torch.testing.assert_close(decoder.rate(), expected)
    ours, theirs = (torch.autograd.grad(rate, means) for rate in (decoder.rate(), expected))
    torch.testing.assert_close(ours, theirs)


def test_variational_bayes_recovers_a_conjugate_posterior():
    """One weight θ, x = θ + noise, prior N(0, 1): q(θ) must become N(Σx/(N + 1), 1/(N + 1))."""

    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = torch.nn.Parameter(torch.zeros(1))

        def forward(self, z):
            loc = self.theta + 0 * z
            return DiagNormal(loc, torch.ones_like(loc))

    class Encoder(torch.nn.Module):
        def forward(self, x):
            return DiagNormal(0 * x, torch.ones_like(x))

    torch.manual_seed(0)
    x = 1 + torch.randn(20, 1)
    decoder = VariationalWeights(Mean(), scale=0.1)
    vae = VAE(Encoder(), StandardNormal(1), decoder)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
    tail = []
    for update in range(4000):
        variational_bayes_step(vae, x, optimizer, count=20)
        if update >= 2000:
            (q,) = decoder.posterior()
            tail.append(torch.cat([q.loc.detach(), q.scale.detach()]))
    mean, scale = torch.stack(tail).mean(0).tolist()
    assert mean == pytest.approx(x.sum().item() / 21, abs=0.03)
    assert scale == pytest.approx(21**-0.5, rel=0.1)


def test_bad_arguments():
    vae, x = small_vae(), torch.rand(5, *SHAPE)
    with pytest.raises(TypeError, match="VariationalWeights"):
        variational_bayes_step(vae, x, sgd(vae), count=5)
    vae.decoder = VariationalWeights(vae.decoder)
    with pytest.raises(ValueError, match="count >= batch of 5, got 4"):
        variational_bayes_step(vae, x, sgd(vae), count=4)
    with pytest.raises(ValueError, match="scales > 0"):
        VariationalWeights(BernoulliMLP(2, SHAPE, 6), scale=0)


def weights(vae):
    vae.decoder = VariationalWeights(vae.decoder)
    return vae


# One update of each algorithm, and how many times it moves the parameters.
UPDATES = {
    "aevb": lambda v, x: aevb_step(v, x, sgd(v)),
    "wake-sleep": lambda v, x: wake_sleep_step(v, x, (sgd(v.decoder), sgd(v.encoder))),
    "mcem": lambda v, x: mcem_step(v, x, torch.randn(5, 2), 0.1, sgd(v.decoder), updates=2),
    "full variational Bayes": lambda v, x: variational_bayes_step(v, x, sgd(v), count=9),
}


@pytest.mark.parametrize("name", UPDATES)
def test_gradients_from_before_a_step_do_not_count(name):
    ends = []
    for stale in (0.0, 5.0):
        vae = weights(small_vae()) if name.startswith("full") else small_vae()
        for parameter in vae.parameters():
            parameter.grad = torch.full_like(parameter, stale)
        torch.manual_seed(1)
        UPDATES[name](vae, torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(2)))
        ends.append(torch.cat([p.detach().flatten() for p in vae.parameters()]))
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", UPDATES)
def test_a_loss_that_is_not_finite_changes_nothing(name):
    vae = weights(small_vae()) if name.startswith("full") else small_vae()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.fill_(float("nan"))
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises((FloatingPointError, ValueError)):
        UPDATES[name](vae, torch.rand(5, *SHAPE))
    torch.testing.assert_close(dict(vae.state_dict()), dict(before), equal_nan=True)


def test_a_step_of_full_variational_bayes_by_hand():
    """A batch of 5 out of 40 data, three draws of z: −mean bound + KL(q(θ) ‖ p(θ)) / 40."""
    vae, x = weights(small_vae()), torch.rand(5, *SHAPE)
    by_hand = copy.deepcopy(vae)
    torch.manual_seed(1)
    bound = variational_bayes_step(vae, x, sgd(vae), count=40, samples=3)
    torch.manual_seed(1)
    expected = by_hand.elbo(x, 3)
    (by_hand.decoder.rate() / 40 - expected.value.mean()).backward()
    assert_stepped(vae, by_hand, sign=-1)
    torch.testing.assert_close(bound.value, expected.value.detach())


def test_mcem_step_is_a_trajectory_and_then_the_updates():
    vae, x, z = small_vae(), torch.rand(5, *SHAPE), torch.randn(5, 2)
    by_hand = copy.deepcopy(vae)
    torch.manual_seed(1)
    settings = {"leapfrog_steps": 3, "updates": 2, "target": 0.6}
    found = mcem_step(vae, x, z, 0.3, sgd(vae.decoder), **settings)
    torch.manual_seed(1)
    joint = log_joint(by_hand, x)
    state, info = hmc.step(joint, hmc.init(joint, z), 0.3, 3)
    optimizer = sgd(by_hand.decoder)
    for _ in range(2):
        optimizer.zero_grad()
        (-log_joint(by_hand, x)(state.position).mean()).backward()
        optimizer.step()
    for ours, theirs in zip(vae.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found.step_size, hmc.adapt(0.3, info, 0.6))
    torch.testing.assert_close(found.log_joint, state.log_density)
