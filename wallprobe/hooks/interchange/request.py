"""What to interchange: the request of every kind of interchange, from the shell and from Python."""

from dataclasses import dataclass, field, fields
from typing import Any

from wallprobe.errors import ConfigError
from wallprobe.hooks.attach.interventions import Intervention, Swap, as_intervention
from wallprobe.hooks.interchange.pairs import Pairs
from wallprobe.hooks.interchange.places import At
from wallprobe.hooks.interchange.reads import Read, as_read

BUDGET = 1.0  # GiB
DIRECTIONS = ("denoise", "noise")


@dataclass(frozen=True)
class Request:
    """What to interchange.

    Attributes:
        src: donor: a run, a Hugging Face folder, a .gguf file, a hub id, or a model.
        dst: receiver, the same kinds; may be src.
        layers: layers to patch, one at a time; None for all.
        indices: indices or slots to patch, one at a time; None for all, of runs at one site for the last two before the read.
        sites: of `models.SITES`; `z.3` is head 3's part of `z`, and `heads` every head's.
        align: "none", "procrustes" or "ridge".
        pairs: of runs how many are drawn (those whose three answers coincide, or whose donor shows no rule, are dropped); a JSON Lines
            file of prompts; or pairs themselves.
        seed: of pairs, controls, bootstrap and permutations.
        subspace: None for the whole state, else what `subspaces.parse` reads: only the component in it is patched.
        backend: "hooks", or "nnsight".
        remote: with nnsight "none", or "local": as it would go to NDIF, run here.
        budget: GiB that tensors may take beside the weights.
        sweep: of runs: passes from the middle, and the table over sites; so are several sites.
        reads: what is read besides: names, functions of (logits, pairs), or reads.
        intervention: what is put there: a name, or an intervention; the donor's activation by default.
        direction: "denoise": donors into bases; "noise": the other way round.
        window: layers patched at once, from each layer on.
        capable: leave out the pairs that the models do not answer rightly.
    """

    src: Any
    dst: Any
    layers: tuple[int, ...] | None = None
    indices: tuple[At, ...] | None = None
    sites: tuple[str, ...] = ("resid_pre",)
    align: str = "none"
    pairs: Any = 1000
    seed: int = 0
    subspace: str | None = None
    backend: str = "hooks"
    remote: str = "none"
    budget: float = BUDGET
    sweep: bool = False
    reads: tuple[Any, ...] = ()
    intervention: Any = None
    direction: str = "denoise"
    window: int = 1
    capable: bool = False
    read: tuple[Read, ...] = field(init=False, repr=False, default=())
    treatment: Intervention = field(init=False, repr=False, default=Swap())

    def __post_init__(self) -> None:
        if len(self.sites) > 1 or "heads" in self.sites:
            object.__setattr__(self, "sweep", True)
        object.__setattr__(self, "read", tuple(as_read(one) for one in self.reads))
        object.__setattr__(self, "treatment", Swap() if self.intervention is None else as_intervention(self.intervention))
        if self.direction not in DIRECTIONS:
            raise ConfigError(f"--direction {self.direction} is none of {', '.join(DIRECTIONS)}")
        if not self.sites:
            raise ConfigError("no site to patch; give one of resid_pre, resid_mid, resid_post, attn_out, mlp_out, z")
        if self.window < 1:
            raise ConfigError(f"--window {self.window} patches nothing; give 1 or more layers")
        one = self.subspace is not None or self.align != "none"
        if one and (self.window > 1 or self.intervention is not None):
            what = f"--align {self.align}" if self.subspace is None else f"--subspace {self.subspace}"
            raise ConfigError(f"{what} goes with whole swaps of one layer; leave --window and --intervention out")
        if self.subspace is not None and (self.sweep or len(self.sites) > 1):
            raise ConfigError(f"--subspace {self.subspace} is for one site at a time; leave --sweep out, with --layer all if you like")

    def config(self, *names: str) -> dict[str, Any]:
        """Plain JSON of these fields, and of the others that are not as usual: what names the Result."""
        others = ("reads", "intervention", "direction", "window", "capable")
        kept = {one.name: getattr(self, one.name) for one in fields(self) if one.name in names}
        kept |= {one.name: getattr(self, one.name) for one in fields(self) if one.name in others and getattr(self, one.name) != one.default}
        if self.read:
            kept["reads"] = [one.name for one in self.read]
        if self.intervention is not None:
            kept["intervention"] = self.intervention if isinstance(self.intervention, str) else repr(self.intervention)
        if isinstance(kept.get("pairs"), Pairs):
            del kept["pairs"]
        return kept
