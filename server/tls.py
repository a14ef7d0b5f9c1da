"""HTTPS: certificate and key, tried out before the model is loaded."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.contract.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificate and key.

    Attributes:
        certfile: certificate chain, PEM.
        keyfile: private key; None where the chain's file holds it.
        password: decrypts the private key.
    """

    certfile: Path
    keyfile: Path | None = None
    password: str | None = field(default=None, repr=False)

    def uvicorn_options(self) -> dict[str, Any]:
        """Returns arguments of uvicorn.Config."""
        return {
            "ssl_certfile": str(self.certfile),
            "ssl_keyfile": None if self.keyfile is None else str(self.keyfile),
            "ssl_keyfile_password": self.password,
        }


def tls_from_files(certfile: Path | None, keyfile: Path | None, password: str | None) -> Tls | None:
    """Checks that the files can be used; without a certificate returns None, which is plain HTTP.

    Raises:
        ConfigError: a file is missing or not PEM, key and certificate do not belong together, or the password is wrong.
    """
    if certfile is None:
        if keyfile is not None or password is not None:
            raise ConfigError("--ssl-keyfile and its password need --ssl-certfile")
        return None
    if not certfile.is_file():
        raise ConfigError(f"{certfile}: no such certificate file")
    if keyfile is not None and not os.path.isfile(keyfile):  # Path.is_file raises for very long texts
        # Its name is not shown: it may be the key, given by mistake.
        raise ConfigError("--ssl-keyfile: no such key file; it takes the path of one in PEM")
    try:
        # The password is a callback: without one OpenSSL would ask on the terminal.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certfile, keyfile, lambda: password or "")
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or "not PEM, or the wrong password"
        raise ConfigError(f"{certfile}: certificate and key cannot be used ({reason})") from error
    return Tls(certfile, keyfile, password)
