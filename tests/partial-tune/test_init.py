"""The package without its extras says what to install."""

import pytest

import partial_tune


def test_names_that_need_an_extra_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("no", name="transformers.trainer")

    monkeypatch.setattr(partial_tune, "import_module", missing)
    with pytest.raises(ImportError, match=r"`PartialTuneTrainer` needs transformers.*partial-tune\[hf\]"):
        _ = partial_tune.PartialTuneTrainer
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = partial_tune.nothing


def test_an_error_of_our_own_is_not_taken_for_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ModuleNotFoundError("no", name="partial_tune.gone")

    monkeypatch.setattr(partial_tune, "import_module", broken)
    with pytest.raises(ModuleNotFoundError):
        _ = partial_tune.PartialTuneTrainer
