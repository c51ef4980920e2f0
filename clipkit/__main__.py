"""`python -m clipkit` is `clipkit`."""

from clipkit.cli import program

if __name__ == "__main__":
    program()
