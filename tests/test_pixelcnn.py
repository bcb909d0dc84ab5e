"""Pixel models, each alone, given a class, a vector z, or one z per row, as distributions.

All parameters are random, those that start at zero too, and in double precision, so that sums are
exact to rounding and no gradient vanishes by chance.
"""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import refusals
from torch import nn
from torch.func import functional_call

from vaelib import VAE
from vaelib.decoders import VariationalWeights
from vaelib.distributions import no_validation
from vaelib.encoders import MLPEncoder
from vaelib.inference.likelihood import importance_sampled
from vaelib.pixelcnn import AutoregressiveImage, GatedPixelCNN, PixelCNN, PixelSNAIL, layers
from vaelib.priors import StandardNormal

SMALL = {
    PixelCNN: {"channels": 6, "layers": 3, "kernel": 3, "first_kernel": 3},
    GatedPixelCNN: {"channels": 6, "layers": 3, "kernel": 3, "first_kernel": 3},
    PixelSNAIL: {"channels": 6, "blocks": 2, "residuals": 1, "heads": 2},
}
SHAPE = (1, 4, 3)
FAST = {"image_shape": SHAPE, "channels": 4, "layers": 1, "kernel": 3, "first_kernel": 3}
CONDITIONS = ["alone", "class", "vector", "vector map", "rows", "rows map", "class and rows"]
LIKELIHOODS = ["bernoulli", "categorical", "logistic_mixture"]

models = pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)
conditions = pytest.mark.parametrize("condition", CONDITIONS)
likelihoods = pytest.mark.parametrize("likelihood", LIKELIHOODS)


def random(module):
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def build(kind, condition="alone", image_shape=(1, 3, 3), seed=0, **settings):
    latents = 2 if "vector" in condition else (image_shape[1], 2) if "rows" in condition else None
    settings = {**SMALL[kind], "context": 3, **settings}
    settings |= {"inject": "map"} if "map" in condition else {}
    torch.manual_seed(seed)
    classes = 3 if "class" in condition else None
    return random(kind(latents, image_shape, classes=classes, **settings))


def given(model, *batch, seed=0):
    """p(x | random z and labels) with the batch shape ``batch``; batch () for a model alone."""
    torch.manual_seed(seed)
    z = torch.randn(*batch, *model.latents).double() if model.latents else None
    labels = torch.randint(model.classes, batch) if model.classes else None
    return model(z, labels)


def all_images(shape, levels=2):
    steps = itertools.product(range(levels), repeat=torch.Size(shape).numel())
    return torch.tensor(list(steps)).double().view(-1, *shape) / (levels - 1)


def random_images(n, shape, levels=2):
    torch.manual_seed(0)
    return torch.randint(levels, (n, *shape)).double() / (levels - 1)


def bits(*batch):
    return torch.rand(*batch, *SHAPE).round()


@models
@conditions
@likelihoods
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_probabilities_of_all_512_images_sum_to_one(kind, condition, likelihood, training):
    model, images = build(kind, condition, likelihood=likelihood, levels=2), all_images((1, 3, 3))
    p = given(model.train(training), *[] if condition == "alone" else [2])
    total = p.log_prob(images.unsqueeze(1) if p.batch_shape else images).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_probabilities_sum_to_one_whatever_the_dropout_leaves_out():
    model = build(PixelSNAIL, image_shape=(1, 2, 3), dropout=0.5).train()

    def log_prob(seed, image):
        torch.manual_seed(seed)  # the same units left out, whatever the image
        return model().log_prob(image).item()

    log_probs = [[log_prob(seed, image) for image in all_images((1, 2, 3))] for seed in range(3)]
    totals = torch.tensor(log_probs, dtype=torch.float64).exp().sum(1)
    assert totals.tolist() == pytest.approx([1, 1, 1], abs=1e-12) and log_probs[0] != log_probs[1]


@models
@conditions
@pytest.mark.parametrize("likelihood", LIKELIHOODS[1:])
def test_probabilities_of_all_grey_and_colour_images_sum_to_one(kind, condition, likelihood):
    sizes = [((1, 1, 2), 16), ((1, 2, 2), 4), ((3, 1, 2), 3), ((2, 2, 1), 4), ((1, 1, 1), 256)]
    for shape, levels in sizes:
        model = build(kind, condition, shape, likelihood=likelihood, levels=levels, mixtures=2)
        total = given(model).log_prob(all_images(shape, levels)).exp().sum().item()
        assert total == pytest.approx(1, abs=1e-12)


@models
@conditions
def test_draws_and_completed_images_have_the_probabilities_that_are_scored(kind, condition):
    n, images = 20_000, all_images((1, 2, 2))
    p = given(build(kind, condition, (1, 2, 2)))
    upper = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).double().view(1, 2, 2)  # grey is overwritten
    mask = torch.tensor([[True, True], [False, False]])
    joint = p.log_prob(images).exp()
    half = torch.zeros(16).double()
    half[8:12] = joint[8:12] / joint[8:12].sum()  # the images 10 / ··, given their upper half
    for expected, known in ((joint, {}), (half, {"known": upper, "mask": mask})):
        drawn = p.sample((n,), **known).flatten(1) @ 2.0 ** torch.arange(3, -1, -1).double()
        found = drawn.long().bincount(minlength=16) / n
        # Four and a half standard errors: a false alarm in about 350 seeds.
        assert ((found - expected).abs() <= 4.5 * (expected * (1 - expected) / n).sqrt()).all()


@models
@conditions
@pytest.mark.parametrize("channels", [1, 3])
@likelihoods
def test_every_pixel_sees_all_pixels_before_it_and_no_other(kind, condition, channels, likelihood):
    """Gradients of log p(x_i) to every x_j; the plain PixelCNN has exactly its blind spot."""
    deep = {PixelCNN: {"layers": 8}, GatedPixelCNN: {}, PixelSNAIL: {"dropout": 0.1}}[kind]
    model = build(kind, condition, (channels, 5, 5), likelihood=likelihood, levels=2, **deep)
    x = random_images(6, (channels, 5, 5)).requires_grad_()
    p = given(model.train(), *[] if condition == "alone" else [6])
    each = p.pixel_log_prob(x).flatten(1).sum(0)  # images do not mix: see below
    found = torch.stack([torch.autograd.grad(one, x, retain_graph=True)[0] for one in each])
    found = found.abs().sum(1).flatten(2)  # (pixels i, channels, pixels j)
    visible = torch.ones(25, 25).tril(-1).bool()
    if kind is PixelCNN:  # with 3×3 masks a step up reaches one column to the right
        row, column = torch.arange(25) // 5, torch.arange(25) % 5
        up, right = row[:, None] - row, column - column[:, None]  # from pixel i to pixel j
        # One row up 6 pairs of columns are further apart than 1, two rows up 3 than 2, three up 1:
        assert (visible & (right > up)).sum() == 4 * 6 + 3 * 3 + 2 * 1
        visible &= right <= up
    others = ~torch.eye(25).bool()  # a pixel's own value is what is scored
    for channel in range(channels):
        assert torch.equal((found[:, channel] > 0) & others, visible)


@models
@conditions
@likelihoods
def test_images_of_a_batch_do_not_mix(kind, condition, likelihood):
    model = build(kind, condition, likelihood=likelihood, levels=2).train()
    p, x = given(model, 4), random_images(4, (1, 3, 3)).requires_grad_()
    inputs = [x] if p.z is None else [x, p.z.requires_grad_()]
    for gradient in torch.autograd.grad(p.log_prob(x)[2], inputs):
        touched = gradient.flatten(1).abs().sum(1) > 0
        assert touched.tolist() == [False, False, True, False]


@models
@pytest.mark.parametrize("condition", ["class", "class and rows"])
def test_every_pixel_uses_the_class_of_its_own_image(kind, condition):
    model, x = build(kind, condition).train(), random_images(2, (1, 3, 3))
    z = torch.randn(2, *model.latents).double() if model.latents else None
    one, other = (model(z, torch.tensor(labels)).pixel_log_prob(x) for labels in ([0, 1], [0, 2]))
    assert torch.equal(one[0], other[0]) and (one[1] != other[1]).all()


@models
@pytest.mark.parametrize("condition", ["vector", "vector map", "rows", "rows map"])
def test_pixels_use_the_vector_or_the_vectors_up_to_their_row_and_no_other(kind, condition):
    model = build(kind, condition, (1, 4, 4)).train()
    z = torch.randn(6, *model.latents).double().requires_grad_()
    each = model(z).pixel_log_prob(random_images(6, (1, 4, 4))).sum(0).flatten()
    found = torch.stack([torch.autograd.grad(one, z, retain_graph=True)[0] for one in each])
    found = found.abs().sum(1) > 0  # (pixels, *latents)
    used = torch.ones_like(found)
    if "rows" in condition:
        used &= (torch.arange(16)[:, None] // 4 >= torch.arange(4)).unsqueeze(-1)
    assert torch.equal(found, used)


def both_samplers(p, shape=(), **inpainting):
    seeded = torch.Generator().manual_seed
    draws = (True, False)
    return [p.sample(shape, cached=one, generator=seeded(0), **inpainting) for one in draws]


@models
@conditions
@likelihoods
def test_cached_and_naive_sampling_give_the_same_images(kind, condition, likelihood):
    shape, levels = ((1, 5, 4), 2) if likelihood == "bernoulli" else ((3, 5, 4), 256)
    p = given(build(kind, condition, shape, likelihood=likelihood), 2).expand((2,))
    cached, naive = both_samplers(p, (3,))
    assert cached.shape == (3, 2, *shape) and torch.equal(cached, naive)
    assert len(cached.flatten(0, 1).unique(dim=0)) > 1
    known, mask = random_images(2, shape, levels), torch.rand(3, 2, 5, 4) < 0.5
    cached, naive = both_samplers(p, (3,), known=known, mask=mask)
    assert torch.equal(cached, naive)
    kept = mask.unsqueeze(-3).expand_as(cached)
    assert torch.equal(cached[kept], known.expand_as(cached)[kept])


@models
@pytest.mark.parametrize("shape", [(1, 1, 6), (1, 6, 1), (1, 1, 1), (1, 2, 3), (1, 9, 8)])
def test_the_samplers_agree_in_single_precision_and_on_images_smaller_than_kernels(kind, shape):
    cached, naive = both_samplers(kind(image_shape=shape, channels=16)(), (16,))
    assert torch.equal(cached, naive)


def test_sampling_switches_dropout_off_and_back_on_also_after_an_error(monkeypatch):
    model = build(PixelSNAIL, image_shape=(1, 4, 4), dropout=0.5).train()
    cached, naive = both_samplers(model(), (8,))
    assert torch.equal(cached, naive)
    monkeypatch.setattr(model.pixels, "draw", lambda features, uniforms: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model().sample()
    assert all(layer.training for layer in model.modules())
    x = random_images(1, (1, 4, 4))
    assert model().log_prob(x) != model().log_prob(x)  # dropout draws anew


def test_sampling_depends_on_the_seed_alone_and_carries_no_gradient():
    p = GatedPixelCNN(**FAST)()
    torch.manual_seed(3)
    first = p.sample((4,))
    torch.manual_seed(3)
    assert torch.equal(p.sample((4,)), first) and not torch.equal(p.sample((4,)), first)
    known = bits(2).requires_grad_()
    before = known.detach().clone()
    drawn = p.sample((2,), known=known, mask=torch.rand(4, 3) < 0.5)
    assert not drawn.requires_grad and torch.equal(known, before)
    nothing = torch.full(SHAPE, float("nan"))  # nothing of it is used
    assert p.sample(known=nothing, mask=torch.zeros(4, 3, dtype=torch.bool)).shape == SHAPE


MASKS = [
    (layers.square_conv, "A", ["11111", "11111", "11000", "00000", "00000"]),
    (layers.square_conv, "B", ["11111", "11111", "11100", "00000", "00000"]),
    (layers.vertical_conv, "A", ["11111", "11111", "00000", "00000", "00000"]),
    (layers.vertical_conv, "B", ["11111", "11111", "11111", "00000", "00000"]),
    (layers.horizontal_conv, "A", ["00000", "00000", "11000", "00000", "00000"]),
    (layers.horizontal_conv, "B", ["00000", "00000", "11100", "00000", "00000"]),
]


@pytest.mark.parametrize(("make", "kind", "mask"), MASKS)
def test_convolutions_have_the_masks_of_the_papers(make, kind, mask):
    """Figure 2 of the PixelRNN paper and figure 1 of the Gated PixelCNN paper."""
    conv, x = make(kind, 2, 3, 5).double(), torch.randn(4, 6, 7, 2).double()
    height, width = conv.mask.shape
    full = torch.zeros(3, 2, 5, 5).double()
    full[:, :, 3 - height : 3, :width] = conv.weight
    full = full * torch.tensor([[float(one) for one in row] for row in mask])
    expected = nn.functional.conv2d(x.movedim(-1, 1), full, conv.bias, padding=2)
    torch.testing.assert_close(conv(x), expected.movedim(1, -1))


def test_layers_are_their_formulas():
    h, v = torch.randn(2, 2, 4, 5, 3).double()
    maps, elu = [torch.randn(2, 4, 5, 3).double()], nn.functional.elu
    block, gated = random(layers.MaskedBlock(3, 3, 3)), random(layers.GatedLayer(3, 3, 3))
    residual = random(layers.GatedResidual(3, 3))
    inside = block.conv(h.relu()) + maps[0] @ block.context.weight.T
    torch.testing.assert_close(block(h, maps), h + block.out(inside.relu()))
    inside = residual.first(elu(h)) + maps[0] @ residual.first_context.weight.T
    inside = residual.second(elu(inside)) + maps[0] @ residual.second_context.weight.T
    value, gate = inside.chunk(2, -1)
    torch.testing.assert_close(residual(h, maps), h + value * gate.sigmoid())
    a, (down, to_h) = gated.vertical(v), gated.vertical_step(v, maps)
    value, gate = (a + maps[0] @ gated.vertical_context.weight.T).chunk(2, -1)
    torch.testing.assert_close(down, v + value.tanh() * gate.sigmoid())
    torch.testing.assert_close(to_h, gated.link(a) + maps[0] @ gated.horizontal_context.weight.T)
    value, gate = (gated.horizontal(h) + to_h).chunk(2, -1)
    expected = h + gated.out(value.tanh() * gate.sigmoid())
    torch.testing.assert_close(gated.horizontal_step(h, to_h), expected)


def test_attention_is_the_formula():
    layer, h = layers.CausalAttention(4, 1, heads=2).double(), torch.randn(1, 2, 3, 4).double()
    x = torch.randn(1, 2, 3, 1).double()
    before = torch.cat([torch.zeros(1).double(), x.flatten()[:-1]])
    inputs = torch.cat([nn.functional.elu(h).view(6, 4), before.unsqueeze(1)], 1)
    query, key, value = layer.inputs(inputs).view(6, 3, 2, 2).unbind(1)
    read = torch.zeros(6, 2, 2).double()
    for p, head in itertools.product(range(6), range(2)):
        scores = key[: p + 1, head] @ query[p, head] / 2**0.5
        read[p, head] = scores.softmax(0) @ value[: p + 1, head]
    expected = h + layer.out(read.view(1, 2, 3, 4))
    torch.testing.assert_close(layer(h, layers.previous_pixel(x)), expected)


def test_causal_mixing_of_rows():
    mixing, z = layers.CausalMixing(4, 2, 3).double(), torch.randn(4, 2).double()
    seen = torch.autograd.functional.jacobian(lambda z: mixing(z[None])[0], z).abs().sum((1, 3))
    assert torch.equal(seen > 0, torch.ones(4, 4).tril().bool())
    expected = sum(mixing.mix[2, s] * mixing.inputs(z)[s] for s in range(3))  # row 2 by hand
    torch.testing.assert_close(mixing(z[None])[0, 2], expected)


@pytest.mark.parametrize(
    ("latents", "batch"), [(None, ()), (5, ()), (5, (2, 3)), ((4, 2), ()), ((4, 2), (3,))]
)
def test_the_batch_of_z_is_kept(latents, batch):
    model = GatedPixelCNN(latents, **FAST)
    p = model(torch.randn(*batch, *model.latents)) if latents else model()
    assert isinstance(p, AutoregressiveImage)
    assert p.batch_shape == batch and p.event_shape == SHAPE
    assert p.sample().shape == (*batch, *SHAPE)
    x = p.sample((7,))
    assert x.shape == (7, *batch, *SHAPE) and p.pixel_log_prob(bits()).shape == (*batch, 4, 3)
    torch.testing.assert_close(p.log_prob(x), p.pixel_log_prob(x).sum((-2, -1)))
    assert p.log_prob(x).shape == (7, *batch)


def test_every_pair_of_image_and_condition_is_scored_as_if_alone():
    model = GatedPixelCNN(5, classes=3, **FAST).double()
    z, labels, x = torch.randn(2, 3, 5).double(), torch.randint(3, (2, 3)), bits(3).double()
    together = model(z, labels).log_prob(x)  # images (3,) against conditions (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        alone = model(z[i, j], labels[i, j])
        torch.testing.assert_close(together[i, j], alone.log_prob(x[j]))
        wide = alone.expand((6,))
        assert wide.batch_shape == (6,) and wide.sample((2,)).shape == (2, 6, *SHAPE)
        torch.testing.assert_close(wide.log_prob(x[j]), together[i, j].expand(6))


def test_what_else_a_vae_asks_for():
    vae = VAE(MLPEncoder(5, SHAPE, hidden=8), StandardNormal(5), PixelCNN(5, **FAST))
    assert importance_sampled(vae, bits(6), samples=5).shape == (6,)
    with pytest.raises(NotImplementedError, match="sum over all images"):
        vae.sample(2, mean=True)


@models
@conditions
@pytest.mark.parametrize("position", [True, False])
def test_every_parameter_is_used(kind, condition, position):
    """Wrappers for several devices stop at parameters without a gradient."""
    model = build(kind, condition, position=position)
    given(model, 2).log_prob(random_images(2, (1, 3, 3))).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not position or (model.context.position.grad.abs().sum(-1) > 0).all()


def test_state_dict_round_trip_and_numpys_sizes():
    sizes = {"channels": np.int64(4), "layers": np.int64(1), "kernel": np.int64(3)}
    made = GatedPixelCNN((4, 2), classes=3, **FAST)
    other = GatedPixelCNN((np.int64(4), 2), classes=np.int64(3), **{**FAST, **sizes})
    other.load_state_dict(made.state_dict())
    z, labels, x = torch.randn(2, 4, 2), torch.tensor([0, 2]), bits(2)
    assert torch.equal(made(z, labels).log_prob(x), other(z, labels).log_prob(x))
    assert not any("mask" in name or "past" in name for name in made.state_dict())


@models
@pytest.mark.parametrize("as_parameters", [True, False])
def test_a_distribution_keeps_the_weights_that_it_was_made_with(kind, as_parameters):
    model, other = (build(kind, "class and rows", seed=seed) for seed in (0, 1))
    weights = dict(other.named_parameters())
    if not as_parameters:
        weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    p, x = given(other, 2), random_images(2, (1, 3, 3))
    q = functional_call(model, weights, (p.z, p.labels))
    assert torch.equal(q.pixel_log_prob(x), p.pixel_log_prob(x))
    assert torch.equal(q.expand((3, 2)).log_prob(x), p.expand((3, 2)).log_prob(x))
    assert not torch.equal(q.log_prob(x), model(p.z, p.labels).log_prob(x))
    assert all(map(torch.equal, both_samplers(q, (50,)), both_samplers(p, (50,))))
    found = torch.autograd.grad(q.log_prob(x).sum(), [*weights.values()])
    expected = torch.autograd.grad(p.log_prob(x).sum(), [*other.parameters()])
    torch.testing.assert_close(found, expected)


@models
def test_variational_weights_reach_the_likelihood(kind):
    decoder, x = build(kind, "vector", (3, 3, 3)), random_images(2, (3, 3, 3))
    uncertain, z = VariationalWeights(decoder, scale=1.0), torch.randn(2, 2).double()
    p, q = uncertain(z), uncertain(z)  # two draws of the weights
    for other in (q, decoder(z)):
        assert (p.log_prob(x) != other.log_prob(x)).all()
        assert not torch.equal(p.sample((20,)), other.sample((20,)))
    p.log_prob(x).sum().backward()
    assert all(scale.grad.abs().sum() > 0 for scale in uncertain.log_scales)
    sure = VariationalWeights(decoder, scale=1e-15)
    torch.testing.assert_close(sure(z).log_prob(x), decoder(z).log_prob(x))


SETTINGS = [
    (GatedPixelCNN, {"latents": (3, 2)}, "one vector for each of 28 rows, got 3"),
    (GatedPixelCNN, {"image_shape": (4, 3)}, r"expected image_shape \(C, H, W\), got \(4, 3\)"),
    (GatedPixelCNN, {"inject": "gate"}, "expected inject 'bias' or 'map', got 'gate'"),
    (GatedPixelCNN, {"likelihood": "normal"}, r"likelihood in \['bernoulli', .*, got 'normal'"),
    (PixelCNN, {"kernel": 4}, "odd kernel size of at least 3, got 4"),
    (PixelSNAIL, {"heads": 5}, "heads that divide 32 channels, got 5"),
]
SIZES = {PixelSNAIL: ["blocks", "residuals"], PixelCNN: "channels classes context layers".split()}
for kind, names in SIZES.items():
    SETTINGS += [(kind, {name: 0}, f"whole number >= 1 as {name}, got 0") for name in names]
Z, LABELS, MASK = torch.zeros(6, 4, 2), torch.arange(6) % 3, torch.ones(4, 3, dtype=torch.bool)
ALONE, GIVEN = GatedPixelCNN(**FAST), GatedPixelCNN((4, 2), classes=3, **FAST)
BLACK = torch.zeros(SHAPE)
CALLS = [
    *[(partial(make, **settings), message) for make, settings, message in SETTINGS],
    (partial(layers.square_conv, "C", 1, 1, 3), "kind 'A' or 'B', got 'C'"),
    (lambda: GIVEN(None, LABELS), r"expected z of shape \(\*batch, \*\(4, 2\)\), got none"),
    (lambda: GIVEN(Z), r"expected labels of shape \(\*batch, .*got none"),
    (lambda: GIVEN(Z[..., :1], LABELS), r"expected z of shape .*got \(6, 4, 1\)"),
    (lambda: GIVEN(Z, LABELS[:5]), r"one batch shape, got .*6.*5"),
    (lambda: GIVEN(Z, LABELS + 1), "expected labels 0 … 2, got 1 … 3"),
    (lambda: GIVEN(Z, LABELS.float()), "expected integer labels, got torch.float32"),
    (lambda: GIVEN(Z / 0, LABELS), "expected finite z"),
    (lambda: GIVEN(Z.double(), LABELS), "expected torch.float32, as the weights are, got"),
    (lambda: ALONE(Z), r"expected no z, got \(6, 4, 2\)"),
    (lambda: ALONE(labels=LABELS), r"expected no labels, got \(6,\)"),
    (ALONE().log_prob, [BLACK[0], BLACK.mT[None], BLACK.expand(2, 3, 4, 3)], "value of shape"),
    *[(ALONE().log_prob, [BLACK + p], f"pixels k/1 .*got {p}") for p in (-1, 0.5, 1.5, math.nan)],
    (lambda: ALONE().log_prob(BLACK.long()), "expected torch.float32, as the weights are, got"),
    (lambda: GIVEN(Z, LABELS).log_prob(BLACK.expand(2, *SHAPE)), r"[Ss]hape mismatch|broadcast"),
    (lambda: ALONE().sample(known=BLACK), "both known and mask"),
    (lambda: ALONE().sample(known=BLACK, mask=MASK.float()), "expected a boolean mask"),
    (lambda: ALONE().sample(known=BLACK, mask=MASK[:3]), r"\(\*batch, 4, 3\), got .*\(3, 3\)"),
    (lambda: ALONE().sample(known=BLACK[..., :2], mask=MASK), "expected known of shape"),
    (lambda: ALONE().sample(known=BLACK + 0.5, mask=MASK), "expected pixels k/1"),
]
test_wrong_settings_and_calls_are_named = refusals(CALLS, (TypeError, ValueError, RuntimeError))


def test_values_are_not_looked_at_without_validation():
    with no_validation():
        assert ALONE().log_prob(BLACK + 0.5).isfinite() and GIVEN(Z / 0, LABELS).batch_shape == (6,)
