"""`labutils perf`: latency and frame rate of models under concurrent requests."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import UsageError, printable
from .options import MODEL_HELP, WEIGHTS_HELP, command, progress_bar, say, size_argument


def add(commands: Any) -> None:
    """Add the parser of this command."""
    text = (
        "Latency and frames per second of models on this machine, under concurrent requests; each "
        "session has one thread."
    )
    parser = command(commands, "perf", _perf, text)
    parser.add_argument("models", metavar="MODEL", nargs="+", help=MODEL_HELP)
    parser.add_argument("--weights", default="auto", help=f"of models by name: {WEIGHTS_HELP}")
    size_argument(parser, ", of models by name, and of open inputs")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N",
        help="numbers of concurrent requests (1 2 4 8)",
    )  # fmt: skip
    rounds = "rounds, of each of which the median counts; 6 or more give a 95 %% interval (9)"
    parser.add_argument("--rounds", type=int, default=9, help=rounds)
    parser.add_argument("--frames", type=int, default=20, help="runs of a request in a round (20)")
    named = "backend of models by name: ort runs an export of them, torch the module (ort)"
    parser.add_argument("--backend", choices=("ort", "torch"), default="ort", help=named)
    parser.add_argument("--opset", type=int, default=17, help="of such an export (17)")
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="also draw the figures")


def _perf(chosen: argparse.Namespace) -> int:
    from .. import paths
    from ..measure import throughput

    plan = throughput.Plan(tuple(dict.fromkeys(chosen.threads)), chosen.rounds, chosen.frames)
    if chosen.figure and chosen.figure.suffix.lower() != ".png":
        raise UsageError(f"{chosen.figure}: the figure is a .png file.")
    if chosen.figure:
        paths.refuse_unwritable(chosen.figure)
    with paths.scratch() as folder:
        models: dict[str, Any] = {}
        for name in chosen.models:
            if name in models:
                raise UsageError(f"{name} is given twice.")
            models[name] = _opener(chosen, name, folder / str(len(models)))
        made = throughput.measure(models, plan, progress_bar)
    if chosen.figure:
        from ..show.figures import concurrency

        with paths.atomic(chosen.figure) as temporary:
            temporary.write_bytes(concurrency.latency_by_requests(made).png())
        say(chosen, f"wrote {chosen.figure}")
    print(json.dumps(made.to_dict(), indent=2) if chosen.json else printable(str(made)))
    return 0


def _opener(chosen: argparse.Namespace, name: str, folder: Path) -> Any:
    """Return the runtime of a model, and what opens a session of it."""
    from ..images import data
    from ..measure import throughput
    from ..models import zoo
    from ..pipeline import steps

    size = None if chosen.size is None else data.sides(chosen.size)
    if name.lower().endswith((".onnx", ".dlc", ".tflite")):
        if not Path(name).is_file():
            raise UsageError(f"There is no file {name}.")
        _refuse_torch(chosen, name)
        return throughput.opener(name, size)
    model = zoo.load(name, chosen.weights, chosen.size)
    if model.module is None:
        _refuse_torch(chosen, name)
    side = data.sides(model.preprocessing.size) if model.preprocessing else size
    if chosen.backend == "torch":
        return throughput.opener(model.module, side)
    folder.mkdir()
    return throughput.opener(steps.as_onnx(model, folder / "model.onnx", chosen.opset), side)


def _refuse_torch(chosen: argparse.Namespace, name: str) -> None:
    if chosen.backend == "torch":
        raise UsageError(
            f"{name} is a file without a PyTorch module, which --backend torch runs: leave it out."
        )
