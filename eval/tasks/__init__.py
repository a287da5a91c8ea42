"""Tasks: questions with answers that a program can score."""
