"""The verbs of ``stillroom graphs``, one module each."""
