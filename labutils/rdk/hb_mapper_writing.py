"""hb_mapper's YAML and calibration folder, written from what the lab knows; read back equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import located_yaml, paths
from ..errors import UsageError, counted
from ..images import data
from . import hb_mapper

_MOST_NORMALISED = 3.0  # white with ImageNet's mean and std is 2.64; pictures of 0..255 reach more
FEWEST, MOST = 20, 1000
"""Calibration pictures; D-Robotics recommends about 100."""


@dataclass(frozen=True)
class Plan:
    """What an hb_mapper YAML is written from.

    Attributes
    ----------
    onnx_model
        Path of the network as the YAML names it.
    prefix
        Of the files that the tool will write.
    preprocessing
        Of the network's input, RGB or gray.
    nodes
        Name -> `hb_mapper.Node`: 16 bits, or the CPU.
    calibration_type
        ``default``, ``mix``, ``kl`` or ``max``.
    max_percentile
        Of ``max``; None leaves it out.
    per_channel
        Whether feature maps have a range per channel; None leaves it out.
    input_type_rt, input_space_and_range
        What the board feeds, gray where the network is of gray; the range is of NV12.
    cal_data_dir
        Folder of calibration as the YAML names it.
    """

    onnx_model: str
    prefix: str
    preprocessing: data.Preprocessing
    nodes: Mapping[str, hb_mapper.Node]
    calibration_type: str = "default"
    max_percentile: float | None = None
    per_channel: bool | None = None
    input_type_rt: str = "nv12"
    input_space_and_range: str = "bt601_video"
    cal_data_dir: str = "calibration_rgb_f32"

    def text(self) -> str:
        """Return the YAML; it is read back before it is returned.

        Raises
        ------
        UsageError
            hb_mapper would not take it; the message names the line.
        """
        written = located_yaml.written(self._content())
        found = hb_mapper.parse(written, f"{self.prefix}.yaml")
        for section, keys in hb_mapper.REQUIRED.items():
            for key in keys:
                if key not in found.values.get(section, {}):
                    raise UsageError(f"{found.file}: {section} needs {key}.")
        return written

    def _content(self) -> dict[str, Any]:
        mean, std = (np.array(v) for v in (self.preprocessing.mean, self.preprocessing.std))
        height, width = data.sides(self.preprocessing.size)
        gray = self.preprocessing.channels == 1
        model: dict[str, Any] = {
            "onnx_model": self.onnx_model, "march": "bayes-e", "layer_out_dump": False,
            "working_dir": self.prefix, "output_model_file_prefix": self.prefix,
        }  # fmt: skip
        if self.nodes:
            model["node_info"] = {name: node.entry() for name, node in self.nodes.items()}
        inputs: dict[str, Any] = {
            "input_type_rt": "gray" if gray else self.input_type_rt,
            "input_type_train": "gray" if gray else "rgb", "input_layout_train": "NCHW",
            "input_shape": f"1x{self.preprocessing.channels}x{height}x{width}",
            "norm_type": "data_mean_and_scale", "mean_value": _row(255 * mean),
            "scale_value": _row(1 / (255 * std)),
        }  # fmt: skip
        if inputs["input_type_rt"] == "nv12":
            inputs["input_space_and_range"] = self.input_space_and_range
        calibration: dict[str, Any] = {
            "cal_data_dir": self.cal_data_dir, "cal_data_type": "float32",
            "preprocess_on": False, "calibration_type": self.calibration_type,
        }  # fmt: skip
        if self.max_percentile is not None:
            calibration["max_percentile"] = self.max_percentile
        if self.per_channel is not None:
            calibration["per_channel"] = self.per_channel
        return {
            "model_parameters": model, "input_parameters": inputs,
            "calibration_parameters": calibration,
            "compiler_parameters": {
                "compile_mode": "latency", "debug": False, "optimize_level": "O3",
            },
        }  # fmt: skip


def _row(figures: np.ndarray) -> str:
    """Return numbers with blanks between them, each as short as it is still the same number."""
    return " ".join(repr(float(figure)) for figure in figures)


def write_calibration(folder: str | Path, pictures: data.ImageSet, channels: int = 3) -> Path:
    """Write pictures as hb_mapper's calibration wants them, and return the folder.

    Each is a file of raw float32, (channels, height, width), pixels 0..255 that nobody has
    normalised: ``norm_type``, ``mean_value`` and ``scale_value`` do that inside the tool.

    Parameters
    ----------
    folder
        It must be new or empty. Its name should end in ``_f32``, by which the tool knows the type
        where the YAML does not say it.
    pictures
        20 to 1,000 of them.
    channels
        3 for RGB, 1 for gray.
    """
    count = len(pictures.images)
    if not FEWEST <= count <= MOST:
        raise UsageError(
            f"{counted(count, 'calibration picture')}: pass {FEWEST} to {MOST:,}; D-Robotics "
            "recommends about 100."
        )
    place = Path(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UsageError(f"{place} exists: name a new folder for the calibration files.")
    pixels = np.asarray(pictures.images)
    pixels = data.luma(pixels) if channels == 1 else pixels
    ending = "gray" if channels == 1 else "rgb"
    with paths.scratch(place.absolute().parent) as made:
        whole = made / "whole"
        whole.mkdir()
        for index, picture in enumerate(pixels):
            planes = np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32)
            planes.tofile(whole / f"{index:05d}.{ending}")
        if place.exists():
            place.rmdir()
        whole.rename(place)
    return place


def folder_of(settings: hb_mapper.Settings, beside: Path) -> Path:
    """Return the folder of calibration files that a YAML names, which lies beside it.

    Raises
    ------
    UsageError
        It names none, or one of pictures, which the tool would scale itself.
    """
    named = settings.get("cal_data_dir")
    if named is None:
        raise UsageError(f"{settings.file} says no cal_data_dir: pass --calibration FOLDER.")
    if settings.get("preprocess_on"):
        raise UsageError(
            f"{settings.file}: preprocess_on: True, so {named} holds pictures that hb_mapper "
            "scales itself, and the lab reads raw files. Pass a folder of those as --calibration: "
            "`labutils rdk prepare` writes them."
        )
    return beside / str(named)


def read_calibration(
    folder: str | Path, settings: hb_mapper.Settings, shape: tuple[int, int, int]
) -> np.ndarray:
    """Return what calibration sees: the folder's pictures, normalised as the YAML says.

    Parameters
    ----------
    folder, settings, shape
        As for `read_pixels`.

    Returns
    -------
    numpy.ndarray
        (n, channels, height, width) float32.
    """
    pixels = read_pixels(folder, settings, shape)
    mean, scale = settings.normalisation(shape[0])
    middle, factor = (np.asarray(v, np.float32)[:, None, None] for v in (mean, scale))
    normalised: np.ndarray = (pixels - middle) * factor
    return normalised


def read_pixels(
    folder: str | Path, settings: hb_mapper.Settings, shape: tuple[int, int, int]
) -> np.ndarray:
    """Return the pictures of a calibration folder, as they are in its files.

    Parameters
    ----------
    folder
        Files of raw float32 or uint8, one picture each.
    settings
        The YAML; without ``cal_data_type`` a name of the folder that ends in ``_f32`` is float32.
    shape
        (channels, height, width) of the network's input.

    Returns
    -------
    numpy.ndarray
        (n, channels, height, width) float32, pixels 0..255 where the YAML normalises.

    Raises
    ------
    UsageError
        There are no files, or one does not have the size of a picture, or they are not pixels in
        the YAML's layout; the message names it.
    """
    place = Path(folder)
    if not place.is_dir():
        raise UsageError(f"There is no calibration folder {place}. Pass --calibration FOLDER.")
    said = settings.get("cal_data_type") or ("float32" if place.name.endswith("_f32") else "uint8")
    kind = np.dtype(said).newbyteorder("<")
    files = sorted(file for file in place.iterdir() if file.is_file())
    if not files:
        raise UsageError(f"{place} holds no calibration files.")
    wanted = int(np.prod(shape)) * kind.itemsize
    planar = settings.get("input_layout_train", "NCHW") == "NCHW"
    found = []
    for file in files:
        if file.stat().st_size != wanted:
            raise UsageError(
                f"{file} has {file.stat().st_size:,} bytes; a picture of "
                f"{' x '.join(map(str, shape))} in {said} has {wanted:,}."
            )
        values = np.fromfile(file, kind).astype(np.float32)
        if settings.get("norm_type") != "no_preprocess":
            _refuse_other_values(values, file)
        turned = values.reshape(*shape[1:], shape[0]).transpose(2, 0, 1)
        found.append(values.reshape(shape) if planar else turned)
    pixels = np.stack(found)
    _refuse_other_pictures(pixels, place, settings, planar)
    return pixels


def _refuse_other_values(values: np.ndarray, file: Path) -> None:
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
        raise UsageError(
            f"{file} does not hold pixels of 0 to 255 (little-endian): they go from "
            f"{values.min():g} to {values.max():g}. Write pictures that nobody has normalised: the "
            "YAML's mean_value and scale_value do that."
        )


def _refuse_other_pictures(
    pixels: np.ndarray, place: Path, settings: hb_mapper.Settings, planar: bool
) -> None:
    """Refuse values that nobody would see as pictures: normalised, or in the other layout.

    In planes, neighbours are alike; where three bytes on are more alike, the channels alternate.
    """
    if not np.isfinite(pixels).all():
        raise UsageError(f"{place} holds values that are not numbers.")
    if settings.get("norm_type") != "no_preprocess" and pixels.max() <= _MOST_NORMALISED:
        raise UsageError(
            f"No pixel of {place} is above {pixels.max():.3g} of 255: its files are normalised "
            "already, or of another byte order. Write pixels of 0 to 255, as `labutils rdk "
            "prepare` does."
        )
    flat = pixels.reshape(len(pixels), -1)
    near, far = (float(np.abs(flat[:, n:] - flat[:, :-n]).mean()) for n in (1, 3))
    if planar and pixels.shape[1] == 3 and far < 0.8 * near:
        raise UsageError(
            f"The files of {place} look like (height, width, channel), and {settings.file} says "
            "input_layout_train NCHW: write one plane after the other."
        )
