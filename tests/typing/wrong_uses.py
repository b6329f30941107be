"""What a user may get wrong: both type checkers shall refuse the marked lines, and no others.

Checked by test_typing.py, never run.
"""

from datetime import datetime, timedelta

from staffa import Cancel, Job, Pruner, Queue, RunningJob, Snooze, Staffa, Worker, job

app = Staffa()


@job
async def send(user_id: int, greeting: str = "hello") -> None: ...


@job(queue="images")
def resize(job: RunningJob, image_id: int, *, width: int = 640) -> None: ...


class Report(Worker):
    async def perform(self, job: Job) -> object: ...


# Options, misspelt or of a wrong type, at the definition.

job(quee="mail")  # error
job(queue=5)  # error
job(max_attempts="5")  # error
job(backoff="soon")  # error
job(backoff=lambda job: "soon")  # error
job(timeout="1m")  # error
job(runner="process")  # error
job(aliases=5)  # error
job(tags=[1])  # error
job(app="staffa")  # error


class Misspelt(Worker, quee="mail"):  # error
    pass


class WrongQueue(Worker, queue=5):  # error
    pass


class WrongBackoff(Worker, backoff="soon"):  # error
    pass


class WrongRunner(Worker, runner="fast"):  # error
    pass


# Hooks.


class WrongHooks(Worker):
    def backoff(self, job: Job) -> str:  # error
        return "soon"

    def timeout(self, job: Job) -> str:  # error
        return "soon"


class WrongPerform(Worker):
    async def perform(self, job: int) -> object:  # error
        return None


class TooManyParameters(Worker):
    async def perform(self, job: Job, more: int) -> object:  # error
        return None


async def use(running: RunningJob) -> None:
    # Arguments of a function.
    await send.enqueue()  # error
    await send.enqueue("42")  # error
    await send.enqueue(42, 5)  # error
    await send.enqueue(42, "hi", 5)  # error
    await send.enqueue(42, greting="hi")  # error
    await send.enqueue(user=42)  # error
    await send.enqueue(42, priority=1)  # error
    send.new("42")  # error
    send.new()  # error
    await send.new(42)  # error
    await send("42")  # error
    send.using(priority=1).new("42")  # error

    # The job is not enqueued.
    await resize.enqueue(running, 7)  # error
    await resize.enqueue("7")  # error
    resize.new(7, 640)  # error

    # Options of a call.
    send.using(prioriti=1)  # error
    send.using(priority="high")  # error
    send.using(schedule_in="1h")  # error
    send.using(scheduled_at=timedelta(hours=1))  # error
    send.using(schedule_in=datetime.now())  # error
    send.using(5)  # error
    Report.new({}, prioriti=1)  # error
    Report.new({}, priority="high")  # error
    Report.new([1])  # error
    Report.new(5)  # error
    Report.new({1: 2})  # error
    await Report.new({})  # error
    await Report.enqueue({}, queue=5)  # error
    await Report.enqueue({}, priorty=5)  # error

    # Raw jobs.
    Job()  # error
    Job("a.B")  # error
    Job(worker=Report)  # error
    Job(worker="a.B", prioriti=1)  # error
    Job(worker="a.B", tags=[1])  # error

    # The instance.
    Staffa(5)  # error
    Staffa(queue={"default": 10})  # error
    Staffa(queues={"default": "10"})  # error
    Staffa(plugins=True)  # error
    Staffa(plugins=[Pruner])  # error
    Staffa(grace_period="1m")  # error
    Queue(5)  # error
    Queue(limit="5")  # error
    Queue(limit=5, ack="later")  # error
    await app.enqueue({"n": 1})  # error
    await app.enqueue(Report)  # error
    await app.enqueue_all(send.new(1))  # error
    await app.get_job("7")  # error
    await app.list_jobs(state=5)  # error
    await app.list_jobs(worker=5)  # error
    await app.list_jobs(stat="completed")  # error

    # What comes back.
    (await app.get_job(7)).args  # error
    running.check_canceled()  # error
    Snooze("60")  # error
    Snooze()  # error
    Cancel("why", "else")  # error
