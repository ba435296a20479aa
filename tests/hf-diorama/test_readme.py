"""What the README prints is what its example prints."""

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parents[2] / "packages" / "hf-diorama" / "README.md"


def test_printed_output_is_that_of_the_example() -> None:
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 1
    for code, expected in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, {})
        assert printed.getvalue() == expected
