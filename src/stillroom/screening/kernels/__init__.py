"""Similarities between drugs, between targets and between pairs, and the algebra that makes kernels of them."""
