"""Where measured values come from: the instruments' result.json beside the runs, and the bundled ones of runs whose weights are not.

Only JSON is read, no array and no model, so that a ledger takes a moment. A measurement counts if it was made on the very weights
that its run holds, and a run counts if it was trained by the preset as it stands.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wallprobe.claims.ledger.quantities import Lookup, Record
from wallprobe.errors import StoreError
from wallprobe.store.reading import is_there
from wallprobe.store.results import RECORD
from wallprobe.store.runs import BUNDLED, DEFAULT_SEED, Run, RunName, survey_runs
from wallprobe.store.storage import read_json
from wallprobe.training.wall.conditions import conditions, get_condition
from wallprobe.training.wall.recipes import get_recipe

BUNDLE = BUNDLED.parent / "measurements"
TASK: Mapping[str, Any] = MappingProxyType({"name": "recurrence", "modulus": 17, "length": 16, "program_prior": 0.5})  # the wall study's
PAIR = "interchange-"  # an interchange is stored with its donor, under the receiver's name
READOUT = "readout-"  # so is a readout; with the receiver's seed behind it where that is another
NOTHING: Record = MappingProxyType({"summary": {}, "values": [], "manifest": {}})  # stands for a damaged measurement
OTHER = "@other"  # asks for the readout into whichever other seed's receiver there is


@dataclass(frozen=True)
class Source:
    """A run as the ledger sees it.

    Attributes:
        name: condition and seed.
        weight_hash: of its weights.
        where: "local", "bundled" or "published".
        path: its folder, None where only measurements are bundled.
        stored: bundled measurements by instrument.
        damaged: instruments whose stored measurement could not be read, with why, of those that were asked for.
    """

    name: RunName
    weight_hash: str
    where: str
    path: Path | None
    stored: Mapping[str, Record] = field(default_factory=dict)
    _read: dict[str, Record] = field(default_factory=dict, repr=False, compare=False)
    damaged: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def record(self, instrument: str, partner: "Source | None" = None) -> Record | None:
        """What an instrument measured on these weights, None if it did not.

        Args:
            instrument: its name; "interchange-c0" is the interchange with c0 as receiver.
            partner: the receiver, for an interchange.
        """
        expected: Any = self.weight_hash if partner is None else {"src": self.weight_hash, "dst": partner.weight_hash}
        found = [self.stored[instrument]] if instrument in self.stored else []
        if self.path is not None and instrument not in self._read and is_there(self.path / instrument / RECORD):
            try:
                self._read[instrument] = _read(self.path / instrument / RECORD)
            except StoreError as error:
                self._read[instrument], self.damaged[instrument] = NOTHING, str(error)
        if instrument in self._read:
            found.insert(0, self._read[instrument])
        return next((record for record in found if record["manifest"].get("weight_hash") == expected), None)


@dataclass(frozen=True)
class Measurements:
    """Every run of one preset, by condition and seed.

    Attributes:
        preset: the recipe's name.
        sources: the runs that count.
        left_out: runs of that preset that do not count, with why.
        basis: what the ledger's finding says it was judged on; empty for the preset.
        told: what a reader must know of the sources, a sentence each; empty for the usual words on runs.
        damaged: what could not be read, a name and why.
    """

    preset: str
    sources: Mapping[tuple[str, int], Source]
    left_out: tuple[str, ...] = ()
    basis: str = ""
    told: tuple[str, ...] = ()
    damaged: tuple[tuple[str, str], ...] = ()

    def lost(self) -> list[tuple[str, str]]:
        """What could not be read, measurements among it that were asked for so far."""
        return [*self.damaged, *((f"{one.path}/{name}", why) for one in self.sources.values() for name, why in one.damaged.items())]

    @property
    def seeds(self) -> list[int]:
        """Every seed that some run has, the default one first."""
        return sorted({seed for _, seed in self.sources}, key=lambda seed: (seed != DEFAULT_SEED, seed))

    def lookup(self, seed: int) -> Lookup:
        """The measurements of one seed."""

        def find(condition: str, instrument: str) -> Record | None:
            source = self.sources.get((condition, seed))
            if source is None:
                return None
            if instrument.startswith(READOUT):
                return self._readout(source, *instrument.removeprefix(READOUT).partition("@")[::2])
            if not instrument.startswith(PAIR):
                return source.record(instrument)
            partner = self.sources.get((instrument.removeprefix(PAIR), seed))
            return None if partner is None else source.record(instrument, partner)

        return find

    def _readout(self, source: Source, receiver: str, which: str) -> Record | None:
        """A donor's readout into the receiver of its own seed (which is ""), of that very seed, or of the first other one that has it."""
        own, partners = source.name.seed, dict[int, str]()
        if which == OTHER[1:]:
            partners = {seed: f"{READOUT}{receiver}@{seed}" for seed in self.seeds if seed != own}
        else:
            partners = {own: READOUT + receiver} if not which else {int(which): f"{READOUT}{receiver}@{which}"}
        for seed, stored in partners.items():
            partner = self.sources.get((receiver, seed))
            record = None if partner is None else source.record(stored, partner)
            if record is not None:
                return record
        return None


def read_measurements(preset: str, root: Path | None = None, *, bundled: bool = True) -> Measurements:
    """The runs of a preset with their measurements: local ones, and the bundled ones they do not shadow.

    Args:
        preset: name of a recipe.
        root: run store; default as `runs.default_root`.
        bundled: False leaves out what came with the package.

    Raises:
        UnknownNameError: for an unknown preset.
    """
    get_recipe(preset)
    sources: dict[tuple[str, int], Source] = {}
    left_out: list[str] = []
    packed = {source.name: source for source in _packed(preset)} if bundled else {}
    sound, damaged = survey_runs(root)
    for run in sound:
        if run.manifest.get("preset") != preset or (run.bundled and not bundled):
            continue
        why = _unlike_preset(run.manifest, preset)
        if why:
            left_out.append(f"{run.name} ({'bundled' if run.bundled else run.path}): {why}")
            continue
        same = packed.get(run.name)
        weight_hash = str(run.manifest["weight_hash"])
        stored = same.stored if same and same.weight_hash == weight_hash else {}
        where = "bundled" if run.bundled else "local"
        sources[run.name.condition, run.name.seed] = Source(run.name, weight_hash, where, run.path, stored)
    for name, source in packed.items():
        sources.setdefault((name.condition, name.seed), source)
    return Measurements(preset, sources, tuple(left_out), damaged=tuple((str(path), why) for path, why in damaged))


def is_of_preset(run: Run, preset: str) -> bool:
    """Whether a run was trained by a preset as it stands, to the end and on the usual task."""
    return run.manifest.get("preset") == preset and not _unlike_preset(run.manifest, preset)


def _unlike_preset(manifest: Mapping[str, Any], preset: str) -> str:
    """Which settings of a run's training are not those that its condition, the preset and the study's task have now; empty if all are."""
    config = manifest.get("config", {})
    name = manifest["condition"]
    condition = _plain(get_condition(name).config()) if name in conditions() else config.get("condition", {})
    parts = ((config.get("condition", {}), condition), (config.get("recipe", {}), get_recipe(preset).config()))
    # Either side may leave out what is at its default.
    pairs = [(key, had.get(key), now.get(key)) for had, now in parts for key in sorted({*had, *now} - {"summary", "checkpoint_every"})]
    pairs += [(key, manifest.get("task", {}).get(key), value) for key, value in TASK.items()]
    differing = [f"{key} {had} instead of {value}" for key, had, value in pairs if had != value]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return f"trained with {', '.join(differing[:3])}{more}" if differing else ""


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it looks in a manifest: tuples have become lists."""
    return dict(json.loads(json.dumps(value)))


def _packed(preset: str) -> Iterator[Source]:
    """Bundled measurements of runs of a preset as it stands."""
    folder = BUNDLE / preset
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        record = read_json(path)
        manifest = record["manifest"]
        if not _unlike_preset(manifest, preset):
            name = RunName(manifest["condition"], int(manifest["seed"]))
            yield Source(name, manifest["weight_hash"], "bundled", None, record["measurements"])


def _read(path: Path) -> Record:
    """A result.json; a damaged one counts as not measured, and is made again by `wallprobe reproduce`.

    Raises:
        StoreError: if it is damaged.
    """
    from wallprobe.store import schema

    record = read_json(path)
    schema.check(schema.MeasurementRecord, record)
    return dict(record)
