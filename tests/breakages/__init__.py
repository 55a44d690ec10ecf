"""Does each promise have a test that fails when it is broken? A catalogue of ways to break them, and its runner."""
