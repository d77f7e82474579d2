"""Rules of the code in notebooks, which learners read: functions notebook -> problems, in words."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from types import ModuleType

from labutils.lab import exercises

MAX_LINES = 25  # of a code cell
MAX_WIDTH = 100
MAX_CALLS = 3  # one within another
PUBLIC = {  # room -> the modules that notebooks use by name; all else must be in the room's __all__
    "labutils": {
        "compare", "dlc", "errors", "export", "layers", "litert", "metrics", "paths", "pipeline",
        "prune", "quantize", "representation", "runtime", "surgery", "targets", "train",
    },
    "labutils.compare": {"qdq_edit"},
    "labutils.images": {"data", "fasteners", "folder", "marked_things", "nv12", "things"},
    "labutils.lab": {"lesson", "recorded"},
    "labutils.machine": {"doctor"},
    "labutils.measure": {"anatomy", "complexity", "latency", "throughput", "traffic"},
    "labutils.models": {"architectures", "fbnet", "gallery", "zoo"},
    "labutils.onnxfile": {"file", "graph"},
    "labutils.pipeline": {"rdk_emulation"},
    "labutils.quantize": {"exporting", "mixed", "recipe", "training"},
    "labutils.quantize.training": {"corrections", "qat"},
    "labutils.rdk": {
        "board", "compiled_file", "demo", "hb_mapper", "nv12_input", "vendor_log",
    },
    "labutils.representation": {"keras_program"},
    "labutils.runtime": {"phone", "qnn"},
    "labutils.runtime.litert": {"phone"},
    "labutils.show": {"figures", "widgets"},
    "labutils.targets": {"snpe"},
    "labutils.tools": {"calling", "writing"},
}  # fmt: skip
NO_VERB = re.compile(r"[a-z]+ed|told|made|done|found|given|seen|\w+_of")
"""Names of functions that tell no action: a participle alone, or a thing "of" something."""

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def sources(notebook) -> Iterator[tuple[str, str]]:
    """Yield (what it is, code): the cells, and the solutions that they may be replaced by."""
    for cell in notebook.code:
        if not re.search(r"^\s*[!%]", cell.source, re.MULTILINE):
            yield f"cell {cell.id}", cell.source
    for exercise in exercises.of(notebook.number):
        yield f"the solution of {exercise.id}", exercise.reference


def trees(notebook) -> Iterator[tuple[str, ast.Module]]:
    for what, source in sources(notebook):
        try:
            yield what, ast.parse(source)
        except SyntaxError:  # another rule's matter
            continue


# --- size ---------------------------------------------------------------------------------------


def short_cells(notebook):
    """No code cell over 25 lines, no line over 100 characters."""
    for what, source in sources(notebook):
        lines = source.splitlines()
        if len(lines) > MAX_LINES:
            yield f"{what} has {len(lines)} lines of code; {MAX_LINES} are the most"
        yield from (f"{what}: {line!r} is too wide" for line in lines if len(line) > MAX_WIDTH)


# --- names --------------------------------------------------------------------------------------


def public_names(notebook):
    """Imports and attributes of labutils are public: no underscore, no module inside a room."""
    for what, tree in trees(notebook):
        imported = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("labutils."):
                        yield f"{what}: write 'from labutils import ...', not 'import {alias.name}'"
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("labutils"):
                for alias in node.names:
                    imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                    if not is_public(node.module, alias.name):
                        yield f"{what} imports {alias.name} from {node.module}: not a public name"
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            own = isinstance(node.value, ast.Name) and node.value.id == "self"
            if node.attr.startswith("_") and not node.attr.endswith("__") and not own:
                yield f"{what} reads .{node.attr}: a name with an underscore"
            holder = imported.get(node.value.id) if isinstance(node.value, ast.Name) else None
            if holder and not is_public(holder, node.attr):
                yield f"{what} reads {ast.unparse(node)}: not a public name of {holder}"


def is_public(holder, name):
    """Whether notebooks may read `name` of `holder`, a module of the lab or a name from one."""
    if name.startswith("_"):
        return False
    room, _, last = holder.rpartition(".")
    if holder not in PUBLIC and last not in PUBLIC.get(room, ()):  # not a public module
        return room in PUBLIC and last in getattr(importlib.import_module(room), "__all__", ())
    if name in PUBLIC.get(holder, ()):
        return True
    module = importlib.import_module(holder)
    if hasattr(module, "__all__"):
        return name in module.__all__
    return not isinstance(getattr(module, name, module), ModuleType)


def verbs(notebook):
    """A function that a cell defines says what it does: no participle alone, nothing '..._of'."""
    expected = {exercise.answer for exercise in exercises.of(notebook.number)}
    for what, tree in trees(notebook):
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or node.name in expected:
                continue
            if NO_VERB.fullmatch(node.name):
                yield f"{what} defines {node.name}(): name it by a verb"


# --- one thought a line -------------------------------------------------------------------------


def one_thought_a_line(notebook):
    """No semicolon, no 'a, b = c, d', no statement behind a colon, few calls within calls."""
    for what, tree in trees(notebook):
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                packed = isinstance(node.value, ast.Tuple) and isinstance(
                    node.targets[0], ast.Tuple
                )
                if packed or isinstance(node.value, ast.GeneratorExp):
                    yield f"{what}: {ast.unparse(node)!r} packs several assignments into one"
            body = getattr(node, "body", None)
            if isinstance(body, list):
                lines = [statement.lineno for statement in body]
                if len(set(lines)) < len(lines):
                    yield f"{what}: two statements in line {max(lines)}"
                if lines and not isinstance(node, ast.Module) and lines[0] == node.lineno:
                    yield f"{what}: a statement stands behind the colon of line {node.lineno}"
            if isinstance(node, ast.Call) and (deep := depth(node)) > MAX_CALLS:
                yield f"{what}: {deep} calls within one another: {ast.unparse(node)[:60]}"


def depth(node):
    """How many calls lie within one another's arguments, at most; a chain a.b().c() is one."""
    if isinstance(node, ast.Lambda):
        return 0
    if isinstance(node, ast.Call):
        inner = [depth(part) for part in (*node.args, *(word.value for word in node.keywords))]
        return max(depth(node.func), 1 + max(inner, default=0))
    return max((depth(child) for child in ast.iter_child_nodes(node)), default=0)


def no_nested_comprehensions(notebook):
    """No comprehension in a comprehension, and one 'for' in each."""
    for what, tree in trees(notebook):
        for node in ast.walk(tree):
            if isinstance(node, _COMPREHENSIONS):
                inner = [n for n in ast.walk(node) if isinstance(n, _COMPREHENSIONS)]
                if len(inner) > 1 or len(node.generators) > 1:
                    yield f"{what}: a comprehension within one: {ast.unparse(node)[:60]}"


RULES = [short_cells, public_names, verbs, one_thought_a_line, no_nested_comprehensions]
