"""Replacing modules in a PyTorch model, in place."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Sequence

import ml_dtypes
import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ...errors import SurgeryError, UsageError
from ...models.modes import evaluating
from ..forms import Leave, ModuleForm, Site, ask
from ..layers.in_place import InPlace
from ..naming import full_name
from ..report import Left, Match
from ..rule import Rule
from . import gates as gating

Swap = tuple[str, nn.Module]
SUBCLASS = "a subclass of"
READ_AGAIN = "it works in place, and its input is read again"


def replace_modules_(
    model: nn.Module,
    rules: Sequence[Rule],
    gates: Collection[nn.Module] | None = None,
    read_again: Sequence[nn.Module] = (),
) -> tuple[list[Match], list[Left], list[Swap]]:
    """Replace every submodule that a rule knows; a shared instance stays shared.

    A module inside another that is replaced goes with it: the rule for a whole block
    comes before those for its layers, in whatever order they were given.

    Parameters
    ----------
    gates
        The modules whose output scales another tensor, seen in a run; None: no run was made.
    read_again
        The modules in place whose input is read again: what replaces them works in place, too.

    Returns
    -------
    tuple
        What was replaced, what was left, and the swaps, which `put_` undoes.

    Raises
    ------
    SurgeryError
        The model itself is what a rule replaces, or it is compiled.
    """
    _refuse_what_cannot_change(model, rules)
    classes = {name: form for rule in rules for form in rule.modules for name in form.class_names}
    matches: list[Match] = []
    left: list[Left] = []
    new: list[Swap] = []
    old: list[Swap] = []
    made: dict[tuple[int, str], nn.Module] = {}
    gone: list[str] = []
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if any(path.startswith(prefix) for prefix in gone):
            continue
        site = Site(model, path, module)
        chosen, reasons = _choose(site, rules, gates)
        if chosen is None:
            left += reasons or _report_subclass(site, classes)
            continue
        rule, form = chosen
        if (id(module), rule.name) not in made:
            layer = _make_layer(module, rule, form, model)
            if any(module is other for other in read_again):
                layer = _in_place(layer, module)
            made[id(module), rule.name] = layer
        replacement = made[id(module), rule.name]
        if replacement is module:
            left.append(Left(path, type(module).__name__, READ_AGAIN))
            continue
        old.append((path, module))
        new.append((path, replacement))
        gone.append(path + ".")
        was, became = type(module).__name__, _describe(replacement)
        matches.append(Match(rule.name, "module", path, was, became))
    put_(model, new)
    return matches, left, old


def _choose(
    site: Site, rules: Sequence[Rule], gates: Collection[nn.Module] | None
) -> tuple[tuple[Rule, ModuleForm] | None, list[Left]]:
    """Return the first rule that takes a module; or None, and why those that know it do not."""
    reasons: list[Left] = []
    if not site.path:
        return None, []
    for rule in rules:
        form = next((form for form in rule.modules if form.claims(site)), None)
        if form is None:
            continue
        leave = (
            rule.excludes(site.path)
            or (_check_gate(site, gates) if rule.leaves_gates else None)
            or ask(form.check, site)
        )
        if leave is None:
            return (rule, form), []
        if leave.reported:
            reasons.append(Left(site.path, type(site.module).__name__, leave.why))
    return None, reasons


def _check_gate(site: Site, gates: Collection[nn.Module] | None) -> Leave | None:
    if gates is not None and any(site.module is gate for gate in gates):
        return Leave(f"{gating.GATE} (seen in the run)")
    return gating.check_by_name(site, ran=gates is not None)


def possible_gates(model: nn.Module, rules: Sequence[Rule]) -> list[nn.Module]:
    """Return the modules that may be gates, of the rules that leave gates."""
    forms = [form for rule in rules if rule.leaves_gates for form in rule.modules]
    classes = frozenset().union(*(form.class_names for form in forms))
    return [m for m in model.modules() if full_name(type(m)) in classes]


def _describe(module: nn.Module) -> str:
    """Return a class name, and for a chain what it is made of."""
    if isinstance(module, InPlace):
        return f"{_describe(module.layer)}, in place"
    if type(module) is nn.Sequential:
        return " + ".join(type(child).__name__ for child in module)
    return type(module).__name__


def put_(model: nn.Module, swaps: Sequence[Swap]) -> None:
    """Put modules in their places; given what `replace_modules_` returned, this undoes it."""
    for path, module in swaps:
        model.set_submodule(path, module)


def _refuse_what_cannot_change(model: nn.Module, rules: Sequence[Rule]) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise SurgeryError(
            "The model is compiled TorchScript, whose code cannot be replaced. "
            "Replace layers first, then trace or script; or export it and work on the ONNX file."
        )
    name = full_name(type(model))
    if any(name in form.class_names for rule in rules for form in rule.modules):
        raise SurgeryError(
            f"The model itself is a {type(model).__name__}: there is no parent to put another "
            f"layer in. Wrap it, e.g. nn.Sequential(model), or use the rule's own layer."
        )


def _report_subclass(site: Site, classes: dict[str, ModuleForm]) -> list[Left]:
    """Report an instance of a subclass: its forward may differ, so it is not replaced."""
    for base in type(site.module).__mro__[1:]:
        form = classes.get(full_name(base))
        if form is None:
            continue
        leave = ask(form.check, site)
        if leave is not None and not leave.reported:
            return []
        why = f"{SUBCLASS} {base.__name__}, whose forward may differ"
        return [Left(site.path or "(the model)", full_name(type(site.module)), why)]
    return []


def _make_layer(module: nn.Module, rule: Rule, form: ModuleForm, model: nn.Module) -> nn.Module:
    """Return the rule's layer in the state of `module`: device, dtype, train/eval, hooks."""
    replacement = form.make(module)
    if not isinstance(replacement, nn.Module) or replacement is module:
        raise SurgeryError(
            f"The rule {rule.name!r} made {type(replacement).__name__} of a "
            f"{type(module).__name__}: it must return another nn.Module. The model was left as "
            "it was."
        )
    _move_like_(replacement, module, model)
    replacement.train(module.training)
    # The dictionaries themselves move, so that the handles a user holds still remove their hooks.
    hooks = {
        k: v for k, v in vars(module).items() if "_hook" in k and not k.endswith("_dict_hooks")
    }
    vars(replacement).update(hooks)
    return replacement


def _in_place(new: nn.Module, old: nn.Module) -> nn.Module:
    """Return a layer that writes into its input; the old one where the new one differs in that."""
    if getattr(new, "inplace", False):
        return new
    return old if type(new) is type(old) else InPlace(new).train(old.training)


def _move_like_(new: nn.Module, old: nn.Module, model: nn.Module) -> None:
    """Give new weights the device, the dtype and the frozen state of those that they replace."""
    if not (any(True for _ in new.parameters()) or any(True for _ in new.buffers())):
        return
    own = list(old.parameters())
    weights = itertools.chain(own, old.buffers(), model.parameters())
    like = next((tensor for tensor in weights if tensor.is_floating_point()), None)
    if like is not None:
        new.to(like.device, like.dtype)
    kept = {id(p) for p in own}
    if own and not any(p.requires_grad for p in own):
        for parameter in new.parameters():
            if id(parameter) not in kept:
                parameter.requires_grad_(False)


def count_kinds(model: nn.Module) -> Counter[str]:
    """Count the classes of the modules without children: what a model has."""
    leaves = (m for m in model.modules() if not next(m.children(), None))
    return Counter(type(m).__name__ for m in leaves)


def count_calls(graph: fx.Graph) -> Counter[str]:
    """Count the operators of a traced graph."""
    return Counter(str(n.target) for n in graph.nodes if n.op == "call_function")


def count_parameters(model: nn.Module | torch.export.ExportedProgram) -> int:
    """Return the number of parameters; a shared one counts once."""
    return sum(p.numel() for p in model.parameters())


def as_arguments(example_inputs: object) -> tuple:
    """Return example inputs as a tuple of arguments; a single tensor is one argument."""
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, tuple | list) and example_inputs:
        return tuple(example_inputs)
    raise UsageError(
        "example_inputs must be a tensor or a tuple of arguments, not "
        f"{type(example_inputs).__name__}."
    )


def run(model: nn.Module, example_inputs: tuple) -> list[np.ndarray]:
    """Return the model's outputs in eval mode, as a flat list of arrays.

    The inputs are cloned, because a layer in place may write into them.
    """
    copies = pytree.tree_map_only(torch.Tensor, torch.clone, example_inputs)
    with evaluating(model), torch.no_grad():
        result = model(*copies)
    tensors = [t for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
    if not tensors:
        raise SurgeryError(
            f"The model returned no tensor on the example inputs, but {type(result).__name__}."
        )
    return [_array(t) for t in tensors]


def run_and_count(model: nn.Module, example_inputs: tuple) -> tuple[list[np.ndarray], int]:
    """Return the outputs, as `run` does, and the multiply-accumulates of the run."""
    from ...measure.complexity import counting

    with counting() as macs:
        result = run(model, example_inputs)
    return result, macs()


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # NumPy's own types lack it
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()
