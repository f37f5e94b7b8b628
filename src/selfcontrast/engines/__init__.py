"""Engines run work in shards, in this process or in many."""
