"""The makers of our rows in benchmarks/quantization.py, and of the float ones.

Each takes an architecture, a file to write and the inputs; one that trains returns the seconds of
its training.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from quantization_inputs import PREPROCESSING, SIZE, Inputs, float_file
from quantization_training import Progressing, schedule

from labutils import paths, quantize
from labutils.quantize import mixed
from labutils.quantize.recipe import Recipe
from labutils.quantize.training import corrections, qat


def exported(architecture: str, file: Path, inputs: Inputs) -> None:
    """Copy the float export: the network that all others are compared with."""
    shutil.copyfile(float_file(architecture, inputs), file)


def trained(architecture: str, file: Path, inputs: Inputs, *, recipe: Recipe) -> float:
    """Train with the rounding in place, write the file, and return the seconds of the training."""
    network, seconds = _fitted(architecture, file.with_suffix(".pt"), inputs, recipe)
    print(qat.to_qdq(network, file, size=SIZE, preprocessing=PREPROCESSING))
    return seconds


def _fitted(
    architecture: str, kept: Path, inputs: Inputs, recipe: Recipe
) -> tuple[torch.nn.Module, float]:
    """Return a network after QAT, and the seconds that its training took (once, when it ran)."""
    model = inputs.model(architecture).module
    network = qat.prepare(model, recipe, size=SIZE, images=inputs.calibration_inputs())
    if not kept.exists():
        print(qat.calibrate_(network, inputs.calibration_set(), PREPROCESSING))
        done = qat.fit_(network, teacher=model, on_step=Progressing(), **schedule(recipe, inputs))
        print(done, flush=True)
        with paths.atomic(kept) as temporary:
            torch.save({"state": network.state_dict(), "seconds": done.seconds}, temporary)
    saved = torch.load(kept, weights_only=True)
    network.load_state_dict(saved["state"])
    return network.eval(), saved["seconds"]


def static(architecture: str, file: Path, inputs: Inputs, *, recipe: Recipe) -> None:
    """Quantize after training."""
    quantize.static(float_file(architecture, inputs), file, inputs.calibration_set(), recipe,
                    preprocessing=PREPROCESSING)  # fmt: skip


def corrected(
    architecture: str, file: Path, inputs: Inputs, *,
    recipe: Recipe, ratio: float | None = None, biases: bool = False,
) -> None:  # fmt: skip
    """Quantize with the counterparts of TI's weight constraint and bias calibration."""
    network = qat.prepare(inputs.model(architecture).module, recipe, size=SIZE)
    if ratio is not None:
        print(corrections.constrain_weights_(network, ratio))
    qat.calibrate_(network, inputs.calibration_set(), PREPROCESSING)
    if biases:
        print(corrections.calibrate_bias_(network, inputs.calibration_inputs()))
    qat.to_qdq(network, file, size=SIZE, preprocessing=PREPROCESSING)


def searched(
    architecture: str, file: Path, inputs: Inputs, *, recipe: Recipe, mac_share: float
) -> None:
    """Search 16-bit activations within a share of the MACs, and quantize so."""
    calibration = inputs.calibration_set()
    found = mixed.search(
        float_file(architecture, inputs), calibration, mixed.Budget(mac_share=mac_share), recipe,
        preprocessing=PREPROCESSING,
    )  # fmt: skip
    print(found)
    static(architecture, file, inputs, recipe=found.recipe)
