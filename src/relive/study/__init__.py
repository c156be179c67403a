"""Studies of replay: each one makes a table and a figure."""
