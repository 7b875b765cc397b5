"""Connections that take and give nothing: they end, so that they keep nobody else out.

uvicorn ends one that is silent between two requests. Here ends one that sends no whole request in
time, one that sends its body in very many pieces, one that does not fetch its answer, and, where
there are too many, the one that has done neither for longest. And what is logged of all that is a
line a minute.
"""

import asyncio
import logging
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dkuxnet.serve.limits import Limits

log = logging.getLogger("dkuxnet.serve")
LOG_SECONDS = 60.0
MANY_PIECES, SMALL_PIECE = 1000, 128  # of a body, as they arrive; bytes on the average


def guarded(limits: Limits) -> type["Connection"]:
    """The class of connections with these limits, for uvicorn."""
    return type("Limited", (Connection,), {"limits": limits})


class Connection(H11Protocol):
    """uvicorn's, with limits. See the top of this file."""

    limits = Limits()
    _head: asyncio.TimerHandle | None = None  # runs while a request is waited for
    _drain: asyncio.TimerHandle | None = None  # runs while the answer is not fetched
    _pieces = _bytes = 0  # of the body that is being received
    _since = 0.0  # when it began to wait for one of the two

    @property
    def waits(self) -> bool:
        """Whether no request of it is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """Take a connection, in the place of another where there are too many."""
        super().connection_made(transport)
        self._look()
        self._next_event, self.conn.next_event = self.conn.next_event, self._counted  # type: ignore[method-assign]  # h11 has no hook
        most, there = self.limits.connections, self.connections
        if len(there) > most:
            log.warning("more than %d connections at once: the idlest are ended", most)
            others = [each for each in there if isinstance(each, Connection) and each is not self]
            idle = [each for each in others if each.waits or each._drain]
            if idle or len(there) > 2 * most:  # else all are busy, which they are not for long
                min(idle, key=lambda each: each._since, default=self).abort()

    def _counted(self) -> Any:
        """h11's next event, unless it is one of very many small pieces: each costs time."""
        event = self._next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._pieces, self._bytes = self._pieces + 1, self._bytes + len(event.data)
            if self._pieces > MANY_PIECES and self._bytes < SMALL_PIECE * self._pieces:
                log.warning("an upload in pieces of less than %d bytes is ended", SMALL_PIECE)
                self.abort()
                return h11.NEED_DATA
        return event

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        for timer in (self._head, self._drain):
            if timer:
                timer.cancel()
        self._head = self._drain = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """What was written is not fetched: wait for that, but not for ever."""
        super().pause_writing()
        self._since = time.monotonic()
        self._drain = self.loop.call_later(self.limits.silence_seconds, self.abort)

    def resume_writing(self) -> None:
        """It was fetched."""
        if self._drain:
            self._drain.cancel()
            self._drain = None
        super().resume_writing()

    def abort(self) -> None:
        """End at once, with whatever it should still have got."""
        self.connections.discard(self)
        self.transport.abort()

    def _look(self) -> None:
        """Have the timer run while a request is waited for."""
        if not self.waits and self._head:
            self._head.cancel()
            self._head = None
        elif self.waits and not self._head and not self.transport.is_closing():
            self._since = time.monotonic()
            self._head = self.loop.call_later(self.limits.head_seconds, self.abort)


class OnceAMinute(logging.Filter):
    """Lets a message pass once a minute, whatever its arguments are."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, str, object], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        kind = record.exc_info[0] if record.exc_info else None
        key, now = (record.name, str(record.msg)[:40], kind), time.monotonic()
        if now - self._last.get(key, -LOG_SECONDS) < LOG_SECONDS:
            return False
        self._last[key] = now
        return True
