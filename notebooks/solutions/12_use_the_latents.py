# %% [markdown]
# # Solutions 12 · Use the latents
#
# The exercises of `notebooks/12_use_the_latents.ipynb`, solved and explained. This script runs by itself; each answer is checked by an `assert`.

# %%
import math

import torch

from vaelib.distributions import AR1, committed_rate

torch.manual_seed(0)

# %% [markdown]
# **1. Forget the correction.** For a collapsed model all drawings are alike, with some variance $v$. The mean of $k$ of them has variance $v / k$, although $z$ fixes nothing. So the uncorrected share is
#
# $$\frac{v/k}{v/k + v} = \frac1{k+1} ,$$
#
# nearly 5 % with 20 drawings, and a third with 2. A model that ignores $z$ would seem to use it.

# %%
uncorrected = [1 / (20 + 1), 1 / (2 + 1)]

for k, share in zip((20, 2), uncorrected, strict=True):
    values = torch.randn(k, 100_000, dtype=torch.float64)  # (drawings, z): no effect of z
    between, within = values.mean(0).var(), values.var(0).mean()
    assert abs(between / (between + within) - share) < 0.005  # 100,000 z: within 0.002
    assert abs((between - within / k) / within) < 0.01  # corrected: nothing
print("1.", [round(share, 4) for share in uncorrected])

# %% [markdown]
# **2. The way through the ball.** $D = 32 \cdot 8 = 256$, and the midpoint falls short by $\sqrt{D/8} = \sqrt{32}$ standard deviations. Along the line the expected squared norm is $\big((1-w)^2 + w^2\big) D$; setting the factor to $3/4$ gives $2w^2 - 2w + \tfrac14 = 0$, so $w = \tfrac12 - \tfrac{\sqrt2}{4}$. After the first seventh of the way, half of the loss has happened.

# %%
dims = 32 * 8
deviations_and_place = (math.sqrt(dims / 8), 0.5 - math.sqrt(2) / 4)

prior = AR1(torch.linspace(0.5, 0.95, 8, dtype=torch.float64), 32)
a, b = prior.sample((2, 20_000))


def squared_norm(z):
    """In the units of the prior."""
    return 2 * (prior.log_prob(torch.zeros_like(z)) - prior.log_prob(z))


w = deviations_and_place[1]
assert abs(squared_norm((1 - w) * a + w * b).mean() / dims - 0.75) < 0.01
short = (dims - squared_norm((a + b) / 2).mean()) / squared_norm(a).std()
assert abs(short - deviations_and_place[0]) < 0.1  # 20,000 draws: within 0.05
assert torch.allclose(torch.tensor(deviations_and_place), torch.tensor([5.6568542, 0.1464466]))
print("2.", [round(value, 4) for value in deviations_and_place])

# %% [markdown]
# **3. One currency.** Divide by the number of dimensions, multiply by $\ln 2$. The commitment of 0.026 bits per dimension is 55 nats an image; under the auxiliary prior 8.5 nats are left: most of the paper's committed rate, too, was a fee. Ours is 0.043 bits per dimension. Per image, our codes are of the same order as what is left of theirs; per pixel, they are much larger.

# %%
colour, ours = 32 * 32 * 3, 14 * 14
four_rates = (
    79.447 / colour,
    79.447 * math.log(2),
    0.004 * colour * math.log(2),
    float(committed_rate(torch.tensor([0.5, 0.9], dtype=torch.float64), 14)) / math.log(2) / ours,
)
low = committed_rate(torch.linspace(0.5, 0.95, 8, dtype=torch.float64), 32)
assert abs(low - four_rates[1]) < 1e-3
wanted = torch.tensor([0.0258617, 55.0684642, 8.5173923, 0.0432293])
assert torch.allclose(torch.tensor(four_rates), wanted, rtol=0, atol=1e-3)
print("3.", [round(value, 4) for value in four_rates])

# %% [markdown]
# **4. Draw it again.** The mean of $k$ samples has the noise $\sigma^2 / k$, so its reliability is $s^2 / (s^2 + \sigma^2 / k)$. One half is reached when $\sigma^2 / k \le s^2$, at $k \ge 0.36 / 0.17 \approx 2.1$: three samples. The probe's accuracy rises accordingly in the notebook's dashed curve. The decoder has to make do with a single sample, and with what a reliability of a third leaves.

# %%
signal, noise = 0.17, 0.36


def reliability(k):
    """Share of the signal in the variance of the mean of k samples."""
    return signal / (signal + noise / k)


reliabilities = (reliability(1), reliability(16), math.ceil(noise / signal))
assert reliability(reliabilities[2]) >= 0.5 > reliability(reliabilities[2] - 1)
means = signal**0.5 * torch.randn(200_000, dtype=torch.float64)
for k, expected in zip((1, 16), reliabilities, strict=False):
    read = means + noise**0.5 * torch.randn(k, 200_000, dtype=torch.float64).mean(0)
    correlation = torch.corrcoef(torch.stack([means, read]))[0, 1]
    assert abs(correlation**2 - expected) < 0.01  # 200,000 images: within 0.005
print("4.", [round(value, 4) for value in reliabilities])
