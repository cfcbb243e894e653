"""The paper's evaluation: robust accuracy at nested ε, unrestricted; the mask is never used here."""

from sip_plugin.evaluation.report import RobustnessReport
from sip_plugin.evaluation.robustness import evaluate_robustness

__all__ = ["RobustnessReport", "evaluate_robustness"]
