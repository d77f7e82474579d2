"""Small networks drawn by seed, written in the many ways in which ONNX allows to write one network.

`network(seed)` returns a model that `onnx.checker` accepts and ONNX Runtime runs; `odd=False`
leaves the oddities out. `outcome` sends one through the commands and says how it ended. Run as a
program (``python tests/random_graphs.py 500``) it lists what does not end well, by cause.
"""

from __future__ import annotations

import collections
import contextlib
import io
import re
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from random_blocks import BLOCKS, CLASSES, SIDE, Draw, convolution, head
from random_oddities import ODDITIES

OPSETS = range(7, 22)
TARGETS = ("snpe-2.7", "qairt-2025", "tidl-11", "rdk-x5", "onnx-tf-1.10", "litert", "rknn-2.3")
STATED = ["--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5"]
LEAST_SQNR_DB = 15
_OURS = re.compile(r"\.labutils\.|/made/|Traceback|cannot be found in any scope")


def network(seed: int, odd: bool = True) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return a drawn network and the names of its oddities."""
    for attempt in range(50):
        model, oddities = _drawn(1000 * seed + attempt, odd)
        if _is_lively(model):
            return model, oddities
    raise AssertionError(f"seed {seed} gives no network whose scores depend on the image")


def _drawn(seed: int, odd: bool) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    chance = np.random.default_rng(seed)
    opset = int(chance.choice(list(OPSETS))) if odd else int(chance.choice([13, 17, 21]))
    draw = Draw(seed, opset)
    x = convolution(draw, "image")
    for _ in range(int(chance.integers(2, 8))):
        x = draw.pick(BLOCKS)(draw, x)
    head(draw, x, odd)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, SIDE, SIDE))
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, (1, CLASSES))
    weights = [numpy_helper.from_array(array, name) for name, array in draw.weights.items()]
    graph = helper.make_graph(draw.nodes, "drawn", [image], [scores], weights)
    version = 3 if opset < 9 else 7 if opset < 15 else 8 if opset < 20 else 9 if opset < 21 else 10
    if version == 3:
        graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in weights
        )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=version)
    onnx.checker.check_model(model, full_check=True)
    done = [
        f"Gemm C {draw.weights[node.input[2]].shape}" for node in draw.nodes
        if node.op_type == "Gemm" and draw.weights.get("".join(node.input[2:])) is not None
        and draw.weights[node.input[2]].ndim != 1
    ]  # fmt: skip
    done += [
        "Gemm alpha or beta" for node in draw.nodes if node.op_type == "Gemm"
        and any(a.name in ("alpha", "beta") and a.f != 1 for a in node.attribute)
    ]  # fmt: skip
    if odd:
        fitting = [name for name, (since, _) in ODDITIES.items() if opset >= since]
        wanted = chance.permutation(fitting)[: int(chance.integers(1, 4))]
        for name in sorted(map(str, wanted), key=list(ODDITIES).index):
            if ODDITIES[name][1](model, chance):
                done.append(name)
        onnx.checker.check_model(model)
    return model, (f"opset {opset}", *done)


def images(n: int = 8) -> np.ndarray:
    """Return images as `quantize` calibrates with."""
    from labutils.images import data

    return data.Preprocessing(SIDE, (0.5,) * 3, (0.5,) * 3)(data.calibration(n, SIDE).images)


def computed(model: bytes | str) -> np.ndarray:
    """Return the scores of a model for each image."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(["scores"], {name: x[None]})[0] for x in images()])


def _is_lively(model: onnx.ModelProto) -> bool:
    try:
        scores = computed(model.SerializeToString())
    except ort_errors.Fail:  # ONNX Runtime's own fusion of Pad into a pooling refuses its result
        return False
    spread = scores.std(0).max()
    return bool(np.isfinite(scores).all() and spread > 0.02 * np.abs(scores).max() > 0)


def outcome(model: onnx.ModelProto, folder: Path, target: str) -> list[str]:
    """Send a model through repair and quantize; return what did not end well, in words."""
    from labutils import metrics

    file, fixed = folder / "drawn.onnx", folder / "fixed.onnx"
    onnx.save(model, file)
    expected, found = computed(str(file)), []
    diagnosed = called("diagnose", file, "--target", target)
    repaired = called("repair", file, "--target", target, "-o", fixed)
    for what, ended in (("diagnose", diagnosed), ("repair", repaired)):
        found += [f"{what}: {told}"] if (told := _fault(*ended)) else []
    if fixed.is_file():
        found += _differs("repair", expected, fixed, least=60)
    # Rounding of int8 may cost a drawn network anything; 16 bits tell a wrong function from it.
    for recipe, least in (("int8", -np.inf), ("a16w8", LEAST_SQNR_DB)):
        made = folder / f"{recipe}.onnx"
        few = ["--images", "8", "--held-out", "8", "--recipe", recipe]
        if told := _fault(*called("quantize", file, *STATED, *few, "-o", made)):
            found.append(f"quantize to {recipe}: {told}")
        if made.is_file():
            found += _differs(f"quantize to {recipe}", expected, made, least)
    assert metrics.sqnr_db(expected, computed(str(file))) > 200, "ONNX Runtime is deterministic"
    return found


def converted(model: onnx.ModelProto, folder: Path) -> list[str]:
    """Write a DLC that runs on the HTP simulator; a refusal in words is no fault."""
    file, made = folder / "drawn.onnx", folder / "drawn.dlc"
    onnx.save(model, file)
    code, said = called("convert", file, *STATED, "--target", "qnn", "-o", made)
    told = _fault(code, said)
    return [f"convert: {told}"] if told else []


def _differs(what: str, expected: np.ndarray, file: Path, least: float) -> list[str]:
    from labutils import metrics

    try:
        onnx.checker.check_model(onnx.load(file), full_check=False)
        found = computed(str(file))
    except Exception as error:
        return [f"{what}: wrote invalid ONNX: {_first_line(str(error))}"]
    sqnr = metrics.sqnr_db(expected, found)
    return [] if sqnr > least else [f"{what}: WRONG FUNCTION (SQNR {sqnr:.1f} dB)"]


def called(*arguments: object) -> tuple[object, str]:
    """Call the command line in this process; return exit code (or traceback) and what it said."""
    from labutils.__main__ import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.name}"
            code = f"raw {type(error).__name__} in {where}: {_first_line(str(error))}"
    return code, said.getvalue()


def _fault(code: object, said: str) -> str:
    """Return what is wrong with how a call ended, "" for a refusal in words and for success."""
    if isinstance(code, str):
        return code
    errors = [line for line in said.splitlines() if re.match(r"\w+Error: ", line)]
    if code == 2 and not errors:
        return "exit 2 without an error"
    if match := _OURS.search(said):
        return f"says {match[0]!r}: {_first_line(errors[-1] if errors else said)}"
    if any("was not quantized" in line for line in errors):
        return _first_line(errors[-1])
    return ""


def _first_line(text: str) -> str:
    return " ".join(text.split("\n")[0].split())[:300]


def sweep(seeds: range, odd: bool = True) -> dict[int, tuple[tuple[str, ...], list[str]]]:
    """Return seed -> (oddities, faults) of those that did not end well."""
    wrong = {}
    for seed in seeds:
        model, oddities = network(seed, odd)
        with tempfile.TemporaryDirectory() as folder:
            if faults := outcome(model, Path(folder), TARGETS[seed % len(TARGETS)]):
                wrong[seed] = (oddities, faults)
    return wrong


def main() -> None:
    """Print the faults of so many networks, grouped by their words without names and numbers."""
    count, odd = int(sys.argv[1]), "plain" not in sys.argv
    wrong = sweep(range(count), odd)
    causes: dict[str, list] = collections.defaultdict(list)
    for seed, (oddities, faults) in wrong.items():
        for fault in faults:
            plain = re.sub(r"'[^']*'|\"[^\"]*\"|/tmp\S*|-?\d+(\.\d+)?", "_", fault)[:110]
            causes[plain].append((seed, oddities, fault))
    print(f"{len(wrong)} of {count} networks did not end well")
    for _, rows in sorted(causes.items(), key=lambda entry: -len(entry[1])):
        shared = set.intersection(*(set(oddities) for _, oddities, _ in rows))
        seed, oddities, fault = rows[0]
        print(f"\n{len(rows)} x {fault}\n   all have: {sorted(shared)}")
        print(f"   seeds {[seed for seed, _, _ in rows][:12]}, the first: {oddities}")


if __name__ == "__main__":
    main()
