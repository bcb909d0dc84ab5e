# %% [markdown]
# # Solutions 05 · Estimate the marginal likelihood
#
# The exercises of `notebooks/05_estimate_the_marginal_likelihood.ipynb`, solved and explained. This script runs by itself; each answer is checked by an `assert`.

# %%
import math

import torch

from vaelib.inference import hmc

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# **1. Counting chains.** Ten million samples over 50,000 images are 200 visits of each. At 10 leapfrog steps a visit, each chain has made 2,000 leapfrog steps: about as many as a careful sampler spends on *one* posterior, and here the posterior moves all the time.
#
# A pass over the data has 500 minibatches. Each makes five weight updates, so 2,500 updates lie between two visits of a datum. The chain comes back to a posterior that is no longer the one it left.

# %%
images, batch, samples, leapfrog_steps, updates = 50_000, 100, 10_000_000, 10, 5
chain = (samples // images * leapfrog_steps, images // batch * updates)

visits = torch.zeros(20, dtype=torch.int64)  # the same, played through on a small scale
for rows in list(torch.arange(20).split(4)) * 3:
    visits[rows] += 1
assert (visits == 20 * 3 // 20).all() and len(torch.arange(20).split(4)) == 20 // 4
assert chain == (2000, 2500)
print("1.", chain)

# %% [markdown]
# **2. Another resonance.** In the round bowl ($\sigma = 1$) one leapfrog step turns by $2 \arcsin(\varepsilon/2)$, and eight steps make one turn if $\varepsilon = 2 \sin(\pi/8)$. For another $\sigma$ measure lengths in units of $\sigma$: with $z = \sigma u$ the slope in $u$ is that of a standard normal, and a step $\varepsilon$ in $z$ is a step $\varepsilon / \sigma$ in $u$. So
#
# $$\varepsilon = 2\,\sigma \sin(\pi/8) \approx 0.383 .$$

# %%
sigma = 0.5
standstill_size = 2 * sigma * math.sin(math.pi / 8)


def log_density(z):
    return -(z / sigma).square().sum(-1) / 2


state = hmc.init(log_density, sigma * torch.randn(200, 1))
still, info = hmc.step(log_density, state, standstill_size, leapfrog_steps=8, jitter=0.0)
assert (still.position - state.position).abs().max() < 1e-10 and info.is_accepted.all()
other, _ = hmc.step(log_density, state, 0.8 * standstill_size, leapfrog_steps=8, jitter=0.0)
assert (other.position - state.position).abs().mean() > 0.1  # another size does move
print("2.", round(standstill_size, 4))

# %% [markdown]
# **3. The harmonic mean's trouble.** With $q = p(z)$ the integrand is $p(z)^2 / (p(z)\, p(x|z)) = p(z)/p(x|z)$. Its exponent is
#
# $$-\tfrac12 z^2 + \tfrac{1}{2 s^2} (x - z)^2 = \tfrac12 \Big(\tfrac1{s^2} - 1\Big) z^2 - \tfrac{x}{s^2} z + \text{const} .$$
#
# For $s > 1$ the leading term is negative and the integral finite. For $s < 1$ it explodes; at $s = 1$ the linear term is left, which explodes on one side unless $x = 0$. So the harmonic mean has infinite variance whenever the datum says *more* about the cause than the prior does. That is every interesting case.

# %%
smallest_s = 1.0


def integral(s, reach, x=1.0):
    """∫ p(z) / p(x|z) dz over [−reach, reach]."""
    z = torch.linspace(-reach, reach, 20_001)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    return torch.trapezoid(
        (prior - torch.distributions.Normal(z, s).log_prob(torch.tensor(x))).exp(), z
    )


assert torch.isclose(integral(1.1, 30), integral(1.1, 60), rtol=1e-6)  # it has converged
assert integral(0.9, 60) > 1e6 * integral(0.9, 30)  # it never will
assert integral(1.0, 60) > 1e6 * integral(1.0, 30)  # at the edge: not for x = 1
print("3.", smallest_s)

# %% [markdown]
# **4. How high is the next rung?** Write the mean of $K$ weights as $p(x)(1 + \delta)$. Then $\mathbb E[\delta] = 0$ and $\mathbb E[\delta^2] = \operatorname{Var}[w]/(K\, p(x)^2)$. Expand:
#
# $$\mathcal L_K = \log p(x) + \mathbb E[\log(1 + \delta)] \approx \log p(x) + \mathbb E[\delta] - \tfrac12 \mathbb E[\delta^2] = \log p(x) - \frac{\operatorname{Var}[w]}{2 K\, p(x)^2} .$$
#
# The mean of the weights estimates $p(x)$. So $\operatorname{Var}[w]/p(x)^2$ is estimated by the variance of the weights divided by their squared mean; the unknown scale cancels. (It is also $n / \mathrm{ESS} - 1$ for $n$ weights: the effective sample size and the height of the next rung are the same information.)
#
# The weights here are log-normal, with $\operatorname{Var}[w]/p^2 = e^{0.25} - 1$, and the estimate is good to a few per cent. Where the weights have a heavy tail it would be far too low, and where their variance is infinite the formula means nothing.

# %%
torch.manual_seed(0)
log_w = -3 + 0.5 * torch.randn(20_000)
w = (log_w - log_w.max()).exp()
gap_at_100 = (w.var(correction=0) / w.mean().square() / (2 * 100)).item()

exact = (math.exp(0.25) - 1) / 200
assert abs(gap_at_100 / exact - 1) < 0.1
effective = w.sum().square() / w.square().sum()
assert math.isclose(gap_at_100, (len(w) / effective.item() - 1) / 200, rel_tol=1e-9)
many = -3 + 0.5 * torch.randn(20_000, 100)  # the gap itself, measured
measured = -3 + 0.125 - (many.logsumexp(1) - math.log(100)).mean().item()
assert abs(measured - exact) < 5 * (2 * exact / 20_000) ** 0.5
print("4.", round(gap_at_100, 6), "measured", round(measured, 4))
