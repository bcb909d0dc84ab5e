# %% [markdown]
# # Solutions 10 · Commit a rate
#
# The exercises of `notebooks/10_commit_a_rate.ipynb`, solved and explained. This script runs by itself; each answer is checked by an `assert`.

# %%
import math

import torch
from scipy.optimize import brentq
from torch.distributions import MultivariateNormal, kl_divergence

from vaelib.distributions import AR1, DiagNormal, committed_rate, committed_variance
from vaelib.posteriors import variance_roots

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


def delta(n, *alpha):
    """The library's committed rate, nats."""
    return committed_rate(torch.tensor(alpha), n).item()


def mean_field_gap(precision):
    """The least KL(q ‖ N(0, Λ⁻¹)) over all q with independent rows, nats."""
    return 0.5 * (precision.diagonal().log().sum() - precision.logdet())


# %% [markdown]
# **1. The poor man's δ-VAE.** With $\sigma$ fixed, the least rate is at $\mu = 0$: $\tfrac12(\sigma^2 - 1 - \ln\sigma^2)$. Setting it to $\delta$ gives $2\delta + 1 + \ln\sigma^2 - \sigma^2 = 0$. That is $g(\sigma^2) = 0$, so the two answers are the highest and the lowest point of the egg, which `variance_roots` computes.
#
# What is lost is everything beside the egg: all posteriors with $\sigma$ between the roots and $|\mu|$ large enough. With $\sigma$ fixed, all images are encoded with the same precision, and the fee is spent on the *wrong width* alone, which tells nothing about the image. In the family of section 2 the fee can be paid with the mean, and the sign of the mean can carry information.

# %%
two_scales = [math.sqrt(root) for root in variance_roots(0.5)]

standard = DiagNormal(torch.zeros(1), torch.ones(1))
for scale in two_scales:
    rate = kl_divergence(DiagNormal(torch.zeros(1), torch.tensor([scale])), standard)
    assert math.isclose(rate.item(), 0.5, rel_tol=1e-9)
print("1.", [round(scale, 3) for scale in two_scales])

# %% [markdown]
# **2. A budget.** $\delta$ rises with $\alpha$ from 0 without limit, so there is exactly one answer. `brentq` finds it between two values of $\alpha$ at which $\delta - 10$ has different signs.

# %%
alpha_for_ten = brentq(lambda alpha: delta(24, alpha, alpha) - 10, 0.01, 0.999, xtol=1e-12)

assert math.isclose(delta(24, alpha_for_ten, alpha_for_ten), 10, rel_tol=1e-9)
print("2.", round(alpha_for_ten, 3))

# %% [markdown]
# **3. Another prior.** Equicorrelated rows are what you get from *one* shared number plus independent noise: $z_t = \sqrt c\, u + \sqrt{1 - c}\,\epsilon_t$. A posterior with independent rows has no trouble with the noise. Its means can follow $u$; the only thing that it cannot express is that all rows share one uncertainty about $u$. That is one mismatch for the whole sequence, and its price grows only like $\tfrac12 \ln n$. In an AR(1) process something new happens at every step. Each step couples two neighbours, each coupling is a mismatch of its own, and the fee grows in proportion to $n$.
#
# A prior with one shared number favours features that are *constant* over the image, AR(1) favours slow ones. As a commitment it is weak: one number, known from many noisy rows, soon costs no more.

# %%
fees = {}
for n in (14, 28, 56):
    equicorrelated = torch.full((n, n), 0.9)
    equicorrelated.fill_diagonal_(1.0)
    fees[n] = mean_field_gap(torch.linalg.inv(equicorrelated)).item(), delta(n, 0.9)
two_fees = fees[14]

covariance = torch.full((14, 14), 0.9) + 0.1 * torch.eye(14)
best = torch.diag(1 / torch.linalg.inv(covariance).diagonal())  # the variances 1 / Λ_tt
q, p = (MultivariateNormal(torch.zeros(14), matrix) for matrix in (best, covariance))
assert math.isclose(
    kl_divergence(q, p).item(), two_fees[0], rel_tol=1e-6
)  # the minimiser reaches it
assert two_fees[0] < two_fees[1] / 2
first, second = fees[28][0] - fees[14][0], fees[56][0] - fees[28][0]
assert abs(first - 0.5 * math.log(2)) < 0.05 and abs(second - 0.5 * math.log(2)) < 0.05
assert fees[56][1] > 3.5 * fees[14][1]
print("3.", [round(fee, 3) for fee in two_fees], {n: round(one, 2) for n, (one, _) in fees.items()})

# %% [markdown]
# **4. A guarantee for each channel.** The channels of the prior are independent, and so are all entries of the posterior given $x$. The KL divergence of two products is the sum of the divergences, one for each channel. Each term has its own minimum, $\delta_k$, and contains no parameter of another channel's posterior. (They come from the same network, but the bound holds for any values that it may put out.) So the channel $\alpha = 0.5$ pays at least $\delta$ of a single channel, whatever the others do.
#
# The condition matters. If the rows of the posterior could be correlated, $q = p$ would be allowed, and the least rate would be zero.

# %%
fee_of_one_channel = delta(20, 0.5)
assert math.isclose(fee_of_one_channel, 2.1521330, rel_tol=1e-6)

alpha = torch.tensor([0.5, 0.9])
scale = committed_variance(alpha, 20).sqrt().clone()
scale[:, 1] *= 5  # the other channel pays far too much
q = DiagNormal(torch.zeros(20, 2), scale, event_dims=2)
one = DiagNormal(torch.zeros(20, 1), scale[:, :1], event_dims=2)
other = DiagNormal(torch.zeros(20, 1), scale[:, 1:], event_dims=2)
parts = kl_divergence(one, AR1(alpha[:1], 20)), kl_divergence(other, AR1(alpha[1:], 20))
assert torch.isclose(kl_divergence(q, AR1(alpha, 20)), sum(parts))
assert math.isclose(parts[0].item(), fee_of_one_channel, rel_tol=1e-9)
assert parts[1].item() > delta(20, 0.9) + 10
print("4.", round(fee_of_one_channel, 3))
