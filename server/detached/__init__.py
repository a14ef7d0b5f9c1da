"""Generations that go on without their clients: what they have written so far can be read again, from any event on."""
