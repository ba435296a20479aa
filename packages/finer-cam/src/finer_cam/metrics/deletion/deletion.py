"""Deletion for `evaluate.load`: the area under the target's probability along the ranking of a map."""

from finer_cam.metrics import curves  # the module: of several metrics here, evaluate would take the first


class Deletion(curves.CurveArea):
    """Deletion: lower is better."""

    key = "deletion"
    description = (
        "Area under the target's probability while the highest pixels of a map are masked first "
        "(RISE, arXiv 1806.07421); lower is better."
    )
