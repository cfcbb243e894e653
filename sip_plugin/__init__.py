"""Salient Information Preserving Adversarial Training (SIP-AT) as a plugin for existing attack libraries.

``SIPWrapper`` makes an attack of another library leave salient elements alone; ``AdversarialTrainer`` takes the place of
the criterion in a training loop. Salience maps come from :mod:`sip_plugin.salience`.
"""

from sip_plugin.training.trainer import AdversarialTrainer
from sip_plugin.wrapper import SIPWrapper

__all__ = ["AdversarialTrainer", "SIPWrapper", "__version__"]
__version__ = "0.2.0"
