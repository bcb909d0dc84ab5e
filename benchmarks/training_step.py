"""How fast is training? ``python benchmarks/training_step.py [--json FILE]``

Two comparisons, in one run on the machine at hand, of one model on one data set: the MLP VAE of
Kingma & Welling (2013), 784-500-20, tanh, Bernoulli on grey levels, batches of 100, Adam 1e-3,
on the 4,000 embedded digits.

1. One update: ``aevb_step`` against a loop written by hand in plain PyTorch.
   Required: not slower by more than 10 %.
2. One epoch: ``fit`` against the trainer of pythae (only where it is installed).
   Required: at least 1.3 × faster.

The contestants take turns, ratios are taken within a repeat, and medians are reported.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from itertools import cycle, islice

import torch
from measure import interleaved, judge, main, show, stopwatch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from vaelib import VAE, data, fit
from vaelib.decoders import BernoulliMLP
from vaelib.encoders import MLPEncoder
from vaelib.priors import StandardNormal
from vaelib.training.learning import aevb_step

PIXELS, HIDDEN, LATENTS, BATCH, LR = 784, 500, 20, 100, 1e-3
UPDATES, TURNS = 10, 4  # of comparison 1: updates in a turn, turns in a repeat
EPOCHS = 4  # of one turn of comparison 2; the first one, which also sets up, is not counted
SLOWEST_STEP, SLOWEST_EPOCH = 1.10, 1 / 1.3  # the requirements, as ratios of seconds


def new_vae(seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    return VAE(MLPEncoder(LATENTS, hidden=HIDDEN), StandardNormal(LATENTS), BernoulliMLP(LATENTS))


class PlainVAE(nn.Module):
    """The same model with nothing of ours in it: six lines of PyTorch and their loss."""

    def __init__(self):
        super().__init__()
        self.hidden_x = nn.Linear(PIXELS, HIDDEN)
        self.code = nn.Linear(HIDDEN, 2 * LATENTS)
        self.hidden_z = nn.Linear(LATENTS, HIDDEN)
        self.logits = nn.Linear(HIDDEN, PIXELS)

    def forward(self, x: Tensor) -> Tensor:
        """Minus the mean bound of a batch ``(B, 784)``, nats per image."""
        mean, log_variance = self.code(torch.tanh(self.hidden_x(x))).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        logits = self.logits(torch.tanh(self.hidden_z(z)))
        distortion = binary_cross_entropy_with_logits(logits, x, reduction="sum")
        rate = -0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp())
        return (distortion + rate) / len(x)


def plain_step(model: PlainVAE, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss = model(x)
    loss.backward()
    optimizer.step()


def copy_weights(source: nn.Module, target: nn.Module) -> nn.Module:
    """Both list the same layers in the same order."""
    with torch.no_grad():
        for new, old in zip(target.parameters(), source.parameters(), strict=True):
            new.copy_(old)
    return target


def adam(model: nn.Module, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=LR, fused=fused)


# --- Comparison 1: one update ---


def step_contestants(images: Tensor) -> dict[str, Callable[[], float]]:
    """Each trains its own model for a few updates and returns seconds per update.

    Turns are short: a machine that slows down for a while then slows all contestants alike.
    """
    ours = images.split(BATCH)
    plain = images.flatten(1).split(BATCH)

    def turn(step, model, optimizer, batches) -> float:
        def work():
            for x in islice(batches, UPDATES):
                step(model, x, optimizer)

        return stopwatch(work, images.device) / UPDATES

    contestants = {}
    for kind, fused in {"fused Adam": True, "Adam": False}.items():
        vae, by_hand = new_vae().to(images.device), PlainVAE().to(images.device)
        contestants[f"aevb_step, {kind}"] = partial(
            turn, aevb_step, vae, adam(vae, fused), cycle(ours)
        )
        contestants[f"plain PyTorch, {kind}"] = partial(
            turn, plain_step, by_hand, adam(by_hand, fused), cycle(plain)
        )
    return contestants


def check_same_model(images: Tensor) -> None:
    """From the same weights and noise, both loops must reach the same weights."""
    vae = new_vae().to(images.device)
    by_hand = copy_weights(vae, PlainVAE().to(images.device))
    for step, model, batches in [
        (aevb_step, vae, images.split(BATCH)),
        (plain_step, by_hand, images.flatten(1).split(BATCH)),
    ]:
        optimizer = adam(model, fused=True)
        torch.manual_seed(1)
        for x in batches[:5]:
            step(model, x, optimizer)
    for ours, theirs in zip(vae.parameters(), by_hand.parameters(), strict=True):
        # Adam's first updates have the size of the step, however small the gradient: a rounding
        # error can move a weight whose gradient is nearly zero, so the mean must agree.
        gap = (ours - theirs).abs().mean().item()
        if gap > 0.01 * LR:
            raise AssertionError(f"the two loops train different models: mean gap {gap:.1e}")


# --- Comparison 2: one epoch ---


def fit_turn(images: Tensor, fused: bool) -> float:
    vae = new_vae().to(images.device)
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "device": images.device}
    ends = fit(vae, images, optimizer=adam(vae, fused), **settings)["seconds"]
    return (ends[-1] - ends[0]) / (EPOCHS - 1)


def pythae_turn(images: Tensor, fused: bool) -> float:
    """pythae's own model, loss, pipeline and trainer, with networks of the same sizes."""
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    ends = []

    class Clock(TrainingCallback):
        def on_epoch_end(self, training_config, **kwargs):
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            learning_rate=LR,
            optimizer_cls="Adam",
            optimizer_params={"fused": True} if fused else None,
            no_cuda=images.device.type == "cpu",
        )
        pipeline = TrainingPipeline(model=pythae_vae(), training_config=config)
        pipeline(train_data=images, callbacks=[Clock()])
    return (ends[-1] - ends[0]) / (EPOCHS - 1)


def pythae_vae() -> nn.Module:
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.hidden, self.code = nn.Linear(PIXELS, HIDDEN), nn.Linear(HIDDEN, 2 * LATENTS)

        def forward(self, x):
            mean, log_variance = self.code(torch.tanh(self.hidden(x.flatten(1)))).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.hidden, self.logits = nn.Linear(LATENTS, HIDDEN), nn.Linear(HIDDEN, PIXELS)

        def forward(self, z):
            probabilities = torch.sigmoid(self.logits(torch.tanh(self.hidden(z))))
            return ModelOutput(reconstruction=probabilities.reshape(-1, 1, 28, 28))

    torch.manual_seed(0)
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENTS, reconstruction_loss="bce")
    return PythaeVAE(model_config=config, encoder=Encoder(), decoder=Decoder())


def check_same_loss(images: Tensor) -> None:
    """With the same weights and noise, pythae's loss must be minus our bound."""
    vae, theirs = new_vae(), pythae_vae()
    copy_weights(vae.encoder, theirs.encoder)
    copy_weights(vae.decoder, theirs.decoder)
    x = images[:BATCH].cpu()
    torch.manual_seed(1)
    ours = -vae.elbo(x).value.mean().item()
    torch.manual_seed(1)
    loss = theirs({"data": x}).loss.item()
    if abs(ours - loss) > 1e-4 * abs(ours):  # float32 sums of 784 terms
        raise AssertionError(f"pythae trains another model: {loss} against {ours} nats")


def have_pythae() -> bool:
    try:
        import pythae.trainers  # noqa: F401
    except ImportError:
        return False
    logging.disable(logging.INFO)  # it logs every epoch to the console
    return True


# --- The report ---


def compare_steps(images: Tensor, repeats: int) -> dict:
    check_same_model(images)
    seconds = interleaved(step_contestants(images), TURNS * repeats)
    show("One update", "ms", 1e3, seconds)
    ratios = [
        judge(seconds, f"aevb_step, {kind}", f"plain PyTorch, {kind}", SLOWEST_STEP, images.device)
        for kind in ("fused Adam", "Adam")
    ]
    return {"seconds_per_update": seconds, "ratios": ratios}


def compare_epochs(images: Tensor, repeats: int) -> dict | None:
    if not have_pythae():
        print("\nOne epoch: left out, because pythae is not installed (see benchmarks/README.md).")
        return None
    check_same_loss(images)
    contestants = {
        "fit": partial(fit_turn, images, True),
        "pythae": partial(pythae_turn, images, False),
        "fit, Adam not fused": partial(fit_turn, images, False),
        "pythae, fused Adam": partial(pythae_turn, images, True),
    }
    # Progress bars are drawn, as a user would have them, and thrown away.
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        seconds = interleaved(contestants, repeats)
    show(f"One epoch of {len(images):,} images", "s", 1, seconds)
    ratios = [
        judge(seconds, "fit", "pythae", SLOWEST_EPOCH, images.device),
        judge(seconds, "fit", "pythae, fused Adam"),
        judge(seconds, "fit, Adam not fused", "pythae"),
    ]
    return {"seconds_per_epoch": seconds, "ratios": ratios}


def measure(device: torch.device, repeats: int) -> dict:
    images = data.mnist("5k").train.to(device)
    return {"step": compare_steps(images, repeats), "epoch": compare_epochs(images, repeats)}


if __name__ == "__main__":
    main("One update and one epoch of training.", measure, repeats=15)
