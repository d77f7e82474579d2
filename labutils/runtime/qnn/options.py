"""Which chip, and which options: the tables that Qualcomm's execution provider does not check.

The provider silently ignores an option that it does not know, and a value that it cannot read.
So every option is checked here, and the chip (``soc_model``) is always set: without it a
generic v68 binary is made that gives other bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import UnknownNameError, UsageError

EXECUTORCH = (
    "Qualcomm's table in executorch, backends/qualcomm/serialization/qc_schema.py (BSD-3-Clause)"
)
OBSERVED = (
    "id and architecture observed with QNN 2.51 (it compiles for this id); the chip's name beside "
    "the id is common usage, not confirmed by a public table"
)


FLOAT_V68 = ("SA8295",)
"""The v68 chip that computes in floats: QNN compiles and simulates a float MobileNetV3 for it (with
a cosine of 1.0000), and Qualcomm publishes a float latency (data/published_latency.yaml)."""


@dataclass(frozen=True)
class Soc:
    """One Snapdragon chip: the id that QNN wants, and its Hexagon Tensor Processor (HTP)."""

    name: str
    soc_model: int
    htp_arch: int
    chip: str
    source: str = EXECUTORCH

    @property
    def fp16(self) -> bool:
        """Whether the HTP computes in float16: from v69 on, and `FLOAT_V68`.

        Seen with QNN 2.51, which compiles a float MobileNetV3 for those and refuses the other v68.
        """
        return self.htp_arch >= 69 or self.name in FLOAT_V68

    def __str__(self) -> str:
        return f"{self.name} ({self.chip}, HTP v{self.htp_arch})"

    def __repr__(self) -> str:
        return str(self)


SOCS: dict[str, Soc] = {
    entry.name: entry
    for entry in (
        Soc("SM8350", 30, 68, "Snapdragon 888"),
        Soc("QCS6490", 35, 68, "QCS6490 / SC7280", OBSERVED),
        Soc("SC8280XP", 37, 68, "Snapdragon 8cx Gen 3", OBSERVED),
        Soc("SA8295", 39, 68, "Snapdragon Cockpit SA8295P"),
        Soc("SM8450", 36, 69, "Snapdragon 8 Gen 1"),
        Soc("SM8475", 42, 69, "Snapdragon 8+ Gen 1"),
        Soc("SM8550", 43, 73, "Snapdragon 8 Gen 2"),
        Soc("SC8380XP", 60, 73, "Snapdragon X Elite", OBSERVED),
        Soc("QCS8550", 66, 73, "QCS8550", OBSERVED),
        Soc("QCS9100", 77, 73, "QCS9100"),
        Soc("SM8650", 57, 75, "Snapdragon 8 Gen 3"),
        Soc("SM8750", 69, 79, "Snapdragon 8 Elite"),
        Soc("SM8850", 87, 81, "Snapdragon 8 Elite Gen 5"),
    )
}


def soc(name: str | Soc) -> Soc:
    """Return the chip called `name`: a part number or a chip name, in any case.

    Raises
    ------
    UnknownNameError
        The table has no such chip; the message lists those it has.
    """
    if isinstance(name, Soc):
        return name
    wanted = _plain(name)
    for entry in SOCS.values():
        aliases = {_plain(entry.name), _plain(entry.chip)}
        aliases |= {_plain(part) for part in entry.chip.split("/")}
        if wanted in aliases | {alias.removeprefix("snapdragon") for alias in aliases}:
            return entry
    raise UnknownNameError("Snapdragon chip", name, SOCS)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())


_SWITCH, _COUNT, _PATH = r"[01]", r"\d+", r".+"
# Spelled as in the provider library's own option names; the value must match in full.
_ALLOWED: dict[str, str] = {
    "backend_type": "htp|ir",
    "soc_model": "|".join(str(entry.soc_model) for entry in SOCS.values()),
    "htp_arch": "|".join(sorted({str(entry.htp_arch) for entry in SOCS.values()})),
    "htp_graph_finalization_optimization_mode": r"[0123]",
    "htp_performance_mode": "default|burst|balanced|high_performance|power_saver|"
    "sustained_high_performance|low_balanced|low_power_saver|high_power_saver|"
    "extreme_power_saver",
    "enable_htp_fp16_precision": _SWITCH,
    "enable_htp_prepare_only": _SWITCH,
    "offload_graph_io_quantization": _SWITCH,
    "vtcm_mb": _COUNT,
    "profiling_level": "off|basic|detailed|optrace",
    "profiling_file_path": _PATH,
    "dump_qnn_ir_dlc": _SWITCH,
    "dump_qnn_ir_dlc_dir": _PATH,
    "dump_json_qnn_graph": _SWITCH,
    "json_qnn_graph_dir": _PATH,
}


def check(options: Mapping[str, object]) -> dict[str, str]:
    """Return provider options as strings, after checking every name and every value.

    Raises
    ------
    UnknownNameError
        An option that the provider would ignore.
    UsageError
        A value that the provider would ignore, a dump without an existing folder (the provider
        aborts the process then), or an HTP session without a chip.
    """
    checked = {name: str(value) for name, value in options.items()}
    for name, value in checked.items():
        if name not in _ALLOWED:
            raise UnknownNameError("QNN option", name, _ALLOWED)
        if not re.fullmatch(_ALLOWED[name], value):
            raise UsageError(f"QNN option {name}={value!r}: allowed values: {_ALLOWED[name]}.")
    backend = checked.get("backend_type")
    if backend not in ("htp", "ir"):
        raise UsageError("QNN needs backend_type, htp (simulator) or ir (DLC writer).")
    if backend == "htp" and "soc_model" not in checked:
        raise UsageError("An HTP session needs soc_model: use options.htp(soc).")
    for switch, folder in (
        ("dump_qnn_ir_dlc", "dump_qnn_ir_dlc_dir"),
        ("dump_json_qnn_graph", "json_qnn_graph_dir"),
    ):
        if checked.get(switch) == "1" and not Path(checked.get(folder, "")).is_absolute():
            raise UsageError(f"QNN option {switch}=1 needs {folder}, an absolute path.")
        if checked.get(switch) == "1" and not Path(checked[folder]).is_dir():
            raise UsageError(f"QNN option {folder}: there is no folder {checked[folder]}.")
    if backend == "ir" and checked.get("dump_qnn_ir_dlc") != "1":
        raise UsageError("Without dump_qnn_ir_dlc the DLC goes into the current folder.")
    return checked


def htp(chip: str | Soc = "SM8550", **extra: object) -> dict[str, str]:
    """Return the options of an HTP simulator session for `chip`."""
    chip = soc(chip)
    fixed = {"backend_type": "htp", "soc_model": chip.soc_model, "htp_arch": chip.htp_arch}
    clash = sorted(fixed.keys() & extra.keys())
    if clash:
        raise UsageError(f"{', '.join(clash)} follow from the chip; name another chip instead.")
    return check({**fixed, **extra})


_WRITER = "SM8550"  # any chip with floats; the DLC is of no chip


def dlc(folder: str | Path) -> dict[str, str]:
    """Return the options that make QNN write its DLC, and its JSON twin, into `folder`.

    The backend is the HTP, which decides which operators are written; the ``ir`` backend writes a
    generic ``Resize``, which no HTP takes when the DLC is loaded. Otherwise both write the same
    bytes (MobileNetV3 in fp32, fp16, int8 and a16w8), for every chip that takes the graph. So the
    chip here is a fixed one: a v68 chip would refuse floats, which a DLC for other chips may hold.
    """
    return htp(
        _WRITER,
        dump_qnn_ir_dlc=1,
        dump_qnn_ir_dlc_dir=folder,
        dump_json_qnn_graph=1,
        json_qnn_graph_dir=folder,
    )
