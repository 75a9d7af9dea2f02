"""`wallprobe interchange --prompts`: the strongest tokens of each site as a table."""

from typing import TYPE_CHECKING, Any

from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from wallprobe.store.results import Result

STRONGEST = 5  # tokens of a site that are printed


def table(result: "Result") -> Any:
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
        best: dict[int | str, dict[str, Any]] = {}
        for record in result.values:
            if record["site"] == name and record["restored"] is not None:
                best[record["index"]] = max(best.get(record["index"], record), record, key=lambda one: float(one["restored"]))
        for number, record in enumerate(sorted(best.values(), key=lambda one: -float(one["restored"]))[:STRONGEST]):
            half = (record["restored_high"] - record["restored_low"]) / 2
            at = escape(f"L{record['layer']} {_token(record['index'], words)}")
            controls = (f"{record[f'restored_{arm}']:.2f}" for arm in ("random", "mismatched", "norm"))
            restored = f"[bold]{record['restored']:.2f}[/bold] [dim]±{half:.2f}[/dim]"
            table.add_row("" if number else name, at, restored, *controls, f"{record['p_answer']:.3f}", f"{record['q_value']:.3f}")
        table.add_section()
    return table


def _token(index: int | str, words: list[str]) -> str:
    """An index with the token there, or a slot's name."""
    return str(index) if isinstance(index, str) else f"i{index} {words[index].strip() or repr(words[index])}"


def reading(result: "Result") -> str:
    """The lines under the table: its scale, and the guards."""
    summary, engine = result.summary, result.manifest["engine"]
    ends = (f"{summary[f'{name}_logit_difference']:.2f} (p of answer {summary[f'{name}_p_answer']:.3f})" for name in ("base", "clean"))
    whole = engine["backend"] == "hooks" and engine["passes"] == "whole"
    slow = "\nThis layout has not been taken apart: every cell was a whole pass of the model, slower than from the middle." if whole else ""
    return (
        f"L: layer, i: index, with the first clean prompt's token. Restored: from 0, the corrupt prompts' difference in logits, to 1, the "
        f"clean ones': {' to '.join(ends)}.\n{summary['n_pairs']} pairs, {summary['n_capable']} of them answered rightly, "
        f"{summary['n_cells']} cells; self-patches changed "
        f"{summary['self_patch_max_change']:g}; {engine['checked_cells']} cells were run whole as well, at most "
        f"{engine['largest_difference']:.1g} logits apart.{slow}"
    )
