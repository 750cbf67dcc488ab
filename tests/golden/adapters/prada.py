"""Golden adapter of PRADA: one account's stream of queries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.defense.prada import PradaOptions, prada_stream

SYSTEM = "prada"


def stream(case: Any) -> dict[str, Tensor]:
    given = dict(case.hyperparameters)
    delta, num_classes = given.pop("delta"), given.pop("num_classes")
    options = PradaOptions(**given, max_set=None, max_distances=None)
    trace = prada_stream(case.inputs["queries"].numpy(), case.inputs["classes"].numpy(), delta=delta, options=options)
    alarms = np.flatnonzero(trace.alarm)
    thresholds, sizes = trace.state.thresholds, trace.state.set_sizes
    return {
        "set_size": torch.from_numpy(trace.set_size),
        "alarm": torch.from_numpy(trace.alarm).to(torch.uint8),
        "shapiro_w": torch.from_numpy(trace.statistic),
        "class_threshold": torch.tensor([thresholds.get(c, math.nan) for c in range(num_classes)], dtype=torch.float64),
        "class_set_size": torch.tensor([sizes.get(c, 0) for c in range(num_classes)]),
        "first_alarm": torch.tensor(int(alarms[0]) if len(alarms) else -1),
    }


ADAPTERS = {"prada_stream": stream}
