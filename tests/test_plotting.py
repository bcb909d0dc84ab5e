"""Pictures: what goes in comes out, in the right place."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from vaelib.teaching import plotting
from vaelib.training.loop import History


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_grid_and_tiles_put_everything_in_its_place():
    quantiles = torch.special.ndtr(plotting.latent_grid(5)).view(5, 5, 2)
    even = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])  # even in prior probability
    torch.testing.assert_close(quantiles[0, :, 0], even)  # the first coordinate to the right
    torch.testing.assert_close(quantiles[:, 0, 1], even.flip(0))  # the second upwards
    images = torch.arange(5).view(5, 1, 1, 1).expand(5, 1, 2, 3) / 10
    picture = plotting.tile(images, columns=3)
    assert picture.shape == (5, 11)
    assert picture[[0, 0, 3], [0, 4, 4]].tolist() == pytest.approx([0, 0.1, 0.4])
    assert picture[2].eq(1).all() and picture[:, 3].eq(1).all()  # the gaps
    assert picture[3, 8] == 1  # nothing where a sixth image would be
    assert plotting.tile(np.zeros((4, 3, 2, 2))).shape == (5, 5, 3)
    ax = plotting.show_manifold(torch.rand(9, 1, 4, 4))
    assert ax.images[0].get_array().shape == (12, 12)
    figure = plotting.show_rows({"data": torch.rand(3, 1, 4, 4), "mean": torch.rand(3, 1, 4, 4)})
    assert [ax.get_ylabel() for ax in figure.axes] == ["data", "mean"]
    assert len(set(map(to_rgb, plotting.COLORS.values()))) == len(plotting.COLORS)


def test_bad_input_is_named():
    for call, message in [
        (lambda: plotting.latent_grid(1), "rows >= 2"),
        (lambda: plotting.tile(torch.rand(4, 2, 2)), "expected images"),
        (lambda: plotting.show_manifold(torch.rand(8, 1, 4, 4)), "square number"),
        (lambda: plotting.latent_scatter(torch.randn(20, 3)), "latent vectors"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("kind", [list, History])
def test_learning_curves_draw_what_is_known(kind):
    first = {"samples": 10, "train_bound": -3.0}
    rows = [first, {"samples": 20, "train_bound": -2.0, "test_bound": -2.5}]
    ax = plotting.learning_curves({"AEVB": kind(rows)})
    train, test = ax.get_lines()
    assert train.get_xdata().tolist() == [10, 20] and test.get_ydata().tolist() == [-2.5]
    assert ax.get_xscale() == "log" and "nats" in ax.get_ylabel()
    assert [one.get_text() for one in ax.get_legend().texts] == ["AEVB, train", "AEVB, test"]


def test_numbers_of_classes_stand_at_medians_and_can_be_read():
    z, labels = torch.randn(300, 2), torch.arange(300) % 3
    ax = plotting.latent_scatter(z, labels)
    assert sum(len(points.get_offsets()) for points in ax.collections) == 300
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2"]
    places = torch.tensor([text.xy for text in ax.texts])
    assert torch.pdist(places).min() > 0.04 * (z.max(0).values - z.min(0).values).max()
    far = torch.tensor([[-9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])[labels] + 0.1 * z
    medians = torch.stack([far[labels == name].quantile(0.5, dim=0) for name in range(3)])
    ax = plotting.latent_scatter(far.numpy(), labels.numpy())
    torch.testing.assert_close(torch.tensor([text.xy for text in ax.texts]).to(medians), medians)


def test_save_figure_writes_whole_files_where_it_is_told(tmp_path, monkeypatch):
    figure, ax = plt.subplots()
    ax.plot([0, 1])
    path = plotting.save_figure(figure, "curve", tmp_path)
    first = path.read_bytes()
    assert path == tmp_path / "curve.png" and first.startswith(b"\x89PNG")
    monkeypatch.setenv("VAELIB_FIGURES", str(tmp_path))
    assert plotting.save_figure(figure, "curve").read_bytes() == first  # the same figure and file
    monkeypatch.setattr(type(figure), "savefig", lambda self, file, **_: file.write_bytes(b"") / 0)
    with pytest.raises(ZeroDivisionError):  # stands for a full disk
        plotting.save_figure(figure, "curve")
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == first
