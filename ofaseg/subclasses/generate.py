"""Asks a language model for the subclasses of every class, once: answers are kept, and a run goes on where the last one ended."""

import logging
import random
import time
from dataclasses import dataclass, field
from typing import Callable, Iterable, Optional, Sequence

from ofaseg.subclasses.answer_log import AnswerLog, request_key
from ofaseg.subclasses.answers import AnswerError, ParsedAnswer, parse_answer
from ofaseg.subclasses.providers import Answer, Provider, ProviderError
from ofaseg.subclasses.template import PromptTemplate

logger = logging.getLogger(__name__)
_jitter = random.Random()  # not the generator that runs are seeded with

REMINDER = "\nAnswer for this class alone, with nothing but one complete JSON object."
"""What is added to the prompt after an answer that was of no use; a model without chance in it would repeat itself."""
CHARACTERS_PER_TOKEN = 4
TOKENS_PER_NAME = 6
SECONDS_PER_ANSWER = 3.0
"""Rules of thumb of the estimate."""


@dataclass(frozen=True)
class Settings:
    """How to ask.

    Attributes:
        wanted: names asked for of a class, m.
        minimum: names that an answer must have to be of use, at most `wanted`.
        attempts: answers asked for until one is of use.
        retries: times that a failed request (busy server, time-out, broken connection) is repeated.
        first_wait: seconds before the first repetition; doubled each time, up to `longest_wait`, times a random 0.5..1.
        longest_wait: see above, seconds.
        longest_server_wait: a Retry-After above this many seconds ends the run; shorter ones are waited for.
        requests_per_minute: 0 for no limit.
        stop_after: classes in a row without any answer after which the run ends.
    """

    wanted: int = 10
    minimum: int = 3
    attempts: int = 3
    retries: int = 5
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_server_wait: float = 600.0
    requests_per_minute: float = 0.0
    stop_after: int = 3

    def __post_init__(self):
        if min(self.wanted, self.minimum, self.attempts, self.stop_after) < 1 or self.minimum > self.wanted:
            raise ValueError(f"{self}: wanted, minimum, attempts and stop_after are 1 or more, and minimum is at most wanted")
        if min(self.retries, self.requests_per_minute, self.first_wait, self.longest_wait, self.longest_server_wait) < 0:
            raise ValueError(f"{self}: retries, waits and requests_per_minute are 0 or more")


@dataclass(frozen=True)
class Estimate:
    """Attributes:
    requests: that go out if each answer is of use at once.
    answered: classes with a usable answer from before.
    tokens_in, tokens_out: about four characters a token.
    seconds: of the whole run.
    """

    requests: int
    answered: int
    tokens_in: int
    tokens_out: int
    seconds: float

    def cost(self, price_in: float, price_out: float) -> float:
        """In the currency of the prices, which are for a million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


@dataclass
class Generated:
    """Attributes:
    names: class name -> subclass names, of the classes that have a usable answer, in the order of the class list.
    failures: class name -> why it has none.
    dropped: class name -> names left out of its answer, each with the reason.
    asked: requests that went out.
    reused: classes whose answer was there before.
    stopped: why the run ended early; "" when it did not.
    """

    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    asked: int = 0
    reused: int = 0
    stopped: str = ""


class Generator:
    """Names of classes from a provider, through the log of its answers.

    Args:
        class_names: the classes.
        provider: who answers.
        template: what is asked.
        log: where every raw answer goes, and where those from before are looked up.
        settings: how to ask.
        sleep, clock: seconds; exchanged in tests.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        provider: Provider,
        template: PromptTemplate,
        log: AnswerLog,
        settings: Settings = Settings(),  # noqa: B008  frozen
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.class_names, self.provider, self.template, self.log, self.settings = tuple(class_names), provider, template, log, settings
        self._sleep, self._clock, self._identity = sleep, clock, provider.identity()
        self._last_request: Optional[float] = None
        self._asked = 0

    def estimate(self) -> Estimate:
        """What a run would ask, before it does."""
        missing = [name for name in self.class_names if self.known(name) is None]
        tokens_in = sum(len(self.template.fill(name, self.settings.wanted)) for name in missing) // CHARACTERS_PER_TOKEN
        tokens_out = len(missing) * TOKENS_PER_NAME * self.settings.wanted
        pace = 60.0 / self.settings.requests_per_minute if self.settings.requests_per_minute else 0.0
        seconds = len(missing) * max(SECONDS_PER_ANSWER, pace)
        return Estimate(len(missing), len(self.class_names) - len(missing), tokens_in, tokens_out, seconds)

    def known(self, class_name: str) -> Optional[ParsedAnswer]:
        """The latest usable answer of before; answers are read anew, so that today's rules hold for them."""
        for text in self.log.answers(self._key(class_name)):
            try:
                return self._parse(text, class_name)
            except AnswerError:
                continue
        return None

    def run(self, progress: Callable[[Iterable[str]], Iterable[str]] = iter) -> Generated:
        """Asks for every class that has no usable answer yet. One class without answer never costs the others.

        Args:
            progress: wraps the class names while they are gone through, such as tqdm.
        """
        result, silent = Generated(), 0
        for class_name in progress(self.class_names):
            parsed = self.known(class_name)
            result.reused += parsed is not None
            if parsed is None and result.stopped:
                result.failures[class_name] = "not asked for"
                continue
            try:
                parsed = parsed or self._ask(class_name)
            except AnswerError as error:
                result.failures[class_name], silent = str(error), 0
                continue
            except ProviderError as error:
                result.failures[class_name] = str(error)
                silent += error.retry
                if error.fatal or silent >= self.settings.stop_after:
                    result.stopped = str(error)
                continue
            silent = 0
            result.names[class_name] = parsed.names
            if parsed.dropped:
                result.dropped[class_name] = parsed.dropped
        result.asked = self._asked
        return result

    def _key(self, class_name: str) -> str:
        return request_key(self.template.fill(class_name, self.settings.wanted), self._identity)

    def _parse(self, text: str, class_name: str) -> ParsedAnswer:
        others = [name for name in self.class_names if name != class_name]
        return parse_answer(text, class_name, self.settings.wanted, self.settings.minimum, others)

    def _ask(self, class_name: str) -> ParsedAnswer:
        """A usable answer. Raises AnswerError after the last attempt, ProviderError when no answer came."""
        problem = ""
        for attempt in range(self.settings.attempts):
            prompt = self.template.fill(class_name, self.settings.wanted) + (REMINDER if attempt else "")
            answer = self._request(class_name, prompt)
            try:
                parsed = self._parse(answer.text, class_name)
            except AnswerError as error:
                problem = f"the answer {error}"
                self._keep(class_name, prompt, answer=answer.text, details=dict(answer.details), problem=str(error))
                logger.warning("%s: %s", class_name, problem)
                continue
            self._keep(class_name, prompt, answer=answer.text, details=dict(answer.details), dropped=list(parsed.dropped))
            return parsed
        raise AnswerError(f"{problem}; {self.settings.attempts} answers, none of use")

    def _request(self, class_name: str, prompt: str) -> Answer:
        """An answer, the request repeated where that can help. Raises ProviderError."""
        for repetition in range(self.settings.retries + 1):
            self._pace()
            self._asked += 1
            try:
                return self.provider.complete(class_name, prompt)
            except ProviderError as error:
                self._keep(class_name, prompt, error=str(error), received=error.received)
                if (error.wait or 0) > self.settings.longest_server_wait:
                    raise ProviderError(f"{error}; it asks to wait {error.wait:.0f} s: run again then", fatal=True) from error
                if not error.retry or repetition == self.settings.retries:
                    raise
                backoff = min(self.settings.longest_wait, self.settings.first_wait * 2**repetition) * _jitter.uniform(0.5, 1.0)
                wait = backoff if error.wait is None else error.wait
                logger.warning("%s: %s; again in %.1f s", class_name, error, wait)
                self._sleep(wait)
        raise AssertionError("unreachable: the last repetition returns or raises")

    def _pace(self) -> None:
        """Waits until the rate limit allows the next request."""
        if self.settings.requests_per_minute and self._last_request is not None:
            due = self._last_request + 60.0 / self.settings.requests_per_minute
            self._sleep(max(0.0, due - self._clock()))
        self._last_request = self._clock()

    def _keep(self, class_name: str, prompt: str, **what) -> None:
        record = {"class": class_name, **self._identity, "place": self.provider.place(), "prompt": prompt, **what}
        self.log.append(self._key(class_name), record)
