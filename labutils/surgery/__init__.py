"""Model surgery: replace what a converter cannot translate, and report every replacement.

One rule book (`rules`, which also says how a rule is added) serves every level: modules of a
PyTorch model, functions called in its forward, traced graphs, and nodes of an ONNX graph. Nothing
is silent: rules that match nothing raise an error.
"""

from .edits import Edit, Edits, edits_in, edits_of, outline, record_edits_
from .forms import NOT_MINE, FunctionForm, GraphForm, Leave, ModuleForm, OnnxForm, OnnxPass, Site
from .replacing import LEVELS, collect_reports, preview, replace_, replace_file, restore_
from .replay import replay_
from .report import Check, Left, Match, Report
from .rule import Rule
from .rules.book import DEFAULT, EXACT, LITE, LITE_OPTIONAL, ONNX_ONLY, RULES, SETS, TIDY, select
from .user_rules import pattern_rule

__all__ = [
    "DEFAULT", "EXACT", "LEVELS", "LITE", "LITE_OPTIONAL", "NOT_MINE", "ONNX_ONLY", "RULES", "SETS",
    "TIDY", "Check", "Edit", "Edits", "FunctionForm", "GraphForm", "Leave", "Left", "Match",
    "ModuleForm", "OnnxForm", "OnnxPass", "Report", "Rule", "Site", "collect_reports", "edits_in",
    "edits_of", "outline", "pattern_rule", "preview", "record_edits_", "replace_", "replace_file",
    "replay_", "restore_", "select",
]  # fmt: skip
