"""What is prepared is the network: in place, used twice, gray, frozen; or it is refused by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from labutils.errors import SurgeryError, UsageError
from labutils.quantize.recipe import Override, Recipe
from labutils.quantize.training import fidelity, loaders, qat
from labutils.quantize.training.fake_quant import passing, quantizers
from labutils.quantize.training.in_place import STATEMENT

SIDE = 16


class Base(nn.Module):
    """Two convolutions and a classifier; what happens between them is `between`."""

    def __init__(self, between=None, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(channels, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.f, self.r = nn.Linear(8, 4), nn.ReLU(inplace=True)
        self.silu, self.drop = nn.SiLU(inplace=True), nn.Dropout(0.3, inplace=True)
        self.register_buffer("kept", torch.ones(1))
        self.between = between

    def forward(self, x):
        return self.f(self.between(self, self.a(x)).mean((2, 3)))


def inputs(n=4, channels=3, size=(SIDE, SIDE)):
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(1))


def difference(model, prepared, x):
    with torch.no_grad(), passing(prepared):
        return (model.eval()(x.clone()) - prepared(x.clone())).abs().max().item()


def written(function):
    """A forward of statements: `function` changes its argument and gives nothing."""

    def between(self, x):
        function(self, x)
        return self.b(x)

    return between


def plus(self, x):
    y = x
    y += 1
    return self.b(x) * y


def twice(self, x):
    x = self.b(x)
    y = F.relu_(x)
    x.sub_(0.1)
    return x * y


def part(self, x):
    one, other = x.chunk(2, 1)
    one.mul_(2)
    other.add_(1)
    return self.b(torch.cat([one, other], 1))


EXACT = {
    "method": written(lambda self, x: x.mul_(0.5)),
    "relu method": written(lambda self, x: x.relu_()),
    "clamp": written(lambda self, x: x.clamp_(-0.1, 0.2)),
    "function": written(lambda self, x: F.relu(x, inplace=True)),
    "function, by place": written(lambda self, x: F.leaky_relu(x, 0.1, True)),
    "torch function": written(lambda self, x: torch.relu_(x)),
    "module": written(lambda self, x: self.r(x)),
    "module written out": written(lambda self, x: self.silu(x)),
    "dropout": written(lambda self, x: self.drop(x)),
    "branch": lambda self, x: self.b(self.r(x)) + x,
    "+= under another name": plus,
    "twice": twice,
    "a part": part,
}


@pytest.mark.parametrize("between", EXACT.values(), ids=EXACT.keys())
def test_statements_in_place_are_made_out_of_place_exactly(between):
    model, x = Base(between), inputs()
    prepared = qat.prepare(model, "int8_qat", size=SIDE)
    assert difference(model, prepared, x) < 1e-6
    qat.calibrate_(prepared, x.numpy())
    prepared.train()(x).sum().backward()  # a quantizer's gradient needs what it was given
    assert not any(STATEMENT in node.meta for node in prepared.graph.nodes)


def view(self, x):
    flat = x.flatten(1)
    x.mul_(2)
    return self.b(x) + flat.mean()


def element(self, x):
    x[:, 0] = 0
    return self.b(x)


REFUSED = {
    "a view read later": (view, r"'mul_' writes into a tensor in place, and .* reads the same mem"),
    "a buffer": (lambda self, x: self.b(x) * self.kept.add_(1), "changes 'kept' of the network"),
    "no other form": (written(lambda self, x: x.zero_()), "'zero_'.*no form of it"),
    "elements": (element, "assigns to elements"),
    "an output argument": (
        written(lambda self, x: torch.add(x, 1, out=x)), "'add'.*no form of it|not its first"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("between", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_made_out_of_place_is_refused_by_name(between, words):
    with pytest.raises(SurgeryError, match=words):
        qat.prepare(Base(between), "int8_qat", size=SIDE)


def test_a_prepared_network_of_another_function_is_refused_with_the_layer():
    model = Base(lambda self, x: self.b(x).relu())
    prepared = qat.prepare(model, "int8_qat", size=SIDE)
    with torch.no_grad():
        prepared.get_submodule("b").parametrizations.weight.original.mul_(1.01)
    with pytest.raises(SurgeryError, match=r"another function.* differs is 'b' \("):
        fidelity.check(model, prepared, inputs(1))


def test_another_order_of_sums_is_not_another_function():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)) for _ in range(12)]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *layers, nn.Flatten(), nn.Linear(8 * 64, 4))
    for layer in layers:
        layer[1].running_var.fill_(1e-8)  # each multiplies by hundreds what was rounded before
    qat.prepare(model, "int8_qat", size=8)


# --- used twice -----------------------------------------------------------------------------------


class Shared(Base):
    """A convolution that is called twice, with a BatchNorm of its own behind each call."""

    def __init__(self, norms=True):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) if norms else nn.Identity() for _ in "ab")
        for i, norm in enumerate(self.norms):
            if norms:
                norm.running_mean.fill_(i - 0.5)

    def forward(self, x):
        x = F.relu(self.a(x))
        for norm in self.norms:
            x = F.relu(norm(self.b(x)))
        return self.f(x.mean((2, 3)))


@pytest.mark.parametrize("norms", [True, False])
def test_a_layer_used_twice_is_refused_by_name_or_stays_float(norms, tmp_path):
    model, x = Shared(norms), inputs()
    with pytest.raises(SurgeryError, match=r"'b' \(Conv2d\) is used 2 times.*exclude: \['b'\]"):
        qat.prepare(model, "int8_qat", size=SIDE)
    prepared = qat.prepare(model, Recipe(exclude=("b",)), size=SIDE)
    assert difference(model, prepared, x) < 1e-6
    qat.calibrate_(prepared, x.numpy())
    report = qat.to_qdq(prepared, tmp_path / "q.onnx", size=SIDE, images=x.numpy())
    assert report.weights == {"int8": 2}


def test_a_weight_that_is_read_by_itself_as_well_counts_as_used_twice():
    def between(self, x):
        return self.b(x) + F.conv2d(x, self.b.weight, padding=1)

    with pytest.raises(SurgeryError, match=r"'b'.*used 2 times"):
        qat.prepare(Base(between), "int8_qat", size=SIDE)


def test_a_weight_shared_by_two_layers_keeps_its_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    model[2].weight = model[0].weight
    prepared = qat.prepare(model, "int8", size=8)
    assert any(isinstance(m, nn.BatchNorm2d) for m in prepared.modules())
    assert difference(model, prepared, inputs()) < 1e-6


# --- which networks and images --------------------------------------------------------------------


def plain(self, x):
    return self.b(x.relu())


@pytest.mark.parametrize(("channels", "size"), [(1, SIDE), (3, (32, 16)), (1, (16, 24))])
def test_gray_and_rectangular_images_from_prepare_to_file(channels, size, tmp_path):
    sides = (size, size) if isinstance(size, int) else size
    model, x = Base(plain, channels), inputs(4, channels, sides)
    prepared = qat.prepare(model, "int8_qat", size=size)
    qat.calibrate_(prepared, x.numpy())
    report = qat.to_qdq(prepared, tmp_path / "q.onnx", size=size)
    assert report.sqnr_db > 40 and report.size == size
    with pytest.raises(UsageError, match=rf"the network takes \(n, {channels}, height"):
        qat.calibrate_(prepared, inputs(2, 4 - channels, sides).numpy())


def test_other_types_and_sizes_are_refused_with_the_way_on():
    for change in ("double", "half", "bfloat16"):
        with pytest.raises(UsageError, match=r"torch\.\w+, .*prepare model\.float\(\)"):
            qat.prepare(getattr(Base(plain), change)(), "int8", size=SIDE)
    small = nn.Sequential(nn.Conv2d(3, 4, 7), nn.Flatten(), nn.LazyLinear(2))
    small(torch.zeros(1, 3, 16, 16))
    for size in (4, 20, 0, -3, (16, 8)):
        with pytest.raises(UsageError, match=r"size="):
            qat.prepare(small, "int8", size=size)


class Optional(Base):
    """A forward that decides by an argument with a default."""

    def forward(self, x, mask=None, scale: float = 0.5):
        x = self.a(x)
        x = x if mask is None else x * mask
        return self.f(plain(self, x).mean((2, 3))) * scale


def test_arguments_with_defaults_keep_them():
    model = Optional()
    assert difference(model, qat.prepare(model, "int8", size=SIDE), inputs()) < 1e-6


class Outputs(Base):
    """Two outputs."""

    def __init__(self, named):
        super().__init__()
        self.named = named

    def forward(self, x):
        x = self.b(self.a(x).relu())
        out = self.f(x.mean((2, 3))), x
        return dict(zip(("scores", "map"), out, strict=True)) if self.named else out


@pytest.mark.parametrize("named", [True, False])
def test_every_output_of_a_file_is_compared(named, tmp_path):
    prepared = qat.prepare(Outputs(named), "int8_qat", size=SIDE)
    qat.calibrate_(prepared, inputs().numpy())
    report = qat.to_qdq(prepared, tmp_path / "q.onnx", size=SIDE, images=inputs().numpy())
    assert report.bit_equal > 0 and report.sqnr_db > 40


class Gates(Base):
    """Factors made of parameters of no and of one dimension, and a sum over the image."""

    def __init__(self):
        super().__init__()
        self.scalar, self.gate = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        w = self.b.weight / self.b.weight.norm()
        x = F.conv2d(self.a(x).relu(), w, padding=1).mean((2, 3))
        return self.f(x * torch.sigmoid(self.gate)) * self.scalar.exp()


def test_tensors_of_no_and_of_one_dimension_are_calibrated(tmp_path):
    prepared = qat.prepare(Gates(), "int8_qat", size=SIDE)
    qat.calibrate_(prepared, inputs().numpy())
    prepared.train()(inputs()).sum().backward()
    report = qat.to_qdq(prepared, tmp_path / "q.onnx", size=SIDE, images=inputs().numpy())
    assert report.sqnr_db > 20


# --- what training may move -----------------------------------------------------------------------


def test_frozen_layers_stay_frozen_their_steps_included():
    def trained(model):
        return {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}

    model, x = Base(plain), inputs().numpy()
    model.a.requires_grad_(False)
    prepared = qat.prepare(model, "int8_qat", size=SIDE)
    prepared.get_submodule("b").requires_grad_(False)  # later is the same
    qat.calibrate_(prepared, x)
    assert trained(prepared) == {"f", "quantizers"}
    again = qat.prepare(model.requires_grad_(False), "int8_qat", size=SIDE)  # as from the zoo: all
    qat.calibrate_(again, x)
    assert trained(again) == {"a", "b", "f", "quantizers"}


def test_weight_decay_leaves_steps_alone():
    prepared = qat.prepare(Base(plain), "int8_qat", size=SIDE)
    qat.calibrate_(prepared, inputs().numpy())
    decayed, kept = qat.parameter_groups(prepared, 0.01)
    steps = {id(q.exponent) for q in quantizers(prepared).values()}
    assert steps <= {id(p) for p in kept["params"]} and kept["weight_decay"] == 0
    assert decayed["weight_decay"] == 0.01 and len(decayed["params"]) == 3


# --- calibration, state and file ------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_calibration(bad):
    x = inputs(40).numpy()
    x[35, 0, 0, 0] = bad
    prepared = qat.prepare(Base(plain), "int8_qat", size=SIDE)
    with pytest.raises(UsageError, match="Image 35"):
        qat.calibrate_(prepared, x)
    with torch.no_grad():
        prepared.get_submodule("b").parametrizations.weight.original[0, 0, 0, 0] = bad
    with pytest.raises(UsageError, match=r"'b.weight' holds NaN or infinity"):
        qat.calibrate_(prepared, inputs().numpy())
    assert set(qat.describe(prepared).phase) == {"following"}


def test_a_network_that_is_not_calibrated_is_not_written(tmp_path):
    prepared = qat.prepare(Base(plain), "int8_qat", size=SIDE)
    with pytest.raises(UsageError, match="not calibrated"):
        qat.to_qdq(prepared, tmp_path / "q.onnx", size=SIDE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("weights: {bits: 4}", "a.weight has bits 8 in the state, 4 here"),
        ("weights: {per_channel: false}", "a.weight has axis 0 in the state, None here"),
        ("weights: {power_of_two: true}", "a.weight has power of two False in the state, True"),
        ("weights: {limit: 0.25}", "a.weight has limit None in the state, 0.25 here"),
        ("activations: {range: [-4, 4]}", r"range None in the state, \(-4.0, 4.0\) here"),
        ("activations: {symmetric: true}", "symmetric False in the state, True here"),
        ("activations: {bits: 16}", "bits 8 in the state, 16 here"),
    ],
)
def test_the_state_of_another_recipe_is_refused_with_what_differs(text, words):
    from labutils.quantize import recipe

    model = Base(plain)
    state = qat.prepare(model, recipe.parse("name: x"), size=SIDE).state_dict()
    qat.prepare(model, recipe.parse("name: y"), size=SIDE).load_state_dict(state)
    with pytest.raises(UsageError, match=words):
        qat.prepare(model, recipe.parse(text), size=SIDE).load_state_dict(state)


def test_a_state_without_grids_is_taken_with_a_warning():
    from labutils.errors import EarlierFormatWarning

    prepared = qat.prepare(Base(plain), "int8_qat", size=SIDE)
    state = {
        name: torch.tensor(2, dtype=torch.uint8) if name.endswith("_extra_state") else value
        for name, value in prepared.state_dict().items()
    }
    with pytest.warns(EarlierFormatWarning, match="no grids"):
        prepared.load_state_dict(state)
    assert set(qat.describe(prepared).phase) == {"frozen"}


def test_autocast_of_the_caller_changes_neither_grids_nor_file(tmp_path):
    x, files = inputs().numpy(), [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file, enabled in zip(files, (False, True), strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            prepared = qat.prepare(Base(plain), "int8_qat", size=SIDE)
            qat.calibrate_(prepared, x)
            qat.to_qdq(prepared, file, size=SIDE, images=x)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_override_for_another_operator_says_what_the_node_is():
    chosen = Recipe(overrides=(Override("f", op_type="Conv", weights=4),))
    with pytest.raises(UsageError, match="'f' is for op_type 'Conv', and what it names is Gemm"):
        qat.prepare(Base(plain), chosen, size=SIDE)


def calibrated(calibration):
    network = Base(written(lambda self, x: None))
    prepared = qat.prepare(network, "int8_qat", size=SIDE)
    qat.calibrate_(prepared, calibration)
    return prepared.state_dict()


@pytest.mark.parametrize("kind", ["tensors", "arrays", "pairs", "loader", "one tensor"])
def test_a_loader_of_any_make_calibrates_as_its_images_do(kind):
    images = inputs(12)
    parts = images.split(5)
    wanted = calibrated(images.numpy())
    found = calibrated({
        "tensors": parts, "arrays": [part.numpy() for part in parts],
        "pairs": [(part, torch.zeros(len(part))) for part in parts], "one tensor": images,
        "loader": DataLoader(TensorDataset(images, torch.zeros(12)), 5),
    }[kind])  # fmt: skip
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_loader_is_asked_for_no_more_than_is_needed():
    asked = []

    def batches():
        while True:
            asked.append(1)
            yield inputs(100)

    assert loaders.first_images(batches()).shape == (loaders.MOST_IMAGES, 3, SIDE, SIDE)
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "gave no batch"),
        (["cat.png"], "is a str"),
        ([{"image": inputs(), "label": 1}], "is a dict of image, label"),
        ([inputs()[0]], r"of shape \(3, 16, 16\)"),
        ([inputs(), inputs(size=(8, 8))], "differ in shape"),
        ([inputs(channels=1)], r"takes \(n, 3"),
        ([()], "is a tuple"),
        ([(inputs() * 100).byte()], "uint8: pixels"),
        ([(inputs() * 100).int().numpy()], "int32: pixels"),
        (7, "not 7"),
    ],
)
def test_a_loader_of_something_else_is_refused_in_words(batches, words):
    with pytest.raises(UsageError, match=words):
        calibrated(batches)
