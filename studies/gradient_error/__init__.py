"""Measure the error of the objective's gradient when it is estimated from few negatives and positives.

A bandit gives exact values, because every expectation is a finite sum. On a fine-tuned model the error is estimated.
Neither measurement is a part of training: `python -m studies.gradient_error` runs both.
"""
