"""Is a collapse seen, and nothing else taken for one? Against models whose truth is known."""

import math
from functools import partial

import pytest
import torch
from conftest import refusals
from torch import distributions as td
from torch import nn

from vaelib import VAE
from vaelib.decoders import BernoulliMLP
from vaelib.distributions import DiagNormal, committed_rate, committed_variance
from vaelib.encoders import MLPEncoder
from vaelib.inference import diagnostics
from vaelib.inference.diagnostics import collapse_report, mutual_information, probe_accuracy
from vaelib.inference.linear_vae import PPCA
from vaelib.pixelcnn import GatedPixelCNN, PixelSNAIL
from vaelib.priors import AR1Prior, StandardNormal

SHAPE = (1, 4, 4)


class Known(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.forward = forward


def data(n=600):
    """Vectors (n, 3) around a corner of a cube for each of four classes, and the classes."""
    labels = torch.arange(n) % 4
    corners = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    noise = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    return corners[labels] + 0.3 * noise, labels


def vae(encoder, decoder, latents=3):
    return VAE(Known(encoder), StandardNormal(latents), Known(decoder))


def normal(loc, scale):
    return DiagNormal(loc, torch.as_tensor(scale).expand_as(loc))


def affine(mean, scale, shift=0.0):  # an encoder
    return lambda x: normal(mean * x + shift, scale)


def reading(mean, scale=0.3, shift=0.0):  # a decoder that undoes it
    return lambda z: normal((z[..., :3] - shift) / mean, scale)


def deaf(z):
    return normal(torch.zeros(*z.shape[:-1], 3), 1.0)


def padded(scale):  # three latents carry the data; as many again are N(0, scale²)
    scales = torch.tensor([0.3] * 3 + [scale] * 3)
    return lambda x: normal(torch.cat([x, torch.zeros_like(x)], 1), scales)


def tanh_flow(x):
    base = td.Independent(td.Normal(0.5 * x, 0.2), 1)
    return td.TransformedDistribution(base, [td.TanhTransform()])


class Undescribed(td.Distribution):
    """A posterior with nothing but densities and draws."""

    def __init__(self, inside):
        super().__init__(inside.batch_shape, inside.event_shape, validate_args=False)
        self.rsample, self.log_prob = inside.rsample, inside.log_prob


def laplace(x):
    return Undescribed(td.Independent(td.Laplace(x, 0.2), 1))


CASES = {
    "the posterior is the prior": (affine(0.0, 1.0), deaf, "collapsed: the posterior is"),
    "so it is, and the decoder listens": (affine(0.0, 1.0), reading(1.0), "collapsed"),
    "almost": (affine(0.45, 0.9), reading(1.6, 1.0), "nearly collapsed"),
    "paid in vain": (affine(0.0, 0.5, 2.0), deaf, "unused: the rate is paid"),
    "paid in vain, listening": (affine(0.0, 0.5, 2.0), reading(1.0), "unused: the rate is paid"),
    "a little paid in vain": (affine(0.0, 0.7), reading(1.0), "unused: the rate is paid"),
    "nobody listens": (affine(1.0, 0.3), deaf, "unused: the encoder speaks"),
    "used": (affine(1.0, 0.3), reading(1.0), "used"),
    "exactly half of the latents dead": (padded(1.0), reading(1.0), "used"),
    "half of them paid in vain": (padded(1e-3), reading(1.0), "partly used"),
    "far from the prior": (affine(1.0, 0.3, 4.0), reading(1.0, 0.3, 4.0), "partly used"),
    "a large scale": (affine(1e3, 1e2), reading(1e3), "partly used: most of the rate"),
    "a small scale": (affine(0.05, 1e-3), reading(0.05, 0.1), "used"),
    "the wrong sign": (affine(1.0, 0.3), reading(-1.0, 0.9), "misused: the decoder depends"),
    "a flow": (tanh_flow, reading(0.5), "partly used"),
    "neither mean nor KL": (laplace, reading(1.0), "used"),
}


def measured(name):
    encoder, decoder, _ = CASES[name]
    x, labels = data()
    return collapse_report(vae(encoder, decoder, encoder(x).event_shape[0]), x, labels)


@pytest.mark.parametrize("name", sorted(CASES))
def test_verdicts_on_models_whose_truth_is_known(name):
    report = measured(name)
    assert f"verdict: {CASES[name][2]}" in str(report), f"\n{report}"
    assert report.chance == 0.25 and report.wasted >= 0
    # A blind probe: 600 tries of probability ¼ have a standard error of 0.018.
    least, most = (0.9, 1) if report.information > 0.5 else (0, 0.6 if name == "almost" else 0.31)
    assert least <= report.probe_accuracy <= most


def test_measurements_of_these_models():
    report = measured("the posterior is the prior")
    assert report.rate == report.shuffle_rise == report.active_units == report.wasted == 0
    report = measured("paid in vain")
    assert report.rate == pytest.approx(3 * (2 + 0.125 - 0.5 + math.log(2)), rel=1e-5)
    assert report.information == pytest.approx(report.rate - report.wasted, abs=1e-5) == 0
    report = measured("the wrong sign")  # E[(x + z)² − (x' + z)²] / 2σ², each coordinate 1.09
    assert report.shuffle_rise == pytest.approx(-3 * 1.09 / 0.81, abs=4 * report.shuffle_error)
    assert 0 < report.shuffle_error < 0.5
    report = measured("a large scale")  # no more can be said than ½ ln(1 + 109) in each coordinate
    assert report.rate - report.wasted == pytest.approx(1.5 * math.log(110), abs=0.3)
    assert report.rate > 1e6 and measured("a small scale").active_units == 0
    for name in ("a flow", "neither mean nor KL"):
        report = measured(name)
        assert report.active_units == 3 and 2 < report.information and 1 < report.rate < 10
    lines = str(measured("exactly half of the latents dead")).splitlines()
    assert len(lines) == 7 and "at most ln N = 6.40" in lines[1] and "wasted rate" in lines[2]
    assert "3 of 6" in lines[3] and "chance 0.25" in lines[4]


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("variance", [0.008, 0.012])
def test_a_unit_is_active_from_a_variance_of_a_hundredth_on(variance, drawn):
    """A mean of 100 draws of N(m, 1) has that variance by itself, which must not count."""
    x = torch.randn(600, 3)
    x = (x - x.mean(0)) / x.std(0) * math.sqrt(variance)
    encoder = affine(1.0, 1.0)
    model = vae((lambda x: Undescribed(encoder(x))) if drawn else encoder, deaf)
    assert collapse_report(model, x).active_units == (3 if variance > 0.01 else 0)


def test_the_committed_rate_alone_is_not_taken_for_use():
    """δ-VAE at its minimum: KL = δ for every image, and nothing said."""
    alpha = torch.tensor([0.5, 0.9])
    scale = committed_variance(alpha, 8).sqrt()
    encoder = Known(lambda x: DiagNormal(torch.zeros(len(x), 8, 2), scale, 2))
    decoder = Known(lambda z: normal(z[..., :3, 0] + z[..., :3, 1], 1.0))
    report = collapse_report(VAE(encoder, AR1Prior(alpha, 8), decoder), data()[0])
    assert report.rate == pytest.approx(committed_rate(alpha, 8).item(), rel=1e-4)
    assert report.verdict.startswith("unused: the rate is paid") and report.units == 16


VERDICTS = [
    (dict(rate=0.09, information=0.09), "collapsed"),
    (dict(rate=0.11, information=0.09), "nearly collapsed"),
    (dict(rate=0.47, information=0.47, shuffle_rise=1.13, active_units=7), "nearly collapsed"),
    (dict(rate=0.99, information=0.49), "unused: the rate"),
    (dict(rate=0.97, information=0.49), "nearly collapsed"),
    *((dict(information=0.51, shuffle_rise=x), "unused: the encoder") for x in (0.49, -0.49)),
    (dict(shuffle_rise=0.51), "used"),
    (dict(shuffle_rise=-0.51), "misused"),
    (dict(shuffle_rise=5.0, shuffle_error=2.6), "unused: the encoder"),
    (dict(wasted=1.51), "partly used"),
    (dict(wasted=1.49), "used"),
    (dict(rate=9.0, information=6.4, shuffle_rise=40.0, active_units=12, units=28), "used"),
    *((dict([(name, math.nan)]), "unclear") for name in ("rate", "information")),
]


@pytest.mark.parametrize(("numbers", "expected"), VERDICTS)
def test_the_verdict_on_both_sides_of_its_thresholds(numbers, expected):
    report = dict(images=600, rate=3.0, distortion=1.0, information=2.0, active_units=3, units=3)
    report |= dict(probe_accuracy=0.9, chance=0.2, shuffle_rise=9.0, wasted=1.0) | numbers
    assert diagnostics.CollapseReport(**report).verdict.startswith(expected)


def test_mutual_information_is_that_of_a_gaussian_channel():
    """x ~ N(0, s²), z = x + noise: I = ½ ln(1 + s²/σ²) for each of two dimensions."""
    x = 2.0 * torch.randn(2000, 2)
    exact = 2 * 0.5 * math.log(1 + 2.0**2 / 1.5**2)
    # 2,000 terms with a standard deviation near 0.8 nats: a standard error of 0.02.
    assert mutual_information(vae(affine(1.0, 1.5), deaf), x) == pytest.approx(exact, abs=0.08)
    x = 100.0 * torch.randn(50, 3)  # every posterior alone in its place: it saturates at ln N
    found = mutual_information(vae(affine(1.0, 0.01), deaf), x)
    assert found == pytest.approx(math.log(50), abs=1e-4)


def test_rate_is_information_plus_mismatch():
    """pPCA with its own data: q is the posterior, so q(z) is the prior and the rate is I."""
    x = PPCA(torch.randn(6, 2), torch.zeros(6), 1.0).marginal().sample((2000,)).double()
    slots = VAE(*PPCA.fit(x, 2).slots())
    report, q = collapse_report(slots, x), slots.encoder(x)
    assert report.rate == pytest.approx(td.kl_divergence(q, slots.prior()).mean().item())
    assert report.information == pytest.approx(report.rate, abs=0.15)
    assert report.wasted < 0.15
    assert math.isnan(report.probe_accuracy) and "probe" not in str(report)
    # Shifted by 3 in each latent, the rate rises by ½ 3² twice, and all of it is wasted.
    with torch.no_grad():
        slots.encoder.loc.bias += 3
    moved = collapse_report(slots, x)
    assert moved.rate - report.rate == pytest.approx(9 + 3 * q.loc.sum(1).mean().item(), rel=1e-4)
    assert moved.wasted - report.wasted == pytest.approx(9, abs=0.1)


@pytest.mark.parametrize("latents", [3, (4, 2)])
@pytest.mark.parametrize("kind", [BernoulliMLP, GatedPixelCNN, PixelSNAIL])
def test_any_slots_will_do_and_nothing_is_changed(latents, kind):
    """Neither the mode (with dropout, both give one answer) nor the caller's random state."""
    small = {BernoulliMLP: {}, PixelSNAIL: {"channels": 4, "dropout": 0.9}}
    decoder = kind(latents, SHAPE, **small.get(kind, {"channels": 4}))
    model = VAE(MLPEncoder(latents, SHAPE, 6), StandardNormal(latents), decoder)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, labels, state = torch.rand(40, *SHAPE).round(), torch.arange(40) % 3, torch.get_rng_state()
    report = collapse_report(model.train(), x, labels, batch_size=16)
    assert report.units == (8 if latents == (4, 2) else 3) and report.images == 40
    assert math.isfinite(report.rate + report.information + report.shuffle_rise)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert collapse_report(model.eval(), x, labels, batch_size=16) == report
    assert not model.training and collapse_report(model, x, labels, seed=1) != report


def test_pieces_do_not_change_the_answer(monkeypatch):
    x, labels = data(101)
    model = vae(affine(1.0, 0.5), reading(1.0))
    whole = collapse_report(model, x, labels, batch_size=101)
    parts = collapse_report(model, x, labels, batch_size=7)
    assert parts.rate == pytest.approx(whole.rate, rel=1e-5)
    # Other draws of z, whose standard deviation is 0.07 nats.
    assert parts.information == pytest.approx(whole.information, abs=0.3)
    found = []
    for numbers in (diagnostics.PAIRS, 5000, 1):  # all pairs, 16 images, one image at once
        monkeypatch.setattr(diagnostics, "PAIRS", numbers)
        torch.manual_seed(0)
        found.append(mutual_information(model, x))
    assert found[1:] == pytest.approx([found[0]] * 2, abs=1e-5)


def test_a_probe_reads_means_that_tell_the_decoder_nothing():
    """Why samples: the means move by a millionth of the noise, and a probe of them reads all."""
    x, labels = data()
    q = normal(1e-6 * x.double(), 1.0)
    assert probe_accuracy(q.loc, labels) > 0.9
    assert probe_accuracy(q.sample(), labels) == pytest.approx(0.25, abs=0.06)


def test_no_row_stays_in_its_place():
    z = torch.stack([diagnostics.shuffled(torch.arange(7)) for _ in range(20)])
    assert (z != torch.arange(7)).all() and (z.sort(1).values == torch.arange(7)).all()


MODEL = vae(affine(1, 1), deaf)
refused = {
    "at least 20 images.*got 19": {"x": torch.zeros(19, 3), "labels": None},
    "batch_size >= 1.*got 600 and 0": {"batch_size": 0},
    "integer labels, got torch.float32": {"labels": torch.zeros(600)},
    r"shape \(600,\), got \(599,\)": {"labels": torch.zeros(599).long()},
    "got 1 classes": {"labels": torch.zeros(600).long()},
    "got 600 classes with at least 1": {"labels": torch.arange(600)},
}
BAD = [
    (lambda s: collapse_report(MODEL, **{"x": data()[0], "labels": data()[1]} | s), [s], message)
    for message, s in refused.items()
]
BAD += [
    (partial(f, MODEL), [torch.zeros(600)], "a batch")
    for f in (collapse_report, mutual_information)
]
test_bad_input_is_named = refusals(BAD)
