"""What this machine can do, probed and not promised: `examine`."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__, fetch, paths, typesetting
from ..errors import MissingToolError, UsageError
from ..onnxfile.session import Session
from ..rdk import vendor_tools
from ..runtime import litert, qnn
from ..tools import environment, lock

_CURE = "Run `make setup`." if paths.CHECKOUT else f"Install {paths.PROJECT} again."


@dataclass(frozen=True)
class Finding:
    """One capability: present or absent, what was found, and the cure when it is absent.

    `needed` says whether the lab cannot do without it.
    """

    name: str
    present: bool
    found: str
    cure: str = ""
    needed: bool = False


@dataclass(frozen=True, repr=False)
class Diagnosis(typesetting.Shown):
    """All findings."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether everything that the lab needs is present."""
        return all(finding.present or not finding.needed for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain values, for ``--json``."""
        return {"ok": self.ok, "findings": [asdict(finding) for finding in self.findings]}

    def _rows(self) -> list[tuple[str, str, str]]:
        words = {True: "present", False: "absent"}
        return [
            (f.name, words[f.present], f.found if f.present else f"{f.found}. {f.cure}".strip())
            for f in self.findings
        ]

    def __str__(self) -> str:
        rows = self._rows()
        width = max(len(name) for name, _, _ in rows)
        lines = [f"{name:<{width}}  {state:<8} {text}" for name, state, text in rows]
        return "\n".join([*lines, self._verdict()])

    def _verdict(self) -> str:
        return "Everything the lab needs is here." if self.ok else "Something needed is missing."

    def _repr_html_(self) -> str:
        rows = typesetting.table((), [*self._rows()], named=True)
        return rows + typesetting.paragraph(self._verdict())


def as_installed(package: str, file: str) -> bool:
    """Whether a file of an installed package is as its installer wrote it.

    An installer records the SHA-256 of each file (in ``RECORD``, PEP 376 and PEP 627); nobody
    looks at it unless asked.

    Parameters
    ----------
    package
        As pip names it: ``"torch"``.
    file
        Within the packages' folder: ``"torch/nn/modules/__init__.py"``.

    Raises
    ------
    UsageError
        The package is not installed, has no such file, or came without fingerprints.
    """
    from importlib import metadata

    try:
        files = metadata.files(package) or ()
    except metadata.PackageNotFoundError:
        raise UsageError(f"{package} is not installed in this environment.") from None
    found = next((f for f in files if f.as_posix() == file), None)
    if found is None or found.hash is None:
        what = "no fingerprint of" if found else "no file"
        raise UsageError(f"{package} was installed with {what} {file}.")
    digest = hashlib.new(found.hash.mode, Path(found.locate()).read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=") == found.hash.value


def examine() -> Diagnosis:
    """Probe this machine; nothing is downloaded, and nothing leaves it.

    Returns
    -------
    Diagnosis
        The package, Python, torch with torchvision, ONNX Runtime (each is run, not only imported),
        Qualcomm's writer and simulator, LiteRT's runtime (a worker process each), tools on PATH
        and in separate environments, the user's own of D-Robotics, weights, and folders.
    """
    probes = [_labutils, _python, _torch, _onnx_runtime, _qnn, _litert, _weights, _imagenet]
    probes += [_cache, _artifacts, _netron, _other_tools, _rdk_tools]
    tools = [
        ("snpe-onnx-to-dlc", "the real SNPE converter; without it a replica of its table checks"),
        ("adb", "a phone over USB; without it the HTP is simulated"),
    ]
    findings = [_probed(probe) for probe in probes]
    findings += [_tool(name, use) for name, use in tools]
    sdk = os.environ.get("QNN_SDK_ROOT")
    cure = "Only for running on a phone; set QNN_SDK_ROOT to Qualcomm's SDK."
    findings.append(Finding("QNN SDK", bool(sdk), sdk or "QNN_SDK_ROOT is not set", cure))
    return Diagnosis(tuple(findings))


def _probed(probe: Callable[[], Finding]) -> Finding:
    try:
        return probe()
    except Exception as error:
        name = probe.__name__.strip("_").replace("_", " ")
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Finding(name, False, text, _CURE, needed=True)


def _labutils() -> Finding:
    kind = "from the checkout" if paths.CHECKOUT else "installed in"
    place = paths.ROOT if paths.CHECKOUT else paths.PACKAGE.parent
    return Finding("labutils", True, f"labutils {__version__}, {kind} {place}")


def _python() -> Finding:
    version = sys.version_info[:2]
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    found += f", {os.cpu_count()} cores"
    return Finding(
        "Python", (3, 11) <= version <= (3, 13), found, "Use Python 3.11, 3.12 or 3.13.", True
    )


def _torch() -> Finding:
    import torch

    from .. import _torchvision

    torchvision = _torchvision.load()
    with torch.inference_mode():
        logits = torchvision.models.mobilenet_v3_small(num_classes=2).eval()(
            torch.zeros(1, 3, 32, 32)
        )
    found = f"torch {torch.__version__} with torchvision {torchvision.__version__}"
    if torch.__version__.partition("+")[2] != torchvision.__version__.partition("+")[2]:
        found += " (works; torchvision's own compiled operators are not loaded, and none is needed)"
    return Finding("PyTorch", tuple(logits.shape) == (1, 2), found, _CURE, True)


def _onnx_runtime() -> Finding:
    import onnx
    import onnxruntime

    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [value("x", 1, [1])], [value("y", 1, [1])]
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "probe", *ends), opset_imports=opset, ir_version=8
    )
    session = Session(model)
    found = f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}"
    return Finding("ONNX Runtime", bool(session.inputs), found, _CURE, True)


def _qnn() -> Finding:
    availability = qnn.probe()
    if not availability.ok:
        cure = "Everything but DLCs and the HTP simulator works without it."
        return Finding("Qualcomm QNN", False, availability.reason.rstrip("."), cure)
    versions = ", ".join(f"{name} {version}" for name, version in availability.versions.items())
    return Finding("Qualcomm QNN", True, f"{versions}: DLC writer and HTP simulator answer")


def _litert() -> Finding:
    found = litert.probe()
    if not found.ok:
        cure = "Everything but running a .tflite works without it."
        return Finding("LiteRT", False, found.reason.rstrip("."), cure)
    converting = environment.survey("litert").state == "installed"
    more = (
        "the converter is installed"
        if converting
        else "to convert, `labutils tools install litert`"
    )
    return Finding("LiteRT", True, f"ai-edge-litert {found.version} runs .tflite files; {more}")


def _weights() -> Finding:
    found = sorted(path.name for path in paths.CHECKPOINTS.glob("*.safetensors"))
    return Finding("Things-16 weights", bool(found), ", ".join(found) or "none", _CURE, True)


def _imagenet() -> Finding:
    name = "mobilenet_v3_large-8738ca79.pth"
    cached = fetch.cached(name)
    cure = "Not needed; `labutils run mobilenet_v3_large --weights imagenet` downloads them."
    return Finding("ImageNet weights", cached is not None, str(cached or "not in the cache"), cure)


def _cache() -> Finding:
    folder = paths.cache()
    free = shutil.disk_usage(folder).free / 1e9
    writable = os.access(folder, os.W_OK)
    found = f"{folder}, {free:.0f} GB free"
    return Finding("Cache", writable, found, "Set LABUTILS_CACHE to a folder of yours.", True)


def _artifacts() -> Finding:
    place = paths.generated_place().absolute()
    nearest = next(p for p in (place, *place.parents) if p.exists())
    cure = "Set LABUTILS_GENERATED to a folder of yours."
    return Finding("Artifacts", os.access(nearest, os.W_OK), f"go to {place}", cure)


def _netron() -> Finding:
    import importlib.metadata

    version = importlib.metadata.version("netron")
    return Finding("Netron", True, f"netron {version}", _CURE)


def _other_tools() -> Finding:
    states = [environment.survey(name) for name in lock.names()]
    there = [tool for tool in states if tool.state != "absent"]
    words = [
        f"{tool.lock.name} {'' if tool.state == 'installed' else tool.state + ' '}"
        f"({tool.bytes / 1e6:,.0f} MB)"
        for tool in there
    ]
    cure = "Optional: `labutils tools list` says what each is for."
    working = any(tool.state == "installed" for tool in there)
    return Finding("Other tools", working, ", ".join(words) or "none is installed", cure)


def _rdk_tools() -> Finding:
    name = "RDK X5 tools"
    if vendor_tools.found() is None:
        cure = f"Optional, and yours to get: {vendor_tools.VARIABLE} names them; else an emulation."
        return Finding(name, False, "D-Robotics' tools are not named", cure)
    try:
        with contextlib.closing(vendor_tools.connect()) as tool:
            versions = vendor_tools.versions(tool)
    except MissingToolError as error:
        return Finding(name, False, str(error).rstrip("."), "Optional.")
    listed = ", ".join(f"{package} {version}" for package, version in versions.items())
    return Finding(name, True, f"{listed} of {vendor_tools.found()} (D-Robotics' own, yours)")


def _tool(name: str, use: str) -> Finding:
    path = shutil.which(name)
    return Finding(name, path is not None, path or "not on PATH", f"Optional: {use}.")
