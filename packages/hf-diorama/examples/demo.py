"""What the worlds know of their own pictures: a creature, its parts, its sister by one edited part, and other domains.

    python packages/hf-diorama/examples/demo.py --out demo/hf-diorama

Every statement of the summary is counted over the rows, not assumed.
"""

import argparse
import base64
import io
import json
import time
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

import hf_diorama as dio

DOMAINS = ("photo", "sketch", "poster", "infrared", "lowlight", "rotated")
TOPICS = ("objects", "counting", "ocr", "emotion", "state", "spatial")
INTRODUCTION = """
<p>Two worlds are rendered where you are, and every picture comes with its truth: parts as masks, names at seven ranks,
boxes, colours, texts. Sister species differ in exactly one part, and <code>counterfactual</code> paints that part as
the sister has it, pixel by pixel nothing else. <code>shift</code> shows the same content in another domain.</p>
"""


def color_mask(mask: Image.Image) -> Image.Image:
    """A label map with a colour for each part."""
    palette = np.random.default_rng(5).integers(60, 256, (256, 3), dtype=np.uint8)
    palette[0] = 30
    return Image.fromarray(palette[np.asarray(mask)])


def is_one_part_edited(row: dict[str, object], edited: dict[str, object], part: str) -> bool:
    """Whether only pixels changed that the part covers in one of the two pictures."""
    changed = (np.asarray(row["image"]) != np.asarray(edited["image"])).any(axis=2)
    covered = np.zeros_like(changed)
    for one in (row, edited):
        label = 1 + [entry["name"] for entry in one["parts"]].index(part)  # type: ignore[attr-defined]
        covered |= np.asarray(one["part_masks"]) == label
    return bool(changed.any() and not (changed & ~covered).any())


def measure(count: int) -> tuple[dict[str, str], list[dict[str, object]]]:
    """What holds of the first rows, and those that show an edit."""
    start = time.process_time()
    rows = [dio.render("creatures", index=index, image_size=64, split="heldout") for index in range(count)]
    seconds = time.process_time() - start
    again = [dio.render("creatures", index=index, image_size=64, split="heldout") for index in reversed(range(count))]
    same = sum(
        one["image"].tobytes() == other["image"].tobytes() for one, other in zip(rows, reversed(again), strict=True)
    )
    edits = []
    for row in rows:
        (part,) = dio.discriminating_parts(row["species"], row["species"] ^ 1)
        edited = dio.counterfactual(row, part, row["species"] ^ 1)
        visible = any(entry["name"] == part and entry["visible"] for entry in (*row["parts"], *edited["parts"]))
        if visible and row["image"].tobytes() != edited["image"].tobytes():
            edits.append({"row": row, "edited": edited, "part": part, "exact": is_one_part_edited(row, edited, part)})
    exact = sum(bool(edit["exact"]) for edit in edits)
    return {
        "creatures of 64 pixels per CPU second": f"{count / seconds:.0f}",
        "rows equal when rendered again in reverse order": f"{same} of {count}",
        "edits that changed pixels of one part only": f"{exact} of {len(edits)}",
    }, edits


def as_figure(images: list[tuple[str, Image.Image]], side: int = 112) -> str:
    """Pictures side by side, each with its words below."""
    cells = []
    for words, image in images:
        buffer = io.BytesIO()
        image.convert("RGB").resize((side, side), Image.Resampling.NEAREST).save(buffer, "PNG", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        cells.append(
            f'<figure style="display:inline-block;margin:.3rem;width:{side}px;vertical-align:top">'
            f'<img src="data:image/png;base64,{data}" alt="{escape(words)}"><figcaption>{escape(words)}</figcaption>'
            "</figure>"
        )
    return f"<div>{''.join(cells)}</div>"


def build_section(edits: list[dict[str, object]]) -> str:
    """The HTML: edits, domains, topics."""
    parts = [INTRODUCTION, "<h3>One part makes the sister</h3>"]
    for edit in edits[:3]:
        row, edited = edit["row"], edit["edited"]
        parts.append(
            as_figure(
                [
                    (row["common_name"], row["image"]),
                    ("its parts", color_mask(row["part_masks"])),
                    (f"{edit['part']} of its sister".replace("_", " "), edited["image"]),
                ]
            )
        )
    shown = edits[0]["row"]
    parts += [
        "<h3>The same creature in six domains</h3>",
        as_figure([(domain, dio.shift(shown, domain)["image"]) for domain in DOMAINS]),
    ]
    topics = [dio.render("scenes", index=3, image_size=112, split="heldout", topic=topic) for topic in TOPICS]
    parts += [
        "<h3>Scenes of many topics</h3>",
        as_figure([(topic, row["image"]) for topic, row in zip(TOPICS, topics, strict=True)]),
    ]
    return "\n".join(parts)


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/hf-diorama"))
    parser.add_argument("--num-rows", type=int, default=200, help="creatures to count over")
    args = parser.parse_args()
    if args.num_rows < 20:
        parser.error(f"expected --num-rows of at least 20, got {args.num_rows}")
    summary, edits = measure(args.num_rows)
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "section.html", build_section(edits))
    write(args.out / "result.json", json.dumps({"summary": summary}, indent=1) + "\n")
    print("\n".join(f"{what}: {value}" for what, value in summary.items()))


if __name__ == "__main__":
    main()
