"""From candidates to negatives: encoders, selectors, diagnostics."""
