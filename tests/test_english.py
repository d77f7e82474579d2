"""What is read is plain technical English: the commonest turns of a translation stay out."""

import functools
import json
import re
import subprocess

import pytest

from labutils import paths

TURNS = (  # pattern, a sample that it finds, what a native engineer writes
    (
        r"(?<!\bthere\s)\b(is|are|was|were) no (?!longer|more|less|fewer|better|worse|nearer|later"
        r"|earlier|larger|smaller|wider|slower|faster|matter|one\b)",
        "the file is no DLC", "is not a DLC",
    ),
    (r"\bmend(s|ed|ing)?\b", "the mended file", "repaired, fixed"),
    (r"\bof (its|their|his|our|one's) own\b", "a process of its own", "its own, a separate"),
    (r"\bat hand\b", "no record at hand", "available, here"),
    (r"\bwhoever\b", "Whoever reads this", "anyone who, if you"),
    (r"\bmany an?\b", "many a rule", "many rules"),
    (r"\b(has|have) not (a|an|any|the)\b", "it has not a name", "does not have"),
    (
        r"\b(that|which)( [\w'-]+){1,3} has not\b(?=\s*[.;,:)\"])",
        "ids that this lab has not.", "does not have",
    ),
    (r"(\b(say|said|told|explained|refused|came out)|,) in words\b", "said in words", "as text"),
    (r"\bas ever\b", "as ever, it fails", "as usual"),
    (r"\bdear(er|est)?\b", "a MAC is dear", "expensive"),
    (r"\bis to be (?!read\b)", "a file is to be written", "will be, must be"),
    (
        r"\b(to|with|of|for|only|return|down to) so many\b(?!.*\b(that|can)\b)",
        "codes of so many bits", "that many",
    ),
    (r"\bsuch an? one\b", "if it is such a one", "one, or what it is"),
    (r"\belse than\b", "something else than asked", "other than, anything but"),
    (r"\bto be (had|rid of|looked into)\b", "no proxy is to be had", "available, delete, inspect"),
    (r"\bbelongs? into\b", "belongs into no pack", "belongs in"),
    (r"\banew\b", "begin anew", "again, from scratch"),
    (r"\bwanting\b", "nothing was found wanting", "missing, failed"),
    (r"\bwithout a word\b", "it ends without a word", "silently"),
    (r"\bwhat came of\b", "what came of them", "the result of"),
    (r"\bhang(s|ed|ing)? on\b", "it hangs on shapes", "depends on"),
    (r"(?<!\bwhat\s)\bgoes on\b(?! to\b)", "the run goes on", "continues, resumes"),
    (r"\b(name|codes|made) of before\b", "the name of before", "earlier"),
    (r"\b(errors?|faults?|mistakes?|nobody) (is|are) told\b", "an error is told", "reported"),
    (r"\bbehind (each other|an? (Cast|Transpose|ReLU|Add))", "NCHW, behind a Transpose", "after"),
    (r"\ballows? to\b", "it allows to choose", "lets you choose"),
    (r"\btyping error", "a typing error", "typo"),
    (r"\bastray\b|\bamiss\b", "training went astray", "diverged, wrong"),
    (r"\b(model|file) that (is|was) brought\b", "the model that was brought", "the original model"),
)  # fmt: skip
BREAK = r"""(?:[\s#]|f?"(?=[\s"f]|\w))+"""  # between two words, maybe of two lines of code


def found(pattern, text):
    """Return the matches, across the ends of lines."""
    return list(re.finditer(pattern.replace(" ", BREAK), text, re.IGNORECASE))


@functools.cache
def texts():
    """Return (place, text) of all that a user or a contributor reads, but for the tests."""
    return tuple(_texts())


def _texts():
    command = ["git", "ls-files", "*.py", "*.md", "*.yaml", "*.ipynb", "Makefile", "*.toml"]
    listed = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        file = paths.ROOT / name
        if name.startswith("tests/") or not file.exists():
            continue
        text = file.read_text(encoding="utf-8")
        if file.suffix != ".ipynb":
            yield name, text
            continue
        for number, cell in enumerate(json.loads(text)["cells"]):
            yield f"{name}, cell {number}", "".join(cell["source"])


def lines_of(text, matches):
    for match in matches:
        yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split())


@pytest.mark.parametrize(("pattern", "sample", "native"), TURNS, ids=[turn[1] for turn in TURNS])
def test_the_turn_occurs_nowhere(pattern, sample, native):
    assert found(pattern, sample), "the sample is not found"
    hits = [
        f"{place}:{line}: {words}"
        for place, text in texts()
        for line, words in lines_of(text, found(pattern, text))
    ]
    assert not hits, f"write {native!r}:\n" + "\n".join(hits)


def test_a_turn_is_found_across_lines_and_plain_english_is_not():
    own = TURNS[2][0]
    assert found(own, 'f"a process of its "\n    f"own"') and found(own, "# of its\n    # own")
    for words in ("it is no longer", "there is no file", "There\nis no file", "it is no better",
                  "recommended", "what goes on there", "it goes on to notebook 04"):  # fmt: skip
        assert not any(found(pattern, words) for pattern, _, _ in TURNS)
