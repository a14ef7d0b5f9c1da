"""Grammars of replies, tried before the engine is handed one."""
