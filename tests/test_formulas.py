"""Formulas, thresholds and modes that the docstrings promise, each checked by itself."""

import contextlib
import math
import os
from functools import partial

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.distributions import Distribution

from vaelib import VAE, hmc
from vaelib.decoders import BernoulliMLP, GaussianMLP
from vaelib.diagnostics import collapse_report
from vaelib.distributions import committed_variance
from vaelib.encoders import AntiCausalEncoder, MLPEncoder
from vaelib.engine import Fabric, MixedPrecision, default_generator
from vaelib.files import remove_leftovers, write_text
from vaelib.graphs import unchecked
from vaelib.learning import aevb_step
from vaelib.linear_vae import linear_slots
from vaelib.networks import GatedLayer, GatedResidual, MaskedBlock, gate
from vaelib.noise import noise_of, parts, standard_normal
from vaelib.pixelcnn import GatedPixelCNN, PixelCNN, PixelSNAIL
from vaelib.pixels import CategoricalPixels, LogisticMixturePixels
from vaelib.posteriors import SequentialPosterior
from vaelib.priors import StandardNormal
from vaelib.runs import Run
from vaelib.training import decay_late, evaluate, fit

SHAPE = (1, 4, 3)


def small_vae():
    torch.manual_seed(0)
    return VAE(MLPEncoder(2, SHAPE, 6), StandardNormal(2), BernoulliMLP(2, SHAPE, 6))


def test_the_scale_strays_as_the_formula_says():
    alpha = torch.tensor([0.5, 0.9]).double()
    raw = 3 * torch.randn(7, 5, 4).double()
    q = SequentialPosterior(alpha, 5, reach=2.0)(raw)
    shift = 2 * torch.tanh(raw[..., 2:] / 2)
    torch.testing.assert_close(q.loc, raw[..., :2])
    torch.testing.assert_close(q.scale, committed_variance(alpha, 5).sqrt() * shift.exp())


def snail(dropout=0.9):
    torch.manual_seed(0)
    settings = {"channels": 4, "blocks": 1, "residuals": 1, "dropout": dropout}
    model = PixelSNAIL(2, SHAPE, **settings)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return VAE(MLPEncoder(2, SHAPE, 6), StandardNormal(2), model)


def test_measurements_switch_dropout_off():
    """The answer of a model in train mode is that of the model in eval mode, and of no dropout."""
    x = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(1)).round()
    for measure in (evaluate, collapse_report):
        one, other = measure(snail().train(), x), measure(snail().eval(), x)
        assert one == other == measure(snail(dropout=0.0).train(), x)


def test_measurements_leave_the_mode_as_it_was():
    x = torch.rand(20, *SHAPE).round()
    for measure in (evaluate, collapse_report):
        for mode in (True, False):
            vae = snail().train(mode)
            measure(vae, x)
            assert vae.training == vae.decoder.training == mode


def test_a_draw_that_fails_leaves_the_mode_as_it_was():
    model = PixelCNN(image_shape=SHAPE, channels=4, layers=1, kernel=3, first_kernel=3).train()

    def draw(features, uniforms):
        raise RuntimeError("no draw")

    model.pixels.draw = draw
    with pytest.raises(RuntimeError, match="no draw"):
        model().sample()
    assert model.training


@pytest.mark.parametrize("kind", [PixelCNN, GatedPixelCNN, PixelSNAIL])
def test_black_is_told_from_what_lies_outside_the_image(kind):
    """Inputs are centred: the network of 2x − 1 in [−1, 1], not of x."""
    seen, model = [], kind(image_shape=SHAPE, channels=4)
    first = model.first if kind is PixelCNN else model.first_vertical
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.rand(2, *SHAPE).round()
    model().log_prob(x)
    assert torch.equal(seen[0], (2 * x - 1).movedim(1, -1))


def test_what_a_block_changes_comes_back_after_an_error():
    generator, before = torch.Generator(), torch.get_rng_state()
    for block in (
        default_generator(generator),
        unchecked(),
        noise_of(parts(5, 0, 2)[0], generator),
    ):
        with contextlib.suppress(KeyError), block:
            raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
    assert Distribution._validate_args
    assert standard_normal((), (2,), (3,), torch.zeros(())) is None


def test_scales_are_kept_between_e_to_the_minus_7_and_7():
    made = LogisticMixturePixels(2, 1, mixtures=1).double()
    with torch.no_grad():
        made.components.weight.zero_()
        for raw, log_scale in [(-30, -7), (-6.9, -6.9), (-2, -2), (6.9, 6.9), (30, 7)]:
            made.components.bias.copy_(torch.tensor([0.0, 0.1, raw]))
            kept = made._components(torch.zeros(2).double())[2]
            assert kept.item() == pytest.approx(log_scale)


# networks: the formulas of the docstrings -------------------------------------------------------


def test_gate_is_tanh_times_sigmoid():
    a, b = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    torch.testing.assert_close(gate(torch.cat([a, b], -1)), a.tanh() / (1 + (-b).exp()))


def layer(made):
    for parameter in made.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def test_layers_are_their_formulas():
    torch.manual_seed(0)
    h, v = torch.randn(2, 2, 4, 5, 3).double()
    maps, elu = [torch.randn(2, 4, 5, 3).double()], nn.functional.elu
    block = layer(MaskedBlock(3, 3, 3))
    inside = block.conv(h.relu()) + maps[0] @ block.context.weight.T
    torch.testing.assert_close(block(h, maps), h + block.out(inside.relu()))
    residual = layer(GatedResidual(3, 3))
    inside = residual.first(elu(h)) + maps[0] @ residual.first_context.weight.T
    inside = residual.second(elu(inside)) + maps[0] @ residual.second_context.weight.T
    value, opening = inside.chunk(2, -1)
    torch.testing.assert_close(residual(h, maps), h + value * opening.sigmoid())
    gated = layer(GatedLayer(3, 3, 3))
    down, across = gated.down(v, maps)
    a = gated.vertical(v)
    torch.testing.assert_close(down, v + gate(a + maps[0] @ gated.vertical_context.weight.T))
    expected = gated.link(a) + maps[0] @ gated.horizontal_context.weight.T
    torch.testing.assert_close(across, expected)
    expected = h + gated.out(gate(gated.horizontal(h) + across))
    torch.testing.assert_close(gated.across(h, across), expected)


# the loop -------------------------------------------------------------------------------------


def seen_step_sizes(epochs, optimizer, **more):
    seen = []

    def step(model, x, optimizer, backward):
        seen.append(optimizer.param_groups[0]["lr"])
        return aevb_step(model, x, optimizer, backward=backward)

    fit(
        small_vae(),
        torch.rand(20, *SHAPE),
        epochs=epochs,
        batch_size=10,
        optimizer=optimizer,
        step=step,
        progress=False,
        **more,
    )
    return seen


def test_the_schedule_is_a_factor_of_the_full_step_size():
    """Four epochs of two updates: shares 0, 1/8, … of the run are done before each."""
    sgd, schedule = partial(torch.optim.SGD, lr=0.8), lambda done: 1 - done
    expected = [0.8 * (1 - u / 8) for u in range(8)]
    assert seen_step_sizes(4, sgd, schedule=schedule) == pytest.approx(expected)


def test_decay_late_by_hand():
    assert [decay_late(share) for share in (0, 0.5, 0.6, 0.75, 1)] == pytest.approx(
        [1, 1, 0.8, 0.5, 0]
    )


def test_a_scheduled_run_resumes_bit_for_bit(tmp_path):
    x = torch.rand(20, *SHAPE)
    more = {"batch_size": 10, "schedule": decay_late, "progress": False}
    straight, stopped = small_vae(), small_vae()
    fit(straight, x, epochs=4, **more)

    def step(*args, update, **rest):
        if update == 6:
            raise InterruptedError
        return aevb_step(*args, **rest)

    with pytest.raises(InterruptedError):
        fit(
            stopped,
            x,
            epochs=4,
            step=step,
            checkpoint=tmp_path / "run.pt",
            checkpoint_updates=1,
            **more,
        )
    resumed = small_vae()
    fit(resumed, x, epochs=4, checkpoint=tmp_path / "run.pt", **more)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


# hmc ------------------------------------------------------------------------------------------


def normal(z):
    return -0.5 * z.square().sum(-1)


def test_jitter_only_shortens_the_steps(monkeypatch):
    sizes, leapfrog = [], hmc.leapfrog
    monkeypatch.setattr(hmc, "leapfrog", lambda *a: (sizes.append(a[3]), leapfrog(*a))[1])
    hmc.step(normal, hmc.init(normal, torch.randn(10_000, 2)), 0.2, jitter=0.5)
    (sizes,) = sizes
    assert 0.1 <= sizes.min() < 0.101 and 0.199 < sizes.max() <= 0.2


def test_divergent_is_an_error_of_a_thousand_nats_or_no_number():
    scales = torch.logspace(-2, 3, 2000).double()
    state = hmc.init(normal, torch.ones(2000, 1).double())
    _, info = hmc.step(normal, state, scales, 3)
    assert torch.equal(info.divergent, info.energy_error >= 1000)
    assert 100 < info.energy_error[~info.divergent].max() < 1000
    assert 1000 <= info.energy_error[info.divergent].min() < 10_000
    wall = lambda z: torch.where(z < 3, -0.5 * z * z, math.nan).sum(-1)  # noqa: E731
    moved, info = hmc.step(wall, hmc.init(wall, torch.zeros(200, 1)), 2.0, 3)
    assert info.energy_error.isnan().any() and moved.position.isfinite().all()
    assert torch.equal(info.divergent, ~(info.energy_error < 1000))


def test_the_last_of_so_many_positions_is_kept():
    state, kept, _ = hmc.sample(normal, hmc.init(normal, torch.zeros(50, 2)), 0.3, 4, thin=3)
    assert torch.equal(kept[-1], state.position)


def test_a_tuned_step_size_is_the_geometric_mean_of_the_second_half(monkeypatch):
    sizes, adapt = [], hmc.adapt
    monkeypatch.setattr(hmc, "adapt", lambda *a, **k: sizes.append(adapt(*a, **k)) or sizes[-1])
    _, size, _ = hmc.tune(normal, hmc.init(normal, torch.zeros(50, 2)), steps=10)
    torch.testing.assert_close(size, torch.stack(sizes[5:]).log().mean().exp())


# slots ----------------------------------------------------------------------------------------


def test_the_variance_of_a_pixel_is_the_floor_plus_the_network():
    decoder = GaussianMLP(2, SHAPE, 6, min_scale=0.3).double()
    z = torch.randn(7, 2).double()
    log_variance = decoder.network(z)[:, 12:].view(7, *SHAPE)
    torch.testing.assert_close(decoder(z).variance, 0.3**2 + log_variance.exp())


def test_a_reconstruction_is_decoded_from_a_draw():
    """z | x ~ N(x, 3²), the decoder hands z on: reconstructions spread as z does."""
    vae = VAE(*linear_slots(2, 2, noise_variance=1.0))
    with torch.no_grad():
        for slot in (vae.encoder, vae.decoder):
            slot.loc.weight.copy_(torch.eye(2))
            slot.loc.bias.zero_()
        vae.encoder.log_scale.fill_(math.log(3))
    x = torch.ones(20_000, 2)
    spread = (vae.reconstruct(x, mean=True) - x).std(0)
    assert spread.tolist() == pytest.approx([3, 3], rel=0.02)  # standard error 0.5 %


@pytest.mark.parametrize("order", ["anti-causal", "causal", "unrestricted"])
def test_rows_are_averaged_over_themselves_and_those_that_they_may_see(order):
    """An encoder by hand, with one layer: pixels in [−1, 1], mean of h over a row and over rows."""
    encoder = AntiCausalEncoder(2, (1, 5, 4), channels=3, layers=1, kernel=3, order=order).double()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.rand(2, 1, 5, 4).double()
    turned = x.flip(-2, -1) if order == "anti-causal" else x
    rows = encoder.layers[0](encoder.first(2 * turned - 1) + encoder.position).mean(-1).mT
    if order == "unrestricted":
        seen = [rows.mean(1) for t in range(5)]
    else:
        seen = [rows[:, : t + 1].mean(1) for t in range(5)]
    raw = encoder.out(torch.cat([rows, torch.stack(seen, 1)], -1))
    raw = raw.flip(1) if order == "anti-causal" else raw
    q = encoder(x)
    torch.testing.assert_close(q.loc, raw[..., :2])
    torch.testing.assert_close(q.scale, (0.5 * raw[..., 2:]).exp())


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=real: (done.append(n), f(*a))[1])
    write_text("whole", tmp_path / "a.txt")
    assert done == ["fsync", "replace"]


@pytest.mark.parametrize(
    ("other", "named"), [({"batch_size": 5}, "batch_size"), ({"images": 15}, "images")]
)
def test_a_checkpoint_of_other_batches_is_refused(tmp_path, other, named):
    x = torch.rand(20, *SHAPE)

    def run(images=20, batch_size=10):
        settings = {"batch_size": batch_size, "checkpoint": tmp_path / "r.pt", "progress": False}
        fit(small_vae(), x[:images], epochs=1, **settings)

    run()
    with pytest.raises(ValueError, match=f"other settings: {named} "):
        run(**other)


@pytest.mark.parametrize("value", [1.1 / 255, 254.95 / 255, 26 / 256])
def test_values_near_a_level_are_no_level(value):
    with pytest.raises(ValueError, match="expected pixels k/255"):
        CategoricalPixels(3).check(torch.tensor([[value]]))


def test_the_scale_of_the_loss_is_in_the_checkpoint(tmp_path):
    """float16 scales its loss by a factor that adapts; a resumed run must go on with it."""

    def run():
        scaler = GradScaler("cpu", init_scale=8.0)
        fabric = Fabric(
            accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler)
        )
        model = nn.Linear(2, 2)
        return Run(model, torch.optim.SGD(model.parameters(), 0.1), fabric, torch.zeros(4, 2), 2, 0)

    one, other = run(), run()
    scaler = one.fabric.strategy.precision.scaler
    scaler.scale(torch.ones(()))
    scaler.update(4.0)
    one.save(tmp_path / "run.pt")
    other.load(tmp_path / "run.pt")
    assert other.fabric.strategy.precision.scaler.state_dict()["scale"] == 4.0


def test_leftovers_of_a_file_are_its_own(tmp_path):
    """Only what a killed writer of this very file left behind is deleted."""
    others = ["run.pt", ".run.pt.best.77.tmp", ".run.pt.tmp", ".run.pt.x.tmp", ".other.pt.77.tmp"]
    for name in (*others, ".run.pt.77.tmp", ".run[1].pt.8.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "run.pt")
    remove_leftovers(tmp_path / "run[1].pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
