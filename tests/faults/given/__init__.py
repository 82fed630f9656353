"""Hostile and nonsensical inputs, one file for each kind; each yields ``Given``."""
