"""From a row to a chat: versioned prompts, layouts of the two images, both orders."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from hf_compbench.functional import rotate_options

PROMPTS = ("paper-v1", "v2", "nano")
LAYOUTS = ("interleaved", "images_first", "text_first", "composite")
SEPARATOR = (1, 8, 1)
"""Widths in pixels of the black, white and black bars between the images of a composite."""
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Prompt:
    """A versioned set of wordings.

    Args:
        id: its name in the store of responses.
        labels: words before each image in the layout `interleaved`.
        default: the wording (`text`, and a `surface` for options that are worded differently) of all sources that have
            none of their own.
        sources: wordings by source; nothing of `default` is mixed in.
        notes: by layout what is said before the question where the layout has no room for labels.
        digest: hash of everything above.

    Example:

    ```python
    >>> from hf_compbench.prompting import load_prompt
    >>> load_prompt("v2").build_text({"source": "vaw", "question": "Which is fuller?", "options": ["Left", "Right"]})
    'Which is fuller?\\nA. Image 1\\nB. Image 2\\nAnswer with the letter of one option only.'

    ```
    """

    id: str
    labels: tuple[str, str]
    default: dict[str, Any]
    sources: dict[str, dict[str, Any]]
    notes: dict[str, str]
    digest: str

    def surface(self, row: Any, option: str) -> str:
        """Returns how an option is worded."""
        return str(self._wording(row).get("surface", {}).get(option, option))

    def build_text(self, row: Any, shift: int = 0) -> str:
        """Returns the question with its instruction; options moved by `shift` places."""
        options, _ = rotate_options(row["options"], shift)
        if len(options) > len(_LETTERS):
            raise ValueError(f"Expected at most {len(_LETTERS)} options, got {len(options)}.")
        words = [self.surface(row, option) for option in options]
        fields = {
            "question": row["question"],
            "comma_options": ",".join(options),
            "letter_options": "\n".join(f"{letter}. {word}" for letter, word in zip(_LETTERS, words, strict=False)),
            "plain_question": re.sub(r"[^\w?]+", " ", row["question"].casefold()).strip(),
        }
        text = str(self._wording(row)["text"])
        return re.sub(r"\{(\w+)\}", lambda match: fields[match[1]], text)

    def scored_text(self, row: Any, option: str, shift: int = 0) -> str:
        """Returns what a model would say to choose an option: its letter where there are letters, else its words."""
        if "{letter_options}" in self._wording(row)["text"]:
            return _LETTERS[rotate_options(row["options"], shift)[0].index(option)]
        return self.surface(row, option)

    def _wording(self, row: Any) -> dict[str, Any]:
        return self.sources.get(row["source"], self.default)


def load_prompt(name: str | Path) -> Prompt:
    """Returns a prompt of the package (`"paper-v1"`, `"v2"`, `"nano"`), or one from a JSON file of the same form."""
    path = Path(__file__).parent / "prompts" / f"{name}.json" if name in PROMPTS else Path(name)
    if not path.is_file():
        raise ValueError(f"Expected a prompt ({', '.join(PROMPTS)}) or a JSON file, got {str(name)!r}.")
    text = path.read_text(encoding="utf-8")
    try:
        values = json.loads(text)
        first, second = values["labels"]
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
        return Prompt(
            str(values["id"]),
            (first, second),
            values["default"],
            values.get("sources", {}),
            values.get("notes", {}),
            digest,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"Expected {path} to hold `id`, two `labels` and `default`, got: {error!r}.") from None


def stitch(first: Image.Image, second: Image.Image) -> Image.Image:
    """Returns both images side by side as in the paper: scaled to their mean height, with a bar of 10 pixels between.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_compbench.prompting import stitch
    >>> stitch(Image.new("RGB", (40, 20)), Image.new("RGB", (40, 40))).size
    (100, 30)

    ```
    """
    height = round((first.height + second.height) / 2)
    scaled = [
        image.convert("RGB").resize((round(image.width * height / image.height), height)) for image in (first, second)
    ]
    black, white, _ = SEPARATOR
    result = Image.new("RGB", (scaled[0].width + sum(SEPARATOR) + scaled[1].width, height), "black")
    result.paste(scaled[0], (0, 0))
    result.paste("white", (scaled[0].width + black, 0, scaled[0].width + black + white, height))
    result.paste(scaled[1], (scaled[0].width + sum(SEPARATOR), 0))
    return result


def build_messages(
    prompt: Prompt, row: Any, images: list[Image.Image], layout: str, shift: int = 0
) -> list[dict[str, Any]]:
    """Returns the chat for one question.

    Args:
        prompt: the wording.
        row: a canonical row.
        images: one composite, or two images in the order in which they are shown.
        layout: `"interleaved"` (label, image, label, image, text), `"images_first"`, `"text_first"`, or `"composite"`
            (both images as one picture).
        shift: places by which the options are moved.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"Expected `layout` to be one of {', '.join(LAYOUTS)}, got {layout!r}.")
    if len(images) == 2 and layout == "composite":
        images = [stitch(*images)]
    note = prompt.notes.get("composite" if len(images) == 1 else layout, "")
    text = {"type": "text", "text": note + prompt.build_text(row, shift)}
    pictures = [{"type": "image", "image": image} for image in images]
    if len(pictures) == 1 or layout == "images_first":
        content = [*pictures, text]
    elif layout == "text_first":
        content = [text, *pictures]
    else:
        content = []
        for label, picture in zip(prompt.labels, pictures, strict=True):
            content += [{"type": "text", "text": label}, picture] if label else [picture]
        content.append(text)
    return [{"role": "user", "content": content}]
