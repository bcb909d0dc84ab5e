# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · Build a PixelCNN
#
# **What you will do.** You build a model of images that has no latent variable at all, and whose $\log p(x)$ is *exact*. It draws a digit the way you read a page: one pixel after another, each with an eye on all those before. You start from a triangular matrix, turn it into masked convolutions, find the spot where these are blind, remove it, add attention, train the result on digits, let it draw, let it complete half a digit, and make the drawing faster without changing a single pixel: about ten times for a tiny image, about a hundred times for one of $28\times28$.
#
# **What you will learn.**
# - the chain rule over pixels: why a product of small classifiers is a distribution over images, and what a leak does to it;
# - masks of kind A and B; the blind spot, seen by gradient; the vertical and the horizontal stack of the Gated PixelCNN; the causal attention of PixelSNAIL;
# - how to *see* a receptive field instead of believing in it;
# - sampling, completing and classifying with one and the same model;
# - what a cached sampler remembers, and why it draws the same images;
# - how 256 grey levels and colours are scored: a table of probabilities, or a mixture of discretised logistics.
#
# **What you need.** Convolutions, the cross entropy, a little PyTorch. From this course only the idea that a model is scored in nats per image (notebooks 01 and 03). You need not have read the papers: van den Oord, Kalchbrenner & Kavukcuoglu (2016) for the PixelCNN, van den Oord et al. (2016) for its gated form, Salimans et al. (2017) for the logistic mixture, Chen et al. (2018) for PixelSNAIL.
#
# Why in a course on variational autoencoders? Because this decoder is strong enough to need no latents, and notebook 09 puts it into the third slot. What happens then is the reason why the rest of the course exists.

# %%
import math
import timeit
from itertools import product

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap
from torch import nn
from torch.nn import functional as F

from vaelib import data, scale
from vaelib.pixelcnn import GatedPixelCNN, PixelCNN, PixelSNAIL
from vaelib.pixelcnn.layers import horizontal_conv, vertical_conv
from vaelib.teaching import plotting
from vaelib.teaching.plotting import COLORS

SEED = 0  # the claims at the end held for every seed that we tried: try another
torch.manual_seed(SEED)
torch.set_num_threads(1)  # for networks this small, sharing the work costs more than doing it
plotting.use_style()

# %% [markdown]
# ## 1. The chain rule over pixels
#
# Any probability of many things can be written as a product, one thing at a time, each given those before:
#
# $$p(x) = p(x_1)\, p(x_2 | x_1)\, p(x_3 | x_1, x_2) \cdots = \prod_{i=1}^{n} p(x_i | x_1, \dots, x_{i-1}).$$
#
# This is the chain rule of probability. It assumes nothing. It holds for every distribution and for every order of the things. For images we take the order of reading: row by row, from left to right. We write $x_{<i}$ for the pixels before pixel $i$.
#
# Each factor is a small, familiar task: *here are some pixels, what is the next one?* For black and white pixels that is a classifier with two classes. A model of this kind is called **autoregressive**. Compare it with the models of the notebooks before:
#
# | | variational autoencoder | autoregressive model |
# |---|---|---|
# | where the dependence between pixels sits | in a shared cause $z$ | in the pixels themselves |
# | $\log p(x)$ | bounded from below | **exact**: a sum of $n$ logarithms |
# | training | bound, encoder, reparameterised noise | plain maximum likelihood |
# | drawing an image | one pass | one pass **per pixel** |
# | a representation of the image | $z$ | none |

# %%
PALETTE = ListedColormap(["#E6E6E6", COLORS["decoder"], "#882255", "#000000"])
FUTURE, SEEN, BLIND, ITSELF = range(4)  # the four kinds of pixels, in these colours


def before(height, width, pixel):
    """Which pixels come before this one in the order of reading, (H, W)."""
    place = torch.arange(height * width).view(height, width)
    return place < place[pixel]


def paint(ax, kinds, title):
    ax.pcolormesh(kinds.flip(0), cmap=PALETTE, vmin=0, vmax=3, edgecolors="white", linewidth=0.6)
    ax.set(title=title, aspect="equal", frame_on=False, xticks=[], yticks=[])


_, axes = plt.subplots(1, 4, figsize=(11, 2.9))
for ax, pixel in zip(axes, [(0, 0), (0, 5), (3, 3), (6, 6)], strict=True):
    kinds = before(7, 7, pixel).long() * SEEN
    kinds[pixel] = ITSELF
    paint(ax, kinds, f"row {pixel[0]}, column {pixel[1]}")
plt.show()

# %% [markdown]
# *What to see.* Black: the pixel to be predicted. Orange: what may be used for it. Grey: the future, which must not be used. The first pixel has nothing to go by, the last one has everything else.
#
# ### The smallest such model: a triangular matrix
#
# Let each conditional be a logistic regression on the pixels before. Stack the weights of all pixels as rows of one matrix $W$. "Only the pixels before" then means: *strictly lower triangular*. One product with $W$ gives the logits of all pixels at once:
#
# $$\log p(x) = \sum_i \log \mathrm{Bernoulli}\big(x_i;\ \sigma(b_i + \textstyle\sum_{j<i} W_{ij} x_j)\big).$$
#
# Is this a distribution? For images of $3\times3$ pixels we need not argue. There are $2^9 = 512$ of them. We score them all and add up. To see what the triangle is good for, we also let each pixel see itself, and then everything.


# %%
def all_images(height, width, levels=2):
    """Every image of this size, (levels^(H·W), 1, H, W)."""
    steps = product(range(levels), repeat=height * width)
    return torch.tensor(list(steps)).double().view(-1, 1, height, width) / (levels - 1)


def regressions(x, weights):
    """log p(x) by one logistic regression for each pixel, (B,) nats."""
    x = x.flatten(1)
    return -F.binary_cross_entropy_with_logits(x @ weights.T, x, reduction="none").sum(1)


IMAGES = all_images(3, 3)  # (512, 1, 3, 3)
W = torch.randn(9, 9).double()
tables = {"only the past": W.tril(-1), "the pixel itself too": W.tril(0), "everything": W}
totals = {name: regressions(IMAGES, weights).exp().sum().item() for name, weights in tables.items()}
print(f"{len(IMAGES)} images; with only the past their probabilities sum to", end=" ")
print(f"{totals['only the past']:.9f}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.3))
for ax, (name, weights) in zip(axes, tables.items(), strict=True):
    ax.imshow(weights, cmap="PuOr", vmin=-2.5, vmax=2.5)
    ax.set(title=f"{name}:\nsum of 512 = {totals[name]:.2f}", xlabel="pixel that is looked at")
    ax.set(xticks=[], yticks=[])
axes[0].set_ylabel("pixel that is predicted")
plt.show()

# %% [markdown]
# *What to see.* With the triangle the 512 probabilities sum to one, for random weights, before any training. That is no luck: add up over the last pixel first; its two probabilities sum to one whatever came before. Then over the one before it, and so on.
#
# A single weight outside the full triangle breaks it. The model then peeks at what it has to predict; its "probabilities" sum to something else, and its "nats" mean nothing. During training, such a **leak** looks like wonderful progress. So whenever an autoregressive model looks too good, search for the leak. We shall do it by gradient.
#
# Trained, this model already writes digits of a sort (Frey 1998; it is known as a *fully visible sigmoid belief network*). But it needs a weight for every pair of pixels, and it does not know that a stroke in one corner is the same thing as a stroke in another. Images ask for convolutions.
#
# ## 2. Masks: a triangle for convolutions
#
# A convolution slides one small kernel over the image. A $k\times k$ kernel centred on a pixel looks at its neighbours on all sides, the future included. So set to zero the weights of all neighbours that come later. This is a **mask**, multiplied into the kernel before each use.
#
# - **Kind A** also hides the centre. It is for the first layer, whose input is the image: a pixel must not see itself.
# - **Kind B** keeps the centre. It is for all later layers. Their inputs are features, and the feature *at* pixel $i$ has seen only pixels before $i$. To hide it would waste it.


# %%
class MaskedConv(nn.Conv2d):  # of (B, C, H, W), as torch has it
    def __init__(self, kind, inputs, outputs, size):
        super().__init__(inputs, outputs, size, padding=size // 2)
        mask = torch.zeros(size, size)
        mask[: size // 2] = 1  # rows above
        mask[size // 2, : size // 2 + (kind == "B")] = 1  # its own row; kind B: itself too
        self.register_buffer("mask", mask)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


_, axes = plt.subplots(1, 2, figsize=(5.2, 2.9))
for ax, kind in zip(axes, "AB", strict=True):
    paint(ax, MaskedConv(kind, 1, 1, 5).mask.long() * SEEN, f"kind {kind}")
    ax.plot(2.5, 2.5, "kx", ms=9, mew=2)
plt.show()

# %% [markdown]
# *What to see.* The cross marks the centre. Orange weights are used, grey ones are zero.
#
# A **PixelCNN** is a stack of these: A once, then B as often as you like, then a logit for each pixel. Everything in it is causal, so the whole is. Below is a complete one in five lines. We score all 512 images with it, and then break it on purpose: one B where an A should be.


# %%
def tiny(first_kind):
    layers = [MaskedConv(first_kind, 1, 8, 3), nn.ReLU(), MaskedConv("B", 8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, MaskedConv("B", 8, 1, 3)).double()


def by_pixel(network):
    """Turn a network of logits into log p of each pixel, (B, 1, H, W) to (B, H, W)."""
    return lambda x: -F.binary_cross_entropy_with_logits(network(x), x, reduction="none").squeeze(1)


for kind in "AB":
    total = by_pixel(tiny(kind))(IMAGES).sum((1, 2)).exp().sum().item()
    print(f"first mask of kind {kind}: the sum over 512 images is one: {abs(total - 1) < 1e-9}")

# %% [markdown]
# The library's `PixelCNN` is the same with residual connections, a learned bias for each position, and room for conditions. It also leaves out the rows of the kernel that are always zero, which saves nearly half of the work. It returns a *distribution*, as every decoder in this course does: `model()` is $p(x)$, `model().log_prob(x)` scores whole images, `model().pixel_log_prob(x)` gives the terms of the chain rule one by one. All pixels of the training image are known, so one pass computes all conditionals in parallel. This is called **teacher forcing**: each pixel is predicted from the true ones before it, not from the model's own guesses.
#
# ## 3. See the receptive field
#
# Which pixels does a prediction really use? Do not count kernels: ask the network. The derivative of $\log p(x_i | x_{<i})$ with respect to $x_j$ is zero for *every* image if $j$ is not connected to $i$, and non-zero for some image if it is. So we average the size of the gradient over a few random images.

# %%
WINDOW, PIXEL = (11, 11), (8, 4)


def influence(pixel_log_prob, pixel=PIXEL, size=WINDOW, draws=12):
    """Mean |∂ log p(x_i | x_<i) / ∂ x_j| over random images, for all j, (H, W)."""
    x = torch.rand(draws, 1, *size).round().double().requires_grad_()
    chosen = pixel_log_prob(x)[:, pixel[0], pixel[1]].sum()
    return torch.autograd.grad(chosen, x)[0].abs().mean((0, 1))


def kinds_of(gradient, pixel=PIXEL):
    """Sort the pixels: future, seen, blind, the pixel itself; a used future is an error."""
    past = before(*gradient.shape, pixel)
    kinds = torch.where(past & (gradient > 0), SEEN, torch.where(past, BLIND, FUTURE))
    kinds[pixel] = ITSELF
    assert (gradient[kinds == FUTURE] == 0).all(), "this model looks into the future"
    return kinds


def new_model(kind, size=WINDOW, **settings):
    """An untrained model in double precision, so that no gradient is lost in rounding."""
    return kind(image_shape=(1, *size), channels=8, **settings).double()


SMALL = {"kernel": 3, "first_kernel": 3}
figure, axes = plt.subplots(1, 4, figsize=(12, 3.4))
for ax, layers in zip(axes, [1, 2, 4, 8], strict=True):
    model = new_model(PixelCNN, layers=layers, **SMALL)
    kinds = kinds_of(influence(model().pixel_log_prob))
    paint(
        ax, kinds, f"{layers + 1} masked layers:\n{int((kinds == BLIND).sum())} past pixels unseen"
    )
plt.show()

# %% [markdown]
# *What to see.* Orange is seen, wine red is past but unseen. More layers see further, and nothing of the future is ever touched. But look to the right: the red wedge does not go away. Nine layers reach the top of the image, and yet a pixel one row up and two columns to the right stays invisible.
#
# This is the **blind spot**. With a $3\times3$ mask, a step up moves at most one column to the right, and a step inside the row moves only left. So what lies more columns to the right than rows up is out of reach, *however many layers you stack*. A wider kernel makes the wedge thinner and does not close it: with $k = 5$, what lies more than two columns to the right per row up stays unseen.
#
# Does it matter? The model stays a proper distribution. But it has to predict the right half of a wide stroke without having seen its beginning to the upper right. The chain rule offers $x_{<i}$, and the network declines part of it.
#
# ## 4. Two stacks without a blind spot
#
# The cure (van den Oord et al. 2016, *Conditional Image Generation*) splits the past into two parts that are easy to cover without overlap into the future:
#
# - the **vertical stack** $v$ covers *all rows above*, by kernels that are half as high as wide but not cut off on the right. The feature $v_i$ must not know anything of its own row;
# - the **horizontal stack** $h$ covers the pixels *to the left in the own row*, by kernels of one row.
#
# At each layer, $h$ takes over what $v$ has collected. Never the other way round: the kernels of $v$ look to the right as well, and through them the pixels of a row would reach places further left, which have yet to predict them.

# %%
stacks = {"vertical": vertical_conv, "horizontal": horizontal_conv}
_, axes = plt.subplots(1, 4, figsize=(10.4, 2.9))
for ax, (name, kind) in zip(axes, product(stacks, "AB"), strict=True):
    upper = stacks[name](kind, 1, 1, 5).mask  # (3, 5) or (1, 3): the library leaves out the rest
    full = torch.zeros(5, 5)
    full[3 - upper.shape[0] : 3, : upper.shape[1]] = upper
    paint(ax, full.long() * SEEN, f"{name}, {kind}")
    ax.plot(2.5, 2.5, "kx", ms=9, mew=2)
plt.show()

# %% [markdown]
# *What to see.* Vertical A leaves out its own row, since the image has it; vertical B keeps it, since its features have not seen their own row. Nothing is cut off on the right, so there is no wedge. Together the two kinds A cover what the square mask of kind A covers, and layers of B extend it to everything before.
#
# Here are two stacks in a few lines. The feature maps are $(B, H, W, \text{channels})$, because then a linear layer *is* a $1\times1$ convolution.


# %%
class TwoStacks(nn.Module):
    """Logits of each pixel from a vertical and a horizontal stack."""

    def __init__(self, channels, layers):
        super().__init__()
        sizes = [("A", 1)] + [("B", channels)] * (layers - 1)
        self.down = nn.ModuleList(vertical_conv(k, n, channels, 3) for k, n in sizes)
        self.right = nn.ModuleList(horizontal_conv(k, n, channels, 3) for k, n in sizes)
        self.link = nn.ModuleList(nn.Linear(channels, channels) for _ in sizes)
        self.out = nn.Linear(channels, 1)

    def forward(self, x):  # (B, 1, H, W)
        v = h = 2 * x.movedim(1, -1) - 1  # (B, H, W, 1)
        for down, right, link in zip(self.down, self.right, self.link, strict=True):
            v = torch.tanh(down(v))
            h = torch.tanh(right(h) + link(v))  # from above to here, never back
        return self.out(h).movedim(-1, 1)


# %% [markdown]
# The library's `GatedPixelCNN` adds three things. **Gates**: each layer multiplies a value by an opening, $\tanh(a) \odot \sigma(b)$, which lets a layer do what a sum cannot: switch a stroke off where another one passes. **Residual connections**, so that deep stacks train. And **conditions**: a class, or a latent $z$, is added inside the gates of every layer, $\tanh(a + V_a c) \odot \sigma(b + V_b c)$.
#
# Besides the *kind* of each pixel we now also draw the *strength* of the gradient, on a logarithmic scale. A pixel may be connected and still hardly matter.

# %%
fields = {
    "masked layers": new_model(PixelCNN, layers=7, **SMALL)().pixel_log_prob,
    "two stacks, by hand": by_pixel(TwoStacks(8, 8).double()),
    "GatedPixelCNN": new_model(GatedPixelCNN, layers=7, **SMALL)().pixel_log_prob,
    "PixelSNAIL": new_model(PixelSNAIL, blocks=2, residuals=1)().pixel_log_prob,
}
figure, axes = plt.subplots(2, 4, figsize=(12.5, 6.2))
for column, name in zip(axes.T, fields, strict=True):
    kinds = kinds_of(gradient := influence(fields[name]))
    paint(column[0], kinds, f"{name}:\n{int((kinds == BLIND).sum())} past pixels unseen")
    strength = gradient.where(kinds == SEEN, torch.nan).log10()
    shown = column[1].imshow(strength, cmap="cividis", vmin=-8, vmax=0)
    column[1].set(xticks=[], yticks=[])
figure.colorbar(shown, ax=axes[1], label="log₁₀ |gradient|, untrained", shrink=0.8)
plotting.save_figure(figure, "08_build_a_pixelcnn")
plt.show()

# %% [markdown]
# *What to see.* The two stacks see every past pixel. So does PixelSNAIL, to which we come now. The lower row shows the price of distance. Through the stacks of the `PixelCNN` and the `GatedPixelCNN`, the influence of a far pixel is more than ten thousand times smaller than that of a neighbour. In the two stacks by hand all influence is faint, the neighbours' too: nothing leads past the many layers, as residual connections do. In PixelSNAIL the influence stays level up to the far corner, although that network has fewer convolutions.
#
# ## 5. Attention: look anywhere in one step
#
# A stroke that begins at the top of a nine ends at the bottom. For a convolution that is a long way. **Attention** takes one step: position $i$ asks a *query* $q_i$; every position $j$ offers a *key* $k_j$ and a *value* $v_j$; and $i$ receives
#
# $$h_i \leftarrow h_i + W \sum_{j \le i} a_{ij}\, v_j, \qquad a_{ij} = \frac{\exp(q_i^\top k_j / \sqrt d)}{\sum_{j' \le i} \exp(q_i^\top k_{j'} / \sqrt d)} .$$
#
# The sum runs over $j \le i$ only. So the table $a_{ij}$ is lower triangular: section 1's triangle returns, but now its entries depend on the image. What may key and value at $j$ contain? Everything before $i$ for all $i \ge j$: the pixels up to $j - 1$. In the library they are made of the feature $h_j$ and pixel $j - 1$.
#
# PixelSNAIL alternates blocks of small causal convolutions, which are good at the near, with such attention, which is good at the far. The price: the table has (pixels)² entries. For $28 \times 28$ images that is harmless; for large pictures it decides what is possible.
#
# ## 6. Train on digits
#
# To keep the wait short, this course's autoregressive models work on small digits: $14\times14$ pixels, each the **mean of 2 × 2 pixels, made white where it is above one half**. The numbers below are therefore *not* comparable with published ones, which are for $28\times28$ pixels. `VAELIB_SCALE=paper` takes full-size digits, drawn anew in black and white for every batch, and larger networks.
#
# Training is maximum likelihood and nothing else. No bound, no encoder, no noise.


# %%
def small(images):
    return data.binarize(data.downsample(images))


digits = data.mnist(scale(classroom="5k", paper="full"))
prepare = scale(classroom=small, paper=lambda images: data.binarize(images, "bernoulli"))
fresh = scale(classroom=lambda batch: batch, paper=prepare)  # new black and white for each batch
train_x = scale(classroom=prepare, paper=lambda images: images)(digits.train)
test_x, SHAPE = prepare(digits.test), train_x.shape[1:]
figure, ax = plt.subplots(figsize=(11, 2.4))
plotting.show_images(test_x[:40], 20, f"test digits, {SHAPE[1]} × {SHAPE[2]}, black and white", ax)
plt.show()


# %%
def train(model, epochs):
    """Maximum likelihood: Adam, whose step size falls to zero over the second half."""
    updates = epochs * -(-len(train_x) // 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=scale(classroom=1e-2, paper=1e-3))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, 2 - 2 * i / updates))
    for _ in range(epochs):
        for batch in torch.randperm(len(train_x)).split(16):
            labels = digits.train_labels[batch] if model.classes else None
            loss = -model(labels=labels).log_prob(fresh(train_x[batch])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


# %% [markdown]
# We train one model of each family, and a Gated PixelCNN that is told the class. For comparison: independent pixels, each with its own probability, which is what a network that sees nothing could learn. About forty seconds.

# %%
WIDTH, DEPTH = scale(classroom=(16, 3), paper=(64, 10))
SIZES = {"image_shape": SHAPE, "channels": WIDTH}
BLOCKS = scale(classroom={"blocks": 1, "residuals": 2}, paper={"blocks": 4, "residuals": 4})
EPOCHS = scale(classroom=3, paper=100)
torch.manual_seed(SEED)
plain = train(PixelCNN(layers=DEPTH, **SIZES), EPOCHS)
gated = train(GatedPixelCNN(layers=DEPTH, **SIZES), EPOCHS)
snail = train(PixelSNAIL(**BLOCKS, **SIZES), EPOCHS)
classed = train(GatedPixelCNN(layers=DEPTH, classes=10, **SIZES), EPOCHS)


# %% tags=["nbval-ignore-output"]
@torch.no_grad()
def score(model, images, labels=None):
    """Exact log p(x) of each image, nats, (B,)."""
    return model(labels=labels).log_prob(images)


white = prepare(digits.train).mean(0).clamp(1e-3, 1 - 1e-3).expand_as(test_x)
alone = -F.binary_cross_entropy(white, test_x, reduction="none").sum((1, 2, 3))
scores = {"independent pixels": alone, "PixelCNN": score(plain, test_x)}
scores |= {"Gated PixelCNN": score(gated, test_x), "PixelSNAIL": score(snail, test_x)}
scores["Gated, given the class"] = score(classed, test_x, digits.test_labels)
for name, nats in scores.items():
    bits = -nats.mean() / (math.log(2) * test_x[0].numel())
    print(f"{name:<24} {-nats.mean():6.1f} nats per digit = {bits:.3f} bits per pixel")

# %% [markdown]
# *What to see.* Knowing the pixels before cuts the code length by more than a third. These are exact negative log likelihoods on test digits: no bound, no sampling error of an estimator. A sender and a receiver who share the model could store the test digits in just that many nats each.
#
# The three families lie close together here: with so few epochs and such small networks, their order says little about the families, and we claim none. The papers' order shows on larger images after days of training: 3.03 bits per pixel and channel on CIFAR-10 for the Gated PixelCNN, 2.85 for PixelSNAIL.
#
# Telling the model the class saves a few nats. Within *one* joint distribution it could save at most $\ln 10 \approx 2.3$ on average, because $p(x) = \sum_c p(c)\, p(x|c) \ge p(c)\, p(x|c)$. The two networks were trained apart; where the saving is larger, the one without labels still has something to learn.
#
# ### Where the nats go
#
# The chain rule gives the cost of every single pixel. This is a view that no bound can offer.

# %%
costs = -gated().pixel_log_prob(test_x[:10]).detach()  # (10, H, W) nats
figure, axes = plt.subplots(2, 10, figsize=(12.5, 3.1))
for column, image, cost in zip(axes.T, test_x[:10], costs, strict=True):
    plotting.show_images(image[None], 1, ax=column[0])
    shown = column[1].imshow(cost, cmap="inferno", vmin=0, vmax=3)
    column[1].set(xticks=[], yticks=[], xlabel=f"{cost.sum():.0f}")
axes[0, 0].set_ylabel("digit")
axes[1, 0].set_ylabel("cost")
figure.colorbar(shown, ax=axes[1], label="nats", shrink=0.9)
figure.suptitle("The surprise is where a stroke begins or ends (below: nats of the whole digit)")
plt.show()

# %% [markdown]
# *What to see.* Background and the inside of strokes cost nothing: the model is sure. It pays where a stroke starts out of nowhere, where it ends, and where it could have turned. The first white pixel of a digit is always a surprise, because nothing has been said about it yet.
#
# ## 7. Draw
#
# To draw an image, follow the chain rule: draw $x_1$, put it in, draw $x_2$ given $x_1$, and so on. The loop below does it with nothing but the public face of the model. It asks: *if the next pixel were white, what would its probability be?*


# %%
@torch.no_grad()
def draw_by_hand(model, uniforms):
    """Images (N, 1, H, W) from uniform numbers (N, H, W, 1): a whole pass for each pixel."""
    count, height, width, _ = uniforms.shape
    x = torch.zeros(count, 1, height, width).to(uniforms)
    for i, j in product(range(height), range(width)):
        x[:, 0, i, j] = 1
        p_white = model().pixel_log_prob(x)[:, i, j].exp()
        x[:, 0, i, j] = (uniforms[:, i, j, 0] < p_white).to(x)
    return x


exact = GatedPixelCNN(layers=DEPTH, **SIZES).double()  # so that rounding decides no pixel
exact.load_state_dict(gated.state_dict())
generator = torch.Generator().manual_seed(SEED)
uniforms = torch.rand(10, *SHAPE[1:], 1, generator=generator, dtype=torch.float64)
by_hand = draw_by_hand(exact, uniforms)

# %%
torch.manual_seed(SEED)
drawn = {"Gated PixelCNN": gated().sample((60,)), "PixelSNAIL": snail().sample((60,))}
nothing = torch.bernoulli(white[:1].expand(60, -1, -1, -1))
figure, axes = plt.subplots(1, 4, figsize=(13, 3.8))
shown = {"data": test_x[:60], "independent pixels": nothing} | drawn
for ax, (name, images) in zip(axes, shown.items(), strict=True):
    plotting.show_images(images, 10, name, ax)
plt.show()

# %% [markdown]
# *What to see.* Strokes of the right width, closed loops, and some digits one could name, after seconds of training. Independent pixels give a cloud with the right average and no stroke at all. The usual flaw of the autoregressive draws is global: a figure that begins as one digit and ends as another. Each pixel was plausible given the ones before. This is the mirror image of the VAE's flaw in notebook 03, whose draws agree with themselves everywhere and are blurred.
#
# ## 8. Complete half a digit
#
# If the first pixels are *given*, drawing the rest from the model is a draw from $p(\text{rest}\,|\,\text{given})$, exactly. No extra training, no approximate inference: the chain rule is already sorted that way. In the library: `sample(known=images, mask=which)`.

# %%
half = SHAPE[1] // 2
upper = torch.zeros(SHAPE[1:], dtype=torch.bool)
upper[:half] = True
chosen = torch.stack([test_x[digits.test_labels == label][1] for label in range(10)])
torch.manual_seed(SEED)
completed = gated().sample((5, 10), known=chosen, mask=upper)  # (5, 10, 1, H, W)
backwards = gated().sample((2, 10), known=chosen, mask=~upper)
given = torch.where(upper, chosen, 0.4)
rows = {"data": chosen, "upper half": given} | {f"draw {k + 1}": completed[k] for k in range(5)}
rows |= {"lower half": torch.where(upper, 0.4, chosen)}
rows |= {f"draw {k + 6}": backwards[k] for k in range(2)}
plotting.show_rows(rows, "Given the upper half (draws 1–5), and given the lower (6, 7)")
plt.show()

# %% [markdown]
# *What to see.* Draws 1 to 5: completions of each upper half. The upper halves of the one and of the seven leave little doubt, and nearly all draws agree. Where the rest could become a two, a three or a seven, or a five or a six, the draws differ: that is what a distribution is for, and what a single best guess would hide.
#
# Draws 6 and 7 were given the *lower* half instead. The sampler keeps the given pixels, and draws the upper ones **without having seen them**: they come later in the order of reading. Often the halves do not fit, and where they do it is by luck. To draw from $p(\text{upper}\,|\,\text{lower})$ we would have to sum over all upper halves. A model with an order answers questions along that order only. Remember this: the encoder of notebook 11 is built to tell the decoder about the pixels *it cannot see yet*.
#
# ## 9. Given the class, and back
#
# The fourth model was trained with labels: $\log p(x|c)$. Draw from it with a class of your choice.
#
# And turn it round. Exact likelihoods make a classifier out of any conditional model, by Bayes' rule with equal priors:
#
# $$p(c|x) = \frac{p(x|c)}{\sum_{c'} p(x|c')} .$$
#
# It was never trained to tell digits apart, only to draw them.

# %%
by_class = classed(labels=torch.arange(10).repeat_interleave(12)).sample()
some, labels = test_x[:500], digits.test_labels[:500]
every = torch.stack([score(classed, some, torch.full_like(labels, c)) for c in range(10)], 1)
guess = every.argmax(1)  # of log p(x|c), (500, 10)
accuracy = (guess == labels).double().mean().item()
table = torch.zeros(10, 10).index_put_((labels, guess), torch.tensor(1.0), accumulate=True)

_, axes = plt.subplots(1, 2, figsize=(11.5, 4.8), width_ratios=[1.2, 1])
plotting.show_images(by_class, 12, "drawn for the classes 0 … 9, a row each", axes[0])
axes[1].imshow(table, cmap="Blues", vmax=80)
for row, column in table.nonzero().tolist():
    axes[1].text(column, row, int(table[row, column]), ha="center", va="center", fontsize=10)
axes[1].set(title=f"classified by Bayes' rule: {accuracy:.0%} right", xlabel="largest p(x|c)")
axes[1].set(ylabel="label", xticks=range(10), yticks=range(10))
plt.show()

# %% [markdown]
# *What to see.* Left: each row was asked for one digit, and many draws show it. Others are nothing in particular: three passes over four thousand digits are a short schooling. Right: a row of the table is what the test digits of one label were taken for. The most frequent mistake, a nine taken for a four, is one that people make as well. A network trained to tell digits apart does better; but this one came for free.
#
# ## 10. The cache
#
# Drawing by hand runs the whole network for every pixel. For $n$ pixels that is $n$ passes over $n$ positions: the work grows like $n^2$, with the *fourth* power of the side of the image. Nearly all of it is repetition. Causality says so: when pixel $i$ gets its value, no feature at positions up to $i$ can change. The left picture below flips one pixel and shows which predictions move.
#
# So remember, and compute only what is new:
#
# - at pixel $i$, each layer computes its output at position $i$ **only**. Its kernel needs the features of a few rows above and of some pixels to the left. They were computed before and are kept, a window of $k$ rows in each layer;
# - the vertical stack does not depend on the row being drawn at all, so it runs **once a row**, for all columns together;
# - attention keeps keys and values of all positions so far, and adds one pair for each pixel.
#
# The work is now that of *one* pass, cut into $n$ slices. Nothing is approximated: the same sums, of the same numbers.

# %% tags=["nbval-ignore-output"]
start = timeit.default_timer()
cached = exact().sample((10,), generator=generator.manual_seed(SEED))
seconds_cached = timeit.default_timer() - start
start = timeit.default_timer()
naive = exact().sample((10,), cached=False, generator=generator.manual_seed(SEED))
seconds_naive = timeit.default_timer() - start
print(
    f"ten {SHAPE[1]} × {SHAPE[2]} digits: naive {seconds_naive:.2f} s, cached {seconds_cached:.2f} s"
)


# %%
@torch.no_grad()
def sampling_seconds(side, count=16):
    """Seconds to draw images of side × side pixels: cached, and naive extrapolated from one."""
    model = GatedPixelCNN(image_shape=(1, side, side)).eval()
    x = torch.zeros(count, side, side, 1)
    arguments = x, x.bool(), torch.rand_like(x), model.context(None, None)
    # Of a few repeats the fastest is the one that nothing else disturbed.
    cached = timeit.repeat(lambda: model().sample((count,)), number=1, repeat=2)
    naive = timeit.repeat(lambda: model.draw_naively(*arguments, pixels=1), number=1, repeat=4)
    return min(cached), min(naive) * side**2


sides = [7, 14, 20, 28]
timed = torch.tensor([sampling_seconds(side) for side in sides])  # (4, 2)

# %%
x = torch.rand(30, 1, *WINDOW).round().double().repeat(2, 1, 1, 1, 1)  # the same images twice
x[1, ..., 5, 5] = 1 - x[1, ..., 5, 5]  # but for one pixel
one, other = new_model(GatedPixelCNN, layers=7, **SMALL)().pixel_log_prob(x)
kinds = ((one - other).abs().amax(0) > 1e-12).long() * SEEN
kinds[5, 5] = ITSELF
_, axes = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=[1, 1.6])
paint(axes[0], kinds, "predictions that a new pixel can change")
axes[1].loglog(sides, timed[:, 0], "o-", color=COLORS["decoder"], label="cached")
axes[1].loglog(sides, timed[:, 1], "s--", color=COLORS["bound"], label="naive, extrapolated")
ticks = [f"{side}\n{slow / fast:.0f} ×" for side, (fast, slow) in zip(sides, timed, strict=True)]
axes[1].set_xticks(sides, ticks)
axes[1].minorticks_off()
axes[1].set(xlabel="side of the image (pixels); ratio of the two", ylabel="seconds for 16 images")
axes[1].legend(title="sampling", loc="upper left")
plt.show()

# %% [markdown]
# *What to see.* Left: a new pixel (black) touches only what comes after it. Everything grey in the upper part is finished for good. Right, both axes logarithmic: the naive time climbs twice as steeply, so the factor between the two grows with the image; the numbers are for this machine. Ten layers with 128 channels at $28\times28$ take many minutes naively and seconds with the cache (`benchmarks/sampling.py` times it).
#
# Do the two draw *the same images*? The generator supplies one uniform number per pixel, and both samplers use the same one at the same place. Claim 4 compares them bit by bit, with the loop of section 7 as a third.
#
# ## 11. Two hundred and fifty-six levels, and colour
#
# So far a pixel was black or white. A photograph has 256 levels for each of three channels. Only the last step of the network changes: it must turn the features of pixel $i$ into a distribution over levels. The library has two ways.
#
# **A table** (`likelihood="categorical"`): 256 logits and a softmax. It can take any shape. But it does not know that 100 is next to 101: what it learns about one level says nothing about its neighbours.
#
# **A mixture of discretised logistics** (`likelihood="logistic_mixture"`): take a smooth density on the line, and give each level the probability *mass* of its bin. The logistic distribution has a distribution function that is just the sigmoid, so the mass is a difference of two sigmoids:
#
# $$P(x) = \sum_k \pi_k \Big[\sigma\Big(\frac{x + h - \mu_k}{s_k}\Big) - \sigma\Big(\frac{x - h - \mu_k}{s_k}\Big)\Big], \qquad x \in [-1, 1],\ \text{bins of width } 2h .$$
#
# The first bin reaches down to $-\infty$ and the last up to $+\infty$. So the masses sum to one, and there is no density that could exceed one: a discrete model is safe from the infinite likelihoods of notebook 03.

# %%
from vaelib.pixelcnn.likelihoods import (
    CategoricalPixels,
    LogisticMixturePixels,
    discretized_logistic,
)

levels = torch.linspace(-1, 1, 16).double()
figure, axes = plt.subplots(1, 3, figsize=(12, 3.3), sharey=True)
for ax, (mean, width) in zip(axes, [(0.1, 0.12), (0.1, 0.02), (0.95, 0.12)], strict=True):
    log_width = torch.tensor(width).double().log()
    mass = discretized_logistic(levels, torch.tensor(mean).double(), log_width, 16).exp()
    line = torch.linspace(-1.6, 1.6, 500)
    density = (line - mean).div(2 * width).cosh().pow(-2) / (4 * width)
    ax.bar(levels, mass, 0.12, color=COLORS["decoder"], label="mass of each level")
    ax.plot(line, density * 2 / 15, color=COLORS["exact"], label="density × bin width")
    ax.set(title=f"μ = {mean}, s = {width}: sum {mass.sum():.6f}", xlabel="grey level, −1 … 1")
    ax.set(xlim=(-1.3, 1.6), ylim=(0, 1.1))
axes[0].set_ylabel("probability")
axes[0].legend(fontsize=10)
plt.show()

# %% [markdown]
# *What to see.* Left: a wide logistic, and the bars follow the curve. Middle: one narrower than a bin. Five sixths of the mass fall on one level and nearly all the rest on its neighbour, towards which the mean leans. No bar exceeds one, however narrow the curve (it leaves the picture). Right: a mean near white. What the curve puts beyond the edge is added to the last level: exactly black and exactly white pixels are common in pictures, and cost the mixture nothing special.
#
# ### What smoothness is worth
#
# Fit both to the *same 300* grey values, without any image around them: values of the ink in full-size digits. Then score them on many others.

# %%
ink = digits.train[digits.train > 0]
ink = ink[torch.randperm(len(ink))[:20_300], None]  # values (n, 1), one channel each
few, many = ink[:300], ink[300:]


def nats(pixels, values):
    """Mean −log p of each value, the features being one constant."""
    return -pixels.log_prob(torch.ones(len(values), 1), values).mean()


likelihoods = {"table": CategoricalPixels(1), "mixture": LogisticMixturePixels(1, 1, mixtures=5)}
for pixels in likelihoods.values():
    optimizer = torch.optim.Adam(pixels.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        nats(pixels, few).backward()
        optimizer.step()
new_nats = {name: nats(pixels, many).item() for name, pixels in likelihoods.items()}

# %%
_, ax = plt.subplots(figsize=(11, 3.7))
ax.hist(255 * many[:, 0], torch.arange(257) - 0.5, density=True, color="#CCCCCC", label="data")
for name, color in [("table", "#882255"), ("mixture", COLORS["decoder"])]:
    log_p = likelihoods[name].log_prob(torch.ones(256, 1), torch.arange(256)[:, None] / 255)
    cost = f"{name}: {new_nats[name]:.2f} nats per new value"
    ax.plot(log_p.detach().exp(), color=color, label=cost, linewidth=1.5)
ax.axhline(1 / 256, color=COLORS["bound"], ls=":", label=f"know nothing: {math.log(256):.2f} nats")
ax.set(title="fitted to 300 grey values", xlabel="level", ylabel="probability", yscale="log")
ax.set_ylim(3e-4, 0.4)
ax.legend(loc="upper left", ncols=2)
plt.show()

# %% [markdown]
# *What to see.* The table learns the 300 values by heart: a spike for each and a hole between them. For new values it does worse than knowing nothing, $\ln 256$. The mixture, with its 15 numbers, is smooth. It even finds the peak close to white, which in these digits is a peak and not a spike at 255. (At level 0, which ink never has, it puts one or two percent: whatever its curves hold beyond the edge is counted there.) With millions of pixels a table catches up, and the first PixelCNN papers used one; the mixture needs fewer data, less memory and less time.
#
# **Colour.** The three channels of a pixel are three more steps of the chain rule: red, then green given red, then blue given both, $p(r)\,p(g|r)\,p(b|r,g)$. In the mixture the means shift linearly with the channels before, $\mu_g + a\,r$ and so on, and all three share the choice of the component $k$. Is all of this still a distribution over images? Count: 8 levels and one colour pixel make $8^3 = 512$ images again, and claim 1 sums over them.
#
# ## 12. Into the third slot
#
# Every model here takes latents as well. `GatedPixelCNN(latents=16)` is a decoder: `decoder(z)` returns $p(x|z)$, and each code $z$ gets a distribution over images of its own (claim 1 sums these, too). It fits into the third slot like any other:
#
# ```python
# vae = VAE(MLPEncoder(16), StandardNormal(16), GatedPixelCNN(latents=16))
# ```
#
# With `latents=(28, 2)` it takes one vector for each row of the image, which the $\delta$-VAE will need.
#
# Stop and think before you go on to notebook 09. This decoder can model the digits *without* $z$, as you have just seen. Using $z$ costs rate. When will the pair of networks bother to use it?
#
# ## Claims
#
# Each cell states a claim, tests it with a stated margin, and fails if it does not hold.

# %%
FAMILIES = {
    "PixelCNN": (PixelCNN, {"layers": 8, **SMALL}),
    "GatedPixelCNN": (GatedPixelCNN, {"layers": 5, **SMALL}),
    "PixelSNAIL": (PixelSNAIL, {}),
}
CONDITIONS = {"a class": {"classes": 3}, "z": {"latents": 2}, "z per row": {"latents": (3, 2)}}
COLOURS = torch.tensor(list(product(range(8), repeat=3))).double().view(-1, 3, 1, 1) / 7


def total(images, kind, **settings):
    """Sum of the probabilities of all images, given a random z or class where one is wanted."""
    model = kind(image_shape=images.shape[1:], channels=8, **settings).double()
    z = torch.randn(model.latents).double() if model.latents else None
    p = model(z, torch.tensor(1) if model.classes else None)
    return p.log_prob(images).exp().sum().item()


def is_one(sums):
    return max(abs(one - 1) for one in sums) < 1e-9


print("1. the probabilities of all images sum to one, to 1e-9:")
for name, (kind, settings) in FAMILIES.items():
    right = is_one(total(IMAGES, kind, **settings, **more) for more in ({}, *CONDITIONS.values()))
    print(f"   {name}, 3 × 3 pixels, alone and given {', '.join(CONDITIONS)}:", right)
    assert right
for name in ("categorical", "logistic_mixture"):
    grey = total(all_images(1, 1, 256), GatedPixelCNN, likelihood=name)
    right = is_one([grey, total(COLOURS, GatedPixelCNN, likelihood=name, levels=8)])
    print(f"   {name}, 256 grey levels, 512 colours:", right)
    assert right

# %%
print("2. by gradient, for every pixel of 6 × 6, in train mode:")
places = list(product(range(6), repeat=2))
past = torch.stack([before(6, 6, place) for place in places])  # (36, 6, 6)
rows, columns = torch.tensor(places).T.view(2, 6, 6)
cone = torch.stack([past[6 * i + j] & (columns - j <= i - rows) for i, j in places])
for name, (kind, settings) in FAMILIES.items():
    log_p = new_model(kind, (6, 6), **settings).train()().pixel_log_prob
    used = torch.stack([influence(log_p, place, (6, 6)) for place in places]) > 0
    used.view(36, 36).fill_diagonal_(False)  # a pixel's own value is what is scored
    expected, words = (cone, "its cone") if kind is PixelCNN else (past, "the past, all of it")
    print(f"   {name} uses {words}, and nothing else:", torch.equal(used, expected))
    assert torch.equal(used, expected)
print("   the cone leaves some of the past unseen:", bool(cone.sum() < past.sum()))
assert cone.sum() < past.sum()

# %%
mean_nats = {name: -value.mean().item() for name, value in scores.items()}
families = [mean_nats[name] for name in ("PixelCNN", "Gated PixelCNN", "PixelSNAIL")]
saves = max(families) < 2 / 3 * mean_nats["independent pixels"]
print("3. each family saves over a third of the nats of independent pixels:", saves)
gain = mean_nats["Gated PixelCNN"] - mean_nats["Gated, given the class"]
print("   being told the class saves between 0.5 and 8 nats:", 0.5 < gain < 8)
print("   and Bayes' rule then names over 80 % of the test digits:", accuracy > 0.8)
assert saves and 0.5 < gain < 8 and accuracy > 0.8
smooth = new_nats["mixture"] < 5.2 < math.log(256) < new_nats["table"]
print("   the mixture scores new values better than knowing nothing, the table worse:", smooth)
assert smooth

# %%
bit_for_bit = torch.equal(cached, naive) and torch.equal(cached, by_hand)
print("4. cached, naive and by hand draw the same digits, bit for bit:", bit_for_bit)
generator, halves = torch.Generator(), []
for use_cache in (True, False):
    options = {"known": chosen.double(), "mask": upper, "cached": use_cache}
    halves.append(exact().sample((10,), generator=generator.manual_seed(SEED), **options))
kept = torch.equal(halves[0][..., :half, :], chosen[..., :half, :].double())
same_halves = torch.equal(*halves) and kept
print("   also when the upper half is given, which both keep:", same_halves)
ratios = timed[:, 1] / timed[:, 0]
faster, grows = bool(ratios[-1] > 20), bool(ratios[-1] > 1.5 * ratios[1])
print("   cached is over 20 × faster at 28 × 28:", faster)
print("   and the factor grows by over one half from 14 × 14 to 28 × 28:", grows)
assert bit_for_bit and same_halves and faster and grows

# %% [markdown]
# ## Exercises
#
# From easy to hard. Replace each `...`; the cell then says whether yours is right. Solutions with explanations are in `notebooks/solutions/08_build_a_pixelcnn.py`.
#
# **1. Bits per pixel.** Papers report bits per pixel (for colour: per channel). Convert nats per image.

# %%
from vaelib.teaching.exercises import check


def bits_per_pixel(nats, pixels):
    return ...  # your formula


check(bits_per_pixel(81.5, pixels=784), 0.149974)

# %% [markdown]
# **2. How deep?** A Gated PixelCNN has a first layer of kernel size $f$ and $L$ further layers of size $k$. Of the pixel in the lower right corner of an $n \times n$ image we want every pixel before to be seen. How many further layers are needed at least? A layer reaches as far as its radius, $(k-1)/2$, upwards and to the sides. The check asks the gradient.


# %%
def layers_needed(n, kernel, first_kernel):
    return ...  # the smallest L


def layers_by_gradient(n, kernel, first_kernel):
    for layers in range(1, 30):
        sizes = {"layers": layers, "kernel": kernel, "first_kernel": first_kernel}
        model = new_model(GatedPixelCNN, (n, n), **sizes)
        seen = influence(model().pixel_log_prob, (n - 1, n - 1), (n, n)) > 0
        if seen.flatten()[:-1].all():
            return layers


torch.manual_seed(SEED)
cases = [(8, 3, 3), (8, 3, 7), (11, 5, 7)]
true = [layers_by_gradient(*case) for case in cases]
check(... if layers_needed(8, 3, 3) is ... else [layers_needed(*case) for case in cases], true)

# %% [markdown]
# **3. Count the blind.** For $3\times3$ masks and as many layers as you like: how many past pixels are invisible to pixel $(i, j)$ of an image with `width` columns?


# %%
def blind_pixels(i, j, width):
    return ...  # a number


deep = new_model(PixelCNN, (7, 7), layers=10, **SMALL)
true = []
for place in [(0, 3), (2, 1), (6, 0)]:
    kinds = kinds_of(influence(deep().pixel_log_prob, place, (7, 7)), place)
    true.append((kinds == BLIND).sum().item())
answers = [blind_pixels(i, j, 7) for i, j in [(0, 3), (2, 1), (6, 0)]]
check(answers, true)

# %% [markdown]
# **4. A detector of leaks.** Write a function that takes `pixel_log_prob` and says whether any pixel of a $5\times5$ image uses its future, or another image of the batch. Four networks are waiting. One is sound. One feeds $h$ back into $v$. Two are sound in all their masks: one of these has a BatchNorm, the other subtracts from each feature its mean over the batch, position by position. Which of them would you have suspected?


# %%
class FedBack(TwoStacks):
    def forward(self, x):
        v = h = 2 * x.movedim(1, -1) - 1
        for down, right, link in zip(self.down, self.right, self.link, strict=True):
            v, h = torch.tanh(down(v)), torch.tanh(right(h))
            v, h = v + link(h), h + link(v)  # both ways
        return self.out(h).movedim(-1, 1)


class Centred(nn.Module):
    def forward(self, h):  # (B, C, H, W)
        return h - h.mean(0, keepdim=True)


def masked_around(layer):
    return nn.Sequential(MaskedConv("A", 1, 8, 3), layer, MaskedConv("B", 8, 1, 3))


torch.manual_seed(SEED)
suspects = [TwoStacks(8, 3), FedBack(8, 3), *map(masked_around, [nn.BatchNorm2d(8), Centred()])]


# %%
def leaks(pixel_log_prob):
    return ...  # True or False


answers = [leaks(by_pixel(suspect.double().train())) for suspect in suspects]
check(answers, [False, True, True, True])

# %% [markdown]
# **5. Temperature.** Samples look cleaner if every pixel is drawn from $p(x_i|x_{<i})^{1/T}$, normalised, with $T < 1$. Is the result the same as drawing whole images from $p(x)^{1/T}$, normalised? Write the first as a function of `log_p` and `log_other`, the log probabilities $\log p(x_i | x_{<i})$ of each pixel's value and of the opposite value, both $(512, 3, 3)$. The cell computes the total variation distance $\frac12\sum_x |p_1(x) - p_2(x)|$ of the two. Is it zero? Why not?


# %%
def tempered_by_pixel(log_p, log_other, temperature):
    return ...  # log probability of each image, (512,)


torch.manual_seed(SEED)
model = new_model(GatedPixelCNN, (3, 3), layers=2, **SMALL)
for parameter in model.parameters():
    nn.init.normal_(parameter, std=0.7)  # far from uniform
log_p = model().pixel_log_prob(IMAGES).detach()
log_other = torch.log(-torch.expm1(log_p))
by_image = (log_p.sum((1, 2)) / 0.5).softmax(0)
for parameter in model.pixels.logits.parameters():
    parameter.data *= 2  # twice the logits is half the temperature
true_by_pixel = model().log_prob(IMAGES).exp().detach()
yours = tempered_by_pixel(log_p, log_other, 0.5)
distance = ... if yours is ... else 0.5 * (yours.exp() - by_image).abs().sum()
check(distance, 0.5 * (true_by_pixel - by_image).abs().sum())

# %% [markdown]
# ## Further reading
#
# - A. van den Oord, N. Kalchbrenner & K. Kavukcuoglu (2016), *Pixel Recurrent Neural Networks*, [arXiv 1601.06759](https://arxiv.org/abs/1601.06759): PixelCNN and PixelRNN; masks of kind A and B, 256-way softmax.
# - A. van den Oord et al. (2016), *Conditional Image Generation with PixelCNN Decoders*, [arXiv 1606.05328](https://arxiv.org/abs/1606.05328): the blind spot, the two stacks, gates, conditions.
# - T. Salimans, A. Karpathy, X. Chen & D. P. Kingma (2017), *PixelCNN++*, [arXiv 1701.05517](https://arxiv.org/abs/1701.05517): the discretised logistic mixture.
# - X. Chen, N. Mishra, M. Rohaninejad & P. Abbeel (2018), *PixelSNAIL: An Improved Autoregressive Generative Model*, [arXiv 1712.09763](https://arxiv.org/abs/1712.09763): causal attention for images.
# - P. Ramachandran et al. (2017), *Fast Generation for Convolutional Autoregressive Models*, [arXiv 1704.06001](https://arxiv.org/abs/1704.06001): the cache.
# - B. J. Frey (1998), *Graphical Models for Machine Learning and Digital Communication*, MIT Press; H. Larochelle & I. Murray (2011), *The Neural Autoregressive Distribution Estimator*, AISTATS: the triangular matrix of section 1, and what became of it.
# - P. Lippe, *UvA Deep Learning Tutorials*, [tutorial 12](https://uvadlc-notebooks.readthedocs.io): autoregressive image modelling, with receptive fields drawn by gradient.
#
# **Next:** notebook 09 puts this decoder into a VAE, and watches it ignore the latents.
