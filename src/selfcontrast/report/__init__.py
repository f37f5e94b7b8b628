"""The page, the terminal tables and the figures of a run or a sweep.

Everything is made from `result.json` alone, so it can be made again at any time:
python -m selfcontrast.report DIR…
"""
