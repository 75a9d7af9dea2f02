"""`wallprobe convert`: pickled weights rewritten as safetensors."""

from pathlib import Path
from typing import Annotated

import typer

from wallprobe.cli import common, options


def convert(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face model whose weights are pickles (pytorch_model.bin).", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The new folder.", show_default="FOLDER-safetensors")] = None,
    json: options.Json = False,
) -> None:
    """Rewrite pickled weights as safetensors, in a new folder; the pickles are read as tensors alone, in a process of its own."""
    from wallprobe.models.convert import convert as rewrite

    with common.progress() as view:
        bar = view.add_task(f"convert {folder.name}", total=None)
        made = rewrite(folder, out, common.follower(view, bar))
    if json:
        common.print_json(
            {
                "kind": "convert",
                "summary": {"folder": str(made.out), "tensors": made.tensors, "bytes": made.bytes, "copied": list(made.copied)},
                "values": [{"file": name, "tensors": count} for name, count in made.shards.items()],
                "manifest": {"source": str(made.folder), "files": list(made.read)},
            }
        )
        return
    what = f"{made.tensors} tensors, {made.bytes / 2**20:.1f} MiB, in {len(made.shards)} file{'s' if len(made.shards) > 1 else ''}"
    common.out().print(f"{made.out}: {what}; beside them {', '.join(made.copied)}", soft_wrap=True, markup=False)
