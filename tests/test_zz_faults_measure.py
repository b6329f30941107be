import signal, time, pytest
from tests.support.faults import Scene
from tests.support.proxy import Proxy
from tests.support.process_jobs import first_time_endless
from tests.test_faults import server, scene, settings  # noqa

async def test_measure(scene, capsys):
    for extra in ("", "?command_timeout=2&connect_timeout=2"):
        with Proxy(scene.server.url) as proxy:
            worker = scene.start(url=f"{proxy.url}{extra}", GRACE="1")
            await scene.enqueue([first_time_endless.new() for _ in range(3)])
            await scene.begins(3 if not extra else 6)
            proxy.blackhole()
            t = time.monotonic()
            worker.send(signal.SIGTERM)
            worker.wait(300)
            with capsys.disabled():
                print("\nSTOP TOOK", time.monotonic() - t, extra); print(worker.said[-3000:])
