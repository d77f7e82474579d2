"""LiteRT (TensorFlow Lite): what is in a ``.tflite``, and running it in a child process.

`tflite_file` reads the file, `runner` feeds it, `worker` is the child process that holds Google's
native code, so that a damaged file ends that process and nothing else.
"""

from .availability import Availability, probe, require
from .runner import LiteRtRunner
from .tflite_file import Contents, contents, values

__all__ = ["Availability", "Contents", "LiteRtRunner", "contents", "probe", "require", "values"]
