"""From a suite to the cells to measure, with reasons for what is skipped. Nothing here imports torch."""
