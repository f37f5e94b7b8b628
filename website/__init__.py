"""The documentation as a site: pages made at build time from conf/, docstrings and other files."""
