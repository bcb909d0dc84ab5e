"""Images in, tensors out: contents, splits, every way a file or a download can fail.

No test reaches a real network: connections other than to this machine raise, and downloads come
from a small server that the test controls. Tests on real files skip unless VAELIB_DATA is set.
"""

import gzip
import hashlib
import http.server
import io
import os
import pickle
import socket
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from sklearn.linear_model import Ridge

from vaelib import data

REAL_DATA = os.environ.get("VAELIB_DATA")
needs_real_data = pytest.mark.skipif(
    not REAL_DATA, reason="set VAELIB_DATA to a folder with the real files"
)


SILENT = -1  # the status of a server that accepts the request and never answers


@pytest.fixture(autouse=True)
def clean_room(monkeypatch, tmp_path):
    """No variable of the user, a cache of one's own, no failure remembered, no network."""
    for name in ("VAELIB_DATA", "VAELIB_OFFLINE", "VAELIB_SCALE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VAELIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(data, "_failed", {})
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def only_here(self, address):
        if address[0] != "127.0.0.1":
            raise OSError(101, "Network is unreachable")
        return connect(self, address)

    def resolve_only_here(host, *args, **kwargs):
        if host != "127.0.0.1":
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", only_here)
    monkeypatch.setattr(socket, "getaddrinfo", resolve_only_here)


@pytest.fixture
def server():
    """``server.files[path] = (status, body, declared length)``; ``server.hits`` lists requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.hits.append(self.path)
            status, body, length = self.server.files.get(self.path, (404, b"", 0))
            if status == SILENT:
                self.server.done.wait(5)
                return
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)  # shorter than declared: the connection dies half-way

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.files, running.hits, running.done = {}, [], threading.Event()
        running.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.done.set()
        running.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, to show that nothing was changed, added or left behind."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def sha256(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def assert_images(images, count, test_count, shape):
    for x, n in ((images.train, count), (images.test, test_count)):
        assert x.dtype == torch.float32 and x.is_contiguous()
        data.check_images(x, shape)
        assert len(x) == n
    for labels, n in ((images.train_labels, count), (images.test_labels, test_count)):
        assert labels.dtype == torch.int64 and labels.shape == (n,)


# --- The embedded digits ---


def test_the_embedded_digits_are_always_the_same():
    digits = data.mnist()
    assert_images(digits, 4000, 1000, (1, 28, 28))
    assert digits.source == "embedded" and digits.title("MNIST") == "MNIST"
    assert digits.train.min() == 0 and digits.train.max() == 1
    assert digits.train_labels.bincount().tolist() == [400] * 10
    assert digits.test_labels.bincount().tolist() == [100] * 10
    # Division of a byte by 255 is exact to the bit in IEEE arithmetic: one checksum for all CPUs.
    golden = "82284cc46eec2bd4d9f05b116bea8c081c92ca76f1f83b76bc6fd199cac7a681"
    assert sha256(*digits[:4]) == golden


def test_any_first_tens_of_embedded_digits_are_balanced():
    digits = data.mnist("5k")
    assert digits.train_labels.tolist() == list(range(10)) * 400
    assert digits.test_labels.tolist() == list(range(10)) * 100


def test_no_embedded_digit_is_in_both_parts():
    digits = data.mnist("5k")
    train = {image.numpy().tobytes() for image in digits.train}
    test = {image.numpy().tobytes() for image in digits.test}
    assert len(train) == 4000 and len(test) == 1000 and not train & test


def test_embedded_digits_ignore_what_lies_on_disk(monkeypatch, tmp_path):
    write_mnist(tmp_path)
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    before = sha256(data.mnist("5k").train)
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path / "missing"))
    monkeypatch.setenv("VAELIB_OFFLINE", "1")
    assert sha256(data.mnist("5k").train) == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([b"1,2,3"], "expected 5,000 rows of 785"),
        ([b"0," * 784 + b"3"] * 5000, "expected 500 of each digit"),
        ([b"0," * 784 + b"x"], "bad file"),
        ([b"300," * 784 + b"3"], "bad file"),
    ],
)
def test_altered_embedded_digits_are_refused(tmp_path, rows, message):
    path = tmp_path / "digits.csv"
    path.write_bytes(b"\n".join(rows))
    with pytest.raises(data.BadFile, match=message):
        data._read(path, data._parse_mnist_5k)


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="expected size '5k' or 'full', got '10k'"):
        data.mnist("10k")


# --- IDX files ---


def idx(array: np.ndarray, head: bytes = b"\0\0\x08") -> bytes:
    sizes = np.array(array.shape, ">u4").tobytes()
    return head + bytes([array.ndim]) + sizes + array.astype(np.uint8).tobytes()


PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 3, 2) * 10


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_files_are_read_plain_and_gzipped(tmp_path, pack):
    path = tmp_path / "images"
    path.write_bytes(pack(idx(PIXELS)))
    array = data._read(path, data._parse_idx, (4, 3, 2))
    assert array.dtype == np.uint8 and (array == PIXELS).all()


GOOD = idx(PIXELS)
BAD_IDX = {
    "empty": (b"", "head of an IDX file"),
    "text": (b"<html>404</html>", "head of an IDX file"),
    "integers": (idx(PIXELS, b"\0\0\x0c"), "head of an IDX file"),
    "head cut": (GOOD[:9], "head of an IDX file"),
    "body cut": (GOOD[:-1], "expected 40 bytes"),
    "too long": (GOOD + b"0", "expected 40 bytes"),
    "other sizes": (idx(PIXELS[:2]), r"expected sizes \(4, 3, 2\), got \(2, 3, 2\)"),
    "other rank": (idx(PIXELS[0]), r"expected sizes \(4, 3, 2\), got \(3, 2\)"),
    "already in [0, 1]": (idx(PIXELS.clip(0, 1)), "pixels 0 … 255, got 0 … 1"),
    "gzip cut": (gzip.compress(GOOD)[:-12], "EOFError"),
    "gzip altered": (gzip.compress(GOOD)[:-8] + b"\0" * 8, "CRC"),
    "gzip garbage": (b"\x1f\x8b" + b"garbage" * 9, "BadGzipFile"),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_bad_idx_files_are_named(tmp_path, case):
    path = tmp_path / "images.gz"
    content, message = BAD_IDX[case]
    path.write_bytes(content)
    with pytest.raises(data.BadFile, match=message) as caught:
        data._read(path, data._parse_idx, (4, 3, 2))
    assert str(path) in str(caught.value) and caught.value.path == path


def test_labels_above_nine_are_refused(tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(idx(np.array([0, 9, 11])))
    with pytest.raises(data.BadFile, match="labels 0 … 9"):
        data._read(path, data._parse_idx, (3,))


# --- Full MNIST: the search through places, on files of 40 and 20 images ---


def mnist_files(shift: int = 0) -> dict[str, bytes]:
    files = {}
    for prefix, count in (("train", 40), ("t10k", 20)):
        pixels = (np.arange(count * 784) + shift).reshape(count, 28, 28) % 256
        files[f"{prefix}-images-idx3-ubyte"] = idx(pixels)
        files[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(count) % 10)
    return files


def write_mnist(folder: Path, shift: int = 0, pack=gzip.compress, suffix: str = ".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in mnist_files(shift).items():
        (folder / (name + suffix)).write_bytes(pack(content))


@pytest.fixture
def small(monkeypatch, tmp_path, server):
    """MNIST of 40 and 20 images, the server as its second mirror; returns local and cache."""
    from torchvision.datasets import MNIST

    packed = {f"{name}.gz": gzip.compress(raw) for name, raw in mnist_files().items()}
    server.files = {f"/mnist/{name}": (200, file, len(file)) for name, file in packed.items()}
    resources = [(name, hashlib.md5(file).hexdigest()) for name, file in packed.items()]
    monkeypatch.setattr(data, "MNIST_COUNTS", {"train": 40, "t10k": 20})
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setattr(MNIST, "mirrors", [f"{server.url}/gone/", f"{server.url}/mnist/"])
    local = tmp_path / "local"
    local.mkdir()
    monkeypatch.setenv("VAELIB_DATA", str(local))
    return local, tmp_path / "cache" / "MNIST" / "raw"


def first_pixel(images) -> int:
    """Tells copies apart that were written with another ``shift``."""
    return round(images.train[0, 0, 0, 0].item() * 255)


@pytest.mark.parametrize("layout", ["MNIST/raw", "."])
@pytest.mark.parametrize(("pack", "suffix"), [(bytes, ""), (gzip.compress, ".gz")])
def test_local_files_come_first_in_every_layout(small, server, layout, pack, suffix):
    local, cache = small
    write_mnist(local / layout, 7, pack, suffix)
    write_mnist(cache, 8)
    before = contents(local)
    images = data.mnist("full")
    assert_images(images, 40, 20, (1, 28, 28))
    assert images.source == "local" and first_pixel(images) == 7 and not server.hits
    assert images.train_labels[:12].tolist() == [*range(10), 0, 1]
    expected = ((np.arange(40 * 784) + 7) % 256).reshape(40, 1, 28, 28).astype(np.float32) / 255
    assert (images.train.numpy() == expected).all()
    assert contents(local) == before


def test_the_cache_is_next_and_needs_no_network(small, server):
    write_mnist(small[1], 8)
    images = data.mnist("full")
    assert images.source == "downloaded" and first_pixel(images) == 8 and not server.hits


def test_a_download_is_kept_and_the_second_mirror_is_tried(small, server):
    assert data.mnist("full").source == "downloaded"
    assert len(server.hits) == 8  # each of four files: first mirror 404, second good
    assert len(contents(small[1])) == 4
    assert data.mnist("full").source == "downloaded" and len(server.hits) == 8


def test_a_bad_local_file_is_named_passed_over_and_left_alone(small):
    local, cache = small
    write_mnist(local)
    victim = local / "t10k-labels-idx1-ubyte.gz"
    victim.write_bytes(victim.read_bytes()[:-9])
    write_mnist(cache, 8)
    before = contents(local)
    with pytest.warns(UserWarning, match=r"MNIST: bad file .*t10k-labels.* \(passed over\)"):
        images = data.mnist("full")
    assert first_pixel(images) == 8 and contents(local) == before


def test_a_bad_cached_file_is_set_aside_and_fetched_again(small, server):
    cache = small[1]
    write_mnist(cache)
    victim = cache / "train-images-idx3-ubyte.gz"
    victim.write_bytes(b"\x1f\x8b broken")
    with pytest.warns(UserWarning, match=r"train-images.*renamed to \*.bad"):
        assert data.mnist("full").source == "downloaded"
    assert (cache / f"{victim.name}.bad").read_bytes() == b"\x1f\x8b broken"
    assert set(server.hits) == {f"/gone/{victim.name}", f"/mnist/{victim.name}"}


def test_a_missing_local_folder_is_named(small, monkeypatch):
    monkeypatch.setenv("VAELIB_DATA", str(small[0] / "typo"))
    with pytest.warns(UserWarning, match="expected VAELIB_DATA to name a folder, got .*typo"):
        assert data.mnist("full").source == "downloaded"


def test_a_file_that_may_not_be_read_is_reported_not_renamed(small, monkeypatch):
    cache = small[1]
    write_mnist(cache)

    def forbidden(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    monkeypatch.setenv("VAELIB_OFFLINE", "1")
    with (
        pytest.warns(UserWarning, match="Permission denied"),
        pytest.raises(data.DataError, match="Permission denied"),
    ):
        data.mnist("full")
    assert not list(cache.glob("*.bad"))


def test_a_cache_that_may_not_be_changed_is_only_reported(small, monkeypatch):
    write_mnist(small[1])
    victim = small[1] / "train-labels-idx1-ubyte.gz"
    victim.write_bytes(b"broken")

    def forbidden(*args):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", forbidden)
    monkeypatch.setenv("VAELIB_OFFLINE", "1")
    with (
        pytest.warns(UserWarning, match=r"train-labels.*\(passed over\)"),
        pytest.raises(data.DataError, match="VAELIB_OFFLINE is set"),
    ):
        data.mnist("full")
    assert victim.read_bytes() == b"broken"


def test_a_cache_that_cannot_be_created_is_an_error(small, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("VAELIB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(data.DataError, match=r"download into .*cache: .*NotADirectoryError"):
        data.mnist("full")


def test_cache_and_data_may_not_be_one_folder(small, monkeypatch):
    monkeypatch.setenv("VAELIB_CACHE", str(small[0]))
    with pytest.raises(ValueError, match="expected VAELIB_CACHE and VAELIB_DATA to differ"):
        data.mnist("full")


def test_without_network_the_error_lists_what_was_tried(small, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://one.invalid/", "http://two.invalid/"])
    with pytest.raises(data.DataError) as caught:
        data.mnist("full")
    message = str(caught.value)
    for part in (
        f"{small[0]}: no train-images-idx3-ubyte or train-images-idx3-ubyte.gz",
        f"{small[1].parents[1].resolve()}: no train-images-idx3-ubyte",
        "http://one.invalid/train-images-idx3-ubyte.gz: ConnectionError",
        "http://two.invalid/train-images-idx3-ubyte.gz: ConnectionError",
        "set VAELIB_DATA to it",
        "mnist('5k')",
    ):
        assert part in message
    assert not contents(small[1])


def test_offline_means_that_no_download_is_tried(small, server, monkeypatch):
    monkeypatch.setenv("VAELIB_OFFLINE", "1")
    with pytest.raises(data.DataError, match="not tried, because VAELIB_OFFLINE is set"):
        data.mnist("full")
    assert not server.hits
    monkeypatch.setenv("VAELIB_OFFLINE", "0")
    assert data.mnist("full").source == "downloaded"


# --- Frey Face ---


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Frames that carry their own number in the first two pixels."""
    array = np.random.RandomState(1).randint(0, 256, (1965, 560)).astype(np.uint8)
    array[:, 0], array[:, 1] = np.divmod(np.arange(1965), 256)
    return array


def mat(ff: np.ndarray, key: str = "ff") -> bytes:
    file = io.BytesIO()
    savemat(file, {key: ff}, do_compression=True)
    return file.getvalue()


@pytest.fixture
def frey(monkeypatch, server, frames, tmp_path):
    """The server as the page of the Frey Face; returns the good file and the cache folder."""
    good = mat(frames.T)
    server.files["/frey.mat"] = (200, good, len(good))
    monkeypatch.setattr(data, "FREY_URL", f"{server.url}/frey.mat")
    monkeypatch.setattr(data, "FREY_HASH", hashlib.sha256(good).hexdigest())
    return good, tmp_path / "cache"


def frame_numbers(faces: torch.Tensor) -> list[int]:
    first, second = (faces.flatten(1)[:, i].mul(255).round().long() for i in (0, 1))
    return (256 * first + second).tolist()


def test_frey_faces_from_a_folder_are_split_in_blocks(frey, frames, server, monkeypatch, tmp_path):
    (tmp_path / "frey_rawface.mat").write_bytes(frey[0])
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    faces = data.frey_faces()
    assert faces.source == "local" and faces.train_labels is None and faces.test_labels is None
    assert faces.train.shape == (1575, 1, 28, 20) and faces.test.shape == (390, 1, 28, 20)
    assert faces.train.dtype == faces.test.dtype == torch.float32
    train, test = frame_numbers(faces.train), frame_numbers(faces.test)
    assert test == [i for i in range(1965) if (i // 15) % 5 == 4]
    assert train == [i for i in range(1965) if (i // 15) % 5 != 4]
    assert (faces.train[2, 0].numpy() * 255).round().astype(int).tolist() == (
        frames[2].reshape(28, 20).tolist()
    )
    assert not server.hits and faces.title("Frey Face") == "Frey Face"


def test_frey_faces_are_downloaded_once_and_kept(frey, server, monkeypatch):
    assert data.frey_faces().source == "downloaded"
    assert contents(frey[1]) == {"frey_rawface.mat": frey[0]}
    monkeypatch.setenv("VAELIB_OFFLINE", "1")
    assert data.frey_faces().source == "downloaded" and server.hits == ["/frey.mat"]


def bad_download(case: str, good: bytes) -> tuple[int, bytes, int]:
    return {
        "gone": (404, b"", 0),
        "broken server": (500, b"", 0),
        "dies half-way": (200, good[: len(good) // 2], len(good)),
        "truncated": (200, good[:-100], len(good) - 100),
        "wrong checksum": (200, good[:-1] + bytes([good[-1] ^ 1]), len(good)),
        "a page instead": (200, b"<html>moved</html>", 18),
    }[case]


BAD_DOWNLOADS = {
    "gone": "404",
    "broken server": "500",
    "dies half-way": "IncompleteRead|ConnectionError|ChunkedEncodingError",
    "truncated": "does not match the known hash",
    "wrong checksum": "does not match the known hash",
    "a page instead": "does not match the known hash",
}


@pytest.mark.parametrize("case", BAD_DOWNLOADS)
def test_a_bad_download_leaves_nothing_and_is_not_tried_again(frey, server, case):
    server.files["/frey.mat"] = bad_download(case, frey[0])
    with pytest.warns(UserWarning, match=f"(?s)STAND-IN.*({BAD_DOWNLOADS[case]})"):
        faces = data.frey_faces()
    assert faces.source == "stand-in" and "STAND-IN" in faces.title("Frey Face")
    assert contents(frey[1]) == {}
    with pytest.warns(UserWarning, match="(?s)STAND-IN.*not tried again in this process"):
        data.frey_faces()
    assert server.hits == ["/frey.mat"]


def test_a_server_that_never_answers_is_given_up(frey, server, monkeypatch):
    server.files["/frey.mat"] = (SILENT, b"", 0)
    monkeypatch.setattr(data, "TIMEOUT", 0.2)
    with pytest.warns(UserWarning, match="(?s)STAND-IN.*ReadTimeout"):
        assert data.frey_faces().source == "stand-in"


def test_without_network_the_stand_in_comes_with_a_loud_notice(monkeypatch):
    with pytest.warns(UserWarning, match="(?s)STAND-IN.*cs.nyu.edu.*ConnectionError") as caught:
        faces = data.frey_faces()
    assert len(caught) == 1  # a file that is simply not there is no bad file
    assert caught[0].filename == __file__  # the notice points at the caller's line
    assert faces.source == "stand-in"
    assert faces.train.shape == (1575, 1, 28, 20) and faces.test.shape == (390, 1, 28, 20)


@pytest.mark.parametrize("scale", ["paper", "papers"])
def test_beyond_the_classroom_there_is_no_stand_in(frey, monkeypatch, scale):
    monkeypatch.setenv("VAELIB_OFFLINE", "1")
    monkeypatch.setenv("VAELIB_SCALE", scale)
    with pytest.raises(
        data.DataError, match=f"(?s)at {scale} scale only the real.*_OFFLINE is set"
    ):
        data.frey_faces()


BAD_FREY = {
    "truncated": lambda frames: mat(frames.T)[:-5000],
    "empty": lambda frames: b"",
    "text": lambda frames: b"<html>moved</html>" * 99,
    "no ff": lambda frames: mat(frames.T, "faces"),
    "turned": lambda frames: mat(frames),
    "too few": lambda frames: mat(frames[:-1].T),
    "floats": lambda frames: mat(frames.T / 255),
    "zeros and ones": lambda frames: mat(frames.T // 128),
}


@pytest.mark.parametrize("case", BAD_FREY)
def test_a_bad_local_frey_file_is_named_and_never_used(monkeypatch, tmp_path, frames, case):
    local = tmp_path / "local"
    local.mkdir()
    (local / "frey_rawface.mat").write_bytes(BAD_FREY[case](frames))
    before = contents(local)
    monkeypatch.setenv("VAELIB_DATA", str(local))
    monkeypatch.setenv("VAELIB_OFFLINE", "1")
    with pytest.warns(UserWarning) as caught:
        assert data.frey_faces().source == "stand-in"
    messages = [str(warning.message) for warning in caught]
    assert any("Frey Face: bad file" in m and str(local) in m for m in messages)
    assert any("STAND-IN" in m for m in messages)
    assert contents(local) == before


def test_a_bad_cached_frey_file_is_replaced(frey):
    frey[1].mkdir()
    (frey[1] / "frey_rawface.mat").write_bytes(frey[0][:-5000])
    with pytest.warns(UserWarning, match=r"renamed to \*.bad"):
        assert data.frey_faces().source == "downloaded"
    assert set(contents(frey[1])) == {"frey_rawface.mat", "frey_rawface.mat.bad"}


# --- The stand-in ---


@pytest.fixture(scope="module")
def drawn():
    return data.stand_in_faces()


def test_the_stand_in_is_in_range_and_deterministic(drawn):
    faces, factors = drawn
    data.check_images(faces, (1, 28, 20))
    assert len(faces) == 1965 and factors.shape == (1965, 2)
    assert factors.abs().max() <= 1 and faces.std() > 0.1
    again = data.stand_in_faces()
    assert torch.equal(faces, again[0]) and torch.equal(factors, again[1])
    # A fixed frame, to one grey level: libraries may round tanh differently in the last bit.
    middle = (faces[1000, 0, 14, ::4] * 255).round().int()
    assert (middle - torch.tensor([114, 174, 184, 209, 160])).abs().max() <= 1


def test_the_two_factors_can_be_read_off_the_pixels(drawn):
    """Ridge regression, trained on the training blocks, explains > 95 % of each on the test."""
    (train, _, test, _), (y, _, y_test, _) = (data._split_frey(part) for part in drawn)
    fit = Ridge(1.0).fit(train.flatten(1).numpy(), y.numpy())
    error = torch.from_numpy(fit.predict(test.flatten(1).numpy())) - y_test
    r_squared = 1 - error.square().mean(0) / y_test.var(0, correction=0)
    assert r_squared.min() > 0.95


def test_the_two_factors_are_all_there_is_but_noise(drawn):
    """Frames with nearly the same factors differ by little more than two draws of the noise."""
    faces, factors = drawn
    distance = torch.cdist(factors, factors) + 9 * torch.eye(1965)
    near = distance.argmin(1)
    close = distance.min(1).values < 0.02
    difference = (faces[close] - faces[near[close]]).square().mean().sqrt()
    assert close.sum() > 50
    assert difference < 1.3 * 2**0.5 * 0.02


def test_the_factors_cover_their_square(drawn):
    """Each of 5 × 5 cells holds at least 1 % of the frames: every pair of values is seen."""
    cells = ((drawn[1] + 1) / 2 * 5).long().clamp(max=4)
    counts = torch.bincount(cells[:, 0] * 5 + cells[:, 1], minlength=25)
    assert counts.min() >= 0.01 * 1965


def test_the_stand_in_moves_like_a_video(drawn):
    faces, factors = drawn
    x = faces.flatten(1)
    step = (x[1:] - x[:-1]).norm(dim=1)
    random = (x - x[torch.randperm(1965, generator=torch.Generator().manual_seed(0))]).norm(dim=1)
    assert step.max() < 0.5 * random.median()
    assert (factors[1:] - factors[:-1]).abs().max() < 0.1


# --- CIFAR-10 and ImageNet 32×32 ---


def npz(path: Path, data=None, labels=None, **more):
    np.savez(
        path, **{k: v for k, v in (("data", data), ("labels", labels)) if v is not None}, **more
    )


def colour(count: int, first_label: int = 0, classes: int = 10):
    """Image i holds the bytes i, i+1, … (modulo 256); labels run through the classes."""
    pixels = (np.arange(3072)[None] + np.arange(count)[:, None]) % 256
    return pixels.astype(np.uint8), (np.arange(count) % classes + first_label).astype(np.uint8)


def assert_colour(x: torch.Tensor, index: int):
    """Channel first: the layout of both CIFAR's and ImageNet's rows."""
    expected = torch.arange(index, index + 3072).remainder(256).view(3, 32, 32)
    assert torch.equal((x[index] * 255).round().long(), expected)


@pytest.fixture
def tiny_cifar(monkeypatch, server):
    """CIFAR-10 of 5 × 4 and 3 images in torchvision's layout: a function that writes it."""
    from torchvision.datasets import CIFAR10

    files = {"batches.meta": pickle.dumps({"label_names": list("0123456789")})}
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name in names:
        pixels, labels = colour(3 if name == "test_batch" else 4)
        files[name] = pickle.dumps({"data": pixels, "labels": labels.tolist()})
    listed = [[name, hashlib.md5(files[name]).hexdigest()] for name in names]
    monkeypatch.setattr(CIFAR10, "train_list", listed[:5])
    monkeypatch.setattr(CIFAR10, "test_list", listed[5:])
    meta_md5 = hashlib.md5(files["batches.meta"]).hexdigest()
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta_md5})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    packed = archive.getvalue()
    server.files["/cifar.tgz"] = (200, packed, len(packed))
    monkeypatch.setattr(CIFAR10, "url", f"{server.url}/cifar.tgz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(packed).hexdigest())

    def write(folder: Path):
        (folder / "cifar-10-batches-py").mkdir(parents=True)
        for name, content in files.items():
            (folder / "cifar-10-batches-py" / name).write_bytes(content)

    return write


def test_cifar_takes_the_small_npz_first_unless_all_is_asked(tiny_cifar, monkeypatch, tmp_path):
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    tiny_cifar(tmp_path)
    npz(tmp_path / "cifar10_train10k.npz", *colour(10_000))
    npz(tmp_path / "cifar10_test1k.npz", *colour(1_000))
    small = data.cifar10()
    assert_images(small, 10_000, 1_000, (3, 32, 32))
    assert_colour(small.test, 5)
    assert small.source == "local" and small.test_labels[:11].tolist() == [*range(10), 0]
    full = data.cifar10(full=True)
    assert_images(full, 20, 3, (3, 32, 32))
    assert_colour(full.test, 2)
    assert full.source == "local" and full.train_labels.tolist() == [0, 1, 2, 3] * 5


def test_cifar_is_downloaded_unpacked_and_kept(tiny_cifar, server):
    for _ in range(2):
        images = data.cifar10()
        assert_images(images, 20, 3, (3, 32, 32))
        assert images.source == "downloaded"
    assert server.hits == ["/cifar.tgz"]


def test_an_altered_cifar_file_is_never_unpickled(tiny_cifar, monkeypatch, tmp_path):
    tiny_cifar(tmp_path)
    victim = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    victim.write_bytes(victim.read_bytes() + b"0")
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    monkeypatch.setenv("VAELIB_OFFLINE", "1")
    with (
        pytest.warns(UserWarning, match=r"CIFAR-10: bad file .*cifar-10-batches-py"),
        pytest.raises(data.DataError, match=r"(?s)CIFAR-10 cannot be had.*VAELIB_DATA"),
    ):
        data.cifar10()


def test_a_cifar_npz_of_another_size_is_refused(tiny_cifar, monkeypatch, tmp_path):
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    npz(tmp_path / "cifar10_train10k.npz", *colour(9_999))
    npz(tmp_path / "cifar10_test1k.npz", *colour(1_000))
    with pytest.warns(UserWarning, match=r"cifar10_train10k.npz: .*expected uint8 \(10000, 3072\)"):
        assert data.cifar10().source == "downloaded"


@pytest.fixture
def imagenet(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "IMAGENET_COUNTS", {"train": 30, "val": 4})
    for i in range(1, 11):
        npz(tmp_path / f"train_data_batch_{i}.npz", *colour(3, first_label=1), mean=np.zeros(3072))
    npz(tmp_path / "val_data.npz", *colour(4, first_label=1))
    return tmp_path


def test_imagenet_joins_its_batches_and_counts_labels_from_zero(imagenet):
    images = data.imagenet32(imagenet)
    assert_images(images, 30, 4, (3, 32, 32))
    assert images.train_labels.tolist() == [0, 1, 2] * 10 and images.source == "local"
    assert_colour(images.train, 2)
    assert len(data.imagenet32(str(imagenet), batches=2).train) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be had: .*train_data_batch_2.npz.*image-net.org"),
        ({"data": colour(3)[0]}, "train_data_batch_2.npz: KeyError"),
        ({"data": colour(3)[0], "labels": np.array([0, 1, 2])}, "1000 labels from 1 up, got 0 … 2"),
        ({"data": colour(3)[0], "labels": np.array([1, 2, 1001])}, "got 1 … 1001"),
        ({"data": colour(3)[0], "labels": np.array([1, 2])}, r"labels \(3,\), got .*\(2,\)"),
        ({"data": colour(3)[0][:, :768], "labels": np.array([1, 2, 3])}, r"uint8 \(3, 3072\)"),
        ({"data": colour(3)[0] / 255, "labels": np.array([1, 2, 3])}, "expected uint8"),
        (
            dict(zip(("data", "labels"), colour(2, 1), strict=True)),
            "expected 30 training images, got 29",
        ),
    ],
)
def test_bad_imagenet_files_are_named(imagenet, content, message):
    path = imagenet / "train_data_batch_2.npz"
    path.unlink()
    if content is not None:
        npz(path, **content)
    with pytest.raises(data.DataError, match=message):
        data.imagenet32(imagenet)


def test_a_truncated_npz_and_a_pickle_in_disguise_are_refused(imagenet):
    path = imagenet / "val_data.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(data.BadFile, match=r"val_data\.npz"):
        data.imagenet32(imagenet)
    npz(path, np.array([{"a": 1}], dtype=object), np.array([1]))
    with pytest.raises(data.BadFile, match="allow_pickle"):
        data.imagenet32(imagenet)


def test_imagenet_batches_are_one_to_ten(imagenet):
    for batches in (0, 11, 1.5):
        with pytest.raises(ValueError, match="expected 1 <= batches <= 10"):
            data.imagenet32(imagenet, batches)


# --- Checking, binarising, averaging ---


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[0.5]], TypeError, "expected a float tensor, got list"),
        (np.zeros((1, 1, 2, 2), np.float32), TypeError, "expected a float tensor, got float32"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), TypeError, "got torch.uint8"),
        (
            torch.zeros(1, 2, 2),
            ValueError,
            r"expected images of shape \(N, 1, 2, 2\), got \(1, 2, 2\)",
        ),
        (torch.zeros(1, 3, 2, 2), ValueError, r"shape \(N, 1, 2, 2\), got \(1, 3, 2, 2\)"),
        (torch.zeros(0, 1, 2, 2), ValueError, "at least one image"),
        (torch.full((1, 1, 2, 2), 1.01), ValueError, r"\[0, 1\], got values from 1.0"),
        (torch.full((1, 1, 2, 2), -0.01), ValueError, r"\[0, 1\], got values from -0.0"),
        (torch.tensor([[[[0.0, float("nan")], [0, 1]]]]), ValueError, "finite .* nan"),
        (torch.tensor([[[[0.0, float("inf")], [0, 1]]]]), ValueError, "finite .* inf"),
    ],
)
def test_images_that_are_not_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        data.check_images(x, (1, 2, 2))


def test_checked_images_come_back_as_they_are():
    x = torch.rand(3, 1, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert data.check_images(x) is x and data.check_images(x, (1, 4, 5)) is x
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), got \(4, 5\)"):
        data.check_images(x[0, 0])


def test_thresholding_sends_a_half_to_zero():
    x = torch.tensor([0.0, 0.2, 0.5, 0.5000001, 1.0], dtype=torch.float64)
    assert data.binarize(x).tolist() == [0, 0, 0, 1, 1]
    assert data.binarize(x).dtype == torch.float64
    assert x[1] == 0.2  # the input is not changed


def test_bernoulli_binarising_has_the_grey_level_as_its_mean():
    grey = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    n = 40_000
    draws = data.binarize(grey.expand(n, 5), "bernoulli", torch.Generator().manual_seed(0))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    deviation = (grey * (1 - grey) / n).sqrt()  # of the mean of n draws
    assert ((draws.mean(0) - grey).abs() <= 5 * deviation).all()


def test_bernoulli_binarising_follows_its_generator_only():
    x = torch.full((100,), 0.5)
    torch.manual_seed(1)
    one = data.binarize(x, "bernoulli", torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    two = data.binarize(x, "bernoulli", torch.Generator().manual_seed(3))
    three = data.binarize(x, "bernoulli", torch.Generator().manual_seed(4))
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_binarising_refuses_bad_input_and_methods():
    with pytest.raises(TypeError, match="float tensor"):
        data.binarize(torch.tensor([0, 1]))
    for method in ("threshold", "bernoulli"):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            data.binarize(torch.tensor([2.0]), method)
    with pytest.raises(ValueError, match="'threshold' or 'bernoulli', got 'otsu'"):
        data.binarize(torch.tensor([0.5]), "otsu")


def test_downsampling_averages_blocks():
    x = torch.arange(16.0).view(1, 1, 4, 4) / 16
    expected = torch.tensor([[2.5, 4.5], [10.5, 12.5]]) / 16
    assert torch.equal(data.downsample(x)[0, 0], expected)
    assert data.downsample(data.mnist().test).shape == (1000, 1, 14, 14)
    for factor in (3, 0):
        with pytest.raises(ValueError, match=f"divides 4 and 4, got {factor}"):
            data.downsample(x, factor)


# --- The real files ---


@needs_real_data
def test_the_real_mnist(monkeypatch):
    monkeypatch.setenv("VAELIB_DATA", REAL_DATA)
    monkeypatch.setenv("VAELIB_OFFLINE", "1")
    digits = data.mnist("full")
    assert digits.source == "local"
    assert_images(digits, 60_000, 10_000, (1, 28, 28))
    # Counts of each digit as published with the data set.
    assert digits.train_labels.bincount().tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    ]
    assert digits.test_labels.bincount().tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    assert abs(digits.train.mean() - 0.1307) < 1e-3  # the well-known mean grey level


@needs_real_data
def test_the_real_frey_face(monkeypatch):
    monkeypatch.setenv("VAELIB_DATA", REAL_DATA)
    monkeypatch.setenv("VAELIB_OFFLINE", "1")
    monkeypatch.setenv("VAELIB_SCALE", "paper")
    faces = data.frey_faces()
    assert faces.source == "local" and len(faces.train) == 1575 and len(faces.test) == 390
    x = faces.train.flatten(1)
    step = (x[1:] - x[:-1]).norm(dim=1)
    assert step.median() < 0.7 * (x - x.flip(0)).norm(dim=1).median()  # in the video's order


@needs_real_data
def test_the_real_cifar(monkeypatch):
    if not (Path(REAL_DATA) / "cifar10_train10k.npz").exists():
        pytest.skip("no cifar10_train10k.npz in VAELIB_DATA")
    monkeypatch.setenv("VAELIB_DATA", REAL_DATA)
    images = data.cifar10()
    assert_images(images, 10_000, 1_000, (3, 32, 32))
    # The channels' well-known means, within a sampling error of some thousandths.
    means = images.train.mean((0, 2, 3))
    assert (means - torch.tensor([0.4914, 0.4822, 0.4465])).abs().max() < 0.01
