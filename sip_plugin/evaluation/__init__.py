"""The paper's evaluation: robust accuracy at nested ε, unrestricted; the mask is never used here."""

from sip_plugin.evaluation.comparison import ComparisonRow, RobustnessComparison, RobustnessReport, Spread
from sip_plugin.evaluation.evaluate import evaluate_robustness
from sip_plugin.evaluation.report import ClassAccuracy
from sip_plugin.evaluation.statistics import PairedImages

__all__ = [
    "ClassAccuracy",
    "ComparisonRow",
    "PairedImages",
    "RobustnessComparison",
    "RobustnessReport",
    "Spread",
    "evaluate_robustness",
]
