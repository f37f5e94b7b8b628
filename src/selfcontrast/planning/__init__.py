"""What an experiment would do before it does it: its stages, what of them is there already, and what the rest costs."""
