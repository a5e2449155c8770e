"""`python -m onebyone`."""

from onebyone.cli import main

if __name__ == "__main__":
    main()
