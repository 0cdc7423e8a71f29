"""Stores of the code before it was moved into rooms, opened by today's, and the other way round."""
