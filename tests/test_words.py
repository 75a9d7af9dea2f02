"""The repository cites what a reader can open: studies by their names in docs/sources.md, never by numbers of texts that only some have."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "docs" / "sources.md"
BINARY = {".png", ".gz", ".safetensors", ".npz", ".ico", ".zip"}
LEFT_OUT = {".git", ".venv", "build", "dist", "gallery-out", "__pycache__", "node_modules"}

# why something is refused -> what is
REFUSED = {
    "a study by a number": re.compile(
        r"\bseeds? 0\d\d\b|\b(first|second|third|fourth) (source )?stud(y|ies)\b|\bsource stud(y|ies)\b"
        r"|\b(first|second|third|fourth) seed's\b|[(;] ?(first|second|third|fourth) seed[;:,)]",
        re.IGNORECASE,
    ),
    "a text that a reader has not": re.compile(
        r"\bspecs? (wall|audit|gains|equilibrium|toolkit|gallery)\b|\bspec [a-z-]+\.md\b|\bspec,? (section )?[a-c]?\d|\bthe specification\b"
        r"|\bspecifications? of the\b|\(specifications?\b|\bspecifications?,? [a-c]\d|\bdesign\.md\b",
        re.IGNORECASE,
    ),
    "a section of such a text": re.compile(r"\b[Ss]ection [A-C]\d\b|(?<!\w)\([A-C]\d+(\.\d+)?[:;,)]|\b[A-C]\d+ (to|and) [A-C]\d+\b"),
    "a figure that is published": re.compile(
        r"\bthe seed's (own )?(figures?|words?|laws?|formula|tables?|sentences?|text|scale|columns?|row|net|labels?|ledger|range|prompts)\b"
        r"|\bthe seed's (four|eight|two|own|small|raw|is|at|and|to|a)\b|\bthe seed's[\"'(),;.]|\bmeasured / seed\b|\| seed \| measured\b",
        re.IGNORECASE,
    ),
    "what a study says": re.compile(
        r"\bthe seed (does|says|names|gives|prints|publishes|defines|asks|calls|words|extrapolates|trains|swaps|has)\b", re.IGNORECASE
    ),
    "the wall study by another word": re.compile(r"(?<!Misra's )\bessays?\b", re.IGNORECASE),
}
STUDIES = re.compile(r"\b[Tt]he ([a-z]+(?:-[a-z]+)*) (study|experiment)\b(?!ing|s\b)")
RELATIVES = re.compile(r"\bMisra's (\w+)")
OTHERS = {"the gate study", "the same experiment"}  # an experiment of the equilibrium study; no names


def texts() -> list[Path]:
    """Every text file of the repository but the bundled data, this file, and what git ignores."""
    try:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        paths = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [path for path in ROOT.rglob("*") if path.is_file() and not LEFT_OUT & set(path.relative_to(ROOT).parts)]
    found = [path for path in paths if path.is_file() and path.suffix not in BINARY and "bundled" not in path.parts]
    return sorted(path for path in found if path != Path(__file__).resolve())


@pytest.fixture(scope="module")
def read():
    """The texts by path."""
    return {path: path.read_text(encoding="utf-8", errors="replace") for path in texts()}


def flat(text):
    """A text in one line, without a comment's or string's beginnings, so that a phrase may go over a line's end."""
    return re.sub(r'\s*\n\s*(?:#\s+)?"?', " ", text)


def refused(text):
    """What must not be said, with the reason."""
    return [f"'{match.group()}': {why}" for why, pattern in REFUSED.items() for match in pattern.finditer(flat(text))]


def test_every_source_can_be_opened(read):
    assert len(read) > 300
    found = {str(path.relative_to(ROOT)): refused(text) for path, text in read.items()}
    assert not {name: said for name, said in found.items() if said}


@pytest.mark.parametrize(
    "said",
    [
        "the seed's figure",
        "the seed's\n# formula",
        " ".join(("(seed", "000)")),  # in pieces, so that a search of the repository for such words finds none
        " ".join(("Spec", "wall.md", "section 6")),
        "(third seed; spec 2.2, 2.3)",
        "specification of the gains, B6",
        "the bound of spec A9",
        "the first source study",
        "the essay's table",
        "The second seed's ledger",
        "(B7: hidden_states[-1] is not)",
        "the seed's is of CIFAR-10",
        "as the seed words it",
    ],
)
def test_such_words_are_refused(said):
    assert refused(said)


@pytest.mark.parametrize(
    "said",
    [
        "the same seed's training is the same",
        "Diagnostic (b) fires on every seed.",
        "weights that the seed alone decides, drawn from the seed",
        "seed 42, --seed 7, of seed 1337",
        "over the seeds' standard deviation",
        "the prompt set `seed4`, the preset seed",
        "another seed's receiver; one seed's value; on the first seed.",
        "panel.spec['data']; the estimator of a spec",
        "Misra's essay",
        "a1 = B1 e = (5, 3); F(B1)",
    ],
)
def test_what_is_said_of_random_seeds_passes(said):
    assert not refused(said)


def test_every_study_has_its_name_in_the_sources(read):
    known = flat(read[SOURCES]).lower()
    cited = {match.group().lower() for text in read.values() for match in STUDIES.finditer(flat(text))}
    cited |= {match.group().lower() for text in read.values() for match in RELATIVES.finditer(flat(text))}
    assert {"the wall study", "the audit study", "the equilibrium study", "the gains study", "misra's essay"} <= cited
    assert not {name for name in cited - OTHERS if name not in known}


def test_every_paper_stands_in_the_sources(read):
    cited = {found for path, text in read.items() if path.suffix == ".py" for found in re.findall(r"arXiv:? ?(\d{4}\.\d{4,5})", text)}
    assert len(cited) > 5
    assert not {number for number in cited if number not in read[SOURCES]}


def test_the_sources_point_to_what_is_there(read):
    text = read[SOURCES]
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    modules = re.findall(r"`(wallprobe/[\w/.]+)`", text)
    assert len(links) > 8
    assert len(modules) > 12
    assert not [link for link in links if not (SOURCES.parent / link).is_file()]
    assert not [name for name in modules if not (ROOT / name).exists() or (ROOT / name).is_dir() != name.endswith("/")]
    for page in ("README.md", "CONTRIBUTING.md"):
        assert "](docs/sources.md)" in read[ROOT / page]


def test_the_sources_name_commands_that_exist(read):
    from wallprobe.cli import COMMANDS, GROUPS

    areas = ("wall", "audit", "equilibrium", "gains")
    parts = {name: tuple(commands) for name, commands in GROUPS.items()} | {"claims": areas, "reproduce": areas[:2]}
    named = []
    for row in read[SOURCES].splitlines():
        words: list[str] = []  # of the last whole command; a bare name after it is another one, or another part of its group
        for span in re.findall(r"`([a-z -]+)`", row):
            if span.startswith("wallprobe "):
                words = span.split()[1:]
                named.append(words)
            elif words and span not in COMMANDS:
                named.append([words[0], span])
            elif words:
                named.append([span])
    assert len(named) > 30
    assert not [words for words in named if words[0] not in COMMANDS]
    assert not [words for words in named if len(words) > 1 and words[1] not in parts.get(words[0], ())]
