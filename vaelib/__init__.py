"""vaelib: variational autoencoders from the first bound to the δ-VAE, small enough to read.

One equation, three slots::

    ELBO(x) = E_q[log p(x|z)] − KL(q(z|x) ‖ p(z))

    encoder(x) → q(z|x),   prior() → p(z),   decoder(z) → p(x|z)

Every slot is a module that returns a ``torch.distributions.Distribution``.
"""

from vaelib import data
from vaelib.teaching.scaling import scale
from vaelib.training.checkpoint import load, save
from vaelib.training.loop import evaluate, fit
from vaelib.vae import ELBO, VAE, WithoutLatents

__version__ = "0.1.0"
__all__ = ["ELBO", "VAE", "WithoutLatents", "data", "evaluate", "fit", "load", "save", "scale"]
