"""The measuring half: a warm process that forks a child per trial."""
