"""Separate environments for the quantizers of others, kept in the cache.

Each holds one tool on top of the lab's own packages (torch, onnx, onnxruntime), which it finds by
a ``.pth`` file: what the tool does not bring itself is the same for all. A peer's program lies
beside this module and is called with the interpreter of its environment: ``quantize FOLDER`` reads
float.onnx, calibration.npy and settings.json there and writes made.onnx (or another ending) and
seconds.txt; those with their own runtime take ``run`` and ``time`` as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import content_cache

from labutils import paths
from labutils.errors import LabError

NNCF = ("nncf==3.4.0", "openvino==2026.4.1")


@dataclass(frozen=True)
class Environment:
    """The packages of one tool, and the program that calls it.

    Attributes
    ----------
    name
        What rows call it.
    program
        File name of the program, beside this module.
    packages
        Requirements with exact versions.
    runtime, suffix
        What runs the files that it writes (``ORT``: ONNX Runtime), and their ending.
    """

    name: str
    program: str
    packages: tuple[str, ...]
    runtime: str = "ORT"
    suffix: str = ".onnx"

    @property
    def versions(self) -> dict[str, str]:
        """Package -> version."""
        return dict(package.split("==") for package in self.packages)

    @property
    def script(self) -> Path:
        """The program."""
        return Path(__file__).with_name(self.program)

    @property
    def python(self) -> Path:
        """The interpreter; it exists after `install`."""
        key = content_cache.key(packages=self.packages, python=sys.version_info[:2])
        tool = self.name.partition("_")[0]
        return content_cache.folder(f"{tool}_{key}") / "bin" / "python"

    def install(self) -> None:
        """Make the environment, once: the lab's packages, and the tool's on top.

        Raises
        ------
        LabError
            It cannot be made, as without a network.
        """
        folder, lab = self.python.parent.parent, sysconfig.get_paths()["purelib"] + "\n"
        if (folder / "complete").exists():
            _site(folder).write_text(lab, encoding="utf-8")  # another environment's, possibly
            return
        print(f"Installing {', '.join(self.packages)} into {folder} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        _site(folder).write_text(lab, encoding="utf-8")
        torches = paths.versions("torch", "torchvision")
        kept = [f"{name}=={v}".split("+")[0] for name, v in torches.items() if name != "python"]
        pip = [str(self.python), "-m", "pip", "install", "-q", *self.packages, *kept]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"pip could not install {self}: {last_line(done.stderr)}")
        (folder / "complete").touch()

    def run(self, *arguments: str | Path) -> None:
        """Run the program in the environment, which is made if it does not exist.

        Raises
        ------
        LabError
            The environment cannot be made, or the program failed; with its last line.
        """
        self.install()
        # programs that its packages bring (ninja) are found beside the interpreter
        path = os.pathsep.join([str(self.python.parent), os.environ.get("PATH", "")])
        own = {**os.environ, "PYTHONPATH": str(paths.ROOT), "PATH": path}
        done = subprocess.run(
            [str(self.python), str(self.script), *map(str, arguments)],
            env=own, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise LabError(f"{self}: {last_line(done.stderr)}")

    def __str__(self) -> str:
        return " ".join(self.packages)


def last_line(text: str) -> str:
    """Return the last line of a program's messages that is not empty."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no reason given")


def _site(folder: Path) -> Path:
    """Return the file by which an environment finds the lab's packages."""
    return next(folder.glob("lib/python*/site-packages")) / "lab.pth"


ENVIRONMENTS = {
    made.name: made
    for made in (
        Environment(
            "litert", "litert_quantize.py",
            ("litert-torch==0.10.0", "ai-edge-litert==2.3.0", "ai-edge-quantizer==0.10.0"),
            "LiteRT", ".tflite",
        ),
        Environment(
            "executorch", "executorch_quantize.py", ("executorch==1.5.1",), "ExecuTorch", ".pte"
        ),
        Environment("nncf", "nncf_quantize.py", NNCF),
        Environment("nncf_train", "nncf_train.py", NNCF),
        Environment("aimet", "aimet_quantize.py", ("aimet-onnx==2.42.0",)),
        Environment("aimet_train", "aimet_train.py", ("aimet-torch==2.42.0",)),
    )
}  # fmt: skip
"""Name -> environment. Two programs with the same packages share a folder."""
