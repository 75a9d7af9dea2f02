"""How many parameters a model has, in all and without its embeddings, each counted once, tied or not."""

from typing import Any

from torch import nn

SIZES = "parameters_counted"  # attribute of a bridge, which splits joint projections into copies: counted before


def count(whole: Any) -> tuple[int, int]:
    """Parameters of a transformers model, in all and without its embeddings."""
    outer = {id(found.weight) for found in (whole.get_input_embeddings(), whole.get_output_embeddings()) if found is not None}
    outer |= {id(module.weight) for module in whole.modules() if isinstance(module, nn.Embedding)}
    sizes = {id(parameter): parameter.numel() for parameter in whole.parameters()}
    return sum(sizes.values()), sum(size for key, size in sizes.items() if key not in outer)


def count_hooked(model: Any, pretrained: bool) -> tuple[int, int]:
    """The same of a transformer-lens model.

    What transformer-lens adds to a pretrained model is left out: biases that are all zero, and a copy of tied embeddings. The embeddings
    are those of tokens and positions, and the unembedding.
    """
    if hasattr(model, SIZES):
        total, without = getattr(model, SIZES)
        return int(total), int(without)
    found = dict(model.named_parameters())
    if pretrained:
        found = {name: value for name, value in found.items() if not (name.rpartition(".")[2].startswith("b_") and not value.any())}
        unembed, embed = found.get("unembed.W_U"), found.get("embed.W_E")
        if unembed is not None and embed is not None and unembed.shape == embed.T.shape and bool((unembed == embed.T).all()):
            del found["unembed.W_U"]
    outside = ("embed.", "pos_embed.", "unembed.")
    inner = sum(value.numel() for name, value in found.items() if not name.startswith(outside))
    return sum(value.numel() for value in found.values()), inner
