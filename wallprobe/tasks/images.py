"""Pictures with labels for the audit of training methods: digits (embedded), Fashion-MNIST, CIFAR-10, and Gaussian clusters.

Only digits and clusters are always there. Fashion-MNIST is read from Debian's package `dataset-fashion-mnist`, or from a folder, or
through `datasets`; CIFAR-10 through `datasets`. Inputs are standardised by the training part's one mean and one deviation.
"""

import gzip
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe.errors import ConfigError, StoreError, look_up, one_line
from wallprobe.rng import generator
from wallprobe.store.runs import BUNDLED

DIGITS = BUNDLED.parent / "digits" / "digits.npz"
DIGITS_TRAIN = 1500  # the first; the other 297 are the test part
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts its four files
CLUSTERS, CLUSTER_WIDTH, CLUSTER_TRAIN, CLUSTER_TEST = 10, 64, 512, 128
Bytes = npt.NDArray[Any]


@dataclass(frozen=True)
class Images:
    """A labelled data set.

    Attributes:
        name: as in `DATA`.
        train_x, test_x: standardised pictures, fp32.
        train_y, test_y: labels from 0.
        classes: how many labels there are.
        source: where it was read from.
        data_hash: SHA-256 of pictures and labels as read.
    """

    name: str
    train_x: Float[Tensor, "train channels height width"]
    train_y: Int[Tensor, " train"]
    test_x: Float[Tensor, "test channels height width"]
    test_y: Int[Tensor, " test"]
    classes: int
    source: str
    data_hash: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train_x.shape[1:]
        return channels, height, width

    def noisy_labels(self, share: float, *labels: str | int) -> Int[Tensor, " train"]:
        """The training labels with that share of them drawn anew, uniformly over all classes; the test part is left alone.

        Drawn with other `labels` each epoch, they cannot be learnt by heart: the output error stays large where the data alone are too
        easy, which is what the noise is for (the stated surrogate for harder data).

        Args:
            share: 0 to 1.
            labels: what the draw depends on, as `rng.generator`.

        Raises:
            ConfigError: for another share.
        """
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"label noise {share:g} is no share; give 0 to 1")
        draws = generator("label noise", *labels)
        chosen = torch.rand(len(self.train_y), generator=draws) < share
        return torch.where(chosen, torch.randint(self.classes, (len(self.train_y),), generator=draws), self.train_y)


def load_images(name: str, folder: Path | None = None) -> Images:
    """A data set by name.

    Args:
        name: a key of `DATA`.
        folder: where its files are; default `$WALLPROBE_DATA`, then the usual places.

    Raises:
        UnknownNameError: for an unknown name.
        ConfigError: if its files are nowhere to be found; the message says how to get them.
        StoreError: if they are damaged.
    """
    read = look_up("data", name, DATA)
    given = os.environ.get("WALLPROBE_DATA")
    return read(folder or (Path(given) if given else None))


def _standardise(name: str, source: str, train: tuple[Bytes, Bytes], test: tuple[Bytes, Bytes]) -> Images:
    """Images from raw pictures [picture, channel, height, width] and labels."""
    digest = hashlib.sha256()
    for array in (*train, *test):
        digest.update(np.ascontiguousarray(array).tobytes())
    mean, deviation = float(train[0].mean()), float(train[0].std())

    def scaled(pictures: Bytes) -> Tensor:
        return (torch.from_numpy(pictures.astype(np.float32)) - mean) / deviation

    labels = [torch.from_numpy(part[1].astype(np.int64)) for part in (train, test)]
    classes = int(labels[0].max()) + 1
    return Images(name, scaled(train[0]), labels[0], scaled(test[0]), labels[1], classes, source, digest.hexdigest())


def _digits(_: Path | None) -> Images:
    """The embedded 8 x 8 digits."""
    with np.load(DIGITS, allow_pickle=False) as stored:
        pictures, labels = stored["images"][:, None], stored["labels"]
    cut = DIGITS_TRAIN
    return _standardise("digits", "embedded", (pictures[:cut], labels[:cut]), (pictures[cut:], labels[cut:]))


def _clusters(_: Path | None) -> Images:
    """Gaussian clusters of unit variance around ten random centres of unit variance: for tests."""
    draws = generator("clusters")
    centres = torch.randn(CLUSTERS, CLUSTER_WIDTH, generator=draws)
    labels = torch.arange(CLUSTER_TRAIN + CLUSTER_TEST) % CLUSTERS
    points = (centres[labels] + torch.randn(len(labels), CLUSTER_WIDTH, generator=draws)).numpy().reshape(-1, 1, 8, 8)
    drawn, cut = labels.numpy(), CLUSTER_TRAIN
    return _standardise("synthetic", "drawn", (points[:cut], drawn[:cut]), (points[cut:], drawn[cut:]))


def _fashion(folder: Path | None) -> Images:
    """Fashion-MNIST: idx files in a folder, Debian's package, or `datasets`."""
    places = [place for place in (folder, folder and folder / "fashion-mnist", DEBIAN) if place is not None]
    for place in places:
        if (place / "train-images-idx3-ubyte.gz").is_file():
            train, test = ((_idx(place, part, "images-idx3"), _idx(place, part, "labels-idx1")) for part in ("train", "t10k"))
            return _standardise("fashion_mnist", str(place.name), (train[0][:, None], train[1]), (test[0][:, None], test[1]))
    hint = "install Debian's dataset-fashion-mnist, or set WALLPROBE_DATA to a folder with its four idx-ubyte.gz files"
    return _hub("fashion_mnist", "zalando-datasets/fashion_mnist", "image", "label", hint)


def _idx(folder: Path, part: str, kind: str) -> Bytes:
    """A gzipped idx file of unsigned bytes (magic 0, 0, 8, number of dims; big-endian sizes)."""
    path = folder / f"{part}-{kind}-ubyte.gz"
    try:
        raw = gzip.decompress(path.read_bytes())
        sizes = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
        if raw[:3] != b"\0\0\x08":
            raise ValueError("it does not begin as an idx file of bytes")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise StoreError(f"{path} is no sound idx file ({error}); install or fetch it again") from error


def _cifar(_: Path | None) -> Images:
    """CIFAR-10 through `datasets`."""
    return _hub("cifar10", "uoft-cs/cifar10", "img", "label", "it needs a network, or the hub's cache")


def _hub(name: str, repository: str, pictures: str, labels: str, hint: str) -> Images:
    """A data set of the hub, through `datasets`, which keeps it in its own cache."""
    import datasets

    try:
        whole: Any = datasets.load_dataset(repository)
        parts = [
            (np.stack([np.asarray(picture) for picture in whole[part][pictures]]), np.asarray(whole[part][labels]))
            for part in ("train", "test")
        ]
    except Exception as error:
        why = one_line(error)
        raise ConfigError(f"data '{name}' cannot be had from the hub's {repository} ({why}); {hint}, or use --data digits") from error
    channelled = [(drawn[:, None] if drawn.ndim == 3 else drawn.transpose(0, 3, 1, 2), which) for drawn, which in parts]
    return _standardise(name, repository, *channelled)


DATA: Mapping[str, Callable[[Path | None], Images]] = MappingProxyType(
    {"digits": _digits, "fashion_mnist": _fashion, "cifar10": _cifar, "synthetic": _clusters}
)
