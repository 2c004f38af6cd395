"""The standard suites."""
