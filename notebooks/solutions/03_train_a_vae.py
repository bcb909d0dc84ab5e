# %% [markdown]
# # Solutions 03 · Train a VAE
#
# The exercises of `notebooks/03_train_a_vae.ipynb`, solved and explained. This script runs by itself, with models that are smaller and trained more shortly than those of the notebook; each answer is checked by an `assert`.

# %%
import math
from functools import partial

import torch
from torch.distributions import kl_divergence

from vaelib import VAE, data, evaluate, fit
from vaelib.decoders import BernoulliMLP
from vaelib.distributions import DiagNormal
from vaelib.encoders import MLPEncoder
from vaelib.networks import MLP
from vaelib.priors import StandardNormal
from vaelib.training.loop import adam

digits = data.mnist("5k")
few = digits.train[:2000]
adam = partial(adam, lr=5e-3)
torch.set_num_threads(1)  # such small models gain nothing from a second one


def build(latents, hidden=50, seed=0):
    """A small VAE for digits."""
    torch.manual_seed(seed)
    encoder, decoder = MLPEncoder(latents, hidden=hidden), BernoulliMLP(latents, hidden=hidden)
    return VAE(encoder, StandardNormal(latents), decoder)


# %% [markdown]
# **1. A price on the rate.** The rate is the closed form of appendix B, one term for each latent. β multiplies it and nothing else.
#
# With β > 1 a nat of rate must save more than β nats of distortion to be worth it. So the encoder says less: the rate falls, reconstructions get blurred, and the codes come closer to the prior, which makes samples more like reconstructions. What is maximised is no longer the tightest bound; to compare with other models, evaluate the ordinary one, with β = 1.


# %%
def weighted_loss(q, x, likelihood, beta):
    """Mean of distortion + beta · rate over the batch, nats. q has .loc and .scale."""
    rate = 0.5 * (q.loc**2 + q.scale**2 - 1 - 2 * q.scale.log()).sum(-1)
    return (beta * rate - likelihood.log_prob(x)).mean()


q = DiagNormal(torch.tensor([[0.5, -1.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.5], [2.0, 0.1]]))
likelihood, x = DiagNormal(torch.zeros(2, 3), torch.ones(2, 3)), torch.tensor([[0.1, 0.2, 0.3]] * 2)
true = (4 * kl_divergence(q, StandardNormal(2)()) - likelihood.log_prob(x)).mean()
assert torch.allclose(weighted_loss(q, x, likelihood, beta=4), true)

rates = {}
for beta in (1, 4):
    vae = build(10)
    optimizer = adam(vae.parameters())
    for _epoch in range(4):
        for batch in torch.randperm(len(few)).split(100):
            x = few[batch]
            q = vae.encoder(x)
            loss = weighted_loss(q, x, vae.decoder(q.rsample()), beta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    rates[beta] = float(evaluate(vae, digits.test).rate)
assert rates[4] < 0.75 * rates[1]
print("1. rate in nats:", {beta: round(rate, 1) for beta, rate in rates.items()})

# %% [markdown]
# **2. Bits per pixel.** A file knows a pixel only up to a step of 1/256. The probability of such a step is about the density times its width, so the log probability of the image is the log density minus $D \ln 256$ for $D$ pixels. Change the sign, divide by $D$ for one pixel and by $\ln 2$ for bits: $8 - \text{bound} / (D \ln 2)$.
#
# A bound of zero nats on faces is therefore worth exactly the raw file, and every 388 nats save one bit per pixel.


# %%
def bits_per_pixel(bound, pixels, levels=256):
    """Bits per pixel of the discretised image, from a density's bound in nats per image."""
    return math.log2(levels) - bound / (pixels * math.log(2))


assert bits_per_pixel(0.0, pixels=560) == 8
assert abs(bits_per_pixel(1000.0, pixels=560) - 5.4238) < 1e-4
print("2.", round(bits_per_pixel(1000.0, pixels=560), 4), "bits per pixel")

# %% [markdown]
# **3. One sample or ten?** The ten draws of $z$ are independent, so the variance of their mean is a tenth, and the standard deviation shrinks by $\sqrt{10} \approx 3.2$.
#
# Why then $L = 1$? The gradient of a minibatch is noisy for two reasons: which images are in it, and which $z$ were drawn. Ten samples cost ten passes through the decoder and reduce only the second part. The same work spent on ten times as many images, or on ten steps with fresh images and fresh noise, reduces both.


# %%
@torch.no_grad()
def noise(vae, x):
    """Standard deviations of the distortion estimate with L = 1 and with L = 10, nats."""
    copies = x.repeat(400, 1, 1, 1)  # (400 · B, 1, 28, 28)
    estimates = (vae.elbo(copies, samples=count).distortion for count in (1, 10))
    one, ten = (estimate.view(400, len(x)).var(0).mean().sqrt() for estimate in estimates)
    return float(one), float(ten)


vae = build(10)
fit(vae, few, epochs=3, optimizer=adam, progress=False)
torch.manual_seed(0)
pairs = [noise(vae, x) for x in digits.test[:30].split(10)]
ratio = sum(one / ten for one, ten in pairs) / 3
# Each of the three ratios is uncertain by 0.25 or so: the distortion of a model trained this
# shortly has heavy tails. Their mean is uncertain by 0.15.
assert abs(ratio - math.sqrt(10)) < 0.5
print("3. ratio:", round(ratio, 1))

# %% [markdown]
# **4. Binary digits.** One line. The perfect decoder of a black-and-white image is certain of every pixel, and its distortion is zero: the floor of the grey digits is gone. But nobody can predict the coin flips of the grey pixels from the digit's shape, so in practice the distortion stays well above it.
#
# Mean bounds on grey digits and on fresh binary draws of them estimate the *same* cross entropy for a given $q$. Yet the encoder now sees another, noisier input each time, so the trained models differ a little. With ReLU the bound after a few epochs is close to that with tanh; the activation matters less than the width or the length of training.


# %%
def draw_binary(x):
    """Black-and-white images drawn from the grey ones, same shape."""
    return data.binarize(x, "bernoulli")


torch.manual_seed(0)
copies = draw_binary(digits.test[:1].expand(2000, -1, -1, -1))
assert ((copies == 0) | (copies == 1)).all()
# The mean of 2,000 draws has a deviation of at most 0.011: the worst of 784 pixels stays below 0.06.
assert (copies.mean(0) - digits.test[0]).abs().max() < 0.06

torch.manual_seed(0)
binary_test, rates = draw_binary(digits.test), {}
for name, transform in {"grey": None, "binary": draw_binary}.items():
    vae = build(10)
    fit(vae, few, epochs=5, optimizer=adam, transform=transform, progress=False)
    test = digits.test if transform is None else binary_test
    bound = evaluate(vae, test)
    rates[name] = (float(bound.rate), float(bound.value))
relu = build(10)
relu.encoder.network = MLP(784, 50, 2 * 10, torch.nn.ReLU)
fit(relu, few, epochs=5, optimizer=adam, progress=False)
with_relu = float(evaluate(relu, digits.test).value)
assert abs(with_relu - rates["grey"][1]) < 15
print("4. (rate, bound) in nats:", {k: tuple(round(v) for v in pair) for k, pair in rates.items()})
print("   bound with ReLU in the encoder:", round(with_relu))

# %% [markdown]
# **5. Do two posteriors overlap?** A diagonal Gaussian is a product over dimensions, so the integral is a product, too. Write the product as the exponential of a sum.
#
# The digit of another class whose posterior overlaps most with that of the first one has, for the decoder, practically the same code. Two latents cannot keep the two apart, and both are reconstructed as the same blurred picture. Look at the two images: as a rule they share slant, width and most of their strokes.


# %%
def overlap(q1, q2):
    """Bhattacharyya coefficient of two diagonal Gaussians with .loc and .scale (latents,)."""
    variance = q1.scale**2 + q2.scale**2
    root = 0.5 * (2 * q1.scale * q2.scale / variance).log().sum(-1)
    return (root - ((q1.loc - q2.loc) ** 2 / (4 * variance)).sum(-1)).exp()


q1 = DiagNormal(torch.tensor([0.3, -1.0]), torch.tensor([0.5, 0.2]))
q2 = DiagNormal(torch.tensor([0.0, -0.8]), torch.tensor([0.3, 0.4]))
z = torch.cartesian_prod(*[torch.linspace(-4, 4, 801)] * 2)
integral = (0.5 * (q1.log_prob(z) + q2.log_prob(z))).exp().sum() * 0.01**2
assert abs(overlap(q1, q2) - integral) < 1e-3
assert torch.allclose(overlap(q1, q1), torch.tensor(1.0))

vae = build(2)
fit(vae, few, epochs=5, optimizer=adam, progress=False)
with torch.no_grad():
    q = vae.encoder(digits.test)
first = DiagNormal(q.loc[0], q.scale[0])
shared = overlap(first, q)  # (1000,), broadcast over the test digits
others = digits.test_labels != digits.test_labels[0]
twin = int((shared * others).argmax())
assert others[twin] and 0 < shared[twin] <= 1
print("5. a", int(digits.test_labels[0]), "shares most with a", int(digits.test_labels[twin]))
