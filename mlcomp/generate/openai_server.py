"""A language model behind a server that speaks OpenAI's protocol, such as ``transformers serve``, llama.cpp or vLLM.

Two addresses of that protocol are used: ``/v1/completions`` and, for chats, ``/v1/chat/completions``.
Syllabus: 4.18

Servers differ in what they make of a request. ``transformers serve`` (5.23) takes the likeliest token at every
temperature unless the model's own settings say ``do_sample``, or those that are sent along do:
``more={"generation_config": '{"do_sample": true}'}``.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from mlcomp.checks import check_positive, check_whole
from mlcomp.generate.language_model import Reply, Sampling, check_prompts
from mlcomp.resume import hash_values

PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # the same request may go through later
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ServerError(RuntimeError):
    """The server cannot be reached, refuses, or answers something else; the message says which."""


class OpenAIServer:
    """A server at an address; prompts are sent one after another.

    Args:
        address: "http://127.0.0.1:8000", say; a path of "/v1" at its end may be left out.
        model: the model's name there.
        key: sent as a bearer token, and kept nowhere else.
        more: further fields of each request, such as only this server knows.
        timeout: seconds that one try may take.
        tries: how often a request is sent at most, where the server cannot be reached, is busy or fails.
        wait: seconds before the second try; each further one waits twice as long.
    Raises:
        ValueError: no such address, no name, a number out of range.
    """

    def __init__(
        self,
        address: str,
        *,
        model: str,
        key: str | None = None,
        more: Mapping[str, Any] | None = None,
        timeout: float = 120.0,
        tries: int = 4,
        wait: float = 1.0,
    ):
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"address must be like 'http://127.0.0.1:8000', got {address!r}")
        if not isinstance(model, str) or not model:
            raise ValueError("model must be the name that the server knows its model by")
        check_positive("timeout", timeout)
        check_whole("tries", tries, 1)
        check_positive("wait", wait)
        self.address, self.model = address.rstrip("/").removesuffix("/v1"), model
        self.timeout, self.tries, self.wait, self._key = timeout, tries, wait, key
        self.more = dict(more or {})
        # A server on this machine is not asked for through a proxy.
        proxies = [urllib.request.ProxyHandler({})] if parts.hostname in LOOPBACK else []
        self._open = urllib.request.build_opener(*proxies).open

    @property
    def identity(self) -> str:
        """A hash of the model's name and ``more``. Weights cannot be seen from here: for others take a new folder."""
        return hash_values(("server", self.model, self.more))

    def generate(self, prompts: Sequence[str], *, seeds: Sequence[int], sampling: Sampling) -> list[Reply]:
        """Return one reply for each prompt.

        Raises:
            ValueError: no prompts, an empty one, another number of seeds.
            ServerError: no reply within the tries, or none that can be read.
        """
        check_prompts(prompts, seeds)
        return [self._one(prompt, seed, sampling) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _one(self, prompt: str, seed: int, sampling: Sampling) -> Reply:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            **self.more,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.chat:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        path = "/v1/chat/completions" if sampling.chat else "/v1/completions"
        answer = self._asked(path, body)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if sampling.chat else choice["text"]
            ended = choice["finish_reason"] != "length"
        except (KeyError, IndexError, TypeError) as problem:
            raise ServerError(f"{self.address}{path} answered without a text: {str(answer)[:300]}") from problem
        if not isinstance(text, str):
            raise ServerError(f"{self.address}{path} answered without a text: {str(answer)[:300]}")
        # Some servers leave the stop string at the end.
        found = [text.index(mark) for mark in sampling.stop if mark in text]
        return Reply(text[: min(found)], True) if found else Reply(text, ended)

    def _asked(self, path: str, body: dict[str, Any]) -> Any:
        """Return the server's answer, as JSON has it."""
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), headers)
        problem = ""
        for number in range(self.tries):
            if number:
                time.sleep(self.wait * 2 ** (number - 1))
            try:
                with self._open(request, timeout=self.timeout) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}: {error.read(300).decode(errors='replace')}"
                if error.code not in PASSING:
                    raise ServerError(f"{self.address}{path} refuses, {problem}") from error
            except (OSError, HTTPException) as error:  # not there, too slow, or hung up
                problem = str(getattr(error, "reason", error)) or type(error).__name__
            except ValueError as error:
                raise ServerError(f"{self.address}{path} answered what is no JSON: is it such a server?") from error
        times = f"{self.tries} tries" if self.tries > 1 else "one try"
        raise ServerError(f"{self.address}{path} gave no answer in {times} of {self.timeout:g} s: {problem}")
