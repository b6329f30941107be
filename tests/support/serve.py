"""Runs a command with servers to test on: `python -m tests.support.serve COMMAND …`; see scripts/servers.

A server that is set or runs already is used. Otherwise a private one is started from installed programs, installed
before where that is possible, and ended with the command. Where all of that fails, the command runs without.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.support.servers import POSTGRES_URL, PostgresServer, running_postgres
from tests.support.store import ServerMissing

APT_GET = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get")
INSTALL = "  Debian, Ubuntu: apt-get install postgresql\n  macOS: brew install postgresql"


def main(command: Sequence[str]) -> int:
    """Find or start the servers, run the command, end what was started; returns the command's exit code."""
    with ExitStack() as stack:
        try:
            os.environ[POSTGRES_URL] = postgres(stack)
        except ServerMissing as missing:
            if POSTGRES_URL in os.environ:
                sys.exit(f"servers: {missing}")
            say(
                f"{missing}\nThe tests on PostgreSQL are skipped (with CI=true they fail). To have them run:\n{INSTALL}"
            )
        return run(command)


def postgres(stack: ExitStack) -> str:
    """The URL of a PostgreSQL, found or started."""
    try:
        url = asyncio.run(running_postgres())
    except ServerMissing:
        if POSTGRES_URL in os.environ:
            raise
        return private_postgres(stack)
    say(f"PostgreSQL: {url.rpartition('@')[2]}, which runs already")
    return url


def private_postgres(stack: ExitStack) -> str:
    """A server of our own, of an installed version or of one that is installed now."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="staffa-servers-")))
    try:
        server = PostgresServer.fresh(folder, shared_buffers="128MB")
    except ServerMissing:
        if not install("postgresql"):
            raise
        server = PostgresServer.fresh(folder, shared_buffers="128MB")
    url = stack.enter_context(server).url
    say(f"PostgreSQL: {url.rpartition('@')[2]}, a private one")
    return url


def install(package: str) -> bool:
    """Install a package of the system, where we may; returns whether that has worked."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return False
    say(f"installing {package} with apt-get")
    for arguments in (("update",), ("install", "--yes", "--no-install-recommends", package)):
        done = subprocess.run([*APT_GET, "-qq", *arguments], stdout=sys.stderr, check=False)
    return done.returncode == 0


def run(command: Sequence[str]) -> int:
    """Run the command as if it had been called without us: Ctrl-C reaches it by itself, SIGTERM is passed on."""
    process = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: process.send_signal(number))
    code = process.wait()
    return code if code >= 0 else 128 - code


def say(text: str) -> None:
    """To people, who may have piped the tests' output elsewhere."""
    print(f"servers: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
