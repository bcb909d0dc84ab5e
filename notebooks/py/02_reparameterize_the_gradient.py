# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Reparameterize the gradient
#
# **What you will do.** You take the bound of notebook 01 and try to climb it. The encoder's parameters sit *inside* the distribution that you sample from, and a sample has no derivative. You build the two ways around this, race them against each other, and find out why one of them made the variational autoencoder possible. Then you write the transformation of every distribution that the paper names, and test each against its density.
#
# **What you will learn.**
# - the score-function gradient and the reparameterised (pathwise) gradient, derived and in code, and why both are right on average;
# - how their variances grow with the dimension, shrink with the number of samples, and when the usual winner loses;
# - the two estimators of the bound, SGVB A and SGVB B: what each is good at, measured without favour;
# - why one sample per image is enough once the minibatch is large enough;
# - the three families of transformations: inverse CDF, location–scale, composition;
# - what cannot be reparameterised.
#
# **What you need.** Notebook 01: the bound, its distortion and its rate. The chain rule, variance, the density of a Gaussian. This notebook covers sections 2.2 to 2.4 of Kingma & Welling (2013), *Auto-Encoding Variational Bayes* (AEVB for short), equations 4 to 10.

# %% tags=["library"]
import math
from collections.abc import Callable
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import special, stats
from torch import exp, log, log1p, logit, tan
from torch.distributions import kl_divergence

from vaelib import VAE, data
from vaelib.decoders import BernoulliMLP
from vaelib.distributions import DiagNormal
from vaelib.encoders import MLPEncoder
from vaelib.priors import StandardNormal
from vaelib.teaching.plotting import COLORS, use_style

# %% [markdown]
# ## 1. A sample has no derivative
#
# The bound is an expectation over the encoder's distribution. Strip it of everything else, and what we want to differentiate is
#
# $$F(\phi) = \mathbb E_{q_\phi(z)}\big[f(z)\big] = \int q_\phi(z)\, f(z)\, dz .$$
#
# Here $\phi$ are the encoder's parameters, and $f$ is whatever is averaged: for the bound, $f(z) = \log p(x|z) + \log p(z) - \log q_\phi(z|x)$. The decoder's parameters are no problem. They sit inside $f$, so the gradient of an average is the average of the gradients. But $\phi$ sits in the *weights of the average*. If we draw $z$ and then differentiate $f(z)$, nothing in the program says that $z$ would have come out differently had $\phi$ been different.
#
# PyTorch agrees. `sample()` gives numbers without a history; a gradient that arrives there stops.

# %%
SEED = 0  # the claims at the end held for every seed that we tried: try another
torch.manual_seed(SEED)
torch.set_default_dtype(torch.float64)  # we will compare with exact answers, to rounding
torch.set_num_threads(1)  # for networks this small, sharing the work costs more than doing it
use_style()
COLOR = {"score": "#332288", "score + baseline": "#44AA99", "pathwise": COLORS["aevb"]}
COLOR |= {"A": "#999933", "B": COLORS["aevb"], "STL": "#777777"}  # B is the one that AEVB uses

q = DiagNormal(torch.tensor([1.0], requires_grad=True), torch.ones(1))
print("sample() remembers its mean: ", q.sample().requires_grad)
print("rsample() remembers its mean:", q.rsample().requires_grad)

# %% [markdown]
# The second line hints at the answer: `rsample`, *r* for reparameterised. Before we open it up, we look at the road that was taken before 2013.
#
# ## 2. The score-function gradient
#
# **Derivation.** Move the derivative under the integral, where it meets $q$, and use $\nabla q = q\, \nabla \log q$:
#
# $$\nabla_\phi \int q_\phi(z) f(z)\, dz = \int f(z)\, \nabla_\phi q_\phi(z)\, dz = \int q_\phi(z)\, f(z)\, \nabla_\phi \log q_\phi(z)\, dz = \mathbb E_{q_\phi}\big[f(z)\, \nabla_\phi \log q_\phi(z)\big].$$
#
# It is an expectation again, so we can sample it. The vector $\nabla_\phi \log q_\phi(z)$ is called the **score**; hence the name. It is also known as the *likelihood-ratio* gradient and, in reinforcement learning, as REINFORCE. Section 2.2 of the paper calls it the *naive* estimator. If $f$ itself depends on $\phi$, as the bound does through $-\log q_\phi$, there is a second term, the average of $\nabla_\phi f$. For $-\log q_\phi$ it is zero, because the score averages to zero:
#
# $$\mathbb E_q[\nabla \log q] = \int \nabla q\, dz = \nabla \int q\, dz = \nabla 1 = 0 .$$
#
# **How it works.** The estimator never asks for the slope of $f$. It tries a point, looks at the *value*, and makes that point more probable in proportion. It is trial and error: general (any $f$, even a black box; any $q$ whose log-density we can differentiate, even a discrete one), and wasteful.
#
# **A baseline.** Since the score averages to zero, we may subtract any constant $b$ from $f$ and stay unbiased: $\mathbb E[(f(z) - b)\, \nabla \log q] = \nabla F$. If every value of $f$ lies between $-210$ and $-190$, then without a baseline *every* sample says "less of this", and the signal is the small difference between large pushes. With $b \approx \mathbb E[f]$ the better half says "more", the worse half "less".
#
# ## 3. The pathwise gradient
#
# **Derivation.** Write the random variable as a deterministic function of noise whose distribution has no parameters (equation 4):
#
# $$z = g_\phi(\epsilon), \quad \epsilon \sim p(\epsilon); \qquad \text{for the Gaussian:} \quad z = \mu + \sigma\epsilon, \quad \epsilon \sim \mathcal N(0, 1).$$
#
# For an invertible $g$ this is a change of variables: $q_\phi(z)\, dz = p(\epsilon)\, d\epsilon$. The same probability sits in both small volumes. So (equation 5)
#
# $$\int q_\phi(z) f(z)\, dz = \int p(\epsilon)\, f(g_\phi(\epsilon))\, d\epsilon .$$
#
# Now the weights of the average are free of $\phi$, and the derivative may go inside, through $f$, along the *path* that the sample takes when $\phi$ moves:
#
# $$\nabla_\phi F = \mathbb E_{p(\epsilon)}\Big[\nabla_\phi\, f(g_\phi(\epsilon))\Big] = \mathbb E_{p(\epsilon)}\Big[f'(z)\, \frac{\partial g_\phi(\epsilon)}{\partial \phi}\Big].$$
#
# This is what `rsample` does. It asks more of $f$, namely a derivative, and it uses it: each sample reports *which way is up*, where the score-function sample only reports *how high it is*.
#
# Here are both in one function. To see single-sample gradients, we give every sample its own copy of the parameters. The sum over samples then has one gradient for each copy.


# %% tags=["library"]
def gradient_samples(f, loc, scale, samples, estimator, baseline=0.0):
    """One-sample gradients of E_q[f(z)] in loc and scale: two tensors (samples, *loc.shape)."""
    if estimator not in ("score", "pathwise"):
        raise ValueError(f"expected estimator 'score' or 'pathwise', got {estimator!r}")
    copies = [p.detach().expand(samples, *p.shape).clone().requires_grad_() for p in (loc, scale)]
    q = DiagNormal(*copies)
    z = q.rsample()
    objective = f(z)
    if estimator == "score":
        z = z.detach()
        objective = (f(z) - baseline).detach() * q.log_prob(z)
    return torch.autograd.grad(objective.sum(), copies)


# %% [markdown]
# We test on a case whose answer is known. Let $q = \mathcal N(\mu, \sigma^2 I)$ in $d$ dimensions and $f(z) = \lVert z \rVert^2 = \sum_i z_i^2$. Then
#
# $$\mathbb E_q[f] = \sum_i \mu_i^2 + \sigma_i^2, \qquad \frac{\partial}{\partial \mu_i} = 2\mu_i, \qquad \frac{\partial}{\partial \sigma_i} = 2\sigma_i .$$
#
# We take $\mu_i = \sigma_i = 1$ everywhere, so every exact gradient is 2. In one dimension the two estimates are curves that we can draw: for $\partial/\partial\mu$ the score function gives $z^2 (z - 1)$, the path gives $2z$. For the baseline we use $b = \mathbb E[f] = 2d$, the natural guess.


# %%
METHODS = {  # name: (estimator, whether to use the baseline)
    "score": ("score", False),
    "score + baseline": ("score", True),
    "pathwise": ("pathwise", False),
}


def quadratic_gradients(name, d, samples):
    """One-sample gradients of E‖z‖² in loc and scale at N(1, I), by the method ``name``."""
    (estimator, centred), one = METHODS[name], torch.ones(d)
    baseline = 2.0 * d if centred else 0.0
    return gradient_samples(lambda z: z.square().sum(-1), one, one, samples, estimator, baseline)


quadratic = {(m, d): quadratic_gradients(m, d, 20_000) for m in METHODS for d in (1, 32)}

# %%
figure, axes = plt.subplots(1, 3, figsize=(13.5, 3.9))
z = torch.linspace(-2.5, 4.5, 200)
bell = 12 * exp(-((z - 1) ** 2) / 2)
axes[0].fill_between(z, -8, bell - 8, color=COLORS["encoder"], alpha=0.2, label="q(z), scaled")
axes[0].plot(z, z**2 * (z - 1), color=COLOR["score"], label="score at z")
axes[0].plot(z, 2 * z, color=COLOR["pathwise"], label="pathwise at z")
axes[0].axhline(2, color=COLORS["exact"], linestyle="--", linewidth=1, label="exact gradient")
axes[0].set(xlabel="z", ylabel="estimate of $∂/∂μ$", ylim=(-8, 22), title="what each z reports")
for ax, d, limit in ((axes[1], 1, 20), (axes[2], 32, 250)):
    for name in METHODS:
        estimates, bins = quadratic[name, d][0][:, 0].numpy(), np.linspace(-limit, limit, 81)
        ax.hist(estimates, bins, histtype="step", color=COLOR[name], label=name, linewidth=2)
    ax.set(yscale="log", xlabel="one-sample estimate of $∂/∂μ_1$", title=f"20,000 samples, d = {d}")
_ = [ax.legend(loc="upper left", fontsize=9) for ax in axes[:2]]
plt.show()

# %% [markdown]
# *What to see.* **Left:** under the same bell curve, both curves have the mean 2 (dashed). The score function multiplies the value of $f$ by the distance from the centre: most draws report almost nothing, and the rare ones at the edge report several times the truth. The path's reports lie on a gentle line. **Middle and right:** histograms of one-sample estimates, on logarithmic axes. In one dimension the score function has long tails. In 32 dimensions (note the horizontal scale) its estimates are spread over hundreds, although the true answer is still 2. The baseline helps a great deal. The pathwise histogram is the same in both: only the axis around it is wider.
#
# ## 4. How the variance grows
#
# For this quadratic the variance can be worked out. Look at the gradient in $\mu_1$ and split $f = z_1^2 + R$, where $R$ is the sum over the other $d - 1$ dimensions. $R$ knows nothing about $\mu_1$. The pathwise gradient never sees it: $\partial R / \partial z_1 = 0$, so $\operatorname{Var}[\text{pathwise}] = \operatorname{Var}[2 z_1] = 4\sigma^2$ in every dimension.
#
# The score-function gradient multiplies $R$ with the score of $z_1$. On average that is zero, but its variance is $\mathbb E[(R - b)^2] / \sigma^2$. Without a baseline it grows like $\mathbb E[R]^2 \propto d^2$; with $b = \mathbb E[f]$, like $\operatorname{Var}[R] \propto d$. That is *noise from the rest of the world*: each parameter is blamed for everything that happens.
#
# Variance is the price of a gradient: averaging $L$ samples divides it by $L$, so a method with a hundred times the variance needs a hundred times the samples for the same accuracy.
#
# And a warning: **no theorem says that the pathwise gradient is always better.** It trades the *size* of $f$ for the *slope* of $f$. For $f(z) = \sin(\omega z)$, whose size is bounded, the slope grows with $\omega$. With $q = \mathcal N(0, 1)$,
#
# $$\operatorname{Var}[\text{pathwise}] = \omega^2 \Big[\tfrac12\big(1 + e^{-2\omega^2}\big) - e^{-\omega^2}\Big], \qquad \operatorname{Var}[\text{score}] = \tfrac12\Big[1 - (1 - 4\omega^2)\, e^{-2\omega^2}\Big] - \omega^2 e^{-\omega^2}.$$


# %% tags=["library"]
def score_variance(d, baseline=0.0, mu=1.0, sigma=1.0):
    """Var[(‖z‖² − b) ∂log q/∂μ₁] for z ~ N(mu, sigma² I) in d dimensions, exact."""
    square = mu**2 + 3 * sigma**2  # E[z₁² ε²]
    fourth = mu**4 + 18 * mu**2 * sigma**2 + 15 * sigma**4  # E[z₁⁴ ε²]
    rest = (d - 1) * (mu**2 + sigma**2) - baseline  # E[R − b]
    rest_variance = (d - 1) * (2 * sigma**4 + 4 * mu**2 * sigma**2)
    return (fourth + 2 * square * rest + rest**2 + rest_variance) / sigma**2 - (2 * mu) ** 2


def wave_variances(omega):
    """Variances of both estimates of ∂/∂μ E[sin ωz] at N(0, 1), exact."""
    once, twice = exp(-(omega**2)), exp(-2 * omega**2)
    score = (1 - (1 - 4 * omega**2) * twice) / 2 - omega**2 * once
    return {"score": score, "pathwise": omega**2 * ((1 + twice) / 2 - once)}


# %%
dims, draws = 2 ** torch.arange(8), torch.tensor([1, 2, 5, 10, 20, 50, 100, 200])
exact = (score_variance(dims), score_variance(dims, 2.0 * dims), 4.0 + 0 * dims)
figure, axes = plt.subplots(1, 3, figsize=(13.5, 4))
for name, line in zip(METHODS, exact, strict=True):
    measured = [quadratic_gradients(name, int(d), 2000)[0][:, 0].var() for d in dims]
    groups = [quadratic[name, 32][0][:, 0].reshape(-1, int(L)).mean(1).var() for L in draws]
    axes[0].plot(dims, line, color=COLOR[name], label=name)
    axes[0].plot(dims, measured, "o", color=COLOR[name])
    axes[1].plot(draws, line[5] / draws, "-", draws, groups, "o", color=COLOR[name])
omega = torch.linspace(0.05, 4, 200)
for name, line in wave_variances(omega).items():
    axes[2].plot(omega, line, color=COLOR[name])
axes[0].set(xscale="log", yscale="log", xlabel="dimension d", ylabel="variance of one estimate")
axes[1].set(xscale="log", yscale="log", xlabel="samples L", ylabel="variance of the mean of L")
axes[2].set(yscale="log", ylim=(1e-4, 20), xlabel="roughness ω", ylabel="variance of one estimate")
axes[0].set_title("it grows as d², d, not at all")
axes[1].set_title("it falls as 1/L (d = 32)")
axes[2].set_title("f(z) = sin ωz: the order turns")
axes[0].legend(fontsize=10)
plt.show()

# %% [markdown]
# *What to see.* Lines are exact, dots are measured. **Left:** slopes 2, 1 and 0 on double-logarithmic axes. In a latent space of useful size the score-function gradient is drowned, and a constant baseline only takes one power of $d$ away. **Middle:** parallel lines of slope $-1$. Read them horizontally: how many score-function samples buy the accuracy of *one* pathwise sample? About a thousand; with the baseline, about fifty. **Right:** for a steep and bounded $f$ the order turns round. The bound of a trained VAE is smooth on the scale of $q$, because $q$ adapts its width to the likelihood; that is why the pathwise gradient works so well *there*.
#
# ## 5. The same on a real bound
#
# Does this hold for a real model? We train a small VAE with two latents on MNIST digits. Two, because then the exact answer is within reach: an expectation over a Gaussian in two dimensions can be computed by a **Gauss–Hermite sum**, a weighted sum over a fixed grid of noise values $\epsilon$, which is exact for polynomials and very close for smooth functions. So this bound has an exact gradient as well. (We keep a copy of the untrained model for section 7.)


# %%
from vaelib import fit

train, test = (part.double() for part in (data.mnist().train, data.mnist().test))


def small_vae(latents):
    encoder, decoder = MLPEncoder(latents, hidden=100), BernoulliMLP(latents, hidden=100)
    return VAE(encoder, StandardNormal(latents), decoder)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=2e-3)


untrained, vae = small_vae(2), small_vae(2)
untrained.load_state_dict(vae.state_dict())
history = fit(vae, train, epochs=10, optimizer=adam, seed=SEED, progress=False)
gained = history["train_bound"][-1] - untrained.elbo(train).value.mean()
print("training raised the bound by more than 200 nats an image:", bool(gained > 200))


# %% [markdown]
# We take 50 test images. Each has its own $q(z|x)$. For every image we compute the exact gradient of its bound in the two means, and compare 500 one-sample gradients of each kind with it. The parameters inside $\log q_\phi$ are held fixed, since their direct contribution averages to zero (section 2); this gives both estimators the same $f$. The baseline of an image is its bound, the mean of its own $f$.


# %%
def gauss_hermite(nodes, d):
    """Noise (nodes**d, d) and weights so that E[f(ε)] ≈ Σ w f(ε) for ε ~ N(0, I)."""
    points, weights = map(torch.tensor, np.polynomial.hermite_e.hermegauss(nodes))
    grid = torch.cartesian_prod(*[torch.arange(nodes)] * d).reshape(-1, d)
    return points[grid], (weights / weights.sum())[grid].prod(-1)


def integrand(vae, x, q):
    """f(z) = log p(x|z) + log p(z) − log q(z|x), with q held fixed: (samples, B) nats."""
    fixed = DiagNormal(q.loc.detach(), q.scale.detach())
    return lambda z: vae.decoder(z).log_prob(x) + vae.prior().log_prob(z) - fixed.log_prob(z)


# %%
images = test[:50]
with torch.no_grad():
    q = vae.encoder(images)
f, (noise, weights) = integrand(vae, images, q), gauss_hermite(14, d=2)
loc = q.loc.clone().requires_grad_()
bound = (weights[:, None] * f(loc + q.scale * noise[:, None])).sum(0)  # (images,)
(exact_real,) = torch.autograd.grad(bound.sum(), loc)  # (images, 2), by quadrature

real = {}  # method -> one-sample gradients in the means, (500, images, 2)
for name, (estimator, centred) in METHODS.items():
    baseline = bound.detach() if centred else 0.0
    parts = [gradient_samples(f, q.loc, q.scale, 50, estimator, baseline)[0] for _ in range(10)]
    real[name] = torch.cat(parts)

# %%
variance = {name: samples.var(0).sum(-1) for name, samples in real.items()}  # (images,)
figure, axes = plt.subplots(1, 2, figsize=(11, 3.9))
for name in METHODS:
    style = {"color": COLOR[name], "label": name, "alpha": 0.75}
    sizes = real[name][:, :, 0].abs().log10().flatten()
    axes[0].hist(sizes.numpy(), np.linspace(-2, 4.5, 66), histtype="step", linewidth=2, **style)
    if name != "pathwise":
        ratio = (variance[name] / variance["pathwise"]).log10()
        axes[1].hist(ratio.numpy(), np.linspace(-0.5, 7, 46), **style)
axes[0].set(xlabel="log₁₀ |estimate| (nats)", ylabel="samples", title="how large one estimate is")
axes[1].axvline(0, color=COLOR["pathwise"], label="pathwise")
axes[1].set(xlabel="log₁₀ of variance / pathwise variance", ylabel="images", title="its price")
axes[0].legend(fontsize=9, loc="upper left")
plt.show()

# %% [markdown]
# *What to see.* **Left:** the sizes of one-sample estimates, in powers of ten. Without a baseline the values of $f$, all far below zero, turn into huge pushes in all directions, though the mean is the same. With a baseline most estimates are small, smaller than the path's; rare very large ones make the variance. **Right:** for each image, how much more variance the score function has than the path. Without a baseline it is tens of thousands of times and more. With a baseline it is still a few times as much for some images and up to a hundred times for others, and this with a baseline made for the image, in only two dimensions.
#
# ## 6. A race
#
# What does variance cost in training? We train a VAE with `LATENTS` = 20, keep its decoder, throw its encoder away and fit a new one, with each gradient in turn, at equal numbers of samples. All use the same images, five draws of $z$ for each, and the same $f$. The baseline is now one that you can use in practice: each draw is compared with the *mean of the other four* (leave-one-out). The others are independent of the draw, so the estimator stays unbiased. To be fair, each method gets the better of two step sizes, judged by the bound of *training* images: whoever chooses by the test images and then shows their bound flatters the method.


# %%
LATENTS, BATCH, DRAWS, EVERY = 20, 50, 5, 20  # claim 2 is made for 20 latents


def surrogate(vae, x, method, samples=DRAWS):
    """A number whose gradient estimates that of the mean bound of x, in the encoder."""
    if method == "pathwise":
        return vae.elbo(x, samples, estimator="A").value.mean()
    q = vae.encoder(x)
    z = q.sample((samples,))
    f = integrand(vae, x, q)(z).detach()  # (samples, B)
    if method == "score + baseline":
        f = f - (f.sum(0) - f) / (samples - 1)
    return (f * q.log_prob(z)).mean()


@torch.no_grad()
def bounds(vae):
    """The bounds of 100 training images and of 100 test images, means in nats: (2,)."""
    return torch.stack([vae.elbo(x[:100], samples=10).value.mean() for x in (train, test)])


# %%
def race(method, step_size, updates=200):
    """Fit a new encoder to the decoder of ``judge``: its bounds on the way, (times, 2)."""
    torch.manual_seed(SEED + 1)
    shuffle = torch.Generator().manual_seed(SEED)  # all methods see the same images
    runner, curve = VAE(MLPEncoder(LATENTS, hidden=100), judge.prior, judge.decoder), []
    optimizer = torch.optim.Adam(runner.encoder.parameters(), lr=step_size)
    for update in range(updates + 1):
        if update % EVERY == 0:
            curve.append(bounds(runner))
        optimizer.zero_grad()
        batch = train[torch.randint(len(train), (BATCH,), generator=shuffle)]
        (-surrogate(runner, batch, method)).backward()
        optimizer.step()
    return torch.stack(curve)


# %%
judge = small_vae(LATENTS)
fit(judge, train, epochs=10, optimizer=adam, seed=SEED, progress=False)
ceiling, races = bounds(judge)[1], {}
for name in METHODS:
    curves = [race(name, step_size) for step_size in (1e-3, 3e-3)]
    races[name] = max(curves, key=lambda curve: curve[:, 0].mean())[:, 1]  # training chooses
figure, ax = plt.subplots(figsize=(7.5, 4))
ax.axhline(ceiling, color=COLORS["bound"], linestyle=":", label="the encoder trained with it")
for name, curve in races.items():
    seen = BATCH * DRAWS * EVERY * np.arange(len(curve))
    ax.plot(seen, curve, "o-", color=COLOR[name], label=name)
ax.set(xlabel="samples of z used", ylabel="test bound (nats per image)", ylim=(-330, -150))
ax.set_title(f"fitting q, {LATENTS} latents: noise costs samples")
ax.legend(fontsize=10)
plt.show()

# %% [markdown]
# *What to see.* Higher is better. All three climb the *same* hill, with the same expected direction; what differs is the noise in each step. The pathwise gradient leads all the way. The leave-one-out baseline makes the score function usable: it follows, and needs more samples for the same height. Without a baseline the race is lost: a small step size is slow and a large one throws $q$ about. Note what the race does *not* show: a loss by the factor of the variances. An optimiser averages over many steps, so it forgives a factor of ten; it does not forgive ten thousand. (With two latents the baseline nearly keeps up. Try it: set `LATENTS = 2`. Claim 2 is made for 20, and may then fail.)
#
# ## 7. Two estimators of the bound: SGVB A and SGVB B
#
# From here on every gradient is pathwise. There is still a choice. The bound can be written in two ways, and each gives a *stochastic gradient variational Bayes* (SGVB) estimator. With $z^{(l)} = g_\phi(\epsilon^{(l)}, x)$:
#
# $$\tilde{\mathcal L}^A(x) = \frac1L \sum_{l=1}^L \log p(x, z^{(l)}) - \log q_\phi(z^{(l)}|x) \qquad \text{(equation 6)}$$
#
# $$\tilde{\mathcal L}^B(x) = -\mathrm{KL}\big(q_\phi(z|x) \,\|\, p(z)\big) + \frac1L \sum_{l=1}^L \log p(x|z^{(l)}) \qquad \text{(equation 7)}$$
#
# **A** samples everything, so it needs only densities: any $q$ and any prior will do. **B** samples the distortion and takes the rate in closed form, so it needs a KL rule for the pair. For a Gaussian encoder (equation 9) and a standard normal prior, B is the estimator of equation 10, the one that everybody uses. In this library: `vae.elbo(x, samples, estimator="A")` or `"B"`.
#
# The paper says that B "typically has less variance". It sounds obvious: we replaced a sampled term by its mean. But A's two terms are computed from the *same* draw, and errors that are shared can cancel. Write $\ell = \log p(x|z)$ and $r = \log q(z|x) - \log p(z)$, so that $A = \ell - r$. Then
#
# $$\operatorname{Var}[A] - \operatorname{Var}[B] = \operatorname{Var}[r] - 2 \operatorname{Cov}[\ell, r].$$
#
# Now let $q$ be the true posterior. By Bayes' rule $\log p(x, z) - \log p(z|x) = \log p(x)$: **A is constant, its variance is zero**, while B still fluctuates with $\ell$. So for the *value* of the bound, "less variance" cannot be a theorem.

# %% [markdown]
# For training it is the variance of the *gradient* that matters. For the means of a Gaussian $q$ it can be settled. With $z = \mu + \sigma\epsilon$ at fixed $\epsilon$, the number $\log q(z)$ does not depend on $\mu$, and the gradients in $\mu_i$ are
#
# $$\text{A:}\quad \frac{\partial \ell}{\partial z_i} - z_i, \qquad \text{B:}\quad \frac{\partial \ell}{\partial z_i} - \mu_i, \qquad \text{so} \quad A - B = -\sigma_i\epsilon_i .$$
#
# By Stein's lemma, $\mathbb E[h(\epsilon)\,\epsilon] = \mathbb E[h'(\epsilon)]$, the covariance of $\partial\ell/\partial z_i$ with $\epsilon_i$ is $-\sigma_i \mathbb E[H_{ii}]$, where $H = -\nabla^2_z \log p(x|z)$ is the curvature of the likelihood. Hence, exactly,
#
# $$\operatorname{Var}[\partial_{\mu_i} A] - \operatorname{Var}[\partial_{\mu_i} B] = \sigma_i^2\,\big(1 + 2\,\mathbb E_q[H_{ii}]\big).$$
#
# B has the quieter gradient unless the likelihood, averaged over $q$, is curved the wrong way by more than a half. If $\log p(x|z)$ is concave in $z$, it always is. At the best Gaussian $q$ it also is, wherever $\sigma_i^2 < 2$, because there $1/\sigma_i^2 = 1 + \mathbb E[H_{ii}]$. For the widths there is no such guarantee.
#
# One function gives values and gradients of both estimators, for any likelihood. There is a third option: in A, hold the parameters inside $\log q$ fixed. Roeder et al. (2017) call it *sticking the landing* (STL): same mean, and no noise at all when $q$ is the posterior.


# %% tags=["library"]
def sgvb(log_likelihood, loc, scale, noise, estimator):
    """One-sample bounds for prior N(0, I), and their gradients in loc and ln scale.

    Noise (samples, *loc.shape) -> values (samples, *batch), gradients (samples, *loc.shape), nats.
    """
    if estimator not in ("A", "B", "STL"):
        raise ValueError(f"expected estimator 'A', 'B' or 'STL', got {estimator!r}")
    loc = loc.detach().expand_as(noise).clone().requires_grad_()
    log_scale = scale.detach().log().expand_as(noise).clone().requires_grad_()
    q, p = DiagNormal(loc, log_scale.exp()), DiagNormal(0 * loc.detach(), torch.ones_like(loc))
    z = loc + log_scale.exp() * noise
    fixed = DiagNormal(q.loc.detach(), q.scale.detach()) if estimator == "STL" else q
    rate = kl_divergence(q, p) if estimator == "B" else fixed.log_prob(z) - p.log_prob(z)
    value = log_likelihood(z) - rate
    return value.detach(), *torch.autograd.grad(value.sum(), (loc, log_scale))


# %% [markdown]
# **An exact case.** One latent, $p(x|z) = \mathcal N(x; z, s^2)$ with $s = 0.5$ and $x = 2$. The posterior is Gaussian with variance $1/(1 + 1/s^2)$. We put $q$'s mean on the posterior's and let its width run from far too narrow to far too wide. All variances are Gauss–Hermite sums, which are exact for these polynomials.
#
# **The real case.** The two-latent VAE before and after training. For each of the 50 images we measure the variances under 400 draws of noise, the same draws for A and B.


# %%
S = 0.5  # scale of the likelihood
POSTERIOR_SCALE = (1 + 1 / S**2) ** -0.5
ratios = torch.logspace(-1.3, 0.7, 81)  # scale of q over scale of the posterior


def toy_variances(estimator, x, scales):
    """Variances of value, ∂/∂μ and ∂/∂ln σ, nats²; q has the posterior's mean, ``scales``."""
    eps, weights = gauss_hermite(12, d=1)
    noise, loc = eps[:, None].expand(-1, len(scales), 1), x * POSTERIOR_SCALE**2 / S**2
    likelihood = DiagNormal(torch.tensor([x]), torch.tensor([S]))  # symmetric in x and z
    scales = scales[:, None]
    results = sgvb(likelihood.log_prob, 0 * scales + loc, scales, noise, estimator)
    results = [result.reshape(len(weights), -1) for result in results]
    return [weights @ result**2 - (weights @ result) ** 2 for result in results]


# %%
def real_variances(model, estimator, draws=400):
    """The same for each image under a model, summed over its two latents: three (images,)."""
    with torch.no_grad():
        q = model.encoder(images)
    noise = torch.randn(draws, len(images), 2, generator=torch.Generator().manual_seed(SEED))
    results = sgvb(lambda z: model.decoder(z).log_prob(images), q.loc, q.scale, noise, estimator)
    return [result.reshape(draws, len(images), -1).var(0).sum(-1) for result in results]


toy = {name: toy_variances(name, 2.0, POSTERIOR_SCALE * ratios) for name in ("A", "B", "STL")}
stages = {"untrained": untrained, "trained": vae}
sgvb_variances = {(s, n): real_variances(stages[s], n) for s in stages for n in ("A", "B")}

# %%
figure, axes = plt.subplots(2, 3, figsize=(13.5, 8))
styles = {"A": "-", "B": "-", "STL": (0, (2, 1.5))}
for index, what in enumerate(("value of the bound", "gradient in μ", "gradient in ln σ")):
    top, bottom = axes[:, index]
    for name, style in styles.items():
        line = toy[name][index].clamp_min(1e-9)
        top.plot(ratios, line, color=COLOR[name], linestyle=style, label=name)
    top.axvline(1, color=COLORS["exact"], linestyle=":", linewidth=1)
    top.set(xscale="log", yscale="log", ylim=(1e-3, 3e3), title=what)
    top.set(xlabel="σ of q / σ of the posterior", ylabel="variance (nats²)")
    for stage, marker in {"untrained": "o", "trained": "^"}.items():
        pair = [sgvb_variances[stage, name][index] for name in ("A", "B")]
        color = COLORS["encoder"] if stage == "trained" else "#999999"
        bottom.plot(*pair, marker, color=color, alpha=0.6, label=f"{stage}, one image each")
    limits = ((0.01, 100), (5, 2000), (1, 200))[index]
    bottom.plot(limits, limits, color=COLORS["exact"], linewidth=1, linestyle="--")
    bottom.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    bottom.set(xlabel="variance of A (nats²)", ylabel="variance of B (nats²)")
axes[0, 0].legend(fontsize=10)
axes[1, 0].legend(fontsize=10, loc="upper left")
axes[1, 2].annotate("below the line:\nB is quieter", (0.6, 0.08), xycoords="axes fraction")
plt.show()

# %% [markdown]
# *What to see.* **Top, the exact case.** *Value:* B is quieter while $q$ is too narrow; near the posterior (dotted) A wins and falls to zero at it; STL has the same value as A. *Gradient in the mean:* B lies below A at every width, as the formula says. *Gradient in the width:* A is quieter for a narrow $q$, B for a wide one, and they cross near the posterior. The grey dashes are the lesson of Roeder et al.: STL is exactly zero at the posterior, so a perfect encoder is left alone; far from it, STL can be much worse.
#
# **Bottom, the real case.** *Untrained* (circles): $q$ is near the prior, the values of A and B are about equally noisy, and both gradients of B are clearly quieter. *Trained* (triangles): for the *value*, it is now A that is quieter for most images, because $q$ has come close to the posterior. For the gradient in the means B remains ahead, by little. For the widths it is nearly a draw.
#
# So the rule is: **to train, use B where a KL rule exists: early on it is much better, and later it is hardly ever worse. To report the value of the bound of a trained model, A has the smaller error bar.** And where no KL rule exists, A costs less than one might fear. We will need it for priors without a closed form.

# %% [markdown]
# ## 8. Minibatches, and why one sample is enough
#
# The data set has $N$ images, and a sum over all of them for each step is too dear. Take a random minibatch of $M$ images and scale up (equation 8):
#
# $$\mathcal L(X) \simeq \tilde{\mathcal L}^M(X) = \frac{N}{M} \sum_{i=1}^M \tilde{\mathcal L}(x^{(i)}).$$
#
# Each image is in the batch with probability $M/N$, so the factor $N/M$ makes the sum unbiased. Now there are two sources of noise: *which images* are in the batch, and *which noise* was drawn for each. For images drawn without replacement they add up:
#
# $$\operatorname{Var}\big[\tilde{\mathcal L}^M\big] = \frac{N^2}{M} \Big[ \underbrace{\big(1 - \tfrac MN\big)\, S^2}_{\text{between images}} + \underbrace{\overline{\sigma^2} / L}_{\text{within an image}} \Big].$$
#
# $S^2$ is the variance of the bound between images, $\overline{\sigma^2}$ the mean variance of one draw within an image. Both terms fall with $M$. Only the second falls with $L$. The cost is $M \cdot L$ decoded images. So, at a given cost, **it is never better to raise $L$ than to raise $M$**, as long as there are images left. That is why the paper could set $L = 1$ "as long as the minibatch size $M$ was large enough, e.g. $M = 100$".
#
# To check the formula without any doubt, we make a table once: 50 one-sample bounds (B) for each of 1,000 test images. The table is now the whole world, its sum is known, and equation 8 draws images and values from it.
#
# The value of the bound is one thing; training needs its gradient. So we also measure the gradient of the *whole network* for batches of equal cost, 100 decoded images each: 100 images with one draw, 10 with 10, and one with 100.


# %%
with torch.no_grad():
    columns = [vae.elbo(test, estimator="B").value for _ in range(50)]
table = torch.stack(columns, dim=1)  # (images, draws), nats
N = len(table)
between, within = table.mean(1).var(), table.var(1, correction=0).mean()


def minibatch_estimates(M, L, repeats=2000):
    """Equation 8, ``repeats`` times: the bound of all N images from M of them, L draws each."""
    chosen = torch.rand(repeats, N).argsort(1)[:, :M]  # M images without replacement
    drawn = torch.randint(table.shape[1], (repeats, M, L))
    return N / M * table[chosen[..., None], drawn].mean(-1).sum(-1)


def minibatch_variance(M, L):
    """The variance that the formula predicts, nats²."""
    return N**2 / M * ((1 - M / N) * between + within / L)


# %%
def network_gradient(M, L):
    """The gradient of the mean bound of M random images, all parameters in one vector."""
    bound = vae.elbo(train[torch.randint(len(train), (M,))], L).value.mean()
    parts = torch.autograd.grad(bound, list(vae.parameters()))
    return torch.cat([part.flatten() for part in parts])


BUDGETS = [(100, 1), (10, 10), (1, 100)]  # (M, L), each 100 decoded images
costs = [torch.stack([network_gradient(*b) for _ in range(60)]).var(0).sum() for b in BUDGETS]
costs = [float(cost / costs[0]) for cost in costs]  # total variances, relative to L = 1

# %%
figure, axes = plt.subplots(1, 2, figsize=(11.5, 4), width_ratios=[1.4, 1])
batches = [1, 3, 10, 30, 100, 300]
for L, color, style, marker in ((1, COLORS["aevb"], "-", "o"), (10, COLORS["encoder"], ":", "^")):
    theory = [minibatch_variance(M, L) ** 0.5 / N for M in batches]
    found = [minibatch_estimates(M, L, 500).std() / N for M in batches]
    axes[0].plot(batches, theory, color=color, linestyle=style, label=f"L = {L}")
    axes[0].plot(batches, found, marker, color=color, fillstyle="none", markersize=5 + L / 2)
axes[0].set(xscale="log", yscale="log", ylim=(1, 100), xlabel="images in the minibatch, M")
axes[0].set(ylabel="std (nats per image)", title="the bound: more images help, more draws do not")
axes[0].legend()
axes[1].bar([f"M = {M}\nL = {L}" for M, L in BUDGETS], costs, color=COLORS["aevb"])
axes[1].bar_label(axes[1].containers[0], fmt="×%.2g")
axes[1].set(yscale="log", ylim=(0.5, 99), ylabel="variance, relative", title="gradient noise")
plt.show()

# %% [markdown]
# *What to see.* **Left:** lines are the formula, marks are measured. Ten draws per image cost ten times as much as one, and the two lines lie on top of each other: what is uncertain is *which digits* are in the batch. **Right:** the same cost, 100 decodings, and the variance of the gradient. Many images with one draw each are by far the best.
#
# That is the complete algorithm of the paper, one minibatch with one reparameterised draw per image, and it is all that `learning.aevb_step` does. Notebook 03 puts it to work.
#
# ## 9. Which distributions can be reparameterised?
#
# So far $q$ was Gaussian. Section 2.4 of the paper gives three recipes for others, and names distributions for each. We write them all, in three tables. A row is a `Law`: the transformation $z = g_\phi(\epsilon)$, a value for its parameters, and, as the judge, SciPy's distribution with these parameters. The judge shares no code with our transformation. Two tests for every row:
# 1. **Samples.** The largest distance $D$ between the distribution function and that of $n$ samples (Kolmogorov–Smirnov). For a correct sampler $\sqrt n D$ exceeds 2.5 less than once in 100,000 times.
# 2. **Gradients.** The mean of the pathwise gradient of $f(z)$, for every parameter, against the derivative of $\mathbb E[f(z)]$ that SciPy finds by integrating its density. Five standard errors are allowed.


# %% tags=["library"]
def uniform(*shape):
    """Uniform noise, strictly inside (0, 1), so that every logarithm is finite."""
    return torch.rand(*shape, dtype=torch.float64).clamp_min(2.0**-54)


def normal(*shape):
    """Standard normal noise."""
    return torch.randn(*shape, dtype=torch.float64)


class Law(NamedTuple):
    """A distribution by its transformation: z = transform(noise(n), *theta), shape (n,)."""

    transform: Callable  # (noise, *theta) -> z, differentiable in theta
    theta: tuple[float, ...]
    reference: Callable  # theta -> the distribution in SciPy
    noise: Callable = uniform  # n -> noise whose distribution has no parameters
    f: Callable = lambda z: z  # whose expectation is differentiated in the check


# %% tags=["library"]
def ks_distance(law, n=20_000):
    """√n times the largest distance of the samples' distribution function from the true one."""
    z = law.transform(law.noise(n), *law.theta).numpy()
    return n**0.5 * stats.kstest(z, law.reference(*law.theta).cdf).statistic


def gradient_pair(law, n=100_000, step=1e-4):
    """Pathwise gradients of E[f(z)] (n, parameters), and the exact one by SciPy's integral."""
    theta = [torch.full((n,), value, dtype=torch.float64).requires_grad_() for value in law.theta]
    z = law.transform(law.noise(n), *theta)
    samples = torch.stack(torch.autograd.grad(law.f(z).sum(), theta), dim=-1)
    shifts = np.array(law.theta) + step * np.stack([np.eye(len(theta)), -np.eye(len(theta))])
    with np.errstate(over="ignore"):  # SciPy's own tails
        up, down = ([law.reference(*t).expect(law.f) for t in side] for side in shifts)
    return samples, (torch.tensor(up) - torch.tensor(down)) / (2 * step)


# %% [markdown]
# ### Family 1: tractable inverse CDF
#
# Let $F$ be the distribution function of $z$, increasing from 0 to 1. If $\epsilon$ is uniform on $(0, 1)$, then $z = F^{-1}(\epsilon)$ has the distribution function $F$, because $P(F^{-1}(\epsilon) \le t) = P(\epsilon \le F(t)) = F(t)$. So whenever the equation $F(z) = \epsilon$ can be solved for $z$, we are done. The exponential, as the pattern: $1 - e^{-\lambda z} = \epsilon$ gives $z = -\ln(1 - \epsilon)/\lambda$, and $\partial z/\partial\lambda = -z/\lambda$ comes from autograd. (`log1p(-u)` is $\ln(1-u)$ without loss of digits for small $u$.)
#
# The paper lists ten. Two deserve a word.
# - **Cauchy** has no mean, so the gradient of $\mathbb E[z]$ does not exist. We test the bounded $f(z) = 1/(1 + z^2)$ in its place.
# - **Erlang**, the sum of $k$ exponentials, has no inverse in elementary functions: its distribution function is a regularised incomplete gamma function. But numerical routines for its inverse exist (`gammaincinv`). And for the gradient nothing more is needed: $k$ is a count and has no derivative, and the rate only rescales, $z = F_k^{-1}(\epsilon)/\lambda$. So the difficult function is computed without any gradient.

# %% tags=["library"]
INVERSE_CDF = {
    "Exponential": Law(lambda u, r: -log1p(-u) / r, (1.5,), lambda r: stats.expon(0, 1 / r)),
    "Cauchy": Law(lambda u, m, s: m + s * tan(math.pi * (u - 0.5)), (0.5, 0.8), stats.cauchy, f=lambda z: 1 / (1 + z**2)),
    "Logistic": Law(lambda u, m, s: m + s * logit(u), (1.0, 0.7), stats.logistic, f=lambda z: z**2),
    "Rayleigh": Law(lambda u, s: s * (-2 * log1p(-u)).sqrt(), (1.3,), lambda s: stats.rayleigh(0, s)),
    "Pareto": Law(lambda u, m, a: m * (1 - u) ** (-1 / a), (1.0, 5.0), lambda m, a: stats.pareto(a, 0, m)),
    "Weibull": Law(lambda u, s, k: s * (-log1p(-u)) ** (1 / k), (1.2, 1.8), lambda s, k: stats.weibull_min(k, 0, s)),
    "Reciprocal": Law(lambda u, a, b: a * (b / a) ** u, (0.5, 4.0), stats.loguniform),
    "Gompertz": Law(lambda u, c, b: log1p(-log1p(-u) / c) / b, (0.3, 1.4), lambda c, b: stats.gompertz(c, 0, 1 / b)),
    "Gumbel": Law(lambda u, m, s: m - s * log(-log(u)), (0.5, 1.2), stats.gumbel_r),
    "Erlang, k = 3": Law(lambda u, r: torch.from_numpy(special.gammaincinv(3, u.numpy())) / r, (1.5,), lambda r: stats.erlang(3, 0, 1 / r)),
}  # fmt: skip

# %% [markdown]
# ### Family 2: location–scale
#
# If the parameters only shift and stretch a fixed shape, then $z = \text{location} + \text{scale} \cdot \epsilon$ with noise from the *standard* member, the one with location 0 and scale 1. The transformation is always the same line of code. And the noise may come from any sampler whatsoever, since no gradient flows into it. So this table differs in its samplers:
#
# - **Laplace**: the difference of two exponentials;
# - **Student's t** with $\nu$ degrees of freedom: a Gaussian over the root of an independent $\chi^2_\nu/\nu$ (here $\nu = 8$);
# - **Logistic**, in this family too: the logit of a uniform;
# - **Uniform** with its centre and half-width; **Triangular**: the sum of two uniforms;
# - **Gaussian**: the paper's $z = \mu + \sigma\epsilon$;
# - **Elliptical**: the same recipe for vectors, $z = \mu + A\epsilon$ with a *spherical* noise $\epsilon$, whose density depends on its length only. The contours of $z$ are ellipses of shape $\Sigma = A A^\top$; a Cholesky factor is the usual choice for $A$. A correlated Gaussian is one example. We take a multivariate Student's t, where all coordinates share one denominator. The table follows its second coordinate, which is a Student's t of scale $\sqrt{\Sigma_{22}}$; among the claims at the end the whole vector is judged, by its *Mahalanobis radius*, the length of $A^{-1}(z - \mu)$.
#
# We test with $f(z) = z^2$, because the derivative of $\mathbb E[z]$ with respect to the scale would be zero for all of these symmetric shapes.


# %% tags=["library"]
def spherical_t(n, d=2, df=8):
    """Noise (n, d) with a spherical Student's t: Gaussians that share one denominator."""
    return normal(n, d) / (normal(n, df).square().sum(-1, keepdim=True) / df).sqrt()


def location_scale(noise, theta, reference):
    """A row of the table; only the noise differs."""
    return Law(lambda eps, m, s: m + s * eps, theta, reference, noise, lambda z: z**2)


LOCATION_SCALE = {
    "Laplace": location_scale(lambda n: log(uniform(n)) - log(uniform(n)), (0.5, 0.8), stats.laplace),
    "Student's t, ν = 8": location_scale(lambda n: spherical_t(n, 1)[:, 0], (0.5, 0.8), lambda m, s: stats.t(8, m, s)),
    "Logistic": location_scale(lambda n: logit(uniform(n)), (1.0, 0.7), stats.logistic),
    "Uniform": location_scale(lambda n: 2 * uniform(n) - 1, (1.0, 0.7), lambda m, s: stats.uniform(m - s, 2 * s)),
    "Triangular": location_scale(lambda n: uniform(n) + uniform(n) - 1, (1.0, 0.7), lambda m, s: stats.triang(0.5, m - s, 2 * s)),
    "Gaussian": location_scale(normal, (0.5, 1.2), stats.norm),
    "Elliptical, $z_2$": Law(lambda eps, m, a, b: m + a * eps[:, 0] + b * eps[:, 1], (0.5, 0.9, 0.5), lambda m, a, b: stats.t(8, m, math.hypot(a, b)), spherical_t, lambda z: z**2),
}  # fmt: skip

# %% [markdown]
# ### Family 3: composition
#
# Build new variables from old ones.
#
# - **Log-Normal**: the exponential of a Gaussian.
# - **Gamma** with a whole number $k$ as its shape: the sum of $k$ exponentials. It is the Erlang distribution again, now by composition.
# - **Chi-squared**, **Beta**, **Dirichlet**, **F**: sums and ratios of Gammas. $\chi^2_\nu$ is twice a Gamma of shape $\nu/2$. Beta is $G_a/(G_a + G_b)$. A Dirichlet vector is a vector of Gammas *divided by its sum* (the paper says "weighted sum", but it is this normalisation that is needed). F is a ratio of two scaled $\chi^2$.
#
# There is a catch. A sum of $k$ exponentials can be differentiated in its rate, but not in $k$. For Beta, Dirichlet, $\chi^2$ and F, *all* parameters are shapes. To learn them we need a Gamma that is differentiable in a real-valued shape $\alpha$, and its inverse CDF has no formula.
#
# **Implicit reparameterisation** (Figurnov et al., 2018) needs no formula. The path $z(\alpha)$ for a fixed $u$ is defined by $F(z; \alpha) = u$. Differentiate that equation in $\alpha$: $\ \partial F/\partial\alpha + p(z; \alpha)\, dz/d\alpha = 0$, so
#
# $$\frac{dz}{d\alpha} = -\frac{\partial F(z; \alpha)/\partial\alpha}{p(z; \alpha)} .$$
#
# Only the distribution function and the density are needed, never a derivative of the inverse. In code: the forward pass inverts numerically, the backward pass applies the formula, with a central difference for $\partial F/\partial\alpha$. (SciPy's `gammainc(α, z)` is the distribution function of the standard Gamma. `torch.distributions.Gamma.rsample` uses the same idea with fast approximations.) With this one brick the rest are one-liners. A Dirichlet sample is a vector; the table follows its first component, which is Beta($\alpha_1$, $\alpha_2 + \alpha_3$) distributed.


# %% tags=["library"]
class GammaQuantile(torch.autograd.Function):
    """z with F(z; α) = u for the standard Gamma, differentiable in α by the implicit formula."""

    @staticmethod
    def forward(ctx, u, shape):
        z = torch.from_numpy(special.gammaincinv(shape.numpy(), u.numpy()))
        ctx.save_for_backward(z, shape)
        return z

    @staticmethod
    def backward(ctx, gradient):
        z, a = (tensor.numpy() for tensor in ctx.saved_tensors)
        slope = (special.gammainc(a + 1e-5 * a, z) - special.gammainc(a - 1e-5 * a, z)) / (2e-5 * a)
        density = np.exp(special.xlogy(a - 1, z) - z - special.gammaln(a))
        return None, gradient * torch.from_numpy(-slope / density)


# %% tags=["library"]
def standard_gamma(u, shape):
    """Gamma(α, 1) from uniform noise u; any α > 0, with a gradient in α."""
    return GammaQuantile.apply(u, torch.as_tensor(shape, dtype=torch.float64).expand(u.shape))


def dirichlet(u, *concentration):
    """Dirichlet vectors (n, k) from uniform noise u (n, k): Gammas divided by their sum."""
    gammas = [standard_gamma(u[:, i], a) for i, a in enumerate(concentration)]
    return torch.stack(gammas, -1) / sum(gammas)[:, None]


def fisher_f(u, d1, d2):
    """F(d1, d2) from u (n, 2): two chi-squared, each over its degrees of freedom."""
    return standard_gamma(u[:, 0], d1 / 2) / d1 / (standard_gamma(u[:, 1], d2 / 2) / d2)


COMPOSITION = {
    "Log-Normal": Law(lambda eps, m, s: exp(m + s * eps), (0.2, 0.5), lambda m, s: stats.lognorm(s, 0, math.exp(m)), normal),
    "Gamma, sum of 3": Law(lambda u, r: -log(u).sum(-1) / r, (1.5,), lambda r: stats.gamma(3, 0, 1 / r), lambda n: uniform(n, 3)),
    "Gamma, any shape": Law(lambda u, a, r: standard_gamma(u, a) / r, (2.3, 1.5), lambda a, r: stats.gamma(a, 0, 1 / r)),
    "Dirichlet, $z_1$": Law(lambda u, *a: dirichlet(u, *a)[:, 0], (1.5, 2.0, 0.8), lambda a, b, c: stats.beta(a, b + c), lambda n: uniform(n, 3)),
    "Beta": Law(lambda u, a, b: dirichlet(u, a, b)[:, 0], (2.5, 1.3), stats.beta, lambda n: uniform(n, 2)),
    "Chi-squared": Law(lambda u, df: 2 * standard_gamma(u, df / 2), (4.5,), stats.chi2),
    "F": Law(fisher_f, (5.0, 12.0), stats.f, lambda n: uniform(n, 2)),
}  # fmt: skip

# %%
FAMILIES = {"1": INVERSE_CDF, "2": LOCATION_SCALE, "3": COMPOSITION}
LAWS = [(number, name, law) for number, laws in FAMILIES.items() for name, law in laws.items()]
figure, axes = plt.subplots(4, 6, figsize=(14, 9.5))
for ax, (number, name, law) in zip(axes.flat, LAWS, strict=True):
    z, reference = law.transform(law.noise(20_000), *law.theta).numpy(), law.reference(*law.theta)
    ends = zip(reference.support(), reference.ppf([0.03, 0.97]), strict=True)
    low, high = (end if np.isfinite(end) else usual for end, usual in ends)
    edges, grid = np.linspace(low, high, 36), np.linspace(low, high, 300)[1:-1]
    density = np.histogram(z, edges)[0] / (len(z) * np.diff(edges))
    ax.stairs(density, edges, fill=True, color=COLORS["encoder"], alpha=0.4)
    ax.plot(grid, reference.pdf(grid), color=COLORS["exact"], linewidth=1.5)
    ax.set(title=f"{number} · {name}", yticks=[], ylim=(0, None))
figure.suptitle("Transformed noise (blue) against the density (black), by family; each axis is z")
plt.show()

# %% [markdown]
# *What to see.* Twenty-four shapes, skewed, heavy-tailed, bounded. Each histogram was drawn as parameter-free noise and sent through its transformation, and each follows its black curve. All the character of a distribution sits in its transformation.
#
# Now both tests on all rows of all three tables. For each parameter the second shows the mean pathwise gradient, and the exact one in brackets.

# %% tags=["nbval-ignore-output"]
distances, errors = [], []  # √n D of each law; the largest gradient error, in standard errors
for number, name, law in LAWS:
    samples, exact_values = gradient_pair(law)
    means, error = samples.mean(0), samples.std(0) / len(samples) ** 0.5 + 1e-6
    distances.append(ks_distance(law))
    errors.append(float(((means - exact_values).abs() / error).max()))
    pairs = zip(means.tolist(), exact_values.tolist(), strict=True)
    text = "  ".join(f"{mean:6.3f} ({value:6.3f})" for mean, value in pairs)
    print(f"{number} {name:19s} √n D {distances[-1]:.2f}   off {errors[-1]:.1f} s.e.   {text}")

# %% [markdown]
# ## 10. What cannot be reparameterised
#
# **Discrete variables.** A coin $z \in \{0, 1\}$ with probability $\pi$ can be written as a function of noise, $z = 1[\epsilon < \pi]$. But this function is a step. Its derivative is zero wherever it exists, so the pathwise gradient is zero, while the true one is $f(1) - f(0)$. The derivation of section 3 needs a path $g_\phi(\epsilon)$ that is continuous in $\phi$ (and an $f$ that is, too). A jump that moves when $\phi$ moves is invisible to it.
#
# What to do then:
# - **sum** over all values, if they are few;
# - **the score function** with a good baseline: unbiased for anything with a probability;
# - **relax**: replace the step by a steep sigmoid. With a logistic variable from family 1, $z_\tau = \operatorname{sigmoid}\big((\operatorname{logit}\pi + \operatorname{logit}\epsilon)/\tau\big)$ tends to the coin as the temperature $\tau \to 0$. For more than two values the noise is Gumbel, also from family 1: hence *Gumbel-softmax* or *Concrete*. The gradient is the right one of the *wrong* problem, so it is biased for the coin;
# - **combine** both: the relaxation as a baseline for the score function (REBAR), unbiased again.
#
# The trade is easy to measure for $f(z) = (z - 0.4)^2$ and $\pi = 0.5$, where the exact gradient is $0.6^2 - 0.4^2 = 0.2$.

# %%
tau, pi = torch.logspace(-2, 1, 25), torch.full((25, 20_000), 0.5, requires_grad=True)
soft = torch.sigmoid((logit(pi) + logit(uniform(25, 20_000))) / tau[:, None])
(relaxed,) = torch.autograd.grad((soft - 0.4).square().sum(), pi)  # (temperatures, samples)
mean, error = relaxed.mean(1).numpy(), 2 * relaxed.std(1).numpy() / 20_000**0.5
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
axes[0].errorbar(tau, mean, error, fmt="o-", color=COLOR["pathwise"], label="relaxed, ± 2 s.e.")
axes[0].axhline(0.2, color=COLORS["exact"], linestyle="--", label="exact, and score function")
axes[0].axhline(0, color="#999999", linestyle=":", label="pathwise through the step")
axes[0].set(xscale="log", xlabel="temperature τ", ylabel="mean of $∂/∂π$", title="cold: no bias …")
axes[0].legend(fontsize=10, loc="center left", bbox_to_anchor=(0, 0.25))
axes[1].plot(tau, relaxed.var(1), "o-", color=COLOR["pathwise"])
axes[1].axhline(2 * (0.36**2 + 0.16**2) - 0.2**2, color=COLOR["score"], label="score function")
axes[1].set(xscale="log", yscale="log", xlabel="temperature τ", ylabel="variance, one estimate")
axes[1].legend(title="… but much variance", fontsize=10)
plt.show()

# %% [markdown]
# *What to see.* **Left:** warm relaxations answer another question; well below a temperature of one the bias is lost in the noise. **Right:** cold ones have a steep sigmoid, and the variance grows like $1/\tau$, as in our warning with $\sin\omega z$. No temperature has neither. For the continuous latents of this course we are spared the choice.

# %% [markdown]
# ## Claims
#
# 1. **Same mean.** Score-function and pathwise gradients are unbiased, on a quadratic and on a real bound.
# 2. **Not the same variance.** In 32 dimensions the ratio is in the thousand, with a baseline in the tens, and it shows in training. (The margins are about half of the exact ratios.)
# 3. **SGVB A and B.** For gradients in the means, B's variance is at most A's for a concave likelihood, by exactly $\sigma^2(1 + 2\mathbb E[H])$, and on average over images for the real decoder. For the value, the order depends on where $q$ is; for the widths too, on the datum: at the posterior of the exact case B is quieter at $x = 2$, A at $x = 10$.
# 4. **Minibatches.** Equation 8 is unbiased, its variance is the one predicted, and draws are better spent on images than on noise.
# 5. **Every distribution that the paper names** passes both tests.


# %%
def agree(samples, exact):
    """Whether the mean over dimension 0 is ``exact``, to five standard errors."""
    error = samples.std(0) / len(samples) ** 0.5
    return bool(((samples.mean(0) - exact).abs() <= 5 * error).all())


same = all(agree(part, 2.0) for pair in quadratic.values() for part in pair)
same &= all(agree(samples.mean(1), exact_real.mean(0)) for samples in real.values())
print("1. every estimator has the exact mean: quadratic in 1 and 32 dimensions, real bound:", same)
score, centred, path = (float(quadratic[m, 32][0].var(0).mean()) for m in METHODS)
grown = score > 500 * path and centred > 25 * path
print("2. quadratic, d = 32: variance ratio above 500, with a baseline above 25:", grown)
median = float((variance["score"] / variance["pathwise"]).median())
last, middle, first = (float(races[name][1:].mean()) for name in METHODS)  # over the whole race
won = bool(first > middle + 0.5 and middle > last + 10)  # seeds 0 to 2: over 1.6 and 45 nats
print(f"   real bound: ratio above 1,000: {median > 1000}; path first, plain score last: {won}")
assert same and grown and median > 1000 and won

# %%
gap = (POSTERIOR_SCALE * ratios) ** 2 * (1 + 2 / S**2)  # H = 1/s² for this likelihood
exactly = torch.allclose(toy["A"][1] - toy["B"][1], gap, rtol=1e-9)
print("3. exact model, mean gradient: Var A − Var B = σ²(1 + 2H), so B is quieter:", exactly)
at = torch.tensor([0.2, 1.0]) * POSTERIOR_SCALE  # a narrow q, and the posterior
value_a, value_b = (toy_variances(name, 2.0, at)[0] for name in ("A", "B"))
switch = bool(value_b[0] < 0.9 * value_a[0] and value_a[1] < 1e-9 < 0.1 < value_b[1])
print("   value: B quieter for a narrow q, A at the posterior, where it has no noise:", switch)
near, far = (torch.div(*(toy_variances(n, x, at)[2][1] for n in "AB")) for x in (2.0, 10.0))
print(f"   width gradient, A/B at the posterior: {near:.2f} for x = 2, {far:.2f} for x = 10")
means = {key: [float(part.mean()) for part in parts] for key, parts in sgvb_variances.items()}
first, later = (np.divide(means[stage, "B"], means[stage, "A"]) for stage in stages)
print("   real VAE, B/A: both gradients below 0.9 untrained:", bool(max(first[1:]) < 0.9), end="; ")
print("trained, means below 1:", bool(later[1] < 1), "but value above 1.3:", bool(later[0] > 1.3))
assert exactly and switch and near > 1.05 and far < 0.95
assert max(first[1:]) < 0.9 and later[1] < 1 and later[0] > 1.3

# %%
estimates, predicted = minibatch_estimates(100, 1, 4000), minibatch_variance(100, 1)
unbiased, ratio = agree(estimates, table.mean(1).sum()), float(estimates.var() / predicted)
print(f"4. M = 100, L = 1: unbiased: {unbiased}; variance as predicted: {abs(ratio - 1) < 0.15}")
gain = 1 - float(minibatch_variance(100, 10) / predicted)
print("   ten draws in place of one lower the variance of the bound by less than 5 %:", gain < 0.05)
print("   gradients of 10 × 10 and 1 × 100 decodings are over 2 and 5 times as noisy", end=": ")
print(costs[1] > 2 and costs[2] > 5)
assert unbiased and abs(ratio - 1) < 0.15 and gain < 0.05 and costs[1] > 2 and costs[2] > 5

# %%
u = torch.linspace(0.001, 0.999, 999)
laws = [(law, law.reference(*law.theta)) for law in INVERSE_CDF.values()]
back = [reference.cdf(law.transform(u, *law.theta).numpy()) - u.numpy() for law, reference in laws]
print("5. family 1: CDF(g(u)) = u, to 1e-12:", bool(np.abs(back).max() < 1e-12))
print(f"   {len(LAWS)} laws follow their densities: {max(distances) < 2.5};", end=" ")
print(f"their pathwise gradients are exact, to 5 standard errors: {max(errors) < 5}")
loc, factor = torch.tensor([1.0, -0.5]), torch.tensor([[1.2, 0.0], [0.9, 0.5]])  # Σ = A Aᵀ
z = loc + spherical_t(20_000) @ factor.T  # elliptical vectors
radius = torch.linalg.solve(factor, (z - loc).T).square().sum(0) / 2  # squared Mahalanobis / d
far = 20_000**0.5 * stats.kstest(radius.numpy(), stats.f(2, 8).cdf).statistic
print("   elliptical vectors: the squared Mahalanobis radius over d is F(d, ν):", bool(far < 2.5))
assert np.abs(back).max() < 1e-12 and max(distances) < 2.5 and max(errors) < 5 and far < 2.5

# %% [markdown]
# ## Exercises
#
# From easy to hard. Replace each `...`; the cell then says whether yours is right. Solutions with explanations are in `notebooks/solutions/02_reparameterize_the_gradient.py`.
#
# **1. A new row for family 1.** The Kumaraswamy distribution lives on $(0, 1)$ like the Beta, but its distribution function has a formula: $F(z) = 1 - (1 - z^a)^b$. Solve $F(z) = u$ for $z$. Evaluate your transformation for $a = 2$, $b = 3$ at the three values of $u$ below.
#
# **2. Unequal batches.** A data set of 250 images is visited in batches of 100, 100 and 50. Below are the bounds of all images. You want three numbers, one a batch, whose sum is the bound of the whole data set, $\sum_i \mathcal L(x^{(i)})$, *exactly*. Someone multiplies the mean of each batch by $250/3$. Why is that wrong? Give the three right numbers, made from the batch means.

# %%
from vaelib.teaching.exercises import check

u = torch.tensor([0.1, 0.5, 0.9])
kumaraswamy = ...  # your answer, from u, a = 2 and b = 3: a tensor (3,)
check(kumaraswamy, torch.tensor([0.1857409077, 0.4542020195, 0.7319942149]))

batches = (-100 - 10 * torch.sin(torch.arange(250.0))).split(100)  # 100, 100 and 50 bounds
shares = ...  # your answer: a tensor (3,)
check(shares, torch.stack([batch.sum() for batch in batches]))

# %% [markdown]
# **3. The best constant baseline.** Show that the variance of $(f - b)\,s$, with $s$ the score of $\mu_1$, is least for $b^\star = \mathbb E[f s^2]/\mathbb E[s^2]$, which is *not* $\mathbb E[f]$. Compute $b^\star$ for $f = \lVert z\rVert^2$ in $d = 32$ dimensions at $\mu = \sigma = 1$. (You need $\mathbb E[\epsilon^2] = 1$ and $\mathbb E[\epsilon^4] = 3$.) How much variance does it save over $b = \mathbb E[f]$?
#
# **4. Stick the landing.** In the exact model of section 7 with $x = 2$, let $q$ be the posterior. Write the bound of estimator A for the noise below, with the parameters *inside* $\log q$ held fixed, and take its gradient in the mean, one for each noise value. What is it, and why is this good news for the end of training and no reason to give up B at its start?

# %%
best_baseline = ...  # your answer: a number
# The variance is a parabola in b: three of its values give its vertex.
below, middle, above = (score_variance(32, baseline=b) for b in (-1.0, 0.0, 1.0))
check(best_baseline, (below - above) / (2 * (above + below - 2 * middle)))

epsilon = torch.tensor([[-1.3], [0.2], [0.9]])  # (3, 1)
mean = torch.full((3, 1), 2 * POSTERIOR_SCALE**2 / S**2, requires_grad=True)
width = torch.full((3, 1), POSTERIOR_SCALE)
landing = ...  # your answer: the gradient in `mean`, (3, 1), of log p(2|z) + log p(z) − log q(z)
check(landing, torch.zeros(3))

# %% [markdown]
# ## Further reading
#
# **The papers of this notebook**
# - D. P. Kingma and M. Welling (2013). *Auto-Encoding Variational Bayes.* arXiv:1312.6114. Sections 2.2 to 2.4 are what you just did.
# - D. J. Rezende, S. Mohamed and D. Wierstra (2014). *Stochastic Backpropagation and Approximate Inference in Deep Generative Models.* ICML, arXiv:1401.4082. The same idea, found independently.
# - M. Titsias and M. Lázaro-Gredilla (2014). *Doubly Stochastic Variational Bayes for Non-Conjugate Inference.* ICML. "Doubly": minibatches and noise, as in section 8.
#
# **The score function and its variance**
# - R. J. Williams (1992). *Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning.* Machine Learning 8, 229–256. REINFORCE.
# - J. Paisley, D. Blei and M. Jordan (2012). *Variational Bayesian Inference with Stochastic Search.* ICML, arXiv:1206.6430. The "naive" estimator that Kingma & Welling refer to, with control variates.
# - W. Kool, H. van Hoof and M. Welling (2019). *Buy 4 REINFORCE Samples, Get a Baseline for Free!* ICLR workshop. The leave-one-out baseline.
# - S. Mohamed, M. Rosca, M. Figurnov and A. Mnih (2020). *Monte Carlo Gradient Estimation in Machine Learning.* Journal of Machine Learning Research 21(132), arXiv:1906.10652. The survey; start here.
#
# **The pathwise gradient, further**
# - G. Roeder, Y. Wu and D. Duvenaud (2017). *Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference.* NeurIPS, arXiv:1703.09194.
# - M. Figurnov, S. Mohamed and A. Mnih (2018). *Implicit Reparameterization Gradients.* NeurIPS, arXiv:1805.08498.
# - C. Naesseth, F. Ruiz, S. Linderman and D. Blei (2017). *Reparameterization Gradients through Acceptance-Rejection Sampling Algorithms.* AISTATS, arXiv:1610.05683.
#
# **Discrete variables**
# - E. Jang, S. Gu and B. Poole (2017). *Categorical Reparameterization with Gumbel-Softmax.* ICLR, arXiv:1611.01144.
# - C. Maddison, A. Mnih and Y. W. Teh (2017). *The Concrete Distribution: A Continuous Relaxation of Discrete Random Variables.* ICLR, arXiv:1611.00712.
# - G. Tucker, A. Mnih, C. Maddison, D. Lawson and J. Sohl-Dickstein (2017). *REBAR: Low-Variance, Unbiased Gradient Estimates for Discrete Latent Variable Models.* NeurIPS, arXiv:1703.07370.
