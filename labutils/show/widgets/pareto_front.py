"""The front of mixed recipes: pick a point, see its recipe, measure it, keep it."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from pathlib import Path

import ipywidgets as widgets

from ... import paths
from ...errors import UsageError
from ...onnxfile.graph import module_of_name
from ...quantize.mixed import MixedReport
from ...typesetting import scrolling, words
from ..figures.precision import front, reached_db
from ..graphs.picture import DPI, WIDTH, Picture, percent
from .panel import Panel, labelled, on_change, row, table

_SPOT = 16  # pixels: the side of what can be clicked
_CELL = "1 / 1 / 2 / 2"  # picture and spots lie in one cell of a grid, on top of each other
_STYLE = (
    "<style>.lab-spot.jupyter-button{background:transparent;border:0;border-radius:50%;"
    "box-shadow:none;padding:0}.lab-spot.jupyter-button:hover{outline:2px solid #1a1a1a;"
    "background:rgba(86,180,233,.35)}</style>"
)


class ParetoFront(Panel):
    """Pick a point of the front, on the picture or with the slider; see and keep its recipe.

    Parameters
    ----------
    report
        From `quantize.mixed.search`.

    Attributes
    ----------
    point
        The slider; its value is the index of the point in ``report.front``.
    spots
        Invisible buttons on the picture: index of a point, button.
    """

    def __init__(self, report: MixedReport) -> None:
        if not report.front:
            raise UsageError("This report holds no point: there is nothing to pick from.")
        self.report = report
        last = len(report.front) - 1
        self.point = labelled(
            widgets.IntSlider, "Point", min=0, max=last, value=report.chosen,
            continuous_update=False, width="34em",
        )  # fmt: skip
        self.file = labelled(widgets.Text, "File name", width="34em", continuous_update=False)
        self.measure_button = _button("Measure this point", "tachometer")
        self.save_button = _button("Save recipe", "save")
        self.spots: list[tuple[int, widgets.Button]] = []
        self.picture, self.facts, self.recipe = (widgets.HTML() for _ in range(3))
        self.plot = widgets.GridBox(
            [self.picture],
            layout={"width": "100%", "max_width": f"{WIDTH * DPI:.0f}px", "overflow": "hidden",
                    "min_width": f"{0.7 * WIDTH * DPI:.0f}px",  # legible; it scrolls
                    "justify_items": "flex-start", "align_items": "flex-start",
                    "grid_template_columns": "100%"},
        )  # fmt: skip
        self.picture.layout = {"grid_area": _CELL, "width": "100%", "margin": "0"}
        super().__init__(
            "The front of mixed recipes",
            [row(self.point, self.measure_button), row(self.file, self.save_button)],
            [self.measure_button, self.save_button],
            [self.picture, self.facts, self.recipe],
        )
        heading, picking, saving, *_ = self.parts()
        plot = widgets.Box([self.plot], layout={"overflow": "auto hidden"})
        plot.add_class("lab-scrolling")
        self.children = (
            heading, plot, picking, self.bar, self.status, self.facts, saving, self.recipe,
        )  # fmt: skip
        on_change(self.point, self.refresh)
        self.measure_button.on_click(lambda button: self.measure())
        self.save_button.on_click(lambda button: self.save())
        self.refresh()

    def refresh(self) -> None:
        """Show the point that is picked."""
        index = self.point.value
        with self.working(f"Point {index} ..."):
            picture = front(self.report, index)
            self.picture.value = _filling(picture)
            self._place(picture)
            self.file.value = f"{Path(self.report.source).stem}_point{index}.yaml"
            self.facts.value = table(("block", "nodes at 16 bits", "which"), self._blocks())
            self.recipe.value = _listing(str(self.report.recipe_of(index)))
            good = index == self.report.chosen and self.report.reached
            self.say(self._words(), "good" if good else "note")
        self._allow()

    def measure(self) -> None:
        """Quantize the picked point, run it in ONNX Runtime, and compare it with the float file."""
        index = self.point.value
        with self.working(f"Quantizing point {index} ...", keep=True):
            self.report = self.report.measure(index, self.progress)
            self.refresh()
        self._allow()

    def save(self) -> None:
        """Write the picked point's recipe into the folder of generated models."""
        name = self.file.value.strip()
        with self.working(f"Writing {name} ...", keep=True):
            if Path(name).name != name or Path(name).suffix not in (".yaml", ".yml"):
                raise UsageError(f"{name!r}: give a plain file name that ends in .yaml.")
            recipe = self.report.recipe_of(self.point.value)
            recipe.save(paths.generated() / name)
            self.say(
                f"Wrote {name} into generated_models: point {self.point.value}. "
                "quantize.static takes it, and `labutils convert --quantize` does.",
                "good",
            )
        self._allow()

    def _allow(self) -> None:
        known = self.report.front[self.point.value].measured is not None
        self.measure_button.disabled = known or self.report.judge is None

    def _words(self) -> str:
        """Return what the picked point costs and gives, in two lines."""
        index, point = self.point.value, self.report.front[self.point.value]
        which = "chosen by" if self.report.reached else "nearest to"
        chosen = f" ({which} the budget)" if index == self.report.chosen else ""
        narrow = len(self.report.narrow)
        head = f"Point {index}, from 0 to {self.point.max}{chosen}"
        cost = (
            f"{head}: {len(point.wide)} of {len(self.report.nodes)} nodes at 16 bits, "
            f"{percent(point.mac_share)} of the multiply-accumulates; {point.converts} tensors "
            f"change width on the way; {point.bytes / 1e6:.2f} MB of weights"
            + (f", {narrow} layers with 4 bits." if narrow else ".")
        )
        gain = f"Logit SQNR: predicted {point.predicted_db:.1f} dB"
        found = point.measured
        if found is None:
            return f"{cost}\n{gain}, not measured yet."
        return (
            f"{cost}\n{gain}, measured {found.sqnr_db:.1f} dB; same top-1 as the float file on "
            f"{found.agreement}. Calibration images, ONNX Runtime: for choosing only."
        )

    def _blocks(self) -> Iterator[tuple[str, str, str]]:
        """Yield each block with wide nodes: its name, how many of how many, and which."""
        blocks = self.report.blocks(self.point.value)
        for block, (names, count) in blocks.items():
            every = "all " if len(names) == count > 1 else ""
            listed = ", ".join(_within(name, block) for name in names)
            yield words(block), f"{every}{len(names)} of {count}", words(listed)
        if not blocks:
            yield "none", f"0 of {len(self.report.nodes)}", "8 bits everywhere"

    def _place(self, picture: Picture) -> None:
        """Lay a button over every point of the picture that stands apart from the others."""
        wanted = list(_apart(picture, self.report))
        if [index for index, *_ in wanted] != [index for index, _ in self.spots]:
            self.spots = [(index, self._spot(index)) for index, *_ in wanted]
            self.plot.children = (self.picture, *(spot for _, spot in self.spots))
        for (_, x, y), (_, spot) in zip(wanted, self.spots, strict=True):
            # of the cell's width, both: that is what CSS takes the percentage of a margin from
            left, top = (f"calc({100 * v:.2f}% - {_SPOT // 2}px)" for v in (x, y))
            spot.layout.margin = f"{top} 0 0 {left}"

    def _spot(self, index: int) -> widgets.Button:
        point = self.report.front[index]
        spot = widgets.Button(
            tooltip=f"point {index}: {percent(point.mac_share)} of the MACs, "
            f"{reached_db(point):.1f} dB",
            tabbable=False,  # the slider is for the keyboard; a hundred stops are for nobody
            layout={"grid_area": _CELL, "width": f"{_SPOT}px", "height": f"{_SPOT}px"},
        )
        spot.add_class("lab-spot")
        spot.on_click(lambda button: setattr(self.point, "value", index))
        return spot


def _apart(picture: Picture, report: MixedReport) -> Iterator[tuple[int, float, float]]:
    """Yield (index, x, y) of points at least a spot from each other, in parts of the width.

    Where points crowd, the chosen one, the measured ones and the ends come first; y is from the
    top, in parts of the picture's *width*. A measured point has a second spot at its square.
    The picture was drawn before.
    """
    axes, (width, height) = picture.axes[0], picture.get_size_inches() * picture.dpi
    ends = (report.chosen, 0, len(report.front) - 1)
    measured = [i for i, point in enumerate(report.front) if point.measured]
    order = dict.fromkeys([*ends, *measured, *range(len(report.front))])
    taken: list[tuple[int, float, float]] = []
    for index in order:
        point = report.front[index]
        levels = [reached_db(point), point.predicted_db]
        for level in dict.fromkeys(levels):
            x, y = axes.transData.transform((100 * point.mac_share, level))
            if all(max(abs(x - a), abs(y - b)) >= 0.75 * _SPOT for _, a, b in taken):
                taken.append((index, x, y))
    yield from ((index, x / width, (height - y) / width) for index, x, y in taken)


def _filling(picture: Picture) -> str:
    """Return the picture as wide as its place, sharp, with its sentence as alternative text."""
    coded = base64.b64encode(picture.png(2 * DPI)).decode()
    return (
        f'{_STYLE}<img alt="{html.escape(picture.alt)}" style="display:block;width:100%" '
        f'src="data:image/png;base64,{coded}">'
    )


def _listing(yaml: str) -> str:
    return scrolling(
        '<details open style="margin-top:.4em"><summary>The recipe (one click selects all of it)'
        '</summary><pre style="user-select:all;max-height:16em;overflow:auto;line-height:1.35;'
        'padding:.5em .8em;border:1px solid rgba(127,127,127,.45);white-space:pre">'
        f"{html.escape(yaml)}</pre></details>"
    )


def _within(name: str, block: str) -> str:
    """Return a node's operator and its place in the block, as ``Conv (block.2.fc1)``."""
    module, operator = module_of_name(name), name.rsplit("/", 1)[-1]
    inner = module.removeprefix(block).strip(".")
    return f"{operator} ({inner})" if inner else operator


def _button(name: str, icon: str) -> widgets.Button:
    return widgets.Button(
        description=name, icon=icon, button_style="primary",
        layout={"width": "14em", "margin": "2px 2px 2px 8px"},
    )  # fmt: skip
