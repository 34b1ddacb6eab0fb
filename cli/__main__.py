"""`python -m cli` is `tunery`."""

from cli.main import run

if __name__ == "__main__":
    run()
