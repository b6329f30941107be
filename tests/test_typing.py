"""What type checkers say about right and wrong uses: the promise that misspellings are found before anything runs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "typing"
ROOT = HERE.parent.parent
FILES = ("right_uses.py", "wrong_uses.py")

Found = set[tuple[str, int]]


def by_mypy(folder: Path) -> Found:
    """The lines that mypy refuses, as (file, line)."""
    settings = folder / "mypy.ini"
    settings.write_text("[mypy]\nstrict = true\nwarn_unreachable = true\n")
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "mypy",
                "--config-file",
                str(settings),
                "--cache-dir",
                str(folder / "cache"),
            ),
            *("--no-error-summary", "--hide-error-context", "--output", "json"),
            *(str(HERE / file) for file in FILES),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    return {(Path(one["file"]).name, int(one["line"])) for one in said if one["severity"] == "error"}


def by_basedpyright(folder: Path) -> Found:
    """The lines that basedpyright refuses, in the strict mode of pyright, as (file, line)."""
    settings = {
        "include": [str(HERE / file) for file in FILES],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        "reportUnusedExpression": False,
        "reportUnusedCoroutine": False,
        "reportUnusedClass": False,
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    checker = Path(sys.executable).with_name("basedpyright")
    done = subprocess.run(
        [str(checker), "--outputjson", "--pythonpath", sys.executable, "--project", str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    said = json.loads(done.stdout)["generalDiagnostics"]
    errors = [one for one in said if one["severity"] == "error"]
    return {(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in errors}


def marked() -> Found:
    """The lines that shall be refused."""
    return {
        (file, number)
        for file in FILES
        for number, line in enumerate((HERE / file).read_text(encoding="utf-8").splitlines(), 1)
        if line.endswith("# error")
    }


@pytest.mark.parametrize("check", [by_mypy, by_basedpyright])
def test_right_uses_are_accepted_and_exactly_the_marked_wrong_ones_refused(
    check: Callable[[Path], Found], tmp_path: Path
) -> None:
    wanted = marked()

    found = check(tmp_path)

    assert sorted(found - wanted) == [], "refused without reason"
    assert sorted(wanted - found) == [], "accepted, but wrong"
    assert len(wanted) > 50
