"""From a network to the graph that is quantized: traced, out of place, BatchNorm folded."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...errors import SurgeryError
from . import in_place, lowering

_FOLDED = {
    nn.BatchNorm1d: nn.Conv1d, nn.BatchNorm2d: nn.Conv2d, nn.BatchNorm3d: nn.Conv3d,
}  # fmt: skip


def trace(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """Return a copy of `model` as a graph, in evaluation mode, BatchNorm folded into convolutions.

    A BatchNorm stays where its convolution is used more than once, or shares its weight.

    Parameters
    ----------
    model
        A float network; where some of its parameters ask for a gradient, those of the copy do
        that are made of them, and else all.
    example
        (n, channels, height, width) float32, on the network's device.

    Raises
    ------
    SurgeryError
        The forward method cannot be traced (it decides by the values of its input), or it writes
        in place into what is read under another name.
    """
    network, model = type(model).__name__, copy.deepcopy(model).eval()
    if not any(p.requires_grad for p in model.parameters()):
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    for name, module in list(model.named_modules()):
        if (
            isinstance(module, nn.BatchNorm2d)
            and type(module).forward is not nn.BatchNorm2d.forward
        ):
            model.set_submodule(name, _plain_norm(module))
    lowering.write_out_modules_(model)
    tracer, versions = in_place.Tracer(), _versions(model)
    try:
        made = tracer.trace(model)
    except Exception as error:  # whatever the forward method does with what is not a tensor
        raise SurgeryError(
            f"{network} cannot be traced by torch.fx, which quantization-aware "
            f"training needs: {_first_line(error)} Rewrite the forward method without "
            "Python control flow on tensors, or quantize after training (quantize.static)."
        ) from None
    changed = [name for name, version in _versions(model).items() if version != versions[name]]
    if changed:
        raise SurgeryError(
            f"The forward method of {network} changes '{changed[0]}' of the network: a graph, and "
            "the file, compute the same for an image whenever it comes. Take that out of it."
        )
    graph = fx.GraphModule(tracer.root, made, network)
    in_place.write_out_of_place_(graph, example)
    graph.graph.eliminate_dead_code()
    _fold_norms_(graph)
    return graph


def _versions(model: nn.Module) -> dict[str, int]:
    return {n: tensor._version for n, tensor in (*model.named_parameters(), *model.named_buffers())}


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def _plain_norm(module: nn.BatchNorm2d) -> nn.Module:
    """Return a BatchNorm with an activation inside (timm's) as BatchNorm and activation."""
    norm = nn.BatchNorm2d(module.num_features, module.eps, module.momentum, module.affine)
    norm.load_state_dict(module.state_dict(), strict=False)
    norm.requires_grad_(any(p.requires_grad for p in module.parameters()))
    inner = {name: getattr(module, name) for name in ("drop", "act") if hasattr(module, name)}
    return nn.Sequential(OrderedDict(norm=norm, **inner)).eval()  # their names, as an export's


def uses(graph: fx.GraphModule) -> Counter[str]:
    """Return how often each module is called, or its weight or bias read by itself."""
    found: Counter[str] = Counter()
    for node in graph.graph.nodes:
        if node.op == "call_module":
            found[str(node.target)] += 1
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            found[owner] += name in ("weight", "bias")
    return found


def _fold_norms_(graph: fx.GraphModule) -> None:
    """Fold each BatchNorm into the convolution before it, whose weights nothing else reads."""
    modules, used = dict(graph.named_modules()), uses(graph)
    owners = Counter(id(p) for module in modules.values() for p in module._parameters.values())
    folded: dict[str, str] = {}
    for node in list(graph.graph.nodes):
        norm: Any = modules.get(str(node.target)) if node.op == "call_module" else None
        before = node.args[0] if node.args else None
        if type(norm) not in _FOLDED or not isinstance(before, fx.Node) or len(before.users) > 1:
            continue
        name = str(before.target)
        conv: Any = modules.get(name) if before.op == "call_module" else None
        if type(conv) is not _FOLDED[type(norm)] or not norm.track_running_stats:
            continue
        if used[name] > 1 or any(owners[id(p)] > 1 for p in conv.parameters()):
            continue
        trained = any(p.requires_grad for part in (conv, norm) for p in part.parameters())
        graph.set_submodule(name, fuse_conv_bn_eval(conv, norm).requires_grad_(trained))
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
        folded[name] = str(node.target)
    graph.delete_all_unused_submodules()
    graph.recompile()
    graph.meta["folded"] = folded
