"""The layouts of images that a ``.tflite`` may take."""

from typing import Literal

Layout = Literal["nhwc", "nchw"]
