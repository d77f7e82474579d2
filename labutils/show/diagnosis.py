"""A diagnosis as one HTML page that needs nothing beside it: to send to a colleague.

It holds what `pipeline.suggest` found, module by module, what to do, what each rule costs, a
picture of the place where the tool stops, and the versions that were used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__, paths, pipeline, surgery, targets, typesetting
from ..errors import LabError, counted
from ..onnxfile.file import OnnxFile

if TYPE_CHECKING:
    from markupsafe import Markup

_MEANINGS = {
    "supported": "the table lists it, and its limits hold",
    "constrained": "listed with a limit that is missed or left to you: read the evidence",
    "unsupported": "the tool refuses it",
    "unknown": "the table does not list it, which never counts as supported",
}
_DEPTH = 2  # parts of a module path by which nodes are grouped: features.4
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ check.file }} for {{ check.target }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; overflow-wrap: break-word }
h1 { font-size: clamp(1.3rem, 5vw, 2rem); line-height: 1.25 }
table { border-collapse: collapse; width: 100% } caption { text-align: left }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .6rem; text-align: left;
         vertical-align: top; overflow-wrap: normal }
.n { text-align: right; white-space: nowrap } .prose { min-width: 16rem }
.name { min-width: 10rem }
.wide, figure { margin: 1rem 0; overflow-x: auto }
.unsupported { border-left: .4rem solid #d55e00 } .unknown { border-left: .4rem double #6b6b6b }
.legend span { display: block; padding-left: .6rem; margin: .2rem 0 }
.verdict { font-weight: 600; padding-left: .8rem }
.constrained { border-left: .4rem dashed #e69f00 } .supported { border-left: .4rem dotted #009e73 }
</style>
<h1>{{ check.file | words }} for {{ check.target | words }}</h1>
<p class="verdict {{ worst }}">{{ check.conclusion | words }}</p>
<p>{{ model | words }}</p>
{% for line in check.summary() if line != check.conclusion %}<p>{{ line | words }}</p>
{% endfor %}<p>Written {{ date }} by labutils {{ versions.labutils }}.</p>
<h2>What to do</h2>
{% if not plan.needed %}<p>{% if check.unknown %}Nothing that the table knows blocks this model on
{{ check.target }}. What the table does not know may still fail: convert
{% else %}Nothing blocks this model on {{ check.target }}: no repair is needed.
Convert{% endif %}, and let the parity gate compare the result with this model.</p>
{% elif rules %}<p>{{ blocking }}.
{% if plan.complete %}These rules remove all of them:
{% else %}These rules remove some of them, not all:{% endif %}</p>
<div class="wide" tabindex="0"><table>
<thead><tr><th>rule</th><th class="n">nodes</th><th>what it costs</th><th>source</th></tr></thead>
<tbody>{% for rule, nodes in rules %}
<tr><td>{{ rule.name | words }}</td><td class="n">{{ nodes }}</td>
<td class="prose">{{ "exact" if rule.exact else "approximate, needs retraining" }}; error:
{{ rule.error | words }}</td><td class="prose">{{ rule.source | words }}</td></tr>{% endfor %}
</tbody></table></div>
{% else %}<p>{{ blocking }}, and no rule of the lab removes them.</p>
{% endif %}
{% if left %}<p>No exact rule repairs:</p><ul>
{% for op, count, first in left %}<li>{{ count }} x {{ op | words }}, first in
{{ (first.module or first.node or "the file") | words }}: {{ first.evidence | words }}</li>
{% endfor %}</ul>{% endif %}
{% if plan.needed and plan.complete and converts %}<p>Then:
<code>labutils convert MODEL --target {{ check.target }} --repair -o FILE.dlc</code></p>{% endif %}
{% if picture %}<h2>Where the tool stops</h2><figure>{{ picture }}</figure>{% endif %}
<h2>Operators</h2>
<p class="legend">{% for word, count in check.counts.items() %}<span class="{{ word }}">{{ word }}:
{{ meanings[word] }}</span> {% endfor %}</p>
<div class="wide" tabindex="0"><table>
<thead><tr><th>operator</th><th>verdict</th><th class="n">nodes</th>
<th>first in</th><th>evidence</th></tr></thead>
<tbody>{% for op, verdict, nodes, first, evidence in check.groups() %}
<tr class="{{ verdict }}"><td class="name">{{ op | words }}</td><td>{{ verdict }}</td>
<td class="n">{{ nodes }}</td>
<td class="name">{{ first | words }}</td>
<td class="prose">{{ evidence | words }}</td></tr>{% endfor %}
</tbody></table></div>
<h2>Modules</h2>
<div class="wide" tabindex="0"><table>
<thead><tr><th>module</th>
{% for word in words %}<th class="n">{{ word }}</th>{% endfor %}<th>blocked by</th></tr></thead>
<tbody>{% for part in parts %}
<tr class="{{ part.worst }}"><td>{{ part.module | words }}</td>
{% for word in words %}<td class="n">{{ part.counts[word] or "" }}</td>{% endfor %}
<td>{{ part.blocking | words }}</td></tr>{% endfor %}
</tbody></table></div>
<h2>Versions</h2>
<p>{% for name, version in versions.items() %}{{ name }} {{ version }}{{ ", " if not loop.last }}
{% endfor %}</p>
"""


@dataclass(frozen=True)
class Part:
    """The nodes of one module: how many of each verdict, and what blocks there."""

    module: str
    counts: dict[str, int]
    blocking: str
    worst: str


def write(
    plan: pipeline.Plan,
    path: str | Path,
    model: str = "",
    onnx_path: OnnxFile | str | Path | None = None,
) -> Path:
    """Write a diagnosis as a page, all of it or nothing, and return its path.

    Parameters
    ----------
    plan
        From `pipeline.suggest`.
    path
        The ``.html`` to write.
    model
        What was diagnosed, in one line.
    onnx_path
        The file that was checked; with it, the place where the tool stops is drawn.
    """
    import jinja2
    from markupsafe import Markup

    check = plan.check
    blockers = len(check.blockers)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["words"] = lambda text: Markup(typesetting.words(text))
    text = environment.from_string(_PAGE).render(
        check=check,
        blocking=f"{counted(blockers, 'node')} {'blocks' if blockers == 1 else 'block'}",
        plan=plan,
        model=model,
        rules=[(surgery.RULES[name], nodes) for name, nodes in plan.rules.items()],
        left=_left(plan),
        converts=targets.TARGETS[check.target].convert,
        picture=_picture(check, onnx_path),
        words=tuple(check.counts),
        parts=parts(check),
        meanings=_MEANINGS,
        worst=_worst(check.counts),
        date=date.today().isoformat(),
        versions={"labutils": __version__}
        | paths.versions("torch", "onnx", "onnxruntime", "onnxruntime-qnn"),
    )
    paths.write_text(path, text)
    return Path(path)


def parts(check: targets.CheckReport) -> list[Part]:
    """Return the verdicts by module, in the order of the graph."""
    found: dict[str, list[targets.NodeVerdict]] = {}
    for node in check.nodes:
        name = ".".join(node.module.split(".")[:_DEPTH]) or "(no module)"
        found.setdefault(name, []).append(node)
    return [_part(name, nodes, tuple(check.counts)) for name, nodes in found.items()]


def _part(name: str, nodes: list[targets.NodeVerdict], words: tuple[str, ...]) -> Part:
    counts = Counter(node.verdict for node in nodes)
    blocking = Counter(node.op_type for node in nodes if node.verdict == "unsupported")
    listed = ", ".join(f"{n} x {op}" for op, n in blocking.items())
    return Part(name, {word: counts[word] for word in words}, listed, _worst(counts))


def _worst(counts: Mapping[str, int]) -> str:
    found = (word for word in ("unsupported", "unknown", "constrained") if counts[word])
    return next(found, "supported")


def _left(plan: pipeline.Plan) -> list[tuple[str, int, targets.NodeVerdict]]:
    counts = Counter(node.op_type for node in plan.unrepairable)
    first = {node.op_type: node for node in reversed(plan.unrepairable)}
    return [(op, count, first[op]) for op, count in counts.items()]


def _picture(check: targets.CheckReport, onnx_path: OnnxFile | str | Path | None) -> Markup | None:
    """Draw the first blocker with its neighbours; None where that cannot be drawn."""
    from markupsafe import Markup

    from . import subgraph

    first = check.first_blocker
    if onnx_path is None or first is None or not first.node:
        return None
    try:
        drawn = subgraph(onnx_path, first.node, report=check)
    except LabError:  # a file too wide to draw, or names that are not unique
        return None
    return Markup(drawn._repr_html_())  # an image whose words are escaped by `show`
