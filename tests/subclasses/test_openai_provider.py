"""The client against a real HTTP server that misbehaves."""

import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from ofaseg.subclasses.openai_provider import HEAD_BYTES, OpenAIProvider, retry_after
from ofaseg.subclasses.providers import ProviderError
from tests.subclasses.endpoint import KEY

pytest.importorskip("openai", reason="the extra `llm` is not installed")


def ask(endpoint, behaviour="good", **options):
    endpoint.plan["cat"] = [behaviour]
    return OpenAIProvider("toy", endpoint.url, **options).complete("cat", 'The class is "cat".')


def failure(endpoint, behaviour, **options) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        ask(endpoint, behaviour, **options)
    return caught.value


def test_a_good_answer(endpoint):
    parameters = {"temperature": 0.5, "max_tokens": None, "top_k": 3}
    answer = ask(endpoint, parameters=parameters)
    assert answer.text.startswith('{"cat": ["red cat"')
    assert answer.details["finish_reason"] == "stop" and answer.details["usage"]["prompt_tokens"] == 90
    body, headers = endpoint.requests[0]
    assert body == {"model": "toy", "messages": [{"role": "user", "content": 'The class is "cat".'}], "temperature": 0.5, "top_k": 3}
    assert headers["authorization"] == f"Bearer {KEY}" and headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "behaviour, message, retry, fatal",
    [
        ("busy", "answered 429: slow down", True, False),
        ("no_quota", "answered 429: You exceeded your quota", False, True),
        ("broken", "answered 500: <html>Internal Server Error</html>", True, False),
        ("huge_error", "answered 503: xxx", True, False),
        ("wrong_key", r"answered 401: Incorrect API key provided: \[key\]; check the key", False, True),
        ("unknown_model", "answered 404: model toy does not exist; check --base-url and the model 'toy'", False, True),
        ("elsewhere", "answered 307", False, True),
        ("cut_off_body", "no chat answer, or one cut off", True, False),
        ("hang_up", "the connection failed", True, False),
        ("hang_up_at_once", "the connection failed", True, False),
        ("web_page", "no chat answer.*log in to the wireless network", True, False),
        ("no_text", "an answer without text", True, False),
    ],
)
def test_what_goes_wrong_is_told(endpoint, behaviour, message, retry, fatal):
    error = failure(endpoint, behaviour)
    assert (error.retry, error.fatal) == (retry, fatal)
    with pytest.raises(ProviderError, match=message):
        raise error
    assert len(endpoint.asked) == 1  # the client's own repetitions are off


@pytest.mark.parametrize("behaviour", ["silence", "trickle"])
def test_time_outs_hold_for_the_whole_answer(endpoint, behaviour):
    """A server that sends a byte now and then would keep a time-out per read from ever coming."""
    error = failure(endpoint, behaviour, timeout=0.3)
    assert error.retry and "no whole answer within 0.3 s" in str(error)


@pytest.mark.parametrize("behaviour, message", [("huge", "longer than 65,536 bytes"), ("huge_error", "answered 503")])
def test_an_answer_of_10_mb_is_not_read(endpoint, behaviour, message):
    error = failure(endpoint, behaviour, max_bytes=65536)
    assert message in str(error) and error.retry
    assert endpoint.gave_up.wait(5)  # the server could not send it all, far beyond what the buffers between the two hold
    assert 0 < len(error.received) <= HEAD_BYTES


def test_the_wait_that_the_server_asks_for(endpoint):
    assert failure(endpoint, "busy").wait == 7 and failure(endpoint, "broken").wait is None
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 85 < retry_after({"retry-after": later}) <= 90
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert [retry_after({"retry-after": text}) for text in ("soon", "nan", "inf", "-3", "")] == [None, None, None, 0, None]


@pytest.mark.parametrize("behaviour", ["wrong_key", "hang_up", "error_with_half_the_key"])
def test_no_error_holds_the_key(endpoint, behaviour):
    """Message, traceback and what was received; a key cut in half is no more than its first characters."""
    try:
        ask(endpoint, behaviour)
    except ProviderError as error:
        told = traceback.format_exc() + error.received
        assert error.__context__ is None and error.__cause__ is None
    assert KEY not in told and KEY[:6] not in told


def test_an_answer_never_holds_the_key(endpoint):
    answer = ask(endpoint, "echo_the_key")
    assert answer.text.startswith("[[key]] ") and KEY not in answer.text


@pytest.mark.parametrize(
    "url, message",
    [
        ("localhost:8000", "is no address"),
        ("ftp://host/v1", "is no address"),
        ("http://me:secret@host/v1", "put the key in the environment"),
        ("http://host/v1?api-key=secret", "put the key in the environment"),
    ],
)
def test_addresses_that_are_refused(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        OpenAIProvider("toy", url)
    assert "secret" not in str(caught.value)


def test_keys_come_from_the_named_variable_only(endpoint, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "other-key-123456")
    ask(endpoint, key_variable="OTHER_KEY")
    assert endpoint.requests[-1][1]["authorization"] == "Bearer other-key-123456"
    ask(endpoint, key_variable="UNSET_KEY")  # a local server needs none, and is not given somebody else's
    assert KEY not in endpoint.requests[-1][1]["authorization"]
    with pytest.raises(ValueError, match="needs a key: set the environment variable UNSET_KEY"):
        OpenAIProvider("toy", key_variable="UNSET_KEY")
    monkeypatch.setenv("OTHER_KEY", "other-key\n123456")
    with pytest.raises(ValueError, match="OTHER_KEY holds no key") as caught:
        OpenAIProvider("toy", endpoint.url, key_variable="OTHER_KEY")
    assert "123456" not in str(caught.value)


def test_identity_is_of_model_and_parameters(endpoint):
    first = OpenAIProvider("toy", endpoint.url, parameters={"seed": 1}).identity()
    assert first == {"provider": "openai", "model": "toy", "parameters": {"temperature": 0, "max_tokens": 1024, "seed": 1}}
    assert OpenAIProvider("toy", "http://other:1/v1", parameters={"seed": 1}).identity() == first
