"""Every public function and class of the package has a user that is not a test.

By name only: another line of the package, a notebook, the README or a benchmark has that name.
It finds what was left behind, and cannot prove that what it passes is needed.
"""

import ast
import re
from collections import Counter

from labutils import paths

FOR_CODE_OF_ONES_OWN = {  # name -> why it stays without a user
    "channel_costs": "draws prune.sensitivity in a notebook of one's own",
    "extract": "submodules for users' tools",
    "freeze_batch_norm_": "for training loops of one's own",
    "function_error": "says whether load_wider_ kept the function",
    "load_wider_": "weights for a wider network of one's own",
    "pruning_front": "draws prune.search in a notebook of one's own",
    "rename_tensors_": "names for users' tools",
    "stop_all": "run when Python ends",
    "unfreeze_batch_norm_": "takes freeze_batch_norm_ back",
}
LISTING = re.compile(r"__all__ = \[.*?\]|^from \S+ import (?:\(.*?\)|.*?$)", re.S | re.M)
DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)


def defined():
    """Name -> how many public functions and classes have it."""
    found = Counter()
    for file in (paths.ROOT / "labutils").rglob("*.py"):
        if file.match("torch_level/patterns.py"):
            continue  # rules put these names together: f"{activation}{gate}"
        for part in ast.parse(file.read_text("utf-8")).body:
            if isinstance(part, ast.FunctionDef | ast.ClassDef) and not part.name.startswith("_"):
                found[part.name] += 1
    return found


def used():
    """Name -> how often code of the package, a notebook, the README or a benchmark has it."""
    found = Counter()
    for file in (paths.ROOT / "labutils").rglob("*.py"):
        text = DOCSTRING.sub("", file.read_text("utf-8"))
        text = LISTING.sub("", text) if file.name == "__init__.py" else text
        found.update(re.findall(r"\w+", text))
    for place, pattern in (("notebooks", "*.ipynb"), ("benchmarks", "*.py"), (".", "README.md")):
        for file in (paths.ROOT / place).glob(pattern):
            found.update(re.findall(r"\w+", file.read_text("utf-8")))
    return found


def test_what_has_no_user_but_tests_says_why_it_is_there():
    names = used()
    idle = {name for name, times in defined().items() if names[name] <= times}
    assert "load_partly_" not in idle and "stop_all" in idle  # it sees users, and their absence
    assert idle - set(FOR_CODE_OF_ONES_OWN) == set()
