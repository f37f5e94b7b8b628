"""Turn candidates into negatives: encoders, selectors, diagnostics."""
