"""Encoders: their formulas, and by gradient which rows of the image each latent vector has seen.

In train mode and double precision, all parameters random, so that no gradient vanishes by chance.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

from vaelib.distributions import DiagNormal, committed_rate
from vaelib.encoders import AntiCausalEncoder, MLPEncoder
from vaelib.posteriors import GaussianPosterior, IndependentPosterior, SequentialPosterior
from vaelib.priors import AR1Prior, StandardNormal

ORDERS = ["anti-causal", "causal", "unrestricted"]
ALPHA = torch.tensor([0.5, 0.9])

orders = pytest.mark.parametrize("order", ORDERS)


def build(order, image_shape=(1, 6, 5), posterior=None, **settings):
    torch.manual_seed(0)
    settings = {"channels": 4, "layers": 2, "kernel": 3, **settings}
    encoder = AntiCausalEncoder(2, image_shape, posterior, order=order, **settings).double()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return encoder.train()


def images(n, *shape):
    return torch.randint(2, (n, *shape)).double()


def allowed(order, rows):
    """Whether z_t may see row s, ``(t, s)``."""
    every = torch.ones(rows, rows).bool()
    return {"anti-causal": every.triu(), "causal": every.tril(), "unrestricted": every}[order]


def seen_by(outputs, x):
    """|∂ output_t / ∂ pixel| of images that do not mix, summed over them: ``(t, s, C, W)``."""
    rows = [torch.autograd.grad(one, x, retain_graph=True)[0] for one in outputs]
    return torch.stack(rows).abs().sum(1).movedim(2, 1)


# An MLP


def test_an_mlp_returns_a_diagonal_normal_per_image_by_the_papers_formula():
    encoder, x = (
        MLPEncoder(np.int64(5), (1, 4, np.int64(6)), (8, np.int64(7))),
        torch.rand(3, 1, 4, 6),
    )
    q = encoder(x)
    loc, log_variance = encoder.network(x.flatten(1)).chunk(2, -1)
    assert isinstance(q, DiagNormal) and q.batch_shape == (3,) and q.event_shape == (5,)
    torch.testing.assert_close(q.loc, loc)
    torch.testing.assert_close(q.scale, (0.5 * log_variance).exp())
    assert encoder(x[0]).batch_shape == () and encoder(x[None]).batch_shape == (1, 3)


@pytest.mark.parametrize(
    ("latents", "posterior", "prior", "least"),
    [
        ((6, 2), SequentialPosterior(ALPHA, 6), AR1Prior(ALPHA, 6), committed_rate(ALPHA, 6)),
        ((6, 2), IndependentPosterior(0.1, (6, 2)), StandardNormal((6, 2)), 12 * 0.1),
        (3, IndependentPosterior(0.1, 3), StandardNormal(3), 3 * 0.1),
    ],
)
def test_an_mlp_can_put_out_rows_and_any_family(latents, posterior, prior, least):
    q = MLPEncoder(latents, (1, 6, 4), 8, posterior)(torch.rand(5, 1, 6, 4))
    assert q.batch_shape == (5,) and q.event_shape == prior().event_shape
    assert (kl_divergence(q, prior()) >= least - 1e-5).all()


# Rows


@orders
@pytest.mark.parametrize("part", ["loc", "scale"])
@pytest.mark.parametrize("family", ["gaussian", "sequential", "independent"])
def test_each_row_sees_the_rows_of_its_order_and_every_one_of_them(order, part, family):
    posterior = {
        "gaussian": None,
        "sequential": SequentialPosterior(ALPHA, 6),
        "independent": IndependentPosterior(0.1, (6, 2)),
    }[family]
    encoder, x = build(order, (2, 6, 5), posterior), images(8, 2, 6, 5).requires_grad_()
    values, may = getattr(encoder(x), part), allowed(order, 6)
    for k in range(2):
        found = seen_by(values[..., k].sum(0), x)
        assert (found[~may] == 0).all()
        assert (found[may] > 0).all()  # every pixel of every channel in these rows


@orders
def test_far_rows_are_seen_in_large_images(order):
    """More rows than the kernels reach: the running mean closes the gap."""
    encoder, x = build(order, (1, 28, 8), layers=1), images(4, 1, 28, 8).requires_grad_()
    found, may = seen_by(encoder(x).loc.sum((0, 2)), x), allowed(order, 28)
    assert (found[~may] == 0).all() and (found[may] > 0).all()


@orders
def test_default_settings_keep_the_order(order):
    encoder = AntiCausalEncoder(2, (1, 14, 14), order=order).double().train()
    x = images(4, 1, 14, 14).requires_grad_()
    found = seen_by(encoder(x).loc.sum((0, 2)), x).sum((2, 3))
    assert torch.equal(found > 0, allowed(order, 14))


@pytest.mark.parametrize("encoder", [*ORDERS, "mlp"])
def test_images_of_a_batch_do_not_mix(encoder):
    x = images(4, 1, 6, 5).requires_grad_()
    encoder = MLPEncoder(2, (1, 6, 5), 4).double() if encoder == "mlp" else build(encoder)
    q = encoder(x)
    (gradient,) = torch.autograd.grad(q.loc[2].sum() + q.scale[2].sum(), x)
    assert (gradient.flatten(1).abs().sum(1) > 0).tolist() == [False, False, True, False]
    assert not any(isinstance(part, nn.modules.batchnorm._NormBase) for part in encoder.modules())


@orders
def test_rows_are_averaged_over_themselves_and_those_that_they_may_see(order):
    """An encoder by hand, with one layer: pixels in [−1, 1], mean of h over a row and over rows."""
    encoder, x = build(order, (1, 5, 4), channels=3, layers=1), torch.rand(2, 1, 5, 4).double()
    turned = x.flip(-2, -1) if order == "anti-causal" else x
    rows = encoder.layers[0](encoder.first(2 * turned - 1) + encoder.position).mean(-1).mT
    seen = [5 if order == "unrestricted" else t + 1 for t in range(5)]
    means = torch.stack([rows[:, :count].mean(1) for count in seen], 1)
    raw = encoder.out(torch.cat([rows, means], -1))
    raw = raw.flip(1) if order == "anti-causal" else raw
    q = encoder(x)
    torch.testing.assert_close(q.loc, raw[..., :2])
    torch.testing.assert_close(q.scale, (0.5 * raw[..., 2:]).exp())


def test_orders_differ_in_nothing_but_what_they_see():
    one, *others = (
        {name: value.shape for name, value in build(order).state_dict().items()} for order in ORDERS
    )
    assert all(one == other for other in others)
    x = images(3, 1, 6, 5)  # anti-causal is causal upside down
    q, turned = build("anti-causal")(x), build("causal")(x.flip(-2, -1))
    torch.testing.assert_close(q.loc, turned.loc.flip(-2))
    torch.testing.assert_close(q.scale, turned.scale.flip(-2))


@orders
def test_shapes_and_batches(order):
    encoder, x = build(order), images(6, 1, 6, 5)
    q = encoder(x)
    assert q.batch_shape == (6,) and q.event_shape == (6, 2)
    torch.testing.assert_close(encoder(x.view(2, 3, 1, 6, 5)).loc, q.loc.view(2, 3, 6, 2))
    torch.testing.assert_close(encoder(x[0]).loc, q.loc[0])
    for height, width in [(1, 1), (1, 7), (7, 1), (2, 2)]:
        narrow = build(order, (3, np.int64(height), width), channels=np.int64(4))
        assert narrow(images(2, 3, height, width)).event_shape == (height, 2)


@orders
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_whatever_the_weights_the_rate_is_at_least_delta(order, scale):
    posterior = SequentialPosterior(ALPHA, 14)
    encoder = AntiCausalEncoder(2, (1, 14, 14), posterior, 8, order=order)
    prior, least = AR1Prior(ALPHA, 14), committed_rate(ALPHA, 14)
    for _ in range(5):
        for parameter in encoder.parameters():
            nn.init.normal_(parameter, std=scale)
        rates = kl_divergence(encoder(torch.rand(20, 1, 14, 14)), prior())
        assert (rates >= least - 1e-4).all()  # float32, rates of some nats and more


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AntiCausalEncoder(2, order="backwards"), "'unrestricted', got 'backwards'"),
        (lambda: AntiCausalEncoder(2, kernel=4), "odd kernel of at least 3, got 32, 3 and 4"),
        (lambda: AntiCausalEncoder(2, layers=0), "layers >= 1.* got 32, 0 and 5"),
        (
            lambda: AntiCausalEncoder(2, posterior=SequentialPosterior(ALPHA, 14)),
            r"event \(28, 2\), got \(14, 2\)",
        ),
        (lambda: AntiCausalEncoder(2)(torch.rand(3, 1, 28, 20)), r"\(1, 28, 28\).*got \(3, 1, 28"),
        (lambda: MLPEncoder(5)(torch.rand(3, 1, 28, 20)), r"\(1, 28, 28\).*got \(3, 1, 28, 20\)"),
        (lambda: MLPEncoder(2, posterior=GaussianPosterior(3)), r"event \(2,\), got \(3,\)"),
        (lambda: MLPEncoder((2, 0)), r"expected latents .*got \(2, 0\)"),
    ],
)
def test_bad_settings_and_images_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", [MLPEncoder, AntiCausalEncoder])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8])
def test_images_of_another_type_than_the_weights_are_refused(kind, dtype):
    with pytest.raises(TypeError, match=f"expected torch.float32, as the weights .* got {dtype}"):
        kind(2, (1, 4, 4))(torch.zeros(3, 1, 4, 4).to(dtype))
