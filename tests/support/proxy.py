"""A network that a test can spoil: a TCP proxy on loopback between a client and a PostgreSQL server."""

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from tests.support.servers import free_port

__all__ = ["Proxy"]

T = TypeVar("T")

# The first messages of a connection have no type, but a code: two that ask for encryption, and one that cancels.
SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
ANSWERS_WITHIN = 30.0

# Close with a reset, as a machine does that has forgotten the connection.
RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Goes between a client and the server of `url`; clients use `proxy.url`.

    It lives in a thread and a loop of its own, so it works whatever the test's loop does. Encryption is declined, so
    that it can read along.

        with Proxy(server.url) as proxy:
            connection = await asyncpg.connect(proxy.url)
            proxy.cut()
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._port = free_port()
        account = parts.netloc.rpartition("@")[0]
        place = f"{account}@127.0.0.1:{self._port}" if account else f"127.0.0.1:{self._port}"
        self.url = urlunsplit(parts._replace(netloc=place))
        self.made = 0
        """How many connections clients have made so far, those that only cancel a statement among them."""
        self.lost = 0
        """How many answers have been lost so far."""
        self._blind = False
        self._losing: str | None = None
        self._links: dict[_Link, asyncio.Task[None]] = {}
        self._listener: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="staffa-proxy", daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self.accept()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWERS_WITHIN)
        self._loop.close()

    @property
    def open(self) -> int:
        """How many connections are open now."""
        return len(self._links)

    def cut(self) -> int:
        """Reset all connections that are open, on both sides; returns how many."""
        return self._call(self._cut())

    def refuse(self) -> None:
        """Refuse new connections, as a machine without a server does. Open ones go on."""
        self._call(self._refuse())

    def accept(self) -> None:
        """Take new connections again."""
        self._call(self._accept())

    def blackhole(self) -> None:
        """From now on bytes vanish, in both directions, and nobody is told: on open connections and on new ones."""
        self._call(self._blackhole())

    def restore(self) -> None:
        """New connections work again. Those that have lost bytes stay dead: they know no way to go on."""
        self._blind = False

    def lose_answer_to(self, text: str) -> None:
        """Once: let the server carry out the next statement that contains `text`, drop its answer, reset both sides."""
        self._losing = text

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(ANSWERS_WITHIN)

    # In the proxy's own loop.

    async def _accept(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            self._listener.setblocking(False)
            self._loop.add_reader(self._listener, self._take, self._listener)

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _take(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:  # the client has gone again
            return
        client.setblocking(False)
        self.made += 1
        link = _Link(self, client, dead=self._blind)
        self._links[link] = self._loop.create_task(link.run(self._target))
        self._links[link].add_done_callback(lambda _: self._gone(link))

    def _gone(self, link: "_Link") -> None:
        link.reset()
        del self._links[link]

    async def _cut(self) -> int:
        tasks = list(self._links.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(tasks)

    async def _blackhole(self) -> None:
        self._blind = True
        for link in self._links:
            link.dead = True

    async def _end(self) -> None:
        await self._refuse()
        await self._cut()
        for _ in range(3):  # sockets are closed in the next turn of the loop
            await asyncio.sleep(0)

    def _is_to_be_lost(self, statement: str) -> bool:
        """Is this the statement that was named? Then it was named for the last time."""
        if self._losing is None or self._losing not in statement:
            return False
        self._losing = None
        return True


class _Link:
    """One client's connection, and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy, client: socket.socket, *, dead: bool) -> None:
        self.proxy = proxy
        self.dead = dead
        self._client = client
        self._writers: list[asyncio.StreamWriter] = []
        self._statements: dict[bytes, str] = {}
        self._expected = 0
        """How many times the server has yet to say that it is ready for the next query."""
        self._lose_after: int | None = None
        """After how many of these the answer begins that is to be lost."""

    async def run(self, target: tuple[str, int]) -> None:
        """Carry bytes until either side ends, or for as long as a dead connection is not cut."""
        asking, client = await asyncio.open_connection(sock=self._client)
        self._writers.append(client)
        greeting = await self._greeting(asking, client)
        if greeting is None:
            return
        try:
            answering, server = await asyncio.open_connection(*target)
        except OSError:
            return
        self._writers.append(server)
        self._expected = 1
        server.write(greeting)
        if _code(greeting) == CANCEL_REQUEST:
            await answering.read()
        else:
            await _first_of(self._to_server(asking, server), self._to_client(answering, client))
        await self._close()

    def reset(self) -> None:
        """Close both sides at once, without a farewell."""
        if not self._writers:
            self._client.close()
        for writer in self._writers:
            with suppress(OSError):
                place: socket.socket = writer.get_extra_info("socket")
                place.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()

    async def _close(self) -> None:
        """Close both sides when they have got what was sent to them."""
        for writer in self._writers:
            writer.close()
        with suppress(OSError):
            for writer in self._writers:
                await writer.wait_closed()

    async def _greeting(self, asking: asyncio.StreamReader, client: asyncio.StreamWriter) -> bytes | None:
        """The client's first message that does not ask for encryption."""
        while True:
            try:
                size = await asking.readexactly(4)
                message = size + await asking.readexactly(struct.unpack("!I", size)[0] - 4)
            except (asyncio.IncompleteReadError, OSError):
                return None
            if self.dead:
                await _for_ever()
            if _code(message) not in (SSL_REQUEST, GSS_REQUEST):
                return message
            client.write(b"N")

    async def _to_server(self, asking: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while message := await self._message(asking):
            self._note(message[:1], message[5:])
            await self._write(server, message)

    async def _to_client(self, answering: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while message := await self._message(answering):
            losing = self._lose_after == 0
            if message[:1] == b"Z":
                self._expected -= 1
                if losing:
                    self.reset()
                    self.proxy.lost += 1
                    return
                if self._lose_after is not None:
                    self._lose_after -= 1
            if not losing:
                await self._write(client, message)

    async def _message(self, reader: asyncio.StreamReader) -> bytes:
        """A whole message, its type first; nothing at the end, to which a dead connection never comes."""
        with suppress(asyncio.IncompleteReadError, OSError):
            head = await reader.readexactly(5)
            return head + await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
        if self.dead:
            await _for_ever()
        return b""

    async def _write(self, writer: asyncio.StreamWriter, message: bytes) -> None:
        if not self.dead:
            with suppress(OSError):
                writer.write(message)
                await writer.drain()

    def _note(self, kind: bytes, body: bytes) -> None:
        """Follow what the client asks: a statement comes by itself, or is prepared under a name and then executed."""
        match kind:
            case b"Q":
                self._execute(body.rstrip(b"\0").decode(errors="replace"))
                self._expected += 1
            case b"P":
                name, text = body.split(b"\0", 2)[:2]
                self._statements[name] = text.decode(errors="replace")
            case b"B":
                self._execute(self._statements.get(body.split(b"\0", 2)[1], ""))
            case b"S":
                self._expected += 1
            case _:
                pass

    def _execute(self, statement: str) -> None:
        if not self.dead and self.proxy._is_to_be_lost(statement):
            self._lose_after = self._expected


def _code(greeting: bytes) -> int:
    return int(struct.unpack("!I", greeting[4:8])[0])


async def _first_of(*bodies: Awaitable[None]) -> None:
    """Run all of them until one has ended."""
    tasks = [asyncio.ensure_future(body) for body in bodies]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _for_ever() -> None:
    await asyncio.Event().wait()
