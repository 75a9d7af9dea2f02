"""The eight Pythia models as the gains study published them: sizes, the last MLP's gain, counts of contracting layers.

Derived from the author's per-layer results (github buk81/uniformity-asymmetry, MIT). As its code has it, they were measured with definition
`sublayer` on the four prompts `seed4` in fp16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Published:
    """One model's published figures.

    Attributes:
        model: name without the organisation.
        n_params: all parameters, embeddings included.
        n_layers, d_model: its shape.
        final_mlp_gain: of the last layer.
        attn_contracting, mlp_contracting, net_contracting: layers whose gain (net: attention x MLP) is below 1.
        max_mlp_gain, max_mlp_layer: the loudest MLP.
        max_attn_gain: the loudest attention.
        early, middle: geometric mean of the MLP's gains in the first quarter of the layers, and between the first and last quarter.
        argmin_net, argmin_attn: the layer, from 0, where attention x MLP, or attention, is least.
        regime: what the study calls it.
    """

    model: str
    n_params: int
    n_layers: int
    d_model: int
    final_mlp_gain: float
    attn_contracting: int
    mlp_contracting: int
    net_contracting: int
    max_mlp_gain: float
    max_mlp_layer: int
    max_attn_gain: float
    early: float
    middle: float
    argmin_net: int
    argmin_attn: int
    regime: str

    @property
    def n_params_non_embedding(self) -> int:
        """Parameters of the blocks and the final norm: 12 L d^2 + 13 L d + 2 d (GPT-NeoX)."""
        return 12 * self.n_layers * self.d_model**2 + 13 * self.n_layers * self.d_model + 2 * self.d_model


PYTHIA = (
    Published("pythia-70m", 70426624, 6, 512, 1.496113, 6, 5, 6, 1.49611, 5, 0.270283, 0.258206, 0.492618, 4, 4, "FUNNEL"),
    Published("pythia-160m", 162322944, 12, 768, 2.824326, 12, 9, 12, 2.82433, 11, 0.262474, 0.31843, 0.451534, 10, 10, "FUNNEL"),
    Published("pythia-410m", 405334016, 24, 1024, 1.779249, 24, 21, 24, 1.77925, 23, 0.258497, 0.381331, 0.35972, 14, 18, "FUNNEL"),
    Published("pythia-1b", 1011781632, 16, 2048, 3.719353, 16, 11, 14, 3.71935, 15, 0.730009, 0.772077, 0.667826, 2, 4, "HOUR-GLASS"),
    Published("pythia-1.4b", 1414647808, 24, 2048, 3.520675, 24, 22, 23, 3.52068, 23, 0.531168, 0.635952, 0.55325, 21, 20, "HOUR-GLASS"),
    Published("pythia-2.8b", 2775208960, 32, 2560, 2.100075, 32, 24, 32, 2.42857, 30, 0.618299, 0.691216, 0.667786, 26, 29, "HOUR-GLASS"),
    Published("pythia-6.9b", 6857302016, 32, 4096, 6.295791, 31, 18, 30, 6.29579, 31, 1.01178, 0.908791, 0.97421, 25, 25, "VASE"),
    Published("pythia-12b", 11846072320, 36, 5120, 7.714583, 35, 2, 33, 7.71458, 35, 1.61111, 1.35076, 1.40371, 27, 27, "VASE"),
)

# What the study extrapolates to, by parameters; the first is its largest measured model.
EXTRAPOLATED: Mapping[float, float] = MappingProxyType({11846072320.0: 7.7, 70e9: 13.0, 175e9: 18.0, 1.8e12: 30.0, 10e12: 50.0})
