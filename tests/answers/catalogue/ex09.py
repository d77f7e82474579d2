"""Catalogued answers to the exercises of notebook 09."""

import numpy as np

from answers.catalogue import right, wrong

# --- 09.1 ----------------------------------------------------------------------------------------


@right("09.1")
def find_leaks(calibration, validation):
    return {
        name
        for name, x in validation.items()
        if any(np.array_equal(x, y) for y in calibration.values())
    }


@right("09.1")
def find_leaks(calibration, validation):
    known = [x.tolist() for x in calibration.values()]
    return [name for name in validation if validation[name].tolist() in known]


@wrong(
    "09.1",
    "you compare file names. A copy has another name, and two cameras use the same names for "
    "different pictures.",
)
def find_leaks(calibration, validation):
    return set(calibration) & set(validation)


@wrong(
    "09.1",
    "nut/m.png is not in calibration: a mirror image has the same values as the picture, in other "
    "places.",
)
def find_leaks(calibration, validation):
    sums = [x.sum() for x in calibration.values()]
    return {name for name, x in validation.items() if x.sum() in sums}


@wrong(
    "09.1",
    "nut/g.png is not in calibration: two plain gray pictures have the same values; one is wide, "
    "the other high.",
)
def find_leaks(calibration, validation):
    known = {x.tobytes() for x in calibration.values()}
    return {name for name, x in validation.items() if x.tobytes() in known}


@wrong(
    "09.1",
    "nut/a.bmp shows what a picture of calibration shows, to the last value, and you do not name "
    "it. It is in another position and has another name.",
)
def find_leaks(calibration, validation):
    pairs = zip(calibration.values(), validation)
    return {name for x, name in pairs if np.array_equal(x, validation[name])}


@wrong(
    "09.1",
    "you name those that are fine, and not those that leak.",
)
def find_leaks(calibration, validation):
    known = [x.tolist() for x in calibration.values()]
    return [name for name, x in validation.items() if x.tolist() not in known]


@wrong(
    "09.1",
    "bolt/00.png is a name in calibration; name what must leave validation.",
)
def find_leaks(calibration, validation):
    others = [x.tolist() for x in validation.values()]
    return [name for name, x in calibration.items() if x.tolist() in others]


@wrong("09.1", "a set of file names is expected, but this is 2.")
def find_leaks(calibration, validation):
    known = [x.tolist() for x in calibration.values()]
    return sum(x.tolist() in known for x in validation.values())


# --- 09.2 ----------------------------------------------------------------------------------------


@right("09.2")
def renumber(labels, folder_classes, model_classes):
    found = []
    for label in labels:
        name = folder_classes[label]
        found.append(model_classes.index(name) if name in model_classes else -1)
    return np.array(found)


@right("09.2")
def renumber(labels, folder_classes, model_classes):
    place = dict(zip(model_classes, range(len(model_classes))))
    return np.array([place.get(folder_classes[k], -1) for k in labels])


@wrong("09.2", "the labels are as they were: the folder's own numbers.")
def renumber(labels, folder_classes, model_classes):
    return labels


@wrong(
    "09.2",
    "you go the other way: from the model's numbers to the folder's. With two classes exchanged "
    "that is the same, with three in a circle it is not.",
)
def renumber(labels, folder_classes, model_classes):
    table = [folder_classes.index(name) if name in folder_classes else -1 for name in model_classes]
    return np.array(table)[labels]


@wrong("09.2", "you sort the model's names. Its outputs have their own order: keep it.")
def renumber(labels, folder_classes, model_classes):
    ordered = sorted(model_classes)
    return np.array([ordered.index(folder_classes[k]) for k in labels])


@wrong(
    "09.2",
    "the model has no class bracket, and you number it 0: no answer can be right there.",
)
def renumber(labels, folder_classes, model_classes):
    table = dict.fromkeys(folder_classes, 0)
    table |= {name: i for i, name in enumerate(model_classes)}
    return np.array([table[folder_classes[k]] for k in labels])


@wrong("09.2", "numbers are expected, as the model's outputs count, not the names.")
def renumber(labels, folder_classes, model_classes):
    return [folder_classes[k] for k in labels]


@wrong("09.2", "your function raised ValueError: 'bracket' is not in list")
def renumber(labels, folder_classes, model_classes):
    return np.array([model_classes.index(folder_classes[k]) for k in labels])


# --- 09.3 ----------------------------------------------------------------------------------------


@right("09.3")
def phase(step, steps):
    behind = step / steps
    if behind >= 0.75 or step + 1 >= steps:
        return "freeze all"
    if behind >= 0.5:
        return "freeze ranges"
    return "observe"


@right("09.3")
def phase(step, steps):
    left = steps - step
    if left <= max(1, steps / 4):
        return "freeze all"
    return "freeze ranges" if left <= steps / 2 else "observe"


@wrong(
    "09.3",
    "in a run of 3, step 2 is the last, and is not frozen: the file would hold ranges that no step "
    "was trained with. Short runs have a last step, too.",
)
def phase(step, steps):
    if step / steps >= 0.75:
        return "freeze all"
    return "freeze ranges" if step / steps >= 0.5 else "observe"


@wrong(
    "09.3",
    "in a run of 5, step 2 comes before the mark, and you say 'freeze ranges'. Compare numbers "
    "that are not rounded, and count from 0.",
)
def phase(step, steps):
    if step >= int(0.75 * steps) or step == steps - 1:
        return "freeze all"
    return "freeze ranges" if step >= int(0.5 * steps) else "observe"


@wrong(
    "09.3",
    "in a run of 100, step 50 is exactly on the mark: a phase begins with it, and not with the "
    "next one.",
)
def phase(step, steps):
    if step / steps > 0.75 or step == steps - 1:
        return "freeze all"
    return "freeze ranges" if step / steps > 0.5 else "observe"


@wrong(
    "09.3",
    "BatchNorm stops before the ranges do: the ranges would follow what has stopped.",
)
def phase(step, steps):
    if step >= 0.75 * steps:
        return "freeze ranges"
    return "freeze all" if step >= 0.5 * steps else "observe"


@wrong("09.3", "a run of 100 freezes nothing at all.")
def phase(step, steps):
    return "observe"


@wrong(
    "09.3",
    "there are three phases, 'observe', 'freeze ranges', 'freeze all', and yours says 'frozen'.",
)
def phase(step, steps):
    return "frozen" if step >= steps / 2 else "observe"


@wrong("09.3", "the name of a phase is expected, but this is False.")
def phase(step, steps):
    return step >= steps / 2
