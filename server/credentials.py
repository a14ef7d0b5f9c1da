"""What lets a caller in: bearer keys and one Basic user, kept and compared only as hashes.

Apart from auth, so that reading settings does not load a web framework: every command reads them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Credentials:
    """Hashes of what lets a caller in; the secrets themselves are not kept.

    Attributes:
        key_digests: SHA-256 of each bearer key.
        basic_digest: SHA-256 of `user:password`, or None.
    """

    key_digests: tuple[bytes, ...] = ()
    basic_digest: bytes | None = None

    @classmethod
    def from_secrets(cls, api_keys: tuple[str, ...], basic_auth: str | None) -> Credentials:
        """Hashes the secrets.

        Args:
            api_keys: bearer keys.
            basic_auth: `user:password`.
        """
        basic_digest = None if basic_auth is None else _digest(basic_auth.encode())
        return cls(tuple(_digest(key.encode()) for key in api_keys), basic_digest)

    @property
    def required(self) -> bool:
        """Whether callers must show anything at all."""
        return bool(self.key_digests) or self.basic_digest is not None

    def caller(self, authorization: str | None) -> str | None:
        """Names whom an Authorization header lets in, by a hash of the secret; None if nobody.

        However a header spells one secret, the name is the same. The time taken does not depend on how near it came.
        """
        scheme, _, value = (authorization or "").partition(" ")
        secret = value.strip().encode("utf-8", errors="replace")
        matches = []
        if scheme.lower() == "bearer":
            matches += [(key, hmac.compare_digest(_digest(secret), key)) for key in self.key_digests]
        # The published server compared the base64 alone, so its clients may send it as a bearer's.
        if scheme.lower() in ("basic", "bearer") and self.basic_digest is not None:
            try:
                user = base64.b64decode(secret, validate=True)
            except (binascii.Error, ValueError):
                user = b""
            matches.append((self.basic_digest, hmac.compare_digest(_digest(user), self.basic_digest)))
        return next((digest.hex() for digest, is_match in matches if is_match), None)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
