"""What lets a caller in: bearer keys and one Basic user, kept and compared only as hashes.

No web framework is imported here: every command reads the settings, which hold credentials.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass

from model.contract.errors import ConfigError

_WEIGHT = re.compile(r"(?s)(.*\S)\s+weight=(.*)")
_MAX_WEIGHT = 1000


@dataclass(frozen=True, slots=True)
class Credentials:
    """Hashes of what lets a caller in; the secrets themselves are not kept.

    Attributes:
        key_digests: SHA-256 of each bearer key.
        basic_digest: SHA-256 of `user:password`, or None.
        key_weights: each key's share, relative to the others', when there is not enough for all.
    """

    key_digests: tuple[bytes, ...] = ()
    basic_digest: bytes | None = None
    key_weights: tuple[int, ...] = ()

    @classmethod
    def from_secrets(cls, api_keys: tuple[str, ...], basic_auth: str | None) -> Credentials:
        """Hashes the secrets.

        Args:
            api_keys: bearer keys, each of which may be followed by ` weight=N`.
            basic_auth: `user:password`.

        Raises:
            ConfigError: a weight is not a number from 1 to 1000.
        """
        basic_digest = None if basic_auth is None else _digest(basic_auth.encode())
        keys = [_split_weight(key) for key in api_keys]
        weights = tuple(weight for _, weight in keys)
        return cls(tuple(_digest(key.encode()) for key, _ in keys), basic_digest, weights)

    @property
    def required(self) -> bool:
        """Whether callers must show anything at all."""
        return bool(self.key_digests) or self.basic_digest is not None

    def weight_of(self, caller: str) -> int:
        """Returns the weight of the key of this name (`caller` returns names)."""
        weights = zip(self.key_digests, self.key_weights, strict=False)
        return next((weight for digest, weight in weights if digest.hex() == caller), 1)

    def knows(self, caller: str) -> bool:
        """Whether the secret of this name (`caller` returns names) still lets in."""
        digests = (*self.key_digests, *(() if self.basic_digest is None else (self.basic_digest,)))
        return any(digest.hex() == caller for digest in digests)

    def caller(self, authorization: str | None) -> str | None:
        """Returns the name of whom an Authorization header lets in, the SHA-256 of the secret in hex; None if nobody.

        The name is the same however a header spells the secret. The time it takes does not depend on how much of a
        wrong secret is right.
        """
        scheme, _, value = (authorization or "").partition(" ")
        secret = value.strip().encode("utf-8", errors="replace")
        matches = []
        if scheme.lower() == "bearer":
            matches += [(key, hmac.compare_digest(_digest(secret), key)) for key in self.key_digests]
        # The published server compared the base64 alone, so its clients may send it as a bearer key.
        if scheme.lower() in ("basic", "bearer") and self.basic_digest is not None:
            try:
                user = base64.b64decode(secret, validate=True)
            except (binascii.Error, ValueError):
                user = b""
            matches.append((self.basic_digest, hmac.compare_digest(_digest(user), self.basic_digest)))
        return next((digest.hex() for digest, is_match in matches if is_match), None)


def _split_weight(key: str) -> tuple[str, int]:
    match = _WEIGHT.fullmatch(key)
    if match is None:
        return key, 1
    digits = match[2]
    if not (digits.isascii() and digits.isdecimal() and 1 <= int(digits[:5]) <= _MAX_WEIGHT):
        raise ConfigError(f"the weight of a key is a number from 1 to {_MAX_WEIGHT}: KEY weight=2")
    return match[1], int(digits)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
