"""ONNX files: reading, checking and tidying them."""
