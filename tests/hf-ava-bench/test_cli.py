"""The command makes a fingerprint, goes on with it, and ranks it; its errors are one line."""

import json

import pytest

from hf_ava_bench import Fingerprint
from hf_ava_bench.cli import main
from hf_ava_bench.runner.profiles import PROFILES, Profile

GLIMPSE = Profile(
    name="smoke", epochs=1, localization_epochs=1, train_llm=True, n_train=8, n_test=6, system="",
    closed_sets="loglik", batch_size=8,
)  # fmt: skip


@pytest.fixture
def arguments(monkeypatch):
    """A run of next to nothing through the profile `smoke`."""
    monkeypatch.setitem(PROFILES, "smoke", GLIMPSE)
    shared = ["--llm", "tiny", "--source", "mini", "--profile", "smoke", "--image-size", "32", "--quiet"]
    return lambda vfm, out, *rest: ["run", "--vfm", vfm, "--out", str(out), *shared, *rest]


def test_command_runs_and_ranks(arguments, tmp_path, capsys):
    for name in ("edge-hist", "patch-colour"):
        command = arguments(
            f"known:{name}", tmp_path / name, "--abilities", "Scene_Classification", "--controls", "blind"
        )
        assert main(command) == 0
    assert "| scene | accuracy |" in capsys.readouterr().out
    fingerprint = Fingerprint.load(tmp_path / "edge-hist" / "fingerprint.json")
    assert list(fingerprint.abilities) == ["scene"]
    assert list(fingerprint.abilities["scene"].controls) == ["blind"]
    assert main(["rank", str(tmp_path / "edge-hist"), str(tmp_path / "patch-colour"), "--rank", "point"]) == 0
    assert "| tower | scene | mean rank |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("vfm", "rest", "message"),
    [
        ("known:best", (), "patch-colour"),
        ("known:blind", ("--abilities", "smell"), "Expected an ability"),
        ("known:blind", ("--controls", "deaf"), "may hold blind"),
    ],
    ids=["encoder", "ability", "control"],
)
def test_errors_of_a_run_are_one_line(arguments, tmp_path, capsys, vfm, rest, message):
    assert main(arguments(vfm, tmp_path, *rest)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_other_files_than_fingerprints_are_refused(tmp_path, capsys):
    (tmp_path / "x.json").write_text(json.dumps({"schema": "x"}))
    assert main(["rank", str(tmp_path / "x.json"), str(tmp_path / "x.json")]) == 1
    assert "Expected a fingerprint" in capsys.readouterr().err
