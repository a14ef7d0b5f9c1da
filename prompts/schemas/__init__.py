"""JSON schemas: what can be enforced, and what is wrong with one."""
