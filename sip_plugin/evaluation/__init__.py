"""The paper's evaluation: robust accuracy at nested ε, unrestricted; the mask is never used here."""

from sip_plugin.evaluation.comparison import ComparisonRow, RobustnessComparison, Spread
from sip_plugin.evaluation.paired import PairedImages
from sip_plugin.evaluation.report import ClassAccuracy, RobustnessReport
from sip_plugin.evaluation.robustness import evaluate_robustness

__all__ = [
    "ClassAccuracy",
    "ComparisonRow",
    "PairedImages",
    "RobustnessComparison",
    "RobustnessReport",
    "Spread",
    "evaluate_robustness",
]
