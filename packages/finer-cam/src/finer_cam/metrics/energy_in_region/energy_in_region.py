"""Energy in a region for `evaluate.load`: the share of a map that lies in a mask."""

from finer_cam.measures import energy_in_region
from finer_cam.metrics import maps  # the module: of several metrics here, evaluate would take the first


class EnergyInRegion(maps.MapScore):
    """Energy in a region: higher is better."""

    key = "energy_in_region"
    description = "The share of a map that lies in a region."
    citation = "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation, arXiv 2501.11309"
    score = staticmethod(energy_in_region)
