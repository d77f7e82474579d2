"""Workers that crash, hang or lose their parent; options that QNN would ignore; refusals."""

import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from labutils import targets
from labutils.errors import (
    ConvertError,
    ModelFileError,
    UnknownNameError,
    UsageError,
    WorkerError,
)
from labutils.onnxfile import graph
from labutils.processes import channel
from labutils.runtime import qnn
from labutils.runtime.qnn import options, refusal

posix = pytest.mark.skipif(os.name != "posix", reason="signals")


def single(
    folder, op_type, *, shape=(1, 4, 8, 8), opset=17, constants=None, domain="", **attributes
):
    """Write a graph of one node, named as TorchScript names it, in module block.1."""
    constants = constants or {}
    node = helper.make_node(
        op_type,
        ["input", *constants],
        ["logits"],
        name=f"/block/block.1/{op_type}",
        domain=domain,
        **attributes,
    )
    made = helper.make_graph(
        [node],
        op_type,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, 1)] if domain else []
    path = folder / f"{op_type}.onnx"
    onnx.save(helper.make_model(made, opset_imports=imports, ir_version=9), str(path))
    return path


@pytest.fixture(scope="module")
def relu(tmp_path_factory):
    return single(tmp_path_factory.mktemp("relu"), "Relu")


@pytest.fixture
def pool():
    with qnn.Pool(workers=1) as made:
        yield made


def ones(value=1.0):
    return {"input": np.full((1, 4, 8, 8), value, np.float32)}


def peak(pool, asked, value=1.0):
    """Run a ReLU on one value; the HTP's float16 comes back as 1.0000001 and the like."""
    return round(float(pool.run(asked, [ones(value)])[0]["logits"].max()), 3)


# --- the chips and the options ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["SM8550", "sm8550", "Snapdragon 8 Gen 2", "8 gen 2"])
def test_a_chip_is_found_by_part_number_and_by_name(name):
    assert qnn.soc(name).soc_model == 43
    assert qnn.soc(name).htp_arch == 73


def test_an_unknown_chip_is_refused_with_the_list():
    with pytest.raises(UnknownNameError, match=r"SM8550.*SM8650"):
        qnn.soc("kirin")


def test_every_chip_names_its_source_and_no_id_is_used_twice():
    assert all(chip.source for chip in qnn.SOCS.values())
    assert len({chip.soc_model for chip in qnn.SOCS.values()}) == len(qnn.SOCS)
    assert not qnn.soc("SM8350").fp16 and qnn.soc("SM8450").fp16
    assert qnn.soc("SA8295").fp16  # a v68, and yet


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"backend_type": "htp"}, "soc_model"),
        ({"backend_type": "cpu"}, "allowed values"),
        ({"backend_type": "htp", "soc_model": "9999"}, "soc_model"),
        ({"backend_type": "htp", "soc_model": 43, "htp_arch": 74}, "htp_arch"),
        ({"backend_type": "htp", "soc_model": 43, "vtcm": 8}, "no QNN option"),
        ({"backend_type": "ir"}, "current folder"),
        ({"backend_type": "ir", "dump_qnn_ir_dlc": 1}, "absolute path"),
        (
            {"backend_type": "ir", "dump_qnn_ir_dlc": 1, "dump_qnn_ir_dlc_dir": "/no/such/dir"},
            "no folder",
        ),
        ({"soc_model": 43}, "backend_type"),
    ],
)
def test_what_qnn_would_ignore_or_abort_on_is_refused(wrong, error):
    with pytest.raises(UsageError, match=error):
        options.check(wrong)


def test_the_chip_is_always_set():
    assert options.htp("SM8650")["soc_model"] == "57"
    with pytest.raises(UsageError, match="soc_model"):
        options.htp("SM8650", soc_model=43)


# --- the wire --------------------------------------------------------------------------------


@given(
    st.dictionaries(st.text(max_size=8), st.integers() | st.text() | st.none(), max_size=4),
    arrays.arrays(
        st.sampled_from([np.float32, np.uint8, np.int64]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
)
def test_the_channel_brings_back_what_was_sent(message, array):
    stream = io.BytesIO()
    channel.send(stream, message, {"x": array, "y": array[None]})
    stream.seek(0)
    same, found = channel.receive(stream)
    assert same == message
    assert found["x"].dtype == array.dtype and found["y"].shape == (1, *array.shape)
    np.testing.assert_array_equal(found["x"], array)


def test_a_cut_channel_is_an_end_of_file():
    stream = io.BytesIO()
    channel.send(stream, {}, {"x": np.zeros(9)})
    with pytest.raises(EOFError):
        channel.receive(io.BytesIO(stream.getvalue()[:-1]))


# --- modules and refusals --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("/features/features.0/features.0.2/HardSwish", "features.0.2"),
        ("/features/features.4/block/block.2/fc1/Conv", "features.4.block.2.fc1"),
        ("/features/features.0/features.0.0/Conv_token_12", "features.0.0"),
        ("/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("/Flatten", ""),
        ("node_conv2d_3", ""),
    ],
)
def test_a_torchscript_name_gives_its_module(name, module):
    assert graph.module_of_name(name) == module


def test_a_dynamo_node_gives_its_module_from_the_metadata():
    node = helper.make_node("Relu", ["x"], ["y"], name="node_relu")
    scopes = "['', 'features', 'features.0', 'features.0.2', 'relu']"
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    assert graph.module_path(node) == "features.0.2"


REFUSED = [
    ("Trilu", {}, "Operators of type `Trilu` are not supported by QNN EP."),
    ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 2]}, "only supports dilations 1"),
    (
        "Gemm",
        {"shape": (1, 8), "constants": {"w": np.ones((8, 4), np.float32)}, "alpha": 2.0},
        "only support alpha=1.0",
    ),
    (  # claimed, then rejected after the layout change
        "GridSample",
        {"shape": (1, 2, 4, 4, 4), "opset": 20, "constants": {"g": np.zeros((1, 4, 4, 4, 3), "f")}},
        "Failed to add node",
    ),
]


@pytest.mark.htp
@pytest.mark.parametrize(("op_type", "attributes", "reason"), REFUSED, ids=[r[0] for r in REFUSED])
def test_a_refusal_names_node_operator_module_and_reason(tmp_path, op_type, attributes, reason):
    path = single(tmp_path, op_type, **attributes)
    asked = qnn.Graph.of(path, options.htp("SM8550"))
    with pytest.raises(ConvertError) as caught:
        qnn.shared().build(asked, "compiling it")
    line = f"{op_type} '/block/block.1/{op_type}' (module block.1): "
    assert line in str(caught.value) and reason in str(caught.value)
    assert "What to do:" in str(caught.value)


def test_a_graph_that_does_not_compile_says_so():
    error = (
        "[ONNXRuntimeError] : 11 : EP_FAIL : Failed to finalize QNN graph. Error: "
        "QNN_COMMON_ERROR_MEM_ALLOC: Memory allocation related error., Code: 1002"
    )
    refused = refusal.refuse(Path("x.onnx"), refusal.parse(error, ""), "compiling it")
    assert "the HTP compiler failed" in str(refused) and "1002" in str(refused)


def test_a_dynamic_batch_is_refused_before_qnn_is_asked(tmp_path):
    path = single(tmp_path, "Relu", shape=("N", 4, 8, 8))
    with pytest.raises(ConvertError, match=r"dynamic shape \['N', 4, 8, 8\].*batch 1"):
        refusal.precheck(path)


def test_a_custom_operator_is_refused_before_qnn_is_asked(tmp_path):
    path = single(tmp_path, "MyOp", domain="my.domain")
    with pytest.raises(ConvertError, match=r"custom operator my\.domain:MyOp"):
        refusal.precheck(path)


def test_a_float_graph_is_refused_for_a_chip_without_float16(relu):
    with pytest.raises(ConvertError, match=r"no float16.*int8.*v69"):
        refusal.precheck(relu, qnn.soc("QCS6490"))
    refusal.precheck(relu, qnn.soc("SM8550"))


# --- workers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "workers"), [("", 2), ("1", 1), ("8", 2)])
def test_a_shared_machine_limits_the_workers(monkeypatch, limit, workers):
    monkeypatch.setenv("LABUTILS_WORKERS", limit)
    assert len(qnn.shared().workers) == workers
    assert qnn.shared() is qnn.shared()


@pytest.mark.parametrize("limit", ["0", "-1", "two", "1.5"])
def test_a_limit_that_is_no_number_is_named(monkeypatch, limit):
    monkeypatch.setenv("LABUTILS_WORKERS", limit)
    with pytest.raises(UsageError, match="LABUTILS_WORKERS"):
        qnn.shared()


@pytest.mark.htp
def test_results_come_in_order_from_two_workers(relu):
    asked = qnn.Graph.of(relu, options.htp())
    with qnn.Pool(workers=2) as pool:
        results = pool.run(asked, [ones(value) for value in range(-2, 6)])
        assert [round(float(r["logits"].max()), 3) for r in results] == [0, 0, 0, 1, 2, 3, 4, 5]
        assert all(worker.pid for worker in pool.workers)


@pytest.mark.htp
def test_two_pools_work_side_by_side(relu):
    asked = qnn.Graph.of(relu, options.htp())
    with qnn.Pool(workers=1) as first, qnn.Pool(workers=1) as second:
        assert peak(first, asked, 3) == 3
        assert peak(second, asked, 4) == 4
        assert first.workers[0].pid != second.workers[0].pid


@pytest.mark.htp
def test_nothing_reaches_our_output(relu, tmp_path, capfd):
    with qnn.Pool(workers=1) as pool:
        pool.run(qnn.Graph.of(relu, options.htp()), [ones()])
        bad = single(tmp_path, "Trilu")
        with pytest.raises(ConvertError):
            pool.build(qnn.Graph.of(bad, options.htp()), "compiling it")
    assert capfd.readouterr() == ("", "")


def beyond_the_compiler(path):
    """Relu, a Conv of one point, a Reshape to five dimensions (which does not compile), Relu."""
    weights = np.random.default_rng(0).standard_normal((64, 64, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Relu", ["input"], ["r"], name="/a/Relu"),
        helper.make_node("Conv", ["r", "w"], ["c"], name="/b/Conv"),
        helper.make_node("Reshape", ["c", "five"], ["f"], name="/b/Reshape"),
        helper.make_node("Relu", ["f"], ["g"], name="/c/Relu"),
        helper.make_node("Sigmoid", ["g"], ["logits"], name="/d/Sigmoid"),
    ]
    made = helper.make_graph(
        nodes,
        "beyond",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 64, 1, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2, 32, 1, 1])],
        [numpy_helper.from_array(weights, "w"),
         numpy_helper.from_array(np.array([1, 2, 32, 1, 1]), "five")],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(made, opset_imports=imports, ir_version=8), path)
    return path


@pytest.mark.htp
def test_a_compiler_error_without_a_node_gets_one(pool, tmp_path):
    """The HTP compiler says MEM_ALLOC and no name; the parts of the graph lead to it."""
    file = beyond_the_compiler(tmp_path / "beyond.onnx")
    with pytest.raises(ConvertError, match=r"Reshape '/b/Reshape'.*does not compile") as caught:
        pool.build(qnn.Graph.of(file, options.htp()), "compiling it")
    ((op_type, name, _),) = caught.value.nodes
    assert (op_type, name) == ("Reshape", "/b/Reshape")
    assert "beyond.onnx" in str(caught.value) and "part" not in str(caught.value).split("\n")[0]
    (blocks,) = targets.check(file, "qnn").blockers
    assert blocks.node == name  # the table says the same, before anything is compiled


@pytest.mark.htp
def test_a_native_abort_is_an_error_and_the_next_call_works(relu, pool):
    aborts = {"backend_type": "ir", "dump_qnn_ir_dlc": "1", "dump_qnn_ir_dlc_dir": "/proc/no/dir"}
    unchecked = qnn.Graph(relu, aborts, {}, qnn.Graph.of(relu, options.htp()).digest)
    with pytest.raises(WorkerError, match=r"died \(signal SIGABRT\).*build Relu.onnx") as caught:
        pool.build(unchecked, "writing a DLC")
    assert "filesystem" in str(caught.value)  # the last lines of the worker's log
    assert peak(pool, qnn.Graph.of(relu, options.htp())) == 1


@posix
@pytest.mark.htp
def test_a_killed_worker_is_an_error_without_a_zombie(relu, pool):
    asked = qnn.Graph.of(relu, options.htp())
    pool.run(asked, [ones()])
    pid = pool.workers[0].pid
    os.kill(pid, signal.SIGSTOP)  # so that it cannot answer before it is killed
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(WorkerError, match="signal SIGKILL"):
        pool.run(asked, [ones()])
    assert not alive(pid)
    assert peak(pool, asked, 2) == 2


@posix
@pytest.mark.htp
def test_a_worker_that_hangs_is_stopped(relu, pool):
    asked = qnn.Graph.of(relu, options.htp())
    pool.run(asked, [ones()])
    pid = pool.workers[0].pid
    os.kill(pid, signal.SIGSTOP)
    pool.timeout = 0.5
    with pytest.raises(WorkerError, match=r"no answer to run Relu.onnx within 0.5 s"):
        pool.run(asked, [ones()])
    assert not alive(pid)
    pool.timeout = 60
    assert peak(pool, asked, 2) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process's memory")
@pytest.mark.htp
@pytest.mark.parametrize("spare", [0, 12, 24], ids="{} MiB".format)
def test_a_worker_without_memory_is_one_clear_error(relu, small_onnx, pool, spare):
    import resource

    few, many = (qnn.Graph.of(file, options.htp()) for file in (relu, small_onnx(17)))
    pool.run(few, [ones()])
    pid = pool.workers[0].pid
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare * 2**20
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
    with pytest.raises(WorkerError, match=r"ran out of memory in run mobilenet_v3_small.*--size"):
        pool.run(many, [{"input": np.ones((1, 3, 64, 64), np.float32)}])
    assert not alive(pid)
    assert peak(pool, few, 2) == 2


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal: a shell's background job, as which tests may run, ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@posix
@pytest.mark.htp
def test_an_interrupt_stops_the_workers_and_leaves_them_usable(relu, pool, ctrl_c):
    asked = qnn.Graph.of(relu, options.htp())
    pool.run(asked, [ones()])
    stopped = pool.workers[0]
    os.kill(stopped.pid, signal.SIGSTOP)

    def interrupt():
        while not stopped._lock.locked():  # until it was asked, however busy the machine is
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        pool.run(asked, [ones()])
    assert peak(pool, asked, 2) == 2


@pytest.mark.htp
def test_a_file_that_changed_is_not_run_under_its_old_name(tmp_path, pool):
    path = single(tmp_path, "Relu")
    asked = qnn.Graph.of(path, options.htp())
    single(tmp_path, "Relu", shape=(1, 2, 8, 8))
    with pytest.raises(ModelFileError, match="changed"):
        pool.run(asked, [ones()])


@posix
@pytest.mark.htp
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_workers_die_with_a_parent_that_is_killed(relu, tmp_path, stopped):
    # No __main__ guard, and no chance to clean up: the script is killed while it runs.
    script = tmp_path / "plain_script.py"
    script.write_text(
        textwrap.dedent(f"""
        import numpy as np
        from labutils.runtime import qnn
        from labutils.runtime.qnn import options
        pool = qnn.Pool(workers=2)
        asked = qnn.Graph.of({str(relu)!r}, options.htp())
        items = [{{"input": np.ones((1, 4, 8, 8), np.float32)}}] * 4
        pool.run(asked, items)
        print(*[worker.pid for worker in pool.workers], flush=True)
        while True:
            pool.run(asked, items)
        """)
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2 and all(map(alive, workers))
        for worker in workers if stopped else ():
            os.kill(worker, signal.SIGSTOP)
        parent.kill()
    deadline = time.monotonic() + 300
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


@posix
@pytest.mark.htp
def test_a_forked_child_gets_workers_of_its_own(relu, pool):
    asked = qnn.Graph.of(relu, options.htp())
    pool.run(asked, [ones()])
    child = os.fork()
    if child == 0:
        right = peak(pool, asked, 7) == 7
        pool.close()
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert peak(pool, asked, 5) == 5


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# --- what is here ----------------------------------------------------------------------------


def test_the_probe_says_what_is_here():
    found = qnn.probe()
    assert found.reason and (not found.ok or found.versions["QNN"].startswith("2."))


def test_without_the_wheel_there_is_a_sentence_and_everything_else_imports(tmp_path):
    code = textwrap.dedent("""
        import sys
        import importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda n, p=None: None if n == "onnxruntime_qnn" else real(n, p)
        from labutils.runtime import qnn
        from labutils import runtime
        from labutils import dlc
        print(qnn.probe())
        try:
            qnn.require()
        except Exception as error:
            print(type(error).__name__)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "absent: onnxruntime-qnn" in done.stdout and "MissingToolError" in done.stdout
