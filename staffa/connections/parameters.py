"""`:name` parameters, in the forms that drivers want."""

import re
from functools import cache

__all__ = ["numbered"]

# Not the casts (`::text`), nor what stands in quotes, which a prefix may hold, too.
_PARAMETER = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|(?<![:\w]):([a-z_]\w*)")


@cache
def numbered(text: str) -> tuple[str, tuple[str, ...]]:
    """The text with `$1`, `$2`, … and the names in that order; a name that comes twice has one number."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        name: str | None = found[1]
        if name is None:
            return found[0]
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    return _PARAMETER.sub(number, text), tuple(names)
