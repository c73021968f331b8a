"""Who answers: one small interface over an HTTP endpoint, a language model on this machine, and a file."""

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Optional, Protocol

from ofaseg.subclasses.local_models import open_model

logger = logging.getLogger(__name__)


class ProviderError(ValueError):
    """No answer came.

    Attributes:
        retry: whether asking again can help.
        wait: seconds after which the other side wants to be asked again, None when it does not say.
        fatal: whether every other request will fail in the same way (a wrong key, an unknown model).
        received: the beginning of what came instead of an answer, for the log.
    """

    def __init__(self, message: str, retry: bool = False, wait: Optional[float] = None, fatal: bool = False, received: str = ""):
        super().__init__(message)
        self.retry, self.wait, self.fatal, self.received = retry, wait, fatal, received


@dataclass(frozen=True)
class Answer:
    """Attributes:
    text: what the model wrote, as it is.
    details: JSON-ready facts for the log: finish reason, token counts, the model's own name.
    """

    text: str
    details: Mapping = field(default_factory=dict)


class Provider(Protocol):
    """Answers prompts. `identity` decides with the prompt whether an earlier answer can be used again."""

    def identity(self) -> dict:
        """Model and parameters, JSON-ready, without keys and addresses."""

    def place(self) -> str:
        """Where the answers come from, for the log and for people."""

    def complete(self, class_name: str, prompt: str) -> Answer:
        """The answer to a prompt about a class. Raises ProviderError."""


class FileProvider:
    """Answers from a JSON file {class name: answer}, an answer being a list of names, an object, or the text of a model.

    Raises:
        ValueError: the file is missing or no JSON object.
    """

    def __init__(self, path):
        self.path = Path(path)
        try:
            content = self.path.read_bytes()
            self._answers = json.loads(content)
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"answers {self.path}: cannot be read as JSON ({error})") from error
        if not isinstance(self._answers, dict):
            raise ValueError(f"answers {self.path}: holds a {type(self._answers).__name__}; write {{class name: answer}}")
        self._sha256 = hashlib.sha256(content).hexdigest()

    def identity(self) -> dict:
        return {"provider": "file", "model": self.path.name, "sha256": self._sha256}

    def place(self) -> str:
        return str(self.path)

    def complete(self, class_name: str, prompt: str) -> Answer:
        if class_name not in self._answers:
            raise ProviderError(f"{self.path} holds no answer for class {class_name!r}; add one under that key")
        answer = self._answers[class_name]
        return Answer(answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False))


class TransformersProvider:
    """A text-generation model in a local folder (config.json, tokenizer, safetensors), run here; nothing is downloaded.

    Chat models are asked through their chat template, others go on with the prompt.

    Args:
        folder: as written by `save_pretrained`.
        max_tokens: tokens of an answer at most.
        temperature: 0 for the likeliest word each time; else words are drawn, from a seed made of the prompt.
        device: where the model runs.

    Raises:
        ValueError: there is no such model folder, or its files cannot be used.
    """

    def __init__(self, folder, max_tokens: int = 512, temperature: float = 0.0, device="cpu"):
        self.folder = Path(folder)
        self._tokenizer, self._model = open_model(self.folder, "AutoModelForCausalLM", "text-generation model", device)
        self.max_tokens, self.temperature = max_tokens, temperature

    def identity(self) -> dict:
        files = sorted((path.name, path.stat().st_size) for path in self.folder.iterdir() if path.is_file())
        content = json.dumps(files).encode() + (self.folder / "config.json").read_bytes()
        parameters = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        model = {"model": self.folder.resolve().name, "files": hashlib.sha256(content).hexdigest()}
        return {"provider": "transformers", **model, "parameters": parameters}

    def place(self) -> str:
        return str(self.folder)

    def complete(self, class_name: str, prompt: str) -> Answer:
        import torch

        ids = self._ids(prompt).to(self._model.device)
        positions = getattr(self._model.config, "max_position_embeddings", None)
        if positions is not None and ids.shape[1] + self.max_tokens > positions:
            room = f"{ids.shape[1]} tokens and an answer of {self.max_tokens} in {positions} positions"
            raise ProviderError(f"{self.folder}: the prompt does not fit: {room}; shorten the prompt or --max-tokens", fatal=True)
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big")
        drawing = dict(do_sample=True, temperature=self.temperature) if self.temperature > 0 else dict(do_sample=False)
        with torch.no_grad(), torch.random.fork_rng(devices=[self._model.device] if self._model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            out = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.max_tokens, pad_token_id=self._pad(), **drawing
            )
        new = out[0, ids.shape[1] :]
        text = self._tokenizer.decode(new, skip_special_tokens=True)
        finish = "length" if len(new) == self.max_tokens else "stop"
        return Answer(text, {"finish_reason": finish, "usage": {"prompt_tokens": ids.shape[1], "completion_tokens": len(new)}})

    def _pad(self) -> int:
        for id_ in (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id):
            if id_ is not None:
                return id_
        return 0  # one prompt at a time: nothing is ever padded, generate only wants a number

    def _ids(self, prompt: str):
        """Token ids (1, L) of a prompt."""
        if getattr(self._tokenizer, "chat_template", None):
            message = [{"role": "user", "content": prompt}]
            text = self._tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            return self._tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        return self._tokenizer(prompt, return_tensors="pt").input_ids
