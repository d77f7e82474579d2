"""Rendering speed, import time and export time, as one table (host time; compare within one run).

Usage: python benchmarks/speed.py
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from labutils import export, surgery
from labutils.images import things
from labutils.models import zoo


def rendering(size, n=200):
    """Images per second and core."""
    things.image(0, "train", size)  # builds the noise tiles once
    start = time.process_time()
    for index in range(n):
        things.image(index, "train", size)
    return n / (time.process_time() - start)


def import_seconds(module, repeats=5):
    """Median time of `import module` in a fresh interpreter, without the interpreter's own."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"

    def once():
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout)

    return statistics.median(once() for _ in range(repeats))


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main():
    table = Table("what", "measured", title="Speed on this machine")
    for size in (64, 96, 128, 224):
        table.add_row(f"render Things-16 at {size} px", f"{rendering(size):.0f} images/s per core")
    for module in ("labutils", "labutils.__main__", "labutils.surgery", "labutils.targets"):
        table.add_row(f"import {module}", f"{import_seconds(module):.3f} s")
    model = zoo.load("mobilenet_v3_large")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.onnx")
        for opset in (17, 18):
            took = seconds(lambda opset=opset: export.to_onnx(model, path, opset=opset))
            table.add_row(f"export and compare, opset {opset}", f"{took:.1f} s")
        export.to_onnx(model, path)
        took = seconds(lambda: surgery.replace_file(path, Path(folder, "r.onnx")))
        table.add_row("repair the ONNX file and compare", f"{took:.1f} s")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
