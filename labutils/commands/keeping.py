"""Commands that look after the lab: doctor, reset, room, pack, unpack."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .options import command, emit, say


def add(commands: Any) -> None:
    """Add the parsers of these commands."""
    _doctor_parser(commands)
    _reset_parser(commands)
    _room_parser(commands)
    _pack_parsers(commands)


def _doctor_parser(commands: Any) -> None:
    command(commands, "doctor", _doctor, "Probe this machine: what runs, what is missing.")


def _reset_parser(commands: Any) -> None:
    text = "Put the original of a notebook back; yours is kept beside it as a backup."
    parser = command(commands, "reset", _reset, text)
    parser.add_argument("number", metavar="NN", help="the notebook's number, such as 03")
    parser.add_argument("--folder", type=Path, help="where your copies are (notebooks/my)")


def _room_parser(commands: Any) -> None:
    text = "Read the progress files of a room: who passed what. Nothing is sent anywhere."
    parser = command(commands, "room", _room, text)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds the .jsonl files")


def _pack_parsers(commands: Any) -> None:
    text = "Put all wheels and cached weights into one folder, for a room without a network."
    parser = command(commands, "pack", _pack, text)
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--with", dest="extra", action="append", default=[], metavar="REQUIREMENT")
    text = "index of torch and torchvision (without it: TORCH_INDEX, or PyTorch's CPU index)"
    parser.add_argument("--index", metavar="URL", help=text)
    text = "Check a pack and put its weights into the cache (`make setup PACK=DIR` calls it)."
    parser = command(commands, "unpack", _unpack, text)
    parser.add_argument("folder", metavar="DIR", type=Path)


def _doctor(chosen: argparse.Namespace) -> int:
    from .. import doctor

    diagnosis = doctor.examine()
    emit(chosen, diagnosis)
    return 0 if diagnosis.ok else 1


def _reset(chosen: argparse.Namespace) -> int:
    from .. import notebooks

    name = notebooks.named(chosen.number).name
    untouched = notebooks.untouched(chosen.number, chosen.folder)
    backup = notebooks.reset(chosen.number, chosen.folder)
    if chosen.json:
        print(json.dumps({"notebook": name, "backup": str(backup) if backup else None}, indent=2))
        return 0
    if untouched:
        print(f"Nothing to reset: your copy of {name} is as the lab made it.")
        return 0
    print(f"{name} is as it was made. Close it in JupyterLab and open it again.")
    if backup:
        print(f"Yours: {backup}")
    return 0


def _room(chosen: argparse.Namespace) -> int:
    from .. import classroom

    emit(chosen, classroom.read_room(chosen.folder))
    return 0


def _pack(chosen: argparse.Namespace) -> int:
    from .. import pack

    settings = {"index": chosen.index, "echo": lambda line: say(chosen, line)}
    emit(chosen, pack.collect(chosen.folder, chosen.extra, **settings))
    return 0


def _unpack(chosen: argparse.Namespace) -> int:
    from .. import pack

    emit(chosen, pack.unpack(chosen.folder))
    return 0
