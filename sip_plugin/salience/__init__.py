"""Where salience maps M(x) come from, and where they are kept."""

from sip_plugin.salience.attribution import AttributionSalience
from sip_plugin.salience.cam import CAMSalience
from sip_plugin.salience.dataset import SalientDataset
from sip_plugin.salience.gradient import GradientSalience
from sip_plugin.salience.store import MaskStore

__all__ = ["AttributionSalience", "CAMSalience", "GradientSalience", "MaskStore", "SalientDataset"]
