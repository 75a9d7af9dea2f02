"""`wallprobe runs`: what there is to measure."""

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty


def runs(runs: options.Runs = None, json: options.Json = False) -> None:
    """List the finished runs: those in ./runs, then the bundled ones."""
    from wallprobe.store.runs import default_root, list_runs

    found = list_runs(runs)
    summary = [
        {
            "name": str(run.name),
            "condition": run.name.condition,
            "seed": run.name.seed,
            "preset": run.manifest.get("preset"),
            "steps": run.manifest.get("steps"),
            "weight_hash": run.manifest["weight_hash"],
            "bundled": run.bundled,
        }
        for run in found
    ]
    if json:
        common.print_json({"kind": "runs", "summary": summary, "values": [], "manifest": {"store": str(runs or default_root())}})
        return

    table = empty("Runs")
    for heading in ("run", "signal", "route", "preset", "steps", "minutes", "weights", "where"):
        table.add_column(heading, justify="right" if heading in ("steps", "minutes") else "left")
    for run, row in zip(found, summary, strict=True):
        # A run of text has a training method and a kind of model in the place of a condition.
        text = {"signal": run.manifest.get("method", "-"), "route": run.kind}
        condition = run.manifest["config"].get("condition", text)
        minutes, where = f"{run.manifest['wall_time_s'] / 60:.1f}", "bundled" if run.bundled else str(run.path)
        told = (condition["signal"], condition["route"], row["preset"], row["steps"], minutes, run.manifest["weight_hash"][:8], where)
        table.add_row(str(run.name), *map(str, told))
    common.out().print(table)
