"""What the network and its int8 file answer, image by image: the pairs behind the difference.

    python benchmarks/answers.py [--images 1600]

Reads the artifacts that `labutils journey` left in generated_models/ and writes
benchmarks/results/answers_N.csv: one line per Things-16 validation image with the class number that
is right, the one that each stage names, and PyTorch's lead (its best logit minus its second). Both
run on the CPU: the simulator would take an hour.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from labutils import data, metrics, paths, runtime, zoo

MODEL = "mobilenet_v3_large"


def stages(folder: Path) -> dict[str, runtime.Runner]:
    """Return the runners, by the names that they have in the ladder."""
    model = zoo.load(MODEL)
    return {
        "PyTorch": runtime.connect(model.module, name="PyTorch"),
        "int8 CPU": runtime.connect(folder / f"05_{MODEL}_int8.onnx"),
    }


def main() -> None:
    """Run every stage on every image and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1600)
    n = parser.parse_args().images
    model = zoo.load(MODEL)
    images = data.load("val", n, model.preprocessing.size)
    columns = {"truth": np.asarray(images.labels)}
    for name, runner in stages(paths.generated()).items():
        parts = [runner.run(x) for x, _ in images.batches(32, model.preprocessing)]
        logits = np.concatenate(parts)
        columns[name] = metrics.topk(logits)[:, 0]
        if name == "PyTorch":
            ordered = np.sort(logits, axis=1)
            columns["lead"] = (ordered[:, -1] - ordered[:, -2]).round(3)
        print(f"{name}: {(columns[name] == images.labels).sum()} of {n} right", flush=True)
    lines = [f"# recorded {time.strftime('%Y-%m-%d', time.gmtime())} with: {' '.join(_command(n))}"]
    lines.append(",".join(["image", *columns]))
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        lines.append(",".join(map(str, (i, *row))))
    folder = paths.ROOT / "benchmarks" / "results"
    paths.write_text(folder / f"answers_{n}.csv", "\n".join(lines) + "\n")


def _command(n: int) -> list[str]:
    return ["python", "benchmarks/answers.py", "--images", str(n)]


if __name__ == "__main__":
    main()
