"""What slots and pixel models share: an MLP, shapes, types and modes."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from vaelib.networks import (
    MLP,
    check_dtype,
    eval_mode,
    flatten_events,
    fork_rng,
    full_precision,
    gate,
    init_normal_,
    is_int,
    latent_shape,
    to_float32,
)


def test_mlp_puts_no_activation_after_the_last_layer():
    network = MLP(3, [np.int64(4), 5], 2)
    names = [type(layer).__name__ for layer in network]
    assert names == ["Linear", "Tanh", "Linear", "Tanh", "Linear"]
    assert [tuple(p.shape) for p in network.parameters()][::2] == [(4, 3), (5, 4), (2, 5)]
    assert isinstance(MLP(3, 4, 2, nn.ReLU)[1], nn.ReLU)


def test_gate_is_tanh_times_sigmoid():
    a, b = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    torch.testing.assert_close(gate(torch.cat([a, b], -1)), a.tanh() / (1 + (-b).exp()))
    torch.testing.assert_close(gate(torch.cat([a, b]), 0), a.tanh() / (1 + (-b).exp()))


def test_init_normal_draws_every_parameter():
    network = init_normal_(MLP(100, 100, 100), std=0.01)
    values = torch.cat([p.flatten() for p in network.parameters()])
    # 20,200 draws: the standard error of the standard deviation is 0.5 %.
    assert values.std().item() == pytest.approx(0.01, rel=0.025)
    assert abs(values.mean().item()) < 4 * 0.01 / len(values) ** 0.5


def test_shapes():
    assert flatten_events(torch.zeros(2, 3, 1, 4, 5), (1, 4, 5)).shape == (2, 3, 20)
    assert flatten_events(torch.zeros(1, 4, 5), (1, 4, 5)).shape == (20,)
    assert latent_shape(np.int64(3)) == (3,) and latent_shape([4, np.int64(3)]) == (4, 3)
    whole = [is_int(x) for x in (3, np.int64(3), True, 3.0, np.float64(3), "3", torch.tensor(3))]
    assert whole == [True, True, False, False, False, False, False]


def test_only_half_precision_is_widened_and_autocast_switched_off():
    for dtype in (torch.float32, torch.float64, torch.int64):
        x = torch.ones(3, dtype=dtype)
        assert to_float32(x) is x
    for dtype in (torch.float16, torch.bfloat16):
        assert to_float32(torch.ones(3, dtype=dtype)).dtype == torch.float32
    layer, x = nn.Linear(3, 2), torch.randn(4, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        check_dtype(x, layer.weight)  # autocast takes any float
        assert layer(x).dtype == torch.bfloat16
        full = full_precision(layer, x)
    assert torch.equal(full, layer(x.float())) and torch.is_autocast_enabled("cpu") is False


def test_modes_and_random_states_come_back_even_after_an_error():
    model, state = nn.Sequential(nn.Dropout(), nn.Linear(2, 2).eval()), torch.get_rng_state()
    with contextlib.suppress(KeyError), eval_mode(model), fork_rng():
        assert not any(module.training for module in model.modules())
        torch.manual_seed(7)
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MLP(3, 0, 2), ValueError, r"positive layer sizes, got \[3, 0, 2\]"),
        (lambda: MLP(3, 2, 2)(torch.zeros(3).double()), TypeError, "float32, .* got torch.float64"),
        (lambda: init_normal_(MLP(3, 2, 2), std=0), ValueError, "positive finite std, got 0"),
        (lambda: latent_shape((2, 2, 2)), ValueError, r"latents d or \(rows, d\).*got \(2, 2, 2\)"),
        (lambda: flatten_events(torch.zeros(3, 4), (5,)), ValueError, r"expected x .*got \(3, 4\)"),
        (lambda: flatten_events(torch.zeros(5), (1, 5), "z"), ValueError, r"expected z .*got \(5"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
