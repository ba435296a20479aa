"""Draws the picture of the README: base map, Finer-CAM and the true part, on held-out renders.

    python packages/finer-cam/examples/gallery.py

The renders are not chosen by their maps: they are the first held-out ones of each of the six parts.
"""

from pathlib import Path

from creatures import draw_gallery, draw_rows, load_creatures, make_maps

FOLDER = Path(__file__).resolve().parents[1] / "images"
GAMMAS = [0.0, 0.6, 1.5]
TITLES = ["image", "Grad-CAM", "Finer-CAM\ngamma 0.6", "Finer-CAM\ngamma 1.5", "the part that\ndiffers"]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    creatures = load_creatures(6, one_of_each_part=True)
    for name in ("convnet-nano", "vit-nano"):
        rows = draw_rows(creatures, make_maps(name, creatures, "gradcam", GAMMAS))
        sheet = draw_gallery(rows, TITLES, [creature.part.replace("_", " ") for creature in creatures])
        sheet.quantize(192).save(FOLDER / f"gallery-{name}.png", optimize=True)
        print(FOLDER / f"gallery-{name}.png")


if __name__ == "__main__":
    main()
