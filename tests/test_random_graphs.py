"""Networks drawn by seed, in every legal spelling: nothing raw, nothing wrong."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import random_graphs
import random_oddities

QUICK, MANY = 10, 500
# Those that change weights on the way, and by how much of the largest score.
CHANGED = {
    "float16 weights": 0.05,
    "bfloat16 weights": 0.2,
    "sparse weight": np.inf,
    "shared weights": np.inf,
}


def listed(wrong):
    return "\n".join(f"seed {seed}, {odd}: {faults}" for seed, (odd, faults) in wrong.items())


@pytest.mark.parametrize("name", random_oddities.ODDITIES)
def test_an_oddity_keeps_the_network(name):
    """What they are: another spelling of the same function, legal and run by ONNX Runtime."""
    since, change = random_oddities.ODDITIES[name]
    tried = 0
    for seed in range(40):
        model, (opset,) = random_graphs.network(seed, odd=False)
        if int(opset.split()[1]) < since:
            continue
        odd = onnx.ModelProto()
        odd.CopyFrom(model)
        if not change(odd, np.random.default_rng(seed)):
            continue
        onnx.checker.check_model(odd)
        expected = random_graphs.computed(model.SerializeToString())
        found = random_graphs.computed(odd.SerializeToString())
        most = CHANGED.get(name, 1e-5)
        assert np.abs(found - expected).max() <= most * np.abs(expected).max()
        tried += 1
        if tried == 3:
            return
    raise AssertionError(f"only {tried} networks have a place for it")


def test_a_seed_means_one_network():
    first, second = (random_graphs.network(5)[0].SerializeToString() for _ in range(2))
    assert first == second
    assert ort.InferenceSession(first).get_outputs()[0].name == "scores"


def test_a_wrong_function_is_noticed(tmp_path):
    """The judge is no rubber stamp: a lost factor of the last layer is found."""
    model, _ = random_graphs.network(3, odd=False)
    onnx.save(model, tmp_path / "right.onnx")
    expected = random_graphs.computed(str(tmp_path / "right.onnx"))
    weight = model.graph.initializer[-1]
    array = onnx.numpy_helper.to_array(weight) * np.float32(1.5)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    assert random_graphs._differs("it", expected, tmp_path / "right.onnx", 60) == []
    assert (
        "WRONG FUNCTION" in random_graphs._differs("it", expected, tmp_path / "wrong.onnx", 15)[0]
    )


def test_plain_networks_end_well():
    wrong = random_graphs.sweep(range(1, QUICK + 1), odd=False)
    assert not wrong, listed(wrong)


def test_networks_in_odd_spellings_end_well():
    wrong = random_graphs.sweep(range(QUICK))
    assert not wrong, listed(wrong)


@pytest.mark.sweep
def test_hundreds_of_networks_end_well():
    wrong = random_graphs.sweep(range(MANY))
    assert not wrong, listed(wrong)


@pytest.mark.sweep
@pytest.mark.htp
@pytest.mark.parametrize("odd", [False, True], ids=["plain", "odd"])
@pytest.mark.parametrize("seed", range(1, 11))
def test_a_network_becomes_a_dlc_or_is_refused_with_the_reason(seed, odd, tmp_path):
    model, _ = random_graphs.network(seed, odd=odd)
    assert not random_graphs.converted(model, tmp_path)
