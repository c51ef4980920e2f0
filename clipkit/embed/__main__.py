"""`accelerate launch -m clipkit.embed ...` is `clipkit embed ...` on several processes."""

import sys

from clipkit.cli import program

if __name__ == "__main__":
    sys.argv.insert(1, "embed")
    program()
