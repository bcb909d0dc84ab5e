"""One update of the parameters each: the learning algorithms, without the loop around them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vaelib import hmc
from vaelib.decoders import VariationalWeights
from vaelib.likelihood import check_fixed_weights, log_joint
from vaelib.objectives import Objective
from vaelib.vae import ELBO, VAE

Backward = Callable[[Tensor], None]


def aevb_step(
    vae: VAE,
    x: Tensor,
    optimizer: Optimizer,
    samples: int = 1,
    backward: Backward = Tensor.backward,
    objective: Objective | None = None,
    update: int | None = None,
) -> ELBO:
    """Auto-Encoding Variational Bayes: one gradient step up the bound of a minibatch.

    Kingma & Welling (2013), algorithm 1. Encoder and decoder move together, along the
    reparameterised gradient of the mean bound of the batch.

    Args:
        vae: the model; called as a module, so that a wrapped one works as well.
        x: images ``(B, *image_shape)``.
        optimizer: holds the parameters of encoder, decoder and, where it has any, prior.
        samples: draws of z per image, L in the paper.
        backward: how to backpropagate a loss; an engine passes its own.
        objective: what to descend in place of the negative bound, such as
            :class:`vaelib.objectives.Beta`.
        update: how many updates were made before this one, which some objectives want to know.

    Returns:
        The bound of each image before the step, without gradient, whatever the objective.

    Raises:
        FloatingPointError: if the bound of the batch is not finite; nothing is updated then.
    """
    optimizer.zero_grad()  # first of all: its memory is free for what the networks keep
    if objective is None:
        bound = vae(x, samples)
        loss = bound.distortion + bound.rate
    else:
        bound = vae(x, samples, split=True)
        loss = objective(bound, update)
    _descend(loss.mean(), optimizer, backward)
    return _detached(bound)


def wake_sleep_step(
    vae: VAE,
    x: Tensor,
    optimizer: tuple[Optimizer, Optimizer],
    backward: Backward = Tensor.backward,
) -> ELBO:
    """Wake-sleep: decoder and encoder learn in turn, each from the other's samples.

    Wake: the decoder goes up log p(x|z) + log p(z) with x from the data and z ~ q(z|x).
    Sleep: the encoder goes up log q(z|x) on dreams, z ~ p(z) and x ~ p(x|z).

    The first is the gradient of the bound for the decoder. The second is not its gradient for the
    encoder: it lowers KL(p(z|x) ‖ q(z|x)), the other way round and averaged over dreams rather
    than data, so the two phases together go up no single objective. Hinton, Dayan, Frey & Neal
    (1995); the rival of Kingma & Welling (2013), section 5.

    Args:
        vae: the model.
        x: images ``(B, *image_shape)``.
        optimizer: one for the decoder (and the prior where it has parameters), one for the encoder.
        backward: how to backpropagate a loss; an engine passes its own.

    Returns:
        The bound of each image before the step, with one sample, without gradient.

    Raises:
        FloatingPointError: if a loss is not finite; that phase updates nothing then.
    """
    generative, recognition = optimizer
    with torch.no_grad():
        bound = vae.elbo(x)
        z = vae.encoder(x).sample()
        dreamed_z = vae.prior().sample((len(x),))
        dreamed_x = vae.decoder(dreamed_z).sample()
    generative.zero_grad()
    _descend(-log_joint(vae, x)(z).mean(), generative, backward)
    recognition.zero_grad()
    _descend(-vae.encoder(dreamed_x).log_prob(dreamed_z).mean(), recognition, backward)
    return bound


class MCEM(NamedTuple):
    """What an MCEM step leaves behind: the chains must be carried to the next visit of ``x``.

    Attributes:
        z: one posterior sample per image, ``(B, *latent_shape)``.
        step_size: of the leapfrog integrator, a scalar, adapted.
        info: acceptance and divergences of the trajectory.
        log_joint: log p(x, z) at the new sample before the weight updates, ``(B,)`` nats.
    """

    z: Tensor
    step_size: Tensor
    info: hmc.Info
    log_joint: Tensor


def mcem_step(
    vae: VAE,
    x: Tensor,
    z: Tensor,
    step_size: float | Tensor,
    optimizer: Optimizer,
    leapfrog_steps: int = 10,
    updates: int = 5,
    target: float = 0.9,
    backward: Backward = Tensor.backward,
) -> MCEM:
    """Monte Carlo EM: sample the posterior with HMC, then fit the decoder to the samples.

    E: one trajectory from ``z``, leaving p(z|x) unchanged; the step size moves towards an
    acceptance of ``target``. M: ``updates`` gradient steps up log p(x, z) at that sample. No
    encoder is used or learned. Kingma & Welling (2013), appendix E.

    Args:
        vae: the model.
        x: images ``(B, *image_shape)``.
        z: where the chains of these images stand, ``(B, *latent_shape)``.
        step_size: of the leapfrog integrator, one for all.
        optimizer: holds the parameters of the decoder and, where it has any, of the prior.
        backward: how to backpropagate a loss; an engine passes its own.

    Raises:
        TypeError: a decoder that draws its weights: HMC needs one density.
        FloatingPointError: if the log joint is not finite; nothing is updated then.
    """
    check_fixed_weights(vae)
    density = log_joint(vae, x)
    state, info = hmc.step(density, hmc.init(density, z), step_size, leapfrog_steps)
    size = hmc.adapt(step_size, info, target)
    for _ in range(updates):
        optimizer.zero_grad()
        _descend(-log_joint(vae, x)(state.position).mean(), optimizer, backward)
    return MCEM(state.position, size, info, state.log_density)


def variational_bayes_step(
    vae: VAE,
    x: Tensor,
    count: int,
    optimizer: Optimizer,
    samples: int = 1,
    backward: Backward = Tensor.backward,
) -> ELBO:
    """Full variational Bayes: one step up the bound of the data with uncertain weights.

        log p(X) ≥ Σ_i ELBO_θ(x_i) − KL(q(θ) ‖ p(θ)),   θ ~ q(θ)

    divided by the number of data, so that it reads as nats per image. Kingma & Welling (2013),
    appendix F.

    Args:
        vae: a model whose decoder is :class:`vaelib.decoders.VariationalWeights`.
        x: a minibatch ``(B, *image_shape)``.
        count: number of data N in the whole training set.
        optimizer: holds the parameters of the encoder and of q(θ).
        samples: draws of z per image; the whole batch shares one draw of θ.
        backward: how to backpropagate a loss; an engine passes its own.

    Returns:
        The bound of each image given the drawn weights, without the KL of the weights.

    Raises:
        TypeError: a decoder without a distribution over its weights.
        ValueError: fewer data than the batch holds.
        FloatingPointError: if the bound is not finite; nothing is updated then.
    """
    if not isinstance(vae.decoder, VariationalWeights):
        raise TypeError(f"expected a VariationalWeights decoder, got {type(vae.decoder).__name__}")
    if count < len(x):
        raise ValueError(f"expected count >= batch of {len(x)}, got {count}")
    optimizer.zero_grad()
    bound = vae(x, samples)
    _descend(vae.decoder.rate() / count - bound.value.mean(), optimizer, backward)
    return _detached(bound)


def auxiliary_prior_step(
    vae: VAE,
    prior: nn.Module,
    x: Tensor,
    optimizer: Optimizer,
    backward: Backward = Tensor.backward,
) -> Tensor:
    """Fit a second prior to the codes of a trained model: one step up log p(z), z ~ q(z|x).

    The model stays as it is. The step lowers E[KL(q(z|x) ‖ p(z))], the rate that the model has
    with the new prior, by lowering its part KL(q(z) ‖ p(z)) with the aggregate posterior
    q(z) = E_x[q(z|x)]. Razavi et al. (2019).

    Args:
        vae: the trained model; only its encoder is used.
        prior: ``prior()`` returns p(z), such as :class:`vaelib.priors.AuxiliaryPrior`.
        x: images ``(B, *image_shape)``.
        optimizer: holds the parameters of ``prior``.
        backward: how to backpropagate a loss; an engine passes its own.

    Returns:
        log q(z|x) − log p(z) of each image before the step, ``(B,)`` nats, without gradient: its
        mean estimates the rate with the new prior.

    Raises:
        FloatingPointError: if the loss is not finite; nothing is updated then.
    """
    with torch.no_grad():
        q = vae.encoder(x)
        z = q.sample()
    optimizer.zero_grad()
    log_density = prior().log_prob(z)
    _descend(-log_density.mean(), optimizer, backward)
    return q.log_prob(z) - log_density.detach()


def _descend(loss: Tensor, optimizer: Optimizer, backward: Backward) -> None:
    """Move down a finite loss, with gradients that were cleared."""
    if not math.isfinite(value := loss.item()):
        raise FloatingPointError(f"expected a finite loss, got {value} nats")
    backward(loss)
    optimizer.step()


def _detached(bound: ELBO) -> ELBO:
    return ELBO(bound.distortion.detach(), bound.rate.detach())
