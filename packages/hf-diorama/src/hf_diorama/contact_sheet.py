"""Many images on one, to look at."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_MARGIN, _LINE = 6, 14
_PAPER, _TEXT = (250, 248, 243), (52, 46, 58)


def build_contact_sheet(
    images: Sequence[Image.Image], *, captions: Sequence[str] | None = None, columns: int = 6
) -> Image.Image:
    """Returns one image that shows all, row by row, each with a line of text below.

    Args:
        images (`Sequence[PIL.Image.Image]`): at least one; each cell is as large as the largest.
        captions (`Sequence[str]`, *optional*): one line for each image, cut where the cell ends.
        columns (`int`, defaults to 6): images in a row.

    Returns:
        `PIL.Image.Image` of mode RGB

    Raises:
        ValueError: if there is no image, no column, or not one caption for each image.
    """
    if not images or columns < 1:
        raise ValueError(f"Expected at least one image and one column, got {len(images)} and {columns}.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"Expected a caption for each of {len(images)} images, got {len(captions)}.")
    columns = min(columns, len(images))
    width, height = max(image.width for image in images), max(image.height for image in images)
    line = _LINE if captions is not None else 0
    rows = -(-len(images) // columns)
    sheet = Image.new(
        "RGB", (_MARGIN + columns * (width + _MARGIN), _MARGIN + rows * (height + line + _MARGIN)), _PAPER
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default_imagefont()
    for i, image in enumerate(images):
        x, y = _MARGIN + i % columns * (width + _MARGIN), _MARGIN + i // columns * (height + line + _MARGIN)
        sheet.paste(image, (x, y))
        if captions is not None:
            text = captions[i]
            while text and draw.textlength(text, font=font) > width:
                text = text[:-1]
            draw.text((x, y + height + 1), text, _TEXT, font)
    return sheet
