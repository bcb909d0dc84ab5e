# %% [markdown]
# # Solutions 07 · Watch a linear VAE collapse
#
# The exercises of `notebooks/07_watch_a_linear_vae_collapse.ipynb`, solved and explained. This script runs by itself; each answer is checked by an `assert`.

# %%
import math

import torch
from torch.nn import functional as F

from vaelib import ELBO, VAE, data
from vaelib.inference import linear_vae

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

EIGENVALUES = torch.tensor([6.0, 4.0, 2.5, 1.6, 1.0, 0.6, 0.35, 0.2])
DIMS, LATENTS = 8, 6
S = EIGENVALUES.diag()  # the covariance; its directions are the axes, which changes no answer


def linear_elbo(W, V, log_s, noise):
    """The exact bound of a linear VAE, mean per datum: W (D, k), V (k, D), log_s (k,)."""
    rest = torch.eye(DIMS) - W @ V
    error = (rest @ S * rest).sum() + (W.square().sum(0) * (2 * log_s).exp()).sum()
    distortion = 0.5 * DIMS * math.log(2 * math.pi * noise) + error / (2 * noise)
    spread = ((2 * log_s).exp() - 1 - 2 * log_s).sum()
    return ELBO(distortion, 0.5 * ((V @ S * V).sum() + spread))


# %% [markdown]
# **1. Find the noise in the loss.** A Gaussian decoder has the distortion $\frac{1}{2\sigma^2}\|x - \hat x\|^2$ and a constant. The loss has $\frac{\text{weight}}{D}\|x - \hat x\|^2$. The two agree if $\sigma^2 = D / (2\,\text{weight})$. Solved for the weight, it is $D / (2\sigma^2)$: for $\sigma^2 = 0.01$ and $D = 784$ that is $784 / 0.02 = 39\,200$.


# %%
def noise_variance(weight, pixels):
    return pixels / (2 * weight)


def weight_for(noise, pixels):
    return pixels / (2 * noise)


assert noise_variance(1, 784) == 392 and math.isclose(noise_variance(2.5, 3072), 614.4)
assert math.isclose(weight_for(0.01, 784), 39_200) and weight_for(0.5, 3072) == 3072
x, x_hat, y_hat = torch.rand(3, 784)
variance = noise_variance(5.0, 784)
by_loss = 5.0 * (F.mse_loss(x_hat, x) - F.mse_loss(y_hat, x))
by_density = (x_hat - x).square().sum() - (y_hat - x).square().sum()
assert torch.isclose(by_loss, by_density / (2 * variance))  # differences: the constant is gone
print("1. σ² =", noise_variance(1, 784), "and the weight", round(weight_for(0.01, 784)))

# %% [markdown]
# **2. Room for ten.** Any noise between the eleventh and the tenth eigenvalue will do; we take the middle. The rate is $\sum_{i \le 10} \tfrac12 \ln(\lambda_i/\sigma^2)$.

# %%
digits = data.mnist("5k").train.flatten(1).double()
spectrum = torch.linalg.eigvalsh(torch.cov(digits.T, correction=0)).flip(0)
your_noise = spectrum[9:11].mean().item()
rate = 0.5 * (spectrum[:10] / your_noise).log().sum().item()

model = linear_vae.PPCA.fit(digits, 20, your_noise)
assert int((model.weight.norm(dim=0) > 0).sum()) == 10
q = VAE(*model.slots()).encoder(digits)
measured = (0.5 * (q.loc**2 + q.scale**2 - 1) - q.scale.log()).mean(0)  # (20,) nats
assert math.isclose(measured.sum().item(), rate, rel_tol=1e-6)
assert int((measured > 1e-6).sum()) == 10
print(f"2. σ² = {your_noise:.2f}: ten latents, {rate:.2f} nats")

# %% [markdown]
# **3. The rate of a latent.** The posterior has the mean $m = \frac{w}{\lambda} u^\top(x - \mu)$ and the variance $s^2 = \sigma^2/\lambda$. Over the data $u^\top(x - \mu)$ has variance $\lambda$, so
#
# $$\mathbb E_x[m^2] = \frac{w^2}{\lambda^2}\,\lambda = \frac{\lambda - \sigma^2}{\lambda} = 1 - \frac{\sigma^2}{\lambda}, \qquad s^2 = \frac{\sigma^2}{\lambda}.$$
#
# They add up to one, and the $-1$ of the KL cancels them. What is left is the logarithm, $-\tfrac12 \ln s^2 = \tfrac12 \ln(\lambda/\sigma^2)$. The sum is one for a reason: averaged over all data, the posteriors make up the prior, whose variance is one, and a variance is that of the means plus the mean of the variances. This is true of every model that fits its data perfectly.


# %%
def rate_in_parts(eigenvalue, noise):
    variance = noise / eigenvalue
    return 1 - variance, variance, -math.log(variance)


raw = torch.randn(2000, DIMS)
raw = raw - raw.mean(0)
white = raw @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(raw.T, correction=0))).T
x = white * EIGENVALUES.sqrt()  # exactly this covariance
for noise in (0.5, 2.0, 5.0):
    q = VAE(*linear_vae.PPCA.fit(x, 1, noise).slots()).encoder(x)
    measured = [part.mean().item() for part in (q.loc**2, q.scale**2, -2 * q.scale.log())]
    parts = rate_in_parts(6.0, noise)
    assert all(math.isclose(*pair, rel_tol=1e-9) for pair in zip(parts, measured, strict=True))
    rate = 0.5 * (sum(parts) - 1)
    assert math.isclose(rate, 0.5 * math.log(6.0 / noise), rel_tol=1e-12)
    print(f"3. σ² = {noise}:", [round(part, 3) for part in parts], f"rate {rate:.3f} nats")

# %% [markdown]
# **4. β is the noise.** Divide the objective by $\beta$: what depends on the networks is then $\frac{1}{2\beta\sigma^2} E + \text{rate}$, the ordinary bound with the noise variance $\beta\sigma^2$. So the column of $W$ has the squared length $\lambda - \beta\sigma^2$, or zero if that is negative. At $\sigma^2 = 0.4$ and $\beta = 3$ the water stands at 1.2, and two of the six latents drown that would live at $\beta = 1$.


# %%
def squared_length(eigenvalue, noise, beta):
    return max(eigenvalue - beta * noise, 0)


parts = [0.3 * torch.randn(shape) for shape in [(DIMS, LATENTS), (LATENTS, DIMS), (LATENTS,)]]
parts = [part.requires_grad_() for part in parts]
optimizer = torch.optim.Adam(parts, lr=0.03)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3000)
for _ in range(3000):
    optimizer.zero_grad()
    bound = linear_elbo(*parts, noise=0.4)
    (bound.distortion + 3.0 * bound.rate).backward()
    optimizer.step()
    schedule.step()
trained = parts[0].detach().square().sum(0).sort(descending=True).values
lengths = [squared_length(value, 0.4, 3.0) for value in EIGENVALUES[:LATENTS].tolist()]
assert torch.allclose(trained, torch.tensor(lengths), rtol=0, atol=0.01)
print("4.", [round(length, 2) for length in lengths])

# %% [markdown]
# **5. How fast is the escape?** With one latent along $u_1$, $W = w\,u_1$ and $V = v\,u_1^\top$, and $s = 1$. The distortion changes from $\frac{\lambda}{2\sigma^2}$ to $\frac{1}{2\sigma^2}\big[\lambda(1 - wv)^2 + w^2\big]$, the rate from 0 to $\tfrac12\lambda v^2$. Up to second order the bound gains
#
# $$\frac{\lambda}{\sigma^2}\, wv - \frac{w^2}{2\sigma^2} - \frac{\lambda v^2}{2}.$$
#
# The Hessian in $(w, v)$ is $\begin{pmatrix} -1/\sigma^2 & \lambda/\sigma^2 \\ \lambda/\sigma^2 & -\lambda \end{pmatrix}$. Its trace is negative; its determinant, $\frac{\lambda}{\sigma^2}\big(1 - \frac{\lambda}{\sigma^2}\big)$, is negative exactly if $\lambda > \sigma^2$. Then one eigenvalue is positive, and total collapse is a saddle. If $\lambda < \sigma^2$, both are negative and collapse is a maximum: the threshold of section 2 once more. The largest eigenvalue is
#
# $$\frac12\bigg[-\Big(\frac{1}{\sigma^2} + \lambda\Big) + \sqrt{\Big(\frac{1}{\sigma^2} - \lambda\Big)^2 + \frac{4\lambda^2}{\sigma^4}}\bigg].$$
#
# Gradient ascent with step size $\eta$ multiplies a small push by about $1 + \eta$ times this number at each step.


# %%
def escape_curvature(eigenvalue, noise):
    precision = 1 / noise
    root = math.sqrt((precision - eigenvalue) ** 2 + 4 * eigenvalue**2 * precision**2)
    return 0.5 * (root - precision - eigenvalue)


PARTS = [DIMS * LATENTS, LATENTS * DIMS, LATENTS]


def bound_at(theta, noise):
    W, V, log_s = theta.split(PARTS)
    return linear_elbo(W.view(DIMS, LATENTS), V.view(LATENTS, DIMS), log_s, noise).value


for noise in (0.3, 1.3, 5.9, 7.0):
    hessian = torch.func.hessian(lambda theta, noise=noise: bound_at(theta, noise))
    largest = torch.linalg.eigvalsh(hessian(torch.zeros(sum(PARTS))))[-1].item()
    curvature = escape_curvature(6.0, noise)
    assert (largest > 1e-9) == (curvature > 1e-9) == (noise < 6.0)
    if noise < 6.0:  # above, another direction has the largest, which is negative or zero
        assert math.isclose(largest, curvature, rel_tol=1e-9)
print("5.", round(escape_curvature(6.0, 1.3), 3))
