"""How fast the engine asks a chat endpoint on this machine, ledger included; the endpoint is a process of its own.

    python -m bench.synthesize

Two measurements, interleaved: without latency, in requests per second; and 100 requests at a time that take 200 ms
each, as a share of the 500 per second that are possible.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from opsin.synthesize.endpoint import Endpoint
from opsin.synthesize.engine import Engine
from opsin.synthesize.ledger import Ledger
from opsin.synthesize.request import Message, Request
from opsin.synthesize.teacher_values import Limits, OpenAI, Price
from opsin.synthesize.workers import work_through, workers_for

REPEATS = 5
SYSTEM = "You look at one picture, and describe what is in it. " * 40
EXAMPLES = 2
CASES = {"no latency": (0.0, 32, 2_000), "200 ms": (0.2, 100, 5_000)}
"""Seconds that an answer takes, requests at a time, number of requests."""


def request(number: int) -> Request:
    """A prompt of the usual size: instructions, two examples, a query."""
    pairs = [
        message
        for _ in range(EXAMPLES)
        for message in (Message("user", "A cat. " * 100), Message("assistant", "It is. " * 150))
    ]
    return Request("tiny", (Message("system", SYSTEM), *pairs, Message("user", f"Picture {number}. " * 40)), 1024, 0.7)


async def ask_all(port: int, at_a_time: int, number: int, ledger: Ledger) -> float:
    """Seconds for a number of requests."""
    teacher = OpenAI(model="tiny", base_url=f"http://127.0.0.1:{port}/v1", price=Price(input=1, output=2))
    limits = Limits(concurrency=at_a_time)
    async with Engine(Endpoint(teacher, limits), ledger, limits) as engine:

        async def make(index: int) -> None:
            await engine.answer(request(index))

        begun = time.perf_counter()
        await work_through(engine, range(number), make, workers=workers_for(at_a_time))
        return time.perf_counter() - begun


def measure(latency: float, at_a_time: int, number: int) -> tuple[float, float]:
    """Requests per second, and milliseconds of processor time that one takes of this process."""
    command = [sys.executable, "-m", "tests.support.chat_endpoint", str(latency)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server,
        Ledger.open(Path(folder) / "ledger.sqlite") as ledger,
    ):
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            before = resource.getrusage(resource.RUSAGE_SELF)
            seconds = asyncio.run(ask_all(int(server.stdout.readline()), at_a_time, number, ledger))
            after = resource.getrusage(resource.RUSAGE_SELF)
        finally:
            server.stdin.close()
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return number / seconds, 1000 * used / number


def main() -> None:
    """Measure and print."""
    rates: dict[str, list[float]] = {name: [] for name in CASES}
    for repeat in range(REPEATS):
        for name, case in CASES.items():
            rate, used = measure(*case)
            rates[name].append(rate)
            print(f"{repeat + 1}/{REPEATS} {name}: {rate:.0f} requests/s, {used:.2f} ms of processor time for each")
    for name, (latency, at_a_time, number) in CASES.items():
        low, middle, high = min(rates[name]), statistics.median(rates[name]), max(rates[name])
        print(f"{name}, {at_a_time} at a time, {number:,} requests: {low:.0f} / {middle:.0f} / {high:.0f} requests/s")
        if latency:
            shares = ", ".join(f"{rate * latency / at_a_time:.1%}" for rate in (low, middle, high))
            print(f"  of what is possible: {shares}")


if __name__ == "__main__":
    main()
