"""What the clients of a soak do.

Each deed is one request or two, and raises `UnexpectedError` if what comes back is not what was asked for.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from tools.soak.http import Connection

LIMIT_S: Final = 120.0
"""A deed that takes longer counts as a server that hangs."""

Deed = Callable[[Connection, random.Random], Awaitable[None]]


class UnexpectedError(Exception):
    """The server answered something else than it must."""


def completion(numbers: random.Random, tokens: int, **fields: Any) -> dict[str, Any]:
    """Return the body of a completion of ``tokens`` tokens, with a prompt of 1 to 60 tokens."""
    prompt = [numbers.randrange(3, 250) for _ in range(numbers.randint(1, 60))]
    return {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0.8, **fields}


async def whole(connection: Connection, numbers: random.Random) -> None:
    """Ask for a whole answer, sometimes several choices."""
    tokens, choices = numbers.randint(1, 40), numbers.choice([1, 1, 3])
    status, answer = await connection.json("POST", "/v1/completions", completion(numbers, tokens, n=choices))
    expect(status == 200, status, answer)
    expect(answer["usage"]["completion_tokens"] == tokens * choices, status, answer)


async def chat(connection: Connection, numbers: random.Random) -> None:
    """Ask for a whole answer to a message."""
    words = " ".join(numbers.choice(["pages", "stages", "ranks", "tokens"]) for _ in range(numbers.randint(1, 9)))
    messages = [{"role": "user", "content": words}]
    body = {"messages": messages, "max_tokens": numbers.randint(1, 20)}
    status, answer = await connection.json("POST", "/v1/chat/completions", body)
    expect(status == 200 and answer["choices"][0]["finish_reason"] in ("stop", "length"), status, answer)


async def stream(connection: Connection, numbers: random.Random) -> None:
    """Read a stream to its end."""
    tokens = numbers.randint(1, 60)
    body = completion(numbers, tokens, stream=True, stream_options={"include_usage": True})
    await connection.send("POST", "/v1/completions", json.dumps(body).encode())
    status, answer = await connection.status(), await connection.body()
    expect(status == 200 and answer.endswith(b"data: [DONE]\n\n"), status, answer[-500:])
    expect(f'"completion_tokens":{tokens},'.encode() in answer, status, answer[-500:])


async def leave_stream(connection: Connection, numbers: random.Random) -> None:
    """Close the connection in the middle of a stream."""
    await connection.send("POST", "/v1/completions", json.dumps(completion(numbers, 200, stream=True)).encode())
    status = await connection.status()
    expect(status == 200, status, "")
    left = numbers.randint(1, 8)
    async for _ in connection.parts():
        left -= 1
        if left == 0:
            break
    connection.close()


async def leave_early(connection: Connection, numbers: random.Random) -> None:
    """Close the connection before there can be an answer: in the queue, or during the prompt."""
    body = {"prompt": [7] * numbers.randint(100, 400), "max_tokens": 100, "ignore_eos": True}
    await connection.send("POST", "/v1/completions", json.dumps(body).encode())
    await asyncio.sleep(numbers.random() * 0.05)
    connection.close()


async def time_out(connection: Connection, numbers: random.Random) -> None:
    """Give up on an answer after a moment, and come back with another request, on a new connection."""
    body = completion(numbers, 300)
    with suppress(TimeoutError):
        async with asyncio.timeout(numbers.uniform(0.05, 0.5)):
            status, answer = await connection.json("POST", "/v1/completions", body)
            expect(status == 200, status, answer)
    connection.close()
    await whole(connection, numbers)


async def pause(connection: Connection, numbers: random.Random) -> None:
    """Use a connection, leave it idle, and use it again."""
    for wait in (numbers.uniform(0, 2), 0):
        status, answer = await connection.json("GET", "/v1/models")
        expect(status == 200 and answer["data"][0]["id"] == "model", status, answer)
        await asyncio.sleep(wait)


async def wrong_body(connection: Connection, numbers: random.Random) -> None:
    """Send a body that must be refused."""
    wrong = numbers.choice(
        [
            b'{"prompt": [1, 2',
            b"\xff\xfe{}",
            b'{"prompt": "a", "max_tokens": "many"}',
            b'{"prompt": [999999999], "max_tokens": 1}',
            b'{"prompt": [1], "temperature": NaN}',
            b'{"prompt": ' + b"[" * 200 + b"]" * 200 + b"}",
            b'{"prompt": [1], "max_tokens": 1e400}',
            b"[]",
        ]
    )
    await connection.send("POST", "/v1/completions", wrong)
    status, answer = await connection.status(), await connection.body()
    expect(status == 400 and b'"error"' in answer, status, answer)


async def wrong_route(connection: Connection, numbers: random.Random) -> None:
    """Ask for what does not exist."""
    method, path, expected = numbers.choice(
        [("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405), ("DELETE", "/v1/models", 405)]
    )
    status, answer = await connection.json(method, path)
    expect(status == expected and "error" in answer, status, answer)


async def no_http(connection: Connection, numbers: random.Random) -> None:
    """Send bytes that are not HTTP on a new connection; the server answers 400, or closes it."""
    connection.close()
    await connection.send_raw(
        numbers.choice([b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"HELLO\r\n\r\n", b"GET / HTTP/9.9 x\r\n\r\n"])
    )
    with suppress(ConnectionError):
        status = await connection.status()
        expect(status == 400, status, "")
    connection.close()


async def half_request(connection: Connection, numbers: random.Random) -> None:
    """Close the connection in the middle of a request's head or body."""
    connection.close()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
    await connection.send_raw((head + b'{"prompt": [1')[: numbers.randint(5, len(head) + 13)])
    await asyncio.sleep(numbers.random() * 0.2)
    connection.close()


DEEDS: Final[dict[str, tuple[Deed, int]]] = {
    "whole": (whole, 6),
    "chat": (chat, 3),
    "stream": (stream, 6),
    "leave stream": (leave_stream, 4),
    "leave early": (leave_early, 3),
    "time out": (time_out, 3),
    "pause": (pause, 1),
    "wrong body": (wrong_body, 2),
    "wrong route": (wrong_route, 1),
    "no HTTP": (no_http, 1),
    "half request": (half_request, 1),
}
"""Name → what a client does, and how often, relative to the others."""


def expect(holds: bool, status: int, answer: object) -> None:
    """Raise an `UnexpectedError` with what was answered, unless ``holds``."""
    if not holds:
        raise UnexpectedError(f"status {status}: {str(answer)[:500]}")


async def client(
    port: int, numbers: random.Random, first: int, until: float, note: Callable[[str, str | None], None]
) -> None:
    """Do deed number ``first``, then others at random until the loop's time is ``until``.

    Each is reported to ``note``, with what was unexpected, or None. A connection is kept for several deeds, so the server
    sees new and used ones.
    """
    loop = asyncio.get_running_loop()
    connection = Connection(port)
    name = list(DEEDS)[first % len(DEEDS)]
    while loop.time() < until:
        failure: str | None = None
        try:
            async with asyncio.timeout(LIMIT_S):
                await DEEDS[name][0](connection, numbers)
        except TimeoutError:
            failure = f"no answer within {LIMIT_S:.0f} s"
        except (UnexpectedError, OSError, ValueError, KeyError) as error:
            failure = f"{type(error).__name__}: {error}"
        note(name, failure)
        if failure is not None or numbers.random() < 0.2:
            connection.close()
        [name] = numbers.choices(list(DEEDS), [weight for _, weight in DEEDS.values()])
    connection.close()
