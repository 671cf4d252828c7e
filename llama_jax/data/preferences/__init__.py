"""Answers that are compared, judged or scored, as rows of tokens. Knows no loss."""
