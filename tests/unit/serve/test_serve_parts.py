"""Limits, places and sockets of a server."""

import asyncio
import socket
from contextlib import ExitStack
from importlib import util

import pytest

from cellvision.errors import ConfigError, MissingExtraError
from cellvision.serve.desk import Desk
from cellvision.serve.limits import Limits
from cellvision.serve.refusal import Refusal
from cellvision.serve.server import check_extra, open_socket


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_mib": 0}, "max_mib=0; need a whole number from 1 up; try: max_mib=256"),
        ({"queue": -1}, "queue=-1; need a whole number from 0 up; try: queue=8"),
        ({"workers": 0}, "workers=0; need a whole number from 1 up; try: workers=1"),
    ],
)
def test_limits_out_of_range(given, said):
    with pytest.raises(ConfigError, match=said):
        Limits(**given)
    assert Limits(queue=0).queue == 0


def test_a_full_desk_says_when_to_come_back():
    desk = Desk(Limits(workers=1, queue=1))
    with desk.take_place(), desk.take_place():
        with pytest.raises(Refusal, match=r"1 images at work and 1 waiting, .*; try: the same again in 2 s") as refused:
            desk.take_place().__enter__()
        assert (refused.value.status, refused.value.retry_after, desk.taken) == (503, 2, 2)
    with desk.take_place():
        assert desk.taken == 1
    assert desk.taken == 0


def test_the_wait_follows_the_work():
    desk = Desk(Limits(workers=2, queue=3))

    async def work():
        for _ in range(60):
            await desk.run(lambda: None)

    asyncio.run(work())
    desk.close()
    with ExitStack() as places:
        for _ in range(5):
            places.enter_context(desk.take_place())
        with pytest.raises(Refusal) as refused:
            places.enter_context(desk.take_place())
    assert refused.value.retry_after == 1


def test_a_taken_port_is_one_sentence():
    with open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1, port {port} .*; try: --port 0 for any"):
            open_socket("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1, port 70000"):
        open_socket("127.0.0.1", 70000)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_address_of_six_parts():
    try:
        with open_socket("::1", 0) as listening:
            assert listening.family == socket.AF_INET6
    except ConfigError as error:
        pytest.skip(f"no IPv6 here ({error})")


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("cellvision.serve.server.find_spec", lambda name: None if name == "uvicorn" else util)
    with pytest.raises(MissingExtraError, match=r'uvicorn is not installed; .*pip install "cellvision\[serve\]"'):
        check_extra()
