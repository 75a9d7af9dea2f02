"""Where prompts come from as text: built-in sets, a file (txt, jsonl, csv) or a data set of the `datasets` library."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wallprobe.errors import CheckpointError, ConfigError, UnknownNameError, one_line
from wallprobe.store.texts import json_lines, lines, read_text, table

SEED4 = (
    "The capital of France is Paris, which is known for the Eiffel Tower.",
    "In mathematics, the Pythagorean theorem states that in a right triangle",
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "Artificial intelligence has made significant progress in recent years",
)
# Ours: a fact each, cut where one word is wanted.
FFN8 = (
    "The chemical symbol for gold is",
    "The largest planet in the solar system is",
    "The author of Romeo and Juliet is William",
    "Water freezes at zero degrees",
    "The opposite of hot is",
    "The first month of the year is",
    "Bees collect nectar from flowers to make",
    "The capital city of Japan is",
)
# Ours: prose, speech, figures, code, lists, five languages, and text that is no language.
MIXED = (
    "When the ferry finally left the harbour, the fog had already swallowed the lighthouse.",
    "She folded the letter twice, put it under the clock and never mentioned it again.",
    "Nobody in the village remembered who had planted the row of walnut trees.",
    "“Are you coming tomorrow?” asked Miriam. “Only if it rains,” he said.",
    "Q: How many sides does a hexagon have? A: six. Q: How many sides does an octagon have? A:",
    "Dear Sir or Madam, I am writing to complain about the parcel that arrived on Tuesday.",
    "The committee voted seven to two against the proposal after four hours of debate.",
    "Water boils at 100 degrees Celsius at sea level, but on a high mountain it boils at",
    "A proton is about 1836 times heavier than an electron and carries the opposite charge.",
    "The mitochondrion has two membranes; the inner one is folded into cristae.",
    "If 3x + 7 = 22, then 3x = 15 and therefore x =",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89,",
    "def mean(values):\n    return sum(values) / len(values)\n\ndef variance(values):\n",
    "SELECT name, price FROM products WHERE price > 10 ORDER BY price DESC;",
    "for (int i = 0; i < n; i++) {\n    total += weights[i] * inputs[i];\n}",
    '{"id": 17, "tags": ["red", "round"], "size": {"width": 3, "height": 4}}',
    "Ingredients: 200 g flour, 2 eggs, a pinch of salt, 300 ml milk. Method: whisk the eggs",
    "Monday: dentist at nine. Tuesday: call the bank. Wednesday: pick up the keys.",
    "The treaty was signed in 1648 and ended three decades of war in central Europe.",
    "In the second half the visitors defended well, and the match ended without a goal.",
    "Interest rates rose by a quarter of a point, and the currency gained against the dollar.",
    "Der Zug nach Hamburg hat heute leider zwanzig Minuten Verspätung.",
    "Le chat dort sur le canapé pendant que la pluie tombe sur le jardin.",
    "El panadero abre la tienda a las seis y vende casi todo antes de las diez.",
    "Nel paese c'era una sola fontana, e tutti vi andavano la sera.",
    "Os pescadores voltaram cedo porque o mar estava agitado.",
    "the the the the the the the the the the the the",
    "qzx vlor 88 trem! pagf -- ##, umti 4k9 oohw ... ek",
)
PROMPT_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"seed4": SEED4, "single": ("The capital of France is",), "ffn8": FFN8, "mixed": MIXED}
)
COLUMNS = ("text", "prompt", "content", "sentence")  # looked for in this order
DATASET, DATASET_ROWS, DATASET_TOKENS = "datasets:", 64, 128
ACCEPTED = "a .txt file (one prompt a line), .jsonl, .csv, datasets:ID[:CONFIG][@SPLIT]"


def read_texts(source: str, column: str | None = None, limit: int | None = None) -> tuple[str, tuple[str, ...]]:
    """Name and prompts of a built-in set, a file or a data set.

    Args:
        source: `seed4`, `single`, `ffn8`, `mixed`; a `.jsonl` file (a string or an object a line), a `.csv` file with a header, any
            other text file, one prompt a line; or `datasets:ID`, with `:CONFIG` and `@SPLIT` where needed.
        column: of a table, which column holds the text; else the first of `COLUMNS` there is, or the only one.
        limit: how many to take at most; 64 of a data set, else all.

    Raises:
        UnknownNameError: if it is none of these.
        ConfigError: if it holds no prompt or cannot be read.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit} leaves no prompt; give 1 or more")
    if source in PROMPT_SETS:
        return source, PROMPT_SETS[source][:limit]
    if source.startswith(DATASET):
        return _dataset(source.removeprefix(DATASET), column, limit or DATASET_ROWS)
    path = Path(source)
    text = read_text(path, "prompt file", f"{ACCEPTED}, or one of: {', '.join(PROMPT_SETS)}")
    found = list(islice((value.strip() for value in _values(path, text, column) if value.strip()), limit))
    if not found:
        raise ConfigError(f"prompt file {source} holds no prompt; write one a line")
    return path.name, tuple(found)


def _values(path: Path, text: str, column: str | None) -> Iterator[str]:
    """The prompts of a file, blank ones among them."""
    if path.suffix == ".jsonl":
        for where, value in json_lines(text, f"prompt file {path}", "a string or an object a line"):
            one = value.get(_pick(list(value), column, where)) if isinstance(value, dict) else value
            if not isinstance(one, str):
                raise ConfigError(f"{where} holds no text but {type(one).__name__}; write a string or an object")
            yield one
    elif path.suffix == ".csv":
        names, rows = table(text, f"prompt file {path}")
        name = _pick(names, column, f"prompt file {path}")
        yield from (row[name] for row in rows)
    else:
        yield from lines(text)


def _pick(names: list[str], column: str | None, where: str) -> str:
    """The column that holds the text."""
    if column is not None and column not in names:
        raise ConfigError(f"{where} has no column '{column}'; there are: {', '.join(names) or 'none'}")
    found = column or next((name for name in COLUMNS if name in names), names[0] if len(names) == 1 else None)
    if found is None:
        raise ConfigError(f"{where} has columns {', '.join(names) or 'none'}; say which one holds the text: --column NAME")
    return found


def _dataset(given: str, column: str | None, limit: int) -> tuple[str, tuple[str, ...]]:
    """The first prompts of a data set: a hub id, or a local folder that `datasets` reads."""
    name, _, split = given.partition("@")
    identity, config = (name, "") if Path(name).exists() else (name.partition(":")[0], name.partition(":")[2])
    import datasets

    from wallprobe.models.guard import reading

    library: Any = datasets
    library.disable_progress_bars()
    local = Path(identity) if Path(identity).exists() else None
    try:
        with reading(given, local, network=local is None):
            rows = library.load_dataset(identity, config or None, split=split or "train")
    except CheckpointError:
        raise
    except Exception as error:
        why = one_line(error)
        raise UnknownNameError(
            f"data set '{given}' could not be read ({why}); give datasets:ID[:CONFIG][@SPLIT], in the local cache when offline"
        ) from error
    chosen = _pick(list(rows.column_names), column, f"data set {given}")
    texts = (str(value).strip() for value in rows[chosen])
    found = tuple(islice((text for text in texts if text), limit))
    if not found:
        raise ConfigError(f"data set {given} holds no text in column '{chosen}'")
    return f"{Path(identity).name if Path(identity).exists() else identity}@{split or 'train'}", found
