import pytest

from tests.subclasses.endpoint import KEY, Endpoint


@pytest.fixture
def endpoint(monkeypatch):
    """A running endpoint; the key is in the environment."""
    pytest.importorskip("openai", reason="the extra `llm` is not installed")
    for name in ("OPENAI_BASE_URL", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Endpoint()
    yield server
    server.close()
