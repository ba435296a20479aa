"""What tests/conftest.py and the pytest settings promise to every test."""

import os
import random
import socket
import tempfile
import warnings
from pathlib import Path

import pytest

from support.no_network import NetworkBlockedError


def test_hub_is_offline_with_an_empty_home() -> None:
    import huggingface_hub.constants

    assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert huggingface_hub.constants.HF_HOME.startswith(tempfile.gettempdir())


def test_connections_and_look_ups_are_refused() -> None:
    for host in ("10.0.0.1", "127.0.0.1"):
        with pytest.raises(NetworkBlockedError, match=host), socket.socket() as plain:
            plain.connect((host, 9))
    with pytest.raises(NetworkBlockedError, match=r"example\.org"):
        socket.getaddrinfo("example.org", 80)
    with pytest.raises(NetworkBlockedError), socket.socket(type=socket.SOCK_DGRAM) as datagram:
        datagram.sendto(b"x", ("10.0.0.1", 9))


@pytest.mark.loopback
def test_loopback_marker_opens_this_machine_only() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
    with pytest.raises(NetworkBlockedError), socket.socket() as client:
        client.connect(("10.0.0.1", 9))


def test_unix_sockets_stay_open() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"x")
        assert right.recv(1) == b"x"


@pytest.mark.parametrize("attempt", [1, 2])
def test_every_test_starts_from_the_same_random_state(attempt: int) -> None:
    assert random.random() == random.Random(0).random()


@pytest.mark.parametrize("module", ["transformers.models.llama", "datasets", "peft.tuners"])
def test_warnings_of_the_hugging_face_libraries_are_errors(module: str) -> None:
    with pytest.raises(UserWarning, match="old habit"):
        warnings.warn_explicit("old habit", UserWarning, "file.py", 1, module=module)


def test_warnings_of_others_are_only_shown() -> None:
    with warnings.catch_warnings(record=True) as caught:  # keeps the filters, unlike pytest.warns
        warnings.warn_explicit("advice", UserWarning, "file.py", 1, module="datasetsfoo")
    assert [str(warning.message) for warning in caught] == ["advice"]


def test_deprecations_of_anything_are_errors() -> None:
    with pytest.raises(FutureWarning):
        warnings.warn_explicit("going", FutureWarning, "file.py", 1, module="anything")


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="a GPU is visible: kernels are compiled")
def test_kernels_run_interpreted_without_a_gpu() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
