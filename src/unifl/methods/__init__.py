"""Methods: one file per paper or close family, its config beside its step."""
