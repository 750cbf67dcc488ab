"""Estimators that score drug-target pairs, one method a file."""
