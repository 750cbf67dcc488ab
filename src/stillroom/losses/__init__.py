"""Losses that several fields share: pure functions of tensors."""

from stillroom.losses.kl import confidence_kl, kd_loss, masked_kl, standardise_logits
from stillroom.losses.weighted import weighted_sum

__all__ = ["confidence_kl", "kd_loss", "masked_kl", "standardise_logits", "weighted_sum"]
