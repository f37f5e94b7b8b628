"""Measures any model as train.py measures its policies: `selfcontrast evaluate`, from a checkout.

python evaluate.py model=FOLDER [data=…] [evaluation.…=…]
"""

from selfcontrast.cli.evaluate import main

if __name__ == "__main__":
    main()
