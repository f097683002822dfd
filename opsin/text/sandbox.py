"""Run a tokenizer's Jinja template where it can do no harm: a child process with limits on time and memory.

The template never sees a user's text, only marks that stand for it (`opsin.text.own_template`). This file is also the
program of the child process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

MAX_TEMPLATE_CHARACTERS = 1_000_000
MAX_TEXT_CHARACTERS = 4_000_000
CPU_SECONDS = 5
WALL_SECONDS = 60
MEMORY_BYTES = 2 << 30
OUT_OF_MEMORY = 3
"""Exit status of the child process."""


class SandboxError(Exception):
    """The template failed, or did too much; the message says which."""


def render_all(source: str, variables: dict[str, str], requests: list[dict[str, Any]]) -> list[str]:
    """The text of every request (the template's `messages` and `add_generation_prompt`).

    Raises:
        SandboxError: the template fails, or goes beyond `CPU_SECONDS`, `MEMORY_BYTES` or the limits on characters.
    """
    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise SandboxError(f"it has {len(source)} characters, more than {MAX_TEMPLATE_CHARACTERS}")
    task = json.dumps({"source": source, "variables": variables, "requests": requests})
    try:
        # -P: the folder of this file is not searched for modules.
        done = subprocess.run(
            [sys.executable, "-P", __file__], input=task, capture_output=True, text=True, timeout=WALL_SECONDS,
            check=False, encoding="utf-8",
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SandboxError(f"it takes longer than {WALL_SECONDS} s") from error
    if done.returncode < 0 or done.returncode == OUT_OF_MEMORY:
        raise SandboxError(f"it takes longer than {CPU_SECONDS} s or more than {MEMORY_BYTES >> 30} GiB of memory")
    if done.returncode:
        raise SandboxError(f"the process that runs it failed: {done.stderr.strip()[-300:]}")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise SandboxError(answer["error"])
    return [str(text) for text in answer["texts"]]


def _main() -> None:
    _limit()
    task = json.load(sys.stdin)
    try:
        answer: dict[str, Any] = {"texts": _texts(task["source"], task["variables"], task["requests"])}
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)
    except Exception as error:  # noqa: BLE001 - a template can fail in any way, and every one is its own fault
        answer = {"error": f"{type(error).__name__}: {error}"[:500]}
    json.dump(answer, sys.stdout)


def _limit() -> None:
    try:
        import resource
    except ImportError:  # not a Unix: the parent's time limit is left
        return
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _texts(source: str, variables: dict[str, str], requests: list[dict[str, Any]]) -> list[str]:
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`: transformers' mark of what is learned; opsin knows that by itself."""

        tags = {"generation"}  # noqa: RUF012 - declared by jinja2

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    # The settings of transformers' apply_chat_template.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    template = environment.from_string(source)
    texts = []
    for request in requests:
        text = template.render(**variables, **request, tools=None, documents=None)
        if len(text) > MAX_TEXT_CHARACTERS:
            raise TemplateError(f"it writes {len(text)} characters, more than {MAX_TEXT_CHARACTERS}")
        texts.append(text)
    return texts


if __name__ == "__main__":
    _main()
