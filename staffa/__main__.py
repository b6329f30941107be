"""`python -m staffa`: the command line, for where the script `staffa` is not on the path."""

from staffa.cli import main

if __name__ == "__main__":
    main(prog_name="staffa")
