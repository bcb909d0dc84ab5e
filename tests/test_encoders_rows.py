"""One latent vector per row: which rows of the image each of them has seen, by gradient.

In train mode and double precision, all parameters random, so that no gradient vanishes by chance.
"""

import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

from vaelib import VAE
from vaelib.distributions import committed_rate
from vaelib.encoders import AntiCausalEncoder, MLPEncoder
from vaelib.pixelcnn import GatedPixelCNN, PixelCNN, PixelSNAIL
from vaelib.posteriors import GaussianPosterior, IndependentPosterior, SequentialPosterior
from vaelib.priors import AR1Prior, StandardNormal

ORDERS = ["anti-causal", "causal", "unrestricted"]
ALPHA = torch.tensor([0.5, 0.9])

orders = pytest.mark.parametrize("order", ORDERS)


def build(order, image_shape=(1, 6, 5), posterior=None, seed=0, **settings):
    torch.manual_seed(seed)
    settings = {"channels": 4, "layers": 2, "kernel": 3, **settings}
    encoder = AntiCausalEncoder(2, image_shape, posterior, order=order, **settings).double()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return encoder.train()


def images(n, shape, seed=0):
    torch.manual_seed(seed)
    return torch.randint(2, (n, *shape)).double()


def allowed(order, rows):
    """Whether z_t may see row s, ``(t, s)``."""
    every = torch.ones(rows, rows).bool()
    return {"anti-causal": every.triu(), "causal": every.tril(), "unrestricted": every}[order]


def seen_by(outputs, x):
    """|∂ output_t / ∂ pixel| of images that do not mix: ``(t, C, H, W)``, summed over images."""
    rows = [torch.autograd.grad(one, x, retain_graph=True)[0] for one in outputs]
    return torch.stack(rows).abs().sum(1)


@orders
@pytest.mark.parametrize("part", ["loc", "scale"])
@pytest.mark.parametrize("family", [None, "sequential", "independent"])
def test_each_row_sees_the_rows_of_its_order_and_every_one_of_them(order, part, family):
    shape = (2, 6, 5)
    posterior = {
        "sequential": lambda: SequentialPosterior(ALPHA, 6),
        "independent": lambda: IndependentPosterior(0.1, (6, 2)),
    }.get(family, lambda: None)()
    encoder, x = build(order, shape, posterior), images(8, shape).requires_grad_()
    values = getattr(encoder(x), part)  # (B, H, d)
    may = allowed(order, 6)
    for k in range(2):
        found = seen_by(values[..., k].sum(0), x)  # (t, C, s, W)
        assert (found.movedim(1, 3)[~may] == 0).all()
        assert (found.movedim(1, 3)[may] > 0).all()  # every pixel of every channel in these rows


@orders
def test_far_rows_are_seen_in_large_images(order):
    """More rows than the kernels reach: the running mean closes the gap."""
    encoder = build(order, (1, 28, 8), layers=1)
    x = images(4, (1, 28, 8)).requires_grad_()
    found = seen_by(encoder(x).loc.sum((0, 2)), x).sum(1)  # (t, s, W)
    may = allowed(order, 28)
    assert (found[~may] == 0).all() and (found[may] > 0).all()


@orders
def test_default_settings_keep_the_order(order):
    encoder = AntiCausalEncoder(2, (1, 14, 14), order=order).double().train()
    x = images(4, (1, 14, 14)).requires_grad_()
    found = seen_by(encoder(x).loc.sum((0, 2)), x).sum((1, 3))
    assert torch.equal(found > 0, allowed(order, 14))


@orders
def test_images_of_a_batch_do_not_mix(order):
    encoder, x = build(order), images(4, (1, 6, 5)).requires_grad_()
    q = encoder(x)
    (gradient,) = torch.autograd.grad(q.loc[2].sum() + q.scale[2].sum(), x)
    assert (gradient.flatten(1).abs().sum(1) > 0).tolist() == [False, False, True, False]
    assert not any(isinstance(part, nn.modules.batchnorm._NormBase) for part in encoder.modules())


def test_anti_causal_is_causal_upside_down():
    anti, causal = build("anti-causal"), build("causal")
    x = images(3, (1, 6, 5))
    turned = causal(x.flip(-2, -1))
    torch.testing.assert_close(anti(x).loc, turned.loc.flip(-2))
    torch.testing.assert_close(anti(x).scale, turned.scale.flip(-2))


def test_orders_differ_in_nothing_but_what_they_see():
    shapes = [
        {name: value.shape for name, value in build(order).state_dict().items()} for order in ORDERS
    ]
    assert shapes[0] == shapes[1] == shapes[2]


@orders
def test_shapes_and_batches(order):
    encoder, x = build(order), images(6, (1, 6, 5))
    q = encoder(x)
    assert q.batch_shape == (6,) and q.event_shape == (6, 2)
    torch.testing.assert_close(encoder(x.view(2, 3, 1, 6, 5)).loc, q.loc.view(2, 3, 6, 2))
    torch.testing.assert_close(encoder(x[0]).loc, q.loc[0])


@orders
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_narrow_images(order, size):
    assert build(order, (3, *size))(images(2, (3, *size))).event_shape == (size[0], 2)


# The pair of slots


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_whatever_the_weights_the_rate_is_at_least_delta(order, scale):
    posterior = SequentialPosterior(ALPHA, 14)
    encoder = AntiCausalEncoder(2, (1, 14, 14), posterior, 8, order=order)
    prior, least = AR1Prior(ALPHA, 14), committed_rate(ALPHA, 14)
    for seed in range(5):
        torch.manual_seed(seed)
        for parameter in encoder.parameters():
            nn.init.normal_(parameter, std=scale)
        rates = kl_divergence(encoder(torch.rand(20, 1, 14, 14)), prior())
        assert (rates >= least - 1e-4).all()  # float32, rates of some nats and more


@pytest.mark.parametrize("decoder", [PixelCNN, GatedPixelCNN, PixelSNAIL])
def test_rows_fill_the_slots_of_every_decoder(decoder):
    vae = VAE(
        AntiCausalEncoder(2, (1, 8, 6), SequentialPosterior(ALPHA, 8), channels=4),
        AR1Prior(ALPHA, 8),
        decoder((8, 2), (1, 8, 6), channels=4),
    )
    bound = vae.elbo(images(3, (1, 8, 6)).float(), samples=2)
    assert bound.value.shape == (3,)
    bound.value.sum().backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())
    assert vae.sample(2).shape == (2, 1, 8, 6)


# The same heads on an MLP


def test_an_mlp_can_put_out_rows_and_any_family():
    x = torch.rand(5, 1, 6, 4)
    rows = MLPEncoder((6, 2), (1, 6, 4), 8, SequentialPosterior(ALPHA, 6))(x)
    assert rows.batch_shape == (5,) and rows.event_shape == (6, 2)
    assert (kl_divergence(rows, AR1Prior(ALPHA, 6)()) >= committed_rate(ALPHA, 6) - 1e-5).all()
    vector = MLPEncoder(3, (1, 6, 4), 8, IndependentPosterior(0.1, 3))(x)
    assert (kl_divergence(vector, StandardNormal(3)()) >= 0.3 - 1e-5).all()


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="'unrestricted', got 'backwards'"):
        AntiCausalEncoder(2, order="backwards")
    with pytest.raises(ValueError, match="odd kernel of at least 3, got 32, 3 and 4"):
        AntiCausalEncoder(2, kernel=4)
    with pytest.raises(ValueError, match="layers >= 1"):
        AntiCausalEncoder(2, layers=0)
    with pytest.raises(ValueError, match=r"event \(28, 2\), got \(14, 2\)"):
        AntiCausalEncoder(2, posterior=SequentialPosterior(ALPHA, 14))
    with pytest.raises(ValueError, match=r"event \(2,\), got \(3,\)"):
        MLPEncoder(2, posterior=GaussianPosterior(3))
    with pytest.raises(ValueError, match=r"expected x .*\(1, 28, 28\).*got \(3, 1, 28, 20\)"):
        AntiCausalEncoder(2)(torch.rand(3, 1, 28, 20))
