"""A small part of a model's graph as a static picture: offline, in print, on any background.

The picture is one self-contained SVG, without scripts, fonts or links. Nothing is measured, so
equal graphs give equal bytes. What a node's colour says, its border, its symbol and a word say too.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError, counted
from ...onnxfile.graph import module_path
from ...targets import CheckReport
from . import graph_layout, tflite_view
from .graph_layout import Extent, Layout
from .onnx_view import View, label
from .svg import STYLES, Svg, breadth, clean, fitted, symbol, text, wrapped

if TYPE_CHECKING:
    import onnx

    from ...onnxfile.file import OnnxFile

MAX_NODES = 40
_WIDEST = 265  # pixels of a line in a box
_TITLE = 480  # pixels of a line above a graph, at least
_LINE, _HEAD, _MARGIN, _STEM = 16, 24, 14, 16
_SOFT, _LINK = "#4a4a4a", "#5a5a5a"

_FAMILIES = {
    "#dce9f5": ("Conv", "ConvTranspose", "Gemm", "MatMul", "CONV_2D", "DEPTHWISE_CONV_2D",
                "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL"),
    "#f0dfec": ("HardSwish", "HardSigmoid", "Relu", "Clip", "Sigmoid", "Softmax", "PRelu", "Gelu",
                "HARD_SWISH", "RELU", "RELU6", "RELU_0_TO_1", "LOGISTIC", "SOFTMAX", "PRELU",
                "GELU"),
    "#fbe7c0": ("QuantizeLinear", "DequantizeLinear", "Cast", "QUANTIZE", "DEQUANTIZE", "CAST"),
}  # fmt: skip
_TINT = {op: tint for tint, ops in _FAMILIES.items() for op in ops}
_CHANGES = {"new": "+ new", "gone": "− replaced", "only": "≠ only here", "moves": "⇄ layout only"}


@dataclass
class _Box:
    title: str
    lines: list[str]
    name: str
    tint: str = "#ececec"
    verdict: str = ""
    change: str = ""
    below: str = ""  # the shape of what leaves it
    terminal: bool = False
    width: int = field(init=False)
    height: int = field(init=False)

    def __post_init__(self) -> None:
        self.title = fitted(self.title, _WIDEST, *self._head)
        self.lines = [fitted(line, _WIDEST, 12) for line in self.lines]
        marked = 24 if self.verdict else 0
        strong = {self.verdict, _CHANGES.get(self.change)}
        widths = [breadth(self.title, *self._head) + marked]
        widths += [breadth(line, 12, line in strong) for line in self.lines]
        self.width = 2 * round(max(widths) / 2) + (20 if self.terminal else 22)
        self.height = _HEAD + (_LINE * len(self.lines) + 6 if self.lines else 0)

    @property
    def _head(self) -> tuple[int, bool]:
        """Size and weight of the title."""
        return (12, False) if self.terminal else (13, True)

    @property
    def extent(self) -> Extent:
        half = self.width // 2
        return Extent(half, max(half, breadth(self.below, 12) + 8), self.height)


def subgraph(
    model: OnnxFile | str | Path | onnx.ModelProto,
    around: str = "",
    radius: int = 1,
    *,
    report: CheckReport | None = None,
) -> Svg:
    """Draw the part of an ONNX graph around a node or a module.

    Parameters
    ----------
    model
        An ONNX file, or such a model in memory; or a ``.tflite``.
    around
        A node's name, a tensor's name (its maker is meant), or a module path such as
        ``"features.4.block.2"``; "" draws the whole of a small graph.
    radius
        How many nodes further to draw, along the edges.
    report
        A check of this file against a target: every node then shows its verdict.

    Returns
    -------
    Svg
        Operators, key attributes, constants and shapes; equal bytes for equal graphs.

    Raises
    ------
    UnknownNameError
        Nothing in the graph is called `around`.
    UsageError
        Too many nodes, or a report that is about another file.
    ModelFileError
        The file is missing or no ONNX model.
    """
    view = View(model)
    chosen = view.near(around, radius)
    _refuse_many(view, chosen)
    title = f"{view.name}, {view.form}" + (f": {around}" if around else "")
    marks = _moves(view, chosen) if view.form == tflite_view.FORM else {}
    pane = _pane(view, chosen, title, report, marks)
    sentence = f"Graph of {view.name}" + _sentence(pane, around, report)
    return _document([pane], _legend(report), sentence)


def before_after(
    before: OnnxFile | str | Path | onnx.ModelProto,
    after: OnnxFile | str | Path | onnx.ModelProto,
    around: str | tuple[str, str] = "",
    radius: int = 1,
    *,
    reports: tuple[CheckReport | None, CheckReport | None] = (None, None),
    titles: tuple[str, str] | tuple[()] = (),
) -> Svg:
    """Draw the same part of two graphs side by side, with what went and what came marked.

    Parameters
    ----------
    before, after
        ONNX files, or such models in memory; or ``.tflite`` files, which call every node
        otherwise: then operators that only move data between layouts are marked.
    around, radius
        As for `subgraph`. A name that only one of the two graphs has is found in the other by
        its module, or by the tensors that enter and leave the part; or a name for each graph.
    reports
        A check of each, None for none; both of one target.
    titles
        Name two files of which neither was made from the other: a node that one of them lacks
        is then marked as "only here". Default: "Before" and "After", "replaced" and "new".

    Raises
    ------
    UnknownNameError
        Neither graph knows `around`.
    UsageError
        The part has no counterpart in the other graph, or is too large; or not two titles.
    """
    if titles and len(titles) != 2:
        raise UsageError(f"Two graphs take two titles, not {len(titles)}.")
    heads, marks = titles or ("Before", "After"), ("only", "only") if titles else ("gone", "new")
    views = View(before), View(after)
    if isinstance(around, tuple):
        cores = tuple(v.near(name, 0) for v, name in zip(views, around, strict=True))
        around = " and ".join(around)
    else:
        cores = _counterparts(*views, around)
    names = [{(label(n), n.op_type) for n in view.nodes} for view in views]
    converted = any(view.form == tflite_view.FORM for view in views)
    panes = []
    for view, core, others, word, change, report in zip(
        views, cores, reversed(names), heads, marks, reports, strict=True
    ):
        chosen = view.grown(core, radius)
        _refuse_many(view, chosen)
        changes = {
            i: change for i in chosen if (label(view.nodes[i]), view.nodes[i].op_type) not in others
        }
        changes = _moves(view, chosen) if converted else changes
        named = view.form in word
        title = f"{word}: {view.name}" if named else f"{word}: {view.name}, {view.form}"
        panes.append(_pane(view, chosen, title, report, changes))
    found = "; ".join(
        f"{p.title}{_sentence(p, '', r)}" for p, r in zip(panes, reports, strict=True)
    )
    where = f" around {around}" if around else ""
    return _document(panes, _legend(*reports), f"Two graphs side by side{where}. {found}")


def _moves(view: View, chosen: Iterable[int]) -> dict[int, str]:
    """Mark what only moves data between layouts, in a ``.tflite`` or beside one."""
    return {i: "moves" for i in chosen if view.nodes[i].op_type in tflite_view.MOVES}


def _counterparts(a: View, b: View, around: str) -> tuple[list[int], list[int]]:
    found = a.named(around), b.named(around)
    if all(found):
        return found
    if not any(found):
        a.near(around, 0)  # raises, with the names that are near
    swapped = not found[0]
    known, other, core = (b, a, found[1]) if swapped else (a, b, found[0])
    modules = {module_path(known.nodes[i]) for i in core}
    module = modules.pop() if len(modules) == 1 else ""
    match = other.named(module) if module else []
    match = match or other.between(*known.rim(core))
    if not match:
        raise UsageError(
            f"{around!r} is in {known.name}, but {other.name} has no such module, and no tensors "
            "of the same names. Name a module that both have."
        )
    return (match, core) if swapped else (core, match)


def _refuse_many(view: View, chosen: list[int]) -> None:
    if len(chosen) > MAX_NODES:
        raise UsageError(
            f"{len(chosen)} nodes of {view.name} are too many for a picture (at most "
            f"{MAX_NODES}). "
            "Take a smaller radius or a deeper module, or open the file in Netron."
        )


@dataclass
class _Pane:
    title: str
    boxes: list[_Box]
    edges: list[tuple[int, int]]
    layout: Layout


def _pane(
    view: View,
    chosen: list[int],
    title: str,
    report: CheckReport | None,
    changes: Mapping[int, str],
) -> _Pane:
    verdicts = _verdicts(view, chosen, report)
    entering, leaving = view.rim(chosen)
    place: dict[str, int] = {}
    boxes: list[_Box] = []
    for tensor in sorted(entering):
        place[tensor] = len(boxes)
        maker = view.nodes[view.producer[tensor]].op_type if tensor in view.producer else ""
        title_ = f"… {maker}" if maker else tensor
        boxes.append(_Box(title_, [], tensor, below=view.shape(tensor), terminal=True))
    edges: list[tuple[int, int]] = []
    for i in _sorted(view, chosen):
        node = view.nodes[i]
        change, verdict = changes.get(i, ""), verdicts.get(i, "")
        extra = [f"of {node.domain}"] if node.domain not in ("", "ai.onnx") else []
        extra += [module_path(node)] if module_path(node) else []
        extra += [verdict] if verdict else []
        extra += [_CHANGES[change]] if change else []
        shape = next((view.shape(t) for t in node.output if t), "")
        tint = STYLES[verdict][1] if verdict else _TINT.get(node.op_type, "#ececec")
        box = _Box(
            node.op_type, view.words(node) + extra, label(node), tint, verdict, change, shape
        )
        edges += [(place[t], len(boxes)) for t in view.data_inputs(node)]
        place.update({t: len(boxes) for t in node.output if t})
        boxes.append(box)
    for tensor in sorted(leaving):
        outside = [view.nodes[r].op_type for r in view.readers.get(tensor, ()) if r not in chosen]
        title_ = tensor if tensor in view.outputs else f"{', '.join(dict.fromkeys(outside))} …"
        edges.append((place[tensor], len(boxes)))
        boxes.append(_Box(title_, [], tensor, terminal=True))
    return _Pane(title, boxes, edges, graph_layout.arrange([b.extent for b in boxes], edges))


def _sorted(view: View, chosen: Iterable[int]) -> list[int]:
    """Return `chosen` in topological order, whatever the order in the file."""
    waiting, done, order = list(chosen), set(), []
    inside = {t for i in waiting for t in view.nodes[i].output}
    while waiting:
        ready = [
            i for i in waiting if all(t in done or t not in inside for t in view.nodes[i].input)
        ]
        if not ready:
            raise UsageError(f"{view.name}: the graph has a cycle, so it cannot be drawn.")
        order.append(ready[0])
        waiting.remove(ready[0])
        done.update(view.nodes[ready[0]].output)
    return order


def _verdicts(view: View, chosen: list[int], report: CheckReport | None) -> dict[int, str]:
    if report is None:
        return {}
    known = {(verdict.node, verdict.op_type): verdict.verdict for verdict in report.nodes}
    found = {i: known.get((label(view.nodes[i]), view.nodes[i].op_type), "") for i in chosen}
    if not all(found.values()):
        lost = next(label(view.nodes[i]) for i in chosen if not found[i])
        raise UsageError(
            f"The report is about {report.file} and has no verdict on node {lost!r} of "
            f"{view.name}. Check this file: targets.check({view.name!r}, {report.target!r})."
        )
    return found


def _legend(*reports: CheckReport | None) -> list[str]:
    given = [report for report in reports if report is not None]
    if not given:
        return []
    lines = [f"Operator table of {given[0].target}", "(documents; the tool is not run here):"]
    refused = dict.fromkeys(
        f"It refuses opset {r.opset} as such." for r in given if r.opset_blocker
    )
    return [*lines, *refused]


def _sentence(pane: _Pane, around: str, report: CheckReport | None) -> str:
    nodes = [box for box in pane.boxes if not box.terminal]
    listed = Counter(box.title for box in nodes)
    said = f" around {around}" if around else ""
    said += f", {counted(len(nodes), 'node')}: " + ", ".join(
        op if n == 1 else f"{n} {op}" for op, n in listed.items()
    )
    if report is not None and report.opset_blocker:
        said += f"; {report.target} refuses opset {report.opset}"
    for word in ("unsupported", "unknown", "constrained"):
        marked = [f"{b.title} ({b.name})" for b in nodes if b.verdict == word]
        said += f"; {word}: {', '.join(marked[:3])}" if marked else ""
        said += f" and {len(marked) - 3} more" if len(marked) > 3 else ""
    for change, word in (
        ("gone", "replaced"), ("new", "new"), ("only", "only here"), ("moves", "layout only"),
    ):  # fmt: skip
        changed = dict.fromkeys(b.title for b in nodes if b.change == change)
        said += f"; {word}: {', '.join(changed)}" if changed else ""
    return said


def _document(panes: list[_Pane], legend: list[str], alt: str) -> Svg:
    key = hashlib.sha256(repr((panes, legend)).encode()).hexdigest()[:8]
    heads = [wrapped(p.title, max(p.layout.width, _TITLE), 13, True) for p in panes]
    widths = [
        max(p.layout.width, *(breadth(line, 13, True) for line in head))
        for p, head in zip(panes, heads, strict=True)
    ]
    top = 26 + 18 * max(map(len, heads))
    used = {b.verdict for p in panes for b in p.boxes if b.verdict}
    rows = [word for word in STYLES if word in used]
    width = sum(widths) + _MARGIN * (3 * len(panes) - 1)
    width = max(width, *(breadth(line, 12) + 2 * _MARGIN for line in ["", *legend]))
    title, body, left = " | ".join(p.title for p in panes), [], _MARGIN
    for pane, wide, head in zip(panes, widths, heads, strict=True):
        shift = left + (wide - pane.layout.width) // 2
        for i, line in enumerate(head):
            body.append(text(left, 24 + 18 * i, line, 'font-weight="bold" font-size="13"'))
        body.append(f'<g transform="translate({shift} {top})">{_drawing(pane, key)}</g>')
        left += wide + 3 * _MARGIN
    bottom = top + max(p.layout.height for p in panes) + 28
    for line in legend:
        body.append(text(_MARGIN, bottom, line, f'fill="{_SOFT}"'))
        bottom += 20
    lefts = [_MARGIN + sum(widths[:i]) + 3 * _MARGIN * i for i in range(len(panes))]
    for word in rows:  # counted below each graph: before and after are two answers
        for pane, at in zip(panes, lefts, strict=True):
            count = sum(b.verdict == word for b in pane.boxes)
            body.append(symbol(word, at, bottom - 11))
            body.append(text(at + 20, bottom, f"{word}: {counted(count, 'node')}"))
        bottom += 20
    return Svg(_frame("".join(body), width, bottom - 4, key, title, alt), alt + ".")


def _frame(body: str, width: int, height: int, key: str, title: str, alt: str) -> str:
    hatch = STYLES["unsupported"][0]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="t{key} d{key}" '
        'font-family="DejaVu Sans, Verdana, Arial, sans-serif" font-size="12">'
        f'<title id="t{key}">{clean(title)}</title>'
        f'<desc id="d{key}">{clean(alt)}.</desc>'
        f'<defs><marker id="a{key}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" '
        f'markerHeight="8" orient="auto"><path d="M0 1L10 5L0 9z" fill="{_LINK}"/></marker>'
        f'<pattern id="h{key}" width="6" height="6" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><path d="M0 0V6" stroke="{hatch}" stroke-opacity="0.35" '
        'stroke-width="2"/></pattern></defs>'
        # its own white ground: legible on a dark page too
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" fill="#ffffff" '
        f'stroke="#c8c8c8"/>{body}</svg>\n'
    )


def _drawing(pane: _Pane, key: str) -> str:
    places = pane.layout.boxes
    arrows = [_arrow(route, key) for route in pane.layout.routes]
    boxes = [_box(box, *at, key) for box, at in zip(pane.boxes, places, strict=True)]
    halo = f'fill="{_SOFT}" stroke="#ffffff" stroke-width="4" paint-order="stroke"'
    shapes = [
        text(x + 8, y + box.height + 16, box.below, halo)
        for box, (x, y) in zip(pane.boxes, places, strict=True)
        if box.below
    ]
    return "".join([*arrows, *boxes, *shapes])


def _arrow(route: list[tuple[int, int]], key: str) -> str:
    (x, y), *rest = route
    path = f"M{x} {y}V{y + _STEM}"  # straight down first: the shape stands beside it
    y += _STEM
    for i, (to_x, to_y) in enumerate(rest):
        bend = (to_y - y) // 2
        if to_x == x or i % 2:  # odd steps run down a lane beside a row of boxes
            path += f"L{to_x} {to_y}"
        else:
            path += f"C{x} {y + bend} {to_x} {to_y - bend} {to_x} {to_y}"
        x, y = to_x, to_y
    return (
        f'<path d="{path}" fill="none" stroke="{_LINK}" stroke-width="1.3" '
        f'marker-end="url(#a{key})"/>'
    )


def _box(box: _Box, middle: int, top: int, key: str) -> str:
    left, wide = middle - box.width // 2, box.width
    tooltip = f"<title>{clean(box.name)}</title>"
    rect = f'<rect x="{left}" y="{top}" width="{wide}"'
    if box.terminal:
        frame = (
            f'{rect} height="{_HEAD}" rx="12" fill="#fff" stroke="{_LINK}" stroke-dasharray="3 3"/>'
        )
        name = text(middle, top + 16, box.title, f'text-anchor="middle" fill="{_SOFT}"')
        return f"<g>{tooltip}{frame}{name}</g>"
    dark, _, stroke, dash, _ = STYLES.get(box.verdict, (_SOFT, "", 1.2, "", ""))
    stroke = 3 if box.change and not box.verdict else stroke
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    parts = [
        f'{rect} height="{box.height}" rx="5" fill="#ffffff"/>',
        f'{rect} height="{_HEAD}" rx="5" fill="{box.tint}"/>',
        f'{rect} height="{_HEAD}" rx="5" fill="url(#h{key})"/>'
        if box.verdict == "unsupported"
        else "",
        f'{rect} height="{box.height}" rx="5" fill="none" stroke="{dark}" '
        f'stroke-width="{stroke}"{dashes}/>',
        text(left + 10, top + 17, box.title, 'font-weight="bold" font-size="13"'),
        symbol(box.verdict, left + wide - 22, top + 6) if box.verdict else "",
    ]
    for i, line in enumerate(box.lines):
        strong = line in (box.verdict, _CHANGES.get(box.change))
        style = f'font-weight="bold" fill="{dark}"' if strong else ""
        parts.append(text(left + 10, top + _HEAD + _LINE * (i + 1) - 2, line, style))
    return f"<g>{tooltip}{''.join(parts)}</g>"
