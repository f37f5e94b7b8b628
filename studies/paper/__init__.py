"""The paper's experiments: estimate what each costs, and print or run its commands."""
