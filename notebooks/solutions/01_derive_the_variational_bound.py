# %% [markdown]
# # 01 · Derive the variational bound: solutions
#
# Each solution says why before it says how, and ends with the check that it is right. The script stands alone: it rebuilds the room with two heaters and four thermometers.

# %%
import math

import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

W = torch.tensor([[1.0, 0.3], [0.8, 0.6], [0.5, 0.9], [0.2, 1.0]])
NOISE = 0.5


def evidence(W):
    """The exact p(x) = N(0, W Wᵀ + s² I)."""
    return MultivariateNormal(torch.zeros(4), W @ W.T + NOISE**2 * torch.eye(4))


def posterior(W, x):
    """The exact p(z|x), one Gaussian for each x (B, 4)."""
    precision = torch.eye(2) + W.T @ W / NOISE**2
    mean = torch.linalg.solve(precision, (x @ W / NOISE**2).T).T
    return MultivariateNormal(mean, precision_matrix=precision.expand(len(x), -1, -1))


def elbo(W, q, x):
    """Equation 3 in closed form, (B,) nats."""
    prior = MultivariateNormal(torch.zeros_like(q.mean), torch.eye(2))
    spread = (W.T @ W * q.covariance_matrix).sum((-2, -1)) / (2 * NOISE**2)
    likelihood = Normal(q.mean @ W.T, NOISE).log_prob(x).sum(-1)
    return likelihood - spread - kl_divergence(q, prior)


def mean_field(W, x):
    """The best q with a diagonal covariance: exact mean, variances 1 / Λ_ii."""
    true = posterior(W, x)
    variances = 1 / true.precision_matrix.diagonal(dim1=-2, dim2=-1)
    return MultivariateNormal(true.mean, torch.diag_embed(variances))


x = torch.randn(500, 2) @ W.T + NOISE * torch.randn(500, 4)

# %% [markdown]
# ## 1. Nats and bits
#
# A nat is $1/\ln 2 \approx 1.44$ bits. The mean-field gap is the same for each reading, so the waste is 500 times the gap, divided by $\ln 2$. That is the length of a short text message, for not slanting an ellipse.

# %%
precision = torch.eye(2) + W.T @ W / NOISE**2
formula = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
wasted_bits = 500 * formula / math.log(2)
measured = (evidence(W).log_prob(x) - elbo(W, mean_field(W, x), x)).sum() / math.log(2)
print(f"1. {wasted_bits:.1f} bits wasted; summed over 500 readings: {measured:.1f}")
assert torch.isclose(wasted_bits, measured, rtol=0, atol=1e-6)

# %% [markdown]
# ## 2. The divergence of two Gaussians
#
# $$\log q - \log p = \ln\frac{s_2}{s_1} - \frac{(z - m_1)^2}{2 s_1^2} + \frac{(z - m_2)^2}{2 s_2^2}.$$
#
# Under $q$ the first square has mean $s_1^2$ and the second $(m_1 - m_2)^2 + s_1^2$:
#
# $$\mathrm{KL} = \ln\frac{s_2}{s_1} - \frac12 + \frac{(m_1 - m_2)^2 + s_1^2}{2 s_2^2}.$$


# %%
def kl_of_normals(m1, s1, m2, s2):
    return torch.log(s2 / s1) - 0.5 + ((m1 - m2) ** 2 + s1**2) / (2 * s2**2)


m1, m2 = torch.randn(2, 1000)
s1, s2 = torch.rand(2, 1000) + 0.1
error = (kl_of_normals(m1, s1, m2, s2) - kl_divergence(Normal(m1, s1), Normal(m2, s2))).abs().max()
print("2. equal to torch's rule for 1,000 pairs:", bool(error < 1e-9))
assert error < 1e-9
appendix_b = 0.5 * (m1**2 + s1**2 - 1 - torch.log(s1**2))
zero, one = torch.zeros(1000), torch.ones(1000)
assert torch.allclose(kl_of_normals(m1, s1, zero, one), appendix_b, rtol=0, atol=1e-9)

# %% [markdown]
# ## 3. Too sure of itself
#
# The gap is $\mathrm{KL}(q\,\|\,p)$ with equal means and $\Sigma_q = c^2 \Sigma_p$. A linear change of variables leaves a divergence as it is, so take $\Sigma_p = I$: the divergence is $d$ times that of $\mathcal N(0, c^2)$ from $\mathcal N(0, 1)$,
#
# $$\text{gap} = \frac d2\,\big(c^2 - 1 - \ln c^2\big).$$
#
# The model drops out: only the number of latents is left. And $c = 2$ costs more than $c = \tfrac12$: $q$ is punished for inventing more than for leaving out. Both are finite; only $c \to 0$ costs infinitely much, and slowly, like $-d \ln c$.


# %%
def gap_of_width(c, d):
    return d / 2 * (c**2 - 1 - torch.log(c**2))


for c in torch.tensor([0.1, 0.5, 1.0, 2.0]):
    true = posterior(W, x)
    q = MultivariateNormal(true.mean, c**2 * true.covariance_matrix)
    error = (evidence(W).log_prob(x) - elbo(W, q, x) - gap_of_width(c, 2)).abs().max()
    print(
        f"3. c = {c:.1f}: gap {gap_of_width(c, 2):.3f} nats for every reading:", bool(error < 1e-9)
    )
    assert error < 1e-9
assert gap_of_width(torch.tensor(2.0), 2) > gap_of_width(torch.tensor(0.5), 2)

# %% [markdown]
# ## 4. The other direction
#
# $\mathrm{KL}(p\,\|\,q) = \text{constant} - \mathbb E_p[\log q]$, and
#
# $$-\mathbb E_p[\log q] = \ln s + \frac{\mathbb E_p[(z - m)^2]}{2 s^2} + \text{constant}.$$
#
# The derivative in $m$ vanishes at $m = \mathbb E_p[z]$. The derivative in $s$, $1/s - \mathbb E_p[(z - m)^2]/s^3$, vanishes at $s^2 = \mathbb E_p[(z - m)^2]$. The best Gaussian has the mean and the variance of the posterior: *moment matching*.

# %%
STEP = 0.01
grid = torch.linspace(-5, 5, 1001)
curve = 2 * torch.stack([torch.cos(1.2 * grid), torch.sin(1.2 * grid)], dim=-1)
log_joint = Normal(curve, 0.25).log_prob(torch.tensor([-0.6, 0.1])).sum(-1)
log_joint = log_joint + Normal(0.0, 1.0).log_prob(grid)
target = (log_joint - log_joint.logsumexp(0)).exp() / STEP  # the posterior near the gap

mean = (STEP * target * grid).sum()
scale = (STEP * target * (grid - mean) ** 2).sum().sqrt()
print(f"4. mean {mean:.3f}, scale {scale:.3f}")


def cross_entropy(mean, scale):
    return -(STEP * target * Normal(mean, scale).log_prob(grid)).sum()


place = torch.stack([mean, scale]).requires_grad_()
(slope,) = torch.autograd.grad(cross_entropy(*place), place)
print("   no slope there:", bool(slope.abs().max() < 1e-9))
assert slope.abs().max() < 1e-9
nearby = [cross_entropy(mean + a, scale + b) for a in (-0.1, 0, 0.1) for b in (-0.1, 0, 0.1)]
assert min(nearby) == nearby[4]

# %% [markdown]
# ## 5. When is mean field exact?
#
# When the posterior is axis-aligned: $\Lambda = I + W^\top W/s^2$ diagonal, that is, when **the columns of $W$ are orthogonal**. Two heaters that warm the thermometers in orthogonal patterns need no explaining away.
#
# Rotating the causes changes $W^\top W$ to $R^\top W^\top W R$. Take as $R$ the eigenvectors of $W^\top W$ (the right singular vectors of $W$), and it is diagonal. $p(x)$ depends on $W W^\top = W R R^\top W^\top$ only, so it stays as it was. For that, $R$ has to be orthogonal: a matrix of zeros has no gap either, but it makes another model.
#
# Keep this in mind for later: the evidence does not care about the rotation, but the *bound of a mean-field encoder does*. Maximising that bound therefore picks orthogonal columns. Notebook 07 meets this again.

# %%
R = torch.linalg.eigh(W.T @ W).eigenvectors
turned = W @ R
gap = (evidence(turned).log_prob(x) - elbo(turned, mean_field(turned, x), x)).abs().max()
print("5. R is orthogonal:", torch.allclose(R.T @ R, torch.eye(2)))
print("   same p(x):", torch.allclose(evidence(turned).log_prob(x), evidence(W).log_prob(x)))
print("   no gap left, to 1e-9 nats:", bool(gap < 1e-9), f"(before: {formula:.2f} nats)")
assert torch.allclose(R.T @ R, torch.eye(2))
assert torch.allclose(evidence(turned).log_prob(x), evidence(W).log_prob(x))
assert gap < 1e-9 and formula > 0.1
