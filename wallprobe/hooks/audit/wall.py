"""A run of the wall's task as a subject of an audit: its HookedTransformer as it stands, on the prefix that cross-entropy supervises.

Runs trained by backpropagation are asked what DFA's credits would be worth there, or held to their own gradient.
"""

from wallprobe import models
from wallprobe.hooks.audit.subject import Subject
from wallprobe.hooks.wall.geometry import untrained
from wallprobe.rng import generator
from wallprobe.store.runs import Run
from wallprobe.tasks.registry import from_manifest
from wallprobe.training.audit.wall import wall_net

SAMPLES = 1024


def wall_subject(run: Run, method: str = "dfa", seed: int = 0) -> Subject:
    """A run against its own initialisation, on fresh sequences of its task.

    Args:
        run: any run but those with endogenous mechanisms, whose initialisation has other parameters.
        method: whose credits: "dfa", "fa" or "bp".
        seed: of the sequences, feedback and random directions.
    """
    task, manifest = from_manifest(run.manifest["task"]), run.manifest
    shape, horizon = manifest["shape"], int(manifest["horizon"])
    now, start = (wall_net(loaded.model, task.start, shape["vocabulary"]) for loaded in (models.load_run(run), untrained(run)))
    tokens = task.sample(SAMPLES, generator(seed, "audit wall")).tokens
    return Subject(now, tokens[:, :horizon], tokens[:, task.start + 1 : horizon + 1], method, start, f"{run.name}", seed)
