"""The exported folder makes `generate` compress, from a local path, as it would from the Hub."""

from pathlib import Path

import pytest
import torch

from meda_cache import MedaCache, attach, cli
from support.tiny_decoders import Family


def test_exported_folder_generates_as_the_cache_does(
    llava: Family, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "meda"
    assert cli.main(["export", "custom-generate", str(folder)]) == 0
    assert "trust_remote_code=True, keep_ratio=0.2" in capsys.readouterr().out
    inputs, options = llava.prompts(1, 3), {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    for preset in ("balanced", "meda"):
        tokens = llava.model.generate(
            **inputs, **options, custom_generate=str(folder), trust_remote_code=True, keep_ratio=0.2, preset=preset
        )
        with attach(llava.model):
            cache = MedaCache(llava.model.config, preset=preset, keep_ratio=0.2)
            expected = llava.model.generate(**inputs, **options, past_key_values=cache)
        assert torch.equal(tokens, expected)
    assert "generate" not in vars(llava.model), "the model is left as it was"
    full = llava.model.generate(**inputs, **options)
    assert not torch.equal(tokens, full), "compression should be visible, or the test shows little"


def test_export_can_be_repeated_and_spares_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "custom-generate", str(tmp_path)]) == 0
    assert cli.main(["export", "custom-generate", str(tmp_path)]) == 0
    names = sorted(path.name for path in (tmp_path / "custom_generate").iterdir())
    assert names == ["generate.py", "requirements.txt"]
    (tmp_path / "custom_generate" / "own.py").touch()
    assert cli.main(["export", "custom-generate", str(tmp_path)]) == 1
    assert "choose another folder" in capsys.readouterr().err


def test_a_cache_of_the_callers_own_is_refused(llava: Family, tmp_path: Path) -> None:
    cli.export_custom_generate(tmp_path)
    cache = MedaCache(llava.model.config)
    with pytest.raises(ValueError, match="no `past_key_values`"):
        llava.model.generate(
            **llava.prompts(1), past_key_values=cache, custom_generate=str(tmp_path), trust_remote_code=True
        )
