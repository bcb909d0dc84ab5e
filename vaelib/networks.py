"""Networks without probability in them: layers in, tensors out."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Sequential):
    """Fully connected network, an activation after every layer but the last.

    Args:
        inputs: size of the input vector.
        hidden: sizes of the hidden layers; an int for a single one.
        outputs: size of the output vector.
        activation: class of the non-linearity, tanh as in Kingma & Welling (2013), appendix C.

    Shapes: ``(*batch, inputs)`` to ``(*batch, outputs)``.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int | Sequence[int],
        outputs: int,
        activation: type[nn.Module] = nn.Tanh,
    ):
        hidden = [hidden] if isinstance(hidden, int) else list(hidden)
        sizes = [inputs, *hidden, outputs]
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"expected positive layer sizes, got {sizes}")
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes[:-1]):
            layers += [nn.Linear(before, after), activation()]
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1]))

    def forward(self, x: Tensor) -> Tensor:
        check_dtype(x, next(iter(self)).weight)  # self[0] takes longer than the check
        return super().forward(x)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block nothing drops out; after it every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_dtype(x: Tensor, weight: Tensor) -> None:
    """Raise ``TypeError`` unless ``x`` has the dtype of the weights; autocast takes any float."""
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"expected {weight.dtype}, as the weights are, got {x.dtype}")


def init_normal_(module: nn.Module, std: float = 0.01) -> nn.Module:
    """Draw every weight and bias of ``module`` from N(0, std²), in place; returns the module.

    Kingma & Welling (2013), section 5, start their networks this way.
    """
    if not (std > 0 and math.isfinite(std)):
        raise ValueError(f"expected a positive finite std, got {std}")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, std)
    return module


def flatten_events(x: Tensor, event_shape: Sequence[int], name: str = "x") -> Tensor:
    """Flatten the event dimensions: ``(*batch, *event_shape)`` to ``(*batch, numel)``.

    Raises:
        ValueError: if the last dimensions of ``x`` are not ``event_shape``.
    """
    event_shape = tuple(event_shape)
    batch = x.dim() - len(event_shape)
    if batch < 0 or tuple(x.shape[batch:]) != event_shape:
        raise ValueError(f"expected {name} of shape (*batch, {event_shape}), got {tuple(x.shape)}")
    return x.flatten(batch) if event_shape else x


# What follows serves autoregressive models of images. Feature maps are (B, H, W, channels), with
# the channels last: a linear layer is then a 1×1 convolution. "Before" a pixel means above it, or
# left of it in its row.


class CausalConv2d(nn.Conv2d):
    """Convolution that looks at rows above and at its own row only.

    Output (i, j) sees rows i − kh + 1 … i and columns j − kw + 1 + right … j + right, where the
    mask is one. The rows below, zero in the masks of van den Oord et al. (2016), are left out.

    Args:
        inputs, outputs: channels.
        kernel_size: (kh, kw).
        right: how many columns to the right of the pixel are seen.
        mask: ``(kh, kw)`` of zeros and ones, multiplied into the weights; all ones by default.
        reads_image: whether the input is the image itself, which a memory need not keep.

    Shapes: ``(B, H, W, inputs)`` to ``(B, H, W, outputs)``; with a :class:`Memory` the new
    positions only, ``(B, 1, n, inputs)`` to ``(B, 1, n, outputs)``.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: tuple[int, int],
        right: int = 0,
        mask: Tensor | None = None,
        reads_image: bool = False,
    ):
        super().__init__(inputs, outputs, kernel_size)
        height, width = kernel_size
        self.left, self.right, self.above = width - 1 - right, right, height - 1
        self.reads_image = reads_image
        mask = torch.ones(kernel_size) if mask is None else mask
        if tuple(mask.shape) != tuple(kernel_size):
            raise ValueError(f"expected a mask of shape {kernel_size}, got {tuple(mask.shape)}")
        self.register_buffer("mask", mask, persistent=False)

    def kernel(self) -> Tensor:
        """The masked weights, ``(outputs, inputs, kh, kw)``."""
        return self.weight * self.mask

    def forward(self, x: Tensor, memory: "Memory | None" = None) -> Tensor:
        """Convolve the whole map or, with a memory, the positions that are new."""
        if memory is not None:
            return memory.convolve(self, x)
        padded = F.pad(x, (0, 0, self.left, self.right, self.above, 0))
        return _convolve(padded, self.kernel(), self.bias)


def _convolve(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Convolution without padding of channels-last ``(B, H, W, C)``."""
    return F.conv2d(x.permute(0, 3, 1, 2), kernel, bias).permute(0, 2, 3, 1)


def square_conv(kind: str, inputs: int, outputs: int, size: int) -> CausalConv2d:
    """Masked convolution of a PixelCNN, ``size`` × ``size`` without the rows below.

    Kind ``"A"``, for the image itself, leaves out the pixel; kind ``"B"``, for features, which
    have not seen their own pixel, keeps it. van den Oord et al. (2016), *Pixel Recurrent Neural
    Networks*, figure 2.
    """
    radius = _radius(kind, size)
    mask = torch.ones(radius + 1, size)
    mask[-1, radius + (kind == "B") :] = 0
    return CausalConv2d(inputs, outputs, (radius + 1, size), radius, mask, kind == "A")


def vertical_conv(kind: str, inputs: int, outputs: int, size: int) -> CausalConv2d:
    """Convolution of the vertical stack: all columns within reach, in rows above.

    Kind ``"A"`` leaves out the pixel's own row; kind ``"B"`` keeps it, for features that have not
    seen their own row. van den Oord et al. (2016), *Conditional Image Generation with PixelCNN
    Decoders*, figure 1.
    """
    radius = _radius(kind, size)
    mask = torch.ones(radius + 1, size)
    mask[-1] = kind == "B"
    return CausalConv2d(inputs, outputs, (radius + 1, size), radius, mask, kind == "A")


def horizontal_conv(kind: str, inputs: int, outputs: int, size: int) -> CausalConv2d:
    """Convolution of the horizontal stack: the pixel's own row, to the left.

    Kinds as in :func:`square_conv`.
    """
    radius = _radius(kind, size)
    mask = torch.ones(1, radius + 1)
    mask[-1, -1] = kind == "B"
    return CausalConv2d(inputs, outputs, (1, radius + 1), 0, mask, kind == "A")


def _radius(kind: str, size: int) -> int:
    if kind not in ("A", "B"):
        raise ValueError(f"expected mask kind 'A' or 'B', got {kind!r}")
    if size < 3 or size % 2 == 0:
        raise ValueError(f"expected an odd kernel size of at least 3, got {size}")
    return size // 2


class Memory:
    """What causal layers remember while an image is drawn pixel by pixel.

    A layer called with a memory computes its outputs at ``row``, ``columns`` only. Each
    convolution keeps the few rows that its kernel covers, attention keeps all positions so far.
    A memory serves one batch of images, drawn in order, with gradients switched off.

    Args:
        height, width: size of the image.
    """

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width
        self.row, self.columns = 0, slice(0, width)
        self._windows: dict[nn.Module, Tensor] = {}
        self._kernels: dict[nn.Module, Tensor] = {}
        self._attended: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def move(self, row: int, first: int, last: int) -> None:
        """Go on to the columns ``first`` … ``last`` − 1 of ``row``."""
        if row != self.row:
            for window in self._windows.values():
                window[:, :-1] = window[:, 1:].clone()
        self.row, self.columns = row, slice(first, last)

    def crop(self, x: Tensor) -> Tensor:
        """The new positions of a map ``(B, H or 1, W or 1, C)``."""
        rows = x if x.shape[1] == 1 else x[:, self.row : self.row + 1]
        return rows if rows.shape[2] == 1 else rows[:, :, self.columns]

    def convolve(self, conv: CausalConv2d, x: Tensor) -> Tensor:
        """Outputs of ``conv`` at the new positions, ``(B, 1, n, outputs)``."""
        padded = self._image(conv, x) if conv.reads_image else self._window(conv, x)
        columns = slice(self.columns.start, self.columns.stop + conv.left + conv.right)
        patch = padded[:, :, columns]  # (B, kh, n + kw − 1, inputs)
        kernel = self._kernel(conv)
        if patch.shape[1:3] != conv.kernel_size:
            return _convolve(patch, kernel, conv.bias)
        # One pixel is one matrix product, far cheaper than a call to the convolution.
        flat = kernel.permute(0, 2, 3, 1).flatten(1)  # a view: see _kernel
        return F.linear(patch.flatten(1), flat, conv.bias)[:, None, None]

    def attend(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a pixel's key and value ``(B, heads, 1, d)``; all so far, ``(B, heads, p, d)``."""
        if layer not in self._attended:
            pixels = self.height * self.width
            self._attended[layer] = tuple(
                new.new_empty(*new.shape[:2], pixels, new.shape[3]) for new in (key, value)
            )
        position = self.row * self.width + self.columns.start
        keys, values = self._attended[layer]
        keys[:, :, position], values[:, :, position] = key[:, :, 0], value[:, :, 0]
        return keys[:, :, : position + 1], values[:, :, : position + 1]

    def _image(self, conv: CausalConv2d, x: Tensor) -> Tensor:
        """The rows of a whole image that the kernel covers, padded."""
        start = self.row - conv.above
        rows = x[:, max(start, 0) : self.row + 1]
        return F.pad(rows, (0, 0, conv.left, conv.right, max(-start, 0), 0))

    def _window(self, conv: CausalConv2d, x: Tensor) -> Tensor:
        """The same rows of a feature map that comes in piece by piece."""
        if conv not in self._windows:
            shape = (len(x), conv.above + 1, self.width + conv.left + conv.right, x.shape[-1])
            self._windows[conv] = x.new_zeros(shape)
        window = self._windows[conv]
        # Columns further right still hold an older row: only masked weights meet them.
        window[:, -1, conv.left + self.columns.start : conv.left + self.columns.stop] = x[:, 0]
        return window

    def _kernel(self, conv: CausalConv2d) -> Tensor:
        """Masked weights with the channels last in memory."""
        if conv not in self._kernels:
            self._kernels[conv] = conv.kernel().contiguous(memory_format=torch.channels_last)
        return self._kernels[conv]


def gate(x: Tensor, dim: int = -1) -> Tensor:
    """tanh(a) · sigmoid(b) of the two halves of the channels, ``(…, 2·C)`` to ``(…, C)``.

    van den Oord et al. (2016), *Conditional Image Generation with PixelCNN Decoders*, equation 2.
    """
    value, opening = x.chunk(2, dim)
    return value.tanh() * opening.sigmoid()


class ContextBias(nn.Linear):
    """A bias from maps of context, each ``(B or 1, H or 1, W or 1, inputs)``: their projected sum.

    Each map is projected at its own size before the maps meet: one vector for an image costs one
    product, not one for each pixel.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The bias, ``(B or 1, H or 1, W or 1, outputs)``."""
        return sum(F.linear(one, self.weight) for one in maps)


class MaskedBlock(nn.Module):
    """Residual block of a plain PixelCNN: h + W relu(conv(relu(h)) + context).

    After van den Oord et al. (2016), *Pixel Recurrent Neural Networks*, figure 5.
    """

    def __init__(self, channels: int, size: int, context: int):
        super().__init__()
        self.conv = square_conv("B", channels, channels, size)
        self.context = ContextBias(context, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, h: Tensor, maps: Sequence[Tensor], memory: Memory | None = None) -> Tensor:
        """``(B, H, W, channels)`` to the same shape."""
        inside = self.conv(h.relu(), memory) + self.context(maps)
        return h + self.out(inside.relu())


class GatedLayer(nn.Module):
    """One layer of a Gated PixelCNN: a vertical stack v and a horizontal stack h.

        a = conv_v(v),   v ← v + gate(a + context)
        h ← h + W gate(conv_h(h) + U a + context)

    v at row i has seen all rows above i, without a blind spot; h adds the pixels to the left.
    van den Oord et al. (2016), *Conditional Image Generation with PixelCNN Decoders*, figure 2;
    the residual connection of v is ours, deep vertical stacks fade without it. The ``last`` layer
    leaves v as it is, since nothing reads it.
    """

    def __init__(self, channels: int, size: int, context: int, last: bool = False):
        super().__init__()
        self.vertical = vertical_conv("B", channels, 2 * channels, size)
        self.horizontal = horizontal_conv("B", channels, 2 * channels, size)
        self.link = nn.Linear(2 * channels, 2 * channels)
        self.vertical_context = None if last else ContextBias(context, 2 * channels)
        self.horizontal_context = ContextBias(context, 2 * channels)
        self.out = nn.Linear(channels, channels)

    def down(
        self, v: Tensor, maps: Sequence[Tensor], memory: Memory | None = None
    ) -> tuple[Tensor, Tensor]:
        """The next v, and what h takes from it, ``(B, H, W, 2·channels)``."""
        a = self.vertical(v, memory)
        across = self.link(a) + self.horizontal_context(maps)
        if self.vertical_context is not None:
            v = v + gate(a + self.vertical_context(maps))
        return v, across

    def across(self, h: Tensor, from_above: Tensor, memory: Memory | None = None) -> Tensor:
        """The next h, ``(B, H, W, channels)``."""
        return h + self.out(gate(self.horizontal(h, memory) + from_above))


class GatedResidual(nn.Module):
    """Gated residual block of a PixelSNAIL, with 2×2 kernels that look up and left.

        h + value · sigmoid(gate),   (value, gate) = conv(elu(conv(elu(h)) + context)) + context

    Chen et al. (2018), *PixelSNAIL*, figure 3, after Salimans et al. (2017).
    """

    def __init__(self, channels: int, context: int, dropout: float = 0.0):
        super().__init__()
        self.first = CausalConv2d(channels, channels, (2, 2))
        self.second = CausalConv2d(channels, 2 * channels, (2, 2))
        self.first_context = ContextBias(context, channels)
        self.second_context = ContextBias(context, 2 * channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, maps: Sequence[Tensor], memory: Memory | None = None) -> Tensor:
        """``(B, H, W, channels)`` to the same shape."""
        inside = self.first(F.elu(h), memory) + self.first_context(maps)
        inside = self.second(self.dropout(F.elu(inside)), memory) + self.second_context(maps)
        value, opening = inside.chunk(2, dim=-1)
        return h + value * opening.sigmoid()


def previous_pixel(x: Tensor, memory: Memory | None = None) -> Tensor:
    """The image, one pixel later in raster order: at each position the pixel before, zero at first.

    ``(B, H, W, C)`` to the same shape; with a memory the new position only, ``(B, 1, 1, C)``.
    """
    if memory is not None:
        position = memory.row * memory.width + memory.columns.start
        if position == 0:
            return torch.zeros_like(x[:, :1, :1])
        row, column = divmod(position - 1, memory.width)
        return x[:, row : row + 1, column : column + 1]
    sequence = x.flatten(1, 2)  # (B, H·W, C)
    return F.pad(sequence, (0, 0, 1, 0))[:, :-1].reshape(x.shape)


class CausalAttention(nn.Module):
    """Every position attends to all positions before it and to itself, in raster order.

        h + W softmax(Q Kᵀ / √d + causal mask) V,   (Q, K, V) = U [elu(h), previous pixel]

    Position i holds features h and pixel i − 1, so that i looks directly at all pixels before it
    and at none other. Features alone would leave blind spots: the last pixel of the row above may
    be in no feature yet. Chen et al. (2018), *PixelSNAIL*, section 2.2, have the same by keys that
    contain pixel i and a mask that leaves position i out.

    Args:
        channels: of h.
        image_channels: of the image.
        heads: how many softmaxes share the channels.
    """

    def __init__(self, channels: int, image_channels: int, heads: int = 1):
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"expected heads that divide {channels} channels, got {heads}")
        self.heads = heads
        self.inputs = nn.Linear(channels + image_channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, h: Tensor, previous: Tensor, memory: Memory | None = None) -> Tensor:
        """``(B, H, W, channels)`` and :func:`previous_pixel` to the shape of h."""
        read = self.inputs(torch.cat([F.elu(h), previous], -1)).flatten(1, 2)
        parts = read.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts  # each (B, heads, H·W, d)
        causal = memory is None
        if memory is not None:
            key, value = memory.attend(self, key, value)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return h + self.out(mixed.transpose(1, 2).reshape(h.shape))


class CausalMixing(nn.Module):
    """Row t gets a mixture of the vectors z_1 … z_t, and of no other.

        c_t = Σ_{s ≤ t} m_{t,s} ⊙ (W z_s + b)        one weight m per channel

    Shapes: ``(B, rows, inputs)`` to ``(B, rows, outputs)``.
    """

    def __init__(self, rows: int, inputs: int, outputs: int):
        super().__init__()
        self.inputs = nn.Linear(inputs, outputs)
        near = torch.eye(rows).unsqueeze(-1)  # start with the row's own vector
        self.mix = nn.Parameter(near + torch.randn(rows, rows, outputs) / math.sqrt(rows))
        self.register_buffer("past", torch.ones(rows, rows).tril().unsqueeze(-1), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """Mix over the past."""
        return torch.einsum("tsk,bsk->btk", self.mix * self.past, self.inputs(z))
