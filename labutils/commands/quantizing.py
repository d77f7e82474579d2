"""Commands about fewer bits: quantize, recipe."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .options import command, emit, say


def add(commands: Any) -> None:
    """Add the parsers of these commands."""
    _recipe_parser(commands)


def _recipe_parser(commands: Any) -> None:
    text = "Show a quantization recipe, list the presets, or import another tool's settings."
    parser = command(commands, "recipe", _recipe, text)
    parser.add_argument("action", choices=("list", "show", "import"))
    named = "a preset's name or a YAML; to import: TI's preset, TIDL options, an hb_mapper YAML"
    parser.add_argument("source", metavar="RECIPE", nargs="?", help=named)
    parser.add_argument("-o", "--output", type=Path, help="the YAML to write")


def _recipe(chosen: argparse.Namespace) -> int:
    from .. import quantize

    if (chosen.source is None) != (chosen.action == "list"):
        raise UsageError("labutils recipe list | show RECIPE | import FILE_OR_NAME [-o YAML]")
    if chosen.action == "list":
        listed = {name: recipe.about for name, recipe in quantize.PRESETS.items()}
        width = max(map(len, listed))
        print(
            json.dumps(listed, indent=2)
            if chosen.json
            else "\n".join(f"{name:<{width}}  {about}" for name, about in listed.items())
        )
        return 0
    made = (quantize.load_recipe if chosen.action == "show" else quantize.imported)(chosen.source)
    emit(chosen, made)
    if chosen.output:
        getattr(made, "recipe", made).save(chosen.output)
        say(chosen, f"wrote {chosen.output}")
    return 0
