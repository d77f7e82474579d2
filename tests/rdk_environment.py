"""An environment with the stand-in for D-Robotics' tools, and YAML that asks something of them."""

import os
import sysconfig
import venv
from pathlib import Path

STAND_IN = Path(__file__).parent / "rdk_stand_in"


def made(folder):
    """Return the interpreter of an environment: the stand-in, and the lab's NumPy and ONNX."""
    venv.create(folder, with_pip=False, symlinks=os.name == "posix")
    site = [*folder.glob("lib/python*/site-packages"), *folder.glob("Lib/site-packages")][0]
    shared = sysconfig.get_paths()["purelib"]
    (site / "stand_in.pth").write_text(f"{STAND_IN}\n{shared}\n", encoding="utf-8")
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def yaml_of(model="", inputs="", calibration="", compiler="compile_mode: latency"):
    """An hb_mapper YAML with these settings beside the ones that it must have."""
    return (
        f"model_parameters: {{march: bayes-e, output_model_file_prefix: m, {model}}}\n"
        "input_parameters: {input_type_train: rgb, input_layout_train: NCHW, input_type_rt: nv12,\n"
        "  norm_type: data_mean_and_scale, mean_value: 123.675 116.28 103.53,\n"
        f"  scale_value: 0.01712475 0.017507 0.01742919, {inputs}}}\n"
        f"calibration_parameters: {{calibration_type: max, {calibration}}}\n"
        f"compiler_parameters: {{optimize_level: O2, {compiler}}}\n"
    )
