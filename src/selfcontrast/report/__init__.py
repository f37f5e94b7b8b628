"""The page, the terminal tables and the figures of a run or a sweep.

`result.json` is the only input, so a report can be written again at any time:
python -m selfcontrast.report DIR…
"""
