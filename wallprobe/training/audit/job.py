"""One training to audit: architecture, method, data, seed and settings; named by what it is and a hash of the rest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from wallprobe.errors import ConfigError, UnknownNameError, look_up
from wallprobe.tasks.images import DATA, Images, load_images
from wallprobe.training.audit import wall
from wallprobe.training.audit.quantities import Lens
from wallprobe.training.audit.thresholds import Thresholds
from wallprobe.training.estimators.nets import BROADCASTS, NETS, Net, Sizes, build_net
from wallprobe.training.estimators.protocol import check_options, makers

STOPS = ("degenerate",)
USUAL_DATA = "digits"  # of whoever names none; the wall's transformer takes its own task
PLAIN = (None, None, True, "all")  # sizes that the wall's transformer does not have: mlp_ratio, patch, terminal_ln, broadcast
EARLY = (50, 100, 200)  # further moments, in optimiser steps
FULL_TIMES = 6  # about how often a training gets nulls and nudges
EP_ARCHS = ("resmlp", "student")  # elsewhere, gradient descent on the energy was measured not to settle (cosine to BP 0.05 to 0.9)
# data -> epochs, batch, lr, label noise
USUAL: Mapping[str, tuple[int, int, float, float]] = MappingProxyType(
    {
        "digits": (60, 64, 5e-3, 0.7),
        "synthetic": (10, 64, 3e-3, 0.7),
        "fashion_mnist": (6, 128, 3e-3, 0.7),
        "cifar10": (100, 128, 1e-3, 0.0),
        wall.DATA: (6, 128, 1e-3, 0.0),
    }
)


@dataclass(frozen=True)
class AuditJob:
    """A training to audit.

    Attributes:
        arch: of `nets.NETS`, or "wall": a HookedTransformer on the wall's task.
        method: of the registered estimators.
        data: of `images.DATA`; of the wall, "recurrence".
        seed: of initialisation, feedback, order and label noise.
        epochs, batch, lr: Adam's, one for all parameters.
        label_noise: share of training labels drawn anew, others every epoch.
        penalty: of the states' mean squares.
        samples: training samples of an epoch, drawn anew each time; None for all.
        sizes: what differs from the architecture's own.
        options: of the method.
        lens: how the audit looks.
        stop: "degenerate" ends a training early; None never.
        thresholds: of that stop.
    """

    arch: str
    method: str
    data: str
    seed: int
    epochs: int
    batch: int
    lr: float
    label_noise: float
    penalty: float = 0.0
    samples: int | None = None
    sizes: Sizes = field(default_factory=Sizes)
    options: tuple[tuple[str, Any], ...] = ()
    lens: Lens = field(default_factory=Lens)
    stop: str | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        archs, data = (*NETS, wall.ARCH), (*DATA, wall.DATA)
        for what, name, known in (
            ("architecture", self.arch, archs),
            ("data", self.data, data),
            ("training method", self.method, makers()),
        ):
            if name not in known:
                raise UnknownNameError(f"no {what} named '{name}'; there are: {', '.join(known)}")
        check_options(self.method, dict(self.options) | ({"penalty": self.penalty} if self.penalty else {}))
        if (self.arch == wall.ARCH) != (self.data == wall.DATA):
            raise ConfigError(
                f"architecture {self.arch} does not read {self.data}: {wall.ARCH} goes with {wall.DATA}, others with pictures"
            )
        if self.arch == wall.ARCH and (self.sizes.mlp_ratio, self.sizes.patch, self.sizes.terminal_ln, self.sizes.broadcast) != PLAIN:
            raise ConfigError("of the wall's transformer only width, depth and heads are free; leave the other sizes out")
        if self.method == "ep" and self.arch not in EP_ARCHS:
            raise ConfigError(f"ep does not settle on {self.arch}: gradient descent on its energy diverges; give {' or '.join(EP_ARCHS)}")
        if self.stop is not None and self.stop not in STOPS:
            raise ConfigError(f"--stop-on '{self.stop}' is none of {', '.join(STOPS)}")
        if not 0.0 <= self.label_noise <= 1.0:
            raise ConfigError(f"label noise {self.label_noise:g} is no share; give 0 to 1")
        if not self.lr > 0 or self.penalty < 0:
            raise ConfigError(f"learning rate {self.lr:g} with penalty {self.penalty:g}: give a rate above 0 and a penalty of 0 or more")
        if self.sizes.broadcast not in BROADCASTS:
            raise ConfigError(f"--broadcast '{self.sizes.broadcast}' is none of {', '.join(BROADCASTS)}")
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} trains nothing; give 1 or more")

    @property
    def name(self) -> str:
        """Folder of the run: what it is, a hash of the settings, the seed."""
        settings = {key: value for key, value in self.config().items() if key not in ("arch", "method", "data", "seed")}
        mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.arch}-{self.method}-{self.data.replace('_', '-')}-{mark}@{self.seed}"

    @property
    def label(self) -> str:
        """For people: `resmlp dfa @42`."""
        return f"{self.arch} {self.method} @{self.seed}"

    def config(self) -> dict[str, Any]:
        """Plain JSON: what a checkpoint must agree with. Thresholds count only where they stop the training."""
        whole = asdict(self) | {"options": dict(self.options)}
        whole["thresholds"] = self.thresholds.config() if self.stop else None
        return dict(json.loads(json.dumps(whole)))

    def frozen(self) -> "AuditJob":
        """The baseline: the same with blocks left alone, to the end."""
        return replace(self, method="frozen", options=(), stop=None)

    def load(self) -> Images | wall.Sequences:
        """What it trains on and is looked at on."""
        return wall.load_sequences() if self.arch == wall.ARCH else load_images(self.data)

    def build(self, data: Images | wall.Sequences) -> Net:
        """The network as it is before the first step, decided by seed, architecture and sizes."""
        if self.arch == wall.ARCH:
            return wall.build_wall(self.seed, self.sizes)
        return build_net(self.arch, data.shape, data.classes, self.seed, self.sizes)

    def full(self, epoch: int) -> bool:
        """Whether nulls and nudges are taken after this epoch."""
        return epoch in (0, self.epochs) or epoch % max(1, self.epochs // FULL_TIMES) == 0


def make_job(arch: str, method: str, data: str, seed: int, **given: Any) -> AuditJob:
    """A job with the data's usual epochs, batch, learning rate and label noise where they are not given (or None).

    Raises:
        UnknownNameError, ConfigError: for what is not there or not accepted.
    """
    data = wall.DATA if arch == wall.ARCH and data == USUAL_DATA else data
    usual = dict(zip(("epochs", "batch", "lr", "label_noise"), look_up("data", data, USUAL), strict=True))
    chosen = usual | {key: value for key, value in given.items() if value is not None}
    return AuditJob(arch, method, data, seed, **chosen)
