"""Sends a file as batches to a running server, or to one started for it, and writes the results.

The server keeps everything that must survive an interruption; a server started for the file keeps it beside the output
until that is written. Batches name their input and output in their metadata, so a later run finds them again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tools.batch.client import BatchClient, BatchCommandError
from tools.output_file import check_writable

_POLL_S = 0.5
_PLAIN_INTERVAL_S = 10.0
# Limits of one batch: that of the API, and a file small enough to be sent at once.
_MAX_PART_LINES = 50_000
_MAX_PART_BYTES = 64 << 20
_INTERRUPTED = 130


class _Part(NamedTuple):
    """The lines of one batch."""

    url: str
    text: bytes


def run(arguments: argparse.Namespace) -> int:
    """Runs the command.

    Args:
        Returns:
            The exit status: 1 if a line failed.

    Raises:
        StartupError: the input cannot be read, or the output cannot be written.
    """
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("\nqwen-server batch: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return _INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    check_writable(arguments.output)
    if arguments.base_url is not None and (arguments.checkpoint is not None or arguments.server_flags):
        raise BatchCommandError("give either a MODEL to serve or the --base-url of a server")
    ids, parts = _read(arguments.input)
    mark = hashlib.sha256(arguments.output.absolute().as_posix().encode())
    for part in parts:
        mark.update(part.text)
    kept = arguments.output.with_name(arguments.output.name + ".unfinished")
    with _server(arguments, kept) as client:
        batches = client.find_or_create(mark.hexdigest(), [(part.url, part.text) for part in parts])
        batches = _wait(client, batches, arguments.quiet)
        num_failed = _write(client, batches, ids, arguments.output)
        client.clean_up(batches)
    shutil.rmtree(kept, ignore_errors=True)
    if num_failed:
        print(
            f"qwen-server batch: {num_failed} of {len(ids)} lines failed; {arguments.output} says why", file=sys.stderr
        )
    return int(num_failed > 0)


def _read(path: Path) -> tuple[list[str], list[_Part]]:
    """Returns the custom ids of all lines, in order, and the lines grouped into batches."""
    ids: dict[str, None] = {}
    lines: dict[str, list[bytes]] = {}
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    request = json.loads(text)
                    custom_id, url = request["custom_id"], request["url"]
                except (ValueError, KeyError, TypeError) as error:
                    raise BatchCommandError(
                        f'{path}: line {number} is no request {{"custom_id", "method", "url", "body"}}: {error!r}'
                    ) from error
                if custom_id in ids:
                    raise BatchCommandError(
                        f"{path}: line {number}: custom_id {custom_id!r} is that of an earlier line"
                    )
                ids[custom_id] = None
                lines.setdefault(url, []).append(text.strip() + b"\n")
    except OSError as error:
        raise BatchCommandError(f"{path}: {error.strerror or error}") from error
    if not ids:
        raise BatchCommandError(f"{path}: has no lines")
    return list(ids), [part for url, texts in lines.items() for part in _parts(url, texts)]


def _parts(url: str, texts: list[bytes]) -> Iterator[_Part]:
    part: list[bytes] = []
    num_bytes = 0
    for text in texts:
        if part and (len(part) >= _MAX_PART_LINES or num_bytes + len(text) > _MAX_PART_BYTES):
            yield _Part(url, b"".join(part))
            part, num_bytes = [], 0
        part.append(text)
        num_bytes += len(text)
    yield _Part(url, b"".join(part))


@contextlib.contextmanager
def _server(arguments: argparse.Namespace, kept: Path) -> Iterator[BatchClient]:
    """Yields a client of the given server, or of one that is started here and keeps its state in a folder."""
    if arguments.base_url is not None:
        with contextlib.closing(
            BatchClient(arguments.base_url, arguments.api_key or os.environ.get("OPENAI_API_KEY"))
        ) as client:
            yield client
        return
    from tools.chat.own_server import OwnServer

    flags = [*arguments.server_flags, "--store", str(kept / "store.db")]
    own = OwnServer(arguments.checkpoint, flags, purpose="batch", api_key=_key(kept))
    try:
        asyncio.run(own.wait_ready())
        with contextlib.closing(BatchClient(own.url, own.api_key, own.why_it_ended)) as client:
            yield client
    finally:
        own.stop()


def _key(kept: Path) -> str:
    """Returns the key that owns the batches in the store; it is kept, to be the same after an interruption."""
    kept.mkdir(mode=0o700, exist_ok=True)
    path = kept / "key"
    if not path.exists():
        new = path.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(secrets.token_urlsafe(24))
        new.replace(path)
    return path.read_text()


def _wait(client: BatchClient, batches: list[dict[str, Any]], quiet: bool) -> list[dict[str, Any]]:
    """Waits until all batches are over, reporting progress, and returns them."""
    told_at, started, num_before = float("-inf"), time.monotonic(), None
    while True:
        batches = [client.batch(batch["id"]) for batch in batches]
        for batch in batches:
            if batch["status"] == "failed":
                first = batch["errors"]["data"][0]
                line = "" if first["line"] is None else f"line {first['line']} of its part: "
                raise BatchCommandError(f"the server does not take the input: {line}{first['message']}")
        counts = [batch["request_counts"] for batch in batches]
        num_done = sum(count["completed"] + count["failed"] for count in counts)
        num_before = num_done if num_before is None else num_before
        is_over = all(batch["status"] in ("completed", "expired", "cancelled") for batch in batches)
        now = time.monotonic()
        interval = 0.0 if sys.stderr.isatty() else _PLAIN_INTERVAL_S
        if not quiet and (is_over or now - told_at >= interval):
            rate = (num_done - num_before) / max(now - started, 1e-3)
            _tell(num_done, sum(count["total"] for count in counts), rate, is_over)
            told_at = now
        if is_over:
            return batches
        time.sleep(_POLL_S)


def _tell(num_done: int, num_all: int, rate: float, is_over: bool) -> None:
    left = f", {(num_all - num_done) / rate:.0f} s left" if rate and not is_over else ""
    text = f"{num_done} of {num_all} lines, {rate:.1f} lines/s{left}"
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}" + ("\n" if is_over else ""))
    else:
        sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _write(client: BatchClient, batches: list[dict[str, Any]], ids: list[str], output: Path) -> int:
    """Writes all results in the order of the input; returns how many lines failed."""
    results: dict[str, bytes] = {}
    num_failed = 0
    for batch in batches:
        for name in ("output", "error"):
            texts = client.content(batch[f"{name}_file_id"]).split(b"\n")
            found = {json.loads(text)["custom_id"]: text for text in texts if text}
            results |= found
            num_failed += len(found) if name == "error" else 0
    missing = [id for id in ids if id not in results]
    new = output.with_name(output.name + ".new")
    try:
        with new.open("wb") as file:
            file.writelines(results[id] + b"\n" for id in ids if id in results)
            file.flush()
            os.fsync(file.fileno())
        new.replace(output)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise BatchCommandError(f"{output}: {error.strerror or error}") from error
    return num_failed + len(missing)
