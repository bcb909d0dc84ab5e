# %% [markdown]
# # Solutions 04 · Race wake-sleep
#
# The exercises of `notebooks/04_race_wake_sleep.ipynb`, solved and explained. This script runs by itself; each answer is checked by an `assert`.

# %%
import math

import numpy as np
import torch
from torch.distributions import Normal, kl_divergence

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
grid = torch.linspace(-8, 8, 4001)
step = float(grid[1] - grid[0])

# %% [markdown]
# **1. Moment matching.** Only $-\mathbb E_p[\log q]$ depends on $q$. For a Gaussian it is
#
# $$\tfrac12 \ln(2\pi s^2) + \frac{\mathbb E_p[(z - m)^2]}{2 s^2}, \qquad \mathbb E_p[(z - m)^2] = \operatorname{Var}_p[z] + (\mathbb E_p[z] - m)^2 .$$
#
# The derivative in $m$ is zero at $m = \mathbb E_p[z]$. Then the derivative in $s^2$, $\frac{1}{2s^2} - \frac{\operatorname{Var}_p[z]}{2s^4}$, is zero at $s^2 = \operatorname{Var}_p[z]$. Nothing about $p$ but its first two moments has any influence.
#
# For two halves at $\pm 2$ with deviation $0.5$, the mean is 0 and the variance is the mean square: $2^2 + 0.5^2$. So $s = \sqrt{4.25} \approx 2.06$.

# %%
width = math.sqrt(2**2 + 0.5**2)

p = sum(Normal(centre, 0.5).log_prob(grid).exp() / 2 for centre in (-2.0, 2.0))


def cross_entropy(m, s):
    """−E_p[log N(z; m, s²)] in nats, on the grid."""
    return float(-(p * Normal(m, s).log_prob(grid)).sum() * step)


least = cross_entropy(0.0, width)
assert all(cross_entropy(m, width) > least for m in (-0.05, 0.05))
assert all(cross_entropy(0.0, width * factor) > least for factor in (0.97, 1.03))
print("1.", round(width, 3))

# %% [markdown]
# **2. Both directions of one divergence.** For two Gaussians with the same mean,
#
# $$\mathrm{KL}\big(\mathcal N(0, a^2) \,\|\, \mathcal N(0, b^2)\big) = \tfrac12\Big(\frac{a^2}{b^2} - 1 - \ln\frac{a^2}{b^2}\Big).$$
#
# Too wide ($s = 2$): $\mathrm{KL}(q\|p) = \frac12(4 - 1 - \ln 4) = 0.807$ and $\mathrm{KL}(p\|q) = \frac12(\frac14 - 1 + \ln 4) = 0.318$. Too narrow ($s = \frac12$): the same two numbers, exchanged.
#
# The bound's direction punishes a $q$ that is too wide, sleep's direction one that is too narrow. Hence AEVB's encoders, when they err, are overconfident, and wake-sleep's are vague.


# %%
def kl(a, b):
    """KL(N(0, a²) ‖ N(0, b²)), nats."""
    ratio = a**2 / b**2
    return 0.5 * (ratio - 1 - math.log(ratio))


four = [kl(2, 1), kl(1, 2), kl(0.5, 1), kl(1, 0.5)]

exact = [
    kl_divergence(Normal(0.0, a), Normal(0.0, b)) for a, b in ((2, 1), (1, 2), (0.5, 1), (1, 0.5))
]
assert np.allclose(four, [float(value) for value in exact], rtol=1e-12)
assert math.isclose(four[0], four[3]) and math.isclose(four[1], four[2])
print("2.", [round(value, 3) for value in four])

# %% [markdown]
# **3. A race over computation.** When AEVB has seen 30,000 images, wake-sleep has had time for 15,000. Read both curves there: AEVB is halfway between $-200$ and $-160$, wake-sleep halfway between $-220$ and $-200$. The lead is 30 nats. Note that the lead at equal *samples* would be different, and that one must not extrapolate: `np.interp` returns the last value beyond the end of a curve, without a warning.

# %%
made_up = {
    "aevb": [{"samples": 10_000, "test_bound": -200.0}, {"samples": 50_000, "test_bound": -160.0}],
    "wake-sleep": [
        {"samples": 5_000, "test_bound": -220.0},
        {"samples": 25_000, "test_bound": -200.0},
    ],
}


def bound_at(rows, samples):
    """The test bound at a number of samples between two rows, nats per image."""
    seen, bounds = [[row[key] for row in rows] for key in ("samples", "test_bound")]
    return float(np.interp(samples, seen, bounds))


ahead_in_time = bound_at(made_up["aevb"], 30_000) - bound_at(made_up["wake-sleep"], 30_000 / 2)

assert math.isclose(ahead_in_time, 30.0)
print("3.", ahead_in_time)

# %% [markdown]
# **4. Without quarrel.** With $p(x|z) = \mathcal N(x; z, 0.5^2)$ the posterior is Gaussian: precisions add, $1 + 1/0.25 = 5$, so its variance is $0.2$ and its mean is $0.2 \cdot 4 \cdot x = 1.6$ for $x = 2$. A Gaussian encoder can be *equal* to it, and there both divergences are zero. Both directions have the same, single minimum: mean $1.6$, deviation $\sqrt{0.2} \approx 0.447$.
#
# In this model the sleep phase finds the encoder that the bound asks for. The dreams are no obstacle either, if the encoder is flexible enough to be right for every image, dreamed or not. What remains is speed.

# %%
meeting = [1.6, math.sqrt(0.2)]

joint = Normal(0.0, 1.0).log_prob(grid) + Normal(grid, 0.5).log_prob(torch.tensor(2.0))
log_p = joint - joint.logsumexp(0) - math.log(step)
log_q = Normal(*meeting).log_prob(grid)
inside = log_p > -200  # where the density is not zero in floating point
assert abs(float(((log_q.exp() * (log_q - log_p))[inside]).sum() * step)) < 1e-9
assert abs(float(((log_p.exp() * (log_p - log_q))[inside]).sum() * step)) < 1e-9
print("4.", [round(value, 3) for value in meeting])

# %% [markdown]
# **5. To try.** What follows is for classroom scale and the real faces, with the seed 0 except where another is named. Another seed (we tried three) changes most curves by a few nats, some by fifteen or more, and the order of no panel.
#
# If AEVB may use nothing but 0.01, it is slowed wherever it had chosen a larger step: on the digits by 15 to 25 nats, which gives wake-sleep the lead in every panel but Nz = 20, and on the faces with 2 and 5 latents by 9 and 15 nats, not enough to lose. With 10 and 20 latents on the faces nothing changes, for there 0.01 had been chosen anyway. So much hangs on a step size, and a race that gives it to one runner only proves nothing.
#
# Twenty hidden units make most of the choices fall on 0.1. AEVB with 3 latents hardly notices on the digits: there the latents are the bottleneck and not the network. With 5, 10 and 20 latents it ends 10 to 26 nats lower. Wake-sleep ends all races at the height of a decoder that ignores $z$ or below, the dead end of section 7. Where AEVB does not get off that plateau either (200 latents on the digits; 2, 5 and 20 on the faces), wake-sleep, which has the less disturbed decoder, is a little ahead, and claim 3 fails.
