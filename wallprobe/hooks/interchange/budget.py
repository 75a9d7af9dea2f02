"""What a sweep's tensors take beside the models' weights, predicted; and which cells go together so that it stays within --budget.

Held throughout: the clean pass, what src gives at every cell, the statistics' draws, a block's weights laid out once more. The rest is
for cells on their walk.
"""

from collections.abc import Mapping, Sequence

from wallprobe import stats
from wallprobe.errors import ConfigError
from wallprobe.hooks.attach.resume import predicted_bytes
from wallprobe.hooks.attach.sites import module_site
from wallprobe.hooks.attach.stacks import Stack
from wallprobe.hooks.interchange.places import Place
from wallprobe.store.memory import GIB

FLIPS = 2000  # sign flips of the permutation test


def clean_bytes(stack: Stack, rows: int, length: int) -> int:
    """Bytes of a clean pass that keeps everything (fp32), its own transients included; groups of keys counted as heads.

    Args:
        stack: the model.
        rows: sequences.
        length: indices of each.
    """
    kept = (3 * stack.n_layers + 1) * stack.d_model + 4 * stack.n_layers * stack.d_heads
    return 4 * rows * length * kept + predicted_bytes(stack, rows, length, 0)


def block_bytes(stack: Stack) -> int:
    """Bytes of one block's weights, laid out once more for oneDNN (fp32); groups of keys counted as heads."""
    return 4 * stack.d_model * (4 * stack.d_heads + 3 * stack.d_mlp)


def statistics_bytes(pairs: int) -> int:
    """Bytes of bootstrap weights and sign flips (fp64), and of making them."""
    return 8 * pairs * 2 * (stats.DRAWS + FLIPS)


def values_bytes(stack: Stack, places: Sequence[Place], rows: int) -> int:
    """Bytes of one activation a cell and row (fp32)."""
    return 4 * rows * sum(stack.d_heads if module_site(place.site) == "z" else stack.d_model for place in places)


def cell_bytes(stack: Stack, pairs: int, length: int, index: int, arms: int, vocabulary: int, word: int) -> int:
    """Bytes of one cell on its walk: its arms' states, then their logits.

    Args:
        stack: the model.
        pairs: sequences patched.
        length: indices up to and with the one read.
        index: of the cell.
        arms: treatment and controls.
        vocabulary: logits a sequence.
        word: bytes that a logit and what is made of it take.
    """
    patched = 8 * pairs * max(stack.d_model, stack.d_heads)
    return arms * (predicted_bytes(stack, pairs, length, index) + patched + word * pairs * vocabulary)


def groups(places: Sequence[Place], cell: Mapping[int, int], held: int, budget: float, what: str) -> list[list[Place]]:
    """Cells walked together: of one index, deepest last, as many as the budget holds beside what is held.

    Args:
        places: every cell.
        cell: bytes of one cell, by index.
        held: bytes that are held throughout.
        budget: GiB.
        what: the cell in words, for the error.

    Raises:
        ConfigError: if not even one cell fits; before anything is walked.
    """
    largest = max(cell[int(place.index)] for place in places)
    if budget * GIB < held + largest:
        least = (held + largest) / GIB
        raise ConfigError(
            f"{what} takes {least:.4f} GiB ({held / GIB:.4f} of it for clean passes and donors), more than the budget of {budget:g}; "
            f"give --budget {_up(least)}, or fewer pairs, layers, indices or sites"
        )
    made: list[list[Place]] = []
    for index in sorted({place.index for place in places}):
        room = int((budget * GIB - held) / cell[int(index)])
        here = sorted((place for place in places if place.index == index), key=entered)
        made += [here[start : start + room] for start in range(0, len(here), room)]
    return made


def entered(place: Place) -> int:
    """The block before which a patch there enters the walk."""
    return place.layer + (place.site != "resid_pre")


def _up(gib: float) -> str:
    """Rounded up to hundredths."""
    return f"{(int(gib * 100) + 1) / 100:g}"
