"""Rewriting an ONNX graph with onnxscript's rewriter; names and provenance are kept."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import onnx_ir.passes.common
from onnxscript.optimizer import basic_constant_propagation
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet

from ...onnxfile.graph import with_shapes
from ..forms import Leave, ask
from ..report import Left, Match
from .builder import Builder, Names

if TYPE_CHECKING:
    from ..forms import OnnxForm
    from ..rule import Rule


def rewrite_(model: ir.Model, rules: Sequence[Rule]) -> tuple[list[Match], list[Left]]:
    """Replace in the graph, its subgraphs included, what the rules' forms match.

    Forms of more operators go first: ``x * HardSigmoid(x)`` is one Hardswish, and not a
    Hardsigmoid and a product.
    """
    matches: list[Match] = []
    left: list[Left] = []
    passes = [(rule, step) for rule in rules for step in rule.onnx_passes]
    if passes:
        _infer_shapes_(model)
    for rule, step in passes:
        done, not_done = step.run(model, rule)
        matches += done
        left += not_done
    basic_constant_propagation(model.graph)  # lets patterns see the values of Constant nodes
    used = {name for name, value in model.graph.initializers.items() if value.uses()}
    plain = _plain(model, rules)
    state = Rewriting(model, frozenset(rule.name for rule in rules))
    forms = [(rule, form) for rule in rules for form in rule.onnx if form.build]
    forms.sort(key=lambda pair: -len(pair[1].ops))
    for _, group in itertools.groupby(forms, key=lambda pair: len(pair[1].ops)):
        rewrites = [state.rewrite_rule(rule, form) for rule, form in group]
        RewriteRuleSet(rewrites, commute=True).apply_to_model(model)
    for name in used:  # a weight that was rewritten into another
        value = model.graph.initializers.get(name)  # the rewriter takes some away itself
        if value is not None and not value.uses() and value not in model.graph.outputs:
            del model.graph.initializers[name]
    return [*matches, *state.matches], [*left, *state.left(rules), *plain]


def _infer_shapes_(model: ir.Model) -> None:
    """Infer shapes as far as ONNX can; where it cannot, rules that need them match nothing."""
    logger = logging.getLogger("onnx_ir.passes.common.shape_inference")
    before = logger.level
    logger.setLevel(logging.CRITICAL)  # it would print a traceback
    try:
        ir.passes.common.ShapeInferencePass()(model)
    finally:
        logger.setLevel(before)


def _plain(model: ir.Model, rules: Sequence[Rule]) -> list[Left]:
    """Find the forms that need no replacement; the larger form claims its nodes."""
    forms = [form for rule in rules for form in rule.onnx if not form.build]
    found: list[Left] = []
    claimed: set[ir.Node] = set()
    for form in sorted(forms, key=lambda form: -len(form.ops)):
        patterns = RewriteRule(form.pattern, lambda op, **_: None).commute()
        for node in (node for node in _nodes(model) if node.op_type in form.ops):
            for pattern in patterns:
                match = pattern.match(model, model.graph, node, check_nodes_are_removable=False)
                if match and claimed.isdisjoint(match.nodes):
                    claimed.update(match.nodes)
                    found.append(Left(_label(node), form.label, "already plain"))
                    break
    return found


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    return iter(ir.traversal.RecursiveGraphIterator(model.graph))


def _label(node: ir.Node) -> str:
    return node.name or f"the node of {node.outputs[0].name}"


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None, "a pattern matches the output of a node"
    return node


class Rewriting:
    """What one rewriting knows: the names in use, the matches, the reasons for what is left."""

    def __init__(self, model: ir.Model, active: frozenset[str]) -> None:
        self.model, self.active = model, active
        self.opset = model.opset_imports.get("", 1)
        self.matches: list[Match] = []
        self.kept: dict[ir.Node, Leave] = {}
        self.names = Names.of(model)
        self._types: dict[str, int] | None = None

    def rewrite_rule(self, rule: Rule, form: OnnxForm) -> RewriteRule:
        """Return onnxscript's rule for a form."""
        accepted: list[ir.Node] = []  # the nodes of the match under way, the root first
        write = form.build
        assert write is not None, "a form without build is counted by _plain"

        def check(context: Any, x: ir.Value, y: ir.Value, **_: Any) -> bool:
            node = _producer(y)
            leave = self._check(context.graph_or_function, form, x, node)
            if leave is not None:
                self.kept[node] = leave
            accepted[:] = [context.root, *context.nodes]
            return leave is None

        def build(op: Any, x: ir.Value, y: ir.Value, **_: Any) -> ir.Value:
            root, node, dtype = accepted[0], _producer(y), self.dtype(x)
            assert dtype is not None, "the check leaves it"
            self.names.nodes -= {n.name for n in accepted if n.name}
            scope = _scope(node.name or root.name or root.outputs[0].name or "", node.op_type)
            builder = Builder(op, x, scope, self.names, dtype, self.opset)
            result = write(builder, x, node)
            became = ", ".join(builder.written)
            self.matches.append(Match(rule.name, "onnx", _label(root), form.label, became))
            return result

        return RewriteRule(form.pattern, build, check, name=f"labutils: {rule.name}")

    def _check(
        self, owner: ir.Graph | ir.Function, form: OnnxForm, x: ir.Value, node: ir.Node
    ) -> Leave | None:
        if isinstance(owner, ir.Function):
            return Leave(
                f"inside the model's own function {owner.name!r}: inline it first (onnx.inliner)"
            )
        if self.dtype(x) is None:
            return Leave(
                f"the type of its input {x.name!r} is unknown: run onnx.shape_inference first"
            )
        return ask(form.check, node, self.active)

    def dtype(self, x: ir.Value) -> ir.DataType | None:
        """Return the element type of a value; inferred once where the file does not say."""
        if x.dtype is not None:
            return x.dtype
        if self._types is None:
            self._types = _inferred_types(self.model)
        found = self._types.get(x.name or "")
        return ir.DataType(found) if found else None

    def left(self, rules: Sequence[Rule]) -> list[Left]:
        """Return the nodes that still have an operator of the rules, and why."""
        ops = frozenset[str]().union(*(rule.pattern_ops for rule in rules))
        default = Leave("not in a form that the given rules know")
        owners: list[ir.Graph | ir.Function] = [self.model.graph, *self.model.functions.values()]
        answers = (
            (node, self.kept.get(node, default))
            for owner in owners
            for node in ir.traversal.RecursiveGraphIterator(owner)
            if node.op_type in ops
        )
        return [
            Left(_label(node), node.op_type, leave.why) for node, leave in answers if leave.reported
        ]


def _inferred_types(model: ir.Model) -> dict[str, int]:
    graph = with_shapes(ir.to_proto(model)).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _scope(name: str, op_type: str) -> str:
    """Return what the new nodes' names begin with.

    Examples
    --------
    >>> _scope("/features/features.0/features.0.2/HardSwish", "HardSwish")
    '/features/features.0/features.0.2/'
    >>> _scope("node_hardswish_3", "HardSwish")
    'node_hardswish_3/'
    """
    parent, slash, last = name.rpartition("/")
    return parent + slash if slash and last.split("_")[0] == op_type else name + "/"
