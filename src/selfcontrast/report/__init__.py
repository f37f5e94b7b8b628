"""What a reader sees of a run or a sweep: the page, the table on the terminal, the figures.

Everything is made from `result.json` alone, so it can be made again at any time:
python -m selfcontrast.report DIR…
"""

from selfcontrast.report.page import write_report
from selfcontrast.report.terminal import print_result

__all__ = ["print_result", "write_report"]
