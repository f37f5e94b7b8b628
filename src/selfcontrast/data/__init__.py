"""Read prompts and targets, render them as chats, and generate and grade the built-in data."""
