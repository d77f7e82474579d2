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
from . import hb_mapper_nodes
from .hb_mapper_nodes import Node

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
    def size(self) -> data.Size | None:
        """(height, width) that ``input_shape`` says; None where it is open, or not of a picture."""
        if self.get("input_type_train") == "featuremap":
            return None
        layout = self.get("input_layout_train", "NCHW")
        return _size(self.get("input_shape"), layout, self.channels)

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
            The size is not said, or ``input_shape`` says another one, or the input is not RGB or
            gray in NCHW.
        """
        kind, layout = self.get("input_type_train"), self.get("input_layout_train", "NCHW")
        if kind not in ("rgb", "gray") or layout != "NCHW":
            raise UsageError(
                f"{self.file}: the network was trained on {kind} in {layout}, and the lab feeds "
                "RGB or gray in NCHW. Export the network with such an input, or calibrate it with "
                "arrays of your own (--calibration FILE.npz)."
            )
        own = self.size
        if size is not None and own is not None and data.sides(size) != own:
            raise UsageError(
                f"{self.file}: input_shape {self.get('input_shape')} is not the size of the "
                f"network, which takes {' x '.join(map(str, data.sides(size)))}. Correct or empty "
                "input_shape, or pass the network that was meant."
            )
        size = size or own
        if size is None:
            raise UsageError(f"{self.file} leaves input_shape open: pass --size HEIGHT WIDTH.")
        mean, scale = self.normalisation(self.channels)
        means, stds = (tuple(map(float, v)) for v in (mean / 255, 1 / (255 * scale)))
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
            said = _without_empty_parts(value)
            if said is not None and said != "":
                _check(section, key, said, path, fail)
                values.setdefault(section, {})[key] = said
                hb_mapper_nodes.read_(key, said, path, fail, nodes)
            lines.append(Line(number, section, str(key), value, *_meaning(section, key, entries)))
    found = Settings(file, values, nodes, tuple(lines))
    _check_together(found, fail)
    return found


def _without_empty_parts(value: Any) -> Any:
    """Return a text without the parts between semicolons that hold nothing; ``nv12;`` is one."""
    if not isinstance(value, str):
        return value
    return "; ".join(filter(None, (part.strip() for part in value.split(";"))))


def _check_together(found: Settings, fail: located_yaml.Fail) -> None:
    """Refuse values that do not fit each other."""
    kinds = found.get("input_type_train"), found.get("input_type_rt")
    if None not in kinds and "gray" in kinds and kinds[0] != kinds[1]:
        why = f"{kinds[1]} is not fed to a network of {kinds[0]}: gray goes to gray alone"
        raise fail(("input_parameters", "input_type_rt"), why)
    checks = {
        "mean_value": lambda: _figures(found.get("mean_value"), found.channels, False),
        "scale_value": lambda: _figures(found.get("scale_value"), found.channels, True),
        "input_shape": lambda: found.size,
    }
    for key, check in checks.items():
        try:
            _ = found.get(key) is None or check()
        except ValueError as error:
            raise fail(("input_parameters", key), str(error)) from None


def _unknown(word: object, known: Mapping[str, Any]) -> str:
    word = str(word)
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
    words = value.split("; ") if isinstance(value, str) else [value]
    if section == "input_parameters" and len(words) > 1:
        raise fail(path, "the lab takes networks with one input; this names several")
    for word in words:
        if allowed is not None and word not in allowed:
            listed = ", ".join(map(str, allowed))
            raise fail(path, f"{untrusted.shown(word)} is not one of {listed}")
    if key == "max_percentile" and not _is_share(value):
        raise fail(path, f"{untrusted.shown(value)} is not a share of the values, 0.5 to 1")


def _is_share(value: Any) -> bool:
    """Whether it is a ``max_percentile``; OpenExplorer 1.2.8 for the X5 takes 0.5 to 1."""
    try:
        return 0.5 <= float(value) <= 1
    except (TypeError, ValueError):
        return False


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


def _size(shape: Any, layout: str, channels: int) -> data.Size | None:
    """Return height and width of one picture; ValueError says what is wrong with the value."""
    if shape is None:
        return None
    words = [word.strip() for word in str(shape).lower().split("x")]
    found = [int(word) for word in words if word.isdecimal()]
    rest = found[1:] if layout == "NCHW" else found[3:] + found[1:3]
    if len(found) != len(words) or len(found) != 4 or found[0] != 1 or rest[0] != channels:
        form = f"1x{channels}xHEIGHTxWIDTH" if layout == "NCHW" else f"1xHEIGHTxWIDTHx{channels}"
        raise ValueError(f"{untrusted.shown(shape)} is not one picture in {layout}: {form}")
    if not rest[1] or not rest[2]:
        raise ValueError(f"{untrusted.shown(shape)} is a picture without pixels")
    return rest[1], rest[2]


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
    "optimize_level": "level of D-Robotics' compiler, where it makes a .bin",
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


def _meaning(section: str, key: str, entries: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a setting of a section became, and why it became nothing."""
    if _without_empty_parts(entries[key]) in (None, ""):
        return "", "left empty: the tool's default"
    if key == "max_percentile" and entries.get("calibration_type") != "max":
        return "", "of calibration_type max only"
    if key in _MEANINGS:
        return _MEANINGS[key], ""
    if key not in SCHEMA[section]:
        return "", _unknown(key, SCHEMA[section])
    return "", _ELSEWHERE.get(key, "the compiler's")


def _short(value: Any) -> str:
    text = "{...}" if isinstance(value, dict) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
