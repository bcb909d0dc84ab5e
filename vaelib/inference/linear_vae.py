"""Probabilistic PCA and the linear VAE: the models in which everything is known exactly.

Tipping & Bishop (1999), *Probabilistic principal component analysis*; Lucas, Tucker, Grosse &
Norouzi (2019), *Don't blame the ELBO!* (arXiv 1911.02469).
"""

import math

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from vaelib.distributions import DiagNormal
from vaelib.networks import flatten_events
from vaelib.priors import StandardNormal


class PPCA(nn.Module):
    """Probabilistic PCA, with its exact likelihood and posterior.

        p(z) = N(0, I),   p(x|z) = N(W z + μ, σ² I)
        p(x) = N(μ, W Wᵀ + σ² I),   p(z|x) = N(M⁻¹ Wᵀ (x − μ), σ² M⁻¹),   M = Wᵀ W + σ² I

    Tipping & Bishop (1999), equations 4 to 8. ``weight``: W, ``(dims, latents)``; ``mean``: μ,
    ``(dims,)``; ``noise_variance``: σ², which rounding must not lose beside W Wᵀ.
    """

    def __init__(self, weight: Tensor, mean: Tensor, noise_variance: float | Tensor):
        super().__init__()
        if weight.dim() != 2 or mean.shape != weight.shape[:1]:
            shapes = f"{tuple(weight.shape)} and {tuple(mean.shape)}"
            raise ValueError(f"expected weight (dims, latents) and mean (dims,), got {shapes}")
        noise_variance = torch.as_tensor(noise_variance, dtype=weight.dtype)
        least = _least_noise(torch.linalg.matrix_norm(weight.detach(), 2) ** 2, len(weight))
        if noise_variance.dim() or not least < noise_variance < math.inf:
            least = f"{least:.3g}, as less is lost beside the largest eigenvalue"
            raise ValueError(f"expected a noise variance above {least}, got {noise_variance}")
        tensors = {"weight": weight, "mean": mean, "noise_variance": noise_variance}
        for name, tensor in tensors.items():  # copied, so that loading others leaves the caller's
            self.register_buffer(name, tensor.clone())

    @classmethod
    def fit(cls, x: Tensor, latents: int, noise_variance: float | None = None) -> "PPCA":
        """Maximum likelihood in closed form.

            W = U (Λ − σ² I)^½,   σ² = mean of the eigenvalues left out

        Tipping & Bishop (1999), equations 14 and 15, with the rotation R = I. With a fixed
        ``noise_variance`` σ² the directions whose eigenvalue is below it get a zero column: they
        collapse (Lucas et al. 2019, section 4). Else the data ``(N, dims)``, float32 or float64,
        must have a rank above ``latents``: there must be noise.
        """
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"expected float32 or float64, got {x.dtype}")
        if x.dim() != 2 or len(x) < 2 or not 1 <= latents < x.shape[1]:
            got = f"got {tuple(x.shape)} and {latents}"
            raise ValueError(f"expected x (N, dims), N >= 2 and 1 <= latents < dims, {got}")
        if not x.isfinite().all():
            raise ValueError("expected finite x, got nan or infinity among its values")
        wide, dims = x.double(), x.shape[1]
        eigenvalues, eigenvectors = torch.linalg.eigh(torch.cov(wide.T, correction=0))
        eigenvalues, eigenvectors = eigenvalues.flip(0), eigenvectors.flip(1)  # largest first
        if noise_variance is None:
            noise_variance = eigenvalues[latents:].mean()
            least = _least_noise(eigenvalues[0].to(x.dtype), dims)
            if not noise_variance > least:
                got = f"data of rank {int((eigenvalues > least).sum())} in {dims} dimensions"
                advice = "take fewer latents or give a noise_variance"
                raise ValueError(f"expected noise beside {latents} latents, got {got}: {advice}")
        signal = (eigenvalues[:latents] - noise_variance).clamp(min=0)
        weight = eigenvectors[:, :latents] * signal.sqrt()
        return cls(weight.to(x.dtype), wide.mean(0).to(x.dtype), noise_variance)

    def marginal(self, dtype: torch.dtype | None = None) -> MultivariateNormal:
        """p(x), event shape ``(dims,)``, in the dtype of W or another one."""
        weight = self.weight.double()
        factor = torch.linalg.cholesky(self._with_noise(weight @ weight.T))
        dtype = dtype or self.mean.dtype
        return MultivariateNormal(self.mean.to(dtype), scale_tril=factor.to(dtype))

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log p(x) of ``(*batch, dims)``, nats."""
        x64 = flatten_events(x, self.mean.shape).double()
        return self.marginal(torch.float64).log_prob(x64).to(torch.result_type(x, self.mean))

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """Exact p(z|x) of ``(*batch, dims)``, event shape ``(latents,)``."""
        weight, dtype = self.weight.double(), torch.result_type(x, self.mean)
        m = self._with_noise(weight.T @ weight)
        projected = (flatten_events(x, self.mean.shape).double() - self.mean.double()) @ weight
        loc = torch.linalg.solve(m, projected.unsqueeze(-2), left=False).squeeze(-2)
        covariance = self.noise_variance.double() * torch.linalg.inv(m)
        return MultivariateNormal(loc.to(dtype), covariance.to(dtype).expand(*loc.shape, -1))

    def _with_noise(self, product: Tensor) -> Tensor:
        """``product`` + σ² I, in float64: float32 can lose σ² beside W Wᵀ."""
        identity = torch.eye(len(product)).to(product)
        return product + self.noise_variance.double() * identity

    def slots(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Encoder, prior and decoder of the linear VAE: ``VAE(*model.slots())``.

        Where WᵀW is diagonal, as after :meth:`fit`, that encoder is the exact posterior and the
        bound is log p(x). Elsewhere it has the exact mean and, as the variances that maximise the
        bound, the inverse diagonal of the posterior precision.
        """
        slots = linear_slots(*self.weight.shape, self.noise_variance.item())
        encoder, prior, decoder = (slot.to(self.weight) for slot in slots)
        weight = self.weight.double()
        m = self._with_noise(weight.T @ weight)
        gain = torch.linalg.solve(m, weight.T)
        with torch.no_grad():
            encoder.loc.weight.copy_(gain)
            encoder.loc.bias.copy_(-gain @ self.mean.double())
            encoder.log_scale.copy_(0.5 * (self.noise_variance / m.diagonal()).log())
            decoder.loc.weight.copy_(self.weight)
            decoder.loc.bias.copy_(self.mean)
        return encoder, prior, decoder


def _least_noise(largest: Tensor, dims: int) -> float:
    """A noise variance lost in the rounding of data in this dtype, or of a factor in float64."""
    return largest.item() * max(100 * torch.finfo(largest.dtype).eps ** 2, 1e-15 * dims)


class LinearEncoder(nn.Module):
    """q(z|x) = N(V x + c, diag s²) with the same s² for every x (Lucas et al. 2019, section 4)."""

    def __init__(self, dims: int, latents: int):
        super().__init__()
        self.loc = nn.Linear(dims, latents)
        self.log_scale = nn.Parameter(torch.zeros(latents))

    def forward(self, x: Tensor) -> DiagNormal:
        """q(z|x) of vectors ``(*batch, dims)``, event shape ``(latents,)``."""
        loc = self.loc(flatten_events(x, (self.loc.in_features,)))
        return DiagNormal(loc, self.log_scale.exp().expand_as(loc))


class LinearDecoder(nn.Module):
    """p(x|z) = N(W z + μ, σ² I), σ² given or learned."""

    def __init__(self, dims: int, latents: int, noise_variance: float | None = None):
        super().__init__()
        if noise_variance is not None and not 0 < noise_variance < math.inf:
            raise ValueError(f"expected a positive noise variance, got {noise_variance}")
        self.loc = nn.Linear(latents, dims)
        log_scale = torch.tensor(0.5 * math.log(noise_variance or 1.0), dtype=torch.float64)
        if noise_variance is None:
            self.log_scale = nn.Parameter(log_scale.float())
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, z: Tensor) -> DiagNormal:
        """p(x|z) of ``(*batch, latents)``, event shape ``(dims,)``."""
        loc = self.loc(flatten_events(z, (self.loc.in_features,), "z"))
        return DiagNormal(loc, self.log_scale.exp().to(loc).expand_as(loc))


def linear_slots(
    dims: int, latents: int, noise_variance: float | None = None
) -> tuple[LinearEncoder, StandardNormal, LinearDecoder]:
    """The three slots of a linear VAE for vectors ``(*batch, dims)``: ``VAE(*linear_slots(…))``.

    Its optimum is that of pPCA (Lucas et al. 2019, theorem 1); a σ² of ``None`` is learned.
    """
    decoder = LinearDecoder(dims, latents, noise_variance)
    return LinearEncoder(dims, latents), StandardNormal(latents), decoder
