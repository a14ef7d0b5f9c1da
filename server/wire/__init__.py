"""What clients send and get: the shapes, their examples, the document that describes them, and errors."""
