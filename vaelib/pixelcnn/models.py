"""Autoregressive models of images: scoring, drawing, and the PixelCNN family.

    log p(x) = Σ_i log p(x_i | x_1 … x_{i−1})        pixels in raster order
Scoring an image is one pass of the network ("teacher forcing"). Drawing one takes as many steps as
there are pixels; with a cache each step computes the new pixel only.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.func import functional_call
from torch.nn import functional as F

import vaelib.pixelcnn.layers as causal
from vaelib.distributions import checking
from vaelib.networks import check_dtype, eval_mode, full_precision, latent_shape
from vaelib.pixelcnn.likelihoods import LIKELIHOODS, check_size


class AutoregressiveImage(Distribution):
    """p(x) of a pixel model for given z and labels, event ``(C, H, W)``; models return it.

    It computes with the tensors that were the model's parameters when it was made: those of
    ``torch.func.functional_call``, too. Values have the weights' dtype, and pixels are levels.
    """

    arg_constraints = {}
    support = constraints.independent(constraints.unit_interval, 3)

    def __init__(self, model: "PixelModel", z=None, labels=None, batch_shape=(), weights=None):
        self.model, self.z, self.labels = model, z, labels
        self.weights = dict(model.named_parameters()) if weights is None else weights
        super().__init__(torch.Size(batch_shape), torch.Size(model.image_shape), False)

    def expand(self, batch_shape, _instance=None) -> "AutoregressiveImage":
        """The same distribution with the batch shape ``batch_shape``."""
        z = None if self.z is None else self.z.expand(*batch_shape, *self.model.latents)
        labels = None if self.labels is None else self.labels.expand(batch_shape)
        return AutoregressiveImage(self.model, z, labels, batch_shape, self.weights)

    @property
    def mean(self) -> Tensor:
        """Not known: it would take all images."""
        raise NotImplementedError("the mean of an autoregressive model is a sum over all images")

    def log_prob(self, value: Tensor) -> Tensor:
        """Exact log probability of whole images, nats, ``(*batch,)``."""
        return self.pixel_log_prob(value).sum((-2, -1))

    def pixel_log_prob(self, value: Tensor) -> Tensor:
        """log p(x_i | x_1 … x_{i−1}) of each pixel, nats, ``(*batch, H, W)``."""
        self._check("value", value)
        batch = torch.broadcast_shapes(value.shape[:-3], self.batch_shape)
        x = value.expand(*batch, *self.event_shape).reshape(-1, *self.event_shape).movedim(1, -1)
        each = self._run(lambda: self.model.pixel_log_prob(x, self._maps(batch)))
        return each.unflatten(0, batch) if batch else each.squeeze(0)

    @torch.no_grad()
    def sample(self, sample_shape=(), known=None, mask=None, cached=True, generator=None) -> Tensor:
        """Draw images pixel by pixel, ``(*sample_shape, *batch, C, H, W)``.

        Pixels of ``known`` are kept where the boolean ``mask``, broadcast against ``(*sample_shape,
        *batch, H, W)``, is true. A drawn pixel depends on those before it only: this is a draw from
        p(x | known) if the known pixels come first, as the upper half of an image does. Without
        ``cached`` the whole network runs for every pixel: the same images, much slower, for tests
        and lessons. ``generator``: a ``torch.Generator``, source of the uniform numbers.
        """
        batch = torch.Size(sample_shape) + self.batch_shape
        canvas, given = self._canvas(known, mask, batch)
        shape = (*canvas.shape[:3], self.model.pixels.uniforms)
        device = canvas.device if generator is None else generator.device
        uniforms = torch.rand(shape, generator=generator, dtype=canvas.dtype, device=device)
        uniforms = uniforms.to(canvas.device)
        draw = self.model.draw_cached if cached else self.model.draw_naively
        with eval_mode(self.model):  # with dropout the two samplers would be different networks
            x = self._run(lambda: draw(canvas, given, uniforms, self._maps(batch)))
        return x.movedim(-1, 1).reshape(batch + self.event_shape)

    def _run(self, function: Callable[[], Tensor]) -> Tensor:
        """``function()`` with the weights that the model had when this was made."""
        if list(map(id, self.model.parameters())) == list(map(id, self.weights.values())):
            return function()
        holder = nn.ModuleList([self.model])  # functional_call calls modules only
        holder.forward = function
        return functional_call(holder, {f"0.{name}": one for name, one in self.weights.items()})

    def _maps(self, batch: Sequence[int]) -> list[Tensor]:
        """Context of the batch, flattened."""
        wide = self if batch == self.batch_shape else self.expand(batch)
        z = None if wide.z is None else wide.z.reshape(-1, *self.model.latents)
        return self.model.context(z, None if wide.labels is None else wide.labels.reshape(-1))

    def _canvas(self, known: Tensor | None, mask: Tensor | None, batch) -> tuple[Tensor, Tensor]:
        """Images to start from ``(N, H, W, C)``, and what to keep of them, ``(N, H, W, 1)``."""
        if (known is None) != (mask is None):
            raise ValueError("expected both known and mask, or neither")
        like, size = next(iter(self.weights.values())), self.event_shape[1:]
        if known is None:
            known, mask = like.new_zeros(self.event_shape), like.new_zeros(size, dtype=torch.bool)
        if mask.dtype != torch.bool or mask.shape[-2:] != size:
            wanted, got = f"(*batch, {size[0]}, {size[1]})", f"{mask.dtype} {tuple(mask.shape)}"
            raise ValueError(f"expected a boolean mask of shape {wanted}, got {got}")
        _batch_shape("known", known, self.event_shape)
        mask, known = mask.expand(batch + size), known.expand(batch + self.event_shape)
        known = torch.where(mask.unsqueeze(-3), known, 0)  # the rest may hold anything
        self._check("known", known)
        canvas = known.reshape(-1, *self.event_shape).movedim(1, -1).to(like)
        return canvas.contiguous(), mask.reshape(-1, *size, 1).to(like.device)

    def _check(self, name: str, value: Tensor) -> None:
        _batch_shape(name, value, self.event_shape)
        check_dtype(value, next(iter(self.weights.values())))
        if checking():
            self.model.pixels.check(value)


class Context(nn.Module):
    """What a pixel model is given besides the pixels before, as maps to project into each layer.

    A learned map over positions, a vector for the class, and a projection of z. With one vector z
    per row, row t gets a mixture of z_1 … z_t. Maps are ``(B or 1, H or 1, W or 1, size)``.
    """

    def __init__(self, size: int, image_shape, latents, classes, inject: str, position: bool):
        super().__init__()
        if inject not in ("bias", "map"):
            raise ValueError(f"expected inject 'bias' or 'map', got {inject!r}")
        _, height, width = image_shape
        rows, across = len(latents) == 2, width if inject == "map" else 1
        if rows and latents[0] != height:
            raise ValueError(f"expected one vector for each of {height} rows, got {latents[0]}")
        if position:
            self.position = nn.Parameter(torch.zeros(1, height, width, size))
        else:
            self.register_buffer("position", torch.zeros(1, 1, 1, size), persistent=False)
        self.label = nn.Embedding(classes, size) if classes is not None else None
        self.map_shape = (height if rows or inject == "map" else 1, across, size)
        if rows:
            spread = nn.Linear(size, across * size) if inject == "map" else nn.Identity()
            self.latent = nn.Sequential(causal.CausalMixing(height, latents[1], size), spread)
        elif latents:
            self.latent = nn.Linear(latents[0], torch.Size(self.map_shape).numel())

    def forward(self, z: Tensor | None, labels: Tensor | None) -> list[Tensor]:
        """The maps; z ``(B, *latents)``, labels ``(B,)``."""
        of_labels = [] if labels is None else [self.label(labels)[:, None, None]]
        of_z = [] if z is None else [self.latent(z).reshape(len(z), *self.map_shape)]
        return [self.position, *of_labels, *of_z]


class PixelModel(nn.Module):
    """What all pixel models share: conditions, scoring, drawing.

    A model supplies ``features(x, above, maps, cache)``, from which each pixel is drawn, and
    :meth:`above`. Both run on whole images or, with a cache, on the new positions.
    Args:
        latents: ``None`` without z, d for one vector z, which all pixels use, ``(H, d)`` for one
            per row of the image, of which row t uses z_1 … z_t.
        image_shape, channels: shape (C, H, W) of one image; feature maps of each layer.
        classes: number of classes, for a model that is called with labels.
        likelihood: "bernoulli" for x in {0, 1}, "categorical" or "logistic_mixture" (of
            ``mixtures`` components) for ``levels`` grey levels x = k / (levels − 1).
        inject: z enters every layer as a "bias" of all pixels that may use it, or a "map" of them.
        position, context: whether each position has a learned bias; size of the context maps.
    """

    def __init__(
        self,
        latents: int | Sequence[int] | None = None,
        image_shape: Sequence[int] = (1, 28, 28),
        channels: int = 32,
        *,
        classes: int | None = None,
        likelihood: str = "bernoulli",
        levels: int = 256,
        mixtures: int = 10,
        inject: str = "bias",
        position: bool = True,
        context: int = 32,
    ):
        super().__init__()
        if len(image_shape) != 3:
            raise ValueError(f"expected image_shape (C, H, W), got {tuple(image_shape)}")
        self.image_shape = tuple(check_size("image_shape", size) for size in image_shape)
        self.latents = () if latents is None else latent_shape(latents)
        self.classes = None if classes is None else check_size("classes", classes)
        self.channels = check_size("channels", channels)
        self.context_size = context = check_size("context", context)
        conditions = self.image_shape, self.latents, self.classes
        self.context = Context(context, *conditions, inject, position)
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"expected likelihood in {sorted(LIKELIHOODS)}, got {likelihood!r}")
        self.pixels = LIKELIHOODS[likelihood](self.channels, self.image_shape[0], levels, mixtures)
        self.last = nn.Linear(self.channels, self.channels)
        self.last_context = causal.Conditioning(context, self.channels)

    def forward(self, z: Tensor | None = None, labels: Tensor | None = None) -> AutoregressiveImage:
        """p(x), p(x|z ``(*batch, *latents)``), p(x|labels ``(*batch,)``) or p(x|z, labels)."""
        of_z = _batch_shape("z", z, self.latents or None)
        of_labels = _batch_shape("labels", labels, None if self.classes is None else ())
        batches = [batch for batch in (of_z, of_labels) if batch is not None]
        if len(set(batches)) > 1:
            raise ValueError(f"expected z and labels of one batch shape, got {batches}")
        if z is not None:
            check_dtype(z, self.last.weight)
            if checking() and not z.isfinite().all():
                raise ValueError("expected finite z, got nan or infinity among its values")
        if labels is not None:
            if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
                raise ValueError(f"expected integer labels, got {labels.dtype}")
            if checking() and not ((labels >= 0) & (labels < self.classes)).all():
                low, high = labels.min().item(), labels.max().item()
                raise ValueError(f"expected labels 0 … {self.classes - 1}, got {low} … {high}")
        return AutoregressiveImage(self, z, labels, batches[0] if batches else ())

    def above(self, x: Tensor, maps: Sequence[Tensor], cache=None) -> list[Tensor]:
        """What rows above say, one map ``(B, H, W, …)`` for each layer that takes one."""
        return []

    def pixel_log_prob(self, x: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Nats of each pixel ``(B, H, W)`` of images ``(B, H, W, C)``."""
        return full_precision(self.pixels.log_prob, self._all_features(x, maps), x)

    def draw_naively(self, x: Tensor, given, uniforms, maps, pixels: int | None = None) -> Tensor:
        """Run the whole network for every pixel; for the first ``pixels`` only, to time it."""
        height, width = x.shape[1:3]
        for position in range(height * width if pixels is None else pixels):
            i, j = divmod(position, width)
            drawn = self.pixels.draw(self._all_features(x, maps)[:, i, j], uniforms[:, i, j])
            x[:, i, j] = torch.where(given[:, i, j], x[:, i, j], drawn)
        return x

    def draw_cached(self, x: Tensor, given: Tensor, uniforms: Tensor, maps) -> Tensor:
        """For every row, once, what its pixels take from above; for every pixel only itself."""
        height, width = x.shape[1:3]
        cache, inputs = causal.Cache(height, width), 2 * x - 1
        for i in range(height):
            cache.move(i, 0, width)
            row_maps = [sum(cache.crop(one) for one in maps)]
            above = self.above(inputs, row_maps, cache)
            for j in range(width):
                cache.move(i, j, j + 1)
                here = [cache.crop(one) for one in row_maps]
                h = self.features(inputs, [cache.crop(one) for one in above], here, cache)
                drawn = self.pixels.draw(self._finish(h, here)[:, 0, 0], uniforms[:, i, j])
                x[:, i, j] = torch.where(given[:, i, j], x[:, i, j], drawn)
                inputs[:, i, j] = 2 * x[:, i, j] - 1
        return x

    def _all_features(self, x: Tensor, maps: Sequence[Tensor]) -> Tensor:
        inputs = 2 * x - 1  # so that the padding's zero is neither black nor white
        return self._finish(self.features(inputs, self.above(inputs, maps), maps), maps)

    def _finish(self, h: Tensor, maps: Sequence[Tensor]) -> Tensor:
        return F.elu(self.last(F.elu(h)) + self.last_context(maps))


def _batch_shape(name: str, x: Tensor | None, event: Sequence[int] | None) -> torch.Size | None:
    """What precedes the event in the shape of ``x``; event ``None`` stands for no x at all."""
    got = "none" if x is None else tuple(x.shape)
    if event is None and x is not None:
        raise ValueError(f"expected no {name}, got {got}")
    if event is None:
        return None
    batch = -1 if x is None else x.dim() - len(event)
    if batch < 0 or got[batch:] != tuple(event):
        raise ValueError(f"expected {name} of shape (*batch, *{tuple(event)}), got {got}")
    return x.shape[:batch]


class PixelCNN(PixelModel):
    """Masked convolutions in residual blocks; simple, with a blind spot.

    Pixels to the upper right, outside the cone of the masks, are never seen, however many layers
    there are. van den Oord, Kalchbrenner & Kavukcuoglu (2016), *Pixel Recurrent Neural Networks*.
    ``layers`` residual blocks follow the first convolution; ``kernel`` and ``first_kernel`` are
    odd sizes of masks. For the other arguments see :class:`PixelModel`.

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
        self.build(check_size("layers", layers), kernel, first_kernel)

    def build(self, layers: int, kernel: int, first_kernel: int) -> None:
        self.first = causal.square_conv("A", self.image_shape[0], self.channels, first_kernel)
        sizes = self.channels, kernel, self.context_size
        self.blocks = nn.ModuleList(causal.MaskedBlock(*sizes) for _ in range(layers))

    def features(self, x, above, maps, cache=None) -> Tensor:
        h = self.first(x, cache)
        for block in self.blocks:
            h = block(h, maps, cache)
        return h


class GatedPixelCNN(PixelCNN):
    """Gated convolutions in a vertical and a horizontal stack, without a blind spot.

    van den Oord et al. (2016), *Conditional Image Generation with PixelCNN Decoders*.

    >>> GatedPixelCNN(16)(torch.randn(8, 16)).log_prob(torch.ones(8, 1, 28, 28)).shape
    torch.Size([8])
    """

    def build(self, layers: int, kernel: int, first_kernel: int) -> None:
        sizes = self.image_shape[0], self.channels, first_kernel
        self.first_vertical = causal.vertical_conv("A", *sizes)
        self.first_horizontal = causal.horizontal_conv("A", *sizes)
        sizes = self.channels, kernel, self.context_size
        last = (i == layers - 1 for i in range(layers))
        self.layers = nn.ModuleList(causal.GatedLayer(*sizes, last=one) for one in last)

    def above(self, x, maps, cache=None) -> list[Tensor]:
        v, above = self.first_vertical(x, cache), []
        for layer in self.layers:
            v, to_h = layer.vertical_step(v, maps, cache)
            above.append(to_h)
        return above

    def features(self, x, above, maps, cache=None) -> Tensor:
        h = self.first_horizontal(x, cache)
        for layer, to_h in zip(self.layers, above, strict=True):
            h = layer.horizontal_step(h, to_h, cache)
        return h


class PixelSNAIL(PixelModel):
    """Gated residual blocks, and attention to all pixels before.

    Chen, Mishra, Rohaninejad & Abbeel (2018), *PixelSNAIL* (arXiv 1712.09763). Each of ``blocks``
    has ``residuals`` gated residual blocks, with ``dropout`` inside (off while images are drawn),
    and attention with ``heads`` that divide ``channels``. The rest is as in :class:`PixelModel`.

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
        inputs, channels, context = self.image_shape[0], self.channels, self.context_size
        blocks, residuals = check_size("blocks", blocks), check_size("residuals", residuals)
        self.first_vertical = causal.vertical_conv("A", inputs, channels, 3)
        self.first_horizontal = causal.horizontal_conv("A", inputs, channels, 3)
        sizes = channels, context, dropout
        block = ([causal.GatedResidual(*sizes) for _ in range(residuals)] for _ in range(blocks))
        self.residuals = nn.ModuleList(map(nn.ModuleList, block))
        attentions = (causal.CausalAttention(channels, inputs, heads) for _ in range(blocks))
        self.attentions = nn.ModuleList(attentions)

    def above(self, x, maps, cache=None) -> list[Tensor]:
        return [self.first_vertical(x, cache)]

    def features(self, x, above, maps, cache=None) -> Tensor:
        h, previous = above[0] + self.first_horizontal(x, cache), causal.previous_pixel(x, cache)
        for residuals, attention in zip(self.residuals, self.attentions, strict=True):
            for residual in residuals:
                h = residual(h, maps, cache)
            h = attention(h, previous, cache)
        return h
