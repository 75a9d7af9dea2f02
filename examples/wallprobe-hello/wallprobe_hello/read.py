"""The read `margin`: by how much the donor's answer leads whatever else is likeliest, in logits. Below zero it does not lead."""

from jaxtyping import Float
from torch import Tensor

from wallprobe.hooks.interchange.pairs import Pairs
from wallprobe.hooks.interchange.reads import FromFunction


def margin(logits: Float[Tensor, "*entry pair vocab"], pairs: Pairs) -> Float[Tensor, "*entry pair"]:
    """Logit of the donor's answer less the largest other one, one figure a pair."""
    ids = pairs.answers[pairs.donors_answer].to(logits.device).expand(logits.shape[:-1])[..., None]
    return (logits.gather(-1, ids)[..., 0] - logits.scatter(-1, ids, -float("inf")).amax(-1)).double()


MARGIN = FromFunction(margin, "margin", "logits")
