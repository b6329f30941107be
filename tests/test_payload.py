"""Payloads: what may be stored in a job as JSON, and what is refused, with the path to it."""

import dataclasses
import json
import sys
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, ClassVar
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from staffa import payload
from staffa.errors import Problem

NAIVE = datetime(2026, 11, 21, 9, 30)
AWARE = datetime(2026, 11, 21, 9, 30, tzinfo=timezone(timedelta(hours=1)))

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(payload.MIN_INT, payload.MAX_INT)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), inner, max_size=5
        )
    ),
    max_leaves=30,
)
json_objects = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), json_values, max_size=5
)


class Colour(Enum):
    RED = "red"


class Size(StrEnum):
    LARGE = "large"


class Level(IntEnum):
    HIGH = 3


@dataclasses.dataclass
class User:
    name: str
    born: object = None


@dataclasses.dataclass
class Node:
    """A tree that knows its parents: the circle that people really make."""

    parent: "Node | None" = None
    children: list["Node"] = dataclasses.field(default_factory=list["Node"])


class Point(msgspec.Struct, tag="point", rename="camel"):
    x_axis: int
    seen_at: object = None


class Sparse(msgspec.Struct):
    x: int
    y: int | msgspec.UnsetType = msgspec.UNSET


class Model:
    """What a pydantic model looks like to those who do not import pydantic."""

    model_fields: ClassVar[dict[str, object]] = {}

    def __init__(self, **fields: object) -> None:
        self.fields = fields

    def model_dump(self, *, mode: str = "python") -> dict[str, object]:
        assert mode in ("python", "json")
        if mode == "python":
            return self.fields
        return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in self.fields.items()}


class BrokenModel(Model):
    def model_dump(self, *, mode: str = "python") -> dict[str, object]:
        raise ValueError("cannot be dumped")


def encoded(value: object) -> str:
    """A value that is accepted, as it is stored."""
    problems: list[Problem] = []
    text = payload.encode_object(value, "args", problems)
    assert problems == []
    return text


def refused(value: object) -> list[Problem]:
    """What is wrong with a value."""
    problems: list[Problem] = []
    assert payload.encode_object(value, "args", problems) == "{}"
    assert problems
    return problems


def nested(depth: int) -> dict[str, Any]:
    """An object with so many levels, itself included."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


PLACES: dict[str, tuple[Callable[[object], object], str]] = {
    "object": (lambda bad: {"a": bad}, "args.a"),
    "nested": (lambda bad: {"a": [0, {"b": bad}]}, "args.a[1].b"),
    "tuple": (lambda bad: {"a": (0, bad)}, "args.a[1]"),
    "dataclass": (lambda bad: {"user": User("Ada", bad)}, "args.user.born"),
    "struct": (lambda bad: {"at": Point(1, bad)}, "args.at.seenAt"),
    "mapping": (lambda bad: OrderedDict[str, object](a=bad), "args.a"),
    "model": (lambda bad: {"m": Model(at=bad)}, "args.m.at"),
}
every_place = pytest.mark.parametrize(("wrap", "path"), PLACES.values(), ids=PLACES.keys())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "a finite number"),
        (float("inf"), "a finite number"),
        (-float("inf"), "a finite number"),
        (b"bytes", "a value that JSON can hold"),
        (bytearray(b"bytes"), "a value that JSON can hold"),
        ({1, 2}, "a value that JSON can hold"),
        (frozenset({1}), "a value that JSON can hold"),
        (object(), "a value that JSON can hold"),
        (User, "a value that JSON can hold"),
        (iter([1]), "a value that JSON can hold"),
        (1j, "a value that JSON can hold"),
        (timedelta(seconds=1), "a value that JSON can hold"),
        (time(9, 30), "a value that JSON can hold"),
        ("\ud800", "text without U+0000 and without lone surrogates"),
        ("a\x00b", "text without U+0000 and without lone surrogates"),
        (2**63, "an integer of at most 64 bits (a larger one as text)"),
        (-(2**63) - 1, "an integer of at most 64 bits (a larger one as text)"),
        (Decimal("NaN"), "a finite Decimal"),
        (Decimal("Infinity"), "a finite Decimal"),
        (NAIVE, "an aware datetime (with a time zone)"),
    ],
)
@every_place
def test_what_json_cannot_keep_is_refused_with_the_path_to_it(
    value: object, expected: str, wrap: Callable[[object], object], path: str
) -> None:
    [problem] = refused(wrap(value))

    assert problem.path == path
    assert problem.expected == expected


def test_a_naive_datetime_is_called_so() -> None:
    [problem] = refused({"at": NAIVE})

    assert problem.got == "a naive one, datetime.datetime(2026, 11, 21, 9, 30)"


@pytest.mark.parametrize("key", [1, None, 1.5, b"a", ("a",), Level.HIGH])
def test_keys_that_are_not_text_are_refused(key: object) -> None:
    [problem] = refused({"a": {key: 1}})

    assert (problem.path, problem.expected) == ("args.a", "string keys")


@pytest.mark.parametrize("key", ["\x00", "a\udfff"])
def test_keys_that_cannot_be_stored_are_refused(key: str) -> None:
    [problem] = refused({"a": {key: 1}})

    assert problem.path.startswith("args.a.")


@pytest.mark.parametrize("value", [None, 1, "text", [1], (1,), Colour.RED, AWARE])
def test_the_whole_has_to_be_an_object(value: object) -> None:
    [problem] = refused(value)

    assert problem.path == "args"
    assert problem.expected == "a JSON object (a mapping with string keys)"


def test_everything_that_is_wrong_is_told_at_once() -> None:
    problems = refused({"a": b"", "b": [NAIVE, {"c": float("nan")}], "d": 1})

    assert [problem.path for problem in problems] == ["args.a", "args.b[0]", "args.b[1].c"]


def test_ninety_levels_are_kept_and_more_are_refused() -> None:
    assert json.loads(encoded(nested(payload.MAX_DEPTH))) == nested(payload.MAX_DEPTH)
    assert json.loads(encoded({"t": 1, "v": (nested(payload.MAX_DEPTH - 2),)}))["t"] == 1

    [problem] = refused(nested(1_000))

    assert problem.expected == "at most 90 levels of nesting"


def test_a_circle_is_refused() -> None:
    circle: dict[str, Any] = {}
    circle["self"] = circle

    assert refused({"a": circle})


@pytest.mark.parametrize("sides", [2, 5])
def test_a_circle_with_branches_is_refused_at_once(sides: int) -> None:
    circle: list[Any] = []
    circle += [circle] * sides
    root = Node()
    root.children = [Node(parent=root) for _ in range(sides)]

    assert len(refused({"a": circle})) == sides
    assert {problem.path for problem in refused({"tree": root})} == {
        f"args.tree.children[{index}].parent" for index in range(sides)
    }


def test_the_same_value_may_stand_in_two_places() -> None:
    shared = User("Ada")

    assert json.loads(encoded({"a": shared, "b": [shared, shared]}))["b"][1] == {"name": "Ada", "born": None}


def test_more_than_a_megabyte_is_refused_with_its_size() -> None:
    problems: list[Problem] = []

    payload.encode_object({"a": "x" * (payload.MAX_BYTES - 8)}, "args", problems)
    assert problems == []
    payload.encode_object({"a": "x" * (payload.MAX_BYTES - 7)}, "args", problems)

    assert problems == [Problem("args", "at most 1,000,000 bytes of JSON", "1,000,001 bytes")]


def test_the_size_is_that_of_the_bytes_not_of_the_characters() -> None:
    problems: list[Problem] = []

    payload.encode_object({"a": "ä" * 500_000}, "args", problems)

    assert [problem.got for problem in problems] == ["1,000,008 bytes"]


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (AWARE, "2026-11-21T09:30:00+01:00"),
        (datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC), "2026-01-02T03:04:05.000678+00:00"),
        (date(2026, 11, 21), "2026-11-21"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Decimal("1.50"), "1.50"),
        (Colour.RED, "red"),
        (Size.LARGE, "large"),
        (Level.HIGH, 3),
        (User("Ada", date(1815, 12, 10)), {"name": "Ada", "born": "1815-12-10"}),
        (Point(1, AWARE), {"type": "point", "xAxis": 1, "seenAt": "2026-11-21T09:30:00+01:00"}),
        (Sparse(1), {"x": 1}),
        (Model(at=AWARE, n=1), {"at": "2026-11-21T09:30:00+01:00", "n": 1}),
        ({Size.LARGE: {Colour.RED: 1}}, {"large": {"red": 1}}),
        (MappingProxyType({"a": (1, 2)}), {"a": [1, 2]}),
        (True, True),
        (payload.MAX_INT, payload.MAX_INT),
        (payload.MIN_INT, payload.MIN_INT),
        ("\U0001f600 ä \x7f", "\U0001f600 ä \x7f"),
        (type("Text", (str,), {})("a"), "a"),
        (type("Whole", (int,), {})(5), 5),
    ],
)
def test_what_has_an_obvious_form_is_converted(value: object, stored: object) -> None:
    assert json.loads(encoded({"a": value})) == {"a": stored}


@pytest.mark.parametrize("value", [User("Ada"), Point(1), Model(a=1), OrderedDict[str, int](a=1)])
def test_a_model_may_be_the_whole(value: object) -> None:
    assert json.loads(encoded(value))


def test_a_model_that_cannot_be_dumped_is_a_problem_like_any_other() -> None:
    [problem] = refused({"m": BrokenModel()})

    assert problem.path == "args.m"
    assert "cannot be dumped" in problem.got


def test_pydantic_models_are_stored_as_they_dump_themselves() -> None:
    model = pydantic.create_model("Order", at=(datetime, ...), price=(Decimal, ...))

    assert json.loads(encoded({"order": model(at=AWARE, price="1.50")})) == {
        "order": {"at": "2026-11-21T09:30:00+01:00", "price": "1.50"}
    }
    assert [problem.path for problem in refused({"order": model(at=NAIVE, price="1")})] == ["args.order.at"]


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert encoded({"b": {"y": 1, "x": 2}, "a": []}) == '{"a":[],"b":{"x":2,"y":1}}'
    assert encoded({"a": [], "b": {"x": 2, "y": 1}}) == '{"a":[],"b":{"x":2,"y":1}}'


@given(json_objects)
def test_any_json_object_comes_back_as_it_was(value: dict[str, Any]) -> None:
    assert payload.decode(encoded(value)) == value


@given(json_objects)
def test_equal_objects_are_equal_texts(value: dict[str, Any]) -> None:
    backwards = dict(reversed(value.items()))

    assert encoded(backwards) == encoded(value)
    assert encoded(OrderedDict(backwards)) == encoded(value)


@given(st.text(st.characters()), st.integers(30, 200))
def test_storable_text_can_always_be_stored_and_is_bounded(text: str, limit: int) -> None:
    kept = payload.storable(text, limit)

    assert kept.encode().decode() == kept
    assert "\x00" not in kept
    assert len(kept) <= limit + 60
    assert encoded({"error": kept})


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50))
def test_text_that_can_be_stored_is_left_as_it_is(text: str) -> None:
    assert payload.storable(text, 50) == text


def test_storable_text_keeps_its_head_and_its_tail_and_says_how_much_is_gone() -> None:
    kept = payload.storable("a" * 500 + "b" * 500, 90)

    assert kept == f"{'a' * 60}\n… 910 characters left out …\n{'b' * 30}"


def test_storable_text_marks_what_no_database_keeps() -> None:
    assert payload.storable("a\x00b\ud800c", 100) == "a\ufffdb\ufffdc"


def test_a_deep_value_does_not_need_a_deep_stack() -> None:
    limit = sys.getrecursionlimit()

    assert refused(nested(limit * 3))
