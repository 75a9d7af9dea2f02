"""What the ledger of the gains is judged on: the published figures recomputed, the bundled measurement of SmolLM2, and the result store."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wallprobe.claims.ledger.measurements import BUNDLE, Measurements, Source
from wallprobe.claims.ledger.quantities import Record
from wallprobe.errors import ConfigError
from wallprobe.hooks.gains.published import PYTHIA, Published
from wallprobe.hooks.gains.regimes import regime
from wallprobe.hooks.gains.scaling import fit, published_points, scaling
from wallprobe.store.results import Result, list_results, plain
from wallprobe.store.runs import RunName
from wallprobe.store.storage import read_json, write_json

FOLDER = BUNDLE / "gains"
SMALL = 500_000_000  # parameters; the study's small models end at 410M
PROMPTS, WAY = "seed4", {"definition": "sublayer", "prompts": "seed4", "tokens": "ratio_of_means"}
PLATEAU = {"pythia-6.9b": (1.89193, 24.5424), "pythia-12b": (1.83905, 22.0392)}  # MLP gain, largest / smallest: layers 7 to 30, the others
N_PROMPTS = 4  # of the authors' code
FIXED = "published"  # stands where weights have a hash
STAMPS = ("weight_hash", "data_hash", "versions", "created", "formula", "weight_processing")  # of a packed manifest
KEPT = ("gains", "flow", "maps")


def measurements(preset: str, results: Path | None = None, *, bundled: bool = True) -> Measurements:
    """Every subject of the ledger.

    Args:
        preset: of runs, which none of them is.
        results: result store; its measurements of a model shadow the bundled ones of the same weights.
        bundled: False leaves out what came with the package.
    """
    sources = {"pythia": Source(RunName("pythia"), FIXED, "published", None, _published())}
    for path in sorted(FOLDER.glob("*.json")) if bundled and FOLDER.is_dir() else []:
        packed = read_json(path)
        sources[path.stem] = Source(RunName(path.stem), packed["weight_hash"], "bundled", None, _derived(packed["measurements"]))
    sound, damaged = list_results(results)
    sources |= dict(_stored(sound, {name: source.weight_hash for name, source in sources.items()}))
    whole = {(name, source.name.seed): source for name, source in sources.items()}
    told = (
        "pythia: recomputed from the authors' published per-layer gains of eight models (four prompts, fp16); no weights were run.",
        "smollm2-135m and any pythia-SIZE: measured with this package, definition sublayer, the same four prompts, raw weights in fp32.",
    )
    lost = tuple((str(path), why) for path, why in damaged)
    return Measurements("published", whole, basis="On the published gains and SmolLM2-135M", told=told, damaged=lost)


def _stored(sound: Iterable[tuple[Path, Result]], known: Mapping[str, str]) -> Iterable[tuple[str, Source]]:
    """Models of a result store, by their weights or, for Pythia, by name; the newest measurement of each kind."""
    by_model: dict[str, dict[str, Result]] = {}
    for _, result in sorted(sound, key=lambda pair: str(pair[1].manifest.get("created"))):
        name = _subject(result, known)
        if name is not None and result.kind in KEPT and all(result.summary.get(key, want) == want for key, want in WAY.items()):
            by_model.setdefault(name, {})[result.kind] = result
    for name, found in by_model.items():
        weights = {str(result.manifest.get("weight_hash")) for result in found.values()}
        if len(weights) == 1:
            records = {kind: {"summary": result.summary, "values": [], "manifest": result.manifest} for kind, result in found.items()}
            yield name, Source(RunName(name), weights.pop(), "local", None, _derived(records))


def pack(results: Path, weight_hash: str, name: str, target: Path = FOLDER) -> Path:
    """For maintainers: put a model's stored measurements into the package, without paths of this machine.

    Args:
        results: result store with gains, flow and maps of those weights on the study's four prompts (`seed4`).
        weight_hash: whose.
        name: subject of the ledger, such as smollm2-135m.
        target: where to.

    Raises:
        ConfigError: if one of the measurements is missing.
    """
    found = dict(_stored(list_results(results)[0], {name: weight_hash}))
    stored = found[name].stored if name in found else {}
    missing = [kind for kind in KEPT if kind not in stored]
    if missing:
        raise ConfigError(f"{results} has no {', '.join(missing)} of these weights; make them: wallprobe gains MODEL --l-star")
    packed = {}
    for kind, record in stored.items():
        manifest = {
            key: record["manifest"][key] for key in ("weight_hash", "data_hash", "versions", "created", "formula", "weight_processing")
        }
        packed[kind] = {"summary": plain({**record["summary"], "model": name}), "values": [], "manifest": manifest}
    write_json(target / f"{name}.json", {"weight_hash": weight_hash, "measurements": packed})
    return target / f"{name}.json"


def _subject(result: Result, known: Mapping[str, str]) -> str | None:
    weights = result.manifest.get("weight_hash")
    for name, weight_hash in known.items():
        if weights == weight_hash:
            return name
    name = str(result.manifest.get("subject", "")).rpartition("/")[2]
    return name if weights and name in {one.model for one in PYTHIA} else None


def _derived(records: Mapping[str, Record]) -> dict[str, Record]:
    """The same with what the claims read besides: shares in percent, and the place in the law."""
    made: dict[str, Record] = dict(records)
    if "gains" in made:
        given = made["gains"]["summary"]
        more = {f"{branch}_share": _share(given.get(f"{branch}_contracting")) for branch in ("attn", "mlp", "net")}
        more["law_excess"] = _law_excess(given)
        made["gains"] = {**made["gains"], "summary": {**given, **more}}
    return made


def _share(counted: object) -> float:
    """Percent of "k/L"."""
    over, _, under = str(counted).partition("/")
    return 100 * int(over) / int(under) if over.isdigit() and under.isdigit() else math.nan


def _law_excess(given: Mapping[str, Any]) -> float:
    """How many times a gain lies outside the published law's interval for a new model of its size; at most 1 inside."""
    size, gain = given.get("n_params"), given.get("final_mlp_gain")
    if not size or not gain:
        return math.nan
    points = published_points()
    _, low, high = fit([point.n_params for point in points], [point.gain for point in points]).predict(float(size))
    return max(low / float(gain), float(gain) / high)


def _published() -> dict[str, Record]:
    law = scaling(published_points(), source="published")
    records = law.values
    others = [row["r2"] for row in records if row["part"] == "fit" and row["label"] != "n_params"]
    ahead = {f"extrapolated_{row['label']}": row["formula"] for row in records if row["part"] == "extrapolation"}
    manifest = {"weight_hash": FIXED}
    fitted = {**law.summary, **ahead, "r2_best_other": max(others)}
    return {
        "gains": {"summary": _recomputed(), "values": [], "manifest": manifest},
        "scaling": {"summary": fitted, "values": [], "manifest": manifest},
    }


def _percent(models: Sequence[Published], count: Callable[[Published], int]) -> list[float]:
    return [100 * count(one) / one.n_layers for one in models]


def _recomputed() -> dict[str, float]:
    """The study's aggregate figures from the published per-model ones."""
    from scipy.stats import spearmanr

    layers = sum(one.n_layers for one in PYTHIA)
    sizes = [one.n_params for one in PYTHIA]
    attn, net, mlp = (
        _percent(PYTHIA, count) for count in (lambda o: o.attn_contracting, lambda o: o.net_contracting, lambda o: o.mlp_contracting)
    )
    small = [share for share, size in zip(mlp, sizes, strict=True) if size < SMALL]
    large = [share for share, size in zip(mlp, sizes, strict=True) if size >= SMALL]
    finals = [one.final_mlp_gain for one in PYTHIA]
    trend: Any = spearmanr(sizes, mlp)
    loudest: Any = spearmanr(sizes, [one.max_attn_gain for one in PYTHIA])
    return {
        "attn_share_low": min(attn),
        "attn_share_high": max(attn),
        "attn_share_pooled": 100 * sum(one.attn_contracting for one in PYTHIA) / layers,
        "attn_trend": float(loudest.statistic),
        "net_share_low": min(net),
        "net_share_high": max(net),
        "net_share_pooled": 100 * sum(one.net_contracting for one in PYTHIA) / layers,
        "net_within": float(sum(93.5 <= share < 96.5 for share in net)),
        "mlp_share_small_low": min(small),
        "mlp_share_small_high": max(small),
        "mlp_share_large_high": max(large),
        "mlp_share_12b": mlp[-1],
        "mlp_trend": float(trend.statistic),
        "mlp_trend_p": float(trend.pvalue),
        "final_low": min(finals),
        "final_high": max(finals),
        "final_loudest_share": 100 * sum(one.max_mlp_layer == one.n_layers - 1 for one in PYTHIA) / len(PYTHIA),
        "regimes_matched": float(sum(regime(one.early, one.middle, one.final_mlp_gain).name == one.regime for one in PYTHIA)),
        "n_models": float(len(PYTHIA)),
        "size_low": min(sizes) / 1e6,
        "size_high": max(sizes) / 1e9,
        "layers_before_last_12b": float(PYTHIA[-1].n_layers - 1),
        "plateau_spread_ratio": max(inside / outside for inside, outside in PLATEAU.values()),
        "vocabulary_low": min((one.n_params - one.n_params_non_embedding) / (2 * one.d_model) for one in PYTHIA),
        "n_prompts": float(N_PROMPTS),
    }
