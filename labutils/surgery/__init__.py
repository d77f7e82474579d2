"""Model surgery: replace what a converter cannot translate, and report every replacement.

One rule book (`rules`) serves three levels: modules of a PyTorch model, functions called in its
forward, and nodes of an ONNX graph. Nothing is silent: rules that match nothing raise.
"""

from .recipe import Recipe, Step, describe_, outline, recipe_of, recipes_in
from .replacing import LEVELS, preview, replace_, replace_file, restore_
from .replay import replay_
from .report import Check, Left, Match, Report
from .rule import GraphForm, OnnxForm, Rule
from .rules.book import DEFAULT, EXACT, LITE, LITE_OPTIONAL, RULES, SETS, TIDY, select
from .user_rules import pattern_rule

__all__ = [
    "DEFAULT", "EXACT", "LEVELS", "LITE", "LITE_OPTIONAL", "RULES", "SETS", "TIDY", "Check",
    "GraphForm", "Left", "Match", "OnnxForm", "Recipe", "Report", "Rule", "Step", "describe_",
    "outline", "pattern_rule", "preview", "recipe_of", "recipes_in", "replace_", "replace_file",
    "replay_", "restore_", "select",
]  # fmt: skip
