"""Experiments with the package `selfcontrast`, which imports none of them. Run them from the checkout."""
