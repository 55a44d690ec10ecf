"""Which devices of which machines a trainer runs on, what its workers tell each other, and the local launcher.

Nothing is imported here: the launcher works without TensorFlow.
"""
