"""Exercises of notebook 04: trusting a file only after reading and running it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..exercise import Exercise, NotYet, Wrong, call, names, shown, whole

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


_BEHIND = (("com.example", 20), ("ai.onnx.ml", 3))  # neither the last nor the highest is asked for


def _judge_opset(answer: Any) -> None:
    what = "a whole number"
    foreign = ("com.microsoft", 1)
    with tempfile.TemporaryDirectory(prefix="labutils-") as name:
        folder = Path(name)
        found = {n: whole(call(answer, _file(folder, n)), what) for n in (11, 15, 18)}
        mixed = whole(call(answer, _file(folder, 15, (foreign,))), what)
        several = whole(call(answer, _file(folder, 15, behind=_BEHIND)), what)
    if set(found.values()) == {8}:
        raise NotYet("8 is the version of the file format (IR), not that of the operators.")
    if len(set(found.values())) == 1:
        raise NotYet(
            f"three files of three opsets, and you say {found[11]} to each: read the file."
        )
    wrong = [n for n in found if found[n] != n]
    if wrong:
        raise NotYet(f"you say {found[wrong[0]]} to a file that was exported at another opset.")
    if mixed == foreign[1]:
        raise NotYet("a file may import several operator sets; you took the one of another domain.")
    if mixed != 15:
        raise NotYet(f"a file that imports two operator sets confuses you: {mixed}.")
    if several == _BEHIND[0][1]:
        raise NotYet(
            "you took the highest version. Another domain counts for itself, and may be ahead."
        )
    if several == _BEHIND[1][1]:
        raise NotYet("you took the last operator set; their order in the file means nothing.")
    if several != 15:
        raise NotYet(f"a file that imports three operator sets confuses you: {several}.")


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


def _judge_threshold(answer: Any) -> None:
    from ..compare import THRESHOLDS

    artifacts = four_artifacts()
    found = names(answer)
    unknown = found - set(artifacts)
    if unknown:
        raise NotYet(f"there is no artifact called {shown(min(unknown))}.")
    limits = {name: THRESHOLDS[kind] for name, (kind, _) in artifacts.items()}
    worst = {n for n, (_, cosines) in artifacts.items() if cosines.min() >= limits[n]}
    mean = {n for n, (_, cosines) in artifacts.items() if cosines.mean() >= limits[n]}
    floats = {n for n, (kind, _) in artifacts.items() if kind in ("ort_fp32", "htp_fp16")}
    right = (worst & floats) | (mean - floats)
    if found == right:
        return
    if found == set(artifacts) - right:
        raise NotYet("those are the ones that fail; name those that pass.")
    if found == mean:
        raise NotYet(
            "you judge all by their mean. Where the arithmetic is meant to be the same, one bad "
            "image is a fault."
        )
    if found == worst:
        raise NotYet(
            "you judge all by their worst image. A quantized network has one that is far off, and "
            "the more images you look at, the worse it gets."
        )
    if found == set(artifacts):
        raise NotYet("not all of them pass.")
    if right & floats <= found < right:
        raise NotYet(
            "none of these must stay behind, but one more may go: a kind that rounds to codes was "
            "judged by its worst image."
        )
    raise NotYet("not these. Has each kind been held against its own threshold?")


def _tensors(*names_: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.normal(size=64) for name in names_}


def _turned(tensor: np.ndarray, cosine: float) -> np.ndarray:
    """Return a tensor at exactly this cosine from `tensor`, of its length."""
    other = np.random.default_rng(1).normal(size=tensor.shape)
    other -= tensor * (other @ tensor) / (tensor @ tensor)
    other *= np.linalg.norm(tensor) / np.linalg.norm(other)
    return cosine * tensor + np.sqrt(1 - cosine**2) * other


def _judge_departure(answer: Any) -> None:
    ours = _tensors("stem", "expand", "act", "project", "add", "logits")
    equal = {name: tensor.copy() for name, tensor in ours.items()}
    one = {**equal, "expand": _turned(ours["expand"], 0.97), "act": _turned(ours["act"], 0.3)}
    one |= {"project": _turned(ours["project"], 0.03), "logits": _turned(ours["logits"], 0.2)}
    broken = {**equal, "act": np.full(64, np.nan), "logits": _turned(ours["logits"], 0.5)}
    rounded = {**equal, "stem": _turned(ours["stem"], 0.9995)}

    def ask(theirs: dict[str, np.ndarray], limit: float = 0.99) -> Any:
        copies = [{k: v.copy() for k, v in d.items()} for d in (ours, theirs)]
        with np.errstate(all="ignore"):
            return call(lambda: _Told(answer(*copies, limit))).value

    found = ask(one)
    _refuse_other_places(found)
    if ask(one, 0.9) == "expand":
        raise NotYet("your limit is fixed: with another one, another tensor is the first.")
    if ask(rounded) is not None:
        raise NotYet("you call a departure what lies within the limit: rounding is allowed.")
    if ask(equal) is not None:
        raise NotYet(f"when all tensors are equal you return {shown(ask(equal))}.")
    try:
        at_nan = ask(broken)
    except NotYet as error:  # labutils.metrics refuses NaN, and its advice is for another case
        raise NotYet(
            "NaN counts as departed, and your function stops there with an error: ask for NaN "
            "before you compare."
        ) from error
    if at_nan != "act":
        raise NotYet(
            "a tensor full of NaN passes with you: every comparison with NaN is false, so ask "
            "whether it stays within the limit, not whether it leaves it."
        )
    if ask({**equal, "add": -ours["add"]}) != "add":
        raise NotYet("a tensor with its sign turned round is called equal by your function.")


class _Told:
    """Carries a returned None through `call`, which takes None for an answer like any other."""

    def __init__(self, value: Any) -> None:
        self.value = call(lambda: value)


def _refuse_other_places(found: Any) -> None:
    if isinstance(found, int | np.integer):
        raise NotYet("that is a position; the name of the tensor tells where to look.")
    if found == "project":
        raise NotYet("that is the tensor that is furthest off. It inherited that: find the cause.")
    if found == "logits":
        raise NotYet("the logits are where a fault is noticed, not where it began.")
    if found is None:
        raise NotYet("you find no departure where four tensors depart.")
    if found == "act":
        raise NotYet("an earlier tensor is below the limit already.")
    if found != "expand":
        raise NotYet(f"{shown(found)} agrees in both, or is no tensor of the two.")


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
        "onnx.load(path) gives the file; look at its fields, not at what was asked for.",
        "opset_import is a list: a domain and a version in each entry.",
        "The standard operators have the empty domain; others may stand before or behind it.",
    ),
    right=(
        "from labutils import targets\n\n"
        "def opset_of(path):\n"
        "    return targets.check(path, 'snpe-2.7').opset",
        "import onnx\n\n"
        "def opset_of(path):\n"
        "    return {o.domain: o.version for o in onnx.load(path).opset_import}['']",
    ),
    wrong=(
        Wrong(
            "import onnx\n\n"
            "def opset_of(path):\n"
            "    return onnx.load(path).opset_import[0].version",
            "a file may import several operator sets; you took the one of another domain.",
        ),
        Wrong(
            "import onnx\n\n"
            "def opset_of(path):\n"
            "    return max(o.version for o in onnx.load(path).opset_import)",
            "you took the highest version. Another domain counts for itself, and may be ahead.",
        ),
        Wrong(
            "import onnx\n\n"
            "def opset_of(path):\n"
            "    return onnx.load(path).opset_import[-1].version",
            "you took the last operator set; their order in the file means nothing.",
        ),
        Wrong(
            "import onnx\n\ndef opset_of(path):\n    return onnx.load(path).ir_version",
            "8 is the version of the file format (IR), not that of the operators.",
        ),
        Wrong(
            "def opset_of(path):\n    return 17",
            "three files of three opsets, and you say 17 to each: read the file.",
        ),
        Wrong(
            "import onnx\n\n"
            "def opset_of(path):\n"
            "    return max(o.version for o in onnx.load(path).opset_import) + 1",
            "you say 12 to a file that was exported at another opset.",
        ),
    ),
    judge=_judge_opset,
    praise="the file's own word, whatever was asked of the exporter.",
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
    right=(
        "passing = ['tiger.onnx', 'otter.dlc', 'bison.dlc']",
        "from labutils.compare import THRESHOLDS\n"
        "import numpy as np\n"
        "judge = {'ort_fp32': np.min, 'htp_fp16': np.min, 'htp_a16w8': np.mean, 'htp_int8': "
        "np.mean}\n"
        "passing = tuple(n for n, (k, c) in given('04.2').items() if judge[k](c) >= THRESHOLDS[k])",
    ),
    wrong=(
        Wrong(
            "from labutils.compare import THRESHOLDS\n"
            "passing = {n for n, (k, c) in given('04.2').items() if c.mean() >= THRESHOLDS[k]}",
            "you judge all by their mean. Where the arithmetic is meant to be the same, one bad "
            "image is a fault.",
        ),
        Wrong(
            "from labutils.compare import THRESHOLDS\n"
            "passing = {n for n, (k, c) in given('04.2').items() if c.min() >= THRESHOLDS[k]}",
            "you judge all by their worst image. A quantized network has one that is far off, and "
            "the more images you look at, the worse it gets.",
        ),
        Wrong(
            "from labutils.compare import THRESHOLDS\n"
            "passing = {n for n, (k, c) in given('04.2').items()\n"
            "           if (c.mean() if k == 'htp_int8' else c.min()) >= THRESHOLDS[k]}",
            "none of these must stay behind, but one more may go: a kind that rounds to codes was "
            "judged by its worst image.",
        ),
        Wrong("passing = given('04.2').keys()", "not all of them pass."),
        Wrong(
            "passing = {n for n, (k, c) in given('04.2').items() if c.mean() >= 0.99}",
            "not these. Has each kind been held against its own threshold?",
        ),
        Wrong(
            "passing = {'heron.dlc', 'lemur.dlc'}",
            "those are the ones that fail; name those that pass.",
        ),
        Wrong("passing = {'tiger'}", "there is no artifact called 'tiger'."),
    ),
    judge=_judge_threshold,
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
    right=(
        "from labutils import metrics\n"
        "import numpy as np\n\n"
        "def departing(ours, theirs, limit):\n"
        "    def bad(name):\n"
        "        t = theirs[name]\n"
        "        return not np.isfinite(t).all() or metrics.cosine(ours[name], t) < limit\n\n"
        "    return next(filter(bad, ours), None)",
        _COSINE + "    names = [n for n in ours if not cosine(ours[n], theirs[n]) >= limit]\n"
        "    return names[0] if names else None",
    ),
    wrong=(
        Wrong(
            _COSINE + "    return min(ours, key=lambda name: cosine(ours[name], theirs[name]))",
            "that is the tensor that is furthest off. It inherited that: find the cause.",
        ),
        Wrong(
            _COSINE + "    for name in ours:\n"
            "        if cosine(ours[name], theirs[name]) < limit:\n"
            "            return name",
            "a tensor full of NaN passes with you: every comparison with NaN is false, so ask "
            "whether it stays within the limit, not whether it leaves it.",
        ),
        Wrong(
            "from labutils import metrics\n\n"
            "def departing(ours, theirs, limit):\n"
            "    for name in ours:\n"
            "        if not metrics.cosine(ours[name], theirs[name]) >= limit:\n"
            "            return name",
            "NaN counts as departed, and your function stops there with an error: ask for NaN "
            "before you compare.",
        ),
        Wrong(
            _COSINE + "    for name in reversed(ours):\n"
            "        if not cosine(ours[name], theirs[name]) >= limit:\n"
            "            return name",
            "the logits are where a fault is noticed, not where it began.",
        ),
        Wrong(
            _COSINE + "    for i, name in enumerate(ours):\n"
            "        if not cosine(ours[name], theirs[name]) >= limit:\n"
            "            return i",
            "that is a position; the name of the tensor tells where to look.",
        ),
        Wrong(
            _COSINE + "    for name in ours:\n"
            "        if not np.array_equal(ours[name], theirs[name]):\n"
            "            return name",
            "your limit is fixed: with another one, another tensor is the first.",
        ),
        Wrong(
            _COSINE + "    for name in ours:\n"
            "        if not cosine(ours[name], theirs[name]) >= limit * 1.01:\n"
            "            return name",
            "you call a departure what lies within the limit: rounding is allowed.",
        ),
    ),
    judge=_judge_departure,
    praise="the cause and not its echo, NaN and turned signs included.",
)

EXERCISES = (OPSET, THRESHOLD, DEPARTURE)
