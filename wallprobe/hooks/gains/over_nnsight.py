"""Gains through nnsight: the model runs where it is served; squared norms and inner products of a block's vectors alone come back."""

from collections.abc import Callable
from dataclasses import fields

import torch

from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach import stacks
from wallprobe.hooks.attach.prompt_sets import PromptSet, batches
from wallprobe.hooks.attach.remote import Tracer, check
from wallprobe.hooks.gains.definitions import Norms
from wallprobe.hooks.gains.norms import FINAL_TOLERANCE, check_finite, check_identity, named, norm_forms
from wallprobe.hooks.gains.report import Settings, Subject, report
from wallprobe.models import Plain
from wallprobe.models.sizes import count
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.results import Result


def remote_gains(
    plain: Plain,
    prompts: PromptSet,
    settings: Settings,
    remote: str = "local",
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Gains as `measure.gains` has them, one trace a batch of prompts of one length.

    Args:
        plain: a language model; GPT-2, GPT-NeoX, Llama and its kin.
        prompts: what it reads.
        settings: how gains are made of norms.
        remote: "local": the trace is serialised as for NDIF and run here.
        on_progress: told (prompts done, prompts in all).

    Returns:
        Result of kind "gains"; its manifest says which way it went.

    Raises:
        ConfigError: without nnsight, for a definition that needs more than norms, or another layout.
        InstrumentError: as `measure.measure_norms`.
    """
    check("nnsight", remote)
    terms_of = settings.definition.terms
    if terms_of is None:
        raise ConfigError(f"--gain {settings.definition.name} needs more than norms; leave --remote out or give another --gain")
    stack = stacks.of_transformers(plain.model)
    if stack is None:
        raise ConfigError(f"{plain.name} is laid out in none of the ways that --remote knows: {', '.join(stacks.LAYOUTS)}; leave it out")
    watch, tracer = Stopwatch(), Tracer(plain.name, plain.model, plain.tokenizer, remote)
    paths = {module: path for path, module in plain.model.named_modules()}
    blocks = [tuple(paths[stack.point(layer, site)[0]] for site in ("resid_pre", "attn_out", "mlp_out")) for layer in range(stack.n_layers)]
    wanted, forms = norm_forms(stack.parallel)
    found: dict[int, Norms] = {}
    for members in batches(prompts):
        tokens = torch.stack([prompts.tokens[index] for index in members])
        figures, seam = tracer.inner_products(tokens, blocks, forms)
        check_finite(plain.name, figures[-1, ..., wanted.index("resid_post")], stack.n_layers - 1)
        if not seam <= FINAL_TOLERANCE:
            raise InstrumentError(f"{plain.name}: a block reads what the one before did not write (apart by {seam:.1e}); no gain reported")
        whole = {name: value.transpose(0, 1) for name, value in named(wanted, figures).items()}
        check_identity(plain.name, whole["identity_error"])
        for row, index in enumerate(members):
            found[index] = Norms(**{field.name: whole[field.name][row] for field in fields(Norms)})
        if on_progress is not None:
            on_progress(len(found), len(prompts.tokens))
    ordered = [found[index] for index in range(len(prompts.tokens))]
    shape = (plain.name, plain.kind, stack.n_layers, stack.d_model, plain.weight_hash, stack.parallel)
    subject = Subject(*shape, *count(plain.model), device=str(plain.model.device))
    result = report(subject, prompts, settings, ordered, [terms_of(one, stack.d_model) for one in ordered], watch)
    result.manifest["engine"] = {"backend": "nnsight", "remote": remote}
    result.manifest["config"]["remote"] = remote
    return result
