"""Closes sockets to everything but Unix domain sockets, and to the loopback range on request."""

import socket
from collections.abc import Callable
from typing import Any

LOOPBACK = ("127.", "localhost", "::1")
METHODS = ("connect", "connect_ex", "sendto", "bind")


class NetworkBlockedError(RuntimeError):
    """Raised instead of any connection."""


def _refuse(what: str, host: object) -> None:
    raise NetworkBlockedError(
        f"{what} to {host!r} is blocked in tests. Use local data, or mark the test `network` (a real connection) "
        "or `loopback` (this machine only)."
    )


def _allowed(family: int, host: object, loopback: bool) -> bool:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True
    return loopback and isinstance(host, str) and host.startswith(LOOPBACK)


def block(setattr_fn: Callable[[Any, str, Any], None] = setattr, *, loopback: bool = False) -> None:
    """Replace the ways out of the process; `setattr_fn` is `monkeypatch.setattr` where it has to be undone."""
    for method in METHODS:
        original = getattr(socket.socket, method)

        def guarded(self: socket.socket, *args: Any, _original: Any = original, _method: str = method) -> Any:
            address = args[-1]
            host = address[0] if isinstance(address, tuple) else address
            if not _allowed(self.family, host, loopback):
                _refuse(f"socket.{_method}", host)
            return _original(self, *args)

        setattr_fn(socket.socket, method, guarded)

    original_getaddrinfo = socket.getaddrinfo

    def getaddrinfo(host: object, *args: Any, **kwargs: Any) -> Any:
        if not _allowed(socket.AF_INET, host, loopback):
            _refuse("looking up an address", host)
        return original_getaddrinfo(host, *args, **kwargs)  # type: ignore[arg-type]

    setattr_fn(socket, "getaddrinfo", getaddrinfo)
