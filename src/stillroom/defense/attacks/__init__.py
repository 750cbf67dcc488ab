"""Attacks on classifiers one owns, to measure what a defence is worth."""
