"""`snpe-onnx-to-dlc` of SNPE 2.7: the real tool when it is on PATH, else a replica of its log.

SNPE cannot be had by pip. The replica walks the graph in topological order, looks every operator
up in the documented table (``data/targets/snpe_2_7.yaml``) and writes what the tool would log,
with the wording that the table records. What depends on the tool's own machine (its start-up
warnings about the installed onnx package) is left out. It says that it is a replica.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from .. import paths
from ..errors import ConvertError, TranslationError, worded
from ..onnxfile.file import OnnxFile
from .onnx_nodes import Graph, Node, read
from .schema import Table
from .table import judge, load

TARGET = "snpe-2.7"
EXECUTABLE = "snpe-onnx-to-dlc"
_REFUSED = re.compile(
    r"ERROR - Node (?P<node>.+?): .*No translation registered for op type onnx_(?P<op>\w+)"
)
_NEXT = (
    f"See every such node with `labutils diagnose MODEL --target {TARGET}`, or let "
    f"`labutils convert MODEL --target {TARGET} --repair` replace them."
)


@dataclass(frozen=True)
class Transcript:
    """The log of a translation that succeeded.

    Attributes
    ----------
    lines
        The log, line by line. In a replica's log, the lines that begin with ``#`` are the
        replica's own; the others have the wording of the real tool.
    real
        True when Qualcomm's tool ran, False for the replica.
    tool
        What ran: the executable's path, or the replica's description.
    """

    lines: tuple[str, ...]
    real: bool
    tool: str

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def __repr__(self) -> str:
        return str(self)


def translate(
    file: OnnxFile | str | Path,
    dlc_path: str | Path,
    *,
    clock: Callable[[], datetime] = datetime.now,
    echo: Callable[[str], object] = print,
    write: Callable[[], object] | None = None,
) -> Transcript:
    """Translate an ONNX file to a DLC as SNPE 2.7 would, and echo the log line by line.

    Parameters
    ----------
    file
        The model.
    dlc_path
        Where the DLC is to lie. The real tool writes it, all of it or nothing; the replica has
        no writer, so it only names it.
    clock
        Time stamps of the replica's lines.
    echo
        Called with each line as it comes.
    write
        Replica only: called when the translation has succeeded, to write the DLC by other means.
        The line that reports the writing comes after it, and not at all without it.

    Raises
    ------
    TranslationError
        The first node, in topological order, that has no translation; its node, op_type and
        module say which.
    ConvertError
        The real tool failed in another way.
    ModelFileError
        The file is not an ONNX model.
    """
    graph = read(file)
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        echo(line)

    executable = shutil.which(EXECUTABLE)
    if executable:
        with paths.atomic(dlc_path) as temporary:
            _run(executable, graph, temporary, lines, log)
        return Transcript(tuple(lines), real=True, tool=executable)
    table = load(TARGET)
    _Replica(table, clock, log).run(graph, Path(dlc_path), write)
    return Transcript(tuple(lines), real=False, tool=f"replica of {EXECUTABLE}, {table.version}")


def log_of(file: OnnxFile | str | Path) -> tuple[str, ...]:
    """Return the lines that the tool writes about a file, refused or not; no DLC is kept.

    Raises
    ------
    ConvertError, ModelFileError
        As in `translate`.
    """
    lines: list[str] = []
    with paths.scratch() as folder, contextlib.suppress(TranslationError):  # the last lines say it
        translate(file, folder / "model.dlc", echo=lines.append)
    return tuple(lines)


@dataclass(frozen=True)
class _Replica:
    """The replica's means: the table, a clock, and where its lines go."""

    table: Table
    clock: Callable[[], datetime]
    log: Callable[[str], None]

    def run(self, graph: Graph, dlc_path: Path, write: Callable[[], object] | None) -> None:
        for line in self._heading(graph.file, dlc_path):
            self.log(line)
        unknown: set[str] = set()
        for node in graph.nodes:
            self._translate(node, unknown)
        self._say("init_ok")
        self._say("convert_ok")
        if write is not None:
            write()
            self._say("write_ok")

    def _heading(self, onnx_path: Path, dlc_path: Path) -> Iterator[str]:
        yield (
            f"# REPLICA of {EXECUTABLE} (SNPE 2.7), not Qualcomm's tool: it follows the documented "
            f"operator table {self.table.name}.yaml ({self.table.retrieved}) and writes no DLC."
        )
        yield "# Lines that begin with # are the replica's; the others have the tool's wording."
        yield f"# {EXECUTABLE} --input_network {onnx_path.name} --output_path {dlc_path.name}"

    def _translate(self, node: Node, unknown: set[str]) -> None:
        verdict = judge(node, self.table)
        op = self.table.ops.get(node.op_type) if node.standard else None
        if verdict.verdict == "unsupported":
            missing = op is not None and op.verdict == "unsupported"
            self._stop(node, "" if missing else verdict.evidence)
        if verdict.verdict == "unknown" and node.op_type not in unknown:
            unknown.add(node.op_type)
            self.log(f"# unknown: {node.op_type}, first at {node.name}: {verdict.evidence}")
        if op and op.op_versions and node.version not in op.op_versions:
            listed = ", ".join(map(str, op.op_versions))
            self._say("op_version", Op=node.op_type, list=listed, v=node.version)
        if node.op_type == "Gemm":
            self._say("gemm")

    def _stop(self, node: Node, limit: str) -> None:
        """Log and raise; `limit` is why an operator that has a translation is refused."""
        lower = node.op_type.lower()
        if limit:  # the tool's words for this case are not recorded, so none are made up
            self.log(f"# stopped at {node.name}: {node.op_type}: {limit}")
            problem = limit
        else:
            self._say("traceback", snpe="$SNPE_ROOT")
            self._say("keyerror", op_lower=lower)
            self._say("node_error", node_name=node.name, op_lower=lower)
            problem = f"No translation registered for op type onnx_{lower}"
        where = f" in module {node.module}" if node.module else ""
        raise TranslationError(
            f"{TARGET} (replica): {problem}: node {node.name} ({node.op_type}{where}). {_NEXT}",
            node=node.name,
            op_type=node.op_type,
            module=node.module,
        )

    def _say(self, message: str, **values: object) -> None:
        """Log a message of the table; the tool's own time format has milliseconds."""
        template = self.table.messages[message].template
        now = self.clock()
        stamp = f"{now:%Y-%m-%d %H:%M:%S},{now.microsecond // 1000:03d}"
        for line in template.format(ts=stamp, **values).split("\n"):
            self.log(line)


def _run(
    executable: str, graph: Graph, dlc_path: Path, lines: list[str], log: Callable[[str], None]
) -> None:
    """Run Qualcomm's tool, its output line by line into `log`; raise what it reports."""
    command = [executable, "--input_network", str(graph.file), "--output_path", str(dlc_path)]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise ConvertError(f"Cannot start {executable}: {worded(error)}.") from None
    with process:
        try:
            for line in process.stdout or ():
                log(line.rstrip("\r\n"))
        except BaseException:
            process.kill()  # leaving the block waits for it
            raise
    for line in lines:
        if found := _REFUSED.search(line):
            raise _refusal(found["node"], found["op"], graph)
    if process.returncode or not dlc_path.is_file():
        why = f"exit code {process.returncode}" if process.returncode else "it wrote no DLC"
        tail = "\n".join(lines[-5:])
        raise ConvertError(f"{executable} failed on {graph.file} ({why}). Its last lines:\n{tail}")


def _refusal(name: str, lower: str, graph: Graph) -> TranslationError:
    """Make the error for a node that the real tool names; it writes operators in lower case."""
    node = next((node for node in graph.nodes if node.proto.name == name), None)
    op_type, module = (node.op_type, node.module) if node else (lower, "")
    where = f" in module {module}" if module else ""
    return TranslationError(
        f"{EXECUTABLE}: No translation registered for op type onnx_{lower}: node {name} "
        f"({op_type}{where}). {_NEXT}",
        node=name,
        op_type=op_type,
        module=module,
    )
