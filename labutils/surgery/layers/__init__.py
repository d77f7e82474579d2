"""The layers and functions that rules put in, as PyTorch code."""
