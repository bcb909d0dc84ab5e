"""Is a collapse seen, and nothing else taken for one? Against models whose truth is known."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Laplace, kl_divergence

from vaelib import VAE
from vaelib.decoders import BernoulliMLP
from vaelib.diagnostics import (
    CollapseReport,
    collapse_report,
    mutual_information,
    probe_accuracy,
    shuffled,
)
from vaelib.distributions import DiagNormal, committed_rate, committed_variance
from vaelib.encoders import MLPEncoder
from vaelib.linear_vae import PPCA
from vaelib.pixelcnn import GatedPixelCNN
from vaelib.priors import AR1Prior, StandardNormal

CLASSES = 4


class Known(nn.Module):
    """A slot that returns ``make(*inputs)``; it has one parameter, to have a device."""

    def __init__(self, make):
        super().__init__()
        self.make, self.nothing = make, nn.Parameter(torch.zeros(()))

    def forward(self, *inputs):
        return self.make(*inputs)


def data(n=600, seed=0):
    """Vectors (n, 3) around a corner of a cube for each of four classes, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    corners = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    return corners[labels] + 0.3 * torch.randn(n, 3, generator=generator), labels


def normal(loc, scale, dims=1):
    return DiagNormal(loc, torch.full_like(loc, scale), dims)


def vae(encoder, decoder, latents=3):
    return VAE(Known(encoder), StandardNormal(latents), Known(decoder))


def blind(x, latents=3, loc=0.0, scale=1.0):
    return normal(torch.full((len(x), latents), loc), scale)


def deaf(z):
    return normal(torch.zeros(*z.shape[:-1], 3), 1.0)


def listening(z):
    return normal(z, 0.3)


def copying(x):
    return normal(x, 0.3)


def test_a_collapsed_model_is_seen():
    x, labels = data()
    report = collapse_report(vae(blind, deaf), x, labels)
    assert report.verdict.startswith("collapsed")
    assert report.rate == 0 and report.shuffle_rise == 0 and report.active_units == 0
    assert report.information == pytest.approx(0, abs=1e-5)
    assert report.chance == 0.25
    # A blind probe: 600 tries of probability ¼ have a standard error of 0.018.
    assert report.probe_accuracy == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize("decoder", [deaf, listening])
def test_a_rate_that_carries_nothing_is_not_taken_for_use(decoder):
    """The posterior N(2, ½²) costs nats and is the same for every image."""
    x, labels = data()
    report = collapse_report(vae(lambda x: blind(x, 3, 2.0, 0.5), decoder), x, labels)
    assert report.rate > 6
    assert report.verdict.startswith("unused") and "does not depend" in report.verdict
    assert report.information == pytest.approx(0, abs=1e-5) and report.active_units == 0
    assert report.probe_accuracy < 0.31


def test_the_committed_rate_alone_is_not_taken_for_use():
    """δ-VAE at its minimum: KL = δ for every image, and nothing said."""
    x, labels = data()
    alpha = torch.tensor([0.5, 0.9])
    scale = committed_variance(alpha, 8).sqrt()

    def encoder(x):
        return DiagNormal(torch.zeros(len(x), 8, 2), scale.expand(len(x), 8, 2), 2)

    model = VAE(
        Known(encoder),
        AR1Prior(alpha, 8),
        Known(lambda z: normal(z[..., :3, 0] + z[..., :3, 1], 1.0)),
    )
    report = collapse_report(model, x, labels)
    assert report.rate == pytest.approx(committed_rate(alpha, 8).item(), rel=1e-4)
    assert report.rate > 2
    assert report.verdict.startswith("unused")
    assert report.units == 16 and report.active_units == 0


def test_an_encoder_that_nobody_listens_to_is_not_taken_for_use():
    x, labels = data()
    report = collapse_report(vae(copying, deaf), x, labels)
    assert report.information > 2 and report.active_units == 3
    assert report.probe_accuracy > 0.9
    assert report.shuffle_rise == 0
    assert report.verdict == "unused: the encoder speaks, but the decoder does not listen."


def test_used_latents_are_reported_used():
    x, labels = data()
    report = collapse_report(vae(copying, listening), x, labels)
    assert report.verdict.startswith("used")
    assert report.active_units == 3 and report.probe_accuracy > 0.9
    assert report.shuffle_rise > 10 and report.distortion < 10


def test_partly_used_latents_are_reported_as_such():
    """Three of eight latents carry the data, the others are the prior."""
    x, labels = data()

    def encoder(x):
        loc = torch.cat([x, torch.zeros(len(x), 5)], 1)
        return DiagNormal(loc, torch.tensor([0.3] * 3 + [1.0] * 5).expand(len(x), 8))

    report = collapse_report(vae(encoder, lambda z: listening(z[..., :3]), 8), x, labels)
    assert (report.active_units, report.units) == (3, 8)
    assert report.verdict.startswith("partly used")


def test_a_rate_most_of_which_carries_nothing_is_partly_used():
    """All latents move, but far from the prior, and most of the rate is paid for the distance."""
    x, labels = data()
    model = vae(lambda x: normal(x + 4, 0.3), lambda z: listening(z - 4))
    report = collapse_report(model, x, labels)
    assert report.active_units == 3 and report.shuffle_rise > 10
    assert report.information < report.rate / 2
    assert report.verdict.startswith("partly used")


def test_mutual_information_is_that_of_a_gaussian_channel():
    """x ~ N(0, s²), z = x + noise: I = ½ ln(1 + s²/σ²) for each of two dimensions."""
    torch.manual_seed(0)
    x = 2.0 * torch.randn(2000, 2)
    model = vae(lambda x: normal(x, 1.5), listening, 2)
    exact = 2 * 0.5 * math.log(1 + 2.0**2 / 1.5**2)
    # 2,000 terms with a standard deviation near 0.8 nats: a standard error of 0.02.
    assert mutual_information(model, x) == pytest.approx(exact, abs=0.08)


def test_mutual_information_saturates_at_the_log_of_the_number_of_images():
    torch.manual_seed(0)
    x = 100.0 * torch.randn(50, 3)  # every posterior alone in its place
    model = vae(lambda x: normal(x, 0.01), listening)
    assert mutual_information(model, x) == pytest.approx(math.log(50), abs=1e-4)


def test_pieces_do_not_change_the_answer(monkeypatch):
    x, labels = data(101)
    model = vae(lambda x: normal(x, 2.0), listening)
    whole = collapse_report(model, x, labels, batch_size=101)
    monkeypatch.setattr("vaelib.diagnostics.PAIRS", 5000)
    torch.manual_seed(0)
    one = mutual_information(model, x)
    monkeypatch.undo()
    torch.manual_seed(0)
    assert one == pytest.approx(mutual_information(model, x), abs=1e-5)
    parts = collapse_report(model, x, labels, batch_size=7)
    assert parts.rate == pytest.approx(whole.rate, rel=1e-5)
    assert parts.active_units == whole.active_units == 3
    # Other draws of z: 101 images, standard deviations of a nat or two.
    assert parts.information == pytest.approx(whole.information, abs=0.5)


def test_rate_and_information_agree_with_an_exact_model():
    """pPCA with its own data: q is the posterior, so q(z) is the prior and the rate is I."""
    torch.manual_seed(0)
    model = PPCA(torch.randn(6, 2), torch.zeros(6), 1.0)
    x = model.marginal().sample((2000,))
    fitted = PPCA.fit(x.double(), 2)
    slots = VAE(*fitted.slots())
    report = collapse_report(slots, x.double())
    q = slots.encoder(x.double())
    assert report.rate == pytest.approx(kl_divergence(q, slots.prior()).mean().item())
    assert report.information == pytest.approx(report.rate, abs=0.15)
    assert math.isnan(report.probe_accuracy) and "probe" not in str(report)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("kind", ["mlp", "pixelcnn"])
def test_any_slots_will_do(rows, kind):
    torch.manual_seed(0)
    shape, latents = (1, 4, 4), (4, 2) if rows else 3
    decoder = GatedPixelCNN(latents, shape, channels=4, layers=1, kernel=3, first_kernel=3)
    if kind == "mlp":
        decoder = BernoulliMLP(latents, shape, 6)
    model = VAE(MLPEncoder(latents, shape, 6), StandardNormal(latents), decoder)
    model.train()
    x, labels = torch.rand(40, *shape).round(), torch.arange(40) % 3
    report = collapse_report(model, x, labels, batch_size=16)
    assert report.units == (8 if rows else 3) and report.images == 40
    assert math.isfinite(report.rate + report.information + report.shuffle_rise)
    assert model.training


def test_a_posterior_without_a_registered_kl_will_do():
    x, labels = data()

    def encoder(x):
        return Independent(Laplace(x, torch.full_like(x, 0.2)), 1)

    report = collapse_report(vae(encoder, listening), x, labels)
    assert report.verdict.startswith("used") and report.rate > 3


def test_the_same_report_twice_and_the_callers_random_state_untouched():
    x, labels = data(60)
    model = vae(copying, listening)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one = collapse_report(model, x, labels)
    assert torch.equal(torch.rand(4), expected)
    assert one == collapse_report(model, x, labels)
    assert one != collapse_report(model, x, labels, seed=1)


def test_no_row_stays_in_its_place():
    for seed in range(20):
        torch.manual_seed(seed)
        z = torch.arange(7.0)
        assert (shuffled(z) != z).all() and shuffled(z).sum() == z.sum()


def test_a_probe_reads_means_that_tell_the_decoder_nothing():
    """Why samples: the means move by a millionth of the noise, and a probe of them reads all."""
    x, labels = data()
    q = normal(1e-6 * x.double(), 1.0)
    torch.manual_seed(0)
    assert probe_accuracy(q.loc, labels) > 0.9
    assert probe_accuracy(q.sample(), labels) == pytest.approx(0.25, abs=0.06)


def test_the_report_reads_like_one():
    x, labels = data()
    shown = str(collapse_report(vae(copying, listening), x, labels))
    lines = shown.splitlines()
    assert len(lines) == 6 and lines[-1].startswith("verdict: used")
    assert "at most ln N = 6.40" in shown and "chance 0.25" in shown and "3 of 3" in shown


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(19, 3), "labels": None}, ValueError, "at least 20 images.*got 19"),
        ({"batch_size": 0}, ValueError, "batch_size >= 1.*got 600 and 0"),
        ({"labels": torch.zeros(600)}, TypeError, "integer labels, got torch.float32"),
        ({"labels": torch.zeros(599).long()}, ValueError, r"shape \(600,\), got \(599,\)"),
        ({"labels": torch.zeros(600).long()}, ValueError, "got 1 classes"),
        ({"labels": torch.arange(600)}, ValueError, "got 600 classes with at least 1"),
    ],
)
def test_bad_input_is_named(change, error, message):
    x, labels = data()
    settings = {"x": x, "labels": labels} | change
    with pytest.raises(error, match=message):
        collapse_report(vae(copying, listening), **settings)


def report(**changes):
    numbers = dict(images=600, rate=3.0, distortion=1.0, information=2.0, active_units=3, units=3)
    return CollapseReport(
        **numbers | dict(probe_accuracy=0.9, chance=0.2, shuffle_rise=9.0) | changes
    )


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "used"),
        ({"information": 0.49, "rate": 0.49}, "collapsed"),
        ({"information": 0.49, "rate": 0.51}, "unused: the rate"),
        ({"information": 0.51, "rate": 0.51, "shuffle_rise": 0.49}, "unused: the encoder"),
        ({"information": 0.51, "rate": 0.51, "shuffle_rise": 0.51}, "used"),
        ({"active_units": 1}, "partly used"),
        ({"information": 1.49}, "partly used"),
        ({"information": 1.51}, "used"),
        ({"information": 3.3, "rate": 99.0}, "used"),  # more than half of ln 600 = 6.4
        ({"information": 3.1, "rate": 99.0}, "partly used"),
    ],
)
def test_the_verdict_on_both_sides_of_its_thresholds(changes, verdict):
    assert report(**changes).verdict.startswith(verdict)


def test_a_unit_is_active_from_a_variance_of_a_hundredth_on():
    x = torch.randn(50, 2)
    x = (x - x.mean(0)) / x.std(0) * torch.tensor([0.009, 0.011]).sqrt()
    vae = VAE(
        Known(lambda x: DiagNormal(x, torch.ones_like(x))),
        StandardNormal(2),
        Known(lambda z: DiagNormal(z, torch.ones_like(z))),
    )
    assert collapse_report(vae, x).active_units == 1
