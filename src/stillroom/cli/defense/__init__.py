"""The verbs of ``stillroom defense``."""
