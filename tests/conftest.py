"""What holds for every test: offline, one thread, seeded, sockets closed."""

from support import offline

offline.enter()  # before anything below imports torch, transformers, datasets or triton

import os  # noqa: E402
import random  # noqa: E402
import sys  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from support import no_network  # noqa: E402

hypothesis.settings.register_profile("dev", max_examples=25, deadline=None)
hypothesis.settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture(autouse=True)
def _sockets_closed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed sockets, but for the markers `network` (open) and `loopback` (open to this machine)."""
    if request.node.get_closest_marker("network") is None:
        loopback = request.node.get_closest_marker("loopback") is not None
        no_network.block(monkeypatch.setattr, loopback=loopback)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same global random state at the start of every test. Torch only where something imported it already."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
