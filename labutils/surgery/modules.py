"""Replacing modules in a PyTorch model, in place."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import SurgeryError, UsageError
from .report import Left, Match
from .rule import Rule, full_name

Swap = tuple[str, nn.Module]


def replace_modules_(
    model: nn.Module, rules: Sequence[Rule]
) -> tuple[list[Match], list[Left], list[Swap]]:
    """Replace every submodule that a rule knows; a shared instance stays shared.

    Returns
    -------
    tuple
        What was replaced, what was left, and the swaps that `put_` takes back.

    Raises
    ------
    SurgeryError
        The model itself is what a rule replaces, or it is compiled.
    """
    _refuse_what_cannot_change(model, rules)
    known = {full_name(cls): rule for rule in rules for cls in rule.modules}
    matches, left, new, old = [], [], [], []
    made: dict[int, nn.Module] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        rule = known.get(full_name(type(module)))
        if rule is None:
            left += _lookalike(path, module, known)
            continue
        if id(module) not in made:
            made[id(module)] = _made_from(module, rule)
        replacement = made[id(module)]
        old.append((path, module))
        new.append((path, replacement))
        matches.append(
            Match(rule.name, "module", path, type(module).__name__, type(replacement).__name__)
        )
    put_(model, new)
    return matches, left, old


def put_(model: nn.Module, swaps: Sequence[Swap]) -> None:
    """Put modules in their places; with what `replace_modules_` returned, this takes it back."""
    for path, module in swaps:
        model.set_submodule(path, module)


def _refuse_what_cannot_change(model: nn.Module, rules: Sequence[Rule]) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise SurgeryError(
            "The model is compiled TorchScript, whose code cannot be replaced. "
            "Replace layers first, then trace or script; or export it and work on the ONNX file."
        )
    for rule in rules:
        if full_name(type(model)) in {full_name(cls) for cls in rule.modules}:
            raise SurgeryError(
                f"The model itself is a {type(model).__name__}: there is no parent to put another "
                f"layer in. Wrap it, e.g. nn.Sequential(model), or use the rule's own layer."
            )


def _lookalike(path: str, module: nn.Module, known: dict[str, Rule]) -> list[Left]:
    """Report an instance of a subclass: its forward may differ, so it is not replaced."""
    for base in type(module).__mro__[1:]:
        if full_name(base) in known:
            why = f"a subclass of {base.__name__}, whose forward may differ"
            return [Left(path or "(the model)", full_name(type(module)), why)]
    return []


def _made_from(module: nn.Module, rule: Rule) -> nn.Module:
    """Return the rule's layer in the state of `module`: train/eval, hooks."""
    assert rule.module is not None, f"rule {rule.name} names modules, but has no replacement"
    replacement = rule.module(module)
    replacement.train(module.training)
    # The dictionaries themselves move, so that the handles a user holds still remove their hooks.
    hooks = {
        k: v for k, v in vars(module).items() if "_hook" in k and not k.endswith("_dict_hooks")
    }
    vars(replacement).update(hooks)
    return replacement


def has(model: nn.Module) -> Counter[str]:
    """Count the classes of the modules without children: what a model has."""
    leaves = (m for m in model.modules() if not next(m.children(), None))
    return Counter(type(m).__name__ for m in leaves)


def parameters(model: nn.Module) -> int:
    """Return the number of parameters; a shared one counts once."""
    return sum(p.numel() for p in model.parameters())


def as_arguments(example_inputs: object) -> tuple:
    """Return example inputs as a tuple of arguments; a single tensor is one argument."""
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, tuple | list) and example_inputs:
        return tuple(example_inputs)
    raise UsageError(
        f"example_inputs must be a tensor or a tuple of arguments, not {type(example_inputs)}."
    )


def outputs(model: nn.Module, example_inputs: tuple) -> list[np.ndarray]:
    """Return the model's outputs in eval mode, as a flat list of arrays.

    The inputs are cloned, because a layer in place may write into them.
    """
    copies = pytree.tree_map_only(torch.Tensor, torch.clone, example_inputs)
    with evaluating(model), torch.no_grad():
        result = model(*copies)
    tensors = [t for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
    if not tensors:
        raise SurgeryError(f"The model returned no tensor on the example inputs: {type(result)}.")
    return [_array(t) for t in tensors]


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set eval mode; afterwards every module gets back its own mode (frozen BatchNorm too)."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:  # not model.eval(): an exported graph refuses it
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
