"""Catalogued answers to the exercises of notebook 00."""

import numpy as np
import torch

from answers.catalogue import right, wrong

# --- 00.1 ----------------------------------------------------------------------------------------


@right("00.1")
def share(right, n):
    wrong = n - right
    return 1 - wrong / n


@right("00.1")
def share(right, n):
    return np.mean([1] * right + [0] * (n - right))


@right("00.1")
def share(right, n):
    return torch.tensor(right) / n


@wrong(
    "00.1",
    "share(3, 4) gives 75: that is per cent. A share lies between 0 and 1.",
)
def share(right, n):
    return 100 * right / n


@wrong(
    "00.1",
    "share(3, 4) gives 0: the digits after the point are lost. // rounds down.",
)
def share(right, n):
    return right // n


@wrong(
    "00.1",
    "share(3, 4) gives 0.25: that is the share of wrong answers.",
)
def share(right, n):
    return (n - right) / n


@wrong(
    "00.1",
    "share(95, 96) gives 0.99, which is near. Is something rounded, or counted that should not "
    "be? Leave the rounding to the code that prints the number.",
)
def share(right, n):
    return round(right / n, 2)


@wrong(
    "00.1",
    "a number is expected, but this is None (a forgotten return?).",
)
def share(right, n):
    right / n
