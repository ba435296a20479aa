"""Pointing game for `evaluate.load`: how often the highest pixel of a map lies in a mask."""

from finer_cam.measures import pointing_game
from finer_cam.metrics import maps  # the module: of several metrics here, evaluate would take the first


class PointingGame(maps.MapScore):
    """Pointing game: higher is better; takes `tolerance=`, in pixels."""

    key = "pointing_game"
    description = "How often the highest pixel of a map lies in a region (arXiv 1608.00507)."
    citation = "Top-down Neural Attention by Excitation Backprop, arXiv 1608.00507"
    score = staticmethod(pointing_game)
