"""The socket that a server listens on."""

from __future__ import annotations

import socket

from core.errors import UserError


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet; port 0 is any free one.

    Raises:
        UserError: the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise UserError(f"--port={port}", f"cannot be listened on at {host} "
                        f"({(error.strerror or str(error)).lower()})",
                        "choose another --port") from None
    return bound
