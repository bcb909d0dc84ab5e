"""What autoregressive models of images share: conditions, scoring, drawing.

    log p(x) = Σ_i log p(x_i | x_1 … x_{i−1})        pixels in raster order

Scoring an image is one pass of the network, as all the pixels before are at hand ("teacher
forcing"). Drawing one takes as many steps as there are pixels; a memory makes each step cost the
new pixel only.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn import functional as F

from vaelib.networks import CausalMixing, ContextBias, Memory, check_dtype, evaluating
from vaelib.pixels import LIKELIHOODS, PixelLikelihood
from vaelib.precision import in_full


class AutoregressiveImage(Distribution):
    """p(x) of a pixel model for given z and labels, event ``(C, H, W)``.

    Models return it when they are called; it is not built by hand.

    Raises:
        ValueError: a value with another event shape, or with pixels that are no levels.
    """

    arg_constraints = {}
    support = constraints.independent(constraints.unit_interval, 3)

    def __init__(
        self,
        model: "PixelModel",
        z: Tensor | None = None,
        labels: Tensor | None = None,
        batch_shape: Sequence[int] = (),
    ):
        self.model, self.z, self.labels = model, z, labels
        event_shape = torch.Size(model.image_shape)
        super().__init__(torch.Size(batch_shape), event_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None) -> "AutoregressiveImage":
        """The same distribution with the batch shape ``batch_shape``."""
        z, labels = self.z, self.labels
        if z is not None:
            z = z.expand(*batch_shape, *self.model.latents)
        if labels is not None:
            labels = labels.expand(batch_shape)
        return AutoregressiveImage(self.model, z, labels, batch_shape)

    @property
    def mean(self) -> Tensor:
        """Not known: it would take all images."""
        raise NotImplementedError("the mean of an autoregressive model is a sum over all images")

    def log_prob(self, value: Tensor) -> Tensor:
        """Exact log probability of whole images, nats, ``(*batch,)``."""
        return self.pixel_log_prob(value).sum((-2, -1))

    def pixel_log_prob(self, value: Tensor) -> Tensor:
        """log p(x_i | x_1 … x_{i−1}) of each pixel, nats, ``(*batch, H, W)``."""
        self._check(value)
        batch = torch.broadcast_shapes(value.shape[:-3], self.batch_shape)
        wide = self.expand(batch)
        x = value.expand(*batch, *self.event_shape).reshape(-1, *self.event_shape)
        each = self.model.pixel_log_prob(x.movedim(1, -1), wide._maps())
        return each.unflatten(0, batch) if batch else each.squeeze(0)

    @torch.no_grad()
    def sample(
        self,
        sample_shape=(),
        known: Tensor | None = None,
        mask: Tensor | None = None,
        cached: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw images pixel by pixel, ``(*sample_shape, *batch, C, H, W)``.

        Args:
            sample_shape: how many draws.
            known: an image or images whose pixels are kept where ``mask`` is true. Each drawn
                pixel depends on those before it only: this is a draw from p(x | known) if the
                known pixels come first, as the upper half of an image does.
            mask: booleans, broadcast against ``(*sample_shape, *batch, H, W)``.
            cached: compute only what each new pixel needs. ``False`` runs the whole network for
                every pixel: the same images, much slower, for tests and lessons.
            generator: source of the uniform numbers; both samplers use the same ones.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        wide = self.expand(shape)
        canvas, given = self._given(known, mask, shape)
        uniforms = torch.rand(
            (*canvas.shape[:3], self.model.pixels.uniforms),
            generator=generator,
            dtype=canvas.dtype,
            device=canvas.device if generator is None else generator.device,
        ).to(canvas.device)
        draw = self.model.draw_cached if cached else self.model.draw_naively
        with evaluating(self.model):  # dropout would leave the samplers two different networks
            x = draw(canvas, given, uniforms, wide._maps())
        return x.movedim(-1, 1).reshape(shape + self.event_shape)

    def _maps(self) -> list[Tensor]:
        """Context of the flattened batch."""
        z = None if self.z is None else self.z.reshape(-1, *self.model.latents)
        labels = None if self.labels is None else self.labels.reshape(-1)
        return self.model.context(z, labels)

    def _given(self, known: Tensor | None, mask: Tensor | None, shape) -> tuple[Tensor, Tensor]:
        """Images to start from ``(N, H, W, C)``, and what to keep of them, ``(N, H, W, 1)``."""
        if (known is None) != (mask is None):
            raise ValueError("expected both known and mask, or neither")
        height, width = self.event_shape[1:]
        like = next(self.model.parameters())
        if known is None:
            canvas = like.new_zeros(math.prod(shape), height, width, self.event_shape[0])
            return canvas, torch.zeros_like(canvas[..., :1], dtype=torch.bool)
        if mask.dtype != torch.bool or mask.shape[-2:] != (height, width):
            raise ValueError(
                f"expected a boolean mask of shape (*batch, {height}, {width}), got "
                f"{mask.dtype} {tuple(mask.shape)}"
            )
        mask = mask.expand(*shape, height, width)
        _check_shape("known", known, self.event_shape)
        known = known.expand(shape + self.event_shape)
        known = torch.where(mask.unsqueeze(-3), known, 0)  # the rest may hold anything
        self._check(known)
        canvas = known.reshape(-1, *self.event_shape).movedim(1, -1).to(like)
        return canvas.contiguous(), mask.reshape(-1, height, width, 1).to(like.device)

    def _check(self, value: Tensor) -> None:
        _check_shape("value", value, self.event_shape)
        check_dtype(value, next(self.model.parameters()))
        if Distribution._validate_args:
            self.model.pixels.check(value)


class Context(nn.Module):
    """What a pixel model knows besides the pixels before, as maps to project into each layer.

    A learned map over positions, a vector for the class, and what z says: with ``inject`` "bias"
    the same for all pixels that may use it, with "map" a bias of its own for each position. A
    vector z serves all pixels. With one vector per row, row t gets a mixture of z_1 … z_t.

    Maps are ``(B or 1, H or 1, W or 1, size)``.
    """

    def __init__(
        self,
        size: int,
        image_shape: Sequence[int],
        latents: tuple[int, ...],
        classes: int | None,
        inject: str,
        position: bool,
    ):
        super().__init__()
        if inject not in ("bias", "map"):
            raise ValueError(f"expected inject 'bias' or 'map', got {inject!r}")
        _, height, width = image_shape
        if len(latents) == 2 and latents[0] != height:
            raise ValueError(f"expected one vector for each of {height} rows, got {latents[0]}")
        if position:
            self.position = nn.Parameter(torch.zeros(1, height, width, size))
        else:
            self.register_buffer("position", torch.zeros(1, 1, 1, size), persistent=False)
        self.label = nn.Embedding(classes, size) if classes is not None else None
        rows = len(latents) == 2
        across = width if inject == "map" else 1
        self.map_shape = (height if rows or inject == "map" else 1, across, size)
        if rows:
            spread = nn.Linear(size, across * size) if inject == "map" else nn.Identity()
            self.latent = nn.Sequential(CausalMixing(height, latents[1], size), spread)
        elif latents:
            self.latent = nn.Linear(latents[0], math.prod(self.map_shape))

    def forward(self, z: Tensor | None, labels: Tensor | None) -> list[Tensor]:
        """The maps; z ``(B, *latents)``, labels ``(B,)``."""
        maps = [self.position]
        if labels is not None:
            maps.append(self.label(labels)[:, None, None])
        if z is not None:
            maps.append(self.latent(z).reshape(len(z), *self.map_shape))
        return maps


class PixelModel(nn.Module):
    """What all pixel models share: conditions, scoring, drawing.

    A model supplies :meth:`above`, what each layer takes from the rows above, and
    :meth:`features`, the vector from which each pixel is drawn. Both run on whole images or, with
    a memory, on the new positions.

    Args:
        latents: sizes of z: ``None`` without, an int for one vector, ``(H, d)`` for one vector
            per row of the image, of which row t uses z_1 … z_t.
        image_shape: shape of one image, (C, H, W).
        channels: feature maps of each layer.
        classes: number of classes, for a model that is called with labels.
        likelihood: "bernoulli" for x in {0, 1}, "categorical" or "logistic_mixture" for grey
            levels x = k / (levels − 1).
        levels: number of levels of the latter two.
        mixtures: components of the logistic mixture.
        inject: where z enters: "bias", the gates of every layer, the same at all positions of
            the image or row; "map", the same gates with a bias for each position.
        position: whether there is a learned bias for each position. Without it z or the layers
            have to supply what the position alone would tell.
        context: size of the map that carries conditions to the layers.

    Raises:
        ValueError: settings out of range, z or labels that do not fit them.
    """

    def __init__(
        self,
        latents: int | Sequence[int] | None,
        image_shape: Sequence[int],
        channels: int,
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
        self.image_shape, self.latents = tuple(image_shape), _latent_shape(latents)
        if len(self.image_shape) != 3:
            raise ValueError(f"expected image_shape (C, H, W), got {self.image_shape}")
        for name, size in {"channels": channels, "context": context, "classes": classes}.items():
            if size is not None and size < 1:
                raise ValueError(f"expected {name} >= 1, got {size}")
        self.classes, self.context_size = classes, context
        self.context = Context(context, self.image_shape, self.latents, classes, inject, position)
        self.pixels = _likelihood(likelihood, channels, self.image_shape[0], levels, mixtures)
        self.last = nn.Linear(channels, channels)
        self.last_context = ContextBias(context, channels)

    def forward(self, z: Tensor | None = None, labels: Tensor | None = None) -> Distribution:
        """p(x), p(x|z), p(x|labels) or p(x|z, labels).

        Its batch shape is that of z ``(*batch, *latents)`` and labels ``(*batch,)``, and ``()``
        without them.
        """
        batches = []
        if (z is None) != (not self.latents):
            wanted = f"z of shape (*batch, *{self.latents})" if self.latents else "no z"
            raise ValueError(f"expected {wanted}, got {_shape(z)}")
        if (labels is None) != (self.classes is None):
            wanted = "no labels" if self.classes is None else "labels of shape (*batch,)"
            raise ValueError(f"expected {wanted}, got {_shape(labels)}")
        if z is not None:
            _check_shape("z", z, self.latents)
            if Distribution._validate_args and not z.isfinite().all():
                raise ValueError("expected finite z, got nan or infinity among its values")
            batches.append(z.shape[: z.dim() - len(self.latents)])
        if labels is not None:
            self._check_labels(labels)
            batches.append(labels.shape)
        if len(set(batches)) > 1:
            raise ValueError(f"expected z and labels of one batch shape, got {batches}")
        return AutoregressiveImage(self, z, labels, batches[0] if batches else ())

    def above(
        self, x: Tensor, maps: Sequence[Tensor], memory: Memory | None = None
    ) -> list[Tensor]:
        """What rows above say, one map ``(B, H, W, …)`` for each layer that takes one."""
        raise NotImplementedError

    def features(
        self,
        x: Tensor,
        above: Sequence[Tensor],
        maps: Sequence[Tensor],
        memory: Memory | None = None,
    ) -> Tensor:
        """What each pixel is drawn from, having seen the pixels before, ``(B, H, W, channels)``."""
        raise NotImplementedError

    def pixel_log_prob(self, x: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Nats of each pixel ``(B, H, W)`` of images ``(B, H, W, C)``."""
        return in_full(self.pixels.log_prob, self._all_features(x, maps), x)

    def draw_naively(
        self, x: Tensor, given: Tensor, uniforms: Tensor, maps, pixels: int | None = None
    ) -> Tensor:
        """Run the whole network for every pixel; for the first ``pixels`` only, to time it."""
        height, width = x.shape[1:3]
        for position in range(height * width if pixels is None else pixels):
            i, j = divmod(position, width)
            features = self._all_features(x, maps)[:, i, j]
            drawn = self.pixels.draw(features, uniforms[:, i, j])
            x[:, i, j] = torch.where(given[:, i, j], x[:, i, j], drawn)
        return x

    def draw_cached(self, x: Tensor, given: Tensor, uniforms: Tensor, maps) -> Tensor:
        """For every row, once, what its pixels take from above; for every pixel only itself."""
        height, width = x.shape[1:3]
        memory, inputs = Memory(height, width), _centred(x)
        for i in range(height):
            memory.move(i, 0, width)
            row_maps = [sum(memory.crop(one) for one in maps)]
            above = self.above(inputs, row_maps, memory)
            for j in range(width):
                memory.move(i, j, j + 1)
                here = [memory.crop(one) for one in row_maps]
                taken = [memory.crop(one) for one in above]
                features = self._finish(self.features(inputs, taken, here, memory), here)
                drawn = self.pixels.draw(features[:, 0, 0], uniforms[:, i, j])
                x[:, i, j] = torch.where(given[:, i, j], x[:, i, j], drawn)
                inputs[:, i, j] = _centred(x[:, i, j])
        return x

    def _all_features(self, x: Tensor, maps: Sequence[Tensor]) -> Tensor:
        inputs = _centred(x)
        return self._finish(self.features(inputs, self.above(inputs, maps), maps), maps)

    def _finish(self, h: Tensor, maps: Sequence[Tensor]) -> Tensor:
        return F.elu(self.last(F.elu(h)) + self.last_context(maps))

    def _check_labels(self, labels: Tensor) -> None:
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"expected integer labels, got {labels.dtype}")
        if not Distribution._validate_args or not labels.numel():
            return
        if not 0 <= labels.min() <= labels.max() < self.classes:
            low, high = labels.min().item(), labels.max().item()
            raise ValueError(f"expected labels 0 … {self.classes - 1}, got {low} … {high}")


def _centred(x: Tensor) -> Tensor:
    """[0, 1] to [−1, 1], so that the padding's zero is neither black nor white."""
    return 2 * x - 1


def _likelihood(
    name: str, features: int, channels: int, levels: int, mixtures: int
) -> PixelLikelihood:
    options = {
        "bernoulli": {},
        "categorical": {"levels": levels},
        "logistic_mixture": {"levels": levels, "mixtures": mixtures},
    }
    if name not in options:
        raise ValueError(f"expected likelihood in {sorted(options)}, got {name!r}")
    return LIKELIHOODS[name](features, channels, **options[name])


def _latent_shape(latents: int | Sequence[int] | None) -> tuple[int, ...]:
    shape = () if latents is None else (latents,) if isinstance(latents, int) else tuple(latents)
    if len(shape) > 2 or any(size < 1 for size in shape) or (latents is not None and not shape):
        raise ValueError(f"expected latents None, d or (rows, d) with sizes >= 1, got {latents}")
    return shape


def _shape(x: Tensor | None) -> str:
    return "none" if x is None else str(tuple(x.shape))


def _check_shape(name: str, x: Tensor, event: Sequence[int]) -> None:
    if x.dim() < len(event) or tuple(x.shape[x.dim() - len(event) :]) != tuple(event):
        raise ValueError(f"expected {name} of shape (*batch, *{tuple(event)}), got {_shape(x)}")
