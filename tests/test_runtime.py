"""Runners: the same images through torch, ONNX Runtime and the HTP simulator."""

import known_wrong
import numpy as np
import onnx
import pytest

from labutils import dlc, metrics, runtime
from labutils.errors import ConvertError, ModelFileError, UnknownNameError, UsageError


def test_torch_and_onnxruntime_agree_and_say_what_they_are(small, small_onnx, inputs):
    batch = inputs(5, 64)
    path = small_onnx(17)
    with runtime.connect(small) as torch_runner, runtime.connect(path) as ort_runner:
        expected, found = torch_runner.run(batch), ort_runner.run(batch)
        assert torch_runner.runtime.startswith("PyTorch 2.") and torch_runner.file is None
        assert ort_runner.runtime.startswith("ONNX Runtime 1.") and ort_runner.file == path
    assert expected.shape == found.shape == (5, 16) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_module_in_training_mode_is_run_in_evaluation_mode(small, inputs):
    expected = runtime.connect(small).run(inputs(2, 64))
    np.testing.assert_array_equal(runtime.connect(small.train()).run(inputs(2, 64)), expected)


def test_images_do_not_depend_on_their_batch(small_onnx, inputs):
    with runtime.connect(small_onnx(17), optimize=False, threads=1) as runner:
        together = runner.run(inputs(3, 64))
        alone = [runner.run(inputs(3, 64)[i : i + 1])[0] for i in range(3)]
        assert "unoptimized" in runner.runtime
    np.testing.assert_array_equal(together, alone)


@pytest.mark.htp
def test_the_htp_computes_float_graphs_in_float16(small_onnx, inputs):
    batch = inputs(3, 64)
    with runtime.connect(small_onnx(17)) as reference:
        expected = reference.run(batch)
    with runtime.connect(small_onnx(17), "htp", soc="SM8650") as runner:
        found = runner.run(batch)
        assert runner.runtime.startswith("HTP simulator (QNN 2.") and "SM8650" in runner.runtime
        assert runner.file == small_onnx(17)
        np.testing.assert_array_equal(runner.run(batch[1:2]), found[1:2])  # order is kept
    assert found.shape == (3, 16) and found.dtype == np.float32
    assert metrics.cosine(expected, found) > 0.999
    assert not np.array_equal(expected, found)  # float16, not a quiet step on the CPU


@pytest.mark.htp
def test_all_outputs_of_a_graph_come_by_name(small_onnx, inputs, tmp_path):
    model = onnx.load(str(small_onnx(17)))
    inner = next(n for n in model.graph.node if n.op_type == "HardSwish").output[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(inner, 1, None))
    path = tmp_path / "exposed.onnx"
    onnx.save(model, str(path))
    with runtime.connect(path) as reference, runtime.connect(path, "htp") as runner:
        expected, found = reference.tensors(inputs(2, 64)), runner.tensors(inputs(2, 64))
    assert set(expected) == set(found) == {"logits", inner}
    assert found[inner].shape == expected[inner].shape == (2, 16, 32, 32)
    assert metrics.cosine(expected[inner], found[inner]) > 0.999


@pytest.mark.htp
@pytest.mark.parametrize("build", known_wrong.ALL, ids=lambda build: build.__name__)
def test_the_known_wrong_conversions_convert_and_are_wrong(build, tmp_path):
    path, batch = build(tmp_path)
    with runtime.connect(path) as reference, runtime.connect(path, "htp") as runner:
        expected = reference.run(batch)
        assert metrics.cosine(expected, runner.run(batch)) < 0.95
    made = dlc.write(path, path.with_suffix(".dlc"))  # without a word
    if build is known_wrong.hardswish_of_opset_13:  # the DLC holds a node that the HTP refuses
        with pytest.raises(ConvertError, match="not valid for this chip's HTP"):
            runtime.connect(made.file)
    else:
        with runtime.connect(made.file) as itself:
            assert metrics.cosine(expected, itself.run(batch)) < 0.95


@pytest.mark.htp
def test_progress_sees_every_image(small_onnx, inputs):
    seen = []

    def progress(items, description):
        for item in items:
            seen.append(description)
            yield item

    with runtime.connect(small_onnx(17), "htp", progress=progress) as runner:
        runner.run(inputs(3, 64))
    assert len(seen) == 3 and seen[0] == "HTP simulator (images)"


@pytest.mark.parametrize("backend", ["ort", pytest.param("htp", marks=pytest.mark.htp)])
def test_wrong_inputs_are_named(small_onnx, inputs, backend):
    with runtime.connect(small_onnx(17), backend) as runner:
        with pytest.raises(UsageError, match=r"float32 \(n, 3, 64, 64\), not \(1, 3, 32, 32\)"):
            runner.run(inputs(1, 32))
        with pytest.raises(UsageError, match="not float64"):
            runner.run(inputs(1, 64).astype(np.float64))
        with pytest.raises(UsageError, match=r"not \(0, 3, 64, 64\)"):
            runner.run(inputs(1, 64)[:0])


def test_wrong_artifacts_are_refused_by_type(small, small_onnx, tmp_path):
    with pytest.raises(ModelFileError, match="no file"):
        runtime.connect(tmp_path / "nothing.onnx")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(small_onnx(17).read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match=r"cut\.onnx"):
        runtime.connect(cut)
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(b"\x89PNG and nothing of a graph")
    with pytest.raises(ModelFileError, match=r"foreign\.onnx"):
        runtime.connect(foreign)
    other = tmp_path / "model.pte"
    other.write_bytes(b"ET12")
    with pytest.raises(ModelFileError, match=r"does not run model\.pte"):
        runtime.connect(other)
    with pytest.raises(UnknownNameError, match="htp"):
        runtime.connect(small_onnx(17), "gpu")
    with pytest.raises(UsageError, match="cannot run a module"):
        runtime.connect(small, "htp")


@pytest.mark.htp
def test_a_chip_without_float16_is_refused_for_float_graphs_and_dlcs(small_onnx, tmp_path):
    with pytest.raises(ConvertError, match=r"no float16.*int8"):
        runtime.connect(small_onnx(17), "htp", soc="QCS6490")
    made = dlc.write(small_onnx(17), tmp_path / "small.dlc")
    with pytest.raises(ConvertError, match=r"no float16.*int8"):
        runtime.connect(made.file, soc="QCS6490")
    with pytest.raises(UnknownNameError, match="Snapdragon chip"):
        runtime.connect(made.file, soc="nope")


class Sleepless:
    """A runner that notes its turn."""

    name, runtime, file = "sleepless", "nothing", None

    def __init__(self, order, letter):
        self.order, self.letter = order, letter

    def run(self, batch):
        self.order.append(self.letter)
        return batch

    def close(self):
        pass


def test_runners_are_timed_in_turns():
    order = []
    runners = {letter: Sleepless(order, letter) for letter in "ab"}
    seconds = runtime.seconds_in_turns(runners, np.zeros(1), turns=4)
    assert "".join(order) == "ab" * (3 + 4)
    assert list(seconds) == ["a", "b"] and all(value > 0 for value in seconds.values())


@pytest.mark.parametrize("turns", [0, -1])
def test_nothing_is_not_timed(turns):
    with pytest.raises(UsageError, match="at least one"):
        runtime.seconds_in_turns({"a": Sleepless([], "a")}, np.zeros(1), turns)
    with pytest.raises(UsageError, match="at least one"):
        runtime.seconds_in_turns({}, np.zeros(1))


def test_a_mirrored_runner_sees_the_mirror_image(small, inputs):
    batch, plain = inputs(2, 64), runtime.connect(small)
    mirrored = runtime.Mirrored(plain)
    np.testing.assert_array_equal(mirrored.run(batch[..., ::-1]), plain.run(batch))
    assert np.abs(mirrored.run(batch) - plain.run(batch)).max() > 0
    assert isinstance(mirrored, runtime.Runner) and "on the mirrored image" in mirrored.runtime
