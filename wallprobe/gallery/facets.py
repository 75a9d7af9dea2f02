"""What the index filters by: models, conditions, seeds, dates and verdicts, read off a Result without knowing its kind."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from wallprobe.errors import UnknownNameError
from wallprobe.store.runs import RunName

if TYPE_CHECKING:
    from wallprobe.store.results import Result

NAMES = ("run", "src", "dst", "model", "arch", "method")  # under these keys instruments name what they measured
MOST = 16


def raw(result: "Result") -> dict[str, Any]:
    """Names, seeds and verdicts that a Result states, as JSON."""
    named = {key: _texts(result, key) for key in NAMES}
    seed = result.summary.get("seed")
    verdict = result.summary.get("verdict")
    return {
        "names": {key: found for key, found in named.items() if found},
        "seeds": [seed] if isinstance(seed, int) and not isinstance(seed, bool) else [],
        "verdicts": _texts(result, "verdict") or ([verdict] if isinstance(verdict, str) else []),
    }


def _texts(result: "Result", key: str) -> list[str]:
    """The texts under a name, wherever a Result may keep it: summary, attributes, a coordinate or a variable."""
    found = [value for value in (result.summary.get(key), result.data.attrs.get(key)) if isinstance(value, str)]
    if key in result.data.variables and result.data[key].dtype.kind in "UO" and result.data[key].size <= 100_000:
        found += [str(value) for value in result.data[key].values.ravel().tolist()]
    return [text for text in dict.fromkeys(found) if text][:MOST]


def of_card(card: Mapping[str, Any], runs: Collection[str]) -> dict[str, list[str]]:
    """Facet -> values of one card.

    Args:
        card: see `wallprobe.gallery.cards`.
        runs: names of the runs that there are; only these have a condition and a seed in their name.
    """
    stated = card["facets"]
    models = list(dict.fromkeys(name for key in ("run", "src", "dst", "model") for name in stated["names"].get(key, [])))
    named = [name for name in (run_name(model) for model in models if _is_run(model, runs)) if name]
    seeds = {*(name.seed for name in named), *stated["seeds"]}
    return {
        "model": models or [str(card["subject"])] * bool(card["subject"]),
        "condition": sorted({*(name.condition for name in named), *stated["names"].get("method", [])}),
        "seed": [str(seed) for seed in sorted(seeds)],
        "verdict": list(stated["verdicts"]),
    }


def run_name(text: str) -> RunName | None:
    """The text as a run's name; None where it is none."""
    try:
        return RunName.parse(text)
    except UnknownNameError:
        return None


def _is_run(model: str, runs: Collection[str]) -> bool:
    name = run_name(model)
    # A hub's model may be called like a run ("gpt2"): a run is known, or has its seed in its name.
    return name is not None and (name.folder in runs or "@" in model)


def runs_of(card: Mapping[str, Any]) -> set[str]:
    """Folder names of the runs that a card's Result may be about."""
    names = (run_name(text) for key in ("run", "src", "dst", "model") for text in card["facets"]["names"].get(key, []))
    return {name.folder for name in names if name}
