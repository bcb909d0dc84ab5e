"""The PixelCNN family: three networks, each usable alone, given a class, or as a decoder given z.

How they score and draw images is in :mod:`vaelib.autoregressive`.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from vaelib.autoregressive import PixelModel
from vaelib.networks import (
    CausalAttention,
    GatedLayer,
    GatedResidual,
    MaskedBlock,
    horizontal_conv,
    previous_pixel,
    square_conv,
    vertical_conv,
)


class PixelCNN(PixelModel):
    """Masked convolutions in residual blocks; simple, with a blind spot.

    Pixels to the upper right, outside the cone of the masks, are never seen, however many layers
    there are. van den Oord, Kalchbrenner & Kavukcuoglu (2016), *Pixel Recurrent Neural Networks*.

    Args:
        layers: residual blocks after the first convolution.
        kernel, first_kernel: sizes of the masked kernels, odd.
        settings: see :class:`PixelModel`, as for the other arguments.

    >>> PixelCNN(image_shape=(1, 28, 28))().sample((4,)).shape
    torch.Size([4, 1, 28, 28])
    """

    def __init__(
        self,
        latents: int | Sequence[int] | None = None,
        image_shape: Sequence[int] = (1, 28, 28),
        channels: int = 32,
        layers: int = 4,
        kernel: int = 5,
        first_kernel: int = 7,
        **settings,
    ):
        super().__init__(latents, image_shape, channels, **settings)
        _check_count("layers", layers)
        self.first = square_conv("A", self.image_shape[0], channels, first_kernel)
        self.blocks = nn.ModuleList(
            MaskedBlock(channels, kernel, self.context_size) for _ in range(layers)
        )

    def above(self, x, maps, memory=None) -> list[Tensor]:
        """Nothing: each convolution looks up by itself."""
        return []

    def features(self, x, above, maps, memory=None) -> Tensor:
        """``(B, H, W, channels)``."""
        h = self.first(x, memory)
        for block in self.blocks:
            h = block(h, maps, memory)
        return h


class GatedPixelCNN(PixelModel):
    """Gated convolutions in a vertical and a horizontal stack, without a blind spot.

    van den Oord et al. (2016), *Conditional Image Generation with PixelCNN Decoders*.

    Args:
        layers: gated layers after the first convolutions.
        kernel, first_kernel: sizes of the kernels, odd.
        settings: see :class:`PixelModel`, as for the other arguments.

    >>> decoder = GatedPixelCNN(latents=16, image_shape=(1, 28, 28))
    >>> decoder(torch.randn(8, 16)).log_prob(torch.ones(8, 1, 28, 28)).shape
    torch.Size([8])
    """

    def __init__(
        self,
        latents: int | Sequence[int] | None = None,
        image_shape: Sequence[int] = (1, 28, 28),
        channels: int = 32,
        layers: int = 4,
        kernel: int = 5,
        first_kernel: int = 7,
        **settings,
    ):
        super().__init__(latents, image_shape, channels, **settings)
        _check_count("layers", layers)
        self.first_vertical = vertical_conv("A", self.image_shape[0], channels, first_kernel)
        self.first_horizontal = horizontal_conv("A", self.image_shape[0], channels, first_kernel)
        self.layers = nn.ModuleList(
            GatedLayer(channels, kernel, self.context_size, last=i == layers - 1)
            for i in range(layers)
        )

    def above(self, x, maps, memory=None) -> list[Tensor]:
        """The vertical stack: what each horizontal layer takes from it."""
        v, taken = self.first_vertical(x, memory), []
        for layer in self.layers:
            v, across = layer.down(v, maps, memory)
            taken.append(across)
        return taken

    def features(self, x, above, maps, memory=None) -> Tensor:
        """The horizontal stack, ``(B, H, W, channels)``."""
        h = self.first_horizontal(x, memory)
        for layer, across in zip(self.layers, above, strict=True):
            h = layer.across(h, across, memory)
        return h


class PixelSNAIL(PixelModel):
    """Gated residual blocks, and attention to all pixels before.

    Chen, Mishra, Rohaninejad & Abbeel (2018), *PixelSNAIL* (arXiv 1712.09763).

    Args:
        blocks: how many times residual blocks are followed by attention.
        residuals: gated residual blocks before each attention.
        heads: of the attention; divides ``channels``.
        dropout: probability, inside the residual blocks; drawing images switches it off.
        settings: see :class:`PixelModel`, as for the other arguments.

    >>> prior = PixelSNAIL(latents=(32, 8), image_shape=(3, 32, 32), likelihood="logistic_mixture")
    >>> prior(torch.randn(2, 32, 8)).log_prob(torch.ones(2, 3, 32, 32)).shape
    torch.Size([2])
    """

    def __init__(
        self,
        latents: int | Sequence[int] | None = None,
        image_shape: Sequence[int] = (1, 28, 28),
        channels: int = 32,
        blocks: int = 2,
        residuals: int = 2,
        heads: int = 1,
        dropout: float = 0.0,
        **settings,
    ):
        super().__init__(latents, image_shape, channels, **settings)
        _check_count("blocks", blocks)
        _check_count("residuals", residuals)
        self.first_vertical = vertical_conv("A", self.image_shape[0], channels, 3)
        self.first_horizontal = horizontal_conv("A", self.image_shape[0], channels, 3)
        self.residuals = nn.ModuleList(
            nn.ModuleList(
                GatedResidual(channels, self.context_size, dropout) for _ in range(residuals)
            )
            for _ in range(blocks)
        )
        self.attentions = nn.ModuleList(
            CausalAttention(channels, self.image_shape[0], heads) for _ in range(blocks)
        )

    def above(self, x, maps, memory=None) -> list[Tensor]:
        """The first convolution's view of the row above."""
        return [self.first_vertical(x, memory)]

    def features(self, x, above, maps, memory=None) -> Tensor:
        """``(B, H, W, channels)``."""
        h, previous = above[0] + self.first_horizontal(x, memory), previous_pixel(x, memory)
        for residuals, attention in zip(self.residuals, self.attentions, strict=True):
            for residual in residuals:
                h = residual(h, maps, memory)
            h = attention(h, previous, memory)
        return h


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"expected {name} >= 1, got {count}")
