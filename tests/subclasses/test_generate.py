"""Generation end to end against a real HTTP server that misbehaves: nothing is lost, nothing is asked twice."""

import json
import os
import signal
import time

import pytest

from ofaseg.subclasses.answer_log import AnswerLog, request_key
from ofaseg.subclasses.generate import REMINDER, Generator, Settings
from ofaseg.subclasses.openai_provider import OpenAIProvider
from ofaseg.subclasses.providers import Answer, ProviderError
from ofaseg.subclasses.template import PromptTemplate
from tests.subclasses.endpoint import good_names

pytest.importorskip("openai", reason="the extra `llm` is not installed")

CLASSES = ("cat", "dog", "bus", "boat")
BAD_ANSWERS = ("cut_off_list", "wrong_class", "injection_alone")
BAD_REQUESTS = ("busy", "broken", "silence", "cut_off_body", "hang_up", "huge", "huge_error", "web_page", "no_text")


def generator(endpoint, log, sleeps=None, classes=CLASSES, **settings):
    provider = OpenAIProvider("toy", endpoint.url, timeout=0.4)
    sleep = (sleeps if sleeps is not None else []).append
    return Generator(classes, provider, PromptTemplate(), log, Settings(wanted=5, **settings), sleep=sleep)


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("behaviour", [*BAD_REQUESTS, *BAD_ANSWERS])
def test_one_fault_costs_one_repetition(endpoint, tmp_path, behaviour):
    """The set is complete, and both the fault and the answer after it are in the log."""
    endpoint.plan["dog"] = [behaviour]
    with AnswerLog(tmp_path / "a.jsonl") as log:
        result = generator(endpoint, log).run()
    assert result.names == {name: tuple(good_names(name)) for name in CLASSES} and not result.failures
    assert list(result.names) == list(CLASSES) and endpoint.asked == ["cat", "dog", "dog", "bus", "boat"]
    kept = records(tmp_path / "a.jsonl")
    assert [record["class"] for record in kept] == endpoint.asked
    fault = kept[1]
    assert ("answer" in fault and fault["problem"]) if behaviour in BAD_ANSWERS else fault["error"]
    assert (tmp_path / "a.jsonl").stat().st_size < 40_000


@pytest.mark.parametrize("behaviour, dropped", [("prose", 0), ("injection", 8)])
def test_answers_with_more_than_names_in_them(endpoint, tmp_path, behaviour, dropped):
    endpoint.plan["dog"] = [behaviour]
    with AnswerLog(tmp_path / "a.jsonl") as log:
        result = generator(endpoint, log).run()
    assert result.names["dog"] == tuple(good_names("dog")) and result.asked == 4
    assert len(result.dropped.get("dog", ())) == dropped


def test_a_class_without_answer_costs_no_other_and_is_asked_for_alone_next_time(endpoint, tmp_path):
    endpoint.plan = {"dog": ["wrong_class"] * 2, "boat": ["broken"] * 3}
    sleeps: list[float] = []
    with AnswerLog(tmp_path / "a.jsonl") as log:
        result = generator(endpoint, log, sleeps, attempts=2, retries=2).run()
    assert list(result.names) == ["cat", "bus"] and not result.stopped
    assert "is about 'submarine', not 'dog'; 2 answers, none of use" in result.failures["dog"]
    assert "answered 500" in result.failures["boat"]
    assert len(sleeps) == 2 and 0.5 <= sleeps[0] <= 1 <= sleeps[1] <= 2  # twice as long, with jitter
    first = len(endpoint.asked)
    with AnswerLog(tmp_path / "a.jsonl") as log:
        second = generator(endpoint, log)
        estimate = second.estimate()
        result = second.run()
    assert (estimate.requests, estimate.answered) == (2, 2)
    assert endpoint.asked[first:] == ["dog", "boat"] and (result.asked, result.reused) == (2, 2)
    assert result.names == {name: tuple(good_names(name)) for name in CLASSES}
    assert len(records(tmp_path / "a.jsonl")) == len(endpoint.asked)


def test_retry_after_is_honoured(endpoint, tmp_path):
    endpoint.plan["cat"] = ["busy", "busy"]
    sleeps: list[float] = []
    with AnswerLog(tmp_path / "a.jsonl") as log:
        assert not generator(endpoint, log, sleeps).run().failures
    assert sleeps == [7, 7]


@pytest.mark.parametrize("behaviour, message", [("wrong_key", "check the key"), ("busy_for_hours", "asks to wait 7200 s: run again then")])
def test_what_fails_for_all_ends_the_run_at_once(endpoint, tmp_path, behaviour, message):
    endpoint.plan["dog"] = [behaviour]
    sleeps: list[float] = []
    with AnswerLog(tmp_path / "a.jsonl") as log:
        log.append(generator(endpoint, log)._key("boat"), {"answer": json.dumps(good_names("boat"))})
        result = generator(endpoint, log, sleeps).run()
    assert endpoint.asked == ["cat", "dog"] and not sleeps and message in result.stopped
    assert result.failures["bus"] == "not asked for"
    assert list(result.names) == ["cat", "boat"]  # answers of before still count


def test_a_dead_server_is_not_asked_for_every_class(endpoint, tmp_path):
    classes = [f"thing {k}" for k in range(9)]
    endpoint.plan = {name: ["broken"] * 9 for name in classes}
    with AnswerLog(tmp_path / "a.jsonl") as log:
        result = generator(endpoint, log, classes=classes, retries=1, stop_after=3).run()
    assert endpoint.asked == [name for name in classes[:3] for _ in range(2)] and "answered 500" in result.stopped


def test_a_second_try_is_asked_in_other_words(endpoint, tmp_path):
    endpoint.plan["cat"] = ["cut_off_list"]
    with AnswerLog(tmp_path / "a.jsonl") as log:
        generator(endpoint, log, classes=("cat",)).run()
    prompts = [body["messages"][0]["content"] for body, _ in endpoint.requests]
    assert prompts[1] == prompts[0] + REMINDER


def test_another_prompt_or_model_is_another_question(endpoint, tmp_path):
    with AnswerLog(tmp_path / "a.jsonl") as log:
        first = generator(endpoint, log, classes=("cat",))
        first.run()
        assert first.known("cat") is not None
        other_words = PromptTemplate(dataset="paintings")
        assert Generator(("cat",), first.provider, other_words, log, first.settings).known("cat") is None
        for change in ({"model": "other"}, {"parameters": {"temperature": 1}}):
            provider = OpenAIProvider(**{"model": "toy", "base_url": endpoint.url, **change})
            assert Generator(("cat",), provider, PromptTemplate(), log, first.settings).known("cat") is None


def test_the_rate_limit_spaces_requests():
    now = [0.0]

    class Slow:
        def identity(self):
            return {}

        def place(self):
            return "here"

        def complete(self, class_name, prompt):
            times.append(now[0])
            now[0] += 1.0
            return Answer(json.dumps(good_names(class_name)))

    class NoLog:
        def answers(self, key):
            return ()

        def append(self, key, record):
            pass

    def sleep(seconds):
        now[0] += seconds

    times: list[float] = []
    Generator(CLASSES, Slow(), PromptTemplate(), NoLog(), Settings(requests_per_minute=10), sleep, lambda: now[0]).run()
    assert times == [0, 6, 12, 18]


def test_a_killed_run_loses_only_the_answer_it_waited_for(endpoint, tmp_path):
    """A child is killed (signal 9) while the third class is being answered; the next run asks from there on."""
    path = tmp_path / "a.jsonl"
    endpoint.plan["bus"] = ["silence"]
    child = os.fork()
    if child == 0:
        try:
            with AnswerLog(path) as log:
                Generator(CLASSES, OpenAIProvider("toy", endpoint.url, timeout=60), PromptTemplate(), log, Settings(wanted=5)).run()
        finally:
            os._exit(1)
    assert endpoint.waiting.wait(30)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with AnswerLog(path) as log:
        result = generator(endpoint, log).run()
    assert endpoint.asked == ["cat", "dog", "bus", "bus", "boat"]
    assert result.names == {name: tuple(good_names(name)) for name in CLASSES} and result.reused == 2


def test_a_line_cut_off_by_a_kill_is_passed_over(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    with AnswerLog(path) as log:
        log.append("k1", {"answer": "one"})
        log.append("k2", {"answer": "two"})
    path.write_bytes(path.read_bytes()[:-9])
    with AnswerLog(path) as log:
        assert log.answers("k1") == ("one",) and log.answers("k2") == ()
        log.append("k3", {"answer": "three \ud800"})  # a lone surrogate, as broken JSON can hold
    assert "line 2: cut off, as by a killed run" in caplog.text
    with AnswerLog(path) as log:
        assert log.answers("k1") == ("one",) and log.answers("k3") == ("three \ud800",)
        log.append("k1", {"answer": "newer"})
        assert log.answers("k1") == ("newer", "one")


def test_two_runs_do_not_write_one_file(tmp_path):
    with AnswerLog(tmp_path / "a.jsonl"), pytest.raises(ValueError, match="another run is writing there"):
        AnswerLog(tmp_path / "a.jsonl")
    AnswerLog(tmp_path / "a.jsonl").close()


def test_the_key_of_a_request_is_of_all_that_decides_the_answer():
    key = request_key("p", {"model": "m", "parameters": {"a": 1, "b": 2}})
    assert key == request_key("p", {"parameters": {"b": 2, "a": 1}, "model": "m"}) and len(key) == 64
    others = [request_key("q", {"model": "m"}), request_key("p", {"model": "m"}), request_key("p", {"model": "n"})]
    assert len({key, *others}) == 4


@pytest.mark.parametrize("bad", [dict(wanted=0), dict(minimum=11), dict(retries=-1), dict(attempts=0), dict(requests_per_minute=-1)])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="minimum"):
        Settings(**bad)


def test_provider_errors_that_cannot_be_repeated_are_not(tmp_path):
    class Lacking:
        calls = 0

        def identity(self):
            return {}

        def place(self):
            return "a file"

        def complete(self, class_name, prompt):
            self.calls += 1
            raise ProviderError("no answer for it")

    provider = Lacking()
    started = time.monotonic()
    with AnswerLog(tmp_path / "a.jsonl") as log:
        result = Generator(CLASSES, provider, PromptTemplate(), log).run()
    assert provider.calls == 4 and set(result.failures) == set(CLASSES) and not result.stopped
    assert time.monotonic() - started < 1  # nothing is waited for
