"""What `looper COMMAND` does: a module for each command."""
