"""Runs a server for the duration of a chat or a batch: on a free port, with its own key and log file.

It runs in a session of its own, so that Ctrl-C does not reach it, and ends when its standard input is closed. So it
ends with the command, even if that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx

from server.run_module import module_command
from tools.chat.errors import ChatError

_LISTENING = re.compile(r"listening on (https?://\S+?:\d+)")
_LOADING = re.compile(r"loading the checkpoint: (\d+%)")
_POLL_S = 0.1
_END_TIMEOUT_S = 15.0
_MOMENT_S = 0.3
# Settings that the command chooses. Inherited ones could lock it out, or hide where the server listens.
_NOT_INHERITED = ("QWEN_SERVER_API_", "QWEN_SERVER_SSL_", "QWEN_SERVER_LOG_")


class OwnServer:
    """A running server.

    Args:
        checkpoint: folder or hub id; None for the default of `qwen-server serve`.
        flags: further flags of `qwen-server serve`.
        purpose: "chat" or "batch", for messages.
        api_key: the only key that the server accepts; None generates one.

    Attributes:
        url: the server's address; empty until `wait_ready`.
    """

    def __init__(
        self, checkpoint: str | None, flags: Sequence[str], purpose: str = "chat", api_key: str | None = None
    ) -> None:
        self.api_key = api_key or secrets.token_urlsafe(24)
        self._purpose = purpose
        self.url = ""
        handle, name = tempfile.mkstemp(prefix=f"qwen-server-{purpose}-", suffix=".log")
        self._log = Path(name)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        environment["QWEN_SERVER_API_KEY"] = self.api_key
        ours = ("--host", "127.0.0.1", "--port", "0", "--drain-delay-s", "0")
        model = [] if checkpoint is None else [checkpoint]
        command = module_command("tools.chat.session_server", *model, *ours, *flags)
        try:
            self._process = subprocess.Popen(
                [*command, "--log-level", "info", "--log-format", "text"],
                stdin=subprocess.PIPE,
                stdout=handle,
                stderr=handle,
                env=environment,
                start_new_session=True,
            )
        finally:
            os.close(handle)

    async def wait_ready(self) -> None:
        """Waits until the server is ready.

        Raises:
            ChatError: it ended; the message has the last line of its log.
        """
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            while not await self._is_ready(http):
                if self._process.poll() is not None:
                    raise ChatError(self._last_words())
                await asyncio.sleep(_POLL_S)

    async def _is_ready(self, http: httpx.AsyncClient) -> bool:
        if not self.url:
            found = _LISTENING.search(self._read_log())
            self.url = found.group(1) if found else ""
        if not self.url:
            return False
        if self.url.startswith("https:"):
            raise ChatError(
                f"The server of this {self._purpose} is told to speak HTTPS (ssl_certfile), which it need not."
                " Leave that out, or start the server apart and give its --base-url."
            )
        try:
            return (await http.get(f"{self.url}/ready")).status_code == 200
        except httpx.HTTPError:
            return False

    def progress(self) -> str:
        """Returns the progress of loading, such as "40%", or an empty text."""
        found = _LOADING.findall(self._read_log())
        return found[-1] if found else ""

    def why_it_ended(self) -> str | None:
        """Returns why the server ended, or None while it runs. Waits a moment, as it may just be ending."""
        try:
            self._process.wait(_MOMENT_S)
        except subprocess.TimeoutExpired:
            return None
        return self._last_words()

    def _read_log(self) -> str:
        with contextlib.suppress(OSError):
            return self._log.read_text(encoding="utf-8", errors="replace")
        return ""

    def _last_words(self) -> str:
        lines = [line for line in self._read_log().splitlines() if line.strip()]
        complaint = lines[-1].strip() if lines else f"exit status {self._process.returncode}"
        complaint = re.sub(r"^(qwen-server|usage|session_server\.py): ", "", complaint)
        return f"The server of this {self._purpose} has ended: {complaint} (its log is {self._log})"

    def stop(self) -> None:
        """Ends the server. Deletes its log unless the server had failed."""
        failed = self._process.poll() not in (None, 0)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not failed:
            self._log.unlink(missing_ok=True)
