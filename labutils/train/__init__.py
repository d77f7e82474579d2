"""Train MobileNetV3 on Things-16: ``python -m labutils.train mobilenet_v3_large``.

Two CPU cores are enough. The run is a pure function of its configuration: batches, crops and
flips are derived from (seed, step), so a run that was stopped resumes where it was. Validation
images are looked at for the log only; what is shipped is the average of the weights at the last
step.

With ``torchrun --nproc-per-node N -m labutils.train ...`` N processes share every batch (`ranks`).

`fine_tune` brings a network back that surgery or quantization has changed, with or without its
original as a teacher.
"""

from .batches import Augmentation, Batches
from .config import (
    ARCHITECTURES,
    CONFIGS,
    FineTuningConfig,
    TrainConfig,
    read_config,
    read_fine_tuning_config,
)
from .fine_tuning import FineTuning, fine_tune
from .loop import EVALUATION_SIZE, Trainer, fit, logits_of, network
from .model_card import ship
from .norms import (
    NormReport,
    averaged,
    estimate_batch_norm_,
    freeze_batch_norm_,
    unfreeze_batch_norm_,
)
from .ranks import Ranks, joined
from .run_state import Resumable

__all__ = [
    "ARCHITECTURES",
    "CONFIGS",
    "EVALUATION_SIZE",
    "Augmentation",
    "Batches",
    "FineTuning",
    "FineTuningConfig",
    "NormReport",
    "Ranks",
    "Resumable",
    "TrainConfig",
    "Trainer",
    "averaged",
    "estimate_batch_norm_",
    "fine_tune",
    "fit",
    "freeze_batch_norm_",
    "joined",
    "logits_of",
    "network",
    "read_config",
    "read_fine_tuning_config",
    "ship",
    "unfreeze_batch_norm_",
]
