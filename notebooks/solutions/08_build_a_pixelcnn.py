# %% [markdown]
# # Solutions 08 · Build a PixelCNN
#
# The exercises of `notebooks/08_build_a_pixelcnn.ipynb`, solved and explained. This script runs by itself; each answer is checked by an `assert`.

# %%
import math
from itertools import product

import torch
from torch import nn
from torch.nn import functional as F

from vaelib.pixelcnn import GatedPixelCNN, PixelCNN
from vaelib.pixelcnn.layers import horizontal_conv, vertical_conv

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

SMALL = {"kernel": 3, "first_kernel": 3}


def by_pixel(network):
    """Turn a network of logits into log p of each pixel, (B, 1, H, W) to (B, H, W)."""
    return lambda x: -F.binary_cross_entropy_with_logits(network(x), x, reduction="none").squeeze(1)


def used_pixels(pixel_log_prob, pixel, size, draws=12):
    """Whether log p(x_i | x_<i) depends on each pixel, by gradient, (H, W)."""
    x = torch.rand(draws, 1, *size).round().requires_grad_()
    chosen = pixel_log_prob(x)[:, pixel[0], pixel[1]].sum()
    return torch.autograd.grad(chosen, x)[0].abs().sum((0, 1)) > 0


# %% [markdown]
# **1. Bits per pixel.** A nat is $1/\ln 2 \approx 1.44$ bits; then share among the pixels. For colour divide by the number of *channels times pixels*: an image of $32\times32$ pixels in colour counts as 3,072.


# %%
def bits_per_pixel(nats, pixels):
    return nats / (math.log(2) * pixels)


assert math.isclose(bits_per_pixel(81.5, 784), 0.149974, abs_tol=1e-6)
assert math.isclose(bits_per_pixel(784 * math.log(2), 784), 1)  # a coin toss for each pixel
print("1.", round(bits_per_pixel(81.5, 784), 3), "bits per pixel")

# %% [markdown]
# **2. How deep?** The pixel that is hardest to reach is the opposite corner: $n - 1$ rows up *and* $n - 1$ columns to the left. A layer of the vertical stack moves up and sideways at once, so it is enough to count in one direction. The first layer reaches $(f-1)/2$ pixels, each further one $(k-1)/2$:
#
# $$\frac{f-1}{2} + L\,\frac{k-1}{2} \ge n - 1.$$
#
# Pixels of the own row are reached by the horizontal stack, with the same radius. So for MNIST ($n = 28$) with kernels of 3 after a first one of 7, twenty-four layers are needed. A deep PixelCNN is deep for this reason too.


# %%
def layers_needed(n, kernel, first_kernel):
    missing = n - 1 - (first_kernel - 1) // 2
    return max(1, math.ceil(missing / ((kernel - 1) // 2)))


for n, kernel, first_kernel in [(8, 3, 3), (8, 3, 7), (11, 5, 7)]:
    right = layers_needed(n, kernel, first_kernel)
    for layers in (right - 1, right):  # one fewer is too few
        sizes = {"layers": layers, "kernel": kernel, "first_kernel": first_kernel}
        model = GatedPixelCNN(image_shape=(1, n, n), channels=8, **sizes)
        seen = used_pixels(model().pixel_log_prob, (n - 1, n - 1), (n, n))
        assert bool(seen.flatten()[:-1].all()) == (layers == right)
assert layers_needed(28, 3, 7) == 24
print("2.", [layers_needed(*case) for case in [(8, 3, 3), (8, 3, 7), (11, 5, 7)]])

# %% [markdown]
# **3. Count the blind.** From pixel $(i, j)$, the row $d$ above is seen up to column $j + d$: each step up moves at most one column to the right. Invisible are the columns from $j + d + 1$ to the last one, `width - 1`. That makes `width - 1 - j - d` pixels, or none if this is negative. Sum over the $i$ rows above.


# %%
def blind_pixels(i, j, width):
    return sum(max(0, width - 1 - j - d) for d in range(1, i + 1))


deep = PixelCNN(image_shape=(1, 7, 7), channels=8, layers=10, **SMALL)
order = torch.arange(49).view(7, 7)
for place in [(0, 3), (2, 1), (6, 0), (6, 3), (4, 6)]:
    past = order < order[place]
    unseen = past & ~used_pixels(deep().pixel_log_prob, place, (7, 7))
    assert unseen.sum() == blind_pixels(*place, 7)
print("3.", [blind_pixels(i, j, 7) for i, j in [(0, 3), (2, 1), (6, 0)]])

# %% [markdown]
# **4. A detector of leaks.** Take the gradient of each pixel's $\log p$ with respect to *the whole batch*. Allowed are the pixels before it and the pixel itself (its value is what is scored), in its own image only. Anything else is a leak.
#
# The third network is the one that few suspect. Its masks are right, and in evaluation mode it is sound. But in training mode BatchNorm subtracts a mean over *all positions and all images*, future pixels among them. Each sum over all images then differs from one, and the training loss flatters itself. That is why no model of this course has a BatchNorm.
#
# The fourth never looks into the future. Its mean runs over images alone, at one position. But then $\log p$ of one image depends on what else is in the batch, and the product over a batch is no distribution over images. A detector that tries a single image cannot see this, nor one that allows the pixels before in *every* image.
#
# The second is `FedBack`. There $h$ has seen the pixels to the left in its own row; $v$ takes this up and spreads it to the *left* as well, to places that have yet to predict those pixels.


# %%
def leaks(pixel_log_prob, size=5, batch=3):
    x = torch.rand(batch, 1, size, size).round().requires_grad_()
    log_p = pixel_log_prob(x).flatten(1)  # (batch, pixels)
    for pixel in range(size * size):
        gradient = torch.autograd.grad(log_p[0, pixel], x, retain_graph=True)[0].flatten(1)
        gradient[0, : pixel + 1] = 0  # these may be used
        if gradient.any():
            return True
    return False


class MaskedConv(nn.Conv2d):
    """The masked convolution of section 2."""

    def __init__(self, kind, inputs, outputs, size):
        super().__init__(inputs, outputs, size, padding=size // 2)
        mask = torch.zeros(size, size)
        mask[: size // 2] = 1
        mask[size // 2, : size // 2 + (kind == "B")] = 1
        self.register_buffer("mask", mask)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class TwoStacks(nn.Module):
    """The two stacks of section 4; ``fed_back`` links them both ways."""

    def __init__(self, channels, layers, fed_back=False):
        super().__init__()
        sizes = [("A", 1)] + [("B", channels)] * (layers - 1)
        self.down = nn.ModuleList(vertical_conv(k, n, channels, 3) for k, n in sizes)
        self.right = nn.ModuleList(horizontal_conv(k, n, channels, 3) for k, n in sizes)
        self.link = nn.ModuleList(nn.Linear(channels, channels) for _ in sizes)
        self.out, self.fed_back = nn.Linear(channels, 1), fed_back

    def forward(self, x):
        v = h = 2 * x.movedim(1, -1) - 1
        for down, right, link in zip(self.down, self.right, self.link, strict=True):
            v, h = torch.tanh(down(v)), torch.tanh(right(h))
            v, h = v + link(h) if self.fed_back else v, h + link(v)
        return self.out(h).movedim(-1, 1)


class Centred(nn.Module):
    """Subtract the mean over the batch."""

    def forward(self, h):
        return h - h.mean(0, keepdim=True)


def masked_around(layer):
    """Right masks, and a layer between them."""
    return nn.Sequential(MaskedConv("A", 1, 8, 3), layer, MaskedConv("B", 8, 1, 3))


suspects = [TwoStacks(8, 3), TwoStacks(8, 3, fed_back=True)]
suspects += [masked_around(layer) for layer in (nn.BatchNorm2d(8), Centred())]
answers = [leaks(by_pixel(suspect.train())) for suspect in suspects]
assert answers == [False, True, True, True]
evaluated = masked_around(nn.BatchNorm2d(8)).eval()
assert not leaks(by_pixel(evaluated))  # this leak is one of training only
assert not leaks(by_pixel(masked_around(Centred())), batch=1)  # and this one of several images
print("4. leaks:", answers)

# %% [markdown]
# **5. Temperature.** They are not the same. Drawing pixel by pixel normalises *each conditional* by its own sum, $\sum_{x_i} p(x_i|x_{<i})^{1/T}$, and this number depends on the pixels before. Drawing whole images from $p(x)^{1/T}$ has one normaliser for all. The difference is foresight: the tempered conditional of the first pixel looks at that pixel alone, whereas $p(x)^{1/T}$ asks how sharp everything is that may follow. Only if the pixels are independent (or $T = 1$) do the two agree.


# %%
def tempered_by_pixel(log_p, log_other, temperature):
    log_p, log_other = log_p / temperature, log_other / temperature
    return (log_p - torch.logaddexp(log_p, log_other)).sum((1, 2))


def distance_of_temperings(log_p):
    """Total variation distance of the two, from log p of each pixel (512, 3, 3)."""
    log_other = torch.log(-torch.expm1(log_p))
    by_image = (log_p.sum((1, 2)) / 0.5).softmax(0)
    by_pixel = tempered_by_pixel(log_p, log_other, 0.5).exp()
    assert torch.isclose(by_pixel.sum(), torch.tensor(1.0))  # both are distributions
    return by_pixel, 0.5 * (by_pixel - by_image).abs().sum()


images = torch.tensor(list(product([0.0, 1.0], repeat=9))).view(-1, 1, 3, 3)  # all 512
model = GatedPixelCNN(image_shape=(1, 3, 3), channels=8, layers=2, **SMALL)
for parameter in model.parameters():
    nn.init.normal_(parameter, std=0.7)
yours, distance = distance_of_temperings(model().pixel_log_prob(images).detach())
for parameter in model.pixels.logits.parameters():
    parameter.data *= 2  # twice the logits is half the temperature
assert torch.allclose(yours, model().log_prob(images).exp(), rtol=0, atol=1e-12)
assert distance > 0.01

coins = torch.rand(1, 3, 3)  # independent pixels, each with its own probability of being white
white = images.squeeze(1) == 1
_, no_distance = distance_of_temperings(torch.where(white, coins, 1 - coins).log())
assert no_distance < 1e-12
print("5. distance:", round(distance.item(), 3), "and with independent pixels: 0")
