"""The same model with its norms folded into the weights behind them: what gains must not be measured on, made so that it can be shown."""

from dataclasses import replace
from typing import Any

import torch

from wallprobe.errors import ConfigError, one_line
from wallprobe.models.loaded import Loaded, quiet

FOLDED = 1e-3  # nats by which folding may move a log-probability


def folded(loaded: Loaded) -> Loaded:
    """The same model with its norms folded into the weights behind them, as transformer-lens does by default.

    Logits stay the same and gains do not: for comparison only. The given model is changed. Nothing is
    centred: in models without LayerNorm that is another function.

    Raises:
        ConfigError: if it cannot be folded, or if the folded model does not predict the same.
    """
    model: Any = loaded.model
    only = {"fold_ln": True, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}
    tokens = torch.arange(min(8, int(model.cfg.d_vocab)), device=next(model.parameters()).device)[None]
    try:
        with quiet(), torch.no_grad():
            before = model(tokens).log_softmax(-1)
            (model.enable_compatibility_mode if hasattr(model, "enable_compatibility_mode") else model.process_weights_)(**only)
            moved = float((model(tokens).log_softmax(-1) - before).abs().max())
    except Exception as error:
        raise ConfigError(f"transformer-lens cannot fold {loaded.name} ({one_line(error)}); leave --fold out") from error
    if not moved <= FOLDED:
        raise ConfigError(
            f"folding by transformer-lens changes what {loaded.name} predicts (log-probabilities by {moved:.2g}): its gains would be "
            "another model's; leave --fold out, --gain sublayer_unit has the folded gains"
        )
    return replace(loaded, processing="norms folded (transformer-lens)")
