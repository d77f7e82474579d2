"""Models after surgery: they copy, save, export strictly and train in two processes; graphs too."""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import forked
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labutils import _torchvision, surgery
from labutils.errors import SurgeryError, UsageError

_torchvision.load()  # timm imports torchvision
IMAGE = (2, 3, 64, 64)


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def outputs(model, x):
    with torch.no_grad():
        return model(x)


class Block(nn.Module):
    """Squeeze-excitation, Hardswish and dropout written out in a forward."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        y = self.norm(self.conv(x))
        y = y * F.relu6(y + 3, inplace=True).div(6)
        y = F.dropout(y, 0.1, self.training)
        gate = F.relu(self.down(y.mean((-1, -2), keepdim=True)))
        return x + y * torch.sigmoid(self.up(gate))


class Written(nn.Module):
    """Everything in functions: nothing for the module level to do."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3, 2), nn.ModuleList([Block(8), Block(8)])
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.silu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(F.gelu(x).mean((2, 3)))


def written():
    torch.manual_seed(0)
    return Written().eval()


def torchvision_small():
    from torchvision.models import mobilenet_v3_small

    torch.manual_seed(0)
    return mobilenet_v3_small(num_classes=4).eval()


def timm_small():
    import timm

    torch.manual_seed(0)
    return timm.create_model("mobilenetv3_small_050", num_classes=4).eval()


def timm_convnext():
    import timm

    torch.manual_seed(0)
    return timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16),
                             num_classes=4).eval()  # fmt: skip


MODELS = {
    "written": (written, "lite"),
    "written, exactly": (written, ("silu", "gelu", "mean-to-global-pool")),
    "torchvision": (torchvision_small, "lite"),
    "timm": (timm_small, "lite"),
    "timm convnext": (timm_convnext, "lite"),
    "timm convnext, exactly": (timm_convnext, ("layer-norm", "gelu")),
}


def operated(name):
    make, rules = MODELS[name]
    model = make()
    return model, surgery.replace_(model, rules, example_inputs=seeded(*IMAGE))


@pytest.mark.parametrize("name", MODELS)
def test_copies_pickles_and_state_dicts(name):
    model, report = operated(name)
    x = seeded(*IMAGE)
    expected = outputs(model, x)
    twin = copy.deepcopy(model)
    assert torch.equal(outputs(twin, x), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert torch.equal(outputs(model, x), expected), "nothing is shared with the copy"
    assert not torch.equal(outputs(twin, x), expected)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(outputs(twin, x), expected)
    other, _ = operated(name)
    assert list(other.state_dict()) == list(model.state_dict()), "surgery is deterministic"
    other.load_state_dict(model.state_dict())
    assert torch.equal(outputs(other, x), expected)
    if "written" in name:
        assert torch.equal(outputs(pickle.loads(pickle.dumps(model)), x), expected)
    assert report.parameters[1] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["written", "written, exactly", "torchvision",
                                  "timm convnext, exactly"])  # fmt: skip
def test_strict_export(name):
    model, report = operated(name)
    x = seeded(*IMAGE)
    program = torch.export.export(model, (x,), strict=True)
    torch.testing.assert_close(program.module()(x), outputs(model, x), rtol=1e-4, atol=1e-5)
    left = Counter(str(n.target) for n in program.graph.nodes if n.op == "call_function")
    words = ("hardswish", "hardsigmoid", "gelu", "silu", "sigmoid", "relu6", "layer_norm")
    found = {word for word in words if any(word in target for target in left)}
    assert found == ({"sigmoid", "relu6"} if name == "written, exactly" else set())
    assert report.level in ("module", "graph+function", "function", "module+function")


def test_every_step_of_a_written_forward():
    model, report = operated("written")
    done = {name: n for name, n in report.counts.items() if n}
    assert done == {"se-to-identity": 2, "hardswish-to-relu": 2, "silu-to-relu": 1,
                    "gelu-to-relu": 1}  # fmt: skip
    assert report.level == "graph+function"
    assert [name for name, _ in model.blocks[0].named_parameters()] == [
        "conv.weight", "conv.bias", "norm.weight", "norm.bias",
    ], "the weights of the squeeze-excitation are gone"  # fmt: skip
    assert surgery.restore_(copy.deepcopy(model))


def test_surgery_in_two_steps():
    x, model = seeded(*IMAGE), written()
    surgery.replace_(model, "hardswish-to-relu", example_inputs=x)
    surgery.replace_(model, "se-to-identity", example_inputs=x)
    surgery.replace_(model, ["silu-to-relu", "gelu-to-relu"], example_inputs=x)
    at_once, _ = operated("written")
    assert torch.equal(outputs(model, x), outputs(at_once, x))


def test_taking_a_traced_forward_back():
    x, model = seeded(*IMAGE), written()
    expected = outputs(model, x)
    surgery.replace_(model, ["hardswish-to-relu", "silu-to-relu"], example_inputs=x)
    assert not torch.equal(outputs(model, x), expected)
    assert surgery.restore_(model) and not surgery.restore_(model)
    assert torch.equal(outputs(model, x), expected)


# --- graphs --------------------------------------------------------------------------------------


def graphs():
    x = seeded(*IMAGE)
    return {
        "fx": lambda: torch.fx.symbolic_trace(written()),
        "export": lambda: torch.export.export(written(), (x,)).module(),
        "program": lambda: torch.export.export(written(), (x,)),
    }


@pytest.mark.parametrize("kind", ["fx", "export", "program"])
def test_traced_graphs_are_edited_in_place(kind):
    graph, x = graphs()[kind](), seeded(*IMAGE)
    report = surgery.replace_(graph, "lite", example_inputs=x)
    done = {name: n for name, n in report.counts.items() if n}
    assert done == {"se-to-identity": 2, "hardswish-to-relu": 2, "silu-to-relu": 1,
                    "gelu-to-relu": 1}  # fmt: skip
    assert report.level == "graph" and report.macs[1] < report.macs[0]
    run = graph.module() if kind == "program" else graph
    wanted, _ = operated("written")
    torch.testing.assert_close(outputs(run, x), outputs(wanted, x), rtol=1e-5, atol=1e-6)
    if kind != "program":
        assert report.parameters[1] == sum(p.numel() for p in wanted.parameters())
    if kind == "program":
        assert all("aten" in str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        torch.export.export(graph.module(), (x,))


def test_in_place_operators_of_an_exported_graph(small):
    x = seeded(1, 3, 64, 64)
    graph = torch.export.export(small, (x,)).module()
    kinds = Counter(str(n.target) for n in graph.graph.nodes)
    assert kinds["aten.hardswish_.default"] > 10
    report = surgery.replace_(graph, example_inputs=x)
    assert report.counts == {"hardsigmoid": 9, "hardswish": 19} and report.check.max_error == 0
    assert not any("hards" in str(n.target) for n in graph.graph.nodes)
    assert all("aten" in str(n.target) for n in graph.graph.nodes
               if n.op == "call_function")  # fmt: skip


def test_an_in_place_call_whose_argument_is_read_later_is_left():
    class Later(nn.Module):
        def forward(self, x):
            x = x * 2
            y = F.silu(x, inplace=True)
            return y + x  # reads what silu wrote

    graph = torch.fx.symbolic_trace(Later())
    expected = graph(seeded(5))
    with pytest.raises(SurgeryError, match="reads its argument later"):
        surgery.replace_(graph, "silu-to-relu", example_inputs=seeded(5))
    assert torch.equal(graph(seeded(5)), expected)


def test_a_program_is_left_as_it_was_when_nothing_matches_or_shapes_change():
    x = seeded(*IMAGE)
    program = torch.export.export(written(), (x,))
    code, before = program.graph_module.code, outputs(program.module(), x)
    with pytest.raises(SurgeryError, match="matched nothing"):
        surgery.replace_(program, "hardswish", example_inputs=x)
    twice = surgery.pattern_rule(F.gelu, lambda x: torch.cat([x, x]), name="twice")
    with pytest.raises(SurgeryError, match="shapes"):
        surgery.replace_(program, twice, example_inputs=x)
    assert program.graph_module.code == code
    assert torch.equal(outputs(program.module(), x), before)
    with pytest.raises(UsageError, match="is a graph"):
        surgery.replace_(program, "lite", level="module")


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x * F.relu6(x + 3) / 6,
        lambda x: torch.clamp(3 + x, 0, 6) * x / 6,
        lambda x: x.mul(F.hardtanh(x.add(3.0), 0.0, 6.0)).div(6.0),
        lambda x: (x + 3).clamp_(min=0, max=6) / 6 * x,
        lambda x: x * F.hardsigmoid(x),
    ],
)
def test_one_pattern_for_every_way_to_write_it(write):
    class Net(nn.Module):
        def forward(self, x):
            return write(x)

    x = seeded(30)
    for make in (Net, lambda: torch.fx.symbolic_trace(Net()),
                 lambda: torch.export.export(Net(), (x,)).module()):  # fmt: skip
        model = make()
        report = surgery.replace_(model, "hardswish-to-relu", example_inputs=x)
        assert len(report.matches) == 1 and torch.equal(outputs(model, x), torch.relu(x))


def test_a_used_middle_and_another_number_do_not_match():
    class Used(nn.Module):
        def forward(self, x):
            gate = F.relu6(x + 3)
            return x * gate / 6 + gate

    class Other(nn.Module):
        def forward(self, x):
            return x * F.relu6(x + 2) / 6

    for cls in (Used, Other):
        with pytest.raises(SurgeryError, match="matched nothing"):
            surgery.replace_(cls(), "hardswish-to-relu", example_inputs=seeded(4))


def test_occurrences_that_follow_each_other():
    class Chain(nn.Module):
        def forward(self, x):
            for _ in range(5):
                x = x * torch.sigmoid(x)
            return x

    same = surgery.pattern_rule(lambda x: x * torch.sigmoid(x), lambda x: x, name="take out")
    for rule, wanted in (("silu-to-relu", torch.relu), (same, torch.clone)):
        model, x = Chain(), seeded(9)
        report = surgery.replace_(model, rule, example_inputs=x)
        assert len(report.matches) == 5 and torch.equal(outputs(model, x), wanted(x))


def test_a_pattern_of_ones_own_with_any_numbers():
    class Affine(nn.Module):
        def forward(self, x):
            return torch.tanh(x * 3 + 1) + torch.tanh(x * 0.5 + 2)

    rule = surgery.pattern_rule(lambda x: torch.tanh(x * 1 + 1), lambda x: x, any_numbers=True,
                                name="affine tanh")  # fmt: skip
    model, x = Affine(), seeded(6)
    report = surgery.replace_(model, rule, example_inputs=x)
    assert report.counts == {"affine tanh": 2} and torch.equal(outputs(model, x), x + x)


# --- ONNX ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [13, 17])
def test_lite_on_files_without_source(opset, small):
    import io

    import onnx

    file, x = io.BytesIO(), seeded(1, 3, 64, 64)
    torch.onnx.export(small, (x,), file, opset_version=opset, dynamo=False)
    graph = onnx.load_from_string(file.getvalue())
    assert surgery.preview(graph, "lite")["se-to-identity"] == 9
    report = surgery.replace_(graph, "lite", example_inputs=x.numpy())
    done = {name: n for name, n in report.counts.items() if n}
    assert done == {"se-to-identity": 9, "hardswish-to-relu": 19}
    kinds = Counter(node.op_type for node in graph.graph.node)
    assert not {"HardSigmoid", "HardSwish", "Sigmoid"} & set(kinds)
    assert kinds["GlobalAveragePool"] == 1, "the one before the classifier"
    assert report.macs[1] < report.macs[0] and report.parameters[1] < report.parameters[0]
    assert surgery.preview(small, "lite")["se-to-identity"] == 9, "in PyTorch, and nothing changes"
    assert len(report.left) == 0


def test_gates_of_files_without_source_are_left(small):
    import io

    import onnx

    file = io.BytesIO()
    torch.onnx.export(small, (seeded(1, 3, 64, 64),), file, opset_version=17, dynamo=False)
    graph = onnx.load_from_string(file.getvalue())
    report = surgery.replace_(graph, ["hardsigmoid-to-relu", "hardswish-to-relu"])
    assert report.counts == {"hardsigmoid-to-relu": 0, "hardswish-to-relu": 19}
    assert len(report.left) == 9 and all("factor" in left.why for left in report.left)


# --- two processes -------------------------------------------------------------------------------


def _train(names):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for name in names:
        first = _stepped(name, torch.distributed.get_rank())
        both = [torch.empty_like(first) for _ in range(2)]
        torch.distributed.all_gather(both, first)
        print(name, "equal" if torch.equal(*both) else "the weights differ")
    torch.distributed.destroy_process_group()


def _stepped(name, rank):
    """Train two steps; return the first weight.

    The parallel model must be gone before its process group is: as the group's last owner it would
    wait, holding the interpreter's lock, for a thread of gloo's that waits for the lock.
    """
    model, _ = operated(name)
    parallel = nn.parallel.DistributedDataParallel(model.train())
    optimizer = torch.optim.SGD(parallel.parameters(), 0.01)
    for _ in range(2):  # the second finds what the first left without a gradient
        x = seeded(4, 3, 64, 64)[2 * rank : 2 * rank + 2]
        optimizer.zero_grad()
        parallel(x).square().sum().backward()
        optimizer.step()
    return next(model.parameters()).detach()


@pytest.mark.slow
def test_two_processes_train_without_find_unused_parameters(tmp_path):
    names = ["written", "torchvision", "timm convnext"]  # all three levels, new weights and old
    codes, said = forked.two(_train, (names,), tmp_path)
    assert codes == [0, 0], said
    for text in said:
        assert [line for line in text.splitlines() if "equal" in line or "differ" in line] == [
            f"{name} equal" for name in names
        ]


@pytest.mark.parametrize(
    ("pattern", "replacement", "words"),
    [
        (torch.tanh, nn.ReLU, r"replacement .* ReLU is a class: .* a layer: ReLU\(\)"),
        (torch.ones(1), torch.relu, "pattern is a function of tensors, not Tensor"),
        (torch.tanh, None, "replacement is a function of tensors, not NoneType"),
    ],
)
def test_a_pattern_rule_is_made_of_functions(pattern, replacement, words):
    with pytest.raises(UsageError, match=words):
        surgery.pattern_rule(pattern, replacement)


def test_a_pattern_that_makes_a_layer_is_refused_with_the_way_out():
    rule = surgery.pattern_rule(lambda x: x * nn.Sigmoid()(x), torch.relu, name="gate of its own")
    with pytest.raises(UsageError, match=r"gate of its own makes a layer .* torch\.sigmoid"):
        surgery.replace_(nn.Sequential(nn.Linear(2, 2)), rule, "graph", torch.ones(1, 2))
