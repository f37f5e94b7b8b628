"""The command `selfcontrast`. train.py, evaluate.py and `python -m selfcontrast.…` run its sub-commands, too."""
