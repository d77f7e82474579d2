"""How long surgery takes on mobilenet_v3_large, level by level (host time; compare within one run).

Usage: python benchmarks/surgery_speed.py
"""

import copy
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from labutils import export, surgery
from labutils.models import zoo
from labutils.onnxfile import graph

REPEATS = 5


def timed(make, call):
    """Return the median wall and CPU seconds of a call on a fresh copy."""
    runs = []
    for _ in range(REPEATS + 1):  # the first fills caches
        target = make()
        wall, cpu = time.perf_counter(), time.process_time()
        call(target)
        runs.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [statistics.median(run[n] for run in runs[1:]) for n in (0, 1)]


def main():
    torch.set_num_threads(1)
    model = zoo.load("mobilenet_v3_large")
    x = torch.randn(1, 3, model.preprocessing.size, model.preprocessing.size)
    table = Table("what", "rules", "level", "wall", "CPU", title="Surgery on mobilenet_v3_large")
    cases = [
        ("modules replaced", "mobilenetv3", "module", None),
        ("modules replaced", "lite", "module", None),
        ("and outputs, MACs compared", "lite", "module", x),
        ("least invasive level chosen, compared", "lite", "auto", x),
        ("calls replaced, compared", "mobilenetv3", "function", x),
        ("all forwards traced, compared", "lite", "graph", x),
    ]
    for what, rules, level, inputs in cases:
        wall, cpu = timed(
            lambda: copy.deepcopy(model.module),
            lambda target, r=rules, n=level, i=inputs: surgery.replace_(target, r, n, i),
        )
        table.add_row(what, rules, level, f"{wall:.3f} s", f"{cpu:.3f} s")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.onnx")
        export.to_onnx(model, path)
        file = graph.read(path)
    for rules in ("mobilenetv3", "lite", "exact"):
        wall, cpu = timed(lambda: copy.deepcopy(file), lambda g, r=rules: surgery.preview(g, r))
        table.add_row("the ONNX graph rewritten", rules, "onnx", f"{wall:.3f} s", f"{cpu:.3f} s")
    wall, cpu = timed(lambda: copy.deepcopy(file), surgery.replace_)
    row = "and checked, MACs counted, compared in ORT"
    table.add_row(row, "mobilenetv3", "onnx", f"{wall:.3f} s", f"{cpu:.3f} s")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
