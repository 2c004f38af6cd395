"""Runs a plan: starts workers, interleaves rounds, owns time-outs, and alone writes results."""
