"""Run `selfcontrast train` from a checkout.

python train.py --help
"""

from selfcontrast.cli.train import main

if __name__ == "__main__":
    main()
