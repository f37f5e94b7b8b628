"""What a user can mend: one clear line, with the fix in it, and no traceback."""


class UserError(Exception):
    """A wrong setting, file or environment. `train.py` prints its text alone and exits with 1."""


FAILED = "error.txt"  # in the folder of a sweep's job that failed: why, in one line
