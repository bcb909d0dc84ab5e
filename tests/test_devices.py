"""Devices, without one: tensors that say where they are, and hold no values.

A fake tensor has a shape, a type and a device. Two devices in one operation are an error, as on a
GPU; so is a question for a value, which a CUDA graph could not answer. Gradients on a pretended
GPU would need its driver: updates are checked on the device "meta", which is always there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vaelib.data import Images
from vaelib.decoders import BernoulliMLP, GaussianMLP, VariationalWeights
from vaelib.diagnostics import mutual_information, shuffled
from vaelib.encoders import MLPEncoder
from vaelib.graphs import unchecked
from vaelib.learning import aevb_step, auxiliary_prior_step, mcem_step
from vaelib.likelihood import appendix_d, importance_sampled
from vaelib.linear_vae import linear_slots
from vaelib.objectives import FreeBits
from vaelib.paper import tiny
from vaelib.priors import AuxiliaryPrior, StandardNormal
from vaelib.race import LATENTS, METHODS, GraphLane, Setting, losses
from vaelib.recipes import build
from vaelib.rows import RECIPES
from vaelib.settings import Recipe
from vaelib.vae import VAE

SIDE = 3  # drawing takes a pass for each pixel
SHAPE = (1, SIDE, SIDE)
SMALL = Recipe(image_shape=SHAPE, channels=4, layers=1, context=4, encoder_size=4, encoder_layers=1)
ROWS = {"latents": (SIDE, 2), "alpha": (0.5, 0.9)}


def small(recipe: Recipe) -> Recipe:
    """A row of the tables, with networks and images as small as can be."""
    latents = recipe.latents and (SIDE, recipe.latents[1])
    return replace(tiny(recipe), image_shape=(recipe.image_shape[0], SIDE, SIDE), latents=latents)


def mlp_vae(decoder: nn.Module) -> VAE:
    return VAE(MLPEncoder(2, SHAPE, 5), StandardNormal(2), decoder)


def with_auxiliary_prior() -> VAE:
    vae = build(replace(SMALL, **ROWS))
    return VAE(vae.encoder, AuxiliaryPrior(2, SIDE), vae.decoder)


MODELS = {
    **{name: lambda recipe=recipe: build(small(recipe)) for name, recipe in RECIPES.items()},
    "one vector, a map": lambda: build(
        replace(SMALL, decoder="pixelcnn", latents=3, encoder="mlp", inject="map")
    ),
    "a map for rows": lambda: build(replace(SMALL, **ROWS, inject="map", position=False)),
    "256 levels": lambda: build(replace(SMALL, **ROWS, likelihood="categorical", levels=4)),
    "a rate in each": lambda: build(
        replace(SMALL, decoder="mlp", latents=5, encoder="mlp", delta=0.1)
    ),
    "Gaussian pixels": lambda: mlp_vae(GaussianMLP(2, SHAPE, 5)),
    "uncertain weights": lambda: mlp_vae(VariationalWeights(BernoulliMLP(2, SHAPE, 5))),
    "linear": lambda: VAE(*linear_slots(SIDE, 2)),
    "auxiliary prior": with_auxiliary_prior,
}


def pretended(model: nn.Module, mode: FakeTensorMode, device: str) -> nn.Module:
    """What ``model.to(device)`` makes of its parameters and buffers, and of nothing else."""
    for part in model.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            there = mode.from_tensor(value).detach().to(device)
            setattr(part, name, nn.Parameter(there, value.requires_grad))
        for name, value in list(part.named_buffers(recurse=False)):
            setattr(part, name, mode.from_tensor(value).to(device))
    return model


@contextmanager
def pretending() -> Iterator[FakeTensorMode]:
    """New tensors are fake inside, also those on a GPU that is not there."""
    # cuDNN would look for its driver before it runs an LSTM.
    with unchecked(), torch.backends.cudnn.flags(enabled=False), FakeTensorMode() as mode:
        yield mode


@contextmanager
def half_precision() -> Iterator[None]:
    """Autocast to bfloat16 on CUDA; ``torch.autocast`` would not begin it without a GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


class Answered(TorchDispatchMode):
    """Where a value is asked for, the answer is one, or true."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1.0
        return func(*args, **(kwargs or {}))


class Recorded(TorchDispatchMode):
    """Nothing may come from another device: a CUDA graph cannot wait for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, made))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}
        if len(devices) > 1:
            raise RuntimeError(f"{func}: expected one device, got {sorted(devices)}")
        return made


def images(model: nn.Module, device: str) -> torch.Tensor:
    shape = getattr(model.decoder, "image_shape", (SIDE,))
    if isinstance(model.decoder, VariationalWeights):
        shape = model.decoder.decoder.image_shape
    return torch.rand(3, *shape, device=device)


def check_bound(model: nn.Module, x: torch.Tensor) -> None:
    """The bound is on the GPU, and in full precision."""
    bound = model(x, split=True)
    for part in (bound.distortion, bound.rate):
        assert (part.device.type, part.dtype, part.shape) == ("cuda", torch.float32, (3,))


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize("name", MODELS)
def test_every_slot_stays_on_its_device(name):
    model = MODELS[name]()
    with pretending() as mode:
        x = images(pretended(model, mode, "cuda"), "cuda")
        check_bound(model, x)
        with half_precision():
            check_bound(model, x)
        drawn = [model.sample(2)]
        if isinstance(model, VAE):
            z = model.encoder(x).sample()
            drawn += [model.reconstruct(x), shuffled(z), importance_sampled(model, x, 2)]
            with Answered():
                mutual_information(model, x)
        assert {one.device.type for one in drawn} == {"cuda"}


@pytest.fixture
def no_autocast_on_meta(monkeypatch):
    """Autocast does not know the device, and says so with an error."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)


@pytest.mark.usefixtures("no_autocast_on_meta")
@pytest.mark.parametrize("name", ["cifar10-delta-vae", "256 levels", "Gaussian pixels"])
def test_an_update_stays_on_its_device(name):
    model = MODELS[name]()
    with pretending() as mode, Answered():
        x = images(pretended(model, mode, "meta"), "meta")
        optimizer = torch.optim.Adam(model.parameters())
        aevb_step(model, x, optimizer, objective=FreeBits(1.0, "row"))
        assert all(p.grad.device.type == "meta" for p in model.parameters())
        z = torch.zeros(3, *model.prior().event_shape, device="meta")
        size = torch.full((), 0.1, device="meta")  # older versions fake no tensor made of a number
        visit = mcem_step(model, x, z, size, optimizer, leapfrog_steps=1, updates=1)
        assert visit.step_size.device.type == visit.z.device.type == "meta"


@pytest.mark.usefixtures("no_autocast_on_meta")
def test_an_auxiliary_prior_learns_on_its_device():
    with pretending() as mode, Answered():
        vae = pretended(MODELS["auxiliary prior"](), mode, "meta")
        optimizer = torch.optim.Adam(vae.prior.parameters())
        rate = auxiliary_prior_step(vae, vae.prior, images(vae, "meta"), optimizer)
        assert rate.device.type == "meta"
        assert all(p.grad.device.type == "meta" for p in vae.prior.parameters())


@pytest.mark.usefixtures("no_autocast_on_meta")
@pytest.mark.parametrize("density", ["gaussian", "kernel"])
def test_appendix_d_stays_on_its_device(density):
    short = {"samples": 3, "leapfrog_steps": 1, "burn_in": 2, "thin": 1}
    with pretending() as mode, Answered():
        vae = pretended(MODELS["linear"](), mode, "meta")
        log_p = appendix_d(vae, images(vae, "meta"), density=density, **short)
        assert log_p.device.type == "meta"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LATENTS)
def test_an_update_of_the_race_can_be_recorded(name, method):
    """It asks nothing, and takes nothing from the processor's memory."""
    sets = Images(torch.rand(9, *SHAPE), None, torch.rand(3, *SHAPE), None, "made up")
    lane = GraphLane(Setting(name, 2, method, hidden=5), 0.1, sets, torch.device("cpu"))
    with pretending() as mode:
        for device in ("meta", "cuda"):
            lane.train = torch.rand(9, *SHAPE, device=device)
            pretended(lane.vae, mode, device)
            if device == "meta":
                lane.prepare()
                with Recorded():
                    lane.update()
                states = [state for one in lane.optimizers for state in one.state]
                assert {state.device.type for state in states} == {"meta"}
            else:  # without gradients
                with Recorded():
                    found = list(losses(lane.vae, lane.train[:3], method))
                assert {loss.device.type for loss in found} == {"cuda"}


class Elsewhere(StandardNormal):
    """It makes a tensor on the processor, whatever the device."""

    def forward(self):
        return self.loc + torch.zeros(2)


class Kept(StandardNormal):
    """An attribute does not follow the module."""

    spread = torch.ones(2)

    def forward(self):
        return self.loc + self.spread


class Curious(StandardNormal):
    """It asks for a value."""

    def forward(self):
        return self.loc if self.scale.min() > 0 else None


class Supplied(StandardNormal):
    """It takes a number from the processor's memory, at every call."""

    def forward(self):
        return self.loc + torch.tensor(1.0).to(self.loc.device)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (Elsewhere, RuntimeError),
        (Kept, (AssertionError, RuntimeError)),  # it is not even fake
        (Curious, DataDependentOutputException),
        (Supplied, RuntimeError),
    ],
)
def test_a_wrong_module_is_seen(wrong, error):
    """These checks can fail: each module does what a GPU, or a graph of one, would not do."""
    with pretending() as mode:
        right, prior = (pretended(kind(2), mode, "cuda") for kind in (StandardNormal, wrong))
        with Recorded():
            assert right().sample().device.type == "cuda"
            with pytest.raises(error):
                prior()
