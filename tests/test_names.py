"""Databases are asked for capabilities, never for their names: a watchman.

Outside of the folders where databases are at home, no identifier and no text in code names one.
Docstrings and comments may, and so may the texts of the command line.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import staffa

ROOT = Path(staffa.__file__).parent

AT_HOME = {"engines", "connections", "migrations", "notifiers"}
TEXTS_MAY = {"cli"}

DATABASE = re.compile(r"sqlite|postgres|mysql|maria", re.IGNORECASE)

# The exceptions, by file: the embedded default, which has to be written down somewhere; and the demo's jobs, which
# do what a user's would, with a file of their own.
ALLOWED = {"config.py": {"sqlite:///staffa.db"}, "cli/demo_jobs.py": {"sqlite3"}}


def sources() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] not in AT_HOME]


def docstrings(tree: ast.AST) -> set[int]:
    """The texts that stand alone as a statement: docstrings of modules, classes, functions and attributes."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def words(tree: ast.AST, *, texts: bool) -> Iterator[str]:
    """Every identifier of a module, and its texts if they count."""
    prose = docstrings(tree)
    for node in ast.walk(tree):
        match node:
            case (
                ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name))
            ):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.alias(name=name, asname=alias):
                yield from (name, alias or "")
            case ast.Constant(value=str(text)) if texts and id(node) not in prose:
                yield text
            case _:
                pass


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_outside_of_their_folders_names_a_database(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    texts = path.relative_to(ROOT).parts[0] not in TEXTS_MAY
    tree = ast.parse(path.read_text(encoding="utf-8"))

    named = {word for word in words(tree, texts=texts) if DATABASE.search(word)}

    assert named <= ALLOWED.get(name, set())


def test_every_exception_to_the_rule_is_still_needed() -> None:
    for name, allowed in ALLOWED.items():
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        assert allowed <= set(words(tree, texts=True)), name
