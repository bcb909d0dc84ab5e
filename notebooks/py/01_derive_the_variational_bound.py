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
from vaelib.distributions import DiagNormal
from vaelib.likelihood import importance_sampled
from vaelib.networks import MLP
from vaelib.plotting import COLORS, use_style
from vaelib.priors import StandardNormal

SEED = 0  # every claim at the end holds for any seed: try another
torch.manual_seed(SEED)
torch.set_default_dtype(torch.float64)  # we will compare with exact answers, to rounding
use_style()

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


# %%
class Horseshoe(nn.Module):
    """p(x|z) = N(f(z), s² I): z (*batch, 1) to a distribution over vectors (2,)."""

    scale = 0.25

    def forward(self, z):
        mean = 2 * torch.cat([torch.cos(1.2 * z), torch.sin(1.2 * z)], dim=-1)  # (*batch, 2)
        return DiagNormal(mean, torch.full_like(mean, self.scale))


one_cause, horseshoe = StandardNormal(1), Horseshoe()
z = one_cause().sample((800,))  # (800, 1) causes
x = horseshoe(z).sample()  # (800, 2) observations
print(f"causes {tuple(z.shape)} -> observations {tuple(x.shape)}")

# %% [markdown]
# The picture needs one more thing: the density of the data, $p(x)$, whatever the cause. For a single latent we can add up over a fine grid of causes. Keep this function in mind, because it is the last time that it will be so easy.

# %%
grid = torch.linspace(-5, 5, 1001)[:, None]  # (1001, 1) causes, fine enough to integrate over
STEP = 10 / 1000


def log_joint_on_grid(x):
    """log p(x, z) = log p(x|z) + log p(z) for each x (B, 2) and each z of the grid: (1001, B)."""
    return horseshoe(grid[:, None]).log_prob(x) + one_cause().log_prob(grid)[:, None]


def log_evidence_on_grid(x):
    """log p(x) = log ∫ p(x, z) dz, by the sum over the grid: (B,) nats."""
    return log_joint_on_grid(x).logsumexp(0) + math.log(STEP)


# %%
figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.9), width_ratios=[1, 1.05, 1.05])
axes[0].plot(grid, one_cause().log_prob(grid).exp(), color=COLORS["prior"])
axes[0].fill_between(grid[:, 0], one_cause().log_prob(grid).exp(), color=COLORS["prior"], alpha=0.2)
axes[0].set(title="1. draw a cause from the prior", xlabel="z", ylabel="p(z)", xlim=(-3.5, 3.5))
axes[1].plot(*horseshoe(grid[240:761]).mean.T, color=COLORS["decoder"], zorder=3, label="f(z)")
points = axes[1].scatter(*x.T, c=z[:, 0], s=9, cmap="cividis", vmin=-2.5, vmax=2.5)
figure.colorbar(points, ax=axes[1], label="the hidden cause z", shrink=0.85)
axes[1].set(title="2. bend it, add noise", xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
axes[1].legend(loc="center")
side = torch.linspace(-3, 3, 70)
pixels = torch.cartesian_prod(side, side)
density = log_evidence_on_grid(pixels).exp().reshape(70, 70).T
image = axes[2].pcolormesh(side, side, density, cmap="Greys", shading="gouraud")
figure.colorbar(image, ax=axes[2], label="p(x)", shrink=0.85)
axes[2].set(title="what we see: p(x)", xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
plt.show()

# %% [markdown]
# *What to see.* Left: a plain Gaussian. Middle: each point is coloured by the cause that made it, and the colours run along the horseshoe. Right: the data without its colours, which is all that a learner is ever given. No single Gaussian has this shape. A continuous *mixture* of Gaussians, one for each $z$, has it with one latent and one line of code for $f$.
#
# Replace $f$ by a neural network and the two numbers by pixels, and you have the model of a variational autoencoder. Nothing else in the story changes.

# %% [markdown]
# ## 2. How probable is a datum?
#
# To learn the parameters of a model we want to make the data probable: maximise $\log p(x)$, summed over the data. It is called the **marginal likelihood** or the **evidence**. The cause is unknown, so every cause has to be considered:
#
# $$p(x) = \int p(x|z)\, p(z)\, dz = \mathbb E_{p(z)}\big[\,p(x|z)\,\big].$$
#
# The second form suggests an estimator: draw $K$ causes from the prior and average how well each explains $x$. It is unbiased, and takes four lines. Next to the estimate we compute the **effective sample size**,
#
# $$\mathrm{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2}, \qquad w_k = p(x|z_k).$$
#
# It answers: how many of the $K$ draws really take part in the average? All draws equal: $K$. One draw dwarfs the others: 1.


# %%
def naive_estimate(decoder, x, latents, samples):
    """log p(x) by averaging over the prior, (B,) nats, and the effective sample size, (B,)."""
    z = torch.randn(samples, 1, latents)
    log_weights = decoder(z).log_prob(x)  # (samples, B): log p(x|z)
    log_p = log_weights.logsumexp(0) - math.log(samples)
    size = (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()
    return log_p, size


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
# Think of a room with **two heaters** that you cannot see ($z_1, z_2$: how far each is turned up) and **four thermometers** that you can read ($x$: degrees above the usual temperature of each place). Row $i$ of $W$ says how strongly thermometer $i$ feels each heater.


# %%
class LinearDecoder(nn.Module):
    """p(x|z) = N(W z + b, s² I): z (*batch, latents) to a distribution over (dims,)."""

    def __init__(self, weight, bias, scale):
        super().__init__()
        self.register_buffer("weight", weight)  # (dims, latents); known, so not a parameter
        self.register_buffer("bias", bias)  # (dims,)
        self.scale = scale

    def forward(self, z):
        mean = z @ self.weight.T + self.bias  # (*batch, dims)
        return DiagNormal(mean, torch.full_like(mean, self.scale))


def evidence(decoder):
    """The exact p(x) = N(b, W Wᵀ + s² I)."""
    identity = torch.eye(len(decoder.bias))
    covariance = decoder.weight @ decoder.weight.T + decoder.scale**2 * identity
    return MultivariateNormal(decoder.bias, covariance)


# %%
W = torch.tensor([[1.0, 0.3], [0.8, 0.6], [0.5, 0.9], [0.2, 1.0]])
room = LinearDecoder(W, torch.zeros(4), scale=0.5)
readings = room(torch.randn(500, 2)).sample()  # (500, 4): five hundred mornings
new_readings = room(torch.randn(500, 2)).sample()  # and five hundred that come later
print("readings", tuple(readings.shape), "-> log p(x)", tuple(evidence(room).log_prob(readings).shape))

# %% [markdown]
# ### Where the naive estimator breaks
#
# We now make the problem harder in two ways: more thermometers, or more precise ones. Both are *good news* for anyone who wants to know the cause. Both are bad news for the estimator, and for the same reason: the region of causes that explain $x$ shrinks, and draws from the prior miss it.
#
# For the linear model even the efficiency has an exact value in the limit of many samples, $\mathrm{ESS}/K \to \mathbb E[w]^2 / \mathbb E[w^2]$, because $p(x|z)^2$ is again a Gaussian in $x$, with half the variance:
#
# $$p(x|z)^2 = (4\pi s^2)^{-D/2}\ \mathcal N\big(x;\, Wz + b,\ \tfrac{s^2}{2} I\big).$$


# %%
def exact_efficiency(decoder, x):
    """E[w]² / E[w²] for w = p(x|z), z from the prior: (B,), the limit of ESS / K."""
    sharper = LinearDecoder(decoder.weight, decoder.bias, decoder.scale / math.sqrt(2))
    log_squares = evidence(sharper).log_prob(x)
    log_squares = log_squares - len(decoder.bias) / 2 * math.log(4 * math.pi * decoder.scale**2)
    return (2 * evidence(decoder).log_prob(x) - log_squares).exp()


def random_room(dims, latents, scale):
    """A room with random couplings, and a few readings from it."""
    decoder = LinearDecoder(torch.randn(dims, latents), torch.zeros(dims), scale)
    return decoder, decoder(torch.randn(20, latents)).sample()


def mean_efficiency(dims, latents, scale, samples=10_000):
    """Measured and exact ESS / K, geometric means over readings."""
    decoder, x = random_room(dims, latents, scale)
    measured = naive_estimate(decoder, x, latents, samples)[1] / samples
    return [value.log().mean().exp().item() for value in (measured, exact_efficiency(decoder, x))]


# %%
sizes, scales, counts = [1, 2, 4, 8, 16, 32, 64], [2, 1, 0.5, 0.25, 0.1, 0.05], [10, 100, 1000, 10_000]
figure, axes = plt.subplots(1, 3, figsize=(13, 3.9))
for latents, color, mark in [(1, "prior", "o"), (3, "encoder", "s"), (10, "aevb", "^")]:
    curves = [mean_efficiency(dims, latents, 0.5) for dims in sizes], [mean_efficiency(16, latents, s) for s in scales]
    for ax, values, curve in zip(axes, (sizes, [1 / s for s in scales]), curves, strict=False):
        measured, exact = zip(*curve, strict=True)
        ax.loglog(values, exact, "--", color=COLORS[color], lw=1.5)
        ax.loglog(values, measured, mark, color=COLORS[color], label=f"{latents} latents")
    hard, x_hard = random_room(16, latents, 0.5)
    error = [naive_estimate(hard, x_hard, latents, n)[0] - evidence(hard).log_prob(x_hard) for n in counts]
    axes[2].semilogx(counts, [e.mean() for e in error], mark + "-", color=COLORS[color])
for ax in axes[:2]:
    ax.axhline(1e-4, color=COLORS["bound"], lw=1)
    ax.set(ylim=(1e-12, 2), ylabel="share of draws that count, ESS / K")
axes[0].text(1, 1.5e-5, "grey: one draw of 10,000", color=COLORS["bound"])
axes[0].set(title="more thermometers", xlabel="data dimensions D")
axes[1].set(title="better thermometers (D = 16)", xlabel="precision 1 / s")
axes[1].legend(loc="lower left")
axes[2].axhline(0, color=COLORS["exact"], ls=":")
axes[2].set(title="the estimate is far too low", xlabel="draws K", ylabel="error of log p(x) (nats)", yscale="symlog")
plt.show()

# %% [markdown]
# *What to see.* Left and middle, dashed: the exact efficiency falls as a power of the size and of the precision, and the power grows with the number of latents. The marks are the measured ones. They follow the dashed line until they hit the grey line, where a single draw carries the whole average. Below it, the estimator does not know how bad it is: the measured share stays up while the true one falls on.
#
# Right: with one latent the estimate is soon right. With ten, thousands of draws still leave the estimate far below the truth, because the causes that matter were never drawn. An average that is unbiased but almost always far too low is of little use. (A log of an unbiased estimate is not unbiased: it is too low on average. This fact is about to become our friend.)
#
# An image has hundreds of pixels and tens of latents, and training asks for $\log p(x)$ of millions of images. We need draws of $z$ that *depend on $x$*.

# %% [markdown]
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
    precision = torch.eye(decoder.weight.shape[1]) + decoder.weight.T @ decoder.weight / decoder.scale**2
    pull = (x - decoder.bias) @ decoder.weight / decoder.scale**2  # (B, latents)
    mean = torch.linalg.solve(precision, pull.T).T
    return MultivariateNormal(mean, precision_matrix=precision.expand(len(x), -1, -1))


# %%
places = torch.tensor([[1.9, 0.6], [0.1, 0.05], [-0.6, 0.1]])  # on the arc, centre, in the gap
bent_posterior = (log_joint_on_grid(places) - log_evidence_on_grid(places)).exp()  # (1001, 3)
figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.7))
axes[0].scatter(*x.T, s=4, color=COLORS["data"], alpha=0.25)
styles = [("o", COLORS["encoder"], "on the arc"), ("s", COLORS["decoder"], "at the centre"), ("^", COLORS["aevb"], "near the gap")]
for place, values, (mark, color, name) in zip(places, bent_posterior.T, styles, strict=True):
    axes[0].plot(*place, mark, color=color, ms=11)
    axes[1].plot(grid, values, color=color, label=name)
axes[0].set(title="three observations", xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
axes[1].set(title="their causes: p(z|x) on the horseshoe", xlabel="z", ylabel="p(z|x)", xlim=(-4, 4))
axes[1].legend(loc="upper right", fontsize=11)
side = torch.linspace(-2.2, 2.2, 120)
plane = torch.cartesian_prod(side, side)
truth = posterior(room, torch.tensor([[1.0, 1.1, 1.2, 1.0]]))
for distribution, color in [(StandardNormal(2)(), COLORS["prior"]), (truth, COLORS["exact"])]:
    levels = distribution.log_prob(plane).exp().reshape(120, 120).T
    axes[2].contour(side, side, levels / levels.max(), [0.1, 0.5, 0.9], colors=color)
axes[2].set(title="two heaters: prior (green), posterior", xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
plt.show()

# %% [markdown]
# *What to see.* On the arc the cause is known well. At the centre every part of the arc is equally far, so the prior decides and the posterior is broad. Near the gap there are two explanations and nothing between: the posterior has *two modes*.
#
# Right: both heaters warm the same thermometers. Given a warm room, if it was not the first heater it was the second. The two are independent before you look ($p(z)$ is round) and tied together after ($p(z|x)$ is a slanted ellipse). This is called *explaining away*, and it will matter when we choose a family for $q$.

# %% [markdown]
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
x_one = torch.tensor([[1.0, 1.1, 1.2, 1.0]])  # one warm morning
exact = posterior(room, x_one)
candidates = {
    "q = prior": StandardNormal(2)(),
    "q = a decent guess": DiagNormal(exact.mean[0] + 0.1, 0.7 * exact.stddev[0]),
    "q = posterior": MultivariateNormal(exact.mean[0], exact.covariance_matrix[0]),
}


def log_weights(q, decoder, x, samples):
    """log w(z) = log p(x|z) + log p(z) - log q(z) for draws of z from q: (samples,)."""
    z = q.sample((samples,))
    return decoder(z).log_prob(x) + StandardNormal(z.shape[-1])().log_prob(z) - q.log_prob(z)


drawn = {name: log_weights(q, room, x_one, 20_000) for name, q in candidates.items()}

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4), width_ratios=[1, 1.5])
weight = torch.linspace(0.08, 4.2, 200)
pair = torch.tensor([0.3, 3.7])
axes[0].plot(weight, weight.log(), color=COLORS["exact"])
axes[0].plot(pair, pair.log(), "o--", color=COLORS["encoder"])
axes[0].plot([2, 2], [pair.log().mean(), math.log(2)], color=COLORS["aevb"], lw=4)
axes[0].annotate("log of the mean", (2, math.log(2)), (0.75, 1.35), arrowprops={"arrowstyle": "->"})
axes[0].annotate("mean of the logs", (2, pair.log().mean()), (2.15, -0.75), arrowprops={"arrowstyle": "->"})
axes[0].set(title="Jensen: the chord is below the graph", xlabel="weight w", ylabel="log w (nats)", ylim=(-2, 1.8))
log_p = evidence(room).log_prob(x_one).item()
for (name, values), color in zip(drawn.items(), ("prior", "encoder", "exact"), strict=True):
    kept = values.clamp(min=-13)
    axes[1].hist(kept, bins=torch.linspace(-13, -1, 90), density=True, alpha=0.45, color=COLORS[color], label=name)
    axes[1].axvline(values.mean(), color=COLORS[color], ls="--")
axes[1].set(title="dashed: the bound = mean log weight", xlabel="log w(z) (nats); far left: all below −13", ylabel="density (log scale)", yscale="log")
axes[1].legend(loc="upper left")
plt.show()

# %% [markdown]
# *What to see.* Left: two weights, their mean on the axis, and the orange gap between the log of the mean and the mean of the logs. Equal weights would close it. Right: the log weights of one morning under three choices of $q$. All three have the *same* mean weight, $p(x)$. The more the log weights scatter, the lower their mean. For the posterior there is no scatter at all: every draw returns $\log p(x)$ itself, the black spike.

# %% [markdown]
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
# - **It is a bound**, because a KL divergence is never negative. Jensen is not needed.
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


# %%
def as_full(q):
    """A Gaussian q with its covariance written out, so that torch knows its divergences."""
    covariance = torch.diag_embed(q.variance) if isinstance(q, DiagNormal) else q.covariance_matrix
    return MultivariateNormal(q.mean, covariance)


def exact_elbo(decoder, q, x):
    """Equation 3 for the linear model, without sampling: ELBO(distortion, rate), nats."""
    q = as_full(q)
    p = MultivariateNormal(torch.zeros(q.event_shape), torch.eye(*q.event_shape))
    spread = decoder.weight @ q.covariance_matrix @ decoder.weight.T  # (B, dims, dims)
    spread = spread.diagonal(dim1=-2, dim2=-1).sum(-1)
    distortion = spread / (2 * decoder.scale**2) - decoder(q.mean).log_prob(x)
    return ELBO(distortion, kl_divergence(q, p))


# %% [markdown]
# Now watch the two parts pull against each other. One heater, one thermometer, one reading: $p(x|z) = \mathcal N(z, 0.5^2)$ and $x = 1$. We move $q = \mathcal N(\mu, \sigma^2)$ along each of its two parameters, with the other held at its best value.

# %%
single = LinearDecoder(torch.ones(1, 1), torch.zeros(1), scale=0.5)
x_single = torch.ones(1, 1)
best = posterior(single, x_single)
log_p_single = evidence(single).log_prob(x_single).item()


def scan(mean, scale):
    """Distortion and rate along a line of Gaussians: mean and scale broadcast to (S,)."""
    mean, scale = torch.broadcast_tensors(torch.as_tensor(mean), torch.as_tensor(scale))
    return exact_elbo(single, DiagNormal(mean[:, None], scale[:, None]), x_single)


widths, means = torch.linspace(0.06, 1.5, 200), torch.linspace(-0.7, 2.3, 200)
lines = (widths, scan(best.mean.item(), widths)), (means, scan(means, best.stddev.item()))

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4), sharey=True)
optimum = best.stddev.item(), best.mean.item()
for ax, (values, parts), star, name in zip(axes, lines, optimum, ("scale σ", "mean μ"), strict=True):
    total = parts.distortion + parts.rate
    ax.plot(values, parts.rate, color=COLORS["rate"], label="rate")
    ax.plot(values, parts.distortion, color=COLORS["distortion"], label="distortion")
    ax.plot(values, total, color=COLORS["encoder"], lw=3, label="rate + distortion = −ELBO")
    ax.axhline(-log_p_single, color=COLORS["exact"], ls="--", label="−log p(x), exact")
    ax.fill_between(values, -log_p_single, total, color=COLORS["bound"], alpha=0.25, label="gap = KL(q ‖ posterior)")
    ax.axvline(star, color=COLORS["exact"], ls=":", lw=1)
    ax.set(title=f"moving the {name} of q", xlabel=f"{name} of q", ylim=(0, 4.5))
axes[0].set(ylabel="nats")
axes[0].legend(loc="upper right", fontsize=11)
plt.show()

# %% [markdown]
# *What to see.* Left: a narrow $q$ has little distortion, since its draws sit where they explain $x$, but it pays a high rate for such precision. A wide $q$ is the reverse. Their sum touches the dashed line at one point only, the posterior's own scale (dotted). Right: the same for the mean. The prior pulls towards zero, the datum towards one, and the best mean is in between. The grey area is the whole of what we lose, and it is a divergence.
#
# ### Move it yourself
#
# The next cell draws one $q$ of your choice. The three after it are fixed, for readers of the printed page. With the sliders, first match the black curve by eye, then by the number in the title.


# %%
def draw_q(axes, mean, scale):
    """Prior, posterior and q on the left axis; distortion, rate and gap on the right one."""
    q, line = Normal(mean, scale), torch.linspace(-3, 3, 300)
    parts = scan(torch.tensor([mean]), scale)
    gap = log_p_single - parts.value.item()
    axes[0].plot(line, Normal(0.0, 1.0).log_prob(line).exp(), color=COLORS["prior"], label="prior")
    axes[0].plot(line, Normal(best.mean.item(), best.stddev.item()).log_prob(line).exp(), color=COLORS["exact"], label="posterior")
    axes[0].plot(line, q.log_prob(line).exp(), color=COLORS["encoder"], label="q")
    axes[0].set(xlabel="z", ylim=(0, 2), title=f"μ = {mean:.1f}, σ = {scale:.2f}")
    axes[1].barh(0, parts.distortion, color=COLORS["distortion"], label="distortion")
    axes[1].barh(0, parts.rate, left=parts.distortion, color=COLORS["rate"], label="rate")
    axes[1].barh(1, -log_p_single, color=COLORS["exact"], label="−log p(x)")
    axes[1].barh(1, gap, left=-log_p_single, color=COLORS["bound"], label="gap")
    axes[1].set(xlabel="nats", xlim=(0, 6), yticks=[], title=f"gap {gap:.2f} nats = {gap / math.log(2):.2f} bits")


figure, axes = plt.subplots(2, 3, figsize=(12.5, 4.8), height_ratios=[1.7, 1])
for column, setting in zip(axes.T, [(-0.5, 0.5), (0.8, 0.15), (0.8, 0.45)], strict=True):
    draw_q(column, *setting)
axes[0, 0].legend(fontsize=11, loc="upper right")
axes[1, 2].legend(fontsize=10, loc="center right")
plt.show()

# %% tags=["nbval-ignore-output"]
from ipywidgets import FloatSlider, interact


def explore(mean=-1.0, scale=1.0):
    """One q, drawn anew whenever a slider moves."""
    _, axes = plt.subplots(1, 2, figsize=(10, 3.2))
    draw_q(axes, mean, scale)
    axes[0].legend(loc="upper left")
    plt.show()


sliders = interact(
    explore,
    mean=FloatSlider(value=-1.0, min=-2, max=2, step=0.1, description="mean μ"),
    scale=FloatSlider(value=1.0, min=0.05, max=2, step=0.05, description="scale σ"),
)

# %% [markdown]
# *What to see.* The two bars always end at the same place: distortion plus rate equals $-\log p(x)$ plus the gap. That is equation 1 read as a picture. The black part never moves, whatever you do to $q$. The first $q$ points to the wrong place and pays in distortion. The second points to the right place but is too sure of itself and pays in rate. The third is the posterior to the eye, and the grey part is gone.

# %% [markdown]
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
# Given these, equation 3 with one draw of $z$ is four lines. This function is the heart of the course: everything later changes what fills a slot, or how the slots are trained.


# %%
def elbo(x, encoder, prior, decoder):
    q = encoder(x)  # batch (B,)
    z = q.rsample()  # (B, *latent_shape)
    return decoder(z).log_prob(x) - kl_divergence(q, prior())  # (B,) nats


# %% [markdown]
# `rsample` draws $z$ so that gradients can pass through the draw. Notebook 02 is about that one letter.
#
# For the heaters we have a decoder and a prior. What fills the encoder slot? The exact posterior mean is a *linear* function of $x$ and its covariance is the same for all $x$, so a linear module suffices. A diagonal one cannot slant its ellipse (that is called **mean field**: the latents are independent under $q$). A full one can. We write both.


# %%
class LinearEncoder(nn.Module):
    """q(z|x) = N(A x + c, diag σ²), the same σ for all x; sees only the readings in `seen`."""

    def __init__(self, dims, latents, seen=None):
        super().__init__()
        self.mean = nn.Linear(dims, latents)
        self.log_scale = nn.Parameter(torch.zeros(latents))
        self.register_buffer("seen", torch.ones(dims) if seen is None else torch.tensor(seen))

    def forward(self, x):
        loc = self.mean(x * self.seen)  # (B, latents)
        return DiagNormal(loc, self.log_scale.exp().expand_as(loc))


class ExactEncoder(nn.Module):
    """q(z|x) = p(z|x), the true posterior of a linear decoder."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, x):
        return posterior(self.decoder, x)


# %% [markdown]
# `VAE(encoder, prior, decoder)` puts the three together and checks that they fit. Its `elbo(x, samples)` is the function above with more draws, and it returns the two parts, distortion and rate.

# %%
prior = StandardNormal(2)
vae = VAE(LinearEncoder(4, 2), prior, room)  # an encoder that has learned nothing yet
bound = vae.elbo(readings, samples=10)
print("distortion", tuple(bound.distortion.shape), " rate", tuple(bound.rate.shape), " value", tuple(bound.value.shape))
print("four lines ", tuple(elbo(readings, vae.encoder, prior, room).shape))

# %% tags=["nbval-ignore-output"]
with torch.no_grad():
    for samples in (1, 10, 100, 1000):
        estimate = vae.elbo(readings, samples).value.mean()
        print(f"{samples:5d} draws a datum: mean bound {estimate:.3f} nats")
    print(f"     no draws, exact: mean bound {exact_elbo(room, vae.encoder(readings), readings).value.mean():.3f} nats")
    print(f"    the exact evidence: log p(x) {evidence(room).log_prob(readings).mean():.3f} nats")

# %% [markdown]
# The sampled bound scatters around the exact one, on both sides: an *estimate* of a lower bound may lie above it, or even above $\log p(x)$, by chance. Only its expectation is a bound.
#
# Swap one slot, leave the rest. `ExactEncoder` returns a Gaussian with a full covariance, for which no divergence to our diagonal prior is registered, so `elbo` estimates the rate from the same draws. This is estimator A of the paper, and notebook 02 compares it with B. Here it is instructive: with $q$ equal to the posterior the estimate has **no noise at all**, because every weight equals $p(x)$.

# %%
perfect = VAE(ExactEncoder(room), prior, room)
one_draw = perfect.elbo(readings, samples=1, estimator="A").value
worst = (one_draw - evidence(room).log_prob(readings)).abs().max()
print("one random draw gives log p(x) of every reading to 1e-9 nats:", bool(worst < 1e-9))

# %% [markdown]
# ## 8. Check everything against the truth
#
# We derived an identity. An identity can be tested without mercy. We draw a thousand random Gaussians $q$ with full covariances, good and absurd ones, a reading for each, and compute all three terms independently: the bound by equation 3, the evidence from $W W^\top + s^2 I$, the divergence to the posterior by torch's own rule.

# %%
number = 1000
factor = torch.randn(number, 2, 2) * torch.logspace(-1.5, 0.3, number)[:, None, None]
random_covariance = factor @ factor.mT + 1e-4 * torch.eye(2)
random_reading = room(torch.randn(number, 2)).sample()
truth = posterior(room, random_reading)
distance = torch.logspace(-3, 0.5, number)[torch.randperm(number)][:, None]
random_q = MultivariateNormal(truth.mean + distance * torch.randn(number, 2), random_covariance)

gap = evidence(room).log_prob(random_reading) - exact_elbo(room, random_q, random_reading).value
divergence = kl_divergence(random_q, truth)
print("the bound never exceeds log p(x):", bool((gap >= -1e-9).all()))
print("largest |gap - KL| below 1e-9 nats:", bool((gap - divergence).abs().max() < 1e-9))

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4))
ends = [divergence.min(), divergence.max()]
axes[0].plot(ends, ends, color=COLORS["exact"], lw=1, label="equal")
axes[0].loglog(divergence, gap, ".", color=COLORS["encoder"], ms=4, label="1,000 random q")
axes[0].set(title="what the bound lacks is a divergence", xlabel="KL(q ‖ posterior) (nats)", ylabel="log p(x) − ELBO (nats)")
axes[0].legend()
moved = torch.linspace(-0.6, 0.6, 101)[:, None]
one = posterior(room, x_one.expand(101, -1))
for direction, style, name in [((1.0, 1.0), "-", "both up"), ((1.0, -1.0), "--", "one up, one down")]:
    shifted = MultivariateNormal(one.mean + moved * torch.tensor(direction) / math.sqrt(2), one.covariance_matrix)
    axes[1].plot(moved, exact_elbo(room, shifted, x_one).value, style, color=COLORS["encoder"], label=f"ELBO, {name}")
axes[1].axhline(log_p, color=COLORS["exact"], ls=":", label="log p(x), exact")
axes[1].set(title="it touches log p(x) at the posterior", xlabel="shift of q's mean from the posterior's", ylabel="nats")
axes[1].legend(fontsize=11)
plt.show()

# %% [markdown]
# *What to see.* Left: over many orders of magnitude the gap *is* the divergence. Right: a cut through the bound as the mean of $q$ leaves the posterior. The hill is steep if both heaters are turned up together, since the thermometers would notice, and flat if one replaces the other. The top of the hill touches $\log p(x)$.
#
# The library holds this laboratory too, as `vaelib.linear_vae.PPCA`, written independently of the functions above. The two must agree.

# %%
from vaelib.linear_vae import PPCA

ppca = PPCA(room.weight, room.bias, noise_variance=room.scale**2)
same_evidence = (ppca.log_prob(readings) - evidence(room).log_prob(readings)).abs().max() < 1e-9
same_posterior = kl_divergence(ppca.posterior(readings), posterior(room, readings)).abs().max() < 1e-9
print("same evidence:", bool(same_evidence), " same posterior:", bool(same_posterior))

# %% [markdown]
# ## 9. Why the direction of the divergence matters
#
# $\mathrm{KL}(q\,\|\,p)$ is not $\mathrm{KL}(p\,\|\,q)$. The bound chose the first for us: the expectation is under $q$, the one we can sample from.
#
# What does that choice reward? The integrand is $q \log (q/p)$. Wherever $q$ puts mass and the posterior has none, $\log(q/p)$ explodes. Wherever the posterior has mass and $q$ has none, nothing is charged. So $q$ **may leave things out, but must not invent**. It would rather cover one mode well than two modes badly. This is called *mode seeking*.
#
# The opposite divergence, $\mathrm{KL}(p\,\|\,q)$, charges for every place that $q$ leaves out. Its best Gaussian has the mean and variance of the posterior itself (*moment matching*), and covers everything, the emptiness between the modes included. It needs draws from the posterior, which we do not have. (Wake-sleep, in notebook 04, finds a way to use it, at a price.)
#
# The horseshoe gave us a posterior with two modes, near the gap. We fit a Gaussian to it by raising the bound, from three different starts. To keep chance out of it, the expectation under $q$ is computed by Gauss–Hermite quadrature: fixed points $\varepsilon_i$ with weights, and $z_i = \mu + \sigma\varepsilon_i$.

# %%
import numpy as np

nodes, node_weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(60))
node_weights = node_weights / node_weights.sum()
x_gap = places[2:]
log_p_gap = log_evidence_on_grid(x_gap).item()


def bent_elbo(mean, log_scale):
    """The bound for q = N(mean, e^{2 log_scale}) on the horseshoe at x_gap: like mean, nats."""
    z = (mean[..., None] + log_scale.exp()[..., None] * nodes)[..., None]  # (*batch, nodes, 1)
    log_joint = horseshoe(z).log_prob(x_gap[0]) + one_cause().log_prob(z)
    entropy = log_scale + 0.5 * math.log(2 * math.pi * math.e)  # of q, in closed form
    return (node_weights * log_joint).sum(-1) + entropy


# %%
def climb(mean, log_scale=-0.5, steps=300):
    """Gradient ascent on the bound; returns the path of (mean, log scale), (steps, 2)."""
    place = torch.tensor([mean, log_scale], requires_grad=True)
    optimizer = torch.optim.Adam([place], lr=0.03, maximize=True)
    path = []
    for _ in range(steps):
        path.append(place.detach().clone())
        optimizer.zero_grad()
        bent_elbo(*place).backward()
        optimizer.step()
    return torch.stack(path)


paths = {"start left": climb(-2.0), "start right": climb(1.2), "start in the middle": climb(-0.1)}
target = bent_posterior[:, 2]
matched_mean = (STEP * target * grid[:, 0]).sum()
matched_scale = (STEP * target * (grid[:, 0] - matched_mean) ** 2).sum().sqrt()

# %%
figure, axes = plt.subplots(1, 2, figsize=(12.5, 4.2))
axes[0].fill_between(grid[:, 0], target, color=COLORS["exact"], alpha=0.25, label="posterior p(z|x)")
axes[0].plot(grid, Normal(matched_mean, matched_scale).log_prob(grid).exp(), "-.", color=COLORS["wake-sleep"], label="best for KL(posterior ‖ q)")
means, log_scales = torch.linspace(-4, 4, 161), torch.linspace(-2.2, 1, 81)
surface = log_p_gap - bent_elbo(means.expand(81, 161), log_scales[:, None].expand(81, 161))
levels = axes[1].contourf(means, log_scales, surface.clamp(max=30), [0, 0.5, 1, 2, 4, 8, 16, 30], cmap="Greys")
figure.colorbar(levels, ax=axes[1], label="KL(q ‖ posterior) (nats)")
for (name, path), color, mark in zip(paths.items(), ("encoder", "aevb", "decoder"), "so^", strict=True):
    mean, log_scale = path[-1]
    q = Normal(mean, log_scale.exp()).log_prob(grid).exp()
    axes[0].plot(grid, q, color=COLORS[color], ls="--" if mark == "^" else "-", label=f"raise the bound, {name}")
    axes[1].plot(*path.T, color=COLORS[color])
    axes[1].plot(mean, log_scale, mark, color=COLORS[color], mec="white", ms=11)
axes[1].plot(matched_mean, matched_scale.log(), "D", color=COLORS["wake-sleep"], mec="white", ms=10)
axes[0].set(title="mode seeking against covering", xlabel="z", ylabel="density", xlim=(-4, 4), ylim=(0, 3.4))
axes[0].legend(fontsize=10, loc="upper center")
axes[1].set(title="the climbs, on the map of the divergence", xlabel="mean of q", ylabel="log scale of q", ylim=(-2.2, 1))
plt.show()

# %% [markdown]
# *What to see.* Left: each climb ends in one mode and ignores the other; which one depends on the start. The dash-dotted Gaussian matches the moments, and puts its peak where the posterior is empty. Right: the map of the divergence has separate basins. Variational inference with a unimodal family is a *local* affair, and it is overconfident: it reports one explanation, and its width, as if there were no other. The diamond, best in the other direction, is very bad in this one.
#
# For learning, this is often what one wants. A $q$ that commits to one explanation per datum yields draws that the decoder can use, instead of draws from the empty middle.

# %% [markdown]
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
def best_diagonal(decoder, x):
    """The mean-field q with the highest bound: exact mean, variances 1 / Λ_ii."""
    true = posterior(decoder, x)
    variance = 1 / true.precision_matrix.diagonal(dim1=-2, dim2=-1)
    return DiagNormal(true.mean, variance.sqrt())


def ascend(parameters, objective, steps, rate, method=torch.optim.SGD):
    """Gradient ascent, plain unless told otherwise; returns the objective before each step."""
    optimizer = method(parameters, lr=rate, maximize=True)
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = objective()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return torch.tensor(values)


# %%
def per_datum(x, steps=100):
    """Local parameters (B, 2 + 2), each climbing its own bound; the q's and the mean bound."""
    loc, log_scale = (torch.zeros(len(x), 2, requires_grad=True) for _ in range(2))

    def total():  # a sum: no datum feels any other
        return exact_elbo(room, DiagNormal(loc, log_scale.exp()), x).value.sum()

    curve = ascend([loc, log_scale], total, steps, rate=0.05) / len(x)
    return DiagNormal(loc.detach(), log_scale.detach().exp()), curve


def amortise(encoder, x, steps=2000, rate=0.03, method=torch.optim.SGD):
    """One encoder for all x, climbing the mean bound; returns the mean bound on the way."""

    def mean():
        return exact_elbo(room, encoder(x), x).value.mean()

    return ascend(encoder.parameters(), mean, steps, rate, method)


encoder = LinearEncoder(4, 2)
local_q, local_curve = per_datum(readings)
shared_curve = amortise(encoder, readings)
new_local_q, new_local_curve = per_datum(new_readings)

# %% [markdown]
# Was the shared encoder worth its restrictions? Compare the two results datum by datum, and count what they cost. A *datum-gradient* is one gradient for one datum, the unit in which both pay.

# %%
local_bound = exact_elbo(room, local_q, readings).value
shared_bound = exact_elbo(room, encoder(readings), readings).value
print("same bound for every datum, to 1e-6 nats:", bool((local_bound - shared_bound).abs().max() < 1e-6))
numbers = sum(p.numel() for p in encoder.parameters())
print(f"{'':34}per datum   amortised")
print(f"{'numbers to store, 500 data':34}{500 * 4:9d}{numbers:12d}")
print(f"{'numbers to store, 1,000,000 data':34}{1_000_000 * 4:9d}{numbers:12d}")
print(f"{'gradient steps taken in training':34}{len(local_curve):9d}{len(shared_curve):12d}")
print(f"{'gradient steps for a new datum':34}{len(new_local_curve):9d}{0:12d}")

# %% [markdown]
# A linear encoder is exactly the right family here, so nothing is lost. In general something is. The loss of the bound then has two parts (Cremer, Li & Duvenaud 2018):
#
# $$\log p(x) - \mathcal L(x) \;=\; \underbrace{\log p(x) - \mathcal L_{q^*}(x)}_{\text{approximation gap: the family}} \;+\; \underbrace{\mathcal L_{q^*}(x) - \mathcal L_{q_\phi}(x)}_{\text{amortisation gap: the encoder}},$$
#
# where $q^*$ is the best member of the family for this datum. We measure both for four encoders, on the data they learned from and on new data:
#
# - the exact posterior, with its full covariance;
# - the linear encoder with a diagonal covariance, as just trained;
# - a *half-blind* one, which sees two of the four thermometers: too small for its task;
# - a network with 64 hidden units that has seen 16 mornings only: too big for its data.


# %%
class NetworkEncoder(nn.Module):
    """q(z|x) from a network with one hidden layer; mean and log scale both depend on x."""

    def __init__(self):
        super().__init__()
        self.network = MLP(4, 64, 4)

    def forward(self, x):
        loc, log_scale = self.network(x).chunk(2, dim=-1)
        return DiagNormal(loc, log_scale.exp())


blind, network = LinearEncoder(4, 2, seen=[1.0, 1.0, 0.0, 0.0]), NetworkEncoder()
amortise(blind, readings)
few = readings[:16]
amortise(network, few, steps=1500, rate=0.005, method=torch.optim.Adam)  # plain steps diverge here
encoders = {"exact, full": ExactEncoder(room), "linear": encoder, "half-blind": blind, "network,\n16 data": network}


@torch.no_grad()
def gaps(q, x):
    """Approximation and amortisation gap, means over the data, nats."""
    family = q if isinstance(q, MultivariateNormal) else best_diagonal(room, x)
    best_bound = exact_elbo(room, family, x).value
    return [(evidence(room).log_prob(x) - best_bound).mean(), (best_bound - exact_elbo(room, q, x).value).mean()]


# %%
figure, axes = plt.subplots(1, 2, figsize=(13, 4.3))
best_bound = exact_elbo(room, best_diagonal(room, readings), readings).value.mean()
new_best_bound = exact_elbo(room, best_diagonal(room, new_readings), new_readings).value.mean()
for curve, top, style, name in [(local_curve, best_bound, "--", "per datum"), (shared_curve, best_bound, "-", "amortised")]:
    axes[0].plot(1 + torch.arange(len(curve)), top - curve, style, color=COLORS["encoder"], label=f"{name}, training data")
axes[0].plot(1 + torch.arange(len(new_local_curve)), new_best_bound - new_local_curve, ":", color=COLORS["aevb"], label="per datum, new data: starts again")
new_shared = new_best_bound - exact_elbo(room, encoder(new_readings), new_readings).value.mean().item()
axes[0].plot(1, max(new_shared.item(), 1e-6), "D", color=COLORS["aevb"], ms=10, label="amortised, new data: no step at all")
axes[0].set(title="pay again and again, or once", xlabel="gradient steps (one gradient a datum each)", ylabel="nats below the best mean-field q", xscale="log", yscale="log", ylim=(3e-7, 30))
axes[0].legend(fontsize=10, loc="lower right", bbox_to_anchor=(1, 0.06))
for index, each in enumerate(encoders.values()):
    known = few if each is network else readings
    for offset, x_set, hatch in [(-0.2, known, None), (0.2, new_readings, "//")]:
        family, amortisation = gaps(each(x_set), x_set)
        axes[1].bar(index + offset, family, 0.36, color=COLORS["bound"], hatch=hatch, edgecolor="white")
        axes[1].bar(index + offset, amortisation, 0.36, bottom=family, color=COLORS["encoder"], hatch=hatch, edgecolor="white")
handles = [plt.Rectangle((0, 0), 1, 1, fc=c, hatch=h, ec="white") for c, h in [(COLORS["bound"], None), (COLORS["encoder"], None), ("#BBBBBB", "//")]]
axes[1].legend(handles, ["approximation gap", "amortisation gap", "hatched: new data"], fontsize=11, loc="upper left")
axes[1].set(title="what the bound loses, and to whom", ylabel="log p(x) − ELBO (nats)", xticks=range(4), xticklabels=encoders)
plt.show()

# %% [markdown]
# *What to see.* Left: each datum by itself climbs faster, because it has only its own four numbers to care about. But for new data it must climb all over again, while the encoder is there already: the diamond marks new data after no step at all (values below the axis are drawn at its foot). Right, grey: the mean-field family pays the same small price everywhere, for not slanting its ellipse. Blue: the half-blind encoder pays a lot, on old data and new. The big network fits its sixteen mornings well and has learned little about the others: an encoder can *overfit*, and it shows on new data only. The linear encoder pays nothing in blue on either.
#
# The order of cost is worth remembering. With $N$ data and $T$ steps each, local inference takes $NT$ datum-gradients for the training set, $N$ sets of parameters, and $T$ more for each new datum. An encoder takes its training once, a fixed number of parameters, and one evaluation for each new datum. When the decoder is being learned as well, the local answers go out of date at each of its steps; the encoder merely follows along.

# %% [markdown]
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
class PriorEncoder(nn.Module):
    """q(z|x) = p(z): an encoder that does not look."""

    def forward(self, x):
        return DiagNormal(torch.zeros(len(x), 2), torch.ones(len(x), 2))


contenders = {"q = prior": PriorEncoder(), "half-blind": blind, "linear": encoder, "exact, full": ExactEncoder(room)}
draws = [1, 10, 100, 1000]
tightened = {
    name: torch.stack([importance_sampled(VAE(each, prior, room), readings, k) for k in draws])  # (4, 500)
    for name, each in contenders.items()
}
missing = {name: evidence(room).log_prob(readings) - values for name, values in tightened.items()}

# %%
figure, ax = plt.subplots(figsize=(8.5, 4.3))
looks = [("prior", "o"), ("bound", "^"), ("encoder", "s"), ("exact", "D")]
for (name, values), (color, mark) in zip(missing.items(), looks, strict=True):
    centre = values.mean(1)
    error = values.std(1) / math.sqrt(values.shape[1])
    ax.errorbar(draws, centre, 2 * error, fmt=mark + "-", color=COLORS[color], capsize=4, label=name)
ax.set(xscale="log", xlabel="draws K per datum", ylabel="log p(x) − $L_K$ (nats)", title="more draws: a tighter bound; a better q: sooner")
ax.set_yscale("symlog", linthresh=0.01)
ax.set_ylim(-0.004, 30)
ax.legend(title="encoder")
plt.show()

# %% tags=["nbval-ignore-output"]
print("nats below log p(x), mean over 500 data")
print(f"{'encoder':14}" + "".join(f"{f'K = {k}':>10}" for k in draws))
for name, values in missing.items():
    print(f"{name:14}" + "".join(f"{value:10.4f}" for value in values.mean(1)))

# %% [markdown]
# *What to see.* Every curve falls towards zero as $K$ grows, and the better the encoder, the lower it starts. The exact posterior needs a single draw. Bars are two standard errors of the mean over the data. The half-blind encoder is instructive. Where its $q$ is both narrow and in the wrong place, rare draws carry enormous weights, and the curve comes down slowly: a $q$ that leaves out part of the posterior makes a poor proposal. Importance sampling repairs a decent $q$. It does not replace one.

# %% [markdown]
# ## Claims
#
# Each cell states a claim, tests it with a stated margin, and fails if it does not hold.

# %%
violation = (exact_elbo(room, random_q, random_reading).value - evidence(room).log_prob(random_reading)).max()
print("1. ELBO <= log p(x) for 1,000 random q, to 1e-9 nats:", bool(violation <= 1e-9))
assert violation <= 1e-9

error = (gap - divergence).abs().max()
print("2. log p(x) - ELBO = KL(q || posterior) for each of them, to 1e-9 nats:", bool(error < 1e-9))
assert error < 1e-9

equality = (exact_elbo(room, truth, random_reading).value - evidence(room).log_prob(random_reading)).abs().max()
print("3. ELBO = log p(x) at the posterior, to 1e-9 nats:", bool(equality < 1e-9))
assert equality < 1e-9

one_draw = perfect.elbo(new_readings, samples=1, estimator="A").value
noise = (one_draw - evidence(room).log_prob(new_readings)).abs().max()
print("4. there a single draw of z gives log p(x) without noise, to 1e-9 nats:", bool(noise < 1e-9))
assert noise < 1e-9

# %%
with torch.no_grad():
    known = (exact_elbo(room, encoder(readings), readings).value - exact_elbo(room, local_q, readings).value).abs().max()
    fresh = (exact_elbo(room, encoder(new_readings), new_readings).value - exact_elbo(room, new_local_q, new_readings).value).abs().max()
print("5. amortised = per-datum optimum, every datum, to 1e-6 nats:", bool(known < 1e-6))
print("   and on data the encoder has never seen:", bool(fresh < 1e-6))
assert known < 1e-6 and fresh < 1e-6

precision = torch.eye(2) + W.T @ W / room.scale**2
formula = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
reached = evidence(room).log_prob(readings) - exact_elbo(room, local_q, readings).value
print("6. the mean-field gap is its formula for every datum, to 1e-6 nats:", bool((reached - formula).abs().max() < 1e-6))
print(f"   it is {formula:.2f} nats")
assert (reached - formula).abs().max() < 1e-6

# %%
linear = VAE(encoder, prior, room)
bounds = torch.stack([importance_sampled(linear, new_readings, k) for k in (1, 10, 100, 1000)])
steps_up = bounds.diff(dim=0)[:2]  # K = 1 -> 10 -> 100; beyond, both are exact to a hundredth
significance = steps_up.mean(1) / steps_up.std(1) * math.sqrt(len(new_readings))
print("7. the bound rises from K = 1 to 10 to 100, by more than 3 standard errors:", bool((significance > 3).all()))
assert (significance > 3).all()
final = (bounds[3] - evidence(room).log_prob(new_readings)).mean().abs()
print("8. with K = 1000 it is within 0.02 nats of the exact log p(x):", bool(final < 0.02))
assert final < 0.02

# %%
ends = torch.stack([paths["start left"][-1, 0], paths["start right"][-1, 0]])
masses = [(STEP * target[grid[:, 0] < 0]).sum(), (STEP * target[grid[:, 0] > 0]).sum()]
print("9. two modes hold at least a tenth of the posterior each:", bool(min(masses) > 0.1))
print("   climbing the bound ends in either, by the start:", bool(ends[0] < -2 and ends[1] > 2))
assert min(masses) > 0.1 and ends[0] < -2 and ends[1] > 2
covering = log_p_gap - bent_elbo(matched_mean, matched_scale.log())
seeking = log_p_gap - bent_elbo(*paths["start right"][-1])
print("   there, moment matching loses over 5 nats more of the bound:", bool(covering - seeking > 5))
assert covering - seeking > 5

# %% [markdown]
# ## Exercises
#
# From easy to hard. Replace each `...`; the cell then says whether yours is right. Solutions with explanations are in `notebooks/solutions/01_derive_the_variational_bound.py`.


# %%
def check(yours, true):
    """Print your answer beside the true one; numbers or tensors, to 1e-6."""
    true = torch.as_tensor(true).flatten()
    rounded = [round(value, 3) for value in true.tolist()]
    if yours is ...:
        print(f"yours: not answered yet | true: {rounded}")
        return
    yours = torch.as_tensor(yours, dtype=torch.float64).flatten()
    correct = yours.shape == true.shape and torch.allclose(yours, true, rtol=0, atol=1e-6)
    print(f"yours: {[round(value, 3) for value in yours.tolist()]} | true: {rounded} | {'correct' if correct else 'not yet'}")


# %% [markdown]
# **1. Nats and bits.** A mean-field encoder loses `formula` nats on every reading. How many *bits* does a sender who uses it waste on 500 readings?

# %%
wasted_bits = ...  # your answer, from `formula`

check(wasted_bits, 500 * torch.log2(formula.exp()))

# %% [markdown]
# **2. The divergence of two Gaussians.** Derive $\mathrm{KL}\big(\mathcal N(m_1, s_1^2)\,\|\,\mathcal N(m_2, s_2^2)\big)$: write both log densities, take the expectation under the first, and use $\mathbb E[(z - m_2)^2] = (m_1 - m_2)^2 + s_1^2$. With $m_2 = 0$ and $s_2 = 1$ it must give the formula of section 6.


# %%
def kl_of_normals(m1, s1, m2, s2):
    return ...  # your formula


examples = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.5, 0.0, 1.0], [-1.0, 2.0, 0.5, 0.7]])
m1, s1, m2, s2 = examples.T
check(kl_of_normals(m1, s1, m2, s2), kl_divergence(Normal(m1, s1), Normal(m2, s2)))

# %% [markdown]
# **3. Too sure of itself.** Someone fixes the covariance of $q$ to $c^2$ times that of the posterior, with the right mean. What is the gap, as a function of $c$ and of the number of latents $d$? Which costs more, $c = \tfrac12$ or $c = 2$? Guess first.


# %%
def gap_of_width(c, d):
    return ...  # your formula, nats


widths = [0.1, 0.5, 1.0, 2.0]
true_gaps = [
    (log_p - exact_elbo(room, MultivariateNormal(exact.mean, c**2 * exact.covariance_matrix), x_one).value).item()
    for c in widths
]
check(gap_of_width(torch.tensor(widths), 2), true_gaps)

# %% [markdown]
# **4. The other direction.** For the posterior near the gap, compute the mean and the scale of the Gaussian that minimises $\mathrm{KL}(p\,\|\,q)$: the divergence depends on $q$ through $\mathbb E_p[\log q]$ only, so set its derivatives to zero. You have `target` on `grid`, with spacing `STEP`. The check does not know your formula: it searches.

# %%
your_mean_and_scale = ...  # a pair of numbers, from target, grid and STEP

place = torch.tensor([0.0, 0.0], requires_grad=True)  # mean and log scale
searcher = torch.optim.LBFGS([place], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")


def cross_entropy():
    searcher.zero_grad()
    loss = -(STEP * target * Normal(place[0], place[1].exp()).log_prob(grid[:, 0])).sum()
    loss.backward()
    return loss


searcher.step(cross_entropy)
check(your_mean_and_scale, torch.stack([place[0], place[1].exp()]).detach())

# %% [markdown]
# **5. When is mean field exact?** The prior is round, so the causes may be rotated: with any orthogonal matrix $R$, the model with $WR$ in place of $W$ has *the same* $p(x)$. But its posterior is another one. Find an $R$ (from `W` alone) for which the mean-field gap is zero for every $x$. What must be true of the columns of $WR$? (Hint: look at $\Lambda$, and at an eigendecomposition or an SVD.)

# %%
R = ...  # (2, 2), orthogonal


def gap_after_rotation(R):
    if R is ...:
        return ...
    turned = LinearDecoder(W @ R, room.bias, room.scale)
    same_model = torch.allclose(evidence(turned).log_prob(readings), evidence(room).log_prob(readings))
    print("still the same p(x):", same_model)
    return (evidence(turned).log_prob(x_one) - exact_elbo(turned, best_diagonal(turned, x_one), x_one).value).item()


check(gap_after_rotation(R), 0.0)

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
