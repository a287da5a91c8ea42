"""A blind arena: two models answer a prompt, a person votes, and learns their names afterwards."""
