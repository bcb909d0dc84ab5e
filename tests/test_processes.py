"""Two processes under torchrun, on the CPU: the weights of one, or a bound within its noise."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from vaelib import VAE, WithoutLatents, evaluate, fit
from vaelib.decoders import BernoulliMLP, VariationalWeights
from vaelib.encoders import MLPEncoder
from vaelib.pixelcnn import GatedPixelCNN
from vaelib.priors import AuxiliaryPrior, StandardNormal
from vaelib.training.learning import CodePrior, variational_bayes_step, wake_sleep_step
from vaelib.training.loop import adam

SHAPE = (1, 4, 4)


def images(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64).round()


def pixelcnn():
    torch.manual_seed(0)
    decoder = GatedPixelCNN(None, SHAPE, 4, layers=1, kernel=3, first_kernel=3)
    return WithoutLatents(decoder).double()


def vae():
    torch.manual_seed(0)
    encoder, prior = MLPEncoder((4, 2), SHAPE, 6), StandardNormal((4, 2))
    decoder = GatedPixelCNN((4, 2), SHAPE, 4, layers=1, kernel=3, first_kernel=3, context=3)
    return VAE(encoder, prior, decoder).double()


def code_prior():
    model = vae()
    model.encoder.requires_grad_(False)
    return CodePrior(model.encoder, AuxiliaryPrior(2, 4, 5).double())


def train(model, count=40, epochs=3, **more):
    """40 images in batches of 10: they divide evenly among two processes."""
    settings = {"batch_size": 10, "progress": False, "test": images(7, 2)} | more
    history = fit(model, images(count), epochs=epochs, **settings)
    rows = [[value for name, value in row.items() if name != "seconds"] for row in history.rows]
    return {"weights": model.state_dict(), "rows": torch.tensor(rows, dtype=torch.float64)}


def refusal(step, model):
    pair = [adam(model.decoder.parameters()), adam(model.encoder.parameters())]
    try:
        train(model, step=step, optimizer=pair if step is wake_sleep_step else adam, epochs=1)
    except RuntimeError as error:
        return str(error)


def work(folder):
    """What each of the two processes does; the first writes down how it went."""
    torch.set_num_threads(1)
    results = {
        "pixelcnn": train(pixelcnn(), ema=0.9),
        "uneven": train(pixelcnn(), count=21),
        "vae": train(vae(), epochs=20),
        "code prior": train(code_prior(), epochs=1),
    }
    train(pixelcnn(), epochs=1, checkpoint=f"{folder}/run.pt")
    results["resumed"] = train(pixelcnn(), checkpoint=f"{folder}/run.pt")
    decoder = VariationalWeights(BernoulliMLP(2, SHAPE))
    uncertain = VAE(MLPEncoder(2, SHAPE), StandardNormal(2), decoder).double()
    results["refused"] = [refusal(wake_sleep_step, vae())]
    results["refused"] += [refusal(partial(variational_bayes_step, count=40), uncertain)]
    results["world"] = torch.distributed.get_world_size()
    if torch.distributed.get_rank() == 0:
        torch.save(results, f"{folder}/results.pt")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two processes of torchrun, which talk through gloo on this machine alone."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "work.py").write_text(
        f"import sys\nsys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        f"from test_processes import work\nwork({str(folder)!r})\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "127.0.0.1", "--nproc-per-node", "2", str(folder / "work.py")]
    quiet = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    settings = {"capture_output": True, "text": True, "env": os.environ | quiet}
    done = subprocess.run(command, timeout=240, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    results = torch.load(folder / "results.pt", weights_only=True)
    assert results["world"] == 2
    return results


@pytest.mark.parametrize("case", ["pixelcnn", "resumed"])
def test_two_processes_reach_the_weights_of_one(together, case):
    """In float64: sums in another order differ by parts in 1e15, a wrong share by 1e-3."""
    expected = train(pixelcnn(), **({"ema": 0.9} if case == "pixelcnn" else {}))
    torch.testing.assert_close(together[case], expected, rtol=1e-9, atol=1e-9)
    before = pixelcnn().state_dict()
    moved = [(value - before[name]).abs().max() for name, value in expected["weights"].items()]
    assert max(moved) > 1e-3  # there is something to agree on


def test_a_batch_that_does_not_divide_is_filled_up_with_its_first_images(together):
    """Of 21 images in batches of 10 one is left: both processes take it."""
    expected = train(pixelcnn(), count=21)
    ours, theirs = together["uneven"]["weights"], expected["weights"]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_bound_of_a_vae_is_that_of_one_process_within_its_noise(together):
    runs = train(vae(), epochs=20), together["vae"]
    one, two = (run["rows"][-5:, 2].mean().item() for run in runs)
    # Five epochs of 40 images: the mean bound has a standard error of about 0.1 nats.
    assert one == pytest.approx(two, abs=0.5) and one > -11.5
    model = vae()
    model.load_state_dict(together["vae"]["weights"])
    alone = evaluate(model, images(7, 2), samples=200).value.item()
    # One draw of z for each of seven images: a standard deviation of 0.12 nats.
    assert together["vae"]["rows"][-1, -3].item() == pytest.approx(alone, abs=0.6)


def test_only_the_prior_of_codes_is_trained(together):
    before, after = code_prior().state_dict(), together["code prior"]["weights"]
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"prior"}


def test_a_step_that_uses_the_slots_one_by_one_says_that_it_cannot(together):
    for name, message in zip(("encoder", "decoder"), together["refused"], strict=True):
        assert f"this step uses vae.{name}, but on several processes" in message
