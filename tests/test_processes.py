"""Many processes, and batches in pieces: the weights of one process with the same batches.

Everything is in float64, where sums in another order differ by parts in 1e15. After a few dozen
updates with Adam, which divides by the root of tiny squares, the weights agree to 1e-9; a wrong
share, a noise that differs or a gradient that is missing shows at 1e-3 and above.
"""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from vaelib import VAE, data
from vaelib.decoders import BernoulliMLP
from vaelib.encoders import MLPEncoder
from vaelib.engine import engine
from vaelib.learning import aevb_step, auxiliary_prior_step
from vaelib.noise import noise_of, parts
from vaelib.objectives import Beta
from vaelib.pixelcnn import GatedPixelCNN
from vaelib.priors import AuxiliaryPrior, StandardNormal
from vaelib.training import evaluate, fit
from vaelib.vae import ELBO, WithoutLatents

SHAPE = (1, 4, 4)
draw = partial(data.binarize, method="bernoulli")


def images(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64)


def vector_vae(seed=0):
    torch.manual_seed(seed)
    return VAE(MLPEncoder(2, SHAPE, 6), StandardNormal(2), BernoulliMLP(2, SHAPE, 6)).double()


def row_vae():
    torch.manual_seed(0)
    decoder = GatedPixelCNN((4, 2), SHAPE, 4, layers=1, kernel=3, first_kernel=3, context=3)
    return VAE(MLPEncoder((4, 2), SHAPE, 6), StandardNormal((4, 2)), decoder).double()


def pixelcnn():
    torch.manual_seed(0)
    return WithoutLatents(
        GatedPixelCNN(None, SHAPE, 4, layers=1, kernel=3, first_kernel=3)
    ).double()


def with_auxiliary_prior():
    """A VAE with an LSTM in the prior's slot, and a step that trains the LSTM alone."""
    vae = row_vae()
    vae.prior = AuxiliaryPrior(2, 4, 5).double()

    def step(model, x, optimizer, backward):
        rate = auxiliary_prior_step(vae, vae.prior, x, optimizer, backward)
        return ELBO(torch.zeros_like(rate), rate)

    return vae, {"step": step, "optimizer": torch.optim.Adam(vae.prior.parameters())}


# 25 images in batches of 10 leave one of 5, 3 for one process and 2 for the other; 21 leave a
# single image, so that one of two processes has none.
CASES = {
    "vae": (vector_vae, 25, {"transform": draw, "ema": 0.9}),
    "one left": (vector_vae, 21, {"step": partial(aevb_step, samples=2)}),
    "rows": (row_vae, 25, {"transform": draw, "step": partial(aevb_step, objective=Beta(0.5))}),
    "pixelcnn": (pixelcnn, 25, {"transform": draw}),
    "auxiliary": (with_auxiliary_prior, 25, {}),
}


def train(case, **more):
    make, count, settings = CASES[case]
    model, settings = make(), dict(settings)
    if case == "auxiliary":
        model, settings = model
    test = draw(images(7, 2), generator=torch.Generator().manual_seed(0))
    if case == "pixelcnn" or case == "rows" or case == "auxiliary":
        settings.setdefault("transform", draw)
    settings = {"epochs": 3, "batch_size": 10, "progress": False, "test": test} | settings | more
    history = fit(model, images(count), **settings)
    average = history.average.state_dict() if history.average is not None else {}
    rows = [[value for name, value in row.items() if name != "seconds"] for row in history.rows]
    return {"model": model.state_dict(), "average": average, "rows": torch.tensor(rows)}


def stop_inside_an_epoch(checkpoint):
    """Leave a checkpoint after two of the three updates of the second epoch."""

    def step(*args, update, **more):
        if update == 5:
            raise InterruptedError
        return aevb_step(*args, **more)

    with pytest.raises(InterruptedError):
        train("vae", step=step, checkpoint=checkpoint, checkpoint_updates=1)
    progress = torch.load(checkpoint, weights_only=True)["progress"]
    assert (progress["epoch"], progress["batch"]) == (1, 2)


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def work(folder):
    """What each of the two processes does; the first writes down how it went."""
    torch.set_num_threads(1)
    results = {case: train(case) for case in CASES}
    results["pieces"] = train("vae", accumulate=2)
    results["resumed"] = train("vae", checkpoint=f"{folder}/alone.pt")
    results["resumed inside"] = train("vae", checkpoint=f"{folder}/inside.pt")
    train("vae", epochs=2, checkpoint=f"{folder}/both.pt")
    fabric = engine()
    bound = evaluate(vector_vae(), images(25), samples=3, batch_size=10, fabric=fabric)
    results["evaluated"] = torch.stack(list(bound))
    results["world"] = fabric.world_size
    if fabric.is_global_zero:
        torch.save(results, f"{folder}/results.pt")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two processes of torchrun, which talk through gloo on this machine alone."""
    folder = tmp_path_factory.mktemp("processes")
    train("vae", epochs=1, checkpoint=folder / "alone.pt")
    stop_inside_an_epoch(folder / "inside.pt")
    (folder / "work.py").write_text(
        f"import sys\nsys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        f"from test_processes import work\nwork({str(folder)!r})\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "127.0.0.1", "--nproc-per-node", "2", str(folder / "work.py")]
    quiet = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=os.environ | quiet
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_reach_the_weights_of_one(together, case):
    _, results = together
    assert results["world"] == 2
    expected = train(case)
    assert_same(results[case], expected)
    untrained = CASES[case][0]()
    untrained = untrained[0] if case == "auxiliary" else untrained
    moved = [
        (value - results[case]["model"][name]).abs().max()
        for name, value in untrained.state_dict().items()
    ]
    assert max(moved) > 1e-3  # there is something to agree on


def test_pieces_and_processes_together(together):
    assert_same(together[1]["pieces"], train("vae"))


def test_a_run_goes_on_with_more_processes_and_with_fewer(together):
    folder, results = together
    straight = train("vae")
    assert_same(results["resumed"], straight)
    assert_same(results["resumed inside"], straight)  # the sums of that epoch among the rows
    assert_same(train("vae", checkpoint=folder / "both.pt"), straight)


def test_evaluation_is_shared(together):
    bound = evaluate(vector_vae(), images(25), samples=3, batch_size=10)
    assert_same(together[1]["evaluated"], torch.stack(list(bound)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pieces", [3, 20])
def test_a_batch_in_pieces_gives_the_weights_of_the_whole(case, pieces):
    assert_same(train(case, accumulate=pieces), train(case))


@pytest.mark.parametrize(("world", "pieces"), [(1, 1), (1, 3), (2, 1), (3, 2), (7, 4)])
@pytest.mark.parametrize("total", [1, 2, 5, 12])
def test_the_parts_are_the_batch(total, world, pieces):
    every = [part for rank in range(world) for part in parts(total, rank, world, pieces)]
    computed = [i for part in every if part.weight for i in range(total)[part.images]]
    assert computed == list(range(total))
    assert sum(part.weight for part in every) == pytest.approx(1)
    assert all(part.last > part.first for part in every)  # nobody has nothing to do
    assert all(len(parts(total, rank, world, pieces)) <= pieces for rank in range(world))
    sizes = [sum(p.weight for p in parts(total, rank, world)) * total for rank in range(world)]
    assert max(sizes) - min(sizes) < 1.5  # shares differ by one image at most


def test_each_image_keeps_its_noise():
    q, generator = vector_vae().encoder(images(5)), torch.Generator()
    for draw_from in (lambda q: q.rsample(), lambda q: q.rsample((3,)), lambda q: q.sample()):
        torch.manual_seed(3)
        whole = draw_from(q)
        for part in parts(5, pieces=2):
            with noise_of(part, generator.manual_seed(3)):
                cut = draw_from(vector_vae().encoder(images(5)[part.images]))
            here = whole[:, part.images] if whole.dim() == 3 else whole[part.images]
            torch.testing.assert_close(cut, here, rtol=0, atol=1e-12)


def test_the_average_is_the_exponential_one():
    """By hand: the first weights, then e old + (1 − e) new with e = min(ema, (1 + u)/(10 + u))."""
    seen, vae = [], vector_vae()

    def step(model, x, optimizer, backward):
        bound = aevb_step(model, x, optimizer, backward=backward)
        seen.append([p.detach().clone() for p in vae.parameters()])
        return bound

    history = fit(vae, images(25), epochs=4, batch_size=10, step=step, ema=0.5, progress=False)
    expected = seen[0]
    for update, weights in enumerate(seen[1:], 2):
        e = {2: 3 / 12, 3: 4 / 13, 4: 5 / 14, 5: 6 / 15, 6: 7 / 16, 7: 8 / 17}.get(update, 0.5)
        expected = [e * old + (1 - e) * new for old, new in zip(expected, weights, strict=True)]
    for ours, theirs in zip(history.average.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.data, theirs, rtol=0, atol=1e-12)
    assert isinstance(history.average, VAE) and history.average is not vae


def test_the_test_images_see_the_average():
    test = images(7, 2)
    vae = vector_vae()
    history = fit(vae, images(25), epochs=2, test=test, ema=0.9, progress=False)
    assert history["test_bound"][-1] == evaluate(history.average, test).value.item()
    assert history["test_bound"][-1] != evaluate(vae, test).value.item()


def test_the_average_is_in_the_checkpoint(tmp_path):
    straight = train("vae")
    train("vae", epochs=1, checkpoint=tmp_path / "run.pt")
    resumed = train("vae", checkpoint=tmp_path / "run.pt")
    for name, value in straight["average"].items():
        assert torch.equal(value, resumed["average"][name]), name
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        train("vae", ema=1.0)
    (tmp_path / "run.pt").unlink()
    train("one left", epochs=1, checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match="without ema"):
        train("one left", ema=0.9, checkpoint=tmp_path / "run.pt")


def test_a_bound_that_is_not_finite_moves_nothing_in_any_piece():
    vae, before = vector_vae(), vector_vae().state_dict()

    def step(model, x, optimizer, backward):
        if optimizer.last:
            raise FloatingPointError("the last piece")
        return aevb_step(model, x, optimizer, backward=backward)

    with pytest.raises(FloatingPointError):
        fit(vae, images(10), epochs=1, step=step, accumulate=2, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("settings", [{"accumulate": 0}, {"checkpoint_updates": 0}])
def test_bad_settings_are_named(settings):
    with pytest.raises(ValueError, match="expected accumulate and checkpoint_updates >= 1"):
        train("vae", **settings)
