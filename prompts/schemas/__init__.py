"""JSON schemas: which parts can be enforced, what is wrong with a schema, and grammars made of them."""
