"""Hamiltonian Monte Carlo on any log density, many independent chains at once.

A chain is a row of a batch: ``log_density`` maps positions ``(*chains, *event)`` to log densities
``(*chains,)`` in nats, up to a constant, and no chain may depend on another. Gradients come from
one autograd call for all chains. Neal (2011), *MCMC using Hamiltonian dynamics* (arXiv 1206.1901).

>>> log_density = lambda z: -0.5 * z.square().sum(-1)       # N(0, I), up to a constant
>>> state, step_size, _ = tune(log_density, init(log_density, torch.zeros(100, 2)))  # 100 chains
>>> state, info = step(log_density, state, step_size)
"""

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from vaelib.distributions import no_validation

LogDensity = Callable[[Tensor], Tensor]
DIVERGENCE = 1000.0  # nats: a trajectory whose energy is off by so much has become unstable
# What a density may raise at a position that it does not take.
_REFUSED = (ValueError, ArithmeticError, torch.linalg.LinAlgError)


class State(NamedTuple):
    """Where the chains are."""

    position: Tensor  # (*chains, *event)
    log_density: Tensor  # (*chains,) nats
    gradient: Tensor  # of the log density, (*chains, *event)


class Info(NamedTuple):
    """What one step did, each ``(*chains,)``; the energy is −log density + ½‖momentum‖²."""

    acceptance_rate: Tensor  # probability with which the proposal was accepted
    is_accepted: Tensor
    is_divergent: Tensor  # energy error ≥ DIVERGENCE or not finite, or a refused position
    energy: Tensor  # at the start of the trajectory, nats
    energy_error: Tensor  # energy at its end minus energy


def init(log_density: LogDensity, position: Tensor) -> State:
    """The state at ``position``, which must be floats with a finite log density for each chain."""
    if not position.is_floating_point():
        raise TypeError(f"expected a float position, got {position.dtype}")
    state = _evaluate(log_density, position)
    chains, shape = tuple(state.log_density.shape), tuple(position.shape)
    if shape[: len(chains)] != chains or len(chains) >= len(shape):
        raise ValueError(f"expected one log density a chain, got {chains} for positions {shape}")
    for name, value in state._asdict().items():
        if not value.isfinite().all():
            raise ValueError(f"expected a finite {name} at the start of every chain")
    return state


def leapfrog(
    log_density: LogDensity, state: State, momentum: Tensor, step_size: float | Tensor, steps: int
) -> tuple[State, Tensor]:
    """Follow the Hamiltonian flow for ``steps`` leapfrog steps: the state and momentum at the end.

    Volume preserving, and reversible: with the momentum negated, it leads back. A chain that comes
    to a position which the density refuses ends there, with a momentum of nan.
    """
    size = _expand_to(_step_size(step_size, state), state.position)
    momentum = momentum + 0.5 * size * state.gradient
    for remaining in reversed(range(steps)):
        state = _advance(log_density, state, state.position + size * momentum)
        # Two half steps of momentum in a row are one whole step; only the last one is half.
        momentum = momentum + (size if remaining else 0.5 * size) * state.gradient
    return state, momentum


def step(
    log_density: LogDensity,
    state: State,
    step_size: float | Tensor,
    leapfrog_steps: int = 10,
    jitter: float = 0.5,
) -> tuple[State, Info]:
    """One Metropolis-corrected trajectory of each chain; one that diverges is rejected.

    ``step_size``: of the integrator, above 0, one for all or ``(*chains,)``. Each chain takes it
    times a number drawn from [1 − jitter, 1]: if all trajectories were equally long, they could
    lead back to where they started, and the chain would hardly move (Neal 2011, section 3.2).
    """
    if leapfrog_steps < 1 or not 0 <= jitter < 1 or not (torch.as_tensor(step_size) > 0).all():
        raise ValueError(
            "expected leapfrog_steps >= 1, jitter in [0, 1) and step_size > 0, "
            f"got {leapfrog_steps}, {jitter} and {step_size}"
        )
    momentum = torch.randn_like(state.position)
    size = _step_size(step_size, state) * (1 - jitter * torch.rand_like(state.log_density))
    end, last_momentum = leapfrog(log_density, state, momentum, size, leapfrog_steps)
    # The proposal is the end with its momentum negated, which makes it its own inverse. As the
    # energy is even in the momentum, which is drawn anew, the negation itself is skipped.
    energy = _energy(state, momentum)
    error = _energy(end, last_momentum) - energy
    stable = (error < DIVERGENCE) & error.isfinite() & _finite(end.position, error.dim())
    rate = torch.where(stable, (-error).clamp(max=0).exp(), 0.0)
    accepted = torch.rand_like(rate) < rate
    chosen = map(lambda new, old: torch.where(_expand_to(accepted, new), new, old), end, state)
    return State(*chosen), Info(rate, accepted, ~stable, energy, error)


def adapt(step_size: float | Tensor, info: Info, target: float = 0.9, rate: float = 0.1) -> Tensor:
    """Move the step size of each chain a little towards the target acceptance probability.

        ln ε ← ln ε + rate · (acceptance − target)

    Robbins & Monro (1951). Stop before the samples that count: a chain that adapts is not Markov.
    """
    if not 0 < target < 1:
        raise ValueError(f"expected a target acceptance in (0, 1), got {target}")
    change, step_size = info.acceptance_rate - target, torch.as_tensor(step_size)
    return step_size * torch.exp(rate * (change if step_size.dim() else change.mean()))


def tune(
    log_density: LogDensity,
    state: State,
    step_size: float | Tensor = 0.1,
    leapfrog_steps: int = 10,
    steps: int = 100,
    target: float = 0.9,
    per_chain: bool = False,
) -> tuple[State, Tensor, Info]:
    """Burn in while finding the step size whose mean acceptance probability is ``target``.

    Returns the state, the step size (the geometric mean over the second half of the ``steps``
    trajectories; one for each chain if ``per_chain``, as posteriors of different images need) and
    the info of the last trajectory.
    """
    if steps < 2:
        raise ValueError(f"expected steps >= 2, got {steps}")
    size = torch.as_tensor(step_size).to(state.log_density)
    size = size.expand(state.log_density.shape) if per_chain else size.mean()
    logs = []
    for index in range(steps):
        state, info = step(log_density, state, size, leapfrog_steps)
        size = adapt(size, info, target, rate=2.0 * (index + 1) ** -0.6)
        logs.append(size.log())
    return state, torch.stack(logs[steps // 2 :]).mean(0).exp(), info


def sample(
    log_density: LogDensity,
    state: State,
    step_size: float | Tensor,
    samples: int,
    leapfrog_steps: int = 10,
    thin: int = 1,
) -> tuple[State, Tensor, Info]:
    """Run the chains: the last state, every ``thin``-th position and the infos of all steps.

    Positions are ``(samples, *chains, *event)``, fields of the info ``(samples · thin, *chains)``.
    """
    if samples < 1 or thin < 1:
        raise ValueError(f"expected samples >= 1 and thin >= 1, got {samples} and {thin}")
    positions, infos = [], []
    for _ in range(samples):
        for _ in range(thin):
            state, info = step(log_density, state, step_size, leapfrog_steps)
            infos.append(info)
        positions.append(state.position)
    return state, torch.stack(positions), Info(*map(torch.stack, zip(*infos, strict=True)))


def _evaluate(log_density: LogDensity, position: Tensor) -> State:
    with torch.enable_grad():
        position = position.detach().requires_grad_()
        value = log_density(position)
        (gradient,) = torch.autograd.grad(value.sum(), position)
    return State(position.detach(), value.detach(), gradient)


def _advance(log_density: LogDensity, state: State, position: Tensor) -> State:
    """The state at ``position``; a chain that the density refuses there stays, with gradient nan.

    One such chain is an error for the whole batch, so look for it. To leave validation off would
    not do: torch's ``Exponential`` then has a density below zero.
    """
    with suppress(*_REFUSED):
        return _evaluate(log_density, position)

    def moved(chains: Tensor) -> Tensor:
        return torch.where(_expand_to(chains, position), position, state.position)

    def taken(chains: Tensor) -> Tensor:  # halve the group until it is taken or one chain
        with suppress(*_REFUSED):
            log_density(moved(chains))
            return chains
        half = chains.flatten().cumsum(0).view_as(chains) <= chains.sum() // 2
        return chains & half if chains.sum() < 2 else taken(chains & half) | taken(chains & ~half)

    chains = _finite(position, state.log_density.dim())
    with suppress(*_REFUSED), no_validation():  # most of them at once
        chains = chains & _evaluate(log_density, moved(chains)).log_density.isfinite()
    with torch.no_grad():
        chains = taken(chains)
    new = _evaluate(log_density, moved(chains))
    return new._replace(gradient=new.gradient.where(_expand_to(chains, position), torch.nan))


def _energy(state: State, momentum: Tensor) -> Tensor:
    return 0.5 * momentum.square().flatten(state.log_density.dim()).sum(-1) - state.log_density


def _finite(x: Tensor, chains: int) -> Tensor:
    """Whether every number of a chain is finite, ``(*chains,)``."""
    return x.isfinite().flatten(chains).all(-1)


def _expand_to(per_chain: Tensor, other: Tensor) -> Tensor:
    """Append dimensions of size one until ``(*chains,)`` broadcasts against ``other``."""
    return per_chain.reshape(per_chain.shape + (1,) * (other.dim() - per_chain.dim()))


def _step_size(step_size: float | Tensor, state: State) -> Tensor:
    size = torch.as_tensor(step_size, dtype=state.position.dtype, device=state.position.device)
    chains = tuple(state.log_density.shape)
    if size.shape not in ((), chains):
        raise ValueError(f"expected a step size of shape () or {chains}, got {tuple(size.shape)}")
    return size
