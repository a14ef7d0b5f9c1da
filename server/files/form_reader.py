"""Reads multipart forms as they come: no file is in memory as a whole, nor in a temporary file."""

from __future__ import annotations

from python_multipart.exceptions import ParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.wire.errors import ApiError

_MAX_PARTS = 32
_MAX_FIELD_BYTES = 4096
_MAX_HEADER_BYTES = 8192
MAX_FILENAME_CHARS = 255


class FormReader:
    """One form with one file.

    Args:
        content_type: the request's header.

    Attributes:
        fields: values of the other fields, by name.
        filename: name of the file; None before it begins.

    Raises:
        ApiError: 400, it is not a multipart form.
    """

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 0 < len(boundary) <= 200:
            raise ApiError(400, "Send a form (multipart/form-data) with the fields 'file' and 'purpose'.")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._name = ""
        self._is_file = False
        self._num_parts = 0
        self._headers: dict[bytes, bytes] = {}
        self._header_name, self._header_value = b"", b""
        self._num_header_bytes = 0
        self._field = bytearray()
        self._file = bytearray()
        self._is_complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def push(self, data: bytes) -> None:
        """Takes the next bytes of the body.

        Raises:
            ApiError: 400, the form is broken, or its other fields are too many or too long.
        """
        try:
            self._parser.write(data)
        except ParseError:
            raise _broken() from None

    def take(self, at_least: int = 0) -> bytes:
        """Returns the bytes of the file since the last call; nothing while they are less than `at_least`."""
        if len(self._file) < at_least:
            return b""
        data = bytes(self._file)
        self._file.clear()
        return data

    def finish(self) -> None:
        """Checks the form when the body has ended.

        Raises:
            ApiError: 400, the form is incomplete or has no file.
        """
        if not self._is_complete:
            raise _broken()
        if self.filename is None:
            raise ApiError(400, "'file': field required.", param="file")

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        self._headers, self._num_header_bytes = {}, 0
        if self._num_parts > _MAX_PARTS:
            raise ApiError(400, f"The form has more than {_MAX_PARTS} fields.")

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += self._header_bytes(data, start, end)

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += self._header_bytes(data, start, end)

    def _header_bytes(self, data: bytes, start: int, end: int) -> bytes:
        self._num_header_bytes += end - start
        if self._num_header_bytes > _MAX_HEADER_BYTES:
            raise _broken()
        return data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name, self._header_value = b"", b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = _text(options.get(b"name", b""))
        # Most readers take a file without a filename for a text; here the field `file` is always the file.
        self._is_file = self._name == "file"
        if self._is_file:
            if self.filename is not None:
                raise ApiError(400, "Send one file at a time.", param="file")
            path = _text(options.get(b"filename", b"")).replace("\\", "/")
            self.filename = path.rpartition("/")[2][:MAX_FILENAME_CHARS] or "file"
        self._field.clear()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._file += data[start:end]
            return
        self._field += data[start:end]
        if len(self._field) > _MAX_FIELD_BYTES:
            raise ApiError(400, f"'{self._name[:64]}' is too long.", param=self._name[:64])

    def _on_part_end(self) -> None:
        if not self._is_file:
            self.fields[self._name] = _text(bytes(self._field))

    def _on_end(self) -> None:
        self._is_complete = True


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def _broken() -> ApiError:
    return ApiError(400, "The form is broken or incomplete; send multipart/form-data with 'file' and 'purpose'.")
