"""Supervised fine-tuning, reference scoring and K-negative DPO, and the training loop that they share."""
