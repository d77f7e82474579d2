"""The loss of a fine-tuning: cross-entropy, and the distance to what a teacher says."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import UsageError
from ..images import data
from .config import FineTuningConfig
from .ranks import Ranks


class Loss:
    """The loss of a batch.

    Parameters
    ----------
    model
        What is trained.
    teacher
        Whose outputs are to be matched as well; None for the labels alone.
    config
        How both are weighed.
    image_set
        Its classes are the outputs.
    ranks
        The processes that train together; their gradients are averaged.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        config: FineTuningConfig,
        image_set: data.ImageSource,
        ranks: Ranks,
    ) -> None:
        self.model, self.teacher, self.ranks = model, teacher, ranks
        self.averaging = ranks.averaging(model)
        self.config, self.image_set = config, image_set
        self.device = next(p for p in model.parameters() if p.requires_grad).device
        # An exported graph was traced on contiguous tensors, and may reshape them without a copy.
        traced = any(isinstance(m, torch.fx.GraphModule) for m in (model, teacher))
        self.memory_format = torch.contiguous_format if traced else torch.channels_last

    def __call__(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of (n, 3, size, size) float32 inputs and (n,) int64 labels, a scalar."""
        inputs = self.placed(inputs)
        labels, config = labels.to(self.device), self.config
        logits = self._logits(self.averaging, self.model, inputs)
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = self._logits(self.teacher, self.teacher, inputs)
        t, weight = config.temperature, config.distillation_weight
        distance = F.kl_div(
            F.log_softmax(logits / t, 1),
            F.log_softmax(taught / t, 1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - weight) * loss + weight * t * t * distance

    def placed(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return inputs where and as the network takes them."""
        return inputs.to(self.device).contiguous(memory_format=self.memory_format)

    def _logits(self, called: nn.Module, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        name = type(model).__name__
        try:
            logits = called(inputs)
        except (RuntimeError, AssertionError, ValueError) as error:
            if self.ranks.is_lost(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(
                f"{name} does not take inputs {tuple(inputs.shape)}: {reason} A program that was "
                "exported with a fixed batch or size needs the same batch_size and size here."
            ) from error
        expected = (len(inputs), len(data.classes_of(self.image_set)))
        if not isinstance(logits, torch.Tensor) or logits.shape != expected:
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise UsageError(
                f"{name} returns {got} for inputs {tuple(inputs.shape)}; "
                f"{data.title_of(self.image_set)} needs logits of shape {expected}. Build it with "
                f"{expected[1]} classes."
            )
        return logits
