"""What slots and pixel models share: an MLP, shapes, types and modes."""

import contextlib

import numpy as np
import pytest
import torch
from conftest import refusals
from torch import nn

from vaelib import networks
from vaelib.networks import MLP


def test_mlp_puts_no_activation_after_the_last_layer():
    network = MLP(3, [np.int64(4), 5], 2)
    kinds = [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert [type(layer) for layer in network] == kinds
    assert [tuple(p.shape) for p in network.parameters()][::2] == [(4, 3), (5, 4), (2, 5)]


def test_gate_is_tanh_times_sigmoid():
    a, b = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    for dim in (0, 1):
        both = networks.gate(torch.cat([a, b], dim), dim)
        torch.testing.assert_close(both, a.tanh() / (1 + (-b).exp()))


def test_init_normal_draws_every_parameter():
    network = networks.init_normal_(MLP(100, 100, 100), std=0.01)
    values = torch.cat([p.flatten() for p in network.parameters()])
    # 20,200 draws: the standard error of the standard deviation is 0.5 %.
    assert values.std().item() == pytest.approx(0.01, rel=0.025)
    assert abs(values.mean().item()) < 4 * 0.01 / len(values) ** 0.5


def test_shapes_and_types():
    assert networks.flatten_events(torch.zeros(2, 3, 1, 4, 5), (1, 4, 5)).shape == (2, 3, 20)
    assert networks.flatten_events(torch.zeros(1, 4, 5), (1, 4, 5)).shape == (20,)
    assert networks.is_int(3) and networks.latent_shape(np.int64(3)) == (3,)
    assert not any(networks.is_int(x) for x in (True, 3.0, np.float64(3), "3", torch.tensor(3)))
    ones = torch.ones(3)  # only half precision is widened
    assert all(networks.to_float32(x) is x for x in (ones, ones.double(), ones.long()))
    assert all(networks.to_float32(x).dtype == ones.dtype for x in (ones.half(), ones.bfloat16()))


def test_modes_and_random_states_come_back_even_after_an_error():
    model, state = nn.Sequential(nn.Dropout(), nn.Linear(2, 2).eval()), torch.get_rng_state()
    with contextlib.suppress(KeyError), networks.eval_mode(model), networks.fork_rng():
        assert not any(module.training for module in model.modules())
        torch.manual_seed(7)
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.equal(torch.get_rng_state(), state)


REFUSED = [
    (lambda x: MLP(3, x, 2), (0, [4, 0]), "expected positive layer sizes, got"),
    (MLP(3, 2, 2), [torch.zeros(3).double()], "expected torch.float32, .* got torch.float64"),
    (lambda x: networks.init_normal_(MLP(3, 2, 2), x), (0, float("inf")), "positive finite std"),
    (networks.latent_shape, [(2, 2, 2), (), 2.5], r"expected latents d or \(rows, d\) .*, got"),
    (lambda x: networks.flatten_events(x, (1, 5), "z"), [torch.zeros(5)], r"expected z .*got \(5,"),
]
test_bad_input_is_refused = refusals(REFUSED)
