# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13 · Scale to colour
#
# **What you will do.** You leave black and white digits for colour photographs: three channels, 256 levels each, 3,072 numbers an image. You learn the unit in which such models are compared, bits per dimension, and build a ladder of codes, from "know nothing" over a hand-made predictor to a small network. You take the likelihood of colour pixels apart and check by counting that it is exact. You train a $\delta$-VAE that is committed to the same rate as one of the paper's, lay out the paper's table with a column for our own runs (each needs a GPU, and *waits* until one has made it), compare the families of generative models, and see what a full-size run needs: which commands, how much memory, how much time.
#
# **What you will learn.**
# - the chain rule over pixels *and* channels, and why a likelihood for 256 levels must be discrete;
# - the table (256-way softmax) and the mixture of discretised logistics: the formula with its edge bins, how channels depend on each other, and how to see that none of them peeks;
# - bits per dimension: what 8, 3 and 0.02 of them mean;
# - which simple codes a network has to beat before it has learnt anything;
# - what a committed rate of 79.4 bits looks like at this scale, and how to read a table with a number in brackets;
# - how cost and memory grow with the image, and how one laptop, one GPU and many GPUs are used by the same loop.
#
# **What you need.** Notebook 08 (PixelCNN, teacher forcing, cached sampling), notebooks 10 and 11 ($\delta$-VAE, anti-causal encoder). This notebook covers the experiments on photographs of Razavi, van den Oord, Poole & Vinyals (2019), *Preventing Posterior Collapse with delta-VAEs*, and the pixel likelihood of Salimans et al. (2017), *PixelCNN++*.

# %%
import math
import os
from dataclasses import replace
from functools import partial
from itertools import product

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch.nn import functional as F
from torchvision.io import encode_png

from vaelib import data, fit, scale
from vaelib.distributions import committed_rate
from vaelib.experiments import Recipe, build, trained
from vaelib.inference.diagnostics import collapse_report
from vaelib.pixelcnn import GatedPixelCNN, PixelSNAIL
from vaelib.pixelcnn.likelihoods import LogisticMixturePixels
from vaelib.teaching import plotting, scaling
from vaelib.teaching.plotting import COLORS
from vaelib.training.loop import adam, linear_decay

SEED = 0  # the claims at the end hold for other seeds: try 1
torch.manual_seed(SEED)
torch.set_num_threads(1)  # for networks this small, sharing the work costs more than doing it
plotting.use_style()


def label(ax, title, x, y, **more):
    ax.set(title=title, xlabel=x, ylabel=y, **more)


print(scaling.describe())

# %% [markdown]
# ## 1. Colour images
#
# **CIFAR-10**: photographs of ten kinds of things, shrunk to $32\times32$ pixels in three channels. At classroom scale we use 10,000 training and 1,000 test images, if the folder `VAELIB_DATA` has them (`cifar10_train10k.npz` and `cifar10_test1k.npz`, or torchvision's files). A notebook should not download 170 MB behind your back, so the cell below forbids it; set `VAELIB_OFFLINE=0` before you start Jupyter to allow it.
#
# Where CIFAR-10 is not at hand, a **stand-in** takes its place, and every title says so. It is made of two colour photographs that scikit-learn ships for its lessons, a temple and a flower, halved in size and cut into $32 \times 32$ patches. These are real pixels with real colours, good enough to see every effect in this notebook. They are *not* CIFAR-10: two pictures have far less variety, so their bits are not comparable with those of any paper. To be fair to the test, training patches come from three upright strips of each photograph and test patches from the two strips between them, so that none overlap.


# %%
def photo_patches(side=32):
    """Patches of scikit-learn's two photographs, 10,000 and 1,000 of (3, side, side)."""
    from sklearn.datasets import load_sample_images

    photos = [torch.tensor(photo).movedim(-1, 0).float() for photo in load_sample_images().images]
    photos = [F.avg_pool2d(photo, 2).round() / 255 for photo in photos]  # (3, 213, 320)
    strips = (((0, 80), (120, 200), (240, 320)), 10_000), (((80, 120), (200, 240)), 1_000)
    generator, parts = torch.Generator().manual_seed(0), []
    for columns, count in strips:
        left = torch.cat([torch.arange(start, end - side + 1) for start, end in columns])
        i = torch.randint(214 - side, (count,), generator=generator).tolist()
        j = left[torch.randint(len(left), (count,), generator=generator)].tolist()
        corners = enumerate(zip(i, j, strict=True))
        cut = [photos[n % 2][:, a : a + side, b : b + side] for n, (a, b) in corners]
        parts.append(torch.stack(cut))
    return data.Images(parts[0], None, parts[1], None, "stand-in")


# %% tags=["nbval-ignore-output"]
os.environ.setdefault("VAELIB_OFFLINE", "1")
NAME, STAND_IN = "CIFAR-10", "STAND-IN (two photographs)"
try:
    images = data.cifar10(full=scale(classroom=False, paper=True))
except data.DataError as error:
    if scaling.current() == "paper":
        raise
    images, NAME = photo_patches(), STAND_IN
    print(f"NOTICE: CIFAR-10 cannot be had. All pictures and numbers below are of a {NAME},")
    print(f"and NOT comparable with published results. The reason:\n{error}\n")
TRAIN, TEST = images.train[: scale(classroom=10_000, paper=None)], images.test[:1_000]
print(f"{NAME}, {images.source}: {len(TRAIN):,} images to train on, {len(TEST):,} to test on")

# %%
figure, axes = plt.subplots(1, 2, figsize=(13, 3.2), width_ratios=[2, 1])
plotting.show_images(TEST[:24], 8, f"{NAME}: test images", axes[0])
for channel, color in enumerate(("#CC3311", "#009E73", "#0072B2")):
    counts = torch.histc(255 * TRAIN[:, channel], 256, -0.5, 255.5)
    axes[1].plot(counts / counts.sum(), color=color, linewidth=1)
axes[1].axhline(1 / 256, color=COLORS["exact"], linestyle=":")
label(axes[1], "how often each level occurs", "level (red, green, blue)", "share of pixels")
axes[1].set_ylim(0, 0.02)
plt.show()

# %% [markdown]
# *What to see.* **Left:** the images. **Right:** how often each of the 256 levels occurs in each channel; dotted, the uniform distribution. By themselves the levels are not far from uniform. In CIFAR-10 there is one exception, fully white: its peak at 255 is a real property of cameras and of pictures on white ground, and a likelihood should be able to say "exactly 255".
#
# ## 2. Bits per dimension
#
# Nats per image are awkward for comparisons: they grow with the size. For colour images one divides by the number of dimensions $D = 3 \cdot 32 \cdot 32 = 3072$ and takes logarithms to the base 2:
#
# $$\text{bits/dim} = \frac{-\ln p(x)}{D \ln 2} .$$
#
# There is a second reason for the unit. A distribution over discrete things *is* a code. An arithmetic coder that uses $p$ stores $x$ in $-\log_2 p(x)$ bits, up to a rounding of a few bits for the whole file. So bits per dimension are *the size of the compressed image*, per number. A file without any compression needs 8, one byte for each channel of each pixel; a model that knows nothing, $p = 1/256$ for every level, reaches exactly that. A model at 3 bits/dim compresses to three eighths.
#
# Two warnings follow from this reading.
#
# - **The likelihood must be discrete.** A density may be as large as it likes at a point; a probability cannot exceed one. A density that is fitted to integers can put a spike on each of them and "reach" minus infinitely many bits. (Density models add uniform noise to the levels first, *dequantisation*; what they report then is a bound on a discrete likelihood. Models in this notebook are discrete from the start.)
# - **The preprocessing is part of the code.** Bits/dim of 5-bit images, of another resizing of the same photographs, or of a colour transform that cannot be undone exactly, do not compare. (See exercise 3.)

# %%
D = 3 * 32 * 32


def bits_per_dim(nats, dims=D):
    """Nats per image to bits per dimension."""
    return nats / (dims * math.log(2))


know_nothing = D * math.log(256)
print(f"know nothing: {know_nothing:.1f} nats an image = {bits_per_dim(know_nothing):.3f} bits/dim")
print(f"1 nat an image = {bits_per_dim(1.0):.6f} bits/dim")
print(f"0.02 bits/dim = {0.02 * D:.1f} bits = {0.02 * D * math.log(2):.1f} nats an image")
print(f"2.85 bits/dim = an image in {2.85 * D / 8:.0f} bytes instead of {D}")

# %% [markdown]
# The third line is worth a moment. Papers fight over the second decimal. A difference of 0.02, which looks like nothing, is dozens of nats for each image: more than a whole black and white digit of notebook 09 costs.
#
# ## 3. A ladder of simple codes
#
# Before any network is trained: how far does one get by counting? Each of the following codes is an honest distribution over images. All numbers are counted on the training images and scored on the test images.
#
# 1. **Know nothing**: 8 bits.
# 2. **One histogram for each channel.** Pixels are independent and identically distributed. (One is added to each count, so that no level is impossible.)
# 3. **Independent pixels**: a histogram for *each* of the 3,072 numbers. No model that ignores how pixels depend on each other can do better in the long run. With 256 levels and 10,000 images the counts are thin, so we smooth them towards the channel's shared histogram, as if we had seen $A$ more images with its levels. $A$ is chosen on images that were held out from the training set. This is the baseline of claim 4.
# 4. **Differences.** Replace each level by its difference from a neighbour, modulo 256, and count those. The map can be *undone* (add up again, modulo 256), so a distribution over differences is a distribution over images, with the same bits. Differences can be taken to the left neighbour, to the one above, and between the channels of one pixel, one after the other.

# %%
LEFT, ABOVE, COLOUR = -1, -2, 1  # along which dimension of (N, 3, H, W)


def differences(levels, *dims):
    """Each byte minus the one before it, modulo 256, along one dimension after the other."""
    for dim in dims:  # bytes count modulo 256 by themselves: 3 − 5 = 254
        levels = torch.cat([levels.narrow(dim, 0, 1), levels.diff(dim=dim)], dim)
    return levels


def histograms(levels):
    """One histogram a channel, one added to each count: probabilities (3, 256)."""
    counts = [torch.bincount(channel.flatten(), minlength=256) + 1 for channel in levels.unbind(1)]
    return torch.stack(counts).double() / (levels[:, 0].numel() + 256)


train, test = ((255 * x).round().byte() for x in (TRAIN, TEST))
undone = differences(test[:50], LEFT).cumsum(LEFT).byte()
print("differences can be undone:", torch.equal(undone, test[:50]))


# %%
def difference_bits(*dims):
    """Bits/dim of one histogram for each channel of the differences."""
    code = -histograms(differences(train, *dims)).log2()
    return code[torch.arange(3)[:, None, None], differences(test, *dims).long()].mean().item()


def independent_pixels(train, test, strength):
    """Bits/dim of a histogram for each number, smoothed by ``strength`` images of its channel."""
    cells = train.flatten(1) + 256 * torch.arange(D).int()  # (N, 3072): histogram and level
    counts = torch.bincount(cells.flatten(), minlength=256 * D).view(D, 256)
    p = counts + strength * histograms(train).repeat_interleave(D // 3, 0)
    return -(p / p.sum(1, keepdim=True)).log2().gather(1, test.flatten(1).long().T).mean().item()


def png_bits(levels):
    """Bits/dim of one PNG file for each image."""
    files = [encode_png(image, compression_level=9) for image in levels]
    return 8 * sum(len(file) for file in files) / levels.numel()


# %% tags=["nbval-ignore-output"]
held_out, strengths = len(train) // 10, (1000, 3000, 10_000, 30_000)
parts = train[held_out:], train[:held_out]
strength = min(strengths, key=lambda strength: independent_pixels(*parts, strength))
ladder = {"know nothing": 8.0, "one histogram a channel": difference_bits()}
ladder["independent pixels"] = independent_pixels(train, test, strength)
ladder["difference of colours"] = difference_bits(COLOUR)
ladder["difference to the left"] = difference_bits(LEFT)
ladder["PNG files"] = png_bits(test[:200])
ladder["left and colour"] = difference_bits(COLOUR, LEFT)
ladder["left, above and colour"] = difference_bits(COLOUR, LEFT, ABOVE)
print(f"smoothing chosen on held-out images: A = {strength}")
pd.Series(ladder, name=f"{NAME}: bits/dim").round(2).to_frame()

# %% [markdown]
# Read the table from above. **Position says little**: knowing which pixel it is (row 3) gains almost nothing over row 2. (It may even lose, where test images differ from the training images. So claim 4 takes the better of the two rows as its baseline.) **Neighbours say much**, in space and between channels. The last row combines three differences. Written out for red, it predicts
#
# $$\hat x_{ij} = x_{i,j-1} + x_{i-1,j} - x_{i-1,j-1},$$
#
# the plane through three neighbours; for green and blue it predicts in the same way how much they differ from the channel before. That costs three histograms and no training at all. On CIFAR-10 it is far below PNG, which takes differences in space, and none between channels.
#
# So the bar for a network lies not at 8 bits, and not at independent pixels. **A network that does not get below the last row has learnt less than a subtraction.** Keep this row in mind when you see bits/dim without a baseline.
#
# ## 4. Two hundred and fifty-six levels
#
# Now the chain rule, once over pixels in the order of reading, and once more over the three channels within a pixel:
#
# $$p(x) = \prod_{i=1}^{H W}\ p(r_i\,|\,x_{<i})\; p(g_i\,|\,r_i, x_{<i})\; p(b_i\,|\,r_i, g_i, x_{<i}) .$$
#
# The network of notebook 08 supplies, for each pixel, a vector of features that has seen $x_{<i}$. What is left is a small model for one pixel: three numbers out of 256, given features.
#
# **The table.** 256 logits and a softmax for each channel, $3 \times 256 = 768$ numbers for each pixel (van den Oord et al. 2016). It assumes nothing about the shape: several peaks, a spike at 255, all is possible. But it does not know that 100 lies next to 101. It must learn this from data, level by level.
#
# **The mixture** (Salimans et al. 2017). A few smooth bumps. With $K$ components and three channels it takes $K$ weights, $3K$ means, $3K$ scales and $3K$ slopes between channels: $10 K$ numbers, 100 for the usual $K = 10$. Neighbouring levels share what they learn. It can be wrong about the shape where the table cannot.
#
# Which is better depends on how much data there is. We let both learn the same thing, with the same small network below: the $8\times8$ windows in the middle of the images.

# %% tags=["nbval-ignore-output"]
HEADS = Recipe(
    **{"data": "cifar10", "image_shape": (3, 8, 8), "mixtures": 5, "context": 8, "channels": 16},
    **{"layers": 2, "kernel": 3, "epochs": 1, "batch_size": 20, "seed": SEED},
)
middle = [part[:, :, 12:20, 12:20] for part in (TRAIN[:4000], TEST[:300])]
heads = {}
for likelihood, count in product(("categorical", "logistic_mixture"), (1000, 4000)):
    some = data.Images(middle[0][:count], None, middle[1], None, images.source)
    history = trained(replace(HEADS, likelihood=likelihood), some, progress=False)[1]
    heads[likelihood, count] = bits_per_dim(-history["test_bound"][-1], 3 * 8 * 8)
pd.Series(heads).unstack().round(2).rename_axis(columns=f"{NAME}: windows seen")

# %% [markdown]
# Test bits/dim after one pass over so many windows. (Windows this small have little context, so the level is high.) The mixture is ahead by a wide margin, with fewer numbers to compute. With enough images and updates a table closes the gap; the first PixelCNN papers used one and did well.
#
# ### The formula, and its edges
#
# Put pixels on $[-1, 1]$, so that levels are $2h = 2/255$ apart. A logistic distribution with mean $\mu$ and scale $s$ has the distribution function $\sigma((x - \mu)/s)$. A level gets the mass of its bin:
#
# $$P(x) = \sigma\Big(\underbrace{\tfrac{x + h - \mu}{s}}_{b}\Big) - \sigma\Big(\underbrace{\tfrac{x - h - \mu}{s}}_{a}\Big), \qquad
# P(-1) = \sigma(b), \qquad P(1) = 1 - \sigma(a) .$$
#
# The **edge bins** at $-1$ and $1$ reach out to infinity. Add up all 256: the upper border of each bin is the lower border of the next, all inner terms cancel, and what remains is $1$. *Exactly* one, whatever $\mu$ and $s$. A mean beyond white is allowed, and gives a spike on level 255: this is how "exactly white" is said.
#
# One more thing, for those who write their own. Far from the mean, $\sigma(b)$ and $\sigma(a)$ agree in all digits that a float has. Their difference is then zero, and its logarithm $-\infty$. The first public code replaces the mass there by density times width. It is not necessary: $\sigma(b) - \sigma(a) = \sigma(b)\,\sigma(-a)\,(1 - e^{a - b})$ holds exactly and loses nothing.


# %% tags=["library"]
def discretised_logistic(x, mean, log_scale, levels=256):
    """ln P of the level x in [−1, 1], nats, elementwise."""
    half, inverse = 1 / (levels - 1), (-log_scale).exp()
    b, a = (x + half - mean) * inverse, (x - half - mean) * inverse
    inside = F.logsigmoid(b) + F.logsigmoid(-a) + torch.log(-torch.expm1(a - b))
    upper_edge = torch.where(x > 1 - half, F.logsigmoid(-a), inside)
    return torch.where(x < -1 + half, F.logsigmoid(b), upper_edge)


def plain(x, mean, log_scale, half=1 / 255):
    """The same as the formula is written, without edges."""
    b, a = ((x + step - mean) / log_scale.exp() for step in (half, -half))
    return (b.sigmoid() - a.sigmoid()).log()


# %%
LEVELS = torch.linspace(-1, 1, 256, dtype=torch.float64)
means, log_scales = torch.empty(2, 2000, 1, dtype=torch.float64).uniform_(-1, 1)
means, log_scales = 3 * means, 7 * log_scales  # from beyond black to beyond white; any width
sums = discretised_logistic(LEVELS, means, log_scales).exp().sum(-1)
levels_error = (sums - 1).abs().max().item()
print("2,000 random logistics: the 256 levels sum to one, to 1e-12:", levels_error < 1e-12)


def at(mean, width):
    """Mean and log scale as tensors in double precision."""
    return torch.tensor([mean, math.log(width)], dtype=torch.float64)


# %% [markdown]
# Three pictures of it: three logistics, the tail in single precision, and what is lost if one forgets the edges.

# %%
figure, axes = plt.subplots(1, 3, figsize=(14, 3.8))
for mean, width in ((0.2, 0.03), (0.8, 0.15), (1.1, 0.05)):
    mass = discretised_logistic(LEVELS, *at(mean, width)).exp()
    axes[0].semilogy(LEVELS, mass, ".", label=f"μ = {mean}, s = {width}")
for rule, style, name in ((discretised_logistic, "-", "stable"), (plain, "--", "as written")):
    tail = rule(LEVELS.float(), *at(-0.6, 0.025).float())
    axes[1].plot(LEVELS, tail.where(tail.isfinite(), torch.nan), style, label=name)
line = torch.linspace(-1.4, 1.4, 141, dtype=torch.float64)[:, None]
for width in (0.02, 0.1, 0.3):
    axes[2].plot(line, 1 - plain(LEVELS, line, at(0, width)[1]).exp().sum(-1), label=f"s = {width}")
label(axes[0], "mass of each level", "level x", "probability", ylim=(1e-6, 1.5))
label(axes[1], "μ = −0.6 in float32", "level x", "ln P (nats)")
label(axes[2], "what is lost without edge bins", "mean μ", "1 − sum over 256 levels")
_ = [ax.legend(fontsize=10) for ax in axes]
plt.show()

# %% [markdown]
# *What to see.* **Left:** three logistics. One lies well inside. One is wide and near white: its last point stands above the rest of the curve, for it carries all that lies beyond. One has its mean *beyond* white, and puts most of its mass on the single level 255. **Middle:** the logarithm far from the mean, in float32. The solid line is right, down to its last points, the edge bins. The formula as written (dashed) ends to the right of the mean, as soon as both sigmoids round to 1: from there on it has no value, and no gradient. **Right:** without edge bins the masses do not sum to one as soon as the mean comes near the edge, and half is lost at the edge itself.
#
# ## 5. Three channels
#
# The channels of a pixel are nearly equal: the ladder gained about a bit from differences of colours. In the mixture the means shift linearly with the channels before, and all three channels share the choice of the component:
#
# $$p(r, g, b) = \sum_{k} \pi_k\, P(r\,|\,\mu_{rk}, s_{rk})\; P(g\,|\,\mu_{gk} + \alpha_k r,\ s_{gk})\; P(b\,|\,\mu_{bk} + \beta_k r + \gamma_k g,\ s_{bk}) .$$
#
# This is cheap, and it is enough: *given the component*, a channel is a linear function of the others plus noise. The network need not be run again for each channel; one vector of features serves all three.
#
# Here it is, with the running product over channels kept: $\ln p(r)$, $\ln p(r, g)$, $\ln p(r, g, b)$. Their differences are the conditionals of the chain rule.


# %% tags=["library"]
def unpack(raw, mixtures):
    """Raw outputs to log weights (…, K), means, log scales (…, K, 3), slopes (…, K, 3, 3)."""
    weight, mean, log_scale, slope = raw.unflatten(-1, (mixtures, 10)).split([1, 3, 3, 3], -1)
    slopes = slope.new_zeros(*slope.shape, 3)
    slopes[(..., *torch.tril_indices(3, 3, -1))] = slope.tanh()
    return weight.squeeze(-1).log_softmax(-1), mean, log_scale.clamp(-7, 7), slopes


def running_log_prob(x, log_weight, mean, log_scale, slopes):
    """ln p(r), ln p(r, g), ln p(r, g, b) of pixels x (…, 3) in [0, 1]: (…, 3) nats."""
    x = (2 * x - 1).unsqueeze(-2)  # (…, 1, 3), for every component
    shifted = mean + (slopes @ x.unsqueeze(-1)).squeeze(-1)
    each = discretised_logistic(x, shifted, log_scale)  # (…, K, 3)
    return (log_weight.unsqueeze(-1) + each.cumsum(-1)).logsumexp(-2)


# %% [markdown]
# Is it a distribution? There are $256^3 \approx 17$ million colours, a few too many to add up for fun. Two channels have $256 \cdot 256 = 65{,}536$, which we can. And for three we use the chain: for any red and green, the sum over the 256 values of blue must give back $p(r, g)$; for any red, the sum over green must give back $p(r)$; and the sum over red must give one.

# %%
torch.manual_seed(SEED)
features = 3 * torch.randn(400, 16, dtype=torch.float64)
colours = torch.randint(256, (400, 3)).double() / 255
head = LogisticMixturePixels(16, channels=3, mixtures=5).double()  # the library's
parameters = [part.detach() for part in unpack(head.components(features), 5)]
running = running_log_prob(colours, *parameters)
same = torch.allclose(running[:, -1], head.log_prob(features, colours), rtol=0, atol=1e-9)
print("ours is the library's:", same)

pairs = torch.cartesian_prod(torch.arange(256), torch.arange(256)).double() / 255
two = LogisticMixturePixels(16, channels=2, mixtures=5).double()
totals = [two.log_prob(some.expand(len(pairs), 16), pairs).exp().sum() for some in features[:5]]
pairs_error = max(abs(one.item() - 1) for one in totals)
print("65,536 pairs of levels sum to one, to 1e-10:", pairs_error < 1e-10)

chain_error = 0.0
for c in range(3):  # replace channel c by each of the 256 levels, and add up
    tried = colours.unsqueeze(1).repeat(1, 256, 1)  # (400, 256, 3)
    tried[..., c] = torch.arange(256).double() / 255
    total = running_log_prob(tried, *(part.unsqueeze(1) for part in parameters))[..., c].logsumexp(
        1
    )
    chain_error = max(chain_error, (total - (running[:, c - 1] if c else 0)).abs().max().item())
print("by chain, one channel after the other, to 1e-9:", chain_error < 1e-9)

# %% [markdown]
# And does a channel use only the channels before? Notebook 08 asked the gradient about pixels; here we ask it about channels. Take $\ln p(x_c\,|\,\text{channels before } c)$. Its derivative with respect to another channel $x_{c'}$ must be zero for $c' > c$, and non-zero for $c' < c$. (For $c' = c$ it is the slope of the bump itself.)
#
# For a picture of what the slopes achieve, we also fit a mixture of ten components to single pixels, without any neighbours: the features are one constant.


# %%
def channel_influence(parameters, x):
    """Mean |∂ ln p(x_c | channels before) / ∂ x_c'| over pixels, (3, 3): row c, column c'."""
    running = running_log_prob(x := x.clone().requires_grad_(), *parameters).sum(0)
    conditionals = running.diff(prepend=torch.zeros(1))  # pixels do not mix in the sum
    each = [torch.autograd.grad(one, x, retain_graph=True)[0] for one in conditionals]
    return torch.stack(each).abs().mean(1)


influence = channel_influence(parameters, colours)
one_pixel = LogisticMixturePixels(1, channels=3, mixtures=10)
optimizer = torch.optim.Adam(one_pixel.parameters(), lr=0.05)
seen = TRAIN.movedim(1, -1).reshape(-1, 3)[torch.randint(len(TRAIN) * D // 3, (50_000,))]
for _ in range(200):
    optimizer.zero_grad()
    some = seen[torch.randint(len(seen), (2000,))]
    (-one_pixel.log_prob(torch.ones(2000, 1), some).mean()).backward()
    optimizer.step()

# %%
with torch.no_grad():
    grid = torch.cat([pairs.float(), torch.zeros(len(pairs), 1)], 1)
    running = running_log_prob(grid, *unpack(one_pixel.components(torch.ones(1, 1)), 10))
model = (running[:, 1] - running[:, 0]).view(256, 256).exp()  # p(g | r)
counts = torch.histogramdd(255 * seen[:, :2], 64, range=[0.0, 255.0, 0.0, 255.0]).hist
counts = counts / counts.sum(1, keepdim=True).clamp(min=1) / 4  # a bin has four levels
figure, axes = plt.subplots(1, 3, figsize=(14, 4))
shown = axes[0].imshow(influence.where(influence > 0, torch.nan).log10(), cmap="viridis")
label(axes[0], "white is zero", "channel that is changed", "channel that is predicted")
axes[0].set(xticks=range(3), yticks=range(3), xticklabels="RGB", yticklabels="RGB")
figure.colorbar(shown, ax=axes[0], label="log₁₀ |∂ ln p / ∂x|")
for ax, p, name in ((axes[1], counts, f"{NAME.split()[0]}"), (axes[2], model, "mixture")):
    ax.imshow(p.T, origin="lower", extent=(0, 255, 0, 255), cmap="magma", vmax=0.05)
    label(ax, f"p(green | red): {name}", "red", "green")
plt.show()

# %% [markdown]
# *What to see.* **Left:** the triangle of the chain rule, this time over channels. The diagonal is the channel's own value, the one that is scored. Below it, green uses red, and blue uses both; red uses neither. White is zero to the last bit. **Middle and right:** the conditional distribution of green for each value of red, in the data and in the mixture. The bright diagonal is why colour pays: knowing red, green is known to within a few dozen levels. The mixture has the diagonal and its width.
#
# ## 6. A small network
#
# Now the real thing, as large as half a minute permits: a Gated PixelCNN with 16 channels and five mixture components. Two tricks of thrift:
#
# - **Many small steps.** At this stage of training it is the number of updates that counts, not the number of pixels in each. So batches are small.
# - **Windows.** A network of convolutions has no size. Without a bias for each position, the *same weights* apply to images of any size. So we cut one window of $16\times16$ from each training image, train on those, which is four times cheaper, and then score *whole* images of $32\times32$ with the same weights. The score is the exact likelihood of a proper model of whole images; how its weights were found does not matter.

# %% tags=["nbval-ignore-output"]
COLOUR_MODEL = {"data": "cifar10", "likelihood": "logistic_mixture", "mixtures": 5, "context": 8}
COLOUR_MODEL |= {"channels": 16, "layers": 2, "kernel": 3}
COLOUR_MODEL |= {"seed": SEED, "epochs": scale(classroom=1, paper=20)}
torch.manual_seed(SEED)
SMALL = {"image_shape": (3, 16, 16), "position": False, "batch_size": 10, "lr": 1e-2}
corners = torch.randint(17, (len(TRAIN), 2)).tolist()
cut = [x[:, i : i + 16, j : j + 16] for x, (i, j) in zip(TRAIN, corners, strict=True)]
windows = data.Images(torch.stack(cut), None, TEST[:200, :, 8:24, 8:24], None, images.source)
small, history = trained(recipe := Recipe(**COLOUR_MODEL, **SMALL), windows, progress=False)

whole = build(replace(recipe, image_shape=(3, 32, 32))).eval()
whole.load_state_dict(small.state_dict())  # the same weights, another size
with torch.no_grad():
    by_pixel = torch.cat([-whole.decoder().pixel_log_prob(x) for x in TEST.split(100)])
ladder["Gated PixelCNN (small)"] = bits_per_dim(by_pixel.sum((1, 2)).mean().item())
print(f"{len(cut):,} windows seen, in {history['seconds'][-1]:.0f} s")

# %%
figure, ax = plt.subplots(figsize=(10, 4.4))
for place, (name, bits) in enumerate(sorted(ladder.items(), key=lambda row: -row[1])):
    color = {"G": COLORS["decoder"], "P": COLORS["data"]}.get(name[0], "#BBBBBB")
    ax.barh(place, bits, color=color)
    ax.text(bits + 0.05, place, f"{bits:.2f}", va="center", fontsize=11)
    ax.text(0.1, place, name, va="center", fontsize=11, color="w" if name[0] == "P" else "k")
ax.axvline(2.85, color=COLORS["exact"], linestyle=":", label="PixelSNAIL, CIFAR-10, full size")
label(ax, f"{NAME}: a ladder of codes", "bits per dimension (test images)", None, yticks=[])
ax.legend(loc="upper right")
ax.set_xlim(0, 9)
if NAME != STAND_IN:
    plotting.save_figure(figure, "13_ladder_of_codes")
plt.show()

# %% [markdown]
# *What to see.* The grey bars need little training or none. The orange one is the network. It is below every hand-made code, by a few tenths of a bit for each number. And it is still more than a bit above the large model (dotted; that line belongs to CIFAR-10 only). Seconds of training take you from 8 to about 4; the rest of the way takes large networks and long training.
#
# Since the likelihood is a sum over pixels, we can ask *where* the bits go.

# %%
per_dim = by_pixel / (3 * math.log(2))  # bits of a pixel, for each of its three numbers
costs = per_dim.mean((1, 2))
chosen = costs.argsort()[torch.linspace(0, len(costs) - 1, 10).long()]  # cheapest to dearest
figure, axes = plt.subplots(1, 3, figsize=(14, 3.6), width_ratios=[1, 2, 2])
shown = axes[0].imshow(per_dim.mean(0), cmap="magma", vmin=0, vmax=8)
label(axes[0], "mean over images", "column", "row")
plotting.show_images(TEST[chosen], 5, f"{NAME}: from cheap to dear", axes[1])
axes[2].imshow(8 * plotting.tile(per_dim[chosen, None] / 8, 5), cmap="magma", vmin=0, vmax=8)
low, high = costs[chosen[0]], costs[chosen[-1]]
axes[2].set(title=f"their pixels: {low:.1f} … {high:.1f} bits/dim", xticks=[], yticks=[])
figure.colorbar(shown, ax=axes, label="bits per dimension")
plt.show()

# %% [markdown]
# *What to see.* **Left:** the first pixel has no neighbours and costs nearly 8 bits for each number; the first row and the first column lack one neighbour each. In CIFAR-10 the middle, where the objects are, is a little dearer than the margins. **Middle and right:** ten test images, from the cheapest to the dearest, and the price of their pixels. White ground is cheap. The price is paid at edges, and most of all for *texture*: fine, unpredictable detail, which no one would miss. Look at the dearest image, too. If it has a large surface of a colour that is rare in the training images, so small a network is surprised by every pixel of it anew, though all are alike. Differences would have paid next to nothing there.
#
# Keep this in mind for the next section. Bits are dominated by what eyes ignore. A latent variable that knew "this is a horse" could save only a small part of them.

# %%
torch.manual_seed(SEED)
upper = (torch.arange(32) < 16)[:, None].expand(32, 32)
free, known = whole.decoder().sample((16,)), TEST[:8]
completed = whole.decoder().sample((2, 8), known=known, mask=upper)
figure, axes = plt.subplots(1, 2, figsize=(13, 3.9), width_ratios=[1, 2])
plotting.show_images(free, 4, "drawn pixel by pixel", axes[0])
rows = torch.cat([known, torch.where(upper, known, 0.5), *completed])
plotting.show_images(rows, 8, f"{NAME}, upper half, two completions", axes[1])
plt.show()

# %% [markdown]
# *What to see.* **Left:** free draws. Patches of colour, edges, streaks, no object anywhere: four bits per dimension buy texture. **Right:** from above, test images, their upper halves, and two completions each. Colours are carried on for a few rows. Then the network, whose view reaches only a few pixels far, forgets them and drifts towards its free draws.
#
# ## 7. A δ-VAE in colour
#
# Now the latents. One vector $z_t$ with eight channels for each of the 32 rows, an AR(1) prior with $\alpha$ from 0.5 to 0.95, an anti-causal encoder, a Gated PixelCNN as decoder: the plan of the paper's smaller CIFAR-10 models, with far smaller networks. Before anything is trained, the committed rate is known:

# %%
deltas = {}
for name, channels, largest in (("low", 8, 0.95), ("high", 64, 0.99)):
    correlations = torch.linspace(0.5, largest, channels, dtype=torch.float64)
    deltas[name] = nats = committed_rate(correlations, 32).item()
    shown = f"{nats:6.2f} nats = {nats / math.log(2):6.2f} bits an image"
    print(f"{name:4} {channels:2} channels: δ = {shown} = {bits_per_dim(nats):.3f} bits/dim")


@torch.no_grad()
def evaluated(vae):
    """Rates of the test images (N,) in nats, the bound in bits/dim, and the report; prints both."""
    bounds = [vae.elbo(x) for x in TEST.split(100)]
    rates = torch.cat([bound.rate for bound in bounds])
    total = bits_per_dim((rates + torch.cat([bound.distortion for bound in bounds])).mean().item())
    report = collapse_report(vae, TEST[:200], seed=SEED, batch_size=100)
    print(f"≤ {total:.3f} ({bits_per_dim(rates.mean().item()):.3f}) bits/dim\n\n{report}")
    return rates, total, report


# %% [markdown]
# These are the two settings of the paper's ablation (notebook 11). In nats, a fee of 55 is large: the small digits of notebook 10 cost about half of that *in total*. In bits per dimension it is 0.026. That is the other reason why everything looks small in this unit. The number in brackets in the paper's tables is just this: the rate, in bits/dim.
#
# We train on whole images now, since the latents need all 32 rows, with four images in a batch. The decoder is the network of section 6 with room for $z$ and a bias for each position. It starts from scratch.
#
# Why from scratch? There is a trained one in section 6. So we train the same $\delta$-VAE once more, from *its* weights, on the same images in the same order. Guess before you look: which of the two decoders will listen to $z$?

# %% tags=["nbval-ignore-output"]
LATENTS = {"latents": (32, 8), "alpha": tuple(torch.linspace(0.5, 0.95, 8).tolist())}
LATENTS |= {"encoder": "anti-causal", "encoder_size": 16}
recipe = Recipe(image_shape=(3, 32, 32), batch_size=4, **LATENTS, **COLOUR_MODEL)
some = TRAIN[: scale(classroom=2000, paper=None)]
pictures = data.Images(some, None, TEST[:100], None, images.source)
vae, history = trained(recipe, pictures, progress=False)

print(f"{len(some):,} images, {history['seconds'][-1]:.0f} s\ndecoder from scratch:", end=" ")
rates, delta_vae_bits, report = evaluated(vae)

warm = build(recipe)
warm.decoder.load_state_dict(small.decoder.state_dict(), strict=False)  # z and positions are new
settings = {"epochs": recipe.epochs, "batch_size": recipe.batch_size, "schedule": linear_decay}
settings |= {"optimizer": partial(adam, lr=recipe.lr), "seed": SEED, "progress": False}
fit(warm, pictures.train, **settings)
print("\n\ndecoder from section 6:", end=" ")
warm_rates, _, warm_report = evaluated(warm.eval())


# %%
def readable(codes, values, new_codes, new_values):
    """Share of the variance of each value (N, v) that a linear map reads from codes (N, d)."""
    codes, new_codes = (F.pad(z.flatten(1), (0, 1), value=1.0) for z in (codes, new_codes))
    error = new_values - new_codes @ torch.linalg.lstsq(codes, values).solution
    return 1 - error.square().mean(0) / new_values.var(0)


torch.manual_seed(SEED)
with torch.no_grad():
    parts = [part.split(250) for part in (TRAIN[:3000], TEST)]
    codes, new_codes = (torch.cat([vae.encoder(x).sample() for x in part]) for part in parts)
    some = TEST[:200]
    scores = [vae.decoder(z).pixel_log_prob(some) for z in (new_codes[:200], new_codes[1:201])]
saved = (scores[0] - scores[1]).mean(0) / math.log(2)  # (32, 32) bits, by the right code
brightness = [x.mean((1, 3)) for x in (TRAIN[:3000], TEST)]  # of each row, (N, 32)
share = readable(codes, brightness[0], new_codes, brightness[1])

# %%
figure, axes = plt.subplots(1, 3, figsize=(14, 3.9))
axes[0].hist((rates / math.log(2)).numpy(), 50, color=COLORS["encoder"])
axes[0].axvline(deltas["low"] / math.log(2), color=COLORS["rate"], linestyle="--", label="δ")
axes[0].legend()
limit = saved.abs().quantile(0.99)
shown = axes[1].imshow(saved, cmap="PuOr", vmin=-limit, vmax=limit)
figure.colorbar(shown, ax=axes[1], label="bits a pixel")
axes[2].bar(range(32), share, color=COLORS["encoder"])
axes[2].set_ylim(0, 1)
label(axes[0], f"{NAME.split()[0]}: no image is below δ", "rate of one image (bits)", "test images")
label(axes[1], "what the right code saves", "column", "row")
label(axes[2], "brightness of a row, read from z", "row", "share of variance (test images)")
if NAME != STAND_IN:
    plotting.save_figure(figure, "13_delta_vae_in_colour")
plt.show()

# %% [markdown]
# *What to see.* All three pictures are of the first model, with the decoder from scratch. **Left:** the rates of the test images one by one. All lie to the right of the line, as they must. **Middle:** where the decoder listens. Each pixel of the map shows how many bits the image's own code saves, compared with the code of another image. In CIFAR-10 it is a little almost everywhere: more at the margins, less in the middle, where the objects are. **Right:** what the code says. From a *draw* of $z$ alone a linear map reads how bright each row of the image is, with this share of the variance explained. So the code has a rough idea of light and dark, from top to bottom; on CIFAR-10 these are between a fifth and two fifths of the variance. It does not know objects; the decoder does not, either.
#
# Be honest about the level. This model has seen 2,000 images once. Its total lies near that of hand-made differences, well behind that of the network without latents, which had twice as many updates and no latents to learn; do not read the difference as the price of $z$. What *can* be read is in the report: the rate is above $\delta$, the encoder says something about the image, and decoding with another image's $z$ costs nats.
#
# ### A decoder that knows too much
#
# Now look at the second report, of the decoder that started from trained weights. Its bits/dim are much better, since it has seen far more. The fee is paid in full. But see the *rise when shuffled*. The first decoder lost dozens of nats with another image's code; this one loses next to nothing. It hardly listens, and so the encoder has little reason to speak: most of its units stand still, and the rate stays close to $\delta$. A decoder that has learnt to do without $z$ goes on doing without it. The commitment makes the rate certain, not the use (notebook 10, section 3); latents that shall be used must be there from the start.
#
# ## 8. The paper's table, and ours
#
# Bits per dimension, smaller is better, the rate in brackets. "≤" marks bounds: a model with latents is at least as good as the number. The next cell makes the table from two kinds of files: published numbers with their sources, and the JSON file that each of our full-size runs leaves in `figures/paper/`, with device and time. No number in it is typed by hand. "waits" means that this run has not been made yet: it takes hours on a GPU, and section 11 says how.

# %% tags=["nbval-ignore-output"]
from IPython.display import Markdown

from vaelib.experiments import tables as paper

lines = paper.page(paper.results(paper.FOLDER)).splitlines()
runs, colour = "| `", ("| `cifar", "| `imagenet")  # of the runs, those on colour images
page = "\n".join(one for one in lines if not one.startswith(runs) or one.startswith(colour))
wanted = ("CIFAR-10", "ImageNet", "Our runs", "What waits")
parts = [f"#### {text}" for text in page.split("\n## ") if text.startswith(wanted)]
lines = "\n".join(parts).splitlines()
cited = " ".join(one for one in lines if one.startswith("|"))
# Sources of other tables are left out.
Markdown("\n".join(one for one in lines if not one.startswith("[") or one.split()[0] in cited))

# %% [markdown]
# How to read it.
#
# - **Compare the compute before the numbers.** Where the last column has numbers, the list of our runs says on how many images each was trained, on what device, and for how long. With 10,000 training images instead of 50,000 a large network overfits, and its test bits are worse than they need be. The small models of this notebook do not belong in the table at all.
# - **Latents at no loss, and at no gain.** With the auxiliary prior, the paper's $\delta$-VAE *equals* the same decoder without latents, on both sets. Of its bits, 0.01 or 0.07 are now the code. It does not beat it. Who wants the likelihood alone has no reason to want latents; the reasons are in notebook 12.
# - **The brackets are small because the unit is large.** 0.02 bits/dim are about 60 bits, ImageNet's 0.08 about 250.
# - **Rows that differ by 0.01 should be called equal.** One training run stands behind each.
# - **A better network moves the number further than a better principle.** From Gated PixelCNN to PixelSNAIL it is 0.18.
#
# ## 9. Families of generative models
#
# Where does this stand among other ways to make images? The table says what each family can *score*, how many passes of the network *drawing* one image takes, and what its *latents* are; $n$ is the number of pixels.
#
# | family | likelihood | passes to draw an image | latents | source |
# |---|---|---|---|---|
# | autoregressive: PixelCNN, PixelSNAIL | exact, discrete | $n$ small ones, one after the other | none | van den Oord et al. 2016; Chen et al. 2018 |
# | VAE | lower bound; more samples tighten it (notebook 05) | 1 | a short vector, inferred in one pass | Kingma & Welling 2013 |
# | $\delta$-VAE with PixelSNAIL | lower bound | $n$ small ones | one vector a row, with a committed rate | Razavi et al. 2019 |
# | deep hierarchical VAE | lower bound | 1, through a chain of groups | many groups on several grids | Vahdat & Kautz 2020 |
# | VQ-VAE with an autoregressive prior | lower bound, rarely the aim | one for each code, then 1 | a small grid of discrete codes | van den Oord et al. 2017 |
# | normalising flow | exact for densities; a bound for levels | 1, the inverse map | as many numbers as the image has | Dinh et al. 2017; Kingma & Dhariwal 2018 |
# | diffusion | lower bound | from a few to a thousand full ones | a noisy image at each step | Ho et al. 2020; Kingma et al. 2021 |
# | GAN | none | 1 | a vector; no encoder | Goodfellow et al. 2014 |
#
# Two things to notice. *Exact likelihood, fast drawing, short latents*: no row has all three. The $\delta$-VAE accepts the slow drawing of its decoder in exchange for short latents beside a strong likelihood. And "likelihood" does not mean the same in each row. An exact value and a bound compare in one direction only: a bound that is *better* than another model's exact value settles the matter, a bound that is worse may be a better model with a loose bound.
#
# ## 10. What grows, and how fast
#
# You have a model that works on $32 \times 32$ and want $64\times 64$: four times the pixels. What happens to time and memory? We measure, for several sizes of image: the memory that the forward pass keeps for the backward pass (it decides which batch fits on a GPU), the time of one training step, and the time of drawing.


# %%
import time


def kept_bytes(model, x):
    """Bytes that the forward pass keeps for the backward pass."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = model().log_prob(x)  # as long as it lives, no storage is used twice
    del value
    return sum(kept.values())


def seconds(function, *arguments, **settings):
    start = time.perf_counter()
    function(*arguments, **settings)
    return time.perf_counter() - start


# %% tags=["nbval-ignore-output"]
KINDS = {
    "Gated PixelCNN": (GatedPixelCNN, {"layers": 3, "kernel": 3}),
    "PixelSNAIL": (PixelSNAIL, {}),
}
COMMON = {"channels": 16, "context": 8, "likelihood": "logistic_mixture", "mixtures": 5}
SIDES, costs = (8, 16, 24, 32), []
for (name, (kind, settings)), side in product(KINDS.items(), SIDES):
    model = kind(image_shape=(3, side, side), **settings, **COMMON)
    x, row = torch.randint(256, (4, 3, side, side)) / 255, {"model": name, "side": side}
    steps = [seconds(lambda: model().log_prob(x).mean().backward()) for _ in range(4)]  # noqa: B023
    row |= {"memory (MiB)": kept_bytes(model, x) / 4 / 2**20, "step (s)": min(steps) / 4}
    if kind is GatedPixelCNN:  # draw 16 images
        canvas, maps = torch.zeros(16, side, side, 3), model.context(None, None)
        inputs = canvas, canvas[..., :1].bool(), torch.rand(16, side, side, 4), maps
        with torch.no_grad():
            model.draw_naively(*inputs, pixels=1)  # warms up
            few = seconds(model.draw_naively, *inputs, pixels=3)
        row |= {"cached (s)": seconds(model().sample, (16,)), "naive (s)": few * side**2 / 3}
    costs.append(row)
costs = pd.DataFrame(costs).set_index(["model", "side"])
costs.round(3)

# %%
figure, axes = plt.subplots(1, 3, figsize=(14, 4))
pixels, gated = [side**2 for side in SIDES], costs.loc["Gated PixelCNN"]
styles = {"Gated PixelCNN": (COLORS["decoder"], "o-"), "PixelSNAIL": ("#882255", "s--")}
for (name, (color, style)), k in product(styles.items(), (0, 1)):
    axes[k].loglog(pixels, costs.loc[name].iloc[:, k], style, color=color, label=name)
axes[2].loglog(pixels, gated["cached (s)"], "o-", color=COLORS["decoder"], label="cached")
axes[2].loglog(pixels, gated["naive (s)"], "s--", color=COLORS["exact"], label="naive")
names = ("kept in memory for one image", "one training step, each image", "drawing 16 images")
limits, units = ((0.1, 10), (1e-4, 0.1), (1e-2, 1e3)), ("MiB", "seconds", "seconds")
for ax, name, limit, unit in zip(axes, names, limits, units, strict=True):
    label(ax, name, "pixels of the image", unit, ylim=limit)
    ax.set_xticks(pixels, [f"{side}²" for side in SIDES])
    ax.minorticks_off()
    ax.legend(fontsize=10)
plt.show()

# %% [markdown]
# *What to see*, with all axes logarithmic. **Left:** memory grows in proportion to the pixels, for both networks. Attention compares all pairs of pixels, but the library asks PyTorch for a fused kernel that never stores the table of pairs. Where that kernel is missing, the table has $1024^2$ entries for each head of a $32 \times 32$ image, and sixteen times as many at $64\times64$. **Middle:** small images cost a fixed minimum; after that convolutions take time in proportion to the pixels, and attention bends upwards, since the *work* on pairs is done all the same. **Right:** the naive line climbs about twice as steeply as the cached one.
#
# So doubling the side costs:
#
# | quantity | grows with the number of pixels $n$ like | $32 \to 64$ |
# |---|---|---|
# | memory and time of a training step, convolutions | $n$ | × 4 |
# | work of attention | $n^2$ | × 16, for that part |
# | drawing, cached, convolutions | $n$ | × 4 |
# | drawing, naive | $n^2$ | × 16 |
# | one latent vector a row, its KL and its $\delta$ | $\sqrt n$ | × 2 |
#
# The last row matters for a $\delta$-VAE. Its committed rate grows with the number of *rows*, the distortion with the number of *pixels*. The same $\alpha$ is a smaller share of a larger image, and must be chosen anew (exercise 1).
#
# ## 11. Run it at full size
#
# The models above are small because a classroom has half a minute. At full size everything else is the same: the same recipes, the same loop, the same checks. In a shell, from the project's folder:
#
# ```sh
# python -m vaelib.experiments cifar10-delta-vae --result run.json
# ```
#
# trains the model of one row, on the GPU if there is one, and leaves a JSON file of your own, `run.json`. It says first how many parameters there are, on which device it runs, how long it will take, and the published number it will be compared with; at the end, where it keeps the model and how to load it. Stopped by Ctrl-C or by a power cut, the same command goes on from its last whole epoch. `python -m vaelib.experiments list` shows the rows and the computation that each needs. Each field of a recipe can be given another value, and `--help` describes them all:
#
# ```sh
# python -m vaelib.experiments cifar10-delta-vae --data cifar10-full      # all 50,000 images
# python -m vaelib.experiments cifar10-delta-vae --channels 128 --epochs 20 --compile
# ```
#
# On a GPU networks run in bf16 (half precision) by default, while weights, images and log probabilities stay in single, because a sum of 3,072 logarithms needs it; `--precision 32` switches the half precision off.
#
# ```sh
# torchrun --nproc-per-node 8 -m vaelib.experiments imagenet32-delta-vae
# ```
#
# is the same run on eight GPUs. `torchrun` starts eight processes; each takes an eighth of every batch, with noise of its own, and PyTorch averages the gradients before the update. For several machines give `torchrun` also `--nnodes` and where to meet (`--rdzv-endpoint`). ImageNet 32×32 needs its official files in `VAELIB_DATA`.
#
# ```sh
# python -m vaelib.experiments cifar10-delta-vae --result figures/paper/cifar10-delta-vae.json
# VAELIB_SCALE=paper make paper     # every row that is still missing, one after the other: hours to days
# make paper-table                  # the table of section 8, written to figures/paper/README.md
# ```
#
# These put rows into the table: each run leaves its JSON file in `figures/paper/`, where section 8 looks for it. The first makes one row, the second all of them.

# %% [markdown]
# ## Claims
#
# 1. **Likelihoods are exact.** Levels, pairs of levels, and all images of a tiny size sum to one, with and without latents.
# 2. **A channel depends on the channels before, and on no other,** by gradient; the formula above is the library's.
# 3. **The units are right:** 8 bits for knowing nothing, and the committed rates of the paper's two settings.
# 4. **The small network beats independent pixels** by more than two bits for each dimension, and the hand-made differences, too. The mixture learns faster than the table.
# 5. **Every test image pays at least δ**, and the code is used. A decoder that was trained without $z$ beforehand uses it less than a tenth as much, and pays all the same.
# 6. **Cached drawing** draws the same images as naive drawing, and is over ten times faster at $32\times32$.


# %%
def total(latents=None, **settings):
    """Sum of the probabilities of all 4,096 colour images of 1 × 2 pixels with 4 levels."""
    every = torch.tensor(list(product(range(4), repeat=6))).double().view(-1, 3, 1, 2) / 3
    sizes = {"image_shape": (3, 1, 2), "levels": 4, "channels": 8}
    model = GatedPixelCNN(latents, **sizes, **settings).double()
    z = torch.randn(*latents).double() if latents else None
    return model(z).log_prob(every).exp().sum().item()


print("1. 2,000 logistics over 256 levels, to 1e-12:", levels_error < 1e-12)
print("   mixtures over 65,536 pairs of levels, to 1e-10:", pairs_error < 1e-10)
print("   three channels by chain, to 1e-9:", chain_error < 1e-9)
torch.manual_seed(SEED)
kinds = product((None, (1, 2)), ("categorical", "logistic_mixture"))
totals_error = max(abs(total(z, likelihood=name) - 1) for z, name in kinds)
print("   both heads over 4,096 images, alone and given z, to 1e-9:", totals_error < 1e-9)
assert levels_error < 1e-12 and pairs_error < 1e-10 and chain_error < 1e-9 and totals_error < 1e-9

# %%
used = torch.equal(influence > 0, torch.ones(3, 3).bool().tril())
print("2. a channel uses all channels before, and no other:", used)
print("   our mixture is the library's, to 1e-9:", same)
eight = abs(bits_per_dim(know_nothing) - 8) < 1e-12
low, high = (deltas[name] / math.log(2) for name in ("low", "high"))
print("3. knowing nothing costs 8 bits a dimension:", eight)
print(f"   committed rates: {low:.3f} and {high:.2f} bits an image")
assert used and same and eight and abs(low - 79.447) < 5e-4 and abs(high - 666.63) < 5e-3

# %%
independent = min(ladder[name] for name in ("independent pixels", "one histogram a channel"))
by_hand = min(bits for name, bits in ladder.items() if "colour" in name)
network = ladder["Gated PixelCNN (small)"]
print("4. the network beats independent pixels by over 2 bits/dim:", network < independent - 2)
print("   and the best hand-made differences by over 0.1:", network < by_hand - 0.1)
committed = delta_vae_bits < independent - 2
print("   the δ-VAE, rate included, beats independent pixels by over 2:", committed)
faster = heads["logistic_mixture", 4000] < heads["categorical", 4000] - 0.2
print("   after 4,000 windows the mixture leads the table by over 0.2:", faster)
assert network < independent - 2 and network < by_hand - 0.1 and committed and faster

# %%
paid = bool((torch.cat([rates, warm_rates]) >= deltas["low"] - 1e-3).all())  # float32 rounds
print("5. every test image pays at least 79.4 bits, with either decoder:", paid)
print("   another image's code costs over 3 nats more:", report.shuffle_rise > 3)
deaf = warm_report.shuffle_rise < 0.1 * report.shuffle_rise
print("   and less than a tenth of that beside the decoder trained without z before:", deaf)
torch.manual_seed(SEED)
tiny, draws = GatedPixelCNN(image_shape=(3, 6, 6), layers=2, **COMMON).double(), []
for cached in (True, False):
    generator = torch.Generator().manual_seed(SEED)
    draws.append(tiny().sample((4,), cached=cached, generator=generator))
print("6. cached and naive draw the same images, bit for bit:", torch.equal(*draws))
cached_time, naive_time = costs.loc[("Gated PixelCNN", 32), ["cached (s)", "naive (s)"]]
print("   cached is over 10 × faster at 32 × 32:", bool(naive_time > 10 * cached_time))
assert paid and report.shuffle_rise > 3 and deaf
assert torch.equal(*draws) and naive_time > 10 * cached_time

# %% [markdown]
# ## Exercises
#
# From easy to hard. Replace each `...`; the cell then says whether yours is right. Solutions with explanations are in `notebooks/solutions/13_scale_to_colour.py`.
#
# **1. Bytes and budgets.** (a) A model reaches 3.77 bits/dim on $32\times32$ colour images. How many bytes does an image take on average, and how many nats is that? (b) A $\delta$-VAE for $64\times64$ colour images has one latent vector for each of the 64 rows, with 16 channels whose $\alpha$ are evenly spaced from 0.5 to $\alpha_{\max}$. It shall be committed to 0.02 bits/dim. Find $\alpha_{\max}$.

# %%
from vaelib.teaching.exercises import check

bytes_and_nats = ...  # your answer: two numbers
check(bytes_and_nats, [1447.68, 8027.6425])
alpha_max = ...  # your answer: a number
check(alpha_max, 0.7571757)

# %% [markdown]
# **2. Without edge bins.** Write the sum of `plain` over all 256 levels in closed form, as a function of $\mu$ and $s$. (Terms cancel.) How much is lost at $\mu = 1$, for any small $s$?


# %%
def sum_without_edges(mean, width):
    return ...  # a number between 0 and 1


cases = [(0.0, 0.1), (1.0, 0.1), (1.2, 0.05)]
true = [plain(LEVELS, *at(*case)).exp().sum().item() for case in cases]
answers = [sum_without_edges(*case) for case in cases]
check(answers, true)

# %% [markdown]
# **3. Fewer levels.** Someone reports 1.1 bits/dim, on "5-bit" images whose 256 levels were merged to 32 by dropping the last three bits. Here are probabilities of 256 levels. Compute the bits of the best code for them, and of the best code for the merged levels. How many bits can merging save at most, whatever the probabilities, and for which of them does it save all of that?

# %%
torch.manual_seed(0)  # the true answers are those of this seed
probabilities = (2 * torch.randn(32).repeat_interleave(8) + torch.randn(256)).double().softmax(0)


def entropies(p):
    return ...  # bits of the 256 levels, bits of the 32 merged ones


check(entropies(probabilities), [5.894578, 3.365634])
saved_at_most = ...  # your answer: bits
check(saved_at_most, 3.0)

# %% [markdown]
# **4. Which order?** Three models score a colour with 8 levels for each channel, one component each. In the first, slopes lie below the diagonal, as they should; in the second, above it; in the third, on both sides. `score(colours, slopes)` is $\sum_c \ln P(x_c\,|\,\sum_{c'} \text{slope}_{cc'} x_{c'})$. Which of the three is a distribution over colours? Guess first; then let your function decide, by summing over all $8^3 = 512$ colours.

# %%
torch.manual_seed(SEED)
full = torch.randn(3, 3).double()
suspects = [full.tril(-1), full.triu(1), full - full.diag().diag()]


def score(colours, slopes):
    """ln P of colours (B, 3) in [0, 1] with 8 levels: (B,) nats."""
    x = 2 * colours - 1
    return discretised_logistic(x, x @ slopes.T, torch.full((3,), -1.0).double(), 8).sum(-1)


def is_distribution(slopes):
    return ...  # True or False


answers = [is_distribution(slopes) for slopes in suspects]
check(answers, [True, True, False])

# %% [markdown]
# ## Further reading
#
# **The papers of this notebook**
# - A. Razavi, A. van den Oord, B. Poole & O. Vinyals (2019), *Preventing Posterior Collapse with delta-VAEs*, [arXiv 1901.03416](https://arxiv.org/abs/1901.03416): table 1, and the ablation that notebook 11 shows.
# - T. Salimans, A. Karpathy, X. Chen & D. P. Kingma (2017), *PixelCNN++*, [arXiv 1701.05517](https://arxiv.org/abs/1701.05517): the discretised logistic mixture, channels included.
#
# **Autoregressive models of colour**
# - A. van den Oord, N. Kalchbrenner & K. Kavukcuoglu (2016), *Pixel Recurrent Neural Networks*, [arXiv 1601.06759](https://arxiv.org/abs/1601.06759): the 256-way softmax, and the order of channels by masks.
# - X. Chen, N. Mishra, M. Rohaninejad & P. Abbeel (2018), *PixelSNAIL*, [arXiv 1712.09763](https://arxiv.org/abs/1712.09763).
# - N. Parmar et al. (2018), *Image Transformer*, [arXiv 1802.05751](https://arxiv.org/abs/1802.05751).
# - X. Chen et al. (2017), *Variational Lossy Autoencoder*, [arXiv 1611.02731](https://arxiv.org/abs/1611.02731): the other way to have latents beside such a decoder.
#
# **The other families**
# - A. Vahdat & J. Kautz (2020), *NVAE*, [arXiv 2007.03898](https://arxiv.org/abs/2007.03898). A. van den Oord, O. Vinyals & K. Kavukcuoglu (2017), *Neural Discrete Representation Learning*, [arXiv 1711.00937](https://arxiv.org/abs/1711.00937).
# - L. Dinh, J. Sohl-Dickstein & S. Bengio (2017), *Density estimation using Real NVP*, [arXiv 1605.08803](https://arxiv.org/abs/1605.08803). D. P. Kingma & P. Dhariwal (2018), *Glow*, [arXiv 1807.03039](https://arxiv.org/abs/1807.03039).
# - J. Ho, A. Jain & P. Abbeel (2020), *Denoising Diffusion Probabilistic Models*, [arXiv 2006.11239](https://arxiv.org/abs/2006.11239). D. P. Kingma, T. Salimans, B. Poole & J. Ho (2021), *Variational Diffusion Models*, [arXiv 2107.00630](https://arxiv.org/abs/2107.00630).
# - I. Goodfellow et al. (2014), *Generative Adversarial Nets*, [arXiv 1406.2661](https://arxiv.org/abs/1406.2661).
#
# **Measuring**
# - L. Theis, A. van den Oord & M. Bethge (2016), *A note on the evaluation of generative models*, [arXiv 1511.01844](https://arxiv.org/abs/1511.01844): what likelihoods do and do not say, and dequantisation.
# - A. Krizhevsky (2009), *Learning Multiple Layers of Features from Tiny Images*: CIFAR-10. P. Chrabaszcz, I. Loshchilov & F. Hutter (2017), *A Downsampled Variant of ImageNet*, [arXiv 1707.08819](https://arxiv.org/abs/1707.08819).
