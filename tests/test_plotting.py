"""Pictures: what goes in comes out, in the right place."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_rgb

from vaelib import plotting


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_latent_grid_is_even_in_prior_probability():
    grid = plotting.latent_grid(5)
    assert grid.shape == (25, 2)
    quantiles = torch.special.ndtr(grid).view(5, 5, 2)
    even = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    torch.testing.assert_close(quantiles[0, :, 0], even)  # the first coordinate to the right
    torch.testing.assert_close(quantiles[:, 0, 1], even.flip(0))  # the second upwards
    with pytest.raises(ValueError, match="rows >= 2"):
        plotting.latent_grid(1)
    with pytest.raises(ValueError, match="margin"):
        plotting.latent_grid(3, margin=0.6)


def test_tile_puts_every_image_in_its_place():
    images = torch.arange(5).view(5, 1, 1, 1).expand(5, 1, 2, 3) / 10
    picture = plotting.tile(images, columns=3)
    assert picture.shape == (5, 11)
    assert picture[0, 0] == 0 and picture[0, 4].item() == pytest.approx(0.1)
    assert picture[3, 4].item() == pytest.approx(0.4)
    assert picture[2].eq(1).all() and picture[:, 3].eq(1).all()  # the gaps
    assert picture[3, 8] == 1  # nothing where a sixth image would be
    assert plotting.tile(torch.rand(4, 3, 2, 2)).shape == (5, 5, 3)
    with pytest.raises(ValueError, match="expected images"):
        plotting.tile(torch.rand(4, 2, 2))


def test_every_concept_has_a_colour_of_its_own():
    colors = [to_rgb(color) for color in plotting.COLORS.values()]
    assert len(set(colors)) == len(colors)


def test_learning_curves_draw_what_is_known():
    rows = [
        {"samples": 10, "train_bound": -3.0},
        {"samples": 20, "train_bound": -2.0, "test_bound": -2.5},
    ]
    ax = plotting.learning_curves({"AEVB": rows})
    train, test = ax.get_lines()
    assert train.get_xdata().tolist() == [10, 20] and test.get_ydata().tolist() == [-2.5]
    assert ax.get_xscale() == "log" and "nats" in ax.get_ylabel()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "AEVB, train",
        "AEVB, test",
    ]


def test_pictures_of_images_and_latents():
    ax = plotting.show_manifold(torch.rand(9, 1, 4, 4))
    assert ax.images[0].get_array().shape == (12, 12)
    with pytest.raises(ValueError, match="square number"):
        plotting.show_manifold(torch.rand(8, 1, 4, 4))
    figure = plotting.show_rows({"data": torch.rand(3, 1, 4, 4), "mean": torch.rand(3, 1, 4, 4)})
    assert [ax.get_ylabel() for ax in figure.axes] == ["data", "mean"]
    ax = plotting.latent_scatter(torch.randn(20, 2), torch.arange(20) % 4)
    assert sum(len(points.get_offsets()) for points in ax.collections) == 20
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match="latent vectors"):
        plotting.latent_scatter(torch.randn(20, 3))


def test_figures_go_where_the_environment_says(tmp_path, monkeypatch):
    figure = plt.figure()
    monkeypatch.setenv("VAELIB_FIGURES", str(tmp_path / "elsewhere"))
    assert plotting.save_figure(figure, "curve") == tmp_path / "elsewhere" / "curve.png"
    assert plotting.save_figure(figure, "curve", tmp_path) == tmp_path / "curve.png"


def test_save_figure_writes_whole_files_only(tmp_path, monkeypatch):
    figure, ax = plt.subplots()
    ax.plot([0, 1])
    path = plotting.save_figure(figure, "curve", tmp_path)
    first = path.read_bytes()
    assert path == tmp_path / "curve.png" and first.startswith(b"\x89PNG")
    plotting.save_figure(figure, "curve", tmp_path)
    assert path.read_bytes() == first  # the same figure is the same file

    def half(self, file, **settings):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(type(figure), "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        plotting.save_figure(figure, "curve", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["curve.png"]
    assert path.read_bytes() == first


def test_numbers_of_classes_in_one_place_can_be_read():
    torch.manual_seed(0)
    z = torch.randn(300, 2)
    labels = torch.arange(300) % 3
    ax = plotting.latent_scatter(z, labels)
    places = torch.tensor([text.xy for text in ax.texts])
    assert torch.pdist(places).min() > 0.04 * (z.max(0).values - z.min(0).values).max()
    far = torch.tensor([[-9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])[labels] + 0.1 * z
    medians = torch.stack([far[labels == name].quantile(0.5, dim=0) for name in range(3)])
    ax = plotting.latent_scatter(far, labels)
    torch.testing.assert_close(torch.tensor([text.xy for text in ax.texts]).to(medians), medians)
