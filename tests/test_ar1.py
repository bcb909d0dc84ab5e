"""The AR(1) prior and the committed rate: dense matrices, golden values, and an optimiser."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from vaelib.distributions import AR1, DiagNormal, committed_rate, committed_variance
from vaelib.priors import AR1Prior

ALPHA = torch.tensor([0.0, 0.5, 0.95]).double()


def dense(alpha, length):
    """The same prior of one channel as a matrix: covariance α^|s − t|."""
    steps = torch.arange(length)
    covariance = torch.as_tensor(alpha).double() ** (steps[:, None] - steps).abs()
    return MultivariateNormal(torch.zeros(length).double(), covariance)


def posterior(length, d=3, batch=4, seed=0):
    torch.manual_seed(seed)
    loc, scale = torch.randn(batch, length, d).double(), torch.rand(batch, length, d).double()
    return DiagNormal(loc, scale + 0.2, event_dims=2)


@pytest.mark.parametrize("length", [1, 2, 3, 17])
def test_log_prob_and_entropy_are_those_of_the_dense_normal(length):
    prior = AR1(ALPHA, length)
    z = torch.randn(6, length, 3).double()
    matrices = [dense(alpha, length) for alpha in ALPHA]
    expected = sum(matrix.log_prob(z[..., k]) for k, matrix in enumerate(matrices))
    torch.testing.assert_close(prior.log_prob(z), expected)
    torch.testing.assert_close(prior.entropy(), sum(matrix.entropy() for matrix in matrices))


@pytest.mark.parametrize("length", [1, 2, 3, 17])
def test_kl_is_that_of_the_dense_normal(length):
    q, prior = posterior(length), AR1(ALPHA, length)
    expected = 0
    for k, alpha in enumerate(ALPHA):
        one = MultivariateNormal(q.loc[..., k], torch.diag_embed(q.scale[..., k].square()))
        expected = expected + kl_divergence(one, dense(alpha, length))
    torch.testing.assert_close(kl_divergence(q, prior), expected)


def test_kl_is_its_monte_carlo_estimate():
    q, prior = posterior(5), AR1(ALPHA, 5)
    torch.manual_seed(1)
    z = q.sample((100_000,))
    ratio = q.log_prob(z) - prior.log_prob(z)
    standard_error = ratio.std(0) / math.sqrt(len(z))
    assert ((ratio.mean(0) - kl_divergence(q, prior)).abs() < 4 * standard_error).all()


def test_without_correlation_it_is_the_standard_normal():
    q = posterior(6)
    standard = DiagNormal(torch.zeros(6, 3).double(), torch.ones(6, 3).double(), event_dims=2)
    prior = AR1(torch.zeros(3).double(), 6)
    torch.testing.assert_close(kl_divergence(q, prior), kl_divergence(q, standard))
    z = q.sample()
    torch.testing.assert_close(prior.log_prob(z), standard.log_prob(z))


def test_samples_have_the_covariance_of_the_process():
    torch.manual_seed(0)
    z = AR1(ALPHA, 4).sample((200_000,))
    for k, alpha in enumerate(ALPHA):
        # Standard errors of a covariance are at most √2/√200,000 = 0.0032.
        error = torch.cov(z[..., k].T) - dense(alpha, 4).covariance_matrix
        assert error.abs().max() < 4 * 0.0032


def test_rsample_is_differentiable_in_alpha():
    alpha = torch.tensor([0.3, 0.6]).double().requires_grad_()

    def draw(alpha):
        torch.manual_seed(0)
        return AR1(alpha, 5).rsample((3,))

    assert torch.autograd.gradcheck(draw, (alpha,))
    assert torch.autograd.gradcheck(lambda a: kl_divergence(posterior(5, 2), AR1(a, 5)), (alpha,))


def test_golden_values_of_the_paper():
    """Razavi et al. (2019) print 79.44 and 666.6 bits per image."""
    low = committed_rate(torch.linspace(0.5, 0.95, 8).double(), 32) / math.log(2)
    high = committed_rate(torch.linspace(0.5, 0.99, 64).double(), 32) / math.log(2)
    assert low.item() == pytest.approx(79.447, abs=5e-4)
    assert high.item() == pytest.approx(666.63, abs=5e-3)
    two = [committed_rate(torch.tensor([a]).double(), 2).item() for a in (0.5, 0.8, 0.95)]
    assert two == pytest.approx([0.144, 0.511, 1.164], abs=5e-4)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 32])
def test_the_minimiser_reaches_the_committed_rate(length):
    loc = torch.zeros(length, 3).double()
    q = DiagNormal(loc, committed_variance(ALPHA, length).sqrt(), event_dims=2)
    rate = kl_divergence(q, AR1(ALPHA, length))
    assert (rate - committed_rate(ALPHA, length)).abs() < 1e-10


@pytest.mark.parametrize("length", [2, 3, 8, 32])
@pytest.mark.parametrize("alpha", [0.3, 0.8, 0.99])
def test_an_optimiser_cannot_get_below_the_committed_rate(length, alpha):
    alpha = torch.tensor([alpha]).double()
    torch.manual_seed(0)
    loc = torch.randn(length, 1).double().requires_grad_()
    log_scale = torch.zeros(length, 1).double().requires_grad_()
    optimizer = torch.optim.LBFGS([loc, log_scale], max_iter=500, line_search_fn="strong_wolfe")

    def rate():
        q = DiagNormal(loc, log_scale.exp(), event_dims=2)
        return kl_divergence(q, AR1(alpha, length))

    def closure():
        optimizer.zero_grad()
        rate().backward()
        return rate()

    for _ in range(5):
        optimizer.step(closure)
    reached, least = rate().item(), committed_rate(alpha, length).item()
    assert reached > least - 1e-10
    assert reached == pytest.approx(least, abs=1e-6)  # and the bound is tight
    variance = (2 * log_scale).exp().detach()
    torch.testing.assert_close(variance, committed_variance(alpha, length), rtol=1e-3, atol=0)


def test_no_posterior_is_below_the_committed_rate():
    torch.manual_seed(0)
    for length in (2, 5, 20):
        scale = (4 * torch.randn(2000, length, 3).double()).exp()
        q = DiagNormal(torch.randn(2000, length, 3).double(), scale, event_dims=2)
        assert (kl_divergence(q, AR1(ALPHA, length)) >= committed_rate(ALPHA, length)).all()


def test_length_one_commits_to_nothing():
    assert committed_rate(ALPHA, 1).item() == 0
    q = DiagNormal(torch.zeros(1, 3).double(), torch.ones(1, 3).double(), event_dims=2)
    assert kl_divergence(q, AR1(ALPHA, 1)).abs() < 1e-14


def test_expand_and_shapes():
    prior = AR1(ALPHA, 4).expand((5,))
    assert isinstance(prior, AR1) and prior.batch_shape == (5,) and prior.event_shape == (4, 3)
    assert prior.rsample((2,)).shape == (2, 5, 4, 3)
    assert prior.log_prob(torch.zeros(4, 3).double()).shape == (5,)
    assert prior.entropy().shape == (5,)
    assert prior.mean.shape == prior.variance.shape == (5, 4, 3)


@pytest.mark.parametrize(
    ("alpha", "length", "message"),
    [
        ([1.0], 4, r"alpha in \[0, 1\)"),
        ([-0.1], 4, r"alpha in \[0, 1\)"),
        ([float("nan")], 4, r"alpha in \[0, 1\)"),
        ([[0.5]], 4, r"shape \(d,\)"),
        ([], 4, r"shape \(d,\)"),
        ([0.5], 0, "length of at least 1"),
        ([0.5], 2.5, "length of at least 1"),
    ],
)
def test_bad_arguments(alpha, length, message):
    for call in (AR1, committed_rate, committed_variance):
        with pytest.raises(ValueError, match=message):
            call(torch.tensor(alpha), length)


def test_events_that_would_broadcast_are_refused():
    prior = AR1(ALPHA, 4)
    with pytest.raises(ValueError, match="expected a value of shape"):
        prior.log_prob(torch.zeros(5, 1, 3).double())
    with pytest.raises(ValueError, match="expected equal event shapes"):
        kl_divergence(posterior(1), prior)
    with pytest.raises(ValueError):
        prior.log_prob(torch.full((4, 3), float("nan")).double())


def test_priors_do_not_share_the_tensor_they_were_made_from():
    alpha = torch.tensor([0.5, 0.9])
    one, other = AR1Prior(alpha, 4), AR1Prior(alpha, 4)
    other.load_state_dict({"alpha": torch.tensor([0.1, 0.2])})
    assert torch.equal(one.alpha, alpha) and alpha.tolist() == pytest.approx([0.5, 0.9])
