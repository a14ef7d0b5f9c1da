"""Ill-treats a server and checks what it promises."""
