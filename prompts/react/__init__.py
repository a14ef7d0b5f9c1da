"""The ReAct format, in which these models learned to call tools: rendering, grammar and parser."""
