"""Seeing: Netron on this machine only, one private server per model."""

from .netron_server import Panes, Server, panes, serve

__all__ = ["Panes", "Server", "panes", "serve"]
