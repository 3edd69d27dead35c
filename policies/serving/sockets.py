"""Options of TCP connections, on either side."""

from __future__ import annotations

import socket

KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # s, s, times


def keep_alive(connection: socket.socket) -> None:
    """Send at once, and notice within a minute that the other side is not there any more: the kernel asks it,
    not we, so that a process that thinks or is stopped stays connected."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
