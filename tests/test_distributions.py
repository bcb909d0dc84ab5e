"""Densities and divergences against torch, dense matrices, integrals, draws and optimisers."""

import copy
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import refusals
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_expit
from scipy.stats import norm
from torch import distributions as td
from torch.distributions import Distribution, kl_divergence

from vaelib import distributions as ours
from vaelib.distributions import AR1, DiagNormal, PixelBernoulli, committed_rate, committed_variance

ALPHA = torch.tensor([0.0, 0.5, 0.95]).double()
NAN, INF, close = math.nan, math.inf, torch.testing.assert_close


def normals(batch, event, seed=0):
    torch.manual_seed(seed)
    loc, scale = torch.randn(*batch, *event).double(), torch.rand(*batch, *event).double()
    return DiagNormal(loc, scale + 0.2, event_dims=len(event))


def dense(alpha, length):
    """One channel of the AR(1) process as a matrix: covariance α^|s − t|."""
    steps = torch.arange(length)
    covariance = alpha ** (steps[:, None] - steps).abs()
    return td.MultivariateNormal(torch.zeros(length).double(), covariance)


@pytest.mark.parametrize("event", [(3,), (4, 3), (1, 5, 2)])
def test_diag_normal_is_that_of_torch(event):
    q, p = normals((6,), event, 1), normals((), event, 2)
    torchs, other = (td.Independent(td.Normal(d.loc, d.scale), len(event)) for d in (q, p))
    assert q.batch_shape == (6,) and q.event_shape == event
    close(q.log_prob(p.loc), torchs.log_prob(p.loc))
    close(q.entropy(), torchs.entropy())
    close(q.variance, torchs.variance)
    close(kl_divergence(q, p), kl_divergence(torchs, other))
    close(ours.kl_terms(q, p), kl_divergence(torchs.base_dist, other.base_dist))


def test_draws_carry_gradients_to_both_parameters():
    loc, scale = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    z = DiagNormal(loc, scale).rsample()
    dz_dloc, dz_dscale = torch.autograd.grad(z.sum(), (loc, scale))
    assert torch.equal(dz_dloc, torch.ones(3)) and torch.equal(dz_dscale, z)  # z = 0 + 1·ε


@st.composite
def hostile(draw, low=-2.0, high=2.0):
    """A tensor of any shape and type, perhaps with one value that does not belong there."""
    shape = draw(st.lists(st.integers(0, 5), max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    x = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
    if x.numel() and draw(st.booleans()):
        x.view(-1)[0] = draw(st.sampled_from([NAN, INF, -INF, 1e30, -1e30, 1e-30, -0.5, 1.5]))
    kinds = "float32 float64 float16 bfloat16 int64 bool complex64".split()
    dtype = getattr(torch, draw(st.sampled_from(kinds)))
    return x.to(dtype) if dtype.is_floating_point else x.nan_to_num(0, 1, -1).to(dtype)


@settings(max_examples=200)
@given(hostile(), hostile(low=0.1), hostile(), st.integers(-1, 4))
def test_any_input_gets_the_right_density_or_a_clear_error(loc, scale, value, event_dims):
    try:
        q = DiagNormal(loc, scale, event_dims)
        assert q.loc.isfinite().all() and (q.scale > 0).all()
        found = q.log_prob(value)
    except (TypeError, ValueError) as error:
        assert any(word in str(error).lower() for word in ("expected", "not broadcastable with"))
        return
    assert value.shape[value.dim() - event_dims :] == q.event_shape
    parts = [part.double().numpy() for part in torch.broadcast_tensors(value, q.loc, q.scale)]
    with np.errstate(all="ignore"):
        exact = norm.logpdf(*parts).sum(axis=tuple(range(-event_dims, 0)))
    assert found.shape == exact.shape
    usual = np.abs(exact) < 1e30  # the density of an infinite value may be e^−∞
    rough = 0.1 if value.dtype in (torch.float16, torch.bfloat16) else 1e-3
    np.testing.assert_allclose(found.double().numpy()[usual], exact[usual], rough, rough)


def test_a_grey_level_scores_the_expected_bit_also_at_extreme_logits():
    logit, grey = torch.linspace(-40, 40, 81).unsqueeze(-1), torch.tensor([0.0, 0.25, 0.9, 1.0])
    found = PixelBernoulli(logit.unsqueeze(-1), 1).log_prob(grey.unsqueeze(-1))
    white, black = (torch.tensor(log_expit(sign * logit.double().numpy())) for sign in (1, -1))
    exact = grey * white + (1 - grey) * black
    close(found.double(), exact, rtol=1e-5, atol=1e-6)
    for size in (1e4, 1e36):
        p, zeros = PixelBernoulli(torch.full((1, 2, 2), size)), torch.zeros(1, 2, 2)
        assert p.log_prob(zeros).item() == pytest.approx(-4 * size)
        assert p.log_prob(zeros + 1).item() == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8", "int64", "bool", "float64"])
def test_the_finer_type_of_pixels_and_logits_decides(dtype):
    logits, ones = torch.full((2, 1, 28, 28), -100.0), torch.ones(2, 1, 28, 28)
    found = PixelBernoulli(logits).log_prob(ones.to(getattr(torch, dtype)))
    assert found.tolist() == [-78_400.0, -78_400.0]
    assert found.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert PixelBernoulli(logits.double()).log_prob(ones).dtype == torch.float64


@pytest.mark.parametrize("length", [1, 2, 3, 17])
def test_ar1_is_the_dense_normal(length):
    prior, z, q = AR1(ALPHA, length), torch.randn(6, length, 3).double(), normals((4,), (length, 3))
    matrices = [dense(alpha, length) for alpha in ALPHA]
    expected = sum(matrix.log_prob(z[..., k]) for k, matrix in enumerate(matrices))
    close(prior.log_prob(z), expected)
    close(prior.entropy(), sum(matrix.entropy() for matrix in matrices))
    covariances = [torch.diag_embed(q.variance[..., k]) for k in range(3)]
    channels = [td.MultivariateNormal(q.loc[..., k], covariances[k]) for k in range(3)]
    expected = sum(kl_divergence(channels[k], matrices[k]) for k in range(3))
    close(kl_divergence(q, prior), expected)


def test_the_rate_to_the_standard_normal_is_appendix_b_also_without_correlation():
    q, zeros = normals((5,), (6, 3)), torch.zeros(6, 3).double()
    standard, process = DiagNormal(zeros, zeros + 1, 2), AR1(torch.zeros(3).double(), 6)
    paper = -0.5 * (1 + q.scale.square().log() - q.loc.square() - q.scale.square()).sum((1, 2))
    close(kl_divergence(q, standard), paper)
    close(kl_divergence(q, process), paper)
    close(process.log_prob(q.loc), standard.log_prob(q.loc))


def test_draws_have_the_covariance_of_the_process():
    prior = AR1(ALPHA, 4)
    z = prior.sample((200_000,))
    assert (prior.mean == 0).all() and (prior.variance == 1).all()
    for k, alpha in enumerate(ALPHA):
        # Standard errors of a covariance are at most √2/√200,000 = 0.0032.
        error = torch.cov(z[..., k].T) - dense(alpha, 4).covariance_matrix
        assert error.abs().max() < 4 * 0.0032


def test_draws_and_divergences_are_differentiable_in_alpha():
    def draw(alpha):
        torch.manual_seed(0)
        return AR1(alpha, 5).rsample((3,))

    alpha, q = torch.tensor([0.3, 0.6]).double().requires_grad_(), normals((4,), (5, 2))
    assert torch.autograd.gradcheck(draw, (alpha,))
    assert torch.autograd.gradcheck(lambda alpha: kl_divergence(q, AR1(alpha, 5)), (alpha,))


def test_terms_up_to_row_t_are_the_rate_of_a_process_of_t_rows():
    """The beginning of an AR(1) process is an AR(1) process: the chain rule, row by row."""
    whole = normals((4,), (6, 3))
    terms = ours.kl_terms(whole, AR1(ALPHA, 6))
    for t in range(1, 7):
        for k in range(3):
            q = DiagNormal(whole.loc[:, :t, k : k + 1], whole.scale[:, :t, k : k + 1], 2)
            rate = kl_divergence(q, AR1(ALPHA[k : k + 1], t))
            close(terms[:, :t, k].sum(1), rate)


def test_the_rules_do_not_fire_for_other_families():
    class Own(DiagNormal):
        """A subclass may have its own divergence."""

    laplace, p = td.Laplace(torch.zeros(3).double(), torch.ones(3).double()), normals((), (3,))
    torchs = kl_divergence(laplace, td.Normal(p.loc, p.scale)).sum()
    close(kl_divergence(td.Independent(laplace, 1), p), torchs)
    assert ours.kl_terms(td.Independent(laplace, 1), p) is None
    assert ours.kl_terms(Own(torch.zeros(3), torch.ones(3)), p) is None
    with pytest.raises(NotImplementedError):
        kl_divergence(PixelBernoulli(torch.zeros(1, 1, 3), event_dims=1), p)


@pytest.mark.parametrize("p", [normals((), (4, 3)), AR1(ALPHA, 4)], ids=["normal", "AR1"])
@pytest.mark.parametrize(
    ("q_batch", "p_batch", "batch"),
    [((2,), (), (2,)), ((), (3,), (3,)), ((2, 1), (3,), (2, 3)), ((2,), (3,), None)],
)
def test_batches_of_a_divergence_broadcast_or_are_refused(p, q_batch, p_batch, batch):
    q, p = normals(q_batch, (4, 3)), p.expand(p_batch)
    if batch is None:
        with pytest.raises(ValueError, match=r"batch shapes that broadcast.*\(2,\) and \(3,\)"):
            kl_divergence(q, p)
    else:
        assert kl_divergence(q, p).shape == batch and ours.kl_terms(q, p).shape == (*batch, 4, 3)


def test_golden_values_of_the_paper():
    """Razavi et al. (2019) print 79.44 and 666.6 bits per image."""
    golden = [(0.95, 8, 79.447, 5e-4), (0.99, 64, 666.63, 5e-3)]
    for highest, channels, bits, error in golden:
        rate = committed_rate(torch.linspace(0.5, highest, channels).double(), 32)
        assert rate.item() / math.log(2) == pytest.approx(bits, abs=error)
    two = [committed_rate([alpha], 2).item() for alpha in (0.5, 0.8, 0.95)]
    assert two == pytest.approx([0.144, 0.511, 1.164], abs=5e-4)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 32])
def test_the_minimiser_reaches_the_committed_rate_and_no_posterior_is_below(length):
    scale, least = committed_variance(ALPHA, length).sqrt(), committed_rate(ALPHA, length)
    prior, noise = AR1(ALPHA, length), torch.randn(2, 2000, length, 3).double()
    minimum = kl_divergence(DiagNormal(0 * scale, scale, 2), prior)
    assert (minimum - least).abs() < 1e-10
    assert (kl_divergence(DiagNormal(noise[0], (4 * noise[1]).exp(), 2), prior) >= least).all()
    if length == 1:  # commits to nothing: the posterior can be the prior
        assert (scale == 1).all() and least.item() == 0


@pytest.mark.parametrize("length", [2, 3, 8, 32])
@pytest.mark.parametrize("alpha", [0.3, 0.8, 0.99])
def test_an_optimiser_comes_down_to_it_and_no_further(length, alpha):
    alpha = torch.tensor([alpha]).double()
    loc, log_scale = (torch.randn(length, 1).double().requires_grad_() for _ in range(2))
    optimizer = torch.optim.LBFGS([loc, log_scale], max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        rate = kl_divergence(DiagNormal(loc, log_scale.exp(), event_dims=2), AR1(alpha, length))
        rate.backward()
        return rate

    for _ in range(5):
        optimizer.step(closure)
    reached, least = closure().item(), committed_rate(alpha, length).item()
    assert reached > least - 1e-10
    assert reached == pytest.approx(least, abs=1e-6)  # and the bound is tight
    variance = (2 * log_scale).exp().detach()
    close(variance, committed_variance(alpha, length), rtol=1e-3, atol=0)


KINDS = [normals((), (3,)), PixelBernoulli(torch.randn(1, 2, 3).double()), AR1(ALPHA, 4)]


@pytest.mark.parametrize("one", KINDS, ids=["DiagNormal", "PixelBernoulli", "AR1"])
def test_expanded_copied_and_stored_they_are_the_same(one):
    value = torch.rand(one.event_shape).double()
    wide, log_prob = one.expand((5,)), one.log_prob(value)
    assert type(wide) is type(one) and wide.event_shape == one.event_shape
    assert wide.batch_shape == wide.entropy().shape == (5,) and log_prob.shape == ()
    assert wide.mean.shape == wide.variance.shape == (5, *one.event_shape)
    assert wide.sample((2,)).shape == (2, 5, *one.event_shape)
    assert wide.sample().dtype == log_prob.dtype == torch.float64
    close(wide.log_prob(value), log_prob.expand(5))
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert torch.equal(other.log_prob(value), log_prob)
    for wrong in (one, wide, wide.expand((2, 5))):  # none of them has lost its checks
        with pytest.raises(ValueError, match=r"finite|nan"):
            wrong.log_prob(torch.full_like(value, NAN))
        with pytest.raises(ValueError, match="expected a value of shape"):
            wrong.log_prob(value[..., :1])  # torch would broadcast it to a meaningless number
    with pytest.raises((ValueError, RuntimeError)):
        one.expand((3,)).expand((7,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_are_computed_with_in_float32(dtype):
    """float16 ends at 65,504, below these sums; bfloat16 would break the committed rate."""
    loc, scale = torch.full((2, 600), 8.0, dtype=dtype), torch.full((2, 600), 0.5, dtype=dtype)
    q, p = DiagNormal(loc, scale), DiagNormal(torch.zeros(600), torch.full((600,), 0.5))
    exact = kl_divergence(DiagNormal(loc.double(), scale.double()), p)
    assert exact[0] > 65_504 and q.rsample().dtype == torch.float32
    close(kl_divergence(q, p).double(), exact, rtol=1e-6, atol=0)
    logits = torch.full((1, 28, 28), -100.0, dtype=dtype)
    assert PixelBernoulli(logits).log_prob(torch.ones_like(logits)).item() == -78_400
    alpha = torch.linspace(0.5, 0.95, 8).to(dtype)
    q = DiagNormal(torch.zeros(32, 8), committed_variance(alpha, 32).sqrt(), 2)
    rate = kl_divergence(q, AR1(alpha, 32))
    assert rate.dtype == torch.float32
    close(rate, committed_rate(alpha.float(), 32))


@pytest.mark.parametrize("alpha", [[0, 0.5], [0.0, 0.5], np.linspace(0, 0.5, 2)], ids=str)
def test_alpha_may_be_a_list_or_an_array_and_the_length_numpys(alpha):
    prior, rate = AR1(alpha, np.int64(4)), committed_rate(alpha, np.int64(4))
    assert prior.event_shape == (4, 2) and prior.alpha.tolist() == [0.0, 0.5]
    assert prior.sample().dtype == rate.dtype == torch.float32


ZEROS, ONES, IMAGE = torch.zeros(4, 5), torch.ones(4, 5), torch.zeros(8, 1, 28, 28)
BITS, FLAT, PROCESS = PixelBernoulli(IMAGE), normals((4,), (1,)), AR1(ALPHA, 4)
GREY = DiagNormal(IMAGE, IMAGE + 1, 3)


def put(x, value):
    """One bad number among many."""
    return x.index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(value))


REFUSED = [
    (lambda x: DiagNormal(put(ZEROS, x), ONES), (NAN, INF, -INF), "expected finite loc, got"),
    (lambda x: DiagNormal(ZEROS, put(ONES, x)), (0.0, -1.0, NAN), "expected scale > 0, got"),
    (lambda x: DiagNormal(ZEROS, put(ONES, x)), (INF, 1e-30, 1e30), "squares torch.float32 can"),
    (lambda x: DiagNormal(ZEROS, x), [torch.ones(3)], r"that broadcast, got \(4, 5\) and \(3,\)"),
    (lambda x: DiagNormal(x, x), (ONES.long(), ONES.bool()), "expected float loc and scale, got"),
    (lambda x: DiagNormal(ZEROS, ONES, x), (0, 3), "expected 1 <= event_dims <= 2 for .*, got"),
    (lambda x: PixelBernoulli(put(ZEROS, x), 2), (NAN, INF, -INF), "expected finite logits, got"),
    (BITS.log_prob, (IMAGE - 0.01, IMAGE + 255), r"expected values in \[0, 1\], got"),
    (BITS.log_prob, (IMAGE[:, 0], IMAGE[..., :20]), r"a value of shape .*\(1, 28, 28\)\), got"),
    (GREY.log_prob, [IMAGE[:, 0]], r"a value of shape .* got \(8, 28, 28"),
    (FLAT.log_prob, [torch.ones(4, 1) * 1j], "expected a real value, got torch.complex64"),
    (FLAT.log_prob, [torch.ones(0, 1)], r"expected at least one value, got shape \(0, 1\)"),
    (PROCESS.log_prob, [torch.zeros(5, 1, 3)], r"a value of shape .* got \(5, 1, 3\)"),
    (PROCESS.log_prob, [torch.full((4, 3), INF)], "expected finite values, got"),
    (PROCESS.expand((3,)).expand, [(7,), (3, 7)], "expected batch shapes that broadcast, got"),
    (lambda p: kl_divergence(FLAT, p), (PROCESS, normals((), (8,))), "equal event shapes, got"),
    (ours.check_batch, (torch.zeros(3), IMAGE[:0]), r"a batch \(B, \*event\) of at least one, got"),
]
for call in (AR1, committed_rate, committed_variance):
    REFUSED += [
        (lambda x, f=call: f([x], 4), (1, 1.5, -0.1, NAN), r"expected alpha in \[0, 1\), got"),
        (lambda x, call=call: call(x, 4), ([[0.5]], []), r"expected real alpha \(d,\), got"),
        (lambda x, call=call: call([0.5], x), (0, 2.5, "3", None, True), "a length of at least 1"),
    ]
test_bad_input_is_refused = refusals(REFUSED)


@pytest.mark.parametrize("compiled", [False, True])
def test_checks_hold_until_they_are_switched_off_and_torchs_flag_comes_back(compiled, monkeypatch):
    monkeypatch.setattr(Distribution, "_validate_args", True)
    if compiled:
        torch.compile(lambda x: x, backend="eager")  # this is enough, though it is never called
    grey, slow = (lambda: BITS.log_prob(IMAGE + 255)), (lambda: AR1([1.5], 3))
    with pytest.raises(KeyError), ours.no_validation():
        assert not ours.checking() and not Distribution._validate_args
        raise KeyError(grey(), slow(), DiagNormal(IMAGE, IMAGE), PixelBernoulli(IMAGE + INF))
    assert ours.checking() and Distribution._validate_args is not compiled
    for call in (grey, slow):
        with pytest.raises(ValueError, match="expected"):
            call()


def test_checks_hold_under_python_o():
    code = """if True:
        import contextlib, torch, vaelib.distributions as ours
        assert False, "python -O skips this"
        with contextlib.suppress(ValueError):
            ours.PixelBernoulli(torch.zeros(1, 2, 2)).log_prob(torch.full((1, 2, 2), 255.0))
            print("not refused")
        ours.AR1([1.5], 3)"""
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert done.stdout == "" and "ValueError: expected alpha in [0, 1), got [1.5]" in done.stderr
