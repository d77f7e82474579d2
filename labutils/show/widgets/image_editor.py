"""My own image: draw one or drop one in, see what the model says, keep it for every notebook."""

from __future__ import annotations

from pathlib import Path

import ipywidgets as widgets
import numpy as np

from ... import runtime
from ...errors import UsageError
from ...images import data, own_image, things
from ...models import zoo
from ..figures import top5
from . import own_picture
from .panel import Panel, labelled, on_change, pictured, row

_INDENT = "2px 2px 2px calc(8em + 12px)"  # buttons below the boxes, which have a label
_UNKNOWN = "(not in the list)"


class ImageEditor(Panel):
    """Choose the picture that goes through all notebooks.

    Parameters
    ----------
    model
        What classifies it, and says at which size and by which preprocessing.

    Attributes
    ----------
    pixels
        The picture as it would be kept, (height, width, 3) uint8 RGB.
    """

    def __init__(self, model: zoo.Model) -> None:
        if model.preprocessing is None:
            raise UsageError(f"{model.name} does not say how its input is made.")
        self.model = model
        self.runner = runtime.connect(model.module if model.module is not None else model.file)
        self.pixels: np.ndarray | None = None
        self.source = self.notes = ""  # where the picture comes from; what was done to a file
        self._make_controls()
        self.picture = widgets.HTML()
        drawing = row(self.kind, self.hue, self.size, self.clutter, self.seed)
        controls = [drawing, row(self.upload, self.truth), row(self.use)]
        super().__init__("My own image", controls, [self.use, self.upload], [self.picture])
        for control in (self.kind, self.hue, self.size, self.clutter, self.seed):
            on_change(control, self.draw)
        on_change(self.upload, self._dropped)
        on_change(self.truth, self._renamed)
        self.use.on_click(lambda button: self.keep())
        self.draw()

    def _make_controls(self) -> None:
        steady = {"continuous_update": False, "step": 0.05, "readout_format": ".2f"}
        slider = widgets.FloatSlider
        self.kind = labelled(widgets.Dropdown, "Class", options=things.CLASSES)
        self.hue = labelled(slider, "Hue", min=0, max=1, value=0.6, **steady)
        self.size = labelled(slider, "Size", min=0.1, max=1, value=0.75, **steady)
        self.clutter = labelled(slider, "Clutter", min=0, max=1, value=0.3, **steady)
        self.seed = labelled(
            widgets.BoundedIntText, "Seed", min=0, max=10**6, value=0, continuous_update=False
        )
        self.upload = widgets.FileUpload(
            accept=".png,.jpg,.jpeg,.webp", multiple=False, description="Open a picture",
            layout={"width": "14em", "margin": _INDENT},
        )  # fmt: skip
        self.truth = labelled(
            widgets.Dropdown, "It shows", options=[_UNKNOWN, *self.model.classes], disabled=True
        )
        self.use = widgets.Button(
            description="Use this image", button_style="primary", icon="check",
            layout={"width": "14em", "margin": _INDENT},
        )  # fmt: skip

    def draw(self) -> None:
        """Draw the Things-16 picture that the controls describe, and classify it."""
        self.pixels = None
        with self.working("Drawing ..."):
            order = {
                "kind": self.kind.value,
                "hue": round(self.hue.value, 4),
                "size": round(self.size.value, 4),
                "clutter": round(self.clutter.value, 4),
                "seed": self.seed.value,
            }
            scene = things.custom_scene(**order)
            listed = ", ".join(f"{name} {value}" for name, value in order.items())
            self.truth.disabled, self.notes = True, ""
            self.source = f"drawn with Things-16: {listed}"
            self._take(things.render(scene, max(data.sides(self.model.known_preprocessing().size))))

    def read(self, name: str, content: bytes) -> None:
        """Take a picture file: PNG, JPEG or WebP, of any size and mode."""
        self.pixels = None
        with self.working(f"Reading {name} ..."):
            pixels, self.notes = own_picture.decode(content, name)
            self.truth.disabled = False
            self.source = f"file {Path(name).name}"
            self._take(pixels)

    def keep(self) -> None:
        """Store the picture where the other notebooks look for it."""
        with self.working("Storing ..."):
            if self.pixels is None:
                raise UsageError("There is no picture to use: draw one, or open a file.")
            path = own_image.keep(self.pixels, self._kind())
            self._show()
            self.say(
                f"Stored as {path.name} ({self.source}): every notebook uses it from now on.",
                "good",
            )

    def _take(self, pixels: np.ndarray) -> None:
        """Classify the picture; it counts only when that worked."""
        seen = data.fitted(pixels, self.model.known_preprocessing().size)
        self._logits = self.runner.run(self.model.known_preprocessing()(seen[None]))
        self.pixels = pixels
        self._show()

    def _show(self) -> None:
        if self.pixels is None:
            return
        seen = data.fitted(self.pixels, self.model.known_preprocessing().size)
        truth, classes = self._kind() or "", self.model.classes
        figure = top5(seen, self._logits, classes, truth, f"{self.model.name}, top-5")
        self.picture.value = pictured(figure)
        words = f"{figure.alt} Not stored yet."
        if truth and truth not in classes:
            words += f" ({truth} is not a class of this model, so no answer can be right.)"
        if not self.model.trained:
            words += " The weights are random, so the answer means nothing."
        if len(set(self.pixels.shape[:2])) > 1:
            words += " The model sees its centre square only."
        if self.notes:
            words += f" The file was changed: {self.notes}."
        self.say(words, "note")

    def _kind(self) -> str | None:
        if self.truth.disabled:
            return self.kind.value
        return None if self.truth.value == _UNKNOWN else self.truth.value

    def _dropped(self) -> None:
        files = self.upload.value
        if files:
            self.upload.value = ()  # so that the same file can be opened again
            self.read(files[0]["name"], bytes(files[0]["content"]))

    def _renamed(self) -> None:
        if self.pixels is not None:
            with self.working("Looking ..."):
                self._show()
