"""Adversarial training methods that take the place of the criterion in a training loop."""

from sip_plugin.training.methods import SIPAT, Madry, Method, Standard
from sip_plugin.training.trainer import AdversarialTrainer

__all__ = ["SIPAT", "AdversarialTrainer", "Madry", "Method", "Standard"]
