"""Framed messages over a stream socket, read by whoever may wait."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from model.contract.framing import FrameSplitter, FramingError
from model.contract.messages import encode

_RECEIVE_BYTES = 1 << 20

Message = TypeVar("Message")


class ConnectionClosed(Exception):
    """The other end went away."""


class Connection(Generic[Message]):
    """Framed messages over a stream socket.

    Args:
        sock: connected; owned from here on.
        decode: reads what the other end writes.
    """

    def __init__(self, sock: socket.socket, decode: Callable[[bytes], Message]) -> None:
        self._socket = sock
        self._poller = select.poll()  # not select(): a server with many clients hands down a descriptor above 1023
        self._poller.register(sock, select.POLLIN)
        self._splitter = FrameSplitter()
        self._decode = decode
        self._messages: list[Message] = []
        self._sending = threading.Lock()

    def receive(self) -> Message:
        """Waits for one message.

        Raises:
            ConnectionClosed: the other end went away.
        """
        while not self._messages:
            self._read()
        return self._messages.pop(0)

    def receive_all(self, *, block: bool) -> list[Message]:
        """Returns all messages that have arrived, after waiting for one if `block` is set.

        Raises:
            ConnectionClosed: the other end went away.
        """
        try:
            while block and not self._messages:
                self._read()
            while self._poller.poll(0):
                self._read()
        except ConnectionClosed:
            if not self._messages:  # else what came before the end counts, and the next call tells of it
                raise
        messages, self._messages = self._messages, []
        return messages

    def wait(self, timeout_s: float | None = None) -> None:
        """Returns when something has arrived, or after the timeout."""
        if not self._messages:
            self._poller.poll(None if timeout_s is None else timeout_s * 1000)

    def send(self, message: msgspec.Struct) -> None:
        """Writes one message, waiting while the other end is behind; any thread may.

        Raises:
            ConnectionClosed: the other end went away.
        """
        try:
            with self._sending:
                self._socket.sendall(encode(message))
        except OSError as e:
            raise ConnectionClosed from e

    def fileno(self) -> int:
        """The descriptor, to be polled for what arrives."""
        return self._socket.fileno()

    def close(self) -> None:
        """Closes this end."""
        self._socket.close()

    def _read(self) -> None:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except OSError as e:
            raise ConnectionClosed from e
        if not data:
            raise ConnectionClosed
        try:
            payloads = self._splitter.push(data)
        except FramingError as e:
            raise ConnectionClosed from e
        self._messages += map(self._decode, payloads)
