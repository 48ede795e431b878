"""Other ways to make the same files, each a script run as a whole process."""
