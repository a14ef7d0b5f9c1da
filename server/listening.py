"""Opens the ports before the model is loaded, so that a port in use is told at once."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from model.contract.errors import ConfigError

# Both, whatever the machine's resolver says: clients and browsers try both.
_LOCALHOST = ("127.0.0.1", "::1")
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
# The machine has no such address, or no such address family.
_NO_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_MAX_TRIES = 8


def open_listeners(host: str, port: int, *, send_timeout_s: float) -> list[socket.socket]:
    """Binds every address of a host, all to the same port.

    Args:
        host: a name or an address; `localhost` is IPv4 and IPv6, where the machine has both.
        port: 0 lets the system choose.
        send_timeout_s: how long a client may leave its reply unread.

    Raises:
        ConfigError: nothing can listen there; the message says what to change.
    """
    addresses = _resolve(host, port)
    for tries_left in reversed(range(_MAX_TRIES)):
        try:
            return _bind_all(addresses, port, send_timeout_s)
        except OSError as error:
            # The port that the system chose for one address may be in use on the other.
            if port == 0 and error.errno == errno.EADDRINUSE and tries_left:
                continue
            raise ConfigError(f"cannot listen on {host}:{port}: {_advice(error, host)}") from error
    raise AssertionError("the last try returns or raises")


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    found: dict[tuple[socket.AddressFamily, str], None] = {}
    for name in _LOCALHOST if host.lower() == "localhost" else (host,):
        try:
            for family, _, _, _, address in socket.getaddrinfo(
                name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                found[family, str(address[0])] = None
        except (OSError, UnicodeError) as error:
            if host.lower() == "localhost":
                continue
            reason = error.strerror if isinstance(error, OSError) else "not a host name"
            raise ConfigError(
                f"cannot listen on {host}: there is no such address ({reason}); --host takes one of this machine's,"
                " such as 127.0.0.1, or 0.0.0.0 for all"
            ) from error
    return list(found)


def _bind_all(addresses: list[tuple[socket.AddressFamily, str]], port: int, timeout_s: float) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    with contextlib.ExitStack() as opened:
        for family, address in addresses:
            try:
                listener = _bind(family, address, port, timeout_s, only_v6=len(addresses) > 1)
            except OSError as error:
                if error.errno not in _NO_ADDRESS:
                    raise
                missing = error
                continue
            listeners.append(opened.enter_context(listener))
            port = listener.getsockname()[1]
        if not listeners:
            raise missing or OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        opened.pop_all()
    return listeners


def _bind(family: socket.AddressFamily, address: str, port: int, timeout_s: float, *, only_v6: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and only_v6:  # the other family has a socket of its own
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Connections inherit it: the kernel ends those whose client acknowledges nothing, also when the server has
            # closed them. It counts from the client's last read, HttpProtocol from when the kernel's buffer is full.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * timeout_s))
        listener.bind((address, port))
        listener.listen()  # until then, another server could bind it too
    except BaseException:
        listener.close()
        raise
    return listener


def _advice(error: OSError, host: str) -> str:
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        by_make = ", as in `make serve PORT=8001`" if "MAKELEVEL" in os.environ else ""
        return f"{reason}; choose another --port{by_make}"
    if error.errno in _NO_ADDRESS:
        return f"{host} is not an address of this machine; --host takes one that is, or 0.0.0.0 for all"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{reason}; ports below 1024 need rights: choose a higher --port"
    return reason


def addresses_of(listeners: list[socket.socket], scheme: str) -> list[str]:
    """Returns the URL of each listener; `scheme` is http or https."""
    return [_url(scheme, *listener.getsockname()[:2]) for listener in listeners]


def address_to_open(listeners: list[socket.socket], scheme: str) -> str:
    """Returns a URL of the first listener for users of this machine; `scheme` is http or https."""
    host, port = listeners[0].getsockname()[:2]
    return _url(scheme, _ANY_ADDRESS.get(host, host), port)


def _url(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
