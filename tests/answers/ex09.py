"""Answers to the exercises of 09: a leak, numbers of classes, a schedule."""

import hashlib
import math

import numpy as np

from answers import right, wrong


@right("09.1")
def leaks(random):
    kind = random.choice(["sha256", "blake2b", "md5"])

    def pairwise(calibration, validation):
        found = []
        for name, picture in validation.items():
            if any(np.array_equal(picture, other) for other in calibration.values()):
                found.append(name)
        return found

    def hashed(calibration, validation):
        def digest(x):
            return hashlib.new(kind, str(x.shape).encode() + x.tobytes()).hexdigest()

        known = {digest(x) for x in calibration.values()}
        return [name for name in sorted(validation) if digest(validation[name]) in known]

    def subtracted(calibration, validation):
        def same(a, b):
            return a.shape == b.shape and not (a.astype(int) - b).any()

        return {
            n: x for n, x in validation.items() if any(same(x, y) for y in calibration.values())
        }

    yield "pairwise, a list", pairwise
    yield f"by {kind}, sorted", hashed
    yield "by differences, a dictionary", subtracted


@wrong("09.1")
def no_leaks(random):
    k = random.randint(3, 40)

    def keyed(key, chosen=lambda hit: hit):
        def find(calibration, validation):
            known = {key(x) for x in calibration.values()}
            return {name for name, x in validation.items() if chosen(key(x) in known)}

        return find

    def whole(x):
        return x.shape, x.tobytes()

    def in_place(calibration, validation):
        pairs = zip(calibration.values(), validation.items(), strict=False)
        return {name for x, (name, y) in pairs if np.array_equal(x, y)}

    def first_only(calibration, validation):
        found = {}
        for name, x in validation.items():
            found.setdefault(x.tobytes(), name)
        known = {x.tobytes() for x in calibration.values()}
        return {name for pixels, name in found.items() if pixels in known}

    def theirs(calibration, validation):
        known = {whole(x) for x in validation.values()}
        return {name for name, x in calibration.items() if whole(x) in known}

    def near(calibration, validation):
        return {
            name for name, x in validation.items()
            if any(x.shape == y.shape and np.allclose(x, y, atol=k) for y in calibration.values())
        }  # fmt: skip

    def clearing(calibration, validation):
        found = keyed(whole)(calibration, validation)
        for name in found:
            del validation[name]
        return found

    yield (
        "by name",
        lambda calibration, validation: set(calibration) & set(validation),
        "file names",
    )
    yield "by mean", keyed(lambda x: x.mean()), "mirror image"
    yield "by histogram", keyed(lambda x: tuple(np.bincount(x.ravel()))), "mirror image"
    yield "by bytes alone", keyed(lambda x: x.tobytes()), "wide"
    yield f"within {k}", near, "one value differs"
    yield "in the same place", in_place, "in another position"
    yield "each once", first_only, "you name it once"
    yield "names of calibration", theirs, "in calibration"
    yield "the fine ones", keyed(whole, lambda hit: not hit), "that are fine"
    yield "how many", lambda *parts: len(keyed(whole)(*parts)), "a set of file names"
    yield "deletes them", clearing, "writes into its input"
    yield "nothing", lambda calibration, validation: set(), "you do not name it"
    yield "everything", lambda calibration, validation: set(validation), "you name it"


@right("09.2")
def numbers(random):
    def by_loop(labels, folder, model):
        return [model.index(folder[k]) if folder[k] in model else -1 for k in labels]

    def by_masks(labels, folder, model):
        found = np.full(len(labels), -1)
        for number, name in enumerate(model):
            if name in folder:
                found[labels == folder.index(name)] = number
        return found

    def by_comparison(labels, folder, model):
        same = np.array(folder)[:, None] == np.array(model)[None]
        table = np.where(same.any(axis=1), same.argmax(axis=1), -1)
        return np.take(table, labels)

    yield "name by name, a list", by_loop
    yield "by masks", by_masks
    yield "by comparing all names", by_comparison


@wrong("09.2")
def no_numbers(random):
    stand_in = random.randint(1, 2)

    def table_of(row):
        return lambda labels, folder, model: np.array([row(n, folder, model) for n in folder])[
            labels
        ]

    def index(name, folder, model, names=None):
        names = model if names is None else names
        return names.index(name) if name in names else -1

    def other_way(labels, folder, model):
        return np.array([index(name, folder, model, folder) for name in model])[
            np.minimum(labels, len(model) - 1)
        ]

    def known_only(labels, folder, model):
        return np.array([model.index(folder[k]) for k in labels if folder[k] in model])

    def in_place(labels, folder, model):
        before = labels.copy()
        for number, name in enumerate(folder):
            labels[before == number] = index(name, folder, model)
        return labels

    def overwritten(labels, folder, model):
        found = labels.copy()
        for number, name in enumerate(folder):
            found[found == number] = index(name, folder, model)
        return found

    yield "as they were", lambda labels, folder, model: labels.copy(), "as they were"
    yield "the other way", other_way, "the other way"
    yield "sorted", table_of(lambda n, f, m: index(n, f, m, sorted(m))), "you sort"
    yield "unknown is 0", table_of(lambda n, f, m: max(0, index(n, f, m))), "no class bracket"
    yield (
        f"unknown is {stand_in}",
        table_of(lambda n, f, m: m.index(n) if n in m else stand_in),
        "no class bracket",
    )
    yield "unknown is left out", known_only, "(12,)"
    yield "names", lambda labels, f, m: [f[k] for k in labels], "numbers are expected"
    yield "counted from 1", table_of(lambda n, f, m: index(n, f, m) + 1), "is the wrong one"
    yield (
        "reversed",
        table_of(lambda n, f, m: len(m) - 1 - m.index(n) if n in m else -1),
        "is the wrong one",
    )
    yield "one by one, over itself", overwritten, ""
    yield "writes into the labels", in_place, "writes into its input"


@right("09.3")
def phases(random):
    def by_integers(step, steps):
        if 4 * step >= 3 * steps or step + 1 == steps:
            return "freeze all"
        return "observe" if 2 * step < steps else "freeze ranges"

    def by_share(step, steps):
        share = 1.0 if step == steps - 1 else step / steps
        names = ("observe", "freeze ranges", "freeze all")
        return names[(share >= 0.5) + (share >= 0.75)]

    def by_ceiling(step, steps):
        all_from = min(math.ceil(steps * 3 / 4), steps - 1)
        ranges_from = math.ceil(steps / 2)
        if step >= all_from:
            return "freeze all"
        return "freeze ranges" if step >= ranges_from else "observe"

    yield "in integers", by_integers
    yield "by its share", by_share
    yield "by the first steps", by_ceiling


@wrong("09.3")
def no_phases(random):
    fixed = random.randint(20, 90)

    def marks(half=0.5, late=0.75, last=True, rounded=lambda x: x, start=0, least=0):
        def phase(step, steps):
            at = step + start
            if at > rounded(late * steps) - 1e-9 + least or (last and step == steps - 1):
                return "freeze all"
            return "freeze ranges" if at > rounded(half * steps) - 1e-9 + least else "observe"

        return phase

    calls = []

    def counting(step, steps):
        calls.append(step)
        if calls.count(0) == 1 and step == 0:
            calls[:] = [0]
        return marks()(step if len(calls) < 400 else 0, steps)

    def swapped(step, steps):
        names = {"freeze ranges": "freeze all", "freeze all": "freeze ranges"}
        return names.get(found := marks()(step, steps), found)

    def thaws(step, steps):
        return "observe" if step == steps - 1 else marks()(step, steps)

    yield "the last one follows the marks alone", marks(last=False), "is the last"
    yield "rounded down", marks(rounded=math.floor), "before the mark"
    yield "rounded", marks(rounded=round), "the mark"
    yield "counted from 1", marks(start=1), "the mark"
    yield "after the mark", marks(least=2e-9), "exactly on the mark"
    yield "earlier", marks(half=0.4), "before the mark"
    yield "later", marks(late=0.9), "the mark"
    yield f"from step {fixed} on", lambda step, steps: marks()(step, 2 * fixed), ""
    yield "BatchNorm first", swapped, "BatchNorm stops before"
    yield "thaws at the end", thaws, "goes back"
    yield "counts its calls", counting, "remembers"
    yield "never", lambda step, steps: "observe", "freezes nothing"
    yield "numbers", lambda step, steps: int(2 * step >= steps), "name of a phase"
    yield "other words", lambda step, steps: "frozen", "three phases"
    yield "two phases", lambda step, steps: "freeze all" if 2 * step >= steps else "observe", ""
