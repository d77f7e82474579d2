"""The recipes of the lab by name, and their versions.

A preset that gets better keeps its name, and what it was stays: ``int8`` is the newest of
``int8@1``, ``int8@2``, ... A recipe's own name says which; manifests hold all values besides.
"""

from __future__ import annotations

from pathlib import Path

from .. import untrusted
from ..errors import UnknownNameError, UsageError
from . import gates
from .recipe import Activations, Calibration, Qat, Recipe, Weights, parse

_ROBUST = Calibration(outliers=0.01)
_TRIMMED = Calibration(outliers=0.05)
_BY_SIZE = Calibration(outliers=0.05, vector_outliers=0.01)

_ALL = (
    Recipe("int8@1", "8-bit activations and weights; ranges leave out 1 % of the images",
           calibration=_ROBUST),
    Recipe("int8@2", "8-bit; 5 % left out (vectors: 1 %), flat ends, gates equalized, biases "
           "corrected", calibration=_BY_SIZE, equalize_gates=True, flat_ends=True,
           correct_bias=True),
    Recipe("int8_trim", "8-bit; ranges leave out 5 % of the images on either side",
           calibration=_TRIMMED),
    Recipe("int8_corrected", "as int8@1, with corrected biases: for ReLU6 without gates",
           calibration=_ROBUST, correct_bias=True),
    Recipe("int8_minmax", "8-bit, ranges over all images: what most tools do by default"),
    Recipe("int8_tensor", "8-bit, min-max, one scale per weight tensor: the aggressive one",
           weights=Weights(per_channel=False)),
    Recipe("a16w8", "16-bit activations, 8-bit weights", Activations(16)),
    Recipe("a16w8_room", "as a16w8, with ranges a quarter longer than what calibration saw",
           Activations(16), calibration=Calibration(room=1.25)),
    Recipe("w4a8@1", "4-bit weights per channel, 8-bit activations",
           weights=Weights(4, mse=True), calibration=_TRIMMED),
    Recipe("w4a8@2", "as int8, with 4-bit weights per channel",
           weights=Weights(4, mse=True), calibration=_BY_SIZE, equalize_gates=True,
           flat_ends=True, correct_bias=True),
    Recipe("w4a16", "4-bit weights per channel, 16-bit activations", Activations(16),
           Weights(4, mse=True)),
    Recipe("w4a8_adaptive@1", "as w4a8@1, with adaptive rounding and corrected biases",
           weights=Weights(4, mse=True), calibration=_TRIMMED, correct_bias=True,
           rounding="adaptive"),
    Recipe("w4a8_adaptive@2", "as w4a8, with adaptive rounding",
           weights=Weights(4, mse=True), calibration=_BY_SIZE, equalize_gates=True,
           flat_ends=True, correct_bias=True, rounding="adaptive"),
    Recipe("pow2", "8-bit, symmetric, power-of-two scales, one per weight tensor (TDA4VM)",
           Activations(8, True, True), Weights(8, True, False, True), _ROBUST),
    Recipe("pow2_channel", "as pow2, one power of two per output channel",
           Activations(8, True, True), Weights(8, True, True, True), _ROBUST),
    Recipe("int8_qat@1", "as int8@1, trained with the rounding in place", calibration=_ROBUST,
           qat=Qat(steps=150, batch_size=32, size=112, learning_rate=1e-4)),
    Recipe("int8_qat@2", "as int8, trained with the rounding in place",
           calibration=_BY_SIZE, equalize_gates=True,
           qat=Qat(steps=150, batch_size=32, size=128, learning_rate=1e-4)),
    Recipe("w4a8_qat@1", "4-bit weights, ranges as int8@1, trained with the rounding in place",
           weights=Weights(4, mse=True), calibration=_ROBUST,
           qat=Qat(steps=300, batch_size=32, size=112, learning_rate=5e-4)),
    Recipe("w4a8_qat@2", "as w4a8, trained with the rounding in place",
           weights=Weights(4, mse=True), calibration=_BY_SIZE, equalize_gates=True,
           correct_bias=True, qat=Qat(steps=300, batch_size=32, size=128, learning_rate=5e-4)),
    Recipe("w4a8_qat@3", "as w4a8_qat@2, trained three times as long",
           weights=Weights(4, mse=True), calibration=_BY_SIZE, equalize_gates=True,
           correct_bias=True, qat=Qat(steps=1000, batch_size=32, size=128, learning_rate=5e-4)),
    Recipe("pow2_qat", "as pow2, trained with the rounding in place",
           Activations(8, True, True), Weights(8, True, False, True), _ROBUST,
           qat=Qat(steps=300, batch_size=32, size=112, learning_rate=3e-4)),
)  # fmt: skip


def _by_name() -> dict[str, tuple[Recipe, ...]]:
    found: dict[str, tuple[Recipe, ...]] = {}
    for recipe in _ALL:
        name = recipe.name.partition("@")[0]
        found[name] = (*found.get(name, ()), recipe)
    return found


VERSIONS: dict[str, tuple[Recipe, ...]] = _by_name()
"""Every preset with its versions, the first one first."""

PRESETS: dict[str, Recipe] = {name: versions[-1] for name, versions in VERSIONS.items()}
"""The newest version of every preset."""


def load(recipe: str | Path | Recipe) -> Recipe:
    """Return a recipe: by a preset's name, from a YAML file or YAML text (lines), or as it is.

    Raises
    ------
    UnknownNameError
        Neither a preset nor a file.
    UsageError
        The file is not a recipe; the message names the line.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str) and "\n" in recipe:
        return parse(recipe)
    file = Path(recipe)
    if str(recipe) in PRESETS:
        return PRESETS[str(recipe)]
    if str(recipe) in named():
        return named()[str(recipe)]
    if file.suffix.lower() in (".yaml", ".yml") or file.is_file():
        try:
            written = untrusted.text(file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"Cannot read the recipe {file}: {reason}.") from None
        return parse(written, file.name, note=True)
    raise UnknownNameError("quantization recipe", str(recipe), [*PRESETS, *named()])


def for_training(recipe: Recipe) -> tuple[Recipe, str]:
    """Return the recipe with settings of training, and which preset they are of ("": its own).

    What a search for mixed precision wrote says nothing of training. Its settings are then those
    of the preset whose weights are nearest: ``pow2_qat``, ``w4a8_qat`` or ``int8_qat``; see
    `trainable` for what is left out.
    """
    if recipe.qat is not None:
        return recipe, ""
    recipe = trainable(recipe)
    narrow = {recipe.weights.bits, *(o.weights for o in recipe.overrides)} & {4}
    near = "pow2_qat" if recipe.weights.power_of_two else "w4a8_qat" if narrow else "int8_qat"
    return recipe.replaced(qat=PRESETS[near].qat), near


def trainable(recipe: Recipe) -> Recipe:
    """Return the recipe as training takes it: ranges do not end where activations are flat.

    Training moves them.
    """
    return recipe.replaced(flat_ends=False)


def with_gates_as_they_are(recipe: Recipe) -> Recipe:
    """Return the recipe without equalized gates; the nodes that they add are no longer named."""
    own = tuple(o for o in recipe.overrides if gates.DERIVED not in o.node)
    return recipe.replaced(equalize_gates=False, overrides=own)


def named() -> dict[str, Recipe]:
    """Return every version of every preset as NAME@N."""
    return {
        f"{name}@{number}": recipe
        for name, versions in VERSIONS.items()
        for number, recipe in enumerate(versions, start=1)
    }


def listed() -> dict[str, str]:
    """Return what every preset is in words, and below those with versions what each version is."""
    found: dict[str, str] = {}
    for name, versions in VERSIONS.items():
        newest = PRESETS[name]
        found[name] = newest.about if len(versions) == 1 else f"= {newest.name}"
        if len(versions) > 1:
            found |= {version.name: version.about for version in versions}
    return found
