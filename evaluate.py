"""Run `selfcontrast evaluate` from a checkout: evaluate any model as train.py evaluates its policies.

python evaluate.py model=FOLDER [data=…] [evaluation.…=…]
"""

from selfcontrast.cli.evaluate import main

if __name__ == "__main__":
    main()
