"""The dataset card that goes with rendered rows."""

import json

import datasets

CARD = """---
license: apache-2.0
pretty_name: hf-diorama {world}
tags: [synthetic, hf-diorama]
---

# {world}, {num_rows} rows

Rendered by hf-diorama {version}, split `{split}`: images with exact ground truth, the same bytes wherever they are
made. The first row:

```json
{key}
```

Columns: {columns}.

```python
import datasets

rows = datasets.load_dataset("this folder or repository", split="{split}")
```
"""


def build_card(world: str, split: str, rows: datasets.Dataset) -> str:
    """Returns the text of `README.md`: what the rows are and how they were made.

    Args:
        world (`str`): name of the world.
        split (`str`): its split.
        rows (`datasets.Dataset`): at least one row, with the column `key`.

    Returns:
        `str`: Markdown with the metadata block of the Hub
    """
    from hf_diorama import __version__

    return CARD.format(
        world=world,
        num_rows=f"{rows.num_rows:,}",
        version=__version__,
        split=split,
        key=json.dumps(rows[0]["key"]),
        columns=", ".join(f"`{name}`" for name in rows.column_names),
    )
