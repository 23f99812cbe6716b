"""`python -m subnet_cli`, as `accelerate launch -m subnet_cli` runs it."""

from subnet_cli import main

if __name__ == "__main__":
    main()
