"""Our learning from rewards beside that of Hugging Face's TRL."""
