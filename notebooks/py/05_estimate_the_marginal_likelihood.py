# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · Estimate the marginal likelihood
#
# **What you will do.** You compute the number that the bound only bounds: $\log p(x)$. You build Hamiltonian Monte Carlo in a dozen lines and watch it roll through the posterior of a digit. You derive two estimators of $\log p(x)$, one too low and one too high on average, and test both where the answer is known. Then you use them as referees between three ways of learning: AEVB, wake-sleep, and Monte Carlo EM, which has no bound at all. That is figure 3 of the paper.
#
# **What you will learn.**
# - how a physical simulation draws samples from a posterior, what its step size does, and how it can stand still while every proposal is accepted;
# - why $1/p(x)$ is an average over the posterior, and what that is good for (appendix D);
# - how importance sampling turns an encoder into a ladder of bounds, and what a poor encoder costs;
# - how the estimators fail: with the dimension, and with chains that sit in the wrong place;
# - what Monte Carlo EM is (appendix E), why it fits a small data set so well, and why it is not an on-line method.
#
# **What you need.** The bound (notebook 01), a trained VAE (notebook 03), and the idea of wake-sleep (notebook 04). From physics: that a ball rolling without friction keeps its energy. One word: a **chain** (in full, a Markov chain) is a sequence in which each sample is made from the one before, with fresh random numbers and from nothing else. This notebook covers section 5 of Kingma & Welling (2013), *Auto-Encoding Variational Bayes*, and its appendices D and E.

# %%
import copy
import json
import math
import os
import time

import matplotlib.pyplot as plt
import torch
from IPython.display import Image, display
from torch import nn
from torch.distributions import MultivariateNormal

from vaelib import VAE, data, fit, scale
from vaelib.decoders import BernoulliMLP
from vaelib.distributions import DiagNormal
from vaelib.encoders import MLPEncoder
from vaelib.inference import hmc
from vaelib.inference.likelihood import appendix_d, importance_sampled, log_joint
from vaelib.inference.linear_vae import PPCA
from vaelib.networks import init_normal_
from vaelib.priors import StandardNormal
from vaelib.teaching import plotting, scaling
from vaelib.teaching.plotting import COLORS
from vaelib.training.learning import aevb_step, mcem_step, wake_sleep_step

SEED = 0  # the claims at the end held for every seed that we tried: try another
torch.set_default_dtype(torch.float64)  # we will compare with exact answers, to rounding
torch.set_num_threads(1)  # for networks this small, sharing the work costs more than doing it

# %% [markdown]
# ## 1. What the bound leaves open
#
# Notebook 01 ended with an identity:
#
# $$\log p(x) = \mathcal L(x) + \mathrm{KL}\big(q(z|x)\,\|\,p(z|x)\big).$$
#
# We train and compare models by $\mathcal L$. But two models with the same bound need not be equally good. One may have a better decoder and a worse encoder. And some methods have no bound. Monte Carlo EM, the third runner of this notebook, learns a decoder *without any encoder*. The only fair question to all of them is: how probable do you think the test data are? We need $\log p(x)$ itself, the **marginal likelihood**.
#
# $$p(x) = \int p(x|z)\,p(z)\,dz .$$
#
# With one or two latents the integral is a sum over a grid. With ten it is out of reach: a grid of 100 points a side would have $100^{10}$ of them. So we start with two latents, where we can *see* the truth, and build there what we shall use elsewhere.
#
# To keep everything quick, the digits of sections 1 to 5 are small: $14 \times 14$ pixels, each the mean of four, made black or white. We train a VAE with two latents on them.


# %%
def small(images):
    """14 × 14 black and white digits: four pixels become one."""
    return data.binarize(data.downsample(images))


def new_vae(latents, shape=(1, 14, 14)):
    """A VAE with 100 hidden units in encoder and decoder."""
    encoder, decoder = MLPEncoder(latents, shape, 100), BernoulliMLP(latents, shape, 100)
    return VAE(encoder, StandardNormal(latents), decoder)


torch.manual_seed(SEED)
digits = data.mnist()
train, test = small(digits.train), small(digits.test)
x50, flat = test[:50].double(), new_vae(latents=2)  # the model of sections 1 to 4
adam = torch.optim.Adam(flat.parameters(), lr=3e-3)
fit(flat, train.double(), epochs=12, optimizer=adam, seed=SEED, progress=False)
print("images:", tuple(x50.shape), "| latents:", tuple(flat.encoder(x50).event_shape))

# %% [markdown]
# Now the grid. For black and white pixels, $\log p(x|z) = \sum_i x_i\, a_i(z) - \operatorname{softplus}(a_i(z))$, where $a_i$ are the logits of the decoder. The first term is a matrix product, so we can have *all* images at *all* grid points at once. Adding $\log p(z)$ gives $\log p(x, z)$. Its sum over the grid, times the area of a cell, is $p(x)$. Dividing by $p(x)$ gives the posterior $p(z|x)$.


# %%
@torch.no_grad()
def log_joint_on(points, vae, x):
    """log p(x, z) at all points (G, latents) for all images x (B, 1, H, W): (G, B) nats."""
    logits = vae.decoder(points).logits.flatten(1)  # (G, pixels)
    fits = logits @ x.flatten(1).T - nn.functional.softplus(logits).sum(1, keepdim=True)
    return fits + vae.prior().log_prob(points)[:, None]


def grid(latents, side, reach=5.0):
    """A grid over [−reach, reach]^latents, (side^latents, latents), and the log of a cell."""
    axis = torch.linspace(-reach, reach, side)
    return torch.cartesian_prod(*[axis] * latents), latents * math.log(2 * reach / (side - 1))


plane, log_cell = grid(latents=2, side=151)
joint50 = log_joint_on(plane, flat, x50)  # (151², 50)
exact50 = joint50.logsumexp(0) + log_cell  # log p(x), (50,)

# %% [markdown]
# How far is the encoder off? The gap $\log p(x) - \mathcal L(x)$ is a divergence, in nats, and on the grid that too is a sum. We draw the posterior of three digits: those with the smallest, the middle and the largest gap of fifty.


# %%
def label(ax, title, x, y, **more):
    ax.set(title=title, xlabel=x, ylabel=y, **more)


def draw_posterior(ax, i, title=None):
    """Contours of p(z|x) of image i, from the grid, the axes close around it."""
    density = (joint50[:, i] - exact50[i]).exp()
    axis, near = plane[:151, 1], plane[density > 1e-2 * density.max()]
    shape = density.reshape(151, 151).T
    ax.contour(axis, axis, shape, 7, colors=COLORS["exact"], linewidths=1)
    (left, low), (right, high) = near.min(0).values - 0.3, near.max(0).values + 0.3
    label(ax, title, "$z_1$", "$z_2$", xlim=(left, right), ylim=(low, high))


log_q = flat.encoder(x50).log_prob(plane[:, None]).detach()  # (151², 50)
gap50 = (log_q.exp() * (log_q - joint50 + exact50)).sum(0) * math.exp(log_cell)  # KL(q ‖ p)
order = gap50.argsort()

# %%
plotting.use_style()
SHADES = ["#332288", "#44AA99", "#DDCC77", "#CC6677"]  # for four sizes of one thing
angle = torch.linspace(0, 2 * math.pi, 60)
circle = torch.stack([angle.cos(), angle.sin()], 1)
chosen = order[[0, 25, 49]].tolist()
figure, axes = plt.subplots(1, 3, figsize=(12, 3.9))
for ax, i, name in zip(axes, chosen, ("smallest", "middle", "largest"), strict=True):
    draw_posterior(ax, i, f"{name} gap: {gap50[i]:.2f} nats")
    q = flat.encoder(x50[i : i + 1])
    for radius in (1, 2):
        ring = (q.loc + radius * q.scale * circle).detach()
        ax.plot(*ring.T, color=COLORS["encoder"], linewidth=1.5)
    plotting.show_images(x50[i : i + 1], ax=ax.inset_axes([0.02, 0.74, 0.24, 0.24]))
plt.show()

# %% [markdown]
# *What to see.* Black: contours of the true posterior. Blue: one and two standard deviations of the encoder's Gaussian. On the left the two agree. On the right they do not: the posterior is slanted or skewed, or the encoder, one network for all images, points beside it. A Gaussian whose axes are those of the coordinate system cannot follow a slant, whatever its parameters.
#
# So the bound is low by the gap, and by a different gap for each image. Could we draw from the black contours *without* a grid? All we have is $\log p(x, z)$, which is the log posterior up to a constant, and its gradient. It turns out that this is enough.
#
# ## 2. Hamiltonian Monte Carlo
#
# **A ball in a bowl.** Turn the posterior upside down: $U(z) = -\log p(x, z)$ is a landscape, low where the posterior is high. Put a ball at $z$, give it a kick, and let it roll without friction. The kick is a momentum $r \sim \mathcal N(0, I)$. The total energy
#
# $$H(z, r) = \underbrace{-\log p(x, z)}_{\text{potential}} + \underbrace{\tfrac12 \lVert r \rVert^2}_{\text{kinetic}}$$
#
# stays the same while it rolls: what it loses in height it gains in speed. Where the ball is after a while becomes the next sample, and the next kick is drawn anew.
#
# **Why this draws from the posterior.** Look at position and momentum together, with the density $e^{-H(z, r)} \propto p(z|x)\,\mathcal N(r; 0, I)$. Rolling (1) keeps $H$, so it moves along points of equal density; (2) keeps volume, like an incompressible fluid, so it neither thins nor piles up the cloud of points; (3) can be run backwards by turning the momentum round. Together: a cloud with this density still has it after rolling. Drawing a new momentum keeps it too. And the part of $z$ in it is the posterior.
#
# **Why not just stumble about?** A random walk of small steps needs about $n^2$ steps to get $n$ steps away, and large random steps are nearly always refused in many dimensions. The ball follows the *shape* of the bowl, and arrives far away at a point that is as probable as its start.
#
# **The leapfrog.** A computer rolls in steps of size $\varepsilon$. Push the momentum for half a step along the slope, coast for a whole step, push for the other half:
#
# $$r \leftarrow r + \tfrac{\varepsilon}{2} \nabla \log p(x, z), \qquad z \leftarrow z + \varepsilon\, r, \qquad r \leftarrow r + \tfrac{\varepsilon}{2} \nabla \log p(x, z).$$
#
# Each of the three is a shear, and a shear keeps volume *exactly*. The whole is symmetric, so it is reversible *exactly*. Only the energy is off a little, by an amount of order $\varepsilon^2$. That one error is repaired by a toss of a coin, the rule of Metropolis and others (1953): accept the end point with probability $\min(1, e^{-\Delta H})$, else stay at the start. This keeps **detailed balance**: the flow from $a$ to $b$, $e^{-H(a)} \min(1, e^{H(a) - H(b)}) = \min(e^{-H(a)}, e^{-H(b)})$, is the same number as the flow from $b$ to $a$. So the posterior is left unchanged for *any* step size, and the chain ends in it if it gets everywhere; the step size decides how often we move, and how far.
#
# Each sample is made from the one before: a chain. Here is all of it. The last lines choose a posterior to try it on, that of the digit on the right of the picture above, and draw from it on the grid, for comparison.


# %%
def leapfrog_path(log_density, z, r, step_size, steps):
    """Positions and momenta after 0, 1, … steps: two tensors (steps + 1, *z.shape)."""

    def slope(z):
        z = z.detach().requires_grad_()
        return torch.autograd.grad(log_density(z).sum(), z)[0]

    path = [(z, r)]
    for _ in range(steps):
        r = r + step_size / 2 * slope(z)  # push for half a step
        z = z + step_size * r  # coast
        r = r + step_size / 2 * slope(z)  # push for the other half
        path.append((z, r))
    return [torch.stack(part) for part in zip(*path, strict=True)]


# %%
@torch.no_grad()
def energy(log_density, z, r):
    """H(z, r), nats."""
    return r.square().sum(-1) / 2 - log_density(z)


def hmc_by_hand(log_density, z, step_size, steps=10):
    """One step of Hamiltonian Monte Carlo for each chain z (chains, latents)."""
    zs, rs = leapfrog_path(log_density, z, torch.randn_like(z), step_size, steps)
    rise = energy(log_density, zs[-1], rs[-1]) - energy(log_density, z, rs[0])
    accepted = torch.rand_like(rise) < torch.exp(-rise)
    return torch.where(accepted[:, None], zs[-1], z)


hard = chosen[2]
target = log_joint(flat, x50[hard : hard + 1])  # z (chains, 2) to log p(x, z) (chains,)
weights = joint50[:, hard].softmax(0)  # the posterior of this image, on the grid
truth = plane[torch.multinomial(weights, 500, replacement=True)]  # 500 draws from it
width = truth.std(0).min().item()  # the narrower standard deviation of this posterior

# %% [markdown]
# Let it work. Three hundred chains start at draws from the *prior*, which know nothing of the image, over this posterior. We look at them at the start, after one trajectory and after thirty.

# %%
torch.manual_seed(SEED)
clouds = [torch.randn(300, 2)]
for _ in range(30):
    clouds.append(hmc_by_hand(target, clouds[-1], 0.5 * width))
figure, axes = plt.subplots(1, 3, figsize=(12, 3.9))
for ax, count in zip(axes, (0, 1, 30), strict=True):
    inset = ax.inset_axes([0.03, 0.03, 0.4, 0.4], xticks=[], yticks=[])
    for part in (ax, inset):  # the inset is a close view; contours lie over the dots
        draw_posterior(part, hard, None if part is inset else f"trajectories made: {count}")
        part.plot(*clouds[count].T, ".", color=COLORS["mcem"], markersize=5, zorder=1)
    inset.set(xlabel=None, ylabel=None)
    inset.spines[:].set_visible(True)
    ax.set(xlim=(-9, 9), ylim=(-9, 9))
    ax.indicate_inset_zoom(inset, edgecolor="black")
plt.show()

# %% [markdown]
# *What to see.* The dots are the chains, the contours the posterior; each inset is a close view of it. **Left:** almost no draw from the prior is anywhere near. **Middle:** after one trajectory hardly any has arrived. Most were thrown right through and out on the other side, many beyond the panel: a ball that is released high above the bowl arrives at the bottom with a great deal of speed, and nothing slows it down. Only a *new kick* can take energy away, for it replaces the momentum whatever it was. **Right:** after thirty kicks nearly all chains have arrived. Their cloud has the shape of the contours (inset), and keeps it. A few that were thrown far out are still on their way.
#
# The library's version in `vaelib.inference.hmc` does the same, with one gradient a step in place of two, tuning, and a report on what happened. (The claims at the end check that it rolls to the same place, and that a ball with its momentum turned round rolls back.) Now the trajectories themselves. Left: one start, four kicks, ten leapfrog steps each. Middle: one start and *one* kick, with step sizes from a tenth to a little more than twice the narrower width of the posterior. Right: how the energy changes on the way.

# %%
origin, kicks = truth.mean(0, keepdim=True), 1.4 * circle[[4, 20, 34, 50], None]
figure, axes = plt.subplots(1, 3, figsize=(13, 4))
draw_posterior(axes[0], hard, "four kicks, ten steps each")
draw_posterior(axes[1], hard, "one kick, four step sizes")
for path in (leapfrog_path(target, origin, r, 0.4 * width, 10)[0] for r in kicks):
    axes[0].plot(*path[:, 0].T, "o-", color=COLORS["mcem"], markersize=4, linewidth=1.5)
for size, color in zip((0.1, 0.5, 1.5, 2.2), SHADES, strict=True):
    z, r = leapfrog_path(target, origin, kicks[0], size * width, 40)
    axes[1].plot(*z[:11, 0].T, "o-", color=color, markersize=4, linewidth=1.2)
    error = energy(target, z, r)[:, 0]
    axes[2].plot(error - error[0], color=color, label=f"ε = {size} widths")
label(axes[2], "the error of the energy", "leapfrog step", "H − H at the start (nats)")
axes[2].set_yscale("symlog", linthresh=0.1)
axes[2].legend(fontsize=10)
plt.show()

# %% [markdown]
# *What to see.* **Left:** the ball speeds up downhill, where the dots are far apart, and turns where the slope gets steep. **Middle:** tiny steps follow the true path and get nowhere in ten steps. Steps of half a width follow it nearly as well and get around. Larger ones cut the corners. **Right:** for the two small step sizes the error stays small *for any number of steps*. It swings and comes back, because the leapfrog very nearly keeps an energy of its own, a little different from $H$. But there is a cliff. For a Gaussian of standard deviation $\sigma$ the leapfrog is stable for $\varepsilon < 2\sigma$ and explodes above; our last step size is beyond that. (This posterior is no Gaussian, and its slopes are steeper in places. So the third step size may run away as well.) The *narrowest* direction of a posterior sets the limit, the widest sets how far you have to go.
#
# ### Choosing the step size
#
# Too small: every proposal is accepted, and hardly moves. Too large: bold proposals, all refused. We want something in between, and we can measure what we want: the mean squared distance travelled. The paper aims at an acceptance of 90 %. `hmc.tune` gets there by a simple rule. After every step,
#
# $$\ln \varepsilon \;\leftarrow\; \ln \varepsilon + \eta_t\,(\text{acceptance} - 0.9),$$
#
# with $\eta_t$ falling: accepted too often, so dare more; too seldom, so dare less. While it adapts, the chain is not quite a Markov chain with the right target. So those samples are thrown away (**burn-in**), which we have to do anyway, to forget the start.

# %%
ratios, some, moves = torch.logspace(-1.3, 0.6, 24), hmc.init(target, truth[:200]), []
_, tuned, _ = hmc.tune(target, some, steps=60)
for jitter, ratio in torch.cartesian_prod(torch.tensor([0.0, 0.5]), ratios).tolist():
    moved, info = hmc.step(target, some, ratio * width, jitter=jitter)
    jump = (moved.position - some.position).square().sum(-1).mean() / truth.var(0).sum()
    moves.append((info.acceptance_rate.mean(), jump))
figure, axes = plt.subplots(1, 2, figsize=(12, 3.8))
for ax, values, level in zip(axes, torch.tensor(moves).T, (0.9, 2), strict=True):
    ax.plot(ratios, values[:24], ":", ratios, values[24:], "-", color=COLORS["mcem"])
    ax.axhline(level, color=COLORS["exact"], linestyle=":", linewidth=1)
    ax.axvline(tuned / width, color=COLORS["exact"], linestyle="--", linewidth=1)
    ax.set_xscale("log")
label(axes[0], "acceptance falls …", "step size ε (widths)", "mean acceptance")
label(axes[1], "… but how far do we get?", "step size ε (widths)", "squared jump / variance")
plt.show()

# %% [markdown]
# *What to see.* Solid lines are the library's default, dotted ones its bare form without `jitter`, which is explained in a moment. **Left:** acceptance stays near one and then falls off the cliff. The dashed line is the step size that `tune` found, near the place where the solid curve meets 90 %. **Right:** the squared jump, as a share of the posterior's own variance. Two independent draws differ by twice the variance (horizontal line). Tiny steps get nowhere, and steps beyond the cliff are refused.
#
# In between, the dotted curve is not one hill. It rises far above the line, falls, and rises again: after half a turn round the bowl the ball comes *back*. The rule of 90 % looks at the energy only. It knows nothing of this.
#
# ### A trajectory that stands still
#
# Coming back can be fatal. In a round bowl (a standard normal) the true path is an ellipse with period $2\pi$, and one leapfrog step turns by the angle $2\arcsin(\varepsilon/2)$. With $\varepsilon = 2 \sin(\pi/10)$ ten steps make exactly one turn. The ball ends where it began, *whatever the kick*. The energy is unchanged, every proposal is accepted, all the numbers look perfect, and the chain never moves. It is called **resonance**, and one of the claims at the end shows it.
#
# The cure is to vary the length of the trajectory (Neal 2011, section 3.2). `hmc.step` multiplies the step size by a fresh random number between one half and one, for each chain (its argument `jitter`). Then no orbit closes twice in a row, and the valleys become shallower. They do not vanish: the solid curve still dips, and the 90 % rule, which looks only at the energy, has put its dashed line into that dip. There a jump is half of what it could be. The samples are right all the same; one needs more of them.
#
# ### Does it draw from the right distribution?
#
# Fast is no use if it is wrong. We start three hundred chains *from the prior*, tune, and compare the mean and the covariance of the samples with the exact ones: those of our digit's posterior, known from the grid. Chains are independent of each other, though the samples of one chain are not. So the spread *between* chains gives an honest standard error. The same cell rolls one trajectory by hand, by the library, and back again; the claims at the end look at what came out.


# %%
def worst_moment(log_density, mean, covariance, seed):
    """Largest error of a mean or a covariance over 300 chains, in standard errors."""
    torch.manual_seed(seed)
    start = hmc.init(log_density, torch.randn(300, len(mean)))  # draws from the prior
    state, size, _ = hmc.tune(log_density, start, steps=40)
    z = hmc.sample(log_density, state, size, samples=20)[1] - mean  # (20, 300, latents)
    products = z[..., :, None] * z[..., None, :] - covariance
    chains = torch.cat([z.mean(0), products.mean(0).flatten(1)], 1)  # one row a chain
    return (chains.mean(0).abs() / chains.std(0) * 300**0.5).max().item()


mean, spread = weights @ plane, torch.cov(plane.T, aweights=weights, correction=0)
worst_digit = worst_moment(target, mean, spread, SEED)
kick = torch.randn_like(truth)  # and one trajectory from each draw, there and back
zs, _ = leapfrog_path(target, truth, kick, 0.5 * width, 10)
end, last = hmc.leapfrog(target, hmc.init(target, truth), kick, 0.5 * width, 10)
back, _ = hmc.leapfrog(target, end, -last, 0.5 * width, 10)

# %% [markdown]
# ## 3. Appendix D: the marginal likelihood from posterior samples
#
# We can now draw from $p(z|x)$ for any model with a gradient. How do we get $p(x)$ from that? Bayes' rule says $p(x) = p(x, z)/p(z|x)$ for every single $z$. We can compute the numerator. The denominator is a *density*, and samples do not come with their density. Appendix D has a neat way round. Take **any** normalised density $q(z)$ and average a ratio over the posterior:
#
# $$\mathbb E_{p(z|x)}\left[\frac{q(z)}{p(x, z)}\right] = \int p(z|x)\, \frac{q(z)}{p(x, z)}\, dz = \int \frac{p(x, z)}{p(x)}\, \frac{q(z)}{p(x, z)}\, dz = \frac{1}{p(x)} \int q(z)\, dz = \frac{1}{p(x)} .$$
#
# Nearly everything cancels. (Two conditions. $q$ must not put mass where the posterior has none. And the average settles down only if its variance is finite, $\int q(z)^2/p(x, z)\, dz < \infty$: the tails of $q$ must not be heavier than those of the posterior.) So, step by step as in the paper:
#
# 1. draw $L$ samples from the posterior with HMC;
# 2. fit a density $q(z)$ to them;
# 3. draw $L$ *new* samples and average $q(z)/p(x, z)$ over them. Its inverse estimates $p(x)$.
#
# Why new samples? A density fitted to some points is too high *at those points*. Judging it there would be marking your own homework, and the average would no longer be $1/p(x)$.
#
# In code it takes a few lines. We test them on **probabilistic PCA**, the linear model of notebook 01 (Tipping & Bishop 1999): $p(z) = \mathcal N(0, I)$, $p(x|z) = \mathcal N(Wz + \mu, \sigma^2 I)$. It knows $\log p(x)$ and can draw from its posterior *exactly*, so no error of HMC gets mixed in.


# %%
@torch.no_grad()
def appendix_d_by_hand(log_q_of, joint, first, fresh):
    """log p(x), (B,) nats, from two sets of posterior samples (L, B, latents) each."""
    log_ratio = log_q_of(first, fresh) - joint(fresh)  # log of q(z) / p(x, z)
    return math.log(len(fresh)) - log_ratio.logsumexp(0)  # minus the log of their mean


def covariance_of(z):
    """Of samples (L, B, latents): one for each datum, (B, latents, latents)."""
    centred = z - z.mean(0)
    return torch.einsum("lbi,lbj->bij", centred, centred) / (len(z) - 1)


def gaussian(first, fresh):
    """log q at the second set, (L, B): a normal with the moments of the first set."""
    return MultivariateNormal(first.mean(0), covariance_of(first)).log_prob(fresh)


# %% [markdown]
# Any $q$ gives the right mean. What differs is the spread. If $q$ *is* the posterior, the ratio is $1/p(x)$ at every $z$, and one sample would do. Two more candidates:
#
# - a **kernel density**, which puts a small Gaussian on each sample of the first set. It can take any shape, where a Gaussian cannot;
# - the **prior**. Then $1/p(x) = \mathbb E_{p(z|x)}[1/p(x|z)]$: no fitting at all! This is the *harmonic mean estimator*, famous for its simplicity and its failure.


# %%
def kernel(first, fresh):
    """A kernel density: Gaussians shaped like the samples' covariance, of Scott's width."""
    count, _, d = first.shape
    factor = torch.linalg.cholesky(covariance_of(first)) * count ** (-1 / (d + 4))
    # In whitened coordinates all kernels are round, and only distances matter.
    white = [
        torch.linalg.solve_triangular(factor, z.movedim(0, 2), upper=False) for z in (first, fresh)
    ]
    log_sum = (-0.5 * torch.cdist(white[1].mT, white[0].mT).square()).logsumexp(-1).T  # (L, B)
    log_volume = factor.diagonal(dim1=1, dim2=2).log().sum(-1) + d / 2 * math.log(2 * math.pi)
    return log_sum - math.log(count) - log_volume


def random_ppca(latents, count):
    """A pPCA model with random weights, 50 dimensions, and data drawn from it."""
    model = PPCA(torch.randn(50, latents), torch.zeros(50), 0.5)
    return model, VAE(*model.slots()), model.marginal().sample((count,))


# %%
torch.manual_seed(SEED)
model, linear, x = random_ppca(3, 1000)
posterior, joint = model.posterior(x), log_joint(linear, x)
first, fresh = posterior.sample((50,)), posterior.sample((50,))
candidates = {"posterior": lambda _, z: posterior.log_prob(z), "Gaussian fit": gaussian}
candidates |= {"kernel density": kernel, "prior": lambda _, z: linear.prior().log_prob(z)}
figure, ax = plt.subplots(figsize=(9, 3.6))
for (name, q), color in zip(candidates.items(), [COLORS["exact"], *SHADES], strict=False):
    error = appendix_d_by_hand(q, joint, first, fresh) - model.log_prob(x)
    ax.hist(error, torch.linspace(-2, 14, 321), color=color, label=name, histtype="step", lw=2)
ax.axvline(0, color=COLORS["exact"], linestyle=":", linewidth=1)
title = "one formula, four densities q: 50 + 50 exact samples, 3 latents"
label(ax, title, "estimate − exact log p(x) (nats)", "data (of 1,000)", yscale="log")
ax.legend(title="q(z)", fontsize=10, loc="upper right")
plt.show()

# %% [markdown]
# *What to see.* With the posterior itself there is no error at all: the black spike. The fitted Gaussian is close behind. It has the right shape here, and its only fault is that fifty samples give a slightly wrong mean and covariance. The kernel density is wider than the truth, and pays for it. The prior is hopeless: its estimates are nats too high and scattered. The posterior is much narrower than the prior, so almost all of $\int q(z)\,dz$ lies where no posterior sample ever falls. The mean of the ratio is right *only* because of samples so rare that we never see them. Same formula, same guarantee, useless.
#
# Mind the direction of the errors: **too high**, on average. A single estimate may well be too low (the kernel density's tail on the left is); their mean is not. The average of the ratio is unbiased for $1/p(x)$, but we take minus a logarithm of it. Minus the logarithm is convex, so by Jensen's inequality the mean of the estimate is *at least* $\log p(x)$. For small errors the bias is half the variance. So whatever spreads also lifts.
#
# ### What more latents do
#
# Fifty samples must now describe a density in 2, 3, 5, 10 and 20 dimensions. A covariance in 20 dimensions has 210 entries. A kernel density has to fill a space whose volume grows exponentially. We measure both with exact samples, then give the paper's method as a whole a run: `likelihood.appendix_d`, with HMC, which keeps every sixth sample, so that they are nearly independent.
#
# One trick makes small biases visible. Call the error $e$. The estimate is unbiased for $1/p(x)$, so $\mathbb E[e^{-e}] = 1$ exactly. Hence $e + e^{-e} - 1$ has the same mean as $e$. But its fluctuations are tiny, since the linear parts cancel. It is a **control variate**: a noise whose mean we know is subtracted. (Where errors are as large as a nat, the mean of $e^{-e}$ rests on rare data, and we take the plain mean.) The claims check separately that the mean of $e^{-e}$ *is* one, for that is where a wrong sampler would show.


# %%
def summary(error):
    """Bias and spread of an estimate, nats."""
    steady = error + torch.exp(-error) - 1 if error.std() < 0.5 else error  # control variate
    return torch.stack([steady.mean(), error.std()])


torch.manual_seed(SEED)
LATENTS, by_hand, with_hmc = (2, 3, 5, 10, 20), {}, {}
rooms = {d: random_ppca(d, 500) for d in LATENTS}
for d, (model, linear, x) in rooms.items():
    joint, draw = log_joint(linear, x), model.posterior(x).sample
    for q in (gaussian, kernel):
        estimate = appendix_d_by_hand(q, joint, draw((50,)), draw((50,)))
        by_hand[q, d] = summary(estimate - model.log_prob(x))
    if d in (3, 5, 10):
        estimate = appendix_d(linear, x[:200], leapfrog_steps=5, thin=6)
        with_hmc[d] = estimate - model.log_prob(x[:200])


# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.9), sharex=True)
for column, (ax, title) in enumerate(zip(axes, ("bias", "spread of one estimate"), strict=True)):
    for q, name, color in ((gaussian, "Gaussian fit", 1), (kernel, "kernel density", 3)):
        values = [by_hand[q, d][column] for d in LATENTS]
        ax.plot(LATENTS, values, "o-", color=SHADES[color], label=f"{name}, exact samples")
    values = [summary(error)[column] for error in with_hmc.values()]
    name = "Gaussian fit, samples by HMC"
    ax.plot(list(with_hmc), values, "*", color=COLORS["mcem"], markersize=13, label=name)
    label(ax, title, "latents", "nats", xscale="log", yscale="log")
    ax.set_xticks(LATENTS, LATENTS)
    ax.minorticks_off()
axes[0].axhline(0.05, color=COLORS["exact"], linestyle=":", linewidth=1)
axes[0].legend(fontsize=10)
plt.show()

# %% [markdown]
# *What to see.* Both axes are logarithmic; the dotted line is at 0.05 nats. With the Gaussian fit the bias is negligible up to five latents, still below 0.05 nats at ten, and a third of a nat or so at twenty. The kernel density, which the paper's recipe leaves open ("fit a density estimator"), is about ten times worse at ten latents and off by whole nats at twenty. The stars have HMC in place of exact samples and lie near the line: fifty samples of a well-tuned chain are worth about fifty independent ones.
#
# The paper's own caution is that the estimator is good *below about five dimensions*, and it is why figure 3 uses three latents. For the kernel density that is just where its bias passes 0.05 nats. With the Gaussian fit, on these Gaussian posteriors, the limit lies near ten. Where the posterior is nearly Gaussian, the simple density beats the flexible one.
#
# ## 4. Importance sampling: a ladder of bounds
#
# The second estimator turns the roles round. It draws from $q$ and never from the posterior. Notebook 01 wrote
#
# $$p(x) = \mathbb E_{q(z|x)}\big[w(z)\big], \qquad w(z) = \frac{p(x, z)}{q(z|x)},$$
#
# so the mean of $K$ weights is unbiased for $p(x)$. Take its logarithm, which is concave, and Jensen points the other way:
#
# $$\mathcal L_K = \mathbb E\left[\log \frac1K \sum_{k=1}^K w(z_k)\right] \;\le\; \log p(x).$$
#
# **Each rung is at least as high as the one below** (Burda et al. 2016). $\mathcal L_1$ is the ELBO. Why does it rise? Split $2K$ weights into two halves. The mean of all is the mean of the two half-means, and the log of a mean is at least the mean of the logs: that is the step from $K$ to $2K$, and averages over all subsets of $K$ out of $K + 1$ weights give every step in between. No assumption is needed. (With the same draws cut into smaller and larger groups this even holds for every single set of draws. So that the picture can fail, each of its rungs has draws of its own.) As $K \to \infty$ it reaches $\log p(x)$, if $q$ covers the posterior. How *fast* depends on the spread of the weights: the missing part is about $\operatorname{Var}[w]/(2K\,p(x)^2)$, as long as that variance exists.
#
# We take the pPCA model with five latents and its best diagonal encoder, and spoil the encoder in three ways: twice as wide, half as wide, shifted by two of its standard deviations. For each we count how many of the draws matter, by the **effective sample size** $(\sum w)^2 / \sum w^2$.


# %%
KS = (1, 10, 100, 1000)


@torch.no_grad()
def ladder(q, joint, draws=4000):
    """The bounds L_K of each datum for K in KS, (len(KS), B) nats, and the ESS of 1,000, (B,)."""
    rungs = []
    for K in KS:  # fresh draws for each: nothing but the truth makes the bound rise
        z = q.sample((draws // K, K))  # (draws / K, K, B, latents)
        log_w = joint(z) - q.log_prob(z)
        rungs.append((log_w.logsumexp(1) - math.log(K)).mean(0))
    size = (2 * log_w.logsumexp(1) - (2 * log_w).logsumexp(1)).exp()
    return torch.stack(rungs), size.mean(0)


# %%
torch.manual_seed(SEED)
model, linear, x = rooms[5]
q, joint, exact = linear.encoder(x[:25]), log_joint(linear, x[:25]), model.log_prob(x[:25]).mean()
names = "best diagonal", "twice too wide", "shifted by 2 s.d.", "half too narrow"
changes = (0, 1), (0, 2), (2, 1), (0, 0.5)  # shift, in standard deviations, and stretch
ladders, (figure, axes) = {}, plt.subplots(1, 2, figsize=(12, 4), width_ratios=[1.6, 1])
for name, (shift, stretch), color in zip(names, changes, SHADES, strict=True):
    ladders[name] = ladder(DiagNormal(q.loc + shift * q.scale, stretch * q.scale), joint)
    axes[0].plot(KS, ladders[name][0].mean(1) - exact, "o-", color=color, label=name)
    axes[1].barh(name, ladders[name][1].mean(), color=color)
label(axes[0], "every encoder climbs", "importance samples K", "bound − log p(x) (nats)")
label(axes[1], "how many of 1,000 draws count", "effective sample size", "", xscale="log")
axes[0].set(xscale="log", yscale="symlog", ylim=(-20, 1))
axes[0].legend(fontsize=10, loc="lower right")
plt.show()

# %% [markdown]
# *What to see.* **Left:** all four ladders rise towards 0, where the bound is the exact $\log p(x)$. The best encoder starts a fraction of a nat below it and is there after a hundred draws or so. A wide encoder starts nats lower and still gets there: it wastes draws, but misses nothing. The shifted and the narrow one are still climbing at a thousand. **Right:** the effective sample sizes tell the same story. But beware: for the narrow encoder the *variance of the weights is infinite*. (Its variance is below half of the posterior's; the tails of $p(x, z)^2/q$ do not fall.) The few enormous weights that would put it right have probably not been drawn, and the effective sample size cannot count what it has not seen.
#
# For an encoder, then: *too wide is safe, too narrow is not*. Training by the bound minimises $\mathrm{KL}(q\,\|\,p)$, which errs towards narrow.
#
# ### A bracket
#
# One estimator is too low on average, the other too high. Neither needs to know the truth for that. So together they **bracket** it: if their averages agree, *and the chains do draw from the whole posterior*, both are right. (Grosse, Ghahramani & Adams, 2015, built this into a method, *bidirectional Monte Carlo*.) The condition matters: an encoder and chains that miss the same mode agree on a wrong number. Keep that in mind for section 5. Here is the bracket on pPCA, and on the VAE of section 1 against the grid.

# %%
torch.manual_seed(SEED)
below = {}
for d, (model, linear, x) in rooms.items():
    below[d] = (importance_sampled(linear, x[:100], 1000) - model.log_prob(x[:100])).mean().item()
estimates = {
    "K = 1: the ELBO": flat.elbo(x50, 200).value.detach(),
    "K = 1,000": importance_sampled(flat, x50, 1000),
    "appendix D": appendix_d(flat, x50),
}
climbs = torch.stack([b.mean(1).diff() for b, _ in ladders.values()])  # to K = 10, 100, 1000
rises = climbs[:, 0].min() > 0.05 and climbs[1:, 1].min() > 0.05  # the first is the best encoder
digit_errors = {name: value - exact50 for name, value in estimates.items()}

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4))
above, means = [by_hand[gaussian, d][0] for d in LATENTS], list(below.values())
axes[0].fill_between(LATENTS, means, above, color="0.9")
axes[0].plot(LATENTS, above, "*-", color=COLORS["mcem"], label="appendix D, 50 + 50 samples")
axes[0].plot(LATENTS, means, "o-", color=COLORS["encoder"], label="importance sampling, K = 1,000")
looks = [("bound", "x"), ("encoder", "o"), ("mcem", "*")]
for (name, error), (color, mark) in zip(digit_errors.items(), looks, strict=True):
    axes[1].plot(error[order], mark, color=COLORS[color], label=name, markersize=6)
label(axes[0], "pPCA: a bracket that opens", "latents", "mean error (nats)", xticks=LATENTS)
label(axes[1], "the VAE against the grid", "fifty digits, by their gap", "error (nats)")
for ax in axes:
    ax.axhline(0, color=COLORS["exact"], linestyle="--", linewidth=1)
    ax.legend(fontsize=10, loc="best")
plt.show()

# %% [markdown]
# *What to see.* **Left:** the bracket is closed up to ten latents, to within a few hundredths of a nat, and opens at twenty, which tells you *without the truth* that one of the two (here both) has left its ground. **Right:** a real decoder, fifty digits in order of their gap, errors against the grid. The ELBO sags to the right; that is the gap. A thousand draws from the same encoder make up for nearly all of it, and appendix D needs the encoder only to start its chains. Both scatter around zero.
#
# ## 5. Monte Carlo EM: learning without an encoder
#
# If we can draw from the true posterior, why have an encoder at all? Recall notebook 01: for fixed parameters, $\mathcal L$ is highest when $q$ is the posterior, and then the bound is tight. **Expectation–maximisation** alternates: set $q(z) = p_\theta(z|x)$ for every datum (E), then improve $\theta$ with $q$ held fixed (M). *Monte Carlo* EM replaces $q$ by samples:
#
# - **E**: for each datum of a minibatch, one HMC trajectory of 10 leapfrog steps, from where its chain stood; the step size tuned towards 90 % acceptance;
# - **M**: five gradient steps up $\log p_\theta(x, z)$ at these samples.
#
# Those are the paper's numbers (appendix E). There is no family of $q$ to choose, no gap, no encoder that lags behind. If the chains were long, this would be the gradient of $\log p(x)$ itself, for
#
# $$\nabla_\theta \log p_\theta(x) = \mathbb E_{p_\theta(z|x)}\big[\nabla_\theta \log p_\theta(x, z)\big] .$$
#
# **The price in gradients.** Count the gradients through a network for one visit of a minibatch. AEVB takes two, one through the encoder and one through the decoder; so does wake-sleep, in its two phases. MCEM takes *sixteen*: one at the start of the trajectory, ten for its leapfrog steps, and five for its updates.
#
# **The price in waiting.** Ten leapfrog steps are not a long chain. A chain that starts at the prior needs many trajectories to *find* the posterior, as you saw in section 2. So **each datum keeps its own chain**, and continues it at the next visit. In the meantime the weights have changed, so the chain is a little behind. With few data the next visit is soon. With many it is late, and a datum never seen before has no chain at all. This is what the paper means when it says that MCEM is *not an on-line algorithm*.
#
# Here is the loop of all three methods. The only thing that is new for MCEM is `z`, one row for each training image, carried along. Adagrad, weights that start from $\mathcal N(0, 0.01)$ (a variance), and a weight decay of $1/N$, which is the prior $\mathcal N(0, I)$ on the weights: all as in the paper.


# %%
BATCH = 100


def learn(method, images, step_size, marks):
    """Train from scratch; yield (visits, decoder, objective in nats, chains) at each mark."""
    torch.manual_seed(SEED)
    n, shape = len(images), tuple(images.shape[1:])
    vae = init_normal_(new_vae(3, shape), std=0.1).to(images)  # and in their precision
    both, generative, recognition = (
        torch.optim.Adagrad(part.parameters(), lr=step_size, weight_decay=1 / n)
        for part in (vae, vae.decoder, vae.encoder)
    )
    z, size, objective, queue = vae.prior().sample((n,)), images.new_tensor(0.1), [], []
    for visits in range(BATCH, marks[-1] + 1, BATCH):
        queue = queue or list(torch.randperm(n).to(images.device).split(BATCH))  # a new pass
        rows = queue.pop()
        if method == "mcem":
            out = mcem_step(vae, images[rows], z[rows], size, generative)
            z[rows], size, value = out.z, out.step_size, out.log_joint
        elif method == "wake-sleep":
            value = wake_sleep_step(vae, images[rows], (generative, recognition)).value
        else:
            value = aevb_step(vae, images[rows], both).value
        objective = [*objective[-19:], value.mean()]  # of the last twenty minibatches
        if visits in marks:
            yield visits, copy.deepcopy(vae.decoder), sum(objective).item() / len(objective), z


# %% [markdown]
# **How far behind are the chains?** We train two MCEM models for the same number of visits, 12,000: one on a hundred of the small digits, one on four thousand. Then we hold the weights still and let the chains of fifty digits run on. If they were where they should be, the mean of $\log p(x, z)$ over them would already be its exact mean under the posterior, which the grid tells us ($61^3$ points in three dimensions; one matrix product). Before that, the same picture for the VAE of section 1, for chains that start at the prior and at its encoder. From MCEM on we compute in single precision, as one does when training.


# %%
def lag(vae, x, z, points):
    """log p(x, z) of chains z minus its exact mean, while they run on: (41,) nats."""
    joint, density = log_joint_on(points, vae, x), log_joint(vae, x)
    state, size, path = hmc.init(density, z), z.new_tensor(0.1), []
    for _ in range(41):
        path.append(state.log_density.mean().item())
        state, info = hmc.step(density, state, size)
        size = hmc.adapt(size, info)
    return torch.tensor(path) - (joint.softmax(0) * joint).sum(0).mean()


torch.manual_seed(SEED)
cube, log_cube = grid(latents=3, side=61)
cube, prior = cube.to(train), StandardNormal(3).to(train)  # single precision from here on
starts = {"prior": torch.randn(50, 2), "encoder": flat.encoder(x50).sample()}
waiting = {name: lag(flat, x50, z, plane) for name, z in starts.items()}
runs = {n: next(learn("mcem", train[:n], 0.1, [12_000])) for n in (100, 4000)}


# %% tags=["nbval-ignore-output"]
for n, (_, _, _, z) in runs.items():
    print(f"{(z.norm(dim=1) > 4).sum():,} of {n:,} chains are more than 4 from the origin")
decoders = {n: VAE(None, prior, decoder) for n, (_, decoder, _, _) in runs.items()}
lags = {n: lag(decoders[n], train[:50], runs[n][3][:50], cube) for n in runs}
figure, axes = plt.subplots(1, 2, figsize=(12, 3.7))
for name, path in waiting.items():
    axes[0].plot(path, color=COLORS[name], label=f"chains from the {name}")
for (n, path), style in zip(lags.items(), ("--", "-"), strict=True):
    axes[1].plot(path, style, color=COLORS["mcem"], label=f"MCEM's own chains, N = {n:,}")
titles = "a trained VAE: until chains arrive", "MCEM, 12,000 visits: how far behind?"
for ax, title in zip(axes, titles, strict=True):
    ax.axhline(0, color=COLORS["exact"], linestyle=":")
    label(ax, title, "trajectories of 10 leapfrog steps", "log p(x, z) − exact mean (nats)")
    ax.legend(fontsize=10, loc="lower right")
plt.show()

# %% [markdown]
# *What to see.* **Left:** a fresh chain starts many nats below the dotted line and takes about ten trajectories to climb to it. A trained encoder is there from the first draw. *That is what amortisation buys:* the encoder remembers, for images never seen, where posteriors lie. A chain remembers for one image only.
#
# **Right:** the same number of visits, shared among a hundred images or among four thousand. With a hundred, each chain has made 120 trajectories and is where it should be. With four thousand it has made three. These chains are many nats behind, and the five updates after each visit fit the decoder to *wrong* places: places from which the image did not come. Most of them are further from the origin than 4 (the lines above the picture), where of the prior's draws hardly one in a thousand lies. The reason is that of section 2: a ball released high up is thrown about, and each chain has had three kicks so far. The paper's larger set has 50,000 images.
#
# ### Where does the judge start its chains?
#
# How good a model has MCEM made of its hundred images? The ELBO cannot tell: there is no encoder. The grid can, and in higher dimensions there is appendix D. But `appendix_d` starts its chains at the encoder's draws. So we fill the **encoder slot** with something that is not a network at all: draw many $z$ from the prior, and pick one with probability proportional to $p(x|z)$. That is a rough draw from the posterior, made by search. With a single draw to pick from, it is a blind start from the prior.


# %%
class Search(nn.Module):
    """An encoder without parameters: of ``tries`` draws from the prior, one that fits x."""

    def __init__(self, decoder, prior, tries):
        super().__init__()
        self.decoder, self.prior, self.tries = decoder, prior, tries

    def forward(self, x):
        z = self.prior().sample((self.tries,))
        log_fits = log_joint_on(z, self, x) - self.prior().log_prob(z)[:, None]  # (tries, B)
        best = z[torch.multinomial(log_fits.T.softmax(1), 1)[:, 0]]  # (B, latents)
        return DiagNormal(best, torch.full_like(best, 1e-3))


def marginal(decoder, images, tries=2000, **settings):
    """Appendix D for a bare decoder with three latents: (B,) nats."""
    prior = StandardNormal(3).to(images)
    vae = VAE(Search(decoder, prior, tries), prior, decoder)
    return appendix_d(vae, images, leapfrog_steps=4, thin=1, **settings)


# %%
hundreds = torch.cat([train[:100], test[:100]])  # a hundred it has seen, a hundred it has not
joint200 = log_joint_on(cube, decoders[100], hundreds)  # (61³, 200)
exact200 = joint200.logsumexp(0) + log_cube
torch.manual_seed(SEED)
judged, choices = {}, {"blind start": 1, "search": 2000}  # draws to pick from
figure, axes = plt.subplots(1, 2, figsize=(12, 3.9), sharey=True)
for ax, (name, tries) in zip(axes, choices.items(), strict=True):
    error = judged[name] = marginal(decoders[100].decoder, hundreds, tries) - exact200
    ax.plot(exact200[:100], error[:100], "o", color=COLORS["mcem"], label="seen", markersize=5)
    ax.plot(exact200[100:], error[100:], "x", color=COLORS["data"], label="not seen", markersize=6)
    ax.axhline(0, color=COLORS["exact"], linestyle="--", linewidth=1)
    title = f"{name}: mean error {error.mean():.2f} nats"
    label(ax, title, "log p(x) by the grid (nats)", "appendix D − grid (nats)", yscale="symlog")
axes[1].legend(fontsize=10, loc="lower right")
plt.show()

# %% [markdown]
# *What to see.* A hundred images, learned by heart: log p(x) is far higher on those that MCEM has seen (dots) than on others (crosses). **Left:** with a blind start the estimator is badly wrong for some images, by many nats. And it is wrong, nearly always, in the direction that Jensen forbids: too **low**. **Right:** with a searched start the same estimator, same number of steps, is right on average.
#
# What happened on the left? Take the image with the largest error and let two hundred chains that start at the prior run for seventy trajectories. Where do they end?

# %%
stuck = judged["blind start"].argmin().item()
density, peak = log_joint(decoders[100], hundreds[[stuck]]), joint200[:, stuck].max()
start = hmc.init(density, torch.randn(200, 3).to(train))
ends, _, _ = hmc.tune(density, start, steps=70, leapfrog_steps=4, per_chain=True)
depth = (joint200[:, stuck] - peak).reshape(61, 61, 61).amax(2)  # at the best z₃
axis, (figure, axes) = torch.linspace(-5, 5, 61), plt.subplots(1, 2, figsize=(12, 3.9))
shades = axes[0].contourf(axis, axis, depth.T, range(-150, 1, 15), cmap="Greys", extend="min")
figure.colorbar(shades, ax=axes[0], label="nats")
axes[0].plot(*ends.position[:, :2].T, ".", color=COLORS["mcem"])
label(axes[0], "islands, and where 200 chains end", "$z_1$", "$z_2$", xlim=(-5, 5), ylim=(-5, 5))
axes[1].hist((ends.log_density - peak).clamp(min=-150), 75, color=COLORS["mcem"])
axes[1].axvline(judged["blind start"][stuck], color=COLORS["exact"], linestyle="--")
title = "dashed: the error of appendix D on this image"
label(axes[1], title, "log p(x, z) − its maximum (nats)", "chains (of 200)")
plt.show()

# %% [markdown]
# *What to see.* **Left:** $\log p(x, z)$ for every $z_1$ and $z_2$, at the best $z_3$, and the chains at their last trajectory. MCEM has pressed each training image into its own corner of the latent space. So the posterior of an image has several *modes*, islands with deep water between: a chain lands on one of them and never leaves. (The small group apart from both dark regions is on an island with another $z_3$.) **Right:** how high the chains stand, on the scale of the left panel. One group is on the highest island, which holds nearly all of the posterior's mass. The islands below are tens of nats lower, and yet about half of the chains sit there. The dashed line is the error of appendix D on this image. It falls on one of the groups: there its chain must have sat.
#
# Suppose that the island holds a share $m$ of the posterior's mass. Samples and $q$ both live there, so
#
# $$\int_{\text{island}} \frac{p(z|x)}{m}\, \frac{q(z)}{p(x, z)}\, dz = \frac{1}{m\, p(x)} \quad\Longrightarrow\quad \text{estimate} = \log p(x) + \ln m .$$
#
# The error *is* the log of the share: a chain stuck on an island with a thousandth of the mass is $\ln 1000 \approx 7$ nats too low. All its diagnostics look healthy: 90 % acceptance, no divergence, a perfect fit of $q$ to the island. With the searched start the chain lands on an island with probability $m$, so the mean error is only $\sum m \ln m$, minus the entropy of the shares: at most $\ln 2$ for two islands, and little if one dominates.
#
# The lesson is general. *The judge must not share the weakness of the judged.* MCEM learns with chains, and makes exactly those posteriors that chains are bad at. A blind start would have made it look much worse than it is. In figure 3 all three methods get the searched start, so what is judged is the decoder alone.
#
# ## 6. Figure 3
#
# Now the race: AEVB, wake-sleep and MCEM, with few data and with many, on digits of full size.
#
# | | paper scale | classroom scale |
# |---|---|---|
# | images | MNIST, 28 × 28, grey levels as probabilities | the same |
# | training images $N$ | 1,000 and 50,000 | 100 and 4,000 |
# | judged on | the first 1,000 of training and of test set | the first 30 of each |
# | samples evaluated | ten million in every run | 96,000 with many data, 16,000 with few; an eighth of that for MCEM |
# | latents, hidden units | 3, 100 | the same |
# | minibatch | 100 | the same |
# | step size of Adagrad | out of 0.01, 0.02 and 0.1 | out of 0.02 and 0.1 |
# | appendix D | 50 + 50 samples, 4 leapfrog steps | the same |
#
# The paper's sizes are its own except for the number of samples evaluated, which is our choice; `VAELIB_MARGINAL_SAMPLES` sets another. In the classroom MCEM sees an eighth of the samples, because it takes eight times the gradients for each: there, the three methods get *equal numbers of gradients*. (Not equal times: the next cell but one measures what a minibatch of each takes.) The step size is chosen for each run as in the paper, by the *training* objective after a first stretch: the bound for AEVB and wake-sleep, $\log p(x, z)$ at its samples for MCEM. The best goes on, the others stop.

# %%
PAPER, FULL = scaling.current() == "paper", scale(classroom=96_000, paper=10_000_000)
BUDGET = int(float(os.environ.get("VAELIB_MARGINAL_SAMPLES") or FULL))
assert BUDGET >= 20_000, f"expected VAELIB_MARGINAL_SAMPLES >= 20000, got {BUDGET}"
METHODS, COUNTS = ("aevb", "wake-sleep", "mcem"), scale(classroom=(100, 4000), paper=(1000, 50_000))
STEP_SIZES, FIRST = scale(classroom=(0.02, 0.1), paper=(0.01, 0.02, 0.1)), 3  # marks to the choice
JUDGED = scale(classroom=30, paper=1000 if BUDGET >= FULL else 100)  # fewer in a trial run
JUDGE = scale(classroom={"burn_in": 20}, paper={"burn_in": 50, "tries": 20_000})
DEVICE = "cuda" if PAPER and torch.cuda.is_available() else "cpu"
digits = data.mnist(scale(classroom="5k", paper="full"))  # 28 × 28, grey
images, held_out = digits.train.to(DEVICE), digits.test.to(DEVICE)


def marks(method, n, budget):
    """Samples after which a run is judged; the last is its length."""
    total = budget // (1 if PAPER else (8 if method == "mcem" else 1) * (6 if n < 1000 else 1))
    doublings = min(scale(classroom=3, paper=9), int(math.log2(total / BATCH)))
    return [total // 2**k // BATCH * BATCH for k in range(doublings, -1, -1)]


# %%
def judge(decoder, n):
    """Mean log p(x) of the first training and test images by appendix D, nats."""
    seen = images[: min(n, JUDGED)]
    log_p = marginal(decoder, torch.cat([seen, held_out[:JUDGED]]), **JUDGE)
    return {"train": log_p[: len(seen)].mean().item(), "test": log_p[len(seen) :].mean().item()}


def steady(runner, name):
    """The same results; an objective that is no longer finite ends them."""
    try:
        yield from runner
    except (FloatingPointError, ValueError) as error:
        print(f"{name} ended early: {error}")


def run(method, n):
    """One curve of figure 3: the step size that was chosen, and a row for each mark."""
    trials, scores = {}, {}
    for size in STEP_SIZES:
        learner = learn(method, images[:n], size, marks(method, n, BUDGET))
        runner = steady(learner, f"{method}, N = {n}, step size {size}")
        first = [step for _, step in zip(range(FIRST), runner, strict=False)]
        trials[size], scores[size] = (
            (first, runner),
            first[-1][2] if first[FIRST - 1 :] else -math.inf,
        )
    best = max(scores, key=scores.get)
    steps = [step for part in trials[best] for step in part]
    return {"step_size": best, "rows": [{"samples": s[0], **judge(s[1], n)} for s in steps]}


# %% [markdown]
# Before the start, the next cell times a few updates of each method and one small evaluation, and says how long the race will take: as it is, and at full length if it has been cut short.


# %% tags=["nbval-ignore-output"]
def clock(call, *inputs, **settings):
    """Seconds that a call takes; a generator runs to its end."""
    start = time.perf_counter(), list(call(*inputs, **settings))
    return time.perf_counter() - start[0]


def expected(budget, judged):
    """Seconds for all six runs."""
    plan = [(m, marks(m, n, budget)) for m in METHODS for n in COUNTS]
    learning = sum(pace[m] * (at[-1] + (len(STEP_SIZES) - 1) * at[FIRST - 1]) for m, at in plan)
    return learning + judging * 2 * judged * sum(len(at) for _, at in plan)


pace = {m: clock(learn, m, images[:BATCH], 0.02, [10 * BATCH]) / (10 * BATCH) for m in METHODS}
bare = new_vae(3, images.shape[1:]).decoder.to(images)
judging = clock(judge, bare, JUDGED) / (2 * JUDGED)
print(f"ms a minibatch on {DEVICE}:", {m: round(1000 * BATCH * pace[m], 1) for m in METHODS})
print(f"about {expected(BUDGET, JUDGED):.0f} s for {BUDGET:,} samples evaluated;", end=" ")
print(f"about {expected(FULL, scale(classroom=30, paper=1000)) / 60:.1f} minutes for all {FULL:,}")

# %% tags=["nbval-ignore-output"]
start, curves = time.perf_counter(), {}
for n in COUNTS:
    for method in METHODS:
        curve = curves[n, method] = run(method, n)
        last = curve["rows"][-1]
        print(f"N = {n:6,d}  {method:10s} step size {curve['step_size']:4}", end="  ")
        print(f"train {last['train']:7.1f}, test {last['test']:7.1f} nats", flush=True)
elapsed = time.perf_counter() - start
print(f"{elapsed:.0f} s")

# %%
NAME, FOLDER = "05_estimate_the_marginal_likelihood", plotting.FIGURES / "paper"
figure, axes = plt.subplots(2, 2, figsize=(12, 7.6), sharey=True)
for (n, method), curve in curves.items():
    samples = torch.tensor([row["samples"] for row in curve["rows"]])
    for ax, unit in zip(axes[:, COUNTS.index(n)], (1, 16 if method == "mcem" else 2), strict=True):
        for split, style in (("train", "--"), ("test", "-")):
            values, name = [row[split] for row in curve["rows"]], f"{method}, {split}"
            ax.plot(samples * unit, values, style, color=COLORS[method], label=name)
for ax, n in zip(axes.T.flat, (COUNTS[0], "", COUNTS[1], ""), strict=True):
    words = "training samples evaluated" if n else "samples × gradients for each"
    label(ax, n and f"N = {n:,} training images", words, "log p(x) (nats)", xscale="log")
    ax.xaxis.set_minor_formatter("")
axes[0, 1].legend(fontsize=9, ncols=2, loc="lower right")
figure.suptitle(f"Figure 3 at {scaling.current()} scale: MNIST, 3 latents")
plt.show()

# %% [markdown]
# *What to see.* Dashed: training images; solid: test images. Top: by samples, as in the paper. Bottom: the same curves by the number of gradients they took, two for a sample of AEVB or wake-sleep and sixteen for one of MCEM.
#
# **Left, few data.** MCEM fits its hundred images far better than the others, at equal samples and at equal numbers of gradients. It makes five updates for each visit, its gradient has no gap, and a chain that is visited in every pass keeps up with the weights. The price is on view as well: the distance from its dashed to its solid line is the largest. In this short race its test curve is nevertheless the highest. So with few data, and no hurry to encode new images, MCEM is a good method. (AEVB and wake-sleep end close together here, and we claim no order.)
#
# **Right, many data.** The picture turns over. AEVB ends above wake-sleep, and both end above MCEM, whose race is an eighth as long. (The order of the first two hangs on the step size that was chosen: with another seed the choice for AEVB may fall on the small one, and then wake-sleep draws level. We claim only that both beat MCEM.) At equal *samples*, where the curves meet at 12,000 (top), MCEM's test curve lies between the two; it is at equal numbers of gradients (bottom) that it loses to both. It wavers, up and down by many nats, and ends no higher than it began. At first every chain starts at the prior; at the next visit, forty minibatches and two hundred updates later, it continues from where an older decoder had left it, and the decoder is fitted to these lagging positions. Three visits of each image are not enough to settle. AEVB has no such memory to lag behind: its encoder is shared by all images, and every update improves it for all of them. This is what "not an on-line algorithm" costs.
#
# **What the picture does not show.** It is not a law that MCEM loses with many images. Given a hundred visits of each, its chains would settle here too, as they do on the left; with 50,000 images that is five million samples, at sixteen gradients each. And a shorter stretch for the choice, or another step size, moves all curves. What we claim is what held for every seed that we tried.
#
# ### At paper scale
#
# The next cell shows figure 3 at the paper's size, if somebody has made it and left it in `figures/paper/`. A run that was cut short with `VAELIB_MARGINAL_SAMPLES` leaves no files.

# %% tags=["nbval-ignore-output"]
if BUDGET == FULL:  # a race that was cut short leaves no files
    plotting.save_figure(figure, NAME, FOLDER if PAPER else None)
if PAPER and BUDGET == FULL:
    facts = {"scale": "paper", "seed": SEED, "device": str(DEVICE), "seconds": elapsed}
    facts["versions"] = {"torch": torch.__version__}
    facts["curves"] = [{"N": n, "method": m, **curve} for (n, m), curve in curves.items()]
    temporary = FOLDER / f".{NAME}.json.tmp"
    temporary.write_text(json.dumps(facts, indent=1))
    os.replace(temporary, FOLDER / f"{NAME}.json")
if (FOLDER / f"{NAME}.png").exists():
    display(Image(FOLDER / f"{NAME}.png", width=900))
else:
    print("There is no figure at paper scale yet. To make it (hours on a CPU):")
    print(f"    VAELIB_SCALE=paper python notebooks/run.py notebooks/{NAME}.ipynb")

# %% [markdown]
# ## Claims
#
# 1. **HMC** rolls the same way as our dozen lines and comes back when turned round, to $10^{-10}$; it has the right moments; and a resonant trajectory stands still while all is accepted.
# 2. **Appendix D** with a Gaussian fit and 50 + 50 samples is within 0.05 nats of the truth on pPCA with 3, 5 and 10 latents, and so is **importance sampling** with 1,000. The ladder of bounds rises: from one draw to ten, and for the spoiled encoders from ten to a hundred. Together they are a bracket, which opens at twenty latents.
# 3. **On a neural model** both agree with the grid; blind chains do not.
# 4. **Figure 3.** With many data, MCEM's chains lag, and AEVB and wake-sleep are both ahead of it; with few, MCEM fits best and overfits most.


# %%
def round_bowl(z):
    return -z.square().sum(-1) / 2


torch.manual_seed(SEED)
bowl, resonant = hmc.init(round_bowl, torch.randn(1000, 2).double()), 2 * math.sin(math.pi / 10)
still, info = hmc.step(round_bowl, bowl, resonant, jitter=0.0)
stays = (still.position - bowl.position).abs().max() < 1e-10
found = {
    "1. by hand = library, to 1e-10": (zs[-1] - end.position).abs().max() < 1e-10,
    "1. turned round, it comes back, to 1e-10": (back.position - truth).abs().max() < 1e-10,
    "1. moments of a digit's posterior right, to 4 standard errors": worst_digit < 4,
    "1. a resonant trajectory accepts all and stands still": stays and info.is_accepted.all(),
    "1. chains of MCEM: of 4,000, 5 nats behind; of 100, 1": lags[4000][0] < -5 < -1 < lags[100][0],
}
print(*(f"{sentence}: {bool(holds)}" for sentence, holds in found.items()), sep="\n")
assert all(found.values())

# %%
elbo, *near = (error.mean() for error in digit_errors.values())
ratios = [(-error).exp() for error in with_hmc.values()]  # p(x) / estimate
wide = {d: by_hand[gaussian, d][0] - below[d] for d in LATENTS}
spreads = [by_hand[kernel, d][1] / by_hand[gaussian, d][1] for d in (5, 10, 20)]
found = {
    "2. appendix D, |bias| < 0.05 nats": all(abs(summary(e)[0]) < 0.05 for e in with_hmc.values()),
    "2. unbiased for 1/p(x)": all(abs(r.mean() - 1) < 5 * r.std() / 200**0.5 for r in ratios),
    "2. importance sampling, |bias| < 0.05 nats": all(abs(below[d]) < 0.05 for d in (3, 5, 10)),
    "2. ten draws lift every bound by over 0.05 nats, 100 the spoiled ones again": rises,
    "2. bracket: below 0.1 wide at 10 latents, above 0.2 at 20": wide[10] < 0.1 and wide[20] > 0.2,
    "2. a kernel density spreads over 1.3 times more, from 5 latents on": min(spreads) > 1.3,
    "3. VAE: both within 0.05 nats, the ELBO 0.1 below": max(map(abs, near)) < 0.05 < 0.1 < -elbo,
}
print(*(f"{sentence}: {bool(holds)}" for sentence, holds in found.items()), sep="\n")
assert all(found.values())

# %%
blind, search = (error.mean() for error in judged.values())
few, many = ({m: curves[n, m]["rows"][-1] for m in METHODS} for n in COUNTS)
lead = {m: many[m]["test"] - many["mcem"]["test"] for m in METHODS[:2]}
fits = {m: few["mcem"]["train"] - few[m]["train"] for m in METHODS[:2]}
gap = {m: row["train"] - row["test"] for m, row in few.items()}
found = {
    "3. MCEM: blind start over 0.5 too low, search within 0.2": blind < -0.5 < -0.2 < search < 0.2,
    "4. many data, equal gradients: AEVB above MCEM by over 5 nats": lead["aevb"] > 5,
    "4. and so is wake-sleep": lead["wake-sleep"] > 5,
    "4. few data, equal gradients: MCEM fits them best, by over 10 nats": min(fits.values()) > 10,
    "4. few data: its gap is the widest, by over 5": gap["mcem"] > 5 + sorted(gap.values())[1],
}
found = dict(list(found.items())[: 5 if BUDGET == FULL and not PAPER else 1])  # only this race
print(*(f"{sentence}: {bool(holds)}" for sentence, holds in found.items()), sep="\n")
assert all(found.values())

# %% [markdown]
# ## Exercises
#
# From easy to hard. Replace each `...`; the cell then says whether yours is right. Solutions with explanations are in `notebooks/solutions/05_estimate_the_marginal_likelihood.py`.
#
# **1. Counting chains.** With $N = 50{,}000$ images and minibatches of 100, how many *leapfrog steps* has each datum's chain made after ten million samples evaluated, at 10 leapfrog steps a visit? And how many weight updates lie between two visits of the same datum, at five a visit of a minibatch?
#
# **2. Another resonance.** A posterior is $\mathcal N(0, \sigma^2)$ with $\sigma = 0.5$. You use *eight* leapfrog steps and no jitter. Which step size makes the chain stand still, after one turn? (Start from the turn of a leapfrog step in the round bowl, and rescale.)
#
# **3. The harmonic mean's trouble.** One latent, $p(x|z) = \mathcal N(z, s^2)$. Appendix D with the prior as $q$ averages $p(z)/p(x, z)$ over the posterior. Its variance is finite exactly if $\int q(z)^2 / p(x, z)\, dz$ is. Below which $s$ is it infinite? (Look at the exponent for large $z$.)
#
# **4. How high is the next rung?** For many samples, $\log p(x) - \mathcal L_K \approx \operatorname{Var}[w] / (2 K\, p(x)^2)$. Derive it: write the mean weight as $p(x)(1 + \delta)$ and expand the logarithm to second order. Then estimate the gap at $K = 100$, in nats, from the 20,000 log weights below, without knowing $p(x)$. How far from the truth are you?

# %%
from vaelib.teaching.exercises import check

chain = ...  # your answer: two numbers (leapfrog steps of a chain, updates between visits)
check(chain, [2000, 2500])

standstill_size = ...  # your answer: a number
check(standstill_size, 0.3826834324)

smallest_s = ...  # your answer: a number
check(smallest_s, 1.0)

torch.manual_seed(0)
log_w = -3 + 0.5 * torch.randn(20_000, dtype=torch.float64)  # log weights of one datum
gap_at_100 = ...  # your answer, from log_w: a number
share = torch.softmax(log_w, 0)  # w / Σw
check(gap_at_100, 20_000 * (share - 1 / 20_000).square().sum() / 200)
print(f"(the exact variance of these weights gives {(math.exp(0.25) - 1) / 200:.5f})")

# %% [markdown]
# ## Further reading
#
# **The papers of this notebook**
# - D. P. Kingma and M. Welling (2013). *Auto-Encoding Variational Bayes.* [arXiv 1312.6114](https://arxiv.org/abs/1312.6114). Section 5, appendices D and E.
# - G. C. G. Wei and M. A. Tanner (1990). *A Monte Carlo Implementation of the EM Algorithm and the Poor Man's Data Augmentation Algorithms.* Journal of the American Statistical Association 85, 699–704.
#
# **Hamiltonian Monte Carlo**
# - S. Duane, A. D. Kennedy, B. J. Pendleton and D. Roweth (1987). *Hybrid Monte Carlo.* Physics Letters B 195, 216–222. Where it began.
# - R. M. Neal (2011). *MCMC using Hamiltonian Dynamics.* [arXiv 1206.1901](https://arxiv.org/abs/1206.1901). The text to learn it from.
# - M. Betancourt (2017). *A Conceptual Introduction to Hamiltonian Monte Carlo.* [arXiv 1701.02434](https://arxiv.org/abs/1701.02434). Why it works, in pictures.
# - M. D. Hoffman and A. Gelman (2014). *The No-U-Turn Sampler.* [arXiv 1111.4246](https://arxiv.org/abs/1111.4246). How to choose the length of a trajectory.
#
# **Estimating the evidence**
# - Y. Burda, R. Grosse and R. Salakhutdinov (2016). *Importance Weighted Autoencoders.* [arXiv 1509.00519](https://arxiv.org/abs/1509.00519). The ladder, used for training.
# - R. B. Grosse, Z. Ghahramani and R. P. Adams (2015). *Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo.* [arXiv 1511.02543](https://arxiv.org/abs/1511.02543). The bracket.
# - Y. Wu, Y. Burda, R. Salakhutdinov and R. Grosse (2017). *On the Quantitative Analysis of Decoder-Based Generative Models.* [arXiv 1611.04273](https://arxiv.org/abs/1611.04273). What to use above five latents: annealed importance sampling.
# - A. E. Gelfand and D. K. Dey (1994). *Bayesian Model Choice: Asymptotics and Exact Calculations.* Journal of the Royal Statistical Society B 56, 501–514. The identity behind appendix D.
# - R. M. Neal (2008). *The Harmonic Mean of the Likelihood: Worst Monte Carlo Method Ever.* A blog post worth its title.
