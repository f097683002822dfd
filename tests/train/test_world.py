from __future__ import annotations

import json
import socket
from typing import Any

import pytest
import torch

from opsin.core.errors import DataError, LostRankError, OpsinError, TrainError
from opsin.train.world import alone, answering, joined
from tests.support.launch import launched, meet, together


def test_a_process_alone_waits_for_nobody() -> None:
    world = alone()
    assert (world.rank, world.size, world.device) == (0, 1, torch.device("cpu"))
    assert world.gather({"a": [1, None, "é"]}) == [{"a": [1, None, "é"]}]
    assert world.in_turn(lambda: 7) == 7
    with pytest.raises(DataError, match="broken"):
        world.agree(DataError(["broken"]))
    world.agree(None)


def test_half_of_torchruns_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    told = "but LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not; start ranks with torchrun"
    with pytest.raises(TrainError, match=told), joined("cpu", 1.0):
        pass


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        own = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in own.items():
            monkeypatch.setenv(name, str(value))
        told = f"port {port} of 127.0.0.1 is taken, .* set MASTER_PORT to a free one"
        with pytest.raises(TrainError, match=told), joined("cpu", 5.0):
            pass


def _exchange() -> list[Any]:
    meet()
    with joined("cpu", 20) as world:
        told = world.gather({"rank": world.rank, "text": "é" * 1000 * world.rank, "number": float("nan")})
        return [[one["rank"], len(one["text"]), json.dumps(one["number"])] for one in told]


def test_ranks_exchange_plain_values_of_any_length() -> None:
    expected = [[0, 0, "NaN"], [1, 1000, "NaN"], [2, 2000, "NaN"]]
    assert together(3, _exchange) == [expected] * 3


def _fail(first: bool) -> None:
    meet()
    with joined("cpu", 20) as world:

        def work() -> int:
            if (world.rank == 0) == first:
                raise OpsinError("no such file")
            return world.rank

        world.in_turn(work)


@pytest.mark.parametrize("first", [True, False])
def test_an_error_of_one_rank_is_an_error_of_all(first: bool) -> None:
    (good, own), (other, told) = launched(2, _fail, first)
    assert (good, other) == (False, False)
    failed, heard = (own, told) if first else (told, own)
    assert failed.startswith("OpsinError: no such file")
    assert heard.startswith(f"TrainError: rank {0 if first else 1} of 2 ended with: no such file")


def test_what_a_lost_rank_causes_is_said_plainly() -> None:
    text = "[/somewhere/gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:5000. This is often..."
    with pytest.raises(LostRankError) as caught, answering():
        raise RuntimeError(text)
    told = "another rank does not answer, so this one ends too (Connection closed by peer [127.0.0.1]:5000)"
    assert str(caught.value) == told
    with pytest.raises(RuntimeError, match="a bug"), answering():
        raise RuntimeError("a bug")
