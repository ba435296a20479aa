"""Demos that look at images look at a folder of the user's photos too, or say in one line that it has none."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SMALL = {  # options with which each does little
    "finer-cam": ["--num-images", "2"],
    "hf-compbench": ["--num-pairs", "8"],
    "meda-cache": ["--num-questions", "3", "--num-images", "2"],
    "prompt-cam": ["--steps", "1"],
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures of smooth colours, of different sizes, one of them in a folder of its own."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, name in enumerate(("a.png", "b.jpg", "test.jpeg", "more/c.png")):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((48 + 8 * number, 64), Image.Resampling.BICUBIC).save(folder / name)
    return folder


def run_demo(dist: str, out: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    script = ROOT / "packages" / dist / "examples" / "demo.py"
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr(sys, "argv", [str(script), "--out", str(out), "--image", str(photos), *SMALL[dist]])
    runpy.run_path(str(script), run_name="__main__")
    return json.loads((out / "result.json").read_text(encoding="utf-8"))["summary"]


def test_nox_finds_the_demos_that_take_photos() -> None:
    scripts = {path.parts[-3]: path.read_text(encoding="utf-8") for path in ROOT.glob("packages/*/examples/demo.py")}
    assert set(SMALL) <= {dist for dist, text in scripts.items() if 'add_argument("--image"' in text}


@pytest.mark.parametrize("dist", SMALL)
def test_folder_without_photos_is_one_error(dist: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stopped:
        run_demo(dist, tmp_path / "out", empty, monkeypatch)
    message = str(stopped.value)
    assert message.startswith("demo: ")
    assert str(empty) in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "dist", [*sorted(SMALL.keys() - {"prompt-cam"}), pytest.param("prompt-cam", marks=pytest.mark.slow)]
)
def test_demo_looks_at_photos(dist: str, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = run_demo(dist, tmp_path / "out", photos, monkeypatch)
    section = (tmp_path / "out" / "section.html").read_text(encoding="utf-8")
    if dist == "finer-cam":
        assert {f"photo {number}, vit-nano" for number in range(1, 5)} <= summary.keys()
        assert section.count("<img ") == 4  # two models, renders and photos
    elif dist == "hf-compbench":
        assert summary["your photos"].startswith("too few for 8 pairs of each kind, which need 16")
    elif dist == "meda-cache":
        assert summary["your photos, as with the full cache, full cache"].startswith("100.0% of 3 exact")
        assert "(full cache: " in section
    else:
        assert "your photos" in summary
        assert all(f"photo {number}, by the two likeliest" in section for number in (1, 2, 3))
