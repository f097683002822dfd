"""`python -m opsin`."""

from opsin.cli import main

main()
