"""Hamiltonian Monte Carlo: the invariants of the dynamics, and the moments of known targets."""

import math

import pytest
import torch
from conftest import refusals
from torch.distributions import Exponential, MultivariateNormal, Normal

from vaelib.distributions import DiagNormal
from vaelib.inference import hmc

COVARIANCE = torch.tensor([[1.0, 0.6, 0.0], [0.6, 2.0, -0.3], [0.0, -0.3, 0.5]]).double()
TARGET = MultivariateNormal(torch.tensor([1.0, -2.0, 0.5]).double(), COVARIANCE)


def start(chains=200):
    return hmc.init(TARGET.log_prob, torch.randn(chains, 3).double())


def normal(z):
    return -0.5 * z.square().sum(-1)


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_leapfrog_is_reversible(steps):
    state, momentum = start(), torch.randn(200, 3).double()
    exact = torch.linalg.solve(COVARIANCE, (TARGET.loc - state.position).T).T
    torch.testing.assert_close(state.gradient, exact)
    end, last = hmc.leapfrog(TARGET.log_prob, state, momentum, 0.2, steps)
    assert (end.position - state.position).abs().max() > 0.01
    back, first = hmc.leapfrog(TARGET.log_prob, end, -last, 0.2, steps)
    assert (back.position - state.position).abs().max() < 1e-10
    assert (first + momentum).abs().max() < 1e-10


def test_leapfrog_preserves_volume():
    def flow(both):
        state = hmc.init(TARGET.log_prob, both[:3].unsqueeze(0))
        end, momentum = hmc.leapfrog(TARGET.log_prob, state, both[3:].unsqueeze(0), 0.3, 5)
        return torch.cat([end.position[0], momentum[0]])

    at, width = torch.randn(6).double(), 1e-5
    # The flow of a Gaussian is linear, so central differences are exact up to rounding.
    shifts = width * torch.eye(6).double()
    columns = [(flow(at + shift) - flow(at - shift)) / (2 * width) for shift in shifts]
    assert torch.linalg.det(torch.stack(columns, 1)).item() == pytest.approx(1, abs=1e-8)


def test_energy_error_is_of_second_order_in_the_step_size():
    state, momentum = start(), torch.randn(200, 3).double()

    def error(step_size):
        end, last = hmc.leapfrog(TARGET.log_prob, state, momentum, step_size, int(2 / step_size))
        before = 0.5 * momentum.square().sum(1) - state.log_density
        return (0.5 * last.square().sum(1) - end.log_density - before).abs().mean()

    assert 3.5 < error(0.1) / error(0.05) < 4.5


def test_moments_of_a_known_gaussian():
    state, step_size, _ = hmc.tune(TARGET.log_prob, start(1000))
    _, z, _ = hmc.sample(TARGET.log_prob, state, step_size, 60, thin=2)
    # Chains are independent: the mean of each is one draw, whatever its autocorrelation.
    for estimate, exact in [(z, TARGET.loc), ((z - TARGET.loc) ** 2, COVARIANCE.diagonal())]:
        per_chain = estimate.mean(0)
        standard_error = per_chain.std(0) / math.sqrt(len(per_chain))
        assert ((per_chain.mean(0) - exact).abs() < 3 * standard_error).all()


def test_one_step_leaves_the_target_unchanged():
    torch.manual_seed(3)
    state = hmc.init(TARGET.log_prob, TARGET.sample((100_000,)))
    moved, info = hmc.step(TARGET.log_prob, state, 0.9, 3)  # coarse: many proposals are rejected
    assert 0.3 < info.is_accepted.double().mean() < 0.97
    for power in (1, 2, 4):
        before = ((state.position - TARGET.loc) ** power).mean(0)
        values = (moved.position - TARGET.loc) ** power
        standard_error = values.std(0) / math.sqrt(len(values))
        assert ((values.mean(0) - before).abs() < 4 * math.sqrt(2) * standard_error).all()


@pytest.mark.parametrize("target", [0.6, 0.9])
def test_acceptance_matches_its_probability_and_the_target(target):
    state, step_size, _ = hmc.tune(TARGET.log_prob, start(500), target=target)
    _, _, info = hmc.sample(TARGET.log_prob, state, step_size, 50)
    rate = info.acceptance_rate.mean().item()
    assert rate == pytest.approx(target, abs=0.05)
    assert info.is_accepted.double().mean().item() == pytest.approx(rate, abs=0.01)
    # At 0.6 the longest steps are beyond the stability limit of the narrowest direction.
    assert target < 0.9 or not info.is_divergent.any()


def test_step_sizes_per_chain_follow_the_scale_of_each_target():
    scales = torch.tensor([0.1, 1.0, 10.0]).double()
    density = lambda z: normal(z / scales.unsqueeze(-1))  # noqa: E731
    state = hmc.init(density, scales.unsqueeze(-1) * torch.randn(3, 4).double())
    _, step_size, _ = hmc.tune(density, state, scales * 0.3, steps=300, per_chain=True)
    assert step_size.shape == (3,) and ((step_size / scales).log().std() < 0.25).all()


def test_any_batch_and_event_shape():
    density = lambda z: -0.5 * z.square().sum((-1, -2))  # noqa: E731
    state = hmc.init(density, torch.randn(2, 5, 3, 4))
    state, positions, info = hmc.sample(density, state, torch.full((2, 5), 0.2), 6, thin=2)
    assert positions.shape == (6, 2, 5, 3, 4) and info.acceptance_rate.shape == (12, 2, 5)
    assert torch.equal(positions[-1], state.position)  # of every two positions, the last is kept
    assert hmc.init(density, torch.randn(3, 4)).log_density.shape == ()  # one chain


def test_a_resonant_trajectory_stands_still_without_jitter():
    """Ten steps of the right size lead a Gaussian once round its orbit and back."""
    step_size = 2 * math.sin(math.pi / 10)  # leapfrog turns by 2 arcsin(ε/2) a step: 10 make 2π
    state = hmc.init(normal, torch.randn(500, 2).double())
    still, _ = hmc.step(normal, state, step_size, 10, jitter=0.0)
    moved, _ = hmc.step(normal, state, step_size, 10)
    assert (still.position - state.position).abs().max() < 1e-10
    assert (moved.position - state.position).abs().mean() > 0.3


def test_jitter_only_shortens_the_steps():
    """On a flat density a chain goes three steps along its momentum p, and its energy is ½‖p‖²."""
    state = hmc.init(lambda z: 0 * z.sum(-1), torch.zeros(10_000, 2).double())
    moved, info = hmc.step(lambda z: 0 * z.sum(-1), state, 0.2, 3, jitter=0.5)
    sizes = moved.position.norm(dim=1) / (3 * (2 * info.energy).sqrt())
    assert 0.1 <= sizes.min() < 0.101 and 0.199 < sizes.max() <= 0.2


def test_divergent_is_an_error_of_a_thousand_nats_or_no_number():
    scales = torch.logspace(-2, 3, 2000).double()
    state = hmc.init(normal, torch.ones(2000, 1).double())
    moved, info = hmc.step(normal, state, scales, 3)
    wild, error = info.is_divergent, info.energy_error
    assert (info.energy >= -state.log_density).all()  # kinetic energy is not negative
    torch.testing.assert_close(info.acceptance_rate, (-error).clamp(max=0).exp() * ~wild)
    assert torch.equal(wild, error >= 1000)
    assert 100 < error[~wild].max() < 1000 <= error[wild].min() < 10_000
    assert torch.equal(moved.position[wild], state.position[wild])


@pytest.mark.parametrize("beyond", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_never_accepted(beyond):
    wall = lambda z: torch.where(z < 3, -0.5 * z * z, beyond).sum(-1)  # noqa: E731
    moved, info = hmc.step(wall, hmc.init(wall, torch.zeros(200, 1)), 2.0, 3)
    assert 0 < info.is_divergent.sum() < 200
    assert (moved.position < 3).all() and all(part.isfinite().all() for part in moved)
    flat = lambda z: 0 * z.nan_to_num(0, 0, 0).sum(-1)  # noqa: E731 - finite where z is not
    moved, info = hmc.step(flat, hmc.init(flat, torch.zeros(50, 2)), 3e38)
    assert moved.position.isfinite().all() and info.is_divergent.any()


def factored(z):
    """A density that needs a Cholesky factor, which there is only near the origin."""
    return normal(z) - torch.linalg.cholesky(torch.diag_embed(100 - z**2)).sum((-1, -2))


REFUSING = {
    "torch": lambda z: Normal(0.0, 1.0).log_prob(z).sum(-1),
    "validation asked for": lambda z: Normal(0.0, 1.0, validate_args=True).log_prob(z).sum(-1),
    "another support": lambda z: Exponential(1.0).log_prob(z).sum(-1),
    "vaelib": lambda z: DiagNormal(torch.zeros_like(z), (40 * z).exp()).log_prob(torch.ones(3)),
    "a LinAlgError": factored,
}


@pytest.mark.parametrize("name", sorted(REFUSING))
def test_one_chain_that_the_density_refuses_is_rejected_and_touches_no_other(name):
    density = REFUSING[name]
    state, sizes = hmc.init(density, 0.5 + 0.1 * torch.rand(9, 3)), torch.full((9,), 1e-3)
    steps = []
    for size in (1e-3, 1e30):
        sizes[4] = size
        torch.manual_seed(1)
        steps.append(hmc.step(density, state, sizes))
    (calm, quiet), (moved, info) = steps
    others = torch.arange(9) != 4
    for one, other in zip(calm + quiet, moved + info, strict=True):
        assert torch.equal(one[others], other[others])
    assert info.is_divergent[4] and not info.is_divergent[others].any()
    assert torch.equal(moved.position[4], state.position[4])
    wild, info = hmc.step(density, state, 1e30)  # all of them
    assert info.is_divergent.all() and torch.equal(wild.position, state.position)
    with pytest.raises((ValueError, torch.linalg.LinAlgError)):
        hmc.init(density, torch.full((2, 3), math.nan))


def test_chains_stay_in_the_support_of_a_density():
    """Without validation torch's Exponential has a density, and a higher one, below zero."""
    density = lambda z: Exponential(1.0).log_prob(z).sum(-1)  # noqa: E731
    state, info = hmc.step(density, hmc.init(density, 3 * torch.rand(40, 1)), 0.3, 4)
    assert (state.position > 0).all() and 2 < info.is_divergent.sum() < 38


@torch.no_grad()  # which is no obstacle
def test_weights_get_no_gradient():
    weight = torch.ones(3, requires_grad=True)
    density = lambda z: normal(weight * z)  # noqa: E731
    state, _ = hmc.step(density, hmc.init(density, torch.randn(4, 3)), 0.1)
    assert weight.grad is None and not state.log_density.requires_grad
    assert state.gradient.abs().sum() > 0


BAD = {
    "step_size > 0": lambda s: hmc.step(normal, s, 0.0),
    "leapfrog_steps >= 1": lambda s: hmc.step(normal, s, 0.1, 0),
    "jitter in": lambda s: hmc.step(normal, s, 0.1, jitter=1.0),
    "step size of shape": lambda s: hmc.step(normal, s, torch.ones(2)),
    "steps >= 2": lambda s: hmc.tune(normal, s, steps=1),
    "acceptance in": lambda s: hmc.tune(normal, s, target=1.0),
    "samples >= 1": lambda s: hmc.sample(normal, s, 0.1, 0),
    "float position": lambda s: hmc.init(normal, torch.zeros(4, 3).long()),
    "one log density": lambda s: hmc.init(lambda z: z, s.position),
    "finite log_density": lambda s: hmc.init(lambda z: z.sum(-1) / 0, s.position),
    "finite position": lambda s: hmc.init(normal, s.position / 0),
}
CHAINS = hmc.init(normal, torch.ones(5, 3))
test_bad_arguments = refusals([(call, [CHAINS], message) for message, call in BAD.items()])
