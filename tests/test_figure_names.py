"""Figures with the names of strangers' networks: nothing is cut, and nothing overlaps."""

import dataclasses
import itertools
import types

import numpy as np
from test_figures import FakeRunner, drawn, onnx_file, throughput_of

from labutils import compare, prune, targets
from labutils.compare import Layer, LayerReport
from labutils.images import data
from labutils.measure import complexity
from labutils.prune import budget, scan
from labutils.quantize import Ranges
from labutils.show import figures
from labutils.show.widgets import ladder_picker, stage_explorer

NAME = "backbone.MobileInvertedBottleneckConvolutionWithSqueezeAndExcitation.attention_gate"
NAMELESS = {  # figure -> why it holds no name that could be long
    "Picture": "the class",
    "activation_curves": "functions of the lab",
    "hard_and_smooth": "functions of the lab",
    "weight_work_time": "stages are features.N",
    "quantization_grid": "figures only",
    "architecture": "stages are features.N",
    "inverted_residual": "modules of torchvision",
    "front": "figures only",
    "compression_front": "stages have names of the lab",
    "accuracy_by_macs": "ways have names of the lab",
    "quantized": "draws nothing",
    "layer_costs": "test_precision.py: its words are wrapped one by one",
}


class Answers:
    """What a picker shows of its stages."""

    def __init__(self, images, classes):
        self.images, self.classes = images, classes

    def truth(self, index):
        return self.classes[0]


def ladder(name, folder):
    pixels = np.zeros((64, 2, 2, 3), np.uint8)
    pixels[:] = np.arange(64, dtype=np.uint8)[:, None, None, None]
    images = data.ImageSet(pixels, np.arange(64) % 16, [name] * 16, "numbers")
    files = [folder / "large.onnx", folder / "small.onnx"]
    for file in files:
        file.write_bytes(bytes(2_000_000))
    stages = [
        compare.Stage(name, FakeRunner("PyTorch CPU")),
        compare.Stage(f"{name} 2", FakeRunner("ONNX Runtime CPU", 1, files[0])),
        compare.Stage("HTP int8", FakeRunner("HTP simulator (QNN 2.51), SM8550", 20, files[1])),
    ]
    return compare.ladder(stages, images, data.Preprocessing(2, (0, 0, 0), (1 / 255,) * 3))


def layers(name):
    rows = tuple(Layer(f"{name}.{i}", "Conv", name, 0.99, 20.0 + i % 7) for i in range(30))
    return LayerReport(name, name, rows=rows, **{
        f.name: 3 if f.type == "int" else name
        for f in dataclasses.fields(LayerReport)
        if f.name not in ("reference", "candidate", "rows") and f.default is dataclasses.MISSING
    })  # fmt: skip


def costs(name):
    rows = tuple(complexity.Row(f"{name}.{i}.conv", "Conv2d", 100 + i, 10**6) for i in range(5))
    return complexity.Complexity(name, (1, 3, 8, 8), 510, 5 * 10**6, rows, None)


def channel_scan(name):
    readings = [
        scan.Reading(f"{name}.{i}.conv", r, 20.0, 0.9, 0.8 - r / 2)
        for i in range(5)
        for r in (0.25, 0.5)
    ]
    return prune.Sensitivity(name, name, 100, 0.9, (0.25, 0.5), tuple(readings))


def channel_search(name):
    whole = budget.Point(100, 100, 99.0, 1.0, 0.9, None, {})
    points = [dataclasses.replace(whole, macs=m, top1=m / 120) for m in (80, 60, 40)]
    steps = [
        budget.Step({f"{name}.{i}.conv": m for i in range(5)}, m, m, 20.0) for m in (100, 60, 40)
    ]
    plan = types.SimpleNamespace(network=name)
    return prune.Search(
        prune.Budget(macs=0.6), 100, whole, tuple(points), 1, plan, channel_scan(name),
        steps=tuple(steps),
    )  # fmt: skip


def every(name, folder):
    """Each figure that shows a name, with this one."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (32, 32, 3), np.uint8)
    images = data.ImageSet(np.stack([image] * 3), np.zeros(3, int), [name] * 6, name)
    logits = {name: np.arange(6.0)[None], f"{name} 2": np.arange(6.0)[None, ::-1]}
    classes = tuple(f"{name} {i}" for i in range(6))
    values = rng.normal(size=500)
    measured = ladder(name, folder)
    ranges = Ranges(tuple(f"/{name}/{i}" for i in range(9)), -rng.random((40, 9)),
                    1 + rng.random((40, 9)))  # fmt: skip
    network = onnx_file(folder / "network.onnx", "Relu", "HardSwish", "Neg")
    check = dataclasses.replace(targets.check(network, "snpe-2.7"), file=f"{name}.onnx")
    answers = Answers(images, classes)
    rows = {stage: np.repeat(row, 3, axis=0) for stage, row in logits.items()}
    return {
        "accuracy_by_size": figures.accuracy_by_size(measured),
        "answers_apart": figures.answers_apart(images, {name: [1, 2, 3]}),
        "block_widths": figures.block_widths(channel_search(name)),
        "channel_costs": figures.channel_costs(channel_scan(name)),
        "clipping_histogram": figures.clipping_histogram(values, -1, 2, 8, name),
        "cuts": figures.cuts(measured, 16),
        "error_by_image": figures.error_by_image([0.9, 0.99], 0.95, title=name),
        "filter_reach": figures.filter_reach({name: rng.normal(size=(8, 9)), "b": np.ones((3, 9))}),
        "gate_inputs": figures.gate_inputs({name: values, f"{name}.2": 9 * values}),
        "images": figures.images(images, np.eye(6)[:3]),
        "ladder_chart": figures.ladder_chart(measured),
        "latency_by_requests": figures.latency_by_requests(throughput_of(name, f"{name} 2")),
        "layer_sqnr": figures.layer_sqnr(layers(name)),
        "operator_counts": figures.operator_counts(network, network, titles=(name, f"{name} 2")),
        "pruning_front": figures.pruning_front(channel_search(name)),
        "ranges": figures.ranges(ranges),
        "stage_costs": figures.stage_costs(costs(name), costs(name)),
        "top5": figures.top5(image, np.arange(6.0), classes, name, name),
        "training_losses": figures.training_losses({name: [2.0, 1.0], f"{name} 2": [3.0, 2.0]}),
        "u_curve": figures.u_curve([1, 2, 4], [6, 1, 0.1], [0.1, 1, 8], {"mse": 2.1}, name),
        "verdict_bars": figures.verdict_bars([check, check]),
        "two_answers": stage_explorer.two_answers(image, logits, classes, name),
        "disagreements": ladder_picker.disagreements(answers, rows, [0, 1, 2]),
    }


def faults(picture):
    """What is beyond the picture, and what lies on top of something else."""
    picture.png()
    texts, renderer = drawn(picture)
    width, height = renderer.get_canvas_width_height()
    for text, box in texts:
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1:
            yield f"beyond the picture: {text.get_text()!r}"
    for (a, one), (b, two) in itertools.combinations(texts, 2):
        if 90 in (a.get_rotation(), b.get_rotation()) and a.get_rotation() != b.get_rotation():
            continue  # boxes of turned words are generous
        across = min(one.x1, two.x1) - max(one.x0, two.x0)
        if across > 1.5 and min(one.y1, two.y1) - max(one.y0, two.y0) > 3:
            yield f"on top of each other: {a.get_text()!r}, {b.get_text()!r}"


def test_a_figure_holds_any_name(tmp_path):
    found = {figure: list(faults(picture)) for figure, picture in every(NAME, tmp_path).items()}
    assert not {figure: said for figure, said in found.items() if said}
    assert set(figures.__all__) <= set(found) | set(NAMELESS)
