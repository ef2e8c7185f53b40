"""Chat templates are rendered as transformers renders them, and end at their limits. Real processes."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadmaster.engine import Tokenizer
from loadmaster.engine.renderer_pool import RendererPool
from loadmaster.engine.template import ChatTemplate
from loadmaster.errors import CheckpointError, RequestError, RunError

HELLO = [{"role": "user", "content": "hi"}]

CHATML = (
    "{%- if messages[0].role == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n"
    "{%- endif %}\n{%- set ns = namespace(last=messages|length - 1) %}\n{%- for message in messages[::-1] %}\n"
    "    {%- set index = (messages|length - 1) - loop.index0 %}\n"
    "    {%- if ns.last and message.role == 'user' and not message.content.startswith('<tool>') %}\n"
    "        {%- set ns.last = index %}\n    {%- endif %}\n{%- endfor %}\n{%- for message in messages %}\n"
    "    {%- if message.role == 'user' %}\n        {{- '<|im_start|>' + message.role + '\\n' + message.content }}\n"
    "    {%- elif message.role == 'assistant' %}\n        {%- set content = message.content.split('</think>')[-1] %}\n"
    "        {{- '<|im_start|>assistant\\n' + content.lstrip('\\n') }}\n    {%- endif %}\n    {{- '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n"
    "    {%- if enable_thinking is defined and enable_thinking is false %}\n        {{- '<think>\\n\\n</think>\\n\\n' }}\n"
    "    {%- endif %}\n{%- endif %}"
)
HEADERS = (
    "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    "        {%- set date_string = strftime_now('%d %b %Y') %}\n    {%- else %}\n"
    "        {%- set date_string = '26 Jul 2024' %}\n    {%- endif %}\n{%- endif %}\n"
    "{{- 'Today: ' + date_string + '\\n\\n' }}\n{%- for message in messages %}\n"
    "    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + eos_token }}\n{%- endfor %}\n"
    "{%- if tools is not none and tools %}{{ tools | tojson(indent=4) }}{% endif %}"
)
INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
BLOCKS = (
    "[gMASK]<sop>\n{% macro visible(content) %}\n  {% if content is string %}{{ content }}{% endif %}\n{% endmacro %}\n"
    "{% for m in messages %}\n  {% if m.role == 'skip' %}\n    {% continue %}\n  {% endif %}\n"
    "<|{{ m.role }}|>\n{{ visible(m.content) }}\n  {% if m.tool_calls is defined %}{{ m.tool_calls | tojson }}{% endif %}\n"
    "  {% if loop.index > 3 %}{% break %}{% endif %}\n{% endfor %}\n{{ dict(a=1, b=documents) }}"
)
CONVERSATIONS: list[list[dict[str, Any]]] = [
    HELLO,
    [{"role": "system", "content": " s "}, {"role": "user", "content": "<b> & 'é€😀'\n"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>x</think>\nb", "name": None, "tool_calls": [{"f": {"n": 1.5e300}}]},
        {"role": "user", "content": "c" * 1000},
    ],
    [{"role": "skip", "content": ""}, {"role": "assistant", "content": "b", "reasoning": "r"}],
]

FOREVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(s='a' * 99) %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"


@pytest.fixture(scope="module")
def renderers() -> Iterator[RendererPool]:
    renderers = RendererPool()
    yield renderers
    renderers.close()


@pytest.mark.parametrize(
    "template", [CHATML, HEADERS, INSTRUCT, BLOCKS], ids=["chatml", "headers", "instruct", "blocks"]
)
def test_a_template_renders_as_transformers_renders_it(
    renderers: RendererPool, model_path: Path, template: str
) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(model_path), local_files_only=True)
    ours = ChatTemplate(template, theirs.special_tokens_map, renderers=renderers)
    settings: dict[str, dict[str, Any]] = {
        CHATML: {"enable_thinking": False}, HEADERS: {"date_string": "1 May"}, BLOCKS: {"documents": [{"title": "t"}]}
    }  # fmt: skip
    for messages in CONVERSATIONS:
        for prompt in (True, False):
            for variables in ({}, settings.get(template, {})):
                try:
                    text = theirs.apply_chat_template(
                        messages, chat_template=template, tokenize=False, add_generation_prompt=prompt, **variables
                    )
                except Exception as error:
                    with pytest.raises(RequestError) as caught:
                        ours.render(messages, add_generation_prompt=prompt, variables=variables)
                    assert caught.value.message == f"the chat template rejects the messages: {error}"
                else:
                    assert ours.render(messages, add_generation_prompt=prompt, variables=variables) == text
    ours.close()


@pytest.mark.parametrize(
    ("template", "allowed"),
    [
        (CHATML, "content, enable_thinking"),
        (HEADERS, "date_string"),
        (INSTRUCT, "none"),
        (BLOCKS, "documents"),
        ("{{ padding }}", "none"),
    ],
)
def test_a_request_may_set_what_the_template_reads_and_nothing_else(
    renderers: RendererPool, template: str, allowed: str
) -> None:
    ours = ChatTemplate(template, {"bos_token": "<b>", "eos_token": "<e>", "image_token": "<i>"}, renderers=renderers)
    for name in (
        "chat_template",
        "padding",
        "tokenizer_kwargs",
        "bos_token",
        "image_token",
        "messages",
        "range",
        "x" * 999,
        "",
    ):
        with pytest.raises(RequestError, match="is not a variable of the model's chat template") as caught:
            ours.render(HELLO, variables={name: 1})
        assert name[:150] in caught.value.message
        assert caught.value.message.endswith(f"; allowed: {allowed}")
        assert len(caught.value.message) < 400
    ours.close()


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (FOREVER, r"it takes more than 1\.5 s"),
        (DOUBLING, "it needs more than 256 MiB of memory"),
        ("{{ 'a' * 17000000 }}", "it returns more than 16,777,216 characters"),
    ],
    ids=["time", "memory", "output"],
)
def test_what_exceeds_a_limit_is_ended_and_the_next_request_is_answered(
    renderers: RendererPool, work: str, message: str
) -> None:
    ours = ChatTemplate(
        "{% if bad %}" + work + "{% endif %}ok", {}, renderers=renderers, within_s=1.5 if work == FOREVER else 20
    )
    with pytest.raises(RequestError, match=f"exceeded a limit on these messages: {message}"):
        ours.render(HELLO, variables={"bad": True})
    assert ours.render(HELLO) == "ok"
    ours.close()
    always = ChatTemplate(work, {}, renderers=renderers, within_s=1.5 if work == FOREVER else 20)
    with pytest.raises(
        CheckpointError, match=f"cannot use the model's chat template: even on one short message {message}"
    ):
        always.render(HELLO)
    always.close()


@pytest.mark.parametrize("template", ["{% if %}", "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}"], ids=["syntax", "depth"])
def test_what_is_no_template_is_the_checkpoints_fault(renderers: RendererPool, template: str) -> None:
    ours = ChatTemplate(template, {}, renderers=renderers)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"cannot use the model's chat template: \w+Error"):
            ours.render(HELLO)
    ours.close()


def test_a_process_that_is_killed_is_started_again_and_nothing_outlives_close() -> None:
    ours = ChatTemplate("ok", {})
    before = set(psutil.Process().children(recursive=True))
    assert ours.render(HELLO) == "ok"
    started = set(psutil.Process().children(recursive=True)) - before
    assert len(started) == 2, "the process, and one renderer"
    for process in sorted(started, key=lambda p: p.create_time(), reverse=True):
        os.kill(process.pid, signal.SIGKILL)
    for process in started:
        process.wait(200)
    assert ours.render(HELLO) == "ok"
    started = set(psutil.Process().children(recursive=True)) - before
    ours.close()
    assert psutil.wait_procs(started, timeout=200)[1] == []
    with pytest.raises(RunError, match="shutting down"):
        ours.render(HELLO)


def test_two_conversations_render_at_once(renderers: RendererPool) -> None:

    ours = ChatTemplate("{% if bad %}" + FOREVER + "{% endif %}ok", {}, renderers=renderers, within_s=20)
    assert ours.render(HELLO) == "ok"
    ended: list[Exception] = []

    def render_forever() -> None:
        try:
            ours.render(HELLO, variables={"bad": True})
        except RequestError as error:
            ended.append(error)

    stuck = threading.Thread(target=render_forever)
    stuck.start()
    assert ours.render(HELLO) == "ok"
    assert stuck.is_alive()
    for child in psutil.Process().children(recursive=True):
        if child.parent() != psutil.Process():
            child.kill()
    stuck.join()
    assert "its process was killed" in str(ended[0])
    ours.close()


def test_the_tokens_are_transformers(model_path: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(model_path), local_files_only=True)
    ours = Tokenizer(model_path)
    assert ours.encode_chat(CONVERSATIONS[1]) == theirs.apply_chat_template(
        CONVERSATIONS[1], add_generation_prompt=True, return_dict=False
    )
    ours.close()
