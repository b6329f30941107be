"""LISTEN and NOTIFY on a real server: Oban's messages, odd ones, and connections that die in every way."""

import asyncio
import base64
import gzip
import json
import logging
import os
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NoReturn

import pytest

from staffa import telemetry
from staffa.engine import Notice
from staffa.errors import DatabaseUnavailable, InvalidOption
from staffa.notifier import Notifier
from staffa.notifiers.postgres import ALWAYS, MAX_NAME, PostgresNotifier, Status, channel_name
from tests.support import ServerMissing, eventually

asyncpg = pytest.importorskip("asyncpg")

from tests.support.proxy import Proxy  # noqa: E402  # they need asyncpg
from tests.support.servers import PostgresServer, query, running_postgres, with_database  # noqa: E402

# Statements of Oban's: how an Elixir node sends.
SEND = "SELECT pg_notify($1, payload) FROM json_array_elements_text($2::json) AS payload"
COUNT = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
KILL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1"


class Ear:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    def __call__(self, payload: Mapping[str, Any]) -> None:
        self.heard.append(dict(payload))


class Bench:
    """A server, a schema's name of its own, a connection to send on, and notifiers that end with the test."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url = url
        self.stack = stack
        self.prefix = f"s{secrets.token_hex(4)}"
        self.away = False
        self.opened = 0
        self.sent: list[tuple[str, list[str]]] = []
        self._turn = asyncio.Lock()
        self._connection: Any = None

    async def query(self, text: str, *arguments: object) -> Any:
        """One statement on the connection that nobody listens on."""
        async with self._turn:
            if self._connection is None:
                self._connection = await asyncpg.connect(self.url)
                self.stack.push_async_callback(self._connection.close)
            rows = await self._connection.fetch(text, *arguments)
            return rows[0][0] if rows else None

    async def elixir(self, channel: str, *texts: str) -> None:
        """Send texts as an Elixir node does, on a channel of the database."""
        await self.query(SEND, f"{self.prefix}.oban_{channel}", json.dumps(texts))

    async def send(self, channel: str, texts: Sequence[str]) -> None:
        """What the instance's pool does."""
        if self.away:
            raise DatabaseUnavailable("away")
        await self.query(SEND, channel, json.dumps(list(texts)))
        self.sent.append((channel, list(texts)))

    async def connect(self) -> Any:
        """What opens the listening connection."""
        self.opened += 1
        return await asyncpg.connect(self.url, server_settings={"application_name": self.prefix})

    async def connections(self) -> int:
        return int(await self.query(COUNT, self.prefix))

    def sent_on(self, channel: str) -> list[str]:
        """The texts that were sent on one of Oban's channels."""
        name = channel_name(self.prefix, f"oban_{channel}")
        return [text for sent, texts in self.sent for text in texts if sent == name]

    def notifier(
        self,
        instance: str = "Staffa",
        connect: Callable[[], Any] | None = None,
        prefix: str | None = None,
        **options: Any,
    ) -> PostgresNotifier:
        options = {"node": "web-1", "topic": self.prefix, **options}
        notifier = PostgresNotifier(
            instance, prefix or self.prefix, connect or self.connect, self.send, **options
        )
        _: Notifier = notifier  # it keeps the contract
        notifier.start_within = 10.0
        notifier.pause = 0.02
        self.stack.push_async_callback(notifier.stop)
        return notifier

    async def listening(self, **options: Any) -> PostgresNotifier:
        notifier = self.notifier(**options)
        await notifier.start()
        await became(notifier, "listening")
        return notifier


@pytest.fixture
async def bench() -> AsyncGenerator[Bench, None]:
    try:
        url = await running_postgres()
    except ServerMissing as missing:
        _without_server(missing)
    async with AsyncExitStack() as stack:
        bench = Bench(url, stack)
        yield bench
    left = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("staffa")]
    assert left == [], "the test left tasks behind"


def _without_server(missing: ServerMissing) -> NoReturn:
    """A missing server is a nuisance on a laptop and an error in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(str(missing))
    pytest.skip(str(missing))


async def became(notifier: PostgresNotifier, status: Status) -> None:
    await eventually(lambda: notifier.status == status)


def zipped(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data)).decode()


# Oban's messages.


@pytest.mark.parametrize(
    "text",
    [
        '{"queue":"default"}',
        ' { "new" : null, "queue" : "default" } ',
        "Z:" + zipped(b'{"queue":"default"}'),
        zipped(b'{"queue":"default"}'),
    ],
    ids=["plain", "spaced", "zipped", "older"],
)
async def test_what_an_elixir_node_sends_is_heard(bench: Bench, text: str) -> None:
    ear = Ear()
    notifier = await bench.listening()
    notifier.listen("insert", ear)

    await bench.elixir("insert", text, '{"queue":"media"}')
    await eventually(lambda: len(ear.heard) == 2)

    assert [payload["queue"] for payload in ear.heard] == ["default", "media"]


async def test_signals_are_heard_with_their_keys_in_any_order(bench: Bench) -> None:
    ear = Ear()
    notifier = await bench.listening()
    notifier.listen("signal", ear)

    await bench.elixir(
        "signal", '{"queue":"*","ident":"any","action":"pause"}', '{"action":"pkill","job_id":9}'
    )
    await eventually(lambda: len(ear.heard) == 2)

    assert ear.heard == [
        {"action": "pause", "queue": "*", "ident": "any"},
        {"action": "pkill", "job_id": 9},
    ]


async def test_what_we_send_arrives_as_an_elixir_node_expects_it(bench: Bench) -> None:
    heard: list[tuple[str, str]] = []
    plain = await asyncpg.connect(bench.url)
    bench.stack.push_async_callback(plain.close)
    names = [f"{bench.prefix}.oban_insert", f"{bench.prefix}.oban_signal"]

    def hear(_connection: object, _pid: int, name: str, text: str) -> None:
        heard.append((name, text))

    for name in names:
        await plain.add_listener(name, hear)

    notifier = bench.notifier()  # one that only sends
    await notifier.notify("insert", [{"queue": "default"}, {"queue": "media"}])
    await notifier.notify("signal", [{"action": "cancel", "job_id": 7}])
    await notifier.notify("signal", [])
    await eventually(lambda: len(heard) == 3)

    assert heard == [
        (names[0], '{"queue":"default"}'),
        (names[0], '{"queue":"media"}'),
        (names[1], '{"action":"cancel","job_id":7}'),
    ]


async def test_messages_for_others_are_not_heard(bench: Bench) -> None:
    ear, local = Ear(), Ear()
    notifier = await bench.listening()
    notifier.listen("signal", ear)
    deaf = bench.notifier("Other", enabled=False)
    deaf.listen("signal", local)

    idents = [None, "any", "Staffa.web-1", "Staffa.web-2", "Oban.web-1", "Other.web-1", "staffa.web-1"]
    payloads = [{"n": n, "ident": ident} for n, ident in enumerate(idents)]
    await notifier.notify("signal", [*payloads, {"n": 7}])
    await eventually(lambda: ear.heard and ear.heard[-1]["n"] == 7)

    assert [payload["n"] for payload in ear.heard] == [0, 1, 2, 7]
    assert [payload["n"] for payload in local.heard] == [0, 1, 5, 7]


async def test_a_channel_that_is_asked_for_later_is_heard_too(bench: Bench) -> None:
    ear, gaps = Ear(), list[int]()
    notifier = await bench.listening()
    notifier.on_gap(lambda: gaps.append(1))

    unlisten = notifier.listen("gossip", ear)
    await eventually(lambda: gaps)  # the LISTEN has been done
    await bench.elixir("gossip", '{"hello":"wörld","ident":"any"}')
    await eventually(lambda: ear.heard)
    unlisten()
    await bench.elixir("gossip", '{"hello":"nobody"}')
    notifier.listen("insert", ear)
    await bench.elixir("insert", '{"queue":"last"}')
    await eventually(lambda: len(ear.heard) == 2)

    assert ear.heard == [{"hello": "wörld", "ident": "any"}, {"queue": "last"}]


@pytest.mark.parametrize("prefix", ["p" * 52, "p" * 53, "ö" * 31, 'odd "schema"; --'])
async def test_long_and_odd_names_of_schemas_work(bench: Bench, prefix: str) -> None:
    ear = Ear()
    notifier = await bench.listening(prefix=prefix)
    for channel in ALWAYS:
        notifier.listen(channel, ear)

    token = secrets.token_hex(4)
    await notifier.notify("insert", [{"queue": token}])
    await notifier.notify("signal", [{"action": token}])
    await eventually(lambda: {"queue": token} in ear.heard and {"action": token} in ear.heard)


def test_names_of_channels_are_obans_and_fit_into_the_server() -> None:
    assert channel_name(None, "oban_insert") == "public.oban_insert"
    assert channel_name("x" * 51, "oban_insert") == "x" * 51 + ".oban_insert"
    long = [channel_name("x" * 52, "oban_insert"), channel_name("x" * 53, "oban_insert")]
    long += [channel_name("x" * 53, "oban_signal"), channel_name("ö" * 26, "oban_insert")]

    assert len(set(long)) == 4
    assert all(name.startswith("staffa_") and len(name.encode()) <= MAX_NAME for name in long)


async def test_a_message_that_is_too_long_is_refused(bench: Bench) -> None:
    notifier = bench.notifier()

    with pytest.raises(InvalidOption, match="store what is large in a table"):
        await notifier.notify("gossip", [{"noise": secrets.token_hex(10_000)}])
    assert bench.sent == []


# Odd messages.

ODD = [
    "not json",
    "7",
    "null",
    "[]",
    '["queue"]',
    '{"queue":',
    '{"queue":7}',
    '{"queue":null}',
    '{"queue":{"mail":1}}',
    '{"job_id":"7"}',
    '{"job_id":' + "9" * 400 + "}",
    '{"number":1e400}',
    '{"ident":["any"]}',
    '{"ident":{}}',
    "Z:",
    "Z:%%%",
    "Z:" + base64.b64encode(b"no gzip").decode(),
    "Z:" + zipped(b"no json"),
    "Z:" + zipped(b'{"queue":"x"}')[:-8],
    "Z:" + zipped(b'{"a":"' + b"x" * 5_000_000 + b'"}'),
    "H4sI",
    "[" * 7_000,
    "\u202e\U0001f4a5",
    "",
]


@pytest.mark.parametrize("text", ODD, ids=lambda text: ascii(text)[:30])
async def test_nothing_that_arrives_stops_it(
    bench: Bench, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    ear, gaps = Ear(), list[int]()
    notifier = bench.notifier()
    notifier.on_gap(lambda: gaps.append(1))
    await notifier.start()
    for channel in ALWAYS:
        notifier.listen(channel, ear)

    with caplog.at_level(logging.DEBUG, "staffa"):
        for name in ("oban_insert", "oban_signal", "staffa_ping"):
            await bench.query("SELECT pg_notify($1, $2)", f"{bench.prefix}.{name}", text)
        await bench.elixir("insert", '{"queue":"good"}')
        await bench.elixir("signal", '{"action":"good"}')
        await eventually(lambda: {"queue": "good"} in ear.heard and {"action": "good"} in ear.heard)

    assert (notifier.status, len(gaps), bench.opened) == ("listening", 1, 1)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_an_odd_message_is_warned_of_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    ear = Ear()
    notifier = await bench.listening()
    notifier.listen("insert", ear)

    with caplog.at_level(logging.WARNING, "staffa"):
        await bench.elixir("insert", "one", "[]", "two", "[1]", "three", '{"queue":"last"}')
        await eventually(lambda: ear.heard)

    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"a message on '{bench.prefix}.oban_insert' was ignored, for it is not JSON: 'one'",
        f"a message on '{bench.prefix}.oban_insert' was ignored, for it is not a JSON object: '[]'",
    ]


async def test_a_listener_that_fails_hurts_no_other(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    ear = Ear()
    notifier = await bench.listening()

    def fails(payload: Mapping[str, Any]) -> None:
        raise ValueError("no")

    notifier.listen("insert", fails)
    notifier.listen("insert", ear)
    await bench.elixir("insert", '{"queue":"default"}', '{"queue":"media"}')
    await eventually(lambda: len(ear.heard) == 2)

    assert "a listener failed" in caplog.text


# Connections that die.


async def test_it_hears_again_after_each_of_a_hundred_kills(bench: Bench) -> None:
    ear, gaps = Ear(), list[int]()
    notifier = await bench.listening()
    notifier.listen("insert", ear)
    notifier.on_gap(lambda: gaps.append(1))
    before = len(asyncio.all_tasks())

    for number in range(100):
        await bench.query(KILL, bench.prefix)
        await eventually(lambda: len(gaps) == number + 1)  # noqa: B023  # waited for here
        await became(notifier, "listening")
        await bench.elixir("insert", f'{{"queue":"{number}"}}')
        await eventually(lambda: ear.heard and ear.heard[-1] == {"queue": str(number)})  # noqa: B023  # as above
    await eventually(lambda: len(asyncio.all_tasks()) <= before)

    assert len(ear.heard) == 100
    assert bench.opened == 101
    assert await bench.connections() == 1


async def test_whoever_may_have_missed_something_is_told_to_look(bench: Bench) -> None:
    looked = list[str]()
    notifier, other = bench.notifier(), bench.notifier("Other")
    notifier.on_gap(lambda: looked.append("once"))
    unlisten = notifier.on_gap(lambda: looked.append("and once more"))
    other.on_gap(lambda: looked.append("never"))

    await notifier.start()
    assert looked == ["once", "and once more"]
    unlisten()
    await bench.query(KILL, bench.prefix)
    await eventually(lambda: len(looked) == 3)

    assert looked[-1] == "once"


async def test_a_loss_is_noticed_at_once_and_messages_go_the_short_way_meanwhile(bench: Bench) -> None:
    ear = Ear()
    shut = asyncio.Event()

    async def connect() -> Any:
        if bench.opened:
            await shut.wait()
        return await bench.connect()

    notifier = await bench.listening(connect=connect)
    notifier.listen("insert", ear)
    await bench.query(KILL, bench.prefix)
    await became(notifier, "reconnecting")

    await notifier.notify("insert", [{"queue": "mail"}])
    assert ear.heard == [{"queue": "mail"}]
    shut.set()
    await became(notifier, "listening")
    await notifier.notify("insert", [{"queue": "media"}])
    await eventually(lambda: len(ear.heard) == 2)

    assert bench.sent_on("insert") == ['{"queue":"mail"}', '{"queue":"media"}']


async def test_a_server_that_is_away_keeps_nobody_from_starting(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    ear = Ear()
    bench.away = True

    async def connect() -> Any:
        if bench.away:
            raise OSError("nobody is there")
        return await bench.connect()

    notifier = bench.notifier(connect=connect)
    notifier.listen("insert", ear)
    with caplog.at_level(logging.WARNING, "staffa"):
        await notifier.start()
        assert notifier.status == "reconnecting"
        await notifier.notify("insert", [{"queue": "mail"}])

    assert ear.heard == [{"queue": "mail"}]
    assert "Staffa cannot listen: nobody is there" in caplog.text
    assert "a message for 'insert' could not be sent: away" in caplog.text
    bench.away = False
    await became(notifier, "listening")


async def test_a_server_that_does_not_answer_holds_up_neither_start_nor_stop(bench: Bench) -> None:
    async def connect() -> Any:
        await asyncio.Event().wait()

    notifier = bench.notifier(connect=connect)
    notifier.start_within = 0.01

    await notifier.start()
    assert notifier.status == "starting"
    await notifier.stop()
    await notifier.stop()


async def test_a_pool_that_does_not_answer_does_not_hold_up_stop(bench: Bench) -> None:
    hangs = False

    async def send(channel: str, texts: Sequence[str]) -> None:
        if hangs:
            await asyncio.Event().wait()
        await bench.send(channel, texts)

    notifier = await bench.listening(window=1_000)
    notifier._send = send
    notifier.stop_within = 0.01
    with notifier.waking(["mail"]), notifier.waking(["mail"]):
        hangs = True

    await notifier.stop()
    await notifier.stop()

    assert notifier.status == "starting"


async def test_it_can_be_started_again(bench: Bench) -> None:
    ear = Ear()
    notifier = await bench.listening()
    notifier.listen("insert", ear)
    await notifier.stop()
    await notifier.start()
    await notifier.start()

    await bench.elixir("insert", '{"queue":"mail"}')
    await eventually(lambda: ear.heard)

    assert bench.opened == 2
    await eventually(lambda: _is(bench.connections, 1))


async def _is(number: Callable[[], Any], expected: int) -> bool:
    return bool(await number() == expected)


async def test_it_hears_again_after_the_server_has_crashed(tmp_path: Path, bench: Bench) -> None:
    ear = Ear()
    try:
        server = await bench.stack.enter_async_context(PostgresServer.fresh(tmp_path))
    except ServerMissing as missing:
        _without_server(missing)

    async def send(channel: str, texts: Sequence[str]) -> None:
        for text in texts:
            await query(server.url, "SELECT pg_notify($1, $2)", channel, text)

    notifier = bench.notifier(connect=lambda: asyncpg.connect(server.url))
    notifier._send = send
    notifier.listen("insert", ear)
    await notifier.start()
    await became(notifier, "listening")

    await asyncio.to_thread(server.stop, "immediate")
    await became(notifier, "reconnecting")
    await asyncio.to_thread(server.start)
    await became(notifier, "listening")
    await notifier.notify("insert", [{"queue": "mail"}])
    await eventually(lambda: ear.heard)

    await notifier.stop()


# Connections that live and hear nothing.


async def test_a_half_open_connection_is_noticed_and_replaced(bench: Bench) -> None:
    ear = Ear()
    proxy = bench.stack.enter_context(Proxy(bench.url))

    async def connect() -> Any:
        return await asyncpg.connect(proxy.url, ssl=False)

    notifier = await bench.listening(connect=connect, ping_every=0.05)
    notifier.listen("insert", ear)
    notifier.open_within = notifier.pong_within = 0.5  # also for a connection into the hole
    notifier.deaf_pause = 0.5

    proxy.blackhole()
    await became(notifier, "reconnecting")
    proxy.restore()
    await became(notifier, "listening")
    await bench.elixir("insert", '{"queue":"mail"}')
    await eventually(lambda: ear.heard)

    await notifier.stop()  # before the proxy ends


async def test_pings_are_sent_only_when_nothing_is_heard(bench: Bench) -> None:
    ear = Ear()
    notifier = await bench.listening(ping_every=1_000)
    notifier.listen("insert", ear)
    await notifier.notify("insert", [{"queue": "mail"}])
    await eventually(lambda: ear.heard)

    assert [channel for channel, _ in bench.sent].count(f"{bench.prefix}.staffa_ping") == 1


async def test_a_ping_that_cannot_be_sent_does_not_mean_that_it_is_deaf(bench: Bench) -> None:
    ear = Ear()
    tried = 0

    async def send(channel: str, texts: Sequence[str]) -> None:
        nonlocal tried
        tried += 1
        await bench.send(channel, texts)

    notifier = await bench.listening(ping_every=0.01)
    notifier._send = send
    notifier.listen("insert", ear)
    bench.away = True
    await eventually(lambda: tried > 5)
    await bench.elixir("insert", '{"queue":"mail"}')
    await eventually(lambda: ear.heard)

    assert (notifier.status, bench.opened) == ("listening", 1)


@pytest.fixture
async def elsewhere(bench: Bench) -> AsyncGenerator[str, None]:
    """Another database of the same server: who listens there hears nothing of ours, as behind a pooler."""
    name = f"staffa_{bench.prefix}"
    await bench.query(f'CREATE DATABASE "{name}"')
    yield with_database(bench.url, name)
    await bench.query(f'DROP DATABASE "{name}" WITH (FORCE)')


async def test_where_listen_cannot_work_it_polls_says_so_once_and_tries_again(
    bench: Bench, elsewhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    ear, pooled = Ear(), True

    async def connect() -> Any:
        bench.opened += 1
        return await asyncpg.connect(
            elsewhere if pooled else bench.url, server_settings={"application_name": bench.prefix}
        )

    notifier = bench.notifier(connect=connect)
    notifier.listen("insert", ear)
    notifier.pong_within, notifier.deaf_pause = 0.3, 0.5
    with caplog.at_level(logging.WARNING, "staffa"):
        await notifier.start()
        await became(notifier, "polling")
        await eventually(lambda: bench.opened >= 5)

    assert (notifier.status, notifier.hears) == ("polling", False)
    [said] = [record.getMessage() for record in caplog.records]
    assert "cannot hear PostgreSQL's notifications here" in said
    assert "goes past the pooler" in said
    await notifier.notify("insert", [{"queue": "mail"}])
    assert ear.heard == [{"queue": "mail"}]
    pooled = False
    await became(notifier, "listening")
    assert await bench.connections() == 1


async def test_while_it_polls_it_keeps_no_connection(bench: Bench, elsewhere: str) -> None:
    async def connect() -> Any:
        return await asyncpg.connect(elsewhere, server_settings={"application_name": bench.prefix})

    notifier = bench.notifier(connect=connect)
    notifier.pong_within = 0.1
    await notifier.start()
    await became(notifier, "polling")

    await eventually(lambda: _is(bench.connections, 0))
    await notifier.stop()


# Several in one process.


async def test_a_listener_is_called_in_its_own_event_loop(bench: Bench) -> None:
    notifier = await bench.listening()
    heard: list[tuple[str, bool]] = []
    done = threading.Event()

    async def listen() -> None:
        loop = asyncio.get_running_loop()

        def hear(payload: Mapping[str, Any]) -> None:
            heard.append((payload["hello"], asyncio.get_running_loop() is loop))

        unlisten = notifier.listen("gossip", hear)
        await eventually(lambda: heard)
        unlisten()
        done.set()

    thread = threading.Thread(target=asyncio.run, args=[listen()])
    thread.start()
    while not done.is_set():
        await bench.elixir("gossip", '{"hello":"you"}')
        await asyncio.sleep(0.01)  # until its LISTEN has been done
    thread.join()

    assert heard[0] == ("you", True)


async def test_each_listener_of_a_process_hears_a_message_once(bench: Bench) -> None:
    ears = [Ear(), Ear(), Ear()]
    first = await bench.listening()
    second = await bench.listening(instance="Second")
    sends = bench.notifier("Sends")
    for notifier, ear in zip((first, second, second), ears, strict=True):
        notifier.listen("insert", ear)

    for notifier in (first, second, sends):
        await notifier.notify("insert", [{"queue": notifier.instance}])
    await bench.elixir("insert", '{"queue":"last"}')
    await eventually(lambda: all(ear.heard and ear.heard[-1]["queue"] == "last" for ear in ears))

    assert [[payload["queue"] for payload in ear.heard] for ear in ears] == [
        ["Staffa", "Second", "Sends", "last"]
    ] * 3


async def test_instances_of_other_databases_and_schemas_are_not_told(bench: Bench) -> None:
    ear = Ear()
    for other in (bench.notifier(topic="elsewhere"), bench.notifier(prefix="another")):
        other.listen("insert", ear)
    same = Ear()
    bench.notifier("Same").listen("insert", same)

    await bench.notifier().notify("insert", [{"queue": "mail"}])

    assert (ear.heard, same.heard) == ([], [{"queue": "mail"}])


async def test_switched_off_it_sends_nothing_and_tells_its_own_process(bench: Bench) -> None:
    ear = Ear()
    notifier = bench.notifier(enabled=False)
    notifier.listen("insert", ear)
    await notifier.start()

    await notifier.notify("insert", [{"queue": "mail"}])
    with notifier.waking(["media"]) as notice:
        assert (notice, notifier.notice(["media"])) == (None, None)
    await notifier.flush()
    await notifier.stop()

    assert ear.heard == [{"queue": "mail"}, {"queue": "media"}]
    assert (bench.sent, bench.opened, notifier.status) == ([], 0, "polling")


async def test_each_change_is_told(bench: Bench) -> None:
    told: list[Mapping[str, Any]] = []
    telemetry.attach("test-switch", lambda _, data: told.append(data), ["notifier.switch"])
    try:
        notifier = await bench.listening()
        await bench.query(KILL, bench.prefix)
        await eventually(lambda: len(told) == 3)
        await notifier.stop()
    finally:
        telemetry.detach("test-switch")

    assert [data["status"] for data in told] == ["listening", "reconnecting", "listening"]
    assert told[0] == {"instance": "Staffa", "node": "web-1", "status": "listening"}


# Inserts.


def insert(queue: str) -> str:
    return f'{{"queue":"{queue}"}}'


async def test_an_insert_carries_messages_for_the_queues_that_were_not_woken_just_now(bench: Bench) -> None:
    notifier = bench.notifier(window=1_000)
    channel = f"{bench.prefix}.oban_insert"

    with notifier.waking(["mail", "media"]) as first, notifier.waking(["mail", "reports"]) as second:
        pass
    with notifier.waking(["mail", "reports"]) as third, notifier.waking([]) as fourth:
        pass

    assert first == Notice(channel, [insert("mail"), insert("media")])
    assert second == Notice(channel, [insert("reports")])
    assert third is fourth is None


async def test_in_a_transaction_of_the_users_no_queue_is_left_out(bench: Bench) -> None:
    notifier = bench.notifier(window=1_000)
    notice = Notice(f"{bench.prefix}.oban_insert", [insert("mail")])

    assert notifier.notice(["mail"]) == notifier.notice(["mail"]) == notice
    assert notifier.notice([]) is None


async def test_of_many_inserts_few_carry_a_message_and_the_last_one_is_told(bench: Bench) -> None:
    ear = Ear()
    notifier = await bench.listening(window=0.2)
    notifier.listen("insert", ear)
    carried = 0

    for _ in range(50):
        with notifier.waking(["mail"]) as notice:
            carried += notice is not None
    assert carried <= 10
    sent = len(bench.sent_on("insert"))
    await eventually(lambda: len(bench.sent_on("insert")) > sent)
    await eventually(lambda: ear.heard)

    assert ear.heard[-1] == {"queue": "mail"}


async def test_who_was_left_out_is_told_after_the_insert_not_during_it(bench: Bench) -> None:
    notifier = bench.notifier(window=1_000)
    with notifier.waking(["mail"]):
        pass

    with notifier.waking(["mail", "media"]):
        await notifier.flush()
        assert bench.sent_on("insert") == []
    await notifier.flush()

    assert bench.sent_on("insert") == [insert("mail")]


async def test_who_was_left_out_by_an_insert_that_failed_is_told_too(bench: Bench) -> None:
    notifier = bench.notifier(window=1_000)
    with notifier.waking(["mail"]):
        pass

    with pytest.raises(DatabaseUnavailable), notifier.waking(["mail"]):
        raise DatabaseUnavailable("perhaps it was committed, perhaps not")
    await notifier.flush()

    assert bench.sent_on("insert") == [insert("mail")]


async def test_an_insert_wakes_who_polls_in_this_process_at_once(bench: Bench) -> None:
    ear = Ear()
    notifier = bench.notifier()
    notifier.listen("insert", ear)

    with notifier.waking(["mail", "media"]):
        assert ear.heard == []

    assert ear.heard == [{"queue": "mail"}, {"queue": "media"}]


async def test_only_this_process_is_told_when_that_is_asked_for(bench: Bench) -> None:
    ear = Ear()
    notifier = await bench.listening()
    notifier.listen("insert", ear)

    notifier.tell("insert", [{"queue": "mail"}])

    assert ear.heard == [{"queue": "mail"}]
    assert bench.sent_on("insert") == []


async def test_a_stop_sends_what_is_due(bench: Bench) -> None:
    notifier = await bench.listening(window=1_000)
    with notifier.waking(["mail"]), notifier.waking(["mail"]):
        pass

    await notifier.stop()

    assert bench.sent_on("insert") == [insert("mail")]
