"""Experiments that use the package `selfcontrast`. The package imports none of them. Run them from the checkout."""
