"""A Hub that does not answer: known within the time given, and never waited for again."""

import os
import socket
import sys
import threading
import time
from contextlib import closing

import datasets.config
import huggingface_hub
import pytest
from huggingface_hub import constants
from transformers.utils.hub import is_offline_mode

from dcl_face_forgery import hub_dcl
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.hub_dcl import (
    check_dataset,
    file_of_checkpoint,
    find_dcl_checkpoint,
    find_model,
    hub_is_reachable,
)

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """As on a machine where offline mode was not asked for; everything is put back."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    fresh_client()
    yield
    fresh_client()


def fresh_client():
    huggingface_hub.close_session()  # its client has read the proxies of the environment
    hub_is_reachable.cache_clear()


class Server:
    """Listens on this machine; answers every request with one status and the Hub's code of an error, or never."""

    def __init__(self, status=None, code="-"):
        self.status, self.code, self.requests = status, code, []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        held = []
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:  # closed
                return
            self.requests.append(connection.recv(65536).decode())
            if self.status is None:
                held.append(connection)
                continue
            headers = f"X-Error-Code: {self.code}\r\nContent-Length: 0\r\nConnection: close"
            connection.sendall(f"HTTP/1.1 {self.status} -\r\n{headers}\r\n\r\n".encode())
            connection.close()

    def close(self):
        self.socket.close()


@pytest.fixture
def serve(monkeypatch):
    servers = []

    def start(status=None, code="-"):
        servers.append(Server(status, code))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def free_port():
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return probe.getsockname()[1]


def assert_offline():
    assert constants.HF_HUB_OFFLINE
    assert is_offline_mode()
    assert datasets.config.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def assert_still_online():
    assert not is_offline_mode()
    assert not datasets.config.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "0"


@pytest.mark.parametrize("status", [200, 302, 404])
def test_a_hub_that_answers_is_reachable(serve, monkeypatch, status):
    server = serve(status)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    assert hub_is_reachable(timeout=5.0)
    assert hub_is_reachable(timeout=5.0)
    assert_still_online()
    assert len(server.requests) == 1
    assert server.requests[0].startswith("HEAD / ")


def test_a_hub_that_is_broken_is_not_reachable(serve, monkeypatch, caplog):
    monkeypatch.setattr(constants, "ENDPOINT", serve(503).url)
    assert not hub_is_reachable(timeout=5.0)
    assert_offline()
    assert "503" in caplog.text


def test_a_network_that_swallows_everything_costs_no_more_than_the_timeout(serve, monkeypatch, caplog):
    monkeypatch.setattr(constants, "ENDPOINT", serve(None).url)
    start = time.perf_counter()
    assert not hub_is_reachable(timeout=0.3)
    assert time.perf_counter() - start < 5  # without the bound, retries take minutes
    assert_offline()
    assert "cannot be reached" in caplog.text
    assert "local cache" in caplog.text


def test_a_name_that_nobody_looks_up_costs_no_more_than_the_timeout(monkeypatch):
    """The look-up of a name has no timeout of its own."""
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: release.wait(10))
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    start = time.perf_counter()
    assert not hub_is_reachable(timeout=0.3)
    assert time.perf_counter() - start < 8
    assert_offline()
    release.set()


def test_a_refused_connection_is_known_at_once(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    start = time.perf_counter()
    assert not hub_is_reachable(timeout=10.0)
    assert time.perf_counter() - start < 5
    assert_offline()


def test_the_answer_is_asked_for_once(serve, monkeypatch):
    server = serve(None)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    assert not hub_is_reachable(timeout=0.3)
    assert not hub_is_reachable(timeout=0.3)
    assert not hub_is_reachable(timeout=60.0)
    assert len(server.requests) == 1


def test_offline_mode_is_believed(serve, monkeypatch):
    server = serve(200)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub_is_reachable()
    assert server.requests == []


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_proxy_is_asked(serve, monkeypatch, scheme):
    proxy = serve(200)
    monkeypatch.setenv("http_proxy", scheme + proxy.url.removeprefix("http://"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    assert hub_is_reachable(timeout=5.0)
    assert proxy.requests[0].startswith("HEAD http://hub.invalid")


def test_a_host_that_needs_no_proxy_is_asked_itself(serve, monkeypatch):
    mirror = serve(200)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", mirror.url)
    assert hub_is_reachable(timeout=5.0)


def test_offline_mode_is_entered_where_datasets_is_not_installed(monkeypatch):
    monkeypatch.delitem(sys.modules, "datasets.config")
    monkeypatch.setattr(hub_dcl, "_ask", lambda timeout: "no route")
    assert not hub_is_reachable()
    assert is_offline_mode()


def test_a_file_beside_a_checkpoint_is_in_its_folder_or_in_its_repository(tmp_path, monkeypatch):
    assert file_of_checkpoint("a.onnx", "") is None and file_of_checkpoint("a.onnx", str(tmp_path)) is None
    (tmp_path / "a.onnx").write_bytes(b"")
    assert file_of_checkpoint("a.onnx", str(tmp_path)) == tmp_path / "a.onnx"
    asked = []
    monkeypatch.setattr(hub_dcl, "hf_hub_download", lambda *names, **options: asked.append((names, options)) or "x")
    monkeypatch.setattr(hub_dcl, "hub_is_reachable", lambda: True)
    assert str(file_of_checkpoint("a.onnx", "lab/dcl", "abc")) == "x"
    assert asked == [(("lab/dcl", "a.onnx"), {"revision": "abc", "local_files_only": False})]
    monkeypatch.setattr(hub_dcl, "hf_hub_download", lambda *names, **options: 1 / 0)
    assert file_of_checkpoint("a.onnx", "lab/dcl") is None


ANSWERS = [
    (404, "RepoNotFound", "not found: there is no such folder, and no public repository of that name on the Hub"),
    (401, "-", "not found: there is no such folder, and no public repository of that name on the Hub"),
    (401, "GatedRepo", "is gated: accept its terms at http://127.0.0.1:.*/nobody/nothing, and log in with `hf auth"),
    (403, "GatedRepo", "is gated: accept its terms at http://127.0.0.1:.*/nobody/nothing, and log in with `hf auth"),
    (403, "-", r"is not open to your account\. Ask its owner for access"),
    (418, "-", "could not be fetched from the Hub"),
]


@pytest.mark.parametrize(("status", "code", "sentence"), ANSWERS)
def test_what_the_hub_does_not_give_is_said_in_a_sentence(serve, monkeypatch, status, code, sentence):
    monkeypatch.setattr(constants, "ENDPOINT", serve(status, code).url)
    start = time.perf_counter()
    with pytest.raises(InputError, match=f"^Model 'nobody/nothing' {sentence}") as model:
        find_model("nobody/nothing", ["config.json"])
    with pytest.raises(InputError, match=f"^Data set 'nobody/nothing' {sentence}") as data:
        check_dataset("nobody/nothing")
    assert "\n" not in f"{model.value}{data.value}"
    assert time.perf_counter() - start < 5


def test_a_revision_that_a_model_does_not_have_is_named(serve, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", serve(404, "RevisionNotFound").url)
    with pytest.raises(InputError, match=r"^Model 'nobody/nothing' has no revision 'v9' on the Hub\."):
        find_model("nobody/nothing", ["config.json"], "v9")


def test_without_network_models_and_data_sets_are_looked_for_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"^Model 'nobody/nothing' not found: .*the Hub cannot be reached\. Check"):
        find_model("nobody/nothing", ["config.json"])
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"^Data set 'nobody/nothing' not found: .*the Hub cannot be reached\. Check"):
        check_dataset("nobody/nothing")
    (tmp_path / "nobody___nothing").mkdir()
    check_dataset("nobody/nothing")
    assert time.perf_counter() - start < 5


def test_the_default_model_is_not_asked_for(serve, monkeypatch, tmp_path):
    server = serve(200)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^Model 'runs/demo' not found\. Create it with `make demo`"):
        find_dcl_checkpoint("runs/demo")
    assert server.requests == []
