# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Watch a linear VAE collapse
#
# **What you will do.** You take a variational autoencoder so small that every question about it has an exact answer, and turn one dial: how noisy the decoder says that pixels are. Latents fall silent one after another, at values that you can predict from the data alone. Then you turn the same dial on a deep VAE for handwritten digits and see the same thing.
#
# **What you will learn.**
# - probabilistic PCA: the linear VAE whose maximum likelihood solution is a formula;
# - what *posterior collapse* is, latent by latent, and why it can be the **right** answer;
# - which directions collapse: those whose variance in the data is below the observation noise;
# - that the bound is not to blame: it adds no local maxima to the likelihood (Lucas et al. 2019). With the noise fixed, all other stationary points of the likelihood are saddles, as we shall see; where the noise is learned too, poor local maxima can exist;
# - what changes when the noise is learned, and why `mse_loss` with its default settings can switch off a whole VAE;
# - how to count active units.
#
# **What you need.** The bound (notebook 01), a trained VAE (notebook 03). From linear algebra: eigenvalues of a covariance matrix, which PCA calls the variances of the principal components. This notebook follows Lucas, Tucker, Grosse & Norouzi (2019), *Don't Blame the ELBO!*

# %%
import math
from functools import partial
from itertools import combinations

import matplotlib.pyplot as plt
import torch
from torch import nn

from vaelib import ELBO, VAE, data, fit, networks, scale
from vaelib.distributions import DiagNormal
from vaelib.encoders import MLPEncoder
from vaelib.inference import linear_vae
from vaelib.priors import StandardNormal
from vaelib.teaching import plotting
from vaelib.teaching.plotting import COLORS
from vaelib.training.loop import adam

# %%
SEED = 0  # the claims at the end held for every seed that we tried: try another
torch.manual_seed(SEED)
torch.set_num_threads(1)  # for networks this small, sharing the work costs more than doing it
torch.set_default_dtype(torch.float64)  # we will compare with exact answers, to rounding
plotting.use_style()


def label(ax, title, x, y, **more):
    ax.set(title=title, xlabel=x, ylabel=y, **more)


# %% [markdown]
# ## 1. A complaint, and a suspect
#
# People who train VAEs often report the same trouble. They give the model fifty latents. After training, ten of them carry something. For the other forty, the encoder returns the prior, whatever the image:
#
# $$q(z_i|x) = p(z_i) = \mathcal N(0, 1) \quad \text{for every } x .$$
#
# Such a latent has **collapsed**. It costs no rate and it carries no information; the decoder has learned to ignore it. If *all* latents do this, the VAE is an expensive way to store the mean image, and one speaks of **posterior collapse**.
#
# Who is guilty? The usual suspect is the objective. The bound contains $-\mathrm{KL}(q(z|x)\,\|\,p(z))$, a term that is largest when $q$ equals the prior. "The KL term is too strong", one reads, "anneal it, weaken it". Lucas et al. put the suspect on trial in the one model where guilt can be *computed*: encoder and decoder linear, everything Gaussian.
#
# $$p(z) = \mathcal N(0, I), \qquad p(x|z) = \mathcal N(Wz + \mu,\ \sigma^2 I), \qquad q(z|x) = \mathcal N\big(V(x - \mu),\ \operatorname{diag} s^2\big).$$
#
# The model without its encoder is older than VAEs. It is **probabilistic PCA** (Tipping & Bishop 1999), and its likelihood is known: a sum of Gaussians is Gaussian,
#
# $$p(x) = \mathcal N\big(\mu,\ C\big), \qquad C = W W^\top + \sigma^2 I .$$
#
# So we can ask two questions separately. Does the *likelihood* want the latent to collapse? And if not, does the *bound* make it collapse anyway?
#
# ### Data with known directions
#
# We take data with eight dimensions, and choose how much they vary in each of eight perpendicular directions: the eigenvalues $\lambda_1 > \dots > \lambda_8$ of their covariance. Then we turn everything by a random rotation, so that no coordinate is special.

# %%
EIGENVALUES = torch.tensor([6.0, 4.0, 2.5, 1.6, 1.0, 0.6, 0.35, 0.2])
DIMS, LATENTS = 8, 6
rotation = torch.linalg.qr(torch.randn(DIMS, DIMS)).Q
raw = torch.randn(2000, DIMS)
raw = (raw - raw.mean(0)) @ torch.linalg.inv(
    torch.linalg.cholesky(torch.cov(raw.T, correction=0))
).T
x = raw * EIGENVALUES.sqrt() @ rotation.T  # (2000, 8), with exactly this covariance
S = torch.cov(x.T, correction=0)
found, directions = torch.linalg.eigh(S)
found, directions = found.flip(0), directions.flip(1)  # largest first; directions are columns
print("eigenvalues of the data:", [round(value, 3) for value in found.tolist()])

# %% [markdown]
# ## 2. One direction at a time
#
# Look along a single direction of the data. The data vary there with variance $\lambda$. The model can offer $w^2 + \sigma^2$: what the latent brings, plus the noise, which it gets in every direction for free. The log likelihood per datum, up to a constant, is
#
# $$\ell(w^2) = -\tfrac12\Big[\ln(w^2 + \sigma^2) + \frac{\lambda}{w^2 + \sigma^2}\Big].$$
#
# Set its derivative to zero: it is largest where the model's variance equals that of the data, $w^2 = \lambda - \sigma^2$. But a square cannot be negative. If $\lambda < \sigma^2$, the noise alone is *already too much*. The best the model can do is not to add to it: $w = 0$. **The direction collapses, by maximum likelihood, without any bound in sight.**

# %%
w = torch.linspace(-2.5, 2.5, 401)


def gain(w, eigenvalue):
    """Log likelihood of one direction at σ² = 1, over that of w = 0, nats."""
    variance = w**2 + 1
    return -0.5 * (variance.log() + eigenvalue / variance) + 0.5 * eigenvalue


# %% [markdown]
# We draw this gain for two directions, one that varies more than the noise and one that varies less. The dots are the solutions $w = \pm\sqrt{(\lambda - \sigma^2)_+}$, where $(a)_+ = \max(a, 0)$: filled for the solid curve, hollow for the dashed one.

# %%
_, ax = plt.subplots(figsize=(8.5, 4))
for value, style, side, fill in [(2.5, "-", "more", "k"), (0.6, "--", "less", "w")]:
    ax.plot(
        w,
        gain(w, value),
        style,
        color=COLORS["decoder"],
        label=f"λ = {value}: {side} than the noise",
    )
    best = torch.tensor([-1.0, 1.0]) * math.sqrt(max(value - 1, 0))
    ax.plot(best, gain(best, value), "o", color=COLORS["exact"], mfc=fill)
label(ax, "one direction, σ² = 1: two peaks, or none but zero", "decoder weight w", "gain (nats)")
ax.set_ylim(-1.1, 0.75)
ax.legend(title="the data vary")
plt.show()

# %% [markdown]
# *What to see.* Solid, $\lambda > \sigma^2$: two equal peaks at $\pm\sqrt{\lambda - \sigma^2}$ (the sign of a latent is arbitrary), and a dip at $w = 0$. The dip matters: collapse is a stationary point here, but one that any small push leaves. Dashed, $\lambda < \sigma^2$: a single peak at zero, the hollow dot. The variance of the model cannot go below the noise, and any $w$ makes it worse.
#
# ## 3. All directions: probabilistic PCA
#
# With many directions and $k$ latents the answer of Tipping & Bishop is what you would hope for. The columns of $W$ are the leading eigenvectors of the data's covariance, scaled as above:
#
# $$W = U_k\,\big(\Lambda_k - \sigma^2 I\big)_+^{1/2}.$$
#
# `linear_vae.PPCA.fit(x, k, noise_variance)` returns it, and `VAE(*model.slots())` puts it into our three slots, with the best encoder of the family beside it. For this $W$ the true posterior is *diagonal*: latents that explain perpendicular directions do not compete. So the family of $q$ contains it, and the bound touches:
#
# $$q(z_i|x) = \mathcal N\Big(\frac{w_i}{\lambda_i}\,u_i^\top(x - \mu),\ \frac{\sigma^2}{\lambda_i}\Big) \quad \text{where } \lambda_i > \sigma^2, \qquad \mathcal N(0, 1) \text{ elsewhere.}$$
#
# From this, two numbers for every latent. How much does its posterior mean move with the image? What does it cost?
#
# $$\operatorname{Var}_x\big(\mathbb E_q[z_i|x]\big) = 1 - \frac{\sigma^2}{\lambda_i}, \qquad \text{rate}_i = \mathbb E_x\,\mathrm{KL} = \tfrac12 \ln \frac{\lambda_i}{\sigma^2} \text{ nats}, \qquad \text{both } 0 \text{ where } \lambda_i \le \sigma^2 .$$
#
# The first is the measure of Burda et al. (2016), who call a unit **active** if this variance exceeds 0.01. The second is a famous formula: it is the rate–distortion function of a Gaussian. Shannon's engineers draw it as water: pour noise of level $\sigma^2$ over the spectrum; whatever still looks out of the water is sent, the rest drowns.

# %%
NOISES = [0.1, 0.5, 1.3, 3.0, 8.0]  # noise variances σ², from below all eigenvalues to above all


@torch.no_grad()
def latent_statistics(vae, x):
    """Variance of the posterior means and mean rate of each latent, (latents,) and (latents,)."""
    q = vae.encoder(x)
    rate = 0.5 * (q.loc**2 + q.scale**2 - 1) - q.scale.log()
    return q.loc.var(0, correction=0), rate.mean(0)


def predicted(noise, latents=LATENTS):
    """The same two by the formulas, from the eigenvalues of the data alone."""
    share = (noise / found[:latents]).clamp(max=1)
    return 1 - share, -0.5 * share.log()


# %% [markdown]
# Let us check the formulas at five noises, and the bound as well. One draw of $z$ for each datum is enough for that. The bound is the mean of $\ln p(x, z) - \ln q(z|x)$ (estimator A of notebook 02), and if $q(z|x)$ is the true posterior, this difference is $\ln p(x)$ *whatever $z$ was drawn*.

# %%
for noise in NOISES:
    optimum = linear_vae.PPCA.fit(x, LATENTS, noise)
    vae = VAE(*optimum.slots())
    pairs = zip(latent_statistics(vae, x), predicted(noise), strict=True)
    agree = all(torch.allclose(mine, theirs, atol=1e-9) for mine, theirs in pairs)
    gap = (optimum.log_prob(x) - vae.elbo(x, estimator="A").value).abs().max()
    active = int((latent_statistics(vae, x)[0] > 0.01).sum())
    print(f"σ² = {noise}: {active} of {LATENTS} active;", end=" ")
    print(f"formulas hold: {agree}; bound = log p(x): {bool(gap < 1e-9)}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4), width_ratios=[1, 1.25])
number = torch.arange(1, DIMS + 1)
noise = 1.3
axes[0].bar(number, found, color=COLORS["data"], width=0.6, label="variance of the data, λ")
axes[0].bar(number, found.clamp(max=noise), color=COLORS["distortion"], width=0.6, label="drowned")
axes[0].axhline(noise, color=COLORS["decoder"], ls="--", label="noise of the decoder, σ²")
label(axes[0], "what looks out of the water is sent", "direction of the data", "variance")
axes[0].legend()
dial = torch.logspace(-1, 1, 200)
rates = torch.stack([predicted(level)[1] for level in dial])  # (200, 6)
for i, color in enumerate(plt.get_cmap("viridis")(torch.linspace(0, 0.9, LATENTS))):
    axes[1].semilogx(dial, rates[:, i], color=color)
    axes[1].plot(found[i], 0, "o", color=color, clip_on=False)
    axes[1].annotate(f"λ{'₁₂₃₄₅₆'[i]}", (found[i], 0), (0, 6), textcoords="offset points")
label(
    axes[1],
    "each latent falls silent at its own noise",
    "noise variance σ²",
    "rate of the latent (nats)",
)
axes[1].set_ylim(0, None)
plt.show()

# %% [markdown]
# *What to see.* Left: at $\sigma^2 = 1.3$ four directions look out of the water. The other two latents have nothing worth saying, and say nothing. Right: turn the noise up from left to right. The curves are parallel lines that hit zero one after another, each exactly at its own eigenvalue. This is what we mean by *the dial*: the noise decides how many latents live.
#
# Note what did **not** appear in this section: an encoder that is too weak, an optimiser that got stuck, a KL term with too much weight. The collapse at $\sigma^2 = 1.3$ is the maximum of the exact likelihood.
#
# ## 4. Does training find it?
#
# Formulas are one thing. Now forget them, start from random weights, and climb the bound. In the linear model the bound itself has a closed form in $W$, $V$ and $s$, so we can climb it without any noise. To see why, put $z = V(x - \mu) + s \odot \epsilon$ into $\|x - \mu - Wz\|^2$ and average over $x$ and $\epsilon$: the part with $x$ becomes a trace, the part with $\epsilon$ a sum over the latents. With $S$ the covariance of the data, and $\mu$ at its best value, the mean, the two parts of the bound are
#
# $$\text{distortion} = \frac D2 \ln 2\pi\sigma^2 + \frac{1}{2\sigma^2}\Big[\operatorname{tr}\big((I - WV)\,S\,(I - WV)^\top\big) + \sum_i s_i^2\, \|w_i\|^2\Big],$$
#
# $$\text{rate} = \tfrac12\Big[\operatorname{tr}(V S V^\top) + \sum_i \big(s_i^2 - 1 - \ln s_i^2\big)\Big].$$
#
# All starts run side by side, as one batch of small matrices.


# %%
def linear_elbo(W, V, log_s, noise, S=S):
    """The exact bound of linear VAEs, mean per datum: W (…, D, k), V (…, k, D), log_s (…, k)."""
    noise = torch.as_tensor(noise)
    rest = torch.eye(S.shape[0]) - W @ V
    error = (rest @ S * rest).sum((-2, -1)) + (W.square().sum(-2) * (2 * log_s).exp()).sum(-1)
    distortion = 0.5 * S.shape[0] * (2 * math.pi * noise).log() + error / (2 * noise)
    spread = ((2 * log_s).exp() - 1 - 2 * log_s).sum(-1)
    return ELBO(distortion, 0.5 * ((V @ S * V).sum((-2, -1)) + spread))


# %%
def climb(parameters, bound, steps=3000, rate=0.1, method=torch.optim.Adam):
    """Gradient ascent, the step size falling to zero; the bound along the way."""
    parameters = [parameter.requires_grad_() for parameter in parameters]
    optimizer = method(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        values = bound(*parameters)
        (-values.sum()).backward()
        optimizer.step()
        schedule.step()
        path.append(values.detach())
    return torch.stack(path)  # (steps, starts)


# %% [markdown]
# Fifty models start from small random weights, at $\sigma^2 = 1.3$. None of them is told of eigenvalues. We compare where they arrive with the best likelihood of pPCA.

# %%
STARTS, NOISE = 50, 1.3


def random_starts(size=0.3):
    shapes = [(STARTS, DIMS, LATENTS), (STARTS, LATENTS, DIMS), (STARTS, LATENTS)]
    return [size * torch.randn(shape) for shape in shapes]


starts = random_starts()
path = climb(starts, lambda *p: linear_elbo(*p, NOISE).value, rate=0.05)  # (3000, 50)
best = linear_vae.PPCA.fit(x, LATENTS, NOISE).log_prob(x).mean()
trained_W, trained_V, _ = (parameter.detach() for parameter in starts)
moves = (trained_V @ S * trained_V).sum(-1)  # (50, 6): variance of the posterior means
active = (moves > 0.01).sum(-1)
print(f"{STARTS} starts; all end within 1e-5 nats of the best likelihood:", end=" ")
print(bool(((path[-1] - best).abs() < 1e-5).all()))
print("active units, one number for each different outcome:", sorted(set(active.tolist())))

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4))
axes[0].loglog((best - path).clamp(min=1e-7), color=COLORS["aevb"], alpha=0.3, linewidth=1)
label(axes[0], f"{STARTS} random starts, one optimum", "step", "below the best log p(x) (nats)")
order = moves.argsort(-1, descending=True)
sorted_moves = moves.gather(-1, order)  # the latents of each start, most active first
for place in range(LATENTS):
    axes[1].plot([place + 1] * STARTS, sorted_moves[:, place], "o", color=COLORS["aevb"], alpha=0.3)
axes[1].plot(range(1, LATENTS + 1), predicted(NOISE)[0], "_", color=COLORS["exact"], ms=30, mew=2)
axes[1].axhline(0.01, color=COLORS["bound"], ls=":")
label(axes[1], "orange: trained, black: 1 − σ²/λ", "latent, sorted", "variance of posterior means")
plt.show()

# %% [markdown]
# *What to see.* Left: every start reaches the same bound. Some pause on the way; their curves are flat for a while and then fall. (The jitter is Adam's, whose steps are still large there. The picture ends at $10^{-7}$ nats.) Right: in every run four latents are active and two are dead, and each active one moves by exactly the amount that the formula says. The dotted line is the threshold of Burda et al.
#
# Which latent is dead differs from run to run. *How many* are dead does not.
#
# ### The directions, too
#
# The likelihood of pPCA does not care how we turn the latents among themselves: with any rotation $R$, $WR$ gives the same $WW^\top$. The bound does care, because $q$ is diagonal: only for the unrotated $W$ is the posterior diagonal. So a linear VAE finds the *principal directions themselves*, which maximum likelihood leaves open. We compare the active columns of $W$ with the eigenvectors.

# %%
alive = int((found[:LATENTS] > NOISE).sum())  # latents that live, by the formula: four
lengths = trained_W.norm(dim=-2)  # (50, 6), of the columns
columns = trained_W / lengths[:, None]  # (50, 8, 6), of length one
ordered = columns.gather(-1, order[:, None, :alive].expand(-1, DIMS, -1))  # the active ones
cosine = (directions[:, :alive].T @ ordered).abs().diagonal(dim1=-2, dim2=-1)  # (50, 4)
principal = bool((cosine > 0.999).all())
print("active columns are the leading eigenvectors, |cos| > 0.999:", principal)
lengths = lengths.gather(-1, order)  # those of the most active latents first
scaled = bool((lengths[:, :alive].square() - (found[:alive] - NOISE)).abs().lt(0.01).all())
print("and their squared length is λ − σ², to 0.01:", scaled)
silent = bool((lengths[:, alive:] < 0.01).all())
print("the columns of dead latents have a length below 0.01:", silent)
fifty = principal and scaled and silent

# %% [markdown]
# ## 5. No traps: the other stationary points are saddles
#
# Fifty starts are not a proof. Might there be a bad local maximum that we were lucky to miss? In the linear case we can list where the *likelihood* might have one. Tipping & Bishop show where its gradient vanishes: where the columns of $W$ are, up to a rotation of the latents, *any* selection of eigenvectors with $\lambda > \sigma^2$, scaled as above, the other columns being zero. Without the rotation, and with the matching encoder, the gradient of the bound vanishes there as well.
#
# At our noise four eigenvalues are above $\sigma^2$, so there are $2^4 = 16$ selections: the empty one (total collapse!), four with one direction, and so on up to the full one. For each we compute the gradient of the bound, and all second derivatives, the Hessian. A stationary point is
#
# - a **maximum** if the function curves downwards along all directions: all eigenvalues of the Hessian are negative;
# - a **saddle** if there is a direction along which it curves upwards: then every small push in that direction leads out, and up.
#
# An eigenvalue of zero is a direction that is flat, as far as second derivatives see. It decides nothing by itself. The likelihood has such directions at every one of these points if latents are in use: the rotations of the latents, along which it does not change at all.
#
# A saddle of the likelihood is a place where the *bound* could make a trap of its own: it would only have to curve downwards where the likelihood curves upwards. We count the ways up for both.

# %%
PARTS = [DIMS * LATENTS, LATENTS * DIMS, LATENTS]


def stationary_point(chosen, noise=NOISE):
    """W, V and log s with these eigenvectors in the first columns, flattened, (102,)."""
    W = torch.zeros(DIMS, LATENTS)
    W[:, : len(chosen)] = directions[:, list(chosen)] * (found[list(chosen)] - noise).sqrt()
    M = W.T @ W + noise * torch.eye(LATENTS)
    V, log_s = torch.linalg.solve(M, W.T), 0.5 * (noise / M.diagonal()).log()
    return torch.cat([W.flatten(), V.flatten(), log_s])


def bound_at(theta):
    W, V, log_s = theta.split(PARTS)
    return linear_elbo(W.view(DIMS, LATENTS), V.view(LATENTS, DIMS), log_s, NOISE).value


def log_likelihood_at(flat_W):
    W = flat_W.view(DIMS, LATENTS)
    C = W @ W.T + NOISE * torch.eye(DIMS)
    return -0.5 * (DIMS * math.log(2 * math.pi) + C.logdet() + torch.linalg.solve(C, S).trace())


# %% [markdown]
# Now the table: for each of the sixteen, how far it lies below the best, and how many directions lead up (positive eigenvalues of the Hessian), for the bound and for the likelihood. For the last one we also count what is flat.

# %%
table = []
sizes = range(alive + 1)
for chosen in (c for size in sizes for c in combinations(range(alive), size)):
    theta = stationary_point(chosen)
    slope = torch.func.grad(bound_at)(theta).abs().max().item()
    places = [(bound_at, theta), (log_likelihood_at, theta[: PARTS[0]])]
    curved = [torch.linalg.eigvalsh(torch.func.hessian(f)(place)) for f, place in places]
    ways = [int((curvature > 1e-6).sum()) for curvature in curved]
    table.append((chosen, bound_at(theta).item(), slope, *ways))
print("directions used   below the best   ways up: bound, likelihood")
for chosen, value, _, up, up_likelihood in table:
    names = "".join(str(i + 1) for i in chosen) or "none"
    print(f"{names:<17} {abs(best.item() - value):>9.3f} nats {up:>14} {up_likelihood:>10}")
flat = [int((curvature.abs() < 1e-6).sum()) for curvature in curved]  # of the last one
print(f"flat directions at the last: {flat[0]} of the bound, {flat[1]} of the likelihood")

# %% [markdown]
# *What to see.* All sixteen are stationary. Only the last, which uses all four directions, has no way up. Every other one is a saddle with several ways out, and they can be counted by hand. Any unused latent can grow along any direction that is above the noise and not yet used: at total collapse, six latents times four directions make 24. And a used direction can turn into an unused one with a *larger* eigenvalue: that is the sixteenth way of row 2, beside five latents times three directions. And the two columns on the right agree: at these sixteen points the bound has a way up exactly where the likelihood has one. **It has turned none of its saddles into a trap.** At the last point the bound curves downwards in all 102 directions, so this is a maximum. The likelihood has 14 flat directions there, and they are rotations: six latents can be turned in 15 planes, and one of these turns only the two dead ones.
#
# A table of sixteen points cannot show everything. The bound could still have a local maximum where the likelihood has a slope, and no list of the likelihood's stationary points would find it. That there is none is the theorem of Lucas et al. for linear VAEs, and the reason for their title.
#
# A saddle is not harmless, though. Near one, the gradient is tiny, and an optimiser can lose much time. We start ten runs at *total collapse*, pushed by very little, and watch them leave.

# %%
pushes = torch.logspace(-6, -1, 10)  # sizes of the random push
pushed = stationary_point(()) + pushes[:, None] * torch.randn(10, sum(PARTS))
shapes = [(10, DIMS, LATENTS), (10, LATENTS, DIMS), (10, LATENTS)]
pieces = zip(pushed.split(PARTS, 1), shapes, strict=True)
pieces = [piece.reshape(shape).clone() for piece, shape in pieces]
noisy_elbo = partial(linear_elbo, noise=NOISE)
escape = climb(pieces, lambda *p: noisy_elbo(*p).value, 12_000, 0.05, torch.optim.SGD)
last_V = pieces[1].detach()
woken = ((last_V @ S * last_V).sum(-1) > 0.01).sum(-1).unique().tolist()  # of the ten runs
print("active latents at the end, one number for each different outcome:", woken)

# %%
_, ax = plt.subplots(figsize=(9, 4))
for run, color in zip(escape.T, plt.get_cmap("cividis")(torch.linspace(0, 0.95, 10)), strict=True):
    ax.plot(run[:800], color=color)
ax.axhline(best, color=COLORS["exact"], ls=":", label="best log p(x)")
ax.axhline(bound_at(stationary_point(())), color=COLORS["bound"], ls="--", label="total collapse")
label(
    ax,
    "leaving total collapse: smaller pushes take longer",
    "gradient step, the first 800 of 12,000",
    "bound (nats)",
)
ax.legend(title="bright: large push, dark: tiny", loc="lower right")
plt.show()

# %% [markdown]
# *What to see.* All runs leave. Those with a small push climb in *steps*: the direction with the largest eigenvalue wakes first, since the bound curves upwards most there, then the next. The fourth, whose eigenvalue is barely above the noise, wakes last; after the smallest pushes it takes thousands of steps. It gains a hundredth of a nat (row 123 of the table), too little to see here; but the cell above counts four active latents in every run, and claim 3 checks it. A push a hundred times smaller costs a constant number of steps more, because near a saddle the distance grows exponentially. Whoever stops training on the first plateau will report a collapse that is none.
#
# ## 6. Learn the noise
#
# So far somebody chose $\sigma^2$. What if the model may learn it? In pPCA the answer is again a formula: the noise becomes the *mean of the eigenvalues that the latents leave over*,
#
# $$\sigma^2_{\mathrm{ML}} = \frac{1}{D - k} \sum_{i > k} \lambda_i .$$
#
# A mean of the smaller eigenvalues is below each of the larger ones, unless they are all equal. So at the optimum, for $k < D$, **every latent has an eigenvalue above the noise: none collapses**, as long as the eigenvalues that are left over are not all the same. They are the same if the data *are* pPCA with fewer latents; in a finite sample of such data the extra latents then fit its noise: with covariance diag(6, 4, 2.5, 0.3, 0.3, …) in eight dimensions and six latents, the three extra ones have posterior means of variance 0, and 0.07 to 0.13 when fitted to 2,000 draws. A collapse with a chosen noise is therefore a message about the noise, not about the latents: *you said that the pixels are so noisy that this is not worth saying*.
#
# We start the learned noise far too high, at $\sigma^2 = 20$, where everything is collapsed, and watch.

# %%
start = [
    0.02 * torch.randn(shape) for shape in [(1, DIMS, LATENTS), (1, LATENTS, DIMS), (1, LATENTS)]
]
log_noise, trace = torch.tensor([math.log(20.0)]), []


def bound_with_noise(W, V, log_s, log_noise):
    moves = (V @ S * V).sum(-1).squeeze(0).sort(descending=True).values
    trace.append(torch.cat([log_noise.exp(), moves]).detach())
    return linear_elbo(W, V, log_s, log_noise.exp()).value


learning = climb([*start, log_noise], bound_with_noise, steps=3000, rate=0.02)
trace = torch.stack(trace)  # (3000, 1 + 6)
formula = found[LATENTS:].mean()
final_noise, awake = trace[-1, 0], int((trace[-1, 1:] > 0.01).sum())
print("the learned noise is the mean of the eigenvalues left over, to 1e-3:", end=" ")
print(bool((final_noise - formula).abs() < 1e-3))
print(f"active units: {awake} of {LATENTS}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4), sharex=True)
axes[0].semilogy(trace[:1000, 0], color=COLORS["decoder"], linewidth=3, label="learned noise σ²")
shades = plt.get_cmap("viridis")(torch.linspace(0, 0.9, LATENTS))
for i, color in enumerate(shades):
    axes[0].axhline(found[i], color=color, linewidth=1)
    axes[1].plot(trace[:1000, 1 + i], color=color, label=f"latent {i + 1}")
axes[0].axhline(formula, color=COLORS["exact"], ls=":", label="mean of λ₇ and λ₈")
label(
    axes[0],
    "the noise falls past the eigenvalues …",
    "step (of 3,000)",
    "variance (lines: λ₁ … λ₆)",
)
label(
    axes[1], "… and the latents wake, one by one", "step (of 3,000)", "variance of posterior means"
)
axes[0].legend()
axes[1].legend(fontsize=10)
plt.show()

# %% [markdown]
# *What to see.* At first the noise is above every eigenvalue, and all latents sleep. Once it has fallen past $\lambda_1$, the first wakes, and so on, each with some delay: leaving zero takes time, as in the last picture. At the end all six are awake, and the noise stands at its formula.
#
# **The same dial in disguise.** Much code never mentions $\sigma^2$. Look for it all the same:
#
# - *"Loss = sum of squared errors + KL"* is a Gaussian decoder with $\sigma^2 = \tfrac12$, up to a constant: $\frac{1}{2\sigma^2}\|x - \hat x\|^2$.
# - *"Loss = `mse_loss` + KL"*: PyTorch's `mse_loss` takes the **mean** over the $D$ pixels by default. That is $\sigma^2 = D/2$. For a digit with 784 pixels in $[0, 1]$ it is 392, and no eigenvalue of the digits comes near. Such a model collapses, *and it is right to*. (If the mean runs over a batch of $B$ images too, while the KL term is summed over it, the noise variance is $BD/2$.)
# - *"$\beta$-VAE"*: distortion $+\ \beta \cdot$ rate. With a Gaussian decoder of fixed noise, $\frac{1}{2\sigma^2} E + \beta\,\mathrm{KL} = \beta\big(\frac{1}{2\beta\sigma^2} E + \mathrm{KL}\big)$: the same optimum as $\beta = 1$ with the noise variance $\beta\sigma^2$.
# - *"KL annealing"* begins with a small $\beta$: low noise, latents awake, and then raises it.
#
# ## 7. A deep VAE follows the same dial
#
# All this was linear. Now a VAE with hidden layers and real digits ($28\times28$, grey). The decoder is Gaussian, with the **same fixed noise** for all pixels; its mean is a network. We train it at six values of the noise, and count active units as before: $\operatorname{Var}_x(\mathbb E_q[z_i|x]) > 0.01$.
#
# And the prediction comes from a line of linear algebra that knows nothing of networks: how many eigenvalues of the digits' covariance are above $\sigma^2$?


# %%
class FixedNoiseMLP(nn.Module):
    """p(x|z) = N(f(z), σ² I): the noise is chosen, the mean f is a network."""

    def __init__(self, latents, noise_variance, image_shape=(1, 28, 28), hidden=200):
        super().__init__()
        self.image_shape, self.noise = image_shape, math.sqrt(noise_variance)
        self.network = networks.MLP(latents, hidden, math.prod(image_shape))

    def forward(self, z):  # (*batch, latents)
        mean = self.network(z).unflatten(-1, self.image_shape)
        return DiagNormal(mean, torch.full_like(mean, self.noise), len(self.image_shape))


# %% [markdown]
# Two details. The decoder's bias starts at the mean digit, so that training does not spend its first epochs on finding it. And the step size is cut to a tenth for the last third of the epochs: a dead latent is *never quite* dead while large steps jolt it about. Twenty latents, one hidden layer on each side. Allow half a minute for the six.

# %%
torch.set_default_dtype(torch.float32)  # networks need no more
digits = data.mnist(scale(classroom="5k", paper="full"))
pixels = digits.train.flatten(1).double()
digit_eigenvalues = torch.linalg.eigvalsh(torch.cov(pixels.T, correction=0)).flip(0)  # (784,)
DEEP_NOISES, DEEP_LATENTS = [0.1, 0.5, 1.0, 2.0, 3.5, 10.0], 20
EPOCHS = scale(classroom={2e-3: 12, 2e-4: 6}, paper={1e-3: 150, 1e-4: 50})


def deep_vae(noise):
    torch.manual_seed(SEED)
    decoder = FixedNoiseMLP(DEEP_LATENTS, noise)
    decoder.network[-1].bias.data.copy_(digits.train.mean(0).flatten())
    vae = VAE(MLPEncoder(DEEP_LATENTS, hidden=200), StandardNormal(DEEP_LATENTS), decoder)
    for rate, epochs in EPOCHS.items():
        optimizer = partial(adam, lr=rate)
        fit(vae, digits.train, epochs=epochs, optimizer=optimizer, seed=SEED, progress=False)
    return vae


# %%
vaes = {noise: deep_vae(noise) for noise in DEEP_NOISES}
moves, rates = zip(*(latent_statistics(vae, digits.test) for vae in vaes.values()), strict=True)
moves, rates = torch.stack(moves), torch.stack(rates).sum(1)  # (6, 20) and (6,)
deep_active = (moves > 0.01).sum(1).tolist()
above = [int((digit_eigenvalues > noise).sum()) for noise in DEEP_NOISES]


def linear_rate(noise, latents=DEEP_LATENTS):
    """What a linear VAE would pay: Σ ½ ln(λ/σ²) over the eigenvalues above the noise, nats."""
    return 0.5 * (digit_eigenvalues[:latents] / noise).clamp(min=1).log().sum().item()


# %% tags=["nbval-ignore-output"]
print("noise σ²   eigenvalues above   active of 20   rate, deep   rate, linear formula")
for k, noise in enumerate(DEEP_NOISES):
    shown = f"{noise:>8} {above[k]:>19} {deep_active[k]:>14} {rates[k]:>12.2f}"
    print(shown, f"{linear_rate(noise):>16.2f} nats")

# %%
figure, axes = plt.subplots(1, 3, figsize=(13.5, 4))
dial = torch.logspace(-1.1, 1.1, 150)
axes[0].semilogy(range(1, 61), digit_eigenvalues[:60], ".", color=COLORS["data"])
for noise in DEEP_NOISES:
    axes[0].axhline(noise, color=COLORS["decoder"], ls="--", linewidth=1)
    axes[0].annotate(f"σ² = {noise}", (84, noise), (0, 3), textcoords="offset points", ha="right")
label(axes[0], "eigenvalues of the digits, six noises", "direction", "variance", xlim=(0, 86))
counts = [min(DEEP_LATENTS, int((digit_eigenvalues > level).sum())) for level in dial]
axes[1].step(dial, counts, color=COLORS["exact"], label="eigenvalues above σ² (at most 20)")
style = {"color": COLORS["aevb"], "ms": 9}
axes[1].plot(DEEP_NOISES, deep_active, "o", label="deep VAE: variance > 0.01", **style)
axes[1].plot(DEEP_NOISES, (moves > 0.1).sum(1), "o", mfc="none", label="variance > 0.1", **style)
label(axes[1], "units in use", "noise variance σ²", "units", xscale="log", ylim=(-0.7, 28))
exact_rates = [linear_rate(level) for level in dial]
axes[2].plot(dial, exact_rates, color=COLORS["exact"], label="Σ ½ ln(λ/σ²), linear")
axes[2].plot(DEEP_NOISES, rates, "o", label="deep VAE", **style)
label(axes[2], "rate", "noise variance σ²", "rate (nats per digit)", xscale="log")
axes[2].set_yscale("symlog", linthresh=0.1, linscale=0.3)  # a logarithm that still shows zero
axes[2].set_yticks([0, 0.1, 1, 10], ["0", "0.1", "1", "10"])
axes[2].set_ylim(-0.02, None)
for ax in axes[1:]:
    ax.legend(loc="upper right", fontsize=10)
plotting.save_figure(figure, "07_watch_a_linear_vae_collapse")
plt.show()

# %% [markdown]
# *What to see.* Left: the spectrum of the digits, and the six noises as water lines. Middle: the deep VAE loses its units over the same range of noise in which the eigenvalues go under, and has none left when the noise is above the largest. It need not agree unit by unit. A network with hidden layers can bend, so it can spread the same information over more units; and a unit that moves by a little more than 0.01 is counted like any other. The open circles count only units with a variance above 0.1. A linear model has hardly any unit between the two thresholds; the deep one has several. A count of active units is a count at a threshold: say which.
#
# Right is the sharper comparison, because the rate does not ask how many units share it. The formula for a *linear* model, read off the covariance of the data, lies close to what the deep model pays. No part of it was fitted to the networks. The axis is logarithmic, so that small rates can be told apart: at $\sigma^2 = 3.5$, where a linear model would still send a quarter of a nat, the deep one sends clearly less.
#
# ### The same, unit by unit

# %%
figure, axes = plt.subplots(1, 5, figsize=(13.5, 3.2), sharey=True)
for ax, noise, each in zip(axes, DEEP_NOISES[:5], moves, strict=False):
    place = range(1, DEEP_LATENTS + 1)
    ax.bar(place, each.sort(descending=True).values, color=COLORS["aevb"], label="deep VAE")
    share = (noise / digit_eigenvalues[:DEEP_LATENTS]).clamp(max=1)
    ax.step(place, 1 - share, where="mid", color=COLORS["exact"], label="1 − σ²/λ, linear")
    label(ax, f"σ² = {noise}", "unit, sorted", "")
axes[0].set_ylabel("variance of posterior means")
axes[-1].legend(fontsize=10, loc="upper right")
plt.show()

# %% [markdown]
# *What to see.* The black steps are $1 - \sigma^2/\lambda_i$ for the eigenvalues of the digits, and the networks follow them: units move less and less, and fewer and fewer of them. Look at the differences, too. At low noise some bars exceed one, so the posteriors together do not quite make up the prior. At middle noise the last units, which a linear model would still use a little, stay nearly silent. And at the highest noise shown, where the linear model has two weak units, the deep one has a few that are weaker still.
#
# Last, what the decoder makes of it. Each row decodes draws from the posteriors of one model.

# %%
torch.manual_seed(SEED)
rows = {"data": digits.test[:12]}
rows |= {f"σ² = {noise}": vae.reconstruct(rows["data"], mean=True) for noise, vae in vaes.items()}
plotting.show_rows(rows, "One architecture, six beliefs about the noise")
plt.show()

# %% [markdown]
# *What to see.* From top to bottom less and less of the digit is said. At low noise a reconstruction keeps the slant and often the digit. At $\sigma^2 = 2$, where little more than a nat is sent, a vague type is left. At $\sigma^2 = 10$ every digit becomes the mean digit: full collapse, and nothing went wrong. A Gaussian of standard deviation above three, for pixels between 0 and 1, says: *each pixel is nearly pure noise*. Whoever believes that is right not to spend a nat on it.
#
# ### What this means for practice
#
# - Before you blame the bound, look for $\sigma^2$: in the likelihood, in a weight on the KL term, in a mean that should be a sum.
# - Learn the noise, or choose it with the eigenvalues of your data beside you.
# - Count active units, and start with more latents than you need: the superfluous ones switch themselves off.
# - And keep in mind what has **not** been shown. In the linear model the bound is innocent. The deep model merely follows the same dial; its encoder may be too weak, its optimiser may get stuck, and there the theorem is silent. Notebook 09 has a decoder of another kind, so strong that it needs no latents at all. Its collapse is not a matter of noise, and there the bound has to answer again.
#
# ## Claims
#
# Each cell states a claim, tests it with a stated margin, and fails if it does not hold.

# %%
torch.set_default_dtype(torch.float64)
print("1. at the pPCA optimum of five noises:")
tight, right = [], []
for noise in NOISES:
    optimum = linear_vae.PPCA.fit(x, LATENTS, noise)
    vae = VAE(*optimum.slots())
    tight.append((optimum.log_prob(x) - vae.elbo(x, estimator="A").value).abs().max())
    pairs = zip(latent_statistics(vae, x), predicted(noise), strict=True)
    right.append(max((mine - theirs).abs().max() for mine, theirs in pairs))
print("   bound = log p(x) for every datum, to 1e-9 nats:", bool(max(tight) < 1e-9))
print(
    "   variances 1 − σ²/λ and rates ½ ln(λ/σ²) of every latent, to 1e-9:", bool(max(right) < 1e-9)
)
assert max(tight) < 1e-9 and max(right) < 1e-9

# %%
print("2. ten random starts at each of four noises, the bound climbed by gradient:")
for noise in NOISES[1:]:  # at 0.1 the climb takes longer than we wait
    starts = [part[:10] for part in random_starts()]
    reached = climb(starts, lambda *p, noise=noise: linear_elbo(*p, noise).value)[-1]
    W, V, _ = (part.detach() for part in starts)
    means = (V @ S * V).sum(-1).sort(descending=True).values  # (10, 6)
    likelihood = linear_vae.PPCA.fit(x, LATENTS, noise).log_prob(x).mean()
    one_optimum = bool((reached - likelihood).abs().max() < 1e-3)
    as_predicted = bool((means - predicted(noise)[0]).abs().max() < 0.02)
    count = int((found[:LATENTS] > noise).sum())
    print(f"   σ² = {noise}: best likelihood to 1e-3 nats {one_optimum};", end=" ")
    print(f"the {count} directions above σ² live, the others are dead: {as_predicted}")
    assert one_optimum and as_predicted
print("   fifty starts: principal directions, their lengths, and dead columns as printed:", fifty)
assert fifty

# %%
stationary = max(slope for _, _, slope, _, _ in table)
ways_out = [
    (len(chosen) < alive, up > 0, up_likelihood > 0) for chosen, _, _, up, up_likelihood in table
]
print(f"3. all {len(table)} selections are stationary points of the bound:", stationary < 1e-9)
same = all(unused == bound == likelihood for unused, bound, likelihood in ways_out)
print("   each but the full one is a saddle, of the bound and of the likelihood:", same)
left = woken == [alive]
print(f"   ten runs from total collapse all wake {alive} latents:", left)
assert stationary < 1e-9 and len(table) == 2**alive and same and left
close = bool((final_noise - formula).abs() < 1e-3)
print("4. learned noise = mean of the eigenvalues left over, to 1e-3:", close)
print(f"   and all {LATENTS} latents are active:", awake == LATENTS)
assert close and awake == LATENTS

# %%
clear = (moves > 0.1).sum(1).tolist()  # few units are close to this threshold
falling = all(a >= b for a, b in zip(clear, clear[1:], strict=False))
print("5. deep VAE: more noise, never more units with a variance above 0.1:", falling)
ends = deep_active[0] == DEEP_LATENTS and deep_active[-1] == 0
print("   all 20 active at σ² = 0.1, none at σ² = 10, above the largest eigenvalue:", ends)
formulas = torch.tensor([linear_rate(noise) for noise in DEEP_NOISES])
near = bool(((rates - formulas).abs() < 0.1 + 0.1 * formulas).all())
print("   its rate is the linear formula's within 0.1 nats plus 10 %, at all six:", near)
assert falling and ends and near and digit_eigenvalues[0] < 10

# %% [markdown]
# ## Exercises
#
# From easy to hard. Replace each `...`; the cell then says whether yours is right. Solutions with explanations are in `notebooks/solutions/07_watch_a_linear_vae_collapse.py`.
#
# **1. Find the noise in the loss.** Someone trains with `loss = weight * F.mse_loss(x_hat, x) + kl`, the mean running over all `D` pixels of one image. Which noise variance is that? And which weight do you need for a noise variance of your choice? (For $\sigma^2 = 0.01$ and images of $28 \times 28$ it is surprisingly large.)

# %%
from vaelib.teaching.exercises import check


def noise_variance(weight, pixels):
    return ...  # your formula


def weight_for(noise, pixels):
    return ...  # and the other way round


check([noise_variance(1, 784), noise_variance(2.5, 3072)], [392.0, 614.4])
check([weight_for(0.01, 784), weight_for(0.5, 3072)], [39_200.0, 3072.0])

# %% [markdown]
# **2. Room for ten.** Choose a noise variance for which a linear VAE of the digits, with twenty latents, uses exactly ten. (`digit_eigenvalues` holds the spectrum.) What is its rate, by the formula of section 3? The check fits pPCA at your noise and counts.

# %%
your_noise = ...  # a number


def living_latents(noise):
    model = linear_vae.PPCA.fit(pixels, 20, noise)
    return int((model.weight.norm(dim=0) > 0).sum())


check(... if your_noise is ... else living_latents(your_noise), 10)

# %% [markdown]
# **3. The rate of a latent.** Derive $\mathbb E_x\,\mathrm{KL}\big(q(z_i|x)\,\|\,\mathcal N(0, 1)\big) = \frac12 \ln(\lambda_i/\sigma^2)$ from the posterior in section 3. Write the three parts of the KL one by one: the mean of the squared posterior mean, the posterior's variance $s^2$, and $-\ln s^2$. (The rate is half of their sum, less one half.) Why do the first two add up to one?


# %%
def rate_in_parts(eigenvalue, noise):
    """E[mean²], variance and −ln variance, for eigenvalue > noise."""
    return ...  # three numbers


def measured_parts(noise):
    q = VAE(*linear_vae.PPCA.fit(x, 1, noise).slots()).encoder(x)
    return [part.mean() for part in (q.loc**2, q.scale**2, -2 * q.scale.log())]


noises = (0.5, 2.0, 5.0)
check([rate_in_parts(6.0, noise) for noise in noises], [measured_parts(noise) for noise in noises])

# %% [markdown]
# **4. β is the noise.** Train with distortion $+\ \beta \cdot$ rate at noise variance $\sigma^2$. Which squared length has the column of $W$ for a direction with eigenvalue $\lambda$? The check trains.


# %%
def squared_length(eigenvalue, noise, beta):
    return ...  # your formula; mind the case of collapse


def trained_lengths(noise, beta):
    torch.manual_seed(SEED)
    parts = [part[:1] for part in random_starts()]

    def objective(*parts):
        bound = linear_elbo(*parts, noise)
        return -(bound.distortion + beta * bound.rate)

    climb(parts, objective)
    return parts[0].detach().square().sum(-2).squeeze(0).sort(descending=True).values


answers = [squared_length(eigenvalue, 0.4, 3.0) for eigenvalue in EIGENVALUES[:LATENTS].tolist()]
check(answers, trained_lengths(0.4, 3.0), tolerance=0.01)

# %% [markdown]
# **5. How fast is the escape?** At total collapse ($W = 0$, $V = 0$, $s = 1$) the bound curves upwards along the direction of the largest eigenvalue. Let the decoder's weight there be $w$ and the encoder's $v$, both small. Show that the bound gains
#
# $$\frac{\lambda}{\sigma^2}\, v w - \frac{w^2}{2\sigma^2} - \frac{\lambda v^2}{2},$$
#
# and find the largest eigenvalue of its Hessian (a $2\times2$ matrix). When is it positive? The check computes the Hessian of the whole model.


# %%
def escape_curvature(eigenvalue, noise):
    return ...  # the largest eigenvalue of the 2 × 2 Hessian


whole = torch.linalg.eigvalsh(torch.func.hessian(bound_at)(stationary_point(())))[-1]
check(escape_curvature(6.0, NOISE), whole)

# %% [markdown]
# ## Further reading
#
# - J. Lucas, G. Tucker, R. Grosse & M. Norouzi (2019), *Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse*, [arXiv 1911.02469](https://arxiv.org/abs/1911.02469): the paper of this notebook, with the proofs.
# - M. E. Tipping & C. M. Bishop (1999), *Probabilistic Principal Component Analysis*, Journal of the Royal Statistical Society B 61(3): the maximum likelihood solution, and its saddles in the appendix.
# - Y. Burda, R. Grosse & R. Salakhutdinov (2016), *Importance Weighted Autoencoders*, [arXiv 1509.00519](https://arxiv.org/abs/1509.00519): active units.
# - M. Rolínek, D. Zietlow & G. Martius (2019), *Variational Autoencoders Pursue PCA Directions (by Accident)*, [arXiv 1812.06775](https://arxiv.org/abs/1812.06775): why the diagonal posterior finds the principal directions.
# - B. Dai, Z. Wang & D. Wipf (2020), *The Usual Suspects? Reassessing Blame for VAE Posterior Collapse*, [arXiv 1912.10702](https://arxiv.org/abs/1912.10702): where the deep model does have bad local minima.
# - T. M. Cover & J. A. Thomas (2006), *Elements of Information Theory*, 2nd ed., section 10.3: reverse water-filling, the picture of section 3.
#
# **Next:** notebook 08 builds a decoder that needs no latents, and notebook 09 puts it into a VAE.
