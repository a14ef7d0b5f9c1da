"""Decode and prefill speed beside what the device can do."""
