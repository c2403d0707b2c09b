"""What is shown, where, and in which words."""
