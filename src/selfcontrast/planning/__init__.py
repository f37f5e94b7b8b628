"""Plan a job: its stages, and which of them are cached."""
