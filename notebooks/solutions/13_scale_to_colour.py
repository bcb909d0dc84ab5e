# %% [markdown]
# # Solutions 13 · Scale to colour
#
# The exercises of `notebooks/13_scale_to_colour.ipynb`, solved and explained. This script runs by itself; each answer is checked by an `assert`.

# %%
import math
from itertools import product

import torch
from scipy.optimize import brentq

from vaelib.distributions import committed_rate
from vaelib.pixelcnn.likelihoods import discretized_logistic

torch.manual_seed(0)

# %% [markdown]
# **1. Bytes and budgets.** (a) An image has $3 \cdot 32 \cdot 32 = 3072$ numbers. Bits in all: $3.77 \cdot 3072$. Eight bits are a byte, and $\ln 2$ nats are a bit. The image without compression has 3,072 bytes, so less than half is left.

# %%
bits = 3.77 * 3 * 32 * 32
bytes_and_nats = bits / 8, bits * math.log(2)

assert math.isclose(bytes_and_nats[0], 1447.68, rel_tol=1e-9)
assert math.isclose(bytes_and_nats[1] / (3072 * math.log(2)), 3.77, rel_tol=1e-12)
print("1a.", [round(one, 2) for one in bytes_and_nats])

# %% [markdown]
# (b) $\delta$ rises with every $\alpha$, so it rises with $\alpha_{\max}$, and there is one answer. `brentq` finds it. The image has $3 \cdot 64^2 = 12288$ numbers, so 0.02 bits/dim are about 246 bits. With 32 rows and the same 16 channels the same $\alpha$ would give about twice the share, since the rows are halved and the pixels quartered.


# %%
def share(alpha_max, side=64, channels=16):
    """The committed rate in bits/dim of a square colour image."""
    alpha = torch.linspace(0.5, alpha_max, channels, dtype=torch.float64)
    return committed_rate(alpha, side).item() / math.log(2) / (3 * side**2)


alpha_max = brentq(lambda alpha: share(alpha) - 0.02, 0.5, 0.999, xtol=1e-12)

assert math.isclose(share(alpha_max), 0.02, rel_tol=1e-9)
assert math.isclose(alpha_max, 0.7571757, abs_tol=1e-6)
assert 1.9 < share(alpha_max, side=32) / 0.02 < 2.1
print("1b.", round(alpha_max, 4))

# %% [markdown]
# **2. Without edge bins.** Each level contributes $\sigma(b) - \sigma(a)$, and the upper border $b$ of a level is the lower border $a$ of the next. All inner terms cancel. What remains is the mass between the lowest and the highest border, $\sigma\big((1 + h - \mu)/s\big) - \sigma\big((-1 - h - \mu)/s\big)$. At $\mu = 1$ and $h \ll s \ll 1$ the first term is close to $\sigma(0) = \tfrac12$ and the second close to 0: half of the mass is lost, for half of the bump lies beyond white. With edge bins it goes to level 255.


# %%
def sum_without_edges(mean, width, half=1 / 255):
    upper, lower = ((edge - mean) / width for edge in (1 + half, -1 - half))
    return 1 / (1 + math.exp(-upper)) - 1 / (1 + math.exp(-lower))


levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
for mean, width in [(0.0, 0.1), (1.0, 0.1), (1.2, 0.05)]:
    b, a = ((levels + sign / 255 - mean) / width for sign in (1, -1))
    added = (b.sigmoid() - a.sigmoid()).sum().item()
    assert math.isclose(sum_without_edges(mean, width), added, abs_tol=1e-12)
    scale = torch.tensor(math.log(width), dtype=torch.float64)
    with_edges = discretized_logistic(levels, torch.tensor(mean).double(), scale, 256).exp().sum()
    assert math.isclose(with_edges, 1, abs_tol=1e-12)
assert abs(sum_without_edges(1.0, 0.1) - 0.5) < 0.01
print("2.", [round(sum_without_edges(*one), 3) for one in [(0.0, 0.1), (1.0, 0.1), (1.2, 0.05)]])

# %% [markdown]
# **3. Fewer levels.** The best code for levels with probabilities $p$ has $-\sum p \log_2 p$ bits. Merging groups of eight adds up their probabilities. By the chain rule, entropy of 256 levels = entropy of 32 groups + mean entropy *within* a group, and the latter is at most $\log_2 8 = 3$ bits. All three are saved exactly if the levels within each group are equally likely: then the last three bits are pure noise, and dropping them drops the dearest part of the image. So 1.1 bits/dim on 5-bit images may be anything up to 4.1 on 8-bit images. The two numbers cannot be compared.


# %%
def entropies(p):
    merged = p.view(32, 8).sum(1)
    return torch.stack([-(q * q.log2()).sum() for q in (p, merged)])


torch.manual_seed(0)  # the seed of the exercise
p = (2 * torch.randn(32).repeat_interleave(8) + torch.randn(256)).double().softmax(0)
eight, five = entropies(p)
groups = p.view(32, 8)
within = groups / groups.sum(1, keepdim=True)
inside = -(groups.sum(1) * (within * within.log2()).sum(1)).sum()
assert math.isclose(eight, 5.894578, abs_tol=1e-6) and math.isclose(five, 3.365634, abs_tol=1e-6)
assert torch.isclose(eight, five + inside) and 0 < eight - five < 3
even = torch.rand(32).double().softmax(0).repeat_interleave(8) / 8
assert torch.isclose(entropies(even)[0] - entropies(even)[1], torch.tensor(3.0).double())
print("3.", round(float(eight), 3), round(float(five), 3))

# %% [markdown]
# **4. Which order?** The first is the chain rule in the order red, green, blue. The second is the chain rule, too, in the order blue, green, red: every channel depends on those *after* it only. Both are distributions. In the third, channels depend on each other in a circle; there is no order in which the sum could be taken one channel at a time, and the 512 numbers do not sum to one. The order is our choice, but there must be one.


# %%
def score(colours, slopes):
    x = 2 * colours - 1
    width = torch.full((3,), -1.0, dtype=torch.float64)
    return discretized_logistic(x, x @ slopes.T, width, 8).sum(-1)


def is_distribution(slopes):
    colours = torch.tensor(list(product(range(8), repeat=3))).double() / 7
    return abs(score(colours, slopes).exp().sum().item() - 1) < 1e-9


full = torch.randn(3, 3).double()
suspects = [full.tril(-1), full.triu(1), full - full.diag().diag()]
answers = [is_distribution(slopes) for slopes in suspects]
assert answers == [True, True, False]
print("4.", answers)
