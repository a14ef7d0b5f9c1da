"""Where an API is, as users write it, and a client for it. Of the commands that talk to a server."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    import httpx


def parse_address(text: str) -> SplitResult:
    """Reads the address of a server; the scheme may be left out.

    Raises:
        ValueError: it is none; the text says so.
    """
    try:
        url = urlsplit(text if "://" in text else f"http://{text}")
        is_usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number or too large, half an IPv6 address
        is_usable = False
    if not is_usable:
        raise ValueError(f"{text!r} is no address; write it as http://127.0.0.1:8000.")
    return url


def open_client(url: SplitResult, **options: Any) -> httpx.AsyncClient:
    """Returns a client for a server, through the environment's proxy unless the server is on this machine.

    Args:
        options: of the client.

    Raises:
        ValueError: a header or the proxy cannot be used; the text says why.
    """
    import httpx  # here: bench reads addresses too, speaks HTTP by itself and would start twice as slowly

    try:
        return httpx.AsyncClient(trust_env=not _is_local(url.hostname or ""), **options)
    except ImportError as error:
        raise ValueError("the environment names a SOCKS proxy; it needs `pip install 'httpx[socks]'`.") from error
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from error


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
