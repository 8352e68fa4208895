"""``python -m postbus``: the command line, of the interpreter that is asked."""

from postbus.cli import main

if __name__ == "__main__":
    main()
