"""MobileNetV3 Edge Lab: one module per stage of the journey from PyTorch to an edge accelerator.

Importing the package is light; torch, onnxruntime and the others load where they are used.
"""

__version__ = "0.1.0"
