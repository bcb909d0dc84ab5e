"""Encoders: their formulas, and by gradient which rows of the image each latent vector has seen.

In train mode and double precision, all parameters random, so that no gradient vanishes by chance.
"""

import numpy as np
import pytest
import torch
from conftest import refusals
from torch import nn

from vaelib import VAE
from vaelib.decoders import ConvDecoder, GaussianMLP
from vaelib.encoders import AntiCausalEncoder, ConvEncoder, MLPEncoder
from vaelib.posteriors import GaussianPosterior, IndependentPosterior, SequentialPosterior
from vaelib.priors import StandardNormal

ORDERS = ["anti-causal", "causal", "unrestricted"]
ALPHA, close = torch.tensor([0.5, 0.9]), torch.testing.assert_close
SEQUENTIAL, INDEPENDENT = SequentialPosterior(ALPHA, 6), IndependentPosterior(0.1, (6, 2))
orders = pytest.mark.parametrize("order", ORDERS)


def random(encoder, std=0.5):
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=std)
    return encoder.train()


def build(order, shape=(1, 6, 5), posterior=None, channels=4, layers=2):
    torch.manual_seed(0)
    return random(AntiCausalEncoder(2, shape, posterior, channels, layers, 3, order).double())


def images(n, *shape):
    return torch.randint(2, (n, *shape)).double().requires_grad_()


@orders
@pytest.mark.parametrize(
    ("shape", "build"),
    [
        ((2, 6, 5), build),
        ((2, 6, 5), lambda order, shape: build(order, shape, SEQUENTIAL)),
        ((2, 6, 5), lambda order, shape: build(order, shape, INDEPENDENT)),
        # More rows than the kernels reach: the running mean closes the gap.
        ((1, 28, 8), lambda order, shape: build(order, shape, layers=1)),
        ((1, 14, 14), lambda order, shape: AntiCausalEncoder(2, shape, order=order).double()),
    ],
)
def test_each_row_sees_the_rows_of_its_order_and_every_one_of_them(order, shape, build):
    every, x = torch.ones(shape[1], shape[1]).bool(), images(8, *shape)
    may = {"anti-causal": every.triu(), "causal": every.tril(), "unrestricted": every}[order]
    q = build(order, shape).train()(x)
    for values in (*q.loc.unbind(-1), *q.scale.unbind(-1)):  # (B, t)
        rows = [torch.autograd.grad(one, x, retain_graph=True)[0] for one in values.sum(0)]
        found = torch.stack(rows).abs().sum(1).movedim(2, 1)  # (t, s, C, W), of all images
        assert (found[~may] == 0).all() and (found[may].sum((1, 2)) > 0).all()
        if shape[1] != 14:  # random weights: every pixel of every channel in these rows
            assert (found[may] > 0).all()


@pytest.mark.parametrize("encoder", [*ORDERS, "mlp"])
def test_images_of_a_batch_do_not_mix(encoder):
    encoder = MLPEncoder(2, (1, 6, 5), 4).double() if encoder == "mlp" else build(encoder)
    x = images(4, 1, 6, 5)
    q = encoder(x)
    (gradient,) = torch.autograd.grad(q.loc[2].sum() + q.scale[2].sum(), x)
    assert (gradient.flatten(1).abs().sum(1) > 0).tolist() == [False, False, True, False]


@orders
def test_rows_are_averaged_over_themselves_and_those_that_they_may_see(order):
    """An encoder by hand, with one layer: pixels in [−1, 1], mean of h over a row and over rows."""
    encoder, x = build(order, (1, 5, 4), layers=1), torch.rand(2, 1, 5, 4).double()
    turned = x.flip(-2, -1) if order == "anti-causal" else x
    rows = encoder.layers[0](encoder.first(2 * turned - 1) + encoder.position).mean(-1).mT
    counts = [5] * 5 if order == "unrestricted" else [1, 2, 3, 4, 5]
    means = torch.stack([rows[:, :count].mean(1) for count in counts], 1)
    raw, q = encoder.out(torch.cat([rows, means], -1)), encoder(x)
    raw = raw.flip(1) if order == "anti-causal" else raw
    close(q.loc, raw[..., :2])
    close(q.scale, (0.5 * raw[..., 2:]).exp())


def test_orders_differ_in_nothing_but_what_they_see():
    states = [build(order).state_dict() for order in ORDERS]
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    assert shapes[0] == shapes[1] == shapes[2]
    x = images(3, 1, 6, 5)  # anti-causal is causal upside down
    q, turned = build("anti-causal")(x), build("causal")(x.flip(-2, -1))
    close(q.loc, turned.loc.flip(-2))
    close(q.scale, turned.scale.flip(-2))


@orders
def test_shapes_and_batches(order):
    encoder, x = build(order), images(6, 1, 6, 5)
    q = encoder(x)
    assert q.batch_shape == (6,) and q.event_shape == (6, 2)
    close(encoder(x.view(2, 3, 1, 6, 5)).loc, q.loc.view(2, 3, 6, 2))
    close(encoder(x[0]).loc, q.loc[0])
    for height, width in [(1, 1), (1, 7), (7, 1), (2, 2)]:
        narrow = build(order, (3, np.int64(height), width), channels=np.int64(4))
        assert narrow(images(2, 3, height, width)).event_shape == (height, 2)


def test_an_mlp_is_the_papers_formula():
    encoder = MLPEncoder(np.int64(5), (1, 4, np.int64(6)), (8, np.int64(7)))
    x = torch.rand(3, 1, 4, 6)
    q, (loc, log_variance) = encoder(x), encoder.network(x.flatten(1)).chunk(2, -1)
    assert q.batch_shape == (3,) and q.event_shape == (5,)
    assert encoder(x[0]).batch_shape == () and encoder(x[None]).batch_shape == (1, 3)
    close(q.loc, loc)
    close(q.scale, (0.5 * log_variance).exp())


FREY, HALF = torch.rand(1, 28, 20), torch.rand(2, 1, 28, 28).half()
REFUSED = [
    (lambda x: AntiCausalEncoder(2, order=x), ["backwards"], "'unrestricted', got 'backwards'"),
    (lambda x: AntiCausalEncoder(2, kernel=x), (1, 4), "odd kernel of at least 3, got 32, 3 and"),
    (lambda x: AntiCausalEncoder(2, layers=x), [0], "layers >= 1.* got 32, 0 and 5"),
    (lambda x: AntiCausalEncoder(2, posterior=x), [SEQUENTIAL], r"event \(28, 2\), got \(6, 2\)"),
    (lambda x: MLPEncoder(2, posterior=x), [GaussianPosterior(3)], r"event \(2,\), got \(3,\)"),
    (MLPEncoder, [0, (2, 0)], "expected latents .* got"),
    (AntiCausalEncoder(2), [FREY], r"\(1, 28, 28\).*got \(1, 28, 20\)"),
    (MLPEncoder(2), [FREY], r"\(1, 28, 28\).*got \(1, 28, 20\)"),
    (AntiCausalEncoder(2), [HALF, HALF.double()], "expected torch.float32, .* got torch.float"),
    (MLPEncoder(2), [HALF, HALF.double()], "expected torch.float32, .* got torch.float"),
]
test_bad_settings_and_images_are_refused = refusals(REFUSED)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 7), (1, 1, 5)])
def test_convolutional_slots_fit_images_of_any_size(shape, likelihood):
    torch.manual_seed(0)
    encoder = ConvEncoder((4, 2), shape, (6, 8), activation=torch.nn.Tanh)
    decoder = ConvDecoder((4, 2), shape, (6, 8), likelihood)
    vae, x = VAE(encoder, StandardNormal((4, 2)), decoder), torch.rand(5, *shape)
    vae.elbo(x, samples=3).value.mean().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    # Leading dimensions are batches like any other.
    q, z = encoder(x.expand(2, *x.shape)), torch.randn(2, 5, 4, 2)
    torch.testing.assert_close(q.loc[1], encoder(x).loc)
    both, one = decoder(z).log_prob(x), decoder(z[1]).log_prob(x)
    torch.testing.assert_close(both[1], one, rtol=1e-4, atol=1e-4)


def test_each_map_of_a_convolutional_encoder_is_half_as_large():
    encoder = ConvEncoder(3, (1, 28, 20), (4, 5, 6))
    x, sizes = torch.rand(1, 1, 28, 20), []
    for layer in encoder.network:
        x = layer(x)
        sizes += [tuple(x.shape[-2:])] if isinstance(layer, nn.Conv2d) else []
    assert sizes == [(14, 10), (7, 5), (4, 3)]


def test_vectors_and_unbounded_means():
    """Standardised vectors: a linear decoder whose means may leave (0, 1)."""
    decoder = GaussianMLP(2, (3,), 4, bounded=False, activation=torch.nn.ReLU)
    with torch.no_grad():
        decoder.network[-1].bias.copy_(torch.tensor([5.0, -3.0, 0.5, 0.0, 0.0, 0.0]))
        decoder.network[-1].weight.zero_()
    likelihood = decoder(torch.randn(7, 2))
    torch.testing.assert_close(likelihood.mean, torch.tensor([5.0, -3.0, 0.5]).expand(7, 3))
    assert MLPEncoder(2, (3,), 4, activation=torch.nn.ReLU)(torch.randn(7, 3)).batch_shape == (7,)
