"""Every code block of the documentation runs: a page at a time, in a process of its own, in an empty folder.

The process is this file as a script: `python tests/test_docs.py PAGE…` runs pages in the present folder, and
`python tests/test_docs.py --events` prints the table of events that docs/telemetry.md must hold.

What a block means, by its language:

* `python`: one that begins with `# name.py` is written to that file. Any other is executed where `await` is
  allowed, all those of a page in one namespace; a coroutine function `main` that it defines is awaited, unless the
  block makes an event loop itself; and each comment behind a `print(…)`, where `…` stands for anything, must be
  printed.
* `console`: what follows `$ ` is run by the shell and must exit with 0, or with N where it says `# exits N`. The
  lines below it must be in what it printed, in their order. `staffa start` runs in the background, and when the
  block ends and the lines below it have come, it gets a SIGTERM and must exit with 0.
* `toml`: written to the file that its first line names.
* `text`: right below a `python` block, what that must have printed. Elsewhere it is only read, and so is `json`.

`postgresql://app@db.example.com/shop` stands for a database on PostgreSQL: a page that names it gets an empty one.
"""

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TextIO

import pytest

import staffa
from staffa import errors, telemetry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = ("python", "console", "toml", "json", "text")

# Commands that are not run, and why.
SKIPPED: Mapping[str, str] = {
    "pip install ": "the package of this environment is the one to test",
    "python -m pip ": "the same",
    "python -m venv ": "the test has its environment",
    "git clone ": "the repository is here",
    "cd ": "a page stays in its folder",
    "scripts/": "they have runs of their own, and this is one of them",
}

# What the pages call their database on PostgreSQL, and the variable with the URL of the one that it stands for.
DATABASE, STANDS_FOR = "postgresql://app@db.example.com/shop", "STAFFA_TEST_DOCS_URL"

# Seconds: for a command, and for what a running instance is expected to print.
COMMAND_TAKES, STARTING_TAKES = 120.0, 60.0

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>.*)$")
FILE = re.compile(r"# ([\w/]+\.(?:py|toml))$")
PRINTS = re.compile(r"^\s*print\(.*\)  # (.+)$", re.MULTILINE)
START = re.compile(r"^((?:\w+=\S+ )*)(staffa start\b.*)$")
LOOPS = re.compile(r"\basyncio\.(?:run|Runner)\(")
EXITS = re.compile(r"# exits (\d+)$")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# The tests.


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_the_page_runs(page: Path, tmp_path: Path) -> None:
    run_in_process([page], tmp_path)


def docstrings() -> Iterator[tuple[str, str]]:
    """The docstrings of the public surface that hold code, by the name of what they describe."""
    for module in (staffa, errors, telemetry):
        for name in module.__all__:
            thing = getattr(module, name)
            members = vars(thing).items() if inspect.isclass(thing) else ()
            public = {f".{member}": value for member, value in members if not member.startswith("_")}
            for suffix, one in {"": thing, **public}.items():
                text = inspect.getdoc(getattr(one, "__func__", one)) or ""
                if "```" in text:
                    yield f"{module.__name__}.{name}{suffix}", text


DOCSTRINGS = dict(docstrings())


def test_the_examples_of_all_docstrings_run(tmp_path: Path) -> None:
    pages = [tmp_path / f"{name}.md" for name in DOCSTRINGS]
    for page in pages:
        page.write_text(DOCSTRINGS[page.stem])

    run_in_process(pages, tmp_path)


def test_there_are_pages_and_docstrings_to_run() -> None:
    assert len(PAGES) > 10
    assert {"staffa.Staffa", "staffa.Staffa.enqueue", "staffa.Worker", "staffa.job"} <= set(DOCSTRINGS)


def test_the_index_lists_every_page() -> None:
    listed = re.findall(r"^\* \[[^]]+\]\(([\w-]+\.md)\)", (ROOT / "docs/README.md").read_text(), re.MULTILINE)

    assert sorted(listed) == [page.name for page in PAGES[1:] if page.name != "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_to_a_file_of_the_repository_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", text)

    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_the_table_of_events_is_the_one_of_the_code() -> None:
    assert events_table() in (ROOT / "docs/telemetry.md").read_text(), (
        "docs/telemetry.md lacks the table that `python tests/test_docs.py --events` prints"
    )


BROKEN = {
    "a language without a meaning": "```ruby\nputs 1\n```",
    "a block without a language": "```\nprint(1)\n```",
    "a block without an end": "```python\nprint(1)",
    "an error": "```python\n1 / 0\n```",
    "an error in main": "```python\nasync def main():\n    1 / 0\n```",
    "a file that is no Python": "```python\n# broken.py\nprint(\n```",
    "another output": "```python\nprint(1)  # 2\n```",
    "another output below": "```python\nprint(1)\n```\n\n```text\n2\n```",
    "a command that fails": "```console\n$ false\n```",
    "a command that should fail": "```console\n$ true  # exits 1\n```",
    "a command that prints something else": "```console\n$ echo one\ntwo\n```",
    "an output without a command": "```console\ntwo\n```",
    "an instance that does not start": "```console\n$ staffa start --queues a=0\n```",
    "configuration for no file": '```toml\nname = "x"\n```',
}


@pytest.mark.parametrize("what", BROKEN)
async def test_what_is_broken_is_noticed(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(BROKEN[what])

    with pytest.raises((Wrong, ZeroDivisionError, SyntaxError)):
        await Page(page).run()


def run_in_process(pages: Sequence[Path], folder: Path) -> None:
    said = {name: value for name, value in os.environ.items() if not name.startswith("STAFFA_")}
    said.pop("DATABASE_URL", None)
    if any(DATABASE in block.code for page in pages for block in blocks(page.read_text())):
        with fresh_database() as url:
            run_with(pages, folder, {**said, STANDS_FOR: url})
    else:
        run_with(pages, folder, said)


@contextlib.contextmanager
def fresh_database() -> Generator[str]:
    """An empty one, for a page."""
    # Here, for where this file runs as a script there is no package `tests`.
    from tests.support.servers import query, running_postgres, server_needed, with_database

    with server_needed():
        server = asyncio.run(running_postgres())
    name = f"staffa_docs_{os.getpid()}"
    drop = f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'
    asyncio.run(query(server, drop))
    asyncio.run(query(server, f'CREATE DATABASE "{name}"'))
    try:
        yield with_database(server, name)
    finally:
        asyncio.run(query(server, drop))


def run_with(pages: Sequence[Path], folder: Path, said: Mapping[str, str]) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), said.get("PATH", "")])
    process = subprocess.run(
        [sys.executable, "-P", "-W", "error", __file__, *map(str, pages)],
        cwd=folder,
        env={**said, "PATH": path, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if process.returncode:
        pytest.fail(process.stdout, pytrace=False)


def events_table() -> str:
    """The table of all events, as docs/telemetry.md must hold it."""
    rows = [
        f"| `{name}` | {event.says} | {', '.join(f'`{key}`' for key in event.keys)} |"
        for name, event in telemetry.EVENTS.items()
    ]
    return "\n".join(["| Event | When | Data |", "|---|---|---|", *rows])


def anchors(text: str) -> set[str]:
    """What the headings of a page are linked by."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# The runner.


class Wrong(Exception):
    """A page does not keep what it promises."""


@dataclass(frozen=True, slots=True)
class Block:
    """The code between two fences; `line` is the page's line of its first one, `end` that of the lower fence."""

    language: str
    line: int
    code: str

    @property
    def end(self) -> int:
        return self.line + self.code.count("\n") + 1


def blocks(text: str) -> Iterator[Block]:
    """The code blocks of a page, in their order."""
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        if fence := FENCE.match(line):
            code = list(until_fence(lines, number))
            yield Block(fence["language"].strip(), number + 1, textwrap.dedent("\n".join(code)))


def until_fence(lines: Iterable[tuple[int, str]], opened: int) -> Iterator[str]:
    for _, line in lines:
        if fence := FENCE.match(line):
            if fence["language"]:
                break
            return
        yield line
    raise Wrong(f"line {opened}: this block has no end")


def with_real_database(text: str) -> str:
    """The page's text, its database one that is there."""
    url = os.environ.get(STANDS_FOR, DATABASE)
    return text.replace(f"{DATABASE}?", f"{url}{'&' if '?' in url else '?'}").replace(DATABASE, url)


class Page:
    """Runs the blocks of a page in the present folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.module = ModuleType("page")  # what `__name__` says in its blocks
        self._printed, self._printed_above = "", 0

    async def run(self) -> None:
        """All of them."""
        for block in blocks(with_real_database(self.path.read_text())):
            try:
                await self._run_block(block)
            except Wrong as wrong:
                raise Wrong(f"{self.path.name}, line {block.line}: {wrong}") from None

    async def _run_block(self, block: Block) -> None:
        first = FILE.match(block.code.partition("\n")[0])
        match block.language:
            case "python" if first is None:
                await self._execute(block)
            case "python" | "toml" if first is not None:
                Path(first[1]).parent.mkdir(exist_ok=True)
                Path(first[1]).write_text(block.code + "\n")
                if first[1].endswith(".py"):
                    compile(block.code, first[1], "exec")
            case "toml":
                raise Wrong("its first line does not say which file it is: # staffa.toml")
            case "console":
                await asyncio.to_thread(run_console, block.code)
            case "text" if block.line - 3 <= self._printed_above:
                check_output(block.code.splitlines(), self._printed)
            case "json" | "text":
                pass
            case other:
                raise Wrong(f"expected one of the languages {', '.join(LANGUAGES)}, got: {other!r}")

    async def _execute(self, block: Block) -> None:
        # As many empty lines before it as in the page: a traceback then shows the page's own lines.
        source = "\n" * (block.line - 1) + block.code
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code: CodeType = compile(source, str(self.path), "exec", flags)
        printed = Printed(sys.stdout)
        with contextlib.redirect_stdout(printed):
            await self._execute_code(code, makes_loop=LOOPS.search(block.code) is not None)
        self._printed, self._printed_above = printed.getvalue(), block.end
        check_output(PRINTS.findall(block.code), self._printed)

    async def _execute_code(self, code: CodeType, *, makes_loop: bool) -> None:
        space = vars(self.module)
        if makes_loop:
            await asyncio.to_thread(eval, code, space)  # where no loop runs
            return
        waiting: Any = eval(code, space)
        if code.co_flags & inspect.CO_COROUTINE:
            await waiting
        main: Callable[[], Any] | None = space.pop("main", None)
        if main is not None:
            await main()


class Printed(io.StringIO):
    """Keeps what is printed, and passes it on."""

    def __init__(self, to: TextIO) -> None:
        super().__init__()
        self._to = to

    def write(self, text: str, /) -> int:
        self._to.write(text)
        return super().write(text)


def run_console(code: str) -> None:
    """Each command with the lines that are shown below it."""
    started: list[tuple[Started, list[str]]] = []
    try:
        for command, shown in commands(code):
            if any(command.startswith(skipped) for skipped in SKIPPED):
                continue
            if START.match(command) and not EXITS.search(command) and "--dry-run" not in command:
                started.append((Started(command), shown))
            else:
                run_command(command, shown)
        for process, shown in started:
            process.wait_for(shown)
            process.stop()
    finally:
        for process, _ in started:
            process.kill()


def commands(code: str) -> Iterator[tuple[str, list[str]]]:
    """Commands, and what is shown below each."""
    command: str | None = None
    shown: list[str] = []
    for line in code.splitlines():
        if line.startswith("$ "):
            if command is not None:
                yield command, shown
            command, shown = line[2:].strip(), []
        elif command is None:
            raise Wrong(f"expected a line with a command, `$ …`, got: {line!r}")
        elif line.strip():
            shown.append(line)
    if command is not None:
        yield command, shown


def run_command(command: str, shown: Sequence[str]) -> None:
    """Run it, and hold it to its exit code and its output."""
    found = EXITS.search(command)
    wanted = int(found[1]) if found else 0
    process = subprocess.run(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_TAKES,
    )
    print(f"$ {command}\n{process.stdout}", end="")
    if process.returncode != wanted:
        raise Wrong(f"expected `{command}` to exit with {wanted}, got: {process.returncode}")
    check_output(shown, process.stdout)


class Started:
    """A `staffa start` in the background."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.log = Path(f"start-{time.monotonic_ns()}.log")
        with self.log.open("w") as log:
            # exec: the signal is for staffa, not for the shell.
            self._process = subprocess.Popen(
                START.sub(r"\1exec \2", command),
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.wait_for(["…instance.start…"])

    def wait_for(self, shown: Sequence[str]) -> None:
        """Until it has printed this."""
        deadline = time.monotonic() + STARTING_TAKES
        while missing := missing_in(shown, self.log.read_text()):
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise Wrong(f"`{self.command}` did not print {missing!r}, but:\n{self.log.read_text()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """As an operator would."""
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(COMMAND_TAKES)
        said = self.log.read_text()
        print(f"$ {self.command}\n{said}", end="")
        if code != 0:
            raise Wrong(f"expected `{self.command}` to exit with 0 after SIGTERM, got: {code}")

    def kill(self) -> None:
        """Whatever happened."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self.log.unlink(missing_ok=True)


def check_output(shown: Sequence[str], printed: str) -> None:
    """Hold what is shown to what was printed."""
    missing = missing_in(shown, printed)
    if missing is not None:
        raise Wrong(f"{missing!r} is shown, but was not printed; this was:\n{printed}")


def missing_in(shown: Sequence[str], printed: str) -> str | None:
    """The first shown line that was not printed in its place; `…` stands for anything, and spaces do not count."""
    lines = iter(printed.splitlines())
    for line in shown:
        pattern = ".*".join(re.escape(" ".join(part.split())) for part in line.split("…"))
        pattern = pattern.replace(".*", r" ?.* ?")
        if not any(re.fullmatch(pattern, " ".join(printed_line.split())) for printed_line in lines):
            return line
    return None


def main(arguments: Sequence[str]) -> None:
    """What this file does as a script."""
    if list(arguments) == ["--events"]:
        print(events_table())
        return
    sys.path.insert(0, os.getcwd())
    for page in arguments:
        try:
            asyncio.run(Page(Path(page)).run())
        except Wrong as wrong:
            sys.exit(str(wrong))


if __name__ == "__main__":
    main(sys.argv[1:])
