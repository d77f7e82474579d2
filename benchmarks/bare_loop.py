"""A bare loop of ``InferenceSession.run``: what `labutils perf` is held against (performance.py).

    python benchmarks/bare_loop.py FILE.onnx RUNS

Prints the median of the runs in milliseconds: one thread, noise of the same seed as the command's.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import onnxruntime


def main(file: str, runs: int) -> float:
    """Return the median of some runs of a file with one float input, in milliseconds."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    noise = np.random.default_rng(0).normal(size=entry.shape).astype(np.float32)
    for _ in range(5):
        session.run(None, {entry.name: noise})
    taken = []
    for _ in range(runs):
        before = time.perf_counter()
        session.run(None, {entry.name: noise})
        taken.append(time.perf_counter() - before)
    return 1e3 * float(np.median(taken))


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2])))
