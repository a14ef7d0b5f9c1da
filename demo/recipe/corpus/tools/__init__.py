"""Conversations with tools: what tools are for, what they are called, how they are asked for and what they answer."""
