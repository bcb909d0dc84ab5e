# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Infer the weights too
#
# **What you will do.** So far every datum had a *distribution* over its hidden cause, and the network had *one* set of weights. Now the weights get a distribution as well. You derive the bound for weights and latents together, build its estimator by hand, test it where the exact answer is known, and then train small networks on very few data: curves through twenty points, and a variational autoencoder that has seen fifty digits.
#
# **What you will learn.**
# - why a point estimate of the weights is sure of itself where it should not be;
# - the bound on $\log p(X)$ with uncertain weights, its minibatch estimate, and the two reparameterisations in it;
# - what a factorised $q(\theta)$ loses: exactly, on a straight line;
# - noise in the weights against noise in the activations (local reparameterisation), and how much quieter the second one is;
# - what full variational Bayes buys with few data, and what it costs: shrinkage, pruned units, underfitting.
#
# **What you need.** Notebooks 01 (the bound) and 02 (reparameterisation). Bayes' rule; the Gaussian in several dimensions. Hamiltonian Monte Carlo from notebook 05 appears once, as a referee. This notebook covers appendix F of Kingma & Welling (2013), *Auto-Encoding Variational Bayes*.

# %%
import math

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from vaelib import VAE, data
from vaelib.decoders import BernoulliMLP, VariationalWeights
from vaelib.distributions import DiagNormal
from vaelib.encoders import MLPEncoder
from vaelib.inference import hmc
from vaelib.inference.likelihood import importance_sampled
from vaelib.priors import StandardNormal
from vaelib.teaching.plotting import COLORS, show_rows, use_style
from vaelib.training.learning import aevb_step, variational_bayes_step

SEED = 0  # the claims at the end held for every seed that we tried: try another
torch.manual_seed(SEED)
torch.set_default_dtype(torch.float64)  # we will compare with exact answers, to rounding
torch.set_num_threads(1)  # for networks this small, sharing the work costs more than doing it
use_style()
ML, MAP, VB = "maximum likelihood", "MAP", "variational Bayes"
COLOR = {ML: COLORS["aevb"], MAP: "#999933", VB: "#882255", "exact": COLORS["exact"]}


def label(ax, title, x, y, legend="best", **more):
    ax.set(title=title, xlabel=x, ylabel=y, **more)
    if legend:
        ax.legend(loc=legend, fontsize=10)


# %% [markdown]
# ## 1. A point is always sure
#
# A coin is tossed three times and shows heads three times. **Maximum likelihood** asks which probability of heads makes this most probable. The answer is 1, and with it the claim that tails is impossible. Nobody believes that. With a flat prior, Bayes' rule gives a posterior over the probability, and its mean says that the next toss shows heads with probability 4/5. The difference is not a better *point*. Averaged over everything that three tosses leave open, the prediction becomes modest, and it stays modest only as long as the data are few.
#
# A decoder has the same disease. Train it on fifty digits, and in many corners of the image no pixel was ever white. Maximum likelihood pushes their probabilities towards zero as long as you let it. The fifty-first digit has a stroke there, and the model pays an enormous number of nats for it.
#
# Three answers are on the table:
#
# | | what is learned of the weights $\theta$ | prediction for a new $x$ |
# |---|---|---|
# | **maximum likelihood** (ML) | one point, $\arg\max_\theta \log p(X\vert\theta)$ | $p(x\vert\hat\theta)$ |
# | **maximum a posteriori** (MAP) | one point, $\arg\max_\theta \log p(X\vert\theta) + \log p(\theta)$ | $p(x\vert\hat\theta)$ |
# | **full variational Bayes** | a distribution $q(\theta) \approx p(\theta\vert X)$ | $\int p(x\vert\theta)\, q(\theta)\, d\theta$ |
#
# The second is what "weight decay" means: with $p(\theta) = \mathcal N(0, I)$ the extra term is $-\tfrac12 \lVert\theta\rVert^2$. The paper's experiments use it. The third is its appendix F, and this notebook.
#
# ## 2. The bound, with the weights inside
#
# The story of the data now has one more step, at its very beginning: draw the weights $\theta \sim p(\theta)$ *once*; then, for each datum $i = 1 \dots N$, draw a cause $z_i \sim p(z)$ and the datum $x_i \sim p(x|z_i, \theta)$. The evidence is that of the *whole data set*, because the weights tie all data together:
#
# $$p(X) = \int p(\theta) \prod_{i=1}^N p(x_i|\theta)\, d\theta, \qquad p(x_i|\theta) = \int p(x_i|z, \theta)\, p(z)\, dz .$$
#
# **First bound: the weights.** Multiply and divide by any density $q(\theta)$ and use Jensen's inequality, exactly as in notebook 01 with $\theta$ in the place of $z$:
#
# $$\log p(X) \ \ge\ \mathbb E_{q(\theta)}\Big[\sum_i \log p(x_i|\theta)\Big] - \mathrm{KL}\big(q(\theta)\,\Vert\,p(\theta)\big).$$
#
# **Second bound: the latents.** For each $\theta$, every $\log p(x_i|\theta)$ is at least the bound that we know, $\mathrm{ELBO}_\theta(x_i) = \mathbb E_{q(z|x_i)}[\log p(x_i|z,\theta)] - \mathrm{KL}(q(z|x_i) \Vert p(z))$. Together:
#
# $$\boxed{\ \log p(X)\ \ge\ \mathcal L\ =\ \mathbb E_{q(\theta)}\Big[\sum_{i=1}^N \mathrm{ELBO}_\theta(x_i)\Big]\ -\ \mathrm{KL}\big(q(\theta)\,\Vert\,p(\theta)\big)\ }$$
#
# **The gap.** Each step lost a divergence. What is missing in total is
#
# $$\log p(X) - \mathcal L = \mathrm{KL}\big(q(\theta)\,\Vert\,p(\theta|X)\big) + \mathbb E_{q(\theta)}\Big[\sum_i \mathrm{KL}\big(q(z|x_i)\,\Vert\,p(z|x_i, \theta)\big)\Big].$$
#
# Look at the second term. The right posterior of $z$ depends on $\theta$, and an encoder that never hears about $\theta$ cannot be right for all of them. We will see in section 3 what that costs.
#
# **The estimator.** Two reparameterisations, one for each random thing. With $q(\theta) = \mathcal N(\mu, \operatorname{diag}\sigma^2)$ over *all* weights, and a minibatch of $M$ out of $N$ data:
#
# $$\theta = \mu + \sigma \odot \zeta, \qquad z_i = m(x_i) + v(x_i) \odot \epsilon_i, \qquad \zeta, \epsilon_i \sim \mathcal N(0, I),$$
#
# $$\widehat{\mathcal L} = \frac NM \sum_{i=1}^{M} \Big[\log p(x_i|z_i, \theta) - \mathrm{KL}\big(q(z|x_i)\,\Vert\,p(z)\big)\Big] - \mathrm{KL}\big(q(\theta)\,\Vert\,p(\theta)\big).$$
#
# Note the asymmetry. The data term is scaled up by $N/M$, since the minibatch stands for all data. The weights' term is not: the weights are drawn once. Divided by $N$ everything reads *per datum*, and the price of the weights is $\mathrm{KL}/N$: **with many data, the weights cost next to nothing**. With few data they are the main expense. This is the point of the whole exercise.
#
# **What the price means.** $-\mathcal L$ is the length, in nats, of a message that transmits the data set: first the weights, as precisely as $q(\theta)$ says they need to be known, then each datum (Hinton & van Camp 1993). A weight with $q = p$ costs nothing and says nothing. A point estimate would be infinitely long to send. That is why its training likelihood alone says so little.
#
# ## 3. A laboratory: one number for all, one cause for each
#
# The smallest model that has both. A room has an unknown temperature $\theta$. Reading number $i$ is taken where a draught $z_i$ shifts the air by $w z_i$, with a thermometer of noise $s$:
#
# $$\theta \sim \mathcal N(0, s_0^2), \qquad z_i \sim \mathcal N(0, 1), \qquad x_i|z_i, \theta \sim \mathcal N(\theta + w z_i,\ s^2).$$
#
# Everything is Gaussian, so everything is known: $p(X) = \mathcal N(0,\ (w^2 + s^2) I + s_0^2 \mathbf 1 \mathbf 1^\top)$, and the posterior of $\theta$ is Gaussian with precision $1/s_0^2 + N/(w^2 + s^2)$.
#
# **The estimator, once in full.** The encoder is linear, $q(z|x) = \mathcal N(a\,x + c,\ v^2)$. We give it one switch, `hears`: with `hears` = 1 it is told the $\theta$ that was drawn and looks at $x - \theta$ in place of $x$. Everything is a single function of a dictionary of parameters, so that nothing is hidden.
# %%
W, S, S0, N = 1.0, 1.0, 2.0, 20  # draught, thermometer, prior of the room, number of readings
temperature = S0 * torch.randn(())
readings = temperature + W * torch.randn(N) + S * torch.randn(N)  # (N,)


def estimate(p, batch, draws=1, hears=0.0):
    """The bound of the whole data set from a minibatch (M,): `draws` estimates, in nats."""
    zeta, epsilon = torch.randn(draws, 1), torch.randn(draws, len(batch))
    theta = p["loc"] + p["log_scale"].exp() * zeta  # first reparameterisation: one for all data
    center = p["a"] * (batch - hears * theta) + p["c"]  # (draws, M)
    z = center + p["log_v"].exp() * epsilon  # second reparameterisation: one for each datum
    log_likelihood = Normal(theta + W * z, S).log_prob(batch)  # (draws, M)
    rate_z = kl_divergence(Normal(center, p["log_v"].exp()), Normal(0.0, 1.0))  # (draws, M)
    rate_theta = kl_divergence(Normal(p["loc"], p["log_scale"].exp()), Normal(0.0, S0))
    return N / len(batch) * (log_likelihood - rate_z).sum(-1) - rate_theta


# %% [markdown]
# In this model even the average over $\zeta$ and $\epsilon$ has a formula: $E[(x - \theta - wz)^2]$ is a squared mean plus variances. It is the referee of the function above, and no part of the method. We let `exact_bound` return $\mathcal L$ without any noise. Above it stand $\log p(X)$ and the exact posterior of $\theta$.

# %%
covariance = (W**2 + S**2) * torch.eye(N) + S0**2
log_evidence = MultivariateNormal(torch.zeros(N), covariance).log_prob(readings)  # log p(X), nats
precision = 1 / S0**2 + N / (W**2 + S**2)
exact_theta = Normal(readings.sum() / (W**2 + S**2) / precision, precision**-0.5)  # p(θ|X)


def exact_bound(p, hears=0.0):
    """The same bound without noise, on all readings, in nats."""
    scale, v, pull = p["log_scale"].exp(), p["log_v"].exp(), 1 - W * p["a"] * hears
    residual = readings - W * (p["a"] * readings + p["c"]) - pull * p["loc"]
    square = residual.square() + (pull * scale).square() + (W * v).square()
    log_likelihood = -0.5 * (square / S**2 + math.log(2 * math.pi * S**2))
    center = p["a"] * (readings - hears * p["loc"]) + p["c"]
    spread = (p["a"] * hears * scale).square()  # of the centre, as θ varies
    rate_z = 0.5 * (center.square() + spread + v.square() - 1 - 2 * v.log())
    rate_theta = kl_divergence(Normal(p["loc"], scale), Normal(0.0, S0))
    return (log_likelihood - rate_z).sum() - rate_theta


# %% [markdown]
# Now climb it: Adam on one-draw estimates from minibatches of five readings. Once with an encoder that is deaf to $\theta$, the usual case, and once with one that hears it.


# %%
def learn_both(hears, steps=2000):
    """Climb the estimate -> the parameters, the exact bound after each step."""
    names, path = ("loc", "log_scale", "a", "c", "log_v"), []
    p = {name: torch.tensor(0.0, requires_grad=True) for name in names}
    optimizer = torch.optim.Adam(p.values(), lr=0.03)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        batch = readings[torch.randperm(N)[:5]]
        optimizer.zero_grad()
        (-estimate(p, batch, hears=hears) / N).backward()
        optimizer.step(), schedule.step()
        path.append(exact_bound(p, hears).item())
    return {name: value.detach() for name, value in p.items()}, path


deaf, deaf_path = learn_both(hears=0.0)
hearing, hearing_path = learn_both(hears=1.0)

# %%
deaf_price = 0.5 * math.log((N / S**2 + 1 / S0**2) / precision)  # see the text below
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4))
grid = exact_theta.mean + exact_theta.stddev * torch.linspace(-4, 4, 200)
left.fill_between(grid, exact_theta.log_prob(grid).exp(), color="0.8", label="exact $p(θ|X)$")
right.axhline(log_evidence, color=COLORS["exact"], linestyle="--", label="exact log p(X)")
right.axhline(log_evidence - deaf_price, color="0.5", ls=":", label="best for a deaf encoder")
runs = {"deaf": (deaf, deaf_path, "-"), "hearing": (hearing, hearing_path, "-.")}
for name, (p, path, style) in runs.items():
    density = Normal(p["loc"], p["log_scale"].exp()).log_prob(grid).exp()
    left.plot(grid, density, style, color=COLOR[VB], label=f"q(θ), {name} encoder")
    right.plot(range(0, 2000, 20), path[::20], style, color=COLOR[VB], label=f"{name} encoder")
label(left, "a deaf encoder makes q(θ) too narrow", "θ (degrees)", "density", ylim=(0, None))
label(right, "the bound holds; one closes the gap", "step", "bound on log p(X) (nats)")
right.set_ylim(log_evidence - 4, log_evidence + 0.5)
plt.show()

# %% [markdown]
# *What to see.* **Right:** both runs climb towards $\log p(X)$ and never pass it. The hearing encoder arrives: its $q(\theta)\, q(z|x, \theta)$ has the shape of the true posterior, so the gap closes. **Left:** its $q(\theta)$ lies close to the exact posterior; what is left is the noise of learning from minibatches of five. The deaf one has the right centre and is *too narrow*.
#
# Why? Given the data, $\theta$ and the $z_i$ are entangled: if the room is a little warmer, all draughts were a little colder. A deaf encoder treats each $z_i$ as if it had nothing to do with $\theta$. Then a reading seems to pin down $\theta$ with the precision $1/s^2$ of the thermometer alone, and not $1/(s^2 + w^2)$. For Gaussians the best factorised $q$ keeps the right means and takes its variances from the diagonal of the *precision*. The gap is half the log of a ratio of determinants, which here becomes
#
# $$\tfrac12 \ln \frac{N/s^2 + 1/s_0^2}{N/(s^2 + w^2) + 1/s_0^2}\ \xrightarrow{\ N \to \infty\ }\ \tfrac12 \ln\Big(1 + \frac{w^2}{s^2}\Big).$$
#
# It stays *finite for the whole data set*. Per datum it goes to nothing. That is a comfort, and the reason why nobody builds hearing encoders: with many data, $q(\theta)$ is narrow and there is little to hear.
#
# **The same in three slots.** In the library, a decoder with uncertain weights is still a decoder: `VariationalWeights(decoder)` draws $\theta$ each time it is called and returns $p(x|z, \theta)$. Nothing else in the `VAE` changes. Here is our room with a deaf encoder, at the values learned above.


# %%
class Room(nn.Module):
    """p(x|z, θ) = N(θ + w z, s²): z (*batch, 1) to an event (1,)."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(theta.reshape(1).clone())

    def forward(self, z):
        return DiagNormal(self.theta + W * z, S + 0 * z)


class DeafEncoder(nn.Module):
    def forward(self, x):
        return DiagNormal(deaf["a"] * x + deaf["c"], deaf["log_v"].exp() + 0 * x)


decoder = VariationalWeights(Room(deaf["loc"]), deaf["log_scale"].exp().item(), prior_scale=S0)
room = VAE(DeafEncoder(), StandardNormal(1), decoder)
print("uncertain parameters:", decoder.names)

# %% [markdown]
# ## 4. An uncertain linear layer
#
# A network has many weights. The ordinary choice, and the paper's, is a Gaussian that is independent in every weight: **mean-field**, two numbers per weight in place of one. Here is the layer that replaces `nn.Linear`, in full. It knows three things: its posterior, how to use one draw of it, and what that posterior costs. The biases are one more row of weights, for an input that is always 1.


# %%
class UncertainLinear(nn.Module):
    """y = W x + b with q(W, b) = N(μ, diag σ²) and the prior N(0, I): (*batch, in) to out."""

    def __init__(self, inputs, outputs, scale=0.1):
        super().__init__()
        self.loc = nn.Parameter(torch.randn(inputs + 1, outputs) / (inputs + 1) ** 0.5)
        self.log_scale = nn.Parameter(torch.full((inputs + 1, outputs), math.log(scale)))

    def posterior(self):
        return DiagNormal(self.loc, self.log_scale.exp(), event_dims=2)

    def forward(self, x):
        return with_one(x) @ self.posterior().rsample()  # one draw of the weights for all of x

    def rate(self):
        return kl_divergence(self.posterior(), DiagNormal(0 * self.loc, 1 + 0 * self.loc, 2))


def with_one(x):
    return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)


# %% [markdown]
# And learning, for a regression with known noise. There are no latents here, only weights: the bound is $\mathbb E_{q(\theta)}[\sum_i \log p(y_i|x_i, \theta)] - \mathrm{KL}(q(\theta)\Vert p(\theta))$.


# %%
def regression_bound(network, x, y, noise):
    """An estimate of the bound of regression data x (N, in), y (N, 1), nats."""
    mean = network(x)  # (*draws, N, 1)
    fit = DiagNormal(mean, torch.full_like(mean, noise), event_dims=2).log_prob(y).mean()
    layers = (part for part in network.modules() if isinstance(part, UncertainLinear))
    return fit - sum(layer.rate() for layer in layers)


def climb(network, x, y, noise, step_size, last, steps=2500):
    """Adam up that bound; the step size falls in a line to the part `last` of itself."""
    optimizer = torch.optim.Adam(network.parameters(), lr=step_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, last, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (-regression_bound(network, x, y, noise) / len(x)).backward()
        optimizer.step()
        schedule.step()


# %% [markdown]
# **A straight line.** The first test has an exact answer again. One input $t$, one output $y = \text{slope} \cdot t + \text{intercept} + \text{noise}$, both weights with the prior $\mathcal N(0, 1)$. This is *Bayesian linear regression*. With $\Phi$ the matrix of the inputs and a column of ones, the posterior is Gaussian with precision $\Lambda = \Phi^\top \Phi / s^2 + I$ and mean $\Lambda^{-1} \Phi^\top y / s^2$, and $p(y) = \mathcal N(0,\ \Phi\Phi^\top + s^2 I)$.
#
# The product $\Phi^\top\Phi$ decides everything. If the inputs are centred at 0, slope and intercept can be learned separately: $\Lambda$ is diagonal, and a mean-field $q$ can be *exactly* right. If all inputs lie far from zero, a steeper line needs a lower intercept: the two weights are correlated, and mean-field cannot say so.


# %%
NOISE, T = 0.5, torch.linspace(-1, 1, 12)[:, None]  # T: (12, 1), centred; we shall move it
Y = 0.5 + 0.8 * T + NOISE * torch.randn(12, 1, generator=torch.Generator().manual_seed(SEED))


def exact_line(t):
    """The exact posterior of (slope, intercept) for the inputs t, and log p(Y), nats."""
    phi = with_one(t)  # (12, 2)
    precision = phi.T @ phi / NOISE**2 + torch.eye(2)
    mean = torch.linalg.solve(precision, (phi.T @ Y)[:, 0] / NOISE**2)
    marginal = MultivariateNormal(torch.zeros(12), phi @ phi.T + NOISE**2 * torch.eye(12))
    return MultivariateNormal(mean, precision_matrix=precision), marginal.log_prob(Y[:, 0])


def line_bound(q, t):
    """The bound of any Gaussian q(slope, intercept), in closed form, nats."""
    phi, prior = with_one(t), MultivariateNormal(torch.zeros(2), torch.eye(2))
    log_fit = Normal(phi @ q.mean, NOISE).log_prob(Y[:, 0]).sum()
    blur = ((phi @ q.covariance_matrix) * phi).sum() / (2 * NOISE**2)
    return log_fit - blur - kl_divergence(q, prior)


# %% [markdown]
# Three $q$'s meet: the exact posterior; the best factorised Gaussian, which keeps the mean and has the variances $1/\Lambda_{jj}$; and the one that our layer *learns* from noisy gradients. For two weights with posterior correlation $\rho$ the gap of the second is $-\tfrac12\ln(1 - \rho^2)$.


# %%
def learn_line(t):
    layer = UncertainLinear(1, 1)
    climb(layer, t, Y, NOISE, step_size=0.05, last=0.005)
    q = layer.posterior()
    return MultivariateNormal(q.loc[:, 0].detach(), scale_tril=q.scale[:, 0].detach().diag())


def line_case(t):  # log p(Y) for the inputs t, and each q with its bound
    posterior, evidence = exact_line(t)
    scale = posterior.precision_matrix.diagonal() ** -0.5
    factorised = MultivariateNormal(posterior.mean, scale_tril=scale.diag())
    found = {"exact": posterior, "factorised": factorised, "learned": learn_line(t)}
    return evidence, {name: (q, line_bound(q, t)) for name, q in found.items()}


lines = {shift: line_case(T + shift) for shift in (0.0, 2.0)}
shifts = torch.linspace(0, 4, 41)
precisions = torch.stack([exact_line(T + shift)[0].precision_matrix for shift in shifts])
rho = -precisions[:, 0, 1] / precisions.diagonal(dim1=1, dim2=2).prod(-1).sqrt()  # (41,)


# %%
def draw_ellipse(ax, q, **style):
    """The curve that holds 90 % of a Gaussian in two dimensions."""
    angle = torch.linspace(0, 2 * math.pi, 100)
    circle = 4.605**0.5 * torch.stack([angle.cos(), angle.sin()])  # 90 % of χ² with 2 d.o.f.
    ax.fill(*(q.mean[:, None] + q.scale_tril @ circle), **style)


figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 4))
for ax, (shift, (_, found)) in zip((left, middle), lines.items(), strict=True):
    draw_ellipse(ax, found["exact"][0], fc="0.85", ec="black", label="exact")
    draw_ellipse(ax, found["learned"][0], fill=False, ec=COLOR[VB], lw=2, label="learned q")
    label(ax, f"inputs around {shift:g}", "slope", "intercept", "upper right")
gaps = [evidence - found["learned"][1] for evidence, found in lines.values()]
right.plot(shifts, -0.5 * torch.log(1 - rho**2), color="0.4", label="$-½\\ln(1 - ρ^2)$")
right.plot(list(lines), gaps, "o", color=COLOR[VB], label="learned q")
label(right, "what the correlation costs", "centre of the inputs", "log p(y) − bound (nats)")
plt.show()

# %% [markdown]
# *What to see.* **Left:** centred inputs. The learned ellipse *is* the exact one, and the gap on the right is zero. **Middle:** the same data with the inputs moved by 2. The exact posterior is a tilted needle. The learned $q$ may not tilt, so it shrinks until, along each axis, it is as wide as the needle's cut through its centre. That is far less than the needle's whole extent: the familiar habit of $\mathrm{KL}(q \Vert p)$ from notebook 01. **Right:** the price in nats follows the formula.
#
# What does this do to predictions? The ellipses become bands of lines.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4))
grid = torch.linspace(-1, 5, 100)[:, None]
for name, color in (("exact", "black"), ("factorised", COLOR[VB])):
    q, phi = lines[2.0][1][name][0], with_one(grid)
    mean, deviation = phi @ q.mean, ((phi @ q.covariance_matrix) * phi).sum(-1).sqrt()
    low, high = mean - 1.645 * deviation, mean + 1.645 * deviation
    left.fill_between(grid[:, 0], low, high, color=color, alpha=0.25, label=f"90 %, {name}")
    right.plot(grid, deviation, color=color, label=name)
left.plot(T + 2, Y, "o", color=COLORS["data"], label="data")
right.axvspan(1, 3, color="0.9", label="where the data are")
label(left, "lines that each q believes in", "t", "y")
label(right, "factorised: too wide among the data, too narrow outside", "t", "std of the line")
plt.show()

# %% [markdown]
# *What to see.* Losing the correlation is not simply "too sure". Among the data, where slope and intercept would cancel each other's errors, mean-field is *too wide*. Far to the right, where the errors should add up, it is *too narrow*. Its uncertainty is least at $t = 0$, where no datum is: the place is an accident of the coordinates.
#
# A cheap repair exists for a line (centre the inputs), and people do it. For the weights of a deep network there is no such change of coordinates at hand.
#
# ## 5. Where to put the noise
#
# Our layer draws *one* weight matrix for the whole minibatch. All data then share the same accident. If the draw happens to brighten a pixel, it does so in every image, and averaging over the minibatch does not average it out.
#
# A fresh matrix for each datum would cure that, at $M$ times the cost. Kingma, Salimans & Welling (2015) saw that it comes nearly for free. A linear layer turns independent Gaussian weights into independent Gaussian *pre-activations*:
#
# $$w_{jk} \sim \mathcal N(\mu_{jk}, \sigma_{jk}^2) \quad\Longrightarrow\quad b_{ik} = \sum_j x_{ij} w_{jk} \ \sim\ \mathcal N\Big(\sum_j x_{ij}\, \mu_{jk},\ \sum_j x_{ij}^2\, \sigma_{jk}^2\Big).$$
#
# So draw $b$ in place of $w$, with its own noise for each datum and output. This is **local reparameterisation**: global uncertainty about weights, made local noise in the activations. It needs two matrix products in place of one and a few random numbers.


# %%
class LocalLinear(UncertainLinear):
    """The same layer with noise in the pre-activations: one draw for each datum."""

    local = True

    def forward(self, x):
        if not self.local:
            return super().forward(x)
        mean = with_one(x) @ self.loc
        variance = with_one(x).square() @ (2 * self.log_scale).exp()
        return mean + variance.sqrt() * torch.randn_like(mean)


# %% [markdown]
# For one datum nothing is lost. Each pre-activation has the same distribution as before, so every expectation of a *sum over data* is the same, and the gradient stays unbiased. But the variance of the sum changes:
#
# $$\operatorname{Var}\Big[\frac1M \sum_i g_i\Big] = \frac1{M^2}\Big(\sum_i \operatorname{Var}[g_i] + \sum_{i \ne j} \operatorname{Cov}[g_i, g_j]\Big).$$
#
# With shared noise the covariances are there, $M(M-1)$ of them. With local noise they are zero, and the variance falls as $1/M$.
#
# For a linear layer with squared error both can be worked out. With $X$ the minibatch $(M, D)$, $\sigma_j$ the widths, $s$ the noise and $v_i = \sum_j x_{ij}^2 \sigma_j^2$, the summed variances of the gradient in $\mu$ are
#
# $$\text{shared: } \frac{1}{M^2 s^4} \sum_j \sigma_j^2\, \big\lVert (X^\top X)_{\cdot j} \big\rVert^2, \qquad \text{local: } \frac{1}{M^2 s^4} \sum_i v_i\, \lVert x_i \rVert^2 .$$
#
# We measure it on digits, 14 × 14 pixels, with a single output, and compare with the formulas.
# %%
mnist = data.mnist()
train, test = (data.binarize(data.downsample(x)) for x in (mnist.train, mnist.test))  # 0 or 1
pixels = with_one(train.double().flatten(1))  # (4000, 197)
targets = (mnist.train_labels >= 5).double()[:, None]  # something to regress on
KINDS, SIZES = ("shared", "local"), (1, 4, 16, 64, 256)


def exact_variance(kind, size):
    """What the formulas say: the variance of the gradient in μ, for noise 1 and widths 0.1."""
    x, widths = pixels[:size], torch.full((197,), 0.1) ** 2
    if kind == "shared":
        return ((x.T @ x).square().sum(0) @ widths).item() / size**2
    return ((x.square() @ widths) @ x.square().sum(1)).item() / size**2


expected = {kind: torch.tensor([exact_variance(kind, m) for m in SIZES]) for kind in KINDS}


# %%
def noise_variance(kind, size, draws=400):
    """Variance, over weight noise only, of the gradient of one minibatch: in loc and in scale."""
    loc = torch.zeros(draws, 197, 1, requires_grad=True)  # a copy for each draw of the noise
    scale = torch.full((draws, 197, 1), 0.1, requires_grad=True)
    x = pixels[:size]
    if kind == "local":
        width = (x.square() @ scale.square()).sqrt()  # (draws, size, 1)
        output = x @ loc + width * torch.randn(draws, size, 1)
    else:
        output = x @ (loc + scale * torch.randn(draws, 197, 1))
    loss = (output - targets[:size]).square().mean(1).sum() / 2
    return [g.var(0).sum().item() for g in torch.autograd.grad(loss, (loc, scale))]


measured = {kind: torch.tensor([noise_variance(kind, m) for m in SIZES]) for kind in KINDS}

# %%
figure, axes = plt.subplots(1, 3, figsize=(13.5, 4))
layer = LocalLinear(1, 1)
layer.loc.data, layer.log_scale.data = torch.zeros(2, 1), torch.full((2, 1), -1.0)
grid = torch.linspace(-2, 2, 60)[:, None]
for kind, color, mark in (("shared", "#555555", "o"), ("local", COLOR[VB], "s")):
    layer.local = kind == "local"
    axes[0].plot(grid, layer(grid).detach(), mark + "-", color=color, ms=3, lw=1, label=kind)
    axes[1].loglog(SIZES, measured[kind][:, 0], mark, color=color, label=kind)
    axes[2].loglog(SIZES, measured[kind][:, 1], mark, color=color, label=kind)
    axes[1].loglog(SIZES, expected[kind], color=color)
label(axes[0], "one draw of the layer's output", "input", "output")
size, variance = "minibatch size M", "variance of the gradient"
label(axes[1], "means μ: local falls as 1/M", size, variance)
label(axes[2], "widths σ: local is quieter even for M = 1", size, variance, "lower left")
plt.show()

# %% [markdown]
# *What to see.* **Left:** one draw each. Shared noise draws a *function*, here a line. Local noise draws a different line for every input: right for learning from each datum, and wrong for asking what one function looks like. To draw curves we switch it off. **Middle:** lines are exact, marks are measured. For one datum both are equal. As the minibatch grows, local noise averages out, and shared noise hits a floor: digits resemble each other, so their gradients have the same accident in common. **Right:** in the widths local noise wins already for one datum. There the gradient with shared noise contains each weight's own $\zeta_j$; the local one is its average given the pre-activation, and averaging never adds variance (the Rao–Blackwell theorem).
#
# Three limits. The picture shows the noise of the weights only; which data are in the minibatch is a second source, which both share. The trick is exact for fully connected layers; a convolution uses each weight at many places, which correlates its outputs. And it must be written layer by layer, while shared noise wraps *any* network: it is what the library's `VariationalWeights` does.
#
# ## 6. Curves through twenty points
#
# A first network: one input, twenty hidden units (rectified linear, $\max(0, \cdot)$), one output, and twenty data in two clusters. The noise is known, so every difference below is due to the weights. All four contestants have the same network and the same prior:
#
# - maximum likelihood and MAP: one curve each;
# - variational Bayes with our two layers;
# - the referee: **HMC** on all 61 weights, sixteen chains, which makes no assumption about the shape of the posterior. (Chains do not mix perfectly over a posterior with this many symmetries: for the curve, the usual measure $\hat R$ over the sixteen is between 1.1 and 1.5, where 1 would be perfect. But within every single chain the spread of the curve in the middle of the gap is over 0.4, and that of variational Bayes about 0.05. This is all that we conclude from it.)


# %%
HIDDEN, SIGMA = 20, 0.1
inputs = torch.cat([torch.rand(10, 1) - 2, torch.rand(10, 1) + 0.5])  # (20, 1), two clusters
outputs = torch.sin(2 * inputs) + SIGMA * torch.randn(20, 1)
grid = torch.linspace(-4, 4, 161)[:, None]


def point_curve(decay, steps=1500):
    """Maximum likelihood (decay 0) or MAP (decay 1) -> the curve on the grid (161,)."""
    network = nn.Sequential(nn.Linear(1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    # Adam's weight_decay adds `decay · θ` to the gradient: minus that of log N(θ; 0, I).
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        ((network(inputs) - outputs).square().sum() / (2 * SIGMA**2)).backward()
        optimizer.step()
    return network(grid)[:, 0].detach()


points = {ML: point_curve(0.0), MAP: point_curve(1.0)}

# %%
network = nn.Sequential(LocalLinear(1, HIDDEN), nn.ReLU(), LocalLinear(HIDDEN, 1))
batch = inputs.expand(4, -1, -1)  # four draws of the noise for each datum
climb(network, batch, outputs, SIGMA, step_size=0.02, last=0.02)
network[0].local = network[2].local = False  # from here on we want functions
with torch.no_grad():
    vb_curves = torch.stack([network(grid)[:, 0] for _ in range(400)])  # (400, 161)


def curves(w, t):
    """The network with weights w (*batch, 61) at inputs t (T, 1) -> (*batch, T)."""
    a, b, c, bias = w.split([HIDDEN, HIDDEN, HIDDEN, 1], dim=-1)
    hidden = torch.relu(t * a[..., None, :] + b[..., None, :])  # (*batch, T, HIDDEN)
    return (hidden * c[..., None, :]).sum(-1) + bias


def log_posterior(w):
    """log p(y|w) + log p(w), up to a constant: (*batch, 61) to (*batch,)."""
    misfit = (curves(w, inputs) - outputs[:, 0]).square().sum(-1) / SIGMA**2
    return -0.5 * (misfit + w.square().sum(-1))


state = hmc.init(log_posterior, 0.5 * torch.randn(16, 3 * HIDDEN + 1))
state, size, _ = hmc.tune(log_posterior, state, 0.01, leapfrog_steps=20, steps=150, target=0.8)
_, samples, info = hmc.sample(log_posterior, state, size, 150, leapfrog_steps=20)
hmc_curves = curves(samples.flatten(0, 1), grid)  # (2400, 161)

# %%
figure, axes = plt.subplots(1, 3, figsize=(13.5, 4), sharey=True)
for name, curve in points.items():
    axes[0].plot(grid, curve, color=COLOR[name], label=name)
for ax, drawn, color in ((axes[1], vb_curves, COLOR[VB]), (axes[2], hmc_curves, "black")):
    low, high = drawn.quantile(torch.tensor([0.05, 0.95]), dim=0)
    ax.fill_between(grid[:, 0], low, high, color=color, alpha=0.25, label="90 % of the curves")
    ax.plot(grid, drawn[:: len(drawn) // 12].T, color=color, linewidth=0.7)
for ax in axes:
    ax.plot(grid, torch.sin(2 * grid), ":", color="0.5", label="truth")
    ax.plot(inputs, outputs, "o", ms=4, color=COLORS["data"], label="data")
    label(ax, None, "input", None, "upper center", ylim=(-4, 4))
axes[0].set(ylabel="output", title="points: one curve, sure everywhere")
axes[1].set_title("variational Bayes: wider outside")
axes[2].set_title("HMC: wider outside and in the gap")
plt.show()

# %% [markdown]
# *What to see.* **Left:** each point estimate commits itself to one continuation, with nothing to say that the data end there. **Middle:** draws from $q(\theta)$ fan out where there are no data on the outside. This is what we wanted. **Right:** the referee fans out more, *and it opens up in the gap between the clusters*, where mean-field stays a thin rope.
#
# This is no accident of training. Foong, Burt, Li & Turner (2020) proved it for networks with one hidden layer of rectified linear units and a factorised Gaussian over the weights: the variance of the curve at a point between two others is at most the *sum* of the variances at those two (under conditions on where the points lie, which hold for the input 0 between our clusters). Wherever the data make $q(\theta)$ sure on both sides, it must be sure in between. A curve that is free in the middle and fixed on both sides needs weights that conspire, and mean-field weights never do. The next picture puts numbers on it.

# %%
figure, ax = plt.subplots(figsize=(8, 3.8))
spread = {VB: vb_curves.std(0), "exact": hmc_curves.std(0)}
ax.plot(grid, spread["exact"], color=COLOR["exact"], label="HMC")
ax.plot(grid, spread[VB], color=COLOR[VB], label="variational Bayes, mean-field")
for left in (-2.0, 0.5):
    ax.axvspan(left, left + 1, color="0.92", zorder=0)
ax.set_yscale("log")
title, x = "mean-field sees the outside and not the gap", "input (grey: where the data are)"
label(ax, title, x, "std of the curves", "upper center")
plt.show()

# %% [markdown]
# *What to see.* (A point estimate has no line here: its curve has the standard deviation 0, which a logarithmic axis cannot show.) On the data, mean-field is *wider* than the truth: independent weights cannot cancel each other's errors, as on the line of section 4, and the fit suffers. In the gap it is far too narrow. Outside, it grows as it should, though less than the referee. Read its error bars as "at least someone thought about it", not as calibrated probabilities.
#
# ## 7. A variational autoencoder that has seen fifty digits
#
# Now latents *and* weights. Digits of 14 × 14 pixels, black or white. Five latents, one hidden layer of 40 units in encoder and decoder. We train on $N$ = 50, 200 and 1,000 digits, five, twenty and a hundred of each kind, by all three methods:
#
# - **maximum likelihood**: AEVB, as in notebook 03;
# - **MAP**: AEVB with the weight decay $1/N$ on the decoder. (The prior counts once for the data set, so $1/N$ for each datum);
# - **variational Bayes**: `VariationalWeights` around the same decoder, and `variational_bayes_step`, which is the estimator of section 2, divided by $N$. The noise is shared by the minibatch.
#
# The encoder has no prior in any of them: its parameters belong to the approximation, not to the model. It can still overfit in its own way, and all three share that.


# %%
IMAGE, LATENTS, UNITS, COUNTS = (1, 14, 14), 5, 40, (50, 200, 1000)


def train_vae(method, x, steps=1500):
    """A VAE trained on all of x (N, 1, 14, 14) by one of the three methods."""
    torch.manual_seed(SEED)
    decoder = BernoulliMLP(LATENTS, IMAGE, UNITS)
    if method == VB:
        decoder = VariationalWeights(decoder, scale=0.1)
    vae = VAE(MLPEncoder(LATENTS, IMAGE, UNITS), StandardNormal(LATENTS), decoder)
    vae = vae.to(x)  # in the single precision of the images: speed counts now
    decayed = {"params": decoder.parameters(), "weight_decay": (method == MAP) / len(x)}
    groups = [{"params": vae.encoder.parameters()}, decayed]
    optimizer = torch.optim.Adam(groups, lr=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for _ in range(steps):
        batch = x[torch.randperm(len(x))[:100]]
        if method == VB:
            variational_bayes_step(vae, batch, optimizer, count=len(x))
        else:
            aevb_step(vae, batch, optimizer)
        schedule.step()
    return vae


models = {(method, n): train_vae(method, train[:n]) for method in (ML, MAP, VB) for n in COUNTS}

# %% [markdown]
# **How to compare.** On the training set, each model reports the mean bound per digit. For variational Bayes this is $\mathbb E_{q(\theta)}[\mathrm{ELBO}_\theta]$, and we keep the price of the weights, $\mathrm{KL}(q(\theta)\Vert p(\theta))/N$, apart. On test digits, the same two numbers, and one more. A Bayesian does not predict with one draw of the weights: the prediction is the *average* over them,
#
# $$\log p(x^\star|X) \approx \log \frac1{K} \sum_{k} p(x^\star|\theta_k), \qquad \theta_k \sim q(\theta),$$
#
# with each $p(x^\star|\theta_k)$ by importance sampling over $z$ (notebook 05). To be fair, the point estimates get equally many importance samples.


# %% tags=["nbval-ignore-output"]


def mean_bound(vae, x, draws=20):
    """Mean bound per image, over draws of the weights and of z: nats."""
    return torch.stack([vae.elbo(x).value.mean() for _ in range(draws)]).mean().item()


def predictive(vae, x, draws=20, samples=10):
    """Mean log p(x|X) per image: each draw of the weights has its own importance samples."""
    each = torch.stack([importance_sampled(vae, x, samples) for _ in range(draws)])  # (draws, B)
    return (each.logsumexp(0) - math.log(draws)).mean().item()


rows = {}
with torch.no_grad():
    for (method, n), vae in models.items():
        row = {"train": mean_bound(vae, train[:n]), "test": mean_bound(vae, test)}
        weights = vae.decoder.rate().item() / n if method == VB else math.nan
        rows[method, n] = row | {"predictive": predictive(vae, test[:500]), "weights": weights}
table = pd.DataFrame(rows).T.rename_axis(["method", "N"])
table.round(1)

# %% [markdown]
# The columns: mean bound on training and on test digits, importance-sampled prediction on test digits, and the price of the weights for each training digit. All are in nats per digit; the price is to be subtracted from "train" to get $\mathcal L / N$.

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2))
counts = [f"{n:,}" for n in COUNTS]
for method in (ML, MAP, VB):
    part = table.loc[method]
    left.plot(counts, part["train"], "o--", color=COLOR[method], mfc="white")
    left.plot(counts, part["test"], "o-", color=COLOR[method], label=method)
    middle.plot(counts, part["predictive"], "o-", color=COLOR[method], label=method)
middle.sharey(left)
digits, weights = -table["train"][VB], table["weights"][VB]
right.bar(counts, digits, color=COLORS["distortion"], label="digit, given the weights")
right.bar(counts, weights, bottom=digits, color=COLORS["rate"], label="weights")
label(left, "bound: train dashed, test solid", "training digits N", "bound (nats per digit)")
label(middle, "prediction for new digits", "training digits N", "log p(x|X) (nats per digit)")
label(right, "variational Bayes pays for weights", "training digits N", "message (nats per digit)")
plt.show()

# %% [markdown]
# *What to see.* **Left:** the distance between dashed and solid is overfitting. With fifty digits maximum likelihood knows its training set nearly by heart and falls off a cliff on new digits. MAP falls too, though less far. Variational Bayes has by far the smallest gap: what it reports while training is an honest guess of what comes. With more data all three draw together. **Middle:** with importance sampling and averaged over the weights, every line moves up; with fifty digits variational Bayes is tens of nats above maximum likelihood. **Right:** with fifty digits a large part of the message is spent on the weights. Their price per digit falls as $N$ grows, although in total ever more is said about them.
#
# Now the other side. Look at the solid lines again. MAP, a single point, predicts new digits *better* than variational Bayes with few digits and with many, and in between it is at least not worse; at a thousand digits even plain maximum likelihood is ahead. Variational Bayes does not overfit. It **underfits**. Why?
#
# ## 8. Shrinkage, and the units that fell asleep
#
# What did $q(\theta)$ do with so few data? Every weight costs $\tfrac12(\mu^2 + \sigma^2 - 1 - \ln\sigma^2)$ nats, and zero if it stays at its prior, $\mu = 0$, $\sigma = 1$. A weight is worth moving only if it saves more than that in *all* data together. So there is **shrinkage**: with few data, most weights stay at the prior.
#
# They do not do so one by one. A weight at its prior is a random number with standard deviation 1, which would fill the image with noise, *unless the hidden unit behind it is silent*. So a unit goes to sleep as a whole. Its few incoming weights are held near zero, which costs a little; $\tanh(0) = 0$, and then its 196 outgoing weights are free to return to the prior.


# %%
def weight_prices(vae):
    """The KL of each single weight, by the name of its parameter."""
    posteriors = zip(vae.decoder.names, vae.decoder.posterior(), strict=True)
    prior = Normal(0.0, 1.0)
    return {name: kl_divergence(Normal(q.loc, q.scale), prior).detach() for name, q in posteriors}


prices = {n: weight_prices(models[VB, n]) for n in COUNTS}
unit_price = {n: prices[n]["network.2.weight"].sum(0).sort(descending=True)[0] for n in COUNTS}
every_price = {n: torch.cat([p.flatten() for p in prices[n].values()]) for n in COUNTS}
at_prior = {n: every_price[n] < 0.1 for n in COUNTS}
awake = {n: int((unit_price[n] > 10).sum()) for n in COUNTS}
shades, bins = {50: "#DDAACC", 200: "#BB5588", 1000: COLOR[VB]}, torch.logspace(-5, 1.3, 50)

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4))
for n, color in shades.items():
    style = {"color": color, "label": f"N = {n:,}"}
    left.hist(every_price[n].clip(1e-5), bins, histtype="step", lw=2, **style)
    middle.step(range(1, UNITS + 1), unit_price[n], where="mid", **style)
for n in (1000, 50):
    q = models[VB, n].decoder.posterior()[2]  # weights from hidden units to pixels
    means, widths = q.loc.detach().flatten(), q.scale.detach().flatten()
    right.plot(means, widths, ".", ms=2, color=shades[n], label=f"N = {n:,}")
label(left, "few data: most weights cost nothing", "KL of one weight (nats)", "number of weights")
left.set_xscale("log")
label(middle, "few data: most units sleep", "hidden unit, sorted", "KL of outgoing weights (nats)")
label(right, "asleep: at the prior, μ = 0 and σ = 1", "mean μ of an outgoing weight", "its width σ")
right.legend(markerscale=5)
plt.show()

# %% [markdown]
# *What to see.* **Left:** the price of single weights, on a logarithmic axis. With fifty digits the great majority lies far below a tenth of a nat; with a thousand, most are at work. **Middle:** the same by hidden unit. With fifty digits a handful of the forty units carries everything, with a thousand nearly all do. **Right:** the sleeping weights sit in a dense spot at (0, 1), the prior. The working ones are narrower.
#
# Is this *wise* or *lazy*? It is Occam's razor at work: more data, more units, and nobody had to choose the size of the network. But it is too sharp. MAP uses all its units on the same fifty digits and predicts at least as well by its bound. The reason is mean-field again: for each *working* unit, independent noise in every weight blurs the image and costs bound, noise that a correlated $q$ would cancel. Silencing the unit avoids the blur. Trippe & Turner (2018) call it **over-pruning**. It is the twin of the posterior collapse of *latents* that the second half of this course is about: the same KL term, the same bargain, one level up.
#
# ### What uncertainty looks like
#
# Take ten draws of $z$ from the prior and decode them. A point estimate gives one image for each. With $q(\theta)$ the same $z$ gives a different image for every draw of the weights.

# %%
torch.manual_seed(SEED)
z = torch.randn(10, LATENTS, dtype=train.dtype)
with torch.no_grad():
    pictures = {"ML, N = 50": models[ML, 50].decoder(z).mean}
    pictures["MAP, N = 50"] = models[MAP, 50].decoder(z).mean
    for n in (50, 1000):
        drawn = [models[VB, n].decoder(z).mean for _ in range(50)]  # 50 of (10, 1, 14, 14)
        pictures[f"VB, N = {n:,}: draw 1"] = drawn[0]
        pictures[f"VB, N = {n:,}: draw 2"] = drawn[1]
        pictures[f"VB, N = {n:,}: average"] = torch.stack(drawn).mean(0)
show_rows(pictures, "the same z in every column: white = probability 1")
plt.show()

# %% [markdown]
# *What to see.* Maximum likelihood on fifty digits is crisp black and white: it is sure of every pixel, because it has memorised every pixel. MAP is softer at the edges. The draws of variational Bayes cannot be recognised as digits, and their average is nearly the mean of all digits: this is underfitting made visible. With a thousand digits the draws agree more. A grey pixel is not a pretty one. It is a pixel for which the model will not pay much whichever way the new digit turns out.
#
# **Where the cliff comes from.** Take the pixels that are black in all fifty training digits. In some test digits they are white. What does each model pay for such a pixel?

# %% tags=["nbval-ignore-output"]
never_white = train[:50].amax(0) == 0  # (1, 14, 14)
surprised = (test == 1) & never_white  # (1000, 1, 14, 14)


@torch.no_grad()
def surprise(vae, draws=20):
    """Mean nats paid for a white pixel where training had none, averaged over the weights."""
    z = vae.encoder(test).sample()
    white = torch.stack([vae.decoder(z).mean[surprised] for _ in range(draws)]).mean(0)
    return -white.clamp(min=1e-38).log().mean().item()


surprises = {method: surprise(models[method, 50]) for method in (ML, MAP, VB)}
print(f"{int(never_white.sum())} of 196 pixels are black in all fifty training digits")
for method, nats in surprises.items():
    print(f"{method:<20} {nats:5.1f} nats for a white pixel there")

# %% [markdown]
# This is the coin with three heads. Maximum likelihood says *never*; the posterior says *not yet*.
#
# ## 9. What falls short
#
# You have seen each of these on a picture above; together they explain why full variational Bayes is not how networks are usually trained.
#
# - **Independent weights.** A factorised $q(\theta)$ is too wide where the data are and too narrow between them, and the coordinates decide how bad it is. Its error bars are better than none, and not calibrated.
# - **It prunes and underfits.** With few data the penalty for being uncertain pushes units out of service. With many data the price per datum vanishes, but so does the reason for being Bayesian.
# - **The prior matters, and nobody means it.** $\mathcal N(0, I)$ on every weight is a habit. With few data it decides.
# - **Noise.** One draw of the weights for a minibatch makes noisy gradients, so learning takes more steps. Local noise helps where layers allow it.
# - **Twice the parameters**, and averages over several draws to predict.
#
# What remains is solid: a bound that holds, a training loss that does not lie, a clean account of what weights cost, and the view of a network as a message. Richer $q$'s (full matrices, low rank, normalising flows), ensembles, and HMC, where it can be afforded, improve on each point in turn.
#
# ## Claims
#
# 1. **The bound holds**, and is exact at the exact posterior: on the laboratory of section 3 and on the line, in closed form. The estimator has the right mean, and so has the library's.
# 2. **Mean-field pays** exactly $-\tfrac12\ln(1-\rho^2)$, and learning gets there.
# 3. **Local noise** has the variance that theory says: equal for one datum, and far below shared noise for a large minibatch.
# 4. **Uncertainty** of the curves grows outside the data; mean-field is blind in the gap.
# 5. **Few digits.** Variational Bayes has a far smaller train–test gap than both point estimates, and beats maximum likelihood on test digits. Weights shrink to the prior, units sleep, and the price of the weights per digit falls with $N$.
# 6. **It underfits**, too: MAP predicts new digits better with few digits and with many, and with a thousand even maximum likelihood does.

# %%
bounds = [exact_bound(deaf), exact_bound(hearing, hears=1.0)]
holds = all(bound <= log_evidence + 1e-9 for bound in bounds)
best = [log_evidence - deaf_price, log_evidence]
near = all(abs(bound - top) < 0.1 for bound, top in zip(bounds, best, strict=True))
gain = W / (W**2 + S**2)  # the exact posterior: q(θ) = p(θ|X) and q(z|x, θ) = p(z|x, θ)
posterior = {"loc": exact_theta.mean, "log_scale": exact_theta.stddev.log()}
posterior |= {"a": torch.tensor(gain), "c": torch.tensor(0.0)}
posterior["log_v"] = torch.tensor(1 - W * gain).log() / 2
equal = abs(exact_bound(posterior, hears=1.0) - log_evidence) < 1e-6
print("1. the bound is below log p(X):", holds, "| equal at the exact posterior:", bool(equal))
print("   learning gets to the best of each family, to 0.1 nats:", near)
assert holds and near and equal

# %%
batches = [readings[torch.randperm(N)[:5]] for _ in range(2000)]
ours = torch.stack([estimate(deaf, batch, draws=20).mean() for batch in batches])
with torch.no_grad():
    theirs = torch.stack([N * room.elbo(readings[:, None]).value.mean() for _ in batches])
    theirs -= decoder.rate()
wrong = [abs(e.mean() - bounds[0]) / e.std() * len(e) ** 0.5 for e in (ours, theirs)]
print("   minibatch estimate and library have the right mean, to 5 errors:", bool(max(wrong) < 5))
assert max(wrong) < 5

# %%
paid = {shift: evidence - found["factorised"][1] for shift, (evidence, found) in lines.items()}
rho_2 = rho[20]  # the inputs around 2: shifts[20]
formula = abs(paid[0.0]) < 1e-6 and abs(paid[2.0] + 0.5 * torch.log(1 - rho_2**2)) < 1e-6
short = max(found["factorised"][1] - found["learned"][1] for _, found in lines.values())
below = all(
    bound <= evidence + 1e-6 for evidence, found in lines.values() for _, bound in found.values()
)
tight = all(abs(evidence - found["exact"][1]) < 1e-6 for evidence, found in lines.values())
print("2. line: bound below the evidence:", below, "| equal at the exact posterior:", tight)
print("   mean-field pays −½ ln(1 − ρ²), nothing for centred inputs:", bool(formula))
print(
    f"   it costs {paid[2.0]:.1f} nats here; the layer learns it to 0.05 nats:", bool(short < 0.05)
)
assert formula and short < 0.05 and below and tight

# %%
ratio = measured["shared"] / measured["local"]  # (sizes, 2): means and widths
agree = all(((measured[kind][:, 0] / expected[kind] - 1).abs() < 0.3).all() for kind in KINDS)
alone, many = abs(ratio[0, 0] - 1) < 0.5 and ratio[0, 1] > 2, ratio[-1].min() > 20
print("3. variances of the gradient in μ are those of theory, to 30 %:", agree)
print("   one datum: equal in the means, shared over 2 times noisier in the widths:", end=" ")
print(bool(alone), "| 256 data: over 20 times, both:", bool(many))

left, gap, right, outside = spread[VB][[50, 80, 100, 140]].tolist()  # inputs −1.5, 0, 1 and 3
exact_left, exact_gap, exact_right, _ = spread["exact"][[50, 80, 100, 140]].tolist()
grows = outside > 2 * max(left, right)
blind = gap**2 < 1.1 * (left**2 + right**2)
opens = exact_gap > 3 * max(exact_left, exact_right) and exact_gap > 2 * gap
print("4. outside the data, mean-field is over 2 times as unsure as on them:", grows)
print("   its variance in the gap is at most the sum of those beside it:", blind, end="; ")
print("HMC opens up there:", opens)
assert agree and alone and many and grows and blind and opens

# %%
gap = table["train"] - table["test"]
few = bool(gap[VB, 50] < 0.5 * gap[MAP, 50] and gap[VB, 50] < 0.25 * gap[ML, 50])
better = bool(table["test"][VB, 50] > table["test"][ML, 50] + 20)
print("5. fifty digits: smallest gap, by 2 and 4 times:", few, "| ML beaten by 20 nats:", better)
falls = all(
    table["weights"][VB, n] > 1.3 * table["weights"][VB, m] for n, m in ((50, 200), (200, 1000))
)
shrunk = at_prior[50].double().mean() > at_prior[1000].double().mean() + 0.3
print("   the weights' price per digit falls with N:", falls, "| shrinkage:", bool(shrunk), end=" ")
print("| units asleep:", awake[50] < 0.4 * awake[1000])
vae, x = models[VB, 50], train[:50]
tighter = torch.stack([importance_sampled(vae, x, 50).mean() for _ in range(50)]).mean().item()
under = table["train"][VB, 50] < tighter - 0.2
print("   with the same q(θ), the bound is below its importance-sampled version:", bool(under))
assert few and better and falls and shrunk and awake[50] < 0.4 * awake[1000] and under

# %%
behind = {n: table["predictive"][MAP, n] - table["predictive"][VB, n] for n in COUNTS}
ahead = bool(behind[50] > 1 and behind[1000] > 0.5)
print("6. MAP predicts better, by over 1 nat at 50 digits and 0.5 at 1,000:", ahead)
plain = bool(table["predictive"][ML, 1000] > table["predictive"][VB, 1000] + 0.5)
print("   with 1,000 digits even maximum likelihood predicts better, by over 0.5 nats:", plain)
assert ahead and plain

# %% [markdown]
# ## Exercises
#
# From easy to hard. Replace each `...`; the cell then says whether yours is right. Solutions with explanations are in `notebooks/solutions/06_infer_the_weights_too.py`.
#
# **1. What four data say.** One weight $\theta$ with the prior $\mathcal N(0, 1)$, and four data $x_i = \theta + \text{noise}$ with noise of standard deviation 2 and mean $\bar x = 1$. What are the mean and the standard deviation of the posterior, and its KL to the prior in nats? A tensor of three numbers.

# %%
from vaelib.teaching.exercises import check

fine = torch.linspace(-8, 8, 160_001)  # a grid over θ: brute force in place of algebra
weight = (-0.5 * fine**2 - 4 * (fine - 1) ** 2 / 8).softmax(0)
mean = (weight * fine).sum()
deviation = (weight * (fine - mean) ** 2).sum().sqrt()
four_data = ...  # your answer: mean, standard deviation, KL in nats
check(four_data, [mean, deviation, kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0))])

# %% [markdown]
# **2. How wide should a weight be?** Near its best value, let the sum of the expected log-likelihoods over all data fall off as $-\tfrac12 c\,\sigma^2$ when the weight is given the width $\sigma$. With the prior $\mathcal N(0, 1)$, which $\sigma$ maximises the bound? Evaluate it for $c = 0$, $3$ and $99$. What happens to a weight that the data do not need?
#
# **3. The forgotten N.** Someone writes the loss as `kl_weights - elbo.mean()`, with the KL *not* divided by $N$. Nothing crashes. In the model of exercise 1, but with 20 data and noise 1, what standard deviation does $q(\theta)$ converge to, and what is the right one? Which kind of failure would you see in section 7?
#
# **4. A correlation's price.** A line with a slope and an intercept, both with the prior $\mathcal N(0, 1)$, is observed at the inputs 1, 2 and 3 with noise 1. How many nats does a factorised $q$ lose? Then centre the inputs: how many now?

# %%
widths = torch.linspace(0.001, 2, 200_000)
width = ...  # your answer: the best σ for c = 0, 3 and 99, a tensor (3,)
gains = [widths.log() - 0.5 * widths**2 - 0.5 * c * widths**2 for c in (0, 3, 99)]
check(width, [widths[gain.argmax()] for gain in gains])

forgotten = ...  # your answer: the wrong and the right standard deviation, a tensor (2,)
slopes = torch.tensor([1.0, 20.0])[:, None] * widths**2  # c for one datum, and for twenty
check(forgotten, widths[(widths.log() - 0.5 * widths**2 - 0.5 * slopes).argmax(1)])

lost = ...  # your answer: nats lost for the inputs 1, 2, 3, and for −1, 0, 1: a tensor (2,)
phis = torch.stack([with_one(torch.tensor([[c - 1.0], [c], [c + 1.0]])) for c in (2.0, 0.0)])
needle = MultivariateNormal(torch.zeros(2, 2), precision_matrix=phis.mT @ phis + torch.eye(2))
inside = torch.diag_embed(needle.precision_matrix.diagonal(dim1=-2, dim2=-1) ** -0.5)
check(lost, kl_divergence(MultivariateNormal(torch.zeros(2, 2), scale_tril=inside), needle))

# %% [markdown]
# ## Further reading
#
# **The paper of this notebook**
# - D. P. Kingma and M. Welling (2013). *Auto-Encoding Variational Bayes.* arXiv:1312.6114. Appendix F is what you just did.
#
# **Weights with a distribution**
# - G. Hinton and D. van Camp (1993). *Keeping Neural Networks Simple by Minimizing the Description Length of the Weights.* COLT. The message, twenty years before.
# - D. MacKay (1992). *A Practical Bayesian Framework for Backpropagation Networks.* Neural Computation 4, 448–472. Evidence and Occam's razor.
# - R. Neal (1996). *Bayesian Learning for Neural Networks.* Springer. HMC over weights, our referee.
# - A. Graves (2011). *Practical Variational Inference for Neural Networks.* NeurIPS.
# - C. Blundell, J. Cornebise, K. Kavukcuoglu and D. Wierstra (2015). *Weight Uncertainty in Neural Networks.* ICML, arXiv:1505.05424. "Bayes by backprop": section 4, at scale.
#
# **Where to put the noise**
# - D. P. Kingma, T. Salimans and M. Welling (2015). *Variational Dropout and the Local Reparameterization Trick.* NeurIPS, arXiv:1506.02557. Section 5.
# - Y. Wen, P. Vicol, J. Ba, D. Tran and R. Grosse (2018). *Flipout: Efficient Pseudo-Independent Weight Perturbations on Mini-Batches.* ICLR, arXiv:1803.04386. A cure that also works for convolutions.
#
# **What falls short**
# - B. Trippe and R. Turner (2018). *Overpruning in Variational Bayesian Neural Networks.* arXiv:1801.06230.
# - A. Foong, D. Burt, Y. Li and R. Turner (2020). *On the Expressiveness of Approximate Inference in Bayesian Neural Networks.* NeurIPS, arXiv:1909.00719. The gap.
# - P. Izmailov, S. Vikram, M. Hoffman and A. G. Wilson (2021). *What Are Bayesian Neural Network Posteriors Really Like?* ICML, arXiv:2104.14421. HMC on large networks.
