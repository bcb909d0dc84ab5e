# %% [markdown]
# # Solutions to 00 · Start here
#
# Each solution is a few lines and a check. Run the file as a script, or open it as a notebook.

# %%
import math

import torch
from torch.distributions import Normal, kl_divergence

from vaelib.distributions import DiagNormal
from vaelib.priors import StandardNormal

# %% [markdown]
# **1. Nats and bits.** A bit is $\ln 2$ nats, so divide by $\ln 2$. That many bits could tell $2^{\text{bits}} = e^{6}$ images apart if the code had no noise: about four hundred, far more than ten kinds of digits.

# %%
bits = 6 / math.log(2)
assert abs(bits - 8.6562) < 1e-4
assert abs(2**bits - math.exp(6)) < 1e-9 * math.exp(6)

# %% [markdown]
# **2. The rate by hand.** It is zero for $\mu = 0$ and $\sigma = 1$ only: there the guess is the prior itself, whatever the image, so the code says nothing about it. Both terms, $\mu^2$ and $\sigma^2 - 1 - \ln \sigma^2$, are never negative.


# %%
def rate_by_hand(mean, scale_of_q):
    return 0.5 * (mean**2 + scale_of_q**2 - 1 - torch.log(scale_of_q**2))


means, scales = torch.tensor([0.0, 1.0, -2.0, 0.0]), torch.tensor([1.0, 1.0, 0.5, 0.1])
# float32, values of a few nats: rounding is below 1e-6.
true_rates = kl_divergence(Normal(means, scales), Normal(0.0, 1.0))
assert torch.allclose(rate_by_hand(means, scales), true_rates, rtol=0, atol=1e-5)
assert rate_by_hand(means, scales)[0] == 0 and (rate_by_hand(means, scales)[1:] > 0).all()

# %% [markdown]
# **3. Fill a slot.** A prior over two latent variables has one vector of means and one of standard deviations, and no batch. Near the origin the rate *rises*: a wide prior thinks such a narrow, central code less likely. Far out it *falls*, because the wide prior has mass there. A prior that fits the codes makes them cheap: the second chapter and the third live on this.

# %%
wide_prior = DiagNormal(torch.zeros(2), 2 * torch.ones(2))
loc, sigma = torch.tensor([[0.0, 0.0], [4.0, 4.0]]), torch.full((2, 2), 0.5)
near_and_far = DiagNormal(loc, sigma)
wide_rates = kl_divergence(near_and_far, wide_prior)
assert wide_prior.batch_shape == () and wide_prior.event_shape == (2,)
by_torch = kl_divergence(Normal(loc, sigma), Normal(0.0, 2.0)).sum(1)
assert torch.allclose(wide_rates, by_torch, rtol=0, atol=1e-5)  # float32 rounding
narrow_rates = kl_divergence(near_and_far, StandardNormal(2)())
assert wide_rates[0] > narrow_rates[0] and wide_rates[1] < narrow_rates[1]

# %% [markdown]
# **4. A walk from one digit to another.** Weights $t$ from 0 to 1 mix the two codes. The pictures change *gradually*: the decoder is a smooth function of the code, so a short step in the code is a short step in the image. The change is fast where the line crosses from one digit's region into the next.


# %%
def line(start, end, steps):
    t = torch.linspace(0, 1, steps)[:, None]  # (steps, 1)
    return (1 - t) * start + t * end


here, there = torch.tensor([-1.0, 2.0]), torch.tensor([3.0, -2.0])
in_five = torch.tensor([[-1.0, 2.0], [0.0, 1.0], [1.0, 0.0], [2.0, -1.0], [3.0, -2.0]])
assert torch.allclose(line(here, there, 5), in_five)  # these numbers are exact in float32
assert torch.allclose(line(here, there, 3), in_five[::2])
assert torch.equal(line(here, there, 10)[[0, -1]], torch.stack([here, there]))
print("All solutions of notebook 00 are right.")
