"""`looper doctor`: what works here, and how to repair what does not."""
