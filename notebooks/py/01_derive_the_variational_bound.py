# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Derive the variational bound
#
# **What you will do.** You bend a line into a plane and call it a model of data. You then try to compute how probable the data is under that model, watch the obvious method fail, and derive the quantity that everyone maximises in its place: the *evidence lower bound*, or ELBO. You derive it twice, and check every step on a model whose answers are known exactly.
#
# **What you will learn.**
# - what a latent variable model is, and why its likelihood and its posterior are hard to compute;
# - the bound, by importance weights and Jensen's inequality, and again as an exact identity whose remainder is a Kullback–Leibler divergence;
# - its two parts, distortion and rate, and what a nat is;
# - why the *direction* of the divergence matters;
# - why one encoder for all data (amortised inference) replaces one optimisation per datum, and what that costs;
# - the three slots, encoder, prior and decoder, that every model of this course fills.
#
# **What you need.** Expectations, the Gaussian density, the logarithm. A little PyTorch. You need not have read the paper: Kingma & Welling (2013), *Auto-Encoding Variational Bayes*. This notebook covers its sections 2.1 and 2.2, equations 1 to 3, and appendix B.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from vaelib import ELBO, VAE
from vaelib.teaching.plotting import COLORS, use_style

SEED = 0  # the claims at the end held for every seed that we tried: try another
torch.manual_seed(SEED)
torch.set_default_dtype(torch.float64)  # we will compare with exact answers, to rounding
use_style()


def label(ax, title, x, y, **more):
    ax.set(title=title, xlabel=x, ylabel=y, **more)


def line(ax, x, y, color, style="-", name=None, **more):  # color: a concept's, or any other
    ax.plot(x, y, style, color=COLORS.get(color, color), label=name, **more)


# %% [markdown]
# ## 1. A cause that you do not see
#
# Photographs of one face that slowly turns have many thousands of pixels each. Yet one number, the angle of the head, says almost everything that differs between them. The pixels are what we observe, $x$. The angle is a *latent variable*, $z$: it is never recorded, but it explains the data.
#
# A **latent variable model** writes this down as a story in two steps:
#
# 1. draw the cause from a simple distribution, the **prior** $p(z)$;
# 2. draw the observation from a distribution whose parameters depend on the cause, the **likelihood** $p(x|z)$.
#
# Why go this way round? There are three reasons. A model with few causes is a *short description* of the data. It is a *generator*: run the two steps and you get new data. And it is a *representation*: the cause that explains a datum is often more useful than its pixels.
#
# Our first model has one cause and two observed numbers. The prior is $p(z) = \mathcal N(0, 1)$. The likelihood bends the line into a horseshoe and adds noise:
#
# $$p(x|z) = \mathcal N\big(x;\, f(z),\, s^2 I\big), \qquad f(z) = 2\,(\cos 1.2 z,\ \sin 1.2 z), \qquad s = 0.25 .$$
#
# In code, the likelihood is a module that takes $z$ and **returns a distribution**. We call it the *decoder*. Remember that pattern: the whole library is built on it.
#
# The picture needs one more thing: the density of the data, $p(x)$, whatever the cause. For a single latent we can add up over a fine grid of causes. Keep this function in mind, because it is the last time that it will be so easy.

# %%
from vaelib.distributions import DiagNormal
from vaelib.encoders import MLPEncoder
from vaelib.priors import StandardNormal


class Horseshoe(nn.Module):
    """p(x|z) = N(f(z), s² I): z (*batch, 1) to a distribution over vectors (2,)."""

    def forward(self, z):
        mean = 2 * torch.cat([torch.cos(1.2 * z), torch.sin(1.2 * z)], dim=-1)  # (*batch, 2)
        return DiagNormal(mean, torch.full_like(mean, 0.25))


one_cause, horseshoe = StandardNormal(1), Horseshoe()
z = one_cause().sample((800,))  # (800, 1) causes
x = horseshoe(z).sample()  # (800, 2) observations
print(f"causes {tuple(z.shape)} -> observations {tuple(x.shape)}")

# %%
grid, STEP = torch.linspace(-5, 5, 1001)[:, None], 0.01  # fine enough to integrate over


def log_joint_on_grid(x):
    """log p(x|z) + log p(z) for each x (B, 2) and each z of the grid: (1001, B)."""
    return horseshoe(grid[:, None]).log_prob(x) + one_cause().log_prob(grid)[:, None]


def log_evidence_on_grid(x):
    """log p(x) = log ∫ p(x, z) dz, by the sum over the grid: (B,) nats."""
    return log_joint_on_grid(x).logsumexp(0) + math.log(STEP)


side = torch.linspace(-3, 3, 70)
density = log_evidence_on_grid(torch.cartesian_prod(side, side)).exp().reshape(70, 70).T
figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.9))
axes[0].fill_between(grid[:, 0], one_cause().log_prob(grid).exp(), color=COLORS["prior"])
label(axes[0], "1. draw a cause from the prior", "z", "p(z)", xlim=(-3.5, 3.5))
line(axes[1], *horseshoe(grid[270:731]).mean.T, "decoder", zorder=3)
points = axes[1].scatter(*x.T, c=z[:, 0], s=9, cmap="cividis", vmin=-2.5, vmax=2.5)
figure.colorbar(points, ax=axes[1], label="the hidden cause z", shrink=0.85)
label(axes[1], "2. bend it, add noise", "$x_1$", "$x_2$", aspect="equal")
image = axes[2].pcolormesh(side, side, density, cmap="Greys", shading="gouraud")
figure.colorbar(image, ax=axes[2], label="p(x)", shrink=0.85)
label(axes[2], "what we see: p(x)", "$x_1$", "$x_2$", aspect="equal")
plt.show()

# %% [markdown]
# *What to see.* Left: a plain Gaussian. Middle: the orange curve is $f$; each point is coloured by the cause that made it, and the colours run along the horseshoe. Right: the data without its colours, which is all that a learner is ever given. No single Gaussian has this shape. A continuous *mixture* of Gaussians, one for each $z$, has it with one latent and one line of code for $f$.
#
# Replace $f$ by a neural network and the two numbers by pixels, and you have the model of a variational autoencoder. Nothing else in the story changes.
#
# ## 2. How probable is a datum?
#
# To learn the parameters of a model we want to make the data probable: maximise $\log p(x)$, summed over the data. It is called the **marginal likelihood** or the **evidence**. The cause is unknown, so every cause has to be considered:
#
# $$p(x) = \int p(x|z)\, p(z)\, dz = \mathbb E_{p(z)}\big[\,p(x|z)\,\big].$$
#
# The second form suggests an estimator: draw $K$ causes from the prior and average how well each explains $x$. It is unbiased, and takes a few lines. Next to the estimate we compute the **effective sample size**,
#
# $$\mathrm{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2}, \qquad w_k = p(x|z_k).$$
#
# It answers: how many of the $K$ draws really take part in the average? All draws equal: $K$. One draw dwarfs the others: 1.

# %% [markdown]
# ### A laboratory with exact answers
#
# To judge an estimator we need the truth. There is one family of models where every quantity of this notebook has a formula: everything linear, everything Gaussian.
#
# $$p(z) = \mathcal N(0, I), \qquad p(x|z) = \mathcal N(Wz + b,\ s^2 I).$$
#
# A sum of Gaussians is Gaussian, so the integral is solved:
#
# $$p(x) = \mathcal N\big(b,\ W W^\top + s^2 I\big).$$
#
# Think of a room with **two heaters** that you cannot see ($z_1, z_2$: how far each is turned up) and **four thermometers** that you can read ($x$: degrees above the usual temperature of each place). Row $i$ of $W$ says how strongly thermometer $i$ feels each heater. The decoder of this model is our second module that returns a distribution.


# %%
class LinearDecoder(nn.Module):
    """p(x|z) = N(W z + b, s² I): z (*batch, latents) to a distribution over (dims,)."""

    def __init__(self, weight, bias, scale):
        super().__init__()
        self.weight, self.bias, self.scale = weight, bias, scale  # known here, so not learned

    def forward(self, z):
        mean = z @ self.weight.T + self.bias  # (*batch, dims)
        return DiagNormal(mean, torch.full_like(mean, self.scale))


W = torch.tensor([[1.0, 0.3], [0.8, 0.6], [0.5, 0.9], [0.2, 1.0]])
room = LinearDecoder(W, torch.zeros(4), scale=0.5)
readings = room(torch.randn(500, 2)).sample()  # (500, 4): five hundred mornings
new_readings = room(torch.randn(500, 2)).sample()  # and five hundred that come later


# %%
def evidence(decoder):
    """The exact p(x) = N(b, W Wᵀ + s² I)."""
    noise = decoder.scale**2 * torch.eye(len(decoder.bias))
    return MultivariateNormal(decoder.bias, decoder.weight @ decoder.weight.T + noise)


def naive_estimate(decoder, x, samples):
    """log p(x) by averaging over the prior, (B,) nats, and the effective sample size, (B,)."""
    z = torch.randn(samples, 1, decoder.weight.shape[1])
    log_weights = decoder(z).log_prob(x)  # (samples, B): log p(x|z)
    log_p = log_weights.logsumexp(0) - math.log(samples)
    size = (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()
    return log_p, size


# %% [markdown]
# ### Where the naive estimator breaks
#
# We now make the problem harder in two ways: more thermometers, or more precise ones. Both are *good news* for anyone who wants to know the cause. Both are bad news for the estimator, and for the same reason: the region of causes that explain $x$ shrinks, and draws from the prior miss it.
#
# For the linear model even the efficiency has an exact value in the limit of many samples, $\mathrm{ESS}/K \to \mathbb E[w]^2 / \mathbb E[w^2]$, because $p(x|z)^2$ is again a Gaussian in $x$, with half the variance:
#
# $$p(x|z)^2 = (4\pi s^2)^{-D/2}\ \mathcal N\big(x;\, Wz + b,\ \tfrac{s^2}{2} I\big).$$


# %%
def random_room(dims, latents, scale):
    """A room with random couplings, and twenty readings from it."""
    decoder = LinearDecoder(torch.randn(dims, latents), torch.zeros(dims), scale)
    return decoder, decoder(torch.randn(20, latents)).sample()


def efficiency(dims, latents, scale, samples=10_000):
    """Measured and exact ESS / K, geometric means over the readings."""
    decoder, x = random_room(dims, latents, scale)
    measured = naive_estimate(decoder, x, samples)[1] / samples
    sharper = LinearDecoder(decoder.weight, decoder.bias, scale / math.sqrt(2))
    log_squares = evidence(sharper).log_prob(x) - dims / 2 * math.log(4 * math.pi * scale**2)
    exact = (2 * evidence(decoder).log_prob(x) - log_squares).exp()
    return measured.log().mean().exp(), exact.log().mean().exp()


def error(decoder, x, samples):
    """Error of the naive estimate of log p(x), mean over the readings, nats."""
    return (naive_estimate(decoder, x, samples)[0] - evidence(decoder).log_prob(x)).mean()


# %%
numbers, precisions = [1, 2, 4, 8, 16, 32, 64], [0.5, 1, 2, 4, 10, 20]
counts = [10, 100, 1000, 10_000]
figure, axes = plt.subplots(1, 3, figsize=(13, 3.9))
shades = map(plt.get_cmap("magma"), [0.75, 0.5, 0.15])  # the darker, the more latents
for latents, shade, mark in zip([1, 3, 10], shades, "os^", strict=True):
    more = [efficiency(dims, latents, 0.5) for dims in numbers]
    better = [efficiency(16, latents, 1 / precision) for precision in precisions]
    for ax, values, shares in [(axes[0], numbers, more), (axes[1], precisions, better)]:
        measured, exact = zip(*shares, strict=True)
        line(ax, values, measured, shade, mark, f"latents: {latents}")
        line(ax, values, exact, shade, "--")
        ax.axhline(1e-4, color="0.5", lw=1)  # one draw of 10,000
        ax.set(xscale="log", yscale="log", ylim=(1e-12, 2))
    case = random_room(16, latents, 0.5)
    line(axes[2], counts, [error(*case, n) for n in counts], shade, mark + "-")
label(axes[0], "more thermometers", "data dimensions D", "share of draws that count")
label(axes[1], "better thermometers (D = 16)", "precision 1 / s", "share of draws that count")
label(axes[2], "the estimate is too low", "draws K", "error of log p(x) (nats)", xscale="log")
axes[2].set_yscale("symlog")
axes[2].set_ylim(-1000, 1)
axes[2].axhline(0, color=COLORS["exact"], ls=":")
axes[0].legend(loc="lower left")
plt.show()

# %% [markdown]
# *What to see.* Left and middle, dashed: the exact efficiency falls as a power of the size and of the precision, and the power grows with the number of latents. The marks are the measured ones, each for a new random room. They follow the dashed line until they hit the grey line, where a single draw of ten thousand carries the whole average. Below it, the estimator does not know how bad it is: the measured share stays up while the true one falls on.
#
# Right: with one latent the estimate is soon right. With ten, thousands of draws still leave the estimate far below the truth, because the causes that matter were never drawn. An average that is unbiased but almost always far too low is of little use. (A log of an unbiased estimate is not unbiased: it is too low on average. This fact is about to become our friend.)
#
# An image has hundreds of pixels and tens of latents, and training asks for $\log p(x)$ of millions of images. We need draws of $z$ that *depend on $x$*.
#
# ## 3. The cause, given the effect
#
# The best place to look for causes of $x$ is the **posterior**, by Bayes' rule
#
# $$p(z|x) = \frac{p(x|z)\,p(z)}{p(x)} .$$
#
# The numerator is easy. The denominator is the integral that we could not compute. This is what *intractable* means in section 2.1 of the paper: neither $p(x)$ nor $p(z|x)$ has a formula once $f$ is a neural network, even a small one. Each of the two would give us the other.
#
# On the horseshoe we can still divide by the sum over the grid, and look. In the room with two heaters there is a formula (complete the square in $z$):
#
# $$p(z|x) = \mathcal N\big(\Lambda^{-1} W^\top (x - b)/s^2,\ \Lambda^{-1}\big), \qquad \Lambda = I + W^\top W / s^2 .$$


# %%
def posterior(decoder, x):
    """The exact p(z|x) of the linear model, one Gaussian for each x (B, dims)."""
    information = decoder.weight.T @ decoder.weight / decoder.scale**2
    precision = torch.eye(len(information)) + information
    pull = (x - decoder.bias) @ decoder.weight / decoder.scale**2  # (B, latents)
    mean = torch.linalg.solve(precision, pull.T).T
    return MultivariateNormal(mean, precision_matrix=precision.expand(len(x), -1, -1))


x_one = torch.tensor([[1.0, 1.1, 1.2, 1.0]])  # one warm morning
exact = posterior(room, x_one)
places = torch.tensor([[1.9, 0.6], [0.0, 0.0], [-0.6, 0.1]])  # on the arc, centre, in the gap
bent_posteriors = (log_joint_on_grid(places) - log_evidence_on_grid(places)).exp().T  # (3, 1001)
x_gap, target, log_p_gap = places[2], bent_posteriors[2], log_evidence_on_grid(places)[2]

# %%
figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.7))
axes[0].scatter(*x.T, s=4, color=COLORS["data"], alpha=0.25)
looks = zip(["0", "0.3", "0.55"], "os^", ["-", "--", "-."], strict=True)
for place, density, (shade, mark, dashes) in zip(places, bent_posteriors, looks, strict=True):
    line(axes[0], *place, shade, mark, ms=12, mec="white")
    line(axes[1], grid, density, shade, dashes)
label(axes[0], "three observations", "$x_1$", "$x_2$", aspect="equal")
label(axes[1], "their causes on the horseshoe", "z", "p(z|x)", xlim=(-4, 4), ylim=(0, 4.6))
axes[1].legend(["on the arc", "at the centre", "near the gap"], loc="upper left")
side = torch.linspace(-2.3, 2.3, 120)
for distribution, concept in [(StandardNormal(2)(), "prior"), (exact, "exact")]:
    height = distribution.log_prob(torch.cartesian_prod(side, side)).exp().reshape(120, 120).T
    axes[2].contour(side, side, height / height.max(), [0.1, 0.5, 0.9], colors=COLORS[concept])
label(axes[2], "two heaters: prior and posterior", "$z_1$", "$z_2$", aspect="equal")
plt.show()

# %% [markdown]
# *What to see.* On the arc the cause is known well. At the centre every part of the arc is equally far, so the prior decides alone, and the posterior is the prior. Near the gap there are two explanations and nothing between: the posterior has *two modes*.
#
# Right: green is the prior, black the posterior of one warm morning. Both heaters warm the same thermometers. Given a warm room, if it was not the first heater it was the second. The two are independent before you look ($p(z)$ is round) and tied together after ($p(z|x)$ is a slanted ellipse). This is called *explaining away*, and it will matter when we choose a family for $q$.
#
# ## 4. The bound, first way: weights and Jensen
#
# We cannot have the posterior, so we bring in a stand-in: a distribution $q(z|x)$ of our own choice, easy to draw from and easy to evaluate. Kingma and Welling call it the **recognition model**. It will be our *encoder*. Nothing below requires it to be right. Multiply and divide by it:
#
# $$p(x) = \int p(x, z)\, dz = \int q(z|x)\, \frac{p(x, z)}{q(z|x)}\, dz = \mathbb E_{q}\big[\,w(z)\,\big], \qquad w(z) = \frac{p(x|z)\,p(z)}{q(z|x)} .$$
#
# This is exact for every $q$ that is positive wherever $p(x, z)$ is. Now take the logarithm. It is concave: the line between two points of its graph lies below the graph, so the average of the logs is at most the log of the average. That is **Jensen's inequality**:
#
# $$\log p(x) = \log \mathbb E_q[w] \ \ge\ \mathbb E_q[\log w] = \mathbb E_{q}\big[\log p(x, z) - \log q(z|x)\big] =: \mathcal L(x).$$
#
# This is equation 2 of the paper. $\mathcal L$ is the **evidence lower bound**, the ELBO. We gave up equality and gained something better: the logarithm is now *inside* the expectation. A single draw of $z$ from $q$ gives an unbiased estimate of $\mathcal L$, and a sum of log densities does not underflow.
#
# When is nothing lost? When $w$ does not vary. The weight is constant exactly if $q(z|x) \propto p(x, z)$, that is, if $q$ is the posterior, and then $w(z) = p(x)$ for every $z$.


# %%
def log_weights(q, decoder, x, samples):
    """log w(z) = log p(x|z) + log p(z) - log q(z) for draws of z from q: (samples,) nats."""
    z = q.sample((samples,))
    return decoder(z).log_prob(x) + StandardNormal(z.shape[-1])().log_prob(z) - q.log_prob(z)


candidates = {
    "q = prior": StandardNormal(2)(),
    "q = a decent guess": DiagNormal(exact.mean[0] + 0.1, 0.7 * exact.stddev[0]),
    "q = posterior": MultivariateNormal(exact.mean[0], exact.covariance_matrix[0]),
}
drawn = {name: log_weights(q, room, x_one, 20_000) for name, q in candidates.items()}
log_p_one = evidence(room).log_prob(x_one).item()

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4), width_ratios=[1, 1.5])
weight, pair = torch.linspace(0.08, 4.2, 200), torch.tensor([0.3, 3.7])
line(axes[0], weight, weight.log(), "exact")
line(axes[0], pair, pair.log(), "bound", "o--")
line(axes[0], [2, 2], [pair.log().mean(), pair.mean().log()], "bound", lw=5)
axes[0].text(1.9, 0.85, "log of the mean", ha="right")
axes[0].text(2.15, -0.2, "mean of the logs")
label(axes[0], "Jensen: the chord is below the graph", "weight w", "log w (nats)", ylim=(-2, 1.8))
edges, shares = torch.linspace(-25, 0, 126), torch.full((20_000,), 1 / 20_000)
for (name, values), concept in zip(drawn.items(), ["prior", "encoder", "exact"], strict=True):
    axes[1].hist(values, edges, weights=shares, alpha=0.45, color=COLORS[concept], label=name)
    axes[1].axvline(values.mean(), color=COLORS[concept], ls="--")
label(axes[1], "dashed: the bound = mean log w", "log w(z) (nats)", "share of draws", yscale="log")
axes[1].legend(loc="upper left", bbox_to_anchor=(0.3, 1))
plt.show()

# %% [markdown]
# *What to see.* Left: two weights, their mean, and the thick grey gap between the log of the mean and the mean of the logs. Equal weights would close it. Right: the log weights of one morning under three choices of $q$. (About a quarter of the prior's are below the left edge and not drawn.) All three have the *same* mean weight, $p(x)$. To second order, the mean of the log weights is lower by half their variance: the more they scatter, the lower it is. For the posterior there is no scatter at all: every draw returns $\log p(x)$ itself, the black spike.
#
# ## 5. The bound, second way: an identity
#
# Jensen says *at most*. It does not say how much is missing. Start again, from the quantity we would like to be small: how far $q$ is from the posterior. The **Kullback–Leibler divergence** measures that,
#
# $$\mathrm{KL}(q \,\|\, p) = \mathbb E_q\Big[\log \frac{q(z)}{p(z)}\Big] \ge 0, \qquad = 0 \text{ only if } q = p .$$
#
# Write it for $q(z|x)$ and $p(z|x)$, and insert Bayes' rule $p(z|x) = p(x,z)/p(x)$:
#
# $$\begin{aligned}
# \mathrm{KL}\big(q(z|x)\,\|\,p(z|x)\big) &= \mathbb E_q\big[\log q(z|x) - \log p(z|x)\big] && \text{definition}\\
# &= \mathbb E_q\big[\log q(z|x) - \log p(x, z) + \log p(x)\big] && \text{Bayes' rule}\\
# &= -\,\mathcal L(x) + \log p(x) && \log p(x) \text{ does not depend on } z .
# \end{aligned}$$
#
# Turn it around and you have equation 1 of the paper, with no inequality in it:
#
# $$\boxed{\ \log p(x) = \mathcal L(x) + \mathrm{KL}\big(q(z|x)\,\|\,p(z|x)\big)\ }$$
#
# Three things follow at once.
#
# - **It is a bound**, because a KL divergence is never negative. The proof takes one line: $\log t \le t - 1$, so $-\mathrm{KL}(q \,\|\, p) = \mathbb E_q\big[\log \tfrac{p}{q}\big] \le \mathbb E_q\big[\tfrac{p}{q} - 1\big] \le 0$.
# - **The gap has a name**: the divergence from $q$ to the true posterior.
# - **For a fixed model, raising the bound is inference.** The left side does not contain $q$. So what $\mathcal L$ gains, the divergence loses, and we minimise a distance to the posterior *without ever knowing the posterior*.
#
# When the model is learned too, raising $\mathcal L$ can do either of two things: make the data more probable, or bring $q$ closer to the posterior. A bound that rises does not say which. Later notebooks return to that.

# %% [markdown]
# ## 6. The two parts: distortion and rate
#
# Split the joint density in $\mathcal L$ into likelihood and prior. This is equation 3 of the paper:
#
# $$\mathcal L(x) = \underbrace{\mathbb E_{q}\big[\log p(x|z)\big]}_{-\ \text{distortion}} \;-\; \underbrace{\mathrm{KL}\big(q(z|x)\,\|\,p(z)\big)}_{\text{rate}} .$$
#
# Mind that there are two divergences, with different partners. The **gap** compares $q$ with the posterior, and we usually cannot compute it. The **rate** compares $q$ with the prior, and we usually can.
#
# The names come from coding. Suppose you send $x$ to a friend in two parts: first a code $z$ that says what is special about this $x$, then a correction for what the code leaves unsaid. The first part costs the *rate*: how much the friend's belief moves from $p(z)$ to $q(z|x)$. The second costs the *distortion*. The bound says that no such scheme beats $-\log p(x)$ on average.
#
# **Units.** With natural logarithms all of these are in **nats**. One nat is $1/\ln 2$ bits, so divide nats by $\ln 2$ to get bits. A fair coin flip is one bit, or $\ln 2$ nats. Densities of continuous data can exceed one, so a distortion can be negative; only differences then have a meaning as code lengths.
#
# **For Gaussians the rate is a formula** (appendix B of the paper). With $q = \mathcal N(\mu, \sigma^2)$ and $p = \mathcal N(0, 1)$, one latent at a time:
#
# $$\mathrm{KL} = \tfrac12\big(\mu^2 + \sigma^2 - 1 - \ln \sigma^2\big).$$
#
# Each term speaks. $\mu^2$ is the price of pointing away from the usual. $\sigma^2 - 1 - \ln\sigma^2$ is the price of saying it more (or less) precisely than the prior, and it is zero at $\sigma = 1$.
#
# In the linear model the distortion has a formula as well. The squared error splits into the error at the mean of $q$ and the spread of $q$ as the decoder sees it:
#
# $$\mathbb E_q\big[\log p(x|z)\big] = \log \mathcal N(x;\, W\mu + b,\ s^2 I) - \frac{\operatorname{tr}(W \Sigma_q W^\top)}{2 s^2} .$$
#
# Now watch the two parts pull against each other. One heater, one thermometer, one reading: $p(x|z) = \mathcal N(z, 0.5^2)$ and $x = 1$. We move $q = \mathcal N(\mu, \sigma^2)$ along each of its two parameters, with the other held at its best value.


# %%
def exact_elbo(decoder, q, x):
    """Equation 3 for the linear model, without sampling: ELBO(distortion, rate), nats."""
    full = isinstance(q, MultivariateNormal)
    covariance = q.covariance_matrix if full else torch.diag_embed(q.variance)
    p = MultivariateNormal(torch.zeros_like(q.mean), torch.eye(q.mean.shape[-1]))
    spread = (decoder.weight.T @ decoder.weight * covariance).sum((-2, -1))  # tr(W Σ Wᵀ)
    distortion = spread / (2 * decoder.scale**2) - decoder(q.mean).log_prob(x)
    return ELBO(distortion, kl_divergence(MultivariateNormal(q.mean, covariance), p))


single, x_single = LinearDecoder(torch.ones(1, 1), torch.zeros(1), scale=0.5), torch.ones(1, 1)
best, log_px = posterior(single, x_single), evidence(single).log_prob(x_single).item()


def scan(mean, scale):
    """Distortion and rate for many Gaussians at once: mean and scale (S,), nats."""
    return exact_elbo(single, DiagNormal(mean[:, None], scale[:, None]), x_single)


# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4), sharey=True)
scales, means = torch.linspace(0.06, 1.5, 200), torch.linspace(-0.7, 2.3, 200)
by_scale, by_mean = scan(best.mean[0].expand(200), scales), scan(means, best.stddev[0].expand(200))
for ax, values, parts, name in zip(axes, (scales, means), (by_scale, by_mean), "σμ", strict=True):
    line(ax, values, parts.rate, "rate", name="rate")
    line(ax, values, parts.distortion, "distortion", name="distortion")
    line(ax, values, -parts.value, "bound", name="their sum = −ELBO", lw=4)
    ax.axhline(-log_px, color=COLORS["exact"], ls="--", label="−log p(x), exact")
    ax.fill_between(values, -log_px, -parts.value, color="0.88", label="gap")
    label(ax, f"moving {name} of q", f"{name} of q", "nats", ylim=(0, 4.5))
for ax, star in zip(axes, (best.stddev.item(), best.mean.item()), strict=True):
    ax.axvline(star, color=COLORS["exact"], ls=":", lw=1)
axes[0].legend(loc="upper left", bbox_to_anchor=(0.08, 1), frameon=True, framealpha=1)
plt.show()

# %% [markdown]
# *What to see.* Left: a narrow $q$ has little distortion, since its draws sit where they explain $x$, but it pays a high rate for such precision. A wide $q$ is the reverse, up to $\sigma = 1$; wider than the prior, it pays in both. Their sum touches the dashed line at one point only, the posterior's own scale (dotted). Right: the same for the mean. The prior pulls towards zero, the datum towards one, and the best mean is in between. The grey area is the whole of what we lose, and it is a divergence.
#
# ### Move it yourself
#
# The next cell draws one $q$, for readers of the printed page. The one after it has sliders: first match the black curve by eye, then by the number in the title.

# %%
BARS = [COLORS[name] for name in ("rate", "distortion", "bound", "exact")]


def explore(mean, scale):
    _, (left, right) = plt.subplots(1, 2, figsize=(11, 3.2))
    z, parts = torch.linspace(-3, 3, 300), scan(torch.tensor([mean]), torch.tensor([scale]))
    gap, distortion = log_px - parts.value.item(), parts.distortion.item()
    line(left, z, Normal(0.0, 1.0).log_prob(z).exp(), "prior", name="prior")
    line(left, z, Normal(0.8, 0.2**0.5).log_prob(z).exp(), "exact", name="posterior")
    line(left, z, Normal(mean, scale).log_prob(z).exp(), "encoder", name="q")
    left.legend(loc="upper left")
    label(left, f"μ = {mean:.1f}, σ = {scale:.2f}", "z", "density", ylim=(0, 2))
    right.barh([0, 0, 1, 1], [gap - log_px, distortion, gap - log_px, -log_px], color=BARS)
    right.set_yticks([0, 1], ["distortion + rate", "−log p(x) + gap"])
    label(right, f"gap {gap:.2f} nats = {gap / math.log(2):.2f} bits", "nats", "", xlim=(0, 6))
    plt.show()


explore(mean=0.8, scale=0.15)

# %% tags=["nbval-ignore-output"]
from ipywidgets import FloatSlider, interact

mean_slider = FloatSlider(value=-1.0, min=-2, max=2, step=0.1, description="mean μ")
scale_slider = FloatSlider(value=1.0, min=0.05, max=2, step=0.05, description="scale σ")
view = interact(explore, mean=mean_slider, scale=scale_slider)

# %% [markdown]
# *What to see.* The two bars always end at the same place: distortion plus rate equals $-\log p(x)$ plus the gap. That is equation 1 read as a picture. The black part never moves, whatever you do to $q$. The $q$ of the printed picture points to the right place but is too sure of itself, and pays for that in rate. With the sliders: where must $q$ go to pay in distortion instead? Where does the grey part vanish?
#
# ## 7. Three slots
#
# The bound needs three distributions, so a model needs three parts. Each part is an `nn.Module` that **returns a distribution**:
#
# | slot | call | returns |
# |---|---|---|
# | encoder | `encoder(x)` | $q(z|x)$, one for each $x$ |
# | prior | `prior()` | $p(z)$ |
# | decoder | `decoder(z)` | $p(x|z)$, one for each $z$ |
#
# For the heaters we have a decoder and a prior. What fills the encoder slot? The exact posterior mean is a *linear* function of $x$ and its covariance is the same for all $x$, so a linear module suffices. A diagonal one cannot slant its ellipse (that is called **mean field**: the latents are independent under $q$). A full one can. We write one of each.


# %%
class LinearEncoder(nn.Module):
    """q(z|x) = N(A x + c, diag σ²), the same σ for all x; sees the readings in `seen`."""

    def __init__(self, seen=(1.0, 1.0, 1.0, 1.0)):
        super().__init__()
        self.mean, self.log_scale = nn.Linear(4, 2), nn.Parameter(torch.zeros(2))
        self.seen = torch.tensor(seen)

    def forward(self, x):
        loc = self.mean(x * self.seen)  # (B, 2)
        return DiagNormal(loc, self.log_scale.exp().expand_as(loc))


class ExactEncoder(nn.Module):
    """q(z|x) = p(z|x), the true posterior."""

    def forward(self, x):
        return posterior(room, x)


# %% [markdown]
# Given the three slots, equation 3 with one draw of $z$ is four lines. The function in the next cell is the heart of the course: everything later changes what fills a slot, or how the slots are trained. `rsample` draws $z$ so that gradients can pass through the draw. Notebook 02 is about that one letter.
#
# `VAE(encoder, prior, decoder)` from the library puts the three together and checks that they fit. Its `elbo(x, samples)` is the function above with more draws, and it returns the two parts, distortion and rate.


# %%
def elbo(x, encoder, prior, decoder):
    q = encoder(x)  # batch (B,)
    z = q.rsample()  # (B, *latent_shape)
    return decoder(z).log_prob(x) - kl_divergence(q, prior())  # (B,) nats


prior, encoder = StandardNormal(2), LinearEncoder()  # an encoder that has learned nothing yet
with torch.no_grad():
    one = elbo(readings, encoder, prior, room)
    bound = VAE(encoder, prior, room).elbo(readings, samples=1000)
    noise = bound.value - exact_elbo(room, encoder(readings), readings).value
print("elbo", one.shape, "vae.elbo", bound.distortion.shape, bound.rate.shape)
close = noise.mean().abs() < 5 * noise.std() / 500**0.5
print("1,000 draws a reading: within 5 standard errors of the exact bound:", bool(close))
perfect = VAE(ExactEncoder(), prior, room).elbo(readings, samples=1)
noise = perfect.value - evidence(room).log_prob(readings)
print("q = posterior, one draw: log p(x) to 1e-9 nats:", bool(noise.abs().max() < 1e-9))

# %% [markdown]
# The sampled bound scatters around the exact one, on both sides: an *estimate* of a lower bound may lie above it, or even above $\log p(x)$, by chance. Only its expectation is a bound.
#
# The last line swapped one slot and left the rest. `ExactEncoder` returns a Gaussian with a full covariance, for which no divergence to our diagonal prior is registered, so the rate is estimated from the same draw. This is estimator A of the paper, and notebook 02 compares it with B. Here it is instructive: with $q$ equal to the posterior the estimate has **no noise at all**, because every weight equals $p(x)$.
#
# ## 8. Check everything against the truth
#
# We derived an identity. An identity can be tested without mercy. We draw a thousand random Gaussians $q$ with full covariances, good and absurd ones, a reading for each, and compute all three terms independently: the bound by equation 3, the evidence from $W W^\top + s^2 I$, the divergence to the posterior by torch's own rule. The library holds this laboratory too, as `PPCA`, written independently of the functions above. The two must agree.

# %%
from vaelib.inference.linear_vae import PPCA

factor = torch.randn(1000, 2, 2) * torch.logspace(-1.5, 0.3, 1000)[:, None, None]
some_readings = room(torch.randn(1000, 2)).sample()
truth = posterior(room, some_readings)
distance = torch.logspace(-3, 0.5, 1000)[torch.randperm(1000)][:, None]  # of q from the truth
some_q = MultivariateNormal(
    truth.mean + distance * torch.randn(1000, 2), factor @ factor.mT + 1e-4 * torch.eye(2)
)
gap = evidence(room).log_prob(some_readings) - exact_elbo(room, some_q, some_readings).value
divergence = kl_divergence(some_q, truth)
print("the gaps span at least three powers of ten:", bool(gap.max() / gap.min() > 1e3))
print("largest |gap - KL| below 1e-9 nats:", bool((gap - divergence).abs().max() < 1e-9))
ppca = PPCA(room.weight, room.bias, noise_variance=room.scale**2)
print("PPCA agrees:", torch.allclose(ppca.log_prob(readings), evidence(room).log_prob(readings)))

# %% [markdown]
# ## 9. Why the direction of the divergence matters
#
# $\mathrm{KL}(q\,\|\,p)$ is not $\mathrm{KL}(p\,\|\,q)$. The bound chose the first for us: the expectation is under $q$, the one we can sample from.
#
# What does that choice reward? The integrand is $q \log (q/p)$. Wherever $q$ puts mass and the posterior has none, $\log(q/p)$ explodes. Wherever the posterior has mass and $q$ has none, nothing is charged. So $q$ **may leave things out, but must not invent**. It would rather cover one mode well than two modes badly. This is called *mode seeking*.
#
# The opposite divergence, $\mathrm{KL}(p\,\|\,q)$, charges for every place that $q$ leaves out. Its best Gaussian has the mean and variance of the posterior itself (*moment matching*), and covers everything, the emptiness between the modes included. It needs draws from the posterior, which we do not have. (Wake-sleep, in notebook 04, finds a way to use it, at a price.)
#
# The horseshoe gave us a posterior with two modes, near the gap. We fit a Gaussian to it by raising the bound, from three different starts. To keep chance out of it, the expectation under $q$ is a weighted sum over fixed points $\varepsilon_i$ of the standard normal, with $z_i = \mu + \sigma\varepsilon_i$.

# %%
nodes = torch.linspace(-6, 6, 121)
node_weights = torch.softmax(-(nodes**2) / 2, 0)
means, log_scales = torch.linspace(-4, 4, 161), torch.linspace(-2.2, 1.3, 81)


def bent_elbo(mean, log_scale):
    """The bound for q = N(mean, e^{2 log_scale}) on the horseshoe at x_gap: like mean, nats."""
    z = (mean[..., None] + log_scale.exp()[..., None] * nodes)[..., None]  # (*batch, nodes, 1)
    log_joint = horseshoe(z).log_prob(x_gap) + one_cause().log_prob(z)
    entropy = log_scale + 0.5 * math.log(2 * math.pi * math.e)  # of q, in closed form
    return (node_weights * log_joint).sum(-1) + entropy


def density(mean, log_scale):
    return Normal(mean, log_scale.exp()).log_prob(grid).exp()


# %%
def climb(mean, log_scale=-0.5, steps=300):
    """Gradient ascent on the bound; returns the path of (mean, log scale), (steps, 2)."""
    place, path = torch.tensor([mean, log_scale], requires_grad=True), []
    optimizer = torch.optim.Adam([place], lr=0.03, maximize=True)
    for _ in range(steps):
        path.append(place.detach().clone())
        optimizer.zero_grad()
        bent_elbo(*place).backward()
        optimizer.step()
    return torch.stack(path)


paths = {"left": climb(-2.0), "right": climb(1.2), "middle": climb(-0.1)}
matched_mean = (STEP * target * grid[:, 0]).sum()
matched_scale = (STEP * target * (grid[:, 0] - matched_mean) ** 2).sum().sqrt()
matched = matched_mean, matched_scale.log()
surface = (log_p_gap - bent_elbo(means, log_scales[:, None])).clamp(0, 255)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.2))
greys = plt.get_cmap("Greys")(range(10, 250, 27))
levels = right.contourf(means, log_scales, surface, [0, *(2**k for k in range(9))], colors=greys)
figure.colorbar(levels, ax=right, label="KL(q ‖ posterior) (nats)")
left.fill_between(grid[:, 0], target, color="0.75", label="posterior p(z|x)")
line(left, grid, density(*matched), "wake-sleep", "-.", "best for KL(posterior ‖ q)")
for (name, path), shade in zip(paths.items(), ["#6AAED6", "#0072B2", "#08306B"], strict=True):
    dashes = "--" if name == "middle" else "-"
    line(left, grid, density(*path[-1]), shade, dashes, f"raise the bound from the {name}")
    line(right, *path.T, shade, dashes, marker="o", markevery=[0, -1], mec="white", ms=9)
line(right, *matched, "wake-sleep", "D", mec="white", ms=10)
label(left, "mode seeking against covering", "z", "density", xlim=(-4, 4), ylim=(0, 3.9))
left.legend(fontsize=11, loc="upper center")
label(right, "the climbs, on the map of the divergence", "mean of q", "log scale of q")
plt.show()

# %% [markdown]
# *What to see.* Left: each climb ends in one mode and ignores the other; which one depends on the start. The dash-dotted Gaussian matches the moments, and puts its peak where the posterior is empty. Right: the map of the divergence has separate basins. Variational inference with a unimodal family is a *local* affair, and it is overconfident: it reports one explanation, and its width, as if there were no other. The diamond, best in the other direction, is very bad in this one.
#
# For learning, this is often what one wants. A $q$ that commits to one explanation per datum yields draws that the decoder can use, instead of draws from the empty middle.
#
# ## 10. One optimisation per datum, or one encoder for all
#
# So far $q$ had its own mean and scale for a given $x$. Classical variational inference does just that: for each datum $x^{(i)}$ it keeps **local variational parameters** $\mu^{(i)}, \sigma^{(i)}$ and climbs the bound. It gets the best $q$ of the family, for this datum. Then a new datum arrives, and all the work starts again.
#
# Kingma and Welling let a function do it: $\mu(x), \sigma(x)$ come out of an encoder whose parameters are *shared by all data*. Learning is paid once, and a new datum costs one evaluation. This is **amortised inference**.
#
# We compare both on the heaters, by plain gradient ascent on the exact bound. First, what is the best that a mean-field $q$ can do? In the linear model: the exact posterior mean, and as variances the inverse diagonal of the posterior *precision* $\Lambda$ (not the diagonal of its inverse). What it still loses is a constant, the **approximation gap** of the family:
#
# $$\mathrm{KL} = \tfrac12\Big(\textstyle\sum_i \ln \Lambda_{ii} - \ln\det\Lambda\Big).$$


# %%
def best_diagonal(x):
    """The mean-field q with the highest bound in the room: exact mean, variances 1 / Λ_ii."""
    true = posterior(room, x)
    return DiagNormal(true.mean, true.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt())


def ascend(parameters, objective, steps, rate, method=torch.optim.SGD):
    """Gradient ascent, plain unless told otherwise; returns the objective before each step."""
    optimizer, values = method(parameters, lr=rate, maximize=True), []
    for _ in range(steps):
        optimizer.zero_grad()
        value = objective()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return torch.tensor(values)


# %%
RATE = 0.03  # the step size of both; with 0.05 the shared encoder would diverge


def per_datum(x, steps=200):
    """Local parameters (B, 2) and (B, 2), each climbing its own bound: the q's, the mean bound."""
    loc, log_scale = (torch.zeros(len(x), 2, requires_grad=True) for _ in range(2))

    def total():  # a sum: no datum feels any other
        return exact_elbo(room, DiagNormal(loc, log_scale.exp()), x).value.sum()

    curve = ascend([loc, log_scale], total, steps, RATE) / len(x)
    return DiagNormal(loc.detach(), log_scale.detach().exp()), curve


def amortise(encoder, x, steps=1000, rate=RATE, method=torch.optim.SGD):
    """One encoder for all x, climbing the mean bound; returns the mean bound on the way."""

    def mean():
        return exact_elbo(room, encoder(x), x).value.mean()

    return ascend(encoder.parameters(), mean, steps, rate, method)


# %%
local_q, local_curve = per_datum(readings)
new_local_q, new_local_curve = per_datum(new_readings)
shared_curve = amortise(encoder, readings, steps=400)
with torch.no_grad():
    ready = exact_elbo(room, encoder(new_readings), new_readings).value
ready = (exact_elbo(room, best_diagonal(new_readings), new_readings).value - ready).mean()
size, steps = sum(p.numel() for p in encoder.parameters()), len(shared_curve)
print(f"{'':36}per datum   amortised")
print(f"{'numbers to store, 1,000,000 data':36}{4_000_000:9,}{size:12}")
print(f"{'gradients for the 500 training data':36}{500 * len(local_curve):9,}{500 * steps:12,}")
print(f"{'gradients for 1,000,000 new data':36}{len(local_curve)},000,000{0:12}")

# %%
figure, ax = plt.subplots(figsize=(8.5, 4))
for curve, data, look in [
    (local_curve, readings, ("0.75", "-", "per datum, training data", 7)),
    (new_local_curve, new_readings, ("data", ":", "per datum, new data: all over again", 3)),
    (shared_curve, readings, ("encoder", "-", "amortised, training data", 3)),
]:
    best_bound = exact_elbo(room, best_diagonal(data), data).value.mean()
    line(ax, range(1, len(curve) + 1), best_bound - curve, *look[:3], lw=look[3])
line(ax, 1, ready.item(), "encoder", "D", "amortised, new data: no gradient", ms=12, clip_on=False)
label(ax, "pay again and again, or once", "gradients per datum", "nats below the best mean-field q")
ax.set(xscale="log", yscale="log", ylim=(1e-12, 30))
ax.legend(fontsize=11, loc="lower left", bbox_to_anchor=(0.1, 0.25))
plt.show()

# %% [markdown]
# *What to see.* All take steps of the same size. Each datum by itself soon climbs faster (the grey band), because it has only its own four numbers to care about, while the encoder looks for one rule that suits five hundred mornings. But for new data each must climb all over again (dotted), while the encoder is there already: the diamond is its measured loss on new data, before any step. Given time, both reach the *same* bound for every datum; claim 5 checks it.
#
# The order of cost is worth remembering. With $N$ data and $T$ steps each, local inference takes $NT$ gradients for the training set, $N$ sets of parameters, and $T$ more gradients for each new datum. An encoder is trained once, has a fixed number of parameters, and needs one evaluation for a new datum. When the decoder is being learned as well, the local answers go out of date at each of its steps; the encoder merely follows along.
#
# A linear encoder is exactly the right family here, so nothing is lost. In general something is. The loss of the bound then has two parts (Cremer, Li & Duvenaud 2018):
#
# $$\log p(x) - \mathcal L(x) \;=\; \underbrace{\log p(x) - \mathcal L_{q^*}(x)}_{\text{approximation gap: the family}} \;+\; \underbrace{\mathcal L_{q^*}(x) - \mathcal L_{q_\phi}(x)}_{\text{amortisation gap: the encoder}},$$
#
# where $q^*$ is the best member of the family for this datum. We measure both for four encoders, on the data they learned from and on new data:
#
# - the exact posterior, whose family has a full covariance;
# - the linear encoder with a diagonal covariance, as just trained;
# - a *half-blind* one, which sees two of the four thermometers: too small for its task;
# - a network with 64 hidden units that has seen 16 mornings only: too big for its data. (It is the library's `MLPEncoder`, trained with Adam, since plain steps of this size diverge.)

# %%
blind, network = LinearEncoder(seen=(1.0, 1.0, 0.0, 0.0)), MLPEncoder(2, (4,), hidden=64)
amortise(blind, readings)
amortise(network, readings[:16], steps=1500, rate=0.005, method=torch.optim.Adam)
encoders = {
    "exact, full": ExactEncoder(),
    "linear": encoder,
    "half-blind": blind,
    "network": network,
}


@torch.no_grad()
def gaps(q, x):
    """Approximation and amortisation gap, means over the data, nats."""
    family = q if isinstance(q, MultivariateNormal) else best_diagonal(x)
    reachable, log_p = exact_elbo(room, family, x).value, evidence(room).log_prob(x)
    return (log_p - reachable).mean(), (reachable - exact_elbo(room, q, x).value).mean()


# %%
figure, ax = plt.subplots(figsize=(8.5, 4))
for place, each in enumerate(encoders.values()):
    known = readings[:16] if each is network else readings
    for offset, data, hatch in [(-0.2, known, ""), (0.2, new_readings, "//")]:
        family, rest = gaps(each(data), data)
        look = {"width": 0.36, "hatch": hatch, "edgecolor": "white"}
        ax.bar(place + offset, family, color=COLORS["bound"], **look)
        ax.bar(place + offset, rest, bottom=family, color=COLORS["encoder"], **look)
ax.set_xticks(range(4), encoders)
label(ax, "what the bound loses, and to whom", "encoder (hatched: on new data)", "nats per datum")
ax.legend(["approximation gap", "amortisation gap"], loc="upper left")
plt.show()

# %% [markdown]
# *What to see.* Grey: the mean-field family pays the same small price everywhere, for not slanting its ellipse. Blue: the half-blind encoder pays a lot, on old data and new. The network fits its sixteen mornings well and knows less about the others: an encoder can *overfit*, and it shows on new data only. The linear encoder pays nothing in blue on either.
#
# ## 11. Tighten the bound with more draws
#
# Go back to the weights of section 4. With one draw, $\mathbb E[\log w]$ is the ELBO. Average $K$ weights *before* taking the logarithm:
#
# $$\mathcal L_K(x) = \mathbb E_{z_1 \dots z_K \sim q}\Big[\log \frac1K \sum_{k=1}^{K} \frac{p(x|z_k)\,p(z_k)}{q(z_k|x)}\Big] .$$
#
# Jensen still applies, so this is a lower bound for every $K$. The mean of $K$ weights scatters less than one weight does, so the bound rises with $K$, and reaches $\log p(x)$ in the limit (Burda, Grosse & Salakhutdinov 2016). With $q$ equal to the prior this *is* the naive estimator of section 2. The difference that a good $q$ makes is the difference between needing ten draws and needing millions.
#
# In the library: `importance_sampled(vae, x, samples=K)`.

# %%
from vaelib.inference.likelihood import importance_sampled


class PriorEncoder(nn.Module):
    """q(z|x) = p(z): an encoder that does not look."""

    def forward(self, x):
        return DiagNormal(torch.zeros(len(x), 2), torch.ones(len(x), 2))


contenders = [("prior", PriorEncoder(), "o-", "prior"), ("exact", ExactEncoder(), "D-", "exact")]
contenders += [("encoder", blind, "^--", "half-blind"), ("encoder", encoder, "s-", "linear")]
figure, ax = plt.subplots(figsize=(8.5, 4.3))
draws = [1, 10, 100, 1000]
for concept, each, mark, name in contenders:
    tighter = [importance_sampled(VAE(each, prior, room), readings, k) for k in draws]
    missing = evidence(room).log_prob(readings) - torch.stack(tighter)  # (4, 500) nats
    line(ax, draws, missing.mean(1), concept, mark, name)
    error_bar = 2 * missing.std(1) / 500**0.5
    ax.errorbar(draws, missing.mean(1), error_bar, color=COLORS[concept], ls="", capsize=4)
label(ax, "more draws: a tighter bound", "draws K per datum", "log p(x) − $L_K$ (nats)")
ax.set_xscale("log")
ax.set_yscale("symlog", linthresh=0.01)
ax.set_ylim(-0.006, 40)
ax.legend(title="encoder", loc="upper right", ncols=2)
plt.show()

# %% [markdown]
# *What to see.* Every curve falls towards zero as $K$ grows, and the better the encoder, the lower it starts. The exact posterior needs a single draw. Bars are two standard errors of the mean over the data.
#
# The curves do not fall equally fast, and that is a warning. The prior starts worst of all, but it is *wide*: no cause is left out, no weight can be enormous. The half-blind $q$ starts far better and is overtaken, because it is narrow and often in the wrong place: the rare draw that lands where the posterior is carries a huge weight. Even our best mean-field $q$ is narrower than the posterior along the slant of the ellipse. The variance of its weights is finite only if $2\Lambda - \operatorname{diag}\Lambda$ is positive definite (write out $\int p(z|x)^2/q(z|x)\,dz$), and in this room it is not. Mode seeking makes a good bound and a risky proposal. With two heaters even the prior arrives in the end; with tens of latents, as section 2 showed, it never does.
#
# ## Claims
#
# Each cell states a claim, tests it with a stated margin, and fails if it does not hold.

# %%
print("1. ELBO <= log p(x) for 1,000 random q, to 1e-9 nats:", bool(gap.min() >= -1e-9))
assert gap.min() >= -1e-9
worst = (gap - divergence).abs().max()
print("2. log p(x) - ELBO = KL(q || posterior) for each, to 1e-9 nats:", bool(worst < 1e-9))
assert worst < 1e-9
log_p = evidence(room).log_prob(new_readings)
at_posterior = exact_elbo(room, posterior(room, new_readings), new_readings).value
worst = (at_posterior - log_p).abs().max()
print("3. ELBO = log p(x) at the posterior, to 1e-9 nats:", bool(worst < 1e-9))
assert worst < 1e-9
one_draw = VAE(ExactEncoder(), prior, room).elbo(new_readings, samples=1).value
worst = (one_draw - log_p).abs().max()
print("4. there a single draw of z gives log p(x), to 1e-9 nats:", bool(worst < 1e-9))
assert worst < 1e-9

# %%
print("5. amortised = per-datum optimum for every datum, to 1e-6 nats:")
for name, q, x_set in [("known", local_q, readings), ("new", new_local_q, new_readings)]:
    shared_bound = exact_elbo(room, encoder(x_set), x_set).value
    difference = (shared_bound - exact_elbo(room, q, x_set).value).abs().max()
    print(f"   {name} data:", bool(difference < 1e-6))
    assert difference < 1e-6
precision = torch.eye(2) + W.T @ W / room.scale**2
formula = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
reached = evidence(room).log_prob(readings) - exact_elbo(room, local_q, readings).value
agrees = bool((reached - formula).abs().max() < 1e-6)
print(f"6. the mean-field gap is its formula for every datum, {formula:.2f} nats:", agrees)
assert agrees

# %%
linear, many = VAE(encoder, prior, room), room(torch.randn(10_000, 2)).sample()
bounds = torch.stack([importance_sampled(linear, many, 10**k, chunk=100_000) for k in range(4)])
rise = bounds[1:3] - bounds[:2]  # from K = 1 to 10 to 100
certain = bool((rise.mean(1) > 3 * rise.std(1) / 10_000**0.5).all())
print("7. the bound rises from K = 1 to 10 to 100, by over 3 standard errors:", certain)
assert certain
close = bool((bounds[3] - evidence(room).log_prob(many)).mean().abs() < 0.02)
print("8. with K = 1000 it is within 0.02 nats of the exact log p(x), on average:", close)
assert close
ends = [paths[name][-1] for name in ("left", "right")]
two_ends = bool(ends[0][0] < -2 and ends[1][0] > 2)
lost = min(bent_elbo(*end) for end in ends) - bent_elbo(*matched)
print("9. two modes: the climb ends in either, by its start:", two_ends)
print("   and either beats matching the moments by over 5 nats of bound:", bool(lost > 5))
assert two_ends and lost > 5

# %% [markdown]
# ## Exercises
#
# From easy to hard. Replace each `...`; the cell then says whether yours is right. Solutions with explanations are in `notebooks/solutions/01_derive_the_variational_bound.py`.
#
# **1. Nats and bits.** A mean-field encoder loses `formula` nats on every reading. How many *bits* does a sender who uses it waste on 500 readings?

# %%
from vaelib.teaching.exercises import check

wasted_bits = ...  # your answer, from `formula`
check(wasted_bits, 500 * torch.log2(formula.exp()))

# %% [markdown]
# **2. The divergence of two Gaussians.** Derive $\mathrm{KL}\big(\mathcal N(m_1, s_1^2)\,\|\,\mathcal N(m_2, s_2^2)\big)$: write both log densities, take the expectation under the first, and use $\mathbb E[(z - m_2)^2] = (m_1 - m_2)^2 + s_1^2$. With $m_2 = 0$ and $s_2 = 1$ it must give the formula of section 6.


# %%
def kl_of_normals(m1, s1, m2, s2):
    return ...  # your formula


m1, s1 = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([1.0, 0.5, 2.0])
m2, s2 = torch.tensor([0.0, 0.0, 0.5]), torch.tensor([1.0, 1.0, 0.7])
check(kl_of_normals(m1, s1, m2, s2), kl_divergence(Normal(m1, s1), Normal(m2, s2)))

# %% [markdown]
# **3. Too sure of itself.** Someone fixes the covariance of $q$ to $c^2$ times that of the posterior, with the right mean. What is the gap, as a function of $c$ and of the number of latents $d$? Which costs more, $c = \tfrac12$ or $c = 2$? Guess first.


# %%
def gap_of_width(c, d):
    return ...  # your formula, nats


widths = torch.tensor([0.1, 0.5, 1.0, 2.0])
scaled_q = MultivariateNormal(exact.mean, widths[:, None, None] ** 2 * exact.covariance_matrix)
true_gaps = log_p_one - exact_elbo(room, scaled_q, x_one).value
check(gap_of_width(widths, 2), true_gaps)

# %% [markdown]
# **4. The other direction.** For the posterior near the gap, compute the mean and the scale of the Gaussian that minimises $\mathrm{KL}(p\,\|\,q)$: the divergence depends on $q$ through $\mathbb E_p[\log q]$ only, so set its derivatives to zero. You have `target` on `grid`, with spacing `STEP`. The check does not know your formula: it searches.

# %%
your_mean_and_scale = ...  # a pair of numbers, from target, grid and STEP

place = torch.zeros(2, requires_grad=True)  # mean and log scale


def expected_log_q():
    return (STEP * target * Normal(place[0], place[1].exp()).log_prob(grid[:, 0])).sum()


ascend([place], expected_log_q, steps=4000, rate=0.1)
check(your_mean_and_scale, torch.stack([place[0], place[1].exp()]).detach())

# %% [markdown]
# **5. When is mean field exact?** The prior is round, so the causes may be rotated: with any orthogonal matrix $R$, the model with $WR$ in place of $W$ has *the same* $p(x)$. But its posterior is another one. Find an $R$ (from `W` alone) for which the mean-field gap is zero for every $x$. What must be true of the columns of $WR$? (Hint: look at $\Lambda$, and at an eigendecomposition or an SVD.)

# %%
R = ...  # (2, 2), orthogonal


def gap_after_rotation(R):
    if not torch.allclose(R.T @ R, torch.eye(2)):
        return math.nan  # R is not orthogonal
    turned = LinearDecoder(W @ R, room.bias, room.scale)
    same = torch.allclose(evidence(turned).log_prob(readings), evidence(room).log_prob(readings))
    print("still the same p(x):", same)
    true = posterior(turned, x_one)
    q = DiagNormal(true.mean, true.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt())
    return (evidence(turned).log_prob(x_one) - exact_elbo(turned, q, x_one).value).item()


check(... if R is ... else gap_after_rotation(R), 0.0)

# %% [markdown]
# ## Further reading
#
# - D. P. Kingma & M. Welling (2013), *Auto-Encoding Variational Bayes*, [arXiv 1312.6114](https://arxiv.org/abs/1312.6114): sections 2.1 and 2.2 and appendix B are this notebook; section 2.3 is the next.
# - D. J. Rezende, S. Mohamed & D. Wierstra (2014), *Stochastic Backpropagation and Approximate Inference in Deep Generative Models*, [arXiv 1401.4082](https://arxiv.org/abs/1401.4082): the same idea, found independently.
# - D. M. Blei, A. Kucukelbir & J. D. McAuliffe (2016), *Variational Inference: A Review for Statisticians*, [arXiv 1601.00670](https://arxiv.org/abs/1601.00670): the classical, per-datum view.
# - Y. Burda, R. Grosse & R. Salakhutdinov (2016), *Importance Weighted Autoencoders*, [arXiv 1509.00519](https://arxiv.org/abs/1509.00519): the bound with $K$ draws, and the proof that it rises.
# - C. Cremer, X. Li & D. Duvenaud (2018), *Inference Suboptimality in Variational Autoencoders*, [arXiv 1801.03558](https://arxiv.org/abs/1801.03558): approximation gap and amortisation gap.
# - D. P. Kingma & M. Welling (2019), *An Introduction to Variational Autoencoders*, [arXiv 1906.02691](https://arxiv.org/abs/1906.02691): the authors' own textbook treatment.
# - M. E. Tipping & C. M. Bishop (1999), *Probabilistic Principal Component Analysis*, Journal of the Royal Statistical Society B 61(3): the linear model, learned in closed form. Notebook 07 builds on it.
#
# **Next:** notebook 02 makes the gradient of the bound computable when no formula exists, which is always.
