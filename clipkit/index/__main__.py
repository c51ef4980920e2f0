"""`accelerate launch -m clipkit.index ...` is `clipkit index ...` on several processes."""

import sys

from clipkit.cli import program

if __name__ == "__main__":
    sys.argv.insert(1, "index")
    program()
