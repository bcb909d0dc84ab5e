# %% [markdown]
# # Solutions 11 · Encode the future
#
# The exercises of `notebooks/11_encode_the_future.ipynb`, solved and explained. This script runs by itself; each answer is checked by an `assert`.

# %%
import math

import torch
from torch.distributions import MultivariateNormal, kl_divergence

from vaelib.distributions import AR1, DiagNormal, committed_rate, committed_variance
from vaelib.encoders import AntiCausalEncoder

torch.manual_seed(0)

# %% [markdown]
# **1. A stricter order.** News at row $t$ are the rows $t \dots n$. Strictly below are $n - t$ rows, and all of them are news: $13 + 12 + \dots + 0 = 91$ pairs. Strictly above, none is.
#
# If $z_t$ depends on $x_1 \dots x_{t-1}$ and on noise alone, then, given these rows, it is independent of row $t$ and of all that follow. So $p(x_r | x_{<r}, z_{\le r}) = p(x_r | x_{<r})$ for the best decoder there can be: the latents cannot lower the distortion by anything, 0 nats. With the causal encoder of the notebook, each $z_t$ has one row of news, its own.

# %%
rows = 14
news = torch.ones(rows, rows).bool().triu()  # (t, row)
below, above = torch.ones(rows, rows).bool().triu(1), torch.ones(rows, rows).bool().tril(-1)
news_and_nats = (int((below & news).sum()), int((above & news).sum()), 0)

# A chain small enough to count: x1 a fair coin, z2 a noisy copy of it, x2 a noisy copy of it too.
copy = torch.tensor([[0.8, 0.2], [0.2, 0.8]], dtype=torch.float64)  # p(copy | x1)
joint = 0.5 * copy[:, :, None] * copy[:, None, :]  # (x1, z2, x2)
with_z = joint / joint.sum(2, keepdim=True)  # p(x2 | x1, z2)
told = (joint * (with_z / copy[:, None, :]).log()).sum()  # I(x2; z2 | x1)
assert abs(told) < 1e-12
assert news_and_nats == (91, 0, 0)
print("1.", news_and_nats)

# %% [markdown]
# **2. Depth in place of the running mean.** A kernel of 3 with all of its margin on top reaches 2 rows up. The first convolution and $L$ layers reach $2(L + 1)$ rows. The first latent vector must see 13 rows beyond its own (27 with 28 rows): $L \ge 13/2 - 1$, so 6; and $L \ge 27/2 - 1$, so 13. Or one running mean.


# %%
def layers(rows, kernel=3):
    """Least number of gated layers, so that all rows are within reach."""
    return max(0, math.ceil((rows - 1) / (kernel - 1)) - 1)


def rows_seen(rows, depth):
    """How many rows the first row's average sees, by gradient, without the running mean."""
    network = AntiCausalEncoder(1, (1, rows, 4), channels=2, layers=depth, kernel=3).double()
    with torch.no_grad():
        network.out.weight[:, 2:] = 0  # the weights of the running mean
    x = torch.rand(16, 1, rows, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x).loc[:, 0].sum(), x)
    return int((gradient.abs().sum((0, 1, 3)) > 0).sum())


layers_needed = (layers(14), layers(28))
for size, depth in zip((14, 28), layers_needed, strict=True):
    assert rows_seen(size, depth) == size and rows_seen(size, depth - 1) < size
assert layers_needed == (6, 13)
print("2.", layers_needed)

# %% [markdown]
# **3. An ideal accountant.** The best prior is the aggregate posterior itself. It charges the information and nothing else. If the code is silent, there is no information, and the rate is 0: all of $\delta$ was mismatch.

# %%
ALPHA = torch.tensor([0.9], dtype=torch.float64)
variance = committed_variance(ALPHA, rows)  # (rows, 1)
ones = torch.ones(rows, dtype=torch.float64)


def ar1_rate(s):
    """E[KL(q ‖ AR(1))] for means m ~ N(0, s²) in all rows: a square in m."""
    still, moved = (
        kl_divergence(DiagNormal(m * ones[:, None], variance.sqrt(), 2), AR1(ALPHA, rows))
        for m in (0, 1)
    )
    return float(still + s**2 * (moved - still))


def information(s):
    """I(x; z) = ½ ln(1 + s² Σ 1/σ²)."""
    return float(0.5 * torch.log1p(s**2 * (1 / variance).sum()))


three_rates = (ar1_rate(0.8), information(0.8), information(0.0))
aggregate = 0.64 * torch.outer(ones, ones) + variance[:, 0].diag()
lags = (torch.arange(rows)[:, None] - torch.arange(rows)).abs()
mismatch = kl_divergence(
    MultivariateNormal(0 * ones, aggregate), MultivariateNormal(0 * ones, ALPHA**lags)
)
assert math.isclose(three_rates[0], three_rates[1] + mismatch, abs_tol=1e-9)
assert math.isclose(ar1_rate(0.0), committed_rate(ALPHA, rows), abs_tol=1e-9)
assert torch.allclose(
    torch.tensor(three_rates).double(),
    torch.tensor([4.9292740, 2.1966004, 0.0], dtype=torch.float64),
    atol=1e-5,
)
print("3.", [round(value, 4) for value in three_rates])

# %% [markdown]
# **4. The best prior with one row of memory.** With $p(z) = q(z_1) \prod_t q(z_t | z_{t-1})$ the cross entropy $-\mathbb E_q[\log p]$ is $\sum_t H(z_t | z_{t-1})$, and the mismatch is what this exceeds the entropy of $q(z)$ by. All entropies are those of blocks of the covariance.
#
# The answer is sobering: the *best* prior with one row of memory charges hardly less than the AR(1) prior, whose parameters nobody has fitted, and more than twice the information. For this code, fitting is not the point, memory is. (The trained codes of the notebook differ from the toy: they are smaller than the prior expects, and one of the two channels is silent; there fitting saves the most.)


# %%
def entropy(covariance):
    """Of a Gaussian, nats."""
    return 0.5 * torch.logdet(2 * math.pi * math.e * covariance)


conditional = [
    entropy(aggregate[t - 1 : t + 1, t - 1 : t + 1]) - entropy(aggregate[t - 1 : t, t - 1 : t])
    for t in range(1, rows)
]
cross_entropy = entropy(aggregate[:1, :1]) + sum(conditional)
rate_with_one_row = information(0.8) + float(cross_entropy - entropy(aggregate))

assert three_rates[1] < rate_with_one_row < three_rates[0]
assert abs(rate_with_one_row - 4.7787224) < 1e-5
print("4.", round(rate_with_one_row, 4))


# %% [markdown]
# **5. A code that fills the prior.** $\Sigma - \sigma^2 I$ is a covariance as long as $\sigma^2$ is at most the smallest eigenvalue of $\Sigma$. The mixture of all posteriors is then $\mathcal N(0, \Sigma - \sigma^2 I + \sigma^2 I)$, the prior itself. So the rate is all information, the entropy of $q(z)$ less that of a posterior: ten nats.
#
# Can another code with independent rows fill this prior and say less? Not much. Let $d_t$ be its variances (averaged over images). What is left of $\Sigma$ for the means has no negative direction, so $\sum_t v_t^2 d_t \le v^\top \Sigma v$ for every vector $v$. The geometric mean of the $v_t^2 d_t$ is not above their arithmetic mean, so $\sum_t \ln d_t \le n \ln \tfrac{v^\top \Sigma v}{n} - \sum_t \ln v_t^2$. With signs that alternate from row to row, and 0.6 in place of 1 at both ends, this leaves at least nine nats.

# %%
process = ALPHA**lags
largest = float(torch.linalg.eigvalsh(process).min())
tiny = 0.05 * torch.eye(rows, dtype=torch.float64)
prior = MultivariateNormal(0 * ones, process)
# The mean of the KL over the means m ~ N(0, Σ − σ²I): its square in m has the mean tr Σ⁻¹(Σ − σ²I).
squares = torch.linalg.solve(process, process - tiny).trace()
rate = float(kl_divergence(MultivariateNormal(0 * ones, tiny), prior) + 0.5 * squares)
largest_and_rate = (largest, rate)

assert largest > 0.05 and math.isclose(rate, float(prior.entropy() - entropy(tiny)), abs_tol=1e-9)
assert torch.allclose(
    torch.tensor(largest_and_rate).double(),
    torch.tensor([0.0532928, 10.1753730], dtype=torch.float64),
    atol=1e-5,
)
signs = (-1.0) ** torch.arange(rows).double()
signs[[0, -1]] *= 0.6
log_variances = rows * (signs @ process @ signs / rows).log() - signs.square().log().sum()
at_least = 0.5 * (torch.logdet(process) - log_variances)
assert 9 < at_least < rate
print("5.", [round(value, 4) for value in largest_and_rate], "at least", round(float(at_least), 2))
