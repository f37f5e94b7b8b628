"""How far the objective's gradient, estimated from few negatives and positives, is from the true one.

On a bandit, where every expectation is a finite sum, and on a fine-tuned model, where it is measured. Neither is a part
of training: `python -m studies.gradient_error` runs both.
"""
