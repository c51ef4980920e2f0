"""`python -m clipkit.train RECIPE key=value ...`, which is what launchers start on every rank."""

import sys

from clipkit import errors
from clipkit.train import from_arguments

if __name__ == "__main__":
    errors.program(from_arguments, sys.argv[1:])
