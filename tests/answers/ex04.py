"""Answers to the exercises of 04: an opset, a choice of artifacts, a search."""

import itertools

import numpy as np
import onnx
import torch

from answers import right, wrong
from labutils.compare import THRESHOLDS
from labutils.lab import exercises


def _imports(path):
    return [(entry.domain, entry.version) for entry in onnx.load(path).opset_import]


@right("04.1")
def opsets(random):
    def by_hand(path):
        model = onnx.ModelProto()
        model.ParseFromString(path.read_bytes())
        for entry in model.opset_import:
            if not entry.domain:
                return entry.version
        return None

    yield "by hand", by_hand
    yield "the shortest domain", lambda path: min(_imports(path))[1]
    yield "a dictionary", lambda path: np.int64(dict(_imports(path))[""])
    yield "a tensor", lambda path: torch.tensor([v for d, v in _imports(path) if d == ""])


@wrong("04.1")
def no_opsets(random):
    least = random.randint(5, 9)
    first = lambda path, test: next(  # noqa: E731
        (v for d, v in _imports(path) if test(d, v)), 0
    )
    versions = lambda path: [v for _, v in _imports(path)]  # noqa: E731
    yield (
        "whatever is not Microsoft's",
        lambda path: first(path, lambda d, v: d != "com.microsoft"),
        "ai.onnx.ml",
    )
    yield f"the first of at least {least}", lambda path: first(path, lambda d, v: v >= least), ""
    yield "the first", lambda path: versions(path)[0], "first operator set"
    yield "the last", lambda path: versions(path)[-1], "last operator set"
    yield "the highest", lambda path: max(versions(path)), "highest"
    yield "the lowest", lambda path: min(versions(path)), ""
    yield (
        "ONNX's or its machine learning",
        lambda path: first(path, lambda d, v: not d.startswith("com")),
        "ai.onnx.ml",
    )
    yield "the file format's", lambda path: onnx.load(path).ir_version, "file format"
    yield "this onnx's own", lambda path: onnx.defs.onnx_opset_version(), "read the file"
    yield "the sum", lambda path: sum(versions(path)), ""


@right("04.2")
def choices(random):
    passing = ["tiger.onnx", "otter.dlc", "bison.dlc"]
    random.shuffle(passing)
    yield "a frozen set", frozenset(passing)
    yield "an array", np.array(passing)
    yield "keys", dict.fromkeys(passing).keys()
    yield "values", dict(enumerate(passing)).values()
    yield "twice each", passing * 2


@wrong("04.2")
def no_choices(random):
    given = exercises.find("04.2").given()
    right = {"tiger.onnx", "otter.dlc", "bison.dlc"}
    mean = {name for name, (kind, c) in given.items() if c.mean() >= THRESHOLDS[kind]}
    worst = {name for name, (kind, c) in given.items() if c.min() >= THRESHOLDS[kind]}
    for n in range(len(given) + 1):
        for names in map(set, itertools.combinations(given, n)):
            if names == right:
                continue
            said = "good enough on every image" if names == worst else ""
            said = "whose mean" if names == mean else said
            if names < right and names != worst:
                said = "hold back a float" if "tiger.onnx" not in names else "more may"
            said = "none at all" if not names else said
            yield f"{sorted(names)}", names, said
    yield "a generator", (name for name in right), "only once"
    yield "yes and no", {name: name in right for name in given}, "yes or no"


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@right("04.3")
def searches(random):
    def by_unit_vectors(ours, theirs, limit):
        for name, a in ours.items():
            b = theirs[name]
            apart = a / np.linalg.norm(a) - b / np.linalg.norm(b)
            if not 1 - apart @ apart / 2 >= limit:
                return name
        return None

    def by_angle(ours, theirs, limit):
        angles = {n: np.arccos(np.clip(cosine(ours[n], theirs[n]), -1, 1)) for n in ours}
        return next((n for n, angle in angles.items() if not angle <= np.arccos(limit)), None)

    def in_torch(ours, theirs, limit):
        for name in ours:
            a, b = torch.from_numpy(ours[name]), torch.from_numpy(theirs[name])
            if torch.isnan(b).any() or torch.cosine_similarity(a, b, dim=0) < limit:
                return np.str_(name)
        return None

    def with_a_margin(ours, theirs, limit):
        for name, a in ours.items():
            b = theirs[name]
            if not (a * b).sum() / (np.sqrt((a**2).sum() * (b**2).sum()) + 1e-12) >= limit:
                return name
        return None

    yield "by the distance of unit vectors", by_unit_vectors
    yield "by the angle", by_angle
    yield "in torch", in_torch
    yield "with a margin against division by zero", with_a_margin


@wrong("04.3")
def no_searches(random):
    least = round(random.uniform(0.975, 0.995), 3)

    def by(measure, strict=False):
        def search(ours, theirs, limit):
            for name in ours:
                found = measure(ours[name], theirs[name])
                if not (found > limit if strict else found >= limit):
                    return name
            return None

        return search

    def relative(a, b):
        return 1 - np.linalg.norm(a - b) / np.linalg.norm(a)

    def fixed(ours, theirs, limit):
        return by(cosine)(ours, theirs, least)

    def changing(ours, theirs, limit):
        for name in ours:
            ours[name] /= np.linalg.norm(ours[name])
            if not cosine(ours[name], theirs[name]) >= limit:
                return name
        return None

    def leaves(ours, theirs, limit):
        return next((n for n in ours if cosine(ours[n], theirs[n]) < limit), None)

    def patched(a, b):
        return cosine(a, np.nan_to_num(b))

    yield "a correlation", by(lambda a, b: np.corrcoef(a, b)[0, 1]), "a constant was added"
    yield "a relative distance", by(relative), "what do you hold against it"
    yield f"a limit of its own, {least}", fixed, "your limit is fixed"
    yield "writes into a dictionary", changing, "everything else that reads that dictionary"
    yield "lets NaN pass", leaves, "full of NaN"
    yield "NaN made zero", by(patched), "one NaN"
    yield "strict", by(cosine, strict=True), "just the limit"
    yield "no sign", by(lambda a, b: abs(cosine(a, b))), "sign reversed"
    yield "the square", by(lambda a, b: cosine(a, b) ** 2), ""
    yield "an unscaled product", by(lambda a, b: a @ b / (a @ a)), "another length"
    yield "the largest distance", by(lambda a, b: 1 - abs(a - b).max()), ""
    yield "the last one", lambda a, b, t: by(cosine)(dict(reversed(a.items())), b, t), "logits"
    yield "by the alphabet", lambda a, b, t: by(cosine)(dict(sorted(a.items())), b, t), "earlier"
    yield "the text None", lambda a, b, t: by(cosine)(a, b, t) or "None", "None itself"
