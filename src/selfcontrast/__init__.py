"""Self-Contrast: feedback-free alignment with many self-generated negatives (arXiv 2404.00604)."""
