"""For maintainers: pack the measurements of a run store into the package, without weights, and write the page of the ledger they give.

    python -m wallprobe.claims.bundle RUNS_FOLDER [--area wall] [--preset small] [--docs docs/ledger-wall.md]

One JSON file a run, `bundled/measurements/PRESET/CONDITION@SEED.json`: the run's manifest without its loss curve, and of each
instrument's Result on those weights the summary, the manifest and, where the ledger reads cells, the long table.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from wallprobe.claims.gains import published
from wallprobe.claims.ledger.claim import Area, get_area, judge_all
from wallprobe.claims.ledger.measurements import BUNDLE, PAIR, Measurements, Source, read_measurements
from wallprobe.claims.ledger.record import markdown
from wallprobe.errors import ConfigError, WallprobeError
from wallprobe.store.results import RECORD
from wallprobe.store.runs import open_run
from wallprobe.store.storage import write_atomic

LIMIT = 100 * 1024  # bytes a run
WITH_TABLE = ("eval", PAIR)  # what begins with these keeps its long table


def pack_all(root: Path, preset: str, target: Path = BUNDLE) -> list[Path]:
    """Pack every run of a preset in a store; files of other runs stay.

    Args:
        root: run store.
        preset: name of a recipe.
        target: folder of the presets' folders.

    Returns:
        The files written.

    Raises:
        ConfigError: if there is no such run, or one packs to more than `LIMIT`; nothing is written then.
    """
    measurements = read_measurements(preset, root, bundled=False)
    if not measurements.sources:
        lost = [*measurements.left_out, *(f"{name}: {why}" for name, why in measurements.lost())]
        left_out = "".join(f"; left out: {line}" for line in lost)
        raise ConfigError(f"{root} holds no run of preset {preset}; train one: wallprobe reproduce wall --runs {root}{left_out}")
    packed = {target / preset / f"{source.name.folder}.json": pack(source, measurements) for source in measurements.sources.values()}
    for path, data in packed.items():
        write_atomic(path, data)
    return list(packed)


def pack(source: Source, measurements: Measurements) -> bytes:
    """One local run's manifest and measurements as compact JSON; measurements of other weights are left behind.

    Raises:
        ConfigError: if it is larger than `LIMIT`.
    """
    assert source.path is not None
    stored: dict[str, Any] = {}
    for path in sorted(source.path.glob(f"*/{RECORD}")):
        name = path.parent.name
        record = measurements.lookup(source.name.seed)(source.name.condition, name)
        if record is not None:
            values = record["values"] if name.startswith(WITH_TABLE) else []
            stored[name] = {"summary": record["summary"], "values": values, "manifest": record["manifest"]}
    manifest = {key: value for key, value in open_run(source.path).manifest.items() if key != "log"}
    whole = {"manifest": manifest, "measurements": stored}
    data = (json.dumps(whole, allow_nan=False, separators=(",", ":"), sort_keys=True, ensure_ascii=False) + "\n").encode()
    if len(data) > LIMIT:
        sizes = ", ".join(f"{name} {len(json.dumps(record))}" for name, record in whole["measurements"].items())
        raise ConfigError(f"measurements of {source.name} pack to {len(data)} bytes, more than {LIMIT}: {sizes}")
    return data


def bundled_ledger(area: Area, preset: str) -> str:
    """The Markdown page of the ledger from what is bundled alone, marked as generated."""
    measurements = area.read(preset, BUNDLE / "no local runs")
    verdicts = judge_all(area, measurements)
    which = "" if area.name == "wall" else f"--area {area.name} "
    command = f"python -m wallprobe.claims.bundle {which}--docs docs/ledger-{area.name}.md"
    mark = f"<!-- Generated from the bundled measurements: {command} -->"
    return f"{mark}\n\n{markdown(area, measurements, verdicts, verdicts)}"


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m wallprobe.claims.bundle`."""
    parser = argparse.ArgumentParser(prog="python -m wallprobe.claims.bundle", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", help="run store; without it, only the page is written")
    parser.add_argument("--preset", help="default: the area's")
    parser.add_argument("--area", default="wall")
    parser.add_argument("--docs", type=Path, help="write the ledger's page there")
    parser.add_argument("--gains", nargs=3, metavar=("RESULTS", "WEIGHT_HASH", "NAME"), help="pack a model's gains, flow and maps")
    given = parser.parse_args(arguments)
    try:
        area = get_area(given.area)
        preset = given.preset or area.preset
        written = [] if given.runs is None else pack_all(given.runs, preset) if area.pack is None else area.pack(given.runs)
        if given.gains:
            written = [*written, published.pack(Path(given.gains[0]), given.gains[1], given.gains[2])]
        if given.docs:
            write_atomic(given.docs, bundled_ledger(area, preset).encode())
    except WallprobeError as error:
        sys.stderr.write(f"wallprobe: {error}\n")
        return 2
    size = sum(path.stat().st_size for path in written)
    sys.stdout.write(f"{len(written)} files packed, {size / 1024:.0f} KiB\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
