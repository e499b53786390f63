"""A chat model behind an endpoint as judge, against a local server that speaks the protocol."""

import contextlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from prefopt.evaluation.judges import EndpointJudge, judged
from prefopt.evaluation.judges.endpoint import read_verdict

pytest.importorskip("openai")


class Server(ThreadingHTTPServer):
    """Answers chat completions by ``reply``, which gets both answers, or an error by number."""

    daemon_threads = True

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply = reply
        self.requests = []
        self.tries = Counter()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers, body))
        text = body["messages"][0]["content"]
        first = text.split("<answer_A>\n")[1].split("\n</answer_A>")[0]
        second = text.split("<answer_B>\n")[1].split("\n</answer_B>")[0]
        self.server.tries[first, second] += 1
        said = self.server.reply(first, second, self.server.tries[first, second])
        if isinstance(said, int):
            self.send(said, {"error": {"message": f"error {said}", "type": "of a test"}})
            return
        message = {"role": "assistant", "content": said}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        self.send(
            200,
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": choices if said != "nothing" else [],
            },
        )

    def send(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # a client that no longer waits
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve():
    """Start a server with a function that replies; all are ended after the test."""
    started = []

    def start(reply):
        server = Server(reply)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def prefers_longer(first, second, tries):
    if len(first) == len(second):
        return "They are alike.\n\nVerdict: tie"
    return f"One says more. **Verdict: {'A' if len(first) > len(second) else 'B'}**"


def test_it_is_asked_in_both_orders_by_the_protocol(serve):
    server = serve(prefers_longer)
    judge = EndpointJudge(server.url, "a-judge")
    found = judged(
        judge,
        ["p {first}", "q", "r", "s"],
        ["long one", "a", "ab", "=="],
        ["b", "long", "cd", "=="],
    )
    assert found.preferences == (1.0, 0.0, 0.5, 0.5)
    assert found.position_bias.value == 0.0
    assert judge.name == f"a-judge at {server.url}"
    assert len(server.requests) == 6  # equal answers are a tie without being asked
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer none"
    assert (body["model"], body["temperature"]) == ("a-judge", 0)
    texts = [request[2]["messages"][0]["content"] for request in server.requests]
    # Braces of a prompt are its own.
    assert sum("<prompt>\np {first}\n</prompt>" in text for text in texts) == 2


def test_replies_without_a_verdict_are_counted_and_no_ties(serve):
    def reply(first, second, tries):
        return {"x": "I like both.", "y": None, "z": "nothing"}.get(first, "Verdict: A")

    judge = EndpointJudge(serve(reply).url, "a-judge")
    with pytest.warns(UserWarning, match=r"3 of 10 verdicts .*3 held none, such as"):
        found = judged(judge, ["p"] * 5, ["x", "y", "z", "a", "b"], ["b", "b", "b", "b", "c"])
    assert found.preferences == (None, None, None, 0.5, 0.5)
    assert found.without_verdict == 3
    assert found.position_bias.value == 1.0


def test_what_fails_by_chance_is_repeated(serve):
    server = serve(lambda first, second, tries: "Verdict: B" if tries > 1 else 503)
    judge = EndpointJudge(server.url, "a-judge", retries=1)
    assert judge.preferences(["p", "p"], ["a", "b"], ["c", "d"]) == [0.0, 0.0]
    assert set(server.tries.values()) == {2}


def test_what_goes_on_failing_has_no_verdict(serve):
    server = serve(lambda first, second, tries: 500 if first == "a" else "Verdict: B")
    judge = EndpointJudge(server.url, "a-judge", retries=1)
    with pytest.warns(UserWarning, match=r"1 of 2 verdicts .*1 requests failed.*error 500"):
        assert judge.preferences(["p", "p"], ["a", "b"], ["c", "d"]) == [None, 0.0]
    assert server.tries["a", "c"] == 2
    with pytest.raises(ValueError, match="answers nothing: InternalServerError"):
        judge.preferences(["p"], ["a"], ["c"])


def test_a_slow_answer_is_no_verdict(serve):
    def reply(first, second, tries):
        time.sleep(1.0 if first == "a" else 0)
        return "Verdict: A"

    judge = EndpointJudge(serve(reply).url, "a-judge", timeout_s=0.3, retries=0)
    with pytest.warns(UserWarning, match="APITimeoutError"):
        assert judge.preferences(["p", "p"], ["a", "b"], ["c", "d"]) == [None, 1.0]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_request_that_is_refused_is_an_error(serve, status):
    server = serve(lambda *given: status)
    with pytest.raises(ValueError, match=f"refuses: .*error {status}"):
        EndpointJudge(server.url, "a-judge").preferences(["p"], ["a"], ["b"])
    assert sum(server.tries.values()) == 1


def test_nobody_there_is_an_error():
    judge = EndpointJudge("http://127.0.0.1:9/v1", "a-judge", retries=0)
    with pytest.raises(ValueError, match="answers nothing: APIConnectionError"):
        judge.preferences(["p"], ["a"], ["b"])
    with pytest.raises(ValueError, match="is an address such as"):
        EndpointJudge("localhost:8000", "a-judge")


def test_a_key_goes_where_it_belongs(serve, monkeypatch):
    server = serve(prefers_longer)
    monkeypatch.setenv("OPENAI_API_KEY", "of another service")
    EndpointJudge(server.url, "a-judge").preferences(["p"], ["a"], ["b"])
    assert server.requests[-1][1]["Authorization"] == "Bearer none"
    monkeypatch.setenv("PREFOPT_JUDGE_API_KEY", "mine")
    EndpointJudge(server.url, "a-judge").preferences(["p"], ["a"], ["b"])
    assert server.requests[-1][1]["Authorization"] == "Bearer mine"
    monkeypatch.delenv("PREFOPT_JUDGE_API_KEY")
    assert EndpointJudge("https://api.openai.com/v1", "m")._client.api_key == "of another service"


def test_question_and_options_can_be_given(serve):
    server = serve(prefers_longer)
    question = "Shorter? {prompt} <answer_A>\n{first}\n</answer_A><answer_B>\n{second}\n</answer_B>"
    judge = EndpointJudge(server.url, "m", question=question, options={"max_tokens": 5})
    judge.preferences(["p"], ["a"], ["b"])
    body = server.requests[0][2]
    assert body["messages"][0]["content"].startswith("Shorter? p <answer_A>")
    assert body["max_tokens"] == 5
    assert "temperature" not in body


def test_without_the_package_that_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(ImportError, match=r"prefopt\[judge\]"):
        EndpointJudge("http://127.0.0.1:9/v1", "m")


@pytest.mark.parametrize(
    ("reply", "preference"),
    [
        ("Verdict: A", 1.0),
        ("verdict: b.", 0.0),
        ("**Verdict**: Tie", 0.5),
        ("Verdict: **A**", 1.0),
        ("Verdict: [[B]]", 0.0),
        ("Verdict: answer A", 1.0),
        ("My verdict: A? No. A is wrong.\nVerdict: B", 0.0),
        ("B", 0.0),
        (" tie\n", 0.5),
        ("A is better than B", None),
        ("Verdict: neither", None),
        ("Verdict: Apples", None),
        ("", None),
    ],
)
def test_how_replies_are_read(reply, preference):
    assert read_verdict(reply) == preference
