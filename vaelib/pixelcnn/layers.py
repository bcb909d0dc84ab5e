"""Causal layers, and the cache that makes drawing fast.

Feature maps are ``(B, H, W, channels)``: with the channels last, a linear layer is a 1×1
convolution. "Before" a pixel means above it, or left of it in its row. A layer that is called
with a :class:`Cache` computes its outputs at the new positions only.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelib.networks import gate, is_int


class CausalConv2d(nn.Conv2d):
    """Convolution that covers rows above and the pixel's own row: rows below are not stored.

    The ``mask`` ``(kh, kw)``, whose last row is the pixel's own, multiplies the weights; ``right``
    of its columns lie to the right of the pixel. An input that is the image itself a cache need
    not copy. Shapes: ``(B, H, W, inputs)`` to ``(B, H, W, outputs)``, with a cache H = 1, W = n.
    """

    def __init__(self, inputs: int, outputs: int, mask: Tensor, right=0, reads_image=False):
        super().__init__(inputs, outputs, tuple(mask.shape))
        self.left, self.right, self.above = mask.shape[1] - 1 - right, right, mask.shape[0] - 1
        self.reads_image = reads_image
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, cache: "Cache | None" = None) -> Tensor:
        if cache is not None:
            return cache.convolve(self, x)
        padded = F.pad(x, (0, 0, self.left, self.right, self.above, 0))
        kernel = self.weight * self.mask
        return F.conv2d(padded.permute(0, 3, 1, 2), kernel, self.bias).permute(0, 2, 3, 1)


def square_conv(kind: str, inputs: int, outputs: int, size: int) -> CausalConv2d:
    """Masked convolution of a PixelCNN; 3×3, row by row: A 111 100 000, B 111 110 000.

    A reads the image and leaves out the pixel itself; B reads features that have not seen their own
    pixel. van den Oord et al. (2016), *Pixel Recurrent Neural Networks*, figure 2.
    """
    mask, radius = _ones(kind, size)
    mask[-1, radius + (kind == "B") :] = 0
    return CausalConv2d(inputs, outputs, mask, radius, kind == "A")


def vertical_conv(kind: str, inputs: int, outputs: int, size: int) -> CausalConv2d:
    """Convolution of the vertical stack, over the rows above: A 111 000 000, B 111 111 000.

    Features that B reads have not seen their own row. van den Oord et al. (2016), *Conditional
    Image Generation with PixelCNN Decoders*, figure 1.
    """
    mask, radius = _ones(kind, size)
    mask[-1] = kind == "B"
    return CausalConv2d(inputs, outputs, mask, radius, kind == "A")


def horizontal_conv(kind: str, inputs: int, outputs: int, size: int) -> CausalConv2d:
    """Convolution of the horizontal stack, the pixel's own row to the left: A 100, B 110."""
    mask = torch.ones(1, _ones(kind, size)[1] + 1)
    mask[-1, -1] = kind == "B"
    return CausalConv2d(inputs, outputs, mask, 0, kind == "A")


def _ones(kind: str, size: int) -> tuple[Tensor, int]:
    """A mask over the rows above and the pixel's own, and how far it reaches."""
    if kind not in ("A", "B"):
        raise ValueError(f"expected mask kind 'A' or 'B', got {kind!r}")
    if not is_int(size) or size < 3 or size % 2 == 0:
        raise ValueError(f"expected an odd kernel size of at least 3, got {size}")
    radius = int(size) // 2
    return torch.ones(radius + 1, 2 * radius + 1), radius


class Cache:
    """Activations that causal layers keep while a batch of images is drawn pixel by pixel.

    Convolutions keep the few rows that their kernels cover, attention the keys and values of all
    positions so far. A cache serves one batch, drawn in raster order, without gradients.
    """

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width
        self.row, self.columns, self.position = 0, slice(0, width), 0  # position in raster order
        self._windows, self._kernels, self._attended = {}, {}, {}  # of each layer

    def move(self, row: int, first: int, last: int) -> None:
        """Go on to the columns ``first`` … ``last`` − 1 of ``row``."""
        if row != self.row:
            for window in self._windows.values():
                window[:, :-1] = window[:, 1:].clone()
        self.row, self.columns, self.position = row, slice(first, last), row * self.width + first

    def crop(self, x: Tensor) -> Tensor:
        """The new positions of a map ``(B, H or 1, W or 1, C)``."""
        rows = x if x.shape[1] == 1 else x[:, self.row : self.row + 1]
        return rows if rows.shape[2] == 1 else rows[:, :, self.columns]

    def convolve(self, conv: CausalConv2d, x: Tensor) -> Tensor:
        """Outputs of ``conv`` at the new positions, ``(B, 1, n, outputs)``."""
        first, last = self.columns.start, self.columns.stop
        if conv not in self._kernels:
            kernel = conv.weight * conv.mask
            self._kernels[conv] = kernel.contiguous(memory_format=torch.channels_last)
            if not conv.reads_image:
                shape = (len(x), conv.above + 1, self.width + conv.left + conv.right, x.shape[-1])
                self._windows[conv] = x.new_zeros(shape)
        if conv.reads_image:  # x is the whole image
            rows = x[:, max(self.row - conv.above, 0) : self.row + 1]
            top = max(conv.above - self.row, 0)
            window = F.pad(rows, (0, 0, conv.left, conv.right, top, 0))
        else:  # x is the new positions. To their right the last row holds old features, masked.
            window = self._windows[conv]
            window[:, -1, conv.left + first : conv.left + last] = x[:, 0]
        patch = window[:, :, first : last + conv.left + conv.right]  # (B, kh, n + kw − 1, inputs)
        kernel = self._kernels[conv]
        if patch.shape[1:3] != conv.kernel_size:
            return F.conv2d(patch.permute(0, 3, 1, 2), kernel, conv.bias).permute(0, 2, 3, 1)
        # One pixel is one matrix product, much cheaper than a call to the convolution.
        flat = kernel.permute(0, 2, 3, 1).flatten(1)  # no copy, as the channels are last in memory
        return F.linear(patch.flatten(1), flat, conv.bias)[:, None, None]

    def attend(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store a pixel's key and value ``(B, heads, 1, d)``; all so far, ``(B, heads, p, d)``."""
        if layer not in self._attended:
            shape = (*key.shape[:2], self.height * self.width, key.shape[3])
            self._attended[layer] = key.new_empty(shape), value.new_empty(shape)
        (keys, values), position = self._attended[layer], self.position
        keys[:, :, position], values[:, :, position] = key[:, :, 0], value[:, :, 0]
        return keys[:, :, : position + 1], values[:, :, : position + 1]


class Conditioning(nn.Linear):
    """A bias from context maps, each ``(B or 1, H or 1, W or 1, inputs)``: their projected sum.

    A map is projected at its own size: one vector for an image costs one product.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        bias = F.linear(maps[0], self.weight)
        for one in maps[1:]:
            bias = bias + F.linear(one, self.weight)
        return bias


class MaskedBlock(nn.Module):
    """Residual block of a plain PixelCNN: h + W relu(conv(relu(h)) + context), of the shape of h.

    After van den Oord et al. (2016), *Pixel Recurrent Neural Networks*, figure 5.
    """

    def __init__(self, channels: int, size: int, context: int):
        super().__init__()
        self.conv = square_conv("B", channels, channels, size)
        self.context = Conditioning(context, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, h: Tensor, maps: Sequence[Tensor], cache: Cache | None = None) -> Tensor:
        return h + self.out((self.conv(h.relu(), cache) + self.context(maps)).relu())


class GatedLayer(nn.Module):
    """One layer of a Gated PixelCNN: a vertical stack v and a horizontal stack h.

        a = conv_v(v),   v ← v + gate(a + context),   h ← h + W gate(conv_h(h) + U a + context)
    v at row i has seen all rows above i, without a blind spot; h adds the pixels to the left.
    van den Oord et al. (2016), *Conditional Image Generation with PixelCNN Decoders*, figure 2. The
    residual connection of v, against a fading signal, is ours. Nothing reads the ``last`` v.
    """

    def __init__(self, channels: int, size: int, context: int, last: bool = False):
        super().__init__()
        self.vertical = vertical_conv("B", channels, 2 * channels, size)
        self.horizontal = horizontal_conv("B", channels, 2 * channels, size)
        self.link = nn.Linear(2 * channels, 2 * channels)
        self.vertical_context = None if last else Conditioning(context, 2 * channels)
        self.horizontal_context = Conditioning(context, 2 * channels)
        self.out = nn.Linear(channels, channels)

    def vertical_step(self, v: Tensor, maps: Sequence[Tensor], cache=None) -> tuple[Tensor, Tensor]:
        """The next v, and what it adds to h, U a + context, ``(B, H, W, 2·channels)``."""
        a = self.vertical(v, cache)
        to_h = self.link(a) + self.horizontal_context(maps)
        if self.vertical_context is not None:
            v = v + gate(a + self.vertical_context(maps))
        return v, to_h

    def horizontal_step(self, h: Tensor, to_h: Tensor, cache: Cache | None = None) -> Tensor:
        """The next h, ``(B, H, W, channels)``."""
        return h + self.out(gate(self.horizontal(h, cache) + to_h))


class GatedResidual(nn.Module):
    """Gated residual block of a PixelSNAIL, with 2×2 kernels that look up and left.

        h + value · sigmoid(gate),   (value, gate) = conv(elu(conv(elu(h)) + context)) + context
    Chen et al. (2018), *PixelSNAIL*, figure 3, after Salimans et al. (2017).
    """

    def __init__(self, channels: int, context: int, dropout: float = 0.0):
        super().__init__()
        self.first = CausalConv2d(channels, channels, torch.ones(2, 2))
        self.second = CausalConv2d(channels, 2 * channels, torch.ones(2, 2))
        self.first_context = Conditioning(context, channels)
        self.second_context = Conditioning(context, 2 * channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, maps: Sequence[Tensor], cache: Cache | None = None) -> Tensor:
        inside = self.first(F.elu(h), cache) + self.first_context(maps)
        inside = self.second(self.dropout(F.elu(inside)), cache) + self.second_context(maps)
        value, gate = inside.chunk(2, dim=-1)
        return h + value * gate.sigmoid()


def previous_pixel(x: Tensor, cache: Cache | None = None) -> Tensor:
    """The image shifted by one pixel in raster order, zero at the first position.

    ``(B, H, W, C)`` to the same shape; with a cache the new position only, ``(B, 1, 1, C)``.
    """
    sequence = x.flatten(1, 2)  # (B, H·W, C)
    if cache is None:
        return F.pad(sequence, (0, 0, 1, 0))[:, :-1].reshape(x.shape)
    i = cache.position
    return sequence[:, None, i - 1 : i] if i else torch.zeros_like(x[:, :1, :1])


class CausalAttention(nn.Module):
    """Every position attends to all positions before it and to itself, in raster order.

        h + W softmax(Q Kᵀ / √d + causal mask) V,   (Q, K, V) = U [elu(h), previous pixel]
    Position i holds features h and pixel i − 1, so that i reads all pixels before it, also those
    at the end of the row above. Chen et al. (2018), *PixelSNAIL*, section 2.2, have the same by
    keys that contain pixel i and a mask that leaves i out. The ``heads`` share the channels.
    """

    def __init__(self, channels: int, image_channels: int, heads: int = 1):
        super().__init__()
        if not is_int(heads) or heads < 1 or channels % heads:
            raise ValueError(f"expected heads that divide {channels} channels, got {heads}")
        self.heads = int(heads)
        self.inputs = nn.Linear(channels + image_channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, h: Tensor, previous: Tensor, cache: Cache | None = None) -> Tensor:
        inputs = self.inputs(torch.cat([F.elu(h), previous], -1)).flatten(1, 2)
        inputs = inputs.unflatten(-1, (3, self.heads, -1))
        query, key, value = inputs.permute(2, 0, 3, 1, 4)  # each (B, heads, H·W, d)
        if cache is not None:
            key, value = cache.attend(self, key, value)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        return h + self.out(mixed.transpose(1, 2).reshape(h.shape))


class CausalMixing(nn.Module):
    """Row t gets a mixture of the vectors z_1 … z_t: c_t = Σ_{s ≤ t} m_{t,s} ⊙ (W z_s + b).

    One weight m per channel. ``(B, rows, inputs)`` to ``(B, rows, outputs)``.
    """

    def __init__(self, rows: int, inputs: int, outputs: int):
        super().__init__()
        self.inputs = nn.Linear(inputs, outputs)
        own = torch.eye(rows).unsqueeze(-1)  # start with the row's own vector
        self.mix = nn.Parameter(own + torch.randn(rows, rows, outputs) / math.sqrt(rows))
        self.register_buffer("past", torch.ones(rows, rows).tril().unsqueeze(-1), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        return torch.einsum("tsk,bsk->btk", self.mix * self.past, self.inputs(z))
