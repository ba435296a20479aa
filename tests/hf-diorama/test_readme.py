"""What the README prints is what its example prints."""

import contextlib
import inspect
import io
import re
from pathlib import Path

import hf_diorama as dio
from hf_diorama.questions import KINDS
from hf_diorama.worlds import WORLDS
from hf_diorama.worlds.scenes import TOPICS

README = Path(__file__).parents[2] / "packages" / "hf-diorama" / "README.md"


def test_printed_output_is_that_of_the_example() -> None:
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n((?:(?!```).)*)```\n\n```text\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for code, expected in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        assert printed.getvalue() == expected


def test_every_column_option_argument_and_kind_is_described() -> None:
    cells = {name for row in re.findall(r"^\| ([^|]*)\|", README.read_text(encoding="utf-8"), re.MULTILINE)
             for name in re.findall(r"`(\w+)", row)}  # fmt: skip
    for world in WORLDS.values():
        assert {*world.features(), "key"} <= cells, world.name
    assert {*WORLDS["scenes"].options, *TOPICS, *KINDS} <= cells
    arguments = {name for name in inspect.signature(dio.multi_image_questions).parameters if name != "n"}
    assert arguments <= cells
