"""Processes forked from one that imported torch, and did nothing with it: each saves seconds."""

import atexit
import contextlib
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
from pathlib import Path

from labutils import paths

HEAVY = ["labutils.__main__", "labutils.pipeline.journey", "labutils._torchvision", "torch.export"]
HEAVY += ["torch.onnx", "onnx", "onnx_ir", "onnxscript", "onnxruntime.quantization", "pandas"]
HEAVY += ["torch._dynamo", "torch.distributed", "labutils.quantize.training.qat"]
HEAVY += ["tiny_network"]  # with timm, which learns of it
GIVEN_UP_S = 600  # a run that takes longer hangs; a busy machine may take minutes
ONE = threading.Lock()  # `multiprocessing` looks after all children, whoever asks for one


@contextlib.contextmanager
def _imports_of_tests():
    """Let a server of forks that starts now find `HEAVY`; it looks for them on its own path."""
    before = os.environ.get("PYTHONPATH")
    here = [str(Path(__file__).parent), str(paths.ROOT)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*here, *filter(None, [before])])
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        os.environ |= {} if before is None else {"PYTHONPATH": before}


def start(target, arguments, output, environment):
    """Call `target` in a process of its own, which says what it says to the file `output`."""
    output.write_bytes(b"")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    process = context.Process(target=_called, args=(target, arguments, str(output), environment))
    with ONE, _imports_of_tests():
        process.start()
    return process


def _called(target, arguments, output, environment):
    os.environ.update(environment)
    tempfile.tempdir = None  # another than when the process began
    with Path(output).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    try:
        target(*arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing's children leave without


def two(target, arguments, folder):
    """Run `target` as the two ranks of one training; return exit codes and what was said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    meeting = dict(os.environ) | meeting | {"OMP_NUM_THREADS": "1"}
    said = [folder / f"said.{rank}.txt" for rank in range(2)]
    ranks = [
        start(target, arguments, said[rank], meeting | {"RANK": str(rank)}) for rank in range(2)
    ]
    for rank in ranks:
        rank.join(GIVEN_UP_S)
    return [rank.exitcode for rank in ranks], [file.read_text("utf-8") for file in said]
