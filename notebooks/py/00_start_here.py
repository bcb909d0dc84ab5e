# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Start here
#
# **What you will do.** You look at the course from above, check that your computer is ready for it, and train your first variational autoencoder (VAE). It takes half a minute and learns to draw digits from two numbers. Then you play with it.
#
# **What you will learn.**
# - what a VAE is, in five sentences;
# - the one equation of the course, its two costs, *rate* and *distortion*, and their unit, the *nat*;
# - the three slots, *encoder*, *prior* and *decoder*, that every model here fills;
# - how to run these notebooks at two sizes, with or without a network, with or without a GPU;
# - how to use the exercises, and how to ask "what if".
#
# **What you need.** A little Python, and the idea of a probability. You need no paper, no data and no GPU: the digits come with the installation. Run the cells from top to bottom with Shift + Enter, and change whatever you like. Nothing that you do here can break anything: *Kernel → Restart Kernel and Run All Cells* gives you a fresh start.

# %%
import hashlib
import platform
from functools import partial
from importlib.metadata import version
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import torch
from torch.distributions import kl_divergence
from torchvision.io import encode_png

from vaelib import VAE, data, evaluate, fit, scale
from vaelib.decoders import BernoulliMLP
from vaelib.encoders import MLPEncoder
from vaelib.priors import StandardNormal
from vaelib.teaching import plotting, scaling
from vaelib.teaching.plotting import COLORS
from vaelib.training.loop import adam

SEED = 0  # the claims at the end held for every seed that we tried: try another
torch.manual_seed(SEED)
plotting.use_style()
print(scaling.describe())

# %% [markdown]
# ## 1. What is a variational autoencoder?
#
# In five sentences:
#
# 1. It is a machine that *draws* data: it rolls a few hidden dice $z$, the **latent variables**, and a neural network, the **decoder**, turns them into the probabilities of an image $x$.
# 2. To learn, the machine would have to know which dice led to each image that it is shown, and finding out exactly is hopeless.
# 3. So a second network, the **encoder**, looks at the image and makes a guess, not of one $z$ but of a whole distribution over them.
# 4. Both networks are trained together, by plain gradient descent, so that the guesses explain the images well and still look like ordinary dice.
# 5. Afterwards you can roll new dice and get new images, or encode an image and use its few numbers in place of its many pixels.
#
# "Variational" means that a guess takes the place of something that cannot be computed. "Autoencoder" means that the image goes through a narrow code and comes back. The method is due to Kingma & Welling (2013) and, found independently, to Rezende, Mohamed & Wierstra (2014).

# %% [markdown]
# ## 2. One equation, three slots
#
# Everything in this course stands on one line, the **evidence lower bound** or ELBO:
#
# $$\log p(x) \;\ge\; \mathrm{ELBO}(x) \;=\; \underbrace{\mathbb E_{q(z|x)}\big[\log p(x|z)\big]}_{-\,\text{distortion}} \;-\; \underbrace{\mathrm{KL}\big(q(z|x)\,\|\,p(z)\big)}_{\text{rate}}$$
#
# The symbols: $p$ is the model, $p(x)$ how probable it finds the image, and $q(z|x)$ the encoder's guess for this image. $\mathbb E_q$ is an average over codes $z$ drawn from $q$. $\mathrm{KL}$, the *Kullback–Leibler divergence*, says how far $q$ is from the prior; it is never negative, and zero if the two are the same.
#
# Read the equation as a parcel service. Alice wants Bob to have the image $x$. She sends him a code $z$, and Bob's decoder makes a prediction from it.
#
# - The **rate** is what the code costs: how much more specific the encoder's guess $q(z|x)$ is than the **prior** $p(z)$, which Bob knows beforehand. A code that says nothing about the image has a rate of zero.
# - The **distortion** is what the code fails to say: the surprise that is left when Bob sees the true image.
# - Their sum is what the image costs in all, and the ELBO is minus that sum. Training makes it as cheap as it can.
#
# Costs are measured in **nats**. One nat is $1/\ln 2 \approx 1.44$ bits: the same thing as bits, with the natural logarithm in place of the binary one.
#
# Why is there a "$\ge$", and why may we train on a bound? That is notebook 01.

# %% [markdown]
# The equation names three distributions, and the code has one **slot** for each:
#
# | slot | call | returns | in words |
# |---|---|---|---|
# | encoder | `encoder(x)` | $q(z\mid x)$ | what could the code of this image be? |
# | prior | `prior()` | $p(z)$ | what do codes look like before any image is seen? |
# | decoder | `decoder(z)` | $p(x\mid z)$ | what could the image of this code be? |
#
# Every slot is a PyTorch module that **returns a distribution**, an object that can be sampled and can say how probable a value is. With that, the equation is code. The next cell is all of it.


# %%
def elbo(x, encoder, prior, decoder):
    q = encoder(x)  # one guess per image: batch (B,)
    z = q.rsample()  # roll the dice: (B, latents)
    distortion = -decoder(z).log_prob(x)  # (B,) nats
    rate = kl_divergence(q, prior())  # (B,) nats
    return -(distortion + rate)


# %% [markdown]
# Let us fill the slots with the simplest things that work: small networks with one hidden layer, and a Gaussian prior over two latent variables. Nothing is trained yet.

# %%
encoder, prior, decoder = MLPEncoder(2), StandardNormal(2), BernoulliMLP(2)
some_images = torch.rand(8, 1, 28, 28)
bound = elbo(some_images, encoder, prior, decoder)
print("images:", tuple(some_images.shape))
print("codes:", tuple(encoder(some_images).sample().shape))
print("one bound per image:", tuple(bound.shape))

# %% [markdown]
# Eight images went in and eight numbers came out. The library's `VAE(encoder, prior, decoder)` does the same as this `elbo`, keeps the two costs apart, and checks shapes: PyTorch stretches what does not fit (it *broadcasts*), and a bound computed on stretched shapes is wrong without a word.
#
# Keep the picture of the slots in mind. Later notebooks put other things into one slot and leave the other two alone. That is how the whole course fits into one library, whose bound and slots are short enough to read in one sitting.

# %% [markdown]
# ## 3. The map
#
# The course is a path of fourteen notebooks in three chapters.
#
# - **The bound** (00 to 06): where the equation comes from, how to climb it, how it compares with older ways to learn, and how far it is from the truth. This is the paper of Kingma & Welling.
# - **The collapse** (07 to 09): give a VAE a decoder that is strong enough, and it stops using its code. The rate falls to zero. Why, and what have people done about it?
# - **The repair** (10 to 13): the δ-VAE of Razavi, van den Oord, Poole & Vinyals (2019) chooses prior and encoder so that the rate *cannot* fall below a number δ that you commit to.
#
# The rings of the map show which slots each notebook changes or is about.

# %%
COURSE = [
    (0, "start here", "encoder prior decoder"),
    (1, "derive the\nvariational bound", "encoder prior decoder"),
    (2, "reparameterize\nthe gradient", "encoder"),
    (3, "train a VAE", "encoder prior decoder"),
    (4, "race\nwake-sleep", "encoder"),
    (5, "estimate the\nmarginal likelihood", "encoder"),
    (6, "infer the\nweights too", "decoder"),
    (7, "watch a linear\nVAE collapse", "decoder"),
    (8, "build a\nPixelCNN", "decoder"),
    (9, "collapse a VAE", "decoder"),
    (10, "commit a rate", "encoder prior"),
    (11, "encode\nthe future", "encoder prior"),
    (12, "use the latents", "encoder prior decoder"),
    (13, "scale to colour", "decoder"),
]
CHAPTERS = {"The bound": range(7), "The collapse": range(7, 10), "The repair": range(10, 14)}

# %% tags=["nbval-ignore-output"]
written = [int(path.name[:2]) for path in sorted(Path().glob("[0-9][0-9]_*.ipynb"))]
figure = plotting.course_map(COURSE, CHAPTERS, written)
plotting.save_figure(figure, "00_course_map")
plt.show()
planned = [number for number, *_ in COURSE if number not in written]
print("written:", *(f"{number:02d}" for number in written))
print("planned:", " ".join(f"{number:02d}" for number in planned) or "nothing more")

# %% [markdown]
# *What to see.* Blue is the encoder, green the prior, orange the decoder; these colours mean the same in every picture that names them. You can walk the path in order, which is how it is meant, or jump. Each notebook says at its top what it needs.

# %% [markdown]
# ## 4. Is your computer ready?
#
# The next cell shows what you have. Any processor will do. A GPU is used where there is one, and nothing in the notebooks has to be changed for it.

# %% tags=["nbval-ignore-output"]
print("Python     ", platform.python_version())
for package in ("torch", "torchvision", "numpy", "matplotlib"):
    print(f"{package:<11}", version(package))
print("threads    ", torch.get_num_threads())
print("device     ", torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")

# %% [markdown]
# And this is the data of the next half minute: five thousand handwritten digits from MNIST, which came with the installation. They are always the same ones, so that everyone in a classroom sees the same pictures.

# %%
digits = data.mnist("5k")
print("to train on:", tuple(digits.train.shape), "  to test on:", tuple(digits.test.shape))
figure, ax = plt.subplots(figsize=(9, 2.2))
plotting.show_images(digits.train[:40], columns=20, ax=ax, title="Data: the first 40 digits")
plt.show()

# %% [markdown]
# ## 5. A taste: two numbers for a digit
#
# An image has 784 pixels. We allow the code **two** numbers, so that we can draw a map of all codes on paper. The encoder squeezes each digit through this needle's eye, and the decoder tries to get it back.
#
# `fit` does the work: it shuffles the images, takes them in batches of a hundred, and climbs the bound with a gradient step on each. (Adam is the usual recipe for the size of the steps; `lr` is about the usual step of a weight.) Both networks now have two hidden layers, because a map of all digits has many folds. While it runs, a progress bar shows the bound so far, in nats per image, and the time left. If you are impatient, interrupt the kernel (■): the training stops cleanly and keeps what was learned.

# %%
torch.manual_seed(SEED)
layers = [256, 256]  # units of the hidden layers, in both networks
vae = VAE(MLPEncoder(2, hidden=layers), StandardNormal(2), BernoulliMLP(2, hidden=layers))
history = fit(
    vae,
    digits.train,
    test=digits.test,
    epochs=scale(classroom=40, paper=200),
    optimizer=partial(adam, lr=3e-3),
    evaluate_every=2,
    seed=SEED,
)
print("finished:", not history.interrupted)

# %% [markdown]
# The two costs tell what happened. We draw them one above the other, so that the height of the whole is the cost of a test image.

# %%
table = history.table().dropna()
seen = table["samples"] / 1000
parts = {"rate": table["test_rate"], "distortion": table["test_distortion"]}
figure, ax = plt.subplots(figsize=(7.5, 3.8))
colors = [COLORS[name] for name in parts]
ax.stackplot(seen, *parts.values(), labels=list(parts), colors=colors)
ax.plot(seen, -table["test_bound"], color=COLORS["bound"], label="total = −ELBO")
ax.set(xlabel="training images seen (thousands)", ylabel="cost of a test image (nats)")
ax.set(title="A few nats of code save many nats of surprise", xlim=(seen.min(), seen.max()))
ax.legend(loc="center right", frameon=True, reverse=True)
plt.show()

# %% [markdown]
# *What to see.* The total falls, quickly at first. The rate, the pink layer at the bottom, is a small part of it and does not shrink to nothing: the model has found that a few nats spent on the code pay for themselves many times over in distortion. In notebook 09 you will see a model that decides otherwise.

# %% [markdown]
# ### The map of all digits
#
# Two numbers are a point in the plane. Let us decode a grid of points and lay the images where their codes are. The grid is even in *probability*: points are close together where the prior has much of its mass and far apart in its tails.


# %%
@torch.no_grad()
def draw(z):
    """The mean image of each code: (N, 2) to (N, 1, 28, 28)."""
    return vae.decoder(z).mean


figure, axes = plt.subplots(1, 2, figsize=(12.5, 6), width_ratios=[1, 1.05])
plotting.show_manifold(draw(plotting.latent_grid(20)), "Decoder: every code is a digit", axes[0])
with torch.no_grad():
    codes = vae.encoder(digits.test).loc  # (1000, 2)
plotting.latent_scatter(codes, digits.test_labels, axes[1])
axes[1].set(title="Encoder: where 1,000 test digits go")
plotting.save_figure(figure, "00_manifold")
plt.show()

# %% [markdown]
# *What to see.* On the left, neighbours look alike, and one digit turns into the next without a tear. Nobody told the model that there are ten kinds of digits, yet they have settled in regions of their own. On the right, the encoder puts each test digit where its kind lives; the labels only colour the points and were never used in training. Some kinds overlap, because two numbers are few.

# %% [markdown]
# ### There and back
#
# Encode a digit, decode the code: the *reconstruction* shows what the two numbers have kept.

# %%
originals = digits.test[:10]  # one of each digit, never trained on
torch.manual_seed(SEED)
rows = {"data": originals, "reconstruction": vae.reconstruct(originals, mean=True)}
rows["rolled dice"] = vae.sample(10, mean=True)
plotting.show_rows(rows, "Test digits, their reconstructions, and new digits from the prior")
plt.show()

# %% [markdown]
# *What to see.* The reconstructions keep the kind and slant of many digits and lose the handwriting; now and then one comes back as another digit. They are blurred because the decoder answers with probabilities: where two digits could have had the same code, it shows both. The last row is not copied from anything. Those codes were drawn from the prior.

# %% [markdown]
# ### Play
#
# Move the two sliders: the point walks over the map, and the decoder draws what lives there. (The sliders need a running kernel. If you read this as a web page, the picture below shows five walks along the first number, each at its own value of the second.)


# %% tags=["nbval-ignore-output"]
def png(z1, z2):
    """The mean image of the code (z1, z2), as a picture file."""
    pixels = (255 * draw(torch.tensor([[z1, z2]]))[0]).byte()  # (1, 28, 28)
    return bytes(encode_png(pixels).tolist())


sliders = [
    ipywidgets.FloatSlider(value=0.5, min=-3, max=3, step=0.1, description=name)
    for name in ("z₁", "z₂")
]
picture = ipywidgets.Image(value=png(0.5, 0.5), width=220)
for slider in sliders:
    slider.observe(lambda _: setattr(picture, "value", png(*(s.value for s in sliders))), "value")
ipywidgets.HBox([ipywidgets.VBox(sliders), picture])

# %%
steps = torch.linspace(-2.4, 2.4, 13)
heights = [1.2, 0.6, 0.0, -0.6, -1.2]
rows = {
    f"$z_2 = {height:.1f}$": draw(torch.stack([steps, torch.full_like(steps, height)], 1))
    for height in heights
}
plotting.show_rows(rows, "Walking along $z_1$ from −2.4 to 2.4")
plt.show()

# %% [markdown]
# ## 6. Small and large, here and elsewhere
#
# **Two scales.** `scale(classroom=…, paper=…)` is the only switch. At *classroom* scale, the default, each notebook takes a minute or so on two processor cores. At *paper* scale the same notebook trains as long as the papers did. Set the environment variable `VAELIB_SCALE=paper` before you start, or `os.environ["VAELIB_SCALE"] = "paper"` in a notebook's first cell. The texts are the same; claims about the size of an effect are judged at classroom scale only.
#
# **Data.** The embedded digits need no network. For full MNIST or the real Frey Face, put the files into a folder and set `VAELIB_DATA` to it: it is looked at first, and never written to. What is not there is downloaded once, checked, and kept in a cache of its own (`VAELIB_CACHE`). `VAELIB_OFFLINE=1` forbids downloads. Where the real Frey Face cannot be had, generated faces stand in for it at classroom scale, and say so in every title. A damaged file is named and never used.
#
# **GPU.** `fit` picks the best device and brings the model back to where it came from. To choose yourself, name it: `device="cpu"`. At classroom scale the models are so small that a GPU hardly helps.

# %%
print("scale in force:", scaling.current())
print("a number that depends on it:", scale(classroom="a minute or so", paper="an evening"))

# %% [markdown]
# ## 7. How to ask "what if"
#
# You learn most from a notebook when you break it. A good question has four steps:
#
# 1. **Predict.** Write down what you expect, in nats if you can.
# 2. **Change one thing.** One slot, or one number; keep the seed.
# 3. **Look** at rate and distortion, and not only at their sum.
# 4. **Repeat with another seed** before you believe it.
#
# Here is an example. *What if Bob gets the wrong parcel?* We encode the test digits, hand every code to another digit's owner, and measure the distortion again. If the code did not matter, nothing would change. What do you predict?

# %%
with torch.no_grad():
    z = vae.encoder(digits.test).sample()  # (1000, 2)
    right = -vae.decoder(z).log_prob(digits.test)  # (1000,) nats
    wrong = -vae.decoder(z.roll(1, 0)).log_prob(digits.test)  # each gets its neighbour's code
figure, ax = plt.subplots(figsize=(7.5, 3.4))
ax.hist([right, wrong], bins=40, label=["its own code", "another digit's code"])
for bars, color in zip(ax.containers, [COLORS["distortion"], COLORS["data"]], strict=True):
    plt.setp(bars, color=color)
ax.set(xlabel="distortion of a test digit (nats)", ylabel="test digits")
ax.set(title="What if the code is another's? Then the digit is a surprise")
ax.legend()
plt.show()

# %% [markdown]
# *What to see.* With the wrong code the distortion is far larger: this model *uses* its latents. Remember this test. In the second chapter you will meet models that pass every look at their samples and whose distortion does not move when the codes are shuffled.

# %% [markdown]
# ## Claims
#
# Every notebook ends with what it has shown, checked by the computer. If a line below says `False`, or a cell stops with an error, something about your installation is not as it should be. First, the tools.

# %%
w = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
(w**3).sum().backward()
autograd_works = torch.allclose(w.grad, 3 * w.detach() ** 2)
print("1. gradients are right:", autograd_works)
assert autograd_works

x = digits.test[:8]
q, p, likelihood = encoder(x), prior(), decoder(encoder(x).rsample())
shapes = [q.batch_shape, p.batch_shape, likelihood.batch_shape, kl_divergence(q, p).shape]
print("2. slots, in batches of 8:", *(tuple(shape) for shape in shapes))
assert shapes == [(8,), (), (8,), (8,)] and likelihood.log_prob(x).shape == (8,)

# %%
images = torch.cat([digits.train, digits.test])
fingerprint = hashlib.sha256((255 * images).round().byte().numpy().tobytes()).hexdigest()[:16]
counts = digits.train_labels.bincount().tolist(), digits.test_labels.bincount().tolist()
print(
    f"3. {len(images):,} digits, {counts[0][0]} and {counts[1][0]} of each, source {digits.source}"
)
print("   their fingerprint:", fingerprint)
assert counts == ([400] * 10, [100] * 10)
assert fingerprint == "d7099ff73588a67d"

# %% [markdown]
# Then the taste. The yardstick of claim 4 is a model without a code, which predicts each pixel by its mean over the training images: what a VAE would be that ignores its latents.

# %%
reached = evaluate(vae, digits.test)
mean_image = digits.train.mean(0).clamp(1e-4, 1 - 1e-4)
x = digits.test
without_code = -(x * mean_image.log() + (1 - x) * (1 - mean_image).log()).flatten(1).sum(1).mean()
gain = reached.value + without_code
print("4. two numbers save over 35 nats per test digit:", bool(gain > 35))
assert gain > 35
print("5. the rate is above 3 nats: the code is used:", bool(reached.rate > 3))
assert reached.rate > 3
print("6. a wrong code costs over 40 nats more:", bool((wrong - right).mean() > 40))
assert (wrong - right).mean() > 40
print("The environment is sound. Welcome!")

# %% [markdown]
# ## Exercises
#
# Exercises work the same way everywhere. A cell has a `...` where your answer goes, and it runs even before you fill it in. When you run it, it prints your answer beside the true one and says `correct` or `not yet`. Try for ten minutes before you look: solutions, with reasons, are in `notebooks/solutions/`, under the name of the notebook.

# %% [markdown]
# **1. Nats and bits.** A code has a rate of 6 nats. How many bits is that? (How many *different* images could a code of so many bits tell apart, if it had no noise?)

# %%
from vaelib.teaching.exercises import check

bits = ...  # your answer, from 6 nats

check(bits, torch.tensor(6.0) / torch.tensor(2.0).log())

# %% [markdown]
# **2. The rate by hand.** For one latent variable with $q = \mathcal N(\mu, \sigma^2)$ and the prior $\mathcal N(0, 1)$, the rate is $\tfrac12(\mu^2 + \sigma^2 - 1 - \ln \sigma^2)$ nats. For which $\mu$ and $\sigma$ is it zero, and what does the code then say about the image? Write the function.


# %%
def rate_by_hand(mean, scale_of_q):
    return ...  # your formula; tensors in, a tensor out


means, scales = torch.tensor([0.0, 1.0, -2.0, 0.0]), torch.tensor([1.0, 1.0, 0.5, 0.1])
standard = torch.distributions.Normal(0.0, 1.0)
check(
    rate_by_hand(means, scales), kl_divergence(torch.distributions.Normal(means, scales), standard)
)

# %% [markdown]
# **3. Fill a slot.** `vae.prior()` is $\mathcal N(0, I)$. Suppose that Bob believes in codes that are twice as wide, $\mathcal N(0, 2^2 I)$. Make that prior with `DiagNormal(loc, scale)` from `vaelib.distributions`. Predict first: does the rate of a code near the origin rise or fall? And of one at $(4, 4)$?

# %%
from vaelib.distributions import DiagNormal

wide_prior = ...  # a DiagNormal over two latent variables

loc, sigma = torch.tensor([[0.0, 0.0], [4.0, 4.0]]), torch.full((2, 2), 0.5)
near_and_far = DiagNormal(loc, sigma)  # the guesses of two images
wide = torch.distributions.Normal(0.0, 2.0)
true_rates = kl_divergence(torch.distributions.Normal(loc, sigma), wide).sum(1)
check(... if wide_prior is ... else kl_divergence(near_and_far, wide_prior), true_rates)

# %% [markdown]
# **4. What if you walk from one digit to another?** Write a function that goes from one code to another on a straight line, in a given number of steps, both ends included. Then use it: `plotting.show_images(draw(line(codes[0], codes[1], 10)), columns=10)`. Is there a *sudden* change on the way?


# %%
def line(start, end, steps):
    return ...  # (steps, 2), from two vectors (2,)


here, there = torch.tensor([-1.0, 2.0]), torch.tensor([3.0, -2.0])
in_five = [[-1.0, 2.0], [0.0, 1.0], [1.0, 0.0], [2.0, -1.0], [3.0, -2.0]]
check([line(here, there, 5), line(here, there, 3)], [in_five, in_five[::2]])

# %% [markdown]
# ## Further reading
#
# - D. P. Kingma & M. Welling (2013), *Auto-Encoding Variational Bayes*, [arXiv 1312.6114](https://arxiv.org/abs/1312.6114): the paper of the first chapter.
# - D. J. Rezende, S. Mohamed & D. Wierstra (2014), *Stochastic Backpropagation and Approximate Inference in Deep Generative Models*, [arXiv 1401.4082](https://arxiv.org/abs/1401.4082): the same idea, found independently.
# - A. Razavi, A. van den Oord, B. Poole & O. Vinyals (2019), *Preventing Posterior Collapse with delta-VAEs*, [arXiv 1901.03416](https://arxiv.org/abs/1901.03416): the paper of the third chapter.
# - D. P. Kingma & M. Welling (2019), *An Introduction to Variational Autoencoders*, [arXiv 1906.02691](https://arxiv.org/abs/1906.02691): a textbook by the inventors.
# - A. A. Alemi and others (2018), *Fixing a Broken ELBO*, [arXiv 1711.00464](https://arxiv.org/abs/1711.00464): rate and distortion as two axes of one plane.
#
# **Next:** notebook 01 derives the equation, twice, on a model small enough to know every answer exactly.
