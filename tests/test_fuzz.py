"""Hostile input to every public function: a clear error or a right answer, never silence.

Shapes that do not fit, integers and half precision, empty batches, nan and infinity, huge and
tiny numbers. An error must be a ``TypeError`` or ``ValueError`` that says what was expected. An
answer must have the promised shape, be finite, and where a formula exists agree with it.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import log_expit
from scipy.stats import norm
from torch.distributions import kl_divergence

from vaelib import VAE, data, hmc
from vaelib.decoders import BernoulliMLP, GaussianMLP
from vaelib.diagnostics import collapse_report, mutual_information
from vaelib.distributions import AR1, DiagNormal, committed_rate, committed_variance
from vaelib.encoders import AntiCausalEncoder, MLPEncoder
from vaelib.likelihood import appendix_d, importance_sampled
from vaelib.linear_vae import PPCA
from vaelib.objectives import Annealing, Beta, FreeBits
from vaelib.pixelcnn import GatedPixelCNN, PixelCNN, PixelSNAIL
from vaelib.pixels import discretized_logistic
from vaelib.posteriors import GaussianPosterior, IndependentPosterior, SequentialPosterior
from vaelib.priors import AR1Prior, AuxiliaryPrior, StandardNormal
from vaelib.training import evaluate, fit
from vaelib.vae import WithoutLatents

FEW, MANY = settings(max_examples=40), settings(max_examples=150)
SHAPE, ROWS = (1, 4, 4), (4, 2)
FLOATS = (torch.float32, torch.float64)
DTYPES = (*FLOATS, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64)
BAD = (math.nan, math.inf, -math.inf)


def answer_or_clear_error(call):
    """What ``call`` returns; ``None`` if it raised an error that says what was expected."""
    try:
        return call()
    except (TypeError, ValueError) as error:
        text = str(error).lower()  # the second is torch's own, which names both shapes
        helps = "expected" in text or "not broadcastable with" in text
        assert helps, f"an error that does not help: {error}"
        return None


shapes = st.lists(st.integers(0, 5), max_size=5).map(tuple)
near = st.sampled_from([(3, *SHAPE), (1, *SHAPE), (0, *SHAPE), SHAPE, (3, 4, 4), (3, 1, 4, 5)])


@st.composite
def hostile(draw, shape=shapes, low=-2.0, high=2.0, dtypes=DTYPES):
    """A tensor that may be of any shape and dtype, and may hold one value that does not belong."""
    shape, dtype = draw(shape), draw(st.sampled_from(dtypes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    x = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
    if x.numel() and draw(st.booleans()):
        x.view(-1)[0] = draw(st.sampled_from([*BAD, 1e30, -1e30, 1e-30, -0.5, 1.5]))
    return x.to(dtype) if dtype.is_floating_point else x.nan_to_num(0, 1, -1).to(dtype)


def fit_images(x, shape=SHAPE):
    """Whether x is a batch of images that a model of this shape must take."""
    good = x.dtype in FLOATS and x.dim() == 4 and tuple(x.shape[1:]) == shape and len(x) > 0
    return good and bool(((x >= 0) & (x <= 1)).all())


# --- distributions ---------------------------------------------------------------------------


@MANY
@given(hostile(), hostile(low=0.1), hostile(), st.integers(-1, 4))
def test_diag_normal(loc, scale, value, event_dims):
    q = answer_or_clear_error(lambda: DiagNormal(loc, scale, event_dims))
    if q is None:
        return
    assert not q.loc.isnan().any() and (q.scale > 0).all()
    found = answer_or_clear_error(lambda: q.log_prob(value))
    if found is None:
        return
    assert tuple(value.shape[value.dim() - event_dims :]) == tuple(q.event_shape)
    parts = [part.double().numpy() for part in torch.broadcast_tensors(value, q.loc, q.scale)]
    axes = tuple(range(-event_dims, 0))
    with np.errstate(all="ignore"):
        exact = norm.logpdf(*parts).sum(axis=axes)
    assert found.shape == exact.shape
    ordinary = np.abs(exact) < 1e30  # infinite parameters give infinite densities
    rough = 1e-3 if q.loc.dtype in FLOATS and value.dtype in FLOATS else 0.1
    np.testing.assert_allclose(
        found.double().numpy()[ordinary], exact[ordinary], rtol=rough, atol=rough
    )


alphas = st.one_of(
    hostile(shapes, 0.0, 0.99),
    st.lists(st.floats(0, 0.999), min_size=1, max_size=4).map(torch.tensor),
    st.sampled_from([torch.tensor([1.0]), torch.tensor([-0.1]), torch.tensor([0.5, math.nan])]),
)


@MANY
@given(alphas, st.integers(-2, 6), hostile())
def test_ar1(alpha, length, value):
    p = answer_or_clear_error(lambda: AR1(alpha, length))
    rate = answer_or_clear_error(lambda: committed_rate(alpha, length))
    variance = answer_or_clear_error(lambda: committed_variance(alpha, length))
    legal = (
        not alpha.is_complex()
        and alpha.dim() == 1
        and len(alpha) > 0
        and bool(((alpha >= 0) & (alpha < 1)).all())
        and length >= 1
    )
    assert (p is not None) == (rate is not None) == (variance is not None) == legal
    if not legal:
        return
    assert rate.isfinite() and rate >= -1e-6 and (variance > 0).all()
    found = answer_or_clear_error(lambda: p.log_prob(value))
    if found is not None:
        assert tuple(value.shape[-2:]) == (length, len(alpha))
        assert found.shape == value.shape[:-2] and not found.isnan().any()


def test_ar1_takes_no_integers_and_no_fractions():
    for length in (2.5, "3", None, True):
        assert answer_or_clear_error(lambda n=length: AR1(torch.tensor([0.5]), n)) is None


@MANY
@given(
    st.integers(1, 5), st.integers(1, 3), st.floats(0, 0.999), st.floats(-30, 30), st.floats(-8, 8)
)
@example(5, 2, 0.999, 30.0, 8.0)
def test_kl_to_ar1_is_never_below_the_committed_rate(n, d, alpha, loc, log_scale):
    alphas = torch.full((d,), alpha, dtype=torch.float64)
    loc, scale = (torch.full((3, n, d), v, dtype=torch.float64) for v in (loc, math.exp(log_scale)))
    rate = kl_divergence(DiagNormal(loc, scale, event_dims=2), AR1(alphas, n))
    assert rate.shape == (3,) and rate.isfinite().all()
    assert (rate >= committed_rate(alphas, n) - 1e-9).all()


@FEW
@given(st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(1, 4), st.integers(1, 4))
def test_kl_refuses_events_of_another_shape(event, length, d):
    q = DiagNormal(torch.zeros(2, *event), torch.ones(2, *event), event_dims=2)
    p = AR1(torch.full((d,), 0.5), length)
    found = answer_or_clear_error(lambda: kl_divergence(q, p))
    assert (found is not None) == (event == (length, d))


@MANY
@given(st.floats(-50, 50), st.floats(-12, 12), st.integers(2, 300))
def test_levels_of_the_discretised_logistic_sum_to_one(mean, log_scale, levels):
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)
    mean, log_scale = (torch.full_like(x, value) for value in (mean, log_scale))
    found = discretized_logistic(x, mean, log_scale, levels)
    assert not found.isnan().any() and (found <= 1e-12).all()
    assert math.isclose(found.logsumexp(0).item(), 0, abs_tol=1e-9)


@MANY
@given(st.floats(-40, 40), st.sampled_from([0.0, 0.25, 1.0]))
def test_pixels_keep_their_probability_at_extreme_logits(logit, x):
    decoder = BernoulliMLP(1, (1, 1, 1), 1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        decoder.network[-1].bias.fill_(logit)
    found = decoder(torch.zeros(1, 1)).log_prob(torch.full((1, 1, 1, 1), x))
    exact = x * log_expit(logit) + (1 - x) * log_expit(-logit)
    assert math.isclose(found.item(), exact, rel_tol=1e-5, abs_tol=1e-6)


# --- posterior families ----------------------------------------------------------------------

FAMILIES = ("gaussian", "sequential", "independent")


@MANY
@given(
    st.sampled_from(["gaussian", "sequential", "independent"]), st.floats(-1e4, 1e4), st.booleans()
)
@example("sequential", 1e4, True)
@example("independent", -1e4, True)
def test_no_raw_output_breaks_a_promise(kind, size, mixed):
    alpha = torch.tensor([0.5, 0.9])
    families = {
        "gaussian": lambda: GaussianPosterior(ROWS),
        "sequential": lambda: SequentialPosterior(alpha, ROWS[0]),
        "independent": lambda: IndependentPosterior(0.3, ROWS),
    }
    family, prior = families[kind](), AR1(alpha, ROWS[0])
    raw = torch.full((5, *family.raw_shape), size)
    raw = raw * torch.randn(raw.shape) if mixed else raw
    if kind == "gaussian":
        raw = raw.clamp(-60, 60)  # any variance is allowed here, also one that overflows
        prior = StandardNormal(ROWS)()
    if kind == "independent":
        prior = StandardNormal(ROWS)()
    rate = kl_divergence(family(raw), prior)
    least = {"gaussian": 0, "sequential": committed_rate(alpha, 4), "independent": 0.3 * 8}[kind]
    assert rate.isfinite().all() and (rate >= least - 1e-4 * (1 + rate.abs())).all()


@FEW
@given(hostile())
def test_posterior_families_refuse_what_is_no_raw_output(raw):
    for family in (GaussianPosterior(ROWS), SequentialPosterior(torch.tensor([0.5, 0.9]), 4)):
        q = answer_or_clear_error(lambda f=family: f(raw))
        if q is not None:
            assert tuple(raw.shape[-2:]) == family.raw_shape
            assert q.batch_shape == raw.shape[:-2] and q.event_shape == ROWS
            if raw.isfinite().all() and bool((raw.abs() < 50).all()):
                assert q.mean.isfinite().all() and (q.stddev > 0).all()


# --- data ------------------------------------------------------------------------------------


@MANY
@given(hostile(st.one_of(shapes, near), -0.1, 1.1), st.sampled_from(["threshold", "bernoulli", ""]))
def test_binarize(x, method):
    found = answer_or_clear_error(lambda: data.binarize(x, method))
    legal = x.is_floating_point() and x.numel() > 0 and bool(((x >= 0) & (x <= 1)).all())
    assert (found is not None) == (legal and method != "")
    if found is not None:
        assert found.shape == x.shape and found.dtype == x.dtype
        assert ((found == 0) | (found == 1)).all()


@MANY
@given(hostile(st.one_of(shapes, near), 0.0, 1.0), st.integers(-1, 5))
def test_downsample(x, factor):
    found = answer_or_clear_error(lambda: data.downsample(x, factor))
    if found is not None:
        n, c, height, width = x.shape
        assert found.shape == (n, c, height // factor, width // factor)
        assert torch.allclose(found.double().mean(), x.double().mean(), atol=1e-2)


# --- the three slots -------------------------------------------------------------------------


def models():
    """A model of each kind, for images (1, 4, 4)."""
    torch.manual_seed(0)
    small = {"channels": 4, "layers": 1}
    rows = {"latents": ROWS, "image_shape": SHAPE, **small}
    sequential = SequentialPosterior(torch.tensor([0.5, 0.9]), ROWS[0])
    encoder = AntiCausalEncoder(2, SHAPE, sequential, channels=4, layers=1)
    prior = AR1Prior(torch.tensor([0.5, 0.9]), ROWS[0])
    return {
        "bernoulli": VAE(MLPEncoder(3, SHAPE, 8), StandardNormal(3), BernoulliMLP(3, SHAPE, 8)),
        "gaussian": VAE(MLPEncoder(3, SHAPE, 8), StandardNormal(3), GaussianMLP(3, SHAPE, 8)),
        "δ-VAE": VAE(encoder, prior, GatedPixelCNN(**rows)),
        "auxiliary": VAE(encoder, AuxiliaryPrior(2, ROWS[0], 4), PixelCNN(**rows)),
        "alone": WithoutLatents(
            PixelSNAIL(image_shape=SHAPE, channels=4, blocks=1, residuals=1, heads=1)
        ),
    }


MODELS = models()


@MANY
@given(st.sampled_from(sorted(MODELS)), hostile(st.one_of(shapes, near), 0.0, 1.0))
def test_elbo(kind, x):
    vae = MODELS[kind]
    if x.dtype in FLOATS and kind != "gaussian":
        x = x.round()  # autoregressive decoders take black and white
    found = answer_or_clear_error(lambda: vae.elbo(x))
    if found is not None:
        assert tuple(x.shape[-3:]) == SHAPE  # one image without a batch is welcome, too
        assert found.distortion.shape == found.rate.shape == x.shape[:-3]
        usual = (x.abs() <= 1e6).flatten(-3).all(-1)  # the density of others may be e^−∞
        assert found.value[usual].isfinite().all() and (found.value[~usual] < -1e6).all()
    elif fit_images(x):
        assert x.dtype != torch.float32, "refused good images"


@FEW
@given(hostile(st.one_of(shapes, near), 0.0, 1.0), st.integers(-1, 3), st.integers(-1, 5))
def test_likelihood_estimators(x, samples, chunk):
    vae = MODELS["bernoulli"]
    found = answer_or_clear_error(lambda: importance_sampled(vae, x, samples, chunk))
    if found is not None:
        assert found.shape == (len(x),) and found.isfinite().all() and min(samples, chunk) >= 1
    quick = {"burn_in": 2, "thin": 1, "leapfrog_steps": 1}
    found = answer_or_clear_error(lambda: appendix_d(vae, x, samples=samples + 3, **quick))
    if found is not None:
        assert found.shape == (len(x),) and found.isfinite().all()


@FEW
@given(hostile(st.one_of(shapes, near), 0.0, 1.0), hostile(st.integers(0, 4).map(lambda n: (n,))))
def test_collapse_report(x, labels):
    answer_or_clear_error(lambda: collapse_report(MODELS["bernoulli"], x, labels))
    answer_or_clear_error(lambda: mutual_information(MODELS["bernoulli"], x))


@FEW
@given(hostile(st.one_of(shapes, near), 0.0, 1.0), st.integers(-1, 2), st.integers(-1, 4))
def test_fit_and_evaluate(x, epochs, batch_size):
    vae = VAE(MLPEncoder(2, SHAPE, 4), StandardNormal(2), BernoulliMLP(2, SHAPE, 4))
    settings = {"epochs": epochs, "batch_size": batch_size, "progress": False}
    history = answer_or_clear_error(lambda: fit(vae, x, **settings))
    if history is not None:
        assert len(history.rows) == epochs and all(map(math.isfinite, history["train_bound"]))
        assert all(p.isfinite().all() for p in vae.parameters())
    bound = answer_or_clear_error(lambda: evaluate(MODELS["bernoulli"], x))
    if bound is not None:
        assert bound.value.isfinite() and bound.value.shape == ()


@FEW
@given(hostile(st.one_of(shapes, st.sampled_from([(4, 6), (1, 6), (0, 6)]))), st.integers(-1, 7))
def test_ppca(x, latents):
    found = answer_or_clear_error(lambda: PPCA.fit(x, latents))
    if found is not None:
        assert found.log_prob(x).isfinite().all() and 1 <= latents < x.shape[1]


# --- objectives and samplers -----------------------------------------------------------------


@FEW
@given(st.one_of(st.floats(), st.sampled_from([*BAD, -1.0])))
def test_objectives_refuse_what_is_no_price(value):
    bound = MODELS["bernoulli"].elbo(torch.rand(3, *SHAPE))
    for objective in (Beta, FreeBits):
        made = answer_or_clear_error(lambda o=objective: o(value))
        assert (made is not None) == (0 <= value <= 1e30)
        if made is not None:
            assert not made(bound).isnan().any()
    made = answer_or_clear_error(lambda: Annealing(value))
    assert made is None or made(bound, update=0).isfinite().all()


@FEW
@given(hostile(), st.sampled_from([0.1, 1e3, 1e-12, 0.0, -1.0, math.nan]), st.integers(-1, 3))
def test_hmc(position, step_size, steps):
    def log_density(z):
        return -0.5 * z.square().sum(-1)

    state = answer_or_clear_error(lambda: hmc.init(log_density, position))
    if state is None:
        return
    found = answer_or_clear_error(lambda: hmc.step(log_density, state, step_size, steps))
    if found is not None:
        moved, info = found
        assert step_size > 0 and steps >= 1
        assert moved.position.shape == position.shape and moved.position.isfinite().all()
        assert ((info.acceptance >= 0) & (info.acceptance <= 1)).all()


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_no_image_is_an_error_and_one_is_enough(kind):
    vae = MODELS[kind]
    assert vae.elbo(torch.zeros(1, *SHAPE)).value.shape == (1,)
    assert answer_or_clear_error(lambda: vae.sample(0)) is None
    assert vae.sample(1).shape == (1, *SHAPE)
