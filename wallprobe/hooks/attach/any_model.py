"""An instrument as the public function: it takes whatever stands for a model and for prompts, and leaves the model as it found it."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, Protocol, runtime_checkable

from wallprobe.hooks.attach.prompt_sets import Prompts, PromptSet, as_prompts
from wallprobe.models import Loaded, Model, as_model, resting
from wallprobe.store.results import Result

P = ParamSpec("P")


@runtime_checkable
class OnPrompts(Protocol[P]):
    """An instrument that reads a model on prompts."""

    def __call__(self, model: Model, prompts: Prompts = None, *args: P.args, **kwargs: P.kwargs) -> Result:
        """Measure it."""
        ...


def on_prompts(instrument: Callable[Concatenate[Loaded, PromptSet, P], Result]) -> OnPrompts[P]:
    """The instrument for any model and any prompts (see `models.as_model` and `prompt_sets.as_prompts`).

    The model is in evaluation mode while it is measured, and then in the mode it was found in.
    """

    @functools.wraps(instrument)
    def measure(model: Model, prompts: Prompts = None, *args: P.args, **kwargs: P.kwargs) -> Result:
        loaded = as_model(model)
        chosen = as_prompts(loaded, prompts)
        with resting(loaded):
            return of_wrapped(instrument(loaded, chosen, *args, **kwargs), loaded)

    return measure


def of_wrapped(result: Result, *models: Loaded) -> Result:
    """The Result, its manifest saying of wrapped models where they came from: the class and the hash of the parameters, no path.

    The hash is part of the configuration too, so that objects of one name and other weights do not replace each other's Results.
    """
    wrapped = {one.name: {"class": class_name(one), "weight_hash": one.current_hash} for one in models if one.origin is not None}
    if not wrapped:
        return result
    config: dict[str, Any] = {**(result.manifest.get("config") or {}), "wrapped": wrapped}
    return replace(result, manifest={**result.manifest, "config": config, "wrapped": wrapped})


def class_name(loaded: Loaded) -> str | None:
    """Of a wrapped model the class with its package, None for what was loaded."""
    if loaded.origin is None:
        return None
    kind = type(loaded.origin.module)
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__.rpartition('.')[2]}"
