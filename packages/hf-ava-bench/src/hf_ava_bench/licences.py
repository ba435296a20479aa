"""What is known about the terms of the data sets that the released items come from."""

from collections.abc import Mapping

RESTRICTED = "the source's own terms restrict redistribution or commercial use"
UNCHECKED = "not checked here: see the source's own terms"

LICENCES: Mapping[str, str] = {
    "KITTI": "CC BY-NC-SA",
    "Moments in Time": RESTRICTED,
    "NYU-Depth": RESTRICTED,
    "Objects365": RESTRICTED,
    "RAF-DB": RESTRICTED,
    "ExpW": RESTRICTED,
    "mini-ava-synthetic": "Apache-2.0, rendered",
}
"""Source -> terms. The data set on the Hub is declared CC BY 4.0 as a whole, which cannot override these."""


def licence_table(sources: tuple[str, ...]) -> str:
    """Returns a Markdown table with the terms of some sources.

    Example:

    ```python
    >>> from hf_ava_bench.licences import licence_table
    >>> print(licence_table(("KITTI",)))
    | source | terms |
    |---|---|
    | KITTI | CC BY-NC-SA |

    ```
    """
    rows = [f"| {source} | {LICENCES.get(source, UNCHECKED)} |" for source in sources]
    return "\n".join(["| source | terms |", "|---|---|", *rows])
