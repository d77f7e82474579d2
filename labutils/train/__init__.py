"""Train MobileNetV3 on Things-16: ``python -m labutils.train mobilenet_v3_large``.

Two CPU cores are enough. The run is a pure function of its recipe: batches, crops and flips are
derived from (seed, step), so a run that was stopped resumes where it was. Validation images are
looked at for the log only; what is shipped is the average of the weights at the last step.

`fine_tune` brings a network back that surgery or quantization has changed, with or without its
original as a teacher.
"""

from .batches import Batches
from .fine_tuning import FineTuning, fine_tune
from .loop import EVALUATION_SIZE, Trainer, fit, logits_of, network
from .model_card import ship
from .recipe import ARCHITECTURES, RECIPES, Recipe

__all__ = [
    "ARCHITECTURES",
    "EVALUATION_SIZE",
    "RECIPES",
    "Batches",
    "FineTuning",
    "Recipe",
    "Trainer",
    "fine_tune",
    "fit",
    "logits_of",
    "network",
    "ship",
]
