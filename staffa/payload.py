"""What may be stored in a job as JSON, and what is refused, the same on every database.

The JSON encoder alone would let too much through (NaN becomes null, bytes become base64), and the
databases differ in what they take. So a walk over the value comes first. It names the path to every
value that cannot be kept.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, cast
from uuid import UUID

import msgspec

from staffa.errors import Problem
from staffa.options import shown

__all__ = ["MAX_BYTES", "decode", "decode_stored", "encode", "encode_object", "storable"]

MAX_BYTES = 1_000_000

# MySQL refuses JSON that is nested deeper than 100; the tightest limit of the three counts for all.
MAX_DEPTH = 90

# Larger integers lose digits in some databases' JSON.
MIN_INT, MAX_INT = -(2**63), 2**63 - 1

# As many digits in a row as an integer of 64 bits has at most.
_MANY_DIGITS = re.compile(r"\d{19}")

decode = msgspec.json.decode
_encoder = msgspec.json.Encoder(order="sorted")


def encode(value: object) -> str:
    """Canonical JSON: sorted keys, no spaces, so that equal values are equal texts."""
    return _encoder.encode(value).decode()


def decode_stored(text: str) -> Any:
    """JSON out of a database. PostgreSQL writes a large float as a whole number; it becomes a float again."""
    value = decode(text)
    return _without_large_integers(value) if len(text) > 19 and _MANY_DIGITS.search(text) else value


def _without_large_integers(value: object) -> object:
    if isinstance(value, int):
        return value if MIN_INT <= value <= MAX_INT else float(value)
    if isinstance(value, dict):
        return {key: _without_large_integers(item) for key, item in cast("dict[str, object]", value).items()}
    if isinstance(value, list):
        return [_without_large_integers(item) for item in cast("list[object]", value)]
    return value


def encode_object(value: object, path: str, problems: list[Problem]) -> str:
    """A mapping as canonical JSON; whatever cannot be stored is added to `problems`."""
    if _is_dict(value) and _plain(value, 0):
        text = encode(value)
    else:
        text = _encode_with_conversions(value, path, problems)
    if len(text) > MAX_BYTES // 4 and (size := len(text.encode())) > MAX_BYTES:
        problems.append(Problem(path, f"at most {MAX_BYTES:,} bytes of JSON", f"{size:,} bytes"))
    return text


def storable(text: str, limit: int) -> str:
    """Text that every database can keep: no U+0000, no lone surrogates, cut in its middle to `limit` characters."""
    if len(text) > limit:
        head, tail = limit * 2 // 3, limit // 3
        text = f"{text[:head]}\n… {len(text) - head - tail} characters left out …\n{text[-tail:]}"
    if "\x00" in text:
        text = text.replace("\x00", "\ufffd")
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _encode_with_conversions(value: object, path: str, problems: list[Problem]) -> str:
    before = len(problems)
    plain = _Walk(problems).value(value, path, 0)
    if len(problems) == before and not _is_dict(plain):
        problems.append(Problem(path, "a JSON object (a mapping with string keys)", shown(value)))
    return "{}" if len(problems) > before else encode(plain)


def _plain(value: object, depth: int) -> bool:
    """Whether a value is JSON as it stands; False sends it on the slower walk, which converts and explains."""
    kind = type(value)
    if kind is str:
        return _storable_text(cast("str", value))
    if kind is int:
        return MIN_INT <= cast("int", value) <= MAX_INT
    if kind is bool or value is None:
        return True
    if kind is float:
        return math.isfinite(cast("float", value))
    if depth >= MAX_DEPTH:
        return False
    if kind is dict:
        for key, item in cast("dict[object, object]", value).items():
            if type(key) is not str or not _storable_text(key) or not _plain(item, depth + 1):
                return False
        return True
    if kind is list or kind is tuple:
        return all(_plain(item, depth + 1) for item in cast("list[object]", value))
    return False


def _is_dict(value: object) -> bool:
    return type(value) is dict


def _storable_text(text: str) -> bool:
    if text.isascii():
        return "\x00" not in text
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text


class _Walk:
    """Turns the types we know into JSON's own, and notes the path of each value that it cannot."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        self.around: set[int] = set()

    def value(self, value: object, path: str, depth: int) -> object:
        if depth > MAX_DEPTH:
            return self.refuse(path, f"at most {MAX_DEPTH} levels of nesting", "a deeper one")
        match value:
            case None | bool():
                return value
            case Enum():
                return self.value(value.value, path, depth)
            case str():
                return self.text(str(value), path)
            case int():
                return self.integer(int(value), path)
            case float():
                return self.finite(float(value), path)
            case datetime():
                return self.moment(value, path)
            case date():
                return value.isoformat()
            case UUID():
                return str(value)
            case Decimal():
                return (
                    str(value) if value.is_finite() else self.refuse(path, "a finite Decimal", shown(value))
                )
            case _:
                return self.container(value, path, depth)

    def container(self, value: object, path: str, depth: int) -> object:
        # A circle with branches (children that know their parent) would be walked for ever, long before it is deep.
        me = id(value)
        if me in self.around:
            return self.refuse(
                path, "a value that does not contain itself", f"a {type(value).__name__} that does"
            )
        self.around.add(me)
        try:
            match value:
                case Mapping():
                    return self.mapping(cast("Mapping[object, object]", value), path, depth)
                case list() | tuple():
                    items = enumerate(cast("list[object]", value))
                    return [self.value(item, f"{path}[{index}]", depth + 1) for index, item in items]
                case _:
                    return self.model(value, path, depth)
        finally:
            self.around.remove(me)

    def text(self, text: str, path: str) -> str:
        if not _storable_text(text):
            self.refuse(path, "text without U+0000 and without lone surrogates", shown(text))
        return text

    def integer(self, number: int, path: str) -> int:
        if not MIN_INT <= number <= MAX_INT:
            self.refuse(path, "an integer of at most 64 bits (a larger one as text)", shown(number))
        return number

    def finite(self, number: float, path: str) -> float:
        if not math.isfinite(number):
            self.refuse(path, "a finite number", shown(number))
        return number

    def moment(self, moment: datetime, path: str) -> str:
        if moment.tzinfo is None:
            self.refuse(path, "an aware datetime (with a time zone)", f"a naive one, {shown(moment)}")
        return moment.isoformat()

    def mapping(self, mapping: Mapping[object, object], path: str, depth: int) -> dict[str, object]:
        result: dict[str, object] = {}
        for key, item in mapping.items():
            name = key.value if isinstance(key, Enum) else key
            if not isinstance(name, str):
                self.refuse(path, "string keys", f"the key {shown(key)}")
                continue
            result[self.text(str(name), f"{path}.{name}")] = self.value(item, f"{path}.{name}", depth + 1)
        return result

    def model(self, value: object, path: str, depth: int) -> object:
        if isinstance(value, msgspec.Struct):
            return self.mapping(_struct_items(value), path, depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            items: dict[object, object] = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return self.mapping(items, path, depth)
        if hasattr(type(value), "model_fields") and callable(getattr(type(value), "model_dump", None)):
            return self.pydantic(value, path, depth)
        return self.refuse(path, "a value that JSON can hold", f"{type(value).__name__}: {shown(value)}")

    def pydantic(self, model: Any, path: str, depth: int) -> object:
        try:
            plain, dumped = model.model_dump(), model.model_dump(mode="json")
        except Exception as error:
            return self.refuse(path, "a model that can be dumped", f"{type(error).__name__}: {error}")
        self.naive(plain, path)  # its JSON would hide them
        return self.value(dumped, path, depth)

    def naive(self, value: object, path: str) -> None:
        match value:
            case datetime():
                self.moment(value, path)
            case dict():
                for key, item in cast("dict[object, object]", value).items():
                    self.naive(item, f"{path}.{key}")
            case list() | tuple():
                for index, item in enumerate(cast("list[object]", value)):
                    self.naive(item, f"{path}[{index}]")
            case _:
                pass

    def refuse(self, path: str, expected: str, got: str) -> object:
        self.problems.append(Problem(path, expected, got))
        return None


def _struct_items(value: msgspec.Struct) -> dict[object, object]:
    items: dict[object, object] = {}
    config: Any = value.__struct_config__
    if config.tag is not None:
        items[config.tag_field] = config.tag
    for field in msgspec.structs.fields(type(value)):
        item = getattr(value, field.name)
        if item is not msgspec.UNSET:
            items[field.encode_name] = item
    return items
