"""The paper's evaluation: robust accuracy at nested ε, unrestricted; the mask is never used here."""

from sip_plugin.evaluation.report import RobustnessReport

__all__ = ["RobustnessReport"]
