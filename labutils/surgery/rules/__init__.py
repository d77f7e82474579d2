"""The rule book, one module per family of layers."""
