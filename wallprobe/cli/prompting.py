"""`wallprobe interchange --prompts`: what it asks for, and the strongest tokens of each site as a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty
from wallprobe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wallprobe.hooks.interchange.prompts.report import PromptRequest
    from wallprobe.store.results import Result

STRONGEST = 5  # tokens of a site that are printed


def request_of(
    src: str, dst: str, prompts: Path, layer: str | None, index: str | None, site: str | None, *, sweep: bool, align: str, **more: Any
) -> "PromptRequest":
    """The request, from the options as typed; `more` are its other fields.

    Raises:
        ConfigError: for options that are for runs, or that nnsight does not have.
    """
    from wallprobe.hooks.interchange.prompts.report import TEXT_SITES, PromptRequest
    from wallprobe.hooks.interchange.single import parse_layers, parse_numbers

    if align != "none":
        raise ConfigError(f"--align {align} is for runs; language models on --prompts are patched as they are")
    if more["backend"] == "nnsight" and (sweep or layer in (None, "all")):
        raise ConfigError("--backend nnsight runs the model once a cell and arm: give a --layer (or a short list), and no --sweep")
    indices = None if index in (None, "all") else parse_numbers(str(index), "index")
    wanted = tuple((site or ("all" if sweep else "resid_pre")).split(","))
    sites = TEXT_SITES if wanted == ("all",) else tuple(dict.fromkeys(wanted))
    return PromptRequest(src, dst, str(prompts), parse_layers(layer or "all"), indices, sites, **more)


def measure(request: "PromptRequest", place: options.Place) -> None:
    """Measure, store and print."""
    from wallprobe.hooks.interchange.prompts.measure import prompt_interchange

    device = place.pick()
    with common.progress() as view:
        follow = common.follower(view, view.add_task("interchange", total=None))
        result = prompt_interchange(request, device=device, on_cell=follow)
    common.finish(result, place, common.printing(lambda result: (_table(result), _reading(result.summary, result.manifest["engine"]))))


def _table(result: "Result") -> Any:
    """For each site the tokens that restore most, each at its strongest layer, with every control."""
    from rich.markup import escape

    attrs = result.data.attrs
    title = escape(f"{attrs['subject']}: share of the clean answer restored, each token at its strongest layer")
    table = empty(title)
    for heading in ("site", "at", "restored", "random\ndonor", "other\nanswer", "random\nvector", "p of\nanswer", "q"):
        left = heading in ("site", "at")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True, vertical="bottom" if left else "top")
    words = [str(word) for word in result.data["example_clean_token"].isel(example=0).values.tolist()]
    for name in result.data["site"].values.tolist():
        best: dict[int, dict[str, Any]] = {}
        for record in result.values:
            if record["site"] == name and record["restored"] is not None:
                best[record["index"]] = max(best.get(record["index"], record), record, key=lambda one: float(one["restored"]))
        for number, record in enumerate(sorted(best.values(), key=lambda one: -float(one["restored"]))[:STRONGEST]):
            half = (record["restored_high"] - record["restored_low"]) / 2
            at = escape(f"L{record['layer']} i{record['index']} {words[record['index']].strip() or repr(words[record['index']])}")
            controls = (f"{record[f'restored_{arm}']:.2f}" for arm in ("random", "mismatched", "norm"))
            restored = f"[bold]{record['restored']:.2f}[/bold] [dim]±{half:.2f}[/dim]"
            table.add_row("" if number else name, at, restored, *controls, f"{record['p_answer']:.3f}", f"{record['q_value']:.3f}")
        table.add_section()
    return table


def _reading(summary: "Mapping[str, Any]", engine: "Mapping[str, Any]") -> str:
    """The lines under the table: its scale, and the guards."""
    ends = (f"{summary[f'{name}_logit_difference']:.2f} (p of answer {summary[f'{name}_p_answer']:.3f})" for name in ("base", "clean"))
    whole = engine["backend"] == "hooks" and engine["passes"] == "whole"
    slow = "\nThis layout has not been taken apart: every cell was a whole pass of the model, slower than from the middle." if whole else ""
    return (
        f"L: layer, i: index, with the first clean prompt's token. Restored: from 0, the corrupt prompts' difference in logits, to 1, the "
        f"clean ones': {' to '.join(ends)}.\n{summary['n_pairs']} pairs, {summary['n_cells']} cells; self-patches changed "
        f"{summary['self_patch_max_change']:g}; {engine['checked_cells']} cells were run whole as well, at most "
        f"{engine['largest_difference']:.1g} logits apart.{slow}"
    )
