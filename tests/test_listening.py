"""Where the tracker listens: several addresses, both families, a socket in the file system; and what rests on it."""

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nursery
import pytest
from test_command_line import PROGRAM, refusal, run

import listening
import tracker

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sockets in the file system are POSIX's")
FROM_OUTSIDE = {"X-Forwarded-For": "192.0.2.7"}
JOB = {"job_queue": "q"}


@contextlib.contextmanager
def started(tmp_path: Path, *arguments: str) -> Iterator[tuple[Any, list[str]]]:
    """A tracker in a process of its own: (process, the places where it says that it listens)."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with nursery.start(PROGRAM, arguments, tmp_path, dict(os.environ), **pipes) as process:
        try:
            line = process.stdout.readline()
            yield process, line.partition("listening on ")[2].partition("  (")[0].split(", ")
        finally:
            process.kill()


def by_socket(path: Path | str, **options: Any) -> httpx.Client:
    """A client of a socket in the file system."""
    transport = httpx.HTTPTransport(uds=str(path))
    return httpx.Client(transport=transport, base_url="http://localhost", timeout=30, **options)


def make_job(client: Any, url: str = "", **headers: str) -> int:
    """The status that a client of Testflinger's without credentials gets."""
    return client.post(f"{url}/v1/job", json=JOB, headers=headers).status_code


def first_account(client: Any, url: str = "", **headers: str) -> int:
    body = {"username": "admin", "password": "password"}
    return client.post(f"{url}/register", json=body, headers=headers).status_code


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


# ── Addresses ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_ipv6
def test_it_listens_at_several_addresses_at_the_same_port(tmp_path: Path) -> None:
    with started(tmp_path, "--host", "127.0.0.1", "--host", "[::1]", "--host", "::1", "--port", "0") as (_, places):
        first, second = places
        assert first.replace("127.0.0.1", "[::1]") == second
        assert all(httpx.get(place).json()["ok"] for place in places)


@needs_ipv6
@pytest.mark.parametrize("host", ["::", "[::]"])
def test_all_of_ipv6_is_all_of_ipv4_too_and_its_clients_are_who_they_are(tmp_path: Path, host: str) -> None:
    with started(tmp_path, "--host", host, "--port", "0") as (_, (place,)):
        for address in ("127.0.0.1", "[::1]"):
            url = place.replace("[::]", address)
            assert httpx.get(url).json()["ok"]
            assert first_account(httpx, url, **FROM_OUTSIDE) == 403  # a proxy on this machine is believed
        assert first_account(httpx, place.replace("[::]", "127.0.0.1")) == 200


@needs_ipv6
def test_all_of_both_families_may_be_given_one_by_one(tmp_path: Path) -> None:
    with started(tmp_path, "--host", "::", "--host", "0.0.0.0", "--port", "0") as (_, places):
        assert len(places) == 2
        assert httpx.get(places[0].replace("[::]", "[::1]")).json()["ok"]
        assert httpx.get(places[1]).json()["ok"]


def test_a_file_may_name_several_addresses(tmp_path: Path) -> None:
    (tmp_path / "tracker.toml").write_text('host = ["127.0.0.1", "127.0.0.2"]\nport = 0')
    with started(tmp_path) as (_, places):
        assert len(places) == 2


@pytest.mark.parametrize("host", ["a b", "..", "a" * 100, "", "192.0.2.1", "x\ny", "[::1", "fe80::1%none"])
def test_what_cannot_be_listened_on_is_said_in_one_line(tmp_path: Path, host: str) -> None:
    assert "cannot be listened on" in refusal(tmp_path, "--host", "127.0.0.1", "--host", host, "--port", "0")


@pytest.mark.parametrize("port", ["abc", "-1", "65536", "", "3e3"])
def test_what_is_no_port_is_said_in_one_line(tmp_path: Path, port: str) -> None:
    assert "port" in refusal(tmp_path, f"--port={port}")


def test_a_port_that_is_taken_at_one_of_several_addresses_is_named_and_no_database_is_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refusal(tmp_path, "--host", "127.0.0.1", "--host", "127.0.0.2", "--port", port)
        assert f"127.0.0.2:{port}: cannot be listened on: Address already in use" in line
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_leaves_an_empty_database_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    with socket.create_server(("127.0.0.2", 0)) as taken:
        refusal(tmp_path, "--host", "127.0.0.2", "--port", str(taken.getsockname()[1]), "--database", "empty.db")
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("empty.db", 0)]


def test_nowhere_to_listen_is_said(tmp_path: Path) -> None:
    (tmp_path / "tracker.toml").write_text("host = []")
    assert "no address to listen on" in refusal(tmp_path)


# ── A socket in the file system ───────────────────────────────────────────────────────────────────────────────────────


def test_a_socket_serves_its_owner_and_group_and_goes_with_the_tracker(tmp_path: Path) -> None:
    path = tmp_path / "t.sock"
    with started(tmp_path, "--socket", "t.sock") as (process, places):
        assert places == ["unix:t.sock"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert by_socket(path).get("/").json()["ok"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert not path.exists()


def test_a_socket_beside_an_address_is_one_more_place(tmp_path: Path) -> None:
    arguments = ("--socket", "t.sock", "--host", "127.0.0.1", "--port", "0")
    with started(tmp_path, *arguments) as (_, places):
        assert httpx.get(places[0]).json()["ok"] and places[1] == "unix:t.sock"


def test_a_socket_that_a_killed_tracker_left_makes_room(tmp_path: Path) -> None:
    with started(tmp_path, "--socket", "t.sock") as (process, _):
        process.kill()
        process.wait(timeout=20)
    assert (tmp_path / "t.sock").exists()
    with started(tmp_path, "--socket", "t.sock"):
        assert by_socket(tmp_path / "t.sock").get("/").json()["ok"]


def test_a_socket_at_which_somebody_listens_is_left_alone(tmp_path: Path) -> None:
    with started(tmp_path, "--socket", "t.sock"):
        assert "another program does" in refusal(tmp_path, "--socket", "t.sock", "--database", "other.db")
        assert by_socket(tmp_path / "t.sock").get("/").json()["ok"]


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_text("precious"), os.mkfifo])
def test_what_stands_where_the_socket_is_to_be_is_left_alone(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "t.sock")
    assert "something else is there" in refusal(tmp_path, "--socket", "t.sock")
    assert (tmp_path / "t.sock").exists()


@pytest.mark.parametrize("path", ["nowhere/t.sock", "x" * 200, "x" * 300])
def test_a_socket_that_cannot_be_made_is_said_in_one_line(tmp_path: Path, path: str) -> None:
    assert "cannot be listened on" in refusal(tmp_path, "--socket", path)


def test_whose_the_clients_of_a_socket_are_says_its_proxy(tmp_path: Path) -> None:
    (tmp_path / "tracker.toml").write_text('trusted_proxies = "192.0.2.1"\nsocket = "t.sock"')
    with started(tmp_path):
        client = by_socket(tmp_path / "t.sock")
        assert first_account(client, **FROM_OUTSIDE) == 403
        assert make_job(client, **FROM_OUTSIDE) == 401
        assert make_job(client) == 200  # a program on this machine
        assert first_account(client, Host="evil.example.org", **{"User-Agent": "Mozilla/5.0"}) == 403
        assert first_account(client) == 200


def test_a_login_through_the_proxy_of_a_socket_is_one_under_tls(tmp_path: Path) -> None:
    with started(tmp_path, "--socket", "t.sock"):
        client = by_socket(tmp_path / "t.sock")
        first_account(client)
        body = {"username": "admin", "password": "password"}
        answer = client.post("/login", json=body, headers={**FROM_OUTSIDE, "X-Forwarded-Proto": "https"})
        assert "Secure" in answer.headers["set-cookie"]


def test_hot_calls_come_through_a_socket_too(tmp_path: Path) -> None:
    with started(tmp_path, "--socket", "t.sock"):
        client = by_socket(tmp_path / "t.sock")
        worker = client.post("/worker/create", json={"alias": "w"}, headers=FROM_OUTSIDE).json()["content"]["worker"]
        client.headers.update({"X-Worker-ID": str(worker["id"]), "X-Secret": worker["secret"]} | FROM_OUTSIDE)
        assert [client.get("/task/get/1?wait=0.1").status_code for _ in range(3)] == [404] * 3


def test_who_comes_while_the_tracker_starts_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening the file may take long, as after a crash, and clients in use end at a refused connection."""
    early, start = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), tracker.Tracker.start

    async def start_after_the_first_request(running: tracker.Tracker) -> None:
        early.connect(running.settings.socket)
        early.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await start(running)

    monkeypatch.setattr(tracker.Tracker, "start", start_after_the_first_request)
    early.settimeout(30)
    with early, tracker.serving(tracker.Settings(socket=str(tmp_path / "t.sock"))):
        assert early.recv(1000).startswith(b"HTTP/1.1 200 ")


# ── All listeners count ───────────────────────────────────────────────────────────────────────────────────────────────


@needs_ipv6
@pytest.mark.parametrize(("second", "status"), [("127.0.0.1", 200), ("0.0.0.0", 401)])
def test_nobody_is_anonymous_where_one_of_the_addresses_is_open(second: str, status: int) -> None:
    with tracker.serving(tracker.Settings(host=("::1", second))) as url:
        assert make_job(httpx, url) == status


def test_browsers_need_a_name_of_this_machine_where_all_listeners_are_on_it(tmp_path: Path) -> None:
    browser = {"User-Agent": "Mozilla/5.0", "Host": "evil.example.org"}
    with started(tmp_path, "--socket", "t.sock", "--host", "127.0.0.1", "--port", "0") as (_, places):
        assert httpx.get(f"{places[0]}/project/list", headers=browser).status_code == 403
        assert by_socket(tmp_path / "t.sock").get("/project/list", headers=browser).status_code == 403
    with started(tmp_path, "--socket", "t.sock", "--host", "0.0.0.0", "--port", "0") as (_, places):
        assert by_socket(tmp_path / "t.sock").get("/project/list", headers=browser).status_code == 200


def test_a_start_that_fails_leaves_no_socket_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refusal(tmp_path, "--socket", "t.sock", "--host", "127.0.0.1", "--port", str(taken.getsockname()[1]))
    assert not (tmp_path / "t.sock").exists()


def test_the_settings_say_where_it_would_listen(tmp_path: Path) -> None:
    printed = run(tmp_path, "--socket", "t.sock", "config").stdout
    assert re.search(r'^socket = "t.sock"  # command line$', printed, re.MULTILINE)
    assert re.search(r"^host = \[\]  # none, as there is a socket$", printed, re.MULTILINE)


def test_a_free_port_is_looked_for_until_it_is_free_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries = listening.listen, []

    def listen(address: tuple, *args: Any) -> socket.socket:
        tries.append(address)
        if len(tries) == 2:
            raise OSError(98, "Address already in use")
        return real(address, *args)

    monkeypatch.setattr(listening, "listen", listen)
    with listening.listeners(tracker.Settings(host=("127.0.0.1", "127.0.0.2"), port=0)) as sockets:
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        assert len(tries) == 4
