"""Text on a picture: pseudo-words, and their coverage in the font that Pillow brings along.

Pixels of text follow the version of FreeType inside Pillow; boxes are measured on the drawn pixels, so annotations are
exact under any version.
"""

from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from hf_diorama.draws import Draws

CONSONANTS = "bcdfghjklmnprstvwz"
VOWELS = "aeiou"
DIGITS = "0123456789"


def draw_word(draws: Draws, length: int) -> str:
    """Returns a pronounceable string of `length` letters and digits that is in no dictionary but by accident."""
    vowel = draws.chance(0.5)
    letters = []
    for _ in range(length):
        if draws.chance(0.12):
            letters.append(draws.choice(DIGITS))
        else:
            letters.append(draws.choice(VOWELS if vowel else CONSONANTS))
        vowel = not vowel
    return "".join(letters)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def text_coverage(text: str, height: int, degrees: float = 0.0, max_width: int | None = None) -> Image.Image:
    """Returns how much of each pixel a text covers (mode `L`), cropped to what it covers.

    Args:
        text (`str`): one line.
        height (`int`): font size in pixels.
        degrees (`float`, defaults to 0): clockwise rotation.
        max_width (`int`, *optional*): the font is made smaller until the text is no wider.

    Example:

    ```python
    >>> from hf_diorama.worlds.scenes.lettering import text_coverage
    >>> text_coverage("tavi", 20).size[0] > text_coverage("tavi", 10).size[0]
    True

    ```
    """
    while True:
        font = _font(height)
        left, top, right, bottom = font.getbbox(text)
        canvas = Image.new("L", (round(right - left) + 8, round(bottom - top) + 8))
        ImageDraw.Draw(canvas).text((4 - left, 4 - top), text, fill=255, font=font)
        if degrees:
            canvas = canvas.rotate(-degrees, Image.Resampling.BICUBIC, expand=True)
        box = canvas.point(lambda value: 255 * (value >= 128)).getbbox() or canvas.getbbox()
        canvas = canvas.crop(box)
        if max_width is None or canvas.width <= max_width or height <= 5:
            return canvas
        height -= 1
