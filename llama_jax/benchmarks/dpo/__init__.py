"""Our training beside that of Hugging Face's TRL."""
