"""`python -m dkuxnet`, as torchrun starts it."""

from dkuxnet.cli.commands import main

if __name__ == "__main__":
    main()
