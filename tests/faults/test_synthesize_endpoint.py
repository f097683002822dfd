"""Everything that goes wrong between us and an endpoint: asked again, given up, or stopped, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from opsin.core.errors import BudgetError, OpsinError, TeacherError, UnansweredError
from opsin.synthesize.endpoint import Endpoint, read_completion
from opsin.synthesize.engine import Engine
from opsin.synthesize.request import Answer, Usage
from opsin.synthesize.teacher_values import Limits, OpenAI, Price
from tests.support.asking import KEY, ask, request, with_engine
from tests.support.chat_endpoint import ChatEndpoint, Reply, completion, refused

if TYPE_CHECKING:
    from pathlib import Path

CUT = {"message": {"content": "Wel"}, "finish_reason": "MAX_TOKENS"}
PASSING = {
    "429": refused(429, "slow down"),
    "429 with Retry-After": refused(429, "slow down", retry_after="0.01"),
    "429 with retry-after-ms": refused(429, "slow down", retry_after_ms="10"),
    "408": refused(408, "too slow"),
    "409": refused(409, "conflict"),
    "500": refused(500, "oops"),
    "502 in HTML": Reply(502, b"<html><body>Bad Gateway</body></html>"),
    "503": refused(503, "overloaded", retry_after="0"),
    "529": refused(529, "overloaded"),
    "reset before the answer": Reply(cut=0),
    "reset in the head": Reply(cut=20),
    "reset in the body": Reply(cut=200),
    "cut in the body": Reply(cut=200, close=True),
    "closed without an answer": Reply(cut=0, close=True),
    "half of a JSON": Reply(body=b'{"choices": [{"index": 0, "mess'),
    "no JSON": Reply(body=b"\xff\xfe\x00"),
    "nothing": Reply(body=b""),
    "nested too deeply": Reply(body=b"[" * 100_000),
    "no choice": Reply(body=completion("x", choices=[])),
    "broken off": Reply(body=completion("x", choices=[CUT | {"finish_reason": "error"}])),
    "a busy gateway": Reply(body=b'{"error": {"code": 429, "message": "slow down"}}'),
    "an error with status 200": Reply(body=b'{"error": {"code": 502, "message": "upstream"}}'),
    "no HTTP": Reply(cut=0, headers=(("x", "y"),)),
}
TWO = [{"message": {"content": "a"}}, {"message": {"content": "b"}}]
UNUSABLE = {
    "compressed": (Reply(headers=(("Content-Encoding", "gzip"),)), "answered with Content-Encoding 'gzip'"),
    "400": (
        refused(400, "context\x1b[31m too\nlong", "context_length_exceeded"),
        "refused (400 context_length_exceeded: ",
    ),
    "422": (refused(422, "max_tokens?"), "refused (422 error: max_tokens?)"),
}
HOPELESS = {
    "401": (refused(401, f"Incorrect API key provided: {KEY}.", "invalid_api_key"), "the key is not accepted"),
    "402": (refused(402, "pay first"), "there is no money left"),
    "403": (refused(403, "not in your country"), "the key may not do this"),
    "404": (refused(404, "no model tiny", "model_not_found"), "there is no such model"),
    "quota": (refused(429, f"you exceeded it {KEY}", "insufficient_quota", retry_after="1"), "there is no quota left"),
    "quota in a good response": (
        Reply(body=b'{"error": {"code": "insufficient_quota", "message": "no"}}'),
        "there is no quota left",
    ),
    "redirect": (Reply(307, b"", (("Location", "https://elsewhere/v1"),)), "it redirects to https://elsewhere/v1"),
    "a day": (refused(429, "tomorrow", retry_after="86400"), "it asks to wait for 86,400 seconds"),
}


@pytest.fixture(autouse=True)
def _answered_before(tmp_path: Path) -> None:
    """A directory that has an answer: in one that has none, three failures show that the recipe is wrong."""
    with ChatEndpoint() as endpoint:
        ask(tmp_path, endpoint.url, [request("before")])


def texts(answers: list[Answer | BaseException]) -> list[str]:
    return [answer.text if isinstance(answer, Answer) else repr(answer) for answer in answers]


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_asked_again_with_the_same_key(tmp_path: Path, name: str) -> None:
    with ChatEndpoint([PASSING[name]] * 2) as endpoint:
        [answer] = ask(tmp_path, endpoint.url, [request()])
    assert isinstance(answer, Answer), answer
    assert (answer.text, answer.finish, answer.model, answer.bought) == ("On picture 0: yes.", "stop", "tiny-1", True)
    assert endpoint.keys == [request().key] * 3


@pytest.mark.parametrize(
    "reply",
    [Reply(delay=3.0), Reply(pace=0.05), Reply(delay=0.5, pace=0.05)],
    ids=["no answer", "byte by byte", "late and byte by byte"],
)
def test_slow_answers_are_cut_off_and_hold_up_nobody(tmp_path: Path, reply: Reply) -> None:
    requests = [request(number) for number in range(8)]
    with ChatEndpoint([reply]) as endpoint:
        begun = time.monotonic()
        answers = ask(tmp_path, endpoint.url, requests, timeout_seconds=1.0, concurrency=2)
    assert texts(answers) == [f"On picture {number}: yes." for number in range(8)]
    assert 1.0 <= time.monotonic() - begun < 3.0
    slow = endpoint.keys[0]
    assert endpoint.keys.count(slow) == 2
    others = [asked.at for asked in endpoint.asked if asked.key != slow]
    assert max(others) - min(others) < 0.8


def test_https_and_a_certificate_that_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An authority of one's own, as companies have them, is named as to all other programs."""
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    requests = [request(number) for number in range(30)]
    with ChatEndpoint(tls=tls) as endpoint:
        answers = ask(tmp_path, endpoint.url, requests, concurrency=4)
        assert isinstance(answers[-1], TeacherError)
        assert "its certificate is not trusted (" in str(answers[-1])
        assert "set SSL_CERT_FILE to" in str(answers[-1])
        assert not endpoint.asked
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        assert texts(ask(tmp_path, endpoint.url, requests)) == [f"On picture {number}: yes." for number in range(30)]
        assert len(endpoint.asked) == 30


def test_retries_come_to_an_end_and_only_that_request_is_lost(tmp_path: Path) -> None:
    bad = request("bad")
    with ChatEndpoint(lambda asked: refused(500, "oops") if asked.key == bad.key else Reply()) as endpoint:
        lost, fine = ask(tmp_path, endpoint.url, [bad, request()], retries=3)
        assert isinstance(lost, UnansweredError)
        assert str(lost) == f"{endpoint.url} (tiny): 500 error: oops, asked 4 times"
        assert isinstance(fine, Answer)
        assert endpoint.keys.count(bad.key) == 4
    with ChatEndpoint() as endpoint:  # another run asks it again, and it alone
        assert texts(ask(tmp_path, endpoint.url, [bad, request()])) == ["On picture bad: yes.", "On picture 0: yes."]
        assert endpoint.keys == [bad.key]


def test_retry_after_holds_everybody_back(tmp_path: Path) -> None:
    with ChatEndpoint([refused(429, "slow down", retry_after="0.4")]) as endpoint:
        answers = ask(tmp_path, endpoint.url, [request(number) for number in range(6)], concurrency=1)
    assert all(isinstance(answer, Answer) for answer in answers)
    assert endpoint.asked[1].at - endpoint.asked[0].at >= 0.39
    assert len(endpoint.asked) == 7


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_used_is_given_up_at_once(tmp_path: Path, name: str) -> None:
    reply, problem = UNUSABLE[name]
    with ChatEndpoint([reply]) as endpoint:
        lost, fine = ask(tmp_path, endpoint.url, [request(), request(1)], concurrency=1)
    assert isinstance(lost, UnansweredError)
    assert problem in str(lost)
    assert str(lost).isprintable()
    assert isinstance(fine, Answer)
    assert len(endpoint.asked) == 2


@pytest.mark.parametrize(
    ("reply", "text", "finish"),
    [
        (Reply(body=completion("x" * 5_000_000)), "", "length"),
        (Reply(body=completion(None)), "", "refusal"),
        (Reply(body=completion(None, choices=[{"message": {"content": None, "refusal": "No."}}])), "No.", "refusal"),
        (
            Reply(body=completion("", choices=[{"message": {"content": "Wel"}, "finish_reason": "length"}])),
            "Wel",
            "length",
        ),
        (Reply(body=completion("", choices=[{"message": {"content": None}, "finish_reason": "length"}])), "", "length"),
        (
            Reply(body=completion("", choices=[{"message": {"content": "I"}, "finish_reason": "content_filter"}])),
            "I",
            "refusal",
        ),
        (refused(400, "flagged", "content_filter"), "content_filter: flagged", "refusal"),
        (Reply(body=completion("x", choices=[7])), "[7]", "malformed"),
        (
            Reply(body=completion(7, choices=[{"message": {"content": 7}}])),
            '[{"message": {"content": 7}}]',
            "malformed",
        ),
        (Reply(body=b'{"error": {"code": "content_filter", "message": "no"}}'), "content_filter: no", "refusal"),
        (Reply(body=completion("", choices=[CUT])), "Wel", "length"),
        (Reply(body=completion("x", choices=TWO)), json.dumps(TWO), "malformed"),
        (Reply(body=completion("\ud800 <|im_end|>\u0000")), "\ud800 <|im_end|>\u0000", "stop"),
    ],
)
def test_refusals_and_cut_answers_are_answers(tmp_path: Path, reply: Reply, text: str, finish: str) -> None:
    with ChatEndpoint([reply]) as endpoint:
        [answer] = ask(tmp_path, endpoint.url, [request()])
        assert isinstance(answer, Answer)
        assert (answer.text, answer.finish) == (text, finish)
        [again] = ask(tmp_path, endpoint.url, [request()])
    assert isinstance(again, Answer)
    assert (again.text, again.finish, again.bought, len(endpoint.asked)) == (text, finish, False, 1)


def test_choices_that_are_nested_too_deeply_to_be_kept() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    answer = read_completion({"choices": deep}, OpenAI(model="tiny"), Usage(10, 10))
    assert (answer.text, answer.finish) == ("(nested too deeply)", "malformed")


@pytest.mark.parametrize("name", HOPELESS)
def test_what_no_request_can_change_stops_all_of_them_and_shows_no_key(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    reply, problem = HOPELESS[name]
    with ChatEndpoint(lambda _: reply) as endpoint:
        answers = ask(tmp_path, endpoint.url, [request(number) for number in range(20)], concurrency=2)
        assert len(endpoint.asked) <= 2
        assert all(f"authorization: bearer {KEY}" in asked.head.lower() for asked in endpoint.asked)
    assert all(isinstance(answer, TeacherError) for answer in answers)
    assert problem in str(answers[0])
    assert "\n" not in str(answers[0])
    told = [*map(str, answers), *map(repr, answers), caplog.text, *capfd.readouterr()]
    assert not any(KEY in text for text in told)
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_key_that_the_endpoint_quotes_gets_nowhere(tmp_path: Path) -> None:
    redirect = Reply(302, b"", (("Location", f"http://me:{KEY}@evil.example/?key={KEY}"),))
    with ChatEndpoint([Reply(body=completion(f"Your key is {KEY}.")), redirect]) as endpoint:
        said, moved = ask(tmp_path, endpoint.url, [request(), request(1)], concurrency=1)
    assert isinstance(said, Answer)
    assert said.text == "Your key is [key]."
    assert "http://evil.example/" in str(moved)
    assert KEY not in str(moved)
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_an_endpoint_that_is_down_ends_the_run_before_all_is_tried(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    requests = [request(number) for number in range(100)]
    answers = ask(tmp_path, f"http://127.0.0.1:{port}/v1", requests, retries=1, concurrency=4)
    assert isinstance(answers[-1], TeacherError)
    assert "25 requests in a row got no answer; the last one: no connection" in str(answers[-1])
    assert sum(isinstance(answer, UnansweredError) for answer in answers) == 24


def test_pictures_that_the_endpoint_refuses_first_do_not_end_the_run(tmp_path: Path) -> None:
    blocked = [refused(400, "too long", "context_length_exceeded")] * 5
    with ChatEndpoint(blocked) as endpoint:
        answers = ask(tmp_path / "new", endpoint.url, [request(number) for number in range(20)], concurrency=1)
    assert [isinstance(answer, Answer) for answer in answers] == [False] * 5 + [True] * 15


def test_prompts_that_are_all_too_long_for_the_server_show_soon(tmp_path: Path) -> None:
    said = "This model's maximum context length is 2048 tokens."
    with ChatEndpoint(lambda _: refused(400, said)) as endpoint:
        answers = ask(tmp_path / "new", endpoint.url, [request(number) for number in range(90)], concurrency=2)
    assert "25 requests in a row got no answer; the last one: refused (400 error: This model's" in str(answers[-1])
    assert len(endpoint.asked) <= 30


def test_a_wrong_recipe_shows_soon(tmp_path: Path) -> None:
    with ChatEndpoint(lambda _: refused(400, "unknown field max_tokens")) as endpoint:
        answers = ask(tmp_path / "new", endpoint.url, [request(number) for number in range(50)], concurrency=1)
    assert re.search(r"[34] requests in a row got no answer; the last one: refused \(400 error: unk", str(answers[-1]))
    assert len(endpoint.asked) <= 6  # some were under way


def test_a_key_is_needed_only_away_from_this_machine(tmp_path: Path) -> None:
    def made(url: str | None, **environment: str) -> Endpoint:
        return Endpoint(OpenAI(model="tiny", base_url=url, key_env="MINE"), Limits(), environment)

    for url in ("http://localhost:1/v1", "http://127.0.0.2:1/v1", "http://[::1]:1/v1"):
        assert made(url).url == url
    with pytest.raises(TeacherError, match=r"https://api\.openai\.com/v1: needs a key; set the variable MINE"):
        made(None)
    with pytest.raises(TeacherError, match="holds characters that no key has"):
        made(None, MINE="two words")
    assert made(None, MINE=" fine\n", OPENAI_BASE_URL="https://host/v1").url == "https://host/v1"


PRICE = Price(input=1_000_000, output=1_000_000)  # a unit for each token


def test_the_budget_holds_whatever_is_asked_at_once(tmp_path: Path) -> None:
    requests = [request(number) for number in range(60)]
    with ChatEndpoint(latency=0.005) as endpoint:
        answers = ask(tmp_path, endpoint.url, requests, price=PRICE, max_cost=500.0)
    bought = [answer for answer in answers if isinstance(answer, Answer)]
    refused_ = [answer for answer in answers if isinstance(answer, BudgetError)]
    assert len(bought) + len(refused_) == 60
    assert len(endpoint.asked) == len(bought)
    # each costs 15, and might cost 140: as many were bought as leave room for no other one
    assert 500 - 15 * len(bought) < 140 <= 500 - 15 * (len(bought) - 1)
    with ChatEndpoint() as endpoint:  # in another run too
        answers = ask(tmp_path, endpoint.url, requests, price=PRICE, max_cost=500.0)
    assert endpoint.asked == []
    assert sum(isinstance(answer, Answer) for answer in answers) == len(bought)


def test_retries_count_as_requests(tmp_path: Path) -> None:
    with ChatEndpoint([refused(500, "oops")] * 50) as endpoint:
        [answer] = ask(tmp_path, endpoint.url, [request()], max_requests=4, retries=20)
    assert isinstance(answer, BudgetError)
    assert len(endpoint.asked) == 3  # one was asked before


@pytest.mark.parametrize(
    ("reply", "cost"),
    [
        (refused(500, "oops"), 0),
        (Reply(body=completion("x", choices=[])), 15),
        (Reply(cut=200), 139),
        (Reply(body=b"{"), 139),
    ],
    ids=["an error", "no choice", "cut", "no JSON"],
)
def test_what_a_lost_answer_may_have_cost_is_booked(tmp_path: Path, reply: Reply, cost: int) -> None:
    async def work(engine: Engine) -> Usage:
        with pytest.raises(OpsinError):
            await engine.answer(request())
        return engine.facts().used

    with ChatEndpoint([reply]) as endpoint:
        assert with_engine(tmp_path, endpoint.url, work, price=PRICE, retries=0).cost == pytest.approx(cost, abs=3)


def test_usage_that_is_missing_or_absurd_is_the_highest_possible(tmp_path: Path) -> None:
    replies = [
        Reply(body=completion("yes", usage=usage))
        for usage in (None, {"prompt_tokens": -1, "completion_tokens": 1}, {"prompt_tokens": True}, "much", [1e300])
    ]
    with ChatEndpoint(replies) as endpoint:
        answers = ask(tmp_path, endpoint.url, [request(number) for number in range(5)], concurrency=1)
    usages = {answer.usage for answer in answers if isinstance(answer, Answer)}
    assert {(usage.prompt_tokens, usage.answer_tokens) for usage in usages} == {(89, 3)}


def test_the_same_request_at_the_same_time_is_bought_once(tmp_path: Path) -> None:
    with ChatEndpoint(latency=0.05) as endpoint:
        answers = ask(tmp_path, endpoint.url, [request()] * 5)
    assert texts(answers) == ["On picture 0: yes."] * 5
    assert [answer.bought for answer in answers if isinstance(answer, Answer)] == [True] + [False] * 4
    assert len(endpoint.asked) == 1


def test_when_the_one_that_asks_is_cancelled_another_one_asks(tmp_path: Path) -> None:
    async def work(engine: Engine) -> Answer:
        first = asyncio.create_task(engine.answer(request()))
        async with asyncio.timeout(20):
            while not endpoint.asked:
                await asyncio.sleep(0.01)
        second = asyncio.create_task(engine.answer(request()))
        await asyncio.sleep(0.01)
        first.cancel()
        return await second

    with ChatEndpoint(latency=0.5) as endpoint:
        assert with_engine(tmp_path, endpoint.url, work).bought
    assert len(endpoint.asked) == 2


def test_never_more_at_a_time_than_the_limit(tmp_path: Path) -> None:
    with ChatEndpoint(latency=0.05) as endpoint:
        ask(tmp_path, endpoint.url, [request(number) for number in range(40)], concurrency=5)
    assert endpoint.most_in_flight == 5


def test_requests_per_minute_are_kept(tmp_path: Path) -> None:
    with ChatEndpoint() as endpoint:
        ask(tmp_path, endpoint.url, [request(number) for number in range(6)], requests_per_minute=1200)
    times = [asked.at for asked in endpoint.asked]
    assert 0.2 <= times[-1] - times[0] < 2  # the first may be late


def test_what_is_sent(tmp_path: Path) -> None:
    with ChatEndpoint() as endpoint:
        ask(tmp_path, endpoint.url, [request(temperature=0.5)])
    asked = endpoint.asked[0]
    assert asked.body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "picture 0"}],
        "max_tokens": 50,
        "temperature": 0.5,
    }
    assert asked.head.startswith("POST /v1/chat/completions HTTP/1.1")
