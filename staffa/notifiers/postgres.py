"""Messages over PostgreSQL's LISTEN and NOTIFY, on Oban's channels and in Oban's encoding.

One dedicated connection listens: `<prefix>.oban_insert`, `<prefix>.oban_signal`, and whatever else is asked for.
Sending goes through the instance's pool, and needs neither that connection nor a running notifier.

The notifier proves that it hears: it sends itself a ping right after LISTEN, and whenever it has heard nothing for
a while. When a ping does not arrive, the connection is half-open, and is replaced; when none arrives on a fresh
connection either, LISTEN cannot work here (as behind a pooler in transaction mode), and the instance polls. The
pings have a channel of their own, `<prefix>.staffa_ping`, and not Oban's `oban_sonar`: a lone Elixir node that
hears another on that one stops polling its queues.

A channel's name that would be longer than the server's 63 bytes (NOTIFY refuses it, LISTEN cuts it off) is
replaced by `staffa_` and the first 32 digits of its SHA-256; Oban cannot use such a prefix at all.
"""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

from staffa import backoff, clock, telemetry
from staffa.engine import Notice
from staffa.errors import DatabaseError
from staffa.notifier import Channel, Listener, Payload
from staffa.notifiers import ears
from staffa.notifiers.encoding import Unreadable, decode, encode
from staffa.notifiers.limiter import Limiter
from staffa.service import Service, _is_cancelled

__all__ = ["Connection", "PostgresNotifier", "Status", "channel_name"]

log = logging.getLogger("staffa.notifiers")

Status: TypeAlias = Literal["starting", "listening", "reconnecting", "polling"]

# Listened to from the start, so that a queue misses nothing between its first claim and a LISTEN of its own.
ALWAYS: frozenset[Channel] = frozenset({"insert", "signal"})

# Not a channel of the database: where those who want to look after a gap are kept among the ears.
GAP: Channel = "staffa.gap"

# Bytes of an identifier; PostgreSQL's NAMEDATALEN less one.
MAX_NAME = 63

# So many pings in a row without an answer, the last of them on a fresh connection: LISTEN does not work here.
DEAF_AFTER = 2


class Connection(Protocol):
    """What is needed of a connection that listens; asyncpg's has it."""

    async def add_listener(self, channel: str, callback: Callable[..., Any]) -> None:
        """LISTEN, and call back with the connection, the sender's pid, the channel and the text."""
        ...

    def add_termination_listener(self, callback: Callable[..., Any]) -> None:
        """Call back when the connection has ended."""
        ...

    async def close(self, *, timeout: float | None = None) -> None:
        """End it politely."""
        ...

    def terminate(self) -> None:
        """End it at once."""
        ...


class _Silent(Exception):
    """A ping was sent and not heard."""


class _Line:
    """A connection that listens, from when it is opened until it is lost."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.channels: set[Channel] = set()
        self.lost = False
        self.proven = False
        self.pong = ""
        self.heard_at = clock.monotonic()


class PostgresNotifier(Service):
    """A notifier for the instances that share a database and a prefix, Oban's among them.

    Args:
        instance: The instance's name.
        prefix: The schema of the tables; None for `public`.
        connect: Opens a connection in the running event loop, outside of any pool.
        send: Sends texts on a channel of the database, through the pool.
        node: The node's name; messages with an `ident` are for `<instance>.<node>`, or for others.
        topic: Names the database within this process: what is not heard from there is told here.
        is_ours: Whether a backend of the server (its pid) serves this instance. Then what it sends is told here at once,
            and its echo is not heard.
        enabled: Whether anything is sent and heard at all; else this process's listeners are told, and no others.
        window: Seconds in which other processes are told once that a queue has jobs, default 0.003.
        ping_every: Seconds without a message after which it asks itself whether it still hears, default 15.
    """

    # Seconds: what `start` leaves to the first try; a connection to open and LISTEN; a ping to be sent, and heard.
    start_within, open_within, send_within, pong_within = 1.0, 10.0, 5.0, 5.0
    # Seconds: the first pause before a new connection, the longest one, and the one when LISTEN does not work here.
    pause, longest_pause, deaf_pause = 0.25, 3.0, 180.0
    # Seconds that a stop leaves to messages that are due, and to the connection's polite end.
    stop_within = 1.0

    def __init__(
        self,
        instance: str,
        prefix: str | None,
        connect: Callable[[], Awaitable[Connection]],
        send: Callable[[str, Sequence[str]], Awaitable[None]],
        *,
        node: str,
        topic: str,
        is_ours: Callable[[int], bool] | None = None,
        enabled: bool = True,
        window: float = 0.003,
        ping_every: float = 15.0,
    ) -> None:
        super().__init__(f"notifier {instance}")
        self.instance, self.prefix, self.node = instance, prefix, node
        self.ident = f"{instance}.{node}"
        self.topic = f"{topic}#{prefix or 'public'}"
        self.enabled = enabled
        self.ping_every = ping_every
        self.status: Status = "starting"
        self._connect, self._send, self._is_ours = connect, send, is_ours
        self._limiter = Limiter(window, self._wake)
        self._channels = ALWAYS
        self._token = secrets.token_hex(8)
        self._pings = self._silences = self._failures = 0
        self._stirred = asyncio.Event()
        self._settled = asyncio.Event()
        self._complained: set[str] = set()

    @property
    def hears(self) -> bool:
        """Whether what it sends comes back to it: it listens, has heard itself, and does not ignore its own echo."""
        return self.status == "listening" and self._is_ours is None

    def channel(self, channel: Channel) -> str:
        """A channel's name in the database: `insert` is `public.oban_insert`."""
        return channel_name(self.prefix, f"oban_{channel}")

    # Listening.

    def listen(self, channel: Channel, listener: Listener) -> Callable[[], None]:
        """Call `listener` in the running event loop with messages for everyone or for us; returns how to stop that."""

        def hear(payload: Payload) -> None:
            if payload.get("ident") in (None, "any", self.ident):
                listener(payload)

        unlisten = ears.listen(self.topic, channel, hear, self)
        if channel not in self._channels:
            self._channels |= {channel}
            self._stir()
        return unlisten

    def on_gap(self, look: Callable[[], None]) -> Callable[[], None]:
        """Call `look` after each LISTEN, for messages may have been missed before it; returns how to stop that."""
        return ears.listen(self.topic, GAP, lambda _: look(), self)

    # Sending.

    async def notify(self, channel: Channel, payloads: Sequence[Payload]) -> None:
        """Send messages; who does not hear them from the database, and is in this process, is told here.

        When the database cannot be reached it logs that: what the messages tell of has been stored, and is found by
        looking.

        Raises:
            InvalidOption: A message is too long.
        """
        texts = [encode(payload) for payload in payloads]
        self._tell_deaf(channel, payloads)
        if not texts or not self.enabled:
            return
        data = {"instance": self.instance, "channel": channel, "payloads": list(payloads)}
        try:
            with telemetry.span("notifier.notify", data):
                await self._send(self.channel(channel), texts)
        except DatabaseError as error:
            log.warning("a message for %r could not be sent: %s", channel, error)

    def tell(self, channel: Channel, payloads: Sequence[Payload]) -> None:
        """Tell the listeners of this process, and nobody else."""
        ears.tell(ears.of(self.topic, channel), payloads)

    def notice(self, queues: Collection[str]) -> Notice | None:
        """What an insert shall send within a transaction of the user's: nobody knows when that one commits."""
        if not queues or not self.enabled:
            return None
        return Notice(self.channel("insert"), [encode({"queue": queue}) for queue in queues])

    @contextmanager
    def waking(self, queues: Collection[str]) -> Generator[Notice | None]:
        """Around an insert that commits by itself: yields what it shall send.

        That leaves out the queues that were woken a moment ago. They are woken again when their window ends, counted
        from the end of the block, so that the jobs are there to be found.

        Example:
            ```python
            with notifier.waking(["mail", "media"]) as notice:
                await run(engine.insert_jobs(jobs, notice))
            ```
        """
        now = self._limiter.now(queues) if self.enabled else []
        later = [queue for queue in queues if queue not in now]
        try:
            yield self.notice(now)
        except BaseException:
            later = list(
                queues
            )  # it may have been stored all the same, and others may have counted on its notice
            raise
        finally:
            if self.enabled:
                self._limiter.later(later)
            self._tell_deaf("insert", [{"queue": queue} for queue in queues])

    async def flush(self) -> None:
        """Send at once what waits for the end of its window."""
        await self._limiter.flush()

    async def _wake(self, queues: Collection[str]) -> None:
        await self.notify("insert", [{"queue": queue} for queue in queues])

    # Starting and stopping.

    async def start(self) -> None:
        """Begin to listen. It returns when that is settled or takes long; it goes on trying by itself."""
        if not self.enabled:
            self._switch("polling")
            return
        if not self._runs_here():
            self._stirred, self._settled = asyncio.Event(), asyncio.Event()
            self._silences = self._failures = 0
            self.status = "starting"
            await super().start()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.start_within):
                await self._settled.wait()

    async def stop(self) -> None:
        """Send what is due, and listen no more; within a few seconds, whatever the server does."""
        try:
            async with asyncio.timeout(self.stop_within):
                await self.flush()
        except Exception as error:  # whatever it is, the rest must be stopped
            log.warning("queues were not woken once more: %s", str(error) or type(error).__name__)
        await self._limiter.stop()
        await super().stop()

    async def halt(self, task: "asyncio.Task[None]") -> None:
        """Cancel it; it closes its connection, and is left alone if that takes too long."""
        task.cancel()
        _, hanging = await asyncio.wait([task], timeout=2 * self.stop_within)
        if hanging:
            log.warning("%s does not end, and is left alone", self.name)

    async def closed(self) -> None:
        """It is as if it had never been started."""
        self.status = "starting"

    async def run(self) -> None:
        """Hold one line after the other."""
        while True:
            try:
                await self._hold()
            except _Silent:
                self._silences += 1
                self._say_if_deaf()
            except (Exception, asyncio.CancelledError) as error:  # drivers raise anything while a server ends
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                level = logging.DEBUG if self._failures else logging.WARNING
                log.log(level, "%s cannot listen: %s", self.instance, str(error) or type(error).__name__)
            deaf = self._silences >= DEAF_AFTER
            self._switch("polling" if deaf else "reconnecting")
            self._settled.set()
            await asyncio.sleep(self._next_pause(deaf))

    def _next_pause(self, deaf: bool) -> float:
        if deaf:  # sooner at first: perhaps the machine was only overloaded
            longest = backoff.exponential(self._silences - DEAF_AFTER, mult=self.deaf_pause / 16, max_pow=4)
            return backoff.jitter(longest)
        longest = min(backoff.exponential(self._failures, mult=self.pause), self.longest_pause)
        self._failures += 1
        return backoff.jitter(longest, "dec", 1.0 if self._failures == 1 else 0.5)

    def _say_if_deaf(self) -> None:
        if self._silences == DEAF_AFTER:
            log.warning(
                "%s cannot hear PostgreSQL's notifications here, as behind a pooler in transaction mode, and polls "
                "instead. Everything works; start workers with a URL that goes past the pooler, and jobs start sooner",
                self.instance,
            )
        elif self._silences < DEAF_AFTER:
            log.info("%s does not hear itself any more, and connects anew", self.instance)

    # One line.

    async def _hold(self) -> None:
        """Open a line, and keep it until it is lost, or is silent."""
        async with asyncio.timeout(self.open_within):
            line = _Line(await self._connect())
        try:
            line.connection.add_termination_listener(partial(self._on_lost, line))
            await self._keep(line)
        finally:
            await self._close(line)

    async def _keep(self, line: _Line) -> None:
        while not line.lost:
            await self._listen_to_new(line)
            pause = await self._check(line)
            await self._until(lambda: line.lost or not self._channels <= line.channels, pause)

    async def _listen_to_new(self, line: _Line) -> None:
        new = self._channels - line.channels
        if not new:
            return
        async with asyncio.timeout(self.open_within):
            if not line.channels:
                ping = channel_name(self.prefix, "staffa_ping")
                await line.connection.add_listener(ping, partial(self._on_ping, line))
            for channel in new:
                await line.connection.add_listener(
                    self.channel(channel), partial(self._on_message, line, channel)
                )
        line.channels |= new
        ears.tell([ear for ear in ears.of(self.topic, GAP) if ear.owner is self], [{}])

    async def _check(self, line: _Line) -> float:
        """Make sure that it hears; returns the seconds until that must be asked again."""
        quiet = clock.monotonic() - line.heard_at
        if line.proven and quiet < self.ping_every:
            return backoff.jitter(self.ping_every - quiet, "inc")
        if not await self._ping(line):
            return backoff.jitter(min(self.ping_every, 1.0))
        if not line.proven:
            line.proven = True
            self._silences = self._failures = 0
            self._switch("listening")
            self._settled.set()
        return backoff.jitter(self.ping_every)

    async def _ping(self, line: _Line) -> bool:
        """Whether it hears itself; False also when nothing could be sent, or the line was lost: that proves nothing."""
        self._pings += 1
        token = f"{self._token}.{self._pings}"
        try:
            async with asyncio.timeout(self.send_within):
                await self._send(channel_name(self.prefix, "staffa_ping"), [encode({"token": token})])
        except Exception as error:  # as when the database is away
            log.debug("%s cannot ping itself: %s", self.instance, str(error) or type(error).__name__)
            return False
        await self._until(lambda: line.lost or line.pong == token, self.pong_within)
        if line.pong == token:
            return True
        if line.lost:
            return False
        raise _Silent

    async def _close(self, line: _Line) -> None:
        """Politely when we stop; else at once, for the other side may be gone."""
        line.lost = True
        try:
            if self._halting:
                with suppress(Exception):
                    await line.connection.close(timeout=self.stop_within)
        finally:
            with suppress(RuntimeError):  # the event loop was closed under it
                line.connection.terminate()

    # What arrives: called by the connection, in its event loop. None of it may raise.

    def _on_message(
        self, line: _Line, channel: Channel, _connection: object, pid: int, _name: str, text: str
    ) -> None:
        line.heard_at = clock.monotonic()
        if self._is_ours is not None and self._is_ours(pid):
            return
        try:
            payload = decode(text, channel)
        except Unreadable as unreadable:
            self._complain(channel, unreadable.kind, text)
        else:
            ears.tell([ear for ear in ears.of(self.topic, channel) if ear.owner is self], [payload])

    def _on_ping(self, line: _Line, _connection: object, _pid: int, _name: str, text: str) -> None:
        line.heard_at = clock.monotonic()
        with suppress(Unreadable):  # anyone may send anything
            token = str(decode(text).get("token"))
            if token.startswith(self._token):  # other nodes' pings only show that the line is alive
                line.pong = token
                self._stirred.set()

    def _on_lost(self, line: _Line, _connection: object) -> None:
        if not line.lost:
            line.lost = True
            if self.status == "listening":
                self._switch("reconnecting")
            self._stirred.set()

    def _complain(self, channel: Channel, kind: str, text: str) -> None:
        level = logging.DEBUG if kind in self._complained else logging.WARNING
        self._complained.add(kind)
        log.log(level, "a message on %r was ignored, for %s: %.80r", self.channel(channel), kind, text)

    # Inside.

    def _tell_deaf(self, channel: Channel, payloads: Sequence[Payload]) -> None:
        ears.tell([ear for ear in ears.of(self.topic, channel) if not ear.owner.hears], payloads)

    def _switch(self, status: Status) -> None:
        if status != self.status:
            self.status = status
            log.info("the notifier of %s is %s", self.instance, status)
            data = {"instance": self.instance, "node": self.node, "status": status}
            telemetry.emit("notifier.switch", data)

    def _stir(self) -> None:
        loop = self._loop
        if loop is not None and self._task is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._stirred.set)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    self._stirred.clear()
                    await self._stirred.wait()


def channel_name(prefix: str | None, channel: str) -> str:
    """The name of a channel in the database; hashed when it would be too long for one."""
    name = f"{prefix or 'public'}.{channel}"
    if len(name.encode()) <= MAX_NAME:
        return name
    return f"staffa_{hashlib.sha256(name.encode()).hexdigest()[:32]}"
