"""Measure the error of the objective's gradient if it is estimated from few negatives and positives.

The error is exact on a bandit, where every expectation is a finite sum, and measured on a fine-tuned model. Neither is
part of training: `python -m studies.gradient_error` runs both.
"""
