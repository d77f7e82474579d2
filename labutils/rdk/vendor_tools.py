"""A user's own installation of D-Robotics' tools: found and called, never installed.

``LABUTILS_RDK_PYTHON`` names the interpreter (Python 3.10, with dg-nn-toolkit and dgdk); without
it, an environment that the user made as ``tools/rdk`` in the lab's cache counts. What is called
there, and how that is known, stands in `vendor_program`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import paths
from ..errors import ConvertError, MissingToolError, ToolError, UsageError
from ..images import data, nv12
from ..onnxfile.file import OnnxFile
from ..runtime import outputs
from ..tools import calling
from . import hb_mapper, vendor_log
from .vendor_log import Estimate, NodeLine

VARIABLE = "LABUTILS_RDK_PYTHON"
PACKAGES = ("dg-nn-toolkit", "dgdk")
PROGRAM = Path(__file__).with_name("vendor_program.py")

_MOST_OPSET, _MOST_IR = 11, 9
_YUV = {"video": "YUV_BT601_VIDEO_RANGE", "full": "YUV_BT601_FULL_RANGE"}
_METHODS = ("default", "mix", "kl", "max")


def found() -> Path | None:
    """Return the interpreter of the user's installation, None where there is none."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser()
    own = own_environment()
    return own if own.is_file() else None


def own_environment() -> Path:
    """Return where the interpreter of an environment in the cache would be."""
    inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    return paths.cache_place() / "tools" / "rdk" / inside


def connect() -> calling.Called:
    """Return the user's tools, ready to be asked; close it afterwards.

    Raises
    ------
    MissingToolError
        There are none; the message says how they are named.
    """
    python = found()
    if python is None or not python.is_file():
        why = f"{VARIABLE} names {python}, which is not a file" if python else "none is named"
        raise MissingToolError(
            f"D-Robotics' tools are not here: {why}. If you have them under the vendor's terms, "
            f"let {VARIABLE} name the Python 3.10 that imports horizon_nn (dg-nn-toolkit, dgdk), "
            f"or make that environment at {own_environment().parent.parent}. The lab does not "
            "install them. Without them, write an .onnx: that is the lab's emulation."
        )
    return calling.Called("rdk (D-Robotics' own, yours)", python, PROGRAM)


def versions(tool: calling.Called) -> dict[str, str]:
    """Return the versions of the vendor's packages.

    Raises
    ------
    MissingToolError
        The environment does not have them, or they cannot be imported there.
    """
    try:
        return tool.ask("versions", modules=["horizon_nn.api"], packages=list(PACKAGES))
    except ToolError as error:
        raise MissingToolError(
            f"{tool.python} cannot import D-Robotics' tools: {error.kind}: {error.reason}. Name "
            f"another interpreter in {VARIABLE}, or repair that environment."
        ) from None


@dataclass(frozen=True)
class Order:
    """What the vendor's quantizer is asked for.

    Attributes
    ----------
    preprocessing
        Of the network's input.
    byte_range
        Range of the NV12 bytes that the board will feed; None for normalised float32.
    method, percentile
        How ranges are chosen: ``default``, ``mix``, ``kl`` or ``max``; a share of the values.
    nodes
        Name -> `hb_mapper.Node`.
    level, options
        Of the compiler: ``O0`` to ``O3``, and what follows that.
    """

    preprocessing: data.Preprocessing
    byte_range: nv12.Range | None = "video"
    method: str = "default"
    percentile: float | None = None
    nodes: Mapping[str, hb_mapper.Node] | None = None
    level: str = "O3"
    options: str = "--core-num 1 --fast"

    @classmethod
    def of(cls, settings: hb_mapper.Settings, size: data.Size | None = None) -> Order:
        """Return what an hb_mapper YAML asks for.

        Raises
        ------
        UsageError
            It asks for something that is not passed on here, and would make another file.
        """
        _refuse_other_settings(settings)
        kind = settings.get("input_type_rt")
        if kind not in ("nv12", "featuremap"):
            raise UsageError(
                f"{settings.file}: input_type_rt {kind} is not passed on to D-Robotics' tools "
                "here: nv12 and featuremap (normalised float32) are. `labutils rdk prepare` writes "
                "what hb_mapper itself takes."
            )
        method = settings.get("calibration_type")
        if method not in _METHODS:
            raise UsageError(
                f"{settings.file}: calibration_type {method} is not passed on: "
                f"{', '.join(_METHODS)} are."
            )
        if settings.get("march", "bayes-e") != "bayes-e":
            raise UsageError(f"{settings.file}: march {settings.get('march')} is not the RDK X5's.")
        share = settings.get("max_percentile") if method == "max" else None
        return cls(
            settings.preprocessing(size), settings.byte_range, method, share, settings.nodes,
            settings.get("optimize_level", "O3"), _options(settings),
        )  # fmt: skip

    def arguments(self, name: str) -> dict[str, Any]:
        """Return it in the words of ``build_onnx``, as plain values, for an input of that name."""
        pre = self.preprocessing
        mean, std = np.array(pre.mean, np.float64), np.array(pre.std, np.float64)
        entry: dict[str, Any] = {
            "input_shape": [1, *pre.shape], "original_input_layout": "NCHW",
        }  # fmt: skip
        hbdk: dict[str, Any] = {"hbdk_pass_through_params": f"--{self.level} {self.options}"}
        if self.byte_range:
            entry |= {
                "original_input_type": "RGB", "expected_input_type": _YUV[self.byte_range],
                "means": (255 * mean).tolist(), "scales": (1 / (255 * std)).tolist(),
            }  # fmt: skip
            hbdk["input-source"] = {name: "pyramid", "_default_value": "ddr"}
        calibration: dict[str, Any] = {"calibration_type": self.method}
        if self.percentile is not None:
            calibration["max_percentile"] = float(self.percentile)
        return {
            "name": name, "march": "bayes-e", "input_dict": {name: entry},
            "cali_dict": calibration, "hbdk_dict": hbdk,
            "node_dict": {key: node.entry() for key, node in (self.nodes or {}).items()},
        }  # fmt: skip

    def calibration(self, pictures: np.ndarray) -> np.ndarray:
        """Return what calibrates: pixels 0..255 for NV12, else normalised, (n, c, h, w) float32."""
        if self.byte_range:
            return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), "<f4")
        return np.ascontiguousarray(self.preprocessing(pictures), "<f4")

    def inputs(self, batch: np.ndarray, pre: data.Preprocessing) -> np.ndarray:
        """Return normalised pictures as the built file takes them.

        Parameters
        ----------
        batch
            (n, channels, height, width) float32.
        pre
            What they were normalised with.

        Raises
        ------
        UsageError
            The file takes NV12, and these are not pictures of whole pixels.
        """
        if not self.byte_range:
            return np.ascontiguousarray(batch, "<f4")
        luma, pairs = nv12.planes(nv12.of_inputs(batch, pre, self.byte_range))
        chroma = pairs.repeat(2, axis=-3).repeat(2, axis=-2)
        yuv = np.concatenate([luma[..., None], chroma], axis=-1).astype(np.int16) - 128
        return np.ascontiguousarray(yuv, np.int8)


PASSED_ON = ("core_num", "jobs", "debug", "march")
"""Settings that a recipe does not have, and D-Robotics' tools get."""

_AS_IS = {
    "layer_out_dump": (False,), "output_nodes": (), "remove_node_type": (), "remove_node_name": (),
    "input_batch": (1,), "per_channel": (False,), "optimization": (), "compile_mode": ("latency",),
    "max_time_per_fc": (0,), "custom_op_method": (), "op_register_files": (), "custom_op_dir": (),
}  # fmt: skip
"""Setting -> the values that ask for what is built without it, too."""


def _refuse_other_settings(settings: hb_mapper.Settings) -> None:
    """Refuse what would make another file, and is not passed on; UsageError names the line."""
    source = "pyramid" if settings.byte_range else "ddr"
    for line in settings.lines:
        value = settings.get(line.key)
        other = value is not None and value not in _AS_IS.get(line.key, (value,))
        if line.key == "input_source" and value is not None:
            other = not isinstance(value, dict) or set(value.values()) != {source}
        if line.key == "jobs" and value is not None:
            other = type(value) is not int or value < 1
        if other:
            raise UsageError(
                f"{settings.file}, line {line.number}: {line.key}: {line.value} is not passed on "
                "to D-Robotics' tools here, and the file would be another one. Leave it out, or "
                "build with hb_mapper itself: `labutils rdk prepare`."
            )


def _options(settings: hb_mapper.Settings) -> str:
    """Return what the compiler is told, as public logs of makertbin have it (1.23 to 1.24)."""
    debug = ["--debug"] if settings.get("debug") else []
    jobs = [f"--jobs {settings.get('jobs')}"] if settings.get("jobs") else []
    return " ".join([*debug, f"--core-num {settings.get('core_num', 1)}", "--fast", *jobs])


@dataclass(frozen=True)
class Built:
    """What the vendor's tools made.

    Attributes
    ----------
    compiled, quantized
        The hybrid model (``.bin``) and the quantized ONNX, in a scratch folder.
    estimate
        Latency and frame rate by the vendor's compiler; None where it printed none.
    nodes
        The vendor's table of nodes.
    log
        All that was printed.
    versions
        Of the vendor's packages.
    """

    compiled: Path
    quantized: Path
    estimate: Estimate | None
    nodes: tuple[NodeLine, ...]
    log: str
    versions: dict[str, str]


def build(
    tool: calling.Called, file: OnnxFile, order: Order, pictures: np.ndarray, prefix: Path
) -> Built:
    """Have the user's tools quantize and compile a network.

    Parameters
    ----------
    tool
        From `connect`.
    file
        The network, of opset 11 at most.
    order
        What is asked for.
    pictures
        (n, height, width, channels) uint8, for calibration.
    prefix
        Folder and first part of the name of what is written; the folder must be empty.

    Raises
    ------
    ConvertError
        The network is of a form that the tool refuses, or it failed, in its own words.
    """
    refuse_newer(file)
    known = versions(tool)
    calibration = order.calibration(pictures)
    settings = order.arguments(file.inputs[0].name)
    try:
        made = tool.ask(
            "build", model=str(file.path), prefix=str(prefix), settings=settings,
            calibration=calibration,
        )  # fmt: skip
    except ToolError as error:
        raise ConvertError(
            f"D-Robotics' build_onnx refuses {file.name}: {error.kind}: {error.reason}. "
            "`labutils diagnose MODEL --target rdk-x5` says what the table knows of it."
        ) from None
    missing = [what for what in ("compiled", "quantized") if not made[what]]
    if missing:
        raise ConvertError(
            f"D-Robotics' build_onnx wrote no {' and no '.join(missing)} model of {file.name}: "
            f"{', '.join(made['written']) or 'nothing'}. Its last words: "
            f"{(made['log'].strip().splitlines() or ['none'])[-1]}"
        )
    log = made["log"]
    return Built(
        Path(made["compiled"]), Path(made["quantized"]), vendor_log.estimate(log),
        vendor_log.nodes(log), log, known,
    )  # fmt: skip


def refuse_newer(file: OnnxFile) -> None:
    """Raise ConvertError for an opset or an IR version that the tool does not read.

    Its own words are those of the operator table (measured).
    """
    if file.opset > _MOST_OPSET:
        raise ConvertError(
            f"{file.name} is of opset {file.opset}, and D-Robotics' tools read {_MOST_OPSET} at "
            f"most. Export it with --opset {_MOST_OPSET}, or repair it first: `labutils repair "
            f"{file.name} --target rdk-x5 -o FIXED.onnx`."
        )
    if file.proto.ir_version > _MOST_IR:
        raise ConvertError(
            f"{file.name} is of IR version {file.proto.ir_version}, and D-Robotics' tools read "
            f"{_MOST_IR} at most. Write it again with {_MOST_IR} (onnx: model.ir_version)."
        )


def readable(file: OnnxFile, destination: Path) -> OnnxFile:
    """Return a file as the tools read it: the same nodes, of an IR version that they know.

    Parameters
    ----------
    file
        It is returned as it is, where they read it.
    destination
        What is written where they do not.

    Raises
    ------
    ConvertError
        It is of a newer opset: that takes a repair.
    """
    if file.opset <= _MOST_OPSET and file.proto.ir_version > _MOST_IR:
        older = file.copy()
        older.ir_version = _MOST_IR
        file = OnnxFile.write(destination, older)
    refuse_newer(file)
    return file


class VendorRunner:
    """A file that the vendor's tools made, on the vendor's executor: their simulator of the BPU.

    Parameters
    ----------
    tool
        From `connect`.
    file
        The compiled or the quantized file.
    order
        What it was built with.
    name
        Of the input.
    preprocessing
        What the pictures that it is run on were normalised with.
    output
        Which output has the scores; by default the one whose shape and name say so.
    kind
        For the name of the runtime: ``BPU simulator`` or ``quantized ONNX``.
    """

    def __init__(
        self,
        tool: calling.Called,
        file: Path,
        order: Order,
        name: str,
        preprocessing: data.Preprocessing,
        output: str | None = None,
        kind: str = "BPU simulator",
    ) -> None:
        self.tool, self.file, self.order, self.input = tool, file, order, name
        self.preprocessing, self.output = preprocessing, output
        self.name, self.runtime = file.name, f"D-Robotics' {kind}, of your installation"

    def __enter__(self) -> VendorRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Hold nothing: the tool is closed by who opened it."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return logits, float32 (n, classes), for images, float32 (n, channels, height, width)."""
        answer = self.tool.ask(
            "run", file=str(self.file), name=self.input,
            inputs=self.order.inputs(batch, self.preprocessing),
        )  # fmt: skip
        found = {key: value for key, value in answer.items() if isinstance(value, np.ndarray)}
        name = (
            outputs.found_name(self.output, found, self.file.name) if self.output
            else outputs.scores_of(outputs.of_arrays(found)) or next(iter(found))
        )  # fmt: skip
        return outputs.as_scores(found[name]).astype(np.float32)
