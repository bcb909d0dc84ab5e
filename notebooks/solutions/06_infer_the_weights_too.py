# %% [markdown]
# # Solutions 06 · Infer the weights too
#
# The exercises of `notebooks/06_infer_the_weights_too.ipynb`, solved and explained. This script runs by itself; each answer is checked by an `assert`.

# %%
import math

import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# **1. What four data say.** Precisions add: 1 from the prior and $4 / 2^2 = 1$ from the data, together 2. So the standard deviation is $1/\sqrt 2$. The mean is the average of the prior mean 0 and the data mean 1, weighted by the two precisions: $1/2$. Shrinkage: four noisy data weigh exactly as much as the prior, and the estimate stops halfway. The KL is
#
# $$\tfrac12\big(\mu^2 + \sigma^2 - 1 - \ln\sigma^2\big) = \tfrac12\big(\tfrac14 + \tfrac12 - 1 + \ln 2\big) \approx 0.222 \text{ nats}.$$
#
# Less than a third of a bit is worth saying about this weight.

# %%
four_data = torch.tensor([0.5, 0.5**0.5, 0.5 * (0.25 + 0.5 - 1 + math.log(2))])

# The evidence must equal the expected log-likelihood minus the KL, because q is the posterior.
x = torch.tensor([-1.0, 0.0, 2.0, 3.0])  # four data whose mean is 1
expected = Normal(four_data[0], 2.0).log_prob(x).sum() - 4 * four_data[1] ** 2 / (2 * 2.0**2)
evidence = MultivariateNormal(torch.zeros(4), 4 * torch.eye(4) + 1).log_prob(x)
assert torch.isclose(expected - four_data[2], evidence, rtol=1e-12)
brute = kl_divergence(Normal(four_data[0], four_data[1]), Normal(0.0, 1.0))
assert torch.isclose(brute, four_data[2], rtol=1e-12)
print("1.", [round(value, 3) for value in four_data.tolist()])

# %% [markdown]
# **2. How wide should a weight be?** The parts of the bound that depend on $\sigma$ are $-\tfrac12 c\,\sigma^2 - \tfrac12 \sigma^2 + \ln \sigma$. Setting the derivative to zero gives $1/\sigma = (c + 1)\,\sigma$, so
#
# $$\sigma = \frac1{\sqrt{c + 1}}:\qquad 1,\ \tfrac12,\ \tfrac1{10}.$$
#
# The curvature $c$ is what the data know about the weight; 1 is what the prior knows. A weight that the data do not need has $c = 0$ and goes back to the width of its prior, where it costs nothing. That is what happens to the outgoing weights of a sleeping unit: a unit that is silent makes their $c$ zero.

# %%
width = 1 / (torch.tensor([0.0, 3.0, 99.0]) + 1).sqrt()

for c, best in zip((0.0, 3.0, 99.0), width, strict=True):
    sigma = best.clone().requires_grad_()
    bound = -0.5 * c * sigma**2 - kl_divergence(Normal(0.0, sigma), Normal(0.0, 1.0))
    (slope,) = torch.autograd.grad(bound, sigma)
    assert abs(slope) < 1e-12
print("2.", width.tolist())

# %% [markdown]
# **3. The forgotten N.** Without the division, the whole data set counts as a *single* average datum: the data's precision is 1 in place of 20. The standard deviation becomes $1/\sqrt{1 + 1} \approx 0.707$ in place of $1/\sqrt{20 + 1} \approx 0.218$. The weights are far too uncertain. In section 7 you would see the failure of too few data at every $N$: nearly all units asleep, grey images, and little gained from fifty to a thousand digits. (The opposite mistake, dividing by $N$ twice, makes $q(\theta)$ ever narrower: maximum likelihood by accident.)

# %%
forgotten = torch.tensor([(1 + 1) ** -0.5, (20 + 1) ** -0.5])

log_scale = torch.zeros(2, requires_grad=True)  # one width for each of the two losses
optimizer = torch.optim.Adam([log_scale], lr=0.05)
for _ in range(1000):
    sigma = log_scale.exp()
    weights_price = kl_divergence(Normal(0.0, sigma), Normal(0.0, 1.0)) / torch.tensor([1.0, 20.0])
    optimizer.zero_grad()
    (weights_price + 0.5 * sigma**2).sum().backward()  # the loss per datum, as far as σ matters
    optimizer.step()
assert torch.allclose(log_scale.exp(), forgotten, atol=1e-4)
print("3.", [round(value, 3) for value in forgotten.tolist()])

# %% [markdown]
# **4. A correlation's price.** With $\Phi$ the inputs and a column of ones, $\Lambda = \Phi^\top\Phi + I$. For the inputs 1, 2, 3
#
# $$\Phi^\top\Phi = \begin{pmatrix} 14 & 6 \\ 6 & 3 \end{pmatrix}, \quad \Lambda = \begin{pmatrix} 15 & 6 \\ 6 & 4 \end{pmatrix}, \quad \rho^2 = \frac{36}{15 \cdot 4} = 0.6, \quad -\tfrac12 \ln(1 - 0.6) \approx 0.458 \text{ nats}.$$
#
# Centred, the inputs are $-1, 0, 1$, the off-diagonal sum is 0, and nothing is lost.

# %%
lost = torch.tensor([-0.5 * math.log(1 - 36 / 60), 0.0])

phi = torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
y = torch.tensor([0.3, 1.0, 2.1])
precision = phi.T @ phi + torch.eye(2)
mean = torch.linalg.solve(precision, phi.T @ y)
factorised = torch.diag(1 / precision.diagonal())  # its covariance
prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
fit = Normal(phi @ mean, 1.0).log_prob(y).sum() - 0.5 * (phi.T @ phi @ factorised).trace()
bound = fit - kl_divergence(MultivariateNormal(mean, factorised), prior)
evidence = MultivariateNormal(torch.zeros(3), phi @ phi.T + torch.eye(3)).log_prob(y)
assert torch.isclose(evidence - bound, lost[0], rtol=1e-9)
print("4.", [round(value, 3) for value in lost.tolist()])
