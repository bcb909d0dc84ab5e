"""Hamiltonian Monte Carlo: the invariants of the dynamics, and the moments of known targets."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, StudentT

from vaelib import hmc

COVARIANCE = torch.tensor([[1.0, 0.6, 0.0], [0.6, 2.0, -0.3], [0.0, -0.3, 0.5]]).double()
TARGET = MultivariateNormal(torch.tensor([1.0, -2.0, 0.5]).double(), COVARIANCE)


def start(chains=200, seed=0):
    torch.manual_seed(seed)
    return hmc.init(TARGET.log_prob, torch.randn(chains, 3).double())


def test_init_evaluates_density_and_gradient():
    state = start(5)
    torch.testing.assert_close(state.log_density, TARGET.log_prob(state.position))
    exact = torch.linalg.solve(COVARIANCE, (TARGET.loc - state.position).T).T
    torch.testing.assert_close(state.gradient, exact)


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_leapfrog_is_reversible(steps):
    state, momentum = start(), torch.randn(200, 3).double()
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

    torch.manual_seed(0)
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

    ratio = error(0.1) / error(0.05)
    assert 3.5 < ratio < 4.5


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
    assert 0.3 < info.accepted.double().mean() < 0.97
    for power in (1, 2, 4):
        before = ((state.position - TARGET.loc) ** power).mean(0)
        values = (moved.position - TARGET.loc) ** power
        standard_error = values.std(0) / math.sqrt(len(values))
        assert ((values.mean(0) - before).abs() < 4 * math.sqrt(2) * standard_error).all()


def test_acceptance_matches_its_probability_and_the_target():
    for target in (0.6, 0.9):
        state, step_size, _ = hmc.tune(TARGET.log_prob, start(500), target=target)
        _, _, info = hmc.sample(TARGET.log_prob, state, step_size, 50)
        assert info.acceptance.mean().item() == pytest.approx(target, abs=0.05)
        assert info.accepted.double().mean().item() == pytest.approx(
            info.acceptance.mean().item(), abs=0.01
        )
        # At 0.6 the longest steps are beyond the stability limit of the narrowest direction.
        assert target < 0.9 or not info.divergent.any()


def test_step_sizes_per_chain_follow_the_scale_of_each_target():
    scales = torch.tensor([0.1, 1.0, 10.0]).double()

    def log_density(z):
        return -0.5 * (z / scales.unsqueeze(-1)).square().sum(-1)

    torch.manual_seed(0)
    state = hmc.init(log_density, scales.unsqueeze(-1) * torch.randn(3, 4).double())
    _, step_size, _ = hmc.tune(log_density, state, scales * 0.3, steps=300, per_chain=True)
    assert step_size.shape == (3,)
    assert ((step_size / scales).log().std() < 0.25).all()


def test_chains_do_not_touch_each_other():
    torch.manual_seed(0)
    together = hmc.init(TARGET.log_prob, torch.randn(4, 3).double())
    momentum = torch.randn(4, 3).double()
    end, _ = hmc.leapfrog(TARGET.log_prob, together, momentum, 0.3, 7)
    for chain in range(4):
        alone = hmc.init(TARGET.log_prob, together.position[chain : chain + 1])
        own, _ = hmc.leapfrog(TARGET.log_prob, alone, momentum[chain : chain + 1], 0.3, 7)
        torch.testing.assert_close(own.position[0], end.position[chain], rtol=1e-12, atol=1e-12)


def test_any_batch_and_event_shape():
    state = hmc.init(lambda z: -0.5 * z.square().sum((-1, -2)), torch.randn(2, 5, 3, 4))
    state, positions, info = hmc.sample(
        lambda z: -0.5 * z.square().sum((-1, -2)), state, torch.full((2, 5), 0.2), 6, thin=2
    )
    assert positions.shape == (6, 2, 5, 3, 4) and info.acceptance.shape == (12, 2, 5)


def test_a_resonant_trajectory_stands_still_without_jitter():
    """Ten steps of the right size lead a Gaussian once round its orbit and back."""
    step_size = 2 * math.sin(math.pi / 10)  # leapfrog turns by 2 arcsin(ε/2) a step: 10 make 2π
    target = lambda z: -0.5 * z.square().sum(-1)  # noqa: E731
    torch.manual_seed(0)
    state = hmc.init(target, torch.randn(500, 2).double())
    still, _ = hmc.step(target, state, step_size, 10, jitter=0.0)
    moved, _ = hmc.step(target, state, step_size, 10)
    assert (still.position - state.position).abs().max() < 1e-10
    assert (moved.position - state.position).abs().mean() > 0.3


def test_divergences_are_reported_and_rejected():
    state = start(50)
    wild, info = hmc.step(TARGET.log_prob, state, 50.0)
    assert info.divergent.all() and not info.accepted.any()
    assert torch.equal(wild.position, state.position)
    assert (info.acceptance == 0).all()


def test_energy_is_reported():
    torch.manual_seed(0)
    target = StudentT(5.0)
    state = hmc.init(lambda z: target.log_prob(z).sum(-1), torch.randn(10, 2).double())
    _, info = hmc.step(lambda z: target.log_prob(z).sum(-1), state, 0.1, 20)
    assert (info.energy >= -state.log_density).all()  # kinetic energy is not negative
    torch.testing.assert_close(info.acceptance, (-info.energy_error).clamp(max=0).exp())


def test_weights_of_a_model_get_no_gradient():
    weight = torch.ones(3, requires_grad=True, dtype=torch.float64)
    state = hmc.init(lambda z: -0.5 * (weight * z).square().sum(-1), torch.randn(4, 3).double())
    hmc.step(lambda z: -0.5 * (weight * z).square().sum(-1), state, 0.1)
    assert weight.grad is None and not state.log_density.requires_grad


def test_works_where_gradients_are_switched_off():
    with torch.no_grad():
        state, _ = hmc.step(TARGET.log_prob, start(3), 0.1)
    assert state.gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: hmc.step(TARGET.log_prob, s, 0.0), ValueError, "step_size > 0"),
        (lambda s: hmc.step(TARGET.log_prob, s, 0.1, 0), ValueError, "leapfrog_steps >= 1"),
        (lambda s: hmc.step(TARGET.log_prob, s, 0.1, jitter=1.0), ValueError, "jitter"),
        (lambda s: hmc.step(TARGET.log_prob, s, torch.ones(2)), ValueError, "step size of shape"),
        (lambda s: hmc.tune(TARGET.log_prob, s, steps=1), ValueError, "steps >= 2"),
        (lambda s: hmc.tune(TARGET.log_prob, s, target=1.0), ValueError, "acceptance in"),
        (lambda s: hmc.sample(TARGET.log_prob, s, 0.1, 0), ValueError, "samples >= 1"),
        (lambda s: hmc.init(TARGET.log_prob, torch.zeros(4, 3).long()), TypeError, "float"),
        (lambda s: hmc.init(lambda z: z.sum(), torch.zeros(4, 3)), None, ""),
        (lambda s: hmc.init(lambda z: z, torch.zeros(4, 3)), ValueError, "one log density"),
        (lambda s: hmc.init(lambda z: z.sum(-1) / 0, s.position), ValueError, "finite log_density"),
    ],
)
def test_bad_arguments(call, error, message):
    if error is None:
        assert call(start(5)).log_density.shape == ()  # no chain dimension: one chain is fine
        return
    with pytest.raises(error, match=message):
        call(start(5))
