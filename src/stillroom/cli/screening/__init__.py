"""The verbs of ``stillroom screening``, one module each."""
