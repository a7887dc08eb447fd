"""What comes from outside: checks of arguments with messages that say what is right, arrays of any kind, and a user's own arithmetic."""
