# %% [markdown]
# # Solutions 02 · Reparameterize the gradient
#
# The exercises of `notebooks/02_reparameterize_the_gradient.ipynb`, solved and explained. This script runs by itself; each answer is checked by an `assert`.

# %%
import torch

from vaelib.distributions import DiagNormal

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# **1. A new row for family 1.** Solve $1 - (1 - z^a)^b = u$ from the outside in: $(1 - z^a)^b = 1 - u$, then $1 - z^a = (1-u)^{1/b}$, then
#
# $$z = \big(1 - (1-u)^{1/b}\big)^{1/a} .$$
#
# The transformation is differentiable in $a$ and $b$, for any positive values. Nothing implicit is needed, which makes the Kumaraswamy distribution a convenient stand-in for the Beta.

# %%
a, b = 2.0, 3.0
u = torch.tensor([0.1, 0.5, 0.9])
kumaraswamy = (1 - (1 - u) ** (1 / b)) ** (1 / a)

assert torch.allclose(1 - (1 - kumaraswamy**a) ** b, u, rtol=1e-12)  # F(g(u)) = u
print("1.", [round(value, 3) for value in kumaraswamy.tolist()])

# %% [markdown]
# **2. Unequal batches.** The mean of a batch estimates the mean over all images, so it must be multiplied by the number of images that it stands for. If the batches together are to count each image once, batch $j$ stands for its own $M_j$ images: $M_j$ times its mean, that is, its sum.
#
# With $250/3$ for each, an image in the small batch gets the weight $250/(3 \cdot 50) = 5/3$ and one in a large batch only $5/6$. The sum is then wrong unless the batches have the same mean. (If a *single* random batch is to stand for the data set, as in equation 8, the factor is $N/M_j$: $2.5$ times the sum of a large one, $5$ times that of the small one.)

# %%
batches = (-100 - 10 * torch.sin(torch.arange(250.0))).split(100)
shares = torch.stack([len(batch) * batch.mean() for batch in batches])

assert torch.allclose(shares.sum(), torch.cat(batches).sum(), rtol=1e-12)
wrong = torch.stack([250 / 3 * batch.mean() for batch in batches])
assert not torch.allclose(wrong.sum(), torch.cat(batches).sum(), rtol=1e-6)
print("2.", [round(value, 3) for value in shares.tolist()])

# %% [markdown]
# **3. The best constant baseline.** The mean of $(f - b)s$ does not depend on $b$, so the variance is least where the second moment is: $\mathbb E[(f-b)^2 s^2] = \mathbb E[f^2 s^2] - 2b\, \mathbb E[f s^2] + b^2\, \mathbb E[s^2]$. This is a parabola in $b$ with its vertex at $b^\star = \mathbb E[f s^2] / \mathbb E[s^2]$: a mean of $f$, weighted by the squared score.
#
# With $\mu = \sigma = 1$ the score of $\mu_1$ is $s = \epsilon_1$ and $\mathbb E[s^2] = 1$. For the first dimension $\mathbb E[(1 + \epsilon)^2 \epsilon^2] = 1 + 0 + 3 = 4$; each of the others contributes $\mathbb E[z_i^2] = 2$. So
#
# $$b^\star = 4 + 2\,(d - 1) = 2d + 2 = 66, \qquad \text{against} \qquad \mathbb E[f] = 2d = 64 .$$
#
# The variance saved is $(b^\star - \mathbb E[f])^2\, \mathbb E[s^2] = 4$, out of about 200: two per cent. The plain mean is nearly as good, since in many dimensions $f$ and $s^2$ are nearly independent. In one dimension the same 4 is out of 18.

# %%
d = 32
best_baseline = (1 + 3) + 2 * (d - 1)

z = 1 + torch.randn(200_000, d)
f, score = z.square().sum(-1), z[:, 0] - 1
assert abs((f * score**2).mean() - best_baseline) < 5 * (f * score**2).std() / len(f) ** 0.5
variances = [
    ((f - b) * score).var() for b in (best_baseline - 20, best_baseline, best_baseline + 20)
]
assert variances[1] < variances[0] and variances[1] < variances[2]
print("3.", best_baseline)

# %% [markdown]
# **4. Stick the landing.** With the parameters inside $\log q$ fixed, only the path $z = \mu + \sigma\epsilon$ carries a gradient: it is $\partial_z[\log p(x, z) - \log q(z)]$. When $q$ is the posterior, the bracket is $\log p(x)$ for every $z$, and its slope is zero, for every noise value and not only on average.
#
# Good news at the end of training: an encoder that is right is not shaken about any more. No reason to give up B at the start: there $q$ is far from the posterior. In the figure of section 7, STL's gradient in the mean is far noisier than B's for a $q$ that is too narrow.

# %%
likelihood_scale, x = 0.5, 2.0
posterior_scale = (1 + 1 / likelihood_scale**2) ** -0.5
posterior_mean = x * posterior_scale**2 / likelihood_scale**2
epsilon = torch.tensor([[-1.3], [0.2], [0.9]])
mean = torch.full((3, 1), posterior_mean, requires_grad=True)
width = torch.full((3, 1), posterior_scale)

z = mean + width * epsilon
log_likelihood = DiagNormal(z, torch.full_like(z, likelihood_scale)).log_prob(torch.full((3, 1), x))
log_prior = DiagNormal(torch.zeros(3, 1), torch.ones(3, 1)).log_prob(z)
log_q = DiagNormal(mean.detach(), width).log_prob(z)
(landing,) = torch.autograd.grad((log_likelihood + log_prior - log_q).sum(), mean)

assert landing.abs().max() < 1e-12
moving_q = DiagNormal(mean, width).log_prob(mean + width * epsilon)  # A, not held fixed
z = mean + width * epsilon
joint = DiagNormal(z, torch.full_like(z, likelihood_scale)).log_prob(torch.full((3, 1), x))
joint = joint + DiagNormal(torch.zeros(3, 1), torch.ones(3, 1)).log_prob(z)
(plain_a,) = torch.autograd.grad((joint - moving_q).sum(), mean)
assert torch.allclose(
    plain_a, -epsilon / width, atol=1e-12
)  # minus the score: zero on average only
print("4. the gradient is zero for every noise value:", bool(landing.abs().max() < 1e-12))
