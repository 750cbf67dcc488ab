"""Configurations of other schedulers, read as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillroom.errors import InputError

__all__ = ["converted"]

# What diffusers' schedulers call their variants of one option, and what ours have instead.
VARIANTS = {"solver_type": ("midpoint", "heun", "logrho"), "algorithm_type": ("deis",)}


def converted(config: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration of any scheduler with what it leaves to its class written out.

    Args:
        config: Of the other scheduler.
        given: What the caller sets, and therefore needs no translation.

    Raises:
        InputError: The scheduler does what ours do not: stochastic solvers, inverted flows.
    """
    discrete = "beta_start" in config or "trained_betas" in config  # schedulers in memory do not tell their class
    flow = not discrete and "shift" in config
    edm = not discrete and "sigma_data" in config
    if config.get("invert_sigmas"):
        raise InputError("the scheduler's flow runs from 0 to 1 (invert_sigmas); stillroom's run from 1 to 0 only")
    if str(config.get("algorithm_type", "")).startswith("sde-") and "algorithm_type" not in given:
        raise InputError(
            f"algorithm_type {config['algorithm_type']} is stochastic; pass algorithm_type='dpmsolver++' to from_config"
        )
    for option, variants in VARIANTS.items():
        if config.get(option) in variants:
            config.pop(option)
    implied: dict[str, Any] = {}
    if flow:
        implied = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    elif edm:
        implied = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}
        named = "logsnr" if config.get("sigma_schedule") == "exponential" else "polynomial"
        if "schedule" not in given:
            implied |= {"schedule": named}
            if named == "polynomial" and "rho" in config:
                implied |= {"schedule_options": {"rho": config["rho"]}}
    used = set(config.get("_use_default_values", ()))
    return {**config, **{key: value for key, value in implied.items() if key not in config or key in used}} | (
        {"_use_default_values": sorted(used - set(implied))} if used else {}
    )
