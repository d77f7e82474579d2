"""Commands that look after the lab: doctor, lab, reset, room, cache, photographs, pack, unpack."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .options import command, emit, say


def add(commands: Any) -> None:
    """Add the parsers of these commands."""
    _doctor_parser(commands)
    _lab_parser(commands)
    _reset_parser(commands)
    _room_parser(commands)
    _cache_parser(commands)
    _photographs_parser(commands)
    _pack_parsers(commands)


def _doctor_parser(commands: Any) -> None:
    command(commands, "doctor", _doctor, "Probe this machine: what runs, what is missing.")


def _lab_parser(commands: Any) -> None:
    text = "Copy the notebooks into FOLDER, where yours are kept, and open JupyterLab on them."
    parser = command(commands, "lab", _lab, text)
    where = "notebooks/my in a checkout; else the current folder if they are there, or edge_lab"
    parser.add_argument("folder", type=Path, metavar="FOLDER", nargs="?", help=where)
    parser.add_argument("--port", type=int, help="the first port to try (8888)")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")


def _reset_parser(commands: Any) -> None:
    text = "Put the original of a notebook back; yours is kept beside it as a backup."
    parser = command(commands, "reset", _reset, text)
    parser.add_argument("number", metavar="NN", help="the notebook's number, such as 03")
    where = "where your copies are (as for `lab`)"
    parser.add_argument("--folder", type=Path, help=where)


def _room_parser(commands: Any) -> None:
    text = "Read the progress files of a room: who passed what. Nothing is sent anywhere."
    parser = command(commands, "room", _room, text)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds the .jsonl files")


def _cache_parser(commands: Any) -> None:
    text = "List what is in the cache, or delete it: what can be made again, or --all."
    parser = command(commands, "cache", _cache, text)
    parser.add_argument("action", choices=("list", "clear"))
    parser.add_argument("names", metavar="NAME", nargs="*", help="clear only these folders")
    everything = "clear training states and progress too, and the cache folder and locks themselves"
    parser.add_argument("--all", action="store_true", help=everything)
    parser.add_argument("--yes", action="store_true", help="clear without asking")


def _photographs_parser(commands: Any) -> None:
    text = "Download a published set of photographs, for --data NAME; or list the sets."
    parser = command(commands, "photographs", _photographs, text)
    parser.add_argument("name", metavar="NAME", nargs="?", help="imagenette or oxford-pets")


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


def _photographs(chosen: argparse.Namespace) -> int:
    """Fetch a set, or say which there are and which are here."""
    from ..images import photographs

    if chosen.name:
        found = photographs.download(chosen.name)
        say(chosen, f"{found}: checked by the MD5 that torchvision publishes (there is no SHA-256)")
        say(chosen, f"use it with --data {chosen.name}")
        if chosen.json:
            print(json.dumps({"name": chosen.name, "folder": str(found)}))
        return 0
    here = {name: photographs.place_of(name).is_dir() for name in photographs.SETS}
    if chosen.json:
        print(json.dumps(here))
        return 0
    for name, known in photographs.SETS.items():
        print(f"{name:<12} {'here   ' if here[name] else 'not here'}  {known.about}")
    return 0


def _doctor(chosen: argparse.Namespace) -> int:
    from ..machine import doctor

    diagnosis = doctor.examine()
    emit(chosen, diagnosis)
    return 0 if diagnosis.ok else 1


def _lab(chosen: argparse.Namespace) -> int:
    from ..lab import lab_server, notebooks

    if chosen.port is not None and not 1 <= chosen.port <= 65535:
        raise UsageError(f"--port {chosen.port} is not a port: pass one from 1 to 65535.")
    copies = notebooks.checkout(chosen.folder)
    emit(chosen, copies)
    lab_server.serve(copies.folder, chosen.port, browser=not chosen.no_browser)
    return 0


def _reset(chosen: argparse.Namespace) -> int:
    from ..lab import notebooks

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
    from ..lab import classroom

    emit(chosen, classroom.read_room(chosen.folder))
    return 0


def _cache(chosen: argparse.Namespace) -> int:
    from ..machine import disk_cache

    listing = chosen.action == "list" and (chosen.names or chosen.all or chosen.yes)
    if listing or (chosen.names and chosen.all):
        raise UsageError("labutils cache list | clear [NAME ... | --all] [--yes]")
    if chosen.action == "list":
        emit(chosen, disk_cache.survey())
        return 0
    part = disk_cache.chosen(chosen.names, everything=chosen.all)
    if part.entries and not chosen.yes:
        say(chosen, part)
        if not _agreed():
            say(chosen, "Nothing was deleted.")
            return 0
    emit(chosen, disk_cache.clear(part, everything=chosen.all))
    return 0


def _agreed() -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("This would delete what is listed above. Pass --yes to do it.")
    print("Delete this? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _pack(chosen: argparse.Namespace) -> int:
    from ..machine import pack

    settings = {"index": chosen.index, "echo": lambda line: say(chosen, line)}
    emit(chosen, pack.collect(chosen.folder, chosen.extra, **settings))
    return 0


def _unpack(chosen: argparse.Namespace) -> int:
    from ..machine import pack

    emit(chosen, pack.unpack(chosen.folder))
    return 0
