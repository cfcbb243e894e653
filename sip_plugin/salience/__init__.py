"""Where salience maps M(x) come from."""

from sip_plugin.salience.attribution import AttributionSalience
from sip_plugin.salience.cam import CAMSalience
from sip_plugin.salience.gradient import GradientSalience

__all__ = ["AttributionSalience", "CAMSalience", "GradientSalience"]
