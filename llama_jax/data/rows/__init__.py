"""Packed rows of tokens from documents, in an order that depends on neither hosts nor workers."""
