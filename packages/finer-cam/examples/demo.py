"""Maps of two nano models: what tells a species from its sister, beside the part in which the two really differ.

    python packages/finer-cam/examples/demo.py --out demo/finer-cam
    python packages/finer-cam/examples/demo.py --out demo/finer-cam --image DIR

Everything is held out: no render was seen in training. DIR is a folder of photos: what tells the class that a model
sees in each from the next likely one is drawn as well.
"""

import argparse
import base64
import io
import json
import math
import sys
from html import escape
from pathlib import Path

import torch
from creatures import Creature, draw_gallery, draw_rows, load_creatures, load_model, make_maps
from PIL import Image

import hf_diorama
from finer_cam import FinerCAM, energy_in_region

GAMMAS = [0.0, 0.6, 1.5]
METHODS = ("gradcam", "layercam")
MODELS = ("convnet-nano", "vit-nano")
TITLES = ["image", "base map", "gamma 0.6", "gamma 1.5", "true part"]
NUM_PHOTOS = 6
PHOTOS = """
<p>Your photos. These models know drawn creatures and nothing else, so that the species is their guess; the maps say
what they looked at for it, and what speaks for it and not for their second guess.</p>
"""
INTRODUCTION = """
<p>Two classifiers look at creatures whose sister species differs in exactly one part. A class activation map says what
speaks for the species; <code>FinerCAM</code> asks for what speaks for it and not for its sister. The energy is the
share of a map inside that part.</p>
"""


def measure(creatures: list[Creature]) -> list[dict[str, object]]:
    """Mean energy in the discriminating part, and the paired gain over the base map with a 95 percent interval."""
    masks, rows = torch.stack([creature.mask for creature in creatures]), []
    for model in MODELS:
        for method in METHODS:
            out = make_maps(model, creatures, method, GAMMAS)
            energy = energy_in_region(out.maps, masks[:, None].expand(-1, len(GAMMAS), -1, -1))
            for index, gamma in enumerate(GAMMAS):
                gain = energy[:, index] - energy[:, 0]
                half = 1.96 * float(gain.std()) / math.sqrt(len(gain))
                rows.append(
                    {
                        "model": model,
                        "method": method,
                        "gamma": gamma,
                        "energy": float(energy[:, index].mean()),
                        "gain": float(gain.mean()),
                        "gain_half_width": half,
                        "images": len(gain),
                    }
                )
    return rows


def explain_photos(model_name: str, photos: list[Image.Image]) -> tuple[Image.Image, list[str]]:
    """A sheet of the photos with their maps, and the two classes that each is compared by."""
    model, processor = load_model(model_name)
    with FinerCAM(model, gamma=GAMMAS, num_references=1, processor=processor) as cam:
        out = cam(**processor(photos, return_tensors="pt"))
    overlays = [out.regamma(gamma).overlay(photos, alpha=0.65) for gamma in GAMMAS]
    rows = [[photo, *maps] for photo, *maps in zip(photos, *overlays, strict=True)]
    names = model.config.id2label
    first, second = out.target.tolist(), out.references[:, 0].tolist()
    labels = [f"{names[one]}, not {names[other]}" for one, other in zip(first, second, strict=True)]
    return draw_gallery(rows, TITLES[:-1], [f"photo {number + 1}" for number in range(len(photos))]), labels


def as_figure(sheet: Image.Image, caption: str) -> str:
    buffer = io.BytesIO()
    sheet.quantize(192).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt=""><figcaption>{escape(caption)}</figcaption></figure>'
    )


def as_table(rows: list[dict[str, object]]) -> str:
    head = "<tr><th>model</th><th>base map</th><th>gamma</th><th>energy in the part</th><th>gain</th></tr>"
    lines = [
        f"<tr><td>{row['model']}</td><td>{row['method']}</td><td>{row['gamma']}</td>"
        f'<td class="number">{row["energy"]:.3f}</td>'
        f'<td class="number">{row["gain"]:+.3f} ± {row["gain_half_width"]:.3f}</td></tr>'
        for row in rows
    ]
    return f'<div class="scroll"><table>{head}{"".join(lines)}</table></div>'


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/finer-cam"))
    parser.add_argument("--num-images", type=int, default=60)
    parser.add_argument("--image", metavar="DIR", help="photos to explain as well: a folder of images")
    args = parser.parse_args()
    if args.num_images < 2:
        parser.error(f"expected --num-images of at least 2, got {args.num_images}")
    torch.set_num_threads(1)
    try:
        photos = hf_diorama.load_photos(args.image, NUM_PHOTOS) if args.image else []
    except (ValueError, OSError) as error:
        sys.exit(f"demo: {error}")
    creatures = load_creatures(args.num_images)
    rows = measure(creatures)
    shown = load_creatures(6, one_of_each_part=True)
    names = [creature.part.replace("_", " ") for creature in shown]
    figures = [
        as_figure(draw_gallery(draw_rows(shown, make_maps(model, shown, "gradcam", GAMMAS)), TITLES, names), model)
        for model in MODELS
    ]
    area = float(torch.stack([creature.mask for creature in creatures]).float().mean())
    note = (
        f"<p>{args.num_images} held-out renders; the part covers {area:.1%} of an image. Mean gain ± 95 percent.</p>"
    )
    summary = {
        f"{row['model']}, {row['method']}, gamma {row['gamma']}: energy in the true part": (
            f"{row['energy']:.3f} ({row['gain']:+.3f} ± {row['gain_half_width']:.3f})"
        )
        for row in rows
    }
    section = INTRODUCTION + "".join(figures) + as_table(rows) + note + (PHOTOS if photos else "")
    for model in MODELS if photos else ():
        sheet, labels = explain_photos(model, photos)
        section += as_figure(sheet, model)
        summary |= {f"photo {number}, {model}": label for number, label in enumerate(labels, start=1)}
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "section.html", section)
    write(args.out / "result.json", json.dumps({"summary": summary, "rows": rows, "part_area": area}, indent=1) + "\n")
    print("\n".join(f"{what}: {value}" for what, value in summary.items()))


if __name__ == "__main__":
    main()
