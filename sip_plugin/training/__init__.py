"""Adversarial training methods that take the place of the criterion in a training loop."""

from sip_plugin.training.method import Method, TrainingProgress
from sip_plugin.training.methods import FAT, MART, PART, SIPAT, TRADES, Madry, Standard, rising
from sip_plugin.training.trainer import AdversarialTrainer

__all__ = [
    "FAT",
    "MART",
    "PART",
    "SIPAT",
    "TRADES",
    "AdversarialTrainer",
    "Madry",
    "Method",
    "Standard",
    "TrainingProgress",
    "rising",
]
