"""The verbs of ``stillroom diffusion``, one module each."""
