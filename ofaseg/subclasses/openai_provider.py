"""Any endpoint that speaks the OpenAI chat protocol: hosted, vLLM, Ollama, llama.cpp."""

import json
import math
import os
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Mapping, Optional
from urllib.parse import urlsplit, urlunsplit

from ofaseg.subclasses.providers import Answer, ProviderError

DEFAULT_URL = "https://api.openai.com/v1"
DEFAULT_PARAMETERS = {"temperature": 0, "max_tokens": 1024}
MAX_ANSWER_BYTES = 1 << 20
"""Bytes of an HTTP answer that are read; names of a class take one or two thousand."""
HEAD_BYTES = 4096
"""Bytes of an answer without use that are kept for the log."""
SHORTEST_SECRET = 8
"""Characters from which on a key is taken for a secret; local servers are given words such as EMPTY."""
RETRY_STATUS = (408, 409, 425, 429)
"""Status codes, beside those from 500 on, after which the same request can succeed."""


class OpenAIProvider:
    """Chat completions through the `openai` client (the extra `llm`); its own retries are off, `generate` does them.

    Args:
        model: the model's name at the endpoint.
        base_url: such as http://localhost:8000/v1; "" for $OPENAI_BASE_URL, or OpenAI's own.
        key_variable: environment variable that holds the key. It may be unset where the endpoint is not OpenAI's.
        parameters: of the request, such as temperature and max_tokens; a value of None leaves one of the defaults out.
        timeout: seconds for a whole answer.
        max_bytes: of an HTTP answer; a longer one is given up.

    Raises:
        ValueError: no key for OpenAI's endpoint or one with odd characters, a base_url that is none or holds a password, or no client.
    """

    def __init__(
        self,
        model: str,
        base_url: str = "",
        key_variable: str = "OPENAI_API_KEY",
        parameters: Optional[Mapping] = None,
        timeout: float = 120.0,
        max_bytes: int = MAX_ANSWER_BYTES,
    ):
        try:
            import openai
        except ImportError as error:
            raise ValueError("the client of OpenAI's protocol is not installed: pip install 'ofaseg[llm]'") from error
        url = _checked_url(base_url or os.environ.get("OPENAI_BASE_URL", "") or DEFAULT_URL)
        self._key = os.environ.get(key_variable, "").strip()
        if not self._key and url == DEFAULT_URL:
            raise ValueError(f"{DEFAULT_URL} needs a key: set the environment variable {key_variable}, or give --base-url")
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:
            raise ValueError(f"the environment variable {key_variable} holds no key: blanks, control or other characters are in it")
        self.model, self._url, self._timeout, self._max_bytes = model, url, timeout, max_bytes
        self._parameters = {key: value for key, value in {**DEFAULT_PARAMETERS, **(parameters or {})}.items() if value is not None}
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=timeout,
            # the client would read the whole body of an error, however long, and follow redirects with the key
            http_client=openai.DefaultHttpxClient(event_hooks={"response": [self._refuse]}, follow_redirects=False, timeout=timeout),
        )

    def identity(self) -> dict:
        return {"provider": "openai", "model": self.model, "parameters": self._parameters}

    def place(self) -> str:
        return self._url

    def complete(self, class_name: str, prompt: str) -> Answer:
        started = time.monotonic()
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], **self._parameters}
        known = {key: body.pop(key) for key in ("model", "messages")}
        headers = {"Accept-Encoding": "identity"}  # a packed answer could be a thousand times as long as it looks
        try:
            create = self._client.chat.completions.with_streaming_response.create
            with create(**known, extra_body=body, extra_headers=headers) as response:
                content = self._read(response, started)
        except Exception as error:  # whatever the client or its transport raises is told as one kind of error
            failure = self._as_provider_error(error)
        else:
            return self._answer(content)
        raise failure  # out here, so that no traceback reaches the request, which holds the key

    def _read(self, response, started: float) -> bytes:
        """The body, given up where it is too long or takes too long in all."""
        chunks, size = [], 0
        for chunk in response.iter_bytes():
            chunks.append(chunk)
            size += len(chunk)
            if size > self._max_bytes:
                message = f"{self._url}: the answer is longer than {self._max_bytes:,} bytes and was given up; lower max_tokens"
                raise ProviderError(message, retry=True, received=self._head(b"".join(chunks)))
            if time.monotonic() - started > self._timeout:
                raise self._late(b"".join(chunks))
        return b"".join(chunks)

    def _late(self, head: bytes = b"") -> ProviderError:
        return ProviderError(f"{self._url}: no whole answer within {self._timeout:g} s", retry=True, received=self._head(head))

    def _refuse(self, response) -> None:
        """Hook on every HTTP response: an error status becomes a ProviderError with the beginning of its body."""
        if response.status_code < 300:
            return
        started, head = time.monotonic(), b""
        for chunk in response.iter_bytes():
            head += chunk
            if len(head) >= HEAD_BYTES or time.monotonic() - started > self._timeout:
                break
        raise self._status_error(response.status_code, response.headers, self._head(head))

    def _status_error(self, status: int, headers: Mapping, received: str) -> ProviderError:
        told = _told(received)
        message = f"{self._url} answered {status}" + (f": {told}" if told else "")
        if status in (401, 403):
            return ProviderError(message + "; check the key in the environment variable", fatal=True, received=received)
        if status == 404:
            return ProviderError(message + f"; check --base-url and the model {self.model!r}", fatal=True, received=received)
        retry = (status in RETRY_STATUS or status >= 500) and "insufficient_quota" not in received
        return ProviderError(message, retry=retry, wait=retry_after(headers), fatal=not retry, received=received)

    def _as_provider_error(self, error: Exception) -> ProviderError:
        while error is not None:
            if isinstance(error, ProviderError):
                return error
            if isinstance(error, self._openai.APITimeoutError) or "Timeout" in type(error).__name__:
                return self._late()
            cause = error.__cause__
            if cause is None:
                break
            error = cause
        reason = self._safe(f"{type(error).__name__}: {error}".encode())
        return ProviderError(f"{self._url}: the connection failed ({reason[:200]})", retry=True)

    def _answer(self, content: bytes) -> Answer:
        """The text in an HTTP answer of the chat protocol. Raises ProviderError for another form."""
        received = self._safe(content)
        try:
            reply = json.loads(received)
            choice = reply["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            shown = " ".join(received[:80].split())
            message = f"{self._url}: no chat answer, or one cut off ({type(error).__name__}): {shown!r}"
            raise ProviderError(message, retry=True, received=self._head(content)) from error
        if not isinstance(text, str):
            refusal = choice["message"].get("refusal") or f"finish reason {choice.get('finish_reason')!r}"
            message = f"{self._url}: an answer without text ({str(refusal)[:100]})"
            raise ProviderError(message, retry=True, received=self._head(content))
        details = {"finish_reason": choice.get("finish_reason"), "usage": reply.get("usage"), "served_by": reply.get("model")}
        return Answer(text, {key: value for key, value in details.items() if value is not None})

    def _safe(self, content: bytes) -> str:
        """Text for people and files; a server that sends the key back does not get it written down."""
        text = content.decode("utf-8", errors="replace")
        return text.replace(self._key, "[key]") if len(self._key) >= SHORTEST_SECRET else text

    def _head(self, content: bytes) -> str:
        """The beginning of a body, without the beginning of the key where it was cut off in the middle of it."""
        text = self._safe(content)[:HEAD_BYTES]
        parts = (self._key[:length] for length in range(len(self._key) - 1, 3, -1))
        return next((text.removesuffix(part) for part in parts if text.endswith(part)), text)


def _checked_url(url: str) -> str:
    """The address without query. Raises ValueError for no http address, or one that holds a user name or password."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--base-url: {url[:80]!r} is no address; write one such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError("--base-url holds a user name, password or query, which would be written down; put the key in the environment")
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def _told(received: str) -> str:
    """The message in the body of an error, else its beginning, in one line."""
    try:
        error = json.loads(received)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError, RecursionError):
        text = received
    return " ".join(str(text).split())[:160]


def retry_after(headers: Mapping) -> Optional[float]:
    """Seconds in a Retry-After header, from now where it holds a date; None without one that can be read."""
    text = (headers.get("retry-after") or "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
