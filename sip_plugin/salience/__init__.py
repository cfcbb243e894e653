"""Where salience maps M(x) come from."""

from sip_plugin.salience.gradient import GradientSalience

__all__ = ["GradientSalience"]
