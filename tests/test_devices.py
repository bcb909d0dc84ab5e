"""Devices, without one: fake tensors say where they are, and hold no values.

Two devices in one operation are an error, as on a GPU. Gradients on a pretended GPU would need its
driver: they are checked on the device "meta", which is always there.
"""

from contextlib import contextmanager
from itertools import cycle

import pytest
import torch
from test_vae import DECODERS, ENCODERS, PRIORS, SHAPE, fill
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vaelib.distributions import no_validation
from vaelib.priors import StandardNormal


@contextmanager
def pretending(model, device):
    """What ``model.to(device)`` makes of parameters and buffers, and of nothing else."""
    # cuDNN would look for its driver before it runs an LSTM.
    with no_validation(), torch.backends.cudnn.flags(enabled=False), FakeTensorMode() as mode:
        for part in model.modules():
            for name, value in list(part.named_parameters(recurse=False)):
                setattr(part, name, nn.Parameter(mode.from_tensor(value).detach().to(device)))
            for name, value in list(part.named_buffers(recurse=False)):
                setattr(part, name, mode.from_tensor(value).to(device))
        yield


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize("device", ["cuda", "meta"])
@pytest.mark.parametrize("slots", list(zip(cycle(ENCODERS), cycle(PRIORS), DECODERS)), ids=str)
def test_every_slot_stays_on_its_device(slots, device, monkeypatch):
    if device == "meta":  # autocast does not know it
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    vae = fill(*slots)
    with pretending(vae, device):
        x = torch.rand(3, *SHAPE, device=device)
        bound = vae(x, split=True)
        made = [bound.distortion, bound.rate, vae.sample(2), vae.reconstruct(x)]
        if device == "meta":
            bound.value.sum().backward()
            made += [parameter.grad for parameter in vae.parameters()]
        assert {one.device.type for one in made} == {device}


class Elsewhere(StandardNormal):
    def forward(self):
        return self.loc + torch.zeros(2)  # on the processor, whatever the device


class Kept(StandardNormal):
    spread = torch.ones(2)  # an attribute does not follow the module

    def forward(self):
        return self.loc + self.spread


@pytest.mark.parametrize("wrong", [Elsewhere, Kept])
def test_a_wrong_module_is_seen(wrong):
    prior = wrong(2)
    with pretending(prior, "cuda"), pytest.raises((AssertionError, RuntimeError)):
        prior()
