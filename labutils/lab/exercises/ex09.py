"""Exercises of notebook 09: a leak between two parts, the order of classes, a schedule."""

from __future__ import annotations

from ..exercise import Exercise
from .phases import judge_phases
from .pictures import judge_leaks, judge_numbers

_LEAKS = "def find_leaks(calibration, validation):  # each: {file name: its pixels, an array}\n"
LEAKS = Exercise(
    id="09.1",
    title="Find the pictures that are in calibration and in validation",
    verb="find a leak between two parts of a folder",
    minutes=8,
    difficulty="easy",
    answer="find_leaks",
    stub=_LEAKS + "    return TODO  # the names in validation whose picture is in calibration, too",
    reference=(
        _LEAKS + "    known = {(x.shape, x.tobytes()) for x in calibration.values()}\n"
        "    return {name for name, x in validation.items() if (x.shape, x.tobytes()) in known}"
    ),
    hints=(
        "A file's name says nothing about what is in it.",
        "Two pictures are the same if all their values are, each in its place. np.array_equal "
        "compares two.",
        "Compare every picture of one part with every picture of the other. A set of bytes is "
        "faster, but bytes do not know how wide the picture is.",
    ),
    judge=judge_leaks,
    praise="the pixels decide, whatever the file names are.",
)

_NUMBERS = (
    "import numpy as np\n\n\n"
    "def renumber(labels, folder_classes, model_classes):  # an array, two lists of names\n"
)
NUMBERS = Exercise(
    id="09.2",
    title="Give a folder's labels the numbers of the model's outputs",
    verb="match the classes of a folder with the outputs of a model",
    minutes=8,
    difficulty="medium",
    answer="renumber",
    stub=_NUMBERS + "    return TODO  # an array: the model's numbers, -1 for a class it lacks",
    reference=(
        _NUMBERS + "    number = {name: i for i, name in enumerate(model_classes)}\n"
        "    table = [number.get(name, -1) for name in folder_classes]\n"
        "    return np.array(table)[labels]"
    ),
    hints=(
        "From a label to a name in the folder; from the name to a place in the model.",
        "Write down, once for each class of the folder, which output it is: a list.",
        "An array can be indexed with an array: one entry for each picture.",
    ),
    judge=judge_numbers,
    praise="names carry each label from one order to the other, and unknown classes stay unknown.",
)

_PHASE = "def phase(step, steps):  # step counts from 0; steps is the length of the run\n"
PHASE = Exercise(
    id="09.3",
    title="Write the schedule of a training: what is frozen, from which step on",
    verb="say which phase of a training a step belongs to, whatever was killed in between",
    minutes=10,
    difficulty="stretch",
    answer="phase",
    stub=_PHASE + '    return TODO  # "observe", "freeze ranges" or "freeze all"',
    reference=(
        _PHASE + "    if step >= 0.75 * steps or step == steps - 1:\n"
        '        return "freeze all"\n'
        '    return "freeze ranges" if step >= 0.5 * steps else "observe"'
    ),
    hints=(
        "Two marks divide the run. Ask first for the later one.",
        "Do not round the marks: of 5 steps, step 2 begins before the middle.",
        "In a run of three, no step comes after the second mark. Which one must be frozen anyway?",
    ),
    judge=judge_phases,
    praise="a function of two numbers: a run that was killed resumes as if nothing had happened.",
)

EXERCISES = (LEAKS, NUMBERS, PHASE)
