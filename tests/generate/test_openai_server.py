"""A server on this machine: SmolLM2 behind `transformers serve`, and one that fails in every way that servers do."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mlcomp.assets.cache import cache_dir
from mlcomp.generate import OpenAIServer, Pipeline, Reply, Sampling, ServerError, TransformersModel

GREEDY = Sampling(max_tokens=8, temperature=0)
PROMPTS = ["The capital of France is", "One, two, three,"]


@contextmanager
def answering(*answers, pause=0.0):
    """Yield a server's address and what it was sent; each request gets the next (status, body), the last for ever."""
    sent, left = [], list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent.append((self.path, json.loads(body), dict(self.headers)))
            status, text = left.pop(0) if len(left) > 1 else left[0]
            time.sleep(pause)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *args: None  # a client that hangs up is what one of the tests wants
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(text, reason="stop"):
    return 200, json.dumps({"choices": [{"text": text, "finish_reason": reason}]})


def client(address, **options):
    return OpenAIServer(address, model="m", **{"wait": 0.01, "timeout": 5.0} | options)


def test_what_is_sent_and_what_comes_back():
    sampling = Sampling(max_tokens=9, temperature=0.5, top_p=0.8, stop=("\n\n",))
    with answering(completion("one\n\ntwo"), completion("cut", "length")) as (address, sent):
        replies = client(address + "/v1/", key="secret", more={"top_k": 5}).generate(
            ["a", "b"], seeds=[3, 4], sampling=sampling
        )
    assert replies == [Reply("one", True), Reply("cut", False)]
    (path, body, headers), (_, other, _) = sent
    assert path == "/v1/completions" and headers["Authorization"] == "Bearer secret"
    asked = {"model": "m", "max_tokens": 9, "temperature": 0.5, "top_p": 0.8, "stop": ["\n\n"], "top_k": 5}
    assert body == asked | {"prompt": "a", "seed": 3} and other == asked | {"prompt": "b", "seed": 4}


def test_a_chat():
    answer = {"choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]}
    with answering((200, json.dumps(answer))) as (address, sent):
        assert client(address).generate(["a"], seeds=[0], sampling=Sampling(chat=True)) == [Reply("Hi", True)]
    path, body, headers = sent[0]
    assert path == "/v1/chat/completions" and body["messages"] == [{"role": "user", "content": "a"}]
    assert "prompt" not in body and "Authorization" not in headers


def test_a_busy_server_is_asked_again():
    with answering((503, "busy"), (429, "slow down"), completion("at last")) as (address, sent):
        assert client(address).generate(["a"], seeds=[0], sampling=GREEDY) == [Reply("at last", True)]
    assert len(sent) == 3 and sent[0][:2] == sent[2][:2]


@pytest.mark.parametrize(
    ("answer", "message", "times"),
    [
        ((400, "no such parameter"), "refuses, status 400: no such parameter", 1),
        ((401, "who are you"), "refuses, status 401", 1),
        ((500, "broken"), "no answer in 2 tries of 5 s: status 500: broken", 2),
        ((200, "<html>"), "no JSON", 1),
        ((200, "{}"), "without a text", 1),
        ((200, "[]"), "without a text", 1),
        ((200, '{"choices": []}'), "without a text", 1),
        (completion(None), "without a text", 1),
    ],
)
def test_a_server_that_fails(answer, message, times):
    with answering(answer) as (address, sent), pytest.raises(ServerError, match=message):
        client(address, tries=2).generate(["a"], seeds=[0], sampling=GREEDY)
    assert len(sent) == times


def test_a_server_that_hangs_and_one_that_is_not_there():
    with answering(completion("late"), pause=1.0) as (address, _), pytest.raises(ServerError, match="timed out"):
        client(address, timeout=0.1, tries=1).generate(["a"], seeds=[0], sampling=GREEDY)
    with pytest.raises(ServerError, match=r"no answer in 3 tries of 5 s: .*refused"):
        client(f"http://127.0.0.1:{free_port()}", tries=3).generate(["a"], seeds=[0], sampling=GREEDY)


def test_a_proxy_is_not_asked_for_what_runs_here(monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with answering(completion("near")) as (address, _):
        assert client(address, tries=1).generate(["a"], seeds=[0], sampling=GREEDY) == [Reply("near", True)]


def test_the_identity_is_the_models_name_and_the_key_is_nowhere():
    one = client("http://127.0.0.1:1", key="secret")
    assert one.identity == client("http://127.0.0.1:2").identity
    others = [OpenAIServer("http://127.0.0.1:1", model="n"), client("http://127.0.0.1:1", more={"top_k": 5})]
    assert len({one.identity, *(other.identity for other in others)}) == 3
    assert "secret" not in repr(one) + one.identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "127.0.0.1:8000"}, "address"),
        ({"address": "file:///etc/hosts"}, "address"),
        ({"address": "http://"}, "address"),
        ({"model": ""}, "model"),
        ({"timeout": 0.0}, "timeout"),
        ({"tries": 0}, "tries"),
        ({"wait": 0.0}, "wait"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        OpenAIServer(**{"address": "http://127.0.0.1:8000", "model": "m"} | options)


def free_port():
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        return here.getsockname()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """SmolLM2 in a process of its own, which is ended afterwards; its address and its name there."""
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name, reason="needs the extra serve")
    TransformersModel()  # its weights are in the cache from here on
    (folder,) = cache_dir().glob("smollm2-float32-*[!k]")
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as file:
        env = os.environ | {"HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)
    address = f"http://127.0.0.1:{port}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        for _ in range(600):
            try:
                opener.open(f"{address}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.5)
        else:
            pytest.fail(f"the server did not come up: {log.read_text()[-3000:]}")
        yield address, str(folder)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_real_server_says_what_the_model_says(served, tmp_path):
    address, name = served
    server, own = OpenAIServer(address, model=name, timeout=300.0, tries=1), TransformersModel()
    for sampling in (GREEDY, Sampling(max_tokens=8, temperature=0, chat=True)):
        here = own.generate(PROMPTS, seeds=[0, 1], sampling=sampling)
        assert server.generate(PROMPTS, seeds=[0, 1], sampling=sampling) == here
    drawn, draws = Sampling(max_tokens=8, temperature=1.0), {"generation_config": '{"do_sample": true}'}
    drawing = OpenAIServer(address, model=name, timeout=300.0, tries=1, more=draws)
    first, again, other = (drawing.generate(PROMPTS[:1], seeds=[seed], sampling=drawn) for seed in (5, 5, 6))
    assert first == again != other
    (cut,) = server.generate(PROMPTS[1:], seeds=[0], sampling=Sampling(max_tokens=16, temperature=0, stop=(",",)))
    assert cut.ended and "," not in cut.text
    asked = {"prompts": PROMPTS, "seed": 0, "sampling": GREEDY, "batch": 1}
    replies = Pipeline(tmp_path).generate("generate", server, **asked)
    assert replies == Pipeline(tmp_path).generate("generate", server, **asked)


@pytest.mark.slow
def test_a_real_server_refuses_what_it_does_not_know(served):
    server = OpenAIServer(served[0], model="no/such-model", timeout=60.0, tries=1)
    with pytest.raises(ServerError, match=r"refuses|no answer"):
        server.generate(PROMPTS, seeds=[0, 1], sampling=GREEDY)
