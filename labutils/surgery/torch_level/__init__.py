"""Replacing in PyTorch: modules, functions, traced graphs."""
