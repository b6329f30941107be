"""`staffa bench`."""

import json
from pathlib import Path

from .conftest import Run


def test_bench_measures_beside_the_file_and_leaves_nothing(staffa: Run, project: Path) -> None:
    before = set(project.iterdir())

    result = staffa("bench", "--database", "sqlite:///jobs.db?synchronous=normal", "--jobs", "50", "--json")

    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["folder"] == str(project)
    assert all(value > 0 for name, value in figures.items() if name != "folder")
    assert figures["latency_p50"] <= figures["latency_p95"] <= figures["latency_p99"]
    assert set(project.iterdir()) == before


def test_bench_tells_people_where_it_measured(staffa: Run, project: Path) -> None:
    result = staffa("bench", "--database", "sqlite:///jobs.db", "--jobs", "20", "--limit", "5")

    assert result.exit_code == 0, result.output
    assert "jobs/s" in result.stdout
    assert f"measured on {project}/staffa-bench-" in result.stdout
    assert "it has been deleted" in result.stdout


def test_bench_names_a_folder_that_is_missing(staffa: Run) -> None:
    result = staffa("bench", "--database", "sqlite:///no/where.db")

    assert result.exit_code == 1
    assert "folder that exists" in result.stderr
