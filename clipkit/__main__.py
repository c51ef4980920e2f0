"""`python -m clipkit` is `clipkit`."""

from clipkit.cli import main

if __name__ == "__main__":
    main()
