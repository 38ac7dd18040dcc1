"""`python -m conserver`."""

from conserver.cli import main

# Worker processes import this module under another name, and must not start a command.
if __name__ == "__main__":
    main()
