"""Our recipes for LiteRT: as rules of ai-edge-quantizer, with our ranges, and what is not carried.

Ranges are measured on the float ``.tflite`` and chosen by the recipe's own method. Exceptions by
node reach the operators that these nodes became.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UnknownNameError, UsageError
from ..litert import Quantization, Rounded, Seen, places
from ..runtime import litert
from .insertion import scale_of
from .ranges import Ranges
from .recipe import Activations, Calibration, Method, Recipe, fits

_HANDING_ON = ("TRANSPOSE", "RESHAPE", "PAD")
_FOUR_BITS = ("CONV_2D", "FULLY_CONNECTED")
_WEIGHTS_AGAIN = (
    "scales of weights: a channel's greatest weight decides, so its codes are the same where the "
    "greatest code was used"
)
_NO_ZERO = "zero points of 16-bit activations: LiteRT's are symmetric"
_SIXTEEN = "int16 activations have kernels for some operators; the others stay in float32"


@dataclass(frozen=True)
class Node:
    """A node of the network's ONNX file: what the exceptions of a recipe name.

    Attributes
    ----------
    name, op_type
        As a recipe's globs see them.
    place
        What the converter calls its tensors after.
    """

    name: str
    op_type: str
    place: str


@dataclass
class _Carrier:
    """One recipe on its way into a ``.tflite``."""

    recipe: Recipe
    nodes: Sequence[Node]
    makers: dict[str, list[Node]] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)  # place -> the last tensor made there
    image: set[str] = field(default_factory=set)  # the input, and where it is only handed on

    def rules(self, contents: litert.Contents) -> list[dict[str, Any]]:
        """Return the rules for a float file; later ones hold."""
        by_place: dict[str, list[Node]] = {}
        for node in self.nodes:
            by_place.setdefault(node.place, []).append(node)
        made = self._defaults()
        self.image = {contents.tensors[n].name for n in contents.inputs}
        for operator in contents.operators:
            names = [contents.tensors[n].name for n in operator.outputs]
            found = [n for name in names for place in places(name) for n in by_place.get(place, ())]
            # the first place is the operator's own; others were fused, or share its constants
            own = [
                n for name in names for place in places(name)[:1] for n in by_place.get(place, ())
            ]
            if not found and set(operator.outputs) & set(contents.outputs):
                found = own = list(self.nodes[-1:])  # its tensor is called after the signature
            self.makers.update(dict.fromkeys(names, found))
            source = contents.tensors[operator.inputs[0]].name if operator.inputs else ""
            if operator.type in _HANDING_ON and source in self.image:
                self.image.update(names)
            self.last.update({node.place: name for name in names for node in own})
            scope = f"^{re.escape(''.join(f'{name};' for name in names))}$"
            made += self._exceptions(scope, operator.type, found)
        return made

    def _defaults(self) -> list[dict[str, Any]]:
        recipe = self.recipe
        bits, weights = recipe.activations.bits, recipe.weights
        made = [self._rule(".*", "*", bits, 8, weights.per_channel)]
        for end, kind in (("INPUT", recipe.input), ("OUTPUT", recipe.output)):
            if kind == "float32":
                made.append(_kept_in_float(".*", end))
        if weights.bits == 4:
            made += [self._rule(".*", op, bits, 4, weights.per_channel) for op in _FOUR_BITS]
        return made

    def _exceptions(self, scope: str, op: str, found: Sequence[Node]) -> list[dict[str, Any]]:
        recipe = self.recipe
        if any(recipe.excluded(node.name) for node in found):
            return [_kept_in_float(scope, "*")]
        said = {
            what: _said(recipe, found, what) for what in ("activations", "weights", "per_channel")
        }
        if all(value is None for value in said.values()):
            return []
        weights = said["weights"] or recipe.weights.bits
        four = weights == 4 and op in _FOUR_BITS
        per_channel = said["per_channel"]
        if per_channel is None:
            per_channel = recipe.weights.per_channel
        bits = said["activations"] or recipe.activations.bits
        return [self._rule(scope, op, bits, 4 if four else 8, per_channel)]

    def _rule(
        self, regex: str, op: str, bits: int, weights: int, per_channel: bool
    ) -> dict[str, Any]:
        symmetric = bits == 16 or self.recipe.activations.symmetric
        grain = "CHANNELWISE" if per_channel else "TENSORWISE"
        return {
            "regex": regex,
            "operation": op,
            "algorithm_key": "min_max_uniform_quantize",
            "op_config": {
                "activation_tensor_config": _tensor(bits, symmetric, "TENSORWISE"),
                "weight_tensor_config": _tensor(weights, True, grain),
                "compute_precision": "INTEGER",
                "explicit_dequantize": False,
                "skip_checks": False,
                "min_weight_elements": 0,
            },
        }

    def ranges(self, seen: Seen) -> dict[str, tuple[float, float]]:
        """Return (low, high) of every tensor, by the recipe's method and exceptions."""
        counts = dict(zip(seen.names, seen.counts, strict=True)) if len(seen.counts) else {}
        found = Ranges(seen.names, seen.low, seen.high, counts)
        chosen: dict[tuple[Method, int], dict[str, tuple[float, float]]] = {}
        made = {}
        for name in seen.names:
            nodes = self.makers.get(name, [])
            bits = _said(self.recipe, nodes, "activations") or self.recipe.activations.bits
            method = _said(self.recipe, nodes, "method") or self.recipe.calibration.method
            key = (method, bits)
            if key not in chosen:
                chosen[key] = found.chosen(self._calibration(*key), bits)
            # one node may become several operators: its range is that of the last
            ending = [node for node in nodes if self.last.get(node.place) == name]
            made[name] = self._settled(chosen[key][name], ending, bits)
        return made

    def _calibration(self, method: Method, bits: int) -> Calibration:
        calibration = self.recipe.calibration
        if bits > self.recipe.activations.bits:  # they reach over the outliers, as in `insertion`
            return dataclasses.replace(calibration, method="minmax", outliers=0.0)
        return dataclasses.replace(calibration, method=method)

    def _settled(
        self, ends: tuple[float, float], nodes: Sequence[Node], bits: int
    ) -> tuple[float, float]:
        """Return a range with the recipe's room, fixed ranges and powers of two."""
        activations = self.recipe.activations
        own, every = _said(self.recipe, nodes, "range"), activations.range
        low, high = ends
        if bits == 16:
            low, high = low * self.recipe.calibration.room, high * self.recipe.calibration.room
        if own is not None:
            low, high = own
        elif every is not None:
            low, high = (every[0] if low < 0 else 0.0), (every[1] if high > 0 else 0.0)
        low, high = min(low, 0.0), max(high, 0.0)
        if not activations.power_of_two:
            return low, high
        symmetric = bits == 16 or activations.symmetric
        step = float(scale_of((low, high), bits, symmetric, False)[0])
        wanted = float(scale_of((low, high), bits, symmetric, True)[0])
        return low * wanted / step, high * wanted / step


def _refuse_idle(recipe: Recipe, nodes: Sequence[Node]) -> None:
    """Refuse an exception that fits no node: it would do nothing, and nobody would know."""
    names, kinds = [node.name for node in nodes], {node.op_type for node in nodes}
    for glob in recipe.exclude:
        if not any(fits(name, glob) for name in names):
            raise UnknownNameError("node (excluded)", glob, names)
    for override in recipe.overrides:
        if not any(override.matches(node.name, node.op_type) for node in nodes):
            by_name = override.node != "*"
            asked = override.node if by_name else override.op_type
            raise UnknownNameError("node (override)", asked, names if by_name else kinds)


class _Stated(_Carrier):
    """The ranges and bits of a QDQ file on their way into a ``.tflite``."""

    def __init__(self, taken: Rounded, nodes: Sequence[Node]) -> None:
        codes = taken.codes
        bits = Counter(found.bits for found in codes.values()).most_common(1)[0][0]
        super().__init__(Recipe(activations=Activations(bits)), nodes)  # type: ignore[arg-type]
        self.codes, self.in_float = codes, taken.in_float

    def _exceptions(self, scope: str, op: str, found: Sequence[Node]) -> list[dict[str, Any]]:
        if any(node.name in self.in_float for node in found):
            return [_kept_in_float(scope, "*")]
        stated = [self.codes[node.name] for node in found if node.name in self.codes]
        bits = stated[0].bits if stated else self.recipe.activations.bits
        return [self._rule(scope, op, bits, 8, True)] * (bits != self.recipe.activations.bits)

    def ranges(self, seen: Seen) -> dict[str, tuple[float, float]]:
        """Return (low, high) of every tensor: what its codes stand for in the QDQ file.

        The converter may fuse what follows, as the sum and the Clip of a hard-sigmoid into the
        convolution before it. Such a tensor is never negative where the node's is, and keeps the
        range that it was seen to have.
        """
        made = Ranges(seen.names, seen.low, seen.high).limits()
        for name in seen.names:
            nodes = self.makers.get(name, [])
            if name in self.image:
                stated = [self.codes[""]] if "" in self.codes else []
            else:
                ending = [node for node in nodes if self.last.get(node.place) == name]
                stated = [self.codes[node.name] for node in ending if node.name in self.codes]
            if stated and not made[name][0] >= 0 > stated[0].low:
                made[name] = (stated[0].low, stated[0].high)
        return made


def stated(file: str, taken: Rounded, nodes: Sequence[Node], images: np.ndarray) -> Quantization:
    """Return how the ranges and weights of a QDQ file are carried into a ``.tflite``.

    Parameters
    ----------
    file
        Its name, for reports.
    taken, nodes
        The file, taken apart; the nodes of the float network behind it.
    images
        As for `carried`: for tensors that the file does not round, and the ``.tflite`` does.
    """
    carrier = _Stated(taken, nodes)
    left, wide = [_WEIGHTS_AGAIN], any(found.bits == 16 for found in taken.codes.values())
    left += [_SIXTEEN, _NO_ZERO] if wide else []
    facts = {"recipe": {"name": f"as in {file}"}, "not_carried": left, "images": len(images)}
    return Quantization(f"as in {file}", images, "", carrier.rules, carrier.ranges, False, facts)


def _tensor(bits: int, symmetric: bool, grain: str) -> dict[str, Any]:
    return {"num_bits": bits, "symmetric": symmetric, "granularity": grain, "dtype": "INT"}


def _kept_in_float(regex: str, op: str) -> dict[str, Any]:
    return {"regex": regex, "operation": op, "algorithm_key": "no_quantize"}


def _said(recipe: Recipe, nodes: Sequence[Node], what: str) -> Any:
    """Return what an exception says of any of the nodes; None where none does."""
    found = [recipe.setting(node.name, node.op_type, what) for node in nodes]
    return next((value for value in found if value is not None), None)


def not_carried(recipe: Recipe) -> tuple[str, ...]:
    """Return what of a recipe a ``.tflite`` does not get, a phrase each."""
    weights = recipe.weights
    everywhere = (weights.bits, *(o.weights for o in recipe.overrides))
    limits = weights.limit or any(o.weight_range for o in recipe.overrides)
    wide = 16 in (recipe.activations.bits, *(o.activations for o in recipe.overrides))
    told = {
        "zero points of weights: LiteRT's kernels take none": not weights.symmetric,
        "powers of two for weights: the quantizer chooses their scales": weights.power_of_two,
        "ranges of weights by least squared error: their greatest value decides": weights.mse,
        "a limit of weights: their greatest value decides": limits,
        "16-bit weights: 8 are used": 16 in everywhere,
        "4-bit weights of depthwise convolutions: 8 are used": 4 in everywhere,
        "another share of outliers for vectors (vector_outliers)": (
            recipe.calibration.vector_outliers is not None
        ),
        "equalized weights (equalize)": recipe.equalize,
        "equalized channels before gates (equalize_gates)": recipe.equalize_gates,
        "ranges that end where activations are flat (flat_ends)": recipe.flat_ends,
        "corrected biases (correct_bias)": recipe.correct_bias,
        "adaptive rounding of weights": recipe.rounding == "adaptive",
        _SIXTEEN: wide,
    }
    return tuple(words for words, applies in told.items() if applies)


def is_carried_as_qdq(recipe: Recipe) -> bool:
    """Whether a recipe changes weights or biases, and its QDQ file can take that to LiteRT.

    A QDQ file has 8-bit weights per channel there, and floats at its ends.
    """
    weights = recipe.weights
    changes = (
        recipe.equalize, recipe.equalize_gates, recipe.flat_ends, recipe.correct_bias,
        recipe.rounding != "nearest", recipe.calibration.vector_outliers is not None,
    )  # fmt: skip
    bits = {weights.bits, *(o.weights or weights.bits for o in recipe.overrides)}
    plain = weights.symmetric and weights.per_channel and not weights.power_of_two and bits == {8}
    ends = (recipe.input, recipe.output) == ("float32", "float32")
    return any(changes) and plain and ends and recipe.qat is None


def carried(recipe: Recipe, nodes: Sequence[Node], images: np.ndarray) -> Quantization:
    """Return how a recipe of ours quantizes a ``.tflite``.

    Parameters
    ----------
    recipe
        Its method, ranges, bits and exceptions are carried; `not_carried` says what is not.
    nodes
        Of the network's ONNX file, in order: exceptions name them. Empty for a recipe without.
    images
        (n, channels, height, width) float32, normalized, to calibrate on.

    Raises
    ------
    UsageError
        The recipe trains: what it trained is in the weights, and not in a recipe.
    UnknownNameError
        An exception of the recipe fits no node.
    """
    if recipe.qat is not None:
        raise UsageError(
            f"Recipe {recipe.name} is for training (qat), and a recipe carries no weights. Convert "
            "with the recipe without its qat part."
        )
    carrier = _Carrier(recipe, nodes)
    methods = {recipe.calibration.method, *(o.method for o in recipe.overrides if o.method)}
    _refuse_idle(recipe, nodes)
    left = not_carried(recipe)
    facts = {"recipe": recipe.to_dict(), "not_carried": list(left), "images": len(images)}
    return Quantization(
        recipe.name, images, "", carrier.rules, carrier.ranges, methods != {"minmax"}, facts
    )
