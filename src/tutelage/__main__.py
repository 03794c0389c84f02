"""`python -m tutelage` is the `tutelage` command."""

from tutelage.cli import main

if __name__ == "__main__":
    main()
