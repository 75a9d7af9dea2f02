"""What `wallprobe gains` prints: a table by layer, the norms behind it, the summary in lines, and several models side by side."""

import math
from typing import TYPE_CHECKING, Any

from wallprobe.cli.packed import Packed, empty

if TYPE_CHECKING:
    from rich.console import Console

    from wallprobe.store.results import Result

NARROW = 104  # columns below which the bars are left out
SUFFIXES = {"all": "", "no_sink": "_no_sink", "no_first": "_no_first", "last": "_last"}
HEADS = {"no_sink": "no sinks", "no_first": "no first", "last": "last token"}
NORMS = {
    "resid_pre_norm": "|x|",
    "attn_out_norm": "|A|",
    "mlp_out_norm": "|M|",
    "ln1_norm": "|LN1|",
    "ln2_norm": "|LN2|",
    "attn_mlp_cosine": "cos(A, M)",
    "net_product": "attention\nx MLP",
    "net_block": "|x'| / |x|",
    "net_sum": "|A + M|\n/ |LN1|",
    "attn_sink_share": "sinks' share,\nattention",
    "mlp_sink_share": "sinks' share,\nMLP",
}
L_STAR = {
    "argmin_net": "attention x MLP",
    "argmin_attn": "attention",
    "argmin_lens_entropy": "logit-lens entropy",
    "argmin_erank": "effective rank",
    "trace_peak": "sheaf trace (greatest)",
}


def figure(value: Any) -> str:
    """Three significant digits, without exponents; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "-"
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 4)}f}"


def _with_interval(record: dict[str, Any], name: str) -> str:
    low, high = record[f"{name}_low"], record[f"{name}_high"]
    interval = "" if low is None else rf" [dim]\[{figure(low)}, {figure(high)}][/dim]"
    return figure(record[name]) + interval


def _bar(value: float | None, scale: float, half: int = 8) -> str:
    """A bar from the middle, on a log scale: left of it the sub-layer is quieter than what it reads, right of it louder."""
    if value is None or value <= 0:
        return ""
    length = min(half, round(half * abs(math.log(value)) / scale))
    blocks = "█" * length
    left, right = (blocks.rjust(half), " " * half) if value < 1 else (" " * half, blocks.ljust(half))
    return f"[cyan]{left}[/cyan]│[yellow]{right}[/yellow]"


def stamp(result: "Result", *said: str) -> str:
    """What every report says of how it was measured, in the order prompts, what the caller says, weights, first token."""
    from rich.markup import escape

    summary, manifest = result.summary, result.manifest
    prompts = f"{summary['n_prompts']} prompts ({escape(summary['prompts'])})"
    weights = {"none": "raw weights"}.get(manifest["weight_processing"], f"[yellow]{manifest['weight_processing']}[/yellow]")
    return "; ".join((prompts, *said, f"{weights}, {manifest['dtype']}", f"first token: {manifest['first_token']}"))


def report(console: "Console", result: "Result", folder: str, norms: bool = False) -> None:
    """Print one model's gains."""
    from rich.markup import escape

    summary = result.summary
    console.print(_layers(result, console.width >= NARROW))
    if norms:
        console.print(_norms(result))
    for line in [*_lines(summary), summary["finding"], f"stored in {folder}"]:
        console.print(escape(line), soft_wrap=True)
    console.print()


def _layers(result: "Result", wide: bool) -> Any:
    from rich.markup import escape

    summary, records = result.summary, result.values
    formula = escape(result.manifest["formula"])
    told = stamp(result, "95 % interval over prompts", f"tokens: {summary['tokens'].replace('_', ' ')}")
    table = empty(f"Gains of {escape(result.manifest['subject'])}: {summary['definition']} = {formula}", told)
    beside = [name for name in ("no_sink", summary["positions"]) if name != "all"]
    beside = list(dict.fromkeys(beside))
    heads = [f"{branch}\n{HEADS[name]}" for name in beside for branch in ("attention", "MLP")]
    for head in ("layer", "attention", "MLP", *heads, "|x|"):
        table.add_column(head, justify="right", no_wrap=True)
    if wide:
        table.add_column("MLP: quieter │ louder", no_wrap=True)
    logs = [abs(math.log(record["mlp_gain"])) for record in records if record["mlp_gain"]]
    for record in records:
        cells = [str(record["layer"]), _with_interval(record, "attn_gain"), _with_interval(record, "mlp_gain")]
        cells += [figure(record[f"{branch}_gain{SUFFIXES[name]}"]) for name in beside for branch in ("attn", "mlp")]
        cells.append(figure(record["resid_pre_norm"]))
        table.add_row(*cells, *([_bar(record["mlp_gain"], max([*logs, 1e-9]))] if wide else []))
    return table


def _norms(result: "Result") -> Any:

    rows = [[str(record["layer"]), *(figure(record[name]) for name in NORMS)] for record in result.values]
    return Packed("Norms, angles and nets: means over tokens and prompts", ("layer", *NORMS.values()), rows)


def _lines(summary: dict[str, Any]) -> list[str]:
    """The summary in words."""
    clean = [summary[f"{name}_contracting_no_sink"] or "-" for name in ("attn", "mlp", "net")]
    lines = [
        f"below 1, all positions:  attention {summary['attn_contracting']}, MLP {summary['mlp_contracting']}, "
        f"attention x MLP {summary['net_contracting']}",
        f"below 1, without sinks:  attention {clean[0]}, MLP {clean[1]}, attention x MLP {clean[2]}",
        f"final MLP gain:          {figure(summary['final_mlp_gain'])}, without sinks {figure(summary['final_mlp_gain_no_sink'])}, "
        f"without first {figure(summary['final_mlp_gain_no_first'])}, last token {figure(summary['final_mlp_gain_last'])}",
        f"regime:                  {_regime(summary)}",
        f"bottleneck L*:           {_bottleneck(summary)}",
        f"sinks:                   {summary['sinks']}",
        f"size:                    {summary['n_params']:,} parameters, {summary['n_params_non_embedding']:,} without embeddings",
        f"residual identity error: {summary['residual_identity_error']:.1e} of the norm",
    ]
    if summary["streamed"]:
        lines.append(f"streamed:                one block at a time, peak {figure(summary['peak_gib'])} GiB of anonymous memory")
    return lines


def _regime(summary: dict[str, Any]) -> str:
    if summary["regime"] is None:
        return f"not defined for {summary['definition']}; its rule is of sublayer"
    told = ", ".join(
        f"{name} {figure(summary[f'regime_{name}'])} ({summary[f'regime_{name}_margin']:+.2f} from its threshold)"
        for name in ("early", "middle", "final")
    )
    return f"{summary['regime']}: {told}; a rule fitted to eight models"


def _bottleneck(summary: dict[str, Any]) -> str:
    known = [f"layer {summary[f'l_star_{key}']} by {words}" for key, words in L_STAR.items() if summary[f"l_star_{key}"] is not None]
    unknown = [words for key, words in L_STAR.items() if summary[f"l_star_{key}"] is None]
    return ", ".join(known) + (f"; not measured: {', '.join(unknown)} (--l-star)" if unknown else "")


def comparison(measured: "list[Result]") -> Any:
    """Several models, a row each."""
    from rich.markup import escape

    table = empty("Compared")
    table.add_column("model")
    for head in ("layers", "attention < 1", "MLP < 1", "net < 1", "final MLP", "final MLP\nno sinks", "sinks", "regime", "L*"):
        table.add_column(head, justify="right")
    for result in measured:
        summary = result.summary
        counts = [str(summary[key]) for key in ("n_layers", "attn_contracting", "mlp_contracting", "net_contracting")]
        finals = [figure(summary[key]) for key in ("final_mlp_gain", "final_mlp_gain_no_sink")]
        last = [str(summary["n_sinks"]), summary["regime"] or "-", str(summary["l_star"])]
        table.add_row(escape(str(result.manifest["subject"])), *counts, *finals, *last)
    return table
