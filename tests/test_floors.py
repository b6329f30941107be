"""The house has floors, and imports point down or sideways: a watchman.

The rule is the two tables below. `TYPE_CHECKING` imports may point up, for names in annotations.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import staffa

ROOT = Path(staffa.__file__).parent

FLOORS = [
    {"errors", "clock", "backoff", "options", "telemetry", "outcome", "payload", "jobs"},
    {"service", "registry", "signature", "worker"},
    {"steps", "engine", "engines", "connections", "migrations"},
    {"notifier", "notifiers", "peer", "peers", "runtime"},
    {"executor", "runners", "producer", "stager", "heartbeat", "plugin", "plugins"},
    {"config", "signals", "services", "app"},
]
EDGES = {"cli", "__main__"}

# On the floor where jobs run, every step sideways is listed; elsewhere it is enough that there is no circle.
SIDEWAYS = {
    "runners": set[str](),
    "executor": {"runners"},
    "producer": {"executor"},
    "heartbeat": {"executor", "producer"},
    "stager": set[str](),
    "plugin": set[str](),
    "plugins": {"plugin", "heartbeat"},
}

# What the edges may import: the public names, and the public submodules with what is in them.
PUBLIC = {"errors", "telemetry", "config", "migrations", "engines", "connections"}

# Packages of others, and where they are at home. Everything else is the standard library.
HOMES = {
    "msgspec": {"payload", "engine", "engines"},
    "asyncpg": {"connections"},
    "click": {"cli"},
    "rich": {"cli"},
    "sqlite3": {"connections"},
    "uvloop": {"app"},
}

# The demo's jobs do what a user's would: they write their results to a file of their own.
EXCEPTIONS = {("staffa.cli.demo_jobs", "sqlite3")}

# Who may ask what time it is, and the calls that ask.
CLOCK = {"clock"}
ASKS = {"time.time", "time.monotonic", "time.perf_counter", "datetime.now", "datetime.utcnow", "date.today"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def home(module: str) -> str:
    """The noun of a module: its file or folder directly below `staffa/`."""
    return [*module.split("."), ""][1] or "staffa"


def floor(module: str) -> int:
    noun = home(module)
    found = [height for height, nouns in enumerate(FLOORS) if noun in nouns]
    return found[0] if found else len(FLOORS)


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Everything in a module except what only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from nodes(node)


def imports(module: str) -> set[str]:
    """The modules that one imports, ours by their full name."""
    found: set[str] = set()
    for node in nodes(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written in full, not relative"
            source = str(node.module)
            inner = {f"{source}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inner
            if len(inner) < len(node.names):
                found.add(source)
    return found


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name.partition(".")[0] == "staffa"}


def inside() -> list[str]:
    """Every module below the edges, without the table of contents."""
    return [module for module in MODULES if module != "staffa" and home(module) not in EDGES]


def test_every_module_stands_on_a_floor() -> None:
    nouns = {home(module) for module in MODULES} - {"staffa"} - EDGES

    assert nouns == set().union(*FLOORS)


@pytest.mark.parametrize("module", inside())
def test_imports_point_down_or_sideways_never_up(module: str) -> None:
    for other in ours(module):
        assert floor(other) <= floor(module), f"{module} imports {other}, which stands higher"


def test_where_jobs_run_every_step_sideways_is_listed() -> None:
    for module in inside():
        if floor(module) == 4:
            beside = {home(other) for other in ours(module) if floor(other) == 4} - {home(module)}
            assert beside <= SIDEWAYS[home(module)], module


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: ours(module) - {module} for module in inside()}

    assert list(TopologicalSorter(graph).static_order())


def test_the_edges_import_only_public_names() -> None:
    for module in MODULES:
        if home(module) in EDGES:
            inner = {home(other) for other in ours(module)} - EDGES - {"staffa"}
            assert inner <= PUBLIC, module


@pytest.mark.parametrize("module", sorted(MODULES))
def test_packages_of_others_have_homes(module: str) -> None:
    for other in {name.partition(".")[0] for name in imports(module)} - {"staffa"}:
        everywhere = other in sys.stdlib_module_names and other not in HOMES
        if not everywhere and (module, other) not in EXCEPTIONS:
            assert home(module) in HOMES.get(other, set()), f"{module} imports {other}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_task_is_kept_by_somebody__case_63(module: str) -> None:
    """The event loop itself refers to tasks weakly: one that nobody keeps may be collected before it is done."""
    thrown_away = [
        ast.unparse(node)
        for node in ast.walk(MODULES[module])
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func).endswith(("create_task", "ensure_future"))
    ]

    assert thrown_away == []


@pytest.mark.parametrize("module", inside())
def test_only_the_clock_asks_the_time(module: str) -> None:
    asked = {
        ast.unparse(node) for node in ast.walk(MODULES[module]) if isinstance(node, ast.Attribute)
    } & ASKS

    assert not asked or home(module) in CLOCK
