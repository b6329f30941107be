"""Background jobs for Python that live in the database you already have.

The words, one per idea: a *job* is a unit of work in a table; a *worker* is the code that performs it; a
*queue* limits how many run at once. An *instance* (`Staffa`) enqueues jobs and runs *nodes*. On a node each queue
has a *producer*, which claims jobs from the *engine* (all SQL for one kind of database) and hands them to the
*executor*; the *stager* makes due jobs available; the *heartbeat* says that the node lives, and the *lifeline*
takes jobs back from one that does not; the *pruner* deletes old ones; the *notifier* carries messages; a *peer*
says who leads; *telemetry* tells what happens.
"""

# Jobs
from staffa.jobs import Job, JobFailure, JobState, RunningJob, current_job
from staffa.outcome import Cancel, Discard, Snooze

# Workers
from staffa.worker import Worker, job

# Running
from staffa.app import QueueInfo, Staffa
from staffa.producer import Queue

# Plugins
from staffa.plugin import Plugin
from staffa.plugins import Lifeline, Pruner

# Errors; the whole tree is in staffa.errors
from staffa.errors import DatabaseUnavailable, InvalidJob, StaffaError

__version__ = "0.1.0"

__all__ = [
    # Jobs
    "Job",
    "RunningJob",
    "JobState",
    "JobFailure",
    "current_job",
    "Cancel",
    "Discard",
    "Snooze",
    # Workers
    "Worker",
    "job",
    # Running
    "Staffa",
    "Queue",
    "QueueInfo",
    # Plugins
    "Plugin",
    "Lifeline",
    "Pruner",
    # Errors
    "StaffaError",
    "InvalidJob",
    "DatabaseUnavailable",
]
