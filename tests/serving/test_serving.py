"""A client that sends or reads slowly does not hold up the server."""

import http.client
import json
import socket
import time
from contextlib import ExitStack

import pytest

from tests.serving.server import CHUNKED, MIB, PlainServer, Server, answer, chunk, locked, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.unguarded]

CROWD = 50
FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def server(tmp_path, transactional_db):
    started = Server(tmp_path, AGENTMEM_BODY_IDLE_S="5", AGENTMEM_TRANSFERS="3")
    yield started
    started.stop()


@pytest.fixture
def plain(tmp_path):
    started = PlainServer(tmp_path)
    yield started
    started.stop()


def get(server, path, key="", within_s=2.0):
    """The status; each answer has to come in time."""
    asked = http.client.HTTPConnection("127.0.0.1", server.port, timeout=within_s)
    asked.request("GET", path, headers={"X-API-Key": key} if key else {})
    response = asked.getresponse()
    response.read()
    asked.close()
    return response.status


def send(server, head, body=b""):
    sent = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    sent.sendall("\r\n".join([*head, "Host: 127.0.0.1", "", ""]).encode() + body)
    return sent


def head_of(sent):
    """Status line and headers of the next answer; its body is read, too."""
    file = sent.makefile("rb")
    status = int(file.readline().split()[1])
    headers = {}
    while line := file.readline().strip():
        name, _, value = line.decode().partition(": ")
        headers[name] = value
    file.read(int(headers["content-length"]))
    return status, headers


# -- the access log --------------------------------------------------------------------------------


def accesses(server, count):
    """The lines of the access log, once there are so many."""

    def found():
        return [line for line in server.lines() if line["logger"] == "agentmem.access"]

    until(lambda: len(found()) >= count, f"{count} lines are logged")
    return found()


def test_each_response_is_logged(server, acme, acme_key):
    assert "Encoder: minilm-int8" in server.log.read_text()
    assert get(server, "/health/live") == 200
    assert get(server, "/health/ready", within_s=10) in (200, 503)
    asked = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    asked.request("GET", "/api/v1/agents/ann", headers={"X-API-Key": acme_key})
    found = asked.getresponse()
    (line,) = [line for line in accesses(server, 1) if line["route"] != "/health/ready"]
    assert (line["route"], line["status"]) == ("/api/v1/agents/{id}", 404)
    assert (line["bytes"], line["organization_id"]) == (len(found.read()), str(acme.pk))
    assert line["request_id"] == found.headers["X-Request-Id"]
    asked.request("POST", "/api/v1/memories/export", b"{}", {"X-API-Key": acme_key})
    asked.getresponse().read()
    asked.close()
    assert accesses(server, 2)[-1]["route"] == "/api/v1/memories/export"


def test_what_serving_refuses_is_logged(server, acme, acme_key):
    head = ["POST /api/v1/memories HTTP/1.1", "Content-Length: 1000", f"X-API-Key: {acme_key}"]
    with send(server, head, b"{") as sent:
        _, headers = head_of(sent)
    (line,) = accesses(server, 1)
    assert (line["status"], line["method"], line["route"]) == (408, "POST", "/api/v1/memories")
    assert line["request_id"] == headers["x-request-id"]
    assert line["organization_id"] == str(acme.pk) and line["key_id"]
    assert line["duration_ms"] > 4000
    assert line["bytes"] == int(headers["content-length"])


# -- bodies that do not come ---------------------------------------------------------------------


def test_a_request_without_a_key_is_refused_before_its_body(server, acme_key):
    with ExitStack() as crowd:
        stalled = [
            crowd.enter_context(
                send(server, ["POST /api/v1/memories HTTP/1.1", CHUNKED], chunk(b"{"))
            )
            for _ in range(CROWD)
        ]
        assert get(server, "/health/live") == 200
        assert get(server, "/api/v1/me", acme_key) == 200
        for sent in stalled:
            status, headers = head_of(sent)
            assert (status, headers["connection"]) == (401, "close")


def test_an_endless_form_is_given_up(server, acme_key):
    head = ["POST /admin/login/ HTTP/1.1", f"Content-Type: {FORM}", "Content-Length: 1000"]
    with ExitStack() as crowd:
        stalled = [crowd.enter_context(send(server, head, b"username=a")) for _ in range(CROWD)]
        assert get(server, "/health/live") == 200
        assert get(server, "/admin/login/") == 200
        assert get(server, "/api/v1/me", acme_key) == 200
        assert {head_of(sent)[0] for sent in stalled} == {408}


def test_a_long_form_requires_signing_in(server):
    head = ["POST /admin/login/ HTTP/1.1", f"Content-Type: {FORM}", f"Content-Length: {10 * MIB}"]
    with send(server, head, b"username=" + b"a" * 100_000) as sent:
        assert head_of(sent)[0] == 413


def test_a_stalled_body_gets_408(server, acme_key):
    head = ["POST /api/v1/memories HTTP/1.1", f"X-API-Key: {acme_key}", "Content-Length: 100"]
    with send(server, head, b'{"content"') as sent:
        status, told = answer(sent)
    assert (status, told["code"]) == (408, "body_too_slow")
    assert "nothing arrived for 5 s" in told["detail"]


def test_a_slow_body_arrives_whole(server, acme_key):
    body = json.dumps({"name": "Ann", "external_id": "ann", "metadata": {"x": "é" * 50_000}})
    data = body.encode()
    head = [
        "POST /api/v1/users HTTP/1.1",
        f"X-API-Key: {acme_key}",
        "Content-Type: application/json",
        "Connection: close",
    ]
    for framing in (CHUNKED, f"Content-Length: {len(data)}"):
        with send(server, [*head, framing]) as sent:
            for start in range(0, len(data), 70_000):
                part = data[start : start + 70_000]
                sent.sendall(chunk(part) if framing == CHUNKED else part)
                time.sleep(0.6)
            if framing == CHUNKED:
                sent.sendall(chunk(b""))
            status, told = answer(sent)
        # (The second time there is such a user.)
        assert (status, told.get("name")) in [(201, "Ann"), (409, None)]


def test_slow_uploads_have_their_own_threads(server, acme, acme_key):
    with ExitStack() as crowd:
        slow = [
            crowd.enter_context(server.begin(acme_key, "users/bulk", CHUNKED)) for _ in range(3)
        ]
        for number, sent in enumerate(slow):
            sent.sendall(chunk(b'{"external_id":"u%d"}\n' % number))
        time.sleep(1)  # each has its thread
        status, told = answer(server.begin(acme_key, "users/bulk", CHUNKED))
        assert (status, told["code"]) == (503, "busy")
        for _ in range(6):
            assert get(server, "/api/v1/users", acme_key) == 200
            assert get(server, "/health/live") == 200
            for sent in slow:
                sent.sendall(chunk(b"\n"))
            time.sleep(1)  # longer, in all, than one may be silent
        for sent in slow:
            sent.sendall(chunk(b""))
            status, report = answer(sent)
            assert (status, report["inserted"]) == (200, 1)


def test_a_stalled_upload_is_answered_with_what_is_stored(server, acme_key):
    sent = server.begin(acme_key, "users/bulk", CHUNKED)
    sent.sendall(chunk(b'{"external_id":"u"}\n'))
    status, told = answer(sent)
    assert (status, told["code"]) == (400, "unreadable_body")
    assert "nothing arrived for 5 s" in told["detail"]
    assert "Nothing is stored" in told["detail"]


# -- requests that wait --------------------------------------------------------------------------


def test_requests_that_wait_for_a_lock_leave_threads_for_others(server, acme_key):
    with locked("memories_tool"), ExitStack() as crowd:
        head = ["GET /api/v1/tools HTTP/1.1", f"X-API-Key: {acme_key}"]
        waiting = [crowd.enter_context(send(server, head)) for _ in range(CROWD)]
        time.sleep(1)
        for _ in range(5):
            assert get(server, "/api/v1/users", acme_key) == 200
            assert get(server, "/health/live") == 200
        assert {head_of(sent)[0] for sent in waiting} == {503}


# -- connections ---------------------------------------------------------------------------------


def test_an_early_response_leaves_the_connection_usable(server, acme_key):
    body = b"[" + b" " * 300_000
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sent:
        for _ in range(20):
            sent.sendall(
                b"POST /api/v1/memories HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: agm_wrong\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            assert head_of(sent)[0] == 401
            sent.sendall(
                b"GET /api/v1/me HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: %b\r\n\r\n"
                % acme_key.encode()
            )
            assert head_of(sent)[0] == 200


def test_a_body_too_long_to_drain_closes_the_connection(server, acme_key):
    head = [
        "POST /api/v1/memories HTTP/1.1",
        f"X-API-Key: {acme_key}",
        f"Content-Length: {40 * MIB}",
        "Content-Type: application/json",
    ]
    with send(server, head) as sent:
        for _ in range(40):
            sent.sendall(b" " * MIB)
        status, headers = head_of(sent)
        assert (status, headers["connection"]) == (413, "close")
        assert sent.recv(1) == b""


# -- what the application is told, and what it answers -------------------------------------------


def test_the_wsgi_environment_has_the_request(plain):
    head = [
        "POST /a%2Fb/%C3%A9/c+d?x=%2F&y HTTP/1.1",
        "Content-Type: text/x",
        "X-One: 1",
        "X-One: 2",
        "X_Two: forged",
        "Cookie: a=1",
        "Content-Length: 5",
        "Connection: close",
    ]
    _, told = answer(send(plain, head, b"hello"))
    assert told["PATH_INFO"].encode("latin-1").decode() == "/a/b/é/c+d"
    assert told["QUERY_STRING"] == "x=%2F&y"
    assert (told["REQUEST_METHOD"], told["CONTENT_TYPE"], told["body"]) == (
        "POST",
        "text/x",
        "hello",
    )
    assert (told["CONTENT_LENGTH"], told["HTTP_X_ONE"]) == ("5", "1,2")
    assert (told["HTTP_COOKIE"], told["HTTP_HOST"]) == ("a=1", "127.0.0.1")
    assert "HTTP_X_TWO" not in told
    assert (told["REMOTE_ADDR"], told["wsgi.url_scheme"]) == ("127.0.0.1", "http")


def test_a_response_is_produced_no_faster_than_it_is_read(plain):
    before = plain.peak_mib()
    with send(plain, ["GET /parts?8000 HTTP/1.1", "Connection: close"]) as sent:  # 500 MiB
        time.sleep(1)
        received = sum(map(len, iter(lambda: sent.recv(MIB), b"")))
    assert received > 8000 * 65_536
    assert plain.peak_mib() < before + 30


@pytest.mark.parametrize("reads", [MIB, 0])
def test_a_response_that_nobody_reads_is_ended(plain, reads):
    with ExitStack() as crowd:
        for _ in range(2):
            sent = crowd.enter_context(send(plain, ["GET /parts?8000 HTTP/1.1"]))
            if reads:
                sent.recv(reads)
                sent.close()
        if not reads:  # both threads are taken until the patience is over
            assert get(plain, "/parts?8000", within_s=5) == 503
        until(lambda: closed(plain) >= 2, "both are closed")


def closed(plain):
    _, told = 0, send(plain, ["GET /closed HTTP/1.1", "Connection: close"])
    with told:
        received = b"".join(iter(lambda: told.recv(MIB), b""))
    return int(received.rpartition(b"\r\n\r\n")[2])
