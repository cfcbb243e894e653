"""Salience maps of real images: the networks that they come from, and how the maps are looked at."""
