"""From records to a leaderboard. Nothing here imports torch."""
