"""hb_mapper's YAML, read with every line accounted for: taken by the lab, or why it is not.

Keys and values are those of D-Robotics' description of makertbin's configuration (rdk_doc,
ptq_process.md at 0e03fc39), with march bayes-e of the RDK X5.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import located_yaml, typesetting, untrusted
from ..errors import UsageError, counted, worded
from ..images import data, nv12

_YES_NO = (True, False)
_PICTURES = ("rgb", "bgr", "yuv444", "gray", "featuremap")
_LAYOUTS = ("NCHW", "NHWC")
_ANY = None

SCHEMA: dict[str, dict[str, tuple[Any, ...] | None]] = {
    "model_parameters": {
        "prototxt": _ANY, "caffe_model": _ANY, "onnx_model": _ANY,
        "march": ("bernoulli2", "bayes", "bayes-e"), "output_model_file_prefix": _ANY,
        "working_dir": _ANY, "layer_out_dump": _YES_NO, "output_nodes": _ANY,
        "remove_node_type": _ANY, "remove_node_name": _ANY, "set_node_data_type": _ANY,
        "debug_mode": _ANY, "node_info": _ANY, "log_level": _ANY,
    },
    "input_parameters": {
        "input_name": _ANY, "input_type_train": _PICTURES, "input_layout_train": _LAYOUTS,
        "input_type_rt": (*_PICTURES, "nv12", "yuv444_128"), "input_layout_rt": _LAYOUTS,
        "input_space_and_range": ("regular", "bt601_video"), "input_shape": _ANY,
        "input_batch": _ANY,
        "norm_type": ("no_preprocess", "data_mean", "data_scale", "data_mean_and_scale"),
        "mean_value": _ANY, "scale_value": _ANY,
    },
    "calibration_parameters": {
        "cal_data_dir": _ANY, "cal_data_type": ("float32", "uint8"), "preprocess_on": _YES_NO,
        "calibration_type": ("default", "mix", "kl", "max", "load", "skip"),
        "max_percentile": _ANY, "per_channel": _YES_NO, "run_on_cpu": _ANY, "run_on_bpu": _ANY,
        "optimization": _ANY,
    },
    "compiler_parameters": {
        "compile_mode": ("latency", "bandwidth"), "debug": _YES_NO, "core_num": (1, 2),
        "optimize_level": ("O0", "O1", "O2", "O3"), "input_source": _ANY,
        "max_time_per_fc": _ANY, "jobs": _ANY,
    },
    "custom_op": {"custom_op_method": _ANY, "op_register_files": _ANY, "custom_op_dir": _ANY},
}  # fmt: skip
"""Section -> key -> the values that it may have; None for any."""

REQUIRED = {
    "model_parameters": ("march", "output_model_file_prefix"),
    "input_parameters": ("input_type_train", "input_layout_train", "input_type_rt", "norm_type"),
    "calibration_parameters": ("calibration_type",),
    "compiler_parameters": ("compile_mode", "optimize_level"),
}
"""What hb_mapper does not do without."""

_TYPES = {"int8": 8, "int16": 16}
_TYPED = re.compile(r"(InputType\d*|OutputType)")


@dataclass(frozen=True)
class Line:
    """One setting: where it stands, what it says, and what the lab makes of it.

    Attributes
    ----------
    number
        The line of the file.
    section, key, value
        As they stand there.
    taken
        What it became in the lab; "" where it has no counterpart.
    left
        Why it has none; "" where it has one.
    """

    number: int
    section: str
    key: str
    value: Any
    taken: str = ""
    left: str = ""


@dataclass(frozen=True)
class Node:
    """An entry of ``node_info``: where a node runs, and in how many bits, if that is said."""

    on: str = "BPU"
    inputs: int | None = None
    output: int | None = None


@dataclass(frozen=True, repr=False)
class Settings(typesetting.Shown):
    """What an hb_mapper YAML says.

    Attributes
    ----------
    file
        Its name.
    values
        Section -> key -> value, without what was left empty.
    nodes
        Name -> what ``node_info``, ``run_on_cpu`` and ``run_on_bpu`` say of a node.
    lines
        Every setting, in the order of the file.
    """

    file: str
    values: Mapping[str, Mapping[str, Any]]
    nodes: Mapping[str, Node] = field(default_factory=dict)
    lines: tuple[Line, ...] = ()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key of any section, `default` where it is not given."""
        found = [entries[key] for entries in self.values.values() if key in entries]
        return found[0] if found else default

    @property
    def channels(self) -> int:
        """Of the network's picture: 1 for gray, else 3."""
        return 1 if self.get("input_type_train") == "gray" else 3

    @property
    def byte_range(self) -> nv12.Range | None:
        """The range of the NV12 bytes that the board feeds, None where it feeds no NV12.

        hb_mapper reads them in the full range unless ``input_space_and_range: bt601_video``.
        """
        if self.get("input_type_rt") != "nv12":
            return None
        return "video" if self.get("input_space_and_range") == "bt601_video" else "full"

    def preprocessing(self, size: data.Size | None = None) -> data.Preprocessing:
        """Return what the network's input is normalised with.

        Parameters
        ----------
        size
            Of the network's input; by default what ``input_shape`` says.

        Raises
        ------
        UsageError
            The size is not said, or the input is not RGB or gray in NCHW.
        """
        kind, layout = self.get("input_type_train"), self.get("input_layout_train", "NCHW")
        if kind not in ("rgb", "gray") or layout != "NCHW":
            raise UsageError(
                f"{self.file}: the network was trained on {kind} in {layout}, and the lab feeds "
                "RGB or gray in NCHW. Export the network with such an input, or calibrate it with "
                "arrays of your own (--calibration FILE.npz)."
            )
        size = size or _size(self.get("input_shape"))
        if size is None:
            raise UsageError(f"{self.file} leaves input_shape open: pass --size HEIGHT WIDTH.")
        mean, scale = self.normalisation(self.channels)
        means, stds = tuple(mean / 255), tuple(1 / (255 * scale))
        return data.Preprocessing(size, means, stds, f"hb_mapper's {self.file}")

    def normalisation(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and scale per channel, of pixels 0..255: ``(pixel - mean) * scale``."""
        kind = self.get("norm_type", "no_preprocess")
        found = [np.zeros(channels), np.ones(channels)]
        for place, key in enumerate(("mean_value", "scale_value")):
            if key.partition("_")[0] not in kind:
                continue
            try:
                found[place] = _figures(self.get(key), channels, positive=place == 1)
            except ValueError as error:
                raise UsageError(f"{self.file}: norm_type {kind} needs {key}: {error}.") from None
        return found[0], found[1]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for JSON."""
        return {"file": self.file, "lines": [vars(line) for line in self.lines]}

    def __str__(self) -> str:
        taken = [line for line in self.lines if line.taken]
        rows = [f"{self.file}: {len(taken)} of {len(self.lines)} settings taken"]
        for line in self.lines:
            became = f"-> {line.taken}" if line.taken else f"not taken: {line.left}"
            rows.append(f"  line {line.number:>3}  {line.key}: {_short(line.value)}  {became}")
        return "\n".join(rows)


def read(file: str | Path) -> Settings:
    """Return what an hb_mapper YAML says; see `parse`."""
    file = Path(file)
    try:
        text = untrusted.text(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read {file}: {worded(error)}.") from None
    return parse(text, file.name)


def parse(text: str, file: str = "config.yaml") -> Settings:
    """Return what the text of an hb_mapper YAML says.

    Raises
    ------
    UsageError
        It is not one, or a value is none of those that hb_mapper takes; with the line.
    """
    content, fail = located_yaml.read(text, file, "an hb_mapper YAML", UsageError)
    return of_content(content, file, fail)


def of_content(content: Any, file: str, fail: located_yaml.Fail) -> Settings:
    """Return the settings in what `located_yaml.read` gave."""
    if not isinstance(content, dict) or not set(content) & set(SCHEMA):
        raise UsageError(f"{file} is not an hb_mapper YAML (no {', '.join(SCHEMA)}).")
    values: dict[str, dict[str, Any]] = {}
    nodes: dict[str, Node] = {}
    lines: list[Line] = []
    for section, entries in content.items():
        if section not in SCHEMA:
            raise fail((section,), _unknown(str(section), SCHEMA))
        entries = {} if entries is None else entries
        if not isinstance(entries, dict):
            raise fail((section,), f"expected a mapping, found {type(entries).__name__}")
        for key, value in entries.items():
            path, number = (section, key), _number(fail, (section, key))
            if value is not None and value != "":
                _check(section, key, value, path, fail)
                values.setdefault(section, {})[key] = value
                _nodes_(key, value, path, fail, nodes)
            lines.append(Line(number, section, str(key), value, *_meaning(section, key, value)))
    found = Settings(file, values, nodes, tuple(lines))
    for key in ("mean_value", "scale_value"):
        if found.get(key) is not None:
            try:
                _figures(found.get(key), found.channels, key == "scale_value")
            except ValueError as error:
                raise fail(("input_parameters", key), str(error)) from None
    return found


def _unknown(word: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"unknown; did you mean {near[0]}?" if near else f"unknown; known: {', '.join(known)}"


def _number(fail: located_yaml.Fail, path: tuple[str, str]) -> int:
    """Return the line of a key."""
    found = re.search(r", line (\d+): ", str(fail(path, "")))
    return int(found[1]) if found else 0


def _check(
    section: str, key: str, value: Any, path: tuple[str, str], fail: located_yaml.Fail
) -> None:
    if key not in SCHEMA[section]:
        return  # of another release of the tool: it is listed as unknown
    allowed = SCHEMA[section][key]
    words = str(value).split(";") if isinstance(value, str) else [value]
    if section == "input_parameters" and len(words) > 1:
        raise fail(path, "the lab takes networks with one input; this names several")
    for word in words:
        word = word.strip() if isinstance(word, str) else word
        if allowed is not None and word not in allowed:
            listed = ", ".join(map(str, allowed))
            raise fail(path, f"{untrusted.shown(word)} is not one of {listed}")


def _nodes_(
    key: str, value: Any, path: tuple[str, str], fail: located_yaml.Fail, found: dict[str, Node]
) -> None:
    """Add what a setting says of single nodes."""
    if key in ("run_on_cpu", "run_on_bpu"):
        for name in filter(None, (word.strip() for word in str(value).split(";"))):
            found[name] = Node(on=key[-3:].upper())
    elif key in ("node_info", "set_node_data_type") and isinstance(value, str):
        for part in filter(None, (word.strip() for word in value.split(";"))):
            name, _, kind = part.rpartition(":")
            if kind not in _TYPES or not name:
                raise fail(path, f"{untrusted.shown(part)} is not NODE:int16")
            found[name] = Node(output=_TYPES[kind], inputs=_TYPES[kind])
    elif key in ("node_info", "set_node_data_type"):
        if not isinstance(value, dict):
            raise fail(path, f"expected a mapping of nodes, found {type(value).__name__}")
        for name, said in value.items():
            found[str(name)] = _node(said, (*path, name), fail)


def _node(said: Any, path: tuple[Any, ...], fail: located_yaml.Fail) -> Node:
    if not isinstance(said, dict):
        raise fail(path, "expected ON, InputType and OutputType")
    plain = {"ON" if key is True else str(key): value for key, value in said.items()}
    on = plain.pop("ON", "BPU")  # an unquoted ON is true in YAML
    if on not in ("BPU", "CPU"):
        raise fail(path, f"ON: {untrusted.shown(on)} is not one of BPU, CPU")
    inputs, output = [], None
    for key, value in plain.items():
        if not _TYPED.fullmatch(key):
            raise fail((*path, key), "unknown; known: ON, InputType, InputType0 ..., OutputType")
        if value not in _TYPES:
            raise fail((*path, key), f"{untrusted.shown(value)} is not one of int8, int16")
        if key == "OutputType":
            output = _TYPES[value]
        else:
            inputs.append(_TYPES[value])
    return Node(on, max(inputs, default=None), output)


def _figures(value: Any, channels: int, positive: bool) -> np.ndarray:
    """Return one number per channel; ValueError says what is wrong with the value."""
    words = str(value if value is not None else "").split()
    try:
        figures = np.array([float(word) for word in words])
    except ValueError:
        raise ValueError(f"{untrusted.shown(value)} is not a list of numbers") from None
    if len(figures) not in (1, channels) or not np.isfinite(figures).all():
        raise ValueError(
            f"{untrusted.shown(value)} is {counted(len(figures), 'number')}; one is needed, or "
            f"{channels} with blanks between them"
        )
    if positive and not (figures > 0).all():
        raise ValueError(f"{untrusted.shown(value)} must be above 0")
    return figures if len(figures) == channels else np.repeat(figures, channels)


def _size(shape: Any) -> data.Size | None:
    words = str(shape or "").lower().split("x")
    if len(words) != 4 or not all(word.strip().isdigit() for word in words):
        return None
    return int(words[2]), int(words[3])


_MEANINGS = {
    "node_info": "precision and place of single nodes",
    "set_node_data_type": "precision of single nodes",
    "run_on_cpu": "nodes that stay in float", "run_on_bpu": "nodes that are quantized",
    "calibration_type": "method of calibration", "max_percentile": "percentile of calibration",
    "per_channel": "ranges per channel of feature maps", "norm_type": "preprocessing",
    "mean_value": "preprocessing", "scale_value": "preprocessing",
    "input_type_train": "preprocessing: channels and their order",
    "input_layout_train": "preprocessing: layout", "input_shape": "preprocessing: size",
    "input_type_rt": "what the board feeds", "input_space_and_range": "range of the NV12 bytes",
    "cal_data_dir": "folder of calibration", "cal_data_type": "type of its files",
}  # fmt: skip
_ELSEWHERE = {
    "onnx_model": "the model is passed where the settings are used",
    "march": "the chip: bayes-e is the RDK X5", "working_dir": "a folder of the tool",
    "output_model_file_prefix": "a file name of the tool", "layer_out_dump": "debugging",
    "debug": "debugging", "debug_mode": "debugging", "log_level": "debugging",
    "input_name": "read from the model", "input_batch": "the lab's networks take one picture",
    "preprocess_on": "the lab scales pictures itself",
    "optimization": "the type of the output, float32 in the lab",
}  # fmt: skip


def _meaning(section: str, key: str, value: Any) -> tuple[str, str]:
    """Return what a setting became, and why it became nothing."""
    if value is None or value == "":
        return "", "left empty: the tool's default"
    if key in _MEANINGS:
        return _MEANINGS[key], ""
    if key not in SCHEMA[section]:
        return "", _unknown(key, SCHEMA[section])
    return "", _ELSEWHERE.get(key, "the compiler's")


def _short(value: Any) -> str:
    text = "{...}" if isinstance(value, dict) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
