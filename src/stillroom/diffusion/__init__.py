"""Diffusion models: denoisers, schedules, fast solvers, learned schedules, the geometry of sampling."""
