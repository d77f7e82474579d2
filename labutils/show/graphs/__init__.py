"""Graphs drawn as SVG, and Netron."""
