"""Text to model: Genesis (embedded, public domain), any UTF-8 file, or TinyStories through `datasets`; as characters or as BPE pieces.

No network unless TinyStories is asked for by name. The last tenth of a text (of TinyStories, its own split) is for validation.
"""

import gzip
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from wallprobe.errors import CheckpointError, ConfigError, StoreError, UnknownNameError, one_line
from wallprobe.rng import generator
from wallprobe.store.runs import BUNDLED
from wallprobe.store.texts import lines, read_text

NAME = "text"
GENESIS, TINYSTORIES = "genesis", "tinystories"
EMBEDDED = BUNDLED.parent / "text" / "genesis.txt.gz"
TOKENIZERS = ("characters", "bpe")
MOST_CHARACTERS = 128  # rarer ones become spaces
VALIDATION = 0.1
STORIES, STORIES_HELD_OUT = 20_000_000, 2_000_000  # characters read of TinyStories
FALLBACK = "leave --dataset out to read the embedded Genesis, or give --text FILE"


@dataclass(frozen=True)
class TextSpec:
    """What to read and how.

    Attributes:
        source: "genesis", "tinystories" or a file.
        tokenizer: "characters" (lower-cased) or "bpe" (sentencepiece, trained on the training part).
        pieces: vocabulary of BPE.
    """

    source: str = GENESIS
    tokenizer: str = "characters"
    pieces: int = 512

    def __post_init__(self) -> None:
        if self.tokenizer not in TOKENIZERS:
            raise UnknownNameError(f"no tokenizer named '{self.tokenizer}'; there are: {', '.join(TOKENIZERS)}")
        if self.pieces < 2:
            raise ConfigError(f"a vocabulary of {self.pieces} pieces says nothing; give 2 or more")


@dataclass(frozen=True)
class Text:
    """A tokenised text.

    Attributes:
        spec: what was read.
        train, val: token ids.
        vocabulary: what each id stands for.
        data_hash: SHA-256 of the text as read.
        vocabulary_hash: SHA-256 of the vocabulary.
    """

    spec: TextSpec
    train: Int[Tensor, " train"]
    val: Int[Tensor, " val"]
    vocabulary: tuple[str, ...]
    data_hash: str
    vocabulary_hash: str

    def config(self) -> dict[str, Any]:
        """Plain JSON for a run's manifest entry `task`."""
        return {"name": NAME, **asdict(self.spec), "data_hash": self.data_hash, "vocabulary_hash": self.vocabulary_hash}

    def batch(self, size: int, length: int, *labels: str | int) -> tuple[Int[Tensor, "size length"], Int[Tensor, "size length"]]:
        """Tokens and the tokens after them, of windows drawn from the training part.

        Args:
            size: windows.
            length: tokens of each.
            labels: what the draw depends on, as `rng.generator`.
        """
        starts = torch.randint(len(self.train) - length, (size,), generator=generator("text", *labels))
        rows = self.train[starts[:, None] + torch.arange(length + 1)]
        return rows[:, :-1], rows[:, 1:]

    def held_out(self, size: int, length: int, part: int = 0) -> tuple[Int[Tensor, "size length"], Int[Tensor, "size length"]]:
        """The same of windows spread evenly over the validation part, which do not overlap; always the same ones.

        Args:
            size: windows.
            length: tokens of each.
            part: 0, 1, ...: other windows each, as long as there are any.

        Raises:
            ConfigError: if the validation part is too short for them.
        """
        there = (len(self.val) - 1) // length
        if size * (part + 1) > there:
            raise ConfigError(
                f"the validation part has {there} windows of {length} tokens, {size * (part + 1)} are wanted; give a longer text"
            )
        starts = (torch.arange(size) * (there // size) + part) * length
        rows = self.val[starts[:, None] + torch.arange(length + 1)]
        return rows[:, :-1], rows[:, 1:]


def load_text(spec: TextSpec) -> Text:
    """Read and tokenise.

    Raises:
        UnknownNameError: if there is no such file.
        ConfigError: if it cannot be read, or is too short; for TinyStories the message names the fallback.
    """
    train, val = _parts(spec.source)
    encode, vocabulary = (_characters if spec.tokenizer == "characters" else _pieces)(train, spec.pieces)
    digest = hashlib.sha256((train + val).encode()).hexdigest()
    words = hashlib.sha256("\x1f".join(vocabulary).encode()).hexdigest()
    return Text(spec, encode(train), encode(val), vocabulary, digest, words)


def from_manifest(entry: Mapping[str, Any]) -> Text:
    """The text of a run's manifest entry `task`.

    Raises:
        UnknownNameError, ConfigError: as `load_text`.
        CheckpointError: if what is read now is not what the run was trained on.
    """
    text = load_text(TextSpec(*(entry[name] for name in ("source", "tokenizer", "pieces"))))
    if text.data_hash != entry["data_hash"]:
        raise CheckpointError(f"text {entry['source']} is not what the run was trained on (other SHA-256); restore it, or train again")
    if text.vocabulary_hash != entry["vocabulary_hash"]:
        raise CheckpointError(f"the tokenizer of text {entry['source']} comes out otherwise than when the run was trained; train again")
    return text


def _parts(source: str) -> tuple[str, str]:
    """Training and validation part."""
    if source == TINYSTORIES:
        return _stories("train", STORIES), _stories("validation", STORIES_HELD_OUT)
    text = _embedded() if source == GENESIS else _file(Path(source))
    cut = int(len(text) * (1 - VALIDATION))
    if cut < 100:
        raise ConfigError(f"text {source} has {len(text)} characters; give a longer one")
    return text[:cut], text[cut:]


def _embedded() -> str:
    try:
        return gzip.decompress(EMBEDDED.read_bytes()).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise StoreError(f"the embedded text {EMBEDDED.name} is damaged ({error}); install wallprobe again") from error


def _file(path: Path) -> str:
    return read_text(path, "text file", "an existing file, or leave it out for the embedded Genesis")


def _stories(split: str, most: int) -> str:
    """The first stories of a split of TinyStories (cdla-sharing-1.0), a blank line between them."""
    import datasets

    found, size = [], 0
    try:
        for row in datasets.load_dataset("roneneldan/TinyStories", split=split, streaming=True):
            found.append(str(row["text"]).strip())
            size += len(found[-1]) + 2
            if size >= most:
                break
    except Exception as error:
        why = one_line(error)
        raise ConfigError(f"TinyStories cannot be had from the hub ({why}); {FALLBACK}") from error
    return "\n\n".join(found)


Encoder = Callable[[str], Tensor]


def _characters(text: str, _: int) -> tuple[Encoder, tuple[str, ...]]:
    """Lower-cased characters; those beyond the commonest `MOST_CHARACTERS` read as spaces."""
    common = [character for character, _ in Counter(text.lower()).most_common(MOST_CHARACTERS)]
    alphabet = tuple(sorted({*common, " "}))
    known = {character: place for place, character in enumerate(alphabet)}
    blank = known[" "]
    return lambda part: torch.tensor([known.get(character, blank) for character in part.lower()], dtype=torch.int64), alphabet


def _pieces(text: str, size: int) -> tuple[Encoder, tuple[str, ...]]:
    """Byte-pair pieces of sentencepiece, trained on the text."""
    try:
        import sentencepiece
    except ImportError as error:
        raise ConfigError("BPE needs sentencepiece: pip install sentencepiece; or take --tokenizer characters") from error
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines(text)),
            model_writer=written,
            model_type="bpe",
            vocab_size=size,
            normalization_rule_name="identity",
            user_defined_symbols=["\n"],
            byte_fallback=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(f"no BPE of {size} pieces can be made of this text ({' '.join(str(error).split())[:160]})") from error
    made: Any = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    vocabulary = tuple(made.id_to_piece(place) for place in range(made.get_piece_size()))
    return lambda part: torch.tensor(made.encode(part), dtype=torch.int64), vocabulary
