"""`python -m effbench` is the same as `effbench`."""

from effbench.cli import main

main()
