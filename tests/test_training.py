"""The loop: reproducible, resumable bit for bit, interruptible, and honest about what it saw."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from functools import partial

import pytest
import torch

from vaelib import VAE
from vaelib.decoders import BernoulliMLP
from vaelib.encoders import MLPEncoder
from vaelib.files import save_atomically
from vaelib.graphs import unchecked
from vaelib.learning import aevb_step
from vaelib.linear_vae import PPCA, linear_slots
from vaelib.paper import made_up, tiny
from vaelib.priors import StandardNormal
from vaelib.recipes import build
from vaelib.rows import RECIPES
from vaelib.training import adam, decay_late, evaluate, fit

SHAPE = (1, 4, 3)


def small_vae(seed=0):
    torch.manual_seed(seed)
    return VAE(MLPEncoder(2, SHAPE, 6), StandardNormal(2), BernoulliMLP(2, SHAPE, 6))


def images(n=25, seed=1):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def run(vae, epochs=3, **settings):
    settings = {"batch_size": 10, "progress": False} | settings
    return fit(vae, images(), epochs=epochs, **settings)


def assert_same_weights(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


class Stop(Exception):
    pass


def stopping_after(updates, error=Stop):
    """A step that dies after so many updates, as a machine would."""
    count = 0

    def step(*args, **kwargs):
        nonlocal count
        count += 1
        if count > updates:
            raise error
        return aevb_step(*args, **kwargs)

    return step


def interrupting_at(update):
    count = 0

    def step(*args, **kwargs):
        nonlocal count
        count += 1
        if count == update:
            os.kill(os.getpid(), signal.SIGINT)
        return aevb_step(*args, **kwargs)

    return step


def test_history_has_one_row_an_epoch_with_all_numbers():
    history = run(small_vae(), test=images(5, 2), evaluate_every=2)
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


def test_every_image_is_seen_once_an_epoch():
    seen = []

    def step(model, x, optimizer, backward):
        seen.append(x)
        return aevb_step(model, x, optimizer, backward=backward)

    run(small_vae(), epochs=2, step=step)
    sizes = [len(x) for x in seen]
    assert sizes == [10, 10, 5] * 2
    key = lambda x: sorted(x.sum((1, 2, 3)).tolist())  # noqa: E731
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert key(first) == key(second) == key(images())
    assert not torch.equal(first, second)  # in another order


def test_same_seed_same_weights_whatever_the_callers_random_state():
    one, other, third = small_vae(), small_vae(), small_vae()
    run(one, seed=5)
    torch.manual_seed(99)
    run(other, seed=5)
    run(third, seed=6)
    assert_same_weights(one, other)
    assert not torch.equal(next(one.parameters()), next(third.parameters()))


def test_the_callers_random_state_is_left_alone():
    vae = small_vae()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    run(vae, test=images(5, 2))
    assert torch.equal(torch.rand(4), expected)


def test_progress_bar_and_evaluation_do_not_change_the_training(capsys):
    one, other = small_vae(), small_vae()
    run(one)
    run(other, test=images(5, 2), progress=True)
    assert_same_weights(one, other)
    shown = capsys.readouterr().err
    assert "9/9" in shown  # three epochs of three updates


@pytest.mark.parametrize("updates", [1, 3, 4, 8])
@pytest.mark.parametrize("adagrad", [False, True])
def test_resume_equals_uninterrupted(tmp_path, updates, adagrad):
    settings = {"optimizer": partial(torch.optim.Adagrad, lr=0.02)} if adagrad else {}
    settings |= {"test": images(5, 2)}
    straight = small_vae()
    expected = run(straight, **settings)
    checkpoint = tmp_path / "run.pt"
    with pytest.raises(Stop):
        run(small_vae(), checkpoint=checkpoint, step=stopping_after(updates), **settings)
    resumed = small_vae(seed=7)  # other weights: those of the checkpoint must replace them
    if not checkpoint.exists():
        assert updates < 3  # nothing was written before the end of the first epoch
        resumed = small_vae()
    history = run(resumed, checkpoint=checkpoint, **settings)
    assert_same_weights(straight, resumed)
    assert history["test_bound"] == expected["test_bound"]
    assert history["train_bound"] == expected["train_bound"]


@pytest.mark.parametrize("update", [2, 3, 5])
def test_ctrl_c_keeps_what_was_trained_and_resumes_bit_for_bit(tmp_path, update):
    before = signal.getsignal(signal.SIGINT)
    straight, stopped, resumed = small_vae(), small_vae(), small_vae(seed=7)
    run(straight)
    checkpoint = tmp_path / "run.pt"
    history = run(stopped, checkpoint=checkpoint, step=interrupting_at(update))
    assert history.interrupted
    assert len(history.rows) == (update - 1) // 3
    assert signal.getsignal(signal.SIGINT) is before  # not always Python's own: see nohup
    run(resumed, checkpoint=checkpoint)
    assert_same_weights(straight, resumed)


def test_ctrl_c_in_a_real_process_stops_cleanly():
    program = f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import test_training as t
        history = t.run(t.small_vae(), epochs=10_000, step=t.interrupting_at(7))
        print(history.interrupted, len(history.rows))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["True", "2"], done.stderr


def test_a_finished_run_is_not_trained_again_and_can_be_continued(tmp_path):
    checkpoint = tmp_path / "run.pt"
    straight, vae = small_vae(), small_vae()
    run(straight, epochs=5)
    run(vae, epochs=3, checkpoint=checkpoint)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    run(vae, epochs=3, checkpoint=checkpoint, step=stopping_after(0))
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    run(vae, epochs=5, checkpoint=checkpoint)
    assert_same_weights(straight, vae)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    checkpoint = tmp_path / "run.pt"
    run(small_vae(), epochs=1, checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"other settings: seed 0 \(here 1\)"):
        run(small_vae(), checkpoint=checkpoint, seed=1)
    with pytest.raises(ValueError, match="optimizer Adam"):
        run(small_vae(), checkpoint=checkpoint, optimizer=partial(torch.optim.SGD, lr=0.1))
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"run\.pt: expected a checkpoint"):
        run(small_vae(), checkpoint=checkpoint)
    checkpoint.write_bytes(b"")
    with pytest.raises(ValueError, match=r"run\.pt: expected a checkpoint"):
        run(small_vae(), checkpoint=checkpoint)


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    save_atomically({"value": 1}, path)

    def half(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_atomically({"value": 2}, path)
    assert torch.load(path, weights_only=True) == {"value": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


@pytest.mark.parametrize("write", [1, 2, 4])
def test_killed_in_the_middle_of_a_checkpoint_nothing_is_lost(tmp_path, write):
    """SIGKILL half-way through the so-many-th write: the one before is whole and goes on."""
    checkpoint = tmp_path / "run.pt"
    program = f"""
        import io, os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import torch
        import test_training as t
        save, count = torch.save, 0
        def deadly(state, file):
            global count
            count += 1
            whole = io.BytesIO()
            save(state, whole)
            content = whole.getvalue()
            file.write(content if count < {write} else content[: len(content) // 2])
            file.flush()
            if count == {write}:
                os.kill(os.getpid(), signal.SIGKILL)
        torch.save = deadly
        torch.set_num_threads(1)
        t.run(t.small_vae(), epochs=2, checkpoint={str(checkpoint)!r}, checkpoint_updates=2)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(tmp_path.glob(".run.pt.*.tmp"))) == 1  # the half that was written
    assert checkpoint.exists() == (write > 1)
    if checkpoint.exists():  # three updates an epoch: written after 2, 3, 4 and 6 of them
        progress = torch.load(checkpoint, weights_only=True)["progress"]
        assert 3 * progress["epoch"] + progress["batch"] == {2: 2, 4: 4}[write]
    straight, resumed = small_vae(), small_vae(seed=7 if checkpoint.exists() else 0)
    run(straight, epochs=4)
    run(resumed, epochs=4, checkpoint=checkpoint)
    assert_same_weights(straight, resumed)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


@pytest.fixture
def traced(monkeypatch):
    """torch.compile that traces a model and runs what it traced as it is: quick, on any machine.

    It returns what it was asked for.
    """
    compiler, asked = torch.compile, []

    def trace(model, **settings):
        asked.append({name: value for name, value in settings.items() if name != "backend"})
        return compiler(model, backend="eager", dynamic=settings["dynamic"])

    monkeypatch.setattr(torch, "compile", trace)
    return asked


def test_a_compiled_model_reaches_the_same_weights(traced):
    """torch.compile switches the validation of distributions off for the whole process: after the
    run a bad value must be an error again.
    """
    one, other = small_vae(), small_vae()
    run(one)
    run(other, compile="reduce-overhead", ema=0.9)
    assert {"mode": "reduce-overhead", "dynamic": False} in traced
    assert one.state_dict().keys() == other.state_dict().keys()
    assert_same_weights(one, other)
    with pytest.raises(ValueError):
        other.elbo(images() + 1)


def test_the_checkpoint_of_a_compiled_run_is_that_of_any_other(traced, tmp_path):
    straight, vae = small_vae(), small_vae()
    run(straight, epochs=2)
    run(vae, epochs=1, checkpoint=tmp_path / "run.pt", compile=True)
    run(vae, epochs=2, checkpoint=tmp_path / "run.pt")
    assert traced
    assert_same_weights(straight, vae)


def test_a_compiled_model_serves_all_parts_of_a_batch(traced):
    """Compiled once, not anew for each part: ten parts are more than torch would compile for."""
    one, other = small_vae(), small_vae()
    run(one, accumulate=10)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        run(other, compile=True, accumulate=10)
    assert traced
    assert_same_weights(one, other)


def test_recorded_steps_do_not_accumulate():
    with pytest.raises(ValueError, match="expected accumulate=1 with compile='reduce-overhead'"):
        run(small_vae(), compile="reduce-overhead", accumulate=2)


@pytest.mark.parametrize("name", ["mnist-gated", "cifar10-delta-vae"])
def test_a_model_is_one_graph(name):
    """No question to the device breaks it: each would cost a GPU a wait in every update."""
    recipe = tiny(RECIPES[name])
    model, x = build(recipe), made_up(recipe).train[:4]
    with unchecked():
        graph = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
        torch.manual_seed(0)
        bound = graph(x)
        torch.manual_seed(0)
        assert torch.equal(bound.value, model(x).value)


def test_fit_reaches_the_exact_optimum_of_ppca():
    torch.manual_seed(0)
    x = torch.randn(400, 2) @ torch.randn(2, 5) + 0.5 * torch.randn(400, 5)
    exact = PPCA.fit(x.double(), 2).log_prob(x.double()).mean().item()
    vae = VAE(*linear_slots(5, 2))
    adam = partial(torch.optim.Adam, lr=0.01)
    fit(vae, x, epochs=100, batch_size=20, optimizer=adam, progress=False)
    bound = evaluate(vae, x, samples=50).value.item()
    # The bound over 400 images and 50 samples has a standard error near 0.01 nats.
    assert exact - 0.1 < bound < exact + 0.03


def test_evaluate_is_the_mean_bound_and_repeatable():
    vae, x = small_vae(), images()
    one, other = evaluate(vae, x, samples=3), evaluate(vae, x, samples=3)
    assert one == other and one.value.shape == ()
    torch.manual_seed(0)
    torch.testing.assert_close(one.value, vae.elbo(x, 3).value.mean().detach())
    assert evaluate(vae, x, seed=1) != evaluate(vae, x, seed=2)
    sizes = [evaluate(vae, x, 400, batch_size=size).value.item() for size in (4, 25)]
    assert sizes[0] == pytest.approx(sizes[1], abs=0.05)


def test_transform_is_applied_to_each_batch():
    seen = []

    def step(model, x, optimizer, backward):
        seen.append(x)
        return aevb_step(model, x, optimizer, backward=backward)

    run(small_vae(), epochs=1, step=step, transform=torch.round)
    assert set(torch.cat(seen).unique().tolist()) == {0.0, 1.0}


def test_a_bound_that_is_not_finite_stops_the_run():
    with pytest.raises((FloatingPointError, ValueError)):
        run(small_vae(), epochs=200, optimizer=partial(torch.optim.SGD, lr=1e6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"test": torch.rand(5, 1, 4, 4)}, r"\(1, 4, 3\)"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        run(small_vae(), **settings)


def test_bad_images_are_refused():
    bits = (images() * 255).byte()
    vectors = [torch.full((3, 2), float("inf")), torch.zeros(0, 2), torch.ones(3)]
    for bad in (images() + 1, images() * float("nan"), bits, bits.flatten(1), *vectors):
        with pytest.raises((ValueError, TypeError), match="expected"):
            fit(small_vae(), bad, epochs=1, progress=False)


def test_other_images_or_another_step_size_do_not_resume(tmp_path):
    """Both would go on in silence, with the old step size and the old rows."""
    checkpoint = tmp_path / "run.pt"
    fit(small_vae(), images(), epochs=1, batch_size=10, progress=False, checkpoint=checkpoint)
    others = {"train": images().flip(0)}, {"optimizer": partial(torch.optim.Adam, lr=1e-5)}
    for other, word in zip(others, ("data", "step_sizes"), strict=True):
        settings = {"train": images(), "optimizer": adam, "epochs": 2, "batch_size": 10} | other
        with pytest.raises(ValueError, match=f"other settings: {word}"):
            fit(small_vae(), **settings, progress=False, checkpoint=checkpoint)


@pytest.mark.parametrize("ends", ["well", "in an error"])
def test_a_schedule_leaves_the_full_step_size_behind(ends):
    vae = small_vae()
    optimizer = torch.optim.SGD(vae.parameters(), lr=0.25)
    step = stopping_after(3) if ends == "in an error" else aevb_step
    with contextlib.suppress(Stop):
        run(vae, optimizer=optimizer, schedule=decay_late, step=step)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_a_schedule_of_the_callers_own_is_left_alone():
    vae = small_vae()
    optimizer = torch.optim.SGD(vae.parameters(), lr=0.25)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    run(vae, epochs=1, optimizer=optimizer)
    theirs.step()
    run(vae, epochs=1, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_fit_trains_and_evaluate_puts_every_module_back():
    vae = small_vae().eval()
    run(vae, epochs=1)
    assert vae.training
    vae.encoder.eval()  # as its owner wants it
    with pytest.raises(ValueError):
        evaluate(vae, images() + 1)
    evaluate(vae, images())
    assert vae.training and vae.decoder.training and not vae.encoder.training
    with pytest.raises(ValueError, match="expected batch_size >= 1, got 0"):
        evaluate(vae, images(), batch_size=0)
