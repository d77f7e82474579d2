"""Functions and branches: nodes that are not in the main graph."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from .draft import Draft

DOMAIN = "my.ops"


def local_functions(seed=0, calls=2, nested=False) -> onnx.ModelProto:
    """Return a network whose hard-swish is inside a function of the model's own."""
    draft = Draft(seed)
    x = draft.stem()
    weight = draft.weight("w1", draft.draw(8, 8, 3, 3))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    act = helper.make_node("HardSwish", ["c"], ["y"], "act")
    if nested:
        inner = helper.make_node("HardSwish", ["a"], ["b"], "inner")
        function = helper.make_function(DOMAIN, "Act", ["a"], ["b"], [inner], imports)
        draft.functions.append(function)
        act = helper.make_node("Act", ["c"], ["y"], "act", domain=DOMAIN)
    body = [helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1] * 4), act]
    draft.functions.append(
        helper.make_function(DOMAIN, "ConvAct", ["x", "w"], ["y"], body, imports)
    )
    for number in range(calls):
        x = draft.node("ConvAct", [x, weight], f"block{number}", domain=DOMAIN)
    draft.head(x)
    return draft.finish(domains=[DOMAIN])


def constant_condition(seed=0, holds=True, as_node=False) -> onnx.ModelProto:
    """Return a network with an If whose condition is a constant; both branches read outside."""
    draft = Draft(seed)
    s = draft.stem()
    if as_node:
        condition = draft.tensor_node("condition", np.array(holds))
    else:
        condition = draft.weight("condition", np.array(holds))
    weight = draft.weight("w1", draft.draw(8, 8, 3, 3))

    def branch(name, *nodes):
        info = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, (1, 8, 16, 16))
        return helper.make_graph(list(nodes), name, [], [info])

    then = branch(
        "then",
        helper.make_node("Conv", [s, weight], ["then.c"], "then/conv", pads=[1] * 4),
        helper.make_node("HardSwish", ["then.c"], ["then.y"], "then/act"),
    )
    otherwise = branch("else", helper.make_node("Identity", [s], ["else.y"], "else/identity"))
    draft.head(draft.node("If", [condition], "br", then_branch=then, else_branch=otherwise))
    return draft.finish()
