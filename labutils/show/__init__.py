"""Seeing: graphs as static pictures, Netron on this machine only, and the figures of the lab.

`figures` is not imported here, because it needs matplotlib: ``from labutils.show import figures``.
"""

from .graphs.graph_svg import Svg, before_after, subgraph
from .graphs.lab_map import lab_map
from .graphs.netron_server import Panes, Server, panes, serve

__all__ = ["Panes", "Server", "Svg", "before_after", "lab_map", "panes", "serve", "subgraph"]
