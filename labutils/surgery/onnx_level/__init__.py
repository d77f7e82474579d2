"""Replacing in ONNX graphs."""
