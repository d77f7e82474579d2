"""Answers to 00.1: a share."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch

from answers import right, wrong


@right("00.1")
def shares(random):
    k = random.randint(2, 9)
    yield "a fraction", lambda right, n: Fraction(right, n)
    yield "a decimal", lambda right, n: Decimal(right) / n
    yield "numpy's float32", lambda right, n: np.float32(right) / np.float32(n)
    yield "a tensor of one element", lambda right, n: torch.tensor([right / n])
    yield "an array without dimensions", lambda right, n: np.array(right) / n
    yield f"both times {k}", lambda right, n: (k * right) / (k * n)
    yield "a loop", lambda right, n: sum(1 / n for _ in range(right))

    def talkative(right, n):
        print("computing")
        return right / n

    yield "one that prints", talkative


@wrong("00.1")
def not_shares(random):
    k, digits = random.randint(1, 5), random.randint(1, 3)
    yield "per cent", lambda right, n: np.float32(100 * right / n), "per cent"
    yield f"rounded to {digits} digits", lambda right, n: round(right / n, digits), "rounded"
    yield f"{k} too many", lambda right, n: right / (n + k), ""
    yield "Laplace's rule", lambda right, n: (right + 1) / (n + 2), ""
    yield "odds", lambda right, n: right / max(n - right, 1), ""
    yield "turned round", lambda right, n: n / max(right, 1), ""
    yield "the count", lambda right, n: right, ""
    yield "whole numbers", lambda right, n: Fraction(right // n), "// rounds down"
    yield "the share of wrong ones", lambda right, n: Fraction(n - right, n), "wrong answers"
    yield "text", lambda right, n: f"{right / n:.2f}", "text"
    yield "truth", lambda right, n: right == n, "number"
