"""Engines: where work in shards runs, in this process or on many."""
