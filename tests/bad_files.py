"""A corpus of bad input: files that are cut, foreign, hostile or impossible, with the calls.

`build(folder)` writes them and returns name -> arguments of the command line. Run as a program it
makes all calls in one process, and prints one JSON object per call: see test_bad_input.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import time
import traceback
import zipfile
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

MEAN = ["--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5"]
FLOAT = TensorProto.FLOAT


def value(name, shape=(1, 3, 32, 32), kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs=None, outputs=None, weights=(), opset=17, domains=()):
    graph = helper.make_graph(
        nodes,
        "bad",
        inputs or [value("input")],
        outputs or [value("logits")],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def node(op, inputs=("input",), outputs=("logits",), name="/bad", **attributes):
    return helper.make_node(op, list(inputs), list(outputs), name=name, **attributes)


def classifier(weight=None, **settings):
    """A network that is fine: mean over the picture, then a product."""
    weight = np.ones((3, 4), np.float32) if weight is None else weight
    nodes = [
        node("GlobalAveragePool", outputs=["pooled"], name="/pool"),
        node("Flatten", ["pooled"], ["flat"], "/flat"),
        node("MatMul", ["flat", "weight"], ["logits"], "/fc"),
    ]
    return model(nodes, outputs=[value("logits", (1, 4))], weights=[("weight", weight)], **settings)


def external(location, length=48):
    """A network whose weight lies, by its own account, at `location`."""
    made = classifier()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=text)
    return made


def onnx_models():
    """Name -> model; each is well-formed protobuf and wrong in another way."""
    relu = node("Relu")
    made = {
        "opset 6": classifier(opset=6),
        "opset 99": classifier(opset=99),
        "no opset": classifier(),
        "negative opset": classifier(),
        "unknown domain": model([node("Magic", domain="com.example")], domains=["com.example"]),
        "domain not imported": model([node("Magic", domain="com.example")]),
        "unknown operator": model([node("Relux")]),
        "cycle": model([node("Add", ["input", "b"], ["logits"]), node("Relu", ["logits"], ["b"])]),
        "self loop": model([node("Add", ["input", "logits"])]),
        "missing initializer": model([node("Mul", ["input", "nowhere"])]),
        "output that nobody makes": model([node("Relu", outputs=["other"])]),
        "tensor made twice": model([relu, node("Sigmoid")]),
        "no nodes": model([]),
        "no outputs": model([relu]),
        "no inputs": model([node("Constant", [], value_float=1.0)], inputs=[]),
        "two inputs": model([node("Add", ["input", "b"])], [value("input"), value("b")]),
        "input without a shape": model(
            [relu], [helper.make_tensor_value_info("input", FLOAT, None)]
        ),
        "dynamic side": model([relu], [value("input", (1, 3, "side", "side"))]),
        "five axes": model([relu], [value("input", (1, 3, 32, 32, 32))]),
        "four channels": model([relu], [value("input", (1, 4, 32, 32))]),
        "oblong input": model([relu], [value("input", (1, 3, 32, 33))]),
        "zero side": model([relu], [value("input", (1, 3, 0, 0))]),
        "negative side": model([relu], [value("input", (1, 3, -32, -32))]),
        "huge side": model([relu], [value("input", (1, 3, 2**30, 2**30))]),
        "string input": model([relu], [value("input", kind=TensorProto.STRING)]),
        "double input": model([relu], [value("input", kind=TensorProto.DOUBLE)]),
        "int64 input": model([relu], [value("input", kind=TensorProto.INT64)]),
        "NaN weights": classifier(np.full((3, 4), np.nan, np.float32)),
        "infinite weights": classifier(np.full((3, 4), np.inf, np.float32)),
        "zero weights": classifier(np.zeros((3, 4), np.float32)),
        "weight of another shape": classifier(np.ones((5, 4), np.float32)),
        "double weights": classifier(np.ones((3, 4))),
        "attribute of another type": model([node("LeakyRelu", alpha="steep")]),
        "attribute that is missing": model([node("Cast")]),
        "If without branches": model([node("If")]),
        "bad reshape": model([node("Reshape", ["input", "to"])], weights=[("to", np.array([7]))]),
        "sequence output": model([node("SequenceConstruct")]),
        "external data missing": external("weights.bin"),
        "external data above": external("../secret.bin"),
        "external data absolute": external("/etc/passwd"),
        "external data too short": external("short.bin", 10**9),
        "external data elsewhere": external("https://example.invalid/weights.bin"),
        "script in a name": model([node("Einsum", name="<script>", equation="abcd->ab")]),
        "line break in a name": model([node("Einsum", name="a\nb\0c", equation="abcd->ab")]),
    }
    del made["no opset"].opset_import[:]
    made["negative opset"].opset_import[0].version = -1
    del made["no outputs"].graph.output[:]
    made["weight that claims too much"] = huge = classifier()
    huge.graph.initializer[0].dims[0] = 2**40
    made["training only"] = classifier()
    made["training only"].graph.ClearField("input")
    made["deep chain"] = model(
        [
            node("Relu", ["input" if i == 0 else f"t{i}"], [f"t{i + 1}"], f"/n{i}")
            for i in range(800)
        ],
        outputs=[value("t800")],
    )
    return made


def raw_files(good):
    """Name -> content, of files that are no ONNX models whatever they are called."""
    random = np.random.default_rng(0)
    return {
        "empty.onnx": b"",
        "one byte.onnx": b"\x08",
        "random.onnx": random.bytes(4096),
        "text.onnx": b"This is not a model.\n" * 20,
        "html.onnx": b"<!doctype html><title>404 Not Found</title>",
        "lfs.onnx": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "half.onnx": good[: len(good) // 2],
        "tail missing.onnx": good[:-1],
        "zeros.onnx": bytes(4096),
        "png.onnx": b"\x89PNG\r\n\x1a\n" + bytes(64),
        "flatbuffer.onnx": b"\x1c\0\0\0TFL3" + bytes(64),
        "pickle.onnx": pickle.dumps({"a": 1}),
        "zip.onnx": b"PK\x05\x06" + bytes(18),
        "endless varint.onnx": b"\xff" * 64,
        "length lie.onnx": b"\x3a\xff\xff\xff\xff\x7f" + bytes(32),
        "empty.pt2": b"",
        "random.pt2": random.bytes(4096),
        "text.pt2": b"not an archive",
        "empty zip.pt2": b"PK\x05\x06" + bytes(18),
        "empty.dlc": b"",
        "random.dlc": random.bytes(4096),
        "empty zip.dlc": b"PK\x05\x06" + bytes(18),
        "onnx.dlc": good,
        "empty.pth": b"",
        "random.pth": random.bytes(4096),
        "evil.pth": b"cos\nsystem\n(S'false'\ntR.",
        "empty.safetensors": b"",
        "header lie.safetensors": struct.pack("<Q", 2**40) + b"{}",
        "empty.png": b"",
        "text.png": b"not a picture",
        "cut.png": b"\x89PNG\r\n\x1a\n" + bytes(20),
        "empty.npz": b"",
        "text.npz": b"not arrays",
    }


def archives(folder):
    """Write zip files that claim or hold too much."""
    with zipfile.ZipFile(folder / "bomb.pt2", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb:
        _blow_up(bomb, "m/models/model.json")
    with zipfile.ZipFile(folder / "above.pt2", "w") as above:
        above.writestr("../models/model.json", b"{}")
    with zipfile.ZipFile(folder / "pickle.pt2", "w") as pickled:
        pickled.writestr("m/models/model.json", b"{}")
        pickled.writestr("m/data/weights/evil.pkl", b"cos\nsystem\n(S'false'\ntR.")
    with zipfile.ZipFile(folder / "deep.pt2", "w") as deep:
        deep.writestr("m/models/model.json", b"[" * 100_000)
    with zipfile.ZipFile(folder / "bomb.dlc", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb:
        _blow_up(bomb, "model")


def _blow_up(archive, name):
    with archive.open(name, "w") as member:
        for _ in range(500):
            member.write(b" " * 10**6)


def build(folder):
    """Write the corpus; return name -> command line."""
    good = classifier().SerializeToString()
    (folder / "good.onnx").write_bytes(good)
    (folder / "short.bin").write_bytes(b"short")
    calls = {}
    for name, made in onnx_models().items():
        path = folder / f"{name}.onnx"
        path.write_bytes(made.SerializeToString())
        calls[f"{name}: diagnose"] = ["diagnose", str(path)]
        calls[f"{name}: run"] = ["run", str(path), "--images", "1", *MEAN]
        output = ["-o", str(folder / "out" / f"{name}.dlc")]
        calls[f"{name}: convert"] = ["convert", str(path), "--target", "snpe-2.7", *output, *MEAN]
        output = ["-o", str(folder / "out" / f"{name}.onnx"), "--images", "2", "--held-out", "2"]
        calls[f"{name}: quantize"] = ["quantize", str(path), "--mac-share", "1", *output, *MEAN]
    archives(folder)
    for name, content in raw_files(good).items():
        (folder / name).write_bytes(content)
    for path in sorted(folder.iterdir()):
        if path.name in ("good.onnx", "short.bin", "out") or ": " in path.name:
            continue
        if path.suffix in (".pt2", ".dlc") or path.name in raw_files(good):
            calls |= file_calls(path, folder / "good.onnx")
    return calls | other_calls(folder)


def file_calls(path, good):
    if path.suffix in (".png", ".npz"):
        option = "--images" if path.suffix == ".png" else "--inputs"
        if option == "--images":
            return {f"{path.name}: run": ["run", str(good), option, str(path), *MEAN]}
        output = str(path.with_suffix(".dlc"))
        call = ["convert", str(good), "--target", "qnn", "-o", output, option, str(path), *MEAN]
        return {f"{path.name}: convert": call}
    if path.suffix in (".pth", ".safetensors"):
        call = ["diagnose", "mobilenet_v3_small", "--weights", str(path)]
        return {f"{path.name}: weights": call, f"{path.name}: diagnose": ["diagnose", str(path)]}
    return {
        f"{path.name}: diagnose": ["diagnose", str(path)],
        f"{path.name}: run": ["run", str(path), "--images", "1", *MEAN],
    }


def other_calls(folder):
    good, out = str(folder / "good.onnx"), str(folder / "out" / "x.dlc")
    convert = ["convert", good, "--target", "qnn", "-o", out]
    return {
        "no such file": ["diagnose", str(folder / "nowhere.onnx")],
        "a folder": ["diagnose", str(folder)],
        "a folder called .onnx": ["diagnose", str(_folder(folder / "folder.onnx"))],
        "no such model": ["diagnose", "mobilenet_v4_large"],
        "no such tv model": ["diagnose", "tv:mobilnet_v2"],
        "no such timm model": ["diagnose", "timm:mobilenetv3_smal_100"],
        "no such target": ["diagnose", good, "--target", "snpe"],
        "no such chip": [*convert, "--soc", "SM9999", *MEAN],
        "no preprocessing": convert,
        "mean without std": [*convert, *MEAN[:4]],
        "std of zero": [*convert, *MEAN[:5], "0", "0", "0"],
        "nan mean": ["run", good, "--images", "1", "--mean", "nan", "0", "0", *MEAN[4:]],
        "not a DLC's name": ["convert", good, "--target", "qnn", "-o", out + ".txt", *MEAN],
        "output is a folder": ["convert", good, "--target", "qnn", "-o", str(folder), *MEAN],
        "check-only target": ["convert", good, "--target", "tidl-11", "-o", out, *MEAN],
        "size of a fixed file": ["diagnose", good, "--size", "99"],
        "negative size": ["diagnose", "mobilenet_v3_small", "--size", "-1"],
        "tiny size": ["diagnose", "mobilenet_v3_small", "--size", "1"],
        "opset 99 asked": ["diagnose", "mobilenet_v3_small", "--opset", "99"],
        "opset 1 asked": ["diagnose", "mobilenet_v3_small", "--opset", "1"],
        "no images": ["run", good, "--images", "0", *MEAN],
        "no such image": ["run", good, "--images", str(folder / "no.png"), *MEAN],
        "no such backend": ["run", good, "--images", "1", "--backend", "gpu", *MEAN],
    }


def _folder(path):
    path.mkdir()
    return path


def run(folder, calls):
    """Make the calls in one process; return name -> what each ended in.

    A call that kills the process has an outcome as well, and another process makes the others.
    """
    (folder / "calls.json").write_text(json.dumps(calls), encoding="utf-8")
    found = {}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LABUTILS_GENERATED": str(folder / "made")}
    while len(found) < len(calls):
        command = [sys.executable, __file__, str(folder), *found]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        for line in done.stdout.splitlines():
            entry = json.loads(line)
            found[entry.pop("name")] = entry
        if done.returncode:
            name = list(found)[-1]
            found[name] = {"code": f"process died: {done.returncode}", "said": done.stderr[-500:]}
    return found


def typed(outcome):
    """The name of the error that a call ended in, "" for none."""
    match = re.search(r"^(\w+Error|usage): ", outcome["said"], re.MULTILINE)
    return match[1] if match else ""


def well_told(outcome):
    """Whether a call ended well, or in an error with a name; 1 is also `diagnose`'s "it blocks"."""
    told = outcome["code"] in (0, 1) or (outcome["code"] == 2 and typed(outcome))
    return bool(told) and "Traceback" not in outcome["said"]


def _call(arguments):
    from labutils.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    began = time.process_time()  # of this process alone: other tests run beside it
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as stopped:
            code = stopped.code
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"[:300]
            err.write(traceback.format_exc())
    return {
        "code": code,
        "said": err.getvalue()[-2000:],
        "seconds": round(time.process_time() - began, 2),
        "peak_mib": _peak_mib(),
    }


def _peak_mib():
    """Return the largest resident size so far; rusage would count what the parent had at fork."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    place, done = Path(sys.argv[1]), set(sys.argv[2:])
    (place / "out").mkdir(exist_ok=True)
    calls = json.loads((place / "calls.json").read_text(encoding="utf-8"))
    real = sys.stdout
    for name, arguments in calls.items():
        if name not in done:
            print(json.dumps({"name": name}), file=real, flush=True)
            print(json.dumps({"name": name, **_call(arguments)}), file=real, flush=True)
