"""ONNX files: read once and handed on, edited, run in ONNX Runtime, cut into parts."""
