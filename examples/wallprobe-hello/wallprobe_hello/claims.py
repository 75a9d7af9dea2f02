"""The area `hello`: one claim, judged on what the instrument stored. `wallprobe claims hello` prints its verdict."""

from pathlib import Path

from wallprobe.claims.ledger.claim import Area, Claim
from wallprobe.claims.ledger.measurements import Measurements, Source
from wallprobe.claims.ledger.quantities import summary
from wallprobe.claims.ledger.rules import CROSSING, above
from wallprobe.store.results import list_results
from wallprobe.store.runs import RunName

ANSWERS = Claim(
    id="hello.hello.answers",
    topic="Greetings",
    kind="pattern",
    statement="Trained with condition hello on task hello, a network gives the token two back more probability beyond the wall where "
    "the sequence alternates than on noise",
    published=None,
    quantity=summary("hello-hello", "hello", "program_beyond") - summary("hello-hello", "hello", "noise_beyond"),
    rule="crossing",
    accepted=above(CROSSING),
    units="probability",
)


def area() -> Area:
    """The claims of this plugin, and where their measurements lie."""
    return Area("hello", "A greeting and its answer", (ANSWERS,), (), preset="tiny", read=_measurements, from_results=True)


def _measurements(preset: str, results: Path | None = None, *, bundled: bool = True) -> Measurements:
    """The newest Result of kind "hello" for each run of the result store. The plugin bundles none."""
    sound, _ = list_results(results)
    sources = {}
    for _, result in sorted(sound, key=lambda pair: str(pair[1].manifest["created"])):
        if result.kind == "hello":
            run, weight_hash = RunName.parse(result.summary["run"]), result.manifest["weight_hash"]
            record = {"summary": result.summary, "values": result.values, "manifest": result.manifest}
            sources[run.condition, run.seed] = Source(run, weight_hash, "local", None, {"hello": record})
    return Measurements(preset, sources)
