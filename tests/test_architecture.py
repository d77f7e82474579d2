"""The plan of the house (labutils/README.md): imports go down only, inside rooms too."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labutils import paths

PACKAGE = Path(paths.__file__).parent
PLAN = PACKAGE / "README.md"


def floors():
    """{room: floor} as the page says."""
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| ", PLAN.read_text(encoding="utf-8"), re.MULTILINE)
    return {room: int(floor) for floor, room in rows}


FLOOR = floors()


def module_of(file):
    """``surgery.rules.book`` of labutils/surgery/rules/book.py; "" of the package itself."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def room_of(module):
    return module.partition(".")[0]


def only_for_types(tree):
    """The import nodes under ``if TYPE_CHECKING``."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }


def imported(module, *, types=True):
    """The lab's modules that a module imports, at any depth of its code."""
    file = MODULES[module]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = set() if types else only_for_types(tree)
    here = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = here.split(".") if here else []
                above = above[: len(above) - node.level + 1]
                base = ".".join(["labutils", *above, *filter(None, [base])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            inner = name.removeprefix("labutils.")
            if name.startswith("labutils.") and inner != module:
                yield inner if inner in MODULES else inner.rpartition(".")[0]


def rooms_below(room):
    found = {
        room_of(target)
        for module in MODULES
        if room_of(module) == room
        for target in imported(module)
    }
    return sorted(found - {room, ""})


def test_the_page_names_every_room():
    assert set(FLOOR) == {room_of(module) for module in MODULES} - {""}


@pytest.mark.parametrize("room", FLOOR)
def test_rooms_import_from_lower_floors_only(room):
    up = [other for other in rooms_below(room) if FLOOR[other] >= FLOOR[room]]
    assert not up, f"{room} (floor {FLOOR[room]}) imports {', '.join(up)}"


def test_no_circle_inside_a_room():
    graph = {module: set(imported(module, types=False)) - {""} for module in MODULES if module}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_page_names_files_that_exist():
    text = PLAN.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:[a-z_]+/)+[\w.]*)`", text):
        if name.startswith("data/"):
            assert list(paths.ROOT.glob(name)), name
        elif "NN" not in name:
            places = (paths.ROOT / name, PACKAGE / name)
            assert any(place.exists() for place in places) or list(PACKAGE.rglob(name)), name


def test_only_one_place_imports_torchvision():
    found = [
        module
        for module, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import)
        and any(a.name.startswith("torchvision") for a in node.names)
    ]
    assert set(found) == {"_torchvision"}


def public_names(room):
    """What a room offers at its door: functions and classes of the module, or of ``__all__``."""
    tree = ast.parse(MODULES[room].read_text(encoding="utf-8"))
    names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names |= set(ast.literal_eval(node.value))
    return names


@pytest.mark.parametrize("room", FLOOR)
def test_no_public_name_at_a_door_is_a_room(room):
    assert not public_names(room) & set(FLOOR)


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    "module", ["labutils", "labutils.__main__", "labutils.surgery", "labutils.targets.snpe"]
)
def test_importing_is_light(module):
    heavy = "{'torch', 'torchvision', 'timm', 'onnxruntime', 'matplotlib', 'pandas'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    assert run_python(code).stdout.strip() == "[]"


@pytest.mark.parametrize("words", [("diagnose",), ("run", "--images", "1")], ids=" ".join)
def test_a_command_on_a_file_comes_without_torch(words, small_onnx):
    """torch takes two seconds to import: only what has a PyTorch network needs it."""
    code = f"""import sys
from labutils.__main__ import main
main([{words[0]!r}, {str(small_onnx(13))!r}, *{words[1:]!r}])
print("torch" in sys.modules)"""
    assert run_python(code).stdout.splitlines()[-1] == "False"


def test_a_network_of_torchvision_comes_without_the_compiler():
    """torch._dynamo takes two seconds to import, and what asks for it still finds the real one."""
    there = "sorted(name for name in sys.modules if name.startswith('torch._dynamo'))"
    code = f"""import sys
from labutils import _torchvision
align = _torchvision.load().ops.roi_align
print({there})
print(sys.modules[align.__module__].is_compile_supported("cpu"), len({there}) > 50)"""
    assert run_python(code).stdout.splitlines() == ["[]", "True True"]


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


if __name__ == "__main__":
    for room in sorted(FLOOR, key=FLOOR.get):
        print(f"{FLOOR[room]:2}  {room:14} {', '.join(rooms_below(room))}")
