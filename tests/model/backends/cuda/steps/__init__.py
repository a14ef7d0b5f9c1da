"""Steps laid out on the device, and recorded."""
