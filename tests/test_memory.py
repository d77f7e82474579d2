"""What the simulator computed is computed once, and only for the same graph, chip and image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labutils import runtime
from labutils.runtime import qnn

GRAPHS = [
    qnn.Graph("a.dlc", {"soc_model": soc}, config, digest)
    for digest in ("one", "two")
    for soc in ("43", "57")
    for config in ({}, {"priority": "low"})
]


def computed(graph, item):
    return {"y": item["x"] + len(graph.options["soc_model"]) + GRAPHS.index(graph)}


@given(st.lists(st.tuples(st.integers(0, 7), st.lists(st.integers(0, 3), max_size=4)), max_size=6))
def test_outputs_are_those_of_the_graph_and_no_image_is_simulated_twice(calls):
    memory, simulated = qnn.Memory(), []
    for number, images in calls:
        graph = GRAPHS[number]

        def run(items, graph=graph):
            simulated.extend((GRAPHS.index(graph), float(item["x"][0])) for item in items)
            return [computed(graph, item) for item in items]

        items = [{"x": np.full(2, image, np.float32)} for image in images]
        found = memory.complete(graph, items, run)
        assert [f["y"].tolist() for f in found] == [computed(graph, i)["y"].tolist() for i in items]
    asked = {(number, float(image)) for number, images in calls for image in images}
    assert sorted(simulated) == sorted(asked)


@pytest.mark.htp
@pytest.mark.slow
def test_a_copy_of_a_file_is_known_and_another_chip_is_not(small_onnx, inputs, tmp_path):
    memory, images = qnn.Memory(), inputs(3, 64)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(small_onnx(17).read_bytes())
    calls = []

    def watched(file, soc):
        runner = runtime.connect(file, "htp", soc=soc, memory=memory)
        simulate = runner._simulate
        runner._simulate = lambda items: calls.append(len(items)) or simulate(items)
        return runner

    with watched(small_onnx(17), "SM8550") as first:
        expected = first.run(images[:2])
    with watched(copy, "SM8550") as again, runtime.connect(copy, "htp") as plain:
        assert np.array_equal(again.run(images), plain.run(images))
        assert np.array_equal(again.run(images)[:2], expected)
    with watched(copy, "SM8650") as other:
        other.run(images[:1])
    assert calls == [2, 1, 1]
