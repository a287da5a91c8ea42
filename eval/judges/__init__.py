"""Judges of answers: how they are asked, what is read from their replies, and how they err."""
