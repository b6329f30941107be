"""How a message becomes the text that NOTIFY carries, and back: Oban's encoding.

A message is a JSON object. One of more than 512 bytes is sent as `Z:` and the base64 of its gzip. On receipt a
bare `H4sI…` (the base64 of a gzip, from older releases of Oban) is understood as well.
"""

import base64
import gzip
import zlib
from collections.abc import Mapping
from typing import Any, cast

from staffa import payload as json
from staffa.errors import InvalidOption
from staffa.notifier import Channel, Payload

__all__ = ["MAX_INFLATED", "MAX_TEXT", "ZIP_OVER", "Unreadable", "decode", "encode"]

# Bytes of JSON; what is longer is sent zipped.
ZIP_OVER = 512

# The server refuses a text of 8,000 bytes and more.
MAX_TEXT = 7_999

# Bytes that a message may have when it is unzipped: what is sent by us or by Oban is far below.
MAX_INFLATED = 1_048_576

_GZIP = 16 + zlib.MAX_WBITS

# What a message may carry, where its receivers rely on a type.
_TYPES: Mapping[Channel, Mapping[str, type]] = {
    "insert": {"queue": str},
    "signal": {"action": str, "queue": str, "job_id": int},
}


class Unreadable(ValueError):
    """What arrived is no message of ours or Oban's; `kind` says in a few words why."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(kind)


def encode(payload: Payload) -> str:
    """A message as text.

    Raises:
        InvalidOption: It is too long for PostgreSQL, even zipped.
    """
    text = json.encode(payload)
    if len(text.encode()) <= ZIP_OVER:
        return text
    zipped = "Z:" + base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    if len(zipped) > MAX_TEXT:
        raise InvalidOption(
            f"expected a message of at most {MAX_TEXT:,} bytes when zipped, got: {len(zipped):,} bytes; "
            "store what is large in a table, and send its id",
            option="payload",
        )
    return zipped


def decode(text: str, channel: Channel = "") -> Payload:
    """A text as a message.

    Raises:
        Unreadable: It is none, or not one that the receivers of this channel can read. Nothing else is raised,
            whatever the text.
    """
    if text.startswith("Z:"):
        text = _unzip(text[2:])
    elif text.startswith("H4sI"):
        text = _unzip(text)
    try:
        value = json.decode(text)
    except Exception as error:  # by its reader: anyone may send any text, nested as deeply as they like
        raise Unreadable("it is not JSON") from error
    if not isinstance(value, dict):
        raise Unreadable("it is not a JSON object")
    message = cast("dict[str, Any]", value)
    for key, kind in _TYPES.get(channel, {}).items():
        if key in message and type(message[key]) is not kind:
            raise Unreadable(f"its {key} is not {kind.__name__}")
    return message


def _unzip(text: str) -> str:
    try:
        inflate = zlib.decompressobj(_GZIP)
        data = inflate.decompress(base64.b64decode(text, validate=True), MAX_INFLATED)
        if inflate.unconsumed_tail:
            raise Unreadable("it unzips to more than a message may have")
        if not inflate.eof:
            raise Unreadable("its gzip is cut off")
        return data.decode()
    except Unreadable:
        raise
    except (ValueError, zlib.error) as error:
        raise Unreadable("it is not a base64 of a gzip of UTF-8") from error
