"""Damage at random, from a seed: models, DLCs, weights, tables and lists that were fine once.

`build(folder, count)` writes `count` damaged files of each kind and returns name -> command line,
for the program in bad_files.py. The same seed gives the same damage.
"""

import hashlib
import io
import random
import zipfile

import numpy as np
from bad_files import MEAN, model, node, value

from labutils import provenance
from labutils.errors import LabError
from labutils.models import zoo
from labutils.onnxfile import graph

EXTREMES = [b"", b"\0", b"\xff" * 10, b"\x80" * 9 + b"\x01", b"\x7f", b"\n", b"-1", b"nan", b"../"]
SPECIAL = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 255, 2**31 - 1, 2**31, 2**40, 2**63 - 1]


def good_model():
    """A small network with what real files have: activations, sizes, scopes, our metadata."""
    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [
        node("Conv", ["input", "w"], ["a"], "/features/features.0/Conv", pads=[1, 1, 1, 1]),
        node("HardSigmoid", ["a"], ["b"], "/features/features.1/HardSigmoid", alpha=1 / 6),
        node("Mul", ["a", "b"], ["c"], "/features/features.1/Mul"),
        node("HardSwish", ["c"], ["d"], "/features/features.2/HardSwish"),
        node("GlobalAveragePool", ["d"], ["e"], "/avgpool/GlobalAveragePool"),
        node("Reshape", ["e", "shape"], ["f"], "/Reshape"),
        node("Clip", ["f", "low", "high"], ["logits"], "/classifier/Clip"),
    ]
    for number, made in enumerate(nodes):
        made.metadata_props.add(key=graph.SCOPES, value=f"['', 'features.{number}', 'x']")
    constants = {"low": np.float32(-1), "high": np.float32(9), "shape": np.array([1, 4])}
    made = model(
        nodes, outputs=[value("logits", (1, 4))], weights=[("w", weights), *constants.items()]
    )
    preprocessing = '{"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "source": "mine"}'
    made.metadata_props.add(key=provenance.PREPROCESSING_KEY, value=preprocessing)
    made.metadata_props.add(key=provenance.MODEL_KEY, value='{"classes": ["a", "b", "c", "d"]}')
    return made


def damaged(data, chance):
    """Return `data` with one to four accidents."""
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4])):
        place = chance.randrange(len(data) + 1)
        length = chance.choice([1, 1, 2, 4, 16, 64])
        piece = bytes(data[place : place + length])
        kind = chance.randrange(7)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[place : place + length] = chance.randbytes(length)
        elif kind == 2:
            data[place : place + length] = b""
        elif kind == 3:
            other = chance.randrange(len(data) + 1)
            data[other:other] = piece
        elif kind == 4:
            data[place : place + length] = chance.choice(EXTREMES)
        elif kind == 5 and place:
            data[place:] = b""
        elif place < len(data):
            data[place] = chance.randrange(256)
    return bytes(data)


def misled(made, chance):
    """Change one to three fields of a model, so that the file still parses."""
    for _ in range(chance.choice([1, 1, 2, 3])):
        message, field = chance.choice(list(fields(made)))
        old = getattr(message, field.name)
        if field.is_repeated:
            kind = chance.randrange(3)
            if kind == 0:
                del old[chance.randrange(len(old)) :]
            elif kind == 1 and field.message_type:
                old.add().CopyFrom(old[chance.randrange(len(old))])
            elif field.message_type:
                del old[chance.randrange(len(old))]
            elif field.cpp_type in NUMBERS:
                old[chance.randrange(len(old))] = chance.choice(NUMBERS[field.cpp_type])
        elif field.message_type or chance.random() < 0.2:
            message.ClearField(field.name)
        elif field.cpp_type in NUMBERS:
            setattr(message, field.name, chance.choice(NUMBERS[field.cpp_type]))
        elif field.cpp_type == field.CPPTYPE_ENUM:
            values = [v.number for v in field.enum_type.values]
            setattr(message, field.name, chance.choice(values))
        elif isinstance(old, str):
            words = ["", "/", "input", "logits", "é\n<b>", "{}", "[", "9" * 400, old[1:], old * 2]
            setattr(message, field.name, chance.choice(words))
        else:
            setattr(message, field.name, damaged(old, chance))


NUMBERS = {  # by protobuf's C++ type: int32, int64, uint32, uint64, double, float
    1: SPECIAL[1:-3],
    2: SPECIAL,
    3: [0, 1, 2**32 - 1],
    4: [0, 1, 2**64 - 1],
    5: [0.0, -1.0, float("nan"), float("inf"), 1e300],
    6: [0.0, -1.0, float("nan"), float("inf"), 1e38],
}


def fields(message):
    """Every field that is set, at any depth, with the message that has it."""
    for field, content in message.ListFields():
        yield message, field
        if field.message_type:
            for part in content if field.is_repeated else [content]:
                yield from fields(part)


def build(folder, count, seed=0):
    """Write the damaged files; return name -> command line."""
    chance = random.Random(seed)
    good = good_model()
    data = good.SerializeToString()
    calls = {}
    for number in range(count):
        wild, misleading = folder / f"bytes {number}.onnx", folder / f"fields {number}.onnx"
        wild.write_bytes(damaged(data, chance))
        changed = type(good)()
        changed.CopyFrom(good)
        misled(changed, chance)
        misleading.write_bytes(changed.SerializeToString())
        for path in (wild, misleading):
            calls[f"{path.stem}: diagnose"] = ["diagnose", str(path)]
            calls[f"{path.stem}: run"] = ["run", str(path), "--images", "1", *MEAN]
    return calls


def readers():
    """Suffix -> (content that is fine, a function that reads such a file)."""
    from labutils import dlc, paths
    from labutils.commands import options
    from labutils.images import data
    from labutils.models import checkpoint
    from labutils.pipeline import batch
    from labutils.targets import table

    listed = b"# families\ntimm:resnet18 --weights random\n\"my model.onnx\" --mean 0 0 0 'x'\n"
    return {
        ".yaml": ((paths.OPERATOR_TABLES / "litert_tflite.yaml").read_bytes(), table._load),
        ".txt": (listed, batch._read_list),
        ".safetensors": (_tensors(), checkpoint.state_dict),
        ".pth": (_pickled(), checkpoint.state_dict),
        ".pt2": (_program(), checkpoint.exported_program),
        ".dlc": (None, dlc.info),  # the caller makes one: that takes QNN
        ".json": (MANIFEST, lambda path: zoo.load(_dlc_beside(path))),
        ".png": (_picture(), lambda path: data.read_images([path], 32)),
        ".npz": (_arrays(), options.stored_inputs),
    }


def _archive():
    """Return a zip archive that passes for a DLC; the same bytes each time."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(zipfile.ZipInfo("model"), b"")
    return made.getvalue()


MANIFEST = (
    b'{"preprocessing": {"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "source": "mine"},'
    b' "classes": ["a", "b"], "claim": "written by QNN", "sha256": "%s"}'
) % hashlib.sha256(_archive()).hexdigest().encode()


def _dlc_beside(manifest):
    """Write a zip archive beside a manifest, named as it says; return its path."""
    path = manifest.with_name(manifest.name.removesuffix(".manifest.json"))
    path.write_bytes(_archive())
    return path


def outcome(read, path):
    """ "read", "refused" with a typed error, or what else `read` raises."""
    try:
        read(path)
    except LabError:
        return "refused"
    except Exception as error:
        return f"{path.name}: {type(error).__name__}: {error}"[:300]
    return "read"


def _saved(save):
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


def _tensors():
    from safetensors.numpy import save

    return save({"classifier.weight": np.ones((4, 3), np.float32), "b": np.zeros(4, np.int64)})


def _pickled():
    import torch

    return _saved(lambda stream: torch.save({"state_dict": {"w": torch.ones(4, 3)}}, stream))


def _program():
    import torch

    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Hardswish())
    program = torch.export.export(layers.eval(), (torch.zeros(1, 3, 8, 8),))
    return _saved(lambda stream: torch.export.save(program, stream))


def _picture():
    from PIL import Image

    return _saved(lambda stream: Image.new("RGB", (24, 16), "teal").save(stream, "PNG"))


def _arrays():
    return _saved(lambda stream: np.savez(stream, inputs=np.zeros((1, 3, 8, 8), np.float32)))
