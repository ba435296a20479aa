"""Insertion for `evaluate.load`: the area under the target's probability along the ranking of a map."""

from finer_cam.metrics import curves  # the module: of several metrics here, evaluate would take the first


class Insertion(curves.CurveArea):
    """Insertion: higher is better."""

    key = "insertion"
    description = (
        "Area under the target's probability while the highest pixels of a map are put into a blurred image first "
        "(RISE, arXiv 1806.07421); higher is better."
    )
