"""`python -m jaxem`."""

from jaxem.cli import command

if __name__ == "__main__":
    command()
