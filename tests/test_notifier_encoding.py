"""What NOTIFY carries: Oban's encoding, and whatever else may arrive."""

import base64
import gzip
import json
import zlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from staffa.errors import InvalidOption
from staffa.notifiers.encoding import MAX_INFLATED, MAX_TEXT, ZIP_OVER, Unreadable, decode, encode

# What an Elixir node sent for {"big": "abc abc …"}, as a plain LISTEN saw it.
FROM_ELIXIR = "Z:H4sIAAAAAAAAA6tWSspMV7JSSkxKVhjFo3gUY8dKtQBdjATYKgMAAA=="

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=10,
)


def zipped(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data)).decode()


@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_a_message_arrives_as_it_was_sent(payload: Mapping[str, Any]) -> None:
    assert decode(encode(payload)) == payload


def test_a_short_message_is_plain_json() -> None:
    assert encode({"queue": "wörld", "action": "pause"}) == '{"action":"pause","queue":"wörld"}'


def test_a_message_is_zipped_when_it_has_more_than_512_bytes() -> None:
    fits = {"a": "ö" * ((ZIP_OVER - 8) // 2)}
    longer = {"a": "ö" * ((ZIP_OVER - 8) // 2) + "."}

    assert len(encode(fits).encode()) == ZIP_OVER
    assert encode(fits).startswith("{")
    assert encode(longer).startswith("Z:")
    assert json.loads(gzip.decompress(base64.b64decode(encode(longer)[2:]))) == longer


def test_what_elixir_zipped_is_read_with_and_without_its_mark() -> None:
    assert decode(FROM_ELIXIR)["big"].startswith("abc abc abc ")
    assert decode(FROM_ELIXIR) == decode(FROM_ELIXIR.removeprefix("Z:"))


def test_keys_may_come_in_any_order_with_spaces_and_extra_ones() -> None:
    text = ' {"limit": 20, "ident" : "any", "queue":"default", "new": null, "action": "scale"} '

    assert decode(text, "signal") == {
        "action": "scale",
        "queue": "default",
        "limit": 20,
        "ident": "any",
        "new": None,
    }


def test_a_message_that_is_too_long_even_when_zipped_is_refused() -> None:
    noise = base64.b64encode(bytes(byte * 7919 % 251 for byte in range(60_000))).decode()
    payload = {"noise": "".join(str(zlib.crc32(noise[at:].encode())) for at in range(2_000))}

    with pytest.raises(
        InvalidOption, match=r"at most 7,999 bytes when zipped, got: [\d,]+ bytes; store what is large"
    ):
        encode(payload)


def test_a_message_that_zips_well_may_be_long() -> None:
    payload = {"a": "x" * 500_000}

    assert len(encode(payload)) <= MAX_TEXT
    assert decode(encode(payload)) == payload


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "it is not JSON"),
        ("not json", "it is not JSON"),
        ("{'queue': 'mail'}", "it is not JSON"),
        ('{"queue": "mail"', "it is not JSON"),
        ('{"queue": NaN}', "it is not JSON"),
        ('{"queue": "\\ud800"}', "it is not JSON"),
        ('{"number": 1e999}', "it is not JSON"),
        ('{"number": ' + "9" * 7_000 + "}", "it is not JSON"),
        ("[" * 7_900, "it is not JSON"),
        ("null", "it is not a JSON object"),
        ("7", "it is not a JSON object"),
        ('"queue"', "it is not a JSON object"),
        ('[{"queue": "mail"}]', "it is not a JSON object"),
        ("Z:", "its gzip is cut off"),
        ("Z:%%%", "it is not a base64 of a gzip of UTF-8"),
        ("Z:ö", "it is not a base64 of a gzip of UTF-8"),
        ("Z:" + base64.b64encode(b"{}").decode(), "it is not a base64 of a gzip of UTF-8"),
        ("Z:" + zipped(b"\xff\xfe"), "it is not a base64 of a gzip of UTF-8"),
        ("Z:" + zipped(b"not json"), "it is not JSON"),
        ("Z:" + zipped(b"[]"), "it is not a JSON object"),
        ("Z:" + zipped(b'{"queue": "mail"}')[:-8], "its gzip is cut off"),
        ("H4sI", "its gzip is cut off"),
        ("H4sI is what a sentence may begin with", "it is not a base64 of a gzip of UTF-8"),
        ('{"queue": 7}', "its queue is not str"),
        ('{"queue": null}', "its queue is not str"),
        ('{"job_id": "7"}', "its job_id is not int"),
        ('{"job_id": true}', "its job_id is not int"),
        ('{"job_id": 7.5}', "its job_id is not int"),
        ('{"action": ["cancel"]}', "its action is not str"),
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_what_is_no_message_is_unreadable_and_says_why(text: str, kind: str) -> None:
    with pytest.raises(Unreadable, match=f"^{kind}$") as caught:
        decode(text, "signal")

    assert caught.value.kind == kind


@example('{"a":' * 1_300 + "1" + "}" * 1_300)
@example("[" * 4_000 + "]" * 3_999)
@given(st.text(max_size=200) | st.binary(max_size=100).map(lambda data: "Z:" + zipped(data)))
def test_whatever_arrives_is_a_message_or_unreadable(text: str) -> None:
    try:
        message = decode(text, "insert")
    except Unreadable:
        return
    assert isinstance(message, dict)


def test_a_message_that_unzips_to_very_much_is_not_unzipped() -> None:
    bomb = "Z:" + zipped(b'{"a":"' + b"x" * 4 * MAX_INFLATED + b'"}')

    assert len(bomb) < MAX_TEXT
    with pytest.raises(Unreadable, match="it unzips to more than a message may have"):
        decode(bomb)


def test_other_channels_may_carry_any_object() -> None:
    assert decode('{"queue": 7}', "gossip") == {"queue": 7}
