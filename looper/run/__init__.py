"""One fit from its beginning to its end: what a trainer holds, the loop, evaluation, and what callbacks see."""
