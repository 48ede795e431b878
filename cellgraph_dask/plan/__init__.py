"""What an export will do and need: sizes that fit a memory limit. Nothing is written here."""

__all__ = ["options", "plan", "tuning"]
