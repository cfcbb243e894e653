"""Where salience maps M(x) come from, where they are kept, and what they look like."""

from sip_plugin.salience.annotations import CUB200, COCOMasks, FolderMasks, LabelStudioMasks
from sip_plugin.salience.attribution import AttributionSalience
from sip_plugin.salience.cam import CAMSalience
from sip_plugin.salience.compare import SalienceComparison, compare_salience
from sip_plugin.salience.dataset import SalientDataset
from sip_plugin.salience.gradient import GradientSalience
from sip_plugin.salience.plots import plot_salience
from sip_plugin.salience.store import MaskStore

__all__ = [
    "CUB200",
    "AttributionSalience",
    "CAMSalience",
    "COCOMasks",
    "FolderMasks",
    "GradientSalience",
    "LabelStudioMasks",
    "MaskStore",
    "SalienceComparison",
    "SalientDataset",
    "compare_salience",
    "plot_salience",
]
