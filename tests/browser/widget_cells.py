"""Every widget of the lab with the names that strangers' networks have, as cells of a notebook."""

CHAIN = """
import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper, save

from labutils import compare, prune, runtime
from labutils.images import data, things
from labutils.models import zoo
from labutils.quantize import mixed
from labutils.show import widgets

LONG = "backbone.encoder.very_long_encoder_name.layers.17.SqueezeAndExcitationBlock.attention_gate"
r, nodes, weights = np.random.default_rng(0), [], []
for i in range(6):
    weight = r.normal(size=(8 if i < 5 else 16, 8 if i else 3, 1, 1)).astype(np.float32)
    weights.append(numpy_helper.from_array(weight / 3, f"w{i}"))
    place = "/" + LONG.replace(".", "/") + f"/conv{i}"
    nodes.append(helper.make_node("Conv", [f"t{i}", f"w{i}"], [f"c{i}"], name=f"{place}/Conv"))
    nodes.append(helper.make_node("HardSwish", [f"c{i}"], [f"t{i + 1}"], name=f"{place}/HardSwish"))
nodes.append(helper.make_node("GlobalAveragePool", ["t6"], ["p"], name="pool"))
nodes.append(helper.make_node("Flatten", ["p"], ["logits"], name="flat"))
ends = [helper.make_tensor_value_info(*e) for e in
        [("t0", TensorProto.FLOAT, (1, 3, 32, 32)), ("logits", TensorProto.FLOAT, (1, 16))]]
graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
FILE = "a_network_whose_file_name_is_longer_than_any_list_could_hold_final_2.onnx"
save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), FILE)

CLASSES = tuple(f"West Highland white terrier or Staffordshire bullterrier, {i}" for i in range(16))
images = data.ImageSet(r.integers(0, 255, (6, 32, 32, 3), np.uint8), np.arange(6), CLASSES, "noise")
preprocessing = data.Preprocessing(32)
network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.AdaptiveAvgPool2d(1),
                              torch.nn.Flatten()).eval()
PUBLISHED = "PyTorch, the network as its authors published it"
stages = [compare.Stage(PUBLISHED, runtime.connect(network)),
          compare.Stage(LONG, runtime.connect(FILE)), compare.Stage("HTP int8", None)]
model = zoo.Model(name=LONG, module=network, preprocessing=preprocessing, classes=CLASSES,
                  weights="random", note="of a test", trained=True)
"""  # fmt: skip

CELLS = {
    "ClippingSlider": "widgets.ClippingSlider({LONG: r.normal(size=500), 'conv0': np.ones(3)})",
    "ImageEditor": "widgets.ImageEditor(model)",
    "LadderPicker": "widgets.LadderPicker(stages, images, preprocessing)",
    "ParetoFront": (
        "widgets.ParetoFront(mixed.search(FILE, r.normal(size=(16, 3, 32, 32))"
        ".astype(np.float32), mixed.Budget(sqnr_db=20), 'int8_minmax'))"
    ),
    "ReplacementBoard": (
        "board = widgets.ReplacementBoard({'a file of a colleague': FILE})\nboard.repair()\nboard"
    ),
    "StageExplorer": "widgets.StageExplorer(stages, images, preprocessing)",
    "WidthSlider": (
        "wide = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.Conv2d(32, 16, 1), "
        "torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
        "widgets.WidthSlider(prune.search(wide, prune.Budget(macs=0.8), "
        "r.normal(size=(2, 3, 32, 32)).astype(np.float32)))"
    ),
}
"""Name in `labutils.show.widgets` -> the source that shows it."""
