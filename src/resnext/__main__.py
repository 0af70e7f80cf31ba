"""`python -m resnext` is `resnext`."""

from resnext.cli import main

if __name__ == "__main__":
    main()
