"""The workers of a job: where they are, how they meet, their strategy, what they tell each other."""
