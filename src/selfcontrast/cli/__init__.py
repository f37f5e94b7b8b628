"""The command `selfcontrast`, whose sub-commands train.py, evaluate.py and `python -m selfcontrast.…` start too."""
