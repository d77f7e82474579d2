"""Exercises of notebook 04: trusting a file only after reading and running it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ...compare import THRESHOLDS
from ..answer import NotYet, call, names, shown, whole
from ..exercise import Exercise
from .departures import judge_departure

_FLOAT_KINDS = ("ort_fp32", "htp_fp16")
_Imports = tuple[tuple[str, int], ...]


def _file(folder: Path, opset: int, before: _Imports = (), behind: _Imports = ()) -> Path:
    """Write a one-node ONNX file that imports other domains before and behind the standard one."""
    import onnx
    from onnx import helper

    ends = [helper.make_tensor_value_info(n, 1, [1]) for n in ("input", "logits")]
    node = helper.make_node("Relu", ["input"], ["logits"], name="/Relu")
    graph = helper.make_graph([node], "one", ends[:1], ends[1:])
    imports = [helper.make_opsetid(*one) for one in (*before, ("", opset), *behind)]
    path = folder / f"opset_{len(list(folder.iterdir()))}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


_ALONE = (11, 15, 18)
_MIXED: tuple[tuple[int, _Imports, _Imports], ...] = (  # opset, other sets before and behind it
    (15, (("com.microsoft", 1),), ()),
    (15, (), (("com.example", 20), ("ai.onnx.ml", 3))),
    (12, (("ai.onnx.ml", 3),), ()),
    (13, (("com.example", 21), ("com.microsoft", 1)), (("ai.onnx.ml", 4),)),
    (9, (("ai.onnx.ml", 2), ("com.example", 16)), ()),
    (14, (), (("com.microsoft", 1),)),
)


def judge_opset(opset_of: Any) -> None:
    """Judge what is read from files of several opsets, some with other operator sets beside."""
    cases = [*((opset, (), ()) for opset in _ALONE), *_MIXED]
    with tempfile.TemporaryDirectory(prefix="labutils-") as name:
        files = [_file(Path(name), *case) for case in cases]
        found = [whole(call(opset_of, file), "a whole number") for file in files]
    true = [opset for opset, _, _ in cases]
    if found != true:
        raise NotYet(_explain_opset(found[: len(_ALONE)], found[len(_ALONE) :]))


def _explain_opset(alone: list[int], mixed: list[int]) -> str:
    if set(alone) == {8}:
        return "8 is the version of the file format (IR), not that of the operators."
    if len(set(alone)) == 1:
        return f"three files of three opsets, and you say {alone[0]} to each: read the file."
    wrong = [said for said, true in zip(alone, _ALONE, strict=True) if said != true]
    if wrong:
        return f"you say {wrong[0]} to a file that was exported at another opset."
    return _explain_mixed(mixed)


def _explain_mixed(found: list[int]) -> str:
    """Say what was read from the files that import several operator sets; `_MIXED` has them."""
    versions = [
        [version for _, version in (*before, ("", opset), *behind)]
        for opset, before, behind in _MIXED
    ]
    if found == [max(v) for v in versions]:
        return "you took the highest version. Another domain counts for itself, and may be ahead."
    if found == [v[-1] for v in versions]:
        return "you took the last operator set; their order in the file means nothing."
    if found == [v[0] for v in versions]:
        return "you took the first operator set; their order in the file means nothing."
    wrong = next(i for i, case in enumerate(_MIXED) if found[i] != case[0])
    before, behind = _MIXED[wrong][1:]
    others = dict((*before, *behind))
    of = [domain for domain, version in others.items() if version == found[wrong]]
    return (
        f"a file imports the standard operators and {', '.join(others)}, and you say {found[wrong]}"
        f"{f': the version of {of[0]}' if of else ''}. Whose version do you return, and why that?"
    )


def four_artifacts() -> dict[str, tuple[str, np.ndarray]]:
    """Make what 04.2 hands out: name -> (kind of artifact, cosine of each of 32 images)."""
    random = np.random.default_rng(4)

    def cosines(usual: float, worst: float) -> np.ndarray:
        values = 1 - (1 - usual) * random.uniform(0.5, 1.0, 32)
        values[random.integers(32)] = worst
        return values.round(5)

    return {
        "tiger.onnx": ("ort_fp32", cosines(0.999995, 0.99997)),
        "heron.dlc": ("htp_fp16", cosines(0.99995, 0.981)),
        "otter.dlc": ("htp_a16w8", cosines(0.9995, 0.962)),
        "lemur.dlc": ("htp_int8", cosines(0.93, 0.71)),
        "bison.dlc": ("htp_int8", cosines(0.975, 0.80)),
    }


def judge_threshold(passing: Any) -> None:
    """Judge who passes: float kinds by their worst image, quantized ones by the mean."""
    artifacts = four_artifacts()
    found = names(passing)
    unknown = found - set(artifacts)
    if unknown:
        raise NotYet(f"there is no artifact called {shown(min(unknown))}.")
    right = set()
    for name, (kind, cosines) in artifacts.items():
        cosine = cosines.min() if kind in _FLOAT_KINDS else cosines.mean()
        if cosine >= THRESHOLDS[kind]:
            right.add(name)
    if found != right:
        raise NotYet(_explain_threshold(found, right, artifacts))


def _explain_threshold(
    found: set[str], right: set[str], artifacts: dict[str, tuple[str, np.ndarray]]
) -> str:
    limits = {name: THRESHOLDS[kind] for name, (kind, _) in artifacts.items()}
    if not found:
        return "none at all? At least one is above its threshold on every image."
    if found == set(artifacts) - right:
        return "those are the ones that fail; name those that pass."
    if found == set(artifacts):
        return "not all of them pass."
    if found == {n for n, (_, cosines) in artifacts.items() if cosines.mean() >= limits[n]}:
        return (
            "those are the ones whose mean is good enough. Where the arithmetic is meant to be the "
            "same, one bad image is a fault."
        )
    if found == {n for n, (_, cosines) in artifacts.items() if cosines.min() >= limits[n]}:
        return (
            "those are the ones that are good enough on every image. A quantized network has one "
            "that is far off, and the more images you look at, the worse it gets."
        )
    return _explain_choice(
        found, right, {name for name, (kind, _) in artifacts.items() if kind in _FLOAT_KINDS}
    )


def _explain_choice(found: set[str], right: set[str], floats: set[str]) -> str:
    """Name the first thing that is wrong with a choice that follows no rule."""
    if (found - right) & floats:
        return (
            "a float artifact that is far off on one image may not go: where the arithmetic is "
            "meant to be the same, one bad image is a fault."
        )
    if found - right:
        return "one that you let go is below the threshold of its kind, in the mean as well."
    if (right - found) & floats:
        return (
            "what you name may go, and you hold back a float artifact that is above its threshold "
            "on every image."
        )
    return (
        "what you name may go, and more may: a kind that rounds to codes is not held back for its "
        "worst image. Has each been held against its own threshold?"
    )


OPSET = Exercise(
    id="04.1",
    title="Read the opset back from a file",
    verb="read from a file what the exporter really wrote",
    minutes=6,
    difficulty="easy",
    answer="opset_of",
    stub="def opset_of(path):\n    return TODO",
    reference=(
        "import onnx\n\n\n"
        "def opset_of(path):\n"
        "    imports = onnx.load(path).opset_import\n"
        "    return next(entry.version for entry in imports if entry.domain in ('', 'ai.onnx'))"
    ),
    hints=(
        "onnx.load(path) gives the file; look at its fields, not at what was requested.",
        "opset_import is a list: a domain and a version in each entry.",
        "The standard operators have the empty domain; others may stand before or behind it.",
    ),
    judge=judge_opset,
    praise="what the file says, whatever was requested from the exporter.",
)

_GIVEN = 'artifacts = given("04.2")  # name -> (kind, cosine per image)\n'
THRESHOLD = Exercise(
    id="04.2",
    title="Which of these artifacts may leave the lab?",
    verb="choose the threshold that fits a precision, and judge by it",
    minutes=8,
    difficulty="medium",
    answer="passing",
    stub=_GIVEN + "passing = TODO  # the names of those that pass the parity gate",
    reference=(
        "from labutils.compare import THRESHOLDS\n\n" + _GIVEN + "passing = set()\n"
        "for name, (kind, cosines) in artifacts.items():\n"
        "    judged = cosines.min() if kind in ('ort_fp32', 'htp_fp16') else cosines.mean()\n"
        "    if judged >= THRESHOLDS[kind]:\n"
        "        passing.add(name)"
    ),
    hints=(
        "labutils.compare.THRESHOLDS has a threshold for each kind.",
        "Floats must be right on every image; what of a kind that rounds to codes?",
        "Float kinds are judged by their worst image, quantized ones by the mean.",
    ),
    judge=judge_threshold,
    praise="a threshold belongs to a precision, and so does the question mean or worst.",
    given=four_artifacts,
)

_COSINE = (
    "import numpy as np\n\n\n"
    "def cosine(a, b):\n"
    "    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))\n\n\n"
    "def departing(ours, theirs, limit):\n"
)
DEPARTURE = Exercise(
    id="04.3",
    title="Find the tensor at which a wrong conversion departs",
    verb="find the first node that computes something else",
    minutes=15,
    difficulty="stretch",
    answer="departing",
    stub=(
        "def departing(ours, theirs, limit):\n"
        "    # two dicts, tensor name -> array (n,), in the order of the graph\n"
        "    return TODO  # the name, or None when all stay within the limit"
    ),
    reference=(
        _COSINE + "    for name in ours:\n"
        "        if not cosine(ours[name], theirs[name]) >= limit:\n"
        "            return name\n"
        "    return None"
    ),
    hints=(
        "The cosine of two arrays: their product over the product of their lengths.",
        "Everything behind a fault is wrong as well; which of the wrong ones is the cause?",
        "Go through in order and stop at the first. Then think of NaN.",
    ),
    judge=judge_departure,
    praise="the cause and not its echo, NaN and turned signs included.",
)

EXERCISES = (OPSET, THRESHOLD, DEPARTURE)
