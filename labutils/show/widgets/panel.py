"""What the widgets of the lab share: a status line, explained failures, a static stand-in.

A callback's exception would end in the server's log, so `Panel.working` turns it into words where
the learner looks. All results are HTML: joined, they are what a viewer without a kernel shows.
"""

from __future__ import annotations

import base64
import contextlib
import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import ipywidgets as widgets

from ... import typesetting
from ...errors import LabError
from ..graphs.picture import DPI, Picture
from ..graphs.svg import STYLES

T = TypeVar("T")

# Kind of status -> colours and border (of the verdict that means the same), mark.
_KINDS = {
    "good": (STYLES["supported"], "✓"),
    "busy": (STYLES["unknown"], "…"),
    "note": (STYLES["unknown"], "i"),
    "warn": (STYLES["constrained"], "!"),
    "bad": (STYLES["unsupported"], "✗"),
}
LABEL = "8em"  # width of the controls' descriptions


class Panel(widgets.VBox):
    """Controls above, a status line, results below.

    Parameters
    ----------
    title
        One line, above everything.
    controls
        Rows of controls.
    buttons
        Those among them that start work: off while working.
    results
        HTML widgets, emptied when the work fails; the static stand-in shows them.

    Attributes
    ----------
    status
        The line that says what goes on; it carries the class ``lab-status``.
    bar
        Progress of long work, hidden otherwise.
    """

    def __init__(
        self,
        title: str,
        controls: Iterable[widgets.Widget],
        buttons: Sequence[widgets.Button] = (),
        results: Sequence[widgets.HTML] = (),
    ) -> None:
        self.title, self.buttons, self.results = title, tuple(buttons), tuple(results)
        self._controls = tuple(controls)
        self.status = widgets.HTML()
        self.status.add_class("lab-status")
        self.bar = widgets.IntProgress(description="", layout={"display": "none", "width": "100%"})
        heading = widgets.HTML(f"<b>{typesetting.words(title)}</b>")
        super().__init__([heading, *self._controls, self.bar, self.status, *self.results])
        self.add_class("lab-panel")
        self.layout.padding = "4px 2px 8px"

    def parts(self) -> tuple[widgets.Widget, ...]:
        """Return heading, controls, bar, status and results, in this order."""
        return tuple(self.children)

    def say(self, words: str, kind: str = "note") -> None:
        """Show `words` in the status line; `kind` is good, busy, note, warn or bad."""
        self.status.value = banner(words, kind)

    @contextlib.contextmanager
    def working(self, words: str, keep: bool = False) -> Iterator[None]:
        """Say `words`, switch the buttons off, and show an exception of the block as a sentence.

        The results are emptied then, because they are of something else, unless they are to `keep`.
        """
        for button in self.buttons:
            button.disabled = True
        self.say(words, "busy")
        try:
            yield
        except Exception as error:
            known = isinstance(error, LabError)
            self.say(str(error) if known else f"{type(error).__name__}: {error}", "bad")
            for result in () if keep else self.results:
                result.value = ""
        finally:
            for button in self.buttons:
                button.disabled = False
            self.bar.layout.display = "none"

    def progress(self, items: Iterable[T], words: str = "") -> Iterator[T]:
        """Yield `items` with the bar moving; runners and `compare.ladder` call it so."""
        items = list(items)
        self.bar.max, self.bar.value = max(len(items), 1), 0
        self.bar.layout.display = None
        for done, item in enumerate(items, start=1):
            self.say(f"{words} ... {done} of {len(items)}".strip(), "busy")
            yield item
            self.bar.value = done

    def static_html(self) -> str:
        """Return what there is to see, for viewers that run no kernel."""
        rows = "".join(f"<li>{line}</li>" for line in _settings(self._controls))
        shown = "".join(f"<div>{r.value}</div>" for r in (self.status, *self.results) if r.value)
        return (
            f'<div class="lab-static"><p><b>{html.escape(self.title)}</b> (a still picture: run '
            f"the notebook to move the controls)</p><ul>{rows}</ul>{shown}</div>"
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs)
        return {**(bundle or {}), "text/plain": self.title, "text/html": self.static_html()}

    def __repr__(self) -> str:
        return self.title


def banner(words: str, kind: str) -> str:
    """Return a line of HTML with a mark and colours that say good, busy, note, warn or bad."""
    (dark, tint, *_), mark = _KINDS[kind]
    lines = "<br>".join(map(typesetting.words, words.splitlines()))
    return (
        f'<div role="status" data-kind="{kind}" style="display:flex;gap:.6em;padding:.35em .7em;'
        f"line-height:1.45;color:{dark};background:{tint};border-left:4px solid {dark};"
        f'border-radius:3px;white-space:normal;overflow-wrap:anywhere"><b aria-hidden="true">'
        f"{mark}</b><span>{lines}</span></div>"
    )


def pictured(figure: Picture) -> str:
    """Return a figure as an image with its sentence as alternative text; the status says it too."""
    coded = base64.b64encode(figure.png()).decode()
    style = f"margin-top:.4em;{typesetting.shrinking(round(DPI * figure.get_figwidth()))}"
    return typesetting.scrolling(
        f'<img alt="{html.escape(figure.alt)}" style="{style}" src="data:image/png;base64,{coded}">'
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Return a table of HTML cells that is legible inside a widget, on light and dark pages."""
    line = "border-bottom:1px solid rgba(127,127,127,.45);padding:.25em .7em .25em 0"
    cell = f'style="{line};text-align:left;vertical-align:top"'
    head = "".join(f'<th scope="col" {cell}>{typesetting.words(name)}</th>' for name in columns)
    body = "".join("<tr>" + "".join(f"<td {cell}>{c}</td>" for c in row) + "</tr>" for row in rows)
    said = f'<caption style="text-align:left;padding:.3em 0">{caption}</caption>' if caption else ""
    return typesetting.scrolling(
        f'<table style="border-collapse:collapse;line-height:1.4;white-space:normal;margin:.4em 0">'
        f"{said}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def labelled(control: type[widgets.Widget], label: str, **settings: Any) -> widgets.Widget:
    """Return a control with its label beside it, wide enough not to be cut off."""
    layout = {"width": settings.pop("width", "24em"), "max_width": "99%"}
    style = {"description_width": LABEL}
    return control(description=label, style=style, layout=layout, **settings)


def row(*controls: widgets.Widget) -> widgets.HBox:
    """Return controls side by side, wrapped where the page is narrow."""
    return widgets.HBox(controls, layout={"flex_flow": "row wrap", "align_items": "center"})


def on_change(control: widgets.Widget, call: Callable[[], object]) -> None:
    """Call `call` when the value of `control` changes."""
    control.observe(lambda change: call(), "value")


def _settings(controls: Iterable[widgets.Widget]) -> Iterator[str]:
    """Yield the label and the value of every control, as HTML."""
    control: Any
    for control in controls:
        if isinstance(control, widgets.Box):
            yield from _settings(control.children)
        elif hasattr(control, "value") and getattr(control, "description", None):
            shown: Any = getattr(control, "label", None) or control.value
            if isinstance(shown, str | int | float | bool):
                yield typesetting.words(f"{control.description}: {shown}")
