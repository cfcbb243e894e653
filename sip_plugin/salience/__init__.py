"""Where salience maps M(x) come from, and where they are kept."""

from sip_plugin.salience.annotations import CUB200, COCOMasks, FolderMasks, LabelStudioMasks
from sip_plugin.salience.attribution import AttributionSalience
from sip_plugin.salience.cam import CAMSalience
from sip_plugin.salience.dataset import SalientDataset
from sip_plugin.salience.gradient import GradientSalience
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
    "SalientDataset",
]
