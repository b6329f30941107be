"""The command line of the benchmark, and the order in which everybody takes a turn."""

import argparse
import json
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.contender import MODULES, contender, names
from benchmarks.process import Bench, Failed
from benchmarks.report import Measurement, Results, environment, report
from benchmarks.workloads import WORKLOADS


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers are ended, too
    options = parsed()
    measurements = []
    for measurement in measured(options):
        print(progress(measurement), file=sys.stderr, flush=True)
        measurements.append(measurement)
    results, head = Results(measurements), environment(options.contenders)
    print(report(results, head))
    if options.json:
        text = {
            "environment": head,
            "options": shown(options),
            "measurements": list(map(asdict, measurements)),
        }
        options.json.write_text(json.dumps(text, indent=1) + "\n")
    return 1 if results.failures() else 0


def parsed() -> argparse.Namespace:
    usual = [name for name in WORKLOADS if name != "memory"]
    parser = argparse.ArgumentParser(prog="scripts/bench", description=sys.modules["benchmarks"].__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--jobs", type=positive, default=20_000, help="jobs of a drain and of a bulk insert (%(default)s)")
    add("--limit", type=positive, default=100, help="jobs of a queue that run at once (%(default)s)")
    add("--reps", type=positive, default=3, help="repetitions of each measurement (%(default)s)")
    add("--only", type=among(WORKLOADS), default=usual, help=f"workloads, by comma: {', '.join(WORKLOADS)}")
    add(
        "--all",
        action="store_true",
        help="every workload; without it memory runs only when asked for by --only",
    )
    add("--contenders", type=among(MODULES), default=[*MODULES], help=f"by comma: {', '.join(MODULES)}")
    add("--memory-jobs", type=positive, default=1_000_000, help="jobs of the memory workload (%(default)s)")
    add("--folder", type=Path, help="where the database files are made (the system's temporary folder)")
    add("--json", type=Path, metavar="FILE", help="write every measurement to this file, too")
    options = parser.parse_args()
    options.only = list(WORKLOADS) if options.all else options.only
    return options


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got: {text}")
    return number


def among(table: Mapping[str, object]) -> Callable[[str], list[str]]:
    """Reads a list of names of that table, by comma."""

    def chosen(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(table):
            raise argparse.ArgumentTypeError(
                f"expected some of {','.join(table)}, got: {','.join(sorted(unknown))}"
            )
        return [name for name in table if name in text.split(",")]

    return chosen


def measured(options: argparse.Namespace) -> Iterator[Measurement]:
    """Every measurement, the contenders taking turns within each repetition, and another one beginning."""
    contenders = names(options.contenders)
    for repetition in range(options.reps):
        start = repetition % len(contenders)
        for name in options.only:
            for one in contenders[start:] + contenders[:start]:
                if takes_part(one, name) and (WORKLOADS[name].repeated or repetition == 0):
                    yield measure(options, name, one, repetition)


def takes_part(one: str, workload: str) -> bool:
    return workload in contender(one).variants[one.partition("-")[2]]


def measure(options: argparse.Namespace, name: str, one: str, repetition: int) -> Measurement:
    with tempfile.TemporaryDirectory(prefix="staffa-bench-", dir=options.folder) as folder:
        bench = Bench(
            contender=one,
            folder=Path(folder),
            jobs=options.jobs,
            limit=options.limit,
            memory_jobs=options.memory_jobs,
        )
        figures, error = {}, None
        try:
            figures = WORKLOADS[name].measure(bench)
        except (Failed, subprocess.TimeoutExpired, sqlite3.Error) as failure:
            error = str(failure)
    return Measurement(workload=name, contender=one, repetition=repetition, figures=figures, error=error)


def progress(m: Measurement) -> str:
    titles = WORKLOADS[m.workload].figures
    figures = ", ".join(f"{title} {m.figures[key]:,.1f}" for key, title in titles.items() if key in m.figures)
    return f"{m.repetition + 1} {m.workload:8} {m.contender:14} {m.error or figures}"


def shown(options: argparse.Namespace) -> dict[str, object]:
    return {name: value for name, value in vars(options).items() if name not in ("json", "folder")}


if __name__ == "__main__":
    sys.exit(main())
