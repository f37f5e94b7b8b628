"""The paper's experiments: what each would cost, and the commands that run it."""
