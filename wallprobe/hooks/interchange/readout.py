"""Readout import by depth: how likely the receiver gives the donor's answer with the donor's state before each block, raw and aligned.

For each pair of runs, every depth at the last two supervised indices is swept (`run`: passes from the middle, guards and
controls in every cell) as it is, through a rotation, and through an affine map fitted on other sequences.
The statement it tests: the wall study, "No localized circuit exists".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from wallprobe.errors import ConfigError
from wallprobe.findings import beyond, rounding
from wallprobe.hooks.interchange.programs import MARGIN, describe, shares_initialisation
from wallprobe.hooks.interchange.request import Request
from wallprobe.hooks.interchange.run import interchange, plan
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset
from wallprobe.store.runs import Run, resolve_run

BASES = ("none", "procrustes", "ridge")
WORDS = {"none": "raw", "procrustes": "rotated", "ridge": "ridge-aligned"}
STARTS = ("same", "other")  # of a pair: one initialisation, or two
DEEP = 3  # blocks passed from which the wall study's deep patches start
ANSWERS = ("rule", "import")
KEPT = (
    *(f"p_{name}{arm}" for name in ANSWERS for arm in ("", "_low", "_high", "_random", "_norm")),
    *(f"base_p_{name}" for name in ANSWERS),
    "p_own",
    "alignment_r2",
    "q_value",
    "q_value_rule",
    "self_patch_max_change",
)


@dataclass(frozen=True)
class Pair:
    """A donor and a receiver.

    Attributes:
        src: donor run.
        dst: receiving run.
    """

    src: str
    dst: str

    @classmethod
    def parse(cls, text: str) -> "Pair":
        """Read `p5:c0`.

        Raises:
            ConfigError: for anything else.
        """
        src, colon, dst = text.rpartition(":")
        if not colon or not src or not dst:
            raise ConfigError(f"'{text}' is no pair of runs; give donor:receiver, such as p5:c0 or c0@1337:c0")
        return cls(src, dst)


Grid = dict[str, np.ndarray[Any, np.dtype[np.float64]]]


def readout(
    pairs: Sequence[Pair],
    *,
    draws: int = 1000,
    seed: int = 0,
    budget: float = 1.0,
    root: Path | None = None,
    device: str = "cpu",
    on_part: Callable[[int, int], None] | None = None,
) -> Result:
    """The donor's answer and rule in the receiver by depth, for several pairs, raw and aligned.

    Args:
        pairs: of runs of one task, horizon, depth and width.
        draws: pairs of sequences drawn.
        seed: of sequences, controls and bootstrap.
        budget: GiB that patched states may take.
        root: run store.
        device: torch device.
        on_part: called with (sweeps done, sweeps in all).

    Returns:
        Result of kind "readout", table over pair x align x index x depth; depth k is the state after k blocks, as block k reads it.

    Raises:
        UnknownNameError, CheckpointError: for a run that is not there, or is damaged.
        ConfigError: for runs that cannot be compared, or none.
        InstrumentError: as `run.interchange`.
    """
    watch = Stopwatch()
    runs = check(pairs, root)
    depth, horizon = int(runs[0][1].manifest["shape"]["n_layers"]), int(runs[0][1].manifest["horizon"])
    indices = (horizon - 2, horizon - 1)
    grids: list[list[Grid]] = []
    for src, dst in runs:
        grids.append([])
        for align in BASES:
            # By folder: two runs of one name may come from two stores.
            request = Request(str(src.path), str(dst.path), None, indices, align=align, pairs=draws, seed=seed, budget=budget, sweep=True)
            grids[-1].append(_swept(request, root, device))
            if on_part is not None:
                on_part(len(BASES) * (len(grids) - 1) + len(grids[-1]), len(BASES) * len(runs))
    names = [f"{src.name} to {dst.name}" for src, dst in runs]
    shared = [shares_initialisation(src, dst) for src, dst in runs]
    chance = 1.0 / int(runs[0][1].manifest["task"]["modulus"])
    variables: dict[str, tuple[tuple[str, ...], Any, str, str]] = {
        name: (
            ("pair", "align", "index", "depth"),
            np.array([[grid[name] for grid in row] for row in grids]),
            *(describe(name) or ("", name)),
        )
        for name in KEPT
    }
    variables["shared_initialisation"] = (("pair",), np.array(shared, dtype="int32"), "1", "1 where both started from the same parameters")
    coords = {"pair": names, "align": list(BASES), "index": list(indices), "depth": list(range(depth))}
    data = dataset(coords, variables, noise_floor=chance, read_index=horizon - 1)
    summary = _summary(data, names, shared, chance)
    manifest = _manifest(runs, names, shared, draws, seed, device, watch)
    return Result("readout", data, ("pair", "align", "index", "depth"), summary, manifest)


def _swept(request: Request, root: Path | None, device: str) -> Grid:
    """What is kept of one sweep, index by depth."""
    data = interchange(request, root=root, device=device).data.isel(site=0)
    return {name: data[name].transpose("index", "layer").values.astype(float) for name in KEPT}


def _manifest(
    runs: Sequence[tuple[Run, Run]], names: list[str], shared: list[bool], draws: int, seed: int, device: str, watch: Stopwatch
) -> dict[str, Any]:
    """Of one pair, the weights' hashes are those of a plain interchange."""
    hashes = [{"src": src.manifest["weight_hash"], "dst": dst.manifest["weight_hash"]} for src, dst in runs]
    return provenance(
        config={"pairs": names, "weights": hashes, "draws": draws, "seed": seed},
        device=device,
        dtype="float32 models, float64 figures",
        watch=watch,
        subject=", ".join(names),
        weight_hash=hashes[0] if len(hashes) == 1 else hashes,
        weight_processing="none",
        shared_initialisation=shared,
        seeds={"pairs": seed},
    )


def check(pairs: Sequence[Pair], root: Path | None = None) -> list[tuple[Run, Run]]:
    """The runs of the pairs; raises what `readout` would raise for a request that cannot be met, before anything is computed."""
    if not pairs:
        raise ConfigError("no pair of runs; give donor:receiver, such as p5:c0")
    runs = [(resolve_run(pair.src, root), resolve_run(pair.dst, root)) for pair in pairs]
    first = runs[0][1]
    for pair in runs:
        for run in pair:
            for what in ("task", "horizon", "shape"):
                if run.manifest[what] != first.manifest[what]:
                    raise ConfigError(f"{run.name} and {first.name} differ in {what}; give runs of one preset and task")
        if pair[0].manifest["weight_hash"] == pair[1].manifest["weight_hash"]:
            raise ConfigError(f"{pair[0].name} and {pair[1].name} have the same weights: nothing crosses from a run to itself")
    names = [f"{src.name} to {dst.name}" for src, dst in runs]
    if len(set(names)) != len(names):
        raise ConfigError(f"a pair is given twice: {', '.join(names)}")
    for src, dst in runs:
        plan(Request(str(src.path), str(dst.path), sweep=True), root=root)
    return runs


def _gains(data: Any, pair: int, align: int, name: str, *, deep: bool) -> tuple[float, float, float, float]:
    """The largest excess of an answer over what it has without a patch, with a random donor, and by chance, with the bounds of the
    largest; then the largest probability itself. Deep: the last index, `DEEP` blocks passed and more."""
    cut = data.isel(pair=pair, align=align)
    cut = cut.isel(index=-1, depth=slice(DEEP, None)) if deep else cut
    bar = np.maximum(np.maximum(cut[f"base_p_{name}"].values, cut[f"p_{name}_random"].values), data.attrs["noise_floor"])
    excess = [float((cut[f"p_{name}{end}"].values - bar).max(initial=-1.0)) for end in ("", "_low", "_high")]
    return excess[0], excess[1], excess[2], float(cut[f"p_{name}"].values.max(initial=0.0))


def _summary(data: Any, names: Sequence[str], shared: Sequence[bool], chance: float) -> dict[str, Any]:
    """Of pairs that share an initialisation and of those that do not: for each basis, the largest gain and probability over pairs."""
    within: dict[str, int] = {}
    summary: dict[str, Any] = {"pairs": ", ".join(names), "n_pairs": len(names), "noise_floor": chance}
    summary["self_patch_max_change"] = float(np.nanmax(data["self_patch_max_change"].values))
    for start in STARTS:
        members = [place for place, same in enumerate(shared) if same == (start == "same")]
        summary[f"n_pairs_{start}"] = len(members)
        for at, align in enumerate(BASES):
            for name in ANSWERS:
                found = [_gains(data, place, at, name, deep=name == "import") for place in members]
                best = max(found, default=(None, None, None, None), key=lambda gain: gain[0])
                keys = [f"gain_{name}_{align}_{start}{end}" for end in ("", "_low", "_high")] + [f"p_{name}_{align}_{start}"]
                summary |= dict(zip(keys, best, strict=True))
                summary[f"crossing_{name}_{align}_{start}"] = sum(gain[0] > MARGIN for gain in found)
                within[f"crossing_{name}_{align}_{start}"] = sum(gain[0] > MARGIN and not _told_apart(gain) for gain in found)
            r2 = data["alignment_r2"].isel(pair=members, align=at, index=-1).values
            summary[f"r2_{align}_{start}"] = float(np.mean(r2)) if members and align != "none" else None
    return summary | {"finding": finding(summary, within)}


def _told_apart(gain: tuple[float, float, float, float]) -> bool:
    """Whether a gain is more than `MARGIN` by more than rounding, and its interval lies above nothing gained."""
    noise = rounding(gain[3])
    return beyond(gain[0], MARGIN, noise=noise) and beyond(gain[0], 0.0, (gain[1], gain[2]), noise)


def finding(summary: Mapping[str, Any], within: Mapping[str, int] = MappingProxyType({})) -> str:
    """One plain sentence: in how many pairs the answer crosses deep in the network, raw and aligned; and the rule.

    Args:
        summary: the flat summary.
        within: of its counts of pairs that cross, by key, how many do so within their interval: those are not said to cross.
    """

    def crossing(name: str, align: str, start: str) -> int:
        key = f"crossing_{name}_{align}_{start}"
        return int(summary[key]) - within.get(key, 0)

    told = []
    for start, words in (("same", "one initialisation"), ("other", "two initialisations")):
        count = summary[f"n_pairs_{start}"]
        if count:
            crossed = {align: f"{crossing('import', align, start)} of {count}" for align in BASES}
            best = {align: f"up to {summary[f'p_import_{align}_{start}']:.2f}" for align in BASES}
            answers = ", ".join(f"{WORDS[align]} in {crossed[align]} ({best[align]})" for align in BASES)
            told.append(f"from {words}, the donor's answer crosses {answers}")
    rules = [(summary[f"p_rule_{align}_{start}"], align, start) for align in BASES for start in STARTS if summary[f"n_pairs_{start}"]]
    count = sum(crossing("rule", align, start) for align in BASES for start in STARTS)
    rule = "its rule crosses nowhere" if not count else f"its rule crosses in {count} of {len(BASES) * summary['n_pairs']} sweeps"
    words = "; ".join(told)
    return f"{words[:1].upper()}{words[1:]}; {rule} (at most {max(rules)[0]:.3f}; chance {summary['noise_floor']:.3f})."
