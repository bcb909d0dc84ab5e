# %% [markdown]
# # Solutions 09 · Collapse a VAE
#
# The exercises of `notebooks/09_collapse_a_vae.ipynb`, solved and explained. This script runs by itself; each answer is checked by an `assert`.

# %%
import math

import torch
from torch import nn

from vaelib import VAE
from vaelib.distributions import DiagNormal
from vaelib.inference import diagnostics
from vaelib.training.objectives import FreeBits
from vaelib.vae import SplitELBO

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# **1. The coin.** The rate is $\mathrm{KL}(q(z|x)\,\|\,p(z)) = \ln 2 - H(\varepsilon)$: the prior is fair, the posterior is a coin with a share $\varepsilon$ of errors. The distortion averages $-\ln p(x|z)$ over that coin. In the sum, $-H(\varepsilon)$ and the distortion make $\mathrm{KL}(\varepsilon\,\|\,\delta)$.
#
# Beside a decoder that does not listen ($\delta = \tfrac12$) the distortion is $\ln 2$ whatever the encoder says. So an encoder with $\varepsilon = 0.1$ costs $\ln 2 + \mathrm{KL}(0.1\,\|\,0.5) = 1.06$ nats, and the part above $\ln 2$, 0.37 nats, is exactly its rate. All of it is wasted.


# %%
def entropy(p):
    """Of a coin, nats."""
    return -p * p.log() - (1 - p) * (1 - p).log()


def price(flip, doubt):
    """Distortion + rate of the coin, nats."""
    rate = math.log(2) - entropy(flip)
    distortion = -(1 - flip) * (1 - doubt).log() - flip * doubt.log()
    return rate + distortion


flip, doubt = torch.tensor(0.1), torch.tensor(0.3)
between = flip * (flip / doubt).log() + (1 - flip) * ((1 - flip) / (1 - doubt)).log()
assert torch.isclose(price(flip, doubt), math.log(2) + between)
deaf = price(flip, torch.tensor(0.5))
assert torch.isclose(deaf - math.log(2), math.log(2) - entropy(flip))
print("1.", round(price(flip, doubt).item(), 3), "| beside a deaf decoder", round(deaf.item(), 2))

# %% [markdown]
# **2. An allowance for each row.** Sum the latents of a row, average over the minibatch, raise each row to λ at least, and add up the rows.
#
# Spread evenly, the allowance is used less well. In our run the bound lost about one more nat than with a common allowance, at the same rate. Most rows at the top and the bottom of a digit are black; there is nothing to say about them, and still each must carry its share or waste it. A common allowance goes where it saves most.


# %%
def free_bits_by_row(distortion, terms, nats):
    """Loss of each image, (B,) nats."""
    rows = terms.sum(2).mean(0)  # (rows,)
    return distortion + rows.clamp(min=nats).sum()


terms = torch.tensor([[[1.0, 1.0], [0.0, 0.4]], [[3.0, 1.0], [0.9, 0.5]]])  # (2, 2, 2)
distortion = torch.tensor([22.0, 30.0])
loss = free_bits_by_row(distortion, terms, 1.0)
assert torch.equal(loss, torch.tensor([26.0, 34.0]))  # the second row, 0.9 on average, costs 1
bound = SplitELBO(distortion, terms.sum((1, 2)), terms)
assert torch.allclose(loss, FreeBits(1.0, "row")(bound))
too_early = distortion + terms.sum(2).clamp(min=1.0).sum(1)  # the maximum before the mean
assert too_early.mean() > loss.mean() + 0.1
print("2.", loss.tolist())

# %% [markdown]
# **3. A channel with a known capacity.** $z = x + $ noise, all Gaussian: $I = H(z) - H(z|x)$, and the entropies differ in their variances alone, $s^2 + \sigma^2$ against $\sigma^2$ in each dimension:
#
# $$I(x; z) = \tfrac d2 \ln\!\Big(1 + \frac{s^2}{\sigma^2}\Big).$$


# %%
def channel(s, sigma, dims):
    """Mutual information of x and z = x + noise, nats."""
    return dims / 2 * math.log1p((s / sigma) ** 2)


class Copy(nn.Module):
    """q(z|x) = N(x, 1.5² I)."""

    def forward(self, x):
        return DiagNormal(x, torch.full_like(x, 1.5))


vae = VAE(Copy(), nn.Identity(), nn.Identity())
estimate = diagnostics.mutual_information(vae, 2.0 * torch.randn(2000, 2))
assert abs(estimate - channel(2.0, 1.5, 2)) < 0.1
print("3.", round(channel(2.0, 1.5, 2), 4))

# %% [markdown]
# **4. Undo a collapse.** No. With the decoder fixed, $-\text{ELBO} = -\log p(x) + \mathrm{KL}(q(z|x)\,\|\,p(z|x))$, and $\log p(x)$ does not depend on the encoder at all. The best encoder is the true posterior of *this* decoder. The shuffle test shows that the decoder answers every code alike, so its true posterior is the prior, and the best encoder says nothing. Collapse lives in the decoder as much as in the encoder, and undoing it takes both at once.
#
# **5. The dial.** The rate grows as β falls, and the cost grows faster. At β = 0.3 our run had a rate of about 23 nats and a bound more than 6 nats below that of β = 1. The probe gains little there: after the class and the coarse shape are told, the extra nats tell single pixels.
#
# **6. A quiet encoder.** Its rate is zero to two decimals, and in our run its bound was about one nat *worse* than that of the loud one. Here is a model that would gain from its latents and does not find the way: this collapse is one of optimisation, not of preference. In the picture of the coin: the quiet encoder starts at $\varepsilon \approx \tfrac12$, beside a decoder that does not listen yet, $\delta \approx \tfrac12$. That is next to the star, where the floor is flat, and nothing leads away. A loud encoder starts at a small $\varepsilon$, in the upper left of the picture, and the decoder has something to listen to from its first update.
