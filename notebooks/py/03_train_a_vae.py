# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · Train a VAE
#
# *From the bound to a model that draws digits and faces: Kingma & Welling (2013), sections 2.3, 3 and 5, figures 4 and 5, appendices B and C.*
#
# **What you will do**
#
# - write the whole training loop in a dozen lines, then hand it to the library;
# - train variational autoencoders with 2, 5, 10 and 20 latents on handwritten digits and on the frames of a face;
# - draw the two maps of figure 4 and the samples of figure 5;
# - rebuild, blend, clean and complete images with the trained models, and see where that fails.
#
# **What you will learn**
#
# - what each line of Auto-Encoding Variational Bayes (AEVB) is for;
# - how to read a bound in nats: rate, distortion, what cannot be won, and why the bound of a face can be positive;
# - what a latent plane looks like, and how to tell whether a latent is used;
# - how to save, stop and continue a training run.
#
# **What you need**: the bound (notebook 01), the reparameterised gradient (notebook 02), a little PyTorch. No download is *needed*: the digits come with a package you have installed; the faces are fetched once, if there is a network. Where the real faces cannot be had, drawn ones take their place and every title says so.

# %% tags=["nbval-ignore-output"]
import math
import tempfile
from functools import partial

import matplotlib.pyplot as plt
import torch
from ipywidgets import FloatSlider, interact
from torch.distributions import Normal, kl_divergence

from vaelib import VAE, data, encoders, evaluate, fit, networks, priors, scale
from vaelib.decoders import BernoulliMLP, GaussianMLP
from vaelib.distributions import DiagNormal
from vaelib.teaching import plotting
from vaelib.teaching.plotting import COLORS
from vaelib.training import loop

plotting.use_style()
SEED = 0  # the claims at the end held for every seed that we tried: try another
digits = data.mnist(scale(classroom="5k", paper="full"))
faces = data.frey_faces()
print("digits:", digits.source, "| faces:", faces.source)

# %% [markdown]
# ## 1. The algorithm
#
# Notebook 01 gave us something to climb. For any image $x$ and any distribution $q(z|x)$,
#
# $$
# \log p(x) \;\ge\; \underbrace{\mathbb E_{q(z|x)}\big[\log p(x|z)\big]}_{-\,\text{distortion}} \;-\; \underbrace{\mathrm{KL}\big(q(z|x)\,\|\,p(z)\big)}_{\text{rate}} .
# $$
#
# Think of a sender and a receiver. The encoder sends a code $z$; the **rate** is what this code costs beyond what the receiver expects anyway. The decoder turns the code into a prediction of the image; the **distortion** is what is still left to say about the image. Training makes the sum of the two small. Both are measured in *nats*: bits with the natural logarithm in place of the logarithm to base 2.
#
# Notebook 02 gave us a gradient that a computer can follow: write $z = \mu(x) + \sigma(x)\odot\epsilon$ with $\epsilon \sim \mathcal N(0, I)$, and the noise no longer depends on any weight. So we may differentiate straight through the sample.
#
# Algorithm 1 of the paper puts the two together:
#
# > **repeat** until the weights settle: draw a minibatch of $M$ images · draw noise $\epsilon$ · compute the gradient of the minibatch's bound · take a step with it.
#
# The paper uses $M = 100$ images and *one* noise sample per image. One is enough, because a step averages over a hundred images, and the next step brings new noise.
#
# ### The three slots
#
# A VAE here is three modules. Each returns a *distribution*:
#
# | slot | returns | here |
# |---|---|---|
# | `encoder(x)` | $q(z\mid x)$ | a network with one tanh layer gives a mean and a variance for each latent (appendix C.2) |
# | `prior()` | $p(z)$ | $\mathcal N(0, I)$, nothing to learn |
# | `decoder(z)` | $p(x\mid z)$ | a network with one tanh layer gives a Bernoulli probability (appendix C.1) or a mean and a variance (C.2) for each pixel |

# %%
HIDDEN = {BernoulliMLP: 500, GaussianMLP: 200}  # tanh units, as in section 5 of the paper


def build(images, decoder, latents):
    """An untrained VAE for these images, one hidden layer on each side."""
    shape, hidden = images.train.shape[1:], HIDDEN[decoder]
    encoder, prior = encoders.MLPEncoder(latents, shape, hidden), priors.StandardNormal(latents)
    return VAE(encoder, prior, decoder(latents, shape, hidden))


build(digits, BernoulliMLP, 20)

# %% [markdown]
# ### The whole loop, written out
#
# This is the one place in the course where the loop stands in full. Nothing is hidden: two networks, one line of noise, the closed form of the rate from appendix B, one optimiser for encoder *and* decoder.

# %%
torch.manual_seed(SEED)
first = build(digits, BernoulliMLP, 20)
optimizer = torch.optim.Adam(first.parameters(), lr=2e-3)
for _epoch in range(3):
    for batch in torch.randperm(len(digits.train)).split(100):
        x = digits.train[batch]  # (100, 1, 28, 28)
        q = first.encoder(x)  # q(z|x), one Gaussian per image: loc and scale are (100, 20)
        z = q.loc + q.scale * torch.randn_like(q.loc)  # the reparameterised sample
        distortion = -first.decoder(z).log_prob(x)  # (100,) nats
        rate = 0.5 * (q.loc**2 + q.scale**2 - 1 - 2 * q.scale.log()).sum(-1)  # (100,) nats
        loss = (distortion + rate).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %% [markdown]
# `fit` is this loop, with what one wants around it: a progress bar with the current bound and the time left, evaluation on a test set, a table of what happened, checkpoints, other devices. One update of it is `learning.aevb_step`, fifteen lines that you can read.
#
# The two draw their batches and noise in different orders, so they do not agree to the last digit. After the same three epochs they should agree to a few nats out of more than a hundred.

# %%
torch.manual_seed(SEED)
second = build(digits, BernoulliMLP, 20)
adam = partial(loop.adam, lr=2e-3)
fit(second, digits.train, epochs=3, optimizer=adam, seed=SEED, progress=False)

by_hand = evaluate(first, digits.test).value.item()
by_library = evaluate(second, digits.test).value.item()
print("same bound within 8 nats:", abs(by_hand - by_library) < 8)

# %% [markdown]
# ## 2. Two data sets, two likelihoods
#
# The decoder's *distribution* is a statement about the data. Let us choose it with open eyes, because it decides what a nat means.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=[1.55, 1])
plotting.show_images(digits.test[:40], 10, "MNIST, 28 × 28 pixels", axes[0])
frames = torch.linspace(0, len(faces.train) - 1, 36).long()
plotting.show_images(faces.train[frames], 12, faces.title("Frey Face, 28 × 20 pixels"), axes[1])
plt.show()

# %% [markdown]
# ### Digits: Bernoulli pixels, and what a grey level means
#
# A Bernoulli pixel is black or white. The digits have grey levels $x_i \in [0, 1]$. Like the paper, we put them into the formula as they are:
#
# $$ \log p(x|z) = \sum_i x_i \log y_i + (1 - x_i)\log(1 - y_i). $$
#
# One reading makes this honest: **a grey level is the probability that the pixel is white**. The formula is then the average log probability over all black-and-white images that we could draw from the grey one. It is a cross entropy, not the density of a grey image. So bounds on grey digits may be compared with each other, but never with bounds on binarised digits.
#
# Two numbers frame everything that follows.
#
# - **Without latents**, the best that independent pixels can do is the mean image. Its cross entropy is where a useless VAE ends up.
# - **With a perfect decoder**, $y = x$, a grey image still costs its own entropy. No model gets the distortion below this floor.


# %%
def cross_entropy(x, y):
    """Σ_i −x_i ln y_i − (1 − x_i) ln(1 − y_i), nats, (B,)."""
    return torch.nn.functional.binary_cross_entropy(y, x, reduction="none").flatten(1).sum(-1)


mean_digit = digits.train.mean(0).clamp(1e-4, 1 - 1e-4)  # (1, 28, 28)
digits_without_latents = -cross_entropy(digits.test, mean_digit.expand_as(digits.test)).mean()
floor = cross_entropy(digits.test, digits.test).mean()
print(f"best bound without latents: {digits_without_latents:.0f} nats")
print(f"distortion of a perfect decoder: {floor:.0f} nats")

# %% [markdown]
# ### Faces: Gaussian pixels, and why nats can be positive
#
# Skin comes in many greys, and none of them means "perhaps white". For Frey Face the decoder returns a Gaussian for each pixel: a mean, squashed into $(0, 1)$ by a sigmoid, and a variance, also learned, also a function of $z$.
#
# A Gaussian has a *density*, and a density may exceed one. Squeeze all probability into a range of a tenth, and the density there must be about ten. The log density of a pixel at its mean is $-\log(\sigma\sqrt{2\pi})$, positive as soon as $\sigma < 0.4$. Over hundreds of pixels this adds up to hundreds of positive nats. There is nothing wrong with a positive bound; only probabilities of *discrete* things stop at zero.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2))
grey, widths = torch.linspace(0, 1, 400), {0.4: "dotted", 0.2: "dashed", 0.1: "solid"}
for width, style in widths.items():
    density = Normal(0.5, width).log_prob(grey).exp()
    axes[0].plot(grey, density, color=COLORS["decoder"], linestyle=style, label=f"σ = {width}")
axes[0].axhline(1, color=COLORS["data"], linewidth=1)
axes[0].set(xlabel="grey level of one pixel", ylabel="density", title="A narrow density is above 1")
axes[0].legend()
width = torch.logspace(-2, 0, 200)
per_pixel = -(width * math.sqrt(2 * math.pi * math.e)).log()
axes[1].semilogx(width, 560 * per_pixel, color=COLORS["decoder"])
axes[1].axhline(0, color=COLORS["data"], linewidth=1)
axes[1].set(xlabel="typical error σ of a pixel", ylabel="log p(x|z) (nats per image)")
axes[1].set_title("What 560 well-judged pixels are worth")
plt.show()

# %% [markdown]
# The left picture has a pixel at its mean: there the log density turns positive at $\sigma = 0.4$. The right picture averages over errors of size $\sigma$, which costs another half nat a pixel, so it is positive only below $\sigma = 0.24$. It translates: halve the typical error of every pixel, and the image gains $560 \ln 2 \approx 388$ nats. It also shows a danger. The curve never stops rising to the left. A pixel that never changes would let the model choose $\sigma \to 0$ and earn infinitely many nats for nothing.
#
# Grey levels come in steps of $1/255$, so a density finer than that describes our file format, not the face. The library therefore adds a small floor: $\sigma_i^2 = \sigma_{\min}^2 + e^{v_i}$ with $\sigma_{\min} = 0.01$, about two and a half grey steps. **The floor is ours, not the paper's.** It changes the numbers, so it belongs beside every bound on faces that you quote. With it the bound stays finite, and runs can be compared.
#
# Compared with a lossless file format, the density of $D$ pixels with 256 levels each corresponds to about $8 - \frac{\text{bound}}{D \ln 2}$ bits per pixel.

# %% [markdown]
# ## 3. Train
#
# **Where to start.** A fresh network predicts grey noise everywhere, and spends its first epochs on learning that the border of a digit is black. Rather begin where a useless model ends: set the bias of the decoder's last layer to the mean image (and, for faces, to the variance of each pixel), and all its other weights near zero. Every $z$ then decodes to the mean image, and training starts from the best bound without latents. Border pixels also *stay* black for codes that no training image has used, which keeps samples clean. The encoder's first layer starts small for a similar reason: weights that look at ever-black pixels never get a gradient, so what they start with is what they keep.
#
# **One helper** serves every model in this notebook. At classroom scale it starts at the mean and uses Adam, which is quick. At paper scale it does what section 5 says: Adagrad, and all weights start from $\mathcal N(0, 0.01)$ (we read 0.01 as the standard deviation). Both scales have the paper's weight decay. It comes from a prior $\mathcal N(0, I)$ on the weights, which adds $\frac12\|\theta\|^2$ to the loss of the whole data set, hence $\frac{1}{2N}\|\theta\|^2$ to the mean loss of one image.


# %%
@torch.no_grad()
def start_at_mean(vae, images):
    """Let every z decode to the mean image, and the encoder look at all pixels mildly."""
    logits = images.train.mean(0).flatten().clamp(1e-3, 1 - 1e-3).logit()
    log_variance = images.train.var(0).flatten().clamp_min(1e-4).log()
    networks.init_normal_(vae.encoder.network[0], std=0.01)
    last = networks.init_normal_(vae.decoder.network[-1], std=0.01)
    last.bias.copy_(torch.cat([logits, log_variance])[: len(last.bias)])  # Bernoulli: logits only


def train(images, decoder, latents, epochs):
    """A VAE trained at the scale in force, and its history."""
    torch.manual_seed(SEED)
    vae = build(images, decoder, latents)
    scale(classroom=partial(start_at_mean, images=images), paper=networks.init_normal_)(vae)
    adam = partial(torch.optim.Adam, lr=2e-3, fused=True)
    optimizer = scale(classroom=adam, paper=partial(torch.optim.Adagrad, lr=0.02))
    optimizer = partial(optimizer, weight_decay=1 / len(images.train))
    every = scale(classroom=1, paper=10)
    options = dict(optimizer=optimizer, test=images.test, evaluate_every=every, seed=SEED)
    history = fit(vae, images.train, epochs=epochs, progress=False, **options)
    print(f"{latents:2} latents: test bound {history['test_bound'][-1]:.1f} nats")
    return vae, history


# %% [markdown]
# The models with 2 and with 20 latents get more epochs on the digits than the others, because we look at them most closely. There are fewer faces, so an epoch is shorter and we take more. Expect to wait about a minute.

# %% tags=["nbval-ignore-output"]
paper = dict.fromkeys((2, 5, 10, 20), 170)  # about ten million digits seen
epochs = scale(classroom={2: 40, 5: 12, 10: 12, 20: 32}, paper=paper)
digit_runs = {n: train(digits, BernoulliMLP, n, e) for n, e in epochs.items()}
digit_vaes = {n: vae for n, (vae, _) in digit_runs.items()}

paper = dict.fromkeys((2, 5, 10, 20), 6350)  # about ten million faces seen
epochs = scale(classroom={2: 80, 5: 40, 10: 40, 20: 40}, paper=paper)
face_runs = {n: train(faces, GaussianMLP, n, e) for n, e in epochs.items()}
face_vaes = {n: vae for n, (vae, _) in face_runs.items()}

# %% [markdown]
# ### Learning curves
#
# We plot the bound against the number of training images *seen*, not against seconds: that number is the same on every machine, and it is the axis of the paper's figure 2. The grey line is the best bound without latents: a single Gaussian per pixel for the faces, the mean image for the digits.

# %%
spread = (faces.train.var(0) + 0.01**2).sqrt()
alone = Normal(faces.train.mean(0), spread).log_prob(faces.test)
faces_without_latents = alone.flatten(1).sum(-1).mean()

figure, axes = plt.subplots(1, 2, figsize=(10, 4.6))
for ax, runs, base in zip(
    axes, (digit_runs, face_runs), (digits_without_latents, faces_without_latents), strict=True
):
    histories = {f"{n} latents": history.rows for n, (_, history) in runs.items()}
    shades = plt.get_cmap("viridis_r")(torch.linspace(0.15, 0.95, len(histories)))
    plotting.learning_curves(histories, ax, dict(zip(histories, shades, strict=True)))
    ax.axhline(base, color=COLORS["bound"], linewidth=1.5, linestyle="dotted", label="no latents")
    ax.legend(fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.18))
axes[0].set(title="MNIST: the bound climbs", ylim=(digits_without_latents - 10, None))
axes[1].set(title=faces.title("Frey Face"), ylim=(faces_without_latents - 50, None))
plt.show()

# %% [markdown]
# What to see: the darker a curve, the more latents. The first point of a curve comes after one epoch, so the start on the line "no latents" is not drawn. On the digits more latents give a better bound at the same number of images seen. On the faces ten latents are enough; twenty end no higher. (The drawn stand-in faces are made of two factors only: there, two latents come close.) At first the dashed training curve is the lower one, because it averages over an epoch in which the model was still worse. Later it is above the solid test curve, because encoder and decoder know their training images a little too well; with a few thousand images this is no surprise. Note the logarithmic axis: the last stretch of a curve takes most of the time. And note where the curves end before you compare their last points: two models were trained longer than their neighbours.
#
# The test frames of the faces come from other moments of the same film. Their bound jumps more from epoch to epoch, because a narrow Gaussian punishes every slightly misplaced edge.
#
# ### Rate and distortion apart
#
# The bound is a sum, and its two parts tell different stories.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharex=True)
for n, style in {2: "dashed", 20: "solid"}.items():
    history = digit_runs[n][1]
    for ax, part in zip(axes, ("distortion", "rate"), strict=True):
        line = dict(color=COLORS[part], linestyle=style, label=f"{n} latents")
        ax.plot(history["samples"], history[f"train_{part}"], **line)
axes[0].axhline(floor, color=COLORS["data"], linestyle="dotted", label="perfect decoder")
axes[0].set(title="MNIST: distortion falls …", ylabel="distortion (nats per image)", xscale="log")
axes[1].set(title="… because the rate buys information", ylabel="rate (nats per image)")
for ax in axes:
    ax.set_xlabel("training images seen")
    ax.legend()
plt.show()

# %% [markdown]
# What to see: with twenty latents the rate climbs quickly and then hardly moves. The model soon finds out how much is worth saying, and spends the rest of the time on saying it well: the distortion falls on while the rate stays. With two latents the rate is small throughout. A plane has little room, so every image gets a wide share of it.
#
# ## 4. The latent plane (figure 4)
#
# With two latents we can look at *everything* the decoder knows. Which points of the plane should we decode? The prior is dense at the origin and thin far out, so an even grid over the plane would waste most of its points. Instead take an even grid over the unit square and send both coordinates through the inverse of the Gaussian's distribution function, $z = \Phi^{-1}(u)$. Each cell of the picture then stands for the same prior probability. `plotting.latent_grid` does just that.

# %%
with torch.no_grad():
    digit_map = digit_vaes[2].decoder(plotting.latent_grid(15)).mean  # (225, 1, 28, 28)
    face_map = face_vaes[2].decoder(plotting.latent_grid(12)).mean  # (144, 1, 28, 20)
figure, ax = plt.subplots(figsize=(6, 6))
plotting.show_manifold(digit_map, "MNIST: all that two latents can say", ax)
plotting.save_figure(figure, "03_manifold_mnist")
figure, ax = plt.subplots(figsize=(4.2, 5.8))
plotting.show_manifold(face_map, faces.title("Frey Face") + ": pose and expression, unfolded", ax)
plotting.save_figure(figure, "03_manifold_frey")
plt.show()

# %% [markdown]
# What to see: nobody told the model what a digit or a smile is. Yet some digits have their own countries, and neighbours are relatives: nines, sevens and fours share a border, and so do threes, fives and eights. On a border the decoder draws something in between, which is blurred because it is an average. In the face map the mouth opens and the head turns as you cross it. These directions need not follow the axes: neither part of the bound changes if we turn the plane and the encoder turns with it.
#
# ### Walk on the map
#
# With a running kernel, move the sliders. They are the two coordinates of the map above, from 0 to 1. Without a kernel, look at the cell after it: one walk along the diagonal of the unit square, from the lower left to the upper right.

# %% tags=["nbval-ignore-output"]
quantile = partial(FloatSlider, min=0.01, max=0.99, step=0.01, value=0.5)


@interact(first=quantile(description="z₁ quantile"), second=quantile(description="z₂ quantile"))
def walk(first, second):
    """Decode one point of the plane with both models."""
    z = torch.special.ndtri(torch.tensor([[first, second]]))
    axes = plt.subplots(1, 2, figsize=(5, 2.6))[1]
    for ax, vae in zip(axes, (digit_vaes[2], face_vaes[2]), strict=True):
        plotting.show_images(vae.decoder(z).mean, ax=ax)
    plt.show()


# %%
steps = torch.linspace(0.03, 0.97, 12)
diagonal = torch.special.ndtri(torch.stack([steps, steps], dim=-1))  # (12, 2)
with torch.no_grad():
    digit_walk = digit_vaes[2].decoder(diagonal).mean
    face_walk = face_vaes[2].decoder(diagonal).mean
figure, axes = plt.subplots(2, 1, figsize=(10, 2.7))
plotting.show_images(digit_walk, 12, "One walk along the diagonal: MNIST", axes[0])
plotting.show_images(face_walk, 12, faces.title("Frey Face"), axes[1])
plt.show()

# %% [markdown]
# ### Where the encoder puts the images
#
# The map shows what the decoder *could* draw. The encoder tells us where real test images live. Left: the posterior means in the plane. Right: the same points through $\Phi$, so that they lie on the map above.

# %%
with torch.no_grad():
    means = digit_vaes[2].encoder(digits.test[:1000]).loc  # (1000, 2)
figure, axes = plt.subplots(1, 2, figsize=(10, 4.8))
plotting.latent_scatter(means, digits.test_labels[:1000], axes[0])
plotting.latent_scatter(torch.special.ndtr(means), digits.test_labels[:1000], axes[1])
for ax, gap in zip(axes, (0.35, 0.03), strict=True):
    for digit, side in {4: 1, 9: -1}.items():  # they share a place: move their numbers apart
        x, y = ax.texts[digit].get_position()
        ax.texts[digit].set_position((x, y + side * gap))
axes[0].set_title("MNIST test digits in the plane")
axes[1].set(title="The same on the unit square of the map")
axes[1].set(xlabel="quantile of $z_1$", ylabel="quantile of $z_2$")
plt.show()

# %% [markdown]
# What to see: the classes separate, although no label was used in training; the colours were added afterwards. Where classes overlap, the map above is blurred. The rate pulls the codes of all images together towards the prior. If their overall distribution reached it exactly, the points would fill the unit square evenly. They do not, quite: digits that look like no others are pushed far out and pile up on the rim, where the map has few cells. So the map shows these digits less often than they occur, and the middle gets more than its share. A sampler that draws $z$ from the prior inherits this fault.
#
# ## 5. Samples (figure 5)
#
# To generate, forget the encoder: draw $z$ from the prior, decode. Like the paper we show the decoder's mean, not a further draw of every pixel.

# %%
torch.manual_seed(SEED + 1)
figure, axes = plt.subplots(2, 4, figsize=(10, 5.6), height_ratios=[1, 1.36])
for column, n in enumerate(digit_vaes):
    samples = digit_vaes[n].sample(25, mean=True), face_vaes[n].sample(25, mean=True)
    plotting.show_images(samples[0], 5, f"MNIST, {n} latents", axes[0, column])
    plotting.show_images(samples[1], 5, f"{n} latents", axes[1, column])
axes[1, 0].set_ylabel(faces.title("Frey Face"))
plotting.save_figure(figure, "03_samples")
plt.show()

# %% [markdown]
# What to see: more latents give sharper and more varied strokes, and also more samples that are no digit at all. With two latents nearly every point of the plane is a plausible picture. In twenty dimensions the codes of real images occupy only part of the prior's mass, and a draw from the prior may miss it. A better bound is not the same as prettier samples.
#
# ## 6. Reconstruction
#
# Encode a test image, decode its code. The yardstick is the *mean image*: the best guess of someone who never sees the image.


# %%
def error(images, guess):
    """Mean squared error per pixel."""
    return float((images - guess).square().mean())


def some(images, count=10):
    """A few images from beginning to end."""
    return images[:: max(1, (len(images) - 1) // count)][:count]


torch.manual_seed(SEED + 2)
gain = {}
for name, images, vaes in (("MNIST", digits, digit_vaes), ("Frey Face", faces, face_vaes)):
    rows = {"data": images.test, "mean image": images.train.mean(0).expand_as(images.test)}
    rows |= {f"{n} latents": vaes[n].reconstruct(images.test, mean=True) for n in (2, 20)}
    gain[name] = error(images.test, rows["mean image"]) / error(images.test, rows["20 latents"])
    rows = {label: some(pictures) for label, pictures in rows.items()}
    plotting.show_rows(rows, images.title(name) + ": what 2 and 20 latents keep of a test image")
plt.show()

# %% [markdown]
# ### Interpolation
#
# Blend two images pixel by pixel, and you see a double exposure. Blend their *codes*, and every picture on the way is something the model has learned to draw.

# %%
steps = torch.linspace(0, 1, 9).view(-1, 1)  # (9, 1)
left, right = (digits.test[digits.test_labels == label][:1] for label in (3, 8))
with torch.no_grad():
    start, end = (digit_vaes[20].encoder(image).loc for image in (left, right))
    blended_codes = digit_vaes[20].decoder((1 - steps) * start + steps * end).mean
blended_pixels = (1 - steps.view(-1, 1, 1, 1)) * left + steps.view(-1, 1, 1, 1) * right
rows = {"pixels": blended_pixels, "codes": blended_codes}
plotting.show_rows(rows, "From 3 to 8: double exposure against one moving stroke")
plt.show()

# %% [markdown]
# ## 7. What the latents carry
#
# The rate is a sum over latents, so we can ask each latent for its share. First the whole price list: one bound, split, in nats and in bits (divide by $\ln 2$). To compare like with like, we read all four models off their histories where the shortest run ends, after the same number of images.

# %% tags=["nbval-ignore-output"]
common = min(history["samples"][-1] for _, history in digit_runs.values())
parts_of = {}  # after the same number of images: distortion, rate and bound on the test set
for n, (_, history) in digit_runs.items():
    row = next(row for row in history.rows if row["samples"] == common)
    parts_of[n] = [row[f"test_{part}"] for part in ("distortion", "rate", "bound")]
print(f"after {common:,} images: distortion        rate              bound")
for n, parts in parts_of.items():
    nats_and_bits = [f"{part:7.1f} ({part / math.log(2):6.1f})" for part in parts]
    print(f"{n:10} latents  " + "  ".join(nats_and_bits))
print("nats per image, bits in brackets")

# %%
distortion, rate, _ = torch.tensor(list(parts_of.values())).T
with torch.no_grad():
    q = digit_vaes[20].encoder(digits.test)
shares = kl_divergence(Normal(q.loc, q.scale), Normal(0.0, 1.0)).mean(0)  # (20,) nats

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
names = [f"{n} latents" for n in parts_of]
left.barh(names, distortion, color=COLORS["distortion"], label="distortion")
left.barh(names, rate, left=distortion, color=COLORS["rate"], label="rate")
left.axvline(floor, color=COLORS["data"], linestyle="dotted", label="perfect decoder")
left.set(title="MNIST: a nat of rate saves more", xlabel="nats per image", xlim=(0, 230))
left.legend(loc="upper right")
right.bar(range(1, 21), sorted(shares.tolist(), reverse=True), color=COLORS["rate"])
right.set(title="Who carries the rate of 20 latents?", xlabel="latent, sorted")
right.set(ylabel="rate (nats per image)", xticks=(1, 5, 10, 15, 20))
plt.show()

# %% [markdown]
# What to see on the left, where all four models have seen equally many images: a model may always leave a latent unused and pay nothing. It uses one when a nat of rate saves more than one nat of distortion. Each step from 2 to 20 latents buys rate and saves more distortion than it costs. The dotted floor is closer than it seemed: much of the distortion is the grey of the digits, which nobody can predict away.
#
# On the right, the model with twenty at the end of its training: which latents are used? The rate is not shared equally, and on these digits none of the twenty is silent; there is more to say than twenty numbers can carry. A latent with a rate near zero would have a posterior equal to the prior for every image. It would say nothing, and the decoder would learn to ignore it. Such a latent costs nothing, which is why superfluous ones do little harm (the paper's figure 2 makes this point with 200 latents). When *all* latents fall silent, one speaks of posterior collapse. It will be our problem in the second half of this course.
#
# ## 8. Put the recognition model to work
#
# Section 2 of the paper names what inference is good for: denoising, inpainting, super-resolution. The recognition model makes each of them a matter of a few lines.
#
# **Denoising.** Encode the noisy image, decode. The code has little room for noise, so what comes back is made of strokes and not of grains. Whether they are the strokes of the *same* digit is another question. We ask it of the training set: has the training image that is nearest to the result the right label?

# %%
torch.manual_seed(SEED + 3)
clean, mean_image = digits.test[:500], digits.train.mean(0)
levels = torch.linspace(0, 1.2, 13).tolist()
noisy = [(clean + level * torch.randn_like(clean)).clamp(0, 1) for level in levels]
denoised = [digit_vaes[20].reconstruct(x, mean=True) for x in noisy]
raw, restored = ([error(clean, x) for x in images] for images in (noisy, denoised))
blank = error(clean, mean_image)


def named(images):
    """The share of images whose nearest training image has the right label."""
    nearest = torch.cdist(images.flatten(1), digits.train[:4000].flatten(1)).argmin(1)
    return float((digits.train_labels[nearest] == digits.test_labels[: len(images)]).float().mean())


kept, kept_raw = ([named(x) for x in images] for images in (denoised, noisy))

# %%
rows = {"data": clean[:10]}
for name, k in {"some": 4, "much": 12}.items():
    rows |= {f"{name} noise, {levels[k]:.1f}": noisy[k][:10], f"{name}, denoised": denoised[k][:10]}
plotting.show_rows(rows, "Denoising: always strokes, not always the right ones")
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
left.plot(levels, raw, color=COLORS["data"], label="noisy image")
left.plot(levels, restored, color=COLORS["decoder"], label="encode, then decode")
left.axhline(blank, color=COLORS["bound"], linestyle="dashed", label="mean image")
left.set(ylabel="squared error per pixel", title="Denoising helps in the middle only")
left.legend()
right.plot(levels, kept_raw, color=COLORS["data"])
right.plot(levels, kept, color=COLORS["decoder"])
right.set(ylabel="share with the right label", ylim=(0, 1), title="Which digit is nearest?")
figure.supxlabel("standard deviation of the noise", fontsize=13)
plt.show()

# %% [markdown]
# What to see, from left to right. With **no noise** the image itself is perfect, and the detour through twenty numbers only loses detail. In the **middle** the code throws most of the noise away: the squared error is below that of the noisy image *and* that of the mean image. But look at the digits, and at the right panel. At a noise of 0.4 the noisy image still has the right neighbour in nine cases of ten; after the detour it is about two of three. With **much noise** the detour is worse than the mean image: a similar tangle of strokes comes back whatever the digit was. The encoder has never seen noise. It takes the grains for strokes, and its posterior is confident and wrong. A blurred mean image is at least never far off. A model that is to clean images should see noisy ones in training.
#
# **Inpainting.** Now part of the image is missing. Alternate between the two networks: guess the missing pixels (at first the mean image), draw $z$ from $q(z|\text{guess})$, decode, put the known pixels back, repeat. Each round pulls the guess towards images in which the hidden part fits the visible one. Were $q$ the exact posterior, and each guess a draw of the pixels instead of their mean, this would be a Gibbs sampler: a chain that draws one part of the unknowns at a time, given all the rest, and in the end visits each completion as often as it is probable (Rezende et al., 2014).


# %%
@torch.no_grad()
def inpaint(vae, x, known, start, rounds=20):
    """Fill in x where ``known`` is false; alternate q(z|x) and p(x|z), clamp what is known."""
    guess = torch.where(known, x, start)
    for _ in range(rounds):
        z = vae.encoder(guess).sample()
        guess = torch.where(known, x, vae.decoder(z).mean)
    return guess


def hide_rows(images, first, last):
    """True where a pixel is known: everywhere but rows first … last − 1. (1, height, width)"""
    known = torch.ones_like(images[0], dtype=torch.bool)
    known[:, first:last] = False
    return known


# %%
torch.manual_seed(SEED + 4)
rows = {"data": clean[:10]}
for name, count in {"a little": 8, "half": 14}.items():
    known = hide_rows(clean, 28 - count, 28)
    rows[f"{name} hidden"] = torch.where(known, clean[:10], 0.5)
    rows[f"{name} filled in"] = inpaint(digit_vaes[20], clean[:10], known, mean_image)
plotting.show_rows(rows, "Inpainting: some ends are found, half a digit is a guess")

known, mean_face = hide_rows(faces.test, 16, 24), faces.train.mean(0)  # no mouth
patched = torch.where(known, faces.test, mean_face)
filled = inpaint(face_vaes[20], faces.test, known, mean_face)
seen = torch.where(known, faces.test, 0.5)
rows = {"data": faces.test, "seen": seen, "filled in": filled, "mean image": patched}
rows = {name: some(images) for name, images in rows.items()}
plotting.show_rows(rows, faces.title("Frey Face") + ": the mouth from the rest")
plt.show()

# %% [markdown]
# How far does it carry? Hide more and more rows of the digits from below, and compare with the mean image on the hidden pixels only: after the first round, and after twenty.

# %%
torch.manual_seed(SEED + 6)
hidden_rows = (4, 6, 8, 10, 12, 14, 16, 20, 24)
filling = {"mean image": [], "1 round": [], "20 rounds": []}
for count in hidden_rows:
    known = hide_rows(clean, 28 - count, 28)
    few, many = (inpaint(digit_vaes[20], clean, known, mean_image, n) for n in (1, 20))
    for errors, guess in zip(filling.values(), (mean_image, few, many), strict=True):
        errors.append(error(clean[..., -count:, :], guess[..., -count:, :]))

_, ax = plt.subplots(figsize=(7, 4))
for (name, errors), style in zip(filling.items(), ("--", ":", "-"), strict=True):
    color = COLORS["bound" if name == "mean image" else "decoder"]
    ax.plot(hidden_rows, errors, style, color=color, label=name)
ax.set(xlabel="rows hidden, of 28, from below", ylabel="squared error of hidden pixels")
ax.set(xticks=hidden_rows, title="The less is seen, the less a sure answer helps")
ax.legend()
plt.show()

# %% [markdown]
# What to see: with four or six rows hidden the model beats the mean image clearly, and twenty rounds improve on the first. From eight rows on the first round is better than the twentieth. From ten on, where most of the image is still visible, twenty rounds lose even to the mean image, and from fourteen on a single round does, too. When the lower half is gone, a 3, an 8 and a 9 may share the same top. Then every round makes the chain surer of *one* sharp answer, often a wrong one, and the blurred average wins in squared error. We feed the decoder's mean back in place of a draw, and the encoder takes its own guess for evidence. A single completion hides how uncertain it is: run the chain several times and compare the answers before you trust one.
#
# ## 9. Save, stop, go on
#
# Long runs get interrupted. Give `fit` a `checkpoint`, and it rewrites that file after every epoch: weights, optimiser, history and the state of the random numbers. Ctrl-C (or *Interrupt* in Jupyter) stops after the current update and keeps what was trained. The same call again goes on from there. The result is the same, bit for bit, as if the run had never stopped. Here 2 epochs, a stop, and 2 more, against 4 in one go:

# %%
few = digits.train[:1000]


def short_run(epochs, checkpoint=None):
    """A small model after so many epochs in all."""
    torch.manual_seed(SEED + 7)
    vae = build(digits, BernoulliMLP, 2)
    fit(vae, few, epochs=epochs, checkpoint=checkpoint, progress=False)
    return vae.state_dict()


with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/run.ckpt"
    short_run(2, path)  # imagine Ctrl-C here
    resumed = short_run(4, path)
straight = short_run(4)
print("resumed equals uninterrupted:", all(torch.equal(resumed[k], straight[k]) for k in straight))

# %% [markdown]
# To keep only the model, `torch.save(vae.state_dict(), path)`; to get it back, build the same VAE and call `vae.load_state_dict(torch.load(path, weights_only=True))`.
#
# ## Claims
#
# What this notebook says, checked. A run in which one of these fails stops with an error.
#
# One of them needs a number first: **how smooth is a map?** Compare how much the picture changes from one cell to the next with how much two cells picked at random differ, as mean squared differences. A smooth map has a ratio far below one; a map that scatters the same images without order has a ratio of about one. (Two random pictures differ by twice the variance on average: that is the denominator below.)

# %%
for name, runs in (("digits", digit_runs), ("faces", face_runs)):
    tables = [
        history.table()[["train_bound", "test_bound"]].dropna() for _, history in runs.values()
    ]
    rises = all((table.iloc[-1] > table.iloc[0] + 10).all() for table in tables)
    print(f"{name}: every bound, train and test, rises by more than 10 nats: {rises}")
    assert rises

test_bound = {n: history["test_bound"][-1] for n, (_, history) in digit_runs.items()}
print("digits: the 20-latent test bound is better than −120 nats:", test_bound[20] > -120)
assert test_bound[20] > -120
print("digits: 20 latents beat 2 by more than 25 nats:", test_bound[20] > test_bound[2] + 25)
assert test_bound[20] > test_bound[2] + 25


# %%
def roughness(pictures):
    """Mean squared change between neighbours over that between random pairs, ~1 if unordered."""
    rows = round(len(pictures) ** 0.5)
    table = pictures.flatten(1).unflatten(0, (rows, rows))  # (rows, rows, pixels)
    right, down = table.diff(dim=1).square().mean(), table.diff(dim=0).square().mean()
    return float((right + down) / 2 / (2 * pictures.var(0, unbiased=False).mean()))


smooth = roughness(digit_map) < 0.2 and roughness(face_map) < 0.2
print("neighbours on both maps differ by less than a fifth of a random pair:", smooth)
scattered = roughness(digit_map[torch.randperm(len(digit_map))]) > 0.8
print("and by more than four fifths once the map is shuffled:", scattered)
nearest = torch.cdist(digit_map.flatten(1), digits.train[:4000].flatten(1)).argmin(1)  # (225,)
found = digits.train_labels[nearest].unique()
print("at least 8 of the 10 digits have a country on the map:", len(found) >= 8)
assert smooth and scattered and len(found) >= 8

# %%
print("reconstruction at least halves the error of the mean image:", min(gain.values()) > 2)
assert min(gain.values()) > 2

helps = restored[4] < 0.95 * min(raw[4], blank)
fails = restored[0] > raw[0] and restored[-1] > blank
print("denoising helps in the middle and fails at both ends:", helps, fails)
lost = kept[4] < kept_raw[4] - 0.05
print("at a noise of 0.4 the detour loses a twentieth of the labels or more:", lost)
ratio = [a / b for a, b in zip(filling["20 rounds"], filling["mean image"], strict=True)]
print("inpainting helps when 4 rows are hidden, fails with 24:", ratio[0] < 0.8, ratio[-1] > 1.1)
early, late = (filling["20 rounds"][k] / filling["1 round"][k] for k in (0, 5))
print("20 rounds beat 1 with 4 rows hidden, lose with 14:", early < 0.97, late > 1.1)
mouth = error(faces.test, filled) < 0.8 * error(faces.test, patched)
print("inpainting the mouth beats the mean image by a fifth:", mouth)
assert helps and fails and lost and ratio[0] < 0.8 and ratio[-1] > 1.1 and mouth
assert early < 0.97 and late > 1.1

# %% [markdown]
# ## Exercises
#
# Each stub returns `...`; replace it. `check` compares *yours* with *true*. Solutions are in `notebooks/solutions/03_train_a_vae.py`.
#
# **1. A price on the rate.** Write the loss with a weight β on the rate: the mean over the batch of distortion + β · rate, in nats. Write the rate yourself. Then train with β = 4 (change one line of the loop in section 1): what happens to the rate, the reconstructions, the samples?

# %%
from vaelib.teaching.exercises import check


def weighted_loss(q, x, likelihood, beta):
    """Mean of distortion + beta · rate over the batch, nats. q has .loc and .scale."""
    return ...


q = DiagNormal(torch.tensor([[0.5, -1.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.5], [2.0, 0.1]]))
likelihood, x = DiagNormal(torch.zeros(2, 3), torch.ones(2, 3)), torch.tensor([[0.1, 0.2, 0.3]] * 2)
true = (4 * kl_divergence(q, priors.StandardNormal(2)()) - likelihood.log_prob(x)).mean()
check(weighted_loss(q, x, likelihood, beta=4), true)

# %% [markdown]
# **2. Bits per pixel.** Turn a bound on faces (nats per image, a density over grey levels in [0, 1]) into bits per pixel of a file with 256 levels. How does your best model compare with 8 bits, the raw file?
#
# **3. One sample or ten?** By how much does the standard deviation of the estimated distortion of an image shrink when $L = 10$ samples replace $L = 1$? Guess first. Measure it with `vae.elbo(x, samples=L).distortion` on many copies of ten images: with `x.repeat(400, 1, 1, 1)` and then `.view(400, 10)` you have 400 independent estimates of each. Average their variances over the ten images before you take the root. Return both standard deviations. Then argue why the paper still uses $L = 1$.


# %%
def bits_per_pixel(bound, pixels, levels=256):
    """Bits per pixel of the discretised image, from a density's bound in nats per image."""
    return ...


def noise(vae, x):
    """Standard deviations of the distortion estimate with L = 1 and with L = 10, nats."""
    return ..., ...


check(bits_per_pixel(1000.0, pixels=560), 5.4238)
torch.manual_seed(SEED)
with torch.no_grad():
    q = digit_vaes[20].encoder(digits.test[:10])
    draws = [digit_vaes[20].decoder(q.sample()).log_prob(digits.test[:10]) for _ in range(400)]
one = torch.stack(draws).var(0).mean().sqrt()
check(noise(digit_vaes[20], digits.test[:10]), [one, one / math.sqrt(10)], tolerance=0.15)

# %% [markdown]
# **4. Binary digits.** Write the function to pass to `fit(…, transform=…)` that draws fresh black-and-white digits, each pixel white with the probability that its grey level gives (`data.binarize` may help). What is the distortion of a perfect decoder now? Train ten epochs on binary digits and compare the rate with that on grey ones. Then replace `vae.encoder.network` by an `MLP` of `vaelib.networks` with `torch.nn.ReLU`: does the activation matter?
#
# **5. Do two posteriors overlap?** The Bhattacharyya coefficient $\int \sqrt{q_1(z)\,q_2(z)}\,dz$ is 1 for equal distributions and 0 for disjoint ones. For two Gaussians in one dimension it is $\sqrt{\frac{2\sigma_1\sigma_2}{\sigma_1^2+\sigma_2^2}}\;\exp\!\big(-\frac{(\mu_1-\mu_2)^2}{4(\sigma_1^2+\sigma_2^2)}\big)$. Write it for diagonal Gaussians. Then find, in the 2-latent model, the test digit that overlaps most with the first one of *another* class: can you see why?


# %%
def draw_binary(x):
    """Black-and-white images drawn from the grey ones, same shape."""
    return ...


def overlap(q1, q2):
    """Bhattacharyya coefficient of two diagonal Gaussians with .loc and .scale (latents,)."""
    return ...


torch.manual_seed(SEED)
copies = draw_binary(digits.test[:1].expand(2000, -1, -1, -1))
miss = ... if copies is ... else (copies.mean(0) - digits.test[0]).abs().max()
check(... if copies is ... else miss < 0.06, True)  # each pixel is white as often as it should
check(... if copies is ... else ((copies == 0) | (copies == 1)).all(), True)
q1 = DiagNormal(torch.tensor([0.3, -1.0]), torch.tensor([0.5, 0.2]))
q2 = DiagNormal(torch.tensor([0.0, -0.8]), torch.tensor([0.3, 0.4]))
z = torch.cartesian_prod(*[torch.linspace(-4, 4, 801)] * 2)  # a fine grid: the check integrates
check(overlap(q1, q2), (0.5 * (q1.log_prob(z) + q2.log_prob(z))).exp().sum() * 0.01**2)

# %% [markdown]
# ## Further reading
#
# - D. P. Kingma, M. Welling (2013). *Auto-Encoding Variational Bayes.* arXiv:1312.6114. The paper of this notebook; section 2.3 has algorithm 1, appendix B the closed form of the rate, appendix C the networks.
# - D. J. Rezende, S. Mohamed, D. Wierstra (2014). *Stochastic Backpropagation and Approximate Inference in Deep Generative Models.* ICML; arXiv:1401.4082. The same idea found independently, and inpainting as a Markov chain.
# - D. P. Kingma, M. Welling (2019). *An Introduction to Variational Autoencoders.* Foundations and Trends in Machine Learning 12(4); arXiv:1906.02691. The authors' own textbook chapter.
# - I. Higgins et al. (2017). *beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework.* ICLR. The weight on the rate of exercise 1.
# - A. A. Alemi et al. (2018). *Fixing a Broken ELBO.* ICML; arXiv:1711.00464. Rate and distortion as the two axes on which to judge a VAE.
# - D. P. Kingma, J. Ba (2015). *Adam: A Method for Stochastic Optimization.* ICLR; arXiv:1412.6980. The optimiser used here at classroom scale.
#
# **Next**: notebook 04 races AEVB against the wake-sleep algorithm.
