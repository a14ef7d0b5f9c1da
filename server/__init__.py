"""The HTTP process: speaks OpenAI's API and knows text; never imports torch."""
