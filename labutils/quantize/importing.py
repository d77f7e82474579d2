"""Other tools' recipes: TI's preset names, TIDL's import options, D-Robotics' hb_mapper YAML.

What has no counterpart here is reported, never dropped in silence. Facts: the presets of
edgeai-modeloptimization (torchmodelopt, 2025-07), TIDL's documented import options, and the
MobileNetV3 configuration of rdk_model_zoo (2024).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import located_yaml, typesetting, untrusted
from ..errors import UnknownNameError, UsageError, worded
from ..rdk import hb_mapper
from .recipe import MAX_IMAGES, Activations, Calibration, Override, Recipe, Weights

TI_PRESETS = (
    "DEFAULT", "WC8_AT8", "MSA_WC8_AT8", "WT8SYMP2_AT8SYMP2", "WC8SYMP2_AT8SYMP2",
    "WC8SYMP2_AT8SYMP2R4", "WC8P2_AT8P2", "MSA_WC8P2_AT8P2", "WC4_AT8", "WC4M4_AT8", "WC16_AT16",
    "WC32_AT32",
)  # fmt: skip
"""TI's names of quantization settings, all of which `imported` takes."""

_FOUR = 4.0
_TI = re.compile(r"(MSA_)?W([CT])(\d+)(SYM)?(P2)?(M4)?_AT(\d+)(SYM)?(P2)?(R4)?")


@dataclass(frozen=True, repr=False)
class Imported(typesetting.Shown):
    """A recipe made of another tool's settings.

    Attributes
    ----------
    recipe
        The lab's recipe.
    source
        File or preset name, and whose it is.
    mapped
        (setting, what it became).
    unmapped
        (setting, why it has no counterpart).
    """

    recipe: Recipe
    source: str
    mapped: tuple[tuple[str, str], ...]
    unmapped: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the import as plain values, for JSON."""
        return {
            "recipe": self.recipe.to_dict(),
            "source": self.source,
            "mapped": [list(pair) for pair in self.mapped],
            "unmapped": [list(pair) for pair in self.unmapped],
        }

    def _lines(self) -> list[str]:
        lines = [f"{self.source}: {len(self.mapped)} settings taken, {len(self.unmapped)} not"]
        lines += [f"  {key} -> {value}" for key, value in self.mapped]
        lines += [f"  NOT MAPPED {key}: {why}" for key, why in self.unmapped]
        return lines

    def __str__(self) -> str:
        return "\n".join([*self._lines(), "", str(self.recipe)])


def imported(source: str | Path) -> Imported:
    """Return the recipe of another tool.

    Parameters
    ----------
    source
        One of TI's preset names (also ``"A+B"``), an hb_mapper YAML, or TIDL's import options as
        YAML or JSON (``tensor_bits``, ``advanced_options:...``).

    Raises
    ------
    UnknownNameError
        Neither a name of TI's nor a file.
    UsageError
        The file is not readable, or of no tool that is known here; the message names the line.
    """
    name, file = str(source), Path(source)
    if name in TI_PRESETS or all(_TI.fullmatch(part) for part in name.split("+")):
        return _of_ti(name)
    if not file.is_file():
        raise UnknownNameError("file or preset of TI", name, TI_PRESETS)
    try:
        text = untrusted.text(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read {file}: {worded(error)}.") from None
    data, fail = located_yaml.read(text, file.name, "settings", UsageError)
    if isinstance(data, dict) and {"model_parameters", "calibration_parameters"} & set(data):
        return _of_hb_mapper(data, file, fail)
    flat = _flat(data) if isinstance(data, dict) else {}
    if {"tensor_bits", "accuracy_level"} & set(flat) or any("advanced_options:" in k for k in flat):
        return _of_tidl(flat, file, fail)
    raise UsageError(
        f"{file.name} is neither an hb_mapper YAML (model_parameters, calibration_parameters) nor "
        "TIDL import options (tensor_bits, advanced_options:...)."
    )


def _of_ti(name: str) -> Imported:
    first, *others = name.split("+")
    found = _TI.fullmatch("WC8_AT8" if first == "DEFAULT" else first)
    if found is None:
        raise UsageError(f"{name} is not the name of a TI recipe.")
    msa, grain, weight, _, wp2, m4, activation, asym, ap2, r4 = found.groups()
    mapped, unmapped = [], []
    bits: dict[str, Any] = {}
    for what, value, allowed in (
        ("weights", weight, (4, 8, 16)),
        ("activations", activation, (8, 16)),
    ):
        bits[what] = int(value) if int(value) in allowed else max(allowed)
        if int(value) in allowed:
            mapped.append((f"{what} {value} bits", f"{what}.bits {value}"))
        else:
            unmapped.append((f"{what} {value} bits", f"no such integers here; taken: {bits[what]}"))
    recipe = Recipe(
        name=first.lower(),
        about=f"TI's {first}",
        activations=Activations(
            bits["activations"], bool(asym), bool(ap2), (-_FOUR, _FOUR) if r4 else None
        ),
        weights=Weights(
            bits["weights"], True, grain == "C", bool(wp2), limit=_FOUR if m4 else None
        ),
        calibration=Calibration("mse"),
    )
    mapped += [
        (f"W{grain}", f"weights.per_channel {str(grain == 'C').lower()}, symmetric"),
        ("histogram observer", "calibration.method mse (it minimizes the squared error)"),
    ]
    mapped += [("SYM", "activations.symmetric")] if asym else []
    mapped += [("P2", "power_of_two (scales rounded up)")] if wp2 or ap2 else []
    if msa:
        mapped.append(("MSA_", "nothing: TI's preset equals the one without it"))
    mapped += [("R4", "activations.range -4 to 4 (0 to 4 where nothing is negative)")] if r4 else []
    mapped += [("M4", "weights.limit 4")] if m4 else []
    unmapped += [
        (f"+{other}", "a second precision, which TI's own tool reads and ignores")
        for other in others
    ]
    return Imported(recipe, f"TI preset {name}", tuple(mapped), tuple(unmapped))


_HB_METHODS = {
    "kl": Calibration("entropy"), "max": Calibration(), "mix": Calibration("entropy"),
    "default": Calibration("mse"),
}  # fmt: skip
_PER_CHANNEL = "ranges per channel of a feature map; here a tensor has one range"
"""RDK X3's guide of post-training quantization (docs/toolchain_development/intermediate/
ptq_process.md): whether each channel of a feature map is calibrated. Of weights it says nothing."""
_HB_ELSEWHERE = {
    "onnx_model": "the model is given where the recipe is used",
    "march": "a chip, not a precision",
    "working_dir": "a folder", "output_model_file_prefix": "a file name",
    "layer_out_dump": "debugging", "cal_data_dir": "images are given where the recipe is used",
    "cal_data_type": "images are float32 here", "input_name": "read from the model",
    "input_shape": "read from the model", "input_layout_train": "read from the model",
    "input_type_train": "preprocessing, stated with the model",
    "norm_type": "preprocessing, stated with the model",
    "input_space_and_range": "of the bytes; the lab's input stays float32",
    "preprocess_on": "images are scaled by the lab",
    "compile_mode": "the compiler's", "debug": "the compiler's",
    "optimize_level": "of D-Robotics' compiler, where it makes a .bin",
}  # fmt: skip


_HB_NODES = ("node_info", "run_on_cpu", "run_on_bpu", "set_node_data_type")


def _of_hb_mapper(data: dict, file: Path, fail: located_yaml.Fail) -> Imported:
    mapped: list[tuple[str, str]] = []
    unmapped: list[tuple[str, str]] = []
    settings = hb_mapper.of_content(data, file.name, fail)
    overrides, exclude = _of_nodes(settings, mapped, unmapped)
    calibration = _of_calibration(settings, mapped, unmapped)
    for section, entries in data.items():
        for key, value in (entries or {}).items():
            if key in (*_HB_NODES, "calibration_type", "max_percentile"):
                continue
            if key == "per_channel" and value:
                unmapped.append((f"{key}: {value}", _PER_CHANNEL))
            elif key == "per_channel":
                mapped.append((f"{key}: {value}", "one range per tensor; weights: per channel"))
            elif key == "input_type_rt":
                why = "the runtime's picture format; the lab's input stays float32"
                unmapped.append((f"{key}: {value}", why))
            elif key in ("mean_value", "scale_value") and settings.get(key) is not None:
                mapped.append((f"{key}: {value}", _in_units(key, settings)))
            else:
                why = _HB_ELSEWHERE.get(key, "unknown to the lab")
                unmapped.append((f"{section}.{key}", why))
    recipe = Recipe(
        name=file.stem, about=f"hb_mapper, {file.name}", calibration=calibration,
        overrides=overrides, exclude=exclude,
    )  # fmt: skip
    return Imported(recipe, f"hb_mapper YAML {file.name}", tuple(mapped), tuple(unmapped))


def _of_calibration(
    settings: hb_mapper.Settings,
    mapped: list[tuple[str, str]],
    unmapped: list[tuple[str, str]],
) -> Calibration:
    """Return the method, whose percentile counts for ``max`` only, wherever it stands."""
    kind, share = settings.get("calibration_type"), settings.get("max_percentile")
    calibration = _HB_METHODS.get(kind, Calibration("mse"))
    if kind is not None and kind not in _HB_METHODS:
        unmapped.append((f"calibration_type: {kind}", "no such method here; taken: mse"))
    elif kind is not None:
        mapped.append((f"calibration_type: {kind}", f"calibration.method {calibration.method}"))
    if kind == "default":
        unmapped.append(("calibration_type: default", "the tool's search over methods; taken: mse"))
    if share is not None and kind == "max":
        percent = 100 * float(share)
        mapped.append((f"max_percentile: {share}", f"percentile {percent:g}"))
        return Calibration("percentile", percentile=percent)
    if share is not None:
        unmapped.append((f"max_percentile: {share}", "of calibration_type max only"))
    return calibration


def _in_units(key: str, settings: hb_mapper.Settings) -> str:
    """Return what --mean or --std says the same as ``mean_value`` or ``scale_value``."""
    mean, scale = settings.normalisation(settings.channels)
    name, figures = ("--mean", mean / 255) if key == "mean_value" else ("--std", 1 / (255 * scale))
    return f"{name} {' '.join(f'{figure:.6g}' for figure in figures)}"


def _of_nodes(
    settings: hb_mapper.Settings,
    mapped: list[tuple[str, str]],
    unmapped: list[tuple[str, str]],
) -> tuple[tuple[Override, ...], tuple[str, ...]]:
    """Return the nodes whose width is said, and those that stay in float."""
    overrides: list[Override] = []
    exclude: list[str] = []
    for name, node in settings.nodes.items():
        said = node.entry()
        del said["ON"]
        words = "/".join(sorted(set(said.values())))
        if node.on == "CPU":
            exclude.append(name)
            mapped.append((f"{name} ON CPU", "excluded: it stays in float"))
        elif not said:
            mapped.append((f"{name} ON BPU", "quantized, as all are"))
        else:
            widest: Any = max(node.widths)
            overrides.append(Override(node=name, activations=widest))
            mapped.append((f"{name} {words}", f"activations {widest}"))
            if len(node.widths) > 1:
                why = f"a node has one width here; taken: {widest}"
                unmapped.append((f"{name}: input and output differ", why))
    return tuple(overrides), tuple(exclude)


_SCALES = {0: (False, False), 1: (True, True), 4: (False, False)}  # symmetric, power of two


def _flat(data: dict, prefix: str = "") -> dict[str, Any]:
    """Return nested options as TIDL's flat ``advanced_options:name`` keys."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            inner = f"{key}:" if key == "advanced_options" else ""
            found |= _flat(value, inner)
        else:
            found[name] = value
    return found


def _of_tidl(options: dict[str, Any], file: Path, fail: located_yaml.Fail) -> Imported:
    mapped: list[tuple[str, str]] = []
    unmapped: list[tuple[str, str]] = []
    overrides: list[Override] = []
    exclude: list[str] = []
    activations, weights, calibration = Activations(), Weights(per_channel=False), Calibration()
    correct = False
    for key, value in options.items():
        name = key.removeprefix("advanced_options:")
        if name == "tensor_bits" and value in (8, 16):
            activations, weights = Activations(value), Weights(value, per_channel=False)
            became = f"activations and weights {value} bits"
        elif name == "quantization_scale_type" and value in _SCALES:
            symmetric, power = _SCALES[value]
            activations = Activations(activations.bits, symmetric, power)
            weights = Weights(weights.bits, True, value == 4, power)
            became = f"power_of_two {str(power).lower()}, per_channel {str(value == 4).lower()}"
        elif name == "calibration_frames":
            if type(value) is not int or not 1 <= value <= MAX_IMAGES:
                raise fail((key,), f"expected a number of images, found {untrusted.shown(value)}")
            calibration = Calibration(calibration.method, value)
            became = f"calibration.images {value}"
        elif name == "channel_wise_quantization":
            weights = Weights(weights.bits, True, bool(value), weights.power_of_two)
            became = "weights.per_channel"
        elif name == "activation_clipping" and value:
            calibration = Calibration("mse", calibration.images)
            became = "calibration.method mse"
        elif name == "weight_clipping" and value:
            weights = Weights(weights.bits, True, weights.per_channel, weights.power_of_two, True)
            became = "weights.mse"
        elif name == "bias_calibration" and value:
            correct, became = True, "correct_bias"
        elif name in ("output_feature_16bit_names_list", "params_16bit_names_list"):
            what = "activations" if name.startswith("output") else "weights"
            listed = [n.strip().removesuffix("_output_0") for n in str(value).split(",")]
            wide: dict[str, Any] = {what: 16}
            overrides += [Override(node=n, **wide) for n in listed if n]
            became = f"overrides: {what} 16 for {len(listed)} nodes"
        elif name == "deny_list:layer_name":
            exclude += [n.strip() for n in str(value).split(",") if n.strip()]
            became = "exclude"
        else:
            unmapped.append((f"{key}: {value}", "no counterpart: TIDL's compiler or runtime"))
            continue
        mapped.append((f"{key}: {value}", became))
    recipe = Recipe(
        name=file.stem, about=f"TIDL import options, {file.name}", activations=activations,
        weights=weights, calibration=calibration, correct_bias=correct,
        overrides=tuple(overrides), exclude=tuple(exclude),
    )  # fmt: skip
    return Imported(recipe, f"TIDL options {file.name}", tuple(mapped), tuple(unmapped))
