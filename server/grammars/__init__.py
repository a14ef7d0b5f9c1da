"""Grammars of replies, compiled on trial before the engine is given one."""
