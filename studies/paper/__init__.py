"""The paper's experiments: their cost, and the commands that run them."""
