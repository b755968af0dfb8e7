"""Ports and HTTP on the loopback interface."""

from __future__ import annotations

import socket

import requests

HTTP_TIMEOUT = 2.0
"""Seconds one HTTP call to a server of this machine may take."""


def hold_port() -> socket.socket:
    """Reserve a free port while the returned socket is open: until its server listens, seconds may pass.

    The socket does not listen itself, so that the server can.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


def port_of(holder: socket.socket) -> int:
    """Port that a socket of :func:`hold_port` reserves."""
    return int(holder.getsockname()[1])


def direct_session() -> requests.Session:
    """HTTP session that ignores the environment's proxies, which are not meant for the loopback interface."""
    session = requests.Session()
    session.trust_env = False
    return session


def responds(url: str) -> bool:
    """Check whether a GET of ``url`` succeeds within :data:`HTTP_TIMEOUT`."""
    with direct_session() as session:
        try:
            return session.get(url, timeout=HTTP_TIMEOUT).ok
        except requests.RequestException:
            return False
