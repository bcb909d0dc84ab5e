"""Recipes and the cache of trained models: every model once, and none ever half."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence

from vaelib import VAE, recipes
from vaelib.checkpoints import kept
from vaelib.data import Images
from vaelib.decoders import BernoulliMLP
from vaelib.distributions import committed_rate
from vaelib.objectives import Annealing, Beta, FreeBits
from vaelib.pixelcnn import GatedPixelCNN, PixelCNN, PixelSNAIL
from vaelib.priors import AuxiliaryPrior
from vaelib.recipes import Recipe, build, objective, trained
from vaelib.training import evaluate
from vaelib.vae import WithoutLatents

TINY = Recipe(
    image_shape=(1, 4, 4),
    latents=(4, 2),
    encoder="mlp",
    encoder_size=4,
    channels=4,
    layers=1,
    kernel=3,
    first_kernel=3,
    context=3,
    epochs=2,
    batch_size=10,
)
ALONE = replace(TINY, latents=None)
DELTA = replace(TINY, alpha=(0.5, 0.9))


def images(n=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n + 10, 1, 4, 4, generator=generator).round()
    return Images(x[:n], torch.arange(n) % 2, x[n:], torch.arange(10) % 2, "made")


def get(recipe, folder, **settings):
    return trained(recipe, images(), folder, progress=False, **settings)


def assert_same(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def no_training(*args, **kwargs):
    raise AssertionError("trained once more")


@pytest.mark.parametrize(
    ("decoder", "kind"),
    [
        ("mlp", BernoulliMLP),
        ("pixelcnn", PixelCNN),
        ("gated", GatedPixelCNN),
        ("pixelsnail", PixelSNAIL),
    ],
)
@pytest.mark.parametrize("latents", [3, (4, 2)])
def test_every_decoder_can_be_built(decoder, kind, latents):
    model = build(replace(TINY, decoder=decoder, latents=latents))
    assert isinstance(model, VAE) and isinstance(model.decoder, kind)
    bound = model.elbo(images().train)
    assert bound.value.shape == (30,) and model.sample(2).shape == (2, 1, 4, 4)
    assert model.encoder(images().train).event_shape == model.prior().event_shape


@pytest.mark.parametrize("encoder", ["mlp", "anti-causal", "causal", "unrestricted"])
def test_every_encoder_can_be_built_with_the_committed_family(encoder):
    model = build(replace(DELTA, encoder=encoder))
    rate = kl_divergence(model.encoder(images().train), model.prior())
    # Rounding: a few parts in a million of a nat.
    assert (rate >= committed_rate(torch.tensor([0.5, 0.9]), 4) - 1e-5).all()
    assert model.elbo(images().train).value.isfinite().all()


def test_an_independent_family_commits_every_latent():
    model = build(replace(TINY, delta=0.1))
    assert (model.elbo(images().train, split=True).terms >= 0.1 - 1e-5).all()


def test_all_alpha_zero_is_the_standard_normal():
    model, z = build(replace(TINY, alpha=(0.0, 0.0))), torch.randn(5, 4, 2)
    expected = build(TINY).prior().log_prob(z)
    torch.testing.assert_close(model.prior().log_prob(z), expected)


def test_colour_and_grey_levels():
    recipe = replace(
        ALONE, image_shape=(3, 4, 4), likelihood="logistic_mixture", levels=8, mixtures=2
    )
    for latents in (None, (4, 2)):
        model = build(replace(recipe, latents=latents))
        x = torch.randint(8, (5, 3, 4, 4)) / 7
        assert model.elbo(x).value.isfinite().all()


def test_without_latents_the_bound_is_the_log_likelihood():
    model, x = build(ALONE), images().train
    assert isinstance(model, WithoutLatents)
    bound = model.elbo(x)
    torch.testing.assert_close(bound.value, model.decoder().log_prob(x))
    assert (bound.rate == 0).all() and model.sample(3).shape == (3, 1, 4, 4)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one = build(TINY)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert_same(one, build(TINY))
    other = build(replace(TINY, seed=1))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_objectives():
    assert objective(TINY, 30) is None
    assert objective(replace(TINY, beta=0.3), 30) == Beta(0.3)
    assert objective(replace(TINY, free_bits=2.0, free_bits_group="row"), 30) == FreeBits(
        2.0, "row"
    )
    assert objective(replace(TINY, annealing_epochs=2), 31) == Annealing(8)  # 4 batches an epoch


def test_the_small_digits_are_what_they_are_said_to_be():
    digits = recipes.load(Recipe())
    assert digits.train.shape == (4000, 1, 14, 14) and digits.test.shape == (1000, 1, 14, 14)
    assert set(digits.train.unique().tolist()) == {0.0, 1.0}
    assert (
        0.05 < digits.train.mean() < 0.3 and digits.train_labels.bincount().tolist() == [400] * 10
    )


def npz(path, count, first_label):
    pixels = np.arange(count * 3072).astype(np.uint8).reshape(count, 3072)
    np.savez(path, data=pixels, labels=np.arange(count) % 10 + first_label)


def test_the_colour_images_are_found_in_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    npz(tmp_path / "cifar10_train10k.npz", 10_000, 0)
    npz(tmp_path / "cifar10_test1k.npz", 1_000, 0)
    colour = replace(ALONE, image_shape=(3, 32, 32), likelihood="logistic_mixture")
    images = recipes.load(replace(colour, data="cifar10"))
    assert images.train.shape == (10_000, 3, 32, 32) and images.test.shape == (1_000, 3, 32, 32)
    assert build(colour).elbo(images.test[:2]).value.isfinite().all()  # pixels of 256 levels
    monkeypatch.setattr(recipes.data, "IMAGENET_COUNTS", {"train": 30, "val": 2})
    for i in range(1, 11):
        npz(tmp_path / f"train_data_batch_{i}.npz", 3, 1)
    npz(tmp_path / "val_data.npz", 2, 1)
    images = recipes.load(replace(colour, data="imagenet32"))
    assert images.train.shape == (30, 3, 32, 32) and images.test.shape == (2, 3, 32, 32)


def test_imagenet_needs_a_folder(monkeypatch):
    monkeypatch.delenv("VAELIB_DATA", raising=False)
    with pytest.raises(recipes.data.DataError, match="VAELIB_DATA"):
        recipes.load(replace(ALONE, data="imagenet32"))


@pytest.mark.parametrize("recipe", [ALONE, DELTA, replace(DELTA, auxiliary_epochs=2)])
def test_a_model_comes_back_from_the_cache_as_it_was(recipe, tmp_path, monkeypatch):
    one, history = get(recipe, tmp_path)
    monkeypatch.setattr(recipes, "fit", no_training)
    other, again = get(recipe, tmp_path)
    assert_same(one, other)
    assert history.rows == again.rows and len(history.rows) == 2
    assert not one.training and not other.training
    bound = evaluate(other, images().test)
    assert history["test_bound"][-1] == pytest.approx(bound.value.item(), abs=1e-5)


def test_training_is_deterministic_and_leaves_the_callers_random_state(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one, _ = get(DELTA, tmp_path / "one")
    assert torch.equal(torch.rand(4), expected)
    other, _ = get(DELTA, tmp_path / "other")
    assert_same(one, other)


def test_the_objective_and_the_schedule_reach_the_training(tmp_path):
    models = [get(r, tmp_path)[0] for r in (TINY, replace(TINY, beta=0.0), replace(TINY, lr=1e-3))]
    weights = [next(model.encoder.parameters()) for model in models]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_an_auxiliary_prior_is_trained_after_the_model_which_stays_as_it_is(tmp_path):
    base, _ = get(DELTA, tmp_path)
    model, history = get(replace(DELTA, auxiliary_epochs=3), tmp_path)
    assert isinstance(model.prior, AuxiliaryPrior)
    assert_same(model.encoder, base.encoder)
    assert_same(model.decoder, base.decoder)
    assert len(history.rows) == 3
    assert len(list(tmp_path.glob("*.pt"))) == 2


def test_every_field_and_every_pixel_is_in_the_key():
    keys = {recipes._key(TINY, images())}
    other = {"data": "mnist", "encoder": "causal", "decoder": "pixelcnn", "inject": "map"}
    other |= {"image_shape": (1, 4, 5), "latents": 3, "likelihood": "categorical"}
    other |= {"alpha": (0.5, 0.6), "free_bits_group": "row", "position": False}
    count = 1
    for field in dataclasses.fields(Recipe):
        value = getattr(TINY, field.name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            changed = (
                0.5
                if isinstance(value, float)
                else 1
                if field.name == "annealing_epochs"
                else value + 1
            )
        else:
            changed = other[field.name]
        keys.add(recipes._key(replace(TINY, **{field.name: changed}), images()))
        count += 1
    more = images()
    more.test[0, 0, 0, 0] = 1 - more.test[0, 0, 0, 0]
    keys.add(recipes._key(TINY, more))
    assert len(keys) == count + 1
    assert recipes._key(TINY, images()) in keys


def test_a_list_makes_the_same_recipe():
    one = replace(TINY, latents=[4, 2], image_shape=[1, 4, 4], alpha=[0.5, 0.9])
    assert one == DELTA and hash(one) == hash(DELTA)


def damage(path, how):
    whole = path.read_bytes()
    if how == "flipped":
        state = torch.load(path, weights_only=True)
        place = whole.index(max(state["model"].values(), key=len).numpy().tobytes())
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif how == "another recipe":
        torch.save(torch.load(path, weights_only=True) | {"recipe": {}}, path)
    elif how == "no history":
        state = torch.load(path, weights_only=True)
        del state["rows"]
        torch.save(state, path)
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[how])


@pytest.mark.parametrize("how", ["cut", "empty", "text", "flipped", "another recipe", "no history"])
def test_a_bad_file_is_named_set_aside_and_made_again(how, tmp_path):
    one, _ = get(DELTA, tmp_path)
    (path,) = tmp_path.glob("*.pt")
    damage(path, how)
    with pytest.warns(UserWarning, match=rf"{path.name} cannot be used .* made again"):
        other, _ = get(DELTA, tmp_path)
    assert_same(one, other)
    assert path.with_name(f"{path.name}.bad").exists()
    assert_same(one, get(DELTA, tmp_path)[0])


def test_a_bad_half_is_set_aside_too(tmp_path):
    name = recipes._key(DELTA, images())
    (tmp_path / f"{name}.part").write_bytes(b"half")
    with pytest.warns(UserWarning, match=rf"{name}\.part cannot be used"):
        one, _ = get(DELTA, tmp_path)
    assert_same(one, get(DELTA, tmp_path / "other")[0])


def test_ctrl_c_keeps_the_whole_epochs(tmp_path, monkeypatch):
    straight, _ = get(replace(DELTA, epochs=4), tmp_path / "straight")
    step, count = recipes.aevb_step, 0

    def interrupting(*args, **kwargs):
        nonlocal count
        count += 1
        if count == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args, **kwargs)

    monkeypatch.setattr(recipes, "aevb_step", interrupting)
    with pytest.raises(KeyboardInterrupt, match="after 1 epochs"):
        get(replace(DELTA, epochs=4), tmp_path)
    assert not list(tmp_path.glob("*.pt")) and list(tmp_path.glob("*.part"))
    resumed, history = get(replace(DELTA, epochs=4), tmp_path)
    assert_same(straight, resumed)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3, 4]
    assert not list(tmp_path.glob("*.part"))
    assert count == 12  # 4 epochs of 3 updates, none of them twice


def child(folder, epochs, more=""):
    """A process that asks for the model and prints how many updates it made itself."""
    program = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import torch
        torch.set_num_threads(1)
        import test_recipes as t
        step, count = t.recipes.aevb_step, 0
        def counting(*args, **kwargs):
            global count
            count += 1
            {more or "pass"}
            return step(*args, **kwargs)
        t.recipes.aevb_step = counting
        print("ready", flush=True)
        sys.stdin.readline()
        model, history = t.trained(t.replace(t.DELTA, epochs={epochs}), t.images(), {str(folder)!r})
        total = sum(value.double().sum().item() for value in model.state_dict().values())
        print(count, len(history.rows), repr(total))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_two_processes_one_trains_and_both_get_the_same_model(tmp_path):
    racers = [child(tmp_path, 100) for _ in range(2)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outputs = [racer.communicate(timeout=120) for racer in racers]
    counts, epochs, totals = zip(*(out.split() for out, _ in outputs), strict=True)
    assert sorted(map(int, counts)) == [0, 300], outputs  # 100 epochs of 3 updates
    assert set(epochs) == {"100"} and len(set(totals)) == 1
    assert sum("waiting for another process" in err for _, err in outputs) == 1
    assert len(list(tmp_path.glob("*.pt"))) == 1 and not list(tmp_path.glob("*.part"))


def test_a_killed_process_frees_the_lock_and_its_work_goes_on(tmp_path):
    victim = child(tmp_path, 4, "if count == 8: sys.stderr.write('x'); sys.stdin.readline()")
    assert victim.stdout.readline() == "ready\n"
    victim.stdin.write("go\n")
    victim.stdin.flush()
    part, limit = tmp_path / f"{recipes._key(replace(DELTA, epochs=4), images())}.part", 60
    start = time.monotonic()
    while not part.exists() and time.monotonic() - start < limit:
        time.sleep(0.05)
    time.sleep(0.5)  # into the third epoch, where it waits
    victim.kill()
    victim.communicate()
    assert part.exists() and not list(tmp_path.glob("*.pt"))
    heir = child(tmp_path, 4)
    out, _ = heir.communicate("go\n", timeout=120)
    _, count, epochs, total = out.split()
    assert epochs == "4" and int(count) in (6, 9)  # one or two of its epochs were whole
    straight, _ = get(replace(DELTA, epochs=4), tmp_path / "straight")
    expected = sum(value.double().sum().item() for value in straight.state_dict().values())
    assert float(total) == pytest.approx(expected, rel=1e-5)  # its threads may be others


def test_progress_goes_to_stderr_only(tmp_path, capsys):
    trained(DELTA, images(), tmp_path)
    trained(DELTA, images(), tmp_path)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("training gated, z 4×2, mlp, α 0.5…0.9, 2 epochs") == 1


def test_the_cache_is_the_projects(tmp_path, monkeypatch):
    monkeypatch.setenv("VAELIB_CACHE", str(tmp_path / "here"))
    trained(ALONE, images(), progress=False)
    assert len(list((tmp_path / "here" / "models").glob("gated-*.pt"))) == 1


def test_a_folder_that_cannot_be_made_is_no_obstacle(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be written"):
        model, history = get(ALONE, tmp_path / "file" / "models")
    assert len(history.rows) == 2 and not model.training


def test_kept_makes_once_and_hands_out_what_use_returns(tmp_path):
    made = []

    def make(part):
        made.append(part)
        return {"value": 3}

    for _ in range(2):
        assert kept(tmp_path / "deep" / "a.pt", make, lambda state: 2 * state["value"]) == 6
    assert made == [tmp_path / "deep" / "a.part"]


def test_kept_does_not_keep_what_cannot_be_made(tmp_path):
    def make(part):
        raise RuntimeError("no")

    for _ in range(2):  # the lock is free again
        with pytest.raises(RuntimeError, match="no"):
            kept(tmp_path / "a.pt", make, lambda state: state)
    assert not (tmp_path / "a.pt").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": "rnn"}, "decoder in .*got 'rnn'"),
        ({"encoder": "rnn"}, "encoder in .*got 'rnn'"),
        ({"data": "cats"}, "data in .*got 'cats'"),
        ({"likelihood": "poisson"}, "likelihood in .*got 'poisson'"),
        ({"epochs": 0}, "epochs > 0, got 0"),
        ({"lr": 0.0}, "lr > 0"),
        ({"beta": float("nan")}, "finite beta"),
        ({"beta": -1.0}, "beta >= 0, got -1.0"),
        ({"annealing_epochs": 3}, r"annealing_epochs <= 2.*got 3"),
        ({"beta": 0.5, "free_bits": 1.0}, "at most one"),
        ({"latents": (5, 2)}, r"4 rows, got latents \(5, 2\)"),
        ({"latents": 3, "alpha": (0.5, 0.9)}, r"latents \(H, d\).*got 3"),
        ({"latents": 3, "encoder": "causal"}, r"latents \(H, d\).*got 3"),
        ({"alpha": (0.5,)}, r"one alpha for each.*got \(0.5,\)"),
        ({"alpha": (0.5, 0.9), "delta": 0.1}, "alpha or delta"),
        ({"latents": None, "decoder": "mlp"}, "latents for an MLP"),
        ({"latents": None, "alpha": (0.5, 0.9)}, "one alpha"),
        ({"latents": None, "auxiliary_epochs": 1}, "latents for an auxiliary"),
        ({"decoder": "mlp", "likelihood": "categorical"}, "Bernoulli MLP"),
    ],
)
def test_bad_recipes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_images_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(1, 14, 14\), got \(1, 4, 4\)"):
        trained(Recipe(), images(), tmp_path)
