"""The trainer, and the plain collaborators that it is composed of."""
