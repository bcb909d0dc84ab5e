"""The PixelCNN family, each alone, given a class, a vector z, or one z per row.

All parameters are random, those that start at zero too, and in double precision, so that sums are
exact to rounding and no gradient vanishes by chance.
"""

import itertools

import pytest
import torch
from torch import nn

from vaelib.networks import (
    CausalAttention,
    CausalConv2d,
    CausalMixing,
    horizontal_conv,
    previous_pixel,
    square_conv,
    vertical_conv,
)
from vaelib.pixelcnn import GatedPixelCNN, PixelCNN, PixelSNAIL

SMALL = {
    PixelCNN: {"channels": 6, "layers": 3, "kernel": 3, "first_kernel": 3},
    GatedPixelCNN: {"channels": 6, "layers": 3, "kernel": 3, "first_kernel": 3},
    PixelSNAIL: {"channels": 6, "blocks": 2, "residuals": 1, "heads": 2},
}
CONDITIONS = ["alone", "class", "vector", "vector map", "rows", "rows map", "class and rows"]
LIKELIHOODS = ["bernoulli", "categorical", "logistic_mixture"]

models = pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)
conditions = pytest.mark.parametrize("condition", CONDITIONS)
likelihoods = pytest.mark.parametrize("likelihood", LIKELIHOODS)


def build(kind, condition="alone", image_shape=(1, 3, 3), seed=0, **settings):
    latents = 2 if "vector" in condition else (image_shape[1], 2) if "rows" in condition else None
    settings = {**SMALL[kind], "context": 3, **settings}
    classes = 3 if "class" in condition else None
    inject = "map" if "map" in condition else "bias"
    torch.manual_seed(seed)
    model = kind(latents, image_shape, classes=classes, inject=inject, **settings).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def given(model, *batch, seed=0):
    """p(x | random z and labels) with the batch shape ``batch``; batch () for a model alone."""
    torch.manual_seed(seed)
    z = torch.randn(*batch, *model.latents).double() if model.latents else None
    labels = torch.randint(model.classes, batch) if model.classes else None
    return model(z, labels)


def all_images(shape, levels=2):
    steps = itertools.product(range(levels), repeat=torch.Size(shape).numel())
    return torch.tensor(list(steps)).double().view(-1, *shape) / (levels - 1)


def random_images(n, shape, levels=2, seed=0):
    torch.manual_seed(seed)
    return torch.randint(levels, (n, *shape)).double() / (levels - 1)


# Probabilities


@models
@conditions
@likelihoods
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_probabilities_of_all_512_images_sum_to_one(kind, condition, likelihood, training):
    model, images = build(kind, condition, likelihood=likelihood, levels=2), all_images((1, 3, 3))
    p = given(model.train(training), *[] if condition == "alone" else [2])
    total = p.log_prob(images.unsqueeze(1) if p.batch_shape else images).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_probabilities_sum_to_one_for_every_draw_of_the_dropout():
    model = build(PixelSNAIL, dropout=0.5).train()
    totals = []
    for seed in range(3):
        log_probs = []
        for image in all_images((1, 3, 3)):
            torch.manual_seed(seed)  # the same units left out, whatever the image
            log_probs.append(model().log_prob(image))
        totals.append(torch.stack(log_probs))
    assert torch.stack(totals).exp().sum(1).tolist() == pytest.approx([1, 1, 1], abs=1e-12)
    assert not torch.equal(totals[0], totals[1])


@models
@conditions
@pytest.mark.parametrize("likelihood", LIKELIHOODS[1:])
@pytest.mark.parametrize(
    ("shape", "levels"), [((1, 1, 2), 16), ((1, 2, 2), 4), ((3, 1, 2), 3), ((2, 2, 1), 4)]
)
def test_probabilities_of_all_grey_and_colour_images_sum_to_one(
    kind, condition, likelihood, shape, levels
):
    model = build(kind, condition, shape, likelihood=likelihood, levels=levels, mixtures=2)
    p = given(model, 1) if condition != "alone" else given(model)
    total = p.log_prob(all_images(shape, levels)).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-12)


@models
@pytest.mark.parametrize("likelihood", LIKELIHOODS[1:])
def test_probabilities_of_256_levels_sum_to_one(kind, likelihood):
    model = build(kind, image_shape=(1, 1, 1), likelihood=likelihood)
    total = model().log_prob(all_images((1, 1, 1), 256)).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-12)


@models
@conditions
def test_draws_have_the_probabilities_that_are_scored(kind, condition):
    n, images = 20_000, all_images((1, 2, 2))
    model = build(kind, condition, (1, 2, 2))
    p = given(model)
    drawn = p.sample((n,)).flatten(1) @ 2.0 ** torch.arange(3, -1, -1).double()
    found, expected = drawn.long().bincount(minlength=16) / n, p.log_prob(images).exp()
    # Four and a half standard errors: over all 336 numbers here, a false alarm in 440 seeds.
    assert ((found - expected).abs() < 4.5 * (expected * (1 - expected) / n).sqrt()).all()


@models
@pytest.mark.parametrize("condition", CONDITIONS[1:])
def test_conditions_matter(kind, condition):
    model, x = build(kind, condition), random_images(1, (1, 3, 3))
    one, other = (given(model, seed=seed).log_prob(x) for seed in (0, 1))
    assert (one - other).abs().item() > 1e-3


# Causality, in train mode


def gradients(model, x):
    """|∂ log p(x_i) / ∂ x_j| summed over images, ``(pixels i, channels, pixels j)``."""
    x = x.clone().requires_grad_()
    p = given(model.train(), len(x)) if model.latents or model.classes else model()
    each = p.pixel_log_prob(x).flatten(1).sum(0)  # images do not mix: see below
    rows = [torch.autograd.grad(one, x, retain_graph=True)[0] for one in each]
    return torch.stack(rows).abs().sum(1).flatten(2)


def before(pixels):
    """Whether pixel j comes before pixel i, ``(i, j)``."""
    return torch.ones(pixels, pixels).tril(-1).bool()


@pytest.mark.parametrize("kind", [GatedPixelCNN, PixelSNAIL])
@conditions
@pytest.mark.parametrize("channels", [1, 3])
@likelihoods
def test_every_pixel_sees_all_pixels_before_it_and_no_other(kind, condition, channels, likelihood):
    shape = (channels, 4, 4)
    settings = {"dropout": 0.1} if kind is PixelSNAIL else {}
    model = build(kind, condition, shape, likelihood=likelihood, levels=2, **settings)
    found = gradients(model, random_images(6, shape))  # (16, C, 16)
    past = before(16)
    future = ~past & ~torch.eye(16).bool()  # a pixel's own value is what is scored
    for channel in range(channels):
        seen = found[:, channel]
        assert (seen[future] == 0).all()
        assert (seen[past] > 0).all()


@conditions
@pytest.mark.parametrize("channels", [1, 3])
@likelihoods
def test_plain_pixelcnn_has_exactly_its_blind_spot(condition, channels, likelihood):
    """With 3×3 masks a step up reaches one column to the right: beyond that cone all is blind."""
    shape = (channels, 5, 5)
    model = build(PixelCNN, condition, shape, likelihood=likelihood, levels=2, layers=8)
    found = gradients(model, random_images(6, shape))
    row, column = torch.arange(25) // 5, torch.arange(25) % 5
    up, right = row[:, None] - row, column - column[:, None]  # from pixel i to pixel j
    cone = before(25) & (right <= up)
    # One row up 6 pairs of columns are further apart than 1, two rows up 3 than 2, three up 1:
    assert (before(25) & ~cone).sum() == 4 * 6 + 3 * 3 + 2 * 1
    mine = torch.eye(25).bool()
    for channel in range(channels):
        assert torch.equal((found[:, channel] > 0) & ~mine, cone)


@models
@conditions
@likelihoods
def test_images_of_a_batch_do_not_mix(kind, condition, likelihood):
    model = build(kind, condition, likelihood=likelihood, levels=2).train()
    p, x = given(model, 4), random_images(4, (1, 3, 3)).requires_grad_()
    inputs = [x] if p.z is None else [x, p.z.requires_grad_()]
    one = p.log_prob(x)[2]
    for gradient in torch.autograd.grad(one, inputs):
        touched = gradient.flatten(1).abs().sum(1) > 0
        assert touched.tolist() == [False, False, True, False]


@models
@pytest.mark.parametrize("condition", ["class", "class and rows"])
def test_every_pixel_uses_the_class_of_its_own_image(kind, condition):
    model, x = build(kind, condition).train(), random_images(2, (1, 3, 3))
    z = torch.randn(2, *model.latents).double() if model.latents else None
    one, other = (model(z, torch.tensor(labels)).pixel_log_prob(x) for labels in ([0, 1], [0, 2]))
    assert torch.equal(one[0], other[0])
    assert (one[1] != other[1]).all()


@models
@pytest.mark.parametrize("condition", ["rows", "rows map"])
def test_row_t_uses_the_latents_up_to_t_and_no_other(kind, condition):
    model = build(kind, condition, (1, 4, 4)).train()
    z = torch.randn(6, 4, 2).double().requires_grad_()
    each = model(z).pixel_log_prob(random_images(6, (1, 4, 4))).sum((0, 2))  # one for each row
    rows = [torch.autograd.grad(one, z, retain_graph=True)[0] for one in each]
    found = torch.stack(rows).abs().sum(1)  # (row t, row s, d)
    past = torch.ones(4, 4).tril().bool()
    assert (found[past] > 0).all() and (found[~past] == 0).all()


@models
@pytest.mark.parametrize("condition", ["vector", "vector map"])
def test_every_pixel_uses_the_vector(kind, condition):
    model = build(kind, condition).train()
    z = torch.randn(6, 2).double().requires_grad_()
    each = model(z).pixel_log_prob(random_images(6, (1, 3, 3))).sum(0).flatten()
    rows = [torch.autograd.grad(one, z, retain_graph=True)[0].abs().sum(0) for one in each]
    assert (torch.stack(rows) > 0).all()


def test_causal_mixing_of_rows():
    mixing, z = CausalMixing(4, 2, 3).double(), torch.randn(4, 2).double().requires_grad_()
    mixed = mixing(z.unsqueeze(0)).squeeze(0)
    seen = torch.autograd.functional.jacobian(lambda z: mixing(z[None])[0], z).abs().sum((1, 3))
    assert mixed.shape == (4, 3) and torch.equal(seen > 0, torch.ones(4, 4).tril().bool())
    expected = mixing.mix[2, 0] * mixing.inputs(z)[0]  # row 2 by hand
    expected = expected + mixing.mix[2, 1] * mixing.inputs(z)[1]
    expected = expected + mixing.mix[2, 2] * mixing.inputs(z)[2]
    torch.testing.assert_close(mixed[2], expected)


@models
def test_no_layer_normalises_over_the_batch(kind):
    # In train mode it would carry the future from one pixel to another.
    assert not any(isinstance(layer, nn.modules.batchnorm._NormBase) for layer in kind().modules())


# The cached sampler


def both_samplers(p, shape=(), seed=0, **inpainting):
    generator = torch.Generator()
    return [
        p.sample(shape, cached=cached, generator=generator.manual_seed(seed), **inpainting)
        for cached in (True, False)
    ]


def two_of(model):
    return given(model, 2).expand((2,))


@models
@conditions
@likelihoods
def test_cached_and_naive_sampling_give_the_same_images(kind, condition, likelihood):
    shape = (1 if likelihood == "bernoulli" else 3, 5, 4)
    model = build(kind, condition, shape, likelihood=likelihood)
    cached, naive = both_samplers(two_of(model), (3,))
    assert cached.shape == (3, 2, *shape)
    assert torch.equal(cached, naive)
    assert len(cached.flatten(0, 1).unique(dim=0)) > 1


@models
@conditions
@likelihoods
def test_cached_and_naive_inpainting_give_the_same_images(kind, condition, likelihood):
    shape = (1 if likelihood == "bernoulli" else 3, 5, 4)
    model = build(kind, condition, shape, likelihood=likelihood)
    levels = 2 if likelihood == "bernoulli" else 256
    known = random_images(2, shape, levels)
    torch.manual_seed(1)
    mask = torch.rand(3, 2, 5, 4) < 0.5
    cached, naive = both_samplers(two_of(model), (3,), known=known, mask=mask)
    assert torch.equal(cached, naive)
    kept = mask.unsqueeze(-3).expand_as(cached)
    assert torch.equal(cached[kept], known.expand_as(cached)[kept])


@models
def test_the_samplers_agree_in_single_precision_too(kind):
    torch.manual_seed(0)
    model = kind(image_shape=(1, 9, 8), channels=16)
    cached, naive = both_samplers(model(), (16,))
    assert torch.equal(cached, naive)


@models
def test_wide_kernels_and_one_column(kind):
    """Kernels wider than the image, images of one row or one column."""
    settings = {} if kind is PixelSNAIL else {"kernel": 5, "first_kernel": 7}
    for shape in [(1, 1, 6), (1, 6, 1), (1, 1, 1), (1, 2, 3)]:
        model = build(kind, "rows map", shape, **settings)
        cached, naive = both_samplers(given(model, 8))
        assert torch.equal(cached, naive)


@models
def test_completing_an_image_draws_from_the_conditional(kind):
    """p(lower half | upper half) of all 2×2 images, against the ratio of probabilities."""
    n, model, images = 20_000, build(kind, image_shape=(1, 2, 2)), all_images((1, 2, 2))
    upper = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).double().view(1, 2, 2)  # grey is overwritten
    mask = torch.tensor([[True, True], [False, False]])
    drawn = model().sample((n,), known=upper, mask=mask)
    assert (drawn[:, 0, 0, 0] == 1).all() and (drawn[:, 0, 0, 1] == 0).all()
    joint = model().log_prob(images).exp()[8:12]  # the images 10 / ··
    found = (drawn[:, 0, 1] @ torch.tensor([2.0, 1.0]).double()).long().bincount(minlength=4) / n
    expected = joint / joint.sum()
    assert ((found - expected).abs() < 4.5 * (expected * (1 - expected) / n).sqrt()).all()


def test_sampling_switches_dropout_off_and_back_on():
    model = build(PixelSNAIL, image_shape=(1, 4, 4), dropout=0.5).train()
    cached, naive = both_samplers(model(), (8,))
    assert torch.equal(cached, naive)
    assert model.training and all(layer.training for layer in model.modules())
    x = random_images(1, (1, 4, 4))
    assert model().log_prob(x) != model().log_prob(x)  # dropout draws anew


# The layers


def test_masks_are_those_of_the_papers():
    """Figure 2 of the PixelRNN paper and figure 1 of the Gated PixelCNN paper, upper halves."""
    square = [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert square_conv("A", 1, 1, 5).mask.tolist() == square
    square[2][2] = 1
    assert square_conv("B", 1, 1, 5).mask.tolist() == square
    assert vertical_conv("A", 1, 1, 5).mask.tolist() == [[1] * 5, [1] * 5, [0] * 5]
    assert vertical_conv("B", 1, 1, 5).mask.tolist() == [[1] * 5] * 3
    assert horizontal_conv("A", 1, 1, 5).mask.tolist() == [[1, 1, 0]]
    assert horizontal_conv("B", 1, 1, 5).mask.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("kind", ["A", "B"])
def test_square_convolution_is_the_full_masked_convolution(kind):
    conv = square_conv(kind, 2, 3, 5).double()
    full = torch.zeros(3, 2, 5, 5).double()
    full[:, :, :3] = conv.weight * conv.mask
    x = torch.randn(4, 6, 7, 2).double()
    expected = nn.functional.conv2d(x.movedim(-1, 1), full, conv.bias, padding=2)
    torch.testing.assert_close(conv(x), expected.movedim(1, -1))


def test_attention_is_the_formula():
    layer, h = CausalAttention(4, 1, heads=2).double(), torch.randn(1, 2, 3, 4).double()
    x = torch.randn(1, 2, 3, 1).double()
    before = torch.cat([torch.zeros(1).double(), x.flatten()[:-1]])
    inputs = torch.cat([nn.functional.elu(h).view(6, 4), before.unsqueeze(1)], 1)
    query, key, value = layer.inputs(inputs).view(6, 3, 2, 2).unbind(1)
    read = torch.zeros(6, 2, 2).double()
    for p, head in itertools.product(range(6), range(2)):
        scores = key[: p + 1, head] @ query[p, head] / 2**0.5
        read[p, head] = scores.softmax(0) @ value[: p + 1, head]
    expected = h + layer.out(read.view(1, 2, 3, 4))
    torch.testing.assert_close(layer(h, previous_pixel(x)), expected)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="kind 'A' or 'B', got 'C'"):
        square_conv("C", 1, 1, 3)
    with pytest.raises(ValueError, match="odd kernel size of at least 3, got 4"):
        PixelCNN(kernel=4)
    with pytest.raises(ValueError, match="odd kernel size of at least 3, got 1"):
        GatedPixelCNN(first_kernel=1)
    with pytest.raises(ValueError, match="heads that divide 32 channels, got 5"):
        PixelSNAIL(heads=5)
    with pytest.raises(ValueError, match="layers >= 1, got 0"):
        PixelCNN(layers=0)
    with pytest.raises(ValueError, match="blocks >= 1, got 0"):
        PixelSNAIL(blocks=0)
    with pytest.raises(TypeError, match="depth"):
        GatedPixelCNN(depth=3)
    with pytest.raises(ValueError, match=r"a mask of shape \(1, 3\), got \(3, 3\)"):
        CausalConv2d(1, 1, (1, 3), mask=torch.ones(3, 3))
