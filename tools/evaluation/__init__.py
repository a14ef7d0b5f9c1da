"""`qwen-server eval`: how well the model behind any OpenAI-compatible server calls tools and holds a conversation."""
