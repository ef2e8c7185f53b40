"""The way of events from the engine's thread to the server's requests."""

import asyncio
import threading

from loadmaster.engine import Output
from loadmaster.server.inbox import Events, Inbox


def test_no_event_is_lost_or_out_of_order() -> None:
    """Four threads put events while the loop delivers them."""

    async def check() -> list[list[int]]:
        inbox = Inbox(asyncio.get_running_loop())
        queues: list[Events] = [asyncio.Queue() for _ in range(4)]

        def put(queue: Events) -> None:
            for number in range(2000):
                inbox.put(queue, number, Output())

        threads = [threading.Thread(target=put, args=(queue,)) for queue in queues]
        for thread in threads:
            thread.start()
        got = [[(await queue.get())[0] for _ in range(2000)] for queue in queues]
        for thread in threads:
            thread.join()
        return got

    assert asyncio.run(check()) == [list(range(2000))] * 4


def test_an_event_after_the_loop_has_ended_is_dropped() -> None:
    async def make() -> Inbox:
        return Inbox(asyncio.get_running_loop())

    inbox = asyncio.run(make())
    inbox.put(asyncio.Queue(), 0, Output())
