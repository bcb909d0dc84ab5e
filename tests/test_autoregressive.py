"""Pixel models as distributions and as the decoder's slot: shapes, conditions, errors."""

import pytest
import torch
from torch import nn

from vaelib.autoregressive import AutoregressiveImage, PixelModel
from vaelib.decoders import BernoulliMLP
from vaelib.encoders import MLPEncoder
from vaelib.likelihood import importance_sampled
from vaelib.pixelcnn import GatedPixelCNN, PixelCNN
from vaelib.priors import StandardNormal
from vaelib.vae import VAE

SHAPE = (1, 4, 3)
SMALL = {"image_shape": SHAPE, "channels": 4, "layers": 1, "kernel": 3, "first_kernel": 3}


def bits(*batch):
    return torch.rand(*batch, *SHAPE).round()


@pytest.mark.parametrize("latents", [5, (4, 2)])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_the_batch_of_z_is_kept(latents, batch):
    model = GatedPixelCNN(latents, **SMALL)
    p = model(torch.randn(*batch, *model.latents))
    assert isinstance(p, AutoregressiveImage)
    assert p.batch_shape == batch and p.event_shape == SHAPE
    assert p.sample().shape == (*batch, *SHAPE)
    assert p.sample((7,)).shape == (7, *batch, *SHAPE)
    assert p.log_prob(p.sample((7,))).shape == (7, *batch)
    assert p.pixel_log_prob(bits()).shape == (*batch, 4, 3)


def test_a_model_alone_has_no_batch():
    p = GatedPixelCNN(**SMALL)()
    assert p.batch_shape == () and p.sample().shape == SHAPE
    assert p.log_prob(bits()).shape == () and p.log_prob(bits(2, 3)).shape == (2, 3)


def test_every_pair_of_image_and_z_is_scored_as_if_alone():
    model = GatedPixelCNN(5, classes=3, **SMALL).double()
    z, labels, x = torch.randn(2, 3, 5).double(), torch.randint(3, (2, 3)), bits(3).double()
    together = model(z, labels).log_prob(x)  # images (3,) against conditions (2, 3)
    for i in range(2):
        for j in range(3):
            alone = model(z[i, j], labels[i, j]).log_prob(x[j])
            torch.testing.assert_close(together[i, j], alone)


def test_pixels_add_up_to_the_image():
    p, x = GatedPixelCNN(**SMALL)(), bits(5)
    torch.testing.assert_close(p.log_prob(x), p.pixel_log_prob(x).sum((1, 2)))


def test_expand():
    model = GatedPixelCNN(5, **SMALL)
    p = model(torch.randn(5))
    wide = p.expand((6,))
    assert wide.batch_shape == (6,) and wide.sample((2,)).shape == (2, 6, *SHAPE)
    x = bits()
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x).expand(6))


def test_fills_the_decoder_slot():
    decoder = PixelCNN(5, **SMALL)
    vae = VAE(MLPEncoder(5, SHAPE, hidden=8), StandardNormal(5), decoder)
    x = bits(6)
    bound = vae.elbo(x, samples=3)
    assert bound.value.shape == (6,)
    bound.value.mean().backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())
    assert vae.sample(2).shape == (2, *SHAPE) and vae.reconstruct(x).shape == x.shape
    assert importance_sampled(vae, x, samples=5).shape == (6,)
    rows = GatedPixelCNN((4, 2), **SMALL)
    assert rows(StandardNormal((4, 2))().sample((6,))).log_prob(x).shape == (6,)


def test_every_parameter_is_used():
    """Wrappers for several devices stop at parameters without a gradient."""
    for inject in ("bias", "map"):
        for latents in (None, 5, (4, 2)):
            for position in (True, False):
                model = GatedPixelCNN(latents, inject=inject, position=position, **SMALL)
                z = torch.randn(2, *model.latents) if latents else None
                model(z).log_prob(bits(2)).sum().backward()
                assert all(p.grad is not None for p in model.parameters())


def test_position_bias_alone_tells_where_a_pixel_is():
    """With all weights at zero but one, an independent probability remains for each pixel."""
    model = PixelCNN(**SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.context.position.copy_(torch.randn(1, 4, 3, 32))
        nn.init.normal_(model.last_context.weight)
        nn.init.normal_(model.pixels.logits.weight)
    white = model().pixel_log_prob(torch.ones(SHAPE))
    black = model().pixel_log_prob(torch.zeros(SHAPE))
    assert len(white.flatten().unique()) == 12  # a probability of its own at each position
    x = bits(5)
    expected = torch.where(x.squeeze(1) == 1, white, black)
    torch.testing.assert_close(model().pixel_log_prob(x), expected)


def test_sampling_depends_on_the_seed_alone():
    p = GatedPixelCNN(**SMALL)()
    torch.manual_seed(3)
    first = p.sample((4,))
    torch.manual_seed(3)
    assert torch.equal(p.sample((4,)), first)
    assert not torch.equal(p.sample((4,)), first)


def test_sampling_carries_no_gradient_and_leaves_what_is_known():
    known = bits(2).requires_grad_()
    before = known.detach().clone()
    drawn = GatedPixelCNN(**SMALL)().sample((2,), known=known, mask=torch.rand(4, 3) < 0.5)
    assert not drawn.requires_grad and torch.equal(known, before)


@pytest.mark.parametrize("wrong", [(2, 4, 3), (2, 1, 3, 4), (2, 3, 4, 3), (4, 3)])
def test_log_prob_refuses_other_event_shapes(wrong):
    with pytest.raises(ValueError, match="expected value of shape"):
        GatedPixelCNN(**SMALL)().log_prob(torch.zeros(wrong))


@pytest.mark.parametrize("pixel", [-1.0, 1.5, 0.5, float("nan")])
def test_log_prob_refuses_pixels_that_are_not_binary(pixel):
    x = bits(2)
    x[1, 0, 2, 1] = pixel
    with pytest.raises(ValueError, match=r"expected pixels k/1 .* got"):
        GatedPixelCNN(**SMALL)().log_prob(x)


def test_log_prob_refuses_batches_that_do_not_fit():
    with pytest.raises(RuntimeError, match=r"[Ss]hape mismatch|broadcast"):
        GatedPixelCNN(5, **SMALL)(torch.randn(3, 5)).log_prob(bits(2))


def test_wrong_conditions_are_named():
    alone, given = GatedPixelCNN(**SMALL), GatedPixelCNN((4, 2), classes=3, **SMALL)
    z, labels = torch.randn(6, 4, 2), torch.arange(6) % 3
    given(z, labels)
    for arguments, message in [
        ((None, labels), r"expected z of shape \(\*batch, \*\(4, 2\)\), got none"),
        ((z, None), r"expected labels of shape \(\*batch,\), got none"),
        ((torch.randn(6, 4, 3), labels), r"expected z of shape .*got \(6, 4, 3\)"),
        ((z, labels[:5]), r"one batch shape, got .*6.*5"),
        ((z, labels + 1), r"expected labels 0 … 2, got 1 … 3"),
        ((z, labels.float()), r"expected integer labels, got torch.float32"),
        ((z / 0, labels), r"expected finite z"),
    ]:
        with pytest.raises(ValueError, match=message):
            given(*arguments)
    with pytest.raises(ValueError, match=r"expected no z, got \(6, 4, 2\)"):
        alone(z)
    with pytest.raises(ValueError, match=r"expected no labels, got \(6,\)"):
        alone(labels=labels)


def test_wrong_inpainting_is_named():
    p, mask = GatedPixelCNN(**SMALL)(), torch.ones(4, 3, dtype=torch.bool)
    for inpainting, message in [
        ({"known": bits()}, "both known and mask"),
        ({"known": bits(), "mask": mask.float()}, "expected a boolean mask"),
        ({"known": bits(), "mask": mask[:3]}, r"mask of shape \(\*batch, 4, 3\), got .*\(3, 3\)"),
        ({"known": bits()[..., :2], "mask": mask}, "expected known of shape"),
        ({"known": bits() + 0.5, "mask": mask}, "expected pixels k/1"),
    ]:
        with pytest.raises(ValueError, match=message):
            p.sample(**inpainting)
    unknown = torch.full(SHAPE, float("nan"))
    assert p.sample(known=unknown, mask=~mask).shape == SHAPE  # nothing of it is used


def test_wrong_settings_are_named():
    for settings, message in [
        ({"latents": (3, 2)}, "one vector for each of 4 rows, got 3"),
        ({"latents": 0}, "expected latents None, d or"),
        ({"latents": (4, 2, 1)}, "expected latents None, d or"),
        ({"image_shape": (4, 3)}, r"expected image_shape \(C, H, W\), got \(4, 3\)"),
        ({"channels": 0}, "expected channels >= 1, got 0"),
        ({"classes": 0}, "expected classes >= 1, got 0"),
        ({"context": 0}, "expected context >= 1, got 0"),
        ({"inject": "gate"}, "expected inject 'bias' or 'map', got 'gate'"),
        ({"likelihood": "normal"}, r"expected likelihood in \['bernoulli', .*, got 'normal'"),
    ]:
        with pytest.raises(ValueError, match=message):
            GatedPixelCNN(**{**SMALL, **settings})


def test_the_mean_is_not_invented():
    vae = VAE(MLPEncoder(5, SHAPE), StandardNormal(5), GatedPixelCNN(5, **SMALL))
    with pytest.raises(NotImplementedError, match="sum over all images"):
        vae.sample(2, mean=True)


def test_state_dict_round_trip():
    made = [GatedPixelCNN((4, 2), classes=3, **SMALL) for _ in range(2)]
    made[1].load_state_dict(made[0].state_dict())
    z, labels, x = torch.randn(2, 4, 2), torch.tensor([0, 2]), bits(2)
    assert torch.equal(*(model(z, labels).log_prob(x) for model in made))
    assert not any("mask" in name or "past" in name for name in made[0].state_dict())


def test_a_pixelcnn_without_use_for_z_can_stand_in_for_an_mlp():
    """Both decoders answer the same call with the same shapes."""
    z, x = torch.randn(2, 3, 5), bits(3)
    for decoder in (BernoulliMLP(5, SHAPE, hidden=8), GatedPixelCNN(5, **SMALL)):
        p = decoder(z)
        assert (p.batch_shape, p.event_shape) == ((2, 3), SHAPE)
        assert p.log_prob(x).shape == (2, 3)
    assert issubclass(GatedPixelCNN, PixelModel)
