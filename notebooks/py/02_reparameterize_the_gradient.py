# %% [markdown]
# # 02 · Reparameterize the gradient
#
# **What you will do.** You take the bound of notebook 01 and try to climb it. The encoder's parameters sit *inside* the distribution you sample from, and a sample has no derivative. You build the two ways around this, race them against each other, and find out why one of them made the variational autoencoder possible. Then you write the transformation of every distribution that the paper names, and test each against its density.
#
# **What you will learn.**
# - the score-function gradient and the reparameterised (pathwise) gradient, derived and in code, and why both are right on average;
# - how their variances grow with the dimension, shrink with the number of samples, and when the usual winner loses;
# - the two estimators of the bound, SGVB A and SGVB B: what each is good at, measured without favour;
# - why one sample per image is enough once the minibatch is large enough;
# - the three families of transformations: inverse CDF, location–scale, composition;
# - what cannot be reparameterised.
#
# **What you need.** Notebook 01: the bound, its distortion and its rate. The chain rule, variance, the density of a Gaussian. This notebook covers sections 2.2 to 2.4 of Kingma & Welling (2013), *Auto-Encoding Variational Bayes*, equations 4 to 10.

# %% tags=["library"]
import math
from collections.abc import Callable
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import special, stats
from torch.distributions import kl_divergence

from vaelib import VAE, data
from vaelib.decoders import BernoulliMLP
from vaelib.distributions import DiagNormal
from vaelib.encoders import MLPEncoder
from vaelib.plotting import COLORS, use_style
from vaelib.priors import StandardNormal
from vaelib.training import fit

# %%
SEED = 0  # every claim at the end holds for any seed: try another
torch.manual_seed(SEED)
torch.set_default_dtype(torch.float64)  # we will compare with exact answers, to rounding
use_style()
COLOR = {  # one colour for each estimator, through the whole notebook
    "score": "#332288",
    "score + baseline": "#44AA99",
    "pathwise": COLORS["aevb"],
    "A": "#999933",
    "B": COLORS["aevb"],  # the estimator that AEVB uses, on pathwise gradients
}

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
loc = torch.tensor([1.0], requires_grad=True)
q = DiagNormal(loc, torch.ones(1))
print("sample() remembers its mean: ", q.sample().requires_grad)
print("rsample() remembers its mean:", q.rsample().requires_grad)

# %% [markdown]
# The second line hints at the answer: `rsample`, *r* for reparameterised. Before we open it up, we look at the road taken before 2013.
#
# Throughout, we test on a case where the answer is known. Let $q = \mathcal N(\mu, \sigma^2 I)$ in $d$ dimensions and $f(z) = \lVert z \rVert^2 = \sum_i z_i^2$. Then
#
# $$\mathbb E_q[f] = \sum_i \mu_i^2 + \sigma_i^2, \qquad \frac{\partial}{\partial \mu_i} = 2\mu_i, \qquad \frac{\partial}{\partial \sigma_i} = 2\sigma_i .$$

# %% [markdown]
# ## 2. The score-function gradient
#
# **Derivation.** Move the derivative under the integral, where it meets $q$, and use $\nabla q = q\, \nabla \log q$:
#
# $$\nabla_\phi \int q_\phi(z) f(z)\, dz = \int f(z)\, \nabla_\phi q_\phi(z)\, dz = \int q_\phi(z)\, f(z)\, \nabla_\phi \log q_\phi(z)\, dz = \mathbb E_{q_\phi}\big[f(z)\, \nabla_\phi \log q_\phi(z)\big].$$
#
# It is an expectation again, so we can sample it. The vector $\nabla_\phi \log q_\phi(z)$ is called the **score**; hence the name. It is also known as the *likelihood-ratio* gradient, and, in reinforcement learning, as REINFORCE. Section 2.2 of the paper calls it the *naive* estimator. If $f$ itself depends on $\phi$, as the bound does through $-\log q_\phi$, there is a second term, the average of $\nabla_\phi f$. For $-\log q_\phi$ it is zero, because the score averages to zero:
#
# $$\mathbb E_q[\nabla \log q] = \int \nabla q\, dz = \nabla \int q\, dz = \nabla 1 = 0 .$$
#
# **How it works.** The estimator never asks for the slope of $f$. It tries a point, looks at the *value*, and makes that point more probable in proportion. It is trial and error: general (any $f$, even a black box; any $q$ with a density, even a discrete one), and wasteful.
#
# **A baseline.** Since the score averages to zero, we may subtract any constant $b$ from $f$ and stay unbiased: $\mathbb E[(f(z) - b)\, \nabla \log q] = \nabla F$. If every value of $f$ lies between $-210$ and $-190$, then without a baseline *every* sample says "less of this", and the signal is the small difference between large pushes. With $b \approx \mathbb E[f]$ the better half says "more", the worse half "less".

# %% [markdown]
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
    loc = loc.detach().expand(samples, *loc.shape).clone().requires_grad_()
    scale = scale.detach().expand(samples, *scale.shape).clone().requires_grad_()
    q = DiagNormal(loc, scale)
    if estimator == "score":
        z = q.sample()
        objective = (f(z) - baseline).detach() * q.log_prob(z)
    elif estimator == "pathwise":
        objective = f(q.rsample())
    else:
        raise ValueError(f"expected estimator 'score' or 'pathwise', got {estimator!r}")
    return torch.autograd.grad(objective.sum(), (loc, scale))


def within_standard_errors(samples, exact, errors=5):
    """Whether the mean over dimension 0 agrees with ``exact``, to so many standard errors."""
    error = samples.std(0) / len(samples) ** 0.5
    return bool(((samples.mean(0) - exact).abs() <= errors * error).all())


# %% [markdown]
# In one dimension the two are curves that we can draw. With $\mu = \sigma = 1$ and $f(z) = z^2$, the score-function estimator of $\partial/\partial\mu$ is $z^2 (z - 1)$, the pathwise one is $2z$. Averaged under the same bell curve, both give 2.

# %%
z = torch.linspace(-2, 4, 400)
bell = DiagNormal(torch.ones(1), torch.ones(1)).log_prob(z[:, None]).exp()
draws = DiagNormal(torch.ones(1), torch.ones(1)).sample((40,))[:, 0]
curves = {"score": lambda z: z**2 * (z - 1), "pathwise": lambda z: 2 * z}

figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
for ax, (name, curve) in zip(axes, curves.items(), strict=True):
    ax.fill_between(z, -8, -8 + 14 * bell, color=COLORS["encoder"], alpha=0.2, label="q(z), scaled")
    ax.axhline(2, color=COLORS["exact"], linestyle="--", label="exact gradient")
    ax.plot(z, curve(z), color=COLOR[name], label=f"{name} estimate at z")
    ax.plot(draws, curve(draws), "o", color=COLOR[name], alpha=0.5)
    ax.set(xlabel="z", ylim=(-8, 22), title=f"{name}: same mean")
    ax.legend(loc="upper left")
axes[0].set_ylabel("estimate of the gradient in μ")
plt.show()

# %% [markdown]
# *What to see.* The dots are forty draws from the same $q$. On the left the value of $f$ is multiplied by the distance from the centre: most draws report almost nothing, and a few at the edge report ten times the truth. On the right the estimates lie on a gentle line.
#
# Now a histogram of many one-sample estimates, in one dimension and in 32. The baseline is the best constant we can guess, $b = \mathbb E[f]$.

# %%
METHODS = {  # name: (estimator, whether to use the baseline)
    "score": ("score", False),
    "score + baseline": ("score", True),
    "pathwise": ("pathwise", False),
}


def quadratic(z):
    """f(z) = ‖z‖² for z (*batch, d); under N(1, I) its mean is 2d."""
    return z.square().sum(-1)


def quadratic_gradients(name, d, samples):
    """One-sample gradients of E‖z‖² in loc and scale at N(1, I), by the method ``name``."""
    estimator, centred = METHODS[name]
    one = torch.ones(d)
    return gradient_samples(quadratic, one, one, samples, estimator, 2.0 * d if centred else 0.0)


quadratic_samples = {(name, d): quadratic_gradients(name, d, 20_000) for name in METHODS for d in (1, 32)}

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
for ax, d, limit in zip(axes, (1, 32), (20, 250), strict=True):
    bins = np.linspace(-limit, limit, 81)
    for name in METHODS:
        estimates = quadratic_samples[name, d][0][:, 0].clamp(-limit, limit)
        style = {"color": COLOR[name], "label": name, "density": True, "linewidth": 2}
        ax.hist(estimates.numpy(), bins, histtype="step", **style)
    ax.axvline(2, color=COLORS["exact"], linestyle="--", linewidth=1, label="exact gradient")
    ax.set(yscale="log", xlabel="one-sample estimate of the gradient in $\\mu_1$", ylabel="density")
    ax.set_title(f"{d} dimension{'s' if d > 1 else ''}")
axes[0].legend(loc="upper left", fontsize=9)
plt.show()

# %% [markdown]
# *What to see.* The vertical axis is logarithmic. In one dimension the score-function estimates have long tails. In 32 dimensions (note the other horizontal scale) they are spread over hundreds, although the true answer is 2. The baseline helps a great deal. The pathwise histogram is the same in both panels: the spike at 2 on the right is not narrower, the axis is wider.
#
# All three have the same mean. We check both parameters against the exact gradient, to five standard errors.

# %%
for (name, d), gradients in quadratic_samples.items():
    agree = all(within_standard_errors(samples, 2.0) for samples in gradients)
    print(f"{name:16s} in {d:2d} dimension(s): mean equals the exact gradient: {agree}")

# %% [markdown]
# ## 4. How the variance grows
#
# For this quadratic the variance can be worked out. Look at the gradient in $\mu_1$ and split $f = z_1^2 + R$, where $R$ is the sum over the other $d - 1$ dimensions. $R$ knows nothing about $\mu_1$. The pathwise gradient never sees it: $\partial R / \partial z_1 = 0$, so
#
# $$\operatorname{Var}[\text{pathwise}] = \operatorname{Var}[2 z_1] = 4\sigma^2 \quad\text{in every dimension.}$$
#
# The score-function gradient multiplies $R$ with the score of $z_1$. On average that is zero, but its variance is $\mathbb E[(R - b)^2] / \sigma^2$. Without a baseline it grows like $\mathbb E[R]^2 \propto d^2$; with $b = \mathbb E[f]$, like $\operatorname{Var}[R] \propto d$. That is *noise from the rest of the world*: each parameter is blamed for everything that happens.


# %% tags=["library"]
def score_variance(d, mu=1.0, sigma=1.0, baseline=0.0):
    """Var[(‖z‖² − b) ∂log q/∂μ₁] for z ~ N(mu, sigma² I) in d dimensions, exact."""
    square = mu**2 + 3 * sigma**2  # E[z₁² ε²]
    fourth = mu**4 + 18 * mu**2 * sigma**2 + 15 * sigma**4  # E[z₁⁴ ε²]
    rest = (d - 1) * (mu**2 + sigma**2) - baseline  # E[R − b]
    rest_variance = (d - 1) * (2 * sigma**4 + 4 * mu**2 * sigma**2)
    second_moment = fourth + 2 * square * rest + rest**2 + rest_variance
    return second_moment / sigma**2 - (2 * mu) ** 2


# %% [markdown]
# Variance is the price of a gradient: averaging $L$ samples divides it by $L$, so a method with a hundred times the variance needs a hundred times the samples for the same accuracy. The next figure shows three laws: variance against dimension, variance against samples, and a warning.
#
# The warning first. **No theorem says that the pathwise gradient is always better.** It trades the *size* of $f$ for the *slope* of $f$. For $f(z) = \sin(\omega z)$, whose size is bounded, the slope grows with $\omega$. With $q = \mathcal N(0, 1)$,
#
# $$\operatorname{Var}[\text{pathwise}] = \omega^2 \Big[\tfrac12\big(1 + e^{-2\omega^2}\big) - e^{-\omega^2}\Big], \qquad \operatorname{Var}[\text{score}] = \tfrac12\Big[1 - (1 - 4\omega^2)\, e^{-2\omega^2}\Big] - \omega^2 e^{-\omega^2}.$$

# %%
dims = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128])
draws = torch.tensor([1, 2, 5, 10, 20, 50, 100, 200, 500, 1000])
measured = {(name, int(d)): quadratic_gradients(name, int(d), 2000)[0][:, 0].var() for name in METHODS for d in dims}
lines = {
    "score": score_variance(dims),
    "score + baseline": score_variance(dims, baseline=2.0 * dims),
    "pathwise": torch.full(dims.shape, 4.0),
}
means = {}  # (method, L) -> the variance of means over L samples, in 32 dimensions
for name in METHODS:
    gradients = quadratic_samples[name, 32][0][:, 0]
    for L in draws.tolist():
        means[name, L] = gradients.reshape(-1, L).mean(1).var()
omega = torch.linspace(0.05, 4, 200)
waves = {
    "score": (1 - (1 - 4 * omega**2) * torch.exp(-2 * omega**2)) / 2 - omega**2 * torch.exp(-(omega**2)),
    "pathwise": omega**2 * ((1 + torch.exp(-2 * omega**2)) / 2 - torch.exp(-(omega**2))),
}

# %%
figure, axes = plt.subplots(1, 3, figsize=(13.5, 4))
for name in METHODS:
    axes[0].plot(dims, lines[name], color=COLOR[name], label=name)
    axes[0].plot(dims, [measured[name, int(d)] for d in dims], "o", color=COLOR[name])
    axes[1].plot(draws, lines[name][dims == 32] / draws, color=COLOR[name])
    axes[1].plot(draws, [means[name, int(L)] for L in draws], "o", color=COLOR[name])
for name, curve in waves.items():
    axes[2].plot(omega, curve, color=COLOR[name])
axes[0].set(xscale="log", yscale="log", xlabel="dimension d", ylabel="variance of the gradient in $\\mu_1$")
axes[0].set_title("it grows as d², d, and not at all")
axes[1].set(xscale="log", yscale="log", xlabel="samples L", ylabel="variance of the mean over L samples")
axes[1].set_title("it falls as 1/L (32 dimensions)")
axes[2].set(yscale="log", xlabel="roughness ω", ylabel="variance of the gradient in μ")
axes[2].set_title("f(z) = sin ωz: too steep for the path")
axes[0].legend(fontsize=10)
plt.show()

# %% [markdown]
# *What to see.* Lines are exact, dots are measured. **Left:** slopes 2, 1 and 0 on double-logarithmic axes; in a latent space of useful size the score-function gradient is drowned, and a constant baseline only takes one power of $d$ away. **Middle:** parallel lines of slope $-1$. Read it horizontally: how many score-function samples buy the accuracy of *one* pathwise sample? About a thousand, with a baseline about fifty. **Right:** for a steep and bounded $f$ the order turns round. The bound of a trained VAE is smooth on the scale of $q$, because $q$ adapts its width to the likelihood; that is why the pathwise gradient works so well *there*.

# %% [markdown]
# ## 5. The same on a real bound
#
# Does this hold for a real model? We train a small VAE with two latents on MNIST digits. Two latents, because then the exact answer is within reach: an expectation over a Gaussian in two dimensions is a **Gauss–Hermite sum**, a weighted sum over a fixed grid of noise values $\epsilon$. So this bound has an exact gradient as well.
#
# Before we train, we keep a copy of the untrained model. It will be useful later.

# %%
digits = data.mnist()
train, test = digits.train.double(), digits.test.double()


def small_vae():
    return VAE(MLPEncoder(2, hidden=100), StandardNormal(2), BernoulliMLP(2, hidden=100))


untrained, vae = small_vae(), small_vae()
untrained.load_state_dict(vae.state_dict())
adam = lambda parameters: torch.optim.Adam(parameters, lr=2e-3)  # noqa: E731
history = fit(vae, train, epochs=10, optimizer=adam, seed=SEED, progress=False)
print("the bound rose by more than 200 nats:", bool(history["train_bound"][-1] - untrained.elbo(train).value.mean() > 200))


# %%
def gauss_hermite(nodes, d=2):
    """Noise (nodes**d, d) and weights (nodes**d,) so that E[f(ε)] ≈ Σ w f(ε), ε ~ N(0, I)."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid = torch.cartesian_prod(*[torch.tensor(points)] * d).reshape(-1, d)
    weight = torch.cartesian_prod(*[torch.tensor(weights / weights.sum())] * d).reshape(-1, d)
    return grid, weight.prod(-1)


def integrand(vae, x, q):
    """f(z) = log p(x|z) + log p(z) − log q(z|x), with q held fixed: (samples, B) nats."""
    fixed = DiagNormal(q.loc.detach(), q.scale.detach())
    return lambda z: vae.decoder(z).log_prob(x) + vae.prior().log_prob(z) - fixed.log_prob(z)


# %% [markdown]
# (The parameters inside $\log q_\phi$ are held fixed here, since we saw that their direct contribution averages to zero. This gives both estimators the same $f$.)
#
# We take 100 test images. Each has its own $q(z|x)$ with two means. For every image we compute the exact gradient in its means, and compare 1,000 one-sample gradients of each kind with it. The baseline of an image is its bound, the mean of its own $f$.

# %%
images = test[:100]
with torch.no_grad():
    q = vae.encoder(images)
f = integrand(vae, images, q)
noise, weights = gauss_hermite(14)

loc = q.loc.clone().requires_grad_()
values = f(loc + q.scale * noise[:, None])  # (nodes, images)
bound = (weights[:, None] * values).sum(0)
(exact,) = torch.autograd.grad(bound.sum(), loc)  # (images, 2)

bound_samples = {}  # method -> one-sample gradients in the means, (1000, images, 2)
for name, (estimator, centred) in METHODS.items():
    baseline = bound.detach() if centred else 0.0
    parts = [gradient_samples(f, q.loc, q.scale, 100, estimator, baseline)[0] for _ in range(10)]
    bound_samples[name] = torch.cat(parts)

# %%
total = {name: samples.var(0).sum(-1) for name, samples in bound_samples.items()}  # (images,)
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
for name, samples in bound_samples.items():
    axes[0].hist(samples[:, 0, 0].clamp(-400, 400).numpy(), 60, histtype="step", density=True, color=COLOR[name], label=name)
axes[0].axvline(exact[0, 0], color=COLORS["exact"], linestyle="--", linewidth=1, label="exact gradient")
axes[0].set(yscale="log", xlabel="estimate of the gradient in $\\mu_1$ (nats)", ylabel="density", title="one image, one-sample estimates")
axes[0].legend(fontsize=9)
for name in ("score", "score + baseline"):
    ratio = (total[name] / total["pathwise"]).log10()
    axes[1].hist(ratio.numpy(), np.linspace(-1, 6, 43), color=COLOR[name], alpha=0.7, label=name)
axes[1].axvline(0, color=COLOR["pathwise"], label="pathwise")
axes[1].set(xlabel="log₁₀ of variance over pathwise variance", ylabel="images", title="100 images: orders of magnitude")
axes[1].legend(fontsize=9)
plt.show()

# %% [markdown]
# *What to see.* Left: the three estimators on one image. Without a baseline the values of $f$, around minus a hundred and fifty nats, turn into huge pushes in all directions. Right: for each image, how many times more variance the score function has than the path. Without a baseline it is thousands of times. With the best constant baseline it is still more, and here the dimension is only two. In a hundred dimensions the left panel of the previous figure applies.
#
# And the mean? All estimators agree with quadrature on the gradient of a real bound:

# %%
for name, samples in bound_samples.items():
    error = samples.std(0) / len(samples) ** 0.5
    share = ((samples.mean(0) - exact).abs() <= 3 * error).double().mean()
    print(f"{name:16s}: within 3 standard errors of quadrature for more than 95 % of the means: {bool(share > 0.95)}")

# %% [markdown]
# ## 6. A race
#
# What does variance cost in training? We keep the trained decoder, throw the encoder away and fit a new one, three times: with each gradient, at equal numbers of samples. All three use five draws of $z$ per image and the same $f$. The baseline is now one that you can use in practice: each draw is compared with the *mean of the other four* (leave-one-out). The others are independent of the draw, so the estimator stays unbiased.
#
# To be fair, each method chooses the best of three step sizes.


# %%
def surrogate(vae, x, method, samples=5):
    """A number whose gradient estimates that of the mean bound of x, in the encoder."""
    if method == "pathwise":
        return vae.elbo(x, samples, estimator="A").value.mean()
    q = vae.encoder(x)
    z = q.sample((samples,))
    f = integrand(vae, x, q)(z).detach()  # (samples, B)
    if method == "score + baseline":
        f = f - (f.sum(0) - f) / (samples - 1)
    return (f * q.log_prob(z)).mean()


def race(method, step_size, updates=200):
    """Fit a new encoder to the trained decoder; the test bound after every 20 updates, nats."""
    torch.manual_seed(SEED + 1)
    runner = VAE(MLPEncoder(2, hidden=100), vae.prior, vae.decoder)
    optimizer = torch.optim.Adam(runner.encoder.parameters(), lr=step_size)
    curve = []
    for update in range(updates + 1):
        if update % 20 == 0:
            with torch.no_grad():
                curve.append(float(runner.elbo(test[:300], samples=10).value.mean()))
        optimizer.zero_grad()
        (-surrogate(runner, train[torch.randint(len(train), (50,))], method)).backward()
        optimizer.step()
    return curve


# %%
STEP_SIZES = (3e-4, 1e-3, 3e-3)
races = {m: max((race(m, size) for size in STEP_SIZES), key=lambda curve: curve[-1]) for m in METHODS}

figure, ax = plt.subplots(figsize=(7.5, 3.9))
with torch.no_grad():
    ceiling = float(vae.elbo(test[:300], samples=10).value.mean())
ax.axhline(ceiling, color=COLORS["bound"], linestyle=":", label="the encoder trained with the decoder")
for name, curve in races.items():
    ax.plot(250 * 20 * np.arange(len(curve)), curve, "o-", color=COLOR[name], label=name)
ax.set(xlabel="samples of z used", ylabel="test bound (nats per image)", title="Fitting q at equal samples")
ax.legend(loc="center right", fontsize=10)
plt.show()

# %% [markdown]
# *What to see.* Higher is better. The pathwise gradient gets most of the way in the first few thousand samples. The score function with a leave-one-out baseline follows later and lower. Without a baseline it makes little headway in the same time. All three climb the *same* hill, with the same expected direction; what differs is the noise in each step. This noise is why nobody trained models of this kind well before the reparameterisation, and why almost everybody could afterwards.

# %% [markdown]
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
# Now let $q$ be the true posterior. By Bayes' rule $\log p(x, z) - \log p(z|x) = \log p(x)$: **A is constant, its variance is zero**, while B still fluctuates with $\ell$. So for the *value* of the bound, "less variance" cannot be a theorem. A wins near the truth, B wins where $\ell$ and $r$ have little to do with each other.

# %% [markdown]
# For training it is the variance of the *gradient* that matters. For the means of a Gaussian $q$ it can be settled. With $z = \mu + \sigma\epsilon$, the density $\log q(z)$ does not depend on $\mu$ at fixed $\epsilon$, and the gradients in $\mu_i$ are
#
# $$\text{A:}\quad \frac{\partial \ell}{\partial z_i} - z_i, \qquad \text{B:}\quad \frac{\partial \ell}{\partial z_i} - \mu_i, \qquad \text{so} \quad A - B = -\sigma_i\epsilon_i .$$
#
# By Stein's lemma, $\mathbb E[h(\epsilon)\,\epsilon] = \mathbb E[h'(\epsilon)]$, the covariance of $\partial\ell/\partial z_i$ with $\epsilon_i$ is $-\sigma_i \mathbb E[H_{ii}]$, where $H = -\nabla^2_z \log p(x|z)$ is the curvature of the likelihood. Hence, exactly,
#
# $$\operatorname{Var}[\partial_{\mu_i} A] - \operatorname{Var}[\partial_{\mu_i} B] = \sigma_i^2\,\big(1 + 2\,\mathbb E_q[H_{ii}]\big).$$
#
# B has the quieter gradient whenever the likelihood, averaged over $q$, is not curved the wrong way by more than a half. If $\log p(x|z)$ is concave, it always holds. At the optimum of a Gaussian $q$ it holds as well, wherever the posterior is narrower than the prior, because there $1/\sigma_i^2 = 1 + \mathbb E[H_{ii}]$. For $\sigma$ there is no such guarantee.
#
# One function gives values and gradients of both estimators, for any likelihood. The third option is one more word of code: in A, hold the parameters inside $\log q$ fixed, as we did in section 5. Roeder et al. (2017) call it *sticking the landing* (STL): same mean, and no noise at all when $q$ is the posterior.


# %% tags=["library"]
def sgvb(log_likelihood, loc, scale, noise, estimator):
    """One-sample bounds and their gradients in loc and ln scale, for noise (samples, *loc.shape).

    Prior N(0, I). Returns values (samples, *batch) and two gradients (samples, *loc.shape), nats.
    """
    if estimator not in ("A", "B", "STL"):
        raise ValueError(f"expected estimator 'A', 'B' or 'STL', got {estimator!r}")
    loc = loc.detach().expand_as(noise).clone().requires_grad_()
    log_scale = scale.detach().log().expand_as(noise).clone().requires_grad_()
    q, p = DiagNormal(loc, log_scale.exp()), StandardNormal(loc.shape[-1])()
    z = loc + log_scale.exp() * noise
    fixed = DiagNormal(loc.detach(), log_scale.exp().detach()) if estimator == "STL" else q
    rate = kl_divergence(q, p) if estimator == "B" else fixed.log_prob(z) - p.log_prob(z)
    value = log_likelihood(z) - rate
    return value.detach(), *torch.autograd.grad(value.sum(), (loc, log_scale))


# %% [markdown]
# First an exact case. One latent, $p(x|z) = \mathcal N(x; z, s^2)$ with $s = 0.5$ and $x = 2$. The posterior is Gaussian with variance $1/(1 + 1/s^2)$. We put $q$'s mean on the posterior's and let its width run from far too narrow to far too wide. All variances are Gauss–Hermite sums, exact for these polynomials.

# %%
X, S = 2.0, 0.5
posterior_scale = (1 + 1 / S**2) ** -0.5
posterior_loc = X * posterior_scale**2 / S**2
ratios = torch.logspace(-1.3, 0.7, 81)  # scale of q over scale of the posterior
nodes, node_weights = gauss_hermite(12, d=1)


def toy_variances(estimator, scales, loc=posterior_loc):
    """Variances of value, gradient in loc and gradient in ln scale at each scale of q, nats²."""
    scales = scales[:, None]
    log_likelihood = DiagNormal(torch.tensor([X]), torch.tensor([S])).log_prob  # symmetric in x and z
    results = sgvb(log_likelihood, torch.full_like(scales, loc), scales, nodes[:, None].expand(-1, len(scales), 1), estimator)
    results = [result.reshape(len(nodes), -1) for result in results]
    means = [node_weights @ result for result in results]
    return [node_weights @ (result - mean) ** 2 for result, mean in zip(results, means, strict=True)]


toy = {name: toy_variances(name, posterior_scale * ratios) for name in ("A", "B", "STL")}

# %%
figure, axes = plt.subplots(1, 3, figsize=(13.5, 3.9))
names = ["value of the bound", "gradient in μ", "gradient in ln σ"]
dashes = {"A": "-", "B": "-", "STL": (0, (2, 1.5))}
for index, (ax, what) in enumerate(zip(axes, names, strict=True)):
    for name in dashes:
        variance = toy[name][index].clamp_min(1e-6)
        ax.plot(ratios, variance, color=COLOR.get(name, "#777777"), linestyle=dashes[name], label=name)
    ax.axvline(1, color=COLORS["exact"], linestyle=":", linewidth=1)
    ax.set(xscale="log", yscale="log", ylim=(1e-3, 3e3), xlabel="σ of q / σ of the posterior", title=what)
axes[0].set_ylabel("variance (nats²)")
axes[0].legend()
axes[1].annotate("q = posterior", (1.05, 1.3e-3), fontsize=10)
plt.show()

# %% [markdown]
# *What to see.* **Left, the value:** B is quieter while $q$ is too narrow. At the posterior (dotted line) A and STL, which share their value, drop to zero, and A stays below B from there on. **Middle, the gradient in the mean:** B lies below A at *every* width, as the formula says. **Right, the gradient in the width:** B again lies below A near the posterior. The grey dashes are the lesson of Roeder et al.: at the posterior the STL gradient is exactly zero, so a perfect encoder is left alone.
#
# One more number to keep us honest. The gradient in the width has no guarantee. Move the datum far from the prior's centre, $x = 10$, and let $q$ be the posterior again:

# %%
far = 10.0
X = far
far_loc = far * posterior_scale**2 / S**2
_, mean_A, width_A = toy_variances("A", torch.tensor([posterior_scale]), far_loc)
_, mean_B, width_B = toy_variances("B", torch.tensor([posterior_scale]), far_loc)
X = 2.0
print(f"gradient in μ:    variance A {float(mean_A):6.3f}   B {float(mean_B):6.3f} nats²")
print(f"gradient in ln σ: variance A {float(width_A):6.3f}   B {float(width_B):6.3f} nats²")

# %% [markdown]
# B's gradient in $\ln\sigma$ is the noisier one here. A latent that carries many nats by its *position* makes $-z\,\sigma\epsilon$, the noise in A's rate, cancel the noise in its likelihood; B has taken the partner away.
#
# Now the real model, before and after training. For 100 test images we measure the variances under 300 draws of noise. A and B get the same noise.

# %%
sgvb_variance = {}  # (stage, estimator) -> variances of value, mean and width gradient per image
for stage, model in {"untrained": untrained, "trained": vae}.items():
    with torch.no_grad():
        q = model.encoder(images)
    for name in ("A", "B"):
        torch.manual_seed(SEED + 2)
        parts = [sgvb(lambda z, m=model: m.decoder(z).log_prob(images), q.loc, q.scale, torch.randn(100, 100, 2), name) for _ in range(3)]
        value, mean, width = (torch.cat(part) for part in zip(*parts, strict=True))
        sgvb_variance[stage, name] = [value.var(0), mean.var(0).sum(-1), width.var(0).sum(-1)]

# %%
figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.2))
for index, (ax, what) in enumerate(zip(axes, names, strict=True)):
    for stage, marker, color in (("untrained", "o", "#999999"), ("trained", "^", COLORS["encoder"])):
        pair = [sgvb_variance[stage, name][index] for name in ("A", "B")]
        ax.plot(*pair, marker, color=color, alpha=0.6, markersize=5, label=f"{stage}, one image each")
    low, high = ax.get_xlim()[0] * 0.5, max(ax.get_xlim()[1], ax.get_ylim()[1])
    low = min(float(sgvb_variance[s, n][index].min()) for s, n in sgvb_variance) * 0.6
    ax.plot([low, high], [low, high], color=COLORS["exact"], linewidth=1, linestyle="--")
    ax.set(xscale="log", yscale="log", xlabel="variance of A (nats²)", title=what, aspect="equal")
axes[0].set_ylabel("variance of B (nats²)")
axes[0].legend(loc="upper left", fontsize=9)
axes[2].annotate("below the line:\nB is quieter", (0.55, 0.08), xycoords="axes fraction", fontsize=10)
plt.show()

# %% [markdown]
# *What to see.* Below the dashed line B is quieter, above it A. **Untrained** (circles): the encoder's $q$ is near the prior, the values of A and B are about equally noisy, and the gradient of B is clearly better, in the means and in the widths. **Trained** (triangles): for the *value* of the bound, A is now the quieter one for nearly every image, because $q$ has come close to the posterior. For the gradient in the means B remains ahead, by little. For the widths it is a draw.
#
# So the rule is: **to train, use B where a KL rule exists; it is never much worse and early on it is much better. To report the value of the bound of a trained model, A has the smaller error bar.** And where no KL rule exists, A costs less than one might fear. We will need it from notebook 11 on, with priors that have no closed form.

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
# $S^2$ is the variance of the bound between images, $\overline{\sigma^2}$ the mean variance of one draw within an image. Both terms fall with $M$. Only the second falls with $L$. And the cost is $M \cdot L$ decoded images. So, at a given cost, **it is never better to raise $L$ than to raise $M$**, as long as there are images left. That is why the paper could set $L = 1$ "as long as the minibatch size $M$ was large enough, e.g. $M = 100$".
#
# To check the formula without any doubt, we make a table once: 50 one-sample bounds (B) for each of 1,000 test images. The table is now the whole world, its sum is known, and equation 8 draws images and values from it.

# %%
with torch.no_grad():
    bounds = torch.cat([torch.stack([vae.elbo(x, estimator="B").value for _ in range(50)], 1) for x in test.split(100)])
N = len(bounds)  # bounds: (images, draws), nats
between, within = bounds.mean(1).var(), bounds.var(1, correction=0).mean()


def minibatch_estimates(M, L, repeats=4000):
    """Equation 8, ``repeats`` times: the bound of all N images from M of them, L draws each."""
    chosen = torch.rand(repeats, N).argsort(1)[:, :M]  # M images without replacement
    drawn = torch.randint(bounds.shape[1], (repeats, M, L))
    return N / M * bounds[chosen[..., None], drawn].mean(-1).sum(-1)


def minibatch_variance(M, L):
    """The variance that the formula predicts, nats²."""
    return N**2 / M * ((1 - M / N) * between + within / L)


# %% [markdown]
# The value of the bound is one thing; training needs its gradient. So we also compute the gradient of the *whole network* for three batches of equal cost, 100 decoded images each: 100 images with one draw, 10 images with 10 draws, and one image with 100 draws.


# %%
def network_gradient(M, L):
    """The gradient of the mean bound of M random images, all parameters in one vector."""
    x = train[torch.randint(len(train), (M,))]
    gradients = torch.autograd.grad(vae.elbo(x, L).value.mean(), list(vae.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


BUDGETS = ((100, 1), (10, 10), (1, 100))  # (M, L), each 100 decoded images
gradient_noise = {}  # (M, L) -> total variance of the gradient
for M, L in BUDGETS:
    gradient_noise[M, L] = torch.stack([network_gradient(M, L) for _ in range(60)]).var(0).sum()

# %%
figure, axes = plt.subplots(1, 2, figsize=(11.5, 4), width_ratios=[1.4, 1])
batches = torch.tensor([1, 3, 10, 30, 100, 300])
for L, color, marker in ((1, COLORS["aevb"], "o"), (10, COLORS["encoder"], "^")):
    theory = torch.stack([minibatch_variance(M, L) for M in batches.double()]).sqrt() / N
    found = [minibatch_estimates(int(M), L, 1000).std() / N for M in batches]
    axes[0].plot(batches, theory, color=color, label=f"L = {L}")
    axes[0].plot(batches, found, marker, color=color)
axes[0].set(xscale="log", yscale="log", xlabel="images in the minibatch, M", ylabel="standard deviation (nats per image)")
axes[0].set_title("equation 8: M helps, L hardly does")
axes[0].legend()
ratios_to_best = [float(gradient_noise[budget] / gradient_noise[BUDGETS[0]]) for budget in BUDGETS]
axes[1].bar([f"M = {M}\nL = {L}" for M, L in BUDGETS], ratios_to_best, color=COLORS["aevb"])
axes[1].bar_label(axes[1].containers[0], fmt="×%.2g")
axes[1].set(yscale="log", ylabel="variance of the gradient, relative", title="100 decodings, spent three ways")
plt.show()

# %% [markdown]
# *What to see.* Left: lines are the formula, marks are measured. Ten draws per image cost ten times as much as one, and the two lines are almost the same: what is uncertain is *which digits* are in the batch. Right: the same cost, 100 decodings. Many images with one draw each give by far the quietest gradient.
#
# That is the complete algorithm of the paper, one minibatch with one reparameterised draw per image, and it is all that `learning.aevb_step` does. Notebook 03 puts it to work.

# %% [markdown]
# ## 9. Which distributions can be reparameterised?
#
# So far $q$ was Gaussian. Section 2.4 of the paper gives three recipes for others, and names distributions for each. We write them all, in three tables. A row is a `Law`: how to draw the noise, the transformation $z = g_\theta(\epsilon)$, a value for its parameters, and, as the judge, SciPy's distribution with these parameters. The judge shares no code with us.
#
# Two tests for every row:
# 1. **Samples.** The largest distance $D$ between the distribution function and that of $n$ samples (Kolmogorov–Smirnov). For a correct sampler $\sqrt n D$ exceeds 2.5 less than once in 100,000 times.
# 2. **Gradients.** The mean of the pathwise gradient of $f(z)$, for every parameter, against the derivative of $\mathbb E[f(z)]$ that SciPy finds by integrating its density. Five standard errors are allowed.


# %% tags=["library"]
class Law(NamedTuple):
    """A distribution by its transformation: z = transform(noise(n), *theta), shape (n,)."""

    noise: Callable  # number of samples -> noise whose distribution has no parameters
    transform: Callable  # (noise, *theta) -> z, differentiable in theta
    theta: tuple[float, ...]
    reference: Callable  # theta -> the distribution in SciPy
    f: Callable = lambda z: z  # whose expectation is differentiated in the check


def uniform(*shape):
    """Uniform noise, strictly inside (0, 1), so that every logarithm is finite."""
    return torch.rand(*shape, dtype=torch.float64).clamp_min(2.0**-54)


def normal(*shape):
    """Standard normal noise."""
    return torch.randn(*shape, dtype=torch.float64)


# %% tags=["library"]
def ks_distance(law, samples=20_000):
    """√n times the largest distance of the samples' distribution function from the true one."""
    z = law.transform(law.noise(samples), *law.theta)
    return samples**0.5 * stats.kstest(z.numpy(), law.reference(*law.theta).cdf).statistic


def exact_gradient(law, step=1e-4):
    """dE[f(z)]/dθ for each parameter: central differences of SciPy's integral of the density."""
    expectation = lambda theta: float(law.reference(*theta).expect(law.f))  # noqa: E731
    shifts = [step * np.eye(len(law.theta))[i] for i in range(len(law.theta))]
    theta = np.array(law.theta)
    return [(expectation(theta + h) - expectation(theta - h)) / (2 * step) for h in shifts]


def pathwise_gradient(law, samples=100_000):
    """One-sample pathwise gradients of E[f(z)]: (samples, number of parameters)."""
    theta = [torch.full((samples,), value, dtype=torch.float64, requires_grad=True) for value in law.theta]
    z = law.transform(law.noise(samples), *theta)
    return torch.stack(torch.autograd.grad(law.f(z).sum(), theta), dim=-1)


# %%
def show_laws(family, axes):
    """Histogram of transformed noise against the density of the reference, one panel a law."""
    for ax, (name, law) in zip(axes, family.items(), strict=False):
        z, reference = law.transform(law.noise(20_000), *law.theta).numpy(), law.reference(*law.theta)
        low, high = reference.ppf([0.004, 0.985]) if reference.a > -np.inf else reference.ppf([0.01, 0.99])
        edges = np.linspace(max(low - 0.05 * (high - low), reference.a), high, 41)
        counts, _ = np.histogram(z, edges)
        ax.stairs(counts / (len(z) * np.diff(edges)), edges, fill=True, color=COLORS["encoder"], alpha=0.4)
        x = np.linspace(edges[0], high, 300)[1:]
        ax.plot(x, reference.pdf(x), color=COLORS["exact"], linewidth=1.5)
        ax.set(title=name, yticks=[], xlabel="z", ylim=(0, None))


# %% [markdown]
# ### Family 1: tractable inverse CDF
#
# Let $F$ be the distribution function of $z$, increasing from 0 to 1. If $\epsilon$ is uniform on $(0, 1)$, then $z = F^{-1}(\epsilon)$ has the distribution function $F$, because $P(F^{-1}(\epsilon) \le t) = P(\epsilon \le F(t)) = F(t)$. So whenever the equation $F(z) = \epsilon$ can be solved for $z$, we are done. The exponential, as the pattern: $1 - e^{-\lambda z} = \epsilon$ gives $z = -\ln(1 - \epsilon)/\lambda$, and $\partial z/\partial\lambda = -z/\lambda$ comes from autograd. (`log1p(-u)` is $\ln(1-u)$ without loss of digits for small $u$.)
#
# The paper lists ten. Two deserve a word.
# - **Cauchy** has no mean, so the gradient of $\mathbb E[z]$ does not exist. We test the bounded $f(z) = 1/(1 + z^2)$ in its place.
# - **Erlang**, the sum of $k$ exponentials, has no inverse in elementary functions: its distribution function is a regularised incomplete gamma function. But numerical routines for its inverse exist. And for the gradient nothing more is needed: $k$ is a count and has no derivative, and the rate only rescales, $z = F_k^{-1}(\epsilon)/\lambda$. So the difficult function is computed without any gradient.

# %% tags=["library"]
INVERSE_CDF = {
    "Exponential": Law(uniform, lambda u, rate: -torch.log1p(-u) / rate, (1.5,), lambda r: stats.expon(scale=1 / r)),
    "Cauchy": Law(uniform, lambda u, m, s: m + s * torch.tan(math.pi * (u - 0.5)), (0.5, 0.8), stats.cauchy, lambda z: 1 / (1 + z**2)),
    "Logistic": Law(uniform, lambda u, m, s: m + s * torch.logit(u), (1.0, 0.7), stats.logistic, lambda z: z**2),
    "Rayleigh": Law(uniform, lambda u, s: s * (-2 * torch.log1p(-u)).sqrt(), (1.3,), lambda s: stats.rayleigh(scale=s)),
    "Pareto": Law(uniform, lambda u, low, a: low * (1 - u) ** (-1 / a), (1.0, 5.0), lambda low, a: stats.pareto(a, scale=low)),
    "Weibull": Law(uniform, lambda u, s, k: s * (-torch.log1p(-u)) ** (1 / k), (1.2, 1.8), lambda s, k: stats.weibull_min(k, scale=s)),
    "Reciprocal": Law(uniform, lambda u, a, b: a * (b / a) ** u, (0.5, 4.0), stats.loguniform),
    "Gompertz": Law(uniform, lambda u, c, b: torch.log1p(-torch.log1p(-u) / c) / b, (0.3, 1.4), lambda c, b: stats.gompertz(c, scale=1 / b)),
    "Gumbel": Law(uniform, lambda u, m, s: m - s * torch.log(-torch.log(u)), (0.5, 1.2), stats.gumbel_r),
    "Erlang (k = 3)": Law(uniform, lambda u, rate: torch.from_numpy(special.gammaincinv(3, u.numpy())) / rate, (1.5,), lambda r: stats.erlang(3, scale=1 / r)),
}

# %%
figure, axes = plt.subplots(2, 5, figsize=(13.5, 5))
show_laws(INVERSE_CDF, axes.flat)
figure.suptitle("Family 1, inverse CDF: transformed uniform noise (blue) against the density (black)")
plt.show()

# %% [markdown]
# *What to see.* Ten shapes from one uniform number. Skewed, heavy-tailed, bounded: all the character of a distribution sits in its transformation.
#
# For this family there is a sharper test than statistics. $F(g(u)) = u$ must hold for every $u$, to rounding:

# %%
u = torch.linspace(0.001, 0.999, 999)
for name, law in INVERSE_CDF.items():
    z = law.transform(u, *law.theta)
    back = torch.from_numpy(law.reference(*law.theta).cdf(z.numpy()))
    print(f"{name:15s} CDF(g(u)) = u to 1e-12: {bool((back - u).abs().max() < 1e-12)}")

# %% [markdown]
# ### Family 2: location–scale
#
# If the parameters only shift and stretch a fixed shape, then $z = \text{location} + \text{scale} \cdot \epsilon$ with noise from the *standard* member, the one with location 0 and scale 1. The transformation is always the same line of code. And the noise may come from any sampler whatsoever, since no gradient flows into it. So the table holds samplers:
#
# - **Laplace**: the difference of two exponentials;
# - **Student's t** with $\nu$ degrees of freedom: a Gaussian over the root of an independent $\chi^2_\nu/\nu$ (here $\nu = 8$, so that the gradient of $\mathbb E[z^2]$ has a small variance);
# - **Logistic**, in this family too: the logit of a uniform;
# - **Uniform** with its centre and half-width; **Triangular**: the sum of two uniforms;
# - **Gaussian**: the paper's $z = \mu + \sigma\epsilon$.
#
# We test with $f(z) = z^2$; the derivative of $\mathbb E[z]$ with respect to the scale would be zero for all of these symmetric shapes.


# %% tags=["library"]
def standard_t(n, df=8):
    """Student's t noise from df + 1 Gaussians."""
    return normal(n) / (normal(n, df).square().sum(-1) / df).sqrt()


def location_scale(noise, theta, reference):
    """The row of a location-scale family; only the noise differs."""
    return Law(noise, lambda eps, loc, scale: loc + scale * eps, theta, reference, lambda z: z**2)


LOCATION_SCALE = {
    "Laplace": location_scale(lambda n: torch.log(uniform(n)) - torch.log(uniform(n)), (0.5, 0.8), stats.laplace),
    "Student's t (ν = 8)": location_scale(standard_t, (0.5, 0.8), lambda m, s: stats.t(8, m, s)),
    "Logistic": location_scale(lambda n: torch.logit(uniform(n)), (1.0, 0.7), stats.logistic),
    "Uniform": location_scale(lambda n: 2 * uniform(n) - 1, (1.0, 0.7), lambda m, s: stats.uniform(m - s, 2 * s)),
    "Triangular": location_scale(lambda n: uniform(n) + uniform(n) - 1, (1.0, 0.7), lambda m, s: stats.triang(0.5, m - s, 2 * s)),
    "Gaussian": location_scale(normal, (0.5, 1.2), stats.norm),
}

# %% [markdown]
# **Elliptical** distributions are the same recipe for vectors: $z = \mu + A\epsilon$ with a *spherical* noise $\epsilon$, whose density depends on its length only. The contours of $z$ are ellipses of shape $\Sigma = A A^\top$; a Cholesky factor is the usual choice for $A$. A correlated Gaussian is one example. We take a multivariate Student's t, where all coordinates share one denominator. To judge it: the squared Mahalanobis radius $(z-\mu)^\top \Sigma^{-1} (z-\mu)$, divided by $d$, has an $F(d, \nu)$ distribution.

# %% tags=["library"]
ELLIPSE_LOC = torch.tensor([1.0, -0.5], dtype=torch.float64)
ELLIPSE_FACTOR = torch.tensor([[1.2, 0.0], [0.9, 0.5]], dtype=torch.float64)  # Cholesky factor of Σ


def elliptical(samples, loc, factor, df=8):
    """Multivariate Student's t: z = loc + factor · ε, ε spherical; (samples, d)."""
    chi2 = normal(samples, df).square().sum(-1, keepdim=True)
    spherical = normal(samples, len(loc)) / (chi2 / df).sqrt()
    return loc + spherical @ factor.T


def mahalanobis(z, loc, factor):
    """(z − loc)ᵀ Σ⁻¹ (z − loc) for Σ = factor · factorᵀ: (samples,)."""
    return torch.linalg.solve_triangular(factor, (z - loc).T, upper=False).square().sum(0)


# %%
figure, axes = plt.subplots(2, 4, figsize=(13.5, 5.6))
show_laws(LOCATION_SCALE, axes.flat)
z = elliptical(20_000, ELLIPSE_LOC, ELLIPSE_FACTOR)
angle = torch.linspace(0, 2 * math.pi, 200)
circle = torch.stack([angle.cos(), angle.sin()], -1)
axes[1, 2].plot(*z[:2000].T, ".", color=COLORS["encoder"], alpha=0.3, markersize=3)
for radius in (1, 2.5):
    axes[1, 2].plot(*(ELLIPSE_LOC + radius * circle @ ELLIPSE_FACTOR.T).T, color=COLORS["exact"], linewidth=1.5)
axes[1, 2].set(title="Elliptical (multivariate t)", xlabel="$z_1$", ylabel="$z_2$", xlim=(-4, 6), ylim=(-5, 4))
radius_law = stats.f(2, 8)
edges = np.linspace(0, 6, 41)
counts, _ = np.histogram(mahalanobis(z, ELLIPSE_LOC, ELLIPSE_FACTOR) / 2, edges)
axes[1, 3].stairs(counts / (len(z) * np.diff(edges)), edges, fill=True, color=COLORS["encoder"], alpha=0.4)
axes[1, 3].plot(edges, radius_law.pdf(edges), color=COLORS["exact"], linewidth=1.5)
axes[1, 3].set(title="its squared radius / 2 is F(2, 8)", xlabel="squared Mahalanobis radius / 2", yticks=[], xlim=(0, 6))
figure.suptitle("Family 2, location–scale: shift and stretch a standard shape")
plt.show()

# %% [markdown]
# *What to see.* Six shapes with one transformation. In the seventh the matrix turns a round cloud into a tilted one. The last panel is the test of the cloud: its radii have the distribution that theory wants.

# %% [markdown]
# ### Family 3: composition
#
# Build new variables from old ones.
#
# - **Log-Normal**: the exponential of a Gaussian.
# - **Gamma** with a whole number $k$ as its shape: the sum of $k$ exponentials. It is the Erlang distribution again, now by composition.
# - **Chi-squared**, **Beta**, **Dirichlet**, **F**: ratios and sums of Gammas. $\chi^2_\nu$ is twice a Gamma of shape $\nu/2$. Beta is $G_a/(G_a + G_b)$. A Dirichlet vector is a vector of Gammas *divided by its sum* (the paper says "weighted sum", but it is this normalisation that is needed). F is a ratio of two scaled $\chi^2$.
#
# There is a catch. A sum of $k$ exponentials can be differentiated in its rate, but not in $k$. For Beta, Dirichlet, $\chi^2$ and F, *all* parameters are shapes. To learn them we need a Gamma that is differentiable in a real-valued shape $\alpha$, and its inverse CDF has no formula.
#
# **Implicit reparameterisation** (Figurnov et al., 2018) needs no formula. The path $z(\alpha)$ for a fixed $u$ is defined by $F(z; \alpha) = u$. Differentiate that equation in $\alpha$: $\ \partial F/\partial\alpha + p(z; \alpha)\, dz/d\alpha = 0$, so
#
# $$\frac{dz}{d\alpha} = -\frac{\partial F(z; \alpha)/\partial\alpha}{p(z; \alpha)} .$$
#
# Only the distribution function and the density are needed, never the inverse's derivative. In code: the forward pass inverts numerically, the backward pass applies the formula, with a central difference for $\partial F/\partial\alpha$.


# %% tags=["library"]
class GammaQuantile(torch.autograd.Function):
    """z with F(z; α) = u for the standard Gamma, differentiable in α by the implicit formula."""

    @staticmethod
    def forward(ctx, u, shape):
        z = torch.from_numpy(special.gammaincinv(shape.detach().numpy(), u.numpy()))
        ctx.save_for_backward(z, shape)
        return z

    @staticmethod
    def backward(ctx, grad):
        z, shape = (tensor.numpy() for tensor in ctx.saved_tensors)
        step = 1e-5 * shape
        slope = (special.gammainc(shape + step, z) - special.gammainc(shape - step, z)) / (2 * step)
        density = np.exp(special.xlogy(shape - 1, z) - z - special.gammaln(shape))
        return None, grad * torch.from_numpy(-slope / density)


def standard_gamma(u, shape):
    """Gamma(α, 1) from uniform noise u; any α > 0, with a gradient in α."""
    shape = torch.as_tensor(shape, dtype=torch.float64).expand(u.shape)
    return GammaQuantile.apply(u, shape)


# %% [markdown]
# (A warning about `special.gammainc`: SciPy calls the *distribution function* of the Gamma by the name of the regularised incomplete gamma function. `torch.distributions.Gamma.rsample` uses the same implicit idea with fast approximations.)
#
# With this one brick the rest are one-liners. A Dirichlet sample is a vector; the table follows its first component, which is Beta($\alpha_1$, $\alpha_2 + \alpha_3$) distributed.


# %% tags=["library"]
def beta(u, a, b):
    """Beta(a, b) = G_a / (G_a + G_b), from noise u (n, 2)."""
    first, second = standard_gamma(u[:, 0], a), standard_gamma(u[:, 1], b)
    return first / (first + second)


def chi_squared(u, df):
    """Chi-squared: twice a Gamma of shape df/2."""
    return 2 * standard_gamma(u, df / 2)


def dirichlet(u, *concentration):
    """Dirichlet vectors (n, k) from noise u (n, k): Gammas divided by their sum."""
    gammas = torch.stack([standard_gamma(u[:, i], a) for i, a in enumerate(concentration)], -1)
    return gammas / gammas.sum(-1, keepdim=True)


def fisher_f(u, d1, d2):
    """F(d1, d2): the ratio of two chi-squared variables, each over its degrees of freedom."""
    return (chi_squared(u[:, 0], d1) / d1) / (chi_squared(u[:, 1], d2) / d2)


# %% tags=["library"]
COMPOSITION = {
    "Log-Normal": Law(normal, lambda eps, m, s: torch.exp(m + s * eps), (0.2, 0.5), lambda m, s: stats.lognorm(s, scale=math.exp(m))),
    "Gamma: sum of 3 exponentials": Law(lambda n: uniform(n, 3), lambda u, rate: -u.log().sum(-1) / rate, (1.5,), lambda r: stats.gamma(3, scale=1 / r)),
    "Gamma, real shape": Law(uniform, lambda u, a, rate: standard_gamma(u, a) / rate, (2.3, 1.5), lambda a, r: stats.gamma(a, scale=1 / r)),
    "Dirichlet, first component": Law(lambda n: uniform(n, 3), lambda u, *a: dirichlet(u, *a)[:, 0], (1.5, 2.0, 0.8), lambda a, b, c: stats.beta(a, b + c)),
    "Beta": Law(lambda n: uniform(n, 2), beta, (2.5, 1.3), stats.beta),
    "Chi-squared": Law(uniform, chi_squared, (4.5,), stats.chi2),
    "F": Law(lambda n: uniform(n, 2), fisher_f, (5.0, 12.0), stats.f),
}

# %%
figure, axes = plt.subplots(2, 4, figsize=(13.5, 5.6))
show_laws(COMPOSITION, axes.flat)
points = dirichlet(uniform(1500, 3), 1.5, 2.0, 0.8)
corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
axes[1, 3].fill(*corners.T, facecolor="none", edgecolor=COLORS["exact"], linewidth=1.5)
axes[1, 3].plot(*(points @ corners).T, ".", color=COLORS["encoder"], alpha=0.4, markersize=3)
axes[1, 3].set(title="Dirichlet(1.5, 2, 0.8) on its triangle", xticks=[], yticks=[], aspect="equal")
axes[1, 3].spines[["left", "bottom"]].set_visible(False)
figure.suptitle("Family 3, composition: functions of variables that we already have")
plt.show()

# %% [markdown]
# *What to see.* Every histogram follows its density. In the triangle each corner stands for one component that takes everything; points crowd along the side where the third component, of concentration 0.8, is close to zero.
#
# Now both tests on all rows of all three tables. For each parameter the second shows the mean pathwise gradient, the exact one, and their distance in standard errors.

# %% tags=["nbval-ignore-output"]
LAWS = [(f"{number}", name, law) for number, family in enumerate((INVERSE_CDF, LOCATION_SCALE, COMPOSITION), 1) for name, law in family.items()]
largest_distance = largest_error = 0.0
for family, name, law in LAWS:
    gradients, exact_values = pathwise_gradient(law), torch.tensor(exact_gradient(law))
    mean, error = gradients.mean(0), gradients.std(0) / len(gradients) ** 0.5
    errors, distance = (mean - exact_values).abs() / error, ks_distance(law)
    largest_distance, largest_error = max(largest_distance, distance), max(largest_error, float(errors.max()))
    pairs = "   ".join(f"{m:7.3f} ({e:7.3f})" for m, e in zip(mean.tolist(), exact_values.tolist(), strict=True))
    print(f"{family} {name:29s} √n D {distance:.2f}   gradients (exact) {pairs}   off by at most {errors.max():.1f} s.e.")

# %% [markdown]
# ## 10. What cannot be reparameterised
#
# **Discrete variables.** A coin $z \in \{0, 1\}$ with probability $\pi$ can be written as a function of noise, $z = 1[\epsilon < \pi]$. But this function is a step. Its derivative is zero wherever it exists, so the pathwise gradient is zero, while the true one is $f(1) - f(0)$. The derivation of section 3 needs a path $g_\phi(\epsilon)$ that is continuous in $\phi$ (and an $f$ that is, too). A jump that moves when $\phi$ moves is invisible to it.
#
# What to do then:
# - **sum** over all values, if they are few;
# - **the score function** with a good baseline: unbiased for anything with a density or a probability;
# - **relax**: replace the step by a steep sigmoid. With a logistic variable from family 1, $z_\tau = \operatorname{sigmoid}\big((\operatorname{logit}\pi + \operatorname{logit}\epsilon)/\tau\big)$ tends to the coin as the temperature $\tau \to 0$. For more than two values the noise is Gumbel, also from family 1: hence *Gumbel-softmax* or *Concrete*. The gradient is the right one of the *wrong* problem, so it is biased for the coin;
# - **combine** both: the relaxation as a baseline for the score function (REBAR, RELAX), unbiased again.
#
# The trade is easy to measure for $f(z) = (z - 0.4)^2$ and $\pi = 0.5$, where the exact gradient is $0.6^2 - 0.4^2 = 0.2$.

# %%
temperatures = torch.logspace(-2, 1, 25)
probability = torch.full((25, 20_000), 0.5, requires_grad=True)
soft = torch.sigmoid((torch.logit(probability) + torch.logit(uniform(25, 20_000))) / temperatures[:, None])
(relaxed,) = torch.autograd.grad((soft - 0.4).square().sum(), probability)  # (temperatures, samples)
coin = (uniform(20_000) < 0.5).double()
coin_score = ((coin - 0.4).square() * (coin - 0.5) / 0.25).var()  # variance, no baseline

figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
error = 2 * relaxed.std(1) / 20_000**0.5
axes[0].errorbar(temperatures, relaxed.mean(1), error, fmt="o-", color=COLOR["pathwise"], label="relaxed, mean ± 2 s.e.")
axes[0].axhline(0.2, color=COLORS["exact"], linestyle="--", label="exact, and score function")
axes[0].axhline(0, color="#999999", linestyle=":", label="pathwise through the step")
axes[0].set(xscale="log", xlabel="temperature τ", ylabel="mean of the gradient in π", title="cold: little bias …")
axes[0].legend(fontsize=10, loc="lower left")
axes[1].plot(temperatures, relaxed.var(1), "o-", color=COLOR["pathwise"], label="relaxed")
axes[1].axhline(coin_score, color=COLOR["score"], label="score function, no baseline")
axes[1].set(xscale="log", yscale="log", xlabel="temperature τ", ylabel="variance of the gradient", title="… but much variance")
axes[1].legend(fontsize=10)
plt.show()

# %% [markdown]
# *What to see.* Left: warm relaxations answer another question; below a temperature of about a tenth the bias is small. Right: cold ones have a steep sigmoid, and the variance grows like $1/\tau$, as in our warning with $\sin\omega z$. There is no temperature with neither. For the continuous latents of this course we are spared the choice.

# %% [markdown]
# ## Claims
#
# What this notebook has shown, checked with margins.
#
# **1. Same mean.** Both gradients are unbiased.

# %%
same = all(within_standard_errors(part, 2.0) for pair in quadratic_samples.values() for part in pair)
assert same
print("quadratic, 1 and 32 dimensions: score, score + baseline and pathwise have the exact mean:", same)

average = {name: samples.mean(1) for name, samples in bound_samples.items()}  # over the images
same = all(within_standard_errors(samples, exact.mean(0)) for samples in average.values())
assert same
print("a real VAE bound: all three means equal the gradient by quadrature, to 5 standard errors:", same)

# %% [markdown]
# **2. Not the same variance.** The ratio grows with the dimension. The margins are about half of the exact values.

# %%
variance = {key: float(pair[0].var(0).mean()) for key, pair in quadratic_samples.items()}
plain = variance["score", 32] / variance["pathwise", 32]
centred = variance["score + baseline", 32] / variance["pathwise", 32]
assert plain > 500 and centred > 25
print(f"32 dimensions: score / pathwise variance above 500: {plain > 500}; with a baseline above 25: {centred > 25}")

grows = variance["score", 32] / variance["score", 1] > 50 and 0.8 < variance["pathwise", 32] / variance["pathwise", 1] < 1.25
assert grows
print("from 1 to 32 dimensions the score variance grows more than 50-fold, the pathwise one does not:", grows)

median = float((total["score"] / total["pathwise"]).median())
assert median > 100
print("real VAE, median image: score variance more than 100 times the pathwise one:", median > 100)

order = races["pathwise"][-1] > races["score + baseline"][-1] > races["score"][-1]
assert order
print("race at equal samples: pathwise above score + baseline above score:", order)

# %% [markdown]
# **3. SGVB A and B.** For gradients in the means, B's variance is never above A's for a concave likelihood, by exactly $\sigma^2(1 + 2\mathbb E[H])$, and on average over images not for the real decoder either. For the value of the bound, the order depends on where $q$ is.

# %%
predicted = (posterior_scale * ratios) ** 2 * (1 + 2 / S**2)  # H = 1/s² for this likelihood
exactly = torch.allclose(toy["A"][1] - toy["B"][1], predicted, rtol=1e-9)
assert exactly
print("exact model: Var A − Var B of the mean gradient = σ²(1 + 2H):", exactly)

narrow, at = int((ratios - 0.2).abs().argmin()), torch.tensor([posterior_scale])
value_A, value_B = (float(toy_variances(name, at)[0]) for name in ("A", "B"))
switches = bool(toy["B"][0][narrow] < 0.9 * toy["A"][0][narrow]) and value_A < 1e-9 < 0.1 < value_B
assert switches
print("value of the bound: B below A for a narrow q; A zero and B not at the posterior:", switches)

quieter = {stage: [float(b.mean() / a.mean()) for a, b in zip(sgvb_variance[stage, "A"], sgvb_variance[stage, "B"], strict=True)] for stage in ("untrained", "trained")}
assert quieter["untrained"][1] < 0.9 and quieter["untrained"][2] < 0.9 and quieter["trained"][1] < 1
print("real VAE: gradient variance of B at most 0.9 of A's before training; in the means below A's after:", True)
assert quieter["trained"][0] > 1.1
print("real VAE, trained: for the value of the bound it is A that is quieter, by more than 10 %:", True)

# %% [markdown]
# **4. Minibatches.** Equation 8 is unbiased, its variance is the one predicted, and draws are better spent on images than on noise.

# %%
estimates = minibatch_estimates(100, 1)
unbiased = within_standard_errors(estimates[:, None], bounds.mean(1).sum())
ratio = float(estimates.var() / minibatch_variance(100, 1))
assert unbiased and abs(ratio - 1) < 0.15
print(f"eq. 8 with M = 100, L = 1: unbiased: {unbiased}; variance as predicted, to 15 %: {abs(ratio - 1) < 0.15}")

gain = float(minibatch_variance(100, 1) / minibatch_variance(100, 10))
dearer = [float(gradient_noise[budget] / gradient_noise[100, 1]) for budget in BUDGETS[1:]]
assert gain < 1.5 and dearer[0] > 2 and dearer[1] > 10
print("ten draws in place of one lower the variance of the bound by less than a third:", gain < 1.5)
print("100 decodings as 10 × 10 or 1 × 100 give a gradient more than 2 or 10 times as noisy:", True)

# %% [markdown]
# **5. Every distribution that the paper names** passes both tests.

# %%
judged = largest_distance < 2.5 and largest_error < 5
assert len(LAWS) == 23 and judged
print(f"{len(LAWS)} transformations: samples follow the density and gradients the exact derivative:", judged)

ellipse = elliptical(20_000, ELLIPSE_LOC, ELLIPSE_FACTOR)
distance = 20_000**0.5 * stats.kstest((mahalanobis(ellipse, ELLIPSE_LOC, ELLIPSE_FACTOR) / 2).numpy(), stats.f(2, 8).cdf).statistic
assert distance < 2.5
print("elliptical: the squared Mahalanobis radius follows its F distribution:", bool(distance < 2.5))

# %% [markdown]
# ## Exercises
#
# From easy to hard. Replace each `...`; the cell then says whether yours is right. Solutions with explanations are in `notebooks/solutions/02_reparameterize_the_gradient.py`.


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
# **1. A new row for family 1.** The Kumaraswamy distribution lives on $(0, 1)$ like the Beta, but its distribution function has a formula: $F(z) = 1 - (1 - z^a)^b$. Solve $F(z) = u$ for $z$. Evaluate your transformation for $a = 2$, $b = 3$ at the three values of $u$ below.

# %%
u = torch.tensor([0.1, 0.5, 0.9])
kumaraswamy = ...  # your answer, from u, a = 2 and b = 3: a tensor (3,)

check(kumaraswamy, torch.tensor([0.185740908, 0.454202020, 0.731994215]))

# %% [markdown]
# **2. Unequal batches.** A data set of 250 images is visited in batches of 100, 100 and 50. Below are the bounds of all images. You want three numbers, one a batch, whose sum is the bound of the whole data set, $\sum_i \mathcal L(x^{(i)})$, *exactly*. Someone multiplies the mean of each batch by $250/3$. Why is that wrong? Give the three right numbers.

# %%
generator = torch.Generator().manual_seed(0)
image_bounds = -100 + 10 * torch.randn(250, generator=generator) - torch.arange(250) / 5
batches = image_bounds.split(100)  # 100, 100 and 50 images
shares = ...  # your answer: a tensor (3,) made from the mean of each batch

check(shares, torch.stack([batch.sum() for batch in batches]))

# %% [markdown]
# **3. Leave one out.** Given $f(z^{(l)})$ for five draws, compute what remains of each after the mean of the *other four* is subtracted, without a loop. Why would the mean of *all five* make the estimator biased, and by which factor?

# %%
f_draws = torch.tensor([-151.0, -149.0, -163.0, -148.0, -150.0])
remainders = ...  # your answer: a tensor (5,)

check(remainders, torch.stack([f_draws[l] - f_draws[torch.arange(5) != l].mean() for l in range(5)]))

# %% [markdown]
# **4. The best constant baseline.** Show that the variance of $(f - b)\,s$, with $s$ the score of $\mu_1$, is least for $b^\star = \mathbb E[f s^2]/\mathbb E[s^2]$, which is *not* $\mathbb E[f]$. Compute $b^\star$ for $f = \lVert z\rVert^2$ in $d = 32$ dimensions at $\mu = \sigma = 1$. (You need $\mathbb E[\epsilon^2] = 1$ and $\mathbb E[\epsilon^4] = 3$.) How much variance does it save over $b = \mathbb E[f]$?

# %%
best_baseline = ...  # your answer: a number

# The variance is a parabola in b: its vertex follows from three of its values.
below, middle, above = (score_variance(32, baseline=b) for b in (-1.0, 0.0, 1.0))
check(best_baseline, torch.tensor((below - above) / (2 * (above + below - 2 * middle))))

# %% [markdown]
# **5. Stick the landing.** In the model of section 7 with $x = 2$, let $q$ be the exact posterior. Write the bound of estimator A for the noise below, with the parameters *inside* $\log q$ held fixed, and take its gradient in the mean, one for each noise value. What is it, and why is this good news for the end of training and no reason to stop using B at its start?

# %%
epsilon = torch.tensor([[-1.3], [0.2], [0.9]])  # (3, 1)
mean = torch.full((3, 1), posterior_loc, requires_grad=True)
width = torch.full((3, 1), posterior_scale)
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
# - C. Maddison, A. Mnih and Y. W. Teh (2017). *The Concrete Distribution.* ICLR, arXiv:1611.00712.
# - G. Tucker, A. Mnih, C. Maddison, D. Lawson and J. Sohl-Dickstein (2017). *REBAR: Low-Variance, Unbiased Gradient Estimates for Discrete Latent Variable Models.* NeurIPS, arXiv:1703.07370.
