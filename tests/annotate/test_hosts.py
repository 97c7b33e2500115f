"""Where requests go: to this machine, or to a host that the user has allowed."""

from pathlib import Path

import pytest
from llm_cases import job, write_cases
from llm_server import LlmServer

from cers.annotate.client import Client
from cers.annotate.hosts import ensure_allowed
from cers.annotate.run import run_annotation
from cers.annotate.settings import AnnotateConfig
from cers.cot.store import AnnotationStore
from cers.errors import CersError


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:8000/v1", True),
        ("http://LOCALHOST/v1", True),
        ("http://127.0.0.1/v1", True),
        ("http://127.8.9.1/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://localhost.evil.example/v1", False),
        ("http://127.0.0.1.nip.io/v1", False),
        ("http://127.0.0.1@evil.example/v1", False),
        ("http://localhost\\@evil.example/v1", False),
        ("http://evil.example#@localhost/v1", False),
        ("http://evil.example/@localhost/v1", False),
        ("http://0.0.0.0/v1", False),
        ("http://[::ffff:192.0.2.1]/v1", False),
        ("http://[::]/v1", False),
        ("http://2130706433/v1", False),
        ("http://localhost./v1", False),
        ("http://ⓛocalhost/v1", False),
        ("http://localhost%2eevil.example/v1", False),
        ("http://127.0.0.1:80@evil.example/v1", False),
        ("http://evil.example:99999/v1", False),
        ("http://[::1", False),
        ("http://localhost:99999/v1", False),
        ("http://localhost:http/v1", False),
        ("http://local host/v1", False),
        ("http://local\nhost.evil.example/v1", False),
    ],
)
def test_only_this_machine_is_sent_to_without_asking(
    tmp_path: Path, url: str, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decided where the connection is made: the client goes to the host that was judged, or nowhere."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    with AnnotationStore(tmp_path / "s.db") as store:
        config = AnnotateConfig(base_url=url)
        if local:
            client = Client(config, ensure_allowed(config, store))
            assert client.api.base_url.host in ("localhost", "127.0.0.1", "127.8.9.1", "::1")
        else:
            with pytest.raises(CersError):
                Client(config, ensure_allowed(config, store))


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY", "http_proxy"])
def test_a_proxy_of_the_environment_does_not_get_what_stays_here(
    tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LlmServer() as proxy, LlmServer() as server, AnnotationStore(tmp_path / "s.db") as store:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        assert run_annotation(job(write_cases(tmp_path, 2), server.url), store).done["ok"] == 2
        assert (len(server.seen), len(proxy.seen)) == (2, 0)
