"""The demo: a checkpoint on disk is planned, proven, loaded by several processes, and answers an OpenAI client.

First SmolLM2-135M-Instruct over two pipeline stages, with a question whose answer is known; then ``demo/glm`` over four: a
small model of GLM-5.1's architecture, with its FP8 blocks, indexers, experts and MTP layer, which was trained on the King
James Bible and Jane Austen's novels and goes on with what it is given. Anything unexpected ends the demo with exit status 1. Run
it with ``make demo``.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai

from demo import smollm2

CACHE = Path(".cache/demo")
LOADMASTER = Path(sys.executable).with_name("loadmaster")
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
START_S, STOP_S = 300, 30
"""How long a server may take to be ready, and to be gone."""

QUESTION = "What is the capital of France?"
GLM = Path("demo/glm")
VERSE, SENTENCE = "And the LORD spake unto Moses,", "Mr. Darcy"
DRAFTS = '{"method": "mtp", "num_speculative_tokens": 1}'


def main() -> None:
    """Run both halves of the demo."""
    CACHE.mkdir(parents=True, exist_ok=True)

    heading("SmolLM2-135M-Instruct over two stages")
    checkpoint = smollm2.prepare(CACHE)
    loadmaster("plan", checkpoint, "-pp", "2")
    with serving(checkpoint, num_stages=2) as client:
        answer = chat(client, QUESTION)
    expect("Paris" in answer, f"the answer does not name Paris: {answer!r}")

    heading("A small GLM-5.1-FP8 over four stages")
    loadmaster("plan", GLM, "-pp", "4", "--speculative-config", DRAFTS)
    with serving(GLM, num_stages=4) as client:
        verse = chat(client, VERSE)
        sentence = chat(client, SENTENCE)
    expect(verse.startswith("saying"), f"the verse does not go on as the Bible does: {verse!r}")
    expect(sentence != "", "the sentence does not go on")

    heading("Done: both models were planned, proven, loaded and served")


def loadmaster(*args: object) -> None:
    """Run one command to its end."""
    command = [str(LOADMASTER), *map(str, args)]
    show(command)
    status = subprocess.run(command, env=ENVIRONMENT, stdin=subprocess.DEVNULL).returncode
    expect(status == 0, f"exit status {status}")


@contextmanager
def serving(checkpoint: Path, num_stages: int) -> Iterator[openai.OpenAI]:
    """Serve ``checkpoint`` while the block runs, and see that the server and all its stages are gone after it."""
    port = free_port()
    command = [str(LOADMASTER), "serve", str(checkpoint), "-pp", str(num_stages), "--port", str(port)]
    log = CACHE / f"{checkpoint.name}.log"
    show(command)
    print(f"  its output goes to {log}", flush=True)
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        wait_until_ready(server, f"http://127.0.0.1:{port}")
        with openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120
        ) as client:
            yield client
        stop(server)
    except BaseException:
        print(f"\nThe end of {log}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-40:]), flush=True)
        raise
    finally:
        if group_alive(server.pid):
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    """Return once ``/health`` answers 200, printing what it says of its progress until then."""
    began, said = time.monotonic(), ""
    while time.monotonic() - began < START_S:
        expect(server.poll() is None, f"the server ended with exit status {server.returncode} before it was ready")
        try:
            health = httpx.get(f"{url}/health", timeout=5)
        except httpx.TransportError:  # the port does not listen yet
            time.sleep(0.05)
            continue
        if health.status_code == 200:
            print(f"  /health 200, {time.monotonic() - began:.1f} s after the start", flush=True)
            return
        expect(health.status_code == 503, f"/health answered {health.status_code}: {health.text}")
        if health.text != said:
            said = health.text
            print(f"  /health 503 {said}", flush=True)
        time.sleep(0.2)
    fail(f"the server was not ready within {START_S} s")


def chat(client: openai.OpenAI, question: str) -> str:
    """Ask ``question`` greedily, print the answer as it streams in, and return it."""
    print(f"\n  user       {question}\n  assistant  ", end="", flush=True)
    answer = ""
    began = time.monotonic()
    for chunk in client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": question}],
        max_tokens=48,
        temperature=0,
        stream=True,
    ):
        piece = chunk.choices[0].delta.content or "" if chunk.choices else ""
        print(piece, end="", flush=True)
        answer += piece
    print(f"\n\n  {time.monotonic() - began:.1f} s", flush=True)
    return answer


def stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, and see that it does and leaves no process behind."""
    server.send_signal(signal.SIGTERM)
    try:
        status = server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        fail(f"the server did not end within {STOP_S} s of SIGTERM")
    expect(status in (0, -signal.SIGTERM, 128 + signal.SIGTERM), f"the server ended with exit status {status}")
    until = time.monotonic() + 5
    while group_alive(server.pid):  # an ended process counts until it is reaped
        expect(time.monotonic() < until, "the server left processes behind")
        time.sleep(0.05)


def group_alive(group: int) -> bool:
    """Return whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def heading(text: str) -> None:
    """Print a line that stands out."""
    print(f"\n== {text}\n", flush=True)


def show(command: list[str]) -> None:
    """Print a command as a user would type it."""
    print("$ " + shlex.join(["loadmaster", *command[1:]]), flush=True)


def expect(condition: bool, otherwise: str) -> None:
    """End the demo unless ``condition`` holds."""
    if not condition:
        fail(otherwise)


def fail(message: str) -> None:
    """End the demo."""
    raise SystemExit(f"\nThe demo failed: {message}")


if __name__ == "__main__":
    main()
