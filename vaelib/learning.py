"""One update of the parameters each: the learning algorithms, without the loop around them."""

from collections.abc import Callable

from torch import Tensor
from torch.optim import Optimizer

from vaelib.vae import ELBO, VAE


def aevb_step(
    vae: VAE,
    x: Tensor,
    optimizer: Optimizer,
    samples: int = 1,
    backward: Callable[[Tensor], None] = Tensor.backward,
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

    Returns:
        The bound of each image before the step, without gradient.

    Raises:
        FloatingPointError: if the bound of the batch is not finite; nothing is updated then.
    """
    optimizer.zero_grad(set_to_none=True)
    bound = vae(x, samples)
    loss = -bound.value.mean()
    if not loss.isfinite():
        raise FloatingPointError(f"expected a finite bound, got {-loss.item()} nats")
    backward(loss)
    optimizer.step()
    return ELBO(bound.distortion.detach(), bound.rate.detach())
