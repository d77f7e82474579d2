"""The plan of the house: imports go down only, names do not clash, the package is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from labutils import paths

PACKAGE = paths.ROOT / "labutils"

# A module (or package) imports only from floors below its own.
FLOORS = [
    ["errors", "_torchvision", "torch_index", "typesetting"],
    ["untrusted"],
    ["paths"],
    ["pack", "disk_cache", "streams"],
    ["metrics", "sketches", "fetch", "checkpoint", "graph", "layers", "located_yaml"],
    ["random_weights"],
    ["textures"],
    ["things"],
    ["data"],
    ["own_image"],
    ["adapt", "architectures", "photographs", "provenance"],
    ["zoo"],
    ["anatomy", "complexity", "gallery", "qnn", "tidy", "traffic"],
    ["recorded"],
    ["measured"],
    ["runtime", "phone", "export", "onnx_parts", "train"],
    ["compare", "surgery"],
    ["quantize", "latency"],
    ["targets"],
    ["repair"],
    ["journey", "doctor"],
    ["show"],
    ["batch", "diagnosis"],
    ["answer"],
    ["exercise"],
    ["exercises"],
    ["artifacts", "progress", "classroom"],
    ["lesson"],
    ["notebooks"],
    ["lab_server"],
    ["commands"],
    ["__main__", "book"],
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
# Ground floor only: a path needs an error, and nothing else there imports.
GROUND = {("paths", "errors")}


def module_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files():
    return [f for f in sorted(PACKAGE.rglob("*.py")) if f != PACKAGE / "__init__.py"]


def imported(file):
    """The lab's modules that a file imports, at any depth of its code."""
    depth = len(file.relative_to(PACKAGE).parts) - 1
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("labutils."):
                    yield alias.name.split(".")[1]
        elif isinstance(node, ast.ImportFrom):
            outside = node.level == depth + 1
            if outside and node.module:
                yield node.module.split(".")[0]
            elif outside:
                yield from (alias.name for alias in node.names)
            elif not node.level and (node.module or "").startswith("labutils"):
                rest = node.module.split(".")[1:2]
                yield from rest or [alias.name for alias in node.names]


def test_every_module_has_a_floor():
    assert {module_of(file) for file in files()} == set(FLOOR)


@pytest.mark.parametrize("file", files(), ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_imports_go_down_only(file):
    own = module_of(file)
    for name in imported(file):
        if name in FLOOR and (own, name) not in GROUND:
            assert FLOOR[name] < FLOOR[own], f"{file.name} imports {name}, not on a lower floor"


def test_only_one_place_imports_torchvision():
    found = [
        file.name
        for file in files()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import)
        and any(a.name.startswith("torchvision") for a in node.names)
    ]
    assert set(found) == {"_torchvision.py"}


def test_no_public_function_is_named_like_a_module():
    modules = {module_of(file) for file in files()}
    functions = {
        node.name: file.name
        for file in files()
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    assert not modules & set(functions)


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    "module", ["labutils", "labutils.__main__", "labutils.surgery", "labutils.targets.snpe"]
)
def test_importing_is_light(module):
    heavy = "{'torch', 'torchvision', 'timm', 'onnxruntime', 'matplotlib', 'pandas'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    assert run_python(code).stdout.strip() == "[]"


def test_nothing_tracked_names_this_machine():
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=paths.ROOT, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        path = Path(paths.ROOT, name)
        if path.suffix in {".py", ".md", ".yaml", ".json", ".toml", ".txt", ".csv"}:
            text = path.read_text(encoding="utf-8")
            assert str(Path.home()) + "/" not in text or str(Path.home()) == "/", name
            assert str(paths.ROOT) + "/" not in text, name
