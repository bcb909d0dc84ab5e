"""Every setting of an update or an estimator does what its docstring says: steps by hand."""

import copy

import pytest
import torch
from scipy.stats import gaussian_kde
from torch.distributions import Normal, kl_divergence

from vaelib import VAE, hmc, likelihood
from vaelib.decoders import BernoulliMLP, VariationalWeights
from vaelib.distributions import AR1, DiagNormal, kl_terms
from vaelib.encoders import MLPEncoder
from vaelib.learning import aevb_step, mcem_step, variational_bayes_step, wake_sleep_step
from vaelib.likelihood import appendix_d, importance_sampled, log_joint
from vaelib.linear_vae import PPCA
from vaelib.noise import Part, noise_of
from vaelib.objectives import Beta
from vaelib.priors import StandardNormal

SHAPE = (1, 4, 3)
ALPHA = torch.tensor([0.0, 0.5, 0.95]).double()


def small_vae():
    torch.manual_seed(0)
    return VAE(MLPEncoder(2, SHAPE, 6), StandardNormal(2), BernoulliMLP(2, SHAPE, 6))


def sgd(module, lr=0.1):
    return torch.optim.SGD(module.parameters(), lr=lr)


# learning ------------------------------------------------------------------------------------


def test_the_rate_of_the_weights_is_shared_among_all_the_data():
    """A batch of 5 out of 40 data, three draws of z: one SGD step by hand."""
    vae, x = small_vae(), torch.rand(5, *SHAPE)
    vae.decoder = VariationalWeights(vae.decoder, scale=0.1)
    by_hand = copy.deepcopy(vae)
    torch.manual_seed(1)
    bound = variational_bayes_step(vae, x, 40, sgd(vae), samples=3)
    torch.manual_seed(1)
    expected = by_hand.elbo(x, samples=3)
    (by_hand.decoder.rate() / 40 - expected.value.mean()).backward()
    for ours, theirs in zip(vae.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.1 * theirs.grad)
    torch.testing.assert_close(bound.value, expected.value.detach())


def test_an_objective_gets_as_many_samples_as_asked():
    vae, x = small_vae(), torch.rand(5, *SHAPE)
    torch.manual_seed(1)
    bound = aevb_step(vae, x, sgd(vae, lr=0.0), samples=3, objective=Beta(0.5))
    torch.manual_seed(1)
    torch.testing.assert_close(bound.value, vae.elbo(x, samples=3).value.detach())


def test_mcem_step_is_a_trajectory_and_then_the_updates():
    vae, x, z = small_vae(), torch.rand(5, *SHAPE), torch.randn(5, 2)
    by_hand = copy.deepcopy(vae)
    torch.manual_seed(1)
    found = mcem_step(vae, x, z, 0.3, sgd(vae.decoder), leapfrog_steps=3, updates=2, target=0.6)
    torch.manual_seed(1)
    joint, optimizer = log_joint(by_hand, x), sgd(by_hand.decoder)
    state, info = hmc.step(joint, hmc.init(joint, z), 0.3, 3)
    for _ in range(2):
        optimizer.zero_grad()
        (-by_hand.decoder(state.position).log_prob(x).mean()).backward()
        optimizer.step()
    assert torch.equal(found.z, state.position)
    torch.testing.assert_close(found.log_joint, state.log_density)  # before the updates
    size = 0.3 * (0.1 * (info.acceptance.mean() - 0.6)).exp()
    torch.testing.assert_close(found.step_size, size)
    for ours, theirs in zip(vae.decoder.parameters(), by_hand.decoder.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def steps():
    weights = lambda vae: setattr(vae, "decoder", VariationalWeights(vae.decoder))  # noqa: E731
    return [
        (lambda v, x, b: mcem_step(v, x, torch.randn(5, 2), 0.1, sgd(v), updates=2, backward=b), 2),
        (lambda v, x, b: wake_sleep_step(v, x, (sgd(v.decoder), sgd(v.encoder)), backward=b), 2),
        (lambda v, x, b: (weights(v), variational_bayes_step(v, x, 9, sgd(v), backward=b)), 1),
        (lambda v, x, b: aevb_step(v, x, sgd(v), backward=b), 1),
    ]


@pytest.mark.parametrize("which", range(4))
def test_gradients_from_before_a_step_do_not_count(which):
    step, ends = steps()[which][0], []
    for stale in (0.0, 100.0):
        vae = small_vae()
        for parameter in vae.parameters():
            parameter.grad = torch.full_like(parameter, stale)
        torch.manual_seed(1)
        step(vae, torch.rand(5, *SHAPE), torch.Tensor.backward)
        ends.append(vae.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


@pytest.mark.parametrize("which", range(4))
def test_every_loss_goes_through_the_engines_backward(which):
    seen = []

    def backward(loss):
        seen.append(loss.item())
        loss.backward()

    step, count = steps()[which]
    step(small_vae(), torch.rand(5, *SHAPE), backward)
    assert len(seen) == count


# distributions -------------------------------------------------------------------------------


def test_each_term_of_two_normals_is_the_kl_of_its_own_dimension():
    q = DiagNormal(torch.randn(5, 4, 3).double(), torch.rand(5, 4, 3).double() + 0.2, 2)
    p = DiagNormal(torch.randn(4, 3).double(), torch.rand(4, 3).double() + 0.2, 2)
    each = kl_divergence(Normal(q.loc, q.scale), Normal(p.loc, p.scale))
    torch.testing.assert_close(kl_terms(q, p), each)


def test_terms_up_to_row_t_are_the_rate_of_a_process_of_t_rows():
    """The beginning of an AR(1) process is an AR(1) process: the chain rule, row by row."""
    loc, scale = torch.randn(4, 6, 3).double(), torch.rand(4, 6, 3).double() + 0.2
    terms = kl_terms(DiagNormal(loc, scale, 2), AR1(ALPHA, 6))
    for t in range(1, 7):
        for k in range(3):
            q = DiagNormal(loc[:, :t, k : k + 1], scale[:, :t, k : k + 1], 2)
            rate = kl_divergence(q, AR1(ALPHA[k : k + 1], t))
            torch.testing.assert_close(terms[:, :t, k].sum(1), rate)


def test_a_draw_for_part_of_a_batch_carries_a_gradient_only_if_asked():
    q = DiagNormal(torch.zeros(3, 2, requires_grad=True), torch.ones(3, 2))
    with noise_of(Part(0, 3, 5, 0.6), torch.Generator()):
        assert q.rsample().requires_grad and not q.sample().requires_grad


def test_a_subclass_may_have_its_own_kl_and_is_not_split():
    class Own(DiagNormal):
        pass

    p = StandardNormal(2)()
    assert kl_terms(Own(torch.zeros(2), torch.ones(2)), p) is None


# likelihood ----------------------------------------------------------------------------------


def test_the_fitted_gaussian_has_the_moments_of_the_samples():
    z = torch.randn(7, 2, 3).double()
    q = likelihood._gaussian(z)
    torch.testing.assert_close(q.mean, z.mean(0))
    for b in range(2):
        expected = torch.cov(z[:, b].T) + 1e-6 * torch.eye(3).double()
        torch.testing.assert_close(q.covariance_matrix[b], expected)
    still = likelihood._gaussian(torch.zeros(7, 2, 3).double())  # a chain that never moved
    assert still.log_prob(torch.zeros(2, 3).double()).isfinite().all()


def test_the_kernel_density_is_scipys_with_scotts_bandwidth():
    z, at = torch.randn(40, 1, 3).double(), torch.randn(5, 3).double()
    exact = gaussian_kde(z[:, 0].T.numpy(), "scott").logpdf(at.T.numpy())
    # A millionth is added to the covariance.
    torch.testing.assert_close(
        likelihood._kernel(z).log_prob(at.unsqueeze(1))[:, 0],
        torch.tensor(exact),
        rtol=0,
        atol=1e-4,
    )


def test_appendix_d_takes_the_trajectories_that_it_is_asked_for(monkeypatch):
    model = PPCA(torch.randn(4, 2).double(), torch.zeros(4).double(), 0.5)
    vae, calls, sizes = VAE(*model.slots()), [], []
    vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    sample = hmc.sample
    monkeypatch.setattr(
        hmc, "sample", lambda *a, **k: (sizes.append(a[2].shape), sample(*a, **k))[1]
    )
    appendix_d(vae, torch.randn(3, 4).double(), samples=5, leapfrog_steps=4, burn_in=6, thin=3)
    # The start, the burn-in, two times five samples, and the density of the second five.
    assert len(calls) == 1 + 4 * 6 + 2 * 4 * 5 * 3 + 5
    assert sizes == [(3,), (3,)]  # a step size for each chain


def test_one_datum_without_a_batch_is_refused():
    vae, one = small_vae(), torch.rand(SHAPE)
    for estimate in (importance_sampled, appendix_d):
        with pytest.raises(ValueError, match="expected a batch"):
            estimate(vae, one)
