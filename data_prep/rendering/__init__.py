"""Conversation to ids and labels: where a mask is made."""
