"""MobileNetV3 Edge Lab: one module per stage of the journey from PyTorch to an edge accelerator.

Importing the package is light; torch, onnxruntime and the others load where they are used.
"""

import os

# ONNX Runtime's wheel reports its use to Microsoft unless this is set before it loads. The lab
# connects to nobody unasked; who wants the reports sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
