"""Generations that go on without their clients: their events can be read again, from any one on."""
