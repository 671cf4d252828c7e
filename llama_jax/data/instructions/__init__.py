"""Instructions and answers: their formats, their templates, and the rows that are made of them."""
