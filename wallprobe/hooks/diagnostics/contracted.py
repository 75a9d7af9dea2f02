"""A task gradient with a run's contraction penalty beside it: what the optimiser of an equilibrium run is given.

The equilibrium study, experiment 2, calls it EP-task+jac.
"""

from dataclasses import dataclass
from typing import Any

from wallprobe.errors import ConfigError
from wallprobe.hooks.attach.subjects import Subject
from wallprobe.models.equilibrium import Equilibrium
from wallprobe.rng import generator
from wallprobe.training.equilibrium.control import penalty
from wallprobe.training.estimators.gradients import named_grads
from wallprobe.training.estimators.protocol import Batch, Estimator, GradResult

JAC = "+jac"


@dataclass(frozen=True)
class Contracted:
    """Task gradient plus weight times the penalty's.

    Attributes:
        task: the estimator of the task's gradient.
        weight: lambda times its unit.
        seed: of the penalty's random vector.
    """

    task: Estimator
    weight: float
    seed: int

    def __call__(self, model: Any, batch: Batch) -> GradResult:
        """The sum; the loss is the task's."""
        found = self.task(model, batch)
        z = model.relax(model.embedded(batch.x)).z
        pulled = named_grads(model, self.weight * penalty(model, z, generator(self.seed, "penalty")))
        names = found.grads.keys() | pulled.keys()
        grads = {name: sum(part[name] for part in (found.grads, pulled) if name in part) for name in sorted(names)}
        return GradResult(grads, found.loss, found.aux)  # type: ignore[arg-type]


def contracted(task: Estimator, subject: Subject, seed: int) -> Contracted:
    """The estimator with the penalty that the run's controller had at its end.

    Raises:
        ConfigError: for a model that has none.
    """
    run = subject.loaded.run
    if not isinstance(subject.loaded.model, Equilibrium) or run is None or run.manifest.get("lam") is None:
        raise ConfigError(f"{subject.name} has no contraction penalty; leave {JAC} out")
    unit = float(run.manifest["config"]["recipe"]["control"]["unit"])
    return Contracted(task, float(run.manifest["lam"]) * unit, seed)
