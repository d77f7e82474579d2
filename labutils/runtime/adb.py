"""adb: the phones that are attached, and one command at a time to one of them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..errors import LabError, MissingToolError, UsageError

TIMEOUT = 300.0  # seconds for one command
SDK = "$QNN_SDK_ROOT"


class DeviceError(LabError):
    """No phone can be used: none is attached, it does not allow it, or has another chip."""


class PhoneRunError(LabError):
    """A command failed on the way to or on the phone, or what came back is not what was asked for.

    Attributes
    ----------
    command
        The command as a list, empty when no single one is to blame.
    """

    def __init__(self, message: str, command: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.command = command


@dataclass(frozen=True)
class Step:
    """One command, as the list that `subprocess` gets, and what it is for."""

    purpose: str
    command: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(word if _plain(word) else shlex.quote(word) for word in self.command)

    def __repr__(self) -> str:
        return str(self)


def missing() -> tuple[str, ...]:
    """Return what this machine lacks for a phone, one sentence each; empty when nothing."""
    lacks = []
    if shutil.which("adb") is None:
        lacks.append("adb is not on PATH: install Android's platform tools.")
    root = os.environ.get("QNN_SDK_ROOT")
    if not root:
        lacks.append(
            "QNN_SDK_ROOT is not set: get Qualcomm's QNN SDK (QAIRT), accept its licence, unpack "
            "it, and set QNN_SDK_ROOT to its folder."
        )
    elif not Path(root).is_dir():
        lacks.append(f"QNN_SDK_ROOT is {root}, and there is no such folder.")
    return tuple(lacks)


def devices() -> dict[str, str]:
    """Return the attached phones: serial number -> state, as ``adb devices`` lists them.

    Raises
    ------
    MissingToolError
        There is no adb.
    PhoneRunError
        adb itself failed.
    """
    listed = call(Step("list the phones", ("adb", "devices")))
    pairs = (line.split("\t") for line in listed.splitlines() if "\t" in line)
    return {serial.strip(): state.split()[0] for serial, state, *_ in pairs}


def choose(serial: str | None = None) -> str:
    """Return the serial number of the phone to use.

    Parameters
    ----------
    serial
        Which one, when several are attached; default is ``ANDROID_SERIAL``, then the only one.

    Raises
    ------
    DeviceError
        None is attached, or it has not allowed this computer.
    UsageError
        Several are attached and none was named.
    """
    found = devices()
    serial = serial or os.environ.get("ANDROID_SERIAL")
    if not found:
        raise DeviceError(
            "adb sees no phone. Plug it in, and switch USB debugging on (Settings, developer "
            "options). A charge-only cable will not work."
        )
    if serial is None and len(found) > 1:
        raise UsageError(f"Several phones are attached: name one, serial= of {', '.join(found)}.")
    serial = serial or next(iter(found))
    if serial not in found:
        raise DeviceError(f"No phone {serial} is attached; adb sees {', '.join(found)}.")
    if found[serial] == "unauthorized":
        raise DeviceError(
            f"Phone {serial} has not allowed this computer: unlock it and accept its prompt "
            "about USB debugging."
        )
    if found[serial] != "device":
        raise DeviceError(f"Phone {serial} is {found[serial]}: plug it in again, or restart it.")
    return serial


def quoted(*words: str) -> str:
    """Return one string that the phone's shell splits into exactly these words."""
    return shlex.join(words)


def _plain(word: str) -> bool:
    return word.startswith(SDK) or word == shlex.quote(word)


def call(step: Step) -> str:
    """Run one command and return its standard output.

    Raises
    ------
    MissingToolError
        There is no adb.
    PhoneRunError
        The command failed, or did not end within `TIMEOUT`.
    """
    try:
        done = subprocess.run(
            step.command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=TIMEOUT,
        )  # fmt: skip
    except FileNotFoundError:
        raise MissingToolError(missing()[0]) from None
    except subprocess.TimeoutExpired:
        text = f"To {step.purpose}: no answer within {TIMEOUT:g} s from: {step}"
        raise PhoneRunError(text, step.command) from None
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-8:]
        tail = "".join(f"\n  | {line[:300]}" for line in said)
        raise PhoneRunError(
            f'Exit code {done.returncode} in the step "{step.purpose}": {step}{tail}',
            step.command,
        )
    return done.stdout
