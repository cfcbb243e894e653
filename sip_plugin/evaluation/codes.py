"""What may have become of an image at one ε, beside the index of the attack that broke it."""

ROBUST = -1
"""Attacked by every attack at this ε, and still right."""
MISCLASSIFIED = -2
"""Wrong on the clean image, so not attacked."""
ASSUMED = -3
"""Not attacked at this ε, because it survived a larger one (``assume_survivors=True``)."""
CARRIED = -4
"""An adversarial example that was found at another ε lies in this ball too."""
