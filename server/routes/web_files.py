"""The files of the chat page and of the reference, read once and kept in memory, with the headers that fence them in.

Knows files and headers; what the page may ask of the server is routes/page.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib import resources

from starlette.datastructures import Headers
from starlette.responses import Response

INDEX = "index.html"
REFERENCE = "docs.html"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing but the page's own files may run or be asked, and the browser itself refuses text as HTML
# (require-trusted-types-for): a reply of the model cannot become markup even if the page had a bug.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    # Kept by the browser but asked about each time: a new version of the server brings a new page at once.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True, slots=True)
class WebFile:
    """One file, ready to send.

    Attributes:
        compressed: `body` after gzip.
        media_type: the Content-Type.
        etag: a hash of `body`.
    """

    body: bytes
    compressed: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, name: str, body: bytes) -> WebFile:
        """Prepares a file; the ending of its name tells the type."""
        media_type = _MEDIA_TYPES["." + name.rpartition(".")[2]]
        etag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'  # weak: it stands for both encodings
        return cls(body, gzip.compress(body, mtime=0), media_type, etag)

    def response(self, request_headers: Headers) -> Response:
        """Returns the reply to a GET or HEAD: the file, compressed where that is accepted, or 304."""
        headers = {**_HEADERS, "ETag": self.etag}
        known = request_headers.get("if-none-match", "")
        if self.etag in (tag.strip() for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        if "gzip" not in request_headers.get("accept-encoding", ""):
            return Response(self.body, media_type=self.media_type, headers=headers)
        headers["Content-Encoding"] = "gzip"
        return Response(self.compressed, media_type=self.media_type, headers=headers)


def load_web_files() -> dict[str, WebFile]:
    """Returns the page's files by name; they are part of the package."""
    folder = resources.files("server") / "web"
    names = sorted(entry.name for entry in folder.iterdir() if "." + entry.name.rpartition(".")[2] in _MEDIA_TYPES)
    return {name: WebFile.of(name, (folder / name).read_bytes()) for name in names}
