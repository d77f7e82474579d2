"""How long files and functions are, and how many parameters a public function has."""

import ast
from pathlib import Path

import pytest

from labutils import paths

PACKAGE = Path(paths.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_PARAMETERS, SCREEN = 450, 8, 60

MANY = {
    # the signature of the operator of PyTorch that it replaces
    "surgery/layers/normalization.py aten_instance_norm_in_steps",
}
LONG: set[str] = set()


def functions(file):
    """(qualified name, node, is public) of every function of a file, methods included."""

    def walk(node, names, public):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                shown = public and not child.name.startswith("_")
                if not isinstance(child, ast.ClassDef):
                    yield ".".join([*names, child.name]), child, shown
                inside = shown and isinstance(child, ast.ClassDef)
                yield from walk(child, [*names, child.name], inside)

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), [], True)


def parameters(function):
    found = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [a.arg for a in found if a.arg not in ("self", "cls")]


def code_lines(function):
    """Lines from ``def`` to the end, without the docstring."""
    first = function.body[0]
    said = isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str)
    own = function.end_lineno - function.lineno + 1
    return own - (first.end_lineno - first.lineno + 1 if said else 0)


def named(file):
    return file.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("file", FILES, ids=named)
def test_no_file_is_longer_than_can_be_read(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_no_public_function_has_more_parameters_than_can_be_kept_in_mind():
    many = {
        f"{named(file)} {name}"
        for file in FILES
        for name, node, public in functions(file)
        if public and len(parameters(node)) > MOST_PARAMETERS
    }
    assert many <= MANY


def test_no_function_is_longer_than_a_screen():
    long = {
        f"{named(file)} {name}": code_lines(node)
        for file in FILES
        for name, node, _ in functions(file)
        if code_lines(node) > SCREEN
    }
    assert long.keys() <= LONG, long


def test_the_measure_counts():
    source = "class A:\n    def f(self, a, /, b, *c, d, **e):\n        '''Say.\n\n        So.'''\n"
    (method,) = ast.parse(source + "        return a\n").body[0].body
    assert parameters(method) == ["a", "b", "d"]
    assert code_lines(method) == 2
