"""The engine as a process of its own: reads messages from a socket, steps, writes what happened.

Started by the server as `python -m model.loop.process --fd N` with one end of a socket pair. The first frame is an
`EngineConfig`; then messages of model/contract/messages both ways. It ends when it is told to, or when the other
end closes: an engine without a server is of no use to anyone.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from model.contract.engine_config import EngineConfig, LoadAdapter
from model.contract.messages import (
    Abort,
    AddRequest,
    EngineFailed,
    LoadProgress,
    Ping,
    Shutdown,
    ToEngine,
    UnloadAdapter,
    decode_to_engine,
)
from model.loop.child_process import configure_logging, die_with_parent, failure_of
from model.loop.connection import Connection, ConnectionClosed

if TYPE_CHECKING:
    from model.loop.engine import Engine
    from model.loop.rank_leader import RankLeader

logger = logging.getLogger(__name__)

_PROGRESS_INTERVAL_S = 0.5


def run(connection: Connection[ToEngine]) -> int:
    """Loads the checkpoint and steps until told to end.

    Returns:
        The exit status of the process.
    """
    # What is imported and loaded stays; a search for garbage in it would take a tenth of a second, now and amid steps.
    gc.disable()
    import_error = _import_engine()  # meanwhile the server finds out what to load
    config = connection.receive()
    assert isinstance(config, EngineConfig)
    configure_logging(config)
    leader: RankLeader | None = None
    what = "the engine failed to start"
    try:
        if import_error is not None:
            raise import_error
        from model.loop.engine import Engine

        if config.tensor_parallel_size * config.pipeline_parallel_size > 1:
            leader = _lead_ranks(config, connection)
        on_progress = _progress_reporter(connection)
        engine = Engine(config, on_progress) if leader is None else Engine(config, on_progress, leader.ranks)
        if leader is not None:
            leader.note_serving()
        gc.freeze()
        gc.enable()
        connection.send(engine.ready)
        what = "the engine failed"
        _serve(engine, connection)
    except ConnectionClosed:
        raise
    except Exception as error:
        failed = failure_of(error, f"{what}: ")
        if not (failed.is_startup_error or failed.wants_restart):
            if leader is not None:
                leader.await_failure()
            logger.error("%s:\n%s", what, traceback.format_exc())
        connection.send(failed)
        return 1
    return 0


def _progress_reporter(connection: Connection[ToEngine]) -> Callable[[int, int], None]:
    last_progress = 0.0

    def report(loaded_bytes: int, total_bytes: int) -> None:
        nonlocal last_progress
        if time.monotonic() - last_progress >= _PROGRESS_INTERVAL_S:
            last_progress = time.monotonic()
            connection.send(LoadProgress(loaded_bytes, total_bytes))

    return report


def _serve(engine: Engine, connection: Connection[ToEngine]) -> None:
    """Steps until told to end."""
    watchdog = engine.watchdog
    watchdog.start()
    try:
        while True:
            watchdog.begin()
            with watchdog.excused():
                waiting_s = engine.waiting_s()
                if waiting_s is not None:
                    connection.wait(waiting_s)
                elif not engine.has_work():
                    connection.wait()
            for message in connection.receive_all(block=not engine.has_work()):
                match message:
                    case AddRequest():
                        engine.add_request(message)
                    case LoadAdapter():
                        engine.load_adapter(message)
                    case UnloadAdapter(adapter_id):
                        engine.unload_adapter(adapter_id)
                    case Abort(seq_ids):
                        engine.abort(seq_ids)
                    case Ping():
                        pass
                    case Shutdown():
                        return
            for news in engine.take_adapter_news():
                connection.send(news)
            # Also after a lone abort or ping: the step is empty then, but tells the other side the new state.
            connection.send(engine.step())
            watchdog.end()
    finally:
        watchdog.stop()


def _import_engine() -> Exception | None:
    """Imports torch and what needs it; returns what went wrong, to be reported to a server that listens."""
    try:
        import model.loop.engine  # noqa: F401
    except Exception as error:
        return error
    return None


def _lead_ranks(config: EngineConfig, connection: Connection[ToEngine]) -> RankLeader:
    from model.loop.rank_leader import RankLeader

    def end(failed: EngineFailed) -> None:
        """Ends this process from the thread that watches the ranks; the loop may wait for one that is gone."""
        logger.error("%s", failed.message)
        with contextlib.suppress(ConnectionClosed):
            connection.send(failed)
        sys.stderr.flush()
        os._exit(1)

    return RankLeader(config, end, connection.close)


def main() -> None:
    """The process's entry point."""
    parser = argparse.ArgumentParser(description="The engine process; started by qwen-server, not by hand.")
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of a connected socket")
    arguments = parser.parse_args()
    # Ctrl-C reaches the whole process group; when to end is the server's decision, told through the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    faulthandler.enable()  # the last words of a crash, which the server repeats
    faulthandler.register(signal.SIGUSR1)  # sent before a hung engine is ended, so that the log says where it hung
    connection = Connection(socket.socket(fileno=arguments.fd), decode_to_engine)
    try:
        status = run(connection)
    except ConnectionClosed:
        status = 0
    sys.stderr.flush()
    # Not sys.exit: tearing down torch's threads takes seconds and can hang after a device fault.
    os._exit(status)


if __name__ == "__main__":
    main()
