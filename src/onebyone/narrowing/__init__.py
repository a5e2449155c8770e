"""Fewer hidden channels between layers whose middle no one else reads."""
