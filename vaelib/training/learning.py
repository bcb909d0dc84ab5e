"""Learning algorithms: each function makes one update of the parameters.

``step(vae, x, optimizer, update)`` takes a minibatch x ``(B, *image_shape)`` and the number of the
update in the run, and returns the ELBO of each image before the update, without gradient.
:func:`vaelib.fit` calls it for every batch. All of them raise ``FloatingPointError``, and change
nothing, if a loss is not finite.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.optim import Optimizer

from vaelib.decoders import VariationalWeights
from vaelib.inference import hmc
from vaelib.inference.likelihood import check_fixed_weights, log_joint
from vaelib.training.objectives import Objective
from vaelib.vae import ELBO, VAE


def aevb_step(
    vae: VAE,
    x: Tensor,
    optimizer: Optimizer,
    update: int | None = None,
    *,
    samples: int = 1,
    objective: Objective | None = None,
) -> ELBO:
    """Auto-Encoding Variational Bayes: one gradient step up the mean bound of a minibatch.

    Encoder and decoder move together. Kingma & Welling (2013), algorithm 1.

    Args:
        samples: draws of z per image, L in the paper.
        objective: what to minimise in place of the negative bound, such as
            :class:`vaelib.training.objectives.Beta`; the bound is returned all the same.
    """
    optimizer.zero_grad()  # before the forward pass, so that its memory is free for activations
    if objective is None:
        bound = vae(x, samples)  # called as a module: DistributedDataParallel needs that
        loss = (bound.distortion + bound.rate).mean()
    else:
        bound = vae(x, samples, split=True)
        loss = objective(bound, update).mean()
    _check_finite(loss)
    loss.backward()
    optimizer.step()
    return _detached(bound)


def iwae_step(
    vae: VAE, x: Tensor, optimizer: Optimizer, update: int | None = None, *, samples: int = 5
) -> ELBO:
    """One step up the importance-weighted bound, which lies between the ELBO and log p(x).

        log (1/K) Σ_k p(x|z_k) p(z_k) / q(z_k|x),   z_1 … z_K ~ q(z|x) reparameterised

    Burda, Grosse & Salakhutdinov (2016), equation 8. With K = ``samples`` = 1 it is the ELBO. The
    ELBO of the same draws is returned; :func:`vaelib.inference.likelihood.importance_sampled`
    evaluates the bound itself.
    """
    if samples < 1:
        raise ValueError(f"expected samples >= 1, got {samples}")
    optimizer.zero_grad()
    q, p = vae.encoder(x), vae.prior()
    z = q.rsample((samples,))  # (K, B, *latent_shape)
    bound = ELBO(-vae.decoder(z).log_prob(x), q.log_prob(z) - p.log_prob(z))  # (K, B) each
    _descend(math.log(samples) - bound.value.logsumexp(0).mean(), optimizer)
    return ELBO(bound.distortion.detach().mean(0), bound.rate.detach().mean(0))


def wake_sleep_step(
    vae: VAE, x: Tensor, optimizer: tuple[Optimizer, Optimizer], update: int | None = None
) -> ELBO:
    """Wake-sleep: decoder and encoder learn in turn, each from samples of the other.

    Wake: the decoder goes up log p(x|z) + log p(z) with x from the data and z ~ q(z|x).
    Sleep: the encoder goes up log q(z|x) with z ~ p(z) and x ~ p(x|z).

    The first is the gradient of the bound for the decoder. The second is not its gradient for the
    encoder: it lowers KL(p(z|x) ‖ q(z|x)), the other direction, averaged over samples of the model
    instead of data. Hinton, Dayan, Frey & Neal (1995); Kingma & Welling (2013), section 5.

    ``optimizer``: one for the decoder (and a prior with parameters), one for the encoder.
    """
    if not isinstance(optimizer, (tuple, list)) or len(optimizer) != 2:
        kind = type(optimizer).__name__
        raise TypeError(f"expected two optimizers, of decoder and encoder, got {kind}")
    generative, recognition = optimizer
    with torch.no_grad():
        q, p = vae.encoder(x), vae.prior()
        z, dreamed_z = q.sample(), p.sample((len(x),))
        dreamed_x = vae.decoder(dreamed_z).sample()
        try:
            rate = kl_divergence(q, p)
        except NotImplementedError:  # no closed form: the same draw estimates it
            rate = q.log_prob(z) - p.log_prob(z)
    generative.zero_grad()
    distortion = -vae.decoder(z).log_prob(x)
    _descend((distortion - vae.prior().log_prob(z)).mean(), generative)
    recognition.zero_grad()
    _descend(-vae.encoder(dreamed_x).log_prob(dreamed_z).mean(), recognition)
    return ELBO(distortion.detach(), rate)


class MCEM(NamedTuple):
    """Result of an MCEM step: the chains must be carried to the next visit of ``x``."""

    z: Tensor  # one posterior sample per image, (B, *latent_shape)
    step_size: Tensor  # of the leapfrog integrator, a scalar, adapted
    info: hmc.Info  # acceptance and divergences of the trajectory
    log_joint: Tensor  # log p(x, z) at the new sample before the weight updates, (B,) nats


def mcem_step(
    vae: VAE,
    x: Tensor,
    z: Tensor,
    step_size: float | Tensor,
    optimizer: Optimizer,
    leapfrog_steps: int = 10,
    updates: int = 5,
    target: float = 0.9,
) -> MCEM:
    """Monte Carlo EM: sample the posterior with HMC, then fit the decoder to the samples.

    E: one trajectory from ``z`` ``(B, *latent_shape)``, leaving p(z|x) unchanged; the step size
    moves towards an acceptance of ``target``. M: ``updates`` gradient steps up log p(x, z) at that
    sample. No encoder is used or learned. Kingma & Welling (2013), appendix E.
    """
    check_fixed_weights(vae)
    density = log_joint(vae, x)
    state, info = hmc.step(density, hmc.init(density, z), step_size, leapfrog_steps)
    size = hmc.adapt(step_size, info, target)
    for _ in range(updates):
        optimizer.zero_grad()
        _descend(-log_joint(vae, x)(state.position).mean(), optimizer)
    return MCEM(state.position, size, info, state.log_density)


def variational_bayes_step(
    vae: VAE,
    x: Tensor,
    optimizer: Optimizer,
    update: int | None = None,
    *,
    count: int,
    samples: int = 1,
) -> ELBO:
    """Full variational Bayes: one step up the bound of all data with uncertain weights.

        log p(X) ≥ Σ_i ELBO_θ(x_i) − KL(q(θ) ‖ p(θ)),   θ ~ q(θ)

    divided by the number of data, so that it reads as nats per image. Kingma & Welling (2013),
    appendix F. In :func:`vaelib.fit`: ``step=partial(variational_bayes_step, count=len(train))``.

    Args:
        vae: a model whose decoder is :class:`vaelib.decoders.VariationalWeights`.
        count: number of data N in the whole training set.
        samples: draws of z per image; the whole batch shares one draw of θ. The bound that is
            returned is given these weights, without their KL.
    """
    if not isinstance(vae.decoder, VariationalWeights):
        raise TypeError(f"expected a VariationalWeights decoder, got {type(vae.decoder).__name__}")
    if count < len(x):
        raise ValueError(f"expected count >= batch of {len(x)}, got {count}")
    optimizer.zero_grad()
    bound = vae(x, samples)
    _descend(vae.decoder.rate() / count - bound.value.mean(), optimizer)
    return _detached(bound)


class CodePrior(nn.Module):
    """A second prior for the codes of a trained model, fitted by :func:`aevb_step`.

        ELBO(x) = −(0 + log q(z|x) − log p(z)),   z ~ q(z|x)

    Its mean is minus the rate that the model has with the new prior; going up it lowers
    KL(q(z) ‖ p(z)) with the aggregate posterior q(z) = E_x[q(z|x)]. The encoder is not trained.
    Razavi et al. (2019).
    """

    def __init__(self, encoder: nn.Module, prior: nn.Module):
        super().__init__()
        self.encoder, self.prior = encoder, prior

    def forward(self, x: Tensor, samples: int = 1, **settings) -> ELBO:
        """The same as :meth:`elbo`."""
        return self.elbo(x)

    def elbo(self, x: Tensor, samples: int = 1) -> ELBO:
        """ELBO(0, log q(z|x) − log p(z)) for one draw of z, each ``(B,)`` nats."""
        with torch.no_grad():
            q = self.encoder(x)
            z = q.sample()
        rate = q.log_prob(z) - self.prior().log_prob(z)
        return ELBO(torch.zeros_like(rate), rate)


def auxiliary_prior_step(
    vae: VAE, prior: nn.Module, x: Tensor, optimizer: Optimizer, update: int | None = None
) -> Tensor:
    """One step of ``prior`` up log p(z), z ~ q(z|x), the model unchanged: see :class:`CodePrior`.

    Returns log q(z|x) − log p(z) of each image, ``(B,)`` nats: its mean estimates the new rate.
    """
    return aevb_step(CodePrior(vae.encoder, prior), x, optimizer).rate


def _descend(loss: Tensor, optimizer: Optimizer) -> None:
    """One step down a finite loss, with gradients that were cleared."""
    _check_finite(loss)
    loss.backward()
    optimizer.step()


def _check_finite(loss: Tensor) -> None:
    if not math.isfinite(value := loss.item()):
        raise FloatingPointError(f"expected a finite loss, got {value} nats")


def _detached(bound: ELBO) -> ELBO:
    return ELBO(bound.distortion.detach(), bound.rate.detach())
