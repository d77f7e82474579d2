"""The formulas, against their definitions, their limits and a simulation of their coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from labutils import metrics
from labutils.errors import UsageError

VALUES = st.floats(-1e6, 1e6, width=32)
TENSORS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=5), elements=VALUES)
LOGITS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 20), st.integers(2, 9)),
    elements=st.floats(-50, 50, width=32),
)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_solves_the_score_equation(counts):
    hits, n = counts
    share = metrics.Proportion(hits, n)
    low, high = share.interval
    assert 0 <= low <= share.value <= high <= 1
    assert high > low  # keeps a width at 0 % and 100 %
    for end in (low, high):  # the definition: |p - end| is z standard errors *of end*
        gap = metrics.Z95 * math.sqrt(end * (1 - end) / n)
        assert abs(abs(share.value - end) - gap) < 1e-7


def test_proportion_text_and_a_published_value():
    share = metrics.Proportion(1560, 1600)
    assert str(share) == "97.5 % [96.6, 98.2] (n=1600)"
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3: 81 of 263
    assert metrics.Proportion(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize("hits, n", [(0, 0), (3, 2), (-1, 4)])
def test_impossible_proportions_are_refused(hits, n):
    with pytest.raises(UsageError):
        metrics.Proportion(hits, n)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_difference_is_antisymmetric_and_contains_its_value(pairs):
    a, b = np.array(pairs, bool).T
    forward, backward = metrics.paired_difference(a, b), metrics.paired_difference(b, a)
    assert forward.value == pytest.approx(100 * (a.mean() - b.mean()), abs=1e-9)
    assert forward.value == -backward.value
    assert forward.interval == pytest.approx((-backward.interval[1], -backward.interval[0]))
    assert -100 <= forward.interval[0] <= forward.value <= forward.interval[1] <= 100
    assert forward.interval[1] > forward.interval[0]


def test_paired_interval_covers_the_truth_about_95_percent_of_the_time():
    # 400 images, int8 loses 1.5 points: 3 % of the images flip one way, 1.5 % the other
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1500):
        kind = rng.choice(4, size=400, p=[0.935, 0.03, 0.015, 0.02])
        result = metrics.paired_difference(kind <= 1, (kind == 0) | (kind == 2))
        covered += result.interval[0] <= 1.5 <= result.interval[1]
    assert 0.93 <= covered / 1500 <= 0.975


def test_pairing_is_sharper_than_two_separate_intervals():
    right = np.arange(1600) >= 40
    other = right.copy()
    other[40:56] = False  # one point lost, and only by these 16 images
    low, high = metrics.paired_difference(right, other).interval
    assert 0 < low < 1 < high
    first, second = metrics.Proportion(1560, 1600), metrics.Proportion(1544, 1600)
    assert second.interval[1] > first.interval[0]  # unpaired, the two would overlap


@given(LOGITS)
def test_softmax_is_a_distribution_that_keeps_order_and_ignores_shifts(logits):
    shares = metrics.softmax(logits)
    assert np.allclose(shares.sum(axis=1), 1)
    assert np.allclose(shares, metrics.softmax(logits.astype(np.float64) + 700))
    assert (shares.max(axis=1) == shares[np.arange(len(logits)), logits.argmax(axis=1)]).all()


@given(LOGITS, st.randoms(use_true_random=False))
def test_topk_accuracy_grows_with_k_and_reaches_one(logits, random):
    labels = np.array([random.randrange(logits.shape[1]) for _ in logits])
    hits = [metrics.accuracy(logits, labels, k).hits for k in range(1, logits.shape[1] + 1)]
    assert hits == sorted(hits)
    assert hits[-1] == len(logits)
    assert (metrics.topk(logits, 1)[:, 0] == logits.argmax(axis=1)).all()
    assert metrics.agreement(logits, logits).value == 1


def test_accuracy_and_agreement_count_what_they_say():
    logits = np.array([[3, 1, 0], [0, 1, 3], [1, 2, 0.0]])
    assert metrics.accuracy(logits, np.array([0, 0, 1])) == metrics.Proportion(2, 3)
    assert metrics.accuracy(logits, np.array([1, 0, 0]), k=2) == metrics.Proportion(2, 3)
    assert metrics.agreement(logits, -logits) == metrics.Proportion(0, 3)


@given(TENSORS, st.floats(2**-20, 2**20))
def test_cosine_ignores_scale_and_sees_sign(tensor, factor):
    tensor = tensor.astype(np.float64)
    assert metrics.cosine(tensor, tensor) == 1
    assert metrics.cosine(tensor, factor * tensor) == pytest.approx(1)
    if tensor.any():
        assert metrics.cosine(tensor, -tensor) == pytest.approx(-1)
        assert metrics.cosine(tensor, np.zeros_like(tensor)) == 0
    # activations of an untrained network can be this small: no underflow when squared
    tiny = np.sign(tensor) * 1e-200
    assert metrics.cosine(tiny, tiny) == pytest.approx(1)


def test_cosine_of_a_known_angle():
    assert metrics.cosine([1, 0], [1, 1]) == pytest.approx(math.sqrt(0.5))
    assert metrics.cosine(np.zeros(4), np.zeros(4)) == 1


@given(TENSORS, st.integers(1, 20))
def test_sqnr_loses_six_decibels_per_bit(tensor, bits):
    tensor = tensor.astype(np.float64)
    assert metrics.sqnr_db(tensor, tensor) == math.inf
    if tensor.any():
        noisy = tensor * (1 + 2.0**-bits)
        assert metrics.sqnr_db(tensor, noisy) == pytest.approx(20 * bits * math.log10(2), abs=1e-3)
        assert metrics.sqnr_db(np.zeros_like(tensor), tensor) == -math.inf


def test_what_has_no_meaning_is_refused():
    good = np.ones((2, 3))
    bad = np.array([[1.0, np.nan, 0], [np.inf, 0, 0]])
    cases = [
        (lambda: metrics.cosine(good, bad), "2 of 6 values are NaN or infinite"),
        (lambda: metrics.sqnr_db(bad, good), "NaN"),
        (lambda: metrics.agreement(good, bad), "NaN"),
        (lambda: metrics.agreement(good, good[:1]), "equal shapes"),
        (lambda: metrics.cosine(good, good.T), "one shape"),
        (lambda: metrics.cosine([], []), "Empty"),
        (lambda: metrics.topk(good, 4), "top-4 of 3"),
        (lambda: metrics.topk(good[0]), "(images, classes)"),
        (lambda: metrics.topk(np.ones((2, 3), int)), "floating point"),
        (lambda: metrics.accuracy(good, [0]), "labels of shape"),
        (lambda: metrics.accuracy(good, [0, 3]), "3 classes"),
        (lambda: metrics.accuracy(good, [0.0, 1.0]), "integer"),
        (lambda: metrics.paired_difference([True], [True, False]), "same images"),
        (lambda: metrics.paired_difference([1, 0], [0, 1]), "booleans"),
    ]
    for call, words in cases:
        with pytest.raises(UsageError) as caught:
            call()
        assert words in str(caught.value)
