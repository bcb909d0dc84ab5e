"""The loop: reproducible, resumable bit for bit, interruptible, on data of one's own."""

import contextlib
import copy
import os
import signal
import threading
from functools import partial

import numpy as np
import pytest
import torch
from conftest import refusals
from torch import nn
from torch.utils.data import TensorDataset

from vaelib import VAE, WithoutLatents, data, evaluate, fit
from vaelib.decoders import BernoulliMLP, VariationalWeights
from vaelib.encoders import MLPEncoder
from vaelib.inference.linear_vae import PPCA, linear_slots
from vaelib.pixelcnn import GatedPixelCNN
from vaelib.priors import StandardNormal
from vaelib.training.learning import aevb_step, variational_bayes_step, wake_sleep_step
from vaelib.training.loop import adam, linear_decay

SHAPE = (1, 4, 3)


def small_vae(seed=0):
    torch.manual_seed(seed)
    return VAE(MLPEncoder(2, SHAPE, 6), StandardNormal(2), BernoulliMLP(2, SHAPE, 6))


def images(n=25, seed=1):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def run(vae, epochs=3, **settings):
    settings = {"train": images(), "batch_size": 10, "progress": False} | settings
    return fit(vae, epochs=epochs, **settings)


def assert_same_weights(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


class Stop(Exception):
    pass


def die(*_, **__):
    raise Stop


def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)


EVENTS = {}  # number of an update -> what happens before it
SEEN = []


def eventful(vae, x, optimizer, update):
    """aevb_step, and what EVENTS says."""
    SEEN.append(x)
    EVENTS.get(update, lambda: None)()
    return aevb_step(vae, x, optimizer, update)


@pytest.fixture(autouse=True)
def no_events():
    EVENTS.clear()
    SEEN.clear()


def test_history_has_one_row_an_epoch_with_all_numbers(capsys):
    history = run(small_vae(), test=images(5, 2), evaluate_every=2, progress=True)
    assert "9/9" in capsys.readouterr().err  # three epochs of three updates
    table = history.table()
    assert table["epoch"].tolist() == [1, 2, 3]
    assert table["samples"].tolist() == [25, 50, 75]
    for split in ("train", "test"):
        total = table[f"{split}_distortion"] + table[f"{split}_rate"]
        assert (table[f"{split}_bound"] + total).abs().dropna().max() < 1e-4
    assert table["test_bound"].isna().tolist() == [True, False, False]
    assert table["seconds"].is_monotonic_increasing
    assert history["samples"] == [25, 50, 75] and not history.interrupted
    with pytest.raises(KeyError, match="test_bond"):
        history["test_bond"]


def test_every_image_is_seen_once_an_epoch_in_another_order_and_transformed():
    run(small_vae(), epochs=2, step=eventful, transform=lambda x: x / 2)
    assert [len(x) for x in SEEN] == [10, 10, 5] * 2
    first, second = torch.cat(SEEN[:3]), torch.cat(SEEN[3:])
    same = [sorted((2 * x).sum((1, 2, 3)).tolist()) for x in (first, second, images() / 2)]
    assert same[0] == same[1] == same[2] and not torch.equal(first, second)


def test_weights_depend_on_the_seed_alone():
    one, other, third = small_vae(), small_vae(), small_vae()
    run(one, seed=5)
    torch.manual_seed(99)
    expected = torch.rand(4)
    torch.manual_seed(99)
    run(other, seed=5, test=images(5, 2), test_batch_size=2)
    assert torch.equal(torch.rand(4), expected)  # the caller's random state is left alone
    run(third, seed=6)
    assert_same_weights(one, other)
    assert not torch.equal(next(one.parameters()), next(third.parameters()))


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("update", [1, 3, 4, 8])
@pytest.mark.parametrize("optimizer", [adam, partial(torch.optim.Adagrad, lr=np.float64(0.02))])
def test_resume_equals_uninterrupted(tmp_path, update, optimizer, ema):
    """A run that dies during an update goes on from its last whole epoch, bit for bit."""
    settings = {"optimizer": optimizer, "ema": ema, "test": images(5, 2), "schedule": linear_decay}
    settings |= {"step": eventful}
    straight = small_vae()
    expected = run(straight, **settings)
    settings["checkpoint"] = tmp_path / "run.pt"
    EVENTS[update] = die
    with pytest.raises(Stop):
        run(small_vae(), **settings)
    EVENTS.clear()
    assert settings["checkpoint"].exists() == (update >= 3)
    resumed = small_vae(seed=7 if update >= 3 else 0)  # the file's weights replace these
    history = run(resumed, **settings)
    assert_same_weights(straight, resumed)
    for column in ("test_bound", "train_bound"):
        assert history[column] == expected[column]
    if ema:
        assert_same_weights(history.average, expected.average)


@pytest.mark.parametrize("update", [1, 2, 4])
def test_ctrl_c_stops_between_two_updates(capsys, update):
    before = signal.getsignal(signal.SIGINT)
    EVENTS[update] = interrupt
    history = run(small_vae(), step=eventful)
    assert history.interrupted and len(history.rows) == update // 3
    assert f"interrupted after update {update + 1} of 9" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before  # not always Python's own: see nohup


def test_a_finished_run_says_so_and_can_be_made_longer(tmp_path, capsys):
    settings = {"checkpoint": tmp_path / "run.pt"}
    straight, vae = small_vae(), small_vae()
    run(straight, epochs=5)
    run(vae, epochs=3, **settings)
    before = copy.deepcopy(vae)
    run(vae, epochs=3, progress=True, **settings)
    assert "run.pt: complete" in capsys.readouterr().err
    assert_same_weights(before, vae)
    with pytest.raises(ValueError, match="holds 3 epochs, expected at most 2"):
        run(small_vae(), epochs=2, **settings)
    run(vae, epochs=5, **settings)
    assert_same_weights(straight, vae)


def test_an_evaluation_that_fails_does_not_lose_the_epoch(tmp_path):
    settings = {"checkpoint": tmp_path / "run.pt", "test": images(5, 2), "epochs": 1}
    straight, resumed = small_vae(), small_vae()
    expected = run(straight, **settings | {"checkpoint": None})
    with pytest.raises(Stop), pytest.MonkeyPatch.context() as patch:
        patch.setattr("vaelib.training.loop._evaluate", die)
        run(small_vae(), **settings)
    history = run(resumed, **settings)
    assert history["test_bound"] == expected["test_bound"]
    assert_same_weights(straight, resumed)


# What a run depends on: each change is refused by name, though every shape fits.
CHANGES = {
    "model.prior.scale": lambda: {"model": edited("prior", "scale", torch.full((2,), 2.0))},
    "model.encoder.network.1": lambda: {"model": edited("encoder.network", "1", nn.ReLU())},
    "optimizer": lambda: {"optimizer": partial(torch.optim.SGD, lr=0.1)},
    "optimizer[0].groups[0].lr": lambda: {"optimizer": partial(adam, lr=1e-4)},
    "step": lambda: {"step": partial(aevb_step, samples=2)},
    "schedule": lambda: {"schedule": linear_decay},
    "transform": lambda: {"transform": data.binarize},
    "train": lambda: {"train": images().flip(0)},
    "test": lambda: {"test": images(5, 2)},
    "seed": lambda: {"seed": 1},
    "batch_size": lambda: {"batch_size": 9},
    "ema": lambda: {"ema": 0.9},
    "bf16": lambda: {"bf16": True},
}


def edited(part, name, value):
    vae = small_vae()
    setattr(vae.get_submodule(part), name, value)
    return vae


@pytest.mark.parametrize("changed", CHANGES)
def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path, changed):
    checkpoint = tmp_path / "run.pt"
    run(small_vae(), epochs=1, checkpoint=checkpoint)
    settings = {"model": small_vae(), "epochs": 2} | CHANGES[changed]()
    with pytest.raises(ValueError, match=r"run\.pt is of a run with other settings") as refusal:
        run(settings.pop("model"), checkpoint=checkpoint, **settings)
    assert f" {changed}" in str(refusal.value), refusal.value


def test_damaged_files_and_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    vae = small_vae()
    run(vae, epochs=1, checkpoint="~/beta0.5")  # the name as it is, no other ending
    whole = (tmp_path / "beta0.5").read_bytes()
    middle = whole.find(next(vae.parameters()).detach().numpy().tobytes()[:40])
    assert middle > 0
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (flipped, whole[:middle], b"", b"no checkpoint"):
        (tmp_path / "beta0.5").write_bytes(content)
        with pytest.raises(ValueError, match=r"beta0\.5: expected a file of vaelib"):
            run(small_vae(), checkpoint="~/beta0.5")
    torch.save({"a": 1}, tmp_path / "beta0.5")
    with pytest.raises(ValueError, match="expected a checkpoint of fit"):
        run(small_vae(), checkpoint="~/beta0.5")


def test_two_runs_with_one_file_take_turns(tmp_path):
    settings = {"checkpoint": tmp_path / "run.pt", "epochs": 2}
    vaes = [small_vae(), small_vae()]
    threads = [threading.Thread(target=run, args=(vae,), kwargs=settings) for vae in vaes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same_weights(*vaes)
    straight = small_vae()
    run(straight, epochs=2)
    assert_same_weights(straight, vaes[0])


def eventful_wake_sleep(vae, x, optimizer, update):
    SEEN.append(x)
    return wake_sleep_step(vae, x, optimizer, update)


def test_wake_sleep_through_fit_is_wake_sleep_by_hand():
    vae, by_hand = small_vae(), small_vae()
    halves = ((v.decoder, v.encoder) for v in (vae, by_hand))
    optimizers = [[adam(half.parameters()) for half in pair] for pair in halves]
    run(vae, epochs=2, optimizer=optimizers[0], step=eventful_wake_sleep)
    torch.manual_seed(0)
    for x in SEEN:
        wake_sleep_step(by_hand, x, optimizers[1])
    assert_same_weights(vae, by_hand)
    with pytest.raises(TypeError, match="expected two optimizers"):
        run(small_vae(), step=wake_sleep_step)


def test_fit_reaches_the_exact_optimum_of_ppca():
    torch.manual_seed(0)
    x = torch.randn(400, 2) @ torch.randn(2, 5) + 0.5 * torch.randn(400, 5)
    exact = PPCA.fit(x.double(), 2).log_prob(x.double()).mean().item()
    vae = VAE(*linear_slots(5, 2))
    fit(vae, x, epochs=100, batch_size=20, optimizer=partial(adam, lr=0.01), progress=False)
    bound = evaluate(vae, x, samples=50).value.item()
    # The bound over 400 images and 50 samples has a standard error near 0.01 nats.
    assert exact - 0.1 < bound < exact + 0.03


def test_a_transform_may_change_the_number_of_images():
    """The mean is over what was trained on."""
    twice = lambda x: torch.cat([x, x])  # noqa: E731
    bounds = [run(small_vae(), epochs=1, transform=t)["train_bound"][0] for t in (None, twice)]
    assert bounds[0] == pytest.approx(bounds[1], abs=0.5)


def test_one_task_of_a_cluster_job_trains_alone(monkeypatch):
    """A scheduler's variables do not make a run one of several: only torchrun's do."""
    straight, vae = small_vae(), small_vae()
    run(straight)
    for name, value in {"SLURM_NTASKS": 2, "SLURM_PROCID": 1, "WORLD_SIZE": 2, "RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    run(vae)
    assert_same_weights(straight, vae)


def test_the_average_is_the_exponential_one():
    """By hand: the first weights, then e old + (1 − e) new with e = min(ema, (1 + u)/(10 + u))."""
    weights, vae, test = [], small_vae().double(), images(7, 2).double()

    def step(model, x, optimizer, update):
        bound = aevb_step(model, x, optimizer, update)
        weights.append([p.detach().clone() for p in vae.parameters()])
        return bound

    settings = {"train": images().double(), "epochs": 4, "test": test}
    history = run(vae, step=step, ema=0.5, **settings)
    expected = weights[0]
    for u, new in enumerate(weights[1:], 2):
        e = min(0.5, (1 + u) / (10 + u))
        expected = [e * one + (1 - e) * other for one, other in zip(expected, new, strict=True)]
    found = [parameter.data for parameter in history.average.parameters()]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert history["test_bound"][-1] == evaluate(history.average, test).value.item()


def test_the_schedule_is_a_factor_of_the_step_size_and_is_undone():
    vae, lrs = small_vae(), []
    optimizer = torch.optim.SGD(vae.parameters(), lr=np.float32(0.25))

    def step(model, x, optimizer, update):
        lrs.append(optimizer.param_groups[0]["lr"])
        if update == 8:
            die()
        return aevb_step(model, x, optimizer, update)

    with pytest.raises(Stop):
        run(vae, optimizer=optimizer, schedule=linear_decay, step=step)
    assert lrs == pytest.approx([0.25 * min(1, 2 * (1 - u / 9)) for u in range(9)])
    assert optimizer.param_groups[0]["lr"] == 0.25  # though the run ended in an error
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    run(vae, epochs=1, optimizer=optimizer)
    theirs.step()
    run(vae, epochs=1, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_evaluate_is_the_mean_bound_and_repeatable():
    vae, x = small_vae(), images()
    one, other = evaluate(vae, x, samples=3), evaluate(vae, x, samples=3)
    assert one == other and one.value.shape == ()
    torch.manual_seed(0)
    torch.testing.assert_close(one.value, vae.elbo(x, 3).value.mean().detach())
    assert evaluate(vae, x, seed=1) != evaluate(vae, x, seed=2)
    sizes = [evaluate(vae, x, 400, batch_size=size).value.item() for size in (4, 25)]
    assert sizes[0] == pytest.approx(sizes[1], abs=0.05)


def test_fit_trains_and_evaluate_puts_every_module_back():
    vae = small_vae().eval()
    run(vae, epochs=1)
    assert vae.training
    vae.encoder.eval()  # as its owner wants it
    with contextlib.suppress(ValueError):
        evaluate(vae, images() + 1)
    evaluate(vae, images())
    assert vae.training and vae.decoder.training and not vae.encoder.training


def test_bf16_keeps_the_bound_and_the_weights_in_float32():
    one, other = small_vae(), small_vae()
    bounds = [run(one)["train_bound"][-1], run(other, bf16=True)["train_bound"][-1]]
    assert bounds[0] != bounds[1] == pytest.approx(bounds[0], rel=1e-3)
    assert all(p.dtype == torch.float32 for p in other.parameters())


def test_a_compiled_model_reaches_the_same_weights(monkeypatch):
    """Traced and run as it is, without a compiler; its checkpoint has the names of any other."""
    compiler = torch.compile
    eager = lambda model, dynamic: compiler(model, backend="eager", dynamic=dynamic)  # noqa: E731
    monkeypatch.setattr(torch, "compile", eager)
    one, other = small_vae(), small_vae()
    run(one)
    run(other, compile=True)
    assert_same_weights(one, other)
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\]"):
        other.elbo(images() + 1)  # torch.compile switched torch's checks off, not these


def labelled():
    return torch.arange(25) % 3


FORMS = {
    "array": lambda x: x.numpy(),
    "float64 array": lambda x: x.double().numpy(),
    "Images": lambda x: data.Images(x, labelled(), x, labelled(), "mine"),
    "Dataset": lambda x: TensorDataset(x, labelled()),
}


@pytest.mark.parametrize("form", FORMS)
def test_fit_and_evaluate_take(form):
    one, other = small_vae(), small_vae()
    run(one)
    run(other, train=FORMS[form](images()))
    assert_same_weights(one, other)
    assert evaluate(one, images()) == evaluate(other, FORMS[form](images()))


def classes(latents=None):
    torch.manual_seed(0)
    sizes = {"channels": 4, "layers": 1, "kernel": 3, "first_kernel": 3}
    return GatedPixelCNN(latents=latents, image_shape=SHAPE, classes=3, **sizes)


@pytest.mark.parametrize("latents", [None, 2])
def test_labels_reach_the_decoder(latents):
    """Images that are all 0, ½ of ones, or all 1 by class: the class is worth what it tells."""
    x = (labelled() == 1).float()[:, None, None, None].expand(25, *SHAPE).clone()
    bounds = {}
    for name, labels in {"true": labelled(), "useless": torch.zeros(25).long()}.items():
        decoder = classes(latents)
        vae = WithoutLatents(decoder)
        if latents:
            vae = VAE(MLPEncoder(2, SHAPE, 6), StandardNormal(2), decoder)
        settings = {"labels": labels, "test": x, "test_labels": labels}
        settings |= {"optimizer": partial(adam, lr=0.02), "batch_size": 25}
        bounds[name] = run(vae, epochs=30, train=x, **settings)["test_bound"][-1]
        assert evaluate(vae, x, labels=labels).value.item() == bounds[name]
        assert vae.sample(3, labels=torch.tensor([0, 1, 2])).shape == (3, *SHAPE)
    assert bounds["true"] > bounds["useless"] + 0.1
    history = run(vae, train=TensorDataset(x, labelled()))  # labels of the data set
    assert len(history.rows) == 3


REFUSED = [
    ({"epochs": 0}, "epochs >= 1, got 0"),
    ({"epochs": 1.5}, "epochs >= 1, got 1.5"),
    ({"batch_size": 0}, "batch_size"),
    ({"evaluate_every": 0}, "evaluate_every"),
    ({"test_batch_size": 0}, "test_batch_size"),
    ({"ema": 1.0}, "between 0 and 1, got 1"),
    ({"test": torch.rand(5, 1, 4, 4)}, r"\(1, 4, 3\)"),
    ({"train": images() + 1}, r"in \[0, 1\]"),
    ({"train": images() * float("nan")}, "finite"),
    ({"train": (images() * 255).byte()}, "/ 255"),
    ({"train": torch.full((3, 2), torch.inf)}, "finite vectors"),
    ({"train": torch.zeros(0, 2)}, "expected"),
    ({"train": torch.ones(3)}, "expected"),
    ({"labels": labelled()}, "decoder has no classes"),
    ({"vae": WithoutLatents(classes())}, "expected labels"),
    ({"vae": classes()}, r"WithoutLatents\(model\)"),
    ({"optimizer": adam(small_vae().parameters())}, "of others"),
]
refused = [(lambda s=s: run(**{"vae": small_vae()} | s), text) for s, text in REFUSED]
test_refused = refusals(refused)


def test_divergence_is_named_with_its_update():
    with pytest.raises(FloatingPointError, match=r"diverged at update \d+.*lower the step size"):
        run(small_vae(), epochs=200, optimizer=partial(torch.optim.SGD, lr=1e6))


def test_full_variational_bayes_through_fit():
    vae = small_vae()
    vae.decoder = VariationalWeights(vae.decoder)
    before = {name: value.clone() for name, value in vae.named_parameters()}
    run(vae, step=partial(variational_bayes_step, count=25))
    assert not any(torch.equal(before[name], p) for name, p in vae.named_parameters())
