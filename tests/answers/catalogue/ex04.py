"""Catalogued answers to the exercises of notebook 04."""

import numpy as np
import onnx

from answers.catalogue import right, right_value, wrong, wrong_value
from labutils import metrics, targets
from labutils.compare import THRESHOLDS
from labutils.lab.lesson import given

# --- 04.1 ----------------------------------------------------------------------------------------


@right("04.1")
def opset_of(path):
    return targets.check(path, "snpe-2.7").opset


@right("04.1")
def opset_of(path):
    return {o.domain: o.version for o in onnx.load(path).opset_import}[""]


@wrong(
    "04.1",
    "you took the first operator set; their order in the file means nothing.",
)
def opset_of(path):
    return onnx.load(path).opset_import[0].version


@wrong(
    "04.1",
    "you took the highest version. Another domain counts for itself, and may be ahead.",
)
def opset_of(path):
    return max(o.version for o in onnx.load(path).opset_import)


@wrong(
    "04.1",
    "you took the last operator set; their order in the file means nothing.",
)
def opset_of(path):
    return onnx.load(path).opset_import[-1].version


@wrong(
    "04.1",
    "a file imports the standard operators and ai.onnx.ml, and you say 3: the version of "
    "ai.onnx.ml. Whose version do you return, and why that?",
)
def opset_of(path):
    imports = onnx.load(path).opset_import
    return next(o.version for o in imports if o.domain != "com.microsoft")


@wrong(
    "04.1",
    "8 is the version of the file format (IR), not that of the operators.",
)
def opset_of(path):
    return onnx.load(path).ir_version


@wrong(
    "04.1",
    "three files of three opsets, and you say 17 to each: read the file.",
)
def opset_of(path):
    return 17


@wrong(
    "04.1",
    "you say 12 to a file that was exported at another opset.",
)
def opset_of(path):
    return max(o.version for o in onnx.load(path).opset_import) + 1


# --- 04.2 ----------------------------------------------------------------------------------------


@right_value("04.2")
def _():
    return ["tiger.onnx", "otter.dlc", "bison.dlc"]


@right_value("04.2")
def _():
    judge = {"ort_fp32": np.min, "htp_fp16": np.min, "htp_a16w8": np.mean, "htp_int8": np.mean}
    return tuple(n for n, (k, c) in given("04.2").items() if judge[k](c) >= THRESHOLDS[k])


@wrong_value(
    "04.2",
    "those are the ones whose mean is good enough. Where the arithmetic is meant to be the "
    "same, one bad image is a fault.",
)
def _():
    return {n for n, (k, c) in given("04.2").items() if c.mean() >= THRESHOLDS[k]}


@wrong_value(
    "04.2",
    "those are the ones that are good enough on every image. A quantized network has one that "
    "is far off, and the more images you look at, the worse it gets.",
)
def _():
    return {n for n, (k, c) in given("04.2").items() if c.min() >= THRESHOLDS[k]}


@wrong_value(
    "04.2",
    "what you name may go, and more may: a kind that rounds to codes is not held back for its "
    "worst image. Has each been held against its own threshold?",
)
def _():
    return {
        n
        for n, (k, c) in given("04.2").items()
        if (c.mean() if k == "htp_int8" else c.min()) >= THRESHOLDS[k]
    }


@wrong_value(
    "04.2",
    "not all of them pass.",
)
def _():
    return given("04.2").keys()


@wrong_value(
    "04.2",
    "a float artifact that is far off on one image may not go: where the arithmetic is meant to"
    " be the same, one bad image is a fault.",
)
def _():
    return {n for n, (k, c) in given("04.2").items() if c.mean() >= 0.99}


@wrong_value(
    "04.2",
    "those are the ones that fail; name those that pass.",
)
def _():
    return {"heron.dlc", "lemur.dlc"}


@wrong_value(
    "04.2",
    "there is no artifact called 'tiger'.",
)
def _():
    return {"tiger"}


# --- 04.3 ----------------------------------------------------------------------------------------


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@right("04.3")
def departing(ours, theirs, limit):
    def bad(name):
        t = theirs[name]
        return not np.isfinite(t).all() or metrics.cosine(ours[name], t) < limit

    return next(filter(bad, ours), None)


@right("04.3")
def departing(ours, theirs, limit):
    names = [n for n in ours if not cosine(ours[n], theirs[n]) >= limit]
    return names[0] if names else None


@wrong(
    "04.3",
    "that is the tensor that is furthest off. It inherited that: find the cause.",
)
def departing(ours, theirs, limit):
    return min(ours, key=lambda name: cosine(ours[name], theirs[name]))


@wrong(
    "04.3",
    "a tensor full of NaN passes with you: every comparison with NaN is false, so ask whether "
    "it stays within the limit, not whether it leaves it.",
)
def departing(ours, theirs, limit):
    for name in ours:
        if cosine(ours[name], theirs[name]) < limit:
            return name


@wrong(
    "04.3",
    "NaN counts as departed, and your function stops there with an error: ask for NaN before "
    "you compare.",
)
def departing(ours, theirs, limit):
    for name in ours:
        if not metrics.cosine(ours[name], theirs[name]) >= limit:
            return name


@wrong(
    "04.3",
    "the logits are where a fault is noticed, not where it began.",
)
def departing(ours, theirs, limit):
    for name in reversed(ours):
        if not cosine(ours[name], theirs[name]) >= limit:
            return name


@wrong(
    "04.3",
    "that is a position; the name of the tensor tells where to look.",
)
def departing(ours, theirs, limit):
    for i, name in enumerate(ours):
        if not cosine(ours[name], theirs[name]) >= limit:
            return i


@wrong(
    "04.3",
    "a tensor to which a constant was added has another direction, and passes with you. What do"
    " you subtract before you compare?",
)
def departing(ours, theirs, limit):
    for name in ours:
        if not np.corrcoef(ours[name], theirs[name])[0, 1] >= limit:
            return name


@wrong(
    "04.3",
    "with a limit of 0.9 you name a tensor whose cosine is 0.97, or miss one below. The limit "
    "is a cosine; what do you hold against it?",
)
def departing(ours, theirs, limit):
    for name in ours:
        off = np.linalg.norm(ours[name] - theirs[name])
        if not off <= (1 - limit) * np.linalg.norm(ours[name]):
            return name


@wrong(
    "04.3",
    "your limit is fixed: with another one, another tensor is the first.",
)
def departing(ours, theirs, limit):
    for name in ours:
        if not np.array_equal(ours[name], theirs[name]):
            return name


@wrong(
    "04.3",
    "you call a departure what lies within the limit: rounding is allowed.",
)
def departing(ours, theirs, limit):
    for name in ours:
        if not cosine(ours[name], theirs[name]) >= limit * 1.01:
            return name
