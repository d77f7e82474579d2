"""Comparing models by what they compute: parity gate, layer by layer, fidelity ladder."""

from .closeness import Parity, parity
from .divergence import Divergence, first_divergence
from .fidelity import AccuracyTable, Ladder, Rung, Stage, accuracy_table, ladder
from .gating import AGREEMENT, THRESHOLDS, GateReport, gate
from .inner_tensors import activations, paired_activations
from .layerwise import Layer, LayerReport, per_layer
from .sensitivity import Cost, SensitivityReport, sensitivity

__all__ = [
    "AGREEMENT",
    "THRESHOLDS",
    "AccuracyTable",
    "Cost",
    "Divergence",
    "GateReport",
    "Ladder",
    "Layer",
    "LayerReport",
    "Parity",
    "Rung",
    "SensitivityReport",
    "Stage",
    "accuracy_table",
    "activations",
    "first_divergence",
    "gate",
    "ladder",
    "paired_activations",
    "parity",
    "per_layer",
    "sensitivity",
]
