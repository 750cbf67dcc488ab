"""Distillation without data: images are made from the teacher's weights, and the student learns from them."""
