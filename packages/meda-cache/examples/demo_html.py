"""The page of the demo: answers, the images with what is kept of them, and the budgets of the layers."""

import base64
import io
from html import escape
from typing import Any

from PIL import Image, ImageDraw

SHOWN = 4  # questions with pictures
SIDE = 112  # pixels of a shown image

INTRODUCTION = """
<p><code>llava-nano</code> reads several images and a question, with its whole KV cache and with a
<code>MedaCache</code>. The cache keeps 20 or 10 percent of the prompt with its default preset: each layer and head
keeps the last tokens, and of every image and of the text those that are most attended. The paper's preset,
<code>meda</code>, gives layers of higher cross-modal entropy more, and merges what it evicts into what it keeps. A
patch is drawn as bright as the share of layers and heads that keep its visual token.</p>
"""


def build_section(result: dict[str, Any], rows: list[dict[str, Any]], answers: list[list[dict[str, Any]]]) -> str:
    """Returns the HTML of one set of questions."""
    shown = _pick(rows)
    parts = [f"<h3>{escape(result['title'])}</h3>", _table(result), _budgets(result), "<h4>Questions</h4>"]
    parts += [_example(rows[index], [one[index] for one in answers], result["settings"]) for index in shown]
    return "\n".join(parts)


def _pick(rows: list[dict[str, Any]]) -> list[int]:
    """Returns the first question of each of the first kinds."""
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(row["kind"], index)
    return sorted(first.values())[:SHOWN]


def _table(result: dict[str, Any]) -> str:
    kinds = list(result["chance_by_kind"])
    head = "".join(f"<th>{escape(kind)}</th>" for kind in ("cache", "KiB", "exact match", *kinds))
    lines = []
    for setting in result["settings"]:
        numbers = [setting["exact_match"], *(setting["exact_match_by_kind"][kind] for kind in kinds)]
        cells = "".join(f'<td class="number">{number:.0%}</td>' for number in numbers)
        size = f'<td class="number">{setting["stored_bytes"] / 1024:.1f}</td>'
        lines.append(f"<tr><td>{setting['name']}</td>{size}{cells}</tr>")
    chance = [result["chance"], *(result["chance_by_kind"][kind] for kind in kinds)]
    cells = "".join(f'<td class="number">{number:.0%}</td>' for number in chance)
    lines.append(f'<tr><td>chance</td><td class="number"></td>{cells}</tr>')
    questions = result["settings"][0]["num_questions"]
    caption = f"{questions} questions; KiB of keys and values at the end of the answer, mean of a question."
    table = f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'
    return f"{table}<p>{caption}</p>"


def _budgets(result: dict[str, Any]) -> str:
    """Returns bars: tokens that each layer keeps, text and visual."""
    settings = [setting for setting in result["settings"] if "layers" in setting]
    widest = max(layer["budget"] for setting in settings for layer in setting["layers"])
    rows = []
    for setting in settings:
        rows.append(f'<tr><th colspan="3">{setting["name"]}</th></tr>')
        for number, layer in enumerate(setting["layers"]):
            bars = "".join(
                f'<span style="display:inline-block;height:.9em;width:{12 * layer[key] / widest:.2f}em;'
                f'background:{color}" title="{key}"></span>'
                for key, color in (("kept_text", "#e0912f"), ("kept_visual", "#3b82c4"))
            )
            numbers = f"{layer['kept_text']:.1f} text + {layer['kept_visual']:.1f} visual"
            rows.append(f"<tr><td>layer {number}</td><td>{bars}</td><td>{numbers}</td></tr>")
    return f'<h4>Kept tokens by layer</h4><div class="scroll"><table>{"".join(rows)}</table></div>'


def _example(row: dict[str, Any], answers: list[dict[str, Any]], settings: list[dict[str, Any]]) -> str:
    lines = [
        f"<tr><td>{setting['name']}</td><td>{escape(one['answer'])} {'✓' if one['is_right'] else '✗'}</td></tr>"
        for setting, one in zip(settings, answers, strict=True)
    ]
    figures = []
    for setting, one in zip(settings, answers, strict=True):
        kept = one.get("kept")
        per_image = len(kept) // row["num_images"] if kept else 0
        images = "".join(
            _image(image, kept[number * per_image : (number + 1) * per_image] if kept else None, number + 1)
            for number, image in enumerate(row["images"])
        )
        figures.append(f"<figure>{images}<figcaption>{setting['name']}</figcaption></figure>")
    question = f"<p><b>{escape(row['question'])}</b> ({row.get('reference', 'right')}: {escape(row['answer'])})</p>"
    return f"{question}<table>{''.join(lines)}</table>{''.join(figures)}"


def _image(image: Image.Image, kept: list[float] | None, number: int) -> str:
    """Returns an image whose patches are darkened by what is evicted of them."""
    shown = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if kept is not None:
        grid = round(len(kept) ** 0.5)
        light = Image.new("L", (grid, grid))
        light.putdata([round(80 + 175 * share) for share in kept])
        light = light.resize((SIDE, SIDE), Image.Resampling.NEAREST)
        shown = Image.composite(shown, Image.new("RGB", shown.size), light)
        draw = ImageDraw.Draw(shown)
        for line in range(1, grid):
            at = line * SIDE // grid
            draw.line([(at, 0), (at, SIDE)], fill=(90, 90, 90))
            draw.line([(0, at), (SIDE, at)], fill=(90, 90, 90))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" width="{SIDE // 2}" alt="image {number}" style="margin:1px">'
