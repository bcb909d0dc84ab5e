"""Encoders: modules that map images to the approximate posterior q(z|x)."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelib.distributions import DiagNormal
from vaelib.networks import MLP, check_dtype, flatten_events, gate, halved_sizes
from vaelib.posteriors import GaussianPosterior, Posterior


class MLPEncoder(nn.Module):
    """Gaussian recognition model with one hidden layer.

        q(z|x) = N(μ(x), diag σ²(x)),   (μ, ln σ²) = MLP(x)

    Kingma & Welling (2013), equation 9 and appendix C.2.

    Args:
        latents: number of latent variables; ``(rows, d)`` for one vector per row.
        image_shape: shape of one image, (C, H, W), or of a vector, (D,).
        hidden: units of the hidden layer(s); 500 for MNIST and 200 for Frey Face in the paper.
        posterior: the family of q(z|x), which reads the network's outputs; any diagonal Gaussian,
            :class:`vaelib.posteriors.GaussianPosterior`, by default.
        activation: of the :class:`vaelib.networks.MLP`.

    Shapes: ``(*batch, *image_shape)`` to batch ``batch`` and event ``(latents,)`` or ``(rows, d)``.

    Raises:
        ValueError: if the images do not have ``image_shape``, or the posterior not ``latents``.
    """

    def __init__(
        self,
        latents: int | Sequence[int],
        image_shape: Sequence[int] = (1, 28, 28),
        hidden: int | Sequence[int] = 500,
        posterior: Posterior | None = None,
        activation: type[nn.Module] = nn.Tanh,
    ):
        super().__init__()
        self.image_shape, self.posterior = tuple(image_shape), _head(posterior, latents)
        outputs = prod(self.posterior.raw_shape)
        self.network = MLP(prod(self.image_shape), hidden, outputs, activation)

    def forward(self, x: Tensor) -> DiagNormal:
        """The posterior q(z|x) of each image."""
        raw = self.network(flatten_events(x, self.image_shape))  # (*batch, raw)
        shape = self.posterior.raw_shape
        return self.posterior(raw if len(shape) == 1 else raw.unflatten(-1, shape))


class ConvEncoder(nn.Module):
    """Gaussian recognition model on strided convolutions: each halves the side of the map.

    Args:
        latents, posterior: as in :class:`MLPEncoder`.
        image_shape: shape of one image, (C, H, W), of any size.
        channels: of the maps, one 3×3 convolution with stride 2 each.
        activation: class of the non-linearity.

    Shapes: ``(*batch, C, H, W)`` to batch ``batch`` and event ``(latents,)`` or ``(rows, d)``.
    """

    def __init__(
        self,
        latents: int | Sequence[int],
        image_shape: Sequence[int] = (1, 28, 28),
        channels: Sequence[int] = (32, 64),
        posterior: Posterior | None = None,
        activation: type[nn.Module] = nn.ReLU,
    ):
        super().__init__()
        self.image_shape, self.posterior = tuple(image_shape), _head(posterior, latents)
        smallest, layers = halved_sizes(self.image_shape, len(channels))[-1], []
        for below, above in pairwise([self.image_shape[0], *channels]):
            layers += [nn.Conv2d(below, above, 3, stride=2, padding=1), activation()]
        raw = nn.Linear(channels[-1] * prod(smallest), prod(self.posterior.raw_shape))
        self.network = nn.Sequential(*layers, nn.Flatten(), raw)

    def forward(self, x: Tensor) -> DiagNormal:
        """The posterior q(z|x) of each image."""
        check_dtype(x, self.network[0].weight)
        batch = flatten_events(x, self.image_shape).shape[:-1]
        raw = self.network(x.reshape(-1, *self.image_shape))
        return self.posterior(raw.reshape(*batch, *self.posterior.raw_shape))


class AntiCausalEncoder(nn.Module):
    """One latent vector per row, which sees its own row and the rows that are still to come.

        h = causal network(x reversed), reversed back
        (μ_t, σ_t) = posterior family(W [mean of h over row t, mean of h over rows t … n] + b)

    A decoder that draws row t knows the rows before; z_t tells it about the others. Razavi et al.
    (2019). The network is the vertical stack of a Gated PixelCNN (mask B): each row sees itself and
    the rows above. The paper masks pixel by pixel and averages over rows; the average has then seen
    the same pixels as here.

    Args:
        latents: size d of the vector of each row.
        image_shape: shape of one image, (C, H, W); z has H rows.
        posterior: the family of q(z|x) with event (H, d), such as :class:`SequentialPosterior`
            with the correlations of the AR(1) prior; any diagonal Gaussian by default.
        channels: feature maps of each layer.
        layers: gated layers after the first convolution.
        kernel: size of the square kernels, odd.
        order: which rows z_t sees: "anti-causal" t … H; "causal" 1 … t; "unrestricted" all. The
            three have the same parameters and differ in nothing else.

    Shapes: ``(*batch, C, H, W)`` to a :class:`DiagNormal` with batch ``batch`` and event
    ``(H, d)``.

    Raises:
        ValueError: settings out of range, images without ``image_shape``, or a posterior that has
            not the event (H, d).

    >>> AntiCausalEncoder(2, (1, 28, 28))(torch.rand(8, 1, 28, 28)).event_shape
    torch.Size([28, 2])
    """

    def __init__(
        self,
        latents: int,
        image_shape: Sequence[int] = (1, 28, 28),
        posterior: Posterior | None = None,
        channels: int = 32,
        layers: int = 3,
        kernel: int = 5,
        order: str = "anti-causal",
    ):
        super().__init__()
        if order not in ("anti-causal", "causal", "unrestricted"):
            raise ValueError(
                f"expected order 'anti-causal', 'causal' or 'unrestricted', got {order!r}"
            )
        if channels < 1 or layers < 1 or kernel < 3 or kernel % 2 == 0:
            raise ValueError(
                "expected channels and layers >= 1 and an odd kernel of at least 3, "
                f"got {channels}, {layers} and {kernel}"
            )
        self.image_shape, self.order = tuple(image_shape), order
        inputs, height, width = self.image_shape
        self.posterior = _head(posterior, (height, latents))
        both = order == "unrestricted"
        # Columns will be averaged: every second one is enough, at half the cost.
        self.first = _RowConv2d(inputs, channels, kernel, both, stride=2)
        # An average over a row forgets where in the row a stroke is; a bias per position does not.
        self.position = nn.Parameter(torch.zeros(channels, height, (width + 1) // 2))
        self.layers = nn.ModuleList(_GatedRows(channels, kernel, both) for _ in range(layers))
        self.out = nn.Linear(2 * channels, self.posterior.raw_shape[-1])

    def forward(self, x: Tensor) -> DiagNormal:
        """The posterior q(z|x) of each image."""
        check_dtype(x, self.out.weight)
        pixels = flatten_events(x, self.image_shape)  # (*batch, C·H·W)
        images = pixels.reshape(-1, *self.image_shape)
        reverse = self.order == "anti-causal"
        raw = self._raw(images.flip(-2, -1) if reverse else images)
        raw = raw.flip(-2) if reverse else raw
        return self.posterior(raw.reshape(*pixels.shape[:-1], *self.posterior.raw_shape))

    def _raw(self, images: Tensor) -> Tensor:
        """Raw outputs of each row, which has seen itself and the rows above, ``(B, H, 2·d)``."""
        h = self.first(2 * images - 1) + self.position  # (B, channels, H, W / 2)
        for layer in self.layers:
            h = layer(h)
        rows = h.mean(-1).mT  # (B, H, channels)
        return self.out(torch.cat([rows, self._mean_of_rows(rows)], -1))

    def _mean_of_rows(self, rows: Tensor) -> Tensor:
        """Mean over all rows that a row may see: farther than the kernels reach."""
        if self.order == "unrestricted":
            return rows.mean(-2, keepdim=True).expand_as(rows)
        counts = torch.arange(1, rows.shape[-2] + 1, device=rows.device, dtype=rows.dtype)
        return rows.cumsum(-2) / counts.unsqueeze(-1)


class _RowConv2d(nn.Conv2d):
    """Convolution that sees its row and the rows above, or rows on ``both`` sides.

    ``stride`` thins out the columns, never the rows.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, both: bool, stride: int = 1):
        super().__init__(inputs, outputs, kernel, stride=(1, stride))
        around = kernel // 2
        rows = (around, around) if both else (kernel - 1, 0)
        self.margins = (around, around, *rows)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H, W / stride)``."""
        return super().forward(F.pad(x, self.margins))


class _GatedRows(nn.Module):
    """h + W gate(conv(h)), ``(B, channels, H, W)`` to the same shape."""

    def __init__(self, channels: int, kernel: int, both: bool):
        super().__init__()
        self.conv = _RowConv2d(channels, 2 * channels, kernel, both)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.out(gate(self.conv(h), dim=1))


def _head(posterior: Posterior | None, latents: int | Sequence[int]) -> Posterior:
    plain = GaussianPosterior(latents)
    if posterior is not None and posterior.event_shape != plain.event_shape:
        raise ValueError(
            f"expected a posterior with event {plain.event_shape}, got {posterior.event_shape}"
        )
    return plain if posterior is None else posterior
