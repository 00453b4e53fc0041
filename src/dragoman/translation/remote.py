"""The engine on a server that speaks the OpenAI API: vLLM, llama.cpp, SGLang, hosted ones.

Requests run side by side, at most so many a minute; each is tried again after 429, 5xx, time-outs and cut or odd
answers, with waits that double (or as the server asks). What still fails is that segment's fault, and passes, unless
every answer was empty; where a server is down, the job stops. Models without a chat template are asked to complete the
prompt's last line.
The key comes from the environment and is in no message and no record.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

import httpx

from dragoman.errors import ConfigError, ModelError
from dragoman.translation.request import Answer, Request, render

KEY = "DRAGOMAN_API_KEY"
EXAMPLE = "http://localhost:8000/v1"
LONGEST_WAIT = 60.0
EMPTY = "the server's answer is empty"
"""A fault of the model, not of the server: it may say something to the prompt of another step."""


class Pace:
    """Spreads requests evenly: at most so many a minute, over all threads; 0 sets no limit."""

    def __init__(self, per_minute: int, wait: Callable[[float], None], clock: Callable[[], float]) -> None:
        self.gap = 60 / per_minute if per_minute else 0.0
        self.wait, self.clock = wait, clock
        self._free, self._lock = 0.0, threading.Lock()

    def take(self) -> None:
        """Returns when the next request may go out."""
        if not self.gap:
            return
        with self._lock:
            now = self.clock()
            start = max(now, self._free)
            self._free = start + self.gap
        if start > now:
            self.wait(start - now)


@dataclass(frozen=True)
class RemoteEngine:
    """url: up to and with `/v1`; model: the server's name for it."""

    url: str
    model: str
    _: KW_ONLY
    concurrency: int = 8
    timeout: float = 60.0
    tries: int = 4
    first_wait: float = 0.5
    per_minute: int = 0
    completions: bool = False
    """The model has no chat template: it completes the prompt's last line."""
    wait: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"{self.url!r} is no address of a server; give one such as {EXAMPLE}")
        try:
            httpx.URL(self.url)
        except httpx.InvalidURL as e:
            raise ConfigError(f"{self.url!r} is no address of a server: {e}; give one such as {EXAMPLE}") from None
        key = os.environ.get(KEY, "")
        if not (key.isascii() and key.isprintable()) or key != key.strip():
            raise ConfigError(
                f"{KEY} has spaces or line ends around it, or characters that no header can carry; set it again"
            )

    @property
    def batch(self) -> int:
        return 4 * self.concurrency

    @cached_property
    def _pace(self) -> Pace:
        return Pace(self.per_minute, self.wait, self.clock)

    def answers(self, requests: Sequence[Request], template: str) -> Iterator[tuple[int, Answer]]:
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        silent: list[tuple[int, Answer]] = []
        asked = [self._asked(r, template) for r in requests]
        with httpx.Client(headers=headers, timeout=self.timeout) as client, self._pool() as pool:
            jobs = {pool.submit(self._answer, client, self._pace, *what): i for i, what in enumerate(asked)}
            for job in as_completed(jobs):
                answer = job.result()
                if answer.text is None:
                    silent.append((jobs[job], answer))
                else:
                    yield jobs[job], answer
        if silent and len(silent) == len(requests) and self._is_down(headers):
            raise ModelError(
                f"{self.url} answered none of {len(requests)} requests, {self.tries} times each: {silent[0][1].fault}; "
                "when it is back, the same command goes on where this one stopped"
            )
        yield from silent

    @contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        """Threads; where the block ends early, what waits is not asked any more."""
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _asked(self, request: Request, template: str) -> tuple[str, dict[str, Any]]:
        """Where a request goes, and its body."""
        prompt, body = render(request, template), {"model": self.model, "temperature": 0}
        if not self.completions:
            return "chat/completions", body | {"messages": [{"role": "user", "content": prompt}]}
        most = 2 * len(request.source) + 40
        return "completions", body | {"prompt": prompt, "stop": ["\n"], "max_tokens": most}

    def _answer(self, client: httpx.Client, pace: Pace, path: str, body: dict[str, Any]) -> Answer:
        faults, wait = list[str](), self.first_wait
        for n in range(self.tries):
            if n:
                self.wait(wait)
            pace.take()
            found, asked = self._once(client, path, body)
            if isinstance(found, Answer):
                return found
            faults.append(found)
            wait = asked if asked is not None else 2 * wait if n else wait
        return Answer(None, faults[-1], passing=set(faults) != {EMPTY})

    def _is_down(self, headers: dict[str, str]) -> bool:
        try:
            reply = httpx.get(f"{self.url.rstrip('/')}/models", headers=headers, timeout=self.timeout)
        except httpx.HTTPError:
            return True
        return reply.status_code >= 500

    def _once(self, client: httpx.Client, path: str, body: dict[str, Any]) -> tuple[Answer | str, float | None]:
        """An answer, or what went wrong and how long the server asks to wait."""
        try:
            reply = client.post(f"{self.url.rstrip('/')}/{path}", json=body)
        except httpx.HTTPError as e:
            return f"the server does not answer ({type(e).__name__})", None
        if reply.status_code in (401, 403, 404):
            raise ModelError(
                f"{self.url} refuses with status {reply.status_code}; look at the address, the model's name and {KEY}"
            )
        if reply.status_code in (400, 413, 422):
            return Answer(None, f"the server refuses this text with status {reply.status_code}"), None
        if reply.status_code != 200:
            after = reply.headers.get("retry-after", "")
            asked = min(float(after), LONGEST_WAIT) if after.isdigit() else None
            return f"the server answers with status {reply.status_code}", asked
        try:
            text, reason = _said(reply.json())
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return "the server's answer is not of the OpenAI form", None
        if reason == "length":
            return Answer(None, "the answer was cut at the server's limit", too_long=True), None
        return (Answer(text), None) if text else (EMPTY, None)


def _said(answer: Any) -> tuple[str, str | None]:
    """Text of the only choice, and why it ended. Anything else raises one of the errors of wrong shapes."""
    (choice,) = answer["choices"]
    if choice.get("index", 0) != 0:
        raise ValueError("a choice that was not asked for")
    said = choice["message"]["content"] if "message" in choice else choice["text"]
    return (said or "").strip(), choice.get("finish_reason")
