"""Training in benchmarks/quantization.py: one loop and one schedule for every row that is trained.

Ours, the peers' and the original network that is trained as long all go through
`labutils.train.fine_tune` with the arguments that `schedule` returns: the same steps, images,
order, augmentation, learning rate and distillation from the original. Peers that live in a
separate environment get these arguments as JSON, and call the same function.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from quantization_inputs import PREPROCESSING, SIZE, Inputs
from torch import nn

from labutils import export, train
from labutils.quantize.recipe import Qat, Recipe


def schedule(recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """Return the arguments of `train.fine_tune`, plain values."""
    chosen = recipe.qat or Qat()
    return {
        "steps": inputs.steps or chosen.steps, "batch_size": chosen.batch_size,
        "size": chosen.size or SIZE, "learning_rate": chosen.learning_rate,
        "temperature": chosen.temperature, "distillation_weight": chosen.distillation,
        "weight_decay": 0.0, "images": inputs.training, "image_set": inputs.image_set,
    }  # fmt: skip


class Progressing:
    """An ``on_step`` that prints every tenth step, and acts once in a run.

    Parameters
    ----------
    after, at
        Called with the network when this share of the steps is done, as to stop observers.
    """

    def __init__(self, after: Callable[[nn.Module], object] | None = None, at: float = 0.5) -> None:
        self.after, self.at, self.start = after, at, time.time()

    def __call__(self, step: int, last: int, network: nn.Module) -> None:
        """Be told that a step is done."""
        if step % 10 == 0:
            print(f"  step {step}/{last}, {time.time() - self.start:.0f} s", flush=True)
        if self.after is not None and step == max(1, round(self.at * last)):
            self.after(network)


def fit_(
    network: nn.Module,
    teacher: nn.Module,
    arguments: dict[str, Any],
    on_step: Progressing | None = None,
    **own: Any,
) -> float:
    """Train a network in place; return the seconds.

    Parameters
    ----------
    network
        What is trained: the peer's, with its rounding in place, or the original.
    teacher
        The original, which is not changed.
    arguments
        From `schedule`.
    on_step
        What is done besides.
    **own
        What a kind of network needs besides, as ``freeze_batch_norm_at``.
    """
    steps = on_step or Progressing()
    done = train.fine_tune(network, teacher=teacher, on_step=steps, **arguments, **own)
    print(done, flush=True)
    return done.seconds


def trained_as_long(architecture: str, file: Path, inputs: Inputs, *, recipe: Recipe) -> float:
    """Train the original without rounding, on a recipe's schedule, and write it in float.

    BatchNorm keeps its statistics, as in a quantized network, where it is folded.
    """
    original = inputs.model(architecture).module
    network = copy.deepcopy(original)
    seconds = fit_(network, original, schedule(recipe, inputs), freeze_batch_norm_at=0.0)
    export.to_onnx(network, file, size=SIZE, preprocessing=PREPROCESSING)
    return seconds


def by_torchao_qat(
    architecture: str, file: Path, inputs: Inputs, *, recipe: Recipe, bits: int
) -> float:
    """Train with torchao's XNNPACK quantizer, as its tutorial of QAT does.

    Weights per channel; observers follow the batches for the first half, then the ranges stay,
    and BatchNorm is folded as torchao simulates it. Weights of 4 bits lie in 8-bit integers.
    """
    from torchao.quantization import pt2e as torchao
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
    from torchao.testing.pt2e._xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )  # fmt: skip

    from labutils.quantize import pt2e

    original = inputs.model(architecture).module
    images = torch.from_numpy(inputs.calibration_inputs())
    open_ = torch.export.Dim.AUTO  # it is trained at another size than it is calibrated
    dynamic = ({0: open_, 2: open_, 3: open_},)
    network = copy.deepcopy(original).requires_grad_(True)
    program = torch.export.export(network, (images[:2],), dynamic_shapes=dynamic).module()
    high = 2 ** (bits - 1) - 1
    settings = get_symmetric_quantization_config(
        is_per_channel=True, is_qat=True, weight_qmin=-high, weight_qmax=high
    )
    prepared = prepare_qat_pt2e(program, XNNPACKQuantizer().set_global(settings))
    torchao.allow_exported_model_train_eval(prepared)
    with torch.no_grad():
        for batch in images.split(32):
            prepared(batch)

    def settle(trained: nn.Module) -> None:
        trained.apply(torchao.disable_observer)

    seconds = fit_(prepared, original, schedule(recipe, inputs), Progressing(settle))
    torchao.move_exported_model_to_eval(prepared)
    written = export.unchecked(
        pt2e.Plain(convert_pt2e(prepared)), images[:1], 21, "dynamo", PREPROCESSING
    )
    file.write_bytes(written.SerializeToString())
    return seconds
